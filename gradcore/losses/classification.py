"""Losses of classes, and the softmax that belongs to them."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradcore._base.check import Array, as_array, check_array, check_int, check_number
from gradcore.losses.terms import Terms, check_predictions, times

__all__ = ["binary_cross_entropy", "log_softmax", "softmax", "softmax_cross_entropy"]


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
    r"""Return the cross-entropy of softmax(logits) with integer labels, and its gradient.

    The mean over the rows z that count of :math:`-\log \mathrm{softmax}(z)_l`, l the row's label, computed as
    :math:`(\max z - z_l) + \mathrm{log1p}(\sum_{j \ne \arg\max z} e^{z_j - \max z})`. This neither overflows nor loses
    a small loss to rounding.

    A logit of -inf has the probability 0. A row has no softmax if one of its logits is NaN or inf, or all are -inf:
    the loss is NaN then, and the row's gradient too.

    Parameters
    ----------
    logits : ndarray, (..., C)
        Unnormalized log probabilities of the C classes, float32 or float64; one row for each label.
    labels : ndarray, (...)
        The right classes, integers from 0 to C - 1; any integers in rows that do not count.
    lengths : ndarray of int, (B,), optional
        The lengths of the sequences, for labels of shape (T, B, ...).
    mask : ndarray of bool, optional
        True where a term counts; of the shape of `labels` or its leading axes.
    weight : ndarray, optional
        Factors of the terms, of either sign; of the shape of `labels` or its leading axes.
    ignore_index : int
        The label of rows that do not count, as PyTorch's.
    label_smoothing : float
        The part :math:`\epsilon` of the probability, from 0 to 1, that all classes share:
        :math:`(1 - \epsilon)\, \mathrm{onehot}(l) + \epsilon / C` takes the place of the label [1]_.
    z_loss : float
        The factor, at least 0, of a term that keeps the logits near 0: the mean over the rows that count, without their
        weights, of :math:`(\log \sum_j e^{z_j})^2` [2]_.

    Returns
    -------
    loss : float
        The mean, in float64.
    dy : ndarray, (..., C)
        The gradient dL/dlogits, of the dtype of `logits`: (softmax(z) - onehot(l)) / n for n rows without any of the
        options, and 0 where a row does not count.

    Raises
    ------
    TypeError
        If `labels` are not integers or `logits` not float32 or float64.
    ValueError
        If the shapes do not fit, a number or a label is out of range; the message names its position.

    References
    ----------
    .. [1] C. Szegedy, V. Vanhoucke, S. Ioffe, J. Shlens, Z. Wojna, "Rethinking the Inception architecture for computer
       vision", 2016, section 7.
    .. [2] A. Chowdhery et al., "PaLM: scaling language modeling with pathways", 2022, section 5.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore import losses
    >>> loss, dy = losses.softmax_cross_entropy(np.zeros((1, 4)), np.array([2]))
    >>> round(loss, 4), dy
    (1.3863, array([[ 0.25,  0.25, -0.75,  0.25]]))
    """
    z = check_predictions("logits", logits)
    if z.ndim == 0:
        raise ValueError("logits: expected shape (..., C), got ()")
    dtype = as_array("labels", labels).dtype
    if dtype.kind not in "iu":
        raise TypeError(f"labels: expected integers, got {dtype}")
    labels = check_array("labels", labels, dtype, z.shape[:-1])
    ignored = check_int("ignore_index", ignore_index, least=-(2**40))
    smoothing = check_number("label_smoothing", label_smoothing, least=0.0, most=1.0)
    z_loss = check_number("z_loss", z_loss, least=0.0)
    C = z.shape[-1]
    terms = Terms(labels.shape, lengths, mask, weight, labels != ignored)
    label = terms.of(labels)
    wrong = (label < 0) | (label >= C)
    if wrong.any():
        position = terms.position(int(wrong.argmax()))
        raise ValueError(f"labels: expected integers from 0 to {C - 1}, got {labels[position]} at position {position}")
    if terms.n == 0:
        return 0.0, np.zeros_like(z)

    label, rows = label.astype(np.intp), np.arange(terms.n)
    with np.errstate(all="ignore"):  # a loss that is infinite or NaN needs no warning
        largest, p, shifted, log_sum = _softmax(terms.of(z))
        share = smoothing / C
        value = log_sum - times(1 - smoothing, shifted[rows, label])
        slopes = p.copy() if z_loss else p
        p_label = p[rows, label]
        slopes[rows, label] = 0
        slopes[rows, label] = -slopes.sum(axis=1)  # not p - 1, which rounds away what is left of a small loss
        slopes[np.isnan(p_label)] = np.nan  # also where C = 1, whose sum is empty
        if smoothing:
            value -= share * shifted.sum(axis=1)
            slopes -= share
            slopes[rows, label] += smoothing
        value, slopes = terms.weighted(value), terms.weighted(slopes)
        if z_loss:
            log_z = largest + log_sum
            value += z_loss * np.square(log_z)
            slopes += (2 * z_loss * log_z)[:, None] * p
        return terms.mean(value), terms.gradient(slopes, z)


def binary_cross_entropy(
    logits: Array,
    target: Array,
    *,
    lengths: Array | None = None,
    mask: Array | None = None,
    weight: Array | None = None,
) -> tuple[float, Array]:
    r"""Return the cross-entropy of sigmoid(logits) with probabilities, and its gradient.

    The mean over the n elements that count of :math:`-t \log \sigma(z) - (1 - t) \log(1 - \sigma(z))`, computed as
    :math:`(1 - t) \max(z, 0) + t \max(-z, 0) + \mathrm{log1p}(e^{-|z|})`. This does not overflow.

    An infinite logit gives the limits of loss and gradient: the loss is 0 if t is 1 at inf or 0 at -inf, and else inf.

    Parameters
    ----------
    logits : ndarray
        Log odds z, float32 or float64, of any shape.
    target : ndarray
        Probabilities t from 0 to 1, of the shape and dtype of `logits`.
    lengths : ndarray of int, (B,), optional
        The lengths of the sequences, for logits of shape (T, B, ...).
    mask : ndarray of bool, optional
        True where a term counts; of the shape of `logits` or its leading axes.
    weight : ndarray, optional
        Factors of the terms, of either sign; of the shape of `logits` or its leading axes.

    Returns
    -------
    loss : float
        The mean, in float64.
    dy : ndarray
        The gradient dL/dlogits = (sigmoid(z) - t) / n, of the shape and dtype of `logits`; 0 where an element does not
        count.

    Raises
    ------
    TypeError, ValueError
        If the dtypes or shapes do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore import losses
    >>> loss, dy = losses.binary_cross_entropy(np.zeros(2), np.array([0.0, 1.0]))
    >>> round(loss, 4), dy
    (0.6931, array([ 0.25, -0.25]))
    """
    y = check_predictions("logits", logits)
    target = check_array("target", target, y.dtype, y.shape)
    terms = Terms(y.shape, lengths, mask, weight)
    z, t = terms.of(y).astype(np.float64), terms.of(target).astype(np.float64)
    with np.errstate(all="ignore"):  # a loss that is infinite or NaN needs no warning
        e = np.exp(-np.abs(z))
        value = times(1 - t, np.maximum(z, 0)) + times(t, np.maximum(-z, 0)) + np.log1p(e)
        p, q = np.where(z >= 0, 1, e) / (1 + e), np.where(z >= 0, e, 1) / (1 + e)
        loss = terms.mean(terms.weighted(value))
        return loss, terms.gradient(terms.weighted((1 - t) * p - t * q), y)


def softmax(logits: Array) -> Array:
    r"""Return the probabilities of the classes: :math:`e^{z_j} / \sum_k e^{z_k}`.

    Computed in float64 from :math:`z - \max z`, so that it does not overflow. A row without a softmax, one that has a
    NaN or inf or only -inf, gives NaN.

    Parameters
    ----------
    logits : ndarray, (..., C)
        Unnormalized log probabilities z of the C classes, float32 or float64.

    Returns
    -------
    ndarray, (..., C)
        The probabilities, of the dtype of `logits`; each row sums to 1.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore import losses
    >>> losses.softmax(np.array([0.0, np.log(3.0), -np.inf]))
    array([0.25, 0.75, 0.  ])
    """
    z, rows = _rows(logits)
    with np.errstate(all="ignore"):
        return _softmax(rows)[1].astype(z.dtype, copy=False).reshape(z.shape)


def log_softmax(logits: Array) -> Array:
    r"""Return the logarithms of the probabilities of the classes: :math:`z_j - \log \sum_k e^{z_k}`.

    Computed in float64 from :math:`z - \max z`, so that no probability is too small. A row without a softmax, one that
    has a NaN or inf or only -inf, gives NaN.

    Parameters
    ----------
    logits : ndarray, (..., C)
        Unnormalized log probabilities z of the C classes, float32 or float64.

    Returns
    -------
    ndarray, (..., C)
        The logarithms, of the dtype of `logits`.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore import losses
    >>> losses.log_softmax(np.array([0.0, -2000.0]))
    array([    0., -2000.])
    """
    z, rows = _rows(logits)
    with np.errstate(all="ignore"):
        _, _, shifted, log_sum = _softmax(rows)
        return (shifted - log_sum[:, None]).astype(z.dtype, copy=False).reshape(z.shape)


def _rows(logits: Any) -> tuple[Array, Array]:
    """Return the logits as they are, and as (n, C); n is 0 if there are no classes."""
    z = check_predictions("logits", logits)
    if z.ndim == 0:
        raise ValueError("logits: expected shape (..., C), got ()")
    return z, z.reshape(z.size // max(z.shape[-1], 1), max(z.shape[-1], 1))


def _softmax(z: Array) -> tuple[Array, Array, Array, Array]:
    """Return the largest logit m of each row (n, C), softmax(z), z - m, and log sum exp(z - m), NaN if it has none."""
    rows, at = np.arange(len(z)), z.argmax(axis=1)  # of a row with a NaN, the NaN
    largest = z[rows, at].astype(np.float64)
    shifted = z - largest[:, None]
    shifted[~np.isfinite(largest)] = np.nan
    p = np.exp(shifted)
    top = p[rows, at]  # 1, or NaN
    p[rows, at] = 0
    rest = p.sum(axis=1)
    p[rows, at] = top
    p /= (1 + rest)[:, None]
    return largest, p, shifted, np.log1p(rest)
