"""Norms against exact arithmetic and the twin, clipping against its definition, and everything that holds gradients."""

from __future__ import annotations

import array
import copy
import math
import pickle
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from conftest import LONG
from hypothesis import assume, given
from hypothesis import strategies as st
from tools import LAYOUTS, relative_error, same_bits

import gradcore
from gradcore import clip_grad_norm_, clip_grad_value_, grad_norm, reference
from gradcore._base.check import Array

pytestmark = pytest.mark.kernels

BLOCK = 4096  # GC_BLOCK of gradcore.h: an array is measured in blocks of so many elements
SIZES = [0, 1, 2, 31, 32, 33, 1000, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5, 20 * BLOCK + 7]
POWERS = [0.5, 1.0, 1.5, 2.0, 3.0, 10.0, 1000.0, math.inf]
DTYPES = [np.float16, np.float32, np.float64]
ROUNDING: dict[Any, float] = {np.float16: 2e-3, np.float32: 1e-6, np.float64: 1e-12}  # of clipped entries
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


def random_array(n: Any, dtype: Any = np.float64, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(n).astype(dtype)


def exact_norm(g: Array) -> float:
    """The 2-norm, rounded once, by arithmetic of integers; inf beyond the range of float64."""
    fractions, exponents = np.frexp(g.ravel().astype(np.float64))
    digits = np.ldexp(fractions, 53).astype(np.int64)
    total = Fraction(0)
    for exponent in np.unique(exponents).tolist():
        squares = sum(n * n for n in digits[exponents == exponent].tolist())
        total += squares * Fraction(2) ** (2 * (exponent - 53))
    if total == 0:
        return 0.0
    shift = 2 * (160 + total.denominator.bit_length())
    root = Fraction(math.isqrt((total.numerator << shift) // total.denominator), 1 << (shift // 2))
    try:
        return float(root)
    except OverflowError:
        return math.inf


def ulps(got: float, want: float) -> float:
    if got == want:
        return 0.0
    return abs(got - want) / math.ulp(want) if math.isfinite(want) else math.inf


# ---- the norm --------------------------------------------------------------------------------------------------------


@each_dtype
@pytest.mark.parametrize("n", SIZES)
def test_the_norm_of_every_size_is_exact_to_an_ulp(n: int, dtype: Any) -> None:
    g = random_array(n, dtype)
    # sums are compensated; only those of float32 are carried in float64, and have digits to spare
    assert ulps(float(grad_norm(g)), exact_norm(g)) <= (64 if dtype == np.float32 else 1)


@given(
    hnp.arrays(
        np.float64,
        st.integers(1, 70),
        elements=st.floats(allow_nan=False, allow_infinity=False, width=64),
    )
)
def test_the_norm_is_exact_to_an_ulp_from_subnormals_to_the_largest_number(g: Array) -> None:
    assert ulps(float(grad_norm(g)), exact_norm(g)) <= 1


@given(hnp.arrays(np.float32, st.integers(1, 70), elements=st.floats(allow_nan=False, allow_infinity=False, width=32)))
def test_the_norm_of_float32_is_exact_far_beyond_its_own_precision(g: Array) -> None:
    assert ulps(float(grad_norm(g)), exact_norm(g)) <= 64


@given(hnp.arrays(np.float16, st.integers(1, 70), elements=st.floats(allow_nan=False, allow_infinity=False, width=16)))
def test_the_norm_of_float16_is_exact_to_an_ulp(g: Array) -> None:
    assert ulps(float(grad_norm(g)), exact_norm(g)) <= 1
    assert ulps(float(grad_norm(g, 1)), float(sum(Fraction(abs(float(x))) for x in g))) <= 1
    assert grad_norm(g, math.inf) == np.abs(g).max()


def test_float16_squares_neither_overflow_nor_underflow() -> None:
    g = np.array([300.0], np.float16)  # whose square is infinite in float16
    assert clip_grad_norm_(g, 1.0) == 300
    assert g == 1
    assert grad_norm(np.full(BLOCK + 1, 65504, np.float16)) == pytest.approx(65504 * math.sqrt(BLOCK + 1), rel=1e-15)
    assert grad_norm(np.full(4, 6e-8, np.float16)) == 2.0**-23
    sizes = np.repeat(np.array([60000, 6e-8], np.float16), [1, 20 * BLOCK])  # small ones beside a large one
    assert ulps(float(grad_norm(sizes)), exact_norm(sizes)) <= 1


def test_many_small_entries_beside_a_large_one_are_not_lost() -> None:
    g = np.full(50 * BLOCK, 1e-9)
    g[777] = 1.0
    assert ulps(float(grad_norm(g)), exact_norm(g)) <= 1


@pytest.mark.parametrize("value", [1e30, 1e-30, 3e38, 1e-45])
def test_float32_squares_neither_overflow_nor_underflow(value: float) -> None:
    g = np.full(4, value, np.float32)
    assert grad_norm(g) == 2 * float(g[0])


@pytest.mark.parametrize("value", [1e200, 1e-200, 8e307, 5e-324, 2.0**480, 2.0**-480, 2.0**479.5, 2.0**-480.5])
@pytest.mark.parametrize("p", POWERS)
def test_float64_powers_neither_overflow_nor_underflow(value: float, p: float) -> None:
    g = np.array([value, 0.0, -value])
    try:
        want = value * 2 ** (1 / p)
    except OverflowError:
        want = math.inf
    assert float(grad_norm(g, p)) == pytest.approx(want, rel=1e-15, abs=5e-324)


def test_each_array_is_scaled_for_itself() -> None:
    grads = {"large": np.full(4, 1e200), "usual": np.full(9, 2.0), "small": np.full(4, 1e-200), "none": np.zeros(3)}
    for p in (2.0, 3.0):
        norm = grad_norm(grads, p)
        want = {name: len(g) ** (1 / p) * g[0] for name, g in grads.items()}
        assert norm.per_array == pytest.approx(want, rel=1e-15, abs=0)
        assert float(norm) == pytest.approx(4 ** (1 / p) * 1e200, rel=1e-15)
    assert grad_norm({"small": grads["small"], "none": grads["none"]}) == pytest.approx(2e-200, rel=1e-15)


def test_a_norm_beyond_float64_is_inf_without_infinite_entries() -> None:
    norm = grad_norm(np.full(4, 1.7e308))
    assert norm == math.inf
    assert (norm.n_inf, norm.n_nan) == (0, 0)


@each_dtype
@pytest.mark.parametrize("p", POWERS)
def test_every_power_agrees_with_the_twin(p: float, dtype: Any) -> None:
    arrays = [random_array(n, dtype, seed=n) for n in SIZES]
    assert float(grad_norm(arrays, p)) == pytest.approx(reference.grad_norm(arrays, p), rel=1e-12)
    got = grad_norm(arrays, p).per_array
    assert got == pytest.approx([reference.grad_norm([a], p) for a in arrays], rel=1e-12)


@pytest.mark.parametrize("p", [0.5, 1.0, 2.0, 3.0, math.inf])
@given(
    g=hnp.arrays(np.float64, st.integers(1, 100), elements=st.floats(-1e3, 1e3, allow_subnormal=False)),
    k=st.integers(-900, 900),
)
def test_scaling_by_a_power_of_two_is_exact(p: float, g: Array, k: int) -> None:
    scaled = np.ldexp(g, k)
    assume(np.array_equal(np.ldexp(scaled, -k), g))
    before, after = float(grad_norm(g, p)), float(grad_norm(scaled, p))
    want = float(np.ldexp(before, k))
    assume(2.2250738585072014e-308 <= want < math.inf or want == 0)
    assert after == want


@given(st.lists(st.integers(0, 3 * BLOCK), max_size=5), st.sampled_from(DTYPES))
def test_an_array_and_its_parts_have_one_norm_to_two_ulp(cuts: list[int], dtype: Any) -> None:
    whole = random_array(3 * BLOCK, dtype)
    parts = [grad_norm(np.split(whole, sorted(cuts)), p) for p in (1.0, 2.0, math.inf)]
    for got, p in zip(parts, (1.0, 2.0, math.inf), strict=True):
        # plain sums of float32 in float64: both are right to 64, see above
        assert ulps(float(got), float(grad_norm(whole, p))) <= (64 if dtype == np.float32 else 2)


@given(g=hnp.arrays(np.float16, st.integers(1, 50), elements=st.floats(-8, 8, width=16)), k=st.integers(-8, 12))
def test_scaling_float16_by_a_power_of_two_is_exact(g: Array, k: int) -> None:
    scaled = np.ldexp(g, k).astype(np.float16)
    assume(np.array_equal(np.ldexp(scaled, -k).astype(np.float16), g))
    for p in (1.0, 2.0, math.inf):
        assert float(grad_norm(scaled, p)) == math.ldexp(float(grad_norm(g, p)), k)


@given(st.permutations(range(6)), st.sampled_from(POWERS), st.sampled_from(DTYPES))
def test_the_order_of_the_arrays_does_not_matter(order: list[int], p: float, dtype: Any) -> None:
    arrays = [random_array(n, dtype, seed=n) for n in (1, 7, 100, BLOCK, BLOCK + 3, 0)]
    want, got = grad_norm(arrays, p), grad_norm([arrays[i] for i in order], p)
    assert float(got) == pytest.approx(float(want), rel=1e-14)
    assert np.array_equal(got.per_array, np.asarray(want.per_array)[order])


@given(st.lists(st.integers(0, 3 * BLOCK), max_size=5), st.sampled_from(POWERS), st.sampled_from(DTYPES))
def test_an_array_and_its_parts_have_one_norm(cuts: list[int], p: float, dtype: Any) -> None:
    whole = random_array(3 * BLOCK, dtype)
    parts = np.split(whole, sorted(cuts))
    assert float(grad_norm(parts, p)) == pytest.approx(float(grad_norm(whole, p)), rel=1e-13)


@each_dtype
@pytest.mark.parametrize("p", POWERS)
def test_the_bits_are_the_same_for_any_number_of_threads(
    with_thread_counts: Callable[[Callable[[], Any]], list[Any]], p: float, dtype: Any
) -> None:
    arrays = [random_array(n, dtype, seed=n) * dtype(10 ** (n % 5)) for n in (*SIZES, 25 * BLOCK, 0, 9)]

    def clip() -> tuple[Any, ...]:
        mine = [a.copy() for a in arrays]
        norm = clip_grad_norm_(mine, 0.25, p)
        return float(norm), norm.worst, norm.coef, np.asarray(norm.per_array).tobytes(), [a.tobytes() for a in mine]

    first, *others = with_thread_counts(clip)
    assert all(other == first for other in others)


def test_mixed_with_other_dtypes() -> None:
    small, large = random_array(100, np.float32), random_array(BLOCK + 1, np.float64)
    half = random_array(2 * BLOCK, np.float16)
    norm = grad_norm([half, small, large])
    assert norm == pytest.approx(math.hypot(*(grad_norm(g) for g in (half, small, large))), rel=1e-15)
    assert clip_grad_norm_([small, half, large], 1.0).clipped
    assert math.hypot(grad_norm(small), grad_norm(half), grad_norm(large)) == pytest.approx(1.0, rel=1e-5)


# ---- the worst entry, and what is not finite -------------------------------------------------------------------------


@each_dtype
@pytest.mark.parametrize(
    "index", [0, 31, 32, 33, BLOCK - 1, BLOCK, 2 * BLOCK - 1, 2 * BLOCK, 20 * BLOCK, 20 * BLOCK + 6]
)
def test_the_largest_entry_is_found_wherever_it_is(index: int, dtype: Any) -> None:
    g = random_array(20 * BLOCK + 7, dtype).clip(-1, 1)
    g[index] = -1.5
    g[index + 1 :: 40] = g[index + 1 :: 40].clip(0, 1) * 1.5  # ties come later
    for p in (1.0, 2.0, 3.0, math.inf):
        assert grad_norm([np.ones(5, dtype), g], p).worst == (1, (index,))


def test_the_first_largest_entry_is_the_worst() -> None:
    assert grad_norm({"a": np.zeros((2, 3)), "b": np.array([[1.0, -2.0], [2.0, 0.0]])}).worst == ("b", (0, 1))
    assert grad_norm([np.zeros((2, 3)), np.zeros(4)]).worst == (0, (0, 0))
    assert grad_norm(np.array(3.0)).worst == (0, ())
    assert grad_norm([np.zeros((0, 3)), np.zeros((2, 0))]).worst is None


LARGE = 17 * BLOCK + 3  # enough for a second thread
EDGES = [0, 31, 32, BLOCK - 1, BLOCK, 8 * BLOCK, 9 * BLOCK - 1, 11 * BLOCK - 1, 17 * BLOCK, LARGE - 1]


@each_dtype
@pytest.mark.parametrize("p", [1.0, 2.0, 3.5, math.inf] if LONG else [2.0, 3.5])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_every_position_of_a_nonfinite_entry_under_every_policy(value: float, p: float, dtype: Any) -> None:
    original = {"small": random_array(10, dtype), "large": random_array(LARGE, dtype, seed=1)}
    for index in EDGES if LONG else EDGES[::3]:
        grads = {name: g.copy() for name, g in original.items()}
        grads["large"][index] = value
        before = {name: g.tobytes() for name, g in grads.items()}
        counts = (1, 0) if math.isnan(value) else (0, 1)

        norm = grad_norm(grads, p)
        assert math.isnan(norm) if math.isnan(value) else norm == math.inf
        assert (norm.n_nan, norm.n_inf, norm.worst, norm.coef) == (*counts, ("large", (index,)), 1.0)
        assert not norm.skipped

        what = "NaN" if math.isnan(value) else "Inf"
        with pytest.raises(FloatingPointError, match=rf"grads\['large'\]: {what} at \({index},\)"):
            clip_grad_norm_(grads, 1.0, p)
        skipped = clip_grad_norm_(grads, 1.0, p, nonfinite="skip")
        assert skipped.skipped
        assert not skipped.clipped
        assert {name: g.tobytes() for name, g in grads.items()} == before

        zeroed = clip_grad_norm_(grads, 1.0, p, nonfinite="zero")
        remaining = {"small": original["small"], "large": original["large"].copy()}
        remaining["large"][index] = 0
        want = reference.clip_grad_norm(list(remaining.values()), 1.0, p)
        assert (zeroed.n_nan, zeroed.n_inf, zeroed.worst) == (*counts, ("large", (index,)))
        assert zeroed.clipped
        assert float(zeroed) == pytest.approx(reference.grad_norm(list(remaining.values()), p), rel=1e-12)
        for got, twin in zip(grads.values(), want, strict=True):
            assert relative_error(got, twin) <= ROUNDING[dtype]


def test_nan_and_inf_are_counted_and_the_first_is_named() -> None:
    g = np.ones((5, 1000))
    g[1, 7], g[1, 3], g[4, 999], g[4, 998] = math.nan, -math.inf, math.nan, math.nan
    norm = grad_norm({"a": np.ones(3), "b": g, "c": np.full(2, math.inf)})
    assert (norm.n_nan, norm.n_inf, norm.worst) == (3, 3, ("b", (1, 3)))
    assert norm.per_array["a"] == math.sqrt(3)
    assert math.isnan(norm.per_array["b"])
    assert norm.per_array["c"] == math.inf


def test_zeroing_without_clipping_keeps_the_other_bits() -> None:
    g = np.array([0.1, math.nan, -0.0, 5e-324, math.inf])
    norm = clip_grad_norm_(g, 1.0, nonfinite="zero")
    assert same_bits(g, np.array([0.1, 0.0, -0.0, 5e-324, 0.0]))
    assert (float(norm), norm.clipped, norm.coef, norm.n_nan, norm.n_inf) == (0.1, False, 1.0, 1, 1)
    assert norm.per_array == [0.1]


# ---- clipping --------------------------------------------------------------------------------------------------------


@each_dtype
@pytest.mark.parametrize("p", POWERS)
def test_after_clipping_the_norm_is_the_limit(p: float, dtype: Any) -> None:
    arrays = [random_array(n, dtype, seed=n) for n in SIZES]
    before = reference.grad_norm(arrays, p)
    limit = before / 7
    twin = reference.clip_grad_norm(arrays, limit, p)
    norm = clip_grad_norm_(arrays, limit, p)
    assert norm.clipped
    assert float(norm) == pytest.approx(before, rel=1e-12)
    assert norm.coef == pytest.approx(1 / 7, rel=1e-12)
    assert float(grad_norm(arrays, p)) == pytest.approx(limit, rel=ROUNDING[dtype])
    for got, want in zip(arrays, twin, strict=True):
        assert relative_error(got, want) <= ROUNDING[dtype]


@given(
    g=hnp.arrays(np.float64, st.integers(1, 40), elements=st.floats(allow_nan=False, allow_infinity=False)),
    exponent=st.floats(-320, 308),
    p=st.sampled_from([1.0, 2.0, 3.0, math.inf]),
)
def test_what_was_finite_stays_finite_and_keeps_its_direction(g: Array, exponent: float, p: float) -> None:
    limit = 10.0**exponent
    before = g.copy()
    norm = clip_grad_norm_(g, limit, p)
    assert np.isfinite(g).all()
    assert (g * np.sign(before) >= 0).all()
    if not norm.clipped:
        assert same_bits(g, before)
        return
    # each entry over the largest, in exact arithmetic; what falls below the normal numbers has fewer digits
    largest = int(np.abs(before).argmax())
    factor = Fraction(float(g[largest])) / Fraction(float(before[largest]))
    for got, given_ in zip(g, before, strict=True):
        want = factor * Fraction(float(given_))
        assert (
            abs(Fraction(float(got)) - want)
            <= abs(want) / 2**51
            + Fraction(5e-324) * 2
            + abs(Fraction(float(given_)) / Fraction(float(before[largest]))) * Fraction(5e-324) * 2
        )
    assert float(grad_norm(g, p)) == pytest.approx(limit, rel=1e-12, abs=5e-324 * 2 * len(g))


def test_a_coefficient_below_the_range_of_the_dtype_does_its_work() -> None:
    g = np.array([3e38, -1.5e38], np.float32)
    clip_grad_norm_(g, 1e-3)
    assert g == pytest.approx([1e-3 * 2 / math.sqrt(5), -1e-3 / math.sqrt(5)], rel=1e-6)
    g64 = np.array([1.6e308, -0.8e308, 1e300])
    norm = clip_grad_norm_(g64, 1e-10)
    assert norm.coef == pytest.approx(1e-10 / 1.6e308 / math.sqrt(1.25), rel=1e-3)  # subnormal: few digits
    assert g64 == pytest.approx([2e-10 / math.sqrt(5), -1e-10 / math.sqrt(5), 1e-18 / 1.6 / math.sqrt(1.25)], rel=1e-14)


def test_a_norm_beyond_float64_is_clipped_all_the_same() -> None:
    g = np.full(4, 1.5e308)
    norm = clip_grad_norm_(g, 1e308)
    assert norm == math.inf
    assert norm.clipped
    assert norm.coef == pytest.approx(1 / 3, rel=1e-15)
    assert g == pytest.approx(np.full(4, 0.5e308), rel=1e-15)


@each_dtype
@given(data=st.data())
def test_below_the_limit_every_bit_stays(dtype: Any, data: st.DataObject) -> None:
    width: Any = 8 * np.dtype(dtype).itemsize
    elements = st.floats(allow_nan=False, allow_infinity=False, width=width)
    g = data.draw(hnp.arrays(dtype, hnp.array_shapes(max_dims=3), elements=elements))
    before = g.copy()
    norm = clip_grad_norm_(g, float(grad_norm(g)))  # just at the limit
    assert same_bits(g, before)
    assert (norm.clipped, norm.coef) == (False, 1.0)
    assert not clip_grad_norm_(g, math.inf).clipped
    assert same_bits(g, before)


@each_dtype
@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, math.inf])
def test_clipping_twice_is_clipping_once(p: float, dtype: Any) -> None:
    g = random_array(BLOCK + 9, dtype)
    limit = float(grad_norm(g, p)) / 7
    clip_grad_norm_(g, limit, p)
    once = g.copy()
    again = clip_grad_norm_(g, limit, p)
    assert again == pytest.approx(limit, rel=1e-3 if dtype == np.float16 else 1e-7)
    np.testing.assert_array_max_ulp(g, once, maxulp=1)


def test_limits_of_zero_and_infinity() -> None:
    g = np.array([3.0, -4.0])
    assert not clip_grad_norm_(g, math.inf).clipped
    norm = clip_grad_norm_(g, 0)
    assert (norm, norm.coef, norm.clipped) == (5.0, 0.0, True)
    assert same_bits(g, np.array([0.0, -0.0]))
    norm = clip_grad_norm_(g, 0)
    assert (norm, norm.coef, norm.clipped) == (0.0, 1.0, False)


@each_dtype
def test_clipping_by_value(dtype: Any) -> None:
    g = random_array(3 * BLOCK + 5, dtype)
    g[[5, 6, BLOCK]] = math.nan, math.inf, -math.inf
    want = np.clip(g, dtype(-0.3), dtype(0.3))
    assert clip_grad_value_({"g": g}, 0.3) is None
    assert same_bits(g, want)
    clip_grad_value_(g, math.inf)
    assert same_bits(g, want)
    clip_grad_value_(g, 0)
    assert np.isnan(g[5])
    assert not np.delete(g, 5).any()


# ---- thresholds ------------------------------------------------------------------------------------------------------


class Recorder:
    """A threshold that answers the same, and remembers what it was told."""

    def __init__(self, answer: Any) -> None:
        self.answer, self.told = answer, []

    def update(self, norm: float) -> Any:
        self.told.append(norm)
        return self.answer


@each_dtype
@pytest.mark.parametrize("nonfinite", ["raise", "skip", "zero"])
@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
def test_a_threshold_clips_as_the_number_does_that_it_answers(p: float, nonfinite: str, dtype: Any) -> None:
    for limit in (0.0, 0.5, 1e6, math.inf):
        g, h = random_array(BLOCK + 3, dtype), random_array(BLOCK + 3, dtype)
        threshold = Recorder(limit)
        norm, want = (clip_grad_norm_(a, m, p, nonfinite=nonfinite) for a, m in ((g, threshold), (h, limit)))
        assert same_bits(g, h)
        assert threshold.told == [float(want)]
        assert type(threshold.told[0]) is float
        assert (norm, norm.max_norm, norm.coef, norm.clipped) == (want, limit, want.coef, want.clipped)
        assert want.max_norm == limit


def test_a_threshold_sees_only_norms_of_gradients_that_are_used() -> None:
    g = np.array([3.0, math.nan, 4.0, math.inf])
    before = g.copy()
    threshold = Recorder(1.0)
    with pytest.raises(FloatingPointError):
        clip_grad_norm_(g, threshold)
    norm = clip_grad_norm_(g, threshold, nonfinite="skip")
    assert (norm.skipped, norm.max_norm, norm.clipped) == (True, math.inf, False)
    assert threshold.told == []
    assert same_bits(g, before)
    norm = clip_grad_norm_(g, threshold, nonfinite="zero")
    assert threshold.told == [5.0]
    assert (float(norm), norm.max_norm, norm.clipped) == (5.0, 1.0, True)
    assert g == pytest.approx([0.6, 0.0, 0.8, 0.0])


def test_a_norm_beyond_float64_reaches_a_threshold_as_inf() -> None:
    g, threshold = np.full(4, 1.5e308), Recorder(1.0)
    assert clip_grad_norm_(g, threshold).clipped
    assert threshold.told == [math.inf]
    assert g == pytest.approx(np.full(4, 0.5))


def test_the_limit_is_told_where_there_is_none() -> None:
    assert grad_norm(np.ones(4)).max_norm == math.inf
    assert clip_grad_norm_(np.array([math.nan]), 2.0, nonfinite="skip").max_norm == 2


def test_a_run_of_adaptive_clipping() -> None:
    rng, threshold, plain = np.random.default_rng(0), gradcore.threshold.ZClip(), gradcore.threshold.ZClip()
    n_clipped = 0
    for t in range(300):
        g = rng.standard_normal(50) * (100 if t % 40 == 39 else 1)
        want = plain.update(float(grad_norm(g)))
        norm = clip_grad_norm_(g, threshold)
        assert norm.max_norm == want
        assert grad_norm(g) <= want * (1 + 1e-15)
        n_clipped += norm.clipped
    assert 7 <= n_clipped < 30


@pytest.mark.parametrize(
    ("max_norm", "error", "message"),
    [
        (Recorder(-1.0), ValueError, "max_norm: expected a number at least 0, got -1"),
        (Recorder(math.nan), ValueError, "max_norm: expected a number at least 0, got nan"),
        (Recorder(None), TypeError, "max_norm: expected a number, got NoneType"),
        (gradcore.schedule.constant(1.0), TypeError, "max_norm: expected a number or an object .*, got a schedule"),
        (lambda step: 1.0, TypeError, "max_norm: expected a number or an object .*, got a schedule"),
    ],
)
def test_what_gives_no_limit_changes_nothing(max_norm: Any, error: type[Exception], message: str) -> None:
    for nonfinite in ("raise", "zero"):
        g = np.array([3.0, 4.0] if nonfinite == "raise" else [3.0, math.nan])
        before = g.copy()
        with pytest.raises(error, match=message):
            clip_grad_norm_(g, max_norm, nonfinite=nonfinite)
        assert same_bits(g, before)


ALL_HALVES = np.arange(2**16, dtype=np.uint16).view(np.float16)


def test_every_float16_goes_to_double_and_back_unchanged() -> None:
    g = ALL_HALVES.copy()
    clip_grad_value_(g, math.inf)
    assert same_bits(g, ALL_HALVES)


@given(st.floats(2.0**-60, 1.0, exclude_max=True))
def test_a_clipped_float16_is_rounded_once(coef: float) -> None:
    g = ALL_HALVES[np.isfinite(ALL_HALVES)].copy()
    before = g.astype(np.float64)
    norm = clip_grad_norm_(g, coef * float(grad_norm(g)))
    assert norm.clipped
    assert same_bits(g, (before * norm.coef).astype(np.float16))  # NumPy goes from double to half in one step


@pytest.mark.parametrize("coef", [0.5, 0.75, 2.0**-11, 3 * 2.0**-14])
def test_float16_ties_go_to_even(coef: float) -> None:
    g = np.array([1.0, 0.0, 3.0, *np.arange(2049, 2179, 2), 2.0**-24, 3 * 2.0**-24, 5 * 2.0**-24], np.float16)
    before = g.astype(np.float64)
    limit = coef * float(grad_norm(g, math.inf))  # the quotient is coef, exactly
    assert clip_grad_norm_(g, limit, math.inf).coef == coef
    assert same_bits(g, (before * coef).astype(np.float16))


@pytest.mark.parametrize("limit", [0.0, 1e-8, 0.1, 0.33, 1.0, 65504.0, 65519.0, 65520.0, 1e300])
def test_clipping_every_float16_by_value(limit: float) -> None:
    g = ALL_HALVES.copy()
    clip_grad_value_(g, limit)
    with np.errstate(over="ignore"):
        most = np.float16(limit)
    with np.errstate(invalid="ignore"):
        want = np.where(np.abs(ALL_HALVES) > most, np.copysign(most, ALL_HALVES), ALL_HALVES)
    assert np.array_equal(g, want, equal_nan=True)
    assert same_bits(g[np.abs(ALL_HALVES) < most], ALL_HALVES[np.abs(ALL_HALVES) < most])


# ---- each array by its own norm --------------------------------------------------------------------------------------


@each_dtype
@pytest.mark.parametrize("p", POWERS[1:])
def test_each_array_is_clipped_as_if_it_were_alone(p: float, dtype: Any) -> None:
    arrays = {f"g{n}": random_array(n, dtype, seed=n) * dtype(3) ** (n % 5) for n in SIZES}
    alone = {name: g.copy() for name, g in arrays.items()}
    each = {name: clip_grad_norm_(g, 2.5, p) for name, g in alone.items()}
    whole = grad_norm(arrays, p)
    norm = clip_grad_norm_(arrays, 2.5, p, per_array=True)
    assert (float(norm), norm.worst, norm.per_array) == (float(whole), whole.worst, whole.per_array)
    assert norm.coefs == {name: one.coef for name, one in each.items()}
    assert 1 < sum(one.clipped for one in each.values()) < len(SIZES)  # some fire, and some do not
    assert norm.clipped
    assert norm.coef == min(one.coef for one in each.values())
    for name, g in arrays.items():
        assert same_bits(g, alone[name])


def test_with_per_array_the_limit_is_a_number_and_is_told() -> None:
    g, threshold = np.array([3.0, 4.0]), Recorder(1.0)
    with pytest.raises(TypeError, match="max_norm: expected a number with per_array, got Recorder"):
        clip_grad_norm_(g, threshold, per_array=True)
    assert threshold.told == []
    assert g.tolist() == [3.0, 4.0]
    assert clip_grad_norm_(g, 2.0, per_array=True).max_norm == 2.0


def test_arrays_below_the_limit_keep_their_bits_beside_those_above() -> None:
    grads = [np.array([3.0, 4.0]), np.array([0.1, -0.0, 5e-324]), WithGrad(None), np.full(4, 1.5e308), np.zeros(0)]
    before = grads[1].copy()
    norm = clip_grad_norm_([*grads, grads[0]], 1.0, per_array=True)
    assert same_bits(grads[1], before)
    assert grads[0] == pytest.approx([0.6, 0.8])
    assert grads[3] == pytest.approx(np.full(4, 0.5))
    assert isinstance(norm.coefs, np.ndarray)
    assert norm.coefs == pytest.approx([0.2, 1.0, 1.0, 1 / 3 / 1e308, 1.0, 0.2])
    again = clip_grad_norm_(grads, 2.0, per_array=True)
    assert (again.clipped, again.coef) == (False, 1.0)
    assert np.array_equal(again.coefs, np.ones(5))


def test_one_coefficient_is_that_of_every_array() -> None:
    norm = clip_grad_norm_({"a": np.array([3.0]), "b": np.array([4.0])}, 1.0)
    assert norm.coefs == {"a": 0.2, "b": 0.2}
    assert pickle.loads(pickle.dumps(norm)).coefs == norm.coefs


@each_dtype
def test_policies_with_each_array_by_its_own_norm(dtype: Any) -> None:
    grads = {"a": np.array([3, math.inf, 4], dtype), "b": np.array([0.3, 0.4], dtype), "c": np.array([6, 8], dtype)}
    before = {name: g.copy() for name, g in grads.items()}
    with pytest.raises(FloatingPointError, match=r"grads\['a'\]: Inf at \(1,\)"):
        clip_grad_norm_(grads, 1.0, per_array=True)
    norm = clip_grad_norm_(grads, 1.0, nonfinite="skip", per_array=True)
    assert (norm.skipped, norm.clipped, norm.coefs) == (True, False, {"a": 1.0, "b": 1.0, "c": 1.0})
    assert all(same_bits(g, before[name]) for name, g in grads.items())
    norm = clip_grad_norm_(grads, 1.0, nonfinite="zero", per_array=True)
    assert norm.coefs == {"a": 0.2, "b": 1.0, "c": 0.1}
    assert grads["a"] == pytest.approx([0.6, 0, 0.8], rel=1e-3)
    assert grads["c"] == pytest.approx([0.6, 0.8], rel=1e-3)
    assert same_bits(grads["b"], before["b"])


@each_dtype
def test_each_array_by_its_own_norm_has_the_same_bits_for_any_number_of_threads(
    with_thread_counts: Callable[[Callable[[], Any]], list[Any]], dtype: Any
) -> None:
    arrays = [random_array(n, dtype, seed=n) for n in (*SIZES, 25 * BLOCK, 0, 9)]

    def clip() -> tuple[Any, ...]:
        mine = [a.copy() for a in arrays]
        norm = clip_grad_norm_(mine, 3.0, per_array=True)
        return float(norm), np.asarray(norm.coefs).tobytes(), [a.tobytes() for a in mine]

    first, *others = with_thread_counts(clip)
    assert all(other == first for other in others)


# ---- everything that holds gradients ---------------------------------------------------------------------------------


class WithGrad:
    def __init__(self, grad: Any) -> None:
        self.grad = grad


class OnlyDLPack:
    """What another library's array looks like."""

    def __init__(self, a: Array) -> None:
        self._a = a

    def __dlpack__(self, **options: Any) -> Any:
        return self._a.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._a.__dlpack_device__()


HOLDERS: dict[str, Callable[[Array], Any]] = {
    "array": lambda g: g,
    "list": lambda g: [g],
    "tuple": lambda g: (g,),
    "generator": lambda g: (a for a in [g]),
    "dict": lambda g: {"g": g},
    "dict values": lambda g: {"g": g}.values(),
    "memoryview": memoryview,
    "list of memoryviews": lambda g: [memoryview(g)],
    "DLPack": OnlyDLPack,
    "list of DLPack": lambda g: [OnlyDLPack(g)],
    "object with .grad": WithGrad,
    "objects with .grad": lambda g: [WithGrad(None), WithGrad(g), WithGrad(None)],
    "objects with a DLPack .grad": lambda g: [WithGrad(OnlyDLPack(g))],
    "twice": lambda g: [g, g],
    "twice, in other shapes": lambda g: [g, g.ravel(), g.T, g[::-1], g[::-1, ::-1].T],
    "subclass": lambda g: [g.view(type("Sub", (np.ndarray,), {}))],
}


@each_dtype
@pytest.mark.parametrize("holder", HOLDERS)
def test_every_holder_is_changed_in_place(holder: str, dtype: Any) -> None:
    g = np.array([[3.0, 0.0], [0.0, 4.0], [0.0, 0.0]], dtype)
    assert grad_norm(HOLDERS[holder](g)) == 5
    norm = clip_grad_norm_(HOLDERS[holder](g), 1.0)
    assert (float(norm), norm.clipped) == (5.0, True)
    assert g == pytest.approx(np.array([[0.6, 0.0], [0.0, 0.8], [0.0, 0.0]]), rel=5e-4 if dtype == np.float16 else 1e-6)
    clip_grad_value_(HOLDERS[holder](g), 0.5)
    assert np.array_equal(g, np.array([[0.5, 0.0], [0.0, 0.5], [0.0, 0.0]]))


class Tensor(OnlyDLPack):
    """Exports its own values, and has a gradient, or None."""

    def __init__(self, a: Array, grad: Any) -> None:
        super().__init__(a)
        self.grad = grad


def test_an_object_with_a_grad_is_clipped_by_it_and_keeps_its_values() -> None:
    values, g = np.full(2, 100.0), np.array([3.0, 4.0])
    for held in (Tensor(values, g), Tensor(values, OnlyDLPack(g)), Tensor(values, memoryview(g))):
        g[...] = 3.0, 4.0
        assert [grad_norm(held), grad_norm([held]), grad_norm({"w": held})] == [5, 5, 5]
        clip_grad_norm_([held], 1.0)
        assert g == pytest.approx([0.6, 0.8])
        clip_grad_value_(held, 0.5)
        assert g.tolist() == [0.5, 0.5]
    assert clip_grad_norm_([Tensor(values, None)], 1.0) == 0
    assert values.tolist() == [100.0, 100.0]


def test_layers_in_a_list_or_a_dict_are_taken_apart() -> None:
    first, second, extra = gradcore.Linear(2, 3), gradcore.GRU(3, 2), np.zeros(2, np.float32)
    first.flat_grads[...] = 1
    extra[0] = 4
    norm = grad_norm([first, second, extra])
    assert norm == 5
    names = [*(f"0.{name}" for name in first.grads), *(f"1.{name}" for name in second.grads), "2"]
    assert list(norm.per_array) == names
    assert norm.per_array["2"] == 4
    assert norm.worst == ("2", (0,))
    assert list(grad_norm({"a": first, "b": extra}).per_array) == ["a.weight", "a.bias", "b"]
    assert grad_norm([first, first, gradcore.Sequential(first)]) == 3  # the same memory
    optimizer = gradcore.optim.SGD([(np.zeros(2), np.full(2, 2.0))])
    assert list(grad_norm([first, optimizer]).per_array) == ["0.weight", "0.bias", "1.0"]
    assert clip_grad_norm_((layer for layer in (first, second)), 1.5) == 3
    assert first.flat_grads == pytest.approx(np.full(9, 0.5))
    clip_grad_value_([first, extra], 0.25)
    assert first.flat_grads.tolist() == [0.25] * 9
    assert extra.tolist() == [0.25, 0.0]
    second.flat_grads[3] = np.nan
    with pytest.raises(FloatingPointError, match=r"^grads\['1.weight_ih_l0'\]: NaN at \(1, 0\)"):
        clip_grad_norm_([first, second], 1.0)


def test_the_standard_librarys_array() -> None:
    a = array.array("f", [3.0, 4.0])
    clip_grad_norm_([a], 1.0)
    assert list(a) == pytest.approx([0.6, 0.8])


@each_dtype
@pytest.mark.parametrize("shape", [(5, 3), (70, 150)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_changed_in_place(layout: str, shape: tuple[int, ...], dtype: Any) -> None:
    g = random_array(shape, dtype)
    worst = np.unravel_index(np.abs(g).argmax(), shape)
    view = LAYOUTS[layout](g)
    around = view.base.copy() if layout == "inside a larger array" else None
    assert float(grad_norm(view)) == pytest.approx(float(grad_norm(g)), rel=1e-15)
    assert grad_norm(view).worst == (0, worst)
    if layout == "read-only":
        for call in (lambda: clip_grad_norm_({"w": view}, 1.0), lambda: clip_grad_value_({"w": view}, 1.0)):
            with pytest.raises(ValueError, match=r"grads\['w'\]: expected a writable array"):
                call()
        assert same_bits(view, g)
        return
    clip_grad_norm_(view, 1.0)
    clip_grad_norm_(g, 1.0)
    assert same_bits(view, g)
    if around is not None:
        around[2:-2, 2:-2] = g
        assert same_bits(view.base, around)


def test_empty_things_have_norm_zero() -> None:
    for nothing in ([], (), {}, np.zeros(0), np.zeros((3, 0)), [np.zeros(0, np.float32)], [WithGrad(None)]):
        norm = clip_grad_norm_(nothing, 1.0)
        assert (float(norm), norm.clipped, norm.worst) == (0.0, False, None)


def test_an_exhausted_iterator_warns() -> None:
    grads = (g for g in [np.ones(4)])
    assert grad_norm(grads) == 2
    with pytest.warns(UserWarning, match="the iterator is empty"):
        assert clip_grad_norm_(grads, 1.0) == 0


def test_a_scalar_array_is_clipped() -> None:
    g = np.array(-3.0)
    clip_grad_norm_(g, 1.0)
    assert g == -1


def test_names_and_indices() -> None:
    g, h = np.full(4, 2.0), np.full(9, 1.0)
    assert grad_norm({"g": g, "h": h}).per_array == {"g": 4.0, "h": 3.0}
    assert grad_norm([g, h]).per_array.tolist() == [4.0, 3.0]
    twice = grad_norm([WithGrad(None), g, WithGrad(h), g.reshape(2, 2)])
    assert twice == 5
    assert twice.per_array.tolist() == [0.0, 4.0, 3.0, 4.0]
    assert grad_norm([WithGrad(None), h, WithGrad(g)]).worst == (2, (0,))
    assert grad_norm({"none": WithGrad(None), "g": g, "tied": g}).per_array == {"none": 0.0, "g": 4.0, "tied": 4.0}


def test_a_layer_and_a_model() -> None:
    model = gradcore.Sequential(gradcore.Linear(3, 5), gradcore.Linear(5, 2))
    model.flat_grads[...] = random_array(model.flat_grads.size, np.float32)
    want = reference.grad_norm([model.flat_grads])
    norm = clip_grad_norm_(model, 0.5)
    assert float(norm) == pytest.approx(want, rel=1e-14)
    assert norm.per_array.keys() == model.grads.keys()
    assert norm.worst is not None
    assert norm.worst[0] in model.grads
    assert float(grad_norm(model.flat_grads)) == pytest.approx(0.5, rel=1e-7)
    optimizer = gradcore.optim.SGD(model, lr=0.1)
    assert float(grad_norm(optimizer)) == pytest.approx(0.5, rel=1e-7)


def test_overlapping_arrays_are_refused_and_left_alone() -> None:
    base = np.arange(10.0)
    before = base.copy()
    for grads in (
        {"a": base[:6], "b": base[5:]},
        {"a": base, "b": base[2:3]},
        {"a": base[:6], "x": np.ones(3), "b": base[::-2]},
        {"a": base[:8].view(np.float32), "b": base[:8]},
        {"a": base, "b": base.view(np.float32)[::2]},
    ):
        for call in (grad_norm, lambda g: clip_grad_norm_(g, 1.0), lambda g: clip_grad_value_(g, 1.0)):
            with pytest.raises(ValueError, match="overlap in memory"):
                call(grads)
    assert same_bits(base, before)


def test_interleaved_arrays_do_not_overlap() -> None:
    base = np.arange(1.0, 11.0)
    parts = {"odd": base[::2], "even": base[1::2]}
    assert grad_norm(parts) == pytest.approx(grad_norm(base), rel=1e-15)
    clip_grad_norm_(parts, 1.0)
    assert grad_norm(base) == pytest.approx(1.0, rel=1e-15)
    assert base / base[0] == pytest.approx(np.arange(1.0, 11.0))


@pytest.mark.parametrize(
    ("grads", "message"),
    [
        (5, "grads: expected an array, an iterable or dict"),
        (None, "grads: expected an array, an iterable or dict"),
        ([1.0, 2.0], r"grads\[0\]: expected an array"),
        ([np.ones(2), None], None),
        ({"a": {"b": np.ones(2)}}, r"grads\['a'\]: expected an array"),
        ([[np.ones(2)]], r"grads\[0\]: expected an array"),
        ("abc", r"grads\[0\]: expected an array"),
        ({"w": np.ones(2, np.int64)}, r"grads\['w'\]: expected float16, float32 or float64, got int64"),
        ([np.ones(2), np.ones(2, ">f8")], r"grads\[1\]: expected float16, float32 or float64"),
        (np.ones(2, np.complex64), "expected float16, float32 or float64"),
        (np.array([None, 1.0], dtype=object), "expected float16, float32 or float64"),
        (np.ma.masked_array(np.ones(2), [True, False]), "masked"),
        (b"abcd", "expected float16, float32 or float64, got uint8"),
    ],
)
def test_what_is_no_gradient_is_refused(grads: Any, message: str | None) -> None:
    if message is None:  # None in a list is a parameter without a gradient
        assert grad_norm(grads) == pytest.approx(math.sqrt(2))
        return
    for call in (grad_norm, lambda g: clip_grad_norm_(g, 1.0), lambda g: clip_grad_value_(g, 1.0)):
        with pytest.raises(TypeError, match=message):
            call(grads)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"max_norm": -1.0}, ValueError, "max_norm: expected a number at least 0"),
        ({"max_norm": math.nan}, ValueError, "max_norm"),
        ({"max_norm": "much"}, TypeError, "max_norm"),
        ({"max_norm": None}, TypeError, "max_norm"),
        ({"max_norm": 1.0, "norm_type": 0}, ValueError, "norm_type: expected a number above 0"),
        ({"max_norm": 1.0, "norm_type": -2.0}, ValueError, "norm_type"),
        ({"max_norm": 1.0, "norm_type": math.nan}, ValueError, "norm_type"),
        ({"max_norm": 1.0, "nonfinite": "ignore"}, ValueError, "nonfinite: expected"),
    ],
)
def test_numbers_out_of_range_are_refused_before_anything_is_changed(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    g = np.array([3.0, 4.0])
    with pytest.raises(error, match=message):
        clip_grad_norm_(g, **arguments)
    assert g.tolist() == [3.0, 4.0]


def test_value_limits_out_of_range_are_refused() -> None:
    for bad in (-1.0, math.nan):
        with pytest.raises(ValueError, match="clip_value"):
            clip_grad_value_(np.ones(2), bad)


def test_norm_type_may_be_written_as_text() -> None:
    assert grad_norm(np.array([3.0, -4.0]), "inf") == 4  # type: ignore[arg-type]


def test_a_result_is_a_float_that_can_be_copied_and_pickled() -> None:
    norm = clip_grad_norm_({"a": np.array([3.0, 4.0])}, 1.0)
    assert isinstance(norm, float)
    assert f"{norm:.2f}" == "5.00"
    for other in (copy.copy(norm), copy.deepcopy(norm), pickle.loads(pickle.dumps(norm))):
        assert other == 5
        assert (other.coef, other.clipped, other.worst, other.per_array) == (0.2, True, ("a", (1,)), {"a": 5.0})
        assert other.max_norm == 1


# ---- PyTorch ---------------------------------------------------------------------------------------------------------


@pytest.mark.peers
@each_dtype
def test_torch_parameters_are_clipped_as_pytorch_does(dtype: Any) -> None:
    torch = pytest.importorskip("torch")
    arrays = [random_array(shape, dtype, seed=i) for i, shape in enumerate([(3, 4), (5,), (), (BLOCK + 1,)])]
    for p in (1.0, 2.0, 3.0, math.inf):
        ours = [torch.nn.Parameter(torch.zeros(a.shape, dtype=torch.from_numpy(a).dtype)) for a in arrays]
        theirs = copy.deepcopy(ours)
        for parameters in (ours, theirs):
            for parameter, a in zip(parameters, arrays, strict=True):
                parameter.grad = torch.from_numpy(a.copy())
        frozen = torch.nn.Parameter(torch.full((3,), 100.0), requires_grad=False)
        norm = clip_grad_norm_((q for q in [*ours, frozen]), 0.5, p)
        want = torch.nn.utils.clip_grad_norm_([*theirs, frozen], 0.5, p)
        assert float(norm) == pytest.approx(float(want), rel=max(1e-5, ROUNDING[dtype]))
        for mine, other in zip(ours, theirs, strict=True):
            assert relative_error(mine.grad.numpy(), other.grad.numpy()) <= max(1e-5, ROUNDING[dtype])
        assert frozen.tolist() == [100.0] * 3


@pytest.mark.peers
def test_half_tensors_are_changed_in_place() -> None:
    torch = pytest.importorskip("torch")
    t, other = torch.tensor([[300.0, 0.0], [0.0, 400.0]], dtype=torch.float16), torch.zeros(2)
    assert clip_grad_norm_([t, other], 1.0) == 500
    assert t.flatten().tolist() == np.array([0.6, 0.0, 0.0, 0.8], np.float16).tolist()


@pytest.mark.peers
def test_torch_tensors_are_changed_in_place() -> None:
    torch = pytest.importorskip("torch")
    for make in (lambda t: t, lambda t: [t], lambda t: {"t": t}):
        t = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
        clip_grad_norm_(make(t), 1.0)
        assert t.flatten().tolist() == pytest.approx([0.6, 0.0, 0.0, 0.8])
    parameter = torch.nn.Parameter(torch.ones(2))
    assert grad_norm(parameter) == 0  # no gradient yet
    parameter.grad = torch.tensor([3.0, 4.0]).repeat(2, 1).T.clone().T[0]
    clip_grad_norm_(parameter, 1.0)
    assert parameter.grad.tolist() == pytest.approx([0.6, 0.8])
    assert parameter.tolist() == [1.0, 1.0]


@pytest.mark.peers
def test_a_tensor_with_a_grad_is_clipped_by_it_as_in_pytorch() -> None:
    torch = pytest.importorskip("torch")

    def held() -> list[Any]:
        frozen, leaf = torch.full((2,), 100.0), torch.full((2,), 100.0, requires_grad=True)
        parameter = torch.nn.Parameter(torch.full((2,), 100.0), requires_grad=False)
        for i, tensor in enumerate((frozen, leaf, parameter)):
            tensor.grad = torch.tensor([3.0, 4.0]) * (i + 1)
        return [frozen, leaf, parameter, torch.full((2,), 100.0, requires_grad=True)]

    ours, theirs = held(), held()
    assert clip_grad_norm_(ours, 1.0) == pytest.approx(float(torch.nn.utils.clip_grad_norm_(theirs, 1.0)))
    for mine, other in zip(ours[:3], theirs, strict=False):
        assert mine.grad.tolist() == pytest.approx(other.grad.tolist(), rel=1e-5)
    clip_grad_value_(ours, 0.3)
    torch.nn.utils.clip_grad_value_(theirs, 0.3)
    for mine, other in zip(ours[:3], theirs, strict=False):
        assert mine.grad.tolist() == pytest.approx(other.grad.tolist(), rel=1e-5)
    assert all(tensor.tolist() == [100.0, 100.0] for tensor in ours)
    assert ours[3].grad is None


class OldExporter:
    """Exports as DLPack did before its version 1, without options."""

    def __init__(self, a: Any) -> None:
        self._a = a

    def __dlpack__(self, stream: Any = None) -> Any:
        return self._a.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._a.__dlpack_device__()


def test_old_dlpack_is_changed_in_place() -> None:
    g = np.array([[3.0, 0.0], [0.0, 4.0], [9.0, 9.0]])[:2].T
    clip_grad_norm_([OldExporter(g)], 1.0)
    assert g.ravel() == pytest.approx([0.6, 0.0, 0.0, 0.8])


@pytest.mark.peers
def test_torch_tensors_that_numpy_cannot_use_are_refused() -> None:
    torch = pytest.importorskip("torch")
    for bad in (torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2, device="meta"), torch.zeros(2).to_sparse()):
        with pytest.raises(TypeError, match=r"grads\[0\]: expected"):
            grad_norm([bad])


@pytest.mark.peers
def test_pytorchs_failures_are_not_ours() -> None:
    torch = pytest.importorskip("torch")
    big = np.full(4, 1e30, np.float32)
    theirs = torch.nn.Parameter(torch.zeros(4))
    theirs.grad = torch.from_numpy(big.copy())
    assert torch.nn.utils.clip_grad_norm_([theirs], 1.0) == math.inf
    assert not theirs.grad.any()  # the whole gradient is gone
    assert clip_grad_norm_(big, 1.0) == pytest.approx(2e30, rel=1e-7)
    assert big == pytest.approx(np.full(4, 0.5), rel=1e-7)
