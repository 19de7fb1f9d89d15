"""Loss scaling against PyTorch and a transcription of its rule, and a fused step against one of unscaled gradients."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tools import same_bits

import gradcore
from gradcore import GradScaler, clip_grad_norm_, optim
from gradcore._base.check import Array

pytestmark = pytest.mark.kernels

PATTERNS = st.lists(st.booleans(), max_size=60)
SETTINGS = st.fixed_dictionaries(
    {
        "init_scale": st.sampled_from([2.0**16, 1.0, 3.7, 1e30, 2.0**127, 1e-30]),
        "growth_factor": st.sampled_from([2.0, 1.5, 1.0001, 1e20]),
        "backoff_factor": st.sampled_from([0.5, 0.3, 0.999]),
        "growth_interval": st.integers(1, 5),
    }
)


def pair(dtype: Any = np.float64, n: int = 5, seed: int = 0) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    weight, grad = rng.standard_normal((2, n)).astype(dtype)
    return weight, grad


def follow(scaler: GradScaler, good: list[bool]) -> list[float]:
    """The scales after steps that are good or bad."""
    weight, grad = pair()
    opt, scales = optim.SGD([(weight, grad)], lr=0.1), []
    for step_is_good in good:
        grad[...] = 1.0
        grad[2] = 1.0 if step_is_good else math.inf
        assert scaler.step(opt).skipped is not step_is_good
        scaler.update()
        scales.append(scaler.get_scale())
    return scales


# ---- the rule --------------------------------------------------------------------------------------------------------


@given(PATTERNS, SETTINGS)
def test_the_scale_follows_the_rule(good: list[bool], settings: dict[str, Any]) -> None:
    scale, since, want = np.float32(settings["init_scale"]), 0, []
    with np.errstate(over="ignore"):
        for step_is_good in good:
            if not step_is_good:
                scale, since = np.float32(float(scale) * settings["backoff_factor"]), 0
            else:
                since += 1
                if since == settings["growth_interval"]:
                    grown = np.float32(float(scale) * settings["growth_factor"])
                    scale, since = (grown if np.isfinite(grown) else scale), 0
            want.append(float(scale))
    scaler = GradScaler(**settings)
    assert follow(scaler, good) == want
    assert scaler.state_dict()["_growth_tracker"] == since


def rescaled(torch: Any, settings: dict[str, Any]) -> Any:
    """PyTorch's scaler, which makes its scale when it is first used."""
    theirs = torch.amp.GradScaler("cpu", **settings)
    theirs.scale(torch.ones(1))
    return theirs


@pytest.mark.peers
@given(PATTERNS, SETTINGS, st.sampled_from(["fused", "unscaled"]))
def test_scale_and_parameters_are_pytorchs(good: list[bool], settings: dict[str, Any], way: str) -> None:
    torch = pytest.importorskip("torch")
    weight, grad = pair(np.float32)
    parameter = torch.nn.Parameter(torch.from_numpy(weight.copy()))
    ours, theirs = GradScaler(**settings), rescaled(torch, settings)
    opt, other = optim.SGD([(weight, grad)], lr=0.1, momentum=0.9), torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    rng = np.random.default_rng(0)
    for step_is_good in good:
        grad[...] = ours.scale(rng.uniform(-1, 1, 5).astype(np.float32))
        grad[3] = grad[3] if step_is_good else (math.inf, -math.inf, math.nan)[rng.integers(3)]
        parameter.grad = torch.from_numpy(grad.copy())
        if way == "unscaled":
            ours.unscale_(opt)
            theirs.unscale_(other)
        ours.step(opt)
        theirs.step(other)
        ours.update()
        theirs.update()
        assert ours.state_dict() == theirs.state_dict()
        assert weight == pytest.approx(parameter.detach().numpy(), rel=1e-5, abs=1e-6, nan_ok=True)


@pytest.mark.peers
def test_names_defaults_and_state_are_pytorchs() -> None:
    torch = pytest.importorskip("torch")
    theirs = rescaled(torch, {})
    assert GradScaler().state_dict() == theirs.state_dict()
    other = rescaled(torch, {"init_scale": 8.0, "growth_factor": 3.0, "growth_interval": 7})
    ours = GradScaler()
    ours.load_state_dict(other.state_dict())
    theirs.load_state_dict(ours.state_dict())
    assert ours.state_dict() == theirs.state_dict() == other.state_dict()


def test_the_scale_stays_positive_and_finite() -> None:
    assert follow(GradScaler(1e-44, growth_interval=100), [False] * 9)[-1] == 2.0**-149
    assert follow(GradScaler(2.0**126, growth_interval=1), [True] * 9)[-1] == 2.0**127


@given(PATTERNS, PATTERNS, SETTINGS)
def test_a_scaler_goes_on_where_its_state_was_taken(
    before: list[bool], after: list[bool], settings: dict[str, Any]
) -> None:
    first, second = GradScaler(**settings), GradScaler()
    follow(first, before)
    state = first.state_dict()
    second.load_state_dict(state)
    assert all(type(value) in (int, float) for value in state.values())
    assert follow(first, after) == follow(second, after)


# ---- the step --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("max_norm", [None, 0.3, 1e9])
@pytest.mark.parametrize("rule", ["SGD", "Adam", "AdamW", "NAdam", "RAdam", "Lion", "RMSprop", "Adagrad", "SPAM"])
def test_a_fused_step_has_the_bits_of_one_after_unscaling(rule: str, max_norm: float | None, dtype: Any) -> None:
    n = 9000
    (weight, grad), (twin, twin_grad) = pair(dtype, n), pair(dtype, n)
    opt, other = (getattr(optim, rule)({"w": p}, lr=0.1) for p in ((weight, grad), (twin, twin_grad)))
    scaler = GradScaler(2.0**10)
    for seed in range(4):
        dy = pair(dtype, n, seed)[1]
        grad[...] = twin_grad[...] = scaler.scale(dy)
        kept = grad.tobytes()
        norm = scaler.step(opt, max_norm)
        assert grad.tobytes() == kept  # gradients are read only
        assert scaler.unscale_(other) == norm
        assert same_bits(twin_grad, dy)
        assert scaler.step(other, max_norm) == norm
        scaler.update()
        assert norm == gradcore.grad_norm(dy)
        assert norm.clipped is (max_norm == 0.3)
        assert same_bits(weight, twin)


def test_any_scale_is_divided_out() -> None:
    weight, grad = pair()
    start = weight.copy()
    dy = grad.copy()
    scaler = GradScaler(3.7e11)
    grad[...] = scaler.scale(dy)
    norm = scaler.step(optim.SGD([(weight, grad)], lr=1.0), max_norm=0.5)
    assert norm == pytest.approx(np.linalg.norm(dy), rel=1e-15)
    assert norm.per_array == pytest.approx([np.linalg.norm(dy)], rel=1e-15)
    assert weight == pytest.approx(start - dy * 0.5 / np.linalg.norm(dy), rel=1e-13)


def test_a_skipped_step_changes_no_bit_and_the_optimizer_counts_it() -> None:
    weight, grad = pair()
    opt, scaler = optim.Adam([(weight, grad)]), GradScaler()
    before, grad[1] = weight.copy(), math.nan
    for way in ("fused", "unscaled", "zeroed after unscale_"):
        kept = grad.copy()
        if way != "fused":
            assert scaler.unscale_(grad).skipped
            assert same_bits(grad, kept)
        if way == "zeroed after unscale_":
            clip_grad_norm_(grad, 1.0, nonfinite="zero")
        norm = scaler.step(opt)
        assert norm.skipped
        assert norm.n_nan == 1
        scaler.update()
        assert same_bits(weight, before)
    assert (opt.n_steps, opt.n_skipped, opt.n_consecutive_skips) == (0, 3, 3)
    assert scaler.get_scale() == 2.0**13


def test_unscaled_gradients_may_be_clipped_before_the_step() -> None:
    weight, grad = pair()
    start, dy = weight.copy(), grad.copy()
    scaler = GradScaler()
    grad[...] = scaler.scale(dy)
    opt = optim.SGD([(weight, grad)], lr=1.0)
    scaler.unscale_(grad)
    clip_grad_norm_(grad, 0.5, nonfinite="skip")
    assert scaler.step(opt) == pytest.approx(0.5, rel=1e-14)
    assert weight == pytest.approx(start - dy * 0.5 / np.linalg.norm(dy), rel=1e-13)


def test_gradients_are_known_by_their_memory() -> None:
    model = gradcore.MLP([3, 4, 2], rng=np.random.default_rng(0))
    opt = optim.SGD(model, lr=0.1)
    scaler = GradScaler(4.0)
    for grads in (model, opt, model.flat_grads, list(model.grads.values()), [g.ravel() for g in model.grads.values()]):
        model.flat_grads[...] = 4.0
        scaler.unscale_(grads)
        assert (model.flat_grads == 1).all()
        with pytest.raises(RuntimeError, match="already unscaled"):
            scaler.unscale_(model.flat_grads[3:5])
        assert scaler.step(opt) == pytest.approx(math.sqrt(model.flat_grads.size))
        scaler.update()
    name, *others = model.grads
    model.flat_grads[...] = 4.0
    scaler.unscale_(model.grads[name])
    before = model.flat_params.copy()
    with pytest.raises(ValueError, match="only some of its gradients were unscaled"):
        scaler.step(opt)
    assert same_bits(model.flat_params, before)
    scaler.unscale_([model.grads[other] for other in others])
    assert scaler.step(opt) == pytest.approx(math.sqrt(model.flat_grads.size))


def test_two_optimizers_share_one_scale() -> None:
    (weight, grad), (other, other_grad) = pair(), pair(seed=1)
    first, second = optim.SGD([(weight, grad)]), optim.SGD([(other, other_grad)])
    scaler = GradScaler()
    before, grad[0] = other.copy(), math.inf
    assert scaler.step(first).skipped
    assert not scaler.step(second).skipped
    assert not np.array_equal(other, before)
    scaler.update()
    assert scaler.get_scale() == 2.0**15


def test_the_order_is_kept() -> None:
    weight, grad = pair()
    opt, scaler = optim.SGD([(weight, grad)]), GradScaler()
    with pytest.raises(RuntimeError, match="update: expected a step"):
        scaler.update()
    scaler.step(opt)
    before = weight.copy()
    with pytest.raises(RuntimeError, match="step: the gradients were already used"):
        scaler.step(opt)
    with pytest.raises(RuntimeError, match="unscale_: some of the gradients were already used"):
        scaler.unscale_(opt)
    assert same_bits(weight, before)
    scaler.update()
    with pytest.raises(RuntimeError, match="update: expected a step"):
        scaler.update()


def test_halves_are_unscaled_and_rounded_once() -> None:
    g = np.array([1000.0, -3.0, 2.0**-24], np.float16)
    want = g.astype(np.float64) / 8
    assert GradScaler(8.0).unscale_([g]) == pytest.approx(np.linalg.norm(want), rel=1e-15)
    assert same_bits(g, want.astype(np.float16))


# ---- scale -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_arrays_are_scaled_in_their_dtype(dtype: Any) -> None:
    x = np.array([[1e-7, -0.25, math.nan, math.inf]], dtype)
    scaled = GradScaler().scale(x)
    assert same_bits(scaled, (x.astype(np.float64) * 2**16).astype(dtype))
    assert scaled is not x
    large = GradScaler().scale(np.array([np.finfo(dtype).max], dtype))
    assert large == math.inf or dtype == np.float64


def test_numbers_are_scaled() -> None:
    scaler = GradScaler(8.0)
    assert scaler.scale(0.5) == 4
    assert scaler.scale(np.float32(0.5)) == 4
    assert scaler.scale(-math.inf) == -math.inf
    assert math.isnan(scaler.scale(math.nan))
    for bad in ("much", None, np.ones(2, np.int64)):
        with pytest.raises(TypeError, match="value: expected"):
            scaler.scale(bad)


def test_not_enabled_does_nothing() -> None:
    scaler = GradScaler(enabled=False)
    weight, grad = pair()
    start, dy = weight.copy(), grad.copy()
    assert scaler.scale(grad) is grad
    assert scaler.scale(0.5) == 0.5
    assert scaler.unscale_(grad) == gradcore.grad_norm(dy)
    assert same_bits(grad, dy)
    scaler.step(optim.SGD([(weight, grad)], lr=1.0))
    assert same_bits(weight, start - dy)
    scaler.update()
    assert (scaler.get_scale(), scaler.state_dict()) == (1.0, {})
    scaler.load_state_dict({})
    with pytest.raises(KeyError, match="missing"):
        GradScaler().load_state_dict({})


def test_repr() -> None:
    assert repr(GradScaler()) == (
        "GradScaler(scale=65536.0, growth_factor=2.0, backoff_factor=0.5, growth_interval=2000, enabled=True)"
    )


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"init_scale": 0.0}, ValueError),
        ({"init_scale": -1.0}, ValueError),
        ({"init_scale": 1e39}, ValueError),
        ({"init_scale": math.nan}, ValueError),
        ({"growth_factor": 1.0}, ValueError),
        ({"growth_factor": math.inf}, ValueError),
        ({"backoff_factor": 1.0}, ValueError),
        ({"backoff_factor": 0.0}, ValueError),
        ({"growth_interval": 0}, ValueError),
        ({"growth_interval": 2.5}, TypeError),
        ({"init_scale": "large"}, TypeError),
    ],
)
def test_numbers_out_of_range_are_refused(arguments: dict[str, Any], error: type[Exception]) -> None:
    name, value = next(iter(arguments.items()))
    with pytest.raises(error, match=f"{name}: expected"):
        GradScaler(**arguments)
    scaler = GradScaler()
    state = scaler.state_dict()
    name = name.removeprefix("init_")
    with pytest.raises(error, match=f"{name}: expected"):
        scaler.load_state_dict(state | {name: value})
    assert scaler.state_dict() == state


def test_only_optimizers_step() -> None:
    with pytest.raises(TypeError, match=r"optimizer: expected an optimizer of gradcore\.optim, got list"):
        GradScaler().step([])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="state_dict: expected a mapping"):
        GradScaler().load_state_dict([])  # type: ignore[arg-type]


@pytest.mark.parametrize("unscaled", [False, True])
def test_thresholds_and_schedules_see_gradients_over_the_scale(unscaled: bool) -> None:
    (weight, grad), (other, plain) = pair(), pair()
    scaler, thresholds = GradScaler(init_scale=1024.0), [gradcore.threshold.AutoClip(50.0) for _ in range(2)]
    lr = gradcore.schedule.linear(0.1, 0.0, 8)
    opt, want = optim.SGD([(weight, grad)], lr=lr), optim.SGD([(other, plain)], lr=lr)
    for step in range(6):
        plain[...] = np.random.default_rng(step).standard_normal(plain.shape) * (step + 1)
        grad[...] = scaler.scale(plain)
        if unscaled:
            scaler.unscale_(opt)
        norm, expected = scaler.step(opt, max_norm=thresholds[0]), want.step(max_norm=thresholds[1])
        scaler.update()
        assert (float(norm), norm.max_norm, norm.coef) == (float(expected), expected.max_norm, expected.coef)
    assert weight == pytest.approx(other, rel=1e-15)
    assert same_bits(thresholds[0].state_dict()["norms"], thresholds[1].state_dict()["norms"])
