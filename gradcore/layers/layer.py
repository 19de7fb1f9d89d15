"""The base of every layer and model."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from gradcore._base.check import Array, as_array, check_array, check_dtype, check_room, describe_shape
from gradcore._base.lock import Turn
from gradcore._base.memory import aligned_zeros
from gradcore._base.views import Arrays, Views, split
from gradcore.layers.tape import Tape

__all__ = ["Layer"]


class Sequences(NamedTuple):
    """What `Sequential` knows of the sequences that one layer passes to the next."""

    source: str = ""  # the recurrent layer that they come from
    batch_first: bool | None = None  # whether they are (B, T, F) instead of (T, B, F); None if unknown
    reverse: bool = False  # whether they hold outputs of a reverse direction
    mixed: str = ""  # the layer that has mixed their features, so that they are no longer those of one direction each

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
    optimizers, in `fit`, and with everything else that takes a layer. It keeps each argument of its constructor as an
    attribute of the same name, from which `config` and `repr` follow. One that infers in another way than it trains
    also writes `__call__`; one that is made of other layers begins from `Composite`. `gradient_penalty` also needs
    `forward_tangent` and `backward_tangent`.

    Parameters
    ----------
    shapes : mapping of str to tuple of int, optional
        The shape of each parameter, which is zero to begin with.
    buffers : mapping of str to ndarray, optional
        What the layer keeps besides its parameters, such as running means, and how it begins; it is copied.
    dtype : dtype
        The dtype of parameters, inputs and outputs, float32 or float64.

    Attributes
    ----------
    dtype : numpy.dtype
        float32 or float64: of parameters, inputs and outputs alike.
    takes : frozenset of str
        The further arguments that a model passes to it: "lengths" and "reset" to `forward`, "step_clip" to `backward`.
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
    >>> model[1]
    Scale(4)
    """

    takes: frozenset[str] = frozenset()
    n_states: int = 0
    names: tuple[str, ...] = ()  # of the layers that it consists of
    dtype: np.dtype[Any]
    _params: Views
    _grads: Views
    _buffers: Arrays
    _adding: Turn  # to the gradients

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        buffers: Mapping[str, ArrayLike] | None = None,
        *,
        dtype: DTypeLike = np.float32,
    ) -> None:
        self.dtype = check_dtype(dtype)
        self._adding = Turn()
        shapes = {} if shapes is None else shapes
        n = sum(math.prod(shape) for shape in shapes.values())
        check_room(n, self.dtype.itemsize)
        params, grads = aligned_zeros(n, self.dtype), aligned_zeros(n, self.dtype)
        self._params = Views("params", split(params, shapes), params)
        self._grads = Views("grads", split(grads, shapes), grads)
        started = {} if buffers is None else buffers
        for name in started:
            if name in shapes:
                raise ValueError(f"buffers: {name!r} is the name of a parameter")
        self._buffers = Arrays("buffers", {name: np.array(as_array(name, value)) for name, value in started.items()})

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
            self._params.load(values)

    @property
    def grads(self) -> Views:
        """The gradients by PyTorch's names, as views of `flat_grads`; assigning copies, as for `params`."""
        return self._grads

    @grads.setter
    def grads(self, values: Any) -> None:
        if values is not self._grads:
            self._grads.load(values)

    @property
    def buffers(self) -> Arrays:
        """What the layer keeps besides its parameters, by name; assigning copies, as for `params`."""
        return self._buffers

    @buffers.setter
    def buffers(self, values: Any) -> None:
        self.buffers.load(values)

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
        named = {"_params": self._params, "_grads": self._grads, "_buffers": self._buffers}
        return vars(self) | {name: dict(arrays) for name, arrays in named.items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        n = sum(p.size for p in state["_params"].values())
        empty = np.empty(0, self.dtype)
        self._params, self._grads = Views("params", state["_params"], empty), Views("grads", state["_grads"], empty)
        self._buffers = Arrays("buffers", state["_buffers"])
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
        """Return a copy of every parameter and buffer, by name.

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
        return {name: value.copy() for name, value in (self.params | self.buffers).items()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Copy parameters and buffers in; change nothing unless all of them fit.

        Parameters
        ----------
        state_dict : mapping of str to ndarray
            An array for each name in `params` and `buffers`, of the same shape and dtype.

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
        Arrays("state_dict", self.params | self.buffers).load(state_dict)

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

    def forward_tangent(self, tape: Any, x_dot: Any) -> tuple[Any, Any]:
        r"""Return how the output changes when x moves in the direction of `x_dot`; for subclasses to write.

        With J the Jacobian of the forward pass on the tape, random draws included, that is :math:`\dot y = J \dot x`.

        Parameters
        ----------
        tape : Tape
            The tape from this layer's `forward`.
        x_dot : ndarray
            The tangent of x, of the shape of x.

        Returns
        -------
        y_dot : ndarray
            The tangent of y, of the shape of y.
        tangent : object
            What `backward_tangent` needs besides the tape.

        Examples
        --------
        The `Scale` of the example above, and what it needs for `gradient_penalty`:

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
        ...
        ...     def forward_tangent(self, tape, x_dot):
        ...         return x_dot * self.params["weight"], x_dot
        ...
        ...     def backward_tangent(self, tape, x_dot, dy, dy_dot):
        ...         (x,) = tape.kept
        ...         self.grads["weight"] += (dy_dot * x + dy * x_dot).reshape(-1, self.features).sum(axis=0)
        ...         return dy * self.params["weight"], dy_dot * self.params["weight"]
        >>> critic = gradcore.Sequential(Scale(3), gradcore.Linear(3, 1, rng=0))
        >>> gradcore.gradient_penalty(critic, np.ones((5, 3), np.float32)) > 0
        True
        """
        raise NotImplementedError(f"{type(self).__name__}: has no forward_tangent")

    def backward_tangent(self, tape: Any, tangent: Any, dy: Any, dy_dot: Any) -> tuple[Any, Any]:
        """Return how the backward pass changes when x moves as in `forward_tangent`; for subclasses to write.

        What `backward` would add to `grads` changes too: that change is added to `grads`, and nothing else is.

        Parameters
        ----------
        tape : Tape
            The tape from this layer's `forward`.
        tangent : object
            What `forward_tangent` returned beside the tangent of y.
        dy : ndarray
            The gradient with respect to y.
        dy_dot : ndarray
            The tangent of dy.

        Returns
        -------
        dx : ndarray
            The gradient with respect to x, as `backward` returns it.
        dx_dot : ndarray
            The tangent of dx.
        """
        raise NotImplementedError(f"{type(self).__name__}: has no backward_tangent")

    def _refuse_without_tangent(self, name: str) -> None:
        """Raise unless the tangents of this layer, called `name` in errors, belong to its passes.

        A subclass that writes `forward` or `backward` anew has to write the tangents anew as well.
        """
        line = type(self).__mro__
        passes, tangents = (
            [next(i for i, cls in enumerate(line) if method in vars(cls)) for method in methods]
            for methods in (("forward", "backward"), ("forward_tangent", "backward_tangent"))
        )
        if max(tangents) > min(passes):
            raise TypeError(
                f"{name}: {type(self).__name__} has no forward_tangent and backward_tangent for its forward and "
                "backward; gradcore.Layer says what they do"
            )

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

    def _add_gradients(self, other: Layer) -> None:
        """Add the gradients of a layer of the same kind."""
        with self._adding.lock:
            self.flat_grads += other.flat_grads

    def _adding_or_zero(self) -> _AddingOrZero:
        """Set the gradients to zero if what adds to them in this context does not reach its end."""
        return _AddingOrZero(self)

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

    def config(self) -> dict[str, Any]:
        """Return the arguments of the constructor, but for `rng`, by name.

        Another layer of the same kind is ``type(layer)(**layer.config())``. Of a model the members themselves are among
        the arguments; `copy.deepcopy` gives another one.

        Returns
        -------
        dict of str to object
            The arguments; the dtype is text.

        Raises
        ------
        AttributeError
            If a layer of your own keeps an argument under no attribute of that name.

        Examples
        --------
        >>> import gradcore
        >>> gradcore.Linear(3, 2, bias=False).config()
        {'in_features': 3, 'out_features': 2, 'bias': False, 'dtype': 'float32'}
        """
        return {argument.name: self._argument(argument.name) for argument in self._arguments()}

    def _arguments(self) -> list[inspect.Parameter]:
        return [argument for name, argument in inspect.signature(type(self)).parameters.items() if name != "rng"]

    def _argument(self, name: str) -> Any:
        if name == "dtype":
            return self.dtype.name
        try:
            return getattr(self, name)
        except AttributeError:
            raise AttributeError(f"config: {type(self).__name__} keeps its argument {name!r} in no attribute") from None

    def __repr__(self) -> str:
        written: list[str] = []
        for argument in self._arguments():
            name, default = argument.name, argument.default
            try:
                value = self._argument(name)
            except AttributeError:
                written.append("...")
                continue
            if argument.kind is argument.VAR_POSITIONAL:
                written += map(repr, value)
            elif default is argument.empty and argument.kind is not argument.KEYWORD_ONLY:
                written.append(repr(value))
            elif repr(value) != repr(np.dtype(default).name if name == "dtype" else default):
                written.append(f"{name}={value!r}")
        return f"{type(self).__name__}({', '.join(written)})"


class _AddingOrZero:
    """What `Layer._adding_or_zero` returns; a generator would take longer than the backward pass of a small layer."""

    __slots__ = ("_layer",)

    def __init__(self, layer: Layer) -> None:
        self._layer = layer

    def __enter__(self) -> None:
        self._layer._refuse_reentry()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._layer._drop_gradients()


def _assign(name: str, flat: Array, values: Any) -> None:
    if values is not flat:
        flat[...] = check_array(name, values, flat.dtype, flat.shape)
