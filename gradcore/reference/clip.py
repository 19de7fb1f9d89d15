"""The twins of the norm and of clipping by it."""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum, isinf, nan
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["clip_grad_norm", "grad_norm"]

Array = NDArray[Any]


def grad_norm(arrays: Sequence[Array], norm_type: float = 2.0) -> float:
    """Return (sum |g|^p)^(1/p) over all arrays, in float64.

    Parameters
    ----------
    arrays : sequence of ndarray
        The gradients, of any shapes.
    norm_type : float
        The order p; inf for the largest magnitude.

    Returns
    -------
    float
        The norm; NaN if an entry is NaN, else inf if one is infinite.

    Examples
    --------
    >>> grad_norm([np.array([[3.0]]), np.array([-4.0, 0.0])])
    5.0
    """
    g = np.concatenate([np.zeros(0), *(np.ravel(a).astype(np.float64) for a in arrays)])
    if np.isnan(g).any():
        return nan
    largest = float(np.abs(g).max(initial=0.0))
    if largest == 0 or isinf(largest) or isinf(norm_type):
        return largest
    return float(largest * fsum((np.abs(g) / largest) ** norm_type) ** (1 / norm_type))


def clip_grad_norm(arrays: Sequence[Array], max_norm: float, norm_type: float = 2.0) -> list[Array]:
    """Return copies, scaled so that their norm is at most max_norm.

    Parameters
    ----------
    arrays : sequence of ndarray
        The gradients, of any shapes; finite entries only.
    max_norm : float
        The largest norm allowed.
    norm_type : float
        The order p of the norm.

    Returns
    -------
    list of ndarray
        The scaled gradients, in their own dtypes.

    Examples
    --------
    >>> clip_grad_norm([np.array([30.0]), np.array([-40.0])], 5.0)
    [array([3.]), array([-4.])]
    """
    norm = grad_norm(arrays, norm_type)
    if norm <= max_norm:
        return [a.copy() for a in arrays]
    return [(a.astype(np.float64) * (max_norm / norm)).astype(a.dtype) for a in arrays]
