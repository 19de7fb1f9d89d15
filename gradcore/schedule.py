"""Schedules: callables of the step, for a learning rate and for a clip threshold alike.

They hold no state, so a run that goes on from a checkpoint needs nothing but its number of steps. Their `repr` creates
them anew, equal ones compare equal, and they can be pickled. Steps count from 0. Any other callable of the step serves
as well as these.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gradcore._check import check_int, check_number

__all__ = ["chain", "constant", "cosine", "exponential", "linear", "one_cycle", "step"]

Schedule = Callable[[int], float]


class _Checked:
    """A schedule whose fields are integers above 0 where they count steps, else numbers of at least 0."""

    _counts = ("steps", "every")
    _finite = True

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            checked = check_int(name, value, least=1) if name in self._counts else check_number(name, value, least=0.0)
            if self._finite and checked == math.inf:
                raise ValueError(f"{name}: expected a finite number, got inf")
            object.__setattr__(self, name, checked)


@dataclass(frozen=True)
class constant(_Checked):
    r"""The same value at every step: :math:`s_t = v`.

    Parameters
    ----------
    value : float
        v, at least 0; ``inf`` is a threshold that never clips.

    Examples
    --------
    >>> from gradcore import schedule
    >>> schedule.constant(0.1)(1000)
    0.1
    """

    value: float
    _finite = False

    def __call__(self, step: int) -> float:
        check_int("step", step)
        return self.value


@dataclass(frozen=True)
class linear(_Checked):
    r"""Along a line, up or down: :math:`s_t = a\,(1 - t / N) + b\, t / N` up to :math:`t = N`, then b.

    It warms up with ``linear(0.0, lr, steps)``.

    Parameters
    ----------
    start, end : float
        a and b, at least 0.
    steps : int
        N, at least 1.

    Examples
    --------
    >>> from gradcore import schedule
    >>> warmup = schedule.linear(0.0, 0.1, steps=4)
    >>> [warmup(t) for t in range(6)]
    [0.0, 0.025, 0.05, 0.075..., 0.1, 0.1]
    """

    start: float
    end: float
    steps: int

    def __call__(self, step: int) -> float:
        t = min(check_int("step", step), self.steps)
        return self.start * ((self.steps - t) / self.steps) + self.end * (t / self.steps)


@dataclass(frozen=True)
class cosine(_Checked):
    r"""Along half a cosine: :math:`s_t = b + (a - b) (1 + \cos(\pi t / N)) / 2` up to :math:`t = N`, then b.

    Parameters
    ----------
    start, end : float
        a and b, at least 0.
    steps : int
        N, at least 1.

    Notes
    -----
    Loshchilov, Hutter, "SGDR: stochastic gradient descent with warm restarts", 2017, equation 5, without restarts.

    Examples
    --------
    >>> from gradcore import schedule
    >>> decay = schedule.cosine(0.1, 0.0, steps=100)
    >>> decay(0), round(decay(50), 9), decay(100), decay(101)
    (0.1, 0.05, 0.0, 0.0)
    """

    start: float
    end: float
    steps: int

    def __call__(self, step: int) -> float:
        t = min(check_int("step", step), self.steps)
        return _half_cosine(self.start, self.end, t, self.steps - t)


@dataclass(frozen=True)
class step(_Checked):
    r"""A factor at regular intervals: :math:`s_t = v f^{\lfloor t / n \rfloor}`.

    Parameters
    ----------
    value : float
        v, at least 0.
    factor : float
        f, at least 0.
    every : int
        n, at least 1.

    Examples
    --------
    >>> from gradcore import schedule
    >>> halved = schedule.step(0.8, 0.5, every=2)
    >>> [halved(t) for t in range(5)]
    [0.8, 0.8, 0.4, 0.4, 0.2]
    """

    value: float
    factor: float
    every: int

    def __call__(self, step: int) -> float:
        return _geometric(self.value, self.factor, check_int("step", step) // self.every)


@dataclass(frozen=True)
class exponential(_Checked):
    r"""A factor at every step: :math:`s_t = v f^t`.

    Parameters
    ----------
    value : float
        v, at least 0.
    factor : float
        f, at least 0.

    Examples
    --------
    >>> from gradcore import schedule
    >>> round(schedule.exponential(0.1, 0.99)(100), 6)
    0.036603
    """

    value: float
    factor: float

    def __call__(self, step: int) -> float:
        return _geometric(self.value, self.factor, check_int("step", step))


@dataclass(frozen=True)
class one_cycle(_Checked):
    r"""Up to a peak and far down again, each along half a cosine, as PyTorch's OneCycleLR.

    It rises from :math:`p / d` at step 0 to the peak p at step :math:`k = r N - 1`, and falls to :math:`p / (d\, e)` at
    step :math:`N - 1`, where it stays. k need not be an integer.

    Parameters
    ----------
    peak : float
        p, at least 0.
    steps : int
        N, at least 1.
    pct_start : float
        r, from 0 to 1.
    div_factor, final_div_factor : float
        d and e, above 0.

    Notes
    -----
    Smith, Topin, "Super-convergence: very fast training of neural networks using large learning rates", 2018; the form
    is PyTorch's. A momentum that cycles against the learning rate is not part of it.

    Examples
    --------
    >>> from gradcore import schedule
    >>> lr = schedule.one_cycle(0.1, steps=100)
    >>> lr(0), lr(29), f"{lr(99):.1e}"
    (0.004, 0.1, '4.0e-07')
    """

    peak: float
    steps: int
    pct_start: float = 0.3
    div_factor: float = 25.0
    final_div_factor: float = 1e4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("pct_start", self.pct_start, most=1.0)
        check_number("div_factor", self.div_factor, above=0.0)
        check_number("final_div_factor", self.final_div_factor, above=0.0)

    def __call__(self, step: int) -> float:
        t = min(check_int("step", step), self.steps - 1)
        top = self.pct_start * self.steps - 1
        start = self.peak / self.div_factor
        if t <= top:
            return _half_cosine(start, self.peak, t, top - t)
        return _half_cosine(self.peak, start / self.final_div_factor, t - top, self.steps - 1 - t)


@dataclass(frozen=True, init=False, repr=False)
class chain:
    """Schedules one after the other, each with steps counted from its own beginning.

    Parameters
    ----------
    *stages : (schedule, int)
        Schedules, and for how many steps each lasts, at least 1.
    last : schedule
        Without an end; the last positional argument.

    Examples
    --------
    >>> from gradcore import schedule
    >>> lr = schedule.chain((schedule.linear(0.0, 0.1, 10), 10), schedule.cosine(0.1, 0.0, 90))
    >>> lr(5), lr(10), lr(100)
    (0.05, 0.1, 0.0)
    >>> lr
    chain((linear(start=0.0, end=0.1, steps=10), 10), cosine(start=0.1, end=0.0, steps=90))
    """

    stages: tuple[tuple[Schedule, int], ...]
    last: Schedule

    def __init__(self, *stages_and_last: Any) -> None:
        if not stages_and_last:
            raise TypeError("chain: expected (schedule, steps), ..., last, got nothing")
        *stages, last = stages_and_last
        checked = []
        for i, stage in enumerate(stages):
            if not (isinstance(stage, tuple) and len(stage) == 2 and callable(stage[0])):
                raise TypeError(f"stages[{i}]: expected a pair (schedule, steps), got {stage!r}")
            checked.append((stage[0], check_int(f"steps of stages[{i}]", stage[1], least=1)))
        if not callable(last):
            raise TypeError(f"last: expected a schedule, got {last!r}")
        object.__setattr__(self, "stages", tuple(checked))
        object.__setattr__(self, "last", last)

    def __call__(self, step: int) -> float:
        t = check_int("step", step)
        for schedule, steps in self.stages:
            if t < steps:
                return schedule(t)
            t -= steps
        return self.last(t)

    def __repr__(self) -> str:
        return f"chain({', '.join(map(repr, (*self.stages, self.last)))})"


def _half_cosine(start: float, end: float, done: float, left: float) -> float:
    """From start to end, with so much of the way done and so much left.

    (1 + cos x) / 2 is the square of cos(x / 2), which keeps its digits where the sum cancels, at the end of the way.
    """
    if left <= 0:
        return end
    quarter = math.pi / 2 / (done + left)
    return start * math.sin(quarter * left) ** 2 + end * math.sin(quarter * done) ** 2


def _geometric(value: float, factor: float, n: int) -> float:
    try:
        return value * factor**n
    except OverflowError:
        return math.inf if value else 0.0
