"""RAdam: Adam whose first steps are rectified."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from gradcore import _kernels
from gradcore._base.check import check_bool
from gradcore.optim.adam import Adaptive, decay
from gradcore.optim.parts import Part
from gradcore.optim.schedule import Schedule

__all__ = ["RAdam"]


class RAdam(Adaptive):
    r"""Rectified Adam: smaller steps while the second moment is uncertain, in place of a warm-up [1]_.

    With :math:`m, v` as in `Adam`, :math:`\rho_\infty = 2 / (1 - \beta_2) - 1` and :math:`\rho = \rho_\infty - 2 t
    \beta_2^t / (1 - \beta_2^t)`, step t is :math:`p \leftarrow p - \eta r\, \hat m \sqrt{1 - \beta_2^t} / (\sqrt v +
    \epsilon)` where :math:`\rho > 5`, with :math:`r^2 = \frac{(\rho - 4)(\rho - 2)\rho_\infty}{(\rho_\infty - 4)
    (\rho_\infty - 2)\rho}`, and before that :math:`p \leftarrow p - \eta\, \hat m`.

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
        The L2 decay :math:`\lambda`: it times the parameter is added to the gradient.
    decoupled_weight_decay : bool
        Whether the decay is that of `AdamW`, which multiplies the parameter by :math:`1 - \eta \lambda`.
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
    As in PyTorch, :math:`\epsilon` is added before the bias correction, and the steps before :math:`\rho > 5`, of which
    there are five with the default :math:`\beta_2`, are not divided by the size of the gradient. Second moments at the
    ends of the range are treated as in `Adam`.

    References
    ----------
    .. [1] L. Liu, H. Jiang, P. He, W. Chen, X. Liu, J. Gao, J. Han, "On the variance of the adaptive learning rate and
       beyond", 2020, algorithm 2.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore.optim.radam import RAdam
    >>> weight, grad = np.array([1.0, 1.0]), np.array([3.0, -4.0])
    >>> opt = RAdam([(weight, grad)], lr=0.1)
    >>> norm = opt.step()
    >>> weight.round(6)
    array([0.7, 1.4])
    """

    decoupled_weight_decay: bool
    _rule = _kernels.ADAM
    _checks: ClassVar = {**Adaptive._checks, "decoupled_weight_decay": check_bool}

    def __init__(
        self,
        params: Any,
        lr: float | Schedule = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
        *,
        maximize: bool = False,
        l1: float = 0.0,
        max_consecutive_skips: int | None = None,
    ) -> None:
        self._start(params, locals())

    def _rates(self, part: Part, group: dict[str, Any], t: int) -> dict[str, float]:
        beta2 = group["betas"][1]
        correction, most = 1.0 - beta2**t, 2.0 / (1.0 - beta2) - 1.0
        rho = most - 2.0 * t * beta2**t / correction
        rates = super()._rates(part, group, t) | decay(group, decoupled=group["decoupled_weight_decay"])
        if rho <= 5.0:
            return rates | {"root": math.inf, "eps": 1.0}  # v / inf + 1: m alone
        rectified = (rho - 4.0) * (rho - 2.0) * most / ((most - 4.0) * (most - 2.0) * rho)
        return rates | {"root": 1.0, "step": rates["step"] * math.sqrt(rectified * correction)}
