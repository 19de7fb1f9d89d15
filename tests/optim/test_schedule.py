"""Schedules against their formulas and PyTorch's, and what makes them safe to store: no state, repr, pickle."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gradcore
from gradcore import schedule
from gradcore.optim.schedule import (
    chain,
    constant,
    cosine,
    exponential,
    linear,
    multi_step,
    one_cycle,
    polynomial,
    step,
    warm_restarts,
)

STEPS = 200
SCHEDULES = [
    constant(0.3),
    constant(math.inf),
    linear(0.0, 0.1, 40),
    linear(0.2, 0.05, 1),
    cosine(0.1, 0.001, 77),
    cosine(0.0, 0.3, 12),
    step(0.8, 0.5, 30),
    exponential(0.8, 0.97),
    exponential(0.001, 1.1),
    polynomial(0.3, 0.1, 60, 2.5),
    polynomial(0.0, 0.2, 7),
    multi_step(0.8, 0.5, (3, 3, 70)),
    multi_step(0.8, 0.5, ()),
    warm_restarts(0.1, 0.001, 30),
    warm_restarts(0.1, 0.0, 7, 2),
    one_cycle(0.1, 100),
    one_cycle(0.1, 90, pct_start=0.5, div_factor=10.0, final_div_factor=100.0),
    chain(constant(1.0)),
    chain((linear(0.0, 0.1, 10), 10), (constant(0.1), 25), cosine(0.1, 0.0, 90)),
    chain((chain((constant(2.0), 2), constant(1.0)), 5), step(0.5, 0.5, 3)),
]
each_schedule = pytest.mark.parametrize("s", SCHEDULES, ids=repr)
values = st.floats(0.0, 1e6)


# ---- formulas --------------------------------------------------------------------------------------------------------


@given(values, values, st.integers(1, 1000), st.integers(0, 2000))
def test_linear_and_cosine_are_their_formulas(a: float, b: float, steps: int, t: int) -> None:
    share = min(t, steps) / steps
    tolerance = {"rel": 1e-12, "abs": 1e-15 * max(a, b)}
    assert linear(a, b, steps)(t) == pytest.approx(a + (b - a) * share, **tolerance)
    assert cosine(a, b, steps)(t) == pytest.approx(b + (a - b) * (1 + math.cos(math.pi * share)) / 2, **tolerance)


@pytest.mark.parametrize("steps", [10, 1000, 10**6])
def test_the_last_steps_of_a_cosine_keep_their_digits(steps: int) -> None:
    for left in range(1, 6):
        x = math.pi * left / steps / 2
        assert cosine(1.0, 0.0, steps)(steps - left) == pytest.approx(math.sin(x) ** 2, rel=1e-14)
        assert linear(1.0, 0.0, steps)(steps - left) == pytest.approx(left / steps, rel=1e-15)


@given(values, st.floats(0.0, 1.5), st.integers(1, 50), st.integers(0, 1000))
def test_step_and_exponential_are_their_formulas(value: float, factor: float, every: int, t: int) -> None:
    assert step(value, factor, every)(t) == pytest.approx(value * factor ** (t // every), rel=1e-15)
    assert exponential(value, factor)(t) == pytest.approx(value * factor**t, rel=1e-15)


@given(values, values, st.integers(1, 1000), st.floats(0.1, 5.0), st.integers(0, 2000))
def test_polynomial_is_its_formula(a: float, b: float, steps: int, power: float, t: int) -> None:
    want = b + (a - b) * (1 - min(t, steps) / steps) ** power
    assert polynomial(a, b, steps, power)(t) == pytest.approx(want, rel=1e-9, abs=1e-12 * max(a, b))


@given(st.lists(st.integers(0, 50), max_size=5), st.integers(0, 60))
def test_multi_step_counts_its_milestones(milestones: list[int], t: int) -> None:
    s = multi_step(0.8, 0.5, sorted(milestones))
    assert s(t) == 0.8 * 0.5 ** sum(m <= t for m in milestones)
    assert s == multi_step(0.8, 0.5, np.sort(milestones).astype(int))


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_each_restart_is_a_cosine_of_its_own(factor: int) -> None:
    s, t = warm_restarts(0.2, 0.05, 5, factor), 0
    for n in (5, 5 * factor, 5 * factor**2):
        assert [s(t + k) for k in range(n)] == [cosine(0.2, 0.05, n)(k) for k in range(n)]
        t += n
    assert 0.05 <= s(2**40 - 1) <= 0.2


def test_growth_ends_at_infinity() -> None:
    assert exponential(0.1, 2.0)(10_000) == math.inf
    assert step(0.1, 10.0, 2)(10_000) == math.inf
    assert exponential(0.0, 2.0)(10_000) == 0


def test_one_cycle_goes_up_and_far_down() -> None:
    s = one_cycle(1.0, 200)
    lrs = [s(t) for t in range(250)]
    assert lrs[0] == 1 / 25
    assert lrs[59] == 1
    assert np.diff(lrs[:60]).min() > 0
    assert np.diff(lrs[59:200]).max() < 0
    assert set(lrs[199:]) == {1 / 25 / 1e4}
    assert lrs[30] == pytest.approx(0.04 + 0.96 * (1 - math.cos(math.pi * 30 / 59)) / 2, rel=1e-14)


@pytest.mark.parametrize(
    ("steps", "pct_start", "want"),
    [
        (1, 0.3, [4e-6]),
        (1, 1.0, [1.0]),  # neither of the two ways has a length
        (2, 0.5, [1.0, 4e-6]),
        (2, 1.0, [0.04, 1.0, 1.0]),
        (3, 0.0, [(1 - 4e-6) * 0.75 + 4e-6, (1 - 4e-6) * 0.25 + 4e-6, 4e-6]),  # falls from the step before the first
    ],
)
def test_short_cycles(steps: int, pct_start: float, want: list[float]) -> None:
    assert [one_cycle(1.0, steps, pct_start)(t) for t in range(len(want))] == pytest.approx(want, rel=1e-14)


def test_a_chain_counts_every_stage_from_its_own_beginning() -> None:
    seen: list[tuple[str, int]] = []

    def recorder(name: str) -> Callable[[int], float]:
        return lambda t: seen.append((name, t)) or 1.0

    s = chain((recorder("a"), 2), (recorder("b"), 1), recorder("c"))
    for t in (0, 1, 2, 3, 4, 100):
        assert s(t) == 1
    assert seen == [("a", 0), ("a", 1), ("b", 0), ("c", 0), ("c", 1), ("c", 97)]


@pytest.mark.parametrize(
    ("s", "end", "value"),
    [
        (linear(0.3, 0.1, 7), 7, 0.1),
        (polynomial(0.3, 0.1, 7, 2.0), 7, 0.1),
        (multi_step(0.8, 0.5, (2, 7)), 7, 0.2),
        (cosine(0.3, 0.1, 7), 7, 0.1),
        (one_cycle(0.3, 7), 6, 0.3 / 25 / 1e4),
        (chain((constant(1.0), 3), linear(1.0, 0.7, 4)), 7, 0.7),
    ],
)
def test_after_its_end_a_schedule_stays_just_there(s: Any, end: int, value: float) -> None:
    assert s(end - 1) != value
    assert [s(t) for t in (end, end + 1, 10**9)] == [value] * 3


# ---- what they are as objects ----------------------------------------------------------------------------------------


@each_schedule
def test_repr_copies_and_pickles_are_the_schedule(s: Any) -> None:
    again = eval(repr(s), vars(schedule) | {"inf": math.inf})
    for other in (again, copy.copy(s), copy.deepcopy(s), pickle.loads(pickle.dumps(s))):
        assert other == s
        assert hash(other) == hash(s)
        assert [other(t) for t in range(STEPS)] == [s(t) for t in range(STEPS)]


def test_different_schedules_are_not_equal() -> None:
    assert len(set(SCHEDULES)) == len(SCHEDULES)
    assert linear(0.0, 0.1, 5) != cosine(0.0, 0.1, 5)
    assert linear(0, 1, 5) == linear(0.0, 1.0, np.int64(5))


@each_schedule
def test_they_hold_no_state(s: Any) -> None:
    order = np.random.default_rng(0).permutation(STEPS)
    forwards = [s(t) for t in range(STEPS)]
    shuffled = {int(t): s(t) for t in order}
    assert [shuffled[t] for t in range(STEPS)] == forwards
    assert all(type(value) is float and value >= 0 for value in forwards)
    name = "last" if isinstance(s, chain) else next(iter(vars(s)))
    with pytest.raises(AttributeError, match="cannot assign"):
        setattr(s, name, 5.0)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: constant(-1.0), ValueError, "value: expected a number at least 0, got -1"),
        (lambda: constant(math.nan), ValueError, "value: expected a number"),
        (lambda: constant("fast"), TypeError, "value: expected a number, got str"),
        (lambda: linear(-0.1, 1.0, 5), ValueError, "start: expected a number at least 0"),
        (lambda: linear(0.0, math.inf, 5), ValueError, "end: expected a finite number, got inf"),
        (lambda: linear(0.0, 1.0, 0), ValueError, "steps: expected an integer of at least 1, got 0"),
        (lambda: cosine(0.0, 1.0, 5.5), TypeError, "steps: expected an integer, got float"),
        (lambda: step(1.0, -0.5, 5), ValueError, "factor: expected a number at least 0"),
        (lambda: step(1.0, 0.5, 0), ValueError, "every: expected an integer of at least 1"),
        (lambda: exponential(math.inf, 0.5), ValueError, "value: expected a finite number"),
        (lambda: one_cycle(0.1, 10, pct_start=1.5), ValueError, "pct_start: expected a number at most 1"),
        (lambda: one_cycle(0.1, 10, div_factor=0.0), ValueError, "div_factor: expected a number above 0"),
        (lambda: one_cycle(0.1, 10, final_div_factor=0.0), ValueError, "final_div_factor: expected a number above 0"),
        (lambda: polynomial(0.1, 0.0, 5, 0.0), ValueError, "power: expected a number above 0"),
        (lambda: multi_step(0.1, 0.5, 5), TypeError, "milestones: expected an iterable of integers, got int"),
        (
            lambda: multi_step(0.1, 0.5, [3, 1]),
            ValueError,
            r"milestones: expected steps in ascending order, got \[3, 1\]",
        ),
        (lambda: multi_step(0.1, 0.5, [1.5]), TypeError, r"milestones\[0\]: expected an integer"),
        (lambda: warm_restarts(0.1, 0.0, 5, 0), ValueError, "factor: expected an integer of at least 1"),
        (lambda: warm_restarts(0.1, 0.0, 5, 1.5), TypeError, "factor: expected an integer"),
        (chain, TypeError, "chain: expected"),
        (lambda: chain(0.1), TypeError, "last: expected a schedule, got 0.1"),
        (lambda: chain((constant(1.0), 5)), TypeError, "last: expected a schedule"),
        (lambda: chain(constant(1.0), constant(2.0)), TypeError, r"stages\[0\]: expected a pair"),
        (lambda: chain((0.1, 5), constant(2.0)), TypeError, r"stages\[0\]: expected a pair"),
        (lambda: chain((constant(1.0), 0), constant(2.0)), ValueError, r"steps of stages\[0\]: expected an integer"),
    ],
)
def test_what_makes_no_schedule_is_refused(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


@each_schedule
@pytest.mark.parametrize(("t", "error"), [(-1, ValueError), (1.0, TypeError), (True, TypeError), (None, TypeError)])
def test_a_step_is_an_integer_of_at_least_0(s: Any, t: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="step: expected an integer"):
        s(t)


# ---- PyTorch ---------------------------------------------------------------------------------------------------------


def of_pytorch(name: str, lr: float, steps: int, **options: Any) -> list[float]:
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = getattr(torch.optim.lr_scheduler, name)(optimizer, **options)
    lrs = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for t in range(steps):
            lrs.append(optimizer.param_groups[0]["lr"])
            if t + 1 < steps:
                optimizer.step()
                scheduler.step()
    return lrs


@pytest.mark.peers
@pytest.mark.parametrize(
    ("s", "name", "lr", "steps", "options"),
    [
        (linear(0.1 / 3, 0.1, 5), "LinearLR", 0.1, 20, {}),
        (linear(0.05, 0.02, 150), "LinearLR", 0.1, 300, {"start_factor": 0.5, "end_factor": 0.2, "total_iters": 150}),
        (cosine(0.1, 0.01, 200), "CosineAnnealingLR", 0.1, 201, {"T_max": 200, "eta_min": 0.01}),
        (step(0.1, 0.1, 30), "StepLR", 0.1, 200, {"step_size": 30}),
        (step(0.1, 1.5, 7), "StepLR", 0.1, 200, {"step_size": 7, "gamma": 1.5}),
        (exponential(0.1, 0.97), "ExponentialLR", 0.1, 1000, {"gamma": 0.97}),
        (multi_step(0.1, 0.3, [30, 80, 80]), "MultiStepLR", 0.1, 200, {"milestones": [30, 80, 80], "gamma": 0.3}),
    ],
)
def test_they_are_pytorchs(s: Any, name: str, lr: float, steps: int, options: dict[str, Any]) -> None:
    want = of_pytorch(name, lr, steps, **options)
    assert [s(t) for t in range(steps)] == pytest.approx(want, rel=1e-12, abs=0)


@pytest.mark.peers
@pytest.mark.parametrize("power", [0.5, 1.0, 3.0])
def test_polynomial_is_pytorchs(power: float) -> None:
    want = of_pytorch("PolynomialLR", 0.1, 60, total_iters=50, power=power)
    s = polynomial(0.1, 0.0, 50, power)
    assert [s(t) for t in range(60)] == pytest.approx(want, rel=1e-12, abs=1e-17)


@pytest.mark.peers
@pytest.mark.parametrize("factor", [1, 2, 3])
def test_warm_restarts_are_pytorchs(factor: int) -> None:
    want = of_pytorch("CosineAnnealingWarmRestarts", 0.1, 200, T_0=7, T_mult=factor, eta_min=0.01)
    s = warm_restarts(0.1, 0.01, 7, factor)
    assert [s(t) for t in range(200)] == pytest.approx(want, rel=1e-12)


@pytest.mark.peers
@pytest.mark.parametrize("options", [{}, {"pct_start": 0.41, "div_factor": 10.0, "final_div_factor": 20.0}])
@pytest.mark.parametrize("steps", [2, 3, 7, 100, 1003])
def test_one_cycle_is_pytorchs(steps: int, options: dict[str, Any]) -> None:
    want = of_pytorch("OneCycleLR", 0.1, steps, max_lr=0.1, total_steps=steps, cycle_momentum=False, **options)
    s = one_cycle(0.1, steps, **options)
    # PyTorch adds 1 to a cosine near -1, and so has an absolute error of half an ulp of 1, times the peak.
    assert [s(t) for t in range(steps)] == pytest.approx(want, rel=1e-12, abs=2**-53 * 0.1)


def test_a_chain_of_warmup_and_decay_is_what_a_run_sees() -> None:
    p, g = np.zeros(1), np.ones(1)
    opt = gradcore.optim.SGD([(p, g)], lr=chain((linear(0.0, 0.5, 2), 2), step(0.5, 0.5, 1)))
    moves = []
    for _ in range(5):
        before = p[0]
        opt.step()
        moves.append(float(before - p[0]))
    assert moves == [0.0, 0.25, 0.5, 0.25, 0.125]
