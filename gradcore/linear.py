"""Feed-forward layers, and models that chain layers of any kind."""

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
from gradcore._layer import Layer, Pool, Sequences, Views, aligned_zeros
from gradcore.norm import grad_norm

Generator = np.random.Generator


class Tape:
    """Keep what a feed-forward layer's `backward` needs: arrays, not copies, so leave x and y unchanged until then.

    Parameters
    ----------
    layer : Layer
        The layer, whose `forward` makes the tape.
    kept : ndarray
        Either x or y, whichever the gradient is computed from.
    shape : tuple of int
        The shape of y.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> y, tape = gradcore.Linear(3, 2).forward(np.ones((5, 3), np.float32))
    >>> tape
    <Tape of Linear(3, 2): y (5, 2)>
    """

    def __init__(self, layer: Layer, kept: Array, shape: tuple[int, ...]) -> None:
        self.layer, self.kept, self.shape = layer, kept, shape

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.layer!r}: y {self.shape}>"


def _check_tape(layer: Layer, tape: Any) -> None:
    if getattr(tape, "layer", None) is not layer:
        raise ValueError("tape: expected a tape from this layer's forward")


class Linear(Layer):
    r"""Affine map of the last axis: :math:`y = x W^T + b`.

    Parameters are drawn from :math:`U(-1/\sqrt{n}, 1/\sqrt{n})` with n = `in_features`, as PyTorch does. `params` holds
    ``weight`` (out_features, in_features) and ``bias`` (out_features,).

    Parameters
    ----------
    in_features : int
        The size of the last axis of x.
    out_features : int
        The size of the last axis of y.
    bias : bool
        Whether there is a bias b.
    dtype : dtype
        The dtype of parameters, inputs and outputs, float32 or float64.
    rng : int or numpy.random.Generator, optional
        The generator, or the seed of one, that draws the parameters.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> layer = gradcore.Linear(3, 2, rng=0)
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
        """Return the output without keeping a tape.

        Parameters
        ----------
        x : ndarray, (..., in_features)
            The input, of the layer's dtype.

        Returns
        -------
        ndarray, (..., out_features)
            The output.

        Examples
        --------
        >>> import numpy as np, gradcore
        >>> gradcore.Linear(3, 2)(np.ones((5, 3), np.float32)).shape
        (5, 2)
        """
        return self.forward(x)[0]

    def forward(self, x: Array) -> tuple[Array, Tape]:
        """Return the output, and the tape that `backward` needs.

        Parameters
        ----------
        x : ndarray, (..., in_features)
            The input, of the layer's dtype.

        Returns
        -------
        y : ndarray, (..., out_features)
            The output.
        tape : Tape
            What `backward` needs.

        Raises
        ------
        TypeError, ValueError
            If x has the wrong dtype or shape.

        Examples
        --------
        >>> import numpy as np, gradcore
        >>> y, tape = gradcore.Linear(3, 2).forward(np.ones((5, 3), np.float32))
        >>> y.shape
        (5, 2)
        """
        shape = as_array("x", x).shape
        if shape[-1:] != (self.in_features,):
            raise ValueError(f"x: expected shape (..., {self.in_features}), got {shape}")
        x = check_array("x", x, self.dtype, shape)
        y = self._pool.empty((*shape[:-1], self.out_features), self.dtype)
        weight, bias = self._params["weight"], self._params.get("bias")
        self._pool.give(_kernels.linear_forward(x, weight, bias, y, math.prod(shape[:-1]), self._pool.take))
        return y, Tape(self, x, y.shape)

    def backward(self, tape: Tape, dy: Array) -> Array:
        """Return the gradient with respect to x, and add those of the parameters to `grads`.

        If interrupted or out of memory, it resets `grads` to zero.

        Parameters
        ----------
        tape : Tape
            The tape from this layer's `forward`.
        dy : ndarray, (..., out_features)
            The gradient with respect to y.

        Returns
        -------
        ndarray, (..., in_features)
            The gradient with respect to x.

        Raises
        ------
        TypeError, ValueError
            If dy has another dtype or shape than y, or the tape comes from another layer.
        RuntimeError
            If a signal handler calls it in the middle of a backward pass of the same layer.

        Examples
        --------
        >>> import numpy as np, gradcore
        >>> layer = gradcore.Linear(3, 2)
        >>> y, tape = layer.forward(np.ones((5, 3), np.float32))
        >>> layer.backward(tape, np.ones_like(y)).shape
        (5, 3)
        """
        _check_tape(self, tape)
        dy = check_array("dy", dy, self.dtype, tape.shape)
        dx = self._pool.empty(tape.kept.shape, self.dtype)
        weight, dw, db = self._params["weight"], self._grads["weight"], self._grads.get("bias")
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

    def _sequences_after(self, where: str, before: Sequences) -> Sequences:
        return before

    def _describe(self) -> Iterator[str]:
        yield f"{self.in_features}, {self.out_features}"
        if "bias" not in self.params:
            yield "bias=False"
        yield from super()._describe()


class Activation(Layer):
    """Base of the activations, which act on each element and have no parameters.

    Parameters
    ----------
    dtype : dtype
        The dtype of inputs and outputs, float32 or float64; a `Sequential` sets it to that of its parameters.

    Examples
    --------
    >>> import gradcore
    >>> isinstance(gradcore.Tanh(), gradcore.linear.Activation)
    True
    """

    _kind: int
    _keeps_output: ClassVar[bool] = False
    _constants: tuple[float, float] = (0.0, 0.0)  # p and q of gradcore.h, and the only place where they are kept

    def __init__(self, *, dtype: DTypeLike = np.float32) -> None:
        self.dtype = check_dtype(dtype)
        self._allocate({})
        self._pool = Pool()

    def __call__(self, x: Array) -> Array:
        """Return the output without keeping a tape.

        Parameters
        ----------
        x : ndarray
            The input, of any shape and the layer's dtype.

        Returns
        -------
        ndarray
            The output, of the shape of x.

        Examples
        --------
        >>> import numpy as np, gradcore
        >>> gradcore.ReLU()(np.float32([-1, 1]))
        array([0., 1.], dtype=float32)
        """
        return self.forward(x)[0]

    def forward(self, x: Array) -> tuple[Array, ActivationTape]:
        """Return the output, and the tape that `backward` needs.

        Parameters
        ----------
        x : ndarray
            The input, of any shape and the layer's dtype.

        Returns
        -------
        y : ndarray
            The output, of the shape of x.
        tape : ActivationTape
            What `backward` needs.

        Raises
        ------
        TypeError
            If x has the wrong dtype.

        Examples
        --------
        >>> import numpy as np, gradcore
        >>> y, tape = gradcore.ReLU().forward(np.float32([-1, 1]))
        >>> y
        array([0., 1.], dtype=float32)
        """
        x = check_array("x", x, self.dtype, as_array("x", x).shape)
        y = self._pool.empty(x.shape, self.dtype)
        function = (self._kind, *self._constants)
        _kernels.activation_forward(*function, x, y)
        return y, ActivationTape(self, y if self._keeps_output else x, y.shape, function)

    def backward(self, tape: ActivationTape, dy: Array) -> Array:
        """Return the gradient with respect to x.

        Parameters
        ----------
        tape : ActivationTape
            The tape from this layer's `forward`.
        dy : ndarray
            The gradient with respect to y.

        Returns
        -------
        ndarray
            The gradient with respect to x, of the shape of x.

        Raises
        ------
        TypeError, ValueError
            If dy has another dtype or shape than y, or the tape comes from another layer.

        Examples
        --------
        >>> import numpy as np, gradcore
        >>> layer = gradcore.ReLU()
        >>> y, tape = layer.forward(np.float32([-1, 1]))
        >>> layer.backward(tape, np.float32([3, 3]))
        array([0., 3.], dtype=float32)
        """
        _check_tape(self, tape)
        dy = check_array("dy", dy, self.dtype, tape.shape)
        dx = self._pool.empty(tape.shape, self.dtype)
        _kernels.activation_backward(*tape.function, tape.kept, dy, dx)
        return dx

    def _sequences_after(self, where: str, before: Sequences) -> Sequences:
        return before


class ActivationTape(Tape):
    """Keep what an activation's `backward` needs.

    Parameters
    ----------
    layer : Activation
        The layer, whose `forward` makes the tape.
    kept : ndarray
        Either x or y, whichever the gradient is computed from.
    shape : tuple of int
        The shape of y.
    function : tuple
        The function and its constants as they were in `forward`, for the kernels.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> y, tape = gradcore.Tanh().forward(np.ones(3, np.float32))
    >>> tape
    <ActivationTape of Tanh(): y (3,)>
    """

    def __init__(self, layer: Layer, kept: Array, shape: tuple[int, ...], function: tuple[int, float, float]) -> None:
        super().__init__(layer, kept, shape)
        self.function = function


class Identity(Activation):
    """Return the input: y = x.

    Parameters
    ----------
    dtype : dtype
        The dtype of inputs and outputs, float32 or float64.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> gradcore.Identity()(np.float32([-1, 1]))
    array([-1.,  1.], dtype=float32)
    """

    _kind = _kernels.IDENTITY


class Tanh(Activation):
    """Hyperbolic tangent: y = tanh(x), dy/dx = 1 - y^2.

    Parameters
    ----------
    dtype : dtype
        The dtype of inputs and outputs, float32 or float64.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> gradcore.Tanh()(np.float32([-30, 0, 30]))
    array([-1.,  0.,  1.], dtype=float32)
    """

    _kind = _kernels.TANH
    _keeps_output = True


class Sigmoid(Activation):
    """Logistic function: y = 1 / (1 + exp(-x)), dy/dx = y (1 - y).

    Parameters
    ----------
    dtype : dtype
        The dtype of inputs and outputs, float32 or float64.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> gradcore.Sigmoid()(np.float32([-200, 0, 200]))
    array([0. , 0.5, 1. ], dtype=float32)
    """

    _kind = _kernels.SIGMOID
    _keeps_output = True


class ReLU(Activation):
    """Rectified linear unit: y = max(0, x). The derivative at 0 is 0.

    Parameters
    ----------
    dtype : dtype
        The dtype of inputs and outputs, float32 or float64.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> gradcore.ReLU()(np.float32([-1, 1]))
    array([0., 1.], dtype=float32)
    """

    _kind = _kernels.RELU
    _keeps_output = True


class LeakyReLU(Activation):
    """Leaky rectified linear unit: y = x for x > 0, negative_slope x otherwise.

    Parameters
    ----------
    negative_slope : float
        The slope for negative x.
    dtype : dtype
        The dtype of inputs and outputs, float32 or float64.

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
    """Exponential linear unit: y = x for x > 0, alpha (exp(x) - 1) otherwise.

    Parameters
    ----------
    alpha : float
        Minus the limit of y for large negative x.
    dtype : dtype
        The dtype of inputs and outputs, float32 or float64.

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
    """Scaled exponential linear unit: y = scale x for x > 0, scale alpha (exp(x) - 1) otherwise.

    With weights from `init.lecun_normal_`, activations keep mean 0 and variance 1 from layer to layer.

    Parameters
    ----------
    dtype : dtype
        The dtype of inputs and outputs, float32 or float64.

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
    """Gaussian error linear unit: y = x P(Z <= x) with Z standard normal.

    Parameters
    ----------
    approximate : {"none", "tanh"}
        "tanh" approximates the probability by (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2.
    dtype : dtype
        The dtype of inputs and outputs, float32 or float64.

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
    """Smooth rectified linear unit: y = log(1 + exp(beta x)) / beta, and x where beta x exceeds the threshold.

    Parameters
    ----------
    beta : float
        The sharpness, above 0.
    threshold : float
        The value of beta x above which y = x.
    dtype : dtype
        The dtype of inputs and outputs, float32 or float64.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> gradcore.Softplus()(np.float32([-100, 0, 100])).round(4)
    array([  0.    ,   0.6931, 100.    ], dtype=float32)
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
    """Take each sequence's last output, (T, B, F) -> (B, F), for models with one answer per sequence.

    In a `Sequential` it needs the `batch_first` of the recurrent layer below, and refuses a bidirectional one: at the
    last step the reverse direction has read one step only. The final state of both directions is ``tape.state`` of the
    recurrent layer.

    Parameters
    ----------
    batch_first : bool
        Whether x is (B, T, F) instead of (T, B, F).
    dtype : dtype
        The dtype of inputs and outputs, float32 or float64; a `Sequential` sets it to that of its parameters.

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
        """Return the output without keeping a tape.

        Parameters
        ----------
        x : ndarray, (T, B, F), or (B, T, F) with `batch_first`
            The sequences, of the layer's dtype.
        lengths : array_like of int, (B,), optional
            The length of each sequence; T by default.

        Returns
        -------
        ndarray, (B, F)
            The last output of each sequence; zeros for a sequence of length 0.

        Examples
        --------
        >>> import numpy as np, gradcore
        >>> gradcore.LastStep()(np.float32([[[1]], [[2]], [[3]]]), lengths=[2])
        array([[2.]], dtype=float32)
        """
        return self.forward(x, lengths)[0]

    def forward(self, x: Array, lengths: Any = None) -> tuple[Array, LastStepTape]:
        """Return the output, and the tape that `backward` needs.

        Parameters
        ----------
        x : ndarray, (T, B, F), or (B, T, F) with `batch_first`
            The sequences, of the layer's dtype.
        lengths : array_like of int, (B,), optional
            The length of each sequence; T by default.

        Returns
        -------
        y : ndarray, (B, F)
            The last output of each sequence; zeros for a sequence of length 0.
        tape : LastStepTape
            What `backward` needs.

        Raises
        ------
        TypeError, ValueError
            If x or lengths have the wrong dtype or shape.

        Examples
        --------
        >>> import numpy as np, gradcore
        >>> y, tape = gradcore.LastStep().forward(np.ones((7, 2, 3), np.float32))
        >>> y.shape
        (2, 3)
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
        """Return the gradient with respect to x, which is zero but at each sequence's last step.

        Parameters
        ----------
        tape : LastStepTape
            The tape from this layer's `forward`.
        dy : ndarray, (B, F)
            The gradient with respect to y.

        Returns
        -------
        ndarray
            The gradient with respect to x, of the shape of x.

        Raises
        ------
        TypeError, ValueError
            If dy has another dtype or shape than y, or the tape comes from another layer.

        Examples
        --------
        >>> import numpy as np, gradcore
        >>> layer = gradcore.LastStep()
        >>> y, tape = layer.forward(np.ones((3, 1, 1), np.float32))
        >>> layer.backward(tape, np.float32([[5]])).ravel()
        array([0., 0., 5.], dtype=float32)
        """
        _check_tape(self, tape)
        dx = np.zeros(tape.shape, self.dtype)
        steps = dx.swapaxes(0, 1) if self.batch_first else dx
        steps[tape.last, tape.live] = check_array("dy", dy, self.dtype, steps.shape[1:])[tape.live]
        return dx

    def _sequences_after(self, where: str, before: Sequences) -> Sequences:
        before.refuse_other_axes(where, self.batch_first)
        if before.reverse:
            raise ValueError(
                f"{where}: LastStep takes the output at each sequence's last step, where the reverse direction of "
                f"{before.source} has read one step only; use a layer with bidirectional=False, or take the final "
                "state from its tape.state"
            )
        return Sequences()

    def _describe(self) -> Iterator[str]:
        if self.batch_first:
            yield "batch_first=True"
        yield from super()._describe()


class LastStepTape:
    """Keep what `LastStep`'s `backward` needs.

    Parameters
    ----------
    layer : LastStep
        The layer, whose `forward` makes the tape.
    shape : tuple of int
        The shape of x.
    last : ndarray of int
        The last step of each sequence in `live`.
    live : ndarray of int
        The sequences that have any steps.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> y, tape = gradcore.LastStep().forward(np.ones((7, 3, 2), np.float32), lengths=[4, 0, 7])
    >>> tape.last, tape.live
    (array([3, 6]), array([0, 2]))
    """

    def __init__(self, layer: LastStep, shape: tuple[int, ...], last: Array, live: Array) -> None:
        self.layer, self.shape, self.last, self.live = layer, shape, last, live

    def __repr__(self) -> str:
        return f"<LastStepTape of {self.layer!r}: x {self.shape}>"


class SequentialTape:
    """Keep what `Sequential`'s `backward` needs.

    Parameters
    ----------
    layer : Sequential
        The model, whose `forward` makes the tape.
    tapes : tuple
        The layers' own tapes.

    Attributes
    ----------
    d_norm : ndarray, (number of layers + 1,), float64, or None
        The L2 norms of dL/d(input of layer i), then that of dL/dy; set by `backward`. From last to first they show
        where the gradient grows or vanishes.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> model = gradcore.Sequential(gradcore.Linear(3, 2), gradcore.Tanh())
    >>> y, tape = model.forward(np.ones((5, 3), np.float32))
    >>> dx = model.backward(tape, np.ones_like(y))
    >>> tape.tapes[0], tape.d_norm.shape
    (<Tape of Linear(3, 2): y (5, 2)>, (3,))
    """

    def __init__(self, layer: Sequential, tapes: tuple[Any, ...]) -> None:
        self.layer, self.tapes = layer, tapes
        self.d_norm: Array | None = None

    @property
    def is_chain(self) -> bool:
        """Whether the layers are applied one after the other; a subclass may do otherwise in a `forward` of its own."""
        return self.layer.is_chain

    def __repr__(self) -> str:
        return f"<SequentialTape of {type(self.layer).__name__}: {len(self.tapes)} layers>"


# The arguments that a model passes on to the members that take them, and of which method.
_HANDED_ON = {"lengths": "forward", "step_clip": "backward", "regularizer": "backward"}

# Which model holds a layer's parameters in its buffers.
_OWNERS: WeakKeyDictionary[Layer, ref[Sequential]] = WeakKeyDictionary()


class Sequential(Layer):
    """Chain layers of any kind, and gather their parameters and gradients in one flat buffer each.

    Parameters are named by position, as in PyTorch: ``0.weight``, ``2.weight_ih_l0``. A layer belongs to one model
    only. Its parameters and gradients move into the model's buffers: `params` and `grads` of the layer follow, but
    arrays taken from them before become read-only, so build an optimizer afterwards. Layers without parameters take the
    dtype of those with parameters.

    ``len(model)`` is the number of layers, ``model[i]`` one of them, and a slice a tuple of layers.

    Parameters
    ----------
    *layers : Layer
        Feed-forward or recurrent layers, or other models. A recurrent layer starts from zeros and passes y on.

    Attributes
    ----------
    layers : tuple of Layer
        The members.

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
        self._sequences_within("", Sequences())
        self.dtype = next(iter(dtypes), layers[0].dtype if layers else np.dtype(np.float32))
        self._taken = {name: tuple(_takes(layer, name) for layer in layers) for name in _HANDED_ON}
        for layer in layers:
            _OWNERS[layer] = ref(self)
            _set_dtype(layer, self.dtype)
        n = sum(layer.flat_params.size for layer in layers)
        empty = np.empty(0, self.dtype)
        self._params, self._grads = Views("params", {}, empty), Views("grads", {}, empty)
        self._bind(aligned_zeros(n, self.dtype), aligned_zeros(n, self.dtype))

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

    def __call__(self, x: Array, lengths: Any = None) -> Array:
        """Return the output, without dropout and without a tape.

        Parameters
        ----------
        x : ndarray
            The input of the first layer.
        lengths : array_like of int, (B,), optional
            The length of each sequence, for the recurrent layers and `LastStep`.

        Returns
        -------
        ndarray
            The output of the last layer.

        Examples
        --------
        >>> import numpy as np, gradcore
        >>> model = gradcore.Sequential(gradcore.GRU(3, 4), gradcore.LastStep(), gradcore.Linear(4, 1))
        >>> model(np.ones((7, 2, 3), np.float32), lengths=[7, 5]).shape
        (2, 1)
        """
        _check_taken("lengths", lengths, self._taken["lengths"])
        for layer, takes in zip(self.layers, self._taken["lengths"], strict=True):
            y = layer(x, lengths=lengths) if takes else layer(x)
            x = y[0] if isinstance(y, tuple) else y  # a recurrent layer returns its state too
        return x

    def forward(self, x: Array, lengths: Any = None) -> tuple[Array, SequentialTape]:
        """Return the output, and the tape that `backward` needs.

        Parameters
        ----------
        x : ndarray
            The input of the first layer.
        lengths : array_like of int, (B,), optional
            The length of each sequence, for the recurrent layers and `LastStep`.

        Returns
        -------
        y : ndarray
            The output of the last layer.
        tape : SequentialTape
            What `backward` needs.

        Raises
        ------
        TypeError, ValueError
            If a layer gets the wrong dtype or shape, or no layer takes `lengths`.

        Examples
        --------
        >>> import numpy as np, gradcore
        >>> model = gradcore.Sequential(gradcore.Linear(3, 4), gradcore.ReLU(), gradcore.Linear(4, 1))
        >>> y, tape = model.forward(np.ones((5, 3), np.float32))
        >>> y.shape, len(tape.tapes)
        ((5, 1), 3)
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
        regularizer: Callable[..., float] | None = None,
    ) -> Array:
        """Return the gradient with respect to x, and add those of the parameters to `grads`.

        It sets `tape.d_norm`. If interrupted or out of memory, it resets `grads` to zero.

        Parameters
        ----------
        tape : SequentialTape
            The tape from this model's `forward`.
        dy : ndarray
            The gradient with respect to y.
        step_clip : float, optional
            The limit of each sequence's dL/dh_t, for the recurrent layers.
        regularizer : VanishingGradientRegularizer, optional
            A term of the loss whose gradient is added, for the recurrent layers.

        Returns
        -------
        ndarray
            The gradient with respect to x, of the shape of x.

        Raises
        ------
        TypeError, ValueError
            If dy has another dtype or shape than y, if the tape comes from another layer, if no layer takes `step_clip`
            or `regularizer`, or if a layer is not one that the regularizer is made for.
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
        _check_tape(self, tape)
        options = {"step_clip": step_clip, "regularizer": regularizer}
        for name, value in options.items():
            _check_taken(name, value, self._taken[name])
        if step_clip is not None:  # before the layers above the recurrent ones have added to their gradients
            check_number("step_clip", step_clip, least=0.0)
        self._refuse_reentry()
        before = None if regularizer is None else self.flat_grads.copy()
        try:
            return self._backward(tape, dy, options)
        except (TypeError, ValueError):
            if before is not None:  # a member that the regularizer is not made for may be any of them
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
    """Whether the layer, or any member of a model, has this argument."""
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
        The activation: "identity", "tanh", "sigmoid", "relu", "leaky_relu", "elu", "selu", "gelu" or "softplus".
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
        layers: list[Layer] = []
        for n_in, n_out in itertools.pairwise(checked):
            layer = Linear(n_in, n_out, bias, dtype=dtype, rng=rng)
            layer.flat_params.fill(0)
            _INITS[init](layer.params["weight"], activation, rng)
            layers += [layer, _ACTIVATIONS[activation](dtype=dtype)]
        super().__init__(*layers[:-1])
        self.sizes, self.activation, self.init = tuple(checked), activation, init

    def _describe(self) -> Iterator[str]:
        yield f"{list(self.sizes)}"
        if self.activation != "relu":
            yield f"{self.activation!r}"
        if self.init != "kaiming_normal":
            yield f"init={self.init!r}"
        if "bias" not in self.layers[0].params:
            yield "bias=False"
        yield from Layer._describe(self)
