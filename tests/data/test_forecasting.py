"""Windows to train on, windows held out at the end, and answers that need no model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradcore.data import SourceError, load
from gradcore.data.forecasting import find_period

Array = np.ndarray[Any, Any]


def written(folder: Path, values: Any, header: str = "v") -> Path:
    path = folder / "series.csv"
    cells = ("" if isinstance(v, float) and math.isnan(v) else f"{v}" for v in values)
    path.write_text(f"{header}\n" + "\n".join(cells) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("horizon", [1, 3])
def test_no_target_that_is_held_out_is_trained_on(tmp_path: Path, horizon: int) -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal(100).round(6)
    task = load(written(tmp_path, values), 7, horizon=horizon)
    scaled = ((values - values[:80].mean()) / values[:80].std()).astype(np.float32)
    _, trained = next(iter(task.batches(5000, 1)))
    np.testing.assert_array_equal(np.unique(trained), np.unique(scaled[6 + horizon : 80]))
    test_x, target = task.test()
    np.testing.assert_array_equal(target[:, 0], scaled[80:])
    np.testing.assert_array_equal(test_x[-1, :, 0], scaled[80 - horizon : 100 - horizon])
    expected = {"constant": scaled[80:], "last_value": scaled[80:] - scaled[80 - horizon : 100 - horizon]}
    for name, error in expected.items():
        assert task.baselines[name] == pytest.approx(float(np.mean(error.astype(float) ** 2)), rel=1e-5)
    assert "seasonal" not in task.baselines


def test_the_test_windows_are_the_same_each_time_and_as_many_as_asked(tmp_path: Path) -> None:
    task = load(written(tmp_path, np.sin(np.arange(400) ** 1.1)), 20)
    (x, _), (again, _) = task.test(10), task.test(10)
    assert x.shape == (20, 10, 1)
    np.testing.assert_array_equal(x, again)
    assert task.test()[1].shape == (80, 1)


def test_windows_that_touch_a_gap_are_left_out_and_counted(tmp_path: Path) -> None:
    values = [float(v) for v in np.random.default_rng(1).standard_normal(100).round(6)]
    values[40] = math.nan
    task = load(written(tmp_path, values), 7)
    x, target = next(iter(task.batches(5000, 1)))
    assert np.isfinite(x).all()
    assert np.isfinite(target).all()
    assert task.facts["windows"] == {"training": 73 - 8, "held_out": 20, "left_out": 8}
    assert task.facts["missing"]["count"] == 1


@pytest.mark.parametrize(("n", "steps"), [(36, 9), (120, 30), (1000, 50)])
def test_the_default_length_leaves_windows_of_a_short_series(tmp_path: Path, n: int, steps: int) -> None:
    task = load(written(tmp_path, np.random.default_rng(2).standard_normal(n)))
    assert task.steps == steps
    assert task.facts["windows"]["training"] >= 8


def test_a_length_that_leaves_too_little_is_refused_with_one_that_does_not(tmp_path: Path) -> None:
    path = written(tmp_path, np.random.default_rng(2).standard_normal(36))
    with pytest.raises(SourceError, match=r"36 values give 0 windows of 35 .*; a seq_len of 12 leaves 17 and 7"):
        load(path, 35)
    assert load(path, 12).facts["windows"] == {"training": 17, "held_out": 7, "left_out": 0}


@pytest.mark.parametrize("period", [7, 12, 24])
@pytest.mark.parametrize("trend", [0.0, 0.05])
def test_a_period_is_found_beside_noise_and_a_trend(period: int, trend: float) -> None:
    at = np.arange(20 * period)
    values = np.sin(2 * np.pi * at / period) + trend * at + 0.3 * np.random.default_rng(3).standard_normal(len(at))
    assert find_period(values) == period
    values[::17] = np.nan
    assert find_period(values) == period


def test_no_period_is_found_where_there_is_none() -> None:
    rng = np.random.default_rng(4)
    assert find_period(rng.standard_normal(500)) is None
    assert find_period(np.arange(100.0)) is None
    assert find_period(np.ones(50)) is None
    assert find_period(np.full(50, np.nan)) is None
    assert find_period(rng.standard_normal(5)) is None


def test_the_seasonal_answer_is_the_value_a_period_ago(tmp_path: Path) -> None:
    at = np.arange(240)
    values = np.sin(2 * np.pi * at / 12) + 0.1 * np.random.default_rng(5).standard_normal(240)
    task = load(written(tmp_path, values.round(6)), 24)
    assert task.facts["period"] == 12
    error = (values[192:] - values[180:228]) / values[:192].std()
    assert task.baselines["seasonal"] == pytest.approx(float(np.mean(error**2)), rel=1e-3)
    assert task.baselines["seasonal"] < task.baselines["last_value"] < task.baselines["constant"]


def test_the_answers_to_classes_are_frequencies(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    label = (np.arange(200) // 5) % 2  # stays for five steps
    lines = [f"{a:.4f},{'dry' if c else 'wet'}" for a, c in zip(rng.standard_normal(200), label, strict=True)]
    path = written(tmp_path, lines, "a,weather")
    task = load(path, 8, target="weather")
    assert task.classes
    assert task.output_size == 2
    x, target = task.test()
    assert target.shape == (x.shape[1],)
    assert target.tolist() == (1 - label[160:]).tolist() or target.tolist() == label[160:].tolist()
    assert task.baselines["constant"] == pytest.approx(math.log(2), rel=0.02)
    stays = 127 / 161  # of those that follow a label in the part to train on, with one more of each
    assert task.baselines["last_value"] == pytest.approx(
        -(32 * math.log(stays) + 8 * math.log(1 - stays)) / 40, rel=0.05
    )


def test_a_period_that_is_given_counts_more_than_what_is_found(tmp_path: Path) -> None:
    values = np.sin(np.arange(400) * 2 * np.pi / 12) + 0.1 * np.random.default_rng(0).standard_normal(400)
    found, given = (load(written(tmp_path, values), 20, period=period) for period in (None, 5))
    assert (found.facts["period"], given.facts["period"]) == (12, 5)
    assert found.baselines["seasonal"] < 0.1 < given.baselines["seasonal"]
    rehearsal = given.rehearsal()
    assert rehearsal is not None
    assert rehearsal.facts["period"] == 5
    with pytest.raises(ValueError, match=r"^period: expected an integer of at least 2, got 1$"):
        load("sunspots", period=1)
    with pytest.raises(SourceError, match=r"^period: expected a table with columns, got the source adding$"):
        load("adding", period=4)
    with pytest.raises(SourceError, match=r"^period: expected a target of numbers, got the classes of weather$"):
        load("weather", period=7)


def test_accuracies_of_the_answers_to_classes(tmp_path: Path) -> None:
    """b after a, a after b but for every fifth b, which stays: the last value tells more than the usual class."""
    labels = "".join("abb" if i % 5 == 0 else "ab" for i in range(100))
    path = written(tmp_path, (f"{i % 7},{label}" for i, label in enumerate(labels)), "x,kind")
    task = load(path, 10, target="kind")
    held = labels[-len(task.test()[1]) :]
    usual, before = max("ab", key=labels[: -len(held)].count), labels[-len(held) - 1 : -1]
    assert task.accuracies["constant"] == pytest.approx(held.count(usual) / len(held))
    right = sum(now == {"a": "b", "b": "a"}[last] for now, last in zip(held, before, strict=True)) / len(held)
    assert task.accuracies["last_value"] == pytest.approx(right)
    assert right > task.accuracies["constant"]
    y = np.zeros((len(held), 2), np.float32)
    assert task.accuracy(y, task.test()[1]) == pytest.approx(held.count("a") / len(held))
    assert load("sunspots").accuracies == {}
    assert load("sunspots").accuracy(y, y) is None


def test_text_holds_out_its_last_tenth(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("abcd" * 50 + "abdc" * 5 + "abcd", encoding="utf-8")
    task = load(path, 10)
    x, target = task.test()
    assert x.shape[1] == target.shape[1] <= 64
    assert task.baselines["constant"] == pytest.approx(math.log(4), rel=0.02)
    drawn, _ = next(iter(task.batches(500, 1)))
    assert drawn.shape == (10, 500, 4)


def test_a_rehearsal_is_made_of_what_is_trained_on_and_nothing_else(tmp_path: Path) -> None:
    """Its values, standardized anew, are those before the split; its own last fifth is held out."""
    values = np.random.default_rng(0).standard_normal(500)
    task = load(written(tmp_path, values), 50)
    again = task.rehearsal()
    assert again is not None
    values[400:] = 1e6
    changed = load(written(tmp_path, values), 50).rehearsal()
    assert changed is not None
    for one, other in zip(again.test(), changed.test(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert again.facts["windows"] == {"training": 320 - 50, "held_out": 80, "left_out": 0}
    target = again.test(1000)[1]
    center, scale = values[:320].mean(), values[:320].std()
    np.testing.assert_allclose(target[:, 0] * scale + center, values[320:400], rtol=1e-5, atol=1e-5)


def test_what_is_too_short_to_be_divided_again_has_no_rehearsal(tmp_path: Path) -> None:
    assert load(written(tmp_path, np.random.default_rng(0).standard_normal(36)), 19).rehearsal() is None


def test_what_is_drawn_without_end_is_its_own_rehearsal_on_other_sequences() -> None:
    task = load("adding", 10)
    again = task.rehearsal()
    assert again is not None
    assert not np.array_equal(task.test(8)[0], again.test(8)[0])
    assert again.baselines == task.baselines


def test_the_rehearsal_of_a_text(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("the quick brown fox jumps over the lazy dog. " * 20 + "~" * 100, encoding="utf-8")
    task = load(path, 20)
    again = task.rehearsal()
    assert again is not None
    assert again.output_size == task.output_size - 1  # without what only the end has
    assert again.test()[0].shape[0] == 20
