"""The command line from outside: what it prints and writes, and that everything wrong ends in one line."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import LONG
from tools import HANG

import gradcore
from gradcore import cli

# One thread: the results have the same bits for any number, and the machines that test are shared.
ENV = {**os.environ, "PYTHONPATH": str(Path(gradcore.__file__).parent.parent), "GRADCORE_NUM_THREADS": "1"}
QUICK = ["--steps", "12", "--hidden", "8", "--batch", "4"]
FIGURES = {"eigenvalues.png", "spectrum.png", "time_steps.png", "training.png", "trials.png"}


@pytest.fixture(autouse=True)
def one_thread(restore_threads: None) -> None:
    gradcore.set_num_threads(1)


def run(*argv: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    status = cli.main(list(argv))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def strict(text: str) -> Any:
    """JSON without the NaN and Infinity that Python's parser lets through."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    return json.loads(text, parse_constant=refuse)


def without_seconds(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_seconds(item) for key, item in value.items() if key != "seconds"}
    return [without_seconds(item) for item in value] if isinstance(value, list) else value


# ---- a whole diagnosis -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sunspots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The main job with its defaults, as a user runs it: through a pipe."""
    folder = tmp_path_factory.mktemp("sunspots")
    out = folder / "new" / "out"
    command = [sys.executable, "-m", "gradcore", "diagnose", "sunspots", "--out", str(out)]
    command += ["--json", str(folder / "found.json")]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, check=False, cwd=folder, env=ENV)
    return {
        "status": done.returncode,
        "text": done.stdout.decode("utf-8"),
        "errors": done.stderr.decode("utf-8"),
        "json": strict((folder / "found.json").read_text("utf-8")),
        "folder": folder,
        "out": out,
        "seconds": time.perf_counter() - start,
    }


def test_the_main_job_is_done_and_says_everything_in_order(sunspots: dict[str, Any]) -> None:
    assert sunspots["status"] == 0
    assert sunspots["errors"] == ""
    parts = ["1. Forecast", "spectral radius", "Lyapunov", "necessary", "sufficient", "2. Measurement"]
    parts += ["rate, ln per step         predicted      at most     measured", "3. Training as configured"]
    parts += ["4. Thresholds and remedies", "Suggested: gain", "norm clipping", "step clipping"]
    tried = sunspots["json"]["suggestions"]["tried"][0]["name"]
    parts += ["orthogonal initialization", f"\n  {tried:29}", "LSTM instead of RNN", "5. Verdict"]
    parts += ["Python", "import gradcore", "Wrote"]
    places = [sunspots["text"].index(part) for part in parts]
    assert places == sorted(places)
    assert "This default is chosen to explode" in " ".join(sunspots["text"].split())


def test_output_fits_eighty_columns_and_has_no_color_codes(sunspots: dict[str, Any]) -> None:
    lines = [line for line in sunspots["text"].splitlines() if not line.startswith(("Wrote", "history"))]
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in sunspots["text"]


def test_the_default_start_explodes_as_it_says(sunspots: dict[str, Any]) -> None:
    found = sunspots["json"]
    assert found["forecast"]["verdict"] == found["measurement"]["verdict"] == "explodes"
    assert found["measurement"]["factor"] > 100
    assert found["measurement"]["rate"] == pytest.approx(found["forecast"]["rate"], abs=0.02)
    configured, *remedies = found["trials"]
    assert configured["largest_norm"] > 1e3
    assert min(trial["loss"] for trial in remedies) < 0.5 * configured["loss"]
    assert found["verdict"]["kind"] == "explodes"
    assert found["verdict"]["remedy"] is not None


def test_folder_holds_the_figures_and_the_same_json(sunspots: dict[str, Any]) -> None:
    assert {path.name for path in sunspots["out"].iterdir()} == FIGURES | {"diagnosis.json"}
    assert strict((sunspots["out"] / "diagnosis.json").read_text("utf-8")) == sunspots["json"]
    for name in FIGURES:
        assert (sunspots["out"] / name).read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in sunspots["folder"].iterdir()} == {"new", "found.json"}


def test_the_printed_python_runs_and_repeats_the_trial(sunspots: dict[str, Any]) -> None:
    found = sunspots["json"]
    printed = sunspots["text"].split("\nPython\n")[1].split("\nWrote")[0].strip()
    assert printed == found["verdict"]["python"]
    names: dict[str, Any] = {}
    exec(printed, names)
    (trial,) = (trial for trial in found["trials"] if trial["name"] == found["verdict"]["remedy"])
    assert names["history"].loss.tolist() == trial["history"]["loss"]
    assert trial["loss"] == found["verdict"]["loss"]
    assert trial["python"] == printed


def test_the_gain_suggested_for_sunspots_keeps_the_norm_and_trains_better(sunspots: dict[str, Any]) -> None:
    (suggestion,) = sunspots["json"]["suggestions"]["tried"]
    assert abs(suggestion["predicted"]) < 0.01
    assert abs(suggestion["measured"]) < 0.01
    configured, *remedies = sunspots["json"]["trials"]
    (trial,) = (trial for trial in remedies if trial["name"] == suggestion["name"])
    assert trial["changes"]["gain"] == suggestion["changes"]["gain"] == pytest.approx(1.5, abs=0.1)
    assert trial["loss"] < 0.5 * configured["loss"]


def test_same_seed_same_diagnosis(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    found = []
    for name, seed in (("a", "5"), ("b", "5"), ("c", "6")):
        path = tmp_path / name
        assert run("diagnose", "adding", *QUICK, "--seed", seed, "--json", str(path), capsys=capsys)[0] == 0
        found.append(without_seconds(strict(path.read_text("utf-8"))))
    assert found[0] == found[1]
    assert found[0]["trials"][0]["history"] != found[2]["trials"][0]["history"]


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
@pytest.mark.parametrize("source", ["sunspots", "copy"])
def test_every_cell_and_kind_of_loss(source: str, cell: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--cell", cell, "--layers", "2", "--seq-len", "15", *QUICK]
    status, out, err = run("diagnose", source, *options, capsys=capsys)
    assert (status, err) == (0, "")
    assert "weight_hh_l1" in out
    assert "0.l1, measured" in out
    assert ("LSTM instead of RNN" in out) == (cell == "rnn")
    assert "Suggested: gain" in out
    assert ("-gate bias" in out) == (cell != "rnn")
    assert re.search(r"rate, ln per step .* with above +measured\n  0\.l0 .*\n  0\.l1 ", out)


EXTREMES = [("--gain", "1e30"), ("--gain", "1e-30"), ("--lr", "1e30"), ("--lr", "1e-300"), ("--seq-len", "2")]
EXTREMES += [("--steps", "1"), ("--batch", "1"), ("--hidden", "1")]


@pytest.mark.parametrize("options", EXTREMES, ids=" ".join)
def test_extremes_end_in_a_diagnosis(
    options: tuple[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    found = tmp_path / "diagnosis.json"
    argv = ["diagnose", "sunspots", "--steps", "8", "--hidden", "6", "--batch", "3", "--seq-len", "40", *options]
    target = ["--out", str(tmp_path)] if "--gain" in options else ["--json", str(found)]  # the former draws figures
    status, _, err = run(*argv, *target, capsys=capsys)
    assert (status, err) == (0, "")
    strict(found.read_text("utf-8"))


def test_live_lines_of_every_trial(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path, found = tmp_path / "run.jsonl", tmp_path / "found.json"
    argv = ["diagnose", "adding", *QUICK, "--seeds", "2", "--json", str(found), "--live", str(path)]
    assert run(*argv, capsys=capsys)[0] == 0
    lines = [strict(line) for line in path.read_text("utf-8").splitlines()]
    trials = strict(found.read_text("utf-8"))["trials"]
    steps = [line for line in lines if line["type"] == "step"]
    assert list(dict.fromkeys(line["trial"] for line in steps)) == [trial["name"] for trial in trials]
    for trial in trials:
        losses = {seed: [line["loss"] for line in steps if (line["trial"], line["seed"]) == (trial["name"], seed)]
                  for seed in (0, 1)}  # fmt: skip
        assert losses[0] == trial["history"]["loss"]
        assert len(losses[1]) == len(losses[0])
    assert (lines[0]["type"], lines[-1]["type"], lines[-1]["status"]) == ("start", "end", "ended")
    status, out, err = run("watch", str(path), capsys=capsys)
    assert (status, err) == (0, "")
    assert out.startswith("run.jsonl: ended\n")


def test_live_lines_that_cannot_be_written(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    source, old = tmp_path / "data.csv", tmp_path / "old.jsonl"
    source.write_text(SERIES, encoding="utf-8")
    old.write_text("kept", encoding="utf-8")
    for argv, message in (
        ([str(source), "--live", str(source)], "is the source"),
        ([str(source), "--live", str(old), "--json", str(old)], "is what --json writes"),
        ([str(source), "--live", str(tmp_path)], "is a directory"),
        ([str(source), "--live", str(tmp_path / "no" / "run.jsonl")], "cannot be written (No such file or directory)"),
        ([str(tmp_path / "none.csv"), "--live", str(old)], "no such file"),
    ):
        status, out, err = run("diagnose", *argv, "--seq-len", "10", *QUICK, capsys=capsys)
        assert (status, out) == (2, ""), argv
        assert message in one_line(err)
    assert source.read_text("utf-8") == SERIES
    assert old.read_text("utf-8") == "kept"


# ---- everything wrong ends in one line -------------------------------------------------------------------------------

SERIES = "value\n" + "".join(f"{i % 7}\n" for i in range(60))
WRONG_INPUT = {
    "missing file": (None, [], r"data\.csv: no such file"),
    "empty": ("", [], r"data\.csv: the file is empty"),
    "text": (SERIES + "oops\n", [], r"data\.csv, line 62, column \"value\": expected a number, got 'oops'"),
    "missing value": (SERIES.replace("\n3\n", "\n\n", 1), [], r"data\.csv, line 5: the line is empty"),
    "not finite": (SERIES + "inf\n", [], r"line 62, column \"value\": inf is not a finite number"),
    "short": ("1\n2\n3\n", [], r"expected at least 51 values for windows of 50 and the one after them, got 3"),
    "constant": ("1\n" * 60, [], r"every value is 1; a constant series"),
    "column": (SERIES, ["--target", "price"], r'has no column "price"; its columns are value'),
}
WRONG_USE = {
    "no command": (["--"], "Missing command"),
    "unknown command": (["train"], "No such command 'train'"),
    "no source": (["diagnose"], "Missing argument 'SOURCE'"),
    "unknown option": (["diagnose", "sunspots", "--depth", "3"], "No such option: --depth"),
    "two sources": (["diagnose", "sunspots", "adding"], "unexpected extra argument"),
    "not an integer": (["diagnose", "sunspots", "--hidden", "many"], "'--hidden'"),
    "too small": (["diagnose", "sunspots", "--hidden", "0"], "hidden: expected an integer of at least 1, got 0"),
    "no steps": (["diagnose", "sunspots", "--steps", "0"], "steps: expected"),
    "short window": (["diagnose", "sunspots", "--seq-len", "1"], "seq_len: expected an integer of at least 2"),
    "long window": (["diagnose", "sunspots", "--seq-len", "309"], "a seq_len of 308 would fit"),
    "seed": (["diagnose", "sunspots", "--seed", "-1"], "seed: expected"),
    "cell": (["diagnose", "sunspots", "--cell", "mlp"], "cell: expected 'rnn' or 'lstm' or 'gru', got 'mlp'"),
    "init": (["diagnose", "sunspots", "--init", "best"], "init: expected one of default,"),
    "optimizer": (["diagnose", "sunspots", "--optimizer", "lbfgs"], "optimizer: expected one of sgd,"),
    "nan": (["diagnose", "sunspots", "--lr", "nan"], "lr: expected a number above 0, got nan"),
    "infinite": (["diagnose", "sunspots", "--gain", "inf"], "gain: expected a number above 0"),
    "out of range": (["diagnose", "sunspots", "--gain", "1e31"], "gain: expected a number above 0 and at most 1e+30"),
    "infinite rate": (["diagnose", "sunspots", "--lr", "inf"], "lr: expected a finite number"),
    "column of a task": (
        ["diagnose", "sunspots", "--target", "year"],
        "target: expected a .csv or .tsv file with columns, got",
    ),
    "memory": (["diagnose", "adding", "--batch", "100000000000"], "not enough memory"),
    "info": (["info", "please"], "unexpected extra argument"),
}


def one_line(err: str) -> str:
    assert err.startswith("gradcore: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert "Traceback" not in err
    return err


@pytest.mark.parametrize(("content", "options", "message"), WRONG_INPUT.values(), ids=WRONG_INPUT.keys())
def test_wrong_input(
    content: str | None, options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "data.csv"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    status, _, err = run("diagnose", str(path), *options, "--out", str(tmp_path / "out"), capsys=capsys)
    assert status == 2
    assert re.search(message, one_line(err))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("argv", "message"), WRONG_USE.values(), ids=WRONG_USE.keys())
def test_wrong_use(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(*argv, capsys=capsys)
    assert status == 2
    assert out == "" or message == "not enough memory"
    assert message in one_line(err)


def test_directories_and_bytes_that_are_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run("diagnose", str(tmp_path), capsys=capsys)
    assert status == 2
    assert "is a directory" in one_line(err)
    for content, message in ((b"caf\xe9 " * 50, "line 1: byte 0xe9 is not UTF-8"), (b"a\0b" * 50, "NUL byte")):
        path = tmp_path / "binary"
        path.write_bytes(content)
        status, _, err = run("diagnose", str(path), capsys=capsys)
        assert status == 2
        assert message in one_line(err)


def test_places_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.write_text("keep", encoding="utf-8")
    for options, message in (
        (["--out", str(file)], "is a file, expected a folder"),
        (["--out", str(file / "below")], "cannot be written"),
        (["--json", str(tmp_path)], "is a directory"),
        (["--json", str(tmp_path / "no" / "file.json")], "there is no folder"),
    ):
        status, out, err = run("diagnose", "sunspots", *QUICK, *options, capsys=capsys)
        assert status == 2
        assert message in one_line(err)
        assert out == ""  # before any work
    assert file.read_text("utf-8") == "keep"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_without_permission(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tmp_path.chmod(0o500)
    for option in (["--out", str(tmp_path / "out")], ["--json", str(tmp_path / "found.json")]):
        status, _, err = run("diagnose", "sunspots", *QUICK, *option, capsys=capsys)
        assert status == 2
        assert "cannot be written (Permission denied)" in one_line(err)


@pytest.mark.skipif(not Path("/dev/zero").is_char_device(), reason="no /dev/zero here")
def test_a_device_that_never_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "link.csv").symlink_to("/dev/zero")
    for source in ("/dev/zero", "/dev/null", str(tmp_path / "link.csv")):
        status, _, err = run("diagnose", source, capsys=capsys)
        assert status == 2
        assert one_line(err) == f"gradcore: {source}: is a device; expected a file\n"


def test_a_number_of_5000_digits_is_not_repeated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "data.csv"
    path.write_text("9" * 5000 + "\n1\n", encoding="utf-8")
    status, _, err = run("diagnose", str(path), capsys=capsys)
    assert status == 2
    assert "9... is not a finite number" in one_line(err)
    assert len(err) < len(str(path)) + 150


ODD_FILES = {
    "good.csv": SERIES.encode(), "empty.csv": b"", "blank.csv": b" \n \n", "utf16.csv": SERIES.encode("utf-16"),
    "mark.csv": b"\xef\xbb\xbf" + SERIES.encode(), "latin.txt": b"caf\xe9 " * 50, "nul.csv": b"1\0\n" * 60,
    "one.csv": b"1", "header.csv": b"a,b,c\n", "ragged.csv": b"1,2\n3\n" * 40, "quote.csv": b'a,b\n"1,2\n' * 30,
    "huge.csv": b"1e308\n-1e308\n" * 30, "tiny.csv": b"5e-324\n0\n" * 30, "overflow.csv": b"1e999\n" * 60,
    "wide.csv": b"x" * 200_000 + b"\n1\n" * 60, "commas.csv": b",,,\n" * 60, "cr.csv": b"1\r2\r3\r" * 30,
    "underscore.csv": b"1_0\n" * 60, "letters.txt": b"a" * 99, "smile.txt": "😀é".encode() * 40,
}  # fmt: skip
ODD_SOURCES = [*ODD_FILES, "folder.csv", "loop.csv", "missing.csv", "", ".", "-", "x" * 5000, "\udcff.csv"]
ODD_WORDS = [
    "",
    "0",
    "-1",
    "1.5",
    "nan",
    "-inf",
    "1e400",
    "1e-320",
    "9" * 30,
    "9" * 5000,
    "none",
    "\udcff",
    "é",
    "lstm",
]
ODD_WORDS += ["gru", "adam", "eye", "year", "0x10", "٣", " 3 ", "--", "-", "--json", "x" * 5000]
ODD_PLACES = [
    "good.csv",
    "good.csv/below",
    "folder.csv",
    "new/file",
    "x" * 300,
    "\udcff",
    "loop.csv",
    "/proc/none",
    ".",
]
ODD_OPTIONS = [
    "--target",
    "--cell",
    "--hidden",
    "--layers",
    "--init",
    "--gain",
    "--seq-len",
    "--batch",
    "--lr",
    "--seed",
]
ODD_OPTIONS += ["--optimizer", "--out", "--json"]


def make_odd_files() -> None:
    for path in Path().iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name, content in ODD_FILES.items():
        Path(name).write_bytes(content)
    Path("folder.csv").mkdir()
    Path("loop.csv").symlink_to("loop.csv")


def everything() -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in Path().rglob("*")}


@pytest.mark.skipif(os.name != "posix", reason="names that other systems have no files for")
def test_any_command_line_is_done_or_ends_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rng, statuses = np.random.default_rng(8), []
    for _ in range(1000 if LONG else 100):
        make_odd_files()
        before = everything()
        source = rng.choice(["sunspots", "adding", "good.csv"] if rng.random() < 0.6 else ODD_SOURCES)
        options = {"--hidden": "3", "--batch": "2", "--steps": "2", "--seq-len": "5"}
        for option in rng.choice(ODD_OPTIONS, size=rng.integers(3)):
            options[option] = rng.choice(ODD_PLACES if option in ("--out", "--json") else ODD_WORDS)
        argv = ["diagnose", source, *(word for pair in options.items() for word in pair)]
        status, _, err = run(*map(str, argv), capsys=capsys)
        statuses.append(status)
        if status == 0:
            assert err == "", argv
        else:
            assert status == 2, argv
            one_line(err)
            assert everything() == before, argv
        assert not any(path.name.startswith(".") for path in Path().rglob("*")), argv
    assert statuses.count(0) > len(statuses) / 10
    assert statuses.count(2) > len(statuses) / 3


# ---- nothing half-written --------------------------------------------------------------------------------------------


def test_an_existing_folder_keeps_its_other_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    (tmp_path / "trials.png").write_text("old", encoding="utf-8")
    assert run("diagnose", "sunspots", *QUICK, "--out", str(tmp_path), capsys=capsys)[0] == 0
    assert {path.name for path in tmp_path.iterdir()} == FIGURES | {"diagnosis.json", "notes.txt"}
    assert (tmp_path / "trials.png").read_bytes().startswith(b"\x89PNG")


def test_a_failure_while_writing_leaves_what_was_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "diagnosis.json").write_text("old", encoding="utf-8")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    for out in (tmp_path, tmp_path / "new" / "one"):
        status, _, err = run("diagnose", "sunspots", *QUICK, "--out", str(out), capsys=capsys)
        assert status == 2
        assert "No space left on device" in one_line(err)
    assert [path.name for path in tmp_path.iterdir()] == ["diagnosis.json"]
    assert (tmp_path / "diagnosis.json").read_text("utf-8") == "old"


@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
@pytest.mark.parametrize("moment", ["1. Forecast", "4. Thresholds"])
def test_ctrl_c_ends_it_and_leaves_nothing(moment: str, tmp_path: Path) -> None:
    argv = ["diagnose", "adding", "--steps", "300", "--hidden", "16", "--out", str(tmp_path / "out")]
    argv += ["--json", str(tmp_path / "found.json")]
    # Where the tests themselves run with Ctrl-C ignored, as in the background of a shell, a child would inherit that.
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code += f"; from gradcore.cli import main; sys.exit(main({argv}))"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV) as process:
        assert process.stdout is not None
        assert any(moment in line for line in process.stdout)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=HANG)
    assert process.returncode == 130
    assert err == "gradcore: interrupted\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("writing", [1, len(FIGURES)])
def test_ctrl_c_while_figures_are_written_leaves_nothing(
    writing: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # From inside: a signal from another process may come when all is written.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    written: list[str] = []

    def interrupted(_: Any, path: Path) -> None:
        path.write_bytes(b"half")
        written.append(path.name)
        if len(written) == writing:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", interrupted)
    argv = ["diagnose", "adding", *QUICK, "--out", str(tmp_path / "out"), "--json", str(tmp_path / "found.json")]
    try:
        status, _, err = run(*argv, capsys=capsys)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert len(written) == writing
    assert status == 130
    assert err == "gradcore: interrupted\n"
    assert list(tmp_path.iterdir()) == []


def test_a_closed_pipe_ends_it_quietly() -> None:
    command = [sys.executable, "-m", "gradcore", "diagnose", "adding", *QUICK]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert "adding" in process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=HANG) == 1


# ---- the rest --------------------------------------------------------------------------------------------------------


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version", capsys=capsys) == (0, f"gradcore {gradcore.__version__}\n", "")


def test_without_words_it_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys=capsys)
    assert (status, err) == (0, "")
    assert "Usage: gradcore" in out
    assert "diagnose" in out
    assert run("--help", capsys=capsys)[1] == out


def test_a_dash_writes_json_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = run("diagnose", "adding", *QUICK, "--out", "figures", "--json", "-", capsys=capsys)
    assert (status, err) == (0, "")
    assert strict(out) == strict(Path("figures", "diagnosis.json").read_text("utf-8"))
    status, out, err = run("info", "--json", "-", capsys=capsys)
    assert (status, strict(out), err) == (0, gradcore.info(), "")
    assert [path.name for path in tmp_path.iterdir()] == ["figures"]


def test_one_quantity_is_one_number(sunspots: dict[str, Any]) -> None:
    """Rates, factors, losses and norms read the same wherever they are said."""
    found, text = sunspots["json"], " ".join(sunspots["text"].split())
    measured, expected = found["measurement"], found["forecast"]
    for rate, factor in ((measured["rate"], measured["factor"]), (expected["rate"], expected["factor"])):
        assert f"by a factor of {math.exp(rate):.4f} a step, {factor:.0f} over 99 steps" in text
    assert text.count(f"{measured['factor']:.0f} over 99 steps") == 2
    assert f"{measured['factor']:.0f} over 99 steps" in found["verdict"]["finding"]
    assert not re.search(r"\d\.?\d*e\+0", text.split("5. Verdict")[1])
    assert text.count(f"{found['trials'][0]['loss']:.3f}") == 3  # section 3, the table, the verdict


def test_info(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "info.json"
    status, out, err = run("info", "--json", str(path), capsys=capsys)
    assert (status, err) == (0, "")
    assert strict(path.read_text("utf-8")) == gradcore.info()
    assert gradcore.__version__ in out
    assert "num_threads" in out


@pytest.mark.parametrize(
    "argv", [["--help"], *([command, "--help"] for command in ("diagnose", "watch", "dashboard", "info"))]
)
def test_help_fits_eighty_columns(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(*argv, capsys=capsys)
    assert (status, err) == (0, "")
    assert "Usage: gradcore" in out
    assert max(map(len, out.splitlines())) <= 80
    if argv[0] == "diagnose":
        options = ["target", "cell", "hidden", "layers", "init", "gain", "seq-len", "batch", "steps", "lr", "optimizer"]
        for name in (*options, "seed", "out", "json", "live"):
            assert f"--{name}" in out


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_any_encoding_of_the_terminal(encoding: str) -> None:
    command = [sys.executable, "-m", "gradcore", "diagnose", "adding", *QUICK]
    env = {**ENV, "PYTHONIOENCODING": encoding}
    done = subprocess.run(command, capture_output=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    help_ = subprocess.run([*command[:4], "--help"], capture_output=True, env=env, check=False)
    assert help_.returncode == 0, help_.stderr


def test_json_into_a_pipe_goes_through(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gradcore", "info", "--json", "/dev/stdout"]
    if not Path("/dev/stdout").exists():
        pytest.skip("no /dev/stdout here")
    for stdout in (subprocess.PIPE, (tmp_path / "log").open("w+b")):
        done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, env=ENV, check=False)
        assert done.returncode == 0, done.stderr
        text = (done.stdout or (tmp_path / "log").read_bytes()).decode()
        if not isinstance(stdout, int):
            stdout.close()
        assert '"version"' in text
        assert "num_threads  " in text


@pytest.mark.parametrize(
    ("package", "argv"),
    [("typer", ["info"]), ("typer", []), ("matplotlib", ["diagnose", "adding", "--out", "x"])],
)
def test_a_missing_extra_is_named(package: str, argv: list[str], tmp_path: Path) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; from gradcore.cli import main; sys.exit(main({argv}))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=ENV, check=False
    )
    assert done.returncode == 2
    assert 'pip install "gradcore[cli]"' in one_line(done.stderr)


def test_missing_extras_are_named_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    argv = ["diagnose", "adding", *QUICK, "--out", str(tmp_path / "out")]
    monkeypatch.setattr(cli, "study", lambda *_: pytest.fail("the work was begun"))
    status, out, err = run(*argv, capsys=capsys)
    assert (status, out, one_line(err)) == (2, "", f"gradcore: {cli.MISSING}\n")
    monkeypatch.setitem(sys.modules, "typer", None)
    assert run("info", capsys=capsys) == (2, "", f"gradcore: {cli.MISSING}\n")
