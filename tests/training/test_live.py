"""The lines of a run: what they hold, that they are whole, and that writing them never harms the run."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gradcore
from gradcore.training.live import FORMAT, VERSION, JSONLines
from gradcore.training.monitor import GradientMonitor

MSE = gradcore.losses.mse


def train(log: Any, *, steps: int = 4, bad: int | None = None, **options: Any) -> gradcore.History:
    rng = np.random.default_rng(0)
    model = gradcore.Sequential(gradcore.LSTM(3, 5, 2, rng=rng), gradcore.LastStep(), gradcore.Linear(5, 2, rng=rng))
    batches = [(rng.standard_normal((12, 6, 3), np.float32), rng.standard_normal((6, 2), np.float32))] * steps
    if bad is not None:
        batches[bad] = (np.full((12, 6, 3), np.nan, np.float32), batches[bad][1])
    optimizer = gradcore.optim.SGD(model, lr=0.05)
    return gradcore.fit(model, batches, MSE, optimizer, epochs=1, callbacks=[log], **options)


def lines(path: Path) -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise ValueError(constant)

    text = path.read_text("ascii")
    assert text.endswith("\n")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def test_a_run_from_start_to_end(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    history = train(JSONLines(path), max_norm=0.1)
    start, *steps, end = lines(path)
    assert (start["type"], start["format"], start["version"]) == ("start", FORMAT, VERSION)
    assert start["machine"] == gradcore.info()
    assert start["names"] == {"layers": ["0.l0", "0.l1"], "parameters": list(history.per_array)}
    assert [line["step"] for line in steps] == [0, 1, 2, 3]
    for i, line in enumerate(steps):
        assert line["type"] == "step"
        for name in ("epoch", "loss", "grad_norm", "clipped", "skipped", "lr", "max_norm"):
            assert line[name] == getattr(history, name)[i], name
        assert line["seconds"] == pytest.approx(history.seconds[i], abs=1e-6)
        assert line["dh_first"] == {name: norms[i] for name, norms in history.dh_first.items()}
        assert line["dh_last"] == {name: norms[i] for name, norms in history.dh_last.items()}
        assert "step_clipped" not in line
    assert (end["type"], end["status"], end["error"], end["steps"]) == ("end", "ended", None, 4)


def test_what_is_not_finite_is_a_string_and_findings_have_lines(tmp_path: Path) -> None:
    path, monitor = tmp_path / "run.jsonl", GradientMonitor()
    train(JSONLines(path, monitor), bad=2, monitor=monitor)
    found = lines(path)
    (bad,) = (line for line in found if line["type"] == "step" and line["step"] == 2)
    assert bad["loss"] == bad["grad_norm"] == "NaN"
    assert bad["skipped"] is True
    told = {(line["kind"], line["where"]): line for line in found if line["type"] == "finding"}
    for finding in monitor.findings:
        assert told[finding.kind, finding.where] == {"type": "finding", **finding.to_dict()}
    assert "nan_in_data" in {kind for kind, _ in told}


def test_a_finding_that_lasts_is_told_anew_only_when_the_file_is_written(tmp_path: Path) -> None:
    for interval, most in ((0.0, 40), (1e9, 2)):
        path, monitor = tmp_path / f"{interval}.jsonl", GradientMonitor()
        log = JSONLines(path, monitor, interval=interval)
        for step in range(40):
            monitor.update(step, math.nan, 1.0)
            log(gradcore.TrainingStep(None, None, None, None, step=step, loss=math.nan, grad_norm=1.0))
        log.close()
        told = [line["count"] for line in lines(path) if line["type"] == "finding" and line["kind"] == "nan_loss"]
        assert told[0] == 1
        assert told[-1] == 40
        assert len(told) <= most


def test_a_rollback_has_a_line(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    back = gradcore.Rollback(7, 0, "the loss is nan", 6, range(6, 9), np.array([0.5, np.nan]), np.ones(2))
    with JSONLines(path) as log:
        log.after_rollback(back)
        log.trial("second", seed=3).after_rollback(back)
    want = {"step": 7, "epoch": 0, "reason": "the loss is nan", "snapshot": 6, "batches": [6, 9]}
    first, second = (line for line in lines(path) if line["type"] == "rollback")
    assert first == {"type": "rollback", **want}
    assert second == {"type": "rollback", "trial": "second", "seed": 3, **want}


def test_step_clipping_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    train(JSONLines(path), step_clip=1e-9)
    counts = [line["step_clipped"] for line in lines(path) if line["type"] == "step"]
    assert len(counts) == 4
    assert min(counts) > 0


def test_a_loop_of_ones_own(tmp_path: Path) -> None:
    model, path = gradcore.GRU(1, 8, rng=0), tmp_path / "run.jsonl"
    optimizer = gradcore.optim.Adam(model)
    batch = np.ones((20, 4, 1), np.float32), np.zeros((20, 4, 8), np.float32)
    with JSONLines(path) as log:
        for i in range(3):
            step = gradcore.training_step(model, batch, MSE, optimizer)
            step.step = i
            log(step)
    start, *steps, end = lines(path)
    assert start["names"]["layers"] == ["l0"]
    assert [line["step"] for line in steps] == [0, 1, 2]
    assert steps[0]["dh_last"].keys() == {"l0"}
    assert end["status"] == "ended"


def test_a_run_without_steps_and_a_second_run(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with JSONLines(path):
        pass
    assert [line["type"] for line in lines(path)] == ["start", "end"]
    log = JSONLines(path)
    assert path.read_bytes() == b""  # the old lines are gone before the new run begins
    train(log, steps=2)
    train(log, steps=1)
    assert [line["type"] for line in lines(path)] == ["start", "step", "step", "end", "step", "end"]


def test_lines_are_appended_after_a_broken_one(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text('{"type": "st', encoding="utf-8")
    train(JSONLines(path, append=True), steps=1)
    broken, *whole = path.read_text("utf-8").splitlines()
    assert broken == '{"type": "st'
    assert [json.loads(line)["type"] for line in whole] == ["start", "step", "end"]
    train(JSONLines(path, append=True), steps=1)
    assert len(path.read_text("utf-8").splitlines()) == 7


def test_trials_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with JSONLines(path) as log:
        train(log.trial("first"), steps=2)
        train(log.trial("second", seed=3), steps=1)
    found = lines(path)
    assert [line["type"] for line in found] == ["start", "step", "step", "end", "trial", "step", "end", "end"]
    assert [line.get("trial") for line in found] == ["first"] * 4 + ["second"] * 3 + [None]
    assert [line.get("seed") for line in found] == [None] * 4 + [3] * 3 + [None]
    assert found[-1]["steps"] == 3


@pytest.mark.parametrize("error", [RuntimeError("no more"), KeyboardInterrupt()])
def test_the_last_line_names_what_ended_the_run(error: BaseException, tmp_path: Path) -> None:
    class Fails(gradcore.Hook):
        def after_step(self, step: gradcore.TrainingStep) -> None:
            if step.step == 2:
                raise error

    path = tmp_path / "run.jsonl"
    with pytest.raises(type(error)):
        train(JSONLines(path), hooks=[Fails()])
    end = lines(path)[-1]
    assert end["type"] == "end"
    assert end["steps"] == 2
    failed = isinstance(error, RuntimeError)
    assert end["status"] == ("failed" if failed else "interrupted")
    assert end["error"] == ("RuntimeError: no more" if failed else None)


def test_ctrl_c_is_told(tmp_path: Path, ctrl_c: None) -> None:
    class Press(gradcore.Hook):
        def after_step(self, step: gradcore.TrainingStep) -> None:
            if step.step == 1:
                signal.raise_signal(signal.SIGINT)

    path = tmp_path / "run.jsonl"
    history = train(JSONLines(path), hooks=[Press()])
    assert history.interrupted
    assert lines(path)[-1]["status"] == "interrupted"
    assert lines(path)[-1]["steps"] == len(history) == 2


def test_lines_are_written_together(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    sizes: list[int] = []
    log = JSONLines(path, interval=1e9)

    def both(step: gradcore.TrainingStep) -> None:
        log(step)
        sizes.append(path.stat().st_size)

    train(both, steps=5)
    log.close()
    assert sizes[0] > 0  # a reader need not wait for the first step
    assert len(set(sizes)) == 1
    assert len(lines(path)) == 7


def test_a_file_that_can_no_longer_be_written_does_not_end_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    log = JSONLines(folder / "run.jsonl", interval=0.0)
    (folder / "run.jsonl").unlink()
    folder.rmdir()
    with pytest.warns(RuntimeWarning, match="run.jsonl: cannot be written any more") as caught:
        history = train(log)
    assert len(history) == 4
    assert len(caught) == 1


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="path: expected a path, got int"):
        JSONLines(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="monitor: expected a GradientMonitor, got int"):
        JSONLines(tmp_path / "a", 3)
    with pytest.raises(ValueError, match="interval: expected"):
        JSONLines(tmp_path / "a", interval=-1.0)
    with pytest.raises(TypeError, match="append: expected"):
        JSONLines(tmp_path / "a", append="yes")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError):
        JSONLines(tmp_path / "no" / "run.jsonl")
