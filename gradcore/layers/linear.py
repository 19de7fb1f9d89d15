"""The affine layer."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import DTypeLike

from gradcore import _kernels, init
from gradcore._base.check import Array, check_bool, check_int
from gradcore._base.memory import Pool
from gradcore.layers.dual import Dual
from gradcore.layers.layer import Layer, Sequences
from gradcore.layers.tape import Tape

__all__ = ["Generator", "Linear"]

Generator = np.random.Generator


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
        self.bias = check_bool("bias", bias)
        shapes: dict[str, tuple[int, ...]] = {"weight": (self.out_features, self.in_features)}
        super().__init__(shapes | ({"bias": (self.out_features,)} if self.bias else {}), dtype=dtype)
        self._pool = Pool()
        bound = 1 / math.sqrt(max(self.in_features, 1))
        init.uniform_(self.flat_params, -bound, bound, rng=rng)

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
        x = self.check("x", x, (..., self.in_features))
        y = self._pool.empty((*x.shape[:-1], self.out_features), self.dtype)
        weight, bias = self._params["weight"], self._params.get("bias")
        self._pool.give(_kernels.linear_forward(x, weight, bias, y, math.prod(x.shape[:-1]), self._pool.take))
        return y, Tape(self, y.shape, x)

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
        self.check_tape(tape)
        (x,) = tape.kept
        dy = self.check("dy", dy, tape.shape)
        dx = self._pool.empty(x.shape, self.dtype)
        weight, dw, db = self._params["weight"], self._grads["weight"], self._grads.get("bias")
        n = math.prod(tape.shape[:-1])
        with self._adding_or_zero(), self._adding.lock:
            work = _kernels.linear_backward(x, weight, dy, dx, dw, db, n, self._pool.take)
        self._pool.give(work)
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
        y_dot, n = self._pool.empty(tape.shape, self.dtype), math.prod(tape.shape[:-1])
        self._pool.give(_kernels.linear_forward(x_dot, self._params["weight"], None, y_dot, n, self._pool.take))
        return y_dot, x_dot

    def backward_tangent(self, tape: Tape, tangent: Array, dy: Array, dy_dot: Array) -> tuple[Array, Array]:
        """Return how the backward pass changes as x moves, and add how the gradients of the parameters do.

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
        x = Dual(tape.kept[0], tangent)
        d = Dual(self.check("dy", dy, tape.shape), self.check("dy_dot", dy_dot, tape.shape))
        weight, dw, db = self._params["weight"], self._grads["weight"], self._grads.get("bias")
        with self._adding_or_zero(), self._adding.lock:
            dx = back_of_linear(x, weight, d, dw, db, self._pool)
        return dx.value, dx.dot

    def _sequences_after(self, where: str, before: Sequences) -> Sequences:
        return before._replace(mixed=before.mixed or where)


def back_of_linear(x: Dual, weight: Array, dy: Dual, dw: Array, db: Array | None, pool: Pool) -> Dual:
    """Return dy W as a dual number, and add the tangents dy^T x_dot + dy_dot^T x to dw, and the sum of dy_dot to db."""
    dx = Dual(*(pool.empty(x.value.shape, x.value.dtype) for _ in range(2)))
    n = math.prod(dy.value.shape[:-1])
    pool.give(_kernels.linear_backward(x.dot, weight, dy.value, dx.value, dw, None, n, pool.take))
    pool.give(_kernels.linear_backward(x.value, weight, dy.dot, dx.dot, dw, db, n, pool.take))
    return dx
