"""Optimizers against their twins and PyTorch, and what a step promises about clipping, skipping and resuming."""

from __future__ import annotations

import copy
import math
import platform
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tools import LAYOUTS, relative_error, same_bits

import gradcore
from gradcore import clip_grad_norm_, optim, reference
from gradcore._check import Array

pytestmark = pytest.mark.kernels

BLOCK = 4096
SHAPES = [(3, 5), (), (BLOCK + 3,), (0, 4), (2, 40)]
TWINS = {
    "SGD": reference.sgd,
    "Adam": reference.adam,
    "AdamW": reference.adamw,
    "RMSprop": reference.rmsprop,
    "Adagrad": reference.adagrad,
}
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "SGD": [
        {},
        {"lr": 0.1, "weight_decay": 0.1},
        {"lr": 0.1, "momentum": 0.9},
        {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1, "maximize": True},
        {"lr": 0.1, "momentum": 0.9, "nesterov": True},
    ],
    "Adam": [
        {},
        {"amsgrad": True},
        {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1, "maximize": True},
        {"betas": (0.0, 0.0)},
    ],
    "AdamW": [{}, {"lr": 0.1, "weight_decay": 0.3, "amsgrad": True}, {"maximize": True}],
    "RMSprop": [
        {},
        {"centered": True},
        {"momentum": 0.9},
        {
            "lr": 0.1,
            "alpha": 0.9,
            "eps": 1e-3,
            "weight_decay": 0.1,
            "momentum": 0.5,
            "centered": True,
            "maximize": True,
        },
    ],
    "Adagrad": [
        {},
        {
            "lr": 0.1,
            "lr_decay": 0.1,
            "weight_decay": 0.1,
            "initial_accumulator_value": 0.2,
            "eps": 1e-3,
            "maximize": True,
        },
    ],
}
CASES = [(rule, options) for rule, cases in OPTIONS.items() for options in cases]
each_case = pytest.mark.parametrize(("rule", "options"), CASES)
each_rule = pytest.mark.parametrize("rule", OPTIONS)
each_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])


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


@pytest.mark.peers
@each_dtype
@each_case
def test_100_steps_agree_with_pytorch(rule: str, options: dict[str, Any], dtype: Any) -> None:
    torch = pytest.importorskip("torch")
    pairs, draw = fresh(dtype)
    theirs = [torch.nn.Parameter(torch.from_numpy(p.copy())) for p, _ in pairs.values()]
    opt, other = make(rule, pairs, **options), getattr(torch.optim, rule)(theirs, **options)
    for _ in range(100):
        draw()
        for parameter, (_, g) in zip(theirs, pairs.values(), strict=True):
            parameter.grad = torch.from_numpy(g.copy())
        opt.step()
        other.step()
    for parameter, (p, _) in zip(theirs, pairs.values(), strict=True):
        assert relative_error(p, parameter.detach().numpy()) <= (1e-5 if dtype == np.float32 else 1e-12)


@pytest.mark.peers
@each_rule
def test_names_and_defaults_are_pytorchs(rule: str) -> None:
    torch = pytest.importorskip("torch")
    parameter = torch.nn.Parameter(torch.zeros(2))
    defaults = getattr(torch.optim, rule)([parameter]).defaults
    ours = make(rule, [(np.zeros(2), np.zeros(2))]).state_dict()["hyperparameters"]
    assert ours == {name: defaults[name] for name in ours}


@each_rule
def test_a_quadratic_is_minimised(rule: str) -> None:
    target = np.random.default_rng(0).standard_normal(50)
    p, g = np.zeros(50), np.zeros(50)
    opt = make(rule, [(p, g)], lr={"Adagrad": 1.0, "SGD": 0.2}.get(rule, 0.01))
    for _ in range(800):
        g[...] = p - target
        opt.step(max_norm=1.0)
    assert np.abs(p - target).max() < 0.02


def test_a_centred_variance_is_never_negative() -> None:
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
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_skipped_step_changes_no_bit_and_is_counted(
    rule: str, options: dict[str, Any], dtype: Any, value: float
) -> None:
    pairs, draw = fresh(dtype)
    opt = make(rule, pairs, **options)
    for steps, max_norm in enumerate((None, 1.0, math.inf), start=1):
        pairs["p2"][1][BLOCK] = value
        before = everything(opt, pairs)
        norm = opt.step(max_norm)
        assert norm.skipped
        assert norm.worst == ("p2", (BLOCK,))
        with pytest.raises(FloatingPointError, match=r"grads\['p2'\]: (NaN|Inf) at \(4096,\)"):
            opt.step(max_norm, nonfinite="raise")
        assert everything(opt, pairs) == before
        draw()
        assert not opt.step(max_norm).skipped
        assert everything(opt, pairs) != before
        assert (opt.n_steps, opt.n_skipped) == (steps, steps)


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
    for _ in range(5):
        draw()
        for name, (_, g) in pairs.items():
            again[name][1][...] = g
        opt.step(max_norm=1.0)
        resumed.step(max_norm=1.0)
    assert everything(opt, pairs) == everything(resumed, again)


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


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "read-only"])
@each_case
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


SHARED = np.ones(8)


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        (5, TypeError, "params: expected a layer, a model, or a dict"),
        ([np.ones(2)], TypeError, r"params\[0\]: expected a pair"),
        ((np.ones((2, 3)), np.ones((2, 3))), TypeError, r"params\[0\]: expected a pair"),
        ({"w": (np.ones(2),)}, TypeError, r"params\['w'\]: expected a pair"),
        ({"w": ([1.0], np.ones(1))}, TypeError, r"params\['w'\]: expected a NumPy array"),
        ({"w": (np.ones(2), None)}, TypeError, r"gradient of params\['w'\]: expected an array, got None"),
        ({"w": (np.ones(2), np.ones(3))}, ValueError, r"gradient of params\['w'\]: expected shape \(2,\), got \(3,\)"),
        ({"w": (np.ones(2), np.ones(2, np.float32))}, TypeError, r"expected float64, got float32"),
        ({"w": (np.ones(2, np.float16), np.ones(2, np.float16))}, TypeError, "expected float32 or float64"),
        ({"w": (np.ones(2, int), np.ones(2, int))}, TypeError, "expected float32 or float64"),
        ({"w": (LAYOUTS["read-only"](np.ones(2)), np.ones(2))}, ValueError, r"params\['w'\]: is read-only"),
        ({"w": (np.ma.ones(2), np.ones(2))}, TypeError, r"params\['w'\]: masked arrays"),
        ({1: (np.ones(2), np.ones(2)), "1": (np.ones(2), np.ones(2))}, ValueError, "params: two keys are the same"),
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
    with pytest.warns(UserWarning, match="params: an iterator that is exhausted") as warned:
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
    for arguments in ({"max_norm": -1.0}, {"max_norm": math.nan}, {"nonfinite": "ignore"}):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            opt.step(**arguments)
    opt.lr = math.nan
    with pytest.raises(ValueError, match="lr"):
        opt.step()
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
        "AdamW(lr=0.5, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.01, amsgrad=False, maximize=False)"
    )
