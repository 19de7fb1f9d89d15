"""Dates and times of day: recognize a column of them, and the order and step of its rows."""

from __future__ import annotations

import datetime
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from gradcore._base.check import Array
from gradcore.data.blocks import as_texts, letters_of

__all__: list[str] = []  # for the package only

CLOCK = r"(?P<clock>\d{1,2}(?::\d{2}(?::\d{2}(?:[.,]\d+)?)?|\.\d{2}\.\d{2}))(?: ?(?P<half>[AaPp])\.?[Mm]\.?)?"
ZONE = r"(?: ?(?:Z|UTC|[+-]\d{2}:?\d{2}))?"
MONTHS = dict(jan=1, feb=2, mar=3, apr=4, may=5, jun=6, jul=7, aug=8, sep=9, oct=10, nov=11, dec=12)
MONTH = rf"(?P<month>(?:{'|'.join(MONTHS)})[a-z]*)\.?"
DAYS = [
    r"(?P<y>\d{4})(?P<sep>[-/.])(?P<m>\d{1,2})(?:(?P=sep)(?P<d>\d{1,2}))?",
    r"(?P<a>\d{1,2})(?P<sep>[-/.])(?P<b>\d{1,2})(?P=sep)(?P<y>\d{4}|\d{2})",  # day or month first
    rf"(?P<d>\d{{1,2}})[- ]{MONTH}[- ](?P<y>\d{{4}}|\d{{2}})",
    rf"{MONTH} (?P<d>\d{{1,2}}),? (?P<y>\d{{4}})",
    rf"{MONTH}[- ](?P<y>\d{{4}})",
    r"(?P<y>(?:19|20)\d{2})(?P<m>[01]\d)(?P<d>[0-3]\d)",  # also a number
]
DATES = [re.compile(rf"(?:{day})(?:[T ] ?{CLOCK}{ZONE})?", re.IGNORECASE) for day in DAYS]
FIXED = re.compile(r"(\d{4}([-/.])\d\d\2\d\d|\d\d([-/.])\d\d\3\d{4})([ T]\d\d:\d\d(:\d\d)?)?")
NUMERIC = re.compile(r"\d{8}|\d{4}\.\d{1,2}")  # a number, not a date
TIME = re.compile(r"\d{1,2}(?::\d{2}(?::\d{2}(?:[.,]\d+)?)?|\.\d{2}\.\d{2})(?: ?[AaPp]\.?[Mm]\.?)?")
STEPS = ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))


def is_date(cell: str) -> bool:
    """Return whether a cell is a date, with a time of day or not."""
    return any(form.fullmatch(cell) for form in DATES) and not NUMERIC.fullmatch(cell)


def is_time(cell: str) -> bool:
    """Return whether a cell is a time of day."""
    return TIME.fullmatch(cell) is not None


@dataclass
class DateReader:
    """Turn the cells of one column into seconds; NaN for what is no date.

    Where day and month cannot be told apart by one above 12, `finish` takes the order in which time goes on.
    """

    parts: list[Array] = field(default_factory=list)
    swapped: list[Array] = field(default_factory=list)  # the same with the month first
    bad: list[tuple[int, str]] = field(default_factory=list)
    known: dict[str, tuple[float, float]] = field(default_factory=dict)  # days repeat
    dated: bool = False  # whether any cell is a date, not just a number

    def feed(self, cells: Sequence[str] | Array, lines: Sequence[int]) -> None:
        """Take some more cells, and the lines of the file that they are in."""
        if isinstance(cells, np.ndarray) and cells.dtype.kind in "Mfiu":
            seconds = cells.astype("M8[us]").astype(np.int64) / 1e6 if cells.dtype.kind == "M" else cells.astype(float)
            self.parts.append(seconds)
            self.swapped.append(seconds)
            return
        if (bulk := _in_bulk(cells)) is not None:
            self.dated = True
            self.parts.append(bulk[0])
            self.swapped.append(bulk[1])
            return
        both = np.array(
            [self._seconds(str(cell).strip(), line) for cell, line in zip(as_texts(cells), lines, strict=True)]
        )
        self.parts.append(both[:, 0])
        self.swapped.append(both[:, 1])

    def _seconds(self, cell: str, line: int) -> tuple[float, float]:
        day, _, clock = cell.partition(" ") if " " in cell else cell.partition("T")
        if day not in self.known or (clock and not clock[0].isdigit()) or (clock and not TIME.fullmatch(clock)):
            day, clock, found = self._whole(cell)
            if found is None:
                self.bad.append((line, cell))
                return np.nan, np.nan
            self.known[day] = found
        after = _clock(clock)
        first, second = self.known[day]
        return first + after, second + after

    def _whole(self, cell: str) -> tuple[str, str, tuple[float, float] | None]:
        for form in DATES:
            if match := form.fullmatch(cell):
                self.dated = True
                named = match.groupdict()
                clock = (named["clock"] or "") + (named["half"] or "")
                day = cell[: match.start("clock")].rstrip(" Tt") if named["clock"] else cell
                return day, clock, _days(named)
        try:
            return cell, "", (float(cell), float(cell))
        except ValueError:
            return cell, "", None

    def finish(self) -> Array:
        """Return the seconds of all rows."""
        if not self.parts:
            return np.empty(0)
        day_first, month_first = np.concatenate(self.parts), np.concatenate(self.swapped)
        if np.isnan(month_first).sum() != np.isnan(day_first).sum():
            return day_first if np.isnan(month_first).sum() > np.isnan(day_first).sum() else month_first
        back = [np.count_nonzero(np.diff(times) < 0) for times in (day_first, month_first)]
        kinds = [len(np.unique(np.diff(times))) for times in (day_first, month_first)]
        return month_first if (min(back[1], len(day_first) - back[1]), kinds[1]) < (
            min(back[0], len(day_first) - back[0]), kinds[0],
        ) else day_first  # fmt: skip


def _in_bulk(cells: Sequence[str] | Array) -> tuple[Array, Array] | None:
    """Seconds of cells such as 2020-01-31 12:00 or 31.01.2020, with day and month in both orders; None for others."""
    try:
        text = cells if isinstance(cells, np.ndarray) and cells.dtype.kind == "S" else np.array(cells, np.bytes_)
    except UnicodeEncodeError:
        return None
    width = text.dtype.itemsize
    first = text[0].decode() if len(text) else ""
    if width != len(first) or not FIXED.fullmatch(first):
        return None
    places = np.ascontiguousarray(letters_of(text).T)  # (width, n): each place of all cells side by side
    digit = np.array([c.isdigit() for c in first])
    if any((places[i] != places[i, 0]).any() for i in np.flatnonzero(~digit)):
        return None
    places -= ord("0")
    if any((places[i] > 9).any() for i in np.flatnonzero(digit)):  # what is below 0 wraps around
        return None

    def number(begin: int, end: int) -> Array:
        found: Array = places[begin].astype(np.int32)
        for place in places[begin + 1 : end]:
            found *= 10
            found += place
        return found

    clock = np.zeros(len(text), np.int32)
    for place, most, seconds in ((11, 23, 3600), (14, 59, 60), (17, 60, 1)):
        if width > place:
            part = number(place, place + 2)
            if (part > most).any():
                return None
            clock += part * np.int32(seconds)
    at = [(0, 4), (5, 7), (8, 10)] if digit[2] else [(6, 10), (3, 5), (0, 2)]
    days = [number(*place) for place in at]  # year, month, day
    begins = np.flatnonzero(np.diff((days[0] * 100 + days[1]) * 100 + days[2], prepend=-1))  # days repeat
    year, month, day = (part[begins] for part in days)
    found = [_seconds_of_days(year, month, day)]
    if not digit[2]:
        found.append(_seconds_of_days(year, day, month))
    if np.isnan(found).any(1).all():
        return None
    repeats = np.diff(begins, append=len(text))
    both = [np.repeat(seconds, repeats) + clock for seconds in found]
    return both[0], both[-1]


def _seconds_of_days(year: Array, month: Array, day: Array) -> Array:
    """Seconds since 1970; NaN where there is no such day."""
    months = (year - 1970).astype("M8[Y]").astype("M8[M]") + (month - 1)
    days = months.astype("M8[D]") + (day - 1)
    wrong = (month < 1) | (month > 12) | (day < 1) | (days.astype("M8[M]") != months)
    return np.where(wrong, np.nan, days.astype(np.int64) * 86400.0)


def _days(named: dict[str, str | None]) -> tuple[float, float] | None:
    """Seconds of a day, with the day first and with the month first where both can be."""
    year = int(named["y"] or 0)
    if len(named["y"] or "") == 2:
        year += 2000 if year < 69 else 1900  # as POSIX reads them
    if named.get("a"):
        a, b = int(named["a"] or 0), int(named["b"] or 0)
        pairs = [(b, a), (a, b)]
    else:
        month = named.get("m") or MONTHS[(named.get("month") or "")[:3].lower()]
        pairs = [(int(month), int(named.get("d") or 1))] * 2
    found = [_stamp(year, month, day) for month, day in pairs]
    return None if np.isnan(found).all() else (found[0], found[1])


def _stamp(year: int, month: int, day: int) -> float:
    try:
        return (datetime.date(year, month, day).toordinal() - 719163) * 86400.0
    except ValueError:
        return np.nan


@functools.lru_cache(100_000)
def _clock(clock: str) -> float:
    if not clock:
        return 0.0
    half = clock.rstrip("mM. ")[-1].lower()
    digits = re.findall(r"\d+(?:[.,]\d+$)?", clock) if ":" in clock else re.findall(r"\d+", clock)
    hours, minutes, seconds = [float(part.replace(",", ".")) for part in (*digits, "0", "0")][:3]
    if half in "ap":
        hours = hours % 12 + 12 * (half == "p")
    return 3600 * hours + 60 * minutes + seconds


def step_of(times: Array) -> tuple[str, int]:
    """Return the sampling step of ascending seconds in words, and how many steps differ from it."""
    steps = np.diff(times)
    steps = steps[steps > 0]
    if not steps.size:
        return "none", 0
    sizes, counts = np.unique(steps, return_counts=True)
    usual = float(sizes[counts.argmax()])
    days = steps / 86400
    for least, most, name in ((28, 31, "1 month"), (365, 366, "1 year"), (90, 92, "3 months")):
        fits = (days >= least) & (days <= most)
        if fits.mean() > 0.5:
            return name, int((~fits).sum())
    for seconds, name in STEPS:
        if usual >= seconds and usual % seconds == 0:
            n = int(usual // seconds)
            return f"{n} {name}{'s' * (n != 1)}", int((steps != usual).sum())
    return f"{usual:g} seconds", int((steps != usual).sum())
