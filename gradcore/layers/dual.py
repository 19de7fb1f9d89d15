"""Dual numbers: arrays that carry their tangent along, so that the product rule is written once."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradcore._base.check import Array

__all__: list[str] = []  # for the package only


class Dual:
    """An array, and its derivative with respect to one number: ``value + eps * dot`` with ``eps^2 = 0``.

    The operations accept arrays and numbers on their right, which are constants.
    """

    __slots__ = ("dot", "value")
    __array_ufunc__ = None  # so that array * dual is an error

    def __init__(self, value: Any, dot: Any) -> None:
        self.value, self.dot = value, dot

    def __getitem__(self, at: Any) -> Dual:
        return Dual(self.value[at], self.dot[at])

    def __add__(self, other: Any) -> Dual:
        if isinstance(other, Dual):
            return Dual(self.value + other.value, self.dot + other.dot)
        return Dual(self.value + other, self.dot)

    def __sub__(self, other: Any) -> Dual:
        if isinstance(other, Dual):
            return Dual(self.value - other.value, self.dot - other.dot)
        return Dual(self.value - other, self.dot)

    def __rsub__(self, other: Any) -> Dual:
        return Dual(other - self.value, -self.dot)

    def __mul__(self, other: Any) -> Dual:
        if isinstance(other, Dual):
            return Dual(self.value * other.value, self.dot * other.value + self.value * other.dot)
        return Dual(self.value * other, self.dot * other)

    def __matmul__(self, other: Any) -> Dual:
        if isinstance(other, Dual):
            return Dual(self.value @ other.value, self.dot @ other.value + self.value @ other.dot)
        return Dual(self.value @ other, self.dot @ other)

    @property
    def mT(self) -> Dual:
        """The matrices on the last two axes, transposed."""
        return Dual(self.value.swapaxes(-1, -2), self.dot.swapaxes(-1, -2))

    def sum(self) -> Dual:
        """The sum over the last axis, which stays with the size 1."""
        return Dual(self.value.sum(axis=-1, keepdims=True), self.dot.sum(axis=-1, keepdims=True))

    def tanh(self) -> Dual:
        """The hyperbolic tangent y, whose derivative is 1 - y^2."""
        y = np.tanh(self.value)
        return Dual(y, (1 - y * y) * self.dot)

    def softmax(self) -> Dual:
        """The softmax y over the last axis, whose derivative is diag(y) - y y^T; -inf has the probability 0."""
        y = np.exp(self.value - self.value.max(axis=-1, keepdims=True))
        y /= y.sum(axis=-1, keepdims=True)
        mean = (y * self.dot).sum(axis=-1, keepdims=True)
        return Dual(y, y * (self.dot - mean))


def zeros(*shape: int, dtype: np.dtype[Any]) -> Dual:
    """Return a dual number whose value and tangent can be written to in place."""
    return Dual(*np.zeros((2, *shape), dtype))


def through_sigmoid(y: Array, dot: Array) -> Dual:
    """Return y = sigmoid(s) as a dual number, from y and the tangent of s."""
    return Dual(y, y * (1 - y) * dot)


def through_tanh(y: Array, dot: Array) -> Dual:
    """Return y = tanh(s) as a dual number, from y and the tangent of s."""
    return Dual(y, (1 - y * y) * dot)
