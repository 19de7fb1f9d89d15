"""Hypothesis profiles and the fixtures that several subjects share; plain functions are in tools.py."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

import gradcore

# No deadline: the machines are shared. In CI the same examples every time, so that a failure is the change's own.
settings.register_profile("default", deadline=None, max_examples=40)
settings.register_profile("ci", deadline=None, max_examples=40, derandomize=True)
settings.register_profile("thorough", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "default"))


@pytest.fixture
def restore_threads() -> Iterator[None]:
    """For tests that change the number of threads: it is what it was before, afterwards."""
    before = gradcore.get_num_threads()
    yield
    gradcore.set_num_threads(before)


@pytest.fixture(params=[1, 2, 3, 8])
def num_threads(request: pytest.FixtureRequest, restore_threads: None) -> int:
    """Once for each of these numbers of threads."""
    gradcore.set_num_threads(request.param)
    return request.param
