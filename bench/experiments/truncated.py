"""Truncated backpropagation through time, and the lags that it cannot learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import gradcore
from experiments.common import side_by_side, spread, table
from gradcore import optim
from gradcore.losses import binary_cross_entropy

HIDDEN, BATCH, LR = 48, 32, 5e-3
WINDOWS, LAGS = (4, 8, 16, 32), (2, 6, 12, 24)
FOUND = """A lag within the window is learned, and one beyond it is not, though the state would carry it. The one
exception is the lag of 24 in windows of 32: only a quarter of a window's answers can be traced back to their bit, and
5,000 steps do not suffice. Where the state is not carried on either, even the lag of 6 in windows of 8 is lost, since
the network is never read for longer than a window in training."""


def stream(rng: np.random.Generator, steps: int, lag: int) -> tuple[Any, Any]:
    """Random bits (T, B, 1), and for each step the bit of `lag` steps before."""
    bits = rng.integers(0, 2, (steps + lag, BATCH, 1)).astype(np.float32)
    return 2 * bits[lag:] - 1, bits[:steps]


def train(window: int, lag: int, carry: bool, seed: int, steps: int) -> float:
    """Return the share of right bits at the end, on a new stream that is read from beginning to end."""
    rng = np.random.default_rng(seed)
    model = gradcore.Sequential(gradcore.LSTM(1, HIDDEN, rng=rng), gradcore.Linear(HIDDEN, 1, rng=rng))
    optimizer = optim.Adam(model, lr=LR)
    x, target = stream(rng, steps, lag)
    state = model.initial_state(BATCH)
    for start in range(0, steps - window + 1, window):
        part = slice(start, start + window)
        y, tape = model.forward(x[part], state)
        _, dy = binary_cross_entropy(y, target[part])
        model.zero_grad()
        model.backward(tape, dy)
        optimizer.step(max_norm=1.0)
        state = tape.state if carry else model.initial_state(BATCH)
    x, target = stream(np.random.default_rng(1000 + seed), 1000, lag)
    y = model(x)
    return float(((y > 0) == (target > 0.5))[lag:].mean())


def measure(quick: bool) -> dict[str, Any]:
    steps, seeds = (2_000, 1) if quick else (160_000, 3)
    arms = [(window, lag, True) for window in WINDOWS for lag in LAGS] + [(8, lag, False) for lag in LAGS]
    runs = side_by_side(train, [(*arm, seed, steps) for arm in arms for seed in range(seeds)])
    found = {
        f"{window}, {lag}, {carry}": runs[i * seeds : (i + 1) * seeds] for i, (window, lag, carry) in enumerate(arms)
    }
    return {"steps": steps, "seeds": seeds, "right": found}


def page(results: dict[str, Any]) -> str:
    right = results["right"]
    rows = [(f"{window} steps", *(spread(right[f"{window}, {lag}, True"]) for lag in LAGS)) for window in WINDOWS]
    rows.append(("8 steps, state not carried on", *(spread(right[f"8, {lag}, False"]) for lag in LAGS)))
    return f"""# Truncated backpropagation, and what it cannot learn

An LSTM of {HIDDEN} units reads random bits and gives back, at every step, the bit of some steps before. It reads one
stream of {results["steps"]:,} steps, {BATCH} at a time, cut into windows: the state goes on from window to window,
the gradient stops at a window's first step. So an error can be traced back over at most a window less one step. The
table has the share of right bits on a new stream, read without cuts; guessing gives 0.5. Median of {results["seeds"]}
seeds, and the extremes.

{table(("window", *(f"lag {lag}" for lag in LAGS)), rows)}
{FOUND}
"""


def figure(results: dict[str, Any], path: Path) -> None:
    import matplotlib.pyplot as plt

    fig, axis = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for window in WINDOWS:
        axis.plot(
            LAGS, [np.median(results["right"][f"{window}, {lag}, True"]) for lag in LAGS], "o-", label=f"{window}"
        )
    axis.set(xlabel="lag of the answer", ylabel="share of right bits", ylim=(0.45, 1.02), xticks=LAGS)
    axis.axhline(0.5, color="0.6", lw=0.8)
    axis.legend(title="window")
    fig.savefig(path, dpi=100)
    plt.close(fig)
