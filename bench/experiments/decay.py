"""Weight decay and the spectral radius of W_hh: does decay keep gradients from exploding, and at what price?"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

import gradcore
from experiments.common import side_by_side, spread, table
from gradcore import optim, spectral
from gradcore.data import adding

LENGTH, HIDDEN, BATCH, LR = 50, 64, 32, 1e-3
GAIN = 2.0  # of the Gaussian W_hh at the start, whose radius is about as large
FOUND = """Every kind brings the radius down, from 2.6 to about 1. That does not keep gradients small: the largest norms
at the end are as large as without, or larger. The gradient shrinks in a step in all runs, the undecayed ones too,
since saturated units pass little on; so no run learns the task, with decay or without."""
KINDS = {
    "none": [0.0],
    "L2 (Adam, weight_decay)": [1e-4, 1e-3, 1e-2],
    "L1 (Adam, l1)": [1e-5, 1e-4, 1e-3],
    "decoupled (AdamW, weight_decay)": [0.1, 1.0, 10.0],
}


def train(kind: str, strength: float, seed: int, steps: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    rnn = gradcore.RNN(2, HIDDEN, rng=rng)
    W = rnn.params["weight_hh_l0"]
    W[...] = GAIN * rng.standard_normal(W.shape) / math.sqrt(HIDDEN)
    model = gradcore.Sequential(rnn, gradcore.LastStep(), gradcore.Linear(HIDDEN, 1, rng=rng))
    W = rnn.params["weight_hh_l0"]  # where the model has it
    if kind.startswith("dec"):
        optimizer: Any = optim.AdamW(model, lr=LR, weight_decay=strength)
    else:
        optimizer = optim.Adam(model, lr=LR, **{"l1" if kind.startswith("L1") else "weight_decay": strength})
    before = growth(model, seed)
    batches = [adding(rng, BATCH, LENGTH) for _ in range(steps)]
    radii = [spectral.spectral_radius(W)]
    each = max(steps // 60, 1)
    history = gradcore.fit(
        model, batches, gradcore.losses.mse, optimizer, epochs=1, max_norm=1.0, progress=False,
        callbacks=[lambda step: radii.append(spectral.spectral_radius(W)) if step.step % each == each - 1 else None],
    )  # fmt: skip
    x, target = adding(10_000 + seed, 2000, LENGTH)
    norms = history.grad_norm
    return {
        "before": before, "after": growth(model, seed), "radii": radii,
        "loss": gradcore.losses.mse(model(x), target)[0],
        "largest": [float(norms[: steps // 10].max()), float(norms[-steps // 10 :].max())],
    }  # fmt: skip


def growth(model: Any, seed: int) -> float:
    """Return by how much a gradient grows in a step back through time."""
    x, _ = adding(20_000 + seed, 64, LENGTH)
    y, tape = model.forward(x)
    model.backward(tape, np.ones_like(y))
    model.zero_grad()
    return math.exp(spectral.measure_growth(tape.tapes[0]))


def measure(quick: bool) -> dict[str, Any]:
    steps, seeds = (100, 1) if quick else (4000, 3)
    arms = [(kind, strength) for kind, strengths in KINDS.items() for strength in strengths]
    runs = side_by_side(train, [(*arm, seed, steps) for arm in arms for seed in range(seeds)])
    return {"steps": steps, "seeds": seeds, "arms": [
        {"kind": kind, "strength": strength, "runs": runs[i * seeds : (i + 1) * seeds]}
        for i, (kind, strength) in enumerate(arms)
    ]}  # fmt: skip


def page(results: dict[str, Any]) -> str:
    rows = []
    for arm in results["arms"]:
        runs = arm["runs"]
        rows.append(
            (arm["kind"], arm["strength"], spread(run["radii"][-1] for run in runs),
             spread(run["after"] for run in runs), spread(run["largest"][1] for run in runs),
             spread(run["loss"] for run in runs))
        )  # fmt: skip
    first = results["arms"][0]["runs"]
    header = ("decay", "strength", "radius of W_hh", "growth a step", "largest norm", "loss on new data")
    return f"""# Weight decay and the radius of W_hh

The texts recommend L1 and L2 penalties because small weights cannot make gradients explode. A tanh RNN of {HIDDEN}
units learns to add two of {LENGTH} numbers (the answer 1 has a loss of 0.167), with Adam at {LR:g}, clipped at 1,
{results["steps"]:,} steps of {BATCH} sequences, {results["seeds"]} seeds. W_hh starts with entries of a Gaussian
times {GAIN:g}: radius {spread(run["radii"][0] for run in first)}, a gradient grows
{spread(run["before"] for run in first)} times a step, and the largest norm in the first tenth of the steps is
{spread(run["largest"][0] for run in first)}. The table has the end: the median over seeds and the extremes; the norm
is the largest of the last tenth.

{table(header, rows)}

{FOUND}
"""


def figure(results: dict[str, Any], path: Path) -> None:
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, len(KINDS) - 1, figsize=(10, 3.2), sharey=True, layout="constrained")
    none = results["arms"][0]
    for axis, kind in zip(axes, list(KINDS)[1:], strict=True):
        for arm in [none, *(arm for arm in results["arms"] if arm["kind"] == kind)]:
            radii = np.median([run["radii"] for run in arm["runs"]], axis=0)
            axis.plot(np.linspace(0, results["steps"], len(radii)), radii, label=f"{arm['strength']:g}")
        axis.axhline(1, color="0.6", lw=0.8)
        axis.set(title=kind, xlabel="step")
        axis.legend(title="strength")
    axes[0].set_ylabel("spectral radius of W_hh")
    fig.savefig(path, dpi=100)
    plt.close(fig)
