"""FinalState, LastStep, MeanPool: against the states of recurrent layers, the twin, central differences, PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Callable
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
POOLS: dict[str, Callable[..., Any]] = {
    "FinalState": gradcore.FinalState,
    "FinalState of two directions": lambda **given: gradcore.FinalState(True, **given),
    "LastStep": gradcore.LastStep,
    "MeanPool": gradcore.MeanPool,
}
pools = pytest.mark.parametrize("name", POOLS)
RAGGED = [5, 2, 0, 4]


def normal(shape: tuple[int, ...], dtype: Any = np.float64, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


# ---- gradients -----------------------------------------------------------------------------------------------------


@pools
@pytest.mark.parametrize("lengths", [None, RAGGED])
@pytest.mark.parametrize("batch_first", [False, True])
def test_gradients_by_central_differences(name: str, lengths: Any, batch_first: bool) -> None:
    layer = POOLS[name](batch_first=batch_first, dtype=np.float64)
    x, dy = normal((4, 5, 6) if batch_first else (5, 4, 6)), normal((4, 6), seed=1)
    y, tape = layer.forward(x, lengths)
    assert y.shape == (4, 6)
    assert same_bits(layer(x, lengths), y)
    want = central_difference(lambda: float(np.vdot(layer(x, lengths), dy)), x)
    assert relative_error(layer.backward(tape, dy), want) < 1e-8


@pools
def test_tangents_are_those_of_a_linear_map(name: str) -> None:
    layer, x, x_dot, dy = POOLS[name](dtype=np.float64), normal((5, 4, 6)), normal((5, 4, 6), seed=1), normal((4, 6))
    _, tape = layer.forward(x, RAGGED)
    y_dot, tangent = layer.forward_tangent(tape, x_dot)
    assert relative_error(y_dot, layer(x_dot, RAGGED)) < 1e-15
    assert abs(np.vdot(y_dot, dy) - np.vdot(x_dot, layer.backward(tape, dy))) < 1e-12
    dx, dx_dot = layer.backward_tangent(tape, tangent, dy, 2 * dy)
    assert relative_error(dx_dot, 2 * dx) < 1e-15


@given(
    T=st.integers(0, 150),
    B=st.integers(0, 5),
    F=st.integers(0, 40),
    ragged=st.booleans(),
    batch_first=st.booleans(),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_the_mean_equals_its_twin(T: int, B: int, F: int, ragged: bool, batch_first: bool, dtype: Any) -> None:
    layer = gradcore.MeanPool(batch_first, dtype=dtype)
    lengths = np.random.default_rng(1).integers(0, T + 1, B) if ragged else np.full(B, T)
    steps, dy = normal((T, B, F), dtype), normal((B, F), dtype, seed=1)
    y, tape = layer.forward(steps.swapaxes(0, 1) if batch_first else steps, lengths if ragged else None)
    dx = layer.backward(tape, dy)
    tolerance = 1e-6 if dtype == np.float32 else 1e-14
    # steps that cancel leave a small mean, whose error is still that of the sum: it is measured against their sizes
    exact, sizes = (reference.mean_pool_forward(a.astype(np.float64), lengths) for a in (steps, np.abs(steps)))
    assert np.linalg.norm(y - exact) <= tolerance * np.linalg.norm(sizes)
    want = reference.mean_pool_backward(dy.astype(np.float64), lengths, T)
    assert relative_error(dx.swapaxes(0, 1) if batch_first else dx, want) < tolerance


def test_the_mean_of_many_steps_keeps_its_accuracy() -> None:
    """A hundred thousand steps of one sign, which added up one by one in float32 would be off by 1e-4."""
    x = np.random.default_rng(0).random((100_000, 1, 3)).astype(np.float32)
    assert relative_error(gradcore.MeanPool()(x), x.mean(axis=0, dtype=np.float64)) < 3e-6


@pools
@both_dtypes
def test_same_bits_for_any_number_of_threads(name: str, dtype: Any, with_thread_counts: Any) -> None:
    x, dy, lengths = normal((70, 13, 74), dtype), normal((13, 74), dtype), np.arange(13) * 5

    def run() -> list[bytes]:
        found = []
        for given_lengths in (None, lengths):
            layer = POOLS[name](dtype=dtype)
            y, tape = layer.forward(x, given_lengths)
            found += [y.tobytes(), layer.backward(tape, dy).tobytes()]
        return found

    first, *others = with_thread_counts(run)
    assert all(other == first for other in others)


# ---- lengths -------------------------------------------------------------------------------------------------------


@pools
@pytest.mark.parametrize("batch_first", [False, True])
def test_what_is_past_the_end_has_no_effect_and_no_gradient(name: str, batch_first: bool) -> None:
    layer, steps = POOLS[name](batch_first=batch_first), normal((5, 4, 6), np.float32)
    x = np.ascontiguousarray(steps.swapaxes(0, 1)) if batch_first else steps.copy()
    y, tape = layer.forward(x, RAGGED)
    dx = layer.backward(tape, np.ones_like(y))
    dead = np.arange(5)[:, None] >= np.array(RAGGED)
    (x.swapaxes(0, 1) if batch_first else x)[dead] = np.nan
    assert same_bits(layer(x, RAGGED), y)
    assert not (dx.swapaxes(0, 1) if batch_first else dx)[dead].any()
    assert not y[2].any()


@pools
@pytest.mark.parametrize("shape", [(0, 4, 6), (5, 0, 6), (5, 4, 0), (0, 0, 0)])
def test_nothing(name: str, shape: tuple[int, ...]) -> None:
    layer = POOLS[name]()
    y, tape = layer.forward(np.ones(shape, np.float32))
    assert y.shape == shape[1:]
    assert shape[0] or not y.any()
    assert layer.backward(tape, y).shape == shape


# ---- FinalState ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", [gradcore.RNN, gradcore.LSTM, gradcore.GRU])
@pytest.mark.parametrize("lengths", [None, RAGGED])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_it_is_the_state_of_the_layer_below(cell: Any, lengths: Any, batch_first: bool, bidirectional: bool) -> None:
    given_too = {"batch_first": batch_first, "bidirectional": bidirectional, "dtype": np.float64}
    layer = cell(3, 4, 2, rng=0, **given_too)
    model = gradcore.Sequential(layer, gradcore.FinalState(batch_first=batch_first))
    x, dy = normal((4, 5, 3) if batch_first else (5, 4, 3)), normal((4, 8 if bidirectional else 4), seed=1)
    y, tape = model.forward(x, lengths=lengths)
    state = tape.state[0][0] if cell is gradcore.LSTM else tape.state[0]
    want = np.concatenate(state[-2:] if bidirectional else state[-1:], axis=1)
    want[[length == 0 for length in lengths or []] or slice(0)] = 0
    assert same_bits(y, want)
    dx = model.backward(tape, dy)
    assert relative_error(dx, central_difference(lambda: float(np.vdot(model(x, lengths=lengths), dy)), x)) < 1e-7


def test_it_knows_the_directions_from_below_however_models_are_nested() -> None:
    def both() -> Any:
        return gradcore.LSTM(3, 4, bidirectional=True, rng=0)

    x = normal((5, 2, 3), np.float32)
    want = gradcore.Sequential(both(), gradcore.FinalState())(x)
    inner = gradcore.Sequential(gradcore.Dropout(0.0), gradcore.FinalState())
    assert same_bits(gradcore.Sequential(both(), inner)(x), want)
    assert same_bits(copy.deepcopy(gradcore.Sequential(gradcore.Sequential(both()), gradcore.FinalState()))(x), want)
    assert same_bits(gradcore.FinalState(True)(both()(x)[0]), want)
    last = gradcore.Sequential(both(), gradcore.GRU(8, 4, rng=0), gradcore.FinalState())
    assert same_bits(last(x), gradcore.Sequential(*copy.deepcopy(last.layers[:2]), gradcore.LastStep())(x))


def test_it_refuses_what_has_no_final_state() -> None:
    def both() -> Any:
        return gradcore.LSTM(3, 4, bidirectional=True)

    message = r"layers\[2\]: FinalState takes the directions of layers\[0\] at different steps, but layers\[1\] between"
    with pytest.raises(ValueError, match=message):
        gradcore.Sequential(both(), gradcore.Linear(8, 8), gradcore.FinalState())
    gradcore.Sequential(gradcore.LSTM(3, 4), gradcore.Linear(4, 8), gradcore.FinalState())
    with pytest.raises(ValueError, match=r"layers\[1\]: has bidirectional=False, and layers\[0\] below it has"):
        gradcore.Sequential(both(), gradcore.FinalState(False))
    with pytest.raises(ValueError, match="x: expected two directions of as many features, got 3 features"):
        gradcore.FinalState(True)(np.ones((5, 2, 3), np.float32))


# ---- what all hold -------------------------------------------------------------------------------------------------


@pools
def test_other_axes_than_the_layer_below_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"layers\[1\]: has batch_first=False, and layers\[0\] below it has"):
        gradcore.Sequential(gradcore.GRU(3, 4, batch_first=True), POOLS[name]())


@pools
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout(name: str, layout: str) -> None:
    layer, x = POOLS[name](), normal((5, 4, 6), np.float32)
    y, tape = layer.forward(x, RAGGED)
    other_y, other_tape = layer.forward(LAYOUTS[layout](x), np.array(RAGGED, np.uint8))
    assert same_bits(other_y, y)
    assert same_bits(layer.backward(other_tape, LAYOUTS[layout](y)), layer.backward(tape, y))


@pools
def test_wrong_arguments(name: str) -> None:
    layer, x = POOLS[name](), normal((5, 4, 6), np.float32)
    y, tape = layer.forward(x)
    with pytest.raises(ValueError, match=r"x: expected shape \(T, B, F\), got \(4, 6\)"):
        layer.forward(x[0])
    with pytest.raises(TypeError, match="x: expected float32, got float64"):
        layer.forward(x.astype(np.float64))
    with pytest.raises(ValueError, match="lengths: expected 0 to 5, got 6 at position 1"):
        layer.forward(x, [1, 6, 2, 3])
    with pytest.raises(ValueError, match=r"dy: expected shape \(4, 6\), got \(4, 5\)"):
        layer.backward(tape, y[:, 1:])
    with pytest.raises(ValueError, match="tape: expected a tape from this layer's forward"):
        POOLS[name]().backward(tape, y)
    with pytest.raises(TypeError, match="batch_first: expected True or False, got str"):
        POOLS[name](batch_first="yes")


def test_representations_and_configurations() -> None:
    assert repr(gradcore.FinalState()) == "FinalState()"
    assert repr(gradcore.FinalState(True, dtype=np.float64)) == "FinalState(bidirectional=True, dtype='float64')"
    assert repr(gradcore.MeanPool(True)) == "MeanPool(batch_first=True)"
    layer = gradcore.FinalState()
    gradcore.Sequential(gradcore.GRU(2, 2, bidirectional=True), layer)
    assert layer.config() == {"bidirectional": None, "batch_first": False, "dtype": "float32"}


@pools
def test_a_model_with_it_learns_in_fit(name: str) -> None:
    """Which of two classes a sequence's steps lean to."""
    rng = np.random.default_rng(0)
    both = name == "FinalState of two directions"
    layers = (
        gradcore.LSTM(2, 8, bidirectional=both, rng=rng),
        POOLS[name](),
        gradcore.Linear(8 * (1 + both), 2, rng=rng),
    )
    model = gradcore.Sequential(*layers)
    target = rng.integers(0, 2, 32)
    x = normal((9, 32, 2), np.float32) + np.float32(0.8) * (2 * target[:, None] - 1).astype(np.float32)
    batches = [(x, target, rng.integers(3, 10, 32))]
    history = gradcore.fit(model, batches, losses.softmax_cross_entropy, optim.Adam(model, lr=0.02), epochs=60)
    assert history.loss[-1] < 0.3 * history.loss[0]


# ---- peers ---------------------------------------------------------------------------------------------------------


@pytest.mark.peers
def test_final_states_and_means_equal_torch() -> None:
    torch = pytest.importorskip("torch")
    peer = torch.nn.LSTM(3, 4, bidirectional=True).double()
    layer = gradcore.LSTM(3, 4, bidirectional=True, dtype=np.float64)
    layer.load_state_dict({name: value.numpy() for name, value in peer.state_dict().items()})
    lengths, x, dy = [5, 4, 2], normal((5, 3, 3)), normal((3, 8), seed=1)
    tx = torch.tensor(x, requires_grad=True)
    packed = torch.nn.utils.rnn.pack_padded_sequence(tx, lengths)
    y, (h, _) = peer(packed)
    theirs = torch.cat([h[0], h[1]], dim=1)
    theirs.backward(torch.tensor(dy), retain_graph=True)
    model = gradcore.Sequential(layer, gradcore.FinalState())
    ours, tape = model.forward(x, lengths=lengths)
    assert relative_error(ours, theirs.detach().numpy()) < 1e-10
    assert relative_error(model.backward(tape, dy), tx.grad.numpy()) < 1e-10

    tx.grad = None
    padded, _ = torch.nn.utils.rnn.pad_packed_sequence(y)
    mean = padded.sum(dim=0) / torch.tensor(lengths)[:, None]
    mean.backward(torch.tensor(dy))
    model = gradcore.Sequential(copy.deepcopy(layer), gradcore.MeanPool())
    ours, tape = model.forward(x, lengths=lengths)
    assert relative_error(ours, mean.detach().numpy()) < 1e-10
    assert relative_error(model.backward(tape, dy), tx.grad.numpy()) < 1e-10
