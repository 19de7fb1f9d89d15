"""The base of every layer and model: one flat buffer of parameters, one of gradients, and named views of both."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import DTypeLike

from gradcore._base.check import Array, as_array, check_array, check_dtype, check_names, check_room, describe_shape
from gradcore._base.lock import Turn
from gradcore._base.memory import aligned_zeros

__all__ = ["Layer", "Member", "Profile", "Tape"]


class Views(dict[str, Array]):
    """Hold the named views of one flat buffer: `params` or `grads` of a layer.

    It reads like any dict. Assigning to a name copies the values into the view, after a check of dtype and shape;
    names cannot be added or removed. So no array here can come apart from the buffer. A copy is a plain dict.

    Parameters
    ----------
    label : str
        What errors call it.
    arrays : dict of str to ndarray
        The views.
    flat : ndarray, (n,)
        The buffer.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> layer = gradcore.Linear(2, 1)
    >>> layer.params.update(weight=np.ones((1, 2), np.float32), bias=np.zeros(1, np.float32))
    >>> layer.params["weight"] *= 2
    >>> layer.flat_params
    array([2., 2., 0.], dtype=float32)
    """

    def __init__(self, label: str, arrays: Mapping[str, Array], flat: Array) -> None:
        super().__init__(arrays)
        self._label, self.flat = label, flat

    def move(self, flat: Array) -> None:
        """Move the values into another buffer."""
        self.follow(split(flat, {name: view.shape for name, view in self.items()}), flat, keep=True)

    def follow(self, arrays: Mapping[str, Array], flat: Array, *, keep: bool = False) -> None:
        """Hold these views of another buffer from now on.

        Views of the old one become read-only: who still has some, an optimizer perhaps, would change what no layer
        reads any more, and learns so from an error.
        """
        for name, view in arrays.items():
            old = self.get(name)
            if old is not None and old is not view:
                if keep:
                    view[...] = old
                old.flags.writeable = False
            super().__setitem__(name, view)
        self.flat.flags.writeable = False
        self.flat = flat

    def load(self, label: str, values: Any) -> None:
        """Copy in a value for each name; `label` is what errors call the mapping."""
        check_names(label, values, self)
        self.update(values)

    def update(self, *values: Any, **named: Any) -> None:
        """Copy in the values of these names; nothing is changed unless all of them fit."""
        given = dict(*values, **named)
        for name in given:
            if name not in self:
                raise KeyError(f"{self._label}: expected one of {', '.join(self)}, got {name!r}")
        checked = {}
        for name, value in given.items():
            if value is not self[name]:  # as after params[name] *= 2
                fits = check_array(name, value, self.flat.dtype, self[name].shape)
                checked[name] = fits.copy() if np.may_share_memory(fits, self.flat) else fits
        for name, value in checked.items():
            self[name][...] = value

    def __setitem__(self, name: str, value: Any) -> None:
        self.update({name: value})

    def __ior__(self, values: Any) -> Views:  # type: ignore[override,misc]
        self.update(values)
        return self

    def _refuse(self, *_: Any) -> NoReturn:
        raise TypeError(f"{self._label}: names cannot be added or removed")

    __delitem__ = clear = pop = popitem = setdefault = _refuse

    def __reduce__(self) -> tuple[type[dict[str, Array]], tuple[dict[str, Array]]]:
        return dict, (dict(self),)


def split(flat: Array, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    """Return views of these shapes, one behind the other."""
    views, start = {}, 0
    for name, shape in shapes.items():
        end = start + math.prod(shape)
        views[name] = flat[start:end].reshape(shape)
        start = end
    return views


class Sequences(NamedTuple):
    """What `Sequential` knows of the sequences that one layer passes to the next."""

    source: str = ""  # the recurrent layer that they come from
    batch_first: bool | None = None  # whether they are (B, T, F) instead of (T, B, F); None if unknown
    reverse: bool = False  # whether they hold outputs of a reverse direction

    def refuse_other_axes(self, where: str, batch_first: bool) -> None:
        """Raise if a layer expects another order of the axes."""
        if self.batch_first is not None and self.batch_first != batch_first:
            raise ValueError(
                f"{where}: has batch_first={batch_first}, and {self.source} below it has "
                f"batch_first={self.batch_first}; give both the same"
            )


class Layer:
    """Base of all layers and models, and of your own ones.

    A subclass names its parameters and their shapes, and writes `forward`, which returns the output and a `Tape`, and
    `backward`, which adds to `grads` and returns the gradient with respect to x. It then works in models, with the
    optimizers, in `fit`, and with everything else that takes a layer. One that infers in another way than it trains
    also writes `__call__`; one that is made of other layers begins from `Composite`.

    Parameters
    ----------
    shapes : mapping of str to tuple of int, optional
        The shape of each parameter, which is zero to begin with.
    dtype : dtype
        The dtype of parameters, inputs and outputs, float32 or float64.

    Attributes
    ----------
    dtype : numpy.dtype
        float32 or float64: of parameters, inputs and outputs alike.
    takes : frozenset of str
        The further arguments that a model passes to it: "lengths" to `forward`, "step_clip" to `backward`.
    n_states : int
        The number of states: 1 for a recurrent layer, which takes `state` and `dstate`, more for a model of several.
    names : tuple of str
        The names of the layers that it consists of.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> class Scale(gradcore.Layer):
    ...     def __init__(self, features, *, dtype=np.float32):
    ...         super().__init__({"weight": (features,)}, dtype=dtype)
    ...         self.features = features
    ...         self.params["weight"] = np.ones(features, dtype)
    ...
    ...     def forward(self, x):
    ...         x = self.check("x", x, (..., self.features))
    ...         return x * self.params["weight"], gradcore.Tape(self, x.shape, x)
    ...
    ...     def backward(self, tape, dy):
    ...         self.check_tape(tape)
    ...         (x,), dy = tape.kept, self.check("dy", dy, tape.shape)
    ...         self.grads["weight"] += (dy * x).reshape(-1, self.features).sum(axis=0)
    ...         return dy * self.params["weight"]
    >>> model = gradcore.Sequential(gradcore.Linear(3, 4), Scale(4))
    >>> y, tape = model.forward(np.ones((2, 3), np.float32))
    >>> dx = model.backward(tape, np.ones_like(y))
    >>> norm = gradcore.optim.SGD(model, lr=0.1).step(max_norm=1.0)
    >>> list(norm.per_array), dx.shape
    (['0.weight', '0.bias', '1.weight'], (2, 3))
    """

    takes: frozenset[str] = frozenset()
    n_states: int = 0
    names: tuple[str, ...] = ()  # of the layers that it consists of
    dtype: np.dtype[Any]
    _params: Views
    _grads: Views
    _adding: Turn  # to the gradients

    def __init__(self, shapes: Mapping[str, tuple[int, ...]] | None = None, *, dtype: DTypeLike = np.float32) -> None:
        self.dtype = check_dtype(dtype)
        self._adding = Turn()
        shapes = {} if shapes is None else shapes
        n = sum(math.prod(shape) for shape in shapes.values())
        check_room(n, self.dtype.itemsize)
        params, grads = aligned_zeros(n, self.dtype), aligned_zeros(n, self.dtype)
        self._params = Views("params", split(params, shapes), params)
        self._grads = Views("grads", split(grads, shapes), grads)

    def _bind(self, flat_params: Array, flat_grads: Array) -> None:
        """Move parameters and gradients into these buffers, which a model does with its members."""
        self._params.move(flat_params)
        self._grads.move(flat_grads)

    @property
    def params(self) -> Views:
        """The parameters by PyTorch's names, as views of `flat_params`.

        ``params[name] = array`` copies into the view, after the checks of `load_state_dict`.
        """
        return self._params

    @params.setter
    def params(self, values: Any) -> None:
        if values is not self._params:
            self._params.load("params", values)

    @property
    def grads(self) -> Views:
        """The gradients by PyTorch's names, as views of `flat_grads`; assigning copies, as for `params`."""
        return self._grads

    @grads.setter
    def grads(self, values: Any) -> None:
        if values is not self._grads:
            self._grads.load("grads", values)

    @property
    def flat_params(self) -> Array:
        """All parameters, (n,): one contiguous, 64-byte-aligned buffer; assigning copies into it."""
        return self._params.flat

    @flat_params.setter
    def flat_params(self, values: Any) -> None:
        _assign("flat_params", self._params.flat, values)

    @property
    def flat_grads(self) -> Array:
        """All gradients, (n,): one contiguous, 64-byte-aligned buffer; assigning copies into it."""
        return self._grads.flat

    @flat_grads.setter
    def flat_grads(self, values: Any) -> None:
        _assign("flat_grads", self._grads.flat, values)

    # Copies and pickles carry the named arrays, and get flat buffers of their own: a copy of a view is not a view.
    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_params": dict(self._params), "_grads": dict(self._grads)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        n = sum(p.size for p in state["_params"].values())
        empty = np.empty(0, self.dtype)
        self._params, self._grads = Views("params", state["_params"], empty), Views("grads", state["_grads"], empty)
        self._bind(aligned_zeros(n, self.dtype), aligned_zeros(n, self.dtype))

    def __copy__(self) -> Layer:
        return copy.deepcopy(self)  # parameters cannot live in the buffers of two

    def zero_grad(self) -> None:
        """Set every gradient to zero.

        Examples
        --------
        >>> import numpy as np, gradcore
        >>> layer = gradcore.Linear(2, 1)
        >>> y, tape = layer.forward(np.ones((3, 2), np.float32))
        >>> dx = layer.backward(tape, np.ones_like(y))
        >>> layer.zero_grad()
        >>> layer.flat_grads
        array([0., 0., 0.], dtype=float32)
        """
        self.flat_grads.fill(0)

    def _drop_gradients(self) -> None:
        """Set the gradients to zero after an interrupted backward pass, which has added a part of them."""
        with self._adding.lock:
            self.flat_grads.fill(0)

    def state_dict(self) -> dict[str, Array]:
        """Return a copy of every parameter, by name.

        Returns
        -------
        dict of str to ndarray
            The copies.

        Examples
        --------
        >>> import gradcore
        >>> list(gradcore.Linear(3, 2).state_dict())
        ['weight', 'bias']
        """
        return {name: value.copy() for name, value in self.params.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Copy parameters in; change nothing unless all of them fit.

        Parameters
        ----------
        state_dict : mapping of str to ndarray
            An array for each name in `params`, of the same shape and the layer's dtype.

        Raises
        ------
        KeyError
            If a name is missing or unknown.
        TypeError, ValueError
            If a value has the wrong dtype or shape.

        Examples
        --------
        >>> import gradcore
        >>> layer, other = gradcore.Linear(3, 2), gradcore.Linear(3, 2)
        >>> layer.load_state_dict(other.state_dict())
        >>> bool((layer.flat_params == other.flat_params).all())
        True
        """
        self._params.load("state_dict", state_dict)

    def __call__(self, x: Any) -> Any:
        """Return the output in inference, without keeping a tape.

        Parameters
        ----------
        x : ndarray
            The input.

        Returns
        -------
        ndarray
            The output.
        """
        return self.forward(x)[0]

    def forward(self, x: Any) -> tuple[Any, Any]:
        """Return the output, and the tape that `backward` needs; for subclasses to write.

        Parameters
        ----------
        x : ndarray
            The input.

        Returns
        -------
        y : ndarray
            The output.
        tape : Tape
            What `backward` needs.
        """
        raise NotImplementedError(f"{type(self).__name__}: has no forward")

    def backward(self, tape: Any, dy: Any) -> Any:
        """Return the gradient with respect to x, and add those of the parameters to `grads`; for subclasses to write.

        Parameters
        ----------
        tape : Tape
            The tape from this layer's `forward`.
        dy : ndarray
            The gradient with respect to y.

        Returns
        -------
        ndarray or None
            The gradient with respect to x; None if x has none, because it holds integers.
        """
        raise NotImplementedError(f"{type(self).__name__}: has no backward")

    def check(self, name: str, value: Any, shape: tuple[Any, ...]) -> Array:
        """Return an argument as a contiguous array, after a check of its dtype and shape.

        Parameters
        ----------
        name : str
            What errors call it.
        value : ndarray
            The argument, of the layer's dtype.
        shape : tuple of int or str
            The shape. An ellipsis in front stands for any leading axes; without one, a string such as "T" for any
            size.

        Returns
        -------
        ndarray
            The argument, copied only if its layout requires it.

        Raises
        ------
        TypeError, ValueError
            If it has another dtype or shape.

        Examples
        --------
        >>> import numpy as np, gradcore
        >>> layer = gradcore.Tanh()
        >>> layer.check("x", np.ones((7, 2, 3), np.float32), (..., 3)).shape
        (7, 2, 3)
        """
        if shape and shape[0] is ...:
            given, last = as_array(name, value).shape, shape[1:]
            if last and given[-len(last) :] != last:
                raise ValueError(f"{name}: expected shape {describe_shape(('...', *last))}, got {given}")
            shape = given
        return check_array(name, value, self.dtype, shape)

    def check_tape(self, tape: Any) -> None:
        """Raise if a tape is not from this layer's `forward`.

        Parameters
        ----------
        tape : Tape
            The tape that `backward` is given.

        Raises
        ------
        ValueError
            If the tape comes from another layer.
        """
        if not isinstance(tape, Tape) or tape.layer is not self:
            raise ValueError("tape: expected a tape from this layer's forward")

    def _check_dstate(self, tape: Any, dstate: Any) -> None:
        """Raise if the gradient of the final state does not fit, before any layer has added to its gradients."""

    def _refuse_reentry(self) -> None:
        """Raise if this thread is adding to the gradients already, before a backward pass has done anything."""
        self._adding.refuse_reentry()

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

    def _sequences_after(self, where: str, before: Sequences) -> Sequences:
        """Check that the layer, called `where` in errors, fits those below it, and return what it passes on.

        A layer that says nothing may do anything with the axes.
        """
        return Sequences()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self._describe())})"

    def _describe(self) -> Iterator[str]:
        """Yield the constructor's arguments as they would be written, but for defaults."""
        if self.dtype != np.float32:
            yield f"dtype={self.dtype.name!r}"


def _assign(name: str, flat: Array, values: Any) -> None:
    if values is not flat:
        flat[...] = check_array(name, values, flat.dtype, flat.shape)


class Profile(NamedTuple):
    """Hold the norms of the gradient over time in one layer and direction.

    Parameters
    ----------
    name : str
        Such as "l0" or "l1_reverse", as in the names of parameters; "2.l0" for the member of a model.
    reverse : bool
        Whether the direction runs from the last time step to the first.
    dh_norm : ndarray, (T,), float64
        The L2 norm over batch and units of dL/dh_t.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> layer = gradcore.GRU(3, 4)
    >>> y, tape = layer.forward(np.ones((6, 2, 3), np.float32))
    >>> dx = layer.backward(tape, np.ones_like(y))
    >>> (profile,) = tape.profiles()
    >>> profile.name, profile.reverse, profile.dh_norm.shape
    ('l0', False, (6,))
    """

    name: str
    reverse: bool
    dh_norm: Array


class Member(NamedTuple):
    """Hold one tape of those that `Tape.walk` yields, and what is known of the gradient at its layer.

    Parameters
    ----------
    name : str
        Such as "2" or "0.1", as the names of its parameters begin; "" for the model or layer itself.
    path : tuple of int
        Which of the model's tapes, which of that one's, and so on.
    tape : Tape
        The tape.
    in_chain : bool
        Whether every model around it applies its layers one after the other.
    dx_norm : float or None
        The L2 norm of dL/d(input); None where it is not known.
    dy_norm : float or None
        The L2 norm of dL/dy; None where it is not known.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> model = gradcore.MLP([3, 2])
    >>> y, tape = model.forward(np.ones((4, 3), np.float32))
    >>> dx = model.backward(tape, np.ones((4, 2), np.float32))
    >>> whole, linear = tape.walk()
    >>> linear.name, linear.in_chain, round(linear.dy_norm, 4)
    ('0', True, 2.8284)
    """

    name: str
    path: tuple[int, ...]
    tape: Tape
    in_chain: bool
    dx_norm: float | None = None
    dy_norm: float | None = None

    def profiles(self) -> Iterator[Profile]:
        """Yield the norms over time with full names.

        Yields
        ------
        Profile
            Those of a layer and direction.
        """
        for profile in self.tape.profiles():
            yield profile._replace(name=f"{self.name}.{profile.name}" if self.path else profile.name)


class Tape:
    """Keep what `backward` needs of a forward pass, and tell what `backward` has met.

    It keeps arrays, not copies, so leave x and y unchanged until `backward`. The methods and properties of a subclass
    tell more; here they tell nothing.

    Parameters
    ----------
    layer : Layer
        The layer, whose `forward` makes the tape.
    shape : tuple of int
        The shape of y.
    *kept : object
        What the layer's `backward` needs.
    tapes : sequence of Tape
        The tapes of the layers that it consists of.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> y, tape = gradcore.Linear(3, 2).forward(np.ones((5, 3), np.float32))
    >>> tape
    <Tape of Linear(3, 2): y (5, 2)>
    """

    def __init__(self, layer: Layer, shape: tuple[int, ...], *kept: Any, tapes: Sequence[Tape] = ()) -> None:
        for i, tape in enumerate(tapes):
            if not isinstance(tape, Tape):
                raise TypeError(f"tapes[{i}]: expected a Tape, got {type(tape).__name__}")
        if tapes and len(tapes) != len(layer.names):
            raise ValueError(f"tapes: expected one for each of {len(layer.names)} layers, got {len(tapes)}")
        self.layer, self.shape, self.kept, self.tapes = layer, shape, kept, tuple(tapes)

    @property
    def is_chain(self) -> bool:
        """Whether `tapes` belong to layers that are applied one after the other."""
        return False

    @property
    def first_nonfinite(self) -> tuple[int, int, int] | None:
        """Where the backward pass first met a value that is not finite: (layer, direction, t), or None."""
        return None

    @property
    def state(self) -> Any:
        """The final states of the recurrent layers that it consists of, a tuple in their order."""
        return self._gather("state")

    @property
    def dstate(self) -> Any:
        """The gradients with respect to their initial states, likewise; None before `backward`."""
        found = self._gather("dstate")
        return None if any(each is None for each in found) else found

    def _gather(self, name: str) -> tuple[Any, ...]:
        found: list[Any] = []
        for tape in self.tapes:
            if tape.tapes:
                found += tape._gather(name)
            elif tape.layer.n_states:
                found.append(getattr(tape, name))
        return tuple(found)

    def profiles(self) -> Iterator[Profile]:
        """Yield the norms of the gradient over time, for each layer and direction.

        Yields
        ------
        Profile
            The name, the direction and the norms.
        """
        yield from ()

    def norms_at(self, i: int) -> tuple[float | None, float | None]:
        """Return the norms of dL/d(input) and dL/dy of layer i of those in `tapes`.

        Parameters
        ----------
        i : int
            Which layer.

        Returns
        -------
        tuple of two floats
            The norms; None for one that is not known.
        """
        return None, None

    def walk(self) -> Iterator[Member]:
        """Yield this tape, and all those of which it consists.

        Yields
        ------
        Member
            A tape, its place, and the norms of the gradient there.

        Examples
        --------
        >>> import numpy as np, gradcore
        >>> model = gradcore.Sequential(gradcore.GRU(3, 4, bidirectional=True), gradcore.Linear(8, 1))
        >>> y, tape = model.forward(np.ones((6, 2, 3), np.float32))
        >>> dx = model.backward(tape, np.ones_like(y))
        >>> [member.name for member in tape.walk()]
        ['', '0', '1']
        >>> [profile.name for member in tape.walk() for profile in member.profiles()]
        ['0.l0', '0.l0_reverse']
        """
        yield from self._walk(Member("", (), self, in_chain=True))

    def _walk(self, member: Member) -> Iterator[Member]:
        yield member
        in_chain = member.in_chain and self.is_chain
        for i, tape in enumerate(self.tapes):
            name = f"{member.name}.{self.layer.names[i]}" if member.name else self.layer.names[i]
            yield from tape._walk(Member(name, (*member.path, i), tape, in_chain, *self.norms_at(i)))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.layer!r}: y {self.shape}>"
