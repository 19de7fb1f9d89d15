"""The learning rate at which a problem trains best, from short runs."""

from __future__ import annotations

import math

from gradcore.diagnosis.problem import Problem
from gradcore.diagnosis.remedies import departed
from gradcore.diagnosis.stages import ended_at, run

__all__ = ["best_rate"]

SHORT = 6  # a short run has so many times fewer steps,
LEAST_STEPS = 20  # but no fewer than these
FACTORS = (1.0, 1 / 3, 0.1, 3.0, 10.0)  # that are tried
CLEARLY = 0.9  # another rate than the given one has to lower the loss to this share
LOWEST = 1e-12  # of the given rate, down to which one is sought that does not diverge


def best_rate(problem: Problem, steps: int) -> float | None:
    """Return the learning rate, of a few around that of a problem, whose short run ends at the lowest loss.

    Where all of them diverge, lower ones are tried.

    Parameters
    ----------
    problem : Problem
        What to train.
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
    >>> best_rate(config.problem(task_of(config)), steps=60) < 1000
    True
    """
    short = max(min(steps, max(steps // SHORT, LEAST_STEPS)), 1)
    losses = {factor: _end(problem, factor, short) for factor in FACTORS}
    factor = min(FACTORS)
    while all(map(math.isinf, losses.values())) and factor > LOWEST:
        factor /= 10
        losses[factor] = _end(problem, factor, short)
    best = min(losses, key=losses.__getitem__)
    if math.isinf(losses[best]):
        return None
    chosen = 1.0 if losses[best] > CLEARLY * losses[1.0] else best
    return float(f"{chosen * problem.lr:.2g}") if chosen != 1.0 else problem.lr


def _end(problem: Problem, factor: float, steps: int) -> float:
    """The loss at the end of a short run; infinity if it has departed from its start."""
    lr = factor * problem.lr
    if not math.isfinite(lr) or lr == 0:
        return math.inf
    history = run(problem.varied(lr=lr, steps=steps)).history
    end = ended_at(history)
    return math.inf if departed([history.loss[0], end]).size else end
