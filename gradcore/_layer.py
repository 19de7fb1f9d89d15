"""What every layer and model has: one flat buffer of parameters, one of gradients, and named views of both."""

from __future__ import annotations

import copy
import math
import os
import threading
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar
from weakref import WeakSet

import numpy as np

from gradcore._check import Array, check_array, check_room

ALIGNMENT = 64  # bytes: a cache line, and the widest vector


def aligned_zeros(n: int, dtype: np.dtype[Any]) -> Array:
    """n zeros that begin on a cache line."""
    check_room(n, dtype.itemsize)
    raw = np.zeros(n * dtype.itemsize + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + n * dtype.itemsize].view(dtype)


class Pool:
    """Lends buffers and keeps a few of those given back: fresh megabytes at every step would cost page faults.

    Threads share it without a lock, which a fork could leave taken in the child for ever: what changes it is one
    operation of a dict, and those are atomic, in free-threaded Pythons too.
    """

    KEEP = 16
    SMALL = 32 * 1024  # bytes: NumPy and the allocator reuse these well enough themselves

    def __init__(self) -> None:
        self._free: dict[int, Array] = {}  # by identity

    def take(self, n_bytes: int) -> Array:
        """The smallest free buffer of n_bytes or more, unless it is far too large; else a new one."""
        best, least = None, 2 * n_bytes + 4097
        for buffer in list(self._free.values()):
            if n_bytes <= len(buffer) < least:
                best, least = buffer, len(buffer)
        if best is not None and self._free.pop(id(best), None) is not None:  # else another thread was faster
            return best
        check_room(n_bytes, 1)
        raw = np.empty(n_bytes + ALIGNMENT, np.uint8)
        start = -raw.ctypes.data % ALIGNMENT
        return raw[start : start + n_bytes]

    def give(self, buffer: Array) -> None:
        self._free[id(buffer)] = buffer
        if len(self._free) > self.KEEP:
            for oldest in list(self._free)[: -self.KEEP]:
                self._free.pop(oldest, None)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """An uninitialised array for a caller, whose memory comes back when the last view of it is gone."""
        n_bytes = math.prod(shape) * dtype.itemsize
        if n_bytes <= self.SMALL:
            return np.empty(shape, dtype)
        return np.asarray(_Lent(self, self.take(n_bytes), shape, dtype))

    def __reduce__(self) -> tuple[type[Pool], tuple[()]]:
        return Pool, ()  # a copied or unpickled layer starts with an empty pool


class _Lent:
    """The base of an array in a pool's memory: NumPy keeps it alive as long as the array or any view of it."""

    def __init__(self, pool: Pool, buffer: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._pool, self._buffer = pool, buffer
        data = buffer.__array_interface__["data"]
        self.__array_interface__ = {"version": 3, "data": data, "shape": shape, "typestr": dtype.str}

    def __del__(self) -> None:
        self._pool.give(self._buffer)


class Turn:
    """One Python thread at a time, ``with turn.lock``; a forked child finds it free, and so does a copy.

    The lock itself is entered, because Ctrl-C may come between taking it in an `__enter__` of ours and the `with`.
    """

    _all: ClassVar[WeakSet[Turn]] = WeakSet()

    def __init__(self) -> None:
        self.lock = threading.Lock()
        Turn._all.add(self)

    def __reduce__(self) -> tuple[type[Turn], tuple[()]]:
        return Turn, ()

    @classmethod
    def free_all(cls) -> None:
        """The threads that had a turn are not there any more."""
        for turn in list(cls._all):
            turn.lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=Turn.free_all)


class Layer:
    """Base of all layers and models.

    Attributes
    ----------
    dtype : numpy.dtype
        float32 or float64: of parameters, inputs and outputs alike.
    params, grads : dict of str to ndarray
        Views of `flat_params` and `flat_grads`, by PyTorch's names.
    flat_params, flat_grads : ndarray, (n,)
        One contiguous, 64-byte-aligned buffer each.
    """

    dtype: np.dtype[Any]
    params: dict[str, Array]
    grads: dict[str, Array]
    flat_params: Array
    flat_grads: Array
    _adding: Turn  # to the gradients

    def _allocate(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Give the layer zeroed buffers for parameters of these names and shapes."""
        self._adding = Turn()
        n = sum(math.prod(shape) for shape in shapes.values())
        check_room(n, self.dtype.itemsize)
        self.params = {name: np.empty(shape, self.dtype) for name, shape in shapes.items()}
        self.grads = dict(self.params)
        zeros = aligned_zeros(n, self.dtype)
        self._bind(zeros, aligned_zeros(n, self.dtype), keep=False)

    def _bind(self, flat_params: Array, flat_grads: Array, *, keep: bool = True) -> None:
        """Move parameters and gradients into these buffers, which a model does with its members."""
        params, grads, start = {}, {}, 0
        for name, old in self.params.items():
            part = slice(start, start + old.size)
            params[name] = flat_params[part].reshape(old.shape)
            grads[name] = flat_grads[part].reshape(old.shape)
            if keep:
                params[name][...] = old
                grads[name][...] = self.grads[name]
            start = part.stop
        self.params, self.grads = params, grads
        self.flat_params, self.flat_grads = flat_params, flat_grads

    # Copies and pickles carry the named arrays; the flat buffers are made anew, or views would come apart from them.
    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("flat_params", "flat_grads")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        n = sum(p.size for p in self.params.values())
        self._bind(aligned_zeros(n, self.dtype), aligned_zeros(n, self.dtype))

    def __copy__(self) -> Layer:
        return copy.deepcopy(self)  # parameters cannot live in the buffers of two

    def zero_grad(self) -> None:
        """Set every gradient to zero."""
        self.flat_grads.fill(0)

    def _drop_gradients(self) -> None:
        """After a backward pass that was cut short, by Ctrl-C or for want of memory: half of one is worth nothing."""
        with self._adding.lock:
            self.flat_grads.fill(0)

    def state_dict(self) -> dict[str, Array]:
        """A copy of every parameter, by name."""
        return {name: value.copy() for name, value in self.params.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Copy parameters in; nothing is changed unless all of them fit.

        Parameters
        ----------
        state_dict : mapping of str to ndarray
            Just the names of `params`, with their shapes and the layer's dtype.

        Raises
        ------
        KeyError
            If a name is missing or unknown.
        TypeError, ValueError
            If a value has another dtype or shape.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"state_dict: expected a mapping of names to arrays, got {type(state_dict).__name__}")
        missing, unknown = self.params.keys() - state_dict.keys(), state_dict.keys() - self.params.keys()
        if missing or unknown:
            raise KeyError(f"state_dict: missing {sorted(missing, key=str)}, unknown {sorted(unknown, key=str)}")
        checked = {name: check_array(name, state_dict[name], self.dtype, p.shape) for name, p in self.params.items()}
        for name, value in checked.items():
            self.params[name][...] = value

    def generators(self) -> list[np.random.Generator]:
        """Return the generators that `forward` draws from.

        `fit` and checkpoints save their states, so that a step can be repeated.

        Returns
        -------
        list of numpy.random.Generator
            One for each layer that draws, in the order of the layers; the same one several times where layers share it.

        Examples
        --------
        >>> import gradcore
        >>> len(gradcore.LSTM(3, 5, num_layers=2, dropout=0.5).generators())
        1
        """
        return []

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self._describe())})"

    def _describe(self) -> Iterator[str]:
        """The constructor's arguments, as written."""
        yield f"dtype={self.dtype}"
