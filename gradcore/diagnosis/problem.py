"""What is trained, as makers of its parts, and what changes it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from gradcore._base.check import Array

__all__ = ["Problem", "Remedy"]


@dataclass(frozen=True)
class Problem:
    """A training run that has not begun: makers of its parts, so that each run starts from the same place.

    Parameters
    ----------
    model : callable
        ``model()`` returns a new model.
    data : callable
        ``data()`` returns the batches, the same ones each time, as `gradcore.fit` takes them.
    loss : callable
        ``loss(y, target)`` returns the loss and its gradient with respect to y.
    optimizer : callable
        ``optimizer(model)`` returns an optimizer of the model's parameters.
    test : callable
        ``test()`` returns x and target of the sequences to judge the model by.
    accuracy : callable
        ``accuracy(y, target)`` returns the share that is right, or None where targets are values.
    vary : callable
        ``vary(**changes)`` returns the same problem with another `task`, `seed`, `lr` or number of `steps`.
    lr : float
        The learning rate.
    max_norm, step_clip : float, optional
        Thresholds of `gradcore.fit`; None does not clip.

    Examples
    --------
    >>> import dataclasses
    >>> from gradcore.diagnosis.config import Config, task_of
    >>> config = Config("adding")
    >>> problem = dataclasses.replace(config.problem(task_of(config)), max_norm=1.0)
    >>> problem.clipping, problem.varied(lr=0.5).lr, problem.varied(lr=0.5).clipping
    ({'max_norm': 1.0}, 0.5, {'max_norm': 1.0})
    """

    model: Callable[[], Any]
    data: Callable[[], Iterable[Any]]
    loss: Callable[[Array, Any], tuple[float, Array]]
    optimizer: Callable[[Any], Any]
    test: Callable[[], tuple[Array, Any]]
    accuracy: Callable[[Array, Any], float | None]
    vary: Callable[..., Problem]
    lr: float
    max_norm: float | None = None
    step_clip: float | None = None

    @property
    def clipping(self) -> dict[str, float]:
        """The thresholds that are set, as arguments of `gradcore.fit`."""
        given = {"max_norm": self.max_norm, "step_clip": self.step_clip}
        return {name: value for name, value in given.items() if value is not None}

    def varied(self, **changes: Any) -> Problem:
        """Return the same problem, clipping included, with another task, seed, learning rate or number of steps.

        Parameters
        ----------
        **changes
            `task`, `seed`, `lr` or `steps`.

        Returns
        -------
        Problem
            The problem.
        """
        return replace(self.vary(**changes), max_norm=self.max_norm, step_clip=self.step_clip)


@dataclass(frozen=True)
class Remedy:
    """A change that may help.

    Parameters
    ----------
    name : str
        What it is, in words.
    changes : dict
        The options of `Config`, `max_norm` or `step_clip` that it sets.
    apply : callable
        ``apply(problem)`` returns the changed problem.

    Examples
    --------
    >>> import dataclasses
    >>> from gradcore.diagnosis.config import Config, task_of
    >>> from gradcore.diagnosis.problem import Remedy
    >>> remedy = Remedy("norm clipping", {"max_norm": 1.0}, lambda problem: dataclasses.replace(problem, max_norm=1.0))
    >>> config = Config("adding")
    >>> remedy.apply(config.problem(task_of(config))).max_norm
    1.0
    """

    name: str
    changes: dict[str, Any]
    apply: Callable[[Problem], Problem]
