"""What may help: clipping thresholds from the early norms, and other starts and cells."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from gradcore._base.check import Array
from gradcore.data import Task
from gradcore.diagnosis.config import Config
from gradcore.diagnosis.problem import Problem, Remedy
from gradcore.diagnosis.trials import ClipThresholds, Trial
from gradcore.diagnosis.wording import number, rounded
from gradcore.layers.cell import BY_NAME

__all__ = ["choose_thresholds", "clipping", "departed", "reconfigured", "starts_and_cells"]

EARLY = 0.2  # share of the steps whose norms decide on the thresholds,
DEPARTED = 3.0  # those before the loss has risen to this many times its start


def departed(losses: ArrayLike) -> Array:
    """Find the steps at which the loss is not finite, or has risen far above its start.

    Parameters
    ----------
    losses : array_like, (steps,)
        The loss of each step.

    Returns
    -------
    ndarray of int
        Their indices.

    Examples
    --------
    >>> from gradcore.diagnosis.remedies import departed
    >>> departed([1.0, 0.5, 4.0, float("nan")])
    array([2, 3])
    """
    values = np.asarray(losses)
    start = values[0] if math.isfinite(values[0]) else math.inf
    return np.flatnonzero(~(values < DEPARTED * start))


def choose_thresholds(trial: Trial, batch: int) -> ClipThresholds:
    """Choose clipping thresholds from the early norms of a training run.

    The norm is clipped above the usual norms. Where these are explosions themselves, it is clipped at twice the median
    norm of the output layer's gradient, which has passed through no time step. A time step is clipped at the norm with
    which a sequence's gradient typically enters.

    Parameters
    ----------
    trial : Trial
        The training as configured, without clipping; the last two parameters are those of the output layer.
    batch : int
        Number of sequences in a batch.

    Returns
    -------
    ClipThresholds
        The thresholds, rounded to three digits.

    Examples
    --------
    >>> from gradcore.diagnosis.config import Config, task_of
    >>> from gradcore.diagnosis.remedies import choose_thresholds
    >>> from gradcore.diagnosis.stages import train
    >>> config = Config("adding", steps=5)
    >>> trial = train(config.problem(task_of(config)), "as configured", {}, seeds=[0])
    >>> thresholds = choose_thresholds(trial, config.batch)
    >>> thresholds.steps_seen, thresholds.max_norm > 0, thresholds.step_clip > 0
    (1, True, True)
    """
    history = trial.history
    seen = max(min([math.ceil(EARLY * len(history)), *departed(history.loss)[:1]]), 1)
    output = _usable(np.hypot(*(history.per_array[name][:seen] for name in list(history.per_array)[-2:])))
    norms = _usable(history.grad_norm[:seen])
    entering = _usable(list(history.dh_last.values())[-1][:seen])
    quantiles = tuple(map(float, np.quantile(norms, [0.05, 0.5, 0.95]))) if norms.size else (math.nan,) * 3
    output_norm = float(np.median(output)) if output.size else math.nan
    step_clip = float(np.median(entering)) / math.sqrt(batch) if entering.size else 1.0
    if not (norms.size and output.size):
        max_norm, reason = 1.0, "the usual value, because no early norm was finite and above zero"
    elif quantiles[2] <= 2 * output_norm:
        max_norm, reason = quantiles[2], "the 95 % quantile of the early norms, so that only spikes are cut"
    else:
        max_norm = 2 * output_norm
        reason = "twice the median norm of the output layer's gradient, which passes through no time step"
    return ClipThresholds(rounded(max_norm), rounded(step_clip), reason, seen, quantiles, output_norm)


def _usable(norms: Array) -> Array:
    return norms[np.isfinite(norms) & (norms > 0)]


def reconfigured(name: str, config: Config, task: Task, **changes: Any) -> Remedy:
    """Return a remedy that changes options of a configuration, and keeps a problem's clipping.

    Parameters
    ----------
    name : str
        What it is, in words.
    config : Config
        The configuration.
    task : Task
        Its task.
    **changes
        The options that it sets.

    Returns
    -------
    Remedy
        The remedy.

    Examples
    --------
    >>> from gradcore.diagnosis.config import Config, task_of
    >>> from gradcore.diagnosis.remedies import reconfigured
    >>> config = Config("adding")
    >>> remedy = reconfigured("a larger model", config, task_of(config), hidden=128)
    >>> remedy.changes
    {'hidden': 128}
    """

    def apply(problem: Problem) -> Problem:
        changed = dataclasses.replace(config, **changes).problem(task)
        return dataclasses.replace(changed, max_norm=problem.max_norm, step_clip=problem.step_clip)

    return Remedy(name, changes, apply)


def clipping(thresholds: ClipThresholds) -> list[Remedy]:
    """Return clipping of the norm, and of each time step.

    Parameters
    ----------
    thresholds : ClipThresholds
        Where to clip.

    Returns
    -------
    list of Remedy
        The two remedies.

    Examples
    --------
    >>> from gradcore.diagnosis.trials import ClipThresholds
    >>> from gradcore.diagnosis.remedies import clipping
    >>> thresholds = ClipThresholds(2.5, 0.1, "the 95 % quantile of the early norms", 60, (0.4, 0.9, 2.5), 1.3)
    >>> [remedy.name for remedy in clipping(thresholds)]
    ['norm clipping at 2.5', 'step clipping at 0.1']
    """
    return [
        _clipped(f"norm clipping at {number(thresholds.max_norm)}", max_norm=thresholds.max_norm),
        _clipped(f"step clipping at {number(thresholds.step_clip)}", step_clip=thresholds.step_clip),
    ]


def _clipped(name: str, **changes: Any) -> Remedy:
    def apply(problem: Problem) -> Problem:
        return dataclasses.replace(problem, **changes)

    return Remedy(name, changes, apply)


def starts_and_cells(config: Config, task: Task) -> tuple[list[Remedy], list[Remedy]]:
    """Return the other starts, and the other cells, that a configuration may try.

    Parameters
    ----------
    config : Config
        The configuration.
    task : Task
        Its task.

    Returns
    -------
    starts : list of Remedy
        Other initial recurrent matrices.
    cells : list of Remedy
        Other cells.

    Examples
    --------
    >>> from gradcore.diagnosis.config import Config, task_of
    >>> from gradcore.diagnosis.remedies import starts_and_cells
    >>> config = Config("adding")
    >>> starts, cells = starts_and_cells(config, task_of(config))
    >>> [remedy.name for remedy in starts + cells]
    ['orthogonal initialization', 'LSTM instead of RNN']
    """
    starts: list[Remedy] = []
    cells: list[Remedy] = []
    if config.model is not None:  # which starts as its owner wants
        return starts, cells
    if (config.init, config.gain) != ("orthogonal", 1.0):
        starts.append(reconfigured("orthogonal initialization", config, task, init="orthogonal", gain=1.0))
    if (cell := BY_NAME[config.cell]).keeping is None:
        cells.append(reconfigured(f"LSTM instead of {cell.layer}", config, task, cell="lstm", init="default", gain=1.0))
    return starts, cells
