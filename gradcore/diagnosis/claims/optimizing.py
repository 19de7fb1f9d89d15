"""Claims about clipping, number formats and optimizers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradcore._base.check import Array
from gradcore.clip.clip import clip_grad_norm_, clip_grad_value_
from gradcore.diagnosis.claims.claim import Claim
from gradcore.optim.adam import Adam

__all__: list[str] = []  # for the package only


def clipping() -> Iterator[Claim]:
    g = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    g[0] = 100
    cosines = {}
    for name, scale in (("cosine", 1.0), ("cosine, entries of 1e30", 1e30)):
        clipped = (scale * g).astype(np.float32)
        before = clipped.copy()
        clip_grad_norm_(clipped, max_norm=1.0)
        cosines[name] = _cosine(before, clipped)
    with np.errstate(over="ignore"):
        naive = float(np.square((1e30 * g).astype(np.float32)).sum())
    yield Claim(
        "Clipping by the norm keeps the gradient's direction.",
        bool(min(cosines.values()) > 1 - 1e-6),
        {**cosines, "sum of squares in float32": naive},
        "All entries are multiplied by one number, if the norm behind it has not overflowed.",
    )
    clipped = g.copy()
    clip_grad_value_(clipped, 0.1)
    cosine = _cosine(g, clipped)
    yield Claim(
        "Clipping by value keeps the gradient's direction.",
        bool(cosine > 1 - 1e-6),
        {"cosine": cosine},
        "Entries beyond the limit are cut, and the others are not.",
    )


def half_precision() -> Iterator[Claim]:
    small = 1e-8
    scale = 2.0**16
    lost, kept = float(np.float16(small)), float(np.float16(small * scale)) / scale
    with np.errstate(over="ignore"):
        overflow = float(np.float16(1.0 * scale))
    yield Claim(
        "Loss scaling brings back gradients that float16 loses.",
        lost == 0 and abs(kept / small - 1) < 1e-3,
        {"1e-8 in float16": lost, "times 2^16, in float16, divided": kept, "1 times 2^16 in float16": overflow},
        "float16 ends at 6e-8; the price is the other end, where the scale has to go down again.",
    )


def spikes() -> Iterator[Claim]:
    size, before = 1000.0, 1000
    weight, grad = np.zeros(1), np.ones(1)
    optimizer = Adam([(weight, grad)], lr=1.0)
    moved = []
    for step in range(2 * before):
        grad[0] = size if step == before else 1.0
        last = weight[0]
        optimizer.step()
        moved.append(abs(weight[0] - last))
    yield Claim(
        "A spike of the gradient by 1,000 moves Adam's weights by 1,000 times as much.",
        bool(moved[before] > size / 10),
        {
            "the step of the spike, in usual steps": moved[before] / moved[before - 1],
            "the largest one": max(moved) / moved[before - 1],
            "a step 100 later": moved[before + 100] / moved[before - 1],
        },
        "The spike enters its own divisor; afterwards that is what keeps steps small for a thousand updates.",
    )


def _cosine(a: Array, b: Array) -> float:
    # in float64 and of unit vectors, because the squares of float32 gradients need not be representable
    a, b = (v.astype(np.float64) / np.linalg.norm(v.astype(np.float64)) for v in (a, b))
    return float(a @ b)
