"""Gradient norms that are right whenever they are representable, and clipping that says what it did."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from functools import partial
from operator import setitem
from typing import Any

import numpy as np

from gradcore import _kernels
from gradcore._check import (
    FLOAT16,
    FLOAT32,
    FLOAT64,
    Array,
    as_list,
    check_bool,
    check_choice,
    check_number,
    check_number_at,
    check_writable,
    packed,
    refuse_mask,
)
from gradcore.threshold import Threshold

Key = str | int

OVERLAP_WORK: Any = 10**6  # steps before a search for a shared element is given up and counts as having found one


class GradNorm(float):
    """A norm, with what the pass that computed it saw and what was done about it.

    It is a `float`: the norm *before* clipping. With entries that are not finite it is NaN or inf, but for
    ``nonfinite="zero"``, where it is the norm of the entries that remain.

    Attributes
    ----------
    coef : float
        What the gradients were multiplied by; 1.0 when they were left alone. With `per_array` the least of `coefs`.
    coefs : dict of str to float, or ndarray of float64
        What each array was multiplied by, in the form of `per_array`; below 1 for those that were clipped.
    max_norm : float
        The limit that was applied; inf where there was none.
    clipped : bool
        Whether the norm was above `max_norm`, so that they were multiplied. With `per_array`, whether any was.
    skipped : bool
        Whether ``nonfinite="skip"`` left them alone because of entries that are not finite.
    n_nan, n_inf : int
        How many entries were NaN, and how many infinite.
    per_array : dict of str to float, or ndarray of float64
        The norm of each array: by name where they came with names, else in their order. 0 for one without a gradient.
    worst : tuple or None
        ``(name or index, position)`` of the first entry that is not finite, or else of the first with the largest
        magnitude; `position` is a tuple of integers that indexes the array. None when there is no entry.

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
    _coefs: Array | None  # None where all have been multiplied by the same
    # What few ask for is made when they do; a small gradient's norm would take longer by half. The array's norms, which
    # column of `Gradients.each` holds, for each key its row; the worst entry's row, its flat index, its array's shape.
    _found: tuple[Array, int, Sequence[int], int, int, tuple[int, ...]]

    @property
    def per_array(self) -> dict[str, float] | Array:
        each, column, rows, *_ = self._found
        return by_key(self._keys, for_keys(rows, each[:, column], 0.0))

    @property
    def worst(self) -> tuple[Key, tuple[int, ...]] | None:
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
        return by_key(self._keys, np.full(len(self._keys), self.coef) if self._coefs is None else self._coefs)


class Gradients:
    """What a caller handed in, as distinct arrays that the kernels can work on.

    Parameters
    ----------
    grads : object
        Whatever `grad_norm` takes.
    write : bool
        Whether the arrays will be changed.
    """

    keys: Sequence[Key]  # names, or a range of indices
    where: Sequence[int]  # for each key its place in the two lists, -1 for one without a gradient
    views: list[Array]  # the caller's memory
    arrays: list[Array]  # the same where the kernels can use it, else a contiguous copy
    each: Array  # what `measure` found for each array: its norm, and norm, root and unit of its finite entries

    def __init__(self, grads: Any, *, write: bool) -> None:
        self.keys, given = _named(grads)
        if _kernels.plain(given, write):
            self.where, self.views, self.arrays = range(len(given)), given, given
            return
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
            place = places.setdefault(_memory(view), len(self.views))
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
        """Have the kernel change the arrays, and bring what it wrote into copies to where they came from."""
        _kernels.together([kernel, *copies_back(self.arrays, self.views)])  # Ctrl-C finds all of it, or nothing

    def measure(
        self, norm_type: float, limit: float | Threshold, nonfinite: str | None, scale: float = 1.0
    ) -> tuple[GradNorm, float, float]:
        """The norm of the gradients over `scale`, and the two factors by which the gradients have to be multiplied.

        nonfinite None reports without judging. With "skip" the caller looks at `.skipped`; with "zero" entries that are
        not finite count as 0. A Threshold sees the norm of gradients that will be used, and no other.
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
        """Two factors for each array, (n, 2), by which its own norm comes to max_norm at most; `norm` is told of it."""
        coefs, factors = np.ones(len(self.arrays)), np.ones((len(self.arrays), 2))
        for i in np.flatnonzero(self.each[:, 1] > max_norm):
            coefs[i], *factors[i] = coefficient(max_norm, *self.each[i, 2:].tolist())
        norm._coefs = for_keys(self.where, coefs, 1.0)
        norm.coef = float(coefs.min(initial=1.0))
        norm.clipped = norm.coef < 1
        norm.max_norm = max_norm
        return factors

    def multiply(self, factors: Array) -> None:
        """Each array by its two factors, (n, 2), and what is not finite by 0; those that stay the same are left out."""
        touched = (factors != 1).any(axis=1) | ~np.isfinite(self.each[:, 0])
        arrays = [a for a, touch in zip(self.arrays, touched, strict=True) if touch]
        self.change(partial(_kernels.scale, arrays, factors[touched]))


def for_keys(rows: Sequence[int], values: Array, missing: float) -> Array:
    """What was found for each array, for each key; some are met twice, or have no gradient, row -1."""
    return values if isinstance(rows, range) else np.append(values, missing)[rows]


def coefficient(max_norm: float, root: float, unit: float) -> tuple[float, float, float]:
    """max_norm / (root * unit), below 1, and two factors that have it as their product.

    The norm may lie above the range of a double, and the coefficient below it.
    """
    (m, a), (r, b), (u, c) = math.frexp(max_norm), math.frexp(root), math.frexp(unit)
    mantissa, d = math.frexp(m / (r * u))
    exponent = a - b - c + d
    coef = math.ldexp(mantissa, exponent)
    if exponent > -1000:
        return coef, coef, 1.0
    return coef, math.ldexp(mantissa, exponent - exponent // 2), math.ldexp(1.0, exponent // 2)


def by_key(keys: Sequence[Any], values: Array) -> dict[Any, Any] | Array:
    """A dict where there are names, else the array."""
    return values if isinstance(keys, range) else dict(zip(keys, values.tolist(), strict=True))


def nonfinite_error(label: str, entry: Any, position: tuple[int, ...], n_nan: int, n_inf: int) -> FloatingPointError:
    what, count = "NaN" if np.isnan(entry) else "Inf", f"{n_nan} NaN and {n_inf} Inf in all"
    return FloatingPointError(f"{label}: {what} at {position} ({count}); nothing was changed")


def _label(key: Key) -> str:
    return f"grads[{key!r}]"


def _named(grads: Any) -> tuple[Sequence[Key], list[Any]]:
    """What was handed in as a list, and what to call its members."""
    if isinstance(grads, np.ndarray):
        return range(1), [grads]
    if not isinstance(grads, Mapping):
        grads = getattr(grads, "grads", grads)  # a layer, a model, an optimizer
    if isinstance(grads, Mapping):
        return list(grads), list(grads.values())
    if _exports(grads) or hasattr(grads, "grad"):
        return range(1), [grads]
    if not isinstance(grads, Iterable):
        raise TypeError(
            "grads: expected an array, an iterable or dict of arrays, a layer, a model or an optimizer, "
            f"got {type(grads).__name__}"
        )
    given = as_list("grads", grads)
    warn_if_exhausted("grads", grads, given)
    return range(len(given)), given


def warn_if_exhausted(name: str, given: Any, members: Sequence[Any], stacklevel: int = 5) -> None:
    """For an iterator that gave nothing: most likely somebody has gone through it before."""
    if not members and isinstance(given, Iterator):
        warnings.warn(f"{name}: an iterator that is exhausted, so there is nothing to work on", stacklevel=stacklevel)


def _exports(value: Any) -> bool:
    """Whether NumPy can have a view of its memory."""
    if hasattr(value, "__dlpack__"):
        return True
    try:
        memoryview(value)
    except TypeError:
        return False
    except (BufferError, ValueError):  # released, or of a form that NumPy will tell of
        return True
    return True


def as_view(label: str, value: Any) -> Array | None:
    """The memory of an array, or of an object's `.grad`, as a NumPy array of any dtype; None where `.grad` is."""
    torch = sys.modules.get("torch")  # who hands in its tensors has imported it
    tensor = False
    if torch is not None and isinstance(value, torch.Tensor):
        tensor = True
        if value.requires_grad or isinstance(value, torch.nn.Parameter):
            value = value.grad
    elif not isinstance(value, np.ndarray) and not _exports(value) and hasattr(value, "grad"):
        value = value.grad
    if value is None:
        return None
    refuse_mask(label, value)
    view: Array
    try:
        if isinstance(value, np.ndarray):
            view = value
        elif tensor:
            view = value.detach().numpy()
        elif hasattr(value, "__dlpack__"):
            view = _from_dlpack(value)
        else:
            view = np.asarray(memoryview(value))
    except (AttributeError, BufferError, RuntimeError, TypeError, ValueError) as error:
        raise TypeError(f"{label}: expected an array on the CPU, got {type(value).__name__}: {error}") from None
    return view


class _Exporter:
    """An exporter of DLPack, as NumPy reads it, that remembers in which form it exported."""

    unversioned = False

    def __init__(self, exporter: Any) -> None:
        self._exporter = exporter
        self.__dlpack_device__ = exporter.__dlpack_device__

    def __dlpack__(self, **options: Any) -> Any:
        capsule = self._exporter.__dlpack__(**options)
        self.unversioned = '"dltensor"' in repr(capsule)
        return capsule


class _Writeable:
    """The memory of a read-only array, for NumPy to look at as one that can be written."""

    def __init__(self, view: Array) -> None:
        self._view = view
        interface = view.__array_interface__
        self.__array_interface__ = interface | {"data": (interface["data"][0], False)}


def _from_dlpack(value: Any) -> Array:
    """A view of what exports DLPack.

    Before version 1 that could not tell read-only memory, for which NumPy then takes all of it; but it was not allowed
    to export any.
    """
    exporter = _Exporter(value)
    view: Array = np.from_dlpack(exporter)
    return np.asarray(_Writeable(view)) if exporter.unversioned else view


def _memory(a: Array) -> tuple[Any, ...]:
    """Equal for views of the very same elements, in whatever order."""
    low, high = _kernels.bounds(a)
    if a.nbytes == high - low:
        return low, high, a.dtype.char
    return low, high, a.dtype.char, *sorted((abs(step), n) for step, n in zip(a.strides, a.shape, strict=True) if n > 1)


def refuse_overlap(labels: Sequence[str], views: Sequence[Array]) -> None:
    """A ValueError if any two share memory."""
    extents = sorted((*_kernels.bounds(view), i) for i, view in enumerate(views) if view.size)
    reaching: list[tuple[int, int]] = []  # earlier arrays that may reach beyond the beginning of this one
    for low, high, i in extents:
        reaching = [(end, j) for end, j in reaching if end > low]
        for _, j in reaching:
            try:
                shared = np.shares_memory(views[i], views[j], max_work=OVERLAP_WORK)
            except np.exceptions.TooHardError:
                shared = True
            if shared:
                raise ValueError(f"{labels[min(i, j)]} and {labels[max(i, j)]} overlap in memory")
        reaching.append((high, i))


def contiguous(view: Array) -> Array:
    """The same memory as a plain C-contiguous array if it is one, else a copy."""
    return packed(view)


def copies_back(arrays: Sequence[Array], views: Sequence[Array]) -> list[Callable[[], None]]:
    """The calls that undo `contiguous` after its results were written to."""
    return [
        partial(setitem, view, ..., array)
        for array, view in zip(arrays, views, strict=True)
        if array is not view and not np.may_share_memory(array, view)
    ]


def pairs(name: str, given: Any) -> tuple[Sequence[str | int], list[Array], list[Array]]:
    """Names, parameters and gradients from a dict or list of pairs."""
    keys: Sequence[Any]
    if isinstance(given, Mapping):
        keys, members = list(given), list(given.values())
    elif isinstance(given, list):
        keys, members = range(len(given)), given
    else:
        expected = "a layer, a model, or a dict or iterable of (param, grad) pairs"
        raise TypeError(f"{name}: expected {expected}, got {type(given).__name__}")
    if len({str(key) for key in keys}) < len(keys):
        raise ValueError(f"{name}: two keys are the same as text, by which states and norms go")
    params: list[Array] = []
    grads: list[Array] = []
    for key, pair in zip(keys, members, strict=True):
        label, gradient = f"{name}[{key!r}]", f"gradient of {name}[{key!r}]"
        if not (isinstance(pair, (tuple, list)) and len(pair) == 2):
            raise TypeError(f"{label}: expected a pair (param, grad), got {type(pair).__name__}")
        param = check_writable(label, pair[0])
        if param.dtype not in (FLOAT32, FLOAT64):
            raise TypeError(f"{label}: expected float32 or float64, got {param.dtype}")
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


def check_policy(nonfinite: str) -> None:
    check_choice("nonfinite", nonfinite, ("raise", "skip", "zero"))


def check_limit(max_norm: Any, step: int | None) -> float | Threshold:
    """What `max_norm` stands for: a number, or a Threshold, which is asked once the norm is known.

    A schedule gives its number at the step, where there is one.
    """
    if hasattr(max_norm, "update") and not isinstance(max_norm, (Mapping, Set, type)):  # theirs means something else
        threshold: Threshold = max_norm
        return threshold
    if step is not None:
        return check_number_at("max_norm", max_norm, step)
    if callable(max_norm):
        raise TypeError(
            "max_norm: expected a number or an object with update(norm), got a schedule, and no step is known here; "
            "hand in its value, max_norm(step)"
        )
    return check_number("max_norm", max_norm, least=0.0)


def _norm_type(value: Any) -> float:
    """A positive number; "inf" may be text, as in PyTorch."""
    return math.inf if isinstance(value, str) and value == "inf" else check_number("norm_type", value, above=0.0)


def grad_norm(grads: Any, norm_type: float = 2.0) -> GradNorm:
    r"""The norm of gradients, all arrays taken as one vector: :math:`(\sum_i |g_i|^p)^{1/p}`.

    It is right whenever it can be represented: sums are carried in float64, and entries whose powers would overflow or
    underflow are scaled first. The bits are the same for any number of threads.

    Parameters
    ----------
    grads : array, iterable or dict of arrays, layer, model, optimizer
        float16, float32 or float64, of any shape and layout. Objects that export the buffer protocol or DLPack on the
        CPU, or that have a `.grad` (None counts as absent), serve as arrays. The same memory met twice counts once.
    norm_type : float
        p, positive; ``inf`` for the largest magnitude.

    Returns
    -------
    GradNorm
        A float; NaN if an entry is NaN, else inf if one is infinite.

    Raises
    ------
    TypeError
        If something is not an array of float16, float32 or float64.
    ValueError
        If arrays overlap in part, or `norm_type` is not positive.

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


def clip_grad_norm_(
    grads: Any,
    max_norm: float | Threshold,
    norm_type: float = 2.0,
    *,
    nonfinite: str = "raise",
    per_array: bool = False,
) -> GradNorm:
    """Scale gradients, in place, so that their norm is at most `max_norm`.

    If ``norm > max_norm``, ``g *= max_norm / norm``; else the arrays keep their exact bits. There is no epsilon: after
    clipping the norm is `max_norm` up to rounding, which is done once, to the nearest or else to even.

    Parameters
    ----------
    grads : array, iterable or dict of arrays, layer, model, optimizer
        As for `grad_norm`; changed in place.
    max_norm : float or Threshold
        At least 0; ``inf`` never clips. An object with ``update(norm)``, such as those of `gradcore.threshold`, is told
        the norm and answers with the limit; not where the gradients are left alone because of `nonfinite`.
    norm_type : float
        p, positive; ``inf`` for the largest magnitude.
    nonfinite : {"raise", "skip", "zero"}
        What to do when an entry is NaN or infinite: raise, changing nothing; change nothing and say so in the result;
        or set such entries to 0 and clip the rest by the norm of what remains.
    per_array : bool
        Clip each array by its own norm, not all by the norm of all; `max_norm` has to be a number. That changes the
        direction of the whole.

    Returns
    -------
    GradNorm
        The norm of all before clipping, the limit, the coefficient or coefficients, whether it clipped, and where the
        worst entry is.

    Raises
    ------
    FloatingPointError
        If an entry is not finite and `nonfinite` is "raise"; it names the array and the position.
    TypeError
        If something is not an array of float16, float32 or float64.
    ValueError
        If an array is read-only, arrays overlap in part, or a number is out of range.

    Notes
    -----
    Pascanu, Mikolov, Bengio, "On the difficulty of training recurrent neural networks", 2013, algorithm 1.

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
    """Limit every entry, in place, to ``[-clip_value, clip_value]``; NaN stays NaN.

    This changes the direction of the gradient; `clip_grad_norm_` keeps it.

    Parameters
    ----------
    grads : array, iterable or dict of arrays, layer, model, optimizer
        As for `grad_norm`; changed in place.
    clip_value : float
        At least 0.

    Raises
    ------
    TypeError
        If something is not an array of float16, float32 or float64.
    ValueError
        If an array is read-only, arrays overlap in part, or `clip_value` is negative or NaN.

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
