"""The learning rate at which a problem trains best, from a rehearsal."""

from __future__ import annotations

import math

from gradcore.data import Task
from gradcore.diagnosis.problem import Problem
from gradcore.diagnosis.remedies import departed
from gradcore.diagnosis.stages import ended_at, run

__all__ = ["best_rate"]

FIRST = 6  # the first runs have so many times fewer steps than a whole one,
SECOND = 2  # and those of the best of them so many times fewer,
LEAST_STEPS = 20  # but neither has fewer steps than these
FINALISTS = 2  # best rates of the first runs that are tried again, beside the given one
AROUND = (1 / 3, 1.0, 3.0)  # factors on the given rate, beyond which the search goes on
FURTHEST = 10.0  # up to this factor, and down to its inverse
CLEARLY = 0.95  # another rate than the given one has to lower the loss to this share
LOWEST = 1e-12  # of the given rate, down to which one is sought that does not diverge


def best_rate(problem: Problem, rehearsal: Task | None, steps: int) -> float | None:
    """Return the learning rate, of a few around that of a problem, that does best on a rehearsal of its task.

    Runs of a sixth of the steps choose two rates; these and the given one are tried again with half of the steps. What
    counts is the loss on what the rehearsal holds out. Where all runs diverge, lower rates are tried.

    Parameters
    ----------
    problem : Problem
        What to train.
    rehearsal : Task or None
        Its task within what is trained on, see `Task.rehearsal`. Where there is none, the rate stays unless it
        diverges.
    steps : int
        Number of steps of a whole run.

    Returns
    -------
    float or None
        The rate: that of the problem unless another is clearly better; None if none keeps the loss from rising.

    Examples
    --------
    >>> from gradcore.diagnosis.config import Config, task_of
    >>> from gradcore.diagnosis.rates import best_rate
    >>> config = Config("adding", hidden=8, seq_len=20, lr=1000.0)
    >>> task = task_of(config)
    >>> best_rate(config.problem(task), task.rehearsal(), steps=60) < 1000
    True
    """
    if rehearsal is not None:
        problem = problem.varied(task=rehearsal)
    losses = _first_runs(problem, _steps(steps, FIRST), rehearsal is not None)
    finite = [factor for factor in sorted(losses, key=losses.__getitem__) if math.isfinite(losses[factor])]
    if not finite:
        return None
    if rehearsal is None:
        return _rate(problem, 1.0 if math.isfinite(losses[1.0]) else finite[0])
    again = sorted({*finite[:FINALISTS], 1.0})
    if _steps(steps, SECOND) > _steps(steps, FIRST):
        losses = {factor: _end(problem, factor, _steps(steps, SECOND)) for factor in again}
    best = min(losses, key=losses.__getitem__)
    if math.isinf(losses[best]):  # half of the steps are too many for all of them
        return _rate(problem, min(finite))
    return _rate(problem, 1.0 if losses[best] > CLEARLY * losses[1.0] else best)


def _first_runs(problem: Problem, steps: int, around: bool) -> dict[float, float]:
    """The loss at the end of a run by factor on the rate."""
    losses = {factor: _end(problem, factor, steps) for factor in (AROUND if around else (1.0,))}
    best = min(losses, key=losses.__getitem__)
    if around and math.isfinite(losses[best]) and best != 1.0:
        factor = FURTHEST if best > 1 else 1 / FURTHEST
        losses[factor] = _end(problem, factor, steps)
    factor = min(losses)
    while all(map(math.isinf, losses.values())) and factor > LOWEST:
        factor /= FURTHEST
        losses[factor] = _end(problem, factor, steps)
    return losses


def _steps(steps: int, divisor: int) -> int:
    return min(steps, max(steps // divisor, LEAST_STEPS))


def _rate(problem: Problem, factor: float) -> float:
    return problem.lr if factor == 1.0 else float(f"{factor * problem.lr:.2g}")


def _end(problem: Problem, factor: float, steps: int) -> float:
    """The loss after a run on what is held out; infinity if that of training has departed from its start."""
    lr = factor * problem.lr
    if not math.isfinite(lr) or lr == 0:
        return math.inf
    found = run(problem.varied(lr=lr, steps=steps))
    end = ended_at(found.history)
    return math.inf if departed([found.history.loss[0], end]).size else found.held_out_loss
