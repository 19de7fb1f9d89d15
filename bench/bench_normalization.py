"""Layer norm, RMS norm, batch norm: each result is verified against its twin, then timed, also beside PyTorch.

pytest bench/bench_normalization.py --benchmark-columns=min,median
python bench/bench_normalization.py            # interleaved with PyTorch, two threads: medians of ratios
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from figures import note

import gradcore
from gradcore import reference

SHAPES = [(8192, 512), (512, 512), (4096, 64), (64, 8192)]
EPS = 1e-5
KINDS: dict[str, tuple[Callable[[int], Any], Callable[..., Any], Callable[..., Any]]] = {
    "LayerNorm": (gradcore.LayerNorm, reference.layer_norm_forward, reference.layer_norm_backward),
    "RMSNorm": (
        lambda F: gradcore.RMSNorm(F, EPS),
        lambda x, w, b: reference.rms_norm_forward(x, w, EPS),
        lambda x, w, dy: reference.rms_norm_backward(x, w, dy, EPS),
    ),
    "BatchNorm": (gradcore.BatchNorm, reference.batch_norm_forward, reference.batch_norm_backward),
}


def verified(got: Any, want: Any) -> None:
    assert np.linalg.norm(got - want) <= 1e-5 * np.linalg.norm(want)


def prepared(kind: str, shape: tuple[int, int]) -> tuple[Callable[[], Any], Any, Any]:
    """Forward and backward of a layer in float32, verified; x and dy."""
    make, forward, backward = KINDS[kind]
    layer, rng = make(shape[1]), np.random.default_rng(0)
    x, dy = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))

    def forward_and_backward() -> Any:
        y, tape = layer.forward(x)
        return y, layer.backward(tape, dy)

    y, dx = forward_and_backward()
    wide = [a.astype(np.float64) for a in (x, layer.params["weight"])]
    verified(y, forward(*wide, np.zeros(shape[1])))
    want, *grads = backward(*wide, dy.astype(np.float64))
    verified(dx, want)
    for got, grad in zip(layer.grads.values(), grads, strict=True):
        verified(got, grad)
    return forward_and_backward, x, dy


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_normalization(benchmark: Any, kind: str, shape: tuple[int, int]) -> None:
    """Forward and backward of (rows, features) in float32, and their elements in a nanosecond."""
    forward_and_backward, x, _ = prepared(kind, shape)
    benchmark(forward_and_backward)
    note(benchmark, "elements/ns", x.size)


def beside_torch(kind: str, shape: tuple[int, int], rounds: int) -> str:
    """The median time of both, and that of the ratios of neighbors."""
    import torch

    torch.set_num_threads(2)
    ours, x, dy = prepared(kind, shape)
    F = shape[1]
    peers = {"LayerNorm": torch.nn.LayerNorm, "RMSNorm": torch.nn.RMSNorm, "BatchNorm": torch.nn.BatchNorm1d}
    peer, tx, tdy = peers[kind](F, eps=EPS), torch.tensor(x, requires_grad=True), torch.tensor(dy)

    def theirs() -> None:
        tx.grad = None
        peer(tx).backward(tdy)

    theirs()
    times = np.empty((rounds, 2))
    for row in times:
        for i, run in enumerate((ours, theirs)):
            start = time.perf_counter()
            run()
            row[i] = time.perf_counter() - start
    own, other = 1e3 * np.median(times, axis=0)
    ratio = np.median(times[:, 1] / times[:, 0])
    return f"| {kind} | {shape[0]} x {F} | {own:.2f} ms | {other:.2f} ms | {ratio:.2f} |"


if __name__ == "__main__":
    gradcore.set_num_threads(2)
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 51
    print("| layer | shape | gradcore | PyTorch | ratio |\n|---|---|---|---|---|")
    for name in KINDS:
        for size in SHAPES:
            print(beside_torch(name, size, n), flush=True)
