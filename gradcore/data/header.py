"""Find the header of a table: titles above it, one or more rows of names, a row of units, or none."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from gradcore.data.cells import INTEGER, Numbers, is_missing
from gradcore.data.dates import is_date, is_time
from gradcore.data.errors import SourceError, listed

__all__: list[str] = []  # for the package only

Row = tuple[int, list[str]]
TITLES = 40  # rows above a header, at most
NAME_ROWS = 3  # names, units, and what pandas writes below two rows of names
MANY = 30  # rows that show how a column is written
RULER = re.compile(r"[-=+:]{3,}")
YEARS = range(1500, 2200)
NAME_WORDS = re.compile(r"(?i)date|time|datum|day|month|year|week|name|id|index|key|city|country|station")


@dataclass(frozen=True)
class Head:
    """Names of the columns, and where the rows begin.

    Parameters
    ----------
    names : tuple of str
        One for each column, empty where it has none; all empty without a header.
    line : int
        Line of the file after which the rows begin.
    width : int
        Number of cells in a row.
    named : bool
        Whether there is a header.
    skipped : int
        Number of rows above the header that are no part of the table.
    """

    names: tuple[str, ...]
    line: int
    width: int
    named: bool
    skipped: int = 0


def kind_of(cell: str, numbers: Numbers) -> str:
    """Return "number", "date", "missing" or "word"."""
    if is_missing(cell):
        return "missing"
    if numbers.value(cell) is not None:
        return "number"
    return "date" if is_date(cell) or is_time(cell) else "word"


def kind_of_column(cells: Sequence[str], numbers: Numbers) -> str:
    """Return the kind of most cells; "missing" if there is nothing else."""
    kinds = [kind_of(cell, numbers) for cell in cells]
    present = [kind for kind in kinds if kind != "missing"]
    for kind in ("number", "date"):
        if present.count(kind) > len(present) / 2:
            return kind
    return "word" if present else "missing"


def find_head(
    where: str, rows: Sequence[Row], width: int, numbers: Numbers, target: str | int | None, *, commas: bool = False
) -> Head:
    """Find the header among the first rows of a table whose rows mostly have `width` cells."""
    drawn = [(line, row) for line, row in rows if any(row) and not _is_ruler(row)]
    head = _find_head(where, drawn, width, numbers, target, commas)
    below = [line for line, row in rows if line == head.line + 1 and _is_ruler(row)]
    return replace(head, line=below[0]) if below and head.named else head


def _is_ruler(row: Sequence[str]) -> bool:
    """Whether a row is a line drawn below the names."""
    return RULER.fullmatch("".join(row)) is not None


def _find_head(
    where: str, filled: Sequence[Row], width: int, numbers: Numbers, target: str | int | None, commas: bool
) -> Head:
    if not filled:
        raise SourceError(f"{where}: has no rows")
    start = _first_row(where, filled, width)
    above = filled[start - 1][0] if start else 0
    titles = [row for _, row in filled[:start]]
    body = [row for _, row in filled[start:] if len(row) == width]
    n_names = _count_name_rows(body, width, numbers)
    if not n_names and titles and (names := _narrow_names(titles[-1], body, numbers, commas)):
        return Head(names, above, width, True, start - 1)
    if not n_names and _is_named(where, body, numbers, target):
        n_names = 1
    if not n_names:
        if above:
            _refuse_numbers_above(where, filled[:start], width, numbers)
            cells = sum(map(bool, titles[-1]))
            if not titles[-1][0].startswith("#") and (cells == width - 1 or (commas and cells > 1)) and cells > 1:
                raise SourceError(
                    f"{where}, line {above}: expected {width} cells as in most lines, got {len(titles[-1])}; if commas "
                    "stand before the fractions of numbers, save it with semicolons"
                )
        return Head(("",) * width, above, width, False, start)
    _refuse_numbers_above(where, filled[:start], width, numbers)
    return Head(_joined_names(body[:n_names]), filled[start + n_names - 1][0], width, True, start)


def _first_row(where: str, rows: Sequence[Row], width: int) -> int:
    """Index of the first row of the table; rows above it that have other widths are titles or comments."""
    for i, (_, row) in enumerate(rows[: TITLES + 1]):
        following = rows[i + 1 : i + 2]
        commented = bool(row) and row[0].startswith("#") and len(following) == 1 and len(following[0][1]) != width
        if len(row) == width and not commented and all(len(other) == width for _, other in following):
            return i
    line, row = rows[0]
    raise SourceError(f"{where}, line {line}: expected {width} cells as in most lines, got {len(row)}")


def _refuse_numbers_above(where: str, rows: Sequence[Row], width: int, numbers: Numbers) -> None:
    """Rows above the table may be words, not values that would be lost."""
    for line, row in rows:
        kinds = [kind_of(cell, numbers) for cell in row]
        if "number" in kinds and "word" not in kinds:
            raise SourceError(f"{where}, line {line}: expected {width} cells as in most lines, got {len(row)}")


def _narrow_names(
    title: Sequence[str], body: Sequence[Sequence[str]], numbers: Numbers, commas: bool
) -> tuple[str, ...] | None:
    """Names with fewer cells than the rows: R leaves out that of row names, others end rows in a comma."""
    title = [cell for cell in title if cell]
    if title and title[0].startswith("#"):
        title = [title[0][1:].strip(), *title[1:]]
        title = [cell for cell in title if cell]
    missing = len(body[0]) - len(title)
    if any(kind_of(cell, numbers) in ("number", "date") for cell in title):
        return None
    if missing == 0:
        return tuple(title)
    if missing > 0 and all(not cell for row in body for cell in row[len(title) :]):
        return (*title, *[""] * missing)
    behind = all(cell.isdigit() for row in body for cell in row[-1:]) and all(
        INTEGER.fullmatch(row[-2]) for row in body
    )
    if missing == 1 and title and not (behind and commas):  # else 12,5 may be one number
        first = [row[0] for row in body]
        counted = all(INTEGER.fullmatch(cell) for cell in first) and _is_counting(first)
        if counted or (kind_of_column(first, numbers) in ("word", "date") and len(set(first)) == len(first)):
            return ("", *title)
    return None


def _is_counting(cells: Sequence[str]) -> bool:
    values = [int(cell) for cell in cells]
    return all(b - a == 1 for a, b in pairwise(values))


def _count_name_rows(body: Sequence[Sequence[str]], width: int, numbers: Numbers) -> int:
    """How many rows at the top surely are names, because they have words where the rows below have numbers or dates."""
    n = 0
    while n < min(NAME_ROWS, len(body) - 1):
        rest = body[n + 1 :]
        kinds = [kind_of_column([row[i] for row in rest], numbers) for i in range(width)]
        here = [kind_of(cell, numbers) for cell in body[n]]
        valued = [i for i in range(width) if kinds[i] in ("number", "date")]
        wordy = [i for i in valued if here[i] == "word"]
        if not valued or not wordy:
            break
        if n and any(here[i] in ("number", "date") for i in valued):
            break  # a row with a value and a word below the names is a row with an error
        if not n and len(wordy) < len(valued) and len(wordy) * 2 < sum(here[i] != "missing" for i in valued):
            break
        n += 1
    if not n and len(body) == 1 and all(kind_of(cell, numbers) in ("word", "missing") for cell in body[0]):
        return 1  # nothing below it
    return n


def _is_named(where: str, body: Sequence[Sequence[str]], numbers: Numbers, target: str | int | None) -> bool:
    """Whether the first row are names although it could be values: numbers, or words above words."""
    first, rest = body[0], body[1:]
    if not rest:
        return False
    columns = list(zip(*rest, strict=True))
    kinds = [kind_of_column(column, numbers) for column in columns]
    if not first[0] and len(first) > 1 and all(first[1:]) and all(columns[0]):
        return True  # what pandas writes above an index
    valued = [i for i, kind in enumerate(kinds) if kind == "number"]
    if not valued:
        wordy = all(kind_of(cell, numbers) == "word" for cell in first)
        return wordy and all(kind == "word" for kind in kinds) and _is_new(first, columns)
    if any(not INTEGER.fullmatch(first[i]) for i in valued):
        return False
    values = [int(first[i]) for i in valued]
    worded = [i for i in range(len(first)) if i not in valued]
    new_words = bool(worded) and all(first[i] and first[i] not in columns[i] for i in worded)
    counting = len(values) > 1 and all(b - a == 1 for a, b in pairwise(values))
    fractions = all(_has_fraction(cell, numbers) for i in valued for cell in columns[i] if not is_missing(cell))
    years = all(value in YEARS for value in values)
    values_are_years = all(
        INTEGER.fullmatch(cell) and int(cell) in YEARS for i in valued for cell in columns[i] if not is_missing(cell)
    )
    if fractions and len(rest) >= MANY:
        return True
    if counting and years and not values_are_years and (new_words or len(values) > 2):
        return True
    if counting and values[0] == 0 and len(values) > 2 and not _is_counting_on(first, columns):
        return True
    known = any(
        re.fullmatch(r"(?i)date|time|datum|day|month|year|week|name|id|index|key|city|country", first[i])
        for i in worded
    )
    if new_words and known:
        return True if not years or (isinstance(target, str) and target in first) else _ask(where, first, target)
    if years and not values_are_years and (new_words or counting):
        return _ask(where, first, target)
    if len(values) == 1 and (years or not values[0]) and _is_far(values[0], columns[valued[0]], numbers):
        return _ask(where, first, target)
    doubtful = (fractions or (counting and values[0] == 0)) and not _is_counting_on(first, columns)
    if doubtful and (len(set(values)) == len(values) and (counting or 0 in values)):
        return _ask(where, first, target)
    return False


def _is_far(value: int, cells: Sequence[str], numbers: Numbers) -> bool:
    """Whether a number is no neighbor of the others."""
    others = [number for cell in cells if (number := numbers.value(cell)) is not None]
    return len(others) > 2 and min(abs(value - other) for other in others) > 2 * (max(others) - min(others))


def _is_new(first: Sequence[str], columns: Sequence[Sequence[str]]) -> bool:
    return all(cell and cell not in column for cell, column in zip(first, columns, strict=True))


def _has_fraction(cell: str, numbers: Numbers) -> bool:
    return numbers.decimal in cell or "e" in cell.lower()


def _is_counting_on(first: Sequence[str], columns: Sequence[Sequence[str]]) -> bool:
    """Whether some column counts 0, 1, 2, ... from the first row on."""
    return any(
        INTEGER.fullmatch(cell) and all(map(INTEGER.fullmatch, column)) and _is_counting([cell, *column])
        for cell, column in zip(first, columns, strict=True)
    )


def _ask(where: str, first: Sequence[str], target: str | int | None) -> bool:
    """Let the target decide: a name that is no number of a column means names."""
    text = str(target)
    if target is not None and text in first and not (text.isdigit() and int(text) < len(first)):
        return True
    if target is not None and text.isdigit() and int(text) < len(first) and text not in first:
        return False
    raise SourceError(
        f"{where}: the first line, {listed(first[:4])}, may be names or values; give target as a name of it "
        f"(names) or as the number of a column (values), or write names above it"
    )


def _joined_names(rows: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """One name for each column: the first row's, with those below where it is not enough."""
    rows = [[" ".join(cell.split()) for cell in row] for row in rows]  # a cell in quotes may have several lines
    first = [cell.removeprefix("#").strip() if i == 0 else cell for i, cell in enumerate(rows[0])]
    given = [name for name in first if name]
    if len(rows) == 1 or len(set(given)) == len(given):
        return tuple(name or next((row[i] for row in rows[1:] if row[i]), "") for i, name in enumerate(first))
    names, last = [], ""
    for i, cell in enumerate(first):
        last = cell or last
        names.append(" ".join(part for part in (last, *(row[i] for row in rows[1:])) if part))
    return tuple(names)
