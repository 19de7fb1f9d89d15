"""Batches have the definitions of the papers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gradcore import data


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("length", [2, 3, 50, 101])
def test_adding_has_one_marker_in_each_half_and_their_sum(length: int) -> None:
    x, target = data.adding(rng(), 200, length)
    assert x.shape == (length, 200, 2)
    assert target.shape == (200, 1)
    assert x.dtype == target.dtype == np.float32
    values, markers = x[..., 0], x[..., 1]
    assert ((values >= 0) & (values < 1)).all()
    assert (markers[: length // 2].sum(0) == 1).all()
    assert (markers[length // 2 :].sum(0) == 1).all()
    np.testing.assert_allclose((values * markers).sum(0), target[:, 0], rtol=1e-6)


def test_adding_baseline_is_the_loss_of_the_constant_answer() -> None:
    _, target = data.adding(rng(), 200_000, 2, dtype=np.float64)
    assert data.load("adding").baseline == pytest.approx(np.mean((target - 1) ** 2), rel=0.02)


@pytest.mark.parametrize("length", [2, 3, 10, 50, 100])
def test_temporal_order_hides_two_symbols_in_their_windows(length: int) -> None:
    x, labels = data.temporal_order(rng(), 500, length)
    assert x.shape == (length, 500, 6)
    assert (x.sum(-1) == 1).all()
    relevant = x[..., :2].sum(-1)
    assert (relevant.sum(0) == 2).all()
    first, second = relevant.argmax(0), length - 1 - relevant[::-1].argmax(0)
    assert first.min() >= int(0.1 * length)
    assert first.max() <= max(int(0.2 * length) - 1, int(0.1 * length))
    assert second.min() >= int(0.5 * length)
    assert second.max() <= max(int(0.6 * length) - 1, int(0.5 * length))
    rows = np.arange(500)
    assert (labels == 2 * x[first, rows].argmax(-1) + x[second, rows].argmax(-1)).all()
    assert set(labels) == {0, 1, 2, 3}
    distractors = x[relevant == 0].argmax(-1)
    assert length <= 3 or set(distractors) == {2, 3, 4, 5}


@pytest.mark.parametrize("delay", [1, 2, 100])
def test_copy_asks_for_the_ten_symbols_after_the_signal(delay: int) -> None:
    x, labels = data.copy(rng(), 50, delay)
    assert x.shape == (delay + 20, 50, 10)
    symbols = x.argmax(-1)
    assert (symbols[:10] < 8).all()
    assert (symbols[10 : 10 + delay - 1] == 8).all()
    assert (symbols[10 + delay - 1] == 9).all()
    assert (symbols[10 + delay :] == 8).all()
    assert (labels[: delay + 10] == 8).all()
    assert (labels[delay + 10 :] == symbols[:10]).all()


@pytest.mark.parametrize(("delay", "loss"), [(100, 0.17329), (200, 0.09452), (1000, 0.02039)])
def test_copy_baseline_is_the_published_one(delay: int, loss: float) -> None:
    assert data.load("copy", delay).baseline == pytest.approx(loss, abs=5e-6)


@pytest.mark.parametrize("make", [data.adding, data.temporal_order, data.copy])
def test_generators_refuse_nonsense_and_take_empty_batches(make: Any) -> None:
    x, target = make(rng(), 0, 30)
    assert x.shape[1] == 0 == target.shape[-1 if target.dtype == np.int64 else 0]
    assert make(rng(), 2, 30, dtype=np.float64)[0].dtype == np.float64
    with pytest.raises(ValueError, match="batch"):
        make(rng(), -1, 30)
    with pytest.raises(ValueError, match=r"length|delay"):
        make(rng(), 3, 0)
    with pytest.raises(TypeError, match="dtype"):
        make(rng(), 3, 30, dtype=np.int32)
