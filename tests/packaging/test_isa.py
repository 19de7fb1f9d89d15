"""The choice of an instruction set. `make isa` runs all tests marked `kernels` on each."""

from __future__ import annotations

import pytest
from tools import python, supported_isas

import gradcore

NAME = "import gradcore; print(gradcore.info()['isa'])"


@pytest.fixture(params=["baseline", "v3", "v4"])
def isa(request: pytest.FixtureRequest) -> str:
    """Each instruction set that would work here."""
    if request.param not in supported_isas():
        pytest.skip(f"no {request.param} here")
    return str(request.param)


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
