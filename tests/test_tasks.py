"""Batches have the definitions of the papers; every bad source ends in one line that says what and where."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradcore import tasks
from gradcore.tasks import SourceError, load


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# ---- the tasks of the literature -------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [2, 3, 50, 101])
def test_adding_has_one_marker_in_each_half_and_their_sum(length: int) -> None:
    x, target = tasks.adding(rng(), 200, length)
    assert x.shape == (length, 200, 2)
    assert target.shape == (200, 1)
    assert x.dtype == target.dtype == np.float32
    values, markers = x[..., 0], x[..., 1]
    assert ((values >= 0) & (values < 1)).all()
    assert (markers[: length // 2].sum(0) == 1).all()
    assert (markers[length // 2 :].sum(0) == 1).all()
    np.testing.assert_allclose((values * markers).sum(0), target[:, 0], rtol=1e-6)


def test_adding_baseline_is_the_loss_of_the_constant_answer() -> None:
    _, target = tasks.adding(rng(), 200_000, 2, dtype=np.float64)
    assert load("adding").baseline == pytest.approx(np.mean((target - 1) ** 2), rel=0.02)


@pytest.mark.parametrize("length", [2, 3, 10, 50, 100])
def test_temporal_order_hides_two_symbols_in_their_windows(length: int) -> None:
    x, labels = tasks.temporal_order(rng(), 500, length)
    assert x.shape == (length, 500, 6)
    assert (x.sum(-1) == 1).all()
    relevant = x[..., :2].sum(-1)
    assert (relevant.sum(0) == 2).all()
    first, second = relevant.argmax(0), length - 1 - relevant[::-1].argmax(0)
    assert first.min() >= int(0.1 * length)
    assert first.max() <= max(int(0.2 * length) - 1, int(0.1 * length))
    assert second.min() >= int(0.5 * length)
    assert second.max() <= max(int(0.6 * length) - 1, int(0.5 * length))
    rows = np.arange(500)
    assert (labels == 2 * x[first, rows].argmax(-1) + x[second, rows].argmax(-1)).all()
    assert set(labels) == {0, 1, 2, 3}
    distractors = x[relevant == 0].argmax(-1)
    assert length <= 3 or set(distractors) == {2, 3, 4, 5}


@pytest.mark.parametrize("delay", [1, 2, 100])
def test_copy_asks_for_the_ten_symbols_after_the_signal(delay: int) -> None:
    x, labels = tasks.copy(rng(), 50, delay)
    assert x.shape == (delay + 20, 50, 10)
    symbols = x.argmax(-1)
    assert (symbols[:10] < 8).all()
    assert (symbols[10 : 10 + delay - 1] == 8).all()
    assert (symbols[10 + delay - 1] == 9).all()
    assert (symbols[10 + delay :] == 8).all()
    assert (labels[: delay + 10] == 8).all()
    assert (labels[delay + 10 :] == symbols[:10]).all()


@pytest.mark.parametrize(("delay", "loss"), [(100, 0.17329), (200, 0.09452), (1000, 0.02039)])
def test_copy_baseline_is_the_published_one(delay: int, loss: float) -> None:
    assert load("copy", delay).baseline == pytest.approx(loss, abs=5e-6)


@pytest.mark.parametrize("make", [tasks.adding, tasks.temporal_order, tasks.copy])
def test_generators_refuse_nonsense_and_take_empty_batches(make: Any) -> None:
    x, target = make(rng(), 0, 30)
    assert x.shape[1] == 0 == target.shape[-1 if target.dtype == np.int64 else 0]
    assert make(rng(), 2, 30, dtype=np.float64)[0].dtype == np.float64
    with pytest.raises(ValueError, match="batch"):
        make(rng(), -1, 30)
    with pytest.raises(ValueError, match=r"length|delay"):
        make(rng(), 3, 0)
    with pytest.raises(TypeError, match="dtype"):
        make(rng(), 3, 30, dtype=np.int32)


# ---- one shape for all -----------------------------------------------------------------------------------------------


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "poem.txt"
    path.write_text("so much depends upon a red wheel barrow\n" * 5, encoding="utf-8")
    return path


@pytest.mark.parametrize("source", [*tasks.TASKS, "text"])
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
    lines = (Path(tasks.__file__).parent / "data" / "sunspots.csv").read_text("utf-8").splitlines()
    assert lines[0] == "year,sunspots"
    table = [line.split(",") for line in lines[1:]]
    assert [int(year) for year, _ in table] == list(range(1700, 2009))
    values = {int(year): float(value) for year, value in table}
    assert (values[1700], values[1957], values[2008]) == (5.0, 190.2, 2.9)
    assert max(values, key=lambda year: values[year]) == 1957
    assert np.mean(list(values.values())) == pytest.approx(49.75, abs=0.01)


def test_windows_are_standardised_and_the_target_is_the_value_after(tmp_path: Path) -> None:
    path = tmp_path / "ramp.csv"
    path.write_text("\n".join(str(3 * i + 5) for i in range(40)), encoding="utf-8")
    task = load(path, 6)
    x, target = next(iter(task.batches(1000, 1)))
    unit = (x[1, 0, 0] - x[0, 0, 0]).item()
    np.testing.assert_allclose(np.diff(x[..., 0], axis=0), unit, rtol=1e-4)
    np.testing.assert_allclose(target - x[-1], unit, rtol=1e-4)
    assert unit == pytest.approx(1 / np.std(np.arange(40)), rel=1e-5)
    assert len(np.unique(x[0].round(4))) == 34  # every window is drawn, the last one too
    assert task.baseline == 1.0


def test_exactly_one_window_is_enough(tmp_path: Path) -> None:
    path = tmp_path / "short.csv"
    path.write_text("1\n2\n4\n", encoding="utf-8")
    x, target = next(iter(load(path, 2).batches(5, 1)))
    assert (x == x[:, :1]).all()
    assert (target == target[0]).all()


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


# ---- tables ----------------------------------------------------------------------------------------------------------

TABLE = "date,open,close\n" + "".join(f"2020-01-{i:02},{i},{i * i}\n" for i in range(1, 29))


def column(tmp_path: Path, content: str, name: str | None = None, suffix: str = ".csv") -> list[float]:
    """The values that `load` found, through the standardised windows of the whole series."""
    path = tmp_path / f"table{suffix}"
    path.write_text(content, encoding="utf-8")
    values, _ = tasks._column(str(path), tasks.read_text(str(path)), name)
    load(path, 2, column=name)
    return list(values)


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
    "missing": ("a,b\n1,2\n3,\n", "b", r'line 3, column "b": the value is missing'),
    "missing at once": ("NA\n1\n2\n", None, r"line 1, column 0: the value is missing \(NA\)"),
    "nan": ("v\n1\nNaN\n", None, r'line 3, column "v": the value is missing \(NaN\)'),
    "inf": ("v\n1\n2\n3\n-inf\n", None, r'line 5, column "v": -inf is not a finite number'),
    "too large": ("v\n1e999\n", None, r"line 2.*1e999 is not a finite number"),
    "blank line": ("v\n1\n\n2\n", None, r"line 3: the line is empty"),
    "blank first line": ("\n1\n2\n", None, r"line 1: the line is empty"),
    "ragged": ("a,b\n1,2\n3\n", None, r"line 3: 1 columns, expected 2"),
    "header only": ("a,b\n", None, "has a header but no values"),
    "constant": ("v\n" + "3.5\n" * 30, None, "every value is 3.5; a constant series"),
    "zero": ("v\n" + "0\n" * 30, None, "every value is 0; a constant series"),
    "unknown column": (TABLE, "price", r'has no column "price"; its columns are date, open, close'),
    "column too far": (TABLE, "3", r'has no column "3"; its columns are date, open, close'),
    "negative column": (TABLE, "-1", r'has no column "-1"'),
    "name without header": ("1,2\n3,4\n", "open", r"its columns are 0 to 1 \(there is no header\)"),
    "too short": ("v\n1\n2\n3\n4\n", None, r"4 values, but windows of 6 .* at least 7; --seq-len 3 would fit"),
    "open quote": ('v\n1\n"' + "2\n" * 100_000, None, r"not a readable table"),
}


@pytest.mark.parametrize(("content", "name", "message"), BAD_TABLES.values(), ids=BAD_TABLES.keys())
def test_bad_tables_say_what_and_where(tmp_path: Path, content: str, name: str | None, message: str) -> None:
    path = tmp_path / "table.csv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(SourceError, match=message) as error:
        load(path, 6, column=name)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


BAD_FILES = {
    "empty": (b"", "is empty"),
    "blank": (b" \n\n ", "is empty"),
    "a byte-order mark alone": (b"\xef\xbb\xbf", "is empty"),
    "a byte-order mark and a blank line": (b"\xef\xbb\xbf \n", "is empty"),
    "not utf-8": (b"abc\ndef\xff\xfe\n", "line 2: byte 0xff is not UTF-8"),
    "nul": (b"abc\n\ndef\0ghi", "line 3: holds a NUL byte"),
    "one character": (b"aaaaaaaaaaaaaaaaaaaaaaaa", "holds one character only, 'a'"),
    "too short": (b"abcd", "4 characters, but windows of 6 .* --seq-len 3 would fit"),
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
    with pytest.raises(SourceError, match=r"nowhere\.csv: no such file, and none of the tasks sunspots, adding"):
        load(tmp_path / "nowhere.csv")
    for name in ("folder", "folder.csv"):
        (tmp_path / name).mkdir()
        with pytest.raises(SourceError, match="is a directory"):
            load(tmp_path / name)
    for source in (text, "sunspots", "adding"):
        with pytest.raises(SourceError, match="--column is for CSV files"):
            load(source, column="x")
    with pytest.raises(SourceError, match="cannot be read"):
        load("a\0b")
    with pytest.raises(SourceError, match="309 values, but windows of 309"):
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
