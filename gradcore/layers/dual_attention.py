"""Attention on dual numbers: its tangent, and that of its backward pass, in blocks of queries."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from gradcore._base.check import Array
from gradcore.layers.dual import Dual, zeros

__all__: list[str] = []  # for the package only

QUERIES = 128  # of a block, so that memory grows with the length of a sequence and not with its square

Steps = tuple[Array, Array, int]  # the first row of each sequence, its length, and how far apart its rows are


def attend(steps: Steps, heads: int, causal: bool, qkv: Dual) -> Dual:
    """Return softmax(Q K^T / sqrt(D)) V of every sequence and head, (n, E), from the rows (n, 3 E)."""
    n, width = qkv.value.shape
    mixed = zeros(n, width // 3, dtype=qkv.value.dtype)
    for rows in _sequences(steps):
        q, k, v = _heads(qkv[rows], heads, 3)
        (out,) = _heads(mixed[rows], heads, 1)
        for block, seen in _blocks(q, causal):
            y = _weights(q, k, block, seen, causal) @ v[:, seen]
            out.value[:, block], out.dot[:, block] = y.value, y.dot
    return mixed


def attend_back(steps: Steps, heads: int, causal: bool, qkv: Dual, d_mixed: Dual) -> Dual:
    """Return the gradient with respect to the rows (n, 3 E), from that with respect to what `attend` returns."""
    n, width = qkv.value.shape
    d_qkv = zeros(n, width, dtype=qkv.value.dtype)
    for rows in _sequences(steps):
        q, k, v = _heads(qkv[rows], heads, 3)
        dq, dk, dv = _heads(d_qkv[rows], heads, 3)
        (dy,) = _heads(d_mixed[rows], heads, 1)
        scale = 1 / math.sqrt(q.value.shape[-1])
        for block, seen in _blocks(q, causal):
            p = _weights(q, k, block, seen, causal)
            _add(dv[:, seen], p.mT @ dy[:, block])
            dp = dy[:, block] @ v[:, seen].mT
            d_logits = p * (dp - (dp * p).sum()) * scale  # through the softmax
            _add(dq[:, block], d_logits @ k[:, seen])
            _add(dk[:, seen], d_logits.mT @ q[:, block])
    return d_qkv


def _sequences(steps: Steps) -> Iterator[slice]:
    first, lengths, step = steps
    for start, length in zip(first.tolist(), lengths.tolist(), strict=True):
        yield slice(start, start + length * step, step)


def _heads(rows: Dual, heads: int, parts: int) -> tuple[Dual, ...]:
    """(n, parts * heads * D) -> views (heads, n, D), one for each part"""

    def split(a: Array) -> Array:
        n, width = a.shape
        return np.asarray(a.reshape(n, parts, heads, width // (parts * heads)).transpose(1, 2, 0, 3))

    return tuple(Dual(value, dot) for value, dot in zip(split(rows.value), split(rows.dot), strict=True))


def _blocks(q: Dual, causal: bool) -> Iterator[tuple[slice, slice]]:
    """Yield blocks of queries, and the keys that they see."""
    n = q.value.shape[1]
    for start in range(0, n, QUERIES):
        end = min(start + QUERIES, n)
        yield slice(start, end), slice(0, end if causal else n)


def _weights(q: Dual, k: Dual, block: slice, seen: slice, causal: bool) -> Dual:
    """Return how much each query of a block takes of each key, (heads, queries, keys)."""
    logits = q[:, block] @ k[:, seen].mT * (1 / math.sqrt(q.value.shape[-1]))
    if causal:
        later = np.arange(seen.stop) > np.arange(block.start, block.stop)[:, None]
        logits.value[:, later] = -np.inf
    return logits.softmax()


def _add(to: Dual, change: Dual) -> None:
    """Add to a view in place."""
    np.add(to.value, change.value, out=to.value)
    np.add(to.dot, change.dot, out=to.dot)
