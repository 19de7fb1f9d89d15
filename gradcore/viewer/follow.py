"""Follow a file of `JSONLines` as it grows."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradcore._base.files import DAMAGE, NONFINITE
from gradcore.training.findings import SEVERITIES
from gradcore.training.live import FORMAT, VERSION
from gradcore.viewer.curve import Curve

__all__: list[str] = []  # for the package only

RECENT = 50  # steps over which the share of clipped ones is recent
CHUNK = 1 << 20  # bytes that are read at once
LONGEST_LINE = 4 << 20  # bytes; without an end by then it is damaged
HEAD = 512  # bytes by which a file is known to be the same one
MOST_NAMES = 1000  # trials, findings or layers; more than these come from damage


@dataclass
class Shown:
    """A finding: what `Finding.to_dict` wrote of it, as far as it is shown."""

    kind: str
    where: str
    severity: str
    step: int
    last_step: int
    count: int
    message: str
    advice: str

    def seen(self) -> str:
        return f"step {self.step}" if self.count == 1 else f"steps {self.step} to {self.last_step}, {self.count} times"


@dataclass
class Trial:
    """What is known of a run, or of one of the trials in a file."""

    name: str
    status: str = "running"
    error: str = ""
    n_steps: int = 0
    step: int = 0
    epoch: int = 0
    lr: float = math.nan
    seconds: float = 0.0
    max_norm: float = math.inf
    n_clipped: int = 0
    n_skipped: int = 0
    limits_steps: bool = False
    recent: deque[bool] = field(default_factory=lambda: deque(maxlen=RECENT))
    loss: Curve = field(default_factory=Curve)
    grad_norm: Curve = field(default_factory=Curve)
    dh_first: dict[str, float] = field(default_factory=dict)
    dh_last: dict[str, float] = field(default_factory=dict)
    findings: dict[tuple[str, str], Shown] = field(default_factory=dict)

    def ordered_findings(self) -> list[Shown]:
        """The worst first."""
        return sorted(self.findings.values(), key=lambda finding: (SEVERITIES.index(finding.severity), finding.step))


class Run:
    """What the lines of a file say so far."""

    def __init__(self) -> None:
        self.n_damaged = 0
        self._begin()

    def _begin(self) -> None:
        self.started = ""
        self.machine: dict[str, str] = {}
        self.problem = ""  # why the lines cannot be read
        self.status = ""  # how everything has ended
        self.error = ""
        self.n_lines = 0
        self.trials: dict[tuple[str, int | None], Trial] = {}
        self.current: Trial | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing is to be expected any more."""
        return bool(self.status)

    def take(self, line: bytes) -> None:
        """Read a line. A damaged one is counted, and changes nothing else."""
        if not line.strip():
            return
        try:
            found = json.loads(line)
            readers: dict[str, Callable[[dict[str, Any]], Any]] = {
                "start": self._start,
                "trial": self._trial,
                "step": self._step,
                "finding": self._finding,
                "end": self._end,
            }
            kind = found["type"]
            if not isinstance(kind, str):
                raise ValueError
            if kind in readers:  # other kinds are those of later versions
                readers[kind](found)
        except DAMAGE:
            self.n_damaged += 1
        else:
            self.n_lines += 1

    def _start(self, found: dict[str, Any]) -> None:
        if (found["format"], found["version"]) != (FORMAT, VERSION):
            given = clean(f"{found['format']} version {found['version']}")
            self.problem = f"expected format {FORMAT} version {VERSION}, got {given}"
            return
        started, machine = clean(found["started"]), {clean(k): clean(v) for k, v in found["machine"].items()}
        self._begin()  # another run
        self.started, self.machine = started, machine

    def _trial(self, found: dict[str, Any]) -> Trial:
        name, seed = found.get("trial", ""), found.get("seed")
        if not isinstance(name, str) or not (seed is None or isinstance(seed, int)):
            raise ValueError
        place = name, seed
        if place not in self.trials:
            if len(self.trials) >= MOST_NAMES:
                raise ValueError
            seeds = {other for known, other in self.trials if known == name}
            self.trials[place] = Trial(clean(name) + (f", seed {seed}" if seeds else ""))
        return self.trials[place]

    def _step(self, found: dict[str, Any]) -> None:
        numbers = {name: number(found[name]) for name in ("loss", "grad_norm", "lr", "seconds")}
        step, epoch = integer(found["step"]), integer(found["epoch"])
        step_clipped = integer(found.get("step_clipped", 0))
        clipped, skipped = truth(found["clipped"]), truth(found["skipped"])
        max_norm = number(found.get("max_norm", "Infinity"))
        first, last = (
            {clean(k): number(v) for k, v in found.get(name, {}).items()} for name in ("dh_first", "dh_last")
        )
        if max(len(first), len(last)) > MOST_NAMES:
            raise ValueError
        trial = self._trial(found)
        self.status, self.current = "", trial
        trial.status, trial.error = "running", ""
        trial.step, trial.epoch, trial.lr, trial.seconds = step, epoch, numbers["lr"], numbers["seconds"]
        trial.max_norm = max_norm
        trial.limits_steps |= "step_clipped" in found
        trial.n_steps += 1
        trial.n_clipped += clipped or step_clipped > 0
        trial.n_skipped += skipped
        trial.recent.append(clipped or step_clipped > 0)
        trial.loss.append(step, numbers["loss"])
        trial.grad_norm.append(step, numbers["grad_norm"])
        trial.dh_first, trial.dh_last = first, last

    def _finding(self, found: dict[str, Any]) -> None:
        values: dict[str, Any] = {name: clean(found[name]) for name in ("kind", "where", "message", "advice")}
        values |= {name: integer(found[name]) for name in ("step", "last_step", "count")}
        severity = SEVERITIES[SEVERITIES.index(found["severity"])]
        trial = self._trial(found)
        place = values["kind"], values["where"]
        if place not in trial.findings and len(trial.findings) >= MOST_NAMES:
            raise ValueError
        trial.findings[place] = Shown(severity=severity, **values)

    def _end(self, found: dict[str, Any]) -> None:
        status, error = found["status"], clean(found["error"] or "")
        if status not in ("ended", "interrupted", "failed"):
            raise ValueError
        if "trial" in found:
            trial = self._trial(found)
            trial.status, trial.error = status, error
        else:
            self.status, self.error = status, error
            if ("", None) in self.trials:
                self.trials["", None].status = status


class Follower:
    """Read what is new in a file, whatever happens to it: not there yet, cut, replaced, written again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._begin()

    def _begin(self) -> None:
        self.run = Run()
        self.exists = False
        self._offset = 0
        self._head = b""
        self._rest = b""
        self._too_long = False
        self.behind = False  # whether the file had more than was read

    def poll(self) -> bool:
        """Read what is new, of a long file a part, and return whether anything was."""
        try:
            with open(self.path, "rb") as file:
                return self._read(file)
        except (FileNotFoundError, NotADirectoryError):
            changed = self.exists
            self._begin()
            return changed

    def _read(self, file: Any) -> bool:
        changed = not self.exists
        if self._head != file.read(len(self._head)) or os.fstat(file.fileno()).st_size < self._offset:
            self._begin()
            changed = True
        self.exists = True
        file.seek(self._offset)
        chunk = file.read(CHUNK)
        self._head += chunk[: max(HEAD - self._offset, 0)]
        self._offset += len(chunk)
        self.behind = len(chunk) == CHUNK
        for line in self._lines(chunk):
            self.run.take(line)
            changed = True
        return changed

    def poll_all(self) -> bool:
        """Read all that is new."""
        changed = self.poll()
        while self.behind:
            changed |= self.poll()
        return changed

    def _lines(self, chunk: bytes) -> Iterator[bytes]:
        """The whole lines; what follows the last of them waits for its end."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            if not self._too_long:
                yield line
            self._too_long = False
        if len(self._rest) > LONGEST_LINE:
            self.run.n_damaged += not self._too_long
            self._too_long, self._rest = True, b""

    def silent_for(self) -> float:
        """Return the number of seconds since the file was last written."""
        with contextlib.suppress(OSError):
            return max(time.time() - self.path.stat().st_mtime, 0.0)
        return 0.0


def number(value: Any) -> float:
    """A number as `jsonable` writes it."""
    if isinstance(value, str):
        return NONFINITE[value]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError
    return float(value)


def integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise ValueError
    return value


def truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def clean(value: Any) -> str:
    """Text that is safe on a terminal: no control characters, not endless."""
    text = str(value)[:2000]
    return text if text.isprintable() else "".join(letter if letter.isprintable() else "?" for letter in text)
