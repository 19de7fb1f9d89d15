"""Feed-forward layers, and the models that chain layers of any kind."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar
from weakref import WeakKeyDictionary, ref

import numpy as np
from numpy.typing import DTypeLike

from gradcore import _kernels, init
from gradcore._check import (
    Array,
    as_array,
    as_list,
    check_array,
    check_bool,
    check_choice,
    check_dtype,
    check_int,
    check_lengths,
    check_number,
    check_rng,
    check_room,
)
from gradcore._layer import Layer, Pool, Views, aligned_zeros
from gradcore.norm import grad_norm

Generator = np.random.Generator


class Tape:
    """What a feed-forward layer keeps for `backward`: the arrays themselves, not copies, so leave x and y unchanged.

    Attributes
    ----------
    kept : ndarray
        x or y, whichever the gradient is computed from.
    shape : tuple of int
        Of y.
    """

    def __init__(self, layer: Layer, kept: Array, shape: tuple[int, ...]) -> None:
        self.layer, self.kept, self.shape = layer, kept, shape


def _check_tape(layer: Layer, tape: Any) -> None:
    if getattr(tape, "layer", None) is not layer:
        raise ValueError("tape: expected a tape from this layer's forward")


class Linear(Layer):
    r"""Affine map :math:`y = x W^T + b` of the last axis.

    Parameters are drawn from :math:`U(-1/\sqrt{in}, 1/\sqrt{in})`, as PyTorch does.

    Parameters
    ----------
    in_features, out_features : int
        Sizes of the last axis of x and of y.
    bias : bool
        Whether there is b.
    dtype : dtype
        float32 or float64.
    rng : int or numpy.random.Generator, optional
        Draws the parameters.

    Attributes
    ----------
    params : dict
        ``weight`` (out_features, in_features) and ``bias`` (out_features,).

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> layer = gradcore.Linear(3, 2, rng=np.random.default_rng(0))
    >>> y, tape = layer.forward(np.ones((5, 4, 3), np.float32))
    >>> dx = layer.backward(tape, np.ones_like(y))
    >>> y.shape, dx.shape, layer.grads["bias"]
    ((5, 4, 2), (5, 4, 3), array([20., 20.], dtype=float32))
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        dtype: DTypeLike = np.float32,
        rng: int | Generator | None = None,
    ) -> None:
        self.in_features = check_int("in_features", in_features)
        self.out_features = check_int("out_features", out_features)
        self.dtype = check_dtype(dtype)
        shapes: dict[str, tuple[int, ...]] = {"weight": (self.out_features, self.in_features)}
        self._allocate(shapes | ({"bias": (self.out_features,)} if check_bool("bias", bias) else {}))
        self._pool = Pool()
        bound = 1 / math.sqrt(max(self.in_features, 1))
        init.uniform_(self.flat_params, -bound, bound, rng=rng)

    def __call__(self, x: Array) -> Array:
        """The output for x, keeping nothing. See `forward`."""
        return self.forward(x)[0]

    def forward(self, x: Array) -> tuple[Array, Tape]:
        """The output, and what `backward` needs.

        Parameters
        ----------
        x : ndarray, (..., in_features)
            Of the layer's dtype.

        Returns
        -------
        y : ndarray, (..., out_features)
        tape : Tape

        Raises
        ------
        TypeError, ValueError
            If x has another dtype or shape.
        """
        shape = as_array("x", x).shape
        if shape[-1:] != (self.in_features,):
            raise ValueError(f"x: expected shape (..., {self.in_features}), got {shape}")
        x = check_array("x", x, self.dtype, shape)
        y = self._pool.empty((*shape[:-1], self.out_features), self.dtype)
        weight, bias = self.params["weight"], self.params.get("bias")
        self._pool.give(_kernels.linear_forward(x, weight, bias, y, math.prod(shape[:-1]), self._pool.take))
        return y, Tape(self, x, y.shape)

    def backward(self, tape: Tape, dy: Array) -> Array:
        """The gradient by x; those by the parameters are added into `grads`.

        If Ctrl-C or a lack of memory ends it half way, `grads` are zero.

        Parameters
        ----------
        tape : Tape
            What `forward` returned.
        dy : ndarray, (..., out_features)
            The gradient by y.

        Returns
        -------
        dx : ndarray, (..., in_features)

        Raises
        ------
        TypeError, ValueError
            If dy has another dtype or shape than y, or the tape is another layer's.
        """
        _check_tape(self, tape)
        dy = check_array("dy", dy, self.dtype, tape.shape)
        dx = self._pool.empty(tape.kept.shape, self.dtype)
        weight, dw, db = self.params["weight"], self.grads["weight"], self.grads.get("bias")
        n = math.prod(tape.shape[:-1])
        self._refuse_reentry()
        try:
            with self._adding.lock:
                work = _kernels.linear_backward(tape.kept, weight, dy, dx, dw, db, n, self._pool.take)
        except BaseException:
            self._drop_gradients()
            raise
        self._pool.give(work)
        return dx

    def _describe(self) -> Iterator[str]:
        yield f"{self.in_features}, {self.out_features}"
        if "bias" not in self.params:
            yield "bias=False"
        yield from super()._describe()


class Activation(Layer):
    """Base of the activations: element by element, any shape, no parameters.

    Parameters
    ----------
    dtype : dtype
        float32 or float64; within a `Sequential` it becomes that of the layers with parameters.
    """

    _kind: int
    _keeps_output: ClassVar[bool] = False
    _constants: tuple[float, float] = (0.0, 0.0)  # p and q of gradcore.h, and the only place where they are kept

    def __init__(self, *, dtype: DTypeLike = np.float32) -> None:
        self.dtype = check_dtype(dtype)
        self._allocate({})
        self._pool = Pool()

    def __call__(self, x: Array) -> Array:
        """The output for x, keeping nothing. See `forward`."""
        return self.forward(x)[0]

    def forward(self, x: Array) -> tuple[Array, ActivationTape]:
        """The output, and what `backward` needs.

        Parameters
        ----------
        x : ndarray
            Any shape, of the layer's dtype.

        Returns
        -------
        y : ndarray
            Of the shape of x.
        tape : ActivationTape

        Raises
        ------
        TypeError
            If x has another dtype.
        """
        x = check_array("x", x, self.dtype, as_array("x", x).shape)
        y = self._pool.empty(x.shape, self.dtype)
        function = (self._kind, *self._constants)
        _kernels.activation_forward(*function, x, y)
        return y, ActivationTape(self, y if self._keeps_output else x, y.shape, function)

    def backward(self, tape: ActivationTape, dy: Array) -> Array:
        """The gradient by x.

        Parameters
        ----------
        tape : ActivationTape
            What `forward` returned.
        dy : ndarray
            The gradient by y.

        Returns
        -------
        dx : ndarray
            Of the shape of x.

        Raises
        ------
        TypeError, ValueError
            If dy has another dtype or shape than y, or the tape is another layer's.
        """
        _check_tape(self, tape)
        dy = check_array("dy", dy, self.dtype, tape.shape)
        dx = self._pool.empty(tape.shape, self.dtype)
        _kernels.activation_backward(*tape.function, tape.kept, dy, dx)
        return dx


class ActivationTape(Tape):
    """What an activation keeps for `backward`.

    Attributes
    ----------
    function : tuple
        The function and its constants as they were in `forward`, for the kernels.
    """

    def __init__(self, layer: Layer, kept: Array, shape: tuple[int, ...], function: tuple[int, float, float]) -> None:
        super().__init__(layer, kept, shape)
        self.function = function


class Identity(Activation):
    """y = x.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> gradcore.Identity()(np.float32([-1, 1]))
    array([-1.,  1.], dtype=float32)
    """

    _kind = _kernels.IDENTITY


class Tanh(Activation):
    """y = tanh(x), dy/dx = 1 - y^2.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> gradcore.Tanh()(np.float32([-30, 0, 30]))
    array([-1.,  0.,  1.], dtype=float32)
    """

    _kind = _kernels.TANH
    _keeps_output = True


class Sigmoid(Activation):
    """y = 1 / (1 + exp(-x)), dy/dx = y (1 - y).

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> gradcore.Sigmoid()(np.float32([-200, 0, 200]))
    array([0. , 0.5, 1. ], dtype=float32)
    """

    _kind = _kernels.SIGMOID
    _keeps_output = True


class ReLU(Activation):
    """y = max(0, x); the derivative at 0 is 0.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> gradcore.ReLU()(np.float32([-1, 1]))
    array([0., 1.], dtype=float32)
    """

    _kind = _kernels.RELU
    _keeps_output = True


class LeakyReLU(Activation):
    """y = x for x > 0, negative_slope x otherwise.

    Parameters
    ----------
    negative_slope : float
    dtype : dtype
        float32 or float64.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> gradcore.LeakyReLU(0.5)(np.float32([-1, 1]))
    array([-0.5,  1. ], dtype=float32)
    """

    _kind = _kernels.LEAKY_RELU

    def __init__(self, negative_slope: float = 0.01, *, dtype: DTypeLike = np.float32) -> None:
        super().__init__(dtype=dtype)
        self.negative_slope = negative_slope

    @property
    def negative_slope(self) -> float:
        """The slope for x below 0."""
        return self._constants[0]

    @negative_slope.setter
    def negative_slope(self, value: float) -> None:
        self._constants = (check_number("negative_slope", value), 0.0)

    def _describe(self) -> Iterator[str]:
        yield f"{self.negative_slope}"
        yield from super()._describe()


class ELU(Activation):
    """y = x for x > 0, alpha (exp(x) - 1) otherwise.

    Parameters
    ----------
    alpha : float
    dtype : dtype
        float32 or float64.

    References
    ----------
    Clevert, Unterthiner and Hochreiter, 2016, arXiv 1511.07289, eq. 15.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> gradcore.ELU(2.0)(np.float32([-50, 1]))
    array([-2.,  1.], dtype=float32)
    """

    _kind = _kernels.ELU

    def __init__(self, alpha: float = 1.0, *, dtype: DTypeLike = np.float32) -> None:
        super().__init__(dtype=dtype)
        self.alpha = alpha

    @property
    def alpha(self) -> float:
        """Minus the limit for x to minus infinity."""
        return self._constants[0]

    @alpha.setter
    def alpha(self, value: float) -> None:
        self._constants = (check_number("alpha", value), 1.0)

    def _describe(self) -> Iterator[str]:
        yield f"{self.alpha}"
        yield from super()._describe()


class SELU(Activation):
    """y = scale x for x > 0, scale alpha (exp(x) - 1) otherwise: standard normal inputs stay so; with `lecun_normal_`.

    References
    ----------
    Klambauer et al., "Self-normalizing neural networks", 2017, arXiv 1706.02515, eq. 2: alpha 1.6733, scale 1.0507.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> gradcore.SELU()(np.float32([-50, 1]))
    array([-1.7580993,  1.050701 ], dtype=float32)
    """

    _kind = _kernels.ELU
    _constants = (1.6732632423543772848, 1.0507009873554804934)


class GELU(Activation):
    """y = x P(Z <= x), Z standard normal.

    Parameters
    ----------
    approximate : {"none", "tanh"}
        "tanh" takes (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2 for the probability.
    dtype : dtype
        float32 or float64.

    References
    ----------
    Hendrycks and Gimpel, "Gaussian error linear units", 2016, arXiv 1606.08415, section 2.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> gradcore.GELU()(np.float32([-1, 1]))
    array([-0.15865526,  0.8413447 ], dtype=float32)
    """

    _kind = _kernels.GELU

    def __init__(self, approximate: str = "none", *, dtype: DTypeLike = np.float32) -> None:
        super().__init__(dtype=dtype)
        self.approximate = approximate

    @property
    def approximate(self) -> str:
        """How the probability is computed: "none" or "tanh"."""
        return "tanh" if self._kind == _kernels.GELU_TANH else "none"

    @approximate.setter
    def approximate(self, value: str) -> None:
        exact = check_choice("approximate", value, ("none", "tanh")) == "none"
        self._kind = _kernels.GELU if exact else _kernels.GELU_TANH

    def _describe(self) -> Iterator[str]:
        yield f"{self.approximate!r}"
        yield from super()._describe()


class Softplus(Activation):
    """y = log(1 + exp(beta x)) / beta, and x itself where beta x is above the threshold.

    Parameters
    ----------
    beta : float
        Above 0.
    threshold : float
    dtype : dtype
        float32 or float64.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> gradcore.Softplus()(np.float32([-100, 0, 100]))
    array([3.783506e-44, 6.931472e-01, 1.000000e+02], dtype=float32)
    """

    _kind = _kernels.SOFTPLUS

    def __init__(self, beta: float = 1.0, threshold: float = 20.0, *, dtype: DTypeLike = np.float32) -> None:
        super().__init__(dtype=dtype)
        self.beta, self.threshold = beta, threshold

    @property
    def beta(self) -> float:
        """The factor on x, above 0."""
        return self._constants[0]

    @beta.setter
    def beta(self, value: float) -> None:
        self._constants = (check_number("beta", value, above=0), self._constants[1])

    @property
    def threshold(self) -> float:
        """The value of beta x above which y = x."""
        return self._constants[1]

    @threshold.setter
    def threshold(self, value: float) -> None:
        self._constants = (self._constants[0], check_number("threshold", value))

    def _describe(self) -> Iterator[str]:
        yield f"{self.beta}, {self.threshold}"
        yield from super()._describe()


class LastStep(Layer):
    """Each sequence's last output: (T, B, F) -> (B, F), what a recurrent model with one answer per sequence needs.

    Parameters
    ----------
    batch_first : bool
        x is (B, T, F).
    dtype : dtype
        float32 or float64; within a `Sequential` it becomes that of the layers with parameters.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> x = np.arange(6, dtype=np.float32).reshape(3, 2, 1)
    >>> y, tape = gradcore.LastStep().forward(x, lengths=[2, 3])
    >>> y.ravel()
    array([2., 5.], dtype=float32)
    """

    def __init__(self, batch_first: bool = False, *, dtype: DTypeLike = np.float32) -> None:
        self.batch_first = check_bool("batch_first", batch_first)
        self.dtype = check_dtype(dtype)
        self._allocate({})

    def __call__(self, x: Array, lengths: Any = None) -> Array:
        """The output for x, keeping nothing. See `forward`."""
        return self.forward(x, lengths)[0]

    def forward(self, x: Array, lengths: Any = None) -> tuple[Array, LastStepTape]:
        """The output, and what `backward` needs.

        Parameters
        ----------
        x : ndarray, (T, B, F), or (B, T, F) with `batch_first`
        lengths : array_like of int, (B,), optional
            The length of each sequence; T by default. A sequence of length 0 gives zeros.

        Returns
        -------
        y : ndarray, (B, F)
        tape : LastStepTape

        Raises
        ------
        TypeError, ValueError
            If x or lengths have another dtype or shape.
        """
        x = check_array("x", x, self.dtype, ("B", "T", "F") if self.batch_first else ("T", "B", "F"))
        steps = x.swapaxes(0, 1) if self.batch_first else x  # (T, B, F)
        T, B, F = steps.shape
        checked = check_lengths(lengths, T, B)
        check_room(B * (F + 1))
        last = (np.full(B, T) if checked is None else checked) - 1
        live = np.flatnonzero(last >= 0)
        y = np.zeros((B, F), self.dtype)
        y[live] = steps[last[live], live]
        return y, LastStepTape(self, x.shape, last[live], live)

    def backward(self, tape: LastStepTape, dy: Array) -> Array:
        """The gradient by x.

        Parameters
        ----------
        tape : LastStepTape
            What `forward` returned.
        dy : ndarray, (B, F)
            The gradient by y.

        Returns
        -------
        dx : ndarray
            Of the shape of x.

        Raises
        ------
        TypeError, ValueError
            If dy has another dtype or shape than y, or the tape is another layer's.
        """
        _check_tape(self, tape)
        dx = np.zeros(tape.shape, self.dtype)
        steps = dx.swapaxes(0, 1) if self.batch_first else dx
        steps[tape.last, tape.live] = check_array("dy", dy, self.dtype, steps.shape[1:])[tape.live]
        return dx

    def _describe(self) -> Iterator[str]:
        if self.batch_first:
            yield "batch_first=True"
        yield from super()._describe()


class LastStepTape:
    """What `LastStep` keeps for `backward`: the shape of x, and the last step of each sequence that has any."""

    def __init__(self, layer: LastStep, shape: tuple[int, ...], last: Array, live: Array) -> None:
        self.layer, self.shape, self.last, self.live = layer, shape, last, live


class SequentialTape:
    """What `Sequential` keeps for `backward`.

    Attributes
    ----------
    tapes : tuple
        Each layer's own tape.
    d_norm : ndarray, (number of layers + 1,), float64
        After `backward`: L2 norms of dL/d(input of layer i), then that of dL/dy. From last to first they show where the
        gradient grows or vanishes.
    """

    d_norm: Array | None = None

    def __init__(self, layer: Sequential, tapes: tuple[Any, ...]) -> None:
        self.layer, self.tapes = layer, tapes


# The arguments that a model hands to those of its members that have them, and of which method.
_HANDED_ON = {"lengths": "forward", "step_clip": "backward", "regulariser": "backward"}

# Which model holds a layer's parameters in its buffers.
_OWNERS: WeakKeyDictionary[Layer, ref[Sequential]] = WeakKeyDictionary()


class Sequential(Layer):
    """A chain of layers of any kind, whose parameters and gradients move into one flat buffer each.

    The parameters are called by position and name, as in PyTorch: ``0.weight``, ``2.weight_ih_l0``. A layer belongs to
    one model only. Layers without parameters take the dtype of those that have some.

    Parameters
    ----------
    *layers : Layer
        Feed-forward, recurrent, or themselves `Sequential`. A recurrent layer starts from zeros and hands on its y

    Attributes
    ----------
    layers : tuple of Layer

    Raises
    ------
    TypeError
        If a member is not a layer, or the dtypes differ.
    ValueError
        If a layer occurs twice or belongs to another model.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> rng = np.random.default_rng(0)
    >>> model = gradcore.Sequential(gradcore.LSTM(3, 8, rng=rng), gradcore.LastStep(), gradcore.Linear(8, 1, rng=rng))
    >>> y, tape = model.forward(np.ones((20, 5, 3), np.float32))
    >>> dx = model.backward(tape, np.ones_like(y))
    >>> y.shape, dx.shape, tape.d_norm.shape
    ((5, 1), (20, 5, 3), (4,))
    >>> list(model.params)[-2:]
    ['2.weight', '2.bias']
    """

    layers: tuple[Any, ...]

    def __init__(self, *layers: Layer) -> None:
        for i, layer in enumerate(layers):
            if not isinstance(layer, Layer):
                raise TypeError(f"layers[{i}]: expected a layer, got {type(layer).__name__}")
            if layer in layers[:i]:
                raise ValueError(f"layers[{i}]: is layers[{layers.index(layer)}] again; a layer can occur only once")
            owner = _OWNERS.get(layer, lambda: None)()
            if owner is not None:
                raise ValueError(
                    f"layers[{i}]: {layer!r} belongs to another model; copy.deepcopy gives an independent layer"
                )
        dtypes = {layer.dtype: i for i, layer in enumerate(layers) if layer.params}
        if len(dtypes) > 1:
            found = " and ".join(f"{dtype} (layers[{i}])" for dtype, i in dtypes.items())
            raise TypeError(f"layers: expected one dtype, got {found}")
        self.layers = layers
        self.dtype = next(iter(dtypes), layers[0].dtype if layers else np.dtype(np.float32))
        self._taken = {name: tuple(_takes(layer, name) for layer in layers) for name in _HANDED_ON}
        for layer in layers:
            _OWNERS[layer] = ref(self)
            _set_dtype(layer, self.dtype)
        n = sum(layer.flat_params.size for layer in layers)
        empty = np.empty(0, self.dtype)
        self._params, self._grads = Views("params", {}, empty), Views("grads", {}, empty)
        self._bind(aligned_zeros(n, self.dtype), aligned_zeros(n, self.dtype))

    def _bind(self, flat_params: Array, flat_grads: Array) -> None:
        """Move the members' parameters and gradients into parts of these buffers."""
        params: dict[str, Array] = {}
        grads: dict[str, Array] = {}
        start = 0
        for i, layer in enumerate(self.layers):
            part = slice(start, start + layer.flat_params.size)
            layer._bind(flat_params[part], flat_grads[part])
            params |= {f"{i}.{name}": p for name, p in layer.params.items()}
            grads |= {f"{i}.{name}": g for name, g in layer.grads.items()}
            start = part.stop
        self._params.follow(params, flat_params)
        self._grads.follow(grads, flat_grads)

    def _refuse_reentry(self) -> None:
        for layer in self.layers:
            layer._refuse_reentry()

    def _drop_gradients(self) -> None:
        for layer in self.layers:
            layer._drop_gradients()

    def generators(self) -> list[Generator]:
        """Return the generators of all members, in order."""
        return [rng for layer in self.layers for rng in layer.generators()]

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for layer in self.layers:
            _OWNERS[layer] = ref(self)

    def __call__(self, x: Array, lengths: Any = None) -> Array:
        """The output for x, keeping nothing; no dropout. See `forward`."""
        _check_taken("lengths", lengths, self._taken["lengths"])
        for layer, takes in zip(self.layers, self._taken["lengths"], strict=True):
            y = layer(x, lengths=lengths) if takes else layer(x)
            x = y[0] if isinstance(y, tuple) else y  # a recurrent layer returns its state too
        return x

    def forward(self, x: Array, lengths: Any = None) -> tuple[Array, SequentialTape]:
        """The output, and what `backward` needs.

        Parameters
        ----------
        x : ndarray
            What the first layer takes.
        lengths : array_like of int, (B,), optional
            Handed to the recurrent layers and to `LastStep`.

        Returns
        -------
        y : ndarray
            What the last layer returns.
        tape : SequentialTape

        Raises
        ------
        TypeError, ValueError
            If a layer is given another dtype or shape than it takes, or no layer takes `lengths`.
        """
        _check_taken("lengths", lengths, self._taken["lengths"])
        tapes = []
        for layer, takes in zip(self.layers, self._taken["lengths"], strict=True):
            x, tape = layer.forward(x, lengths=lengths) if takes else layer.forward(x)
            tapes.append(tape)
        return x, SequentialTape(self, tuple(tapes))

    def backward(
        self,
        tape: SequentialTape,
        dy: Array,
        *,
        step_clip: float | None = None,
        regulariser: Callable[..., float] | None = None,
    ) -> Array:
        """The gradient by x; those by the parameters are added into `grads`.

        If Ctrl-C or a lack of memory ends it half way, `grads` are zero.

        Parameters
        ----------
        tape : SequentialTape
            What `forward` returned; its `d_norm` is filled.
        dy : ndarray
            The gradient by y.
        step_clip : float, optional
            Handed to the recurrent layers.
        regulariser : Regulariser, optional
            Likewise.

        Returns
        -------
        dx : ndarray
            Of the shape of x.

        Raises
        ------
        TypeError, ValueError
            If dy has another dtype or shape than y, or the tape is another layer's, or no layer takes `step_clip` or
            `regulariser`, or one takes the regulariser that it is not made for.
        """
        _check_tape(self, tape)
        options = {"step_clip": step_clip, "regulariser": regulariser}
        for name, value in options.items():
            _check_taken(name, value, self._taken[name])
        if step_clip is not None:  # before the layers above the recurrent ones have added to their gradients
            check_number("step_clip", step_clip, least=0.0)
        self._refuse_reentry()
        before = None if regulariser is None else self.flat_grads.copy()
        try:
            return self._backward(tape, dy, options)
        except (TypeError, ValueError):
            if before is not None:  # a member that the regulariser is not made for may be any of them
                self.flat_grads[...] = before
            raise
        except BaseException:
            self._drop_gradients()
            raise

    def _backward(self, tape: SequentialTape, dy: Array, options: dict[str, Any]) -> Array:
        d, norms = dy, []
        for i, layer in reversed(list(enumerate(self.layers))):
            its = {name: value for name, value in options.items() if value is not None and self._taken[name][i]}
            dx = layer.backward(tape.tapes[i], d, **its)
            norms.append(float(grad_norm(np.asarray(d))))
            d = dx
        tape.d_norm = np.array([*norms, float(grad_norm(np.asarray(d)))])[::-1].copy()
        return d

    def _describe(self) -> Iterator[str]:
        yield from (repr(layer) for layer in self.layers)


def _takes(layer: Any, name: str) -> bool:
    """Whether the layer, or for a model one of its members, has this argument."""
    if isinstance(layer, Sequential):
        return any(layer._taken[name])
    return name in inspect.signature(getattr(layer, _HANDED_ON[name])).parameters


def _check_taken(name: str, value: Any, takes: tuple[bool, ...]) -> None:
    if value is not None and not any(takes):
        raise ValueError(f"{name}: no layer of this model takes it")


def _set_dtype(layer: Any, dtype: np.dtype[Any]) -> None:
    layer.dtype = dtype
    for member in layer.layers if isinstance(layer, Sequential) else ():
        _set_dtype(member, dtype)


_ACTIVATIONS: dict[str, type[Activation]] = {
    "identity": Identity,
    "tanh": Tanh,
    "sigmoid": Sigmoid,
    "relu": ReLU,
    "leaky_relu": LeakyReLU,
    "elu": ELU,
    "selu": SELU,
    "gelu": GELU,
    "softplus": Softplus,
}

# How each initialiser fills a weight that an activation of this name follows; the others need more arguments.
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
    """Linear layers with an activation between them; none after the last.

    Weights are drawn by `init` with the gain that fits the activation, in all layers alike (He et al., 2015, section
    2.2); biases are zero.

    Parameters
    ----------
    sizes : sequence of int
        Features of the input, of each hidden layer, and of the output; two at least.
    activation : str
        "identity", "tanh", "sigmoid", "relu", "leaky_relu", "elu", "selu", "gelu" or "softplus".
    init : str
        A name of `gradcore.init` without the underscore at its end: "xavier_uniform", "xavier_normal",
        "kaiming_uniform", "kaiming_normal", "lecun_normal", "orthogonal", "eye", "uniform" or "normal".
    bias : bool
        Whether the linear layers have biases.
    dtype : dtype
        float32 or float64.
    rng : int or numpy.random.Generator, optional
        Draws the weights.

    Raises
    ------
    ValueError
        If there are fewer than two sizes, or a name is unknown.

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
        layers: list[Layer] = []
        for n_in, n_out in itertools.pairwise(checked):
            layer = Linear(n_in, n_out, bias, dtype=dtype, rng=rng)
            layer.flat_params.fill(0)
            _INITS[init](layer.params["weight"], activation, rng)
            layers += [layer, _ACTIVATIONS[activation](dtype=dtype)]
        super().__init__(*layers[:-1])
