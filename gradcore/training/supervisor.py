"""Go back to good weights when the loss or the gradient norm spikes, and pass over the batches that led there."""

from __future__ import annotations

import math
import os
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from gradcore._base.check import as_list, check_bool, check_int, check_names, check_number, check_path
from gradcore._base.hook import TrainingStep
from gradcore.optim.optimizer import Optimizer
from gradcore.training.checkpoint import load_checkpoint, save_checkpoint
from gradcore.training.rollback import Rollback, TooManyRollbacksError
from gradcore.training.run import deviation, median
from gradcore.training.snapshot import RunState, from_plain, has_state, to_plain

__all__ = ["Supervisor"]

KEPT = 6  # snapshots, one for each half of `rollback`: they reach back three times as far
LEAST_DEVIATION = 0.05  # of the logarithm, or as a share of the median magnitude: losses of one batch have no noise

# How many steps in a row stand out, and by how many times `spike`. A norm may rise for good while all is well.
LASTING = {"loss": ((1, 2.0), (3, 1.0), (10, 0.5)), "gradient norm": ((1, 2.0),)}

STATE = ("drawn", "used", "to_pass", "resumed", "ends", "levels", "kept")


class Supervisor:
    r"""Find spikes of a run in `fit`, go back to before they began, and pass over the batches that led there.

    The remedy is that of PaLM [1]_: restart about 100 steps before the spike, and skip 200 to 500 batches.

    A value stands out by :math:`z = (x - m) / s`, where m is the median of the last `window` values of the run, s is
    1.4826 times the median absolute deviation from m, and x is the loss or the gradient norm before clipping. Both are
    judged by their logarithms, unless a value of the window is negative. A spike is

    - a loss that is not finite, or a norm that is not, unless loss scaling made it so;
    - a loss or norm with :math:`z \ge 2\,` `spike`, or both with :math:`z \ge` `spike` in the same step;
    - three losses in a row with :math:`z \ge` `spike`, or ten with half of it.

    So a loss that stands out for one step is a spike only if it is far out, while one that stays high is found sooner.

    The run then goes back to the snapshot that is nearest to `rollback` steps old: model, optimizer, generators, hooks,
    clip threshold, early stopping, monitor, the state carried from batch to batch, and the history become what they
    were. It passes over the `skip` batches that followed the snapshot, of which those of the undone steps are the first
    ones, and goes on with the next batch. From there on, all of it equals, bit for bit, a run that was never given
    these batches. Only `History.rollbacks` tells the difference; it also has the undone losses and norms. If a spike
    comes within `rollback` steps after a snapshot that the run went back to, it goes back to an older one.

    Parameters
    ----------
    spike : float
        How many robust standard deviations a spike stands out, above 0. The deviation of a logarithm counts as at least
        0.05, so that 10 is a factor of 1.65 or more.
    rollback : int
        How many steps to go back, at least 1; with `accumulate` a step has several batches. Snapshots are taken every
        ``rollback // 2`` steps, and the last six are kept, so that one is between half and twice as old. Where none is,
        as near the start of the run, the oldest one has to do.
    skip : int
        The number of batches to pass over, counted from the snapshot without those that an earlier rollback has passed
        over, at least 0. Those of the undone steps are passed over in any case.
    max_rollbacks : int
        The number of rollbacks after which one more spike ends the run with an error, at least 0.
    window : int
        The number of recent values that a new one is compared with, at least 3.
    warmup : int
        The number of values to see before any is compared, at least 3 and at most `window`.
    reset_moments : bool
        Whether to also reset the optimizer's moments to what they are before the first step.
    lr_factor : float
        A factor for the learning rate at every rollback, above 0 and at most 1. With a schedule it has to be 1.
    folder : path, optional
        Where to keep the snapshots, as files. By default they are kept in memory: six times the parameters with their
        moments.

    Raises
    ------
    TypeError, ValueError
        If a number is out of range.

    See Also
    --------
    TooManyRollbacksError : The error with which it gives up.
    Rollback : What it writes down.

    Notes
    -----
    What follows from an epoch's end, such as `Hook.after_epoch` and validation, is done again for the ends within
    undone steps; the checkpoint of such an epoch stays as it is, and resuming from it goes back again in the same way.
    Callbacks have seen the undone steps; one that has a method `after_rollback` is told. A hook without `state_dict`
    and `load_state_dict` is taken for one that has no state. With ``nonfinite="raise"`` the optimizer raises before the
    supervisor sees the step. Batches and model should not draw from the same generator:
    the batches would come again.

    References
    ----------
    .. [1] A. Chowdhery et al., "PaLM: scaling language modeling with pathways", 2022, section 5.1.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> rng = np.random.default_rng(0)
    >>> batches = [(x, x.sum(axis=1, keepdims=True)) for x in rng.standard_normal((400, 8, 3))]
    >>> batches[300] = batches[300][0] * 1e4, batches[300][1]
    >>> model = gradcore.Linear(3, 1, dtype=np.float64, rng=rng)
    >>> optimizer, supervisor = gradcore.optim.SGD(model, lr=0.01), gradcore.Supervisor(rollback=20, skip=30)
    >>> history = gradcore.fit(model, batches, gradcore.losses.mse, optimizer, epochs=1, supervisor=supervisor)
    >>> (back,) = history.rollbacks
    >>> back.step, back.snapshot, back.batches, bool(history.loss[-1] < 1e-4)
    (300, 280, range(280, 310), True)
    """

    def __init__(
        self,
        *,
        spike: float = 10.0,
        rollback: int = 100,
        skip: int = 200,
        max_rollbacks: int = 20,
        window: int = 128,
        warmup: int = 32,
        reset_moments: bool = False,
        lr_factor: float = 1.0,
        folder: str | os.PathLike[str] | None = None,
    ) -> None:
        self.spike = check_number("spike", spike, above=0.0)
        self.rollback = check_int("rollback", rollback, least=1)
        self.skip = check_int("skip", skip)
        self.max_rollbacks = check_int("max_rollbacks", max_rollbacks)
        self.window, self.warmup = check_int("window", window, least=3), check_int("warmup", warmup, least=3)
        if self.warmup > self.window:
            raise ValueError(f"warmup: expected at most window = {self.window}, got {self.warmup}")
        self.reset_moments = check_bool("reset_moments", reset_moments)
        self.lr_factor = check_number("lr_factor", lr_factor, above=0.0, most=1.0)
        self.folder = None if folder is None else check_path("folder", folder)
        self._run: RunState | None = None
        self._begin()

    def _begin(self) -> None:
        self._levels = {name: _Level(name, self) for name in LASTING}
        self._drawn = self._used = 0  # batches that were taken from their source, and those of them not passed over
        self._to_pass = 0  # batches to pass over
        self._resumed: int | None = None  # the step of the snapshot that the run last went back to
        self._ends: list[int] = []  # for each epoch that has ended, the batches drawn so far
        self._kept: list[_Kept] = []

    # ---- what fit asks -----------------------------------------------------------------------------------------------

    def watch(self, run: RunState) -> None:
        """Begin a run, with a snapshot of its start; `fit` calls it.

        Parameters
        ----------
        run : RunState
            The run.

        Raises
        ------
        TypeError
            If the model or the optimizer cannot be set back.
        ValueError
            If `lr_factor` is not 1 and a learning rate is a schedule.
        """
        for name, part in (("model", run.model), ("optimizer", run.optimizer)):
            if not has_state(part):
                what = f"the {name}, a {type(part).__name__}"
                raise TypeError(f"supervisor: {what}, has no state_dict and load_state_dict")
        if (self.reset_moments or self.lr_factor != 1.0) and not isinstance(run.optimizer, Optimizer):
            kind = type(run.optimizer).__name__
            raise TypeError(f"reset_moments, lr_factor: expected an optimizer of gradcore.optim, got {kind}")
        if self.lr_factor != 1.0 and any(callable(group.lr) for group in run.optimizer.groups):
            raise ValueError(f"lr_factor: expected 1 with a schedule as learning rate, got {self.lr_factor:g}")
        if self.folder is not None:
            Path(self.folder).mkdir(parents=True, exist_ok=True)
        self._begin()
        self._run = run
        self._keep(run)

    def used(self, batches: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
        """Pass over batches that followed a snapshot to which the run went back.

        Parameters
        ----------
        batches : iterable of (int, batch or None)
            The epoch with each of its batches, and with None at its end.

        Yields
        ------
        (int, batch or None)
            Those of them that are used, and the ends.
        """
        for epoch, batch in batches:
            if batch is not None:
                self._drawn += 1
                if self._to_pass > 0:
                    self._to_pass -= 1
                    continue
                self._used += 1
            yield epoch, batch

    def after_step(self, step: TrainingStep) -> Rollback | None:
        """Look at a step that the history has, and go back if it is a spike.

        Parameters
        ----------
        step : TrainingStep
            The step.

        Returns
        -------
        Rollback or None
            What was done, if anything. The epochs in `epochs_again` have to be ended again then.

        Raises
        ------
        TooManyRollbacksError
            If this was one spike more than `max_rollbacks`. The run has gone back nevertheless.
        """
        run = self._run
        if run is None:
            raise RuntimeError("after_step: expected `watch` before it")
        reason = self._reason(step)
        if reason is not None:
            return self._go_back(run, step, reason)
        if len(run.history) - self._kept[-1].step >= max(self.rollback // 2, 1):
            self._keep(run)
        return None

    def after_epoch(self) -> None:
        """Note that an epoch has ended."""
        self._ends.append(self._drawn)

    def epochs_again(self) -> Iterator[int]:
        """Yield the numbers of the epochs whose ends were undone by the last rollback.

        Yields
        ------
        int
            The number of an epoch, to be ended again before the next one is asked for.
        """
        first = self._kept[-1].epoch
        ends = self._ends[first:]
        del self._ends[first:]
        for epoch, drawn in enumerate(ends, first):
            self._ends.append(drawn)
            yield epoch

    # ---- finding -----------------------------------------------------------------------------------------------------

    def _reason(self, step: TrainingStep) -> str | None:
        loss, norm = step.loss, float(step.grad_norm)
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        scaled = step.scale > 1.0  # the gradient of the next step will be finite
        if not math.isfinite(norm):
            return None if scaled else f"the gradient norm is {norm}"
        for level, value in zip(self._levels.values(), (loss, norm), strict=True):
            level.add(value)
        for level in self._levels.values():
            steps = level.lasts()
            if steps:
                return f"{level}{f', and stood out for {steps} steps' if steps > 1 else ''}"
        if all(level.z >= self.spike for level in self._levels.values()):
            return ", and ".join(map(str, self._levels.values()))
        return None

    # ---- going back --------------------------------------------------------------------------------------------------

    def _keep(self, run: RunState) -> None:
        """Take a snapshot, and forget the oldest one if there are too many."""
        step, n_rollbacks = len(run.history), len(run.history.rollbacks)
        levels = {name: level.state() for name, level in self._levels.items()}
        kept = _Kept(step, self._drawn, self._used, len(self._ends), n_rollbacks, levels, run.save())
        self._kept.append(self._stored(kept))
        if len(self._kept) > KEPT:
            self._forget(self._kept.pop(0))

    def _chosen(self, n: int) -> int:
        """Return the index of the snapshot to go back to from step n."""
        soon = self._resumed is not None and n - self._resumed <= self.rollback
        usable = [i for i, kept in enumerate(self._kept) if not (soon and kept.step >= (self._resumed or 0))]
        return min(usable, key=lambda i: abs(n - self._kept[i].step - self.rollback), default=0)

    def _go_back(self, run: RunState, step: TrainingStep, reason: str) -> Rollback:
        history = run.history
        chosen = self._chosen(len(history))
        for later in self._kept[chosen + 1 :]:
            self._forget(later)
        del self._kept[chosen + 1 :]
        kept = self._kept[chosen]
        self._to_pass = max(self.skip - (self._used - kept.used), 0)
        self._used = kept.used
        batches = range(kept.drawn, self._drawn + self._to_pass)
        losses, norms = history.loss[kept.step :].copy(), history.grad_norm[kept.step :].copy()
        run.restore(self._snapshot(kept))
        for name, level in self._levels.items():
            level.restore(kept.levels[name])
        self._resumed = kept.step
        rollback = Rollback(step.step, step.epoch, reason, kept.step, batches, losses, norms)
        history.rollbacks.append(rollback)
        if self.reset_moments:
            run.optimizer.reset_moments()
        if self.lr_factor != 1.0:
            _multiply_lr(run.optimizer, self.lr_factor ** (len(history.rollbacks) - kept.n_rollbacks))
        if len(history.rollbacks) > self.max_rollbacks:
            raise TooManyRollbacksError(history)
        return rollback

    # ---- on disk -----------------------------------------------------------------------------------------------------

    def _stored(self, kept: _Kept) -> _Kept:
        """Move the snapshot to a file, if there is a folder."""
        if self.folder is not None:
            path = Path(self.folder, f"snapshot-{kept.step}.safetensors")
            save_checkpoint(path, snapshot=to_plain(kept.snapshot))
            kept.snapshot = path
        return kept

    @staticmethod
    def _snapshot(kept: _Kept) -> dict[str, Any]:
        on_disk = isinstance(kept.snapshot, Path)
        return from_plain(load_checkpoint(kept.snapshot)["snapshot"]) if on_disk else kept.snapshot

    @staticmethod
    def _forget(kept: _Kept) -> None:
        if isinstance(kept.snapshot, Path):
            kept.snapshot.unlink(missing_ok=True)

    # ---- state -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return what it knows of the run, with all snapshots, for a checkpoint.

        Returns
        -------
        dict
            Numbers, lists, arrays and the states of the parts of the run.

        Examples
        --------
        >>> import gradcore
        >>> gradcore.Supervisor().state_dict()["drawn"]
        0
        """
        levels = {name: level.state() for name, level in self._levels.items()}
        kept = [{**vars(each), "snapshot": to_plain(self._snapshot(each))} for each in self._kept]
        values = (self._drawn, self._used, self._to_pass, self._resumed, list(self._ends), levels, kept)
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
            If the state is not that of a `Supervisor`. Nothing is changed then.
        """
        check_names("state_dict", state_dict, STATE)
        counts = {f"_{name}": check_int(name, state_dict[name]) for name in ("drawn", "used", "to_pass")}
        resumed = state_dict["resumed"]
        resumed = None if resumed is None else check_int("resumed", resumed)
        ends = [check_int(f"ends[{i}]", end) for i, end in enumerate(as_list("ends", state_dict["ends"]))]
        levels = self._checked_levels("levels", state_dict["levels"])
        kept = []
        for i, given in enumerate(as_list("kept", state_dict["kept"])):
            names = [field.name for field in fields(_Kept)]
            check_names(f"kept[{i}]", given, names)
            found = {name: check_int(f"{name} of kept[{i}]", given[name]) for name in names[:5]}
            its_levels = self._checked_levels(f"levels of kept[{i}]", given["levels"])
            kept.append(_Kept(**found, levels=its_levels, snapshot=from_plain(given["snapshot"])))
        for name, level in self._levels.items():
            level.restore(levels[name])
        vars(self).update(counts, _resumed=resumed, _ends=ends, _kept=[self._stored(each) for each in kept])

    def _checked_levels(self, label: str, given: Any) -> dict[str, Any]:
        check_names(label, given, self._levels)
        found = {}
        for name, lists in given.items():
            place = f"{label}[{name!r}]"
            numbers = [[check_number(place, value) for value in as_list(place, each)] for each in as_list(place, lists)]
            if len(numbers) != 2 or len(numbers[0]) > self.window:
                counts = [len(each) for each in numbers]
                raise ValueError(f"{place}: expected two lists, of at most {self.window} values, got {counts} values")
            found[name] = numbers
        return found

    def __repr__(self) -> str:
        return (
            f"Supervisor(spike={self.spike:g}, rollback={self.rollback}, skip={self.skip}, "
            f"max_rollbacks={self.max_rollbacks})"
        )


@dataclass
class _Kept:
    """A snapshot, and where it was taken."""

    step: int
    drawn: int  # batches, as in the supervisor
    used: int
    epoch: int
    n_rollbacks: int
    levels: dict[str, Any]
    snapshot: Any  # or the path of its file


class _Level:
    """The recent values of a number, in their order and sorted, and how far the newest of them stand out."""

    def __init__(self, name: str, supervisor: Supervisor) -> None:
        self._name, self._lasting = name, LASTING[name]
        self._size, self._warmup, self._spike = supervisor.window, supervisor.warmup, supervisor.spike
        self.z = self._center = 0.0
        self._n = 0
        self._least = min(1.0, *(factor for _, factor in self._lasting)) * self._spike  # smaller ones do not count
        self.restore(((), ()))

    def state(self) -> tuple[list[float], list[float]]:
        return list(self._values), list(self._newest)

    def restore(self, state: Any) -> None:
        values, newest = state
        self._values, self._sorted = deque(values), sorted(values)
        self._newest: deque[float] = deque(newest, max(steps for steps, _ in self._lasting))

    def add(self, value: float) -> None:
        """Find out how far a value stands out, and keep it."""
        n = self._n = len(self._values)
        self.z, self._center = self._deviations(value) if n >= self._warmup else (0.0, 0.0)
        self._newest.append(self.z)
        if n == self._size:
            del self._sorted[bisect_left(self._sorted, self._values.popleft())]
        self._values.append(value)
        insort(self._sorted, value)

    def lasts(self) -> int:
        """Return for how many steps the newest values have stood out so far that it is a spike, or 0."""
        newest = list(self._newest) if self.z > 0.0 else []
        for steps, factor in self._lasting:
            if len(newest) >= steps and min(newest[-steps:]) >= factor * self._spike:
                return steps
        return 0

    def __str__(self) -> str:
        out = f"is {self.z:.3g} deviations above {self._center:.4g}, the median of {self._n} before"
        return f"the {self._name} {self._values[-1]:.4g} {out}"

    def _deviations(self, value: float) -> tuple[float, float]:
        """Return z, or 0 where that is too small to count, and the median."""
        ordered = self._sorted
        half = len(ordered) // 2
        center = ordered[half] if len(ordered) % 2 else ordered[half - 1] / 2 + ordered[half] / 2
        if value <= center or (center == 0.0 and ordered[0] == 0.0):
            return 0.0, center
        if ordered[0] < 0.0:
            excess = value - center
            spread = max(deviation(ordered, center), LEAST_DEVIATION * median(list(map(abs, ordered))))
        else:
            middle = math.log(center)
            excess = math.log(value) - middle
            if excess < self._least * LEAST_DEVIATION:
                return 0.0, center
            logs = [math.log(each) if each > 0.0 else -math.inf for each in ordered]
            spread = max(deviation(logs, middle), LEAST_DEVIATION)
        return (excess / spread if spread > 0.0 else 0.0), center


def _multiply_lr(optimizer: Any, factor: float) -> None:
    """Multiply the common learning rate, and those that groups have of their own."""
    state = optimizer.state_dict()
    for hyperparameters in (state["hyperparameters"], *state["groups"]):
        if "lr" in hyperparameters:
            hyperparameters["lr"] *= factor
    optimizer.load_state_dict(state)
