"""The twin of dropout."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["dropout", "threefry"]

Array = NDArray[Any]

TURNS = ((10, 26), (11, 21), (13, 27), (23, 5), (6, 20), (17, 11), (25, 10), (18, 20))
COUNTERS = 16  # whose words stand side by side


def threefry(counters: Array, key: int, rounds: int = 12) -> Array:
    """Return four random words for each counter: Threefry-4x32.

    Parameters
    ----------
    counters : ndarray of uint64, (n,)
        The counters, the upper half of whose 128 bits is zero.
    key : int
        The key, below 2^64; the upper half of its 128 bits is zero.
    rounds : int
        The number of rounds.

    Returns
    -------
    ndarray of uint32, (4, n)
        The words.

    References
    ----------
    Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011, section 4.

    Examples
    --------
    >>> [f"{word:08x}" for word in threefry(np.zeros(1, np.uint64), 0, rounds=20)[:, 0]]
    ['9c6ca96a', 'e17eae66', 'fc10ecd4', '5256a7d8']
    """
    low = np.uint64(2**32 - 1)
    keys = [np.uint32(key % 2**32), np.uint32(key >> 32), np.uint32(0), np.uint32(0)]
    keys.append(np.uint32(0x1BD11BDA) ^ keys[0] ^ keys[1])
    zeros = np.zeros(counters.shape, np.uint32)
    words = [(counters & low).astype(np.uint32), (counters >> np.uint64(32)).astype(np.uint32), zeros, zeros.copy()]
    words = [word + k for word, k in zip(words, keys, strict=False)]
    for i in range(rounds):
        for first, second, turn in zip((0, 2), (1, 3) if i % 2 == 0 else (3, 1), TURNS[i % 8], strict=True):
            words[first] = words[first] + words[second]
            turned = (words[second] << np.uint32(turn)) | (words[second] >> np.uint32(32 - turn))
            words[second] = turned ^ words[first]
        if i % 4 == 3:
            s = i // 4 + 1
            words = [word + keys[(s + k) % 5] for k, word in enumerate(words)]
            words[3] = words[3] + np.uint32(s)
    return np.stack(words)


def dropout(x: Array, p: float, key: int) -> Array:
    """Return x m / (1 - p), where m is 0 with probability p; dL/dx of dL/dy is the same.

    Element i takes word ``i % 64 // 16`` of counter ``i // 64 * 16 + i % 16``, and is dropped if that is below 2^32 p.

    Parameters
    ----------
    x : ndarray
        The input, of any shape.
    p : float
        The probability of 0.
    key : int
        The key of the random words, below 2^64.

    Returns
    -------
    ndarray, like x
        The output.

    Examples
    --------
    >>> dropout(np.ones(8), 0.5, 3)
    array([2., 2., 0., 2., 0., 0., 0., 2.])
    """
    blocks = -(-x.size // (4 * COUNTERS))
    words = threefry(np.arange(blocks * COUNTERS, dtype=np.uint64), key)
    words = words.reshape(4, blocks, COUNTERS).swapaxes(0, 1).reshape(-1)[: x.size].reshape(x.shape)
    keep = words >= min(int(p * 2**32), 2**32 - 1)
    scale = 1 / (1 - p) if p < 1 else 0.0
    return np.asarray(x * np.where(keep, scale, 0.0).astype(x.dtype))
