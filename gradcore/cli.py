"""The command line: `gradcore diagnose SOURCE` and `gradcore info`.

The exit status is 0 when done, 2 for invalid usage or input, which one line on standard error explains, and 130 after
Ctrl-C.
"""

import contextlib
import io
import os
import shutil
import stat
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from gradcore import __version__
from gradcore._base.files import json_text, write_atomically
from gradcore._base.threads import info as machine_info
from gradcore.data import SourceError
from gradcore.data.sources import SOURCES
from gradcore.diagnosis import parts
from gradcore.diagnosis.config import INITS, OPTIMIZERS, SUNSPOTS, Config, configure
from gradcore.diagnosis.pipeline import SAMPLES, study
from gradcore.diagnosis.wording import VERBS, growth, number, per_step
from gradcore.layers.cell import BY_NAME
from gradcore.training.monitor import SEVERITIES

if TYPE_CHECKING:
    import typer

__all__ = ["main"]

WIDTH = 80
SHOWN_FINDINGS = 4
STANDARD_OUTPUT = Path("-")
MISSING = 'the command line needs typer, rich and matplotlib: pip install "gradcore[cli]"'


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : list of str, optional
        The words after ``gradcore``; by default those of the process.

    Returns
    -------
    int
        The exit status.

    Examples
    --------
    >>> from gradcore.cli import main
    >>> main(["diagnose", "no such file.csv"])  # and a line on standard error
    2
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Write each line at once, into a pipe too; show a question mark for what cannot be encoded.
            stream.reconfigure(line_buffering=True, errors="replace")
    try:
        return _run(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader is gone
        return 1
    except MemoryError:
        return _fail("not enough memory: lower --hidden, --layers, --batch or --seq-len", 2)
    except (SourceError, ValueError, OSError) as error:
        return _fail(str(error), 2)


def _fail(message: str, status: int) -> int:
    print("gradcore:", " ".join(message.split()), file=sys.stderr)
    return status


def _run(argv: list[str]) -> int:
    try:
        import typer
    except ImportError:
        return _fail(MISSING, 2)
    try:
        job = _app()(argv or ["--help"], prog_name="gradcore", standalone_mode=False)
    except typer.Abort:
        raise KeyboardInterrupt from None
    except Exception as error:
        # Usage errors are click's, of which typer may have a copy of its own.
        if not any(kind.__name__ == "ClickException" for kind in type(error).__mro__):
            raise
        context, message = getattr(error, "ctx", None), error.format_message()  # type: ignore[attr-defined]
        where = context.command_path if context else "gradcore"
        return _fail(f"{message} ({where} --help shows the usage)", 2)
    if callable(job):  # --help and --version leave none
        job()
    return 0


def _app() -> "typer.Typer":
    """The commands. Each returns what is to be done, so that the parser's error handling does not see the work."""
    import typer

    app = typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    plain = Config("")
    cells, inits, optimizers = (", ".join(names) for names in (BY_NAME, INITS, OPTIMIZERS))
    start, gain_start = SUNSPOTS.values()
    as_json = Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write JSON; - writes it, and nothing else, to standard output.")
    ]

    def show_version(asked: bool) -> None:
        if asked:
            print(f"gradcore {__version__}")
            raise typer.Exit

    @app.callback()
    def gradcore(
        version: Annotated[
            bool, typer.Option("--version", help="Show the version.", callback=show_version, is_eager=True)
        ] = False,
    ) -> None:
        """Gradients of recurrent networks: forecast, measure, and stop them from exploding or vanishing."""

    @app.command()
    def diagnose(
        source: Annotated[
            str,
            typer.Argument(
                metavar="SOURCE",
                help=f"{', '.join(SOURCES)}; or a table (text, Parquet, xlsx, JSON lines, npy, npz), to forecast a "
                "column; or a text, to predict a character.",
            ),
        ],
        target: Annotated[
            str | None,
            typer.Option(metavar="COL", help="Column of a table to forecast: its name, or number from 0."),
        ] = None,
        inputs: Annotated[
            str | None,
            typer.Option(metavar="COL,COL", help="Columns to forecast from. By default the target's own past."),
        ] = None,
        time: Annotated[
            str | None, typer.Option(metavar="COL", help="Column to sort by. By default dates, if they go one way.")
        ] = None,
        group: Annotated[
            str | None, typer.Option(metavar="COL", help="Column whose values tell apart several series.")
        ] = None,
        missing: Annotated[
            str, typer.Option(metavar="HOW", help="Missing values: skip (their windows), error, or interpolate.")
        ] = plain.missing,
        na: Annotated[
            list[str] | None, typer.Option(metavar="VALUE", help="One more mark of a missing value; repeatable.")
        ] = None,
        delimiter: Annotated[
            str | None, typer.Option(metavar="C", help="Character between cells, or tab or space.")
        ] = None,
        decimal: Annotated[
            str | None, typer.Option(metavar="C", help="Sign before the fraction of a number: . or a comma.")
        ] = None,
        encoding: Annotated[str | None, typer.Option(metavar="NAME", help="Encoding of a text, as cp1252.")] = None,
        horizon: Annotated[
            int | None, typer.Option(help="Steps from a window to its target. By default 1, or 0 for a class.")
        ] = None,
        cell: Annotated[str, typer.Option(metavar="CELL", help=f"One of {cells}.")] = plain.cell,
        hidden: Annotated[int, typer.Option(help="Hidden units.")] = plain.hidden,
        layers: Annotated[int, typer.Option(help="Recurrent layers.")] = plain.layers,
        init: Annotated[
            str | None,
            typer.Option(
                metavar="INIT",
                help=f"How recurrent matrices start, one of {inits}: U(±1/√H), N(0, 1/H), random orthogonal, identity. "
                f"By default {start} with gain {gain_start} for an RNN on sunspots, so that its gradients explode.",
            ),
        ] = None,
        gain: Annotated[float | None, typer.Option(help="Factor on the recurrent matrices.")] = None,
        seq_len: Annotated[
            int | None,
            typer.Option(help="Steps of a sequence; for copy the delay. By default 50 for copy and files, else 100."),
        ] = None,
        batch: Annotated[int, typer.Option(help="Sequences in a batch.")] = plain.batch,
        steps: Annotated[int, typer.Option(help="Training steps of each trial.")] = plain.steps,
        lr: Annotated[float, typer.Option(help="Learning rate.")] = plain.lr,
        optimizer: Annotated[str, typer.Option(metavar="NAME", help=f"One of {optimizers}.")] = plain.optimizer,
        seed: Annotated[int, typer.Option(help="Seed of weights and batches.")] = plain.seed,
        out: Annotated[
            Path | None, typer.Option(metavar="DIR", help="Write figures and diagnosis.json to this folder.")
        ] = None,
        json: as_json = None,
    ) -> Callable[[], None]:
        """Forecast, measure, train, try remedies, and say what to do."""
        config = configure(
            source, target=target, cell=cell, hidden=hidden, layers=layers, init=init, gain=gain, seq_len=seq_len,
            batch=batch, steps=steps, lr=lr, optimizer=optimizer, seed=seed,
            inputs=tuple(inputs.split(",")) if inputs else None, time=time, group=group, missing=missing,
            na=tuple(na or ()), delimiter=delimiter, decimal=decimal, encoding=encoding, horizon=horizon,
        )  # fmt: skip
        return lambda: _diagnose(config, out, json)

    @app.command()
    def info(
        json: as_json = None,
    ) -> Callable[[], None]:
        """Show version, instruction set and threads."""
        return lambda: _info(json)

    return app


def _diagnose(config: Config, out: Path | None, json: Path | None) -> None:
    if out:
        _check_folder(out)
    with _json_file(json) as write:
        found = study(config, (lambda part: None) if json == STANDARD_OUTPUT else _Printer())
        if out:
            names = _write_folder(out, found)
            if json != STANDARD_OUTPUT:
                print(f"\nWrote {', '.join(names)} to {out}.")
        write(found.to_dict())


def _info(json: Path | None) -> None:
    with _json_file(json) as write:
        facts = machine_info()
        if json != STANDARD_OUTPUT:
            for name, value in facts.items():
                print(f"{name:12} {value}")
        write(facts)


# ---- files: whole or not at all --------------------------------------------------------------------------------------


def _check_folder(folder: Path) -> None:
    """Refuse before the work what could not be written after it."""
    if folder.exists() and not folder.is_dir():
        raise SourceError(f"--out {folder}: is a file, expected a folder")
    try:
        from matplotlib.figure import Figure  # noqa: F401
    except ImportError:
        raise SourceError(MISSING) from None
    with _temporary_folder(folder, "--out"):
        pass


@contextlib.contextmanager
def _json_file(path: Path | None) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that writes the JSON where it was asked for; the place is checked before the work."""
    if path is not None and path != STANDARD_OUTPUT:
        _check_file(path)

    def write(document: dict[str, Any]) -> None:
        text = json_text(document, indent=1) + "\n"
        if path == STANDARD_OUTPUT:
            sys.stdout.write(text)
        elif path is not None and _is_device(path):
            with path.open("a", encoding="utf-8") as file:
                file.write(text)
        elif path is not None:
            write_atomically(path, text.encode())

    yield write


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise SourceError(f"--json {path}: is a directory, expected a file")
    if not path.parent.is_dir():
        raise SourceError(f"--json {path}: there is no folder {path.parent}")
    if not _is_device(path):
        with _temporary_folder(path.parent, "--json"):
            pass


def _is_device(path: Path) -> bool:
    """A pipe, a terminal or a standard stream, which is written to and not replaced."""
    return path.absolute().is_relative_to("/dev") or (path.exists() and not stat.S_ISREG(path.stat().st_mode))


@contextlib.contextmanager
def _temporary_folder(near: Path, option: str) -> Iterator[Path]:
    """A folder on the file system of `near`, gone afterwards whatever happens."""
    existing = next(parent for parent in (near.absolute(), *near.absolute().parents) if parent.exists())
    try:
        folder = Path(tempfile.mkdtemp(prefix=".gradcore-", dir=existing))
    except OSError as error:
        raise SourceError(f"{option} {near}: cannot be written ({error.strerror})") from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_folder(folder: Path, found: parts.Study) -> list[str]:
    from gradcore.diagnosis.figures import figures

    with _temporary_folder(folder, "--out") as temporary:
        ready = temporary / "ready"
        ready.mkdir()
        for name, figure in figures(found).items():
            figure.savefig(ready / f"{name}.png")
        (ready / "diagnosis.json").write_text(json_text(found.to_dict(), indent=1) + "\n", encoding="utf-8")
        names = sorted(file.name for file in ready.iterdir())
        if folder.exists():
            for name in names:
                os.replace(ready / name, folder / name)
        else:
            folder.parent.mkdir(parents=True, exist_ok=True)
            os.rename(ready, folder)
    return names


# ---- text ------------------------------------------------------------------------------------------------------------


class _Printer:
    """Print each part of a study as it comes."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
        self.configured: parts.Trial | None = None
        self.forecast: parts.TimeForecast | None = None
        self.comparing = False  # whether the table of trials has begun
        self.show: dict[type, Callable[[Any], None]] = {
            parts.Start: self.start,
            parts.TimeForecast: self.show_forecast,
            parts.Measurement: self.measurement,
            parts.Comparison: self.comparison,
            parts.Trial: self.trial,
            parts.ClipThresholds: self.thresholds,
            parts.Suggestions: self.suggestions,
            parts.Outcome: self.outcome,
        }

    def __call__(self, part: Any) -> None:
        self.show[type(part)](part)

    def head(self, text: str) -> None:
        self.console.print(f"\n{text}", style="bold")

    def text(self, text: str, indent: int = 2) -> None:
        lead = " " * indent
        hang = lead + "  " * text.startswith("- ")
        self.console.print(textwrap.fill(text, WIDTH, initial_indent=lead, subsequent_indent=hang))

    def start(self, start: parts.Start) -> None:
        config = start.config
        self.console.print(f"gradcore {start.machine['version']}: {start.task}", style="bold")
        layers = f", {config.layers} layers" if config.layers > 1 else ""
        self.text(
            f"{config.cell.upper()} of {config.hidden} units{layers}, {start.n_parameters} parameters, with "
            f"{config.init} recurrent weights of gain {number(config.gain)}; {start.steps_back + 1} steps a sequence, "
            f"{config.batch} sequences a batch, {config.optimizer} at {number(config.lr)}, {config.steps} steps, seed "
            f"{config.seed}."
        )
        if config.source == "sunspots" and {"init": config.init, "gain": config.gain} == SUNSPOTS:
            self.text("This default is chosen to explode; use --init default for a well-behaved start.")

    def show_forecast(self, forecast: parts.TimeForecast) -> None:
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

    def measurement(self, measurement: parts.Measurement) -> None:
        assert self.forecast is not None
        self.head("2. Measurement: |dL/dh_t| for the loss of the last step")
        T = measurement.norms.shape[1]
        shown = sorted({round(i * (T - 1) / 6) for i in range(7)})
        print(f"  {'time step':22}" + "".join(f"{t:>8}" for t in shown))
        for name, row, curve in zip(measurement.names, measurement.norms, self.forecast.curves, strict=True):
            for kind, norms in (("measured", row), ("forecast", row[-1] * curve)):
                print(f"  {f'{name}, {kind}':22}" + "".join(f"{number(norms[t]):>8}" for t in shown))
        change = growth(measurement.rate, measurement.factor, self.forecast.horizon)
        self.text(
            f"On its way back the gradient {VERBS[measurement.verdict]}: it changes by {change} (forecast "
            f"{per_step(self.forecast.rate)} a step)."
        )

    def comparison(self, comparison: parts.Comparison) -> None:
        stack = len(comparison.layers) > 1  # else no layer's gradient arrives in another
        above = f" {'with above':>12}" if stack else ""
        print(f"  {'rate, ln per step':22} {'predicted':>12} {'at most':>12}{above} {'measured':>12}")
        for layer in comparison.layers:
            above = f" {layer.with_above:12.4f}" if stack else ""
            print(f"  {layer.name:22} {layer.predicted:12.4f} {layer.upper_bound:12.4f}{above} {layer.measured:12.4f}")

    def trial(self, trial: parts.Trial) -> None:
        if self.configured is None:
            self.configured = trial
            self.head("3. Training as configured")
            self.text(
                f"The loss ends at {number(trial.loss)} (mean of the last tenth), after norms of up to "
                f"{number(trial.largest_norm)}; {trial.nonfinite_steps} of {len(trial.history)} steps were not finite; "
                f"{trial.seconds:.1f} s."
            )
            findings = sorted(trial.findings, key=lambda finding: SEVERITIES.index(finding.severity))
            for finding in findings[:SHOWN_FINDINGS]:
                self.text(f"- {finding}")
            if len(findings) > SHOWN_FINDINGS:
                self.text(f"- {len(findings) - SHOWN_FINDINGS} more findings are in the JSON.")
        else:
            if not self.comparing:
                self.comparing = True
                print(f"  {'trial':29} {'loss':>9} {'largest norm':>12} {'clipped':>7} {'not finite':>10} {'s':>6}")
                self.row(self.configured)
            self.row(trial)

    def row(self, trial: parts.Trial) -> None:
        print(
            f"  {trial.name[:29]:29} {number(trial.loss):>9} {number(trial.largest_norm):>12} "
            f"{trial.clipped_steps:7} {trial.nonfinite_steps:10} {trial.seconds:6.1f}",
            flush=True,
        )

    def thresholds(self, thresholds: parts.ClipThresholds) -> None:
        self.head("4. Thresholds and remedies")
        low, middle, high = map(number, thresholds.norm_quantiles)
        self.text(
            f"Clip the norm at {number(thresholds.max_norm)}: {thresholds.reason} (first {thresholds.steps_seen} "
            f"steps: median {middle}, 5 % to 95 % {low} to {high}, output layer {number(thresholds.output_norm)}). "
            f"Clip each time step at {number(thresholds.step_clip)}: the norm with which a sequence's gradient enters "
            f"at its last step."
        )

    def suggestions(self, suggestions: parts.Suggestions) -> None:
        assert self.forecast is not None
        for suggestion in suggestions.tried:
            change = growth(suggestion.predicted, suggestion.factor, self.forecast.horizon)
            self.text(
                f"- Suggested: {suggestion.name}, {suggestion.reason}. Forecast: the gradient "
                f"{VERBS[suggestion.verdict]}, {change} (measured: {per_step(suggestion.measured)} a step)."
            )
        for reason in suggestions.missing:
            self.text(f"- {reason}")

    def outcome(self, outcome: parts.Outcome) -> None:
        self.head("5. Verdict")
        self.text(outcome.finding)
        self.text(outcome.advice)
        self.head("Python")
        self.console.print(outcome.python)
