"""Hypothesis profiles and the fixtures that several subjects share; plain functions are in tools.py."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ:  # the cores are shared with other workers: who waits must not spin
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when the module below loads OpenMP

import gradcore

# No deadline: the machines are shared. In CI the same examples every time, so that a failure is the change's own.
settings.register_profile("default", deadline=None, max_examples=40)
settings.register_profile("ci", deadline=None, max_examples=40, derandomize=True)
settings.register_profile("thorough", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "default"))


# The long form of tests that a suite of a minute has no time for; the quick form runs otherwise.
LONG = os.environ.get("GRADCORE_LONG") == "1"

# Bridges, and the libraries that they meet. Where one is missing, its bridge has no doctests.
BRIDGES = {"onnx": "onnx", "sklearn": "sklearn", "torch": "torch"}


def pytest_configure(config: pytest.Config) -> None:
    """Leave out the bridges whose libraries are missing."""
    missing = [bridge for bridge, library in BRIDGES.items() if find_spec(library) is None]
    package = Path(gradcore.__file__).parent
    config.option.ignore = [*(config.option.ignore or []), *(str(package / bridge) for bridge in missing)]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Make `pytest -m peers` fail where a comparison is skipped: whoever asks for them has to have PyTorch."""
    report = yield
    if report.skipped and item.config.option.markexpr == "peers":
        report.outcome, report.longrepr = "failed", f"skipped, although asked for: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Make `pytest -m peers` fail where a whole file is skipped because its library is missing."""
    report = yield
    if report.skipped and collector.config.option.markexpr == "peers":
        report.outcome, report.longrepr = "failed", f"skipped, although asked for: {report.longrepr}"
    return report


@pytest.fixture(scope="session", autouse=True)
def one_blas_thread() -> Iterator[None]:
    """NumPy works on one thread: its matrices are small here, and on a busy machine its threads wait for each other."""
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        yield
    else:
        with threadpool_limits(1, user_api="blas"):
            yield


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """For tests that press Ctrl-C: shells start background jobs with it ignored, which gradcore respects."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def restore_threads() -> Iterator[None]:
    """For tests that change the number of threads: it is what it was before, afterwards."""
    before = gradcore.get_num_threads()
    yield
    gradcore.set_num_threads(before)


@pytest.fixture
def with_thread_counts(restore_threads: None) -> Callable[[Callable[[], Any]], list[Any]]:
    """A function that calls f() with 1, 2, 3 and 8 threads (8: more than the machine has) and returns the results."""

    def results(f: Callable[[], Any]) -> list[Any]:
        found = []
        for n in (1, 2, 3, 8):
            gradcore.set_num_threads(n)
            found.append(f())
        return found

    return results


@pytest.fixture
def one_torch_thread() -> Iterator[None]:
    """Let PyTorch use one thread, for arrays that are tiny, and draw the same numbers each time."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)
