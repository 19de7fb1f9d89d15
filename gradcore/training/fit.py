"""A training loop."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sized
from functools import partial
from types import FunctionType
from typing import Any

import numpy as np

from gradcore._base.check import Array, as_list, check_bool, check_int
from gradcore._base.hook import Hook, TrainingStep
from gradcore._base.progress import ProgressBar
from gradcore.clip.threshold import Threshold
from gradcore.layers.telemetry import StepTelemetry
from gradcore.optim.schedule import Schedule
from gradcore.training.history import History
from gradcore.training.interrupt import BrokenOff, Interrupt
from gradcore.training.monitor import GradientMonitor
from gradcore.training.step import Undo, check_hooks, check_methods, check_step, run_step, unpacked

__all__ = ["fit"]


def fit(
    model: Any,
    batches: Iterable[Any] | Callable[[], Iterable[Any]],
    loss: Callable[[Array, Any], tuple[float, Array]],
    optimizer: Any,
    *,
    epochs: int,
    max_norm: float | Threshold | Schedule | None = None,
    step_clip: float | None = None,
    nonfinite: str = "skip",
    hooks: Iterable[Hook] = (),
    monitor: GradientMonitor | None = None,
    callbacks: Iterable[Callable[[TrainingStep], Any]] = (),
    progress: bool | None = None,
) -> History:
    """Train a model: a `training_step` for every batch of every epoch.

    Ctrl-C ends the run and returns the history so far. It breaks off the forward pass, the backward pass, the loss, the
    hooks up to `before_step` and the wait for a batch at once, and leaves the model and the optimizer as they were
    after the last whole step. The optimizer's update, what hooks do after it, and the callbacks finish first. A second
    Ctrl-C interrupts these too.

    Parameters
    ----------
    model : layer or model
        The model to train, with `forward`, `backward` and `zero_grad`.
    batches : iterable or callable
        The batches of an epoch: each is (x, target) or (x, target, lengths). An iterable is consumed once an epoch; a
        callable returns a new iterator for each epoch. Arrays need the model's dtype: `fit` does not cast them. Convert
        float64 data once, with ``x.astype(numpy.float32)``, or build the model with ``dtype=numpy.float64``.
    loss : callable
        ``loss(y, target)`` returns the loss and dL/dy.
    optimizer : optimizer
        The optimizer of the model's parameters.
    epochs : int
        The number of passes through `batches`.
    max_norm : float, Threshold or schedule, optional
        The norm to clip the gradient to, as in `optimizer.step`. By default the gradient is not clipped.
    step_clip : float, optional
        The norm to clip each sample's dL/dh_t to, inside the backward pass of recurrent layers.
    nonfinite : {"skip", "zero", "raise"}
        What `optimizer.step` does with a gradient that is not finite.
    hooks : iterable of Hook
        What takes part in every step, in this order: `AdaptiveClip`, `GradScaler`, `VanishingGradientRegularizer`, or a
        `Hook` of your own.
    monitor : GradientMonitor, optional
        A monitor to update after every step and to finish at the end.
    callbacks : iterable of callables
        Functions to call with the `TrainingStep` after every step, when it is in the history. One that returns True
        ends the training. One that has a method `after_run`, such as `JSONLines`, is told of the end: of the history,
        and of the error or second Ctrl-C if one ended it.
    progress : bool, optional
        Whether to show a `ProgressBar`. By default it appears after a second of work, in a notebook or where standard
        error is a terminal and rich is installed.

    Returns
    -------
    History
        The record of every step.

    Raises
    ------
    ValueError
        If `batches` is an iterator, which can be consumed only once, and `epochs` is above 1; if an epoch has no
        batches or a batch has another form; if no layer of the model takes `step_clip`.
    TypeError
        If a batch has another dtype than the model.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((64, 3))
    >>> target = x @ [[1.0], [2.0], [3.0]]
    >>> model = gradcore.Linear(3, 1, dtype=np.float64, rng=rng)
    >>> optimizer = gradcore.optim.SGD(model, lr=0.1)
    >>> history = gradcore.fit(model, [(x, target)], gradcore.losses.mse, optimizer, epochs=100, max_norm=1.0)
    >>> bool(history.loss[-1] < 1e-4 * history.loss[0])
    True

    The same loop by hand, with a progress bar:

    >>> from gradcore._base.progress import ProgressBar
    >>> history = gradcore.History()
    >>> with ProgressBar(total=3, label="training") as bar:
    ...     for epoch in range(3):
    ...         model.zero_grad()
    ...         y, tape = model.forward(x)
    ...         loss, dy = gradcore.losses.mse(y, target)
    ...         dx = model.backward(tape, dy)
    ...         norm = optimizer.step(max_norm=1.0, nonfinite="skip")
    ...         history.append(loss, norm, epoch=epoch, max_norm=1.0, tape=tape)
    ...         bar.update(f"loss {loss:.4g}")
    >>> len(history)
    3
    """
    epochs = check_int("epochs", epochs)
    check_step(model, loss, optimizer, max_norm, step_clip, nonfinite)
    hooks, callbacks = check_hooks(hooks), as_list("callbacks", callbacks, "an iterable of callables")
    total = _check_run(batches, epochs, monitor, callbacks, progress)
    history, n_clipped = History(), 0
    with _ending(callbacks, history), Interrupt() as interrupt, ProgressBar(total, "training", show=progress) as bar:
        hooks.append(_WholeUpdates(interrupt))  # the last one: what follows it is finished first
        undo = Undo(model)
        try:
            interrupt.at_once = True
            for epoch, batch in each_batch(batches, epochs):
                if batch is None:
                    interrupt.at_once = False
                    answers: list[Any] = [hook.after_epoch(epoch, history) for hook in hooks]
                    bar.total = epochs * int((history.epoch == 0).sum()) if bar.total is None else bar.total
                else:
                    step = TrainingStep(model, optimizer, *batch, len(history), epoch, history, nonfinite)
                    run_step(step, loss, hooks, max_norm, step_clip, undo)
                    interrupt.at_once = False
                    answers = [] if step.dropped else _record(step, loss, max_norm, monitor, callbacks)
                    n_clipped += bool(getattr(step.grad_norm, "clipped", False))
                    share = n_clipped / max(len(history), 1)
                    norm = float("nan") if step.dropped else float(step.grad_norm)
                    bar.update(f"loss {step.loss:.4g}  norm {norm:.3g}  clipped {share:.0%}")
                    del step  # the next one uses the buffers of its tape again
                if interrupt.requested or any(answer is True or answer is np.True_ for answer in answers):
                    break
                undo = Undo(model)
                interrupt.at_once = True
            interrupt.at_once = False
        except BrokenOff:
            interrupt.at_once = False
            undo()
    history.interrupted = interrupt.requested
    if monitor is not None:
        monitor.finish()
    _tell_of_end(callbacks, history)
    return history


class _WholeUpdates(Hook):
    """Keep the first Ctrl-C from breaking off an update."""

    def __init__(self, interrupt: Interrupt) -> None:
        self._interrupt = interrupt

    def before_step(self, step: TrainingStep) -> None:
        self._interrupt.at_once = False


@contextlib.contextmanager
def _ending(callbacks: list[Any], history: History) -> Iterator[None]:
    """Tell callbacks of an error that ends a run."""
    try:
        yield
    except BaseException as error:
        _tell_of_end(callbacks, history, error)
        raise


def _tell_of_end(callbacks: list[Any], history: History, error: BaseException | None = None) -> None:
    for callback in callbacks:
        after_run = getattr(callback, "after_run", None)
        if after_run is not None:
            after_run(history, error)


def _record(
    step: TrainingStep,
    loss: Callable[..., Any],
    max_norm: Any,
    monitor: GradientMonitor | None,
    callbacks: list[Callable[[TrainingStep], Any]],
) -> list[Any]:
    """Tell everybody of a step, and return the callbacks' answers."""
    limit = None if max_norm is None else step.grad_norm.max_norm
    seen = StepTelemetry(step.tape, step.scale)
    step.history.append(step.loss, step.grad_norm, epoch=step.epoch, lr=step.lr, max_norm=limit, tape=seen)
    if monitor is not None:
        given = step.step, step.loss, step.grad_norm, step.model, seen, step.y
        # An object may have a state, which looking again would change.
        criterion = loss if isinstance(loss, (FunctionType, partial)) else None
        monitor.update(*given, max_norm=limit, record=step, criterion=criterion)
    return [callback(step) for callback in callbacks]


def each_batch(batches: Any, epochs: int) -> Iterator[tuple[int, tuple[Any, Any, dict[str, Any]] | None]]:
    """Yield the epoch and each of its batches, then the epoch and None."""
    for epoch in range(epochs):
        n = 0
        for batch in batches if isinstance(batches, Iterable) else batches():
            n += 1
            yield epoch, unpacked("batches", batch)
        if n == 0:
            raise ValueError(f"batches: epoch {epoch} produced no batches")
        yield epoch, None


def _check_run(batches: Any, epochs: int, monitor: Any, callbacks: list[Any], progress: bool | None) -> int | None:
    """Check what `fit` does not pass to each step, and return the number of steps if it is known."""
    if monitor is not None:
        check_methods("monitor", monitor, "update", "finish")
    if not isinstance(batches, Iterable) and not callable(batches):
        raise TypeError(f"batches: expected an iterable or a callable, got {type(batches).__name__}")
    for i, callback in enumerate(callbacks):
        if not callable(callback):
            raise TypeError(f"callbacks[{i}]: expected a callable, got {type(callback).__name__}")
    if progress is not None:
        check_bool("progress", progress)
    if epochs > 1 and isinstance(batches, Iterator):
        raise ValueError(
            f"batches: an iterator can be consumed only once, and epochs is {epochs}; "
            "pass a list, or a function that returns a new iterator for each epoch"
        )
    try:
        return epochs * len(batches) if isinstance(batches, Sized) else None
    except (TypeError, ValueError) as error:  # an array without axes, a buffer that was released
        raise TypeError(f"batches: expected an iterable, got {type(batches).__name__}: {error}") from None
