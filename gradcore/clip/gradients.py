"""The arrays of gradients that callers pass, and where each of them lies in memory."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from functools import partial
from typing import Any

import numpy as np

from gradcore import _kernels
from gradcore._base.check import (
    FLOAT16,
    FLOAT32,
    FLOAT64,
    Array,
    as_list,
    check_choice,
    check_number,
    check_number_at,
    check_writable,
)
from gradcore.clip.threshold import Threshold
from gradcore.clip.views import as_view, contiguous, copies_back, exports, gradient_of, memory_key, refuse_overlap

__all__ = ["GradNorm"]

Key = str | int


class GradNorm(float):
    """The norm of gradients, and what the pass that computed it found and did.

    It is a `float`: the norm *before* clipping. It is NaN or inf if an entry is not finite, except with
    ``nonfinite="zero"``, where it is the norm of the finite entries.

    Parameters
    ----------
    x : float
        The norm.

    Attributes
    ----------
    coef : float
        The number by which the gradients were multiplied; 1.0 if they were left alone. With `per_array` it is the
        smallest of `coefs`.
    max_norm : float
        The limit that was applied; inf if there was none.
    clipped : bool
        Whether the norm was above `max_norm`, so that the gradients were multiplied. With `per_array`, whether any
        array was clipped.
    skipped : bool
        Whether ``nonfinite="skip"`` left the gradients alone because an entry was not finite.
    n_nan, n_inf : int
        The numbers of NaN and of infinite entries.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore import clip_grad_norm_
    >>> norm = clip_grad_norm_({"w": np.array([1.0, np.inf]), "b": np.zeros(3)}, max_norm=1.0, nonfinite="skip")
    >>> norm, norm.skipped, norm.n_inf, norm.worst
    (inf, True, 1, ('w', (1,)))
    """

    __slots__ = ("_coefs", "_found", "_keys", "clipped", "coef", "max_norm", "n_inf", "n_nan", "skipped")

    coef: float
    max_norm: float
    clipped: bool
    skipped: bool
    n_nan: int
    n_inf: int
    _keys: Sequence[Key]  # names, or a range of indices
    _coefs: Array | None  # None if every array was multiplied by `coef`
    # `per_array` and `worst` are built on access: they would make the norm of a small gradient half as slow again.
    # Held here: `Gradients.each` and the column with the arrays' norms; for each key its row; then the row of the worst
    # entry, its flat index and its array's shape.
    _found: tuple[Array, int, Sequence[int], int, int, tuple[int, ...]]

    @property
    def per_array(self) -> dict[str, float] | Array:
        """The norm of each array: a dict if the arrays have names, else an array of float64; 0 without a gradient."""
        each, column, rows, *_ = self._found
        return by_key(self._keys, for_keys(rows, each[:, column], 0.0))

    @property
    def worst(self) -> tuple[Key, tuple[int, ...]] | None:
        """The first entry that is not finite, or else the first of the largest magnitude; None if there are no entries.

        It is ``(name or index, position)``, where `position` is a tuple of integers that indexes the array.
        """
        _, _, rows, row, index, shape = self._found
        if row < 0:
            return None
        position: tuple[int, ...] = ()
        for n in reversed(shape):
            index, i = divmod(index, n)
            position = (i, *position)
        return self._keys[rows.index(row)], position

    @property
    def coefs(self) -> dict[str, float] | Array:
        """The number by which each array was multiplied, in the form of `per_array`; below 1 if it was clipped."""
        return by_key(self._keys, np.full(len(self._keys), self.coef) if self._coefs is None else self._coefs)


class Gradients:
    """The gradients of a caller as distinct arrays that the kernels can use.

    Parameters
    ----------
    grads : object
        Anything that `grad_norm` takes.
    write : bool
        Whether the arrays will be changed.
    """

    keys: Sequence[Key]  # names, or a range of indices
    where: Sequence[int]  # for each key its index in the two lists, or -1 without a gradient
    views: list[Array]  # the caller's memory
    arrays: list[Array]  # the same memory if the kernels can use it, else a contiguous copy
    each: Array  # (n, 4), filled by `measure`: each array's norm; norm, root and unit of its finite entries

    def __init__(self, grads: Any, *, write: bool) -> None:
        self.keys, given = _named(grads)
        if _kernels.plain(given, write):
            self.where, self.views, self.arrays = range(len(given)), given, given
            return
        self.keys, given = _unfold(self.keys, given, lambda value: _named(value) if hasattr(value, "grads") else None)
        self.where, self.views = [], []
        places: dict[Any, int] = {}
        labels = []
        for key, value in zip(self.keys, given, strict=True):
            label = _label(key)
            view = as_view(label, value)
            if view is None:
                self.where.append(-1)
                continue
            if view.dtype not in (FLOAT16, FLOAT32, FLOAT64):
                raise TypeError(f"{label}: expected float16, float32 or float64, got {view.dtype}")
            if write:
                check_writable(label, view)
            place = places.setdefault(memory_key(view), len(self.views))
            self.where.append(place)
            if place == len(self.views):
                labels.append(label)
                self.views.append(view)
        if _kernels.plain(self.views, write):
            self.arrays = self.views
        else:
            refuse_overlap(labels, self.views)
            self.arrays = [contiguous(view) for view in self.views]

    def change(self, kernel: Callable[[], Any]) -> None:
        """Run a kernel that changes the arrays, then copy its results back into the caller's memory."""
        _kernels.together([kernel, *copies_back(self.arrays, self.views)])  # Ctrl-C interrupts before or after all

    def measure(
        self, norm_type: float, limit: float | Threshold, nonfinite: str | None, scale: float = 1.0
    ) -> tuple[GradNorm, float, float]:
        """Return the norm of the gradients divided by `scale`, and the two factors that clip them.

        With `nonfinite` None entries that are not finite are only reported. With "skip" the caller checks `.skipped`;
        with "zero" such entries count as 0. A Threshold is only told the norms of gradients that will be used.
        """
        root, unit, n_nan, n_inf, worst_place, worst_index, self.each = _kernels.norm(self.arrays, norm_type)
        if scale != 1:
            root /= scale
            with np.errstate(over="ignore"):
                self.each[:, :3] /= scale
        bad = n_nan + n_inf > 0
        remaining = not bad or nonfinite == "zero"
        norm = GradNorm(root * unit if remaining else math.nan if n_nan else math.inf)
        norm._keys, norm._coefs = self.keys, None
        shape = () if worst_place < 0 else self.views[worst_place].shape
        norm._found = self.each, 1 if remaining else 0, self.where, worst_place, worst_index, shape
        if bad and nonfinite == "raise":
            assert norm.worst is not None
            entry = self.arrays[worst_place].reshape(-1)[worst_index]
            raise nonfinite_error(_label(norm.worst[0]), entry, norm.worst[1], n_nan, n_inf)
        if isinstance(limit, float):
            norm.max_norm = limit
        else:
            norm.max_norm = check_number("max_norm", limit.update(float(norm)), least=0.0) if remaining else math.inf
        norm.clipped = remaining and float(norm) > norm.max_norm
        norm.skipped = bad and nonfinite == "skip"
        norm.n_nan, norm.n_inf = n_nan, n_inf
        norm.coef, factor0, factor1 = coefficient(norm.max_norm, root, unit) if norm.clipped else (1.0, 1.0, 1.0)
        return norm, factor0, factor1 / scale

    def limit_each(self, norm: GradNorm, max_norm: float) -> Array:
        """Return two factors for each array, (n, 2), that clip it to its own norm, and record them in `norm`."""
        coefs, factors = np.ones(len(self.arrays)), np.ones((len(self.arrays), 2))
        for i in np.flatnonzero(self.each[:, 1] > max_norm):
            coefs[i], *factors[i] = coefficient(max_norm, *self.each[i, 2:].tolist())
        norm._coefs = for_keys(self.where, coefs, 1.0)
        norm.coef = float(coefs.min(initial=1.0))
        norm.clipped = norm.coef < 1
        norm.max_norm = max_norm
        return factors

    def multiply(self, factors: Array) -> None:
        """Multiply each array by its two factors, (n, 2), and set what is not finite to 0; skip unchanged arrays."""
        touched = (factors != 1).any(axis=1) | ~np.isfinite(self.each[:, 0])
        arrays = [a for a, touch in zip(self.arrays, touched, strict=True) if touch]
        self.change(partial(_kernels.scale, arrays, factors[touched]))


def for_keys(rows: Sequence[int], values: Array, missing: float) -> Array:
    """Return the arrays' values in the order of the keys: an array can have several keys, a key no array (row -1)."""
    return values if isinstance(rows, range) else np.append(values, missing)[rows]


def coefficient(max_norm: float, root: float, unit: float) -> tuple[float, float, float]:
    """Return max_norm / (root * unit), which is below 1, and two factors whose product it is.

    The norm can exceed the range of a double, and the coefficient can be too small for it.
    """
    (m, a), (r, b), (u, c) = math.frexp(max_norm), math.frexp(root), math.frexp(unit)
    mantissa, d = math.frexp(m / (r * u))
    exponent = a - b - c + d
    coef = math.ldexp(mantissa, exponent)
    if exponent > -1000:
        return coef, coef, 1.0
    return coef, math.ldexp(mantissa, exponent - exponent // 2), math.ldexp(1.0, exponent // 2)


def by_key(keys: Sequence[Any], values: Array) -> dict[Any, Any] | Array:
    """Return a dict if the keys are names, else the array."""
    return values if isinstance(keys, range) else dict(zip(keys, values.tolist(), strict=True))


def nonfinite_error(label: str, entry: Any, position: tuple[int, ...], n_nan: int, n_inf: int) -> FloatingPointError:
    what, count = "NaN" if np.isnan(entry) else "Inf", f"{n_nan} NaN and {n_inf} Inf in total"
    return FloatingPointError(f"{label}: {what} at {position} ({count}); nothing was changed")


def _label(key: Key) -> str:
    return f"grads[{key!r}]"


def _named(grads: Any) -> tuple[Sequence[Key], list[Any]]:
    """Return the keys and the members of what was passed as gradients."""
    if isinstance(grads, np.ndarray):
        return range(1), [grads]
    if not isinstance(grads, Mapping):
        grads = getattr(grads, "grads", grads)  # a layer, a model, an optimizer
    if isinstance(grads, Mapping):
        return list(grads), list(grads.values())
    if exports(grads) or hasattr(grads, "grad"):
        return range(1), [grads]
    if not isinstance(grads, Iterable):
        raise TypeError(
            "grads: expected an array, an iterable or dict of arrays, a layer, a model or an optimizer, "
            f"got {type(grads).__name__}"
        )
    given = as_list("grads", grads)
    warn_if_exhausted("grads", grads, given)
    return range(len(given)), given


def _unfold(
    keys: Sequence[Any], members: list[Any], contents: Callable[[Any], tuple[Sequence[Any], list[Any]] | None]
) -> tuple[Sequence[Any], list[Any]]:
    """Replace each layer or model among the members by its own, named "0.weight"; it is one if it has contents."""
    inner = [contents(member) for member in members]
    if all(found is None for found in inner):
        return keys, members
    names: list[str] = []
    unfolded = []
    for key, member, found in zip(keys, members, inner, strict=True):
        names += [str(key)] if found is None else [f"{key}.{name}" for name in found[0]]
        unfolded += [member] if found is None else found[1]
    return names, unfolded


def warn_if_exhausted(name: str, given: Any, members: Sequence[Any], stacklevel: int = 5) -> None:
    """Warn about an empty iterator: most likely it was consumed before."""
    if not members and isinstance(given, Iterator):
        warnings.warn(f"{name}: the iterator is empty; was it consumed before?", stacklevel=stacklevel)


def owns_params(value: Any) -> bool:
    """Return whether it is a layer, a model or an optimizer: something with parameters and their gradients."""
    return not isinstance(value, Mapping) and hasattr(value, "params") and hasattr(value, "grads")


def listed(name: str, given: Any, stacklevel: int) -> Any:
    """Return an iterable as a list, and a dict as a copy, so that it can be read again; anything else as it is."""
    if isinstance(given, Mapping):
        return dict(given)
    if owns_params(given) or not isinstance(given, Iterable):
        return given
    if isinstance(given, (set, frozenset)):
        raise TypeError(f"{name}: expected an ordered collection, got {type(given).__name__}")
    members = as_list(name, given)
    warn_if_exhausted(name, given, members, stacklevel + 1)
    return members


def pairs(name: str, given: Any) -> tuple[Sequence[Key], list[Array], list[Array]]:
    """Return names, parameters and gradients of a layer or a model, or of a dict or list of layers and pairs."""
    keys: Sequence[Any]
    if owns_params(given):
        keys, members = _own_pairs(given)
    elif isinstance(given, Mapping):
        keys, members = list(given), list(given.values())
    elif isinstance(given, list):
        keys, members = range(len(given)), given
    else:
        expected = "a layer, a model, or a dict or iterable of layers or (param, grad) pairs"
        raise TypeError(f"{name}: expected {expected}, got {type(given).__name__}")
    keys, members = _unfold(keys, members, lambda member: _own_pairs(member) if owns_params(member) else None)
    if len({str(key) for key in keys}) < len(keys):
        raise ValueError(f"{name}: keys must stay distinct as strings")
    params: list[Array] = []
    grads: list[Array] = []
    for key, pair in zip(keys, members, strict=True):
        label, gradient = f"{name}[{key!r}]", f"gradient of {name}[{key!r}]"
        if not (isinstance(pair, (tuple, list)) and len(pair) == 2):
            raise TypeError(f"{label}: expected a layer or a pair (param, grad), got {type(pair).__name__}")
        param = check_writable(label, pair[0])
        if param.dtype not in (FLOAT32, FLOAT64):
            raise TypeError(f"{label}: expected float32 or float64, got {param.dtype}")
        if gradient_of(pair[1]) is not pair[1]:
            raise TypeError(
                f"{gradient}: expected an array, got {type(pair[1]).__name__}, whose .grad can be replaced at any time"
            )
        grad = as_view(gradient, pair[1])
        if grad is None:
            raise TypeError(f"{gradient}: expected an array, got None")
        if grad.dtype != param.dtype:
            raise TypeError(f"{gradient}: expected {param.dtype}, got {grad.dtype}")
        if grad.shape != param.shape:
            raise ValueError(f"{gradient}: expected shape {param.shape}, got {grad.shape}")
        params.append(param)
        grads.append(grad)
    return keys, params, grads


def _own_pairs(owner: Any) -> tuple[Sequence[Any], list[Any]]:
    """Return the keys of a layer, a model or an optimizer, and its pairs."""
    params, grads = owner.params, owner.grads
    if isinstance(params, Mapping):
        return list(params), [(param, grads[name]) for name, param in params.items()]
    return range(len(params)), list(zip(params, grads, strict=True))


def check_policy(nonfinite: str) -> None:
    check_choice("nonfinite", nonfinite, ("raise", "skip", "zero"))


def check_limit(max_norm: Any, step: int | None) -> float | Threshold:
    """Return `max_norm` as a number, or as the Threshold that will be asked once the norm is known.

    A schedule is called with the step; without one it is refused.
    """
    if hasattr(max_norm, "update") and not isinstance(max_norm, (Mapping, Set, type)):  # their `update` is another one
        threshold: Threshold = max_norm
        return threshold
    if step is not None:
        return check_number_at("max_norm", max_norm, step)
    if callable(max_norm):
        raise TypeError(
            "max_norm: expected a number or an object with update(norm), got a schedule; pass its value, max_norm(step)"
        )
    return check_number("max_norm", max_norm, least=0.0)
