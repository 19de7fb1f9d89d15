"""Adaptive thresholds against the published algorithms, written out plainly, and what their state promises."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tools import same_bits

import gradcore
from gradcore._base.check import Array
from gradcore.clip.threshold import AutoClip, FromFirst, ZClip

STEPS = 10_000
MAKERS: dict[str, Callable[[], Any]] = {
    "ZClip": ZClip,
    "ZClip, mean": lambda: ZClip(clip_option="mean", max_grad_norm=2.0),
    "ZClip, percentile": lambda: ZClip(mode="percentile", alpha=0.9, warmup_steps=7),
    "AutoClip": AutoClip,
    "AutoClip, history": lambda: AutoClip(percentile=73.0, history=50),
    "FromFirst": FromFirst,
}
each_threshold = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def random_norms(n: int = STEPS, seed: int = 0) -> Array:
    """Norms that drift, vary, and spike at one step in fifty."""
    rng = np.random.default_rng(seed)
    norms = np.exp(0.3 * rng.standard_normal(n)) * (1 + np.sin(np.arange(n) / 700) / 2)
    spikes = rng.random(n) < 0.02
    norms[spikes] *= 10 ** rng.uniform(0.5, 4, spikes.sum())
    return norms


def limits(threshold: Any, norms: Array) -> Array:
    return np.array([threshold.update(float(n)) for n in norms])


def state_bits(threshold: Any) -> dict[str, bytes]:
    return {name: np.asarray(value).tobytes() for name, value in threshold.state_dict().items()}


def assert_close(got: Array, want: Array) -> None:
    np.testing.assert_array_equal(np.isinf(got), np.isinf(want))
    finite = np.isfinite(want)
    np.testing.assert_allclose(got[finite], want[finite], rtol=1e-12, atol=0)


# ---- the published algorithms ----------------------------------------------------------------------------------------


def published_zclip(
    norms: Array, alpha: float, zt: float, option: str, factor: float, most: float, eps: float, warmup: int, mode: str
) -> Array:
    """Effective limits. Where there is no spike, the authors clip to the norm itself, which is no limit."""
    out = np.full(len(norms), np.inf)
    mu, var = np.mean(norms[:warmup]), np.var(norms[:warmup])
    for t in range(warmup, len(norms)):
        n, sd = norms[t], np.sqrt(var)
        clipped = n
        if mode == "percentile":
            cap = mu + zt * sd
            out[t] = cap
            clipped = min(n, cap)
        else:
            z = (n - mu) / (sd + eps)
            if z > zt:
                clipped = out[t] = (mu + zt * sd / (z / zt)) * factor if option == "adaptive_scaling" else mu
        mu = alpha * mu + (1 - alpha) * clipped
        var = alpha * var + (1 - alpha) * (clipped - mu) ** 2
    return np.minimum(out, most)


@pytest.mark.parametrize("mode", ["zscore", "percentile"])
@pytest.mark.parametrize("option", ["adaptive_scaling", "mean"])
@pytest.mark.parametrize(
    ("alpha", "zt", "factor", "most", "eps", "warmup"),
    [
        (0.97, 2.5, 1.0, None, 1e-6, 25),
        (0.95, 2.5, 0.7, 1.7, 1e-3, 3),
        (0.99, 2.0, 1.3, 0.8, 1e-6, 1),
        (0.97, 0.5, 0.3, None, 0.1, 100),
    ],
)
def test_10000_steps_of_zclip(
    mode: str, option: str, alpha: float, zt: float, factor: float, most: float | None, eps: float, warmup: int
) -> None:
    norms = random_norms()
    want = published_zclip(norms, alpha, zt, option, factor, most or np.inf, eps, warmup, mode)
    got = limits(ZClip(alpha, zt, option, factor, most, eps, warmup, mode), norms)
    assert_close(got, want)
    assert np.sum(norms > want) > 100


def test_defaults_of_zclip() -> None:
    norms = random_norms(seed=1)
    want = published_zclip(norms, 0.97, 2.5, "adaptive_scaling", 1.0, np.inf, 1e-6, 25, "zscore")
    assert_close(limits(ZClip(), norms), want)
    assert repr(ZClip()) == (
        "ZClip(alpha=0.97, z_thresh=2.5, clip_option='adaptive_scaling', clip_factor=1.0, max_grad_norm=None, "
        "eps=1e-06, warmup_steps=25, mode='zscore')"
    )


def test_a_larger_spike_is_clipped_further() -> None:
    base = random_norms(200)
    found = []
    for spike in (10.0, 100.0, 1e4, 1e300):
        threshold = ZClip()
        limits(threshold, base)
        found.append(threshold.update(spike))
    assert found == sorted(found, reverse=True)
    assert found[-1] == pytest.approx(np.median(base), rel=0.5)


def test_no_limit_of_the_defaults_is_below_the_mean_but_a_small_factor_may_pull_it_to_zero() -> None:
    norms = random_norms()
    threshold, aggressive = ZClip(), ZClip(z_thresh=1.5, clip_factor=0.6)
    for n in norms:
        mean = threshold.state_dict()["mean"]
        assert threshold.update(n) >= mean
        aggressive.update(n)
    assert 0.5 < threshold.state_dict()["mean"] / norms.mean() * 10 < 20
    assert aggressive.state_dict()["mean"] < 1e-30


def test_norms_whose_squares_overflow_do_not_blind_zclip() -> None:
    norms = random_norms(2000)
    large = limits(ZClip(eps=1e-300), norms * 2.0**900)
    assert_close(large, limits(ZClip(eps=1e-300), norms) * 2.0**900)
    assert np.isfinite(large).any()


@pytest.mark.parametrize("history", [None, 1, 2, 100, STEPS])
@pytest.mark.parametrize("percentile", [0.0, 10.0, 33.3, 50.0, 99.5, 100.0])
def test_10000_steps_of_autoclip(percentile: float, history: int | None) -> None:
    norms = random_norms()
    norms[::7] = norms[::7].round(1)  # some norms are equal
    got = limits(AutoClip(percentile, history), norms)
    # every step at first, some of them later: numpy.percentile of the whole history is slow
    for t in [*range(300), *range(300, STEPS, 97), STEPS - 1]:
        window = norms[: t + 1] if history is None else norms[max(0, t + 1 - history) : t + 1]
        assert got[t] == pytest.approx(np.percentile(window, percentile), rel=1e-12, abs=0), t


def test_100000_steps_of_autoclip() -> None:
    norms = random_norms(100_000)
    threshold = AutoClip(90.0)
    last = limits(threshold, norms)[-1]
    assert last == pytest.approx(np.percentile(norms, 90), rel=1e-12)
    assert len(threshold.state_dict()["norms"]) == 100_000


@given(st.lists(st.floats(0, 1e300), min_size=1, max_size=30), st.floats(0, 100), st.integers(1, 10))
def test_autoclip_is_numpys_percentile(norms: list[float], percentile: float, history: int) -> None:
    got = limits(AutoClip(percentile, history), np.array(norms))[-1]
    assert got == pytest.approx(np.percentile(norms[-history:], percentile), rel=1e-12, abs=1e-300)


@pytest.mark.parametrize(("steps", "factor"), [(100, 2.0), (1, 0.5), (7, 10.0), (500, 1.0)])
def test_10000_steps_of_from_first(steps: int, factor: float) -> None:
    norms = random_norms()
    want = np.full(STEPS, factor * np.median(norms[:steps]))
    want[:steps] = np.inf
    assert_close(limits(FromFirst(steps, factor), norms), want)


def test_defaults_of_the_others() -> None:
    assert repr(AutoClip()) == "AutoClip(percentile=10.0, history=None)"
    assert repr(FromFirst()) == "FromFirst(steps=100, factor=2.0)"


# ---- norms that are not finite ---------------------------------------------------------------------------------------


@each_threshold
def test_what_is_not_finite_leaves_no_trace(make: Callable[[], Any]) -> None:
    norms = random_norms(400)
    clean, disturbed = make(), make()
    for t, n in enumerate(norms):
        for bad in (math.nan, math.inf, np.float32(np.nan)):
            before = state_bits(disturbed)
            limit = disturbed.update(bad)
            assert limit >= 0
            assert state_bits(disturbed) == before
        assert disturbed.update(n) == clean.update(n), t
    assert state_bits(disturbed) == state_bits(clean)


def test_the_limit_in_force_for_what_is_not_finite() -> None:
    norms = random_norms(200)
    for bad in (math.nan, math.inf):
        for threshold, first in ((ZClip(), math.inf), (ZClip(max_grad_norm=3.0), 3.0), (AutoClip(), math.inf)):
            assert threshold.update(bad) == first
        auto, fixed, zscore = AutoClip(), FromFirst(), ZClip()
        percentile = ZClip(mode="percentile")
        for threshold in (auto, fixed, zscore, percentile):
            limits(threshold, norms)
        assert auto.update(bad) == pytest.approx(np.percentile(norms, 10), rel=1e-12)
        assert fixed.update(bad) == 2 * np.median(norms[:100])
        state = zscore.state_dict()
        assert zscore.update(bad) == state["mean"]  # where the formula ends for ever larger norms
        state = percentile.state_dict()
        assert percentile.update(bad) == state["mean"] + 2.5 * state["deviation"]


# ---- state -----------------------------------------------------------------------------------------------------------


@each_threshold
@pytest.mark.parametrize(
    ("through", "at"),
    [
        *(("memory", at) for at in (0, 3, 30, 99, 100, 101, 2000)),
        *(
            (through, at) for through in ("json", "npz", "checkpoint") for at in (0, 101)
        ),  # without and with norms to write
    ],
)
def test_a_restored_threshold_goes_on_bit_for_bit(
    make: Callable[[], Any], at: int, through: str, tmp_path: Any
) -> None:
    norms = random_norms(3000)
    threshold = make()
    limits(threshold, norms[:at])
    state = threshold.state_dict()
    if through == "json":
        plain = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in state.items()}
        state = json.loads(json.dumps(plain))
    elif through == "npz":
        np.savez(tmp_path / "state.npz", **state)
        with np.load(tmp_path / "state.npz") as file:
            state = {name: file[name] for name in file.files}
    restored = make()
    limits(restored, random_norms(150, seed=5))  # what it saw before is forgotten
    if through == "checkpoint":
        pytest.importorskip("safetensors")
        gradcore.save_checkpoint(tmp_path / "run.safetensors", threshold=threshold)
        gradcore.load_checkpoint(tmp_path / "run.safetensors", threshold=restored)
    else:
        restored.load_state_dict(state)
    assert same_bits(limits(restored, norms[at:]), limits(threshold, norms[at:]))
    assert state_bits(restored) == state_bits(threshold)


@each_threshold
def test_a_state_dict_is_a_copy_of_plain_values(make: Callable[[], Any]) -> None:
    threshold = make()
    limits(threshold, random_norms(60))
    state = threshold.state_dict()
    kept = copy.deepcopy(state)
    assert all(type(value) is float or value.dtype == np.float64 for value in state.values())
    limits(threshold, random_norms(60, seed=1))
    for name, value in kept.items():
        assert same_bits(state[name], value)
    other = make()
    other.load_state_dict(state)
    for value in state.values():
        if isinstance(value, np.ndarray):
            value[...] = 99
    again = make()
    again.load_state_dict(kept)
    assert state_bits(other) == state_bits(again)


@each_threshold
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda s: None, TypeError, "state_dict: expected a mapping, got NoneType"),
        (lambda s: {}, KeyError, "state_dict: missing"),
        (lambda s: s | {"more": 1.0}, KeyError, "unknown.*more"),
        (lambda s: s | {next(iter(s)): np.ones((2, 2))}, ValueError, "expected shape"),
        (lambda s: s | {next(iter(s)): np.ones(2, np.float32)}, TypeError, "expected float64, got float32"),
        (lambda s: s | {next(iter(s)): [1.0, -1.0]}, ValueError, "expected finite numbers of at least 0"),
        (lambda s: s | {next(iter(s)): [1.0, math.nan]}, ValueError, "expected finite numbers of at least 0"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(
    make: Callable[[], Any], change: Callable[[Any], Any], error: type[Exception], message: str
) -> None:
    threshold = make()
    limits(threshold, random_norms(40))
    before = state_bits(threshold)
    with pytest.raises(error, match=message):
        threshold.load_state_dict(change(threshold.state_dict()))
    assert state_bits(threshold) == before


def test_a_state_of_more_norms_than_there_is_room_for_is_refused() -> None:
    norms = random_norms(40)
    for large, small in (
        (ZClip(), ZClip(warmup_steps=24)),
        (AutoClip(), AutoClip(history=39)),
        (FromFirst(), FromFirst(39)),
    ):
        limits(large, norms)
        with pytest.raises(ValueError, match=r"(first|norms): expected at most \d+ norms, got (25|40)"):
            small.load_state_dict(large.state_dict())
    state = ZClip().state_dict()
    for name in ("mean", "deviation"):
        with pytest.raises(ValueError, match=f"{name}: expected a number"):
            ZClip().load_state_dict(state | {name: math.nan})


# ---- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ZClip(alpha=1.1), ValueError, "alpha: expected a number at least 0 and at most 1"),
        (lambda: ZClip(z_thresh=0.0), ValueError, "z_thresh: expected a number above 0"),
        (
            lambda: ZClip(clip_option="none"),
            ValueError,
            "clip_option: expected 'adaptive_scaling' or 'mean', got 'none'",
        ),
        (lambda: ZClip(clip_factor=-1.0), ValueError, "clip_factor: expected a number at least 0"),
        (lambda: ZClip(max_grad_norm=-1.0), ValueError, "max_grad_norm: expected a number at least 0"),
        (lambda: ZClip(eps=0.0), ValueError, "eps: expected a number above 0"),
        (lambda: ZClip(warmup_steps=0), ValueError, "warmup_steps: expected an integer of at least 1"),
        (lambda: ZClip(mode="z"), ValueError, "mode: expected 'zscore' or 'percentile', got 'z'"),
        (lambda: AutoClip(101.0), ValueError, "percentile: expected a number at least 0 and at most 100"),
        (lambda: AutoClip(history=0), ValueError, "history: expected an integer of at least 1"),
        (lambda: AutoClip(history=1.5), TypeError, "history: expected an integer"),
        (lambda: FromFirst(0), ValueError, "steps: expected an integer of at least 1"),
        (lambda: FromFirst(factor=-0.5), ValueError, "factor: expected a number at least 0"),
    ],
)
def test_arguments_out_of_range_are_refused(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


@each_threshold
@pytest.mark.parametrize("at", [0, 200])
def test_a_negative_norm_is_refused(make: Callable[[], Any], at: int) -> None:
    threshold = make()
    limits(threshold, random_norms(at))
    before = state_bits(threshold)
    for bad in (-1.0, -math.inf):
        with pytest.raises(ValueError, match="norm: expected a number at least 0"):
            threshold.update(bad)
    assert state_bits(threshold) == before
