"""What every benchmark writes beside its times."""

from __future__ import annotations

from typing import Any

import gradcore


def note(benchmark: Any, unit: str, amount: float, **more: Any) -> None:
    """The machine, and `amount` over the median time in billions a second: of operations, bytes, elements."""
    benchmark.extra_info |= gradcore.info() | more
    if benchmark.stats is not None:  # with --benchmark-disable the results are verified, and nothing is timed
        benchmark.extra_info[unit] = amount / benchmark.stats["median"] / 1e9
