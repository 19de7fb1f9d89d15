"""Nothing is left behind: the quick form of leaks.py, one recipe at a time, and allocations that fail."""

from __future__ import annotations

import gc
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import leaks
import numpy as np
import pytest
from leaks import NAMES, attempt, held
from recipes import RECIPES, Case, Recipe, little_memory, malformed

pytestmark = pytest.mark.leaks

# Generations of garbage to be collected, and calls. Python keeps lists of free objects, thousands at most, which only
# the collection of all empties, and which take some calls to fill again: who fails the quick look gets long ones. Each
# look itself moves a kilobyte or two of what malloc has given out, which the longest do not take for a leak.
LOOKS = [(0, 16), (0, 16), *[(2, 64)] * 3, *[(2, 512)] * 3]
SLOW = {"meanfield.critical", "meanfield.suggest_gain"}  # a tenth of a second, in Python alone
# Half of what is left by a call that leaves anything: something else may let go of a block or two meanwhile.
LEAST = np.array([8 if name == "malloc" else 0.5 for name in NAMES])


@pytest.fixture(autouse=True)
def garbage_stays_where_it_is_made() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


def left(call: Callable[[], Any]) -> list[str]:
    """What grows with every call. What is filled by the first calls, or once in a while, does not."""
    for _ in range(3):
        call()
    for generation, n in LOOKS:
        before = held(generation)
        for _ in range(n):
            call()
        grown = held(generation) - before
        found = [NAMES[i] for i in np.flatnonzero(grown >= n * LEAST) if NAMES[i] != "resident"]
        if not found:
            break
    return found


@pytest.mark.parametrize(
    "chosen", [chosen for chosen in RECIPES if chosen.name not in SLOW], ids=lambda chosen: chosen.name
)
def test_calls_leave_nothing_behind(chosen: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # some malformed paths are good ones
    rng = np.random.default_rng(0)
    good, cases = Case(chosen, []), [malformed(chosen, rng) for _ in range(2)]

    def call() -> None:
        for case in (good, *cases):
            attempt(case)

    with warnings.catch_warnings(), little_memory():
        warnings.simplefilter("ignore")
        assert attempt(good)
        assert left(call) == []


@pytest.mark.parametrize(
    ("kind", "name"), [("reference", "references to the shared x"), ("object", "blocks"), ("bytes", "malloc")]
)
def test_a_leak_is_seen(kind: str, name: str) -> None:
    if name not in NAMES:
        pytest.skip("only glibc tells what malloc has given out")
    assert name in left(lambda: leaks.leak(kind))


@pytest.mark.skipif(not leaks.GLIBC, reason="takes the place of glibc's malloc")
def test_an_allocation_that_fails_changes_nothing_and_frees_what_there_was() -> None:
    if shutil.which("cc") is None:
        pytest.skip("no cc here")
    done = subprocess.run([sys.executable, leaks.__file__, "--malloc"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "; 0 calls are wrong" in done.stdout
