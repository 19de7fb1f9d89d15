"""Put the rows of a table in order of time, group by group."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradcore._base.check import Array
from gradcore.data.columns import Columns
from gradcore.data.dates import DateReader, step_of
from gradcore.data.errors import SourceError, shown

__all__: list[str] = []  # for the package only

Time = dict[str, Any]


def group_rows(words: list[str] | None, given: Array | None, n: int) -> tuple[Array, list[str]]:
    """Return the number of each row's group, and the groups' names."""
    if words is None:
        if given is None:
            return np.zeros(n, np.int64), []
        return given, [str(i) for i in range(int(given.max()) + 1)]
    number: dict[str, int] = {}
    return np.array([number.setdefault(word, len(number)) for word in words]), list(number)


def order_rows(
    columns: Columns, reader: DateReader, groups: Array, asked: bool, panel: list[str] | None
) -> tuple[Array, Time | None]:
    """Return the rows in order of time, and what there is to say about time.

    Dates that nobody asked for are obeyed only if they go one way.
    """
    assert columns.time is not None
    times = reader.finish()
    order = np.arange(len(times))
    said = columns.said(columns.time)
    if reader.bad or np.isnan(times).any():
        few = np.isnan(times).sum() <= max(2, len(times) // 100)
        if asked or (few and not columns.counted):
            line, cell = reader.bad[0] if reader.bad else (0, "")
            where = f"{columns.where}, line {line}, {said}" if line else f"{columns.where}, {said}"
            raise SourceError(f"{where}: expected a date, got {shown(cell)} ({int(np.isnan(times).sum())} such cells)")
        return order, None
    steps = _steps(times, groups)
    reverse = steps.size > 0 and (steps <= 0).all() and (steps < 0).any()
    mixed = (steps < 0).any() and not reverse
    if mixed and not asked:
        _refuse_panel(columns, times, panel)
        return order, None
    if mixed:
        order = np.argsort(times, kind="stable")
    elif reverse:
        order = order[::-1]
    if not np.any(steps):
        return order, None
    first = order[groups[order] == groups[order[0]]]
    if columns.counted and not reader.dated:
        usual = np.median(np.abs(np.diff(times[first])))
        step, others = f"{usual:g}", int((np.abs(np.diff(times[first])) != usual).sum())
    else:
        step, others = step_of(times[first])
    name = columns.label(columns.time)
    return order, {"name": name, "step": step, "other_steps": others, "reversed": bool(reverse), "sorted": bool(mixed)}


def _steps(times: Array, groups: Array) -> Array:
    """Differences in time between neighbors of a group."""
    by_group = np.argsort(groups, kind="stable")
    same = np.diff(groups[by_group]) == 0
    return np.asarray(np.diff(times[by_group])[same])


def _refuse_panel(columns: Columns, times: Array, words: list[str] | None) -> None:
    """Refuse several series in one table, which would be read as one."""
    if words is None or columns.panel is None or columns.group is not None:
        return
    groups, names = group_rows(words, None, len(words))
    if not 2 <= len(names) <= len(words) // 3 or not (_steps(times, groups) > 0).all():
        return
    raise SourceError(
        f"{columns.where}: {len(names)} series seem to stand one below the other, told apart by "
        f"{columns.said(columns.panel)}, since time goes back; give group={columns.label(columns.panel)}, or time="
        f"{columns.label(columns.time or 0)} to sort all rows"
    )
