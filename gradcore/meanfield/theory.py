"""Infinitely wide random networks: where variances and correlations settle, and what that does to gradients.

Expectations over z, standard normal, are sums over one fixed rule, whose panels narrow down to 0: there lie the kinks
of the activations, and there a steep tanh turns.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradcore._base.check import FLOAT64, Array, check_choice, check_int, check_number
from gradcore.layers.activations import Activation
from gradcore.layers.sequential import MLP
from gradcore.spectral.logs import safe_exp, safe_log
from gradcore.spectral.verdict import Verdict, in_words, judge

__all__ = ["JacobianMoments", "MeanField", "critical", "fuss_catalan", "jacobian_moments", "mean_field"]

SMALLEST, LARGEST = 1e-30, 1e30  # a variance beyond them counts as 0 or infinite
MOST = 1e100  # what a standard deviation may be: its square, and that times a variance, are still in range
SAME = 1e-12  # relative; what lies closer than this is the same number
SERIES = 64  # terms of the correlation map


def _rule() -> tuple[Array, Array]:
    """Return z and weights with E[f(z)] = weights @ f(z): Gauss-Legendre with 16 nodes on every panel, up to 10."""
    edges = np.concatenate([[0.0], 2.0 ** np.arange(-40, 1), np.arange(2, 11)])
    nodes, weights = np.polynomial.legendre.leggauss(16)
    half = np.diff(edges)[:, None] / 2
    z = (edges[:-1, None] + half * (1 + nodes)).ravel()
    w = (half * weights).ravel() * np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    return np.concatenate([-z[::-1], z]), np.concatenate([w[::-1], w])


Z, WEIGHTS = _rule()


def expectation(values: Array) -> float:
    """Return the expectation of a function given at Z."""
    return float(WEIGHTS @ values)


def float64_activation(activation: Any) -> Activation:
    """Return a float64 activation, from a name or from one of any dtype."""
    if isinstance(activation, str):
        named: Activation = MLP((1, 1, 1), activation, dtype=FLOAT64).layers[1]  # its error lists the names
        return named
    if not isinstance(activation, Activation):
        raise TypeError(f"activation: expected a name or an activation, got {type(activation).__name__}")
    twin: Activation = copy.copy(activation)
    twin.dtype = FLOAT64
    return twin


def value_and_slope(phi: Activation, a: Array) -> tuple[Array, Array]:
    """Return phi(a) and phi'(a)."""
    y, tape = phi.forward(a)
    return y, phi.backward(tape, np.ones_like(y))


# ---- where the variance settles --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MeanField:
    """The fixed point found by `mean_field`.

    Parameters
    ----------
    sigma_w, sigma_b, input_variance : float
        The arguments of `mean_field`.
    q : float
        The variance at which the pre-activations settle: 0, finite, or inf.
    chi : float
        The factor on the squared norm of a gradient from layer to layer, or from step to step.
    rate : float
        The growth of the norm, ln(chi) / 2. For a recurrent network without input it is the largest Lyapunov exponent.
    depth_scale : float
        -1 / ln(chi), the layers or steps over which the squared norm falls by a factor of e; negative if it grows, inf
        at chi = 1.
    correlation : float
        The correlation at which two different inputs settle, from 0 to 1.
    correlation_scale : float
        The layers over which the correlation settles; the same as `depth_scale` if chi is below 1.
    verdict : {"explodes", "vanishes", "stable"}
        The verdict on `rate`: "stable" is within 1 % a layer.

    Examples
    --------
    >>> from gradcore import meanfield
    >>> print(meanfield.mean_field("tanh", 1.5))
    explodes by a factor of 1.07 a layer; after many layers variance 0.793, correlation of two inputs 0
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

    def __str__(self) -> str:
        return (
            f"{in_words(self.verdict, self.rate, 'layer')}; after many layers variance {self.q:.3g}, "
            f"correlation of two inputs {self.correlation:.3g}"
        )


def mean_field(
    activation: str | Activation, sigma_w: float, sigma_b: float = 0.0, *, input_variance: float = 0.0
) -> MeanField:
    r"""Find where the variance in a wide random network settles, and what happens to gradients there.

    With weights of variance :math:`\sigma_w^2 / n_{in}` and biases of variance :math:`\sigma_b^2`, both of mean 0, a
    layer changes the variance of the pre-activations as

    .. math:: q \to \sigma_w^2 E[\phi(\sqrt q z)^2] + \sigma_b^2 + R.

    From q = 1 it goes to a fixed point, where :math:`\chi = \sigma_w^2 E[\phi'(\sqrt q z)^2]`. A plain recurrent
    network has the same map, step by step instead of layer by layer, and its input adds a variance R at each step. The
    correlation c of two inputs changes to :math:`(\sigma_w^2 \sum_k a_k^2 c^k + \sigma_b^2 + R) / q`, a_k the
    coefficients of :math:`\phi(\sqrt q z)` in Hermite polynomials; both see the same R.

    Parameters
    ----------
    activation : str or Activation
        A name that `MLP` takes, or a layer such as ``LeakyReLU(0.2)``.
    sigma_w, sigma_b : float
        Standard deviation of the weights times sqrt(n_in), and of the biases, at least 0.
    input_variance : float
        The variance R of the input, at least 0.

    Returns
    -------
    MeanField
        The fixed point, chi, and the scales of depth.

    Raises
    ------
    TypeError, ValueError
        If the activation is unknown, or a number is negative.

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
    phi = float64_activation(activation)
    w = check_number("sigma_w", sigma_w, least=0.0, most=MOST)
    b = check_number("sigma_b", sigma_b, least=0.0, most=MOST)
    drive = check_number("input_variance", input_variance, least=0.0, most=MOST**2)
    added = b**2 + drive
    q = _fixed_point(lambda q: w**2 * expectation(phi(math.sqrt(q) * Z) ** 2) + added)
    y, slope = value_and_slope(phi, math.sqrt(min(max(q, SMALLEST), LARGEST)) * Z)
    chi = w**2 * expectation(slope**2)
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
    """Return -1 / ln(chi), inf at 1 and 0 at 0."""
    return math.inf if abs(chi - 1) < SAME else -1 / math.log(chi) if chi else 0.0


def _fixed_point(step: Callable[[float], float]) -> float:
    """Return where q -> step(q), an increasing map, comes to rest from 1."""
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


def correlated(values: Array, correlation: float) -> float:
    """Return E[f(z) f(z')] of a function given at Z, for normal z and z' of this correlation, from 0 to 1."""
    return float(np.polynomial.Polynomial(_hermite_squares(values))(correlation))


def _hermite_squares(y: Array) -> Array:
    """Return (SERIES,) squared Hermite coefficients of a function at Z, normalized; the last one has the rest."""
    before, now, squares = np.zeros_like(Z), np.ones_like(Z), []
    for k in range(SERIES - 1):
        squares.append(expectation(y * now) ** 2)
        before, now = now, (Z * now - math.sqrt(k) * before) / math.sqrt(k + 1)
    return np.array([*squares, max(expectation(y**2) - math.fsum(squares), 0.0)])


def _correlation(squares: Array, added: float, chi: float) -> tuple[float, float]:
    """Return the fixed point of the correlation map below 1 if there is one, else 1, and the slope there."""
    from scipy.optimize import brentq

    series = np.polynomial.Polynomial(squares) + added
    end = 1 - 1e-9
    if series(end) >= end:
        return 1.0, chi
    # At 0 the map is at least 0. It is 0 for an odd activation without biases, and brentq returns that root.
    at = float(brentq(lambda c: series(c) - c, 0.0, end, xtol=1e-15))
    return at, float(series.deriv()(at))


def critical(activation: str | Activation, sigma_b: float = 0.0) -> float:
    r"""Find the sigma_w at which gradients neither vanish nor explode in a network of any depth.

    The smallest value between 0.01 and 100 with :math:`\chi = \sigma_w^2 E[\phi'(\sqrt q z)^2] = 1`, q the fixed point
    of `mean_field`. For ReLU it is :math:`\sqrt 2` with any biases, but the variance is at rest only without them.

    Parameters
    ----------
    activation : str or Activation
        A name that `MLP` takes, or a layer such as ``LeakyReLU(0.2)``.
    sigma_b : float
        Standard deviation of the biases, at least 0.

    Returns
    -------
    float
        The critical sigma_w; the weights' standard deviation is sigma_w / sqrt(n_in).

    Raises
    ------
    TypeError
        If the activation is neither a name nor a layer.
    ValueError
        If the name is unknown, or chi does not pass through 1 in that range, or only in a jump.

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

    phi, b = float64_activation(activation), check_number("sigma_b", sigma_b, least=0.0, most=MOST)

    def above(sigma_w: float) -> float:
        return mean_field(phi, sigma_w, b).chi - 1

    grid = np.geomspace(0.01, 100.0, 48)
    signs = [above(w) > 0 for w in grid]
    if signs[0] or not any(signs):
        side = "above" if signs[0] else "below"
        raise ValueError(
            f"activation: expected chi to cross 1 from sigma_w = 0.01 to 100; with sigma_b = {b:g} it is {side} 1 there"
        )
    first = signs.index(True)
    found = float(brentq(above, grid[first - 1], grid[first], xtol=1e-14, rtol=1e-14))
    around = [above(found * (1 + shift)) for shift in (-1e-7, 1e-7)]
    if max(abs(value) for value in around) > 1e-3:
        raise ValueError(
            f"activation: chi jumps from {1 + around[0]:.4g} to {1 + around[1]:.4g} at sigma_w = {found:.6g}, "
            f"with sigma_b = {b:g}; it is never 1"
        )
    return found


# ---- the singular values of a deep Jacobian --------------------------------------------------------------------------


@dataclass(frozen=True)
class JacobianMoments:
    """Moments of the squared singular values of an input-output Jacobian, found by `jacobian_moments`.

    Parameters
    ----------
    depth : int
        The number of layers.
    mean, second, variance : float
        E[s^2], E[s^4], and E[s^4] - E[s^2]^2, over all singular values s.
    edge : float
        The largest s^2 as the width goes to infinity.

    Examples
    --------
    >>> from gradcore import meanfield
    >>> meanfield.jacobian_moments("identity", 10, 1.0, weights="orthogonal").variance
    0.0
    """

    depth: int
    mean: float
    second: float
    variance: float
    edge: float


def jacobian_moments(
    activation: str | Activation, depth: int, sigma_w: float, sigma_b: float = 0.0, *, weights: str = "gaussian"
) -> JacobianMoments:
    r"""Find how the singular values of a deep network's Jacobian spread: whether all gradients change alike.

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
        A name that `MLP` takes, or a layer such as ``LeakyReLU(0.2)``.
    depth : int
        The number of layers L, at least 1.
    sigma_w, sigma_b : float
        Standard deviation of the weights times sqrt(n_in), and of the biases, at least 0. Orthogonal weights are
        sigma_w times an orthogonal matrix.
    weights : {"gaussian", "orthogonal"}
        How the weights are drawn.

    Returns
    -------
    JacobianMoments
        Mean, second moment, variance and edge of s^2.

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
    phi, L = float64_activation(activation), check_int("depth", depth, least=1)
    field = mean_field(phi, sigma_w, sigma_b)
    _, slope = value_and_slope(phi, math.sqrt(min(max(field.q, SMALLEST), LARGEST)) * Z)
    squares = slope**2
    mu1, mu2 = expectation(squares), expectation(squares**2)
    s1 = -1 if weights == "gaussian" else 0
    mean = _power(field.chi, L)
    excess = mu2 / mu1**2 - 1 if mu1 else 0.0  # for a linear phi 0, up to the rounding of the sums
    spread = L * ((excess if excess > SAME else 0.0) - s1) if mu1 else 0.0
    edge = _power(field.sigma_w**2, L) * _edge(squares, L, weights == "gaussian") if mean else 0.0
    square = mean * mean  # inf where it overflows, for which mean**2 would raise an error
    return JacobianMoments(L, mean, square * (1 + spread), square * spread if spread else 0.0, edge)


def _power(base: float, n: int) -> float:
    """Return base**n, inf where it overflows."""
    return safe_exp(n * math.log(base)) if base else 0.0


def _edge(squares: Array, L: int, gaussian: bool) -> float:
    """Return the largest squared singular value of the product for sigma_w = 1, given phi'^2 at Z.

    Along t the S-transform of phi'^2 is t (1 + y) / y at y = E[t phi'^2 / (1 - t phi'^2)]; that of the weights is
    1 / (1 + y) or 1.
    """
    from scipy.optimize import minimize_scalar

    top = float(squares.max())

    def log_inverse(log_t: float) -> float:
        t = math.exp(log_t)
        y = expectation(t * squares / (1 - t * squares))
        of_phi = log_t + math.log1p(y) - math.log(y)
        of_weights = -math.log1p(y) if gaussian else 0.0
        return math.log1p(y) - math.log(y) - L * (of_phi + of_weights)

    bounds = (-math.log(top) - math.log(1e4 * L), -math.log(top) - 1e-12)
    found = minimize_scalar(log_inverse, bounds=bounds, method="bounded", options={"xatol": 1e-12})
    return safe_exp(float(found.fun))


def fuss_catalan(depth: int, k: int) -> int:
    r"""Return a moment of the squared singular values of a product of wide Gaussian matrices.

    :math:`E[s^{2k}] = \binom{(L+1)k}{k} / (Lk + 1)` for L matrices with entries of variance 1/n: all moments of the
    linear network whose first two `jacobian_moments` returns.

    Parameters
    ----------
    depth : int
        The number of matrices L, at least 1. For L = 1 the moments are the Catalan numbers.
    k : int
        The order of the moment, at least 0.

    Returns
    -------
    int
        The moment.

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
