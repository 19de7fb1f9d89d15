"""Layers that turn a sequence into one vector."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from gradcore._base.check import Array, check_bool, check_lengths, check_room
from gradcore.layers.layer import Layer, Sequences
from gradcore.layers.tape import Tape

__all__ = ["LastStep"]


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

    takes = frozenset({"lengths"})

    def __init__(self, batch_first: bool = False, *, dtype: DTypeLike = np.float32) -> None:
        super().__init__(dtype=dtype)
        self.batch_first = check_bool("batch_first", batch_first)

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

    def forward(self, x: Array, lengths: Any = None) -> tuple[Array, Tape]:
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
        tape : Tape
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
        x = self.check("x", x, ("B", "T", "F") if self.batch_first else ("T", "B", "F"))
        steps = x.swapaxes(0, 1) if self.batch_first else x  # (T, B, F)
        T, B, F = steps.shape
        checked = check_lengths(lengths, T, B)
        check_room(B * (F + 1))
        last = (np.full(B, T) if checked is None else checked) - 1
        live = np.flatnonzero(last >= 0)
        y = np.zeros((B, F), self.dtype)
        y[live] = steps[last[live], live]
        return y, Tape(self, y.shape, x.shape, last[live], live)

    def backward(self, tape: Tape, dy: Array) -> Array:
        """Return the gradient with respect to x, which is zero but at each sequence's last step.

        Parameters
        ----------
        tape : Tape
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
        self.check_tape(tape)
        shape, last, live = tape.kept
        dx = np.zeros(shape, self.dtype)
        steps = dx.swapaxes(0, 1) if self.batch_first else dx
        steps[last, live] = self.check("dy", dy, tape.shape)[live]
        return dx

    def forward_tangent(self, tape: Tape, x_dot: Array) -> tuple[Array, None]:
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
        tangent : None
            Nothing.
        """
        self.check_tape(tape)
        shape, last, live = tape.kept
        x_dot = self.check("x_dot", x_dot, shape)
        y_dot = np.zeros(tape.shape, self.dtype)
        y_dot[live] = (x_dot.swapaxes(0, 1) if self.batch_first else x_dot)[last, live]
        return y_dot, None

    def backward_tangent(self, tape: Tape, tangent: None, dy: Array, dy_dot: Array) -> tuple[Array, Array]:
        """Return how the backward pass changes when x moves as in `forward_tangent`.

        Parameters
        ----------
        tape : Tape
            The tape from this layer's `forward`.
        tangent : None
            Nothing.
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
        return self.backward(tape, dy), self.backward(tape, dy_dot)

    def _sequences_after(self, where: str, before: Sequences) -> Sequences:
        before.refuse_other_axes(where, self.batch_first)
        if before.reverse:
            raise ValueError(
                f"{where}: LastStep takes the output at each sequence's last step, where the reverse direction of "
                f"{before.source} has read one step only; use a layer with bidirectional=False, or take the final "
                "state from its tape.state"
            )
        return Sequences()
