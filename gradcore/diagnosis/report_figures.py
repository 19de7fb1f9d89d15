"""The figures of a report, each with its caption, its legend and the table of its numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from gradcore._base.check import Array
from gradcore.diagnosis.report_draw import (
    COLORS,
    EXTREME,
    MOST_ROWS,
    SERIES,
    Key,
    Panel,
    dots,
    draw,
    drawable,
    hover,
    line,
    numbers,
    shown,
    span,
    thinned,
    words,
)
from gradcore.diagnosis.trials import Trial
from gradcore.diagnosis.wording import BASELINES, number
from gradcore.training.history import History
from gradcore.training.monitor import Finding

__all__: list[str] = []  # for the package only

MOST_COLUMNS = 600
RAMP = ("#eef4f9", "#56b4e9", "#0072b2", "#003a63")  # of the heat map


# ---- growth over time steps ------------------------------------------------------------------------------------------


def time_steps(found: Any) -> Panel:
    """The norm of dL/dh at each time step: measured, forecast, and what it cannot exceed."""
    forecast, measured = found.forecast, found.measurement
    T = measured.norms.shape[1]
    steps, back = np.arange(T), np.arange(T)[::-1]
    with np.errstate(over="ignore", invalid="ignore"):
        expected = measured.expected(forecast)
        forward = [i for i, name in enumerate(measured.names) if not name.endswith("_reverse")]
        top = forward[-1] if forward else 0
        bound = measured.norms[top, -1] * np.exp(found.comparison.layers[top].upper_bound * back)
    low, high = span([measured.norms, expected], log=True)
    high = _between(low, high, 1.3, log=True)  # the bound leaves the figure, but shows
    plot = draw(
        "time step", "norm of dL/dh", (0, max(T - 1, 1)), (low, high), log=True, height=300,
    )  # fmt: skip
    keys = []
    kept = thinned(bound)
    line(plot, steps[kept], drawable(bound[kept], log=True), "muted", "dotted", width=1.5)
    for i, (name, row) in enumerate(zip(measured.names, measured.norms, strict=True)):
        role, values = SERIES[i % len(SERIES)], drawable(row, log=True)
        kept = thinned(values)
        line(plot, steps[kept], values[kept], role, width=2.5, tip="norm", anywhere=len(expected) == 1)
        line(plot, steps[kept], drawable(expected[i], log=True)[kept], role, "dashed", width=1.5)
        keys += [Key(f"{name}, measured", role), Key(f"{name}, forecast", role, "dashed")]
    name = "upper bound" if len(measured.names) == 1 else f"{measured.names[top]}, upper bound"
    header = ["step", *(f"{name}, {kind}" for name in measured.names for kind in ("measured", "forecast")), name]
    rows = [
        [str(t), *numbers(*(v for i in range(len(expected)) for v in (measured.norms[i, t], expected[i, t])), bound[t])]
        for t in shown(T)
    ]
    keys.append(Key(name, "muted", "dotted"))
    return Panel(plot, growth_caption(found), header, rows, keys, T > MOST_ROWS)


def growth_caption(found: Any) -> str:
    """What the gradient does over time steps."""
    forecast, measured = found.forecast, found.measurement
    ahead = f"×{factor(forecast.rate)} a step"
    if math.isnan(measured.rate):
        return f"The growth cannot be measured, because the gradient is zero or not finite; the forecast is {ahead}."
    word = {"explodes": "grows", "vanishes": "shrinks", "stable": "keeps its size"}[measured.verdict]
    return (
        f"Backward in time the gradient {word}: ×{number(measured.factor)} over {forecast.horizon} steps, "
        f"×{factor(measured.rate)} a step; the forecast is {ahead}."
    )


def factor(rate: float) -> str:
    """The factor of one step, from its natural logarithm."""
    with np.errstate(over="ignore"):
        value = float(np.exp(rate))
    return f"{value:.4f}" if value < 1e4 else number(value)


# ---- training --------------------------------------------------------------------------------------------------------


class Course(NamedTuple):
    """What `training` draws, of a run that is no trial."""

    history: History
    findings: Sequence[Finding]
    loss: float


def training(trial: Trial | Course, threshold: float | None) -> tuple[Panel, Panel]:
    """Loss and gradient norm over the training steps, with the findings as numbered marks."""
    history, n = trial.history, len(trial.history)
    loss, norm = np.asarray(history.loss), np.asarray(history.grad_norm)
    header = ("step", "loss"), ("step", "norm", "clipped", "skipped")
    rows: tuple[list[list[str]], list[list[str]]] = ([], [])
    for t in shown(n):
        rows[0].append([str(t), *numbers(loss[t])])
        rows[1].append(
            [str(t), *numbers(norm[t]), *("yes" if x[t] else "" for x in (history.clipped, history.skipped))]
        )
    panels, captions = [], (_loss_caption(trial), _norm_caption(trial))
    for i, (label, values) in enumerate((("loss", loss), ("gradient norm, before clipping", norm))):
        limits = [np.array([threshold])] if i and threshold is not None else []
        log = bool(i or (values[np.isfinite(values)] > 0).all())
        low, high = span([values, *limits], log=log)
        top = _between(low, high, 0.97, log=log)
        plot = draw("training step", label, (0, max(n - 1, 1)), (low, _between(low, high, 1.12, log=log)), log=log)
        keys = [Key(label, "accent")]
        if i and threshold is not None:
            line(plot, [0, max(n - 1, 1)], drawable([threshold] * 2, log=True), "muted", "dashed", width=1.5)
            keys.append(Key(f"suggested threshold, {number(threshold)}", "muted", "dashed"))
        values_drawn = drawable(values, log=log)
        kept = thinned(values_drawn)
        line(plot, kept, values_drawn[kept], "accent", width=1.5, tip=label.partition(",")[0])
        lost = np.flatnonzero(~np.isfinite(values))
        if lost.size:
            lost = lost[shown(len(lost), 200)]
            dots(plot, lost, np.full(len(lost), top), "mark", marker="x", size=7)
            keys.append(Key("not finite", "mark", "cross"))
        if _marks(plot, trial, values_drawn, top):
            keys.append(Key("where a finding begins, by its number below", "mark", "dot"))
        panels.append(Panel(plot, captions[i], header[i], rows[i], keys, n > MOST_ROWS))
    return panels[0], panels[1]


def _between(low: float, high: float, share: float, *, log: bool) -> float:
    """A place between the ends of an axis, or beyond them."""
    if log:
        return math.pow(10.0, min((1 - share) * math.log10(low) + share * math.log10(high), 250))
    return (1 - share) * low + share * high


def _loss_caption(trial: Trial | Course) -> str:
    loss = np.asarray(trial.history.loss)
    lost = int((~np.isfinite(loss)).sum())
    if lost:
        return (
            f"The loss is not finite at {lost} of {len(loss)} steps, first at step {int(np.argmin(np.isfinite(loss)))}."
        )
    way = f"The loss goes from {number(loss[0])} to {number(trial.loss)}"
    peak = float(loss.max())
    return f"{way}, by way of {number(peak)}." if peak > 3 * max(abs(loss[0]), abs(trial.loss)) else f"{way}."


def _norm_caption(trial: Trial | Course) -> str:
    norm = np.asarray(trial.history.grad_norm)
    finite = norm[np.isfinite(norm)]
    if not finite.size:
        return "The gradient norm is never finite."
    lost = (
        f"; {len(norm) - len(finite)} of {len(norm)} steps have none that is finite" if len(finite) < len(norm) else ""
    )
    most = number(float(finite.max()))
    return f"The median gradient norm is {number(float(np.median(finite)))}, the largest {most}{lost}."


def _marks(plot: Any, trial: Trial | Course, values: Array, top: float) -> bool:
    """Mark where each finding begins."""
    at: dict[int, list[int]] = {}
    for i, finding in enumerate(trial.findings, 1):
        at.setdefault(min(max(finding.step, 0), len(values) - 1), []).append(i)
    if not at:
        return False
    y = {t: values[t] if np.isfinite(values[t]) else top for t in sorted(at)}
    dots(plot, list(y), list(y.values()), "mark", size=9)
    labeled: dict[int, list[int]] = {}
    for t in y:  # those that are near each other share a label
        first = next((other for other in labeled if t - other < len(values) / 12), t)
        labeled.setdefault(first, []).extend(at[t])
    words(
        plot, list(labeled), [y[t] for t in labeled], [_listed(sorted(found)) for found in labeled.values()], "mark",
        x_offset=7, y_offset=-5, text_font_style="bold",
    )  # fmt: skip
    return True


def _listed(found: list[int]) -> str:
    """Numbers in a row: "2, 4" or "2 to 4"."""
    together = len(found) > 2 and found[-1] - found[0] == len(found) - 1
    return f"{found[0]} to {found[-1]}" if together else ", ".join(map(str, found))


# ---- norms by layer and training step --------------------------------------------------------------------------------


def heat_map(history: History) -> Panel | None:
    """The gradient norms of parameters, and of dL/dh at both ends of the sequence, over the training steps."""
    named = {f"{name}, dL/dh at the first step": row for name, row in history.dh_first.items()}
    named |= {f"{name}, dL/dh at the last step": row for name, row in history.dh_last.items()}
    named |= {name: row for name, row in history.per_array.items()}
    n = len(history)
    if not named or not n:
        return None
    from bokeh.models import LinearColorMapper
    from bokeh.palettes import interp_palette

    rows = np.array(list(named.values()), np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log10(rows)
    parts = np.array_split(np.arange(n), min(n, MOST_COLUMNS))
    image = np.stack([logs[:, part].max(axis=1) for part in parts], axis=1)  # the largest, and NaN where there is one
    image[np.isposinf(image)] = np.nan
    seen = image[np.isfinite(image)]
    low, high = (float(np.quantile(seen, 0.01)), float(seen.max())) if seen.size else (0.0, 1.0)
    high = max(high, low + 1.0)
    image = np.maximum(image, low)
    k = len(named)
    plot = draw("training step", "", (-0.5, max(n, 2) - 0.5), (0, 1.62 * k), height=44 * k + 76)
    mapper = LinearColorMapper(
        palette=interp_palette(RAMP, 256),
        low=low,
        high=high,
        nan_color=COLORS["mark"],
    )
    for i, row in enumerate(image[::-1]):
        drawn = plot.image([row[None]], x=-0.5, y=1.62 * i, dw=n, dh=1.0, color_mapper=mapper)
        hover(plot, drawn, [("step", "$x{0}"), ("log10 of the norm", "@image{0.00}")])
    words(plot, np.full(k, -0.5), 1.62 * np.arange(k) + 1.1, list(named)[::-1], "ink")
    plot.yaxis.visible = False
    plot.ygrid.grid_line_color = None
    finite = np.where(np.isfinite(rows), rows, -np.inf)
    where = np.unravel_index(int(finite.argmax()), rows.shape)
    caption = "No gradient norm is finite."
    if np.isfinite(finite[where]):
        caption = f"The largest norm is {number(rows[where])}, of {list(named)[where[0]]}, at training step {where[1]}."
    keys = [Key(f"{number(10**low)} or less, to {number(10**high)}", "", "scale")]
    if np.isnan(image).any():
        keys.append(Key("not finite, or none", "mark", "dot"))
    at = shown(n, 13)
    table = [[name, *numbers(*row[at])] for name, row in zip(named, rows, strict=True)]
    turned = [[str(t), *(row[1 + j] for row in table)] for j, t in enumerate(at)]
    return Panel(plot, caption, ["step", *named], turned, keys, n > len(at))


# ---- eigenvalues -----------------------------------------------------------------------------------------------------


def eigenvalues(matrices: Sequence[Any]) -> Panel:
    """The eigenvalues of the recurrent matrices in the complex plane, with the unit circle."""
    sizes = [np.abs(matrix.eigenvalues) for matrix in matrices]
    plot = draw("real part", "imaginary part", None, None, height=400, max_width=460, match_aspect=True)
    plot.xgrid.grid_line_color = COLORS["rule"]
    angle = np.linspace(0, 2 * np.pi, 181)
    line(plot, np.cos(angle), np.sin(angle), "muted", width=1.5)
    keys, rows = [Key("unit circle", "muted")], []
    for i, (matrix, size) in enumerate(zip(matrices, sizes, strict=True)):
        role, kept = SERIES[i % len(SERIES)], matrix.eigenvalues[size < EXTREME]
        form = "dot" if i % 12 < len(SERIES) else "square"
        marker = {"dot": "circle", "square": "square"}[form]
        drawn = dots(plot, kept.real, kept.imag, role, marker=marker, size=6, alpha=0.75)
        hover(plot, drawn, [("real", "@x{0.[000]}"), ("imaginary", "@y{0.[000]}")])
        keys.append(Key(f"{matrix.name}: radius {number(matrix.radius)}, norm {number(matrix.norm)}", role, form))
        order = np.argsort(-size)
        most = max(MOST_ROWS // len(matrices), 5)
        values = matrix.eigenvalues[order[:most]]
        rows += [[matrix.name, *numbers(abs(value), value.real, value.imag)] for value in values]
    outside, all_of_them = sum(int((size > 1).sum()) for size in sizes), sum(map(len, sizes))
    caption = f"{outside} of {all_of_them} eigenvalues of the recurrent weights lie outside the unit circle."
    header = ("matrix", "modulus", "real part", "imaginary part")
    return Panel(plot, caption, header, rows, keys, len(rows) < all_of_them)


# ---- trials ----------------------------------------------------------------------------------------------------------


def trials(found: Any) -> Panel:
    """Losses on what is held out: a point for each seed, mean and spread, beside the baselines."""
    from bokeh.models import FixedTicker

    tried, baselines, remedy = found.trials, found.start.baselines, found.verdict.remedy
    losses = [np.array(trial.held_out_losses, np.float64) for trial in tried]
    finite = np.concatenate([*losses, list(baselines.values())])
    log = bool((finite[np.isfinite(finite)] > 0).all())
    known = np.array([*baselines.values(), *(np.mean(values) for values in losses)])
    lowest = float(known[np.isfinite(known)].min(initial=math.inf))
    far = 100 * max([lowest, *(loss for loss in baselines.values() if math.isfinite(loss))], key=abs)
    losses = [np.where(values > far, math.nan, values) if far > 0 else values for values in losses]
    low, high = span([*losses, list(baselines.values())], log=log)
    k, heights = len(tried), np.arange(len(tried))[::-1]
    plot = draw(
        "loss on what is held out", "", (low, high), (-0.5, k + 0.1), height=46 * k + 70,
        x_axis_type="log" if log else "linear",
    )  # fmt: skip
    plot.xaxis.formatter = plot.yaxis[0].formatter
    if log and high < 1e3 * low:  # there are too few powers of ten
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
        plot.xaxis.ticker = FixedTicker(ticks=[digit * 10.0**power for power in powers for digit in (1, 2, 5)])
    plot.yaxis.visible = False
    plot.ygrid.grid_line_color = None
    for name, loss in baselines.items():
        at = drawable([loss] * 2, log=log)
        line(plot, at, [-0.5, k + 0.1], *_baseline(name), width=1.5)
    for trial, y, values in zip(tried, heights, losses, strict=True):
        role = "accent" if trial.name == remedy else "ink"
        mean, spread = trial.held_out_loss, trial.spread
        if mean <= high and math.isfinite(spread):
            line(plot, np.clip([mean - spread, mean + spread], low, high), [y, y], role, width=3)
            dots(plot, [mean], [y], role, marker="dash", size=16).glyph.angle = math.pi / 2
        dots(plot, drawable(values, log=log), np.full(len(values), y), role, size=8, alpha=0.45)
        lost = int((~np.isfinite(values)).sum())
        note = f": {lost} of {len(values)} seeds far above or not finite" if lost else ""
        style = "bold" if trial.name == remedy else "normal"
        words(
            plot, [low], [y + 0.3], [trial.name + note], role, text_font_style=style, x_offset=4, text_baseline="middle"
        )
    keys = [Key("a seed", "muted", "dot"), Key("mean ± standard deviation", "ink")]
    keys += [Key(f"{BASELINES.get(name, name)}, {number(loss)}", *_baseline(name)) for name, loss in baselines.items()]
    rows = [
        [trial.name, number(trial.held_out_loss), number(trial.spread), ", ".join(numbers(*trial.held_out_losses)),
         number(trial.loss), number(trial.largest_norm)]
        for trial in tried
    ]  # fmt: skip
    rows += [[BASELINES.get(name, name), number(loss), "", "", "", ""] for name, loss in baselines.items()]
    header = ["trial", "held out", "±", "each seed", "trained on", "largest norm"]
    shares = [*(trial.accuracy for trial in tried), *(found.start.accuracies.get(name) for name in baselines)]
    if shares[0] is not None:
        header.append("right")
        rows = [[*row, "" if share is None else f"{share:.1%}"] for row, share in zip(rows, shares, strict=True)]
    return Panel(plot, trials_caption(found), header, rows, keys)


def _baseline(name: str) -> tuple[str, str]:
    return "muted", {"constant": "dotted", "last_value": "dashed"}.get(name, "dashdot")


def trials_caption(found: Any) -> str:
    """Which trial did best."""
    configured, remedy = found.trials[0], found.verdict.remedy
    n = len(configured.held_out_losses)
    seeds = f"{n} seeds" if n > 1 else "one seed"
    if remedy is None:
        return (
            f"No remedy does better than the configuration beyond the spread over {seeds}, and better than the best "
            "constant and the last value."
        )
    best = next((trial for trial in found.trials if trial.name == remedy), configured)
    return (
        f"{best.name[:1].upper()}{best.name[1:]} did best: {number(best.held_out_loss)} ± {number(best.spread)} over "
        f"{seeds}, where the configuration has {number(configured.held_out_loss)} ± {number(configured.spread)}."
    )
