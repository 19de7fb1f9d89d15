"""Activations: layers without parameters that act on every element."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import DTypeLike

from gradcore import _kernels
from gradcore._base.check import Array, check_choice, check_number
from gradcore._base.memory import Pool
from gradcore.layers.curvature import curvature
from gradcore.layers.layer import Layer, Sequences
from gradcore.layers.tape import Tape

__all__ = ["ELU", "GELU", "SELU", "Activation", "Identity", "LeakyReLU", "ReLU", "SiLU", "Sigmoid", "Softplus", "Tanh"]


class Activation(Layer):
    """Base of the activations, which act on each element and have no parameters.

    Parameters
    ----------
    dtype : dtype
        The dtype of inputs and outputs, float32 or float64; a `Sequential` sets it to that of its parameters.

    Examples
    --------
    >>> import gradcore
    >>> isinstance(gradcore.Tanh(), gradcore.layers.activations.Activation)
    True
    """

    _kind: int
    _keeps_output: ClassVar[bool] = False
    _constants: tuple[float, float] = (0.0, 0.0)  # p and q of gradcore.h, and the only place where they are kept

    def __init__(self, *, dtype: DTypeLike = np.float32) -> None:
        super().__init__(dtype=dtype)
        self._pool = Pool()

    def forward(self, x: Array) -> tuple[Array, Tape]:
        """Return the output, and the tape that `backward` needs.

        Parameters
        ----------
        x : ndarray
            The input, of any shape and the layer's dtype.

        Returns
        -------
        y : ndarray
            The output, of the shape of x.
        tape : Tape
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
        x = self.check("x", x, (...,))
        y = self._pool.empty(x.shape, self.dtype)
        function = (self._kind, *self._constants)
        _kernels.activation_forward(*function, x, y)
        return y, Tape(self, y.shape, y if self._keeps_output else x, *function)

    def backward(self, tape: Tape, dy: Array) -> Array:
        """Return the gradient with respect to x.

        Parameters
        ----------
        tape : Tape
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
        self.check_tape(tape)
        return self._times_slope(tape, self.check("dy", dy, tape.shape))

    def forward_tangent(self, tape: Tape, x_dot: Array) -> tuple[Array, Array]:
        """Return how the output changes when x moves in the direction of `x_dot`.

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
        """
        self.check_tape(tape)
        x_dot = self.check("x_dot", x_dot, tape.shape)
        return self._times_slope(tape, x_dot), x_dot

    def backward_tangent(self, tape: Tape, tangent: Array, dy: Array, dy_dot: Array) -> tuple[Array, Array]:
        """Return how the backward pass changes when x moves as in `forward_tangent`.

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
            The gradient with respect to x.
        dx_dot : ndarray
            The tangent of dx.
        """
        self.check_tape(tape)
        dy, dy_dot = self.check("dy", dy, tape.shape), self.check("dy_dot", dy_dot, tape.shape)
        dx, dx_dot = self._times_slope(tape, dy), self._times_slope(tape, dy_dot)
        kept, kind, p, q = tape.kept
        bend = curvature(kind, p, q, kept)
        if bend is not None:
            with np.errstate(all="ignore"):
                dx_dot += bend * tangent * dy
        return dx, dx_dot

    def _times_slope(self, tape: Tape, d: Array) -> Array:
        kept, kind, p, q = tape.kept  # the function as it was in `forward`
        product = self._pool.empty(tape.shape, self.dtype)
        _kernels.activation_backward(kind, p, q, kept, d, product)
        return product

    def _sequences_after(self, where: str, before: Sequences) -> Sequences:
        return before


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


class SiLU(Activation):
    """Sigmoid linear unit, also called swish: y = x / (1 + exp(-x)).

    Parameters
    ----------
    dtype : dtype
        The dtype of inputs and outputs, float32 or float64.

    References
    ----------
    Elfwing, Uchibe and Doya, "Sigmoid-weighted linear units for neural network function approximation in reinforcement
    learning", Neural Networks 107, 2018, arXiv 1702.03118, eq. 4.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> gradcore.SiLU()(np.float32([-200, 0, 1])).round(4)
    array([-0.    ,  0.    ,  0.7311], dtype=float32)
    """

    _kind = _kernels.SILU


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
    "silu": SiLU,
}
