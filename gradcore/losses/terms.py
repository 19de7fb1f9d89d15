"""The terms of a loss: which of them count, and with what weight."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gradcore._base.check import Array, as_array, check_array, check_lengths, check_reals, check_room, describe_shape

__all__: list[str] = []  # for the package only


class Terms:
    """The terms of a loss that count, in one row, and the way back to the shape of the predictions."""

    def __init__(
        self, shape: tuple[int, ...], lengths: Any, mask: Any, weight: Any, counted: Array | None = None
    ) -> None:
        """`counted` is what the loss itself leaves out, true where a term counts."""
        counts = np.ones(shape, bool) if counted is None else counted
        if lengths is not None:
            if len(shape) < 2:
                raise ValueError(f"lengths: expected terms of shape (T, B, ...), got {describe_shape(shape)}")
            ends = np.asarray(check_lengths(lengths, *shape[:2]))
            counts = counts & _spread("lengths", np.arange(shape[0])[:, None] < ends, shape)
        if mask is not None:
            given = as_array("mask", mask)
            if given.dtype != np.bool_:
                raise TypeError(f"mask: expected bools, got {given.dtype}; true where a term counts")
            counts = counts & _spread("mask", given, shape)
        self._shape = shape
        self._counts = None if counts.all() else counts.reshape(-1)
        self.n = int(np.count_nonzero(counts))
        self._weight = None
        if weight is not None:
            self._weight = self.of(_spread("weight", check_reals("weight", weight), shape)).astype(np.float64)

    def of(self, a: Array) -> Array:
        """Return the entries of the terms that count as (n, ...); further axes of `a` stay."""
        rows = a.reshape(math.prod(self._shape), *a.shape[len(self._shape) :])
        return rows if self._counts is None else rows[self._counts]

    def position(self, i: int) -> tuple[int, ...]:
        """Return the index of term i of those that count in the shape of all terms."""
        i = i if self._counts is None else int(np.flatnonzero(self._counts)[i])
        return tuple(int(k) for k in np.unravel_index(i, self._shape))

    def weighted(self, values: Array) -> Array:
        """Multiply values (n, ...), which may be changed, by the weights of their terms."""
        if self._weight is None:
            return values
        weight = self._weight.reshape(-1, *(1,) * (values.ndim - 1))
        return times(weight, values)

    def mean(self, values: Array) -> float:
        """Return the mean of values (n,); 0 if no term counts."""
        return float(values.sum()) / max(self.n, 1)

    def gradient(self, slopes: Array, y: Array, factor: float = 1.0) -> Array:
        """Return the gradient of a mean, like `y`, from factor times the derivatives (n, ...) of its terms."""
        slopes = slopes / (max(self.n, 1) / factor)
        if self._counts is None:
            return slopes.astype(y.dtype, copy=False).reshape(y.shape)
        dy = np.zeros((self._counts.size, *slopes.shape[1:]), y.dtype)
        dy[self._counts] = slopes
        return dy.reshape(y.shape)


def times(factor: Array | float, a: Array) -> Array:
    """Return factor * a, but 0 where the factor is 0 and `a` infinite."""
    return np.multiply(factor, a, out=np.zeros(a.shape), where=(factor != 0) | ~np.isinf(a))


def _spread(name: str, given: Array, shape: tuple[int, ...]) -> Array:
    """Return an array of the leading axes of a shape, or of axes of size 1 in their place, for all of it."""
    fits = given.ndim <= len(shape) and all(n in (1, m) for n, m in zip(given.shape, shape, strict=False))
    if not fits:
        raise ValueError(f"{name}: expected shape {describe_shape(shape)} or its leading axes, got {given.shape}")
    return np.broadcast_to(given.reshape(given.shape + (1,) * (len(shape) - given.ndim)), shape)


def check_predictions(name: str, value: Any) -> Array:
    """Return the predictions as float32 or float64."""
    given = as_array(name, value)
    if given.dtype not in (np.float32, np.float64):
        raise TypeError(f"{name}: expected float32 or float64, got {given.dtype}")
    check_room(math.prod(max(n, 1) for n in given.shape))  # of float64; NumPy counts axes of 0 like this
    return check_array(name, value, given.dtype, given.shape)
