"""Every finding appears in a run that was made for it, and none in a healthy one."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tapes import ToldTape

import gradcore
from gradcore.layers.telemetry import StepTelemetry
from gradcore.training.monitor import ADVICE, GradientMonitor, Thresholds
from gradcore.training.rules import rule


class Norm(float):
    """What an optimizer's step returns, made up."""

    coef = 1.0
    clipped = False
    skipped = False
    n_nan = 0
    n_inf = 0
    worst = None

    def __new__(cls, value: float, **told: Any) -> Norm:
        norm = super().__new__(cls, value)
        norm.__dict__.update(told)
        return norm


def healthy(n: int = 300, seed: int = 0) -> list[dict[str, Any]]:
    """A run in which all is well: a noisy loss that falls to a third, norms near 1, every fifth step clipped."""
    rng = np.random.default_rng(seed)
    return [
        {
            "loss": (0.3 + 0.7 * math.exp(-step / 60)) * math.exp(0.15 * rng.standard_normal()),
            "grad_norm": Norm(math.exp(0.3 * rng.standard_normal()), clipped=step % 5 == 0),
            "model": model_with(rng.standard_normal(20)),
            "tape": tape_with(np.exp(0.2 * rng.standard_normal((2, 30))), d_norm=np.exp(rng.standard_normal(4))),
            "y": rng.standard_normal((8, 2)),
            "max_norm": 1.5,
        }
        for step in range(n)
    ]


def model_with(weights: Any, grads: Any = ()) -> Any:
    flat = np.asarray(weights, float)
    params = {"a": flat[:1], "b": flat[1:]}
    layers = None, None, None
    return SimpleNamespace(
        flat_params=flat, params=params, layers=layers, flat_grads=np.asarray(grads, float).reshape(-1)
    )


def tape_with(dh_norm: Any, d_norm: Any = None, first_nonfinite: Any = None) -> Any:
    """The tape of a model of three layers, the middle one recurrent."""
    return ToldTape(tapes=(ToldTape(), ToldTape(dh_norm, first_nonfinite), ToldTape()), d_norm=d_norm)


def watch(steps: list[dict[str, Any]], **thresholds: Any) -> GradientMonitor:
    monitor = GradientMonitor(Thresholds(**thresholds))
    for step, told in enumerate(steps):
        monitor.update(step, **told)
    monitor.finish()
    return monitor


def changed(field: str, where: slice, value: Callable[[Any, int], Any], n: int = 300) -> list[dict[str, Any]]:
    """A healthy run, in part of which one field is another."""
    steps = healthy(n)
    for step in range(*where.indices(n)):
        steps[step][field] = value(steps[step][field], step)
    return steps


def falling(gain: float) -> Any:
    """A tape whose gradient is multiplied by `gain` at every step back in time, in the second direction."""
    back = gain ** np.arange(29, -1, -1.0)
    return tape_with([np.ones(30), back], d_norm=np.ones(4))


def batch_with(x: Any, target: Any = None, **told: Any) -> gradcore.TrainingStep:
    """A step, as far as rules look at it."""
    return gradcore.TrainingStep(None, gradcore.optim.SGD([(np.zeros(1), np.zeros(1))]), x, target, **told)


class After(gradcore.Identity):
    """A model that says that it was asked."""

    def __call__(self, x: Any) -> Any:
        return "after"


def overshooting(after: float) -> dict[str, Any]:
    """A step from a loss of 1 to another one of the same batch, where each sample needs an output of its own."""
    record = batch_with(None)
    record.model = After()
    return {
        "loss": 1.0,
        "record": record,
        "y": np.arange(8.0).reshape(4, 2),
        "criterion": lambda y, target: (after if isinstance(y, str) else 1.0 + 9 * float(y[0, 0] != 0), None),
    }


def dead_tape(n: int) -> Any:
    """The tape of a layer of 8 units, of which n are 0 for all samples."""
    x = np.ones((4, 8), np.float32)
    x[:, :n] = -1
    return gradcore.ReLU().forward(x)[1]


def still(told: dict[str, Any], step: int) -> dict[str, Any]:
    """A loss that does not fall."""
    return told | {"loss": 1 + 0.1 * (step % 3)}


HOLES = batch_with(np.float32([[1, np.nan], [np.inf, 2]]), np.zeros(2))

ILL: dict[str, tuple[list[dict[str, Any]], str, int]] = {
    # kind: the run, the severity, the step where it began
    "nan_loss": (changed("loss", slice(100, 110), lambda loss, step: math.nan), "critical", 100),
    "inf_loss": (changed("loss", slice(100, 110), lambda loss, step: math.inf), "critical", 100),
    "nonfinite_gradient": (
        changed("grad_norm", slice(100, 102), lambda norm, step: Norm(math.nan, n_nan=3, worst=("b", (1, 2)))),
        "critical",
        100,
    ),
    "oscillating_loss": (changed("loss", slice(100, None), lambda loss, step: 3.1 - 3.0 * (step % 2)), "high", 100),
    "unstable_after_progress": (changed("loss", slice(200, None), lambda loss, step: 5 * loss), "high", 204),
    "large_weights": (changed("model", slice(200, None), lambda m, step: model_with([1, -2e6])), "high", 200),
    "nonfinite_weights": (changed("model", slice(200, None), lambda m, step: model_with([1, np.nan])), "critical", 200),
    "gradient_spike": (changed("grad_norm", slice(200, 201), lambda norm, step: Norm(60.0)), "moderate", 200),
    "large_gradients": (changed("grad_norm", slice(200, None), lambda norm, step: Norm(15 * norm)), "moderate", 200),
    "small_gradients": (changed("grad_norm", slice(200, None), lambda norm, step: Norm(0.01)), "info", 200),
    "nonfinite_outputs": (changed("y", slice(200, None), lambda y, step: np.full((8, 2), np.inf)), "high", 200),
    "constant_outputs": (changed("y", slice(200, None), lambda y, step: np.tile(y[0], (8, 1))), "high", 200),
    "frozen_outputs": (
        [still(told, step) | {"y": np.arange(16.0).reshape(8, 2)} for step, told in enumerate(healthy(150))],
        "high",
        0,
    ),
    "vanishing_in_time": (changed("tape", slice(50, None), lambda tape, step: falling(0.7)), "moderate", 50),
    "exploding_in_time": (changed("tape", slice(50, None), lambda tape, step: falling(1.5)), "moderate", 50),
    "vanishing_in_layers": (
        changed("tape", slice(50, None), lambda tape, step: tape_with(np.ones((2, 30)), d_norm=[1e-9, 1e-6, 1e-6, 1])),
        "moderate",
        50,
    ),
    "exploding_in_layers": (
        changed("tape", slice(50, None), lambda tape, step: tape_with(np.ones((2, 30)), d_norm=[1e5, 10, 10, 1])),
        "moderate",
        50,
    ),
    "diverged": (changed("loss", slice(100, None), lambda loss, step: 1e5), "critical", 100),
    "rising_loss": (
        [told | {"loss": (1 + step / 30) * (1 + 0.05 * (step % 3))} for step, told in enumerate(healthy(150))],
        "high",
        95,
    ),
    "steps_raise_loss": ([told | overshooting(1.2) for told in healthy(150)], "high", 40),
    "not_learning": ([still(told, step) for step, told in enumerate(healthy())], "moderate", 200),
    "frozen_weights": ([told | {"model": model_with(np.ones(20))} for told in healthy(60)], "high", 0),
    "tiny_steps": (
        [still(told, step) | {"model": model_with(np.arange(20) + 1e-5 * step)} for step, told in enumerate(healthy())],
        "moderate",
        200,
    ),
    "huge_steps": (
        [still(told, step) | {"model": model_with(1 + np.arange(20) * step)} for step, told in enumerate(healthy())],
        "moderate",
        200,
    ),
    "accumulated_gradients": (
        [
            told | {"loss": 1 - step / 300, "grad_norm": 0.1 + step / 80, "model": model_with(np.full(20, step), step)}
            for step, told in enumerate(healthy(99))
        ],
        "moderate",
        31,
    ),
    "nan_in_data": (
        [told | ({"loss": math.nan, "record": HOLES} if step % 7 == 3 else {}) for step, told in enumerate(healthy())],
        "critical",
        3,
    ),
    "unscaled_data": ([told | {"record": batch_with(np.diag([200.0, 200.0]))} for told in healthy()], "moderate", 0),
    "constant_inputs": (
        [still(told, step) | {"record": batch_with(np.ones((2, 3)))} for step, told in enumerate(healthy(150))],
        "high",
        20,
    ),
    "dead_units": (changed("tape", slice(None), lambda tape, step: dead_tape(8)), "high", 0),
    "always_clipping": (
        changed("grad_norm", slice(None), lambda norm, step: Norm(norm, clipped=step % 20 > 0)),
        "moderate",
        1,
    ),
    "never_clipping": (
        [told | {"grad_norm": Norm(told["grad_norm"]), "max_norm": 50.0} for told in healthy()],
        "info",
        299,
    ),
    "skipped_steps": (
        changed("grad_norm", slice(200, None), lambda norm, step: Norm(norm, skipped=step % 4 == 0)),
        "high",
        200,
    ),
}


def test_every_kind_has_advice_and_a_run():
    assert set(ILL) == set(ADVICE)


@pytest.mark.parametrize("seed", range(20))
def test_a_healthy_run_has_no_findings(seed):
    monitor = watch(healthy(seed=seed))
    assert monitor.findings == []
    assert monitor.summary() == "No findings in 300 steps."


OTHERWISE_WITH_CLIPPING = {
    "large_gradients",
    "gradient_spike",
    "large_weights",
    "exploding_in_time",
    "exploding_in_layers",
    "unstable_after_progress",
    "diverged",
    "nan_loss",
    "inf_loss",
}


@pytest.mark.parametrize("kind", ILL)
def test_finding(kind):
    steps, severity, began = ILL[kind]
    monitor = watch(steps)
    found = [finding for finding in monitor.findings if finding.kind == kind]
    assert len(found) == 1, monitor.summary()
    (finding,) = found
    assert finding.severity == severity
    assert finding.step == began
    assert finding.step <= finding.last_step < 300
    assert finding.count >= 1
    assert finding.numbers
    assert (finding.advice == ADVICE[kind]) == (kind not in OTHERWISE_WITH_CLIPPING)
    assert kind in monitor.summary()


# What may follow from the same cause.
COMPANIONS = {
    "oscillating_loss": {"unstable_after_progress", "not_learning"},
    "diverged": {"rising_loss", "not_learning"},
    "steps_raise_loss": {"frozen_outputs"},
    "tiny_steps": {"not_learning"},
    "huge_steps": {"not_learning"},
    "large_gradients": {"gradient_spike"},
}


@pytest.mark.parametrize("kind", ILL)
def test_nothing_else_is_found(kind):
    steps, _, _ = ILL[kind]
    others = {finding.kind for finding in watch(steps).findings} - {kind}
    assert others <= COMPANIONS.get(kind, set())


def test_update_returns_a_finding_once_and_counts_it_after():
    monitor = GradientMonitor()
    assert monitor.update(0, 1.0, 1.0) == []
    (finding,) = monitor.update(1, math.nan, 1.0)
    assert (finding.kind, finding.step, finding.count) == ("nan_loss", 1, 1)
    for step in range(2, 1002):
        assert monitor.update(step, math.nan, 1.0) == []
    assert monitor.findings == [finding]
    assert (finding.step, finding.last_step, finding.count) == (1, 1001, 1001)


def test_severity_and_numbers_are_those_of_the_worst_step():
    monitor = GradientMonitor()
    for step, norm in enumerate([20.0] * 10 + [5e3, 20.0]):
        monitor.update(step, 1.0, norm)
    finding = next(finding for finding in monitor.findings if finding.kind == "large_gradients")
    assert finding.severity == "high"
    assert finding.numbers["grad_norm"] == 5e3
    assert (finding.step, finding.count) == (0, 12)


def test_summary_begins_with_the_worst():
    monitor = watch([told | {"loss": math.nan, "grad_norm": 20.0} for told in healthy(50)])
    order = [line.split(":")[0] for line in monitor.summary().splitlines()[::2]]
    assert order == ["CRITICAL", "MODERATE"]


def test_a_single_outlier_of_the_loss_is_no_instability():
    assert watch(changed("loss", slice(200, 201), lambda loss, step: 100 * loss)).findings == []


def test_losses_that_are_not_finite_are_no_instability():
    monitor = watch(changed("loss", slice(200, 220), lambda loss, step: math.nan))
    assert [(finding.kind, finding.step, finding.count) for finding in monitor.findings] == [("nan_loss", 200, 20)]


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_noisy_losses_of_small_batches_are_not_instability(batch):
    rng = np.random.default_rng(0)
    monitor = GradientMonitor()
    for step in range(2000):
        scale = 0.1 + math.exp(-step / 100)
        monitor.update(step, scale * rng.chisquare(batch) / batch, 1.0)
    assert "unstable_after_progress" not in {finding.kind for finding in monitor.findings}


def test_a_loss_that_has_converged_to_rounding_is_healthy():
    rng = np.random.default_rng(0)
    monitor = GradientMonitor()
    for step in range(500):
        monitor.update(step, max(math.exp(-step / 10), 1e-14) * rng.uniform(0.1, 2), 1.0)
    assert "oscillating_loss" not in {finding.kind for finding in monitor.findings}


def test_outputs_at_rest_after_learning_are_healthy():
    y = np.arange(16.0).reshape(8, 2)
    assert watch(changed("y", slice(200, None), lambda _, step: y)).findings == []


def test_the_first_nonfinite_place_is_named():
    monitor = GradientMonitor()
    tape = tape_with(np.ones((2, 30)), first_nonfinite=(1, 0, 17))
    monitor.update(0, 1.0, Norm(math.inf, n_inf=2, worst=("1.weight_hh_l1", (3, 4))), tape=tape)
    (finding,) = monitor.findings
    assert "1.weight_hh_l1" in finding.message
    assert finding.numbers["first_nonfinite"] == {"member": "1", "layer": 1, "direction": 0, "t": 17}


HOSTILE = [math.nan, math.inf, -math.inf, 0.0, -1.0, 5e-324, np.finfo(float).max, -0.0]


@pytest.mark.parametrize("value", HOSTILE)
def test_nothing_raises_or_warns_on_any_number(value):
    rng = np.random.default_rng(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monitor = GradientMonitor(Thresholds(check_weights_every=1, check_outputs_every=1, window=10, warmup=5))
        for step in range(60):
            strange = value if step > 20 else rng.uniform(0.5, 1)
            tape = tape_with(np.full((2, 30), strange), d_norm=np.full(4, strange))
            tape.tapes[1].dh_norm[0, -1] = 1.0
            tape.d_norm[-1] = 1.0
            model, y = (
                model_with(np.full(3, strange)),
                np.full((4, 2), strange, np.float32 if abs(strange) < 1 else float),
            )
            monitor.update(step, strange, Norm(strange), model, tape, y, max_norm=1.0)
        monitor.finish()
        monitor.summary()
        json.dumps(monitor.to_dict(), allow_nan=False)


def test_empty_things_are_healthy():
    monitor = GradientMonitor()
    model = SimpleNamespace(flat_params=np.zeros(0), params={})
    for step in range(30):
        tape = ToldTape(d_norm=np.zeros(1))
        monitor.update(step, 1.0, Norm(1.0), model, tape, np.zeros((0, 3)))
    monitor.finish()
    assert monitor.findings == []


def test_nothing_is_written():
    model, y = gradcore.RNN(2, 3, rng=np.random.default_rng(0)), np.ones((4, 2))
    before = model.flat_params.copy()
    model.flat_params.flags.writeable = y.flags.writeable = False
    monitor = GradientMonitor()
    for step in range(20):
        monitor.update(step, 1.0, 1.0, model, None, y)
    monitor.finish()
    np.testing.assert_array_equal(model.flat_params, before)


def test_to_dict_is_strict_json():
    monitor = GradientMonitor()
    monitor.update(0, math.inf, Norm(math.nan, n_nan=1))
    report = json.loads(json.dumps(monitor.to_dict(), allow_nan=False))
    numbers = {finding["kind"]: finding["numbers"] for finding in report["findings"]}
    assert numbers["inf_loss"] == {"loss": "Infinity", "last_finite_loss": "NaN"}
    assert numbers["nonfinite_gradient"]["grad_norm"] == "NaN"
    assert report["n_steps"] == 1
    assert report["thresholds"]["high_norm"] == 1e3
    assert report["thresholds"]["usual_norm"] == [0.1, 10.0]


@pytest.mark.parametrize(
    ("name", "value"),
    [("window", 5), ("spike_z", 0), ("rise", 1), ("vanish_ratio", 2), ("always_clipped", 1.5), ("usual_norm", (2, 1))],
)
def test_bad_thresholds_are_named(name, value):
    with pytest.raises(ValueError, match=name):
        Thresholds(**{name: value})


def test_thresholds_of_another_type_are_named():
    with pytest.raises(TypeError, match="usual_norm: expected a pair"):
        Thresholds(usual_norm=3.0)
    with pytest.raises(TypeError, match="window: expected an integer, got float"):
        Thresholds(window=50.0)
    with pytest.raises(TypeError, match="thresholds: expected Thresholds, got dict"):
        GradientMonitor({"window": 50})


def test_thresholds_stay_as_they_are():
    thresholds = Thresholds(usual_norm=[1, 2], rise=np.float32(4))
    assert (thresholds.usual_norm, thresholds.rise) == ((1.0, 2.0), 4.0)
    with pytest.raises(AttributeError):
        thresholds.rise = 2.0
    assert GradientMonitor(thresholds).thresholds is thresholds


# ---- the numbers by which it judges ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("factor", "severity"), [(99, "moderate"), (101, "high")])
def test_a_spike_is_severe_from_a_hundred_times_the_median_on(factor, severity):
    steps = [{"loss": 1.0, "grad_norm": 1.0}] * 30 + [{"loss": 1.0, "grad_norm": float(factor)}]
    (finding,) = [finding for finding in watch(steps).findings if finding.kind == "gradient_spike"]
    assert finding.severity == severity
    assert finding.numbers["factor"] == factor


@pytest.mark.parametrize(("norm", "spikes"), [(math.exp(6 * 0.25) * 0.99, 0), (math.exp(6 * 0.25) * 1.01, 1)])
def test_a_spike_begins_at_six_deviations_of_at_least_a_quarter(norm, spikes):
    steps = [{"loss": 1.0, "grad_norm": 1.0}] * 30 + [{"loss": 1.0, "grad_norm": norm}]
    assert [finding.kind for finding in watch(steps).findings] == ["gradient_spike"] * spikes


@pytest.mark.parametrize(("n", "found"), [(19, False), (20, True)])
def test_a_spike_is_judged_after_the_warmup(n, found):
    steps = [{"loss": 1.0, "grad_norm": 1.0}] * n + [{"loss": 1.0, "grad_norm": 9.0}]
    assert bool(watch(steps).findings) == found


@pytest.mark.parametrize(("looks", "found"), [(1, []), (2, ["constant_outputs"])])
def test_outputs_are_constant_when_two_looks_in_a_row_say_so(looks, found):
    rng = np.random.default_rng(0)
    outputs = [rng.standard_normal((8, 2)) for _ in range(50)]
    for step in range(20, 20 + 10 * looks):
        outputs[step] = np.tile(outputs[step][0], (8, 1))
    monitor = watch([{"loss": 1.0, "grad_norm": 1.0, "y": y} for y in outputs])
    assert [finding.kind for finding in monitor.findings] == found
    assert [(finding.step, finding.count) for finding in monitor.findings] == [(20, 2)] * len(found)


@pytest.mark.parametrize(("looks", "found"), [(2, []), (3, ["frozen_outputs"])])
def test_outputs_are_frozen_when_two_looks_in_a_row_see_no_change(looks, found):
    rng = np.random.default_rng(0)
    outputs = [rng.standard_normal((8, 2)) for _ in range(60)]
    for step in range(20, 20 + 10 * looks):
        outputs[step] = outputs[20]
    monitor = watch([{"loss": 1.0, "grad_norm": 1.0, "y": y} for y in outputs])
    assert [finding.kind for finding in monitor.findings] == found


@pytest.mark.parametrize(("n", "found"), [(2, []), (3, ["skipped_steps"])])
def test_skipped_steps_are_reported_from_the_third_on(n, found):
    steps = [{"loss": 1.0, "grad_norm": Norm(1.0, skipped=step < n)} for step in range(10)]
    assert [finding.kind for finding in watch(steps).findings] == found


@pytest.mark.parametrize(("share", "found"), [(0.08, []), (0.1, ["skipped_steps"])])
def test_skipped_steps_are_reported_from_a_tenth_of_the_window_on(share, found):
    skipped = round(50 * share)
    steps = [{"loss": 1.0, "grad_norm": Norm(1.0, skipped=step >= 50 - skipped)} for step in range(50)]
    assert [finding.kind for finding in watch(steps).findings] == found


@pytest.mark.parametrize(("norm", "found"), [(1000.0, []), (1001.0, ["large_gradients"])])
def test_one_norm_above_a_thousand_is_reported_at_once(norm, found):
    assert [finding.kind for finding in watch([{"loss": 1.0, "grad_norm": norm}]).findings] == found


@pytest.mark.parametrize(("n", "found"), [(4, []), (5, ["large_gradients"])])
def test_norms_out_of_the_usual_range_are_reported_when_they_last(n, found):
    assert [finding.kind for finding in watch([{"loss": 1.0, "grad_norm": 11.0}] * n).findings] == found


@pytest.mark.parametrize(
    ("log10", "found"),
    [(-2.9, []), (-3.1, ["moderate"]), (-7.1, ["high"]), (2.9, []), (3.1, ["moderate"]), (6.1, ["high"])],
)
@pytest.mark.parametrize("axis", ["time", "layers"])
def test_growth_is_reported_from_a_thousand_on(axis, log10, found):
    ratio = 10.0**log10
    tape = (
        tape_with([np.geomspace(ratio, 1, 30)])
        if axis == "time"
        else tape_with([np.ones(30)], d_norm=[ratio, 1.0, 1.0, 1.0])
    )
    monitor = watch([{"loss": 1.0, "grad_norm": 1.0, "tape": tape}] * (30 if log10 < -7 else 5))
    kind = f"{'vanishing' if log10 < 0 else 'exploding'}_in_{axis}"
    assert [(finding.kind, finding.severity) for finding in monitor.findings] == [
        (kind, severity) for severity in found
    ]


@pytest.mark.parametrize(("share", "found"), [(0.9, []), (0.92, ["always_clipping"])])
def test_clipping_is_reported_above_nine_tenths_of_a_window(share, found):
    free = 50 - round(50 * share)
    steps = [{"loss": 1.0, "grad_norm": Norm(1.0, clipped=step >= free), "max_norm": 1.0} for step in range(50)]
    assert [finding.kind for finding in watch(steps).findings] == found


@pytest.mark.parametrize(("n", "found"), [(99, []), (100, ["never_clipping"])])
def test_a_threshold_without_effect_is_reported_after_a_hundred_steps(n, found):
    steps = [{"loss": 1.0, "grad_norm": Norm(1.0), "max_norm": 5.0}] * n
    assert [finding.kind for finding in watch(steps).findings] == found


@pytest.mark.parametrize(("steps", "found"), [(5, []), (6, ["vanishing_in_time"])])
def test_growth_in_time_needs_five_steps_to_show(steps, found):
    tape = tape_with([np.geomspace(1e-4, 1, steps)])
    monitor = watch([{"loss": 1.0, "grad_norm": 1.0, "tape": tape}] * 5)
    assert [finding.kind for finding in monitor.findings] == found


@pytest.mark.parametrize(("level", "found"), [(0.12, ["oscillating_loss"]), (0.08, [])])
def test_a_loss_may_jump_once_it_has_come_down_to_a_tenth(level, found):
    losses = [1.0] * 30 + [level * (0.1 if step % 2 else 1.9) for step in range(110)]
    kinds = [finding.kind for finding in watch([{"loss": loss, "grad_norm": 1.0} for loss in losses]).findings]
    assert [kind for kind in kinds if kind == "oscillating_loss"] == found


@pytest.mark.parametrize(("wave", "found"), [([1, 9], ["oscillating_loss"]), ([-60, -20, 20, 60, 20, -20], [])])
def test_a_loss_oscillates_only_if_it_turns_at_every_second_step(wave, found):
    losses = wave * (120 // len(wave))
    assert [finding.kind for finding in watch([{"loss": loss, "grad_norm": 1.0} for loss in losses]).findings] == found


def test_norms_of_parameters_stand_in_for_a_tape():
    norms = {"0.weight": 1e-9, "0.bias": 5.0, "2.weight": 1.0}
    monitor = watch([{"loss": 1.0, "grad_norm": Norm(1.0, per_array=norms)}] * 30)
    (finding,) = monitor.findings
    assert (finding.kind, finding.severity, finding.numbers["steps"]) == ("vanishing_in_layers", "high", 1)
    assert finding.numbers["factor"] == pytest.approx(1e-9)
    assert "over 1 layer the" in finding.message


# ---- how it is shown -------------------------------------------------------------------------------------------------


def test_repr_counts_findings_by_severity():
    assert repr(GradientMonitor()) == "GradientMonitor(no steps, no findings)"
    monitor = watch([told | {"loss": math.nan, "grad_norm": 20.0} for told in healthy(50)])
    assert repr(monitor).startswith(f"GradientMonitor(50 steps, {len(monitor.findings)} findings: 1 critical, ")


def test_html_is_a_table_of_the_findings():
    monitor = GradientMonitor()
    monitor.update(0, 1.0, 1.0)
    assert "No findings in 1 step." in monitor._repr_html_()
    monitor.update(1, math.nan, Norm(1.0, n_nan=1, worst=("<w>", (0,))))
    html = monitor._repr_html_()
    assert html.count("<tr>") == 3
    for text in ("critical", "nan_loss", "step 1", "The loss became nan", "&lt;w&gt;"):
        assert text in html


def test_a_new_rule_is_one_function(monkeypatch):
    for name in ("EACH_STEP", "AT_END"):
        registry = getattr(rule, name).copy()
        monkeypatch.setattr(f"gradcore.training.rules.rule.{name}", registry)
        monkeypatch.setattr(f"gradcore.monitor.{name}", registry)
    monkeypatch.setitem(ADVICE, "rounds", "")

    @rule.at_end()
    @rule.each_step(rounds="Take other numbers.", every="check_outputs_every")
    def rounds(run, now):
        yield rule.Symptom("rounds", "info", {"steps": run.n_steps}, f"Step {now.number} is a round number.")

    (finding,) = watch([{"loss": 1.0, "grad_norm": 1.0}] * 25).findings
    assert (finding.kind, finding.advice, finding.count) == ("rounds", "Take other numbers.", 4)


def test_thresholds_are_obeyed():
    run = [{"loss": 1.0, "grad_norm": 30.0}] * 30
    assert {finding.kind for finding in watch(run).findings} == {"large_gradients"}
    assert watch(run, usual_norm=(0.1, 50)).findings == []


# ---- real networks ---------------------------------------------------------------------------------------------------


def train_rnn(gain: float, *, cell: str = "RNN", layers: int = 1, steps: int = 30, **fit: Any) -> GradientMonitor:
    """Remember the first input over 50 steps, with a recurrent matrix that is `gain` times an orthogonal one."""
    rng = np.random.default_rng(0)
    recurrent = getattr(gradcore, cell)(2, 32, layers, rng=rng)
    for layer in range(layers):
        weight = recurrent.params[f"weight_hh_l{layer}"]
        for block in np.split(weight, len(weight) // 32):
            gradcore.init.orthogonal_(block, gain, rng=rng)
    model = gradcore.Sequential(recurrent, gradcore.LastStep(), gradcore.Linear(32, 1, rng=rng))
    x = 1e-6 * rng.standard_normal((50, 16, 2), np.float32)
    target = rng.standard_normal((16, 1), np.float32)
    if cell == "RNN":  # without biases and with tiny inputs tanh is the identity, and the growth per step the gain
        for name, value in recurrent.params.items():
            if "bias" in name:
                value.fill(0)
    monitor = GradientMonitor()
    optimizer = gradcore.optim.SGD(model, lr=0.0)
    gradcore.fit(model, [(x, target)], gradcore.losses.mse, optimizer, epochs=steps, monitor=monitor, **fit)
    return monitor


def found(monitor: GradientMonitor) -> set[tuple[str, str]]:
    return {(finding.kind, finding.where) for finding in monitor.findings if "_in_" in finding.kind}


def test_an_rnn_of_gain_1_is_stable_in_time():
    assert found(train_rnn(1.0)) == set()


@pytest.mark.parametrize(("gain", "kind"), [(0.2, "vanishing_in_time"), (1.25, "exploding_in_time")])
def test_an_rnn_of_another_gain_vanishes_or_explodes(gain, kind):
    monitor = train_rnn(gain)
    assert found(monitor) == {(kind, "0.l0")}
    (finding,) = [finding for finding in monitor.findings if finding.kind == kind]
    assert (finding.step, finding.last_step, finding.count) == (0, 29, 30)
    assert finding.numbers["log_growth_per_step"] == pytest.approx(math.log(gain), rel=0.01)
    assert finding.severity == ("high" if gain < 1 else "moderate")


def test_step_clip_ends_the_explosion():
    assert found(train_rnn(1.25, step_clip=1.0)) == set()


def test_an_lstm_that_forgets_vanishes():
    assert ("vanishing_in_time", "0.l0") in found(train_rnn(1.0, cell="LSTM"))


def test_every_layer_of_a_stack_is_named():
    assert found(train_rnn(0.2, layers=2)) >= {("vanishing_in_time", "0.l0"), ("vanishing_in_time", "0.l1")}


@pytest.mark.parametrize(
    ("gain", "kind"), [(1.0, set()), (0.2, {("vanishing_in_layers", "")}), (5.0, {("exploding_in_layers", "")})]
)
def test_deep_networks(gain, kind):
    rng = np.random.default_rng(0)
    model = gradcore.MLP([8] * 12, activation="identity", init="orthogonal", rng=rng)
    model.flat_params *= np.float32(gain)
    x, target = rng.standard_normal((2, 16, 8)).astype(np.float32)
    monitor = GradientMonitor()
    optimizer = gradcore.optim.SGD(model, lr=0.0)
    gradcore.fit(model, [(x, target)], gradcore.losses.mse, optimizer, epochs=20, monitor=monitor)
    assert found(monitor) == kind


def test_a_run_that_diverges():
    rng = np.random.default_rng(0)
    model = gradcore.Linear(4, 1, rng=rng)
    x, target = rng.standard_normal((32, 4), np.float32), rng.standard_normal((32, 1), np.float32)
    monitor = GradientMonitor()
    optimizer = gradcore.optim.SGD(model, lr=50.0)
    gradcore.fit(model, [(x, target)], gradcore.losses.mse, optimizer, epochs=200, monitor=monitor)
    kinds = {finding.kind: finding for finding in monitor.findings}
    assert {"large_gradients", "large_weights", "nonfinite_gradient", "skipped_steps"} <= set(kinds)
    assert kinds["large_gradients"].severity == "high"
    assert kinds["nonfinite_gradient"].severity == "critical"
    assert monitor.n_skipped > 0


def test_a_run_that_learns_is_left_alone():
    rng = np.random.default_rng(0)
    model = gradcore.MLP([4, 32, 1], activation="tanh", init="xavier_normal", dtype=np.float64, rng=rng)
    x = rng.standard_normal((640, 4))
    target = np.sin(x.sum(axis=1, keepdims=True))
    batches = [(x[i : i + 64], target[i : i + 64]) for i in range(0, 640, 64)]
    monitor = GradientMonitor()
    optimizer = gradcore.optim.Adam(model, lr=1e-3)
    history = gradcore.fit(model, batches, gradcore.losses.mse, optimizer, epochs=20, max_norm=1.5, monitor=monitor)
    assert history.loss[-10:].mean() < 0.7 * history.loss[:10].mean()
    assert [finding for finding in monitor.findings if finding.severity != "info"] == []


@pytest.mark.parametrize("bidirectional", [False, True])
def test_profiles_name_layers_and_directions(bidirectional):
    rng = np.random.default_rng(0)
    recurrent = gradcore.GRU(2, 4, 2, bidirectional=bidirectional, dtype=np.float64, rng=rng)
    model = gradcore.Sequential(gradcore.Linear(3, 2, dtype=np.float64), gradcore.Sequential(recurrent))
    y, tape = model.forward(rng.standard_normal((6, 5, 3)))
    model.backward(tape, np.ones_like(y))
    profiles = StepTelemetry(tape).profiles
    expected = ["1.0.l0", "1.0.l0_reverse", "1.0.l1", "1.0.l1_reverse"] if bidirectional else ["1.0.l0", "1.0.l1"]
    assert [name for name, _, _ in profiles] == expected
    for (name, reverse, row), telemetry in zip(profiles, tape.tapes[1].tapes[0].telemetry.dh_norm, strict=True):
        assert reverse == name.endswith("_reverse")
        np.testing.assert_array_equal(row, telemetry)


@pytest.mark.parametrize("whose", ["layer", "model"])
def test_the_tape_of_a_layer_says_itself_which_rows_are_directions(whose):
    rng = np.random.default_rng(0)
    gru = gradcore.GRU(3, 8, bidirectional=True, rng=rng)
    model = gradcore.Sequential(gru, gradcore.Linear(16, 2, rng=rng))
    y, tape = gru.forward(rng.standard_normal((30, 16, 3), np.float32))
    gru.backward(tape, np.zeros_like(y), rng.standard_normal((2, 16, 8), np.float32))
    monitor = GradientMonitor()
    for step in range(6):
        monitor.update(step, 1.0, 1.0, model if whose == "model" else gru, tape)
    assert found(monitor) == {("vanishing_in_time", "l0"), ("vanishing_in_time", "l0_reverse")}


@pytest.mark.parametrize("y", [np.array([[False], [True]]), np.array([[-128], [127]], np.int8)], ids=["bool", "int8"])
def test_outputs_whose_distance_their_dtype_cannot_hold_are_not_constant(y: Any) -> None:
    monitor = GradientMonitor(Thresholds(check_outputs_every=1, patience=1))
    for step in range(5):
        monitor.update(step, 1.0, 1.0, y=y)
    assert not [finding for finding in monitor.findings if finding.kind == "constant_outputs"]


def test_a_loss_that_is_not_known_is_no_fault() -> None:
    monitor = GradientMonitor()
    for step in range(8):
        monitor.update(step, None, grad_norm=1.0)
    assert monitor.findings == []
    assert [finding.kind for finding in monitor.update(8, float("nan"), grad_norm=1.0)] == ["nan_loss"]
