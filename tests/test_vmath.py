"""The accuracy that src/math/vmath.inc.h claims, read from there and measured as bench/ulp.py does, on a sample."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tools import load_bench

pytestmark = pytest.mark.kernels

ROOT = Path(__file__).parent.parent
FLOATS = [np.float32, np.float64]


ulp = load_bench("ulp")


def claimed_ulp(name: str) -> float:
    """The bound in the comment above the function."""
    before = (ROOT / "src" / "math" / "vmath.inc.h").read_text().split(f"*/\nINLINE VEC FN(v_{name})(")[0]
    found = re.search(r"max ULP (\d+(?:\.\d+)?)", before[before.rindex("/*") :])
    assert found, f"no 'max ULP' beside v_{name}"
    return float(found[1])


@pytest.mark.parametrize("name", ulp.LAYERS)
def test_the_claim_is_two(name: str) -> None:
    assert claimed_ulp(name) <= ulp.BOUND == 2


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", ulp.LAYERS)
def test_error_is_within_the_claim(name: str, dtype: Any) -> None:
    if dtype == np.float64 and np.finfo(np.longdouble).nmant <= 52:
        pytest.skip("no wider type to judge float64 by")
    worst, layer = ulp.Worst(), ulp.LAYERS[name](dtype=dtype)
    for x in ulp.stratified(name, dtype, 2_000_000):
        worst.look(name, layer, x)
    assert 0.5 <= worst.error <= claimed_ulp(name), worst.at
    assert not worst.wrong


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_judge_sees_an_error(dtype: Any) -> None:
    kind = np.finfo(dtype)
    one = np.array([1, 1, 1 - kind.epsneg, 0, kind.tiny], dtype)
    want = one.astype(ulp.WIDE[dtype]) + np.array([0, 3 * kind.eps, -3 * kind.epsneg, kind.tiny / 2, -kind.tiny / 2])
    got = ulp.ulps(one, want)
    assert got[:4].tolist() == [0, 3, 3, 0]  # the last but one was flushed to zero
    assert got[4] > 1000


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", ulp.LAYERS)
def test_exact_at_the_ends(name: str, dtype: Any) -> None:
    worst, layer = ulp.Worst(), ulp.LAYERS[name](dtype=dtype)
    ulp.check_ends(name, layer, worst)
    assert not worst.wrong
    large = np.array([500, -500, 1000, -1000, np.finfo(dtype).max, -np.finfo(dtype).max], dtype)
    np.testing.assert_allclose(layer(large), [1, -1 if name == "tanh" else 0] * 3, rtol=0, atol=1e-200)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", ulp.LAYERS)
def test_no_decrease_across_a_join(name: str, dtype: Any) -> None:
    worst = ulp.Worst()
    ulp.check_joins(name, ulp.LAYERS[name](dtype=dtype), worst)
    assert not worst.wrong


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", ulp.LAYERS)
def test_the_derivative_loses_no_more_than_that_of_pytorch(name: str, dtype: Any) -> None:
    worst = ulp.Worst()
    ulp.check_derivative(name, ulp.LAYERS[name](dtype=dtype), worst)
    assert not worst.wrong


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", ulp.LAYERS)
def test_symmetry_and_tails(name: str, dtype: Any) -> None:
    layer = ulp.LAYERS[name](dtype=dtype)
    x = np.linspace(0, 25, 10_001, dtype=dtype)
    y, mirrored = layer(x), layer(-x)
    if name == "tanh":
        assert (y == -mirrored).all()
    else:
        np.testing.assert_allclose(y + mirrored, 1, rtol=np.finfo(dtype).eps)
    assert (np.diff(y) >= 0).all()
    odd = layer(x[:7])  # a tail of the vectors gives the bits that their bodies give
    assert (odd == y[:7]).all()
