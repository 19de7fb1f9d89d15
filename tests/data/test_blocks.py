"""Blocks that are cut at once have the cells that Python's csv finds, or are left to it."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from gradcore.data.blocks import cut

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
