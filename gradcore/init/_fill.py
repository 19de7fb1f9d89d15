"""What initializers share: fans, checks, and the storing of what was drawn."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gradcore._base.check import Array, check_choice, check_rng, check_writable

__all__ = ["checked", "fan", "fans", "fill", "fill_normal", "fill_uniform"]

Generator = np.random.Generator


def checked(tensor: Any, *, least_ndim: int = 0, ndim: int | None = None, name: str = "tensor") -> Array:
    """Return an array that an initializer can fill."""
    a = check_writable(name, tensor)
    if a.dtype not in (np.float32, np.float64):
        raise TypeError(f"{name}: expected float32 or float64, got {a.dtype}")
    if ndim is not None and a.ndim != ndim:
        raise ValueError(f"{name}: expected {ndim} axes, got shape {a.shape}")
    if a.ndim < least_ndim:
        raise ValueError(f"{name}: expected at least {least_ndim} axes, got shape {a.shape}")
    return a


def fans(a: Array) -> tuple[int, int]:
    """Return how many inputs an output has, and how many outputs an input has."""
    rest = math.prod(a.shape[2:])
    return a.shape[1] * rest, a.shape[0] * rest


def fan(a: Array, mode: str) -> int:
    return fans(a)[check_choice("mode", mode, ("fan_in", "fan_out")) == "fan_out"]


def fill(a: Array, name: str, value: float, values: Array) -> Array:
    """Store what was drawn with this argument, or raise an error if the dtype cannot hold it."""
    with np.errstate(over="ignore"):
        rounded = values.astype(a.dtype)
    if not np.isfinite(rounded).all():
        raise ValueError(f"{name}: expected numbers in the range of {a.dtype}, got {value:g}")
    a[...] = rounded
    return a


def fill_uniform(a: Array, std: float, rng: int | Generator | None) -> Array:
    bound = math.sqrt(3) * abs(std)
    if bound > float(np.finfo(a.dtype).max) / 2:  # their difference has to be finite too
        raise ValueError(f"gain: expected numbers in the range of {a.dtype}, got bounds of {bound:g}")
    return fill(a, "gain", std, check_rng(rng).uniform(-bound, bound, a.shape))


def fill_normal(a: Array, std: float, rng: int | Generator | None) -> Array:
    return fill(a, "gain", std, check_rng(rng).normal(0.0, std, a.shape))
