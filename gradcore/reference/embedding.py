"""The twin of the table of vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["embedding_backward", "embedding_forward"]

Array = NDArray[Any]


def embedding_forward(x: Array, weight: Array) -> Array:
    """Return the rows of a table that x numbers.

    Parameters
    ----------
    x : ndarray of int
        The numbers, of any shape.
    weight : ndarray, (n, E)
        The table.

    Returns
    -------
    ndarray, (..., E)
        The rows.

    Examples
    --------
    >>> embedding_forward(np.array([1, 1]), np.array([[1.0, 2.0], [3.0, 4.0]]))
    array([[3., 4.],
           [3., 4.]])
    """
    return np.asarray(weight[x])


def embedding_backward(x: Array, weight: Array, dy: Array, padding_idx: int | None = None) -> Array:
    """Return dL/dW of `embedding_forward`, one number after the other.

    Parameters
    ----------
    x : ndarray of int
        The numbers.
    weight : ndarray, (n, E)
        The table, of which only the shape counts.
    dy : ndarray, (..., E)
        The gradient dL/dy.
    padding_idx : int, optional
        A row without gradient.

    Returns
    -------
    ndarray, (n, E)
        The gradient dL/dW.

    Examples
    --------
    >>> embedding_backward(np.array([1, 1]), np.zeros((2, 1)), np.array([[3.0], [4.0]]))
    array([[0.],
           [7.]])
    """
    dw = np.zeros(weight.shape, dy.dtype)
    np.add.at(dw, x, dy)
    if padding_idx is not None:
        dw[padding_idx] = 0
    return dw
