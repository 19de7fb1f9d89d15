"""Linear and the activations: each result is verified against its twin, then timed.

pytest bench/bench_linear.py --benchmark-columns=min,median
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from figures import note

import gradcore
from gradcore import reference

SHAPES = [(32, 128, 128), (256, 256, 256), (64, 1024, 1024), (2048, 512, 10), (1, 512, 512)]


def verified(got: Any, want: Any) -> None:
    assert np.linalg.norm(got - want) <= 1e-5 * np.linalg.norm(want)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_linear(benchmark: Any, shape: tuple[int, int, int]) -> None:
    """Forward and backward of (rows, in_features, out_features) in float32, and their GFLOP/s."""
    N, F, O = shape
    rng = np.random.default_rng(0)
    layer = gradcore.Linear(F, O, rng=rng)
    x, dy = rng.standard_normal((N, F)).astype(np.float32), rng.standard_normal((N, O)).astype(np.float32)

    def forward_and_backward() -> Any:
        y, tape = layer.forward(x)
        return y, layer.backward(tape, dy)

    y, dx = forward_and_backward()
    wide = [a.astype(np.float64) for a in (x, layer.params["weight"], dy)]
    verified(y, reference.linear_forward(wide[0], wide[1], layer.params["bias"]))
    for got, want in zip(
        (dx, layer.grads["weight"], layer.grads["bias"]), reference.linear_backward(*wide), strict=True
    ):
        verified(got, want)
    benchmark(forward_and_backward)
    note(benchmark, "GFLOP/s", 6 * N * F * O)


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize(
    "make", [gradcore.Tanh, gradcore.Sigmoid, gradcore.ReLU, gradcore.ELU, gradcore.GELU, gradcore.Softplus]
)
def test_activation(benchmark: Any, make: Any, direction: str) -> None:
    """A million float32 numbers."""
    layer, rng = make(), np.random.default_rng(0)
    x, dy = (rng.standard_normal(1_000_000).astype(np.float32) for _ in range(2))
    constants = (1.0, 20.0) if make is gradcore.Softplus else ()
    y, tape = layer.forward(x)
    name = make.__name__.lower()
    verified(y, reference.activation_forward(name, x.astype(np.float64), *constants))
    verified(layer.backward(tape, dy), reference.activation_backward(name, x.astype(np.float64), dy, *constants))
    benchmark(*((layer.forward, x) if direction == "forward" else (layer.backward, tape, dy)))
    note(benchmark, "elements/ns", x.size)
