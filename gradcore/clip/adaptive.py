"""Adaptive gradient clipping (AGC): clip each unit's gradient relative to the norm of the unit's own parameters."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from gradcore import _kernels
from gradcore._base.check import Array, check_number, check_writable
from gradcore._base.hook import Hook, TrainingStep
from gradcore.clip.gradients import (
    Gradients,
    Key,
    by_key,
    check_policy,
    coefficient,
    listed,
    nonfinite_error,
    pairs,
)
from gradcore.clip.views import contiguous, copies_back, refuse_overlap

__all__ = ["AdaptiveClip", "UnitClip", "clip_grad_units_"]


@dataclass(frozen=True, eq=False)
class UnitClip:
    r"""The result of adaptive gradient clipping (AGC): what `clip_grad_units_` found and did.

    Parameters
    ----------
    n_clipped : dict of str to int, or ndarray of int64
        The number of units of each array that were clipped: a dict if the arrays have names, else an array.
    ratio : float
        The largest :math:`\|G_i\| / \max(\|W_i\|, \epsilon)` of any unit before clipping. If an entry was not finite,
        it is NaN or inf with ``nonfinite="skip"``, and the largest of the finite entries with "zero".
    worst : tuple or None
        ``(name or index, unit)`` of the first entry that is not finite, or else of the first unit with that ratio.
        None if there are no units.
    n_nan, n_inf : int
        The numbers of NaN and of infinite entries in the gradients.
    skipped : bool
        Whether ``nonfinite="skip"`` left the gradients alone because an entry was not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore import clip_grad_units_
    >>> done = clip_grad_units_([(np.ones((2, 4)), np.ones((2, 4))), (np.ones(3), np.zeros(3))])
    >>> done.clipped, done.n_clipped
    (True, array([2, 0]))
    """

    n_clipped: dict[str, int] | Array
    ratio: float
    worst: tuple[Key, int] | None
    n_nan: int
    n_inf: int
    skipped: bool

    @property
    def clipped(self) -> bool:
        """Whether any unit was clipped."""
        counts = self.n_clipped.values() if isinstance(self.n_clipped, dict) else self.n_clipped
        return any(n > 0 for n in counts)


def clip_grad_units_(
    params: Any, clip_factor: float = 0.01, eps: float = 1e-3, axis: int = 0, *, nonfinite: str = "raise"
) -> UnitClip:
    r"""Clip each unit's gradient in place relative to the norm of its parameters: adaptive gradient clipping (AGC).

    If :math:`\|G_i\| > \lambda \max(\|W_i\|, \epsilon)`, unit i gets :math:`G_i \leftarrow \lambda \max(\|W_i\|,
    \epsilon)\, G_i / \|G_i\|`; all other units keep their exact bits [1]_. A unit is an index along `axis`; a vector,
    such as a bias, is one unit.

    Parameters
    ----------
    params : layer, model, optimizer, or dict or iterable of layers or (param, grad) pairs
        Parameters and gradients, of float32 or float64; only the gradients are changed.
    clip_factor : float
        The factor :math:`\lambda`, at least 0.
    eps : float
        The least norm :math:`\epsilon` of a unit's parameters, at least 0, for units that start at 0.
    axis : int
        The axis along which units are counted, in arrays of at least two dimensions: 0 for weights of shape (out, in),
        as in the layers here and in PyTorch, -1 for (in, out).
    nonfinite : {"raise", "skip", "zero"}
        What to do if an entry of a gradient is NaN or infinite: raise and change nothing; change nothing and report it
        in the result; or set such entries to 0 and clip by the norms of the others.

    Returns
    -------
    UnitClip
        The number of clipped units of each array, and the position of the worst unit.

    Raises
    ------
    FloatingPointError
        If an entry of a gradient is not finite and `nonfinite` is "raise", or a parameter is not finite; nothing is
        changed.
    TypeError, ValueError
        If parameters and gradients do not match, are read-only or share memory, or a number is out of range.

    Notes
    -----
    The authors leave out the last layer of a network: pass the pairs of the others.

    References
    ----------
    .. [1] A. Brock, S. De, S. L. Smith, K. Simonyan, "High-performance large-scale image recognition without
       normalization", 2021, equation 3.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore import clip_grad_units_
    >>> weight, grad = np.array([[3.0, 4.0], [6.0, 8.0]]), np.array([[0.5, 0.0], [0.0, 0.1]])
    >>> clip_grad_units_({"weight": (weight, grad)})
    UnitClip(n_clipped={'weight': 1}, ratio=0.1, worst=('weight', 0), n_nan=0, n_inf=0, skipped=False)
    >>> grad
    array([[0.05, 0.  ],
           [0.  , 0.1 ]])
    """
    factor, least = check_number("clip_factor", clip_factor, least=0.0), check_number("eps", eps, least=0.0)
    check_policy(nonfinite)
    keys, weights, grads = pairs("params", listed("params", params, stacklevel=3))
    labels = [f"params[{key!r}]" for key in keys]
    for label, grad in zip(labels, grads, strict=True):
        check_writable(f"gradient of {label}", grad)
        _check_axis(label, axis, grad.ndim)
    refuse_overlap([*labels, *(f"gradient of {label}" for label in labels)], [*weights, *grads])
    n_nan, n_inf, place, position = _nonfinite(weights)
    if position is not None:
        raise nonfinite_error(labels[place], weights[place][position], position, n_nan, n_inf)
    n_nan, n_inf, place, position = _nonfinite(grads)
    counts, ratio, worst = np.zeros(len(grads), np.int64), -1.0, None
    if position is not None:
        if nonfinite == "raise":
            raise nonfinite_error(f"gradient of {labels[place]}", grads[place][position], position, n_nan, n_inf)
        worst = keys[place], position[axis] if len(position) > 1 else 0
        if nonfinite == "skip":
            return UnitClip(by_key(keys, counts), math.nan if n_nan else math.inf, worst, n_nan, n_inf, True)
    changes: list[_Change] = []
    for i, (weight, grad) in enumerate(zip(weights, grads, strict=True)):
        change, counts[i], ratios = _measured(weight, grad, factor, least, axis)
        changes.append(change)
        if ratios.max(initial=-1.0) > ratio:
            ratio = float(ratios.max())
            worst = worst if position is not None else (keys[i], int(ratios.argmax()))
    rows = [row for change in changes for row in change.rows]
    factors = np.concatenate([np.ones((0, 2)), *(change.factors for change in changes)])
    back = copies_back([change.packed for change in changes], [change.grad for change in changes])
    _kernels.together([partial(_kernels.scale, rows, factors), *back])  # Ctrl-C interrupts before or after all
    return UnitClip(by_key(keys, counts), max(ratio, 0.0), worst, n_nan, n_inf, False)


class AdaptiveClip(Hook):
    r"""Clip with `clip_grad_units_` in every step of `fit` or `training_step`.

    It comes after everything that adds to the gradient, and before the limit `max_norm` for the whole norm. The
    parameters are those of the model.

    Parameters
    ----------
    clip_factor : float
        The factor :math:`\lambda`, at least 0; an attribute that can be changed between steps.
    eps : float
        The least norm :math:`\epsilon` of a unit's parameters, at least 0.
    axis : int
        The axis along which units are counted, as for `clip_grad_units_`.

    Attributes
    ----------
    last : UnitClip or None
        What was found and done in the newest step.

    Notes
    -----
    Gradients that are not finite are left to the optimizer's `nonfinite`; with "zero" the finite entries are clipped.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> model = gradcore.Linear(3, 2, rng=0)
    >>> batch = np.ones((4, 3), np.float32), np.ones((4, 2), np.float32)
    >>> optimizer, agc = gradcore.optim.SGD(model, lr=1.0), gradcore.AdaptiveClip(0.01)
    >>> history = gradcore.fit(model, [batch], gradcore.losses.mse, optimizer, epochs=1, hooks=[agc])
    >>> agc.last.n_clipped
    {'weight': 2, 'bias': 1}
    """

    def __init__(self, clip_factor: float = 0.01, eps: float = 1e-3, axis: int = 0) -> None:
        self.clip_factor = check_number("clip_factor", clip_factor, least=0.0)
        self.eps = check_number("eps", eps, least=0.0)
        _check_axis("params", axis, 1)
        self.axis = axis
        self.last: UnitClip | None = None

    def __repr__(self) -> str:
        return f"AdaptiveClip({self.clip_factor:g}, eps={self.eps:g}, axis={self.axis})"

    def before_step(self, step: TrainingStep) -> None:
        """Clip the gradients of the model.

        Parameters
        ----------
        step : TrainingStep
            The step.
        """
        nonfinite = "zero" if step.nonfinite == "zero" else "skip"
        done = clip_grad_units_(step.model, self.clip_factor * step.scale, self.eps, self.axis, nonfinite=nonfinite)
        self.last = replace(done, ratio=done.ratio / step.scale)


def _check_axis(label: str, axis: Any, ndim: int) -> None:
    if isinstance(axis, (bool, np.bool_)) or not isinstance(axis, (int, np.integer)):
        raise TypeError(f"axis: expected an integer, got {type(axis).__name__}")
    if ndim > 1 and not -ndim <= axis < ndim:
        raise ValueError(f"axis: expected an integer from {-ndim} to {ndim - 1} for {label}, got {axis}")


def _nonfinite(arrays: list[Array]) -> tuple[int, int, int, tuple[int, ...] | None]:
    """Count NaN and infinite entries, and find array and position of the first; None without any."""
    n_nan = n_inf = place = 0
    position = None
    for i, a in enumerate(arrays):  # one at a time: each may need a copy
        norm = Gradients([a], write=False).measure(math.inf, math.inf, None)[0]
        if position is None and norm.n_nan + norm.n_inf:
            assert norm.worst is not None
            place, position = i, norm.worst[1]
        n_nan, n_inf = n_nan + norm.n_nan, n_inf + norm.n_inf
    return n_nan, n_inf, place, position


def _by_unit(a: Array, axis: int) -> tuple[Array, Array]:
    """Return the array with its units first, and as contiguous rows, copied if its layout requires it."""
    first = a.reshape(1, -1) if a.ndim < 2 else np.moveaxis(a, axis, 0)
    return first, contiguous(first).reshape(first.shape[0], math.prod(first.shape[1:]))


def _norms(rows: Array) -> tuple[Array, Array]:
    """Return root and unit of the norm of each row's finite entries; their product may overflow float64."""
    each = _kernels.norm(list(rows), 2.0)[-1]
    return each[:, 2], each[:, 3]


class _Change(NamedTuple):
    """What is to be done to an array: the rows to multiply, by two factors each, and where their memory is."""

    rows: list[Array]
    factors: Array
    packed: Array
    grad: Array


def _measured(weight: Array, grad: Array, factor: float, least: float, axis: int) -> tuple[_Change, int, Array]:
    """Return what clips one array's units, how many are to be clipped, and each unit's ratio."""
    with np.errstate(over="ignore", divide="ignore"):
        root, unit = _norms(_by_unit(weight, axis)[1])
        against = np.minimum(np.maximum(root * unit, least), sys.float_info.max)
        limits = factor * against
        first, rows = _by_unit(grad, axis)
        root, unit = _norms(rows)
        ratios = np.divide(root, against, out=np.zeros(len(rows)), where=root > 0) * unit
        cut = root * unit > limits
    touched = np.flatnonzero(cut | ~np.isfinite(rows).all(axis=1))
    factors = np.ones((len(touched), 2))
    for i, j in enumerate(touched):
        if cut[j]:
            factors[i] = coefficient(float(limits[j]), float(root[j]), float(unit[j]))[1:]
    packed = rows.reshape(first.shape) if len(touched) else first
    return _Change([rows[j] for j in touched], factors, packed, first), int(cut.sum()), ratios
