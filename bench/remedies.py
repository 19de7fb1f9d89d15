"""The remedies of the literature where the texts claim that they work: `python bench/remedies.py [NAME ...]`.

Each experiment is a file in `experiments/`, which says what it measures, and makes one page of docs/remedies. `--quick`
takes smaller ones, to see that everything runs; `--out docs/remedies` writes the pages and figures.
"""

from __future__ import annotations

import argparse
import json
import time
from importlib import import_module
from pathlib import Path

from experiments.common import filled, foot

from gradcore._base.files import jsonable

NAMES = [path.stem for path in sorted((Path(__file__).parent / "experiments").glob("*.py"))]
EXPERIMENTS = [name for name in NAMES if name not in ("__init__", "common")]


def run(name: str, quick: bool, out: Path | None) -> None:
    """Measure, print the page, and write it with its figure."""
    experiment = import_module(f"experiments.{name}")
    start = time.perf_counter()
    results = experiment.measure(quick)
    minutes = (time.perf_counter() - start) / 60
    title, _, text = experiment.page(results).partition("\n")
    command = f"python bench/remedies.py {name}{' --quick' * quick}"
    page = f"{title}\n\n`{command}`, {foot(minutes)}.\n\n{filled(text)}\n"
    print(page)
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.md").write_text(page, encoding="utf-8")
    (out / f"{name}.json").write_text(json.dumps(jsonable(results), allow_nan=False) + "\n", encoding="utf-8")
    if hasattr(experiment, "figure"):
        experiment.figure(results, out / f"{name}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(EXPERIMENTS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="smaller experiments, whose numbers mean little")
    parser.add_argument("--out", type=Path, help="the folder to write pages and figures to")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(EXPERIMENTS):
        parser.error(f"NAME: expected some of {', '.join(EXPERIMENTS)}, got {', '.join(sorted(unknown))}")
    for name in arguments.names or EXPERIMENTS:
        run(name, arguments.quick, arguments.out)


if __name__ == "__main__":
    main()
