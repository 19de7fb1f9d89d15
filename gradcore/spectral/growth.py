"""Forecast the growth of gradients, and say which conditions are necessary and which sufficient."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from gradcore._base.check import Array, check_int
from gradcore.spectral.logs import fit_slope, safe_exp, safe_log
from gradcore.spectral.matrices import spectral_norm, spectral_radius
from gradcore.spectral.members import drive, recurrent_layer, run_without_dropout, steps_and_samples
from gradcore.spectral.trajectory import Trajectory, norm_bounds, parameter_suffix
from gradcore.spectral.verdict import Verdict, in_words, judge

__all__ = ["Condition", "GrowthPrediction", "LayerGrowth", "predict_growth"]

Kind = Literal["necessary", "sufficient", "asymptotic"]

PROBES = 32  # random gradients carried back through each layer, over all samples together, if the batch has fewer
ROUNDING = 1e-12  # added to bounds that a rate may reach
REST_SAMPLES, REST_STEPS = 8, 200  # without data: free-running trajectories, and the longest that is simulated


@dataclass(frozen=True)
class Condition:
    """A comparison that says something about a layer's growth.

    Parameters
    ----------
    name : str
        What is compared.
    value, limit : float
        The condition holds if the value is above the limit (`of` "explodes") or below it (`of` "vanishes").
    kind : {"necessary", "sufficient", "asymptotic"}
        Necessary: unless it holds, a gradient cannot do what `of` says. Sufficient: if it holds, a gradient does it,
        given enough steps. Asymptotic: an estimate for many steps along trajectories like these, no bound.
    of : {"explodes", "vanishes"}
        What the condition is about.
    holds : bool
        Whether the condition holds.
    meaning : str
        What follows from it, in one sentence.

    Examples
    --------
    >>> from gradcore.spectral import Condition
    >>> meaning = "If it holds, every gradient vanishes on any input."
    >>> print(Condition("spectral norm of weight_hh", 0.9, 1.0, "sufficient", "vanishes", True, meaning))
    spectral norm of weight_hh < 1: holds (0.9); sufficient for vanishing
    """

    name: str
    value: float
    limit: float
    kind: Kind
    of: Verdict
    holds: bool
    meaning: str

    def __str__(self) -> str:
        sign, noun = (">", "explosion") if self.of == "explodes" else ("<", "vanishing")
        state = "holds" if self.holds else "does not hold"
        return f"{self.name} {sign} {self.limit:g}: {state} ({self.value:.4g}); {self.kind} for {noun}"


@dataclass(frozen=True)
class LayerGrowth:
    """The forecast of one layer and direction.

    Parameters
    ----------
    name : str
        The end of the parameters' names: "l0", "l1_reverse", ...
    index : int
        The row in the telemetry, layer * num_directions + direction.
    rate : float
        Growth of a gradient carried back by this layer's own recurrence, natural logarithm per step.
    rate_with_above : float
        The largest rate of this layer and those above it, whose gradients arrive here too: what telemetry tends to
        show.
    upper_bound : float
        A bound on `rate`.
    verdict : {"explodes", "vanishes", "stable"}
        The verdict on `rate`.
    log_norm : ndarray, (steps + 1,)
        The forecast itself: ln of the norm over batch and units after 0, 1, ... steps back, beginning at 0.
    conditions : tuple of Condition
        What is known about this layer.

    Examples
    --------
    >>> import gradcore
    >>> from gradcore import spectral
    >>> layer = gradcore.GRU(4, 8, 2, rng=0)
    >>> for growth in spectral.predict_growth(layer, horizon=50).layers:
    ...     print(growth)
    l0: vanishes by a factor of 0.752 a step, at most 1.14
    l1: vanishes by a factor of 0.657 a step, at most 0.952
    """

    name: str
    index: int
    rate: float
    rate_with_above: float
    upper_bound: float
    verdict: Verdict
    log_norm: Array = field(repr=False)
    conditions: tuple[Condition, ...] = field(repr=False)

    def __str__(self) -> str:
        return f"{self.name}: {in_words(self.verdict, self.rate)}, at most {safe_exp(self.upper_bound):.3g}"


@dataclass(frozen=True)
class GrowthPrediction:
    """The forecast of `predict_growth`.

    Parameters
    ----------
    rate : float
        The largest rate of all layers and directions, natural logarithm per step, going backwards in time.
    factor : float
        The factor on the gradient's norm over the horizon at that rate, exp(rate * horizon).
    verdict : {"explodes", "vanishes", "stable"}
        The verdict on `rate`: "stable" is within 1 % a step and within a factor of 10 over the horizon. The gradient
        "vanishes" if it does so in every layer.
    upper_bound : float
        A bound on `rate`. For a plain RNN it is ln of the spectral norm of weight_hh and holds for any input; for GRU,
        LSTM, layer norm and zoneout it holds along these trajectories.
    horizon : int
        How many steps back the forecast is for.
    basis : str
        Which trajectories were followed.
    conditions : tuple of Condition
        Those of the layer with the largest rate.
    layers : tuple of LayerGrowth
        The forecast of every layer * num_directions + direction.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> from gradcore import spectral
    >>> layer = gradcore.RNN(1, 2, nonlinearity="relu", bias=False, dtype=np.float64)
    >>> layer.params["weight_hh_l0"][...] = [[1.25, 0.0], [0.0, 1.25]]
    >>> layer.params["weight_ih_l0"][...] = 1
    >>> print(spectral.predict_growth(layer, np.ones((50, 4, 1)), horizon=50))
    explodes by a factor of 1.25 a step, 7.01e+04 over 50 steps (at most 1.25 a step)
    forecast from trajectories driven by x
    spectral norm of weight_hh > 1: holds (1.25); necessary for explosion
    spectral norm of weight_hh < 1: does not hold (1.25); sufficient for vanishing
    spectral radius of weight_hh > 1: holds (1.25); asymptotic for explosion
    growth along the trajectories, ln per step > 0: holds (0.2231); asymptotic for explosion
    """

    rate: float
    factor: float
    verdict: Verdict
    upper_bound: float
    horizon: int
    basis: str
    conditions: tuple[Condition, ...] = field(repr=False)
    layers: tuple[LayerGrowth, ...] = field(repr=False)

    def __str__(self) -> str:
        return "\n".join(
            [
                f"{in_words(self.verdict, self.rate)}, {self.factor:.3g} over {self.horizon} steps "
                f"(at most {safe_exp(self.upper_bound):.3g} a step)",
                f"forecast from {self.basis}",
                *(map(str, self.layers) if len(self.layers) > 1 else ()),
                *map(str, self.conditions),
            ]
        )


def predict_growth(layer: Any, x: Array | None = None, *, horizon: int) -> GrowthPrediction:
    r"""Forecast the growth per step of gradients that travel back through a recurrent layer.

    Random gradients u with respect to the last state are carried back by the transposed Jacobians of real trajectories,
    without a loss and without touching `layer.grads`. The rate is the least-squares slope of

    .. math:: \ln \sqrt{mean |J_{T-s+1}^T \cdots J_T^T u|^2}, \quad s = 0, ..., \min(horizon, T - 1),

    the mean being over samples, averaged over u. It is what `measure_growth` measures after a backward pass with a
    gradient at the last step, and tends to the largest Lyapunov exponent as the horizon grows. For LSTM the norm is
    that of (dL/dh, dL/dc). Every layer and direction is carried by its own recurrence. Dropout is off. If a forward
    pass overflows, only the steps before count.

    Parameters
    ----------
    layer : RNN, LSTM, GRU or Sequential
        The layer, or a model with one such layer.
    x : ndarray, (T, B, I), optional
        The input of the layer or model: data like those to come, T >= 2. By default the forecast is from the weights
        alone: the layer runs freely, with x = 0, for up to 200 steps from 8 random states of standard deviation 1/2,
        biases included. Input usually saturates units and lowers the rate.
    horizon : int
        How many steps back to forecast, at least 1.

    Returns
    -------
    GrowthPrediction
        Rate, verdict, bound and conditions; printed as a few lines of text.

    Raises
    ------
    TypeError
        If there is no recurrent layer.
    ValueError
        If there are several, or there is no sample, fewer than two steps, or no finite trajectory.

    References
    ----------
    Pascanu, Mikolov, Bengio, "On the difficulty of training recurrent neural networks", 2013, section 2 (the
    conditions, with singular values).

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> from gradcore import spectral
    >>> layer = gradcore.RNN(1, 2, nonlinearity="relu", bias=False, dtype=np.float64)
    >>> layer.params["weight_hh_l0"][...] = [[1.25, 0.0], [0.0, 1.25]]
    >>> layer.params["weight_ih_l0"][...] = 1
    >>> forecast = spectral.predict_growth(layer, np.ones((50, 4, 1)), horizon=50)
    >>> print(f"{forecast.verdict}, {np.exp(forecast.rate):.4f} a step, at most {np.exp(forecast.upper_bound):.4f}")
    explodes, 1.2500 a step, at most 1.2500
    """
    horizon = check_int("horizon", horizon, least=1)
    if x is None:
        layer, _ = recurrent_layer(layer)
        basis = "free-running trajectories, x = 0"
        x, state = _rest(layer, min(horizon, REST_STEPS) + 1)
    else:
        layer, x = drive(layer, x)
        basis, state = "trajectories driven by x", None
    tape = run_without_dropout(layer, x, state)
    steps, samples = steps_and_samples(layer, x)
    if not samples or steps < 2:
        raise ValueError(f"x: expected at least 1 sample and 2 steps, got B = {samples}, T = {steps}")
    curves = [
        _carried_back(Trajectory.whole(layer, tape, index, steps, samples), horizon)
        for index in range(layer.num_layers * layer.num_directions)
    ]
    rates = [fit_slope(log_norm) for log_norm, _ in curves]
    layers = []
    for index, (log_norm, log_bound) in enumerate(curves):
        rate = rates[index]
        above = rates[index - index % layer.num_directions + layer.num_directions :]
        bound, conditions = _conditions(layer, index, rate, fit_slope(log_bound))
        layers.append(
            LayerGrowth(
                name=parameter_suffix(layer, index)[1:],
                index=index,
                rate=rate,
                rate_with_above=max([rate, *above]),
                upper_bound=bound,
                verdict=judge(rate, horizon),
                log_norm=log_norm,
                conditions=conditions,
            )
        )
    worst = max(layers, key=lambda growth: growth.rate)
    return GrowthPrediction(
        rate=worst.rate,
        factor=safe_exp(worst.rate * horizon),
        verdict=worst.verdict,
        upper_bound=max(growth.upper_bound for growth in layers),
        horizon=horizon,
        basis=basis,
        conditions=worst.conditions,
        layers=tuple(layers),
    )


def _rest(layer: Any, steps: int) -> tuple[Array, Any]:
    """Return zero input and random initial states."""
    rng = np.random.default_rng(0)
    shape = (layer.num_layers * layer.num_directions, REST_SAMPLES, layer.hidden_size)
    parts = [(rng.standard_normal(shape) / 2).astype(layer.dtype) for _ in layer.cell.states]
    first = (REST_SAMPLES, steps) if layer.batch_first else (steps, REST_SAMPLES)
    return np.zeros((*first, layer.input_size), layer.dtype), parts[0] if len(parts) == 1 else tuple(parts)


def _carried_back(trajectory: Trajectory, horizon: int) -> tuple[Array, Array]:
    """Return (n + 1,) ln of the norm of random gradients, from the last finite step back, and of a bound on it."""
    end, samples = trajectory.rows.shape
    while end and not np.isfinite(trajectory.factors(end - 1, end)).all():
        end -= 1
    if end < 2:
        raise ValueError(f"x: expected a forward pass that is finite for at least 2 steps, got {end}")
    layer, weight_norm = trajectory.layer, spectral_norm(trajectory.weight)
    vectors = np.zeros((samples, -(-PROBES // samples), trajectory.state_size))
    into_h = vectors[:, :, : layer.hidden_size]
    into_h[...] = np.random.default_rng(trajectory.index).standard_normal(into_h.shape)
    start = np.linalg.norm(vectors, axis=2)
    vectors /= start[:, :, None]
    log_norms, log_bounds = [np.log(start)[None]], [np.zeros(1)]
    first, most = max(1, end - horizon), trajectory.steps_at_once()
    while end > first:
        n = min(most, end - first)
        factors = np.ascontiguousarray(trajectory.factors(end - n, end)[::-1])
        log_norm = np.empty((n, *vectors.shape[:2]))
        trajectory.carry(vectors, factors, transposed=True, log_norm=log_norm)
        log_norms.append(log_norm)
        log_bounds.append(safe_log(norm_bounds(trajectory, factors, weight_norm).max(axis=1)))
        end -= n
    log_norm = _log_mean_norm(np.cumsum(np.concatenate(log_norms), axis=0))
    return log_norm - log_norm[0], np.cumsum(np.concatenate(log_bounds))


def _log_mean_norm(log_norm: Array) -> Array:
    """Return (n,) ln of the root mean square over the samples of (n, B, m), averaged over the m."""
    mean_square = np.logaddexp.reduce(2 * log_norm, axis=1) - math.log(log_norm.shape[1])
    return np.asarray(mean_square.mean(axis=1) / 2)


def _conditions(layer: Any, index: int, rate: float, trajectory_bound: float) -> tuple[float, tuple[Condition, ...]]:
    """Return the bound on the rate of a layer and direction, and what is known of it: the only place that says so."""

    def compare(name: str, value: float, limit: float, says: tuple[Kind, Verdict], meaning: str) -> Condition:
        kind, of = says
        return Condition(name, value, limit, kind, of, value > limit if of == "explodes" else value < limit, meaning)

    needed: tuple[Kind, Verdict] = ("necessary", "explodes")
    enough: tuple[Kind, Verdict] = ("sufficient", "vanishes")
    in_the_limit: tuple[Kind, Verdict] = ("asymptotic", "explodes")

    growth = compare(
        "growth along the trajectories, ln per step", rate, 0.0, in_the_limit,
        "An estimate for data like these: an average over the states visited, not a property of the weights alone.",
    )  # fmt: skip
    weight = layer.params["weight_hh" + parameter_suffix(layer, index)]
    if len(weight) > layer.hidden_size or layer.layer_norm or layer.zoneout:  # not diag(phi') W_hh
        name = "bound on the Jacobians along the trajectories, ln per step"
        return trajectory_bound + ROUNDING, (
            compare(
                name, trajectory_bound, 0.0, needed, "Unless it holds, no gradient grows along these trajectories."
            ),
            compare(name, trajectory_bound, 0.0, enough, "If it holds, every gradient vanishes along them."),
            growth,
        )
    # abs(phi') is at most gamma = 1 for tanh and relu.
    norm, radius = spectral_norm(weight), spectral_radius(weight)
    return float(safe_log(norm)) + ROUNDING, (
        compare("spectral norm of weight_hh", norm, 1.0, needed, "Unless it holds, no input makes a gradient grow."),
        compare("spectral norm of weight_hh", norm, 1.0, enough, "If it holds, every gradient vanishes on any input."),
        compare(
            "spectral radius of weight_hh", radius, 1.0, in_the_limit,
            "It decides for a linear network and many steps; for this one it is neither necessary nor sufficient.",
        ),
        growth,
    )  # fmt: skip
