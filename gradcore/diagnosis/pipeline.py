"""From a model or a configuration to a diagnosis.

Everything follows from the arguments, seeds included, except for the seconds. Nothing is printed.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import numpy as np

from gradcore._base.check import Array, check_int
from gradcore._base.threads import info
from gradcore.diagnosis.config import Config, task_of
from gradcore.diagnosis.parts import (
    Conclusion,
    Diagnosis,
    Kind,
    Measurement,
    Outcome,
    Start,
    Study,
    TimeForecast,
    Trial,
)  # fmt: skip
from gradcore.diagnosis.remedies import choose_thresholds, clipping, departed, starts_and_cells
from gradcore.diagnosis.stages import compare, forecast, measure, train
from gradcore.diagnosis.suggest import suggest
from gradcore.diagnosis.wording import VERBS, growth, number, per_step
from gradcore.layers.layer import Layer
from gradcore.spectral.members import recurrent_tapes
from gradcore.training.fit import each_batch

__all__ = ["diagnose", "study"]

Part = TypeVar("Part")

SAMPLES = 64  # sequences of a configuration that forecast and measurement follow
WORTHWHILE = 0.02  # a loss that is lower by this share is a difference

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
    model : Layer
        A recurrent layer, or a model that has some.
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
    if not isinstance(model, Layer):
        given = type(model)
        raise TypeError(f"model: expected a layer or model of gradcore, got {given.__module__}.{given.__qualname__}")
    if not callable(loss):
        raise TypeError(f"loss: expected a callable, got {type(loss).__name__}")
    if not isinstance(batches, Iterable) and not callable(batches):
        raise TypeError(f"batches: expected an iterable or a callable, got {type(batches).__name__}")
    if horizon is not None:
        horizon = check_int("horizon", horizon, least=1)
    model = copy.deepcopy(model)
    x, target, steps = _sample(model, batches)
    horizon = max(steps - 1, 1) if horizon is None else horizon
    expected = forecast(model, x, horizon)
    measured = measure(model, x, target, loss, horizon)
    kind = _kind_of_gradient(expected, measured)
    verdict = Conclusion(kind, _finding(kind, expected, measured) + ".", ADVICE[kind])
    return Diagnosis(expected, measured, compare(expected, measured), verdict)


def _sample(model: Any, batches: Any) -> tuple[Array, Any, int]:
    """x and target of the first batch, without what is padding, and their number of steps."""
    _, batch = next(each_batch(batches, 1))
    assert batch is not None
    x, target, options = batch
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


def study(config: Config, report: Callable[[Any], None] = lambda part: None) -> Study:
    """Diagnose a configuration: forecast, measure, train, try remedies, and say what to do.

    Parameters
    ----------
    config : Config
        What to diagnose.
    report : callable, optional
        Called with each part as soon as it is known: Start, TimeForecast, Measurement, Comparison, Trial (as
        configured), ClipThresholds, Suggestions, Trial (one for each remedy), Outcome.

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
            baseline=task.baseline,
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
    configured = tell(train(problem, "as configured", {}))
    threshold = tell(choose_thresholds(configured, config.batch))
    suggestions, suggested = suggest(config, task, model, x, target)
    tell(suggestions)
    starts, cells = starts_and_cells(config, task)
    unbuilt = [(remedy, None) for remedy in (*clipping(threshold), *starts)]
    trials = [configured]
    for remedy, built in (*unbuilt, *suggested, *((remedy, None) for remedy in cells)):
        trials.append(tell(train(remedy.apply(problem), remedy.name, remedy.changes, built)))
    return Study(
        forecast=expected,
        measurement=measured,
        comparison=comparison,
        verdict=tell(judge(task.baseline, expected, measured, trials)),
        start=start,
        threshold=threshold,
        suggestions=suggestions,
        trials=tuple(trials),
    )


def judge(baseline: float, expected: TimeForecast, measured: Measurement, trials: list[Trial]) -> Outcome:
    """Conclude from the trials, of which the first is the training as configured.

    Parameters
    ----------
    baseline : float
        Loss of the best constant answer.
    expected : TimeForecast
        The forecast of the configuration.
    measured : Measurement
        Its measurement.
    trials : list of Trial
        As configured, then with each remedy.

    Returns
    -------
    Outcome
        Whose remedy is the trial of the lowest loss, if that is clearly below the loss as configured.
    """
    configured, *remedies = trials
    gradient = _kind_of_gradient(expected, measured)
    finding = (
        f"{_finding(gradient, expected, measured)}. The training as configured ended at a loss of "
        f"{number(configured.loss)} (the best constant answer has {number(baseline)}) after norms of up to "
        f"{number(configured.largest_norm)}."
    )
    sound = [trial for trial in trials if math.isfinite(trial.loss)]
    lowest = min(sound, key=lambda trial: trial.loss, default=configured)
    learned = bool(sound) and not lowest.loss > (1 - WORTHWHILE) * baseline
    improved = bool(sound) and not lowest.loss > (1 - WORTHWHILE) * configured.loss
    best = lowest if improved else configured
    if not sound:
        advice = "No trial kept a finite loss: lower the learning rate first, then diagnose again."
    elif not learned:
        advice = (
            f"In {len(configured.history)} steps no trial got below the constant answer (the lowest loss is "
            f"{number(lowest.loss)}): give them more steps before choosing."
        )
    elif not improved:
        advice = f"None of {len(remedies)} remedies reached a clearly lower loss: keep the training as it is."
    else:
        share = best.clipped_steps / len(best.history)
        clipped = f", {share:.0%} of the steps clipped" if best.clipped_steps else ""
        advice = (
            f"Of {len(remedies)} remedies, {best.name} did best, with a loss of {number(best.loss)} and norms of up "
            f"to {number(best.largest_norm)}{clipped}."
        )
    kind: Kind = gradient
    if not sound or (gradient != "explodes" and departed([configured.history.loss[0], configured.loss]).size):
        kind = "diverged"
    elif gradient != "explodes" and not learned:
        kind = "nothing_to_learn"
    return Outcome(kind, finding, advice, best.name if improved else None, best.loss, best.python)


def _kind_of_gradient(expected: TimeForecast, measured: Measurement) -> Kind:
    """What the measurement says; where no gradient arrived, the forecast; "diverged" where it was not finite."""
    if not math.isnan(measured.rate):
        return measured.verdict
    return "diverged" if not np.isfinite(measured.norms).all() else expected.verdict


def _finding(kind: Kind, expected: TimeForecast, measured: Measurement) -> str:
    ahead = growth(expected.rate, expected.factor, expected.horizon)
    if math.isnan(measured.rate):
        state = "is not finite" if kind == "diverged" else "is zero"
        return f"The gradient {state}, so that its growth cannot be measured; the forecast is {ahead}"
    change = growth(measured.rate, measured.factor, expected.horizon)
    return f"The gradient {VERBS[kind]}: on its way back it changes by {change} (forecast: {per_step(expected.rate)})"
