"""`gradcore watch`: what it shows at every width, in a terminal and in a pipe, and how it ends."""

from __future__ import annotations

import json
import math
import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tools import COMMAND_LINE, HANG

import gradcore
from gradcore import cli
from gradcore.training.live import FORMAT, VERSION
from gradcore.viewer.curve import Curve
from gradcore.viewer.follow import Follower
from gradcore.viewer.terminal import BLOCKS, PLAIN_BLOCKS, lines, sparkline

ENV = {**os.environ, "PYTHONPATH": str(Path(gradcore.__file__).parent.parent), "GRADCORE_NUM_THREADS": "1"}
COMMAND = [*COMMAND_LINE, "watch"]
START = {"type": "start", "format": FORMAT, "version": VERSION, "started": "now", "machine": {}, "names": {}}
END = {"type": "end", "status": "ended", "error": None, "steps": 2, "seconds": 1.0}
FINDING = {
    "type": "finding",
    "kind": "vanishing_in_time",
    "where": "0.l0",
    "severity": "high",
    "step": 3,
    "last_step": 9,
    "count": 4,
    "message": "On its way back over 99 time steps the gradient norm is multiplied by 1.3e-20.",
    "advice": "Use an LSTM.",
}


def step(i: int, **more: Any) -> dict[str, Any]:
    line = {"type": "step", "step": i, "epoch": i // 10, "loss": 1 / (i + 1), "grad_norm": 2.0, "clipped": i % 2 == 0}
    ends = {"dh_first": {"0.l0": 1e-9, "0.l1": 0.0}, "dh_last": {"0.l0": 0.25, "0.l1": 0.0}}
    return {**line, **ends, "skipped": i == 3, "lr": 0.1, "seconds": (i + 1) / 10, "max_norm": 1.5, **more}


def text(*found: dict[str, Any]) -> str:
    return "".join(json.dumps(line) + "\n" for line in found)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "run.jsonl"
    path.write_text(text(START, *map(step, range(20)), FINDING, END), encoding="utf-8")
    return path


def run(*argv: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    status = cli.main(list(argv))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


# ---- what is shown ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize("once", [["--once"], []])
def test_everything_is_shown_at_every_width(
    width: int, once: list[str], path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    status, out, err = run("watch", str(path), *once, capsys=capsys)
    assert (status, err) == (0, "")
    assert max(map(len, out.splitlines())) <= width
    assert "\x1b" not in out
    words = " ".join(out.split())
    assert words.startswith("run.jsonl: ended step 19, epoch 1, 2.0 s, 10 steps/s, lr 0.1 loss 0.05 lowest 0.05 █")
    assert "norm 2 lowest 2 ▁▁" in words
    assert "clipped 50% of steps, 50% of the last 20, at 1.5; 1 step skipped" in words
    assert "|dL/dh| first step last step ratio 0.l0 1e-09 0.25 4e-09 0.l1 0 0 nan" in words
    assert "HIGH: vanishing_in_time in 0.l0 (steps 3 to 9, 4 times). On its way back" in words
    assert words.endswith("1.3e-20. Use an LSTM.")


@pytest.mark.parametrize("width", [0, 1, 30, 47, 60, 79, 80, 133, 1000])
def test_no_line_is_too_long(width: int, path: Path) -> None:
    extreme = {"loss": 1.7976931348623157e308, "grad_norm": "-Infinity", "lr": 5e-324, "seconds": 1e300}
    extreme |= {"dh_first": {"x" * 300: 1e308}, "dh_last": {"x" * 300: 1e-308}}
    found = [step(1 << 60, **extreme, trial=f"{i}" * 300, epoch=1 << 60) for i in range(30)]
    path.write_text(text(START, *found, {**FINDING, "where": "y" * 500, "trial": "29" * 300}) + "{\n", "utf-8")
    follower = Follower(path)
    follower.poll()
    shown = lines(follower, width)
    assert max(len(line) for line, _ in shown) <= max(width, 30)
    assert any("1 damaged line was passed over" in line for line, _ in shown) or width < 40


def test_a_run_that_failed(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.write_text(text(START, step(0), {**END, "status": "failed", "error": "RuntimeError: no more"}), "utf-8")
    out = run("watch", str(path), capsys=capsys)[1]
    assert out.splitlines()[:2] == ["run.jsonl: failed", "RuntimeError: no more"]


def test_a_run_that_has_not_ended(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.write_text(text(START, step(0)), "utf-8")
    os.utime(path, (0.0, time.time() + 3600))
    assert run("watch", "--once", str(path), capsys=capsys)[1].startswith("run.jsonl: running\n")
    os.utime(path, (0.0, time.time() - 3610))
    out = run("watch", "--once", str(path), capsys=capsys)[1]
    assert re.match(r"run.jsonl: running, nothing new for 1 h \d+ min\n", out)
    path.write_text("", "utf-8")
    os.utime(path, (0.0, time.time() + 3600))
    assert run("watch", "--once", str(path), capsys=capsys)[1] == "run.jsonl: running\nWaiting for the first step.\n"


def test_trials_are_listed(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = [step(i, trial=name, seed=0) for name in ("as configured", "norm clipping at 2") for i in range(3)]
    path.write_text(text(START, *found, END), "utf-8")
    out = run("watch", str(path), capsys=capsys)[1]
    assert "\ntrial 2: norm clipping at 2\n" in out
    assert re.search(r"\ntrials before +loss +lowest\nas configured +0.3333 +0.3333\n$", out)


def test_a_terminal_without_blocks(path: Path) -> None:
    for encoding, blocks in (("ascii", PLAIN_BLOCKS), ("utf-8", BLOCKS)):
        env = {**ENV, "PYTHONIOENCODING": encoding}
        done = subprocess.run([*COMMAND, str(path)], capture_output=True, env=env, check=True)
        assert f"{blocks[7]}{blocks[5]}" in done.stdout.decode(encoding)


def course(*values: float) -> Curve:
    curve = Curve()
    for i, value in enumerate(values):
        curve.append(i, value)
    return curve


def test_sparklines() -> None:
    assert sparkline(course(1.0, 10.0, 100.0), 80) == "▁▅█"  # logarithmic
    assert sparkline(course(-1.0, 0.0, 1.0), 80) == "▁▅█"
    assert sparkline(course(1.0, math.nan, 2.0), 80) == "▁!█"
    assert sparkline(course(math.nan, math.inf), 80) == "!!"
    assert sparkline(course(3.0, 3.0), 80) == "▁▁"
    assert sparkline(course(-1.7e308, 1.7e308), 80) == "▁█"
    assert sparkline(course(5e-324, 1.7e308), 80) == "▁█"
    assert sparkline(course(), 80) == ""
    assert len(sparkline(course(*range(1000)), 80)) <= 80
    assert sparkline(course(*[1.0] * 999, 50.0), 10)[-1] == "█"  # a single peak is seen


# ---- how it goes on and ends -----------------------------------------------------------------------------------------


def test_wrong_use(tmp_path: Path, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other"
    other.write_text("words\n" * 20, encoding="utf-8")
    later = tmp_path / "later"
    later.write_text(text({**START, "version": 2}), encoding="utf-8")
    for argv, message in (
        ([], "Missing argument 'RUN.jsonl'"),
        ([str(tmp_path)], "is a directory, expected a file"),
        ([str(tmp_path / "no" / "run.jsonl")], "there is no folder"),
        ([str(tmp_path / "none"), "--once"], "none: no such file"),
        ([str(other)], "not the lines of a gradcore run"),
        ([str(later)], f"expected format {FORMAT} version 1, got {FORMAT} version 2"),
        ([os.devnull], "is a device"),
        ([str(path), "twice"], "unexpected extra argument"),
    ):
        status, out, err = run("watch", *argv, capsys=capsys)
        assert (status, out) == (2, ""), argv
        assert message in err
        assert err.count("\n") == 1


def test_a_pipe_waits_for_the_file_and_for_the_end(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with subprocess.Popen(
        [*COMMAND, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV, encoding="utf-8"
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == f"gradcore: waiting for {path}\n"
        path.write_text(text(START, step(0)), encoding="utf-8")
        time.sleep(0.5)
        assert process.poll() is None
        with path.open("a", encoding="utf-8") as file:
            file.write(text(step(1), END))
        out, err = process.communicate(timeout=HANG)
    assert (process.returncode, err) == (0, "")
    assert out.startswith("run.jsonl: ended\nstep 1, epoch 0")


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_ctrl_c_ends_it_as_the_other_commands(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with subprocess.Popen([*COMMAND, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENV) as process:
        assert process.stderr is not None
        process.stderr.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=HANG)
    assert (process.returncode, out, err) == (130, b"", b"gradcore: interrupted\n")


class Terminal:
    """A command that believes to be in a terminal of 80 columns, and what it has drawn so far."""

    def __init__(self, *argv: str) -> None:
        import fcntl
        import pty
        import struct
        import termios

        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        env = {name: value for name, value in ENV.items() if name not in ("COLUMNS", "LINES", "NO_COLOR", "CI")}
        env |= {"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"}
        self.process = subprocess.Popen(argv, stdin=slave, stdout=slave, stderr=slave, env=env)
        os.close(slave)
        self.drawn = ""

    def wait_for(self, pattern: str) -> None:
        """Read until the pattern is in what was drawn since the last time, without colors."""
        end = time.monotonic() + HANG
        while not (found := re.search(pattern, self.drawn, flags=re.S)):
            assert time.monotonic() < end, self.drawn
            if select.select([self._master], [], [], 1.0)[0]:
                try:
                    data = os.read(self._master, 65536).decode("utf-8", "replace")
                except OSError:  # closed at the other end
                    data = ""
                assert data, self.drawn
                self.drawn += re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", data)
        self.drawn = self.drawn[found.end() :]

    def status(self) -> int:
        return self.process.wait(timeout=HANG)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)


@pytest.mark.skipif(os.name != "posix", reason="pseudo terminals of POSIX")
def test_a_terminal_follows_whatever_happens_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with Terminal(*COMMAND, str(path)) as terminal:
        terminal.wait_for("Waiting: there is no file yet")
        path.write_text("", encoding="utf-8")
        terminal.wait_for("Waiting for the first step")
        with path.open("a", encoding="utf-8") as file:
            file.write(text(START, *map(step, range(8))))
        terminal.wait_for("step 7, .*No findings")
        with path.open("a", encoding="utf-8") as file:
            file.write(text(step(8), FINDING) + '{"type": "st')
        terminal.wait_for("step 8, .*HIGH: vanishing_in_time")
        with path.open("a", encoding="utf-8") as file:
            file.write("\n")
        terminal.wait_for("1 damaged line was passed over")
        path.write_text(text(START, step(0)), encoding="utf-8")  # begun again
        terminal.wait_for("step 0, .*No findings")
        path.unlink()
        terminal.wait_for("Waiting: there is no file yet")
        path.write_text(text(START, step(5), END), encoding="utf-8")
        terminal.wait_for("run.jsonl: ended.*step 5, ")
        assert terminal.status() == 0


@pytest.mark.skipif(os.name != "posix", reason="pseudo terminals of POSIX")
def test_ctrl_c_in_a_terminal_leaves_the_last_picture(path: Path) -> None:
    path.write_text(text(START, step(4)), encoding="utf-8")
    with Terminal(*COMMAND, str(path)) as terminal:
        terminal.wait_for("step 4, ")
        terminal.process.send_signal(signal.SIGINT)
        terminal.wait_for("gradcore: interrupted")
        assert terminal.status() == 130


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_a_missing_extra_is_named(package: str, path: Path) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; sys.stdout.isatty = lambda: True; "
    code += f"from gradcore.cli import main; sys.exit(main(['watch', {str(path)!r}]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENV, check=False)
    assert done.returncode == 2
    assert 'pip install "gradcore[cli]"' in done.stderr
    assert done.stderr.count("\n") == 1
