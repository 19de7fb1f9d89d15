"""Loss scaling: multiply the loss so that small gradients do not underflow, and divide them again in the step."""

from __future__ import annotations

import bisect
import math
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from gradcore import _kernels
from gradcore._base.check import (
    FLOAT16,
    FLOAT32,
    FLOAT64,
    Array,
    check_bool,
    check_int,
    check_names,
    check_number,
    check_real,
    refuse_mask,
)
from gradcore._base.hook import Hook, TrainingStep
from gradcore.clip.gradients import Gradients, GradNorm
from gradcore.clip.threshold import Threshold
from gradcore.optim.optimizer import Optimizer
from gradcore.optim.schedule import Schedule

__all__ = ["GradScaler"]


class GradScaler(Hook):
    """Scale the loss as far as the gradients allow, with PyTorch's names, defaults and rule [1]_.

    Pass it to `fit` or `training_step` as one of the `hooks`. In a loop of your own, each iteration calls ``scale``,
    ``step`` and ``update``, in this order, and `unscale_` before `step` to inspect or clip the gradients. A step with
    gradients that are not finite is skipped, and the scale is multiplied by `backoff_factor`. After `growth_interval`
    consecutive good steps it is multiplied by `growth_factor`.

    Parameters
    ----------
    init_scale : float
        The scale of the first iteration, positive.
    growth_factor : float
        The factor after good steps, above 1.
    backoff_factor : float
        The factor after a skipped step, between 0 and 1.
    growth_interval : int
        The number of consecutive good steps before the scale grows, at least 1.
    enabled : bool
        Whether to scale at all; if not, `step` is the optimizer's.

    Raises
    ------
    TypeError, ValueError
        If a number is out of range.

    Notes
    -----
    As in ``torch.amp.GradScaler``, the scale is a float32 and stops growing before it would be infinite. Here it does
    not become 0 either.

    References
    ----------
    .. [1] P. Micikevicius et al., "Mixed precision training", 2018, section 3.2.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore import GradScaler, optim
    >>> weight, grad = np.array([1.0, 1.0]), np.zeros(2)
    >>> opt = optim.SGD([(weight, grad)], lr=0.5)
    >>> scaler = GradScaler(init_scale=1024.0)
    >>> grad[...] = scaler.scale(np.array([3.0, 4.0]))  # in place of a backward pass
    >>> norm = scaler.step(opt, max_norm=1.0)
    >>> norm, weight
    (5.0, array([0.7, 0.6]))
    >>> scaler.update()
    >>> grad[0] = np.inf
    >>> scaler.step(opt).skipped
    True
    >>> scaler.update()
    >>> scaler.get_scale()
    512.0
    """

    def __init__(
        self,
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        enabled: bool = True,
    ) -> None:
        self._enabled = check_bool("enabled", enabled)
        self._set("init_scale", init_scale, growth_factor, backoff_factor, growth_interval, 0)
        self._forget()

    def _set(self, name: str, scale: Any, growth: Any, backoff: Any, interval: Any, good_steps: Any) -> None:
        value = _float32(check_number(name, scale, above=0.0))
        if not 0 < value < np.inf:
            raise ValueError(f"{name}: expected a positive number in the range of float32, got {scale}")
        growth = check_number("growth_factor", growth, above=1.0, most=sys.float_info.max)
        backoff = check_number("backoff_factor", backoff, above=0.0, most=math.nextafter(1.0, 0.0))
        interval, good_steps = check_int("growth_interval", interval, least=1), check_int("_growth_tracker", good_steps)
        self._scale, self._growth_factor, self._backoff_factor = value, growth, backoff
        self._growth_interval, self._growth_tracker = interval, good_steps

    def _forget(self) -> None:
        """Forget what happened since the last update."""
        self._unscaled: list[tuple[list[Array], GradNorm]] = []
        self._stepped: list[list[Array]] = []
        self._found: list[bool] = []  # for each pass over gradients, whether an entry was not finite

    def scale(self, value: Any) -> Any:
        """Multiply the loss, or the gradient that starts the backward pass, by the scale.

        Parameters
        ----------
        value : float or array
            The loss or the gradient; an array of float16, float32 or float64 is not changed.

        Returns
        -------
        float or array
            The product, in the dtype of the array. It is infinite if the dtype cannot represent it; the step will then
            be skipped.

        Examples
        --------
        >>> from gradcore import GradScaler
        >>> GradScaler(init_scale=8.0).scale(0.5)
        4.0
        """
        if isinstance(value, np.ndarray):
            refuse_mask("value", value)
            if value.dtype not in (FLOAT16, FLOAT32, FLOAT64):
                raise TypeError(f"value: expected float16, float32 or float64, got {value.dtype}")
            if not self._enabled:
                return value
            with np.errstate(over="ignore"):
                wide = np.multiply(value, self._scale, dtype=np.promote_types(value.dtype, FLOAT32))
                return wide.astype(value.dtype, copy=False)
        loss = check_real("value", value)  # NaN is allowed: it is not the caller's mistake
        return loss * self._scale if self._enabled else loss

    def unscale_(self, grads: Any) -> GradNorm:
        """Divide gradients in place by the scale, to inspect or clip them before `step`.

        Parameters
        ----------
        grads : array, iterable or dict of arrays or layers, layer, model, optimizer
            The gradients, as for `clip_grad_norm_`.

        Returns
        -------
        GradNorm
            The norm divided by the scale. If it is `.skipped`, an entry is not finite: nothing was divided, and `step`
            will skip even if the gradients change before it.

        Raises
        ------
        RuntimeError
            If some of the gradients were unscaled, or used in a step, since the last `update`.

        Examples
        --------
        >>> import numpy as np
        >>> from gradcore import GradScaler
        >>> grad = np.array([6.0, 8.0])
        >>> GradScaler(init_scale=2.0).unscale_([grad])
        5.0
        >>> grad
        array([3., 4.])
        """
        found = Gradients(grads, write=True)
        norm, *factors = found.measure(2.0, np.inf, "skip", self.get_scale())
        if not self._enabled:
            return norm
        if _shared(found.views, [views for views, _ in self._unscaled]):
            raise RuntimeError("unscale_: some of the gradients were already unscaled since the last update")
        if _shared(found.views, self._stepped):
            raise RuntimeError("unscale_: some of the gradients were already used in a step since the last update")
        if not norm.skipped:
            found.multiply(np.full((len(found.arrays), 2), factors))
        self._unscaled.append((found.views, norm))
        self._found.append(norm.skipped)
        return norm

    def step(self, optimizer: Optimizer, max_norm: float | Threshold | Schedule | None = None) -> GradNorm:
        """Take a step of the optimizer with the gradients divided by the scale, or skip it if one is not finite.

        Gradients that were not unscaled before are not written: the step divides as it reads them.

        Parameters
        ----------
        optimizer : Optimizer
            An optimizer of `gradcore.optim`.
        max_norm : float, Threshold or schedule, optional
            The limit for the norm of the divided gradients, as for the optimizer's step.

        Returns
        -------
        GradNorm
            The norm before clipping, divided by the scale, and what was done.

        Raises
        ------
        RuntimeError
            If the gradients were used in a step since the last `update`.
        ValueError
            If only some of the optimizer's gradients were unscaled, or `max_norm` is negative or NaN.

        Examples
        --------
        >>> import numpy as np
        >>> from gradcore import GradScaler, optim
        >>> weight, grad = np.array([1.0, 1.0]), np.array([6.0, 8.0])
        >>> GradScaler(init_scale=2.0).step(optim.SGD([(weight, grad)], lr=0.1))
        5.0
        >>> weight
        array([0.7, 0.6])
        """
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer: expected an optimizer of gradcore.optim, got {type(optimizer).__name__}")
        if not self._enabled:
            return optimizer.step(max_norm)
        found = Gradients(optimizer, write=False)
        if _shared(found.views, self._stepped):
            raise RuntimeError("step: the gradients were already used in a step since the last update")
        unscaled = _shared(found.views, [views for views, _ in self._unscaled])
        if 0 < unscaled < _shared(found.views, [found.views]):
            raise ValueError("optimizer: only some of its gradients were unscaled since the last update")
        bad = [norm for views, norm in self._unscaled if norm.skipped and _shared(found.views, [views])]
        if bad:
            norm = bad[0]
            optimizer._skip(found)
        else:
            norm = optimizer.step(max_norm, scale=1.0 if unscaled else self._scale)
        self._stepped.append(found.views)
        self._found.append(norm.skipped)
        return norm

    def update(self) -> None:
        """Finish the iteration: lower the scale after gradients that were not finite, raise it after many that were.

        Raises
        ------
        RuntimeError
            If there was no `step` or `unscale_` since the last `update`.

        Examples
        --------
        >>> import numpy as np
        >>> from gradcore import GradScaler
        >>> scaler = GradScaler(init_scale=8.0)
        >>> scaler.unscale_([np.array([np.inf])]).skipped
        True
        >>> scaler.update()
        >>> scaler.get_scale()
        4.0
        """
        if not self._enabled:
            return
        if not self._found:
            raise RuntimeError("update: expected a step or unscale_ since the last update")
        if any(self._found):
            self._scale = _float32(self._scale * self._backoff_factor) or self._scale
            self._growth_tracker = 0
        else:
            self._growth_tracker += 1
            if self._growth_tracker == self._growth_interval:
                grown = _float32(self._scale * self._growth_factor)
                self._scale = grown if np.isfinite(grown) else self._scale
                self._growth_tracker = 0
        self._forget()

    def after_loss(self, step: TrainingStep) -> None:
        """Multiply the gradient that starts the backward pass by the scale.

        Parameters
        ----------
        step : TrainingStep
            The step; `dy` and `scale` are changed.
        """
        step.dy = self.scale(step.dy)
        step.scale *= self.get_scale()

    def after_step(self, step: TrainingStep) -> None:
        """Update the scale.

        Parameters
        ----------
        step : TrainingStep
            The step, with the norm of the gradient that the optimizer has divided by the scale.
        """
        if self._enabled:
            self._found.append(bool(step.grad_norm.n_nan or step.grad_norm.n_inf))
            self.update()

    def get_scale(self) -> float:
        """Return the current scale.

        Returns
        -------
        float
            The scale; 1 if scaling is not enabled.

        Examples
        --------
        >>> from gradcore import GradScaler
        >>> GradScaler().get_scale(), GradScaler(enabled=False).get_scale()
        (65536.0, 1.0)
        """
        return self._scale if self._enabled else 1.0

    def state_dict(self) -> dict[str, Any]:
        """Return the numbers on which the next iteration depends; call it after `update`.

        Returns
        -------
        dict
            The numbers, with the keys of ``torch.amp.GradScaler``; empty if scaling is not enabled.

        Examples
        --------
        >>> from gradcore import GradScaler
        >>> GradScaler(init_scale=8.0).state_dict()["scale"]
        8.0
        """
        if not self._enabled:
            return {}
        return {
            "scale": self._scale,
            "growth_factor": self._growth_factor,
            "backoff_factor": self._backoff_factor,
            "growth_interval": self._growth_interval,
            "_growth_tracker": self._growth_tracker,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore a state, also one of PyTorch's; do nothing if scaling is not enabled.

        Parameters
        ----------
        state_dict : mapping
            What `state_dict` returned, here or in PyTorch.

        Raises
        ------
        KeyError
            If an entry is missing or unknown; a scaler that was not enabled has an empty state.
        TypeError, ValueError
            If it is not a mapping, or a number is out of range; nothing is changed.

        Examples
        --------
        >>> from gradcore import GradScaler
        >>> scaler = GradScaler()
        >>> scaler.load_state_dict(GradScaler(init_scale=8.0).state_dict())
        >>> scaler.get_scale()
        8.0
        """
        if not self._enabled:
            return
        check_names("state_dict", state_dict, self.state_dict())
        self._set("scale", *(state_dict[name] for name in self.state_dict()))
        self._forget()

    def __repr__(self) -> str:
        return (
            f"GradScaler(scale={self.get_scale()!r}, growth_factor={self._growth_factor!r}, "
            f"backoff_factor={self._backoff_factor!r}, growth_interval={self._growth_interval!r}, "
            f"enabled={self._enabled!r})"
        )


def _float32(value: float) -> float:
    """Round to float32, the dtype of PyTorch's scale."""
    with np.errstate(over="ignore", under="ignore"):
        return float(np.float32(value))


def _shared(views: list[Array], others: list[list[Array]]) -> int:
    """Count the bytes between the first and last of each view that lie between those of another array."""
    begins: list[int] = []  # of the ranges of the others, merged where they meet
    ends: list[int] = []
    for begin, end in sorted(_kernels.bounds(a) for other in others for a in other):
        if ends and begin <= ends[-1]:
            ends[-1] = max(ends[-1], end)
        else:
            begins.append(begin)
            ends.append(end)
    shared = 0
    for low, high in map(_kernels.bounds, views):
        i = bisect.bisect_right(ends, low)
        while i < len(ends) and begins[i] < high:
            shared += min(ends[i], high) - max(begins[i], low)
            i += 1
    return shared
