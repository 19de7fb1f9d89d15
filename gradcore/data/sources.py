"""Open a source: a task of the literature, a column of a table, or a text."""

from __future__ import annotations

import csv
import io
import math
import os
from importlib import resources
from pathlib import Path

import numpy as np

from gradcore._base.check import Array, check_int
from gradcore.data.errors import SourceError
from gradcore.data.forecasting import forecast_task
from gradcore.data.tasks import Task, adding_task, copy_task, one_hot, temporal_order_task

__all__ = ["SOURCES", "SourceError", "load"]

TABLES = (".csv", ".tsv")
MISSING = {"", "na", "n/a", "nan", "null", "none", "?", "-", "."}
CONSTANT = 1e-12  # a series whose standard deviation is at most this share of its largest value does not vary
MAKERS = {"adding": adding_task, "temporal-order": temporal_order_task, "copy": copy_task}

SOURCES = ("sunspots", *MAKERS)
"""Names of the sources that come with the package."""


def load(source: str | os.PathLike[str], seq_len: int | None = None, *, target: str | int | None = None) -> Task:
    """Open a source: a task by name, a table of numbers or a text.

    Parameters
    ----------
    source : str or path
        "sunspots" (yearly means from 1700 to 2008), "adding", "temporal-order", "copy", or a file. The task of a
        ``.csv`` or ``.tsv`` file is to forecast the next value of a column, that of any other file to predict the next
        character.
    seq_len : int, optional
        Number of steps of a sequence, at least 2; for "copy" the delay. By default 100, or 50 for "copy" and files.
    target : str or int, optional
        Column of a table to forecast: its name, or its number from 0 if no name matches. By default the last column.

    Returns
    -------
    Task
        The task, from which batches are drawn.

    Raises
    ------
    SourceError
        If the source cannot be read or learned from.
    TypeError, ValueError
        If an argument is invalid.

    Examples
    --------
    >>> import gradcore
    >>> task = gradcore.data.load("sunspots", seq_len=50)
    >>> [(x.shape, target.shape) for x, target in task.batches(8, steps=2)]
    [((50, 8, 1), (8, 1)), ((50, 8, 1), (8, 1))]
    """
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"source: expected the name of a task or a path, got {type(source).__name__}")
    name = os.fspath(source)
    if seq_len is None:
        seq_len = 50 if name not in SOURCES or name == "copy" else 100
    steps = check_int("seq_len", seq_len, least=2)
    if target is not None and not isinstance(target, str):
        target = check_int("target", target)
    table = name not in SOURCES and Path(name).suffix.lower() in TABLES
    if target is not None and not table:
        raise SourceError(f"target: expected a {' or '.join(TABLES)} file with columns, got the source {name}")
    if name in MAKERS:
        return MAKERS[name](steps)
    if name == "sunspots":
        text = (resources.files("gradcore.data") / "sunspots.csv").read_text("utf-8")
        values, _ = read_column(name, text, None)
        return _forecast_task("yearly mean sunspot numbers, 1700 to 2008", name, values, steps)
    text = read_text(name)
    if table:
        values, label = read_column(name, text, target)
        return _forecast_task(f"{label} of {Path(name).name}", name, values, steps)
    return _character_task(name, text, steps)


def _check_long_enough(source: str, n: int, what: str, steps: int) -> None:
    if n <= steps:
        raise SourceError(
            f"{source}: expected at least {steps + 1} {what} for windows of {steps} and the one after them, got {n}"
            + (f"; a seq_len of {n - 1} would fit" if n > 2 else "")
        )


def _forecast_task(title: str, source: str, values: Array, steps: int) -> Task:
    from types import SimpleNamespace

    series = SimpleNamespace(
        source=source,
        target=title,
        inputs=(title,),
        parts=(values[:, None],),
        targets=(values,),
        classes=None,
        facts={},
    )
    return forecast_task(title, series, steps)


def _character_task(source: str, text: str, steps: int) -> Task:
    """Predict, at each of `steps` characters, the next one."""
    _check_long_enough(source, len(text), "characters", steps)
    codes = np.frombuffer(text.encode("utf-32-le"), "<u4")
    alphabet, codes = np.unique(codes, return_inverse=True)
    if len(alphabet) < 2:
        raise SourceError(f"{source}: every character is {text[0]!r}; a constant text has nothing to learn")
    frequency = np.bincount(codes) / len(codes)
    n = len(alphabet)

    def draw(rng: np.random.Generator, batch: int) -> tuple[Array, Array]:
        window = codes[rng.integers(0, len(codes) - steps, batch) + np.arange(steps + 1)[:, None]]
        return one_hot(window[:-1], n), window[1:]

    entropy = float(-(frequency * np.log(frequency)).sum())
    return Task(f"next character of {Path(source).name}", source, n, n, steps, True, True, entropy, draw)


# ---- reading files ---------------------------------------------------------------------------------------------------


def read_text(path: str) -> str:
    """Read a UTF-8 file, or raise a SourceError that says what is wrong with it and where."""
    try:
        file = Path(path)
        device = file.is_char_device() or file.is_block_device()  # /dev/zero has no end
        raw = b"" if device else file.read_bytes()
    except FileNotFoundError:
        raise SourceError(f"{path}: no such file, and not one of the tasks {', '.join(SOURCES)}") from None
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
        raise SourceError(f"{path}, line {line}: contains a NUL byte; expected a text file")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell


def read_column(path: str, text: str, column: str | int | None) -> tuple[Array, str]:
    """Return the numbers of one column of a delimited table, and what to call the column."""
    text = text.rstrip("\n ")
    first_line = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first_line.count)  # a comma if there is none of them: the table has one column
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
        raise SourceError(f"{where}: expected {width} columns as in the first line, got {len(row)}")
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
