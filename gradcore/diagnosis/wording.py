"""How numbers and findings are said: one way, in text, figures and pages."""

from __future__ import annotations

import numpy as np

__all__ = ["VERBS", "growth", "number", "per_step", "rounded", "times"]

VERBS = {"explodes": "explodes", "vanishes": "vanishes", "stable": "is stable"}


def rounded(value: float) -> float:
    """Round to three significant digits."""
    return float(f"{value:.3g}")


def number(value: float) -> str:
    """Return a number with three significant digits, written out between 0.001 and a million.

    Examples
    --------
    >>> [number(v) for v in (0.0, 912.6, 35280.0, 1.58e7, 0.00123, 4.4e-5, -2.0, float("inf"))]
    ['0', '913', '35300', '1.58e7', '0.00123', '4.4e-5', '-2', 'inf']
    """
    value = rounded(value)
    if value == 0 or not np.isfinite(value) or 1e-3 <= abs(value) < 1e6:
        return np.format_float_positional(value, trim="-") if np.isfinite(value) else f"{value}"
    digits, exponent = f"{value:.2e}".split("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"


def times(rate: float, steps: int) -> float:
    """Return the factor of `steps` steps at a rate in natural logarithms per step."""
    with np.errstate(over="ignore"):
        return float(np.exp(rate * steps))


def per_step(rate: float) -> str:
    """Return the factor of one step."""
    return f"{times(rate, 1):.4f}"


def growth(rate: float, factor: float, steps: int) -> str:
    """Return what happens to a gradient, by the step and over many."""
    return f"a factor of {per_step(rate)} a step, {number(factor)} over {steps} steps"
