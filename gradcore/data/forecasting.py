"""Forecast a series: windows of standardized values, and the value after them."""

from __future__ import annotations

import numpy as np

from gradcore._base.check import FLOAT32, Array
from gradcore.data.errors import SourceError
from gradcore.data.table import Series
from gradcore.data.tasks import Task

__all__: list[str] = []  # for the package only

CONSTANT = 1e-12  # a series whose standard deviation is at most this share of its largest value does not vary


def forecast_task(title: str, series: Series, steps: int, horizon: int | None) -> Task:
    """Return the task of forecasting the value `horizon` steps after a window of `steps`, or the class at its end."""
    ahead = (0 if series.classes else 1) if horizon is None else horizon
    longest = max(map(len, series.parts))
    if longest < steps + ahead:
        fit = longest - ahead
        raise SourceError(
            f"{series.source}: expected at least {steps + ahead} values for windows of {steps} and the one after them, "
            f"got {longest}" + (f"; a seq_len of {fit} would fit" if fit > 1 else "")
        )
    columns = np.concatenate(series.parts).T
    scales = [_scale(series, column, i == 0 and series.classes is None) for i, column in enumerate(columns)]
    x = np.concatenate([_standardized(part, scales) for part in series.parts])
    if series.classes is None:
        y = np.concatenate([_standardized(goal[:, None], scales[:1]) for goal in series.targets])
    else:
        y = np.concatenate(series.targets)
    starts, first = [], 0
    for part, goal in zip(series.parts, series.targets, strict=True):
        gone = np.concatenate([[0], np.cumsum(np.isnan(part).any(1))])
        start = np.arange(max(len(part) - steps - ahead + 1, 0))
        end = start + steps - 1 + ahead
        missing = goal[end] < 0 if series.classes else np.isnan(goal[end])
        starts.append(first + start[(gone[start + steps] == gone[start]) & ~missing])
        first += len(part)
    places = np.concatenate(starts)
    if not places.size:
        raise SourceError(
            f"{series.source}: every window of {steps} touches a missing value; give missing=interpolate or a shorter "
            "seq_len"
        )

    def draw(rng: np.random.Generator, batch: int) -> tuple[Array, Array]:
        start = places[rng.integers(0, len(places), batch)]
        return x[start + np.arange(steps)[:, None]], y[start + steps - 1 + ahead]

    if series.classes is None:
        return Task(title, series.source, x.shape[1], 1, steps, False, False, 1.0, draw)
    share = np.bincount(y[y >= 0]) / (y >= 0).sum()
    entropy = float(-(share[share > 0] * np.log(share[share > 0])).sum())
    return Task(title, series.source, x.shape[1], len(series.classes), steps, False, True, entropy, draw)


def _scale(series: Series, column: Array, is_target: bool) -> tuple[float, float, float]:
    """Largest size, and mean and standard deviation in its units: squares of the values may overflow."""
    present = column[~np.isnan(column)]
    largest = float(np.abs(present).max()) if present.size and present.any() else 1.0
    scaled = present / largest
    deviation = float(scaled.std()) if present.size else 0.0
    if not deviation > CONSTANT * (np.abs(scaled).max() if present.size else 0):
        if not is_target:
            return largest, 0.0, 1.0  # one input of several
        value = f"{present[0]:g}" if present.size else "missing"
        raise SourceError(f"{series.source}: every value is {value}; a constant series has nothing to learn")
    return largest, float(scaled.mean()), deviation


def _standardized(part: Array, scales: list[tuple[float, float, float]]) -> Array:
    largest, mean, deviation = (np.array(values) for values in zip(*scales, strict=True))
    return np.asarray(((part / largest - mean) / deviation).astype(FLOAT32))
