"""Clipping by norm and by value, in place."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np

from gradcore import _kernels
from gradcore._base.check import check_bool, check_number
from gradcore.clip.gradients import Gradients, GradNorm, check_limit, check_policy
from gradcore.clip.norm import _norm_type
from gradcore.clip.threshold import Threshold

__all__ = ["clip_grad_norm_", "clip_grad_value_"]


def clip_grad_norm_(
    grads: Any,
    max_norm: float | Threshold,
    norm_type: float = 2.0,
    *,
    nonfinite: str = "raise",
    per_array: bool = False,
) -> GradNorm:
    """Scale gradients in place so that their norm is at most `max_norm`.

    If ``norm > max_norm``, the gradients are multiplied by ``max_norm / norm``; otherwise they keep their exact bits.
    There is no epsilon: after clipping the norm is `max_norm` up to rounding, and each entry is rounded once [1]_.

    Parameters
    ----------
    grads : array, iterable or dict of arrays or layers, layer, model, optimizer
        The gradients, as for `grad_norm`; changed in place.
    max_norm : float or Threshold
        The limit, at least 0; ``inf`` never clips. An object with ``update(norm)``, such as those of
        `gradcore.threshold`, is told the norm and returns the limit. It is not called if `nonfinite` leaves the
        gradients alone.
    norm_type : float
        The order p of the norm, positive; ``inf`` for the largest magnitude.
    nonfinite : {"raise", "skip", "zero"}
        What to do if an entry is NaN or infinite: raise and change nothing; change nothing and report it in the result;
        or set such entries to 0 and clip by the norm of the others.
    per_array : bool
        Whether to clip each array by its own norm instead of all by their common norm. This changes the direction of
        the gradient; `max_norm` has to be a number.

    Returns
    -------
    GradNorm
        The common norm before clipping, with the limit, the coefficients and the position of the worst entry.

    Raises
    ------
    FloatingPointError
        If an entry is not finite and `nonfinite` is "raise"; the message names the array and the position.
    TypeError
        If a gradient is not an array of float16, float32 or float64.
    ValueError
        If an array is read-only, arrays overlap partly, or a number is out of range.

    References
    ----------
    .. [1] R. Pascanu, T. Mikolov, Y. Bengio, "On the difficulty of training recurrent neural networks", 2013,
       algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore import clip_grad_norm_
    >>> g = np.array([3.0, 4.0])
    >>> norm = clip_grad_norm_([g], max_norm=1.0)
    >>> norm, norm.coef, norm.clipped
    (5.0, 0.2, True)
    >>> g
    array([0.6, 0.8])
    >>> clip_grad_norm_({"weight": np.array([3.0, 4.0]), "bias": np.array([0.5])}, max_norm=1.0, per_array=True).coefs
    {'weight': 0.2, 'bias': 1.0}
    """
    limit = check_limit(max_norm, None)
    p = _norm_type(norm_type)
    check_policy(nonfinite)
    if check_bool("per_array", per_array) and not isinstance(limit, float):
        raise TypeError(f"max_norm: expected a number with per_array, got {type(limit).__name__}")
    found = Gradients(grads, write=True)
    norm, *common = found.measure(p, math.inf if per_array else limit, nonfinite)
    if norm.skipped:
        return norm
    if per_array:
        assert isinstance(limit, float)
        factors = found.limit_each(norm, limit)
    else:
        factors = np.full((len(found.arrays), 2), common)
    if norm.clipped or norm.n_nan + norm.n_inf > 0:
        found.multiply(factors)
    return norm


def clip_grad_value_(grads: Any, clip_value: float) -> None:
    """Limit every entry in place to ``[-clip_value, clip_value]``; NaN stays NaN.

    This changes the direction of the gradient; `clip_grad_norm_` keeps it.

    Parameters
    ----------
    grads : array, iterable or dict of arrays or layers, layer, model, optimizer
        The gradients, as for `grad_norm`; changed in place.
    clip_value : float
        The largest magnitude allowed, at least 0.

    Raises
    ------
    TypeError
        If a gradient is not an array of float16, float32 or float64.
    ValueError
        If an array is read-only, arrays overlap partly, or `clip_value` is negative or NaN.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore import clip_grad_value_
    >>> g = np.array([3.0, -4.0, 0.5])
    >>> clip_grad_value_(g, 1.0)
    >>> g
    array([ 1. , -1. ,  0.5])
    """
    limit = check_number("clip_value", clip_value, least=0.0)
    found = Gradients(grads, write=True)
    found.change(partial(_kernels.clamp, found.arrays, limit))
