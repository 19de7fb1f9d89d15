"""How a text table is written: what separates its cells, how its numbers look, where its header is.

Every reading that is possible is tried on the first lines. If two fit equally well the table is refused, because a
wrong choice would not show in what follows.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from gradcore.data.cells import COMMA_MAY_GROUP, PLAIN, Numbers, how_written, is_missing, is_number
from gradcore.data.dates import is_date, is_time
from gradcore.data.errors import SourceError, listed
from gradcore.data.header import Head, find_head

__all__: list[str] = []  # for the package only

NEVER = "\x1f"  # no table has it: one column
FEW = 300  # rows whose cells are looked at one by one
SAMPLE = 2000  # lines that decide
SPACE = " "  # any run of spaces and tabs
CANDIDATES = (",", ";", "\t", "|", SPACE)
SPELLED = {
    "tab": "\t", "\\t": "\t", "space": SPACE, "spaces": SPACE, "whitespace": SPACE, "comma": ",", "semicolon": ";",
    "pipe": "|",
}  # fmt: skip
NAMES = {",": "comma", ";": "semicolon", "\t": "tab", "|": "pipe", SPACE: "spaces", None: "none (one column)"}
EUROPEAN = (";", "\t")  # what tables with decimal commas are separated by
SEPARATORS = re.compile(r"[;\t|,]")
Row = tuple[int, list[str]]  # the last line of the file that it is in, and its cells


@dataclass(frozen=True)
class Dialect:
    """How a table is written.

    Parameters
    ----------
    delimiter : str or None
        What separates cells; a space stands for any run of them, None for a table of one column.
    numbers : Numbers
        How numbers are written.
    head : Head
        Names of the columns, and the lines above the first row.
    """

    delimiter: str | None
    numbers: Numbers
    head: Head


def check_delimiter(delimiter: str | None) -> str | None:
    """Return the character that a delimiter is given as, by itself or by name."""
    if delimiter is None:
        return None
    found = SPELLED.get(delimiter.lower(), delimiter) if isinstance(delimiter, str) else ""
    if len(found) != 1 or found in '"\n\r0123456789':
        raise SourceError(f"delimiter: expected one character, tab or space, got {delimiter!r}")
    return found


def split_rows(lines: Iterable[str], delimiter: str | None, at: int = 0) -> Iterator[Row]:
    """Split lines into rows; a quoted cell may go over several lines. Errors are csv's."""
    if delimiter == SPACE:
        for row in iter_cells(lines, delimiter):
            at += 1
            yield at, row
    else:
        reader = csv.reader(lines, delimiter=delimiter or NEVER, skipinitialspace=True, strict=True)
        for row in reader:
            yield at + reader.line_num, row


def iter_cells(lines: Iterable[str], delimiter: str | None) -> Iterator[list[str]]:
    """Split lines into cells, without their lines' numbers."""
    if delimiter == SPACE:
        return (
            [part.strip('"') for part in re.findall(r'"[^"]*"|\S+', line)] if '"' in line else line.split()
            for line in lines
        )
    return csv.reader(lines, delimiter=delimiter or NEVER, skipinitialspace=True, strict=True)


def head_lines(text: str) -> list[str]:
    """Return the first lines, and not a line that the end of the sample cuts."""
    place = -1
    for _ in range(SAMPLE):
        place = text.find("\n", place + 1)
        if place < 0:
            return text.split("\n")
    return text[:place].split("\n")


def sniff(
    where: str, text: str, delimiter: str | None, decimal: str | None, target: str | int | None
) -> Dialect | None:
    """Find how a table is written, from its first lines; None if no reading makes a table of it."""
    lines = head_lines(text)
    whole = len(lines) < SAMPLE
    skip = 0
    if delimiter is None and (told := re.fullmatch(r'"?sep=(.)"?;*,*', lines[0].lower())):
        delimiter, skip = told[1], 1  # a spreadsheet's own first line
    elif lines[0].lower().startswith("sep="):
        skip = 1
    readings = []
    for candidate in [delimiter] if delimiter else [*CANDIDATES, None]:
        if candidate not in (None, SPACE, delimiter) and sum(candidate in line for line in lines) < len(lines) / 3:
            continue
        if rows := _rows(lines[skip:], candidate, skip, whole):
            reading = _reading(candidate, rows, decimal)
            if reading.width > 1 or candidate is None or delimiter:
                readings.append(reading)
    if not readings:
        _explain(where, lines[skip:], delimiter, skip)
    best = _best(where, readings, lines, decimal)
    if best is None:
        return None
    numbers = best.numbers
    if numbers is None:
        raise SourceError(
            f"{where}: some numbers have a decimal point, others a decimal comma; give decimal (. or ,) to choose one"
        )
    if decimal:
        numbers = Numbers(decimal, True, True)
    numbers = replace(numbers, wary=not numbers.sure and best.delimiter in EUROPEAN)
    head = find_head(where, best.rows, best.width, numbers, target, commas=best.delimiter == ",")
    if not delimiter and best.delimiter == "," and best.width == 3 and not head.named:
        _refuse_dated_integers(where, best.rows)
    return Dialect(best.delimiter, numbers, head)


def _refuse_dated_integers(where: str, rows: Sequence[Row]) -> None:
    """Refuse rows such as 2020-01-31,12,5 without names: two columns of integers, or one of decimal commas."""
    body = [cells for _, cells in rows if len(cells) == 3]
    if all(is_date(cells[0]) and INDEX.fullmatch(cells[1]) and INDEX.fullmatch(cells[2]) for cells in body):
        raise SourceError(
            f"{where}: reads as 3 columns with comma between them (delimiter comma), and as dates and numbers such as "
            f"{body[0][1]},{body[0][2]}; give delimiter, or save it with semicolons"
        )


def _rows(lines: Sequence[str], delimiter: str | None, at: int, whole: bool) -> list[Row]:
    """The rows of the sample; a quoted cell that its end cuts is left out."""
    rows: list[Row] = []
    try:
        for row in split_rows(io.StringIO("\n".join(lines)), delimiter, at):
            rows.append(row)
    except csv.Error:
        if whole or len(rows) < len(lines) // 2:
            return []
    rows = [(line, [cell.strip() for cell in row]) for line, row in rows]
    while rows and not any(rows[-1][1]):
        rows.pop()
    return rows


def _explain(where: str, lines: Sequence[str], delimiter: str | None, at: int) -> None:
    """Raise the error of a text that no delimiter makes rows of."""
    last = at
    try:
        for line, _ in split_rows(io.StringIO("\n".join(lines)), delimiter or ",", at):
            last = line
    except csv.Error as error:
        raise SourceError(f"{where}, line {last + 1}: not a readable table ({error})") from None


@dataclass(frozen=True)
class _Reading:
    """One way to read the sample: how many rows have the same width, and how many cells make sense."""

    delimiter: str | None
    rows: list[Row]
    width: int
    fit: float
    sense: float
    numbers: Numbers | None

    @property
    def score(self) -> float:
        return self.fit * self.sense


def _reading(delimiter: str | None, rows: list[Row], decimal: str | None) -> _Reading:
    full = [row for _, row in rows if any(row)]
    counts = Counter(map(len, full[len(full) > 3 :]))
    width = max(counts, key=lambda n: (counts[n], n))
    body = [row for row in full if len(row) == width]
    fit = len(body) / len(full)
    cells = list(zip(*body[len(body) > 1 :], strict=True))
    present = [[cell for cell in column if not is_missing(cell)] for column in cells]
    numbers = Numbers(decimal, True, True) if decimal else how_written(present)
    senses = [_sense(cell, delimiter) for column in cells for cell in column[:FEW]]
    return _Reading(delimiter, rows, width, fit, sum(senses) / len(senses), numbers)


def _sense(cell: str, delimiter: str | None) -> float:
    """How likely a cell is one cell: a number, a date, nothing, a word; not something that holds a separator."""
    if is_number(cell) or is_date(cell) or is_time(cell) or is_missing(cell):
        return 1.0
    return 0.0 if SEPARATORS.search(cell) and delimiter != "," else 0.6 if not SEPARATORS.search(cell) else 0.3


def _best(where: str, readings: list[_Reading], lines: Sequence[str], decimal: str | None) -> _Reading | None:
    """The reading that fits best, or a SourceError if another fits as well."""
    wide = [reading for reading in readings if reading.width > 1 and reading.fit > 0.5]
    single = next((reading for reading in readings if reading.delimiter is None), None)
    if not wide:
        return single or (readings[0] if readings else None)
    if any(reading.delimiter == "\t" and reading.fit > 0.9 for reading in wide):
        wide = [reading for reading in wide if reading.delimiter != SPACE]  # which takes tabs for spaces
    wide.sort(key=lambda reading: -reading.score)
    best = wide[0]
    if len(wide) > 1 and wide[1].score > best.score - 0.03 and wide[1].sense > 0.9 and not _same(best, wide[1]):
        one, other = NAMES.get(best.delimiter, best.delimiter), NAMES.get(wide[1].delimiter, wide[1].delimiter)
        raise SourceError(
            f"{where}: reads as {best.width} columns with {one} between them and as {wide[1].width} with {other}; "
            "give delimiter"
        )
    if single is None:
        return best
    if single.sense > 0.95 and single.sense >= best.sense - 0.05 and best.delimiter in (",", SPACE):
        return _one_or_two(where, best, single, lines, decimal)
    if best.score < 0.3 and single.sense > best.sense:
        return single
    return best


def _same(one: _Reading, other: _Reading) -> bool:
    """Whether two readings find the same cells, as tabs and spaces do."""
    return [cells for _, cells in one.rows if any(cells)] == [cells for _, cells in other.rows if any(cells)]


def _one_or_two(
    where: str, best: _Reading, single: _Reading, lines: Sequence[str], decimal: str | None
) -> _Reading | None:
    """Decide whether the commas of lines such as 12,3 separate two cells or a number's digits."""
    header = next(line for line in lines if line.strip())
    if best.delimiter == SPACE:
        dated = all(is_date(cells[0]) for _, cells in single.rows[1:])
        if dated or len(next(cells for _, cells in best.rows if cells)) == 1:
            return single
    if best.delimiter is not None and best.delimiter not in header.strip() and not is_number(header.strip()):
        return single
    first = next(cells for _, cells in best.rows if any(cells))
    if not any(is_number(cell) for cell in first) or decimal == ".":
        return best
    if decimal == ",":
        return single
    body = [cells for _, cells in best.rows if len(cells) == best.width]
    if all(INDEX.fullmatch(cells[0]) for cells in body) and len(body) > 2:
        index = [int(cells[0]) for cells in body]
        if all(b - a == 1 for a, b in pairwise(index)):
            return best
    if best.delimiter == "," and not all(_joined(cells) for cells in body):
        return best
    sign = NAMES[best.delimiter]
    other = "decimal ," if best.delimiter == "," else "decimal , or a header"
    raise SourceError(
        f"{where}: reads as {best.width} columns with {sign} between them (delimiter {sign}), and as one column of "
        f"numbers such as {listed([header.strip()])} ({other}); give one of the two"
    )


INDEX = re.compile(r"\d{1,9}")


def _joined(cells: Sequence[str]) -> bool:
    text = ",".join(cells)
    return bool(PLAIN[","].fullmatch(text) or COMMA_MAY_GROUP.fullmatch(text) or is_number(text))
