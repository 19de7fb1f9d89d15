"""Read the gradient norms that the backward pass leaves in a tape."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from gradcore._check import Array

__all__ = ["recurrent_profiles"]


def recurrent_profiles(tape: Any) -> Iterator[tuple[str, bool, Array]]:
    """Yield the gradient norms over time of every recurrent layer and direction in a tape.

    Parameters
    ----------
    tape : Tape or SequentialTape
        The tape of a recurrent layer, or of a model that holds some, after its backward pass.

    Yields
    ------
    name : str
        Such as "l0", "l1_reverse", or "2.l0" for the member of a model, as in the names of parameters.
    reverse : bool
        Whether the direction runs from the last time step to the first.
    dh_norm : ndarray, (T,), float64
        L2 norm over batch and units of dL/dh_t at every time step.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> from gradcore.telemetry import recurrent_profiles
    >>> layer = gradcore.GRU(3, 4, bidirectional=True)
    >>> y, tape = layer.forward(np.ones((6, 2, 3), np.float32))
    >>> dx = layer.backward(tape, np.ones_like(y))
    >>> [(name, reverse, len(norms)) for name, reverse, norms in recurrent_profiles(tape)]
    [('l0', False, 6), ('l0_reverse', True, 6)]
    """
    telemetry = getattr(tape, "telemetry", None)
    dh_norm = getattr(telemetry, "dh_norm", None)
    if dh_norm is not None:
        directions = getattr(telemetry, "num_directions", 1)
        for index, row in enumerate(np.asarray(dh_norm, np.float64)):
            reverse = index % directions == 1
            yield f"l{index // directions}{'_reverse' * reverse}", reverse, row
    for index, member in enumerate(getattr(tape, "tapes", ())):
        for name, reverse, row in recurrent_profiles(member):
            yield f"{index}.{name}", reverse, row


def log_ratio(first: float, last: float) -> float:
    """Return ln(first / last) of two norms: inf if only the first is not finite, NaN if the last gives no measure."""
    if not 0 < last < math.inf:
        return math.nan
    if not math.isfinite(first):
        return math.inf
    return math.log(first) - math.log(last) if first > 0 else -math.inf


def layer_growth(tape: Any) -> Iterator[float]:
    """Yield the ln of the factor by which each layer multiplies the gradient norm, from the first layer to the last.

    Recurrent layers are compared with each other at the last time step, where time has not yet had an effect.
    """
    if not getattr(tape, "is_chain", True):  # what the layers of a branch multiply says nothing of the whole
        return
    d_norm = getattr(tape, "d_norm", None)
    for i, member in enumerate(getattr(tape, "tapes", ())):
        if hasattr(member, "telemetry") or getattr(member, "is_chain", False):
            yield from layer_growth(member)
        elif d_norm is not None:
            yield log_ratio(float(d_norm[i]), float(d_norm[i + 1]))
    if hasattr(tape, "telemetry"):
        rows = [row for _, reverse, row in recurrent_profiles(tape) if not reverse and len(row)]
        yield from (log_ratio(float(a[-1]), float(b[-1])) for a, b in pairwise(rows))


def first_nonfinite(tape: Any, name: str = "") -> Iterator[tuple[str, tuple[int, int, int]]]:
    """Yield where the backward pass of each recurrent member first met a value that is not finite."""
    first = getattr(getattr(tape, "telemetry", None), "first_nonfinite", None)
    if first is not None:
        yield name, first
    for index, member in enumerate(getattr(tape, "tapes", ())):
        yield from first_nonfinite(member, f"{name}{index}.")
