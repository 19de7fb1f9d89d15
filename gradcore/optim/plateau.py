"""A learning rate that falls when a loss stops falling."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gradcore._base.check import check_choice, check_int, check_names, check_number, check_real
from gradcore._base.hook import Hook
from gradcore.optim.optimizer import Optimizer

__all__ = ["ReduceLROnPlateau"]


class ReduceLROnPlateau(Hook):
    """Lower the learning rate when a number has stopped improving, with PyTorch's names, defaults and rule.

    Pass it to `fit` as one of the `hooks`: it looks at the end of each epoch. In a loop of your own, call `step`.

    Parameters
    ----------
    optimizer : Optimizer
        The optimizer, whose learning rates are numbers: all groups' are lowered.
    mode : {"min", "max"}
        Whether the number is to fall, as a loss, or to rise, as an accuracy.
    factor : float
        The factor of the learning rate, above 0 and below 1.
    patience : int
        The number of epochs in a row without improvement that are let pass; one more lowers the rate.
    threshold : float
        How much better than the best number another one has to be to count as an improvement.
    threshold_mode : {"rel", "abs"}
        Whether `threshold` is a part of the best number, or a number itself.
    cooldown : int
        The number of epochs after a change in which none counts as one without improvement.
    min_lr : float
        The lowest learning rate, at least 0.
    eps : float
        The least change; a smaller one is not made.
    monitor : str
        The number that `fit` looks at: "validation_loss", the name of a metric, or "loss" for the mean of the epoch's
        training losses, which also takes the place of a "validation_loss" where there is no validation.

    Attributes
    ----------
    best : float
        The best number so far; infinite before the first.
    num_bad_epochs : int
        The number of epochs in a row without improvement.
    cooldown_counter : int
        The number of epochs for which the cooldown still lasts.

    Notes
    -----
    A number that is NaN is no improvement. The learning rate itself is part of the optimizer's state.

    Examples
    --------
    >>> import gradcore
    >>> optimizer = gradcore.optim.SGD(gradcore.Linear(3, 1), lr=0.8)
    >>> plateau = gradcore.optim.ReduceLROnPlateau(optimizer, factor=0.5, patience=1)
    >>> for loss in (1.0, 0.9, 0.9, 0.9, 0.9):
    ...     plateau.step(loss)
    >>> optimizer.lr, plateau.best, plateau.num_bad_epochs
    (0.4, 0.9, 1)
    """

    def __init__(
        self,
        optimizer: Optimizer,
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        min_lr: float = 0.0,
        eps: float = 1e-8,
        *,
        monitor: str = "validation_loss",
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer: expected an optimizer of gradcore.optim, got {type(optimizer).__name__}")
        if not isinstance(monitor, str):
            raise TypeError(f"monitor: expected a name, got {type(monitor).__name__}")
        self._optimizer, self._monitor = optimizer, monitor
        self._mode = check_choice("mode", mode, ("min", "max"))
        self._factor = check_number("factor", factor, above=0.0, most=math.nextafter(1.0, 0.0))
        self._patience = check_int("patience", patience)
        self._threshold = check_number("threshold", threshold, least=0.0)
        self._relative = check_choice("threshold_mode", threshold_mode, ("rel", "abs")) == "rel"
        self._cooldown = check_int("cooldown", cooldown)
        self._min_lr = check_number("min_lr", min_lr, least=0.0)
        self._eps = check_number("eps", eps, least=0.0)
        self.best = math.inf if mode == "min" else -math.inf
        self.num_bad_epochs = self.cooldown_counter = 0
        self._numbers()

    def step(self, value: float) -> None:
        """Look at the number of an epoch, and lower the learning rate if it is time to.

        Parameters
        ----------
        value : float
            The number, such as the loss on held-out data.

        Raises
        ------
        TypeError
            If `value` is no number, or a learning rate is a schedule; nothing is changed.
        """
        value, rates = check_real("value", value), self._numbers()
        if self._is_better(value):
            self.best, self.num_bad_epochs = value, 0
        else:
            self.num_bad_epochs += 1
        if self.cooldown_counter > 0:
            self.cooldown_counter, self.num_bad_epochs = self.cooldown_counter - 1, 0
        if self.num_bad_epochs > self._patience:
            self._optimizer.lr, *lowered = map(self._lowered, rates)
            for group, lr in zip(self._optimizer.groups, lowered, strict=True):
                if group.lr != lr:  # one of its own
                    group.lr = lr
            self.cooldown_counter, self.num_bad_epochs = self._cooldown, 0

    def _numbers(self) -> list[float]:
        """Return the learning rates of the optimizer and of its groups."""
        rates = [self._optimizer.lr, *(group.lr for group in self._optimizer.groups)]
        for lr in rates:
            if callable(lr):
                raise TypeError(f"optimizer: expected a number as lr, got the schedule {lr!r}")
        return rates

    def _lowered(self, lr: float) -> float:
        lower = max(lr * self._factor, self._min_lr)
        return lower if lr - lower > self._eps else lr

    def _is_better(self, value: float) -> bool:
        sign = 1.0 if self._mode == "min" else -1.0
        if self._relative:
            return sign * value < sign * self.best * (1.0 - sign * self._threshold)
        return sign * value < sign * self.best - self._threshold

    def after_epoch(self, epoch: int, history: Any) -> None:
        """Look at the number that is monitored.

        Parameters
        ----------
        epoch : int
            The number of the epoch, from 0.
        history : History
            The record so far.

        Raises
        ------
        ValueError
            If the history has no number of this name.
        """
        numbers = {"validation_loss": history.validation_loss, **history.metrics}
        numbers = {name: values for name, values in numbers.items() if values.size}
        losses = history.loss[history.epoch == epoch]
        if self._monitor in numbers:
            self.step(float(numbers[self._monitor][-1]))
        elif self._monitor in ("loss", "validation_loss"):
            self.step(float(losses.mean()) if losses.size else math.nan)
        else:
            raise ValueError(f"monitor: expected one of {', '.join(['loss', *numbers])}, got {self._monitor!r}")

    def state_dict(self) -> dict[str, Any]:
        """Return what the next epoch depends on, with PyTorch's names.

        Returns
        -------
        dict
            The best number and the two counters.

        Examples
        --------
        >>> import gradcore
        >>> optimizer = gradcore.optim.SGD(gradcore.Linear(3, 1))
        >>> gradcore.optim.ReduceLROnPlateau(optimizer).state_dict()
        {'best': inf, 'num_bad_epochs': 0, 'cooldown_counter': 0}
        """
        return {
            "best": self.best,
            "num_bad_epochs": self.num_bad_epochs,
            "cooldown_counter": self.cooldown_counter,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore a state; if any of it is invalid, nothing is changed.

        Parameters
        ----------
        state_dict : mapping
            What `state_dict` returned.

        Raises
        ------
        KeyError
            If an entry is missing or unknown.
        TypeError, ValueError
            If it is not a mapping, or a number is out of range.
        """
        check_names("state_dict", state_dict, self.state_dict())
        best = check_real("best", state_dict["best"])
        counts = [check_int(name, state_dict[name]) for name in ("num_bad_epochs", "cooldown_counter")]
        self.best, (self.num_bad_epochs, self.cooldown_counter) = best, counts

    def __repr__(self) -> str:
        return (
            f"ReduceLROnPlateau(mode={self._mode!r}, factor={self._factor!r}, patience={self._patience!r}, "
            f"threshold={self._threshold!r}, threshold_mode={'rel' if self._relative else 'abs'!r}, "
            f"cooldown={self._cooldown!r}, min_lr={self._min_lr!r}, eps={self._eps!r}, monitor={self._monitor!r})"
        )
