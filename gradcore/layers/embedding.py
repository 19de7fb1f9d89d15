"""A table of vectors, looked up by integers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from gradcore import _kernels, init
from gradcore._base.check import Array, as_array, check_int, check_rng, check_room
from gradcore._base.memory import Pool
from gradcore.layers.layer import Layer, Sequences
from gradcore.layers.tape import Tape

__all__ = ["Embedding"]


class Embedding(Layer):
    """Look up a vector for each integer: y = W[x] over any leading axes.

    W (num_embeddings, embedding_dim) is drawn from N(0, 1). The gradient is dL/dW[k] = the sum of dL/dy over all places
    where x is k, added in their order; x, which holds integers, has none.

    Parameters
    ----------
    num_embeddings : int
        The number of vectors; x is from 0 to one less.
    embedding_dim : int
        The size of each vector.
    padding_idx : int, optional
        A vector that begins as zeros and gets no gradient; from the end if negative.
    dtype : dtype
        The dtype of parameters and outputs, float32 or float64.
    rng : int or numpy.random.Generator, optional
        The generator, or the seed of one, that draws the parameters.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> layer = gradcore.Embedding(10, 3, padding_idx=0, rng=0)
    >>> y, tape = layer.forward(np.array([[4, 4], [7, 0]]))
    >>> layer.backward(tape, np.ones_like(y))
    >>> y.shape, layer.grads["weight"][:, 0]
    ((2, 2, 3), array([0., 0., 0., 0., 2., 0., 0., 1., 0., 0.], dtype=float32))

    A model of texts of different lengths:

    >>> rng = np.random.default_rng(0)
    >>> table, lstm = gradcore.Embedding(10, 3, rng=rng), gradcore.LSTM(3, 8, rng=rng)
    >>> model = gradcore.Sequential(table, lstm, gradcore.LastStep(), gradcore.Linear(8, 2, rng=rng))
    >>> model(np.array([[4, 1], [7, 2], [9, 0]]), lengths=[3, 2]).shape
    (2, 2)
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        dtype: DTypeLike = np.float32,
        rng: int | np.random.Generator | None = None,
    ) -> None:
        self.num_embeddings = check_int("num_embeddings", num_embeddings)
        self.embedding_dim = check_int("embedding_dim", embedding_dim)
        self.padding_idx = None if padding_idx is None else _row(padding_idx, self.num_embeddings)
        rng = check_rng(rng)
        super().__init__({"weight": (self.num_embeddings, self.embedding_dim)}, dtype=dtype)
        self._pool = Pool()
        init.normal_(self._params["weight"], rng=rng)
        if self.padding_idx is not None:
            self._params["weight"][self.padding_idx] = 0

    def forward(self, x: Any) -> tuple[Array, Tape]:
        """Return the output, and the tape that `backward` needs.

        Parameters
        ----------
        x : array_like of int
            The integers, of any shape and any integer dtype.

        Returns
        -------
        y : ndarray, (..., embedding_dim)
            The vectors.
        tape : Tape
            What `backward` needs.

        Raises
        ------
        TypeError
            If x does not hold integers.
        ValueError
            If one of them is out of range. Nothing has been computed then.

        Examples
        --------
        >>> import numpy as np, gradcore
        >>> y, tape = gradcore.Embedding(10, 3).forward([4, 7])
        >>> y.shape
        (2, 3)
        """
        rows, shape = self._rows(x)
        check_room(math.prod(max(n, 1) for n in shape) * self.embedding_dim, self.dtype.itemsize)
        y = self._pool.empty((*shape, self.embedding_dim), self.dtype)
        _kernels.copy_rows(self._params["weight"], rows, y.reshape(rows.size, self.embedding_dim), None)
        return y, Tape(self, y.shape, rows)

    def _rows(self, x: Any) -> tuple[Array, tuple[int, ...]]:
        """Return the integers in a row, in an array of their own that nobody can change, and their shape."""
        given = as_array("x", x)
        if given.dtype.kind not in "iu" and (given.size or given is x):
            raise TypeError(f"x: expected integers, got {given.dtype}")
        check_room(given.size)
        rows = given.reshape(-1).astype(np.intp)
        if rows.size and not (rows.min() >= 0 and rows.max() < self.num_embeddings):
            first = int(((rows < 0) | (rows >= self.num_embeddings)).argmax())
            at = tuple(int(i) for i in np.unravel_index(first, given.shape))
            where = f" at position {at[0] if len(at) == 1 else at}" if at else ""
            raise ValueError(f"x: expected 0 <= x < {self.num_embeddings}, got {given[at]}{where}")
        return rows, given.shape

    def backward(self, tape: Tape, dy: Array) -> None:
        """Add the gradient of the parameters to `grads`. Integers have none.

        If interrupted, it resets `grads` to zero.

        Parameters
        ----------
        tape : Tape
            The tape from this layer's `forward`.
        dy : ndarray, (..., embedding_dim)
            The gradient with respect to y.

        Raises
        ------
        TypeError, ValueError
            If dy has another dtype or shape than y, or the tape comes from another layer.
        RuntimeError
            If a signal handler calls it in the middle of a backward pass of the same layer.

        Examples
        --------
        >>> import numpy as np, gradcore
        >>> layer = gradcore.Embedding(3, 2)
        >>> y, tape = layer.forward([1, 1])
        >>> layer.backward(tape, np.ones_like(y))
        >>> layer.grads["weight"]
        array([[0., 0.],
               [2., 2.],
               [0., 0.]], dtype=float32)
        """
        self.check_tape(tape)
        (rows,) = tape.kept
        dy = self.check("dy", dy, tape.shape)
        skip = -1 if self.padding_idx is None else self.padding_idx
        with self._adding_or_zero(), self._adding.lock:
            _kernels.embedding_backward(rows, skip, dy, self._grads["weight"])

    def _refuse_without_tangent(self, name: str) -> None:
        raise TypeError(
            f"{name}: Embedding reads integers, with respect to which there is no gradient; give the layers above it "
            "alone, and its output as x"
        )

    def _sequences_after(self, where: str, before: Sequences) -> Sequences:
        return before


def _row(value: Any, n: int) -> int:
    """Return the number of a row, also where it is counted from the end, as PyTorch allows it."""
    row = check_int("padding_idx", value, least=-n)
    if row >= n:
        raise ValueError(f"padding_idx: expected an integer below {n}, the number of vectors, got {row}")
    return row % n
