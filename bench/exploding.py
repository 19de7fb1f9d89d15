"""What clipping makes of gradients that explode: `python bench/exploding.py`, ten seconds.

A tanh RNN reads 200 random steps and is to tell the first of them. Its recurrent weights are random with a gain, so
that gradients grow with every step back, until their squares or they themselves leave the range of float32. All sides
train the same network on the same batches by SGD with a norm of at most 1: one clips as PyTorch's `clip_grad_norm_`
does, transcribed here and checked against it where it is installed, another as gradcore's optimizers do by default. A
third limits, besides, each sequence's gradient as it is propagated (`step_clip`). The point is what each makes of a
step: in so few updates nobody learns the task.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import gradcore
from gradcore.losses import mse

Array = np.ndarray[Any, Any]

HIDDEN, BATCH, LENGTH = 64, 16, 200
LR, MAX_NORM = 0.05, 1.0
GAINS = (1.5, 3.0, 6.0)


@dataclass
class Run:
    """One training."""

    norm: float  # as this side saw it in the first update
    first: str  # what the first update did
    moved: int  # updates that changed the weights, and left them finite
    last: str  # the weights in the end
    losses: tuple[float, float]


def clip_as_pytorch(grads: list[Array], max_norm: float) -> float:
    """In place: float32 sums, 1e-6 added to the norm, and always multiplied."""
    norms = np.array([np.sqrt(np.sum(g * g, dtype=np.float32)) for g in grads], np.float32)
    norm = np.sqrt(np.sum(norms * norms, dtype=np.float32))
    coef = np.minimum(np.float32(max_norm) / (norm + np.float32(1e-6)), np.float32(1))
    for g in grads:
        np.multiply(g, coef, out=g)
    return float(norm)


def check_against_pytorch(grads: list[Array]) -> None:
    """The transcription and PyTorch, on copies of these gradients."""
    try:
        import torch
    except ImportError:
        return
    ours, theirs = [g.copy() for g in grads], [torch.nn.Parameter(torch.zeros(g.shape)) for g in grads]
    for parameter, g in zip(theirs, grads, strict=True):
        parameter.grad = torch.from_numpy(g.copy())
    clip_as_pytorch(ours, MAX_NORM)
    torch.nn.utils.clip_grad_norm_(theirs, MAX_NORM)
    for g, parameter in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(g, parameter.grad.numpy(), rtol=1e-3)


def build(gain: float) -> gradcore.Sequential:
    rng = np.random.default_rng(0)
    recurrent, output = gradcore.RNN(1, HIDDEN, rng=rng), gradcore.Linear(HIDDEN, 1, rng=rng)
    recurrent.params["weight_hh_l0"][...] = gain * rng.standard_normal((HIDDEN, HIDDEN)) / np.sqrt(HIDDEN)
    return gradcore.Sequential(recurrent, gradcore.LastStep(), output)


def train(gain: float, step: Callable[[gradcore.Sequential], float], updates: int, step_clip: float | None) -> Run:
    model, rng = build(gain), np.random.default_rng(1)
    losses, norms, moved, first = [], [], 0, ""
    for update in range(updates):
        x = rng.standard_normal((LENGTH, BATCH, 1)).astype(np.float32)
        y, tape = model.forward(x)
        loss, dy = mse(y, x[0])
        model.zero_grad()
        model.backward(tape, dy, step_clip=step_clip)
        if update == 0 and step_clip is None:
            check_against_pytorch(list(model.grads.values()))
        before = model.flat_params.copy()
        losses.append(loss)
        norms.append(step(model))
        change = float(np.linalg.norm(model.flat_params - before))
        moved += 0 < change < np.inf
        if update == 0:
            first = "weights are NaN" if np.isnan(change) else f"moved by {change:.3g}" if change else "did not move"
    last = "finite" if np.isfinite(model.flat_params).all() else "NaN"
    return Run(norms[0], first, moved, last, (float(np.mean(losses[:10])), float(np.mean(losses[-10:]))))


def step_as_pytorch(model: gradcore.Sequential) -> float:
    norm = clip_as_pytorch(list(model.grads.values()), MAX_NORM)
    model.flat_params[...] -= np.float32(LR) * model.flat_grads
    return norm


def step_of_gradcore(model: gradcore.Sequential) -> float:
    return gradcore.optim.SGD(model, lr=LR).step(max_norm=MAX_NORM)


SIDES: dict[str, tuple[Callable[[gradcore.Sequential], float], float | None]] = {
    "PyTorch's clipping": (step_as_pytorch, None),
    "gradcore": (step_of_gradcore, None),
    "gradcore, step_clip": (step_of_gradcore, 1.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--updates", type=int, default=50, help="of each training")
    updates = parser.parse_args().updates
    head = f"of {updates} moved"
    print(f"{'gain':>4}{'first norm':>33}  {'first update':16}{head:>14}  {'weights':8} loss, first and last 10")
    with np.errstate(over="ignore", invalid="ignore"):
        for gain in GAINS:
            for side, (step, step_clip) in SIDES.items():
                run = train(gain, step, updates, step_clip)
                print(
                    f"{gain:4}  {side:20}{run.norm:11.3g}  {run.first:16}{run.moved:14}  {run.last:8} "
                    f"{run.losses[0]:.3g} -> {run.losses[1]:.3g}"
                )


if __name__ == "__main__":
    main()
