"""Clipping by unit against a NumPy transcription, at its border, and what it promises about bits and policies."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conftest import LONG
from hypothesis import given
from hypothesis import strategies as st
from tools import LAYOUTS, relative_error, same_bits

import gradcore
from gradcore import clip_grad_units_
from gradcore._base.check import Array

pytestmark = pytest.mark.kernels

each_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def transcription(weight: Array, grad: Array, factor: float, eps: float, axis: int) -> tuple[Array, Array]:
    """Brock et al. 2021, equation 3, in float64: the gradient, and which units were cut. A vector is one unit."""
    rest = tuple(i for i in range(grad.ndim) if grad.ndim < 2 or i != axis % grad.ndim)
    of_weight, of_grad = (np.sqrt((a.astype(np.float64) ** 2).sum(rest, keepdims=True)) for a in (weight, grad))
    against = np.maximum(of_weight, eps)
    with np.errstate(divide="ignore", invalid="ignore"):
        cut = of_grad / against > factor
        return np.where(cut, grad * (factor * against / of_grad), grad), cut


def test_random_cases_with_spikes_agree_with_the_transcription() -> None:
    rng = np.random.default_rng(0)
    n_cut = n_units = 0
    worst = 0.0
    for _ in range(10_000 if LONG else 1_000):
        shape = tuple(rng.integers(1, 6, rng.integers(0, 4)))
        axis = int(rng.integers(-len(shape), len(shape))) if shape else 0
        weight = np.asarray(rng.standard_normal(shape) * 10.0 ** rng.integers(-5, 2))
        grad = np.asarray(rng.standard_normal(shape) * 10.0 ** rng.integers(-5, 2))
        grad[rng.random(shape) < 0.1] *= 1e6
        factor, eps = 10.0 ** rng.integers(-3, 1), 10.0 ** rng.integers(-4, 0)
        want, cut = transcription(weight, grad, factor, eps, axis)
        before = grad.copy()
        done = clip_grad_units_([(weight, grad)], factor, eps, axis)
        assert done.n_clipped == [cut.sum()]
        assert done.clipped == cut.any()
        kept = np.broadcast_to(~cut, shape)
        assert same_bits(grad[kept], before[kept])
        error = np.abs(grad - want) / np.where(want == 0, 1, np.abs(want))
        worst = max(worst, float(error.max(initial=0)))
        n_cut, n_units = n_cut + int(cut.sum()), n_units + cut.size
    assert worst <= 1e-12
    assert 0.2 < n_cut / n_units < 0.8  # both happen


@each_dtype
@pytest.mark.parametrize(("shape", "axis"), [((7, 5), 0), ((7, 5), 1), ((7, 5), -1), ((3, 4, 5), 1), ((9,), 0)])
@pytest.mark.parametrize("layout", sorted(set(LAYOUTS) - {"read-only"}))
def test_every_layout_is_changed_in_place(layout: str, shape: tuple[int, ...], axis: int, dtype: Any) -> None:
    rng = np.random.default_rng(1)
    weight, grad = (rng.standard_normal(shape).astype(dtype) for _ in range(2))
    view = LAYOUTS[layout](grad)
    want, cut = transcription(weight, grad, 0.5, 1e-3, axis)
    assert clip_grad_units_({"w": (LAYOUTS[layout](weight), view)}, 0.5, axis=axis).n_clipped == {"w": cut.sum()}
    assert relative_error(view, want) <= (1e-7 if dtype == np.float32 else 1e-15)


@given(st.floats(1e-3, 1e3), st.floats(1e-4, 10), st.booleans())
def test_the_border_belongs_to_what_is_left_alone(norm: float, factor: float, above: bool) -> None:
    limit = factor * norm
    edge = math.nextafter(limit, math.inf) if above else limit
    weight, grad = np.array([[norm, 0.0], [0.0, 0.0]]), np.array([[0.0, -edge], [0.0, 0.0]])
    before = grad.copy()
    done = clip_grad_units_([(weight, grad)], factor, eps=1e-5)
    assert done.n_clipped == [above]
    assert done.ratio == pytest.approx(factor, rel=1e-15)
    assert done.worst == (0, 0)
    if above:
        assert grad[0, 1] == pytest.approx(-limit, rel=1e-15)
        assert same_bits(np.delete(grad, 1), np.delete(before, 1))
    else:
        assert same_bits(grad, before)


@given(st.integers(0, 2**32 - 1))
def test_cut_units_keep_their_direction_and_stay(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight, grad = rng.standard_normal((4, 6)), rng.standard_normal((4, 6)) * 10.0 ** rng.integers(-6, 6, (4, 1))
    before = grad.copy()
    clip_grad_units_([(weight, grad)])
    once = grad.copy()
    for g, b, w in zip(grad, before, weight, strict=True):
        assert relative_error(g / np.linalg.norm(g), b / np.linalg.norm(b)) <= 1e-14
        assert np.linalg.norm(g) <= 0.01 * np.linalg.norm(w) * (1 + 1e-14) or same_bits(g, b)
    clip_grad_units_([(weight, grad)])
    assert relative_error(grad, once) <= 1e-15


def test_norms_neither_overflow_nor_underflow() -> None:
    weight = np.array([[1e200, 1e200], [1e-200, 1e-200], [1.5e308, 0.0]])
    grad = np.array([[1e300, -1e300], [1e-200, 1e-200], [1.5e308, 1.5e308]])
    assert clip_grad_units_([(weight, grad)], 0.01, eps=0.0).n_clipped == [3]
    root = 1.5e306 / math.sqrt(2)
    assert grad == pytest.approx(np.array([[1e198, -1e198], [1e-202, 1e-202], [root, root]]), rel=1e-13, abs=0)
    large = np.full((1, 4), 1e30, np.float32)
    clip_grad_units_([(np.ones((1, 4), np.float32), large)])
    assert large == pytest.approx(np.full((1, 4), 0.01), rel=1e-7)


def test_parameters_of_zero() -> None:
    weight, grad = np.zeros((2, 3)), np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    done = clip_grad_units_([(weight, grad)], 0.5, eps=0.1)
    assert (done.ratio, done.worst, done.n_clipped) == (10, (0, 0), [1])
    assert grad.tolist() == [[0.05, 0, 0], [0, 0, 0]]
    done = clip_grad_units_([(weight, grad)], 0.5, eps=0.0)
    assert (done.ratio, done.worst, done.n_clipped) == (math.inf, (0, 0), [1])
    assert not grad.any()
    done = clip_grad_units_([(weight, grad)], 0.5, eps=0.0)
    assert (done.ratio, done.worst, done.n_clipped) == (0, (0, 0), [0])


def test_everything_that_has_parameters_and_gradients() -> None:
    rng = np.random.default_rng(0)
    model = gradcore.Sequential(gradcore.LSTM(3, 5, dtype=np.float64, rng=rng), gradcore.LastStep())
    optimizer = gradcore.optim.SGD([{"params": model}])
    model.flat_grads[...] = start = rng.standard_normal(model.flat_grads.size)
    want = {k: transcription(p, model.grads[k].copy(), 0.3, 1e-3, 0)[0] for k, p in model.params.items()}
    for holder in (
        model,
        optimizer,
        {k: (p, model.grads[k]) for k, p in model.params.items()},
        [(p, model.grads[k]) for k, p in model.params.items()],
        ((p, model.grads[k]) for k, p in model.params.items()),
    ):
        model.flat_grads[...] = start
        done = clip_grad_units_(holder, 0.3)
        assert done.clipped
        assert len(done.n_clipped) == len(want)
        for name, g in model.grads.items():
            assert relative_error(g, want[name]) <= 1e-14
    two = gradcore.optim.Adam([{"params": [(np.ones(2), np.ones(2))]}, {"params": {"b": (np.ones(2), np.zeros(2))}}])
    assert clip_grad_units_(two).n_clipped == {"0.0": 1, "1.b": 0}
    unnamed = gradcore.optim.Adam([(np.ones(2), np.ones(2))])
    assert clip_grad_units_(unnamed).n_clipped == [1]


def test_nothing_to_clip() -> None:
    for nothing in ([], {}, [(np.zeros((0, 3)), np.zeros((0, 3)))]):
        done = clip_grad_units_(nothing)
        assert (done.clipped, done.ratio, done.worst) == (False, 0, None)
    for shape in ((3, 0), (0,)):  # three units and one, all without entries
        assert clip_grad_units_([(np.zeros(shape), np.zeros(shape))]).worst == (0, 0)
    with pytest.warns(UserWarning, match="params: the iterator is empty") as warned:
        clip_grad_units_(iter([]))
    assert warned[0].filename == __file__


@each_dtype
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("axis", [0, 1])
def test_policies(axis: int, value: float, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    pairs = {name: tuple(rng.standard_normal((2, *s)).astype(dtype)) for name, s in {"a": (3, 4), "b": (5,)}.items()}
    for name, index in (("a", (2, 1)), ("a", (0, 0)), ("b", (4,))):
        own = {key: (p, g.copy()) for key, (p, g) in pairs.items()}
        own[name][1][index] = value
        before = {key: g.copy() for key, (_, g) in own.items()}
        unit = index[axis] if name == "a" else 0
        place = str(index).replace("(", r"\(").replace(")", r"\)")
        with pytest.raises(FloatingPointError, match=rf"gradient of params\['{name}'\]: (NaN|Inf) at {place}"):
            clip_grad_units_(own, 0.5, axis=axis)
        skipped = clip_grad_units_(own, 0.5, axis=axis, nonfinite="skip")
        assert (skipped.skipped, skipped.clipped, skipped.worst) == (True, False, (name, unit))
        assert skipped.n_nan + skipped.n_inf == 1
        assert skipped.n_nan == math.isnan(value)
        assert not math.isfinite(skipped.ratio)
        assert all(same_bits(own[key][1], g) for key, g in before.items())
        zeroed = clip_grad_units_(own, 0.5, axis=axis, nonfinite="zero")
        assert (zeroed.skipped, zeroed.worst) == (False, (name, unit))
        assert math.isfinite(zeroed.ratio)
        for key, (p, g) in own.items():
            want = np.where(np.isfinite(before[key]), before[key], 0)
            assert relative_error(g, transcription(p, want, 0.5, 1e-3, axis)[0]) <= 1e-6


def test_parameters_that_are_not_finite_are_refused_whatever_the_policy() -> None:
    grad = np.ones((2, 2))
    for policy in ("raise", "skip", "zero"):
        with pytest.raises(FloatingPointError, match=r"params\['w'\]: NaN at \(1, 0\)"):
            clip_grad_units_({"w": (np.array([[1, 2], [math.nan, 3]]), grad)}, nonfinite=policy)
    assert grad.tolist() == [[1, 1], [1, 1]]


@each_dtype
def test_the_bits_are_the_same_for_any_number_of_threads(
    with_thread_counts: Callable[[Callable[[], Any]], list[Any]], dtype: Any
) -> None:
    rng = np.random.default_rng(0)
    weight, start = (rng.standard_normal((3, 50_000)).astype(dtype) for _ in range(2))

    def clip() -> tuple[float, bytes]:
        grad = start.copy()
        return clip_grad_units_([(weight, grad)]).ratio, grad.tobytes()

    first, *others = with_thread_counts(clip)
    assert all(other == first for other in others)


SHARED = np.ones(4)


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        (5, TypeError, "params: expected a layer, a model, or a dict"),
        ([np.ones(2)], TypeError, r"params\[0\]: expected a layer or a pair"),
        ({"w": (np.ones(2), np.ones(3))}, ValueError, r"gradient of params\['w'\]: expected shape"),
        ({"w": (np.ones(2), np.ones(2, np.float16))}, TypeError, "expected float64, got float16"),
        (
            {"w": (np.ones(2), LAYOUTS["read-only"](np.ones(2)))},
            ValueError,
            r"gradient of params\['w'\]: expected a writable array",
        ),
        ({"w": (SHARED, SHARED)}, ValueError, "overlap in memory"),
        ({"v": (np.ones(2), SHARED[:2]), "w": (np.ones(2), SHARED[1:3])}, ValueError, "overlap in memory"),
    ],
)
def test_what_cannot_be_clipped_is_refused(params: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        clip_grad_units_(params)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"clip_factor": -1.0}, ValueError),
        ({"clip_factor": math.nan}, ValueError),
        ({"eps": -1e-3}, ValueError),
        ({"axis": 2}, ValueError),
        ({"axis": -3}, ValueError),
        ({"axis": 0.0}, TypeError),
        ({"axis": True}, TypeError),
        ({"nonfinite": "ignore"}, ValueError),
    ],
)
def test_arguments_out_of_range_change_nothing(arguments: dict[str, Any], error: type[Exception]) -> None:
    grad = np.ones((2, 2))
    with pytest.raises(error, match=f"{next(iter(arguments))}: expected"):
        clip_grad_units_([(np.ones((2, 2)), grad)], **arguments)
    assert grad.tolist() == [[1, 1], [1, 1]]
