"""One training step, with places for hooks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from gradcore._base.check import Array, as_list, check_number
from gradcore._base.hook import Hook, TrainingStep
from gradcore.clip.gradients import check_limit, check_policy
from gradcore.clip.threshold import Threshold
from gradcore.optim.schedule import Schedule
from gradcore.training.batch import Criterion, unpacked

__all__ = ["training_step"]


def training_step(
    model: Any,
    batch: Any,
    loss: Callable[[Array, Any], tuple[float, Array]],
    optimizer: Any,
    *,
    max_norm: float | Threshold | Schedule | None = None,
    step_clip: float | None = None,
    nonfinite: str = "skip",
    hooks: Iterable[Hook] = (),
) -> TrainingStep:
    """Train on one batch: forward, loss, backward and a clipped step, with the hooks at their places.

    `fit` calls it for every batch; call it yourself to write a loop of your own.

    Parameters
    ----------
    model : layer or model
        The model to train, with `forward`, `backward` and `zero_grad`.
    batch : tuple or dict
        Either (x, target), (x, target, lengths) or a dict with `x`, `target` and any of `lengths`, `reset`, `mask` and
        `weight`. The model's `forward` gets `lengths` and `reset`, the loss the others.
    loss : callable
        ``loss(y, target)`` returns the loss and dL/dy. It gets `mask` and `weight` of the batch by keyword, and has to
        take them; also `lengths`, if it has an argument of this name and y has the time axis of x.
    optimizer : optimizer
        The optimizer of the model's parameters.
    max_norm : float, Threshold or schedule, optional
        The norm to clip the gradient to, as in `optimizer.step`. By default the gradient is not clipped.
    step_clip : float, optional
        The norm to clip each sample's dL/dh_t to, inside the backward pass of recurrent layers.
    nonfinite : {"skip", "zero", "raise"}
        What `optimizer.step` does with a gradient that is not finite.
    hooks : iterable of Hook
        What takes part in the step, such as `AdaptiveClip`, `GradScaler` and `VanishingGradientRegularizer`.

    Returns
    -------
    TrainingStep
        The step: loss, norm, output, tape.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid, or no layer of the model takes `step_clip`.

    Notes
    -----
    Whatever is raised before the update, the step is undone: parameters and optimizer are as before, gradients are
    zero, and the generators of the model are where they were.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> model = gradcore.LSTM(1, 8, rng=0)
    >>> optimizer, scaler = gradcore.optim.Adam(model), gradcore.GradScaler()
    >>> history = gradcore.History()
    >>> x, target = np.ones((20, 4, 1), np.float32), np.zeros((20, 4, 8), np.float32)
    >>> for _ in range(3):
    ...     step = gradcore.training_step(model, (x, target), gradcore.losses.mse, optimizer, hooks=[scaler])
    ...     history.append(step.loss, step.grad_norm, lr=step.lr)
    >>> len(history), step.scale
    (3, 65536.0)
    """
    check_step(model, loss, optimizer, max_norm, step_clip, nonfinite)
    step = TrainingStep(model, optimizer, *unpacked("batch", batch), nonfinite=nonfinite)
    run_step(step, Criterion(loss, model), check_hooks(hooks), max_norm, step_clip, Undo(model))
    return step


def run_step(
    step: TrainingStep,
    loss: Criterion,
    hooks: Sequence[Hook],
    max_norm: float | Threshold | Schedule | None,
    step_clip: float | None,
    undo: Undo,
) -> None:
    """Do everything that a step does, in its order."""
    model, optimizer = step.model, step.optimizer
    try:
        for hook in hooks:
            hook.before_forward(step)
        if step.dropped:
            return
        loss.refuse(step.terms)
        model.zero_grad()
        step.y, step.tape = model.forward(step.x, **step.options)
        value, step.dy = loss(step.y, step)
        step.loss = float(value)
        for hook in hooks:
            hook.after_loss(step)
        model.backward(step.tape, step.dy, **({} if step_clip is None else {"step_clip": step_clip * step.scale}))
        for hook in hooks:
            hook.after_backward(step)
        if step.dropped:
            return
        for hook in hooks:
            hook.before_step(step)
        lr = getattr(optimizer, "lr", math.nan)
        step.lr = lr(optimizer.n_steps) if callable(lr) else lr  # before the step, which counts itself
        scaling = {} if step.scale == 1.0 else {"scale": step.scale}
        step.grad_norm = optimizer.step(max_norm=max_norm, nonfinite=step.nonfinite, **scaling)
    except BaseException as error:
        undo()
        for hook in hooks:
            hook.on_failure(step, error)
        raise
    for hook in hooks:
        hook.after_step(step)


class Undo:
    """Take back a step that has not updated the parameters: no gradients, and the generators as at construction."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._states = [(rng, rng.bit_generator.state) for rng in getattr(model, "generators", list)()]

    def __call__(self) -> None:
        self._model.zero_grad()
        for generator, state in self._states:
            generator.bit_generator.state = state


def check_hooks(hooks: Iterable[Hook]) -> list[Hook]:
    """Return the hooks as a list."""
    found = as_list("hooks", hooks, "an iterable of hooks")
    for i, hook in enumerate(found):
        if not isinstance(hook, Hook):
            raise TypeError(f"hooks[{i}]: expected a Hook, got {type(hook).__name__}")
    return found


def check_step(model: Any, loss: Any, optimizer: Any, max_norm: Any, step_clip: Any, nonfinite: str) -> None:
    """Check the arguments that `fit` and `training_step` share."""
    check_methods("model", model, "zero_grad", "forward", "backward")
    check_methods("optimizer", optimizer, "step")
    if max_norm is not None:
        check_limit(max_norm, getattr(optimizer, "n_steps", 0))
    check_policy(nonfinite)
    if step_clip is not None:
        if "step_clip" not in getattr(model, "takes", {"step_clip"}):  # a model of one's own need not declare it
            raise ValueError("step_clip: no layer of this model takes it")
        check_number("step_clip", step_clip, least=0.0)
    if not callable(loss):
        raise TypeError(f"loss: expected a callable, got {type(loss).__name__}")


def check_methods(name: str, value: Any, *methods: str) -> None:
    if not all(callable(getattr(value, method, None)) for method in methods):
        raise TypeError(f"{name}: expected an object with {' and '.join(methods)}, got {type(value).__name__}")
