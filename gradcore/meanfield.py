"""Forecasts from the statistics of the weights alone: what wide networks do to signals and gradients on average.

A unit of a wide layer adds many small random numbers, so that its pre-activation is Gaussian; everything then follows
from variances. `mean_field` finds where they settle in a deep network or in time, `critical` the weights that neither
shrink nor blow up gradients, `forecast` says it of a model as it stands. `suggest_gain` and `suggest_bias` say what to
change.

Expectations over z, standard normal, are sums over one fixed rule, whose panels narrow down to 0: there lie the kinks
of the activations, and there a steep tanh turns.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradcore import spectral
from gradcore._check import FLOAT64, Array, check_choice, check_int, check_number, check_reals
from gradcore.linear import MLP, Activation, Linear, Sequential
from gradcore.recurrent import GRU, LSTM, RNN
from gradcore.spectral.logs import fit_slope, safe_exp, safe_log
from gradcore.spectral.trajectory import parameter_suffix
from gradcore.spectral.verdict import Verdict, judge

SMALLEST, LARGEST = 1e-30, 1e30  # a variance beyond them counts as 0 or infinite
MOST = 1e100  # what a standard deviation may be: its square, and that times a variance, are numbers still
SAME = 1e-12  # relative; what lies closer than this is the same number
SERIES = 64  # terms of the correlation map
UNITS = 4096  # how many units of a recurrent layer are followed, at least
MOST_STEPS = 128  # and for how long, at most
GAINS = (1 / 64, 64.0)  # where `suggest_gain` looks


def _rule() -> tuple[Array, Array]:
    """z and weights: E[f(z)] = weights @ f(z), Gauss-Legendre with 16 nodes on every panel, which end at 10."""
    edges = np.concatenate([[0.0], 2.0 ** np.arange(-40, 1), np.arange(2, 11)])
    nodes, weights = np.polynomial.legendre.leggauss(16)
    half = np.diff(edges)[:, None] / 2
    z = (edges[:-1, None] + half * (1 + nodes)).ravel()
    w = (half * weights).ravel() * np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    return np.concatenate([-z[::-1], z]), np.concatenate([w[::-1], w])


Z, WEIGHTS = _rule()


def _mean(values: Array) -> float:
    """E of a function given at Z."""
    return float(WEIGHTS @ values)


def _activation(activation: Any) -> Activation:
    """A float64 activation, from a name or from one of any dtype."""
    if isinstance(activation, str):
        named: Activation = MLP((1, 1, 1), activation, dtype=FLOAT64).layers[1]  # its error lists the names
        return named
    if not isinstance(activation, Activation):
        raise TypeError(f"activation: expected a name or an activation, got {type(activation).__name__}")
    twin: Activation = copy.copy(activation)
    twin.dtype = FLOAT64
    return twin


def _value_and_slope(phi: Activation, a: Array) -> tuple[Array, Array]:
    y, tape = phi.forward(a)
    return y, phi.backward(tape, np.ones_like(y))


# ---- where the variance settles --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MeanField:
    """What `mean_field` returns.

    Attributes
    ----------
    sigma_w, sigma_b, input_variance : float
        As given.
    q : float
        Where the variance of the pre-activations settles: 0, finite, or inf.
    chi : float
        By how much the squared norm of a gradient changes from layer to layer, or from step to step.
    rate : float
        ln(chi) / 2, that of the norm: for a network without input, its largest Lyapunov exponent.
    depth_scale : float
        -1 / ln(chi): the layers, or steps, over which the squared norm falls by a factor of e; negative where it grows,
        inf at chi = 1.
    correlation : float
        Where the correlation of two different inputs settles, 0 to 1.
    correlation_scale : float
        The layers over which they come to it: the same as `depth_scale` wherever chi is below 1.
    verdict : {"explodes", "vanishes", "stable"}
        Stable within 1 % a layer.
    """

    sigma_w: float
    sigma_b: float
    input_variance: float
    q: float
    chi: float
    rate: float
    depth_scale: float
    correlation: float
    correlation_scale: float
    verdict: Verdict


def mean_field(
    activation: str | Activation, sigma_w: float, sigma_b: float = 0.0, *, input_variance: float = 0.0
) -> MeanField:
    r"""Where a wide random network settles, and what it does to gradients there.

    With weights of variance :math:`\sigma_w^2 / n_{in}` and biases of variance :math:`\sigma_b^2`, both of mean 0, the
    variance of the pre-activations goes from one layer to the next as

    .. math:: q \to \sigma_w^2 E[\phi(\sqrt q z)^2] + \sigma_b^2 + R,

    from q = 1 to a fixed point; there :math:`\chi = \sigma_w^2 E[\phi'(\sqrt q z)^2]`. The same map, step by step in
    place of layer by layer, is that of a plain recurrent network, whose input adds a variance R at each step. The
    correlation c of two inputs goes to :math:`(\sigma_w^2 \sum_k a_k^2 c^k + \sigma_b^2 + R) / q`, a_k the coefficients
    of :math:`\phi(\sqrt q z)` in Hermite polynomials; both see the same R.

    Parameters
    ----------
    activation : str or Activation
        A name that `MLP` knows, or a layer such as ``LeakyReLU(0.2)``.
    sigma_w, sigma_b : float
        At least 0.
    input_variance : float
        R, at least 0.

    Returns
    -------
    MeanField

    Raises
    ------
    TypeError, ValueError
        If the activation is none of the package's, or a number is negative.

    References
    ----------
    Poole et al., 2016, arXiv 1606.05340 (the maps); Schoenholz et al., "Deep information propagation", 2017, arXiv
    1611.01232 (the scales); for recurrent networks Chen, Pennington, Schoenholz, 2018, arXiv 1806.05394.

    Examples
    --------
    >>> from gradcore import meanfield
    >>> field = meanfield.mean_field("tanh", 1.5)
    >>> print(f"q = {field.q:.4f}, {field.rate:.5f} a step, {field.verdict}")
    q = 0.7934, 0.06522 a step, explodes
    >>> meanfield.mean_field("relu", 1.0).chi
    0.5
    """
    phi = _activation(activation)
    w = check_number("sigma_w", sigma_w, least=0.0, most=MOST)
    b = check_number("sigma_b", sigma_b, least=0.0, most=MOST)
    drive = check_number("input_variance", input_variance, least=0.0, most=MOST**2)
    added = b**2 + drive
    q = _fixed_point(lambda q: w**2 * _mean(phi(math.sqrt(q) * Z) ** 2) + added)
    y, slope = _value_and_slope(phi, math.sqrt(min(max(q, SMALLEST), LARGEST)) * Z)
    chi = w**2 * _mean(slope**2)
    correlation, chi_there = 1.0, chi
    if chi > 1 + SAME and 0 < q < math.inf:
        correlation, chi_there = _correlation(w**2 * _hermite_squares(y) / q, added / q, chi)
    rate = float(safe_log(chi)) / 2
    return MeanField(
        sigma_w=w,
        sigma_b=b,
        input_variance=drive,
        q=q,
        chi=chi,
        rate=rate,
        depth_scale=_scale(chi),
        correlation=correlation,
        correlation_scale=_scale(chi_there),
        verdict=judge(rate, 1),
    )


def _scale(chi: float) -> float:
    """-1 / ln(chi), inf at 1 and 0 at 0."""
    return math.inf if abs(chi - 1) < SAME else -1 / math.log(chi) if chi else 0.0


def _fixed_point(step: Callable[[float], float]) -> float:
    """Where q -> step(q), an increasing map, comes to rest when it begins at 1."""
    from scipy.optimize import brentq

    excess = step(1.0) - 1.0
    if abs(excess) < SAME:  # ReLU at its critical point: every q is a fixed point
        return 1.0
    factor, near = (2.0, 1.0) if excess > 0 else (0.5, 1.0)
    while SMALLEST < near < LARGEST:
        far = factor * near
        if (step(far) - far > 0) != (excess > 0):
            return float(brentq(lambda q: step(q) - q, near, far, xtol=1e-300, rtol=1e-15))
        near = far
    return math.inf if excess > 0 else 0.0


def _hermite_squares(y: Array) -> Array:
    """(SERIES,) squared coefficients of a function at Z in normalised Hermite polynomials; the last has the rest."""
    before, now, squares = np.zeros_like(Z), np.ones_like(Z), []
    for k in range(SERIES - 1):
        squares.append(_mean(y * now) ** 2)
        before, now = now, (Z * now - math.sqrt(k) * before) / math.sqrt(k + 1)
    return np.array([*squares, max(_mean(y**2) - math.fsum(squares), 0.0)])


def _correlation(squares: Array, added: float, chi: float) -> tuple[float, float]:
    """The fixed point of the correlation map below 1, where there is one, and the slope there."""
    from scipy.optimize import brentq

    series = np.polynomial.Polynomial(squares) + added
    end = 1 - 1e-9
    if series(end) >= end:
        return 1.0, chi
    # At 0 the map is at least 0; exactly 0 for an odd activation without biases, which brentq takes for the root.
    at = float(brentq(lambda c: series(c) - c, 0.0, end, xtol=1e-15))
    return at, float(series.deriv()(at))


def critical(activation: str | Activation, sigma_b: float = 0.0) -> float:
    r"""The sigma_w at which chi = 1: gradients neither vanish nor explode, however deep the network.

    :math:`\sigma_w^2 E[\phi'(\sqrt q z)^2] = 1` with q the fixed point of `mean_field`. The smallest such value
    between 0.01 and 100. For ReLU it is :math:`\sqrt 2` whatever the biases, but only without them is the variance at
    rest too.

    Parameters
    ----------
    activation : str or Activation
        As in `mean_field`.
    sigma_b : float
        At least 0.

    Returns
    -------
    float
        sigma_w; the weights' standard deviation is sigma_w / sqrt(n_in).

    Raises
    ------
    ValueError
        If chi does not pass through 1 in that range, or only in a jump.

    References
    ----------
    Pennington, Schoenholz, Ganguli, "Resurrecting the sigmoid in deep learning through dynamical isometry", 2017,
    arXiv 1711.04735.

    Examples
    --------
    >>> from gradcore import meanfield
    >>> round(meanfield.critical("relu"), 6)
    1.414214
    >>> round(meanfield.critical("tanh", sigma_b=0.05**0.5) ** 2, 4)
    1.761
    """
    from scipy.optimize import brentq

    phi, b = _activation(activation), check_number("sigma_b", sigma_b, least=0.0, most=MOST)

    def above(sigma_w: float) -> float:
        return mean_field(phi, sigma_w, b).chi - 1

    grid = np.geomspace(0.01, 100.0, 48)
    signs = [above(w) > 0 for w in grid]
    if signs[0] or not any(signs):
        side = "above" if signs[0] else "below"
        raise ValueError(f"activation: chi is {side} 1 from sigma_w = 0.01 on, with sigma_b = {b:g}; there is no root")
    first = signs.index(True)
    found = float(brentq(above, grid[first - 1], grid[first], xtol=1e-14, rtol=1e-14))
    around = [above(found * (1 + shift)) for shift in (-1e-7, 1e-7)]
    if max(abs(value) for value in around) > 1e-3:
        raise ValueError(
            f"activation: chi jumps from {1 + around[0]:.4g} to {1 + around[1]:.4g} at sigma_w = {found:.6g}, "
            f"with sigma_b = {b:g}; it is 1 nowhere"
        )
    return found


# ---- the singular values of a deep Jacobian --------------------------------------------------------------------------


@dataclass(frozen=True)
class JacobianMoments:
    """What `jacobian_moments` returns, of the squared singular values of the input-output Jacobian.

    Attributes
    ----------
    depth : int
        As given.
    mean, second, variance : float
        E[s^2], E[s^4], and E[s^4] - E[s^2]^2, over all singular values s.
    edge : float
        The largest s^2 as the width goes to infinity.
    """

    depth: int
    mean: float
    second: float
    variance: float
    edge: float


def jacobian_moments(
    activation: str | Activation, depth: int, sigma_w: float, sigma_b: float = 0.0, *, weights: str = "gaussian"
) -> JacobianMoments:
    r"""How the singular values of a deep network's Jacobian spread: whether all gradients fare alike.

    With :math:`\mu_k = E[\phi'(\sqrt q z)^{2k}]` at the fixed point q of `mean_field`, for squared singular values
    :math:`s^2` of the product of all layers' Jacobians, in the limit of wide layers of one width,

    .. math:: m_1 = (\sigma_w^2 \mu_1)^L, \quad var = m_1^2 L (\mu_2 / \mu_1^2 - 1 - s_1),

    :math:`s_1 = -1` for Gaussian and 0 for orthogonal weights. The edge is the smallest value of
    :math:`1 / \psi^{-1}(y)`, y > 0, where :math:`\psi^{-1}(y) = S(y) y / (1 + y)` and S is the S-transform of the
    product, the product of those of its factors. For ReLU :math:`\mu_k = 1/2`; for linear networks with Gaussian
    weights :math:`m_2 = L + 1` and the edge is :math:`(L + 1)^{L + 1} / L^L`.

    Parameters
    ----------
    activation : str or Activation
        As in `mean_field`.
    depth : int
        L, at least 1.
    sigma_w, sigma_b : float
        As in `mean_field`; orthogonal weights are sigma_w times an orthogonal matrix.
    weights : {"gaussian", "orthogonal"}

    Returns
    -------
    JacobianMoments

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range.

    References
    ----------
    Pennington, Schoenholz, Ganguli, 2017, arXiv 1711.04735.

    Examples
    --------
    >>> from gradcore import meanfield
    >>> linear = meanfield.jacobian_moments("identity", 10, 1.0)
    >>> print(f"{linear.mean:.2f} {linear.second:.2f} {linear.edge:.2f}")
    1.00 11.00 28.53
    >>> relu = meanfield.jacobian_moments("relu", 10, 2**0.5, weights="orthogonal")
    >>> print(f"{relu.mean:.2f} {relu.variance:.2f}")
    1.00 10.00
    """
    check_choice("weights", weights, ("gaussian", "orthogonal"))
    phi, L = _activation(activation), check_int("depth", depth, least=1)
    field = mean_field(phi, sigma_w, sigma_b)
    _, slope = _value_and_slope(phi, math.sqrt(min(max(field.q, SMALLEST), LARGEST)) * Z)
    squares = slope**2
    mu1, mu2 = _mean(squares), _mean(squares**2)
    s1 = -1 if weights == "gaussian" else 0
    mean = _power(field.chi, L)
    excess = mu2 / mu1**2 - 1 if mu1 else 0.0  # 0 for a linear phi, but for the rounding of the sums
    spread = L * ((excess if excess > SAME else 0.0) - s1) if mu1 else 0.0
    edge = _power(field.sigma_w**2, L) * _edge(squares, L, weights == "gaussian") if mean else 0.0
    square = mean * mean  # inf where it overflows, for which mean**2 would raise an error
    return JacobianMoments(L, mean, square * (1 + spread), square * spread if spread else 0.0, edge)


def _power(base: float, n: int) -> float:
    """base**n, inf where it overflows."""
    return safe_exp(n * math.log(base)) if base else 0.0


def _edge(squares: Array, L: int, gaussian: bool) -> float:
    """The largest squared singular value of the product for sigma_w = 1, given phi'^2 at Z.

    Along t the S-transform of phi'^2 is t (1 + y) / y at y = E[t phi'^2 / (1 - t phi'^2)]; that of the weights is
    1 / (1 + y) or 1.
    """
    from scipy.optimize import minimize_scalar

    top = float(squares.max())

    def log_inverse(log_t: float) -> float:
        t = math.exp(log_t)
        y = _mean(t * squares / (1 - t * squares))
        of_phi = log_t + math.log1p(y) - math.log(y)
        of_weights = -math.log1p(y) if gaussian else 0.0
        return math.log1p(y) - math.log(y) - L * (of_phi + of_weights)

    bounds = (-math.log(top) - math.log(1e4 * L), -math.log(top) - 1e-12)
    found = minimize_scalar(log_inverse, bounds=bounds, method="bounded", options={"xatol": 1e-12})
    return safe_exp(float(found.fun))


def fuss_catalan(depth: int, k: int) -> int:
    r"""E[s^{2k}] of a product of `depth` wide Gaussian matrices of variance 1/n: :math:`\binom{(L+1)k}{k} / (Lk + 1)`.

    Parameters
    ----------
    depth : int
        L, at least 1; for L = 1 these are the Catalan numbers.
    k : int
        Which moment of the squared singular values, at least 0.

    Returns
    -------
    int

    Raises
    ------
    TypeError, ValueError
        If an argument is not an integer in its range.

    References
    ----------
    Penson and Zyczkowski, "Product of Ginibre matrices: Fuss-Catalan and Raney distributions", 2011, arXiv 1103.3453.

    Examples
    --------
    >>> from gradcore import meanfield
    >>> [meanfield.fuss_catalan(3, k) for k in range(5)]
    [1, 1, 4, 22, 140]
    """
    L, k = check_int("depth", depth, least=1), check_int("k", k)
    return math.comb((L + 1) * k, k) // (L * k + 1)


# ---- a model as it stands --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LayerField:
    """The forecast of one layer; of one direction, where there are two.

    Attributes
    ----------
    name : str
        As parameters are called: "0", "2.1" in nested models, "l0_reverse" in recurrent layers.
    sigma_w, sigma_b : tuple of float
        sqrt(n_in mean(W^2)) and sqrt(mean(b^2)), for each gate in the order of its rows; W is the recurrent weight in a
        recurrent layer. Empty for an activation.
    q : float
        Mean square of what the layer puts out; at the last step, in a recurrent layer.
    chi : float
        By how much the squared norm of a gradient changes through the layer, or in one step back through time.
    rate : float
        ln(chi) / 2, that of the norm.
    """

    name: str
    sigma_w: tuple[float, ...]
    sigma_b: tuple[float, ...]
    q: float
    chi: float
    rate: float


@dataclass(frozen=True)
class Forecast:
    """What `forecast` returns.

    Attributes
    ----------
    rate : float
        ln of the factor on a gradient's norm: per linear layer, on the mean from the input of the last to that of the
        first; per step, the largest of all layers and directions, in a recurrent layer.
    depth_scale : float
        -1 / (2 rate): the layers, or steps, over which the squared norm falls by a factor of e; negative where it
        grows, inf where the rate is 0.
    verdict : {"explodes", "vanishes", "stable"}
        Stable within 1 % a layer or step, and within a factor of 10 over all of them.
    layers : tuple of LayerField
        From the first to the last, activations included.
    """

    rate: float
    depth_scale: float
    verdict: Verdict
    layers: tuple[LayerField, ...]

    @property
    def log_norm(self) -> Array:
        """(n + 1,) for a feed-forward model: ln of `SequentialTape.d_norm` over its last entry, the norm of dL/dy."""
        back = np.cumsum([0.0, *(layer.rate for layer in reversed(self.layers))])
        return np.asarray(back[::-1])


def forecast(model: Any, x: Any = None) -> Forecast:
    r"""Say from the weights' variances how signals and gradients will fare in a model.

    Feed-forward: with :math:`\sigma_w^2 = n_{in} \overline{W^2}` and :math:`\sigma_b^2 = \overline{b^2}` a linear layer
    takes the mean square v of its inputs to :math:`q = \sigma_w^2 v + \sigma_b^2`, and multiplies the squared norm of a
    gradient by :math:`\sigma_w^2` (its mean square by :math:`n_{out} \overline{W^2}`, Glorot's and He's number, which
    is the same for square matrices); an activation takes q to :math:`E[\phi(\sqrt q z)^2]`, and multiplies the squared
    norm by :math:`E[\phi'(\sqrt q z)^2]`.

    Recurrent: 4096 units or more are followed, with the biases of the layer's own units, whose other pre-activations
    are Gaussian with the covariance in time that the followed units themselves show,

    .. math:: E[a_t a_s] = \sigma_w^2 E[h_t h_s] + \sigma_v^2 \overline{x_t x_s}

    for each gate (dynamic mean-field theory); beside them goes a small random change of the state, driven by Gaussian
    fields with its own covariance. The rate is the slope of ln of its norm: the norm of the product of Jacobians is
    that of its transpose, which carries gradients. What is assumed is that all weights of a gate are independent, of
    mean 0 and one variance, in a wide layer: right after initialisation, and not for orthogonal or identity matrices of
    a linear network. The forecast is that of the average over such weights; one layer of H units scatters around it.

    Mean and largest difference to `spectral.predict_growth` in natural log per step, over six layers each of H = 256
    with normal weights and x standard normal (T = 100, I = 4), at recurrent gains of 0.5 to 4:

    ========  ===============================  ===============================  ===============
    layer     rates, from gain 0.5 to 4        mean of six, least and greatest  largest of one
    ========  ===============================  ===============================  ===============
    RNN tanh  -1.06 to 0.41                    0.002 to 0.007                   0.015
    RNN relu  -1.04 to 1.09                    -0.048 to -0.004                 0.12
    LSTM      -0.54 to 0.04                    0.004 to 0.010                   0.018
    GRU       -0.52 to 0.13                    -0.003 to 0.005                  0.016
    ========  ===============================  ===============================  ===============

    A network of ReLU is homogeneous and follows one direction, whence its scatter, 0.04 from layer to layer at H = 256
    and 0.01 at H = 1024. Where hardly anything changes in time, as in a tanh network in the default initialisation, a
    gradient follows the spectral radius of one matrix, which is above the forecast by 0.03 on the mean at H = 256.

    Parameters
    ----------
    model : Sequential, MLP, Linear, an activation, RNN, LSTM or GRU
        A `Sequential` holds linear layers, activations and others like itself; dropout is off.
    x : ndarray, optional
        Data like those to come. For feed-forward models (..., in_features), and its mean square counts; for recurrent
        layers (T, B, I), or (B, T, I) with `batch_first`, and the first 128 steps count. Standard normal, and over
        time independent, unless told.

    Returns
    -------
    Forecast

    Raises
    ------
    TypeError
        If the model has a layer of another kind.
    ValueError
        If x has another shape, no entries, or some that are not finite, or the model has no layers.

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
    ...     told = meanfield.forecast(gradcore.MLP([256] * 31, "relu", init, rng=rng))
    ...     print(f"{init}: {np.exp(2 * told.rate):.2f} a layer, {told.verdict}")
    kaiming_normal: 1.00 a layer, stable
    lecun_normal: 0.50 a layer, vanishes
    """
    if isinstance(model, (RNN, LSTM, GRU)):
        return _forecast_recurrent(model, x)
    return _forecast_feed_forward(model, x)


def _told(rate: float, horizon: int, layers: list[LayerField]) -> Forecast:
    scale = math.inf if rate == 0 else -1 / (2 * rate)
    return Forecast(rate, scale, judge(rate, horizon), tuple(layers))


def _flat(model: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The linear layers and activations of a model, with their places in it."""
    if isinstance(model, Sequential) and model.is_chain:
        for i, layer in enumerate(model.layers):
            yield from _flat(layer, f"{name}.{i}" if name else f"{i}")
    elif isinstance(model, (Linear, Activation)):
        yield name or "0", model
    else:
        raise TypeError(
            f"model: expected linear layers and activations, or one RNN, LSTM or GRU, got {type(model).__name__}"
            + f" at {name}" * bool(name)
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
        raise ValueError("model: has no layers")
    width = next((layer.in_features for _, layer in members if isinstance(layer, Linear)), None)
    values = math.sqrt(1.0 if x is None else _mean_square(x, width)) * Z  # of one unit, over the random weights
    layers, linear = [], []
    for i, (name, layer) in enumerate(members):
        sigma_w: tuple[float, ...] = ()
        sigma_b: tuple[float, ...] = ()
        if isinstance(layer, Linear):
            linear.append(i)
            total = float(np.square(layer.params["weight"], dtype=np.float64).sum())
            bias = layer.params.get("bias", np.zeros(1))
            chi = total / max(layer.out_features, 1)  # n_in mean(W^2), forwards and backwards
            b = float(np.square(bias, dtype=np.float64).sum()) / max(bias.size, 1)
            values = math.sqrt(chi * _mean(values**2) + b) * Z
            sigma_w, sigma_b = (math.sqrt(chi),), (math.sqrt(b),)
        else:
            values, slope = _value_and_slope(_activation(layer), values)
            chi = _mean(slope**2)
        layers.append(LayerField(name, sigma_w, sigma_b, _mean(values**2), chi, float(safe_log(chi)) / 2))
    # From linear layer to linear layer: what comes after the last activation does not repeat.
    deep = len(linear) > 1
    counted, n = (layers[linear[0] : linear[-1]], len(linear) - 1) if deep else (layers, 1)
    return _told(math.fsum(layer.rate for layer in counted) / n, n, layers)


class _Field:
    """What the units of a random layer meet: sums of a time series' values with fixed random weights.

    They are Gaussian over the units, with covariance E[v_t v_s] in time. The series is orthogonalised as it goes,
    v_t = sum_s l_ts e_s, and the field is sum_s l_ts n_s, with independent normal n_s for each unit and gate.
    """

    def __init__(self, rng: np.random.Generator, steps: int, gates: int, units: int) -> None:
        self._noise = rng.standard_normal((steps, gates, units))
        self._basis = np.zeros((steps, 0))
        self._t = 0

    def next(self, values: Array) -> Array:
        """(gates, units) after another step of the series, whose values (n,) have always the same n."""
        if not self._t:
            self._basis = np.zeros((len(self._noise), values.size))
        known = self._basis[: self._t]
        part = known @ values / values.size
        rest = values - part @ known
        norm = math.sqrt(np.mean(rest**2))
        if norm > 1e-6 * math.sqrt(np.mean(values**2)):  # else v_t is what has been before, but for rounding
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
            raise ValueError("x: has entries that are NaN or infinite")
    layers = []
    for level in range(layer.num_layers):
        outputs = []
        for direction in range(layer.num_directions):
            way = slice(None, None, -1 if direction else 1)
            h, told = _follow(layer, level * layer.num_directions + direction, series[way], rng)
            layers.append(told)
            outputs.append(h[way])
        series = np.concatenate(outputs, axis=1)
    return _told(max(told.rate for told in layers), steps, layers)


def _follow(layer: Any, index: int, series: Array, rng: np.random.Generator) -> tuple[Array, LayerField]:
    """h (T, n) of units like those of one layer and direction, driven by a series (T, m), and the forecast."""
    H, suffix = layer.hidden_size, parameter_suffix(layer, index)
    into, back = (layer.params[name + suffix].astype(np.float64) for name in ("weight_ih", "weight_hh"))
    gates, T, copies = len(back) // H, len(series), -(-UNITS // H)
    # Each unit keeps the norms of its own rows and its biases, which make it faster or slower than others.
    sigma_v, sigma_w = (
        np.tile(np.sqrt(np.square(w).sum(axis=1)).reshape(gates, H), copies) for w in (into, back)
    )  # (gates, n)
    own = [layer.params.get(name + suffix, np.zeros(gates * H)) for name in ("bias_ih", "bias_hh")]
    b_ih, b_hh = (np.tile(b.reshape(gates, H).astype(np.float64), copies) for b in own)  # (gates, n)

    # The input's covariance is known beforehand, and its square root takes noise to the field.
    eigenvalues, vectors = np.linalg.eigh(series @ series.T / series.shape[1])
    root = vectors * np.sqrt(np.maximum(eigenvalues, 0))
    fields = np.tensordot(root, rng.standard_normal((T, gates, H * copies)), 1)
    of_h, of_change = _Field(rng, T, gates, H * copies), _Field(rng, T, gates, H * copies)
    h, c, dc = np.zeros((3, H * copies))
    dh = rng.standard_normal(H * copies)
    states, log_norm = np.zeros((T, H * copies)), [math.log(np.mean(dh**2)) / 2]
    for t in range(T):
        a = sigma_v * fields[t] + b_ih
        u, du = sigma_w * of_h.next(h) + b_hh, sigma_w * of_change.next(dh)
        h, c, dh, dc = _step(layer, a, u, du, (h, c, dh, dc))
        states[t] = h
        size_now = float(np.mean(dh**2 + dc**2))
        log_norm.append(float(safe_log(size_now)) / 2)
        if not 1e-250 < size_now < 1e250 or not np.mean(h**2) < 1e250:
            break
    rate = fit_slope(np.array(log_norm[len(log_norm) // 4 :]))
    own_w, own_b = (tuple(np.sqrt(np.mean(v**2, axis=1)).tolist()) for v in (sigma_w, b_ih + b_hh))
    return states, LayerField(suffix[1:], own_w, own_b, float(np.mean(h**2)), safe_exp(2 * rate), rate)


def _step(layer: Any, a: Array, u: Array, du: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
    """One step of units n, and of a small change d of everything, from the gates' sums over x and over h (gates, n)."""
    from scipy.special import expit

    h, c, dh, dc = state
    if isinstance(layer, RNN):
        s = a[0] + u[0]
        h = np.tanh(s) if layer.nonlinearity == "tanh" else np.maximum(s, 0)
        return h, c, (1 - h**2 if layer.nonlinearity == "tanh" else s > 0) * du[0], dc
    if isinstance(layer, GRU):
        r, z = expit(a[:2] + u[:2])
        dr, dz = r * (1 - r) * du[0], z * (1 - z) * du[1]
        n = np.tanh(a[2] + r * u[2])
        dn = (1 - n**2) * (r * du[2] + dr * u[2])
        return (1 - z) * n + z * h, c, (1 - z) * dn + (h - n) * dz + z * dh, dc
    i, f, o = expit((a + u)[[0, 1, 3]])
    g = np.tanh(a[2] + u[2])
    di, df, do = i * (1 - i) * du[0], f * (1 - f) * du[1], o * (1 - o) * du[3]
    dc = f * dc + df * c + di * g + i * (1 - g**2) * du[2]
    c = f * c + i * g
    squashed = np.tanh(c)
    return o * squashed, c, do * squashed + o * (1 - squashed**2) * dc, dc


# ---- what to change --------------------------------------------------------------------------------------------------


def suggest_gain(layer: Any, x: Array, target: float = 0.0) -> float:
    """By what to multiply a layer's recurrent weights, so that its gradients grow at a given rate on data.

    The factor on every weight_hh at which the rate of `spectral.predict_growth` on x, over all its steps, comes to the
    target: found by doubling or halving from 1 on, between 1/64 and 64, and then by Brent's method on its logarithm.
    Where several factors do, it is one near 1. The layer is left as it is; to apply it::

        for name in layer.params:
            if name.startswith("weight_hh"):
                layer.params[name] *= factor

    Parameters
    ----------
    layer : RNN, LSTM or GRU
    x : ndarray, (T, B, I), or (B, T, I) with `batch_first`
        Data like those to come, T >= 2.
    target : float
        Natural logarithm per step, the largest of all layers and directions; 0 keeps gradients as they are.

    Returns
    -------
    float

    Raises
    ------
    TypeError
        If it is no recurrent layer.
    ValueError
        If no factor in the range has this rate; of x, as in `predict_growth`.

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

    if not isinstance(layer, (RNN, LSTM, GRU)):
        raise TypeError(f"layer: expected an RNN, LSTM or GRU, got {type(layer).__name__}")
    wanted = check_number("target", target)
    if not math.isfinite(wanted):
        raise ValueError(f"target: expected a finite number, got {target}")
    trial = copy.deepcopy(layer)
    given = layer._check_sequence("x", x, ("T", "B", layer.input_size))
    if not given.size:
        raise ValueError(f"x: expected at least 1 sample and 2 steps, got B = {given.shape[1]}, T = {len(given)}")
    horizon = len(given)
    lowest = wanted - 100.0  # for rates of -inf, with which Brent's method cannot reckon

    def miss(log_factor: float) -> float:
        for name, weight in layer.params.items():
            if name.startswith("weight_hh"):
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
    r"""The bias of the gate that keeps the state, for memory over a number of steps: ln(horizon - 1).

    With it the gate is :math:`\sigma(b) = 1 - 1/T` where its other inputs are 0, so that of the state, and of its
    gradient, :math:`(1 - 1/T)^T \approx 1/e` is left after the horizon T. It is the forget gate f of LSTM (c' = f c +
    i g), and the update gate z of GRU, which keeps the old state here (h' = (1 - z) n + z h): in both the second gate,
    so that it is applied by::

        H = layer.hidden_size
        layer.params["bias_ih_l0"][H : 2 * H] = bias
        layer.params["bias_hh_l0"][H : 2 * H] = 0

    `init.chrono_` spreads the units' horizons in place of giving all the same.

    Parameters
    ----------
    layer : LSTM or GRU, or "lstm" or "gru"
    horizon : float
        T, steps, above 1.

    Returns
    -------
    float

    Raises
    ------
    TypeError
        If the layer is another, such as an RNN, which has no gates.
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
    if not isinstance(layer, str) or layer not in ("lstm", "gru"):
        if not isinstance(layer, (LSTM, GRU)):
            what = repr(layer) if isinstance(layer, str) else type(layer).__name__
            raise TypeError(f"layer: expected an LSTM or GRU, or 'lstm' or 'gru', got {what}")
        if not layer.bias:
            raise ValueError("layer: the layer has no biases; build it with bias=True")
    steps = check_number("horizon", horizon, above=1.0)
    if math.isinf(steps):
        raise ValueError("horizon: expected a finite number, got inf")
    return math.log(steps - 1)
