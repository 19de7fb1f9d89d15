"""What a rule is.

A rule is a generator of the run so far and its newest step. It yields a `Symptom` whenever it sees one. `each_step` and
`at_end` say when it looks, and what to do about every kind of symptom that it yields.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from gradcore.training.run import Run, Step

__all__: list[str] = []  # for the package only

# What to do, by kind of finding.
ADVICE: dict[str, str] = {}


class Symptom(NamedTuple):
    """Something that a rule has seen at a step; the monitor keeps one `Finding` for each kind and place."""

    kind: str
    severity: str
    numbers: dict[str, Any]
    message: str
    where: str = ""
    began: int | None = None  # the step, where that is not the newest one
    badness: float = 0.0  # of several, the worst gives the finding its numbers, message and advice
    times: int = 1  # how often it has been seen when it is first reported
    advice: str = ""  # where what is switched on calls for other advice than usual


Look = Callable[[Run, Step], Iterator[Symptom]]


class Rule(NamedTuple):
    """A rule, and the threshold that holds the number of steps between two looks."""

    look: Look
    every: str | None


EACH_STEP: list[Rule] = []  # in the order in which they look
AT_END: list[Rule] = []


def each_step(*, every: str | None = None, **advice: str) -> Callable[[Look], Look]:
    """Let a rule look at every step, or every few; `advice` says what to do about each kind of symptom it yields."""

    def add(look: Look) -> Look:
        ADVICE.update(advice)
        EACH_STEP.append(Rule(look, every))
        return look

    return add


def at_end(**advice: str) -> Callable[[Look], Look]:
    """Let a rule look once, when the run has ended."""

    def add(look: Look) -> Look:
        ADVICE.update(advice)
        AT_END.append(Rule(look, None))
        return look

    return add
