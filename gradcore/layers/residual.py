"""The block that adds its input to what its layers make of it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from gradcore import _kernels
from gradcore._base.check import Array, check_dtype, check_number
from gradcore._base.memory import Pool, aligned_zeros
from gradcore.layers.composite import _has_dtype, _set_dtype
from gradcore.layers.layer import Layer, Sequences
from gradcore.layers.sequential import Sequential, SequentialTape

__all__ = ["Residual"]


class Residual(Sequential):
    r"""Add the input of a chain of layers to its output: :math:`y = x + s F(x)`.

    F, the branch, has to keep the shape of x. The gradient reaches x by itself and through the branch,
    :math:`dx = dy + s J_F^T dy`, and so does not vanish with depth. Members are named by position, as in `Sequential`;
    `lengths`, `reset`, states and `step_clip` go to those that take them. `tape.d_norm` holds the norms in the branch,
    from dL/d(its input) to dL/d(its output).

    Parameters
    ----------
    *layers : Layer
        The layers of the branch, applied one after the other.
    scale : float
        The factor s on the branch; below 1 in deep stacks, where every block adds to the variance.
    dtype : dtype
        The dtype of inputs and outputs, float32 or float64, where no layer has parameters that fix it.

    Attributes
    ----------
    layers : tuple of Layer
        The layers of the branch.
    names : tuple of str
        Their positions.

    References
    ----------
    He, Zhang, Ren and Sun, "Identity mappings in deep residual networks", arXiv 1603.05027, 2016, equations 3 to 5.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> block = gradcore.Residual(gradcore.LayerNorm(3), gradcore.Linear(3, 3), gradcore.ReLU(), scale=0.5)
    >>> y, tape = block.forward(np.ones((5, 3), np.float32))
    >>> dx = block.backward(tape, np.ones_like(y))
    >>> y.shape, list(block.params)
    ((5, 3), ['0.weight', '0.bias', '1.weight', '1.bias'])
    """

    def __init__(self, *layers: Layer, scale: float = 1.0, dtype: DTypeLike = np.float32) -> None:
        self.scale = check_number("scale", scale)
        checked = check_dtype(dtype)
        super().__init__(*layers)
        self._pool = Pool()
        if not any(map(_has_dtype, self.layers)):
            _set_dtype(self, checked)
            self._bind(aligned_zeros(0, checked), aligned_zeros(0, checked))

    def __call__(self, x: Array, state: Any = None, lengths: Any = None, reset: Any = None) -> Any:
        """Return the output, without dropout and without a tape, and the final state if an initial one is given.

        Parameters
        ----------
        x : ndarray
            The input, of the layers' dtype.
        state : tuple, optional
            The initial state of each recurrent layer, also of those in nested models, in order; None for zeros.
        lengths : array_like of int, (B,), optional
            The length of each sequence, for the layers that take it.
        reset : array_like of bool, (T, B), or (B, T) with `batch_first`, optional
            Where a sequence begins anew, for the recurrent layers.

        Returns
        -------
        y : ndarray
            The output, of the shape of x.
        state : tuple
            The final state of each recurrent layer; only if there is an initial one.

        Examples
        --------
        >>> import numpy as np, gradcore
        >>> gradcore.Residual(gradcore.ReLU())(np.float32([-1, 1]))
        array([-1.,  2.], dtype=float32)
        """
        x = self.check("x", x, (...,))
        branch = super().__call__(x, state, lengths, reset)
        if state is None:
            return self._add(x, branch)
        return self._add(x, branch[0]), branch[1]

    def forward(
        self, x: Array, state: Any = None, lengths: Any = None, reset: Any = None
    ) -> tuple[Array, SequentialTape]:
        """Return the output, and the tape that `backward` needs.

        Parameters
        ----------
        x : ndarray
            The input, of the layers' dtype.
        state : tuple, optional
            The initial state of each recurrent layer, also of those in nested models, in order; None for zeros.
        lengths : array_like of int, (B,), optional
            The length of each sequence, for the layers that take it.
        reset : array_like of bool, (T, B), or (B, T) with `batch_first`, optional
            Where a sequence begins anew, for the recurrent layers.

        Returns
        -------
        y : ndarray
            The output, of the shape of x.
        tape : SequentialTape
            What `backward` needs; `tape.state` is the final state, a tuple as the initial one.

        Raises
        ------
        TypeError, ValueError
            If a layer gets the wrong dtype or shape, the layers change the shape of x, or no layer takes `state`,
            `lengths` or `reset`.

        Examples
        --------
        >>> import numpy as np, gradcore
        >>> y, tape = gradcore.Residual(gradcore.ReLU(), scale=0.5).forward(np.float32([-1, 1]))
        >>> y
        array([-1. ,  1.5], dtype=float32)
        """
        x = self.check("x", x, (...,))
        branch, tape = super().forward(x, state, lengths, reset)
        tape.kept = (self.scale,)
        return self._add(x, branch), tape

    def _backward(self, tape: SequentialTape, dy: Array, dstates: list[Any], given: dict[str, Any]) -> Array:
        (scale,) = tape.kept  # as it was in `forward`
        dy = self.check("dy", dy, tape.shape)
        scaled = dy if scale == 1 else self._sum(None, scale, dy)
        return self._sum(dy, 1.0, super()._backward(tape, scaled, dstates, given))

    def forward_tangent(self, tape: SequentialTape, x_dot: Array) -> tuple[Array, list[Any]]:
        """Return how the output changes when x moves in the direction of `x_dot`.

        Parameters
        ----------
        tape : SequentialTape
            The tape from this block's `forward`.
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
        x_dot = self.check("x_dot", x_dot, tape.shape)
        branch, tangent = super().forward_tangent(tape, x_dot)
        return self._sum(x_dot, tape.kept[0], branch), tangent

    def backward_tangent(
        self, tape: SequentialTape, tangent: list[Any], dy: Array, dy_dot: Array
    ) -> tuple[Array, Array]:
        """Return how the backward pass changes when x moves, and add how the gradients of the parameters do.

        If interrupted or out of memory, it resets `grads` to zero.

        Parameters
        ----------
        tape : SequentialTape
            The tape from this block's `forward`.
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
        (scale,) = tape.kept
        dy, dy_dot = self.check("dy", dy, tape.shape), self.check("dy_dot", dy_dot, tape.shape)
        scaled = self._sum(None, scale, dy), self._sum(None, scale, dy_dot)
        dx, dx_dot = super().backward_tangent(tape, tangent, *scaled)
        return self._sum(dy, 1.0, dx), self._sum(dy_dot, 1.0, dx_dot)

    def _add(self, x: Array, branch: Any) -> Array:
        """Return y, after a check that the branch has kept the shape."""
        if np.shape(branch) != x.shape:
            raise ValueError(
                f"layers: expected an output of the shape of x, {x.shape}, to add it to x, got {np.shape(branch)}"
            )
        return self._sum(x, self.scale, self.check("layers", branch, x.shape))

    def _sum(self, a: Array | None, scale: float, b: Array) -> Array:
        total = self._pool.empty(b.shape, self.dtype)
        _kernels.residual_add(a, scale, b, total)
        return total

    def _sequences_after(self, where: str, before: Sequences) -> Sequences:
        return self._sequences_within(f"{where}.", before)
