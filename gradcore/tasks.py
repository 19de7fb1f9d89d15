"""What there is to learn from: tasks of the literature, series and texts, each as batches of NumPy arrays."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from gradcore._check import FLOAT32, Array, check_dtype, check_int, check_rng
from gradcore.losses import mse, softmax_cross_entropy

TABLES = (".csv", ".tsv")
MISSING = {"", "na", "n/a", "nan", "null", "none", "?", "-", "."}
ORDER_SYMBOLS = 6  # A, B and four distractors
COPY_SYMBOLS, COPY_LENGTH = 10, 10  # eight symbols, the blank and the signal; ten of them to remember


class SourceError(ValueError):
    """A source that cannot be learned from; the message is one line that says what is wrong and where."""


# ---- the tasks of the literature -------------------------------------------------------------------------------------


def _one_hot(indices: Array, n: int, dtype: np.dtype[Any]) -> Array:
    return np.eye(n, dtype=dtype)[indices]


def adding(rng: np.random.Generator, batch: int, length: int = 100, *, dtype: Any = np.float32) -> tuple[Array, Array]:
    """One batch of the adding problem: recall two marked numbers and give their sum.

    Two inputs a step: a number from U[0, 1), and a marker that is 1 at one step of each half and 0 elsewhere. The best
    constant answer, 1, has the mean squared error 1/6.

    Parameters
    ----------
    rng : numpy.random.Generator
    batch : int
        Sequences.
    length : int
        Steps of each, at least 2.
    dtype : dtype
        float32 or float64.

    Returns
    -------
    x : ndarray, (length, batch, 2)
    target : ndarray, (batch, 1)
        The sum of the two marked numbers.

    References
    ----------
    Hochreiter and Schmidhuber (1997), experiment 4, in the form of Arjovsky, Shah and Bengio (2016).

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore.tasks import adding
    >>> x, target = adding(np.random.default_rng(0), batch=3, length=50)
    >>> x.shape, target.shape
    ((50, 3, 2), (3, 1))
    >>> bool(np.allclose((x[..., 0] * x[..., 1]).sum(0), target[:, 0]))
    True
    """
    batch, length, real = check_int("batch", batch), check_int("length", length, least=2), check_dtype(dtype)
    rng = check_rng(rng)
    rows = np.arange(batch)
    x = np.zeros((length, batch, 2), real)
    x[..., 0] = rng.random((length, batch))
    x[rng.integers(0, length // 2, batch), rows, 1] = 1
    x[rng.integers(length // 2, length, batch), rows, 1] = 1
    return x, (x[..., 0] * x[..., 1]).sum(0)[:, None]


def temporal_order(
    rng: np.random.Generator, batch: int, length: int = 100, *, dtype: Any = np.float32
) -> tuple[Array, Array]:
    """One batch of the temporal-order problem: tell in which order two symbols came.

    Each step shows one of six symbols. Four are distractors; A or B stands at one step in [0.1 T, 0.2 T), and again A
    or B at one in [0.5 T, 0.6 T). The class, told at the last step, is 0 for A A, 1 for A B, 2 for B A, 3 for B B.

    Parameters
    ----------
    rng : numpy.random.Generator
    batch : int
        Sequences.
    length : int
        Steps of each, at least 2.
    dtype : dtype
        float32 or float64.

    Returns
    -------
    x : ndarray, (length, batch, 6)
        One-hot; A is 0, B is 1.
    labels : ndarray of int64, (batch,)

    References
    ----------
    Hochreiter and Schmidhuber (1997), experiment 6a; positions as in Pascanu, Mikolov and Bengio (2013).

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore.tasks import temporal_order
    >>> x, labels = temporal_order(np.random.default_rng(0), batch=4, length=50)
    >>> x.shape, labels.shape
    ((50, 4, 6), (4,))
    >>> x[:, 0, :2].sum()  # A and B: two in all
    np.float32(2.0)
    """
    batch, length, real = check_int("batch", batch), check_int("length", length, least=2), check_dtype(dtype)
    rng = check_rng(rng)
    rows = np.arange(batch)
    symbols = rng.integers(2, ORDER_SYMBOLS, (length, batch))
    relevant = rng.integers(0, 2, (2, batch))
    for which, (start, stop) in enumerate(((0.1, 0.2), (0.5, 0.6))):
        first = int(start * length)
        symbols[rng.integers(first, max(int(stop * length), first + 1), batch), rows] = relevant[which]
    return _one_hot(symbols, ORDER_SYMBOLS, real), 2 * relevant[0] + relevant[1]


def copy(rng: np.random.Generator, batch: int, delay: int = 100, *, dtype: Any = np.float32) -> tuple[Array, Array]:
    """One batch of the copying problem: repeat ten symbols after a delay.

    Ten symbols out of eight, `delay` - 1 blanks, a signal, ten blanks: T = `delay` + 20 steps. The answer is the blank
    until the signal has been seen, then the ten symbols. Without memory the best loss is 10 ln 8 / T.

    Parameters
    ----------
    rng : numpy.random.Generator
    batch : int
        Sequences.
    delay : int
        Steps between the symbols and their answer, at least 1.
    dtype : dtype
        float32 or float64.

    Returns
    -------
    x : ndarray, (delay + 20, batch, 10)
        One-hot; the blank is 8, the signal 9.
    labels : ndarray of int64, (delay + 20, batch)

    References
    ----------
    Hochreiter and Schmidhuber (1997), in the form of Arjovsky, Shah and Bengio (2016).

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore.tasks import copy
    >>> x, labels = copy(np.random.default_rng(0), batch=2, delay=30)
    >>> x.shape, labels.shape
    ((50, 2, 10), (50, 2))
    >>> bool((x[:10].argmax(-1) == labels[-10:]).all())
    True
    """
    batch, delay, real = check_int("batch", batch), check_int("delay", delay, least=1), check_dtype(dtype)
    rng = check_rng(rng)
    blank, signal = COPY_SYMBOLS - 2, COPY_SYMBOLS - 1
    words = rng.integers(0, blank, (COPY_LENGTH, batch))
    symbols = np.full((delay + 2 * COPY_LENGTH, batch), blank)
    labels = symbols.copy()
    symbols[:COPY_LENGTH] = words
    symbols[-COPY_LENGTH - 1] = signal
    labels[-COPY_LENGTH:] = words
    return _one_hot(symbols, COPY_SYMBOLS, real), labels


# ---- one shape for all of them ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batches:
    """The same `steps` batches every time it is walked through: a pure function of `seed`."""

    task: Task
    batch: int
    steps: int
    seed: int

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[Array, Array]]:
        rng = np.random.default_rng(self.seed)
        for _ in range(self.steps):
            yield self.task.draw(rng, self.batch)


@dataclass(frozen=True)
class Task:
    """Something to learn: where it came from, its sizes, and how to draw a batch.

    Attributes
    ----------
    name : str
        What it is, in words.
    source : str
        What `load` was given.
    input_size, output_size : int
    steps : int
        Length T of a sequence.
    every_step : bool
        Whether there is a target at every step, (T, B), or for the last one only.
    classes : bool
        Whether targets are labels (cross-entropy) or values (mean squared error).
    baseline : float
        The loss of the best answer that ignores the input.
    draw : callable
        ``draw(rng, batch) -> (x, target)``, x float32 (T, B, input_size).
    """

    name: str
    source: str
    input_size: int
    output_size: int
    steps: int
    every_step: bool
    classes: bool
    baseline: float
    draw: Callable[[np.random.Generator, int], tuple[Array, Array]]

    def loss(self, y: Array, target: Array) -> tuple[float, Array]:
        """The loss, mean over the targets, and its derivative by `y` (B, output_size) or (T, B, output_size)."""
        if not self.classes:
            return mse(y, target)
        loss, dy = softmax_cross_entropy(y.reshape(-1, self.output_size), target.reshape(-1))
        return loss, dy.reshape(y.shape)

    def batches(self, batch: int, steps: int, *, seed: int = 0) -> Batches:
        """`steps` batches of `batch` sequences, the same ones for the same `seed`."""
        return Batches(self, check_int("batch", batch, least=1), check_int("steps", steps), check_int("seed", seed))


TASKS = ("sunspots", "adding", "temporal-order", "copy")


def load(source: str | os.PathLike[str], seq_len: int | None = None, *, column: str | int | None = None) -> Task:
    """Open a source: a task by name, a table of numbers or a text.

    Parameters
    ----------
    source : str or path
        "sunspots" (yearly means 1700 to 2008), "adding", "temporal-order" or "copy"; else a file. ``.csv`` and ``.tsv``
        hold numbers, of which the next one is forecast; every other file is a text, of which the next character is.
    seq_len : int, optional
        Steps of a sequence, for "copy" the delay; a default that suits the source when not given.
    column : str or int, optional
        Which column of a table: its name, or its number from 0. The last one when not given.

    Returns
    -------
    Task

    Raises
    ------
    SourceError
        If the source cannot be read or learned from.

    Examples
    --------
    >>> from gradcore.tasks import load
    >>> task = load("sunspots", seq_len=50)
    >>> [(x.shape, target.shape) for x, target in task.batches(8, steps=2)]
    [((50, 8, 1), (8, 1)), ((50, 8, 1), (8, 1))]
    """
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"source: expected the name of a task or a path, got {type(source).__name__}")
    name = os.fspath(source)
    steps = check_int("seq_len", default_seq_len(name) if seq_len is None else seq_len, least=2)
    if column is not None and not isinstance(column, str):
        column = check_int("column", column)
    if column is not None and (name in TASKS or not _is_table(name)):
        raise SourceError(f"--column is for CSV files, and {name} is none")
    if name == "adding":
        return Task(
            "the adding problem", name, 2, 1, steps, False, False, 1 / 6, lambda rng, batch: adding(rng, batch, steps)
        )
    if name == "temporal-order":
        return Task(
            "the temporal-order problem",
            name,
            ORDER_SYMBOLS,
            4,
            steps,
            False,
            True,
            math.log(4),
            lambda rng, batch: temporal_order(rng, batch, steps),
        )
    if name == "copy":
        total = steps + 2 * COPY_LENGTH
        return Task(
            "the copying problem",
            name,
            COPY_SYMBOLS,
            COPY_SYMBOLS,
            total,
            True,
            True,
            COPY_LENGTH * math.log(COPY_SYMBOLS - 2) / total,
            lambda rng, batch: copy(rng, batch, steps),
        )
    if name == "sunspots":
        text = (resources.files("gradcore.data") / "sunspots.csv").read_text("utf-8")
        values, _ = _column("sunspots", text, None)
        return _forecast_task("yearly mean sunspot numbers, 1700 to 2008", name, values, steps)
    text = read_text(name)
    if _is_table(name):
        values, label = _column(name, text, column)
        return _forecast_task(f"{label} of {Path(name).name}", name, values, steps)
    return _character_task(name, text, steps)


def default_seq_len(name: str) -> int:
    """Steps of a sequence when nothing else is asked for."""
    return 50 if name not in TASKS or name == "copy" else 100


def _is_table(name: str) -> bool:
    return Path(name).suffix.lower() in TABLES


def _forecast_task(title: str, source: str, values: Array, steps: int) -> Task:
    """Forecast the value that follows `steps` standardised ones."""
    if len(values) <= steps:
        raise SourceError(
            f"{source}: {len(values)} values, but windows of {steps} and the one after them need at least {steps + 1}"
            + (f"; --seq-len {len(values) - 1} would fit" if len(values) > 2 else "")
        )
    scaled = values / np.abs(values).max() if values.any() else values
    deviation = scaled.std()
    if not deviation > 1e-12 * np.abs(scaled).max():
        raise SourceError(f"{source}: every value is {values[0]:g}; a constant series has nothing to learn")
    series = ((scaled - scaled.mean()) / deviation).astype(FLOAT32)

    def draw(rng: np.random.Generator, batch: int) -> tuple[Array, Array]:
        start = rng.integers(0, len(series) - steps, batch)
        return series[start + np.arange(steps)[:, None]][..., None], series[start + steps][:, None]

    return Task(f"next value of {title}", source, 1, 1, steps, False, False, 1.0, draw)


def _character_task(source: str, text: str, steps: int) -> Task:
    """Predict, at each of `steps` characters, the next one."""
    if len(text) <= steps:
        raise SourceError(
            f"{source}: {len(text)} characters, but windows of {steps} and the one after them need at least {steps + 1}"
            + (f"; --seq-len {len(text) - 1} would fit" if len(text) > 2 else "")
        )
    codes = np.frombuffer(text.encode("utf-32-le"), "<u4")
    alphabet, codes = np.unique(codes, return_inverse=True)
    if len(alphabet) < 2:
        raise SourceError(f"{source}: holds one character only, {text[0]!r}; a constant text has nothing to learn")
    frequency = np.bincount(codes) / len(codes)
    n = len(alphabet)

    def draw(rng: np.random.Generator, batch: int) -> tuple[Array, Array]:
        window = codes[rng.integers(0, len(codes) - steps, batch) + np.arange(steps + 1)[:, None]]
        return _one_hot(window[:-1], n, FLOAT32), window[1:]

    entropy = float(-(frequency * np.log(frequency)).sum())
    return Task(f"next character of {Path(source).name}", source, n, n, steps, True, True, entropy, draw)


# ---- reading files ---------------------------------------------------------------------------------------------------


def read_text(path: str) -> str:
    """The text of a UTF-8 file, or a SourceError that says what is wrong with it and where."""
    try:
        file = Path(path)
        device = file.is_char_device() or file.is_block_device()  # /dev/zero has no end
        raw = b"" if device else file.read_bytes()
    except FileNotFoundError:
        names = ", ".join(TASKS)
        raise SourceError(f"{path}: no such file, and none of the tasks {names}") from None
    except IsADirectoryError:
        raise SourceError(f"{path}: is a directory; expected a file") from None
    except (OSError, ValueError) as error:
        raise SourceError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if device:
        raise SourceError(f"{path}: is a device; expected a file")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        byte = raw[error.start]
        raise SourceError(f"{path}, line {line}: byte 0x{byte:02x} is not UTF-8; expected a text file") from None
    if not text.strip():
        raise SourceError(f"{path}: the file is empty")
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise SourceError(f"{path}, line {line}: holds a NUL byte; expected a text file")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell


def _column(path: str, text: str, column: str | int | None) -> tuple[Array, str]:
    """The numbers of one column of a delimited table, and the column's name."""
    text = text.rstrip("\n ")
    first_line = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first_line.count)  # a comma where none occurs: one column
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True)
    try:
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except csv.Error as error:
        raise SourceError(f"{path}, line {reader.line_num}: not a readable table ({error})") from None
    names = rows[0][1]
    if not names:
        raise SourceError(f"{path}, line 1: the line is empty; expected a header or a number")
    has_header = not any(_is_number(cell) or cell.lower() in MISSING - {""} for cell in names)
    index = _column_index(path, names if has_header else None, len(names), column)
    label = f'column "{names[index]}"' if has_header else f"column {index}"
    values = [_cell(f"{path}, line {line}", label, row, index, len(names)) for line, row in rows[has_header:]]
    if not values:
        raise SourceError(f"{path}: has a header but no values")
    return np.array(values), label


def _column_index(path: str, names: list[str] | None, width: int, column: str | int | None) -> int:
    if column is None:
        return width - 1
    if names and str(column) in names:
        return names.index(str(column))
    try:
        index = int(column)
    except ValueError:
        index = -1
    if 0 <= index < width:
        return index
    known = ", ".join(names) if names else f"0 to {width - 1} (there is no header)" if width > 1 else "0 (no header)"
    raise SourceError(f'{path}: has no column "{column}"; its columns are {known}')


def _cell(where: str, label: str, row: list[str], index: int, width: int) -> float:
    if not row:
        raise SourceError(f"{where}: the line is empty; expected a value in {label}")
    if len(row) != width:
        raise SourceError(f"{where}: {len(row)} columns, expected {width} as in the first line")
    cell = row[index]
    if cell.lower() in MISSING:
        shown = f" ({cell})" if cell else ""
        raise SourceError(f"{where}, {label}: the value is missing{shown}; fill it in or remove the line")
    shown = cell if len(cell) <= 40 else cell[:37] + "..."
    if not _is_number(cell):
        raise SourceError(f"{where}, {label}: expected a number, got {shown!r}")
    if not math.isfinite(float(cell)):
        raise SourceError(f"{where}, {label}: {shown} is not a finite number")
    return float(cell)
