"""Snapshots in memory: a run that goes back and goes on equals the run that never went astray, to the bit."""

from __future__ import annotations

import copy
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from test_checkpoint import OPTIMIZERS, same

import gradcore
from gradcore import optim
from gradcore.training.monitor import GradientMonitor
from gradcore.training.snapshot import RunState


def batches(seed: int, n: int, scale: float = 1.0) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [
        (rng.standard_normal((6, 4, 3)).astype(np.float32), (scale * rng.standard_normal((4, 2))).astype(np.float32))
        for _ in range(n)
    ]


class Averaged(gradcore.Layer):
    """A layer with a buffer, which `forward` changes."""

    def __init__(self, features: int, *, dtype: Any = np.float32) -> None:
        super().__init__(buffers={"mean": np.zeros(features, dtype)}, dtype=dtype)
        self.features = features

    def forward(self, x: Any) -> tuple[Any, Any]:
        self.buffers["mean"] = self.buffers["mean"] * np.float32(0.9) + x.reshape(-1, self.features).mean(axis=0)
        return x - self.buffers["mean"], gradcore.Tape(self, x.shape)

    def backward(self, tape: Any, dy: Any) -> Any:
        return dy


class Momentum(gradcore.Hook):
    """A hook whose state is an array that it changes in place, returns and takes as it is."""

    def __init__(self) -> None:
        self.sum = np.zeros(1)

    def after_backward(self, step: Any) -> None:
        self.sum += step.loss
        step.model.flat_grads[0] += np.float32(self.sum[0])

    def state_dict(self) -> Any:
        return {"sum": self.sum}

    def load_state_dict(self, state: Any) -> None:
        self.sum = state["sum"]


def new(rule: str = "Adam", threshold: Any = None) -> tuple[RunState, Any]:
    model = gradcore.Sequential(
        gradcore.GRU(3, 5, num_layers=2, dropout=0.5, rng=1),
        Averaged(5),
        gradcore.LastStep(),
        gradcore.Linear(5, 2, rng=2),
    )
    hooks = [gradcore.GradScaler(growth_interval=3), Momentum(), gradcore.AdaptiveClip(0.1)]
    run = RunState(
        model, getattr(optim, rule)(model, lr=0.01), hooks=hooks, max_norm=threshold, monitor=GradientMonitor()
    )

    def train(steps: list[Any]) -> None:
        for batch in steps:
            step = gradcore.training_step(
                model, batch, gradcore.losses.mse, run.optimizer, max_norm=run.max_norm, hooks=hooks
            )
            run.history.append(step.loss, step.grad_norm, lr=step.lr, tape=step.tape)
            run.monitor.update(len(run.history) - 1, step.loss, step.grad_norm, model, step.tape, step.y)

    return run, train


def everything(run: RunState) -> dict[str, Any]:
    found = {name: copy.deepcopy(part.state_dict()) for name, part in run.parts().items()}
    found |= {"model": run.model.state_dict(), "generators": [g.bit_generator.state for g in run.model.generators()]}
    history = run.history.state_dict()
    return found | {"history": {name: value for name, value in history.items() if name != "seconds"}}


@pytest.mark.parametrize(
    ("rule", "threshold"),
    [
        *((rule, gradcore.threshold.ZClip) for rule in OPTIMIZERS),
        ("Adam", lambda: gradcore.threshold.AutoClip(20, history=9)),
    ],
)
def test_going_back_is_as_if_the_steps_had_never_been(rule: str, threshold: Any) -> None:
    run, train = new(rule, threshold())
    clean, train_clean = new(rule, threshold())
    train(batches(0, 7))
    train_clean(batches(0, 7))
    saved = run.save()
    for astray in range(2):  # a snapshot serves more than once
        train(batches(10 + astray, 5, 1e6))
        run.restore(saved)
        assert same(everything(run), everything(clean))
    train(batches(1, 30))
    train_clean(batches(1, 30))
    assert same(everything(run), everything(clean))
    assert asdict(run.monitor.thresholds) == asdict(clean.monitor.thresholds)
    assert [finding.to_dict() for finding in run.monitor.findings] == [
        finding.to_dict() for finding in clean.monitor.findings
    ]


def test_a_snapshot_before_the_first_step() -> None:
    run, train = new()
    saved, before = run.save(), everything(run)
    train(batches(0, 75) + batches(1, 5, np.inf))  # longer than the first buffer of a history
    assert run.monitor.findings
    run.restore(saved)
    assert same(everything(run), before)
    assert len(run.history) == 0
    assert run.monitor.findings == []


def test_names_that_came_up_after_the_snapshot_are_forgotten() -> None:
    run = RunState(None, None)
    run.history.append(1.0, gradcore.grad_norm({"a": np.ones(2)}))
    saved = run.save()
    before = run.history.state_dict()
    run.history.append(1.0, gradcore.grad_norm({"b": np.ones(2), "a": np.zeros(1)}))
    run.restore(saved)
    assert same(run.history.state_dict(), before)
    run.history.append(1.0, gradcore.grad_norm({"c": np.ones(4)}))
    np.testing.assert_array_equal(run.history.per_array["c"], [np.nan, 2.0])
    np.testing.assert_array_equal(run.history.per_array["a"], [2**0.5, np.nan])


def test_a_schedule_of_ones_own_with_a_state() -> None:
    class Falling:
        n = 0

        def __call__(self, step: int) -> float:
            return 0.5**self.n

        def state_dict(self) -> Any:
            return {"n": self.n}

        def load_state_dict(self, state: Any) -> None:
            self.n = state["n"]

    model, lr = gradcore.Linear(2, 1), Falling()
    run = RunState(model, optim.SGD(model, lr=lr))
    saved = run.save()
    lr.n = 3
    run.restore(saved)
    assert lr.n == 0
    assert "learning_rate" in run.parts()


def test_a_model_of_ones_own_and_the_carried_state() -> None:
    class Model:
        w = np.ones(3)

        def state_dict(self) -> Any:
            return {"w": self.w}

        def load_state_dict(self, state: Any) -> None:
            self.w = state["w"]

    run = RunState(Model(), None)
    run.carried = (np.zeros(2), [np.ones(2)])
    saved = run.save()
    for _ in range(2):
        run.model.w += 1
        run.carried[0][...] = 9
        run.restore(saved)
        assert run.model.w.tolist() == [1.0, 1.0, 1.0]
        assert run.carried[0].tolist() == [0.0, 0.0]


# ---- the state of a monitor ------------------------------------------------------------------------------------------


def seen_a_lot() -> GradientMonitor:
    run, train = new()
    train(batches(0, 60))
    train(batches(1, 15, 1e8) + batches(2, 3, np.inf))
    assert run.monitor.findings
    monitor: GradientMonitor = run.monitor
    return monitor


def test_a_monitor_comes_back_from_a_file(tmp_path: Any) -> None:
    pytest.importorskip("safetensors")
    monitor, other = seen_a_lot(), GradientMonitor()
    held = other.findings
    gradcore.save_checkpoint(tmp_path / "m", monitor=monitor)
    gradcore.load_checkpoint(tmp_path / "m", monitor=other)
    assert same(other.state_dict(), monitor.state_dict())
    assert other.to_dict() == monitor.to_dict()
    assert held is other.findings
    for i in range(60):
        for each in (monitor, other):
            each.update(78 + i, 0.3 + 0.1 * (i % 3), 1.0 + i)
    assert other.to_dict() == monitor.to_dict()
    assert [finding.kind for finding in other.finish()] == [finding.kind for finding in monitor.finish()]


@pytest.mark.parametrize(
    "change",
    [
        {"findings": 3},
        {"findings": [{}]},
        {"badness": []},
        {"badness": ["x"]},
        {"run": {}},
        {"more": 1},
        *(
            {"run": {name: value}}
            for name, value in [
                ("n_steps", -1), ("n_steps", 0.5), ("losses", 3),
                ("losses", ["x"]), ("trials", [[1]]), ("_held", [[1]]), ("first", "x"), ("signed", "x"),
                ("outputs", "x"),
            ]
        ),
    ],
)  # fmt: skip
def test_another_state_is_refused_and_changes_nothing(change: Any) -> None:
    monitor = seen_a_lot()
    before = monitor.state_dict()
    state = monitor.state_dict()
    whole = change.get("run")
    bad = state | (change if not whole else {"run": state["run"] | whole})
    with pytest.raises((KeyError, TypeError, ValueError)):
        monitor.load_state_dict(bad)
    assert same(monitor.state_dict(), before)
