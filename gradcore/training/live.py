"""A training run as lines of JSON, written while it goes on: what `gradcore watch` and `gradcore dashboard` show."""

from __future__ import annotations

import copy
import json
import math
import os
import time
import warnings
from collections.abc import Mapping
from datetime import datetime, timezone
from types import TracebackType
from typing import Any

from gradcore._base.check import check_bool, check_number, check_path
from gradcore._base.files import json_text
from gradcore._base.hook import TrainingStep
from gradcore._base.threads import info
from gradcore.layers.recurrent_tape import RecurrentTape
from gradcore.layers.telemetry import StepTelemetry
from gradcore.training.rollback import Rollback

__all__ = ["FORMAT", "VERSION", "JSONLines"]

FORMAT = "gradcore.JSONLines"
VERSION = 1

INTERVAL = 0.1  # seconds between two writes

_encode = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode


class JSONLines:
    """Write every step of a run to a file, as a line of JSON, while the run goes on.

    It is a callback of `fit`, which also tells it of the run's end. In a loop of your own, use it as a context manager
    and call it with each `TrainingStep`. What the lines hold is in docs/live.md; `gradcore watch` and `gradcore
    dashboard` show it.

    Only whole lines are written, in one piece, a few times a second; the last steps of a process that is killed may be
    missing. If the file can no longer be written, training goes on, with a warning and without the lines.

    Parameters
    ----------
    path : path
        The file. What it held is lost, unless `append` is True.
    monitor : GradientMonitor, optional
        The monitor of the run, for the lines about its findings.
    interval : float
        The least number of seconds between two writes.
    append : bool
        Whether to add to what the file holds.

    Raises
    ------
    OSError
        If the file cannot be written.

    Examples
    --------
    >>> import numpy as np, gradcore, os, tempfile
    >>> from gradcore.training.live import JSONLines
    >>> model = gradcore.Linear(3, 1, rng=0)
    >>> batch = np.ones((4, 3), np.float32), np.ones((4, 1), np.float32)
    >>> optimizer = gradcore.optim.SGD(model, lr=0.1)
    >>> path = os.path.join(tempfile.mkdtemp(), "run.jsonl")
    >>> history = gradcore.fit(
    ...     model, [batch], gradcore.losses.mse, optimizer, epochs=3, callbacks=[JSONLines(path)]
    ... )
    >>> import json
    >>> with open(path) as file:
    ...     [json.loads(line)["type"] for line in file]
    ['start', 'step', 'step', 'step', 'end']
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        monitor: Any = None,
        *,
        interval: float = INTERVAL,
        append: bool = False,
    ) -> None:
        path, append = check_path("path", path), check_bool("append", append)
        interval = check_number("interval", interval, least=0.0)
        self._labels: dict[str, Any] = {}
        self._begin(monitor)
        self._file = _File(path, interval, append=append)

    def _begin(self, monitor: Any) -> None:
        if monitor is not None and not hasattr(monitor, "findings"):
            raise TypeError(f"monitor: expected a GradientMonitor, got {type(monitor).__name__}")
        self._monitor = monitor
        self._told: dict[tuple[str, str], int] = {}  # how often each finding had been seen when it was last written
        self._start = time.perf_counter()
        self._n_steps, self._limited = 0, False

    def trial(self, name: str, monitor: Any = None, *, seed: int | None = None) -> JSONLines:
        """Return a callback that writes another run to the same file, with its name on every line.

        Parameters
        ----------
        name : str
            The name of the trial.
        monitor : GradientMonitor, optional
            The monitor of the trial.
        seed : int, optional
            Its seed, where there are trials of the same name.

        Returns
        -------
        JSONLines
            The callback.

        Examples
        --------
        >>> import os, tempfile
        >>> from gradcore.training.live import JSONLines
        >>> with JSONLines(os.path.join(tempfile.mkdtemp(), "run.jsonl")) as log:
        ...     callbacks = [log.trial(f"gain {gain}") for gain in (1.0, 1.5)]
        """
        other = copy.copy(self)
        other._labels = {"trial": str(name)} | ({} if seed is None else {"seed": int(seed)})
        other._begin(monitor)
        return other

    def __call__(self, step: TrainingStep) -> None:
        """Write a step.

        Parameters
        ----------
        step : TrainingStep
            The step, after the update.
        """
        norm, (first, last) = step.grad_norm, ends_of_time(step)
        if self._n_steps == 0:
            self._limited = _step_clipped(step) is not None
            self._head(list(last), norm)
        self._n_steps += 1
        self._file.n_steps += 1
        seconds = time.perf_counter() - self._start if step.history is None else float(step.history.seconds[-1])
        line: dict[str, Any] = {
            "type": "step",
            **self._labels,
            "step": step.step,
            "epoch": step.epoch,
            "loss": float(step.loss),
            "grad_norm": float(norm),
            "clipped": bool(getattr(norm, "clipped", False)),
            "skipped": bool(getattr(norm, "skipped", False)),
            "lr": float(step.lr),
            "seconds": round(seconds, 6),
        }
        limit = getattr(norm, "max_norm", math.inf)
        if limit < math.inf:
            line["max_norm"] = float(limit)
        if self._limited:
            line["step_clipped"] = _step_clipped(step)
        if last:
            line |= {"dh_first": first, "dh_last": last}
        self._file.add(line)
        self._findings()
        self._file.flush_if_due()

    def _head(self, layers: list[str], norm: Any = None) -> None:
        """Write how the file, or a trial in it, begins."""
        parts = getattr(norm, "per_array", None)
        names = {"layers": layers, "parameters": list(parts) if isinstance(parts, Mapping) else []}
        if not self._file.started:
            self._file.started = True
            now = datetime.now(timezone.utc).isoformat(timespec="seconds")
            about = {"format": FORMAT, "version": VERSION, "started": now, "machine": info()}
            self._file.add({"type": "start", **about, **self._labels, "names": names})
        elif self._labels:
            self._file.add({"type": "trial", **self._labels, "names": names})
        self._file.ended = False

    def _findings(self, *, all_changes: bool = False) -> None:
        """Write the findings that are new, and whenever the file is written those that have changed."""
        if self._monitor is None:
            return
        all_changes = all_changes or self._file.is_due()
        for finding in self._monitor.findings:
            place = finding.kind, finding.where
            before = self._told.get(place)
            if before is None or (all_changes and before != finding.count):
                self._told[place] = finding.count
                self._file.add({"type": "finding", **self._labels, **finding.to_dict()})

    def after_rollback(self, rollback: Rollback) -> None:
        """Write that the run went back; `fit` calls it.

        Parameters
        ----------
        rollback : Rollback
            What its supervisor did.
        """
        found = {key: value for key, value in rollback.to_dict().items() if key not in ("loss", "grad_norm")}
        self._file.add({"type": "rollback", **self._labels, **found})
        self._file.flush_if_due()

    def after_run(self, history: Any = None, error: BaseException | None = None) -> None:
        """Write that the run has ended; `fit` calls it.

        Parameters
        ----------
        history : History, optional
            The record of the run.
        error : BaseException, optional
            What ended it, if anything did.
        """
        if self._n_steps == 0:
            self._head([])
        interrupted = isinstance(error, KeyboardInterrupt) or getattr(history, "interrupted", False)
        failed = error is not None and not interrupted
        line = {
            "type": "end",
            **self._labels,
            "status": "interrupted" if interrupted else "failed" if failed else "ended",
            "error": f"{type(error).__name__}: {error}" if failed else None,
            "steps": self._n_steps if self._labels else self._file.n_steps,
            "seconds": round(time.perf_counter() - self._start, 6),
        }
        self._findings(all_changes=True)
        self._file.add(line)
        self._file.ended = not self._labels
        self._file.flush()
        self._begin(self._monitor)

    def close(self, error: BaseException | None = None) -> None:
        """Write that everything has ended, unless the file says so already.

        Parameters
        ----------
        error : BaseException, optional
            What ended it, if anything did.
        """
        if not self._file.ended:
            self.after_run(error=error)

    def __enter__(self) -> JSONLines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(error)

    def __repr__(self) -> str:
        return f"JSONLines({self._file.path!r})"


def ends_of_time(step: TrainingStep) -> tuple[dict[str, float], dict[str, float]]:
    """Return the norm of dL/dh_t at the first and at the last time step, by recurrent layer and direction."""
    if step.history is not None:  # it has walked the tape already
        tables = step.history.dh_first, step.history.dh_last
        first, last = ({name: float(column[-1]) for name, column in table.items()} for table in tables)
    else:
        profiles = [(name, row) for name, _, row in StepTelemetry(step.tape, step.scale).profiles if len(row)]
        first, last = ({name: float(row[at]) for name, row in profiles} for at in (0, -1))
    return first, last


def _step_clipped(step: TrainingStep) -> int | None:
    """How many dL/dh_t were rescaled inside the backward pass; None where none could be."""
    tapes = [member.tape for member in StepTelemetry(step.tape).members if isinstance(member.tape, RecurrentTape)]
    counts = [int(tape.telemetry.n_clipped.sum()) for tape in tapes if tape.telemetry and tape.telemetry.has_limit]
    return sum(counts) if counts else None


class _File:
    """Lines that wait until they are due. The file is open only while it is written to: a fork inherits nothing."""

    def __init__(self, path: str, interval: float, *, append: bool) -> None:
        self.path, self._interval = path, interval
        self.started = self.ended = False
        self.n_steps = 0
        self._usable = True
        self._lines: list[str] = []
        self._written = -math.inf
        with open(path, "ab+" if append else "wb") as file:
            if append and file.tell() > 0:
                file.seek(-1, os.SEEK_END)
                if file.read() != b"\n":  # a process was killed while it wrote
                    file.write(b"\n")

    def add(self, line: dict[str, Any]) -> None:
        if self._usable:
            try:
                self._lines.append(_encode(line))
            except ValueError:  # not finite
                self._lines.append(json_text(line))

    def is_due(self) -> bool:
        return time.monotonic() - self._written >= self._interval

    def flush_if_due(self) -> None:
        if self.is_due():
            self.flush()

    def flush(self) -> None:
        if not self._lines:
            return
        data = "\n".join(self._lines).encode() + b"\n"
        self._lines.clear()
        try:
            with open(self.path, "ab") as file:
                file.write(data)
        except OSError as error:
            self._usable = False
            warnings.warn(f"{self.path}: cannot be written any more ({error.strerror})", RuntimeWarning, stacklevel=2)
        self._written = time.monotonic()
