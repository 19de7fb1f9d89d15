"""A training loop."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradcore._base.check import Array, as_list, check_bool, check_int
from gradcore._base.progress import ProgressBar
from gradcore.clip.gradients import check_limit, check_policy
from gradcore.clip.threshold import Threshold
from gradcore.layers.telemetry import StepTelemetry
from gradcore.optim.schedule import Schedule
from gradcore.training.history import History
from gradcore.training.interrupt import BrokenOff, Interrupt
from gradcore.training.monitor import GradientMonitor

__all__ = ["StepRecord", "fit"]


@dataclass(frozen=True)
class StepRecord:
    """Describe a step to the callbacks of `fit`.

    Parameters
    ----------
    step, epoch : int
        The numbers of the step and of the epoch, both from 0.
    loss : float
        The loss.
    grad_norm : GradNorm
        The norm that `optimizer.step` returned.
    model : layer or model
        The model, after the step.
    tape : tape
        The tape, after `backward`. Do not keep it: the next step uses its buffers again.
    history : History
        The record up to and including this step.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> model = gradcore.Linear(3, 1)
    >>> batch = np.ones((4, 3), np.float32), np.ones((4, 1), np.float32)
    >>> def callback(record):
    ...     print(record.step, record.epoch, len(record.history))
    >>> optimizer = gradcore.optim.SGD(model)
    >>> history = gradcore.fit(model, [batch], gradcore.losses.mse, optimizer, epochs=2, callbacks=[callback])
    0 0 1
    1 1 2
    """

    step: int
    epoch: int
    loss: float
    grad_norm: Any
    model: Any
    tape: Any
    history: History


def fit(
    model: Any,
    batches: Iterable[Any] | Callable[[], Iterable[Any]],
    loss: Callable[[Array, Any], tuple[float, Array]],
    optimizer: Any,
    *,
    epochs: int,
    max_norm: float | Threshold | Schedule | None = None,
    step_clip: float | None = None,
    regularizer: Callable[..., float] | None = None,
    nonfinite: str = "skip",
    monitor: GradientMonitor | None = None,
    callbacks: Iterable[Callable[[StepRecord], Any]] = (),
    progress: bool | None = None,
) -> History:
    """Train a model: forward, loss, backward and a clipped step, for every batch of every epoch.

    Ctrl-C ends the run and returns the history so far. It breaks off the forward pass, the backward pass, the loss and
    the wait for a batch at once, and leaves the model and the optimizer as they were after the last whole step. The
    optimizer's update and the callbacks finish first. A second Ctrl-C interrupts these too.

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
    regularizer : VanishingGradientRegularizer, optional
        A term of the loss whose gradient the backward pass of recurrent layers adds. `History.loss` does not include
        it. Each recurrent layer's `tape.omega`, which callbacks see, holds its value.
    nonfinite : {"skip", "zero", "raise"}
        What `optimizer.step` does with a gradient that is not finite.
    monitor : GradientMonitor, optional
        A monitor to update after every step and to finish at the end.
    callbacks : iterable of callables
        Functions to call with a `StepRecord` after every step. One that returns True ends the training.
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
        batches or a batch has another form; if no layer of the model takes `step_clip` or `regularizer`.
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
    if max_norm is not None:
        check_limit(max_norm, getattr(optimizer, "n_steps", 0))
    check_policy(nonfinite)
    for name, value, methods in (
        ("model", model, ("zero_grad", "forward", "backward")),
        ("optimizer", optimizer, ("step",)),
        ("monitor", monitor, ("update", "finish")),
    ):
        missing = [method for method in methods if not callable(getattr(value, method, None))]
        if missing and not (value is None and name == "monitor"):
            raise TypeError(f"{name}: expected an object with {' and '.join(methods)}, got {type(value).__name__}")
    given = {"step_clip": step_clip, "regularizer": regularizer}
    backward_options = {name: value for name, value in given.items() if value is not None}
    for name, value in backward_options.items():
        if not _takes(model.backward, name, value):
            raise ValueError(f"{name}: no layer of this model takes it")
    if not callable(loss):
        raise TypeError(f"loss: expected a callable, got {type(loss).__name__}")
    if not isinstance(batches, Iterable) and not callable(batches):
        raise TypeError(f"batches: expected an iterable or a callable, got {type(batches).__name__}")
    callbacks = as_list("callbacks", callbacks, "an iterable of callables")
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
        total = epochs * len(batches) if isinstance(batches, Sized) else None
    except (TypeError, ValueError) as error:  # an array without axes, a buffer that was released
        raise TypeError(f"batches: expected an iterable, got {type(batches).__name__}: {error}") from None
    history = History()
    n_clipped = 0
    with (
        Interrupt() as interrupt,
        ProgressBar(total, "training", show=progress) as bar,
    ):
        drawn = _states(model)
        try:
            interrupt.at_once = True
            for epoch, x, target, options in each_batch(batches, epochs):
                model.zero_grad()
                y, tape = model.forward(x, **options)
                value, dy = loss(y, target)
                value = float(value)
                model.backward(tape, dy, **backward_options)
                interrupt.at_once = False

                lr = getattr(optimizer, "lr", math.nan)
                if callable(lr):
                    lr = lr(optimizer.n_steps)  # before the step, which counts itself
                norm = optimizer.step(max_norm=max_norm, nonfinite=nonfinite)
                limit = None if max_norm is None else norm.max_norm
                seen = StepTelemetry(tape)
                history.append(value, norm, epoch=epoch, lr=lr, max_norm=limit, tape=seen)
                step = len(history) - 1
                if monitor is not None:
                    monitor.update(step, value, norm, model, seen, y, max_norm=limit)
                record = StepRecord(step, epoch, value, norm, model, tape, history)
                answers = [callback(record) for callback in callbacks]

                if bar.total is None and epoch > 0:
                    bar.total = epochs * int((history.epoch == 0).sum())
                n_clipped += bool(norm.clipped)
                bar.update(f"loss {value:.4g}  norm {float(norm):.3g}  clipped {n_clipped / (step + 1):.0%}")
                if interrupt.requested or any(answer is True or answer is np.True_ for answer in answers):
                    break
                del y, tape, dy, record, seen  # the next step uses their buffers again
                drawn = _states(model)
                interrupt.at_once = True
            interrupt.at_once = False
        except BrokenOff:
            interrupt.at_once = False
            model.zero_grad()
            for generator, state in drawn:
                generator.bit_generator.state = state
    history.interrupted = interrupt.requested
    if monitor is not None:
        monitor.finish()
    return history


def _takes(method: Callable[..., Any], name: str, value: Any) -> bool:
    """Tell whether a method has this argument."""
    try:
        inspect.signature(method).bind_partial(**{name: value})
    except TypeError:
        return False
    return True


def _states(model: Any) -> list[tuple[np.random.Generator, Any]]:
    """Return the generators that `forward` draws from, each with its state."""
    return [(generator, generator.bit_generator.state) for generator in getattr(model, "generators", list)()]


def each_batch(batches: Any, epochs: int) -> Iterator[tuple[int, Any, Any, dict[str, Any]]]:
    """Yield epoch, x, target and further arguments of `forward` for every batch."""
    for epoch in range(epochs):
        n = 0
        for batch in batches if isinstance(batches, Iterable) else batches():
            n += 1
            if not isinstance(batch, (tuple, list)) or len(batch) not in (2, 3):
                what = f"{len(batch)} items" if isinstance(batch, (tuple, list)) else type(batch).__name__
                raise ValueError(f"batches: expected (x, target) or (x, target, lengths), got {what}")
            yield epoch, batch[0], batch[1], {"lengths": batch[2]} if len(batch) == 3 else {}
        if n == 0:
            raise ValueError(f"batches: epoch {epoch} produced no batches")
