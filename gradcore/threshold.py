"""Thresholds for clipping that follow the norms of the gradient.

Each is told the norm of every step before that is clipped, and answers with the limit of this very step: hand it in as
`max_norm`. A norm that is not finite enters no statistic.
"""

from __future__ import annotations

import math
import statistics
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from gradcore._check import FLOAT64, check_array, check_choice, check_int, check_names, check_number, check_real

__all__ = ["AutoClip", "FromFirst", "Threshold", "ZClip"]


class Threshold(Protocol):
    """What `max_norm` may be besides a number: an object that answers each step's norm with the limit of this step.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> class HalfOfTheLargest:
    ...     largest = 0.0
    ...
    ...     def update(self, norm):
    ...         self.largest = max(self.largest, norm)
    ...         return self.largest / 2
    >>> norm = gradcore.clip_grad_norm_(np.array([3.0, 4.0]), HalfOfTheLargest())
    >>> norm, norm.max_norm
    (5.0, 2.5)
    """

    def update(self, norm: float, /) -> float:
        """The norm of a step's gradient before clipping; returns what to clip it to, ``inf`` for not at all."""


@dataclass(eq=False)
class ZClip:
    r"""ZClip: a norm that stands out from its running mean and deviation is clipped, the more the further it does.

    The mean :math:`\mu` and the deviation :math:`\sigma` of the first `warmup_steps` norms are the start. From then on
    :math:`z = (n - \mu) / (\sigma + \epsilon)` decides: if :math:`z > \zeta`, the limit is

    - :math:`n^* = (\mu + \zeta \sigma / (z / \zeta))\, f` with "adaptive_scaling",
    - :math:`n^* = \mu` with "mean",

    else there is none. In mode "percentile" the limit is always :math:`\mu + \zeta \sigma`. Then the clipped norm, here
    n, enters :math:`\mu \leftarrow \alpha \mu + (1 - \alpha) n` and, with the new :math:`\mu`,
    :math:`\sigma^2 \leftarrow \alpha \sigma^2 + (1 - \alpha) (n - \mu)^2`.

    Parameters
    ----------
    alpha : float
        :math:`\alpha`, from 0 to 1.
    z_thresh : float
        :math:`\zeta`, above 0.
    clip_option : {"adaptive_scaling", "mean"}
        What to clip to in mode "zscore".
    clip_factor : float
        f, at least 0; of "adaptive_scaling" only. Below 1, limits can fall below the mean and pull it down with them,
        step after step to 0, where nothing is learned: seen with a `z_thresh` of 2 or less, and a small `alpha` helps.
    max_grad_norm : float, optional
        No limit is above this, not even in the first steps; the statistics do not see it.
    eps : float
        :math:`\epsilon`, above 0.
    warmup_steps : int
        At least 1.
    mode : {"zscore", "percentile"}

    Raises
    ------
    TypeError, ValueError
        If a number is out of range, or an option has another value.

    Notes
    -----
    Kumar, Owen, Chowdhury, Güra, "ZClip: adaptive spike mitigation for LLM pre-training", 2025, with the defaults of
    its authors' description. :math:`\sigma` is kept in place of its square, which could overflow.

    Examples
    --------
    >>> from gradcore.threshold import ZClip
    >>> threshold = ZClip(warmup_steps=4)
    >>> [threshold.update(norm) for norm in (1.0, 1.2, 0.8, 1.0, 1.1)]
    [inf, inf, inf, inf, inf]
    >>> f"{threshold.update(50.0):.3f}"
    '1.006'
    """

    alpha: float = 0.97
    z_thresh: float = 2.5
    clip_option: str = "adaptive_scaling"
    clip_factor: float = 1.0
    max_grad_norm: float | None = None
    eps: float = 1e-6
    warmup_steps: int = 25
    mode: str = "zscore"

    def __post_init__(self) -> None:
        self.alpha = check_number("alpha", self.alpha, least=0.0, most=1.0)
        self.z_thresh = check_number("z_thresh", self.z_thresh, above=0.0)
        check_choice("clip_option", self.clip_option, ("adaptive_scaling", "mean"))
        self.clip_factor = check_number("clip_factor", self.clip_factor, least=0.0)
        if self.max_grad_norm is not None:
            self.max_grad_norm = check_number("max_grad_norm", self.max_grad_norm, least=0.0)
        self.eps = check_number("eps", self.eps, above=0.0)
        self.warmup_steps = check_int("warmup_steps", self.warmup_steps, least=1)
        check_choice("mode", self.mode, ("zscore", "percentile"))
        self._first: list[float] = []  # norms of the first steps
        self._mean = self._deviation = 0.0  # of no meaning before there are all of these

    def update(self, norm: float) -> float:
        """Take in the norm of a step.

        Parameters
        ----------
        norm : float
            Before clipping, at least 0. One that is not finite has the limit of an infinite one, and is forgotten.

        Returns
        -------
        float
            The limit of this step; ``inf`` for none.

        Raises
        ------
        ValueError
            If `norm` is negative.
        """
        n = _norm(norm)
        most = math.inf if self.max_grad_norm is None else self.max_grad_norm
        if len(self._first) < self.warmup_steps:
            if n < math.inf:
                self._first.append(n)
                if len(self._first) == self.warmup_steps:
                    self._begin()
            return most
        limit, stands_out = self._limit(n)
        if n < math.inf:
            self._follow(limit if stands_out else n)
        return min(limit, most)

    def _begin(self) -> None:
        count = len(self._first)
        self._mean = math.fsum(n / count for n in self._first)
        self._deviation = math.hypot(*((n - self._mean) / math.sqrt(count) for n in self._first))

    def _limit(self, n: float) -> tuple[float, bool]:
        """The limit for this norm, and whether that stands out."""
        if self.mode == "percentile":
            limit = self._mean + self.z_thresh * self._deviation
            return limit, n > limit
        z = (n - self._mean) / (self._deviation + self.eps)
        if not z > self.z_thresh:
            return math.inf, False
        if self.clip_option == "mean":
            return self._mean, True
        return (self._mean + self.z_thresh * self._deviation / (z / self.z_thresh)) * self.clip_factor, True

    def _follow(self, n: float) -> None:
        self._mean = self.alpha * self._mean + (1 - self.alpha) * n
        self._deviation = math.hypot(
            math.sqrt(self.alpha) * self._deviation, math.sqrt(1 - self.alpha) * (n - self._mean)
        )

    def state_dict(self) -> dict[str, Any]:
        """What the next limit depends on: the norms of the first steps, float64, and mean and deviation."""
        return {"first": np.array(self._first), "mean": self._mean, "deviation": self._deviation}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from where `state_dict` was taken, bit for bit; nothing is changed unless all of it fits.

        Raises
        ------
        KeyError
            If something is missing or unknown.
        TypeError, ValueError
            If something has another type or range, or there are more first norms than `warmup_steps`.
        """
        check_names("state_dict", state_dict, ("first", "mean", "deviation"))
        first = _norms("first", state_dict["first"], self.warmup_steps)
        mean, deviation = (check_number(name, state_dict[name], least=0.0) for name in ("mean", "deviation"))
        self._first, self._mean, self._deviation = first, mean, deviation


@dataclass(eq=False)
class AutoClip:
    r"""AutoClip: the limit is a percentile of all norms so far, this step's among them.

    Parameters
    ----------
    percentile : float
        From 0 to 100, interpolated linearly as `numpy.percentile` does. Of norms that neither grow nor shrink, a share
        of 1 - percentile / 100 is clipped: most of them with the default.
    history : int, optional
        Only the last so many norms count, at least 1; None is all.

    Raises
    ------
    TypeError, ValueError
        If a number is out of range.

    Notes
    -----
    Seetharaman, Wichern, Pardo, Le Roux, "AutoClip: adaptive gradient clipping for source separation networks", 2020.

    Examples
    --------
    >>> from gradcore.threshold import AutoClip
    >>> threshold = AutoClip(percentile=50.0)
    >>> [threshold.update(norm) for norm in (1.0, 3.0, 100.0, 2.0)]
    [1.0, 2.0, 3.0, 2.5]
    """

    percentile: float = 10.0
    history: int | None = None

    def __post_init__(self) -> None:
        self.percentile = check_number("percentile", self.percentile, least=0.0, most=100.0)
        if self.history is not None:
            self.history = check_int("history", self.history, least=1)
        self._norms: deque[float] = deque()
        self._sorted: list[float] = []  # the same

    def update(self, norm: float) -> float:
        """Take in the norm of a step.

        Parameters
        ----------
        norm : float
            Before clipping, at least 0. One that is not finite is forgotten.

        Returns
        -------
        float
            The limit of this step; ``inf`` before the first finite norm.

        Raises
        ------
        ValueError
            If `norm` is negative.
        """
        n = _norm(norm)
        if n < math.inf:
            if len(self._norms) == self.history:
                del self._sorted[bisect_left(self._sorted, self._norms.popleft())]
            self._norms.append(n)
            insort(self._sorted, n)
        if not self._sorted:
            return math.inf
        last = len(self._sorted) - 1
        position = self.percentile / 100 * last
        i = int(position)
        low, high = self._sorted[i], self._sorted[min(i + 1, last)]
        return low + (position - i) * (high - low)

    def state_dict(self) -> dict[str, Any]:
        """What the next limit depends on: the norms that count, oldest first, float64."""
        return {"norms": np.array(self._norms)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from where `state_dict` was taken, bit for bit; nothing is changed unless all of it fits.

        Raises
        ------
        KeyError
            If something is missing or unknown.
        TypeError, ValueError
            If something has another type or range, or there are more norms than `history`.
        """
        check_names("state_dict", state_dict, ("norms",))
        norms = _norms("norms", state_dict["norms"], self.history)
        self._norms, self._sorted = deque(norms), sorted(norms)


@dataclass(eq=False)
class FromFirst:
    r"""A fixed limit, chosen from the norms of the first steps: a factor times their median.

    The first `steps` norms are observed without clipping. From then on the limit is always the same: with a factor
    above 1 usual norms pass. The median stands for their average, since a single spike can move a mean at will.

    Parameters
    ----------
    steps : int
        How many norms to observe, at least 1.
    factor : float
        At least 0. With 0.5 to 10 times the average norm training still converged in the paper.

    Raises
    ------
    TypeError, ValueError
        If a number is out of range.

    Notes
    -----
    Pascanu, Mikolov, Bengio, "On the difficulty of training recurrent neural networks", 2013, section 3.2, which looks
    at the average norm over a sufficiently large number of updates.

    Examples
    --------
    >>> from gradcore.threshold import FromFirst
    >>> threshold = FromFirst(steps=3)
    >>> [threshold.update(norm) for norm in (1.0, 1.5, 80.0, 80.0, 1.0)]
    [inf, inf, inf, 3.0, 3.0]
    """

    steps: int = 100
    factor: float = 2.0

    def __post_init__(self) -> None:
        self.steps = check_int("steps", self.steps, least=1)
        self.factor = check_number("factor", self.factor, least=0.0)
        self._first: list[float] = []
        self._settle()

    def _settle(self) -> None:
        complete = len(self._first) == self.steps
        self._limit = self.factor * statistics.median(self._first) if complete else math.inf

    def update(self, norm: float) -> float:
        """Take in the norm of a step.

        Parameters
        ----------
        norm : float
            Before clipping, at least 0. One that is not finite is forgotten.

        Returns
        -------
        float
            The limit of this step; ``inf`` while the first norms are observed.

        Raises
        ------
        ValueError
            If `norm` is negative.
        """
        n, limit = _norm(norm), self._limit
        if n < math.inf and len(self._first) < self.steps:
            self._first.append(n)
            self._settle()
        return limit

    def state_dict(self) -> dict[str, Any]:
        """What the next limit depends on: the first norms, float64."""
        return {"first": np.array(self._first)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from where `state_dict` was taken, bit for bit; nothing is changed unless all of it fits.

        Raises
        ------
        KeyError
            If something is missing or unknown.
        TypeError, ValueError
            If something has another type or range, or there are more first norms than `steps`.
        """
        check_names("state_dict", state_dict, ("first",))
        self._first = _norms("first", state_dict["first"], self.steps)
        self._settle()


def _norm(value: float) -> float:
    """A norm that came; inf for NaN."""
    n = check_real("norm", value)
    return math.inf if math.isnan(n) else check_number("norm", n, least=0.0)


def _norms(name: str, value: Sequence[float], most: int | None) -> list[float]:
    """Norms of a state, not more than so many."""
    given = check_array(name, value, FLOAT64, ("n",))
    if not ((given >= 0) & (given < np.inf)).all():
        raise ValueError(f"{name}: expected finite numbers of at least 0")
    if most is not None and len(given) > most:
        raise ValueError(f"{name}: expected at most {most} norms, got {len(given)}")
    norms: list[float] = given.tolist()
    return norms
