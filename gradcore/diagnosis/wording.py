"""How numbers and findings are said: one way, in text, figures and pages."""

from __future__ import annotations

import numpy as np

__all__ = ["BASELINES", "VERBS", "growth", "number", "per_step", "rounded", "times"]

BASELINES = {
    "constant": "the best constant answer",
    "last_value": "the last value",
    "seasonal": "the value a period ago",
}
VERBS = {"explodes": "explodes", "vanishes": "vanishes", "stable": "is stable"}


def rounded(value: float) -> float:
    """Round a number to three significant digits.

    Parameters
    ----------
    value : float
        The number.

    Returns
    -------
    float
        The rounded number.

    Examples
    --------
    >>> rounded(0.0123456), rounded(98765.0)
    (0.0123, 98800.0)
    """
    return float(f"{value:.3g}")


def number(value: float) -> str:
    """Write a number with three significant digits, without an exponent between 0.001 and a million.

    Parameters
    ----------
    value : float
        The number.

    Returns
    -------
    str
        The text.

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
    """Return the factor over a number of steps at a rate.

    Parameters
    ----------
    rate : float
        Natural logarithm per step.
    steps : int
        Number of steps.

    Returns
    -------
    float
        The factor, infinity if it is too large.

    Examples
    --------
    >>> times(0.0, 50), times(1e6, 50)
    (1.0, inf)
    """
    with np.errstate(over="ignore"):
        return float(np.exp(rate * steps))


def per_step(rate: float) -> str:
    """Write the factor of one step.

    Parameters
    ----------
    rate : float
        Natural logarithm per step.

    Returns
    -------
    str
        The text.

    Examples
    --------
    >>> per_step(0.0)
    '1.0000'
    """
    return f"{times(rate, 1):.4f}"


def growth(rate: float, factor: float, steps: int) -> str:
    """Write what happens to a gradient, in one step and over all.

    Parameters
    ----------
    rate : float
        Natural logarithm per step.
    factor : float
        What that comes to over the steps.
    steps : int
        Number of steps.

    Returns
    -------
    str
        Such as "a factor of 1.0713 a step, 913 over 99 steps".

    Examples
    --------
    >>> growth(0.0, 1.0, 99)
    'a factor of 1.0000 a step, 1 over 99 steps'
    """
    return f"a factor of {per_step(rate)} a step, {number(factor)} over {steps} steps"
