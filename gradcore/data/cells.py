"""Cells of a table: which are numbers and what number each is, which are missing, which are words."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from gradcore._base.check import Array
from gradcore.data.blocks import as_texts, letters_of, without_groups
from gradcore.data.errors import SourceError, shown

__all__: list[str] = []  # for the package only

MARKS = frozenset(
    [
        *("", "na", "n/a", "n.a.", "nan", "-nan", "nat", "null", "none", "missing", "?", "-", "--", "."),
        *("<na>", "#n/a", "#na", "#n/a n/a", "#null!", "#value!", "#div/0!"),
    ]
)
"""What stands for a missing value, in lower case."""

INTEGER = re.compile(r"[+-]?\d{1,18}")
EXPONENT = r"(?:[eE][+-]?\d+)?"
PLAIN = {d: re.compile(rf"[+-]?(?:\d+(?:{re.escape(d)}\d*)?|{re.escape(d)}\d+){EXPONENT}") for d in ".,"}
SPACES = "\u00a0\u202f '’"  # that stand between thousands whatever the decimal sign
GROUPED = {
    d: re.compile(rf"[+-]?[1-9]\d{{0,2}}(?:([{other}{SPACES}])\d{{3}})(?:\1\d{{3}})*(?:{re.escape(d)}\d*)?")
    for d, other in ((".", ","), (",", "."))
}
DOTS_MAY_GROUP = re.compile(r"[+-]?[1-9]\d{0,2}\.\d{3}")
COMMA_MAY_GROUP = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")
REMOVED = {d: str.maketrans("", "", SPACES + other) for d, other in ((".", ","), (",", "."))}


@dataclass(frozen=True)
class Numbers:
    """How numbers are written.

    Parameters
    ----------
    decimal : {".", ","}
        Sign before the fraction.
    grouped : bool
        Whether thousands may be set apart by the other sign, a space or an apostrophe.
    sure : bool
        Whether the sign was given or follows from the cells.
    wary : bool
        Whether dots may stand between thousands even if every number has one, as in European tables.
    """

    decimal: str = "."
    grouped: bool = False
    sure: bool = False
    wary: bool = False

    def value(self, cell: str) -> float | None:
        """Return the number in a cell without spaces around it, or None."""
        if PLAIN[self.decimal].fullmatch(cell):
            return float(cell.replace(",", "."))
        if self.grouped and GROUPED[self.decimal].fullmatch(cell):
            return float(cell.translate(REMOVED[self.decimal]).replace(",", "."))
        if cell[:1] == "−":
            return self.value("-" + cell[1:])
        if cell.lstrip("+-").lower() in ("inf", "infinity"):
            return float(cell)
        return None


def is_missing(cell: str) -> bool:
    """Return whether a cell, with spaces around it or not, is one of `MARKS`."""
    return cell.strip().lower() in MARKS


def is_number(cell: str) -> bool:
    """Return whether a cell without spaces around it is a number in any way of writing."""
    return (
        any(PLAIN[d].fullmatch(cell) or GROUPED[d].fullmatch(cell) for d in ".,") or Numbers().value(cell) is not None
    )


def how_written(columns: Sequence[Sequence[str]]) -> Numbers | None:
    """Find how the numbers of a table are written, from columns of non-missing cells; None if they contradict."""
    dots = commas = grouped = False
    for cells in columns:
        if sum(map(is_number, cells)) < 0.9 * len(cells):
            continue
        for cell in cells:
            if INTEGER.fullmatch(cell):
                continue
            if PLAIN["."].fullmatch(cell):
                dots = dots or not DOTS_MAY_GROUP.fullmatch(cell)
            elif PLAIN[","].fullmatch(cell):
                if not COMMA_MAY_GROUP.fullmatch(cell):
                    commas = True
                else:
                    grouped = True
            elif GROUPED["."].fullmatch(cell) and not GROUPED[","].fullmatch(cell):
                dots = grouped = True
            elif GROUPED[","].fullmatch(cell) and not GROUPED["."].fullmatch(cell):
                commas = grouped = True
            else:
                grouped = grouped or is_number(cell)  # spaces between thousands and no fraction
    if dots and commas:
        return None
    return Numbers("," if commas else ".", grouped, dots or commas)


@dataclass
class NumberReader:
    """Turn the cells of one column into float64, NaN where missing; remember what is wrong.

    Parameters
    ----------
    where : str
        The file, for messages.
    label : str
        The column, for messages.
    numbers : Numbers
        How numbers are written.
    na : tuple of str
        More marks of a missing value; a number marks its value however it is written.
    """

    where: str
    label: str
    numbers: Numbers
    na: tuple[str, ...] = ()
    parts: list[Array] = field(default_factory=list)
    bad: list[tuple[int, str]] = field(default_factory=list)
    dotted: tuple[int, str] | None = None  # a number whose dot may stand between thousands
    small: bool = False  # whether a number below 1000 has no dot
    doubtful: bool = True

    def __post_init__(self) -> None:
        self.doubtful = self.numbers.decimal == "." and not self.numbers.sure
        values = (self.numbers.value(mark) for mark in self.na)
        self.na_values = [value for value in values if value is not None]
        self.na_words = {mark.lower() for mark in self.na}

    def feed(self, cells: Sequence[str] | Array, lines: Sequence[int]) -> None:
        """Take some more cells, and the lines of the file that they are in."""
        if isinstance(cells, np.ndarray) and cells.dtype.kind != "S":
            values: Array = cells.astype(np.float64)
        else:
            plain = self._plain_values(cells, lines)
            if plain is None:
                cells = as_texts(cells)
                plain = np.array([self._value(cell, line) for cell, line in zip(cells, lines, strict=True)])
            values = plain
            if self.doubtful:
                self._look_for_groups(cells, values, lines)
        for value in self.na_values:
            values[values == value] = np.nan
        for i in np.flatnonzero(np.isinf(values)).tolist():  # of arrays
            self.bad.append((lines[i], str(values[i])))
        self.parts.append(values)

    def _plain_values(self, cells: Sequence[str] | Array, lines: Sequence[int]) -> Array | None:
        """All values at once, if those that begin with a digit are plain numbers; the others one by one."""
        comma = self.numbers.decimal == ","
        bad = len(self.bad)
        try:
            if isinstance(cells, np.ndarray):
                letters = letters_of(cells)
                if self.numbers.grouped and self.numbers.sure:
                    letters = without_groups(letters, *",." if comma else ".,")
                if (letters == ord("_")).any() or (comma and (letters == ord(".")).any()):
                    return None
                digits = (letters[:, :2] >= ord("0")) & (letters[:, :2] <= ord("9"))
                signed = np.isin(letters[:, 0], (ord("+"), ord("-"))) & digits[:, -1]
                odd = np.flatnonzero(~(digits[:, 0] | signed))
                if comma:
                    letters = np.where(letters == ord(","), np.uint8(ord(".")), letters)
                plain = np.ascontiguousarray(letters).view(cells.dtype).ravel()
                if odd.size:
                    plain = plain.copy()
                    plain[odd] = b"0"
                values = plain.astype(np.float64)
                values[odd] = [self._value(cells[i].decode(), lines[i]) for i in odd.tolist()]
            else:
                text = "\n".join(cells)
                if "_" in text or (comma and "." in text):
                    return None
                numeric = text.replace(",", ".").split("\n") if comma else cells
                triples = zip(numeric, cells, lines, strict=True)
                values = np.array(
                    [float(n) if n[:1].isdigit() else self._value(cell, line) for n, cell, line in triples]
                )
        except ValueError:
            del self.bad[bad:]
            return None
        if np.isinf(values).any():
            del self.bad[bad:]
            return None
        return values

    def _value(self, cell: str, line: int) -> float:
        cell = cell.strip()
        word = cell.lower()
        if word in MARKS or word in self.na_words:
            return math.nan
        value = self.numbers.value(cell)
        if value is None or math.isinf(value):
            self.bad.append((line, cell))
            return math.nan
        if not self.numbers.sure and "," in cell:
            self.bad.append((line, cell))  # grouped or not, nothing tells
        return value

    def _look_for_groups(self, cells: Sequence[str] | Array, values: Array, lines: Sequence[int]) -> None:
        """Until a dot is surely a decimal point: numbers such as 950 and 1.250 leave two readings."""
        if isinstance(cells, np.ndarray) and not (letters_of(cells) == ord(".")).any():
            self.doubtful = not (np.abs(values) >= 1000).any()
            self.small = True
            return
        for cell, line in zip(as_texts(cells), lines, strict=True):
            bare = cell.strip()
            if "." in bare and bare != ".":
                if not DOTS_MAY_GROUP.fullmatch(bare):
                    self.doubtful = False
                    return
                self.dotted = self.dotted or (line, bare)
            elif INTEGER.fullmatch(bare):
                if len(bare.lstrip("+-")) > 3:
                    self.doubtful = False
                    return
                self.small = True

    def finish(self) -> Array:
        """Return all values, or raise a SourceError that names the bad ones."""
        if self.bad:
            self._refuse()
        if self.doubtful and self.dotted and (self.small or self.numbers.wary):
            line, cell = self.dotted
            raise SourceError(
                f"{self.where}, line {line}, {self.label}: {cell} may be {float(cell):g} (decimal .) or "
                f"{cell.replace('.', '')} (decimal ,); give decimal"
            )
        return np.concatenate(self.parts) if self.parts else np.empty(0)

    def _refuse(self) -> None:
        (first, cell), (last, other) = self.bad[0], self.bad[-1]
        if len(self.bad) == 1:
            if (self.numbers.value(cell) or 0) in (math.inf, -math.inf):
                raise SourceError(
                    f"{self.where}, line {first}, {self.label}: {shown(cell)[1:-1]} is not a finite number"
                )
            raise SourceError(
                f"{self.where}, line {first}, {self.label}: expected a number, got {shown(cell)}{self._hint(cell)}"
            )
        raise SourceError(
            f"{self.where}, {self.label}: expected numbers, got {len(self.bad)} cells that are none, "
            f"the first {shown(cell)} in line {first}, the last {shown(other)} in line {last}{self._hint(cell)}"
        )

    def _hint(self, cell: str) -> str:
        if COMMA_MAY_GROUP.fullmatch(cell) and not self.numbers.sure:
            return (
                f"; it may be {cell.replace(',', '')} (decimal .) or {cell.replace(',', '.')} (decimal ,): give decimal"
            )
        if any(GROUPED[d].fullmatch(cell) or PLAIN[d].fullmatch(cell) for d in ".,"):
            return "; decimal says which sign stands before the fraction, the other one may separate thousands"
        return ""


@dataclass
class WordReader:
    """Take the cells of one column as they are."""

    words: list[str] = field(default_factory=list)
    seen: dict[str, str] = field(default_factory=dict)  # equal words are one object

    def feed(self, cells: Sequence[str] | Array, lines: Sequence[int]) -> None:
        """Take some more cells."""
        known: Callable[[str, str], str] = self.seen.setdefault
        for cell in map(_word, as_texts(cells)):
            self.words.append(known(cell, cell))

    def finish(self) -> list[str]:
        """Return all words."""
        return self.words


def _word(cell: object) -> str:
    if isinstance(cell, float):
        return "" if math.isnan(cell) else f"{cell:g}"
    return str(cell).strip()
