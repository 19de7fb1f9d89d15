"""Figures of a diagnosis, from plain arrays: what the gradient does over time steps, over training, and why.

Drawn on matplotlib's Figure, never through pyplot, so that no window system and no global state is touched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gradcore._check import Array, as_array, as_list, check_int, check_real, check_reals, check_room

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart by colour-blind readers; black comes first.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MANY = 14  # matrices with a line in the legend
MARKERS = "os^Dvp*"
LARGEST = 1e300  # matplotlib leaves a margin, which has to be a number too
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
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError('figures need matplotlib: pip install "gradcore[cli]"') from None
    figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


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


def _finite(values: Any) -> Array:
    """float64 with NaN in place of what a logarithmic axis cannot show, or matplotlib place on it."""
    array = np.array(values, np.float64)
    array[~((array > 0) & (array < LARGEST))] = np.nan
    return array


def plot_time_steps(norms: Any, forecast: Any = None, *, title: str, names: Sequence[str] | None = None) -> Figure:
    """The norm of dL/dh_t at every time step, one line a layer, and the forecast beside it.

    Parameters
    ----------
    norms : array_like, (layers, T)
        L2 norms; steps that are not finite or zero are left out.
    forecast : array_like, (T,) or (layers, T), optional
        The forecast of the same norms.
    title : str
        The finding.
    names : sequence of str, optional
        Of the layers; "layer 0" and so on when not given.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ImportError
        If matplotlib is not installed.
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
        axes.plot(steps, _finite(row), color=COLOURS[1 + i % 6], linewidth=2, label=f"measured, {names[i]}")
    for i, row in enumerate(lines):
        label = "forecast" if len(lines) == 1 else None if i else "forecast, each layer"
        axes.plot(steps, _finite(row), color=COLOURS[0], linewidth=1.4, linestyle=(0, (5, 3)), label=label)
    _log_axis(axes, [measured, lines])
    axes.set_xlabel("time step t   (the loss is at the last one; its gradient flows to the left)")
    axes.set_ylabel("norm of dL/dh$_t$")
    axes.set_xlim(0, max(len(steps) - 1, 1))
    axes.legend(frameon=False)
    return figure


def plot_training(norms: Mapping[str, Any], *, title: str, threshold: float | None = None) -> Figure:
    """The gradient norm over training, a line a run; steps whose norm is not finite are marked at the top.

    Parameters
    ----------
    norms : mapping of str to array_like (steps,)
        By run: norm of all gradients before clipping.
    title : str
        The finding.
    threshold : float, optional
        A clipping threshold, drawn across.

    Returns
    -------
    matplotlib.figure.Figure
    """
    rows = _named("norms", norms, _floats)
    threshold = None if threshold is None else check_real("threshold", threshold)
    figure, axes = _figure(title)
    _log_axis(axes, [*rows.values(), *([] if threshold is None else [np.array([threshold])])])
    for i, (name, values) in enumerate(rows.items()):
        axes.plot(_finite(values), color=COLOURS[i % len(COLOURS)], linewidth=1.2, label=name)
        bad = np.flatnonzero(~np.isfinite(values))
        if bad.size:
            top = np.full(bad.size, axes.get_ylim()[1])
            axes.plot(bad, top, "x", color=COLOURS[i % len(COLOURS)], clip_on=False, label=f"{name}: not finite")
    if threshold is not None:
        axes.axhline(
            threshold, color=COLOURS[2], linewidth=1.6, linestyle=(0, (5, 3)), label=f"threshold {threshold:g}"
        )
    axes.set_xlabel("training step")
    axes.set_ylabel("norm of all gradients, before clipping")
    axes.set_xlim(0, max([2, *map(len, rows.values())]) - 1)
    axes.legend(frameon=False)
    return figure


def plot_eigenvalues(eigenvalues: Mapping[str, Array], *, title: str) -> Figure:
    """Eigenvalues of recurrent matrices in the complex plane, with the unit circle.

    Parameters
    ----------
    eigenvalues : mapping of str to ndarray (H,)
        By matrix.
    title : str
        The finding.

    Returns
    -------
    matplotlib.figure.Figure
    """
    spectra = _named("eigenvalues", eigenvalues, _complex)
    figure, axes = _figure(title)
    angle = np.linspace(0, 2 * np.pi, 361)
    axes.plot(np.cos(angle), np.sin(angle), color=COLOURS[0], linewidth=1.4, label="unit circle")
    reach = 1.0
    for i, (name, values) in enumerate(spectra.items()):
        radius = float(np.abs(values).max(initial=0.0))
        reach = max(reach, min(radius, LARGEST))
        label = f"{name}: radius {radius:.3g}" if i < MANY else f"_{name}"  # matplotlib leaves out names with _
        colour, marker = COLOURS[1 + i % 6], MARKERS[i % len(MARKERS)]
        shown = values[np.abs(values) < LARGEST]
        axes.scatter(shown.real, shown.imag, s=22, alpha=0.8, label=label, color=colour, marker=marker)
    axes.set_xlim(-1.1 * reach, 1.1 * reach)
    axes.set_ylim(-1.1 * reach, 1.1 * reach)
    axes.set_aspect("equal")
    axes.set_xlabel("real part")
    axes.set_ylabel("imaginary part")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=10 if len(spectra) < 6 else 8)
    return figure


def plot_spectrum(exponents: Mapping[str, Array], *, title: str) -> Figure:
    """Lyapunov exponents, largest first, a line a layer, whose largest the legend names.

    Parameters
    ----------
    exponents : mapping of str to ndarray (k,)
        By layer, as `spectral.lyapunov_spectrum` returns them; those of -inf are left out.
    title : str
        The finding.

    Returns
    -------
    matplotlib.figure.Figure
    """
    spectra = _named("exponents", exponents, _floats)
    figure, axes = _figure(title)
    from matplotlib.ticker import MaxNLocator  # behind _figure, which says what is missing

    axes.axhline(0, color=COLOURS[0], linewidth=1.4, label="small changes last")
    for i, (name, values) in enumerate(spectra.items()):
        shown = np.where(np.abs(values) < LARGEST, values, np.nan)
        label = f"{name}, largest {values.max(initial=-math.inf):.3g}"
        marker = MARKERS[i % len(MARKERS)]
        axes.plot(
            np.arange(1, len(values) + 1), shown, color=COLOURS[1 + i % 6], marker=marker, markersize=4, label=label
        )
    axes.set_xlim(0.5, max([1, *map(len, spectra.values())]) + 0.5)
    axes.set_xlabel("exponent, from the largest")
    axes.set_ylabel("growth, ln per step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.legend(frameon=False, fontsize=10 if len(spectra) < 6 else 8)
    return figure


def plot_trials(losses: Mapping[str, Any], *, title: str, baseline: float | None = None, window: int = 10) -> Figure:
    """The losses of several trials over training, each a running median; a trial that diverged ends in a cross.

    Parameters
    ----------
    losses : mapping of str to array_like (steps,)
        By trial.
    title : str
        The finding.
    baseline : float, optional
        The loss of an answer that ignores the input.
    window : int
        Steps of the running median, which lets neither noise nor one spike hide the course.

    Returns
    -------
    matplotlib.figure.Figure
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
        colour = COLOURS[i % len(COLOURS)]
        axes.plot(_finite(values), color=colour, linewidth=1.8, linestyle=("-", "--", "-.")[i % 3], label=name)
        gone = np.flatnonzero(~(values <= top))
        if gone.size:
            axes.plot(gone[0], top, "^", color=colour, markersize=10, clip_on=False, zorder=5)
            largest = rows[name].max(initial=0.0)
            text = f"leaves, up to {largest:.0e}" if math.isfinite(largest) else "leaves, not finite"
            axes.annotate(text, (gone[0], top), xytext=(8, -10), textcoords="offset points", fontsize=8, color=colour)
    axes.set_xlabel("training step")
    axes.set_ylabel("loss")
    axes.set_xlim(0, max([2, *map(len, smooth.values())]) - 1)
    figure.legend(*axes.get_legend_handles_labels(), frameon=False, loc="outside right center")
    return figure


def _running_median(values: Array, window: int) -> Array:
    """The median of the last `window` values at each step; NaN from the first that is not finite on."""
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


# ---- of a diagnosis --------------------------------------------------------------------------------------------------


def figures(diagnosis: Any) -> dict[str, Figure]:
    """The five figures of a `Diagnosis`, by file name without suffix.

    Examples
    --------
    >>> from gradcore.diagnose import configure, diagnose
    >>> from gradcore.report import figures
    >>> drawn = figures(diagnose(configure("sunspots", steps=5, hidden=8)))
    >>> sorted(drawn)
    ['eigenvalues', 'spectrum', 'time_steps', 'training', 'trials']
    """
    forecast, measurement, trials = diagnosis.forecast, diagnosis.measurement, diagnosis.trials
    configured, clipped = trials[0], trials[1]
    verb = {"explodes": "explodes", "vanishes": "vanishes", "stable": "is stable"}[measurement.verdict]
    inside = [matrix.eigenvalues for matrix in forecast.matrices]
    outside = sum(int((np.abs(values) > 1).sum()) for values in inside)
    rate, back = math.exp(measurement.rate), measurement.norms.shape[1] - 1
    finite = [trial for trial in trials if math.isfinite(trial.loss)]
    best = min(finite, key=lambda trial: trial.loss) if finite else None
    liveliest = max(forecast.spectra, key=lambda spectrum: spectrum.largest)
    above = sum(int((spectrum.exponents > 0).sum()) for spectrum in forecast.spectra)
    unfinished = f", {configured.nonfinite_steps} steps not finite" if configured.nonfinite_steps else ""
    return {
        "time_steps": plot_time_steps(
            measurement.norms,
            measurement.norms[:, -1:] * forecast.curves,
            title=f"The gradient {verb}: ×{rate:.3f} a step, ×{measurement.factor:.3g} over {back} steps",
        ),
        "training": plot_training(
            {trial.name: trial.history.grad_norm for trial in (configured, clipped)},
            title=f"As configured the norm reaches {configured.largest_norm:.2g}{unfinished}",
            threshold=clipped.max_norm,
        ),
        "eigenvalues": plot_eigenvalues(
            {matrix.name: matrix.eigenvalues for matrix in forecast.matrices},
            title=f"{outside} of {sum(map(len, inside))} eigenvalues lie outside the unit circle",
        ),
        "spectrum": plot_spectrum(
            {f"layer {i}: dimension {found.filled}": found.exponents for i, found in enumerate(forecast.spectra)},
            title=f"{above} Lyapunov exponents above 0, the largest {liveliest.largest:.3g} a step",
        ),
        "trials": plot_trials(
            {trial.name: trial.history.loss for trial in trials},
            title=f"Lowest loss: {best.name}, {best.loss:.3g}" if best else "No trial kept a finite loss",
            baseline=diagnosis.start.baseline,
        ),
    }
