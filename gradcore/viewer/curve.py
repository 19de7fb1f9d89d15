"""A long series of numbers in little memory."""

from __future__ import annotations

import math
from typing import NamedTuple

__all__: list[str] = []  # for the package only

MOST = 2048  # points of a curve; twice as many are merged in pairs


class Point(NamedTuple):
    """What is known of some steps in a row: the first of them, the extremes of their finite values, any other value."""

    step: int
    low: float
    high: float
    bad: bool


class Curve:
    """Keep the extremes of a series by step. No peak is lost however long it becomes; only its place is less exact."""

    def __init__(self) -> None:
        self._points: list[Point] = []
        self._steps_each = 1
        self._in_last = 0
        self.last = self.lowest = math.nan

    def append(self, step: int, value: float) -> None:
        self.last = value
        finite = math.isfinite(value)
        if finite and not value >= self.lowest:
            self.lowest = value
        if 0 < self._in_last < self._steps_each:
            self._in_last += 1
            last = self._points[-1]
            if finite and last.low <= value <= last.high:
                return
            self._points[-1] = _merged(last, _point(step, value))
            return
        self._points.append(_point(step, value))
        self._in_last = 1
        if len(self._points) >= 2 * MOST:
            self._points = merged_in_groups(self._points, 2)
            self._steps_each *= 2

    def points(self, most: int = 2 * MOST) -> list[Point]:
        """At most so many points, of which each stands for as many steps, but for the last one."""
        return merged_in_groups(self._points, -(-len(self._points) // max(most, 1)))


def _point(step: int, value: float) -> Point:
    return Point(step, value, value, False) if math.isfinite(value) else Point(step, math.nan, math.nan, True)


def merged_in_groups(points: list[Point], size: int) -> list[Point]:
    """Merge every so many points in a row."""
    if size <= 1:
        return list(points)
    found = []
    for start in range(0, len(points), size):
        point = points[start]
        for other in points[start + 1 : start + size]:
            point = _merged(point, other)
        found.append(point)
    return found


def _merged(a: Point, b: Point) -> Point:
    return Point(a.step, _least(a.low, b.low), -_least(-a.high, -b.high), a.bad or b.bad)


def _least(a: float, b: float) -> float:
    return b if math.isnan(a) or b < a else a
