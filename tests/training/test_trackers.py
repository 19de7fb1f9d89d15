"""The callbacks for trackers call them as the real libraries expect, and import none of them."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import gradcore
from gradcore.training.trackers import MLflow, TensorBoard, WandB, measures

Calls = list[tuple[int | None, dict[str, float]]]
NAMES = {"loss", "lr", "grad_norm/total", "clip/coef", "clipped", "skipped"}
NAMES |= {f"dh_norm/0.l{layer}/{end}" for layer in range(2) for end in ("first", "last")}


class SummaryWriter:
    """With the signature of torch.utils.tensorboard's."""

    def __init__(self) -> None:
        self.calls: Calls = []

    def add_scalar(
        self,
        tag: str,
        scalar_value: float,
        global_step: int | None = None,
        walltime: float | None = None,
        new_style: bool = False,
        double_precision: bool = False,
    ) -> None:
        if not self.calls or self.calls[-1][0] != global_step:
            self.calls.append((global_step, {}))
        self.calls[-1][1][tag] = scalar_value


class Mlflow:
    """With the signature of the module's function."""

    def __init__(self) -> None:
        self.calls: Calls = []

    def log_metrics(
        self,
        metrics: dict[str, float],
        step: int | None = None,
        synchronous: bool | None = None,
        run_id: str | None = None,
        timestamp: int | None = None,
    ) -> None:
        self.calls.append((step, metrics))


class Run:
    """With the signature of wandb's."""

    def __init__(self) -> None:
        self.calls: Calls = []

    def log(self, data: dict[str, Any], step: int | None = None, commit: bool | None = None) -> None:
        self.calls.append((step, data))


TRACKERS = pytest.mark.parametrize(
    ("tracker", "target"), [(TensorBoard, SummaryWriter), (MLflow, Mlflow), (WandB, Run)]
)


def train(callback: Any, steps: int = 5) -> gradcore.History:
    rng = np.random.default_rng(0)
    model = gradcore.Sequential(gradcore.LSTM(3, 5, 2, rng=rng), gradcore.LastStep(), gradcore.Linear(5, 2, rng=rng))
    batches = [(rng.standard_normal((12, 6, 3), np.float32), rng.standard_normal((6, 2), np.float32))] * steps
    batches[2] = (np.full((12, 6, 3), np.nan, np.float32), batches[2][1])
    optimizer = gradcore.optim.SGD(model, lr=0.05)
    return gradcore.fit(model, batches, gradcore.losses.mse, optimizer, epochs=1, max_norm=0.01, callbacks=[callback])


@TRACKERS
def test_every_step_is_logged_once_with_what_the_history_holds(tracker: Any, target: Any) -> None:
    writer = target()
    history = train(tracker(writer))
    assert [step for step, _ in writer.calls] == [0, 1, 2, 3, 4]
    for step, values in writer.calls:
        assert values.keys() == NAMES
        assert {type(value) for value in values.values()} == {float}
        for name in ("loss", "lr", "clipped", "skipped"):
            np.testing.assert_equal(values[name], getattr(history, name)[step])
        np.testing.assert_equal(values["grad_norm/total"], history.grad_norm[step])
        np.testing.assert_equal(values["clip/coef"], history.coef[step])
        np.testing.assert_equal(values["dh_norm/0.l1/first"], history.dh_first["0.l1"][step])
        np.testing.assert_equal(values["dh_norm/0.l1/last"], history.dh_last["0.l1"][step])
    assert math.isnan(writer.calls[2][1]["loss"])
    assert writer.calls[2][1]["skipped"] == 1.0
    assert writer.calls[1][1]["clipped"] == 1.0


@TRACKERS
def test_fewer_steps_and_more_values(tracker: Any, target: Any) -> None:
    writer = target()
    history = train(tracker(writer, every=3, parameters=True))
    assert [step for step, _ in writer.calls] == [0, 3]
    assert writer.calls[1][1].keys() == NAMES | {f"grad_norm/{name}" for name in history.per_array}
    assert writer.calls[1][1]["grad_norm/2.bias"] == history.per_array["2.bias"][3]


@TRACKERS
def test_wrong_arguments(tracker: Any, target: Any) -> None:
    with pytest.raises(TypeError, match=r"expected an object with .*, got str"):
        tracker("runs")
    with pytest.raises(ValueError, match="every: expected"):
        tracker(target(), every=0)
    with pytest.raises(TypeError, match="parameters: expected"):
        tracker(target(), parameters="all")


def test_a_step_outside_fit() -> None:
    model = gradcore.Linear(3, 1, rng=0)
    batch = np.ones((4, 3), np.float32), np.ones((4, 1), np.float32)
    step = gradcore.training_step(model, batch, gradcore.losses.mse, gradcore.optim.SGD(model, lr=0.1))
    assert measures(step).keys() == {"loss", "lr", "grad_norm/total", "clip/coef", "clipped", "skipped"}


def test_no_tracker_is_imported() -> None:
    code = "import sys, gradcore.training.trackers; print({'tensorboard', 'mlflow', 'wandb', 'torch'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
