"""Dropout."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

from gradcore import _kernels
from gradcore._base.check import Array, check_number, check_rng
from gradcore._base.memory import Pool
from gradcore.layers.layer import Layer, Sequences
from gradcore.layers.tape import Tape

__all__ = ["Dropout"]


class Dropout(Layer):
    """Drop elements at random in training: y = x m / (1 - p), where m is 0 with probability p and 1 otherwise.

    `forward` draws m for each element anew. ``layer(x)`` is x itself: the expectation of y is x.

    Parameters
    ----------
    p : float
        The probability with which an element becomes zero, from 0 to 1. It may be changed between calls.
    dtype : dtype
        The dtype of inputs and outputs, float32 or float64; a `Sequential` sets it to that of its parameters.
    rng : int or numpy.random.Generator, optional
        The generator, or the seed of one, of which each `forward` draws one number. All of m follows from it, with the
        same bits for any number of threads.

    References
    ----------
    Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", JMLR 15, 2014, section 4.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> layer = gradcore.Dropout(0.5, rng=0)
    >>> x = np.ones((2, 4), np.float32)
    >>> y, tape = layer.forward(x)
    >>> y
    array([[2., 2., 0., 0.],
           [0., 2., 0., 2.]], dtype=float32)
    >>> layer(x)
    array([[1., 1., 1., 1.],
           [1., 1., 1., 1.]], dtype=float32)
    """

    def __init__(
        self, p: float = 0.5, *, dtype: DTypeLike = np.float32, rng: int | np.random.Generator | None = None
    ) -> None:
        super().__init__(dtype=dtype)
        self.p = p
        self._rng = check_rng(rng)
        self._pool = Pool()

    @property
    def p(self) -> float:
        """The probability with which an element becomes zero."""
        return self._p

    @p.setter
    def p(self, value: float) -> None:
        self._p = check_number("p", value, least=0.0, most=1.0)

    def generators(self) -> list[np.random.Generator]:
        """Return the generator that `forward` draws from.

        Returns
        -------
        list of numpy.random.Generator
            One generator, or none if nothing is dropped.

        Examples
        --------
        >>> import gradcore
        >>> gradcore.Dropout(0.0).generators()
        []
        """
        return [self._rng] if self.p else []

    def __call__(self, x: Array) -> Array:
        """Return x itself, after a check.

        Parameters
        ----------
        x : ndarray
            The input, of any shape and the layer's dtype.

        Returns
        -------
        ndarray
            The input.

        Examples
        --------
        >>> import numpy as np, gradcore
        >>> gradcore.Dropout(0.9)(np.float32([1, 2]))
        array([1., 2.], dtype=float32)
        """
        return self.check("x", x, (...,))

    def forward(self, x: Array) -> tuple[Array, Tape]:
        """Return the output, some of it dropped, and the tape that `backward` needs.

        Parameters
        ----------
        x : ndarray
            The input, of any shape and the layer's dtype.

        Returns
        -------
        y : ndarray
            The output, of the shape of x; x itself if p is 0.
        tape : Tape
            What `backward` needs.

        Raises
        ------
        TypeError
            If x has the wrong dtype.

        Examples
        --------
        >>> import numpy as np, gradcore
        >>> y, tape = gradcore.Dropout(1.0).forward(np.float32([1, 2]))
        >>> y
        array([0., 0.], dtype=float32)
        """
        x = self.check("x", x, (...,))
        if not self.p:
            return x, Tape(self, x.shape, 0.0, 0)
        key = int(self._rng.integers(2**64, dtype=np.uint64))
        y = self._pool.empty(x.shape, self.dtype)
        _kernels.dropout(self.p, key, x, y)
        return y, Tape(self, y.shape, self.p, key)

    def backward(self, tape: Tape, dy: Array) -> Array:
        """Return the gradient with respect to x: dL/dx = dL/dy m / (1 - p).

        Parameters
        ----------
        tape : Tape
            The tape from this layer's `forward`.
        dy : ndarray
            The gradient with respect to y.

        Returns
        -------
        ndarray
            The gradient with respect to x, of the shape of x; dy itself if p was 0.

        Raises
        ------
        TypeError, ValueError
            If dy has another dtype or shape than y, or the tape comes from another layer.

        Examples
        --------
        >>> import numpy as np, gradcore
        >>> layer = gradcore.Dropout(0.5, rng=0)
        >>> y, tape = layer.forward(np.ones(4, np.float32))
        >>> layer.backward(tape, np.ones(4, np.float32))
        array([2., 2., 0., 0.], dtype=float32)
        """
        self.check_tape(tape)
        p, key = tape.kept  # as they were in `forward`
        dy = self.check("dy", dy, tape.shape)
        if not p:
            return dy
        dx = self._pool.empty(tape.shape, self.dtype)
        _kernels.dropout(p, key, dy, dx)
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
        return self.backward(tape, x_dot), None

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
        return before
