"""A diagnosis as text, part by part as it comes."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from gradcore.diagnosis.config import SUNSPOTS
from gradcore.diagnosis.parts import Comparison, Length, Measurement, Start, TimeForecast
from gradcore.diagnosis.pipeline import SAMPLES
from gradcore.diagnosis.trials import ClipThresholds, Outcome, Suggestions, Trial
from gradcore.diagnosis.verdict import finding, kind_of_gradient, plus_minus
from gradcore.diagnosis.wording import BASELINES, VERBS, growth, number, per_step
from gradcore.training.monitor import SEVERITIES

__all__: list[str] = []  # for the package only

WIDTH = 80  # of a line at most, also where the terminal is wider
NARROW = 70  # below which what matters less is left out
SHOWN_FINDINGS = 4
PAIR, TRIPLE = (15, 13), (10, 10, 10)  # characters of the cells of two tables


class Printer:
    """Print each part of a study as it comes."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
        self.width = min(self.console.width, WIDTH)
        self.configured: Trial | None = None
        self.baselines: Mapping[str, float] = {}
        self.accuracies: Mapping[str, float] = {}
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
        self.console.print("\n" + textwrap.fill(text, self.width), style="bold")

    def text(self, text: str, indent: int = 2) -> None:
        lead = " " * indent
        hang = lead + "  " * text.startswith("- ")
        self.console.print(textwrap.fill(text, self.width, initial_indent=lead, subsequent_indent=hang))

    def row(self, name: str, *cells: str, widths: Sequence[int]) -> None:
        """A line of a table: the name as long as there is room, then the cells on the right."""
        rest = "".join(f" {cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        room = self.width - 2 - sum(widths) - len(widths)
        print(f"  {name[:room]:{room}}{rest}".rstrip(), flush=True)

    def start(self, start: Start) -> None:
        config, self.baselines, self.accuracies = start.config, start.baselines, start.accuracies
        title = f"gradcore {start.machine['version']}: {start.task}"
        self.console.print(textwrap.fill(title, self.width), style="bold")
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
        self.row("matrix", "spectral radius", "spectral norm", widths=PAIR)
        for matrix in forecast.matrices:
            self.row(matrix.name, number(matrix.radius), number(matrix.norm), widths=PAIR)
        self.row("Lyapunov exponents", "largest", "above 0", "dimension", widths=TRIPLE)
        for found in forecast.spectra:
            above = f"{int((found.exponents > 0).sum())} of {len(found.exponents)}"
            self.row(found.name, f"{found.largest:.4f}", above, found.filled, widths=TRIPLE)
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
        n = max((self.width - 24) // 8, 2)
        shown = sorted({round(i * (T - 1) / (n - 1)) for i in range(n)})
        widths = [7] * len(shown)
        self.row("time step", *map(str, shown), widths=widths)
        expected = measurement.expected(self.forecast)
        for name, row, ahead in zip(measurement.names, measurement.norms, expected, strict=True):
            for kind, norms in (("measured", row), ("forecast", ahead)):
                self.row(f"{name}, {kind}", *(number(norms[t]) for t in shown), widths=widths)
        kind = kind_of_gradient(self.forecast, measurement)
        self.text(finding(kind, self.forecast, measurement))

    def comparison(self, comparison: Comparison) -> None:
        stack = len(comparison.layers) > 1  # else no layer's gradient arrives in another
        heads = ["predicted", "at most", *["with above"] * stack, "measured"]
        widths = [10] * len(heads)
        self.row("ln per step", *heads, widths=widths)
        for layer in comparison.layers:
            above = [layer.with_above] * stack
            rates = (layer.predicted, layer.upper_bound, *above, layer.measured)
            self.row(layer.name, *(f"{rate:.4f}" for rate in rates), widths=widths)

    def lengths(self, lengths: tuple[Length, ...]) -> None:
        if len(lengths) < 2:
            return
        self.row("steps a sequence", "a step", "over it", "gradient", widths=TRIPLE)
        for length in lengths:
            cells = per_step(length.rate), number(length.factor), length.verdict
            self.row(str(length.steps), *cells, widths=TRIPLE)

    def trial(self, trial: Trial) -> None:
        if self.configured is None:
            self.configured = trial
            self.head("3. Training as configured")
            self.text(
                f"The loss ends at {number(trial.loss)} (mean of the last tenth), and at {plus_minus(trial)} on "
                f"sequences held out ({len(trial.held_out_losses)} seeds)"
                + ("" if trial.accuracy is None else f", where {trial.accuracy:.1%} are right")
                + ", after norms of up to "
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
                self.compared("trial", "held out", "±", "right", "trained on", "s")
                for name, loss in self.baselines.items():
                    share = f"{self.accuracies[name]:.1%}" if name in self.accuracies else ""
                    self.compared(BASELINES[name], number(loss), "", share, "", "")
                self.result(self.configured)
            self.result(trial)

    def result(self, trial: Trial) -> None:
        share = "" if trial.accuracy is None else f"{trial.accuracy:.1%}"
        losses = number(trial.held_out_loss), number(trial.spread), share, number(trial.loss)
        self.compared(trial.name, *losses, f"{trial.seconds:.1f}")

    def compared(self, name: str, loss: str, spread: str, share: str, trained_on: str, seconds: str) -> None:
        """A line of the table of trials."""
        assert self.configured is not None
        shown = [(loss, 9), (spread, 8)]
        if self.configured.accuracy is not None:
            shown.append((share, 7))
        if self.width >= NARROW:
            shown += [(trained_on, 10), (seconds, 6)]
        cells, widths = zip(*shown, strict=True)
        self.row(name, *cells, widths=widths)

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
