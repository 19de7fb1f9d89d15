"""The forecast of a model as it stands, from the variances of its weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradcore._base.check import Array, check_reals
from gradcore.layers.activations import Activation
from gradcore.layers.dual import Dual
from gradcore.layers.linear import Linear
from gradcore.layers.normalization import FeatureNorm, LayerNorm
from gradcore.layers.residual import Residual
from gradcore.layers.sequential import Sequential
from gradcore.meanfield.theory import Z, expectation, float64_activation, value_and_slope
from gradcore.spectral.logs import fit_slope, safe_exp, safe_log
from gradcore.spectral.members import check_chain, drive, has_recurrent, recurrent_layer
from gradcore.spectral.trajectory import parameter_suffix
from gradcore.spectral.verdict import Verdict, in_words, judge

__all__ = ["Forecast", "LayerField", "forecast"]

UNITS = 4096  # how many units of a recurrent layer are followed, at least
MOST_STEPS = 128  # and for how long, at most


@dataclass(frozen=True)
class LayerField:
    """The forecast of one layer, or of one direction of a bidirectional layer.

    Parameters
    ----------
    name : str
        The layer's part of the parameters' names: "0", "2.1" in nested models, "l0_reverse" in recurrent layers.
    sigma_w, sigma_b : tuple of float
        For each gate, in the order of the rows, sqrt(n_in mean(W^2)) and sqrt(mean(b^2)); W is the recurrent weight in
        a recurrent layer. Empty for an activation.
    q : float
        Mean square of the layer's output, at the last step in a recurrent layer.
    chi : float
        The factor on the squared norm of a gradient through the layer, or in one step back through time.
    rate : float
        The growth of the norm, ln(chi) / 2.

    Examples
    --------
    >>> import gradcore
    >>> from gradcore import meanfield
    >>> for layer in meanfield.forecast(gradcore.MLP([8, 8, 8], "relu", "eye")).layers:
    ...     print(layer)
    0: gradient times 1, mean square of the output 1
    1: gradient times 0.707, mean square of the output 0.5
    2: gradient times 1, mean square of the output 0.5
    """

    name: str
    sigma_w: tuple[float, ...]
    sigma_b: tuple[float, ...]
    q: float
    chi: float
    rate: float

    def __str__(self) -> str:
        return f"{self.name}: gradient times {safe_exp(self.rate):.3g}, mean square of the output {self.q:.3g}"


@dataclass(frozen=True)
class Forecast:
    """The forecast of a model.

    Parameters
    ----------
    rate : float
        Natural logarithm of the factor on a gradient's norm. For a feed-forward model it is the mean per linear layer
        or residual block, from the input of the last one to that of the first; for a recurrent layer the largest one
        per step of all layers and directions.
    depth_scale : float
        -1 / (2 rate), the layers or steps over which the squared norm falls by a factor of e; negative if it grows, inf
        if the rate is 0.
    verdict : {"explodes", "vanishes", "stable"}
        The verdict on `rate`: "stable" is within 1 % a layer or step, and within a factor of 10 over all of them.
    layers : tuple of LayerField
        The forecast of every layer from the first to the last, activations included.

    Examples
    --------
    >>> import gradcore
    >>> from gradcore import meanfield
    >>> print(meanfield.forecast(gradcore.MLP([8, 8, 8], "relu", "eye")))
    vanishes by a factor of 0.707 a layer or step
    0: gradient times 1, mean square of the output 1
    1: gradient times 0.707, mean square of the output 0.5
    2: gradient times 1, mean square of the output 0.5
    """

    rate: float
    depth_scale: float
    verdict: Verdict
    layers: tuple[LayerField, ...]

    def __str__(self) -> str:
        return "\n".join([in_words(self.verdict, self.rate, "layer or step"), *map(str, self.layers)])

    @property
    def log_norm(self) -> Array:
        """For a feed-forward model, ln of `SequentialTape.d_norm` over its last entry, the norm of dL/dy; (n + 1,)."""
        back = np.cumsum([0.0, *(layer.rate for layer in reversed(self.layers))])
        return np.asarray(back[::-1])


def forecast(model: Any, x: Any = None) -> Forecast:
    r"""Forecast from the variances of the weights how signals and gradients change in a model.

    Feed-forward: with :math:`\sigma_w^2 = n_{in} \overline{W^2}` and :math:`\sigma_b^2 = \overline{b^2}`, linear layers
    take the mean square v of their inputs to :math:`q = \sigma_w^2 v + \sigma_b^2` and multiply the squared norm of a
    gradient by :math:`\sigma_w^2` (its mean square by :math:`n_{out} \overline{W^2}`, Glorot's and He's number, which
    is the same for square matrices). An activation takes q to :math:`E[\phi(\sqrt q z)^2]`, and multiplies the squared
    norm by :math:`E[\phi'(\sqrt q z)^2]`. LayerNorm and RMSNorm of F units divide both by the variance or the mean
    square, and lose the parts of a gradient along the normalized units, and for LayerNorm along their mean: 1 or 2 of
    F. A residual block adds: :math:`q + s^2 q_F` and :math:`1 + s^2 \chi_F`, where F is its branch and s its scale.

    Recurrent: at least 4096 units are followed, with the biases of the layer's own units. The rest of their
    pre-activations is Gaussian, with the covariance in time that the followed units themselves show,

    .. math:: E[a_t a_s] = \sigma_w^2 E[h_t h_s] + \sigma_v^2 \overline{x_t x_s}

    for each gate (dynamic mean-field theory). With them goes a small random change of the state, driven by Gaussian
    fields with its own covariance. The rate is the slope of ln of its norm: a product of Jacobians has the norm of its
    transpose, which carries gradients.

    The assumption is that all weights of a gate are independent, of mean 0 and one variance, in a wide layer. This
    holds right after initialization, but not for orthogonal or identity matrices in a linear network. The forecast is
    the average over such weights; a layer of H units scatters around it.

    Difference from `spectral.predict_growth` in natural log per step, at recurrent gains from 0.5 to 4, for six layers
    each of H = 256 with normal weights and x standard normal (T = 100, I = 4):

    ========  ===============================  ===============================  ===============
    layer     rates, from gain 0.5 to 4        mean of six, least and greatest  largest of one
    ========  ===============================  ===============================  ===============
    RNN tanh  -1.06 to 0.41                    0.002 to 0.007                   0.015
    RNN relu  -1.04 to 1.09                    -0.048 to -0.004                 0.12
    LSTM      -0.54 to 0.04                    0.004 to 0.010                   0.018
    GRU       -0.52 to 0.13                    -0.003 to 0.005                  0.016
    ========  ===============================  ===============================  ===============

    A ReLU network is homogeneous and follows one direction, so it scatters more: by 0.04 from layer to layer at H = 256
    and 0.01 at H = 1024. If hardly anything changes in time, as in a tanh network with the default initialization, a
    gradient follows the spectral radius of one matrix, which is above the forecast by 0.03 on average at H = 256.

    Parameters
    ----------
    model : RNN, LSTM, GRU, Sequential, MLP, Linear, Activation, LayerNorm, RMSNorm or Residual
        A recurrent layer; a `Sequential` with one, whose forecast is that of the recurrent layer; or a `Sequential` of
        linear layers, activations, LayerNorm, RMSNorm, and residual blocks of these whose branch has a linear layer.
        Dropout is off.
    x : ndarray, optional
        The input of the model: data like those to come. For feed-forward models (..., in_features), of which the mean
        square counts; for recurrent ones (T, B, I), or (B, T, I) with `batch_first`, of which the first 128 steps
        count. By default the first linear layer, or the recurrent layer, gets standard normal numbers, independent in
        time.

    Returns
    -------
    Forecast
        Rate, verdict and layers; printed as a few lines of text.

    Raises
    ------
    TypeError
        If the model has a layer of another kind, or is a subclass of `Sequential` with a forward of its own.
    ValueError
        If x has another shape, no entries, or some that are not finite, or the model has no layers or several recurrent
        ones.

    References
    ----------
    Glorot and Bengio, 2010; He et al., 2015, arXiv 1502.01852, section 2.2; Sompolinsky, Crisanti,
    Sommers, "Chaos in random neural networks", 1988; for gated networks Can, Krishnamurthy, Schwab, 2020, arXiv
    2002.00025.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> from gradcore import meanfield
    >>> rng = np.random.default_rng(0)
    >>> for init in ("kaiming_normal", "lecun_normal"):
    ...     forecast = meanfield.forecast(gradcore.MLP([256] * 31, "relu", init, rng=rng))
    ...     print(f"{init}: {np.exp(2 * forecast.rate):.2f} a layer, {forecast.verdict}")
    kaiming_normal: 1.00 a layer, stable
    lecun_normal: 0.50 a layer, vanishes
    """
    if not has_recurrent(model):
        return _forecast_feed_forward(model, x)
    if x is None:
        return _forecast_recurrent(recurrent_layer(model, name="model")[0], None)
    return _forecast_recurrent(*drive(model, x, name="model"))


def _summary(rate: float, horizon: int, layers: list[LayerField]) -> Forecast:
    scale = math.inf if rate == 0 else -1 / (2 * rate)
    return Forecast(rate, scale, judge(rate, horizon), tuple(layers))


def _flat(model: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the layers of a model that are not chains themselves, with their places in it."""
    if isinstance(model, (Linear, Activation, FeatureNorm, Residual)):
        yield name or "0", model
    elif isinstance(model, Sequential):
        check_chain("model", model)
        for i, layer in enumerate(model.layers):
            yield from _flat(layer, f"{name}.{i}" if name else f"{i}")
    else:
        raise TypeError(
            "model: expected linear layers, activations, LayerNorm, RMSNorm and Residual, or an RNN, LSTM or GRU or a "
            "model with one, got " + type(model).__name__ + f" at {name}" * bool(name)
        )


def _mean_square(x: Any, width: int | None) -> float:
    given = check_reals("x", x)
    if width is not None and given.shape[-1:] != (width,):
        raise ValueError(f"x: expected shape (..., {width}), got {given.shape}")
    if not given.size or not np.isfinite(given).all():
        raise ValueError(f"x: expected finite entries, at least one, got shape {given.shape}")
    return float(np.mean(np.square(given, dtype=np.float64)))


def _forecast_feed_forward(model: Any, x: Any) -> Forecast:
    members = list(_flat(model))
    if not members:
        raise ValueError("model: expected at least one layer, got none")
    values = math.sqrt(1.0 if x is None else _mean_square(x, _width(model))) * Z  # of one unit, over the random weights
    layers = []
    for name, layer in members:
        values, found = _through(name, layer, values)
        layers.append(found)
    linear = [i for i, (_, layer) in enumerate(members) if isinstance(layer, (Linear, Residual))]
    # From linear layer to linear layer: what comes after the last activation does not repeat.
    deep = len(linear) > 1
    counted, n = (layers[linear[0] : linear[-1]], len(linear) - 1) if deep else (layers, 1)
    return _summary(math.fsum(layer.rate for layer in counted) / n, n, layers)


def _width(model: Any) -> int | None:
    """Return the number of features of the first layer that has a fixed one."""
    for _, layer in _flat(model):
        if isinstance(layer, Residual):
            inside = [width for width in map(_width, layer.layers) if width is not None]
            if inside:
                return inside[0]
        elif not isinstance(layer, Activation):
            return layer.in_features if isinstance(layer, Linear) else layer.normalized_shape[-1]
    return None


def _through(name: str, layer: Any, values: Array) -> tuple[Array, LayerField]:
    """Return what becomes of a unit's values, and the forecast of one layer."""
    sigma_w: tuple[float, ...] = ()
    sigma_b: tuple[float, ...] = ()
    if isinstance(layer, Linear):
        chi = _sum_of_squares(layer, "weight") / max(layer.out_features, 1)  # n_in E[W^2], forwards and backwards
        b = _sum_of_squares(layer, "bias") / max(layer.out_features, 1)
        values = math.sqrt(chi * expectation(values**2) + b) * Z
        sigma_w, sigma_b = (math.sqrt(chi),), (math.sqrt(b),)
    elif isinstance(layer, FeatureNorm):
        values, chi = _normalized(name, layer, values)
    elif isinstance(layer, Residual):
        values, chi = _beside(name, layer, values)
    else:
        values, slope = value_and_slope(float64_activation(layer), values)
        chi = expectation(slope**2)
    return values, LayerField(name, sigma_w, sigma_b, expectation(values**2), chi, float(safe_log(chi)) / 2)


def _normalized(name: str, layer: FeatureNorm, values: Array) -> tuple[Array, float]:
    """Return the values after a norm over many units, and chi: their mean and length do not pass gradients."""
    F, centered = math.prod(layer.normalized_shape), isinstance(layer, LayerNorm)
    values = values - expectation(values) if centered else values
    mean_square = expectation(values**2) + layer.eps_used
    if not mean_square > 0:
        raise ValueError(f"model: expected an input of {name} with some variance, got none")
    gain = _sum_of_squares(layer, "weight") / F if "weight" in layer.params else 1.0
    chi = gain / mean_square * max(F - 1 - centered, 0) / F
    values = math.sqrt(gain / mean_square) * values
    bias, own = _sum_of_squares(layer, "bias") / F, expectation(values**2)
    return (values if not bias else math.sqrt(own + bias) * Z), chi


def _beside(name: str, block: Residual, values: Array) -> tuple[Array, float]:
    """Return the values after a residual block, as those of a normal distribution, and chi.

    The random weights of the branch make its output and its gradient independent of those that pass by.
    """
    members = [member for i, layer in enumerate(block.layers) for member in _flat(layer, f"{name}.{i}")]
    if not any(isinstance(layer, Linear) for _, layer in members):
        raise TypeError(f"model: expected a linear layer in the branch of the Residual at {name}, got none")
    branch, chi = values, 1.0
    for place, layer in members:
        branch, found = _through(place, layer, branch)
        chi *= found.chi
    square, means = block.scale**2, [expectation(values), expectation(branch)]
    variances = [expectation((each - mean) ** 2) for each, mean in zip((values, branch), means, strict=True)]
    spread = math.sqrt(variances[0] + square * variances[1])
    return means[0] + block.scale * means[1] + spread * Z, 1 + square * chi


def _sum_of_squares(layer: Any, name: str) -> float:
    return float(np.square(layer.params.get(name, np.zeros(1)), dtype=np.float64).sum())


class _Field:
    """The inputs of units in a random layer: sums of a time series' values with fixed random weights.

    They are Gaussian over the units, with covariance E[v_t v_s] in time. The series is orthogonalized step by step,
    v_t = sum_s l_ts e_s, and the field is sum_s l_ts n_s, with independent normal n_s for each unit and gate.
    """

    def __init__(self, rng: np.random.Generator, steps: int, gates: int, units: int) -> None:
        self._noise = rng.standard_normal((steps, gates, units))
        self._basis = np.zeros((steps, 0))
        self._t = 0

    def next(self, values: Array) -> Array:
        """Return (gates, units) after another step of the series, whose values (n,) always have the same n."""
        if not self._t:
            self._basis = np.zeros((len(self._noise), values.size))
        known = self._basis[: self._t]
        part = known @ values / values.size
        rest = values - part @ known
        norm = math.sqrt(np.mean(rest**2))
        if norm > 1e-6 * math.sqrt(np.mean(values**2)):  # else v_t depends on the steps before, up to rounding
            self._basis[self._t] = rest / norm
        self._t += 1
        field: Array = np.tensordot([*part, norm], self._noise[: self._t], 1)
        return field


def _forecast_recurrent(layer: Any, x: Any) -> Forecast:
    if layer.layer_norm or layer.zoneout:
        raise ValueError(f"model: expected a recurrent layer without layer_norm and zoneout, got {layer!r}")
    rng = np.random.default_rng(0)
    if x is None:
        steps, series = MOST_STEPS, rng.standard_normal((MOST_STEPS, UNITS))
    else:
        given = layer._check_sequence("x", x, ("T", "B", layer.input_size))
        steps = min(len(given), MOST_STEPS)
        if steps < 2 or not given.shape[1]:
            raise ValueError(f"x: expected at least 1 sample and 2 steps, got B = {given.shape[1]}, T = {len(given)}")
        series = given[:steps].reshape(steps, -1).astype(np.float64)
        if not np.isfinite(series).all():
            raise ValueError("x: expected finite numbers, got NaN or infinite ones")
    layers = []
    for level in range(layer.num_layers):
        outputs = []
        for direction in range(layer.num_directions):
            way = slice(None, None, -1 if direction else 1)
            h, found = _follow(layer, level * layer.num_directions + direction, series[way], rng)
            layers.append(found)
            outputs.append(h[way])
        series = np.concatenate(outputs, axis=1)
    return _summary(max(layer.rate for layer in layers), steps, layers)


def _follow(layer: Any, index: int, series: Array, rng: np.random.Generator) -> tuple[Array, LayerField]:
    """Return h (T, n) of units like those of one layer and direction, driven by a series (T, m), and the forecast."""
    H, suffix = layer.hidden_size, parameter_suffix(layer, index)
    into, back = (layer.params[name + suffix].astype(np.float64) for name in ("weight_ih", "weight_hh"))
    gates, T, copies = len(layer.cell.gates), len(series), -(-UNITS // H)
    # Each unit keeps the norms of its rows and its biases, which make it faster or slower than others.
    sigma_v, sigma_w = (
        np.tile(np.sqrt(np.square(w).sum(axis=1)).reshape(gates, H), copies) for w in (into, back)
    )  # (gates, n)
    own = [layer.params.get(name + suffix, np.zeros(gates * H)) for name in ("bias_ih", "bias_hh")]
    b_ih, b_hh = (np.tile(b.reshape(gates, H).astype(np.float64), copies) for b in own)  # (gates, n)

    # The covariance of the input is known in advance; its square root turns noise into the field.
    eigenvalues, vectors = np.linalg.eigh(series @ series.T / series.shape[1])
    root = vectors * np.sqrt(np.maximum(eigenvalues, 0))
    fields = np.tensordot(root, rng.standard_normal((T, gates, H * copies)), 1)
    of_h, of_change = _Field(rng, T, gates, H * copies), _Field(rng, T, gates, H * copies)
    parts = tuple(np.zeros(H * copies) for _ in layer.cell.states)
    changes = (rng.standard_normal(H * copies), *parts[1:])
    states, log_norm = np.zeros((T, H * copies)), [math.log(np.mean(changes[0] ** 2)) / 2]
    for t in range(T):
        a = sigma_v * fields[t] + b_ih
        u, du = sigma_w * of_h.next(parts[0]) + b_hh, sigma_w * of_change.next(changes[0])
        before = [Dual(part, change) for part, change in zip(parts, changes, strict=True)]
        after = layer.cell.dual.step(layer.cell.dual.gates(a, u), np.zeros_like(a), du, before, None).after
        parts, changes = (tuple(getattr(part, name) for part in after) for name in ("value", "dot"))
        states[t] = h = parts[0]
        size_now = float(np.mean(sum(np.square(change) for change in changes)))
        log_norm.append(float(safe_log(size_now)) / 2)
        if not 1e-250 < size_now < 1e250 or not np.mean(h**2) < 1e250:
            break
    rate = fit_slope(np.array(log_norm[len(log_norm) // 4 :]))
    own_w, own_b = (tuple(np.sqrt(np.mean(v**2, axis=1)).tolist()) for v in (sigma_w, b_ih + b_hh))
    return states, LayerField(suffix[1:], own_w, own_b, float(np.mean(h**2)), safe_exp(2 * rate), rate)
