"""A whole study: the parts agree with each other, with the package's functions, and with the document's schema."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gradcore
from gradcore import meanfield, spectral
from gradcore.diagnosis import Config, Study, configure, study
from gradcore.diagnosis.config import task_of
from gradcore.diagnosis.parts import Spectrum
from gradcore.diagnosis.pipeline import SAMPLES
from gradcore.diagnosis.stages import FEW, measure
from gradcore.diagnosis.suggest import suggest

SCHEMA = Path(__file__).parents[2] / "docs" / "diagnosis-json.md"


@pytest.fixture(scope="module", params=["rnn", "lstm", "gru"])
def stack(request: pytest.FixtureRequest) -> Study:
    """Two layers of every cell."""
    options = {"hidden": 12, "layers": 2, "gain": 3.0, "seq_len": 40, "steps": 6, "batch": 4, "seed": 3}
    return study(configure("sunspots", cell=request.param, **options))


def start_of(config: Config) -> tuple[Any, Any, Any, Any]:
    """Task, model, x and target of the forecast."""
    task = task_of(config)
    return task, config.problem(task).model(), *task.draw(np.random.default_rng(config.seed), SAMPLES)


def rates_of(model: Any, x: Any, target: Any) -> list[float]:
    """What a backward pass shows."""
    y, tape = model.forward(x)
    model.backward(tape, gradcore.losses.mse(y, target)[1])
    return [spectral.measure_growth(tape.tapes[0], index=i) for i in range(len(tape.tapes[0].telemetry.dh_norm))]


def test_rates_of_every_layer_stand_side_by_side(stack: Study) -> None:
    _, model, x, target = start_of(stack.start.config)
    growth = spectral.predict_growth(model.layers[0], x, horizon=39)
    measured = rates_of(model, x, target)
    found = json.loads(json.dumps(stack.to_dict()))["comparison"]["layers"]
    assert [layer["name"] for layer in found] == ["0.l0", "0.l1"]
    for index, (layer, forecast) in enumerate(zip(found, growth.layers, strict=True)):
        assert layer["predicted"] == forecast.rate
        assert layer["upper_bound"] == forecast.upper_bound
        assert layer["with_above"] == forecast.rate_with_above
        assert layer["measured"] == measured[index]
        assert layer["predicted"] <= layer["upper_bound"]
        # 40 steps and 12 units: the two agree about, not exactly.
        assert layer["measured"] == pytest.approx(layer["with_above"], abs=0.1)


def test_exponents_are_those_of_each_layer_on_the_sources_sequences(stack: Study) -> None:
    config = stack.start.config
    _, model, x, _ = start_of(config)
    for index, found in enumerate(stack.forecast.spectra):
        want = spectral.lyapunov_spectrum(model.layers[0], x[:, :FEW], transient=10, index=index)
        assert found.name == f"0.l{index}"
        np.testing.assert_array_equal(found.exponents, want)
        assert found.largest == want[0]
        assert found.dimension == spectral.kaplan_yorke(want)
        assert found.state_size == len(want) == (24 if config.cell == "lstm" else 12)


def test_the_dimension_is_a_lower_bound_where_exponents_are_left_out() -> None:
    exponents = np.array([1.0, 0.5])
    assert Spectrum("l0", exponents, 1.0, 2.0, 3).filled == "at least 2"
    assert Spectrum("l0", exponents, 1.0, 2.0, 2).filled == "2"
    assert Spectrum("l0", exponents, 1.0, 1.25, 3).filled == "1.25"


def test_suggestions_are_tried_and_their_python_repeats_the_trials(stack: Study) -> None:
    config = stack.start.config
    assert stack.suggestions.missing == ()
    changes = [set(suggestion.changes) for suggestion in stack.suggestions.tried]
    assert changes == ([{"gain"}] if config.cell == "rnn" else [{"gain"}, {"gate_bias"}])
    trials = {trial.name.partition(", rate")[0]: trial for trial in stack.trials}
    for suggestion in stack.suggestions.tried:
        trial = trials[suggestion.name]
        assert trial.changes | suggestion.changes == trial.changes
        assert trial.changes.keys() - suggestion.changes.keys() <= {"lr"}
        assert trial.lr == trial.changes.get("lr", config.lr)
        names: dict[str, Any] = {}
        exec(trial.python, names)
        assert names["history"].loss.tolist() == trial.history.loss.tolist()
        assert names["history"].loss.tolist() != stack.trials[0].history.loss.tolist()
        _, model, x, target = start_of(configure("sunspots", **{**vars_of(config), **suggestion.changes}))
        growth = spectral.predict_growth(model.layers[0], x, horizon=39)
        assert (suggestion.predicted, suggestion.verdict) == (growth.rate, growth.verdict)
        assert suggestion.measured == max(rates_of(model, x, target))
        assert abs(suggestion.predicted) < abs(stack.forecast.rate)
    if config.cell != "rnn":
        assert stack.suggestions.tried[1].changes["gate_bias"] == pytest.approx(math.log(39), rel=1e-2)


def vars_of(config: Config) -> dict[str, Any]:
    return {name: value for name, value in vars(config).items() if name != "source"}


@pytest.mark.parametrize(
    "options",
    [{"cell": "gru", "hidden": 8}, {"cell": "lstm"}, {"cell": "gru"}, {"cell": "lstm", "hidden": 8, "seed": 3}],
    ids=str,
)
def test_a_suggestion_keeps_its_promise_on_all_sequences(options: dict[str, Any]) -> None:
    """A suggested gain is forecast to be stable on the sequences of the forecast; a bias says what it is forecast."""
    config = configure("sunspots", **options)
    task, model, x, target = start_of(config)
    before = model.flat_params.copy()
    found, remedies = suggest(config, task, model, x, target)
    assert (model.flat_params == before).all()
    assert len(found.tried) == len(remedies) == 2 - len(found.missing)
    for suggestion, remedy in zip(found.tried, remedies, strict=True):
        changed = remedy.apply(config.problem(task)).model()
        growth = spectral.predict_growth(changed.layers[0], x, horizon=99)
        assert (suggestion.name, suggestion.verdict) == (remedy.name, growth.verdict)
        assert suggestion.factor == growth.factor
        if "gain" in suggestion.changes:
            assert growth.verdict == "stable"


def test_a_gain_that_is_not_stable_is_not_suggested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meanfield, "suggest_gain", lambda layer, x: 1.5)
    config = configure("sunspots", hidden=16)
    found, remedies = suggest(config, *start_of(config))
    assert (found.tried, remedies) == ((), [])
    (reason,) = found.missing
    assert re.fullmatch(r"No gain is suggested: the best one found, gain 2\.7, (explodes|vanishes)\.", reason)


def test_a_gain_that_changes_nothing_or_does_not_exist_is_not_tried() -> None:
    config = configure("sunspots")
    task, model, x, target = start_of(config)
    factor = meanfield.suggest_gain(model.layers[0], x)
    for wanted, said in (
        ({"gain": config.gain * factor * 1.005}, "The configured gain is"),
        ({"init": "eye", "gain": 1.0}, "No gain from 1/64 to 64"),
    ):
        other = configure("sunspots", **{"init": "normal"} | wanted)
        found, _ = suggest(other, task, other.problem(task).model(), x, target)
        assert found.tried == ()
        assert found.missing[0].startswith(said)


def test_the_last_steps_gradient_is_what_is_measured() -> None:
    """Where the loss has a target at every step, the measurement takes the share of the last one."""
    config = configure("copy", seq_len=10, hidden=6)
    task, model, x, target = start_of(config)
    found = measure(model, x, target, task.loss, task.steps - 1)
    y, tape = model.forward(x)
    dy = np.zeros_like(y)
    dy[-1] = gradcore.losses.softmax_cross_entropy(y[-1], target[-1])[1] / task.steps
    model.backward(tape, dy)
    np.testing.assert_allclose(found.norms, tape.tapes[0].telemetry.dh_norm, rtol=1e-5)


# ---- how it shows itself ---------------------------------------------------------------------------------------------


def test_it_is_short_where_it_is_shown(stack: Study) -> None:
    assert len(repr(stack)) < 120
    assert repr(stack).startswith(f"Study({stack.verdict.kind}: factor a step {math.exp(stack.measurement.rate):.4f}")
    page = stack._repr_html_()
    assert stack.verdict.kind in page
    assert all(f">{trial.name}</th>" in page for trial in stack.trials)
    assert page.count("<table>") == page.count("</table>") == 2


def keys(value: Any) -> set[str]:
    """All names in a document."""
    if isinstance(value, dict):
        return value.keys() | {name for item in value.values() for name in keys(item)}
    return {name for item in value for name in keys(item)} if isinstance(value, list) else set()


def test_the_schema_names_everything_in_the_document(stack: Study) -> None:
    document = json.loads(json.dumps(stack.to_dict(), allow_nan=False))
    named = set(re.findall(r"`([a-z_0-9]+)`", SCHEMA.read_text("utf-8")))
    for trial in document["trials"]:
        for finding in trial["findings"]:
            finding["numbers"] = {}
    document["start"]["machine"] = {}  # the keys of these are free
    assert keys(document) <= named, keys(document) - named
    rows = re.findall(r"^\| (`.*?) \|", SCHEMA.read_text("utf-8"), flags=re.M)
    kinds = {"explodes", "vanishes", "stable", "diverged", "nothing_to_learn"}
    said = {name for row in rows for name in re.findall(r"`([a-z_]+)`", row)} - {"kind"}
    assert kinds <= said <= keys(document) | kinds
    assert document["verdict"]["kind"] in kinds
