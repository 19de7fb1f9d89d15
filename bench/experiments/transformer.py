"""Transformers with norms before or after: gradients at the start, warm-up, and large query and key weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

import gradcore
from experiments.common import side_by_side, spread, table
from gradcore import optim, schedule
from gradcore.losses import softmax_cross_entropy

D, HEADS, FORWARD = 64, 4, 256
DEPTHS = (6, 12, 24, 48)
LRS = (3e-4, 1e-3, 3e-3)
WARM = 200
LAYERS_192, GAINS = 192, (1.0, 2.0, 4.0)
SCALED = "attention over sqrt(192)"
SYMBOLS, LENGTH, BATCH, LAYERS = 16, 32, 16, 4
AT_START = """Theorem and lemma hold: with the norm after, the last layer's gradient is as large at 48 layers as at 6;
with the norm first it falls by 2.8, the root of 8, and the output stays within the lemma's bounds."""
WARMED = """Warm-up decides one cell of the table: the norm after, at the largest rate. It changes nothing at the lower
rates, and the norm first needs it nowhere."""
GAINED = """So it depends on what is around the weights: twice Xavier's scale multiplies the factor by 1.9 with
attention alone and by about 20 with norms, never by 10,000. Four times the scale goes far beyond that with the norm
first: by seventeen million."""


def block(
    rng: np.random.Generator, norm_first: bool, width: int = FORWARD, gain: float = 1.0, causal: bool = False
) -> Any:
    """Return a layer with Xavier's normal initialization, whose query and key weights are times `gain`."""
    layer = gradcore.TransformerEncoderLayer(D, HEADS, width, norm_first=norm_first, causal=causal, rng=rng)
    for name, weight in layer.params.items():
        if weight.ndim == 2:
            rows = weight.reshape(3, D, D) if "in_proj" in name else weight[None]
            for i, part in enumerate(rows):
                scale = gain if "in_proj" in name and i < 2 else 1.0
                part[...] = scale * math.sqrt(2 / sum(part.shape)) * rng.standard_normal(part.shape)
    return layer


# ---- gradients at the start: Xiong et al., 2020 ----------------------------------------------------------------------


def at_start(norm_first: bool, depth: int, seed: int) -> dict[str, float]:
    """Return the gradient of the last layer's second matrix, as in theorem 1: Q = K = 0, a feed-forward width of d."""
    rng = np.random.default_rng(seed)
    layers = [block(rng, norm_first, D) for _ in range(depth)]
    for layer in layers:
        layer.params["self_attn.in_proj_weight"][: 2 * D] = 0
    end = [gradcore.LayerNorm(D)] if norm_first else []
    model = gradcore.Sequential(*layers, *end, gradcore.Linear(D, 10, bias=False, rng=rng))
    head = model[-1].params["weight"]
    head[...] = math.sqrt(2 / (D + 10)) * rng.standard_normal(head.shape)
    x = rng.standard_normal((8, 64, D)).astype(np.float32)
    x -= x.mean(-1, keepdims=True)
    x /= x.std(-1, keepdims=True)
    y, tape = model.forward(x)
    _, dy = softmax_cross_entropy(y, rng.integers(0, 10, y.shape[:2]))
    model.backward(tape, dy * np.float32(dy.shape[0] * dy.shape[1]))  # a sum over positions, as theirs of one
    grads = [float(np.linalg.norm(layer.grads["linear2.weight"])) / math.sqrt(8 * 64) for layer in layers]
    h = x
    for layer in layers:
        h = layer(h)
    return {"first": grads[0], "last": grads[-1], "square": float((h.astype(np.float64) ** 2).sum(-1).mean()) / D}


# ---- warm-up -------------------------------------------------------------------------------------------------------


def train(norm_first: bool, warm: bool, lr: float, seed: int, steps: int) -> float:
    """Return the share of wrong answers: the symbol that followed the last occurrence of the one that is shown."""
    rng = np.random.default_rng(seed)
    layers = [block(rng, norm_first, causal=True) for _ in range(LAYERS)]
    end = [gradcore.LayerNorm(D)] if norm_first else []
    model = gradcore.Sequential(
        gradcore.Linear(SYMBOLS + LENGTH, D, rng=rng), *layers, *end, gradcore.Linear(D, SYMBOLS, rng=rng)
    )
    rate: Any = schedule.cosine(lr, 0.0, steps)
    if warm:
        rate = schedule.chain((schedule.linear(0.0, lr, WARM), WARM), schedule.cosine(lr, 0.0, max(steps - WARM, 1)))
    optimizer = optim.Adam(model, lr=rate, betas=(0.9, 0.98))
    history = gradcore.fit(
        model, (sequences(rng, BATCH) for _ in range(steps)), softmax_cross_entropy, optimizer, epochs=1, progress=False
    )
    x, target = sequences(np.random.default_rng(9000 + seed), 500)
    with np.errstate(all="ignore"):
        wrong = float((model(x).argmax(-1) != target)[LENGTH // 2 :].mean())
    return wrong if np.isfinite(history.loss[-1]) else 1.0


def sequences(rng: np.random.Generator, n: int) -> tuple[Any, Any]:
    """Shuffled symbols twice: in the second half each follows the one that it followed in the first."""
    half = LENGTH // 2
    order = rng.permuted(np.tile(np.arange(SYMBOLS), (n, 1)), axis=1)[:, :half]
    tokens = np.concatenate([order, order], axis=1).T  # (T, B)
    x = np.concatenate(
        [np.eye(SYMBOLS)[tokens], np.broadcast_to(np.eye(LENGTH)[:, None], (LENGTH, n, LENGTH))], axis=-1
    )
    return x.astype(np.float32), np.roll(tokens, -1, axis=0)


# ---- query and key weights -------------------------------------------------------------------------------------------


def through_192(kind: str, gain: float, seed: int) -> float:
    """Return the norm of dL/dx before the first layer over that after the last."""
    rng = np.random.default_rng(seed)
    layers = [block(rng, kind == "norm first", gain=gain) for _ in range(LAYERS_192)]
    if kind == SCALED:
        layers = [gradcore.Residual(attention(rng, gain), scale=LAYERS_192**-0.5) for _ in range(LAYERS_192)]
    model = gradcore.Sequential(*layers)
    x = rng.standard_normal((32, 2, D)).astype(np.float32)
    with np.errstate(all="ignore"):
        y, tape = model.forward(x)
        model.backward(tape, rng.standard_normal(y.shape).astype(np.float32))
    return float(tape.d_norm[0] / tape.d_norm[-1])


def attention(rng: np.random.Generator, gain: float) -> Any:
    layer = gradcore.MultiheadAttention(D, HEADS, rng=rng)
    for i, part in enumerate(layer.params["in_proj_weight"].reshape(3, D, D)):
        part[...] = math.sqrt(1 / D) * rng.standard_normal(part.shape) * (gain if i < 2 else 1)
    return layer


def measure(quick: bool) -> dict[str, Any]:
    seeds, steps = (1, 3) if quick else (2, 1000)
    depths = (2, 4) if quick else DEPTHS
    starts = [(first, depth) for first in (False, True) for depth in depths]
    found = side_by_side(at_start, [(*arm, seed) for arm in starts for seed in range(seeds)])
    arms = [(first, warm, lr) for first in (False, True) for warm in (False, True) for lr in LRS]
    wrong = side_by_side(train, [(*arm, seed, steps) for arm in arms for seed in range(seeds)])
    kinds = [(kind, gain) for kind in ("norm after", "norm first", SCALED) for gain in GAINS]
    factors = side_by_side(through_192, [(*arm, seed) for arm in kinds for seed in range(seeds)])

    def grouped(keys: list[Any], values: list[Any]) -> list[Any]:
        return [[*key, values[i * seeds : (i + 1) * seeds]] for i, key in enumerate(keys)]

    return {
        "seeds": seeds, "steps": steps, "starts": grouped(starts, found), "training": grouped(arms, wrong),
        "factors": grouped(kinds, factors),
    }  # fmt: skip


def page(results: dict[str, Any]) -> str:
    def name(norm_first: bool) -> str:
        return "norm first" if norm_first else "norm after"

    starts = [
        (name(first), depth, *(spread(run[key] for run in runs) for key in ("first", "last", "square")),
         f"{1 + depth / 2:g} to {1 + 1.5 * depth:g}" if first else "1")
        for first, depth, runs in results["starts"]
    ]  # fmt: skip
    training = [
        (name(first), "yes" if warm else "no",
         *(spread(runs) for its, has, _, runs in results["training"] if (its, has) == (first, warm)))
        for first, warm in ((False, False), (False, True), (True, False), (True, True))
    ]  # fmt: skip
    factors = [
        (kind, *(spread(runs) for other, _, runs in results["factors"] if other == kind))
        for kind in ("norm after", "norm first", SCALED)
    ]
    return f"""# Transformers: norms before or after, warm-up, and large query and key weights

## Gradients at the start

Layers of {D} features, set up as in theorem 1 of Xiong et al. (2020): query and key weights zero, a feed-forward
width of {D}, Xavier's initialization, a cross-entropy of 10 classes. The gradient is that of the second feed-forward
matrix, for one position (the root of the mean square over 512). Their theorem: with the norm after, the last layer's
is of the order d sqrt(ln d) whatever the depth L; with the norm first, sqrt(L) times less. Their lemma 2: the mean
square of the last layer's output is 1 with the norm after, and between 1 + L/2 and 1 + 3L/2 with the norm first.

{table(("network", "layers", "gradient, first", "gradient, last", "mean square of output", "lemma 2"), starts)}

{AT_START}

## Warm-up

{LAYERS} such layers with a feed-forward width of {FORWARD} learn to go on with a sequence that is repeated: share of
wrong answers in the second half after {results["steps"]:,} steps of Adam, {BATCH} sequences of {LENGTH}, without
clipping. The rate rises over {WARM} steps or begins at its maximum; it falls along a cosine.

{table(("network", "warm-up", *(f"rate {lr:g}" for lr in LRS)), training)}

{WARMED}

## Query and key weights through {LAYERS_192} layers

Texts say that query and key weights at twice Xavier's scale make the gradient 10,000 times as large through 192
layers. The factor is the norm of dL/dx before the first layer over that after the last; the last row has no norms,
only attention, divided by sqrt(192) and with a connection past it. Median of {results["seeds"]} seeds, and the
extremes, here as above.

{table(("network", *(f"gain {gain:g}" for gain in GAINS)), factors)}

{GAINED}
"""


def figure(results: dict[str, Any], path: Path) -> None:
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for first, label in ((False, "norm after"), (True, "norm first")):
        rows = [(depth, runs) for its, depth, runs in results["starts"] if its == first]
        medians = [np.median([run["last"] for run in runs]) for _, runs in rows]
        axes[0].plot([depth for depth, _ in rows], medians, "o-", label=label)
        for warm in (False, True):
            runs = [(lr, wrong) for its, has, lr, wrong in results["training"] if (its, has) == (first, warm)]
            style = "o-" if warm else "o--"
            axes[1].plot([lr for lr, _ in runs], [np.median(wrong) for _, wrong in runs], style,
                         label=f"{label}{', warm-up' if warm else ''}")  # fmt: skip
    axes[0].set(title="gradient of the last layer at the start", xlabel="layers", xscale="log", yscale="log")
    axes[1].set(title="wrong answers after training", xlabel="rate", xscale="log")
    axes[0].legend()
    axes[1].legend()
    fig.savefig(path, dpi=100)
    plt.close(fig)
