"""What is passed as X, read as sequences, and batches of these."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from gradcore._base.check import Array
from gradcore.data import pad_sequence

__all__: list[str] = []  # for the package only


class Sequences:
    """Sequences of any lengths, one below the other. Every form of X becomes this one, so that all give the same bits.

    Parameters
    ----------
    rows : ndarray, (sum of the lengths, F)
        The steps of all sequences.
    lengths : ndarray of int, (n,)
        How many of them belong to each.
    """

    def __init__(self, rows: Array, lengths: Array) -> None:
        self.rows, self.lengths = rows, lengths
        self._ends = np.cumsum(lengths)
        self._even = bool((lengths == lengths[0]).all())

    def __len__(self) -> int:
        return len(self.lengths)

    def at_once(self, steps: int) -> int:
        """Return how many of the sequences have about so many steps together."""
        return max(1, steps // max(1, int(self.lengths.max())))

    def batch(self, chosen: Array) -> dict[str, Array]:
        """Return x (T, B, F) of some of the sequences, and their lengths where these differ."""
        if self._even:
            x = self.rows.reshape(len(self), self.lengths[0], self.rows.shape[1])
            return {"x": x[chosen].swapaxes(0, 1)}
        ends, lengths = self._ends[chosen], self.lengths[chosen]
        x, lengths = pad_sequence([self.rows[end - n : end] for end, n in zip(ends, lengths, strict=True)])
        return {"x": x, "lengths": lengths}


class Batches:
    """The batches of `fit`, as often as they are iterated over: in a new order each time if there is a generator."""

    def __init__(
        self, sequences: Sequences, target: Array, weight: Array | None, chosen: Array, size: int,
        rng: np.random.Generator | None = None,
    ) -> None:  # fmt: skip
        self._sequences, self._target, self._weight = sequences, target, weight
        self._chosen, self._size, self._rng = chosen, size, rng

    def __len__(self) -> int:
        return math.ceil(len(self._chosen) / self._size)

    def __iter__(self) -> Iterator[dict[str, Array]]:
        order = self._chosen if self._rng is None else self._rng.permutation(self._chosen)
        for chosen in np.array_split(order, len(self)):  # of about equal size: a batch of a few is noise
            batch = {**self._sequences.batch(chosen), "target": self._target[chosen]}
            yield batch if self._weight is None else {**batch, "weight": self._weight[chosen]}


def from_table(X: Array) -> Sequences:
    """Return the rows of a table (n, T), each a series of one feature."""
    n, T = X.shape
    return Sequences(X.reshape(n * T, 1), np.full(n, T))


def from_sequences(X: Any) -> tuple[Array, Array] | None:
    """Return the rows and the lengths of an array (n, T, F) or a list of (T_i, F) or (T_i,); None of anything else."""
    shape = getattr(X, "shape", None)
    if shape is None and hasattr(X, "__array__"):
        return from_sequences(np.asarray(X))
    if shape is not None and len(shape) == 3:
        n, T, F = shape
        return np.asarray(X).reshape(n * T, F), np.full(n, T)
    listed = isinstance(X, (list, tuple)) if shape is None else len(shape) == 1 and X.dtype == object
    return _from_list(list(X)) if listed and len(X) else None


def _from_list(X: list[Any]) -> tuple[Array, Array] | None:
    items = [_item(i, item) for i, item in enumerate(X)]
    axes = {item.ndim for item in items}
    if axes == {1} and not any(hasattr(item, "shape") for item in X) and len({len(item) for item in items}) == 1:
        return None  # lists of as many numbers: a table
    if not axes <= {1, 2}:
        return None
    features = 1 if axes == {1} else next(item.shape[1] for item in items if item.ndim == 2)
    for i, item in enumerate(items):
        if axes != {1} and item.shape[1:] != (features,):
            raise ValueError(f"X[{i}]: expected shape (T, {features}) as in the other sequences, got {item.shape}")
    rows = np.concatenate([item.reshape(len(item), features) for item in items])
    return rows, np.array([len(item) for item in items])


def _item(i: int, item: Any) -> Array:
    try:
        return np.asarray(item)
    except ValueError as error:
        raise ValueError(f"X[{i}]: expected a sequence of shape (T,) or (T, F): {error}") from None
