"""The spike supervisor: what it finds, and that a run with a rollback equals one that never saw the batches."""

from __future__ import annotations

import copy
import itertools
import json
import math
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tools import Array

import gradcore
from gradcore import Supervisor, TooManyRollbacksError, optim
from gradcore.training.monitor import GradientMonitor
from gradcore.training.supervisor import KEPT

pytestmark = pytest.mark.kernels

MSE = gradcore.losses.mse
QUICK: dict[str, Any] = {"rollback": 10, "skip": 12, "window": 20, "warmup": 5, "spike": 6.0}
COLUMNS = ("loss", "grad_norm", "coef", "max_norm", "lr", "epoch", "n_nan", "n_inf", "clipped", "skipped")
TABLES = ("per_array", "d_norm", "dh_first", "dh_last", "dh_log_mean", "dh_profile")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small models: a second thread would only wait."""
    before = gradcore.get_num_threads()
    gradcore.set_num_threads(1)
    yield
    gradcore.set_num_threads(before)


def data(n: int, poison: tuple[int, ...] = (), factor: float = 1e4, seed: int = 0) -> list[Any]:
    """Batches of a task that is learned, some of them with huge targets."""
    rng = np.random.default_rng(seed)
    batches = []
    for i in range(n):
        x = rng.standard_normal((3, 16, 3)).astype(np.float32)
        target = x[-1, :, :1] + np.float32(0.1) * rng.standard_normal((16, 1)).astype(np.float32)
        batches.append((x, target * np.float32(factor) if i in poison else target))
    return batches


class Decay(gradcore.Hook):
    """Lower the rate at each epoch's end; its state is the number of epochs."""

    def __init__(self) -> None:
        self.n = 0

    def after_epoch(self, epoch: int, history: Any) -> None:
        self.n += 1

    def before_step(self, step: Any) -> None:
        grads = step.model.flat_grads
        grads *= np.float32(0.95**self.n)

    def state_dict(self) -> Any:
        return {"n": self.n}

    def load_state_dict(self, state: Any) -> None:
        self.n = state["n"]


class Run:
    """Everything that takes part in a run, built the same way each time."""

    def __init__(self, rule: str = "Adam", **options: Any) -> None:
        self.model = gradcore.Sequential(
            gradcore.GRU(3, 6, num_layers=2, dropout=0.3, rng=1), gradcore.LastStep(), gradcore.Linear(6, 1, rng=2)
        )
        self.optimizer = getattr(optim, rule)(self.model, lr=0.01)
        self.threshold = gradcore.threshold.AutoClip(percentile=90.0, history=30)
        self.scaler, self.decay = gradcore.GradScaler(growth_interval=7), Decay()
        self.monitor, self.options = GradientMonitor(), options

    def fit(self, batches: Any, epochs: int = 1, **options: Any) -> Any:
        self.history = gradcore.fit(
            self.model,
            batches,
            MSE,
            self.optimizer,
            epochs=epochs,
            max_norm=self.threshold,
            hooks=[self.scaler, gradcore.AdaptiveClip(0.5), self.decay],
            monitor=self.monitor,
            **{**self.options, **options},
        )
        return self.history

    def state(self) -> dict[str, Any]:
        history = self.history
        return {
            "params": self.model.flat_params,
            "optimizer": self.optimizer.state_dict(),
            "generators": [rng.bit_generator.state for rng in self.model.generators()],
            "threshold": self.threshold.state_dict(),
            "scaler": self.scaler.state_dict(),
            "decay": self.decay.state_dict(),
            "monitor": self.monitor.state_dict(),
            **{name: getattr(history, name) for name in (*COLUMNS, *TABLES)},
        }


def without(batches: list[Any], *passed: range) -> list[Any]:
    gone = {i for each in passed for i in each}
    return [batch for i, batch in enumerate(batches) if i not in gone]


def epochs_of(batches: list[Any], size: int, *passed: range) -> Callable[[], Iterator[Any]]:
    """Return a source of epochs of `size` batches, without those that are passed over."""
    gone, numbered = {i for each in passed for i in each}, iter(enumerate(batches))
    epochs = [[next(numbered) for _ in range(size)] for _ in range(len(batches) // size)]
    left = iter([[batch for i, batch in epoch if i not in gone] for epoch in epochs])
    return lambda: iter(next(left))


# ---- the same bits ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["SGD", "Adam", "SPAM"])
def test_a_rollback_equals_a_run_without_the_batches(rule: str) -> None:
    batches = data(120, poison=(60, 61))
    run, clean = Run(rule), Run(rule)
    history = run.fit(batches, supervisor=Supervisor(**QUICK))
    (back,) = history.rollbacks
    assert 60 <= back.step < 66
    assert 5 <= back.step + 1 - back.snapshot <= 20
    assert back.batches == range(back.snapshot, back.snapshot + 12)
    assert {60, 61} <= set(back.batches)
    clean.fit(without(batches, back.batches))
    np.testing.assert_equal(run.state(), clean.state())
    assert len(history) == 108
    assert len(back.loss) == len(back.grad_norm) == back.step + 1 - back.snapshot
    assert back.loss[60 - back.snapshot] > 1e6
    assert not clean.history.rollbacks


def test_without_a_spike_nothing_changes() -> None:
    batches = data(150)
    run, plain = Run(), Run()
    assert not run.fit(batches, supervisor=Supervisor(**QUICK)).rollbacks
    plain.fit(batches)
    np.testing.assert_equal(run.state(), plain.state())


@pytest.mark.parametrize("size", [4, 7, 30, 62])
def test_the_ends_of_epochs_within_undone_steps_and_passed_batches(size: int) -> None:
    """Also where whole epochs are passed over: they end too, as for one who is given none of their batches."""
    batches = data(124, poison=(64, 65))
    run, clean = Run(), Run()
    ended: list[tuple[int, int]] = []

    class Told(gradcore.Hook):
        def after_epoch(self, epoch: int, history: Any) -> None:
            ended.append((epoch, len(history)))

    n = len(batches) // size
    model_hooks = [run.scaler, gradcore.AdaptiveClip(0.5), run.decay, Told()]
    run.history = gradcore.fit(
        run.model, epochs_of(batches, size), MSE, run.optimizer, epochs=n, max_norm=run.threshold, hooks=model_hooks,
        monitor=run.monitor, supervisor=Supervisor(**QUICK),
    )  # fmt: skip
    (back,) = run.history.rollbacks
    final = dict(ended)  # the last word on each epoch
    assert list(final) == list(range(n))
    used = [i for i in range(n * size) if i not in back.batches]
    assert final == {epoch: sum(i < (epoch + 1) * size for i in used) for epoch in range(n)}
    assert run.decay.n == n
    if all(any(i // size == epoch for i in used) for epoch in range(n)):  # else fit refuses an epoch without batches
        clean.fit(epochs_of(batches, size, back.batches), n)
        np.testing.assert_equal(run.state(), clean.state())


def test_two_rollbacks_far_apart() -> None:
    batches = data(200, poison=(60, 61, 140, 141))
    run, clean = Run(), Run()
    first, second = run.fit(batches, supervisor=Supervisor(**QUICK)).rollbacks
    assert {60, 61} <= set(first.batches)
    assert {140, 141} <= set(second.batches)
    assert second.snapshot == second.batches.start - len(first.batches)
    clean.fit(without(batches, first.batches, second.batches))
    np.testing.assert_equal(run.state(), clean.state())


def test_a_second_spike_soon_after_goes_to_an_older_snapshot() -> None:
    """The batches after those that were passed over are bad as well."""
    batches = data(200, poison=(60, 61, *range(67, 80)))
    run, clean = Run(), Run()
    rollbacks = run.fit(batches, supervisor=Supervisor(**QUICK)).rollbacks
    assert len(rollbacks) > 1
    for before, after in itertools.pairwise(rollbacks[:3]):
        assert after.snapshot < before.snapshot
        assert 5 <= after.step + 1 - after.snapshot <= 20
        assert after.batches.start < before.batches.start
    clean.fit(without(batches, *(each.batches for each in rollbacks)))
    np.testing.assert_equal(run.state(), clean.state())
    gone = {i for each in rollbacks for i in each.batches}
    assert gone >= {60, 61, *range(67, 80)}


def test_a_spike_before_there_is_an_older_snapshot_goes_back_to_the_start() -> None:
    batches = data(60, poison=(7,))
    run, clean = Run("SGD"), Run("SGD")
    batches[7] = batches[7][0], batches[7][1] * np.float32(np.nan)
    (back,) = run.fit(batches, supervisor=Supervisor(**(QUICK | {"rollback": 100, "skip": 10}))).rollbacks
    assert (back.step, back.snapshot, back.batches, back.reason) == (7, 0, range(10), "the loss is nan")
    clean.fit(batches[10:])
    np.testing.assert_equal(run.state(), clean.state())


def test_batches_of_undone_steps_are_passed_over_even_if_skip_is_smaller() -> None:
    batches = data(120, poison=(60, 61))
    run, clean = Run(), Run()
    back, *others = run.fit(batches, supervisor=Supervisor(**(QUICK | {"skip": 0}))).rollbacks
    assert back.batches == range(back.snapshot, back.step + 1)
    clean.fit(without(batches, back.batches, *(other.batches for other in others)))
    np.testing.assert_equal(run.state(), clean.state())


def test_snapshots_on_disk(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    batches = data(160, poison=(60, 61, 67, 68))
    run, other = Run(), Run()
    folder = tmp_path / "new" / "snapshots"
    run.fit(batches, supervisor=Supervisor(**QUICK))
    other.fit(batches, supervisor=Supervisor(**QUICK, folder=folder))
    assert run.history.rollbacks
    assert list(map(str, run.history.rollbacks)) == list(map(str, other.history.rollbacks))
    np.testing.assert_equal(run.state(), other.state())
    assert len(list(folder.iterdir())) <= KEPT


# ---- what it finds ---------------------------------------------------------------------------------------------------


class Constant:
    """A model of one weight whose loss and gradient are what the batch says."""

    def __init__(self) -> None:
        self.layer = gradcore.Linear(1, 1, bias=False, dtype=np.float64, rng=0)

    def zero_grad(self) -> None:
        self.layer.zero_grad()

    def forward(self, x: Any) -> Any:
        return x, None

    def backward(self, tape: Any, dy: Any) -> None:
        self.layer.flat_grads[...] = dy

    def state_dict(self) -> Any:
        return self.layer.state_dict()

    def load_state_dict(self, state: Any) -> None:
        self.layer.load_state_dict(state)


def watched(losses: Any, norms: Any = None, hooks: Any = (), **options: Any) -> list[Any]:
    """The rollbacks of a run with these losses and norms."""
    norms = np.ones(len(losses)) if norms is None else norms
    model = Constant()
    history = gradcore.fit(
        model, list(zip(losses, norms, strict=True)), lambda y, norm: (float(y), norm), optim.SGD(model.layer, lr=0.0),
        epochs=1, hooks=hooks, supervisor=Supervisor(**options), progress=False,
    )  # fmt: skip
    found: list[Any] = history.rollbacks
    return found


def around(n: int, level: float = 0.9, noise: float = 0.05, seed: int = 0) -> Array:
    return level * np.exp(noise * np.random.default_rng(seed).standard_normal(n))


@pytest.mark.parametrize("shift", [0.0, -2.0, 100.0])
def test_a_jump_of_the_loss(shift: float) -> None:
    """From 0.9 to 17, and down to 3; the same where it may be negative."""
    losses = around(400) + shift
    losses[300:] = 3 + 14 * np.exp(-np.arange(100) / 10) + shift
    if shift > 1:
        losses[300:] *= 2
    (back, *_) = watched(losses)
    assert 300 <= back.step <= 302
    assert back.reason.startswith("the loss ")
    assert "the median of 128 before" in back.reason
    assert 50 <= back.step + 1 - back.snapshot <= 200


def test_a_spike_of_the_norm_alone() -> None:
    norms = around(300, 2.0, 0.3)
    norms[200] = 1e9
    (back,) = watched(around(300), norms)
    assert back.step == 200
    assert back.reason.startswith("the gradient norm 1e+09 is ")


def test_one_value_far_above_is_a_spike_and_one_not_so_far_is_not_until_it_lasts() -> None:
    losses = around(300, 1.0, 0.2)
    losses[200] = math.exp(3.0)
    assert not watched(losses)
    losses[200:202] = math.exp(3.0)
    assert not watched(losses)
    losses[200:203] = math.exp(3.0)
    (back,) = watched(losses)
    assert back.step == 202
    assert back.reason.endswith(", and stood out for 3 steps")
    losses[201:203], losses[200] = 1.0, math.exp(9.0)
    (back,) = watched(losses)
    assert back.step == 200


def test_loss_and_norm_that_stand_out_together_are_a_spike() -> None:
    losses, norms = around(300, 1.0, 0.2), around(300, 2.0, 0.2, seed=1)
    losses[200], norms[201] = math.exp(3.0), 2 * math.exp(3.0)
    assert not watched(losses, norms)
    norms[200] = 2 * math.exp(3.0)
    (back,) = watched(losses, norms)
    assert back.step == 200
    assert back.reason.startswith("the loss 20.09 is ")
    assert ", and the gradient norm 40.17 is " in back.reason


def test_ten_losses_in_a_row_need_not_be_so_far_out() -> None:
    losses = around(300, 1.0, 0.2)
    losses[200:209] = math.exp(1.5)
    assert not watched(losses)
    losses[209] = math.exp(1.5)
    (back,) = watched(losses)
    assert (back.step, back.reason.endswith(", and stood out for 10 steps")) == (209, True)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_a_spike_at_once_in_the_warmup_too(bad: float) -> None:
    losses, norms = around(20), around(20)
    losses[3] = bad
    (back,) = watched(losses, skip=1)
    assert (back.step, back.reason) == (3, f"the loss is {bad}")
    losses[3], norms[3] = 1.0, bad
    (back,) = watched(losses, norms, skip=1)
    assert (back.step, back.reason) == (3, f"the gradient norm is {'nan' if math.isnan(bad) else 'inf'}")


def test_overflow_under_loss_scaling_is_not_a_spike() -> None:
    batches = data(60)
    run = Run()
    run.scaler = gradcore.GradScaler(init_scale=2.0**127)
    batches = [(1e3 * x, 1e3 * y) for x, y in batches]
    history = run.fit(batches, supervisor=Supervisor(**QUICK))
    assert history.skipped.any()
    assert not history.rollbacks


def test_no_spike_in_what_is_healthy() -> None:
    """Falling, noisy with heavy tails, constant, zero, alternating, of either sign, and a slow rise."""
    rng, n = np.random.default_rng(0), 1000
    runs = {
        "falling": np.exp(-np.arange(n) / 100) + 1e-9,
        "falling with noise": 4 * np.exp(-np.arange(n) / 300) * np.exp(0.5 * rng.standard_normal(n)),
        "heavy tails": np.exp(rng.standard_t(4, n)),
        "constant": np.ones(n),
        "zero": np.zeros(n),
        "mostly zero": np.where(rng.random(n) < 0.7, 0.0, rng.exponential(1, n)),
        "alternating": np.where(np.arange(n) % 2, 1.0, 4.0),
        "either sign": rng.standard_normal(n),
        "slow rise": np.exp(np.arange(n) / 500),
        "tiny": 1e-310 * np.exp(0.3 * rng.standard_normal(n)),
        "huge": 1e307 * np.exp(0.3 * rng.standard_normal(n)),
    }
    for name, values in runs.items():
        assert not watched(values), name
        if (values >= 0).all():
            assert not watched(around(n), np.minimum(values, 1e150)), f"norm: {name}"


def test_nothing_is_judged_in_the_warmup() -> None:
    losses = around(100)
    losses[20:23] = 1e6
    assert not watched(losses, warmup=32)
    assert watched(losses, warmup=16)


# ---- giving up, and other ends ---------------------------------------------------------------------------------------


def test_it_gives_up_with_the_whole_story() -> None:
    batches = data(60)
    for i in range(40, 60):
        batches[i] = batches[i][0], np.full((16, 1), np.nan, np.float32)
    run, clean = Run(), Run()
    ends: list[Any] = []

    class Callback:
        def __call__(self, step: Any) -> None: ...

        def after_run(self, history: Any, error: Any) -> None:
            ends.append(error)

    with pytest.raises(TooManyRollbacksError) as info:
        run.fit(batches, supervisor=Supervisor(**(QUICK | {"skip": 0}), max_rollbacks=2), callbacks=[Callback()])
    error = info.value
    assert ends == [error]
    assert len(error.rollbacks) == 3
    assert error.rollbacks is error.history.rollbacks
    assert str(error).startswith("gave up after 3 spikes (max_rollbacks: 2):\n  step 40: the loss is nan; ")
    assert all(str(rollback) in str(error) for rollback in error.rollbacks)
    run.history = error.history
    clean.fit(batches[: len(run.history)])
    clean.decay.n = 0  # the epoch has not ended
    np.testing.assert_equal(run.state(), clean.state())  # at good weights
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error)


def test_a_spike_in_the_last_step_leaves_good_weights() -> None:
    batches = data(50)
    batches[49] = batches[49][0], np.full((16, 1), np.inf, np.float32)
    run, clean = Run(), Run()
    (back,) = run.fit(batches, supervisor=Supervisor(**QUICK)).rollbacks
    clean.fit(batches[: back.snapshot])
    np.testing.assert_equal(run.state(), clean.state())


def test_ctrl_c_while_batches_are_passed_over() -> None:
    """It comes as a source of batches is asked for one that is passed over."""
    import signal

    batches = data(120, poison=(60, 61))
    run, clean = Run(), Run()

    def source() -> Iterator[Any]:
        for i, batch in enumerate(batches):
            if i == 66:
                signal.raise_signal(signal.SIGINT)
            yield batch

    history = run.fit(source, supervisor=Supervisor(**(QUICK | {"skip": 30})))
    assert history.interrupted
    (back,) = history.rollbacks
    assert len(history) == back.snapshot
    clean.fit(batches[: back.snapshot])
    clean.decay.n = 0  # the epoch has not ended
    np.testing.assert_equal(run.state(), clean.state())


def test_a_callback_that_stops_at_the_spike_leaves_good_weights() -> None:
    batches = data(120, poison=(60, 61))
    run, clean = Run(), Run()
    told: list[Any] = []

    class Stop:
        def __call__(self, step: Any) -> bool:
            return step.loss > 1e4 and len(told) == 0 and step.step >= 62

        def after_rollback(self, rollback: Any) -> None:
            told.append(rollback)

    history = run.fit(batches, supervisor=Supervisor(**QUICK), callbacks=[Stop()])
    assert told == history.rollbacks
    clean.fit(without(batches, told[0].batches))
    assert len(history) == len(told[0].batches) or len(history) in (told[0].snapshot, 108)


# ---- moments and rates -----------------------------------------------------------------------------------------------


def test_moments_are_reset() -> None:
    batches = data(70, poison=(60, 61))
    run = Run()
    (back,) = run.fit(batches, supervisor=Supervisor(**(QUICK | {"skip": 40}), reset_moments=True)).rollbacks
    state = run.optimizer.state_dict()
    assert state["n_steps"] == back.snapshot == len(run.history)
    assert set(state["moments"]) == {"exp_avg", "exp_avg_sq"}
    assert not any(array.any() for moment in state["moments"].values() for array in moment.values())


def test_resetting_moments_restores_their_first_values() -> None:
    w, g = np.ones(3), np.ones(3)
    optimizer = optim.Adagrad({"w": (w, g)}, initial_accumulator_value=0.25)
    optimizer.step()
    assert (optimizer.state_dict()["moments"]["sum"]["w"] == 1.25).all()
    optimizer.reset_moments()
    assert (optimizer.state_dict()["moments"]["sum"]["w"] == 0.25).all()


def test_the_rate_is_lowered_once_for_every_rollback() -> None:
    """Also if the second one goes to a snapshot from before the first."""
    for poison in ((60, 61, 140, 141), (60, 61, *range(67, 80))):
        run = Run()
        rollbacks = run.fit(data(200, poison), supervisor=Supervisor(**QUICK, lr_factor=0.5)).rollbacks
        assert len(rollbacks) > 1
        assert run.optimizer.lr == pytest.approx(0.01 * 0.5 ** len(rollbacks), rel=1e-12)


def test_the_rates_of_groups_are_lowered_too() -> None:
    run = Run()
    layers = run.model[0], run.model[2]
    run.optimizer = optim.Adam([{"params": layers[0]}, {"params": layers[1], "lr": 0.02}], lr=0.01)
    run.fit(data(90, (60, 61)), supervisor=Supervisor(**QUICK, lr_factor=0.5))
    assert [group.lr for group in run.optimizer.groups] == [0.005, 0.01]


def test_a_schedule_is_left_alone() -> None:
    run = Run()
    run.optimizer.lr = gradcore.schedule.linear(0.01, 0.0, 200)
    with pytest.raises(ValueError, match=r"lr_factor: expected 1 with a schedule as learning rate, got 0\.5"):
        run.fit(data(5), supervisor=Supervisor(lr_factor=0.5))
    batches, clean = data(120, (60, 61)), Run()
    clean.optimizer.lr = run.optimizer.lr
    (back,) = run.fit(batches, supervisor=Supervisor(**QUICK)).rollbacks
    clean.fit(without(batches, back.batches))
    np.testing.assert_equal(run.state(), clean.state())


# ---- the record ------------------------------------------------------------------------------------------------------


def test_rollbacks_are_part_of_the_history() -> None:
    run = Run()
    (back,) = run.fit(data(80, (60, 61)), supervisor=Supervisor(**QUICK)).rollbacks
    again = gradcore.History.from_json(run.history.to_json())
    assert str(again.rollbacks[0]) == str(back)
    np.testing.assert_equal(again.rollbacks[0].to_dict(), back.to_dict())
    assert "rollback" in run.history._repr_html_()
    json.loads(run.history.to_json())
    state = run.history.state_dict()
    for name, wrong, error in (("step", -1, ValueError), ("reason", 3, TypeError), ("loss", [[1.0]], ValueError)):
        bad = copy.deepcopy(state)
        bad["rollbacks"][0][name] = wrong
        with pytest.raises(error, match=name):
            gradcore.History().load_state_dict(bad)


def test_the_state_of_a_supervisor_is_that_of_its_run() -> None:
    run = Run()
    supervisor = Supervisor(**QUICK)
    run.fit(data(80, (60, 61)), supervisor=supervisor)
    other = Supervisor(**QUICK)
    state = supervisor.state_dict()
    other.load_state_dict(copy.deepcopy(state))
    np.testing.assert_equal(other.state_dict(), state)
    for name, wrong in (("drawn", -1), ("to_pass", 0.5), ("levels", {}), ("kept", [{}])):
        with pytest.raises((KeyError, TypeError, ValueError), match=name):
            other.load_state_dict({**state, name: wrong})
    np.testing.assert_equal(other.state_dict(), state)
    with pytest.raises(KeyError, match="unknown"):
        other.load_state_dict({**state, "else": 0})


def test_a_supervisor_begins_anew_with_each_run() -> None:
    supervisor, batches = Supervisor(**QUICK), data(120, (60, 61))
    runs = [Run(), Run()]
    for run in runs:
        run.fit(batches, supervisor=supervisor)
    np.testing.assert_equal(runs[0].state(), runs[1].state())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"spike": 0.0}, "spike: expected a number above 0, got 0"),
        ({"rollback": 0}, "rollback: expected an integer of at least 1, got 0"),
        ({"skip": -1}, "skip: expected an integer of at least 0, got -1"),
        ({"max_rollbacks": -1}, "max_rollbacks: expected an integer of at least 0, got -1"),
        ({"window": 2}, "window: expected an integer of at least 3, got 2"),
        ({"window": 10, "warmup": 20}, "warmup: expected at most window = 10, got 20"),
        ({"lr_factor": 1.5}, "lr_factor: expected a number above 0 and at most 1, got 1.5"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Supervisor(**arguments)


def test_fit_refuses_what_cannot_be_set_back() -> None:
    class Plain:
        def __init__(self, layer: Any) -> None:
            self.zero_grad, self.forward, self.backward = layer.zero_grad, layer.forward, layer.backward

    class Rule:
        n_steps = 0

        def step(self, **options: Any) -> None: ...

        def state_dict(self) -> Any: ...

        def load_state_dict(self, state: Any) -> None: ...

    layer = gradcore.Linear(3, 1)
    with pytest.raises(TypeError, match="supervisor: the model, a Plain, has no state_dict and load_state_dict"):
        gradcore.fit(Plain(layer), data(1), MSE, optim.SGD(layer), epochs=1, supervisor=Supervisor())
    with pytest.raises(TypeError, match=r"expected an optimizer of gradcore\.optim, got Rule"):
        gradcore.fit(layer, data(1), MSE, Rule(), epochs=1, supervisor=Supervisor(reset_moments=True))


def test_fit_refuses_what_is_no_supervisor() -> None:
    with pytest.raises(TypeError, match="supervisor: expected an object with watch and after_step, got int"):
        Run().fit(data(3), supervisor=3)


# ---- with what else fit does -----------------------------------------------------------------------------------------


class Mean(gradcore.Hook):
    """Average the gradients of two batches, which is one step."""

    def __init__(self) -> None:
        self.sum: Any = None

    def after_backward(self, step: Any) -> None:
        grads = step.model.flat_grads
        if self.sum is None:
            self.sum, step.dropped = grads.copy(), True
        else:
            grads += self.sum
            grads *= np.float32(0.5)
            self.sum = None


def test_accumulated_gradients() -> None:
    """A batch of whose step nothing else is done is counted as a batch, and never the last one before a snapshot."""
    batches, states = data(240, poison=(120, 121)), []
    rollbacks: list[Any] = []
    for supervisor in (Supervisor(**(QUICK | {"skip": 30})), None):
        run = Run()
        given = batches if supervisor is not None else without(batches, rollbacks[0].batches)
        run.history = gradcore.fit(
            run.model, given, MSE, run.optimizer, epochs=1, hooks=[run.scaler, Mean(), run.decay],
            max_norm=run.threshold, monitor=run.monitor, supervisor=supervisor,
        )  # fmt: skip
        rollbacks += run.history.rollbacks
        states.append(run.state())
    (back,) = rollbacks
    assert back.batches == range(2 * back.snapshot, 2 * back.snapshot + 30)
    np.testing.assert_equal(*states)


@pytest.mark.parametrize("skip", [30, 31])
def test_steps_of_several_batches(skip: int) -> None:
    """The batches after those that were passed over are grouped anew."""
    batches = data(241, poison=(120, 121))
    run, clean = Run(accumulate=3), Run(accumulate=3)
    (back,) = run.fit(batches, supervisor=Supervisor(**(QUICK | {"skip": skip}))).rollbacks
    assert back.batches == range(3 * back.snapshot, 3 * back.snapshot + max(skip, 3 * (back.step + 1 - back.snapshot)))
    clean.fit(without(batches, back.batches))
    np.testing.assert_equal(run.state(), clean.state())


def test_a_stateful_run() -> None:
    """The state of the snapshot meets the first batch that is not passed over."""
    batches, states = data(140, poison=(74, 75)), []
    rollbacks: list[Any] = []
    for supervisor in (Supervisor(**QUICK), None):
        model = gradcore.Sequential(gradcore.LSTM(3, 6, rng=1), gradcore.LastStep(), gradcore.Linear(6, 1, rng=2))
        optimizer = optim.Adam(model, lr=0.01)
        gone = () if supervisor is not None else (rollbacks[0].batches,)
        history = gradcore.fit(
            model, epochs_of(batches, 70, *gone), MSE, optimizer, epochs=2, stateful=True, supervisor=supervisor
        )
        rollbacks += history.rollbacks
        states.append((model.flat_params, optimizer.state_dict(), history.loss))
    assert rollbacks[0].batches.start <= 70 <= rollbacks[0].step  # the end of an epoch is undone
    np.testing.assert_equal(*states)


@pytest.mark.parametrize("monitor", ["validation_loss", "loss"])
def test_validation_and_early_stopping(monitor: str) -> None:
    batches, held_out = data(180, poison=(94, 95)), data(3, seed=1)
    states, rollbacks = [], []
    for supervised in (True, False):
        run = Run(supervisor=Supervisor(**QUICK) if supervised else None)
        stopping = gradcore.EarlyStopping(monitor, patience=3)
        gone = [] if supervised else [rollbacks[0].batches]
        history = run.fit(epochs_of(batches, 15, *gone), 12, validation=held_out, early_stopping=stopping)
        rollbacks += history.rollbacks
        seen = history.validation_loss, history.validation_epoch, stopping.state_dict()
        states.append((run.state(), seen))
    assert len(rollbacks) == 1
    assert len(set(states[0][1][1].tolist())) == len(states[0][1][1])
    np.testing.assert_equal(*states)


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("epochs", [1, 2, 3, 4])
def test_resuming_a_run_equals_one_that_never_stopped(tmp_path: Path, epochs: int, folder: bool) -> None:
    """Before the spike, in the epoch of which the run goes back, while batches are passed over, and after it."""
    pytest.importorskip("safetensors")
    batches = data(150, poison=(64, 65))
    given = {"stateful": True, "checkpoint": tmp_path / "run.safetensors", "validation": data(2, seed=1)}

    def supervisor() -> Supervisor:
        return Supervisor(**(QUICK | {"skip": 45}), folder=tmp_path / "snapshots" if folder else None)

    run, resumed = Run(), Run()
    run.fit(epochs_of(batches, 30), 5, supervisor=supervisor(), **(given | {"checkpoint": tmp_path / "whole"}))
    Run().fit(epochs_of(batches, 30), epochs, supervisor=supervisor(), **given)
    if folder:
        for file in (tmp_path / "snapshots").iterdir():
            file.unlink()  # they are in the checkpoint
    rest = epochs_of(batches[30 * epochs :], 30)
    resumed.fit(rest, 5, supervisor=supervisor(), resume=True, **given)
    (back,) = run.history.rollbacks
    assert list(map(str, resumed.history.rollbacks)) == [str(back)]
    assert back.batches.start <= 60
    assert back.batches.stop > 90
    np.testing.assert_equal(resumed.state(), run.state())


def test_resuming_needs_the_same_supervision(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    path = tmp_path / "run.safetensors"
    Run().fit(data(10), checkpoint=path)
    with pytest.raises(ValueError, match="it lacks supervisor"):
        Run().fit(data(10), checkpoint=path, resume=True, supervisor=Supervisor())
