"""Dropout: against its twin, by its distribution, and from the generator that decides it."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from tools import LAYOUTS, Array, same_bits

import gradcore
from gradcore import losses, optim, reference
from gradcore.reference.dropout import threefry

pytestmark = pytest.mark.kernels
both_dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def ones(*shape: int, dtype: Any = np.float32) -> Array:
    return np.ones(shape, dtype)


def test_the_words_of_the_twin_are_those_of_its_authors() -> None:
    """The known answers for 20 rounds in kat_vectors of Random123."""
    counter, key = np.zeros(1, np.uint64), 0
    assert threefry(counter, key, 20)[:, 0].tolist() == [0x9C6CA96A, 0xE17EAE66, 0xFC10ECD4, 0x5256A7D8]


@pytest.mark.parametrize("n", [0, 1, 63, 64, 65, 1023, 1024, 1025, 40_001])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 1.0])
@both_dtypes
def test_both_passes_equal_the_twin(n: int, p: float, dtype: Any) -> None:
    layer = gradcore.Dropout(p, dtype=dtype, rng=n)
    x, dy = np.random.default_rng(0).standard_normal((2, n)).astype(dtype)
    key = int(np.random.default_rng(n).integers(2**64, dtype=np.uint64))
    y, tape = layer.forward(x)
    assert same_bits(y, reference.dropout(x, p, key))
    assert same_bits(layer.backward(tape, dy), reference.dropout(dy, p, key))


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.8, 0.999])
def test_the_rate_and_the_mean(p: float) -> None:
    """Of a million elements, within five standard deviations; what is left is scaled by 1 / (1 - p)."""
    n = 1_000_000
    y, _ = gradcore.Dropout(p, dtype=np.float64, rng=1).forward(ones(n, dtype=np.float64))
    dropped = y == 0
    assert abs(dropped.mean() - p) < 5 * np.sqrt(p * (1 - p) / n)
    assert np.allclose(y[~dropped], 1 / (1 - p), rtol=1e-15, atol=0)


@pytest.mark.parametrize("lag", [1, 2, 15, 16, 17, 32, 48, 63, 64, 1024, 4096])
def test_neighbors_are_independent(lag: int) -> None:
    """Also those that come from the same counter (16 apart), the next block (64) and the next thread's share."""
    n, p = 1_000_000, 0.3
    dropped = gradcore.Dropout(p, rng=2).forward(ones(n))[0] == 0
    both = np.mean(dropped[lag:] & dropped[:-lag])
    assert abs(both - p**2) < 5 * np.sqrt(p**2 * (1 - p**2) / (n - lag))


def test_runs_and_counts_are_those_of_independent_draws() -> None:
    """Of 31,250 groups of 32 elements, how many lose k: chi-squared below its 1e-6 quantile for 32 degrees."""
    from scipy.stats import binom, chi2

    dropped = gradcore.Dropout(0.5, rng=3).forward(ones(31_250, 32))[0] == 0
    for sums in (dropped.sum(axis=1), np.asfortranarray(dropped).T.reshape(-1, 32).sum(axis=1)):
        k = np.arange(8, 25)
        expected = binom.pmf(k, 32, 0.5) * len(sums)
        observed = np.bincount(sums, minlength=33)[8:25]
        assert ((observed - expected) ** 2 / expected).sum() < chi2.ppf(1 - 1e-6, len(k))


def test_every_call_has_a_mask_of_its_own() -> None:
    layer, n = gradcore.Dropout(0.5, rng=4), 100_000
    masks = [layer.forward(ones(n))[0] == 0 for _ in range(4)]
    for i, a in enumerate(masks):
        for b in masks[:i]:
            assert abs(np.mean(a & b) - 0.25) < 5 * np.sqrt(0.25 * 0.75 / n)


def test_the_generator_decides_the_mask() -> None:
    layer, x = gradcore.Dropout(0.5, rng=5), ones(1000)
    (rng,) = layer.generators()
    before = rng.bit_generator.state
    first = layer.forward(x)[0].copy()
    assert not same_bits(layer.forward(x)[0], first)
    rng.bit_generator.state = before
    assert same_bits(layer.forward(x)[0], first)
    assert same_bits(gradcore.Dropout(0.5, rng=5).forward(x)[0], first)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda a: pickle.loads(pickle.dumps(a))])
def test_a_copy_draws_the_same(how: Any) -> None:
    layer = gradcore.Dropout(0.5, rng=6)
    other = how(layer)
    assert same_bits(layer.forward(ones(100))[0], other.forward(ones(100))[0])


@both_dtypes
def test_zero_is_the_identity_and_draws_nothing(dtype: Any) -> None:
    layer, x = gradcore.Dropout(0.0, dtype=dtype, rng=7), np.linspace(-1, 1, 7, dtype=dtype)
    y, tape = layer.forward(x)
    assert layer.generators() == []
    assert same_bits(y, x)
    assert same_bits(layer.backward(tape, x), x)
    layer.p = 0.5
    assert same_bits(layer.forward(x)[0], gradcore.Dropout(0.5, dtype=dtype, rng=7).forward(x)[0])


@both_dtypes
def test_one_drops_everything(dtype: Any) -> None:
    layer, x = gradcore.Dropout(1.0, dtype=dtype), np.linspace(-1, 1, 100, dtype=dtype)
    y, tape = layer.forward(x)
    assert not y.any()
    assert not layer.backward(tape, x).any()


def test_in_inference_it_is_the_identity() -> None:
    layer, x = gradcore.Dropout(0.9, rng=8), np.linspace(-1, 1, 7, dtype=np.float32)
    before = layer.generators()[0].bit_generator.state
    assert same_bits(layer(x), x)
    assert layer.generators()[0].bit_generator.state == before


def test_a_rate_changed_before_backward_does_not_change_the_tape() -> None:
    layer, x = gradcore.Dropout(0.5, rng=9), ones(100)
    y, tape = layer.forward(x)
    layer.p = 0.0
    assert same_bits(layer.backward(tape, x), y)


def test_same_bits_for_any_number_of_threads(with_thread_counts: Any) -> None:
    def run() -> bytes:
        y, _ = gradcore.Dropout(0.3, rng=10).forward(ones(50_001))
        return bytes(y.tobytes())

    first, *others = with_thread_counts(run)
    assert all(other == first for other in others)


def test_float64_drops_what_float32_drops() -> None:
    narrow = gradcore.Dropout(0.3, rng=11).forward(ones(1000))[0]
    wide = gradcore.Dropout(0.3, dtype=np.float64, rng=11).forward(ones(1000, dtype=np.float64))[0]
    assert same_bits(narrow == 0, wide == 0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout(layout: str) -> None:
    x = np.random.default_rng(0).standard_normal((6, 5, 8)).astype(np.float32)
    layer, other = gradcore.Dropout(0.5, rng=12), gradcore.Dropout(0.5, rng=12)
    (y, tape), (other_y, other_tape) = layer.forward(x), other.forward(LAYOUTS[layout](x))
    assert same_bits(other_y, y)
    assert same_bits(other.backward(other_tape, LAYOUTS[layout](x)), layer.backward(tape, x))


def test_what_is_not_finite_shows() -> None:
    """Zero times NaN or infinity is NaN, as in PyTorch; a neighbor is not touched."""
    x = ones(100)
    x[3], x[4] = np.nan, np.inf
    y, _ = gradcore.Dropout(0.5, rng=13).forward(x)
    assert np.isnan(y[3])
    assert not np.isfinite(y[4])
    assert np.isfinite(y[5:]).all()


def test_wrong_arguments() -> None:
    for p in (-0.1, 1.1, np.nan):
        with pytest.raises(ValueError, match="p: expected a number at least 0 and at most 1, got"):
            gradcore.Dropout(p)
    layer = gradcore.Dropout(rng=0)
    with pytest.raises(ValueError, match="p: expected a number"):
        layer.p = 2.0
    with pytest.raises(TypeError, match="x: expected float32, got float64"):
        layer.forward(np.ones(3))
    with pytest.raises(TypeError, match="x: expected float32, got float64"):
        layer(np.ones(3))
    y, tape = layer.forward(ones(3))
    with pytest.raises(ValueError, match=r"dy: expected shape \(3,\), got \(4,\)"):
        layer.backward(tape, ones(4))
    with pytest.raises(ValueError, match="tape: expected a tape from this layer's forward"):
        gradcore.Dropout().backward(tape, y)
    assert layer.p == 0.5
    assert repr(gradcore.Dropout(0.1)) == "Dropout(p=0.1)"


def test_a_model_passes_the_dtype_and_the_axes_through_it() -> None:
    model = gradcore.Sequential(
        gradcore.GRU(2, 4, batch_first=True, dtype=np.float64), gradcore.Dropout(0.5), gradcore.LastStep(True)
    )
    assert model[1].dtype == np.float64
    assert model(np.ones((3, 5, 2))).shape == (3, 4)
    with pytest.raises(ValueError, match=r"layers\[2\]: has batch_first=False"):
        gradcore.Sequential(gradcore.GRU(2, 4, batch_first=True), gradcore.Dropout(0.5), gradcore.LastStep())


def test_a_step_that_fails_is_undone_with_its_mask() -> None:
    model = gradcore.Sequential(
        gradcore.Linear(3, 8, rng=0), gradcore.Dropout(0.5, rng=1), gradcore.Linear(8, 1, rng=2)
    )
    optimizer, seen = optim.SGD(model), []

    def loss(y: Array, target: Array) -> tuple[float, Array]:
        seen.append(y.copy())
        if len(seen) == 1:
            raise RuntimeError("once")
        return losses.mse(y, target)

    batch = (ones(20, 3), ones(20, 1))
    with pytest.raises(RuntimeError, match="once"):
        gradcore.training_step(model, batch, loss, optimizer)
    gradcore.training_step(model, batch, loss, optimizer)
    assert same_bits(seen[0], seen[1])


@pytest.mark.peers
@both_dtypes
def test_the_same_function_as_torch(dtype: Any) -> None:
    """PyTorch's masks differ; scale, mean, and the ends do not."""
    torch = pytest.importorskip("torch")
    x = np.linspace(1, 2, 100_000, dtype=dtype)
    for p in (0.0, 0.2, 1.0):
        theirs, (ours, _) = torch.nn.Dropout(p)(torch.tensor(x)).numpy(), gradcore.Dropout(p, dtype=dtype).forward(x)
        both = (theirs != 0) & (ours != 0)
        assert np.allclose(ours[both], theirs[both], rtol=1e-6 if dtype == np.float32 else 1e-15, atol=0)
        assert abs((ours == 0).mean() - (theirs == 0).mean()) < 0.01
