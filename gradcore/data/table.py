"""A table becomes a series: the column to forecast, the columns that it is forecast from, in order of time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gradcore._base.check import Array
from gradcore.data.cells import NumberReader, WordReader, is_missing
from gradcore.data.columns import MOST_CLASSES, Columns, Options, check_options, look_at, without_inputs
from gradcore.data.dates import DateReader
from gradcore.data.delimited import Reader, Table, TextTable, is_table
from gradcore.data.dialect import sniff
from gradcore.data.errors import SourceError, shown
from gradcore.data.files import decode, read_bytes
from gradcore.data.formats import read_json, read_known
from gradcore.data.order import group_rows, order_rows

__all__ = ["Series", "read_series"]

TABLES = (".csv", ".tsv", ".tab", ".psv", ".dat")


@dataclass(frozen=True)
class Series:
    """A series to learn from, as `read_series` finds it in a table.

    Parameters
    ----------
    source : str
        What was read.
    target : str
        Label of the column to forecast.
    inputs : tuple of str
        Labels of the columns of each part.
    parts : tuple of ndarray, (n, F)
        Inputs of each group in order of time, NaN where missing. The target's own past is the first column unless the
        target is a class.
    targets : tuple of ndarray, (n,)
        Target of each group: float64, NaN where missing, or the int64 labels of classes, -1 where missing.
    classes : tuple of str, optional
        Names of the labels if the target is a class.
    facts : dict
        How it was read, as plain JSON: ``target``, ``inputs``, ``n``, ``mean`` and ``std`` of the target,
        ``delimiter``, ``decimal``, ``encoding``, ``missing``, ``time``, ``groups`` and ``notes``.

    Examples
    --------
    >>> import pathlib
    >>> import tempfile
    >>> from gradcore.data.table import read_series
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "stock.csv"
    >>> _ = path.write_text("day;close\\n2020-01-01;1,5\\n2020-01-02;2,5\\n2020-01-03;2,25\\n")
    >>> series = read_series(path)
    >>> series.targets[0].tolist(), series.facts["decimal"], series.facts["time"]["step"]
    ([1.5, 2.5, 2.25], ',', '1 day')
    """

    source: str
    target: str
    inputs: tuple[str, ...]
    parts: tuple[Array, ...]
    targets: tuple[Array, ...]
    classes: tuple[str, ...] | None
    facts: dict[str, Any]


def read_series(
    source: str | os.PathLike[str],
    *,
    target: str | int | None = None,
    inputs: str | Sequence[str | int] | None = None,
    time: str | int | None = None,
    group: str | int | None = None,
    missing: str = "skip",
    na: str | Sequence[str] = (),
    delimiter: str | None = None,
    decimal: str | None = None,
    encoding: str | None = None,
) -> Series:
    """Read a table as a series: text with any separator, Parquet, xlsx, JSON lines, npy or npz; gzip or not.

    What separates the cells, how numbers are written and where the header is follows from the first lines. A table
    that can be read in two ways is refused with both, and the option that chooses.

    Parameters
    ----------
    source : str or path
        The file.
    target : str or int, optional
        Column to forecast: its name, or its number from 0 if no name matches. By default the last one of numbers.
    inputs : sequence of str or int, optional
        Columns to forecast from. By default the target's own past, or for a class all other columns of numbers.
    time : str or int, optional
        Column of dates or numbers to sort by. By default the first one of dates, if they go one way.
    group : str or int, optional
        Column whose values tell apart several series.
    missing : {"skip", "error", "interpolate"}
        Whether missing values stay NaN, are refused, or are filled linearly between their neighbors.
    na : sequence of str
        More marks of a missing value, such as "-999". If any is given, no number is suspected to be one.
    delimiter : str, optional
        Character between cells, or "tab" or "space".
    decimal : {".", ","}, optional
        Sign before the fraction of a number; the other one may separate thousands.
    encoding : str, optional
        Such as "cp1252". By default UTF-8, UTF-16, or what the characters tell.

    Returns
    -------
    Series
        Columns as arrays, and how they were read.

    Raises
    ------
    SourceError
        If the file cannot be read, or in more than one way.
    TypeError, ValueError
        If an argument is invalid.

    Examples
    --------
    >>> import pathlib
    >>> import tempfile
    >>> from gradcore.data.table import read_series
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "air.tsv"
    >>> _ = path.write_text("hour\\tNO2\\tO3\\n0\\t31\\t40\\n1\\t-\\t42\\n2\\t35\\t39\\n")
    >>> series = read_series(path, target="NO2", inputs=["NO2", "O3"], missing="interpolate")
    >>> series.inputs, series.targets[0].tolist()
    (('NO2', 'O3'), [31.0, 33.0, 35.0])
    """
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"source: expected a path, got {type(source).__name__}")
    options = check_options(
        {"target": target, "inputs": inputs, "time": time, "group": group, "missing": missing, "na": na}
        | {"delimiter": delimiter, "decimal": decimal, "encoding": encoding}
    )
    found = open_source(os.fspath(source), read_bytes(os.fspath(source), ()), options)
    if isinstance(found, str):
        raise SourceError(f"{os.fspath(source)}: expected a table, got a text")
    return series_of(os.fspath(source), found, options)


@dataclass(frozen=True)
class Opened:
    """A table, and how its file is written."""

    table: Table
    delimiter: str | None = None
    decimal: str = "."
    encoding: str | None = None


def open_source(path: str, raw: bytes, options: Options) -> Opened | str:
    """Return the table in a file, or its text if it is none."""
    known = read_known(path, raw, options.target)
    if known is not None:
        return Opened(known)
    text, encoding = decode(path, raw, options.encoding)
    records = read_json(path, text)
    if records is not None:
        return Opened(records, None, ".", encoding)
    plain = path.lower().removesuffix(".gz")
    named = Path(plain).suffix in TABLES
    asked = any(name not in ("encoding", "missing", "na") for name in options.given())
    delimiter = options.delimiter
    try:
        dialect = sniff(path, text, delimiter, options.decimal, options.target)
        if dialect is None:
            raise SourceError(f"{path}: no delimiter makes a table of it; give delimiter")
        table = TextTable(path, text, dialect)
        if named or asked or is_table(table):
            return Opened(table, dialect.delimiter, dialect.numbers.decimal, encoding)
    except SourceError:
        if named or asked or _looks_tabular(text):
            raise
    return text


def _looks_tabular(text: str) -> bool:
    """Whether most characters of the first lines are digits and separators: then an error is not hidden as prose."""
    head = "".join(text[:4000].split())
    return bool(head) and sum(c.isdigit() or c in ".,;|:-+?" for c in head) > 0.7 * len(head)


# ---- columns become a series -----------------------------------------------------------------------------------------


def series_of(source: str, opened: Opened, options: Options) -> Series:
    """Read the chosen columns of a table."""
    table = opened.table
    columns = look_at(table, options)
    readers: dict[int, list[Reader]] = {}
    numeric: dict[int, NumberReader] = {}
    words: dict[int, WordReader] = {}
    times = DateReader()
    for i in [*([] if columns.worded else [columns.target]), *columns.inputs]:
        if i not in numeric:
            numeric[i] = NumberReader(table.where, columns.said(i), table.numbers, options.na)
            readers.setdefault(i, []).append(numeric[i])
    by_clock = columns.clock is not None and columns.time is not None
    panel = columns.panel if columns.time is not None and columns.group is None else None
    wanted = [columns.target if columns.worded else None, columns.group, panel, columns.clock]
    for column in [*wanted, columns.time if by_clock else None]:
        if column is not None and column not in words:
            words[column] = WordReader()
            readers.setdefault(column, []).append(words[column])
    if columns.time is not None and not by_clock:
        readers.setdefault(columns.time, []).append(times)
    lines = table.read(readers)
    if not len(lines):
        raise SourceError(f"{table.where}: has a header but no values")
    values = {i: reader.finish() for i, reader in numeric.items()}
    found = {i: reader.finish() for i, reader in words.items()}
    if columns.time is not None and columns.clock is not None:
        both = zip(found[columns.time], found[columns.clock], strict=True)
        times.feed([f"{day} {hour}" for day, hour in both], lines.tolist())
    _refuse_fillers(columns, values, options)
    classes: tuple[str, ...] | None
    if columns.worded:
        target, classes = _labels_of_words(columns, found[columns.target], options.na)
    else:
        target = values[columns.target]
        classes = _labels_of_numbers(target) if columns.may_be_class else None
    if columns.may_be_class and classes is None and options.inputs is None:
        columns = without_inputs(columns)
    given = getattr(table, "groups", None)
    groups, names = group_rows(None if columns.group is None else found[columns.group], given, len(lines))
    order, time = np.arange(len(lines)), None
    if columns.time is not None:
        asked = options.time is not None
        order, time = order_rows(columns, times, groups, asked, None if panel is None else found[panel])
    own: list[int] = [] if classes is not None else [columns.target]
    chosen = [*own, *columns.inputs]
    if not chosen:
        raise SourceError(
            f"{table.where}: expected columns of numbers to tell {columns.said(columns.target)} from, got none"
        )
    moments = _moments(np.empty(0) if columns.worded else target)
    count = _count_missing(columns, {i: values[i] for i in chosen}, target, lines, options)
    members = [order[groups[order] == g] for g in range(len(names))] if names else [order]
    if options.missing == "interpolate":
        values = {i: _filled(values[i], members) for i in chosen}
        target = target if classes else values[columns.target]
    x = np.stack([values[i] for i in chosen], axis=1)
    goals = target if classes is None else np.where(np.isnan(target), -1, target).astype(np.int64)
    facts: dict[str, Any] = {
        "target": columns.label(columns.target), "inputs": [columns.label(i) for i in chosen], "n": len(lines),
        **moments, "delimiter": opened.delimiter, "decimal": opened.decimal,
        "encoding": opened.encoding, "missing": {"policy": options.missing, "count": count, "marks": list(options.na)},
        "time": time, "groups": names, "classes": None if classes is None else list(classes),
        "notes": _notes(columns, opened, classes, time),
    }  # fmt: skip
    return Series(
        source, columns.label(columns.target), tuple(facts["inputs"]), tuple(x[rows] for rows in members),
        tuple(goals[rows] for rows in members), classes, facts,
    )  # fmt: skip


def _moments(target: Array) -> dict[str, float | None]:
    """Mean and standard deviation of what is not missing, also where squares would overflow."""
    present = target[~np.isnan(target)]
    if not present.size:
        return {"mean": None, "std": None}
    scale = float(np.abs(present).max()) or 1.0
    return {"mean": float((present / scale).mean()) * scale, "std": float((present / scale).std()) * scale}


def _labels_of_words(columns: Columns, words: list[str], na: tuple[str, ...]) -> tuple[Array, tuple[str, ...]]:
    gone = {word for word in set(words) if is_missing(word) or word in na}
    classes = tuple(sorted(set(words) - gone))
    if not 2 <= len(classes) <= MOST_CLASSES:
        raise SourceError(
            f"{columns.where}, {columns.said(columns.target)}: expected numbers, or 2 to {MOST_CLASSES} different "
            f"words as classes, got {len(classes)} different words, such as {shown(next(iter(classes), ''))}"
        )
    number = {word: float(i) for i, word in enumerate(classes)} | dict.fromkeys(gone, np.nan)
    return np.array([number[word] for word in words]), classes


def _labels_of_numbers(values: Array) -> tuple[str, ...] | None:
    """The classes, if the values are 0, 1, ..., k-1 and each of them occurs."""
    present = np.unique(values[~np.isnan(values)])
    if not 2 <= len(present) <= MOST_CLASSES or (present != np.arange(len(present))).any():
        return None
    return tuple(str(int(value)) for value in present)


def _refuse_fillers(columns: Columns, values: dict[int, Array], options: Options) -> None:
    """Refuse numbers such as -999 far from all others, unless `na` says what they are."""
    for i, column in values.items() if not options.na else ():
        present = np.unique(column[~np.isnan(column)])
        for value, rest in ((present[0], present[1:]), (present[-1], present[:-1])) if len(present) > 3 else ():
            digits = f"{abs(value):.4f}".rstrip("0").replace(".", "")
            if len(digits) > 2 and set(digits) == {"9"} and np.abs(rest - value).min() > 2 * np.ptp(rest):
                raise SourceError(
                    f"{columns.where}, {columns.said(i)}: {value:g} stands {int((column == value).sum())} times, far "
                    f"from all else ({rest[0]:g} to {rest[-1]:g}); give na={value:g} if it marks what is missing, "
                    "na=none if it is a value"
                )


def _count_missing(columns: Columns, values: dict[int, Array], target: Array, lines: Array, options: Options) -> int:
    """Count the missing values of target and inputs, or refuse them."""
    if np.isnan(target).all():
        raise SourceError(f"{columns.where}, {columns.said(columns.target)}: every value is missing; give target")
    gone = {i: np.flatnonzero(np.isnan(column)) for i, column in (values | {columns.target: target}).items()}
    count = sum(map(len, gone.values()))
    if count and options.missing == "error":
        rows = np.concatenate(list(gone.values()))
        said = ", ".join(columns.said(i) for i, places in gone.items() if len(places))
        first, last = lines[rows.min()], lines[rows.max()]
        where = f"line {first}" if count == 1 else f"the first in line {first}, the last in line {last}"
        verb = "value is" if count == 1 else "values are"
        raise SourceError(f"{columns.where}, {said}: {count} {verb} missing, {where}; give missing=skip or interpolate")
    return count


def _filled(values: Array, members: list[Array]) -> Array:
    """The column with gaps inside each group filled by straight lines."""
    values = values.copy()
    for rows in members:
        part = values[rows]
        there = np.flatnonzero(~np.isnan(part))
        if there.size:
            inside = np.arange(there[0], there[-1] + 1)
            part[inside] = np.interp(inside, there, part[there])
            values[rows] = part
    return values


def _notes(columns: Columns, opened: Opened, classes: tuple[str, ...] | None, time: dict[str, Any] | None) -> list[str]:
    """What was taken without being asked, in a few words each."""
    notes = []
    if columns.default and len(columns.numeric) > 1:
        notes.append(f"the last of {len(columns.numeric)} columns of numbers; target chooses another")
    if classes is not None:
        how = "" if columns.worded else "; name it among the inputs to forecast it as a number"
        notes.append(f"{len(classes)} classes from {len(columns.inputs)} other columns{how}")
    if time is not None and time["reversed"]:
        notes.append("rows reversed, since the newest came first")
    if isinstance(opened.table, TextTable):
        skipped = opened.table.dialect.head.skipped + opened.table.notes
        if skipped:
            notes.append(f"{skipped} line{'s' * (skipped != 1)} above or below the table left out")
    elif note := getattr(opened.table, "note", ""):
        notes.append(note)
    if opened.encoding not in (None, "utf-8", "utf-16", "utf-16-le", "utf-16-be"):
        notes.append(f"read as {opened.encoding}")
    return notes
