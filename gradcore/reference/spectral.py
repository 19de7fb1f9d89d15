"""The twins of the Jacobian kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradcore.reference.recurrent import RecurrentTape, _layout, _step_forward, _walk, _weights

__all__ = ["carried_back", "lyapunov_exponents", "step_jacobians"]

Array = NDArray[Any]


def step_jacobians(tape: RecurrentTape, index: int, b: int, *, difference: float = 1e-6) -> Array:
    """Return d(state after a step) / d(state before it) of one sample, by central differences of the step.

    Parameters
    ----------
    tape : RecurrentTape
        The tape from `recurrent_forward` in float64.
    index, b : int
        Which layer * num_directions + direction, and which sample, of full length.
    difference : float
        How far each unit is moved to either side. The error is of the order of its square.

    Returns
    -------
    ndarray, (T, n, n)
        The Jacobians in the order in which the direction takes the steps; n = H, or 2H for LSTM, whose state is (h, c)
        stacked.

    Examples
    --------
    >>> from gradcore.reference import recurrent_forward
    >>> params = {"weight_ih_l0": np.ones((1, 1)), "weight_hh_l0": np.full((1, 1), 0.5)}
    >>> tape = recurrent_forward("RNN_RELU", params, np.ones((3, 1, 1)))[2]
    >>> step_jacobians(tape, 0, 0).ravel().round(6)
    array([0.5, 0.5, 0.5])
    """
    suffixes = [suffix for level in _layout(tape.params) for suffix in level]
    T, H = tape.h.shape[1], tape.h.shape[3]
    n = 2 * H if tape.mode == "LSTM" else H
    weights = _weights(tape.params, suffixes[index])
    moves = difference * np.concatenate([np.eye(n), -np.eye(n)])  # (2n, n)
    jacobians = []
    for t in _walk(T, suffixes[index]):
        x = np.repeat(tape.inputs[index // len(_layout(tape.params)[0])][t, b][None], 2 * n, axis=0)
        h = tape.h_in[index, t, b] + moves[:, :H]
        c = tape.c_in[index, t, b] + (moves[:, H:] if n > H else np.zeros_like(h))
        mask = None if tape.recurrent_masks is None else tape.recurrent_masks[index, b]
        h_out, c_out, *_ = _step_forward(tape.mode, weights, x, (h, c), mask)
        if tape.keep is not None:
            h_out = tape.keep[0][index, t, b] * h + (1 - tape.keep[0][index, t, b]) * h_out
            c_out = tape.keep[1][index, t, b] * c + (1 - tape.keep[1][index, t, b]) * c_out if n > H else c
        out = np.concatenate([h_out, c_out], axis=1)[:, :n]
        jacobians.append(((out[:n] - out[n:]) / (2 * difference)).T)
    return np.array(jacobians)


def lyapunov_exponents(jacobians: Array, q: Array, transient: int = 0) -> Array:
    """Return the Lyapunov exponents of a product of matrices, by a QR decomposition after each.

    Parameters
    ----------
    jacobians : ndarray, (T, n, n)
        The matrices, the first to be applied first.
    q : ndarray, (n, k)
        Orthonormal columns to begin with.
    transient : int
        How many steps are left out of the mean.

    Returns
    -------
    ndarray, (k,)
        Natural logarithms per step, in the order of the columns.

    Examples
    --------
    >>> lyapunov_exponents(np.array([np.diag([2.0, 0.5])] * 3), np.eye(2)) / np.log(2)
    array([ 1., -1.])
    """
    logs = []
    for J in jacobians:
        q, r = np.linalg.qr(J @ q)
        logs.append(np.log(np.abs(np.diag(r))))
    return np.asarray(np.mean(logs[transient:], axis=0))


def carried_back(jacobians: Array, u: Array) -> Array:
    """Carry a gradient with respect to the last state back to the states before it.

    Parameters
    ----------
    jacobians : ndarray, (T, n, n)
        The Jacobians in the order in which the direction takes the steps.
    u : ndarray, (n,)
        The gradient dL/d(state after the last step).

    Returns
    -------
    ndarray, (T + 1, n)
        The gradient after 0, 1, ... T steps back.

    Examples
    --------
    >>> carried_back(np.array([[[2.0]], [[3.0]]]), np.ones(1)).ravel()
    array([1., 3., 6.])
    """
    gradients = [u]
    for J in jacobians[::-1]:
        gradients.append(J.T @ gradients[-1])
    return np.array(gradients)
