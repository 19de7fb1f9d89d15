"""The recurrent cells on dual numbers: the tangent of a step, and that of the step back.

A step back is the ordinary one, with the product rule of `Dual` in place of second derivatives. A is what the sums over
x become (with biases), U the sums over the state (W_hh h + b_hh); both are (G, n, H) in the order of the weights' rows.
With layer norm they are what its gains and the biases make of these sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from gradcore._base.check import Array
from gradcore.layers.dual import Dual, through_sigmoid, through_tanh
from gradcore.layers.dual_norm import Normalized

__all__: list[str] = []  # for the package only

Duals = Sequence[Dual]
Show = Callable[[Dual], Normalized]  # layer norm of c, for the output that is made of it


class Step(NamedTuple):
    """What a step makes: the gates, the parts of the state after it, and layer norm of c."""

    gates: Duals
    after: Duals
    of_c: Normalized | None = None


class StepBack(NamedTuple):
    """The gradients that a step back makes.

    They are those with respect to A, to U, to the parts before the step except for what passes W_hh, and to what layer
    norm makes of c.
    """

    a: Duals
    u: Duals
    before: Duals
    of_c: Dual | None = None


class DualCell(NamedTuple):
    """The functions of a cell.

    ``gates(A, U)`` returns the gates as `Trace.gates` has them, (K, n, H).

    ``step(gates, dA, dU, before, show)`` takes these gates, the tangents of A and U, and the parts of the state before
    the step. `show`, if there is one, is what LSTM applies to c before the output's tanh.

    ``step_back(gates, before, d, of_c)`` takes what `step` has returned, and the gradients with respect to the parts
    after the step.
    """

    gates: Callable[[Array, Array], Array]
    step: Callable[[Array, Array, Array, Duals, Show | None], Step]
    step_back: Callable[[Duals, Duals, Duals, Normalized | None], StepBack]


_NONE = Dual(0.0, 0.0)


def _tanh_gates(a: Array, u: Array) -> Array:
    return np.asarray(np.tanh(a + u))


def _tanh_step(gates: Array, da: Array, du: Array, before: Duals, show: Show | None) -> Step:
    """h = tanh(A + U)"""
    h = through_tanh(gates[0], da[0] + du[0])
    return Step((h,), (h,))


def _tanh_step_back(gates: Duals, before: Duals, d: Duals, of_c: Normalized | None) -> StepBack:
    """dA = dU = dh (1 - h^2)"""
    (h,), (dh,) = gates, d
    delta = dh * (1 - h * h)
    return StepBack((delta,), (delta,), (_NONE,))


def _relu_gates(a: Array, u: Array) -> Array:
    return np.asarray(np.maximum(a + u, 0))


def _relu_slope(h: Array) -> Array:
    return np.where(h <= 0, 0, 1).astype(h.dtype)  # 1 for NaN, which is to show


def _relu_step(gates: Array, da: Array, du: Array, before: Duals, show: Show | None) -> Step:
    """h = max(0, A + U)"""
    h = Dual(gates[0], _relu_slope(gates[0]) * (da[0] + du[0]))
    return Step((h,), (h,))


def _relu_step_back(gates: Duals, before: Duals, d: Duals, of_c: Normalized | None) -> StepBack:
    """dA = dU = dh where h > 0; the slope does not change"""
    (h,), (dh,) = gates, d
    delta = dh * _relu_slope(h.value)
    return StepBack((delta,), (delta,), (_NONE,))


def _lstm_gates(a: Array, u: Array) -> Array:
    from scipy.special import expit

    i, f, o = expit((a + u)[[0, 1, 3]])
    return np.stack([i, f, np.tanh(a[2] + u[2]), o])


def _lstm_step(gates: Array, da: Array, du: Array, before: Duals, show: Show | None) -> Step:
    """c = f c_in + i g, h = o tanh(c), or that of what layer norm makes of c"""
    i, f, o = (through_sigmoid(gates[k], da[k] + du[k]) for k in (0, 1, 3))
    g = through_tanh(gates[2], da[2] + du[2])
    _, c_in = before
    c = f * c_in + i * g
    of_c = None if show is None else show(c)
    shown = c if of_c is None else of_c.output()
    return Step((i, f, g, o), (o * shown.tanh(), c), of_c)


def _lstm_step_back(gates: Duals, before: Duals, d: Duals, of_c: Normalized | None) -> StepBack:
    """dc gets dh o (1 - tanh(c)^2); di = dc g, df = dc c_in, dg = dc i, do = dh tanh(c), each times the gate's slope"""
    (i, f, g, o), (_, c_in), (dh, dc) = gates, before, d
    shown = f * c_in + i * g if of_c is None else of_c.output()
    squashed = shown.tanh()
    d_shown = dh * o * (1 - squashed * squashed)
    dc = dc + (d_shown if of_c is None else of_c.back(d_shown))
    delta = (dc * g * i * (1 - i), dc * c_in * f * (1 - f), dc * i * (1 - g * g), dh * squashed * o * (1 - o))
    return StepBack(delta, delta, (_NONE, dc * f), d_shown)


def _gru_gates(a: Array, u: Array) -> Array:
    from scipy.special import expit

    r, z = expit(a[:2] + u[:2])
    return np.stack([r, z, np.tanh(a[2] + r * u[2]), u[2]])


def _gru_step(gates: Array, da: Array, du: Array, before: Duals, show: Show | None) -> Step:
    """n = tanh(A_n + r q) with q = U_n, h = n + z (h_in - n)"""
    (h_in,), (q, dq) = before, (gates[3], du[2])
    r, z = (through_sigmoid(gates[k], da[k] + du[k]) for k in (0, 1))
    n = through_tanh(gates[2], da[2] + r.dot * q + r.value * dq)
    return Step((r, z, n, Dual(q, dq)), (n + z * (h_in - n),))


def _gru_step_back(gates: Duals, before: Duals, d: Duals, of_c: Normalized | None) -> StepBack:
    """dA_n = dh (1 - z) (1 - n^2), dq = dA_n r, dr = dA_n q, dz = dh (h_in - n); r and z times the gate's slope"""
    (r, z, n, q), (h_in,), (dh,) = gates, before, d
    dn = dh * (1 - z) * (1 - n * n)
    dr, dz = dn * q * r * (1 - r), dh * (h_in - n) * z * (1 - z)
    return StepBack((dr, dz, dn), (dr, dz, dn * r), (dh * z,))


RNN_TANH = DualCell(_tanh_gates, _tanh_step, _tanh_step_back)
RNN_RELU = DualCell(_relu_gates, _relu_step, _relu_step_back)
LSTM = DualCell(_lstm_gates, _lstm_step, _lstm_step_back)
GRU = DualCell(_gru_gates, _gru_step, _gru_step_back)
