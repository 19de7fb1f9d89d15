"""How long Ctrl-C takes to be answered in the middle of long calls: from the signal to KeyboardInterrupt in the caller.

`python bench/interrupt.py [PART OF A NAME ...]`. The signal comes from another process. What changes its arguments in
place is finished first: Adam shows how long that can be.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import gradcore

SENDER = """
import os, sys, time
time.sleep(0.3)
print(repr(time.monotonic()), flush=True)
os.kill(int(sys.argv[1]), 2)
"""

Calls = Iterator[tuple[str, Callable[[], Any]]]


def recurrent(rng: np.random.Generator) -> Calls:
    for T, B, F, H, dtype in (
        (400, 64, 512, 1024, np.float32),
        (60_000, 1, 32, 128, np.float32),
        (16, 1024, 1024, 1024, np.float64),
        (40_000, 64, 1, 64, np.float32),
        (200_000, 3, 3, 30, np.float64),
        (3, 2, 4096, 4096, np.float32),
    ):
        for cell in (gradcore.RNN, gradcore.LSTM, gradcore.GRU):
            layer = cell(F, H, dtype=dtype, rng=rng)
            x = rng.standard_normal((T, B, F)).astype(dtype)
            lengths = rng.integers(1, T + 1, B)
            y, tape = layer.forward(x)
            name = f"{cell.__name__} ({T}, {B}, {F}, {H}) {np.dtype(dtype)}"
            yield f"{name} without a tape", lambda layer=layer, x=x: layer(x)
            yield f"{name} forward, ragged", lambda layer=layer, x=x, n=lengths: layer.forward(x, lengths=n)
            yield f"{name} backward", lambda layer=layer, tape=tape, y=y: layer.backward(tape, y)


def others(rng: np.random.Generator) -> Calls:
    linear, x = gradcore.Linear(4096, 4096, rng=rng), rng.standard_normal((8192, 4096), np.float32)
    y, tape = linear.forward(x)
    yield "Linear (8192, 4096, 4096) forward", lambda: linear.forward(x)
    yield "Linear (8192, 4096, 4096) backward", lambda: linear.backward(tape, y)
    lstm, series = gradcore.LSTM(16, 256, rng=rng), rng.standard_normal((1000, 8, 16), np.float32)
    yield "lyapunov_spectrum LSTM 256", lambda: gradcore.spectral.lyapunov_spectrum(lstm, series)
    g = rng.standard_normal(300_000_000, np.float32)
    yield "GELU of 3e8", lambda: gradcore.GELU()(g)
    yield "grad_norm of 3e8", lambda: gradcore.grad_norm([g])
    yield "clip_grad_norm_ of 3e8", lambda: gradcore.clip_grad_norm_([g], 1.0)
    adam = gradcore.optim.Adam([(np.zeros_like(g), g)])
    yield "Adam on 3e8", adam.step


def milliseconds(call: Callable[[], Any]) -> float:
    """From the signal to the answer of a call that is made again and again."""
    with subprocess.Popen(
        [sys.executable, "-c", SENDER, str(os.getpid())], stdout=subprocess.PIPE, text=True
    ) as sender:
        try:
            while True:
                call()
        except KeyboardInterrupt:
            answered = time.monotonic()
        assert sender.stdout is not None
        return 1000 * (answered - float(sender.stdout.readline()))


def main() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start background jobs with Ctrl-C ignored
    rng = np.random.default_rng(0)
    found = []
    for part in (recurrent, others):
        for name, call in part(rng):
            if all(word in name for word in sys.argv[1:]):
                found.append(milliseconds(call))
                print(f"{name:56} {found[-1]:6.0f} ms", flush=True)
    if found:
        print(f"{len(found)} calls: median {np.median(found):.0f} ms, at most {max(found):.0f}")


if __name__ == "__main__":
    main()
