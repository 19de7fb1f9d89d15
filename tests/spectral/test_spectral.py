"""Forecasts of growth: pieces against SciPy, finite differences and closed forms, the whole against backward passes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import digamma, polygamma
from tools import Array, recurrent_params, relative_error

import gradcore
from gradcore import _kernels, reference, spectral
from gradcore.spectral.growth import _carried_back
from gradcore.spectral.lyapunov import _exponents, _finite_steps
from gradcore.spectral.trajectory import Trajectory, norm_bounds

pytestmark = pytest.mark.kernels

MODES = ["RNN_TANH", "RNN_RELU", "LSTM", "GRU"]
CELLS: dict[str, Callable[..., Any]] = {
    "RNN_TANH": gradcore.RNN,
    "RNN_RELU": lambda *sizes, **options: gradcore.RNN(*sizes, nonlinearity="relu", **options),
    "LSTM": gradcore.LSTM,
    "GRU": gradcore.GRU,
}


def layer_and_tape(
    mode: str, T: int, B: int, I: int, H: int, *, num_layers: int = 1, bidirectional: bool = False, seed: int = 0
) -> tuple[Any, Any, Array, reference.RecurrentTape]:
    """A float64 layer, its tape for a random x, x, and the twin's tape."""
    params = recurrent_params(mode, I, H, num_layers=num_layers, bidirectional=bidirectional, seed=seed)
    layer = CELLS[mode](I, H, num_layers, bidirectional=bidirectional, dtype=np.float64)
    layer.load_state_dict(params)
    x = np.random.default_rng(seed + 1).standard_normal((T, B, I))
    return layer, layer.forward(x)[1], x, reference.recurrent_forward(mode, params, x)[2]


def linear_layer(W: Any, *, dtype: Any = np.float64) -> Any:
    """h_t = W h_{t-1} + 1 x_t for W and x that keep h positive."""
    W = np.asarray(W)
    layer = gradcore.RNN(1, len(W), nonlinearity="relu", bias=False, dtype=dtype)
    layer.params["weight_hh_l0"][...] = W
    layer.params["weight_ih_l0"][...] = 1
    return layer


def random_layer(mode: str, H: int, gain: float, *, dtype: Any = np.float64, seed: int = 0) -> Any:
    """Recurrent weights of standard deviation gain / sqrt(H), input weights of 1 / sqrt(I), no biases."""
    rng = np.random.default_rng(seed)
    layer = CELLS[mode](4, H, bias=False, dtype=dtype)
    for name, value in layer.params.items():
        value[...] = rng.standard_normal(value.shape) * (gain if "hh" in name else 1) / np.sqrt(value.shape[1])
    return layer


def backward_from_the_end(layer: Any, x: Array, seed: int = 0) -> Any:
    """The tape after a backward pass from a random gradient at each direction's last step."""
    y, tape = layer.forward(x)
    dy = np.zeros_like(y)
    last = np.random.default_rng(seed).standard_normal(y.shape[1:])
    dy[-1, :, : layer.hidden_size] = last[:, : layer.hidden_size]
    dy[0, :, layer.hidden_size :] = last[:, layer.hidden_size :]
    layer.backward(tape, dy)
    return tape


# ---- matrices --------------------------------------------------------------------------------------------------------


@given(n=st.integers(1, 12), seed=st.integers(0, 2**32 - 1))
def test_radius_norm_and_departure_against_scipy(n: int, seed: int) -> None:
    W = np.random.default_rng(seed).standard_normal((n, n))
    eigenvalues = scipy.linalg.eigvals(W)
    want = [
        np.abs(eigenvalues).max(),
        scipy.linalg.svdvals(W)[0],
        math.sqrt(max(np.sum(W**2) - np.sum(np.abs(eigenvalues) ** 2), 0.0)),
    ]
    functions = (spectral.spectral_radius, spectral.spectral_norm, spectral.henrici)
    assert [f(W) for f in functions] == pytest.approx(want, rel=1e-9, abs=1e-6)
    for scale in (2.0**-600, 2.0**600):
        got = [f(scale * W) / scale for f in functions]
        assert got == pytest.approx([f(W) for f in functions], rel=1e-9, abs=1e-12)


def test_departure_of_normal_matrices_is_zero() -> None:
    rng = np.random.default_rng(0)
    Q = np.linalg.qr(rng.standard_normal((9, 9)))[0]
    for W in (Q, Q @ np.diag(rng.standard_normal(9)) @ Q.T, Q - Q.T, np.zeros((3, 3))):
        assert spectral.henrici(W) < 1e-14
    assert spectral.spectral_radius(Q) == pytest.approx(1)
    assert spectral.spectral_norm(Q) == pytest.approx(1)


def test_sizes_and_dtypes_of_matrices() -> None:
    f: Callable[[Any], float]
    for f in (spectral.spectral_radius, spectral.spectral_norm, spectral.henrici):
        assert f(np.zeros((0, 0))) == 0.0
        assert type(f(np.eye(2, dtype=np.float32))) is float
        assert f([[3, 0], [0, 3]]) == pytest.approx(0 if f is spectral.henrici else 3)
        with pytest.raises(ValueError, match=r"W: expected shape .*, got \(2,\)"):
            f(np.zeros(2))
        with pytest.raises(ValueError, match="W: expected finite numbers, got 2 of 4 entries NaN or infinite"):
            f(np.array([[np.nan, 1], [np.inf, 1]]))
        with pytest.raises(TypeError, match="W: expected real numbers, got complex128"):
            f(np.eye(2) * 1j)
    for f in (spectral.spectral_radius, spectral.henrici):
        with pytest.raises(ValueError, match=r"W: expected shape \(n, n\), got \(2, 3\)"):
            f(np.zeros((2, 3)))
    assert spectral.spectral_norm(np.ones((2, 3))) == pytest.approx(math.sqrt(6))


# ---- the Jacobian of one step ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_jacobians_against_differences_of_the_twin(mode: str, bidirectional: bool) -> None:
    layer, tape, _, twin = layer_and_tape(mode, 4, 2, 3, 5, num_layers=2, bidirectional=bidirectional)
    for index in range(len(twin.h)):
        want = reference.step_jacobians(twin, index, 1)
        walk = [3, 2, 1, 0] if bidirectional and index % 2 else [0, 1, 2, 3]
        for J, t in zip(want, walk, strict=True):
            got = spectral.jacobian(layer, tape, t, 1, index=index)
            assert got.dtype == np.float64
            np.testing.assert_allclose(got, J, rtol=0, atol=1e-9)


@pytest.mark.parametrize("mode", MODES)
def test_jacobian_against_differences_of_the_layer(mode: str) -> None:
    H, t, b, step = 6, 5, 2, 1e-6
    layer, tape, x, _ = layer_and_tape(mode, 8, 3, 2, H)
    before = layer.forward(x[:t])[1].state
    parts = [part[:, b : b + 1] for part in (before if mode == "LSTM" else [before])]
    n = H * len(parts)
    moves = step * np.concatenate([np.eye(n), -np.eye(n)])
    moved = [part + moves[None, :, k * H : (k + 1) * H] for k, part in enumerate(parts)]
    after = layer(np.repeat(x[t : t + 1, b : b + 1], 2 * n, axis=1), tuple(moved) if mode == "LSTM" else moved[0])[1]
    out = np.concatenate([part[0] for part in after], axis=1) if mode == "LSTM" else after[0]
    np.testing.assert_allclose(
        spectral.jacobian(layer, tape, t, b), (out[:n] - out[n:]).T / (2 * step), rtol=0, atol=1e-7
    )


@pytest.mark.parametrize("mode", MODES)
def test_jacobian_of_a_float32_layer_and_with_lengths(mode: str) -> None:
    layer, tape, x, _ = layer_and_tape(mode, 6, 3, 2, 5)
    single = CELLS[mode](2, 5)
    single.load_state_dict({name: value.astype(np.float32) for name, value in layer.params.items()})
    _, short = single.forward(x.astype(np.float32), lengths=[2, 6, 4])
    for b, t in ((0, 1), (1, 5), (2, 3)):
        np.testing.assert_allclose(
            spectral.jacobian(single, short, t, b), spectral.jacobian(layer, tape, t, b), rtol=0, atol=1e-5
        )
    with pytest.raises(IndexError, match="sequence 0 has ended"):
        spectral.jacobian(single, short, 2, 0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("H", [1, 5, 16, 37])
@pytest.mark.parametrize("mode", MODES)
def test_products_along_steps_are_those_with_their_matrices(mode: str, H: int, dtype: Any) -> None:
    T, B, m = 5, 3, 4
    layer = random_layer(mode, H, 1.5, dtype=dtype)
    x = np.random.default_rng(0).standard_normal((T, B, 4)).astype(dtype)
    trajectory = Trajectory.whole(layer, layer.forward(x)[1], 0, T, B)
    dense = np.stack([trajectory.dense(t) for t in range(T)])
    v = np.random.default_rng(1).standard_normal((B, m, dense.shape[-1]))
    factors = trajectory.factors(1, 4)
    for transposed in (False, True):
        want, got, scaled = v.copy(), v.copy(), v.copy()
        steps = factors[::-1].copy() if transposed else factors
        for J in dense[3:0:-1] if transposed else dense[1:4]:
            want = want @ (J if transposed else J.swapaxes(1, 2))
        trajectory.carry(got, steps, transposed=transposed)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-13 * np.abs(want).max())
        log_norm = np.empty((3, B, m))
        trajectory.carry(scaled, steps, transposed=transposed, log_norm=log_norm)
        with np.errstate(divide="ignore"):
            np.testing.assert_allclose(log_norm.sum(axis=0), np.log(np.linalg.norm(want, axis=2)), atol=1e-9)
        norms = np.linalg.norm(scaled, axis=2)
        np.testing.assert_allclose(norms, norms > 0, atol=1e-14)
    weight_norm = spectral.spectral_norm(layer.params["weight_hh_l0"])
    bounds = norm_bounds(trajectory, factors, weight_norm)
    assert (np.linalg.norm(dense[1:4], 2, axis=(2, 3)) <= bounds * (1 + 1e-12)).all()


@pytest.mark.parametrize("mode", MODES)
def test_products_have_the_same_bits_for_any_number_of_threads(mode: str) -> None:
    layer = random_layer(mode, 70, 1.0)
    x = np.random.default_rng(0).standard_normal((6, 5, 4))
    trajectory = Trajectory.whole(layer, layer.forward(x)[1], 0, 6, 5)
    v = np.random.default_rng(1).standard_normal((5, 9, trajectory.state_size))
    before, found = gradcore.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 8):
            gradcore.set_num_threads(threads)
            for transposed in (False, True):
                carried = v.copy()
                trajectory.carry(carried, trajectory.factors(0, 6), transposed=transposed)
                found.append(carried)
    finally:
        gradcore.set_num_threads(before)
    for i in range(2, len(found)):
        np.testing.assert_array_equal(found[i], found[i % 2])


@pytest.mark.parametrize("orthonormal", [True, False])
def test_separation_has_the_same_bits_for_any_number_of_threads(orthonormal: bool) -> None:
    v = np.random.default_rng(0).standard_normal((5, 64, 70))  # more work than one thread keeps to itself
    before, found = gradcore.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 8):
            gradcore.set_num_threads(threads)
            separated = v.copy()
            found.append((separated, _kernels.jacobian_separate(separated, orthonormal)))
    finally:
        gradcore.set_num_threads(before)
    for rows, logs in found[1:]:
        np.testing.assert_array_equal(rows, found[0][0])
        np.testing.assert_array_equal(logs, found[0][1])


def test_jacobian_refuses_what_it_cannot_answer() -> None:
    layer, tape, x, _ = layer_and_tape("GRU", 4, 2, 3, 5)
    for t, b, index in ((4, 0, 0), (-1, 0, 0), (0, 2, 0), (0, 0, 1), (0, 0, -1)):
        with pytest.raises(IndexError, match="expected 0 <= "):
            spectral.jacobian(layer, tape, t, b, index=index)
    other = gradcore.GRU(3, 5, dtype=np.float64)
    with pytest.raises(ValueError, match="tape: expected a tape from this layer's forward"):
        spectral.jacobian(other, tape, 0)
    with pytest.raises(TypeError, match="layer: expected an RNN, LSTM or GRU, or a model with one, got ndarray"):
        spectral.jacobian(x, tape, 0)


# ---- Lyapunov exponents ----------------------------------------------------------------------------------------------


def pascanu() -> tuple[Any, Array, Array]:
    """Pascanu's setting at a fixed point of radius-0 weights: the layer, the state there, and x that keeps it there."""
    layer = gradcore.RNN(2, 2, dtype=np.float64)
    W, point = np.array([[8.0, 8.0], [-8.0, -8.0]]), np.array([0.0, math.atanh(0.5)])
    layer.flat_params.fill(0)
    layer.params["weight_hh_l0"][...] = W
    layer.params["weight_ih_l0"][...] = np.eye(2)
    layer.params["bias_hh_l0"][...] = point - W @ np.tanh(point)
    x = np.zeros((30, 1, 2))
    x[0] = W @ np.tanh(point)  # from h = 0 to the point at once
    return layer, np.tanh(point).reshape(1, 1, 2), x


def test_radius_zero_explodes() -> None:
    layer, state, x = pascanu()
    W = layer.params["weight_hh_l0"]
    assert spectral.spectral_radius(W) < 1e-6
    assert spectral.spectral_norm(W) == pytest.approx(16)
    top = spectral.lyapunov_spectrum(layer, np.zeros_like(x), state, k=1, transient=2)
    assert top == pytest.approx([math.log(2)], abs=1e-6)
    forecast = spectral.predict_growth(layer, x, horizon=29)
    assert forecast.verdict == "explodes"
    assert forecast.rate == pytest.approx(math.log(2), abs=0.02)
    assert forecast.upper_bound == pytest.approx(math.log(16))
    holds = {(c.name.split()[1], c.kind): c.holds for c in forecast.conditions}
    assert holds == {
        ("norm", "necessary"): True,
        ("norm", "sufficient"): False,
        ("radius", "asymptotic"): False,
        ("along", "asymptotic"): True,
    }
    assert spectral.measure_growth(backward_from_the_end(layer, x)) == pytest.approx(math.log(2), abs=0.02)


def test_exponents_of_a_linear_network_are_logs_of_eigenvalues() -> None:
    W = np.array([[0.9, 0.0, 0.0], [0.3, 0.5, 0.1], [0.2, 0.1, 0.25]])
    x = np.ones((150, 2, 1))
    want = np.sort(np.log(np.abs(np.linalg.eigvals(W))))[::-1]
    np.testing.assert_allclose(spectral.lyapunov_spectrum(linear_layer(W), x, transient=100), want, atol=1e-9)
    assert spectral.predict_growth(linear_layer(W), x, horizon=149).rate == pytest.approx(want[0], abs=1e-3)


def test_exponents_of_a_network_at_rest_are_those_of_its_linear_part() -> None:
    """tanh'(0) = 1, so that J = W at every step; pairs of complex eigenvalues share an exponent."""
    T, n = 1500, 6
    layer = gradcore.RNN(1, n, bias=False, dtype=np.float64)
    W = np.random.default_rng(1).standard_normal((n, n)) / math.sqrt(n)
    layer.params["weight_hh_l0"][...] = W
    eigenvalues = np.linalg.eigvals(W)
    assert np.iscomplex(eigenvalues).any()
    got = spectral.lyapunov_spectrum(layer, np.zeros((T, 1, 1)), transient=500)
    np.testing.assert_allclose(got, np.sort(np.log(np.abs(eigenvalues)))[::-1], rtol=0, atol=0.003)


def multiply_by(matrices: Array) -> Callable[[Array, int, int], None]:
    """What `_exponents` wants, for matrices (T, B, n, n)."""

    def carry(v: Array, first: int, end: int) -> None:
        for M in matrices[first:end]:
            v[...] = v @ M.swapaxes(1, 2)

    return carry


@pytest.mark.parametrize(
    ("n", "top", "bottom"), [(10, -0.051660, -1.786474), (32, -0.015788, -2.368049), (100, -0.005017, -2.937767)]
)
def test_exponents_of_products_of_gaussian_matrices(n: int, top: float, bottom: float) -> None:
    T, B = 400, 4
    rng = np.random.default_rng(0)
    q = np.linalg.qr(rng.standard_normal((B, n, n)))[0]
    M = rng.standard_normal((T, B, n, n)) / math.sqrt(n)
    got = _exponents(multiply_by(M), T, q, 0).mean(axis=0)
    # lambda_i = (ln(2 / n) + psi(m / 2)) / 2 with m = n - i + 1: R_ii is the length of m normal numbers over sqrt(n),
    # independent from step to step, so that the standard error of the mean is known too
    for value, want, m in ((got[0], top, n), (got[-1], bottom, 1)):
        error = math.sqrt(polygamma(1, m / 2) / 4 / (T * B))
        assert value == pytest.approx(want, abs=3 * error)
    every = (math.log(2 / n) + digamma((n - np.arange(n)) / 2)) / 2
    assert (every[0], every[-1]) == (pytest.approx(top, abs=6e-7), pytest.approx(bottom, abs=6e-7))
    errors = np.sqrt(polygamma(1, (n - np.arange(n)) / 2) / 4 / (T * B))
    assert np.mean(((got - every) / errors) ** 2) == pytest.approx(1, abs=3 * math.sqrt(2 / n))  # chi squared over n


@pytest.mark.parametrize(("gain", "want"), [(1.5, 0.06522), (2.0, 0.15472), (3.0, 0.31025), (5.0, 0.53243)])
def test_largest_exponent_of_chaotic_networks_near_its_mean_field_value(gain: float, want: float) -> None:
    n, found = 256, []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        layer = gradcore.RNN(1, n, bias=False, dtype=np.float64)
        layer.params["weight_hh_l0"][...] = gain * rng.standard_normal((n, n)) / math.sqrt(n)
        state = rng.standard_normal((1, 2, n))
        found.append(spectral.lyapunov_spectrum(layer, np.zeros((300, 2, 1)), state, k=1, transient=100)[0])
    assert np.mean(found) == pytest.approx(want, abs=0.5 / math.sqrt(n))  # the value is that of n to infinity


@pytest.mark.parametrize("mode", ["RNN_TANH", "LSTM", "GRU"])
def test_exponents_sum_to_the_mean_log_determinant(mode: str) -> None:
    layer, _, x, twin = layer_and_tape(mode, 30, 2, 3, 4, num_layers=2)
    dets = [np.linalg.slogdet(reference.step_jacobians(twin, index, b))[1] for index in (0, 1) for b in (0, 1)]
    spectrum = spectral.lyapunov_spectrum(layer, x, transient=5)
    assert (np.diff(spectrum) <= 0).all()
    assert spectrum.sum() == pytest.approx(np.sum(dets, axis=0)[5:].mean() / 2, rel=1e-6)
    few = spectral.lyapunov_spectrum(layer, x, k=3, transient=5)
    np.testing.assert_allclose(few[:1], spectrum[:1], atol=0.05)
    assert few.shape == (3,)


@pytest.mark.parametrize("mode", ["RNN_TANH", "LSTM", "GRU"])
def test_exponents_against_the_plain_loop(mode: str) -> None:
    layer, tape, _, twin = layer_and_tape(mode, 20, 2, 3, 4)
    trajectory = Trajectory.whole(layer, tape, 0, 20, 2)
    q = np.linalg.qr(np.random.default_rng(0).standard_normal((2, trajectory.state_size, 3)))[0]
    rows = np.ascontiguousarray(q.swapaxes(1, 2))
    got = _exponents(_finite_steps(trajectory), 20, rows, 4)
    for b in (0, 1):
        want = reference.lyapunov_exponents(reference.step_jacobians(twin, 0, b), q[b], 4)
        np.testing.assert_allclose(got[b], want, atol=1e-6)


@pytest.mark.parametrize("transient", [0, 1, 17, 59])
@pytest.mark.parametrize("case", ["gaussian", "steep", "bursts", "huge", "tiny", "over", "singular"])
def test_exponents_however_far_apart_against_qr_at_every_step(case: str, transient: int) -> None:
    """Steps whose directions part slowly, fast, or now and then; the same numbers as without any stride."""
    n, T = 12, 60
    rng = np.random.default_rng(3)
    M = rng.standard_normal((T, 1, n, n)) / math.sqrt(n)
    if case == "steep":
        M *= np.exp(-2.0 * np.arange(n))[:, None]
    elif case == "bursts":
        M[::13] *= np.exp(-4.0 * np.arange(n))[:, None]
    elif case in ("huge", "tiny"):
        M *= 1e60 if case == "huge" else 1e-60
    elif case == "over":
        M[20] = 0
    elif case == "singular":
        M[..., -1] = 0  # a unit that no other sees, and which is overwritten
        M[:, :, -1] = 0
    q = np.linalg.qr(rng.standard_normal((n, n)))[0]
    with np.errstate(divide="ignore"):
        want = reference.lyapunov_exponents(M[:, 0], q, transient)
    got = _exponents(multiply_by(M), T, q.T[None].copy(), transient)[0]
    if case == "singular":
        want, got = want[:-1], got[:-1]
    if case == "over":
        assert np.isneginf(got).all() if transient <= 20 else np.isfinite(got).all()
        return  # LAPACK's Q of zeros is another one
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize(("k", "n"), [(1, 1), (1, 9), (3, 3), (8, 30), (13, 13), (64, 70)])
def test_separated_rows_span_the_same_and_their_logs_are_those_of_qr(k: int, n: int) -> None:
    v = np.random.default_rng(0).standard_normal((3, k, n)) * np.exp(-0.1 * np.arange(k))[:, None]
    want = np.abs(np.diagonal(np.linalg.qr(v.swapaxes(1, 2))[1], axis1=1, axis2=2))
    q, rows = v.copy(), v.copy()
    np.testing.assert_allclose(np.exp(_kernels.jacobian_separate(q, True)), want, rtol=1e-11)
    np.testing.assert_allclose(q @ q.swapaxes(1, 2), np.tile(np.eye(k), (3, 1, 1)), atol=1e-14)
    logs = _kernels.jacobian_separate(rows, False)
    np.testing.assert_allclose(logs + _kernels.jacobian_separate(rows, True), np.log(want), atol=1e-10)
    np.testing.assert_allclose(np.abs(rows @ q.swapaxes(1, 2)), np.tile(np.eye(k), (3, 1, 1)), atol=1e-10)


def test_rows_that_depend_on_earlier_ones_are_replaced() -> None:
    v = np.array([[[1.0, 0, 0, 0], [2.0, 0, 0, 0], [0, 0, 0, 0], [1.0, 2, 0, 0]]])
    logs = _kernels.jacobian_separate(v, True)[0]
    assert np.isneginf(logs[1:3]).all()
    np.testing.assert_allclose(v[0] @ v[0].T, np.eye(4), atol=1e-15)
    v = np.array([[[0.0, 0, 0], [1.0, 2, 4], [1.0, 2, 4]]])
    logs = _kernels.jacobian_separate(v, False)[0]
    np.testing.assert_array_equal(v[0], [[0, 0, 0], [0.25, 0.5, 1], [0, 0, 0]])
    np.testing.assert_array_equal(logs, [-np.inf, np.log(4), -np.inf])


@pytest.mark.parametrize("orthonormal", [True, False])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", [0, 1, 20])
def test_separation_shows_what_is_not_finite(orthonormal: bool, bad: float, column: int) -> None:
    """In the row that has it, and in all behind it, whose part across that row nobody knows; never as -inf."""
    v = np.random.default_rng(0).standard_normal((2, 7, 21))
    want = v.copy()
    v[1, 3, column] = bad
    want_logs, logs = _kernels.jacobian_separate(want, orthonormal), _kernels.jacobian_separate(v, orthonormal)
    np.testing.assert_array_equal(v[0], want[0])
    np.testing.assert_array_equal(v[1, :3], want[1, :3])
    np.testing.assert_array_equal(logs[0], want_logs[0])
    np.testing.assert_array_equal(logs[1, :3], want_logs[1, :3])
    assert np.isnan(logs[1, 3]) or logs[1, 3] == np.inf
    assert np.isnan(logs[1, 4:]).all()
    rows = np.full((1, 3, 9), np.nan)
    assert np.isnan(_kernels.jacobian_separate(rows, orthonormal)).all()


@pytest.mark.parametrize("orthonormal", [True, False])
@pytest.mark.parametrize("exponent", [1000, 1022, -1000])
def test_separation_at_the_ends_of_the_range(orthonormal: bool, exponent: int) -> None:
    """Rows whose norms no double has, and pivots whose reciprocals are flushed: all is that of smaller rows, scaled."""
    v = np.random.default_rng(0).uniform(1, 1.9, (1, 6, 40))
    want = v.copy()
    v *= 2.0**exponent
    want_logs, logs = _kernels.jacobian_separate(want, orthonormal), _kernels.jacobian_separate(v, orthonormal)
    np.testing.assert_allclose(v, want, rtol=0, atol=1e-12)
    np.testing.assert_allclose(logs, want_logs + exponent * math.log(2), rtol=1e-12)


@pytest.mark.parametrize("orthonormal", [True, False])
def test_separation_refuses_more_rows_than_can_be_independent(orthonormal: bool) -> None:
    v = np.ones((1, 4, 3))
    with pytest.raises(ValueError, match="expected at most 3 rows, got 4"):
        _kernels.jacobian_separate(v, orthonormal)
    assert (v == 1).all()


def test_exponents_of_weights_near_the_largest_number() -> None:
    n, T, exponent = 30, 20, 1020
    W = np.random.default_rng(1).standard_normal((n, n))
    found = []
    for factor in (1.0, 2.0**exponent):
        layer = gradcore.RNN(1, n, bias=False, dtype=np.float64)
        layer.params["weight_hh_l0"][...] = W * factor
        found.append(spectral.lyapunov_spectrum(layer, np.zeros((T, 1, 1))))  # at rest J = W
    assert found[1][0] > 708
    np.testing.assert_allclose(found[1], found[0] + exponent * math.log(2), rtol=0, atol=1e-6)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("exponent", [1020, 1023])
def test_steps_scaled_to_norm_1_near_the_largest_number(exponent: int, transposed: bool) -> None:
    """Also where a norm is beyond it and no entry is."""
    n, T, found = 20, 4, []
    W = np.random.default_rng(1).uniform(-1, 1, (n, n))
    W /= np.abs(W).sum(axis=1).max() * n**0.25
    for factor in (1.0, 2.0**exponent):
        layer = gradcore.RNN(1, n, bias=False, dtype=np.float64)
        layer.params["weight_hh_l0"][...] = W * factor
        trajectory = Trajectory.whole(layer, layer.forward(np.zeros((T, 1, 1)))[1], 0, T, 1)
        v, log_norm = np.random.default_rng(2).choice([-1.0, 1.0], (1, 3, n)), np.empty((T, 1, 3))
        trajectory.carry(v, trajectory.factors(0, T), transposed=transposed, log_norm=log_norm)
        found.append((v, log_norm))
    np.testing.assert_allclose(found[1][0], found[0][0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(found[1][1], found[0][1] + exponent * math.log(2), rtol=1e-12)


def test_exponents_of_a_stack_are_those_of_its_joint_state() -> None:
    T, H, step = 600, 3, 1e-6
    layer, _, x, _ = layer_and_tape("RNN_TANH", T, 1, 2, H, num_layers=2)
    state, joint = np.zeros((2, 1, H)), []
    moves = step * np.concatenate([np.eye(2 * H), -np.eye(2 * H)]).reshape(4 * H, 2, H).swapaxes(0, 1)
    for t in range(T):
        out = layer(np.repeat(x[t : t + 1], 4 * H, axis=1), state + moves)[1].swapaxes(0, 1).reshape(4 * H, 2 * H)
        joint.append((out[: 2 * H] - out[2 * H :]).T / (2 * step))
        state = layer(x[t : t + 1], state)[1]
    q = np.linalg.qr(np.random.default_rng(0).standard_normal((2 * H, 2 * H)))[0]
    want = reference.lyapunov_exponents(np.array(joint), q, 100)
    np.testing.assert_allclose(spectral.lyapunov_spectrum(layer, x, transient=100), np.sort(want)[::-1], atol=0.02)


# ---- a horizon of finite length --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("H", "horizon"), [(1, 4), (5, 1), (6, 9), (150, 12)])
def test_singular_values_of_many_steps_against_the_dense_product(mode: str, H: int, horizon: int) -> None:
    T, k = 14, min(3, H)
    layer = random_layer(mode, H, 2.0)
    x = np.random.default_rng(1).standard_normal((T, 2, 4))
    _, tape = layer.forward(x, lengths=[T, T - 2])
    product = np.eye(H * (2 if mode == "LSTM" else 1))
    for t in range(T - 2 - horizon, T - 2):
        product = spectral.jacobian(layer, tape, t, 1) @ product
    want = scipy.linalg.svdvals(product)[:k]
    got = spectral.singular_values(layer, tape, k, horizon=horizon, b=1)
    np.testing.assert_allclose(np.exp(got), want, rtol=1e-9, atol=1e-13 * want[0])


def test_singular_values_beyond_the_range_of_doubles_and_in_the_reverse_direction() -> None:
    for factor in (32.0, 1 / 32):
        layer = linear_layer(factor * np.eye(3) / np.array([1.0, 2.0, 4.0]), dtype=np.float64)
        x = np.full((400, 1, 1), 1e-300 if factor > 1 else 1.0)
        x[200:] = 0  # it decays or grows on its own
        _, tape = layer.forward(x[:200])
        got = spectral.singular_values(layer, tape, 1)
        assert got == pytest.approx([200 * math.log(factor)], rel=1e-12)
    layer, tape, _, _ = layer_and_tape("GRU", 7, 2, 3, 4, bidirectional=True)
    product = np.eye(4)
    for t in (2, 1, 0):
        product = spectral.jacobian(layer, tape, t, 1, index=1) @ product
    got = spectral.singular_values(layer, tape, 4, horizon=3, b=1, index=1)
    np.testing.assert_allclose(np.exp(got), scipy.linalg.svdvals(product), rtol=1e-9)
    dead = linear_layer(np.zeros((2, 2)))
    assert np.isneginf(spectral.singular_values(dead, dead.forward(np.ones((3, 1, 1)))[1], 2)).all()


def test_the_first_singular_value_bounds_every_gradient() -> None:
    layer = random_layer("LSTM", 20, 3.0)
    y, tape = layer.forward(np.random.default_rng(0).standard_normal((30, 1, 4)))
    most = spectral.singular_values(layer, tape, horizon=29)[0]
    dy = np.zeros_like(y)
    for seed in range(5):
        dy[-1] = np.random.default_rng(seed).standard_normal(dy[-1].shape)
        layer.backward(tape, dy)
        norms = tape.telemetry.dh_norm[0]
        assert math.log(norms[0] / norms[-1]) <= most
    exponents = spectral.lyapunov_spectrum(layer, np.random.default_rng(0).standard_normal((30, 1, 4)), transient=1)
    assert exponents[0] <= most / 29 + 1e-9


def test_singular_values_refuse_what_they_cannot_answer() -> None:
    layer, tape, x, _ = layer_and_tape("GRU", 4, 2, 3, 5)
    ask = spectral.singular_values
    for options, message in (
        ({"k": 6}, "k: expected at most 5, the size of the state, got 6"),
        ({"k": 0}, "k: expected an integer of at least 1, got 0"),
        ({"horizon": 5}, "horizon: expected at most 4, the steps of sample 0, got 5"),
        ({"horizon": 0}, "horizon: expected an integer of at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            ask(layer, tape, **options)
    with pytest.raises(IndexError, match="expected 0 <= "):
        ask(layer, tape, b=2)
    with pytest.raises(ValueError, match="tape: expected a tape from this layer's forward"):
        ask(gradcore.GRU(3, 5, dtype=np.float64), tape)
    x[2] = np.nan
    with pytest.raises(ValueError, match="tape: expected a finite forward pass"):
        ask(layer, layer.forward(x)[1])


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.5])
def test_effective_horizon(factor: float) -> None:
    layer = linear_layer(factor * np.eye(2))
    y, tape = layer.forward(np.ones((40, 3, 1)))
    with pytest.raises(ValueError, match="tape: has no telemetry yet"):
        spectral.effective_horizon(tape)
    dy = np.zeros_like(y)
    layer.backward(tape, dy)
    assert spectral.effective_horizon(tape) == 0
    dy[30] = 1
    layer.backward(tape, dy)
    assert spectral.effective_horizon(tape, 0.2) == (2 if factor == 0.5 else 30)
    assert spectral.effective_horizon(tape, 1.0) == (0 if factor == 0.5 else 30)
    with pytest.raises(IndexError, match="index: expected 0 <= index < 1, got 1"):
        spectral.effective_horizon(tape, index=1)
    for eps in (0.0, 1.5, math.nan):
        with pytest.raises(ValueError, match="eps: expected a number"):
            spectral.effective_horizon(tape, eps)


def test_effective_horizon_of_directions_and_of_gradients_that_overflow() -> None:
    layer, _, x, _ = layer_and_tape("RNN_TANH", 12, 2, 3, 4, bidirectional=True)
    y, tape = layer.forward(x)
    dy = np.zeros_like(y)
    dy[-1, :, :4], dy[0, :, 4:] = 1, 1
    layer.backward(tape, dy)
    norms = tape.telemetry.dh_norm
    for index, traveled in ((0, norms[0, ::-1]), (1, norms[1])):
        reached = max(j for j in range(12) if traveled[j] >= 0.1 * traveled[0])
        assert spectral.effective_horizon(tape, 0.1, index=index) == reached
    layer = linear_layer(1e30 * np.eye(2), dtype=np.float32)
    y, tape = layer.forward(np.zeros((40, 1, 1), np.float32), np.full((1, 1, 2), 1e-30, np.float32))
    layer.backward(tape, np.ones_like(y))
    assert not np.isfinite(tape.telemetry.dh_norm).all()
    assert spectral.effective_horizon(tape) == 39


def test_dimension_and_entropy_of_a_spectrum() -> None:
    lorenz = [0.9056, 0.0, -14.5723]  # the flow of Lorenz at its usual parameters, dimension 2.062
    assert spectral.kaplan_yorke(lorenz) == pytest.approx(2 + 0.9056 / 14.5723)
    henon = [0.41922, -1.62319]
    assert spectral.kaplan_yorke(henon[::-1]) == pytest.approx(1.25827, abs=1e-4)
    assert spectral.entropy(henon) == 0.41922
    for exponents, dimension, nats in (
        ([-0.1, -2.0], 0.0, 0.0),
        ([0.5, -0.5], 2.0, 0.5),
        ([0.5, 0.25], 2.0, 0.75),
        ([0.5, -math.inf], 1.0, 0.5),
        ([3, -1, -4], 2.5, 3.0),
        ([], 0.0, 0.0),
    ):
        assert spectral.kaplan_yorke(exponents) == pytest.approx(dimension)
        assert spectral.entropy(exponents) == pytest.approx(nats)
    f: Callable[[Any], float]
    for f in (spectral.kaplan_yorke, spectral.entropy):
        with pytest.raises(ValueError, match=r"exponents: expected shape \(n,\), got \(1, 1\)"):
            f([[1.0]])
        with pytest.raises(ValueError, match="exponents: expected finite numbers or -inf, got nan at position 1"):
            f([1.0, math.nan])
        with pytest.raises(TypeError, match="exponents: expected real numbers, got complex128"):
            f([1j])


def test_cell_path_of_an_lstm_without_recurrent_weights() -> None:
    T, H = 100, 2
    for bias, want in ((0.0, 7.9e-31), (1.0, 2.5e-14), (math.log(99), 0.366)):
        layer = gradcore.LSTM(1, H, dtype=np.float64)
        layer.flat_params.fill(0)
        layer.params["bias_ih_l0"][H : 2 * H] = bias
        x = np.zeros((T, 1, 1))
        tape = layer.forward(x)[1]
        product = np.eye(2 * H)
        for t in range(T):
            product = spectral.jacobian(layer, tape, t) @ product
        np.testing.assert_allclose(product[H:, H:], np.eye(H) * want, rtol=0.02)
        exponents = spectral.lyapunov_spectrum(layer, x, transient=1)
        np.testing.assert_allclose(exponents[:H], -math.log1p(math.exp(-bias)), rtol=1e-12)
        assert (exponents[H:] < -30).all()


def test_exponents_with_batch_first_a_state_and_a_direction_that_ends() -> None:
    layer, _, x, _ = layer_and_tape("LSTM", 12, 3, 2, 4)
    state = tuple(np.random.default_rng(5).standard_normal((2, 1, 3, 4)))
    want = spectral.lyapunov_spectrum(layer, x, state)
    assert relative_error(spectral.lyapunov_spectrum(layer, x), want) > 1e-3
    flipped = gradcore.LSTM(2, 4, batch_first=True, dtype=np.float64)
    flipped.load_state_dict(layer.params)
    np.testing.assert_array_equal(spectral.lyapunov_spectrum(flipped, x.swapaxes(0, 1), state), want)
    ends = spectral.lyapunov_spectrum(linear_layer([[0.5, 0.0], [0.0, 0.0]]), np.ones((5, 1, 1)), transient=1)
    assert ends[0] == pytest.approx(math.log(0.5))
    assert ends[1] < -30


@pytest.mark.parametrize("mode", ["RNN_TANH", "LSTM", "GRU"])
def test_exponents_of_a_stack_are_those_of_its_layers_each_alone(mode: str) -> None:
    layer, _, x, _ = layer_and_tape(mode, 20, 2, 3, 4, num_layers=3)
    alone = [spectral.lyapunov_spectrum(layer, x, transient=5, index=index) for index in range(3)]
    assert [len(found) for found in alone] == [8 if mode == "LSTM" else 4] * 3
    joint = spectral.lyapunov_spectrum(layer, x, transient=5)
    np.testing.assert_array_equal(np.sort(np.concatenate(alone))[::-1], joint)
    # A layer's exponents are those of a network of it alone, on what the layer below puts out.
    single, below = type(layer)(4, 4, dtype=np.float64), type(layer)(3, 4, dtype=np.float64)
    for one, index in ((below, 0), (single, 1)):
        one.load_state_dict({n: layer.params[n.replace("_l0", f"_l{index}")] for n in one.params})
    want = spectral.lyapunov_spectrum(single, below(x)[0], transient=5)
    np.testing.assert_allclose(alone[1].sum(), want.sum(), rtol=1e-9)  # the sum does not know where Q began


def test_lyapunov_refuses_what_it_cannot_answer() -> None:
    layer, _, x, _ = layer_and_tape("LSTM", 6, 2, 3, 4)
    with pytest.raises(ValueError, match="k: expected at most 8, the size of the state, got 9"):
        spectral.lyapunov_spectrum(layer, x, k=9)
    with pytest.raises(IndexError, match="index: expected 0 <= index < 1, got 1"):
        spectral.lyapunov_spectrum(layer, x, index=1)
    with pytest.raises(ValueError, match="k: expected an integer of at least 1"):
        spectral.lyapunov_spectrum(layer, x, k=0)
    with pytest.raises(ValueError, match="more than 6 steps"):
        spectral.lyapunov_spectrum(layer, x, transient=6)
    with pytest.raises(ValueError, match="got B = 0"):
        spectral.lyapunov_spectrum(layer, x[:, :0])
    with pytest.raises(ValueError, match=r"x: expected shape"):
        spectral.lyapunov_spectrum(layer, x[0])
    with pytest.raises(ValueError, match="layer: expected a layer of one direction"):
        spectral.lyapunov_spectrum(gradcore.GRU(3, 4, bidirectional=True, dtype=np.float64), x)
    with pytest.raises(ValueError, match=r"x: expected a finite forward pass; step \d is not"):
        spectral.lyapunov_spectrum(linear_layer(np.full((1, 1), 1e200)), np.ones((6, 1, 1)))
    with pytest.raises(TypeError, match="layer: expected an RNN, LSTM or GRU, or a model with one, got Linear"):
        spectral.lyapunov_spectrum(type("Linear", (), {})(), x)


# ---- growth: predicted and measured ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_predicted_curve_of_one_unit_is_exact(mode: str) -> None:
    layer, _, x, twin = layer_and_tape(mode, 20, 1, 2, 1, seed=3)
    jacobians = reference.step_jacobians(twin, 0, 0)[1:]
    gradients = reference.carried_back(jacobians, np.eye(len(jacobians[0]))[0])
    with np.errstate(divide="ignore"):
        want = np.log(np.linalg.norm(gradients, axis=1))
    forecast = spectral.predict_growth(layer, x, horizon=19)
    np.testing.assert_allclose(forecast.layers[0].log_norm, want, atol=1e-6)
    rate = -math.inf if np.isneginf(want).any() else np.polyfit(np.arange(20), want, 1)[0]
    assert forecast.rate == pytest.approx(rate, abs=1e-6)
    short = spectral.predict_growth(layer, x, horizon=4).layers[0].log_norm
    np.testing.assert_allclose(short, want[:5], atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_predicted_rate_is_the_measured_one(mode: str) -> None:
    T = 120
    x = 0.5 * np.random.default_rng(7).standard_normal((T, 8, 4))
    misses, points = [], 0
    for H in (16, 48):
        for gain in (0.3, 0.7, 1.0, 1.4, 2.0, 3.0, 4.0):
            layer = random_layer(mode, H, gain, seed=points)
            forecast = spectral.predict_growth(layer, x, horizon=T)
            measured = spectral.measure_growth(backward_from_the_end(layer, x, seed=points))
            points += 1
            if abs(forecast.rate - measured) > 0.02 + 0.05 * abs(measured):
                misses.append((H, gain, forecast.rate, measured))
            if abs(measured) > 0.02:
                assert forecast.verdict == ("explodes" if measured > 0 else "vanishes"), (H, gain)
            assert forecast.rate <= forecast.upper_bound
            assert measured <= forecast.upper_bound
            if forecast.upper_bound < 0:
                assert any(c.kind == "sufficient" and c.of == "vanishes" and c.holds for c in forecast.conditions)
    assert len(misses) <= 1, misses


def test_an_lstm_can_explode() -> None:
    layer = random_layer("LSTM", 48, 5.0)
    x = 0.1 * np.random.default_rng(0).standard_normal((100, 8, 4))
    forecast = spectral.predict_growth(layer, x, horizon=100)
    assert forecast.verdict == "explodes"
    assert spectral.measure_growth(backward_from_the_end(layer, x)) > 0.02


@pytest.mark.parametrize("mode", MODES)
def test_bounds_hold_for_every_gradient(mode: str) -> None:
    """Not only on average: the bound of each step, added up, along the trajectory of each sample."""
    layer, tape, _, twin = layer_and_tape(mode, 15, 3, 2, 6, seed=2)
    curve, log_bound = _carried_back(Trajectory.whole(layer, tape, 0, 15, 3), 100)
    assert curve.shape == log_bound.shape == (15,)
    assert (curve <= log_bound + 1e-12).all()
    for b in range(3):
        J = reference.step_jacobians(twin, 0, b)
        for u in np.random.default_rng(b).standard_normal((20, J.shape[1])):
            norms = np.linalg.norm(reference.carried_back(J[1:], u), axis=1)
            assert (np.log(np.maximum(norms, 1e-300) / norms[0]) <= log_bound + 1e-6).all()


def test_weights_of_norm_below_one_vanish_for_certain() -> None:
    layer = random_layer("RNN_TANH", 16, 1.0)
    layer.params["weight_hh_l0"][...] *= 0.95 / spectral.spectral_norm(layer.params["weight_hh_l0"])
    forecast = spectral.predict_growth(layer, horizon=50)
    by = {(c.kind, c.of): c for c in forecast.conditions if "norm" in c.name}
    assert by["sufficient", "vanishes"].holds
    assert not by["necessary", "explodes"].holds
    assert by["necessary", "explodes"].value == pytest.approx(0.95)
    assert forecast.upper_bound == pytest.approx(math.log(0.95))
    assert forecast.verdict == "vanishes"
    assert forecast.rate < forecast.upper_bound
    assert forecast.factor == pytest.approx(math.exp(50 * forecast.rate))


def test_each_layer_and_direction_has_its_own_rate() -> None:
    layer = gradcore.RNN(1, 2, 2, nonlinearity="relu", bidirectional=True, bias=False, dtype=np.float64)
    rates = {"l0": 1.1, "l0_reverse": 0.9, "l1": 0.8, "l1_reverse": 1.2}
    for name, value in layer.params.items():
        value[...] = np.eye(2) * rates[name.removeprefix("weight_hh_")] if "hh" in name else 0.01
    forecast = spectral.predict_growth(layer, np.ones((60, 3, 1)), horizon=60)
    got = {growth.name: growth for growth in forecast.layers}
    assert {name: round(math.exp(growth.rate), 9) for name, growth in got.items()} == rates
    assert [growth.verdict for growth in forecast.layers] == ["explodes", "vanishes", "vanishes", "explodes"]
    assert math.exp(forecast.rate) == pytest.approx(1.2)
    assert forecast.verdict == "explodes"
    assert forecast.conditions is got["l1_reverse"].conditions
    assert math.exp(got["l0"].rate_with_above) == pytest.approx(1.2)
    tape = backward_from_the_end(layer, np.ones((60, 3, 1)))
    assert math.exp(spectral.measure_growth(tape, index=2)) == pytest.approx(0.8)
    assert math.exp(spectral.measure_growth(tape, index=3)) == pytest.approx(1.2)
    assert spectral.measure_growth(tape) >= math.log(1.2) - 1e-9


@pytest.mark.parametrize(("lower", "upper"), [(1.0, 2.5), (2.5, 1.0)])
def test_gradients_from_above_show_in_the_layers_below(lower: float, upper: float) -> None:
    layer, _, x, _ = layer_and_tape("RNN_TANH", 150, 8, 4, 32, num_layers=2)
    layer.params["weight_hh_l0"] *= lower
    layer.params["weight_hh_l1"] *= upper
    forecast = spectral.predict_growth(layer, x, horizon=150)
    tape = backward_from_the_end(layer, x)
    for growth in forecast.layers:
        measured = spectral.measure_growth(tape, index=growth.index)
        assert measured == pytest.approx(growth.rate_with_above, abs=0.02 + 0.05 * abs(measured))
    assert spectral.measure_growth(tape) == pytest.approx(forecast.rate, abs=0.03)


def test_forecast_leaves_the_layer_alone_and_repeats_itself() -> None:
    rng = np.random.default_rng(0)
    layer = gradcore.LSTM(3, 5, 2, dropout=0.5, rng=rng)
    x = np.random.default_rng(1).standard_normal((20, 4, 3)).astype(np.float32)
    params, generator = layer.flat_params.copy(), rng.bit_generator.state
    first, again = (spectral.predict_growth(layer, x, horizon=10) for _ in range(2))
    free = spectral.predict_growth(layer, horizon=10)
    spectral.lyapunov_spectrum(layer, x, k=2)
    assert first.rate == again.rate
    assert layer.dropout == 0.5
    assert rng.bit_generator.state == generator
    assert not layer.flat_grads.any()
    np.testing.assert_array_equal(layer.flat_params, params)
    assert (first.basis, free.basis) == ("trajectories driven by x", "free-running trajectories, x = 0")
    assert len(free.layers[0].log_norm) == 11
    flipped = gradcore.LSTM(3, 5, 2, batch_first=True)
    flipped.load_state_dict(layer.params)
    assert spectral.predict_growth(flipped, x.swapaxes(0, 1), horizon=10).rate == first.rate
    assert spectral.predict_growth(flipped, horizon=10).rate == free.rate


def test_forecast_from_the_weights_alone() -> None:
    """A linear network does not see its input, and a chaotic one drives itself."""
    layer = linear_layer(0.8 * np.eye(3))
    assert spectral.predict_growth(layer, horizon=1000).rate <= math.log(0.8) + 1e-12
    layer = random_layer("RNN_TANH", 64, 2.0)
    forecast = spectral.predict_growth(layer, horizon=200)
    assert forecast.rate == pytest.approx(0.15472, abs=0.05)
    assert forecast.verdict == "explodes"


def test_verdict_depends_on_the_horizon_near_the_border() -> None:
    x = np.ones((100, 1, 1))
    verdicts = {
        (factor, horizon): spectral.predict_growth(linear_layer([[factor]]), x, horizon=horizon).verdict
        for factor in (0.98, 0.995, 1.005, 1.02)
        for horizon in (50, 1000)
    }
    assert verdicts == {
        (0.98, 50): "vanishes", (0.98, 1000): "vanishes",
        (0.995, 50): "stable", (0.995, 1000): "vanishes",
        (1.005, 50): "stable", (1.005, 1000): "explodes",
        (1.02, 50): "explodes", (1.02, 1000): "explodes",
    }  # fmt: skip


def test_extreme_growth_neither_overflows_nor_warns() -> None:
    forecast = spectral.predict_growth(
        linear_layer([[3.0]], dtype=np.float32), np.ones((200, 1, 1), np.float32), horizon=2000
    )
    assert forecast.rate == pytest.approx(math.log(3))  # from the steps before the state overflows
    assert forecast.factor == math.inf
    dead = spectral.predict_growth(linear_layer([[-3.0]]), -np.ones((20, 1, 1)), horizon=20)
    assert (dead.rate, dead.factor, dead.verdict) == (-math.inf, 0.0, "vanishes")
    zero = spectral.predict_growth(linear_layer([[0.0]]), np.ones((20, 1, 1)), horizon=20)
    assert (zero.rate, zero.upper_bound) == (-math.inf, -math.inf)
    tiny = linear_layer([[1e-200]])
    assert spectral.predict_growth(tiny, np.ones((20, 1, 1)), horizon=20).rate == pytest.approx(math.log(1e-200))


def test_predict_refuses_what_it_cannot_answer() -> None:
    layer, _, x, _ = layer_and_tape("GRU", 6, 2, 3, 4)
    with pytest.raises(ValueError, match="horizon: expected an integer of at least 1"):
        spectral.predict_growth(layer, x, horizon=0)
    with pytest.raises(ValueError, match="got B = 2, T = 1"):
        spectral.predict_growth(layer, x[:1], horizon=5)
    with pytest.raises(ValueError, match="got B = 0, T = 6"):
        spectral.predict_growth(layer, x[:, :0], horizon=5)
    with pytest.raises(TypeError, match="x: expected float64, got float32"):
        spectral.predict_growth(layer, x.astype(np.float32), horizon=5)
    with pytest.raises(TypeError, match="layer: expected an RNN, LSTM or GRU, or a model with one, got list"):
        spectral.predict_growth([layer], x, horizon=5)
    with pytest.raises(ValueError, match="x: expected a forward pass that is finite for at least 2 steps, got 0"):
        spectral.predict_growth(layer, np.full_like(x, np.nan), horizon=5)


def measured(factor: float, T: int, dtype: Any, dy: Callable[[Array], None]) -> float:
    """The growth measured in h_t = factor h_{t-1} + x_t, the gradient by y being what `dy` writes into zeros."""
    layer = linear_layer([[factor]], dtype=dtype)
    y, tape = layer.forward(np.full((T, 1, 1), 1e-30, dtype))
    gradient = np.zeros_like(y)
    dy(gradient)
    layer.backward(tape, gradient)
    return spectral.measure_growth(tape)


def at_the_end(gradient: Array) -> None:
    gradient[-1] = 1


def everywhere(gradient: Array) -> None:
    gradient[:] = 1


def in_the_middle(gradient: Array) -> None:
    gradient[len(gradient) // 2] = 1


def test_measured_growth() -> None:
    for dtype in (np.float32, np.float64):
        assert measured(0.3, 200, dtype, at_the_end) == pytest.approx(math.log(0.3), rel=1e-5)  # underflows in float32
        assert measured(1.5, 100, dtype, at_the_end) == pytest.approx(math.log(1.5), rel=1e-5)
        assert measured(1.5, 100, dtype, in_the_middle) == pytest.approx(math.log(1.5), rel=1e-5)
        assert measured(1.5, 100, dtype, everywhere) == pytest.approx(math.log(1.5), abs=0.01)
        assert measured(0.5, 100, dtype, everywhere) == pytest.approx(0, abs=0.01)
        assert measured(0.0, 100, dtype, at_the_end) == -math.inf
        assert math.isnan(measured(0.5, 100, dtype, lambda gradient: None))
        assert math.isnan(measured(0.5, 100, dtype, lambda gradient: gradient.fill(np.nan)))
        assert math.isnan(measured(0.5, 1, dtype, at_the_end))


def test_measured_growth_of_gradients_that_overflow() -> None:
    layer = linear_layer([[1.0]], dtype=np.float32)
    y, tape = layer.forward(np.ones((60, 1, 1), np.float32))
    layer.params["weight_hh_l0"][...] = 10  # grows backwards what did not grow forwards
    dy = np.zeros_like(y)
    at_the_end(dy)
    layer.backward(tape, dy)
    assert np.isinf(tape.telemetry.dh_norm[0, 0])
    assert spectral.measure_growth(tape) == pytest.approx(math.log(10), rel=1e-5)
    dy[-1] = 1e38
    layer.backward(tape, dy)
    assert spectral.measure_growth(tape) == math.inf
    layer.params["weight_hh_l0"][...] = 3
    _, lost = layer.forward(np.ones((200, 1, 1), np.float32))
    layer.backward(lost, np.ones((200, 1, 1), np.float32))
    assert math.isnan(spectral.measure_growth(lost))


def test_measure_refuses_what_it_cannot_answer() -> None:
    layer, tape, _, _ = layer_and_tape("GRU", 6, 2, 3, 4)
    with pytest.raises(ValueError, match="tape: has no telemetry yet"):
        spectral.measure_growth(tape)
    layer.backward(tape, np.ones((6, 2, 4)))
    for index in (1, -1):
        with pytest.raises(IndexError, match="index: expected 0 <= index < 1"):
            spectral.measure_growth(tape, index=index)


def test_growth_of_no_steps() -> None:
    layer = gradcore.GRU(3, 4, rng=0)
    y, tape = layer.forward(np.zeros((0, 2, 3), np.float32))
    layer.backward(tape, y)
    assert math.isnan(spectral.measure_growth(tape))
    assert spectral.effective_horizon(tape) == 0


# ---- models with one recurrent layer ---------------------------------------------------------------------------------


def models(cell: str) -> dict[str, tuple[Any, tuple[int, ...]]]:
    """Models with one recurrent layer, and where it is."""

    def layer(inputs: int) -> Any:
        return getattr(gradcore, cell)(inputs, 5, dtype=np.float64, rng=1)

    def linear(inputs: int, outputs: int) -> Any:
        return gradcore.Linear(inputs, outputs, dtype=np.float64, rng=2)

    return {
        "first": (gradcore.Sequential(layer(3), gradcore.LastStep(), linear(5, 1)), (0,)),
        "last": (gradcore.Sequential(linear(3, 4), gradcore.Tanh(), layer(4)), (2,)),
        "within": (
            gradcore.Sequential(linear(3, 4), gradcore.Sequential(gradcore.Tanh(), layer(4)), linear(5, 2)),
            (1, 1),
        ),
    }


@pytest.mark.parametrize("place", ["first", "last", "within"])
@pytest.mark.parametrize("cell", ["RNN", "LSTM", "GRU"])
def test_a_model_answers_for_its_recurrent_layer(cell: str, place: str) -> None:
    model, path = models(cell)[place]
    x = np.random.default_rng(0).standard_normal((12, 2, 3))
    y, tape = model.forward(x)
    model.backward(tape, np.ones_like(y))
    layer, own, driven = model, tape, x
    for i in path:
        for member in layer.layers[:i]:
            driven = member(driven)
        layer, own = layer.layers[i], own.tapes[i]
    for index in (None, 0):
        assert spectral.measure_growth(tape, index=index) == spectral.measure_growth(own, index=index)
        assert spectral.effective_horizon(tape, index=index) == spectral.effective_horizon(own, index=index)
    np.testing.assert_array_equal(spectral.jacobian(model, tape, 7, 1), spectral.jacobian(layer, own, 7, 1))
    got, want = (spectral.singular_values(a, b, 2, horizon=5, b=1) for a, b in ((model, tape), (layer, own)))
    np.testing.assert_array_equal(got, want)
    got, want = (spectral.lyapunov_spectrum(a, b, transient=2) for a, b in ((model, x), (layer, driven)))
    np.testing.assert_array_equal(got, want)
    for horizon in (5, 20):
        assert repr(spectral.predict_growth(model, x, horizon=horizon)) == repr(
            spectral.predict_growth(layer, driven, horizon=horizon)
        )
    assert repr(spectral.predict_growth(model, horizon=9)) == repr(spectral.predict_growth(layer, horizon=9))


def test_a_model_with_several_names_the_choices() -> None:
    model = gradcore.Sequential(
        gradcore.LSTM(3, 4, rng=0), gradcore.Sequential(gradcore.Tanh(), gradcore.GRU(4, 4, rng=0))
    )
    x = np.ones((6, 2, 3), np.float32)
    y, tape = model.forward(x)
    model.backward(tape, y)
    layers = r"with 2; pass one of model\.layers\[0\] \(LSTM\), model\.layers\[1\]\.layers\[1\] \(GRU\)"
    for call in (
        lambda: spectral.predict_growth(model, x, horizon=5),
        lambda: spectral.predict_growth(model, horizon=5),
        lambda: spectral.lyapunov_spectrum(model, x),
        lambda: spectral.jacobian(model, tape, 1),
        lambda: spectral.singular_values(model, tape),
    ):
        with pytest.raises(ValueError, match=f"layer: expected one recurrent layer, got a model {layers}"):
            call()
    tapes = r"tape\.tapes\[0\] \(LSTM\), tape\.tapes\[1\]\.tapes\[1\] \(GRU\)"
    for measure in (spectral.measure_growth, spectral.effective_horizon):
        with pytest.raises(ValueError, match=f"tape: expected one recurrent layer, .*{tapes}"):
            measure(tape)
        measure(tape.tapes[0])
        measure(tape.tapes[1])


def test_a_model_without_a_recurrent_layer_is_refused() -> None:
    model = gradcore.MLP([3, 4, 2], rng=0)
    x = np.ones((6, 2, 3), np.float32)
    _, tape = model.forward(x)
    with pytest.raises(TypeError, match=r"layer: expected an RNN, LSTM or GRU, or a model with one; .* has none"):
        spectral.predict_growth(model, x, horizon=5)
    with pytest.raises(TypeError, match=r"tape: expected the tape of an RNN, .*, got SequentialTape"):
        spectral.measure_growth(tape)
    with pytest.raises(TypeError, match=r"tape: expected the tape of an RNN, .*, got NoneType"):
        spectral.measure_growth(None)


def test_a_model_without_telemetry_or_with_another_tape_is_refused() -> None:
    model, other = (gradcore.Sequential(gradcore.Linear(3, 3, rng=0), gradcore.GRU(3, 4, rng=0)) for _ in range(2))
    _, tape = model.forward(np.ones((6, 2, 3), np.float32))
    with pytest.raises(ValueError, match=r"tape: has no telemetry yet; call backward\(tape, dy\) first"):
        spectral.measure_growth(tape)
    for layer, its in ((other, tape), (model, tape.tapes[1]), (model.layers[1], tape)):
        with pytest.raises(ValueError, match="tape: expected a tape from this layer's forward"):
            spectral.jacobian(layer, its, 1)


class Skipping(gradcore.Sequential):
    """Not a chain: x goes past the first layer too."""

    def forward(self, x: Array, lengths: Any = None) -> tuple[Array, Any]:
        _, tape = super().forward(x, lengths=lengths)
        return x + self.layers[0](x), tape


def test_a_model_that_need_not_be_a_chain_is_not_taken_for_one() -> None:
    model = Skipping(gradcore.Linear(3, 3, rng=0), gradcore.GRU(3, 3, rng=0))
    x = np.ones((6, 2, 3), np.float32)
    for call in (spectral.lyapunov_spectrum, lambda model, x: spectral.predict_growth(model, x, horizon=5)):
        with pytest.raises(TypeError, match="layer: Skipping has a forward of its own, so it need not be a chain"):
            call(model, x)
    assert spectral.predict_growth(model, horizon=5).horizon == 5  # from the weights alone


def test_forecasts_are_printed_in_a_few_short_lines() -> None:
    layer = gradcore.LSTM(3, 4, 2, bidirectional=True, rng=0)
    growth = spectral.predict_growth(layer, np.ones((9, 2, 3), np.float32), horizon=8)
    lines = str(growth).splitlines()
    assert len(lines) == 2 + 4 + 3
    assert lines[0].startswith(growth.verdict)
    assert f"{growth.factor:.3g} over 8 steps" in lines[0]
    assert [line.partition(":")[0] for line in lines[2:6]] == ["l0", "l0_reverse", "l1", "l1_reverse"]
    assert max(map(len, lines)) < 120
    assert len(repr(growth)) < 250
    assert len(repr(growth.layers[0])) < 250
