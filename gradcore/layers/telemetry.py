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
from gradcore.layers.tape import Member, Profile, Tape

__all__ = ["StepTelemetry", "Telemetry"]


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
        padded: Array = self._batch.in_time(np.ascontiguousarray(norms.T)).transpose(2, 0, 1)
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
        return norm_over_batch(self.dh_norm_per_sample)

    @cached_property
    def dc_norm(self) -> Array | None:
        """The L2 norm over batch and hidden units of dL/dc_t, (L*D, T); None but for LSTM."""
        return None if self.dc_norm_per_sample is None else norm_over_batch(self.dc_norm_per_sample)

    def profiles(self) -> Iterator[Profile]:
        """Yield |dL/dh_t| of each layer and direction.

        Yields
        ------
        Profile
            The name, the direction and the norms.
        """
        for index, norms in enumerate(self.dh_norm):
            layer, reverse = divmod(index, self.num_directions)
            yield Profile(f"l{layer}{'_reverse' * reverse}", reverse == 1, norms)

    @property
    def has_limit(self) -> bool:
        """Whether `step_clip` limited the norms."""
        return self._step_clip < math.inf

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


def norm_over_batch(norms: Array) -> Array:
    """Return the L2 norm over the last axis, without overflow or underflow on the way."""
    largest = norms.max(axis=2, initial=0.0)
    scale = np.where((largest > 0) & np.isfinite(largest), largest, 1.0)
    with np.errstate(invalid="ignore", over="ignore"):
        result = scale * np.sqrt(np.square(norms / scale[..., None]).sum(axis=2))
    return np.asarray(result)


class StepTelemetry:
    """Hold what the tape of a training step tells, which is walked once.

    Parameters
    ----------
    tape : Tape, optional
        A layer's or a model's tape after its backward pass. Another object tells nothing, nor does None.
    scale : float
        The factor by which the loss was multiplied. `profiles` and `d_norm` are divided by it.

    Attributes
    ----------
    members : list of Member
        What `Tape.walk` yields.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> from gradcore.layers.telemetry import StepTelemetry
    >>> layer = gradcore.GRU(3, 4, bidirectional=True)
    >>> y, tape = layer.forward(np.ones((6, 2, 3), np.float32))
    >>> dx = layer.backward(tape, np.ones_like(y))
    >>> [(name, reverse, len(norms)) for name, reverse, norms in StepTelemetry(tape).profiles]
    [('l0', False, 6), ('l0_reverse', True, 6)]
    """

    def __init__(self, tape: Any = None, scale: float = 1.0) -> None:
        self.members: list[Member] = list(tape.walk()) if isinstance(tape, Tape) else []
        self._scale = scale

    @classmethod
    def of(cls, tape: Any) -> StepTelemetry:
        """Return the telemetry of a tape, or the given one.

        Parameters
        ----------
        tape : Tape, StepTelemetry or None
            The tape, or its telemetry.

        Returns
        -------
        StepTelemetry
            The telemetry.
        """
        return tape if isinstance(tape, StepTelemetry) else cls(tape)

    @cached_property
    def profiles(self) -> list[Profile]:
        """The norms over time of every recurrent layer and direction."""
        found = [profile for member in self.members for profile in member.profiles()]
        if self._scale == 1.0:
            return found
        return [profile._replace(dh_norm=profile.dh_norm / self._scale) for profile in found]

    @cached_property
    def d_norm(self) -> dict[str, float]:
        """The norm of dL/d(input) of each of the model's layers, by its place, and that of dL/dy as "output"."""
        layers = [member for member in self.members if len(member.path) == 1]
        norms = {member.name: member.dx_norm for member in layers}
        if layers:
            norms["output"] = layers[-1].dy_norm
        return {name: norm / self._scale for name, norm in norms.items() if norm is not None}

    @cached_property
    def layer_growth(self) -> list[float]:
        """The ln of the factor by which each layer multiplies the gradient norm, from the first layer to the last.

        Recurrent layers are compared with each other at the last time step, where time has not yet had an effect. What
        the layers of a branch multiply says nothing of the whole, so only those in a chain count.
        """
        growth: list[float] = []
        for member in self.members:
            if not member.in_chain or member.tape.is_chain:
                continue
            profiles = list(member.tape.profiles())
            rows = [norms for _, reverse, norms in profiles if not reverse and len(norms)]
            growth += [log_ratio(float(a[-1]), float(b[-1])) for a, b in pairwise(rows)]
            if not profiles and member.dx_norm is not None and member.dy_norm is not None:
                growth.append(log_ratio(member.dx_norm, member.dy_norm))
        return growth

    @cached_property
    def first_nonfinite(self) -> dict[str, tuple[int, int, int]]:
        """Where the backward pass of each recurrent layer first met a value that is not finite, by the layer's name."""
        found = {member.name: member.tape.first_nonfinite for member in self.members}
        return {name: place for name, place in found.items() if place is not None}


def log_ratio(first: float, last: float) -> float:
    """Return ln(first / last) of two norms: inf if only the first is not finite, NaN if the last gives no measure."""
    if not 0 < last < math.inf:
        return math.nan
    if not math.isfinite(first):
        return math.inf
    return math.log(first) - math.log(last) if first > 0 else -math.inf
