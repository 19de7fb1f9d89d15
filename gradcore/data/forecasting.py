"""From a series to a task: windows to train on, windows held out at the end, and the answers that need no model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from gradcore._base.check import FLOAT32, Array
from gradcore.data.errors import SourceError
from gradcore.data.sequences import whole_windows
from gradcore.data.standardizer import center_and_scale
from gradcore.data.table import Series
from gradcore.data.tasks import HeldOut, Task

__all__: list[str] = []  # for the package only

HELD_OUT = 0.2  # share of each series, at its end, whose values are never a target of training
LEAST_TRAINING, LEAST_HELD_OUT = 8, 4  # windows below which a loss says nothing
MOST_STEPS = 50  # of a window, where no length is asked for
CORRELATED = 0.25  # autocorrelation from which on a lag counts as a period


class _Windows(NamedTuple):
    """Windows of one part of a series: where each begins, and where its target stands."""

    part: int
    starts: Array
    targets: Array


def forecast_task(
    title: str, series: Series, steps: int | None, horizon: int | None = None, period: int | None = None
) -> Task:
    """Return the task to forecast a series, or to tell its class.

    A window has `steps` rows. Its target is the value `horizon` steps after its last row; by default the next one, or
    the class of the last row itself. Windows that touch a missing value are left out. The last fifth of the values is
    held out: mean and standard deviation, by which everything is standardized, are those of the rest.

    Parameters
    ----------
    title : str
        What is forecast, in words.
    series : Series
        What was read.
    steps : int, optional
        Number of steps of a window; by default 50, or a quarter of a series that is shorter than 200.
    horizon : int, optional
        How many steps ahead the target is.
    period : int, optional
        Number of steps after which the series repeats itself; by default what `find_period` finds.

    Returns
    -------
    Task
        The task.

    Raises
    ------
    SourceError
        If the series is too short, or has nothing to learn.
    """
    classes = series.classes is not None
    if classes and period is not None:
        raise SourceError(f"period: expected a target of numbers, got the classes of {series.target}")
    ahead = (0 if classes else 1) if horizon is None else horizon
    longest = max(map(len, series.parts))
    steps = max(min(MOST_STEPS, longest // 4), 2) if steps is None else steps
    splits = [math.ceil((1 - HELD_OUT) * len(part)) for part in series.parts]
    every = list(_windows(series, steps, ahead))
    training = [_chosen(w, w.targets < splits[w.part]) for w in every]
    held_out = [_chosen(w, w.targets >= splits[w.part]) for w in every]
    counts = [sum(len(w.starts) for w in some) for some in (training, held_out)]
    scaled = _standardized(series, splits, period)
    if counts[0] < LEAST_TRAINING or counts[1] < LEAST_HELD_OUT:
        raise SourceError(_too_short(series, steps, ahead, counts))
    possible = sum(max(len(part) - steps - ahead + 1, 0) for part in series.parts)
    windows = {"training": counts[0], "held_out": counts[1], "left_out": possible - sum(counts)}

    def draw(rng: np.random.Generator, batch: int) -> tuple[Array, Array]:
        return scaled.batch(training, rng.integers(0, counts[0], batch), steps)

    def held(n: int) -> tuple[Array, Array]:
        return scaled.batch(held_out, np.unique(np.linspace(0, counts[1] - 1, n).round().astype(int)), steps)

    if classes:
        baselines, accuracies = _class_baselines(series, splits, held_out, ahead)
    else:
        baselines, accuracies = _baselines(scaled, held_out, ahead), {}
    output = 1 if series.classes is None else len(series.classes)
    return Task(
        name=title,
        source=series.source,
        input_size=series.parts[0].shape[1],
        output_size=output,
        steps=steps,
        every_step=False,
        classes=classes,
        baseline=baselines["constant"],
        draw=draw,
        held_out=HeldOut(held, baselines, accuracies),
        within=lambda: forecast_task(title, _first(series, splits), steps, horizon, period),
        facts={**series.facts, "horizon": ahead, "windows": windows, "period": scaled.period},
    )


def _first(series: Series, splits: list[int]) -> Series:
    """What comes before these places in each part."""
    return replace(
        series,
        parts=tuple(part[:split] for part, split in zip(series.parts, splits, strict=True)),
        targets=tuple(target[:split] for target, split in zip(series.targets, splits, strict=True)),
    )


def _windows(series: Series, steps: int, ahead: int) -> Iterator[_Windows]:
    """All windows without a missing value."""
    for i, (part, target) in enumerate(zip(series.parts, series.targets, strict=True)):
        starts = whole_windows(part, steps)
        starts = starts[starts + steps - 1 + ahead < len(part)]
        at = starts + steps - 1 + ahead
        known = target[at] >= 0 if series.classes is not None else np.isfinite(target[at])
        yield _Windows(i, starts[known], at[known])


def _chosen(windows: _Windows, which: Array) -> _Windows:
    return _Windows(windows.part, windows.starts[which], windows.targets[which])


def _too_short(series: Series, steps: int, ahead: int, counts: list[int]) -> str:
    n = max(map(len, series.parts))
    what = (
        f"{series.source}: {n} values give {counts[0]} windows of {steps} steps to train on and {counts[1]} to judge by"
    )
    for shorter in range(min(steps - 1, n // 3), 1, -1):
        found = list(_windows(series, shorter, ahead))
        splits = [math.ceil((1 - HELD_OUT) * len(part)) for part in series.parts]
        trained = sum(int((w.targets < splits[w.part]).sum()) for w in found)
        judged = sum(len(w.targets) for w in found) - trained
        if trained >= LEAST_TRAINING and judged >= LEAST_HELD_OUT:
            return f"{what}; a seq_len of {shorter} leaves {trained} and {judged}"
    return f"{what}; expected at least {LEAST_TRAINING} and {LEAST_HELD_OUT}"


class _Standardized(NamedTuple):
    """A series in float32, of mean 0 and standard deviation 1 in what is trained on."""

    parts: list[Array]  # (n, F)
    targets: list[Array]  # (n,)
    period: int | None

    def batch(self, windows: list[_Windows], which: Array, steps: int) -> tuple[Array, Array]:
        """x (T, B, F) and target (B, 1), or (B,) for classes, of the windows of these numbers."""
        owner = np.repeat(np.arange(len(windows)), [len(w.starts) for w in windows])
        starts = np.concatenate([w.starts for w in windows])
        ends = np.concatenate([w.targets for w in windows])
        x = np.empty((steps, len(which), self.parts[0].shape[1]), FLOAT32)
        target = np.empty(len(which), self.targets[0].dtype)
        for i in np.unique(owner[which]):
            own = np.flatnonzero(owner[which] == i)
            x[:, own] = self.parts[i][starts[which[own]] + np.arange(steps)[:, None]]
            target[own] = self.targets[i][ends[which[own]]]
        return x, target if target.dtype.kind == "i" else target[:, None]


def _standardized(series: Series, splits: list[int], period: int | None) -> _Standardized:
    names = series.inputs
    columns = []
    for k in range(series.parts[0].shape[1]):
        seen = np.concatenate([part[:split, k] for part, split in zip(series.parts, splits, strict=True)])
        try:
            columns.append(_center_and_scale(series.source, names[k], seen))
        except SourceError:
            if len(names) == 1:
                raise
            columns.append((0.0, 1.0))  # one input of several
    center, scale = np.array([c for c, _ in columns]), np.array([s for _, s in columns])
    parts = [((part - center) / scale).astype(FLOAT32) for part in series.parts]
    if series.classes is not None:
        return _Standardized(parts, [target.astype(np.int64) for target in series.targets], None)
    seen = np.concatenate([target[:split] for target, split in zip(series.targets, splits, strict=True)])
    middle, spread = _center_and_scale(series.source, series.target, seen)
    targets = [((target - middle) / spread).astype(FLOAT32) for target in series.targets]
    if period is None:
        which = int(np.argmax(splits))
        period = find_period(targets[which][: splits[which]])
    return _Standardized(parts, targets, period)


def _center_and_scale(source: str, name: str, values: Array) -> tuple[float, float]:
    """Mean and standard deviation of what is known; an error where it does not vary."""
    center, scale = center_and_scale(values)
    if not scale:
        known = values[np.isfinite(values)]
        value = f"every value is {known[0]:g}" if known.size else "every value is missing"
        raise SourceError(f"{source}, {name}: {value} in the part to train on; a constant series has nothing to learn")
    return center, scale


def find_period(values: Array) -> int | None:
    """Return the lag at which a series is most like itself, or None.

    Of the lags whose autocorrelation, without the linear trend, is a peak of at least a quarter, the shortest that
    comes within a tenth of the highest.
    """
    values = np.asarray(values, np.float64)
    n = len(values)
    known = np.isfinite(values)
    if n < 12 or known.sum() < 12:
        return None
    at = np.arange(n)
    filled = np.interp(at, at[known], values[known])
    rest = filled - np.polyval(np.polyfit(at, filled, 1), at)
    power = np.abs(np.fft.rfft(rest, 2 * n)) ** 2
    correlation = np.fft.irfft(power)[: n // 2]
    if not correlation[0] > 0:
        return None
    correlation /= correlation[0] * (1 - np.arange(n // 2) / n)
    inner = correlation[1:-1]
    peaks = np.flatnonzero((inner > correlation[:-2]) & (inner >= correlation[2:]) & (inner > CORRELATED)) + 1
    peaks = peaks[(peaks >= 2) & (peaks <= n // 3)]
    below = np.flatnonzero(correlation < CORRELATED / 2)  # a slow series resembles itself at every short lag
    peaks = peaks[peaks > below[0]] if below.size else peaks[:0]
    if not peaks.size:
        return None
    return int(peaks[correlation[peaks] > 0.9 * correlation[peaks].max()][0])


def _baselines(scaled: _Standardized, held_out: list[_Windows], ahead: int) -> dict[str, float]:
    """Mean squared errors, over the held-out targets, of answers that need no model; the scale is the targets'."""
    pairs = [(np.asarray(scaled.targets[w.part], np.float64), w.targets) for w in held_out]
    truth = np.concatenate([values[at] for values, at in pairs])

    def loss(back: int) -> float:
        errors = []
        for values, at in pairs:
            before = np.where(at >= back, values[np.maximum(at - back, 0)], np.nan)
            errors.append(values[at] - before)
        error = np.concatenate(errors)
        return float(np.mean(error[np.isfinite(error)] ** 2)) if np.isfinite(error).any() else math.nan

    found = {"constant": float(np.mean(truth**2)), "last_value": loss(ahead)}
    if scaled.period is not None:
        found["seasonal"] = loss(scaled.period * max(math.ceil(ahead / scaled.period), 1))
    return {name: value for name, value in found.items() if not math.isnan(value)}


def _class_baselines(
    series: Series, splits: list[int], held_out: list[_Windows], ahead: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Cross-entropies and accuracies of the frequencies of the classes, and of those after each class."""
    n, back = len(series.classes or ()), max(ahead, 1)
    frequency, after = np.ones(n), np.ones((n, n))
    for labels, split in zip(series.targets, splits, strict=True):
        seen = labels[:split]
        np.add.at(frequency, seen[seen >= 0], 1)
        before, now = seen[:-back], seen[back:]
        both = (before >= 0) & (now >= 0)
        np.add.at(after, (before[both], now[both]), 1)
    if (frequency > 1).sum() < 2:
        raise SourceError(f"{series.source}: the part to train on has one class; there is nothing to learn")
    pairs = [(series.targets[w.part], w.targets) for w in held_out]
    now = np.concatenate([labels[at] for labels, at in pairs])
    before = np.concatenate([np.where(at >= back, labels[np.maximum(at - back, 0)], -1) for labels, at in pairs])
    shares, moves = frequency / frequency.sum(), after / after.sum(axis=1, keepdims=True)
    expected = np.where(before >= 0, moves[np.maximum(before, 0), now], shares[now])
    usual = int(np.argmax(shares))
    guess = np.where(before >= 0, moves.argmax(axis=1)[np.maximum(before, 0)], usual)
    return (
        {"constant": float(-np.log(shares[now]).mean()), "last_value": float(-np.log(expected).mean())},
        {"constant": float((now == usual).mean()), "last_value": float((now == guess).mean())},
    )
