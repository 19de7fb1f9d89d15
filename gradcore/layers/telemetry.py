"""The norms of the gradient at every layer and time step, as `backward` met them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from gradcore._base.check import Array
from gradcore.layers.ragged import _Batch

__all__ = ["Telemetry", "recurrent_profiles"]


class Telemetry:
    """Hold the norms of the gradient at every layer and time step, as `backward` met them.

    All norms are float64 and taken before step clipping. The first axis is layer * num_directions + direction, the
    second one the time step.

    Parameters
    ----------
    batch : object
        The layout of the sequences.
    num_directions : int
        2 for a bidirectional layer, else 1.
    step_clip : float
        The limit of the norm of a sequence's dL/dh_t, or infinity.
    dh : ndarray, (L*D, S)
        The norm of dL/dh_t for each packed row.
    dc : ndarray, (L*D, S), or None
        The norm of dL/dc_t; LSTM only.

    Attributes
    ----------
    num_directions : int
        2 for a bidirectional layer, else 1.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> rnn = gradcore.RNN(3, 5, rng=0)
    >>> y, tape = rnn.forward(np.ones((7, 2, 3), np.float32))
    >>> dx = rnn.backward(tape, None, np.ones((1, 2, 5), np.float32))
    >>> tape.telemetry.dh_norm.shape, round(float(tape.telemetry.dh_norm[0, 6]), 4)
    ((1, 7), 3.1623)
    """

    def __init__(self, batch: _Batch, num_directions: int, step_clip: float, dh: Array, dc: Array | None) -> None:
        self.num_directions = num_directions
        self._batch, self._step_clip = batch, step_clip
        self._dh, self._dc = dh, dc  # (L*D, S)

    def _padded(self, norms: Array) -> Array:
        padded: Array = self._batch.unpack(np.ascontiguousarray(norms.T)).transpose(2, 0, 1)
        return padded

    @cached_property
    def dh_norm_per_sample(self) -> Array:
        """The L2 norm of each sequence's dL/dh_t, (L*D, T, B); zero past its end."""
        return self._padded(self._dh)

    @cached_property
    def dc_norm_per_sample(self) -> Array | None:
        """The L2 norm of each sequence's dL/dc_t, (L*D, T, B); None but for LSTM."""
        return None if self._dc is None else self._padded(self._dc)

    @cached_property
    def dh_norm(self) -> Array:
        """The L2 norm over batch and hidden units of the total derivative dL/dh_t, (L*D, T)."""
        return _norm_over_batch(self.dh_norm_per_sample)

    @cached_property
    def dc_norm(self) -> Array | None:
        """The L2 norm over batch and hidden units of dL/dc_t, (L*D, T); None but for LSTM."""
        return None if self.dc_norm_per_sample is None else _norm_over_batch(self.dc_norm_per_sample)

    @cached_property
    def n_clipped(self) -> Array:
        """How many sequences `step_clip` rescaled, (L*D, T)."""
        norms = self.dh_norm_per_sample
        clipped: Array = ((norms > self._step_clip) & np.isfinite(norms)).sum(axis=2)
        return clipped

    @cached_property
    def first_nonfinite(self) -> tuple[int, int, int] | None:
        """The first norm that is NaN or infinite, as (layer, direction, t), or None.

        First in the order of the backward pass: from the last layer to the first, and within a layer against the
        direction of its steps.
        """
        bad = ~np.isfinite(self.dh_norm)
        if self.dc_norm is not None:
            bad |= ~np.isfinite(self.dc_norm)
        D = self.num_directions
        for layer in reversed(range(bad.shape[0] // D)):
            for direction in range(D):
                times = np.flatnonzero(bad[layer * D + direction])
                if times.size:
                    return layer, direction, int(times[-1] if direction == 0 else times[0])
        return None

    def __repr__(self) -> str:
        rows, T = self.dh_norm.shape
        finite = "all finite" if self.first_nonfinite is None else f"not finite from {self.first_nonfinite} on"
        D = self.num_directions
        return f"<Telemetry: L={rows // D}, D={D}, T={T}, {finite}>"


def _norm_over_batch(norms: Array) -> Array:
    """Return the L2 norm over the last axis, without overflow or underflow on the way."""
    largest = norms.max(axis=2, initial=0.0)
    scale = np.where((largest > 0) & np.isfinite(largest), largest, 1.0)
    with np.errstate(invalid="ignore", over="ignore"):
        result = scale * np.sqrt(np.square(norms / scale[..., None]).sum(axis=2))
    return np.asarray(result)


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
    >>> from gradcore.layers.telemetry import recurrent_profiles
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
