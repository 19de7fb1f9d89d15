"""Figures of a diagnosis, from plain arrays.

They are drawn on matplotlib's Figure, never through pyplot, which would touch a window system and global state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gradcore._base.check import Array, as_array, as_list, check_int, check_real, check_reals, check_room
from gradcore.diagnosis.parts import Study
from gradcore.diagnosis.verdict import plus_minus
from gradcore.diagnosis.wording import VERBS, number, per_step

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["figures", "plot_eigenvalues", "plot_spectrum", "plot_time_steps", "plot_training", "plot_trials"]

# Okabe and Ito's palette, which color-blind readers can tell apart; black comes first.
COLORS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MANY = 14  # matrices with a line in the legend
MARKERS = "os^Dvp*"
LARGEST = 1e300  # matplotlib adds a margin, which has to be finite too
SIZE = (7.2, 4.0)  # inches
DPI = 150


def _floats(name: str, value: Any) -> Array:
    """Real numbers as float64."""
    given = check_reals(name, value)
    check_room(given.size)
    return given.astype(np.float64)


def _rows(name: str, value: Any) -> Array:
    """(layers, T), or (T,) for one layer"""
    rows = np.atleast_2d(_floats(name, value))
    if rows.ndim != 2:
        raise ValueError(f"{name}: expected shape (layers, T) or (T,), got {rows.shape}")
    return rows


def _named(name: str, given: Any, convert: Callable[[str, Any], Array]) -> dict[str, Array]:
    """One vector for each name."""
    if not isinstance(given, Mapping):
        raise TypeError(f"{name}: expected a mapping of names to arrays, got {type(given).__name__}")
    if not given:
        raise ValueError(f"{name}: expected at least one name, got none")
    vectors = {str(key): convert(f"{name}[{key!r}]", values) for key, values in given.items()}
    for key, vector in vectors.items():
        if vector.ndim != 1:
            raise ValueError(f"{name}[{key!r}]: expected shape (n,), got {vector.shape}")
    return vectors


def _complex(name: str, value: Any) -> Array:
    """Numbers as complex128."""
    given = as_array(name, value)
    check_room(given.size, 16)
    return given.astype(np.complex128) if given.dtype.kind == "c" else _floats(name, given) + 0j


def _figure(title: str) -> tuple[Figure, Axes]:
    """Axes in the style of all figures: the finding as title at the left edge, a light grid, no box."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError('figures need matplotlib: pip install "gradcore[cli]"') from None
    figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _legend(figure: Figure, axes: Axes) -> None:
    """The legend of all figures: beside the axes, where it hides nothing; smaller if it is long."""
    handles, labels = axes.get_legend_handles_labels()
    size = 9 if len(labels) < 10 else 7
    figure.legend(handles, labels, frameon=False, loc="outside right center", fontsize=size)


def _log_axis(axes: Axes, values: Sequence[Array]) -> None:
    """A logarithmic axis over the positive finite values, wide enough that small changes do not look large."""
    seen = np.concatenate([v.ravel() for v in values])
    seen = seen[np.isfinite(seen) & (seen > 0)]
    if not seen.size:
        return
    low, high = math.log10(seen.min()), math.log10(seen.max())
    margin = max(0.05 * (high - low), (1.0 - (high - low)) / 2)
    # The limits first, and not too far out: matplotlib's own choice of limits and ticks may overflow.
    axes.set_ylim(10.0 ** max(low - margin, -250), 10.0 ** min(high + margin, 250))
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: number(value))
    few = high + margin - max(low - margin, -250) < 2  # decades, so that their powers of ten are too few labels
    axes.yaxis.set_minor_formatter(lambda value, _: number(value) if few and f"{value:e}"[0] in "25" else "")


def _finite(values: Any) -> Array:
    """float64 with NaN in place of what a logarithmic axis cannot show, or matplotlib place on it."""
    array = np.array(values, np.float64)
    array[~((array > 0) & (array < LARGEST))] = np.nan
    return array


def plot_time_steps(norms: Any, forecast: Any = None, *, title: str, names: Sequence[str] | None = None) -> Figure:
    """Plot the norm of dL/dh at each time step, a line for each layer, and its forecast.

    Parameters
    ----------
    norms : array_like, (layers, T)
        L2 norms; those that are zero or not finite are left out.
    forecast : array_like, (T,) or (layers, T), optional
        Forecast of the same norms.
    title : str
        The finding.
    names : sequence of str, optional
        Names of the layers; by default "layer 0" and so on.

    Returns
    -------
    matplotlib.figure.Figure
        The figure, to be saved or shown.

    Raises
    ------
    ImportError
        If matplotlib is not installed.

    Examples
    --------
    >>> from gradcore.diagnosis.figures import plot_time_steps
    >>> figure = plot_time_steps([8.0, 4.0, 2.0, 1.0], title="The gradient doubles at each step back")
    >>> figure.get_suptitle()
    'The gradient doubles at each step back'
    """
    measured = _rows("norms", norms)
    names = [f"layer {i}" for i in range(len(measured))] if names is None else as_list("names", names)
    if len(names) != len(measured):
        raise ValueError(f"names: expected {len(measured)}, as many as there are layers, got {len(names)}")
    lines = measured[:0] if forecast is None else _rows("forecast", forecast)
    if lines.shape[1] != measured.shape[1] or len(lines) not in (0, 1, len(measured)):
        raise ValueError(f"forecast: expected the shape of norms, {measured.shape}, or its steps, got {lines.shape}")
    figure, axes = _figure(title)
    steps = np.arange(measured.shape[1])
    for i, row in enumerate(measured):
        axes.plot(steps, _finite(row), color=COLORS[1 + i % 6], linewidth=2, label=f"measured, {names[i]}")
    for i, row in enumerate(lines):
        label = "forecast" if len(lines) == 1 else None if i else "forecast, each layer"
        axes.plot(steps, _finite(row), color=COLORS[0], linewidth=1.4, linestyle=(0, (5, 3)), label=label)
    _log_axis(axes, [measured, lines])
    axes.set_xlabel("time step t   (the loss is at the last one; its gradient flows to the left)")
    axes.set_ylabel("norm of dL/dh$_t$")
    axes.set_xlim(0, max(len(steps) - 1, 1))
    _legend(figure, axes)
    return figure


def plot_training(norms: Mapping[str, Any], *, title: str, threshold: float | None = None) -> Figure:
    """Plot the gradient norm over training, a line for each run; steps that are not finite are marked at the top.

    Parameters
    ----------
    norms : mapping of str to array_like (steps,)
        For each run the norm of all gradients, before clipping.
    title : str
        The finding.
    threshold : float, optional
        Clipping threshold.

    Returns
    -------
    matplotlib.figure.Figure
        The figure, to be saved or shown.

    Examples
    --------
    >>> from gradcore.diagnosis.figures import plot_training
    >>> figure = plot_training({"as configured": [1.0, 9.0, 2.0]}, title="One spike", threshold=3.0)
    >>> figure.axes[0].get_yscale()
    'log'
    """
    rows = _named("norms", norms, _floats)
    threshold = None if threshold is None else check_real("threshold", threshold)
    figure, axes = _figure(title)
    _log_axis(axes, [*rows.values(), *([] if threshold is None else [np.array([threshold])])])
    for i, (name, values) in enumerate(rows.items()):
        axes.plot(_finite(values), color=COLORS[i % len(COLORS)], linewidth=1.2, label=name)
        bad = np.flatnonzero(~np.isfinite(values))
        if bad.size:
            top = np.full(bad.size, axes.get_ylim()[1])
            axes.plot(bad, top, "x", color=COLORS[i % len(COLORS)], clip_on=False, label=f"{name}: not finite")
    if threshold is not None:
        axes.axhline(
            threshold, color=COLORS[2], linewidth=1.6, linestyle=(0, (5, 3)), label=f"threshold {number(threshold)}"
        )
    axes.set_xlabel("training step")
    axes.set_ylabel("norm of all gradients, before clipping")
    axes.set_xlim(0, max([2, *map(len, rows.values())]) - 1)
    _legend(figure, axes)
    return figure


def plot_eigenvalues(eigenvalues: Mapping[str, Array], *, title: str) -> Figure:
    """Plot the eigenvalues of recurrent matrices in the complex plane, with the unit circle.

    Parameters
    ----------
    eigenvalues : mapping of str to ndarray (H,)
        Eigenvalues of each matrix.
    title : str
        The finding.

    Returns
    -------
    matplotlib.figure.Figure
        The figure, to be saved or shown.

    Examples
    --------
    >>> from gradcore.diagnosis.figures import plot_eigenvalues
    >>> figure = plot_eigenvalues({"weight_hh_l0": [0.5 + 1j, 0.5 - 1j]}, title="One pair is outside the circle")
    >>> figure.get_suptitle()
    'One pair is outside the circle'
    """
    spectra = _named("eigenvalues", eigenvalues, _complex)
    figure, axes = _figure(title)
    angle = np.linspace(0, 2 * np.pi, 361)
    axes.plot(np.cos(angle), np.sin(angle), color=COLORS[0], linewidth=1.4, label="unit circle")
    reach = 1.0
    for i, (name, values) in enumerate(spectra.items()):
        radius = float(np.abs(values).max(initial=0.0))
        reach = max(reach, min(radius, LARGEST))
        label = f"{name}: radius {number(radius)}" if i < MANY else f"_{name}"  # matplotlib leaves out names with _
        color, marker = COLORS[1 + i % 6], MARKERS[i % len(MARKERS)]
        shown = values[np.abs(values) < LARGEST]
        axes.scatter(shown.real, shown.imag, s=22, alpha=0.8, label=label, color=color, marker=marker)
    axes.set_ylim(-1.1 * reach, 1.1 * reach)
    axes.set_aspect("equal", adjustable="datalim")  # the plane fills the figure
    axes.set_xlabel("real part")
    axes.set_ylabel("imaginary part")
    _legend(figure, axes)
    return figure


def plot_spectrum(exponents: Mapping[str, Array], *, title: str) -> Figure:
    """Plot Lyapunov exponents, largest first, a line for each layer.

    Parameters
    ----------
    exponents : mapping of str to ndarray (k,)
        For each layer what `gradcore.spectral.lyapunov_spectrum` returns; -inf is left out.
    title : str
        The finding.

    Returns
    -------
    matplotlib.figure.Figure
        The figure, to be saved or shown.

    Examples
    --------
    >>> from gradcore.diagnosis.figures import plot_spectrum
    >>> figure = plot_spectrum({"l0": [0.1, -0.2]}, title="One direction grows")
    >>> figure.get_suptitle()
    'One direction grows'
    """
    spectra = _named("exponents", exponents, _floats)
    figure, axes = _figure(title)
    from matplotlib.ticker import MaxNLocator  # behind _figure, which says what is missing

    axes.axhline(0, color=COLORS[0], linewidth=1.4, label="small changes last")
    for i, (name, values) in enumerate(spectra.items()):
        shown = np.where(np.abs(values) < LARGEST, values, np.nan)
        label = f"{name}, largest {values.max(initial=-math.inf):.4f}"
        marker = MARKERS[i % len(MARKERS)]
        axes.plot(
            np.arange(1, len(values) + 1), shown, color=COLORS[1 + i % 6], marker=marker, markersize=4, label=label
        )
    axes.set_xlim(0.5, max([1, *map(len, spectra.values())]) + 0.5)
    axes.set_xlabel("exponent, from the largest")
    axes.set_ylabel("growth, ln per step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    _legend(figure, axes)
    return figure


def plot_trials(losses: Mapping[str, Any], *, title: str, baseline: float | None = None, window: int = 10) -> Figure:
    """Plot the running median of the loss of several trials; one that leaves the figure is marked.

    Parameters
    ----------
    losses : mapping of str to array_like (steps,)
        Loss of each trial.
    title : str
        The finding.
    baseline : float, optional
        Loss of the best answer that ignores the input.
    window : int
        Number of steps of the running median, which hides noise and single spikes.

    Returns
    -------
    matplotlib.figure.Figure
        The figure, to be saved or shown.

    Examples
    --------
    >>> from gradcore.diagnosis.figures import plot_trials
    >>> losses = {"as configured": [1.0, 0.9, 0.8], "norm clipping": [1.0, 0.7, 0.5]}
    >>> figure = plot_trials(losses, title="Norm clipping helps", baseline=1.0, window=1)
    >>> figure.get_suptitle()
    'Norm clipping helps'
    """
    rows, window = _named("losses", losses, _floats), check_int("window", window, least=1)
    baseline = None if baseline is None else check_real("baseline", baseline)
    figure, axes = _figure(title)
    smooth = {name: _running_median(values, min(window, len(values))) for name, values in rows.items()}
    starts = [float(values[0]) for values in smooth.values() if len(values) and np.isfinite(values[0])]
    ceiling = 30 * max([1.0 if baseline is None else baseline, *starts])  # one divergence does not flatten the others
    reference = [] if baseline is None else [np.array([baseline])]
    _log_axis(axes, [*(np.minimum(values, ceiling) for values in smooth.values()), *reference])
    if baseline is not None:
        axes.axhline(baseline, color="#666666", linewidth=1.2, linestyle=":", label="best constant answer")
    top = axes.get_ylim()[1]
    for i, (name, values) in enumerate(smooth.items()):
        color = COLORS[i % len(COLORS)]
        axes.plot(_finite(values), color=color, linewidth=1.8, linestyle=("-", "--", "-.")[i % 3], label=name)
        gone = np.flatnonzero(~(values <= top))
        if gone.size:
            axes.plot(gone[0], top, "^", color=color, markersize=10, clip_on=False, zorder=5)
            largest = rows[name].max(initial=0.0)
            text = f"leaves, up to {number(largest)}" if math.isfinite(largest) else "leaves, not finite"
            axes.annotate(text, (gone[0], top), xytext=(8, -10), textcoords="offset points", fontsize=8, color=color)
    axes.set_xlabel("training step")
    axes.set_ylabel(f"loss, median of the last {window} steps" if window > 1 else "loss")
    axes.set_xlim(0, max([2, *map(len, smooth.values())]) - 1)
    _legend(figure, axes)
    return figure


def _running_median(values: Array, window: int) -> Array:
    """The median of the last `window` values at each step; NaN from the first value that is not finite."""
    if not len(values):
        return values
    stop = int(np.argmin(np.isfinite(values))) if not np.isfinite(values).all() else len(values)
    padded = np.concatenate([np.full(window - 1, np.nan), values[:stop]])
    out = np.full(len(values), np.nan)
    if stop:
        windows = np.lib.stride_tricks.sliding_window_view(padded, window)
        with np.errstate(over="ignore"):  # of an even window it is a mean
            out[:stop] = np.nanmedian(windows, axis=1)
    return out


# ---- of a study ------------------------------------------------------------------------------------------------------


def figures(study: Study) -> dict[str, Figure]:
    """Draw the five figures of a study.

    Parameters
    ----------
    study : Study
        What `gradcore.diagnosis.study` returned.

    Returns
    -------
    dict of str to matplotlib.figure.Figure
        By file name without suffix.

    Raises
    ------
    ImportError
        If matplotlib is not installed.

    Examples
    --------
    >>> from gradcore.diagnosis import configure, study
    >>> from gradcore.diagnosis.figures import figures
    >>> drawn = figures(study(configure("sunspots", steps=5, hidden=8)))
    >>> sorted(drawn)
    ['eigenvalues', 'spectrum', 'time_steps', 'training', 'trials']
    """
    forecast, measurement, trials = study.forecast, study.measurement, study.trials
    configured, clipped = trials[0], trials[1]
    inside = [matrix.eigenvalues for matrix in forecast.matrices]
    outside = sum(int((np.abs(values) > 1).sum()) for values in inside)
    finite = [trial for trial in trials if math.isfinite(trial.held_out_loss)]
    best = min(finite, key=lambda trial: trial.held_out_loss) if finite else None
    liveliest = max(forecast.spectra, key=lambda spectrum: spectrum.largest)
    above = sum(int((spectrum.exponents > 0).sum()) for spectrum in forecast.spectra)
    unfinished = f", {configured.nonfinite_steps} steps not finite" if configured.nonfinite_steps else ""
    return {
        "time_steps": plot_time_steps(
            measurement.norms,
            measurement.expected(forecast),
            title=f"The gradient {VERBS[measurement.verdict]}: ×{number(measurement.factor)} over {forecast.horizon} "
            f"steps, with a slope of ×{per_step(measurement.rate)} a step",
            names=measurement.names,
        ),
        "training": plot_training(
            {trial.name: trial.history.grad_norm for trial in (configured, clipped)},
            title=f"As configured, the norm reaches {number(configured.largest_norm)}{unfinished}",
            threshold=clipped.max_norm,
        ),
        "eigenvalues": plot_eigenvalues(
            {matrix.name: matrix.eigenvalues for matrix in forecast.matrices},
            title=f"{outside} of {sum(map(len, inside))} eigenvalues lie outside the unit circle",
        ),
        "spectrum": plot_spectrum(
            {f"{found.name}: dimension {found.filled}": found.exponents for found in forecast.spectra},
            title=f"{above} Lyapunov exponents above 0, the largest {liveliest.largest:.4f} a step",
        ),
        "trials": plot_trials(
            {trial.name: trial.history.loss for trial in trials},
            title=f"Lowest loss on what is held out: {best.name}, {plus_minus(best)}"
            if best
            else "No trial kept a finite loss",
            baseline=study.start.baselines["constant"],
        ),
    }
