"""What the rules of a monitor look at: the newest step and the run so far."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from gradcore._base.check import Array, check_bool, check_int, check_names, check_real
from gradcore._base.hook import TrainingStep
from gradcore.layers.layer import Layer
from gradcore.layers.telemetry import StepTelemetry
from gradcore.training.findings import Thresholds

__all__: list[str] = []  # for the package only

ADAPTIVE = (
    "Adam",
    "AdamW",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Adagrad",
    "SPAM",
    "Lion",
)  # which divide by the gradient's size


class Outputs(NamedTuple):
    """What the rules on outputs share. All in float64: in their own dtype small integers and bools may overflow."""

    rows: Array  # (samples, features)
    spread: float  # the largest distance of two samples in a feature
    largest: float  # magnitude
    finite: bool


class BadData(NamedTuple):
    """Entries of an array of the batch that are not finite."""

    name: str  # "x" or "target"
    n: int
    first: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass
class Step:
    """The newest step, as `GradientMonitor.update` was given it."""

    number: int
    loss: float = math.nan
    norm: float = math.nan
    grad_norm: Any = math.nan  # the same, with what a GradNorm knows
    model: Any = None
    seen: StepTelemetry = field(default_factory=StepTelemetry)
    y: Array | None = None
    max_norm: float | None = None
    record: TrainingStep | None = None
    criterion: Callable[..., Any] | None = None
    has_loss: bool = True

    @property
    def lost(self) -> bool:
        """Whether there is a loss, and it is not finite."""
        return self.has_loss and not math.isfinite(self.loss)

    @cached_property
    def outputs(self) -> Outputs | None:
        """None where there are none."""
        y = self.y
        if y is None or y.size == 0:
            return None
        rows = y.reshape(-1, y.shape[-1]) if y.ndim > 1 else y.reshape(-1, 1)
        low, high = rows.min(axis=0).astype(np.float64), rows.max(axis=0).astype(np.float64)
        least, most = float(low.min()), float(high.max())
        finite = math.isfinite(least) and math.isfinite(most)
        return Outputs(rows, float((high - low).max()), max(most, -least), finite)

    @cached_property
    def data(self) -> dict[str, Array]:
        """What the batch holds as arrays of floats, by name."""
        pairs = {} if self.record is None else {"x": self.record.x, "target": self.record.target}
        arrays = {name: value for name, value in pairs.items() if isinstance(value, np.ndarray) and value.size}
        return {name: value for name, value in arrays.items() if value.dtype.kind == "f"}

    @cached_property
    def bad_data(self) -> list[BadData]:
        """What of the batch is not finite, if that may be why the loss is not."""
        if not self.lost:
            return []
        bad = {name: np.argwhere(~np.isfinite(value)) for name, value in self.data.items()}
        shapes = {name: value.shape for name, value in self.data.items()}
        return [BadData(name, len(at), tuple(at[0].tolist()), shapes[name]) for name, at in bad.items() if len(at)]

    @property
    def scale(self) -> float:
        """The factor of the loss; while it is above 1, gradients that overflow only make it smaller."""
        return self.record.scale if self.record is not None else 1.0

    @property
    def optimizer(self) -> str:
        """The class of the optimizer; empty where it is not known."""
        return "" if self.record is None else type(self.record.optimizer).__name__

    @property
    def adaptive(self) -> bool:
        return self.optimizer in ADAPTIVE

    def keeping_gate(self, where: str) -> str | None:
        """Return the name of the gate that keeps the state of the recurrent layer with this name; None without one."""
        place, _, _ = where.rpartition(".")
        for member in self.seen.members:
            cell = getattr(member.tape.layer, "cell", None)
            if member.name == place and cell is not None:
                return None if cell.keeping is None else str(cell.keeping.name)
        return None

    def loss_after(self) -> float:
        """Return the loss of the same batch with the weights after the step; NaN where that cannot be had."""
        record, criterion = self.record, self.criterion
        if record is None or criterion is None or not isinstance(record.model, Layer) or record.model.buffers:
            return math.nan
        try:
            y = record.model(record.x, **record.options)
        except NotImplementedError:  # a model that is never used for inference
            return math.nan
        return self._loss(y[0] if isinstance(y, tuple) else y)

    def loss_of_others(self) -> float:
        """Return the loss if each sample were given the output of its neighbor; NaN where that cannot be had."""
        y = self.y
        if self.record is None or self.criterion is None or y is None or y.ndim < 2:
            return math.nan
        axes = (0, 1) if y.ndim > 2 else (0,)  # of samples and of time, in either order
        if min(y.shape[axis] for axis in axes) < 2:
            return math.nan
        return self._loss(np.roll(y, 1, axes))

    def repeats(self) -> bool:
        """Whether the loss function returns the same again; one that draws random numbers must not be disturbed."""
        return self.record is not None and self.y is not None and self._loss(self.y) == self.loss

    def _loss(self, y: Array) -> float:
        assert self.criterion is not None
        assert self.record is not None
        return float(self.criterion(y, self.record.target)[0])


class Run:
    """What has happened so far, including the newest step.

    Attributes
    ----------
    losses, loss_steps : deque
        The finite losses of the window, and their steps.
    norms, logs : deque
        The finite, positive gradient norms of the window and one before it, and their logarithms.
    clipped, skipped : deque of bool
        Of the steps of the window; `clipped` of those with a threshold.
    first, lowest : float
        The first loss, and the lowest one after it.
    reference : float
        The loss at the start: the median of the first `warmup` ones.
    level, best : float
        The median of the last ten losses, and the lowest such median of the steps before.
    noise, log_noise : float
        By how much the loss, and its logarithm, change from step to step: the largest moving average so far.
    signed : bool
        Whether a loss was negative.
    trials : deque of (float, float)
        Of some steps, the loss of their batch before and after.
    swaps : deque of (float, float)
        Of some steps, the loss, and what it would be if each sample were given the output of its neighbor.
    outputs, weights, grads, start : ndarray or None
        Some outputs, weights and gradients of the last look at them, and the weights of the first look.
    """

    def __init__(self, thresholds: Thresholds) -> None:
        self.thresholds = thresholds
        self.n_steps = self.n_clipped = self.n_skipped = self.n_losses = 0
        self.n_thresholded = 0  # steps with a threshold to clip at
        window = thresholds.window
        self._first_losses = min(thresholds.warmup, window)
        self.losses: deque[float] = deque(maxlen=window)
        self.loss_steps: deque[int] = deque(maxlen=window)
        self.norms: deque[float] = deque(maxlen=window + 1)
        self.logs: deque[float] = deque(maxlen=window + 1)
        self.clipped: deque[bool] = deque(maxlen=window)
        self.skipped: deque[bool] = deque(maxlen=window)
        self._recent: deque[float] = deque(maxlen=10)
        self.first = self.reference = self.level = math.nan
        self.lowest = self.best = math.inf
        self.largest_norm = 0.0
        self.first_norm = math.nan  # the median of the first five
        self.noise = self.log_noise = self._noise = self._log_noise = 0.0
        self.signed = self.wild = False
        self.pure: bool | None = None  # whether the loss function returns the same again
        self.trials: deque[tuple[float, float]] = deque(maxlen=10)
        self.swaps: deque[tuple[float, float]] = deque(maxlen=10)
        self.outputs: Array | None = None
        self.weights: Array | None = None
        self.start: Array | None = None
        self.grads: Array | None = None
        self.weights_skipped = self.weights_step = 0
        self._held: dict[tuple[str, str], tuple[int, int]] = {}
        self._step = 0

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of what has happened, without the thresholds."""
        state = {name: value for name, value in vars(self).items() if name != "thresholds"}
        held = [[*place, *seen] for place, seen in self._held.items()]
        return {name: _plain(value) for name, value in state.items()} | {"_held": held}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore a state; change nothing unless all of it fits."""
        new = Run(self.thresholds)
        kinds = {name: value for name, value in vars(new).items() if name != "thresholds"}
        check_names("run", state_dict, kinds)
        for name, own in kinds.items():
            setattr(new, name, _like(name, own, state_dict[name]))
        vars(self).update(vars(new))

    @property
    def warm(self) -> bool:
        """Whether losses are compared with `reference` by now."""
        return self.n_losses > self._first_losses

    @property
    def falls(self) -> bool:
        """Whether the loss is clearly below where it was at the start, and near its best."""
        return self.warm and self.level < 0.9 * self.reference and self.level <= max(1.5 * self.best, 0.0)

    @property
    def learned(self) -> bool:
        """Whether the loss has come down to half, and stays there."""
        return self.warm and self.level < 0.5 * self.reference and self.level <= max(1.5 * self.best, 0.0)

    def begin(self, now: Step) -> None:
        """Add the newest step, before the rules look."""
        self._step = now.number
        if self.pure is None and now.criterion is not None and math.isfinite(now.loss):
            self.pure = now.repeats()
        if not self.pure:
            now.criterion = None
        if math.isfinite(now.loss):
            self._add_loss(now.loss, now.number)
        if 0 <= now.norm < math.inf:
            self.largest_norm = max(self.largest_norm, now.norm)
            if now.norm > 0:
                self.norms.append(now.norm)
                if len(self.norms) == 5 and math.isnan(self.first_norm):
                    self.first_norm = median(self.norms)
                self.logs.append(math.log(now.norm))
        grad_norm = now.grad_norm
        clipped, skipped = bool(getattr(grad_norm, "clipped", False)), bool(getattr(grad_norm, "skipped", False))
        self.n_clipped += clipped
        self.n_skipped += skipped
        if not now.bad_data:
            self.skipped.append(skipped and now.scale <= 1)
        if clipped or now.max_norm is not None:
            self.n_thresholded += 1
            self.clipped.append(clipped)

    def _add_loss(self, loss: float, number: int) -> None:
        self.n_losses += 1
        if self.n_losses == 1:
            self.first = loss
        else:
            self.lowest = min(self.lowest, loss)
            share, before = 1 / min(self.n_losses, self.thresholds.window), self.losses[-1]
            self._noise += share * (abs(loss - before) - self._noise)
            if loss > 0 and before > 0:
                self._log_noise += share * (abs(math.log(loss / before)) - self._log_noise)
        self.signed = self.signed or loss < 0
        self.losses.append(loss)
        self.loss_steps.append(number)
        self._recent.append(loss)
        self.level = median(self._recent)
        if self.n_losses == self._first_losses:
            self.reference = median(self.losses)
        if self.warm:
            self.noise, self.log_noise = max(self.noise, self._noise), max(self.log_noise, self._log_noise)

    def end(self, now: Step) -> None:
        """Count the step, after the rules have looked."""
        self.n_steps += 1
        if math.isfinite(now.loss) and self.warm:
            self.best = min(self.best, self.level)

    def lasting(self, kind: str, condition: bool, patience: int, where: str = "") -> tuple[int, int] | None:
        """Return where the condition began and for how many looks it has held, once these are `patience`; else None."""
        if not condition:
            self._held.pop((kind, where), None)
            return None
        began, times = self._held.get((kind, where), (self._step, 0))
        self._held[kind, where] = began, times + 1
        return (began, times + 1) if times + 1 >= patience else None


def _plain(value: Any) -> Any:
    if isinstance(value, deque):
        return list(value)
    return value.copy() if isinstance(value, np.ndarray) else value


def _like(name: str, own: Any, value: Any) -> Any:
    """Return a value of a state as the attribute has it, whose value at the beginning is `own`."""
    if isinstance(own, (deque, dict)) and not isinstance(value, (list, tuple)):
        raise TypeError(f"{name}: expected a list, got {type(value).__name__}")
    if isinstance(own, deque):
        return deque((_entry(name, item) for item in value), own.maxlen)
    if isinstance(own, dict):
        return dict(_hold(name, item) for item in value)
    if own is None:
        if not (value is None or isinstance(value, (bool, np.ndarray))):
            raise TypeError(f"{name}: expected a bool, an array or None, got {type(value).__name__}")
        return value.copy() if isinstance(value, np.ndarray) else value
    if isinstance(own, bool):
        return check_bool(name, value)
    return check_int(name, value) if isinstance(own, int) else check_real(name, value)


def _hold(name: str, item: Any) -> tuple[tuple[str, str], tuple[int, int]]:
    if not (isinstance(item, (tuple, list)) and len(item) == 4 and all(isinstance(part, str) for part in item[:2])):
        raise ValueError(f"{name}: expected lists of kind, place, step and count, got {item!r}")
    kind, where, began, times = item
    return (kind, where), (check_int(name, began), check_int(name, times))


def _entry(name: str, item: Any) -> Any:
    """Return an entry of a window: a number, a bool, or a pair of numbers, which is a list in a checkpoint."""
    if isinstance(item, (tuple, list)):
        if len(item) != 2:
            raise ValueError(f"{name}: expected pairs, got {len(item)} items")
        return check_real(name, item[0]), check_real(name, item[1])
    return item if isinstance(item, (bool, int)) else check_real(name, item)


def median(values: Any) -> float:
    """Return the median of a few numbers, without the overhead of an array."""
    ordered = sorted(values)
    half = len(ordered) // 2
    return float(ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2)


def deviation(values: Any, center: float) -> float:
    """Return the standard deviation of normal values with this median absolute deviation from `center`."""
    return 1.4826 * median([abs(value - center) for value in values])
