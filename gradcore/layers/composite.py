"""Layers that are made of other layers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary, ref

import numpy as np

from gradcore._base.check import Array, check_int
from gradcore._base.memory import aligned_zeros
from gradcore._base.views import Arrays
from gradcore.layers.layer import Layer

__all__ = ["Composite"]

# Which composite holds a layer's parameters in its buffers.
_OWNERS: WeakKeyDictionary[Layer, ref[Composite]] = WeakKeyDictionary()


class Composite(Layer):
    """Base of layers that are made of other layers, whose parameters and gradients it gathers in one buffer each.

    A subclass writes `forward`, `backward` and, for inference, `__call__`. Its tape holds those of the members.

    Parameters are named after the member: ``0.weight`` where it has a position, ``inner.weight`` where it has a name. A
    layer belongs to one composite only. Its parameters and gradients move into the composite's buffers: `params` and
    `grads` of the layer follow, but arrays taken from them before become read-only. Layers without parameters take the
    dtype of those with parameters.

    Parameters
    ----------
    *layers : Layer
        The members that are named by their positions.
    **named : Layer
        The members with names, under which they also become attributes.

    Attributes
    ----------
    layers : tuple of Layer
        The members.
    names : tuple of str
        Their names.

    Raises
    ------
    TypeError
        If a member is not a layer, or the dtypes differ.
    ValueError
        If a layer occurs twice or belongs to another composite.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> class Sum(gradcore.Composite):
    ...     def __init__(self, left, right):
    ...         super().__init__(left=left, right=right)
    ...
    ...     def __call__(self, x):
    ...         return self.left(x) + self.right(x)
    ...
    ...     def forward(self, x):
    ...         (y, left), (z, right) = self.left.forward(x), self.right.forward(x)
    ...         return y + z, gradcore.Tape(self, y.shape, tapes=[left, right])
    ...
    ...     def backward(self, tape, dy):
    ...         self.check_tape(tape)
    ...         left, right = tape.tapes
    ...         return self.left.backward(left, dy) + self.right.backward(right, dy)
    >>> model = gradcore.Sequential(Sum(gradcore.Linear(3, 3), gradcore.Linear(3, 3, bias=False)), gradcore.ReLU())
    >>> y, tape = model.forward(np.ones((2, 3), np.float32))
    >>> model.backward(tape, np.ones_like(y)).shape, list(model.params)
    ((2, 3), ['0.left.weight', '0.left.bias', '0.right.weight'])
    """

    layers: tuple[Any, ...]

    def __init__(self, *layers: Layer, **named: Layer) -> None:
        members = {f"layers[{i}]": layer for i, layer in enumerate(layers)} | named
        self._refuse_others(members)
        self.layers = tuple(members.values())
        self.names = (*map(str, range(len(layers))), *named)
        vars(self).update(named)
        self.takes = frozenset().union(*(layer.takes for layer in self.layers))
        self.n_states = sum(layer.n_states for layer in self.layers)
        self._check_members()
        dtypes = [layer.dtype for layer in self.layers if _has_dtype(layer)] or [layer.dtype for layer in self.layers]
        super().__init__(dtype=dtypes[0] if dtypes else np.float32)
        for layer in self.layers:
            _OWNERS[layer] = ref(self)
        _set_dtype(self, self.dtype)
        n = sum(layer.flat_params.size for layer in self.layers)
        self._bind(aligned_zeros(n, self.dtype), aligned_zeros(n, self.dtype))

    @staticmethod
    def _refuse_others(members: dict[str, Layer]) -> None:
        """Raise if members are no layers, occur twice, belong to others, or differ in dtype."""
        seen: dict[int, str] = {}
        for label, layer in members.items():
            if not isinstance(layer, Layer):
                raise TypeError(f"{label}: expected a layer, got {type(layer).__name__}")
            if id(layer) in seen:
                raise ValueError(f"{label}: is {seen[id(layer)]} again; a layer can occur only once")
            seen[id(layer)] = label
            if _OWNERS.get(layer, lambda: None)() is not None:
                raise ValueError(
                    f"{label}: {layer!r} belongs to another model; copy.deepcopy gives an independent layer"
                )
        dtypes = {layer.dtype: label for label, layer in reversed(members.items()) if _has_dtype(layer)}
        if len(dtypes) > 1:
            found = " and ".join(f"{dtype} ({label})" for dtype, label in reversed(dtypes.items()))
            raise TypeError(f"layers: expected one dtype, got {found}")

    def _check_members(self) -> None:
        """Raise if the members do not fit each other, before anything of them has changed."""

    @property
    def is_chain(self) -> bool:
        """Whether the layers are applied one after the other."""
        return False

    def _bind(self, flat_params: Array, flat_grads: Array) -> None:
        """Move the members' parameters and gradients into parts of these buffers."""
        params: dict[str, Array] = {}
        grads: dict[str, Array] = {}
        start = 0
        for prefix, layer in zip(self.names, self.layers, strict=True):
            part = slice(start, start + layer.flat_params.size)
            layer._bind(flat_params[part], flat_grads[part])
            params |= {f"{prefix}.{name}": p for name, p in layer.params.items()}
            grads |= {f"{prefix}.{name}": g for name, g in layer.grads.items()}
            start = part.stop
        self._params.follow(params, flat_params)
        self._grads.follow(grads, flat_grads)

    @property
    def buffers(self) -> Arrays:
        """What the members keep besides their parameters, by their names and its own."""
        found = {
            f"{prefix}.{name}": array
            for prefix, layer in zip(self.names, self.layers, strict=True)
            for name, array in layer.buffers.items()
        }
        return Arrays("buffers", found)

    @buffers.setter
    def buffers(self, values: Any) -> None:
        self.buffers.load(values)

    def _refuse_reentry(self) -> None:
        for layer in self.layers:
            layer._refuse_reentry()

    def _drop_gradients(self) -> None:
        for layer in self.layers:
            layer._drop_gradients()

    def _add_gradients(self, other: Layer) -> None:
        assert isinstance(other, Composite)
        for layer, its in zip(self.layers, other.layers, strict=True):
            layer._add_gradients(its)

    def _refuse_without_tangent(self, name: str) -> None:
        """Raise unless the tangents of this layer, and those of its members, belong to their passes."""
        super()._refuse_without_tangent(name)
        for its, layer in zip(self.names, self.layers, strict=True):
            layer._refuse_without_tangent(f"{name}.{its}")

    def generators(self) -> list[np.random.Generator]:
        """Return the generators of all members, in order.

        Returns
        -------
        list of numpy.random.Generator
            One for each layer that draws; the same one several times where layers share it.

        Examples
        --------
        >>> import gradcore
        >>> gradcore.Sequential(gradcore.Linear(3, 2)).generators()
        []
        """
        return [rng for layer in self.layers for rng in layer.generators()]

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for layer in self.layers:
            _OWNERS[layer] = ref(self)

    def __repr__(self) -> str:
        try:
            self.config()
        except AttributeError:  # a subclass with other arguments, of which the members tell enough
            return f"{type(self).__name__}({', '.join(map(repr, self.layers))})"
        return super().__repr__()

    def __call__(self, x: Any) -> Any:
        """Return the output, without dropout and without a tape; for subclasses to write.

        Parameters
        ----------
        x : ndarray
            The input.

        Returns
        -------
        ndarray
            The output.
        """
        raise NotImplementedError(f"{type(self).__name__}: has no __call__; its members may differ in inference")

    # ---- the states of recurrent members -------------------------------------------------------------------------

    def initial_state(self, batch_size: int) -> tuple[Any, ...]:
        """Return the state from which recurrent members start by default: zeros.

        Parameters
        ----------
        batch_size : int
            B, the number of sequences.

        Returns
        -------
        tuple
            The state of each recurrent member, also of those in nested models, in order.

        Examples
        --------
        >>> import gradcore
        >>> model = gradcore.Sequential(gradcore.GRU(3, 4), gradcore.LSTM(4, 5))
        >>> h_gru, (h, c) = model.initial_state(2)
        >>> h_gru.shape, c.shape
        ((1, 2, 4), (1, 2, 5))
        """
        batch_size = check_int("batch_size", batch_size)
        states: list[Any] = []
        for layer in self.layers:
            if layer.n_states:
                its = layer.initial_state(batch_size)
                states += its if isinstance(layer, Composite) else [its]
        return tuple(states)

    def _states_of_members(self, name: str, state: Any) -> Iterator[Any]:
        """Yield what each member takes of the state: None without one, a tuple for one that has members itself."""
        if state is not None:
            if not self.n_states:
                raise ValueError(f"{name}: no layer of this model takes it")
            if not isinstance(state, (tuple, list)):
                raise TypeError(
                    f"{name}: expected a tuple with one entry for each of {self.n_states} recurrent layers, got "
                    f"{type(state).__name__}"
                )
            if len(state) != self.n_states:
                raise ValueError(
                    f"{name}: expected a tuple with one entry for each of {self.n_states} recurrent layers, got "
                    f"{len(state)}"
                )
        return self._parts(state)

    def _parts(self, state: Any) -> Iterator[Any]:
        start = 0
        for layer in self.layers:
            n = layer.n_states
            if state is None or not n:
                yield None
            else:
                yield tuple(state[start : start + n]) if isinstance(layer, Composite) else state[start]
            start += n

    def _given(self, **options: Any) -> dict[str, Any]:
        """Return the options that are not None, after a check that a member takes each."""
        given = {name: value for name, value in options.items() if value is not None}
        for name in given:
            if name not in self.takes:
                raise ValueError(f"{name}: no layer of this model takes it")
        return given


def _has_dtype(layer: Layer) -> bool:
    """Return whether arrays of the layer fix its dtype."""
    return bool(layer.params or layer.buffers)


def _set_dtype(layer: Layer, dtype: np.dtype[Any]) -> None:
    layer.dtype = dtype
    for member in layer.layers if isinstance(layer, Composite) else ():
        _set_dtype(member, dtype)
