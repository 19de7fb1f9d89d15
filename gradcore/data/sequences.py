"""From arrays to batches of sequences: windows of a series, streams of a long text, and lists of sequences padded."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gradcore._base.check import (
    FLOAT32,
    FLOAT64,
    Array,
    as_array,
    as_list,
    check_bool,
    check_index,
    check_int,
    check_real,
    check_rng,
    check_room,
)

__all__ = ["Streams", "Windows", "pad_sequence", "streams", "windows"]


def whole_windows(values: Array, steps: int) -> Array:
    """Return where the windows of so many rows begin in which nothing is missing."""
    n = len(values) - steps + 1
    if n <= 0:
        return np.zeros(0, int)
    before = np.concatenate([[0], np.cumsum(~np.isfinite(values).all(axis=1))])
    return np.flatnonzero(before[steps:] == before[:n])


class Windows:
    """The batches of `windows`, as often as they are iterated over.

    Parameters
    ----------
    series, targets : ndarray, (n, F)
        The columns of x and of the targets.
    starts : ndarray of int
        Where each window begins.
    seq_len, horizon, batch : int
        The steps of a window, how far ahead its target is, and the windows of a batch.
    rng : numpy.random.Generator or None
        What draws the order of the windows; None for that of time.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore.data import windows
    >>> batches = windows(np.arange(10.0), 4, batch=4)
    >>> len(batches), [x.shape for x, target in batches]
    (2, [(4, 4, 1), (4, 2, 1)])
    """

    def __init__(
        self, series: Array, targets: Array, starts: Array, seq_len: int, horizon: int, batch: int,
        rng: np.random.Generator | None,
    ) -> None:  # fmt: skip
        self.starts, self.batch = starts, batch
        self._targets, self._ahead, self._rng = targets, seq_len - 1 + horizon, rng
        # (windows, F, T), a view
        self._windows = np.lib.stride_tricks.sliding_window_view(series, seq_len, axis=0)

    def __len__(self) -> int:
        return math.ceil(len(self.starts) / self.batch)

    def __iter__(self) -> Iterator[tuple[Array, Array]]:
        starts = self.starts if self._rng is None else self._rng.permutation(self.starts)
        for first in range(0, len(starts), self.batch):
            chosen = starts[first : first + self.batch]
            yield self._at(chosen), self._targets[chosen + self._ahead]

    def _at(self, chosen: Array) -> Array:
        """Return these windows, (T, B, F): a view where they are equally far apart, in the order of time."""
        steps = np.diff(chosen)
        step = int(steps[0]) if len(steps) else 1
        regular = step > 0 and bool((steps == step).all())
        which: Any = slice(int(chosen[0]), int(chosen[-1]) + 1, step) if regular else chosen
        return np.asarray(self._windows[which].transpose(2, 0, 1))


def windows(
    series: Any,
    seq_len: int,
    *,
    horizon: int = 1,
    step: int = 1,
    batch: int = 32,
    inputs: int | Sequence[int] | None = None,
    target: int | Sequence[int] | None = None,
    rng: int | np.random.Generator | None = None,
) -> Windows:
    """Cut a series into windows to forecast it from, in batches for `fit`.

    The target of a window is the row `horizon` steps after its last one. Windows in which an input or the target is
    missing (NaN or infinite) are left out. Without `rng`, x is a read-only view of the series wherever the windows of a
    batch are equally far apart; nothing is copied until a layer does so.

    Parameters
    ----------
    series : ndarray, (n,) or (n, F)
        The series, float32 or float64, from old to new.
    seq_len : int
        T, the steps of a window.
    horizon : int
        How many steps ahead the target is; 0 for the last row of the window itself.
    step : int
        The steps from the beginning of one window to that of the next.
    batch : int
        The number of windows in a batch. The last batch holds what is left.
    inputs : int or sequence of int, optional
        The columns of x. By default all.
    target : int or sequence of int, optional
        The columns of the target. By default all.
    rng : int or numpy.random.Generator, optional
        The generator, or the seed of one, that draws a new order of the windows for each pass. By default they come in
        the order of time.

    Returns
    -------
    Windows
        An iterable, with a length, of x (T, B, number of inputs) and target (B, number of targets).

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid, or the series has no whole window.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> series = np.sin(np.arange(300, dtype=np.float32) / 5)
    >>> train = gradcore.data.windows(series[:200], 20, batch=64, rng=0)
    >>> x, target = next(iter(train))
    >>> x.shape, target.shape
    ((20, 64, 1), (64, 1))
    >>> rng = np.random.default_rng(0)
    >>> model = gradcore.Sequential(gradcore.GRU(1, 16, rng=rng), gradcore.LastStep(), gradcore.Linear(16, 1, rng=rng))
    >>> optimizer = gradcore.optim.Adam(model, lr=0.01)
    >>> history = gradcore.fit(model, train, gradcore.losses.mse, optimizer, epochs=30)
    >>> bool(history.loss[-1] < 0.1 * history.loss[0])
    True
    """
    given = as_array("series", series)
    if given.dtype not in (FLOAT32, FLOAT64):
        raise TypeError(f"series: expected float32 or float64, got {given.dtype}")
    if given.ndim not in (1, 2):
        raise ValueError(f"series: expected shape (n,) or (n, F), got {given.shape}")
    rows = given[:, None] if given.ndim == 1 else given
    n, F = rows.shape
    seq_len, horizon = check_int("seq_len", seq_len, least=1), check_int("horizon", horizon)
    step, batch = check_int("step", step, least=1), check_int("batch", batch, least=1)
    ins, outs = _columns("inputs", inputs, F), _columns("target", target, F)
    order = None if rng is None else check_rng(rng)

    chosen, targets = rows if ins is None else rows[:, ins], rows if outs is None else rows[:, outs]
    starts = whole_windows(chosen, seq_len)
    starts = starts[(starts % step == 0) & (starts + seq_len - 1 + horizon < n)]
    starts = starts[np.isfinite(targets[starts + seq_len - 1 + horizon]).all(axis=1)]
    if not len(starts):
        raise ValueError(
            f"series: expected a window of {seq_len} steps and a target {horizon} steps after it, in which nothing is "
            f"missing; got {n} rows, of which {int(np.isfinite(rows).all(axis=1).sum())} are whole"
        )
    return Windows(chosen, targets, starts, seq_len, horizon, batch, order)


def _columns(name: str, value: Any, n: int) -> list[int] | None:
    """Return the numbers of columns; None for all."""
    if value is None:
        return None
    if isinstance(value, (int, np.integer)):
        return [check_index(name, value, n)]
    found = [check_index(f"{name}[{i}]", each, n) for i, each in enumerate(as_list(name, value))]
    if not found:
        raise ValueError(f"{name}: expected at least one column")
    return found


class Streams:
    """The batches of `streams`, as often as they are iterated over.

    Parameters
    ----------
    rows : ndarray, (length, B, ...)
        The streams, side by side.
    targets : ndarray, (length, B, ...)
        What follows each row.
    steps : int
        The steps of a batch.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore.data import streams
    >>> len(streams(np.arange(101), batch=2, steps=20))
    3
    """

    def __init__(self, rows: Array, targets: Array, steps: int) -> None:
        self._rows, self._targets, self.steps = rows, targets, steps

    def __len__(self) -> int:
        return math.ceil(len(self._rows) / self.steps)

    def __iter__(self) -> Iterator[tuple[Array, Array]]:
        for first in range(0, len(self._rows), self.steps):
            part = slice(first, first + self.steps)
            yield self._rows[part], self._targets[part]


def streams(ids: Any, batch: int, steps: int) -> Streams:
    """Cut a long sequence into streams side by side, for truncated backpropagation through time.

    The sequence is cut into `batch` parts of the same length. A batch holds the next `steps` of each; sequence b of the
    next batch goes on where that of this one ends, so that ``fit(..., stateful=True)`` carries the state over. The
    target is what follows at each step. Nothing is copied: x and target are views.

    Parameters
    ----------
    ids : array_like, (n,) or (n, ...)
        The sequence: the numbers of tokens for an `Embedding`, or the rows of a series.
    batch : int
        B, the number of streams.
    steps : int
        T, the steps of a batch. The last batch holds what is left.

    Returns
    -------
    Streams
        An iterable, with a length, of x (T, B, ...) and target (T, B, ...).

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid, or the sequence is too short for so many streams.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore.data import streams
    >>> for x, target in streams(np.arange(13), batch=2, steps=4):
    ...     print(x.T.tolist(), target.T.tolist())
    [[0, 1, 2, 3], [6, 7, 8, 9]] [[1, 2, 3, 4], [7, 8, 9, 10]]
    [[4, 5], [10, 11]] [[5, 6], [11, 12]]
    """
    given = as_array("ids", ids)
    batch, steps = check_int("batch", batch, least=1), check_int("steps", steps, least=1)
    if not given.ndim:
        raise ValueError("ids: expected shape (n,) or (n, ...), got ()")
    if given.dtype.kind not in "iuf":
        raise TypeError(f"ids: expected integers or floats, got {given.dtype}")
    length = (len(given) - 1) // batch
    if length < 1:
        raise ValueError(f"ids: expected at least {batch + 1} for {batch} streams and what follows, got {len(given)}")
    side_by_side = (batch, length, *given.shape[1:])
    rows, targets = (
        given[first : first + batch * length].reshape(side_by_side).swapaxes(0, 1) for first in (0, 1)
    )  # fmt: skip
    return Streams(rows, targets, steps)


def pad_sequence(sequences: Any, *, batch_first: bool = False, padding_value: float = 0.0) -> tuple[Array, Array]:
    """Put sequences of different lengths side by side in one array.

    Parameters
    ----------
    sequences : iterable of array_like, each (T_i,) or (T_i, ...)
        The sequences, which may be empty, of one dtype, and alike in all axes but the first.
    batch_first : bool
        Whether x is (B, T, ...) instead of (T, B, ...).
    padding_value : float
        What stands past a sequence's end.

    Returns
    -------
    x : ndarray, (T, B, ...), or (B, T, ...) with `batch_first`
        The sequences, of their dtype; T is the longest length.
    lengths : ndarray of int, (B,)
        The length of each, for `forward` and for the batches of `fit`.

    Raises
    ------
    TypeError, ValueError
        If there is no sequence, or they do not fit each other.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore.data import pad_sequence
    >>> x, lengths = pad_sequence([np.array([1, 2, 3]), np.array([4])])
    >>> x.T.tolist(), lengths
    ([[1, 2, 3], [4, 0, 0]], array([3, 1]))
    """
    arrays = [as_array(f"sequences[{i}]", each) for i, each in enumerate(as_list("sequences", sequences))]
    batch_first = check_bool("batch_first", batch_first)
    if not arrays:
        raise ValueError("sequences: expected at least one")
    first = arrays[0]
    for i, each in enumerate(arrays):
        if each.dtype.kind not in "iufb":
            raise TypeError(f"sequences[{i}]: expected numbers, got {each.dtype}")
        if each.dtype != first.dtype:
            raise TypeError(f"sequences[{i}]: expected {first.dtype} as in sequences[0], got {each.dtype}")
        if not each.ndim or each.shape[1:] != first.shape[1:]:
            wanted = ", ".join(("T", *map(str, first.shape[1:])))
            raise ValueError(f"sequences[{i}]: expected shape ({wanted}) as in sequences[0], got {each.shape}")
    padding_value = check_real("padding_value", padding_value)
    with np.errstate(all="ignore"):
        fill = np.float64(padding_value).astype(first.dtype)
    if first.dtype.kind != "f" and fill != padding_value:
        raise ValueError(f"padding_value: expected a number that {first.dtype} holds, got {padding_value}")
    lengths = np.array([len(each) for each in arrays])
    shape = (int(lengths.max()), len(arrays), *first.shape[1:])
    check_room(int(np.prod(shape, dtype=object)), first.itemsize)
    x = np.full(shape, fill)
    for b, each in enumerate(arrays):
        x[: len(each), b] = each
    return np.ascontiguousarray(x.swapaxes(0, 1)) if batch_first else x, lengths
