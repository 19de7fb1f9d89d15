"""Losses: each returns its mean over the batch, and the gradient of that mean.

The value is computed in float64, whatever the dtype, and does not overflow for logits of any size. An empty batch has
the loss 0. Where the loss is NaN, so is the gradient of the entries that caused it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gradcore._base.check import Array, as_array, check_array, check_room

__all__ = ["binary_cross_entropy", "mse", "softmax_cross_entropy"]


def _check_predictions(name: str, value: Any) -> Array:
    given = as_array(name, value)
    if given.dtype not in (np.float32, np.float64):
        raise TypeError(f"{name}: expected float32 or float64, got {given.dtype}")
    check_room(math.prod(max(n, 1) for n in given.shape))  # of float64; NumPy counts axes of 0 like this
    return check_array(name, value, given.dtype, given.shape)


def mse(y: Array, target: Array) -> tuple[float, Array]:
    r"""Return the mean squared error and its gradient.

    The mean of :math:`(y - t)^2` over all n elements.

    Parameters
    ----------
    y : ndarray
        Predictions, float32 or float64, of any shape.
    target : ndarray
        Targets t, of the shape and dtype of `y`.

    Returns
    -------
    loss : float
        The mean, in float64.
    dy : ndarray
        The gradient dL/dy = 2 (y - t) / n, of the shape and dtype of `y`.

    Raises
    ------
    TypeError, ValueError
        If the dtypes or shapes differ.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore import losses
    >>> losses.mse(np.array([1.0, 2.0]), np.array([1.0, 4.0]))
    (2.0, array([ 0., -2.]))
    """
    y = _check_predictions("y", y)
    t = check_array("target", target, y.dtype, y.shape)
    with np.errstate(all="ignore"):  # a loss that overflows is infinite, which needs no warning
        difference = np.subtract(y, t, dtype=np.float64)
        loss = float(np.square(difference).sum()) / max(y.size, 1)
        difference *= 2 / max(y.size, 1)
        return loss, np.asarray(difference, y.dtype)


def softmax_cross_entropy(logits: Array, labels: Array) -> tuple[float, Array]:
    r"""Return the cross-entropy of softmax(logits) with integer labels, and its gradient.

    The mean over all rows z of :math:`-\log \mathrm{softmax}(z)_l`, l the row's label, computed as
    :math:`(\max z - z_l) + \mathrm{log1p}(\sum_{j \ne \arg\max z} e^{z_j - \max z})`. This neither overflows nor loses
    a small loss to rounding.

    A logit of -inf has the probability 0. A row has no softmax if one of its logits is NaN or inf, or all are -inf:
    the loss is NaN then, and the row's gradient too.

    Parameters
    ----------
    logits : ndarray, (..., C)
        Unnormalized log probabilities of the C classes, float32 or float64; one row for each label.
    labels : ndarray, (...)
        The right classes, integers from 0 to C - 1.

    Returns
    -------
    loss : float
        The mean, in float64.
    dy : ndarray, (..., C)
        The gradient dL/dlogits = (softmax(z) - onehot(l)) / rows, of the dtype of `logits`.

    Raises
    ------
    TypeError
        If `labels` are not integers or `logits` not float32 or float64.
    ValueError
        If the shapes do not fit, or a label is out of range; the message names its position.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore import losses
    >>> loss, dy = losses.softmax_cross_entropy(np.zeros((1, 4)), np.array([2]))
    >>> round(loss, 4), dy
    (1.3863, array([[ 0.25,  0.25, -0.75,  0.25]]))
    """
    z = _check_predictions("logits", logits)
    if z.ndim == 0:
        raise ValueError("logits: expected shape (..., C), got ()")
    dtype = as_array("labels", labels).dtype
    if dtype.kind not in "iu":
        raise TypeError(f"labels: expected integers, got {dtype}")
    labels = check_array("labels", labels, dtype, z.shape[:-1])
    C = z.shape[-1]
    wrong = (labels < 0) | (labels >= C)
    if wrong.any():
        position = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise ValueError(f"labels: expected integers from 0 to {C - 1}, got {labels[position]} at position {position}")
    if z.size == 0:
        return 0.0, np.zeros_like(z)

    z2 = z.reshape(-1, C)
    rows, label = np.arange(len(z2)), labels.reshape(-1).astype(np.intp)
    with np.errstate(all="ignore"):  # a loss that is infinite or NaN needs no warning
        largest = z2.argmax(axis=1)  # of a row with a NaN, the NaN
        shifted = np.subtract(z2, z2[rows, largest][:, None], dtype=np.float64)
        undefined = ~np.isfinite(z2[rows, largest])
        shifted[undefined] = np.nan
        p = np.exp(shifted)
        p[rows, largest] = 0
        rest = p.sum(axis=1)
        loss = float(np.mean(np.log1p(rest) - shifted[rows, label]))
        p[rows, largest] = np.exp(shifted[rows, largest])
        p /= (1 + rest)[:, None]
        p[rows, label] = 0
        p[rows, label] = -p.sum(axis=1)  # not p - 1, which rounds away what is left of a small loss
        p[undefined] = np.nan  # also where C = 1, whose sum is empty
        p /= len(z2)
        return loss, p.reshape(z.shape).astype(z.dtype, copy=False)


def binary_cross_entropy(logits: Array, target: Array) -> tuple[float, Array]:
    r"""Return the cross-entropy of sigmoid(logits) with probabilities, and its gradient.

    The mean over all n elements of :math:`-t \log \sigma(z) - (1 - t) \log(1 - \sigma(z))`, computed as
    :math:`(1 - t) \max(z, 0) + t \max(-z, 0) + \mathrm{log1p}(e^{-|z|})`. This does not overflow.

    An infinite logit gives the limits of loss and gradient: the loss is 0 if t is 1 at inf or 0 at -inf, and else inf.

    Parameters
    ----------
    logits : ndarray
        Log odds z, float32 or float64, of any shape.
    target : ndarray
        Probabilities t from 0 to 1, of the shape and dtype of `logits`.

    Returns
    -------
    loss : float
        The mean, in float64.
    dy : ndarray
        The gradient dL/dlogits = (sigmoid(z) - t) / n, of the shape and dtype of `logits`.

    Raises
    ------
    TypeError, ValueError
        If the dtypes or shapes differ.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore import losses
    >>> loss, dy = losses.binary_cross_entropy(np.zeros(2), np.array([0.0, 1.0]))
    >>> round(loss, 4), dy
    (0.6931, array([ 0.25, -0.25]))
    """
    logits = _check_predictions("logits", logits)
    t = check_array("target", target, logits.dtype, logits.shape).astype(np.float64)
    z = logits.astype(np.float64)
    n = max(z.size, 1)
    with np.errstate(all="ignore"):  # a loss that is infinite or NaN needs no warning
        e = np.exp(-np.abs(z))
        loss = float(np.sum(_times(1 - t, np.maximum(z, 0)) + _times(t, np.maximum(-z, 0)) + np.log1p(e))) / n
        p, q = np.where(z >= 0, 1, e) / (1 + e), np.where(z >= 0, e, 1) / (1 + e)
        return loss, np.asarray(((1 - t) * p - t * q) / n, logits.dtype)


def _times(weight: Array, z: Array) -> Array:
    """Return weight * z, but 0 where the weight is 0 and z infinite."""
    return np.multiply(weight, z, out=np.zeros_like(z), where=weight != 0)
