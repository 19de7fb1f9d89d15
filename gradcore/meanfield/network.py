"""The forecast of a model as it stands, from the variances of its weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from gradcore._base.check import Array, check_reals
from gradcore.layers.activations import Activation
from gradcore.layers.dual import Dual
from gradcore.layers.dual_cells import Show
from gradcore.layers.dual_norm import normalize
from gradcore.layers.linear import Linear
from gradcore.layers.normalization import BatchNorm, FeatureNorm
from gradcore.layers.residual import Residual
from gradcore.layers.sequential import Sequential
from gradcore.meanfield.theory import Z, correlated, expectation, float64_activation, value_and_slope
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
    F. A residual block adds: :math:`q + s^2 q_F` and :math:`1 + s^2 \chi_F`, where F is its branch and s its scale. If
    the branch has no linear layer, the block is a function of each unit, v + s F(v), with
    :math:`\chi = E[(1 + s F'(v))^2]`.

    BatchNorm divides by the variance over the batch, :math:`q - p`, where p is the mean product of a unit's values for
    two samples; it follows from the correlation of the samples, which x begins with and BatchNorm ends. So a layer of
    weights, BatchNorm and activation grows gradients by :math:`E[\phi'(z)^2] / Var[\phi(z)]` whatever the weights:
    1 for linear networks and :math:`\pi / (\pi - 1)` for ReLU. This is for large batches whose samples get independent
    gradients; in linear networks a batch of B has a factor of (B - 2) / (B - 3).

    Recurrent: at least 4096 units are followed, with the biases of the layer's own units. The rest of their
    pre-activations is Gaussian, with the covariance in time that the followed units themselves show,

    .. math:: E[a_t a_s] = \sigma_w^2 E[h_t h_s] + \sigma_v^2 \overline{x_t x_s}

    for each gate (dynamic mean-field theory). Layer norm takes mean and variance over the followed units; zoneout keeps
    the mean of the old and the new state, as in inference. With the units goes a small random change of the state,
    driven by Gaussian fields with its own covariance. The rate is the slope of ln of its norm: a product of Jacobians
    has the norm of its transpose, which carries gradients.

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

    With layer norm or zoneout the mean is alike, and one layer is up to 0.03 from it. A ReLU network is homogeneous and
    follows one direction, so it scatters more: by 0.04 from layer to layer at H = 256 and 0.01 at H = 1024. If hardly
    anything changes in time, as in a tanh network with the default initialization, a gradient follows the spectral
    radius of one matrix, which is above the forecast by 0.03 on average at H = 256.

    Parameters
    ----------
    model : RNN, LSTM, GRU, Sequential, MLP, Linear, Activation, LayerNorm, RMSNorm, BatchNorm or Residual
        A recurrent layer; a `Sequential` with one, whose forecast is that of the recurrent layer; or a `Sequential` of
        linear layers, activations, LayerNorm, RMSNorm, BatchNorm, and residual blocks of these. Dropout is off.
    x : ndarray, optional
        The input of the model: data like those to come. For feed-forward models (..., in_features), of which the mean
        square counts, and for BatchNorm also what the samples have in common; for recurrent ones (T, B, I), or
        (B, T, I) with `batch_first`, of which the first 128 steps count. By default the first linear layer, or the
        recurrent layer, gets standard normal numbers, independent in time.

    Returns
    -------
    Forecast
        Rate, verdict and layers; printed as a few lines of text.

    Raises
    ------
    TypeError
        If the model has a layer of another kind, or is a subclass of `Sequential` with a forward of its own, or a
        residual branch without a linear layer has BatchNorm or a bias.
    ValueError
        If x has another shape, no entries, or some that are not finite, or the model has no layers or several recurrent
        ones.

    References
    ----------
    Glorot and Bengio, 2010; He et al., 2015, arXiv 1502.01852, section 2.2; Sompolinsky, Crisanti,
    Sommers, "Chaos in random neural networks", 1988; for gated networks Can, Krishnamurthy, Schwab, 2020, arXiv
    2002.00025; for batch normalization Yang et al., 2019, arXiv 1902.08129.

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
    if isinstance(model, (Linear, Activation, BatchNorm, FeatureNorm, Residual)):
        yield name or "0", model
    elif isinstance(model, Sequential):
        check_chain("model", model)
        for i, layer in enumerate(model.layers):
            yield from _flat(layer, f"{name}.{i}" if name else f"{i}")
    else:
        raise TypeError(
            "model: expected linear layers, activations, LayerNorm, RMSNorm, BatchNorm and Residual, or an RNN, LSTM "
            "or GRU or a model with one, got " + type(model).__name__ + f" at {name}" * bool(name)
        )


class _Units(NamedTuple):
    """What the units of a wide layer hold for a sample, as functions of a normal number, at Z.

    `slope` is what a gradient with respect to the values is multiplied by on its way back to where the signal came in.
    Two samples have normal numbers of this correlation.
    """

    values: Array
    slope: Array
    correlation: float

    @property
    def square(self) -> float:
        """The mean square of the values."""
        return expectation(self.values**2)

    @property
    def shared(self) -> float:
        """The mean product of a unit's values for two samples."""
        return correlated(self.values, self.correlation)

    @property
    def chi(self) -> float:
        """The factor on the squared norm of a gradient."""
        return expectation(self.slope**2)


def _normal(mean: float, variance: float, shared: float, chi: float) -> _Units:
    """Return units whose values are normal, and have nothing to do with the slopes."""
    correlation = min(max((shared - mean**2) / variance, 0.0), 1.0) if variance > 0 else 0.0
    return _Units(mean + math.sqrt(variance) * Z, np.full_like(Z, math.sqrt(chi)), correlation)


def _forecast_feed_forward(model: Any, x: Any) -> Forecast:
    members = list(_flat(model))
    if not members:
        raise ValueError("model: expected at least one layer, got none")
    square, shared = (1.0, 0.0) if x is None else _squares(x, _width(model))
    units = _normal(0.0, square, shared, 1.0)  # over the random weights
    layers = []
    for name, layer in members:
        units = _after(name, layer, units._replace(slope=units.slope / math.sqrt(units.chi or 1.0)))
        w, b = ((math.sqrt(v),) for v in _variances(layer)) if isinstance(layer, Linear) else ((), ())
        layers.append(LayerField(name, w, b, units.square, units.chi, float(safe_log(units.chi)) / 2))
    linear = [i for i, (_, layer) in enumerate(members) if isinstance(layer, (Linear, Residual))]
    # From linear layer to linear layer: what comes after the last activation does not repeat.
    deep = len(linear) > 1
    counted, n = (layers[linear[0] : linear[-1]], len(linear) - 1) if deep else (layers, 1)
    return _summary(math.fsum(layer.rate for layer in counted) / n, n, layers)


def _squares(x: Any, width: int | None) -> tuple[float, float]:
    """Return the mean square of the input, and the mean product of two samples' entries; 0 for a single sample."""
    given = check_reals("x", x)
    if width is not None and given.shape[-1:] != (width,):
        raise ValueError(f"x: expected shape (..., {width}), got {given.shape}")
    if not given.size or not np.isfinite(given).all():
        raise ValueError(f"x: expected finite entries, at least one, got shape {given.shape}")
    rows = given.reshape(-1, given.shape[-1] if given.ndim else 1).astype(np.float64)
    n, square = len(rows), float(np.mean(rows**2))
    return square, (float(np.mean(rows.mean(axis=0) ** 2)) * n - square) / (n - 1) if n > 1 else 0.0


def _width(model: Any) -> int | None:
    """Return the number of features of the first layer that has a fixed one."""
    for _, layer in _flat(model):
        if isinstance(layer, Residual):
            inside = [width for width in map(_width, layer.layers) if width is not None]
            if inside:
                return inside[0]
        elif isinstance(layer, Linear):
            return layer.in_features
        elif isinstance(layer, BatchNorm):
            return layer.num_features
        elif isinstance(layer, FeatureNorm):
            return layer.normalized_shape[-1]
    return None


def _after(name: str, layer: Any, units: _Units) -> _Units:
    """Return what becomes of the units in one layer."""
    if isinstance(layer, Linear):
        w, b = _variances(layer)
        return _normal(0.0, w * units.square + b, w * units.shared + b, w * units.chi)
    if isinstance(layer, (BatchNorm, FeatureNorm)):
        return _normalized(name, layer, units)
    if isinstance(layer, Residual):
        return _beside(name, layer, units)
    values, slope = value_and_slope(float64_activation(layer), units.values)
    return units._replace(values=values, slope=slope * units.slope)


def _variances(layer: Linear) -> tuple[float, float]:
    """Return n_in E[W^2], forwards and backwards, and E[b^2]."""
    w, b = (_sum_of_squares(layer, name) / max(layer.out_features, 1) for name in ("weight", "bias"))
    return w, b


def _normalized(name: str, layer: BatchNorm | FeatureNorm, units: _Units) -> _Units:
    """Return the units after a norm over many of them or over a large batch.

    The mean and the length of what is normalized do not pass gradients: 1 or 2 of a sample's F directions.
    """
    centered = isinstance(layer, BatchNorm) or layer.centered
    values = units.values - centered * expectation(units.values)
    varying, correlation = expectation(values**2), units.correlation
    if isinstance(layer, BatchNorm):
        F, eps, parts, correlation = layer.num_features, layer.eps, 1.0, 0.0
        within = max(units.square - units.shared, 0.0)  # what all samples have in common does not count
        values = values * math.sqrt(within / varying if varying else 0.0)
        varying = within
    else:
        F, eps = math.prod(layer.normalized_shape), layer.eps_used
        parts = max(F - 1 - centered, 0) / F
    if not varying + eps > 0:
        raise ValueError(f"model: expected an input of {name} with some variance, got none")
    gain = _sum_of_squares(layer, "weight") / F if "weight" in layer.params else 1.0
    factor = gain / (varying + eps)
    after = _Units(math.sqrt(factor) * values, math.sqrt(factor * parts) * units.slope, correlation)
    bias = _sum_of_squares(layer, "bias") / F
    return _normal(0.0, after.square + bias, after.shared + bias, after.chi) if bias else after


def _beside(name: str, block: Residual, units: _Units) -> _Units:
    """Return the units after a residual block.

    With random weights in the branch, its output and its gradient are independent of those that pass by. Without any,
    it is a function of each unit, and so is the sum.
    """
    members = [member for i, layer in enumerate(block.layers) for member in _flat(layer, f"{name}.{i}")]
    branch, scale = units, block.scale
    for place, layer in members:
        branch = _after(place, layer, branch)
    if not _mixes(block):
        _refuse_other_branches(members)
        return units._replace(values=units.values + scale * branch.values, slope=units.slope + scale * branch.slope)
    means = expectation(units.values), expectation(branch.values)
    mean, square = means[0] + scale * means[1], units.square + scale**2 * branch.square
    both = 2 * scale * means[0] * means[1]
    shared = units.shared + scale**2 * branch.shared
    return _normal(mean, square + both - mean**2, shared + both, units.chi + scale**2 * branch.chi)


def _mixes(layer: Any) -> bool:
    """Return whether a layer is linear or a member of it is."""
    return isinstance(layer, Linear) or any(map(_mixes, getattr(layer, "layers", ())))


def _refuse_other_branches(members: list[tuple[str, Any]]) -> None:
    for place, layer in members:
        if isinstance(layer, BatchNorm) or _sum_of_squares(layer, "bias"):
            raise TypeError(
                f"model: expected a linear layer in the residual branch with the {type(layer).__name__} at {place}, "
                "whose output is no function of each unit alone, got none"
            )


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

    def of_units(name: str, rows: int = gates) -> Array:
        """(rows, n) of a vector; zeros where there is none."""
        own = layer.params.get(name + suffix, np.zeros(rows * H)).astype(np.float64)
        return np.tile(own.reshape(rows, H), copies)

    b_ih, b_hh = of_units("bias_ih"), of_units("bias_hh")
    show: Show | None = None
    if layer.layer_norm and len(layer.cell.states) > 1:
        show = partial(normalize, gain=of_units("norm_c_weight", 1)[0], bias=of_units("norm_c_bias", 1)[0])

    def sums(field: Array, change: Array, name: str, bias: Array) -> Dual:
        """Return the sums over x or h, (gates, n), after layer norm."""
        if not layer.layer_norm:
            return Dual(field + bias, change)
        normed = normalize(Dual(field.ravel(), change.ravel()), of_units(name).ravel(), bias.ravel()).output()
        return Dual(normed.value.reshape(field.shape), normed.dot.reshape(field.shape))

    # The covariance of the input is known in advance; its square root turns noise into the field.
    eigenvalues, vectors = np.linalg.eigh(series @ series.T / series.shape[1])
    root = vectors * np.sqrt(np.maximum(eigenvalues, 0))
    fields = np.tensordot(root, rng.standard_normal((T, gates, H * copies)), 1)
    of_h, of_change = _Field(rng, T, gates, H * copies), _Field(rng, T, gates, H * copies)
    parts = tuple(np.zeros(H * copies) for _ in layer.cell.states)
    changes = (rng.standard_normal(H * copies), *parts[1:])
    states, log_norm = np.zeros((T, H * copies)), [math.log(np.mean(changes[0] ** 2)) / 2]
    for t in range(T):
        a = sums(sigma_v * fields[t], np.zeros_like(sigma_v), "norm_ih_weight", b_ih)
        u = sums(sigma_w * of_h.next(parts[0]), sigma_w * of_change.next(changes[0]), "norm_hh_weight", b_hh)
        before = [Dual(part, change) for part, change in zip(parts, changes, strict=True)]
        gated = layer.cell.dual.gates(a.value, u.value)
        after = layer.cell.dual.step(gated, a.dot, u.dot, before, show).after
        after = [old * layer.zoneout + new * (1 - layer.zoneout) for old, new in zip(before, after, strict=True)]
        parts, changes = (tuple(getattr(part, name) for part in after) for name in ("value", "dot"))
        states[t] = h = parts[0]
        size_now = float(np.mean(sum(np.square(change) for change in changes)))
        log_norm.append(float(safe_log(size_now)) / 2)
        if not 1e-250 < size_now < 1e250 or not np.mean(h**2) < 1e250:
            break
    rate = fit_slope(np.array(log_norm[len(log_norm) // 4 :]))
    own_w, own_b = (tuple(np.sqrt(np.mean(v**2, axis=1)).tolist()) for v in (sigma_w, b_ih + b_hh))
    return states, LayerField(suffix[1:], own_w, own_b, float(np.mean(h**2)), safe_exp(2 * rate), rate)
