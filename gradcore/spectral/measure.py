"""What a backward pass has done to a gradient over time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gradcore._base.check import Array, check_index, check_number
from gradcore.spectral.logs import fit_slope
from gradcore.spectral.members import recurrent_tape

__all__ = ["effective_horizon", "measure_growth"]


def measure_growth(tape: Any, *, index: int | None = None) -> float:
    r"""Return the growth per step that a backward pass has shown.

    The least-squares slope of :math:`\ln |dL/dh_t|`, from `tape.telemetry.dh_norm`, in the order in which the gradient
    traveled: from the last step to the first, and the other way in the reverse direction.

    It measures what the recurrence does to a gradient if the loss acts on the last step only. If the loss acts on every
    step, dL/dh_t is the sum of what has come from all later ones. Growth still shows, because the oldest part outgrows
    the rest, but a vanishing gradient shows a slope near 0.

    Parameters
    ----------
    tape : Tape
        The tape of a recurrent layer, or of a model with one, after ``backward(tape, dy)``.
    index : int, optional
        Which layer and direction of a stack: layer * num_directions + direction. By default the largest slope of all.

    Returns
    -------
    float
        Natural logarithm per step. Steps before the gradient first appears are left out, and so are those after it has
        overflowed or begun to underflow. If a single step is left, the slope is inf or -inf; it is also -inf if the
        gradient becomes exactly zero in one step. NaN if there is no gradient, if it is not finite to begin with, or if
        the forward pass was not finite.

    Raises
    ------
    TypeError
        If it is not the tape of a recurrent layer or of a model with one.
    ValueError
        If the model has several recurrent layers, or there has been no backward pass.
    IndexError
        If the index is out of range.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> from gradcore import spectral
    >>> layer = gradcore.RNN(1, 2, nonlinearity="relu", bias=False)
    >>> layer.params["weight_hh_l0"][...] = [[1.25, 0.0], [0.0, 1.25]]
    >>> layer.params["weight_ih_l0"][...] = 1
    >>> y, tape = layer.forward(np.ones((50, 4, 1), np.float32))
    >>> dy = np.zeros_like(y)
    >>> dy[-1] = 1
    >>> dx = layer.backward(tape, dy)
    >>> round(float(np.exp(spectral.measure_growth(tape))), 6)
    1.25
    """
    tape = recurrent_tape(tape)
    norms = _in_order(tape, index)
    if not np.isfinite(tape.state).all():
        return math.nan
    tiny = float(np.finfo(tape.layer.dtype).tiny)
    slopes = [slope_of(traveled, tiny) for traveled in norms]
    return max((slope for slope in slopes if not math.isnan(slope)), default=math.nan)


def effective_horizon(tape: Any, eps: float = 0.01, *, index: int | None = None) -> int:
    r"""Return how many steps back a gradient reaches before less than `eps` of its norm is left.

    The largest j with :math:`|dL/dh_{t-j}| \ge eps |dL/dh_t|`, t being the step at which the gradient first appears; in
    the reverse direction with t + j. What lies further back can hardly be learned from. Like `measure_growth`, it says
    what the recurrence does if the loss acts on the last step only.

    Parameters
    ----------
    tape : Tape
        The tape of a recurrent layer, or of a model with one, after ``backward(tape, dy)``.
    eps : float
        The part of the norm below which a gradient counts as vanished, above 0 and at most 1.
    index : int, optional
        Which layer and direction of a stack: layer * num_directions + direction. By default the farthest reach of all.

    Returns
    -------
    int
        From 0 to T - 1; 0 if there is no gradient. A gradient that is not finite counts as having reached.

    Raises
    ------
    TypeError
        If it is not the tape of a recurrent layer or of a model with one.
    ValueError
        If the model has several recurrent layers, there has been no backward pass, or eps is out of range.
    IndexError
        If the index is out of range.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> from gradcore import spectral
    >>> layer = gradcore.RNN(1, 2, nonlinearity="relu", bias=False)
    >>> layer.params["weight_hh_l0"][...] = [[0.5, 0.0], [0.0, 0.5]]
    >>> layer.params["weight_ih_l0"][...] = 1
    >>> y, tape = layer.forward(np.ones((50, 4, 1), np.float32))
    >>> dy = np.zeros_like(y)
    >>> dy[-1] = 1
    >>> dx = layer.backward(tape, dy)
    >>> spectral.effective_horizon(tape, eps=0.01)  # 2^-6 is left over 6 steps, 2^-7 is below 0.01
    6
    """
    eps = check_number("eps", eps, above=0.0, most=1.0)
    reaches = [0]
    for norms in _in_order(recurrent_tape(tape), index):
        if norms.any():
            traveled = norms[int(np.argmax(norms != 0)) :]
            reaches.append(int(np.flatnonzero(~(traveled < eps * traveled[0]))[-1]))
    return max(reaches)


def _in_order(tape: Any, index: int | None) -> list[Array]:
    """Return |dL/dh_t| of one or of each layer and direction, in the order in which the gradient traveled."""
    if tape.telemetry is None:
        raise ValueError("tape: has no telemetry yet; call backward(tape, dy) first")
    norms, directions = tape.telemetry.dh_norm, tape.layer.num_directions
    if index is not None:
        index = check_index("index", index, len(norms))
    which = range(len(norms)) if index is None else [index]
    return [norms[i] if i % directions else norms[i, ::-1] for i in which]


def slope_of(norms: Array, tiny: float) -> float:
    """Return the slope of ln norms, listed in the order in which the gradient traveled."""
    if not norms.any():  # also without steps
        return math.nan
    norms = norms[int(np.argmax(norms != 0)) :]
    trusted = (norms > 1e3 * tiny) & (norms < math.inf)  # closer to the smallest normal number, entries underflow
    count = len(norms) if trusted.all() else int(np.argmin(trusted))
    if not count or (count == 1 and (len(norms) == 1 or math.isnan(norms[1]))):
        return math.nan
    if count < len(norms) and norms[count] == 0 and norms[count - 1] > 1e9 * tiny:
        return -math.inf
    if count == 1:
        return math.inf if norms[1] > norms[0] else -math.inf
    return fit_slope(np.log(norms[:count]))
