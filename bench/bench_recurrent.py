"""Forward, backward and inference of RNN, LSTM and GRU in float32, beside PyTorch where it is installed.

Run with ``pytest bench/bench_recurrent.py``. Each case is verified before it is timed: outputs and dL/dx against the
NumPy twin, and against PyTorch where that is what is timed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from figures import note

import gradcore
from gradcore import reference

SHAPES = [  # T, B, I, H
    (100, 1, 64, 64),
    (100, 32, 64, 128),
    (100, 64, 256, 256),
    (50, 64, 512, 512),
    (784, 128, 1, 100),
    (35, 20, 650, 650),
    (200, 16, 128, 1024),
]
GATES = {"RNN": 1, "LSTM": 4, "GRU": 3}
TWIN = {"RNN": "RNN_TANH", "LSTM": "LSTM", "GRU": "GRU"}
VERIFIED_STEPS = 20  # the twin is slow, so it judges the first steps of long sequences

Array = np.ndarray[Any, Any]


def make(cell: str, shape: tuple[int, int, int, int]) -> tuple[Any, Array]:
    T, B, I, H = shape
    rng = np.random.default_rng(0)
    return getattr(gradcore, cell)(I, H, rng=rng), rng.standard_normal((T, B, I)).astype(np.float32)


def verify(cell: str, layer: Any, x: Array) -> None:
    x = x[:VERIFIED_STEPS]
    params = {name: value.astype(np.float64) for name, value in layer.params.items()}
    want, _, kept = reference.recurrent_forward(TWIN[cell], params, x.astype(np.float64))
    y, tape = layer.forward(x)
    np.testing.assert_allclose(y, want, atol=2e-5)
    dx = layer.backward(tape, y)
    want_dx = reference.recurrent_backward(kept, want).dx
    np.testing.assert_allclose(dx, want_dx, atol=1e-4 * np.abs(want_dx).max())


def torch_twin(cell: str, layer: Any, x: Array) -> tuple[Any, Any, Any]:
    """PyTorch's module with the same weights, and x as its tensor."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(gradcore.get_num_threads())
    twin = getattr(torch.nn, cell)(layer.input_size, layer.hidden_size)
    twin.load_state_dict({name: torch.from_numpy(value) for name, value in layer.state_dict().items()})
    x_there = torch.from_numpy(x).requires_grad_()
    y = twin(x_there)[0]
    np.testing.assert_allclose(y.detach().numpy(), layer(x)[0], atol=2e-5)
    return torch, twin, x_there


def flop(cell: str, shape: tuple[int, int, int, int], passes: int) -> int:
    T, B, I, H = shape
    return passes * 2 * T * B * GATES[cell] * H * (I + H)


def training(cell: str, layer: Any, x: Array) -> Callable[[], None]:
    dy = np.ones((*x.shape[:2], layer.hidden_size), np.float32)

    def run() -> None:
        _, tape = layer.forward(x)
        layer.backward(tape, dy)

    return run


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("cell", GATES)
@pytest.mark.parametrize("who", ["gradcore", "torch"])
def test_training(benchmark: Any, who: str, cell: str, shape: tuple[int, int, int, int]) -> None:
    benchmark.group = f"forward + backward, {cell} {shape}"
    layer, x = make(cell, shape)
    verify(cell, layer, x)
    if who == "gradcore":
        run = training(cell, layer, x)
    else:
        torch, twin, x_there = torch_twin(cell, layer, x)
        dy = torch.ones(*x.shape[:2], layer.hidden_size)

        def run() -> None:
            twin(x_there)[0].backward(dy)

    benchmark.pedantic(run, rounds=7, warmup_rounds=2)
    note(benchmark, "GFLOP/s", flop(cell, shape, passes=3), shape=shape)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("cell", GATES)
@pytest.mark.parametrize("who", ["gradcore", "torch"])
def test_inference(benchmark: Any, who: str, cell: str, shape: tuple[int, int, int, int]) -> None:
    benchmark.group = f"inference, {cell} {shape}"
    layer, x = make(cell, shape)
    verify(cell, layer, x)
    if who == "gradcore":
        benchmark.pedantic(lambda: layer(x), rounds=7, warmup_rounds=2)
    else:
        torch, twin, x_there = torch_twin(cell, layer, x)
        with torch.no_grad():
            benchmark.pedantic(lambda: twin(x_there), rounds=7, warmup_rounds=2)
    note(benchmark, "GFLOP/s", flop(cell, shape, passes=1), shape=shape)
