"""Watch a training run and say what goes wrong with its gradients, since when, and what to do."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, fields
from typing import Any

import numpy as np

from gradcore._base.check import Array, as_list, check_int, check_names, check_real, check_reals
from gradcore._base.files import jsonable
from gradcore._base.hook import TrainingStep
from gradcore._base.html import html_table
from gradcore.layers.telemetry import StepTelemetry
from gradcore.training.findings import SEVERITIES, Finding, Thresholds
from gradcore.training.rules.causes import link
from gradcore.training.rules.data import nan_in_data
from gradcore.training.rules.rule import ADVICE, AT_END, EACH_STEP, Rule, Symptom
from gradcore.training.run import Run, Step

__all__ = ["ADVICE", "SEVERITIES", "Finding", "GradientMonitor", "Thresholds"]

_NAN_IN_DATA = Rule(nan_in_data, None)


class GradientMonitor:
    """Turn a run into findings: each has a severity, the step where it began, the numbers behind it, and advice.

    Pass it to `gradcore.fit`, or call `update` after every step of your own loop and `finish` at the end. It never
    changes what it reads, and neither raises nor warns when that is not finite. A step costs less than a millisecond;
    weights and outputs are looked at every few steps only.

    Parameters
    ----------
    thresholds : Thresholds, optional
        When to speak. By default that of the experience with small recurrent networks.

    Attributes
    ----------
    thresholds : Thresholds
        When it speaks.
    findings : list of Finding
        What it has found, in the order of first sight.

    Notes
    -----
    Once a loss has been negative, only its noise tells what a rise is, and whether the run learns is not judged: the
    losses of policy gradients say nothing of it. A loss at every time step adds gradient everywhere: then gradients
    that vanish in time do not show, while explosion does.

    In `fit`, if the loss is a plain function, the monitor calls it again now and then, with the outputs of the model
    after the step and with outputs that belong to other samples. A function that does not return the same again,
    because it draws random numbers, is left alone after the first step.

    Examples
    --------
    >>> from gradcore.training.monitor import GradientMonitor
    >>> monitor = GradientMonitor()
    >>> for step, loss in enumerate([0.9, 0.7, float("nan")]):
    ...     new = monitor.update(step, loss, grad_norm=1.0)
    >>> [(finding.kind, finding.severity, finding.step) for finding in new]
    [('nan_loss', 'critical', 2)]
    >>> monitor
    GradientMonitor(3 steps, 1 finding: 1 critical)
    """

    def __init__(self, thresholds: Thresholds | None = None) -> None:
        if thresholds is not None and not isinstance(thresholds, Thresholds):
            raise TypeError(f"thresholds: expected Thresholds, got {type(thresholds).__name__}")
        self.thresholds = thresholds or Thresholds()
        self.findings: list[Finding] = []
        self._run = Run(self.thresholds)
        self._by_place: dict[tuple[str, str], tuple[Finding, float]] = {}
        self._model: Any = None

    @property
    def n_steps(self) -> int:
        """Number of steps seen."""
        return self._run.n_steps

    @property
    def n_clipped(self) -> int:
        """Number of steps whose gradient was clipped."""
        return self._run.n_clipped

    @property
    def n_skipped(self) -> int:
        """Number of steps that were skipped because the gradient was not finite."""
        return self._run.n_skipped

    def update(
        self,
        step: int,
        loss: float | None,
        grad_norm: float,
        model: Any = None,
        tape: Any = None,
        y: Array | None = None,
        *,
        max_norm: float | None = None,
        record: TrainingStep | None = None,
        criterion: Callable[..., Any] | None = None,
    ) -> list[Finding]:
        """Look at one step.

        Parameters
        ----------
        step : int
            The number of the step.
        loss : float or None
            The loss; None where it is not known, which is no fault.
        grad_norm : float or GradNorm
            The norm before clipping. A `GradNorm` also tells what was clipped, skipped and not finite.
        model : optional
            The model, for its weights: anything with `flat_params` and `params`.
        tape : Tape or StepTelemetry, optional
            The tape of the model's forward pass or of one of its layers', after `backward`: it holds the norms over
            time steps and layers.
        y : ndarray, optional
            The model's output, with the features on the last axis.
        max_norm : float, optional
            The clip threshold of this step, None without clipping.
        record : TrainingStep, optional
            The whole step, for its batch, its optimizer and dL/dy: with it the monitor can tell faults of the data from
            those of the training, and its advice fits the optimizer. `training_step` returns one.
        criterion : callable, optional
            The loss function, ``criterion(y, target)``. With it and `record`, the monitor now and then looks at what a
            step made of its own batch; it uses the model's inference for this.

        Returns
        -------
        list of Finding
            The new findings. Those from before are only brought up to date.

        Examples
        --------
        >>> from gradcore.training.monitor import GradientMonitor
        >>> monitor = GradientMonitor()
        >>> monitor.update(0, 0.9, grad_norm=1.0)
        []
        >>> [finding.kind for finding in monitor.update(1, 0.9, grad_norm=5000.0)]
        ['large_gradients']
        """
        value = math.nan if loss is None else check_real("loss", loss)
        now = Step(check_int("step", step), value, check_real("grad_norm", grad_norm), grad_norm)
        now.has_loss = loss is not None
        now.max_norm = None if max_norm is None else check_real("max_norm", max_norm)
        now.y = None if y is None else check_reals("y", y)
        now.model, now.seen = model, StepTelemetry.of(tape)
        if record is not None and not isinstance(record, TrainingStep):
            raise TypeError(f"record: expected a TrainingStep, got {type(record).__name__}")
        if criterion is not None and not callable(criterion):
            raise TypeError(f"criterion: expected a callable, got {type(criterion).__name__}")
        now.record, now.criterion = record, criterion
        if model is not None:
            self._model = model
        n, thresholds = self._run.n_steps, self.thresholds
        due = [rule for rule in EACH_STEP if rule.every is None or n % getattr(thresholds, rule.every) == 0]
        self._run.begin(now)
        if now.bad_data:  # whatever else is not finite follows from it
            due = [_NAN_IN_DATA]
        new = self._look(due, now)
        self._run.end(now)
        return new

    def finish(self) -> list[Finding]:
        """Look at the weights once more, and at what only the whole run tells.

        Returns
        -------
        list of Finding
            The new findings.

        Examples
        --------
        >>> from gradcore.training.monitor import GradientMonitor, Thresholds
        >>> monitor = GradientMonitor(Thresholds(never_clipped_steps=2))
        >>> for step in range(2):
        ...     new = monitor.update(step, 0.9, grad_norm=1.0, max_norm=1e6)
        >>> [finding.kind for finding in monitor.finish()]
        ['never_clipping']
        """
        return self._look(AT_END, Step(max(self.n_steps - 1, 0), model=self._model))

    def _look(self, rules: list[Rule], now: Step) -> list[Finding]:
        """Let the rules look, and return the new findings."""
        n_known = len(self.findings)
        with np.errstate(all="ignore"):
            for rule in rules:
                for symptom in rule.look(self._run, now):
                    self._report(symptom, now.number)
        if len(self.findings) > n_known:
            link(self.findings, self.thresholds.check_outputs_every)
        return self.findings[n_known:]

    def _report(self, symptom: Symptom, step: int) -> None:
        """Open a finding, or count it once more. Its numbers stay those of the greatest badness."""
        place = symptom.kind, symptom.where
        if place not in self._by_place:
            began = step if symptom.began is None else symptom.began
            kind, severity, numbers, message = symptom[:4]
            advice = symptom.advice or ADVICE[kind]
            finding = Finding(kind, symptom.where, severity, began, step, symptom.times, numbers, message, advice)
            self.findings.append(finding)
            self._by_place[place] = finding, symptom.badness
            return
        finding, worst = self._by_place[place]
        finding.last_step = step
        finding.count += 1
        finding.severity = min(finding.severity, symptom.severity, key=SEVERITIES.index)
        if symptom.badness > worst:
            finding.numbers, finding.message = symptom.numbers, symptom.message
            finding.advice = symptom.advice or ADVICE[symptom.kind]
            self._by_place[place] = finding, symptom.badness

    def _ordered(self) -> list[Finding]:
        """Causes, the worst first, each before what follows from it."""
        ordered = sorted(self.findings, key=lambda finding: (SEVERITIES.index(finding.severity), finding.step))
        return [each for finding in ordered if not finding.follows for each in _with_effects(finding, ordered)]

    def summary(self) -> str:
        """Return all findings as text: causes, the worst first, each before what follows from it.

        Returns
        -------
        str
            Two lines for each cause, one for what follows from it.

        Examples
        --------
        >>> from gradcore.training.monitor import GradientMonitor
        >>> monitor = GradientMonitor()
        >>> new = monitor.update(0, 0.9, grad_norm=1.0)
        >>> print(monitor.summary())
        No findings in 1 step.
        """
        if not self.findings:
            return f"No findings in {_count(self.n_steps, 'step')}."
        return "\n".join(
            f"    {finding}" if finding.follows else f"{finding}\n    {finding.advice}" for finding in self._ordered()
        )

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of what it has seen and found, without the thresholds.

        Returns
        -------
        dict
            Dicts, lists, arrays and numbers.

        Examples
        --------
        >>> from gradcore.training.monitor import GradientMonitor
        >>> monitor, other = GradientMonitor(), GradientMonitor()
        >>> new = monitor.update(0, float("inf"), grad_norm=1.0)
        >>> other.load_state_dict(monitor.state_dict())
        >>> other
        GradientMonitor(1 step, 1 finding: 1 critical)
        """
        badness = [self._by_place[finding.kind, finding.where][1] for finding in self.findings]
        return {
            "run": self._run.state_dict(),
            "findings": [asdict(finding) for finding in self.findings],
            "badness": badness,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned for a monitor with the same thresholds.

        Parameters
        ----------
        state_dict : mapping
            The state.

        Raises
        ------
        KeyError, TypeError, ValueError
            If the state is not that of a monitor. Nothing is changed then.
        """
        check_names("state_dict", state_dict, ("run", "findings", "badness"))
        findings: list[Finding] = []
        for i, given in enumerate(as_list("findings", state_dict["findings"], "a list")):
            check_names(f"findings[{i}]", given, [field.name for field in fields(Finding)])
            findings.append(Finding.from_dict(given))
        badness = [check_real("badness", bad) for bad in as_list("badness", state_dict["badness"], "a list")]
        if len(badness) != len(findings):
            raise ValueError(f"badness: expected {len(findings)} numbers, got {len(badness)}")
        self._run.load_state_dict(state_dict["run"])
        self.findings[:] = findings  # who holds the list sees them
        worst = zip(findings, badness, strict=True)
        self._by_place = {(finding.kind, finding.where): (finding, bad) for finding, bad in worst}

    def to_dict(self) -> dict[str, Any]:
        """Return everything in JSON's own types.

        Returns
        -------
        dict
            The counts, the thresholds and the findings; numbers that are not finite as "NaN", "Infinity" and
            "-Infinity".

        Examples
        --------
        >>> from gradcore.training.monitor import GradientMonitor
        >>> monitor = GradientMonitor()
        >>> new = monitor.update(0, 0.9, grad_norm=1.0)
        >>> monitor.to_dict()["n_steps"]
        1
        """
        report: dict[str, Any] = jsonable(
            {
                "n_steps": self.n_steps,
                "n_clipped": self.n_clipped,
                "n_skipped": self.n_skipped,
                "thresholds": asdict(self.thresholds),
                "findings": [finding.to_dict() for finding in self.findings],
            }
        )
        return report

    def __repr__(self) -> str:
        counts = Counter(finding.severity for finding in self.findings)
        kinds = ", ".join(f"{counts[severity]} {severity}" for severity in SEVERITIES if counts[severity])
        found = _count(len(self.findings), "finding")
        return f"GradientMonitor({_count(self.n_steps, 'step')}, {found}{f': {kinds}' if kinds else ''})"

    def _repr_html_(self) -> str:
        rows = [(f.severity, f.kind, f.where, f.seen(), f.message, f.advice) for f in self._ordered()]
        if not rows:
            return html_table([], caption=self.summary())
        return html_table(rows, header=("severity", "finding", "where", "seen", "what happened", "what to do"))


def _with_effects(cause: Finding, ordered: list[Finding]) -> Iterator[Finding]:
    """Yield a finding and, if it is the first of its kind, what follows from it."""
    yield cause
    if cause is next(finding for finding in ordered if finding.kind == cause.kind):
        for finding in ordered:
            if finding.follows == cause.kind:
                yield from _with_effects(finding, ordered)


def _count(n: int, what: str) -> str:
    return f"{n or 'no'} {what}{'' if n == 1 else 's'}"
