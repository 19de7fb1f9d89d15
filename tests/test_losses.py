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


# Every loss: itself, its twin, targets for predictions of a shape, PyTorch's function.
LOSSES: dict[str, tuple[Callable[..., Any], Callable[..., Any], Callable[..., Array], str]] = {
    "mse": (losses.mse, reference.mse, real, "mse_loss"),
    "softmax_cross_entropy": (
        losses.softmax_cross_entropy,
        reference.softmax_cross_entropy,
        lambda shape, rng: rng.integers(0, shape[-1], shape[:-1]),
        "cross_entropy",
    ),
    "binary_cross_entropy": (
        losses.binary_cross_entropy,
        reference.binary_cross_entropy,
        lambda shape, rng: rng.random(shape),
        "binary_cross_entropy_with_logits",
    ),
}
every_loss = pytest.mark.parametrize("name", LOSSES)


def problem(name: str, shape: tuple[int, ...] = (4, 3, 5), seed: int = 0) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    return real(shape, rng), LOSSES[name][2](shape, rng)


def cast(target: Array, dtype: Any) -> Array:
    return target if target.dtype.kind == "i" else target.astype(dtype)


@every_loss
@given(shape=st.lists(st.integers(1, 5), min_size=1, max_size=3), seed=st.integers(0, 99))
def test_value_and_gradient(name: str, shape: list[int], seed: int) -> None:
    loss, twin, _, _ = LOSSES[name]
    y, target = problem(name, tuple(shape), seed)
    value, dy = loss(y, target)
    want, want_dy = twin(y, target)
    assert isinstance(value, float)
    assert value == pytest.approx(want, rel=1e-13)
    assert np.allclose(dy, want_dy, rtol=0, atol=1e-14 * (1 + np.abs(want_dy).max()))
    difference = central_difference(lambda: loss(y, target)[0], y)
    assert np.allclose(dy, difference, rtol=1e-7, atol=1e-8)


@every_loss
def test_float32_agrees_with_float64(name: str) -> None:
    y, target = problem(name)
    y, target = y.astype(np.float32), cast(target, np.float32)
    value, dy = LOSSES[name][0](y, target)
    want, want_dy = LOSSES[name][0](y.astype(np.float64), cast(target, np.float64))
    assert value == want
    assert dy.dtype == np.float32
    assert same_bits(dy, want_dy.astype(np.float32))


@pytest.mark.peers
@every_loss
def test_equal_torch(name: str) -> None:
    torch = pytest.importorskip("torch")
    y, target = problem(name, (7, 5))
    value, dy = LOSSES[name][0](y, target)
    ty = torch.tensor(y, requires_grad=True)
    want = getattr(torch.nn.functional, LOSSES[name][3])(ty, torch.tensor(target))
    want.backward()
    assert value == pytest.approx(want.item(), rel=1e-10)
    assert relative_error(dy, ty.grad.numpy()) < 1e-10


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
@pytest.mark.parametrize("loss", [losses.mse, losses.binary_cross_entropy])
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
    assert dy.shape == shape
    assert dy.dtype == np.float32


@every_loss
def test_refuses_other_shapes_and_dtypes(name: str) -> None:
    loss = LOSSES[name][0]
    first, second = ("logits", "labels") if name.startswith("softmax") else ("logits", "target")
    first = "y" if name == "mse" else first
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
    z, labels = problem("softmax_cross_entropy")
    assert losses.softmax_cross_entropy(z, labels.astype(dtype))[0] == losses.softmax_cross_entropy(z, labels)[0]


def test_labels_out_of_range_are_named() -> None:
    z, labels = problem("softmax_cross_entropy")
    for wrong in (5, -1):
        labels[2, 1] = wrong
        with pytest.raises(
            ValueError, match=rf"labels: expected integers from 0 to 4, got {wrong} at position \(2, 1\)"
        ):
            losses.softmax_cross_entropy(z, labels)
    with pytest.raises(TypeError, match="labels: expected integers, got bool"):
        losses.softmax_cross_entropy(z, labels > 0)
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
@given(values=st.lists(SPECIAL, min_size=6, max_size=6), seed=st.integers(0, 9))
def test_a_loss_of_nan_has_a_gradient_of_nan(name: str, values: list[float], seed: int) -> None:
    """So that a step which is skipped where gradients are not finite is skipped; and a finite loss has none."""
    _, target = problem(name, (2, 3), seed)
    value, dy = LOSSES[name][0](np.array(values).reshape(2, 3), target)
    assert np.isnan(value) == np.isnan(dy).any()
    assert np.isfinite(dy).all() or not np.isfinite(value)
