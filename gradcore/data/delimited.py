"""A table in a text: its rows in chunks, checked, so that a long one needs no more memory than its columns."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

import numpy as np

from gradcore._base.check import Array
from gradcore.data.blocks import cut
from gradcore.data.cells import Numbers, is_missing
from gradcore.data.dialect import NEVER, SPACE, Dialect, Row, head_lines, iter_cells, split_rows
from gradcore.data.errors import SourceError
from gradcore.data.header import kind_of

__all__: list[str] = []  # for the package only

CHUNK = 5_000  # rows
BLOCK = 1 << 20  # characters
NOTES = 50  # lines below a table, at most


class Reader(Protocol):
    """What takes the cells of one column; see `NumberReader`, `WordReader` and `DateReader`."""

    def feed(self, cells: Sequence[str] | Array, lines: Sequence[int]) -> None:
        """Take some cells and their lines."""


class Table(Protocol):
    """Columns with names, from whatever file."""

    where: str
    names: tuple[str, ...]
    named: bool
    numbers: Numbers

    def sample(self) -> list[list[str]]:
        """Return the first cells of each column."""

    def read(self, readers: dict[int, list[Reader]]) -> Array:
        """Feed each column's cells to its readers; return the line of each row."""


@dataclass
class TextTable:
    """A table in a text.

    Parameters
    ----------
    where : str
        The file, for messages.
    text : str
        All of it.
    dialect : Dialect
        How it is written.
    """

    where: str
    text: str
    dialect: Dialect
    ends: int = field(init=False)
    notes: int = field(init=False)

    def __post_init__(self) -> None:
        self.names, self.numbers = self.dialect.head.names, self.dialect.numbers
        self.named = self.dialect.head.named
        self.ends, self.notes = self._end()
        self.start, self.line = self._start()
        self.first = self._sample()

    def sample(self) -> list[list[str]]:
        """Return the first cells of each column."""
        return self.first[0]

    def fit(self) -> float:
        """Return the share of the first rows that have as many cells as the header."""
        return self.first[1]

    def _sample(self) -> tuple[list[list[str]], float]:
        width, n = self.dialect.head.width, 0
        cut = len("\n".join(head_lines(self.text)))
        rows: list[list[str]] = []
        try:
            for _, row in self._rows(min(self.ends, max(cut, self.start))):
                n += any(row)
                if len(row) == width:
                    rows.append([cell.strip() for cell in row])
        except SourceError:
            pass  # the sample's end cuts a cell in quotes, or `read` will say what is wrong
        columns = [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in range(width)]
        return columns, len(rows) / max(n, 1)

    def read(self, readers: dict[int, list[Reader]]) -> Array:
        """Feed each column's cells to its readers; return the line of each row."""
        width, blank_is_row = self.dialect.head.width, self.dialect.head.width == 1
        wrong: list[tuple[int, int]] = []
        found: list[Array] = []
        for lines, cells, cut_columns in self._chunks(list(readers)):
            places, kept = lines, cells
            if cut_columns is None and set(map(len, cells)) != {width}:
                good = []
                for i, row in enumerate(cells):
                    if len(row) == width:
                        good.append(i)
                    elif blank_is_row and not row:
                        cells[i] = [""]
                        good.append(i)
                    elif row and any(row):
                        wrong.append((int(lines[i]), len(row)))
                kept, places = [cells[i] for i in good], lines[good]
            found.append(places)
            numbers = places.tolist()
            for column, several in readers.items():
                part = [row[column] for row in kept] if cut_columns is None else cut_columns[column]
                for reader in several:
                    reader.feed(part, numbers)
        if wrong:
            self._refuse(wrong)
        return np.concatenate(found) if found else np.empty(0, np.int64)

    def _chunks(self, wanted: list[int]) -> Iterator[tuple[Array, list[list[str]], dict[int, Array] | None]]:
        """Some rows at a time: the last line of each, and their cells or else the wanted columns."""
        at, place, delimiter = self.line, self.start, self.dialect.delimiter
        if delimiter != SPACE:
            for block in self._blocks(self.ends, place):
                found = cut(block, delimiter or NEVER, self.dialect.head.width, wanted)
                if found is None and '"' in block:  # a cell may go on in the next one
                    break
                cells = [] if found else list(iter_cells(block.split("\n")[:-1], delimiter))
                n = len(found[wanted[0]]) if found else len(cells)
                yield np.arange(at + 1, at + n + 1), cells, found
                at, place = at + n, place + len(block)
        taken = 0
        rows = iter_cells(self._lines(self.ends, place), delimiter)
        while cells := self._some(rows):
            now = getattr(rows, "line_num", taken + len(cells))
            if now - taken == len(cells):
                lines = at + taken + 1 + np.arange(len(cells))
            else:  # some cells go over several lines
                spans = [1 + sum(cell.count("\n") for cell in row) for row in cells]
                lines = at + taken + np.cumsum(spans)
            taken = now
            yield lines, cells, None

    def _some(self, rows: Iterator[list[str]]) -> list[list[str]]:
        try:
            return list(islice(rows, CHUNK))
        except csv.Error:
            for _ in self._rows(self.ends):  # raises an error with the line
                pass
            raise

    def _rows(self, end: int) -> Iterator[Row]:
        rows = split_rows(self._lines(end, self.start), self.dialect.delimiter, self.line)
        line = self.line
        try:
            for line, row in rows:
                yield line, row
        except csv.Error as error:
            raise SourceError(f"{self.where}, line {line + 1}: not a readable table ({error})") from None

    def _lines(self, end: int, place: int) -> Iterator[str]:
        for block in self._blocks(end, place):
            for line in block[:-1].split("\n"):
                yield line + "\n"

    def _blocks(self, end: int, place: int) -> Iterator[str]:
        """Some whole lines at a time."""
        while place < end:
            stop = self.text.find("\n", min(place + BLOCK, end), end)
            stop = end if stop < 0 else stop
            yield self.text[place:stop] + "\n"
            place = stop + 1

    def _start(self) -> tuple[int, int]:
        """Where the rows begin: after the header's last line."""
        place = 0
        for _ in range(self.dialect.head.line):
            place = self.text.find("\n", place) + 1
            if place == 0:
                return self.ends, self.dialect.head.line
        return place, self.dialect.head.line

    def _end(self) -> tuple[int, int]:
        """Where the rows end: before blank lines, lines of separators only, and notes of another width."""
        end, notes = len(self.text), 0
        separators = " \t" if self.dialect.delimiter in (SPACE, None) else f' \t"{self.dialect.delimiter}'
        while notes < NOTES:
            begin = self.text.rfind("\n", 0, end) + 1
            if begin == 0:
                break
            line = self.text[begin:end]
            if line.strip(separators):
                if not self._is_note(line):
                    break
                notes += 1
            end = begin - 1
        return end, notes

    def _is_note(self, line: str) -> bool:
        """Whether a last line has another number of cells and a word in the first."""
        if self.dialect.head.width == 1 or line.count('"') % 2:  # the end of a cell with line breaks
            return False
        try:
            ((_, cells),) = list(split_rows([line], self.dialect.delimiter)) or [(0, [""])]
        except (csv.Error, ValueError):
            return False
        return (
            len(cells) != self.dialect.head.width
            and kind_of(cells[0].strip(), self.numbers) == "word"
            and not any(kind_of(cell.strip(), self.numbers) == "number" for cell in cells)
        )

    def _refuse(self, wrong: list[tuple[int, int]]) -> None:
        width, (first, cells) = self.dialect.head.width, wrong[0]
        place = "the first line" if self.dialect.head.line < 2 else "the header"
        want = f"expected {width} column{'s' * (width != 1)} as in {place}"
        if len(wrong) == 1:
            raise SourceError(f"{self.where}, line {first}: {want}, got {cells}")
        raise SourceError(
            f"{self.where}: {want}, got another number in {len(wrong)} lines, the first line {first} with {cells}, the "
            f"last line {wrong[-1][0]} with {wrong[-1][1]}"
        )


def is_table(table: TextTable) -> bool:
    """Whether a text that is not called a table is one: all lines have the same cells, and some are numbers."""
    columns = table.sample()
    if len(columns[0]) < 3:
        return False
    fit = table.fit()
    kinds = [[kind_of(cell, table.numbers) for cell in column if not is_missing(cell)] for column in columns]
    numeric = [bool(kind) and kind.count("number") >= 0.9 * len(kind) for kind in kinds]
    regular = [bool(kind) and kind.count("word") <= 0.1 * len(kind) for kind in kinds]
    if table.dialect.delimiter == SPACE:
        return fit > 0.95 and any(numeric) and sum(regular) >= len(columns) / 2
    return fit > 0.9 and any(numeric)
