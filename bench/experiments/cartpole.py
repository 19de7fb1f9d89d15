"""A recurrent policy for a pole whose velocities are hidden: large advantages, with and without clipping."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

import gradcore
from experiments.common import side_by_side, spread, table
from gradcore import optim
from gradcore.losses import softmax, softmax_cross_entropy

HIDDEN, EPISODES, LONGEST, LR, DISCOUNT = 32, 16, 200, 1e-2, 0.99
SOLVED = 150  # steps, the mean of the last tenth of the updates
FOUND = """Clipping decides where advantages are large and the optimizer does not divide by their size: SGD with
returns times 100 solves nothing without it, and all five runs with it. Adam makes up for the factor of 100 by itself,
and no difference that clipping makes to it is larger than the spread of the seeds. Standardized advantages are so
small that clipping at 1 never acts, and SGD at this rate learns too slowly from them."""
ADVANTAGES = ("standardized", "returns as they are", "returns times 100")
ARMS = [
    (advantages, optimizer, limit)
    for advantages in ADVANTAGES
    for optimizer in ("SGD", "Adam")
    for limit in (None, 1.0)
]


class Pole:
    """The cart and pole of Barto, Sutton and Anderson (1983), several at once; seen are position and angle only."""

    def __init__(self, n: int, rng: np.random.Generator) -> None:
        self.state = rng.uniform(-0.05, 0.05, (4, n))  # x, dx/dt, angle, d(angle)/dt

    def seen(self) -> Any:
        return np.stack([self.state[0] / 2.4, self.state[2] / 0.21], axis=-1).astype(np.float32)

    def step(self, right: Any) -> Any:
        """Push to the right or to the left, and return which poles still stand."""
        _, v, a, w = self.state
        force = np.where(right, 10.0, -10.0)
        sin, cos = np.sin(a), np.cos(a)
        push = (force + 0.05 * w**2 * sin) / 1.1
        turn = (9.8 * sin - cos * push) / (0.5 * (4 / 3 - 0.1 * cos**2 / 1.1))
        self.state = self.state + 0.02 * np.stack([v, push - 0.05 * turn * cos / 1.1, w, turn])
        return (abs(self.state[0]) < 2.4) & (abs(self.state[2]) < math.radians(12))


def play(model: Any, rng: np.random.Generator) -> tuple[Any, Any, Any]:
    """Return what was seen (T, B, 2), what was done (T, B), and how long each pole stood (B,)."""
    pole, stands = Pole(EPISODES, rng), np.ones(EPISODES, bool)
    lengths, state = np.zeros(EPISODES, int), model.initial_state(EPISODES)
    seen, done = [], []
    while stands.any() and len(seen) < LONGEST:
        seen.append(pole.seen())
        y, state = model(seen[-1][None], state)
        right = rng.random(EPISODES) < softmax(y[0])[:, 1]
        done.append(right.astype(np.int64))
        lengths += stands
        stands &= pole.step(right)
    return np.array(seen), np.array(done), lengths


def train(advantages: str, optimizer_name: str, limit: float | None, seed: int, updates: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    model = gradcore.Sequential(gradcore.GRU(2, HIDDEN, rng=rng), gradcore.Linear(HIDDEN, 2, rng=rng))
    optimizer = optim.SGD(model, lr=10 * LR) if optimizer_name == "SGD" else optim.Adam(model, lr=LR)
    stood, norms = [], []
    for _ in range(updates):
        x, actions, lengths = play(model, rng)
        live = np.arange(len(x))[:, None] < lengths
        returns = np.zeros(x.shape[:2])
        after = np.zeros(EPISODES)
        for t in reversed(range(len(x))):
            after = live[t] * (1 + DISCOUNT * after)
            returns[t] = after
        if advantages == "standardized":
            returns = (returns - returns[live].mean()) / (returns[live].std() + 1e-8)
        elif advantages == "returns times 100":
            returns *= 100
        y, tape = model.forward(x, lengths=lengths)
        _, dy = softmax_cross_entropy(y, actions, lengths=lengths, weight=returns.astype(np.float32))
        model.zero_grad()
        model.backward(tape, dy)
        norms.append(float(optimizer.step(max_norm=limit)))
        stood.append(float(lengths.mean()))
        if not np.isfinite(model.flat_params).all():
            break
    late = stood[-max(updates // 10, 1) :] if len(stood) == updates else [0.0]
    return {
        "stood": stood,
        "late": float(np.mean(late)),
        "norm": float(np.median(norms)),
        "largest": float(np.max(norms)),
    }


def measure(quick: bool) -> dict[str, Any]:
    updates, seeds = (5, 1) if quick else (300, 5)
    runs = side_by_side(train, [(*arm, seed, updates) for arm in ARMS for seed in range(seeds)])
    return {"updates": updates, "seeds": seeds, "runs": [runs[i * seeds : (i + 1) * seeds] for i in range(len(ARMS))]}


def page(results: dict[str, Any]) -> str:
    rows = []
    for (advantages, optimizer, limit), runs in zip(ARMS, results["runs"], strict=True):
        solved = sum(run["late"] >= SOLVED for run in runs)
        clip = "none" if limit is None else f"at {limit:g}"
        rows.append(
            (advantages, optimizer, clip, spread(run["norm"] for run in runs), spread(run["late"] for run in runs),
             f"{solved} of {len(runs)}")
        )  # fmt: skip
    header = ("advantages", "optimizer", "clipping", "median norm", "steps in balance", "solved")
    return f"""# A recurrent policy, large advantages and clipping

A GRU of {HIDDEN} units balances a pole on a cart and sees position and angle only; the velocities it has to infer.
REINFORCE: after {EPISODES} episodes of at most {LONGEST} steps, the log probability of each action is weighted with
what followed (discount {DISCOUNT:g}): standardized over the batch, as it is (up to
{(1 - DISCOUNT**LONGEST) / (1 - DISCOUNT):.0f}), or times 100. The loss is `softmax_cross_entropy(y, actions,
lengths=lengths, weight=advantages)`. SGD at {10 * LR:g} or Adam at {LR:g}, {results["updates"]} updates,
{results["seeds"]} seeds: medians and extremes; steps in balance are those of the last tenth of the updates, and
{SOLVED} count as solved. A run that ends in NaN counts as 0 steps.

{table(header, rows)}
{FOUND}
"""


def figure(results: dict[str, Any], path: Path) -> None:
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 3, figsize=(10, 3.2), sharey=True, layout="constrained")
    for (advantages, optimizer, limit), runs in zip(ARMS, results["runs"], strict=True):
        axis = axes[ADVANTAGES.index(advantages)]
        longest = max(len(run["stood"]) for run in runs)
        curves = [run["stood"] + [0.0] * (longest - len(run["stood"])) for run in runs]
        style = {"color": "tab:blue" if optimizer == "SGD" else "tab:orange", "ls": "--" if limit is None else "-"}
        axis.plot(np.median(curves, axis=0), lw=1, label=f"{optimizer}{', clipped' if limit else ''}", **style)
        axis.set(title=advantages, xlabel="update")
    axes[0].set_ylabel("steps in balance")
    axes[0].legend()
    fig.savefig(path, dpi=100)
    plt.close(fig)
