"""The twins of the losses."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["binary_cross_entropy", "mse", "softmax_cross_entropy"]

Array = NDArray[Any]


def mse(y: Array, target: Array) -> tuple[float, Array]:
    """Return the mean of (y - t)^2 over all elements, and its gradient.

    Parameters
    ----------
    y : ndarray
        The output, of any shape.
    target : ndarray, like y
        The targets t.

    Returns
    -------
    loss : float
        The loss.
    dy : ndarray, like y
        Its gradient with respect to y.

    Examples
    --------
    >>> mse(np.array([1.0, 3.0]), np.array([1.0, 1.0]))
    (2.0, array([0., 2.]))
    """
    return float(np.mean((y - target) ** 2)), 2 * (y - target) / y.size


def softmax_cross_entropy(logits: Array, labels: Array) -> tuple[float, Array]:
    """Return the mean of -log softmax(z)_label over all rows, and its gradient.

    Parameters
    ----------
    logits : ndarray, (..., C)
        The logits z.
    labels : ndarray of int, (...)
        The class of each row, from 0 to C - 1.

    Returns
    -------
    loss : float
        The loss.
    dlogits : ndarray, like logits
        Its gradient with respect to the logits.

    Examples
    --------
    >>> loss, dlogits = softmax_cross_entropy(np.zeros((1, 2)), np.array([0]))
    >>> round(loss, 4), dlogits
    (0.6931, array([[-0.5,  0.5]]))
    """
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    onehot = np.eye(logits.shape[-1], dtype=logits.dtype)[labels]
    return float(-np.log((p * onehot).sum(axis=-1)).mean()), (p - onehot) / labels.size


def binary_cross_entropy(logits: Array, target: Array) -> tuple[float, Array]:
    """Return the mean of -t log s(z) - (1 - t) log(1 - s(z)) over all elements, and its gradient.

    Parameters
    ----------
    logits : ndarray
        The logits z, of any shape; s is the logistic function.
    target : ndarray, like logits
        The targets t, from 0 to 1.

    Returns
    -------
    loss : float
        The loss.
    dlogits : ndarray, like logits
        Its gradient with respect to the logits.

    Examples
    --------
    >>> loss, dlogits = binary_cross_entropy(np.zeros(2), np.array([0.0, 1.0]))
    >>> round(loss, 4), dlogits
    (0.6931, array([ 0.25, -0.25]))
    """
    p = 1 / (1 + np.exp(-logits))
    loss = -target * np.log(p) - (1 - target) * np.log(1 - p)
    return float(loss.mean()), (p - target) / logits.size
