"""Models that chain layers of any kind."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from gradcore import init
from gradcore._base.check import Array, as_list, check_choice, check_int, check_number, check_rng
from gradcore.clip.norm import norm_of
from gradcore.layers.activations import _ACTIVATIONS
from gradcore.layers.composite import Composite
from gradcore.layers.layer import Layer, Sequences
from gradcore.layers.linear import Generator, Linear
from gradcore.layers.tape import Tape

__all__ = ["MLP", "Sequential", "SequentialTape"]


class SequentialTape(Tape):
    """Keep what `Sequential`'s `backward` needs, and the norms of the gradient between its layers.

    Parameters
    ----------
    layer : Sequential
        The model, whose `forward` makes the tape.
    shape : tuple of int
        The shape of y.
    tapes : sequence of Tape
        The layers' own tapes.

    Attributes
    ----------
    norms : list of float or None
        The same as `d_norm`, None instead of NaN; empty before `backward`.
    d_norm : ndarray, (number of layers + 1,), float64, or None
        The L2 norms of dL/d(input of layer i), then that of dL/dy; set by `backward`. From last to first they show
        where the gradient grows or vanishes. NaN where an input has no gradient, because it holds integers.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> model = gradcore.Sequential(gradcore.Linear(3, 2), gradcore.Tanh())
    >>> y, tape = model.forward(np.ones((5, 3), np.float32))
    >>> dx = model.backward(tape, np.ones_like(y))
    >>> tape.tapes[0], tape.d_norm.shape
    (<Tape of Linear(3, 2): y (5, 2)>, (3,))
    """

    layer: Sequential

    def __init__(self, layer: Sequential, shape: tuple[int, ...], tapes: Sequence[Tape]) -> None:
        super().__init__(layer, shape, tapes=tapes)
        self.norms: list[float | None] = []  # as d_norm has them, None instead of NaN where there is no gradient

    @property
    def d_norm(self) -> Array | None:
        """The norms as an array."""
        return np.array(self.norms, np.float64) if self.norms else None

    @property
    def is_chain(self) -> bool:
        """Whether the layers are applied one after the other; a subclass may do otherwise in a `forward` of its own."""
        return self.layer.is_chain

    def norms_at(self, i: int) -> tuple[float | None, float | None]:
        """Return the norms of dL/d(input) and dL/dy of one of the layers.

        Parameters
        ----------
        i : int
            Which layer.

        Returns
        -------
        tuple of two floats
            The norms; None before `backward`.
        """
        return (self.norms[i], self.norms[i + 1]) if self.norms else (None, None)

    def __repr__(self) -> str:
        return f"<SequentialTape of {type(self.layer).__name__}: {len(self.tapes)} layers>"


class Sequential(Composite):
    """Chain layers of any kind, and gather their parameters and gradients in one flat buffer each.

    Parameters are named by position, as in PyTorch: ``0.weight``, ``2.weight_ih_l0``. A layer belongs to one model
    only. Its parameters and gradients move into the model's buffers: `params` and `grads` of the layer follow, but
    arrays taken from them before become read-only, so build an optimizer afterwards. Layers without parameters take the
    dtype of those with parameters.

    ``len(model)`` is the number of layers, ``model[i]`` one of them, and a slice a tuple of layers.

    Parameters
    ----------
    *layers : Layer
        Feed-forward or recurrent layers, or other models. A recurrent layer passes y on.

    Attributes
    ----------
    layers : tuple of Layer
        The members.
    names : tuple of str
        Their positions.

    Raises
    ------
    TypeError
        If a member is not a layer, or the dtypes differ.
    ValueError
        If a layer occurs twice or belongs to another model, if layers differ in `batch_first`, or if `LastStep` follows
        a bidirectional layer.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> rng = np.random.default_rng(0)
    >>> model = gradcore.Sequential(gradcore.LSTM(3, 8, rng=rng), gradcore.LastStep(), gradcore.Linear(8, 1, rng=rng))
    >>> y, tape = model.forward(np.ones((20, 5, 3), np.float32))
    >>> dx = model.backward(tape, np.ones_like(y))
    >>> y.shape, dx.shape, tape.d_norm.shape
    ((5, 1), (20, 5, 3), (4,))
    >>> model[2], list(model.params)[-2:]
    (Linear(8, 1), ['2.weight', '2.bias'])
    """

    def __init__(self, *layers: Layer) -> None:
        super().__init__(*layers)

    def _check_members(self) -> None:
        self._sequences_within("", Sequences())

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.layers)

    def __getitem__(self, index: int | slice) -> Any:
        return self.layers[index]

    @property
    def is_chain(self) -> bool:
        """Whether the layers are applied one after the other; a subclass may do otherwise in a `forward` of its own."""
        return type(self).forward is Sequential.forward

    def _sequences_within(self, prefix: str, before: Sequences) -> Sequences:
        """Check that members fit their neighbors, and return what the last one passes on."""
        for i, layer in enumerate(self.layers):
            before = layer._sequences_after(f"{prefix}layers[{i}]", before)
        return before

    def _sequences_after(self, where: str, before: Sequences) -> Sequences:
        return self._sequences_within(f"{where}.", before) if self.is_chain else Sequences()

    def __call__(self, x: Array, state: Any = None, lengths: Any = None, reset: Any = None) -> Any:
        """Return the output, without dropout and without a tape, and the final state if an initial one is given.

        Parameters
        ----------
        x : ndarray
            The input of the first layer.
        state : tuple, optional
            The initial state of each recurrent layer, also of those in nested models, in order; None for zeros.
        lengths : array_like of int, (B,), optional
            The length of each sequence, for the recurrent layers and `LastStep`.
        reset : array_like of bool, (T, B), or (B, T) with `batch_first`, optional
            Where a sequence begins anew, for the recurrent layers.

        Returns
        -------
        y : ndarray
            The output of the last layer.
        state : tuple
            The final state of each recurrent layer; only if there is an initial one.

        Examples
        --------
        >>> import numpy as np, gradcore
        >>> model = gradcore.Sequential(gradcore.GRU(3, 4), gradcore.Linear(4, 1))
        >>> x = np.ones((7, 2, 3), np.float32)
        >>> y = model(x)
        >>> first, state = model(x[:5], model.initial_state(2))
        >>> rest, state = model(x[5:], state)
        >>> bool(np.allclose(np.concatenate([first, rest]), y))
        True
        """
        given = self._given(lengths=lengths, reset=reset)
        final: list[Any] = []
        for layer, its in zip(self.layers, self._states_of_members("state", state), strict=True):
            options = {name: given[name] for name in layer.takes & given.keys()} if given else {}
            y = layer(x, **options) if its is None else layer(x, state=its, **options)
            x, after = y if isinstance(y, tuple) else (y, ())  # a recurrent layer always returns its state
            if layer.n_states:
                final += after if isinstance(layer, Composite) else [after]
        return x if state is None else (x, tuple(final))

    def forward(
        self, x: Array, state: Any = None, lengths: Any = None, reset: Any = None
    ) -> tuple[Array, SequentialTape]:
        """Return the output, and the tape that `backward` needs.

        Parameters
        ----------
        x : ndarray
            The input of the first layer.
        state : tuple, optional
            The initial state of each recurrent layer, also of those in nested models, in order; None for zeros.
        lengths : array_like of int, (B,), optional
            The length of each sequence, for the recurrent layers and `LastStep`.
        reset : array_like of bool, (T, B), or (B, T) with `batch_first`, optional
            Where a sequence begins anew, for the recurrent layers.

        Returns
        -------
        y : ndarray
            The output of the last layer.
        tape : SequentialTape
            What `backward` needs; `tape.state` is the final state, a tuple as the initial one.

        Raises
        ------
        TypeError, ValueError
            If a layer gets the wrong dtype or shape, or no layer takes `state`, `lengths` or `reset`.

        Examples
        --------
        >>> import numpy as np, gradcore
        >>> model = gradcore.Sequential(gradcore.Linear(3, 4), gradcore.ReLU(), gradcore.Linear(4, 1))
        >>> y, tape = model.forward(np.ones((5, 3), np.float32))
        >>> y.shape, len(tape.tapes)
        ((5, 1), 3)
        """
        given = self._given(lengths=lengths, reset=reset)
        tapes: list[Tape] = []
        for layer, its in zip(self.layers, self._states_of_members("state", state), strict=True):
            options = {name: given[name] for name in layer.takes & given.keys()} if given else {}
            x, tape = layer.forward(x, **options) if its is None else layer.forward(x, state=its, **options)
            tapes.append(tape)
        return x, SequentialTape(self, np.shape(x), tapes)

    def backward(
        self, tape: SequentialTape, dy: Array | None, dstate: Any = None, *, step_clip: float | None = None
    ) -> Array:
        """Return the gradient with respect to x, and add those of the parameters to `grads`.

        It sets `tape.d_norm` and `tape.dstate`. If interrupted or out of memory, it resets `grads` to zero.

        Parameters
        ----------
        tape : SequentialTape
            The tape from this model's `forward`.
        dy : ndarray or None
            The gradient with respect to y; None for zeros, if `dstate` is given.
        dstate : tuple, optional
            The gradient with respect to the final state of each recurrent layer, in order; None for zeros.
        step_clip : float, optional
            The limit of each sequence's dL/dh_t, for the recurrent layers.

        Returns
        -------
        ndarray
            The gradient with respect to x, of the shape of x.

        Raises
        ------
        TypeError, ValueError
            If dy has another dtype or shape than y, if the tape comes from another layer, or if no layer takes
            `step_clip`.
        RuntimeError
            If a signal handler calls it in the middle of a backward pass of one of the layers.

        Examples
        --------
        >>> import numpy as np, gradcore
        >>> model = gradcore.Sequential(gradcore.GRU(3, 4), gradcore.LastStep(), gradcore.Linear(4, 1))
        >>> y, tape = model.forward(np.ones((7, 2, 3), np.float32))
        >>> dx = model.backward(tape, np.ones_like(y), step_clip=1.0)
        >>> dx.shape, tape.d_norm.shape
        ((7, 2, 3), (4,))
        """
        self.check_tape(tape)
        given = self._given(step_clip=step_clip)
        self._check_dstate(tape, dstate)
        dstates = list(self._states_of_members("dstate", dstate))
        if dy is None:
            if dstate is None:
                raise TypeError("dy: expected an array, got None; it can be None only with a dstate")
            dy = np.zeros(tape.shape, self.dtype)
        if step_clip is not None:  # before the layers above the recurrent ones have added to their gradients
            check_number("step_clip", step_clip, least=0.0)
        self._refuse_reentry()
        try:
            return self._backward(tape, dy, dstates, given)
        except (TypeError, ValueError):
            raise
        except BaseException:
            self._drop_gradients()
            raise

    def _check_dstate(self, tape: Any, dstate: Any) -> None:
        for layer, its, part in zip(self.layers, tape.tapes, self._states_of_members("dstate", dstate), strict=True):
            if part is not None:
                layer._check_dstate(its, part)

    def _backward(self, tape: SequentialTape, dy: Array, dstates: list[Any], given: dict[str, Any]) -> Array:
        d = dy
        norms: list[float | None] = []
        for i, layer in reversed(list(enumerate(self.layers))):
            options = {name: given[name] for name in layer.takes & given.keys()} if given else {}
            if dstates[i] is not None:
                options["dstate"] = dstates[i]
            dx = layer.backward(tape.tapes[i], d, **options)
            norms.append(norm_of(d))
            d = dx
        tape.norms = [*norms, norm_of(d)][::-1]
        return d

    def forward_tangent(self, tape: SequentialTape, x_dot: Array) -> tuple[Array, list[Any]]:
        """Return how the output changes when x moves in the direction of `x_dot`, layer after layer.

        Parameters
        ----------
        tape : SequentialTape
            The tape from this model's `forward`.
        x_dot : ndarray
            The tangent of x, of the shape of x.

        Returns
        -------
        y_dot : ndarray
            The tangent of y, of the shape of y.
        tangent : list
            What `backward_tangent` needs besides the tape.
        """
        self.check_tape(tape)
        tangents: list[Any] = []
        for layer, its in zip(self.layers, tape.tapes, strict=True):
            x_dot, tangent = layer.forward_tangent(its, x_dot)
            tangents.append(tangent)
        return x_dot, tangents

    def backward_tangent(
        self, tape: SequentialTape, tangent: list[Any], dy: Array, dy_dot: Array
    ) -> tuple[Array, Array]:
        """Return how the backward pass changes when x moves, and add how the gradients of the parameters do.

        If interrupted or out of memory, it resets `grads` to zero.

        Parameters
        ----------
        tape : SequentialTape
            The tape from this model's `forward`.
        tangent : list
            What `forward_tangent` returned beside the tangent of y.
        dy : ndarray
            The gradient with respect to y.
        dy_dot : ndarray
            The tangent of dy.

        Returns
        -------
        dx : ndarray
            The gradient with respect to x.
        dx_dot : ndarray
            The tangent of dx.
        """
        self.check_tape(tape)
        dy, dy_dot = self.check("dy", dy, tape.shape), self.check("dy_dot", dy_dot, tape.shape)
        with self._adding_or_zero():
            for layer, its, part in reversed(list(zip(self.layers, tape.tapes, tangent, strict=True))):
                dy, dy_dot = layer.backward_tangent(its, part, dy, dy_dot)
        return dy, dy_dot


# How each initializer fills a weight that an activation of this name follows; the others need more arguments.
_INITS: dict[str, Callable[[Array, str, Generator], Array]] = {
    "xavier_uniform": lambda w, name, rng: init.xavier_uniform_(w, init.calculate_gain(name), rng=rng),
    "xavier_normal": lambda w, name, rng: init.xavier_normal_(w, init.calculate_gain(name), rng=rng),
    "kaiming_uniform": lambda w, name, rng: init.kaiming_uniform_(w, a=0.01, nonlinearity=name, rng=rng),
    "kaiming_normal": lambda w, name, rng: init.kaiming_normal_(w, a=0.01, nonlinearity=name, rng=rng),
    "lecun_normal": lambda w, _, rng: init.lecun_normal_(w, rng=rng),
    "orthogonal": lambda w, name, rng: init.orthogonal_(w, init.calculate_gain(name), rng=rng),
    "eye": lambda w, _, rng: init.eye_(w),
    "uniform": lambda w, _, rng: init.uniform_(w, rng=rng),
    "normal": lambda w, _, rng: init.normal_(w, rng=rng),
}


class MLP(Sequential):
    """Multilayer perceptron: linear layers with an activation between them, and none after the last.

    Weights are drawn by `init` with the gain that fits the activation, in all layers alike [1]_; biases are zero.

    Parameters
    ----------
    sizes : sequence of int
        The number of features of the input, of each hidden layer, and of the output; at least two.
    activation : str
        The activation: "identity", "tanh", "sigmoid", "relu", "leaky_relu", "elu", "selu", "gelu", "softplus" or
        "silu".
    init : str
        The initializer, a name of `gradcore.init` without the final underscore: "xavier_uniform", "xavier_normal",
        "kaiming_uniform", "kaiming_normal", "lecun_normal", "orthogonal", "eye", "uniform" or "normal".
    bias : bool
        Whether the linear layers have biases.
    dtype : dtype
        The dtype of parameters, inputs and outputs, float32 or float64.
    rng : int or numpy.random.Generator, optional
        The generator, or the seed of one, that draws the weights.

    Raises
    ------
    ValueError
        If there are fewer than two sizes, or a name is unknown.

    References
    ----------
    .. [1] He, Zhang, Ren and Sun, "Delving deep into rectifiers", arXiv 1502.01852, 2015, section 2.2.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> model = gradcore.MLP([4] + 10 * [64] + [1], activation="tanh", rng=np.random.default_rng(0))
    >>> y, tape = model.forward(np.ones((3, 4), np.float32))
    >>> dx = model.backward(tape, np.ones_like(y))
    >>> len(model.layers), y.shape, tape.d_norm.shape
    (21, (3, 1), (22,))
    """

    def __init__(
        self,
        sizes: Sequence[int],
        activation: str = "relu",
        init: str = "kaiming_normal",
        *,
        bias: bool = True,
        dtype: DTypeLike = np.float32,
        rng: int | Generator | None = None,
    ) -> None:
        checked = [check_int(f"sizes[{i}]", n) for i, n in enumerate(as_list("sizes", sizes, "a sequence of integers"))]
        if len(checked) < 2:
            raise ValueError(f"sizes: expected at least two, got {checked}")
        check_choice("activation", activation, _ACTIVATIONS)
        check_choice("init", init, _INITS)
        rng = check_rng(rng)
        layers: list[Any] = []
        for n_in, n_out in itertools.pairwise(checked):
            layer = Linear(n_in, n_out, bias, dtype=dtype, rng=rng)
            layer.flat_params.fill(0)
            _INITS[init](layer.params["weight"], activation, rng)
            layers += [layer, _ACTIVATIONS[activation](dtype=dtype)]
        super().__init__(*layers[:-1])
        self.sizes, self.activation, self.init, self.bias = tuple(checked), activation, init, layers[0].bias
