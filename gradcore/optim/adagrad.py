"""Adagrad."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from gradcore import _kernels
from gradcore._base.check import Array
from gradcore.optim.optimizer import Moment, Optimizer, not_negative
from gradcore.optim.parts import Part
from gradcore.optim.schedule import Schedule

__all__ = ["Adagrad"]


class Adagrad(Optimizer):
    r"""Adagrad: :math:`p \leftarrow p - \eta_t\, g / (\sqrt v + \epsilon)`, :math:`v \leftarrow v + g^2`.

    :math:`\eta_t = \eta / (1 + (t - 1) \kappa)` [1]_.

    Parameters
    ----------
    params : layer, model, dict or iterable of layers or (param, grad) pairs, or iterable of groups
        The parameters to update in place and their gradients: arrays of float32 or float64. A group is a dict with any
        of the former as "params" and the hyperparameters that it does not share with the other groups.
    lr : float or schedule
        The learning rate :math:`\eta`, at least 0.
    lr_decay : float
        The decay :math:`\kappa` of the learning rate, at least 0.
    weight_decay : float
        The L2 decay: it times the parameter is added to the gradient.
    initial_accumulator_value : float
        The value of :math:`v` before the first step, at least 0; it cannot be changed after construction.
    eps : float
        The number :math:`\epsilon`, at least 0.
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
    Second moments at the ends of the range are treated as in `Adam`.

    References
    ----------
    .. [1] J. Duchi, E. Hazan, Y. Singer, "Adaptive subgradient methods for online learning and stochastic
       optimization", 2011.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore.optim.adagrad import Adagrad
    >>> weight, grad = np.array([1.0, 1.0]), np.array([3.0, -4.0])
    >>> opt = Adagrad([(weight, grad)], lr=0.1)
    >>> norm = opt.step()
    >>> weight.round(6)
    array([0.9, 1.1])
    """

    lr_decay: float
    initial_accumulator_value: float
    eps: float
    _rule = _kernels.ADAGRAD
    _moments: ClassVar = {"sum": Moment("square")}
    _checks: ClassVar = {
        **Optimizer._checks,
        "lr_decay": not_negative,
        "initial_accumulator_value": not_negative,
        "eps": not_negative,
    }

    def __init__(
        self,
        params: Any,
        lr: float | Schedule = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        *,
        maximize: bool = False,
        l1: float = 0.0,
        max_consecutive_skips: int | None = None,
    ) -> None:
        self._start(params, locals())
        members = self._members()
        for i, part in enumerate(self._parts):  # now, as in PyTorch: the value is not used later
            part.moments["sum"] = self._new_moments(part.group, members.params[members.parts[i]])

    def _change(self, index: int | None, name: str, value: Any) -> None:
        if name == "initial_accumulator_value":
            raise AttributeError(f"{name}: cannot be changed after construction, when the sums start from it")
        super()._change(index, name, value)

    def _new_moments(self, group: dict[str, Any], params: list[Array]) -> list[Array]:
        start = group["initial_accumulator_value"]
        for p in params:
            if start > np.finfo(p.dtype).max.item():
                raise ValueError(
                    f"initial_accumulator_value: expected a number in the range of {p.dtype}, got {start:g}"
                )
        return [np.full(p.shape, start, p.dtype) for p in params]

    def _rates(self, part: Part, group: dict[str, Any], t: int) -> dict[str, float]:
        return {
            "step": group["lr"] / (1.0 + (t - 1) * group["lr_decay"]),
            "l2": group["weight_decay"],
            "eps": group["eps"],
        }
