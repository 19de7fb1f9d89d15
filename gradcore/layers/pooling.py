"""Layers that turn a sequence into one vector."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from gradcore import _kernels
from gradcore._base.check import Array, check_bool, check_lengths, check_room
from gradcore._base.memory import Pool
from gradcore.layers.layer import Layer, Sequences
from gradcore.layers.tape import Tape

__all__ = ["FinalState", "LastStep", "MeanPool", "Pooling"]


class Pooling(Layer):
    """Base of the layers that turn each sequence into one vector, (T, B, F) -> (B, F).

    Parameters
    ----------
    batch_first : bool
        Whether x is (B, T, F) instead of (T, B, F).
    dtype : dtype
        The dtype of inputs and outputs, float32 or float64; a `Sequential` sets it to that of its parameters.

    Examples
    --------
    >>> import gradcore
    >>> isinstance(gradcore.MeanPool(), gradcore.layers.pooling.Pooling)
    True
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
            One vector for each sequence; zeros for a sequence of length 0.

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
            The length of each sequence; T by default. The values of x past a sequence's end have no effect.

        Returns
        -------
        y : ndarray, (B, F)
            One vector for each sequence; zeros for a sequence of length 0.
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
        T, B, F = self._by_steps(x).shape
        ends = check_lengths(lengths, T, B)
        check_room(B * (F + 1))
        y = self._pooled(x, ends)
        return y, Tape(self, y.shape, x.shape, ends)

    def backward(self, tape: Tape, dy: Array) -> Array:
        """Return the gradient with respect to x, zero where x has no effect.

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
        return self._spread(self.check("dy", dy, tape.shape), *tape.kept)

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
        shape, ends = tape.kept
        return self._pooled(self.check("x_dot", x_dot, shape), ends), None

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

    def _by_steps(self, x: Array) -> Array:
        """Return (T, B, F)."""
        return x.swapaxes(0, 1) if self.batch_first else x

    def _pooled(self, x: Array, ends: Array | None) -> Array:
        """Return y of sequences of these lengths; None for T."""
        raise NotImplementedError

    def _spread(self, dy: Array, shape: tuple[int, ...], ends: Array | None) -> Array:
        """Return dL/dx, of this shape."""
        raise NotImplementedError

    def _sequences_after(self, where: str, before: Sequences) -> Sequences:
        before.refuse_other_axes(where, self.batch_first)
        return Sequences()


class FinalState(Pooling):
    """Take each direction's last output, (T, B, D*H) -> (B, D*H), for models with one answer per sequence.

    The forward direction's is that at the sequence's last step; the reverse direction reads from the end, so that its
    is that at the first step. Of one recurrent layer they are the final states h, side by side.

    In a `Sequential` it knows from the recurrent layer below whether there are two directions, and needs the
    `batch_first` of that layer.

    Parameters
    ----------
    bidirectional : bool, optional
        Whether x holds the outputs of two directions, side by side. By default that of the recurrent layer below it in
        a model, or else one direction.
    batch_first : bool
        Whether x is (B, T, F) instead of (T, B, F).
    dtype : dtype
        The dtype of inputs and outputs, float32 or float64; a `Sequential` sets it to that of its parameters.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> rng = np.random.default_rng(0)
    >>> gru, linear = gradcore.GRU(3, 4, bidirectional=True, rng=rng), gradcore.Linear(8, 1, rng=rng)
    >>> model = gradcore.Sequential(gru, gradcore.FinalState(), linear)
    >>> x = np.ones((7, 2, 3), np.float32)
    >>> model(x, lengths=[7, 4]).shape
    (2, 1)
    >>> y, h = gru(x, lengths=[7, 4])
    >>> bool((gradcore.FinalState(bidirectional=True)(y, [7, 4]) == np.concatenate(h, axis=1)).all())
    True
    """

    def __init__(
        self, bidirectional: bool | None = None, batch_first: bool = False, *, dtype: DTypeLike = np.float32
    ) -> None:
        super().__init__(batch_first, dtype=dtype)
        self.bidirectional = None if bidirectional is None else check_bool("bidirectional", bidirectional)
        self._reverse = bool(self.bidirectional)

    def _ends_of(self, steps: Array, ends: Array | None) -> tuple[Array, Array, int]:
        """Return the last step of each sequence that has one, which these are, and the features of one direction."""
        T, B, F = steps.shape
        if self._reverse and F % 2:
            raise ValueError(f"x: expected two directions of as many features, got {F} features")
        last = (np.full(B, T) if ends is None else ends) - 1
        live = np.flatnonzero(last >= 0)
        return last[live], live, F // 2 if self._reverse else F

    def _pooled(self, x: Array, ends: Array | None) -> Array:
        steps = self._by_steps(x)
        last, live, H = self._ends_of(steps, ends)
        y = np.zeros(steps.shape[1:], self.dtype)
        y[live, :H] = steps[last, live, :H]
        y[live, H:] = steps[:1, live, H:]
        return y

    def _spread(self, dy: Array, shape: tuple[int, ...], ends: Array | None) -> Array:
        dx = np.zeros(shape, self.dtype)
        steps = self._by_steps(dx)
        last, live, H = self._ends_of(steps, ends)
        steps[last, live, :H] = dy[live, :H]
        steps[:1, live, H:] = dy[live, H:]
        return dx

    def _sequences_after(self, where: str, before: Sequences) -> Sequences:
        after = super()._sequences_after(where, before)
        if self.bidirectional is None:
            self._reverse = before.reverse
        elif before.source and self.bidirectional != before.reverse:
            raise ValueError(
                f"{where}: has bidirectional={self.bidirectional}, and {before.source} below it has "
                f"bidirectional={before.reverse}; leave it out, and the layer below decides"
            )
        if before.reverse and before.mixed:
            raise ValueError(
                f"{where}: FinalState takes the directions of {before.source} at different steps, but "
                f"{before.mixed} between them mixes both; swap the two"
            )
        return after


class LastStep(FinalState):
    """Take each sequence's last output, (T, B, F) -> (B, F), for models with one answer per sequence.

    In a `Sequential` it needs the `batch_first` of the recurrent layer below, and refuses a bidirectional one, for
    which there is `FinalState`: at the last step the reverse direction has read one step only.

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
        super().__init__(False, batch_first, dtype=dtype)

    def _sequences_after(self, where: str, before: Sequences) -> Sequences:
        if before.reverse:
            raise ValueError(
                f"{where}: LastStep takes the output at each sequence's last step, where the reverse direction of "
                f"{before.source} has read one step only; use FinalState, or a layer with bidirectional=False"
            )
        return super()._sequences_after(where, before)


class MeanPool(Pooling):
    """Take the mean of each sequence's steps, (T, B, F) -> (B, F), for models with one answer per sequence.

    In a `Sequential` it needs the `batch_first` of the recurrent layer below.

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
    >>> y, tape = gradcore.MeanPool().forward(x, lengths=[2, 3])
    >>> y.ravel()
    array([1., 3.], dtype=float32)
    """

    def __init__(self, batch_first: bool = False, *, dtype: DTypeLike = np.float32) -> None:
        super().__init__(batch_first, dtype=dtype)
        self._pool = Pool()

    def _pooled(self, x: Array, ends: Array | None) -> Array:
        y = np.empty(self._by_steps(x).shape[1:], self.dtype)
        _kernels.mean_forward(x, y, ends, self.batch_first)
        return y

    def _spread(self, dy: Array, shape: tuple[int, ...], ends: Array | None) -> Array:
        dx = self._pool.empty(shape, self.dtype)
        _kernels.mean_backward(dy, dx, ends, self.batch_first)
        return dx
