"""Loss scaling: gradients that would underflow are computed many times as large, and the step divides them again."""

from __future__ import annotations

import bisect
import math
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from gradcore import _kernels
from gradcore._check import (
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
from gradcore.norm import Gradients, GradNorm
from gradcore.optim import Optimizer
from gradcore.schedule import Schedule
from gradcore.threshold import Threshold


class GradScaler:
    """Scales the loss by as much as gradients can bear, with PyTorch's names, defaults and rule.

    In every iteration ``scale``, ``step`` and ``update``, in this order; `unscale_` before `step` where the gradients
    themselves are wanted. A step whose gradients are not finite is skipped, and the scale multiplied by
    `backoff_factor`; after `growth_interval` steps without one it is multiplied by `growth_factor`.

    Parameters
    ----------
    init_scale : float
        The scale of the first iteration, positive.
    growth_factor : float
        Above 1.
    backoff_factor : float
        Between 0 and 1.
    growth_interval : int
        At least 1.
    enabled : bool
        Without it nothing is scaled, and `step` is the optimizer's.

    Raises
    ------
    TypeError, ValueError
        If a number is out of range.

    Notes
    -----
    Micikevicius et al., "Mixed precision training", 2018, section 3.2; ``torch.amp.GradScaler``. As there, the scale is
    a number of float32: it grows no more where it would be infinite. Here it does not become 0 either.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore import GradScaler, optim
    >>> weight, grad = np.array([1.0, 1.0]), np.zeros(2)
    >>> opt = optim.SGD([(weight, grad)], lr=0.5)
    >>> scaler = GradScaler(init_scale=1024.0)
    >>> grad[...] = scaler.scale(np.array([3.0, 4.0]))  # in the place of a backward pass
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
        """What happened since the last update."""
        self._unscaled: list[tuple[list[Array], GradNorm]] = []
        self._stepped: list[list[Array]] = []
        self._found: list[bool] = []  # for each look at gradients, whether something was not finite

    def scale(self, value: Any) -> Any:
        """The loss, or the gradient that starts the backward pass, times the scale.

        Parameters
        ----------
        value : float or array
            An array of float16, float32 or float64 comes back as another one of that dtype.

        Returns
        -------
        float or array
            Infinite where the dtype cannot hold it: the step is going to be skipped.
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
        loss = check_real("value", value)  # NaN is no mistake of the caller's
        return loss * self._scale if self._enabled else loss

    def unscale_(self, grads: Any) -> GradNorm:
        """Divide gradients by the scale, in place, so that they can be looked at or clipped before `step`.

        Parameters
        ----------
        grads : array, iterable or dict of arrays, layer, model, optimizer
            As for `clip_grad_norm_`.

        Returns
        -------
        GradNorm
            The norm over the scale. With `.skipped`, an entry is not finite: nothing was divided, and `step` will skip
            whatever happens to the gradients before it.

        Raises
        ------
        RuntimeError
            If some of them were unscaled already, or used in a step, since the last `update`.
        """
        found = Gradients(grads, write=True)
        norm, *factors = found.measure(2.0, np.inf, "skip", self.get_scale())
        if not self._enabled:
            return norm
        if _shared(found.views, [views for views, _ in self._unscaled]):
            raise RuntimeError("unscale_: some of the gradients were unscaled already since the last update")
        if _shared(found.views, self._stepped):
            raise RuntimeError("unscale_: some of the gradients were used in a step already since the last update")
        if not norm.skipped:
            found.multiply(np.full((len(found.arrays), 2), factors))
        self._unscaled.append((found.views, norm))
        self._found.append(norm.skipped)
        return norm

    def step(self, optimizer: Optimizer, max_norm: float | Threshold | Schedule | None = None) -> GradNorm:
        """A step of the optimizer with the gradients over the scale, or none if one is not finite.

        Gradients that were not unscaled before are not written: the step divides on the way.

        Parameters
        ----------
        optimizer : Optimizer
            Of `gradcore.optim`.
        max_norm : float, Threshold or schedule, optional
            As for the optimizer's step: a limit for the gradients over the scale.

        Returns
        -------
        GradNorm
            The norm over the scale, before clipping, and what was done.

        Raises
        ------
        RuntimeError
            If the gradients were used in a step already since the last `update`.
        ValueError
            If only some of the optimizer's gradients were unscaled, or `max_norm` is negative or NaN.
        """
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer: expected one of gradcore.optim, got {type(optimizer).__name__}")
        if not self._enabled:
            return optimizer.step(max_norm)
        found = Gradients(optimizer, write=False)
        if _shared(found.views, self._stepped):
            raise RuntimeError("step: the gradients were used in a step already since the last update")
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
        """Go on to the next iteration: less scale after one that was not finite, more after many that were.

        Raises
        ------
        RuntimeError
            If there was no `step` or `unscale_` since the last one.
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

    def get_scale(self) -> float:
        """The scale; 1 when not enabled."""
        return self._scale if self._enabled else 1.0

    def state_dict(self) -> dict[str, Any]:
        """What the next iteration depends on, as numbers; to be taken after `update`.

        Returns
        -------
        dict
            With the keys of ``torch.amp.GradScaler``; empty when not enabled.
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
        """Go on from where `state_dict` was taken, here or in PyTorch; does nothing when not enabled.

        Raises
        ------
        KeyError
            If something is missing or unknown; a scaler that was not enabled has an empty state.
        TypeError, ValueError
            If it is no mapping, or a number is out of range; nothing is changed.
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
    """Rounded as PyTorch's scale is, which is a float32."""
    with np.errstate(over="ignore", under="ignore"):
        return float(np.float32(value))


def _shared(views: list[Array], others: list[list[Array]]) -> int:
    """How many bytes of the memory that the views reach over are reached over by others."""
    begins: list[int] = []  # of what they reach over, joined where it meets
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
