"""What the measurement and the trials amount to: one word, a finding, and advice."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from gradcore.diagnosis.parts import Measurement, TimeForecast
from gradcore.diagnosis.remedies import departed
from gradcore.diagnosis.trials import Kind, Outcome, Trial
from gradcore.diagnosis.wording import BASELINES, VERBS, growth, number, per_step

__all__: list[str] = []  # for the package only

WORTHWHILE = 0.02  # a loss that is lower by this share is a difference
SEASONAL = "seasonal"  # of the answers that need no model, the one that knows what to remember
SKIPPED = 0.1  # share of the steps that may be not finite


def judge(
    baselines: Mapping[str, float],
    expected: TimeForecast,
    measured: Measurement,
    trials: Sequence[Trial],
    steady_rate: float | None,
) -> Outcome:
    """Conclude from the trials, of which the first is the training as configured.

    Trials are compared by their losses on the sequences held out. A remedy is named only where its loss with each seed
    is below that of the configuration with any, and where it beats the best constant and the last value. The value a
    period ago is another matter: where it does well there is something to learn, so it stands beside the verdict.

    Parameters
    ----------
    baselines : mapping of str to float
        Losses of answers that need no model.
    expected : TimeForecast
        The forecast of the configuration.
    measured : Measurement
        Its measurement.
    trials : sequence of Trial
        As configured, then with each remedy.
    steady_rate : float or None
        The learning rate of the configuration that does not diverge.

    Returns
    -------
    Outcome
        The verdict.
    """
    configured, *remedies = trials
    gradient = kind_of_gradient(expected, measured)
    clipped = any(not has_diverged(trial) for trial in remedies if trial.changes.keys() & {"max_norm", "step_clip"})
    sound = [trial for trial in trials if not has_diverged(trial)]
    lowest = min(sound, key=lambda trial: trial.held_out_loss, default=configured)
    yardstick = min((name for name in baselines if name != SEASONAL), key=lambda name: baselines[name])
    learned = bool(sound) and not lowest.held_out_loss > (1 - WORTHWHILE) * baselines[yardstick]
    improved = learned and _beats(lowest, configured)
    best = lowest if improved else configured
    kind: Kind = gradient
    if not sound or (has_diverged(configured) and not (gradient == "explodes" and clipped)):
        kind = "diverged"
    elif gradient != "explodes" and not learned:
        kind = "nothing_to_learn"
    advice = _advice(configured, lowest, len(remedies), baselines, yardstick, learned=learned, improved=improved)
    if kind == "diverged":
        advice = _against_divergence(configured, steady_rate, best if improved else None)
    told = f"{finding(gradient, expected, measured)} {_course(configured)}; {_beside(baselines)}."
    if improved:
        state = "diverges" if has_diverged(configured) else f"has {plus_minus(configured)}"
        helps = f"{best.name[:1].upper()}{best.name[1:]} helps: it has {plus_minus(best)} on what is held out, where "
        helps += f"the configuration {state}."
    elif kind == "nothing_to_learn":
        helps = f"On what is held out the best trial has {plus_minus(lowest)}, and {BASELINES[yardstick]} has "
        helps += f"{number(baselines[yardstick])}."
    elif kind == "diverged":
        helps = advice
    else:
        helps = f"No remedy beats the configuration, which has {plus_minus(configured)} on what is held out."
    summary = f"{_in_short(kind, expected, measured)} {helps}"
    return Outcome(kind, told, advice, summary, best.name if improved else None, best.held_out_loss, best.python)


def _in_short(kind: Kind, expected: TimeForecast, measured: Measurement) -> str:
    if kind == "diverged":
        return "The training as configured diverges."
    if kind == "nothing_to_learn":
        return "Nothing was learned at this length."
    factor = expected.factor if math.isnan(measured.rate) else measured.factor
    forecast = ", by the forecast" if math.isnan(measured.rate) else ""
    return (
        f"The gradient {VERBS[kind]}: on its way back over {expected.horizon} steps it changes by a factor of "
        f"{number(factor)}{forecast}."
    )


def has_diverged(trial: Trial) -> bool:
    """Say whether a run ended far above its start, or had many steps whose loss or norm was not finite.

    Parameters
    ----------
    trial : Trial
        The run.

    Returns
    -------
    bool
        Whether it diverged.
    """
    lost = departed([trial.history.loss[0], trial.loss]).size > 0
    return lost or trial.nonfinite_steps > SKIPPED * len(trial.history) or not math.isfinite(trial.held_out_loss)


def _beats(trial: Trial, configured: Trial) -> bool:
    if has_diverged(configured):
        return not has_diverged(trial)
    apart = max(trial.held_out_losses) < min(configured.held_out_losses)
    return apart and trial.held_out_loss < (1 - WORTHWHILE) * configured.held_out_loss


def kind_of_gradient(expected: TimeForecast, measured: Measurement) -> Kind:
    """Return what the measurement says; where no gradient arrived, the forecast; "diverged" where it was not finite.

    Parameters
    ----------
    expected : TimeForecast
        The forecast.
    measured : Measurement
        The measurement.

    Returns
    -------
    str
        The word.
    """
    if not math.isnan(measured.rate):
        return measured.verdict
    return "diverged" if not np.isfinite(measured.norms).all() else expected.verdict


def finding(kind: Kind, expected: TimeForecast, measured: Measurement) -> str:
    """Say what the gradient does on its way back.

    Parameters
    ----------
    kind : str
        What `kind_of_gradient` returned.
    expected : TimeForecast
        The forecast.
    measured : Measurement
        The measurement.

    Returns
    -------
    str
        One or two sentences.
    """
    if math.isnan(measured.rate):
        state = "is not finite" if kind == "diverged" else "is zero"
        ahead = growth(expected.rate, expected.factor, expected.horizon)
        return f"The gradient {state}, so that its growth cannot be measured; the forecast is {ahead}."
    said = (
        f"The gradient {VERBS[kind]}: on its way back over {expected.horizon} steps it changes by a factor of "
        f"{number(measured.factor)} (forecast: {number(expected.factor)}), with a slope of {per_step(measured.rate)} a "
        f"step (forecast: {per_step(expected.rate)})."
    )
    return said + sequences(measured)


def sequences(measured: Measurement) -> str:
    """Say in how many sequences the gradient grows.

    Parameters
    ----------
    measured : Measurement
        The measurement.

    Returns
    -------
    str
        A sentence after a space, or nothing.
    """
    if not measured.n_sequences:
        return ""
    return (
        f" It grows in {measured.n_growing} of {measured.n_sequences} sequences; the median changes by a factor of "
        f"{per_step(measured.median_rate)} a step."
    )


def _course(configured: Trial) -> str:
    steps, lost = len(configured.history), configured.nonfinite_steps
    if lost > SKIPPED * steps:
        return f"In the training as configured, {lost} of {steps} steps were not finite"
    return (
        f"The training as configured took the loss from {number(configured.history.loss[0])} to "
        f"{number(configured.loss)}, and to {plus_minus(configured)} on what is held out"
    )


def plus_minus(trial: Trial) -> str:
    """Write a trial's loss on what is held out, and its spread over the seeds.

    Parameters
    ----------
    trial : Trial
        The trial.

    Returns
    -------
    str
        Such as "0.12 ± 0.01".
    """
    return f"{number(trial.held_out_loss)} ± {number(trial.spread)}"


def _beside(baselines: Mapping[str, float]) -> str:
    return "there " + ", ".join(f"{BASELINES[name]} has {number(loss)}" for name, loss in baselines.items())


def _advice(
    configured: Trial,
    lowest: Trial,
    n: int,
    baselines: Mapping[str, float],
    yardstick: str,
    *,
    learned: bool,
    improved: bool,
) -> str:
    seasonal = baselines.get(SEASONAL, math.inf)
    if not learned:
        there_is = "there may be nothing to learn"
        if seasonal < (1 - WORTHWHILE) * baselines[yardstick]:
            there_is = f"there is something to learn, for {BASELINES[SEASONAL]} has {number(seasonal)}"
        return (
            f"Nothing was learned at this length in {len(configured.history)} steps: the lowest loss on what is held "
            f"out is {plus_minus(lowest)} ({lowest.name}), and {BASELINES[yardstick]} has "
            f"{number(baselines[yardstick])}. Try more steps, another length or other inputs; {there_is}."
        )
    if improved:
        advice = (
            f"Of {n} remedies, {lowest.name} did best: {plus_minus(lowest)} on what is held out, with norms of up to "
            f"{number(lowest.largest_norm)}."
        )
    else:
        advice = f"None of {n} remedies beats the configuration beyond the spread: keep the training as it is."
    if seasonal < (lowest if improved else configured).held_out_loss:
        advice += (
            f" Still better is {BASELINES[SEASONAL]}, with {number(seasonal)}: train longer, or learn the difference."
        )
    return advice


def _against_divergence(configured: Trial, steady_rate: float | None, best: Trial | None) -> str:
    if steady_rate is None:
        return (
            f"It diverges at every learning rate that was tried below {number(configured.lr or math.nan)}: look at the "
            "data and the loss first."
        )
    advice = f"Lower the learning rate from {number(configured.lr or math.nan)} to {number(steady_rate)}"
    if steady_rate == configured.lr:
        advice = "Its first steps do not diverge at this learning rate; clip the norm, or lower the rate"
    if best is None:
        return f"{advice}."
    return f"{advice}; of the trials, {best.name} did best, with {plus_minus(best)} on what is held out."
