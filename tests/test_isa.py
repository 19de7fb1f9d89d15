"""Every instruction set that this processor has: all tests marked `kernels`, in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import gradcore

TESTS = Path(__file__).parent
NAME = "import gradcore; print(gradcore.info()['isa'])"


def python(isa: str, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """A Python process that uses this instruction set."""
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "GRADCORE_ISA": isa},
        cwd=TESTS.parent,
        timeout=timeout,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(params=["baseline", "v3", "v4"])
def isa(request: pytest.FixtureRequest) -> str:
    """Each instruction set that would work here."""
    refusal = python("none", "-c", NAME).stderr.splitlines()[-1]
    if request.param not in refusal.rpartition("support ")[2].split(", "):
        pytest.skip(f"{refusal} (no {request.param})")
    return request.param


def test_the_one_in_use_is_among_the_supported(isa: str) -> None:
    done = python(isa, "-c", NAME)
    assert done.stdout == f"{isa}\n", done.stderr


@pytest.mark.parametrize("name", ["v5", "avx2", "V3", "v3 ", "é"])
def test_an_unknown_name_is_an_import_error_that_says_what_would_work(name: str) -> None:
    done = python(name, "-c", NAME)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"ImportError: GRADCORE_ISA={name}: ")
    assert gradcore.info()["isa"] in last.rpartition("support ")[2].split(", ")


def test_an_empty_name_is_none() -> None:
    assert python("", "-c", NAME).returncode == 0


def test_every_kernel_test_passes(isa: str) -> None:
    if isa == gradcore.info()["isa"]:
        pytest.skip("the other tests run with this one")
    arguments = ["-m", "pytest", "-q", "-m", "kernels and not peers", "-p", "no:cacheprovider", str(TESTS)]
    done = python(isa, *arguments, timeout=900)
    assert done.returncode == 0, done.stdout[-5000:]
