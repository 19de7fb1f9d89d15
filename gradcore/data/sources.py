"""Open a source: a task of the literature, a table, or a text."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np

from gradcore._base.check import FLOAT32, Array, check_int
from gradcore.data.columns import Options, check_options
from gradcore.data.errors import SourceError
from gradcore.data.files import read_bytes, unpacked
from gradcore.data.forecasting import forecast_task
from gradcore.data.table import Series, open_source, series_of
from gradcore.data.tasks import HeldOut, Task, adding_task, copy_task, temporal_order_task

__all__ = ["SOURCES", "SourceError", "load"]

MAKERS = {"adding": adding_task, "temporal-order": temporal_order_task, "copy": copy_task}
BUNDLED = {
    "sunspots": "yearly mean sunspot numbers, 1700 to 2008",
    "temperatures": "hourly temperatures in Seattle, 2010",
    "co2": "weekly carbon dioxide at Mauna Loa, 1958 to 2001",
    "weather": "daily weather in Seattle, 2012 to 2015",
}
BUNDLED_FILES = {"temperatures": "temperatures.csv.gz"}
TARGETS = {"weather": "weather"}  # where the last column of numbers is not what most people want

SOURCES = ("sunspots", *MAKERS, *(name for name in BUNDLED if name != "sunspots"))
"""Names of the sources that come with the package."""


def load(
    source: str | os.PathLike[str],
    seq_len: int | None = None,
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
    horizon: int | None = None,
    period: int | None = None,
) -> Task:
    """Open a source: a task by name, a table or a text.

    The task of a table is to forecast a column, that of any other text to predict the next character. What separates
    the cells of a table, how its numbers are written and where its header is follows from the first lines; what can be
    read in two ways is refused with both, and the option that chooses.

    Parameters
    ----------
    source : str or path
        "sunspots" (yearly means from 1700 to 2008), "temperatures" (hourly, 2010), "co2" (weekly, with gaps), "weather"
        (daily, with a class), "adding", "temporal-order", "copy", or a file, gzip or not: a table as text with any
        separator, as Parquet, xlsx, JSON lines, npy or npz, or a text.
    seq_len : int, optional
        Number of steps of a sequence, at least 2; for "copy" the delay. By default 100, or 50 for "copy" and files.
    target : str or int, optional
        Column of a table to forecast: its name, or its number from 0 if no name matches. By default the last column of
        numbers. A column of words, or of labels 0, 1, ... beside several others, is forecast as a class.
    inputs : sequence of str or int, optional
        Columns to forecast from. By default the target's own past, or for a class all other columns of numbers.
    time : str or int, optional
        Column to sort by. By default the first one of dates, if they go one way.
    group : str or int, optional
        Column whose values tell apart several series.
    missing : {"skip", "error", "interpolate"}
        Whether windows with missing values are left out, such values are refused, or filled by straight lines.
    na : sequence of str
        More marks of a missing value, such as "-999".
    delimiter : str, optional
        Character between cells, or "tab" or "space".
    decimal : {".", ","}, optional
        Sign before the fraction of a number; the other one may separate thousands.
    encoding : str, optional
        Such as "cp1252". By default UTF-8, UTF-16, or what the characters tell.
    horizon : int, optional
        How many steps after its window the target lies, at least 1. By default 1, or 0 for a class.
    period : int, optional
        Number of steps after which the series repeats itself, at least 2. By default what its autocorrelation tells.

    Returns
    -------
    Task
        The task, from which batches are drawn.

    Raises
    ------
    SourceError
        If the source cannot be read or learned from, or can be read in more than one way.
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
    if not isinstance(name, str):
        raise TypeError("source: expected the name of a task or a path as text, got bytes")
    steps = None if seq_len is None else check_int("seq_len", seq_len, least=2)
    horizon = None if horizon is None else check_int("horizon", horizon, least=1)
    period = None if period is None else check_int("period", period, least=2)
    ahead = {"horizon": horizon, "period": period}
    options = check_options(
        {"target": target, "inputs": inputs, "time": time, "group": group, "missing": missing, "na": na}
        | {"delimiter": delimiter, "decimal": decimal, "encoding": encoding}
    )
    if name in MAKERS:
        _refuse_options(options, ahead, f"the source {name}")
        return MAKERS[name](steps or (50 if name == "copy" else 100))
    if name in BUNDLED:
        if target is None and name in TARGETS:
            options = replace(options, target=TARGETS[name])
        raw = unpacked(name, (resources.files("gradcore.data") / BUNDLED_FILES.get(name, f"{name}.csv")).read_bytes())
        found = open_source(f"{name}.csv", raw, options)
    else:
        raw = read_bytes(name, SOURCES)
        found = open_source(name, raw, options)
    del raw  # a long file is not held twice
    if isinstance(found, str):
        _refuse_options(options, ahead, f"the text {name}", "encoding")
        return _character_task(name, found, steps or 50)
    series = series_of(name, found, options)
    if name in BUNDLED and steps is None:
        steps = 100
    return forecast_task(_title(name, series, horizon), series, steps, **ahead)


def _refuse_options(options: Options, ahead: dict[str, int | None], what: str, *allowed: str) -> None:
    given = [name for name in options.given() if name not in allowed]
    given += [name for name, value in ahead.items() if value is not None]
    if given:
        raise SourceError(f"{given[0]}: expected a table with columns, got {what}")


def _title(name: str, series: Series, horizon: int | None) -> str:
    """What is forecast, and what was taken without being asked."""
    what = "class" if series.classes else "next value" if horizon in (None, 1) else f"value {horizon} steps ahead"
    if name in BUNDLED:
        column = f"{series.target}, " if len(series.inputs) > 1 else ""
        return f"{what} of {column}{BUNDLED[name]}"
    column = series.target if series.target.startswith("column ") else f'column "{series.target}"'
    return f"{what} of {column} of {Path(name).name}"


def _character_task(source: str, text: str, steps: int) -> Task:
    """Predict, at each of `steps` characters, the next one; the last tenth of the text is held out."""
    n = len(text)
    split = n - max(n // 10, 1)
    if split <= steps:
        raise SourceError(
            f"{source}: expected more than {steps} characters to train on, and a tenth of the text after them to judge "
            f"by, got {n}" + (f"; a seq_len of {n // 3} would fit" if n > 5 else "")
        )
    codes = np.frombuffer(text.encode("utf-32-le"), "<u4")
    alphabet, codes = np.unique(codes, return_inverse=True)
    if len(alphabet) < 2:
        raise SourceError(f"{source}: every character is {text[0]!r}; a constant text has nothing to learn")
    size = len(alphabet)
    share = (np.bincount(codes[:split], minlength=size) + 1) / (split + size)

    def windows(start: Array) -> tuple[Array, Array]:
        window = codes[start + np.arange(steps + 1)[:, None]]
        x = np.zeros((steps, len(start), size), FLOAT32)  # not rows of an identity, which may be far larger
        np.put_along_axis(x, window[:-1, :, None], 1, axis=2)
        return x, window[1:]

    def draw(rng: np.random.Generator, batch: int) -> tuple[Array, Array]:
        return windows(rng.integers(0, split - steps, batch))

    def held_out(most: int) -> tuple[Array, Array]:
        first = max(split - 1, n - steps - 1 - (n - split))
        last = n - steps - 1
        return windows(np.unique(np.linspace(min(first, last), last, min(most, 64)).astype(int)))

    baselines = {"constant": float(-np.log(share[codes[split:]]).mean())}
    accuracies = {"constant": float((codes[split:] == share.argmax()).mean())}
    name = f"next character of {Path(source).name}"
    return Task(
        name, source, size, size, steps, True, True, baselines["constant"], draw,
        HeldOut(held_out, baselines, accuracies),
        within=lambda: _character_task(source, text[:split], steps),
    )  # fmt: skip
