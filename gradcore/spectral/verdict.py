"""When growth counts as explosion, and how to say it: the one place that decides."""

from __future__ import annotations

import math
from typing import Literal

from gradcore.spectral.logs import safe_exp

__all__: list[str] = []  # for the package only

Verdict = Literal["explodes", "vanishes", "stable"]

# "stable": the gradient changes by less than 1 % a step and by less than a factor of 10 over the horizon.
STABLE_RATE = 0.01
STABLE_FACTOR = 10.0


def judge(rate: float, horizon: int) -> Verdict:
    """Return the verdict on a rate, ln per step, over a number of steps."""
    margin = min(STABLE_RATE, math.log(STABLE_FACTOR) / horizon)
    return "explodes" if rate > margin else "vanishes" if rate < -margin else "stable"


def in_words(verdict: Verdict, rate: float, unit: str = "step") -> str:
    """Return such as "explodes by a factor of 1.25 a step"."""
    link = "at" if verdict == "stable" else "by"
    return f"{verdict} {link} a factor of {safe_exp(rate):.3g} a {unit}"
