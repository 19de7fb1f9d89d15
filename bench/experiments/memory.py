"""Cells and starts on the problems of long memory: temporal order, adding and copying over 100, 500 and 1,000 steps."""

from __future__ import annotations

from typing import Any

import numpy as np

import gradcore
from experiments.common import side_by_side, spread, table
from gradcore import data, init, optim
from gradcore.losses import mse, softmax_cross_entropy

HIDDEN, BATCH, LR = 64, 20, 1e-3
LENGTHS = {100: (8000, 3), 500: (4000, 2), 1000: (2000, 1)}  # steps of training, seeds
CELLS = ("tanh RNN", "tanh RNN, orthogonal", "IRNN", "LSTM", "LSTM, chrono", "GRU", "layer-norm LSTM")
TASKS = ("temporal order", "adding", "copying")
CHANCE = {"temporal order": 0.75, "adding": 1 / 6, "copying": 7 / 8}
SOLVED = {"temporal order": 0.01, "adding": 0.0016, "copying": 0.01}  # squared: an error of 0.04


def draw(task: str, rng: np.random.Generator, batch: int, length: int) -> tuple[Any, Any]:
    make = {"temporal order": data.temporal_order, "adding": data.adding, "copying": data.copy}[task]
    return make(rng, batch, length)


def build(cell: str, n_inputs: int, n_outputs: int, length: int, at_end: bool, seed: int) -> gradcore.Sequential:
    rng = np.random.default_rng(seed)
    if cell == "IRNN":  # Le, Jaitly and Hinton, 2015
        layer: Any = gradcore.RNN(n_inputs, HIDDEN, nonlinearity="relu", rng=rng)
        layer.flat_params[...] = 0.001 * rng.standard_normal(layer.flat_params.size)
        init.eye_(layer.params["weight_hh_l0"])
        layer.params["bias_ih_l0"] = layer.params["bias_hh_l0"] = np.zeros(HIDDEN, np.float32)
    elif cell.startswith("tanh RNN"):
        layer = gradcore.RNN(n_inputs, HIDDEN, rng=rng)
        if cell.endswith("orthogonal"):
            init.orthogonal_(layer.params["weight_hh_l0"], rng=rng)
    elif cell == "GRU":
        layer = gradcore.GRU(n_inputs, HIDDEN, rng=rng)
    else:
        layer = gradcore.LSTM(n_inputs, HIDDEN, layer_norm=cell.startswith("layer-norm"), rng=rng)
        if cell.endswith("chrono"):
            init.chrono_(layer, T_max=length, rng=rng)
        else:
            layer.params["bias_ih_l0"][HIDDEN : 2 * HIDDEN] = 1  # of the forget gate
    output = gradcore.Linear(HIDDEN, n_outputs, rng=rng)
    return gradcore.Sequential(layer, *([gradcore.LastStep()] if at_end else []), output)


def error(task: str, model: Any, seed: int, length: int) -> float:
    """Return the share of wrong answers, or for adding the mean squared error, on 1,000 new sequences."""
    rng, found = np.random.default_rng(10_000 + seed), []
    for _ in range(10):
        x, target = draw(task, rng, 100, length)
        y = model(x)
        if task == "adding":
            found.append(mse(y, target)[0])
        else:
            asked = slice(-10, None) if task == "copying" else slice(None)
            found.append(float((y[asked].argmax(-1) != target[asked]).mean()))
    return float(np.mean(found))


def train(task: str, cell: str, length: int, seed: int, steps: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    sizes = {"temporal order": (6, 4), "adding": (2, 1), "copying": (10, 10)}[task]
    model = build(cell, *sizes, length, task != "copying", seed)
    optimizer = optim.Adam(model, lr=LR)
    loss = mse if task == "adding" else softmax_cross_entropy
    errors: list[float] = []
    each = max(steps // 8, 1)

    def after_step(step: Any) -> bool:
        if (step.step + 1) % each == 0:
            errors.append(error(task, model, seed, length))
        return bool(errors) and errors[-1] < SOLVED[task]

    history = gradcore.fit(
        model, (draw(task, rng, BATCH, length) for _ in range(steps)), loss, optimizer,
        epochs=1, max_norm=1.0, callbacks=[after_step], progress=False,
    )  # fmt: skip
    return {"error": errors[-1], "steps": len(history), "norm": float(np.median(history.grad_norm))}


def measure(quick: bool) -> dict[str, Any]:
    lengths = {30: (16, 1)} if quick else LENGTHS
    jobs = [
        (task, cell, length, seed, steps)
        for length, (steps, seeds) in lengths.items()
        for task in TASKS
        for cell in CELLS
        for seed in range(seeds)
    ]
    runs = side_by_side(train, jobs)
    found: dict[str, list[Any]] = {}
    for (task, cell, length, *_), run in zip(jobs, runs, strict=True):
        found.setdefault(f"{task}/{cell}/{length}", []).append(run)
    return {"lengths": {str(length): budget for length, budget in lengths.items()}, "runs": found}


def page(results: dict[str, Any]) -> str:
    lengths, parts = results["lengths"], []
    for task in TASKS:
        rows = []
        for cell in CELLS:
            row: list[Any] = [cell]
            for length in lengths:
                runs = results["runs"][f"{task}/{cell}/{length}"]
                solved = [run["steps"] for run in runs if run["error"] < SOLVED[task]]
                row.append(spread(run["error"] for run in runs))
                row.append(f"{len(solved)} of {len(runs)}" + (f", {min(solved):,} steps" if solved else ""))
            rows.append(row)
        header = ["cell", *(text for length in lengths for text in (f"{length} steps", "solved"))]
        what = "mean squared error" if task == "adding" else "share of wrong answers"
        limits = f"{CHANCE[task]:.3g} without memory, below {SOLVED[task]:g} counts as solved"
        head = f"## {task.capitalize()}: {what}; {limits}"
        parts.append(f"{head}\n\n{table(header, rows)}")
    budget = ", ".join(f"{steps:,} with {seeds} seeds over {length}" for length, (steps, seeds) in lengths.items())
    return f"""# Long memory: cells and starts

Each cell has {HIDDEN} units and is trained with Adam at {LR:g}, clipped at 1, batches of {BATCH} new sequences, for
at most so many steps: {budget}. A run ends when it has solved its problem on 1,000 new sequences, which is looked up
eight times. The LSTM has a forget bias of 1, chrono one for times up to the length. Medians and extremes over seeds,
and the fewest steps of those that solved it.

{chr(10).join(parts)}

## Beside what is published

{table(("experiment", "published"), PUBLISHED)}

{SOURCES}
"""


PUBLISHED = [
    ("temporal order, 100 steps: LSTM without forget gate, one sequence a step [1]", "31,390 sequences"),
    ("adding, 100, 500 and 1,000 steps, the same [1]", "74,000, 209,000 and 853,000 sequences"),
    ("copying over 100 and 500 steps: LSTM [2]", "stays at the loss without memory, 10 ln 8 / (T + 20)"),
    ("adding over 750 steps: chrono against a forget bias of 1 [3]", "learns 7 times faster"),
    ("adding over 150 and 300 steps: IRNN and LSTM [4]", "both learn; a tanh RNN only over 150"),
]
SOURCES = """[1] Hochreiter and Schmidhuber, 1997; a step of the tables above has 20 sequences. [2] Arjovsky, Shah and
Bengio, 2016. [3] Tallec and Ollivier, 2018. [4] Le, Jaitly and Hinton, 2015, as remembered: not read again."""
