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
from gradcore.training.batch import Batch, Criterion, unpacked

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
    batch : tuple or dict, or list of them
        Either (x, target), (x, target, lengths) or a dict with `x`, `target` and any of `lengths`, `reset`, `mask` and
        `weight`. The model's `forward` gets `lengths` and `reset`, the loss the others. A list of such batches makes
        one step too, the one on all of them joined: their gradients are accumulated.
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
    Several batches count by their numbers of terms, which are the entries of their targets, but for those that the
    lengths, the mask or the `ignore_index` of the loss leave out. So the step is that on all of them joined, with
    clipping of the whole gradient, `step_clip` and all, up to rounding. What a layer makes of the samples of a batch
    together, such as the statistics of `BatchNorm`, remains that of each batch. A loss of your own counts like those of
    `losses` if it takes a mean over the same terms, and has parameters with these names.

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
    several = isinstance(batch, list) and len(batch) > 0 and all(isinstance(part, (tuple, dict)) for part in batch)
    parts = [unpacked("batch", part) for part in (batch if several else [batch])]
    step = TrainingStep(model, optimizer, *parts[0], nonfinite=nonfinite)
    run_step(step, parts, Criterion(loss, model), check_hooks(hooks), max_norm, step_clip, Undo(model))
    return step


def run_step(
    step: TrainingStep,
    parts: Sequence[Batch],
    loss: Criterion,
    hooks: Sequence[Hook],
    max_norm: float | Threshold | Schedule | None,
    step_clip: float | None,
    undo: Undo,
) -> None:
    """Do everything that a step on the given batches does, in its order."""
    optimizer = step.optimizer
    try:
        total = 0.0
        for i, (part, share) in enumerate(zip(parts, _shares(parts, loss), strict=True)):
            step.x, step.target, step.options, step.terms = part
            step.parts_left = len(parts) - i - 1
            _differentiate(step, loss, hooks, step_clip, share, first=i == 0)
            if step.dropped:
                return
            total += step.loss * share
        step.loss = total
        for hook in hooks:
            hook.before_step(step)
        lr = getattr(optimizer, "lr", math.nan)
        step.lr = lr(optimizer.n_steps) if callable(lr) else lr  # before the step, which counts itself
        scaling = {} if step.scale == 1.0 else {"scale": step.scale}
        step.grad_norm = optimizer.step(max_norm=max_norm, nonfinite=step.nonfinite, **scaling)
        if getattr(step.grad_norm, "skipped", False):
            undo.restore_buffers()  # a batch with NaN would stay in running statistics for ever
    except BaseException as error:
        undo()
        for hook in hooks:
            hook.on_failure(step, error)
        raise
    for hook in hooks:
        hook.after_step(step)


def _shares(parts: Sequence[Batch], loss: Criterion) -> list[float]:
    """Return by how much of all terms each batch counts."""
    if len(parts) == 1:
        return [1.0]
    counts = [loss.n_terms(part) for part in parts]
    return [n / max(sum(counts), 1) for n in counts]


def _differentiate(
    step: TrainingStep, loss: Criterion, hooks: Sequence[Hook], step_clip: float | None, share: float, *, first: bool
) -> None:
    """Add the gradient of a batch, which has a share in the loss of the step."""
    model, step.scale = step.model, 1.0
    for hook in hooks:
        hook.before_forward(step)
    if step.dropped:
        return
    loss.refuse(step.terms)
    if first:
        model.zero_grad()
    step.y, step.tape = model.forward(step.x, **step.options)
    value, step.dy = loss(step.y, step)
    step.loss = float(value)
    for hook in hooks:
        hook.after_loss(step)
    scale = step.scale
    if share != 1.0:
        step.dy, step.scale = step.dy * step.dy.dtype.type(share), scale * share
    model.backward(step.tape, step.dy, **({} if step_clip is None else {"step_clip": step_clip * scale}))
    for hook in hooks:
        hook.after_backward(step)
    step.scale = scale  # of the whole gradient


class Undo:
    """Take back a step that has not updated the parameters: no gradients, generators and buffers as at construction."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._states = [(rng, rng.bit_generator.state) for rng in getattr(model, "generators", list)()]
        self._buffers = [(array, array.copy()) for array in getattr(model, "buffers", {}).values()]

    def __call__(self) -> None:
        self._model.zero_grad()
        for generator, state in self._states:
            generator.bit_generator.state = state
        self.restore_buffers()

    def restore_buffers(self) -> None:
        """Set the buffers back, such as the running statistics of a batch that was skipped."""
        for array, before in self._buffers:
            array[...] = before


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
