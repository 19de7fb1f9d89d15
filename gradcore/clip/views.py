"""The memory of what callers pass, arrays and tensors, as NumPy arrays."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from operator import setitem
from typing import Any

import numpy as np

from gradcore import _kernels
from gradcore._base.check import Array, packed, refuse_mask

__all__: list[str] = []  # for the package only

OVERLAP_WORK: Any = 10**6  # steps of the search for a shared element; if it takes more, the arrays count as overlapping


def exports(value: Any) -> bool:
    """Return whether NumPy can view the object's memory."""
    if hasattr(value, "__dlpack__"):
        return True
    try:
        memoryview(value)
    except TypeError:
        return False
    except (BufferError, ValueError):  # it was released, or has a format that NumPy will report
        return True
    return True


def _is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")  # a caller with tensors has imported it
    return torch is not None and isinstance(value, torch.Tensor)


def gradient_of(value: Any) -> Any:
    """Return the gradient that an object holds: its `.grad` if it has one, else the object itself.

    Every torch tensor has a `.grad`. If it is None, a parameter or a tensor that requires a gradient has none yet;
    any other tensor is an array.
    """
    if type(value) is np.ndarray or not hasattr(value, "grad"):
        return value
    grad = value.grad
    if grad is None and _is_tensor(value):
        parameter = sys.modules["torch"].nn.Parameter
        return None if value.requires_grad or isinstance(value, parameter) else value
    return grad


def as_view(label: str, value: Any) -> Array | None:
    """Return the memory of an array, or of an object's `.grad`, as a NumPy array of any dtype; None without one."""
    value = gradient_of(value)
    if value is None:
        return None
    refuse_mask(label, value)
    view: Array
    try:
        if isinstance(value, np.ndarray):
            view = value
        elif _is_tensor(value):
            view = value.detach().numpy()
        elif hasattr(value, "__dlpack__"):
            view = _from_dlpack(value)
        else:
            view = np.asarray(memoryview(value))
    except (AttributeError, BufferError, RuntimeError, TypeError, ValueError) as error:
        raise TypeError(f"{label}: expected an array on the CPU, got {type(value).__name__}: {error}") from None
    return view


class _Exporter:
    """A DLPack exporter that NumPy can read, and that remembers which form it exported."""

    unversioned = False

    def __init__(self, exporter: Any) -> None:
        self._exporter = exporter
        self.__dlpack_device__ = exporter.__dlpack_device__

    def __dlpack__(self, **options: Any) -> Any:
        capsule = self._exporter.__dlpack__(**options)
        self.unversioned = '"dltensor"' in repr(capsule)
        return capsule


class _Writeable:
    """The memory of a read-only array, offered to NumPy as writable."""

    def __init__(self, view: Array) -> None:
        self._view = view
        interface = view.__array_interface__
        self.__array_interface__ = interface | {"data": (interface["data"][0], False)}


def _from_dlpack(value: Any) -> Array:
    """Return a view of an object that exports DLPack.

    Before version 1, DLPack could not mark memory as read-only and did not allow exporting such memory. NumPy treats
    all of it as read-only, so the mark is removed.
    """
    exporter = _Exporter(value)
    view: Array = np.from_dlpack(exporter)
    return np.asarray(_Writeable(view)) if exporter.unversioned else view


def memory_key(a: Array) -> tuple[Any, ...]:
    """Return a key that is equal for views of the same elements, in any order."""
    low, high = _kernels.bounds(a)
    if a.nbytes == high - low:
        return low, high, a.dtype.char
    return low, high, a.dtype.char, *sorted((abs(step), n) for step, n in zip(a.strides, a.shape, strict=True) if n > 1)


def refuse_overlap(labels: Sequence[str], views: Sequence[Array]) -> None:
    """Raise a ValueError if any two arrays share memory."""
    extents = sorted((*_kernels.bounds(view), i) for i, view in enumerate(views) if view.size)
    reaching: list[tuple[int, int]] = []  # earlier arrays that end after this one begins
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
    """Return the array as a plain, C-contiguous one: a copy if its layout requires it."""
    return packed(view)


def copies_back(arrays: Sequence[Array], views: Sequence[Array]) -> list[Callable[[], None]]:
    """Return the calls that copy the results of `contiguous` back, after they were changed."""
    return [
        partial(setitem, view, ..., array)
        for array, view in zip(arrays, views, strict=True)
        if array is not view and not np.may_share_memory(array, view)
    ]
