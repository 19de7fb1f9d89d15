"""A diagnosis as text, part by part as it comes."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from gradcore.diagnosis.config import SUNSPOTS
from gradcore.diagnosis.parts import Comparison, Length, Measurement, Start, TimeForecast
from gradcore.diagnosis.pipeline import SAMPLES
from gradcore.diagnosis.trials import ClipThresholds, Outcome, Suggestions, Trial
from gradcore.diagnosis.verdict import finding, kind_of_gradient, plus_minus
from gradcore.diagnosis.wording import BASELINES, VERBS, growth, number, per_step
from gradcore.training.monitor import SEVERITIES

__all__: list[str] = []  # for the package only

WIDTH = 80
SHOWN_FINDINGS = 4


class Printer:
    """Print each part of a study as it comes."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
        self.configured: Trial | None = None
        self.baselines: Mapping[str, float] = {}
        self.forecast: TimeForecast | None = None
        self.comparing = False  # whether the table of trials has begun
        self.show: dict[type, Callable[[Any], None]] = {
            Start: self.start,
            TimeForecast: self.show_forecast,
            Measurement: self.measurement,
            Comparison: self.comparison,
            tuple: self.lengths,
            Trial: self.trial,
            ClipThresholds: self.thresholds,
            Suggestions: self.suggestions,
            Outcome: self.outcome,
        }

    def __call__(self, part: Any) -> None:
        self.show[type(part)](part)

    def head(self, text: str) -> None:
        self.console.print(f"\n{text}", style="bold")

    def text(self, text: str, indent: int = 2) -> None:
        lead = " " * indent
        hang = lead + "  " * text.startswith("- ")
        self.console.print(textwrap.fill(text, WIDTH, initial_indent=lead, subsequent_indent=hang))

    def start(self, start: Start) -> None:
        config, self.baselines = start.config, start.baselines
        self.console.print(f"gradcore {start.machine['version']}: {start.task}", style="bold")
        for line in what_was_read(start.data):
            self.text(line)
        layers = f", {config.layers} layers" if config.layers > 1 else ""
        model = f"{config.cell.upper()} of {config.hidden} units{layers}, {start.n_parameters} parameters, with "
        model += f"{config.init} recurrent weights of gain {number(config.gain)}"
        if config.model is not None:
            model = f"{config.model}, {start.n_parameters} parameters"
        self.text(
            f"{model}; {start.steps_back + 1} steps a sequence, "
            f"{config.batch} sequences a batch, {config.optimizer} at {number(config.lr)}, {config.steps} steps; "
            f"{config.seeds} seeds from {config.seed} on."
        )
        if config.source == "sunspots" and {"init": config.init, "gain": config.gain} == SUNSPOTS:
            self.text("This default is chosen to explode; use --init default for a well-behaved start.")

    def show_forecast(self, forecast: TimeForecast) -> None:
        self.forecast = forecast
        self.head("1. Forecast, from the weights and the states that they lead through")
        print(f"  {'matrix':24} {'spectral radius':>16} {'spectral norm':>16}")
        for matrix in forecast.matrices:
            print(f"  {matrix.name:24} {number(matrix.radius):>16} {number(matrix.norm):>16}")
        print(f"  {'Lyapunov exponents':24} {'largest, ln/step':>16} {'above 0':>16} {'dimension':>16}")
        for found in forecast.spectra:
            above = f"{int((found.exponents > 0).sum())} of {len(found.exponents)}"
            print(f"  {found.name:24} {found.largest:16.4f} {above:>16} {found.filled:>16}")
        for condition in forecast.conditions:
            sign = ">" if condition.of == "explodes" else "<"
            state = "holds" if condition.holds else "does not hold"
            purpose = {"explodes": "explosion", "vanishes": "vanishing"}[condition.of]
            role = f"an asymptotic indicator of {purpose}"
            if condition.kind != "asymptotic":
                role = f"{condition.kind} for {purpose}"
            value = f"{condition.value:.4f}" if "ln per step" in condition.name else number(condition.value)
            self.text(f"- {condition.name} {sign} {number(condition.limit)}: {state} ({value}); {role}.")
            self.text(condition.meaning, 4)
        change = growth(forecast.rate, forecast.factor, forecast.horizon)
        self.text(f"Along {SAMPLES} real sequences the gradient {VERBS[forecast.verdict]}: it changes by {change}.")

    def measurement(self, measurement: Measurement) -> None:
        assert self.forecast is not None
        self.head("2. Measurement: |dL/dh_t| for the loss of the last step")
        T = measurement.norms.shape[1]
        shown = sorted({round(i * (T - 1) / 6) for i in range(7)})
        print(f"  {'time step':22}" + "".join(f"{t:>8}" for t in shown))
        expected = measurement.expected(self.forecast)
        for name, row, ahead in zip(measurement.names, measurement.norms, expected, strict=True):
            for kind, norms in (("measured", row), ("forecast", ahead)):
                print(f"  {f'{name}, {kind}':22}" + "".join(f"{number(norms[t]):>8}" for t in shown))
        kind = kind_of_gradient(self.forecast, measurement)
        self.text(finding(kind, self.forecast, measurement))

    def comparison(self, comparison: Comparison) -> None:
        stack = len(comparison.layers) > 1  # else no layer's gradient arrives in another
        above = f" {'with above':>12}" if stack else ""
        print(f"  {'rate, ln per step':22} {'predicted':>12} {'at most':>12}{above} {'measured':>12}")
        for layer in comparison.layers:
            above = f" {layer.with_above:12.4f}" if stack else ""
            print(f"  {layer.name:22} {layer.predicted:12.4f} {layer.upper_bound:12.4f}{above} {layer.measured:12.4f}")

    def lengths(self, lengths: tuple[Length, ...]) -> None:
        if len(lengths) < 2:
            return
        print(f"  {'steps a sequence':22} {'a step':>12} {'over it':>12}")
        for length in lengths:
            print(f"  {length.steps:<22} {per_step(length.rate):>12} {number(length.factor):>12}  {length.verdict}")

    def trial(self, trial: Trial) -> None:
        if self.configured is None:
            self.configured = trial
            self.head("3. Training as configured")
            self.text(
                f"The loss ends at {number(trial.loss)} (mean of the last tenth), and at {plus_minus(trial)} on "
                f"sequences held out ({len(trial.held_out_losses)} seeds), after norms of up to "
                f"{number(trial.largest_norm)}; "
                f"{trial.nonfinite_steps} of {len(trial.history)} steps were not finite; {trial.seconds:.1f} s."
            )
            findings = sorted(trial.findings, key=lambda finding: SEVERITIES.index(finding.severity))
            for finding in findings[:SHOWN_FINDINGS]:
                self.text(f"- {finding}")
            if len(findings) > SHOWN_FINDINGS:
                self.text(f"- {len(findings) - SHOWN_FINDINGS} more findings are in the JSON.")
        else:
            if not self.comparing:
                self.comparing = True
                print(f"  {'trial':41} {'held out':>9} {'±':>8} {'trained on':>10} {'s':>6}")
                for name, loss in self.baselines.items():
                    print(f"  {BASELINES[name]:41} {number(loss):>9}")
                self.row(self.configured)
            self.row(trial)

    def row(self, trial: Trial) -> None:
        print(
            f"  {trial.name[:41]:41} {number(trial.held_out_loss):>9} {number(trial.spread):>8} "
            f"{number(trial.loss):>10} {trial.seconds:6.1f}",
            flush=True,
        )

    def thresholds(self, thresholds: ClipThresholds) -> None:
        self.head("4. Thresholds and remedies")
        low, middle, high = map(number, thresholds.norm_quantiles)
        self.text(
            f"Clip the norm at {number(thresholds.max_norm)}: {thresholds.reason} (first {thresholds.steps_seen} "
            f"steps: median {middle}, 5 % to 95 % {low} to {high}, output layer {number(thresholds.output_norm)}). "
            f"Clip each time step at {number(thresholds.step_clip)}: the norm with which a sequence's gradient enters "
            f"at its last step."
        )

    def suggestions(self, suggestions: Suggestions) -> None:
        assert self.forecast is not None
        for suggestion in suggestions.tried:
            change = growth(suggestion.predicted, suggestion.factor, self.forecast.horizon)
            self.text(
                f"- Suggested: {suggestion.name}, {suggestion.reason}. Forecast: the gradient "
                f"{VERBS[suggestion.verdict]}, {change} (measured: {per_step(suggestion.measured)} a step)."
            )
        for reason in suggestions.missing:
            self.text(f"- {reason}")

    def outcome(self, outcome: Outcome) -> None:
        self.head("5. Verdict")
        self.text(outcome.finding)
        self.text(outcome.advice)
        self.head("Python")
        self.console.print(outcome.python)


def what_was_read(data: Mapping[str, Any]) -> Iterator[str]:
    """Say what was taken from a file, in sentences."""
    if "target" not in data:
        return
    inputs = ", ".join(data["inputs"])
    yield f"Target: {data['target']}; inputs: {inputs}; {data['n']} rows."
    yield from (f"{note[0].upper()}{note[1:]}." for note in data.get("notes", ()))
    how = [f"{name} {data[name]}" for name in ("delimiter", "decimal", "encoding") if data.get(name)]
    missing, time, windows = data.get("missing"), data.get("time"), data["windows"]
    if how:
        yield f"Read with {', '.join(how)}."
    if missing and missing["count"]:
        yield f"Missing values: {missing['count']} ({missing['policy']}); {windows['left_out']} windows touch one."
    if time:
        yield f"Time: {time['name']}, every {time['step']}."
    yield f"Windows: {windows['training']} to train on, {windows['held_out']} after them to judge by."
