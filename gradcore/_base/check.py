"""Argument checks and their error messages."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

MOST_COUNTED = 10**6  # elements that are compared to see whether any overlap; more count as overlapping

FLOAT16 = np.dtype(np.float16)
FLOAT32 = np.dtype(np.float32)
FLOAT64 = np.dtype(np.float64)


def check_dtype(dtype: Any) -> np.dtype[Any]:
    """Return float32 or float64 in native byte order."""
    if dtype is not None:  # which NumPy would take for float64
        try:
            given = np.dtype(dtype)
        except TypeError:
            given = np.dtype(object)
        for real in (FLOAT32, FLOAT64):
            if given == real:
                return real
    raise TypeError(f"dtype: expected float32 or float64, got {dtype!r}")


def check_int(name: str, value: Any, *, least: int = 0) -> int:
    """Return an integer of at least `least` that is small enough to index memory."""
    _refuse_other_than_integers(name, value)
    if not least <= value < 2**40:
        bound = f"at least {least}" if value < least else "less than 2**40"
        raise ValueError(f"{name}: expected an integer of {bound}, got {value}")
    return int(value)


def _is_integer(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _refuse_other_than_integers(name: str, value: Any) -> None:
    if not _is_integer(value):
        raise TypeError(f"{name}: expected an integer, got {type(value).__name__}")


def check_room(items: int, itemsize: int = 8) -> None:
    """Raise a MemoryError if so many items cannot be addressed, for which NumPy has errors of many kinds."""
    if items > sys.maxsize // itemsize - 4096:  # leaves a few bytes for alignment
        raise MemoryError(f"{items} items of {itemsize} bytes cannot be addressed")


def check_bool(name: str, value: Any) -> bool:
    """Return a bool, also from 0 or 1. Anything else is more likely an argument in the wrong place."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if not _is_integer(value):
        raise TypeError(f"{name}: expected True or False, got {type(value).__name__}")
    if value not in (0, 1):
        raise ValueError(f"{name}: expected True or False, got {value}")
    return bool(value)


def check_rng(rng: Any) -> np.random.Generator:
    """Return the given generator, one with the given seed, or for None one with a fresh seed."""
    if isinstance(rng, np.random.Generator):
        return rng
    if rng is None:
        return np.random.default_rng()
    if not _is_integer(rng):
        raise TypeError(f"rng: expected an integer, a numpy.random.Generator or None, got {type(rng).__name__}")
    if rng < 0:
        raise ValueError(f"rng: expected a seed of at least 0, got {rng}")
    return np.random.default_rng(int(rng))


def check_choice(name: str, value: Any, wanted: Iterable[str]) -> str:
    """Return one of the wanted names."""
    names = list(wanted)
    if not isinstance(value, str) or value not in names:  # other types need not be comparable
        last = " or ".join(map(repr, names)) if len(names) < 4 else f"one of {', '.join(names)}"
        raise ValueError(f"{name}: expected {last}, got {value!r}")
    return value


def check_index(name: str, value: Any, n: int) -> int:
    """Return an index from 0 to n - 1."""
    _refuse_other_than_integers(name, value)
    if not 0 <= value < n:
        raise IndexError(f"{name}: expected 0 <= {name} < {n}, got {value}")
    return int(value)


def check_path(name: str, value: Any) -> str:
    """Return a path as text. An integer is refused, because `open` would take it for an open file, and close that."""
    try:
        text = os.fspath(value)
    except TypeError:
        text = None
    if not isinstance(text, str):
        raise TypeError(f"{name}: expected a path, got {type(value).__name__}")
    try:
        usable = b"\0" not in os.fsencode(text)
    except UnicodeError:  # half a surrogate pair
        usable = False
    if not usable:
        raise ValueError(f"{name}: expected a path, got {text!r}, which cannot be the name of a file")
    return text


def as_list(name: str, value: Any, what: str = "an iterable") -> list[Any]:
    """Return the members of an iterable as a list."""
    try:
        return list(value)
    except (TypeError, ValueError) as error:  # such as an array without axes or a released buffer
        raise TypeError(f"{name}: expected {what}, got {type(value).__name__}: {error}") from None


def check_real(name: str, value: Any) -> float:
    """Return a real number as a float, NaN allowed. Bools, strings and arrays with axes are refused."""
    if type(value) is float:
        return value
    dtype = getattr(value, "dtype", None)
    kind = getattr(dtype, "kind", "b" if str(dtype).endswith("bool") else "")  # a tensor's dtype has no kind
    numeric = hasattr(type(value), "__float__") or hasattr(type(value), "__index__")
    if not numeric or isinstance(value, (bool, np.ma.MaskedArray)) or kind in tuple("bcmMOSUT"):
        _no_number(name, value)
    if isinstance(value, np.ndarray) and value.ndim:
        raise TypeError(f"{name}: expected a number, got an array of shape {value.shape}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name}: expected a number in the range of a double, got a larger one") from None
    except (TypeError, ValueError, RuntimeError):
        _no_number(name, value)


def _no_number(name: str, value: Any) -> NoReturn:
    raise TypeError(f"{name}: expected a number, got {type(value).__name__}") from None


def check_number(
    name: str, value: Any, *, least: float = -np.inf, above: float = -np.inf, most: float = np.inf
) -> float:
    """Return a real number in the range, NaN refused."""
    number = check_real(name, value)
    if not (number >= least and number <= most and (number > above or above == -np.inf)):
        bounds = [f"at least {least:g}"] * (least > -np.inf) + [f"above {above:g}"] * (above > -np.inf)
        bounds += [f"at most {most:g}"] * (most < np.inf)
        raise ValueError(f"{name}: expected a number{' ' * bool(bounds)}{' and '.join(bounds)}, got {value}")
    return number


def check_number_at(name: str, value: Any, step: int) -> float:
    """Return a number of at least 0, or that of a schedule, a callable of the step."""
    return check_number(name, value(step) if callable(value) else value, least=0.0)


def check_names(label: str, given: Any, wanted: Iterable[str]) -> None:
    """Raise an error unless `given` is a mapping with exactly the wanted names."""
    if not isinstance(given, Mapping):
        raise TypeError(f"{label}: expected a mapping, got {type(given).__name__}")
    missing, unknown = set(wanted) - set(given), set(given) - set(wanted)
    if missing or unknown:
        raise KeyError(f"{label}: missing {sorted(missing, key=str)}, unknown {sorted(unknown, key=str)}")


def refuse_mask(name: str, value: Any) -> None:
    """Raise a TypeError for a masked array, whose mask would be ignored."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name}: masked arrays are not supported; fill the mask first, with .filled(0)")


def as_array(name: str, value: Any) -> Array:
    """Return `value` as an array of any dtype and shape."""
    if type(value) is np.ndarray:
        return value
    refuse_mask(name, value)
    if isinstance(value, (list, tuple)):
        for i, member in enumerate(value):  # which NumPy would turn into NaN, with a warning
            refuse_mask(f"{name}[{i}]", member)
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists, tensors that NumPy cannot read
        raise TypeError(f"{name}: expected an array, got {type(value).__name__}: {error}") from None


def check_reals(name: str, value: Any) -> Array:
    """Return `value` as an array of integers, bools or floats."""
    given = as_array(name, value)
    if given.dtype.kind not in "fiub":
        raise TypeError(f"{name}: expected real numbers, got {given.dtype}")
    return given


def describe_shape(shape: Sequence[int | str | None]) -> str:
    """Return a shape as users write it, such as (T, B, 16)."""
    inside = ", ".join(str(n) for n in shape)
    return f"({inside},)" if len(shape) == 1 else f"({inside})"


def check_array(name: str, value: Any, dtype: np.dtype[Any], shape: Sequence[int | str]) -> Array:
    """Return `value` as a C-contiguous, aligned array of exactly this dtype, copied only if its layout requires it.

    A string in `shape`, such as "T", stands for any size.
    """
    given = as_array(name, value)
    if given.dtype != dtype:
        if given.dtype == object and given is not value:
            raise TypeError(f"{name}: expected an array of {dtype}, got {type(value).__name__}")
        how = f"{name}.astype(numpy.{dtype})" if hasattr(value, "astype") else f"numpy.asarray({name}, numpy.{dtype})"
        raise TypeError(f"{name}: expected {dtype}, got {given.dtype}; convert it with {how}")
    if given.shape != shape:
        fits = given.ndim == len(shape)
        for want, n in zip(shape, given.shape, strict=False):
            if want != n and not isinstance(want, str):
                fits = False
        if not fits:
            raise ValueError(f"{name}: expected shape {describe_shape(shape)}, got {given.shape}")
    flags = given.flags
    return given if flags.c_contiguous and flags.aligned else packed(given)


def packed(a: Array) -> Array:
    """Return the array as C-contiguous and aligned, which may be a copy."""
    try:
        return np.require(np.asarray(a), requirements=["C", "A"])
    except ValueError:  # "iterator is too large"
        raise MemoryError(f"a copy of an array of shape {a.shape} cannot be addressed") from None


def check_lengths(value: Any, T: int, B: int) -> Array | None:
    """Return `lengths` as (B,) indices from 0 to T; None stays None."""
    if value is None:
        return None
    given = as_array("lengths", value)
    if given.dtype.kind not in "iu" and given.size:
        raise TypeError(f"lengths: expected integers, got {given.dtype}")
    if given.shape != (B,):
        raise ValueError(f"lengths: expected shape ({B},), got {given.shape}")
    wrong = np.flatnonzero((given < 0) | (given > T))
    if wrong.size:
        raise ValueError(f"lengths: expected 0 to {T}, got {given[wrong[0]]} at position {wrong[0]}")
    return given.astype(np.intp)


def check_reset(value: Any, shape: tuple[int, int]) -> Array | None:
    """Return `reset` as bools of this shape; None stays None."""
    if value is None:
        return None
    given = as_array("reset", value)
    if given.dtype != np.bool_:
        raise TypeError(f"reset: expected bools, got {given.dtype}; true where a sequence begins anew")
    return check_array("reset", given, given.dtype, shape)


def check_writable(name: str, value: Any) -> Array:
    """Return an array that can be changed in place."""
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name}: expected a NumPy array to change in place, got {type(value).__name__}")
    refuse_mask(name, value)
    if not value.flags.writeable:
        raise ValueError(f"{name}: expected a writable array to change in place, got a read-only one")
    if not value.flags.forc and _meets_itself(value):
        raise ValueError(f"{name}: expected elements of their own memory, but some overlap; pass a copy")
    return value


def _meets_itself(a: Array) -> bool:
    """Return whether two elements share memory, as with strides of 0."""
    axes = sorted((abs(step), n) for step, n in zip(a.strides, a.shape, strict=True) if n > 1)
    reach = a.itemsize
    for step, n in axes:
        if step < reach:  # it steps into the memory of the inner axes, which a view made by indexing never does
            break
        reach += step * (n - 1)
    else:
        return False
    if not axes[0][0] or a.size > MOST_COUNTED:
        return a.size > 0
    places = np.zeros(1, np.intp)
    for step, n in axes:
        places = np.add.outer(places, step * np.arange(n)).reshape(-1)
    return bool((np.diff(np.sort(places)) < a.itemsize).any())
