"""What `fit` does between batches and at the ends of epochs, as hooks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from gradcore._base.check import Array, check_choice
from gradcore._base.hook import Hook, TrainingStep
from gradcore.training.batch import Criterion, check_batches
from gradcore.training.early_stopping import EarlyStopping
from gradcore.training.evaluate import check_metrics, evaluate
from gradcore.training.history import History
from gradcore.training.interrupt import Interrupt
from gradcore.training.snapshot import RunState, has_state

__all__: list[str] = []  # for the package only


class Carry(Hook):
    """Start each batch of an epoch from the state at which the last one ended: truncated backpropagation."""

    def __init__(self, run: RunState) -> None:
        if getattr(run.model, "n_states", 1) == 0:
            raise ValueError("stateful: no layer of this model has a state")
        self._run = run

    def before_forward(self, step: TrainingStep) -> None:
        if self._run.carried is not None:
            step.options["state"] = self._run.carried

    def after_backward(self, step: TrainingStep) -> None:  # also if the step is dropped, as in gradient accumulation
        self._run.carried = _usable(step.tape.state)

    def after_epoch(self, epoch: int, history: History) -> None:
        self._run.carried = None


def _usable(state: Any) -> Any:
    """Return a state with zeros for sequences where any of it is not finite: no later batch could recover from that."""
    finite = _finite(state)
    return state if finite.all() else _zeroed(state, finite)


def _finite(state: Any) -> Array:
    """Return which sequences of a state are finite in all of its parts, (B,)."""
    if isinstance(state, tuple):
        return np.asarray(np.logical_and.reduce([_finite(part) for part in state]))
    return np.asarray(np.isfinite(state).all(axis=(0, 2)))


def _zeroed(state: Any, kept: Array) -> Any:
    if isinstance(state, tuple):
        return tuple(_zeroed(part, kept) for part in state)
    return np.where(kept[:, None], state, state.dtype.type(0))


class Validation(Hook):
    """Add loss and metrics on held-out batches to the history."""

    def __init__(self, metrics: Mapping[str, Criterion], interrupt: Interrupt, evaluate: Callable[[], Any]) -> None:
        self.metrics, self._interrupt, self._evaluate = metrics, interrupt, evaluate

    def after_epoch(self, epoch: int, history: History) -> None:
        self._interrupt.at_once = True  # it may take long, and changes nothing
        try:
            found = self._evaluate()
        finally:
            self._interrupt.at_once = False
        history.append_validation(*found, epoch=epoch)


def held_out(
    model: Any, batches: Any, loss: Criterion, metrics: Any, epochs: int, *, stateful: bool, interrupt: Interrupt
) -> Validation | None:
    """Return what validates, if there are batches for it."""
    if batches is None:
        if metrics is not None:
            raise ValueError("metrics: expected validation batches with them, got validation=None")
        return None
    check_batches("validation", batches, epochs)
    if not callable(model):
        raise TypeError(f"validation: expected a model that is called in inference, got {type(model).__name__}")
    named = check_metrics(metrics, model)
    return Validation(named, interrupt, partial(evaluate, model, batches, loss, named, stateful=stateful))


class Stopping(Hook):
    """Show an `EarlyStopping` its number."""

    def __init__(self, model: Any, stopping: EarlyStopping, validation: Validation | None) -> None:
        if not isinstance(stopping, EarlyStopping):
            raise TypeError(f"early_stopping: expected an EarlyStopping, got {type(stopping).__name__}")
        names = ["loss"] if validation is None else ["loss", "validation_loss", *validation.metrics]
        check_choice("early_stopping.monitor", stopping.monitor, names)
        if not has_state(model):
            raise TypeError(f"early_stopping: {type(model).__name__} has no state_dict and load_state_dict")
        self._model, self._stopping = model, stopping

    def after_epoch(self, epoch: int, history: History) -> bool:
        name = self._stopping.monitor
        if name == "loss":
            losses = history.loss[history.epoch == epoch]
            value = float(losses.mean()) if losses.size else math.nan
        else:
            value = float((history.validation_loss if name == "validation_loss" else history.metrics[name])[-1])
        return self._stopping.update(value, self._model)
