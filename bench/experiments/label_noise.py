"""Wrong labels: what they do to the norm of the gradient, and what clipping and robust losses do about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import gradcore
from experiments.common import side_by_side, spread, table
from gradcore import optim
from gradcore.data import temporal_order
from gradcore.losses import softmax_cross_entropy

LENGTH, HIDDEN, BATCH, SEQUENCES, LR = 30, 32, 20, 1000, 5e-3
SHARES = (0.0, 0.1, 0.3)
FOUND = """Wrong labels do not make gradients explode: the largest norms are no larger than without. They keep them
from vanishing at the end: the norm stays near 1 instead of falling to 1e-4, since the network goes on to learn the
wrong labels by heart. Every run reaches an error of 0 on the way and loses it again, 4 to 8 % with a tenth of wrong
labels, 21 to 25 % with three tenths. So stopping in time is the remedy. Label smoothing makes the norms smaller, and
with a tenth of wrong labels the last error too, within the spread of the seeds; clipping at 1 does neither."""
ARMS = {
    "nothing": {},
    "clipping at 1": {"max_norm": 1.0},
    "label smoothing 0.1": {"label_smoothing": 0.1},
    "both": {"max_norm": 1.0, "label_smoothing": 0.1},
}


def train(share: float, arm: str, seed: int, epochs: int) -> dict[str, Any]:
    """Train again and again on the same sequences, some of which have a wrong label."""
    rng = np.random.default_rng(seed)
    x, labels = temporal_order(rng, SEQUENCES, LENGTH)
    wrong = rng.random(SEQUENCES) < share
    noisy = np.where(wrong, (labels + rng.integers(1, 4, SEQUENCES)) % 4, labels)
    model = gradcore.Sequential(
        gradcore.GRU(6, HIDDEN, rng=rng), gradcore.LastStep(), gradcore.Linear(HIDDEN, 4, rng=rng)
    )
    options = ARMS[arm]
    smoothing = options.get("label_smoothing", 0.0)
    optimizer = optim.Adam(model, lr=LR)

    def batches() -> Any:
        order = rng.permutation(SEQUENCES)
        for rows in order.reshape(-1, BATCH):
            yield np.ascontiguousarray(x[:, rows]), noisy[rows]

    new, truth = temporal_order(10_000 + seed, 4000, LENGTH)
    errors: list[float] = []

    def after_step(step: Any) -> None:
        if step.step % (SEQUENCES // BATCH) == 0:
            errors.append(float((model(new).argmax(-1) != truth).mean()))

    history = gradcore.fit(
        model, batches, lambda y, t: softmax_cross_entropy(y, t, label_smoothing=smoothing), optimizer,
        epochs=epochs, max_norm=options.get("max_norm"), callbacks=[after_step], progress=False,
    )  # fmt: skip
    errors.append(float((model(new).argmax(-1) != truth).mean()))
    norms = history.grad_norm.reshape(epochs, -1)
    return {"errors": errors, "norms": np.median(norms, axis=1).tolist(), "largest": norms.max(axis=1).tolist()}


def measure(quick: bool) -> dict[str, Any]:
    epochs, seeds = (2, 1) if quick else (60, 5)
    arms = [(share, arm) for share in SHARES for arm in ARMS]
    runs = side_by_side(train, [(*arm, seed, epochs) for arm in arms for seed in range(seeds)])
    return {"epochs": epochs, "seeds": seeds, "arms": [
        {"share": share, "arm": arm, "runs": runs[i * seeds : (i + 1) * seeds]} for i, (share, arm) in enumerate(arms)
    ]}  # fmt: skip


def page(results: dict[str, Any]) -> str:
    rows = [
        (f"{arm['share']:.0%}", arm["arm"], spread(max(run["norms"]) for run in arm["runs"]),
         spread(run["norms"][-1] for run in arm["runs"]), spread(max(run["largest"]) for run in arm["runs"]),
         spread(min(run["errors"]) for run in arm["runs"]), spread(run["errors"][-1] for run in arm["runs"]))
        for arm in results["arms"]
    ]  # fmt: skip
    header = (
        "wrong labels",
        "remedy",
        "norm, largest epoch",
        "norm, last epoch",
        "largest norm",
        "least error",
        "last error",
    )
    return f"""# Wrong labels and the norm of the gradient

A GRU of {HIDDEN} units learns temporal order over {LENGTH} steps from {SEQUENCES:,} sequences, of which a share has a
wrong label, for {results["epochs"]} epochs in batches of {BATCH}, with Adam at {LR:g}. Norms are those before
clipping: the median over an epoch, and the largest of all. The error is measured on 4,000 new sequences with right
labels, each epoch: the least, and the last. Median of {results["seeds"]} seeds, and the extremes.

{table(header, rows)}
{FOUND}
"""


def figure(results: dict[str, Any], path: Path) -> None:
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for arm in results["arms"]:
        if arm["arm"] == "nothing":
            for axis, key in zip(axes, ("norms", "errors"), strict=True):
                axis.plot(np.median([run[key] for run in arm["runs"]], axis=0), label=f"{arm['share']:.0%}")
    axes[0].set(xlabel="epoch", ylabel="median norm of the gradient", yscale="log")
    axes[1].set(xlabel="epoch", ylabel="error on new data")
    axes[0].legend(title="wrong labels")
    fig.savefig(path, dpi=100)
    plt.close(fig)
