"""Losses: against their twins, central differences, PyTorch, closed forms, and at the ends of the range."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tools import LAYOUTS, Array, central_difference, relative_error, same_bits

from gradcore import losses, reference


def real(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    return rng.normal(0, 2, shape)


def probabilities(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    return rng.random(shape)


def labels(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    return rng.integers(0, shape[-1], shape[:-1])


# Every loss: itself, its twin, targets for a shape, PyTorch's function.
LOSSES: dict[str, tuple[Callable[..., Any], Callable[..., Any], Callable[..., Array], str]] = {
    "mse": (losses.mse, reference.mse, real, "mse_loss"),
    "mae": (losses.mae, reference.mae, real, "l1_loss"),
    "huber": (losses.huber, reference.huber, real, "huber_loss"),
    "gaussian_nll": (losses.gaussian_nll, reference.gaussian_nll, real, "gaussian_nll_loss"),
    "softmax_cross_entropy": (
        losses.softmax_cross_entropy,
        reference.softmax_cross_entropy,
        labels,
        "cross_entropy",
    ),
    "binary_cross_entropy": (
        losses.binary_cross_entropy,
        reference.binary_cross_entropy,
        probabilities,
        "binary_cross_entropy_with_logits",
    ),
}
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "huber": [{"delta": 0.4}, {"delta": 3.0}],
    "softmax_cross_entropy": [
        {"ignore_index": 1},
        {"label_smoothing": 0.2},
        {"label_smoothing": 1.0},
        {"z_loss": 0.3},
        {"ignore_index": 0, "label_smoothing": 0.1, "z_loss": 1e-4},
    ],
}
CASES = [(name, options) for name in LOSSES for options in [{}, *OPTIONS.get(name, [])]]
every_loss = pytest.mark.parametrize("name", LOSSES)
every_case = pytest.mark.parametrize(("name", "options"), CASES)


def problem(name: str, shape: tuple[int, ...] = (4, 3, 5), seed: int = 0) -> tuple[Array, Array]:
    """Predictions and targets; the former have twice as many features where they are means and log variances."""
    rng = np.random.default_rng(seed)
    twice = (*shape[:-1], 2 * shape[-1]) if name == "gaussian_nll" else shape
    return real(twice, rng), LOSSES[name][2](shape, rng)


def some_terms(target: Array, seed: int = 0) -> dict[str, Array]:
    """Lengths, mask and weights, (T, B) of them, and one step at which nothing counts."""
    rng = np.random.default_rng(seed)
    T, B = target.shape[:2]
    mask = rng.random((T, B)) < 0.7
    mask[T // 2] = False
    return {"lengths": rng.integers(0, T + 1, B), "mask": mask, "weight": rng.standard_normal((T, B))}


def counted(target: Array, lengths: Any, mask: Any) -> Array:
    """Which terms count."""
    counts = mask & (np.arange(len(mask))[:, None] < lengths)
    return np.broadcast_to(counts.reshape(counts.shape + (1,) * (target.ndim - 2)), target.shape)


def cast(target: Array, dtype: Any) -> Array:
    return target if target.dtype.kind == "i" else target.astype(dtype)


@every_case
@given(shape=st.lists(st.integers(1, 5), min_size=1, max_size=3), seed=st.integers(0, 99))
def test_value_and_gradient(name: str, options: dict[str, Any], shape: list[int], seed: int) -> None:
    loss, twin, _, _ = LOSSES[name]
    y, target = problem(name, tuple(shape), seed)
    given = options | (some_terms(target, seed) if target.ndim > 1 and seed % 2 else {})
    value, dy = loss(y, target, **given)
    want, want_dy = twin(y, target, **given)
    assert isinstance(value, float)
    assert value == pytest.approx(want, rel=1e-12, abs=1e-14)
    assert np.allclose(dy, want_dy, rtol=1e-13, atol=1e-14 * (1 + np.abs(want_dy).max()))
    difference = central_difference(lambda: loss(y, target, **given)[0], y)
    assert np.allclose(dy, difference, rtol=1e-6, atol=1e-8 * (1 + abs(value)))


@every_case
@pytest.mark.parametrize("some", [False, True])
def test_float32_agrees_with_float64(name: str, options: dict[str, Any], some: bool) -> None:
    y, target = problem(name)
    y, target = y.astype(np.float32), cast(target, np.float32)
    options = options | (some_terms(target) if some else {})
    value, dy = LOSSES[name][0](y, target, **options)
    want, want_dy = LOSSES[name][0](y.astype(np.float64), cast(target, np.float64), **options)
    assert value == want
    assert dy.dtype == np.float32
    assert same_bits(dy, want_dy.astype(np.float32))


# ---- which terms count -----------------------------------------------------------------------------------------------


@every_case
def test_what_does_not_count_is_as_if_it_were_not_there(name: str, options: dict[str, Any]) -> None:
    """NaN in targets and predictions, and labels of no class; the gradient there is exactly 0."""
    loss = LOSSES[name][0]
    y, target = problem(name, (6, 4, 5))
    options = {**options, **some_terms(target)}
    counts = counted(target, options["lengths"], options["mask"])
    want, want_dy = loss(y, target, **options)
    assert 0 < counts.sum() < counts.size
    spoiled_y, spoiled, weight = y.copy(), target.copy(), options["weight"].copy()
    spoiled[~counts] = -7 if target.dtype.kind == "i" else np.nan
    none = ~counts if target.ndim == 2 else ~counts[..., 0]
    spoiled_y[none] = np.nan
    weight[none] = np.nan
    got, dy = loss(spoiled_y, spoiled, **options | {"weight": weight})
    assert got == want
    assert same_bits(dy, want_dy)
    assert not dy[none].any()
    # the same terms alone
    rows = ~none
    only = {"weight": options["weight"][rows], **{k: v for k, v in options.items() if k in OPTION_NAMES}}
    value, rest = loss(y[rows], target[rows], **only)
    assert value == want
    assert same_bits(rest, dy[rows])


OPTION_NAMES = {"delta", "ignore_index", "label_smoothing", "z_loss"}


@every_case
def test_lengths_are_a_mask(name: str, options: dict[str, Any]) -> None:
    loss = LOSSES[name][0]
    y, target = problem(name)
    lengths = np.array([4, 0, 2])
    mask = np.arange(4)[:, None] < lengths
    got, dy = loss(y, target, lengths=lengths, **options)
    want, want_dy = loss(y, target, mask=mask, **options)
    assert got == want
    assert same_bits(dy, want_dy)
    whole, whole_dy = loss(y, target, lengths=[4, 4, 4], **options)
    want, want_dy = loss(y, target, **options)
    assert whole == want
    assert same_bits(whole_dy, want_dy)


@every_loss
def test_masks_and_weights_have_the_shape_of_terms_or_leading_axes(name: str) -> None:
    loss = LOSSES[name][0]
    y, target = problem(name)
    rng = np.random.default_rng(1)
    per_term = rng.random(target.shape) < 0.5
    assert loss(y, target, mask=per_term)[0] != loss(y, target)[0]
    for small in (rng.standard_normal(4), rng.standard_normal((1, 3)), np.float64(-2.0), np.arange(4)):
        axes = (1,) * (target.ndim - np.ndim(small))
        full = np.broadcast_to(np.reshape(small, np.shape(small) + axes), target.shape)
        got, dy = loss(y, target, weight=small)
        want, want_dy = loss(y, target, weight=full)
        assert got == want
        assert same_bits(dy, want_dy)
        got, dy = loss(y, target, mask=np.asarray(small) > 0)
        want, want_dy = loss(y, target, mask=full > 0)
        assert got == want
        assert same_bits(dy, want_dy)


@every_loss
def test_a_weight_does_not_enter_the_number_of_terms(name: str) -> None:
    loss = LOSSES[name][0]
    y, target = problem(name)
    value, dy = loss(y, target)
    for factor in (-2.0, 0.5, 0.0):
        got, got_dy = loss(y, target, weight=np.full((4, 3), factor))
        assert got == pytest.approx(factor * value, rel=1e-14)
        assert np.allclose(got_dy, factor * dy, rtol=1e-14, atol=0)
    first, second = (loss(y, target, weight=w)[0] for w in (np.arange(4) == 0, np.arange(4) != 0))
    assert first + second == pytest.approx(value, rel=1e-13)


@every_loss
def test_a_weight_of_zero_silences_an_infinite_term(name: str) -> None:
    loss = LOSSES[name][0]
    y, target = problem(name)
    if name == "softmax_cross_entropy":
        y[0, 0, target[0, 0]] = -np.inf
    else:
        y[0, 0, 0] = np.inf
        target[0, 0, 0] = 0
    weight = np.ones((4, 3))
    assert loss(y, target, weight=weight)[0] == np.inf
    weight[0, 0] = 0
    value, dy = loss(y, target, weight=weight)
    assert np.isfinite(value)
    assert np.isfinite(dy).all()
    assert not dy[0, 0].any()
    weight[0, 0] = np.nan
    value, dy = loss(y, target, weight=weight)
    assert np.isnan(value)
    assert np.isnan(dy).any()


@every_case
def test_nothing_that_counts_costs_nothing(name: str, options: dict[str, Any]) -> None:
    y, target = problem(name)
    for none in ({"mask": np.array(False)}, {"lengths": [0, 0, 0]}):
        value, dy = LOSSES[name][0](y * np.nan, target, **options, **none)
        assert value == 0
        assert dy.shape == y.shape
        assert not dy.any()


@every_loss
@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"lengths": [1, 2]}, ValueError, r"lengths: expected shape \(3,\), got \(2,\)"),
        ({"lengths": [1, 2, 5]}, ValueError, "lengths: expected 0 to 4, got 5 at position 2"),
        ({"lengths": [1.0, 2, 3]}, TypeError, "lengths: expected integers, got float64"),
        ({"mask": np.ones((4, 3))}, TypeError, "mask: expected bools, got float64; true where a term counts"),
        (
            {"mask": np.ones((3, 4), bool)},
            ValueError,
            r"mask: expected shape \(4, 3.*\) or its leading axes, got \(3, 4\)",
        ),
        ({"weight": np.ones((4, 3, 5, 1))}, ValueError, r"weight: expected shape \(4, 3.*, got \(4, 3, 5, 1\)"),
        ({"weight": np.array(["a"])}, TypeError, "weight: expected real numbers, got <U1"),
        ({"weight": np.ma.masked_array(np.ones(4))}, TypeError, "weight: masked arrays"),
    ],
)
def test_what_says_nothing_of_the_terms_is_refused(name: str, given: Any, error: Any, message: str) -> None:
    y, target = problem(name)
    with pytest.raises(error, match=message):
        LOSSES[name][0](y, target, **given)


def test_lengths_need_a_time_axis() -> None:
    with pytest.raises(ValueError, match=r"lengths: expected terms of shape \(T, B, ...\), got \(3,\)"):
        losses.mse(np.ones(3), np.ones(3), lengths=[1])
    with pytest.raises(ValueError, match=r"lengths: expected terms of shape \(T, B, ...\), got \(3,\)"):
        losses.softmax_cross_entropy(np.ones((3, 2)), np.ones(3, int), lengths=[1])


# ---- PyTorch ---------------------------------------------------------------------------------------------------------


def of_pytorch(name: str, y: Any, target: Any, options: dict[str, Any]) -> Any:
    """PyTorch's terms, without a mean."""
    import torch

    function, z_loss = getattr(torch.nn.functional, LOSSES[name][3]), options.get("z_loss", 0.0)
    options = {key: value for key, value in options.items() if key in OPTION_NAMES - {"z_loss"}}
    if name == "gaussian_nll":
        mean, log_variance = y.chunk(2, dim=-1)
        return function(mean, target, log_variance.exp(), eps=0.0, reduction="none"), 0.0
    if name == "softmax_cross_entropy":
        terms = function(y.movedim(-1, 1), target, reduction="none", **options)
        return terms, z_loss * y.logsumexp(-1) ** 2
    return function(y, target, reduction="none", **options), 0.0


@pytest.mark.peers
@every_case
@pytest.mark.parametrize("some", [False, True])
def test_equal_torch(name: str, options: dict[str, Any], some: bool) -> None:
    torch = pytest.importorskip("torch")
    y, target = problem(name, (7, 4, 5))
    options = options | (some_terms(target) if some else {})
    counts = counted(target, options["lengths"], options["mask"]) if some else np.ones(target.shape, bool)
    counts = counts & (target != options.get("ignore_index", -100))
    value, dy = LOSSES[name][0](y, target, **options)
    ty = torch.tensor(y, requires_grad=True)
    terms, extra = of_pytorch(name, ty, torch.tensor(target), options)
    if some:
        weight = torch.tensor(options["weight"])
        terms = terms * weight.reshape(*weight.shape, *(1,) * (terms.ndim - 2))
    want = torch.where(torch.tensor(counts), terms + extra, 0.0).sum() / counts.sum()
    want.backward()
    assert value == pytest.approx(want.item(), rel=1e-10)
    assert relative_error(dy, ty.grad.numpy()) < 1e-10


@pytest.mark.peers
@every_case
def test_the_mean_is_pytorchs(name: str, options: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    options = {option: value for option, value in options.items() if option != "z_loss"}  # PyTorch has none
    y, target = problem(name, (7, 5))
    value, dy = LOSSES[name][0](y, target, **options)
    ty, tt, function = torch.tensor(y, requires_grad=True), torch.tensor(target), LOSSES[name][3]
    both = (ty[:, :5], tt, ty[:, 5:].exp()) if name == "gaussian_nll" else (ty, tt)
    want = getattr(torch.nn.functional, function)(*both, **options)
    want.backward()
    assert value == pytest.approx(want.item(), rel=1e-10)
    assert relative_error(dy, ty.grad.numpy()) < 1e-10


@pytest.mark.peers
def test_softmax_is_pytorchs() -> None:
    torch = pytest.importorskip("torch")
    z = np.random.default_rng(0).normal(0, 20, (6, 3, 5))
    for ours, theirs in ((losses.softmax, torch.softmax), (losses.log_softmax, torch.log_softmax)):
        np.testing.assert_allclose(ours(z), theirs(torch.tensor(z), -1).numpy(), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("layout", LAYOUTS)
@every_loss
def test_any_layout(name: str, layout: str) -> None:
    y, target = problem(name)
    value, dy = LOSSES[name][0](y, target)
    other, other_target = LAYOUTS[layout](y), LAYOUTS[layout](target)
    got, got_dy = LOSSES[name][0](other, other_target)
    assert got == value
    assert same_bits(got_dy, dy)
    assert same_bits(other, y)
    assert same_bits(other_target, target)
    assert not np.shares_memory(got_dy, other)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("loss", [losses.mse, losses.mae, losses.huber, losses.binary_cross_entropy])
def test_the_gradient_of_one_number_is_an_array(loss: Callable[..., Any], dtype: Any) -> None:
    value, dy = loss(np.array(2.0, dtype), np.array(1.0, dtype))
    assert type(value) is float
    assert type(dy) is np.ndarray
    assert (dy.shape, dy.dtype) == ((), dtype)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0, 3), (0, 0, 1)])
@every_loss
def test_an_empty_batch_costs_nothing(name: str, shape: tuple[int, ...]) -> None:
    y, target = problem(name, shape)
    value, dy = LOSSES[name][0](y.astype(np.float32), cast(target, np.float32))
    assert value == 0
    assert dy.shape == y.shape
    assert dy.dtype == np.float32


@every_loss
def test_refuses_other_shapes_and_dtypes(name: str) -> None:
    loss = LOSSES[name][0]
    first, second = ("logits" if "cross" in name else "y"), ("labels" if name.startswith("softmax") else "target")
    y, target = problem(name)
    with pytest.raises(ValueError, match=rf"{second}: expected shape .*, got \(3,"):
        loss(y, target[1:])
    with pytest.raises(TypeError, match=rf"{first}: expected float32 or float64, got int64"):
        loss(y.astype(np.int64), target)
    with pytest.raises(TypeError, match=rf"{second}: expected (float64|integers), got float32"):
        loss(y, target.astype(np.float32))
    with pytest.raises(TypeError, match="masked arrays"):
        loss(np.ma.masked_array(y, y > 0), target)
    with pytest.raises(TypeError, match="masked arrays"):
        loss(y, np.ma.masked_array(target, target > 0))


# ---- closed forms and the ends of the range --------------------------------------------------------------------------


def test_mse_of_numbers_whose_squares_only_float64_holds() -> None:
    y, t = np.array([1e30, -1e-30], np.float32), np.zeros(2, np.float32)
    value, dy = losses.mse(y, t)
    assert value == pytest.approx(5e59, rel=1e-6)
    assert same_bits(dy, y)
    value, dy = losses.mse(y[1:], t[1:])
    assert value == pytest.approx(1e-60, rel=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cross_entropy_of_logits_of_any_size(dtype: Any) -> None:
    z = np.array([[1e30, -1e30, 0], [-1e30, -1e30, -1e30], [1e30, 1e30, -np.inf]], dtype)
    value, dy = losses.softmax_cross_entropy(z, np.array([0, 1, 0]))
    assert value == pytest.approx((0 + np.log(3) + np.log(2)) / 3, rel=1e-14)
    want = np.array([[0, 0, 0], [1 / 3, -2 / 3, 1 / 3], [-1 / 2, 1 / 2, 0]]) / 3
    assert np.allclose(dy, want, rtol=1e-6, atol=0)
    value, dy = losses.softmax_cross_entropy(z[:1], np.array([1]))
    assert value == pytest.approx(2e30, rel=1e-6)
    assert same_bits(dy, np.array([[1, -1, 0]], dtype))


def test_cross_entropy_keeps_small_losses() -> None:
    """With the right class ahead by d, loss and gradient are exp(-d) long after 1 - exp(-d) has rounded to 1."""
    for d in (30.0, 100.0, 700.0):
        value, dy = losses.softmax_cross_entropy(np.array([[d, 0.0]]), np.array([0]))
        assert value == pytest.approx(np.exp(-d), rel=1e-12)
        assert np.allclose(dy, [[-np.exp(-d), np.exp(-d)]], rtol=1e-12, atol=0)
        value, dy = losses.binary_cross_entropy(np.array([d]), np.array([1.0]))
        assert value == pytest.approx(np.exp(-d), rel=1e-12)
        assert np.allclose(dy, -np.exp(-d), rtol=1e-12, atol=0)


def test_cross_entropy_of_a_single_row_and_of_the_uniform_guess() -> None:
    value, dy = losses.softmax_cross_entropy(np.zeros(8), np.array(3))
    assert value == pytest.approx(np.log(8), rel=1e-15)
    assert dy.shape == (8,)
    assert dy.sum() == pytest.approx(0, abs=1e-16)


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.uint8, np.uint64])
def test_labels_of_any_integer_type(dtype: Any) -> None:
    z, right = problem("softmax_cross_entropy")
    assert losses.softmax_cross_entropy(z, right.astype(dtype))[0] == losses.softmax_cross_entropy(z, right)[0]


def test_labels_out_of_range_are_named() -> None:
    z, given = problem("softmax_cross_entropy")
    for wrong in (5, -1):
        given[2, 1] = wrong
        with pytest.raises(
            ValueError, match=rf"labels: expected integers from 0 to 4, got {wrong} at position \(2, 1\)"
        ):
            losses.softmax_cross_entropy(z, given)
    with pytest.raises(TypeError, match="labels: expected integers, got bool"):
        losses.softmax_cross_entropy(z, given > 0)
    given[2, 1], given[3, 0] = -100, -5  # the first is ignored, as in PyTorch
    with pytest.raises(ValueError, match=r"got -5 at position \(3, 0\)"):
        losses.softmax_cross_entropy(z, given)
    with pytest.raises(ValueError, match=r"logits: expected shape \(\.\.\., C\), got \(\)"):
        losses.softmax_cross_entropy(np.array(1.0), np.array(0))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_binary_cross_entropy_of_logits_of_any_size(dtype: Any) -> None:
    z, t = np.array([1e30, -1e30, 0, 1e30], dtype), np.array([1, 0, 0.5, 0.25], dtype)
    value, dy = losses.binary_cross_entropy(z, t)
    assert value == pytest.approx(0.75e30 / 4, rel=1e-6)
    assert np.allclose(dy, [0, 0, 0, 0.75 / 4], rtol=1e-6, atol=0)


@every_loss
def test_nonfinite_predictions_show_without_a_warning(name: str) -> None:
    loss = LOSSES[name][0]
    y, target = problem(name)
    y[1, 2, 3] = np.nan
    value, dy = loss(y, target)
    assert np.isnan(value)
    assert np.isnan(dy[1, 2, 3])
    assert np.isfinite(dy[0]).all()
    assert np.isfinite(dy[2]).all()
    y[1, 2, 3] = np.inf
    assert not np.isfinite(loss(y, target)[0])


INF, NAN = np.inf, np.nan


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("z", "label", "want", "want_dy"),
    [  # what PyTorch 2.13 returns
        ([INF, 0, 0], 0, NAN, [NAN, NAN, NAN]),
        ([INF, 0, 0], 1, NAN, [NAN, NAN, NAN]),
        ([INF, INF, 0], 0, NAN, [NAN, NAN, NAN]),
        ([INF, -INF, 0], 0, NAN, [NAN, NAN, NAN]),
        ([INF, -INF, 0], 1, NAN, [NAN, NAN, NAN]),
        ([NAN, 0, 0], 0, NAN, [NAN, NAN, NAN]),
        ([NAN, 0, 0], 1, NAN, [NAN, NAN, NAN]),
        ([0, INF, NAN], 0, NAN, [NAN, NAN, NAN]),
        ([-INF, NAN, 0], 0, NAN, [NAN, NAN, NAN]),
        ([-INF, -INF, -INF], 0, NAN, [NAN, NAN, NAN]),
        ([0, 0, -INF], 0, np.log(2), [-0.5, 0.5, 0]),
        ([0, -INF, -INF], 0, 0, [0, 0, 0]),
        ([0, 0, -INF], 2, INF, [0.5, 0.5, -1]),
        ([0, -INF, -INF], 2, INF, [1, 0, -1]),
        ([INF], 0, NAN, [NAN]),
        ([-INF], 0, NAN, [NAN]),
        ([NAN], 0, NAN, [NAN]),
        ([0], 0, 0, [0]),
    ],
)
def test_cross_entropy_of_logits_that_are_not_finite(
    z: list[float], label: int, want: float, want_dy: list[float], dtype: Any
) -> None:
    value, dy = losses.softmax_cross_entropy(np.array(z, dtype), np.array(label))
    np.testing.assert_allclose(value, want, rtol=1e-14)
    np.testing.assert_allclose(dy, want_dy, rtol=1e-6)
    other = [1.0] + [0.0] * (len(z) - 1)  # a row beside it keeps its own
    value, dy = losses.softmax_cross_entropy(np.array([other, z], dtype), np.array([0, label]))
    p = np.exp(other) / np.exp(other).sum()
    np.testing.assert_allclose(value, (want - np.log(p[0])) / 2, rtol=1e-6)
    np.testing.assert_allclose(dy, [(p - np.eye(len(z))[0]) / 2, np.divide(want_dy, 2)], rtol=1e-6, atol=1e-16)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("z", "t", "want", "want_dy"),
    [  # the limits: PyTorch 2.13 has these gradients, and the same losses or NaN
        (INF, 1, 0, 0),
        (-INF, 1, INF, -1),
        (INF, 0, INF, 1),
        (-INF, 0, 0, 0),
        (INF, 0.25, INF, 0.75),
        (-INF, 0.25, INF, -0.25),
        (NAN, 0, NAN, NAN),
        (NAN, 0.5, NAN, NAN),
        (NAN, 1, NAN, NAN),
        (0, NAN, NAN, NAN),
        (INF, NAN, NAN, NAN),
        (-INF, NAN, NAN, NAN),
    ],
)
def test_binary_cross_entropy_of_logits_that_are_not_finite(
    z: float, t: float, want: float, want_dy: float, dtype: Any
) -> None:
    value, dy = losses.binary_cross_entropy(np.array([z, 0], dtype), np.array([t, 0.5], dtype))
    np.testing.assert_allclose(value, (want + np.log(2)) / 2, rtol=1e-14)
    np.testing.assert_allclose(dy, [want_dy / 2, 0], rtol=0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("y", "t", "want", "want_dy"),
    [  # what PyTorch 2.13 returns
        (INF, 0, INF, INF),
        (-INF, 0, INF, -INF),
        (0, INF, INF, -INF),
        (INF, -INF, INF, INF),
        (INF, INF, NAN, NAN),
        (-INF, -INF, NAN, NAN),
        (NAN, 0, NAN, NAN),
        (0, NAN, NAN, NAN),
        (INF, NAN, NAN, NAN),
    ],
)
def test_mse_of_what_is_not_finite(y: float, t: float, want: float, want_dy: float, dtype: Any) -> None:
    value, dy = losses.mse(np.array([y, 3], dtype), np.array([t, 1], dtype))
    np.testing.assert_equal(value, want)
    np.testing.assert_equal(dy, [want_dy, 2])


SPECIAL = st.sampled_from([0.0, 1.0, -2.5, INF, -INF, NAN])


@every_loss
@given(values=st.lists(SPECIAL, min_size=12, max_size=12), seed=st.integers(0, 9))
def test_a_loss_of_nan_has_a_gradient_of_nan(name: str, values: list[float], seed: int) -> None:
    """So that a step which is skipped where gradients are not finite is skipped; and a finite loss has none."""
    y, target = problem(name, (2, 3), seed)
    value, dy = LOSSES[name][0](np.resize(values, y.shape), target)
    assert np.isnan(value) == np.isnan(dy).any()
    assert np.isfinite(dy).all() or not np.isfinite(value)


def test_options_out_of_range_are_refused() -> None:
    z, y = np.zeros((2, 3)), np.zeros(2, int)
    for bad, error, message in (
        ({"ignore_index": 1.5}, TypeError, "ignore_index: expected an integer"),
        ({"label_smoothing": 1.5}, ValueError, "label_smoothing: expected a number at least 0 and at most 1"),
        ({"z_loss": -1.0}, ValueError, "z_loss: expected a number at least 0"),
    ):
        with pytest.raises(error, match=message):
            losses.softmax_cross_entropy(z, y, **bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="delta: expected a number above 0, got 0"):
        losses.huber(z, z, delta=0.0)
    for shape in ((), (2, 3)):
        with pytest.raises(ValueError, match=r"y: expected shape \(\.\.\., 2F\), got"):
            losses.gaussian_nll(np.zeros(shape), np.zeros(shape))
    for function in (losses.softmax, losses.log_softmax):
        with pytest.raises(ValueError, match=r"logits: expected shape \(\.\.\., C\), got \(\)"):
            function(np.array(1.0))
        with pytest.raises(TypeError, match="logits: expected float32 or float64, got int64"):
            function(y)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_softmax_of_logits_of_any_size(dtype: Any) -> None:
    z = np.array([[1e30, -1e30, 0], [-1e30] * 3, [NAN, 0, 0], [INF, 0, 0], [-INF] * 3, [0, -INF, -INF]], dtype)
    p, log_p = losses.softmax(z), losses.log_softmax(z)
    nan = [NAN] * 3
    np.testing.assert_allclose(p, [[1, 0, 0], [1 / 3] * 3, nan, nan, nan, [1, 0, 0]], rtol=1e-6)
    want = [[0, dtype(-2e30), dtype(-1e30)], [-np.log(3)] * 3, nan, nan, nan, [0, -INF, -INF]]
    np.testing.assert_allclose(log_p, want, rtol=1e-6)
    assert p.dtype == log_p.dtype == dtype
    for shape in ((0, 3), (3, 0), (2, 0, 4)):
        assert losses.softmax(np.zeros(shape, dtype)).shape == losses.log_softmax(np.zeros(shape, dtype)).shape == shape


def test_gaussian_nll_is_the_likelihood() -> None:
    """Of scipy's normal distribution, up to the constant; the best log variance is that of the errors."""
    from scipy import stats

    y, target = problem("gaussian_nll", (50, 2))
    mean, s = y[:, :2], y[:, 2:]
    want = -stats.norm.logpdf(target, mean, np.exp(s / 2)).mean() - np.log(2 * np.pi) / 2
    assert losses.gaussian_nll(y, target)[0] == pytest.approx(want, rel=1e-13)
    error = target[:, :1] - mean[:, :1]
    best = np.concatenate([mean[:, :1], np.full((50, 1), np.log(np.mean(error**2)))], axis=1)
    _, dy = losses.gaussian_nll(best, target[:, :1])
    assert dy[:, 1].sum() == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize(
    ("mean", "s", "want", "want_dy"),
    [
        (0.0, -2000.0, -1000.0, [0, 0.5]),  # the target itself: no error to magnify
        (1e-300, -1300.0, (np.exp(-2 * 690.775527898 + 1300) - 1300) / 2, None),
        (1.0, -2000.0, INF, [INF, -INF]),
        (1.0, 2000.0, 1000.0, [0, 0.5]),
        (1e150, 700.0, None, None),
        (1.0, -INF, INF, [INF, -INF]),
        (1.0, INF, INF, [0, 0.5]),
        (INF, 0.0, INF, [INF, -INF]),
        (NAN, 0.0, NAN, [NAN, NAN]),
        (1.0, NAN, NAN, [NAN, NAN]),
    ],
)
def test_gaussian_nll_of_variances_of_any_size(mean: float, s: float, want: Any, want_dy: Any) -> None:
    value, dy = losses.gaussian_nll(np.array([mean, s]), np.zeros(1))
    if want is not None:
        np.testing.assert_allclose(value, want, rtol=1e-12)
    if want_dy is not None:
        np.testing.assert_allclose(dy, want_dy)
    assert np.isnan(value) == np.isnan(dy).any()


def test_huber_between_its_neighbors() -> None:
    """Half the squared error below delta, the absolute error times delta far above; infinite errors too."""
    y, target = problem("huber")
    value, dy = losses.huber(y, target, delta=INF)
    want, want_dy = losses.mse(y, target)
    assert value == pytest.approx(want / 2, rel=1e-14)
    assert np.allclose(dy, want_dy / 2, rtol=1e-14)
    value, dy = losses.huber(y, target, delta=1e-9)
    want, want_dy = losses.mae(y, target)
    assert value == pytest.approx(1e-9 * want, rel=1e-8)
    assert np.allclose(dy, 1e-9 * want_dy, rtol=1e-12)
    for loss in (losses.mae, losses.huber):
        value, dy = loss(np.array([INF, -INF, 3.0]), np.zeros(3))
        assert value == INF
        assert np.allclose(dy, [1 / 3, -1 / 3, 1 / 3], rtol=1e-15)


def test_a_z_loss_pulls_the_log_of_the_sum_to_zero() -> None:
    """It adds the same slope to a row whatever its weight, and does not change the probabilities it prefers."""
    z = np.full((2, 4), 3.0)
    value, dy = losses.softmax_cross_entropy(z, np.array([0, 1]), weight=np.zeros(2), z_loss=0.5)
    log_z = 3 + np.log(4)
    assert value == pytest.approx(0.5 * log_z**2, rel=1e-14)
    assert np.allclose(dy, 2 * 0.5 * log_z / 4 / 2, rtol=1e-14)
    value, _ = losses.softmax_cross_entropy(z * 1e29, np.array([0, 1]), z_loss=0.5)
    assert value == pytest.approx(0.5 * 9e58, rel=1e-12)
