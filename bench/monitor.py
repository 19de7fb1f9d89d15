"""What the monitor says of healthy and of sabotaged runs: `python bench/monitor.py`, two minutes.

Each task is trained as it should be, with two seeds, and then with something done to it that may or may not do harm:
that is judged by the loss on clean data, beside that of the healthy run. `--held-out` takes other tasks and seeds, on
which no rule and no threshold was tuned.
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import monitor_tasks as tasks
import numpy as np
from monitor_tasks import Array, Rng, Task

import gradcore
from gradcore.training.monitor import Finding, GradientMonitor

SEEDS, HELD_OUT_SEEDS = (0, 1), (100, 101, 102)
HARM = 0.25  # share of what the healthy run has learned
SPEAKS = ("critical", "high", "moderate")


@dataclass
class Result:
    """One training."""

    before: float  # the loss on clean data
    after: float
    findings: list[Finding]

    @property
    def kinds(self) -> set[str]:
        return {finding.kind for finding in self.findings if finding.severity in SPEAKS}


@dataclass
class Sabotage:
    """What is done to a training, and the findings that point to it."""

    name: str
    points: set[str]
    task: Callable[[Task], Task] = lambda task: task
    model: Callable[[Any], None] = lambda model: None
    batch: Callable[[int, Rng, list[Any]], None] = lambda i, rng, batch: None  # in place
    applies: Callable[[Task], bool] = lambda task: True
    any_harm: bool = False  # counts as harm whatever the loss


def draw(task: Task, rng: Rng, n: int) -> list[tuple[Any, ...]]:
    return [task.batch(rng) for _ in range(n)] if task.batches is None else task.batches(rng, n)


def clean(task: Task, model: Any, seed: int) -> float:
    """The mean loss over batches that nobody trains on."""
    rng, loss = np.random.default_rng(seed + 10_000), task.clean_loss or task.loss
    values = []
    for batch in draw(task, rng, 12 if len(task.batch(rng)[1]) > 1 else 300):
        options = {"lengths": batch[2]} if len(batch) > 2 else {}
        values.append(loss(model(batch[0], **options), batch[1])[0])
    return float(np.mean(values))


def train(task: Task, seed: int, sabotage: Sabotage | None = None) -> Result:
    rng, monitor = np.random.default_rng(seed), GradientMonitor()
    healthy = copy.deepcopy(task)
    task = task if sabotage is None else sabotage.task(copy.deepcopy(task))
    model = task.model(rng)
    before = clean(healthy, model, seed)
    batches = [list(batch) for batch in draw(task, rng, task.steps)]
    if sabotage is not None:
        sabotage.model(model)
        other = np.random.default_rng(seed + 1)
        for i, batch in enumerate(batches):
            sabotage.batch(i, other, batch)
    gradcore.set_num_threads(1)
    with np.errstate(all="ignore"):
        gradcore.fit(
            model, batches, task.loss, task.optimizer(model, task.lr), epochs=1, max_norm=task.max_norm,
            hooks=task.hooks(), monitor=monitor, progress=False,
        )  # fmt: skip
        return Result(before, clean(healthy, model, seed), monitor.findings)


# ---- what is done to a training --------------------------------------------------------------------------------------


def times_weights(factor: float) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        model.flat_params *= np.float32(factor)

    return change


def times_lr(factor: float, **changes: Any) -> Callable[[Task], Task]:
    return lambda task: replace(task, lr=task.lr * factor, **changes)


def of_a_copy(task: Task) -> Task:
    make = task.optimizer
    return replace(task, optimizer=lambda model, lr: make(copy.deepcopy(model), lr))


def wrong_sign(task: Task) -> Task:
    right = task.loss

    def loss(y: Array, target: Any) -> tuple[float, Array]:
        value, dy = right(y, target)
        return value, -dy

    return replace(task, loss=loss)


class NeverZeroed(gradcore.Hook):
    total: Any = 0.0

    def after_backward(self, step: Any) -> None:
        step.model.flat_grads += self.total
        self.total = step.model.flat_grads.copy()


def never_zeroed(task: Task) -> Task:
    hooks = task.hooks
    return replace(task, hooks=lambda: [*hooks(), NeverZeroed()])


def holes(which: int, every: int) -> Callable[[int, Rng, list[Any]], None]:
    def change(i: int, rng: Rng, batch: list[Any]) -> None:
        if i % every == 3:
            batch[which].flat[0 if len(batch) > 2 else rng.integers(batch[which].size)] = np.nan

    return change


def times_data(which: int, factor: float) -> Callable[[int, Rng, list[Any]], None]:
    def change(i: int, rng: Rng, batch: list[Any]) -> None:
        batch[which] = batch[which] * np.float32(factor)

    return change


def shuffle(i: int, rng: Rng, batch: list[Any]) -> None:
    target = batch[1]
    order = rng.permutation(target.shape[1] if _in_time(batch) else len(target))
    batch[1] = np.ascontiguousarray(target[:, order] if _in_time(batch) else target[order])


def _in_time(batch: list[Any]) -> bool:
    """Whether targets have a time axis before that of the samples."""
    return bool(batch[0].ndim == 3 and batch[1].shape[:2] == batch[0].shape[:2])


def silence(model: Any) -> None:
    for name, value in model.params.items():
        if name.startswith("0."):
            value[...] = -100.0 if name.endswith("bias") else value


def real_targets(task: Task) -> bool:
    return bool(task.batch(np.random.default_rng(0))[1].dtype.kind == "f")


def is_relu(task: Task) -> bool:
    return any(isinstance(layer, gradcore.ReLU) for layer in task.model(np.random.default_rng(0)).layers)


def same_sgd(task: Task) -> Task:
    return replace(task, optimizer=tasks.sgd(), lr=50.0, max_norm=None)


START = {"exploding_in_time", "exploding_in_layers", "large_gradients", "vanishing_in_layers"}
RATE = {"huge_steps", "steps_raise_loss", "diverged", "oscillating_loss", "rising_loss", "unstable_after_progress"}
SIGN = {"steps_raise_loss", "rising_loss"}
SABOTAGES = [
    Sabotage("weights x 10", START, model=times_weights(10)),
    Sabotage("weights x 3", START, model=times_weights(3)),
    Sabotage("learning rate x 100", RATE, times_lr(100)),
    Sabotage("learning rate x 100, no clipping", RATE, times_lr(100, max_norm=None)),
    Sabotage("SGD at a rate of 50", RATE, same_sgd),
    Sabotage("learning rate x 1e-4", {"tiny_steps", "frozen_weights"}, times_lr(1e-4)),
    Sabotage("learning rate 0", {"frozen_weights"}, times_lr(0.0)),
    Sabotage("NaN in inputs", {"nan_in_data"}, batch=holes(0, 7), any_harm=True),
    Sabotage("NaN in targets", {"nan_in_data"}, batch=holes(1, 7), applies=real_targets, any_harm=True),
    Sabotage("targets x 1000", {"unscaled_data"}, batch=times_data(1, 1000), applies=real_targets),
    Sabotage("inputs x 1000", {"unscaled_data"}, batch=times_data(0, 1000)),
    Sabotage("inputs all zero", {"constant_inputs", "constant_outputs"}, batch=times_data(0, 0)),
    Sabotage(
        "first layer dead", {"dead_units", "constant_outputs", "vanishing_in_layers"}, model=silence, applies=is_relu
    ),
    Sabotage("labels shuffled", {"not_learning"}, batch=shuffle),
    Sabotage("optimizer of a copy", {"frozen_weights"}, of_a_copy),
    Sabotage("sign of the loss wrong", SIGN, wrong_sign),
    Sabotage("gradients never zeroed", SIGN | {"accumulated_gradients"}, never_zeroed),
    Sabotage("max_norm = 1e-7", {"tiny_steps", "always_clipping"}, lambda task: replace(task, max_norm=1e-7)),
]


# ---- the study -------------------------------------------------------------------------------------------------------


def healthy_runs(found: list[Task], run: Callable[[str, int], Result], seeds: tuple[int, ...]) -> None:
    n = loud = 0
    moderate: dict[str, int] = {}
    print("healthy runs, and each finding of high or worse:")
    for task in found:
        for seed in seeds:
            result, n = run(task.name, seed), n + 1
            if not result.after < 0.95 * result.before:
                print(f"  {task.name}, seed {seed}: did not learn, {result.before:.3g} to {result.after:.3g}")
            high = [finding for finding in result.findings if finding.severity in ("critical", "high")]
            loud += bool(high)
            for finding in high:
                print(f"  {task.name}, seed {seed}: {finding}")
            for kind in result.kinds - {finding.kind for finding in high}:
                moderate[kind] = moderate.get(kind, 0) + 1
    print(f"  {loud} of {n} with one or more; moderate: {moderate or 'none'}\n")


def sabotaged_runs(
    found: list[Task], run: Callable[[str, int], Result], seed: int, *, only: str | None, verbose: bool
) -> None:
    total = np.zeros(5, int)
    print(f"{'sabotage':34}{'runs':>6}{'harmful':>9}{'found':>7}{'named':>7}{'on top':>8}")
    for sabotage in SABOTAGES:
        if only is not None and only not in sabotage.name:
            continue
        row = np.zeros(5, int)
        for task in filter(sabotage.applies, found):
            twin, ill = run(task.name, seed), train(task, seed, sabotage)
            lost = (ill.after - twin.after) / (twin.before - twin.after)
            harmful = sabotage.any_harm or not math.isfinite(ill.after) or lost > HARM
            top = {f.kind for f in ill.findings if not f.follows and f.severity in SPEAKS}
            marks = harmful, ill.kinds - twin.kinds, ill.kinds & sabotage.points, top & sabotage.points
            row += [1, *(harmful and bool(mark) for mark in marks)]
            if verbose or (harmful and not marks[2]):
                what = [(f.kind, f.severity, f.step, f.follows) for f in ill.findings]
                print(f"    {task.name}: {twin.before:.3g} to {ill.after:.3g}, healthy {twin.after:.3g}; {what}")
        total += row
        print(f"{sabotage.name:34}{row[0]:6}{row[1]:9}{row[2]:7}{row[3]:7}{row[4]:8}")
    shares = [f"{value / max(total[1], 1):.0%}" for value in total[2:]]
    print(f"{'all':34}{total[0]:6}{total[1]:9}{total[2]:7}{total[3]:7}{total[4]:8}")
    print(f"{'of the harmful':49}{shares[0]:>7}{shares[1]:>7}{shares[2]:>8}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--held-out", action="store_true", help="other tasks and seeds, on which nothing was tuned")
    parser.add_argument("--only", help="sabotages with this in their name, and no healthy runs")
    parser.add_argument("--verbose", action="store_true", help="the findings of every sabotaged run")
    options = parser.parse_args()
    found = tasks.HELD_OUT if options.held_out else tasks.TASKS
    sabotaged = tasks.HELD_OUT_SABOTAGED if options.held_out else tasks.SABOTAGED
    seeds = HELD_OUT_SEEDS if options.held_out else SEEDS
    by_name = {task.name: task for task in found}

    @cache
    def run(name: str, seed: int) -> Result:
        return train(by_name[name], seed)

    if options.only is None:
        healthy_runs(found, run, seeds)
    chosen = [by_name[name] for name in sabotaged]
    sabotaged_runs(chosen, run, seeds[0], only=options.only, verbose=options.verbose)


if __name__ == "__main__":
    main()
