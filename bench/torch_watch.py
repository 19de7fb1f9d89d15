"""What `gradcore.torch.watch` costs a training step: the same loop with and without it, in turns; needs PyTorch."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

import gradcore.torch

T, B, I, H = 100, 64, 256, 256


class Model(torch.nn.Module):
    """An LSTM and a head, on gradcore's kernels in either case."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = gradcore.torch.LSTM(I, H)
        self.head = torch.nn.Linear(H, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.lstm(x)[0][-1])
        return y


def loop(clip: Callable[[torch.nn.Module], object]) -> tuple[Model, torch.optim.Optimizer, Callable[[], float]]:
    """Return a model, its optimizer, and a function that makes a step and returns its seconds."""
    torch.manual_seed(0)
    model = Model()
    optimizer = torch.optim.Adam(model.parameters())
    x, target = torch.randn(T, B, I), torch.randn(B, 1)

    def step() -> float:
        start = time.perf_counter()
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(x), target).backward()
        clip(model)
        optimizer.step()
        return time.perf_counter() - start

    return model, optimizer, step


def main() -> None:
    """Print the medians of the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    rounds = parser.parse_args().rounds
    for name, clip, max_norm in (
        ("norms", lambda model: None, None),
        ("norms and clipping, beside torch's clipping", lambda model: torch.nn.utils.clip_grad_norm_(
            model.parameters(), 1.0), 1.0),
    ):  # fmt: skip
        _, _, plain = loop(clip)
        model, optimizer, watched = loop(lambda model: None)
        with gradcore.torch.watch(model, optimizer, max_norm=max_norm):
            for step in (plain, watched) * 3:
                step()
            pairs = [(plain(), watched()) if i % 2 else (watched(), plain())[::-1] for i in range(rounds)]
        ratio = statistics.median(b / a for a, b in pairs)
        a, b = (1e3 * statistics.median(times) for times in zip(*pairs, strict=True))
        print(f"{name}: {a:.1f} ms without, {b:.1f} ms with, ratio {ratio:.4f}")


if __name__ == "__main__":
    main()
