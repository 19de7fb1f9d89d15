"""Residual connections against plain layers, 20, 100 and 1,000 blocks deep: forward, gradient and training."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

import gradcore
from experiments.common import side_by_side, spread, table
from gradcore import init, optim
from gradcore.losses import mse

WIDTH, BATCH, LR = 32, 64, 1e-3
DEPTHS = (20, 100, 1000)
KEYS = ("forward", "backward", "loss")
ARMS = ("plain", "plain, orthogonal", "residual", "residual, scale 1/sqrt(L)", "residual, layer norm first")
FOUND = """A connection alone is no remedy: at He's initialization each block adds as much as it is given, so 100 blocks
grow forward and backward by 1e14, and 1,000 overflow float32. With 1/sqrt(L) before each block, both grow by 1.5 to 2
at any depth, and 1,000 blocks train as well as 20; plain layers, which vanish, no longer train at 100. A layer norm
before the weights bounds the growth too, to about the square root of 2 L, but at this rate 100 such blocks train
little, and 1,000 hardly."""


def build(arm: str, depth: int, seed: int) -> gradcore.Sequential:
    """Return `depth` blocks of two matrices with ReLU between, each with a connection past it or not."""
    rng = np.random.default_rng(seed)
    blocks: list[Any] = []
    for _ in range(depth):
        first, second = (gradcore.Linear(WIDTH, WIDTH, bias=False, rng=rng) for _ in range(2))
        if arm.endswith("orthogonal"):
            init.orthogonal_(first.params["weight"], math.sqrt(2), rng=rng)
            init.orthogonal_(second.params["weight"], rng=rng)
        else:
            init.kaiming_normal_(first.params["weight"], nonlinearity="relu", rng=rng)
            init.normal_(second.params["weight"], std=WIDTH**-0.5, rng=rng)
        branch = [first, gradcore.ReLU(), second]
        if arm.startswith("plain"):
            blocks += branch
        else:
            norm = [gradcore.LayerNorm(WIDTH)] if arm.endswith("first") else []
            scale = depth**-0.5 if "scale" in arm else 1.0
            blocks.append(gradcore.Residual(*norm, *branch, scale=scale))
    ends = gradcore.Linear(8, WIDTH, rng=rng), gradcore.Linear(WIDTH, 1, rng=rng)
    return gradcore.Sequential(ends[0], *blocks, ends[1])


def problem(rng: np.random.Generator, n: int) -> tuple[Any, Any]:
    """Points and a smooth function of them with interactions."""
    x = rng.standard_normal((n, 8)).astype(np.float32)
    return x, np.sin(2 * x[:, :1]) * x[:, 1:2] + np.tanh(x[:, 2:3] * x[:, 3:4])


def train(arm: str, depth: int, seed: int, steps: int) -> dict[str, Any]:
    rng = np.random.default_rng(1000 + seed)
    model = build(arm, depth, seed)
    x, _ = problem(rng, BATCH)
    with np.errstate(all="ignore"):
        y, tape = model.forward(x)
        inner = tape.tapes[-2].shape  # what the last block gives
        first = float(np.linalg.norm(model[0](x)))
        h = x
        for layer in model.layers[:-1]:
            h = layer(h)
        model.backward(tape, np.full_like(y, 1 / BATCH))
    growth = {"forward": float(np.linalg.norm(h)) / first, "backward": tape.d_norm[1] / tape.d_norm[-2]}
    assert h.shape == inner
    optimizer = optim.Adam(model, lr=LR)
    history = gradcore.fit(
        model, [problem(rng, BATCH) for _ in range(steps)], mse, optimizer, epochs=1, max_norm=1.0, progress=False
    )
    x, target = problem(rng, 2000)
    with np.errstate(all="ignore"):
        loss = mse(model(x), target)[0]
    return growth | {"loss": loss / float(target.var()), "skipped": int((~np.isfinite(history.grad_norm)).sum())}


def measure(quick: bool) -> dict[str, Any]:
    steps, seeds, depths = (3, 1, (5, 10)) if quick else (300, 3, DEPTHS)
    arms = [(arm, depth) for depth in depths for arm in ARMS]
    runs = side_by_side(train, [(*arm, seed, steps) for arm in arms for seed in range(seeds)])
    return {"steps": steps, "seeds": seeds, "arms": [
        {"arm": arm, "depth": depth, "runs": runs[i * seeds : (i + 1) * seeds]} for i, (arm, depth) in enumerate(arms)
    ]}  # fmt: skip


def page(results: dict[str, Any]) -> str:
    rows = [
        (
            arm["depth"],
            arm["arm"],
            *(spread(run[key] for run in arm["runs"]) for key in ("forward", "backward", "loss")),
        )
        for arm in results["arms"]
    ]
    header = ("blocks", "network", "forward", "gradient", "loss after training")
    return f"""# Residual connections

Blocks of two matrices of {WIDTH} units with ReLU between, at He's initialization or orthogonal, one after the other;
with a connection past each, y = x + scale F(x); with the connection and a layer norm before the weights. "Forward" is
the norm after the last block over that before the first, "gradient" the norm of dL/dx before the first block over
that after the last, both at the start. Then {results["steps"]:,} steps of Adam at {LR:g} on a function of eight
numbers, clipped at 1; the loss is in units of the target's variance, so 1 is a constant. Median of {results["seeds"]}
seeds, and the extremes.

{table(header, rows)}
{FOUND}
"""


def figure(results: dict[str, Any], path: Path) -> None:
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    for axis, key in zip(axes, KEYS, strict=True):
        for name in ARMS:
            arms = [arm for arm in results["arms"] if arm["arm"] == name]
            medians = [np.median([run[key] for run in arm["runs"]]) for arm in arms]
            axis.plot([arm["depth"] for arm in arms], medians, "o-", label=name)
        axis.set(title=key if key != "backward" else "gradient", xlabel="blocks", xscale="log", yscale="log")
    axes[0].legend(fontsize=7)
    fig.savefig(path, dpi=100)
    plt.close(fig)
