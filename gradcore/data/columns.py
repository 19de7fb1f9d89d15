"""Which columns of a table are forecast, which are learned from, and which tell time and group."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from gradcore._base.check import check_choice, check_int
from gradcore.data.cells import INTEGER, is_missing
from gradcore.data.dates import is_time
from gradcore.data.delimited import Table
from gradcore.data.dialect import check_delimiter
from gradcore.data.errors import SourceError, listed
from gradcore.data.header import kind_of_column

__all__: list[str] = []  # for the package only

POLICIES = ("skip", "error", "interpolate")
MOST_CLASSES = 20
INDEX_NAME = re.compile(r"(?i)|unnamed: ?\d+|index|idx|id|no\.?|nr\.?|row|row_?id|row_?names?|#|obs|n")
LABEL_NAME = re.compile(r"(?i)(.*[ _])?(label|class|target|category|activity|outcome|species|y)(es|s|_?id)?")
TIME_NAME = re.compile(
    r"(?i)(date_?)?times?(_?stamp)?|date|datum|zeit|jahr|years?|yr|t|epoch|unix.*|seconds?|sec|ms|hours?|days?|months?|weeks?"
)


@dataclass(frozen=True)
class Options:
    """The options of `read_series`, checked."""

    target: str | int | None = None
    inputs: tuple[str | int, ...] | None = None
    time: str | int | None = None
    group: str | int | None = None
    missing: str = "skip"
    na: tuple[str, ...] = ()
    delimiter: str | None = None
    decimal: str | None = None
    encoding: str | None = None

    def given(self) -> list[str]:
        """Return the names of the options that are not at their defaults."""
        return [name for name, value in vars(self).items() if value != getattr(Options, name)]


def check_options(options: dict[str, Any]) -> Options:
    """Return the options of `read_series`, or raise an error that names the wrong one."""
    checked = dict(options)
    for name in ("target", "time", "group"):
        checked[name] = _check_column(name, options[name])
    if (inputs := options["inputs"]) is not None:
        inputs = inputs.split(",") if isinstance(inputs, str) else inputs
        inputs = [inputs] if isinstance(inputs, (int, np.integer)) else inputs
        if not isinstance(inputs, Iterable):
            raise TypeError(f"inputs: expected names or numbers of columns, got {type(inputs).__name__}")
        inputs = tuple(_check_column("inputs", name) for name in inputs)
        if not inputs or any(name is None or name == "" for name in inputs):
            raise ValueError(f"inputs: expected at least one name or number of a column, got {options['inputs']!r}")
        checked["inputs"] = inputs
    check_choice("missing", options["missing"], POLICIES)
    na = options["na"]
    na = [na] if isinstance(na, (str, int, float)) else na
    if not isinstance(na, Iterable):
        raise TypeError(f"na: expected values that stand for a missing one, got {type(na).__name__}")
    checked["na"] = tuple(str(mark).strip() for mark in na)
    if options["decimal"] is not None:
        check_choice("decimal", options["decimal"], (".", ","))
    for name in ("delimiter", "encoding"):
        if options[name] is not None and not isinstance(options[name], str):
            raise TypeError(f"{name}: expected text, got {type(options[name]).__name__}")
    checked["delimiter"] = check_delimiter(options["delimiter"])
    return Options(**checked)


def _check_column(name: str, value: Any) -> str | int | None:
    return value if value is None or isinstance(value, str) else check_int(name, value)


@dataclass(frozen=True)
class Columns:
    """The numbers of the columns that a series is made of.

    Parameters
    ----------
    where : str
        The file, for messages.
    names : tuple of str
        Of all columns, empty without a name.
    target : int
        What to forecast.
    inputs : tuple of int
        What to learn from, beside the target's own past.
    numeric : tuple of int
        All columns of numbers but index, time and group.
    worded : bool
        Whether the target is a column of words.
    may_be_class : bool
        Whether the target, a column of numbers, may be the label of a class.
    time, clock, group, panel : int, optional
        Columns of time, of the time of day beside it, of the group, and one that looks like a group.
    counted : bool
        Whether time is a column of numbers.
    default : bool
        Whether nobody named the target.
    """

    where: str
    names: tuple[str, ...]
    target: int
    inputs: tuple[int, ...]
    numeric: tuple[int, ...]
    worded: bool
    may_be_class: bool
    time: int | None
    clock: int | None
    group: int | None
    panel: int | None
    counted: bool
    default: bool

    def label(self, column: int) -> str:
        """Return what to call a column."""
        return self.names[column] or f"column {column}"

    def said(self, column: int) -> str:
        """Return what to call a column in a sentence."""
        return f'column "{self.names[column]}"' if self.names[column] else f"column {column}"


def look_at(table: Table, options: Options) -> Columns:
    """Choose the columns, by name where given, else by what they hold."""
    cells = table.sample()
    if not any(cells):
        raise SourceError(f"{table.where}: has a header but no values")
    kinds = [kind_of_column(column, table.numbers) for column in cells]
    target = _find(table, "target", options.target)
    group = _find(table, "group", options.group)
    time = _find(table, "time", options.time)
    inputs = tuple(_must_find(table, "inputs", name) for name in options.inputs) if options.inputs else ()
    if time is None:
        time = next((i for i, kind in enumerate(kinds) if kind == "date" and i not in (target, group)), None)
    clock = None
    if time is not None and not any(" " in cell or "T" in cell for cell in cells[time]):
        after = time + 1
        if after < len(cells) and _all_times(cells[after]) and not _all_times(cells[time]):
            clock = after
    numbers = [i for i, kind in enumerate(kinds) if kind == "number" and i not in (group, time)]
    aside = {i for i in numbers if _is_index(table.names[i], cells[i], i)}
    if time is None:
        time = next(
            (
                i
                for i in numbers
                if i != target and TIME_NAME.fullmatch(table.names[i]) and _goes_one_way(table, cells[i])
            ),
            None,
        )
    if len(numbers) > 1:
        aside |= {time} if time is not None else set()
    else:
        if len(cells) > 1 and target is None and "word" in kinds and (aside or time in numbers):
            raise SourceError(
                f"{table.where}: expected a column of numbers beside {table.names[numbers[0]] or 'the first'}, "
                f"got {_described(table, kinds)}; give target"
            )
        aside, time = set(), (None if time in numbers else time)
    numeric = tuple(i for i, kind in enumerate(kinds) if kind == "number" and i not in aside and i not in (group, time))
    if target is None:
        if not numeric and len(cells) > 1:
            raise SourceError(
                f"{table.where}: expected a column of numbers, got {_described(table, kinds)}; give target"
            )
        chosen = numeric[-1] if numeric else 0
    else:
        chosen = target
    worded = target is not None and kinds[chosen] == "word"
    others = tuple(i for i in numeric if i != chosen)
    may_be_class = (
        not worded and chosen not in inputs and len(others) > 1 and _are_labels(table.names[chosen], cells[chosen])
    )  # fmt: skip
    if not inputs and (worded or may_be_class):
        inputs = others
    words = [i for i, kind in enumerate(kinds) if kind == "word" and i not in (chosen, group)]
    return Columns(
        table.where, table.names, chosen, tuple(i for i in inputs if i != chosen), numeric, worded, may_be_class, time,
        clock, group, words[0] if words else None, time is not None and kinds[time] == "number", target is None,
    )  # fmt: skip


def _must_find(table: Table, option: str, column: str | int) -> int:
    found = _find(table, option, column)
    assert found is not None
    return found


def _find(table: Table, option: str, column: str | int | None) -> int | None:
    """The number of a column that is given by name, or by number where no name fits."""
    if column is None:
        return None
    names, text = list(table.names), str(column).strip()
    lower = [name.lower() for name in names]
    for known, wanted in (
        (names, text),
        (lower, text.lower()),
        ([name.partition(" ")[0] for name in lower], text.lower()),
    ):
        matches = [i for i, name in enumerate(known) if name and name == wanted]
        if len(matches) == 1:
            return matches[0]
        if matches:
            where = " and ".join(map(str, matches[:4]))
            raise SourceError(f'{table.where}: has several columns "{text}"; give {option} as a number, {where}')
    if text.isdigit() and int(text) < len(names):
        return int(text)
    width = len(names)
    if any(names):
        shown = listed(name or f"(column {i})" for i, name in enumerate(names))
    else:
        shown = f"0 to {width - 1} (there is no header)" if width > 1 else "0 (no header)"
    what = "" if option == "target" else f"{option}: "
    raise SourceError(f'{table.where}: {what}has no column "{column}"; its columns are {shown}')


def _described(table: Table, kinds: list[str]) -> str:
    words = {"word": "words", "date": "dates", "number": "numbers", "missing": "nothing"}
    return listed(f"{name or f'column {i}'} ({words[kinds[i]]})" for i, name in enumerate(table.names))


def _all_times(cells: list[str]) -> bool:
    present = [cell for cell in cells if not is_missing(cell)]
    return bool(present) and all(map(is_time, present))


def _is_index(name: str, cells: list[str], column: int) -> bool:
    """Whether a column counts 0, 1, 2, ... or 1, 2, 3, ... and has no other name than such a one."""
    if not INDEX_NAME.fullmatch(name) or (not name and column) or len(cells) < 3:
        return False
    if not all(INTEGER.fullmatch(cell) for cell in cells):
        return False
    return int(cells[0]) in (0, 1) and all(int(b) - int(a) == 1 for a, b in pairwise(cells))


def _goes_one_way(table: Table, cells: list[str]) -> bool:
    values = [table.numbers.value(cell) for cell in cells]
    present = [value for value in values if value is not None]
    up = all(a < b for a, b in pairwise(present))
    down = all(a > b for a, b in pairwise(present))
    return len(present) == len(values) > 2 and (up or down)


def _are_labels(name: str, cells: list[str]) -> bool:
    present = {cell for cell in cells if not is_missing(cell)}
    if len(present) > 2 and not LABEL_NAME.fullmatch(name):
        return False  # small counts look like labels
    return 0 < len(present) <= MOST_CLASSES and all(
        re.fullmatch(r"\d{1,2}(\.0*)?", cell) and float(cell) < MOST_CLASSES for cell in present
    )


def without_inputs(columns: Columns) -> Columns:
    """Return the columns with the target alone, which is a quantity after all."""
    return replace(columns, inputs=())
