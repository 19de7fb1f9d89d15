"""Blocks that are cut at once have the cells that Python's csv finds, or are left to it."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from gradcore.data.blocks import cut, without_groups
from gradcore.data.cells import NumberReader, Numbers

CELLS = ["1", "-2.5", "", '""', '"3"', '"1,140,409"', '" x"', "word", "1e5", '"' + "9" * 60 + '"']
ODD = ['"two\nlines"', '"say ""so"""', 'mid"dle', '"open', "9" * 65, "é", '" ', ' "5"']


@pytest.mark.parametrize("odd", [0.0, 0.02])
def test_cells_in_quotes_and_plain_ones(odd: float) -> None:
    rng, at_once = np.random.default_rng(0), 0
    for _ in range(2000):
        width, n = rng.integers(1, 4), rng.integers(1, 12)
        rows = [[str(rng.choice(ODD if rng.random() < odd else CELLS)) for _ in range(width)] for _ in range(n)]
        block = "".join(",".join(row) + "\n" for row in rows)
        found = cut(block, ",", width, range(width))
        if found is None:
            continue
        at_once += 1
        wanted = list(csv.reader(block.splitlines(keepends=True), strict=True))
        wanted = [row or [""] for row in wanted]  # a blank line of one column
        got = np.stack([found[column] for column in range(width)], axis=1)
        assert got.astype(str).tolist() == wanted
    assert at_once > 500


@pytest.mark.parametrize("block", ['1,"2\n', '1,"a\nb"\n', '1,2"\n', '"1"",2\n', '"1" ,2\n', "1,2,3\n1,2\n"])
def test_what_is_not_plain_is_left_to_csv(block: str) -> None:
    assert cut(block, ",", 2, [0]) is None


GROUPED = ["1,140,409", "-12,345.5", "+1,234", "999", "0.5", "-3", "1,000,000.25", "1e3", "", "NA"]
WRONG = [
    "1,23",
    "12,34,567",
    "0,123",
    "1,,234567",
    "1,,,234567890",
    ",123",
    "1234,567",
    "1.5,000",
    "1,234,",
    "1,2345",
    "a,bcd",
]


@pytest.mark.parametrize("decimal", [".", ","])
@pytest.mark.parametrize("wrong", [False, True])
def test_thousands_at_once_are_those_one_by_one(decimal: str, wrong: bool) -> None:
    rng = np.random.default_rng(0)
    other = str.maketrans(",.", ".,") if decimal == "," else {}
    for _ in range(300):
        n = rng.integers(1, 9)
        cells = [str(rng.choice(WRONG if wrong and rng.random() < 0.2 else GROUPED)).translate(other) for _ in range(n)]
        at_once, each = (NumberReader("t", "v", Numbers(decimal, grouped=True, sure=True)) for _ in range(2))
        at_once.feed(np.array([cell.encode() for cell in cells], "S16"), list(range(n)))
        each.parts.append(np.array([each._value(cell, i) for i, cell in enumerate(cells)]))
        np.testing.assert_array_equal(at_once.parts[0], each.parts[0], err_msg=str(cells))
        assert at_once.bad == each.bad


def test_signs_that_stand_elsewhere_are_left() -> None:
    for cell in WRONG:
        letters = np.frombuffer(cell.encode(), np.uint8)[None]
        assert without_groups(letters, ".", ",") is letters, cell
