"""Tables as people have them are read rightly, or refused in one line that says why."""

from __future__ import annotations

import gzip
import math
import os
import socket
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradcore.data import SourceError, files, load
from gradcore.data.table import Series, read_series

NAN = math.nan
N = 40
VALUES = [round(12 + 9 * math.sin(i / 3) + i / 7, 2) for i in range(N)]
DAYS = [f"2020-{i // 28 + 1:02}-{i % 28 + 1:02}" for i in range(N)]
GERMAN_DAYS = [f"{i % 28 + 1:02}.{i // 28 + 1:02}.2020" for i in range(N)]
COMMAS = [str(v).replace(".", ",") for v in VALUES]
GAPS = ["", "NA", "NaN", "?", "-", "null", "n/a"]
POWER = [1234.5 + 100 * i for i in range(N)]


def rows(line: Callable[[int], str], head: str = "", foot: str = "", end: str = "\n") -> str:
    """A header, N lines and a footer."""
    return end.join([*head.split("\n")] * bool(head) + [line(i) for i in range(N)] + [foot] * bool(foot)) + end


Case = tuple[str | bytes, dict[str, Any], list[float], str]  # a file, options, values of the target, its label
PLAIN = rows(lambda i: f"{DAYS[i]},{VALUES[i]}", "day,v")
TABLES: dict[str, Case] = {
    "a table of Markdown": (
        rows(lambda i: f"| {DAYS[i]} | {VALUES[i]} |", "| day | v |\n|-----|---|"),
        {"target": "v"},
        VALUES,
        "v",
    ),
    "a table of PostgreSQL": (
        rows(lambda i: f" {DAYS[i]} | {VALUES[i]:5}", " day        |   v\n------------+-------"),
        {},
        VALUES,
        "v",
    ),
    "AM and PM": (
        rows(lambda i: f"1/{i // 24 + 1}/2021 {i % 12 or 12}:00:00 {'AP'[i // 12 % 2]}M,{VALUES[i]}", "t,v"),
        {},
        VALUES,
        "v",
    ),
    "an export of quotes": (
        rows(
            lambda i: f'"{i % 2 + 1:02}/{28 - i // 2:02}/2021","{POWER[i]:,.2f}","{i}.1K","{i / 7:.2f}%"',
            '"Date","Price","Vol.","Change %"',
        ),
        {"target": "Price"},
        POWER,
        "Price",
    ),
    "commas": (PLAIN, {}, VALUES, "v"),
    "semicolons": (rows(lambda i: f"{DAYS[i]};{VALUES[i]}", "day;v"), {}, VALUES, "v"),
    "tabs": (rows(lambda i: f"{DAYS[i]}\t{VALUES[i]}", "day\tv"), {}, VALUES, "v"),
    "pipes": (rows(lambda i: f"{DAYS[i]}|{VALUES[i]}", "day|v"), {}, VALUES, "v"),
    "spaces": (rows(lambda i: f"{DAYS[i]}   {VALUES[i]:6.2f}", "day  v"), {}, VALUES, "v"),
    "spaces before": (
        rows(lambda i: f"  {i:4d} {VALUES[i]:8.2f} {i % 7:3d}", "", ""),
        {"target": 1},
        VALUES,
        "column 1",
    ),
    "comma and space": (rows(lambda i: f"{DAYS[i]}, {VALUES[i]}", "day, v"), {}, VALUES, "v"),
    "decimal commas": (rows(lambda i: f"{GERMAN_DAYS[i]};{COMMAS[i]}", "Datum;Temperatur"), {}, VALUES, "Temperatur"),
    "decimal commas, a comma in the header": (
        rows(lambda i: f"{GERMAN_DAYS[i]};{COMMAS[i]}", "Datum;Temperatur, Grad C"),
        {},
        VALUES,
        "Temperatur, Grad C",
    ),
    "decimal commas in tabs": (rows(lambda i: f"{i}\t{COMMAS[i]}", "n\tv"), {}, VALUES, "v"),
    "decimal commas in quotes": (rows(lambda i: f'{DAYS[i]},"{COMMAS[i]}"', "day,v"), {}, VALUES, "v"),
    "decimal commas in one column": (rows(lambda i: COMMAS[i], "Wert"), {}, VALUES, "Wert"),
    "decimal commas, told": (rows(lambda i: COMMAS[i]), {"decimal": ","}, VALUES, "column 0"),
    "two columns of integers, told": (
        rows(lambda i: f"{i * i},{i % 9}"),
        {"delimiter": ","},
        [i % 9 for i in range(N)],
        "column 1",
    ),
    "an index before integers": (rows(lambda i: f"{i},{i % 9}"), {}, [i % 9 for i in range(N)], "column 1"),
    "air quality: empty columns and lines": (
        rows(lambda i: f"10/03/2004;{i % 24:02}.00.00;{COMMAS[i]};;", "Date;Time;T;;", ";;;;\n;;;;"),
        {},
        VALUES,
        "T",
    ),
    "thousands": (rows(lambda i: f'{DAYS[i]},"{POWER[i]:,.2f}"', "Date,Close"), {}, POWER, "Close"),
    "thousands, German": (
        rows(lambda i: f"{DAYS[i]};{POWER[i]:,.2f}".translate(str.maketrans(",.", ".,")), "Date;Close"),
        {},
        POWER,
        "Close",
    ),
    "thousands with spaces": (
        rows(lambda i: f"{DAYS[i]};{POWER[i]:,.1f}".replace(",", "\u00a0").replace(".", ","), "d;v"),
        {},
        POWER,
        "v",
    ),
    "thousands with apostrophes": (
        rows(lambda i: f"{DAYS[i]};{POWER[i]:,.1f}".replace(",", "'"), "d;v"),
        {},
        POWER,
        "v",
    ),
    "millions": (rows(lambda i: f'{DAYS[i]},"{1140409 + i:,}"', "d,v"), {}, [1140409 + i for i in range(N)], "v"),
    "thousands, told": (
        rows(lambda i: f'{DAYS[i]},"{1014 + i:,}"', "d,v"),
        {"decimal": "."},
        [1014 + i for i in range(N)],
        "v",
    ),
    "three decimals": (rows(lambda i: f"{DAYS[i]},{VALUES[i]:.3f}", "d,v"), {}, VALUES, "v"),
    "three decimals, one column": (rows(lambda i: f"{99 + VALUES[i]:.3f}", "v"), {}, [99 + v for v in VALUES], "v"),
    "mark of UTF-8": (b"\xef\xbb\xbf" + PLAIN.encode(), {"target": "v", "time": "day"}, VALUES, "v"),
    "mark of UTF-8, quoted, CRLF": (
        b"\xef\xbb\xbf" + rows(lambda i: f'"{DAYS[i]}","{VALUES[i]}"', '"Date","Close"', end="\r\n").encode(),
        {"time": "Date"},
        VALUES,
        "Close",
    ),
    "UTF-16": (PLAIN.encode("utf-16"), {}, VALUES, "v"),
    "UTF-16, other order, no mark": (PLAIN.encode("utf-16-be"), {}, VALUES, "v"),
    "Windows-1252": (
        rows(lambda i: f"{DAYS[i]};{VALUES[i]}", "Datum;Temperatur °C").encode("cp1252"),
        {},
        VALUES,
        "Temperatur °C",
    ),
    "Windows-1251, told": (
        rows(lambda i: f"{DAYS[i]};{VALUES[i]}", "дата;цена").encode("cp1251"),
        {"encoding": "cp1251"},
        VALUES,
        "цена",
    ),
    "CRLF": (PLAIN.replace("\n", "\r\n"), {}, VALUES, "v"),
    "CR": (PLAIN.replace("\n", "\r"), {}, VALUES, "v"),
    "CRCRLF": (PLAIN.replace("\n", "\r\r\n"), {}, VALUES, "v"),
    "sep=": ("sep=;\n" + rows(lambda i: f"{DAYS[i]};{VALUES[i]}", "day;v"), {}, VALUES, "v"),
    "sep=, quoted": ('"sep=,"\n' + PLAIN, {}, VALUES, "v"),
    "any delimiter, told": (rows(lambda i: f"{DAYS[i]}^{VALUES[i]}", "day^v"), {"delimiter": "^"}, VALUES, "v"),
    "a header in quotes with a line break": (
        rows(lambda i: f"{DAYS[i]},{VALUES[i]}", 'day,"v\nin kW"'),
        {},
        VALUES,
        "v in kW",
    ),
    "a cell with line breaks": (rows(lambda i: f'{VALUES[i]},"say ""{i}"",\nplease"', "v,note"), {}, VALUES, "v"),
    "pandas, unnamed": (rows(lambda i: f"{i},{VALUES[i]}", ",0"), {}, VALUES, "0"),
    "pandas, unnamed, near a million": (
        rows(lambda i: f"{i},{1000000 + VALUES[i]}", ",0"),
        {},
        [1000000 + v for v in VALUES],
        "0",
    ),
    "pandas, named": (rows(lambda i: f"{i},{DAYS[i]},{VALUES[i]}", ",day,v"), {}, VALUES, "v"),
    "pandas, dates as index": (rows(lambda i: f"{DAYS[i]},{VALUES[i]}", ",v"), {}, VALUES, "v"),
    "pandas, two rows of names": (
        rows(lambda i: f"{DAYS[i]},{VALUES[i]},{-i}", ",a,a\n,x,y\nday,,"),
        {"target": "a x"},
        VALUES,
        "a x",
    ),
    "years as names": (rows(lambda i: f"m{i},{VALUES[i] / 2:.3f},{VALUES[i]}", "month,2018,2019"), {}, VALUES, "2019"),
    "years as names, told": (
        rows(lambda i: f"m{i},{i * 7 % 11}", "month,2018"),
        {"target": "2018"},
        [i * 7 % 11 for i in range(N)],
        "2018",
    ),
    "numbers as names": (rows(lambda i: f"{-VALUES[i]},{VALUES[i]:.3f}", "400,500"), {}, VALUES, "500"),
    "no header": (rows(lambda i: f"{DAYS[i]},{VALUES[i]}"), {}, VALUES, "column 1"),
    "no header, words": (rows(lambda i: f"s{i % 3},{VALUES[i]}"), {}, VALUES, "column 1"),
    "no header, one column": (rows(lambda i: f"{VALUES[i]}"), {}, VALUES, "column 0"),
    "units": (rows(lambda i: f"{DAYS[i]},{VALUES[i]}", "day,v\nyyyy-mm-dd,°C"), {}, VALUES, "v"),
    "units of some": (rows(lambda i: f"{i},{VALUES[i]},{i % 3}", "n,v,w\n,m/s,"), {"target": "v"}, VALUES, "v"),
    "titles": (rows(lambda i: f"{DAYS[i]},{VALUES[i]}", "Station: Potsdam\n\nday,v"), {}, VALUES, "v"),
    "comments": (rows(lambda i: f"{i} {VALUES[i]}", "# a long story\n# n v"), {}, VALUES, "v"),
    "a footer": (
        rows(lambda i: f"{DAYS[i]},{VALUES[i]}", "day,v", "\nSource: the station's own counts"),
        {},
        VALUES,
        "v",
    ),
    "a footer in quotes": (
        rows(lambda i: f'"{DAYS[i]}",{VALUES[i]}', '"Month","v"', '"monthly, in kW"'),
        {},
        VALUES,
        "v",
    ),
    "delimiters at the end": (rows(lambda i: f"{DAYS[i]},{VALUES[i]},", "day,v,"), {}, VALUES, "v"),
    "delimiters at the end of rows": (rows(lambda i: f"{DAYS[i]},{VALUES[i]},", "day,v"), {}, VALUES, "v"),
    "names of rows, as R writes": (
        rows(lambda i: f'"{i + 1}" {VALUES[i]} {i % 4}', '"v" "w"'),
        {"target": "v"},
        VALUES,
        "v",
    ),
    "dates at the end": (rows(lambda i: f"{VALUES[i]},{DAYS[i]}", "Close,Date"), {}, VALUES, "Close"),
    "dates in the middle": (rows(lambda i: f"{i % 5},{DAYS[i]},{VALUES[i]}", "a,day,v"), {}, VALUES, "v"),
    "newest first": (rows(lambda i: f"{DAYS[N - 1 - i]},{VALUES[N - 1 - i]}", "day,v"), {}, VALUES, "v"),
    "newest first, month first": (
        rows(lambda i: f"{3 if i < 20 else 2}/{28 - i % 20}/2020,{VALUES[N - 1 - i]}", "day,v"),
        {},
        VALUES,
        "v",
    ),
    "sorted by time": (rows(lambda i: f"{(i * 7) % N},{VALUES[(i * 7) % N]}", "t,v"), {"time": "t"}, VALUES, "v"),
    "date and time, newest first": (
        rows(lambda i: f"2020-01-0{(39 - i) // 24 + 1};{(39 - i) % 24:02}:00:00;{VALUES[39 - i]}", "Date;Time;v"),
        {},
        VALUES,
        "v",
    ),
    "missing marks": (
        rows(lambda i: f"{DAYS[i]};{GAPS[i // 5] if i % 5 == 4 and i < 35 else VALUES[i]}", "day;v"),
        {},
        [NAN if i % 5 == 4 and i < 35 else v for i, v in enumerate(VALUES)],
        "v",
    ),
    "missing as -999": (
        rows(lambda i: f"{DAYS[i]};{-999.0 if i % 5 == 4 else VALUES[i]}", "day;v"),
        {"na": "-999"},
        [NAN if i % 5 == 4 else v for i, v in enumerate(VALUES)],
        "v",
    ),
    "missing words": (
        rows(lambda i: f"{DAYS[i]};{'broken' if i == 4 else VALUES[i]}", "day;v"),
        {"na": ["broken", "-1"]},
        [NAN if i == 4 else v for i, v in enumerate(VALUES)],
        "v",
    ),
    "interpolated": (
        rows(lambda i: f"{DAYS[i]},{'' if i in (0, 6, 7) else 2.5 * i}", "d,v"),
        {"missing": "interpolate"},
        [NAN, *(2.5 * i for i in range(1, N))],
        "v",
    ),
    "a blank line is missing in one column": (
        rows(lambda i: "" if i == 6 else str(VALUES[i]), "v"),
        {},
        [NAN if i == 6 else v for i, v in enumerate(VALUES)],
        "v",
    ),
    "a blank line between rows": (PLAIN.replace("2020-01-09", "\n2020-01-09"), {}, VALUES, "v"),
    "gzip": (gzip.compress(PLAIN.encode()), {}, VALUES, "v"),
    "exponents and signs": (rows(lambda i: f"x,{VALUES[i]:+.6e}", "a,b"), {}, VALUES, "b"),
    "minus of typesetters": (rows(lambda i: f"{i};−{VALUES[i]}", "a;b"), {}, [-v for v in VALUES], "b"),
    "JSON lines": (rows(lambda i: f'{{"day": "{DAYS[i]}", "v": {VALUES[i]}}}'), {}, VALUES, "v"),
}


def read(folder: Path, content: str | bytes, suffix: str = ".csv", **options: Any) -> Series:
    path = folder / f"table{suffix}"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_series(path, **options)


@pytest.mark.parametrize("suffix", [".csv", ".txt"])
@pytest.mark.parametrize("name", TABLES)
def test_tables_are_read(tmp_path: Path, name: str, suffix: str) -> None:
    content, options, values, label = TABLES[name]
    series = read(tmp_path, content, suffix, **options)
    assert series.target == label
    (got,) = series.targets
    np.testing.assert_allclose(got, values, rtol=1e-6)
    np.testing.assert_array_equal(series.parts[0][:, 0], got)
    assert series.facts["n"] == len(values)
    present = np.array(values)[~np.isnan(values)]
    if options.get("missing") == "interpolate":
        return
    assert series.facts["mean"] == pytest.approx(present.mean())
    assert series.facts["std"] == pytest.approx(present.std())


# ---- what is learned from what ---------------------------------------------------------------------------------------

WEATHER = rows(
    lambda i: f"{DAYS[i]},{VALUES[i]},{i % 7},{(i * 3) % 11},{['sun', 'rain', 'fog'][i % 3]}", "day,t,w,p,sky"
)
LABELS = rows(lambda i: f"{VALUES[i]},{i * i % 13},{i % 4 // 2}", "a,b,label")


@pytest.mark.parametrize(
    ("content", "options", "target", "inputs", "classes"),
    [
        (WEATHER, {}, "p", ["p"], None),
        (WEATHER, {"target": "t"}, "t", ["t"], None),
        (WEATHER, {"target": 1, "inputs": ["w", 3]}, "t", ["t", "w", "p"], None),
        (WEATHER, {"target": "t", "inputs": "w,t"}, "t", ["t", "w"], None),
        (WEATHER, {"target": "sky"}, "sky", ["t", "w", "p"], ("fog", "rain", "sun")),
        (WEATHER, {"target": "sky", "inputs": ["t"]}, "sky", ["t"], ("fog", "rain", "sun")),
        (LABELS, {}, "label", ["a", "b"], ("0", "1")),
        (LABELS, {"inputs": ["a"]}, "label", ["a"], ("0", "1")),
        (LABELS, {"inputs": ["label", "a"]}, "label", ["label", "a"], None),
        (LABELS, {"target": "a"}, "a", ["a"], None),
        (
            LABELS.replace("label", "label,").replace("\n", ",\n").replace(",,", ","),
            {},
            "label",
            ["a", "b"],
            ("0", "1"),
        ),
        (rows(lambda i: f"{VALUES[i]},{i % 2}", "a,label"), {}, "label", ["label"], None),
        (rows(lambda i: f"{i},{VALUES[i]}", "year,v"), {}, "v", ["v"], None),
        (rows(lambda i: f"{VALUES[i]}", "year"), {}, "year", ["year"], None),
        (rows(lambda i: f"{i},{VALUES[i]},{i % 5}", ",v,w"), {"target": "v", "inputs": [2]}, "v", ["v", "w"], None),
    ],
)
def test_target_inputs_and_classes(
    tmp_path: Path,
    content: str,
    options: dict[str, Any],
    target: str,
    inputs: list[str],
    classes: tuple[str, ...] | None,
) -> None:
    series = read(tmp_path, content, **options)
    assert (series.target, list(series.inputs), series.classes) == (target, inputs, classes)
    assert series.parts[0].shape == (N, len(inputs))
    assert series.targets[0].dtype == (np.float64 if classes is None else np.int64)
    header, *lines = content.splitlines()
    if classes is not None:
        cells = [line.split(",")[header.split(",").index(target)] for line in lines]
        assert [classes[label] for label in series.targets[0]] == cells
    load(tmp_path / "table.csv", 5, **options).draw(np.random.default_rng(0), 3)


def test_missing_classes_have_the_label_minus_one(tmp_path: Path) -> None:
    series = read(tmp_path, WEATHER.replace("fog\n", "?\n", 2), target="sky")
    assert (series.targets[0] == -1).sum() == 2
    assert series.facts["missing"]["count"] == 2
    task = load(tmp_path / "table.csv", 5, target="sky")
    assert (task.draw(np.random.default_rng(0), 500)[1] >= 0).all()


def test_groups_are_parts_in_order_of_time(tmp_path: Path) -> None:
    content = "day,shop,v\n" + "".join(f"{DAYS[i]},{s},{i + j}\n" for i in range(N) for j, s in enumerate(("x", "y")))
    series = read(tmp_path, content, group="shop")
    assert series.facts["groups"] == ["x", "y"]
    assert [part.tolist() for part in series.targets] == [list(range(N)), list(range(1, N + 1))]
    turned = "\n".join([content.splitlines()[0], *content.splitlines()[:0:-1]])
    assert [part[0] for part in read(tmp_path, turned, group="shop", time="day").targets] == [1, 0]
    x, _ = load(tmp_path / "table.csv", 5, group="shop").draw(np.random.default_rng(0), 500)
    np.testing.assert_allclose(np.diff(x[..., 0], axis=0), np.diff(x[:2, :1, 0], axis=0)[0, 0], rtol=1e-3)
    below = "day,shop,v\n" + "".join(f"{DAYS[i]},{s},{i + j}\n" for j, s in enumerate(("x", "y")) for i in range(N))
    with pytest.raises(SourceError, match=r"2 series seem to stand .* give group=shop, or time=day"):
        read(tmp_path, below)


@pytest.mark.parametrize(
    ("times", "step"),
    [
        (lambda i: f"{1900 + i}", "1"),
        (lambda i: f"2020-{i % 12 + 1:02}-01" if i < 12 else f"{2020 + i // 12}-{i % 12 + 1:02}-01", "1 month"),
        (lambda i: f"1/{i % 28 + 1}/2020" if i < 28 else f"2/{i - 27}/2020", "1 day"),
        (lambda i: f"{i % 28 + 1}.{i // 28 + 1}.2020", "1 day"),
        (lambda i: f"2020-01-0{i // 24 + 1}T{i % 24:02}:00:00Z", "1 hour"),
        (lambda i: f"2020-01-01 {i // 4:02}:{i % 4 * 15:02}", "15 minutes"),
        (lambda i: f"{i % 28 + 1}-{['Jan', 'Feb'][i // 28]}-2020", "1 day"),
        (lambda i: f"20200{i // 28 + 1}{i % 28 + 1:02}", "1 day"),
    ],
)
def test_the_step_of_time(tmp_path: Path, times: Callable[[int], str], step: str) -> None:
    series = read(tmp_path, rows(lambda i: f"{times(i)};{VALUES[i]}", "date;v"))
    assert series.facts["time"]["step"] == step
    np.testing.assert_array_equal(series.targets[0], VALUES)


def test_dates_that_go_nowhere_are_not_obeyed(tmp_path: Path) -> None:
    for day in ("01.01.2020", "2020-{0:02}-01"):
        series = read(tmp_path, rows(lambda i, day=day: f"{day.format(i * 5 % 12 + 1)};{COMMAS[i]}", "d;v"))
        assert series.facts["time"] is None
        np.testing.assert_allclose(series.targets[0], VALUES)


def test_the_task_says_what_was_taken(tmp_path: Path) -> None:
    read(tmp_path, rows(lambda i: f"{DAYS[i]},{VALUES[i]},{i}", "Date,Close,Volume"))
    task = load(tmp_path / "table.csv", 5)
    assert task.name == 'next value of column "Volume" of table.csv'
    assert task.facts["notes"] == ["the last of 2 columns of numbers; target chooses another"]
    assert load(tmp_path / "table.csv", 5, target="Close", horizon=3).name == (
        'value 3 steps ahead of column "Close" of table.csv'
    )


# ---- refusals --------------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[str | bytes, dict[str, Any], str]] = {
    "two columns or decimal commas": (
        rows(lambda i: f"{i % 7 + 3},{i % 9}"),
        {},
        r"2 columns with comma .*\(delimiter comma\).*\(decimal ,\); give",
    ),
    "a year as a name": (rows(lambda i: f"{100 + i % 7}", "2018"), {}, r"the first line, 2018, may be names or values"),
    "zero as a name": (rows(lambda i: f"{1000 + i % 7}", "0"), {}, r"the first line, 0, may be names or values"),
    "two years as names": (rows(lambda i: f"{i % 9},{i % 7}", "2018,2019"), {"delimiter": ","}, r"2018, 2019, may be"),
    "a year beside a word": (rows(lambda i: f"m{i},{i % 7}", "Monat,2018"), {}, r"Monat, 2018, may be names or values"),
    "decimal commas between commas": (
        rows(lambda i: f"{DAYS[i]},{i},{i % 7}", "day,v"),
        {},
        r"line 1: expected 3 cells",
    ),
    "decimal commas between commas, no header": (rows(lambda i: f"{DAYS[i]},{i},{i % 7}"), {}, r"give delimiter"),
    "decimal commas and words": (rows(lambda i: f"m{i},{i},{i % 7}", "month,v"), {}, r"line 1: expected 3 cells"),
    "a comma late in the file": (
        "v\n" + "12\n" * 3000 + '"1,250"\n',
        {},
        r'line 3002, column "v": expected a number, got \'1,250\'; it may be 1250',
    ),
    "a decimal comma late in the file": (
        "d;v\n" + "1;12\n" * 3000 + "1;12,5\n",
        {},
        r"line 3002.*got \'12,5\'; decimal",
    ),
    "another way of writing late": ("d;v\n" + "1;1.5\n" * 3000 + "1;1.234,5\n", {}, r"line 3002.*got \'1\.234,5\'"),
    "thousands or decimals": (
        rows(lambda i: f'{DAYS[i]},"{1014 + i:,}"', "d,v"),
        {},
        r"got 40 cells.*1014 \(decimal \.\) or 1\.014 \(decimal ,\): give decimal",
    ),
    "dots between thousands": (
        rows(lambda i: f"{DAYS[i]};{950 + 9 * i:,}".replace(",", "."), "d;v"),
        {},
        r"may be 1\.004 \(decimal \.\) or 1004 \(decimal ,\); give decimal",
    ),
    "dots between thousands everywhere": (
        rows(lambda i: f"{DAYS[i]};{1950 + 9 * i:,}".replace(",", "."), "d;v"),
        {},
        r"may be 1\.95 \(decimal \.\) or 1950",
    ),
    "both signs": (
        rows(lambda i: f"{DAYS[i]};{COMMAS[i]};{VALUES[i]}", "d;a;b"),
        {},
        r"decimal point, others a decimal comma; give decimal",
    ),
    "a filler": (
        rows(lambda i: f"{DAYS[i]},{-999 if i == 5 else VALUES[i]}", "d,v"),
        {},
        r"-999 stands 1 times, far from all else .* give na=-999 .* na=none",
    ),
    "a positive filler": (
        rows(lambda i: f"{DAYS[i]},{9999.9 if i == 5 else VALUES[i]}", "d,v"),
        {},
        r"9999\.9 stands 1 times",
    ),
    "names or values": (
        rows(lambda i: f"m{i},{i * 7 % 11}", "month,2018"),
        {},
        r"the first line, month, 2018, may be names or values; give target",
    ),
    "ragged": (
        PLAIN.replace("2020-01-03", "x,2020-01-03").replace("2020-01-07", "x,2020-01-07"),
        {},
        r"expected 2 columns .*, got another number in 2 lines, the first line 4 with 3, the last line 8 with 3",
    ),
    "words": (
        PLAIN.replace("2020-01-03,", "2020-01-03,x").replace("2020-01-07,", "2020-01-07,x"),
        {},
        r"got 2 cells that are none, the first 'x.*' in line 4, the last 'x.*' in line 8",
    ),
    "missing": (
        PLAIN.replace(f"2020-01-03,{VALUES[2]}", "2020-01-03,").replace(f"2020-01-07,{VALUES[6]}", "2020-01-07,?"),
        {"missing": "error"},
        r"2 values are missing, the first in line 4, the last in line 8; give missing=skip",
    ),
    "nothing but missing": (rows(lambda i: f"{DAYS[i]},NaN", "d,v"), {"target": "v"}, r"every value is missing"),
    "a total": (PLAIN + "Total,1234.5\n", {}, r"line 42, column \"day\": expected a date, got 'Total'"),
    "no numbers": (
        rows(lambda i: f"{DAYS[i]},word{i}", "d,v"),
        {},
        r"expected a column of numbers, got d \(dates\), v \(words\)",
    ),
    "too many words": (
        rows(lambda i: f"{i / 2},word{i}", "d,v"),
        {"target": "v"},
        r"2 to 20 different .* as classes, got 40",
    ),
    "two of a name": (
        rows(lambda i: f"{i / 2},{VALUES[i]}", "v,v"),
        {"target": "v"},
        r'has several columns "v"; give target as a number, 0 and 1',
    ),
    "no such input": (PLAIN, {"inputs": ["w"]}, r'inputs: has no column "w"; its columns are day, v'),
    "no such time": (PLAIN, {"time": "w"}, r'time: has no column "w"'),
    "time of words": (
        rows(lambda i: f"word{i},{i}", "d,v"),
        {"time": "d"},
        r"expected a date, got 'word0' \(40 such cells\)",
    ),
    "percent": (rows(lambda i: f"{i / 2}%", "v"), {}, r"got 40 cells that are none, the first '0\.0%' in line 2"),
    "delimiter": (PLAIN, {"delimiter": "ab"}, r"delimiter: expected one character, tab or space, got 'ab'"),
    "encoding": (PLAIN, {"encoding": "klingon"}, r"encoding: expected a name such as utf-8 or cp1252, got 'klingon'"),
    "not the encoding": (PLAIN.replace("day", "дата"), {"encoding": "ascii"}, r"line 1: byte 0xd0 is not ascii"),
    "empty": (b"", {}, r"the file is empty"),
    "only a mark": (b"\xff\xfe", {}, r"the file is empty"),
    "NUL": (PLAIN.replace("2020-01-09", "2020\0"), {}, r"line 10: contains a NUL byte"),
    "half of UTF-16": (PLAIN.encode("utf-16")[:-1], {}, r"begins as UTF-16 and is not"),
    "half of gzip": (gzip.compress(PLAIN.encode())[:-12], {}, r"the gzip file is damaged"),
    "a zip archive": (b"PK\x03\x04" + b"\0" * 50, {}, r"is damaged"),
    "Parquet without anything": (b"PAR1" + b"\0" * 50, {}, r"is damaged|needs DuckDB"),
    "npy without anything": (b"\x93NUMPY" + b"\0" * 50, {}, r"is damaged"),
    "old Excel": (b"\xd0\xcf\x11\xe0" + b"\0" * 50, {}, r"an old Excel file; save it as .xlsx or CSV"),
    "JSON": ('{"a": 1}\n[1]\n', {}, r"line 2: expected a JSON object, got list"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    content, options, message = REFUSED[name]
    with pytest.raises(SourceError, match=message) as error:
        read(tmp_path, content, ".json" if name == "JSON" else ".csv", **options)
    assert "\n" not in str(error.value)


PROSE = {
    "sentences": "It was a bright cold day in April, and the clocks were striking thirteen.\nWinston Smith, his chin\n"
    * 9,
    "verse": "Shall I compare thee to a summer's day?\nThou art more lovely, and more temperate:\n" * 9,
    "words": "one, two\nthree, four\nfive, six\n" * 9,
    "code": "for (i = 0; i < 10; i++) {\n    a[i] = b[i] + 1;\n}\n" * 9,
    "a recipe": "2 eggs\n100 g of sugar\n250 g of flour, sifted\n1 pinch of salt\n" * 9,
    "digits": "31415926535897932384626433832795028841971693993751" * 20,
    "a dialog": "A: 12, you say?\nB: 13; no more, no less.\n" * 20,
}


@pytest.mark.parametrize("name", PROSE)
def test_prose_is_prose(tmp_path: Path, name: str) -> None:
    path = tmp_path / "text.txt"
    path.write_text(PROSE[name], encoding="utf-8")
    assert load(path, 9).classes


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("He said “no” and it’s late. " * 40, "cp1252"),
        ("Température à Orléans, été très chaud près de la forêt.\n" * 20, "cp1252"),
        ("Größe und Länge, 20 °C, 5 m³.\n" * 20, "latin-1"),
        ("Привет, как дела? Мы читаем старые книги о погоде и реках.\n" * 20, "cp1251"),
    ],
)
def test_old_encodings(tmp_path: Path, text: str, encoding: str) -> None:
    if encoding == "cp1251":
        pytest.importorskip("charset_normalizer")
    assert files.decode("x", text.encode(encoding), None)[0] == text
    path = tmp_path / "text.txt"
    path.write_bytes(text.encode(encoding))
    assert load(path, 9).input_size == load(path, 9, encoding=encoding).input_size == len(set(text))


def test_a_file_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sparse = tmp_path / "sparse.csv"
    with sparse.open("wb") as file:
        file.truncate(10 * 10**9)
    with pytest.raises(SourceError, match=r"expected at most 2 GB, got 10 GB"):
        load(sparse)
    monkeypatch.setattr(files, "MOST", 10**6)
    bomb = tmp_path / "bomb.csv.gz"
    bomb.write_bytes(gzip.compress(b"1\n" * 10**6))
    with pytest.raises(SourceError, match=r"expected at most 0\.001 GB"):
        load(bomb)


@pytest.mark.skipif(os.name != "posix", reason="kinds of files of POSIX")
def test_pipes_sockets_and_devices_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.bind(str(tmp_path / "socket.csv"))
        except OSError:
            pytest.skip("the path is too long for a socket")
        for name, what in (("pipe.csv", "a pipe"), ("socket.csv", "a socket"), ("/dev/zero", "a device")):
            with pytest.raises(SourceError, match=f"is {what}; expected a file"):
                load(tmp_path / name)


# ---- other formats ---------------------------------------------------------------------------------------------------

COLUMNS = {"day": DAYS, "v": VALUES, "w": [None if i == 3 else i % 7 for i in range(N)]}


def check_columns(path: Path) -> None:
    series = read_series(path, target="v", inputs="w")
    np.testing.assert_array_equal(series.targets[0], VALUES)
    np.testing.assert_array_equal(series.parts[0][:, 1], [NAN if w is None else w for w in COLUMNS["w"]])
    assert series.facts["time"]["step"] == "1 day"
    assert series.facts["missing"]["count"] == 1


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet", "xlsx", "jsonl", "csv.gz", "de.csv"])
def test_what_pandas_writes(tmp_path: Path, suffix: str) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(COLUMNS)
    path = tmp_path / f"table.{suffix}"
    frame["day"] = pandas.to_datetime(frame["day"])
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
        pytest.importorskip("duckdb")
        frame.to_parquet(path)
    elif suffix == "xlsx":
        pytest.importorskip("openpyxl")
        frame.to_excel(path)
    elif suffix == "jsonl":
        frame.to_json(path, orient="records", lines=True, date_format="iso")
    elif suffix == "de.csv":
        frame.to_csv(path, sep=";", decimal=",", encoding="utf-16")
    else:
        frame.to_csv(path, sep="\t" if suffix == "tsv" else ",", index=suffix == "csv")
    check_columns(path)


@pytest.mark.parametrize("suffix", ["csv", "parquet", "ndjson"])
def test_what_polars_writes(tmp_path: Path, suffix: str) -> None:
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame(COLUMNS).with_columns(polars.col("day").str.to_date())
    path = tmp_path / f"table [1].{suffix}"
    if suffix == "parquet":
        pytest.importorskip("duckdb")
    getattr(frame, f"write_{suffix}")(path)
    check_columns(path)


def test_arrays(tmp_path: Path) -> None:
    v = np.array(VALUES)
    path = tmp_path / "array.npy"
    np.save(path, v.astype(np.float32))
    np.testing.assert_allclose(read_series(path).targets[0], v, rtol=1e-6)
    np.save(path, np.stack([v, -v], 1))
    np.testing.assert_array_equal(read_series(path, target=0).targets[0], v)
    np.save(path, np.stack([v, -v])[..., None])
    assert [part[0] for part in read_series(path).targets] == [v[0], -v[0]]
    np.savez(tmp_path / "arrays.npz", a=v, b=-v)
    np.testing.assert_array_equal(read_series(tmp_path / "arrays.npz", target="a").targets[0], v)
    np.savez_compressed(tmp_path / "arrays.npz", a=v, b=v[:-1])
    with pytest.raises(SourceError, match=r"expected arrays \(T,\) of one length, got a \(40,\), b \(39,\)"):
        read_series(tmp_path / "arrays.npz")
    for bad, message in ((np.array([{}]), "Python objects"), (v + 1j, "complex128"), (np.zeros((1, 2, 3, 4)), "shape")):
        np.save(path, bad, allow_pickle=True)
        with pytest.raises(SourceError, match=message):
            read_series(path)
    np.save(path, v)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(SourceError, match=r"shape \(40,\) of float64 does not fit"):
        read_series(path)


def test_a_workbook_with_titles_and_sheets(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.append(["Measured by hand"])
    sheet.append([])
    sheet.append(["day", "v"])
    for day, value in zip(DAYS, VALUES, strict=True):
        sheet.append([day, value])
    book.create_sheet("notes").append(["nothing"])
    path = tmp_path / "book.xlsx"
    book.save(path)
    series = read_series(path)
    np.testing.assert_array_equal(series.targets[0], VALUES)
    assert 'sheet "Sheet", the first of 2' in series.facts["notes"]


@pytest.mark.parametrize("kind", ["parquet", "xlsx", "text"])
def test_without_the_extra_one_line_names_it(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "text":
        content = "Привет, как дела? Мы читаем старые книги.\n".encode("cp1251")
    else:
        module = pytest.importorskip("pandas")
        pytest.importorskip("openpyxl" if kind == "xlsx" else "pyarrow")
        frame = module.DataFrame(COLUMNS)
        path = tmp_path / "file"
        frame.to_excel(path, engine="openpyxl") if kind == "xlsx" else frame.to_parquet(path)
        content = path.read_bytes()
    for name in ("duckdb", "openpyxl", "charset_normalizer"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SourceError, match=r'pip install "gradcore\[data\]"'):
        read(tmp_path, content, ".txt")


# ---- what people brought ---------------------------------------------------------------------------------------------


def windows_are_of(path: Path, truth: list[float], **options: Any) -> None:
    """Every window that is drawn is a stretch of the true series, whatever its scale."""
    x = load(path, 20, **options).draw(np.random.default_rng(0), 300)[0][:, :, 0].T.astype(float)
    stretches = np.lib.stride_tricks.sliding_window_view(np.array(truth), 20)
    x, stretches = (a - a.mean(1, keepdims=True) for a in (x, stretches))
    cosines = (x / np.linalg.norm(x, axis=1)[:, None]) @ (stretches / np.linalg.norm(stretches, axis=1)[:, None]).T
    assert (np.nanmax(cosines, axis=1) > 0.9999).all()


def test_household_power_with_a_gap(tmp_path: Path) -> None:
    watts = np.round(2 + np.sin(np.arange(2000) / 15) + 0.3 * np.random.default_rng(7).standard_normal(2000), 3)
    lines = ["Date;Time;Global_active_power;Voltage"]
    for i, watt in enumerate(watts):
        values = "?;?" if 700 <= i < 760 else f"{watt:.3f};240.12{i % 10}"
        lines.append(f"16/12/2006;{i // 60 % 24:02}:{i % 60:02}:00;{values}")
    path = tmp_path / "power.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    series = read_series(path, target="Global_active_power")
    assert series.facts["missing"]["count"] == 60
    truth = np.where((np.arange(2000) >= 700) & (np.arange(2000) < 760), NAN, watts)
    np.testing.assert_array_equal(series.targets[0], truth)
    windows_are_of(path, list(watts), target="Global_active_power")
    with pytest.raises(SourceError, match=r"60 values are missing, the first in line 702, the last in line 761"):
        load(path, target="Global_active_power", missing="error")


def test_a_million_rows_are_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same with blocks of some lines, where a line with a quote, a gap or a word meets plain ones."""
    from gradcore.data import delimited

    monkeypatch.setattr(delimited, "BLOCK", 100)
    monkeypatch.setattr(delimited, "CHUNK", 7)
    for name, (content, options, values, _) in TABLES.items():
        np.testing.assert_allclose(read(tmp_path, content, **options).targets[0], values, rtol=1e-6, err_msg=name)
    for name in ("ragged", "words", "missing", "a total", "NUL"):
        content, options, message = REFUSED[name]
        with pytest.raises(SourceError, match=message):
            read(tmp_path, content, **options)


def test_values_far_from_zero_and_near_each_other(tmp_path: Path) -> None:
    values = [round(1e12 + 100 * math.sin(i / 9), 1) for i in range(200)]
    path = tmp_path / "far.csv"
    path.write_text("y\n" + "\n".join(f"{v:.1f}" for v in values), encoding="utf-8")
    windows_are_of(path, values)


def test_a_batch_of_many_characters_takes_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "novel.txt"
    path.write_text("".join(chr(0x4E00 + i * i % 6007 % 3000) for i in range(9000)), encoding="utf-8")
    task = load(path, 50)
    tracemalloc.start()
    x, _ = task.draw(np.random.default_rng(0), 4)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert x.sum() == 200
    assert peak < 3 * x.nbytes


def random_table(rng: np.random.Generator) -> tuple[str, list[float]]:
    """A table in a random dialect, and the numbers of its last column but for notes and dates."""
    n = int(rng.integers(12, 60))
    delimiter = [",", ";", "\t", "|", " "][rng.integers(5)]
    decimal = ",."[rng.integers(2)]
    digits = int(rng.integers(0, 4))
    scale = 10.0 ** rng.integers(0, 7)
    values = np.round(scale * (rng.random() + rng.standard_normal(n)), digits)
    grouped = rng.random() < 0.3 and delimiter in (",;" if decimal == "." else ";\t")
    quote = rng.random() < 0.3 or (delimiter == "," and (decimal == "," or grouped))

    def written(value: float) -> str:
        text = f"{value:,.{digits}f}" if grouped else f"{value:.{digits}f}"
        if decimal == ",":
            text = text.translate(str.maketrans(",.", ".,"))
        return f'"{text}"' if quote else text

    def column(kind: int, i: int) -> str:
        if kind == 0:
            return f"{2020 + i // 336}-{i // 28 % 12 + 1:02}-{i % 28 + 1:02}"
        if kind == 1:
            return f"{i % 28 + 1:02}.{i // 28 % 12 + 1:02}.2020"
        return [str(i), f"word{i % 3}", written(float(values[n - 1 - i]))][kind - 2]

    kinds = [int(kind) for kind in rng.permutation(5)[: rng.integers(0, 4)]]
    gaps = rng.random(n) < (0.2 if rng.random() < 0.3 and delimiter != " " else 0)
    gaps[:3] = False
    mark = ["NA", "?", "", "-"][rng.integers(4)] if kinds else "NaN"
    lines = [
        delimiter.join([column(kind, i) for kind in kinds] + [mark if gaps[i] else written(values[i])])
        for i in range(n)
    ]
    if rng.random() < 0.7:
        lines = [delimiter.join([f"name{kind}" for kind in kinds] + ["value"]), *lines]
    return "\n".join(lines) + "\n", list(np.where(gaps, NAN, values))


@pytest.mark.parametrize("seed", range(4))
def test_no_dialect_is_misread_in_silence(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    right = 0
    for _ in range(25):
        content, values = random_table(rng)
        try:
            series = read(tmp_path, content, na="none")
        except SourceError:
            continue
        np.testing.assert_allclose(series.targets[0], values, rtol=1e-9, err_msg=content[:400])
        right += 1
    assert right >= 15  # the others can be read in two ways


def test_text_tables_need_no_other_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("duckdb", "openpyxl", "charset_normalizer", "pandas", "pyarrow"):
        monkeypatch.setitem(sys.modules, name, None)
    for name, (content, options, values, _) in TABLES.items():
        np.testing.assert_allclose(read(tmp_path, content, **options).targets[0], values, rtol=1e-6, err_msg=name)
