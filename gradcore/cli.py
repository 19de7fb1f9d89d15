"""The command line: `gradcore diagnose SOURCE` and `gradcore info`.

Exit status 0 when done, 2 for bad usage or input with one line on standard error, 130 after Ctrl-C.
"""

import io
import math
import os
import shutil
import stat
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from gradcore import diagnose as work
from gradcore._files import json_text, write_atomically
from gradcore._threads import info as machine_info
from gradcore.data import SourceError
from gradcore.data.sources import SOURCES
from gradcore.monitor import SEVERITIES

if TYPE_CHECKING:
    import typer

WIDTH = 80
SHOWN_FINDINGS = 4
MISSING = 'the command line needs typer, rich and matplotlib: pip install "gradcore[cli]"'


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Each line as it comes, through a pipe too; where a character cannot be shown, a question mark.
            stream.reconfigure(line_buffering=True, errors="replace")
    try:
        return _run(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has gone: nothing more to say
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
        job = _app()(argv, prog_name="gradcore", standalone_mode=False)
    except typer.Abort:
        raise KeyboardInterrupt from None
    except Exception as error:
        # Usage errors are click's, which typer carries under one name or another.
        if not any(kind.__name__ == "ClickException" for kind in type(error).__mro__):
            raise
        context, message = getattr(error, "ctx", None), error.format_message()  # type: ignore[attr-defined]
        where = context.command_path if context else "gradcore"
        return _fail(f"{message} ({where} --help shows the usage)", 2)
    if callable(job):  # --help leaves none
        job()
    return 0


def _app() -> "typer.Typer":
    """The commands. Each returns what is to be done, so that the work runs outside of the parser's error handling."""
    import typer

    app = typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        help="Gradients of recurrent networks: forecast, measure, and stop them from exploding or vanishing.",
    )
    plain = work.Config("")
    cells, inits, optimizers = (", ".join(names) for names in (work.CELLS, work.INITS, work.OPTIMIZERS))
    start, gain_start = work.SUNSPOTS.values()

    @app.command()
    def diagnose(
        source: Annotated[
            str,
            typer.Argument(
                metavar="SOURCE",
                help=f"{', '.join(SOURCES)}; or a .csv file, to forecast a value; or a text, to predict a character.",
            ),
        ],
        target: Annotated[
            str | None,
            typer.Option(metavar="COL", help="Column of a table to forecast: its name, or number from 0."),
        ] = None,
        cell: Annotated[str, typer.Option(metavar="CELL", help=f"One of {cells}.")] = plain.cell,
        hidden: Annotated[int, typer.Option(help="Hidden units.")] = plain.hidden,
        layers: Annotated[int, typer.Option(help="Recurrent layers.")] = plain.layers,
        init: Annotated[
            str | None,
            typer.Option(
                metavar="INIT",
                help=f"How recurrent matrices start, one of {inits}: U(±1/√H), N(0, 1/H), random orthogonal, identity. "
                f"An RNN on sunspots: {start} with gain {gain_start}, so that its gradients explode; else default.",
            ),
        ] = None,
        gain: Annotated[float | None, typer.Option(help="Factor on the recurrent matrices.")] = None,
        seq_len: Annotated[
            int | None,
            typer.Option(
                help="Steps of a sequence; for copy the delay. 100 for the other tasks, 50 for copy and files."
            ),
        ] = None,
        batch: Annotated[int, typer.Option(help="Sequences in a batch.")] = plain.batch,
        steps: Annotated[int, typer.Option(help="Training steps of each trial.")] = plain.steps,
        lr: Annotated[float, typer.Option(help="Learning rate.")] = plain.lr,
        optimizer: Annotated[str, typer.Option(metavar="NAME", help=f"One of {optimizers}.")] = plain.optimizer,
        seed: Annotated[int, typer.Option(help="Of weights and batches.")] = plain.seed,
        out: Annotated[
            Path | None, typer.Option(metavar="DIR", help="Write figures and diagnosis.json into this folder.")
        ] = None,
        json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the diagnosis as JSON.")] = None,
    ) -> Callable[[], None]:
        """Forecast, measure, train, try remedies, and say what to do."""
        config = work.configure(
            source, target=target, cell=cell, hidden=hidden, layers=layers, init=init, gain=gain, seq_len=seq_len,
            batch=batch, steps=steps, lr=lr, optimizer=optimizer, seed=seed,
        )  # fmt: skip
        return lambda: _diagnose(config, out, json)

    @app.command()
    def info(
        json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write it as JSON here.")] = None,
    ) -> Callable[[], None]:
        """Show version, instruction set and threads."""
        return lambda: _info(json)

    return app


def _diagnose(config: work.Config, out: Path | None, json: Path | None) -> None:
    if out:
        _check_folder(out)
    if json:
        _check_file(json)
    diagnosis = work.diagnose(config, _Printer())
    if out:
        _write_folder(out, diagnosis)
    if json:
        _write_json(json, diagnosis.to_dict())


def _info(json: Path | None) -> None:
    if json:
        _check_file(json)
    facts = machine_info()
    for name, value in facts.items():
        print(f"{name:12} {value}")
    if json:
        _write_json(json, facts)


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


@contextmanager
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


def _write_folder(folder: Path, diagnosis: work.Diagnosis) -> None:
    from gradcore.report import figures

    with _temporary_folder(folder, "--out") as temporary:
        ready = temporary / "ready"
        ready.mkdir()
        for name, figure in figures(diagnosis).items():
            figure.savefig(ready / f"{name}.png")
        (ready / "diagnosis.json").write_text(json_text(diagnosis.to_dict(), indent=1) + "\n", encoding="utf-8")
        names = sorted(file.name for file in ready.iterdir())
        if folder.exists():
            for name in names:
                os.replace(ready / name, folder / name)
        else:
            folder.parent.mkdir(parents=True, exist_ok=True)
            os.rename(ready, folder)
    print(f"\nWrote {', '.join(names)} to {folder}.")


def _write_json(path: Path, document: dict[str, Any]) -> None:
    text = json_text(document, indent=1) + "\n"
    if _is_device(path):
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    else:
        write_atomically(path, text.encode())


# ---- text ------------------------------------------------------------------------------------------------------------


class _Printer:
    """Prints every part of a diagnosis as it comes."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
        self.configured: work.Trial | None = None
        self.forecast: work.Forecast | None = None
        self.comparing = False  # whether the table of trials has begun
        self.show: dict[type, Callable[[Any], None]] = {
            work.Start: self.start,
            work.Forecast: self.show_forecast,
            work.Measurement: self.measurement,
            work.Comparison: self.comparison,
            work.Trial: self.trial,
            work.Threshold: self.threshold,
            work.Suggestions: self.suggestions,
            work.Verdict: self.verdict,
        }

    def __call__(self, part: Any) -> None:
        self.show[type(part)](part)

    def head(self, text: str) -> None:
        self.console.print(f"\n{text}", style="bold")

    def text(self, text: str, indent: int = 2) -> None:
        lead = " " * indent
        hang = lead + "  " * text.startswith("- ")
        self.console.print(textwrap.fill(text, WIDTH, initial_indent=lead, subsequent_indent=hang))

    def start(self, start: work.Start) -> None:
        config = start.config
        self.console.print(f"gradcore {start.machine['version']}: {start.task}", style="bold")
        layers = f", {config.layers} layers" if config.layers > 1 else ""
        self.text(
            f"{config.cell.upper()} of {config.hidden} units{layers}, {start.n_parameters} parameters, started with "
            f"{config.init} recurrent weights of gain {config.gain:g}; {start.steps_back + 1} steps a sequence, "
            f"{config.batch} sequences a batch, {config.optimizer} at {config.lr:g}, {config.steps} steps, seed "
            f"{config.seed}."
        )
        if config.source == "sunspots" and {"init": config.init, "gain": config.gain} == work.SUNSPOTS:
            self.text("That start is the default here, chosen so that the gradients explode; --init default is tame.")

    def show_forecast(self, forecast: work.Forecast) -> None:
        self.forecast = forecast
        self.head("1. Forecast, from the weights and the states they lead through")
        print(f"  {'matrix':24} {'spectral radius':>16} {'spectral norm':>16}")
        for matrix in forecast.matrices:
            print(f"  {matrix.name:24} {matrix.radius:16.4g} {matrix.norm:16.4g}")
        print(f"  {'Lyapunov exponents':24} {'largest, ln/step':>16} {'above 0':>16} {'dimension':>16}")
        for i, found in enumerate(forecast.spectra):
            above = f"{int((found.exponents > 0).sum())} of {len(found.exponents)}"
            print(f"  {f'layer {i}':24} {found.largest:16.4g} {above:>16} {found.filled:>16}")
        for condition in forecast.conditions:
            sign = ">" if condition.of == "explodes" else "<"
            state = "holds" if condition.holds else "does not hold"
            purpose = {"explodes": "explosion", "vanishes": "vanishing"}[condition.of]
            role = "telling in the long run" if condition.kind == "asymptotic" else condition.kind
            self.text(
                f"- {condition.name} {sign} {condition.limit:g}: {state} ({condition.value:.4g}); {role} for {purpose}."
            )
            self.text(condition.meaning, 4)
        self.text(
            f"Along {work.SAMPLES} real sequences a gradient should change by a factor of "
            f"{math.exp(forecast.rate):.4f} a step: it {_word(forecast.verdict)}, {forecast.factor:.3g} over the "
            f"sequence."
        )

    def measurement(self, measurement: work.Measurement) -> None:
        assert self.forecast is not None
        self.head("2. Measurement: |dL/dh_t| behind the loss of the last step")
        T = measurement.norms.shape[1]
        shown = sorted({round(i * (T - 1) / 6) for i in range(7)})
        print(f"  {'time step':22}" + "".join(f"{t:>8}" for t in shown))
        for i, row in enumerate(measurement.norms):
            print(f"  {f'layer {i}, measured':22}" + "".join(f"{row[t]:8.1e}" for t in shown))
            expected = row[-1] * self.forecast.curves[i]
            print(f"  {f'layer {i}, forecast':22}" + "".join(f"{expected[t]:8.1e}" for t in shown))
        self.text(
            f"On its way back the gradient changes by a factor of {math.exp(measurement.rate):.4f} a step (forecast "
            f"{math.exp(self.forecast.rate):.4f}): it {_word(measurement.verdict)}, {measurement.factor:.3g} over the "
            f"sequence."
        )

    def comparison(self, comparison: work.Comparison) -> None:
        stack = len(comparison.layers) > 1  # else no layer's gradient arrives in another
        above = f" {'with above':>12}" if stack else ""
        print(f"  {'rate, ln per step':22} {'predicted':>12} {'at most':>12}{above} {'measured':>12}")
        for i, layer in enumerate(comparison.layers):
            above = f" {layer.with_above:12.4f}" if stack else ""
            print(
                f"  {f'layer {i}':22} {layer.predicted:12.4f} {layer.upper_bound:12.4f}{above} {layer.measured:12.4f}"
            )

    def trial(self, trial: work.Trial) -> None:
        if self.configured is None:
            self.configured = trial
            self.head("3. Training as configured")
            self.text(
                f"Loss {trial.loss:.4g} at the end (mean of the last tenth), norms of up to {trial.largest_norm:.3g}, "
                f"{trial.nonfinite_steps} of {trial.config.steps} steps not finite, {trial.seconds:.1f} s."
            )
            findings = sorted(trial.findings, key=lambda finding: SEVERITIES.index(finding.severity))
            for finding in findings[:SHOWN_FINDINGS]:
                self.text(f"- {finding}")
            if len(findings) > SHOWN_FINDINGS:
                self.text(f"- and {len(findings) - SHOWN_FINDINGS} findings more, in the JSON.")
        else:
            if not self.comparing:
                self.comparing = True
                print(f"  {'trial':29} {'loss':>9} {'largest norm':>12} {'clipped':>7} {'not finite':>10} {'s':>6}")
                self.row(self.configured)
            self.row(trial)

    def row(self, trial: work.Trial) -> None:
        print(
            f"  {trial.name[:29]:29} {trial.loss:9.4g} {trial.largest_norm:12.3g} {trial.clipped_steps:7} "
            f"{trial.nonfinite_steps:10} {trial.seconds:6.1f}",
            flush=True,
        )

    def threshold(self, threshold: work.Threshold) -> None:
        assert self.configured is not None
        self.head("4. Threshold and remedies")
        low, middle, high = threshold.norm_quantiles
        self.text(
            f"Clip the norm at {threshold.max_norm:g}: {threshold.reason} (first {threshold.steps_seen} steps: median "
            f"{middle:.3g}, 5 % to 95 % {low:.3g} to {high:.3g}, output layer {threshold.output_norm:.3g}). Clip each "
            f"time step at {threshold.step_clip:g}: the norm with which a sequence's gradient enters at its last step."
        )

    def suggestions(self, suggestions: work.Suggestions) -> None:
        for suggestion in suggestions.tried:
            self.text(
                f"- Suggested: {suggestion.name}, {suggestion.reason}. Rate predicted {suggestion.predicted:.4f}, "
                f"measured {suggestion.measured:.4f}, ln per step."
            )
        for reason in suggestions.missing:
            self.text(f"- {reason}")

    def verdict(self, verdict: work.Verdict) -> None:
        self.head("5. Verdict")
        self.text(verdict.finding)
        self.text(verdict.advice)
        self.head("Python")
        self.console.print(verdict.python)


def _word(verdict: str) -> str:
    return {"explodes": "explodes", "vanishes": "vanishes", "stable": "is stable"}[verdict]


if __name__ == "__main__":
    sys.exit(main())
