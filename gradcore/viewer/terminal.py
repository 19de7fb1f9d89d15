"""Show a run in the terminal."""

from __future__ import annotations

import math
import shutil
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gradcore.viewer.curve import Curve, merged_in_groups
from gradcore.viewer.follow import Follower, Run, Trial

__all__: list[str] = []  # for the package only

INTERVAL = 0.25  # seconds between two looks at the file
SILENT = 10.0  # seconds without a new line from which they are mentioned
BLOCKS, PLAIN_BLOCKS = "▁▂▃▄▅▆▇█", "_.:-=+*#"
STYLES = {"critical": "bold red", "high": "red", "moderate": "yellow", "info": "dim"}
STATUS = {"ended": "ended", "interrupted": "interrupted by Ctrl-C", "failed": "failed", "running": "running"}
MISSING = 'a run in the terminal needs rich: pip install "gradcore[cli]"'
NARROWEST = 30
MOST_LAYERS = 12
MOST_TRIALS = 12

Line = tuple[str, str]  # its text and its style


def watch(path: Path, *, once: bool = False) -> None:
    """Show the present state, or follow the run until it ends: as it goes on in a terminal, at the end in a pipe."""
    follower = Follower(path)
    if once or not sys.stdout.isatty():
        _poll_all(follower)
        if once and not follower.exists:
            raise FileNotFoundError(f"{path}: no such file")
        if not follower.exists:
            print(f"gradcore: waiting for {path}", file=sys.stderr)
        while not (once or follower.run.ended):
            time.sleep(INTERVAL)
            _poll_all(follower)
        _print(follower)
    else:
        _follow(follower)


def _poll_all(follower: Follower) -> None:
    _poll(follower)
    while follower.behind:
        _poll(follower)


def _poll(follower: Follower) -> bool:
    changed = follower.poll()
    run = follower.run
    if run.problem:
        raise ValueError(f"{follower.path}: {run.problem}")
    if run.n_damaged > 10 and not run.n_lines:
        raise ValueError(f"{follower.path}: not the lines of a gradcore run")
    return changed


def _follow(follower: Follower) -> None:
    """Draw the state anew whenever it changes, and at least once a second."""
    try:
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text
    except ImportError:
        raise ValueError(MISSING) from None
    console = Console()
    drawn = -math.inf

    def picture() -> Any:
        rows = lines(follower, console.width, plain=not _can_draw())
        if len(rows) > console.height > 4:  # Live would cut it
            rows = [*rows[: console.height - 2], ("...", "dim")]
        return Text("\n").join(Text(text, style=style, no_wrap=True, overflow="ellipsis") for text, style in rows)

    _poll(follower)
    with Live(picture(), console=console, auto_refresh=False) as live:
        while follower.behind or not follower.run.ended:
            if not follower.behind:  # else there is enough to do
                time.sleep(INTERVAL)
            if _poll(follower) or time.monotonic() - drawn > 1.0:
                live.update(picture(), refresh=True)
                drawn = time.monotonic()
        live.update(picture(), refresh=True)


def _print(follower: Follower) -> None:
    width = shutil.get_terminal_size().columns  # COLUMNS, or else 80 where there is no terminal
    for text, _ in lines(follower, width, plain=not _can_draw()):
        print(text)


def _can_draw() -> bool:
    """Whether the terminal's encoding has the blocks."""
    try:
        BLOCKS.encode(sys.stdout.encoding or "ascii")
    except (UnicodeError, LookupError):
        return False
    return True


def lines(follower: Follower, width: int, *, plain: bool = False) -> list[Line]:
    """Say everything that is known in lines of at most this width, without trailing blanks."""
    width = max(width, NARROWEST)
    found = [*_lines(follower, width, PLAIN_BLOCKS if plain else BLOCKS)]
    return [(cut(text.rstrip(), width), style) for text, style in found]


def _lines(follower: Follower, width: int, blocks: str) -> Iterator[Line]:
    run = follower.run
    trial = run.current
    if not follower.exists:
        yield from _wrapped(f"Waiting: there is no file yet at {follower.path}", width)
        return
    yield f"{follower.path.name}: {_state(follower, run)}", "bold"
    if run.error:
        yield from _wrapped(run.error, width, "red")
    if trial is None:
        yield ("Waiting for the first step." if not run.ended else "No steps."), ""
    else:
        yield from _numbers(run, trial, width, blocks)
        yield from _layers(trial, width)
        yield from _findings(trial, width)
        yield from _trials(run, width)
    if run.n_damaged:
        yield f"{run.n_damaged} damaged {'line was' if run.n_damaged == 1 else 'lines were'} passed over.", "yellow"


def _state(follower: Follower, run: Run) -> str:
    if run.ended:
        return STATUS[run.status]
    silent = follower.silent_for()
    return f"running, nothing new for {_duration(silent)}" if silent > SILENT else "running"


def _numbers(run: Run, trial: Trial, width: int, blocks: str) -> Iterator[Line]:
    if trial.name:
        yield f"trial {len(run.trials)}: {trial.name}", "bold"
    rate = trial.n_steps / trial.seconds if trial.seconds > 0 else math.nan
    parts = [f"step {trial.step:,}", f"epoch {trial.epoch:,}", _duration(trial.seconds)]
    parts += [f"{rate:,.3g} steps/s"] if math.isfinite(rate) else []
    parts += [f"lr {trial.lr:.3g}"] if math.isfinite(trial.lr) else []
    yield from _wrapped(", ".join(parts), width)
    yield from _curve("loss", trial.loss, width, blocks)
    yield from _curve("norm", trial.grad_norm, width, blocks)
    share, recent = trial.n_clipped / trial.n_steps, sum(trial.recent) / len(trial.recent)
    text = f"clipped {share:.0%} of steps, {recent:.0%} of the last {len(trial.recent)}"
    if math.isfinite(trial.max_norm):
        text += f", at {trial.max_norm:.3g}"
    skipped = f"{trial.n_skipped:,} {'step' if trial.n_skipped == 1 else 'steps'} skipped"
    yield from _wrapped(f"{text}; {skipped}", width, "yellow" if trial.n_skipped else "")


def _curve(name: str, curve: Curve, width: int, blocks: str) -> Iterator[Line]:
    """A number and its course: beside it, or below it where there is no room."""
    text = f"{name}  {curve.last:<10.4g} lowest {curve.lowest:<10.4g}"
    room = width - len(text) - 1
    if room >= NARROWEST:
        yield f"{text} {sparkline(curve, min(room, 120), blocks)}", ""
    else:
        yield text, ""
        yield "      " + sparkline(curve, width - 6, blocks), ""


def sparkline(curve: Curve, width: int, blocks: str = BLOCKS) -> str:
    """Draw the course, on a logarithmic axis where all is positive; an exclamation mark is what is not finite."""
    points = curve.points()
    points = merged_in_groups(points, -(-len(points) // width))
    values = [point.high for point in points]
    seen = [value for value in values if math.isfinite(value)]
    if not seen:
        return "!" * len(points)
    if min(seen) > 0:
        values = [math.log(value) if value > 0 else math.nan for value in values]
    else:  # halved, so that no difference overflows
        values = [value / 2 for value in values]
    seen = [value for value in values if math.isfinite(value)]
    low, span = min(seen), max(seen) - min(seen)
    top = len(blocks) - 1
    return "".join(
        "!" if point.bad else blocks[round((value - low) / span * top) if span > 0 else 0]
        for point, value in zip(points, values, strict=True)
    )


def _layers(trial: Trial, width: int) -> Iterator[Line]:
    """The norm of dL/dh_t at both ends of time."""
    if not trial.dh_last:
        return
    names = list(trial.dh_last)
    longest = min(max(map(len, names)), max(width - 36, 8))
    yield f"{'|dL/dh|':{longest}}  {'first step':>10}  {'last step':>10}  {'ratio':>8}", "dim"
    for name in names[:MOST_LAYERS]:
        first, last = trial.dh_first.get(name, math.nan), trial.dh_last[name]
        ratio = first / last if last > 0 else math.nan
        yield f"{cut(name, longest):{longest}}  {first:>10.3g}  {last:>10.3g}  {ratio:>8.2g}", ""
    if len(names) > MOST_LAYERS:
        yield f"and {len(names) - MOST_LAYERS} more", "dim"


def _findings(trial: Trial, width: int) -> Iterator[Line]:
    findings = trial.ordered_findings()
    if not findings:
        yield "No findings.", "dim"
    for finding in findings:
        place = f" in {finding.where}" if finding.where else ""
        text = f"{finding.severity.upper()}: {finding.kind}{place} ({finding.seen()}). {finding.message}"
        yield from _wrapped(text, width, STYLES[finding.severity])
        yield from _wrapped(f"  {finding.advice}", width, "dim")


def _trials(run: Run, width: int) -> Iterator[Line]:
    """The trials before this one."""
    others = [trial for trial in run.trials.values() if trial.n_steps and trial is not run.current]
    if not others:
        return
    longest = min(max(len(trial.name) for trial in others), max(width - 30, 10))
    yield f"{'trials before':{longest}}  {'loss':>10}  {'lowest':>10}", "dim"
    for trial in others[-MOST_TRIALS:]:
        yield f"{cut(trial.name, longest):{longest}}  {trial.loss.last:>10.4g}  {trial.loss.lowest:>10.4g}", ""


def _wrapped(text: str, width: int, style: str = "") -> Iterator[Line]:
    for line in textwrap.wrap(text, width, subsequent_indent="  ", break_on_hyphens=False):
        yield line, style


def cut(text: str, width: int) -> str:
    """Cut text that is too long."""
    return text if len(text) <= width else text[: width - 3] + "..."


def _duration(seconds: float) -> str:
    if not 60 <= seconds < math.inf:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
