"""Attention and transformer layer: verified, then timed, also beside PyTorch; memory at growing lengths.

pytest bench/bench_attention.py --benchmark-columns=min,median
python bench/bench_attention.py [rounds]       # interleaved with PyTorch, two threads: medians of ratios
python bench/bench_attention.py --memory       # the most that forward and backward allocate, at growing T
"""

from __future__ import annotations

import sys
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from figures import note

import gradcore
from gradcore import reference

Shape = tuple[int, int, int, int]  # T, B, E, heads
SHAPES: list[Shape] = [(512, 8, 512, 8), (64, 32, 128, 4), (2048, 1, 256, 4)]


def drawn(shape: Shape) -> tuple[Any, Any]:
    T, B, E, _ = shape
    rng = np.random.default_rng(0)
    return rng.standard_normal((T, B, E), np.float32), rng.standard_normal((T, B, E), np.float32)


def verified(got: Any, want: Any) -> None:
    assert np.linalg.norm(got - want) <= 1e-5 * np.linalg.norm(want)


def passes(layer: Any, x: Any, dy: Any) -> Callable[[], Any]:
    def forward_and_backward() -> Any:
        y, tape = layer.forward(x)
        return y, layer.backward(tape, dy)

    return forward_and_backward


def attention(shape: Shape, causal: bool) -> Callable[[], Any]:
    """Forward and backward of the layer in float32; one sequence is verified."""
    E, heads = shape[2:]
    layer, (x, dy) = gradcore.MultiheadAttention(E, heads, causal=causal, rng=0), drawn(shape)
    params = {name: p.astype(np.float64) for name, p in layer.params.items()}
    run = passes(layer, x, dy)
    y, dx = run()
    one, done = x[:, :1].astype(np.float64), dy[:, :1].astype(np.float64)
    qkv = reference.linear_forward(one, params["in_proj_weight"], params["in_proj_bias"])
    mixed = reference.attention_forward(qkv, heads, causal=causal)
    verified(y[:, :1], reference.linear_forward(mixed, params["out_proj.weight"], params["out_proj.bias"]))
    dmixed = done @ params["out_proj.weight"]
    verified(dx[:, :1], reference.attention_backward(qkv, heads, dmixed, causal=causal) @ params["in_proj_weight"])
    return run


def operations(shape: Shape, causal: bool) -> int:
    """Those of the products: four linear maps, and seven products with the logits of what each step sees."""
    T, B, E, _ = shape
    return 6 * 4 * T * B * E * E + 14 * T * T * B * E // (1 + causal)


@pytest.mark.parametrize("causal", [False, True], ids=["all", "causal"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_attention(benchmark: Any, shape: Shape, causal: bool) -> None:
    """Forward and backward of (T, B, E, heads) in float32, and their GFLOP/s."""
    benchmark(attention(shape, causal))
    note(benchmark, "GFLOP/s", operations(shape, causal))


@pytest.mark.parametrize("norm_first", [False, True], ids=["post", "pre"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_transformer_layer(benchmark: Any, shape: Shape, norm_first: bool) -> None:
    """Forward and backward in float32, of 4 E features between the linear maps."""
    T, B, E, heads = shape
    layer = gradcore.TransformerEncoderLayer(E, heads, 4 * E, norm_first=norm_first, rng=0)
    wide = gradcore.TransformerEncoderLayer(E, heads, 4 * E, norm_first=norm_first, dtype=np.float64)
    wide.flat_params[...] = layer.flat_params
    x, dy = drawn(shape)
    run = passes(layer, x, dy)
    for got, want in zip(run(), passes(wide, *(a.astype(np.float64) for a in (x, dy)))(), strict=True):
        verified(got, want)
    benchmark(run)
    note(benchmark, "GFLOP/s", operations(shape, False) + 6 * 8 * T * B * E * E)


# ---- beside PyTorch --------------------------------------------------------------------------------------------------


def attention_in_torch(shape: Shape, causal: bool, layer: Any) -> Any:
    """Two linear maps around scaled_dot_product_attention, with the layer's parameters."""
    import torch

    T, B, E, heads = shape

    class Attention(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = torch.nn.Linear(E, 3 * E), torch.nn.Linear(E, E)

        def forward(self, x: Any) -> Any:
            q, k, v = self.inner(x).view(T, B, 3, heads, E // heads).permute(2, 1, 3, 0, 4)
            y = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
            return self.outer(y.permute(2, 0, 1, 3).reshape(T, B, E))

    peer = Attention()
    names = ("inner.weight", "inner.bias", "outer.weight", "outer.bias")
    values = [torch.tensor(p) for p in layer.params.values()]
    peer.load_state_dict(dict(zip(names, values, strict=True)))
    return peer


def beside_torch(label: str, layer: Any, peer: Any, shape: Shape, rounds: int) -> str:
    """The median time of both, and that of the ratios of neighbors; results are compared first."""
    import torch

    x, dy = drawn(shape)
    tx, tdy = torch.tensor(x, requires_grad=True), torch.tensor(dy)
    run = passes(layer, x, dy)

    def ours() -> Any:
        layer.zero_grad()
        return run()

    def theirs() -> Any:
        tx.grad = None
        peer.zero_grad()
        y = peer(tx)
        y.backward(tdy)
        return y.detach().numpy(), tx.grad.numpy()

    for got, want in zip(ours(), theirs(), strict=True):
        verified(got, want)
    times = np.empty((rounds, 2))
    for row in times:
        for i, call in enumerate((ours, theirs)):
            start = time.perf_counter()
            call()
            row[i] = time.perf_counter() - start
    own, other = 1e3 * np.median(times, axis=0)
    ratio = np.median(times[:, 1] / times[:, 0])
    return f"| {label} | {shape} | {own:.1f} ms | {other:.1f} ms | {ratio:.2f} |"


def compare(rounds: int) -> None:
    import torch

    torch.set_num_threads(2)
    gradcore.set_num_threads(2)
    print("| layer | T, B, E, heads | gradcore | PyTorch | ratio |\n|---|---|---|---|---|")
    for shape in SHAPES:
        E, heads = shape[2:]
        for causal in (False, True):
            layer: Any = gradcore.MultiheadAttention(E, heads, causal=causal, rng=0)
            peer = attention_in_torch(shape, causal, layer)
            print(beside_torch("attention" + ", causal" * causal, layer, peer, shape, rounds), flush=True)
        for norm_first in (False, True):
            layer = gradcore.TransformerEncoderLayer(E, heads, 4 * E, norm_first=norm_first, rng=0)
            peer = torch.nn.TransformerEncoderLayer(E, heads, 4 * E, 0.0, norm_first=norm_first)
            peer.load_state_dict({name: torch.tensor(p) for name, p in layer.params.items()})
            kind = "pre-norm" if norm_first else "post-norm"
            print(beside_torch(f"transformer layer, {kind}", layer, peer, shape, rounds), flush=True)


def memory() -> None:
    """E 64, one head, one sequence; beside it, what the logits alone would be."""
    print("| T | forward and backward | logits |\n|---|---|---|")
    for T in (1024, 2048, 4096, 8192, 16384):
        x, dy = drawn((T, 1, 64, 1))
        run = passes(gradcore.MultiheadAttention(64, 1, rng=0), x, dy)
        tracemalloc.start()
        run()
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        print(f"| {T} | {most / 2**20:.1f} MiB | {4 * T * T / 2**20:.0f} MiB |", flush=True)


if __name__ == "__main__":
    if "--memory" in sys.argv:
        memory()
    else:
        compare(int(sys.argv[1]) if len(sys.argv) > 1 else 21)
