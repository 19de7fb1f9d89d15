"""RMSprop."""

from __future__ import annotations

from typing import Any, ClassVar

from gradcore import _kernels
from gradcore._base.check import check_bool
from gradcore.optim.optimizer import Moment, Optimizer, not_negative
from gradcore.optim.parts import Part
from gradcore.optim.schedule import Schedule

__all__ = ["RMSprop"]


class RMSprop(Optimizer):
    r"""RMSprop: :math:`p \leftarrow p - \eta\, g / (\sqrt v + \epsilon)`.

    :math:`v \leftarrow \alpha v + (1 - \alpha) g^2` [1]_.

    Parameters
    ----------
    params : layer, model, dict or iterable of layers or (param, grad) pairs, or iterable of groups
        The parameters to update in place and their gradients: arrays of float32 or float64. A group is a dict with any
        of the former as "params" and the hyperparameters that it does not share with the other groups.
    lr : float or schedule
        The learning rate :math:`\eta`, at least 0.
    alpha : float
        The decay :math:`\alpha` of the average, at least 0.
    eps : float
        The number :math:`\epsilon`, at least 0.
    weight_decay : float
        The L2 decay: it times the parameter is added to the gradient.
    momentum : float
        The momentum :math:`\mu`, at least 0: the update becomes :math:`b \leftarrow \mu b + g / (\sqrt v + \epsilon)`.
    centered : bool
        Whether to use :math:`v - m^2` instead of :math:`v`, with :math:`m \leftarrow \alpha m + (1 - \alpha) g` [2]_.
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
    .. [1] T. Tieleman, G. Hinton, "Lecture 6.5: rmsprop", 2012.
    .. [2] A. Graves, "Generating sequences with recurrent neural networks", 2013, equations 38 to 45.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore.optim.rmsprop import RMSprop
    >>> weight, grad = np.array([1.0, 1.0]), np.array([3.0, -4.0])
    >>> opt = RMSprop([(weight, grad)], lr=0.1)
    >>> norm = opt.step()
    >>> weight.round(6)
    array([0., 2.])
    """

    alpha: float
    eps: float
    momentum: float
    centered: bool
    _rule = _kernels.RMSPROP
    _moments: ClassVar = {
        "square_avg": Moment("square"),
        "grad_avg": Moment("mean", needs="centered"),
        "momentum_buffer": Moment("extra", needs="momentum"),
    }
    _checks: ClassVar = {
        **Optimizer._checks,
        "alpha": not_negative,
        "eps": not_negative,
        "momentum": not_negative,
        "centered": check_bool,
    }

    def __init__(
        self,
        params: Any,
        lr: float | Schedule = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        *,
        maximize: bool = False,
        l1: float = 0.0,
        max_consecutive_skips: int | None = None,
    ) -> None:
        self._start(params, locals())

    def _rates(self, part: Part, group: dict[str, Any], t: int) -> dict[str, float]:
        return {
            "step": group["lr"],
            "l2": group["weight_decay"],
            "keep_mean": group["alpha"],
            "take_mean": 1.0 - group["alpha"],
            "keep_square": group["alpha"],
            "take_square": 1.0 - group["alpha"],
            "momentum": group["momentum"],
            "eps": group["eps"],
        }
