"""What takes part in a training step, and what it sees of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from gradcore._base.check import Array

__all__ = ["Hook", "TrainingStep"]


@dataclass(eq=False, slots=True)
class TrainingStep:
    """Hold one step of a training run: what hooks and callbacks see, and what hooks may change.

    Parameters
    ----------
    model : layer or model
        The model.
    optimizer : optimizer
        The optimizer.
    x, target : object
        The batch.
    options : dict
        Further arguments of the model's `forward`: `lengths`, `reset`, `state`.
    terms : dict
        Further arguments of the loss, as far as it takes them: `lengths`, `mask`, `weight`.
    step, epoch : int
        The numbers of the step and of the epoch, both from 0.
    history : History or None
        The record of the run; callbacks find this step in it. None outside `fit`.
    nonfinite : {"skip", "zero", "raise"}
        What the optimizer does with a gradient that is not finite.
    y : ndarray
        The output; set by the forward pass.
    tape : tape
        The tape of the forward pass. Do not keep it: the next step uses its buffers again.
    loss : float
        The loss, without any scaling.
    dy : ndarray
        The gradient that starts the backward pass.
    scale : float
        The factor by which dy, and so every gradient, has been multiplied. The optimizer divides by it.
    lr : float
        The learning rate of this step; NaN if the optimizer has none.
    grad_norm : GradNorm
        The norm that `optimizer.step` returned, divided by `scale`; set by the update.
    parts_left : int
        The number of batches whose gradients are still to be added to this step's, in gradient accumulation; else 0.
    dropped : bool
        Whether the step ends without an update, and without a trace in the history. A hook sets it in `before_forward`
        or `after_backward`.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> model = gradcore.Linear(3, 1)
    >>> batch = np.ones((4, 3), np.float32), np.ones((4, 1), np.float32)
    >>> step = gradcore.training_step(model, batch, gradcore.losses.mse, gradcore.optim.SGD(model, lr=0.1))
    >>> step.y.shape, step.lr, step.scale
    ((4, 1), 0.1, 1.0)
    """

    model: Any
    optimizer: Any
    x: Any
    target: Any
    options: dict[str, Any] = field(default_factory=dict)
    terms: dict[str, Any] = field(default_factory=dict)
    step: int = 0
    epoch: int = 0
    history: Any = None
    nonfinite: str = "skip"
    y: Any = None
    tape: Any = None
    loss: float = math.nan
    dy: Array | Any = None
    scale: float = 1.0
    lr: float = math.nan
    grad_norm: Any = None
    parts_left: int = 0
    dropped: bool = False


class Hook:
    """Take part in every training step: override the places you need; by default they do nothing.

    `training_step` and `fit` call the hooks at each place in the order in which they were passed. Every hook is done
    with one place before any hook is asked at the next one. All places but `after_epoch` get the `TrainingStep`.

    With gradient accumulation the first three places come once for each batch of a step, whose `x`, `target`, `y`,
    `tape`, `dy` and `loss` the step then holds; its `scale` includes the share of the batch in the loss of the step. A
    hook that sets `dropped` drops the whole step.

    If a hook raises before the update, the step is undone: parameters and optimizer are as after the last whole step,
    gradients are zero, and the generators of the model are where they were. The same holds for Ctrl-C in `fit`, which
    waits for nothing but the update, `after_step` and `after_epoch`.

    Notes
    -----
    Which place serves which purpose:

    - `before_forward`: truncated backpropagation through time puts the last final state into ``step.options``; a
      batch is passed over with ``step.dropped = True``.
    - `after_loss`: loss scaling multiplies ``step.dy`` and ``step.scale``.
    - `after_backward`: regularizers and gradient penalties add to ``model.grads``, times ``step.scale``; processes sum
      their gradients when ``step.parts_left`` is 0.
    - `before_step`: adaptive clipping changes the whole gradient, which is still multiplied by ``step.scale``.
    - `after_step`: loss scaling finds its next scale; averages of the weights follow them.
    - `on_failure`: processes tell each other; whatever was begun in this step is given up.
    - `after_epoch`: validation, early stopping, checkpoints.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> class Noise(gradcore.Hook):
    ...     def __init__(self, size, seed):
    ...         self.size, self.rng = size, np.random.default_rng(seed)
    ...     def after_backward(self, step):
    ...         grads = step.model.flat_grads
    ...         grads += self.size * step.scale * self.rng.standard_normal(grads.size)
    >>> model = gradcore.Linear(3, 1, dtype=np.float64, rng=0)
    >>> optimizer = gradcore.optim.SGD(model, lr=0.1)
    >>> batch = np.ones((4, 3)), np.ones((4, 1))
    >>> history = gradcore.fit(model, [batch], gradcore.losses.mse, optimizer, epochs=20, hooks=[Noise(0.01, seed=0)])
    >>> bool(history.loss[-1] < 0.1 * history.loss[0])
    True
    """

    def before_forward(self, step: TrainingStep) -> None:
        """Change the batch or the arguments of `forward`, before anything is computed.

        Parameters
        ----------
        step : TrainingStep
            The step, with the batch.
        """

    def after_loss(self, step: TrainingStep) -> None:
        """Change the gradient that starts the backward pass.

        Parameters
        ----------
        step : TrainingStep
            The step, with `y`, `tape`, `loss` and `dy`.
        """

    def after_backward(self, step: TrainingStep) -> None:
        """Add to the gradients.

        Parameters
        ----------
        step : TrainingStep
            The step; the gradients are in ``step.model.grads``.
        """

    def before_step(self, step: TrainingStep) -> None:
        """Change the gradient as a whole, after every hook has added its part.

        Parameters
        ----------
        step : TrainingStep
            The step.
        """

    def after_step(self, step: TrainingStep) -> None:
        """Look at the step after the update.

        Parameters
        ----------
        step : TrainingStep
            The step, with `grad_norm`, which also tells whether the optimizer has skipped the update.
        """

    def on_failure(self, step: TrainingStep, error: BaseException) -> None:
        """Give up what was begun in a step that ends with an error before its update has been made.

        Parameters
        ----------
        step : TrainingStep
            The step, already undone.
        error : BaseException
            What was raised; it is raised again afterwards.
        """

    def after_epoch(self, epoch: int, history: Any) -> bool | None:
        """Look at the run at the end of an epoch of `fit`.

        Parameters
        ----------
        epoch : int
            The number of the epoch, from 0.
        history : History
            The record so far.

        Returns
        -------
        bool or None
            True ends the training.
        """
        return None
