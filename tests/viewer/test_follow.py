"""A follower reads whole lines only, whatever happens to the file."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradcore.training.live import FORMAT, VERSION
from gradcore.viewer import follow
from gradcore.viewer.curve import MOST, Curve
from gradcore.viewer.follow import Follower

START = {"type": "start", "format": FORMAT, "version": VERSION, "started": "now", "machine": {"isa": "v3"}, "names": {}}
END = {"type": "end", "status": "ended", "error": None, "steps": 2, "seconds": 1.0}
FINDING = {
    "type": "finding",
    "kind": "nan_loss",
    "where": "",
    "severity": "critical",
    "step": 2,
    "last_step": 2,
    "count": 1,
    "numbers": {},
    "message": "The loss became nan.",
    "advice": "Clip.",
}


def step(i: int, loss: Any = 0.5, **more: Any) -> dict[str, Any]:
    line = {"type": "step", "step": i, "epoch": 0, "loss": loss, "grad_norm": 2.0, "clipped": False, "skipped": False}
    return {**line, "lr": 0.1, "seconds": i / 10, **more}


def text(*lines: dict[str, Any]) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


def followed(path: Path, *lines: dict[str, Any]) -> Follower:
    path.write_text(text(*lines), encoding="utf-8")
    follower = Follower(path)
    follower.poll()
    return follower


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.jsonl"


def test_a_file_that_comes_later_and_grows(path: Path) -> None:
    follower = Follower(path)
    assert not follower.poll()
    assert not follower.exists
    path.write_text("", encoding="utf-8")
    assert follower.poll()
    assert follower.exists
    assert not follower.poll()
    with path.open("a", encoding="utf-8") as file:
        for i in range(3):
            file.write(text(START) if i == 0 else "")
            file.write(text(step(i, clipped=i == 1)))
            file.flush()
            assert follower.poll()
            trial = follower.run.current
            assert trial is not None
            assert (trial.step, trial.n_steps) == (i, i + 1)
        assert trial.n_clipped == 1
        assert not follower.run.ended
        file.write(text(END))
    follower.poll()
    assert follower.run.ended
    assert follower.run.machine == {"isa": "v3"}
    path.unlink()
    assert follower.poll()
    assert follower.run.current is None


def test_half_a_line_waits_for_its_end(path: Path) -> None:
    follower = Follower(path)
    data = text(START, step(0), FINDING, step(1), END).encode()
    for n in range(len(data)):
        with path.open("ab") as file:
            file.write(data[n : n + 1])
        follower.poll()
        assert follower.run.n_damaged == 0
        assert follower.run.n_lines == data[: n + 1].count(b"\n")
    assert follower.run.ended


@pytest.mark.parametrize("longer", [False, True])
def test_a_run_that_begins_again(path: Path, longer: bool) -> None:
    follower = followed(path, START, *map(step, range(5)))
    again = text({**START, "started": "later"}, *(step(i, 0.25) for i in range(9 if longer else 1)))
    path.write_text(again, encoding="utf-8")
    assert follower.poll()
    trial = follower.run.current
    assert trial is not None
    assert trial.n_steps == (9 if longer else 1)
    assert trial.loss.last == trial.loss.lowest == 0.25
    assert follower.run.started == "later"


def test_a_run_appended_to_another(path: Path) -> None:
    follower = followed(path, START, step(0), END)
    assert follower.run.ended
    with path.open("a", encoding="utf-8") as file:
        file.write(text(START, step(0), step(1)))
    follower.poll()
    assert not follower.run.ended
    assert follower.run.current is not None
    assert follower.run.current.n_steps == 2


def test_steps_after_an_end_go_on(path: Path) -> None:
    follower = followed(path, START, step(0), END, step(0))
    assert not follower.run.ended
    assert follower.run.current is not None
    assert follower.run.current.status == "running"


DAMAGED = [
    b"{",
    b"null",
    b"3",
    b"[]",
    b"{}",
    b'{"type": 3}',
    b'{"type": ["step"]}',
    b'{"type": "step"}',
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"type": "end", "status": "odd", "error": null}',
    *(
        json.dumps(line).encode()
        for line in (
            {**START, "machine": 3},
            step(-1),
            step(1, None),
            step(1, "nan"),
            step(1, True),
            step(1, 10**400),
            step(1, clipped=1),
            step(1, epoch=1.5),
            step(1, dh_last={"l0": "x"}, dh_first={}),
            step(1, dh_last=[1.0]),
            step(1, trial=3),
            step(1, trial="a", seed=[]),
            step(1 << 70),
            {**FINDING, "severity": "odd"},
            {**FINDING, "count": -1},
            {**FINDING, "message": None, "step": "x"},
        )
    ),
]


@pytest.mark.parametrize("line", DAMAGED, ids=lambda line: line[:40].decode("latin-1"))
def test_a_damaged_line_is_counted_and_changes_nothing_else(line: bytes, path: Path) -> None:
    path.write_bytes(text(START, step(0)).encode() + line + b"\n" + text(step(1), END).encode())
    follower = Follower(path)
    follower.poll()
    assert follower.run.n_damaged == 1
    assert follower.run.ended
    assert len(follower.run.trials) == 1
    trial = follower.run.current
    assert trial is not None
    assert (trial.n_steps, trial.step, trial.findings) == (2, 1, {})


def test_lines_of_later_versions_and_blank_ones_are_no_damage(path: Path) -> None:
    follower = followed(path, START, {"type": "weather"}, step(0, more=[1, 2]))
    assert follower.run.n_damaged == 0
    with path.open("a", encoding="utf-8") as file:
        file.write("\n \n")
    follower.poll()
    assert follower.run.n_damaged == 0


def test_another_version_is_a_problem(path: Path) -> None:
    follower = followed(path, {**START, "version": 99})
    assert follower.run.problem == f"expected format {FORMAT} version {VERSION}, got {FORMAT} version 99"


def test_a_line_without_an_end_is_not_kept(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "LONGEST_LINE", 1000)
    monkeypatch.setattr(follow, "CHUNK", 100)
    path.write_bytes(text(START, step(0)).encode() + b"x" * 5000 + b"\n" + text(step(1)).encode())
    follower = Follower(path)
    follower.poll()
    assert follower.behind
    assert follower.run.current is None
    follower.poll_all()
    assert not follower.behind
    assert follower.run.n_damaged == 1
    assert follower.run.current is not None
    assert follower.run.current.step == 1


def test_random_bytes_never_raise(path: Path) -> None:
    rng = np.random.default_rng(0)
    good = bytearray(
        text(START, *(step(i, dh_first={"l0": 1.0}, dh_last={"l0": 2.0}) for i in range(4)), FINDING, END).encode()
    )
    for _ in range(300):
        data = bytearray(good)
        for at in rng.integers(len(data), size=rng.integers(1, 6)):
            data[at] = rng.integers(256)
        path.write_bytes(data)
        follower = Follower(path)
        follower.poll()
        assert follower.run.n_damaged <= 6


def test_what_would_change_the_terminal_is_replaced(path: Path) -> None:
    follower = followed(path, START, step(0, trial="a\x1b[31m\n", dh_first={"\x07": 1.0}, dh_last={"\x07": 1.0}))
    trial = follower.run.current
    assert trial is not None
    assert trial.name == "a?[31m?"
    assert list(trial.dh_last) == ["?"]


def test_names_without_end_are_refused(path: Path) -> None:
    follower = followed(path, START, *(step(0, trial=str(i)) for i in range(follow.MOST_NAMES + 5)))
    assert len(follower.run.trials) == follow.MOST_NAMES
    assert follower.run.n_damaged == 5


def test_trials_and_seeds(path: Path) -> None:
    lines = [step(0, trial="a", seed=0), {**END, "trial": "a", "seed": 0}, step(0, trial="a", seed=1)]
    follower = followed(path, START, *lines, {**FINDING, "trial": "a", "seed": 1}, step(0, trial="b", seed=0))
    trials = list(follower.run.trials.values())
    assert [trial.name for trial in trials] == ["a", "a, seed 1", "b"]
    assert [trial.status for trial in trials] == ["ended", "running", "running"]
    assert [len(trial.findings) for trial in trials] == [0, 1, 0]
    assert not follower.run.ended


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the superuser may read everything")
def test_a_file_that_may_not_be_read(path: Path) -> None:
    path.write_text("", encoding="utf-8")
    path.chmod(0)
    with pytest.raises(PermissionError):
        Follower(path).poll()


@pytest.mark.parametrize("n", [1, MOST, 2 * MOST, 10 * MOST + 3])
def test_a_curve_keeps_every_peak_in_little_memory(n: int) -> None:
    rng, curve = np.random.default_rng(1), Curve()
    values = rng.standard_normal(n)
    for i, value in enumerate(values):
        curve.append(i, float(value))
    points = curve.points()
    assert len(points) < 2 * MOST
    assert curve.lowest == min(point.low for point in points) == values.min()
    assert max(point.high for point in points) == values.max()
    assert [point.step for point in points] == sorted({point.step for point in points})
    assert points[0].step == 0
    assert curve.last == values[-1]
    assert len(curve.points(10)) <= 10


def test_a_curve_of_values_that_are_not_finite() -> None:
    curve = Curve()
    for i, value in enumerate([math.nan, math.inf, 1.0, -math.inf]):
        curve.append(i, value)
    assert curve.lowest == 1.0
    (point,) = curve.points(1)
    assert point == (0, 1.0, 1.0, True)
