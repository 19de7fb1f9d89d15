"""What the experiments share: runs side by side, tables, and where and when they ran."""

from __future__ import annotations

import datetime
import multiprocessing
import os
import textwrap
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
from figures import processor

import gradcore


def side_by_side(function: Callable[..., Any], arguments: Iterable[Sequence[Any]]) -> list[Any]:
    """Return what a function of a module returns for each tuple of arguments, one run a core, each with one thread."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(cores, mp_context=context, initializer=gradcore.set_num_threads, initargs=(1,)) as pool:
        jobs = [pool.submit(function, *each) for each in arguments]
        return [job.result() for job in jobs]


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a Markdown table; numbers with three digits."""
    lines = [header, ["---"] * len(header), *([cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def cell(value: Any) -> str:
    """Return a number as a table shows it."""
    if isinstance(value, (int, np.integer)):
        return f"{value:,}"
    return f"{value:.3g}" if isinstance(value, (float, np.floating)) else str(value)


def spread(values: Iterable[float]) -> str:
    """Return the median over seeds, and the extremes."""
    numbers = np.asarray(list(values), np.float64)
    if numbers.size == 1:
        return cell(float(numbers[0]))
    ordered, half = np.sort(numbers), numbers.size // 2  # NaN counts as the largest
    middle = ordered[[half - 1 + numbers.size % 2, half]].mean()
    return f"{middle:.3g} ({ordered[0]:.3g} to {ordered[-1]:.3g})"


def filled(text: str) -> str:
    """Return Markdown whose paragraphs are filled to lines of equal length; tables and lists stay as they are."""
    parts = [part.strip("\n") for part in text.split("\n\n") if part.strip()]
    return "\n\n".join(part if part[0] in "|-#!`" else textwrap.fill(part, 130) for part in parts)


def foot(minutes: float) -> str:
    """Return when and where, and how long it took."""
    kind = gradcore.info()["isa"]
    took = f"{minutes:.0f} minutes" if minutes >= 1.5 else f"{60 * minutes:.0f} seconds"
    return f"{took} on {os.cpu_count()} cores of {processor()} ({kind}), {datetime.date.today().isoformat()}"
