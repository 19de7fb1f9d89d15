"""Thresholds follow the early norms; the verdict follows the trials."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from tapes import ToldTape

import gradcore
from gradcore.data import Task
from gradcore.diagnosis import rates
from gradcore.diagnosis.config import Config, task_of
from gradcore.diagnosis.parts import Measurement, TimeForecast
from gradcore.diagnosis.problem import Problem
from gradcore.diagnosis.rates import best_rate
from gradcore.diagnosis.remedies import DEPARTED, choose_thresholds, departed
from gradcore.diagnosis.stages import Run, run
from gradcore.diagnosis.trials import Trial
from gradcore.diagnosis.verdict import SKIPPED, WORTHWHILE, has_diverged, judge


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
    end = float(losses[-1])
    return Trial(name, {}, None, None, 0.1, end, (end,), float(norms[-1]), 0, 0, 1.0, (), history, f"# {name}")


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


def judged(
    kind: Any, *trials: Trial, constant: float = 1.0, rate: float = 0.1, steady: float | None = 0.01, **others: float
) -> Any:
    measured = Measurement(("0.l0",), np.ones((1, 4)), (rate,), rate, math.exp(3 * rate), kind)
    expected = TimeForecast((), (), 0.2, 1.8, kind, 3, np.ones((1, 4)), (), ())
    return judge({"constant": constant} | others, expected, measured, list(trials), steady)


def with_loss(name: str, *losses: float, start: float = 1.0, **changes: float) -> Trial:
    """A trial whose seeds ended at these losses, on what is held out and on what is trained on."""
    made = trial(name, norms=[1.0, 1.0], losses=[start, losses[0]])
    return dataclasses.replace(made, held_out_losses=losses, changes=changes)


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

    @pytest.mark.parametrize(("worst", "helps"), [(0.59, True), (0.61, False)])
    def test_and_better_with_each_seed_than_the_configuration_with_any(self, worst: float, helps: bool) -> None:
        found = judged("vanishes", with_loss("as configured", 0.7, 0.6, 0.9), with_loss("gain 2", 0.1, worst, 0.2))
        assert found.remedy == ("gain 2" if helps else None)
        assert ("beyond the spread" in found.advice) != helps

    @pytest.mark.parametrize(("loss", "kind"), [(0.985, "nothing_to_learn"), (0.975, "stable")])
    def test_learning_is_two_percent_below_every_answer_without_a_model(self, loss: float, kind: str) -> None:
        for others in ({}, {"constant": 2.0, "last_value": 1.0}):
            found = judged("stable", with_loss("as configured", 1.1), with_loss("gain 2", loss), **others)
            assert found.kind == kind
            assert (found.remedy is None) == (loss > 0.98)
            assert ("Nothing was learned" in found.advice) == (loss > 0.98)
        if loss > 0.98:
            assert "the lowest loss on what is held out is 0.985 ± 0 (gain 2), and the last value has 1." in (
                found.advice
            )
            assert found.advice.endswith("there may be nothing to learn.")

    def test_where_the_value_a_period_ago_does_well_there_is_something_to_learn(self) -> None:
        trials = with_loss("as configured", 0.9), with_loss("gain 2", 0.5)
        for seasonal, better in ((0.4, True), (0.6, False)):
            found = judged("vanishes", *trials, seasonal=seasonal)
            assert (found.kind, found.remedy) == ("vanishes", "gain 2")
            assert (f"Still better is the value a period ago, with {seasonal}" in found.advice) == better
        assert "with 0.7: train longer" in judged("stable", with_loss("as configured", 0.9), seasonal=0.7).advice
        found = judged("stable", with_loss("as configured", 1.1), seasonal=0.4)
        assert (found.kind, found.remedy) == ("nothing_to_learn", None)
        assert found.advice.endswith("there is something to learn, for the value a period ago has 0.4.")

    def test_an_explosion_is_one_whether_or_not_anything_was_learned(self) -> None:
        found = judged("explodes", with_loss("as configured", 1.1))
        assert (found.kind, found.remedy) == ("explodes", None)
        cured = judged("explodes", with_loss("as configured", math.inf), with_loss("clip", 0.5, max_norm=1.0))
        assert (cured.kind, cured.remedy) == ("explodes", "clip")

    def test_one_that_clipping_does_not_cure_has_diverged(self) -> None:
        found = judged("explodes", with_loss("as configured", math.inf), with_loss("rate", 0.5, lr=0.01))
        assert (found.kind, found.remedy) == ("diverged", "rate")
        assert found.advice.startswith("Lower the learning rate from 0.1 to 0.01; of the trials, rate did best")

    @pytest.mark.parametrize(("loss", "kind"), [(2.9, "nothing_to_learn"), (3.0, "diverged"), (math.nan, "diverged")])
    def test_a_loss_that_rises_has_diverged(self, loss: float, kind: str) -> None:
        assert judged("stable", with_loss("as configured", loss), with_loss("clip", 2.0)).kind == kind

    @pytest.mark.parametrize(("lost", "diverged"), [(SKIPPED, False), (1.5 * SKIPPED, True)])
    def test_so_has_one_that_loses_many_steps(self, lost: float, diverged: bool) -> None:
        run = dataclasses.replace(trial(norms=np.ones(100)), nonfinite_steps=round(100 * lost))
        assert has_diverged(run) == diverged
        found = judged("stable", run, with_loss("clip", 0.5))
        assert ("15 of 100 steps were not finite" in found.finding) == diverged

    @pytest.mark.parametrize("gradient", ["explodes", "vanishes", "stable"])
    def test_every_trial_diverged(self, gradient: str) -> None:
        trials = with_loss("as configured", math.nan), with_loss("clip", math.inf)
        found = judged(gradient, *trials)
        assert (found.kind, found.remedy) == ("diverged", None)
        assert found.advice == "Lower the learning rate from 0.1 to 0.01."
        assert "look at the data and the loss first" in judged(gradient, *trials, steady=None).advice

    def test_a_remedy_helps_where_the_configuration_diverged(self) -> None:
        found = judged("stable", with_loss("as configured", math.inf), with_loss("clip", 0.5))
        assert (found.kind, found.remedy) == ("diverged", "clip")

    def test_two_sentences(self) -> None:
        good, better = with_loss("as configured", 0.5), with_loss("gain 2", 0.1)
        factor = "The gradient vanishes: on its way back over 3 steps it changes by a factor of 1.35."
        assert judged("vanishes", good, better).summary == (
            f"{factor} Gain 2 helps: it has 0.1 ± 0 on what is held out, where the configuration has 0.5 ± 0."
        )
        assert judged("vanishes", good).summary == (
            f"{factor} No remedy beats the configuration, which has 0.5 ± 0 on what is held out."
        )
        assert judged("stable", with_loss("as configured", 1.1), last_value=0.9).summary == (
            "Nothing was learned at this length. On what is held out the best trial has 1.1 ± 0, and the last value "
            "has 0.9."
        )
        lost = with_loss("as configured", math.inf)
        assert judged("stable", lost).summary == (
            "The training as configured diverges. Lower the learning rate from 0.1 to 0.01."
        )
        assert judged("stable", lost, better).summary.endswith("where the configuration diverges.")
        unmeasured = judged("vanishes", good, rate=math.nan).summary
        assert unmeasured.startswith(
            "The gradient vanishes: on its way back over 3 steps it changes by a factor of 1.8, "
        )

    def test_the_finding_says_the_numbers(self) -> None:
        found = judged("explodes", with_loss("as configured", 0.5), with_loss("clip", 0.2, 0.3), last_value=0.9)
        assert found.finding == (
            "The gradient explodes: on its way back over 3 steps it changes by a factor of 1.35 (forecast: 1.8), with "
            "a slope of 1.1052 a step (forecast: 1.2214). The training as configured took the loss from 1 to 0.5, and "
            "to 0.5 ± 0 on what is held out; there the best constant answer has 1, the last value has 0.9."
        )
        assert found.advice == (
            "Of 1 remedies, clip did best: 0.25 ± 0.0707 on what is held out, with norms of up to 1."
        )


class TestRates:
    CONFIG = Config("adding", hidden=8, seq_len=10, batch=8, steps=60)
    TASK = task_of(CONFIG)

    def with_rate(self, lr: float) -> Problem:
        return dataclasses.replace(self.CONFIG, lr=lr).problem(self.TASK)

    @pytest.mark.parametrize("lr", [1e3, 1e8])
    @pytest.mark.parametrize("rehearsal", [TASK.rehearsal(), None], ids=["rehearsal", "none"])
    def test_a_rate_that_diverges_is_lowered_until_it_does_not(self, rehearsal: Task | None, lr: float) -> None:
        problem = self.with_rate(lr)
        found = best_rate(problem, rehearsal, 60)
        assert found is not None
        assert found < lr / 10
        assert np.isfinite(run(problem.varied(lr=found)).history.loss).all()

    def test_a_rate_that_is_far_too_low_is_raised_but_not_without_a_rehearsal(self) -> None:
        problem = self.with_rate(1e-3)
        assert best_rate(problem, self.TASK.rehearsal(), 60) == pytest.approx(1e-2)
        assert best_rate(problem, None, 60) == 1e-3

    def test_none_is_found_where_the_data_are_to_blame(self) -> None:
        problem = self.CONFIG.problem(self.TASK)
        broken = dataclasses.replace(
            problem, vary=lambda **_: broken, loss=lambda y, target: (math.nan, np.full_like(y, math.nan))
        )
        for rehearsal in (self.TASK.rehearsal(), None):
            assert best_rate(broken, rehearsal, 60) is None

    def test_what_counts_is_held_out_and_long_enough(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Three times the rate looks best at first, and a third of it by the training loss: neither is chosen."""
        asked: list[tuple[float, int]] = []

        def told(factor: float, steps: int) -> Any:
            asked.append((factor, steps))
            held_out = {3.0: 0.5, 10.0: 0.9, 1.0: 0.6, 1 / 3: 0.8} if steps == 20 else {3.0: 0.4, 1.0: 0.3, 10.0: 0.9}
            history = gradcore.History()
            for loss in (1.0, 0.01 if factor < 1 else 0.9):
                history.append(loss, 1.0)
            return Run(history, (), [], held_out[factor])

        problem = dataclasses.replace(
            self.CONFIG.problem(self.TASK),
            vary=lambda task=None, lr=1.0, steps=0: dataclasses.replace(problem, test=lambda: (lr, steps), lr=lr),
            lr=1.0,
        )
        monkeypatch.setattr(rates, "run", lambda problem: told(*problem.test()))
        assert best_rate(problem, self.TASK.rehearsal(), 120) == 1.0
        assert asked == [(1 / 3, 20), (1.0, 20), (3.0, 20), (10.0, 20), (1.0, 60), (3.0, 60)]

    @pytest.mark.parametrize(("loss", "rate"), [(0.94, 3.0), (0.96, 1.0)])
    def test_another_rate_has_to_be_clearly_better(
        self, loss: float, rate: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert rates.CLEARLY == 0.95
        problem = dataclasses.replace(
            self.CONFIG.problem(self.TASK),
            vary=lambda task=None, lr=1.0, steps=0: dataclasses.replace(problem, lr=lr),
            lr=1.0,
        )
        history = gradcore.History()
        history.append(1.0, 1.0)
        monkeypatch.setattr(rates, "run", lambda one: Run(history, (), [], loss if one.lr == 3 else 1.0))
        assert best_rate(problem, self.TASK.rehearsal(), 120) == rate
