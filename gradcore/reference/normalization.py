"""The twins of layer norm, RMS norm and batch norm."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "batch_norm_backward",
    "batch_norm_forward",
    "layer_norm_backward",
    "layer_norm_forward",
    "rms_norm_backward",
    "rms_norm_forward",
]

Array = NDArray[Any]


def layer_norm_forward(x: Array, weight: Array, bias: Array, eps: float = 1e-5) -> Array:
    """Return y = (x - mean) / sqrt(var + eps) * weight + bias, with mean and variance over the last axes.

    Parameters
    ----------
    x : ndarray, (..., *S)
        The input.
    weight : ndarray, S
        The gain, of the shape of the last axes.
    bias : ndarray, S
        What is added.
    eps : float
        What is added to the variance.

    Returns
    -------
    ndarray, (..., *S)
        The output y.

    Examples
    --------
    >>> layer_norm_forward(np.array([[1.0, 3.0]]), np.array([2.0, 2.0]), np.array([0.0, 1.0]), eps=0.0)
    array([[-2.,  3.]])
    """
    axes = _last_axes(weight)
    centered = x - x.mean(axis=axes, keepdims=True)
    return np.asarray(centered * _rstd(centered, axes, eps) * weight + bias)


def layer_norm_backward(x: Array, weight: Array, dy: Array, eps: float = 1e-5) -> tuple[Array, Array, Array]:
    """Return the gradients of `layer_norm_forward`.

    Parameters
    ----------
    x : ndarray, (..., *S)
        The input.
    weight : ndarray, S
        The gain.
    dy : ndarray, (..., *S)
        The gradient dL/dy.
    eps : float
        What is added to the variance.

    Returns
    -------
    dx : ndarray, (..., *S)
        The gradient dL/dx.
    dw : ndarray, S
        The gradient dL/d(weight).
    db : ndarray, S
        The gradient dL/d(bias).

    Examples
    --------
    >>> dx, dw, db = layer_norm_backward(np.array([[1.0, 3.0]]), np.ones(2), np.array([[5.0, 7.0]]), eps=0.0)
    >>> dw, db
    (array([-5.,  7.]), array([5., 7.]))
    """
    axes = _last_axes(weight)
    centered = x - x.mean(axis=axes, keepdims=True)
    rstd = _rstd(centered, axes, eps)
    normalized, d = centered * rstd, dy * weight
    mean, slope = (a.mean(axis=axes, keepdims=True) for a in (d, d * normalized))
    return rstd * (d - mean - normalized * slope), _over_rows(dy * normalized, weight), _over_rows(dy, weight)


def rms_norm_forward(x: Array, weight: Array, eps: float) -> Array:
    """Return y = x / sqrt(mean(x^2) + eps) * weight, with the mean over the last axes.

    Parameters
    ----------
    x : ndarray, (..., *S)
        The input.
    weight : ndarray, S
        The gain, of the shape of the last axes.
    eps : float
        What is added to the mean square.

    Returns
    -------
    ndarray, (..., *S)
        The output y.

    Examples
    --------
    >>> rms_norm_forward(np.array([[1.0, 7.0]]), np.array([5.0, 10.0]), eps=0.0)
    array([[ 1., 14.]])
    """
    return np.asarray(x * _rstd(x, _last_axes(weight), eps) * weight)


def rms_norm_backward(x: Array, weight: Array, dy: Array, eps: float) -> tuple[Array, Array]:
    """Return the gradients of `rms_norm_forward`.

    Parameters
    ----------
    x : ndarray, (..., *S)
        The input.
    weight : ndarray, S
        The gain.
    dy : ndarray, (..., *S)
        The gradient dL/dy.
    eps : float
        What is added to the mean square.

    Returns
    -------
    dx : ndarray, (..., *S)
        The gradient dL/dx.
    dw : ndarray, S
        The gradient dL/d(weight).

    Examples
    --------
    >>> dx, dw = rms_norm_backward(np.array([[1.0, 7.0]]), np.ones(2), np.array([[5.0, 10.0]]), eps=0.0)
    >>> dw
    array([ 1., 14.])
    """
    axes = _last_axes(weight)
    rstd = _rstd(x, axes, eps)
    normalized, d = x * rstd, dy * weight
    slope = (d * normalized).mean(axis=axes, keepdims=True)
    return rstd * (d - normalized * slope), _over_rows(dy * normalized, weight)


def batch_norm_forward(x: Array, weight: Array, bias: Array, eps: float = 1e-5) -> Array:
    """Return y = (x - mean) / sqrt(var + eps) * weight + bias, with mean and variance over all axes but the last.

    Parameters
    ----------
    x : ndarray, (..., F)
        The input.
    weight : ndarray, (F,)
        The gain.
    bias : ndarray, (F,)
        What is added.
    eps : float
        What is added to the variance.

    Returns
    -------
    ndarray, (..., F)
        The output y.

    Examples
    --------
    >>> batch_norm_forward(np.array([[1.0], [3.0]]), np.array([2.0]), np.array([1.0]), eps=0.0)
    array([[-1.],
           [ 3.]])
    """
    axes = tuple(range(x.ndim - 1))
    centered = x - x.mean(axis=axes, keepdims=True)
    return np.asarray(centered * _rstd(centered, axes, eps) * weight + bias)


def batch_norm_backward(x: Array, weight: Array, dy: Array, eps: float = 1e-5) -> tuple[Array, Array, Array]:
    """Return the gradients of `batch_norm_forward`.

    Parameters
    ----------
    x : ndarray, (..., F)
        The input.
    weight : ndarray, (F,)
        The gain.
    dy : ndarray, (..., F)
        The gradient dL/dy.
    eps : float
        What is added to the variance.

    Returns
    -------
    dx : ndarray, (..., F)
        The gradient dL/dx.
    dw : ndarray, (F,)
        The gradient dL/d(weight).
    db : ndarray, (F,)
        The gradient dL/d(bias).

    Examples
    --------
    >>> dx, dw, db = batch_norm_backward(np.array([[1.0], [3.0]]), np.ones(1), np.array([[5.0], [7.0]]), eps=0.0)
    >>> dw, db
    (array([2.]), array([12.]))
    """
    axes = tuple(range(x.ndim - 1))
    centered = x - x.mean(axis=axes, keepdims=True)
    rstd = _rstd(centered, axes, eps)
    normalized = centered * rstd
    mean, slope = (a.mean(axis=axes, keepdims=True) for a in (dy, dy * normalized))
    dx = weight * rstd * (dy - mean - normalized * slope)
    return dx, (dy * normalized).sum(axis=axes), dy.sum(axis=axes)


def _last_axes(weight: Array) -> tuple[int, ...]:
    return tuple(range(-weight.ndim, 0))


def _rstd(centered: Array, axes: tuple[int, ...], eps: float) -> Array:
    return np.asarray(1 / np.sqrt(np.mean(centered**2, axis=axes, keepdims=True) + eps))


def _over_rows(a: Array, weight: Array) -> Array:
    """Return the sum over all axes but the last ones."""
    return np.asarray(a.sum(axis=tuple(range(a.ndim - weight.ndim))))
