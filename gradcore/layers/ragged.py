"""How sequences of different lengths are laid out as rows for the kernels."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np

from gradcore import _kernels
from gradcore._base.check import Array, check_index, check_room
from gradcore._base.memory import Pool

__all__: list[str] = []  # for the package only

KEPT_STEPS = 10_000


@lru_cache(16)
def _even_offsets(T: int, B: int) -> Array:
    """Return where the steps of T B rows begin, read-only."""
    offsets: Array = np.arange(T + 1, dtype=np.intp) * B
    offsets.flags.writeable = False
    return offsets


class _Batch:
    """Lay out T steps of B sequences as rows for the kernels: packed, the longest sequence first.

    If all sequences have the same length, the S rows are the first ones of the flattened (T, B) axes. Otherwise `rows`
    holds their positions there in packed order, `dead` the other positions, and `order` the sequences from long to
    short. The kernels run through `width` sequences; row i of their step t is row ``offsets[t] + i``.
    """

    def __init__(self, T: int, B: int, lengths: Array | None, pool: Pool) -> None:
        self.T, self.B, self.width, self._pool = T, B, B, pool
        self.rows = self.dead = self.order = self.rank = None
        # made once for the shapes of a training run, whose sequences are short enough to keep
        self.offsets = _even_offsets(T, B) if T < KEPT_STEPS else _even_offsets.__wrapped__(T, B)
        self.n_rows = T * B
        if lengths is None:
            return
        self.n_rows = int(lengths.sum())
        longest = int(lengths.max(initial=0))
        if (lengths == longest).all():
            self.offsets = np.minimum(self.offsets, self.n_rows)
            return
        self.order = np.argsort(-lengths, kind="stable")
        self.rank = np.argsort(self.order, kind="stable")
        alive = np.arange(T)[:, None] < lengths[self.order]  # (T, B)
        self.offsets = np.concatenate([[0], np.cumsum(alive.sum(axis=1))]).astype(np.intp)
        positions = np.arange(T)[:, None] * B + self.order
        self.rows, self.dead = positions[alive], positions[~alive]

    def pack(self, x: Array) -> Array:
        """(T, B, F) -> (S, F)"""
        flat = x.reshape(self.T * self.B, x.shape[2])
        if self.rows is None:
            return flat if self.n_rows == len(flat) else flat[: self.n_rows]
        packed = self._pool.empty((self.n_rows, x.shape[2]), x.dtype)
        _kernels.copy_rows(flat, self.rows, packed, None)
        return packed

    def padded(self, F: int, dtype: np.dtype[Any]) -> Array:
        """Return (T*B, F), zero past each sequence's end; the caller fills the rows `rows`, or the first n_rows."""
        padded = self._pool.empty((self.T * self.B, F), dtype)
        if self.rows is not None:
            _kernels.copy_rows(None, None, padded, self.dead)
        elif self.n_rows < len(padded):
            padded[self.n_rows :] = 0
        return padded

    def unpack(self, rows: Array) -> Array:
        """(S, F) -> (T, B, F), zero past each sequence's end"""
        F, padded = rows.shape[1], rows
        if self.rows is not None or self.n_rows < self.T * self.B:
            padded = self.padded(F, rows.dtype)
            _kernels.copy_rows(rows, None, padded, np.arange(self.n_rows) if self.rows is None else self.rows)
        return padded.reshape(self.T, self.B, F)

    def in_time(self, rows: Array) -> Array:
        """(S, F) -> (T, B, F) with the sequences in the caller's order, zero past each one's end"""
        return self.unpack(rows)

    def sort(self, state: Array, num_directions: int, *, final: bool = False) -> Array:
        """Return a copy, (L*D, width, H), of initial or final states with the sequences in packed order."""
        return state.copy() if self.order is None else state.take(self.order, axis=1)

    def unsort(self, parts: list[Array], num_directions: int, *, final: bool = False) -> tuple[Array, ...]:
        """Return the parts of initial or final states with the sequences in the caller's order."""
        return tuple(parts if self.rank is None else [part.take(self.rank, axis=1) for part in parts])

    def rows_of(self, b: int) -> Array:
        """Return the rows of sequence b, step by step."""
        rank = b if self.rank is None else int(self.rank[b])
        rows: Array = self.offsets[:-1][np.diff(self.offsets) > rank] + rank
        return rows

    def row(self, t: int, b: int) -> int:
        """Return the row of step t of sequence b."""
        t, b = check_index("t", t, self.T), check_index("b", b, self.B)
        rank = b if self.rank is None else int(self.rank[b])
        if rank >= self.offsets[t + 1] - self.offsets[t]:
            raise IndexError(f"t: sequence {b} has ended before step {t}")
        return int(self.offsets[t]) + rank

    def cuts_of(self, b: int) -> Array:
        """Return the steps of sequence b before which the state is set to zero."""
        return np.empty(0, np.intp)


class _PackedBatch(_Batch):
    """Take rows as they lie: x and y are (S, F), and the caller has packed them, the longest sequence first.

    States are in the order of the rows too. Row i of a step belongs to the caller's sequence ``order[i]``, or to
    sequence i if `order` is None.
    """

    def __init__(self, batch_sizes: Array, order: Array | None, pool: Pool) -> None:
        super().__init__(len(batch_sizes), int(batch_sizes.max(initial=0)), None, pool)
        self.offsets = np.concatenate([[0], np.cumsum(batch_sizes)]).astype(np.intp)
        self.n_rows = int(self.offsets[-1])
        self._packed_order = order

    def pack(self, x: Array) -> Array:
        """(S, F) -> (S, F)"""
        return x

    def padded(self, F: int, dtype: np.dtype[Any]) -> Array:
        """Return (S, F); the caller fills all rows."""
        return self._pool.empty((self.n_rows, F), dtype)

    def unpack(self, rows: Array) -> Array:
        """(S, F) -> (S, F)"""
        return rows

    def in_time(self, rows: Array) -> Array:
        """(S, F) -> (T, B, F) with the sequences in the caller's order, zero past each one's end"""
        lengths = (np.arange(self.B)[:, None] < np.diff(self.offsets)).sum(axis=1)
        padded = _Batch(self.T, self.B, lengths, self._pool).unpack(rows)
        if self._packed_order is None:
            return padded
        return padded.take(np.argsort(self._packed_order), axis=1)


class _CutBatch(_Batch):
    """Lay out sequences that are cut at some steps: their segments are the sequences of the kernels.

    Forward, the first segment of a sequence begins from the initial state, unless it is cut before step 0, and the last
    one ends with the final state; in the reverse direction it is the other way round. All others begin from zeros.
    """

    def __init__(self, T: int, B: int, lengths: Array | None, reset: Array, pool: Pool) -> None:
        ends = np.full(B, T) if lengths is None else lengths
        cuts = reset & (np.arange(T)[:, None] < ends)  # (T, B)
        self._cuts, self._fresh = cuts, cuts[:1].any(axis=0)  # (B,): those that do not begin from the initial state
        b_cut, t_cut = np.nonzero(cuts[1:].T)  # of the further segments, sequence by sequence
        n_segments = np.bincount(b_cut, minlength=B) + 1
        self._last = np.cumsum(n_segments) - 1
        self._first = self._last + 1 - n_segments
        width = int(n_segments.sum())
        self._start = np.zeros(width, np.intp)
        further = np.ones(width, bool)
        further[self._first] = False
        self._start[further] = t_cut + 1
        stop = np.append(self._start[1:], 0)
        stop[self._last] = ends
        self._length = stop - self._start
        super().__init__(int(self._length.max(initial=0)), width, self._length, pool)

        if self.order is None:  # of equal length
            self.order = self.rank = np.arange(width)
        step = np.arange(self.T)[:, None]
        positions = (self._start[self.order] + step) * B + np.repeat(np.arange(B), n_segments)[self.order]
        self.rows = positions[step < self._length[self.order]]
        self.dead = np.flatnonzero(np.arange(T)[:, None] >= ends)
        self.T, self.B = T, B

    def sort(self, state: Array, num_directions: int, *, final: bool = False) -> Array:
        """Return the states, (L*D, width, H), in packed order; zeros for segments in between."""
        packed = np.zeros((len(state), self.width, state.shape[2]), state.dtype)
        for direction, at, kept in self._ends(num_directions, final):
            packed[direction::num_directions, at] = np.where(kept[:, None], state[direction::num_directions], 0)
        return packed

    def unsort(self, parts: list[Array], num_directions: int, *, final: bool = False) -> tuple[Array, ...]:
        """Return those of the segments at the sequences' ends, zeros where the initial state has no effect."""
        shape = (len(parts[0]), self.B, parts[0].shape[2])
        found = tuple(np.zeros(shape, part.dtype) for part in parts)
        for direction, at, kept in self._ends(num_directions, final):
            for own, part in zip(found, parts, strict=True):
                own[direction::num_directions] = np.where(kept[:, None], part[direction::num_directions, at], 0)
        return found

    def _ends(self, num_directions: int, final: bool) -> Iterator[tuple[int, Array, Array]]:
        """Yield each direction, where its segments at this end are, and for which sequences they have the state."""
        assert self.rank is not None
        for direction in range(num_directions):
            at_start = final == (direction == 1)
            kept = np.logical_not(self._fresh) if at_start and not final else np.ones(self.B, bool)
            yield direction, self.rank[self._first if at_start else self._last], kept

    def rows_of(self, b: int) -> Array:
        """Return the rows of sequence b, step by step."""
        assert self.rank is not None
        own = slice(self._first[b], self._last[b] + 1)
        parts = [self.offsets[:n] + rank for n, rank in zip(self._length[own], self.rank[own], strict=True)]
        return np.concatenate(parts)

    def row(self, t: int, b: int) -> int:
        """Return the row of step t of sequence b."""
        rows = self.rows_of(check_index("b", b, self.B))
        if check_index("t", t, self.T) >= len(rows):
            raise IndexError(f"t: sequence {b} has ended before step {t}")
        return int(rows[t])

    def cuts_of(self, b: int) -> Array:
        """Return the steps of sequence b before which the state is set to zero."""
        return np.flatnonzero(self._cuts[:, b])


def laid_out(T: int, B: int, lengths: Array | None, reset: Array | None, pool: Pool) -> _Batch:
    """Return the layout of sequences, cut before the steps where `reset` (T, B) is true."""
    if reset is None or not reset.any():
        return _Batch(T, B, lengths, pool)
    return _CutBatch(T, B, lengths, reset, pool)


class _SequenceRows:
    """Lay out the steps of B sequences as n rows: in the order of (T, B), or one sequence after another.

    The second is for sequences that end early, of which only the steps that they have are rows.
    """

    def __init__(self, T: int, B: int, lengths: Array | None, pool: Pool) -> None:
        check_room(B * (T + 1))
        self.T, self.B, self._pool = T, B, pool
        self._at: Array | None = None  # where each row is in (T, B), if not in its order
        if lengths is None or (lengths == T).all():
            self.n = T * B
            self.steps = np.arange(B, dtype=np.intp), np.full(B, T, np.intp), max(B, 1)
            return
        ends = np.cumsum(lengths)
        self.n = int(ends[-1])
        self.steps = ends - lengths, lengths, 1
        step = np.arange(self.n) - np.repeat(ends - lengths, lengths)
        self._at = step * B + np.repeat(np.arange(B), lengths)

    def pack(self, x: Array) -> Array:
        """(T, B, F) -> (n, F)"""
        flat = x.reshape(self.T * self.B, x.shape[2])
        if self._at is None:
            return flat
        rows = self._pool.empty((self.n, x.shape[2]), x.dtype)
        _kernels.copy_rows(flat, self._at, rows, None)
        return rows

    def unpack(self, rows: Array) -> Array:
        """(n, F) -> (T, B, F), zero past each sequence's end"""
        shape = (self.T, self.B, rows.shape[1])
        if self._at is None:
            return rows.reshape(shape)
        padded = self._pool.empty((self.T * self.B, rows.shape[1]), rows.dtype)
        padded.fill(0)
        _kernels.copy_rows(rows, None, padded, self._at)
        return padded.reshape(shape)
