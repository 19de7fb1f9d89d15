"""The twins of attention."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["attention_backward", "attention_forward"]

Array = NDArray[Any]


def attention_forward(qkv: Array, num_heads: int, *, causal: bool = False, lengths: Array | None = None) -> Array:
    """Return softmax(Q K^T / sqrt(D)) V of every sequence and head, D features each.

    Parameters
    ----------
    qkv : ndarray, (T, B, 3 * E)
        The queries, the keys and the values, those of the first head first.
    num_heads : int
        The number of heads; E = num_heads * D.
    causal : bool
        Whether a step sees only itself and those before it.
    lengths : ndarray of int, (B,), optional
        The length of each sequence; T by default.

    Returns
    -------
    ndarray, (T, B, E)
        The output, zero past each sequence's end.

    Examples
    --------
    >>> qkv = np.zeros((2, 1, 3))
    >>> qkv[:, 0, 2] = 1, 3
    >>> attention_forward(qkv, 1)[:, 0, 0]
    array([2., 2.])
    >>> attention_forward(qkv, 1, causal=True)[:, 0, 0]
    array([1., 2.])
    """
    T, B, _ = qkv.shape
    y = np.zeros((T, B, qkv.shape[2] // 3), qkv.dtype)
    for b, n in enumerate(_lengths(qkv, lengths)):
        for q, k, v, at in _heads(qkv[:n, b], num_heads):
            y[:n, b, at] = _weights(q, k, causal) @ v
    return y


def attention_backward(
    qkv: Array, num_heads: int, dy: Array, *, causal: bool = False, lengths: Array | None = None
) -> Array:
    """Return the gradient of `attention_forward` with respect to qkv.

    Parameters
    ----------
    qkv : ndarray, (T, B, 3 * E)
        The queries, the keys and the values, those of the first head first.
    num_heads : int
        The number of heads; E = num_heads * D.
    dy : ndarray, (T, B, E)
        The gradient dL/dy.
    causal : bool
        Whether a step sees only itself and those before it.
    lengths : ndarray of int, (B,), optional
        The length of each sequence; T by default.

    Returns
    -------
    ndarray, (T, B, 3 * E)
        The gradient dL/dqkv, zero past each sequence's end.

    Examples
    --------
    >>> qkv = np.zeros((2, 1, 3))
    >>> qkv[:, 0, 2] = 1, 3
    >>> attention_backward(qkv, 1, np.ones((2, 1, 1)))[:, 0]
    array([[0., 0., 1.],
           [0., 0., 1.]])
    """
    E = qkv.shape[2] // 3
    dqkv = np.zeros_like(qkv)
    for b, n in enumerate(_lengths(qkv, lengths)):
        for q, k, v, at in _heads(qkv[:n, b], num_heads):
            d, weights, scale = dy[:n, b, at], _weights(q, k, causal), 1 / np.sqrt(q.shape[1])
            dweights = d @ v.T
            dlogits = weights * (dweights - (weights * dweights).sum(axis=1, keepdims=True))
            parts = dlogits @ k * scale, dlogits.T @ q * scale, weights.T @ d
            for i, part in enumerate(parts):
                dqkv[:n, b, i * E + at.start : i * E + at.stop] = part
    return dqkv


def _lengths(qkv: Array, lengths: Array | None) -> list[int]:
    T, B, _ = qkv.shape
    return [T] * B if lengths is None else [int(n) for n in lengths]


def _heads(rows: Array, num_heads: int) -> list[tuple[Array, Array, Array, slice]]:
    """Return query, key and value of each head, and where its features are."""
    E = rows.shape[1] // 3
    D = E // num_heads
    places = [slice(h * D, (h + 1) * D) for h in range(num_heads)]
    q, k, v = rows[:, :E], rows[:, E : 2 * E], rows[:, 2 * E :]
    return [(q[:, at], k[:, at], v[:, at], at) for at in places]


def _weights(q: Array, k: Array, causal: bool) -> Array:
    """Return softmax(q k^T / sqrt(D)), zero where a step does not see another."""
    n, D = q.shape
    logits = q @ k.T / np.sqrt(D)
    if causal:
        logits[np.triu_indices(n, 1)] = -np.inf
    weights = np.exp(logits - logits.max(axis=1, initial=-np.inf, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))
