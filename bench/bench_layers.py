"""Dropout, PReLU, Embedding and MeanPool: verified against their twins, then timed, beside what memory allows.

pytest bench/bench_layers.py --benchmark-columns=min,median
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from figures import note

import gradcore
from gradcore import _kernels, reference

N = 4_000_000  # elements
SHAPES = [(1000, 64, 100_000), (10_000, 32, 200_000), (50_000, 256, 40_000), (50_000, 512, 20_000)]


@pytest.mark.parametrize("what", ["forward", "backward", "product"])
def test_dropout(benchmark: Any, what: str) -> None:
    """Four million float32 numbers, and their GB/s."""
    layer, x = gradcore.Dropout(0.1, rng=0), np.random.default_rng(0).standard_normal(N).astype(np.float32)
    y, tape = layer.forward(x)
    assert np.array_equal(y, reference.dropout(x, 0.1, tape.kept[1]))
    calls = {
        "forward": lambda: layer.forward(x),
        "backward": lambda: layer.backward(tape, x),
        "product": lambda: np.multiply(x, np.float32(1.1), out=y),
    }
    benchmark(calls[what])
    note(benchmark, "GB/s", 8 * N)


@pytest.mark.parametrize("what", ["forward", "backward"])
@pytest.mark.parametrize("slopes", [1, 500])
def test_prelu(benchmark: Any, slopes: int, what: str) -> None:
    """Four million float32 numbers in rows of 500, and their GB/s."""
    x, dy = np.random.default_rng(0).standard_normal((2, N // 500, 500)).astype(np.float32)
    layer = gradcore.PReLU(slopes)
    y, tape = layer.forward(x)
    assert np.array_equal(y, reference.prelu_forward(x, layer.params["weight"]))
    benchmark(*((layer.forward, x) if what == "forward" else (layer.backward, tape, dy)))
    note(benchmark, "GB/s", (8 if what == "forward" else 12) * N)


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("what", ["forward", "backward"])
def test_mean_pool(benchmark: Any, what: str, ragged: bool) -> None:
    """200 steps of 64 sequences of 256 features, and their GB/s."""
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((200, 64, 256)).astype(np.float32), np.ones((64, 256), np.float32)
    lengths = rng.integers(0, 201, 64) if ragged else np.full(64, 200)
    layer = gradcore.MeanPool()
    y, tape = layer.forward(x, lengths if ragged else None)
    assert np.allclose(y, reference.mean_pool_forward(x.astype(np.float64), lengths), atol=1e-5)
    calls = {
        "forward": lambda: layer.forward(x, lengths if ragged else None),
        "backward": lambda: layer.backward(tape, dy),
    }
    benchmark(calls[what])
    note(benchmark, "GB/s", 4 * 256 * (int(lengths.sum()) if what == "forward" else 200 * 64))


@pytest.mark.parametrize("order", ["uniform", "words"])
@pytest.mark.parametrize("what", ["forward", "backward", "copy"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_embedding(benchmark: Any, shape: tuple[int, int, int], what: str, order: str) -> None:
    """(vectors, features, numbers), drawn alike or as words occur, and their GB/s, with a copy of as many bytes."""
    n, E, N = shape
    rng = np.random.default_rng(0)
    x = rng.integers(0, n, N) if order == "uniform" else np.minimum(rng.pareto(1.0, N) * 5, n - 1).astype(np.int64)
    layer, dy = gradcore.Embedding(n, E, rng=rng), rng.standard_normal((N, E)).astype(np.float32)
    y, tape = layer.forward(x)
    assert np.array_equal(y, reference.embedding_forward(x, layer.params["weight"]))
    layer.backward(tape, dy)
    want = reference.embedding_backward(x, layer.params["weight"], dy.astype(np.float64))
    assert np.linalg.norm(layer.grads["weight"] - want) <= 1e-4 * np.linalg.norm(want)
    calls = {
        "forward": lambda: layer.forward(x),
        "backward": lambda: layer.backward(tape, dy),
        "copy": lambda: _kernels.copy_rows(dy, None, y, None),
    }
    benchmark(calls[what])
    note(benchmark, "GB/s", (3 if what == "backward" else 2) * 4 * N * E)
