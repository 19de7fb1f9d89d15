"""The second derivatives of the activations."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from gradcore import _kernels
from gradcore._base.check import Array

__all__: list[str] = []  # for the package only

_ROOT, _CUBIC = 2 * math.sqrt(2 / math.pi), 0.044715  # of the argument of GELU's tanh form


def _sigmoid(z: Array) -> Array:
    from scipy.special import expit

    return np.asarray(expit(z))


def _elu(x: Array, p: float, q: float) -> Array:
    return np.asarray(p * q * np.exp(np.minimum(x, 0)) * (~(x > 0)))


def _gelu(x: Array, p: float, q: float) -> Array:
    square = np.square(np.clip(x, -40, 40))  # beyond which the density is 0, or infinity would meet it
    return np.asarray((2 - square) * np.exp(-square / 2) / math.sqrt(2 * math.pi))


def _gelu_tanh(x: Array, p: float, q: float) -> Array:
    x = np.clip(x, -30, 30)  # as above
    s = _sigmoid(_ROOT * (x + _CUBIC * x**3))
    slope, bend = _ROOT * (1 + 3 * _CUBIC * x**2), 6 * _ROOT * _CUBIC * x  # those of the sigmoid's argument
    return np.asarray(s * (1 - s) * (2 * slope + x * ((1 - 2 * s) * slope**2 + bend)))


def _silu(x: Array, p: float, q: float) -> Array:
    x = np.clip(x, -750, 750)  # as above
    s = _sigmoid(x)
    return np.asarray(s * (1 - s) * (2 + x * (1 - 2 * s)))


def _softplus(x: Array, p: float, q: float) -> Array:
    z = p * x
    s = _sigmoid(z)
    return np.asarray(p * s * (1 - s) * (~(z > q)))


# By the kernels' numbers, functions of what a tape keeps and of p and q in src/activation/activation.h. The others are
# straight lines with at most one corner, where the second derivative counts as 0.
_CURVATURES: dict[int, Callable[[Array, float, float], Array]] = {
    _kernels.TANH: lambda y, p, q: -2 * y * (1 - y * y),
    _kernels.SIGMOID: lambda y, p, q: y * (1 - y) * (1 - 2 * y),
    _kernels.ELU: _elu,
    _kernels.GELU: _gelu,
    _kernels.GELU_TANH: _gelu_tanh,
    _kernels.SOFTPLUS: _softplus,
    _kernels.SILU: _silu,
}


def curvature(kind: int, p: float, q: float, kept: Array) -> Array | None:
    """Return the second derivative of an activation at every element, from what its tape keeps; None where it is 0."""
    function = _CURVATURES.get(kind)
    with np.errstate(all="ignore"):  # NaN and infinity pass on, as in the kernels
        return None if function is None else function(kept, p, q)
