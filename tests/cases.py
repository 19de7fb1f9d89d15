"""A hundred seeded calls over all families of kernels, small and of odd sizes, one thread: for valgrind to watch.

What comes out is written to the null device: that is where memory which nobody has set comes to light. `sanitize.py
valgrind` runs this.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np

import gradcore
from gradcore import optim, spectral

CASES = 100
CELLS = (gradcore.RNN, gradcore.LSTM, gradcore.GRU)
ACTIVATIONS = ("Tanh", "Sigmoid", "ReLU", "LeakyReLU", "ELU", "SELU", "GELU", "Softplus", "SiLU")
RULES: tuple[tuple[type[Any], dict[str, Any]], ...] = (
    (optim.SGD, {"momentum": 0.9, "nesterov": True}),
    (optim.SGD, {}),
    (optim.Adam, {"amsgrad": True}),
    (optim.AdamW, {}),
    (optim.RMSprop, {"centered": True, "momentum": 0.5}),
    (optim.Adagrad, {"l1": 0.1}),
    (optim.SPAM, {"weight_decay": 0.1}),
    (optim.NAdam, {"weight_decay": 0.1}),
    (optim.RAdam, {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    (optim.Lion, {"weight_decay": 0.1}),
)


def recurrent(rng: np.random.Generator, dtype: Any) -> list[Any]:
    """Forward, back, and forward without a tape; every second batch is ragged."""
    T, B, F, H, layers = (int(n) for n in rng.integers(1, (8, 20, 12, 40, 3)))
    ragged = rng.random() < 0.5
    build = CELLS[rng.integers(3)]
    layer = build(F, H, layers, bidirectional=rng.random() < 0.5, bias=rng.random() < 0.8, dtype=dtype, rng=rng)
    x = rng.standard_normal((T, B, F)).astype(dtype)
    lengths = rng.integers(0, T + 1, B) if ragged else None
    y, tape = layer.forward(x, lengths=lengths)
    dx = layer.backward(tape, rng.standard_normal(y.shape).astype(dtype), step_clip=0.5 if ragged else None)
    seen = tape.telemetry
    return [y, dx, *layer.grads.values(), seen.dh_norm_per_sample, seen.n_clipped, tape.state, tape.dstate, layer(x)[0]]


def jacobian(rng: np.random.Generator, dtype: Any) -> list[Any]:
    """Factors, products of both ways, and vectors kept apart."""
    T, B, H = (int(n) for n in rng.integers((2, 1, 1), (9, 4, 24)))
    layer = CELLS[rng.integers(3)](3, H, dtype=dtype, rng=rng)
    x = rng.standard_normal((T, B, 3)).astype(dtype)
    _, tape = layer.forward(x)
    exponents = spectral.lyapunov_spectrum(layer, x, k=int(rng.integers(1, H + 1)))
    growth = spectral.predict_growth(layer, x, horizon=T).rate
    return [spectral.jacobian(layer, tape, T - 1), exponents, np.array(growth)]


def linear(rng: np.random.Generator, dtype: Any) -> list[Any]:
    n, F, O = (int(n) for n in rng.integers(0, (150, 50, 50)))
    layer = gradcore.Linear(F, O, bias=rng.random() < 0.5, dtype=dtype, rng=rng)
    y, tape = layer.forward(rng.standard_normal((n, F)).astype(dtype))
    return [y, layer.backward(tape, rng.standard_normal((n, O)).astype(dtype)), *layer.grads.values()]


def attention(rng: np.random.Generator, dtype: Any) -> list[Any]:
    T, B, heads, D = (int(n) for n in rng.integers((0, 0, 1, 1), (150, 4, 4, 20)))
    layer = gradcore.MultiheadAttention(heads * D, heads, causal=rng.random() < 0.5, dtype=dtype, rng=rng)
    lengths = rng.integers(0, T + 1, B) if rng.random() < 0.5 else None
    y, tape = layer.forward(rng.standard_normal((T, B, heads * D)).astype(dtype), lengths)
    return [y, layer.backward(tape, rng.standard_normal(y.shape).astype(dtype)), *layer.grads.values()]


def activation(rng: np.random.Generator, dtype: Any) -> list[Any]:
    layer = getattr(gradcore, ACTIVATIONS[rng.integers(len(ACTIVATIONS))])(dtype=dtype)
    y, tape = layer.forward(rng.standard_normal(int(rng.integers(0, 70))).astype(dtype))
    return [y, layer.backward(tape, np.ones_like(y))]


def prelu(rng: np.random.Generator, dtype: Any) -> list[Any]:
    n, C = (int(k) for k in rng.integers((0, 1), (70, 20)))
    layer = gradcore.PReLU(C, dtype=dtype)
    y, tape = layer.forward(rng.standard_normal((n, C)).astype(dtype))
    return [y, layer.backward(tape, np.ones_like(y)), layer.flat_grads]


def dropout(rng: np.random.Generator, dtype: Any) -> list[Any]:
    layer = gradcore.Dropout(rng.choice([0.1, 0.5, 1.0]), dtype=dtype, rng=rng)
    y, tape = layer.forward(rng.standard_normal(int(rng.integers(0, 140))).astype(dtype))
    return [y, layer.backward(tape, np.ones_like(y))]


def embedding(rng: np.random.Generator, dtype: Any) -> list[Any]:
    n, E, N = (int(k) for k in rng.integers((1, 0, 0), (20, 70, 40)))
    layer = gradcore.Embedding(n, E, 0 if rng.random() < 0.5 else None, dtype=dtype, rng=rng)
    y, tape = layer.forward(rng.integers(0, n, N))
    layer.backward(tape, rng.standard_normal(y.shape).astype(dtype))
    return [y, layer.flat_grads]


def normalization(rng: np.random.Generator, dtype: Any) -> list[Any]:
    """A norm in a residual block, forward, back, and in inference."""
    n, F = (int(n) for n in rng.integers((2, 0), (150, 70)))
    build = (gradcore.LayerNorm, gradcore.RMSNorm, gradcore.BatchNorm)[rng.integers(3)]
    block = gradcore.Residual(build(F, dtype=dtype), scale=0.5)
    x = rng.standard_normal((n, F)).astype(dtype)
    y, tape = block.forward(x)
    return [y, block.backward(tape, x), block(x), *block.grads.values(), *block.buffers.values()]


def pooling(rng: np.random.Generator, dtype: Any) -> list[Any]:
    T, B, F = (int(n) for n in rng.integers(0, (150, 6, 40)))
    layer = gradcore.MeanPool(rng.random() < 0.5, dtype=dtype)
    x = rng.standard_normal((B, T, F) if layer.batch_first else (T, B, F)).astype(dtype)
    y, tape = layer.forward(x, rng.integers(0, T + 1, B) if rng.random() < 0.5 else None)
    return [y, layer.backward(tape, np.ones_like(y))]


def some_arrays(rng: np.random.Generator, dtype: Any) -> list[Any]:
    """A few arrays of odd sizes, at times with an entry that is not finite; one may be longer than a block."""
    sizes = [*rng.integers(0, 70, 3), rng.choice([5, 4096, 4097, 9000])]
    arrays = [rng.standard_normal(int(n)).astype(dtype) for n in sizes]
    if rng.random() < 0.3:
        arrays[-1][-1] = rng.choice([np.nan, np.inf])
    return arrays


def norm(rng: np.random.Generator, dtype: Any) -> list[Any]:
    arrays = [a.astype(np.float16 if rng.random() < 0.3 else dtype) for a in some_arrays(rng, dtype)]
    found = gradcore.clip_grad_norm_(arrays, 0.5, rng.choice([1, 2, 3, np.inf]), nonfinite="zero", per_array=True)
    gradcore.clip_grad_value_(arrays, 0.1)
    return [*arrays, np.array(found), found.per_array, np.array(found.worst[1])]


def optimizer(rng: np.random.Generator, dtype: Any) -> list[Any]:
    grads = some_arrays(rng, dtype)
    params = [rng.standard_normal(g.size).astype(dtype) for g in grads]
    build, options = RULES[rng.integers(len(RULES))]
    stepped = build(list(zip(params, grads, strict=True)), **options)
    for _ in range(2):
        stepped.step(max_norm=1.0, nonfinite="zero")
    return [*params, *(a for moments in stepped.state_dict()["moments"].values() for a in moments.values())]


FAMILIES: tuple[Callable[[np.random.Generator, Any], list[Any]], ...] = (
    recurrent, recurrent, recurrent, jacobian, linear, attention, activation,
    prelu, dropout, embedding, pooling, normalization, norm, optimizer,
)  # fmt: skip


def main() -> None:
    gradcore.set_num_threads(1)
    with open(os.devnull, "wb", buffering=0) as nowhere:
        for case in range(CASES):
            rng = np.random.default_rng(case)
            for found in FAMILIES[case % len(FAMILIES)](rng, (np.float32, np.float64)[case // len(FAMILIES) % 2]):
                for a in found if isinstance(found, tuple) else (found,):
                    nowhere.write(np.ascontiguousarray(a).data)
    print(f"{CASES} cases on {gradcore.info()['isa']}")


if __name__ == "__main__":
    main()
