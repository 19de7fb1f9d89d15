"""The normalization of rows on dual numbers: its tangent, and that of its backward pass."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gradcore._base.check import Array
from gradcore.layers.dual import Dual

__all__: list[str] = []  # for the package only

CELL_EPS = 1e-5  # of layer norm in recurrent cells, as GC_NORM_EPS in src/recurrent/recurrent.h


class Normalized(NamedTuple):
    """Rows of mean 0 and variance 1, what they were multiplied by to be so, and gain and bias.

    `scale` is 1 / sqrt(variance + eps), (n, 1). Without `centered` the mean stays, as in RMS norm.
    """

    rows: Dual
    scale: Dual
    gain: Array | float
    bias: Array | float = 0.0
    centered: bool = True

    def output(self) -> Dual:
        """Return the rows times the gain, plus the bias."""
        return self.rows * self.gain + self.bias

    def back(self, d: Dual) -> Dual:
        """Return scale (e - mean(e) - x' mean(e x')) with e = d gain and the rows x': the gradient of what came in."""
        e = d * self.gain
        rest = e - _mean_of(e) if self.centered else e
        return (rest - self.rows * _mean_of(e * self.rows)) * self.scale

    def back_to_affine(self, d: Dual) -> tuple[Array, Array]:
        """Return the tangents of the gradients of gain and bias, (F,)."""
        return (d * self.rows).dot.sum(axis=0), d.dot.sum(axis=0)


def move(
    rows: Array, scale: Array, x_dot: Array, gain: Array | float, bias: Array | float = 0.0, *, centered: bool = True
) -> Normalized:
    """Return what normalized rows become where those that were normalized change by `x_dot`."""
    u = x_dot - mean(x_dot) if centered else x_dot
    along = mean(rows * u)
    return Normalized(Dual(rows, scale * (u - rows * along)), Dual(scale, -scale * scale * along), gain, bias, centered)


def normalize(x: Dual, gain: Array, bias: Array | float = 0.0) -> Normalized:
    """Normalize rows as the recurrent cells do."""
    rows = x.value - mean(x.value)
    scale = 1 / np.sqrt(mean(rows * rows) + CELL_EPS)
    return move(rows * scale, scale, x.dot, gain, bias)


def mean(rows: Array) -> Array:
    """Return the mean of each row, (n, 1); 0 for rows of nothing."""
    return np.asarray(rows.sum(axis=-1, keepdims=True) / max(rows.shape[-1], 1))


def _mean_of(rows: Dual) -> Dual:
    return Dual(mean(rows.value), mean(rows.dot))
