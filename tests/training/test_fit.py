"""The training loop does what the loop by hand does, stops when told to, and leaves a record that survives."""

from __future__ import annotations

import copy
import inspect
import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tapes import ToldTape

import gradcore
from gradcore._base import files as _files
from gradcore._base.progress import ProgressBar
from gradcore.training.history import COLUMNS, TABLES
from gradcore.training.monitor import GradientMonitor, Thresholds

MSE = gradcore.losses.mse


def problem(seed: int = 0, n: int = 4, T: int = 12) -> tuple[Any, list[tuple[Any, Any]]]:
    """A small recurrent model and n batches."""
    rng = np.random.default_rng(seed)
    model = gradcore.Sequential(gradcore.LSTM(3, 5, 2, rng=rng), gradcore.LastStep(), gradcore.Linear(5, 2, rng=rng))
    batches = [(rng.standard_normal((T, 6, 3), np.float32), rng.standard_normal((6, 2), np.float32)) for _ in range(n)]
    return model, batches


def sgd(model: Any, lr: float = 0.05) -> Any:
    return gradcore.optim.SGD(model, lr=lr)


def run(epochs: int = 3, **options: Any) -> gradcore.History:
    model, batches = problem()
    return gradcore.fit(model, batches, MSE, sgd(model), epochs=epochs, **options)


class Norm(float):
    """A norm with those of its parts."""

    def __new__(cls, value: float, per_array: Any) -> Norm:
        norm = super().__new__(cls, value)
        norm.per_array = per_array
        return norm


def rough_history() -> gradcore.History:
    """With everything in it that a file might lose: NaN, infinities, sequences that change their length."""
    model, batches = problem()
    history = gradcore.History()
    optimizer = sgd(model)
    for step, (x, target) in enumerate(batches):
        model.zero_grad()
        y, tape = model.forward(x[step:])
        loss, dy = MSE(y, target)
        model.backward(tape, dy)
        if step == 2:
            model.flat_grads[:2] = np.nan, np.inf
        norm = optimizer.step(max_norm=0.1)
        loss = [math.pi, math.nan, math.inf, -math.inf][step]
        history.append(loss, norm, epoch=step // 2, lr=0.05, max_norm=0.1 if step else None, tape=tape)
    history.append(5e-324, 1.7976931348623157e308)
    history.interrupted = True
    return history


def assert_same(a: gradcore.History, b: gradcore.History) -> None:
    assert a.interrupted == b.interrupted
    assert len(a) == len(b)
    for column in COLUMNS:
        one, other = getattr(a, column.name), getattr(b, column.name)
        assert one.dtype == other.dtype == column.dtype
        np.testing.assert_array_equal(one, other)
    for group in [*(table.name for table in TABLES), "dh_profile", "dh_log_mean", "_dh_count"]:
        one, other = getattr(a, group), getattr(b, group)
        assert list(one) == list(other)
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


# ---- fit -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"max_norm": 0.05}, {"max_norm": 0.05, "step_clip": 0.001}])
def test_fit_is_the_loop_by_hand(options):
    model, batches = problem()
    history = gradcore.fit(model, batches, MSE, sgd(model), epochs=3, **options)

    by_hand, batches = problem()
    optimizer = sgd(by_hand)
    losses, norms = [], []
    for _ in range(3):
        for x, target in batches:
            by_hand.zero_grad()
            y, tape = by_hand.forward(x)
            loss, dy = MSE(y, target)
            if "step_clip" in options:
                by_hand.backward(tape, dy, step_clip=options["step_clip"])
            else:
                by_hand.backward(tape, dy)
            norm = optimizer.step(max_norm=options.get("max_norm"))
            losses.append(loss)
            norms.append(float(norm))

    np.testing.assert_array_equal(model.flat_params, by_hand.flat_params)
    assert history.loss.tolist() == losses
    assert history.grad_norm.tolist() == norms
    assert history.clipped.any() == ("max_norm" in options)


def test_history_of_a_run():
    history = run(max_norm=0.4)
    assert len(history) == 12
    assert history.epoch.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert (history.max_norm == 0.4).all()
    np.testing.assert_allclose(history.coef[history.clipped], 0.4 / history.grad_norm[history.clipped])
    assert (history.coef[~history.clipped] == 1).all()
    np.testing.assert_array_equal(history.clipped, history.grad_norm > 0.4)
    assert (history.lr == 0.05).all()
    assert (np.diff(history.seconds, prepend=0) > 0).all()
    assert not history.interrupted
    model, _ = problem()
    assert list(history.per_array) == list(model.params)
    total = np.sqrt(sum(norms**2 for norms in history.per_array.values()))
    np.testing.assert_allclose(total, history.grad_norm, rtol=1e-6)
    assert list(history.d_norm) == ["0", "1", "2", "output"]
    assert list(history.dh_first) == list(history.dh_last) == ["0.l0", "0.l1"]


def test_history_of_a_run_with_schedules():
    model, batches = problem()
    batches[1] = (batches[1][0], np.full_like(batches[1][1], np.nan))
    lr, max_norm = gradcore.schedule.linear(0.0, 0.05, 5), gradcore.schedule.exponential(1.0, 0.8)
    history = gradcore.fit(model, batches, MSE, sgd(model, lr), epochs=3, max_norm=max_norm)
    steps = np.cumsum(~history.skipped) - ~history.skipped  # how many were taken before
    assert history.skipped.sum() == 3
    assert history.lr.tolist() == [lr(int(t)) for t in steps]
    assert history.max_norm.tolist() == [max_norm(int(t)) for t in steps]
    taken = ~history.skipped
    np.testing.assert_array_equal(history.clipped[taken], history.grad_norm[taken] > history.max_norm[taken])
    assert 0 < history.clipped.sum() < taken.sum()


def test_history_of_a_run_with_an_adaptive_threshold():
    model, batches = problem()
    batches[1] = (batches[1][0], np.full_like(batches[1][1], np.nan))
    monitor = GradientMonitor()
    told = []
    monitor.update = lambda *arguments, max_norm, **more: told.append(max_norm)
    threshold = gradcore.threshold.AutoClip(percentile=60.0)
    history = gradcore.fit(model, batches, MSE, sgd(model), epochs=4, max_norm=threshold, monitor=monitor)
    norms = history.grad_norm[~history.skipped]
    assert threshold.state_dict()["norms"].tolist() == norms.tolist()
    want = [np.percentile(norms[: i + 1], 60) for i in range(len(norms))]
    np.testing.assert_allclose(history.max_norm[~history.skipped], want, rtol=1e-12)
    assert (history.max_norm[history.skipped] == np.inf).all()
    assert told == history.max_norm.tolist()
    clipped = history.clipped
    assert 0 < clipped.sum() < len(norms)
    np.testing.assert_allclose(history.coef[clipped], history.max_norm[clipped] / history.grad_norm[clipped])
    assert_same(gradcore.History.from_json(history.to_json()), history)


def test_a_run_of_two_halves_is_the_whole_run():
    lr, (whole, batches), (half, _) = gradcore.schedule.one_cycle(0.1, 24), problem(), problem()
    thresholds = [gradcore.threshold.ZClip(warmup_steps=3, z_thresh=0.5) for _ in range(3)]
    history = gradcore.fit(whole, batches, MSE, sgd(whole, lr), epochs=6, max_norm=thresholds[0])
    first = sgd(half, lr)
    gradcore.fit(half, batches, MSE, first, epochs=3, max_norm=thresholds[1])
    second = sgd(half, lr)
    second.load_state_dict(first.state_dict())
    thresholds[2].load_state_dict(thresholds[1].state_dict())
    rest = gradcore.fit(half, batches, MSE, second, epochs=3, max_norm=thresholds[2])
    np.testing.assert_array_equal(whole.flat_params, half.flat_params)
    np.testing.assert_array_equal(history.max_norm[12:], rest.max_norm)
    np.testing.assert_array_equal(history.lr[12:], rest.lr)
    assert np.isfinite(rest.max_norm).any()


def test_an_optimizer_of_ones_own_needs_no_learning_rate():
    model, batches = problem(n=1)
    optimizer = SimpleNamespace(step=lambda max_norm, nonfinite: gradcore.clip_grad_norm_(model, max_norm))
    history = gradcore.fit(model, batches, MSE, optimizer, epochs=1, max_norm=0.01)
    assert np.isnan(history.lr[0])
    assert history.max_norm[0] == 0.01


def test_profiles_are_the_telemetry():
    rows = []
    history = run(callbacks=[lambda record: rows.append(record.tape.tapes[0].telemetry.dh_norm.copy())])
    dh_norm = np.array(rows)  # (steps, layers, T)
    for layer, name in enumerate(["0.l0", "0.l1"]):
        np.testing.assert_array_equal(history.dh_first[name], dh_norm[:, layer, 0])
        np.testing.assert_array_equal(history.dh_last[name], dh_norm[:, layer, -1])
        np.testing.assert_array_equal(history.dh_profile[name], dh_norm[-1, layer])
        np.testing.assert_allclose(history.dh_log_mean[name], np.log(dh_norm[:, layer]).mean(axis=0), rtol=1e-12)


def test_log_mean_counts_from_the_end_and_leaves_out_what_is_not_positive():
    history = gradcore.History()
    for row in ([1.0, 1.0], [np.e, np.e, np.e], [np.nan, 0.0, np.inf]):
        history.append(1.0, 1.0, tape=ToldTape([row]))
    np.testing.assert_allclose(history.dh_log_mean["l0"], [1.0, 0.5, 0.5], rtol=1e-15)
    history = gradcore.History()
    history.append(1.0, 1.0, tape=ToldTape(np.zeros((1, 2))))
    assert np.isnan(history.dh_log_mean["l0"]).all()


def test_lengths_reach_the_model():
    rng = np.random.default_rng(0)
    model = gradcore.Sequential(gradcore.GRU(2, 3, rng=rng), gradcore.LastStep(), gradcore.Linear(3, 1, rng=rng))
    x, target, lengths = rng.standard_normal((5, 3, 2), np.float32), np.zeros((3, 1), np.float32), [5, 0, 2]
    expected = MSE(model.forward(x, lengths=lengths)[0], target)[0]
    history = gradcore.fit(model, [(x, target, lengths)], MSE, sgd(model), epochs=1)
    assert history.loss.tolist() == [expected]
    assert history.loss[0] != MSE(model.forward(x)[0], target)[0]


def test_a_batch_may_be_a_list():
    model, batches = problem(n=1)
    assert len(gradcore.fit(model, [list(batches[0])], MSE, sgd(model), epochs=1)) == 1


def test_an_iterator_is_good_for_one_epoch_only():
    model, batches = problem()
    before = model.flat_params.copy()
    with pytest.raises(
        ValueError, match="batches: an iterator can be consumed only once, and epochs is 2; pass a list"
    ):
        gradcore.fit(model, (batch for batch in batches), MSE, sgd(model), epochs=2)
    np.testing.assert_array_equal(model.flat_params, before)
    assert len(gradcore.fit(model, (batch for batch in batches), MSE, sgd(model), epochs=1)) == 4


def test_a_callable_is_asked_every_epoch():
    model, batches = problem()
    history = gradcore.fit(model, lambda: iter(batches), MSE, sgd(model), epochs=3)
    assert len(history) == 12
    np.testing.assert_array_equal(history.loss, run().loss)


def test_a_callable_that_has_nothing_left():
    model, batches = problem()
    once = iter(batches)
    with pytest.raises(ValueError, match="batches: epoch 1 produced no batches"):
        gradcore.fit(model, lambda: once, MSE, sgd(model), epochs=2)


@pytest.mark.parametrize(
    ("batches", "got"),
    [([np.zeros(3)], "ndarray"), ([(1,)], "1 items"), ([(1, 2, 3, 4)], "4 items"), ([None], "NoneType")],
)
def test_bad_batches(batches, got):
    model, _ = problem()
    with pytest.raises(
        ValueError,
        match=rf"batches: expected \(x, target\), \(x, target, lengths\) or a dict with x and target, got {got}",
    ):
        gradcore.fit(model, batches, MSE, sgd(model), epochs=1)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"epochs": -1}, ValueError),
        ({"epochs": 1.5}, TypeError),
        ({"max_norm": -1.0}, ValueError),
        ({"max_norm": math.nan}, ValueError),
        ({"max_norm": [1]}, TypeError),
        ({"max_norm": lambda step: -1.0}, ValueError),
        ({"max_norm": gradcore.schedule.constant}, TypeError),
        ({"max_norm": -1.0, "epochs": 0}, ValueError),
        ({"nonfinite": "ignore"}, ValueError),
    ],
)
def test_bad_options(options, error):
    model, batches = problem()
    before = model.flat_params.copy()
    with pytest.raises(error, match=next(iter(options))):
        gradcore.fit(model, batches, MSE, sgd(model), **{"epochs": 1, **options})
    np.testing.assert_array_equal(model.flat_params, before)


@pytest.mark.parametrize(
    "make", [lambda: gradcore.Linear(3, 2), lambda: gradcore.MLP([3, 4, 2])], ids=["layer", "model"]
)
def test_step_clip_that_no_layer_takes(make):
    model = make()
    before = model.flat_params.copy()
    batch = np.ones((4, 3), np.float32), np.ones((4, 2), np.float32)
    with pytest.raises(ValueError, match="step_clip: no layer of this model takes it"):
        gradcore.fit(model, [batch], MSE, sgd(model), epochs=1, step_clip=1.0)
    np.testing.assert_array_equal(model.flat_params, before)


def test_float64_data_for_a_float32_model_are_not_cast_and_the_message_says_how():
    model = gradcore.Linear(3, 2)
    x, target = np.ones((4, 3)), np.ones((4, 2))
    for batch, name in (((x, target), "x"), ((np.float32(x), target), "target")):
        with pytest.raises(
            TypeError, match=rf"{name}: expected float32, got float64.*{name}\.astype\(numpy\.float32\)"
        ):
            gradcore.fit(model, [batch], MSE, sgd(model), epochs=1)


def test_no_epochs():
    history = run(epochs=0)
    assert len(history) == 0
    assert_same(gradcore.History.from_json(history.to_json()), history)


def test_a_step_without_a_finite_loss_is_skipped_and_counted():
    model, batches = problem()
    batches[1] = (batches[1][0], np.full_like(batches[1][1], np.nan))
    optimizer = sgd(model)
    params = []
    monitor = GradientMonitor()
    history = gradcore.fit(
        model, batches, MSE, optimizer, epochs=2, max_norm=1.0, monitor=monitor,
        callbacks=[lambda record: params.append(record.model.flat_params.copy())],
    )  # fmt: skip
    assert np.flatnonzero(np.isnan(history.loss)).tolist() == [1, 5]
    assert np.flatnonzero(history.skipped).tolist() == [1, 5]
    assert np.flatnonzero(history.n_nan).tolist() == [1, 5]
    assert optimizer.n_skipped == monitor.n_skipped == 2
    np.testing.assert_array_equal(params[0], params[1])
    assert (params[1] != params[2]).any()
    assert np.isfinite(model.flat_params).all()
    assert {finding.kind: finding.step for finding in monitor.findings} == {"nan_in_data": 1}


def test_nonfinite_raise():
    model, batches = problem()
    batches[1] = (batches[1][0], np.full_like(batches[1][1], np.nan))
    with pytest.raises(FloatingPointError):
        gradcore.fit(model, batches, MSE, sgd(model), epochs=1, nonfinite="raise")


def test_monitor_sees_every_step_and_the_end():
    monitor = GradientMonitor(Thresholds(never_clipped_steps=10))
    run(max_norm=1e6, monitor=monitor)
    assert monitor.n_steps == 12
    assert "never_clipping" in {finding.kind for finding in monitor.findings}


def test_callbacks():
    records: list[gradcore.TrainingStep] = []
    lengths: list[int] = []
    history = run(callbacks=[records.append, lambda record: lengths.append(len(record.history))])
    assert [record.step for record in records] == list(range(12))
    assert [record.epoch for record in records] == history.epoch.tolist()
    assert [record.loss for record in records] == history.loss.tolist()
    assert [float(record.grad_norm) for record in records] == history.grad_norm.tolist()
    assert lengths == list(range(1, 13))


@pytest.mark.parametrize("yes", [True, np.True_])
def test_a_callback_that_returns_true_stops_after_the_others(yes):
    seen = []
    history = run(callbacks=[lambda record: yes if record.step == 4 else None, lambda record: seen.append(record.step)])
    assert len(history) == 5
    assert seen == [0, 1, 2, 3, 4]
    assert not history.interrupted


def test_what_a_callback_returns_otherwise_does_not_stop():
    assert len(run(callbacks=[lambda record: 1, lambda record: "yes"])) == 12


# ---- Ctrl-C ----------------------------------------------------------------------------------------------------------


pytestmark = pytest.mark.usefixtures("ctrl_c")


def ctrl_c_at(step: int) -> Any:
    def callback(record: gradcore.TrainingStep) -> None:
        if record.step == step:
            os.kill(os.getpid(), signal.SIGINT)

    return callback


def test_ctrl_c_ends_the_run_after_the_step():
    before = signal.getsignal(signal.SIGINT)
    seen: list[int] = []
    history = run(callbacks=[ctrl_c_at(5), lambda record: seen.append(record.step)])
    assert history.interrupted
    assert len(history) == 6
    assert seen[-1] == 5
    assert signal.getsignal(signal.SIGINT) is before
    np.testing.assert_array_equal(history.loss, run().loss[:6])


def test_ctrl_c_between_two_steps():
    model, batches = problem()

    def interrupted_batches():
        yield batches[0]
        os.kill(os.getpid(), signal.SIGINT)
        yield batches[1]

    history = gradcore.fit(model, interrupted_batches(), MSE, sgd(model), epochs=1)
    assert history.interrupted
    assert len(history) == 1


def test_a_second_ctrl_c_raises_at_once():
    before = signal.getsignal(signal.SIGINT)
    seen: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        run(callbacks=[ctrl_c_at(3), ctrl_c_at(3), lambda record: seen.append(record.step)])
    assert seen == [0, 1, 2]
    assert signal.getsignal(signal.SIGINT) is before


def test_the_handler_is_restored_after_an_error():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ZeroDivisionError):
        run(callbacks=[lambda record: 1 / 0])
    assert signal.getsignal(signal.SIGINT) is before


def test_a_handler_that_ignores_ctrl_c_stays():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert len(run(callbacks=[ctrl_c_at(2)])) == 12
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_fit_in_another_thread():
    before = signal.getsignal(signal.SIGINT)
    histories: list[gradcore.History] = []
    thread = threading.Thread(
        target=lambda: histories.append(run(callbacks=[lambda _: signal.getsignal(signal.SIGINT)]))
    )
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGINT) is before
    np.testing.assert_array_equal(histories[0].loss, run().loss)


# ---- the record ------------------------------------------------------------------------------------------------------


def test_json_round_trip(tmp_path):
    history = rough_history()
    text = history.to_json(tmp_path / "history.json")
    assert (tmp_path / "history.json").read_text() == text
    for source in (text, tmp_path / "history.json", str(tmp_path / "history.json")):
        assert_same(gradcore.History.from_json(source), history)


def test_json_is_strict():
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    document = json.loads(rough_history().to_json(), parse_constant=refuse)
    assert document["loss"] == [math.pi, "NaN", "Infinity", "-Infinity", 5e-324]
    assert document["max_norm"][0] == "Infinity"
    assert document["per_array"]["2.bias"][-1] == "NaN"
    assert document["skipped"] == [False, False, True, False, False]


def test_checkpoint_round_trip(tmp_path):
    pytest.importorskip("safetensors")
    history, restored = rough_history(), run()
    gradcore.save_checkpoint(tmp_path / "run.safetensors", history=history)
    gradcore.load_checkpoint(tmp_path / "run.safetensors", history=restored)
    assert_same(restored, history)
    restored.append(1.0, 2.0)
    assert len(restored) == len(history) + 1


def test_a_state_is_a_copy():
    history = rough_history()
    before, state = copy.deepcopy(history), history.state_dict()
    for part in (state["loss"], *state["per_array"].values(), *state["dh_profile"].values()):
        part[...] = 7
    assert_same(history, before)


def test_a_state_that_does_not_fit_changes_nothing():
    history = rough_history()
    before, state = copy.deepcopy(history), run().state_dict()
    for key, value in (("loss", [1.0]), ("dh_count", {}), ("per_array", 3), ("interrupted", "yes")):
        with pytest.raises((TypeError, ValueError), match=key if key != "loss" else "grad_norm"):
            history.load_state_dict(state | {key: value})
        assert_same(history, before)
    del state["lr"]
    with pytest.raises(KeyError, match="missing \\['lr'\\]"):
        history.load_state_dict(state)


def test_a_restored_history_goes_on():
    history = rough_history()
    restored = gradcore.History.from_json(history.to_json())
    for _ in range(200):
        restored.append(1.0, 2.0)
    assert len(restored) == len(history) + 200
    np.testing.assert_array_equal(restored.loss[: len(history)], history.loss)
    assert (np.diff(restored.seconds) >= 0).all()
    assert len(restored.per_array["2.bias"]) == len(restored)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "{}",
        '{"format": "gradcore.History", "version": 1}',
        '{"format": "gradcore.History", "version": 99, "interrupted": false, "loss": []}',
        "{[1]}",
    ],
)
def test_other_json_is_refused(text, tmp_path):
    with pytest.raises(ValueError, match="text: not a gradcore history"):
        gradcore.History.from_json(text)
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(ValueError, match=r"other\.json: not a gradcore history"):
        gradcore.History.from_json(tmp_path / "other.json")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("loss", [1.0]),
        ("loss", None),
        ("loss", ["zero"] * 5),
        ("epoch", [0.5] * 5),
        ("clipped", [2] * 5),
        ("per_array", {"a": [1.0]}),
        ("dh_log_mean", {"0.l0": [1.0, 2.0]}),
        ("dh_count", {}),
        ("dh_count", {"0.l0": [1.5] * 12, "0.l1": [1.5] * 12}),
        ("dh_count", {"0.l0": [2**70] * 12, "0.l1": [2**70] * 12}),
        ("dh_count", {"0.l0": [1], "0.l1": [1]}),
        ("dh_profile", {"0.l0": [[1.0]], "0.l1": [[1.0]]}),
        ("dh_profile", {"another": [1.0]}),
        ("dh_log_mean", {"0.l0": ["-Infinity"] * 12, "0.l1": ["NaN"] * 12}),
        ("dh_count", {"0.l0": [-1] * 12, "0.l1": [1] * 12}),
        ("dh_count", {"0.l0": [6] * 12, "0.l1": [1] * 12}),
        ("loss", [10**400] * 5),
    ],
)
def test_damaged_json_is_refused(key, value):
    document = json.loads(rough_history().to_json())
    document[key] = value
    with pytest.raises(ValueError, match="text: not a gradcore history"):
        gradcore.History.from_json(json.dumps(document))


def test_a_history_that_is_no_text_is_named(tmp_path):
    path = tmp_path / "history.json"
    path.write_bytes(b"{\xff}")
    with pytest.raises(ValueError, match=r"history\.json: not a gradcore history: .*utf-8"):
        gradcore.History.from_json(path)


def test_json_of_100_000_brackets_is_refused():
    with pytest.raises(ValueError, match=r"text: not a gradcore history: .*recursion"):
        gradcore.History.from_json('{"format": ' + "[" * 100_000)


def test_a_missing_file_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        gradcore.History.from_json(tmp_path / "none.json")


@pytest.mark.parametrize("broken", ["write", "fsync", "replace"])
def test_an_interrupted_write_leaves_the_old_file(broken, tmp_path, monkeypatch):
    path = tmp_path / "history.json"
    history = rough_history()
    history.to_json(path)
    old = path.read_bytes()

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    if broken == "write":

        class FullDisk(io.FileIO):
            def write(self, data: Any) -> int:
                super().write(bytes(data)[:10])
                raise OSError(28, "No space left on device")

        monkeypatch.setattr(_files, "open", FullDisk, raising=False)
    else:
        monkeypatch.setattr(os, broken, fail)
    history.append(1.0, 1.0)
    with pytest.raises(OSError, match="No space left"):
        history.to_json(path)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_goes_through_a_link(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.json").symlink_to(tmp_path / "folder" / "real.json")
    run(epochs=1).to_json(tmp_path / "link.json")
    assert (tmp_path / "link.json").is_symlink()
    assert len(gradcore.History.from_json(tmp_path / "folder" / "real.json")) == 4


def test_arrays_of_a_history_cannot_be_changed():
    history = run()
    for array in (history.loss, history.per_array["2.bias"]):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1.0


def test_columns_of_a_history_cannot_be_assigned():
    history = run(epochs=1)
    for name in ("loss", "per_array"):
        with pytest.raises(AttributeError, match=f"{name}: is read-only; add steps with append"):
            setattr(history, name, [1.0])


def test_the_class_has_its_attributes():
    for name in ("loss", "per_array", "dh_log_mean"):
        assert hasattr(gradcore.History, name)
        assert inspect.getdoc(getattr(gradcore.History, name))


def test_an_array_taken_before_stays_as_it_was():
    history = gradcore.History()
    history.append(1.0, 2.0)
    taken = history.loss
    for step in range(1000):
        history.append(float(step), 2.0)
    assert taken.tolist() == [1.0]
    assert history.loss[1:].tolist() == list(range(1000))


def test_norms_without_names_go_by_number():
    history = gradcore.History()
    history.append(1.0, Norm(5.0, (3.0, 4.0)))
    assert {name: norms.tolist() for name, norms in history.per_array.items()} == {"0": [3.0], "1": [4.0]}


def test_norms_of_names_that_come_later_are_kept():
    history = gradcore.History()
    steps: list[dict[str, float]] = [{}, {"a": 1.0}, {"b": 2.0, "a": 3.0}, {"c": 4.0}]
    for norms in steps:
        history.append(1.0, Norm(1.0, norms))
    expected = {name: [norms.get(name, math.nan) for norms in steps] for name in "abc"}
    for record in (history, gradcore.History.from_json(history.to_json())):
        np.testing.assert_equal({name: norms.tolist() for name, norms in record.per_array.items()}, expected)


def test_norms_of_names_that_come_after_a_restored_state() -> None:
    history, restored = gradcore.History(), gradcore.History()
    history.append(0.9, 2.0)
    restored.load_state_dict(history.state_dict())
    restored.append(0.8, 2.0)
    restored.append(0.7, Norm(5.0, {"a": 5.0}))
    np.testing.assert_array_equal(restored.per_array["a"], [np.nan, np.nan, 5.0])
    assert restored.d_norm == {}


def test_repr():
    assert repr(gradcore.History()) == "History(0 steps)"
    assert repr(run()).startswith("History(12 steps, loss ")


def drawn(history: gradcore.History) -> tuple[Any, Any]:
    """The two panels of a plot that has been rendered."""
    figure = pytest.importorskip("matplotlib.figure").Figure(layout="constrained")
    axes = history.plot(figure.subplots(2, 1, sharex=True))
    figure.savefig(io.BytesIO(), format="png")
    return axes


def test_plot_shows_loss_norm_threshold_and_steps_out_of_the_ordinary():
    history = rough_history()
    loss_axes, norm_axes = drawn(history)
    np.testing.assert_array_equal(loss_axes.get_lines()[0].get_ydata(), [math.pi, *[np.nan] * 4])
    labels = {line.get_label(): line for line in norm_axes.get_lines()}
    clipped, skipped = int(history.clipped.sum()), int(history.skipped.sum())
    assert clipped > 0
    assert list(labels)[:4] == ["gradient norm", "threshold", f"clipped ({clipped})", f"skipped ({skipped})"]
    assert labels[f"skipped ({skipped})"].get_xdata().tolist() == [2]
    entries = [text.get_text() for text in norm_axes.get_legend().get_texts()]
    assert entries == ["threshold", f"clipped ({clipped})", f"skipped ({skipped})"]
    assert loss_axes.get_title(loc="left") == "The loss is not finite at 3 of 5 steps, first at step 1"
    assert norm_axes.get_title(loc="left").endswith("60% of steps are clipped, 1 step is skipped")


def made_up(losses: Any, epochs: Any = None) -> gradcore.History:
    history = gradcore.History()
    for step, loss in enumerate(losses):
        history.append(loss, 0.2 + loss**2, epoch=0 if epochs is None else epochs[step])
    return history


@pytest.mark.parametrize(
    ("losses", "epochs", "finding"),
    [
        ([], None, "No steps yet"),
        ([2.0], None, "The loss stays near 2"),
        (np.linspace(3, 1, 21), None, "The loss falls from 2.7 to 1.3"),
        (np.linspace(1, -3, 21), None, "The loss falls from 0.4 to -2.4"),
        (np.linspace(1, 3, 21), None, "The loss rises from 1.3 to 2.7"),
        # The same batches in each epoch, whose first and last ones differ.
        ([*range(1, 13)] * 4, np.repeat(range(4), 12), "The loss stays near 6.5"),
    ],
)
def test_plot_states_what_the_loss_does(losses, epochs, finding):
    loss_axes, _ = drawn(made_up(losses, epochs))
    assert loss_axes.get_title(loc="left") == finding


def test_plot_has_labels_and_plain_numbers():
    loss_axes, norm_axes = drawn(made_up([0.9, 0.5, 0.2]))
    assert (loss_axes.get_ylabel(), norm_axes.get_ylabel(), norm_axes.get_xlabel()) == ("loss", "gradient norm", "step")
    assert norm_axes.get_legend() is None
    for axes in (loss_axes, norm_axes):
        assert axes.get_yscale() == "log"
        ticks = [label.get_text() for kind in (True, False) for label in axes.get_yticklabels(minor=kind)]
        assert "0.6" in ticks
        assert not any("e" in text or "$" in text for text in ticks)
    assert drawn(made_up([0.9, 0.0, -0.2]))[0].get_yscale() == "linear"


def test_plot_marks_epochs():
    loss_axes, norm_axes = drawn(made_up(np.ones(12), np.repeat(range(3), 4)))
    for axes in (loss_axes, norm_axes):
        assert [line.get_xdata()[0] for line in axes.get_lines()[1:]] == [3.5, 7.5]
    assert norm_axes.get_xlabel() == "step (a vertical line every epoch)"
    _, norm_axes = drawn(made_up(np.ones(100), range(100)))
    assert [line.get_xdata()[0] for line in norm_axes.get_lines()[1:3]] == [2.5, 5.5]
    assert norm_axes.get_xlabel() == "step (a vertical line every 3 epochs)"


def test_plot_makes_a_figure_of_its_own():
    pytest.importorskip("matplotlib").use("Agg")
    from matplotlib import pyplot

    loss_axes, norm_axes = run().plot()
    assert loss_axes.figure is norm_axes.figure
    pyplot.close(loss_axes.figure)


def test_html_is_a_small_table():
    html = run(max_norm=0.4)._repr_html_()
    for text in ("<caption>History</caption>", "12", "loss", "gradient norm", "clipped steps", "skipped steps"):
        assert text in html
    assert "ended by Ctrl-C" in rough_history()._repr_html_()
    assert "0</td>" in gradcore.History()._repr_html_()
    lost = gradcore.History()
    lost.append(math.nan, math.nan)
    assert "none is finite" in lost._repr_html_()


def test_nothing_optional_is_imported():
    code = "import sys, gradcore; print(sorted({'matplotlib', 'rich', 'typer', 'torch'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


# ---- the progress bar ------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_quiet_where_nobody_looks(monkeypatch):
    monkeypatch.setattr("gradcore._base.progress.DELAY", 0.0)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    run()
    assert sys.stderr.getvalue() == ""
    monkeypatch.setattr(sys, "stderr", None)
    run()


def test_quiet_for_short_work(monkeypatch):
    monkeypatch.setattr("gradcore._base.progress.DELAY", 3600.0)
    monkeypatch.setattr(sys, "stderr", Terminal())
    run()
    assert sys.stderr.getvalue() == ""


def test_long_work_on_a_terminal_shows_loss_norm_and_clipped_share(monkeypatch):
    pytest.importorskip("rich")
    monkeypatch.setattr("gradcore._base.progress.DELAY", 0.0)
    monkeypatch.setattr("gradcore._base.progress.INTERVAL", 0.0)
    monkeypatch.setenv("COLUMNS", "150")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    history = run(max_norm=1e-9)
    shown = sys.stderr.getvalue()
    assert "training" in shown
    assert "12/12" in shown
    assert f"loss {history.loss[-1]:.4g}" in shown
    assert f"norm {history.grad_norm[-1]:.3g}" in shown
    assert "clipped 100%" in shown


@pytest.mark.parametrize("columns", [30, 60, 79, 80, 120])
def test_a_narrow_terminal_keeps_the_count_whole(columns, monkeypatch):
    pytest.importorskip("rich")
    monkeypatch.setattr("gradcore._base.progress.INTERVAL", 0.0)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    with ProgressBar(400, "training", show=True) as bar:
        for _ in range(165):
            bar.update("loss 0.01512  norm 0.517  clipped 28%")
        drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", sys.stderr.getvalue()).split("\r")[-1]
    assert len(drawn) <= columns
    assert "165/400 " in drawn
    assert ("training" in drawn) == (columns >= 80)
    assert drawn.rstrip().endswith("clipped 28%" if columns >= 60 else "…")


class FakeNotebook:
    """Stands in for the IPython of a notebook's kernel."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, kernel: Any = True) -> None:
        self.shown: list[dict[str, str]] = []
        shell = SimpleNamespace(kernel=kernel)
        handle = SimpleNamespace(update=lambda data, raw: self.shown.append(data))
        display = SimpleNamespace(display=lambda data, raw, display_id: self.shown.append(data) or handle)
        monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell, display=display))
        monkeypatch.setitem(sys.modules, "IPython.display", display)


@pytest.mark.parametrize("show", [None, True])
def test_a_notebook_shows_a_line_that_is_replaced_and_nothing_on_standard_error(show, monkeypatch, capsys):
    monkeypatch.setattr("gradcore._base.progress.DELAY", 0.0)
    monkeypatch.setattr("gradcore._base.progress.INTERVAL", 0.0)
    notebook = FakeNotebook(monkeypatch)
    history = run(progress=show)
    *_, last, gone = notebook.shown
    assert '<progress value="12" max="12"></progress> 12/12' in last["text/html"]
    assert f"loss {history.loss[-1]:.4g}" in last["text/html"]
    assert gone["text/html"] == ""
    assert not any("\x1b" in text for data in notebook.shown for text in data.values())
    assert capsys.readouterr().err == ""


def test_a_notebook_escapes_and_may_not_know_the_total(monkeypatch):
    monkeypatch.setattr("gradcore._base.progress.INTERVAL", 0.0)
    notebook = FakeNotebook(monkeypatch)
    with ProgressBar(None, "a & b", show=True) as bar:
        bar.update("<b>")
    assert notebook.shown[1]["text/html"] == "a &amp; b <progress></progress> 1/? &ensp; &lt;b&gt;"


def test_no_line_in_a_notebook_when_told_so_or_in_a_shell_without_kernel(monkeypatch):
    monkeypatch.setattr("gradcore._base.progress.DELAY", 0.0)
    for notebook, show in ((FakeNotebook(monkeypatch), False), (FakeNotebook(monkeypatch, kernel=None), None)):
        run(progress=show)
        assert notebook.shown == []


def test_never_when_told_so(monkeypatch):
    monkeypatch.setattr("gradcore._base.progress.DELAY", 0.0)
    monkeypatch.setattr(sys, "stderr", Terminal())
    run(progress=False)
    assert sys.stderr.getvalue() == ""


def test_without_rich(monkeypatch):
    monkeypatch.setattr("gradcore._base.progress.DELAY", 0.0)
    monkeypatch.setattr(sys, "stderr", Terminal())
    for name in [name for name in sys.modules if name.split(".")[0] == "rich"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rich", None)
    run()
    assert sys.stderr.getvalue() == ""
    with pytest.raises(ImportError, match=r"gradcore\[cli\]"):
        run(progress=True)


def test_total_of_an_iterable_without_length_is_known_after_an_epoch(monkeypatch):
    totals = []
    monkeypatch.setattr(ProgressBar, "update", lambda bar, note: totals.append(bar.total))
    model, batches = problem()
    gradcore.fit(model, lambda: iter(batches), MSE, sgd(model), epochs=2)
    assert totals == [None] * 4 + [8] * 4


# ---- files -----------------------------------------------------------------------------------------------------------


def test_json_text():
    value = {"a": np.float32(0.5), "b": np.array([1.0, np.nan]), "c": (True, None, np.int64(3)), "d": {"e": -math.inf}}
    expected = {"a": 0.5, "b": [1.0, "NaN"], "c": [True, None, 3], "d": {"e": "-Infinity"}}
    assert json.loads(_files.json_text(value)) == expected
    with pytest.raises(TypeError, match="Path"):
        _files.json_text(Path())
