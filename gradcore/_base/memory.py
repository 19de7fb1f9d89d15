"""Memory that begins on cache lines, and the pool that layers borrow buffers from."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gradcore._base.check import Array, check_room

__all__ = ["Pool", "aligned_zeros"]

ALIGNMENT = 64  # bytes: a cache line, and the widest vector


def aligned_zeros(n: int, dtype: np.dtype[Any]) -> Array:
    """Return n zeros that begin on a cache line."""
    check_room(n, dtype.itemsize)
    raw = np.zeros(n * dtype.itemsize + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + n * dtype.itemsize].view(dtype)


class Pool:
    """Lend buffers and keep some of those given back, since fresh memory at every step would cost page faults.

    Threads share it without a lock, which a fork could leave locked in the child for ever. Each change is one operation
    of a dict, which is atomic, in free-threaded Pythons too.
    """

    KEEP = 16
    SMALL = 32 * 1024  # bytes; NumPy and the allocator reuse smaller arrays well enough

    def __init__(self) -> None:
        self._free: dict[int, Array] = {}  # by identity

    def take(self, n_bytes: int) -> Array:
        """Return the smallest free buffer of at least n_bytes, or a new one if there is none or it is far too large."""
        best, least = None, 2 * n_bytes + 4097
        for buffer in list(self._free.values()):
            if n_bytes <= len(buffer) < least:
                best, least = buffer, len(buffer)
        if best is not None and self._free.pop(id(best), None) is not None:  # unless another thread was faster
            return best
        check_room(n_bytes, 1)
        raw = np.empty(n_bytes + ALIGNMENT, np.uint8)
        start = -raw.ctypes.data % ALIGNMENT
        return raw[start : start + n_bytes]

    def give(self, buffer: Array) -> None:
        """Take a buffer back."""
        self._free[id(buffer)] = buffer
        if len(self._free) > self.KEEP:
            for oldest in list(self._free)[: -self.KEEP]:
                self._free.pop(oldest, None)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Return an uninitialized array, whose memory comes back with its last view."""
        n_bytes = math.prod(shape) * dtype.itemsize
        if n_bytes <= self.SMALL:
            return np.empty(shape, dtype)
        return np.asarray(_Lent(self, self.take(n_bytes), shape, dtype))

    def __reduce__(self) -> tuple[type[Pool], tuple[()]]:
        return Pool, ()  # a copied or unpickled layer starts with an empty pool


class _Lent:
    """The base of an array in a pool's memory, which NumPy keeps alive as long as the array or any view of it."""

    def __init__(self, pool: Pool, buffer: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._pool, self._buffer = pool, buffer
        data = buffer.__array_interface__["data"]
        self.__array_interface__ = {"version": 3, "data": data, "shape": shape, "typestr": dtype.str}

    def __del__(self) -> None:
        self._pool.give(self._buffer)
