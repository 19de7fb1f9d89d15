"""How the figures of a report look: one style for axes, lines, points and text.

Bokeh draws them in the reader's browser, in the colors of light; report.css turns them for dark. Names from outside
reach it as text of glyphs only: it would read the labels of axes and titles as TeX where they have dollar signs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradcore._base.check import Array
from gradcore.diagnosis.wording import number

__all__: list[str] = []  # for the package only

# Roles; the colors of layers are of Okabe and Ito's palette, which color-blind readers tell apart.
COLORS = {
    "ink": "#1b2530", "muted": "#66707c", "rule": "#dfe4ea", "accent": "#0072b2", "mark": "#c2410c",
    "c1": "#d55e00", "c2": "#009e73", "c3": "#cc79a7", "c4": "#e69f00", "c5": "#56b4e9",
}  # fmt: skip
FONT = "system-ui, sans-serif"
SERIES = ("accent", "c1", "c2", "c3", "c4", "c5")
MOST_POINTS = 2000
MOST_ROWS = 60
EXTREME = 1e250  # what is beyond has no place on an axis
HEIGHT = 270
TICKS = """
    const size = Math.abs(tick)
    if (tick === 0 || (size >= 1e-3 && size < 1e6)) return String(Number(tick.toPrecision(3)))
    const [digits, exponent] = tick.toExponential(2).split("e")
    return `${Number(digits)}e${Number(exponent)}`
"""


@dataclass(frozen=True)
class Key:
    """An entry of a legend: what a mark of a role and a form stands for."""

    label: str
    role: str
    form: str = "line"  # or "dashed", "dotted", "dashdot", "dot", "cross", "scale"


@dataclass(frozen=True)
class Panel:
    """A figure, what it shows in a sentence, and its numbers."""

    figure: Any
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    keys: Sequence[Key] = ()
    left_out: bool = False  # whether the table has not all numbers


def numbers(*values: float) -> list[str]:
    """Write each number."""
    return [number(float(value)) for value in values]


def shown(n: int, most: int = MOST_ROWS) -> list[int]:
    """At most so many of n rows, evenly, with the first and the last."""
    return sorted({round(i) for i in np.linspace(0, n - 1, min(n, most))}) if n else []


def thinned(y: Array, most: int = MOST_POINTS) -> Array:
    """Indices of at most so many points: of each stretch the smallest and the largest, and one that is not finite."""
    if len(y) <= most:
        return np.arange(len(y))
    kept = {0, len(y) - 1}
    for part in np.array_split(np.arange(len(y)), (most - 2) // 3):
        values, lost = y[part], ~np.isfinite(y[part])
        kept |= {int(part[np.argmax(lost)])} if lost.any() else set()
        if not lost.all():
            kept |= {int(part[np.nanargmin(np.where(lost, np.nan, values))])}
            kept |= {int(part[np.nanargmax(np.where(lost, np.nan, values))])}
    return np.array(sorted(kept))


def drawable(values: Any, *, log: bool) -> Array:
    """float64 with NaN in place of what has no place on the axis."""
    array = np.array(values, np.float64)
    size = np.abs(array)
    with np.errstate(invalid="ignore"):
        array[~((size < EXTREME) & ((array > 1 / EXTREME) if log else True))] = np.nan
    return array


def span(values: Iterable[Any], *, log: bool) -> tuple[float, float]:
    """Both ends of an axis over what can be drawn: with a margin, and not so near that noise looks large."""
    seen = np.concatenate([drawable(v, log=log).ravel() for v in values] or [np.zeros(0)])
    seen = seen[np.isfinite(seen)]
    if not seen.size:
        return (0.1, 10.0) if log else (-1.0, 1.0)
    if log:
        seen = np.log10(seen)
    low, high = float(seen.min()), float(seen.max())
    least = 1.0 if log else 0.1 * max(abs(low), abs(high), 1e-9)
    margin = max(0.07 * (high - low), (least - (high - low)) / 2)
    low, high = low - margin, high + margin
    return (10.0**low, 10.0**high) if log else (low, high)


def draw(
    label: str,
    y_label: str,
    x: tuple[float, float] | None,
    y: tuple[float, float] | None,
    *,
    log: bool = False,
    height: int = HEIGHT,
    **options: Any,
) -> Any:
    """An empty figure in the style of all of them; without ends of an axis, what is drawn decides."""
    from bokeh.models import BoxZoomTool, CustomJSTickFormatter, DataRange1d, Range1d, ResetTool
    from bokeh.plotting import figure

    plot = figure(
        height=height, sizing_mode="stretch_width", x_range=Range1d(*x) if x else DataRange1d(),
        y_range=Range1d(*y) if y else DataRange1d(), output_backend="svg", y_axis_type="log" if log else "linear",
        x_axis_label=label, y_axis_label=y_label, toolbar_location="above", tools=[BoxZoomTool(), ResetTool()],
        background_fill_color=None, border_fill_color=None, outline_line_color=None, min_border_right=12, **options,
    )  # fmt: skip
    plot.toolbar.logo = None
    plot.toolbar.autohide = True
    plot.toolbar.active_drag = None  # a finger on a figure scrolls the page
    plot.yaxis.formatter = CustomJSTickFormatter(code=TICKS)
    for axis in (plot.xaxis, plot.yaxis):
        axis.update(
            axis_label_text_font_style="normal", axis_label_text_font_size="13px", major_label_text_font_size="12px",
            axis_label_text_color=COLORS["muted"], major_label_text_color=COLORS["muted"], minor_tick_line_color=None,
            axis_line_color=COLORS["rule"], major_tick_line_color=COLORS["rule"], axis_label_text_font=FONT,
            major_label_text_font=FONT,
        )  # fmt: skip
    plot.xgrid.grid_line_color = None
    plot.ygrid.grid_line_color = COLORS["rule"]
    return plot


def hover(plot: Any, renderer: Any, tips: Sequence[tuple[str, str]], *, anywhere: bool = False) -> None:
    """Show the numbers of a point under the pointer, or of that above or below it."""
    from bokeh.models import HoverTool

    plot.add_tools(
        HoverTool(renderers=[renderer], tooltips=list(tips), mode="vline" if anywhere else "mouse", visible=False)
    )


def line(
    plot: Any,
    x: Any,
    y: Any,
    role: str,
    form: str = "line",
    *,
    width: float = 2.0,
    tip: str = "",
    anywhere: bool = True,
) -> None:
    """A line, of which the reader sees the numbers if `tip` names them."""
    from bokeh.models import ColumnDataSource

    dash = {"line": "solid", "dashed": [7, 4], "dotted": [2, 4], "dashdot": [9, 3, 2, 3]}[form]
    source = ColumnDataSource({"x": np.asarray(x, np.float64), "y": np.asarray(y, np.float64)})
    drawn = plot.line("x", "y", source=source, line_color=COLORS[role], line_width=width, line_dash=dash)
    if tip:
        hover(plot, drawn, [("step", "@x{0}"), (tip, "@y")], anywhere=anywhere)


def dots(plot: Any, x: Any, y: Any, role: str, *, marker: str = "circle", size: int = 8, alpha: float = 1.0) -> Any:
    """Points."""
    from bokeh.models import ColumnDataSource

    source = ColumnDataSource({"x": np.asarray(x, np.float64), "y": np.asarray(y, np.float64)})
    color = COLORS[role]
    return plot.scatter(
        "x", "y", source=source, marker=marker, size=size, fill_color=color, line_color=color, alpha=alpha
    )


def words(plot: Any, x: Any, y: Any, text: Sequence[str], role: str, **options: Any) -> None:
    """Plain text at places of the figure."""
    from bokeh.models import ColumnDataSource

    source = ColumnDataSource({"x": np.asarray(x, np.float64), "y": np.asarray(y, np.float64), "text": list(text)})
    options = {"text_font_size": "12px", "text_font": {"value": FONT}, "text_color": COLORS[role]} | options
    plot.text("x", "y", text="text", source=source, **options)
