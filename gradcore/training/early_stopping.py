"""Stop when a number stops improving, and leave the best weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

from gradcore._base.check import check_bool, check_choice, check_int, check_names, check_number, check_real

__all__ = ["EarlyStopping"]

STATE = ("best", "best_epoch", "n_epochs", "waited", "stopped", "weights")


class EarlyStopping:
    """End the training when a number has stopped improving, and leave the best weights.

    Pass it to `fit`. In a loop of your own, call `update` after every epoch and `restore` at the end.

    Parameters
    ----------
    monitor : str
        The number that `fit` looks at: "validation_loss", the name of a metric, or "loss" for the mean of the epoch's
        training losses.
    patience : int
        The number of epochs in a row without improvement after which the training ends.
    min_delta : float
        How much better than the best number another one has to be to count as an improvement.
    mode : {"min", "max"}
        Whether the number is to fall, as a loss, or to rise, as an accuracy.

    Attributes
    ----------
    best : float
        The best number; NaN before the first one that is not.
    best_epoch : int or None
        The epoch in which it was reached, from 0.
    stopped : bool
        Whether the training has been ended.

    Notes
    -----
    The best weights are those of the whole state dict, buffers included. A number that is NaN is no improvement.

    Examples
    --------
    >>> import gradcore
    >>> model = gradcore.Linear(3, 1)
    >>> stopping = gradcore.EarlyStopping(patience=2)
    >>> [stopping.update(loss, model) for loss in (0.9, 0.5, 0.6, 0.7)]
    [False, False, False, True]
    >>> stopping.restore(model)
    >>> stopping.best, stopping.best_epoch
    (0.5, 1)
    """

    def __init__(
        self, monitor: str = "validation_loss", patience: int = 5, min_delta: float = 0.0, *, mode: str = "min"
    ) -> None:
        if not isinstance(monitor, str):
            raise TypeError(f"monitor: expected a name, got {type(monitor).__name__}")
        self.monitor, self.patience = monitor, check_int("patience", patience)
        self.min_delta, self.mode = (
            check_number("min_delta", min_delta, least=0.0),
            check_choice("mode", mode, ("min", "max")),
        )
        self.reset()

    def reset(self) -> None:
        """Forget everything seen; `fit` does so when it begins.

        Examples
        --------
        >>> import gradcore
        >>> stopping = gradcore.EarlyStopping()
        >>> stopping.reset()
        >>> stopping.stopped
        False
        """
        self.best, self.stopped = math.nan, False
        self.best_epoch: int | None = None
        self._n_epochs = self._waited = 0
        self._weights: Any = None

    def update(self, value: float, model: Any) -> bool:
        """Look at the number of an epoch, and keep a copy of the weights if it is the best.

        Parameters
        ----------
        value : float
            The number.
        model : layer or model
            The model, with `state_dict`.

        Returns
        -------
        bool
            Whether to stop.
        """
        value = check_real("value", value)
        gain = self.best - value if self.mode == "min" else value - self.best
        if gain > self.min_delta or (math.isnan(self.best) and not math.isnan(value)):
            self.best, self.best_epoch, self._waited = value, self._n_epochs, 0
            self._weights = copy.deepcopy(model.state_dict())
        else:
            self._waited += 1
        self._n_epochs += 1
        self.stopped = self._waited > 0 and self._waited >= self.patience
        return self.stopped

    def restore(self, model: Any) -> None:
        """Give the model its best weights back, if there has been a best epoch.

        Parameters
        ----------
        model : layer or model
            The model.
        """
        if self._weights is not None:
            model.load_state_dict(self._weights)

    def state_dict(self) -> dict[str, Any]:
        """Return what it has seen, and the best weights, for a checkpoint.

        Returns
        -------
        dict
            Numbers, and the state dict of the model.

        Examples
        --------
        >>> import gradcore
        >>> gradcore.EarlyStopping().state_dict()["waited"]
        0
        """
        values = (self.best, self.best_epoch, self._n_epochs, self._waited, self.stopped, copy.deepcopy(self._weights))
        return dict(zip(STATE, values, strict=True))

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Parameters
        ----------
        state_dict : mapping
            The state.

        Raises
        ------
        KeyError, TypeError, ValueError
            If the state is not that of an `EarlyStopping`. Nothing is changed then.
        """
        check_names("state_dict", state_dict, STATE)
        best, best_epoch = check_real("best", state_dict["best"]), state_dict["best_epoch"]
        best_epoch = None if best_epoch is None else check_int("best_epoch", best_epoch)
        n_epochs, waited = (check_int(name, state_dict[name]) for name in ("n_epochs", "waited"))
        stopped, weights = check_bool("stopped", state_dict["stopped"]), state_dict["weights"]
        if weights is not None and not isinstance(weights, Mapping):
            raise TypeError(f"weights: expected a mapping or None, got {type(weights).__name__}")
        self.best, self.best_epoch, self._n_epochs, self._waited = best, best_epoch, n_epochs, waited
        self.stopped, self._weights = stopped, None if weights is None else dict(weights)

    def __repr__(self) -> str:
        options = (
            f"monitor={self.monitor!r}, patience={self.patience}, min_delta={self.min_delta:g}, mode={self.mode!r}"
        )
        return f"EarlyStopping({options})"
