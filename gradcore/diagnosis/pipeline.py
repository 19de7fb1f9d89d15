"""From a model or a configuration to a diagnosis.

Everything follows from the arguments, seeds included, except for the seconds. Nothing is printed.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from typing import Any, TypeVar

import numpy as np

from gradcore._base.check import Array, check_int
from gradcore._base.threads import info
from gradcore.data import SourceError, Task
from gradcore.diagnosis.config import Config, task_of
from gradcore.diagnosis.parts import Diagnosis, Length, Measurement, Start, Study
from gradcore.diagnosis.problem import Problem, Remedy
from gradcore.diagnosis.rates import best_rate
from gradcore.diagnosis.remedies import choose_thresholds, clipping, starts_and_cells
from gradcore.diagnosis.stages import compare, forecast, measure, train
from gradcore.diagnosis.suggest import suggest
from gradcore.diagnosis.trials import Conclusion, Kind, Trial
from gradcore.diagnosis.verdict import finding, judge, kind_of_gradient
from gradcore.diagnosis.wording import number
from gradcore.layers.layer import Layer
from gradcore.spectral.members import recurrent_tapes
from gradcore.training.batch import each_batch
from gradcore.training.live import JSONLines

__all__ = ["diagnose", "study"]

Part = TypeVar("Part")

SAMPLES = 64  # sequences of a configuration that forecast and measurement follow

# What to do, from the gradient alone.
ADVICE: dict[Kind, str] = {
    "explodes": "Clip the gradient norm, or lower the gain of the recurrent weights (meanfield.suggest_gain).",
    "vanishes": "Raise the gain (meanfield.suggest_gain) or the bias of the gate that keeps the state "
    "(meanfield.suggest_bias), or use an LSTM or GRU.",
    "stable": "Nothing needs to be done about gradients through time.",
    "diverged": "The states or the loss are not finite: look at the inputs and the weights first.",
}


def diagnose(
    model: Any,
    batches: Iterable[Any] | Callable[[], Iterable[Any]],
    loss: Callable[[Array, Any], tuple[float, Array]],
    *,
    horizon: int | None = None,
) -> Diagnosis:
    """Say whether gradients explode or vanish on their way back through the recurrent layers of a model.

    The model is examined as it is: no step is trained, and it is left unchanged. The forecast is that of
    `gradcore.spectral.predict_growth` for each recurrent layer; the measurement that of
    `gradcore.spectral.measure_growth` after a backward pass of the last step's share of the loss.

    Parameters
    ----------
    model : Layer or torch.nn.Module
        A recurrent layer, or a model that has some. Of models of PyTorch see `gradcore.torch.diagnose`.
    batches : iterable or callable
        As for `gradcore.fit`, of which the first batch is used. Of sequences of different lengths, those with the
        largest length are used.
    loss : callable
        ``loss(y, target)`` returns the loss and its gradient with respect to y.
    horizon : int, optional
        Number of steps back over which growth is judged, at least 1; by default from the last step to the first.

    Returns
    -------
    Diagnosis
        With ``forecast.rate`` and ``measurement.rate``, the natural logarithm of the growth per step back, and
        ``verdict``, what that means.

    Raises
    ------
    TypeError
        If the model is not a gradcore model, or has no recurrent layer.
    ValueError
        If the batch has no sequence of at least 2 steps, or does not fit the model.

    Examples
    --------
    >>> import gradcore
    >>> batches = gradcore.data.load("adding").batches(8, steps=1)
    >>> model = gradcore.Sequential(gradcore.RNN(2, 8, rng=0), gradcore.LastStep(), gradcore.Linear(8, 1, rng=0))
    >>> found = gradcore.diagnose(model, batches, gradcore.losses.mse)
    >>> found.verdict.kind, found.forecast.rate < 0, found.measurement.rate < 0
    ('vanishes', True, True)
    """
    torch = sys.modules.get("torch")  # who has a model of PyTorch has imported it
    if torch is not None and isinstance(model, torch.nn.Module):
        bridge = import_module("gradcore.torch.diagnosis")  # by its name: bridges stand above everything else
        found: Diagnosis = bridge.diagnose(model, batches, loss, horizon=horizon)
        return found
    if not isinstance(model, Layer):
        given = f"{type(model).__module__}.{type(model).__qualname__}"
        raise TypeError(f"model: expected a layer or model of gradcore, or a torch.nn.Module, got {given}")
    horizon = check_given(batches, loss, horizon)
    model = copy.deepcopy(model)
    x, target, steps = _sample(model, batches)
    horizon = max(steps - 1, 1) if horizon is None else horizon
    expected = forecast(model, x, horizon)
    measured = measure(model, x, target, loss, horizon)
    kind = kind_of_gradient(expected, measured)
    verdict = Conclusion(kind, finding(kind, expected, measured), ADVICE[kind])
    return Diagnosis(expected, measured, compare(expected, measured), verdict)


def check_given(batches: Any, loss: Any, horizon: Any) -> int | None:
    """Check what `diagnose` is given beside the model, and return the horizon."""
    if not callable(loss):
        raise TypeError(f"loss: expected a callable, got {type(loss).__name__}")
    if not isinstance(batches, Iterable) and not callable(batches):
        raise TypeError(f"batches: expected an iterable or a callable, got {type(batches).__name__}")
    return None if horizon is None else check_int("horizon", horizon, least=1)


def _sample(model: Any, batches: Any) -> tuple[Array, Any, int]:
    """x and target of the first batch, without what is padding, and their number of steps."""
    _, batch = next(each_batch(batches, 1))
    assert batch is not None
    x, target, options, _ = batch
    y, tape = model.forward(x, **options)
    found = [own.layer for own, _ in recurrent_tapes(tape)]
    if not found:
        raise TypeError(f"model: expected a model with an RNN, LSTM or GRU, got {model!r}")
    batch_first = found[0].batch_first
    lengths = np.asarray(options.get("lengths", ()))
    if lengths.size:
        steps = lengths.max()
        longest = np.flatnonzero(lengths == steps)
        at = (longest, slice(steps)) if batch_first else (slice(steps), longest)
        x, target = np.asarray(x)[at], np.asarray(target)[at if y.ndim == 3 else longest]
    return x, target, np.shape(x)[1 if batch_first else 0]


def study(config: Config, report: Callable[[Any], None] = lambda part: None, live: JSONLines | None = None) -> Study:
    """Diagnose a configuration: forecast, measure, train, try remedies, and say what to do.

    Parameters
    ----------
    config : Config
        What to diagnose.
    report : callable, optional
        Called with each part as soon as it is known: Start, TimeForecast, Measurement, Comparison, tuple of Length,
        Trial (as configured), ClipThresholds, Suggestions, Trial (one for each remedy), Outcome.
    live : JSONLines, optional
        Where the steps of the trials are written while they are trained.

    Returns
    -------
    Study
        All the parts.

    Raises
    ------
    gradcore.data.SourceError
        If the source cannot be read or learned from.
    KeyboardInterrupt
        At Ctrl-C.

    Examples
    --------
    >>> from gradcore.diagnosis import configure, study
    >>> found = study(configure("sunspots", steps=5, hidden=8))
    >>> found.trials[0].name, len(found.trials[0].history)
    ('as configured', 5)
    """

    def tell(part: Part) -> Part:
        report(part)
        return part

    task = task_of(config)
    problem = config.problem(task)
    model = problem.model()
    start = tell(
        Start(
            config=config,
            task=task.name,
            data=task.facts,
            baselines=task.baselines,
            accuracies=task.accuracies,
            input_size=task.input_size,
            output_size=task.output_size,
            steps_back=task.steps - 1,
            n_parameters=model.flat_params.size,
            machine=info(),
        )
    )
    x, target = task.draw(np.random.default_rng(config.seed), SAMPLES)
    expected = tell(forecast(model, x, start.steps_back))
    measured = tell(measure(model, x, target, task.loss, start.steps_back))
    comparison = tell(compare(expected, measured))
    lengths = tell(_other_lengths(config, measured))
    seeds = range(config.seed, config.seed + config.seeds)
    configured = tell(train(problem, "as configured", {}, seeds, live))
    threshold = tell(choose_thresholds(configured, config.batch))
    suggestions, suggested = suggest(config, task, model, x, target)
    tell(suggestions)
    starts, cells = starts_and_cells(config, task)
    trials = [configured]
    rehearsal = task.rehearsal()
    steady = best_rate(problem, rehearsal, config.steps)
    if steady is not None and steady != config.lr:
        changes = {"lr": steady}
        name = f"learning rate {number(steady)}"
        trials.append(tell(train(problem.varied(lr=steady), name, changes, seeds, live)))
    for remedy in (*clipping(threshold), *starts, *suggested, *cells):
        trials.append(tell(_tried(remedy, problem, rehearsal, config.steps, seeds, live)))
    return Study(
        forecast=expected,
        measurement=measured,
        comparison=comparison,
        verdict=tell(judge(task.baselines, expected, measured, trials, steady)),
        start=start,
        lengths=lengths,
        threshold=threshold,
        suggestions=suggestions,
        trials=tuple(trials),
    )


def _tried(
    remedy: Remedy, problem: Problem, rehearsal: Task | None, steps: int, seeds: Sequence[int], live: JSONLines | None
) -> Trial:
    """The trial of a remedy, at the learning rate that suits it."""
    changed, changes, name = remedy.apply(problem), remedy.changes, remedy.name
    rate = best_rate(changed, rehearsal, steps)
    if rate is not None and rate != changed.lr:
        changed, changes, name = changed.varied(lr=rate), {**changes, "lr": rate}, f"{name}, rate {number(rate)}"
    return train(changed, name, changes, seeds, live)


def _other_lengths(config: Config, measured: Measurement) -> tuple[Length, ...]:
    """What is measured with sequences of half the length and of twice, where the source has them."""
    steps = measured.norms.shape[1]
    found = [Length(steps, measured.rate, measured.factor, measured.verdict)]
    for seq_len in (steps // 2, 2 * steps):
        try:
            task = task_of(dataclasses.replace(config, seq_len=seq_len))
        except (SourceError, ValueError):  # too short, or too long for the source
            continue
        if task.steps == steps:
            continue
        x, target = task.draw(np.random.default_rng(config.seed), SAMPLES)
        other = measure(config.problem(task).model(), x, target, task.loss, task.steps - 1)
        found.append(Length(task.steps, other.rate, other.factor, other.verdict))
    return tuple(sorted(found, key=lambda length: length.steps))
