"""A configuration becomes a problem whose recipes run and print themselves."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gradcore
from gradcore.diagnosis.config import Config, configure, program, task_of
from gradcore.diagnosis.parts import ClipThresholds
from gradcore.diagnosis.recipe import Let, Name, Recipe, call
from gradcore.diagnosis.remedies import clipping, reconfigured, starts_and_cells
from gradcore.diagnosis.stages import train

THRESHOLDS = ClipThresholds(0.5, 0.25, "given", 1, (0.1, 0.5, 1.0), 1.0)


@pytest.mark.parametrize(
    ("source", "options"),
    [
        ("adding", {"cell": "lstm", "layers": 2, "init": "orthogonal", "gain": 0.9}),
        ("temporal-order", {"init": "eye", "optimizer": "adam", "lr": 0.001}),
        ("copy", {"cell": "gru", "seq_len": 12, "gain": 1.5}),
        ("sunspots", {"seq_len": 20, "optimizer": "rmsprop", "seed": 3}),
        ("table.csv", {"target": "b", "seq_len": 9}),
        ("table.csv", {"target": "b", "inputs": ("a", "b"), "seq_len": 9, "missing": "interpolate", "horizon": 2}),
        ("table.csv", {"na": ("4", "x"), "delimiter": ",", "decimal": ".", "encoding": "utf-8", "seq_len": 2}),
        ("groups.csv", {"time": "day", "group": "shop", "seq_len": 9}),
        ("text", {"seq_len": 9, "init": "normal", "optimizer": "adagrad"}),
        ("copy", {"cell": "lstm", "layers": 2, "seq_len": 5, "gate_bias": 2.5}),
        ("adding", {"cell": "gru", "init": "eye", "gain": 0.7, "seq_len": 9, "gate_bias": -1.0}),
    ],
)
def test_the_python_repeats_every_kind_of_trial(
    source: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("table.csv").write_text("a,b\n" + "".join(f"{i},{i * i % 17}\n" for i in range(80)), encoding="utf-8")
    groups = "".join(f"{i // 2},{'xy'[i % 2]},{i * i % 17}\n" for i in range(80))
    Path("groups.csv").write_text("day,shop,sold\n" + groups, encoding="utf-8")
    Path("text").write_text("to be or not to be that is the question", encoding="utf-8")
    config = configure(source, steps=6, hidden=5, batch=3, **options)
    task = task_of(config)
    problem = config.problem(task)
    starts, cells = starts_and_cells(config, task)
    for remedy in (None, *clipping(THRESHOLDS), *starts, *cells):
        trial = train(remedy.apply(problem) if remedy else problem, "trial", {}, seeds=[config.seed])
        names: dict[str, Any] = {}
        exec(trial.python, names)
        assert names["history"].loss.tolist() == trial.history.loss.tolist()
        assert len(trial.history) == 6


def test_recipes_start_from_the_same_place_each_time() -> None:
    problem = configure("adding", hidden=4).problem(gradcore.data.load("adding"))
    first, second = problem.model(), problem.model()
    assert first is not second
    assert (first.flat_params == second.flat_params).all()
    assert [x.sum() for x, _ in problem.data()] == [x.sum() for x, _ in problem.data()]


def test_a_remedy_keeps_the_clipping_and_leaves_the_problem_alone() -> None:
    config = configure("adding", hidden=4)
    task = task_of(config)
    problem = config.problem(task)
    clipped = clipping(THRESHOLDS)[0].apply(problem)
    assert (problem.max_norm, clipped.max_norm) == (None, THRESHOLDS.max_norm)
    both = reconfigured("gain 2", config, task, gain=2.0).apply(clipped)
    assert both.clipping == {"max_norm": THRESHOLDS.max_norm}
    assert not np.array_equal(both.model().flat_params, problem.model().flat_params)
    assert f"max_norm={THRESHOLDS.max_norm!r}" in program(both)


def test_a_gate_bias_is_that_of_the_gates_that_keep_the_state() -> None:
    config = configure("adding", cell="lstm", layers=2, hidden=3, gate_bias=2.0)
    layer = config.problem(task_of(config)).model().layers[0]
    for level in (0, 1):
        total = layer.params[f"bias_ih_l{level}"] + layer.params[f"bias_hh_l{level}"]
        np.testing.assert_array_equal(total[3:6], 2)
        assert (total != 2).sum() == 9
    with pytest.raises(ValueError, match="gate_bias: expected None, since rnn has no gates, got 2"):
        configure("adding", gate_bias=2.0)
    with pytest.raises(ValueError, match="gate_bias: expected a finite number, got inf"):
        configure("adding", cell="gru", gate_bias=math.inf)


def test_the_starts_are_what_they_are_called() -> None:
    def weight(**options: Any) -> Any:
        config = Config("adding", hidden=50, **options)
        return config.problem(task_of(config)).model().layers[0].params["weight_hh_l0"]

    plain = weight()
    assert np.abs(plain).max() <= 1 / math.sqrt(50)
    np.testing.assert_array_equal(weight(gain=2.0), 2 * plain)
    assert weight(init="normal", gain=3.0).std() == pytest.approx(3 / math.sqrt(50), rel=0.05)
    np.testing.assert_array_equal(weight(init="eye", gain=0.5), np.eye(50) / 2)
    orthogonal = weight(init="orthogonal", gain=2.0)
    np.testing.assert_allclose(orthogonal @ orthogonal.T, 4 * np.eye(50), atol=1e-5)


def test_a_recipe_prints_what_it_runs() -> None:
    steps = [Let("n", call("np.sqrt", 16.0)), Let("a", call("np.full", call("int", Name("n")), Name("value.real")))]
    recipe = Recipe(steps, "a", takes=["value", "int"])
    assert str(recipe) == "n = np.sqrt(16.0)\na = np.full(int(n), value.real)"
    np.testing.assert_array_equal(recipe(2.0, int), [2, 2, 2, 2])
    with pytest.raises(ValueError, match="shorter"):
        recipe(2.0)
