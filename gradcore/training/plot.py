"""Draw a History, with matplotlib."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradcore._base.check import Array, as_list

__all__: list[str] = []  # for the package only

LOSS_COLOR, NORM_COLOR = "#0072B2", "#D55E00"  # of Okabe and Ito's palette, which color-blind readers tell apart
MOST_MARKS = 40  # more epochs than these are marked in part


def plot_history(history: Any, axes: Any) -> tuple[Any, Any]:
    """Draw loss and norm into a pair of axes, None for a new figure of pyplot, and return the pair."""
    if axes is None:
        try:
            from matplotlib import pyplot
        except ImportError:
            raise ImportError('plots need matplotlib: pip install "gradcore[cli]"') from None
        axes = pyplot.subplots(2, 1, sharex=True, figsize=(7.2, 5.0), layout="constrained")[1]
    loss_axes, norm_axes = as_list("axes", axes, "a pair of matplotlib Axes")
    steps, loss, norm = np.arange(len(history)), _drawable(history.loss), _drawable(history.grad_norm, above=0.0)

    loss_axes.plot(steps, loss, color=LOSS_COLOR, linewidth=1.2, label="loss")
    norm_axes.plot(steps, norm, color=NORM_COLOR, linewidth=1.2, label="gradient norm")
    if np.isfinite(history.max_norm).any():
        limit = _drawable(history.max_norm, above=0.0)
        norm_axes.plot(steps, limit, color="0.3", linewidth=1, linestyle="--", label="threshold")
    at = np.flatnonzero(history.clipped)
    if at.size:
        norm_axes.plot(at, norm[at], "o", color=NORM_COLOR, markersize=3, label=f"clipped ({len(at)})")
    at = np.flatnonzero(history.skipped)
    if at.size:
        place = {"transform": norm_axes.get_xaxis_transform(), "clip_on": False}
        norm_axes.plot(at, np.full(len(at), 0.97), "kx", markersize=5, label=f"skipped ({len(at)})", **place)
    ends = [np.flatnonzero(history.epoch <= epoch)[-1:] for epoch in history.validation_epoch]
    held_out = _drawable(history.validation_loss[[bool(end.size) for end in ends]])
    if held_out.size:
        loss_axes.plot(np.concatenate(ends), held_out, "k.-", linewidth=1, markersize=4, label="validation loss")
        loss_axes.legend(handles=loss_axes.get_lines()[1:], frameon=False, loc="upper right")
    _decorate(loss_axes, "loss", loss_finding(history), np.concatenate([loss, held_out]))
    _decorate(norm_axes, "gradient norm", norm_finding(history), norm)
    marks = norm_axes.get_lines()[1:]
    if marks:
        place = {"loc": "upper right", "bbox_to_anchor": (1.0, -0.12), "borderaxespad": 0.0}
        norm_axes.legend(handles=marks, frameon=False, ncols=len(marks), **place)
    label, starts = "step", np.flatnonzero(np.diff(history.epoch)) + 1
    if starts.size:
        every = -(-len(starts) // MOST_MARKS)
        for start in starts[every - 1 :: every]:
            for panel in (loss_axes, norm_axes):
                panel.axvline(start - 0.5, color="0.85", linewidth=0.8, zorder=0)
        label += f" (a vertical line every {f'{every} epochs' if every > 1 else 'epoch'})"
    norm_axes.set_xlabel(label, loc="left")
    return loss_axes, norm_axes


def loss_finding(history: Any) -> str:
    """Say what the loss does."""
    if len(history) == 0:
        return "No steps yet"
    bad = np.flatnonzero(~np.isfinite(history.loss))
    if bad.size:
        return f"The loss is not finite at {len(bad)} of {len(history)} steps, first at step {bad[0]}"
    # Over as many steps as an epoch has, because a single one may be noise.
    n = int((history.epoch == history.epoch[0]).sum())
    n = n if 10 <= n < len(history) else min(10, (len(history) + 2) // 3)
    first, last = float(np.median(history.loss[:n])), float(np.median(history.loss[-n:]))
    if abs(last - first) <= 0.05 * abs(first):
        return f"The loss stays near {last:.3g}"
    return f"The loss {'falls' if last < first else 'rises'} from {first:.3g} to {last:.3g}"


def norm_finding(history: Any) -> str:
    """Say what the gradient norm does."""
    finite = history.grad_norm[np.isfinite(history.grad_norm)]
    if finite.size == 0:
        return "No finite gradient norm"
    finding = f"The gradient norm is at most {finite.max():.3g}"
    if np.isfinite(history.max_norm).any():
        finding += f", {history.clipped.mean():.0%} of steps are clipped"
    n_skipped = int(history.skipped.sum())
    return finding + (f", {n_skipped} {'step is' if n_skipped == 1 else 'steps are'} skipped" if n_skipped else "")


def _drawable(values: Array, *, above: float = -np.inf) -> Array:
    """Replace by NaN what matplotlib cannot place on an axis."""
    size = np.abs(values)
    return np.where((values > above) & ((size > 1e-250) | (values == 0)) & (size < 1e250), values, np.nan)


def _decorate(axes: Any, label: str, finding: str, values: Array) -> None:
    """Give a panel its title, label, grid and, for positive values, a logarithmic axis with plain numbers."""
    from matplotlib.ticker import LogFormatter

    class PlainLogFormatter(LogFormatter):
        """Write 0.2, where LogFormatter writes 2e-01."""

        def __call__(self, x: float, pos: int | None = None) -> str:
            return f"{x:g}" if super().__call__(x, pos) else ""

    axes.set_title(finding, loc="left", fontsize=11, fontweight="bold")
    axes.set_ylabel(label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, axis="y", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    seen = values[np.isfinite(values)]
    if seen.size and (seen > 0).all():
        axes.set_yscale("log")
        for kind in ("major", "minor"):
            getattr(axes.yaxis, f"set_{kind}_formatter")(PlainLogFormatter(minor_thresholds=(2, 0.5)))
