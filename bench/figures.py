"""What benchmarks share: the shapes of recurrent layers, and what is written beside a time or a figure."""

from __future__ import annotations

import datetime
import platform
from pathlib import Path
from typing import Any

import gradcore

Shape = tuple[int, int, int, int]  # T, B, I, H

SHAPES: list[Shape] = [
    (100, 1, 64, 64),
    (100, 32, 64, 128),
    (100, 64, 256, 256),
    (50, 64, 512, 512),
    (784, 128, 1, 100),
    (35, 20, 650, 650),
    (200, 16, 128, 1024),
]
GATES = {"RNN": 1, "LSTM": 4, "GRU": 3}


def flop(cell: str, shape: Shape, passes: int) -> int:
    """Multiplications and additions of the matrix products; forward + backward is 3 passes."""
    T, B, I, H = shape
    return passes * 2 * T * B * GATES[cell] * H * (I + H)


def note(benchmark: Any, unit: str, amount: float, **more: Any) -> None:
    """The machine, and `amount` over the median time in billions a second: of operations, bytes, elements."""
    benchmark.extra_info |= gradcore.info() | more
    if benchmark.stats is not None:  # with --benchmark-disable the results are verified, and nothing is timed
        benchmark.extra_info[unit] = amount / benchmark.stats["median"] / 1e9


def processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor()


def machine() -> dict[str, Any]:
    """What a file of figures says of where and when they were taken."""
    return gradcore.info() | {"date": datetime.date.today().isoformat(), "processor": processor()}
