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
from tools import COMMAND_LINE, HANG

import gradcore
from gradcore import cli
from gradcore.diagnosis.wording import number

# One thread: the results have the same bits for any number, and the machines that test are shared.
ENV = {**os.environ, "PYTHONPATH": str(Path(gradcore.__file__).parent.parent), "GRADCORE_NUM_THREADS": "1"}
QUICK = ["--steps", "6", "--hidden", "8", "--batch", "4", "--seeds", "2", "--seq-len", "20"]
SHORT = [] if LONG else ["--steps", "60"]  # of the main job, whose 300 steps take a minute
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
    """The main job, as a user runs it: through a pipe."""
    folder = tmp_path_factory.mktemp("sunspots")
    out = folder / "new" / "out"
    command = [sys.executable, "-m", "gradcore", "diagnose", "sunspots", *SHORT, "--out", str(out)]
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
    parts += ["\n  ln per step", "3. Training as configured"]
    parts += ["4. Thresholds and remedies", "Suggested: gain", "norm clipping", "step clipping"]
    tried = sunspots["json"]["suggestions"]["tried"][0]["name"]
    parts += ["orthogonal initialization", f"\n  {tried}", "LSTM instead of RNN", "5. Verdict"]
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
    assert {path.name for path in sunspots["out"].iterdir()} == FIGURES | {"diagnosis.json", "report.html"}
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
    assert trial["held_out_loss"] == found["verdict"]["loss"]
    assert trial["python"] == printed


def test_the_gain_suggested_for_sunspots_keeps_the_norm_and_trains_better(sunspots: dict[str, Any]) -> None:
    (suggestion,) = sunspots["json"]["suggestions"]["tried"]
    assert abs(suggestion["predicted"]) < 0.01
    assert abs(suggestion["measured"]) < 0.01
    configured, *remedies = sunspots["json"]["trials"]
    (trial,) = (trial for trial in remedies if trial["name"].partition(", rate")[0] == suggestion["name"])
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
    options = ["--cell", cell, "--layers", "2", *QUICK]
    status, out, err = run("diagnose", source, *options, capsys=capsys)
    assert (status, err) == (0, "")
    assert "weight_hh_l1" in out
    assert "0.l1, measured" in out
    assert ("LSTM instead of RNN" in out) == (cell == "rnn")
    assert "Suggested: gain" in out
    assert ("-gate bias" in out) == (cell != "rnn")
    assert re.search(r"\n  ln per step .* with above +measured\n  0\.l0 .*\n  0\.l1 ", out)


EXTREMES = [("--gain", "1e30"), ("--gain", "1e-30"), ("--lr", "1e30"), ("--lr", "1e-300"), ("--seq-len", "2")]
EXTREMES += [("--steps", "1"), ("--batch", "1"), ("--hidden", "1")]


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_the_text_fits_the_terminal(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    options = ["--cell", "gru", "--layers", "2", "--steps", "2", "--seeds", "1", "--hidden", "4", "--seq-len", "20"]
    status, out, err = run("diagnose", "weather", *options, capsys=capsys)
    assert (status, err) == (0, "")
    report, python = out.split("\nPython\n")
    assert max(map(len, report.splitlines())) <= min(columns, 80)
    assert "model = gradcore.Sequential(" in python
    assert re.search(r"\n  the best constant answer .*\d%", report)
    assert re.search(r"\n  as configured .*\d%", report)
    assert ("trained on" in report.replace("\n", " ").split("4. Thresholds")[1]) == (columns > 60)


@pytest.mark.parametrize("options", EXTREMES, ids=" ".join)
def test_extremes_end_in_a_diagnosis(
    options: tuple[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    found = tmp_path / "diagnosis.json"
    argv = [
        "diagnose",
        "sunspots",
        "--steps",
        "8",
        "--hidden",
        "6",
        "--batch",
        "3",
        "--seeds",
        "2",
        "--seq-len",
        "40",
        *options,
    ]
    target = ["--out", str(tmp_path)] if options == EXTREMES[0] else ["--json", str(found)]  # the former draws figures
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
    "missing value": (
        SERIES.replace("\n3\n", "\n\n", 1),
        ["--missing", "error"],
        r"data\.csv, column \"value\": 1 value is missing, line 5; give missing=skip or interpolate",
    ),
    "two readings": (
        "".join(f"{i % 7},{i % 5}\n" for i in range(60)),
        [],
        r"delimiter comma.*decimal ,.*give one of the two",
    ),
    "unknown policy": (
        SERIES,
        ["--missing", "drop"],
        r"missing: expected 'skip' or 'error' or 'interpolate', got 'drop'",
    ),
    "not finite": (SERIES + "inf\n", [], r"line 62, column \"value\": inf is not a finite number"),
    "short": ("1\n2\n3\n", [], r"3 values give 1 windows of 2 steps to train on and 0 to judge by"),
    "constant": ("1\n" * 60, [], r"every value is 1 in the part to train on; a constant series"),
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
    "long window": (["diagnose", "sunspots", "--seq-len", "309"], "a seq_len of 103 leaves 145 and 61"),
    "seed": (["diagnose", "sunspots", "--seed", "-1"], "seed: expected"),
    "cell": (["diagnose", "sunspots", "--cell", "mlp"], "cell: expected 'rnn' or 'lstm' or 'gru', got 'mlp'"),
    "init": (["diagnose", "sunspots", "--init", "best"], "init: expected one of default,"),
    "optimizer": (["diagnose", "sunspots", "--optimizer", "lbfgs"], "optimizer: expected one of sgd,"),
    "nan": (["diagnose", "sunspots", "--lr", "nan"], "lr: expected a number above 0, got nan"),
    "infinite": (["diagnose", "sunspots", "--gain", "inf"], "gain: expected a number above 0"),
    "out of range": (["diagnose", "sunspots", "--gain", "1e31"], "gain: expected a number above 0 and at most 1e+30"),
    "infinite rate": (["diagnose", "sunspots", "--lr", "inf"], "lr: expected a finite number"),
    "column of a task": (
        ["diagnose", "adding", "--target", "year"],
        "target: expected a table with columns, got",
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
    for content, message in ((b"caf\xff " * 50, "line 1: byte 0xff is not UTF-8"), (b"a\0b" * 50, "NUL byte")):
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
    for _ in range(1000 if LONG else 40):
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
    assert {path.name for path in tmp_path.iterdir()} == FIGURES | {"diagnosis.json", "report.html", "notes.txt"}
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
@pytest.mark.parametrize("moment", ["1. Forecast", "3. Training"])
def test_ctrl_c_ends_it_and_leaves_nothing(moment: str, tmp_path: Path) -> None:
    argv = ["diagnose", "adding", "--steps", "300", "--hidden", "16", "--seq-len", "20", "--out", str(tmp_path / "out")]
    argv += ["--json", str(tmp_path / "found.json")]
    with subprocess.Popen(
        [*COMMAND_LINE, *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV
    ) as process:
        assert process.stdout is not None
        assert any(moment in line for line in process.stdout)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=HANG)
    assert process.returncode == 130
    assert err == "gradcore: interrupted\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("writing", [1, len(FIGURES)])
def test_ctrl_c_while_figures_are_written_leaves_nothing(
    writing: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, ctrl_c: None
) -> None:
    # From inside: a signal from another process may come when all is written.
    written: list[str] = []

    def interrupted(_: Any, path: Path) -> None:
        path.write_bytes(b"half")
        written.append(path.name)
        if len(written) == writing:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", interrupted)
    argv = ["diagnose", "adding", *QUICK, "--out", str(tmp_path / "out"), "--json", str(tmp_path / "found.json")]
    status, _, err = run(*argv, capsys=capsys)
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
    assert f"by a factor of {math.exp(expected['rate']):.4f} a step, {number(expected['factor'])} over 99" in text
    said = (
        f"over 99 steps it changes by a factor of {number(measured['factor'])} "
        f"(forecast: {number(expected['factor'])}), with a slope of {math.exp(measured['rate']):.4f} a step "
        f"(forecast: {math.exp(expected['rate']):.4f})"
    )
    assert text.count(said) == 2  # section 2, the verdict
    assert said in found["verdict"]["finding"]
    (norms,) = measured["norms"]
    assert measured["factor"] == pytest.approx(norms[0] / norms[-1])
    assert not re.search(r"\d\.?\d*e\+0", text.split("5. Verdict")[1])
    first = found["trials"][0]
    assert text.count(f"{number(first['held_out_loss'])} ± {number(first['spread'])}") == 2  # section 3, the verdict


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
    [
        ("typer", ["info"]),
        ("typer", []),
        *((name, ["diagnose", "adding", "--out", "x"]) for name in ("matplotlib", "bokeh")),
    ],
)
def test_a_missing_extra_is_named(package: str, argv: list[str], tmp_path: Path) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; from gradcore.cli import main; sys.exit(main({argv}))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=ENV, check=False
    )
    assert done.returncode == 2
    assert 'pip install "gradcore[cli]"' in one_line(done.stderr)


@pytest.mark.parametrize("module", ["matplotlib.figure", "bokeh.plotting"])
def test_missing_extras_are_named_before_any_work(
    module: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    argv = ["diagnose", "adding", *QUICK, "--out", str(tmp_path / "out")]
    monkeypatch.setattr(cli, "study", lambda *_: pytest.fail("the work was begun"))
    status, out, err = run(*argv, capsys=capsys)
    assert (status, out, one_line(err)) == (2, "", f"gradcore: {cli.MISSING}\n")
    monkeypatch.setitem(sys.modules, "typer", None)
    assert run("info", capsys=capsys) == (2, "", f"gradcore: {cli.MISSING}\n")


# ---- a model and options of one's own --------------------------------------------------------------------------------

NET = """
import gradcore

def build(task, rng):
    recurrent = gradcore.GRU(task.input_size, 5, rng=rng)
    return gradcore.Sequential(recurrent, gradcore.LastStep(), gradcore.Linear(5, task.output_size, rng=rng))

def fails(task, rng):
    return helper(task)

def helper(task):
    return task.nothing

def flat(task, rng):
    return gradcore.Sequential(gradcore.LastStep(), gradcore.Linear(task.input_size, 1))

class Own(gradcore.Layer):
    def forward(self, x):
        raise ValueError("my own reason")

def late(task, rng):
    return Own()
"""


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NET)
    return tmp_path


def test_a_model_of_ones_own_is_diagnosed_and_repeated(net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["diagnose", "sunspots", *QUICK, "--model", "net.py:build", "--json", "d.json"]
    status, out, err = run(*argv, capsys=capsys)
    assert (status, err) == (0, "")
    assert "net.py:build, 126 parameters" in " ".join(out.split())
    found = strict(Path("d.json").read_text("utf-8"))
    first, *others = found["trials"]
    assert {key for trial in others for key in trial["changes"]} <= {"lr", "max_norm", "step_clip"}
    names: dict[str, Any] = {}
    exec(first["python"], names)
    assert names["history"].loss.tolist() == first["history"]["loss"]
    assert [layer["name"] for layer in found["comparison"]["layers"]] == ["0.l0"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("fails", ["in fails", "in helper", "'Task' object has no attribute 'nothing'"]),
        ("late", ["in forward", "ValueError: my own reason"]),
    ],
)
def test_a_model_that_raises_shows_its_own_frames(
    net: Path, name: str, said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, err = run("diagnose", "sunspots", *QUICK, "--model", f"net.py:{name}", capsys=capsys)
    assert status == 2
    assert err.startswith("gradcore: the model raised\n")
    assert all(text in err for text in said)
    assert "gradcore/diagnosis" not in err
    assert "gradcore/cli" not in err


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("nowhere.py:build", "nowhere.py: no such file"),
        ("net.py:nothing", "net.py: has no function 'nothing'; it has build, fails, helper, flat, Own, late"),
        ("net.py", "model: expected FILE.py:NAME, got 'net.py'"),
        ("net.py:flat", "model: expected a model with an RNN, LSTM or GRU, got Sequential(LastStep(), Linear(1, 1))"),
    ],
)
def test_a_model_that_is_none(net: Path, model: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run("diagnose", "sunspots", *QUICK, "--model", model, capsys=capsys)
    assert (status, err) == (2, f"gradcore: {said}\n")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="no tomllib")
def test_options_of_a_file_give_way_to_those_of_the_command_line(net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("run.toml").write_text('cell = "gru"\nhidden = 4\nseq-len = 12\nsteps = 3\nseeds = 1\nbatch = 2\n')
    argv = ["diagnose", "sunspots", "--config", "run.toml", "--hidden", "3", "--json", "d.json"]
    status, _, err = run(*argv, capsys=capsys)
    assert (status, err) == (0, "")
    config = strict(Path("d.json").read_text("utf-8"))["start"]["config"]
    assert (config["cell"], config["hidden"], config["seq_len"], config["steps"]) == ("gru", 3, 12, 3)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="no tomllib")
@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, r"--config run\.toml: no such file"),
        ("hiden = 3", r"--config run\.toml: expected options of the command line \(.*hidden.*\), got 'hiden'"),
        ("hidden = ", r"--config run\.toml: Invalid value"),
        ('hidden = "many"', "Invalid value for '--hidden'"),
        ("cell = 3", "cell: expected 'rnn' or 'lstm' or 'gru', got '3'"),
    ],
)
def test_options_of_a_file_that_are_none(
    net: Path, text: str | None, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        Path("run.toml").write_text(text)
    status, _, err = run("diagnose", "sunspots", "--config", "run.toml", capsys=capsys)
    assert status == 2
    assert re.search(said, err), err
    assert len(err.splitlines()) == 1
