"""The rectifier whose slope below zero is learned."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from gradcore import _kernels
from gradcore._base.check import Array, check_int, check_number
from gradcore._base.memory import Pool
from gradcore.layers.layer import Layer, Sequences
from gradcore.layers.tape import Tape

__all__ = ["PReLU"]


class PReLU(Layer):
    """Rectified linear unit with a learned slope: y = x for x > 0, w x otherwise.

    The derivative with respect to x at 0 is w. Weight decay pulls w towards 0, where the unit is a plain ReLU.

    Parameters
    ----------
    num_parameters : int
        The number of slopes: 1 for all elements, or one for each feature of the last axis.
    init : float
        The value at which w begins.
    dtype : dtype
        The dtype of parameters, inputs and outputs, float32 or float64.

    References
    ----------
    He, Zhang, Ren and Sun, "Delving deep into rectifiers", arXiv 1502.01852, 2015, eqs. 1 and 8.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> layer = gradcore.PReLU()
    >>> y, tape = layer.forward(np.float32([-2, 3]))
    >>> y, layer.backward(tape, np.ones_like(y)), layer.grads["weight"]
    (array([-0.5,  3. ], dtype=float32), array([0.25, 1.  ], dtype=float32), array([-2.], dtype=float32))
    """

    def __init__(self, num_parameters: int = 1, init: float = 0.25, *, dtype: DTypeLike = np.float32) -> None:
        self.num_parameters = check_int("num_parameters", num_parameters, least=1)
        self.init = check_number("init", init)
        super().__init__({"weight": (self.num_parameters,)}, dtype=dtype)
        self._pool = Pool()
        with np.errstate(over="ignore"):
            self.flat_params.fill(self.init)

    def forward(self, x: Array) -> tuple[Array, Tape]:
        """Return the output, and the tape that `backward` needs.

        Parameters
        ----------
        x : ndarray, (..., num_parameters), or of any shape with one slope
            The input, of the layer's dtype.

        Returns
        -------
        y : ndarray
            The output, of the shape of x.
        tape : Tape
            What `backward` needs.

        Raises
        ------
        TypeError, ValueError
            If x has the wrong dtype or shape.

        Examples
        --------
        >>> import numpy as np, gradcore
        >>> y, tape = gradcore.PReLU(2, init=0.5).forward(np.float32([[-1, 1], [1, -1]]))
        >>> y
        array([[-0.5,  1. ],
               [ 1. , -0.5]], dtype=float32)
        """
        x = self.check("x", x, (...,) if self.num_parameters == 1 else (..., self.num_parameters))
        y = self._pool.empty(x.shape, self.dtype)
        _kernels.prelu_forward(x, self._params["weight"], y)
        return y, Tape(self, y.shape, x)

    def backward(self, tape: Tape, dy: Array) -> Array:
        """Return the gradient with respect to x, and add that of the slopes to `grads`.

        If interrupted or out of memory, it resets `grads` to zero.

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
        RuntimeError
            If a signal handler calls it in the middle of a backward pass of the same layer.

        Examples
        --------
        >>> import numpy as np, gradcore
        >>> layer = gradcore.PReLU()
        >>> y, tape = layer.forward(np.float32([-1, 1]))
        >>> layer.backward(tape, np.float32([3, 3]))
        array([0.75, 3.  ], dtype=float32)
        """
        self.check_tape(tape)
        (x,) = tape.kept
        dy = self.check("dy", dy, tape.shape)
        with self._adding_or_zero(), self._adding.lock:
            return self._back(x, dy, self._grads["weight"])

    def _back(self, x: Array, dy: Array, dw: Array) -> Array:
        dx = self._pool.empty(x.shape, self.dtype)
        self._pool.give(_kernels.prelu_backward(x, self._params["weight"], dy, dx, dw, self._pool.take))
        return dx

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
        (x,) = tape.kept
        x_dot = self.check("x_dot", x_dot, x.shape)
        return self._back(x, x_dot, np.zeros_like(self._grads["weight"])), x_dot

    def backward_tangent(self, tape: Tape, tangent: Any, dy: Array, dy_dot: Array) -> tuple[Array, Array]:
        """Return how the backward pass changes as x moves, and add how the gradient of the slopes does.

        If interrupted or out of memory, it resets `grads` to zero.

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
        (x,), dw = tape.kept, self._grads["weight"]
        dy, dy_dot = self.check("dy", dy, tape.shape), self.check("dy_dot", dy_dot, tape.shape)
        with self._adding_or_zero(), self._adding.lock:
            dx, dx_dot = self._back(x, dy, np.zeros_like(dw)), self._back(x, dy_dot, dw)
            moved = np.where(x > 0, 0, dy * tangent)  # dw gets dy_dot x + dy x_dot below zero
            dw += moved.reshape(-1, dw.size).sum(axis=0) if moved.size else 0
        return dx, dx_dot

    def _sequences_after(self, where: str, before: Sequences) -> Sequences:
        return before
