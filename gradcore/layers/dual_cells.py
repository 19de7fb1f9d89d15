"""The recurrent cells on dual numbers: the tangent of a step, and that of the step back.

A step back is the ordinary one, with the product rule of `Dual` in place of second derivatives. A is what the sums over
x become (with biases), U the sums over the state (W_hh h + b_hh); both are (G, n, H) in the order of the weights' rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from gradcore._base.check import Array
from gradcore.layers.dual import Dual, through_sigmoid, through_tanh

__all__: list[str] = []  # for the package only

Duals = Sequence[Dual]


class DualCell(NamedTuple):
    """The two functions of a cell.

    ``step(gates, dA, dU, before)`` takes the gates as `Trace.gates` has them, (K, n, H), the tangents of A and U, and
    the parts of the state before the step. It returns the gates and the parts after it.

    ``step_back(gates, before, d)`` takes these gates and parts, and the gradients with respect to the parts after the
    step. It returns those with respect to A, to U, and to the parts before the step except for what passes W_hh.
    """

    step: Callable[[Array, Array, Array, Duals], tuple[Duals, Duals]]
    step_back: Callable[[Duals, Duals, Duals], tuple[Duals, Duals, Duals]]


_NONE = Dual(0.0, 0.0)


def _tanh_step(gates: Array, da: Array, du: Array, before: Duals) -> tuple[Duals, Duals]:
    """h = tanh(A + U)"""
    h = through_tanh(gates[0], da[0] + du[0])
    return (h,), (h,)


def _tanh_step_back(gates: Duals, before: Duals, d: Duals) -> tuple[Duals, Duals, Duals]:
    """dA = dU = dh (1 - h^2)"""
    (h,), (dh,) = gates, d
    delta = dh * (1 - h * h)
    return (delta,), (delta,), (_NONE,)


def _relu_slope(h: Array) -> Array:
    return np.where(h <= 0, 0, 1).astype(h.dtype)  # 1 for NaN, which is to show


def _relu_step(gates: Array, da: Array, du: Array, before: Duals) -> tuple[Duals, Duals]:
    """h = max(0, A + U)"""
    h = Dual(gates[0], _relu_slope(gates[0]) * (da[0] + du[0]))
    return (h,), (h,)


def _relu_step_back(gates: Duals, before: Duals, d: Duals) -> tuple[Duals, Duals, Duals]:
    """dA = dU = dh where h > 0; the slope does not change"""
    (h,), (dh,) = gates, d
    delta = dh * _relu_slope(h.value)
    return (delta,), (delta,), (_NONE,)


def _lstm_step(gates: Array, da: Array, du: Array, before: Duals) -> tuple[Duals, Duals]:
    """c = f c_in + i g, h = o tanh(c)"""
    i, f, o = (through_sigmoid(gates[k], da[k] + du[k]) for k in (0, 1, 3))
    g = through_tanh(gates[2], da[2] + du[2])
    _, c_in = before
    c = f * c_in + i * g
    return (i, f, g, o), (o * c.tanh(), c)


def _lstm_step_back(gates: Duals, before: Duals, d: Duals) -> tuple[Duals, Duals, Duals]:
    """dc gets dh o (1 - tanh(c)^2); di = dc g, df = dc c_in, dg = dc i, do = dh tanh(c), each times the gate's slope"""
    (i, f, g, o), (_, c_in), (dh, dc) = gates, before, d
    squashed = (f * c_in + i * g).tanh()
    dc = dc + dh * o * (1 - squashed * squashed)
    delta = (dc * g * i * (1 - i), dc * c_in * f * (1 - f), dc * i * (1 - g * g), dh * squashed * o * (1 - o))
    return delta, delta, (_NONE, dc * f)


def _gru_step(gates: Array, da: Array, du: Array, before: Duals) -> tuple[Duals, Duals]:
    """n = tanh(A_n + r q) with q = U_n, h = n + z (h_in - n)"""
    (h_in,), (q, dq) = before, (gates[3], du[2])
    r, z = (through_sigmoid(gates[k], da[k] + du[k]) for k in (0, 1))
    n = through_tanh(gates[2], da[2] + r.dot * q + r.value * dq)
    return (r, z, n, Dual(q, dq)), (n + z * (h_in - n),)


def _gru_step_back(gates: Duals, before: Duals, d: Duals) -> tuple[Duals, Duals, Duals]:
    """dA_n = dh (1 - z) (1 - n^2), dq = dA_n r, dr = dA_n q, dz = dh (h_in - n); r and z times the gate's slope"""
    (r, z, n, q), (h_in,), (dh,) = gates, before, d
    dn = dh * (1 - z) * (1 - n * n)
    dr, dz = dn * q * r * (1 - r), dh * (h_in - n) * z * (1 - z)
    return (dr, dz, dn), (dr, dz, dn * r), (dh * z,)


RNN_TANH = DualCell(_tanh_step, _tanh_step_back)
RNN_RELU = DualCell(_relu_step, _relu_step_back)
LSTM = DualCell(_lstm_step, _lstm_step_back)
GRU = DualCell(_gru_step, _gru_step_back)
