"""Changes of the start that may let gradients last."""

from __future__ import annotations

from typing import Any

from gradcore import meanfield
from gradcore._base.check import Array
from gradcore.data import Task
from gradcore.diagnosis.config import Config
from gradcore.diagnosis.problem import Remedy
from gradcore.diagnosis.remedies import reconfigured
from gradcore.diagnosis.stages import measure, predict, recurrent_layers
from gradcore.diagnosis.trials import Suggestion, Suggestions
from gradcore.diagnosis.wording import number, rounded
from gradcore.layers.cell import BY_NAME

__all__ = ["suggest"]

SAME_GAIN = 0.01  # a gain that differs by less than this share is the same


def suggest(config: Config, task: Task, model: Any, x: Array, target: Array) -> tuple[Suggestions, list[Remedy]]:
    """Suggest the gain that keeps the gradient's norm, and for gated cells the bias of the gate that keeps the state.

    Parameters
    ----------
    config : Config
        The configuration.
    task : Task
        Its task.
    model : Sequential
        Its model, before training.
    x, target : ndarray
        The sequences of the forecast; a suggestion is made from all of them, and judged by its own forecast on them.

    Returns
    -------
    suggestions : Suggestions
        What was found.
    remedies : list of Remedy
        The suggestions that are to be tried.

    Examples
    --------
    >>> from gradcore.diagnosis.config import Config, task_of
    >>> from gradcore.diagnosis.suggest import suggest
    >>> config = Config("adding", cell="lstm", hidden=8, seq_len=20)
    >>> task = task_of(config)
    >>> ((x, target),) = task.batches(8, steps=1)
    >>> suggestions, remedies = suggest(config, task, config.problem(task).model(), x, target)
    >>> [list(suggestion.changes) for suggestion in suggestions.tried]
    [['gain'], ['gate_bias']]
    """
    if config.model is not None:
        return Suggestions((), ("The start of your own model is yours to change: see meanfield.suggest_gain.",)), []
    horizon = task.steps - 1
    candidates, missing = _gain(config, task, model, x)
    candidates += _gate_bias(config, task)
    tried, remedies = [], []
    for remedy, reason in candidates:
        changed = remedy.apply(config.problem(task)).model()
        growth = max((growth for *_, growth in predict(changed, x, horizon)), key=lambda one: one.rate)
        if "gain" in remedy.changes and growth.verdict != "stable":  # rates may jump between two gains
            missing.append(f"No gain is suggested: the best one found, {remedy.name}, {growth.verdict}.")
            continue
        measured = measure(changed, x, target, task.loss, horizon).rate
        tried.append(
            Suggestion(remedy.name, remedy.changes, reason, growth.rate, measured, growth.factor, growth.verdict)
        )
        remedies.append(remedy)
    return Suggestions(tuple(tried), tuple(missing)), remedies


def _gain(config: Config, task: Task, model: Any, x: Array) -> tuple[list[tuple[Remedy, str]], list[str]]:
    """The remedy and its reason, or why there is none."""
    ((_, layer, inside),) = recurrent_layers(model, x)
    try:
        factor = meanfield.suggest_gain(layer, inside)
    except ValueError:
        return [], ["No gain from 1/64 to 64 times the configured one is forecast to keep the gradient's norm."]
    if abs(factor - 1) < SAME_GAIN:
        return [], ["The configured gain is the one that is forecast to keep the gradient's norm."]
    gain = rounded(config.gain * factor)
    reason = f"instead of {number(config.gain)}, to keep the gradient's norm"
    return [(reconfigured(f"gain {number(gain)}", config, task, gain=gain), reason)], []


def _gate_bias(config: Config, task: Task) -> list[tuple[Remedy, str]]:
    """The remedy and its reason for a cell that has such a gate."""
    keeping = BY_NAME[config.cell].keeping
    if keeping is None:
        return []
    bias = rounded(meanfield.suggest_bias(config.cell, task.steps))
    name = f"{keeping.name}-gate bias {number(bias)}"
    reason = f"so that this gate alone keeps 1/e of the state over {task.steps} steps"
    return [(reconfigured(name, config, task, gate_bias=bias), reason)]
