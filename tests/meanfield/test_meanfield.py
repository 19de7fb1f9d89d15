"""Mean-field forecasts: published values, closed forms, sampled networks, and the package's own backward passes."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.integrate
from conftest import LONG
from tools import Array

import gradcore
from gradcore import init, meanfield, spectral
from gradcore.meanfield.theory import Z, expectation, float64_activation, value_and_slope

ACTIVATIONS: dict[str, Any] = {
    "identity": gradcore.Identity(),
    "tanh": gradcore.Tanh(),
    "sigmoid": gradcore.Sigmoid(),
    "relu": gradcore.ReLU(),
    "leaky_relu": gradcore.LeakyReLU(0.3),
    "elu": gradcore.ELU(1.7),
    "selu": gradcore.SELU(),
    "gelu": gradcore.GELU(),
    "gelu, tanh": gradcore.GELU("tanh"),
    "softplus": gradcore.Softplus(2.0),
    "silu": gradcore.SiLU(),
}
each_activation = pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)

CELLS: dict[str, Callable[..., Any]] = {
    "RNN_TANH": gradcore.RNN,
    "RNN_RELU": lambda *sizes, **options: gradcore.RNN(*sizes, nonlinearity="relu", **options),
    "LSTM": gradcore.LSTM,
    "GRU": gradcore.GRU,
}


def random_layer(mode: str, H: int, gain: float, seed: int) -> Any:
    """Recurrent weights of standard deviation gain / sqrt(H), input weights of 1 / sqrt(I), no biases."""
    rng = np.random.default_rng(seed)
    layer = CELLS[mode](4, H, bias=False, dtype=np.float64)
    for name, value in layer.params.items():
        value[...] = rng.standard_normal(value.shape) * (gain if "hh" in name else 1) / np.sqrt(value.shape[1])
    return layer


def backward_from_the_end(layer: Any, x: Array) -> Any:
    y, tape = layer.forward(x)
    dy = np.zeros_like(y)
    dy[-1] = np.random.default_rng(0).standard_normal(y.shape[1:])
    layer.backward(tape, dy)
    return tape


# ---- expectations and fixed points -----------------------------------------------------------------------------------


@pytest.mark.parametrize("q", [1e-4, 1.0, 30.0, 1e6])
@each_activation
def test_expectations_against_adaptive_quadrature(activation: Any, q: float) -> None:
    phi = float64_activation(activation)

    def integrand(z: float) -> Array:
        y, slope = value_and_slope(phi, np.array([math.sqrt(q) * z]))
        density = math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
        return np.array([y[0] ** 2, slope[0] ** 2]) * density

    edges = [-12, -1, -0.03, -1e-3, 0, 1e-3, 0.03, 1, 12]
    want = sum(
        scipy.integrate.quad_vec(integrand, low, high, epsabs=1e-13, epsrel=1e-12, limit=500)[0]
        for low, high in itertools.pairwise(edges)
    )
    y, slope = value_and_slope(phi, math.sqrt(q) * Z)
    np.testing.assert_allclose([expectation(y**2), expectation(slope**2)], want, rtol=1e-10)


def test_moments_of_the_normal_distribution() -> None:
    for k, want in enumerate([1, 1, 3, 15, 105]):
        assert expectation(Z ** (2 * k)) == pytest.approx(want, rel=1e-13)
        assert expectation(Z ** (2 * k + 1)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("gain", "want"),
    [(1.1, 0.00507), (1.2, 0.01648), (1.5, 0.06522), (2, 0.15472), (3, 0.31025), (5, 0.53243), (10, 0.85644)],
)
def test_lyapunov_exponents_of_the_autonomous_tanh_network(gain: float, want: float) -> None:
    field = meanfield.mean_field("tanh", gain)
    assert field.rate == pytest.approx(want, abs=6e-6)
    assert field.depth_scale == pytest.approx(-1 / (2 * field.rate))
    assert (field.verdict == "explodes") == (field.rate > 0.01)
    assert field.correlation == pytest.approx(0, abs=1e-12)


def test_chaos_begins_at_a_gain_of_one() -> None:
    """Below, the state dies out and the rate is that of the weights, ln g; above, q = g - 1 and the rate 2/3 q^2.

    By the series of tanh, 1 / g^2 = 1 - 2 q + 17/3 q^2 and chi = g^2 (1 - 2 q + 7 q^2), to second order.
    """
    for above in (0.003, 0.01, 0.03):
        assert meanfield.mean_field("tanh", 1 + above).rate == pytest.approx(above**2 * 2 / 3, rel=4 * above)
        assert meanfield.mean_field("tanh", 1 - above).rate == pytest.approx(math.log(1 - above), rel=1e-9)


@each_activation
def test_the_fixed_point_is_one_and_is_where_iteration_leads(activation: Any) -> None:
    phi = float64_activation(activation)
    for sigma_w, sigma_b, drive in ((0.9, 0.3, 0.0), (1.2, 0.1, 0.5), (0.5, 0.0, 0.0)):
        field = meanfield.mean_field(activation, sigma_w, sigma_b, input_variance=drive)
        q = 1.0
        for _ in range(4000):
            q = min(sigma_w**2 * expectation(phi(math.sqrt(q) * Z) ** 2) + sigma_b**2 + drive, 1e30)
        assert field.q == pytest.approx(q if q < 1e29 else math.inf, rel=1e-8, abs=1e-25)


def test_a_variance_that_does_not_settle() -> None:
    field = meanfield.mean_field("relu", 2.0)
    assert (field.q, field.chi, field.verdict) == (math.inf, pytest.approx(2), "explodes")
    field = meanfield.mean_field("relu", 1.0, 0.5)
    assert (field.q, field.chi, field.verdict) == (pytest.approx(0.5), pytest.approx(0.5), "vanishes")
    field = meanfield.mean_field("tanh", 0.5)
    assert (field.q, field.chi) == (0.0, pytest.approx(0.25))
    assert meanfield.mean_field("tanh", 0.0).rate == -math.inf


@pytest.mark.parametrize(("sigma_w", "sigma_b"), [(2.0, 0.5), (1.6, 0.2), (3.0, 1.0)])
def test_correlation_against_a_double_integral(sigma_w: float, sigma_b: float) -> None:
    field = meanfield.mean_field("tanh", sigma_w, sigma_b)
    z, w = np.polynomial.hermite_e.hermegauss(120)
    w /= w.sum()

    def mapped(c: float) -> float:
        second = c * z[:, None] + math.sqrt(1 - c * c) * z
        product = np.tanh(math.sqrt(field.q) * z)[:, None] * np.tanh(math.sqrt(field.q) * second)
        return float((sigma_w**2 * (w @ product @ w) + sigma_b**2) / field.q)

    assert 0 < field.correlation < 1
    assert mapped(field.correlation) == pytest.approx(field.correlation, abs=1e-5)  # of 64 terms
    slope = (mapped(field.correlation + 1e-4) - mapped(field.correlation - 1e-4)) / 2e-4
    assert field.correlation_scale == pytest.approx(-1 / math.log(slope), rel=1e-3)


@pytest.mark.parametrize(
    ("variance", "want", "q"), [(0.05, 1.7610, 0.5700), (0.10, 1.9861, 0.8058), (0.30, 2.5051, 1.4612)]
)
def test_critical_line_of_tanh(variance: float, want: float, q: float) -> None:
    sigma_w = meanfield.critical("tanh", math.sqrt(variance))
    assert sigma_w**2 == pytest.approx(want, abs=5.1e-5)
    field = meanfield.mean_field("tanh", sigma_w, math.sqrt(variance))
    assert field.q == pytest.approx(q, abs=5.1e-5)
    assert (field.chi, field.verdict) == (pytest.approx(1, abs=1e-12), "stable")


def test_critical_points_known_in_closed_form() -> None:
    for activation, want in (
        ("relu", math.sqrt(2)),
        (gradcore.LeakyReLU(0.2), math.sqrt(2 / 1.04)),
        ("identity", 1.0),
        ("tanh", 1.0),
    ):
        assert meanfield.critical(activation) == pytest.approx(want, abs=1e-7)
    assert meanfield.critical("relu", 0.5) == pytest.approx(math.sqrt(2))
    assert meanfield.mean_field("relu", math.sqrt(2)).depth_scale == math.inf


def test_mean_field_refuses_what_it_cannot_answer() -> None:
    with pytest.raises(ValueError, match=r"activation: expected one of identity, .*, got 'cosine'"):
        meanfield.mean_field("cosine", 1.0)
    with pytest.raises(TypeError, match="activation: expected a name or an activation, got ufunc"):
        meanfield.mean_field(np.tanh, 1.0)
    with pytest.raises(ValueError, match=r"sigma_w: expected a number at least 0 .*, got -1"):
        meanfield.mean_field("tanh", -1)
    with pytest.raises(ValueError, match="input_variance: expected a number at least 0"):
        meanfield.mean_field("tanh", 1, input_variance=-1)
    with pytest.raises(ValueError, match=r"activation: chi jumps from 0\.58.* to 1\.17.* at sigma_w = 1\.533"):
        meanfield.critical("gelu")
    with pytest.raises(ValueError, match=r"activation: expected chi to cross 1 .* it is below 1"):
        meanfield.critical("sigmoid", sigma_b=1e9)


# ---- the singular values of a deep Jacobian --------------------------------------------------------------------------


def sampled_squares(activation: Any, L: int, sigma_w: float, orthogonal: bool, n: int, seed: int = 0) -> Array:
    """Squared singular values of the Jacobian of one random network at one input at the fixed point."""
    rng, phi = np.random.default_rng(seed), float64_activation(activation)
    q = meanfield.mean_field(activation, sigma_w).q
    jacobian, a = np.eye(n), math.sqrt(q) * rng.standard_normal(n)
    for _ in range(L):
        W = init.orthogonal_(np.empty((n, n)), rng=rng) if orthogonal else rng.standard_normal((n, n)) / math.sqrt(n)
        y, slope = value_and_slope(phi, a)
        a = sigma_w * W @ y
        jacobian = sigma_w * W @ (slope[:, None] * jacobian)
    return np.asarray(np.linalg.svd(jacobian, compute_uv=False) ** 2)


@pytest.mark.parametrize("weights", ["gaussian", "orthogonal"])
@pytest.mark.parametrize(
    ("activation", "L", "sigma_w"), [("identity", 4, 1.0), ("relu", 4, math.sqrt(2)), ("tanh", 3, 1.5)]
)
def test_moments_against_sampled_networks(activation: str, L: int, sigma_w: float, weights: str) -> None:
    want = meanfield.jacobian_moments(activation, L, sigma_w, weights=weights)
    orthogonal = weights == "orthogonal"
    squares = np.array([sampled_squares(activation, L, sigma_w, orthogonal, 300, seed) for seed in range(8)])
    assert squares.mean() == pytest.approx(want.mean, rel=0.08)
    assert np.mean(squares**2) == pytest.approx(want.second, rel=0.2)
    assert want.variance == pytest.approx(want.second - want.mean**2, abs=1e-9)
    assert squares.max(axis=1).mean() == pytest.approx(want.edge, rel=0.15)


def test_moments_in_closed_form() -> None:
    for L in (1, 3, 10, 50):
        linear = meanfield.jacobian_moments("identity", L, 1.0)
        assert (linear.mean, linear.second) == (pytest.approx(1), pytest.approx(L + 1))
        assert linear.second == pytest.approx(meanfield.fuss_catalan(L, 2))
        assert linear.edge == pytest.approx((L + 1) ** (L + 1) / L**L, rel=1e-9)
        isometry = meanfield.jacobian_moments("identity", L, 1.0, weights="orthogonal")
        assert isometry.variance == pytest.approx(0, abs=1e-9)
        assert isometry.edge == pytest.approx(1, rel=1e-9)
        relu = meanfield.jacobian_moments("relu", L, 1.0)
        assert (relu.mean, relu.variance) == (pytest.approx(0.5**L), pytest.approx(0.25**L * 2 * L))
        y = (1 - L + math.sqrt((L - 1) ** 2 + 2 * L)) / (2 * L)  # where the inverse of the moment series turns
        assert relu.edge == pytest.approx((1 + y) / y * (0.5 + y) ** L, rel=1e-9)
        relu = meanfield.jacobian_moments("relu", L, math.sqrt(2), weights="orthogonal")
        assert (relu.mean, relu.variance) == (pytest.approx(1), pytest.approx(L))
    assert meanfield.jacobian_moments("tanh", 3, 0.0).second == 0


def test_fuss_catalan_moments_against_a_sampled_product() -> None:
    squares = sampled_squares("identity", 2, 1.0, False, 800)
    for k in range(4):
        assert np.mean(squares**k) == pytest.approx(meanfield.fuss_catalan(2, k), rel=0.05)
    assert [meanfield.fuss_catalan(1, k) for k in range(6)] == [1, 1, 2, 5, 14, 42]
    with pytest.raises(ValueError, match="depth: expected an integer of at least 1, got 0"):
        meanfield.fuss_catalan(0, 2)
    with pytest.raises(ValueError, match="weights: expected 'gaussian' or 'orthogonal', got 'uniform'"):
        meanfield.jacobian_moments("tanh", 2, 1.0, weights="uniform")


# ---- feed-forward models ---------------------------------------------------------------------------------------------


def measured(model: Any, x: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Mean squares of every layer's output, and ln of the gradient's norm at every layer over that of dL/dy."""
    squares, a = [], x
    for layer in model.layers:
        a = layer(a)
        squares.append(float(np.mean(a.astype(np.float64) ** 2)))
    y, tape = model.forward(x)
    model.backward(tape, rng.standard_normal(y.shape).astype(y.dtype))
    return np.array(squares), np.log(tape.d_norm / tape.d_norm[-1])


@pytest.mark.parametrize("gain", [0.7, 1.0, 1.5] if LONG else [1.5])
@each_activation
def test_forecast_of_wide_networks(activation: Any, gain: float) -> None:
    """Layer by layer, against the mean of several networks: each alone scatters by some percent."""
    rng, n, depth, networks = np.random.default_rng(0), 384, 6, 8
    found_squares, found_norms = np.zeros((2, networks, 2 * depth))
    for k in range(networks):
        layers: list[Any] = []
        for _ in range(depth):
            layer = gradcore.Linear(n, n, dtype=np.float64, rng=rng)
            layer.params["weight"][...] = rng.standard_normal((n, n)) * gain / math.sqrt(n)
            layer.params["bias"][...] = 0.2 * rng.standard_normal(n)
            layers += [layer, copy.deepcopy(activation)]
        model = gradcore.Sequential(*layers)
        x = 0.8 * rng.standard_normal((16, n))
        told = meanfield.forecast(model, x)
        squares, log_norm = measured(model, x, rng)
        found_squares[k] = np.diff(np.log([0.64, *squares])) - np.diff(np.log([0.64, *(own.q for own in told.layers)]))
        found_norms[k] = np.diff(log_norm) - np.diff(told.log_norm)
    np.testing.assert_allclose(found_squares.mean(axis=0), 0, atol=0.1)
    np.testing.assert_allclose(found_norms.mean(axis=0), 0, atol=0.05)
    assert told.log_norm.shape == (2 * depth + 1,)
    assert told.layers[0].sigma_w[0] == pytest.approx(gain, rel=0.01)
    assert told.layers[0].sigma_b[0] == pytest.approx(0.2, rel=0.2)
    assert told.layers[1].sigma_w == ()


@pytest.mark.parametrize("activation", ["identity", "tanh"])
def test_old_initialization_keeps_a_third_per_layer(activation: str) -> None:
    """U(-1/sqrt(n), 1/sqrt(n)): n Var = 1/3 (Glorot and Bengio, 2010)."""
    rng = np.random.default_rng(0)
    model = gradcore.MLP([256] * 9, activation, rng=rng)
    for name, value in model.params.items():
        value[...] = rng.uniform(-1 / 16, 1 / 16, value.shape) if name.endswith("weight") else 0
    x = 0.1 * rng.standard_normal((64, 256)).astype(np.float32)
    told = meanfield.forecast(model, x)
    assert math.exp(2 * told.rate) == pytest.approx(1 / 3, rel=0.02)
    assert told.verdict == "vanishes"
    log_norm = measured(model, x, rng)[1]
    assert 2 * (log_norm[0] - log_norm[-2]) / 7 == pytest.approx(math.log(1 / 3), abs=0.05)


@pytest.mark.parametrize(
    ("how", "factor", "verdict"),
    [("kaiming_normal", 1.0, "stable"), ("lecun_normal", 0.5, "vanishes"), ("kaiming_uniform", 1.0, "stable")],
)
def test_thirty_layers_of_relu(how: str, factor: float, verdict: str) -> None:
    """With He's variance gradients stay; with 1/n, which is Xavier's for equal widths, they halve per layer."""
    rng = np.random.default_rng(1)
    model = gradcore.MLP([256] * 31, "relu", how, rng=rng)
    x = rng.standard_normal((64, 256)).astype(np.float32)
    told = meanfield.forecast(model)
    assert math.exp(2 * told.rate) == pytest.approx(factor, rel=0.01)
    assert told.verdict == verdict
    log_norm = measured(model, x, rng)[1]
    # One network scatters: the squared factor of each layer by sqrt(5 / n).
    assert log_norm[0] == pytest.approx(told.log_norm[0], abs=3 * math.sqrt(30 * 5 / 256) / 2)


def test_nested_models_other_widths_and_plain_layers() -> None:
    rng = np.random.default_rng(0)
    inner = gradcore.MLP([300, 600, 200], "tanh", "xavier_normal", dtype=np.float64, rng=rng)
    model = gradcore.Sequential(
        gradcore.Linear(100, 300, bias=False, dtype=np.float64, rng=rng), gradcore.ReLU(), inner
    )
    told = meanfield.forecast(model)
    assert [layer.name for layer in told.layers] == ["0", "1", "2.0", "2.1", "2.2"]
    x = rng.standard_normal((256, 100))
    y, tape = model.forward(x)
    model.backward(tape, rng.standard_normal(y.shape))
    assert told.layers[-1].q == pytest.approx(np.mean(y**2), rel=0.1)
    at = [0, 1, 2, 5]
    np.testing.assert_allclose(told.log_norm[at], np.log(tape.d_norm / tape.d_norm[-1]), atol=0.06)
    only = meanfield.forecast(gradcore.Linear(10, 20, rng=rng))
    assert only.rate == only.layers[0].rate == only.log_norm[0]
    twice = gradcore.Sequential(gradcore.Tanh(), gradcore.Tanh())  # not Gaussian in between
    z = rng.standard_normal((1000, 1000)).astype(np.float32)
    assert meanfield.forecast(twice, z).layers[1].q == pytest.approx(np.mean(np.tanh(np.tanh(z)) ** 2), rel=0.01)


N = 256


def normal_linear(rng: np.random.Generator, gain: float) -> Any:
    layer = gradcore.Linear(N, N, rng=rng)
    layer.params["weight"][...] = rng.standard_normal((N, N)) * gain / math.sqrt(N)
    layer.params["bias"][...] = 0
    return layer


def branch(rng: np.random.Generator, gain: float) -> list[Any]:
    return [normal_linear(rng, gain), gradcore.ReLU(), normal_linear(rng, gain)]


# Each makes one block of a deep stack; the last number is the factor on the gradient's norm from block to block, where
# there is a closed form: branches have chi = gain^4 / 2, and a norm divides by what the block before has made of 1.
STACKS: dict[str, tuple[Callable[[np.random.Generator], list[Any]], float | None]] = {
    "plain, twice the gain": (lambda rng: branch(rng, 2.0), math.sqrt(8)),
    "residual": (lambda rng: [gradcore.Residual(*branch(rng, 1.0))], math.sqrt(1.5)),
    "residual, scaled": (
        lambda rng: [gradcore.Residual(*branch(rng, 1.5), scale=0.2)],
        math.sqrt(1 + 0.04 * 1.5**4 / 2),
    ),
    "normalized": (lambda rng: [*branch(rng, 3.0), gradcore.RMSNorm(N)], math.sqrt((N - 1) / N)),
    "post-norm": (lambda rng: [gradcore.Residual(*branch(rng, 1.0)), gradcore.LayerNorm(N)], math.sqrt((N - 2) / N)),
    "pre-norm": (lambda rng: [gradcore.Residual(gradcore.LayerNorm(N), *branch(rng, 1.0))], None),
    "pre-norm, RMS": (lambda rng: [gradcore.Residual(gradcore.RMSNorm(N), *branch(rng, 1.5), scale=0.5)], None),
}


@pytest.mark.parametrize("name", STACKS)
def test_residual_and_normalized_stacks(name: str) -> None:
    """Twelve blocks, the mean of four networks: each alone scatters, by sqrt(5 / N) a layer where nothing passes by."""
    build, factor = STACKS[name]
    blocks, networks, rng = 12, 4, np.random.default_rng(0)
    found = []
    for _ in range(networks):
        model = gradcore.Sequential(*(layer for _ in range(blocks) for layer in build(rng)))
        x = rng.standard_normal((16, N)).astype(np.float32)
        told = meanfield.forecast(model, x)
        squares, log_norm = measured(model, x, rng)
        found.append([log_norm[0] - told.log_norm[0], math.log(squares[-1] / told.layers[-1].q)])
    assert len(told.layers) == len(model.layers)
    scatter = 3 * math.sqrt(2 * blocks * 5 / N / networks)  # of what is squared
    norm, square = np.abs(np.mean(found, axis=0))
    assert norm < scatter / 2
    assert square < scatter
    if factor is not None:
        per_block = len(model.layers) // blocks
        steps = np.diff(told.log_norm[::per_block])
        np.testing.assert_allclose(-steps[1:], math.log(factor), rtol=0, atol=0.02)  # the weights drawn


def test_pre_norm_grows_as_a_power_of_depth_and_not_exponentially() -> None:
    """Block l has variance 1 + l / 2 below it, and so a factor of 1 + 1 / (2 + l) on the squared norm."""
    rng = np.random.default_rng(0)
    model = gradcore.Sequential(*(gradcore.Residual(gradcore.RMSNorm(N, 0.0), *branch(rng, 1.0)) for _ in range(100)))
    told = meanfield.forecast(model)
    want = [1 + (N - 1) / N / (2 + l) for l in range(100)]
    np.testing.assert_allclose([layer.chi for layer in told.layers], want, rtol=0.01)
    assert told.log_norm[0] == pytest.approx(math.log(math.prod(want)) / 2, rel=0.05)


def test_blocks_that_the_theory_does_not_cover() -> None:
    bias = gradcore.LayerNorm(3)
    bias.params["bias"][...] = 1
    for layer, name in ((gradcore.BatchNorm(3), "BatchNorm"), (bias, "LayerNorm")):
        block = gradcore.Residual(gradcore.Tanh(), gradcore.Residual(layer))
        with pytest.raises(TypeError, match=rf"linear layer in the residual branch with the {name} at 1\.1\.0, "):
            meanfield.forecast(gradcore.Sequential(gradcore.Linear(3, 3), block))
    with pytest.raises(TypeError, match=r"model: expected linear layers, .*, got LastStep at 0"):
        meanfield.forecast(gradcore.Sequential(gradcore.LastStep()))
    alike = gradcore.Sequential(gradcore.Linear(3, 3, bias=False), gradcore.BatchNorm(3, 0.0))
    with pytest.raises(ValueError, match="model: expected an input of 1 with some variance, got none"):
        meanfield.forecast(alike, np.ones((5, 3)))
    with pytest.raises(ValueError, match="model: expected an input of 0 with some variance, got none"):
        meanfield.forecast(gradcore.Sequential(gradcore.RMSNorm(3, 0.0)), np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"x: expected shape \(\.\.\., 3\)"):
        meanfield.forecast(gradcore.Residual(gradcore.LayerNorm(3), gradcore.Linear(3, 3)), np.ones((2, 4)))
    alone = meanfield.forecast(gradcore.LayerNorm(10, bias=False))
    assert alone.layers[0].chi == pytest.approx(0.8, rel=1e-4)


BATCH_NORM = {  # the growth of the squared norm a layer, by Yang et al., 2019
    "relu": (gradcore.ReLU, math.pi / (math.pi - 1)),
    "identity": (gradcore.Identity, 1.0),
    "leaky_relu": (lambda: gradcore.LeakyReLU(0.3), (1 + 0.09) / (1 + 0.09 - 0.49 / math.pi)),
    "abs": (lambda: gradcore.LeakyReLU(-1.0), math.pi / (math.pi - 2)),
}


def normalized_by_batch(rng: np.random.Generator, gain: float, phi: Any, depth: int) -> Any:
    return gradcore.Sequential(
        *(layer for _ in range(depth) for layer in (normal_linear(rng, gain), gradcore.BatchNorm(N), phi()))
    )


@pytest.mark.parametrize("gain", [0.5, 2.0])
@pytest.mark.parametrize("name", BATCH_NORM)
def test_growth_under_batch_norm_is_that_of_the_activation(name: str, gain: float) -> None:
    """Whatever the weights and the input; eps is all that the scale changes."""
    phi, want = BATCH_NORM[name]
    model = normalized_by_batch(np.random.default_rng(0), gain, phi, 6)
    for layer in model.layers[1::3]:
        layer.eps = 0.0
    rng = np.random.default_rng(1)
    for x in (None, rng.standard_normal((100, N)), 5 + rng.standard_normal((100, N))):
        steps = np.diff(meanfield.forecast(model, x).log_norm[1::3])  # from BatchNorm to BatchNorm
        np.testing.assert_allclose(np.exp(-2 * steps[1:]), want, rtol=0.02)  # the weights drawn


@pytest.mark.parametrize(("name", "depth"), [("relu", 12), ("identity", 4), ("tanh", 4)])
def test_batch_norm_stacks(name: str, depth: int) -> None:
    """Forward and back, samples that begin with much in common; the mean of two networks.

    Without ReLU, samples come to lie in fewer directions from layer to layer, L / N of them, and variances scatter.
    """
    phi = {"tanh": gradcore.Tanh}.get(name) or BATCH_NORM[name][0]
    rng, B, found = np.random.default_rng(0), 256, []
    for _ in range(2):
        model = normalized_by_batch(rng, 1.5, phi, depth)
        for layer in model.layers[1::3]:
            layer.params["weight"] += 0.3 * rng.standard_normal(N).astype(np.float32)
            layer.params["bias"] += 0.3 * rng.standard_normal(N).astype(np.float32)
        x = (1 + 0.5 * rng.standard_normal((B, N))).astype(np.float32)
        told = meanfield.forecast(model, x)
        y, tape = model.forward(x)
        squares = [float(np.mean(its.kept[0] ** 2)) for its in tape.tapes[3::3]]  # what the linear layers read
        model.backward(tape, rng.standard_normal(y.shape).astype(y.dtype))
        found.append(
            [
                np.log(tape.d_norm / tape.d_norm[-1])[1::3] - told.log_norm[1::3],
                np.log([*squares, np.mean(y**2)]) - np.log([layer.q for layer in told.layers[2::3]]),
            ]
        )
    norms, q = np.mean(found, axis=0)
    np.testing.assert_allclose(norms, 0, atol=0.1)
    np.testing.assert_allclose(q, 0, atol=0.1)


def test_batch_norm_of_50_layers_lets_gradients_grow_by_thousands() -> None:
    """The first layer, whose input is not that of a ReLU, halves the squared norm; 49 multiply it by pi / (pi - 1)."""
    told = meanfield.forecast(normalized_by_batch(np.random.default_rng(0), math.sqrt(2), gradcore.ReLU, 50))
    assert told.verdict == "explodes"
    assert told.log_norm[0] == pytest.approx((49 * math.log(math.pi / (math.pi - 1)) - math.log(2)) / 2, abs=0.05)


PLAIN_BRANCHES: dict[str, Callable[[], list[Any]]] = {
    "tanh": lambda: [gradcore.Tanh()],
    "two activations": lambda: [gradcore.Tanh(), gradcore.ReLU()],
    "norm": lambda: [gradcore.LayerNorm(N), gradcore.GELU()],
    "a block within": lambda: [gradcore.RMSNorm(N), gradcore.Residual(gradcore.Sigmoid(), scale=2.0)],
}


@pytest.mark.parametrize("name", PLAIN_BRANCHES)
@pytest.mark.parametrize("scale", [1.0, -0.3])
def test_residual_branches_without_weights(name: str, scale: float) -> None:
    """A branch that is a function of each unit is no independent part of the sum."""
    rng, found = np.random.default_rng(0), []
    for _ in range(4):
        model = gradcore.Sequential(
            *(
                layer
                for _ in range(3)
                for layer in (normal_linear(rng, 1.4), gradcore.Residual(*PLAIN_BRANCHES[name](), scale=scale))
            )
        )
        x = rng.standard_normal((32, N)).astype(np.float32)
        told = meanfield.forecast(model, x)
        squares, log_norm = measured(model, x, rng)
        found.append([log_norm - told.log_norm, np.log([1, *squares]) - np.log([1, *(own.q for own in told.layers)])])
    norms, q = np.abs(np.mean(found, axis=0))
    assert norms.max() < 0.05
    assert q.max() < 0.1


def test_activations_that_follow_each_other_share_their_units() -> None:
    """A unit that one ReLU lets pass the next one lets pass, too."""
    told = meanfield.forecast(gradcore.Sequential(gradcore.Linear(8, 8, rng=0), gradcore.ReLU(), gradcore.ReLU()))
    assert [layer.chi for layer in told.layers[1:]] == [pytest.approx(0.5), pytest.approx(1.0)]
    # a linear function of a block: one that is 3 v, whose squares are 9 times those of v
    tripled = meanfield.forecast(gradcore.Residual(gradcore.Identity(), scale=2.0))
    assert (tripled.layers[0].q, tripled.layers[0].chi) == (pytest.approx(9.0), pytest.approx(9.0))


def test_forecast_refuses_what_it_cannot_answer() -> None:
    model = gradcore.MLP([4, 4, 4])
    with pytest.raises(ValueError, match="x: expected finite entries"):
        meanfield.forecast(model, np.array([1.0, 1.0, 1.0, np.nan]))
    with pytest.raises(ValueError, match=r"x: expected finite entries, at least one, got shape \(0, 4\)"):
        meanfield.forecast(model, np.zeros((0, 4)))
    for wrong in (np.ones((2, 5)), np.ones(()), np.ones(5)):
        with pytest.raises(ValueError, match=r"x: expected shape \(\.\.\., 4\), got "):
            meanfield.forecast(model, wrong)
    with pytest.raises(TypeError, match="x: expected real numbers, got complex128"):
        meanfield.forecast(model, np.ones(2) * 1j)
    with pytest.raises(TypeError, match=r"model: expected linear layers, .*, got LastStep at 1\.0"):
        meanfield.forecast(gradcore.Sequential(gradcore.Linear(4, 4), gradcore.Sequential(gradcore.LastStep())))
    with pytest.raises(TypeError, match=r"model: expected linear layers, .*, got list$"):
        meanfield.forecast([model])
    with pytest.raises(ValueError, match="model: expected at least one layer, got none"):
        meanfield.forecast(gradcore.Sequential())
    layer = gradcore.GRU(3, 4)
    with pytest.raises(ValueError, match="x: expected at least 1 sample and 2 steps, got B = 2, T = 1"):
        meanfield.forecast(layer, np.zeros((1, 2, 3), np.float32))
    with pytest.raises(ValueError, match="x: expected at least 1 sample and 2 steps, got B = 0, T = 5"):
        meanfield.forecast(layer, np.zeros((5, 0, 3), np.float32))
    with pytest.raises(ValueError, match="x: expected finite numbers, got NaN or infinite ones"):
        meanfield.forecast(layer, np.full((5, 1, 3), np.nan, np.float32))
    with pytest.raises(TypeError, match="x: expected float32, got float64"):
        meanfield.forecast(layer, np.zeros((5, 1, 3)))


class Skipping(gradcore.Sequential):
    """Not a chain: x goes past the first layer too."""

    def forward(self, x: Array, lengths: Any = None) -> tuple[Array, Any]:
        y, tape = super().forward(x, lengths=lengths)
        return x + y, tape


def test_a_model_that_need_not_be_a_chain_is_not_judged_as_one() -> None:
    model = gradcore.Sequential(gradcore.Linear(4, 4), Skipping(gradcore.Linear(4, 4), gradcore.Tanh()))
    with pytest.raises(TypeError, match="model: Skipping has a forward of its own, so it need not be a chain"):
        meanfield.forecast(model)
    with pytest.raises(TypeError, match="model: Skipping has a forward of its own, so it need not be a chain"):
        meanfield.forecast(Skipping(gradcore.Linear(3, 3), gradcore.GRU(3, 3)), np.zeros((5, 1, 3), np.float32))


def test_the_forecast_of_a_model_is_that_of_its_recurrent_layer() -> None:
    layer = gradcore.GRU(4, 8, rng=0)
    model = gradcore.Sequential(gradcore.Linear(3, 4, rng=1), gradcore.Sequential(gradcore.Tanh(), layer))
    x = np.random.default_rng(0).standard_normal((20, 3, 3)).astype(np.float32)
    driven = model.layers[1].layers[0](model.layers[0](x))
    assert meanfield.forecast(model, x) == meanfield.forecast(layer, driven)
    assert meanfield.forecast(model) == meanfield.forecast(layer)
    assert meanfield.suggest_gain(model, x, -0.3) == meanfield.suggest_gain(layer, driven, -0.3)
    assert meanfield.suggest_bias(model, 20) == meanfield.suggest_bias(layer, 20)
    several = gradcore.Sequential(gradcore.RNN(3, 4), gradcore.LSTM(4, 4))
    choices = r"model\.layers\[0\] \(RNN\), model\.layers\[1\] \(LSTM\)$"
    with pytest.raises(ValueError, match=f"^model: expected one recurrent layer, .*{choices}"):
        meanfield.forecast(several, x)
    with pytest.raises(ValueError, match=f"^layer: expected one recurrent layer, .*{choices}"):
        meanfield.suggest_gain(several, x)


def test_forecasts_are_printed_in_a_few_short_lines() -> None:
    layer = gradcore.RNN(3, 4, 2, bidirectional=True, rng=0)
    forecast = meanfield.forecast(layer, np.ones((5, 2, 3), np.float32))
    lines = str(forecast).splitlines()
    assert [line.partition(":")[0] for line in lines[1:]] == ["l0", "l0_reverse", "l1", "l1_reverse"]
    assert lines[0].startswith(forecast.verdict)
    assert max(map(len, lines)) < 100
    assert len(str(meanfield.mean_field("tanh", 1.5))) < 120


# ---- recurrent layers ------------------------------------------------------------------------------------------------

H = 256
# Above the largest error of three seeds. One ReLU network scatters by about 0.04 itself.
TOLERANCE = {"RNN_TANH": 0.025, "RNN_RELU": 0.15, "LSTM": 0.025, "GRU": 0.025}


@pytest.mark.parametrize(("seed", "gain"), [*enumerate([0.5, 1.0, 2.0, 3.0, 4.0])] if LONG else [(0, 0.5), (3, 3.0)])
@pytest.mark.parametrize("mode", CELLS)
def test_forecast_of_recurrent_layers(mode: str, seed: int, gain: float) -> None:
    x = np.random.default_rng(1).standard_normal((100, 8, 4))
    layer = random_layer(mode, H, gain, seed)
    told = meanfield.forecast(layer, x)
    assert told.rate == pytest.approx(spectral.predict_growth(layer, x, horizon=100).rate, abs=TOLERANCE[mode])
    measured_rate = spectral.measure_growth(backward_from_the_end(layer, x))
    assert told.rate == pytest.approx(measured_rate, abs=TOLERANCE[mode])
    if abs(measured_rate) > 0.03:
        assert told.verdict == ("explodes" if measured_rate > 0 else "vanishes")


BESIDE: dict[str, dict[str, Any]] = {
    "layer norm": {"layer_norm": True},
    "zoneout": {"zoneout": 0.3},
    "both": {"layer_norm": True, "zoneout": 0.2},
}


@pytest.mark.parametrize("gain", [0.5, 1.0, 2.0] if LONG else [2.0])
@pytest.mark.parametrize("options", BESIDE)
@pytest.mark.parametrize("mode", CELLS)
def test_forecast_of_layer_norm_and_zoneout(mode: str, options: str, gain: float) -> None:
    rng, x = np.random.default_rng(0), np.random.default_rng(1).standard_normal((100, 8, 4))
    layer = CELLS[mode](4, H, dtype=np.float64, rng=3, **BESIDE[options])
    weight = layer.params["weight_hh_l0"]
    weight[...] = rng.standard_normal(weight.shape) * gain / math.sqrt(H)
    for name, factor in (("norm_ih_weight_l0", 0.5), ("norm_hh_weight_l0", gain)):
        if name in layer.params:
            layer.params[name] *= factor
    told = meanfield.forecast(layer, x)
    scatter = 0.15 if mode == "RNN_RELU" else 0.04  # three times that of such layers
    assert told.rate == pytest.approx(spectral.predict_growth(layer, x, horizon=100).rate, abs=scatter)


@pytest.mark.parametrize("gain", [1.5, 2.0, 3.0])
def test_followed_units_agree_with_the_closed_form(gain: float) -> None:
    layer = random_layer("RNN_TANH", H, gain, 0)
    layer.params["weight_hh_l0"] *= gain / math.sqrt(np.mean(layer.params["weight_hh_l0"] ** 2) * H)
    field = meanfield.mean_field("tanh", gain, input_variance=0.25)
    layer.params["weight_ih_l0"][...] = 0.25  # four inputs of mean square 1, with equal rows
    told = meanfield.forecast(layer)
    assert told.rate == pytest.approx(field.rate, abs=0.01)
    assert told.layers[0].q == pytest.approx((field.q - 0.25) / gain**2, rel=0.03)
    assert told.layers[0].sigma_w == (pytest.approx(gain),)


@pytest.mark.parametrize("mode", ["LSTM", "GRU"])
def test_forecast_with_biases_that_keep_the_state(mode: str) -> None:
    x = np.random.default_rng(1).standard_normal((100, 8, 4))
    layer = init.chrono_(
        CELLS[mode](4, H, dtype=np.float64, rng=np.random.default_rng(3)), 100, rng=np.random.default_rng(0)
    )
    told = meanfield.forecast(layer, x)
    assert told.rate == pytest.approx(spectral.predict_growth(layer, x, horizon=100).rate, abs=0.01)
    assert -0.05 < told.rate < 0


@pytest.mark.parametrize("mode", CELLS)
def test_forecast_of_layers_and_directions(mode: str) -> None:
    x = np.random.default_rng(1).standard_normal((8, 40, 4)).astype(np.float32)
    layer = CELLS[mode](4, H, 2, bidirectional=True, batch_first=True, rng=np.random.default_rng(5))
    params = layer.flat_params.copy()
    told = meanfield.forecast(layer, x)
    assert [field.name for field in told.layers] == ["l0", "l0_reverse", "l1", "l1_reverse"]
    want = spectral.predict_growth(layer, x, horizon=40)
    for field, growth in zip(told.layers, want.layers, strict=True):
        assert field.rate == pytest.approx(growth.rate, abs=0.12)
    assert told.rate == max(field.rate for field in told.layers)
    assert len(told.layers[0].sigma_w) == len(layer.params["weight_hh_l0"]) // H
    np.testing.assert_array_equal(layer.flat_params, params)


def test_a_forecast_is_the_same_each_time() -> None:
    layer, x = gradcore.LSTM(4, 8, rng=np.random.default_rng(0)), np.ones((5, 2, 4), np.float32)
    assert meanfield.forecast(layer, x) == meanfield.forecast(layer, x)


def test_gradients_that_end_or_overflow() -> None:
    layer = random_layer("RNN_TANH", 16, 0.0, 0)
    assert meanfield.forecast(layer).rate == -math.inf
    assert meanfield.forecast(layer).verdict == "vanishes"
    layer = random_layer("RNN_RELU", 64, 1e6, 0)
    assert meanfield.forecast(layer).rate == pytest.approx(math.log(1e6) - math.log(2) / 2, abs=0.2)


# ---- what to change --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [-0.1, 0.0, 0.1])
@pytest.mark.parametrize("mode", CELLS)
def test_suggested_gain_gives_the_rate(mode: str, target: float) -> None:
    x = np.random.default_rng(1).standard_normal((60, 4, 4))
    layer = random_layer(mode, 48, 1.0, 0)
    params = layer.flat_params.copy()
    factor = meanfield.suggest_gain(layer, x, target)
    assert type(factor) is float
    np.testing.assert_array_equal(layer.flat_params, params)
    layer.params["weight_hh_l0"] *= factor
    assert spectral.predict_growth(layer, x, horizon=60).rate == pytest.approx(target, abs=0.002)


@pytest.mark.parametrize("mode", CELLS)
def test_suggested_gain_under_layer_norm_is_that_of_the_norm(mode: str) -> None:
    x = np.random.default_rng(1).standard_normal((40, 8, 4))
    layer = CELLS[mode](4, 32, dtype=np.float64, rng=0, layer_norm=True)
    factor = meanfield.suggest_gain(layer, x, -0.2)
    layer.params["norm_hh_weight_l0"] *= factor
    jump = 5e-3 if mode == "RNN_RELU" else 1e-4  # of the rate, where a unit turns off
    assert spectral.predict_growth(layer, x, horizon=40).rate == pytest.approx(-0.2, abs=jump)


def test_suggested_gain_of_a_linear_layer_in_closed_form() -> None:
    layer = gradcore.RNN(1, 3, nonlinearity="relu", batch_first=True)
    layer.flat_params.fill(0.1)
    layer.params["weight_hh_l0"][...] = 0.5 * np.eye(3)
    x = np.ones((2, 30, 1), np.float32)
    assert meanfield.suggest_gain(layer, x) == pytest.approx(2, rel=1e-3)
    assert meanfield.suggest_gain(layer, x, math.log(0.5)) == pytest.approx(1, rel=1e-3)
    assert meanfield.suggest_gain(layer, x, math.log(0.1)) == pytest.approx(0.2, rel=1e-3)


def test_suggested_gain_refuses_what_it_cannot_answer() -> None:
    layer = random_layer("RNN_TANH", 16, 1.0, 0)
    x = np.random.default_rng(0).standard_normal((20, 2, 4))
    with pytest.raises(
        ValueError, match="target: no factor from 1/64 to 64 brings the rate to 50; the rates found are"
    ):
        meanfield.suggest_gain(layer, x, 50.0)
    with pytest.raises(ValueError, match="target: expected a finite number, got inf"):
        meanfield.suggest_gain(layer, x, math.inf)
    with pytest.raises(ValueError, match="x: expected shape"):
        meanfield.suggest_gain(layer, x[0])
    with pytest.raises(TypeError, match="layer: expected an RNN, LSTM or GRU, or a model with one, got Linear"):
        meanfield.suggest_gain(gradcore.Linear(3, 3), x)


@pytest.mark.parametrize("mode", ["LSTM", "GRU"])
@pytest.mark.parametrize("T", [10, 100, 1000])
def test_suggested_bias_keeps_1_over_e_over_the_horizon(mode: str, T: int) -> None:
    units = 2
    layer = CELLS[mode](1, units, dtype=np.float64)
    layer.flat_params.fill(0)
    layer.params["bias_ih_l0"][units : 2 * units] = meanfield.suggest_bias(layer, T)
    tape = layer.forward(np.zeros((1, 1, 1)))[1]
    kept = spectral.jacobian(layer, tape, 0)[-units:, -units:]  # of the cell, or of h
    want = (1 - 1 / T) ** T
    np.testing.assert_allclose(np.linalg.matrix_power(kept, T), want * np.eye(units), rtol=1e-9)
    assert want == pytest.approx(0.366 if T == 100 else math.exp(-1), abs=0.02 if T == 10 else 1e-3)
    assert meanfield.suggest_bias(mode.lower(), T) == math.log(T - 1)


def test_suggested_bias_refuses_what_it_cannot_answer() -> None:
    with pytest.raises(TypeError, match=r"layer: expected an LSTM or GRU, .*, got RNN"):
        meanfield.suggest_bias(gradcore.RNN(1, 2), 10)
    with pytest.raises(TypeError, match=r"layer: expected an LSTM or GRU, .*, got 'rnn'"):
        meanfield.suggest_bias("rnn", 10)
    with pytest.raises(ValueError, match="layer: expected a layer with biases"):
        meanfield.suggest_bias(gradcore.GRU(1, 2, bias=False), 10)
    for horizon in (1, 0.5, math.nan, math.inf):
        with pytest.raises(ValueError, match="horizon: expected a"):
            meanfield.suggest_bias("gru", horizon)


# ---- learning a linear map -------------------------------------------------------------------------------------------


def test_each_mode_of_a_deep_linear_network_is_learnt_along_its_own_sigmoid() -> None:
    """Two layers and balanced weights: a' = a (s - a), whence s / (1 + (s / a_0 - 1) e^(-s t)) (Saxe et al., 2014).

    With the loss the mean over 4 entries of (a - s)^2, time is the number of steps by the learning rate.
    """
    s, a, lr = np.array([3.0, 1.0]), np.array([0.01, 0.01]), 2e-3
    layers = [gradcore.Linear(2, 2, bias=False, dtype=np.float64) for _ in range(2)]
    model = gradcore.Sequential(*layers)
    for layer in layers:
        layer.params["weight"][...] = np.diag(np.sqrt(a))
    optimizer, x, found = gradcore.optim.SGD(model, lr=lr), np.eye(2), []
    for step in range(4000):
        y, tape = model.forward(x)
        if step % 400 == 0:
            found.append(np.diagonal(y))
        model.zero_grad()
        model.backward(tape, gradcore.losses.mse(y, np.diag(s))[1])
        optimizer.step()
    t = lr * 400 * np.arange(len(found))[:, None]
    np.testing.assert_allclose(found, s / (1 + (s / a - 1) * np.exp(-s * t)), rtol=0.02)
    assert found[3][0] > 0.2 * s[0]
    assert found[3][1] < 0.2 * s[1]  # the stronger mode first


@pytest.mark.parametrize("sigma_w", [1e30, 1e60])
def test_moments_that_overflow_are_infinite(sigma_w: float) -> None:
    moments = meanfield.jacobian_moments("tanh", 5, sigma_w)
    assert moments.second == moments.variance == math.inf
    alike = meanfield.jacobian_moments("identity", 5, sigma_w, weights="orthogonal")  # all singular values are one
    assert alike.second == math.inf
    assert alike.variance == 0
