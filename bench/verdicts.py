"""What `gradcore diagnose` says beside the truth: `python bench/verdicts.py [--seeds 5] [series ...]`.

Each series is cut in two. The first four fifths are a file to diagnose, of which the diagnosis holds out its own end;
the last fifth nobody has seen. The Python that each trial prints is run, and its model forecasts the windows whose
targets are in that last fifth. A verdict is right where a remedy that it names is better there than the configuration,
or where, naming none, no trial is better there by a tenth than the configuration and every answer without a model.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

import gradcore
from gradcore.diagnosis import Study, configure, study

Array = np.ndarray[Any, Any]
UNSEEN = 0.2
LENGTH = 50
STEPS = {"lag 40": 1200}  # beside the default
CLEARLY = 0.9


def noise(rng: np.random.Generator) -> Array:
    return rng.standard_normal(600)


def walk(rng: np.random.Generator) -> Array:
    return np.cumsum(rng.standard_normal(1200))


def lag_40(rng: np.random.Generator) -> Array:
    """Each value follows from the one 40 steps before, and from nothing in between."""
    values = rng.standard_normal(2000)
    for i in range(40, len(values)):
        values[i] = 0.95 * values[i - 40] + 0.3 * values[i]
    return values


def bundled(name: str, column: int) -> Callable[[np.random.Generator], Array]:
    def read(_: np.random.Generator) -> Array:
        raw = (resources.files("gradcore.data") / name).read_bytes()
        text = (gzip.decompress(raw) if name.endswith(".gz") else raw).decode()
        cells = [line.split(",")[column] for line in text.splitlines()[1:]]
        return np.array([float(cell) if cell else np.nan for cell in cells])[-3000:]

    return read


SERIES: dict[str, Callable[[np.random.Generator], Array]] = {
    "white noise": noise,
    "random walk": walk,
    "sunspots": bundled("sunspots.csv", -1),
    "CO2": bundled("co2.csv", -1),
    "temperatures": bundled("temperatures.csv.gz", -1),
    "lag 40": lag_40,
}


@contextlib.contextmanager
def in_new_folder() -> Iterator[None]:
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


def unseen(values: Array, n: int, task: Any) -> tuple[Array, Array]:
    """Windows whose targets follow the first n values, scaled as the task scales its own."""
    seen = values[: int(np.ceil(0.8 * n))]
    scaled = ((values - np.nanmean(seen)) / np.nanstd(seen)).astype(np.float32)
    starts = [
        s for s in range(n - task.steps, len(values) - task.steps) if np.isfinite(scaled[s : s + task.steps + 1]).all()
    ]
    at = np.array(starts)[np.linspace(0, len(starts) - 1, min(400, len(starts))).astype(int)]
    return scaled[at + np.arange(task.steps)[:, None]][..., None], scaled[at + task.steps][:, None]


def truth(found: Study, x: Array, target: Array) -> dict[str, float]:
    """The loss of each trial on what nobody has seen, and of two answers without a model."""
    losses = {"constant": float(np.mean(target**2)), "last_value": float(np.mean((target[:, 0] - x[-1, :, 0]) ** 2))}
    period = found.start.data.get("period")
    if period and period <= len(x):
        losses["seasonal"] = float(np.mean((target[:, 0] - x[-period, :, 0]) ** 2))
    for trial in found.trials:
        names: dict[str, Any] = {}
        exec(trial.python, names)
        with np.errstate(all="ignore"):
            loss = gradcore.losses.mse(names["model"](x), target)[0]
        losses[trial.name] = loss if np.isfinite(loss) else np.inf
    return losses


def right(found: Study, losses: dict[str, float]) -> bool:
    configured, remedy = losses["as configured"], found.verdict.remedy
    if remedy is not None:
        return losses[remedy] < configured
    without = [losses[name] for name in ("constant", "last_value", "seasonal") if name in losses]
    best = min(losses[trial.name] for trial in found.trials)
    return best > CLEARLY * min(configured, *without)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("series", nargs="*", help=f"of {', '.join(SERIES)}; all by default")
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    print("| series | verdicts | remedies | loss on unseen data: remedy / configured / without a model | right |")
    print("|---|---|---|---|---|")
    for name in given.series or SERIES:
        kinds: Counter[str] = Counter()
        remedies: Counter[str] = Counter()
        shown, correct = [], 0
        for seed in range(given.seeds):
            values = SERIES[name](np.random.default_rng(100 + seed))
            n = int((1 - UNSEEN) * len(values))
            with in_new_folder():
                Path("series.csv").write_text(
                    "value\n" + "\n".join("" if np.isnan(v) else f"{v:.6g}" for v in values[:n]) + "\n"
                )
                found = study(configure("series.csv", steps=STEPS.get(name), seed=10 * seed, seq_len=LENGTH))
                task = gradcore.data.load("series.csv", LENGTH)
                losses = truth(found, *unseen(values, n, task))
            kinds[found.verdict.kind] += 1
            remedies[(found.verdict.remedy or "none").partition(",")[0]] += 1
            correct += right(found, losses)
            without = min(losses[key] for key in ("constant", "last_value", "seasonal") if key in losses)
            best = losses[found.verdict.remedy] if found.verdict.remedy else np.nan
            shown.append(f"{best:.3g} / {losses['as configured']:.3g} / {without:.3g}")
        said = [", ".join(f"{key} {count}" for key, count in counts.items()) for counts in (kinds, remedies)]
        print(f"| {name} | {said[0]} | {said[1]} | {'; '.join(shown)} | {correct} of {given.seeds} |", flush=True)


if __name__ == "__main__":
    main()
