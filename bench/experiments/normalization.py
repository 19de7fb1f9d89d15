"""Batch, layer and RMS norm in 50 layers whose weights start far too small or far too large."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

import gradcore
from experiments.common import side_by_side, spread, table
from experiments.residual import problem
from gradcore import optim
from gradcore.losses import mse

DEPTH, WIDTH, BATCH, LR = 50, 32, 64, 1e-3
GAINS = (0.5, 1.0, 2.0)  # of He's initialization
NORMS = {"none": None, "batch norm": gradcore.BatchNorm, "layer norm": gradcore.LayerNorm, "RMS norm": gradcore.RMSNorm}


def build(norm: str, gain: float, seed: int) -> gradcore.Sequential:
    rng = np.random.default_rng(seed)
    kind, layers = NORMS[norm], [gradcore.Linear(8, WIDTH, rng=rng)]
    for _ in range(DEPTH):
        linear = gradcore.Linear(WIDTH, WIDTH, rng=rng)
        linear.params["weight"][...] = gain * math.sqrt(2 / WIDTH) * rng.standard_normal((WIDTH, WIDTH))
        layers += [linear, *([] if kind is None else [kind(WIDTH)]), gradcore.ReLU()]
    return gradcore.Sequential(*layers, gradcore.Linear(WIDTH, 1, rng=rng))


def train(norm: str, gain: float, seed: int, steps: int) -> dict[str, Any]:
    rng = np.random.default_rng(1000 + seed)
    model = build(norm, gain, seed)
    x, _ = problem(rng, BATCH)
    with np.errstate(all="ignore"):
        y, tape = model.forward(x)
        model.backward(tape, np.full_like(y, 1 / BATCH))
    factor = tape.d_norm[1] / tape.d_norm[-2]
    history = gradcore.fit(
        model, [problem(rng, BATCH) for _ in range(steps)], mse, optim.Adam(model, lr=LR),
        epochs=1, max_norm=1.0, progress=False,
    )  # fmt: skip
    x, target = problem(rng, 2000)
    with np.errstate(all="ignore"):
        loss = mse(model(x), target)[0]
    return {"factor": factor, "loss": loss / float(target.var()), "norm": float(np.median(history.grad_norm))}


def measure(quick: bool) -> dict[str, Any]:
    steps, seeds = (3, 1) if quick else (1500, 3)
    arms = [(norm, gain) for gain in GAINS for norm in NORMS]
    runs = side_by_side(train, [(*arm, seed, steps) for arm in arms for seed in range(seeds)])
    return {"steps": steps, "seeds": seeds, "arms": [
        {"norm": norm, "gain": gain, "runs": runs[i * seeds : (i + 1) * seeds]} for i, (norm, gain) in enumerate(arms)
    ]}  # fmt: skip


def page(results: dict[str, Any]) -> str:
    rows = [
        (arm["gain"], arm["norm"], *(spread(run[key] for run in arm["runs"]) for key in ("factor", "norm", "loss")))
        for arm in results["arms"]
    ]
    header = ("gain", "normalization", "gradient through the layers", "median norm in training", "loss after training")
    return f"""# Normalization of {DEPTH} layers with a bad start

{DEPTH} layers of {WIDTH} units, each W x + b, the normalization, ReLU. The weights are those of He's initialization
times a gain: at 0.5 a plain network halves a gradient in each layer, at 2 it doubles it. "Gradient" is the norm of
dL/dx before the first of these layers over that after the last, at the start. Then {results["steps"]:,} steps of Adam
at {LR:g} on a function of eight numbers, clipped at 1; the loss is in units of the target's variance, so 1 is a
constant. Median of {results["seeds"]} seeds, and the extremes.

{table(header, rows)}

In wide layers batch norm lets the squared norm of a gradient grow by pi / (pi - 1) in each layer, whatever the gain
(Yang et al., "A mean field theory of batch normalization", 2019): {DEPTH} layers multiply the norm by
{(math.pi / (math.pi - 1)) ** (DEPTH / 2):,.0f}. After layer norm and RMS norm the factor on the squared norm is 1, but
for 1 or 2 of {WIDTH} directions. `meanfield.forecast` says so for a model of your own.
"""


def figure(results: dict[str, Any], path: Path) -> None:
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for axis, key, title in zip(axes, ("factor", "loss"), ("gradient through the layers", "loss"), strict=True):
        for norm in NORMS:
            arms = [arm for arm in results["arms"] if arm["norm"] == norm]
            axis.plot(GAINS, [np.median([run[key] for run in arm["runs"]]) for arm in arms], "o-", label=norm)
        axis.set(title=title, xlabel="gain of the start", xscale="log", yscale="log")
    axes[0].legend()
    fig.savefig(path, dpi=100)
    plt.close(fig)
