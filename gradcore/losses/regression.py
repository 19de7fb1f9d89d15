"""Losses of numbers: squared, absolute and Huber errors, and the likelihood of a normal distribution."""

from __future__ import annotations

import numpy as np

from gradcore._base.check import Array, check_array, check_number
from gradcore.losses.terms import Terms, check_predictions, times

__all__ = ["gaussian_nll", "huber", "mae", "mse"]


def mse(
    y: Array,
    target: Array,
    *,
    lengths: Array | None = None,
    mask: Array | None = None,
    weight: Array | None = None,
) -> tuple[float, Array]:
    r"""Return the mean squared error and its gradient.

    The mean of :math:`(y - t)^2` over the n elements that count.

    Parameters
    ----------
    y : ndarray
        Predictions, float32 or float64, of any shape.
    target : ndarray
        Targets t, of the shape and dtype of `y`.
    lengths : ndarray of int, (B,), optional
        The lengths of the sequences, for predictions of shape (T, B, ...).
    mask : ndarray of bool, optional
        True where a term counts; of the shape of `target` or its leading axes.
    weight : ndarray, optional
        Factors of the terms, of either sign; of the shape of `target` or its leading axes.

    Returns
    -------
    loss : float
        The mean, in float64.
    dy : ndarray
        The gradient dL/dy = 2 (y - t) / n, of the shape and dtype of `y`; 0 where an element does not count.

    Raises
    ------
    TypeError, ValueError
        If the dtypes or shapes do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore import losses
    >>> losses.mse(np.array([1.0, 2.0]), np.array([1.0, 4.0]))
    (2.0, array([ 0., -2.]))

    Two sequences of lengths 1 and 2, (T, B, 1), of which three steps count:

    >>> y, target = np.ones((2, 2, 1)), np.zeros((2, 2, 1))
    >>> loss, dy = losses.mse(y, target, lengths=[1, 2])
    >>> loss, dy[:, 0, 0].round(3)
    (1.0, array([0.667, 0.   ]))
    """
    y = check_predictions("y", y)
    t = check_array("target", target, y.dtype, y.shape)
    terms = Terms(y.shape, lengths, mask, weight)
    with np.errstate(all="ignore"):  # a loss that overflows is infinite, which needs no warning
        error = np.subtract(terms.of(y), terms.of(t), dtype=np.float64)
        loss = terms.mean(terms.weighted(np.square(error)))
        return loss, terms.gradient(terms.weighted(error), y, 2.0)


def mae(
    y: Array,
    target: Array,
    *,
    lengths: Array | None = None,
    mask: Array | None = None,
    weight: Array | None = None,
) -> tuple[float, Array]:
    r"""Return the mean absolute error and its gradient.

    The mean of :math:`|y - t|` over the n elements that count.

    Parameters
    ----------
    y : ndarray
        Predictions, float32 or float64, of any shape.
    target : ndarray
        Targets t, of the shape and dtype of `y`.
    lengths : ndarray of int, (B,), optional
        The lengths of the sequences, for predictions of shape (T, B, ...).
    mask : ndarray of bool, optional
        True where a term counts; of the shape of `target` or its leading axes.
    weight : ndarray, optional
        Factors of the terms, of either sign; of the shape of `target` or its leading axes.

    Returns
    -------
    loss : float
        The mean, in float64.
    dy : ndarray
        The gradient dL/dy = sign(y - t) / n, of the shape and dtype of `y`; 0 where y = t or an element does not count.

    Raises
    ------
    TypeError, ValueError
        If the dtypes or shapes do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore import losses
    >>> losses.mae(np.array([1.0, 2.0]), np.array([1.0, 4.0]))
    (1.0, array([ 0. , -0.5]))
    """
    y = check_predictions("y", y)
    t = check_array("target", target, y.dtype, y.shape)
    terms = Terms(y.shape, lengths, mask, weight)
    with np.errstate(all="ignore"):  # a loss that overflows is infinite, which needs no warning
        error = np.subtract(terms.of(y), terms.of(t), dtype=np.float64)
        loss = terms.mean(terms.weighted(np.abs(error)))
        return loss, terms.gradient(terms.weighted(np.sign(error)), y)


def huber(
    y: Array,
    target: Array,
    *,
    delta: float = 1.0,
    lengths: Array | None = None,
    mask: Array | None = None,
    weight: Array | None = None,
) -> tuple[float, Array]:
    r"""Return the mean Huber loss and its gradient, which no outlier makes large.

    The mean over the n elements that count of :math:`(y - t)^2 / 2` where :math:`|y - t| \le \delta`, else of
    :math:`\delta (|y - t| - \delta / 2)` [1]_.

    Parameters
    ----------
    y : ndarray
        Predictions, float32 or float64, of any shape.
    target : ndarray
        Targets t, of the shape and dtype of `y`.
    delta : float
        The error :math:`\delta` from which on the loss is linear, above 0.
    lengths : ndarray of int, (B,), optional
        The lengths of the sequences, for predictions of shape (T, B, ...).
    mask : ndarray of bool, optional
        True where a term counts; of the shape of `target` or its leading axes.
    weight : ndarray, optional
        Factors of the terms, of either sign; of the shape of `target` or its leading axes.

    Returns
    -------
    loss : float
        The mean, in float64.
    dy : ndarray
        The gradient dL/dy, y - t clipped to [-delta, delta], divided by n; 0 where an element does not count.

    Raises
    ------
    TypeError, ValueError
        If the dtypes or shapes do not fit, or `delta` is not above 0.

    References
    ----------
    .. [1] P. J. Huber, "Robust estimation of a location parameter", 1964.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore import losses
    >>> losses.huber(np.array([0.5, 9.0]), np.array([0.0, 0.0]))
    (4.3125, array([0.25, 0.5 ]))
    """
    y = check_predictions("y", y)
    t = check_array("target", target, y.dtype, y.shape)
    delta = check_number("delta", delta, above=0.0)
    terms = Terms(y.shape, lengths, mask, weight)
    with np.errstate(all="ignore"):  # a loss that overflows is infinite, which needs no warning
        error = np.subtract(terms.of(y), terms.of(t), dtype=np.float64)
        size = np.abs(error)
        value = np.where(size <= delta, np.square(error) / 2, delta * (size - delta / 2))
        loss = terms.mean(terms.weighted(value))
        return loss, terms.gradient(terms.weighted(np.clip(error, -delta, delta)), y)


def gaussian_nll(
    y: Array,
    target: Array,
    *,
    lengths: Array | None = None,
    mask: Array | None = None,
    weight: Array | None = None,
) -> tuple[float, Array]:
    r"""Return the negative log-likelihood of normal distributions and its gradient.

    The network predicts a mean m and the log of a variance s for each target t [1]_. The loss is the mean of
    :math:`(s + (m - t)^2 e^{-s}) / 2` over the n targets that count; the constant :math:`\log(2 \pi) / 2` is left out.

    Parameters
    ----------
    y : ndarray, (..., 2F)
        Predictions, float32 or float64: F means, then F log variances.
    target : ndarray, (..., F)
        Targets t, of the dtype of `y`.
    lengths : ndarray of int, (B,), optional
        The lengths of the sequences, for predictions of shape (T, B, ...).
    mask : ndarray of bool, optional
        True where a term counts; of the shape of `target` or its leading axes.
    weight : ndarray, optional
        Factors of the terms, of either sign; of the shape of `target` or its leading axes.

    Returns
    -------
    loss : float
        The mean, in float64.
    dy : ndarray, (..., 2F)
        The gradients dL/dm = (m - t) exp(-s) / n and dL/ds = (1 - (m - t)^2 exp(-s)) / 2n; 0 where a target does not
        count.

    Raises
    ------
    TypeError, ValueError
        If the dtypes or shapes do not fit.

    References
    ----------
    .. [1] D. A. Nix, A. S. Weigend, "Estimating the mean and variance of the target probability distribution", 1994,
       equation 4.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore import losses
    >>> losses.gaussian_nll(np.array([[1.0, 0.0]]), np.array([[3.0]]))
    (2.0, array([[-2. , -1.5]]))
    """
    y = check_predictions("y", y)
    if y.ndim == 0 or y.shape[-1] % 2:
        raise ValueError(f"y: expected shape (..., 2F), got {y.shape}")
    F = y.shape[-1] // 2
    t = check_array("target", target, y.dtype, (*y.shape[:-1], F))
    terms = Terms(t.shape, lengths, mask, weight)
    halves = np.stack([y[..., :F], y[..., F:]], axis=-1)  # (..., F, 2)
    with np.errstate(all="ignore"):  # a loss that overflows is infinite, which needs no warning
        mean, s = terms.of(halves).astype(np.float64).T
        root = np.exp(s / -4)  # twice, so that no product overflows or underflows before its square does
        z = times(mean - terms.of(t), root)
        z = times(z, root)
        square = np.square(z)
        value = np.where(np.isinf(square), square, (s + square) / 2)  # at s = -inf too
        slopes = np.stack([times(times(z, root), root), (1 - square) / 2], axis=-1)
        loss = terms.mean(terms.weighted(value))
        dy = terms.gradient(terms.weighted(slopes), halves)
    return loss, np.concatenate([dy[..., 0], dy[..., 1]], axis=-1)
