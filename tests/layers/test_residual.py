"""Residual: y = x + s F(x), with members of every kind."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import numpy as np
import pytest
from tools import Array, central_difference, relative_error, same_bits

import gradcore
from gradcore.training.monitor import GradientMonitor

pytestmark = pytest.mark.kernels

f8 = {"dtype": np.float64}


def example(shape: tuple[int, ...] = (5, 4, 3), seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(0, 1.5, shape)


def mlp() -> Any:
    return gradcore.MLP([3, 5, 3], "tanh", rng=1, **f8)


BLOCKS: dict[str, Any] = {
    "MLP": lambda: gradcore.Residual(mlp()),
    "scaled": lambda: gradcore.Residual(gradcore.LayerNorm(3, **f8), mlp(), scale=0.3),
    "nested": lambda: gradcore.Residual(gradcore.Residual(mlp(), scale=-2), gradcore.Tanh()),
    "recurrent": lambda: gradcore.Residual(gradcore.GRU(3, 3, rng=2, **f8), scale=0.5),
    "without parameters": lambda: gradcore.Residual(gradcore.Tanh(), **f8),
    "empty": lambda: gradcore.Residual(scale=0.5, **f8),
}
blocks = pytest.mark.parametrize("name", BLOCKS)


@blocks
def test_gradients_by_central_differences(name: str) -> None:
    block, x, dy = BLOCKS[name](), example(), example(seed=1)
    y, tape = block.forward(x)
    dx = block.backward(tape, dy)
    assert same_bits(y, block(x))

    def loss() -> float:
        return float(np.vdot(block(x), dy))

    assert relative_error(dx, central_difference(loss, x)) < 1e-8
    for key, p in block.params.items():
        assert relative_error(block.grads[key], central_difference(loss, p)) < 1e-8, key


@blocks
def test_it_is_the_sum(name: str) -> None:
    block, x = BLOCKS[name](), example()
    branch = x
    for layer in block.layers:
        y = layer(branch)
        branch = y[0] if isinstance(y, tuple) else y
    assert relative_error(block(x), x + block.scale * branch) < 1e-15


@blocks
def test_copies_and_state_dicts(name: str) -> None:
    block, x = BLOCKS[name](), example()
    other = BLOCKS[name]()
    other.flat_params.fill(0)
    other.load_state_dict(block.state_dict())
    for twin in (copy.deepcopy(block), pickle.loads(pickle.dumps(block)), other):
        assert same_bits(twin(x), block(x))
        assert repr(twin) == repr(block)
        assert twin.dtype == twin.flat_params.dtype == np.float64


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_same_bits_for_any_number_of_threads(dtype: Any, with_thread_counts: Any) -> None:
    def run() -> list[bytes]:
        block, x = gradcore.Residual(gradcore.Tanh(), scale=0.3, dtype=dtype), example((300, 107)).astype(dtype)
        y, tape = block.forward(x)
        return [y.tobytes(), block.backward(tape, x).tobytes()]

    first, *others = with_thread_counts(run)
    assert all(other == first for other in others)


def test_names_repr_and_config() -> None:
    block = gradcore.Residual(gradcore.Linear(3, 3), gradcore.Tanh(), scale=0.5)
    assert list(block.params) == ["0.weight", "0.bias"]
    assert repr(block) == "Residual(Linear(3, 3), Tanh(), scale=0.5)"
    assert block.config() == {"layers": block.layers, "scale": 0.5, "dtype": "float32"}
    assert repr(gradcore.Residual(gradcore.Tanh(), dtype="f8")) == "Residual(Tanh(dtype='float64'), dtype='float64')"
    assert gradcore.Residual(gradcore.Linear(3, 3, **f8)).dtype == np.float64
    model = gradcore.Sequential(gradcore.Residual(gradcore.Tanh()), gradcore.Linear(3, 3, **f8))
    assert model[0].dtype == model[0][0].dtype == np.float64


def test_it_refuses() -> None:
    wider = gradcore.Residual(gradcore.Linear(3, 4))
    message = r"layers: expected an output of the shape of x, \(5, 3\), to add it to x, got \(5, 4\)"
    for call in (wider, wider.forward):
        with pytest.raises(ValueError, match=message):
            call(np.ones((5, 3), np.float32))
    one = gradcore.Residual(gradcore.Linear(3, 1))  # NumPy would broadcast it
    with pytest.raises(ValueError, match="expected an output of the shape of x"):
        one(np.ones((5, 3), np.float32))
    block = gradcore.Residual(gradcore.Linear(3, 3))
    y, tape = block.forward(np.ones((5, 3), np.float32))
    with pytest.raises(TypeError, match="x: expected float32, got float64"):
        block(np.ones((5, 3)))
    with pytest.raises(TypeError, match="dy: expected float32, got float64"):
        block.backward(tape, np.ones((5, 3)))
    with pytest.raises(ValueError, match=r"dy: expected shape \(5, 3\), got \(3,\)"):
        block.backward(tape, y[0])
    with pytest.raises(ValueError, match="lengths: no layer of this model takes it"):
        block(np.ones((5, 3), np.float32), lengths=[1])
    with pytest.raises(ValueError, match="tape: expected a tape from this layer's forward"):
        block.backward(gradcore.Residual(gradcore.Linear(3, 3)).forward(y)[1], y)
    with pytest.raises(TypeError, match="dy: expected an array, got None"):
        block.backward(tape, None)
    with pytest.raises(ValueError, match="scale: expected a number, got nan"):
        gradcore.Residual(scale=math.nan)
    with pytest.raises(TypeError, match="dtype: expected float32 or float64"):
        gradcore.Residual(gradcore.Tanh(), dtype=np.float16)
    assert not block.flat_grads.any()


def test_the_tape_has_the_scale_of_its_forward_pass() -> None:
    block, x = gradcore.Residual(gradcore.Linear(3, 3, rng=0)), np.ones((5, 3), np.float32)
    y, tape = block.forward(x)
    want = block.backward(tape, y)
    block.scale = 7.0
    assert same_bits(block.backward(tape, y), want)
    assert not same_bits(block(x), y)


def test_lengths_and_states_reach_the_members() -> None:
    gru = gradcore.GRU(3, 3, rng=2, **f8)
    block = gradcore.Sequential(gradcore.Residual(copy.deepcopy(gru)), gradcore.LastStep())
    x, lengths, (h,) = example(), [5, 2, 0, 1], block.initial_state(4)
    h = h + 0.5
    y, state = gru(x, h, lengths)
    ends = np.maximum(np.array(lengths) - 1, 0)
    want = np.where((np.array(lengths) > 0)[:, None], (x + y)[ends, np.arange(4)], 0)
    got, (final,) = block(x, state=(h,), lengths=lengths)
    assert same_bits(got, want)
    assert same_bits(final, state)
    got, tape = block.forward(x, state=(h,), lengths=lengths)
    assert same_bits(got, want)
    assert same_bits(tape.state[0], state)
    dh = np.ones((1, 4, 3))
    block.backward(tape, None, dstate=(dh,), step_clip=0.5)
    _, alone = gru.forward(x, h, lengths)
    gru.backward(alone, np.zeros_like(x), dh, step_clip=0.5)
    assert same_bits(tape.dstate[0], alone.dstate)
    assert same_bits(block.flat_grads, gru.flat_grads)


def test_the_order_of_axes_is_checked_within() -> None:
    first = gradcore.GRU(3, 3, batch_first=True)
    with pytest.raises(ValueError, match=r"^layers\[1\]\.layers\[0\]: has batch_first=False"):
        gradcore.Sequential(first, gradcore.Residual(gradcore.GRU(3, 3)))
    with pytest.raises(ValueError, match=r"^layers\[2\]: has batch_first=False"):
        gradcore.Sequential(first, gradcore.Residual(gradcore.Linear(3, 3)), gradcore.LastStep())


def test_members_are_no_part_of_the_chain_around() -> None:
    model = gradcore.Sequential(gradcore.Residual(gradcore.Linear(3, 3), gradcore.Tanh()), gradcore.Linear(3, 1))
    y, tape = model.forward(np.ones((4, 3), np.float32))
    model.backward(tape, np.ones_like(y))
    members = list(tape.walk())
    assert [member.name for member in members] == ["", "0", "0.0", "0.1", "1"]
    assert [member.in_chain for member in members] == [True, True, False, False, True]
    assert members[1].dx_norm == tape.d_norm[0]
    assert members[2].dx_norm == tape.tapes[0].d_norm[0]


@pytest.mark.parametrize(("residual", "found"), [(True, []), (False, ["vanishing_in_layers"])])
def test_a_deep_stack_of_blocks_does_not_vanish(residual: bool, found: list[str]) -> None:
    """Forty blocks whose branches shrink the gradient by far; as a chain they lose it."""
    rng = np.random.default_rng(0)
    blocks: list[Any] = []
    for _ in range(40):
        branch = gradcore.Linear(64, 64, rng=rng), gradcore.ReLU(), gradcore.Linear(64, 64, rng=rng)
        blocks.append(gradcore.Residual(*branch, scale=0.5) if residual else gradcore.Sequential(*branch))
    model = gradcore.Sequential(*blocks)
    y, tape = model.forward(rng.standard_normal((32, 64)).astype(np.float32))
    model.backward(tape, np.ones_like(y))
    monitor = GradientMonitor()
    for step in range(10):
        monitor.update(step, 1.0, 1.0, model, tape)
    assert [finding.kind for finding in monitor.findings if "layers" in finding.kind] == found
    assert bool(tape.d_norm[0] / tape.d_norm[-1] > 0.1) is residual


def test_it_trains() -> None:
    rng = np.random.default_rng(0)
    blocks = [gradcore.Residual(gradcore.LayerNorm(8), gradcore.MLP([8, 16, 8], rng=rng), scale=0.5) for _ in range(3)]
    model = gradcore.Sequential(gradcore.Linear(3, 8, rng=rng), *blocks, gradcore.Linear(8, 1, rng=rng))
    x = rng.standard_normal((40, 3)).astype(np.float32)
    batches = [(x, x[:, :1] * x[:, 1:2])] * 30
    history = gradcore.fit(model, batches, gradcore.losses.mse, gradcore.optim.Adam(model, lr=0.01), epochs=2)
    assert history.loss[-1] < 0.2 * history.loss[0]


def test_reset_reaches_the_members() -> None:
    gru = gradcore.GRU(3, 3, rng=2, **f8)
    block, x, reset = gradcore.Residual(copy.deepcopy(gru)), example(), np.zeros((5, 4), bool)
    reset[2, 1] = True
    want = x + gru(x, reset=reset)[0]
    assert same_bits(block(x, reset=reset), want)
    assert same_bits(block.forward(x, reset=reset)[0], want)
    assert not same_bits(block(x), want)
