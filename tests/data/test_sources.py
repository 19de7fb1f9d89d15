"""A source becomes a task; a bad one ends in one line that says what is wrong and where."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest

from gradcore.data import SourceError, load, sources
from gradcore.data.sources import SOURCES
from gradcore.data.table import read_series

# ---- one shape for all -----------------------------------------------------------------------------------------------


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "poem.txt"
    path.write_text("so much depends upon a red wheel barrow\n" * 5, encoding="utf-8")
    return path


@pytest.mark.parametrize("source", [*SOURCES, "text"])
def test_a_task_draws_what_it_says_and_the_same_again(source: str, text: Path) -> None:
    task = load(text if source == "text" else source, 30)
    batches = task.batches(4, 3, seed=7)
    assert len(batches) == 3
    first, second = list(batches), list(batches)
    assert len(first) == 3
    for (x, target), (x2, target2) in zip(first, second, strict=True):
        assert x.shape == (task.steps, 4, task.input_size)
        assert x.dtype == np.float32
        assert (x == x2).all()
        assert (target == target2).all()
        y = np.zeros(((task.steps,) if task.every_step else ()) + (4, task.output_size), np.float32)
        loss, dy = task.loss(y, target)
        assert loss >= 0
        assert dy.shape == y.shape
    assert not (first[0][0] == first[1][0]).all()
    assert not (first[0][0] == next(iter(task.batches(4, 1, seed=8)))[0]).all()


def test_sunspots_are_the_classical_yearly_series() -> None:
    lines = (Path(sources.__file__).parent / "sunspots.csv").read_text("utf-8").splitlines()
    assert lines[0] == "year,sunspots"
    table = [line.split(",") for line in lines[1:]]
    assert [int(year) for year, _ in table] == list(range(1700, 2009))
    values = {int(year): float(value) for year, value in table}
    assert (values[1700], values[1957], values[2008]) == (5.0, 190.2, 2.9)
    assert max(values, key=lambda year: values[year]) == 1957
    assert np.mean(list(values.values())) == pytest.approx(49.75, abs=0.01)


def test_windows_are_standardized_and_the_target_is_the_value_after(tmp_path: Path) -> None:
    path = tmp_path / "ramp.csv"
    path.write_text("\n".join(str(3 * i + 5) for i in range(40)), encoding="utf-8")
    task = load(path, 6)
    x, target = next(iter(task.batches(1000, 1)))
    unit = (x[1, 0, 0] - x[0, 0, 0]).item()
    np.testing.assert_allclose(np.diff(x[..., 0], axis=0), unit, rtol=1e-4)
    np.testing.assert_allclose(target - x[-1], unit, rtol=1e-4)
    assert unit == pytest.approx(1 / np.std(np.arange(32)), rel=1e-5)  # of what is trained on
    assert len(np.unique(x[0].round(4))) == 32 - 6  # every window is drawn, the last one too
    test_x, test_target = task.test()
    assert test_x.shape == (6, 8, 1)
    np.testing.assert_allclose(test_target[:, 0], (np.arange(32, 40) - 15.5) * unit, rtol=1e-5)
    assert task.baselines["constant"] == task.baseline == pytest.approx(float(np.mean(test_target**2)), rel=1e-5)
    assert task.baselines["last_value"] == pytest.approx(unit**2, rel=1e-4)
    assert task.facts["windows"] == {"training": 26, "held_out": 8, "left_out": 0}


def test_characters_predict_the_next(text: Path) -> None:
    task = load(text, 20)
    alphabet = sorted(set(text.read_text("utf-8")))
    assert task.input_size == task.output_size == len(alphabet)
    x, labels = next(iter(task.batches(8, 1)))
    assert (x.argmax(-1)[1:] == labels[:-1]).all()
    written = "".join(alphabet[i] for i in [*x[:, 0].argmax(-1), labels[-1, 0]])
    assert written in text.read_text("utf-8")
    assert 0 < task.baseline < math.log(len(alphabet))


def test_any_script_is_text(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("\ufeff" + "Ünïcødé 中文 🙂\r\n" * 10, encoding="utf-8")
    assert load(path, 10).input_size == 12  # one newline, no mark of byte order


def test_values_far_apart_neither_overflow_nor_vanish(tmp_path: Path) -> None:
    for scale in ("e307", "e-307"):
        path = tmp_path / "extreme.csv"
        path.write_text("\n".join(f"{(i * 7) % 11 - 5}{scale}" for i in range(40)), encoding="utf-8")
        x, _ = next(iter(load(path, 10).batches(100, 1)))
        assert np.isfinite(x).all()
        assert 0.5 < x.std() < 2


@pytest.mark.parametrize(("swing", "constant"), [(1e-13, True), (1e-11, False)])
@pytest.mark.parametrize("level", [3.0, -7e-200, 5e300])
def test_a_series_that_hardly_varies_is_constant(tmp_path: Path, level: float, swing: float, constant: bool) -> None:
    """Differences near rounding are no signal; ones a hundred times as large are, at any scale."""
    path = tmp_path / "flat.csv"
    path.write_text("\n".join(repr(level * (1 + swing * (-1) ** i)) for i in range(40)), encoding="utf-8")
    if constant:
        with pytest.raises(SourceError, match="a constant series has nothing to learn"):
            load(path, 6)
    else:
        x, _ = next(iter(load(path, 6).batches(200, 1)))
        np.testing.assert_allclose(np.abs(x), 1, rtol=0.01)


# ---- tables ----------------------------------------------------------------------------------------------------------

TABLE = "date,open,close\n" + "".join(f"2020-01-{i:02},{i},{i * i}\n" for i in range(1, 29))


def column(tmp_path: Path, content: str, name: str | None = None, suffix: str = ".csv") -> list[float]:
    """The values of the target."""
    path = tmp_path / f"table{suffix}"
    path.write_text(content, encoding="utf-8")
    return list(read_series(path, target=name).targets[0])


@pytest.mark.parametrize(
    ("content", "name", "values"),
    [
        (TABLE, None, [i * i for i in range(1, 29)]),
        (TABLE, "open", list(range(1, 29))),
        (TABLE, "1", list(range(1, 29))),
        ("1\n2\n3\n", None, [1, 2, 3]),
        ("1\n2\n3\n", "0", [1, 2, 3]),
        ("value\n1\n2\n3\n\n\n", "value", [1, 2, 3]),
        ("a;b\r\n1;2,5\r\n".replace(",", ".") + "3;4\r\n5;7\r\n", "b", [2.5, 4, 7]),
        ("a\tb\n1\t2\n3\t4\n5\t7", None, [2, 4, 7]),
        ('"a, b", c\n"1", 2\n 3, 4\n5,7', "a, b", [1, 3, 5]),
        ("x,y\nfoo,1e3\nbar,-2.5E-1\nbaz,+4", "y", [1000, -0.25, 4]),
        ("2020-01-01,5\n2020-01-02,6\n2020-01-03,9\n", None, [5, 6, 9]),
        ("7,1\n8,2\n9,4", "0", [7, 8, 9]),
    ],
)
def test_tables_are_read(tmp_path: Path, content: str, name: str | None, values: list[float]) -> None:
    assert column(tmp_path, content, name) == values


BAD_TABLES = {
    "text in a number": (
        "v\n1\n2\nthree\n4\n",
        None,
        r'table\.csv, line 4, column "v": expected a number, got \'three\'',
    ),
    "text without header": ("1\n2\nx\n", None, r"line 3, column 0: expected a number, got 'x'"),
    "long text": ("v\n" + "y" * 500, None, r"line 2.*got 'y{37}\.\.\.'"),
    "underscore": ("v\n1_000\n", None, r"line 2.*expected a number, got '1_000'"),
    "missing": ("a,b\n1,2\n3,\n", "b", r"b: every value is 2 in the part to train on"),
    "inf": ("v\n1\n2\n3\n-inf\n", None, r'line 5, column "v": -inf is not a finite number'),
    "too large": ("v\n1e999\n", None, r"line 2.*1e999 is not a finite number"),
    "ragged": ("a,b\n1,2\n3\n", None, r"line 3: expected 2 columns as in the first line, got 1"),
    "header only": ("a,b\n", None, "has a header but no values"),
    "constant": ("v\n" + "3.5\n" * 30, None, "v: every value is 3.5 in the part to train on; a constant series"),
    "zero": ("v\n" + "0\n" * 30, None, "v: every value is 0 in the part to train on; a constant series"),
    "unknown column": (TABLE, "price", r'has no column "price"; its columns are date, open, close'),
    "column too far": (TABLE, "3", r'has no column "3"; its columns are date, open, close'),
    "negative column": (TABLE, "-1", r'has no column "-1"'),
    "name without header": ("0,2\n1,4\n2,9\n", "open", r"its columns are 0 to 1 \(there is no header\)"),
    "too short": (
        "v\n1\n2\n3\n4\n",
        None,
        r"4 values give 0 windows of 6 steps to train on and 0 to judge by; expected at least 8 and 4",
    ),
    "open quote": ('v\n1\n"' + "2\n" * 100_000, None, r"not a readable table"),
}


@pytest.mark.parametrize(("content", "name", "message"), BAD_TABLES.values(), ids=BAD_TABLES.keys())
def test_bad_tables_say_what_and_where(tmp_path: Path, content: str, name: str | None, message: str) -> None:
    path = tmp_path / "table.csv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(SourceError, match=message) as error:
        load(path, 6, target=name)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


BAD_FILES = {
    "empty": (b"", "is empty"),
    "blank": (b" \n\n ", "is empty"),
    "a byte-order mark alone": (b"\xef\xbb\xbf", "is empty"),
    "a byte-order mark and a blank line": (b"\xef\xbb\xbf \n", "is empty"),
    "not utf-8": (b"abc\ndef\xff\xfe\n", "line 2: byte 0xff is not UTF-8"),
    "nul": (b"abc\n\ndef\0ghi", "line 3: contains a NUL byte"),
    "one character": (b"aaaaaaaaaaaaaaaaaaaaaaaa", "every character is 'a'"),
    "too short": (b"abcd", "expected more than 6 characters to train on, and a tenth .* to judge by, got 4"),
}


@pytest.mark.parametrize(("content", "message"), BAD_FILES.values(), ids=BAD_FILES.keys())
@pytest.mark.parametrize("name", ["data.txt", "data.csv"])
def test_bad_files_say_what_and_where(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    if name == "data.csv" and b"a" in content and b"\0" not in content and b"\xff" not in content:
        pytest.skip("these are bad as texts only")
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(SourceError, match=message) as error:
        load(path, 6)
    assert "\n" not in str(error.value)


def test_missing_files_directories_and_columns_of_texts(tmp_path: Path, text: Path) -> None:
    with pytest.raises(SourceError, match=r"nowhere\.csv: no such file, and not one of the tasks sunspots, adding"):
        load(tmp_path / "nowhere.csv")
    for name in ("folder", "folder.csv"):
        (tmp_path / name).mkdir()
        with pytest.raises(SourceError, match="is a directory"):
            load(tmp_path / name)
    for source in ("copy", "adding"):
        with pytest.raises(SourceError, match=r"^target: expected a table with columns, got the "):
            load(source, target="x")
    with pytest.raises(SourceError, match="cannot be read"):
        load("a\0b")
    with pytest.raises(SourceError, match=r"309 values give 0 windows of 309 .*; a seq_len of 103 leaves 145 and 61"):
        load("sunspots", 309)
    with pytest.raises(ValueError, match="seq_len"):
        load("sunspots", 1)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the superuser may read everything")
def test_unreadable_file(tmp_path: Path) -> None:
    path = tmp_path / "secret.csv"
    path.write_text("1\n2\n3\n", encoding="utf-8")
    path.chmod(0)
    with pytest.raises(SourceError, match=r"cannot be read \(Permission denied\)"):
        load(path)
