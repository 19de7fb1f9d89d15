"""Regularize against vanishing gradients: a term of the loss that asks each step back to keep the norm."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from gradcore._base.check import Array, check_number
from gradcore._base.hook import Hook, TrainingStep
from gradcore.layers.functional import packed_state
from gradcore.layers.recurrent_tape import RecurrentTape
from gradcore.layers.telemetry import StepTelemetry

__all__ = ["VanishingGradientRegularizer"]


class VanishingGradientRegularizer(Hook):
    r"""Vanishing-gradient regularizer of Pascanu, Mikolov and Bengio for `RNN` [1]_.

    With :math:`a_t = W_{ih} x_t + W_{hh} h_{t-1} + b`, :math:`h_t = \varphi(a_t)`, the row :math:`\delta_t = dL/da_t`
    and :math:`s_t = \varphi'(a_t)`,

    .. math:: \Omega = \frac{1}{N} \sum_{b, t} (r_{b,t} - 1)^2, \qquad
              r_t = \frac{\|(\delta_t W_{hh}) \odot s_{t-1}\|^2}{\|\delta_t\|^2},

    the mean over all N pairs of neighboring steps of a sequence whose :math:`\|\delta_t\|^2` is at least `bound`, and
    the sum over layers and directions. With recurrent dropout :math:`s_{t-1}` has the factors of the mask on
    :math:`h_{t-1}`. Only the W in :math:`r_t` is differentiated. Deltas and states are held constant, so that the whole
    gradient is

    .. math:: \frac{\partial \Omega}{\partial W_{hh}} = \frac{4}{N} \sum_{b, t} \frac{r_t - 1}{\|\delta_t\|^2}
              \, \delta_t^T \, ((\delta_t W_{hh}) \odot s_{t-1} \odot s_{t-1}).

    Pass it to `fit` or `training_step` as one of the `hooks`, or call it. As a hook it serves all recurrent layers of
    the model, which must be of class `RNN`, and each one's `tape.omega` then holds its value; the loss in the history
    does not include it. It computes in float64, from the tape: a second backward pass through time in NumPy, which
    costs 4 to 12 times as much as the fused one.

    Parameters
    ----------
    weight : float
        The factor of :math:`\Omega` in the loss, at least 0; an attribute that can be changed between steps. The paper
        uses 4 for the temporal-order problem, and weights that fall as 1/t for natural data.
    bound : float
        The least :math:`\|\delta_t\|^2` of a pair that counts: a gradient that has vanished has no direction left to
        keep.

    Raises
    ------
    TypeError, ValueError
        If `weight` or `bound` is not a number of at least 0.

    Notes
    -----
    Equations 9 and 10 of [1]_, where :math:`x_t` is :math:`a_t` here. Equation 9 has the ratio of norms; equation 10
    and the authors' code have that of squared norms, as here. Their code uses dL/dh in place of dL/da, and counts the
    step from the initial state too. It is meant to be combined with clipping; the authors say that alone it usually
    fails.

    Layers with layer norm or zoneout are refused. Layer norm divides :math:`W_{hh} h` by its deviation, so that r does
    not change when W is scaled, whereas its derivative with everything else held constant says that it grows with W:
    the weights would grow without end and without effect. Zoneout carries a part of dL/dh past W, so that
    :math:`\delta_{t-1}` is not a function of :math:`\delta_t`.

    References
    ----------
    .. [1] Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks", arXiv 1211.5063,
       2013, section 3.3.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> layer = gradcore.RNN(1, 2, nonlinearity="relu", bias=False, dtype=np.float64)
    >>> layer.params["weight_ih_l0"][...] = 1
    >>> layer.params["weight_hh_l0"][...] = [[0.5, 0.0], [0.0, 0.5]]
    >>> y, tape = layer.forward(np.ones((4, 1, 1)))
    >>> dy = np.zeros_like(y)
    >>> dy[-1] = 1
    >>> gradcore.VanishingGradientRegularizer(1.0)(layer, tape, dy)  # each step back quarters the square
    0.5625
    >>> layer.grads["weight_hh_l0"]  # negative: a step downhill enlarges the weights
    array([[-0.75, -0.75],
           [-0.75, -0.75]])
    """

    def __init__(self, weight: float, *, bound: float = 1e-20) -> None:
        self.weight = check_number("weight", weight, least=0.0)
        self.bound = check_number("bound", bound, least=0.0)

    def __repr__(self) -> str:
        return f"VanishingGradientRegularizer({self.weight:g}, bound={self.bound:g})"

    def __call__(
        self, layer: Any, tape: Any, dy: Array, dstate: Any = None, *, step_clip: float | None = None
    ) -> float:
        r"""Add the gradient of weight :math:`\Omega` to ``layer.grads["weight_hh_l*"]``.

        The arguments are those of ``layer.backward``, before or after which it can be called. If interrupted
        while it adds, it resets `grads` to zero.

        Parameters
        ----------
        layer : RNN
            The layer.
        tape : Tape
            The tape from ``layer.forward``; `tape.omega` is set.
        dy : ndarray, like y, or None
            The gradient with respect to y; None for zeros, if `dstate` is given.
        dstate : ndarray, like the state, optional
            The gradient with respect to the final state; zeros by default.
        step_clip : float, optional
            The limit of each sequence's dL/dh_t; None for no limit.

        Returns
        -------
        float
            The value of :math:`\Omega`, without the weight: 0 if no pair counts, NaN if a gradient is not finite.

        Raises
        ------
        TypeError
            If the layer is not an RNN, or has layer norm or zoneout; see the notes of the class.
        TypeError, ValueError
            As for ``layer.backward``. Nothing has been added then.

        Examples
        --------
        >>> import numpy as np, gradcore
        >>> layer = gradcore.RNN(3, 4, rng=0)
        >>> y, tape = layer.forward(np.ones((7, 2, 3), np.float32))
        >>> omega = gradcore.VanishingGradientRegularizer(1.0)(layer, tape, np.ones_like(y))
        >>> omega > 0, bool(layer.grads["weight_hh_l0"].any()), bool(layer.grads["weight_ih_l0"].any())
        (True, True, False)
        """
        return self._add(layer, tape, dy, dstate, step_clip, 1.0)

    def after_loss(self, step: TrainingStep) -> None:
        """Have the backward pass keep what it is given.

        Parameters
        ----------
        step : TrainingStep
            The step, with its tape.

        Raises
        ------
        TypeError
            If a recurrent layer is not an RNN.
        ValueError
            If the model has no recurrent layer.
        """
        tapes = _recurrent_tapes(step.tape)
        if not tapes:
            raise ValueError("VanishingGradientRegularizer: the model has no recurrent layer")
        for tape in tapes:
            _slope(tape.layer)  # refuses other layers before anything is computed
            tape.keeps_given = True

    def after_backward(self, step: TrainingStep) -> None:
        """Add the gradient for every recurrent layer.

        Parameters
        ----------
        step : TrainingStep
            The step.
        """
        for tape in _recurrent_tapes(step.tape):
            assert tape.given is not None
            dy, dstate, step_clip = tape.given
            self._add(tape.layer, tape, dy, dstate, step_clip, step.scale)

    def _add(
        self, layer: Any, tape: Any, dy: Array | None, dstate: Any, step_clip: float | None, scale: float
    ) -> float:
        """Add the gradient times `scale`, by which dy, dstate and step_clip have been multiplied already."""
        phi_slope = _slope(layer)
        layer.check_tape(tape)
        clip = math.inf if step_clip is None else check_number("step_clip", step_clip, least=0.0)
        trace, D, H = tape.trace, layer.num_directions, layer.hidden_size
        batch = trace.batch
        dy = layer._check_dy(dy, dstate, batch)
        given = layer._check_state("dstate", dstate, batch.B)
        shape = len(trace), H
        (dstates,) = packed_state(layer.cell, given, batch, layer.num_directions, shape, layer.dtype, final=True)

        layer._refuse_reentry()
        omegas, gradients = np.zeros(layer.num_layers * D), {}
        rows = batch.pack(dy).astype(np.float64)
        least = math.sqrt(self.bound) * scale
        with np.errstate(all="ignore"):  # the result shows what is not finite
            for level in reversed(range(layer.num_layers)):
                below: Any = 0.0
                for direction in range(D):
                    k = level * D + direction
                    name_ih, name_hh = layer._names[k][:2]
                    W = layer.params[name_hh].astype(np.float64)
                    h = trace.arrays[k].gates[:, :H].astype(np.float64)  # an RNN's only gate: the step's output
                    slope = phi_slope(h)
                    d_rows = rows[:, direction * H : (direction + 1) * H]
                    mask = None if trace.noise is None else trace.noise[k].mask
                    delta, carried = _back(batch.offsets, direction == 1, d_rows, slope, W, dstates[k], clip, mask)
                    before = _rows_before(batch.offsets, direction == 1)
                    passed = slope if mask is None else slope * mask[_places(batch.offsets)]
                    omegas[k], gradients[name_hh] = _omega(delta, carried, passed, before, least)
                    if level:
                        below = below + delta @ layer.params[name_ih].astype(np.float64)
                rows = below * trace.masks[level - 1] if level and trace.masks else below
            with layer._adding_or_zero(), layer._adding.lock:
                for name, gradient in gradients.items():
                    layer.grads[name] += (self.weight * scale * gradient).astype(layer.dtype)
        tape.omega = omegas
        return float(omegas.sum())


def _slope(layer: Any) -> Callable[[Array], Array]:
    """Return the derivative of the activation as a function of h; a cell with gates has none."""
    slope: Callable[[Array], Array] | None = getattr(getattr(layer, "cell", None), "slope", None)
    if slope is None:
        raise TypeError(f"layer: expected an RNN, whose gradients all pass W_hh, got {type(layer).__name__}")
    if layer.layer_norm:
        raise TypeError(
            "layer: expected an RNN without layer_norm, with which the scale of W_hh does not change the gradients, "
            f"got {layer!r}"
        )
    if layer.zoneout:
        raise TypeError(f"layer: expected an RNN without zoneout, which passes gradients by W_hh, got {layer!r}")
    return slope


def _recurrent_tapes(tape: Any) -> list[RecurrentTape]:
    """Return the tape of every recurrent layer."""
    return [member.tape for member in StepTelemetry(tape).members if isinstance(member.tape, RecurrentTape)]


def _back(
    offsets: Array,
    reverse: bool,
    d_rows: Array,
    slope: Array,
    W: Array,
    dstate: Array,
    clip: float,
    mask: Array | None,
) -> tuple[Array, Array]:
    """Return delta_t and delta_t W of every packed row, (S, H) each, by backpropagation through time.

    The rows of step t are those from offsets[t] to offsets[t + 1], the longest sequences first. So a sequence has the
    same place in the rows of all its steps, and those that have ended come last.
    """
    delta, carried = np.empty_like(slope), np.empty_like(slope)
    arriving = dstate.astype(np.float64)  # the final state's gradient, for each sequence's own end
    T = len(offsets) - 1
    for t in range(T) if reverse else reversed(range(T)):
        rows = slice(offsets[t], offsets[t + 1])
        alive = offsets[t + 1] - offsets[t]
        dh = d_rows[rows] + arriving[:alive]
        if clip < math.inf:
            norm = np.linalg.norm(dh, axis=1, keepdims=True)
            dh = np.where((norm > clip) & (norm < math.inf), dh * (clip / norm), dh)
        delta[rows] = slope[rows] * dh
        carried[rows] = delta[rows] @ W
        arriving[:alive] = carried[rows] if mask is None else carried[rows] * mask[:alive]
    return delta, carried


def _places(offsets: Array) -> Array:
    """Return the place of every packed row among those of its step, (S,)."""
    return np.asarray(np.arange(offsets[-1]) - np.repeat(offsets[:-1], np.diff(offsets)))


def _rows_before(offsets: Array, reverse: bool) -> Array:
    """Return the row of the step before, in the order of the forward pass, (S,); -1 for a sequence's first step."""
    alive = np.diff(offsets)
    T = len(alive)
    t, place = np.repeat(np.arange(T), alive), _places(offsets)
    earlier = t + 1 if reverse else t - 1
    there = (earlier >= 0) & (earlier < T)
    there[there] = place[there] < alive[earlier[there]]
    rows: Array = np.where(there, offsets[np.clip(earlier, 0, T)] + place, -1)
    return rows


def _omega(delta: Array, carried: Array, slope: Array, before: Array, least: float) -> tuple[float, Array]:
    """Return Omega of one layer and direction, and its gradient with respect to W, (H, H).

    Pairs count whose norm of delta is at least `least`.
    """
    largest = np.abs(delta).max(axis=1, initial=0.0)
    scaled = delta / np.where(largest > 0, largest, 1.0)[:, None]  # so that squares neither overflow nor all underflow
    length = np.linalg.norm(scaled, axis=1)
    norm = largest * length
    counted = np.flatnonzero((before >= 0) & ~(norm < least) & (norm != 0))
    n = max(len(counted), 1)
    s = slope[before[counted]]
    u = scaled[counted] / length[counted, None]
    v = carried[counted] / norm[counted, None] * s
    excess = np.square(v).sum(axis=1) - 1
    return float(np.square(excess).sum()) / n, 4 / n * (u * excess[:, None]).T @ (v * s)
