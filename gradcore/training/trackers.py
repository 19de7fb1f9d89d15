"""Callbacks that pass a run on to TensorBoard, MLflow and Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gradcore._base.check import check_bool, check_int
from gradcore._base.hook import TrainingStep
from gradcore.training.live import ends_of_time
from gradcore.training.step import check_methods

__all__ = ["MLflow", "TensorBoard", "WandB", "measures"]


def measures(step: TrainingStep, *, parameters: bool = False) -> dict[str, float]:
    """Return what trackers are told of a step.

    Parameters
    ----------
    step : TrainingStep
        The step, after the update.
    parameters : bool
        Whether to include the gradient norm of every parameter, as "grad_norm/<parameter>".

    Returns
    -------
    dict
        "loss", "lr", "grad_norm/total", "clip/coef", "clipped" and "skipped" (0 or 1), and for each recurrent layer
        "dh_norm/<layer>/first" and "dh_norm/<layer>/last", the norm of dL/dh_t at the first and the last time step.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> from gradcore.training.trackers import measures
    >>> model = gradcore.GRU(3, 4, rng=0)
    >>> batch = np.ones((6, 2, 3), np.float32), np.ones((6, 2, 4), np.float32)
    >>> step = gradcore.training_step(model, batch, gradcore.losses.mse, gradcore.optim.SGD(model, lr=0.1))
    >>> [*measures(step)]
    ['loss', 'lr', 'grad_norm/total', 'clip/coef', 'clipped', 'skipped', 'dh_norm/l0/first', 'dh_norm/l0/last']
    """
    norm = step.grad_norm
    found = {"loss": step.loss, "lr": step.lr, "grad_norm/total": norm, "clip/coef": getattr(norm, "coef", 1.0)}
    found |= {name: getattr(norm, name, False) for name in ("clipped", "skipped")}
    for end, norms in zip(("first", "last"), ends_of_time(step), strict=True):
        found |= {f"dh_norm/{name}/{end}": value for name, value in norms.items()}
    per_array = getattr(norm, "per_array", {})
    if parameters and isinstance(per_array, Mapping):
        found |= {f"grad_norm/{name}": value for name, value in per_array.items()}
    return {name: float(value) for name, value in found.items()}


class _Tracker:
    """Tell somebody of every so many steps."""

    def __init__(self, every: int, parameters: bool) -> None:
        self._every = check_int("every", every, least=1)
        self._parameters = check_bool("parameters", parameters)

    def __call__(self, step: TrainingStep) -> None:
        """Log a step.

        Parameters
        ----------
        step : TrainingStep
            The step, after the update.
        """
        if step.step % self._every == 0:
            self._log(measures(step, parameters=self._parameters), step.step)

    def _log(self, values: dict[str, float], step: int) -> None:
        raise NotImplementedError


class TensorBoard(_Tracker):
    """Log a run to TensorBoard; a callback of `fit`.

    Parameters
    ----------
    writer : SummaryWriter
        The writer, of torch.utils.tensorboard or tensorboardX: an object with ``add_scalar(tag, value, step)``. Close
        it yourself.
    every : int
        The number of steps from one logged step to the next.
    parameters : bool
        Whether to log the gradient norm of every parameter too.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> from gradcore.training.trackers import TensorBoard
    >>> class Writer:  # in place of torch.utils.tensorboard.SummaryWriter("runs/first")
    ...     def add_scalar(self, tag, scalar_value, global_step=None):
    ...         if tag == "loss":
    ...             print(tag, global_step, round(scalar_value, 3))
    >>> model = gradcore.Linear(3, 1, rng=0)
    >>> batch, optimizer = (np.ones((4, 3), np.float32), np.ones((4, 1), np.float32)), gradcore.optim.SGD(model, lr=0.1)
    >>> callbacks = [TensorBoard(Writer(), every=2)]
    >>> history = gradcore.fit(model, [batch], gradcore.losses.mse, optimizer, epochs=4, callbacks=callbacks)
    loss 0 ...
    loss 2 ...
    """

    def __init__(self, writer: Any, *, every: int = 1, parameters: bool = False) -> None:
        check_methods("writer", writer, "add_scalar")
        super().__init__(every, parameters)
        self._writer = writer

    def _log(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)


class MLflow(_Tracker):
    """Log a run to MLflow; a callback of `fit`.

    Parameters
    ----------
    mlflow : module
        The module mlflow, with an active run: an object with ``log_metrics(values, step=step)``.
    every : int
        The number of steps from one logged step to the next. A call may take a millisecond or more for each value.
    parameters : bool
        Whether to log the gradient norm of every parameter too.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> from gradcore.training.trackers import MLflow
    >>> class mlflow:  # in place of: import mlflow
    ...     def log_metrics(metrics, step=None):
    ...         print(step, round(metrics["loss"], 3))
    >>> model = gradcore.Linear(3, 1, rng=0)
    >>> batch, optimizer = (np.ones((4, 3), np.float32), np.ones((4, 1), np.float32)), gradcore.optim.SGD(model, lr=0.1)
    >>> callbacks = [MLflow(mlflow)]
    >>> history = gradcore.fit(model, [batch], gradcore.losses.mse, optimizer, epochs=2, callbacks=callbacks)
    0 ...
    1 ...
    """

    def __init__(self, mlflow: Any, *, every: int = 1, parameters: bool = False) -> None:
        check_methods("mlflow", mlflow, "log_metrics")
        super().__init__(every, parameters)
        self._mlflow = mlflow

    def _log(self, values: dict[str, float], step: int) -> None:
        self._mlflow.log_metrics(values, step=step)


class WandB(_Tracker):
    """Log a run to Weights & Biases; a callback of `fit`.

    Parameters
    ----------
    run : Run
        What ``wandb.init()`` returned: an object with ``log(values, step=step)``. Finish it yourself.
    every : int
        The number of steps from one logged step to the next.
    parameters : bool
        Whether to log the gradient norm of every parameter too.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> from gradcore.training.trackers import WandB
    >>> class Run:  # in place of wandb.init(project="gradients")
    ...     def log(self, data, step=None):
    ...         print(step, round(data["loss"], 3))
    >>> model = gradcore.Linear(3, 1, rng=0)
    >>> batch, optimizer = (np.ones((4, 3), np.float32), np.ones((4, 1), np.float32)), gradcore.optim.SGD(model, lr=0.1)
    >>> callbacks = [WandB(Run())]
    >>> history = gradcore.fit(model, [batch], gradcore.losses.mse, optimizer, epochs=2, callbacks=callbacks)
    0 ...
    1 ...
    """

    def __init__(self, run: Any, *, every: int = 1, parameters: bool = False) -> None:
        check_methods("run", run, "log")
        super().__init__(every, parameters)
        self._run = run

    def _log(self, values: dict[str, float], step: int) -> None:
        self._run.log(values, step=step)
