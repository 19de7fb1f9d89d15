"""Lion: the sign of a momentum."""

from __future__ import annotations

from typing import Any, ClassVar

from gradcore import _kernels
from gradcore.optim.adam import check_betas
from gradcore.optim.optimizer import Moment, Optimizer
from gradcore.optim.parts import Part
from gradcore.optim.schedule import Schedule

__all__ = ["Lion"]


class Lion(Optimizer):
    r"""Lion: :math:`p \leftarrow (1 - \eta \lambda)\, p - \eta\, \mathrm{sign}(\beta_1 m + (1 - \beta_1) g)` [1]_.

    Then :math:`m \leftarrow \beta_2 m + (1 - \beta_2) g`. Every entry moves by :math:`\eta`, whatever the size of its
    gradient, so that rates 3 to 10 times smaller than those of `AdamW` fit, with decays as many times larger.

    Parameters
    ----------
    params : layer, model, dict or iterable of layers or (param, grad) pairs, or iterable of groups
        The parameters to update in place and their gradients: arrays of float32 or float64. A group is a dict with any
        of the former as "params" and the hyperparameters that it does not share with the other groups.
    lr : float or schedule
        The learning rate :math:`\eta`, at least 0.
    betas : (float, float)
        The decays :math:`\beta_1, \beta_2` of the momentum in the step and from step to step, at least 0 and below 1.
    weight_decay : float
        The decoupled decay :math:`\lambda`.
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
    It keeps one moment instead of two, and has no :math:`\epsilon`. An entry of the gradient beyond the square root of
    the dtype's largest number counts as that root, as in `Adam`; a subnormal one (below 1e-38 in float32) counts as 0,
    and moves nothing.

    References
    ----------
    .. [1] X. Chen et al., "Symbolic discovery of optimization algorithms", 2023, algorithm 2.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore.optim.lion import Lion
    >>> weight, grad = np.array([1.0, 1.0]), np.array([0.0, -4.0])
    >>> opt = Lion([(weight, grad)], lr=0.1)
    >>> norm = opt.step()
    >>> weight
    array([1. , 1.1])
    """

    betas: tuple[float, float]
    _rule = _kernels.LION
    _moments: ClassVar = {"exp_avg": Moment("mean")}
    _checks: ClassVar = {**Optimizer._checks, "betas": check_betas}

    def __init__(
        self,
        params: Any,
        lr: float | Schedule = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        l1: float = 0.0,
        max_consecutive_skips: int | None = None,
    ) -> None:
        self._start(params, locals())

    def _rates(self, part: Part, group: dict[str, Any], t: int) -> dict[str, float]:
        beta1, beta2 = group["betas"]
        return {
            "step": group["lr"],
            "shrink": 1.0 - group["lr"] * group["weight_decay"],
            "now": 1.0 - beta1,
            "past": beta1,
            "keep_mean": beta2,
            "take_mean": 1.0 - beta2,
        }
