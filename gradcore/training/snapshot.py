"""What the steps of a training run change, as one object that can be saved in memory and restored."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from gradcore._base.check import Array
from gradcore.layers.layer import Layer
from gradcore.optim.optimizer import Optimizer
from gradcore.training.early_stopping import EarlyStopping
from gradcore.training.history import History, Mark
from gradcore.training.monitor import GradientMonitor

__all__ = ["ModelCopy", "RunState", "Snapshot"]

Snapshot = dict[str, Any]  # the states of the parts by name

COPYING = (EarlyStopping, GradientMonitor, Optimizer)  # their state_dict gives a copy, and load_state_dict takes one


class ModelCopy(NamedTuple):
    """Hold what a model can be set back to, which is all that `forward`, `backward` and updates change.

    Parameters
    ----------
    params : ndarray or object
        The copy of `flat_params`; of a model that is no `Layer` that of its state.
    buffers : dict of str to ndarray
        Copies of the buffers.
    generators : list of dict
        The states of its generators.

    Examples
    --------
    >>> import gradcore
    >>> from gradcore.training.snapshot import ModelCopy
    >>> layer = gradcore.Linear(3, 1)
    >>> saved = ModelCopy.of(layer)
    >>> layer.flat_params.fill(0)
    >>> saved.restore(layer)
    >>> bool(layer.flat_params.any())
    True
    """

    params: Any
    buffers: dict[str, Array]
    generators: list[Any]

    @classmethod
    def of(cls, model: Any) -> ModelCopy:
        """Copy a model.

        Parameters
        ----------
        model : Layer or object with a state
            The model.

        Returns
        -------
        ModelCopy
            The copy.
        """
        generators = [rng.bit_generator.state for rng in getattr(model, "generators", list)()]
        if not isinstance(model, Layer):
            return cls(_state(model), {}, generators)
        buffers = {name: value.copy() for name, value in model.buffers.items()}
        return cls(model.flat_params.copy(), buffers, generators)

    def restore(self, model: Any) -> None:
        """Set a model back.

        Parameters
        ----------
        model : Layer or object with a state
            The model that was copied.
        """
        for rng, state in zip(getattr(model, "generators", list)(), self.generators, strict=True):
            rng.bit_generator.state = state
        if not isinstance(model, Layer):
            _set_back(model, self.params)
            return
        model.flat_params[...] = self.params
        model.buffers.update(self.buffers)


class RunState:
    """Gather what the steps of a training run change: save it in memory, and go back to it bit for bit.

    These are the model with its buffers and generators, the optimizer, and whatever else has `state_dict` and
    `load_state_dict`: hooks, the clip threshold, a schedule of the learning rate, the monitor. To them come the history
    and the state that a stateful run carries from batch to batch. Gradients are not part of it. A hook or model without
    these two methods is taken for one that has no state.

    Parameters
    ----------
    model : layer or model
        The model.
    optimizer : optimizer
        The optimizer.
    hooks : iterable of Hook
        What takes part in the steps.
    max_norm : object, optional
        The clip threshold, a number or an object.
    monitor : GradientMonitor, optional
        The monitor.
    early_stopping : EarlyStopping, optional
        What ends the training.
    history : History, optional
        The record of the run; by default a new one.

    Attributes
    ----------
    carried : object
        The final state of the last batch, in a stateful run; else None.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> from gradcore.training.snapshot import RunState
    >>> model = gradcore.Linear(3, 1)
    >>> run = RunState(model, gradcore.optim.Adam(model))
    >>> saved, before = run.save(), model.flat_params.copy()
    >>> batch = np.ones((4, 3), np.float32), np.ones((4, 1), np.float32)
    >>> step = gradcore.training_step(model, batch, gradcore.losses.mse, run.optimizer)
    >>> run.restore(saved)
    >>> bool((model.flat_params == before).all()), run.optimizer.n_steps
    (True, 0)
    """

    def __init__(
        self,
        model: Any,
        optimizer: Any,
        *,
        hooks: Iterable[Any] = (),
        max_norm: Any = None,
        monitor: Any = None,
        early_stopping: Any = None,
        history: History | None = None,
    ) -> None:
        self.model, self.optimizer, self.hooks, self.monitor = model, optimizer, list(hooks), monitor
        self.max_norm, self.early_stopping = max_norm, early_stopping
        self.history = History() if history is None else history
        self.carried: Any = None

    def parts(self) -> dict[str, Any]:
        """Return what has a state, but for the model and the history, by name.

        Returns
        -------
        dict of str to object
            The parts, under the names that a checkpoint gives them.
        """
        found = {
            "optimizer": self.optimizer,
            "learning_rate": getattr(self.optimizer, "lr", None),
            "max_norm": self.max_norm,
            **{f"hook_{i}": hook for i, hook in enumerate(self.hooks)},
            "monitor": self.monitor,
            "early_stopping": self.early_stopping,
        }
        return {name: part for name, part in found.items() if has_state(part)}

    def save(self) -> Snapshot:
        """Return a copy of everything; parameters and gradients are each copied as one array.

        Returns
        -------
        dict of str to object
            The copy, which `restore` takes as often as you like.
        """
        states = {name: _state(part) for name, part in self.parts().items()}
        own = {
            "model": ModelCopy.of(self.model),
            "history": self.history.mark(),
            "carried": copy.deepcopy(self.carried),
        }
        return own | states

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to where the run was when it was saved.

        Parameters
        ----------
        snapshot : dict
            What `save` returned, for the same objects. The history loses the steps that came after it.
        """
        snapshot["model"].restore(self.model)
        self.history.rewind(snapshot["history"])
        self.carried = copy.deepcopy(snapshot["carried"])
        for name, part in self.parts().items():
            _set_back(part, snapshot[name])


def to_plain(snapshot: Snapshot) -> dict[str, Any]:
    """Return a snapshot made of what `save_checkpoint` can store."""
    return {**snapshot, "model": snapshot["model"]._asdict(), "history": snapshot["history"]._asdict()}


def from_plain(plain: Mapping[str, Any]) -> Snapshot:
    """Return the snapshot that `to_plain` was given; its tuples may have become lists."""
    model, history = ModelCopy(**plain["model"]), Mark(**plain["history"])
    return {**plain, "model": model, "history": history, "carried": _tuples(plain["carried"])}


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


def has_state(part: Any) -> bool:
    """Return whether a part can be saved and restored."""
    return all(callable(getattr(part, name, None)) for name in ("state_dict", "load_state_dict"))


# Others may return, or take, the very arrays that they go on to change.
def _state(part: Any) -> Any:
    state = part.state_dict() if has_state(part) else None
    return state if isinstance(part, COPYING) else copy.deepcopy(state)


def _set_back(part: Any, state: Any) -> None:
    if has_state(part):
        part.load_state_dict(state if isinstance(part, COPYING) else copy.deepcopy(state))
