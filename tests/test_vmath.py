"""The accuracy that src/vmath.inc.h claims, read from there and measured."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gradcore

pytestmark = pytest.mark.kernels

SOURCE = Path(__file__).parent.parent / "src" / "vmath.inc.h"
LAYERS = {"tanh": gradcore.Tanh, "sigmoid": gradcore.Sigmoid}


def claimed_ulp(name: str) -> float:
    """The bound in the comment above the function."""
    before = SOURCE.read_text().split(f"*/\nINLINE VEC FN(v_{name})(")[0]
    found = re.search(r"max ULP (\d+)", before[before.rindex("/*") :])
    assert found, f"no 'max ULP' beside v_{name}"
    return float(found[1])


def truth(name: str, x: Any) -> Any:
    """The function in a wider type than x's."""
    wide = x.astype(np.float64 if x.dtype == np.float32 else np.longdouble)
    return np.tanh(wide) if name == "tanh" else 1 / (1 + np.exp(-wide))


def inputs(dtype: Any) -> Any:
    """Every binade evenly, both signs, and densely where the functions bend."""
    rng = np.random.default_rng(0)
    kind = np.uint32 if dtype == np.float32 else np.uint64
    most = int(np.array(30, dtype).view(kind))
    least = int(np.array(np.finfo(dtype).tiny * 4, dtype).view(kind))
    spread = rng.integers(least, most, 2_000_000, dtype=kind).view(dtype)
    dense = rng.uniform(0, 20, 1_000_000).astype(dtype)
    x = np.concatenate([spread, dense])
    return np.concatenate([x, -x])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", LAYERS)
def test_error_is_within_the_claim(name: str, dtype: Any) -> None:
    if dtype == np.float64 and np.finfo(np.longdouble).nmant <= 52:
        pytest.skip("no wider type to judge float64 by")
    x = inputs(dtype)
    y, want = LAYERS[name](dtype=dtype)(x), truth(name, x)
    error = np.abs(y - want) / np.spacing(np.abs(want).astype(dtype))
    assert error.max() <= claimed_ulp(name), x[error.argmax()]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", LAYERS)
def test_exact_at_the_ends(name: str, dtype: Any) -> None:
    x = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 500, -500], dtype)
    y = LAYERS[name](dtype=dtype)(x)
    want = [0.0, -0.0, 1, -1, np.nan, 1, -1] if name == "tanh" else [0.5, 0.5, 1, 0, np.nan, 1, 0]
    np.testing.assert_allclose(y, np.array(want, dtype), rtol=0, atol=1e-200)
    if name == "tanh":
        assert np.signbit(y[:2]).tolist() == [False, True]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", LAYERS)
def test_symmetry_and_tails(name: str, dtype: Any) -> None:
    x = np.linspace(0, 25, 10_001, dtype=dtype)
    y, mirrored = LAYERS[name](dtype=dtype)(x), LAYERS[name](dtype=dtype)(-x)
    if name == "tanh":
        assert (y == -mirrored).all()
    else:
        np.testing.assert_allclose(y + mirrored, 1, rtol=2 * np.finfo(dtype).eps)
    steps = np.diff(y)
    assert (steps >= -np.finfo(dtype).eps).all()
    odd = LAYERS[name](dtype=dtype)(x[:7])  # a tail of the vectors gives the bits that their bodies give
    assert (odd == y[:7]).all()
