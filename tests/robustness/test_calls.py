"""Malformed calls over the whole public API: each is right or says what is wrong, and leaves everything as it was.

A recipe makes good arguments for one callable. The generator replaces one or two of the leaves of these arguments by
values from a list of makers, calls, and looks at the outcome, at every array that was reachable before, and at the
numbers of references. Everything follows from the seed."""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import LONG
from recipes import (
    CELLS,
    INITS,
    RECIPES,
    SEED,
    TASKS,
    B,
    H,
    I,
    T,
    bits,
    empty_huge,
    files,
    generated,
    huge,
    invoke,
    little_memory,
    new_folder,
    released,
    run,
    seeded,
    short_history,
    sliding,
    taped,
    zero_stride,
)
from tools import Array

import gradcore
from gradcore import claims, data, init, losses, meanfield, monitor, optim, spectral
from gradcore.diagnosis import figures

pytestmark = pytest.mark.kernels
CALLS = 10_000 if LONG else 1_500


@pytest.fixture(autouse=True)
def in_a_folder() -> Iterator[None]:
    with new_folder():
        yield


def test_every_recipe_is_good() -> None:
    for recipe in RECIPES:
        call, given = recipe.make(np.random.default_rng(0))
        invoke(call, given, recipe.by_position)


def test_malformed_calls_are_right_or_say_what_is_wrong() -> None:
    rng, found, outcomes = np.random.default_rng(SEED), [], collections.Counter()
    with little_memory():
        for _ in range(CALLS):
            case = generated(rng)
            outcome = run(case)
            outcomes[outcome.kind] += 1
            found += [f"{case}: {what}" for what in outcome.wrong]
    assert not found, "\n".join(found)
    assert outcomes["TypeError"] > CALLS / 3, outcomes
    assert outcomes["result"] > CALLS / 20, outcomes


HUGE = 2**40 - 1  # the largest size that is let through
TOO_LARGE: dict[str, Callable[[], Any]] = {
    **{f"{cell}, both sizes": lambda build=build: build(HUGE, HUGE) for cell, build in CELLS.items()},
    **{f"{cell}, hidden": lambda build=build: build(1, HUGE) for cell, build in CELLS.items()},
    **{f"{cell}, layers": lambda build=build: build(1, 1, HUGE) for cell, build in CELLS.items()},
    **{
        f"{cell}, all": lambda build=build: build(HUGE, HUGE, HUGE, bidirectional=True) for cell, build in CELLS.items()
    },
    "2**31 units": lambda: gradcore.LSTM(1, 2**31),
    "wraps around to few": lambda: gradcore.Linear(2**32, 2**32),
    "Linear": lambda: gradcore.Linear(HUGE, HUGE, dtype=np.float64),
    "LayerNorm": lambda: gradcore.LayerNorm((HUGE, HUGE)),
    "BatchNorm": lambda: gradcore.BatchNorm(HUGE),
    "the statistics of LayerNorm": lambda: gradcore.LayerNorm(0)(empty_huge(np.zeros((1, 1), np.float32), 2**60)),
    "MLP": lambda: gradcore.MLP([HUGE, HUGE, 1]),
    "the output of Linear": lambda: gradcore.Linear(0, 5)(empty_huge(np.zeros((1, 1), np.float32), 2**60)),
    "steps without samples": lambda: gradcore.RNN(3, 5)(huge(np.zeros((1, 0, 3), np.float32), 2**58)),
    "samples without steps": lambda: gradcore.GRU(3, 5).forward(
        np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), (0, 2**58, 3), (0, 0, 0))
    ),
    "LastStep": lambda: gradcore.LastStep()(
        np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), (0, 2**59, 3), (0, 0, 0))
    ),
    "MultiheadAttention": lambda: gradcore.MultiheadAttention(HUGE, 1),
    "MultiheadAttention, sequences without steps": lambda: gradcore.MultiheadAttention(2, 1)(
        np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), (0, 2**58, 2), (0, 0, 0))
    ),
    "float64 of y": lambda: losses.mse(*[empty_huge(np.zeros((1, 1), np.float32), 2**60)] * 2),
    "a copy of x": lambda: gradcore.Tanh()(huge(np.zeros(1, np.float32), 2**60)),
    "float64 of W": lambda: spectral.spectral_norm(huge(np.zeros((1, 2), np.float32), 2**59)),
}


@pytest.mark.parametrize("name", TOO_LARGE)
def test_too_large_for_memory(name: str) -> None:
    with little_memory(), pytest.raises(MemoryError):
        TOO_LARGE[name]()


# ---- defects that the generator has found, by name -------------------------------------------------------------------


@pytest.mark.parametrize("bad", ["0.1", b"0.1", bytearray(b"1"), memoryview(b"1"), np.array("1"), 1j, np.complex64(1)])
def test_text_and_complex_numbers_are_no_numbers(bad: Any) -> None:
    with pytest.raises(TypeError, match="max_norm: expected a number"):
        gradcore.clip_grad_norm_(np.ones(3), bad)


@pytest.mark.parametrize("bad", [True, np.True_, np.array(False)], ids=repr)
def test_bools_are_no_numbers(bad: Any) -> None:
    taken, n = [], 0
    for recipe in RECIPES:
        if recipe.name == "save_checkpoint":  # which stores bools as they are
            continue
        for name, good in recipe.make(np.random.default_rng(0))[1].items():
            if type(good) not in (int, float):
                continue
            n += 1
            call, given = recipe.make(np.random.default_rng(0))
            try:
                invoke(call, given | {name: bad}, recipe.by_position)
            except TypeError as error:
                taken += [f"{recipe.name}: {name}: {error}"] * ("expected" not in str(error))
            else:
                taken.append(f"{recipe.name}: {name}")
    assert n > 100
    assert not taken


@pytest.mark.parametrize("bad", [np.ma.masked, np.array([1.0]), np.ma.masked_array(1.0)])
def test_arrays_of_one_and_masked_are_no_numbers(bad: Any) -> None:
    with pytest.raises(TypeError, match="lr: expected a number"):
        optim.SGD([(np.ones(3), np.ones(3))], lr=bad)


def test_integers_beyond_a_double() -> None:
    with pytest.raises(ValueError, match="clip_value: expected a number in the range of a double"):
        gradcore.clip_grad_value_(np.ones(3), 10**400)


@pytest.mark.parametrize("bad", [None, "no", np.zeros(3), [], 0.5])
def test_switches_are_no_other_things(bad: Any) -> None:
    with pytest.raises(TypeError, match="bias: expected True or False"):
        gradcore.LSTM(2, 3, bias=bad)
    with pytest.raises(TypeError, match="amsgrad: expected True or False"):
        optim.Adam([(np.ones(3), np.ones(3))], amsgrad=bad)


@pytest.mark.parametrize("bad", [[], {}, np.array(["raise", "skip"]), np.ma.masked_array([1.0], [True])])
def test_names_that_cannot_be_compared(bad: Any) -> None:
    with pytest.raises(ValueError, match="nonfinite: expected 'raise' or 'skip' or 'zero'"):
        gradcore.clip_grad_norm_(np.ones(3), 1.0, nonfinite=bad)
    with pytest.raises(ValueError, match="nonlinearity: expected 'tanh' or 'relu'"):
        gradcore.RNN(2, 3, nonlinearity=bad)
    with pytest.raises(ValueError, match="activation: expected one of"):
        gradcore.MLP([2, 3], bad)


def test_a_set_or_dict_is_no_threshold() -> None:
    for bad in ({1.0}, {"a": 1.0}):
        with pytest.raises((TypeError, ValueError), match="max_norm: "):
            optim.SGD([(np.ones(3), np.ones(3))]).step(bad)


def test_a_released_buffer() -> None:
    with pytest.raises(TypeError, match=r"grads: expected|grads\[0\]: expected an array"):
        gradcore.grad_norm(released())


@pytest.mark.parametrize("make", [zero_stride, sliding])
def test_a_target_whose_entries_share_memory(make: Callable[[Array], Array]) -> None:
    a = make(np.ones((3, 4)))
    before = bits(a)
    for call in (
        lambda: gradcore.clip_grad_norm_(a, 0.1),
        lambda: gradcore.clip_grad_value_([a], 0.1),
        lambda: optim.SGD({"w": (a, np.ones((3, 4)))}),
        lambda: init.normal_(a),
    ):
        with pytest.raises(ValueError, match="elements of their own memory"):
            call()
    assert bits(a) == before


def test_targets_that_step_into_each_other_without_meeting() -> None:
    raw = np.ones(20)
    a = np.lib.stride_tricks.as_strided(raw, (3, 2), (16, 24))  # 0, 3, 2, 5, 4, 7
    gradcore.clip_grad_value_(a, 0.5)
    assert np.flatnonzero(raw == 0.5).tolist() == [0, 2, 3, 4, 5, 7]


def test_a_bad_step_clip_leaves_all_gradients_alone() -> None:
    rng = seeded()
    made = gradcore.Sequential(gradcore.LSTM(I, H, rng=rng), gradcore.Tanh(), gradcore.Linear(H, 1, rng=rng))
    y, tape = made.forward(np.ones((T, B, I), np.float32))
    with pytest.raises(ValueError, match="step_clip"):
        made.backward(tape, np.ones_like(y), step_clip=-1.0)
    assert not made.flat_grads.any()


def test_a_failing_append_leaves_the_history_whole() -> None:
    history = gradcore.History()
    with pytest.raises(TypeError, match="max_norm: expected a number"):
        history.append(1.0, 2.0, max_norm=[])
    with pytest.raises(TypeError, match="epoch: expected an integer"):
        history.append(1.0, 2.0, epoch=1.5)
    assert len(history) == len(history.epoch) == len(history.loss) == 0


@pytest.mark.parametrize("name", INITS)
def test_initializers_stay_in_the_range_of_the_dtype(name: str) -> None:
    for argument, value in INITS[name].items():
        if not isinstance(value, float) or (name.startswith("kaiming") and argument == "a") or argument == "sparsity":
            continue
        a = np.zeros((3, 4), np.float32)
        with pytest.raises(ValueError, match=r"\b(a|b|mean|std|val|gain)\b.*: expected"):
            getattr(init, name)(a, **{**INITS[name], argument: 1e300})
        assert not a.any()


def test_adagrad_starts_in_the_range_of_the_dtype() -> None:
    w = np.ones(3, np.float32)
    with pytest.raises(ValueError, match="initial_accumulator_value: expected a number in the range of float32"):
        optim.Adagrad([(w, w.copy())], initial_accumulator_value=1e300)


def test_xavier_uniform_takes_the_gain_of_either_sign() -> None:
    a, b = (init.xavier_uniform_(np.zeros((3, 4)), gain, rng=seeded()) for gain in (2.0, -2.0))
    assert (a == b).all()


def test_names_of_a_state_that_are_no_text() -> None:
    layer = gradcore.Linear(2, 2)
    with pytest.raises(KeyError, match="state_dict: missing"):
        layer.load_state_dict({3: 1, None: 2, "x": 3})


def test_indices_that_are_no_integers() -> None:
    layer, tape = taped(seeded())
    for bad in (None, "1", 1.0, np.ones(3)):
        with pytest.raises(TypeError, match="t: expected an integer"):
            spectral.jacobian(layer, tape, bad)
        with pytest.raises(TypeError, match="index: expected an integer"):
            tape.record(bad, 0, 0)


def test_masked_entries_of_a_list() -> None:
    with pytest.raises(TypeError, match=r"lengths\[0\]: masked"):
        gradcore.RNN(2, 3)(np.ones((4, 2, 2), np.float32), lengths=[np.ma.masked, 2])


def test_exponents_whose_sum_is_no_number() -> None:
    assert spectral.entropy([1e308, 1e308]) == np.inf
    assert spectral.kaplan_yorke([1e308, 1e308, -1e308]) == 3.0
    assert spectral.kaplan_yorke([1e308, 0.0, -1.5e308]) == pytest.approx(2 + 1 / 1.5)


def test_a_forecast_for_no_steps() -> None:
    layer = gradcore.RNN(2, 3)
    for call in (meanfield.forecast, meanfield.suggest_gain):
        with pytest.raises(ValueError, match="x: expected at least 1 sample and 2 steps"):
            call(layer, np.zeros((0, 3, 2), np.float32))


def test_fit_checks_its_arguments_first() -> None:
    layer = gradcore.Linear(2, 1)
    good = {"model": layer, "batches": [], "loss": losses.mse, "optimizer": optim.SGD(layer), "epochs": 1}
    for name in ("model", "batches", "loss", "optimizer", "monitor", "callbacks", "progress"):
        with pytest.raises(TypeError, match=f"{name}: expected"):
            gradcore.fit(**{**good, name: 3.5})
    with pytest.raises(ValueError, match="nonfinite: expected"):
        gradcore.fit(**good, nonfinite="unknown")


def test_a_number_is_no_file_and_stays_open() -> None:
    short_history().to_json("run.json")
    with open("run.json", "rb") as file:
        for bad in (file.fileno(), np.int64(file.fileno()), True, b"run.json", None, ["run.json"]):
            with pytest.raises(TypeError, match=f"^source: expected a path, got {type(bad).__name__}$"):
                gradcore.History.from_json(bad)
            with pytest.raises(TypeError, match="path: expected a path"):
                gradcore.load_checkpoint(bad)
        assert file.read(1) == b"{"


@pytest.mark.parametrize("bad", ["a\0b", "\ud800", Path("a\0b")])
def test_names_that_no_file_can_have(bad: Any) -> None:
    for call in (
        lambda: gradcore.save_checkpoint(bad, step=1),
        lambda: gradcore.load_checkpoint(bad),
        lambda: short_history().to_json(bad),
        lambda: gradcore.History.from_json(bad),
    ):
        with pytest.raises(ValueError, match=r"^(path|source): expected a path, got '.*', which cannot be"):
            call()
    assert not files()


def test_a_history_in_another_encoding_names_the_file() -> None:
    Path("run.json").write_bytes(b'{"caf\xe9": 1}')
    with pytest.raises(ValueError, match=r"^run\.json: not a gradcore history"):
        gradcore.History.from_json("run.json")


def test_a_table_of_things_that_are_no_claims() -> None:
    with pytest.raises(TypeError, match="claims: expected an iterable of Claim, got int"):
        claims.as_markdown(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^claims\[0\]: expected a Claim, got str"):
        claims.as_markdown(["said"])  # type: ignore[list-item]


@pytest.mark.parametrize("name", TASKS)
def test_tasks_draw_from_generators_and_seeds_only(name: str) -> None:
    with pytest.raises(TypeError, match=r"^rng: expected an integer, a numpy\.random\.Generator or None, got str"):
        getattr(data, name)("7", **TASKS[name])


def test_a_target_is_a_name_or_a_number() -> None:
    Path("data.csv").write_text("1,2\n2,1\n" * 30, encoding="utf-8")
    for bad in (1.5, True, [0], np.ones(1)):
        with pytest.raises(TypeError, match="target: expected an integer"):
            data.load("data.csv", 9, target=bad)


def test_figures_of_what_does_not_fit() -> None:
    for call, message in (
        (lambda: figures.plot_time_steps(np.ones((2, 3)), title="t", names=["a"]), "^names: expected 2"),
        (lambda: figures.plot_time_steps(np.ones((2, 3)), np.ones(4), title="t"), "^forecast: expected the shape"),
        (lambda: figures.plot_time_steps(np.ones((2, 2, 3)), title="t"), "^norms: expected shape"),
        (lambda: figures.plot_training({"a": np.ones((2, 2))}, title="t"), r"^norms\['a'\]: expected shape"),
        (lambda: figures.plot_trials({"a": np.ones(9)}, title="t", window=0), "^window: expected"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_figures_of_nothing_and_of_the_largest_numbers() -> None:
    most = np.full(3, np.finfo(np.float64).max)
    for draw in (figures.plot_training, figures.plot_eigenvalues, figures.plot_spectrum, figures.plot_trials):
        with pytest.raises(ValueError, match="expected at least one name"):
            draw({}, title="t")
        draw({"a": most}, title="t").canvas.draw()
    figures.plot_time_steps(most, most, title="t").canvas.draw()
    figures.plot_trials({"a": np.ones(9)}, title="t", window=2**39)


def test_nobody_remembers_for_ever() -> None:
    for bias in (np.zeros(8), gradcore.GRU(2, 3)):
        with pytest.raises(ValueError, match="T_max: expected a finite number, got inf"):
            init.chrono_(bias, math.inf)
    assert np.isfinite(init.chrono_(np.zeros(8), 1e308)).all()


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint8])
def test_outputs_that_are_no_floats(dtype: Any) -> None:
    watch = monitor.GradientMonitor(monitor.Thresholds(check_outputs_every=1))
    for step in range(4):
        found = watch.update(step, 1.0, 1.0, y=np.array([[0, 1], [1, 0], [100, -100]]).astype(dtype))
    assert [finding.kind for finding in watch.findings] == ["frozen_outputs"]
    assert not found
