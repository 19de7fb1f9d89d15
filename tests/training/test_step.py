"""A training step and its hooks: each equals the loop by hand, and a failure leaves the last whole step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tools import Array, same_bits

import gradcore
from gradcore import AdaptiveClip, GradScaler, Hook, TrainingStep, VanishingGradientRegularizer

pytestmark = pytest.mark.kernels

MSE = gradcore.losses.mse
Batch = tuple[Array, Array]


def problem(dtype: Any = np.float64, steps: int = 6) -> tuple[Any, Any, list[Batch]]:
    """A model with two RNN layers and dropout, an optimizer with moments, batches."""
    rng = np.random.default_rng(0)
    model = gradcore.Sequential(
        gradcore.RNN(2, 6, 2, dropout=0.5, dtype=dtype, rng=rng),
        gradcore.LastStep(),
        gradcore.Linear(6, 1, dtype=dtype),
    )
    model[2].load_state_dict({"weight": np.full((1, 6), 0.3, dtype), "bias": np.ones(1, dtype)})
    batches = [(x, x[0, :, :1]) for x in rng.standard_normal((6, 9, 4, 2)).astype(dtype)]
    return model, gradcore.optim.Adam(model, lr=0.01), batches[:steps]


def state(model: Any, optimizer: Any) -> Any:
    drawn = [generator.bit_generator.state for generator in model.generators()]
    return model.flat_params.copy(), optimizer.state_dict(), drawn


def by_hand(dtype: Any, between: Callable[[Any, Any, Any], float], steps: int = 6) -> tuple[Any, list[float]]:
    """The loop without hooks: `between` does the backward pass and the update, and returns the norm."""
    model, optimizer, batches = problem(dtype, steps)
    norms = []
    for x, target in batches:
        model.zero_grad()
        y, tape = model.forward(x)
        norms.append(float(between(model, tape, (MSE(y, target)[1], optimizer))))
    return state(model, optimizer), norms


def fitted(dtype: Any, hooks: list[Hook], steps: int = 6, **options: Any) -> tuple[Any, list[float]]:
    model, optimizer, batches = problem(dtype, steps)
    history = gradcore.fit(model, batches, MSE, optimizer, epochs=1, hooks=hooks, **options)
    return state(model, optimizer), history.grad_norm.tolist()


def backward(model: Any, tape: Any, d: Array, step_clip: float | None = None) -> Array:
    """The model's backward pass, layer by layer; return what the recurrent layer got."""
    for layer, own in list(zip(model.layers, tape.tapes, strict=True))[:0:-1]:
        d = layer.backward(own, d)
    model[0].backward(tape.tapes[0], d, step_clip=step_clip)
    return d


# ---- each is the loop by hand ----------------------------------------------------------------------------------------


def test_a_step_is_what_fit_does() -> None:
    model, optimizer, batches = problem()
    norms = [gradcore.training_step(model, batch, MSE, optimizer, max_norm=0.1).grad_norm for batch in batches]
    want, its_norms = fitted(np.float64, [], max_norm=0.1)
    np.testing.assert_equal(state(model, optimizer), want)
    assert norms == its_norms


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_adaptive_clipping(dtype: Any) -> None:
    def between(model: Any, tape: Any, rest: Any) -> float:
        model.backward(tape, rest[0])
        done = gradcore.clip_grad_units_(model, 0.02, 1e-3)
        assert done.clipped
        return rest[1].step(max_norm=0.05)

    agc = AdaptiveClip(0.02)
    np.testing.assert_equal(fitted(dtype, [agc], max_norm=0.05), by_hand(dtype, between))
    assert agc.last is not None
    assert agc.last.clipped
    assert agc.last.ratio > 0.02


@pytest.mark.parametrize("step_clip", [None, 0.01])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_loss_scaling(dtype: Any, step_clip: float | None) -> None:
    scaler = GradScaler(growth_interval=2)

    def between(model: Any, tape: Any, rest: Any) -> float:
        clip = {} if step_clip is None else {"step_clip": step_clip * scaler.get_scale()}
        model.backward(tape, scaler.scale(rest[0]), **clip)
        norm = scaler.step(rest[1], max_norm=0.05)
        scaler.update()
        return norm

    hook = GradScaler(growth_interval=2)
    np.testing.assert_equal(fitted(dtype, [hook], max_norm=0.05, step_clip=step_clip), by_hand(dtype, between))
    assert hook.state_dict() == scaler.state_dict()
    assert hook.get_scale() == 2.0**19
    # a power of two is exact: the scale changes no bit
    np.testing.assert_equal(
        fitted(np.float64, [GradScaler()], step_clip=step_clip), fitted(np.float64, [], step_clip=step_clip)
    )


def test_a_scaler_that_is_not_enabled_changes_nothing() -> None:
    scaler = GradScaler(enabled=False)
    np.testing.assert_equal(fitted(np.float32, [scaler]), fitted(np.float32, []))
    np.testing.assert_equal(vars(scaler), vars(GradScaler(enabled=False)))


def test_the_history_does_not_see_the_scale() -> None:
    states = []
    for hooks in ([], [GradScaler()]):
        model, optimizer, batches = problem()
        history = gradcore.fit(model, batches, MSE, optimizer, epochs=1, hooks=hooks)
        states.append({**history.state_dict(), "seconds": None})
    np.testing.assert_equal(states[1], states[0])
    assert states[0]["dh_first"]["0.l0"].all()
    assert states[0]["d_norm"]["output"].all()


@pytest.mark.parametrize("nonfinite", ["skip", "zero", "raise"])
def test_the_scale_falls_after_a_gradient_that_is_not_finite(nonfinite: str) -> None:
    model, optimizer, batches = problem(np.float32, 1)
    scaler = GradScaler(init_scale=2.0**120)
    batch = batches[0][0], 1e20 * np.ones_like(batches[0][1])
    given: Any = {"nonfinite": nonfinite, "hooks": [scaler]}
    if nonfinite == "raise":
        with pytest.raises(FloatingPointError):
            gradcore.training_step(model, batch, MSE, optimizer, **given)
        assert scaler.get_scale() == 2.0**120
        return
    step = gradcore.training_step(model, batch, MSE, optimizer, **given)
    assert step.grad_norm.n_inf + step.grad_norm.n_nan > 0
    assert optimizer.n_skipped == (nonfinite == "skip")
    assert scaler.get_scale() == 2.0**119


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 0, 2]])
@pytest.mark.parametrize("step_clip", [None, 0.01])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scaling_regularizer_and_adaptive_clipping_together(dtype: Any, step_clip: float | None, order: Any) -> None:
    """In whatever order they are passed. The scale, a power of two, leaves the bits of the gradients alone."""
    regularizer = VanishingGradientRegularizer(0.5, bound=1e-9)  # which some pairs do not reach

    def between(model: Any, tape: Any, rest: Any) -> float:
        d = backward(model, tape, rest[0], step_clip)
        regularizer(model[0], tape.tapes[0], d, step_clip=step_clip)
        gradcore.clip_grad_units_(model, 0.02)
        return rest[1].step(max_norm=0.05)

    hooks: list[Hook] = [GradScaler(), VanishingGradientRegularizer(0.5, bound=1e-9), AdaptiveClip(0.02)]
    got = fitted(dtype, [hooks[i] for i in order], max_norm=0.05, step_clip=step_clip)
    np.testing.assert_equal(got, by_hand(dtype, between))


# ---- the places ------------------------------------------------------------------------------------------------------

PLACES = ["before_forward", "after_loss", "after_backward", "before_step", "after_step", "after_epoch", "on_failure"]


def recorder(name: str, calls: list[str], **others: Callable[..., Any]) -> Hook:
    """A hook that notes where it is called, and then does what is wanted there."""

    def at(place: str) -> Callable[..., Any]:
        def method(self: Any, *arguments: Any) -> Any:
            calls.append(f"{name} {place}")
            return others[place](*arguments) if place in others else None

        return method

    return type("Recorder", (Hook,), {place: at(place) for place in PLACES})()


def test_the_order_of_calls() -> None:
    model, optimizer, batches = problem(steps=2)
    calls: list[str] = []
    seen: list[Any] = []

    def loss(y: Array, target: Array) -> Any:
        calls.append("loss")
        return MSE(y, target)

    gradcore.fit(
        model, batches, loss, optimizer, epochs=1,
        hooks=[recorder("1", calls), recorder("2", calls, after_epoch=lambda *given: seen.append(given))],
        callbacks=[lambda record: calls.append("callback")],
    )  # fmt: skip
    both = [f"{name} {place}" for place in PLACES for name in "12"]
    step = [*both[:2], "loss", *both[2:10], "callback"]
    assert calls == [*step, *step, *both[10:12]]
    assert [(epoch, len(history)) for epoch, history in seen] == [(0, 2)]


def test_what_a_step_holds_at_each_place() -> None:
    model, optimizer, batches = problem(steps=1)
    grads: list[bool] = []

    def look(step: TrainingStep) -> None:
        grads.append(bool(step.model.flat_grads.any()))

    hook = recorder("", [], before_forward=look, after_loss=look, after_backward=look)
    step = gradcore.training_step(model, batches[0], MSE, optimizer, hooks=[hook])
    assert grads == [False, False, True]
    assert step.model is model
    assert step.optimizer is optimizer
    assert step.x is batches[0][0]
    assert step.target is batches[0][1]
    assert step.y.shape == (4, 1)
    assert step.loss == MSE(step.y, step.target)[0]
    assert step.grad_norm == optimizer.last_norm > 0
    assert (step.lr, step.scale, step.history, step.dropped) == (0.01, 1.0, None, False)


@pytest.mark.parametrize("stop", [True, np.True_])
def test_a_hook_ends_the_training_after_an_epoch(stop: Any) -> None:
    model, optimizer, batches = problem(steps=2)
    hook = recorder("", [], after_epoch=lambda epoch, history: stop if epoch == 1 else 1)
    history = gradcore.fit(model, batches, MSE, optimizer, epochs=5, hooks=[hook])
    assert history.epoch.tolist() == [0, 0, 1, 1]
    assert not history.interrupted


# ---- failures --------------------------------------------------------------------------------------------------------


def fail(step: TrainingStep) -> None:
    if step.step == 3:
        raise ZeroDivisionError


@pytest.mark.parametrize("place", PLACES[:4])
def test_a_hook_that_raises_leaves_the_last_whole_step(place: str) -> None:
    want, _ = fitted(np.float64, [], 3)
    model, optimizer, batches = problem()
    calls: list[str] = []
    told: list[Any] = []
    others = [
        recorder("1", calls, on_failure=lambda step, error: told.append((step.step, type(error)))),
        recorder("2", calls, **{place: fail}),
    ]
    scaler = GradScaler()
    with pytest.raises(ZeroDivisionError):
        gradcore.fit(model, batches, MSE, optimizer, epochs=1, hooks=[scaler, *others])
    np.testing.assert_equal(state(model, optimizer), want)
    assert not model.flat_grads.any()
    assert calls[-3:] == [f"2 {place}", "1 on_failure", "2 on_failure"]
    assert told == [(3, ZeroDivisionError)]
    gradcore.training_step(model, batches[3], MSE, optimizer, hooks=[scaler])  # the run goes on as if nothing had been
    np.testing.assert_equal(state(model, optimizer), fitted(np.float64, [GradScaler()], 4)[0])


def test_a_loss_that_raises_leaves_the_last_whole_step() -> None:
    model, optimizer, batches = problem()
    before = state(model, optimizer)
    with pytest.raises(ZeroDivisionError):
        gradcore.training_step(model, batches[0], lambda *_: 1 / 0, optimizer)
    np.testing.assert_equal(state(model, optimizer), before)


def test_a_hook_that_raises_after_the_update_leaves_this_step() -> None:
    model, optimizer, batches = problem()
    calls: list[str] = []
    with pytest.raises(ZeroDivisionError):
        gradcore.fit(model, batches, MSE, optimizer, epochs=1, hooks=[recorder("", calls, after_step=fail)])
    np.testing.assert_equal(state(model, optimizer), fitted(np.float64, [], 4)[0])
    assert " on_failure" not in calls


def test_bad_hooks() -> None:
    model, optimizer, batches = problem()
    with pytest.raises(TypeError, match=r"hooks\[1\]: expected a Hook, got function"):
        gradcore.fit(model, batches, MSE, optimizer, epochs=1, hooks=[Hook(), fail])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="hooks: expected an iterable of hooks, got Hook"):
        gradcore.training_step(model, batches[0], MSE, optimizer, hooks=Hook())  # type: ignore[arg-type]
    with pytest.raises(
        ValueError,
        match=r"batch: expected \(x, target\), \(x, target, lengths\) or a dict with x and target, got 1 items",
    ):
        gradcore.training_step(model, batches[0][:1], MSE, optimizer)
    with pytest.raises(ValueError, match="clip_factor: expected a number at least 0, got -1"):
        AdaptiveClip(-1.0)


# ---- what the places are for: users who write their own --------------------------------------------------------------


class Accumulate(Hook):
    """The mean gradient of n batches."""

    def __init__(self, n: int) -> None:
        self.n, self.sum, self.count = n, 0.0, 0

    def after_backward(self, step: TrainingStep) -> None:
        self.sum, self.count = self.sum + step.model.flat_grads, self.count + 1
        step.dropped = self.count < self.n
        if not step.dropped:
            step.model.flat_grads[...] = self.sum / self.n
            self.sum, self.count = 0.0, 0


def test_gradient_accumulation() -> None:
    rng = np.random.default_rng(0)
    x, target = rng.standard_normal((12, 3)), rng.standard_normal((12, 1))
    small = [(x[i : i + 3], target[i : i + 3]) for i in range(0, 12, 3)]
    ends = []
    for batches, hooks in ((small, [Accumulate(2)]), ([(x[:6], target[:6]), (x[6:], target[6:])], [])):
        model = gradcore.Linear(3, 1, dtype=np.float64, rng=0)
        optimizer = gradcore.optim.SGD(model, lr=0.1)
        history = gradcore.fit(model, batches, MSE, optimizer, epochs=2, hooks=hooks)
        assert history.epoch.tolist() == [0, 0, 1, 1]
        ends.append(model.flat_params)
    np.testing.assert_allclose(ends[0], ends[1], rtol=1e-13)


class CarryState(Hook):
    """Truncated backpropagation through time: each batch starts from the state at which the last one ended."""

    state: Any = None

    def before_forward(self, step: TrainingStep) -> None:
        step.options["state"] = self.state

    def after_step(self, step: TrainingStep) -> None:
        self.state = step.tape.state

    def after_epoch(self, epoch: int, history: gradcore.History) -> None:
        self.state = None


def test_truncated_backpropagation_through_time() -> None:
    x = np.random.default_rng(0).standard_normal((20, 3, 2))
    chunks = [(x[t : t + 5], np.zeros((5, 3, 4))) for t in range(0, 20, 5)]
    got, want = (gradcore.LSTM(2, 4, dtype=np.float64, rng=0) for _ in range(2))
    gradcore.fit(got, chunks, MSE, gradcore.optim.SGD(got, lr=0.1), epochs=2, hooks=[CarryState()])
    optimizer = gradcore.optim.SGD(want, lr=0.1)
    for _ in range(2):
        carried = None
        for part, target in chunks:
            want.zero_grad()
            y, tape = want.forward(part, carried)
            want.backward(tape, MSE(y, target)[1])
            optimizer.step()
            carried = tape.state
    assert same_bits(got.flat_params, want.flat_params)


def test_a_batch_that_is_passed_over_leaves_no_trace() -> None:
    model, optimizer, batches = problem()

    def pass_over(step: TrainingStep) -> None:
        step.dropped = step.x is batches[2][0]

    hook = recorder("", [], before_forward=pass_over)
    history = gradcore.fit(model, batches, MSE, optimizer, epochs=1, hooks=[hook])
    other, its_optimizer, _ = problem()
    want = gradcore.fit(other, batches[:2] + batches[3:], MSE, its_optimizer, epochs=1)
    np.testing.assert_equal(state(model, optimizer), state(other, its_optimizer))
    assert history.loss.tolist() == want.loss.tolist()


def test_an_optimizer_of_ones_own_needs_no_scale() -> None:
    class Plain:
        def step(self, max_norm: Any = None, nonfinite: str = "skip") -> gradcore.GradNorm:
            return gradcore.grad_norm(model)

    model, _, batches = problem()
    assert gradcore.training_step(model, batches[0], MSE, Plain()).grad_norm > 0


def test_a_skipped_batch_leaves_no_trace_in_running_statistics() -> None:
    model = gradcore.Sequential(gradcore.Linear(3, 4, rng=0), gradcore.BatchNorm(4), gradcore.Linear(4, 1, rng=1))
    optimizer = gradcore.optim.SGD(model, lr=0.1)
    x, target = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32), np.zeros((8, 1), np.float32)
    gradcore.training_step(model, (x, target), gradcore.losses.mse, optimizer)
    before = {name: array.copy() for name, array in model.buffers.items()}
    x[0, 0] = np.nan
    step = gradcore.training_step(model, (x, target), gradcore.losses.mse, optimizer)
    assert step.grad_norm.skipped
    assert all((model.buffers[name] == array).all() for name, array in before.items())
    with pytest.raises(ValueError, match="target"):  # after forward
        gradcore.training_step(model, (np.ones_like(x), np.zeros((8, 2), np.float32)), gradcore.losses.mse, optimizer)
    assert all((model.buffers[name] == array).all() for name, array in before.items())
