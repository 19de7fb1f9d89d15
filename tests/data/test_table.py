"""Tables as people have them are read rightly, or refused in one line that says why."""

from __future__ import annotations

import gzip
import math
import os
import socket
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
POWER = [1234.5 + 100 * i for i in range(N)]


def rows(line: Callable[[int], str], head: str = "", foot: str = "", end: str = "\n") -> str:
    """A header, N lines and a footer."""
    return end.join([*head.split("\n")] * bool(head) + [line(i) for i in range(N)] + [foot] * bool(foot)) + end


Case = tuple[str | bytes, dict[str, Any], list[float], str]  # a file, options, values of the target, its label
PLAIN = rows(lambda i: f"{DAYS[i]},{VALUES[i]}", "day,v")
TABLES: dict[str, Case] = {
    "commas": (PLAIN, {}, VALUES, "v"),
    "semicolons": (rows(lambda i: f"{DAYS[i]};{VALUES[i]}", "day;v"), {}, VALUES, "v"),
    "tabs": (rows(lambda i: f"{DAYS[i]}\t{VALUES[i]}", "day\tv"), {}, VALUES, "v"),
    "pipes": (rows(lambda i: f"{DAYS[i]}|{VALUES[i]}", "day|v"), {}, VALUES, "v"),
    "spaces": (rows(lambda i: f"{DAYS[i]}   {VALUES[i]:6.2f}", "day  v"), {}, VALUES, "v"),
    "spaces before": (rows(lambda i: f"  {i:4d} {VALUES[i]:8.2f} {i % 7:3d}", "", ""), {"target": 1}, VALUES, "column 1"),
    "comma and space": (rows(lambda i: f"{DAYS[i]}, {VALUES[i]}", "day, v"), {}, VALUES, "v"),
    "decimal commas": (rows(lambda i: f"{GERMAN_DAYS[i]};{COMMAS[i]}", "Datum;Temperatur"), {}, VALUES, "Temperatur"),
    "decimal commas, a comma in the header": (
        rows(lambda i: f"{GERMAN_DAYS[i]};{COMMAS[i]}", "Datum;Temperatur, Grad C"), {}, VALUES, "Temperatur, Grad C",
    ),
    "decimal commas in tabs": (rows(lambda i: f"{i}\t{COMMAS[i]}", "n\tv"), {}, VALUES, "v"),
    "decimal commas in quotes": (rows(lambda i: f'{DAYS[i]},"{COMMAS[i]}"', "day,v"), {}, VALUES, "v"),
    "decimal commas in one column": (rows(lambda i: COMMAS[i], "Wert"), {}, VALUES, "Wert"),
    "decimal commas, told": (rows(lambda i: COMMAS[i]), {"decimal": ","}, VALUES, "column 0"),
    "two columns of integers, told": (rows(lambda i: f"{i * i},{i % 9}"), {"delimiter": ","}, [i % 9 for i in range(N)], "column 1"),
    "an index before integers": (rows(lambda i: f"{i},{i % 9}"), {}, [i % 9 for i in range(N)], "column 1"),
    "air quality: empty columns and lines": (
        rows(lambda i: f"10/03/2004;{i % 24:02}.00.00;{COMMAS[i]};;", "Date;Time;T;;", ";;;;\n;;;;"), {}, VALUES, "T",
    ),
    "thousands": (rows(lambda i: f'{DAYS[i]},"{POWER[i]:,.2f}"', "Date,Close"), {}, POWER, "Close"),
    "thousands, German": (
        rows(lambda i: f"{DAYS[i]};{POWER[i]:,.2f}".translate(str.maketrans(",.", ".,")), "Date;Close"), {}, POWER, "Close",
    ),
    "thousands with spaces": (rows(lambda i: f"{DAYS[i]};{POWER[i]:,.1f}".replace(",", "\u00a0").replace(".", ","), "d;v"), {}, POWER, "v"),
    "thousands with apostrophes": (rows(lambda i: f"{DAYS[i]};{POWER[i]:,.1f}".replace(",", "'"), "d;v"), {}, POWER, "v"),
    "millions": (rows(lambda i: f'{DAYS[i]},"{1140409 + i:,}"', "d,v"), {}, [1140409 + i for i in range(N)], "v"),
    "thousands, told": (
        rows(lambda i: f'{DAYS[i]},"{1014 + i:,}"', "d,v"), {"decimal": "."}, [1014 + i for i in range(N)], "v",
    ),
    "three decimals": (rows(lambda i: f"{DAYS[i]};{VALUES[i]:.3f}", "d;v"), {}, VALUES, "v"),
    "mark of UTF-8": (b"\xef\xbb\xbf" + PLAIN.encode(), {"target": "v", "time": "day"}, VALUES, "v"),
    "mark of UTF-8, quoted, CRLF": (
        b"\xef\xbb\xbf" + rows(lambda i: f'"{DAYS[i]}","{VALUES[i]}"', '"Date","Close"', end="\r\n").encode(),
        {"time": "Date"}, VALUES, "Close",
    ),
    "UTF-16": (PLAIN.encode("utf-16"), {}, VALUES, "v"),
    "UTF-16, other order, no mark": (PLAIN.encode("utf-16-be"), {}, VALUES, "v"),
    "Windows-1252": (rows(lambda i: f"{DAYS[i]};{VALUES[i]}", "Datum;Temperatur °C").encode("cp1252"), {}, VALUES, "Temperatur °C"),
    "Windows-1251, told": (rows(lambda i: f"{DAYS[i]};{VALUES[i]}", "дата;цена").encode("cp1251"), {"encoding": "cp1251"}, VALUES, "цена"),
    "CRLF": (PLAIN.replace("\n", "\r\n"), {}, VALUES, "v"),
    "CR": (PLAIN.replace("\n", "\r"), {}, VALUES, "v"),
    "CRCRLF": (PLAIN.replace("\n", "\r\r\n"), {}, VALUES, "v"),
    "sep=": ("sep=;\n" + rows(lambda i: f"{DAYS[i]};{VALUES[i]}", "day;v"), {}, VALUES, "v"),
    "sep=, quoted": ('"sep=,"\n' + PLAIN, {}, VALUES, "v"),
    "any delimiter, told": (rows(lambda i: f"{DAYS[i]}^{VALUES[i]}", "day^v"), {"delimiter": "^"}, VALUES, "v"),
    "a header in quotes with a line break": (rows(lambda i: f'{DAYS[i]},{VALUES[i]}', 'day,"v\nin kW"'), {}, VALUES, "v\nin kW"),
    "a cell with line breaks": (rows(lambda i: f'{VALUES[i]},"say ""{i}"",\nplease"', "v,note"), {}, VALUES, "v"),
    "pandas, unnamed": (rows(lambda i: f"{i},{VALUES[i]}", ",0"), {}, VALUES, "0"),
    "pandas, unnamed, near a million": (rows(lambda i: f"{i},{1000000 + VALUES[i]}", ",0"), {}, [1000000 + v for v in VALUES], "0"),
    "pandas, named": (rows(lambda i: f"{i},{DAYS[i]},{VALUES[i]}", ",day,v"), {}, VALUES, "v"),
    "pandas, dates as index": (rows(lambda i: f"{DAYS[i]},{VALUES[i]}", ",v"), {}, VALUES, "v"),
    "pandas, two rows of names": (
        rows(lambda i: f"{DAYS[i]},{VALUES[i]},{-i}", ",a,a\n,x,y\nday,,"), {"target": "a x"}, VALUES, "a x",
    ),
    "years as names": (rows(lambda i: f"m{i},{VALUES[i] / 2:.3f},{VALUES[i]}", "month,2018,2019"), {}, VALUES, "2019"),
    "years as names, told": (rows(lambda i: f"m{i},{i * 7 % 11}", "month,2018"), {"target": "2018"}, [i * 7 % 11 for i in range(N)], "2018"),
    "numbers as names": (rows(lambda i: f"{-VALUES[i]},{VALUES[i]:.3f}", "400,500"), {}, VALUES, "500"),
    "no header": (rows(lambda i: f"{DAYS[i]},{VALUES[i]}"), {}, VALUES, "column 1"),
    "no header, words": (rows(lambda i: f"s{i % 3},{VALUES[i]}"), {}, VALUES, "column 1"),
    "no header, one column": (rows(lambda i: f"{VALUES[i]}"), {}, VALUES, "column 0"),
    "units": (rows(lambda i: f"{DAYS[i]},{VALUES[i]}", "day,v\nyyyy-mm-dd,°C"), {}, VALUES, "v"),
    "units of some": (rows(lambda i: f"{i},{VALUES[i]},{i % 3}", "n,v,w\n,m/s,"), {"target": "v"}, VALUES, "v"),
    "titles": (rows(lambda i: f"{DAYS[i]},{VALUES[i]}", "Station: Potsdam\n\nday,v"), {}, VALUES, "v"),
    "comments": (rows(lambda i: f"{i} {VALUES[i]}", "# a long story\n# n v"), {}, VALUES, "v"),
    "a footer": (rows(lambda i: f"{DAYS[i]},{VALUES[i]}", "day,v", "\nSource: the station's own counts"), {}, VALUES, "v"),
    "a footer in quotes": (rows(lambda i: f'"{DAYS[i]}",{VALUES[i]}', '"Month","v"', '"monthly, in kW"'), {}, VALUES, "v"),
    "delimiters at the end": (rows(lambda i: f"{DAYS[i]},{VALUES[i]},", "day,v,"), {}, VALUES, "v"),
    "delimiters at the end of rows": (rows(lambda i: f"{DAYS[i]},{VALUES[i]},", "day,v"), {}, VALUES, "v"),
    "names of rows, as R writes": (rows(lambda i: f'"{i + 1}" {VALUES[i]} {i % 4}', '"v" "w"'), {"target": "v"}, VALUES, "v"),
    "dates at the end": (rows(lambda i: f"{VALUES[i]},{DAYS[i]}", "Close,Date"), {}, VALUES, "Close"),
    "dates in the middle": (rows(lambda i: f"{i % 5},{DAYS[i]},{VALUES[i]}", "a,day,v"), {}, VALUES, "v"),
    "newest first": (rows(lambda i: f"{DAYS[N - 1 - i]},{VALUES[N - 1 - i]}", "day,v"), {}, VALUES, "v"),
    "newest first, month first": (
        rows(lambda i: f"{3 if i < 20 else 2}/{28 - i % 20}/2020,{VALUES[N - 1 - i]}", "day,v"), {}, VALUES, "v",
    ),
    "sorted by time": (rows(lambda i: f"{(i * 7) % N},{VALUES[(i * 7) % N]}", "t,v"), {"time": "t"}, VALUES, "v"),
    "date and time": (rows(lambda i: f"2020-01-{2 - i // 24};{i % 24:02}:00:00;{VALUES[i]}".replace("2020-01-2", "2020-01-1") if i < 24 else f"2020-01-02;{i % 24:02}:00:00;{VALUES[i]}", "Date;Time;v"), {}, VALUES, "v"),
    "missing marks": (
        rows(lambda i: f"{DAYS[i]};{['', 'NA', 'NaN', '?', '-', 'null', 'n/a'][i // 5] if i % 5 == 4 and i < 35 else VALUES[i]}", "day;v"),
        {}, [NAN if i % 5 == 4 and i < 35 else v for i, v in enumerate(VALUES)], "v",
    ),
    "missing as -999": (
        rows(lambda i: f"{DAYS[i]};{-999.0 if i % 5 == 4 else VALUES[i]}", "day;v"), {"na": "-999"},
        [NAN if i % 5 == 4 else v for i, v in enumerate(VALUES)], "v",
    ),
    "missing words": (
        rows(lambda i: f"{DAYS[i]};{'broken' if i == 4 else VALUES[i]}", "day;v"), {"na": ["broken", "-1"]},
        [NAN if i == 4 else v for i, v in enumerate(VALUES)], "v",
    ),
    "interpolated": (
        rows(lambda i: f"{DAYS[i]},{'' if i in (0, 6, 7) else 2.5 * i}", "d,v"), {"missing": "interpolate"},
        [NAN, *(2.5 * i for i in range(1, N))], "v",
    ),
    "a blank line is missing in one column": (rows(lambda i: "" if i == 6 else str(VALUES[i]), "v"), {}, [NAN if i == 6 else v for i, v in enumerate(VALUES)], "v"),
    "a blank line between rows": (PLAIN.replace("2020-01-09", "\n2020-01-09"), {}, VALUES, "v"),
    "gzip": (gzip.compress(PLAIN.encode()), {}, VALUES, "v"),
    "exponents and signs": (rows(lambda i: f"x,{VALUES[i]:+.6e}", "a,b"), {}, VALUES, "b"),
    "minus of typesetters": (rows(lambda i: f"{i};−{VALUES[i]}", "a;b"), {}, [-v for v in VALUES], "b"),
    "JSON lines": (rows(lambda i: f'{{"day": "{DAYS[i]}", "v": {VALUES[i]}}}'), {}, VALUES, "v"),
}  # fmt: skip


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
    assert series.facts["mean"] == pytest.approx(present.mean())
    assert series.facts["std"] == pytest.approx(present.std())
