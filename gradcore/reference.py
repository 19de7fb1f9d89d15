"""NumPy twins of the kernels: slow and plain, to judge the fast ones.

They import NumPy only, work in the dtype of their input, and follow the formulas step by step. One section per subject.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import cos, erfc, fsum, isinf, nan, pi, prod, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "RecurrentGradients",
    "RecurrentTape",
    "activation_backward",
    "activation_forward",
    "adagrad",
    "adam",
    "adamw",
    "binary_cross_entropy",
    "carried_back",
    "clip_grad_norm",
    "grad_norm",
    "linear_backward",
    "linear_forward",
    "lyapunov_exponents",
    "mse",
    "recurrent_backward",
    "recurrent_forward",
    "rmsprop",
    "sgd",
    "softmax_cross_entropy",
    "spam",
    "step_jacobians",
]

Array = NDArray[Any]


# ---- recurrent -------------------------------------------------------------------------------------------------------


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


# ---- linear ----------------------------------------------------------------------------------------------------------


def linear_forward(x: Array, weight: Array, bias: Array) -> Array:
    """Return y = x W^T + b over the last axis.

    Parameters
    ----------
    x : ndarray, (..., I)
        The input.
    weight : ndarray, (O, I)
        The weight W.
    bias : ndarray, (O,)
        The bias b.

    Returns
    -------
    ndarray, (..., O)
        The output y.

    Examples
    --------
    >>> linear_forward(np.array([[1.0, 2.0]]), np.array([[3.0, 4.0]]), np.array([0.5]))
    array([[11.5]])
    """
    return np.asarray(x @ weight.T + bias)


def linear_backward(x: Array, weight: Array, dy: Array) -> tuple[Array, Array, Array]:
    """Return the gradients of `linear_forward`.

    Parameters
    ----------
    x : ndarray, (..., I)
        The input.
    weight : ndarray, (O, I)
        The weight W.
    dy : ndarray, (..., O)
        The gradient dL/dy.

    Returns
    -------
    dx : ndarray, (..., I)
        The gradient dL/dx.
    dw : ndarray, (O, I)
        The gradient dL/dW.
    db : ndarray, (O,)
        The gradient dL/db.

    Examples
    --------
    >>> linear_backward(np.array([[1.0, 2.0]]), np.array([[3.0, 4.0]]), np.array([[10.0]]))
    (array([[30., 40.]]), array([[10., 20.]]), array([10.]))
    """
    N = prod(x.shape[:-1])
    rows, d = x.reshape(N, weight.shape[1]), dy.reshape(N, weight.shape[0])
    return dy @ weight, d.T @ rows, d.sum(axis=0)


def activation_forward(name: str, x: Array, p: float = 1.0, q: float = 1.0) -> Array:
    """Return the activation of each element.

    Parameters
    ----------
    name : str
        The activation: "identity", "tanh", "sigmoid", "relu", "leaky_relu", "elu", "gelu", "gelu_tanh" or "softplus".
    x : ndarray
        The input, of any shape.
    p : float
        The negative slope of leaky ReLU, alpha of ELU, or beta of softplus.
    q : float
        The scale of ELU (SELU's), or the threshold of softplus.

    Returns
    -------
    ndarray, like x
        The output.

    Examples
    --------
    >>> activation_forward("leaky_relu", np.array([-2.0, 3.0]), 0.5)
    array([-1.,  3.])
    """
    function: dict[str, Callable[[], Any]] = {
        "identity": lambda: x,
        "tanh": lambda: np.tanh(x),
        "sigmoid": lambda: 1 / (1 + np.exp(-x)),
        "relu": lambda: np.maximum(0, x),
        "leaky_relu": lambda: np.where(x > 0, x, p * x),
        "elu": lambda: q * np.where(x > 0, x, p * np.expm1(np.minimum(x, 0))),
        "gelu": lambda: x * _normal_cdf(x),
        "gelu_tanh": lambda: x / 2 * (1 + np.tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))),
        "softplus": lambda: np.where(p * x > q, x, np.logaddexp(0, p * x) / p),
    }
    return np.asarray(function[name](), x.dtype)


def activation_backward(name: str, x: Array, dy: Array, p: float = 1.0, q: float = 1.0) -> Array:
    """Return dL/dx from dL/dy and the derivative at x.

    Parameters
    ----------
    name : str
        The activation: "identity", "tanh", "sigmoid", "relu", "leaky_relu", "elu", "gelu", "gelu_tanh" or "softplus".
    x : ndarray
        The input, of any shape.
    dy : ndarray, like x
        The gradient dL/dy.
    p : float
        The negative slope of leaky ReLU, alpha of ELU, or beta of softplus.
    q : float
        The scale of ELU (SELU's), or the threshold of softplus.

    Returns
    -------
    ndarray, like x
        The gradient dL/dx.

    Examples
    --------
    >>> activation_backward("leaky_relu", np.array([-2.0, 3.0]), np.array([10.0, 10.0]), 0.5)
    array([ 5., 10.])
    """
    t = np.tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))
    slope: dict[str, Callable[[], Any]] = {
        "identity": lambda: 1.0,
        "tanh": lambda: 1 / np.cosh(x) ** 2,
        "sigmoid": lambda: 1 / (2 + np.exp(x) + np.exp(-x)),
        "relu": lambda: x > 0,
        "leaky_relu": lambda: np.where(x > 0, 1, p),
        "elu": lambda: q * np.where(x > 0, 1, p * np.exp(np.minimum(x, 0))),
        "gelu": lambda: _normal_cdf(x) + x * np.exp(-(x**2) / 2) / sqrt(2 * pi),
        "gelu_tanh": lambda: (1 + t) / 2 + x / 2 * (1 - t**2) * sqrt(2 / pi) * (1 + 3 * 0.044715 * x**2),
        "softplus": lambda: np.where(p * x > q, 1, 1 / (1 + np.exp(-p * x))),
    }
    return np.asarray(dy * slope[name](), x.dtype)


def _normal_cdf(x: Array) -> Array:
    """Return P(Z <= x) = erfc(-x / sqrt(2)) / 2, Z standard normal."""
    flat = [erfc(-value / sqrt(2)) / 2 for value in x.ravel()]
    return np.array(flat, x.dtype).reshape(x.shape)


# ---- losses ----------------------------------------------------------------------------------------------------------


def mse(y: Array, target: Array) -> tuple[float, Array]:
    """Return the mean of (y - t)^2 over all elements, and its gradient.

    Parameters
    ----------
    y : ndarray
        The output, of any shape.
    target : ndarray, like y
        The targets t.

    Returns
    -------
    loss : float
        The loss.
    dy : ndarray, like y
        Its gradient with respect to y.

    Examples
    --------
    >>> mse(np.array([1.0, 3.0]), np.array([1.0, 1.0]))
    (2.0, array([0., 2.]))
    """
    return float(np.mean((y - target) ** 2)), 2 * (y - target) / y.size


def softmax_cross_entropy(logits: Array, labels: Array) -> tuple[float, Array]:
    """Return the mean of -log softmax(z)_label over all rows, and its gradient.

    Parameters
    ----------
    logits : ndarray, (..., C)
        The logits z.
    labels : ndarray of int, (...)
        The class of each row, from 0 to C - 1.

    Returns
    -------
    loss : float
        The loss.
    dlogits : ndarray, like logits
        Its gradient with respect to the logits.

    Examples
    --------
    >>> loss, dlogits = softmax_cross_entropy(np.zeros((1, 2)), np.array([0]))
    >>> round(loss, 4), dlogits
    (0.6931, array([[-0.5,  0.5]]))
    """
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    onehot = np.eye(logits.shape[-1], dtype=logits.dtype)[labels]
    return float(-np.log((p * onehot).sum(axis=-1)).mean()), (p - onehot) / labels.size


def binary_cross_entropy(logits: Array, target: Array) -> tuple[float, Array]:
    """Return the mean of -t log s(z) - (1 - t) log(1 - s(z)) over all elements, and its gradient.

    Parameters
    ----------
    logits : ndarray
        The logits z, of any shape; s is the logistic function.
    target : ndarray, like logits
        The targets t, from 0 to 1.

    Returns
    -------
    loss : float
        The loss.
    dlogits : ndarray, like logits
        Its gradient with respect to the logits.

    Examples
    --------
    >>> loss, dlogits = binary_cross_entropy(np.zeros(2), np.array([0.0, 1.0]))
    >>> round(loss, 4), dlogits
    (0.6931, array([ 0.25, -0.25]))
    """
    p = 1 / (1 + np.exp(-logits))
    loss = -target * np.log(p) - (1 - target) * np.log(1 - p)
    return float(loss.mean()), (p - target) / logits.size


# ---- norm ------------------------------------------------------------------------------------------------------------


def grad_norm(arrays: Sequence[Array], norm_type: float = 2.0) -> float:
    """Return (sum |g|^p)^(1/p) over all arrays, in float64.

    Parameters
    ----------
    arrays : sequence of ndarray
        The gradients, of any shapes.
    norm_type : float
        The order p; inf for the largest magnitude.

    Returns
    -------
    float
        The norm; NaN if an entry is NaN, else inf if one is infinite.

    Examples
    --------
    >>> grad_norm([np.array([[3.0]]), np.array([-4.0, 0.0])])
    5.0
    """
    g = np.concatenate([np.zeros(0), *(np.ravel(a).astype(np.float64) for a in arrays)])
    if np.isnan(g).any():
        return nan
    largest = float(np.abs(g).max(initial=0.0))
    if largest == 0 or isinf(largest) or isinf(norm_type):
        return largest
    return float(largest * fsum((np.abs(g) / largest) ** norm_type) ** (1 / norm_type))


def clip_grad_norm(arrays: Sequence[Array], max_norm: float, norm_type: float = 2.0) -> list[Array]:
    """Return copies, scaled so that their norm is at most max_norm.

    Parameters
    ----------
    arrays : sequence of ndarray
        The gradients, of any shapes; finite entries only.
    max_norm : float
        The largest norm allowed.
    norm_type : float
        The order p of the norm.

    Returns
    -------
    list of ndarray
        The scaled gradients, in their own dtypes.

    Examples
    --------
    >>> clip_grad_norm([np.array([30.0]), np.array([-40.0])], 5.0)
    [array([3.]), array([-4.])]
    """
    norm = grad_norm(arrays, norm_type)
    if norm <= max_norm:
        return [a.copy() for a in arrays]
    return [(a.astype(np.float64) * (max_norm / norm)).astype(a.dtype) for a in arrays]


# ---- optim -----------------------------------------------------------------------------------------------------------
# Each changes p and `state`, empty before the first step, in place; t counts the steps from 1. Names are PyTorch's.


def _squarable(g: Array) -> Array:
    """Return the gradient, limited so that its second moment does not overflow."""
    limit = np.sqrt(np.finfo(g.dtype).max) * (1 - 2.0**-9)
    return np.asarray(np.clip(g, -limit, limit), g.dtype)


def _rms(v: Array, take: float) -> Array:
    """Return the root of a second moment to which a square contributes the part `take`; never 0."""
    return np.asarray(np.sqrt(np.maximum(v, np.finfo(v.dtype).tiny / take)), v.dtype)


def sgd(
    p: Array,
    g: Array,
    state: dict[str, Array],
    t: int,
    *,
    lr: float = 1e-3,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    l1: float = 0.0,
) -> None:
    """Take a step of stochastic gradient descent.

    Parameters
    ----------
    p : ndarray
        The parameter, changed in place.
    g : ndarray, like p
        The gradient dL/dp.
    state : dict of str to ndarray
        The moments by PyTorch's names, empty before the first step; changed in place.
    t : int
        The number of the step, from 1.
    lr : float
        The learning rate.
    momentum : float
        The factor of the earlier changes.
    dampening : float
        The part of the gradient that is left out of the momentum.
    weight_decay : float
        The factor of p that is added to the gradient.
    nesterov : bool
        Whether to look ahead by the momentum.
    maximize : bool
        Whether to go up the gradient.
    l1 : float
        The factor of sign(p) that is added to the gradient.

    Examples
    --------
    >>> p, state = np.ones(1), {}
    >>> for t in (1, 2):
    ...     sgd(p, p.copy(), state, t, lr=0.5, momentum=0.5)
    >>> p, state["momentum_buffer"]
    (array([0.]), array([1.]))
    """
    g = (-g if maximize else g) + weight_decay * p + l1 * np.sign(p)
    if momentum:
        b = momentum * state["momentum_buffer"] + (1 - dampening) * g if "momentum_buffer" in state else g
        state["momentum_buffer"] = b.copy()
        g = g + momentum * b if nesterov else b
    p -= lr * g


def adam(
    p: Array,
    g: Array,
    state: dict[str, Array],
    t: int,
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    amsgrad: bool = False,
    maximize: bool = False,
    l1: float = 0.0,
) -> None:
    """Take a step of Adam.

    Parameters
    ----------
    p : ndarray
        The parameter, changed in place.
    g : ndarray, like p
        The gradient dL/dp.
    state : dict of str to ndarray
        The moments by PyTorch's names, empty before the first step; changed in place.
    t : int
        The number of the step, from 1.
    lr : float
        The learning rate.
    betas : tuple of float
        The decay of the first and of the second moment.
    eps : float
        A number added to the root of the second moment.
    weight_decay : float
        The factor of p that is added to the gradient.
    amsgrad : bool
        Whether to divide by the largest second moment so far.
    maximize : bool
        Whether to go up the gradient.
    l1 : float
        The factor of sign(p) that is added to the gradient.

    Examples
    --------
    >>> p = np.array([1.0, -1.0])
    >>> adam(p, np.array([3.0, -0.5]), {}, 1, lr=0.25)  # the first step is lr, whatever the size of the gradient
    >>> p.round(6)
    array([ 0.75, -0.75])
    """
    g = _squarable((-g if maximize else g) + weight_decay * p + l1 * np.sign(p))
    zeros = np.zeros_like(p)
    m = state["exp_avg"] = betas[0] * state.get("exp_avg", zeros) + (1 - betas[0]) * g
    v = state["exp_avg_sq"] = betas[1] * state.get("exp_avg_sq", zeros) + (1 - betas[1]) * g**2
    if amsgrad:
        v = state["max_exp_avg_sq"] = np.maximum(state.get("max_exp_avg_sq", zeros), v)
    m_hat, v_hat_root = m / (1 - betas[0] ** t), _rms(v, 1 - betas[1]) / sqrt(1 - betas[1] ** t)
    p -= lr * m_hat / (v_hat_root + eps)


def adamw(
    p: Array, g: Array, state: dict[str, Array], t: int, *, lr: float = 1e-3, weight_decay: float = 1e-2, **options: Any
) -> None:
    """Take a step of AdamW, Adam with decoupled weight decay.

    Parameters
    ----------
    p : ndarray
        The parameter, changed in place.
    g : ndarray, like p
        The gradient dL/dp.
    state : dict of str to ndarray
        The moments by PyTorch's names, empty before the first step; changed in place.
    t : int
        The number of the step, from 1.
    lr : float
        The learning rate.
    weight_decay : float
        The factor of lr * p that is subtracted from p.
    **options
        The other options of `adam`.

    Examples
    --------
    >>> p = np.array([1.0, -1.0])
    >>> adamw(p, np.array([3.0, -0.5]), {}, 1, lr=0.25, weight_decay=0.5)
    >>> p.round(6)
    array([ 0.625, -0.625])
    """
    decay = lr * weight_decay * p
    adam(p, g, state, t, lr=lr, **options)
    p -= decay


def spam(
    p: Array,
    g: Array,
    state: dict[str, Array],
    t: int,
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    threshold: float = 5000.0,
    reset_every: int = 500,
    warmup_steps: int = 150,
    maximize: bool = False,
    l1: float = 0.0,
) -> None:
    """Take a step of SPAM, Adam that cuts spikes and starts its moments anew at times.

    Parameters
    ----------
    p : ndarray
        The parameter, changed in place.
    g : ndarray, like p
        The gradient dL/dp.
    state : dict of str to ndarray
        The moments by PyTorch's names, empty before the first step; changed in place.
    t : int
        The number of the step, from 1.
    lr : float
        The learning rate.
    betas : tuple of float
        The decay of the first and of the second moment.
    eps : float
        A number added to the root of the second moment.
    weight_decay : float
        The factor of lr * p that is subtracted from p.
    threshold : float
        The ratio of g^2 to its second moment above which an entry is a spike.
    reset_every : int
        The number of steps after which the moments start anew.
    warmup_steps : int
        The number of steps in which the learning rate rises after that.
    maximize : bool
        Whether to go up the gradient.
    l1 : float
        The factor of sign(p) that is added to the gradient.

    Examples
    --------
    >>> p, state = np.zeros(1), {}
    >>> for t, g in enumerate((1.0, 1.0, 1e6), start=1):
    ...     spam(p, np.array([g]), state, t)
    >>> state["spikes"]
    array([ True])
    """
    if t == 1 or t % reset_every == 0:
        state["exp_avg"], state["exp_avg_sq"] = np.zeros_like(p), np.zeros_like(p)
    since = t % reset_every if t >= reset_every else warmup_steps
    if since < warmup_steps:
        warm_lr = lr * (1 - 0.99 * (1 + cos(pi * since / (warmup_steps + 1))) / 2)
    else:
        warm_lr = lr
    g = _squarable((-g if maximize else g) + l1 * np.sign(p))
    v = state["exp_avg_sq"]
    with np.errstate(over="ignore"):
        spikes = state["spikes"] = (v > 0) & (g**2 > threshold * v)
        g = np.where(spikes, np.sign(g) * np.sqrt(threshold * v), g)
    decay = lr * weight_decay * p
    adam(p, g, state, t, lr=warm_lr, betas=betas, eps=eps)
    p -= decay


def rmsprop(
    p: Array,
    g: Array,
    state: dict[str, Array],
    t: int,
    *,
    lr: float = 1e-2,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    centered: bool = False,
    maximize: bool = False,
    l1: float = 0.0,
) -> None:
    """Take a step of RMSprop.

    Parameters
    ----------
    p : ndarray
        The parameter, changed in place.
    g : ndarray, like p
        The gradient dL/dp.
    state : dict of str to ndarray
        The moments by PyTorch's names, empty before the first step; changed in place.
    t : int
        The number of the step, from 1.
    lr : float
        The learning rate.
    alpha : float
        The decay of the second moment.
    eps : float
        A number added to the root of the second moment.
    weight_decay : float
        The factor of p that is added to the gradient.
    momentum : float
        The factor of the earlier changes.
    centered : bool
        Whether to subtract the squared mean of the gradient from its second moment.
    maximize : bool
        Whether to go up the gradient.
    l1 : float
        The factor of sign(p) that is added to the gradient.

    Examples
    --------
    >>> p = np.array([1.0, -1.0])
    >>> rmsprop(p, np.array([3.0, -0.5]), {}, 1, lr=0.25, alpha=0.75)  # divided by the root of (1 - alpha) g^2
    >>> p.round(6)
    array([ 0.5, -0.5])
    """
    g = _squarable((-g if maximize else g) + weight_decay * p + l1 * np.sign(p))
    zeros = np.zeros_like(p)
    v = state["square_avg"] = alpha * state.get("square_avg", zeros) + (1 - alpha) * g**2
    if centered:
        m = state["grad_avg"] = alpha * state.get("grad_avg", zeros) + (1 - alpha) * g
        v = v - m**2
    change = g / (_rms(v, 1 - alpha) + eps)
    if momentum:
        change = state["momentum_buffer"] = momentum * state.get("momentum_buffer", zeros) + change
    p -= lr * change


def adagrad(
    p: Array,
    g: Array,
    state: dict[str, Array],
    t: int,
    *,
    lr: float = 1e-2,
    lr_decay: float = 0.0,
    weight_decay: float = 0.0,
    initial_accumulator_value: float = 0.0,
    eps: float = 1e-10,
    maximize: bool = False,
    l1: float = 0.0,
) -> None:
    """Take a step of Adagrad.

    Parameters
    ----------
    p : ndarray
        The parameter, changed in place.
    g : ndarray, like p
        The gradient dL/dp.
    state : dict of str to ndarray
        The moments by PyTorch's names, empty before the first step; changed in place.
    t : int
        The number of the step, from 1.
    lr : float
        The learning rate.
    lr_decay : float
        The decay of the learning rate: step t takes lr / (1 + (t - 1) lr_decay).
    weight_decay : float
        The factor of p that is added to the gradient.
    initial_accumulator_value : float
        What the sum of squares begins with.
    eps : float
        A number added to the root of the second moment.
    maximize : bool
        Whether to go up the gradient.
    l1 : float
        The factor of sign(p) that is added to the gradient.

    Examples
    --------
    >>> p, state = np.zeros(1), {}
    >>> for t, g in enumerate((3.0, 4.0), start=1):
    ...     adagrad(p, np.array([g]), state, t, lr=1.0)
    >>> p, state["sum"]
    (array([-1.8]), array([25.]))
    """
    g = _squarable((-g if maximize else g) + weight_decay * p + l1 * np.sign(p))
    largest = np.finfo(p.dtype).max  # of the sum, which no later gradient makes smaller
    v = state.get("sum", np.full_like(p, initial_accumulator_value))
    v = state["sum"] = np.minimum(v, largest - g**2) + g**2
    p -= lr / (1 + (t - 1) * lr_decay) * g / (_rms(v, 1) + eps)


# ---- spectral --------------------------------------------------------------------------------------------------------


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
        h_out, c_out, _ = _step_forward(tape.mode, weights, x, (h, c))
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
