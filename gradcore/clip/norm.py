"""The norm of all gradients: right whenever it is representable."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gradcore import _kernels
from gradcore._base.check import check_number
from gradcore.clip.gradients import Gradients, GradNorm

__all__ = ["grad_norm", "norm_of"]


def _norm_type(value: Any) -> float:
    """Return a positive number; the string "inf" is allowed, as in PyTorch."""
    return math.inf if isinstance(value, str) and value == "inf" else check_number("norm_type", value, above=0.0)


def grad_norm(grads: Any, norm_type: float = 2.0) -> GradNorm:
    r"""Compute the norm of gradients, all arrays taken as one vector: :math:`(\sum_i |g_i|^p)^{1/p}`.

    The result is accurate whenever it is representable: sums are carried in float64, and entries whose powers would
    overflow or underflow are scaled first. It has the same bits for any number of threads.

    Parameters
    ----------
    grads : array, iterable or dict of arrays or layers, layer, model, optimizer
        Arrays of float16, float32 or float64 of any shape and layout. An object with a `.grad` stands for its `.grad`,
        and is skipped if that is None. Objects that export the buffer protocol or DLPack on the CPU serve as arrays.
        The same memory counts once, however often it is passed.
    norm_type : float
        The order p of the norm, positive; ``inf`` for the largest magnitude.

    Returns
    -------
    GradNorm
        The norm, a float; NaN if an entry is NaN, else inf if one is infinite.

    Raises
    ------
    TypeError
        If a gradient is not an array of float16, float32 or float64.
    ValueError
        If arrays overlap partly, or `norm_type` is not positive.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore import grad_norm
    >>> norm = grad_norm({"weight": np.array([[3.0, 0.0]]), "bias": np.array([-4.0])})
    >>> norm
    5.0
    >>> norm.per_array
    {'weight': 3.0, 'bias': 4.0}
    >>> norm.worst
    ('bias', (0,))
    >>> f"{grad_norm(np.full(4, 1e30, np.float32)):.6g}"
    '2e+30'
    """
    p = _norm_type(norm_type)
    return Gradients(grads, write=False).measure(p, math.inf, None)[0]


def norm_of(value: Any) -> float | None:
    """Return the L2 norm of one array, without what `grad_norm` finds out besides.

    Parameters
    ----------
    value : array_like or None
        The array, of float16, float32 or float64 and any shape.

    Returns
    -------
    float or None
        The norm; NaN if an entry is NaN, else inf if one is infinite. None for None.

    Examples
    --------
    >>> from gradcore.clip.norm import norm_of
    >>> norm_of([3.0, -4.0]), norm_of(None)
    (5.0, None)
    """
    if value is None:
        return None
    arrays = [np.asarray(value)]
    if not _kernels.plain(arrays, False):
        return float(grad_norm(arrays[0]))
    root, unit, n_nan, n_inf = _kernels.norm(arrays, 2.0)[:4]
    return math.nan if n_nan else math.inf if n_inf else root * unit
