"""The command line: `gradcore diagnose SOURCE`, `gradcore watch RUN`, `gradcore dashboard RUN` and `gradcore info`.

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
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from gradcore import __version__
from gradcore._base.files import json_text, write_atomically
from gradcore._base.threads import info as machine_info
from gradcore.data import SourceError
from gradcore.data.sources import SOURCES
from gradcore.diagnosis import Study
from gradcore.diagnosis.config import INITS, OPTIMIZERS, SUNSPOTS, Config, configure, split_model, task_of
from gradcore.diagnosis.pipeline import study
from gradcore.diagnosis.text import Printer
from gradcore.layers.cell import BY_NAME
from gradcore.training.live import JSONLines

if TYPE_CHECKING:
    import typer

__all__ = ["main"]

STANDARD_OUTPUT = Path("-")
MISSING = 'the command line needs typer, rich, matplotlib and bokeh: pip install "gradcore[cli]"'


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
    except OwnError as error:
        print(f"gradcore: the model raised\n{error}", file=sys.stderr, end="")
        return 2
    except (SourceError, TypeError, ValueError, OSError) as error:
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

    def read_config(context: typer.Context, path: Path | None) -> Path | None:
        if path is not None:
            known = {str(parameter.name) for parameter in context.command.params} - {"config"}
            context.default_map = _options_in(path, known)
        return path

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
        period: Annotated[
            int | None, typer.Option(help="Steps after which a series repeats itself. By default what it shows.")
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
        seeds: Annotated[int, typer.Option(help="Number of seeds that each trial starts from.")] = plain.seeds,
        out: Annotated[
            Path | None,
            typer.Option(metavar="DIR", help="Write report.html, figures and diagnosis.json to this folder."),
        ] = None,
        json: as_json = None,
        model: Annotated[
            str | None,
            typer.Option(
                metavar="FILE.py:NAME",
                help="A model of your own: NAME(task, rng) returns it. The options of layers have no effect then.",
            ),
        ] = None,
        config: Annotated[
            Path | None,
            typer.Option(
                metavar="FILE.toml",
                help="Options by name, such as seq_len = 30; those of the command line count more.",
                callback=read_config,
                is_eager=True,
            ),
        ] = None,
        live: Annotated[
            Path | None,
            typer.Option(metavar="FILE", help="Write the trials' steps while they are trained, for gradcore watch."),
        ] = None,
    ) -> Callable[[], None]:
        """Forecast, measure, train, try remedies, and say what to do."""
        what = configure(
            source, target=target, cell=cell, hidden=hidden, layers=layers, init=init, gain=gain, seq_len=seq_len,
            batch=batch, steps=steps, lr=lr, optimizer=optimizer, seed=seed,
            seeds=seeds, model=model,
            inputs=tuple(inputs.split(",")) if inputs else None, time=time, group=group, missing=missing,
            na=tuple(na or ()), delimiter=delimiter, decimal=decimal, encoding=encoding, horizon=horizon,
            period=period,
        )  # fmt: skip
        return lambda: _diagnose(what, out, json, live)

    run_file = Annotated[Path, typer.Argument(metavar="RUN.jsonl", help="What JSONLines or --live writes.")]

    @app.command()
    def watch(
        run: run_file,
        once: Annotated[bool, typer.Option("--once", help="Show the present state, and end.")] = False,
    ) -> Callable[[], None]:
        """Show a training run in the terminal while it goes on."""
        return lambda: _watch(run, once)

    @app.command()
    def dashboard(
        run: run_file,
        port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 for any that is free.")] = 5006,
    ) -> Callable[[], None]:
        """Show a training run in the browser while it goes on."""
        return lambda: _dashboard(run, port)

    @app.command()
    def info(
        json: as_json = None,
    ) -> Callable[[], None]:
        """Show version, instruction set and threads."""
        return lambda: _info(json)

    return app


def _options_in(path: Path, known: set[str]) -> dict[str, Any]:
    """The options of a TOML file, each of which is one of the command line's."""
    if sys.version_info < (3, 11):
        raise SourceError("--config: needs Python 3.11 or later")
    import tomllib

    try:
        given = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise SourceError(f"--config {path}: no such file") from None
    except (OSError, UnicodeError, tomllib.TOMLDecodeError) as error:
        raise SourceError(f"--config {path}: {error}") from None
    options = {name.replace("-", "_"): value for name, value in given.items()}
    for name in options:
        if name not in known:
            wanted = ", ".join(sorted(known))
            raise SourceError(f"--config {path}: expected options of the command line ({wanted}), got {name!r}")
    return options


def _diagnose(config: Config, out: Path | None, json: Path | None, live: Path | None) -> None:
    if out:
        _check_folder(out)
    with _json_file(json) as write, _live(live, config, json) as log:
        with _own_frames(config.model):
            found = study(config, (lambda part: None) if json == STANDARD_OUTPUT else Printer(), log)
        if out:
            names = _write_folder(out, found)
            if json != STANDARD_OUTPUT:
                print(f"\nWrote {', '.join(names)} to {out}.")
        write(found.to_dict())


class OwnError(Exception):
    """What a model of the user's own raised, with the frames from its file on."""


@contextlib.contextmanager
def _own_frames(model: str | None) -> Iterator[None]:
    """Show the user's part of the traceback if an error comes from the file of the model."""
    try:
        yield
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        file = split_model(model)[0] if model else None
        own = [i for i, frame in enumerate(frames) if frame.filename == file]
        if not own:
            raise
        lines = [*traceback.format_list(frames[own[0] :]), *traceback.format_exception_only(error)]
        raise OwnError("".join(lines)) from None


@contextlib.contextmanager
def _live(path: Path | None, config: Config, json: Path | None) -> Iterator[JSONLines | None]:
    """Where the trials' steps are written, if they are. What was there is gone once the source has been read."""
    if path is None:
        yield None
        return
    if path.is_dir():
        raise SourceError(f"--live {path}: is a directory, expected a file")
    for other, what in ((config.source, "is the source"), (json, "is what --json writes")):
        if other is not None and os.path.realpath(path) == os.path.realpath(other):
            raise SourceError(f"--live {path}: {what}")
    task_of(config)
    try:
        log = JSONLines(path)
    except OSError as error:
        raise SourceError(f"--live {path}: cannot be written ({error.strerror})") from None
    with log:
        yield log


def _watch(run: Path, once: bool) -> None:
    from gradcore.viewer.terminal import watch

    _check_run(run)
    watch(run, once=once)


def _dashboard(run: Path, port: int) -> None:
    from gradcore.viewer.dashboard import serve

    _check_run(run)
    serve(run, port)


def _check_run(run: Path) -> None:
    """Refuse what can never become a run; a file that is not there yet can."""
    if run.is_dir():
        raise SourceError(f"{run}: is a directory, expected a file")
    if not run.parent.is_dir():
        raise SourceError(f"{run}: there is no folder {run.parent}")
    if _is_device(run):
        raise SourceError(f"{run}: is a device; expected a file")


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
        import bokeh.plotting  # noqa: F401
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


def _write_folder(folder: Path, found: Study) -> list[str]:
    from gradcore.diagnosis.figures import figures

    with _temporary_folder(folder, "--out") as temporary:
        ready = temporary / "ready"
        ready.mkdir()
        for name, figure in figures(found).items():
            figure.savefig(ready / f"{name}.png")
        found.to_html(ready / "report.html")
        (ready / "diagnosis.json").write_text(json_text(found.to_dict(), indent=1) + "\n", encoding="utf-8")
        names = sorted(file.name for file in ready.iterdir())
        if folder.exists():
            for name in names:
                os.replace(ready / name, folder / name)
        else:
            folder.parent.mkdir(parents=True, exist_ok=True)
            os.rename(ready, folder)
    return names
