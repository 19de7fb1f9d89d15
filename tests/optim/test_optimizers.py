"""Optimizers against their twins and PyTorch, and what a step promises about clipping, skipping and resuming."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import platform
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tools import LAYOUTS, relative_error, same_bits

import gradcore
from gradcore import _kernels, clip_grad_norm_, optim, reference, schedule, threshold
from gradcore._base.check import Array

pytestmark = pytest.mark.kernels

BLOCK = 4096
SHAPES = [(3, 5), (), (BLOCK + 3,), (0, 4), (2, 40)]
TWINS = {
    "SGD": reference.sgd,
    "Adam": reference.adam,
    "AdamW": reference.adamw,
    "NAdam": reference.nadam,
    "RAdam": reference.radam,
    "Lion": reference.lion,
    "RMSprop": reference.rmsprop,
    "Adagrad": reference.adagrad,
    "SPAM": reference.spam,
}
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "SGD": [
        {},
        {"lr": 0.1, "weight_decay": 0.1},
        {"lr": 0.1, "l1": 0.1},
        {"lr": 0.1, "maximize": True},
        {"lr": 0.1, "momentum": 0.9},
        {"lr": 0.1, "momentum": 0.9, "dampening": 0.3},
        {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1, "maximize": True, "l1": 0.1},
        {"lr": 0.1, "momentum": 0.9, "nesterov": True},
        {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1, "maximize": True},
    ],
    "Adam": [
        {},
        {"amsgrad": True},
        {"weight_decay": 0.1},
        {"l1": 0.1},
        {"maximize": True},
        {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1, "maximize": True, "l1": 0.1},
        {"betas": (0.0, 0.0)},
    ],
    "AdamW": [{}, {"lr": 0.1, "weight_decay": 0.3, "amsgrad": True}, {"maximize": True}, {"l1": 0.1}],
    "NAdam": [
        {},
        {"weight_decay": 0.1},
        {"lr": 0.01, "weight_decay": 0.1, "decoupled_weight_decay": True, "maximize": True},
        {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1, "momentum_decay": 0.3, "l1": 0.1},
        {"betas": (0.0, 0.0)},
    ],
    "RAdam": [
        {},
        {"weight_decay": 0.1},
        {"lr": 0.01, "weight_decay": 0.1, "decoupled_weight_decay": True, "maximize": True},
        {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1, "l1": 0.1},
        {"betas": (0.5, 0.5)},  # whose steps are never rectified
    ],
    "Lion": [
        {},
        {"lr": 0.01, "weight_decay": 0.1},
        {"lr": 0.01, "betas": (0.8, 0.95), "weight_decay": 0.1, "maximize": True, "l1": 0.1},
        {"betas": (0.0, 0.0)},
    ],
    "RMSprop": [
        {},
        {"centered": True},
        {"momentum": 0.9},
        {"weight_decay": 0.1},
        {"l1": 0.1},
        {"maximize": True},
        {
            "lr": 0.1,
            "alpha": 0.9,
            "eps": 1e-3,
            "weight_decay": 0.1,
            "momentum": 0.5,
            "centered": True,
            "maximize": True,
            "l1": 0.1,
        },
    ],
    "Adagrad": [
        {},
        {"lr_decay": 0.1},
        {"weight_decay": 0.1},
        {"l1": 0.1},
        {"maximize": True},
        {
            "lr": 0.1,
            "lr_decay": 0.1,
            "weight_decay": 0.1,
            "initial_accumulator_value": 0.2,
            "eps": 1e-3,
            "maximize": True,
            "l1": 0.1,
        },
    ],
    "SPAM": [
        {},
        {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-3, "threshold": 4.0, "reset_every": 30, "warmup_steps": 10},
        {"weight_decay": 0.1, "threshold": 20.0, "reset_every": 2, "warmup_steps": 5, "maximize": True, "l1": 0.1},
    ],
}
CASES = [(rule, options) for rule, cases in OPTIONS.items() for options in cases]
OF_PYTORCH = [rule for rule in OPTIONS if rule not in ("SPAM", "Lion")]
OTHERS: dict[str, dict[str, Any]] = {  # for a second group
    "SGD": {"lr": 0.01, "momentum": 0.5, "dampening": 0.0, "nesterov": True, "weight_decay": 0.05, "l1": 0.01},
    "Adam": {"lr": 0.02, "betas": (0.5, 0.9), "amsgrad": True, "weight_decay": 0.05, "l1": 0.01},
    "AdamW": {"lr": 0.02, "eps": 1e-4, "amsgrad": True, "weight_decay": 0.05, "maximize": True},
    "NAdam": {"lr": 0.02, "betas": (0.5, 0.9), "momentum_decay": 0.1, "weight_decay": 0.05, "l1": 0.01},
    "RAdam": {"lr": 0.02, "eps": 1e-4, "weight_decay": 0.05, "decoupled_weight_decay": True, "maximize": True},
    "Lion": {"lr": 0.02, "betas": (0.5, 0.9), "weight_decay": 0.05, "l1": 0.01},
    "RMSprop": {"lr": 0.02, "alpha": 0.8, "centered": True, "momentum": 0.3, "l1": 0.01},
    "Adagrad": {"lr": 0.02, "lr_decay": 0.3, "weight_decay": 0.05, "maximize": True, "l1": 0.01},
    "SPAM": {"lr": 0.02, "threshold": 9.0, "reset_every": 17, "warmup_steps": 3, "l1": 0.01},
}
WRITABLE = [name for name in LAYOUTS if name != "read-only"]
each_case = pytest.mark.parametrize(("rule", "options"), CASES)
each_case_of_pytorch = pytest.mark.parametrize(("rule", "options"), [case for case in CASES if case[0] in OF_PYTORCH])
each_rule = pytest.mark.parametrize("rule", OPTIONS)
each_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])


SHARED = np.ones(8)
LAYER = gradcore.Linear(2, 2)


def make(rule: str, params: Any, **options: Any) -> Any:
    return getattr(optim, rule)(params, **options)


def fresh(dtype: Any = np.float64, seed: int = 0) -> tuple[dict[str, tuple[Array, Array]], Callable[[], None]]:
    """Parameters and gradients of SHAPES by name, and a function that draws new gradients of another scale."""
    rng = np.random.default_rng(seed)
    pairs = {f"p{i}": (np.asarray(rng.standard_normal(s), dtype), np.zeros(s, dtype)) for i, s in enumerate(SHAPES)}

    def draw() -> None:
        for _, grad in pairs.values():
            grad[...] = rng.standard_normal(grad.shape) * 10.0 ** rng.integers(-2, 3)

    draw()
    return pairs, draw


def everything(opt: Any, pairs: dict[str, tuple[Array, Array]]) -> list[bytes]:
    """The bits of parameters and moments."""
    moments = opt.state_dict()["moments"]
    return [p.tobytes() for p, _ in pairs.values()] + [a.tobytes() for m in moments.values() for a in m.values()]


def numbers(opt: Any) -> dict[str, Any]:
    """All of the state but the moments."""
    return {name: value for name, value in opt.state_dict().items() if name != "moments"}


def two_groups(pairs: dict[str, Any], own: dict[str, Any]) -> list[dict[str, Any]]:
    """p0 and p1, which have the optimizer's hyperparameters, and the rest with others."""
    first = {name: pairs[name] for name in ("p0", "p1")}
    return [{"params": first}, {"params": {k: v for k, v in pairs.items() if k not in first}, **own}]


def without_l1(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name != "l1"}


def with_l1(g: Array, p: Array, options: dict[str, Any]) -> Array:
    """The gradient as PyTorch, which has no l1 and turns the sign first where it maximizes, has to be given it."""
    sign = -1 if options.get("maximize") else 1
    return np.asarray(g + sign * options.get("l1", 0.0) * np.sign(p), g.dtype)


@pytest.fixture
def torch() -> Iterator[Any]:
    """PyTorch, which keeps the running product of NAdam's momenta in its default dtype."""
    module = pytest.importorskip("torch")
    before = module.get_default_dtype()
    module.set_default_dtype(module.float64)
    yield module
    module.set_default_dtype(before)


# ---- the rules -------------------------------------------------------------------------------------------------------


@each_dtype
@each_case
def test_100_steps_agree_with_the_twin(rule: str, options: dict[str, Any], dtype: Any) -> None:
    pairs, draw = fresh(dtype)
    twin = {name: p.astype(np.float64) for name, (p, _) in pairs.items()}
    states: dict[str, dict[str, Array]] = {name: {} for name in pairs}
    opt = make(rule, pairs, **options)
    for t in range(1, 101):
        draw()
        opt.step()
        for name, (_, g) in pairs.items():
            TWINS[rule](twin[name], g.astype(np.float64), states[name], t, **options)
    tolerance = 1e-5 if dtype == np.float32 else 1e-12
    for name, (p, _) in pairs.items():
        assert relative_error(p, twin[name]) <= tolerance
    for moment, arrays in opt.state_dict()["moments"].items():
        for name, a in arrays.items():
            assert relative_error(a, np.broadcast_to(states[name][moment], a.shape)) <= tolerance


@each_dtype
@each_case
@pytest.mark.parametrize("factor", [1.0, -1.0, 0.5])
def test_a_gradient_too_large_to_have_a_square_changes_no_bit_elsewhere(
    rule: str, options: dict[str, Any], dtype: Any, factor: float
) -> None:
    """There is a shorter loop where all gradients are known to be far below: both compute the same."""
    huge = np.array([2.0**65 if dtype == np.float32 else 2.0**513], dtype)
    found = []
    for other in (np.zeros(1, dtype), huge):
        pairs, draw = fresh(dtype)
        opt = make(rule, pairs | {"other": (np.ones(1, dtype), other)}, **options | {"maximize": factor < 0})
        for _ in range(5):
            draw()
            opt.step(scale=1 / abs(factor))
        found.append({name: p for name, (p, _) in pairs.items()} | opt.state_dict()["moments"])
        for arrays in opt.state_dict()["moments"].values():
            del arrays["other"]
            found[-1] |= arrays
    for name, p in found[0].items():
        if isinstance(p, np.ndarray):
            assert same_bits(p, found[1][name]), name


@pytest.mark.peers
@each_dtype
@each_case_of_pytorch
def test_100_steps_agree_with_pytorch(torch: Any, rule: str, options: dict[str, Any], dtype: Any) -> None:
    pairs, draw = fresh(dtype)
    theirs = [torch.nn.Parameter(torch.from_numpy(p.copy())) for p, _ in pairs.values()]
    opt, other = make(rule, pairs, **options), getattr(torch.optim, rule)(theirs, **without_l1(options))
    for _ in range(100):
        draw()
        for parameter, (p, g) in zip(theirs, pairs.values(), strict=True):
            parameter.grad = torch.from_numpy(with_l1(g, p, options))
        opt.step()
        other.step()
    for parameter, (p, _) in zip(theirs, pairs.values(), strict=True):
        assert relative_error(p, parameter.detach().numpy()) <= (1e-5 if dtype == np.float32 else 1e-12)


@pytest.mark.peers
@each_dtype
@each_case_of_pytorch
@pytest.mark.parametrize("max_norm", [None, 30.0])
def test_groups_and_clipping_agree_with_pytorch(
    torch: Any, rule: str, options: dict[str, Any], dtype: Any, max_norm: float | None
) -> None:
    options, own = without_l1(options), without_l1(OTHERS[rule])  # PyTorch clips before there is a decay
    pairs, draw = fresh(dtype)
    theirs = {name: torch.nn.Parameter(torch.from_numpy(p.copy())) for name, (p, _) in pairs.items()}
    opt = make(rule, two_groups(pairs, own), **options)
    groups = [group | {"params": list(group["params"].values())} for group in two_groups(theirs, own)]
    other = getattr(torch.optim, rule)(groups, **options)
    for _ in range(100):
        draw()
        for name, (_, g) in pairs.items():
            np.multiply(g, 1e8, out=g)  # so that the 1e-6 that PyTorch adds to the norm does not count
            theirs[name].grad = torch.from_numpy(g.copy())
        norm = opt.step(max_norm)
        if max_norm is not None:
            assert norm == pytest.approx(float(torch.nn.utils.clip_grad_norm_(theirs.values(), max_norm)), rel=1e-5)
        other.step()
    for name, (p, _) in pairs.items():
        assert relative_error(p, theirs[name].detach().numpy()) <= (1e-5 if dtype == np.float32 else 1e-12)


@pytest.mark.peers
@pytest.mark.parametrize("rule", OF_PYTORCH)
def test_names_and_defaults_are_pytorchs(rule: str) -> None:
    torch = pytest.importorskip("torch")
    parameter = torch.nn.Parameter(torch.zeros(2))
    defaults = getattr(torch.optim, rule)([parameter]).defaults
    ours = make(rule, [(np.zeros(2), np.zeros(2))]).state_dict()["hyperparameters"]
    assert ours.pop("l1") == 0
    assert ours == {name: defaults[name] for name in ours}


def test_l1_pulls_towards_zero_and_leaves_a_zero_alone() -> None:
    p, g = np.array([2.0, -2.0, 0.0, -0.0]), np.zeros(4)
    optim.SGD([(p, g)], lr=0.5, l1=0.25).step()
    assert p.tolist() == [1.875, -1.875, 0.0, 0.0]


@each_rule
def test_a_quadratic_is_minimized(rule: str) -> None:
    target = np.random.default_rng(0).standard_normal(50)
    p, g = np.zeros(50), np.zeros(50)
    opt = make(rule, [(p, g)], lr={"Adagrad": 1.0, "SGD": 0.2}.get(rule, 0.01))
    for _ in range(800):
        g[...] = p - target
        opt.step(max_norm=1.0)
    assert np.abs(p - target).max() < 0.02


def test_a_centered_variance_is_never_negative() -> None:
    p, g = np.zeros(1000, np.float32), np.linspace(0.01, 1, 1000, dtype=np.float32)
    opt = optim.RMSprop([(p, g)], lr=1e-3, alpha=0.5, centered=True)
    for _ in range(300):
        opt.step()
    assert np.isfinite(p).all()


@each_dtype
@each_case
def test_the_bits_are_the_same_for_any_number_of_threads(
    with_thread_counts: Callable[[Callable[[], Any]], list[Any]], rule: str, options: dict[str, Any], dtype: Any
) -> None:
    rng = np.random.default_rng(0)
    start, gradient = (
        rng.standard_normal(33 * BLOCK + 1).astype(dtype),
        rng.standard_normal(33 * BLOCK + 1).astype(dtype),
    )

    def run() -> list[bytes]:
        pairs = {"p": (start.copy(), gradient), "q": (np.ones(9, dtype), np.full(9, 0.5, dtype))}
        opt = make(rule, pairs, **options)
        for _ in range(2):
            opt.step(max_norm=0.5)
        return everything(opt, pairs)

    first, *others = with_thread_counts(run)
    assert all(other == first for other in others)


# ---- clipping and skipping -------------------------------------------------------------------------------------------


@each_dtype
@each_case
def test_clipping_in_the_step_is_clipping_before_it(rule: str, options: dict[str, Any], dtype: Any) -> None:
    pairs, draw = fresh(dtype)
    before = {name: (p.copy(), np.zeros_like(g)) for name, (p, g) in pairs.items()}
    opt, plain = make(rule, pairs, **options), make(rule, before, **options)
    for _ in range(5):
        draw()
        for name, (_, g) in pairs.items():
            before[name][1][...] = g
        kept = [g.tobytes() for _, g in pairs.values()]
        norm = opt.step(max_norm=0.7)
        want = clip_grad_norm_(plain, 0.7)
        plain.step()
        assert (norm, norm.coef, norm.clipped) == (want, want.coef, want.clipped)
        assert norm.per_array == want.per_array
        assert norm.clipped
        assert [g.tobytes() for _, g in pairs.values()] == kept
    assert everything(opt, pairs) == everything(plain, before)


@each_dtype
@each_case
def test_a_scaled_step_is_the_same_step(rule: str, options: dict[str, Any], dtype: Any) -> None:
    pairs, draw = fresh(dtype)
    times = {name: (p.copy(), np.zeros_like(g)) for name, (p, g) in pairs.items()}
    plain, opt = make(rule, pairs, **options), make(rule, times, **options)
    for max_norm in (None, 0.7, 1e9):
        draw()
        for name, (_, g) in pairs.items():
            times[name][1][...] = g * dtype(2.0**20)
        kept = [g.tobytes() for _, g in times.values()]
        want, norm = plain.step(max_norm), opt.step(max_norm, scale=2.0**20)
        assert (norm, norm.coef, norm.clipped, norm.worst) == (want, want.coef, want.clipped, want.worst)
        assert norm.per_array == want.per_array
        assert [g.tobytes() for _, g in times.values()] == kept
    assert everything(opt, times) == everything(plain, pairs)
    assert opt.last_norm == plain.last_norm


def test_parameters_go_by_the_names_of_the_gradients() -> None:
    pairs, _ = fresh()
    opt = optim.SGD(two_groups(pairs, {"lr": 0.5}))
    assert isinstance(opt.params, dict)
    assert isinstance(opt.grads, dict)
    assert opt.params.keys() == opt.grads.keys()
    assert opt.params["1.p2"] is pairs["p2"][0]
    assert optim.SGD(list(pairs.values())).params[2] is pairs["p2"][0]


@pytest.mark.parametrize(  # every case once, every dtype and value with every rule
    ("rule", "options", "dtype", "value"),
    [(*case, (np.float32, np.float64)[i % 2], (math.nan, math.inf, -math.inf)[i % 3]) for i, case in enumerate(CASES)],
)
def test_a_skipped_step_changes_no_bit_and_is_counted(
    rule: str, options: dict[str, Any], dtype: Any, value: float
) -> None:
    pairs, draw = fresh(dtype)
    opt = make(rule, pairs, **options)
    for steps, max_norm in enumerate((None, 1.0, math.inf), start=1):
        pairs["p2"][1][BLOCK] = value
        before = everything(opt, pairs)
        counters = numbers(opt)
        norm = opt.step(max_norm)
        assert norm.skipped
        assert norm.worst == ("p2", (BLOCK,))
        assert numbers(opt) == counters | {"n_skipped": steps, "n_consecutive_skips": 1}
        with pytest.raises(FloatingPointError, match=r"grads\['p2'\]: (NaN|Inf) at \(4096,\)"):
            opt.step(max_norm, nonfinite="raise")
        assert everything(opt, pairs) == before
        assert numbers(opt) == counters | {"n_skipped": steps, "n_consecutive_skips": 1}
        draw()
        assert not opt.step(max_norm).skipped
        assert everything(opt, pairs) != before
        assert (opt.n_steps, opt.n_skipped, opt.n_consecutive_skips) == (steps, steps, 0)


@each_dtype
@each_case
def test_a_step_with_zeroed_entries_is_one_without_them(rule: str, options: dict[str, Any], dtype: Any) -> None:
    (pairs, draw), (clean, draw_clean) = fresh(dtype), fresh(dtype)
    opt, want = make(rule, pairs, **options), make(rule, clean, **options)
    for _ in range(3):
        draw()
        draw_clean()
        pairs["p0"][1][0, :3] = math.nan, math.inf, -math.inf
        clean["p0"][1][0, :3] = 0
        norm, expected = opt.step(max_norm=0.5, nonfinite="zero"), want.step(max_norm=0.5)
        assert (norm, norm.n_nan, norm.n_inf, norm.skipped) == (expected, 1, 2, False)
        assert np.isnan(pairs["p0"][1][0, 0])  # the gradients themselves are not written
    assert everything(opt, pairs) == everything(want, clean)


def test_a_norm_beyond_the_dtype_makes_a_step_of_the_right_size() -> None:
    for dtype, big in ((np.float32, 3e38), (np.float64, 1.5e308)):
        p, g = np.zeros(4, dtype), np.full(4, big, dtype)
        optim.SGD([(p, g)], lr=1.0).step(max_norm=1.0)
        assert p == pytest.approx(np.full(4, -0.5), rel=1e-7)


@each_rule
def test_too_many_skipped_steps_in_a_row_raise_and_change_nothing(rule: str) -> None:
    pairs = {"v": (np.ones(3), np.full(3, 2.0)), "w": (np.ones((2, 2)), np.zeros((2, 2)))}
    opt = make(rule, pairs, max_consecutive_skips=2)
    opt.step()
    for good in (True, False):  # a step that is taken begins the count anew
        pairs["w"][1][0] = math.nan, math.inf
        for _ in range(2):
            assert opt.step().skipped
        if good:
            pairs["w"][1][...] = 0
            assert not opt.step().skipped
    before, counters = everything(opt, pairs), numbers(opt)
    assert (opt.n_skipped, opt.n_consecutive_skips) == (4, 2)
    pairs["v"][1][0] = -math.inf
    for _ in range(2):
        with pytest.raises(FloatingPointError) as error:
            opt.step(max_norm=1.0)
        assert str(error.value) == (
            "step 7: the gradient is not finite again, after 2 consecutive skipped steps (max_consecutive_skips: 2): "
            "grads['v'] has 0 NaN and 1 Inf in 3 entries; grads['w'] has 1 NaN and 1 Inf in 4 entries; "
            "the last norm was 3.4641; nothing was changed"
        )
    assert (everything(opt, pairs), numbers(opt)) == (before, counters)
    assert not opt.step(nonfinite="zero").skipped
    assert opt.n_consecutive_skips == 0


def test_skips_may_be_forbidden_or_the_limit_changed() -> None:
    p, g = np.ones(2), np.full(2, math.nan)
    opt = optim.SGD([(p, g)], max_consecutive_skips=0)
    with pytest.raises(FloatingPointError, match=r"step 1: .* after 0 consecutive skipped .*no step was taken before"):
        opt.step()
    opt.max_consecutive_skips = None
    for _ in range(9):
        assert opt.step().skipped
    opt.max_consecutive_skips = 5
    with pytest.raises(FloatingPointError, match="after 9 consecutive skipped"):
        opt.step()
    for limit, error in ((-1, ValueError), (1.5, TypeError)):
        with pytest.raises(error, match="max_consecutive_skips: expected an integer"):
            optim.Adam([], max_consecutive_skips=limit)  # type: ignore[arg-type]


def test_skips_in_a_row_are_counted_on_after_a_restart() -> None:
    opts = [optim.SGD([(np.ones(2), np.ones(2))], max_consecutive_skips=3) for _ in range(2)]
    opts[0].step()
    for opt in opts:
        opt.grads[0][...] = math.nan
    for _ in range(3):
        opts[0].step()
    opts[1].load_state_dict(opts[0].state_dict())
    messages = []
    for opt in opts:
        with pytest.raises(FloatingPointError) as error:
            opt.step()
        messages.append(str(error.value))
    assert messages[0] == messages[1]
    assert "step 5" in messages[0]


# ---- moments that fade -----------------------------------------------------------------------------------------------


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64", "aarch64"), reason="no known flush-to-zero mode")
@each_dtype
def test_fading_moments_end_as_zeros_and_the_callers_mode_stays(dtype: Any) -> None:
    p, g = np.ones(100, dtype), np.full(100, 1e-3, dtype)
    opt = optim.Adam([(p, g)], betas=(0.5, 0.5))
    opt.step()
    g[...] = 0
    for _ in range(1100):
        opt.step()
        moments = opt.state_dict()["moments"]["exp_avg"]["0"]
        assert not ((moments != 0) & (np.abs(moments) < np.finfo(dtype).tiny)).any()
    assert not moments.any()
    tiny = np.full(2, np.finfo(dtype).tiny, dtype)
    assert (tiny / 2 > 0).all()
    assert gradcore.grad_norm(np.full(4, np.finfo(dtype).smallest_subnormal, dtype)) > 0


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64", "aarch64"), reason="no known flush-to-zero mode")
@each_dtype
@each_case
def test_subnormal_moments_make_no_difference(rule: str, options: dict[str, Any], dtype: Any) -> None:
    if rule == "Lion":
        pytest.skip("whose step has the size of the learning rate wherever there is a gradient")
    rng = np.random.default_rng(0)
    tiny = float(np.finfo(dtype).tiny)
    scale = np.repeat(
        [1.0, tiny**0.5 / 8, tiny / 16], 70
    )  # of gradients whose moments, squares and selves are subnormal
    p, g = rng.uniform(1, 2, scale.size).astype(dtype), np.zeros(scale.size, dtype)
    opt = make(rule, [(p, g)], **options)
    twin, state = p.astype(np.float64), {}
    subnormal = []
    for t in range(1, 41):
        g[...] = scale * rng.standard_normal(scale.size)
        opt.step()
        TWINS[rule](twin, g.astype(np.float64), state, t, **options)
        for moment, arrays in opt.state_dict()["moments"].items():
            assert not ((arrays["0"] != 0) & (np.abs(arrays["0"]) < tiny)).any()
            subnormal.append(((state[moment] != 0) & (np.abs(state[moment]) < tiny)).any())
    assert relative_error(p, twin) <= (1e-5 if dtype == np.float32 else 1e-12)
    decays = options.keys() & {"l1", "weight_decay", "initial_accumulator_value"}
    assert any(subnormal) or decays or (rule, options.get("momentum")) == ("SGD", None)


@each_dtype
def test_lion_takes_the_sign_of_all_but_subnormal_gradients(dtype: Any) -> None:
    tiny, most = np.finfo(dtype).tiny, np.finfo(dtype).max
    p, g = np.zeros(6, dtype), np.array([0.0, -0.0, most, -most, 16 * tiny, -16 * tiny], dtype)
    opt = optim.Lion([(p, g)], lr=0.25)
    for t in (1, 2, 3):
        opt.step()
        assert p.tolist() == [0, 0, -0.25 * t, 0.25 * t, -0.25 * t, 0.25 * t]
        assert np.isfinite(opt.state_dict()["moments"]["exp_avg"]["0"]).all()
    if platform.machine() in ("x86_64", "AMD64", "aarch64"):  # which have a flush-to-zero mode
        p[...], g[...] = 0, tiny / 4
        optim.Lion([(p, g)], lr=0.25).step()
        assert not p.any()


# ---- second moments at the ends of the range -------------------------------------------------------------------------

WITH_SECOND_MOMENTS: list[tuple[str, dict[str, Any]]] = [
    ("Adam", {}),
    ("Adam", {"betas": (0.9, 0.9)}),
    ("Adam", {"amsgrad": True}),
    ("Adam", {"betas": (0.0, 0.0)}),
    ("AdamW", {"weight_decay": 0.1}),
    ("NAdam", {}),
    ("RAdam", {}),
    ("RMSprop", {}),
    ("RMSprop", {"centered": True}),
    ("RMSprop", {"alpha": 0.9, "momentum": 0.5}),
    ("Adagrad", {}),
    ("SPAM", {"reset_every": 5000}),
]
each_with_second_moments = pytest.mark.parametrize(("rule", "options"), WITH_SECOND_MOMENTS)


@pytest.mark.parametrize("when", [1, 20])
@pytest.mark.parametrize("big", [1e19, 1e21, -1e30, 3e38])
@each_with_second_moments
def test_a_gradient_whose_square_overflows_makes_the_step_of_the_formula(
    rule: str, options: dict[str, Any], big: float, when: int
) -> None:
    """In float64, where its square does not overflow."""
    if rule == "RAdam" and when == 1:
        pytest.skip("its first steps do not divide by the size of the gradient")
    p, g = np.zeros(2, np.float32), np.ones(2, np.float32)
    opt = make(rule, [(p, g)], lr=1.0, **options)
    twin, state = np.zeros(2), {}
    for t in range(1, when + 11):
        g[0] = big if t == when else 1
        opt.step()
        TWINS[rule](twin, g.astype(np.float64), state, t, lr=1.0, **options)
        if t in (when, when + 1, when + 10):
            assert p == pytest.approx(twin, rel=1e-3, abs=1e-3)
    for moment in opt.state_dict()["moments"].values():
        assert np.isfinite(moment["0"]).all()


@pytest.mark.parametrize(
    ("rule", "options", "speed"),
    [
        ("Adam", {"betas": (0.9, 0.9)}, 1.0),
        ("AdamW", {"betas": (0.5, 0.9), "weight_decay": 0.0}, 1.0),
        ("RMSprop", {"alpha": 0.9}, 1.0),
        ("RMSprop", {"alpha": 0.9, "momentum": 0.5}, 2.0),
    ],
)
@each_dtype
def test_a_parameter_moves_again_after_a_gradient_whose_square_overflows(
    rule: str, options: dict[str, Any], speed: float, dtype: Any
) -> None:
    """As soon as the moment has come down from the end of the range, by one tenth a step."""
    most = float(np.finfo(dtype).max)
    p, g = np.zeros(1, dtype), np.array([most / 2], dtype)
    opt = make(rule, [(p, g)], lr=1e-3, **options)
    opt.step()
    g[0] = 1
    for _ in range(math.ceil(math.log(most) / -math.log(0.9)) + 150):
        opt.step()
    before = p.copy()
    opt.step()
    assert before - p == pytest.approx([speed * 1e-3], rel=1e-3)


@each_with_second_moments
def test_the_twin_limits_its_gradients_alike(rule: str, options: dict[str, Any]) -> None:
    p, g = np.zeros(2), np.array([1e300, -1.0])
    opt = make(rule, [(p, g)], **options)
    twin, state = np.zeros(2), {}
    for t in range(1, 101):
        opt.step()
        TWINS[rule](twin, g.copy(), state, t, **options)
        np.testing.assert_allclose(p, twin, rtol=1e-10)
        g[0] = 1e300 if t % 3 == 0 else 1.0
    assert all(np.isfinite(a).all() for a in state.values())


@pytest.mark.parametrize(("dtype", "eps"), [(np.float32, 1e-39), (np.float32, 1e-60), (np.float64, 1e-310)])
@each_with_second_moments
def test_a_gradient_of_zero_moves_nothing_however_small_eps_is(
    rule: str, options: dict[str, Any], dtype: Any, eps: float
) -> None:
    options = {name: value for name, value in options.items() if name != "weight_decay"}
    options |= {"weight_decay": 0.0} if rule == "AdamW" else {}
    for small in (eps, 0.0):
        p, g = np.ones(130, dtype), np.zeros(130, dtype)
        opt = make(rule, [(p, g)], eps=small, **options)
        for _ in range(3):
            opt.step()
        np.testing.assert_array_equal(p, np.ones(130))
        twin, state = np.ones(130), {}
        TWINS[rule](twin, np.zeros(130), state, 1, eps=small, **options)
        np.testing.assert_array_equal(twin, np.ones(130))


@pytest.mark.parametrize("eps", [0.0, 1e-30])
@pytest.mark.parametrize("scale", [1e-12, 1e-18, 1e-21, 1e-30, 1e-37])
@each_with_second_moments
def test_no_step_is_larger_than_the_formulas_where_squares_underflow(
    rule: str, options: dict[str, Any], scale: float, eps: float
) -> None:
    if options.get("centered"):
        pytest.skip("a variance of equal gradients is 0, and the formula divides by it")
    options = {name: value for name, value in options.items() if name != "weight_decay"}
    options |= {"weight_decay": 0.0} if rule == "AdamW" else {}
    p, g = np.zeros(3, np.float32), np.array([scale, -scale, scale / 2], np.float32)
    opt = make(rule, [(p, g)], lr=1.0, eps=eps, **options)
    twin, state, steps = np.zeros(3), {}, []
    for t in range(1, 41):
        before = p.copy(), twin.copy()
        opt.step()
        TWINS[rule](twin, g.astype(np.float64), state, t, lr=1.0, eps=eps, **options)
        steps.append((p - before[0], twin - before[1]))
    got, want = np.abs(steps).max(axis=0)
    assert (got <= want * (1 + 1e-4)).all()
    assert (p * np.sign(g) <= 0).all()
    if scale > 1e-15:
        assert p == pytest.approx(twin, rel=1e-4)


# ---- hyperparameters set between steps -------------------------------------------------------------------------------

CHANGES: dict[str, list[dict[int, dict[str, Any]]]] = {  # what is set before which step
    "SGD": [
        {4: {"momentum": 0.9}, 9: {"dampening": 0.5}, 15: {"momentum": 0.3}},
        {0: {"momentum": 0.9, "dampening": 0.3}, 6: {"momentum": 0.0}, 12: {"momentum": 0.8}},
        {
            3: {"momentum": 0.9},
            5: {"nesterov": True},
            11: {"nesterov": False, "weight_decay": 0.1},
            15: {"maximize": True},
        },
    ],
    "Adam": [
        {0: {"amsgrad": True}, 6: {"amsgrad": False}, 12: {"amsgrad": True}},
        {5: {"betas": (0.5, 0.9), "eps": 1e-3}, 10: {"weight_decay": 0.3, "maximize": True}},
    ],
    "AdamW": [{5: {"weight_decay": 0.3}, 10: {"betas": (0.0, 0.0)}, 15: {"weight_decay": 0.0}}],
    "NAdam": [
        {5: {"betas": (0.5, 0.9), "momentum_decay": 0.1}, 10: {"weight_decay": 0.3, "maximize": True}},
        {0: {"weight_decay": 0.3}, 5: {"decoupled_weight_decay": True}},
    ],
    "RAdam": [
        {5: {"betas": (0.5, 0.9), "eps": 1e-3}, 10: {"weight_decay": 0.3, "maximize": True}},
        {0: {"weight_decay": 0.3}, 12: {"decoupled_weight_decay": True}},
    ],
    "Lion": [{5: {"betas": (0.5, 0.9), "weight_decay": 0.3}, 10: {"lr": 0.1, "maximize": True}}],
    "RMSprop": [
        {0: {"centered": True, "momentum": 0.5}, 6: {"centered": False, "momentum": 0.0}, 12: {"centered": True}},
        {0: {"momentum": 0.5}, 5: {"alpha": 0.5}, 9: {"momentum": 0.9, "eps": 1e-3}, 13: {"weight_decay": 0.1}},
    ],
    "Adagrad": [{4: {"lr_decay": 0.1}, 8: {"eps": 0.1, "weight_decay": 0.1}, 12: {"maximize": True}}],
    "SPAM": [{4: {"reset_every": 7, "warmup_steps": 3}, 9: {"threshold": 4.0, "betas": (0.8, 0.95)}, 13: {"lr": 0.1}}],
}
SWITCHED_ON: dict[str, list[dict[int, dict[str, Any]]]] = {  # where PyTorch raises a KeyError
    "Adam": [{5: {"amsgrad": True}, 10: {"l1": 0.1}}],
    "RMSprop": [{5: {"centered": True}, 10: {"momentum": 0.9}}],
}
CHANGED = [(rule, changes) for rule, cases in CHANGES.items() for changes in cases]


def set_of_second_group(opt: Any, changes: dict[str, Any]) -> None:
    for name, value in changes.items():
        setattr(opt.groups[1], name, value)


@each_dtype
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(
    ("rule", "changes"), CHANGED + [(rule, changes) for rule, cases in SWITCHED_ON.items() for changes in cases]
)
def test_what_is_set_between_steps_takes_effect(rule: str, changes: Any, whole: bool, dtype: Any) -> None:
    pairs, draw = fresh(dtype)
    twin = {name: p.astype(np.float64) for name, (p, _) in pairs.items()}
    states: dict[str, dict[str, Array]] = {name: {} for name in pairs}
    opt = make(rule, pairs if whole else two_groups(pairs, {"lr": 0.02}), lr=0.02)
    options: dict[str, Any] = {"lr": 0.02}
    for t in range(1, 21):
        new = changes.get(t - 1, {})
        if whole:
            for name, value in new.items():
                setattr(opt, name, value)
        else:
            set_of_second_group(opt, new)
        options |= new
        draw()
        before = {name: p.copy() for name, (p, _) in pairs.items()}
        opt.step()
        for name, (_, g) in pairs.items():
            own = options if whole or name not in ("p0", "p1") else {"lr": 0.02}
            gradient = with_l1(g.astype(np.float64), before[name], own)  # which side of zero it is on
            TWINS[rule](twin[name], gradient, states[name], t, **without_l1(own))
    for name, (p, _) in pairs.items():
        assert relative_error(p, twin[name]) <= (1e-5 if dtype == np.float32 else 1e-12)


@pytest.mark.peers
@each_dtype
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(("rule", "changes"), [case for case in CHANGED if case[0] in OF_PYTORCH])
def test_what_is_set_between_steps_takes_effect_as_in_pytorch(
    torch: Any, rule: str, changes: Any, whole: bool, dtype: Any
) -> None:
    pairs, draw = fresh(dtype)
    theirs = {name: torch.nn.Parameter(torch.from_numpy(p.copy())) for name, (p, _) in pairs.items()}
    own = {**changes.get(0, {}), "lr": 0.02}
    opt = make(rule, pairs if whole else two_groups(pairs, own), **(own if whole else {}))
    groups = [group | {"params": list(group["params"].values())} for group in two_groups(theirs, {} if whole else own)]
    other = getattr(torch.optim, rule)(groups, **(own if whole else {}))
    for t in range(20):
        for name, value in changes.get(t, {}).items():
            setattr(opt if whole else opt.groups[1], name, value)
            for group in other.param_groups if whole else other.param_groups[1:]:
                group[name] = value
        draw()
        for name, (_, g) in pairs.items():
            theirs[name].grad = torch.from_numpy(g.copy())
        opt.step()
        other.step()
        for name, (p, _) in pairs.items():
            assert relative_error(p, theirs[name].detach().numpy()) <= (1e-5 if dtype == np.float32 else 1e-12)


@pytest.mark.parametrize(("rule", "changes"), CHANGED)
def test_a_state_is_whole_whatever_was_set_before(rule: str, changes: Any) -> None:
    (pairs, draw), again = fresh(), fresh()[0]
    opt = make(rule, two_groups(pairs, {"lr": 0.02}))
    for t in range(20):
        set_of_second_group(opt, changes.get(t, {}))
        resumed = make(rule, two_groups(again, {}))
        resumed.load_state_dict(copy.deepcopy(opt.state_dict()))
        assert repr(resumed) == repr(opt)
        draw()
        for name, (p, g) in again.items():
            p[...], g[...] = pairs[name]
        opt.step()
        resumed.step()
        assert numbers(resumed) == numbers(opt)
        assert everything(resumed, again) == everything(opt, pairs)


def test_moments_begin_when_they_are_needed() -> None:
    opt = optim.SGD([(np.zeros(2), np.ones(2))])
    opt.step()
    opt.momentum = 0.9
    assert opt.state_dict()["moments"] == {}
    assert opt.step(scale=0.5, max_norm=math.inf) > 0
    assert opt.state_dict()["moments"]["momentum_buffer"]["0"].tolist() == [2.0, 2.0]
    skipped, pair = optim.Adam([(np.zeros(2), np.full(2, np.nan))]), (np.zeros(2), np.ones(2))
    assert skipped.step().skipped
    assert skipped.state_dict()["moments"] == {}
    other = optim.Adam([pair])
    other.step()
    other.load_state_dict(skipped.state_dict())
    assert (other.n_steps, other.state_dict()["moments"]) == (0, {})


WITH_BETAS = ("Adam", "AdamW", "NAdam", "RAdam", "Lion", "SPAM")
BAD_VALUES: list[tuple[str, str, Any, type[Exception]]] = [
    *((rule, "lr", bad, ValueError) for rule in OPTIONS for bad in (-1.0, math.nan)),
    *((rule, "weight_decay", -3.0, ValueError) for rule in OPTIONS),
    *((rule, "l1", "much", TypeError) for rule in OPTIONS),
    *((rule, "maximize", 2, ValueError) for rule in OPTIONS),
    *((rule, "eps", -1e-8, ValueError) for rule in OPTIONS if rule not in ("SGD", "Lion")),
    *((rule, "betas", bad, ValueError) for rule in WITH_BETAS for bad in ((2, 2), (0.9, -0.1))),
    *((rule, "betas", 0.9, TypeError) for rule in WITH_BETAS),
    ("SGD", "momentum", -0.1, ValueError),
    ("SGD", "dampening", None, TypeError),
    ("SGD", "nesterov", "yes", TypeError),
    ("SGD", "nesterov", True, ValueError),  # without momentum
    ("Adam", "amsgrad", "yes", TypeError),
    ("RMSprop", "alpha", -0.5, ValueError),
    ("RMSprop", "momentum", math.nan, ValueError),
    ("RMSprop", "centered", 0.5, TypeError),
    ("Adagrad", "lr_decay", -0.5, ValueError),
    ("Adagrad", "initial_accumulator_value", 0.5, AttributeError),
    ("NAdam", "momentum_decay", -0.1, ValueError),
    ("RAdam", "decoupled_weight_decay", "yes", TypeError),
    ("SPAM", "threshold", -1.0, ValueError),
    ("SPAM", "reset_every", 0, ValueError),
    ("SPAM", "warmup_steps", 1.5, TypeError),
]


@pytest.mark.parametrize(("rule", "name", "bad", "error"), BAD_VALUES)
def test_what_is_out_of_range_is_refused_when_it_is_set(rule: str, name: str, bad: Any, error: type[Exception]) -> None:
    pairs, _ = fresh()
    opt = make(rule, two_groups(pairs, {"lr": 0.1}))
    before = repr((opt, opt.groups))
    for holder, message in ((opt, f"^{name}: "), (opt.groups[1], rf"^(groups\[1\]: )?{name}: ")):
        with pytest.raises(error, match=message):
            setattr(holder, name, bad)
    assert repr((opt, opt.groups)) == before
    with pytest.raises(error, match=name):
        setattr(make(rule, pairs).groups[0], name, bad)


def test_a_nesterov_group_keeps_its_momentum() -> None:
    pairs, _ = fresh()
    opt = optim.SGD(two_groups(pairs, {"nesterov": True}), momentum=0.9)
    with pytest.raises(ValueError, match=r"^groups\[1\]: nesterov: needs a momentum above 0"):
        opt.momentum = 0.0
    opt.groups[1].momentum = 0.5
    opt.momentum = 0.0
    assert [group.momentum for group in opt.groups] == [0.0, 0.5]


def test_what_is_set_comes_back_in_its_own_type() -> None:
    opt = optim.Adam([])
    opt.lr, opt.betas, opt.amsgrad = np.float32(0.5), [0, np.float64(0.5)], np.True_
    assert repr((opt.lr, opt.betas, opt.amsgrad)) == "(0.5, (0.0, 0.5), True)"


@each_rule
def test_a_name_that_a_rule_has_not_is_refused(rule: str) -> None:
    opt = make(rule, [])
    for name in ("learning_rate", "beta", "momentum" if rule in WITH_BETAS else "warmup"):
        with pytest.raises(AttributeError, match=f"^{rule} has no '{name}'"):
            setattr(opt, name, 1.0)
    for bad in (-1, 0.5, True):
        with pytest.raises((TypeError, ValueError), match="max_consecutive_skips"):
            opt.max_consecutive_skips = bad
    opt.max_consecutive_skips = 3
    assert "max_consecutive_skips=3" in repr(opt)


# ---- copies ----------------------------------------------------------------------------------------------------------

COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
}
each_copy = pytest.mark.parametrize("kind", COPIES)


@each_copy
@each_rule
def test_a_copied_group_is_one_of_the_copied_optimizer(rule: str, kind: str) -> None:
    pairs, _ = fresh()
    opt = make(rule, two_groups(pairs, {"lr": 0.5}))
    for group in (*opt.groups, make(rule, pairs).groups[0]):
        twin = COPIES[kind](group)
        assert repr(twin) == repr(group)
        twin.lr = 0.125
        assert (twin.lr, group.lr != 0.125) == (0.125, True)
    other, group = COPIES[kind]((opt, opt.groups[1]))
    group.lr = 0.125
    assert (other.groups[1].lr, opt.groups[1].lr) == (0.125, 0.5)
    same = copy.copy(opt.groups[1])
    same.lr = 0.25
    assert opt.groups[1].lr == 0.25


@each_copy
@each_case
def test_arrays_and_optimizer_stay_together_when_they_are_copied(rule: str, options: dict[str, Any], kind: str) -> None:
    pairs, draw = fresh()
    opt = make(rule, two_groups(pairs, OTHERS[rule]), **options)
    opt.step()
    others, other = COPIES[kind]((pairs, opt))
    draw()
    for name, (_, g) in others.items():
        g[...] = pairs[name][1]
    before = everything(opt, pairs)
    other.step()
    assert everything(opt, pairs) == before
    opt.step()
    assert everything(other, others) == everything(opt, pairs) != before


@each_copy
@pytest.mark.parametrize("given", [lambda layer, model: model, lambda layer, model: [layer, model.layers[1]]])
def test_model_and_optimizer_stay_together_when_they_are_copied(given: Any, kind: str) -> None:
    layer = gradcore.Linear(4, 3)
    model = gradcore.Sequential(layer, gradcore.Linear(3, 2))
    opt = optim.Adam(given(layer, model), lr=0.1)
    opt.step()
    for copied in (COPIES[kind]((model, opt)), COPIES[kind]((opt, model))[::-1]):
        other_model, other = copied
        other_model.flat_grads[...] = 1
        before = other_model.flat_params.copy()
        other.step()
        assert (other_model.flat_params != before).all()
        assert same_bits(model.flat_params, before)
        other.zero_grad()
        assert not other_model.flat_grads.any()


@each_copy
def test_pairs_of_views_are_not_copied(kind: str) -> None:
    layer, whole = gradcore.Linear(4, 3), np.zeros(9)
    refused: list[Any] = [
        {name: (p, layer.grads[name]) for name, p in layer.params.items()},
        [(whole[:4], np.zeros(4))],
        [(np.zeros(4), whole[:4])],
        [(np.zeros(4), memoryview(np.zeros(4)))],
        [gradcore.Linear(2, 2), (whole[:4], np.zeros(4))],
        [{"params": layer}, {"params": {"w": (whole[:4], np.zeros(4))}}],
    ]
    for given in refused:
        with pytest.raises(TypeError, match=r"^cannot copy or pickle this SGD: params\[.*\] has a view"):
            COPIES[kind]((layer, optim.SGD(given)))
    optim.SGD(refused[0], momentum=0.9).load_state_dict(COPIES[kind](optim.SGD(layer).state_dict()))


@each_case
def test_a_shallow_copy_has_moments_and_counters_of_its_own(rule: str, options: dict[str, Any]) -> None:
    pairs, draw = fresh()
    opt = make(rule, two_groups(pairs, OTHERS[rule]), **options)
    opt.step()
    state = copy.deepcopy(opt.state_dict())
    other = copy.copy(opt)
    assert numbers(other) == numbers(opt)
    before = {name: p.copy() for name, (p, _) in pairs.items()}
    other.groups[1].lr = other.lr = 0.7
    draw()
    other.step()
    assert any((p != before[name]).any() for name, (p, _) in pairs.items())
    assert (opt.n_steps, other.n_steps) == (1, 2)
    for name, p in before.items():
        pairs[name][0][...] = p
    moments = everything(opt, pairs)
    opt.load_state_dict(state)
    assert everything(opt, pairs) == moments


# ---- SPAM ------------------------------------------------------------------------------------------------------------


def test_10000_steps_of_spam_are_the_published_ones() -> None:
    theta, reset_every, N, lr, beta1, beta2, eps, decay = 50.0, 300, 40, 0.01, 0.9, 0.999, 1e-6, 0.01
    rng = np.random.default_rng(0)
    p, g = rng.standard_normal(60), np.zeros(60)
    want, m, v, n_spikes = p.copy(), np.zeros(60), np.zeros(60), 0
    opt = optim.SPAM([(p, g)], lr, (beta1, beta2), eps, decay, theta, reset_every, N)
    for t in range(1, 10_001):
        g[...] = want + rng.standard_normal(60)
        g[rng.random(60) < 0.01] *= 1000
        opt.step()

        if t % reset_every == 0:
            m[:], v[:] = 0, 0
        d = g.copy()
        for i in range(60):
            if v[i] > 0 and d[i] ** 2 > theta * v[i]:
                d[i] = math.copysign(math.sqrt(theta * v[i]), d[i])
                n_spikes += 1
        m = beta1 * m + (1 - beta1) * d
        v = beta2 * v + (1 - beta2) * d**2
        steps_since = t - t // reset_every * reset_every
        warm = 1.0
        if t >= reset_every and steps_since < N:
            warm = 0.01 + 0.99 * (1 - math.cos(math.pi * steps_since / (N + 1))) / 2
        update = m / (1 - beta1**t) / (np.sqrt(v / (1 - beta2**t)) + eps)
        want = want - lr * decay * want - lr * warm * update
    assert relative_error(p, want) <= 1e-12
    assert opt.n_spikes == n_spikes > 5000


def test_spikes_are_counted_alike_by_any_number_of_threads(
    with_thread_counts: Callable[[Callable[[], Any]], list[Any]],
) -> None:
    rng = np.random.default_rng(0)
    size = 33 * BLOCK + 1
    gradients = rng.standard_normal((4, size), np.float32)
    high = rng.random((4, size)) < 0.001
    gradients[high] *= 1e6

    def run() -> tuple[int, list[bytes]]:
        pairs = {"p": (np.ones(size, np.float32), np.zeros(size, np.float32)), "q": (np.ones(3), np.ones(3))}
        opt = optim.SPAM(pairs)
        for gradient in gradients:
            pairs["p"][1][...] = gradient
            opt.step()
        return opt.n_spikes, everything(opt, pairs)

    results = with_thread_counts(run)
    assert all(result == results[0] for result in results)
    assert results[0][0] >= high[1:].sum()


def test_the_size_of_a_spike_does_not_matter() -> None:
    states = []
    for spike in (1e3, 1e30):
        p, g = np.ones(4, np.float32), np.ones(4, np.float32)
        opt = optim.SPAM([(p, g)])
        opt.step()
        g[2] = -spike
        opt.step()
        assert opt.n_spikes == 1
        states.append(everything(opt, {"p": (p, g)}))
    assert states[0] == states[1]


def test_a_reset_heals_a_moment_at_the_end_of_the_range() -> None:
    p, g = np.ones(2, np.float32), np.array([1e30, 1], np.float32)
    opt = optim.SPAM([(p, g)], reset_every=3)
    opt.step()
    assert opt.state_dict()["moments"]["exp_avg_sq"]["0"][0] > 1e35
    g[...] = 1
    for _ in range(2):
        opt.step()
    moments = opt.state_dict()["moments"]
    assert moments["exp_avg"]["0"] == pytest.approx(0.1)
    assert moments["exp_avg_sq"]["0"] == pytest.approx(0.001)


# ---- groups ----------------------------------------------------------------------------------------------------------


@each_dtype
@each_case
@pytest.mark.parametrize("max_norm", [None, 300.0])
def test_groups_agree_with_the_twin(rule: str, options: dict[str, Any], dtype: Any, max_norm: float | None) -> None:
    pairs, draw = fresh(dtype)
    twin = {name: p.astype(np.float64) for name, (p, _) in pairs.items()}
    states: dict[str, dict[str, Array]] = {name: {} for name in pairs}
    opt = make(rule, two_groups(pairs, OTHERS[rule]), **options)
    for t in range(1, 31):
        draw()
        for _, g in pairs.values():
            np.multiply(g, 1000, out=g)
        kept = [g.tobytes() for _, g in pairs.values()]
        before = {name: p.copy() for name, (p, _) in pairs.items()}
        norm = opt.step(max_norm)
        assert norm.clipped == (max_norm is not None)
        assert norm == pytest.approx(
            math.sqrt(sum(float(np.sum(np.square(g, dtype=float))) for _, g in pairs.values()))
        )
        assert [g.tobytes() for _, g in pairs.values()] == kept
        for name, (_, g) in pairs.items():
            own = options if name in ("p0", "p1") else options | OTHERS[rule]
            # An l1 takes parameters to and fro around zero: the twin must not decide for itself on which side it is.
            gradient = with_l1(norm.coef * g.astype(np.float64), before[name], own)
            TWINS[rule](twin[name], gradient, states[name], t, **without_l1(own))
    for name, (p, _) in pairs.items():
        assert relative_error(p, twin[name]) <= (1e-5 if dtype == np.float32 else 1e-12)


@each_case
def test_groups_that_differ_in_nothing_are_one(rule: str, options: dict[str, Any]) -> None:
    (pairs, draw), (others, draw_others) = fresh(), fresh()
    one, two = make(rule, pairs, **options), make(rule, two_groups(others, {}), **options)
    for _ in range(4):
        draw()
        draw_others()
        assert one.step(max_norm=0.5) == two.step(max_norm=0.5)
    assert sorted(everything(one, pairs)) == sorted(everything(two, others))


@each_case
def test_groups_resume_where_they_stopped(rule: str, options: dict[str, Any]) -> None:
    (pairs, draw), again = fresh(), fresh()[0]
    opt = make(rule, two_groups(pairs, OTHERS[rule]), **options)
    for _ in range(3):
        draw()
        opt.step(max_norm=1.0)
    opt.groups[0].lr = 0.03
    opt.groups[1].weight_decay = 0.2
    resumed = make(rule, two_groups(again, OTHERS[rule]), **options)
    resumed.load_state_dict(copy.deepcopy(opt.state_dict()))
    assert numbers(resumed) == numbers(opt)
    assert repr(resumed) == repr(opt)
    for name, (p, g) in again.items():
        p[...] = pairs[name][0]
        g[...] = pairs[name][1]
    for _ in range(3):
        opt.step(max_norm=1.0)
        resumed.step(max_norm=1.0)
    assert everything(opt, pairs) == everything(resumed, again)


def test_a_group_has_the_optimizers_hyperparameters_but_for_its_own() -> None:
    w, b = np.zeros(1), np.zeros(1)
    opt = optim.SGD([{"params": [(w, np.ones(1))]}, {"params": [(b, np.ones(1))], "lr": 1.0}], lr=0.5)
    assert [group.lr for group in opt.groups] == [0.5, 1.0]
    opt.lr = 0.25
    assert [group.lr for group in opt.groups] == [0.25, 1.0]
    opt.groups[1].lr = 2.0
    assert (opt.lr, opt.groups[1].lr) == (0.25, 2.0)
    opt.step()
    assert (w[0], b[0]) == (-0.25, -2.0)
    assert "lr=2.0, momentum=0.0" in repr(opt.groups[1])
    for name in ("learning_rate", "n_steps", "_own_lr"):
        with pytest.raises(AttributeError, match=f"a group of SGD has no '{name}'"):
            setattr(opt.groups[0], name, 1.0)
        with pytest.raises(AttributeError, match=f"a group of SGD has no '{name}'"):
            getattr(opt.groups[0], name)
    with pytest.raises(ValueError, match=r"^groups\[1\]: lr: expected a number"):
        opt.groups[1].lr = math.nan
    assert (opt.lr, opt.groups[1].lr) == (0.25, 2.0)


def test_nothing_keeps_a_dropped_optimizer_alive() -> None:
    opt = optim.Adam([{"params": [(np.ones(1), np.ones(1))]}, {"params": [], "lr": 1.0}])
    opt.step()
    assert opt.groups[1].lr == 1
    gone = weakref.ref(opt)
    gc.disable()  # the moments go at once, not when cycles are looked for
    try:
        del opt
        assert gone() is None
    finally:
        gc.enable()


def test_an_only_group_is_the_optimizer() -> None:
    p = np.zeros(1)
    opt = optim.SGD(iter([{"params": {"w": (p, np.ones(1))}, "lr": 0.25}]), lr=0.5)
    assert (opt.lr, list(opt.grads)) == (0.25, ["w"])
    opt.groups[0].lr *= 2
    assert opt.lr == 0.5
    opt.step()
    assert p[0] == -0.5


@pytest.mark.parametrize("rule", OPTIONS)
def test_no_group_steps_where_one_has_no_memory(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [(np.ones(3), np.full(3, 0.5)), (np.ones(2), np.full(2, 0.5))]
    opt = getattr(optim, rule)([{"params": [pair]} for pair in pairs], **({"reset_every": 2} if rule == "SPAM" else {}))
    opt.step()
    limit, made = threshold.FromFirst(steps=2), []

    def state() -> str:
        return repr((pairs, opt.state_dict(), limit.state_dict()))

    def update(*arguments: Any) -> Any:
        made.append(_kernels.Update(*arguments))
        if len(made) == 2:
            raise MemoryError
        return made[-1]

    before = state()
    with monkeypatch.context() as patch:
        patch.setattr("gradcore.optim.optimizer._kernels", SimpleNamespace(**{**vars(_kernels), "Update": update}))
        with pytest.raises(MemoryError):
            opt.step(limit)
    assert state() == before
    opt.step(limit)
    assert state() != before


def test_names_stay_different_in_groups() -> None:
    layers = [gradcore.Linear(2, 3), gradcore.Linear(3, 1)]
    layers[0].flat_grads[...] = 1
    pair = (np.zeros(1, np.float32), np.full(1, 4, np.float32))
    groups: list[Any] = [{"params": layers[0]}, {"params": layers[1], "lr": 0.1}, {"params": [pair]}]
    opt = optim.Adam(groups)
    names = ["0.weight", "0.bias", "1.weight", "1.bias", "2.0"]
    assert list(opt.grads) == names
    norm = opt.step()
    assert norm == 5
    assert norm.per_array == {
        "0.weight": pytest.approx(6**0.5), "0.bias": pytest.approx(3**0.5), "1.weight": 0, "1.bias": 0, "2.0": 4,
    }  # fmt: skip
    assert norm.worst == ("2.0", (0,))
    assert list(opt.state_dict()["moments"]["exp_avg"]) == names
    model = gradcore.Sequential(*layers)  # moves the parameters
    model.flat_grads[...] = 1
    before = model.flat_params.copy()
    opt.step()
    assert (model.flat_params != before).all()
    opt.zero_grad()
    assert not model.flat_grads.any()


@pytest.mark.parametrize(
    ("groups", "error", "message"),
    [
        ([{"params": []}, 5], TypeError, r'params\[1\]: expected a dict with "params", got int'),
        (
            [{"params": []}, {"lr": 0.1}],
            TypeError,
            r"params\[1\]: expected a dict with \"params\", got one of \['lr'\]",
        ),
        ([{"params": [], "beta": 0.1}], TypeError, r"params\[0\]: expected lr, momentum, .*, got 'beta'"),
        ([{"params": [], "lr": -1.0}], ValueError, r"params\[0\]: lr: expected a number .*at least 0, got -1"),
        ([{"params": [], "nesterov": True}], ValueError, r"params\[0\]: nesterov: needs a momentum"),
        ([{"params": 5}], TypeError, r"params\[0\]\['params'\]: expected a layer"),
        ([{"params": [np.ones(2)]}], TypeError, r"params\[0\]\['params'\]\[0\]: expected a layer or a pair"),
        (
            [{"params": {"v": (SHARED, np.ones(8))}}, {"params": [(SHARED[2:4], np.ones(2))]}],
            ValueError,
            r"^params\[0\]\['params'\]\['v'\] and params\[1\]\['params'\]\[0\] overlap",
        ),
        ([{"params": LAYER}, {"params": LAYER}], ValueError, r"params\[0\]\['params'\]\['weight'\] and .* overlap"),
    ],
)
def test_groups_that_cannot_be_are_refused(groups: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        optim.SGD(groups)


# ---- state -----------------------------------------------------------------------------------------------------------


@each_case
def test_a_resumed_run_is_the_run_that_never_stopped(rule: str, options: dict[str, Any]) -> None:
    pairs, draw = fresh(np.float32)
    opt = make(rule, pairs, **options)
    for i in range(7):
        draw()
        if i == 3:
            opt.lr *= 0.5
            pairs["p0"][1][0, 0] = math.nan
        opt.step(max_norm=1.0)
    state = copy.deepcopy(opt.state_dict())
    again = {name: (p.copy(), np.zeros_like(g)) for name, (p, g) in pairs.items()}
    resumed = make(rule, again, **(options | {"lr": 123.0}))
    resumed.load_state_dict(state)
    assert (resumed.n_steps, resumed.n_skipped, resumed.lr) == (6, 1, opt.lr)
    assert numbers(resumed) == numbers(opt)
    for _ in range(5):
        draw()
        for name, (_, g) in pairs.items():
            again[name][1][...] = g
        opt.step(max_norm=1.0)
        resumed.step(max_norm=1.0)
    assert everything(opt, pairs) == everything(resumed, again)


@each_case
def test_a_schedule_is_a_number_set_before_every_step(rule: str, options: dict[str, Any]) -> None:
    lr = schedule.chain((schedule.linear(0.0, 0.1, 3), 3), schedule.cosine(0.1, 0.01, 5))
    max_norm = schedule.exponential(2.0, 0.7)
    (pairs, draw), (others, draw_others) = fresh(), fresh()
    opt, want = make(rule, pairs, **(options | {"lr": lr})), make(rule, others, **options)
    taken = 0
    for t in range(12):
        draw()
        draw_others()
        if t in (0, 5):  # a skipped step is no step
            for each in (pairs, others):
                each["p0"][1][0, 0] = math.nan
        want.lr = lr(taken)
        norm, expected = opt.step(max_norm), want.step(max_norm(taken))
        assert (norm.max_norm, norm.coef, norm.skipped) == (max_norm(taken), expected.coef, t in (0, 5))
        taken += not norm.skipped
    assert everything(opt, pairs) == everything(want, others)
    assert opt.lr == lr


def test_any_callable_of_the_step_is_a_schedule() -> None:
    p, seen = np.zeros(1), []
    opt = optim.SGD([(p, np.ones(1))], lr=lambda step: seen.append(step) or np.float32(0.5))
    for _ in range(3):
        opt.step(max_norm=lambda step: 1 if step < 2 else 0)
    assert seen == [0, 1, 2]
    assert p[0] == -1


@each_case
def test_a_threshold_in_the_step_is_one_before_it(rule: str, options: dict[str, Any]) -> None:
    (pairs, draw), (others, draw_others) = fresh(), fresh()
    opt, plain = make(rule, pairs, **options), make(rule, others, **options)
    inside, before = (threshold.ZClip(warmup_steps=3, z_thresh=0.5) for _ in range(2))
    clipped = 0
    for t in range(30):
        draw()
        draw_others()
        if t in (1, 20):
            for each in (pairs, others):
                each["p2"][1][BLOCK] = math.inf
        norm, want = opt.step(inside), clip_grad_norm_(plain, before, nonfinite="skip")
        plain.step()
        assert (norm, norm.max_norm, norm.coef, norm.skipped) == (want, want.max_norm, want.coef, t in (1, 20))
        clipped += norm.clipped
    assert clipped > 3
    assert everything(opt, pairs) == everything(plain, others)
    assert inside.state_dict()["mean"] == before.state_dict()["mean"]


def test_a_threshold_sees_no_step_that_is_not_taken() -> None:
    g, limits = np.array([3.0, math.nan]), threshold.AutoClip()
    opt = optim.SGD([(np.zeros(2), g)], max_consecutive_skips=1)
    assert opt.step(limits).max_norm == math.inf
    for arguments in ({}, {"nonfinite": "raise"}):
        with pytest.raises(FloatingPointError):
            opt.step(limits, **arguments)
    g[1] = 4
    opt.lr = lambda step: -1.0
    with pytest.raises(ValueError, match="lr: expected a number at least 0, got -1"):
        opt.step(limits)
    assert len(limits.state_dict()["norms"]) == 0
    opt.lr = 0.1
    g[1] = math.inf
    assert opt.step(limits, nonfinite="zero").max_norm == 3
    assert limits.state_dict()["norms"].tolist() == [3.0]


def test_groups_have_schedules_of_their_own() -> None:
    w, b, c = np.zeros(1), np.zeros(1), np.zeros(1)
    opt = optim.SGD(
        [
            {"params": [(w, np.ones(1))]},
            {"params": [(b, np.ones(1))], "lr": schedule.constant(2.0)},
            {"params": [(c, np.ones(1))], "lr": 0.125},
        ],
        lr=schedule.linear(1.0, 0.0, 4),
    )
    opt.step()
    opt.step()
    assert (w[0], b[0], c[0]) == (-1.75, -4.0, -0.25)
    state = opt.state_dict()
    assert state["hyperparameters"]["lr"] == 0.5
    assert state["groups"] == [{}, {"lr": 2.0}, {"lr": 0.125}]
    opt.groups[2].lr = schedule.exponential(1.0, 0.5)
    opt.load_state_dict(state)
    assert [group.lr for group in opt.groups] == [
        schedule.linear(1.0, 0.0, 4), schedule.constant(2.0), schedule.exponential(1.0, 0.5),
    ]  # fmt: skip
    assert optim.SGD(iter([{"params": [], "lr": schedule.constant(2.0)}])).lr == schedule.constant(2.0)


@each_case
def test_a_run_with_a_schedule_resumes_where_it_stopped(rule: str, options: dict[str, Any]) -> None:
    options = options | {"lr": schedule.cosine(0.1, 0.0, 8)}
    pairs, draw = fresh(np.float32)
    opt = make(rule, pairs, **options)
    for _ in range(4):
        draw()
        opt.step()
    state = copy.deepcopy(opt.state_dict())
    assert state["hyperparameters"]["lr"] == options["lr"](4)
    again = {name: (p.copy(), np.zeros_like(g)) for name, (p, g) in pairs.items()}
    resumed, plain = make(rule, again, **options), make(rule, fresh(np.float32)[0], **(options | {"lr": 1.0}))
    resumed.load_state_dict(state)
    plain.load_state_dict(state)
    assert (resumed.lr, plain.lr) == (options["lr"], options["lr"](4))
    for _ in range(6):
        draw()
        for name, (_, g) in pairs.items():
            again[name][1][...] = g
        opt.step()
        resumed.step()
    assert everything(opt, pairs) == everything(resumed, again)


def test_a_schedule_shows_where_it_comes_from() -> None:
    assert repr(optim.Adam([], lr=schedule.constant(0.5))).startswith("Adam(lr=constant(value=0.5), betas")
    with pytest.raises(TypeError, match="weight_decay: expected a number, got constant"):
        optim.Adam([], weight_decay=schedule.constant(0.5))  # type: ignore[arg-type]


@pytest.mark.parametrize("answer", [-1.0, math.nan, None, "fast"])
@pytest.mark.parametrize("name", ["lr", "max_norm"])
def test_a_schedule_that_gives_no_number_changes_nothing(name: str, answer: Any) -> None:
    pairs, _ = fresh()
    opt = optim.Adam(pairs)
    before = everything(opt, pairs)
    if name == "lr":
        opt.lr = lambda step: answer
    with pytest.raises((TypeError, ValueError), match=f"^{name}: expected a number"):
        opt.step(max_norm=(lambda step: answer) if name == "max_norm" else None)
    opt.lr = 0.1
    assert everything(opt, pairs) == before
    assert opt.n_steps == 0


def test_a_state_dict_is_a_copy() -> None:
    p, g = np.zeros(3), np.ones(3)
    opt = optim.Adam([(p, g)])
    opt.step()
    state = opt.state_dict()
    state["moments"]["exp_avg"]["0"][...] = 99
    assert opt.state_dict()["moments"]["exp_avg"]["0"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda s: s.update(rule="SGD"), ValueError, "expected the state of Adam, got 'SGD'"),
        (lambda s: s.pop("n_steps"), KeyError, "n_steps"),
        (lambda s: s.update(n_steps=-1), ValueError, "n_steps"),
        (lambda s: s.update(n_skipped=0.5), TypeError, "n_skipped"),
        (lambda s: s.pop("n_consecutive_skips"), KeyError, "n_consecutive_skips"),
        (lambda s: s.update(last_norm=-1.0), ValueError, "last_norm"),
        (lambda s: s.update(groups=[]), ValueError, "groups: expected 1, got 0"),
        (lambda s: s.update(groups=[3]), TypeError, r"groups\[0\]: expected a dict, got int"),
        (lambda s: s.update(groups=[{"momentum": 0.5}]), TypeError, r"groups\[0\]: expected lr, .*, got 'momentum'"),
        (lambda s: s.update(groups=[{"betas": (0.5, 2.0)}]), ValueError, r"groups\[0\]: betas"),
        (lambda s: s["hyperparameters"].pop("lr"), KeyError, "lr"),
        (lambda s: s["hyperparameters"].update(lr=math.nan), ValueError, "lr"),
        (lambda s: s["hyperparameters"].update(betas=(0.9, 1.0)), ValueError, "betas"),
        (lambda s: s["moments"].pop("exp_avg"), KeyError, "exp_avg"),
        (lambda s: s["moments"]["exp_avg"].update(other=np.zeros(3)), KeyError, "other"),
        (lambda s: s["moments"]["exp_avg_sq"].update(w=np.zeros(4)), ValueError, "expected shape"),
        (lambda s: s["moments"]["exp_avg_sq"].update(w=np.zeros(3, np.float32)), TypeError, "float64"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(
    change: Callable[[dict[str, Any]], Any], error: type[Exception], message: str
) -> None:
    pairs = {"w": (np.zeros(3), np.ones(3))}
    opt = optim.Adam(pairs)
    opt.step()
    other = optim.Adam({"w": (np.zeros(3), np.ones(3))}, lr=0.5)
    for _ in range(4):
        other.step()
    state = other.state_dict()
    change(state)
    before, numbers = everything(opt, pairs), repr(opt)
    with pytest.raises(error, match=message):
        opt.load_state_dict(state)
    assert everything(opt, pairs) == before
    assert (repr(opt), opt.n_steps) == (numbers, 1)


# ---- what is updated -------------------------------------------------------------------------------------------------


@each_rule
def test_a_layer_is_updated_like_its_arrays(rule: str) -> None:
    layer = gradcore.LSTM(3, 70)
    layer.flat_grads[...] = np.random.default_rng(1).standard_normal(layer.flat_grads.size)
    pairs = {name: (p.copy(), layer.grads[name].copy()) for name, p in layer.params.items()}
    of_layer, of_pairs = make(rule, layer), make(rule, pairs)
    for _ in range(3):
        assert of_layer.step(max_norm=1.0).per_array == of_pairs.step(max_norm=1.0).per_array
    assert all(same_bits(layer.params[name], p) for name, (p, _) in pairs.items())
    of_pairs.load_state_dict(of_layer.state_dict())
    of_layer.zero_grad()
    assert not layer.flat_grads.any()


def test_a_layer_that_joins_a_model_later_is_still_updated() -> None:
    layer = gradcore.Linear(4, 3)
    opt = optim.SGD(layer, lr=1.0)
    model = gradcore.Sequential(layer, gradcore.Linear(3, 2))
    model.flat_grads[...] = 1
    before = model.flat_params.copy()
    opt.step()
    changed = model.flat_params != before
    assert changed[: layer.flat_params.size].all()
    assert not changed[layer.flat_params.size :].any()


def test_a_list_of_layers_is_updated_like_their_model() -> None:
    def layers() -> list[Any]:
        return [gradcore.GRU(3, 4, rng=np.random.default_rng(0)), gradcore.Linear(4, 2, rng=np.random.default_rng(1))]

    listed, joined = layers(), layers()
    model = gradcore.Sequential(*joined)
    opt, of_model = optim.Adam(iter(listed), lr=0.1), optim.Adam(model, lr=0.1)
    assert list(opt.params) == list(model.params)
    for t in range(6):
        if t == 3:
            whole = gradcore.Sequential(*listed)  # moves the parameters
        rng = np.random.default_rng(t)
        for one, other in zip(listed, joined, strict=True):
            one.flat_grads[...] = other.flat_grads[...] = rng.standard_normal(one.flat_grads.size)
        assert opt.step(max_norm=1.0).per_array == of_model.step(max_norm=1.0).per_array
    assert same_bits(whole.flat_params, model.flat_params)
    opt.zero_grad()
    assert not whole.flat_grads.any()
    opt.load_state_dict(of_model.state_dict())


def test_layers_and_pairs_go_together() -> None:
    first, second, w, g = gradcore.Linear(2, 3), gradcore.Linear(3, 1), np.zeros(2, np.float32), np.ones(2, np.float32)
    assert list(optim.SGD([first, (w, g)]).grads) == ["0.weight", "0.bias", "1"]
    assert list(optim.SGD({"a": first, "b": (w, g)}).grads) == ["a.weight", "a.bias", "b"]
    groups = optim.SGD([{"params": [first, second]}, {"params": {"w": (w, g)}, "lr": 0.5}])
    assert list(groups.grads) == ["0.0.weight", "0.0.bias", "0.1.weight", "0.1.bias", "1.w"]
    groups.step()
    assert w.tolist() == [-0.5, -0.5]
    with pytest.raises(ValueError, match=r"params\['0.weight'\] and .*params\['1.0.weight'\] overlap"):
        optim.SGD([first, gradcore.Sequential(first)])
    with pytest.raises(TypeError, match="params: expected an ordered collection, got set"):
        optim.SGD({first, second})
    done = gradcore.clip_grad_units_([second, (w, g)])
    assert list(done.n_clipped) == ["0.weight", "0.bias", "1"]


def test_parameters_are_read_again_when_a_layer_has_moved_them() -> None:
    layer, other = gradcore.Linear(2, 2), gradcore.Linear(2, 2)
    opt = optim.SGD([layer, other])
    assert opt.step() == 0
    model = gradcore.Sequential(layer, gradcore.Linear(2, 2))
    model.flat_grads[...] = 1
    assert opt.step() == 6**0.5
    assert np.shares_memory(opt.params["0.weight"], model.flat_params)
    assert np.shares_memory(opt.params["1.weight"], other.flat_params)


@pytest.mark.peers
def test_a_torch_parameter_is_no_gradient_of_a_pair() -> None:
    torch = pytest.importorskip("torch")
    parameter, tensor = torch.nn.Parameter(torch.ones(2)), torch.ones(2)
    parameter.grad = torch.ones(2)
    for held in (parameter, torch.nn.Parameter(torch.ones(2)), torch.ones(2, requires_grad=True)):
        with pytest.raises(TypeError, match=r"^gradient of params\[0\]: expected an array, got .*whose .grad can be"):
            optim.SGD([(np.zeros(2, np.float32), held)])
    w = np.zeros(2, np.float32)
    for fixed in (tensor, parameter.grad):
        optim.SGD([(w, fixed)], lr=0.5).step()
    assert w.tolist() == [-1.0, -1.0]


@pytest.mark.parametrize(
    ("rule", "options", "layout"), [(*case, WRITABLE[i % len(WRITABLE)]) for i, case in enumerate(CASES)]
)
def test_strided_parameters_and_gradients(rule: str, options: dict[str, Any], layout: str) -> None:
    rng = np.random.default_rng(0)
    p, g = rng.standard_normal((5, 7)), rng.standard_normal((5, 7))
    strided = LAYOUTS[layout](p.copy()), LAYOUTS[layout](g.copy())
    want, got = make(rule, [(p, g)], **options), make(rule, [strided], **options)
    for _ in range(3):
        want.step(max_norm=1.0)
        got.step(max_norm=1.0)
    assert same_bits(strided[0], p)


def test_pairs_without_names_are_numbered() -> None:
    pairs = [(np.ones(4), np.full(4, 2.0)), (np.ones(9), np.ones(9))]
    opt = optim.SGD(iter(pairs), lr=0.5)
    norm = opt.step()
    assert norm == 5
    assert norm.per_array.tolist() == [4.0, 3.0]
    assert pairs[0][0].tolist() == [0.0] * 4
    opt.zero_grad()
    assert opt.step() == 0


def test_parameters_of_both_dtypes() -> None:
    pairs = [(np.ones(3, np.float32), np.ones(3, np.float32)), (np.ones(3), np.ones(3))]
    opt = optim.Adam(pairs, lr=0.1)
    opt.step()
    assert pairs[0][0] == pytest.approx(pairs[1][0], rel=1e-6)


def test_nothing_to_update() -> None:
    assert optim.Adam([]).step(max_norm=1.0) == 0


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        (5, TypeError, "params: expected a layer, a model, or a dict"),
        ([np.ones(2)], TypeError, r"params\[0\]: expected a layer or a pair"),
        ((np.ones((2, 3)), np.ones((2, 3))), TypeError, r"params\[0\]: expected a layer or a pair"),
        ({"w": (np.ones(2),)}, TypeError, r"params\['w'\]: expected a layer or a pair"),
        ({"w": ([1.0], np.ones(1))}, TypeError, r"params\['w'\]: expected a NumPy array"),
        ({"w": (np.ones(2), None)}, TypeError, r"gradient of params\['w'\]: expected an array, got None"),
        ({"w": (np.ones(2), np.ones(3))}, ValueError, r"gradient of params\['w'\]: expected shape \(2,\), got \(3,\)"),
        ({"w": (np.ones(2), np.ones(2, np.float32))}, TypeError, r"expected float64, got float32"),
        ({"w": (np.ones(2, np.float16), np.ones(2, np.float16))}, TypeError, "expected float32 or float64"),
        ({"w": (np.ones(2, int), np.ones(2, int))}, TypeError, "expected float32 or float64"),
        (
            {"w": (LAYOUTS["read-only"](np.ones(2)), np.ones(2))},
            ValueError,
            r"params\['w'\]: expected a writable array",
        ),
        ({"w": (np.ma.ones(2), np.ones(2))}, TypeError, r"params\['w'\]: masked arrays"),
        ({1: (np.ones(2), np.ones(2)), "1": (np.ones(2), np.ones(2))}, ValueError, "params: keys must stay distinct"),
        ({"w": (SHARED, SHARED)}, ValueError, "overlap in memory"),
        (
            {"v": (SHARED, np.ones(8)), "w": (SHARED, np.ones(8))},
            ValueError,
            r"params\['v'\] and params\['w'\] overlap",
        ),
        ({"w": (SHARED[:4], SHARED[3:7])}, ValueError, r"params\['w'\] and gradient of params\['w'\] overlap"),
    ],
)
def test_what_cannot_be_updated_is_refused(params: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        optim.SGD(params)


def test_an_exhausted_iterator_of_parameters_warns() -> None:
    pairs = ((np.ones(2), np.ones(2)) for _ in range(1))
    assert len(optim.SGD(pairs).grads) == 1
    with pytest.warns(UserWarning, match="params: the iterator is empty") as warned:
        optim.SGD(pairs)
    assert warned[0].filename == __file__


@pytest.mark.parametrize("betas", [0.9, (0.9,), (0.9, 0.99, 0.999), None, ("a", "b")])
def test_betas_are_two_numbers(betas: Any) -> None:
    with pytest.raises(TypeError, match="betas: expected "):
        optim.Adam([(np.ones(2), np.ones(2))], betas=betas)


def test_a_state_that_is_no_mapping_is_refused() -> None:
    with pytest.raises(TypeError, match="state_dict: expected a mapping, got NoneType"):
        optim.SGD([(np.ones(2), np.ones(2))]).load_state_dict(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        ("SGD", {"lr": -1.0}, "lr"),
        ("SGD", {"lr": math.nan}, "lr"),
        ("SGD", {"momentum": -0.1}, "momentum"),
        ("SGD", {"nesterov": True}, "nesterov"),
        ("SGD", {"nesterov": True, "momentum": 0.9, "dampening": 0.1}, "nesterov"),
        ("Adam", {"betas": (1.0, 0.9)}, "betas"),
        ("Adam", {"betas": (0.9, -0.1)}, "betas"),
        ("Adam", {"eps": -1e-8}, "eps"),
        ("AdamW", {"weight_decay": -1.0}, "weight_decay"),
        ("RMSprop", {"alpha": -0.5}, "alpha"),
        ("Adagrad", {"lr_decay": -0.5}, "lr_decay"),
        ("SGD", {"l1": -0.5}, "l1"),
        ("SPAM", {"threshold": -1.0}, "threshold"),
        ("SPAM", {"reset_every": 0}, "reset_every"),
        ("SPAM", {"warmup_steps": -1}, "warmup_steps"),
        ("Adagrad", {"initial_accumulator_value": math.nan}, "initial_accumulator_value"),
    ],
)
def test_numbers_out_of_range_are_refused(rule: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(rule, [(np.ones(2), np.ones(2))], **options)


@each_case
def test_bad_arguments_of_a_step_change_nothing(rule: str, options: dict[str, Any]) -> None:
    pairs, _ = fresh()
    opt = make(rule, pairs, **options)
    before = everything(opt, pairs)
    scales: list[dict[str, Any]] = [{"scale": bad} for bad in (0.0, -1.0, math.nan, math.inf, 5e-324)]
    for arguments in ({"max_norm": -1.0}, {"max_norm": math.nan}, {"nonfinite": "ignore"}, *scales):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            opt.step(**arguments)
    assert everything(opt, pairs) == before
    assert (opt.n_steps, opt.n_skipped) == (0, 0)


def test_the_learning_rate_may_be_set_between_steps() -> None:
    p, g = np.zeros(2), np.ones(2)
    opt = optim.SGD([(p, g)], lr=1.0)
    opt.step()
    opt.lr = 0.25
    opt.step()
    assert p.tolist() == [-1.25, -1.25]


def test_the_arguments_are_shown() -> None:
    assert repr(optim.AdamW([], lr=0.5)) == (
        "AdamW(lr=0.5, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.01, amsgrad=False, "
        "maximize=False, l1=0.0, max_consecutive_skips=None)"
    )
    assert repr(optim.SGD([{"params": []}, {"params": [], "lr": 1.0}])).endswith("groups=[{}, {'lr': 1.0}])")


def test_the_state_of_no_parameters_comes_back_whole() -> None:
    opt, again = (optim.RMSprop([], momentum=0.9, centered=True) for _ in range(2))
    opt.step()
    again.load_state_dict(opt.state_dict())
    assert again.state_dict() == opt.state_dict()
    assert again.state_dict()["moments"].keys() == {"square_avg", "grad_avg", "momentum_buffer"}
