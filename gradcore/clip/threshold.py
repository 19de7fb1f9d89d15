"""Adaptive clip thresholds: limits that follow the norms of the gradient.

Pass one as `max_norm`. At each step it is told the norm before clipping and returns the limit for the same step. Norms
that are not finite enter no statistic.
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

from gradcore._base.check import FLOAT64, check_array, check_choice, check_int, check_names, check_number, check_real

__all__ = ["AutoClip", "FromFirst", "Threshold", "ZClip"]


class Threshold(Protocol):  # numpydoc ignore=PR01
    """Protocol of adaptive clip thresholds: an object that maps the norm of each step to the limit of that step.

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
        """Record the norm of a step and return its limit.

        Parameters
        ----------
        norm : float
            The norm of the step's gradient before clipping.

        Returns
        -------
        float
            The limit of this step; ``inf`` to not clip.

        Examples
        --------
        >>> from gradcore.clip.threshold import FromFirst
        >>> FromFirst(steps=1).update(3.0)
        inf
        """


@dataclass(eq=False)
class ZClip:
    r"""Clip norms that stand out from a running mean and deviation: ZClip.

    The mean :math:`\mu` and the deviation :math:`\sigma` start as those of the first `warmup_steps` norms. After that
    each norm n has :math:`z = (n - \mu) / (\sigma + \epsilon)`. If :math:`z > \zeta`, the limit is

    - :math:`n^* = (\mu + \zeta \sigma / (z / \zeta))\, f` with "adaptive_scaling",
    - :math:`n^* = \mu` with "mean";

    otherwise there is none. In mode "percentile" the limit is always :math:`\mu + \zeta \sigma`. The clipped norm,
    again called n, then updates :math:`\mu \leftarrow \alpha \mu + (1 - \alpha) n` and, with the new :math:`\mu`,
    :math:`\sigma^2 \leftarrow \alpha \sigma^2 + (1 - \alpha) (n - \mu)^2` [1]_.

    Parameters
    ----------
    alpha : float
        The decay :math:`\alpha` of the running averages, from 0 to 1.
    z_thresh : float
        The threshold :math:`\zeta`, above 0.
    clip_option : {"adaptive_scaling", "mean"}
        The limit in mode "zscore".
    clip_factor : float
        The factor f of "adaptive_scaling", at least 0. Below 1 limits can fall below the mean and pull it down step by
        step to 0, where nothing is learned. This was seen with a `z_thresh` of 2 or less and a small `alpha`.
    max_grad_norm : float, optional
        An upper bound on all limits, also in the first steps; the statistics ignore it.
    eps : float
        The number :math:`\epsilon`, above 0.
    warmup_steps : int
        The number of norms to observe first, at least 1.
    mode : {"zscore", "percentile"}
        Whether to limit only norms that stand out, or to always use the same number of deviations.

    Raises
    ------
    TypeError, ValueError
        If a number is out of range, or an option is unknown.

    Notes
    -----
    The defaults are those of the authors' description. :math:`\sigma` is stored instead of its square, which could
    overflow.

    References
    ----------
    .. [1] A. Kumar, L. Owen, N. R. Chowdhury, F. Güra, "ZClip: adaptive spike mitigation for LLM pre-training", 2025.

    Examples
    --------
    >>> from gradcore.clip.threshold import ZClip
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
        self._mean = self._deviation = 0.0  # unused until all of these have been observed

    def update(self, norm: float) -> float:
        """Record the norm of a step and return its limit.

        Parameters
        ----------
        norm : float
            The norm before clipping, at least 0. NaN counts as infinity, and neither is recorded.

        Returns
        -------
        float
            The limit of this step; ``inf`` for none.

        Raises
        ------
        ValueError
            If `norm` is negative.

        Examples
        --------
        >>> from gradcore.clip.threshold import ZClip
        >>> ZClip(warmup_steps=2).update(1.0)
        inf
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
        """Return the limit for this norm, and whether the norm stands out."""
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
        """Return the state on which the next limit depends, as a copy.

        Returns
        -------
        dict
            The ``first`` norms, (n,) float64, and the running ``mean`` and ``deviation``.

        Examples
        --------
        >>> from gradcore.clip.threshold import ZClip
        >>> threshold = ZClip(warmup_steps=2)
        >>> limit = threshold.update(3.0)
        >>> threshold.state_dict()
        {'first': array([3.]), 'mean': 0.0, 'deviation': 0.0}
        """
        return {"first": np.array(self._first), "mean": self._mean, "deviation": self._deviation}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore a state bit for bit; if any of it is invalid, nothing is changed.

        Parameters
        ----------
        state_dict : mapping
            What `state_dict` returned.

        Raises
        ------
        KeyError
            If an entry is missing or unknown.
        TypeError, ValueError
            If an entry has another type or is out of range, or there are more first norms than `warmup_steps`.

        Examples
        --------
        >>> from gradcore.clip.threshold import ZClip
        >>> threshold, resumed = ZClip(warmup_steps=2), ZClip(warmup_steps=2)
        >>> limit = threshold.update(3.0)
        >>> resumed.load_state_dict(threshold.state_dict())
        >>> resumed.update(5.0) == threshold.update(5.0)
        True
        """
        check_names("state_dict", state_dict, ("first", "mean", "deviation"))
        first = _norms("first", state_dict["first"], self.warmup_steps)
        mean, deviation = (check_number(name, state_dict[name], least=0.0) for name in ("mean", "deviation"))
        self._first, self._mean, self._deviation = first, mean, deviation


@dataclass(eq=False)
class AutoClip:
    r"""Clip to a percentile of all norms so far, including the current one: AutoClip [1]_.

    Parameters
    ----------
    percentile : float
        The percentile, from 0 to 100, interpolated linearly as in `numpy.percentile`. If the norms neither grow nor
        shrink, a fraction 1 - percentile / 100 of them is clipped: most of them by default.
    history : int, optional
        The number of most recent norms that count, at least 1; None for all.

    Raises
    ------
    TypeError, ValueError
        If a number is out of range.

    References
    ----------
    .. [1] P. Seetharaman, G. Wichern, B. Pardo, J. Le Roux, "AutoClip: adaptive gradient clipping for source
       separation networks", 2020.

    Examples
    --------
    >>> from gradcore.clip.threshold import AutoClip
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
        self._sorted: list[float] = []  # the same norms

    def update(self, norm: float) -> float:
        """Record the norm of a step and return its limit.

        Parameters
        ----------
        norm : float
            The norm before clipping, at least 0. NaN and infinity are not recorded.

        Returns
        -------
        float
            The limit of this step; ``inf`` before the first finite norm.

        Raises
        ------
        ValueError
            If `norm` is negative.

        Examples
        --------
        >>> from gradcore.clip.threshold import AutoClip
        >>> AutoClip(percentile=50.0).update(1.0)
        1.0
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
        """Return the state on which the next limit depends, as a copy.

        Returns
        -------
        dict
            The ``norms`` that count, oldest first, (n,) float64.

        Examples
        --------
        >>> from gradcore.clip.threshold import AutoClip
        >>> threshold = AutoClip()
        >>> limit = threshold.update(3.0)
        >>> threshold.state_dict()
        {'norms': array([3.])}
        """
        return {"norms": np.array(self._norms)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore a state bit for bit; if any of it is invalid, nothing is changed.

        Parameters
        ----------
        state_dict : mapping
            What `state_dict` returned.

        Raises
        ------
        KeyError
            If an entry is missing or unknown.
        TypeError, ValueError
            If an entry has another type or is out of range, or there are more norms than `history`.

        Examples
        --------
        >>> from gradcore.clip.threshold import AutoClip
        >>> threshold, resumed = AutoClip(), AutoClip()
        >>> limit = threshold.update(3.0)
        >>> resumed.load_state_dict(threshold.state_dict())
        >>> resumed.update(5.0) == threshold.update(5.0)
        True
        """
        check_names("state_dict", state_dict, ("norms",))
        norms = _norms("norms", state_dict["norms"], self.history)
        self._norms, self._sorted = deque(norms), sorted(norms)


@dataclass(eq=False)
class FromFirst:
    r"""Clip to a fixed limit, a multiple of the median of the first norms.

    The first `steps` norms are observed without clipping; after that the limit stays the same. With a factor above 1
    typical norms pass. The paper [1]_ uses the average norm; a single spike can move the average far, but not the
    median.

    Parameters
    ----------
    steps : int
        The number of norms to observe, at least 1.
    factor : float
        The multiple, at least 0. In the paper training still converged with 0.5 to 10 times the average norm.

    Raises
    ------
    TypeError, ValueError
        If a number is out of range.

    References
    ----------
    .. [1] R. Pascanu, T. Mikolov, Y. Bengio, "On the difficulty of training recurrent neural networks", 2013, section
       3.2.

    Examples
    --------
    >>> from gradcore.clip.threshold import FromFirst
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
        """Record the norm of a step and return its limit.

        Parameters
        ----------
        norm : float
            The norm before clipping, at least 0. NaN and infinity are not recorded.

        Returns
        -------
        float
            The limit of this step; ``inf`` while the first norms are observed.

        Raises
        ------
        ValueError
            If `norm` is negative.

        Examples
        --------
        >>> from gradcore.clip.threshold import FromFirst
        >>> FromFirst(steps=2).update(1.0)
        inf
        """
        n, limit = _norm(norm), self._limit
        if n < math.inf and len(self._first) < self.steps:
            self._first.append(n)
            self._settle()
        return limit

    def state_dict(self) -> dict[str, Any]:
        """Return the state on which the next limit depends, as a copy.

        Returns
        -------
        dict
            The ``first`` norms, (n,) float64.

        Examples
        --------
        >>> from gradcore.clip.threshold import FromFirst
        >>> threshold = FromFirst(steps=2)
        >>> limit = threshold.update(3.0)
        >>> threshold.state_dict()
        {'first': array([3.])}
        """
        return {"first": np.array(self._first)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore a state bit for bit; if any of it is invalid, nothing is changed.

        Parameters
        ----------
        state_dict : mapping
            What `state_dict` returned.

        Raises
        ------
        KeyError
            If an entry is missing or unknown.
        TypeError, ValueError
            If an entry has another type or is out of range, or there are more first norms than `steps`.

        Examples
        --------
        >>> from gradcore.clip.threshold import FromFirst
        >>> threshold, resumed = FromFirst(steps=2), FromFirst(steps=2)
        >>> limit = threshold.update(3.0)
        >>> resumed.load_state_dict(threshold.state_dict())
        >>> resumed.update(5.0) == threshold.update(5.0)
        True
        """
        check_names("state_dict", state_dict, ("first",))
        self._first = _norms("first", state_dict["first"], self.steps)
        self._settle()


def _norm(value: float) -> float:
    """Check a norm; NaN becomes inf."""
    n = check_real("norm", value)
    return math.inf if math.isnan(n) else check_number("norm", n, least=0.0)


def _norms(name: str, value: Sequence[float], most: int | None) -> list[float]:
    """Check the norms of a state, at most `most` of them."""
    given = check_array(name, value, FLOAT64, ("n",))
    if not ((given >= 0) & (given < np.inf)).all():
        raise ValueError(f"{name}: expected finite numbers of at least 0")
    if most is not None and len(given) > most:
        raise ValueError(f"{name}: expected at most {most} norms, got {len(given)}")
    norms: list[float] = given.tolist()
    return norms
