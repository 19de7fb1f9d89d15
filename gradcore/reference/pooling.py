"""The twin of the mean over steps."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["mean_pool_backward", "mean_pool_forward"]

Array = NDArray[Any]


def mean_pool_forward(x: Array, lengths: Array) -> Array:
    """Return the mean of each sequence's steps.

    Parameters
    ----------
    x : ndarray, (T, B, F)
        The sequences.
    lengths : ndarray of int, (B,)
        Their lengths.

    Returns
    -------
    ndarray, (B, F)
        The means; zeros for a length of 0.

    Examples
    --------
    >>> mean_pool_forward(np.array([[[1.0]], [[2.0]], [[6.0]]]), np.array([2]))
    array([[1.5]])
    """
    y = np.zeros(x.shape[1:], x.dtype)
    for b, n in enumerate(lengths):
        if n:
            y[b] = x[:n, b].sum(axis=0) / n
    return y


def mean_pool_backward(dy: Array, lengths: Array, T: int) -> Array:
    """Return the gradient of `mean_pool_forward`.

    Parameters
    ----------
    dy : ndarray, (B, F)
        The gradient dL/dy.
    lengths : ndarray of int, (B,)
        The lengths.
    T : int
        The number of steps.

    Returns
    -------
    ndarray, (T, B, F)
        The gradient dL/dx.

    Examples
    --------
    >>> mean_pool_backward(np.array([[3.0]]), np.array([2]), 3).ravel()
    array([1.5, 1.5, 0. ])
    """
    dx = np.zeros((T, *dy.shape), dy.dtype)
    for b, n in enumerate(lengths):
        if n:
            dx[:n, b] = dy[b] / n
    return dx
