"""The choice of an instruction set. `make isa` runs all tests marked `kernels` on each."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import gradcore

ROOT = Path(__file__).parent.parent
NAME = "import gradcore; print(gradcore.info()['isa'])"


def imported(isa: str) -> subprocess.CompletedProcess[str]:
    """A Python process that is told to use this instruction set, and prints the one it uses."""
    env = {**os.environ, "GRADCORE_ISA": isa}
    return subprocess.run([sys.executable, "-c", NAME], env=env, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(params=["baseline", "v3", "v4"])
def isa(request: pytest.FixtureRequest) -> str:
    """Each instruction set that would work here."""
    refusal = imported("none").stderr.splitlines()[-1]
    if request.param not in refusal.rpartition("support ")[2].split(", "):
        pytest.skip(f"{refusal} (no {request.param})")
    return request.param


def test_the_one_in_use_is_among_the_supported(isa: str) -> None:
    done = imported(isa)
    assert done.stdout == f"{isa}\n", done.stderr


@pytest.mark.parametrize("name", ["v5", "avx2", "V3", "v3 ", "é"])
def test_an_unknown_name_is_an_import_error_that_says_what_would_work(name: str) -> None:
    done = imported(name)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"ImportError: GRADCORE_ISA={name}: ")
    assert gradcore.info()["isa"] in last.rpartition("support ")[2].split(", ")


def test_an_empty_name_is_none() -> None:
    assert imported("").returncode == 0
