"""A training loop."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
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
from gradcore.training.batch import Criterion, check_batches, each_batch, in_groups
from gradcore.training.early_stopping import EarlyStopping
from gradcore.training.epochs import Carry, Stopping, held_out
from gradcore.training.history import History
from gradcore.training.interrupt import BrokenOff, Interrupt
from gradcore.training.monitor import GradientMonitor
from gradcore.training.resume import RunFile
from gradcore.training.rollback import Rollback
from gradcore.training.snapshot import RunState
from gradcore.training.step import Undo, check_hooks, check_methods, check_step, run_step
from gradcore.training.supervisor import Supervisor

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
    accumulate: int = 1,
    stateful: bool = False,
    validation: Iterable[Any] | Callable[[], Iterable[Any]] | None = None,
    metrics: Mapping[str, Callable[..., Any]] | Iterable[Callable[..., Any]] | None = None,
    early_stopping: EarlyStopping | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = False,
    supervisor: Supervisor | None = None,
    rng: np.random.Generator | Iterable[np.random.Generator] | None = None,
) -> History:
    """Train a model: a `training_step` for every batch of every epoch.

    At the end of each epoch it validates, asks the hooks and the early stopping, and writes the checkpoint, in this
    order.

    Ctrl-C ends the run and returns the history so far. It breaks off the forward pass, the backward pass, the loss, the
    hooks up to `before_step`, the validation and the wait for a batch at once, and leaves the model and the optimizer
    as they were after the last whole step. The optimizer's update, what hooks do after it, the callbacks and the
    writing of a checkpoint finish first. A second Ctrl-C interrupts these too.

    Parameters
    ----------
    model : layer or model
        The model to train, with `forward`, `backward` and `zero_grad`.
    batches : iterable or callable
        The batches of an epoch: each is (x, target), (x, target, lengths) or a dict with `x`, `target` and any of
        `lengths`, `reset`, `mask` and `weight`. An iterable is consumed once an epoch; a callable returns a new
        iterator for each epoch. Arrays need the model's dtype: `fit` does not cast them. Convert float64 data once,
        with ``x.astype(numpy.float32)``, or build the model with ``dtype=numpy.float64``.
    loss : callable
        ``loss(y, target)`` returns the loss and dL/dy. What of `lengths`, `mask` and `weight` the batch has is passed
        by keyword if the loss has an argument of this name. A mask or weights that it does not take are refused.
        `lengths` are left out where y has not the time axis of x.
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
    accumulate : int
        The number of batches that make one step: it is the step on all of them joined, in the memory of one, as
        `training_step` explains. The last step of an epoch takes what is left. History, monitor and callbacks see one
        step; of what a forward pass leaves, they see that of its last batch.
    stateful : bool
        Whether each batch starts from the state at which the last one ended, and an epoch from zeros. No gradient
        passes from batch to batch: this is truncated backpropagation through time. Sequence b of a batch has to
        continue sequence b of the last one. Where a state is not finite, the sequence starts from zeros.
    validation : iterable or callable, optional
        Batches like those for training, on which the model is evaluated in inference at the end of each epoch. The
        means over all their terms are in `history.validation_loss` and `history.metrics`.
    metrics : dict or iterable of callables, optional
        What else to evaluate on the validation batches: functions ``(y, target)`` that return a mean, or a loss with
        its gradient. They get `lengths`, `mask` and `weight` as the loss does. Those of a list go by their own names.
    early_stopping : EarlyStopping, optional
        What ends the training when a number stops improving. However the run ends, but for an error, the model is left
        with the best weights.
    checkpoint : path, optional
        A file to write at the end of each epoch, as `save_checkpoint` does, with model, optimizer, history, monitor,
        early stopping, supervisor, and the hooks and the threshold that have a state. The model in it has the newest
        weights.
    resume : bool
        Whether to go on from the checkpoint, up to `epochs` in total: bit for bit as if the run had not ended. Pass the
        same arguments as before, with new objects or old ones. If there is no such file, the run begins.
    supervisor : Supervisor, optional
        What finds spikes of the loss and of the norm, goes back to before them, and passes over batches.
    rng : numpy.random.Generator or iterable of them, optional
        The generators that `batches` draw from, for the checkpoint. Those of the model are in it by themselves.

    Returns
    -------
    History
        The record of every step, from before a resumed run too.

    Raises
    ------
    ValueError
        If `batches` is an iterator, which can be consumed only once, and `epochs` is above 1; if an epoch has no
        batches or a batch has another form; if no layer of the model takes `step_clip` or a state; if the checkpoint is
        not of this run.
    TypeError
        If a batch has another dtype than the model, or has a mask or weights and the loss takes none.
    OSError
        If the checkpoint cannot be written.
    TooManyRollbacksError
        If the supervisor gives up.

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
    given, callbacks = check_hooks(hooks), as_list("callbacks", callbacks, "an iterable of callables")
    n_batches, accumulate = check_batches("batches", batches, epochs), check_int("accumulate", accumulate, least=1)
    _check_watchers(monitor, callbacks, progress)
    criterion, interrupt = Criterion(loss, model), Interrupt()
    others: dict[str, Any] = {"max_norm": max_norm, "monitor": monitor, "early_stopping": early_stopping}
    run = RunState(model, optimizer, hooks=given, **others)
    validating = held_out(model, validation, criterion, metrics, epochs, stateful=stateful, interrupt=interrupt)
    file = None if checkpoint is None else RunFile(checkpoint, run, supervisor, rng)
    own = [
        None if early_stopping is None else Stopping(model, early_stopping, validating),
        Carry(run) if check_bool("stateful", stateful) else None,
        file,
        _WholeUpdates(interrupt),  # the last one: what follows it is finished first
    ]
    order = [hook for hook in (validating, *given, *own) if hook is not None]
    again = [hook for hook in order if hook is not file]  # to end an undone epoch
    if supervisor is not None:
        check_methods("supervisor", supervisor, "watch", "after_step")
        supervisor.watch(run)
    first = _begin(file, early_stopping, epochs, resume=resume)
    history, total = run.history, None if n_batches is None else (epochs - first) * -(-n_batches // accumulate)
    n_clipped = int(history.clipped.sum())
    with _ending(callbacks, history), interrupt, ProgressBar(total, "training", show=progress) as bar:
        undo = Undo(model)
        try:
            interrupt.at_once = True
            given_batches = each_batch(batches, epochs, first)
            used = given_batches if supervisor is None else supervisor.used(given_batches)
            for epoch, group in in_groups(used, accumulate):
                if group is None:
                    interrupt.at_once = False
                    if supervisor is not None:
                        supervisor.after_epoch()
                    answers: list[Any] = [hook.after_epoch(epoch, history) for hook in order]
                    if bar.total is None:
                        bar.total = (epochs - first) * int((history.epoch == epoch).sum())
                else:
                    step = TrainingStep(model, optimizer, *group[0], len(history), epoch, history, nonfinite)
                    run_step(step, group, criterion, order, max_norm, step_clip, undo)
                    interrupt.at_once = False
                    seen = criterion if len(group) == 1 else None  # which the monitor may use on the step's batch
                    answers = [] if step.dropped else _record(step, seen, max_norm, monitor, callbacks)
                    n_clipped += bool(getattr(step.grad_norm, "clipped", False))
                    share = n_clipped / max(len(history), 1)
                    norm = float("nan") if step.dropped else float(step.grad_norm)
                    if supervisor is not None and not step.dropped and (rollback := supervisor.after_step(step)):
                        answers += _go_on(supervisor, rollback, callbacks, again, history)
                        n_clipped = int(history.clipped.sum())
                    bar.update(f"loss {step.loss:.4g}  norm {norm:.3g}  clipped {share:.0%}")
                    del step  # the next one uses the buffers of its tape again
                if interrupt.requested or _stops(answers):
                    break
                undo = Undo(model)
                interrupt.at_once = True
            interrupt.at_once = False
        except BrokenOff:
            interrupt.at_once = False
            undo()
    history.interrupted = interrupt.requested
    if early_stopping is not None:
        early_stopping.restore(model)
    if monitor is not None:
        monitor.finish()
    _tell_of_end(callbacks, history)
    return history


def _begin(file: RunFile | None, early_stopping: EarlyStopping | None, epochs: int, *, resume: bool) -> int:
    """Return the first epoch to train, after going on from the checkpoint if there is one."""
    if check_bool("resume", resume) and file is None:
        raise ValueError("resume: expected a checkpoint to go on from, got checkpoint=None")
    if early_stopping is not None:
        early_stopping.reset()
    first = 0 if file is None or not resume else min(file.resume(), epochs)
    return epochs if early_stopping is not None and early_stopping.stopped else first


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


def _stops(answers: list[Any]) -> bool:
    return any(answer is True or answer is np.True_ for answer in answers)


def _go_on(
    supervisor: Supervisor, rollback: Rollback, callbacks: list[Any], hooks: list[Hook], history: History
) -> list[Any]:
    """Tell the callbacks of a rollback, end the undone epochs again, and return the hooks' answers."""
    for callback in callbacks:
        after_rollback = getattr(callback, "after_rollback", None)
        if after_rollback is not None:
            after_rollback(rollback)
    answers: list[Any] = []
    for epoch in supervisor.epochs_again():
        answers += [hook.after_epoch(epoch, history) for hook in hooks]
        if _stops(answers):
            break
    return answers


def _tell_of_end(callbacks: list[Any], history: History, error: BaseException | None = None) -> None:
    for callback in callbacks:
        after_run = getattr(callback, "after_run", None)
        if after_run is not None:
            after_run(history, error)


def _record(
    step: TrainingStep,
    loss: Criterion | None,
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
        criterion = None
        if loss is not None and isinstance(loss.function, (FunctionType, partial)):
            criterion = partial(_loss_of, loss, step)
        monitor.update(*given, max_norm=limit, record=step, criterion=criterion)
    return [callback(step) for callback in callbacks]


def _loss_of(loss: Criterion, step: TrainingStep, y: Array, target: Any) -> Any:
    """Return the loss that another output would have had."""
    return loss(y, step)


def _check_watchers(monitor: Any, callbacks: list[Any], progress: bool | None) -> None:
    if monitor is not None:
        check_methods("monitor", monitor, "update", "finish")
    for i, callback in enumerate(callbacks):
        if not callable(callback):
            raise TypeError(f"callbacks[{i}]: expected a callable, got {type(callback).__name__}")
    if progress is not None:
        check_bool("progress", progress)
