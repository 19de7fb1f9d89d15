"""Matrices with a structure: identity, orthogonal, sparse."""

from __future__ import annotations

import math

import numpy as np

from gradcore._base.check import Array, check_number, check_rng
from gradcore.init._fill import Generator, checked, fill

__all__ = ["eye_", "orthogonal_", "sparse_"]


def eye_(tensor: Array) -> Array:
    """Fill with the identity matrix, which passes on as many inputs as possible.

    Parameters
    ----------
    tensor : ndarray, (out, in)
        The weight to fill, float32 or float64.

    Returns
    -------
    ndarray
        The same `tensor`.

    Raises
    ------
    TypeError
        If `tensor` is not an array of float32 or float64.
    ValueError
        If `tensor` is read-only or does not have two axes.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore import init
    >>> init.eye_(np.empty((2, 3)))
    array([[1., 0., 0.],
           [0., 1., 0.]])
    """
    array = checked(tensor, ndim=2)
    array[...] = np.eye(*array.shape)
    return array


def orthogonal_(tensor: Array, gain: float = 1.0, *, rng: int | Generator | None = None) -> Array:
    """Fill with gain times a random matrix whose rows or columns, whichever are fewer, are orthonormal.

    The matrix is drawn uniformly. All axes but the first count as one. A recurrent matrix stacks several gates; to make
    the matrix of each gate orthogonal, fill its (H, H) blocks one by one.

    Parameters
    ----------
    tensor : ndarray, (out, in, ...)
        The weight to fill, float32 or float64.
    gain : float
        The value of all singular values.
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
    Saxe, McClelland and Ganguli, 2014, arXiv 1312.6120; uniform by the signs of R: Mezzadri, 2007, math-ph/0609050.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore import init
    >>> w = init.orthogonal_(np.empty((2, 5)), rng=np.random.default_rng(0))
    >>> bool(np.allclose(w @ w.T, np.eye(2)))
    True
    """
    array = checked(tensor, least_ndim=2)
    scale = check_number("gain", gain)
    rows, cols = array.shape[0], math.prod(array.shape[1:])
    tall = check_rng(rng).normal(size=(max(rows, cols), min(rows, cols)))
    q, r = np.linalg.qr(tall)
    with np.errstate(over="ignore", invalid="ignore"):
        q *= scale * np.where(np.diagonal(r) < 0, -1, 1)
    return fill(array, "gain", scale, (q if rows >= cols else q.T).reshape(array.shape))


def sparse_(tensor: Array, sparsity: float, std: float = 0.01, *, rng: int | Generator | None = None) -> Array:
    """Fill each column with zeros in random places and normally distributed numbers in the others.

    Parameters
    ----------
    tensor : ndarray, (out, in)
        The weight to fill, float32 or float64.
    sparsity : float
        The part of a column that is zero, from 0 to 1, rounded up to whole entries.
    std : float
        The standard deviation of the other entries, at least 0.
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
        If `tensor` is read-only or does not have two axes, or a number is out of range.

    References
    ----------
    Martens, "Deep learning via Hessian-free optimization", 2010.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore import init
    >>> w = init.sparse_(np.empty((10, 4)), 0.8, rng=np.random.default_rng(0))
    >>> np.count_nonzero(w, axis=0)
    array([2, 2, 2, 2])
    """
    array = checked(tensor, ndim=2)
    share, scale = check_number("sparsity", sparsity, least=0, most=1), check_number("std", std, least=0)
    rng = check_rng(rng)
    values = rng.normal(0.0, scale, array.shape)
    zeros = rng.random(array.shape).argsort(axis=0)[: math.ceil(share * array.shape[0])]
    np.put_along_axis(values, zeros, 0.0, axis=0)
    return fill(array, "std", scale, values)
