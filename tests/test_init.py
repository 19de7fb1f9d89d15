"""Initializers: distributions against their formulas (fixed seeds), structure to rounding, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats
from tools import Array, read_only, same_bits

import gradcore
from gradcore import init

Draw = Callable[..., Array]

# Every initializer as f(tensor, rng=...), with the arguments that it needs.
ALL: dict[str, Draw] = {
    "uniform_": lambda w, rng: init.uniform_(w, -2, 3, rng=rng),
    "normal_": lambda w, rng: init.normal_(w, 1.0, 0.5, rng=rng),
    "constant_": lambda w, rng: init.constant_(w, 0.1),
    "eye_": lambda w, rng: init.eye_(w),
    "xavier_uniform_": lambda w, rng: init.xavier_uniform_(w, 1.5, rng=rng),
    "xavier_normal_": lambda w, rng: init.xavier_normal_(w, 1.5, rng=rng),
    "kaiming_uniform_": lambda w, rng: init.kaiming_uniform_(w, 0.2, rng=rng),
    "kaiming_normal_": lambda w, rng: init.kaiming_normal_(w, mode="fan_out", nonlinearity="tanh", rng=rng),
    "lecun_normal_": lambda w, rng: init.lecun_normal_(w, rng=rng),
    "orthogonal_": lambda w, rng: init.orthogonal_(w, 0.9, rng=rng),
    "sparse_": lambda w, rng: init.sparse_(w, 0.3, 1.0, rng=rng),
}
every_one = pytest.mark.parametrize("name", ALL)
RANDOM = [name for name in ALL if name not in ("constant_", "eye_")]
N_IN, N_OUT = 300, 200

# The distribution of each entry of a (200, 300) matrix, as a frozen scipy distribution.
DISTRIBUTIONS: dict[str, tuple[Draw, Any]] = {
    "uniform_": (ALL["uniform_"], stats.uniform(-2, 5)),
    "normal_": (ALL["normal_"], stats.norm(1.0, 0.5)),
    "xavier_uniform_": (ALL["xavier_uniform_"], stats.uniform(-1.5 * np.sqrt(6 / 500), 3 * np.sqrt(6 / 500))),
    "xavier_normal_": (ALL["xavier_normal_"], stats.norm(0, 1.5 * np.sqrt(2 / 500))),
    "kaiming_uniform_": (
        ALL["kaiming_uniform_"],
        stats.uniform(-np.sqrt(6 / 1.04 / N_IN), 2 * np.sqrt(6 / 1.04 / N_IN)),
    ),
    "kaiming_normal_": (ALL["kaiming_normal_"], stats.norm(0, 5 / 3 / np.sqrt(N_OUT))),
    "kaiming_normal_, relu": (
        lambda w, rng: init.kaiming_normal_(w, nonlinearity="relu", rng=rng),
        stats.norm(0, np.sqrt(2 / N_IN)),
    ),
    "lecun_normal_": (ALL["lecun_normal_"], stats.norm(0, 1 / np.sqrt(N_IN))),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_distribution(name: str, dtype: Any) -> None:
    draw, expected = DISTRIBUTIONS[name]
    w = np.full((N_OUT, N_IN), np.nan, dtype)
    assert draw(w, rng=np.random.default_rng(7)) is w
    entries = w.ravel().astype(np.float64)
    low, high = expected.support()
    rounding = np.finfo(dtype).eps * 4
    assert low - rounding <= entries.min()
    assert entries.max() <= high + rounding
    assert entries.var() == pytest.approx(expected.var(), rel=0.03)
    assert stats.kstest(entries, expected.cdf).pvalue > 1e-3
    # entries of neighbors are independent
    assert abs(np.corrcoef(entries[:-1], entries[1:])[0, 1]) < 0.02


@pytest.mark.parametrize("shape", [(200, 300, 3, 2), (200, 300)])
def test_further_axes_multiply_both_fans(shape: tuple[int, ...]) -> None:
    w, rest = np.empty(shape), np.prod(shape[2:])
    rng = np.random.default_rng(0)
    assert init.xavier_normal_(w, rng=rng).var() == pytest.approx(2 / (500 * rest), rel=0.03)
    assert init.kaiming_normal_(w, rng=rng).var() == pytest.approx(2 / (300 * rest), rel=0.03)
    assert init.kaiming_uniform_(w, mode="fan_out", rng=rng).var() == pytest.approx(2 / (200 * rest), rel=0.03)


# ---- structure -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(5, 5), (64, 64), (100, 30), (30, 100), (1, 7), (6, 2, 5)])
def test_orthogonal(shape: tuple[int, ...], dtype: Any) -> None:
    w = init.orthogonal_(np.empty(shape, dtype), 1.5, rng=np.random.default_rng(0)).reshape(shape[0], -1) / 1.5
    gram = w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w
    assert np.allclose(gram, np.eye(len(gram)), rtol=0, atol=1e-6 if dtype == np.float32 else 1e-13)


def test_orthogonal_is_uniform() -> None:
    """Without the signs of R the corner would never be positive; the trace of a uniform one has mean 0, variance 1."""
    rng = np.random.default_rng(0)
    matrices = [init.orthogonal_(np.empty((4, 4)), rng=rng) for _ in range(2000)]
    traces, corners = (np.array(a) for a in zip(*((np.trace(q), q[0, 0]) for q in matrices), strict=True))
    assert abs(traces.mean()) < 0.1
    assert traces.var() == pytest.approx(1, rel=0.1)
    assert 0.45 < np.mean(corners > 0) < 0.55
    assert 0.4 < np.mean([np.linalg.det(q) > 0 for q in matrices]) < 0.6


def test_eye() -> None:
    for shape in ((3, 3), (2, 4), (4, 2)):
        assert same_bits(init.eye_(np.full(shape, 7.0)), np.eye(*shape))


@pytest.mark.parametrize(("sparsity", "zeros"), [(0.0, 0), (0.3, 30), (0.301, 31), (1.0, 100)])
def test_sparse(sparsity: float, zeros: int) -> None:
    w = init.sparse_(np.empty((100, 400)), sparsity, 0.5, rng=np.random.default_rng(0))
    assert np.all(np.count_nonzero(w == 0, axis=0) == zeros)
    if 0 < zeros < 100:
        assert w[w != 0].std() == pytest.approx(0.5, rel=0.03)
        by_row = np.count_nonzero(w == 0, axis=1)  # binomial: every row takes part alike
        assert abs(by_row - 4 * zeros).max() < 5 * np.sqrt(4 * zeros)


def test_constant() -> None:
    assert same_bits(init.constant_(np.empty((2, 3), np.float32), 0.1), np.full((2, 3), 0.1, np.float32))
    assert np.isnan(init.constant_(np.empty(2), np.nan)).all()


# ---- what all of them hold -------------------------------------------------------------------------------------------


@every_one
def test_strided_views_are_filled_in_place(name: str) -> None:
    """One gate's block of a recurrent matrix, every second column, a transpose: only the view changes."""
    want = ALL[name](np.empty((6, 5)), rng=np.random.default_rng(3))
    for take in (lambda a: a[6:12, 1:6], lambda a: a[:6, 1:11:2], lambda a: a[::-1][:6, :5], lambda a: a.T[:6, :5]):
        whole = np.full((24, 12), 99.0)
        view = take(whole)
        assert ALL[name](view, rng=np.random.default_rng(3)) is view
        assert same_bits(view, want)
        view[...] = 99
        assert (whole == 99).all()


@every_one
def test_both_dtypes_get_the_same_numbers(name: str) -> None:
    wide = ALL[name](np.empty((6, 5)), rng=np.random.default_rng(3))
    narrow = ALL[name](np.empty((6, 5), np.float32), rng=np.random.default_rng(3))
    assert same_bits(narrow, wide.astype(np.float32))


@pytest.mark.parametrize("name", RANDOM)
def test_draws_differ_and_follow_the_generator(name: str) -> None:
    rng = np.random.default_rng(0)
    a, b = (ALL[name](np.empty((6, 5)), rng=rng).copy() for _ in range(2))
    c, d = (ALL[name](np.empty((6, 5)), rng=None) for _ in range(2))
    assert len({x.tobytes() for x in (a, b, c, d)}) == 4


@pytest.mark.parametrize("name", RANDOM)
def test_a_seed_is_a_generator_of_that_seed(name: str) -> None:
    drawn = ALL[name](np.empty((6, 5)), rng=3)
    assert same_bits(drawn, ALL[name](np.empty((6, 5)), rng=np.random.default_rng(3)))
    assert same_bits(drawn, ALL[name](np.empty((6, 5)), rng=np.int64(3)))


@pytest.mark.parametrize("bad", [True, np.True_, 1.0, "1", [1], np.random.RandomState(0)])
def test_neither_a_seed_nor_a_generator(bad: Any) -> None:
    with pytest.raises(TypeError, match=r"rng: expected an integer, a numpy\.random\.Generator or None, got"):
        init.normal_(np.empty((6, 5)), rng=bad)


def test_a_negative_seed() -> None:
    with pytest.raises(ValueError, match="rng: expected a seed of at least 0, got -1"):
        init.normal_(np.empty((6, 5)), rng=-1)


@every_one
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_empty_arrays(name: str, shape: tuple[int, ...]) -> None:
    w = np.empty(shape)
    assert ALL[name](w, rng=None) is w


@every_one
def test_refuses_what_cannot_be_filled(name: str) -> None:
    frozen = read_only(np.ones((6, 5)))
    with pytest.raises(ValueError, match="tensor: expected a writable array"):
        ALL[name](frozen, rng=None)
    assert (frozen == 1).all()
    with pytest.raises(TypeError, match="tensor: expected a NumPy array to change in place, got list"):
        ALL[name]([[1.0]], rng=None)
    for dtype in (np.int64, np.float16, np.complex128, ">f8"):
        with pytest.raises(TypeError, match="tensor: expected float32 or float64"):
            ALL[name](np.ones((6, 5), dtype), rng=None)
    if name not in ("uniform_", "normal_", "constant_"):
        with pytest.raises(ValueError, match=r"tensor: expected .* axes, got shape \(5,\)"):
            ALL[name](np.empty(5), rng=None)


def test_refuses_arguments_out_of_range_before_it_changes_anything() -> None:
    w = np.full((3, 3), 7.0)
    for call, message in (
        (lambda: init.uniform_(w, 1, 0), "b: expected a number at least 1"),
        (lambda: init.normal_(w, std=-1), "std"),
        (lambda: init.sparse_(w, 1.5), "sparsity"),
        (lambda: init.kaiming_normal_(w, mode="in"), "mode: expected 'fan_in' or 'fan_out', got 'in'"),
        (lambda: init.kaiming_uniform_(w, nonlinearity="swish"), "nonlinearity: expected one of elu, gelu"),
        (lambda: init.xavier_normal_(w, np.nan), "gain"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert (w == 7).all()


@every_one
def test_refuses_masked_arrays_whose_mask_it_would_lift(name: str) -> None:
    masked = np.ma.masked_all((6, 5))
    with pytest.raises(TypeError, match="tensor: masked arrays are not supported"):
        ALL[name](masked, rng=None)
    assert masked.mask.all()


# ---- gains -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose3d"])
def test_gains_of_pytorchs_other_linear_maps(name: str) -> None:
    assert init.calculate_gain(name) == 1


def test_gains() -> None:
    assert init.calculate_gain("linear") == init.calculate_gain("identity") == init.calculate_gain("sigmoid") == 1
    assert init.calculate_gain("tanh") == 5 / 3
    assert init.calculate_gain("relu") == np.sqrt(2)
    assert init.calculate_gain("leaky_relu") == np.sqrt(2 / (1 + 0.01**2))
    assert init.calculate_gain("leaky_relu", 0.2) == np.sqrt(2 / 1.04)
    assert init.calculate_gain("selu") == 0.75
    with pytest.raises(ValueError, match="got 'swish'"):
        init.calculate_gain("swish")


@pytest.mark.parametrize(
    "layer", [gradcore.ReLU, gradcore.ELU, gradcore.GELU, gradcore.Softplus, gradcore.SiLU], ids=lambda a: a.__name__
)
def test_gains_keep_the_second_moment(layer: Any) -> None:
    z = np.linspace(-12, 12, 200001)
    moment = np.sum(np.exp(-(z**2) / 2) * layer(dtype=np.float64)(z) ** 2) * (z[1] - z[0]) / np.sqrt(2 * np.pi)
    assert init.calculate_gain(layer.__name__.lower()) == pytest.approx(1 / np.sqrt(moment), rel=1e-9)


@pytest.mark.peers
@pytest.mark.parametrize("name", ["linear", "sigmoid", "tanh", "relu", "leaky_relu", "selu"])
def test_gains_equal_torch(name: str) -> None:
    torch = pytest.importorskip("torch")
    for parameter in (None, 0.3):
        assert init.calculate_gain(name, parameter) == torch.nn.init.calculate_gain(name, parameter)


# ---- chrono ----------------------------------------------------------------------------------------------------------


def test_chrono_fills_an_lstm_bias() -> None:
    H, T_max = 5000, 100
    b = np.full(4 * H, 7.0)
    assert init.chrono_(b, T_max, rng=np.random.default_rng(0)) is b
    i, f, g, o = b.reshape(4, H)
    assert same_bits(i, -f)
    assert (g == 7).all()
    assert (o == 7).all()
    assert stats.kstest(np.exp(f), stats.uniform(1, T_max - 2).cdf).pvalue > 1e-3  # b_f ~ log(U[1, T_max - 1])


def test_chrono_with_the_shortest_time() -> None:
    b = init.chrono_(np.zeros(4000, np.float32), 100, T_min=50, rng=np.random.default_rng(0))
    times = np.exp(b[1000:2000].astype(np.float64)) + 1
    assert times.min() >= 50 - 1e-4
    assert times.max() <= 100 + 1e-4
    assert times.mean() == pytest.approx(75, rel=0.02)


@pytest.mark.parametrize("cell", [gradcore.LSTM, gradcore.GRU], ids=lambda a: a.__name__)
def test_chrono_sets_the_gate_that_keeps_in_every_layer_and_direction(cell: Any) -> None:
    H = 6
    layer = cell(3, H, 2, bidirectional=True, rng=np.random.default_rng(0))
    before = layer.state_dict()
    assert init.chrono_(layer, 50, rng=np.random.default_rng(1)) is layer
    set_gates = [0, 1] if cell is gradcore.LSTM else [1]
    seen = set()
    for name, p in layer.params.items():
        if name.startswith("weight"):
            assert same_bits(p, before[name])
            continue
        gates, old = p.reshape(-1, H), before[name].reshape(-1, H)
        others = [k for k in range(len(gates)) if k not in set_gates]
        assert same_bits(gates[others], old[others])
        if name.startswith("bias_hh"):
            assert not gates[set_gates].any()
            continue
        assert (gates[1] >= 0).all()
        assert (gates[1] <= np.log(49)).all()
        seen.add(gates[1].tobytes())
        if cell is gradcore.LSTM:
            assert same_bits(gates[0], -gates[1])
    assert len(seen) == 4


def test_chrono_makes_a_gru_remember() -> None:
    """With all weights 0 and T near T_max, the state decays by 1 - 1/T a step, (1 - 1/T)^T = 1/e over T of them."""
    layer = gradcore.GRU(1, 4, dtype=np.float64)
    layer.flat_params.fill(0)
    init.chrono_(layer, 100, T_min=100)
    _, tape = layer.forward(np.zeros((100, 1, 1)), np.ones((1, 1, 4)))
    assert np.allclose(tape.state, 0.99**100, rtol=1e-12)


def test_chrono_refuses_times_without_end() -> None:
    b = np.zeros(8)
    for T_min in (2.0, np.inf):
        with pytest.raises(ValueError, match="T_max: expected a finite number, got inf"):
            init.chrono_(b, np.inf, T_min)
    assert not b.any()


def test_chrono_refuses() -> None:
    with pytest.raises(TypeError, match="layer_or_bias: expected an LSTM, a GRU or an array, got RNN"):
        init.chrono_(gradcore.RNN(3, 4), 10)
    with pytest.raises(TypeError, match="layer_or_bias: expected an LSTM, a GRU or an array, got Linear"):
        init.chrono_(gradcore.Linear(3, 4), 10)
    with pytest.raises(TypeError, match="got str"):
        init.chrono_("lstm", 10)  # type: ignore[type-var]
    with pytest.raises(ValueError, match="layer_or_bias: expected a layer with biases; build it with bias=True"):
        init.chrono_(gradcore.LSTM(3, 4, bias=False), 10)
    with pytest.raises(ValueError, match=r"layer_or_bias: expected shape \(4 H,\), got \(6,\)"):
        init.chrono_(np.zeros(6), 10)
    with pytest.raises(ValueError, match="T_min"):
        init.chrono_(np.zeros(8), 10, T_min=1)
    with pytest.raises(ValueError, match="T_max: expected a number at least 2, got 1"):
        init.chrono_(np.zeros(8), 1)
