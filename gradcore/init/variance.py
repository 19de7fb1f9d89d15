"""Variances that keep signals or gradients in size from layer to layer."""

from __future__ import annotations

import math

from gradcore._base.check import Array, check_number
from gradcore.init._fill import Generator, checked, fan, fans, fill_normal, fill_uniform
from gradcore.init.gain import calculate_gain

__all__ = ["kaiming_normal_", "kaiming_uniform_", "lecun_normal_", "xavier_normal_", "xavier_uniform_"]


def xavier_uniform_(tensor: Array, gain: float = 1.0, *, rng: int | Generator | None = None) -> Array:
    r"""Fill with numbers drawn from U(-b, b), :math:`b = gain \sqrt{6 / (n_{in} + n_{out})}`.

    Parameters
    ----------
    tensor : ndarray, (out, in, ...)
        The weight to fill, float32 or float64.
    gain : float
        Factor on the standard deviation, as returned by `calculate_gain`.
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
        If `tensor` is read-only or has fewer than two axes.

    References
    ----------
    Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks", 2010, eq. 16.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore import init
    >>> w = init.xavier_uniform_(np.empty((20, 40)), rng=np.random.default_rng(0))
    >>> bool(np.abs(w).max() <= np.sqrt(6 / 60))
    True
    """
    array = checked(tensor, least_ndim=2)
    return fill_uniform(array, check_number("gain", gain) * math.sqrt(2 / max(sum(fans(array)), 1)), rng)


def xavier_normal_(tensor: Array, gain: float = 1.0, *, rng: int | Generator | None = None) -> Array:
    r"""Fill with normally distributed numbers of variance :math:`gain^2 \cdot 2 / (n_{in} + n_{out})`.

    Parameters
    ----------
    tensor : ndarray, (out, in, ...)
        The weight to fill, float32 or float64.
    gain : float
        Factor on the standard deviation, as returned by `calculate_gain`.
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
        If `tensor` is read-only or has fewer than two axes.

    References
    ----------
    Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks", 2010, eq. 12.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore import init
    >>> init.xavier_normal_(np.empty((1, 2)), gain=5 / 3, rng=np.random.default_rng(0))
    array([[ 0.17109716, -0.17977195]])
    """
    array = checked(tensor, least_ndim=2)
    return fill_normal(array, abs(check_number("gain", gain)) * math.sqrt(2 / max(sum(fans(array)), 1)), rng)


def kaiming_uniform_(
    tensor: Array,
    a: float = 0.0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    *,
    rng: int | Generator | None = None,
) -> Array:
    r"""Fill with U(-b, b), :math:`b = gain \sqrt{3 / n}`, n the fan.

    Parameters
    ----------
    tensor : ndarray, (out, in, ...)
        The weight to fill, float32 or float64.
    a : float
        The negative slope; only used if `nonlinearity` is "leaky_relu".
    mode : {"fan_in", "fan_out"}
        The n: "fan_in" keeps the variance of the outputs, "fan_out" that of the gradients.
    nonlinearity : str
        Activation that follows, as in `calculate_gain`.
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
        If `tensor` is read-only or has fewer than two axes, or `mode` or `nonlinearity` is unknown.

    References
    ----------
    He et al., "Delving deep into rectifiers", 2015, arXiv 1502.01852, eq. 10, 14 and 15.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore import init
    >>> w = init.kaiming_uniform_(np.empty((20, 40)), nonlinearity="relu", rng=np.random.default_rng(0))
    >>> bool(np.abs(w).max() <= np.sqrt(6 / 40))
    True
    """
    array = checked(tensor, least_ndim=2)
    gain = calculate_gain(nonlinearity, check_number("a", a))
    return fill_uniform(array, gain / math.sqrt(max(fan(array, mode), 1)), rng)


def kaiming_normal_(
    tensor: Array,
    a: float = 0.0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    *,
    rng: int | Generator | None = None,
) -> Array:
    r"""Fill with normally distributed numbers of variance :math:`gain^2 / n`, n the fan.

    Parameters
    ----------
    tensor : ndarray, (out, in, ...)
        The weight to fill, float32 or float64.
    a : float
        The negative slope; only used if `nonlinearity` is "leaky_relu".
    mode : {"fan_in", "fan_out"}
        The n: "fan_in" keeps the variance of the outputs, "fan_out" that of the gradients.
    nonlinearity : str
        Activation that follows, as in `calculate_gain`.
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
        If `tensor` is read-only or has fewer than two axes, or `mode` or `nonlinearity` is unknown.

    References
    ----------
    He et al., "Delving deep into rectifiers", 2015, arXiv 1502.01852, eq. 10, 14 and 15.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore import init
    >>> init.kaiming_normal_(np.empty((1, 2)), nonlinearity="relu", rng=np.random.default_rng(0))
    array([[ 0.12573022, -0.13210486]])
    """
    array = checked(tensor, least_ndim=2)
    gain = calculate_gain(nonlinearity, check_number("a", a))
    return fill_normal(array, gain / math.sqrt(max(fan(array, mode), 1)), rng)


def lecun_normal_(tensor: Array, *, rng: int | Generator | None = None) -> Array:
    r"""Fill with normally distributed numbers of variance :math:`1 / n_{in}`, for self-normalizing networks (SELU).

    Parameters
    ----------
    tensor : ndarray, (out, in, ...)
        The weight to fill, float32 or float64.
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
        If `tensor` is read-only or has fewer than two axes.

    References
    ----------
    LeCun et al., "Efficient BackProp", 1998, eq. 16; Klambauer et al., "Self-normalizing neural networks", 2017.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore import init
    >>> init.lecun_normal_(np.empty((1, 4)), rng=np.random.default_rng(0))
    array([[ 0.06286511, -0.06605243,  0.32021133,  0.05245006]])
    """
    array = checked(tensor, least_ndim=2)
    return fill_normal(array, 1 / math.sqrt(max(fan(array, "fan_in"), 1)), rng)
