"""Adam and its kin: AdamW and SPAM."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

from gradcore import _kernels
from gradcore._base.check import check_bool, check_int, check_number
from gradcore.optim.optimizer import Moment, Optimizer, not_negative
from gradcore.optim.parts import Part
from gradcore.optim.schedule import Schedule

__all__ = ["SPAM", "Adam", "AdamW"]


def check_betas(label: str, value: Any) -> tuple[float, float]:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(f"{label}: expected two numbers, got {value!r}")
    first, second = (check_number(label, beta, least=0.0) for beta in value)
    if not (first < 1 and second < 1):
        raise ValueError(f"{label}: expected two numbers of at least 0 and below 1, got {value}")
    return first, second


class Adaptive(Optimizer):
    """What Adam and its kin share: two moments, and all rates but the decay."""

    betas: tuple[float, float]
    eps: float
    _moments: ClassVar[Mapping[str, Moment]] = {"exp_avg": Moment("mean"), "exp_avg_sq": Moment("square")}
    _checks: ClassVar = {**Optimizer._checks, "betas": check_betas, "eps": not_negative}

    def _rates(self, part: Part, group: dict[str, Any], t: int) -> dict[str, float]:
        beta1, beta2 = group["betas"]
        return {
            "step": group["lr"] / (1.0 - beta1**t),
            "keep_mean": beta1,
            "take_mean": 1.0 - beta1,
            "keep_square": beta2,
            "take_square": 1.0 - beta2,
            "root": math.sqrt(1.0 - beta2**t),
            "eps": group["eps"],
        }


def decay(group: dict[str, Any], *, decoupled: bool) -> dict[str, float]:
    """Return the rates of a weight decay that multiplies the parameter, or else is a part of the gradient."""
    amount = group["weight_decay"]
    return {"shrink": 1.0 - group["lr"] * amount} if decoupled else {"l2": amount}


class Adam(Adaptive):
    r"""Adam: :math:`p \leftarrow p - \eta\, \hat m / (\sqrt{\hat v} + \epsilon)`.

    :math:`m \leftarrow \beta_1 m + (1 - \beta_1) g`, :math:`v \leftarrow \beta_2 v + (1 - \beta_2) g^2`,
    :math:`\hat m = m / (1 - \beta_1^t)`, :math:`\hat v = v / (1 - \beta_2^t)` [1]_.

    Parameters
    ----------
    params : layer, model, dict or iterable of layers or (param, grad) pairs, or iterable of groups
        The parameters to update in place and their gradients: arrays of float32 or float64. A group is a dict with any
        of the former as "params" and the hyperparameters that it does not share with the other groups.
    lr : float or schedule
        The learning rate :math:`\eta`, at least 0.
    betas : (float, float)
        The decays :math:`\beta_1, \beta_2` of the two averages, at least 0 and below 1.
    eps : float
        The number :math:`\epsilon`, at least 0.
    weight_decay : float
        The L2 decay: it times the parameter is added to the gradient. `AdamW` decouples it.
    amsgrad : bool
        Whether to use the largest :math:`v` so far instead of the current one [2]_.
    maximize : bool
        Whether to ascend instead of descend.
    l1 : float
        The L1 decay: it times the sign of the parameter is added to the gradient.
    max_consecutive_skips : int, optional
        The number of consecutive steps that may be skipped before one more raises a FloatingPointError.

    Raises
    ------
    TypeError, ValueError
        If parameters and gradients do not match, are read-only or share memory, or a number is out of range.

    Notes
    -----
    The second moment never overflows: an entry of the gradient beyond the square root of the dtype's largest number
    (1.8e19 in float32) counts as that root. A gradient whose square is subnormal (below 1e-18 in float32) adds nothing
    to it: with an :math:`\epsilon` below 1e-15 the steps differ from PyTorch's, but are never larger than
    :math:`\eta`.

    References
    ----------
    .. [1] D. P. Kingma, J. Ba, "Adam: a method for stochastic optimization", 2015, algorithm 1.
    .. [2] S. J. Reddi, S. Kale, S. Kumar, "On the convergence of Adam and beyond", 2018, algorithm 2.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore.optim.adam import Adam
    >>> weight, grad = np.array([1.0, 1.0]), np.array([3.0, -4.0])
    >>> opt = Adam([(weight, grad)], lr=0.1)
    >>> norm = opt.step()
    >>> weight.round(6)
    array([0.9, 1.1])
    """

    amsgrad: bool
    _rule = _kernels.ADAM
    _decoupled = False
    _moments: ClassVar = {**Adaptive._moments, "max_exp_avg_sq": Moment("extra", needs="amsgrad")}
    _checks: ClassVar = {**Adaptive._checks, "amsgrad": check_bool}

    def __init__(
        self,
        params: Any,
        lr: float | Schedule = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        l1: float = 0.0,
        max_consecutive_skips: int | None = None,
    ) -> None:
        self._start(params, locals())

    def _rates(self, part: Part, group: dict[str, Any], t: int) -> dict[str, float]:
        return super()._rates(part, group, t) | decay(group, decoupled=self._decoupled)


class AdamW(Adam):
    r"""Adam with decoupled decay: :math:`p \leftarrow (1 - \eta \lambda) p` before each step of `Adam` [1]_.

    Parameters
    ----------
    params : layer, model, dict or iterable of layers or (param, grad) pairs, or iterable of groups
        The parameters to update in place and their gradients: arrays of float32 or float64. A group is a dict with any
        of the former as "params" and the hyperparameters that it does not share with the other groups.
    lr : float or schedule
        The learning rate :math:`\eta`, at least 0.
    betas : (float, float)
        The decays :math:`\beta_1, \beta_2` of the two averages, at least 0 and below 1.
    eps : float
        The number :math:`\epsilon`, at least 0.
    weight_decay : float
        The decoupled decay :math:`\lambda`.
    amsgrad : bool
        Whether to use the largest :math:`v` so far instead of the current one.
    maximize : bool
        Whether to ascend instead of descend.
    l1 : float
        The L1 decay: it times the sign of the parameter is added to the gradient.
    max_consecutive_skips : int, optional
        The number of consecutive steps that may be skipped before one more raises a FloatingPointError.

    Raises
    ------
    TypeError, ValueError
        If parameters and gradients do not match, are read-only or share memory, or a number is out of range.

    References
    ----------
    .. [1] I. Loshchilov, F. Hutter, "Decoupled weight decay regularization", 2019, algorithm 2.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore.optim.adam import AdamW
    >>> weight, grad = np.array([1.0, 1.0]), np.array([0.0, -4.0])
    >>> opt = AdamW([(weight, grad)], lr=0.1, weight_decay=0.5)
    >>> norm = opt.step()
    >>> weight.round(6)
    array([0.95, 1.05])
    """

    _decoupled = True

    def __init__(
        self,
        params: Any,
        lr: float | Schedule = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        l1: float = 0.0,
        max_consecutive_skips: int | None = None,
    ) -> None:
        self._start(params, locals())


class SPAM(Adaptive):
    r"""Spike-aware Adam: clip single entries that spike, and reset the moments from time to time.

    Step t = 1, 2, ..., not counting skipped ones, does the following for each entry [1]_:

    1. If :math:`\Delta T` divides t, :math:`m = v = 0`.
    2. A spike, :math:`g^2 > \theta v` with :math:`v > 0`, is clipped to :math:`\mathrm{sign}(g) \sqrt{\theta v}`. Here
       v is the one before this step, without bias correction; g was clipped by `max_norm` and has its L1 decay.
    3. `Adam` with the decoupled decay of `AdamW` follows: :math:`p \leftarrow (1 - \eta \lambda) p - \eta s\, \hat m /
       (\sqrt{\hat v} + \epsilon)`. The bias correction in :math:`\hat m, \hat v` counts all steps and is not reset, so
       the smaller moments after a reset lead to larger steps.
    4. To counter them, s warms up along a cosine: :math:`s = 1 - 0.99\,(1 + \cos(\pi c / (N + 1))) / 2` in the N steps
       c = 0, 1, ... from a reset on. Before the first reset, and from c = N on, s = 1.

    Parameters
    ----------
    params : layer, model, dict or iterable of layers or (param, grad) pairs, or iterable of groups
        The parameters to update in place and their gradients: arrays of float32 or float64. A group is a dict with any
        of the former as "params" and the hyperparameters that it does not share with the other groups.
    lr : float or schedule
        The learning rate :math:`\eta`, at least 0.
    betas : (float, float)
        The decays :math:`\beta_1, \beta_2` of the two averages, at least 0 and below 1.
    eps : float
        The number :math:`\epsilon`, at least 0.
    weight_decay : float
        The decoupled decay :math:`\lambda`; the warm-up does not weaken it.
    threshold : float
        The threshold :math:`\theta`, at least 0; 0 and infinity clip nothing.
    reset_every : int
        The number of steps :math:`\Delta T` between resets, at least 1.
    warmup_steps : int
        The number N of warm-up steps after a reset.
    maximize : bool
        Whether to ascend instead of descend.
    l1 : float
        The L1 decay: it times the sign of the parameter is added to the gradient.
    max_consecutive_skips : int, optional
        The number of consecutive steps that may be skipped before one more raises a FloatingPointError.

    Attributes
    ----------
    n_spikes : int
        The number of entries that were clipped in all steps. Right after a reset v is small, and ordinary variation
        counts as spikes.

    Raises
    ------
    TypeError, ValueError
        If parameters and gradients do not match, are read-only or share memory, or a number is out of range.

    Notes
    -----
    Warm-up, bias correction and defaults are those of the authors' code. That code, however, clips nothing in the first
    20 steps and right after a reset, adds :math:`\epsilon` before the bias correction, and decays after the update.

    References
    ----------
    .. [1] T. Huang, Z. Zhu, G. Jin, L. Liu, Z. Wang, S. Liu, "SPAM: spike-aware Adam with momentum reset for stable LLM
       training", 2025.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore.optim.adam import SPAM
    >>> weight, grad = np.array([1.0, 1.0]), np.array([1.0, 1.0])
    >>> opt = SPAM([(weight, grad)], lr=0.1, threshold=5000.0)
    >>> norm = opt.step()
    >>> grad[0] = 1000.0
    >>> norm = opt.step()
    >>> opt.n_spikes, opt.state_dict()["moments"]["exp_avg"]["0"].round(3)
    (1, array([0.314, 0.19 ]))
    """

    threshold: float
    reset_every: int
    warmup_steps: int
    n_spikes: int
    _rule = _kernels.SPAM
    _checks: ClassVar = {
        **Adaptive._checks,
        "threshold": not_negative,
        "reset_every": partial(check_int, least=1),
        "warmup_steps": check_int,
    }
    _counters = (*Optimizer._counters, "n_spikes")

    def __init__(
        self,
        params: Any,
        lr: float | Schedule = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        threshold: float = 5000.0,
        reset_every: int = 500,
        warmup_steps: int = 150,
        *,
        maximize: bool = False,
        l1: float = 0.0,
        max_consecutive_skips: int | None = None,
    ) -> None:
        self._start(params, locals())

    def _calls(
        self, part: Part, group: dict[str, Any], update: _kernels.Update, gradient: tuple[float, float, float]
    ) -> list[Callable[..., Any]]:
        resets = (self.n_steps + 1) % group["reset_every"] == 0
        moments = [a for arrays in part.moments.values() for a in arrays] if resets else []
        return [*(partial(a.fill, 0) for a in moments), partial(update.run, *gradient, vars(self))]

    def _rates(self, part: Part, group: dict[str, Any], t: int) -> dict[str, float]:
        since, N = t % group["reset_every"], group["warmup_steps"]
        warming = t >= group["reset_every"] and since < N
        scale = 1.0 - 0.99 * (1.0 + math.cos(math.pi * since / (N + 1))) / 2.0 if warming else 1.0
        return super()._rates(part, group | {"lr": scale * group["lr"]}, t) | {
            **decay(group, decoupled=True),
            "threshold": group["threshold"],
        }
