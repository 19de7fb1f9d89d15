"""One step of every optimizer, and clipping with Adam, in float32, beside PyTorch where it is installed.

Run with ``pytest bench/bench_optim.py``; ``-k "not 64M"`` leaves out the arrays of 256 MB. Each case is verified before
it is timed: three steps against the NumPy twin, on the first array.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from figures import note

import gradcore
from gradcore import optim, reference

Array = np.ndarray[Any, Any]

LISTS: dict[str, tuple[int, tuple[int, ...]]] = {  # how many arrays, of which shape
    "200 of 64x64": (200, (64, 64)),
    "1 of 1M": (1, (1 << 20,)),
    "1 of 64M": (1, (1 << 26,)),
}
RULES: dict[str, tuple[str, Any, dict[str, Any], int]] = {  # class, twin, options, passes over memory beside the norm
    "SGD": ("SGD", reference.sgd, {}, 3),
    "SGD, momentum": ("SGD", reference.sgd, {"momentum": 0.9}, 5),
    "Adam": ("Adam", reference.adam, {}, 7),
    "AdamW": ("AdamW", reference.adamw, {}, 7),
    "RMSprop": ("RMSprop", reference.rmsprop, {}, 5),
    "Adagrad": ("Adagrad", reference.adagrad, {}, 5),
    "NAdam": ("NAdam", reference.nadam, {}, 7),
    "RAdam": ("RAdam", reference.radam, {}, 7),
    "Lion": ("Lion", reference.lion, {}, 5),
    "SPAM": ("SPAM", reference.spam, {}, 7),
}


def make(which: str) -> list[tuple[Array, Array]]:
    count, shape = LISTS[which]
    rng = np.random.default_rng(0)
    return [(rng.standard_normal(shape, np.float32), rng.standard_normal(shape, np.float32)) for _ in range(count)]


class OfGradcore:
    def __init__(self, pairs: list[tuple[Array, Array]], rule: str, options: dict[str, Any]) -> None:
        self.optimizer = getattr(optim, rule)(pairs, **options)

    def step(self, max_norm: float | None) -> None:
        self.optimizer.step(max_norm)


class OfTorch:
    """PyTorch, with its fused update where it has one."""

    fused = True

    def __init__(self, pairs: list[tuple[Array, Array]], rule: str, options: dict[str, Any]) -> None:
        self.torch = pytest.importorskip("torch")
        if not hasattr(self.torch.optim, rule):
            pytest.skip(f"PyTorch has no {rule}")
        self.torch.set_num_threads(gradcore.get_num_threads())
        self.parameters = [self.torch.nn.Parameter(self.torch.from_numpy(p)) for p, _ in pairs]
        for parameter, (_, grad) in zip(self.parameters, pairs, strict=True):
            parameter.grad = self.torch.from_numpy(grad)
        how = {"fused": True} if self.fused and rule not in ("RMSprop", "NAdam", "RAdam") else {}
        self.optimizer = getattr(self.torch.optim, rule)(self.parameters, **options, **how)

    def step(self, max_norm: float | None) -> None:
        if max_norm is not None:
            self.torch.nn.utils.clip_grad_norm_(self.parameters, max_norm)
        self.optimizer.step()


class OfTorchByDefault(OfTorch):
    fused = False


def verify(run: Any, rule: str, pairs: list[tuple[Array, Array]]) -> None:
    _, twin, options, _ = RULES[rule]
    part = slice(0, 1000)
    param, grad = (a.ravel()[part].astype(np.float64) for a in pairs[0])
    state: dict[str, Array] = {}
    for t in (1, 2, 3):
        run.step(None)
        twin(param, grad, state, t, **options)
    np.testing.assert_allclose(pairs[0][0].ravel()[part], param, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("which", LISTS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("system", [OfGradcore, OfTorch])
def test_step(benchmark: Any, system: Any, rule: str, which: str) -> None:
    benchmark.group = f"{rule}, {which}"
    name, _, options, passes = RULES[rule]
    pairs = make(which)
    run = system(pairs, name, options)
    verify(run, rule, pairs)
    benchmark.pedantic(run.step, args=(None,), rounds=20, warmup_rounds=2)
    moved = (passes + (system is OfGradcore)) * sum(p.nbytes for p, _ in pairs)
    note(benchmark, "GB/s", moved)


@pytest.mark.parametrize("which", LISTS)
@pytest.mark.parametrize("system", [OfGradcore, OfTorch, OfTorchByDefault])
def test_clip_and_adam(benchmark: Any, system: Any, which: str) -> None:
    benchmark.group = f"clip + Adam, {which}"
    pairs = make(which)
    run = system(pairs, "Adam", {})
    verify(run, "Adam", pairs)
    benchmark.pedantic(run.step, args=(1.0,), rounds=20, warmup_rounds=2)
    note(benchmark, "parameters/ns", sum(p.size for p, _ in pairs))
