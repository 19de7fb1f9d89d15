"""Thresholds follow the early norms; the verdict follows the trials."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from tapes import ToldTape

import gradcore
from gradcore.diagnosis.parts import Measurement, TimeForecast, Trial
from gradcore.diagnosis.pipeline import WORTHWHILE, judge
from gradcore.diagnosis.remedies import DEPARTED, choose_thresholds, departed


class Norm(float):
    """A gradient norm whose output layer has a part of its own."""

    per_array: dict[str, float]


def trial(name: str = "as configured", norms: Any = (1.0,), output: float = 1.0, losses: Any = None) -> Trial:
    """A trial with these norms and losses; a gradient enters with norm 6."""
    history = gradcore.History()
    losses = np.ones(len(norms)) if losses is None else losses
    tape = ToldTape(np.full((1, 2), 6.0))
    for norm, loss in zip(norms, losses, strict=True):
        found = Norm(norm)
        found.per_array = {"0.weight": norm, "2.weight": output, "2.bias": 0.0}
        history.append(loss, found, tape=tape)
    return Trial(name, {}, None, None, float(losses[-1]), float(norms[-1]), 0, 0, 1.0, (), history, f"# {name}")


class TestThresholds:
    def test_usual_norms_are_cut_above_their_quantile(self) -> None:
        found = choose_thresholds(trial(norms=np.linspace(1, 2, 500), output=5.0), batch=9)
        assert found.max_norm == pytest.approx(np.quantile(np.linspace(1, 2, 500)[:100], 0.95), rel=1e-2)
        assert found.step_clip == pytest.approx(6.0 / 3)
        assert found.steps_seen == 100

    def test_explosions_are_cut_at_what_passed_no_time_step(self) -> None:
        found = choose_thresholds(trial(norms=np.logspace(0, 9, 500), output=1.5), batch=9)
        assert found.max_norm == 3.0

    def test_what_comes_after_a_departure_does_not_count(self) -> None:
        losses = np.concatenate([np.ones(7), np.full(493, 1e9)])
        assert choose_thresholds(trial(norms=np.ones(500), losses=losses), batch=9).steps_seen == 7

    @pytest.mark.parametrize("norm", [math.nan, math.inf, 0.0])
    def test_without_a_usable_norm_the_usual_value_stands(self, norm: float) -> None:
        found = choose_thresholds(trial(norms=[norm] * 20), batch=9)
        assert found.max_norm == 1.0
        assert "usual value" in found.reason

    def test_a_loss_has_departed_at_three_times_its_start(self) -> None:
        assert DEPARTED == 3
        assert departed([2.0, 5.9, 6.0, 1.0, math.nan, math.inf]).tolist() == [2, 4, 5]
        assert departed([math.inf, 1e300]).tolist() == [0]


def judged(kind: Any, *trials: Trial, baseline: float = 1.0, rate: float = 0.1) -> Any:
    measured = Measurement(("0.l0",), np.ones((1, 4)), (rate,), rate, math.exp(3 * rate), kind)
    expected = TimeForecast((), (), 0.2, 1.8, kind, 3, np.ones((1, 4)), (), ())
    return judge(baseline, expected, measured, list(trials))


def with_loss(name: str, loss: float, start: float = 1.0) -> Trial:
    return trial(name, norms=[1.0, 1.0], losses=[start, loss])


class TestVerdict:
    @pytest.mark.parametrize(("share", "helps"), [(0.985, False), (0.975, True)])
    def test_a_remedy_has_to_be_two_percent_better(self, share: float, helps: bool) -> None:
        assert WORTHWHILE == 0.02
        found = judged("vanishes", with_loss("as configured", 0.5), with_loss("gain 2", 0.5 * share))
        assert found.remedy == ("gain 2" if helps else None)
        assert found.loss == (0.5 * share if helps else 0.5)
        assert found.python == ("# gain 2" if helps else "# as configured")
        assert ("gain 2 did best" in found.advice) == helps
        assert ("keep the training as it is" in found.advice) != helps
        assert found.kind == "vanishes"

    @pytest.mark.parametrize(("loss", "kind"), [(0.985, "nothing_to_learn"), (0.975, "stable")])
    def test_learning_is_two_percent_below_the_constant_answer(self, loss: float, kind: str) -> None:
        found = judged("stable", with_loss("as configured", 1.1), with_loss("gain 2", loss))
        assert found.kind == kind
        assert ("no trial got below the constant answer (the lowest loss is 0.985)" in found.advice) == (loss > 0.98)

    def test_an_explosion_is_one_whether_or_not_anything_was_learned(self) -> None:
        assert judged("explodes", with_loss("as configured", 1.1)).kind == "explodes"
        assert judged("explodes", with_loss("as configured", math.inf), with_loss("clip", 0.5)).kind == "explodes"

    @pytest.mark.parametrize(("loss", "kind"), [(2.9, "nothing_to_learn"), (3.0, "diverged"), (math.nan, "diverged")])
    def test_a_loss_that_rises_has_diverged(self, loss: float, kind: str) -> None:
        assert judged("stable", with_loss("as configured", loss), with_loss("clip", 2.0)).kind == kind

    @pytest.mark.parametrize("gradient", ["explodes", "vanishes", "stable"])
    def test_no_trial_kept_a_finite_loss(self, gradient: str) -> None:
        found = judged(gradient, with_loss("as configured", math.nan), with_loss("clip", math.inf))
        assert found.kind == "diverged"
        assert found.remedy is None
        assert found.advice == "No trial kept a finite loss: lower the learning rate first, then diagnose again."

    def test_a_remedy_helps_where_the_configuration_diverged(self) -> None:
        found = judged("stable", with_loss("as configured", math.inf), with_loss("clip", 0.5))
        assert (found.kind, found.remedy) == ("diverged", "clip")

    def test_the_finding_says_the_numbers(self) -> None:
        best = dataclasses.replace(with_loss("clip", 0.25), clipped_steps=1)
        found = judged("explodes", with_loss("as configured", 0.5), best)
        assert found.finding == (
            "The gradient explodes: on its way back it changes by a factor of 1.1052 a step, 1.35 over 3 steps "
            "(forecast: 1.2214). The training as configured ended at a loss of 0.5 (the best constant answer has 1) "
            "after norms of up to 1."
        )
        assert found.advice == (
            "Of 1 remedies, clip did best, with a loss of 0.25 and norms of up to 1, 50% of the steps clipped."
        )
