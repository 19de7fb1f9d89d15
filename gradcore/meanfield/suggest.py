"""What to change so that gradients last: the gain of the recurrent weights, the bias of the gate that keeps."""

from __future__ import annotations

import copy
import math
from typing import Any

from gradcore import spectral
from gradcore._base.check import Array, check_number
from gradcore.layers.cell import BY_NAME
from gradcore.meanfield.theory import SAME
from gradcore.spectral.members import drive, has_recurrent, recurrent_layer

__all__ = ["suggest_bias", "suggest_gain"]

GAINS = (1 / 64, 64.0)  # where `suggest_gain` looks


def suggest_gain(layer: Any, x: Array, target: float = 0.0) -> float:
    """Find the factor on recurrent weights that makes gradients grow at a given rate on data.

    With this factor on every weight_hh, `spectral.predict_growth` on x, over all its steps, gives the target rate. With
    layer norm, which divides by the size of what weight_hh makes, it is a factor on every norm_hh_weight. It is found
    by doubling or halving from 1 on, between 1/64 and 64, and then by Brent's method on its logarithm. If several
    factors do, it is one near 1. The layer is not changed; to apply the factor::

        for name in layer.params:
            if name.startswith("norm_hh_weight" if layer.layer_norm else "weight_hh"):
                layer.params[name] *= factor

    Parameters
    ----------
    layer : RNN, LSTM, GRU or Sequential
        The layer, or a model with one such layer.
    x : ndarray, (T, B, I), or (B, T, I) with `batch_first`
        The input of the layer or model: data like those to come, T >= 2.
    target : float
        Natural logarithm per step, the largest of all layers and directions; 0 keeps the norm of gradients.

    Returns
    -------
    float
        The factor, from 1/64 to 64.

    Raises
    ------
    TypeError
        If there is no recurrent layer.
    ValueError
        If there are several, no factor in the range has this rate, or x does not fit `predict_growth`.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> from gradcore import meanfield
    >>> layer = gradcore.RNN(1, 2, nonlinearity="relu", bias=False, dtype=np.float64)
    >>> layer.params["weight_hh_l0"][...] = [[1.25, 0.0], [0.0, 1.25]]
    >>> layer.params["weight_ih_l0"][...] = 1
    >>> round(meanfield.suggest_gain(layer, np.ones((50, 4, 1))), 4)
    0.8
    """
    from scipy.optimize import brentq

    layer, x = drive(layer, x)
    wanted = check_number("target", target)
    if not math.isfinite(wanted):
        raise ValueError(f"target: expected a finite number, got {target}")
    trial = copy.deepcopy(layer)
    given = layer._check_sequence("x", x, ("T", "B", layer.input_size))
    if not given.size:
        raise ValueError(f"x: expected at least 1 sample and 2 steps, got B = {given.shape[1]}, T = {len(given)}")
    horizon = len(given)
    scaled = "norm_hh_weight" if layer.layer_norm else "weight_hh"
    lowest = wanted - 100.0  # instead of rates of -inf, which Brent's method cannot use

    def miss(log_factor: float) -> float:
        for name, weight in layer.params.items():
            if name.startswith(scaled):
                trial.params[name][...] = weight * layer.dtype.type(math.exp(log_factor))
        return max(spectral.predict_growth(trial, x, horizon=horizon).rate, lowest) - wanted

    now = miss(0.0)
    if now == 0:
        return 1.0
    seen = [now]
    for way in (-1, 1) if now > 0 else (1, -1):  # most layers' rates rise with the factor
        near, stop = 0.0, math.log(GAINS[way > 0])
        while abs(near) < abs(stop) - SAME:
            far = near + way * math.log(2)
            seen.append(miss(far))
            if (seen[-1] > 0) != (now > 0):
                return math.exp(float(brentq(miss, near, far, xtol=1e-10)))  # chaos shows small differences
            near = far
    raise ValueError(
        f"target: no factor from 1/64 to 64 brings the rate to {wanted:g}; the rates found are from "
        f"{min(seen) + wanted:.4g} to {max(seen) + wanted:.4g}"
    )


def suggest_bias(layer: Any, horizon: float) -> float:
    r"""Return the bias of the gate that keeps the state, for memory over a number of steps: ln(horizon - 1).

    With this bias the gate is :math:`\sigma(b) = 1 - 1/T` if its other inputs are 0, so that
    :math:`(1 - 1/T)^T \approx 1/e` of the state, and of its gradient, is left after the horizon T. The gate is the
    forget gate f of LSTM (c' = f c + i g), or the update gate z of GRU, which keeps the old state here (h' = (1 - z) n
    + z h). It is the second gate of both, so apply the bias with::

        H = layer.hidden_size
        layer.params["bias_ih_l0"][H : 2 * H] = bias
        layer.params["bias_hh_l0"][H : 2 * H] = 0

    `init.chrono_` spreads the units' horizons instead of giving all the same.

    Parameters
    ----------
    layer : LSTM, GRU or Sequential, or "lstm" or "gru"
        The layer, a model with one such layer, or the name of the cell.
    horizon : float
        The number of steps T, above 1.

    Returns
    -------
    float
        The bias.

    Raises
    ------
    TypeError
        If the layer is of another kind, such as an RNN, which has no gates.
    ValueError
        If the layer has no biases, or the horizon is not above 1 or not finite.

    References
    ----------
    Tallec and Ollivier, "Can recurrent neural networks warp time?", 2018, arXiv 1804.11188, eq. 16.

    Examples
    --------
    >>> import math
    >>> from gradcore import meanfield
    >>> bias = meanfield.suggest_bias("lstm", 100)
    >>> print(f"{bias:.4f}, kept: {(1 / (1 + math.exp(-bias))) ** 100:.3f}")
    4.5951, kept: 0.366
    """
    given: Any = None
    if isinstance(layer, str):
        cell = BY_NAME.get(layer)
    else:
        given = recurrent_layer(layer)[0] if has_recurrent(layer) else layer
        cell = getattr(given, "cell", None)
    if cell is None or cell.keeping is None:
        what = type(given).__name__ if given is not None else repr(layer)
        gated = {name: row.layer for name, row in BY_NAME.items() if row.keeping}
        layers, names = " or ".join(gated.values()), " or ".join(map(repr, gated))
        raise TypeError(f"layer: expected an {layers}, or {names}, got {what}")
    if given is not None and not given.bias:
        raise ValueError("layer: expected a layer with biases; build it with bias=True")
    steps = check_number("horizon", horizon, above=1.0)
    if math.isinf(steps):
        raise ValueError("horizon: expected a finite number, got inf")
    return math.log(steps - 1)
