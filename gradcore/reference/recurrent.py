"""The twin of the recurrent kernels: one step after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradcore.reference.dropout import COUNTERS, threefry

__all__ = ["RecurrentGradients", "RecurrentTape", "recurrent_backward", "recurrent_forward", "zoneout_mask"]

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
    recurrent_masks : ndarray, (L*D, B, H), or None
        Factors on the h_{t-1} that meets W_hh.
    keep : sequence of ndarray, (L*D, T, B, H), or None
        How much of its old value each unit of h, and of c, keeps.
    norms : dict of (int, int) to list of (ndarray, ndarray)
        Of each layer and direction and each step, with layer norm: what `_normalized` made of W_ih x, of W_hh h and,
        for LSTM, of c.

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
    recurrent_masks: Array | None
    keep: Sequence[Array] | None
    norms: dict[tuple[int, int], list[tuple[Array, Array]]]


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
        The total dL/dc_t of LSTM; zeros for other cells. With zoneout h_t comes from the new value of c_t and not from
        c_t, whose gradient then is that through c_{t+1} alone.
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


def _weights(params: Mapping[str, Array], suffix: str) -> dict[str, Array]:
    """Return the parameters of a layer and direction, by their names without the suffix."""
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    norms = ("norm_ih_weight", "norm_hh_weight", "norm_c_weight", "norm_c_bias")
    return {name: params[name + suffix] for name in (*names, *norms) if name + suffix in params}


def _walk(T: int, suffix: str) -> range:
    """Return the time steps in the order in which a direction takes them."""
    return range(T - 1, -1, -1) if suffix.endswith("_reverse") else range(T)


def _pair(mode: str, state: Any, like: Array) -> tuple[Array, Array]:
    """Return the h and c of a state: zeros for None, and for the c that only an LSTM has."""
    if state is None:
        return np.zeros_like(like), np.zeros_like(like)
    h, c = state if mode == "LSTM" else (state, np.zeros_like(like))
    return h, c


def _normalized(a: Array) -> tuple[Array, Array]:
    """Return the rows with mean 0 and variance 1, but for eps = 1e-5, and the factor that made the latter, (B, 1)."""
    centered = a - a.mean(axis=1, keepdims=True)
    scale = 1 / np.sqrt(np.mean(centered**2, axis=1, keepdims=True) + 1e-5)
    return centered * scale, scale


def _normalized_backward(d: Array, norm: tuple[Array, Array]) -> Array:
    """Differentiate `_normalized`, which gave `norm`."""
    a, scale = norm
    return np.asarray(scale * (d - d.mean(axis=1, keepdims=True) - a * np.mean(d * a, axis=1, keepdims=True)))


def _sums(weights: Mapping[str, Array], x: Array, h: Array) -> tuple[Array, Array, list[tuple[Array, Array]]]:
    """Return the gates' sums over x and over h, biases included, and how they were normalized."""
    a, u, norms = x @ weights["weight_ih"].T, h @ weights["weight_hh"].T, []  # (1), (2)
    if "norm_ih_weight" in weights:
        norms = [_normalized(a), _normalized(u)]  # (2a)
        a, u = norms[0][0] * weights["norm_ih_weight"], norms[1][0] * weights["norm_hh_weight"]  # (2b)
    return a + weights.get("bias_ih", 0), u + weights.get("bias_hh", 0), norms  # (2c)


def _step_forward(
    mode: str, weights: Mapping[str, Array], x: Array, state: tuple[Array, Array], mask: Array | None = None
) -> tuple[Array, Array, Array, list[tuple[Array, Array]]]:
    """Take one step of one cell: x (B, I), h and c (B, H) -> the next h and c, the gates (B, K, H) and the norms."""
    h, c = state
    a, u, norms = _sums(weights, x, h if mask is None else h * mask)
    if mode.startswith("RNN"):
        h_out = np.tanh(a + u) if mode == "RNN_TANH" else np.maximum(a + u, 0)  # (3)
        return h_out, c, h_out[:, None], norms
    if mode == "LSTM":
        i, f, g, o = np.split(a + u, 4, axis=1)
        i, f, g, o = _logistic(i), _logistic(f), np.tanh(g), _logistic(o)  # (4)
        c_out = shown = f * c + i * g  # (5)
        if norms:
            norms.append(_normalized(c_out))
            shown = norms[2][0] * weights["norm_c_weight"] + weights["norm_c_bias"]  # (5a)
        h_out = o * np.tanh(shown)  # (6)
        return h_out, c_out, np.stack([i, f, g, o], axis=1), norms
    (a_r, a_z, a_n), (u_r, u_z, q) = np.split(a, 3, axis=1), np.split(u, 3, axis=1)
    r, z = _logistic(a_r + u_r), _logistic(a_z + u_z)  # (7)
    n = np.tanh(a_n + r * q)  # (8)
    h_out = (1 - z) * n + z * h  # (9)
    return h_out, c, np.stack([r, z, n, q], axis=1), norms


def _step_backward(
    mode: str,
    weights: Mapping[str, Array],
    kept: tuple[Array, list[tuple[Array, Array]]],
    state: tuple[Array, Array],
    d_out: tuple[Array, Array],
) -> tuple[Array, Array, Array, Array, Array, dict[str, Array]]:
    """Differentiate lines (9) to (2a) of `_step_forward`.

    `kept` is its gates and its norms, `d_out` is dL/dh_out, and dL/dc_out without its part through h_out. Returns the
    gradients with respect to W_ih x and W_hh h (B, G*H), dL/dh without its part through W_hh, dL/dc, the total
    dL/dc_out, and each row's part (B, ...) of the gradients with respect to biases and gains.
    """
    (gates, norms), (h, c), (dh, dc), parts = kept, state, d_out, {}
    direct, dc_in = np.zeros_like(dh), dc
    if mode.startswith("RNN"):
        h_out = gates[:, 0]
        da = dh * (1 - h_out**2) if mode == "RNN_TANH" else np.where(h_out <= 0, 0, dh)  # (3), NaN passes as in PyTorch
        du = da
    elif mode == "LSTM":
        i, f, g, o = np.moveaxis(gates, 1, 0)
        shown = f * c + i * g
        if norms:
            shown = norms[2][0] * weights["norm_c_weight"] + weights["norm_c_bias"]
        do, through = dh * np.tanh(shown), dh * o * (1 - np.tanh(shown) ** 2)  # (6)
        if norms:
            parts["norm_c_weight"], parts["norm_c_bias"] = through * norms[2][0], through
            through = _normalized_backward(through * weights["norm_c_weight"], norms[2])  # (5a)
        dc = dc + through
        di, df, dg, dc_in = dc * g, dc * c, dc * i, dc * f  # (5)
        da = np.concatenate([di * i * (1 - i), df * f * (1 - f), dg * (1 - g**2), do * o * (1 - o)], axis=1)  # (4)
        du = da
    else:
        r, z, n, q = np.moveaxis(gates, 1, 0)
        dn, dz, direct = dh * (1 - z), dh * (h - n), dh * z  # (9)
        da_n = dn * (1 - n**2)  # (8)
        dr, dq = da_n * q, da_n * r
        da_r, da_z = dr * r * (1 - r), dz * z * (1 - z)  # (7)
        da, du = np.concatenate([da_r, da_z, da_n], axis=1), np.concatenate([da_r, da_z, dq], axis=1)
    parts["bias_ih"], parts["bias_hh"] = da, du  # (2c)
    if norms:
        parts["norm_ih_weight"], parts["norm_hh_weight"] = da * norms[0][0], du * norms[1][0]  # (2b)
        da = _normalized_backward(da * weights["norm_ih_weight"], norms[0])  # (2a)
        du = _normalized_backward(du * weights["norm_hh_weight"], norms[1])
    return da, du, direct, dc_in, dc, {name: part for name, part in parts.items() if name in weights}


def recurrent_forward(
    mode: str,
    params: Mapping[str, Array],
    x: Array,
    state: Any = None,
    lengths: Any = None,
    *,
    dropout_masks: Sequence[Array] | None = None,
    recurrent_masks: Array | None = None,
    keep: Sequence[Array] | None = None,
) -> tuple[Array, Any, RecurrentTape]:
    """Run a stack of recurrent layers, one step after the other.

    Parameters
    ----------
    mode : str
        The cell: "RNN_TANH", "RNN_RELU", "LSTM" or "GRU".
    params : mapping of str to ndarray
        The parameters with PyTorch's names, which also tell the number of layers and directions and whether there are
        biases; with layer norm also its gains.
    x : ndarray, (T, B, I)
        The input.
    state : ndarray, (L*D, B, H), or a pair of them for LSTM, optional
        The initial state, by default zeros.
    lengths : array_like of int, (B,), optional
        The length of each sequence, by default T.
    dropout_masks : sequence of ndarray, (T, B, D*H), optional
        Factors on the output of each layer but the last: 0 or 1 / (1 - p).
    recurrent_masks : ndarray, (L*D, B, H), optional
        Factors on the h_{t-1} that meets W_hh.
    keep : sequence of ndarray, (L*D, T, B, H), optional
        Zoneout: how much of its old value each unit of h keeps, and for LSTM of c: 0 or 1, or the mean of both.

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
    tape = RecurrentTape(
        mode, params, alive, [], dropout_masks, h_out, c_out, h_in, c_in, gates, recurrent_masks, keep, {}
    )
    for layer, suffixes in enumerate(layout):
        tape.inputs.append(x)
        for direction, suffix in enumerate(suffixes):
            k = layer * len(suffixes) + direction
            h, c = h_all[k], c_all[k]
            weights = _weights(params, suffix)
            for t in _walk(T, suffix):
                tape.h_in[k, t], tape.c_in[k, t] = h, c
                mask = None if recurrent_masks is None else recurrent_masks[k]
                h_out, c_out, tape.gates[k, t], tape.norms[k, t] = _step_forward(mode, weights, x[t], (h, c), mask)
                if keep is not None:  # (9a)
                    h_out = keep[0][k, t] * h + (1 - keep[0][k, t]) * h_out
                    c_out = keep[1][k, t] * c + (1 - keep[1][k, t]) * c_out if mode == "LSTM" else c
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
            weights = _weights(params, suffix)
            dh, dc = dh_all[k], dc_all[k]
            for t in reversed(_walk(T, suffix)):
                now, h_in = tape.alive[t, :, None], tape.h_in[k, t]
                total_h[k, t] = np.where(now, dh + dy[t, :, direction * H : (direction + 1) * H], 0)  # (12), (11)
                norm = np.sqrt(np.sum(total_h[k, t] ** 2, axis=1, keepdims=True))
                n_clipped[k, t] = np.count_nonzero(norm > step_clip)
                dh_out = np.where(norm > step_clip, step_clip / np.where(norm > 0, norm, 1), 1) * total_h[k, t]
                dc_out, kept_h, kept_c = dc, np.zeros_like(dh), np.zeros_like(dc)
                if tape.keep is not None:
                    kept_h, dh_out = tape.keep[0][k, t] * dh_out, (1 - tape.keep[0][k, t]) * dh_out  # (9a)
                    if mode == "LSTM":
                        kept_c, dc_out = tape.keep[1][k, t] * dc, (1 - tape.keep[1][k, t]) * dc
                step = tape.gates[k, t], tape.norms[k, t]
                da, du, direct, dc_in, dc_new, parts = _step_backward(
                    mode, weights, step, (h_in, tape.c_in[k, t]), (dh_out, dc_out)
                )
                da, du = np.where(now, da, 0), np.where(now, du, 0)
                total_c[k, t] = np.where(now, dc_new if tape.keep is None else dc, 0)
                mask = 1 if tape.recurrent_masks is None else tape.recurrent_masks[k]
                dh = np.where(now, kept_h + direct + mask * (du @ weights["weight_hh"]), dh)  # (10), (2)
                dc = np.where(now, kept_c + dc_in, dc)  # (10)
                grads["weight_hh" + suffix] += du.T @ np.where(now, mask * h_in, 0)  # (2)
                grads["weight_ih" + suffix] += da.T @ x[t]  # (1)
                for name, part in parts.items():
                    grads[name + suffix] += np.where(now, part, 0).sum(axis=0)
                dx[t] += da @ weights["weight_ih"]  # (1)
            dh_all[k], dc_all[k] = dh, dc
        dy = dx
    return RecurrentGradients(dy, (dh_all, dc_all) if mode == "LSTM" else dh_all, grads, total_h, total_c, n_clipped)


def zoneout_mask(key: int, p: float, part: int, rows: Any, H: int) -> Array:
    """Return which units keep their old value.

    Of a row's units, 64 at a time take the 64 words of 16 counters of Threefry as those of `dropout`; the first 16 are
    16 n (2 row + part), where n is the number of such groups. A unit keeps its value if its word is below 2^32 p.

    Parameters
    ----------
    key : int
        The key of the random words, below 2^64.
    p : float
        The probability of 1.
    part : {0, 1}
        0 for h, 1 for c.
    rows : array_like of int, (n,)
        The numbers of the rows of the tape.
    H : int
        The number of units.

    Returns
    -------
    ndarray, (n, H)
        1 where the old value stays, else 0.

    Examples
    --------
    >>> zoneout_mask(3, 0.5, 0, [0], 4)
    array([[0., 0., 1., 0.]])
    """
    groups = -(-H // (4 * COUNTERS))
    blocks = (2 * np.asarray(rows, np.uint64)[:, None] + np.uint64(part)) * np.uint64(groups)
    counters = blocks * np.uint64(COUNTERS) + np.arange(groups * COUNTERS, dtype=np.uint64)  # (n, groups * COUNTERS)
    words = threefry(counters.ravel(), key).reshape(4, len(blocks), groups, COUNTERS)
    kept = words.transpose(1, 2, 0, 3).reshape(len(blocks), 4 * groups * COUNTERS) < min(int(p * 2**32), 2**32 - 1)
    return np.asarray(kept[:, :H], np.float64)
