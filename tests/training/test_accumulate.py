"""Gradient accumulation: several batches make the step that all of them joined would make."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from tools import Array, same_bits

import gradcore
from gradcore import AdaptiveClip, GradScaler, Hook, TrainingStep, losses

pytestmark = pytest.mark.kernels

SIZES = (3, 1, 5, 2)
T = 7


def model_of(outputs: int, dtype: Any = np.float64, **options: Any) -> Any:
    rng = np.random.default_rng(0)
    return gradcore.Sequential(
        gradcore.LSTM(2, 6, 2, dtype=dtype, rng=rng, **options), gradcore.Linear(6, outputs, dtype=dtype, rng=rng)
    )


def batches_of(loss: str, sizes: tuple[int, ...] = SIZES, dtype: Any = np.float64) -> list[dict[str, Any]]:
    """Batches of several sizes with sequences of any length, masks and weights."""
    rng = np.random.default_rng(1)
    batches = []
    for B in sizes:
        labels = rng.integers(0, 3, (T, B))
        target = labels if loss == "softmax_cross_entropy" else rng.random((T, B, 3)).astype(dtype)
        x, lengths = rng.standard_normal((T, B, 2)).astype(dtype), rng.integers(0, T + 1, B)
        mask, weight = rng.random((T, B)) < 0.7, rng.standard_normal((T, B))
        batches.append({"x": x, "target": target, "lengths": lengths, "mask": mask, "weight": weight})
    return batches


def joined(batches: list[dict[str, Any]], axis: int = 1) -> dict[str, Any]:
    whole = {name: np.concatenate([b[name] for b in batches], axis) for name in batches[0] if name != "lengths"}
    return whole | {"lengths": np.concatenate([b["lengths"] for b in batches])}


LOSSES: dict[str, tuple[int, Any]] = {
    "mse": (3, losses.mse),
    "mae": (3, losses.mae),
    "huber": (3, partial(losses.huber, delta=0.2)),
    "gaussian_nll": (6, losses.gaussian_nll),
    "softmax_cross_entropy": (3, partial(losses.softmax_cross_entropy, ignore_index=1, z_loss=0.1)),
    "binary_cross_entropy": (3, losses.binary_cross_entropy),
}


@pytest.mark.parametrize("step_clip", [None, 1e-3])
@pytest.mark.parametrize("max_norm", [None, 0.01])
@pytest.mark.parametrize("name", LOSSES)
def test_the_step_is_that_on_all_batches_joined(name: str, max_norm: float | None, step_clip: float | None) -> None:
    outputs, loss = LOSSES[name]
    batches = batches_of(name)
    steps, models = [], []
    for batch in (batches, joined(batches)):
        model = model_of(outputs)
        optimizer = gradcore.optim.SGD(model, lr=1.0)
        steps.append(gradcore.training_step(model, batch, loss, optimizer, max_norm=max_norm, step_clip=step_clip))
        models.append(model)
    got, want = steps
    assert got.loss == pytest.approx(want.loss, rel=1e-12)
    assert got.grad_norm == pytest.approx(want.grad_norm, rel=1e-12)
    assert got.grad_norm.clipped == (max_norm is not None)
    assert (got.scale, got.parts_left) == (1.0, 0)
    for a, b in ((models[0].flat_params, models[1].flat_params), (models[0].flat_grads, models[1].flat_grads)):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * np.abs(b).max())


@pytest.mark.parametrize("name", ["mse", "softmax_cross_entropy"])
def test_batch_first_and_without_a_time_axis(name: str) -> None:
    outputs, loss = LOSSES[name]
    flipped = [{k: v if k == "lengths" else np.swapaxes(v, 0, 1) for k, v in b.items()} for b in batches_of(name)]
    last = [{"x": b["x"], "target": b["target"][-1], "lengths": b["lengths"]} for b in batches_of(name)]
    for batches, axis, build in (
        (flipped, 0, lambda: model_of(outputs, batch_first=True)),
        (last, None, lambda: gradcore.Sequential(gradcore.GRU(2, 5, dtype=np.float64, rng=0), gradcore.LastStep(),
                                                 gradcore.Linear(5, outputs, dtype=np.float64, rng=0))),
    ):  # fmt: skip
        whole = joined(batches, 0) if axis == 0 else {
            "x": np.concatenate([b["x"] for b in batches], 1),
            "target": np.concatenate([b["target"] for b in batches]),
            "lengths": np.concatenate([b["lengths"] for b in batches]),
        }  # fmt: skip
        ends = []
        for batch in (batches, whole):
            model = build()
            step = gradcore.training_step(model, batch, loss, gradcore.optim.SGD(model, lr=1.0))
            ends.append((step.loss, model.flat_params.copy()))
        assert ends[0][0] == pytest.approx(ends[1][0], rel=1e-12)
        np.testing.assert_allclose(ends[0][1], ends[1][1], rtol=0, atol=1e-12)


def test_fit_accumulates_over_consecutive_batches() -> None:
    batches = batches_of("mse", (3, 1, 5, 2, 4))
    groups = [batches[:2], batches[2:4], batches[4:]]
    seen: list[TrainingStep] = []
    watch = gradcore.monitor.GradientMonitor()
    got, want = model_of(3), model_of(3)
    optimizer = gradcore.optim.Adam(got, lr=0.01)
    options: dict[str, Any] = {"epochs": 2, "max_norm": 0.05}
    watching: dict[str, Any] = {"monitor": watch, "callbacks": [seen.append]}
    history = gradcore.fit(got, batches, losses.mse, optimizer, accumulate=2, **options, **watching)
    assert optimizer.n_steps == len(history) == len(seen) == 6
    assert history.epoch.tolist() == [0, 0, 0, 1, 1, 1]
    whole = [joined(group) for group in groups]
    other = gradcore.fit(want, whole, losses.mse, gradcore.optim.Adam(want, lr=0.01), **options)
    np.testing.assert_allclose(history.loss, other.loss, rtol=1e-11)
    np.testing.assert_allclose(history.grad_norm, other.grad_norm, rtol=1e-11)
    np.testing.assert_allclose(got.flat_params, want.flat_params, rtol=0, atol=1e-11)


def test_one_batch_is_a_step_as_ever() -> None:
    batches = batches_of("mse")
    ends = []
    for options in ({}, {"accumulate": 1}):
        model = model_of(3)
        gradcore.fit(model, batches, losses.mse, gradcore.optim.SGD(model), epochs=1, **options)
        ends.append(model.flat_params)
    model = model_of(3)
    optimizer = gradcore.optim.SGD(model)
    for batch in batches:
        gradcore.training_step(model, [batch], losses.mse, optimizer)
    assert same_bits(ends[0], ends[1])
    assert same_bits(ends[0], model.flat_params)


def test_batches_without_terms() -> None:
    batches = batches_of("mse", (2, 3))
    nothing = {**batches[0], "mask": np.zeros((T, 2), bool), "target": np.full((T, 2, 3), np.nan)}
    got, want = model_of(3), model_of(3)
    step = gradcore.training_step(got, [nothing, batches[1]], losses.mse, gradcore.optim.SGD(got, lr=1.0))
    other = gradcore.training_step(want, batches[1], losses.mse, gradcore.optim.SGD(want, lr=1.0))
    assert step.loss == other.loss
    assert same_bits(got.flat_params, want.flat_params)
    step = gradcore.training_step(got, [nothing, nothing], losses.mse, gradcore.optim.SGD(got, lr=1.0))
    assert (step.loss, float(step.grad_norm)) == (0, 0)


def test_a_loss_of_ones_own_counts_the_entries_of_the_target() -> None:
    def own(y: Array, target: Array) -> tuple[float, Array]:
        return losses.mse(y, target)

    batches = [(b["x"], b["target"]) for b in batches_of("mse")]
    got, want = model_of(3), model_of(3)
    step = gradcore.training_step(got, batches, own, gradcore.optim.SGD(got, lr=1.0))
    x, target = (np.concatenate([batch[i] for batch in batches], 1) for i in (0, 1))
    other = gradcore.training_step(want, (x, target), own, gradcore.optim.SGD(want, lr=1.0))
    assert step.loss == pytest.approx(other.loss, rel=1e-12)
    np.testing.assert_allclose(got.flat_params, want.flat_params, rtol=0, atol=1e-12)


# ---- hooks -----------------------------------------------------------------------------------------------------------


def test_scaling_and_adaptive_clipping_act_on_the_whole_gradient() -> None:
    batches = batches_of("mse", dtype=np.float32)
    ends = []
    for batch, hooks in ((batches, [GradScaler(), AdaptiveClip(0.02)]), (joined(batches), [AdaptiveClip(0.02)])):
        model = model_of(3, np.float32)
        optimizer = gradcore.optim.SGD(model, lr=1.0)
        step = gradcore.training_step(model, batch, losses.mse, optimizer, step_clip=1e-3, hooks=hooks)
        assert step.scale == (2.0**16 if len(hooks) == 2 else 1.0)
        ends.append((step.loss, float(step.grad_norm), model.flat_params.copy()))
    assert ends[0][:2] == pytest.approx(ends[1][:2], rel=1e-5)
    np.testing.assert_allclose(ends[0][2], ends[1][2], rtol=0, atol=1e-6)


def test_what_hooks_see_of_each_batch() -> None:
    batches = batches_of("mse", (3, 1, 5))
    counts = np.array([(b["mask"] & (np.arange(T)[:, None] < b["lengths"])).sum() for b in batches])
    seen: list[Any] = []

    class Watch(Hook):
        def before_forward(self, step: TrainingStep) -> None:
            seen.append(("before", step.parts_left, step.x.shape[1], step.scale))

        def after_backward(self, step: TrainingStep) -> None:
            seen.append(("after", step.parts_left, step.y.shape[1], step.scale))
            step.model.flat_grads[0] += step.scale  # its own term of the loss, whose slope is 1

        def before_step(self, step: TrainingStep) -> None:
            seen.append(("step", step.parts_left, step.loss, step.scale))

    model, plain = model_of(3), model_of(3)
    step = gradcore.training_step(model, batches, losses.mse, gradcore.optim.SGD(model, lr=1.0), hooks=[Watch()])
    gradcore.training_step(plain, batches, losses.mse, gradcore.optim.SGD(plain, lr=1.0))
    shares = counts / counts.sum()
    want: list[Any] = []
    for left, B, share in zip((2, 1, 0), (3, 1, 5), shares, strict=True):
        want += [("before", left, B, 1.0), ("after", left, B, share)]
    assert seen == [*want, ("step", 0, step.loss, 1.0)]
    moved = plain.flat_params - model.flat_params
    assert moved[0] == pytest.approx(1, rel=1e-12)
    assert not moved[1:].any()


@pytest.mark.parametrize("place", ["before_forward", "after_loss", "after_backward", "before_step"])
def test_an_error_in_a_later_batch_undoes_the_step(place: str) -> None:
    def fail(self: Any, step: TrainingStep) -> None:
        if step.parts_left == 0:
            raise ZeroDivisionError

    model = model_of(3, dropout=0.5)
    optimizer = gradcore.optim.Adam(model)
    before = model.flat_params.copy(), [g.bit_generator.state for g in model.generators()]
    hook = type("Fails", (Hook,), {place: fail})()
    with pytest.raises(ZeroDivisionError):
        gradcore.training_step(model, batches_of("mse"), losses.mse, optimizer, hooks=[hook])
    assert same_bits(model.flat_params, before[0])
    np.testing.assert_equal([g.bit_generator.state for g in model.generators()], before[1])
    assert not model.flat_grads.any()
    assert optimizer.n_steps == 0


def test_a_dropped_batch_drops_the_step() -> None:
    class Drop(Hook):
        def before_forward(self, step: TrainingStep) -> None:
            step.dropped = step.x.shape[1] == 5

    batches, model, want = batches_of("mse", (3, 1, 5, 2, 4)), model_of(3), model_of(3)
    optimizer = gradcore.optim.SGD(model)
    history = gradcore.fit(model, batches, losses.mse, optimizer, epochs=1, accumulate=2, hooks=[Drop()])
    other = gradcore.optim.SGD(want)
    for part in (batches[:2], batches[4:]):
        gradcore.training_step(want, part, losses.mse, other)
    assert len(history) == 2
    assert same_bits(model.flat_params, want.flat_params)


# ---- how many terms a mean is over -----------------------------------------------------------------------------------


def test_validation_counts_labels_that_are_not_ignored() -> None:
    """The mean over batches with 1 and 5 such labels is that over 6 labels."""
    model = gradcore.Linear(2, 3, dtype=np.float64, rng=0)
    rng = np.random.default_rng(0)
    x, target = rng.standard_normal((10, 2)), np.array([0, -100, -100, -100, -100, 2, 1, 0, 1, 2])
    halves = [(x[:5], target[:5]), (x[5:], target[5:])]
    loss = losses.softmax_cross_entropy
    history = gradcore.fit(model, halves, loss, gradcore.optim.SGD(model, lr=0.0), epochs=1, validation=halves)
    want, _ = loss(model(x), target)
    assert history.validation_loss[0] == pytest.approx(want, rel=1e-13)
    history = gradcore.fit(model, halves, loss, gradcore.optim.SGD(model, lr=0.0), epochs=1, accumulate=2)
    assert history.loss[0] == pytest.approx(want, rel=1e-13)


def test_bad_numbers() -> None:
    model = model_of(3)
    given: dict[str, Any] = {"loss": losses.mse, "optimizer": gradcore.optim.SGD(model), "epochs": 1}
    for bad, error in ((0, ValueError), (1.5, TypeError)):
        with pytest.raises(error, match="accumulate: expected an integer"):
            gradcore.fit(model, batches_of("mse"), accumulate=bad, **given)  # type: ignore[arg-type]
    short = batches_of("mse")[0] | {"mask": np.ones(3, bool)}
    before = model.flat_params.copy()
    with pytest.raises(ValueError, match=r"mask: expected shape \(7, 3, 3\) or its leading axes, got \(3,\)"):
        gradcore.fit(model, [short, short], accumulate=2, **given)
    assert same_bits(model.flat_params, before)
