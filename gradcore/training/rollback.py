"""What a supervisor did about a spike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gradcore._base.check import FLOAT64, Array, as_list, check_array, check_int, check_names
from gradcore._base.files import floats

__all__ = ["Rollback", "TooManyRollbacksError"]


@dataclass(frozen=True, eq=False)
class Rollback:
    """Hold what a `Supervisor` did about a spike: an entry of `History.rollbacks`.

    Steps are counted without those that were undone, as in the history; batches are counted from the start of the run,
    whether they were used or not.

    Parameters
    ----------
    step, epoch : int
        The step at which the spike was found, and its epoch.
    reason : str
        What was found.
    snapshot : int
        The number of steps to which the run went back: those from this one up to `step` are undone.
    batches : range
        The batches that are passed over: those that followed the snapshot, up to the last one of `skip`. Those that an
        earlier rollback has passed over are among them.
    loss, grad_norm : ndarray, (steps,), float64
        The losses and the gradient norms of the undone steps.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore import Rollback
    >>> print(Rollback(7, 0, "the loss is nan", 6, range(6, 9), np.array([0.5, np.nan]), np.array([1.0, np.nan])))
    step 7: the loss is nan; 2 steps undone, back to 6, batches 6 to 8 passed over
    """

    step: int
    epoch: int
    reason: str
    snapshot: int
    batches: range
    loss: Array
    grad_norm: Array

    def __str__(self) -> str:
        undone = f"{len(self.loss)} step{'' if len(self.loss) == 1 else 's'} undone"
        batches = f"batches {self.batches.start} to {self.batches.stop - 1} passed over"
        return f"step {self.step}: {self.reason}; {undone}, back to {self.snapshot}, {batches}"

    def to_dict(self) -> dict[str, Any]:
        """Return everything as numbers, arrays and text; `batches` as the first one and the one after the last.

        Returns
        -------
        dict
            The fields by name.

        Examples
        --------
        >>> import numpy as np
        >>> from gradcore import Rollback
        >>> Rollback(7, 0, "the loss is nan", 7, range(7, 9), np.ones(1), np.ones(1)).to_dict()["batches"]
        [7, 9]
        """
        batches = [self.batches.start, self.batches.stop]
        return {**vars(self), "batches": batches, "loss": self.loss.copy(), "grad_norm": self.grad_norm.copy()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Rollback:
        """Return what `to_dict` was called on.

        Parameters
        ----------
        values : mapping
            What `to_dict` returned, also after it has been JSON: lists stand for arrays, and text for what is not
            finite.

        Returns
        -------
        Rollback
            The same again.

        Raises
        ------
        KeyError, TypeError, ValueError
            If an entry is missing, unknown or invalid.
        """
        check_names("values", values, cls.__dataclass_fields__)
        step, epoch, snapshot = (check_int(name, values[name]) for name in ("step", "epoch", "snapshot"))
        if not isinstance(values["reason"], str):
            raise TypeError(f"reason: expected text, got {type(values['reason']).__name__}")
        batches = [check_int("batches", value) for value in as_list("batches", values["batches"])]
        if len(batches) != 2:
            raise ValueError(f"batches: expected the first and the one after the last, got {batches}")
        loss, norm = (check_array(name, floats(values[name]), FLOAT64, ("n",)).copy() for name in ("loss", "grad_norm"))
        return cls(step, epoch, values["reason"], snapshot, range(*batches), loss, norm)


class TooManyRollbacksError(RuntimeError):
    """The error with which a `Supervisor` gives up. The model is where the last rollback left it.

    Parameters
    ----------
    history : History
        The record of the run, with all rollbacks.

    Attributes
    ----------
    rollbacks : list of Rollback
        All of them; the last one was one too many.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> model = gradcore.Linear(3, 1, rng=0)
    >>> batch = np.full((4, 3), np.nan, np.float32), np.ones((4, 1), np.float32)
    >>> try:
    ...     gradcore.fit(
    ...         model,
    ...         [batch] * 10,
    ...         gradcore.losses.mse,
    ...         gradcore.optim.SGD(model),
    ...         epochs=1,
    ...         supervisor=gradcore.Supervisor(skip=1, max_rollbacks=1),
    ...     )
    ... except gradcore.TooManyRollbacksError as error:
    ...     print(error)
    gave up after 2 spikes (max_rollbacks: 1):
      step 0: the loss is nan; 1 step undone, back to 0, batches 0 to 0 passed over
      step 0: the loss is nan; 1 step undone, back to 0, batches 0 to 1 passed over
    """

    def __init__(self, history: Any) -> None:
        super().__init__(history)
        self.history = history

    def __str__(self) -> str:
        n = len(self.rollbacks)
        head = f"gave up after {n} spike{'' if n == 1 else 's'} (max_rollbacks: {n - 1}):"
        return "\n  ".join([head, *map(str, self.rollbacks)])

    @property
    def rollbacks(self) -> list[Rollback]:
        """All rollbacks."""
        found: list[Rollback] = self.history.rollbacks
        return found
