"""Each threshold from both sides, what follows from what, and advice that knows what is switched on."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tapes import ToldTape

import gradcore
from gradcore import losses, optim
from gradcore.training.monitor import ADVICE, Finding, GradientMonitor, Thresholds
from gradcore.training.rules.causes import EFFECTS


def watch(values: list[float], thresholds: Thresholds | None = None, **told: Any) -> GradientMonitor:
    """Watch losses; what is told may be a list with an item for each step."""
    monitor = GradientMonitor(thresholds)
    for step, loss in enumerate(values):
        now = {name: value[step] if isinstance(value, list) else value for name, value in told.items()}
        monitor.update(step, loss, now.pop("grad_norm", 1.0), **now)
    monitor.finish()
    return monitor


def kinds(monitor: GradientMonitor) -> set[str]:
    return {finding.kind for finding in monitor.findings}


def only(monitor: GradientMonitor, kind: str) -> Finding:
    (found,) = [finding for finding in monitor.findings if finding.kind == kind]
    return found


def model_with(weights: Any) -> Any:
    flat = np.asarray(weights, float)
    return SimpleNamespace(flat_params=flat, params={"all": flat})


def record_of(model: Any = None, **told: Any) -> gradcore.TrainingStep:
    optimizer = told.pop("optimizer", optim.SGD)([(np.zeros(1), np.zeros(1))])
    return gradcore.TrainingStep(model, optimizer, told.pop("x", None), None, **told)


# ---- thresholds from both sides --------------------------------------------------------------------------------------


def test_a_window_has_fifty_steps():
    norm = gradcore.clip_grad_norm_([np.full(4, 100.0)], 1.0)
    assert kinds(watch([1.0] * 49, grad_norm=norm, max_norm=1.0)) == {"large_gradients"}
    assert kinds(watch([1.0] * 50, grad_norm=norm, max_norm=1.0)) == {"large_gradients", "always_clipping"}


@pytest.mark.parametrize(("norm", "found"), [(0.099, {"small_gradients"}), (0.101, set()), (9.9, set())])
def test_norms_from_a_tenth_to_ten_are_usual(norm, found):
    assert kinds(watch([1.0] * 10, grad_norm=norm)) == found


@pytest.mark.parametrize(("rise", "found"), [(990, False), (1010, True)])
@pytest.mark.parametrize("steps", [1, 100])
def test_a_run_has_diverged_from_a_thousand_times_its_start_on(rise, found, steps):
    monitor = watch([1.0] * steps + [float(rise)] * 30)
    assert ("diverged" in kinds(monitor)) == found
    if found:
        assert only(monitor, "diverged").severity == "critical"


def test_one_loss_that_is_small_by_chance_is_no_start():
    assert "diverged" not in kinds(watch([1e-5, 1e-4] + [1.0] * 60))


@pytest.mark.parametrize(("change", "found"), [(0.95, False), (1.05, True)])
def test_a_loss_oscillates_from_changes_of_its_own_size_on(change, found):
    low = 2 / (change + 2) - 1e-9  # between low and low + change * 1 the median of all is about the middle
    wave = [1 - change / 2 * 1.0, 1 + change / 2]
    assert low > 0
    assert ("oscillating_loss" in kinds(watch(wave * 60))) == found


@pytest.mark.parametrize(("rise", "found"), [(2.9, False), (3.1, True)])
def test_a_loss_rises_from_three_times_its_best_on(rise, found):
    flat = watch([1.0] * 40 + [rise] * 40)
    assert ("rising_loss" in kinds(flat)) == found
    fallen = watch([1.0] * 40 + [0.4] * 40 + [0.4 * rise] * 40)
    assert ("unstable_after_progress" in kinds(fallen)) == found
    assert "rising_loss" not in kinds(fallen)


class After(gradcore.Identity):
    """A model that says that it was asked."""

    def __call__(self, x: Any) -> Any:
        return "after"


def trial(after: float, others: float = 9.0, own: float = 1.0) -> dict[str, Any]:
    """What a step makes of its own batch, and the loss with the outputs of others."""

    def criterion(y: Any, target: Any) -> tuple[float, Any]:
        return (after if isinstance(y, str) else others if y[0, 0] else own), None

    return {"record": record_of(After()), "criterion": criterion, "y": np.arange(8.0).reshape(4, 2)}


def trials(raises: int, after: float, **more: float) -> dict[str, list[Any]]:
    """As many looks of ten raise the loss."""
    every = [trial(after if step % 100 < 10 * raises else 0.9, **more) for step in range(100)]
    return {name: [told[name] for told in every] for name in ("record", "criterion", "y")}


@pytest.mark.parametrize(
    ("raises", "after", "found"), [(8, 1.01, 0), (9, 1.01, 1), (9, 1.0, 0), (5, 1.2, 0), (6, 1.2, 1)]
)
def test_steps_raise_the_loss_if_nine_of_ten_do_or_most_by_much(raises, after, found):
    told = trials(raises, after)
    monitor = watch([1.0] * 100, Thresholds(check_outputs_every=10), **told)
    late = [finding for finding in monitor.findings if finding.kind == "steps_raise_loss"]
    assert bool(late) == bool(found) or (after == 1.2 and raises == 5 and late[0].step < 60)


@pytest.mark.parametrize(("n", "found"), [(210, set()), (211, {"not_learning"})])
def test_a_run_has_two_hundred_steps_to_learn(n, found):
    monitor = watch([1.0] * n)
    assert kinds(monitor) == found
    assert [finding.step for finding in monitor.findings] == [200] * len(found)


@pytest.mark.parametrize(("level", "found"), [(0.96, True), (0.94, False)])
def test_a_loss_falls_from_a_twentieth_on(level, found):
    assert ("not_learning" in kinds(watch([1.0] * 20 + [level] * 200))) == found


@pytest.mark.parametrize(("others", "found"), [(1.04, True), (1.06, False)])
def test_outputs_have_to_fit_their_own_sample_better_than_others(others, found):
    told = [trial(0.9, own=1.7) if step < 20 else trial(0.9, others) for step in range(240)]
    lists = {name: [each[name] for each in told] for name in told[0]}
    monitor = watch([1.7] * 20 + [1.0] * 220, **lists)
    assert ("not_learning" in kinds(monitor)) == found


@pytest.mark.parametrize(("change", "found"), [(4.9e-3, True), (5.1e-3, False)])
def test_steps_are_tiny_below_five_thousandths(change, found):
    models = [model_with([1 + change * min(step, 200) / 200 + 1e-12 * step]) for step in range(230)]
    assert ("tiny_steps" in kinds(watch([1.0] * 230, model=models))) == found


@pytest.mark.parametrize(("change", "found"), [(9.9, False), (10.1, True)])
def test_steps_are_huge_above_ten_times_the_weights(change, found):
    models = [model_with([1 + change * min(step, 200) / 200 + 1e-12 * step]) for step in range(230)]
    assert ("huge_steps" in kinds(watch([1.0] * 230, model=models))) == found


@pytest.mark.parametrize(("dead", "found"), [(5, set()), (6, {"dead_units"})])
def test_units_are_reported_when_three_quarters_are_dead(dead, found):
    x = np.ones((4, 8), np.float32)
    x[:, :dead] = -1
    monitor = watch([1.0] * 30, tape=gradcore.ReLU().forward(x)[1])
    assert kinds(monitor) == found
    assert [finding.severity for finding in monitor.findings] == ["moderate"] * len(found)


@pytest.mark.parametrize("dead", [5, 6, 8])
def test_units_of_a_relu_rnn_die_too(dead):
    """Their inputs and their own past push them below 0, in one of two layers."""
    rnn = gradcore.RNN(3, 8, num_layers=2, nonlinearity="relu", rng=0)
    for name in ("weight_ih_l1", "weight_hh_l1", "bias_ih_l1"):
        rnn.params[name][:dead] = -1.0
    rnn.params["bias_ih_l0"][...] = rnn.params["bias_ih_l1"][dead:] = 1.0
    y, tape = rnn.forward(np.ones((5, 4, 3), np.float32))
    rnn.backward(tape, np.ones_like(y))
    monitor = watch([1.0] * 30, tape=tape)
    found = [(finding.where, finding.severity) for finding in monitor.findings if finding.kind == "dead_units"]
    assert found == {5: [], 6: [("l1", "moderate")], 8: [("l1", "high")]}[dead]


@pytest.mark.parametrize(("size", "found"), [(99.0, False), (101.0, True)])
def test_data_have_a_scale_below_a_hundred(size, found):
    monitor = watch([1.0] * 30, record=record_of(x=np.float32([[size, -size]])))
    assert ("unscaled_data" in kinds(monitor)) == found


@pytest.mark.parametrize(("weight", "found"), [(0.99e6, set()), (-1.01e6, {"large_weights"})])
def test_weights_are_large_above_a_million(weight, found):
    assert kinds(watch([1.0], model=model_with([1.0, weight]))) == found


def test_advice_on_large_weights_knows_of_clipping():
    advice = [only(watch([1.0], model=model_with([2e6]), max_norm=n), "large_weights").advice for n in (None, 1.0)]
    assert "and clip the gradient norm" in advice[0]
    assert "is clipped already" in advice[1]


@pytest.mark.parametrize(("step", "found"), [(5, set()), (10, {"large_weights"}), (15, set())])
def test_weights_are_looked_at_every_ten_steps(step, found):
    models = [model_with([i, 1e7 if i == step else 1.0]) for i in range(30)]
    assert kinds(watch([1.0] * 30, model=models)) == found


@pytest.mark.parametrize(("step", "found"), [(5, set()), (10, {"nonfinite_outputs"}), (15, set())])
def test_outputs_are_looked_at_every_ten_steps(step, found):
    rng = np.random.default_rng(0)
    outputs = [rng.standard_normal((4, 2)) + (math.nan if i == step else 0) for i in range(30)]
    assert kinds(watch([1.0] * 30, y=outputs)) == found


# ---- data ------------------------------------------------------------------------------------------------------------


def problem(cell: str = "LSTM", optimizer: Any = optim.Adam, lr: float = 1e-2, n: int = 100, **options: Any) -> Any:
    rng = np.random.default_rng(1)
    batches = []
    for _ in range(n):
        x = rng.standard_normal((12, 16, 3)).astype(np.float32)
        batches.append((x, x[-3:, :, :1].mean(axis=0)))
    model = gradcore.Sequential(
        getattr(gradcore, cell)(3, 16, rng=rng, **options), gradcore.LastStep(), gradcore.Linear(16, 1, rng=rng)
    )
    return model, batches, optimizer(model, lr=lr)


def fit(model: Any, batches: Any, optimizer: Any, loss: Any = losses.mse, **more: Any) -> GradientMonitor:
    monitor = GradientMonitor()
    gradcore.fit(model, batches, loss, optimizer, epochs=1, monitor=monitor, **more)
    return monitor


@pytest.mark.parametrize(
    ("which", "name", "at", "shape"), [(0, "x", (7, 4, 1), (12, 16, 3)), (1, "target", (4, 0), (16, 1))]
)
def test_nan_in_data_is_the_only_new_finding_and_says_where(which, name, at, shape):
    model, batches, optimizer = problem()
    for batch in batches[3::7]:
        batch[which][at] = np.nan
    batches[10][which][(*at[:-2], at[-2] + 1, at[-1])] = np.inf
    usual = kinds(fit(*problem()))
    (finding,) = [finding for finding in fit(model, batches, optimizer).findings if finding.kind not in usual]
    assert (finding.kind, finding.where, finding.severity) == ("nan_in_data", name, "critical")
    assert (finding.step, finding.count) == (3, 14)
    assert finding.numbers == {"array": name, "nonfinite": 2, "first": list(at), "shape": list(shape)}
    assert "2 entries that are not finite" in finding.message
    assert np.isfinite(model.flat_params).all()


def test_a_masked_target_may_be_nan():
    def masked(y: Any, target: Any) -> Any:
        known = np.isfinite(target)
        return losses.mse(np.where(known, y, 0), np.where(known, target, 0))

    model, batches, optimizer = problem()
    for _, target in batches:
        target[::5] = np.nan
    assert "nan_in_data" not in kinds(fit(model, batches, optimizer, masked))


def test_a_loss_that_is_not_finite_by_itself_is_not_blamed_on_the_data():
    model, batches, optimizer = problem()
    found = kinds(fit(model, batches, optimizer, lambda y, target: (math.nan, np.full_like(y, np.nan))))
    assert "nan_loss" in found
    assert "nan_in_data" not in found


def test_inputs_that_are_all_the_same_are_named():
    model, batches, optimizer = problem()
    monitor = fit(model, [(0 * x, target) for x, target in batches], optimizer)
    assert only(monitor, "constant_inputs").severity == "high"


# ---- causes ----------------------------------------------------------------------------------------------------------


def test_effects_have_advice():
    assert EFFECTS.keys() | {kind for effects in EFFECTS.values() for kind in effects} <= ADVICE.keys()


def test_a_run_that_diverges_has_one_cause():
    model, batches, optimizer = problem("RNN", optim.SGD, lr=1e4)
    monitor = fit(model, batches, optimizer)
    assert [finding.kind for finding in monitor.findings if not finding.follows] == ["diverged"]
    assert len(monitor.findings) > 2
    lines = monitor.summary().splitlines()
    assert lines[0].startswith("CRITICAL: diverged")
    assert lines[1] == "    " + only(monitor, "diverged").advice
    assert all(line.startswith("    ") for line in lines[1:])


def test_what_began_before_is_no_effect():
    monitor = watch([1.0] * 40 + [1e4] * 40, grad_norm=[5e3] * 80)
    assert only(monitor, "large_gradients").follows == ""
    monitor = watch([1.0] * 40 + [1e4] * 40, grad_norm=[1.0] * 40 + [5e3] * 40)
    assert only(monitor, "large_gradients").follows == "diverged"


def test_every_finding_is_shown_once_though_causes_have_causes():
    model, batches, optimizer = problem("RNN", optim.SGD, lr=1e4)
    monitor = fit(model, batches, optimizer)
    assert sorted(f.kind for f in monitor._ordered()) == sorted(f.kind for f in monitor.findings)


# ---- weights, steps, learning ----------------------------------------------------------------------------------------


def test_the_optimizer_of_a_copy_freezes_the_weights():
    model, batches, _ = problem()
    monitor = fit(model, batches, optim.Adam(copy.deepcopy(model)))
    finding = only(monitor, "frozen_weights")
    assert (finding.severity, finding.step, finding.follows) == ("high", 0, "")
    assert "the gradient is exactly 0" in finding.message
    assert "copy" in finding.advice


def test_weights_that_stand_still_for_skipped_steps_are_not_frozen():
    told = gradcore.grad_norm([np.ones(2)]), gradcore.clip_grad_norm_([np.full(2, np.nan)], 1.0, nonfinite="skip")
    for norm, found in zip(told, (True, False), strict=True):
        assert ("frozen_weights" in kinds(watch([1.0] * 40, model=model_with([1.0]), grad_norm=norm))) == found


@pytest.mark.parametrize("rest", ["loss", "dy", "learned"])
def test_weights_may_rest_when_there_is_nothing_to_learn(rest):
    values = [0.0] * 60 if rest == "loss" else [1.0] * 30 + [0.1] * 60 if rest == "learned" else [1.0] * 60
    record = record_of(dy=np.zeros(3) if rest == "dy" else np.ones(3))
    models = [model_with([i if rest == "learned" and i < 30 else 1.0]) for i in range(len(values))]
    assert "frozen_weights" not in kinds(watch(values, model=models, record=record))


@pytest.mark.parametrize(("lr", "kind"), [(1e-7, "tiny_steps"), (0.0, "frozen_weights")])
def test_a_learning_rate_that_is_too_small_is_named(lr, kind):
    model, batches, optimizer = problem(lr=lr, n=250)
    monitor = fit(model, batches, optimizer)
    assert only(monitor, kind).follows == ""
    assert only(monitor, "not_learning").follows in (kind, "vanishing_in_time")


def test_the_wrong_sign_of_the_loss_is_named():
    def wrong(y: Any, target: Any) -> Any:
        loss, dy = losses.mse(y, target)
        return loss, -dy

    model, batches, optimizer = problem(lr=1e-4)
    finding = only(fit(model, batches, optimizer, wrong), "steps_raise_loss")
    assert "sign" in finding.advice


class NeverZeroed(gradcore.Hook):
    total: Any = 0.0

    def after_backward(self, step: gradcore.TrainingStep) -> None:
        step.model.flat_grads += self.total
        self.total = step.model.flat_grads.copy()


def test_gradients_that_add_up_are_named():
    model, batches, optimizer = problem(optimizer=optim.SGD, lr=1e-4)
    assert "zero_grad" in only(fit(model, batches, optimizer, hooks=[NeverZeroed()]), "accumulated_gradients").advice
    model, batches, optimizer = problem(optimizer=optim.SGD, lr=1e-4)
    assert "accumulated_gradients" not in kinds(fit(model, batches[:1] * 100, optimizer))


def test_shuffled_targets_are_not_learned():
    model, batches, optimizer = problem(n=300)
    pairs = zip(batches, batches[1:] + batches[:1], strict=True)
    monitor = fit(model, [(x, target) for (x, _), (_, target) in pairs], optimizer)
    assert only(monitor, "not_learning").severity == "moderate"
    assert "not_learning" not in kinds(fit(*problem(n=300)))


@pytest.mark.parametrize("seed", range(5))
def test_losses_of_either_sign_are_left_alone(seed):
    rng = np.random.default_rng(seed)
    assert kinds(watch(list(rng.standard_normal(2000) * np.linspace(1, 0.1, 2000)))) == set()


def test_a_jump_of_a_loss_that_may_be_negative_is_seen():
    rng = np.random.default_rng(0)
    values = [-1.1 + 3 * math.exp(-step / 150) + 0.05 * rng.standard_normal() for step in range(1500)]
    assert kinds(watch(values)) == set()
    finding = only(watch(values + [15.0] * 20 + [1.0] * 100), "unstable_after_progress")
    assert 1500 <= finding.step <= 1510


def test_batches_that_differ_are_no_oscillation():
    rng = np.random.default_rng(0)
    assert kinds(watch(list(np.exp(1.5 * rng.standard_normal(1000) - np.arange(1000) / 500)))) == set()


def test_a_loss_of_batches_in_turns_does_not_oscillate_if_steps_lower_it():
    told = trial(0.9)
    assert "oscillating_loss" in kinds(watch([0.5, 1.5] * 60))
    told["criterion"] = lambda y, target: (0.4 if isinstance(y, str) else 0.5, None)
    assert "oscillating_loss" not in kinds(watch([0.5, 1.5] * 60, **told))


# ---- it changes nothing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lr", [1e-2, 10.0])
def test_a_run_is_the_same_with_and_without(lr):
    flat = []
    for monitor in (None, GradientMonitor()):
        model, batches, optimizer = problem(lr=lr)
        gradcore.fit(model, batches, losses.mse, optimizer, epochs=1, monitor=monitor)
        flat.append(model.flat_params.copy())
    np.testing.assert_array_equal(*flat)


def test_a_loss_with_a_state_is_called_once_a_step():
    class Count:
        n = 0

        def __call__(self, y: Any, target: Any) -> Any:
            self.n += 1
            return losses.mse(y, target)

    count, (model, batches, optimizer) = Count(), problem(lr=10.0, n=60)
    fit(model, batches, optimizer, count)
    assert count.n == 60


def test_a_loss_that_draws_numbers_is_asked_again_only_once():
    rng, n = np.random.default_rng(0), []

    def noisy(y: Any, target: Any) -> Any:
        n.append(1)
        loss, dy = losses.mse(y, target)
        return loss + rng.random(), dy

    model, batches, optimizer = problem(lr=10.0, n=60)
    fit(model, batches, optimizer, noisy)
    assert len(n) == 61


def test_record_and_criterion_are_checked():
    with pytest.raises(TypeError, match="record: expected a TrainingStep, got dict"):
        GradientMonitor().update(0, 1.0, 1.0, record={})
    with pytest.raises(TypeError, match="criterion: expected a callable, got int"):
        GradientMonitor().update(0, 1.0, 1.0, criterion=3)


# ---- events, and advice that knows what is on ------------------------------------------------------------------------


def test_skipped_steps_are_counted():
    good, bad = gradcore.grad_norm([np.ones(2)]), gradcore.clip_grad_norm_([np.full(2, np.nan)], 1.0, nonfinite="skip")
    monitor = watch([1.0] * 120, grad_norm=[bad if step % 7 == 3 else good for step in range(120)])
    n = len(range(3, 120, 7))
    assert only(monitor, "skipped_steps").count == monitor.n_skipped == n
    assert only(monitor, "nonfinite_gradient").count == n


def test_the_first_skips_of_a_scaler_are_normal():
    model, batches, optimizer = problem()
    batches = [(x, 100 * target) for x, target in batches]
    monitor = fit(model, batches, optimizer, hooks=[gradcore.GradScaler(init_scale=2.0**127)])
    assert monitor.n_skipped > 3
    assert not kinds(monitor) & {"nonfinite_gradient", "skipped_steps"}


def test_gradients_that_no_scale_helps_are_reported():
    monitor = GradientMonitor()
    for step, scale in enumerate(2.0 ** np.arange(10, -5, -1.0)):
        norm = gradcore.clip_grad_norm_([np.full(2, np.nan)], 1.0, nonfinite="skip")
        monitor.update(step, 1.0, norm, record=record_of(scale=float(scale)))
    assert only(monitor, "nonfinite_gradient").step == 10
    assert only(monitor, "skipped_steps").count == 5


def vanishing(layer: str) -> GradientMonitor:
    model, batches, optimizer = problem(layer, lr=0.0, n=10)
    for name, value in model.params.items():
        if "hh" in name:
            value[...] *= 1e-3
        if "bias" in name:
            value[...] = -3.0 if layer != "RNN" else 0.0
    return fit(model, batches, optimizer)


@pytest.mark.parametrize(("layer", "gate"), [("RNN", ""), ("LSTM", "forget"), ("GRU", "update")])
def test_nobody_is_told_to_use_what_he_has(layer, gate):
    finding = only(vanishing(layer), "vanishing_in_time")
    if gate:
        assert finding.advice.startswith(f"Raise the bias of the {gate} gate to about 2.4")
        assert "suggest_bias" in finding.advice
    else:
        assert finding.advice == ADVICE["vanishing_in_time"]


@pytest.mark.parametrize(("optimizer", "severity"), [(optim.SGD, "moderate"), (optim.Adam, "info")])
def test_clipping_sets_the_length_of_a_step_unless_the_optimizer_does(optimizer, severity):
    norm = gradcore.clip_grad_norm_([np.full(4, 5.0)], 1.0)
    finding = only(
        watch([1.0] * 60, grad_norm=norm, max_norm=1.0, record=record_of(optimizer=optimizer)), "always_clipping"
    )
    assert finding.severity == severity
    assert ("Adam divides" in finding.advice) == (optimizer is optim.Adam)


@pytest.mark.parametrize("clipped", [False, True])
def test_nobody_is_told_to_clip_who_clips(clipped):
    grown = ToldTape(tapes=(ToldTape(), ToldTape([np.geomspace(1e4, 1, 30)]), ToldTape()), d_norm=[1e4, 1, 1, 1])
    values = [1.0] * 40 + [0.4] * 40 + [2e3] * 60
    norms = [1.0] * 60 + [2e3] * 80
    monitor = watch(values, grad_norm=norms, tape=grown, max_norm=1.0 if clipped else None)
    told = {finding.kind: finding.advice.lower() for finding in monitor.findings if "clip" in finding.advice.lower()}
    assert {"large_gradients", "gradient_spike", "exploding_in_time", "exploding_in_layers", "diverged"} <= told.keys()
    for kind, advice in told.items():
        assert ("clip the gradient norm" in advice) != clipped, kind


def test_severity_falls_when_the_loss_falls():
    back = ToldTape([np.geomspace(1e-9, 1, 30)])
    tape = ToldTape(tapes=(ToldTape(), back, ToldTape()))
    for values, severity in (([1.0] * 80, "high"), (list(np.geomspace(1, 0.1, 80)), "moderate")):
        assert only(watch(values, tape=tape), "vanishing_in_time").severity == severity
