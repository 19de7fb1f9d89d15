"""Runs with poisoned batches under five remedies: `python bench/supervisor.py`, ten minutes on two cores.

A GRU learns to imitate another one, from 20,000 batches. In each thousand of them 30 to 90 in a row are bad: in turns
the sequences come with three times the opposite of their targets, or everything is in other units, three times the
inputs and thirty times the targets, in another order. Everything but the remedy is the same, and beside each seed runs
its twin, which is given the same batches without the poison. Then the supervisor watches healthy runs, among them those
of `monitor_tasks.py`, and its cost is measured.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import gradcore
from gradcore import optim
from gradcore._base.files import jsonable
from gradcore.losses import mse

T, B, INPUTS, HIDDEN, LR = 10, 16, 3, 20, 3e-3
BATCHES, EVERY = 20_000, 1000  # one bad stretch in each thousand
SHORTEST, LONGEST = 30, 90
LOOK = 50  # batches between two looks at the held-out loss
AFTER = 200  # a stretch is survived if this many batches after its end the held-out loss is
SURVIVED = 1.5  # at most this many times that of the twin
SEEDS, HEALTHY_SEEDS = (0, 1), range(100, 108)  # healthy runs have a quarter of the batches
TASK_STEPS, TASK_SEED = 1500, 10

# The clip norm is a little above the usual norm of this task, 0.4 to 0.5.
REMEDIES: dict[str, dict[str, Any]] = {
    "twin without poison": {"poisoned": False, "supervised": True},
    "none": {},
    "clipping at 1": {"max_norm": 1.0},
    "ZClip": {"max_norm": gradcore.threshold.ZClip()},
    "SPAM": {"rule": "SPAM"},
    "Supervisor": {"supervised": True},
    "Supervisor, clipping at 1": {"supervised": True, "max_norm": 1.0},
}


@dataclass(frozen=True)
class Run:
    """One training."""

    remedy: str
    seed: int
    stretches: list[tuple[int, int]]
    held_out: list[float]  # before every `LOOK`th batch
    steps: int
    rollbacks: list[str]
    seconds: float


def problem(seed: int, n: int = 1000) -> tuple[Any, Any, Any, np.random.Generator]:
    """Return batches, held-out data and a student of a teacher with large weights."""
    rng = np.random.default_rng(seed)
    teacher = network(10, rng)
    teacher.flat_params[...] *= 3
    x = rng.standard_normal((T, B * n + 256, INPUTS)).astype(np.float32)
    y = teacher(x)
    y = (y - y.mean()) / y.std()
    pairs = [(np.ascontiguousarray(x[:, i : i + B]), y[i : i + B].copy()) for i in range(0, B * n, B)]
    return pairs, (np.ascontiguousarray(x[:, B * n :]), y[B * n :]), network(HIDDEN, rng), rng


def network(hidden: int, rng: np.random.Generator) -> gradcore.Sequential:
    return gradcore.Sequential(
        gradcore.GRU(INPUTS, hidden, rng=rng), gradcore.LastStep(), gradcore.Linear(hidden, 1, rng=rng)
    )


def stretches(rng: np.random.Generator, n: int) -> list[tuple[int, int]]:
    """Return the first bad batch of each stretch, and the one after the last."""
    starts = [begin + int(rng.integers(300, 700)) for begin in range(0, n - EVERY + 1, EVERY)]
    return [(start, start + int(rng.integers(SHORTEST, LONGEST + 1))) for start in starts]


def train(
    remedy: str,
    seed: int,
    n: int,
    *,
    poisoned: bool = True,
    supervised: bool = False,
    max_norm: Any = None,
    rule: str = "Adam",
) -> Run:
    gradcore.set_num_threads(1)  # the runs themselves stand side by side
    pairs, (x, y), model, rng = problem(seed)
    order, bad = rng.integers(0, len(pairs), n), stretches(rng, n)
    kind = {i: k % 2 for k, (start, stop) in enumerate(bad) for i in range(start, stop)} if poisoned else {}
    held_out: list[float] = []

    def batches() -> Iterator[Any]:
        shuffle = np.random.default_rng(seed)
        for i, j in enumerate(order):
            if i % LOOK == 0:
                held_out.append(mse(model(x), y)[0])
            inputs, target = pairs[j]
            if kind.get(i) == 0:
                target = target * np.float32(-3)
            elif kind.get(i) == 1:
                inputs, target = inputs * np.float32(3), shuffle.permutation(target) * np.float32(30)
            yield inputs, target

    start = time.perf_counter()
    optimizer = getattr(optim, rule)(model, lr=LR)
    supervisor = gradcore.Supervisor(max_rollbacks=1000) if supervised else None
    history = gradcore.fit(
        model, batches, mse, optimizer, epochs=1, max_norm=max_norm, supervisor=supervisor, progress=False
    )
    held_out.append(mse(model(x), y)[0])
    seconds = time.perf_counter() - start
    return Run(remedy, seed, bad, held_out, len(history), list(map(str, history.rollbacks)), seconds)


def survived(run: Run, twin: Run) -> int:
    """Count the stretches after which the run is soon where its twin is."""
    looks = [-(-(stop + AFTER) // LOOK) for _, stop in run.stretches]
    return sum(run.held_out[at] <= SURVIVED * twin.held_out[at] for at in looks)


def healthy_task(i: int) -> tuple[str, int, int]:
    """Train a task of `monitor_tasks.py` under supervision; return its name, and the numbers of steps and rollbacks."""
    import monitor_tasks

    gradcore.set_num_threads(1)
    task = copy.deepcopy((monitor_tasks.TASKS + monitor_tasks.HELD_OUT)[i])
    rng = np.random.default_rng(TASK_SEED)
    model = task.model(rng)
    given = [task.batch(rng) for _ in range(TASK_STEPS)] if task.batches is None else task.batches(rng, TASK_STEPS)
    history = gradcore.fit(
        model, given, task.loss, task.optimizer(model, task.lr), epochs=1, max_norm=task.max_norm, hooks=task.hooks(),
        supervisor=gradcore.Supervisor(), progress=False,
    )  # fmt: skip
    return task.name, len(history), len(history.rollbacks)


class Timed(gradcore.Supervisor):
    """A supervisor that measures the time it takes."""

    seconds = 0.0

    def after_step(self, step: Any) -> Any:
        start = time.perf_counter()
        answer = super().after_step(step)
        self.seconds += time.perf_counter() - start
        return answer


def overhead(hidden: int = 128, steps: int = 600) -> dict[str, float]:
    """Return the time of a step of an LSTM with Adam and a monitor, and that of the supervisor within."""
    rng = np.random.default_rng(0)
    model = gradcore.Sequential(
        gradcore.LSTM(16, hidden, rng=rng), gradcore.LastStep(), gradcore.Linear(hidden, 1, rng=rng)
    )
    batch = rng.standard_normal((100, 32, 16)).astype(np.float32), rng.standard_normal((32, 1)).astype(np.float32)
    supervisor = Timed()
    start = time.perf_counter()
    gradcore.fit(
        model, [batch] * steps, mse, optim.Adam(model), epochs=1, supervisor=supervisor,
        monitor=gradcore.monitor.GradientMonitor(), progress=False,
    )  # fmt: skip
    step = (time.perf_counter() - start) / steps
    return {"ms_per_step": 1e3 * step, "supervisor_us_per_step": 1e6 * supervisor.seconds / steps}


def main() -> None:
    parser = argparse.ArgumentParser(description="Poisoned batches under five remedies.")
    parser.add_argument("--json", type=Path, default=Path("supervisor.json"), help="where to write the numbers")
    parser.add_argument("--batches", type=int, default=BATCHES, help="batches of a run")
    arguments = parser.parse_args()
    n = arguments.batches
    if n < EVERY:
        parser.error(f"--batches: expected at least {EVERY}, got {n}")

    import monitor_tasks

    n_tasks = len(monitor_tasks.TASKS + monitor_tasks.HELD_OUT)
    context = multiprocessing.get_context("spawn")
    workers = max(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 1)
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        jobs = [pool.submit(train, name, seed, n, **how) for seed in SEEDS for name, how in REMEDIES.items()]
        others = [
            pool.submit(train, "healthy", seed, max(n // 4, EVERY), **REMEDIES["twin without poison"])
            for seed in HEALTHY_SEEDS
        ]
        tasks = [pool.submit(healthy_task, i) for i in range(n_tasks)]
        runs, healthy = [job.result() for job in jobs], [job.result() for job in others]
        small = [job.result() for job in tasks]
    cost = overhead()

    twins = {run.seed: run for run in runs if run.remedy == "twin without poison"}
    total = sum(len(twin.stretches) for twin in twins.values())
    print(f"{n:,} batches, {len(SEEDS)} seeds, a bad stretch in each thousand: {total} in all")
    print("| remedy | held-out loss at the end | mean over the run, of the twin's | stretches survived | rollbacks |")
    print("|---|---|---|---|---|")
    rows = []
    for name, how in REMEDIES.items():
        mine = [run for run in runs if run.remedy == name]
        ends = [run.held_out[-1] for run in mine]
        ratios = [np.mean(np.divide(run.held_out, twins[run.seed].held_out)) for run in mine]
        good, backs = sum(survived(run, twins[run.seed]) for run in mine), sum(len(run.rollbacks) for run in mine)
        shown = good if how.get("poisoned", True) else "-"
        print(f"| {name} | {' '.join(f'{end:.4f}' for end in ends)} | {np.mean(ratios):.2f} | {shown} | {backs} |")
        rows.append({"remedy": name, "ends": ends, "ratio": np.mean(ratios), "survived": good, "rollbacks": backs})
    watched = [*twins.values(), *healthy]
    steps, false = sum(run.steps for run in watched), sum(len(run.rollbacks) for run in watched)
    print(f"{len(watched)} healthy runs, {steps:,} steps in all: {false} rollbacks")
    print(f"{n_tasks} other tasks, {TASK_STEPS:,} healthy steps each: {sum(k for *_, k in small)} rollbacks")
    for name, _, k in small:
        if k:
            print(f"    {name}: {k}")
    share = 0.1 * cost["supervisor_us_per_step"] / cost["ms_per_step"]
    print(
        f"cost beside a step of an LSTM with H 128, T 100, B 32: {cost['supervisor_us_per_step']:.0f} us of "
        f"{cost['ms_per_step']:.1f} ms, {share:.2f} %"
    )
    document = {"table": rows, "runs": [asdict(run) for run in [*runs, *healthy]], "tasks": small, "cost": cost}
    arguments.json.write_text(json.dumps(jsonable(document), allow_nan=False) + "\n", encoding="utf-8")
    print(f"wrote {arguments.json}")


if __name__ == "__main__":
    main()
