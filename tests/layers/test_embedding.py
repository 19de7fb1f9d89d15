"""Embedding: against its twin, central differences and PyTorch; what it refuses; in models and training."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tools import LAYOUTS, Array, central_difference, relative_error, same_bits

import gradcore
from gradcore import losses, optim, reference
from gradcore.training.monitor import GradientMonitor

pytestmark = pytest.mark.kernels
both_dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])
INTEGERS = ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", ">i2", ">u8"]


def numbers(shape: Any, n: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, n, shape)


def normal(shape: Any, dtype: Any = np.float64, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@given(
    shape=st.lists(st.integers(0, 6), max_size=3),
    n=st.integers(1, 12),
    E=st.integers(0, 70),
    padding=st.booleans(),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_both_passes_equal_the_twin(shape: list[int], n: int, E: int, padding: bool, dtype: Any) -> None:
    padding_idx = n // 2 if padding else None
    layer = gradcore.Embedding(n, E, padding_idx, dtype=dtype, rng=0)
    x, dy = numbers(shape, n), normal((*shape, E), dtype)
    y, tape = layer.forward(x)
    weight = layer.params["weight"]
    assert same_bits(y, reference.embedding_forward(x, weight))
    assert same_bits(layer(x), y)
    layer.grads["weight"][...] = 1  # backward adds
    assert layer.backward(tape, dy) is None
    want = 1 + reference.embedding_backward(x, weight, dy.astype(np.float64), padding_idx)
    assert relative_error(layer.grads["weight"], want) < (1e-6 if dtype == np.float32 else 1e-14)


@both_dtypes
def test_rows_that_occur_often_and_wide_tables(dtype: Any) -> None:
    n, E = 50, 130
    x, dy = np.minimum(numbers(5000, 200), n - 1), normal((5000, E), dtype)
    layer = gradcore.Embedding(n, E, dtype=dtype, rng=0)
    _, tape = layer.forward(x)
    layer.backward(tape, dy)
    want = reference.embedding_backward(x, layer.params["weight"], dy.astype(np.float64))
    assert relative_error(layer.grads["weight"], want) < (1e-5 if dtype == np.float32 else 1e-13)


def test_gradients_by_central_differences() -> None:
    layer, x = gradcore.Embedding(6, 3, dtype=np.float64, rng=0), np.array([[1, 5, 1], [0, 1, 4]])
    y, tape = layer.forward(x)
    dy = normal(y.shape, seed=1)
    layer.backward(tape, dy)
    want = central_difference(lambda: float(np.vdot(layer(x), dy)), layer.params["weight"])
    assert relative_error(layer.grads["weight"], want) < 1e-8
    layer.backward(tape, dy)
    assert relative_error(layer.grads["weight"], 2 * want) < 1e-8


@both_dtypes
def test_same_bits_for_any_number_of_threads(dtype: Any, with_thread_counts: Any) -> None:
    x, dy = numbers((31, 97), 40), normal((31, 97, 75), dtype)

    def run() -> list[bytes]:
        layer = gradcore.Embedding(40, 75, dtype=dtype, rng=0)
        y, tape = layer.forward(x)
        layer.backward(tape, dy)
        return [y.tobytes(), layer.flat_grads.tobytes()]

    first, *others = with_thread_counts(run)
    assert all(other == first for other in others)


# ---- the vectors ---------------------------------------------------------------------------------------------------


def test_the_vectors_are_drawn_from_a_normal_distribution() -> None:
    weight = gradcore.Embedding(400, 500, dtype=np.float64, rng=1).params["weight"]
    assert abs(weight.mean()) < 5 / np.sqrt(weight.size)
    assert abs(weight.std() - 1) < 5 / np.sqrt(2 * weight.size)
    assert abs((np.abs(weight) < 1).mean() - 0.6827) < 0.005


@pytest.mark.parametrize("given_idx", [3, -2, np.int8(3)])
def test_the_padding_begins_as_zeros_and_stays(given_idx: Any) -> None:
    layer = gradcore.Embedding(5, 4, given_idx, rng=0)
    assert layer.padding_idx == 3
    assert not layer.params["weight"][3].any()
    assert np.delete(layer.params["weight"], 3, axis=0).all()
    y, tape = layer.forward([3, 1, 3])
    layer.backward(tape, np.ones_like(y))
    assert layer.grads["weight"].any(axis=1).tolist() == [False, True, False, False, False]
    optim.SGD(layer, lr=0.1).step()
    assert not layer(np.array([3])).any()
    assert repr(layer) == "Embedding(5, 4, padding_idx=3)"


# ---- what comes in -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", INTEGERS)
def test_any_integers(dtype: str) -> None:
    layer, x = gradcore.Embedding(100, 3, rng=0), numbers((4, 5), 100)
    assert same_bits(layer(x.astype(dtype)), layer(x))
    assert same_bits(layer(x.astype(dtype).tolist()), layer(x))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout(layout: str) -> None:
    layer, x = gradcore.Embedding(100, 8, rng=0), numbers((6, 4, 10), 100)
    y, tape = layer.forward(x)
    dy = normal(y.shape, np.float32)
    layer.backward(tape, dy)
    want = layer.flat_grads.copy()
    layer.zero_grad()
    other_y, other_tape = layer.forward(LAYOUTS[layout](x))
    layer.backward(other_tape, LAYOUTS[layout](dy))
    assert same_bits(other_y, y)
    assert same_bits(layer.flat_grads, want)


@pytest.mark.parametrize("x", [3, np.int64(3), np.array(3)])
def test_one_integer_gives_one_vector(x: Any) -> None:
    layer = gradcore.Embedding(5, 4, rng=0)
    y, tape = layer.forward(x)
    layer.backward(tape, np.ones(4, np.float32))
    assert same_bits(y, layer.params["weight"][3])
    assert layer.grads["weight"].sum() == 4


@pytest.mark.parametrize("x", [np.zeros((0,), int), np.zeros((3, 0), int), []])
def test_nothing(x: Any) -> None:
    layer = gradcore.Embedding(5, 4, rng=0)
    y, tape = layer.forward(x)
    layer.backward(tape, y)
    assert y.shape == (*np.shape(x), 4)
    assert not layer.flat_grads.any()
    assert gradcore.Embedding(0, 4)(np.zeros((2, 0), int)).shape == (2, 0, 4)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.array([[1, 2], [5, 0]]), r"x: expected 0 <= x < 5, got 5 at position \(1, 0\)"),
        (np.array([1, -1]), "x: expected 0 <= x < 5, got -1 at position 1"),
        (np.array([1, 2**64 - 1], np.uint64), f"x: expected 0 <= x < 5, got {2**64 - 1} at position 1"),
        (np.array([2**63], np.uint64), f"x: expected 0 <= x < 5, got {2**63} at position 0"),
        (7, "x: expected 0 <= x < 5, got 7"),
    ],
)
def test_integers_out_of_range(x: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"{message}$"):
        gradcore.Embedding(5, 4).forward(x)


@pytest.mark.parametrize("x", [np.ones(3), np.ones(3, bool), np.zeros(0), [1.5], ["a"], np.ones(2, object)])
def test_no_integers(x: Any) -> None:
    with pytest.raises(TypeError, match="x: expected integers, got"):
        gradcore.Embedding(5, 4).forward(x)


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="padding_idx: expected an integer below 5, the number of vectors, got 5"):
        gradcore.Embedding(5, 4, 5)
    with pytest.raises(ValueError, match="padding_idx: expected an integer of at least -5, got -6"):
        gradcore.Embedding(5, 4, -6)
    wrong: Any = 1.0
    with pytest.raises(TypeError, match="padding_idx: expected an integer, got float"):
        gradcore.Embedding(5, 4, wrong)
    layer = gradcore.Embedding(5, 4)
    y, tape = layer.forward([1])
    with pytest.raises(TypeError, match="dy: expected float32, got float64"):
        layer.backward(tape, y.astype(np.float64))
    with pytest.raises(ValueError, match=r"dy: expected shape \(1, 4\), got \(2, 4\)"):
        layer.backward(tape, np.zeros((2, 4), np.float32))
    with pytest.raises(ValueError, match="tape: expected a tape from this layer's forward"):
        gradcore.Embedding(5, 4).backward(tape, y)
    assert not layer.flat_grads.any()


def test_integers_that_change_after_forward_do_no_harm() -> None:
    layer, x = gradcore.Embedding(5, 4, rng=0), np.array([1, 2])
    y, tape = layer.forward(x)
    x[...] = 10**9
    layer.backward(tape, np.ones_like(y))
    assert np.flatnonzero(layer.grads["weight"].any(axis=1)).tolist() == [1, 2]


@pytest.mark.parametrize("how", [copy.deepcopy, lambda a: pickle.loads(pickle.dumps(a))])
def test_copies_are_whole_and_apart(how: Any) -> None:
    layer = gradcore.Embedding(5, 4, rng=0)
    twin = how(layer)
    assert same_bits(twin([1, 4]), layer([1, 4]))
    twin.flat_params += 1
    assert not same_bits(twin([1, 4]), layer([1, 4]))


# ---- in models -----------------------------------------------------------------------------------------------------


def reader(seed: int = 0, *, batch_first: bool = False) -> gradcore.Sequential:
    rng = np.random.default_rng(seed)
    return gradcore.Sequential(
        gradcore.Embedding(12, 5, 0, rng=rng),
        gradcore.Dropout(0.2, rng=rng),
        gradcore.LSTM(5, 8, batch_first=batch_first, rng=rng),
        gradcore.LastStep(batch_first),
        gradcore.Linear(8, 2, rng=rng),
    )


def texts() -> list[tuple[Array, Array, Array]]:
    """Which of two symbols comes first."""
    rng = np.random.default_rng(0)
    batches = []
    for _ in range(8):
        x, lengths = rng.integers(3, 12, (6, 16)), rng.integers(2, 7, 16)
        target = rng.integers(0, 2, 16)
        x[0], x[1] = 1 + target, 2 - target
        x[np.arange(6)[:, None] >= lengths] = 0
        batches.append((x, target, lengths))
    return batches


def test_a_model_of_texts_learns_in_fit() -> None:
    model = reader()
    optimizer, monitor = optim.Adam(model, lr=0.02), GradientMonitor()
    history = gradcore.fit(model, texts(), losses.softmax_cross_entropy, optimizer, epochs=12, monitor=monitor)
    assert history.loss[-8:].mean() < 0.2 * history.loss[:8].mean()
    assert not model.params["0.weight"][0].any()
    assert not [finding for finding in monitor.findings if finding.kind in ("unscaled_data", "constant_inputs")]


def test_the_tape_of_a_model_has_no_gradient_of_integers() -> None:
    model = reader()
    x, _, lengths = texts()[0]
    y, tape = model.forward(x, lengths=lengths)
    assert model.backward(tape, np.ones_like(y)) is None
    assert tape.norms[0] is None
    assert np.isnan(tape.d_norm[0])
    assert np.isfinite(tape.d_norm[1:]).all()
    outer = gradcore.Sequential(model)
    y, tape = outer.forward(x, lengths=lengths)
    assert outer.backward(tape, np.ones_like(y)) is None


def test_the_axes_pass_through_it() -> None:
    x, _, lengths = texts()[0]
    first, second = reader(), reader(batch_first=True)
    np.testing.assert_allclose(second(x.T, lengths=lengths), first(x, lengths=lengths), rtol=1e-5)


def test_a_checkpoint_restores_a_run_with_it(tmp_path: Path) -> None:
    def run(model: Any, optimizer: Any, epochs: int) -> None:
        gradcore.fit(model, texts(), losses.softmax_cross_entropy, optimizer, epochs=epochs)

    whole = reader()
    optimizer = optim.Adam(whole)
    run(whole, optimizer, 2)
    half, other = reader(), reader(1)
    optimizer = optim.Adam(half)
    run(half, optimizer, 1)
    gradcore.save_checkpoint(tmp_path / "half.safetensors", model=half, optimizer=optimizer)
    optimizer = optim.Adam(other)
    gradcore.load_checkpoint(tmp_path / "half.safetensors", model=other, optimizer=optimizer)
    run(other, optimizer, 1)
    assert same_bits(other.flat_params, whole.flat_params)


# ---- peers ---------------------------------------------------------------------------------------------------------


@pytest.mark.peers
@pytest.mark.parametrize("padding_idx", [None, 2, -1])
def test_it_equals_torch(padding_idx: int | None) -> None:
    torch = pytest.importorskip("torch")
    peer = torch.nn.Embedding(9, 7, padding_idx, dtype=torch.float64)
    layer = gradcore.Embedding(9, 7, padding_idx, dtype=np.float64)
    layer.load_state_dict({name: value.numpy() for name, value in peer.state_dict().items()})
    x, dy = numbers((6, 5, 4), 9), normal((6, 5, 4, 7), seed=1)
    y, tape = layer.forward(x)
    layer.backward(tape, dy)
    theirs = peer(torch.tensor(x))
    theirs.backward(torch.tensor(dy))
    assert same_bits(y, theirs.detach().numpy())
    assert relative_error(layer.grads["weight"], peer.weight.grad.numpy()) < 1e-10
    assert layer.padding_idx == peer.padding_idx
