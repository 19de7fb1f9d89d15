"""The norm of gradients, and clipping that fires and that does not, in float32, beside PyTorch where it is installed.

Run with ``pytest bench/bench_norm.py``; ``-k "not 64M"`` leaves out the arrays of 256 MB. Each case is verified before
it is timed: the norm against float64 sums of NumPy, the clipped gradients against their definition.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from figures import note

import gradcore

Array = np.ndarray[Any, Any]

LISTS: dict[str, tuple[int, tuple[int, ...]]] = {  # how many arrays, of which shape
    "1 of 1,000": (1, (1000,)),
    "200 of 64x64": (200, (64, 64)),
    "1 of 1M": (1, (1 << 20,)),
    "1 of 64M": (1, (1 << 26,)),
}


def make(which: str) -> list[Array]:
    count, shape = LISTS[which]
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape, np.float32) for _ in range(count)]


def plain_norm(arrays: list[Array]) -> float:
    chunks = (c.astype(np.float64) for a in arrays for c in np.array_split(a.ravel(), a.size // (1 << 20) + 1))
    return float(np.sqrt(sum(np.dot(c, c) for c in chunks)))


class OfGradcore:
    accuracy = 1e-13

    def __init__(self, arrays: list[Array]) -> None:
        self.arrays = arrays

    def norm(self) -> float:
        return gradcore.grad_norm(self.arrays)

    def clip(self, max_norm: float) -> float:
        return gradcore.clip_grad_norm_(self.arrays, max_norm)


class OfTorch:
    accuracy = 0.02  # its float32 sums lose half a percent of 64M entries

    def __init__(self, arrays: list[Array]) -> None:
        self.torch = pytest.importorskip("torch")
        self.torch.set_num_threads(gradcore.get_num_threads())
        self.grads = [self.torch.from_numpy(a) for a in arrays]
        self.parameters = [self.torch.nn.Parameter(self.torch.empty(a.shape)) for a in arrays]
        for parameter, grad in zip(self.parameters, self.grads, strict=True):
            parameter.grad = grad

    def norm(self) -> float:
        return float(self.torch.nn.utils.get_total_norm(self.grads))

    def clip(self, max_norm: float) -> float:
        return float(self.torch.nn.utils.clip_grad_norm_(self.parameters, max_norm))


each_list = pytest.mark.parametrize("which", LISTS)
each_system = pytest.mark.parametrize("system", [OfGradcore, OfTorch])


def clip_that_fires(run: Any, arrays: list[Array]) -> Callable[[], None]:
    """Clips to a little less with each call, of gradients so large that PyTorch's epsilon stays out of it."""
    for a in arrays:
        np.multiply(a, np.float32(2.0**40), out=a)
    limit = plain_norm(arrays)

    def clip() -> None:
        nonlocal limit
        limit *= 0.999  # below what the last call left
        run.clip(limit)

    clip()
    assert plain_norm(arrays) == pytest.approx(limit, rel=max(run.accuracy, 1e-7))
    return clip


def clip_that_does_not_fire(run: Any, arrays: list[Array]) -> Callable[[], None]:
    limit, before = 2 * plain_norm(arrays), [a.copy() for a in arrays]
    run.clip(limit)
    assert all(np.array_equal(a, b) for a, b in zip(arrays, before, strict=True))
    return lambda: run.clip(limit)


def note_traffic(benchmark: Any, arrays: list[Array], passes: int) -> None:
    note(benchmark, "GB/s", passes * sum(a.nbytes for a in arrays))


@each_list
@each_system
def test_norm(benchmark: Any, system: Any, which: str) -> None:
    benchmark.group = f"norm, {which}"
    arrays = make(which)
    run = system(arrays)
    assert run.norm() == pytest.approx(plain_norm(arrays), rel=system.accuracy)
    benchmark(run.norm)
    note_traffic(benchmark, arrays, passes=1)


@each_list
def test_plain_sum(benchmark: Any, which: str) -> None:
    """NumPy's sum on one thread, for scale."""
    benchmark.group = f"norm, {which}"
    arrays = make(which)
    assert np.isfinite(sum(a.sum() for a in arrays))
    benchmark(lambda: [a.sum() for a in arrays])
    note_traffic(benchmark, arrays, passes=1)


@each_list
@each_system
def test_clip_that_does_not_fire(benchmark: Any, system: Any, which: str) -> None:
    benchmark.group = f"clip that does not fire, {which}"
    arrays = make(which)
    benchmark(clip_that_does_not_fire(system(arrays), arrays))
    note_traffic(benchmark, arrays, passes=1)


@each_list
@each_system
def test_clip_that_fires(benchmark: Any, system: Any, which: str) -> None:
    benchmark.group = f"clip that fires, {which}"
    arrays = make(which)
    benchmark.pedantic(clip_that_fires(system(arrays), arrays), rounds=30, warmup_rounds=2)
    note_traffic(benchmark, arrays, passes=3)
