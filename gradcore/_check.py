"""Checks of what callers hand in: one place for the rules and for the sentences of the errors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

FLOAT16 = np.dtype(np.float16)
FLOAT32 = np.dtype(np.float32)
FLOAT64 = np.dtype(np.float64)


def real_dtype(dtype: Any) -> np.dtype[Any]:
    """float32 or float64 in native byte order, or a TypeError."""
    if dtype is not None:  # which NumPy would take for float64
        try:
            given = np.dtype(dtype)
        except TypeError:
            given = np.dtype(object)
        for real in (FLOAT32, FLOAT64):
            if given == real:
                return real
    raise TypeError(f"dtype: expected float32 or float64, got {dtype!r}")


def size(name: str, value: Any, *, least: int = 0) -> int:
    """An integer of at least `least`, small enough to index memory."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name}: expected an integer, got {type(value).__name__}")
    if not least <= value < 2**40:
        bound = f"at least {least}" if value < least else "less than 2**40"
        raise ValueError(f"{name}: expected an integer of {bound}, got {value}")
    return int(value)


def number(name: str, value: Any, *, least: float = -np.inf, above: float = -np.inf, most: float = np.inf) -> float:
    """A real number in the range, NaN refused."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}") from None
    if not (number >= least and number <= most and (number > above or above == -np.inf)):
        bounds = [f"at least {least:g}"] * (least > -np.inf) + [f"above {above:g}"] * (above > -np.inf)
        bounds += [f"at most {most:g}"] * (most < np.inf)
        raise ValueError(f"{name}: expected a number{' ' * bool(bounds)}{' and '.join(bounds)}, got {value}")
    return number


def number_at(name: str, value: Any, step: int) -> float:
    """A number of at least 0, or what a schedule, a callable of the step, says at this one."""
    return number(name, value(step) if callable(value) else value, least=0.0)


def same_names(label: str, given: Any, wanted: Iterable[str]) -> None:
    """An error unless `given` is a mapping with just the wanted names."""
    if not isinstance(given, Mapping):
        raise TypeError(f"{label}: expected a mapping, got {type(given).__name__}")
    missing, unknown = set(wanted) - set(given), set(given) - set(wanted)
    if missing or unknown:
        raise KeyError(f"{label}: missing {sorted(missing)}, unknown {sorted(unknown)}")


def refuse_mask(name: str, value: Any) -> None:
    """A TypeError for a masked array, whose mask would be ignored."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name}: masked arrays are not supported; fill the mask first, with .filled(0)")


def as_array(name: str, value: Any) -> Array:
    """`value` as NumPy sees it, of whatever dtype and shape."""
    if type(value) is np.ndarray:
        return value
    refuse_mask(name, value)
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists, tensors that NumPy cannot read
        raise TypeError(f"{name}: expected an array, got {type(value).__name__}: {error}") from None


def describe(shape: Sequence[int | str | None]) -> str:
    """A shape as users write it: (T, B, 16)."""
    inside = ", ".join(str(n) for n in shape)
    return f"({inside},)" if len(shape) == 1 else f"({inside})"


def array(name: str, value: Any, dtype: np.dtype[Any], shape: Sequence[int | str]) -> Array:
    """`value` as a C-contiguous, aligned array of just this dtype, copied only where its layout asks for it.

    A string in `shape`, such as "T", stands for any size; the same string twice for the same size.
    """
    given = as_array(name, value)
    if given.dtype != dtype:
        raise TypeError(f"{name}: expected {dtype}, got {given.dtype}; convert it with {name}.astype(numpy.{dtype})")
    if given.shape != shape:
        sizes: dict[str, int] = {}
        fits = given.ndim == len(shape)
        for want, n in zip(shape, given.shape, strict=False):
            fits = fits and n == (sizes.setdefault(want, n) if isinstance(want, str) else want)
        if not fits:
            raise ValueError(f"{name}: expected shape {describe(shape)}, got {given.shape}")
    flags = given.flags
    return given if flags.c_contiguous and flags.aligned else np.require(given, requirements=["C", "A"])


def check_lengths(value: Any, T: int, B: int) -> Array | None:
    """`lengths` as indices, (B,), each from 0 to T; None stays None."""
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


def target(name: str, value: Any) -> Array:
    """An array that is to be changed in place, or an error that says why it cannot be."""
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name}: expected a NumPy array to change in place, got {type(value).__name__}")
    refuse_mask(name, value)
    if not value.flags.writeable:
        raise ValueError(f"{name}: is read-only and cannot be changed in place")
    return value
