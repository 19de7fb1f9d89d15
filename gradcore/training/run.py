"""What the rules of a monitor look at: the newest step and the run so far."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from gradcore._base.check import Array
from gradcore.layers.telemetry import StepTelemetry
from gradcore.training.findings import Thresholds

__all__: list[str] = []  # for the package only


class Outputs(NamedTuple):
    """What the rules on outputs share. All in float64: in their own dtype small integers and bools may overflow."""

    rows: Array  # (samples, features)
    spread: float  # the largest distance of two samples in a feature
    largest: float  # magnitude
    finite: bool


@dataclass
class Step:
    """The newest step, as `GradientMonitor.update` was given it."""

    number: int
    loss: float = math.nan
    norm: float = math.nan
    grad_norm: Any = math.nan  # the same, with what a GradNorm knows
    model: Any = None
    seen: StepTelemetry = field(default_factory=StepTelemetry)
    y: Array | None = None
    max_norm: float | None = None

    @cached_property
    def outputs(self) -> Outputs | None:
        """None where there are none."""
        y = self.y
        if y is None or y.size == 0:
            return None
        rows = y.reshape(-1, y.shape[-1]) if y.ndim > 1 else y.reshape(-1, 1)
        low, high = rows.min(axis=0).astype(np.float64), rows.max(axis=0).astype(np.float64)
        least, most = float(low.min()), float(high.max())
        finite = math.isfinite(least) and math.isfinite(most)
        return Outputs(rows, float((high - low).max()), max(most, -least), finite)


class Run:
    """What has happened so far, including the newest step.

    Attributes
    ----------
    losses, loss_steps : deque
        The finite losses of the window, and their steps.
    norms : deque
        The finite, positive gradient norms of the window, and one before it.
    clipped, skipped : deque of bool
        Of the steps of the window; `clipped` of those with a threshold.
    reference : float
        The loss at the start: the median of the first `warmup` ones.
    level, best : float
        The median of the last ten losses, and the lowest such median of the steps before.
    outputs : ndarray or None
        Some outputs of the last look at them.
    """

    def __init__(self, thresholds: Thresholds) -> None:
        self.thresholds = thresholds
        self.n_steps = self.n_clipped = self.n_skipped = 0
        self.n_thresholded = 0  # steps with a threshold to clip at
        window = thresholds.window
        self.losses: deque[float] = deque(maxlen=window)
        self.loss_steps: deque[int] = deque(maxlen=window)
        self.norms: deque[float] = deque(maxlen=window + 1)
        self.clipped: deque[bool] = deque(maxlen=window)
        self.skipped: deque[bool] = deque(maxlen=window)
        self.reference = self.level = math.nan
        self.best = math.inf
        self.largest_norm = 0.0
        self.outputs: Array | None = None
        self._n_losses = 0
        self._held: dict[tuple[str, str], tuple[int, int]] = {}
        self._step = 0

    @property
    def warm(self) -> bool:
        """Whether losses are compared with `reference` by now."""
        return self._n_losses > min(self.thresholds.warmup, self.thresholds.window)

    def begin(self, now: Step) -> None:
        """Add the newest step, before the rules look."""
        self._step = now.number
        if math.isfinite(now.loss):
            self._n_losses += 1
            self.losses.append(now.loss)
            self.loss_steps.append(now.number)
            self.level = median(list(self.losses)[-10:])
            if self._n_losses == min(self.thresholds.warmup, self.thresholds.window):
                self.reference = median(self.losses)
        if 0 <= now.norm < math.inf:
            self.largest_norm = max(self.largest_norm, now.norm)
            if now.norm > 0:
                self.norms.append(now.norm)
        clipped, skipped = (bool(getattr(now.grad_norm, name, False)) for name in ("clipped", "skipped"))
        self.n_clipped += clipped
        self.n_skipped += skipped
        self.skipped.append(skipped)
        if clipped or now.max_norm is not None:
            self.n_thresholded += 1
            self.clipped.append(clipped)

    def end(self, now: Step) -> None:
        """Count the step, after the rules have looked."""
        self.n_steps += 1
        if math.isfinite(now.loss) and self.warm:
            self.best = min(self.best, self.level)

    def lasting(self, kind: str, condition: bool, patience: int, where: str = "") -> tuple[int, int] | None:
        """Return where the condition began and for how many looks it has held, once these are `patience`; else None."""
        if not condition:
            self._held.pop((kind, where), None)
            return None
        began, times = self._held.get((kind, where), (self._step, 0))
        self._held[kind, where] = began, times + 1
        return (began, times + 1) if times + 1 >= patience else None


def median(values: Any) -> float:
    """Return the median of a few numbers, without the overhead of an array."""
    ordered = sorted(values)
    half = len(ordered) // 2
    return float(ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2)


def deviation(values: Any, center: float) -> float:
    """Return the standard deviation of normal values with this median absolute deviation from `center`."""
    return 1.4826 * median([abs(value - center) for value in values])
