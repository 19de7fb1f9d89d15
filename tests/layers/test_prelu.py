"""PReLU: against its twin, central differences and PyTorch."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tools import LAYOUTS, Array, central_difference, relative_error, same_bits

import gradcore
from gradcore import losses, optim, reference

pytestmark = pytest.mark.kernels
both_dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def normal(shape: Any, dtype: Any = np.float64, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def made(C: int, dtype: Any = np.float64) -> gradcore.PReLU:
    layer = gradcore.PReLU(C, dtype=dtype)
    layer.params["weight"] = normal(C, dtype, seed=7)
    return layer


@given(
    shape=st.lists(st.integers(0, 9), max_size=2),
    C=st.integers(1, 70),
    one=st.booleans(),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_both_passes_equal_the_twin(shape: list[int], C: int, one: bool, dtype: Any) -> None:
    layer = made(1 if one else C, dtype)
    x, dy = normal((*shape, C), dtype), normal((*shape, C), dtype, seed=1)
    y, tape = layer.forward(x)
    layer.grads["weight"][...] = 1  # backward adds
    dx = layer.backward(tape, dy)
    weight = layer.params["weight"]
    assert same_bits(y, reference.prelu_forward(x, weight))
    want_dx, want_dw = reference.prelu_backward(*(a.astype(np.float64) for a in (x, weight, dy)))
    tolerance = 1e-6 if dtype == np.float32 else 1e-14
    assert relative_error(dx, want_dx) < tolerance
    terms = 1 + np.abs(want_dw) + np.abs(dy).sum()  # what is left of a sum has the rounding of its terms
    assert (np.abs(layer.grads["weight"] - (1 + want_dw)) <= tolerance * terms).all()


@pytest.mark.parametrize("shape", [(7001,), (300, 513), (3, 257, 40)])
@pytest.mark.parametrize("one", [True, False])
@both_dtypes
def test_many_elements_equal_the_twin(shape: tuple[int, ...], one: bool, dtype: Any) -> None:
    layer = made(1 if one else shape[-1], dtype)
    x, dy = normal(shape, dtype), normal(shape, dtype, seed=1)
    _, tape = layer.forward(x)
    layer.backward(tape, dy)
    _, want = reference.prelu_backward(*(a.astype(np.float64) for a in (x, layer.params["weight"], dy)))
    assert relative_error(layer.grads["weight"], want) < (1e-5 if dtype == np.float32 else 1e-13)


@pytest.mark.parametrize("C", [1, 3])
def test_gradients_by_central_differences(C: int) -> None:
    layer, x = made(C), normal((5, 4, 3))
    y, tape = layer.forward(x)
    dy = normal(y.shape, seed=1)
    dx = layer.backward(tape, dy)

    def loss() -> float:
        return float(np.vdot(layer(x), dy))

    assert relative_error(dx, central_difference(loss, x)) < 1e-8
    assert relative_error(layer.grads["weight"], central_difference(loss, layer.params["weight"])) < 1e-8


@pytest.mark.parametrize("C", [1, 3])
def test_tangents_by_central_differences(C: int) -> None:
    layer, x, x_dot = made(C), normal((5, 3)), normal((5, 3), seed=1)
    dy, dy_dot, step = normal((5, 3), seed=2), normal((5, 3), seed=3), 1e-6
    _, tape = layer.forward(x)
    y_dot, tangent = layer.forward_tangent(tape, x_dot)
    assert not layer.flat_grads.any()
    dx, dx_dot = layer.backward_tangent(tape, tangent, dy, dy_dot)
    dw_dot = layer.flat_grads.copy()
    found = []
    for sign in (1, -1):
        layer.zero_grad()
        y, tape = layer.forward(x + sign * step * x_dot)
        found.append((y, layer.backward(tape, dy + sign * step * dy_dot), layer.flat_grads.copy()))
    for got, above, below in zip((y_dot, dx_dot, dw_dot), *found, strict=True):
        assert relative_error(got, (above - below) / (2 * step)) < 1e-7
    assert relative_error(dx, layer.backward(layer.forward(x)[1], dy)) == 0


@pytest.mark.parametrize("C", [1, 75])
@both_dtypes
def test_same_bits_for_any_number_of_threads(C: int, dtype: Any, with_thread_counts: Any) -> None:
    x, dy = normal((31, 97, 75), dtype), normal((31, 97, 75), dtype, seed=1)

    def run() -> list[bytes]:
        layer = made(C, dtype)
        y, tape = layer.forward(x)
        return [a.tobytes() for a in (y, layer.backward(tape, dy), layer.flat_grads)]

    first, *others = with_thread_counts(run)
    assert all(other == first for other in others)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout(layout: str) -> None:
    layer, x = made(6), normal((4, 5, 6))
    y, tape = layer.forward(x)
    dx, grads = layer.backward(tape, y), layer.flat_grads.copy()
    layer.zero_grad()
    other_y, other_tape = layer.forward(LAYOUTS[layout](x))
    assert same_bits(other_y, y)
    assert same_bits(layer.backward(other_tape, LAYOUTS[layout](y)), dx)
    assert same_bits(layer.flat_grads, grads)


@both_dtypes
def test_what_is_not_finite_shows(dtype: Any) -> None:
    layer, x = made(1, dtype), normal(40, dtype)
    want, _ = layer.forward(x)
    x[17] = np.nan
    y, tape = layer.forward(x)
    dx = layer.backward(tape, np.ones_like(x))
    assert np.isnan(y[17])
    assert np.isnan(dx[17])
    assert np.isnan(layer.grads["weight"][0])
    assert same_bits(np.delete(y, 17), np.delete(want, 17))
    assert np.isfinite(np.delete(dx, 17)).all()


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="num_parameters: expected an integer of at least 1, got 0"):
        gradcore.PReLU(0)
    wrong: Any = "small"
    with pytest.raises(TypeError, match="init: expected a number, got str"):
        gradcore.PReLU(1, wrong)
    layer = gradcore.PReLU(3)
    with pytest.raises(ValueError, match=r"x: expected shape \(\.\.\., 3\), got \(2, 4\)"):
        layer.forward(np.ones((2, 4), np.float32))
    y, tape = layer.forward(np.ones((2, 3), np.float32))
    with pytest.raises(ValueError, match=r"dy: expected shape \(2, 3\), got \(2, 2\)"):
        layer.backward(tape, y[:, 1:])
    with pytest.raises(ValueError, match="tape: expected a tape from this layer's forward"):
        gradcore.PReLU(3).backward(tape, y)
    assert not layer.flat_grads.any()
    assert repr(layer) == "PReLU(num_parameters=3)"
    assert (gradcore.PReLU(3, 0.1).params["weight"] == np.float32(0.1)).all()


def test_a_model_with_it_learns_in_fit_and_through_a_penalty() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 3))
    target = np.abs(x[:, :1]) - 0.3 * x[:, 1:2]
    model = gradcore.Sequential(
        gradcore.Linear(3, 16, dtype=np.float64, rng=rng), gradcore.PReLU(16, dtype=np.float64),
        gradcore.Linear(16, 1, dtype=np.float64, rng=rng),
    )  # fmt: skip
    start = model.params["1.weight"].copy()
    history = gradcore.fit(model, [(x, target)], losses.mse, optim.Adam(model, lr=0.02), epochs=300)
    assert history.loss[-1] < 0.05 * history.loss[0]
    assert not np.allclose(model.params["1.weight"], start, atol=0.01)
    model.zero_grad()
    value = gradcore.gradient_penalty(model, x)
    assert np.isfinite(value)
    assert model.grads["1.weight"].any()


# ---- peers ---------------------------------------------------------------------------------------------------------


@pytest.mark.peers
@pytest.mark.parametrize("C", [1, 7])
def test_it_equals_torch(C: int) -> None:
    torch = pytest.importorskip("torch")
    peer = torch.nn.PReLU(C, dtype=torch.float64)
    with torch.no_grad():
        peer.weight.copy_(torch.tensor(normal(C, seed=2)))
    layer = gradcore.PReLU(C, dtype=np.float64)
    layer.load_state_dict({name: value.numpy() for name, value in peer.state_dict().items()})
    x, dy = normal((5, 7)), normal((5, 7), seed=1)  # PyTorch has the channels on axis 1
    y, tape = layer.forward(x)
    tx = torch.tensor(x, requires_grad=True)
    theirs = peer(tx)
    theirs.backward(torch.tensor(dy))
    assert relative_error(y, theirs.detach().numpy()) < 1e-10
    assert relative_error(layer.backward(tape, dy), tx.grad.numpy()) < 1e-10
    assert relative_error(layer.grads["weight"], peer.weight.grad.numpy()) < 1e-10


def test_a_copy_is_apart() -> None:
    layer = made(3)
    twin = copy.deepcopy(layer)
    twin.flat_params += 1
    assert not same_bits(twin(normal((4, 3))), layer(normal((4, 3))))
