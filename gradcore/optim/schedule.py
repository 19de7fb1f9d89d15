"""Schedules: callables that map the step, counted from 0, to a learning rate or a clip threshold.

They have no state, so a run that resumes from a checkpoint only needs its number of steps. Their `repr` constructs
them, equal ones compare equal, and they can be pickled. Any other callable of the step works as well.
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from gradcore._base.check import as_list, check_int, check_number

__all__ = [
    "Schedule",
    "chain",
    "constant",
    "cosine",
    "exponential",
    "linear",
    "multi_step",
    "one_cycle",
    "polynomial",
    "step",
    "warm_restarts",
]


class Schedule(Protocol):  # numpydoc ignore=PR01
    """Protocol of schedules: a callable that maps the step to a number.

    Examples
    --------
    >>> import gradcore
    >>> layer = gradcore.Linear(2, 2)
    >>> optimizer = gradcore.optim.SGD(layer, lr=lambda step: 0.1 / (1 + step))
    """

    def __call__(self, step: int, /) -> float:
        """Return the value at a step, counted from 0."""


class _Checked:
    """A schedule whose fields are checked: integers above 0 if they count steps, else numbers of at least 0."""

    _counts: ClassVar[tuple[str, ...]] = ("steps", "every")
    _lists: ClassVar[tuple[str, ...]] = ()  # of steps
    _finite = True

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            checked: Any
            if name in self._lists:
                checked = _ascending(name, value)
            elif name in self._counts:
                checked = check_int(name, value, least=1)
            else:
                checked = check_number(name, value, least=0.0)
            if self._finite and checked == math.inf:
                raise ValueError(f"{name}: expected a finite number, got inf")
            object.__setattr__(self, name, checked)


@dataclass(frozen=True)
class constant(_Checked):
    r"""Keep the same value at every step: :math:`s_t = v`.

    Parameters
    ----------
    value : float
        The value v, at least 0; ``inf`` is a threshold that never clips.

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
    r"""Follow a line, up or down: :math:`s_t = a\,(1 - t / N) + b\, t / N` until :math:`t = N`, then b.

    ``linear(0.0, lr, steps)`` is a warm-up.

    Parameters
    ----------
    start, end : float
        The values a and b, at least 0.
    steps : int
        The number of steps N, at least 1.

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
    r"""Follow half a cosine: :math:`s_t = b + (a - b) (1 + \cos(\pi t / N)) / 2` until :math:`t = N`, then b.

    This is the schedule of [1]_ without restarts.

    Parameters
    ----------
    start, end : float
        The values a and b, at least 0.
    steps : int
        The number of steps N, at least 1.

    References
    ----------
    .. [1] I. Loshchilov, F. Hutter, "SGDR: stochastic gradient descent with warm restarts", 2017, equation 5.

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
class polynomial(_Checked):
    r"""Follow a power of the time that is left: :math:`s_t = b + (a - b) (1 - t / N)^k` until :math:`t = N`, then b.

    Parameters
    ----------
    start, end : float
        The values a and b, at least 0.
    steps : int
        The number of steps N, at least 1.
    power : float
        The power k, above 0; 1 is a line.

    Examples
    --------
    >>> from gradcore import schedule
    >>> decay = schedule.polynomial(0.8, 0.0, steps=4, power=2.0)
    >>> [decay(t) for t in range(6)]
    [0.8, 0.45, 0.2, 0.05, 0.0, 0.0]
    """

    start: float
    end: float
    steps: int
    power: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("power", self.power, above=0.0)

    def __call__(self, step: int) -> float:
        t = min(check_int("step", step), self.steps)
        left = math.pow((self.steps - t) / self.steps, self.power)
        return self.start * left + self.end * (1 - left)


@dataclass(frozen=True)
class warm_restarts(_Checked):
    r"""Follow half a cosine again and again: from a to b in N steps, then in :math:`N f, N f^2, \dots` [1]_.

    Step t of a cycle of n steps has :math:`b + (a - b) (1 + \cos(\pi t / n)) / 2`; the end b is never quite reached.
    PyTorch calls it CosineAnnealingWarmRestarts.

    Parameters
    ----------
    start, end : float
        The values a and b, at least 0.
    steps : int
        The number of steps N of the first cycle, at least 1.
    factor : int
        The factor f by which each cycle is longer than the one before, at least 1.

    References
    ----------
    .. [1] I. Loshchilov, F. Hutter, "SGDR: stochastic gradient descent with warm restarts", 2017, equation 5.

    Examples
    --------
    >>> from gradcore import schedule
    >>> lr = schedule.warm_restarts(0.1, 0.0, steps=2, factor=2)
    >>> [round(lr(t), 4) for t in range(8)]
    [0.1, 0.05, 0.1, 0.0854, 0.05, 0.0146, 0.1, 0.0962]
    """

    start: float
    end: float
    steps: int
    factor: int = 1
    _counts = ("steps", "factor")

    def __call__(self, step: int) -> float:
        t, n = check_int("step", step), self.steps
        if self.factor == 1:
            t %= n
        while t >= n:
            t, n = t - n, n * self.factor
        return _half_cosine(self.start, self.end, t, n - t)


@dataclass(frozen=True)
class step(_Checked):
    r"""Multiply by a factor at regular intervals: :math:`s_t = v f^{\lfloor t / n \rfloor}`.

    Parameters
    ----------
    value : float
        The first value v, at least 0.
    factor : float
        The factor f, at least 0.
    every : int
        The number of steps n between changes, at least 1.

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
class multi_step(_Checked):
    r"""Multiply by a factor at given steps: :math:`s_t = v f^k`, k of the milestones being at most t.

    Parameters
    ----------
    value : float
        The first value v, at least 0.
    factor : float
        The factor f, at least 0.
    milestones : iterable of int
        The steps from which on the value is multiplied once more, in ascending order; one may occur several times.

    Examples
    --------
    >>> from gradcore import schedule
    >>> lr = schedule.multi_step(0.8, 0.5, milestones=[2, 3])
    >>> [lr(t) for t in range(5)]
    [0.8, 0.8, 0.4, 0.2, 0.2]
    """

    value: float
    factor: float
    milestones: tuple[int, ...]
    _lists = ("milestones",)

    def __call__(self, step: int) -> float:
        return _geometric(self.value, self.factor, bisect.bisect_right(self.milestones, check_int("step", step)))


@dataclass(frozen=True)
class exponential(_Checked):
    r"""Multiply by a factor at every step: :math:`s_t = v f^t`.

    Parameters
    ----------
    value : float
        The first value v, at least 0.
    factor : float
        The factor f, at least 0.

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
    r"""Rise to a peak and fall far below the start, each along half a cosine, as PyTorch's OneCycleLR [1]_.

    The value rises from :math:`p / d` at step 0 to the peak p at step :math:`k = r N - 1`, which need not be an
    integer, and falls to :math:`p / (d\, e)` at step :math:`N - 1`, where it stays.

    Parameters
    ----------
    peak : float
        The peak p, at least 0.
    steps : int
        The number of steps N, at least 1.
    pct_start : float
        The fraction r of the steps until the peak, from 0 to 1.
    div_factor, final_div_factor : float
        The factors d and e, above 0.

    Notes
    -----
    The form is PyTorch's. It does not include a momentum that cycles against the learning rate.

    References
    ----------
    .. [1] L. N. Smith, N. Topin, "Super-convergence: very fast training of neural networks using large learning rates",
       2018.

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
    """Run schedules one after the other, each counting steps from its own beginning.

    Parameters
    ----------
    *stages_and_last : (schedule, int) or schedule
        Pairs of a schedule and the number of steps that it lasts, at least 1. The last argument is a schedule without
        an end.

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
    """Return the value on half a cosine from start to end, after a part that is done and before one that is left.

    (1 + cos x) / 2 is computed as the square of cos(x / 2), which keeps its digits near the end, where the sum cancels.
    """
    if left <= 0:
        return end
    quarter = math.pi / 2 / (done + left)
    return start * math.sin(quarter * left) ** 2 + end * math.sin(quarter * done) ** 2


def _ascending(name: str, value: Any) -> tuple[int, ...]:
    """Return steps as a tuple."""
    steps = tuple(check_int(f"{name}[{i}]", at) for i, at in enumerate(as_list(name, value, "an iterable of integers")))
    if list(steps) != sorted(steps):
        raise ValueError(f"{name}: expected steps in ascending order, got {list(steps)}")
    return steps


def _geometric(value: float, factor: float, n: int) -> float:
    try:
        return value * factor**n
    except OverflowError:
        return math.inf if value else 0.0
