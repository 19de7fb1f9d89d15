"""The checkpoint of a run: written at each epoch's end, and gone on from."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from gradcore._base.check import as_list, check_int, check_path
from gradcore._base.files import previous_path
from gradcore._base.hook import Hook
from gradcore.training.checkpoint import load_parts, read_parts, require_safetensors, save_checkpoint
from gradcore.training.history import History
from gradcore.training.snapshot import RunState, has_state
from gradcore.training.supervisor import Supervisor

__all__: list[str] = []  # for the package only

DONE = "epochs"  # the name of the number of epochs that are done


class RunFile(Hook):
    """The file of a run; what may be wrong with it is found before the first step."""

    def __init__(self, path: Any, run: RunState, supervisor: Supervisor | None, rng: Any) -> None:
        require_safetensors()
        self._path, self._run, self._supervisor = check_path("checkpoint", path), run, supervisor
        folder = os.path.dirname(os.path.realpath(self._path))
        if not os.path.isdir(folder):
            raise FileNotFoundError(f"checkpoint: there is no folder {folder}")
        if os.path.isdir(os.path.realpath(self._path)):
            raise IsADirectoryError(f"checkpoint: expected a file, got the folder {self._path!r}")
        if not has_state(run.model):
            raise TypeError(f"checkpoint: {type(run.model).__name__} has no state_dict and load_state_dict")
        self._rngs = [] if rng is None else [rng] if isinstance(rng, np.random.Generator) else as_list("rng", rng)
        for each in self._rngs:
            if not isinstance(each, np.random.Generator):
                raise TypeError(f"rng: expected a numpy.random.Generator or several, got {type(each).__name__}")

    def _parts(self) -> dict[str, Any]:
        parts = {"model": self._run.model, **self._run.parts(), "history": self._run.history}
        if self._supervisor is not None:
            parts["supervisor"] = self._supervisor
        return parts | {f"rng_{i}": rng for i, rng in enumerate(self._rngs)}

    def after_epoch(self, epoch: int, history: History) -> None:
        save_checkpoint(self._path, **self._parts(), **{DONE: epoch + 1})

    def resume(self) -> int:
        """Restore everything, and return the number of epochs that are done: 0 if there is no file."""
        if not os.path.exists(self._path) and not previous_path(self._path).exists():
            return 0
        parts, stored = self._parts(), read_parts(self._path)
        expected = {*parts, DONE}
        missing, unknown = sorted(expected - stored.keys()), sorted(stored.keys() - expected)
        wrong = [f"lacks {name}" for name in missing] + [f"has {name} besides" for name in unknown]
        if wrong:
            raise ValueError(f"resume: {self._path} is of another run than this one: it {' and '.join(wrong)}")
        return check_int(DONE, load_parts(stored, parts)[DONE])
