"""Training steps of gradcore.torch's layers beside torch.nn's and the bare kernels, in turns.

`python bench/torch_layers.py` first verifies every step: forward, and backward with respect to the parameters and x. It
prints medians over the rounds, of milliseconds and of ratios between neighbors in time: how often a layer of
gradcore.torch runs while torch.nn's, or the kernels alone, run once.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import gradcore
import gradcore.torch

SHAPES = {  # T, B, I, H
    "step": (1, 1, 8, 16),
    "tiny": (20, 1, 8, 16),
    "small": (50, 32, 8, 64),
    "middle": (100, 32, 64, 128),
    "large": (100, 64, 256, 256),
    "ragged": (100, 32, 64, 128),
}
CELLS = ["LSTM", "GRU", "RNN"]
SLICE = 0.02  # seconds that one turn takes at least
TOLERANCE = 2e-4  # of the largest value: float32


def steps(cell: str, shape: str) -> dict[str, Callable[[], list[Any]]]:
    """What is timed; each returns the outputs and the gradients."""
    T, B, I, H = SHAPES[shape]
    rng = np.random.default_rng(0)
    lengths = rng.integers(T // 5, T + 1, B) if shape == "ragged" else None
    theirs = getattr(torch.nn, cell)(I, H)
    ours = getattr(gradcore.torch, cell)(I, H)
    kernels = getattr(gradcore, cell)(I, H)
    ours.load_state_dict(theirs.state_dict())
    kernels.load_state_dict({name: p.detach().numpy() for name, p in theirs.named_parameters()})
    x, dy = (rng.standard_normal((T, B, size)).astype(np.float32) for size in (I, H))

    def of_torch(layer: Any) -> Callable[[], list[Any]]:
        entering = torch.from_numpy(x)
        d = torch.from_numpy(dy)
        order, sizes = None, None
        if lengths is not None:
            packed = torch.nn.utils.rnn.pack_padded_sequence(entering, torch.from_numpy(lengths), enforce_sorted=False)
            entering, sizes, order, inverse = packed
            d = torch.nn.utils.rnn.pack_padded_sequence(d, torch.from_numpy(lengths), enforce_sorted=False).data
        entering.requires_grad_()
        given: Any = entering if sizes is None else torch.nn.utils.rnn.PackedSequence(entering, sizes, order, inverse)

        def step() -> list[Any]:
            layer.zero_grad()
            entering.grad = None
            y, _ = layer(given)
            y = y if lengths is None else y.data
            y.backward(d)
            return [y.detach(), *(p.grad for p in layer.parameters()), entering.grad]

        return step

    def bare() -> list[Any]:
        kernels.zero_grad()
        y, tape = kernels.forward(x, lengths=lengths)
        dx = kernels.backward(tape, dy)
        return [y, *kernels.grads.values(), dx]

    return {"torch.nn": of_torch(theirs), "gradcore.torch": of_torch(ours), "kernels": bare}


def verify(runs: dict[str, Callable[[], list[Any]]], ragged: bool) -> None:
    """Raise unless all agree. Of ragged batches, rows lie in another order in the bare kernels."""
    want = [np.asarray(part) for part in runs["torch.nn"]()]
    for name, run in runs.items():
        for got, part in zip(map(np.asarray, run()), want, strict=True):
            if ragged and name == "kernels" and got.shape != part.shape:
                continue
            error = np.abs(got - part).max() / max(np.abs(part).max(), 1.0)
            if not error < TOLERANCE:
                raise RuntimeError(f"{name}: differs from torch.nn by {error:.1e}")


def interleave(runs: dict[str, Callable[[], list[Any]]], rounds: int) -> dict[str, list[float]]:
    """Seconds per call of each, round by round; the order changes from round to round."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for k in range(rounds):
        names = list(runs)[k % len(runs) :] + list(runs)[: k % len(runs)]
        for name in names:
            run, n, start = runs[name], 0, time.perf_counter()
            while (passed := time.perf_counter() - start) < SLICE or n == 0:
                run()
                n += 1
            seconds[name].append(passed / n)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, nargs="*", default=list(SHAPES))
    parser.add_argument("--cell", choices=CELLS, nargs="*", default=CELLS)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    gradcore.set_num_threads(options.threads)
    rows = []
    print(f"{'':8}{'':6}{'torch.nn':>10}{'gradcore.torch':>16}{'kernels':>10}{'x torch.nn':>12}{'x kernels':>11}")
    for shape in options.shape:
        for cell in options.cell:
            runs = steps(cell, shape)
            verify(runs, shape == "ragged")
            times = interleave(runs, options.rounds)
            ms = {name: 1e3 * statistics.median(each) for name, each in times.items()}
            over = {
                name: statistics.median(a / b for a, b in zip(times[name], times["gradcore.torch"], strict=True))
                for name in ("torch.nn", "kernels")
            }
            rows.append({"shape": shape, "cell": cell, "ms": ms, "over": over})
            print(
                f"{shape:8}{cell:6}{ms['torch.nn']:10.3f}{ms['gradcore.torch']:16.3f}{ms['kernels']:10.3f}"
                f"{over['torch.nn']:12.2f}{over['kernels']:11.2f}",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
