"""Forward, backward and inference of RNN, LSTM and GRU in float32; beside others: ``python bench/peers.py``.

Run with ``pytest bench/bench_recurrent.py``. Each case is verified before it is timed: outputs and dL/dx against the
NumPy twin.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from figures import GATES, SHAPES, Shape, flop, note

import gradcore
from gradcore import reference

TWIN = {"RNN": "RNN_TANH", "LSTM": "LSTM", "GRU": "GRU"}
VERIFIED_STEPS = 20  # the twin is slow, so it judges the first steps of long sequences

Array = np.ndarray[Any, Any]


def make(cell: str, shape: Shape) -> tuple[Any, Array]:
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


def training(layer: Any, x: Array) -> Callable[[], None]:
    dy = np.ones((*x.shape[:2], layer.hidden_size), np.float32)

    def run() -> None:
        _, tape = layer.forward(x)
        layer.backward(tape, dy)

    return run


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("cell", GATES)
def test_training(benchmark: Any, cell: str, shape: Shape) -> None:
    benchmark.group = f"forward + backward, {cell}"
    layer, x = make(cell, shape)
    verify(cell, layer, x)
    benchmark.pedantic(training(layer, x), rounds=7, warmup_rounds=2)
    note(benchmark, "GFLOP/s", flop(cell, shape, passes=3), shape=shape)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("cell", GATES)
def test_inference(benchmark: Any, cell: str, shape: Shape) -> None:
    benchmark.group = f"inference, {cell}"
    layer, x = make(cell, shape)
    verify(cell, layer, x)
    benchmark.pedantic(lambda: layer(x), rounds=7, warmup_rounds=2)
    note(benchmark, "GFLOP/s", flop(cell, shape, passes=1), shape=shape)
