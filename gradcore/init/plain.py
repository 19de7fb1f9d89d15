"""Entries that are independent of the shape: uniform, normal, constant."""

from __future__ import annotations

import math

import numpy as np

from gradcore._base.check import Array, check_number, check_real, check_rng
from gradcore.init._fill import Generator, checked, fill

__all__ = ["constant_", "normal_", "uniform_"]


def uniform_(tensor: Array, a: float = 0.0, b: float = 1.0, *, rng: int | Generator | None = None) -> Array:
    """Fill with numbers drawn uniformly from [a, b).

    Parameters
    ----------
    tensor : ndarray
        The array to fill, float32 or float64, of any shape.
    a, b : float
        The bounds, `b` at least `a`.
    rng : int or numpy.random.Generator, optional
        The seed or generator to draw from; by default a fresh generator.

    Returns
    -------
    ndarray
        The same `tensor`.

    Raises
    ------
    TypeError
        If `tensor` is not an array of float32 or float64.
    ValueError
        If `tensor` is read-only, or `b` is below `a`.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore import init
    >>> init.uniform_(np.empty(3), -1, 1, rng=np.random.default_rng(0))
    array([ 0.27392337, -0.46042657, -0.91805295])
    """
    array = checked(tensor)
    low = check_number("a", a)
    high = check_number("b", b, least=low)
    if not high - low < math.inf:
        raise ValueError(f"b: expected a finite distance from a = {low:g}, got {high:g}")
    return fill(array, "a and b", high, check_rng(rng).uniform(low, high, array.shape))


def normal_(tensor: Array, mean: float = 0.0, std: float = 1.0, *, rng: int | Generator | None = None) -> Array:
    """Fill with numbers drawn from a normal distribution.

    Parameters
    ----------
    tensor : ndarray
        The array to fill, float32 or float64, of any shape.
    mean, std : float
        Mean and standard deviation, at least 0.
    rng : int or numpy.random.Generator, optional
        The seed or generator to draw from; by default a fresh generator.

    Returns
    -------
    ndarray
        The same `tensor`.

    Raises
    ------
    TypeError
        If `tensor` is not an array of float32 or float64.
    ValueError
        If `tensor` is read-only, or `std` is negative.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore import init
    >>> init.normal_(np.empty((2, 2)), std=0.01, rng=np.random.default_rng(0))
    array([[ 0.0012573 , -0.00132105],
           [ 0.00640423,  0.001049  ]])
    """
    array = checked(tensor)
    middle, scale = check_number("mean", mean), check_number("std", std, least=0)
    if math.isinf(middle) or math.isinf(scale):
        raise ValueError(f"mean, std: expected finite numbers, got {middle:g}, {scale:g}")
    largest = max(middle, scale, key=abs)
    return fill(array, "mean, std", largest, check_rng(rng).normal(middle, scale, array.shape))


def constant_(tensor: Array, val: float) -> Array:
    """Fill with one value.

    Parameters
    ----------
    tensor : ndarray
        The array to fill, float32 or float64, of any shape.
    val : float
        The value, which may be infinite or NaN.

    Returns
    -------
    ndarray
        The same `tensor`.

    Raises
    ------
    TypeError
        If `tensor` is not an array of float32 or float64.
    ValueError
        If `tensor` is read-only.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore import init
    >>> init.constant_(np.empty(3), 0.5)
    array([0.5, 0.5, 0.5])
    """
    array = checked(tensor)
    value = check_real("val", val)
    if math.isfinite(value):
        return fill(array, "val", value, np.array(value))
    array[...] = value
    return array
