"""Arithmetic of growth in logarithms, which reach beyond the range of a double."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gradcore._base.check import Array

__all__: list[str] = []  # for the package only


def safe_log(value: Any) -> Any:
    """Return ln(value), -inf at 0 without a warning."""
    with np.errstate(divide="ignore"):
        return np.log(value)


def safe_exp(exponent: float) -> float:
    """Return exp(exponent), inf where it overflows."""
    return math.exp(exponent) if exponent < 709.0 else math.inf


def fit_slope(logs: Array) -> float:
    """Return the least-squares slope of logs at 0, 1, 2, ...; -inf if one of them is."""
    if np.isneginf(logs).any():
        return -math.inf
    back = np.arange(len(logs)) - (len(logs) - 1) / 2
    return float(back @ logs / (back @ back))
