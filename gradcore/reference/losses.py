"""The twins of the losses."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["binary_cross_entropy", "gaussian_nll", "huber", "mae", "mse", "softmax_cross_entropy"]

Array = NDArray[Any]


# The losses of regression share a shape: each term has a value and a slope, and `_mean` makes a loss of them.


def _spread(a: Any, shape: tuple[int, ...]) -> Array:
    """Return an array of the leading axes of a shape for all of it."""
    a = np.asarray(a)
    return np.broadcast_to(a.reshape(a.shape + (1,) * (len(shape) - a.ndim)), shape)


def _counts(shape: tuple[int, ...], lengths: Any, mask: Any) -> Array:
    """Return which terms count."""
    counts = np.ones(shape, bool)
    if lengths is not None:
        counts &= _spread(np.arange(shape[0])[:, None] < np.asarray(lengths), shape)
    return counts if mask is None else counts & _spread(mask, shape)


def _mean(
    value: Array, slope: Array, counts: Array, weight: Any, plain: Any = 0.0, dplain: Any = 0.0
) -> tuple[float, Array]:
    """Return the mean over the terms that count of weight * value + plain, and its gradient."""
    w = np.ones(value.shape) if weight is None else _spread(weight, value.shape)
    rows = (..., *(None,) * (slope.ndim - value.ndim))
    n = max(np.count_nonzero(counts), 1)
    with np.errstate(invalid="ignore"):
        loss = np.where(counts, w * value + plain, 0).sum() / n
        return float(loss), np.where(counts[rows], w[rows] * slope + dplain, 0) / n


def mse(
    y: Array,
    target: Array,
    *,
    lengths: Array | None = None,
    mask: Array | None = None,
    weight: Array | None = None,
) -> tuple[float, Array]:
    """Return the mean of (y - t)^2 over the elements that count, and its gradient.

    Parameters
    ----------
    y : ndarray
        The output, of any shape.
    target : ndarray, like y
        The targets t.
    lengths : ndarray of int, (B,), optional
        The lengths of the sequences, for terms of shape (T, B, ...).
    mask : ndarray of bool, optional
        True where a term counts; of the shape of the terms or its leading axes.
    weight : ndarray, optional
        Factors of the terms, of the shape of the terms or its leading axes.

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
    return _mean((y - target) ** 2, 2 * (y - target), _counts(y.shape, lengths, mask), weight)


def mae(
    y: Array,
    target: Array,
    *,
    lengths: Array | None = None,
    mask: Array | None = None,
    weight: Array | None = None,
) -> tuple[float, Array]:
    """Return the mean of abs(y - t) over the elements that count, and its gradient.

    Parameters
    ----------
    y : ndarray
        The output, of any shape.
    target : ndarray, like y
        The targets t.
    lengths : ndarray of int, (B,), optional
        The lengths of the sequences, for terms of shape (T, B, ...).
    mask : ndarray of bool, optional
        True where a term counts; of the shape of the terms or its leading axes.
    weight : ndarray, optional
        Factors of the terms, of the shape of the terms or its leading axes.

    Returns
    -------
    loss : float
        The loss.
    dy : ndarray, like y
        Its gradient with respect to y.

    Examples
    --------
    >>> mae(np.array([1.0, 3.0]), np.array([1.0, 1.0]))
    (1.0, array([0. , 0.5]))
    """
    return _mean(np.abs(y - target), np.sign(y - target), _counts(y.shape, lengths, mask), weight)


def huber(
    y: Array,
    target: Array,
    *,
    lengths: Array | None = None,
    mask: Array | None = None,
    weight: Array | None = None,
    delta: float = 1.0,
) -> tuple[float, Array]:
    """Return the mean of the Huber loss over the elements that count, and its gradient.

    Parameters
    ----------
    y : ndarray
        The output, of any shape.
    target : ndarray, like y
        The targets t.
    lengths : ndarray of int, (B,), optional
        The lengths of the sequences, for terms of shape (T, B, ...).
    mask : ndarray of bool, optional
        True where a term counts; of the shape of the terms or its leading axes.
    weight : ndarray, optional
        Factors of the terms, of the shape of the terms or its leading axes.
    delta : float
        The error from which on the loss is linear.

    Returns
    -------
    loss : float
        The loss.
    dy : ndarray, like y
        Its gradient with respect to y.

    Examples
    --------
    >>> huber(np.array([1.0, 3.0]), np.array([1.0, 1.0]))
    (0.75, array([0. , 0.5]))
    """
    d = y - target
    near = np.abs(d) <= delta
    value = np.where(near, d**2 / 2, delta * (np.abs(d) - delta / 2))
    return _mean(value, np.where(near, d, delta * np.sign(d)), _counts(y.shape, lengths, mask), weight)


def gaussian_nll(
    y: Array,
    target: Array,
    *,
    lengths: Array | None = None,
    mask: Array | None = None,
    weight: Array | None = None,
) -> tuple[float, Array]:
    """Return the mean of (s + (m - t)^2 exp(-s)) / 2 over the targets that count, and its gradient.

    Parameters
    ----------
    y : ndarray, (..., 2F)
        The means m, then the log variances s.
    target : ndarray, (..., F)
        The targets t.
    lengths : ndarray of int, (B,), optional
        The lengths of the sequences, for terms of shape (T, B, ...).
    mask : ndarray of bool, optional
        True where a term counts; of the shape of the terms or its leading axes.
    weight : ndarray, optional
        Factors of the terms, of the shape of the terms or its leading axes.

    Returns
    -------
    loss : float
        The loss.
    dy : ndarray, like y
        Its gradient with respect to y.

    Examples
    --------
    >>> gaussian_nll(np.array([1.0, 0.0]), np.array([3.0]))
    (2.0, array([-2. , -1.5]))
    """
    m, s = np.split(y, 2, axis=-1)
    d, inverse = m - target, np.exp(-s)
    slope = np.stack([d * inverse, (1 - d**2 * inverse) / 2], axis=-1)
    loss, dy = _mean((s + d**2 * inverse) / 2, slope, _counts(target.shape, lengths, mask), weight)
    return loss, np.concatenate([dy[..., 0], dy[..., 1]], axis=-1)


def softmax_cross_entropy(
    logits: Array,
    labels: Array,
    *,
    lengths: Array | None = None,
    mask: Array | None = None,
    weight: Array | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> tuple[float, Array]:
    """Return the mean of -log softmax(z)_label over the rows that count, and its gradient.

    Parameters
    ----------
    logits : ndarray, (..., C)
        The logits z.
    labels : ndarray of int, (...)
        The class of each row, from 0 to C - 1.
    lengths : ndarray of int, (B,), optional
        The lengths of the sequences, for terms of shape (T, B, ...).
    mask : ndarray of bool, optional
        True where a term counts; of the shape of the terms or its leading axes.
    weight : ndarray, optional
        Factors of the terms, of the shape of the terms or its leading axes.
    ignore_index : int
        The label of rows that do not count.
    label_smoothing : float
        The part of the probability that all classes share.
    z_loss : float
        The factor of the mean of (log sum exp z)^2.

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
    counts = _counts(labels.shape, lengths, mask) & (labels != ignore_index)
    C = logits.shape[-1]
    onehot = np.eye(C, dtype=logits.dtype)[np.where(counts, labels, 0)]
    q = (1 - label_smoothing) * onehot + label_smoothing / C
    largest = logits.max(axis=-1, keepdims=True)
    log_z = largest + np.log(np.exp(logits - largest).sum(axis=-1, keepdims=True))
    p = np.exp(logits - log_z)
    value = (q * (log_z - logits)).sum(axis=-1)
    extra = z_loss * log_z[..., 0] ** 2, 2 * z_loss * log_z * p
    return _mean(value, p - q, counts, weight, *extra)


def binary_cross_entropy(
    logits: Array,
    target: Array,
    *,
    lengths: Array | None = None,
    mask: Array | None = None,
    weight: Array | None = None,
) -> tuple[float, Array]:
    """Return the mean of -t log s(z) - (1 - t) log(1 - s(z)) over the elements that count, and its gradient.

    Parameters
    ----------
    logits : ndarray
        The logits z, of any shape; s is the logistic function.
    target : ndarray, like logits
        The targets t, from 0 to 1.
    lengths : ndarray of int, (B,), optional
        The lengths of the sequences, for terms of shape (T, B, ...).
    mask : ndarray of bool, optional
        True where a term counts; of the shape of the terms or its leading axes.
    weight : ndarray, optional
        Factors of the terms, of the shape of the terms or its leading axes.

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
    value = -target * np.log(p) - (1 - target) * np.log(1 - p)
    return _mean(value, p - target, _counts(logits.shape, lengths, mask), weight)
