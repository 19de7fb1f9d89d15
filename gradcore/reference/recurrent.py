"""The twin of the recurrent kernels: one step after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["RecurrentGradients", "RecurrentTape", "recurrent_backward", "recurrent_forward"]

Array = NDArray[Any]


@dataclass(frozen=True)
class RecurrentTape:
    """All quantities of a forward pass through a stack of recurrent layers.

    The first axis is layer * num_directions + direction, the second the time step in the order of x for both
    directions. Past a sequence's end, `h` and `c` hold zeros, and the other arrays what the step would have computed.

    Parameters
    ----------
    mode : str
        The cell: "RNN_TANH", "RNN_RELU", "LSTM" or "GRU".
    params : mapping of str to ndarray
        The parameters with PyTorch's names.
    alive : ndarray of bool, (T, B)
        Whether the step lies within the sequence.
    inputs : list of ndarray, (T, B, input size)
        The input of each layer, after dropout.
    dropout_masks : sequence of ndarray, (T, B, D*H), or None
        Factors on the output of each layer but the last.
    h : ndarray, (L*D, T, B, H)
        The hidden states.
    c : ndarray, (L*D, T, B, H)
        The cell states of LSTM; zeros for other cells.
    h_in, c_in : ndarray, (L*D, T, B, H)
        The state that enters the step: that of step t - 1, or of t + 1 in the reverse direction.
    gates : ndarray, (L*D, T, B, K, H)
        RNN: h. LSTM: i, f, g, o. GRU: r, z, n, q.

    Examples
    --------
    >>> params = {"weight_ih_l0": np.ones((1, 1)), "weight_hh_l0": np.full((1, 1), 0.5)}
    >>> tape = recurrent_forward("RNN_RELU", params, np.ones((3, 1, 1)))[2]
    >>> tape.h_in.ravel(), tape.h.ravel()
    (array([0. , 1. , 1.5]), array([1.  , 1.5 , 1.75]))
    """

    mode: str
    params: Mapping[str, Array]
    alive: Array
    inputs: list[Array]
    dropout_masks: Sequence[Array] | None
    h: Array
    c: Array
    h_in: Array
    c_in: Array
    gates: Array


@dataclass(frozen=True)
class RecurrentGradients:
    """All quantities of a backward pass, with the axes of `RecurrentTape`.

    Parameters
    ----------
    dx : ndarray, (T, B, I)
        The gradient dL/dx.
    dstate : like the initial state
        The gradient with respect to the initial state.
    grads : dict of str to ndarray
        The gradients with respect to the parameters, by their names.
    dh : ndarray, (L*D, T, B, H)
        The total dL/dh_t, before it is rescaled.
    dc : ndarray, (L*D, T, B, H)
        The total dL/dc_t of LSTM; zeros for other cells.
    n_clipped : ndarray of int64, (L*D, T)
        The number of samples whose dL/dh_t was rescaled.

    Examples
    --------
    >>> params = {"weight_ih_l0": np.ones((1, 1)), "weight_hh_l0": np.full((1, 1), 2.0)}
    >>> y, state, tape = recurrent_forward("RNN_RELU", params, np.ones((3, 1, 1)))
    >>> gradients = recurrent_backward(tape, np.zeros_like(y), np.ones((1, 1, 1)), step_clip=1.0)
    >>> gradients.dh.ravel(), gradients.n_clipped
    (array([2., 2., 1.]), array([[1, 1, 0]]))
    """

    dx: Array
    dstate: Any
    grads: dict[str, Array]
    dh: Array
    dc: Array
    n_clipped: Array


def _logistic(a: Array) -> Array:
    e = np.exp(-np.abs(a))  # never overflows
    return np.asarray(np.where(a >= 0, 1, e) / (1 + e))


def _layout(params: Mapping[str, Array]) -> list[list[str]]:
    """Return the suffixes of the names: for each layer, those of its one or two directions."""
    num_layers = sum(name.startswith("weight_hh_l") and not name.endswith("_reverse") for name in params)
    directions = ["", "_reverse"] if "weight_hh_l0_reverse" in params else [""]
    return [[f"_l{layer}{direction}" for direction in directions] for layer in range(num_layers)]


def _weights(params: Mapping[str, Array], suffix: str) -> list[Array]:
    """Return w_ih, w_hh and, if there are biases, b_ih, b_hh."""
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    return [params[name + suffix] for name in names if name + suffix in params]


def _walk(T: int, suffix: str) -> range:
    """Return the time steps in the order in which a direction takes them."""
    return range(T - 1, -1, -1) if suffix.endswith("_reverse") else range(T)


def _pair(mode: str, state: Any, like: Array) -> tuple[Array, Array]:
    """Return the h and c of a state: zeros for None, and for the c that only an LSTM has."""
    if state is None:
        return np.zeros_like(like), np.zeros_like(like)
    h, c = state if mode == "LSTM" else (state, np.zeros_like(like))
    return h, c


def _step_forward(
    mode: str, weights: Sequence[Array], x: Array, state: tuple[Array, Array]
) -> tuple[Array, Array, Array]:
    """Take one step of one cell: x (B, I), h and c (B, H) -> the next h and c, and the gates (B, K, H)."""
    h, c = state
    w_ih, w_hh, *biases = weights
    b_ih, b_hh = biases or (0, 0)
    a = x @ w_ih.T + b_ih  # (1)
    u = h @ w_hh.T + b_hh  # (2)
    if mode.startswith("RNN"):
        h_out = np.tanh(a + u) if mode == "RNN_TANH" else np.maximum(a + u, 0)  # (3)
        return h_out, c, h_out[:, None]
    if mode == "LSTM":
        i, f, g, o = np.split(a + u, 4, axis=1)
        i, f, g, o = _logistic(i), _logistic(f), np.tanh(g), _logistic(o)  # (4)
        c_out = f * c + i * g  # (5)
        h_out = o * np.tanh(c_out)  # (6)
        return h_out, c_out, np.stack([i, f, g, o], axis=1)
    (a_r, a_z, a_n), (u_r, u_z, q) = np.split(a, 3, axis=1), np.split(u, 3, axis=1)
    r, z = _logistic(a_r + u_r), _logistic(a_z + u_z)  # (7)
    n = np.tanh(a_n + r * q)  # (8)
    h_out = (1 - z) * n + z * h  # (9)
    return h_out, c, np.stack([r, z, n, q], axis=1)


def _step_backward(
    mode: str, gates: Array, state: tuple[Array, Array], c_out: Array, d_out: tuple[Array, Array]
) -> tuple[Array, Array, Array, Array, Array]:
    """Differentiate lines (9) to (3) of `_step_forward`.

    `d_out` is dL/dh_out, and dL/dc_out without its part through h_out. Returns da and du (B, G*H), dL/dh without its
    part through u, dL/dc, and the total dL/dc_out.
    """
    (h, c), (dh, dc) = state, d_out
    if mode.startswith("RNN"):
        h_out = gates[:, 0]
        da = dh * (1 - h_out**2) if mode == "RNN_TANH" else np.where(h_out <= 0, 0, dh)  # (3), NaN passes as in PyTorch
        return da, da, np.zeros_like(dh), dc, dc
    if mode == "LSTM":
        i, f, g, o = np.moveaxis(gates, 1, 0)
        do = dh * np.tanh(c_out)  # (6)
        dc = dc + dh * o * (1 - np.tanh(c_out) ** 2)
        di, df, dg = dc * g, dc * c, dc * i  # (5)
        da = np.concatenate([di * i * (1 - i), df * f * (1 - f), dg * (1 - g**2), do * o * (1 - o)], axis=1)  # (4)
        return da, da, np.zeros_like(dh), dc * f, dc
    r, z, n, q = np.moveaxis(gates, 1, 0)
    dn, dz = dh * (1 - z), dh * (h - n)  # (9)
    da_n = dn * (1 - n**2)  # (8)
    dr, dq = da_n * q, da_n * r
    da_r, da_z = dr * r * (1 - r), dz * z * (1 - z)  # (7)
    return np.concatenate([da_r, da_z, da_n], axis=1), np.concatenate([da_r, da_z, dq], axis=1), dh * z, dc, dc


def recurrent_forward(
    mode: str,
    params: Mapping[str, Array],
    x: Array,
    state: Any = None,
    lengths: Any = None,
    *,
    dropout_masks: Sequence[Array] | None = None,
) -> tuple[Array, Any, RecurrentTape]:
    """Run a stack of recurrent layers, one step after the other.

    Parameters
    ----------
    mode : str
        The cell: "RNN_TANH", "RNN_RELU", "LSTM" or "GRU".
    params : mapping of str to ndarray
        The parameters with PyTorch's names, which also tell the number of layers and directions and whether there are
        biases.
    x : ndarray, (T, B, I)
        The input.
    state : ndarray, (L*D, B, H), or a pair of them for LSTM, optional
        The initial state, by default zeros.
    lengths : array_like of int, (B,), optional
        The length of each sequence, by default T.
    dropout_masks : sequence of ndarray, (T, B, D*H), optional
        Factors on the output of each layer but the last: 0 or 1 / (1 - p).

    Returns
    -------
    y : ndarray, (T, B, D*H)
        The output of the last layer.
    state : like `state`
        Each sequence's state after its own last step (in the reverse direction: after its first).
    tape : RecurrentTape
        What `recurrent_backward` needs.

    Examples
    --------
    >>> params = {"weight_ih_l0": np.ones((1, 1)), "weight_hh_l0": np.full((1, 1), 0.5)}
    >>> y, state, tape = recurrent_forward("RNN_RELU", params, np.ones((3, 1, 1)), lengths=[2])
    >>> y.ravel(), state.ravel()
    (array([1. , 1.5, 0. ]), array([1.5]))
    """
    (T, B, _), layout = x.shape, _layout(params)
    H, size = params["weight_hh_l0"].shape[1], len(layout) * len(layout[0])
    alive = np.arange(T)[:, None] < (np.full(B, T) if lengths is None else np.asarray(lengths))
    x = np.where(alive[:, :, None], x, 0)  # what lies past an end does not count
    h_all, c_all = (part.copy() for part in _pair(mode, state, np.zeros((size, B, H), x.dtype)))
    gates = np.zeros((size, T, B, 1 if mode.startswith("RNN") else 4, H), x.dtype)
    h_out, c_out, h_in, c_in = (np.zeros((size, T, B, H), x.dtype) for _ in range(4))
    tape = RecurrentTape(mode, params, alive, [], dropout_masks, h_out, c_out, h_in, c_in, gates)
    for layer, suffixes in enumerate(layout):
        tape.inputs.append(x)
        for direction, suffix in enumerate(suffixes):
            k = layer * len(suffixes) + direction
            h, c = h_all[k], c_all[k]
            weights = _weights(params, suffix)
            for t in _walk(T, suffix):
                tape.h_in[k, t], tape.c_in[k, t] = h, c
                h_out, c_out, tape.gates[k, t] = _step_forward(mode, weights, x[t], (h, c))
                now = alive[t, :, None]
                h, c = np.where(now, h_out, h), np.where(now, c_out, c)  # (10) the state waits outside its sequence
                tape.h[k, t], tape.c[k, t] = np.where(now, h, 0), np.where(now, c, 0)  # (11)
            h_all[k], c_all[k] = h, c
        x = np.concatenate(tape.h[k + 1 - len(suffixes) : k + 1], axis=-1)  # (12) the directions side by side
        if dropout_masks is not None and layer < len(layout) - 1:
            x = x * dropout_masks[layer]  # (13)
    return x, (h_all, c_all) if mode == "LSTM" else h_all, tape


def recurrent_backward(
    tape: RecurrentTape, dy: Array, dstate: Any = None, *, step_clip: float = np.inf
) -> RecurrentGradients:
    """Backpropagate through time, one step after the other.

    Parameters
    ----------
    tape : RecurrentTape
        The tape from `recurrent_forward`.
    dy : ndarray, (T, B, D*H)
        The gradient dL/dy.
    dstate : like the state, optional
        The gradient dL/d(final state), by default zeros.
    step_clip : float
        The largest norm with which a sample's dL/dh_t is propagated; larger ones are scaled down to it.

    Returns
    -------
    RecurrentGradients
        The gradients with respect to x, initial state and parameters, and those on the way.

    Examples
    --------
    >>> params = {"weight_ih_l0": np.ones((1, 1)), "weight_hh_l0": np.full((1, 1), 2.0)}
    >>> y, state, tape = recurrent_forward("RNN_RELU", params, np.ones((3, 1, 1)))
    >>> recurrent_backward(tape, np.zeros_like(y), np.ones((1, 1, 1))).dh.ravel()  # grows by 2 a step, backwards
    array([4., 2., 1.])
    >>> recurrent_backward(tape, np.zeros_like(y), np.ones((1, 1, 1)), step_clip=1.0).dh.ravel()
    array([2., 2., 1.])
    """
    mode, params, layout = tape.mode, tape.params, _layout(tape.params)
    size, T, B, H = tape.h.shape
    dh_all, dc_all = (part.copy() for part in _pair(mode, dstate, np.zeros((size, B, H), dy.dtype)))
    grads = {name: np.zeros_like(value) for name, value in params.items()}
    total_h, total_c = np.zeros_like(tape.h), np.zeros_like(tape.c)
    n_clipped = np.zeros((size, T), np.int64)
    for layer, suffixes in reversed(list(enumerate(layout))):
        if tape.dropout_masks is not None and layer < len(layout) - 1:
            dy = dy * tape.dropout_masks[layer]  # (13)
        x, dx = tape.inputs[layer], np.zeros_like(tape.inputs[layer])
        for direction, suffix in enumerate(suffixes):
            k = layer * len(suffixes) + direction
            dh, dc = dh_all[k], dc_all[k]
            for t in reversed(_walk(T, suffix)):
                now, h_in = tape.alive[t, :, None], tape.h_in[k, t]
                total_h[k, t] = np.where(now, dh + dy[t, :, direction * H : (direction + 1) * H], 0)  # (12), (11)
                norm = np.sqrt(np.sum(total_h[k, t] ** 2, axis=1, keepdims=True))
                n_clipped[k, t] = np.count_nonzero(norm > step_clip)
                dh_out = np.where(norm > step_clip, step_clip / np.where(norm > 0, norm, 1), 1) * total_h[k, t]
                da, du, dh_direct, dc_in, dc_out = _step_backward(
                    mode, tape.gates[k, t], (h_in, tape.c_in[k, t]), tape.c[k, t], (dh_out, dc)
                )
                da, du = np.where(now, da, 0), np.where(now, du, 0)
                total_c[k, t] = np.where(now, dc_out, 0)
                dh = np.where(now, dh_direct + du @ params["weight_hh" + suffix], dh)  # (10), (2)
                dc = np.where(now, dc_in, dc)  # (10)
                grads["weight_hh" + suffix] += du.T @ np.where(now, h_in, 0)  # (2)
                grads["weight_ih" + suffix] += da.T @ x[t]  # (1)
                if "bias_ih" + suffix in params:
                    grads["bias_ih" + suffix] += da.sum(axis=0)
                    grads["bias_hh" + suffix] += du.sum(axis=0)
                dx[t] += da @ params["weight_ih" + suffix]  # (1)
            dh_all[k], dc_all[k] = dh, dc
        dy = dx
    return RecurrentGradients(dy, (dh_all, dc_all) if mode == "LSTM" else dh_all, grads, total_h, total_c, n_clipped)
