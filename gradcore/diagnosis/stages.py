"""The stages of a diagnosis: forecast, measurement, comparison, training."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from gradcore import spectral
from gradcore._base.check import Array
from gradcore._base.hook import TrainingStep
from gradcore.diagnosis.config import program
from gradcore.diagnosis.parts import Comparison, LayerRates, Matrix, Measurement, Spectrum, TimeForecast
from gradcore.diagnosis.problem import Problem
from gradcore.diagnosis.trials import Trial
from gradcore.diagnosis.wording import times
from gradcore.layers.tape import Profile
from gradcore.spectral.members import recurrent_tapes
from gradcore.spectral.verdict import judge
from gradcore.training.fit import fit
from gradcore.training.history import History
from gradcore.training.live import JSONLines
from gradcore.training.monitor import Finding, GradientMonitor

__all__ = ["Run", "compare", "ended_at", "forecast", "measure", "predict", "recurrent_layers", "run", "train"]

FEW = 8  # sequences along which Lyapunov exponents are computed
EXPONENTS = 64  # of a layer, at most


def recurrent_layers(model: Any, x: Array) -> list[tuple[str, Any, Array]]:
    """Find the recurrent layers of a model and what they are given.

    Parameters
    ----------
    model : Layer
        A model with recurrent layers, or one of these.
    x : ndarray
        What the model takes, with sequences of one length.

    Returns
    -------
    list of (str, Layer, ndarray)
        For each layer its place, "" or such as "0.", the layer, and what x has become before it.

    Examples
    --------
    >>> import numpy as np
    >>> import gradcore
    >>> model = gradcore.Sequential(gradcore.RNN(2, 8, rng=0), gradcore.Linear(8, 1, rng=0))
    >>> x = np.ones((5, 3, 2), np.float32)
    >>> from gradcore.diagnosis.stages import recurrent_layers
    >>> [(place, type(layer).__name__, inside.shape) for place, layer, inside in recurrent_layers(model, x)]
    [('0.', 'RNN', (5, 3, 2))]
    """
    found = []
    for tape, path in recurrent_tapes(model.forward(x)[1]):
        inside = tape.trace.batch.unpack(tape.trace.inputs[0])
        batch_first = tape.layer.batch_first
        found.append((_place(path), tape.layer, inside.swapaxes(0, 1) if batch_first else inside))
    if not found:
        raise TypeError(f"model: expected a model with an RNN, LSTM or GRU, got {model!r}")
    return found


def _place(path: tuple[int, ...]) -> str:
    """What the names of a member's parameters begin with: "", or "0." in a model."""
    return "".join(f"{i}." for i in path)


def predict(model: Any, x: Array, horizon: int) -> list[tuple[str, Any, Array, spectral.GrowthPrediction]]:
    """Forecast the growth in each recurrent layer of a model.

    Parameters
    ----------
    model : Layer
        A model with recurrent layers, or one of these.
    x : ndarray
        What the model takes, with sequences of one length.
    horizon : int
        Number of steps back.

    Returns
    -------
    list of (str, Layer, ndarray, GrowthPrediction)
        What `recurrent_layers` returns, and the forecast.

    Examples
    --------
    >>> import numpy as np
    >>> import gradcore
    >>> model = gradcore.Sequential(gradcore.RNN(2, 8, rng=0), gradcore.Linear(8, 1, rng=0))
    >>> x = np.ones((5, 3, 2), np.float32)
    >>> from gradcore.diagnosis.stages import predict
    >>> [(place, growth.verdict) for place, _, _, growth in predict(model, x, horizon=100)]
    [('0.', 'vanishes')]
    """
    return [
        (place, layer, inside, spectral.predict_growth(layer, inside, horizon=horizon))
        for place, layer, inside in recurrent_layers(model, x)
    ]


def forecast(model: Any, x: Array, horizon: int) -> TimeForecast:
    """Say what a gradient will do on its way back through the recurrent layers of a model.

    Parameters
    ----------
    model : Layer
        A model with recurrent layers, or one of these.
    x : ndarray
        What the model takes, with sequences of one length.
    horizon : int
        Number of steps back.

    Returns
    -------
    TimeForecast
        The forecast.

    Examples
    --------
    >>> import numpy as np
    >>> import gradcore
    >>> model = gradcore.Sequential(gradcore.RNN(2, 8, rng=0), gradcore.Linear(8, 1, rng=0))
    >>> x = np.ones((5, 3, 2), np.float32)
    >>> from gradcore.diagnosis.stages import forecast
    >>> found = forecast(model, x, horizon=100)
    >>> found.verdict, [matrix.name for matrix in found.matrices]
    ('vanishes', ['0.weight_hh_l0'])
    """
    return forecast_of(predict(model, x, horizon), horizon)


def forecast_of(found: Sequence[tuple[str, Any, Array, spectral.GrowthPrediction]], horizon: int) -> TimeForecast:
    """Put the forecasts of recurrent layers together.

    Parameters
    ----------
    found : sequence of (str, Layer, ndarray, GrowthPrediction)
        What `predict` returns.
    horizon : int
        Number of steps back.

    Returns
    -------
    TimeForecast
        The forecast.
    """
    matrices: list[Matrix] = []
    spectra: list[Spectrum] = []
    growths: list[spectral.LayerGrowth] = []
    shown: list[spectral.LayerGrowth] = []
    above: tuple[list[spectral.LayerGrowth], ...] = ([], [])  # by direction
    for place, layer, inside, growth in reversed(found):
        matrices = [*_matrices(place, layer), *matrices]
        spectra = [*_spectra(place, layer, inside), *spectra]
        for level in reversed(range(layer.num_layers)):
            own = growth.layers[level * layer.num_directions : (level + 1) * layer.num_directions]
            # A layer also gets the gradients of the layers above it, of which the fastest shows.
            fastest = [max([one, *upper], key=lambda one: one.rate) for one, upper in zip(own, above, strict=False)]
            growths = [
                *(
                    dataclasses.replace(one, name=place + one.name, rate_with_above=most.rate)
                    for one, most in zip(own, fastest, strict=True)
                ),
                *growths,
            ]
            shown = [*fastest, *shown]
            for upper, one in zip(above, own, strict=False):
                upper.append(one)
    curves = np.full((len(shown), max(_steps(layer, inside) for _, layer, inside, _ in found)), np.nan)
    for row, growing in zip(curves, shown, strict=True):
        with np.errstate(over="ignore"):
            row[len(row) - len(growing.log_norm) :] = np.exp(growing.log_norm[::-1])
    worst = max((growth for *_, growth in found), key=lambda one: one.rate)
    return TimeForecast(
        matrices=tuple(matrices),
        conditions=worst.conditions,
        rate=worst.rate,
        factor=worst.factor,
        verdict=worst.verdict,
        horizon=horizon,
        curves=curves,
        layers=tuple(growths),
        spectra=tuple(spectra),
    )


def _steps(layer: Any, x: Array) -> int:
    return len(x[0]) if layer.batch_first else len(x)


def _matrices(place: str, layer: Any) -> Iterator[Matrix]:
    H, gates = layer.hidden_size, layer.cell.gates
    labels = [f", gate {gate}" for gate in gates] if len(gates) > 1 else [""]
    for name, weight in layer.params.items():
        if name.startswith("weight_hh"):
            for label, block in zip(labels, weight.reshape(-1, H, H), strict=True):
                eigenvalues = np.linalg.eigvals(block.astype(np.float64))
                radius = float(np.abs(eigenvalues).max())
                yield Matrix(place + name + label, radius, spectral.spectral_norm(block), eigenvalues)


def _spectra(place: str, layer: Any, x: Array) -> Iterator[Spectrum]:
    if layer.bidirectional:  # no joint state goes from step to step
        return
    state_size = layer.hidden_size * len(layer.cell.states)
    few = x[:FEW] if layer.batch_first else x[:, :FEW]
    for index in range(layer.num_layers):
        # A quarter of the steps is left for the states to forget their start, and for the directions to settle.
        exponents = spectral.lyapunov_spectrum(
            layer, few, k=min(EXPONENTS, state_size), transient=_steps(layer, x) // 4, index=index
        )
        dimension = spectral.kaplan_yorke(exponents)
        yield Spectrum(f"{place}l{index}", exponents, float(exponents[0]), dimension, state_size)


def measure(
    model: Any, x: Array, target: Any, loss: Callable[[Array, Any], tuple[float, Array]], horizon: int
) -> Measurement:
    """Carry a gradient back through time, and leave the model's own gradients at zero.

    It is that of the last step's share of the loss, so that what arrives at an earlier step has come through the
    recurrence alone; for layers that run from the last step to the first, that of the first step's share.

    Parameters
    ----------
    model : Layer
        A model with recurrent layers, or one of these.
    x : ndarray
        What the model takes, with sequences of one length.
    target : object
        What the loss takes.
    loss : callable
        ``loss(y, target)`` returns the loss and its gradient with respect to y.
    horizon : int
        Number of steps back.

    Returns
    -------
    Measurement
        The norms and their growth.

    Examples
    --------
    >>> import numpy as np
    >>> import gradcore
    >>> model = gradcore.Sequential(gradcore.RNN(2, 8, rng=0), gradcore.Linear(8, 1, rng=0))
    >>> x = np.ones((5, 3, 2), np.float32)
    >>> from gradcore.diagnosis.stages import measure
    >>> target = np.zeros((5, 3, 1), np.float32)
    >>> found = measure(model, x, target, gradcore.losses.mse, horizon=100)
    >>> found.verdict, found.names, found.norms.shape
    ('vanishes', ('0.l0',), (1, 5))
    """
    rows = _carried_back(model, x, target, loss, -1)
    if any(row.reverse for row in rows):
        other_way = _carried_back(model, x, target, loss, 0)
        rows = [back if row.reverse else row for row, back in zip(rows, other_way, strict=True)]
    return measurement_of(rows, horizon)


def measurement_of(rows: Sequence[Row], horizon: int) -> Measurement:
    """Put what was measured in each layer and direction together.

    Parameters
    ----------
    rows : sequence of Row
        The norms, from the first layer, each with as many steps.
    horizon : int
        Number of steps back.

    Returns
    -------
    Measurement
        The norms and their growth.
    """
    names, norms, rates = zip(*((row.name, row.norms, row.rate) for row in rows), strict=True)
    rate = max((rate for rate in rates if not math.isnan(rate)), default=math.nan)
    found = Measurement(names, np.array(norms), rates, rate, times(rate, horizon), judge(rate, horizon))
    if math.isnan(rate):
        return found
    row = rows[rates.index(rate)]
    if not math.isnan(row.log_factor) and horizon == len(row.norms) - 1:  # no need to continue a slope
        mean = row.log_factor / horizon
        found = dataclasses.replace(found, factor=times(mean, horizon), verdict=judge(mean, horizon))
    each = row.rates[~np.isnan(row.rates)]
    if not each.size:
        return found
    growing = int((each > 0).sum())
    return dataclasses.replace(found, n_sequences=each.size, n_growing=growing, median_rate=float(np.median(each)))


class Row(NamedTuple):
    """The norms of dL/dh in one layer and direction, and their growth."""

    name: str
    level: str
    reverse: bool
    norms: Array
    rate: float
    log_factor: float  # of the last norm over the first; NaN where one of them is no measure
    rates: Array  # of each sequence


def _rate(traveled: Array, tiny: float) -> float:
    """ln(last / first) a step, of norms as the gradient meets them; NaN where one of them is no measure."""
    if not traveled.any():
        return math.nan
    traveled = traveled[int(np.argmax(traveled != 0)) :]
    first, last = float(traveled[0]), float(traveled[-1])
    if len(traveled) < 2 or not (math.isfinite(first) and math.isfinite(last) and last > 1e3 * tiny):
        return math.nan
    return math.log(last / first) / (len(traveled) - 1)


def _carried_back(
    model: Any, x: Array, target: Any, loss: Callable[[Array, Any], tuple[float, Array]], step: int
) -> list[Row]:
    """Carry back the share of the loss that one step has, or all of it where y has no axis of time."""
    model.zero_grad()
    y, tape = model.forward(x)
    dy = loss(y, target)[1]
    found = list(recurrent_tapes(tape))
    if dy.ndim == 3:
        at = (slice(None), step) if found[0][0].layer.batch_first else step
        share = np.zeros_like(dy)
        share[at] = dy[at]
        dy = share
    model.backward(tape, dy)
    model.zero_grad()
    rows: list[Row] = []
    for own, path in found:
        for index, profile in enumerate(own.profiles()):
            name = _place(path) + profile.name
            rate = spectral.measure_growth(own, index=index)
            assert own.telemetry is not None
            each = own.telemetry.dh_norm_per_sample[index]
            rows.append(row_of(profile._replace(name=name), each, rate, float(np.finfo(own.layer.dtype).tiny)))
    return without_others(rows)


def row_of(profile: Profile, each: Array, rate: float, tiny: float) -> Row:
    """Return the norms of one layer and direction, and what they grow by.

    Parameters
    ----------
    profile : Profile
        The norms of dL/dh, with the full name.
    each : ndarray, (T, B)
        The norms of each sequence.
    rate : float
        The slope of the norms.
    tiny : float
        The smallest normal number of their dtype.

    Returns
    -------
    Row
        All of it.
    """
    name, reverse, norms = profile
    way = slice(None) if reverse else slice(None, None, -1)
    log_factor = _rate(norms[way], tiny) * (len(norms) - 1)
    rates = np.array([_rate(one, tiny) for one in each[way].T])
    return Row(name, name.removesuffix("_reverse"), reverse, norms, rate, log_factor, rates)


def without_others(rows: list[Row]) -> list[Row]:
    """Leave out the rates of layers whose growth cannot be told from that of others.

    Parameters
    ----------
    rows : list of Row
        The layers and directions, from the first.

    Returns
    -------
    list of Row
        The same, with NaN as the rate of those.
    """
    # What has been carried through time above, the other way, arrives at every step: its growth is not this layer's.
    return [
        row._replace(rate=math.nan)
        if any(above.reverse != row.reverse and np.count_nonzero(above.norms) > 1 for above in _above(row, rows))
        else row
        for row in rows
    ]


def _above(row: Row, rows: list[Row]) -> list[Row]:
    last = max(i for i, other in enumerate(rows) if other.level == row.level)
    return rows[last + 1 :]


def compare(forecast: TimeForecast, measurement: Measurement) -> Comparison:
    """Put forecast and measurement side by side.

    Parameters
    ----------
    forecast : TimeForecast
        What `forecast` returned.
    measurement : Measurement
        What `measure` returned for the same model.

    Returns
    -------
    Comparison
        Both by layer.

    Examples
    --------
    >>> import numpy as np
    >>> import gradcore
    >>> model = gradcore.Sequential(gradcore.RNN(2, 8, rng=0), gradcore.Linear(8, 1, rng=0))
    >>> x = np.ones((5, 3, 2), np.float32)
    >>> from gradcore.diagnosis.stages import compare, forecast, measure
    >>> target = np.zeros((5, 3, 1), np.float32)
    >>> measured = measure(model, x, target, gradcore.losses.mse, horizon=100)
    >>> [layer.name for layer in compare(forecast(model, x, horizon=100), measured).layers]
    ['0.l0']
    """
    return Comparison(
        tuple(
            LayerRates(layer.name, layer.rate, layer.upper_bound, layer.rate_with_above, measured)
            for layer, measured in zip(forecast.layers, measurement.rates, strict=True)
        )
    )


class Run(NamedTuple):
    """A training run.

    Parameters
    ----------
    history : History
        Its course.
    findings : tuple of Finding
        What `GradientMonitor` reported.
    step_clipped : list of bool
        Whether a time step was clipped, by training step.
    held_out_loss : float
        Loss after it on the sequences held out.
    accuracy : float or None
        The share of their labels that is right; None where targets are values.

    Examples
    --------
    >>> from gradcore.diagnosis.config import Config, task_of
    >>> from gradcore.diagnosis.stages import run
    >>> config = Config("adding", steps=5)
    >>> run(config.problem(task_of(config))).step_clipped
    [False, False, False, False, False]
    """

    history: History
    findings: tuple[Finding, ...]
    step_clipped: list[bool]
    held_out_loss: float
    accuracy: float | None = None


def run(problem: Problem, live: Callable[[GradientMonitor], Callable[[TrainingStep], None]] | None = None) -> Run:
    """Train a problem once, and judge the model by the sequences held out.

    Parameters
    ----------
    problem : Problem
        What to train.
    live : callable, optional
        Given the monitor, it returns a further callback of `fit`.

    Returns
    -------
    Run
        What came of it.

    Raises
    ------
    KeyboardInterrupt
        At Ctrl-C.

    Examples
    --------
    >>> from gradcore.diagnosis.config import Config, task_of
    >>> from gradcore.diagnosis.stages import run
    >>> config = Config("adding", steps=5)
    >>> len(run(config.problem(task_of(config))).history)
    5
    """
    model = problem.model()
    monitor = GradientMonitor()
    step_clipped: list[bool] = []

    def count(record: TrainingStep) -> None:
        step_clipped.append(
            any(own.telemetry.n_clipped.any() for own, _ in recurrent_tapes(record.tape) if own.telemetry)
        )

    history = fit(
        model,
        problem.data(),
        problem.loss,
        problem.optimizer(model),
        epochs=1,
        max_norm=problem.max_norm,
        step_clip=problem.step_clip,
        monitor=monitor,
        callbacks=[count] if live is None else [count, live(monitor)],
    )
    if history.interrupted:
        raise KeyboardInterrupt
    return Run(history, tuple(monitor.findings), step_clipped, *_judged(model, problem))


def _judged(model: Any, problem: Problem) -> tuple[float, float | None]:
    """Loss and accuracy on what is held out."""
    x, target = problem.test()
    y = model(x)
    y = y[0] if isinstance(y, tuple) else y
    with np.errstate(all="ignore"):
        loss = float(problem.loss(y, target)[0])
    return loss if math.isfinite(loss) else math.inf, problem.accuracy(y, target)


def ended_at(history: History) -> float:
    """Return the loss at the end of a run, the mean of the last tenth of its steps.

    Parameters
    ----------
    history : History
        The course of the run.

    Returns
    -------
    float
        The loss.

    Examples
    --------
    >>> from gradcore.diagnosis.config import Config, task_of
    >>> from gradcore.diagnosis.stages import ended_at, run
    >>> config = Config("adding", steps=5)
    >>> history = run(config.problem(task_of(config))).history
    >>> ended_at(history) == float(history.loss[-1])
    True
    """
    return float(history.loss[-max(len(history) // 10, 1) :].mean())


def train(
    problem: Problem, name: str, changes: dict[str, Any], seeds: Sequence[int], live: JSONLines | None = None
) -> Trial:
    """Train a problem whose makers are recipes, from several seeds.

    Parameters
    ----------
    problem : Problem
        What to train.
    name : str
        Name of the trial.
    changes : dict
        What the remedy sets.
    seeds : sequence of int
        Seeds of weights and batches, at least one.
    live : JSONLines, optional
        Where the steps are written, with the name of the trial and the seed.

    Returns
    -------
    Trial
        What came of it.

    Raises
    ------
    KeyboardInterrupt
        At Ctrl-C.

    Examples
    --------
    >>> from gradcore.diagnosis.config import Config, task_of
    >>> from gradcore.diagnosis.stages import train
    >>> config = Config("adding", steps=5)
    >>> trial = train(config.problem(task_of(config)), "as configured", {}, seeds=[0, 1])
    >>> trial.name, len(trial.history), len(trial.held_out_losses)
    ('as configured', 5, 2)
    """
    started = time.perf_counter()
    runs = [
        run(problem.varied(seed=seed), None if live is None else partial(live.trial, name, seed=seed)) for seed in seeds
    ]
    first = problem.varied(seed=seeds[0])
    history, findings, step_clipped, *_ = runs[0]
    norms = history.grad_norm
    finite = np.isfinite(norms) & np.isfinite(history.loss)
    return Trial(
        name=name,
        changes=changes,
        max_norm=problem.max_norm,
        step_clip=problem.step_clip,
        lr=problem.lr,
        loss=ended_at(history),
        held_out_losses=tuple(run.held_out_loss for run in runs),
        largest_norm=float(norms[np.isfinite(norms)].max(initial=0.0)),
        clipped_steps=int((history.clipped | step_clipped).sum()),
        nonfinite_steps=int((~finite).sum()),
        seconds=time.perf_counter() - started,
        findings=findings,
        history=history,
        python=program(first),
        accuracies=tuple(run.accuracy for run in runs if run.accuracy is not None),
    )
