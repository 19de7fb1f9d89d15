"""NAdam: Adam with Nesterov momentum."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import numpy as np

from gradcore import _kernels
from gradcore._base.check import check_bool
from gradcore.optim.adam import Adaptive, decay
from gradcore.optim.optimizer import Moment, not_negative
from gradcore.optim.parts import Part
from gradcore.optim.schedule import Schedule

__all__ = ["NAdam"]


class NAdam(Adaptive):
    r"""Adam with Nesterov momentum: the step looks ahead to the momentum of the next one [1]_.

    :math:`p \leftarrow p - \eta \left(\frac{1 - \mu_t}{1 - \prod_{i \le t} \mu_i}\, g + \frac{\mu_{t+1}}{1 - \prod_{i
    \le t+1} \mu_i}\, m\right) / (\sqrt{\hat v} + \epsilon)` with :math:`\mu_t = \beta_1 (1 - 0.96^{t \psi} / 2)`, and
    :math:`m, \hat v` as in `Adam`.

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
    momentum_decay : float
        The number :math:`\psi`, at least 0: the larger, the sooner :math:`\mu_t` rises to :math:`\beta_1`.
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
    Second moments at the ends of the range are treated as in `Adam`.

    References
    ----------
    .. [1] T. Dozat, "Incorporating Nesterov momentum into Adam", 2016, algorithm 2.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore.optim.nadam import NAdam
    >>> weight, grad = np.array([1.0, 1.0]), np.array([3.0, -4.0])
    >>> opt = NAdam([(weight, grad)], lr=0.1)
    >>> norm = opt.step()
    >>> weight.round(6)
    array([0.894355, 1.105645])
    """

    momentum_decay: float
    decoupled_weight_decay: bool
    _rule = _kernels.NADAM
    _moments: ClassVar = {**Adaptive._moments, "mu_product": Moment(None)}
    _checks: ClassVar = {
        **Adaptive._checks,
        "momentum_decay": not_negative,
        "decoupled_weight_decay": check_bool,
    }

    def __init__(
        self,
        params: Any,
        lr: float | Schedule = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum_decay: float = 4e-3,
        decoupled_weight_decay: bool = False,
        *,
        maximize: bool = False,
        l1: float = 0.0,
        max_consecutive_skips: int | None = None,
    ) -> None:
        self._start(params, locals())

    def _rates(self, part: Part, group: dict[str, Any], t: int) -> dict[str, float]:
        mu, following = _momentum(group, t), _momentum(group, t + 1)
        product = _product(part) * mu
        return super()._rates(part, group, t) | {
            "step": group["lr"],
            "now": (1.0 - mu) / (1.0 - product),
            "past": following / (1.0 - product * following),
            **decay(group, decoupled=group["decoupled_weight_decay"]),
        }

    def _calls(
        self, part: Part, group: dict[str, Any], update: _kernels.Update, gradient: tuple[float, float, float]
    ) -> list[Callable[..., Any]]:
        product = _product(part) * _momentum(group, self.n_steps + 1)
        products = [np.array(product) for _ in range(update.n)]
        return [*super()._calls(part, group, update, gradient), partial(part.moments.update, mu_product=products)]


def _momentum(group: dict[str, Any], t: int) -> float:
    return float(group["betas"][0] * (1.0 - 0.5 * 0.96 ** (t * group["momentum_decay"])))


def _product(part: Part) -> float:
    """Return the product of all momenta so far, which is the same for every parameter of a group."""
    products = part.moments.get("mu_product")
    return float(products[0]) if products else 1.0
