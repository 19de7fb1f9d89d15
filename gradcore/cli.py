"""The command line: `gradcore diagnose SOURCE` and `gradcore info`.

Exit status 0 when done, 2 for bad usage or input with one line on standard error, 130 after Ctrl-C.
"""

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
from gradcore.monitor import SEVERITIES
from gradcore.tasks import TASKS, SourceError

if TYPE_CHECKING:
    import typer

WIDTH = 80
SHOWN_FINDINGS = 4
MISSING = 'the command line needs typer, rich and matplotlib: pip install "gradcore[cli]"'


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without × shows a question mark
    try:
        return _run(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  the reader has gone: nothing more to say
        return 0
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
    (usage_error,) = (kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
    try:
        return int(_app()(argv, prog_name="gradcore", standalone_mode=False) or 0)
    except typer.Abort:
        raise KeyboardInterrupt from None
    except usage_error as error:
        context = getattr(error, "ctx", None)
        where = context.command_path if context else "gradcore"
        return _fail(f"{error.format_message()} ({where} --help shows the usage)", 2)


def _app() -> "typer.Typer":
    import typer

    app = typer.Typer(
        add_completion=False,
        no_args_is_help=False,
        pretty_exceptions_enable=False,
        help="Gradients of recurrent networks: forecast, measure, and stop them from exploding or vanishing.",
    )
    later = "depends on SOURCE"
    cells, inits, optimizers = ("|".join(names) for names in (work.CELLS, work.INITS, work.OPTIMIZERS))
    plain = work.Config("")

    @app.command()
    def diagnose(
        source: Annotated[
            str,
            typer.Argument(
                metavar="SOURCE",
                help=f"{', '.join(TASKS)}; or a .csv file (forecast the next value); or a text (predict the next character).",
            ),
        ],
        column: Annotated[str | None, typer.Option(help="Column of a CSV file: name, or number from 0 [last].")] = None,
        cell: Annotated[str, typer.Option(metavar=cells, help="Recurrent cell.")] = plain.cell,
        hidden: Annotated[int, typer.Option(help="Hidden units.")] = plain.hidden,
        layers: Annotated[int, typer.Option(help="Recurrent layers.")] = plain.layers,
        init: Annotated[
            str | None,
            typer.Option(
                metavar=inits,
                help="Recurrent matrices: default U(±1/√H); normal N(0, 1/H); random orthogonal; identity. "
                "For sunspots normal with gain 1.8, a start that explodes; else default.",
            ),
        ] = None,
        gain: Annotated[float | None, typer.Option(help="Factor on the recurrent matrices [1].")] = None,
        seq_len: Annotated[int | None, typer.Option(help=f"Steps of a sequence; for copy the delay [{later}].")] = None,
        batch: Annotated[int, typer.Option(help="Sequences in a batch.")] = plain.batch,
        steps: Annotated[int, typer.Option(help="Training steps of each trial.")] = plain.steps,
        lr: Annotated[float, typer.Option(help="Learning rate.")] = plain.lr,
        optimizer: Annotated[str, typer.Option(metavar=optimizers, help="Optimizer.")] = plain.optimizer,
        seed: Annotated[int, typer.Option(help="Of weights and batches.")] = plain.seed,
        out: Annotated[Path | None, typer.Option(metavar="DIR", help="Write figures and diagnosis.json here.")] = None,
        json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the diagnosis as JSON here.")] = None,
    ) -> None:
        """Forecast, measure, train, try remedies, and say what to do."""
        config = work.configure(
            source, column=column, cell=cell, hidden=hidden, layers=layers, init=init, gain=gain, seq_len=seq_len,
            batch=batch, steps=steps, lr=lr, optimizer=optimizer, seed=seed,
        )  # fmt: skip
        if out:
            _check_folder(out)
        if json:
            _check_file(json)
        diagnosis = work.diagnose(config, _Printer())
        if out:
            _write_folder(out, diagnosis)
        if json:
            _write_json(json, diagnosis.to_dict())

    @app.command()
    def info(
        json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write it as JSON here.")] = None,
    ) -> None:
        """Show version, instruction set and threads."""
        facts = machine_info()
        if json:
            _check_file(json)
            _write_json(json, facts)
        for name, value in facts.items():
            print(f"{name:12} {value}")

    return app


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
    """A pipe or a terminal, which is written to and not replaced."""
    return path.exists() and not stat.S_ISREG(path.stat().st_mode)


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
        for name, figure in figures(diagnosis).items():
            figure.savefig(temporary / f"{name}.png")
        (temporary / "diagnosis.json").write_text(json_text(diagnosis.to_dict(), indent=1) + "\n", encoding="utf-8")
        folder.mkdir(parents=True, exist_ok=True)
        for file in sorted(temporary.iterdir()):
            os.replace(file, folder / file.name)
            print(f"wrote {folder / file.name}")


def _write_json(path: Path, document: dict[str, Any]) -> None:
    text = json_text(document, indent=1) + "\n"
    if _is_device(path):
        path.write_text(text, encoding="utf-8")
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
        self.show: dict[type, Callable[[Any], None]] = {
            work.Start: self.start,
            work.Forecast: self.show_forecast,
            work.Measurement: self.measurement,
            work.Trial: self.trial,
            work.Threshold: self.threshold,
            work.Verdict: self.verdict,
        }

    def __call__(self, part: Any) -> None:
        self.show[type(part)](part)

    def head(self, text: str) -> None:
        self.console.print(f"\n{text}", style="bold")

    def text(self, text: str, indent: int = 2) -> None:
        lead = " " * indent
        self.console.print(textwrap.fill(text, WIDTH, initial_indent=lead, subsequent_indent=lead))

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
        if config.source == "sunspots" and (config.init, config.gain) == tuple(work.SUNSPOTS.values()):
            self.text("This start is the default for sunspots, chosen so that the gradients explode; --init default is tame.")

    def show_forecast(self, forecast: work.Forecast) -> None:
        self.forecast = forecast
        self.head("1. Forecast, from the weights and the states they lead through")
        print(f"  {'matrix':24} {'spectral radius':>16} {'spectral norm':>16}")
        for matrix in forecast.matrices:
            print(f"  {matrix.name:24} {matrix.radius:16.4g} {matrix.norm:16.4g}")
        for condition in forecast.conditions:
            sign = ">" if condition.of == "explodes" else "<"
            state = "holds" if condition.holds else "does not hold"
            purpose = {"explodes": "explosion", "vanishes": "vanishing"}[condition.of]
            role = "telling in the long run" if condition.kind == "asymptotic" else condition.kind
            self.text(f"- {condition.name} {sign} {condition.limit:g}: {state} ({condition.value:.4g}); {role} for {purpose}.")
            self.text(condition.meaning, 4)
        self.text(
            f"Along {work.SAMPLES} real sequences a gradient should change by a factor of {math.exp(forecast.rate):.4f} a "
            f"step: it {_word(forecast.verdict)}, {forecast.factor:.3g} over the sequence."
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
        for i, (measured, forecast) in enumerate(zip(measurement.rates, self.forecast.rates, strict=True)):
            self.text(f"Layer {i}: a factor of {math.exp(measured):.4f} a step (forecast {math.exp(forecast):.4f}).")
        self.text(f"The gradient {_word(measurement.verdict)}: {measurement.factor:.3g} over the sequence.")

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
            self.row(trial)

    def row(self, trial: work.Trial) -> None:
        print(
            f"  {trial.name[:30]:30} {trial.loss:9.4g} {trial.largest_norm:12.3g} {trial.clipped_steps:7} "
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
        print(f"  {'trial':30} {'loss':>9} {'largest norm':>12} {'clipped':>7} {'not finite':>10} {'s':>6}")
        self.row(self.configured)

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
