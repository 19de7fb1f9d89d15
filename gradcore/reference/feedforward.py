"""The twins of the affine map and of the activations."""

from __future__ import annotations

from collections.abc import Callable
from math import erfc, pi, prod, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "activation_backward",
    "activation_forward",
    "linear_backward",
    "linear_forward",
    "prelu_backward",
    "prelu_forward",
]

Array = NDArray[Any]


def linear_forward(x: Array, weight: Array, bias: Array) -> Array:
    """Return y = x W^T + b over the last axis.

    Parameters
    ----------
    x : ndarray, (..., I)
        The input.
    weight : ndarray, (O, I)
        The weight W.
    bias : ndarray, (O,)
        The bias b.

    Returns
    -------
    ndarray, (..., O)
        The output y.

    Examples
    --------
    >>> linear_forward(np.array([[1.0, 2.0]]), np.array([[3.0, 4.0]]), np.array([0.5]))
    array([[11.5]])
    """
    return np.asarray(x @ weight.T + bias)


def linear_backward(x: Array, weight: Array, dy: Array) -> tuple[Array, Array, Array]:
    """Return the gradients of `linear_forward`.

    Parameters
    ----------
    x : ndarray, (..., I)
        The input.
    weight : ndarray, (O, I)
        The weight W.
    dy : ndarray, (..., O)
        The gradient dL/dy.

    Returns
    -------
    dx : ndarray, (..., I)
        The gradient dL/dx.
    dw : ndarray, (O, I)
        The gradient dL/dW.
    db : ndarray, (O,)
        The gradient dL/db.

    Examples
    --------
    >>> linear_backward(np.array([[1.0, 2.0]]), np.array([[3.0, 4.0]]), np.array([[10.0]]))
    (array([[30., 40.]]), array([[10., 20.]]), array([10.]))
    """
    N = prod(x.shape[:-1])
    rows, d = x.reshape(N, weight.shape[1]), dy.reshape(N, weight.shape[0])
    return dy @ weight, d.T @ rows, d.sum(axis=0)


def activation_forward(name: str, x: Array, p: float = 1.0, q: float = 1.0) -> Array:
    """Return the activation of each element.

    Parameters
    ----------
    name : str
        The activation: "identity", "tanh", "sigmoid", "relu", "leaky_relu", "elu", "gelu", "gelu_tanh", "softplus"
        or "silu".
    x : ndarray
        The input, of any shape.
    p : float
        The negative slope of leaky ReLU, alpha of ELU, or beta of softplus.
    q : float
        The scale of ELU (SELU's), or the threshold of softplus.

    Returns
    -------
    ndarray, like x
        The output.

    Examples
    --------
    >>> activation_forward("leaky_relu", np.array([-2.0, 3.0]), 0.5)
    array([-1.,  3.])
    """
    function: dict[str, Callable[[], Any]] = {
        "identity": lambda: x,
        "tanh": lambda: np.tanh(x),
        "sigmoid": lambda: 1 / (1 + np.exp(-x)),
        "relu": lambda: np.maximum(0, x),
        "leaky_relu": lambda: np.where(x > 0, x, p * x),
        "elu": lambda: q * np.where(x > 0, x, p * np.expm1(np.minimum(x, 0))),
        "gelu": lambda: x * _normal_cdf(x),
        "gelu_tanh": lambda: x / 2 * (1 + np.tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))),
        "softplus": lambda: np.where(p * x > q, x, np.logaddexp(0, p * x) / p),
        "silu": lambda: x / (1 + np.exp(-x)),
    }
    return np.asarray(function[name](), x.dtype)


def activation_backward(name: str, x: Array, dy: Array, p: float = 1.0, q: float = 1.0) -> Array:
    """Return dL/dx from dL/dy and the derivative at x.

    Parameters
    ----------
    name : str
        The activation: "identity", "tanh", "sigmoid", "relu", "leaky_relu", "elu", "gelu", "gelu_tanh", "softplus"
        or "silu".
    x : ndarray
        The input, of any shape.
    dy : ndarray, like x
        The gradient dL/dy.
    p : float
        The negative slope of leaky ReLU, alpha of ELU, or beta of softplus.
    q : float
        The scale of ELU (SELU's), or the threshold of softplus.

    Returns
    -------
    ndarray, like x
        The gradient dL/dx.

    Examples
    --------
    >>> activation_backward("leaky_relu", np.array([-2.0, 3.0]), np.array([10.0, 10.0]), 0.5)
    array([ 5., 10.])
    """
    t = np.tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))
    slope: dict[str, Callable[[], Any]] = {
        "identity": lambda: 1.0,
        "tanh": lambda: 1 / np.cosh(x) ** 2,
        "sigmoid": lambda: 1 / (2 + np.exp(x) + np.exp(-x)),
        "relu": lambda: x > 0,
        "leaky_relu": lambda: np.where(x > 0, 1, p),
        "elu": lambda: q * np.where(x > 0, 1, p * np.exp(np.minimum(x, 0))),
        "gelu": lambda: _normal_cdf(x) + x * np.exp(-(x**2) / 2) / sqrt(2 * pi),
        "gelu_tanh": lambda: (1 + t) / 2 + x / 2 * (1 - t**2) * sqrt(2 / pi) * (1 + 3 * 0.044715 * x**2),
        "softplus": lambda: np.where(p * x > q, 1, 1 / (1 + np.exp(-p * x))),
        "silu": lambda: (1 + x / (1 + np.exp(x))) / (1 + np.exp(-x)),
    }
    return np.asarray(dy * slope[name](), x.dtype)


def prelu_forward(x: Array, weight: Array) -> Array:
    """Return x where it is above 0, and w x elsewhere.

    Parameters
    ----------
    x : ndarray, (..., C)
        The input; of any shape if there is one slope.
    weight : ndarray, (1,) or (C,)
        The slopes w.

    Returns
    -------
    ndarray, like x
        The output.

    Examples
    --------
    >>> prelu_forward(np.array([-2.0, 3.0]), np.array([0.25]))
    array([-0.5,  3. ])
    """
    return np.asarray(np.where(x > 0, x, weight * x))


def prelu_backward(x: Array, weight: Array, dy: Array) -> tuple[Array, Array]:
    """Return the gradients of `prelu_forward`.

    Parameters
    ----------
    x : ndarray, (..., C)
        The input; of any shape if there is one slope.
    weight : ndarray, (1,) or (C,)
        The slopes w.
    dy : ndarray, like x
        The gradient dL/dy.

    Returns
    -------
    dx : ndarray, like x
        The gradient dL/dx.
    dw : ndarray, like weight
        The gradient dL/dw.

    Examples
    --------
    >>> prelu_backward(np.array([-2.0, 3.0]), np.array([0.25]), np.array([1.0, 1.0]))
    (array([0.25, 1.  ]), array([-2.]))
    """
    products = np.where(x > 0, 0, dy * x)
    dw = products.reshape(-1, weight.size).sum(axis=0) if products.size else np.zeros(weight.shape, x.dtype)
    return np.asarray(dy * np.where(x > 0, 1, weight)), dw


def _normal_cdf(x: Array) -> Array:
    """Return P(Z <= x) = erfc(-x / sqrt(2)) / 2, Z standard normal."""
    flat = [erfc(-value / sqrt(2)) / 2 for value in x.ravel()]
    return np.array(flat, x.dtype).reshape(x.shape)
