"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from gradcore import _kernels
from gradcore._base.check import check_bool, check_number
from gradcore.optim.optimizer import Moment, Optimizer, not_negative
from gradcore.optim.parts import Part
from gradcore.optim.schedule import Schedule

__all__ = ["SGD"]


class SGD(Optimizer):
    r"""Stochastic gradient descent: :math:`p \leftarrow p - \eta\, b`, :math:`b \leftarrow \mu b + (1 - \tau) g`.

    The first step with momentum sets :math:`b = g`. With `nesterov`, :math:`g + \mu b` replaces :math:`b`; without
    momentum, :math:`g` does [1]_.

    Parameters
    ----------
    params : layer, model, dict or iterable of layers or (param, grad) pairs, or iterable of groups
        The parameters to update in place and their gradients: arrays of float32 or float64. A group is a dict with any
        of the former as "params" and the hyperparameters that it does not share with the other groups.
    lr : float or schedule
        The learning rate :math:`\eta`, at least 0.
    momentum, dampening : float
        The momentum :math:`\mu`, at least 0, and its dampening :math:`\tau`.
    weight_decay : float
        The L2 decay: it times the parameter is added to the gradient.
    nesterov : bool
        Whether to use Nesterov momentum; this needs a momentum above 0 and no dampening.
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
    .. [1] I. Sutskever, J. Martens, G. Dahl, G. Hinton, "On the importance of initialization and momentum in deep
       learning", 2013.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore.optim.sgd import SGD
    >>> weight, grad = np.array([1.0, 1.0]), np.array([3.0, 4.0])
    >>> opt = SGD({"weight": (weight, grad)}, lr=0.5)
    >>> norm = opt.step(max_norm=1.0)
    >>> norm, norm.clipped
    (5.0, True)
    >>> weight
    array([0.7, 0.6])

    Two groups, one of them with a learning rate of its own:

    >>> bias, bias_grad = np.array([1.0]), np.array([2.0])
    >>> opt = SGD([{"params": {"weight": (weight, grad)}}, {"params": {"bias": (bias, bias_grad)}, "lr": 0.1}], lr=0.5)
    >>> opt.step().per_array
    {'0.weight': 5.0, '1.bias': 2.0}
    >>> bias
    array([0.8])
    >>> opt.groups[1].lr = 0.05
    """

    momentum: float
    dampening: float
    nesterov: bool
    _rule = _kernels.SGD
    _moments: ClassVar = {"momentum_buffer": Moment("mean", needs="momentum")}
    _checks: ClassVar = {
        **Optimizer._checks,
        "momentum": not_negative,
        "dampening": check_number,
        "nesterov": check_bool,
    }

    def __init__(
        self,
        params: Any,
        lr: float | Schedule = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        l1: float = 0.0,
        max_consecutive_skips: int | None = None,
    ) -> None:
        self._start(params, locals())

    def _checked_together(self, hyperparameters: Mapping[str, Any], where: str) -> dict[str, Any]:
        checked = super()._checked_together(hyperparameters, where)
        if checked["nesterov"] and not (checked["momentum"] > 0 and checked["dampening"] == 0):
            raise ValueError(f"{where}nesterov: needs a momentum above 0 and no dampening")
        return checked

    def _rates(self, part: Part, group: dict[str, Any], t: int) -> dict[str, float]:
        first = "momentum_buffer" not in part.moments
        return {
            "step": group["lr"],
            "l2": group["weight_decay"],
            "keep_mean": 0.0 if first else group["momentum"],
            "take_mean": 1.0 if first else 1.0 - group["dampening"],
            "now": 1.0 if group["nesterov"] else 0.0,
            "past": group["momentum"] if group["nesterov"] else 1.0,
        }
