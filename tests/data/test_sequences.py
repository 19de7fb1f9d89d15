"""Windows, streams, padded sequences, standardized series, and text drawn from a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tools import Array, relative_error, same_bits

import gradcore
from gradcore import data, losses, optim

both_dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def ramp(n: int, F: int = 1, dtype: Any = np.float64) -> Array:
    """Row i is i, i + 0.1, ..."""
    return (np.arange(n)[:, None] + np.arange(F) / 10).astype(dtype)


# ---- windows -------------------------------------------------------------------------------------------------------


@given(
    n=st.integers(1, 40),
    seq_len=st.integers(1, 9),
    horizon=st.integers(0, 4),
    step=st.integers(1, 5),
    batch=st.integers(1, 9),
    shuffled=st.booleans(),
)
def test_windows_are_those_of_the_definition(
    n: int, seq_len: int, horizon: int, step: int, batch: int, shuffled: bool
) -> None:
    series = ramp(n, 2)
    starts = [s for s in range(0, n, step) if s + seq_len - 1 + horizon < n and s + seq_len <= n]
    if not starts:
        with pytest.raises(ValueError, match=f"series: expected a window of {seq_len} steps and a target {horizon}"):
            data.windows(series, seq_len, horizon=horizon, step=step)
        return
    rng = 3 if shuffled else None
    batches = data.windows(series, seq_len, horizon=horizon, step=step, batch=batch, rng=rng)
    found = list(batches)
    assert len(batches) == len(found) == -(-len(starts) // batch)
    first = np.concatenate([x[0, :, 0] for x, _ in found]).astype(int)
    assert (sorted(first) if shuffled else first.tolist()) == starts
    for x, target in found:
        assert x.shape[0] == seq_len
        assert x.shape[1] <= batch
        for b, start in enumerate(x[0, :, 0].astype(int)):
            assert same_bits(x[:, b], series[start : start + seq_len])
            assert same_bits(target[b], series[start + seq_len - 1 + horizon])


def test_windows_of_chosen_columns() -> None:
    series = ramp(10, 3)
    ((x, target),) = data.windows(series, 4, inputs=[2, 0], target=1)
    assert same_bits(x[:, 0], series[:4][:, [2, 0]])
    assert same_bits(target, series[4:, [1]])
    ((x, target),) = data.windows(series, 4, target=[0, 2], horizon=3)
    assert x.shape == (4, 4, 3)
    assert same_bits(target, series[6:, [0, 2]])


@both_dtypes
def test_one_column_may_come_without_an_axis(dtype: Any) -> None:
    ((x, target),) = data.windows(ramp(9, 1, dtype)[:, 0], 4)
    assert x.shape == (4, 5, 1)
    assert target.shape == (5, 1)
    assert x.dtype == target.dtype == dtype


def test_windows_in_the_order_of_time_are_views() -> None:
    series = ramp(100, 3)
    for step in (1, 7):
        for x, _ in data.windows(series, 9, step=step, batch=4):
            assert np.shares_memory(x, series)
            assert not x.flags.writeable
    gapped = series.copy()
    gapped[20] = np.nan
    for x, _ in data.windows(gapped, 9, batch=40):
        assert np.isfinite(x).all()


def test_windows_in_which_something_is_missing_are_left_out() -> None:
    series = ramp(20, 2)
    series[7, 0], series[15, 1] = np.nan, np.inf
    starts = [int(s) for x, _ in data.windows(series, 3, inputs=0, target=1, horizon=2) for s in x[0, :, 0]]
    assert starts == [s for s in range(16) if not s <= 7 < s + 3 and s + 4 != 15]
    with pytest.raises(ValueError, match="in which nothing is missing; got 20 rows, of which 18 are whole"):
        data.windows(series, 19)


def test_each_pass_has_a_new_order_and_a_seed_the_same_ones() -> None:
    def orders() -> list[list[float]]:
        batches = data.windows(ramp(50), 4, batch=8, rng=1)
        return [[s for x, _ in batches for s in x[0, :, 0]] for _ in range(2)]

    first, second = orders()
    assert first != second
    assert sorted(first) == sorted(second)
    assert orders() == [first, second]


def test_windows_against_the_task_of_the_same_series(tmp_path: Path) -> None:
    """What `data.load` draws and holds out is among the windows of the standardized series."""
    values = np.sin(np.arange(80) / 3).astype(np.float32)
    (tmp_path / "s.csv").write_text("y\n" + "".join(f"{v:.9g}\n" for v in values), encoding="utf-8")
    x, target = data.load(tmp_path / "s.csv", 9).test(4)
    scaled = data.Standardizer().fit(values[:64]).transform(values)
    found = {float(t[0]): w for xs, ts in data.windows(scaled, 9) for w, t in zip(xs.swapaxes(0, 1), ts, strict=True)}
    for b in range(4):
        nearest = min(found, key=lambda t: abs(t - float(target[b, 0])))
        assert nearest == pytest.approx(float(target[b, 0]), abs=1e-5)
        np.testing.assert_allclose(found[nearest], x[:, b], atol=1e-5)


@pytest.mark.parametrize(
    ("given_too", "error", "message"),
    [
        ({"series": np.arange(9)}, TypeError, "series: expected float32 or float64, got int64"),
        ({"series": np.ones((9, 1, 1))}, ValueError, r"series: expected shape \(n,\) or \(n, F\), got \(9, 1, 1\)"),
        ({"seq_len": 0}, ValueError, "seq_len: expected an integer of at least 1, got 0"),
        ({"horizon": -1}, ValueError, "horizon: expected an integer of at least 0, got -1"),
        ({"step": 0}, ValueError, "step: expected an integer of at least 1, got 0"),
        ({"batch": 0}, ValueError, "batch: expected an integer of at least 1, got 0"),
        ({"target": 2}, IndexError, "target: expected 0 <= target < 2, got 2"),
        ({"inputs": [0, 2]}, IndexError, r"inputs\[1\]: expected 0 <= inputs\[1\] < 2, got 2"),
        ({"inputs": []}, ValueError, "inputs: expected at least one column"),
    ],
)
def test_wrong_arguments_of_windows(given_too: dict[str, Any], error: type[Exception], message: str) -> None:
    good: dict[str, Any] = {"series": ramp(9, 2), "seq_len": 3}
    with pytest.raises(error, match=message):
        data.windows(**(good | given_too))


# ---- streams -------------------------------------------------------------------------------------------------------


@given(n=st.integers(2, 60), batch=st.integers(1, 6), steps=st.integers(1, 9))
def test_streams_go_on_where_they_ended(n: int, batch: int, steps: int) -> None:
    ids, length = np.arange(n) + 100, (n - 1) // batch
    if not length:
        with pytest.raises(ValueError, match=f"ids: expected at least {batch + 1} for {batch} streams"):
            data.streams(ids, batch, steps)
        return
    batches = data.streams(ids, batch, steps)
    found = list(batches)
    assert len(batches) == len(found)
    assert all(x.shape == target.shape for x, target in found)
    assert all(len(x) == steps for x, _ in found[:-1])
    x, target = (np.concatenate(part) for part in zip(*found, strict=True))
    assert same_bits(x, ids[: batch * length].reshape(batch, length).T)
    assert same_bits(target, x + 1)
    assert all(np.shares_memory(part, ids) for pair in found for part in pair)
    assert [pair[0].tolist() for pair in batches] == [pair[0].tolist() for pair in found]


def test_streams_of_the_rows_of_a_series() -> None:
    series = ramp(21, 3)
    (x, target), (_, last) = data.streams(series, 2, 5)
    assert x.shape == target.shape == (5, 2, 3)
    assert same_bits(target[:, 1], series[11:16])
    assert same_bits(last[-1, 1], series[20])


def test_wrong_arguments_of_streams() -> None:
    with pytest.raises(TypeError, match="ids: expected integers or floats, got <U1"):
        data.streams(list("abc"), 1, 1)
    with pytest.raises(ValueError, match=r"ids: expected shape \(n,\) or \(n, \.\.\.\), got \(\)"):
        data.streams(3, 1, 1)
    with pytest.raises(ValueError, match="batch: expected an integer of at least 1, got 0"):
        data.streams([1, 2, 3], 0, 1)


# ---- padded sequences ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (2,), (2, 3)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.uint8, bool])
@pytest.mark.parametrize("batch_first", [False, True])
def test_padded_sequences_are_whole(shape: tuple[int, ...], dtype: Any, batch_first: bool) -> None:
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, 2, (n, *shape)).astype(dtype) for n in (3, 0, 5, 1)]
    x, lengths = data.pad_sequence(sequences, batch_first=batch_first, padding_value=1)
    assert lengths.tolist() == [3, 0, 5, 1]
    assert x.dtype == dtype
    assert x.shape == ((4, 5, *shape) if batch_first else (5, 4, *shape))
    assert x.flags.c_contiguous
    for b, sequence in enumerate(sequences):
        own = x[b] if batch_first else x[:, b]
        assert same_bits(own[: len(sequence)], sequence)
        assert (own[len(sequence) :] == 1).all()


def test_padded_sequences_in_a_model() -> None:
    rng = np.random.default_rng(0)
    sequences = [rng.standard_normal((n, 2)).astype(np.float32) for n in (4, 1, 3)]
    x, lengths = data.pad_sequence(sequences, padding_value=np.nan)
    model = gradcore.Sequential(gradcore.GRU(2, 3, rng=0), gradcore.LastStep())
    y = model(x, lengths=lengths)
    for b, sequence in enumerate(sequences):
        np.testing.assert_allclose(y[b], model(sequence[:, None])[0], rtol=1e-5)


def test_sequences_of_nothing() -> None:
    x, lengths = data.pad_sequence([np.zeros((0, 3)), np.zeros((0, 3))])
    assert x.shape == (0, 2, 3)
    assert lengths.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: data.pad_sequence([]), ValueError, "sequences: expected at least one"),
        (
            lambda: data.pad_sequence([np.ones((2, 3)), np.ones((2, 4))]),
            ValueError,
            r"sequences\[1\]: expected shape \(T, 3\) as in sequences\[0\], got \(2, 4\)",
        ),
        (
            lambda: data.pad_sequence([np.ones(2), np.ones(2, np.float32)]),
            TypeError,
            r"sequences\[1\]: expected float64 as in sequences\[0\], got float32",
        ),
        (lambda: data.pad_sequence([["a"]]), TypeError, r"sequences\[0\]: expected numbers, got <U1"),
        (lambda: data.pad_sequence([1, 2]), ValueError, r"sequences\[0\]: expected shape \(T\) as in sequences\[0\]"),
        (
            lambda: data.pad_sequence([np.ones(2, np.uint8)], padding_value=-1),
            ValueError,
            "padding_value: expected a number that uint8 holds, got -1",
        ),
    ],
)
def test_sequences_that_do_not_fit(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.peers
def test_padded_sequences_equal_torch() -> None:
    torch = pytest.importorskip("torch")
    sequences = [np.random.default_rng(n).standard_normal((n, 3)) for n in (2, 5, 1)]
    for batch_first in (False, True):
        ours, _ = data.pad_sequence(sequences, batch_first=batch_first, padding_value=7)
        theirs = torch.nn.utils.rnn.pad_sequence([torch.tensor(s) for s in sequences], batch_first, 7)
        assert same_bits(ours, theirs.numpy())


# ---- standardized series -------------------------------------------------------------------------------------------


@both_dtypes
@pytest.mark.parametrize("shape", [(300,), (300, 1), (300, 4), (50, 6, 4)])
def test_mean_and_deviation_and_back(shape: tuple[int, ...], dtype: Any) -> None:
    x = (np.random.default_rng(0).standard_normal(shape) * 3 + 7).astype(dtype)
    standardizer = data.Standardizer().fit(x)
    scaled = standardizer.transform(x)
    rows = scaled.reshape(-1, shape[-1] if len(shape) > 1 else 1).astype(np.float64)
    assert scaled.dtype == dtype
    assert scaled.shape == shape
    tolerance = 1e-6 if dtype == np.float32 else 1e-13
    np.testing.assert_allclose(rows.mean(axis=0), 0, atol=tolerance)
    np.testing.assert_allclose(rows.std(axis=0), 1, rtol=tolerance)
    assert relative_error(standardizer.inverse_transform(scaled), x) < tolerance


def test_what_is_missing_does_not_count_and_stays() -> None:
    x = np.array([[1.0, np.nan], [np.nan, 5.0], [3.0, 9.0], [np.inf, np.nan]])
    standardizer = data.Standardizer().fit(x)
    assert standardizer.mean is not None
    assert standardizer.std is not None
    assert standardizer.mean.tolist() == [2, 7]
    assert standardizer.std.tolist() == [1, 2]
    scaled = standardizer.transform(x)
    assert np.array_equal(np.isnan(scaled), np.isnan(x))
    assert scaled[3, 0] == np.inf
    assert np.array_equal(standardizer.inverse_transform(scaled), x, equal_nan=True)


def test_a_feature_that_does_not_vary_is_only_shifted() -> None:
    x = np.column_stack([np.full(9, 0.1), np.full(9, np.nan), np.arange(9.0), np.full(9, 1e300)])
    scaled = data.Standardizer().fit(x).transform(x)
    np.testing.assert_allclose(scaled[:, [0, 3]], 0, atol=1e285)
    assert np.abs(scaled[:, 0]).max() < 1e-15
    assert scaled[:, 2].std() == pytest.approx(1)
    new = np.array([[0.1, 3.0, 4.0, 1e300]])
    assert data.Standardizer().fit(x).transform(new)[0, 1] == 3.0
    assert data.Standardizer().fit(np.zeros((0, 2))).transform(np.ones((1, 2))).tolist() == [[1, 1]]


def test_a_weight_says_how_often_a_row_counts() -> None:
    x = np.array([[1.0, 5.0], [np.nan, 7.0], [3.0, 5.0], [8.0, 1e300]])
    times = [3, 1, 2, 0]
    weighted, repeated = data.Standardizer().fit(x, weight=times), data.Standardizer().fit(np.repeat(x, times, axis=0))
    np.testing.assert_allclose(weighted.mean, repeated.mean, rtol=1e-14)
    np.testing.assert_allclose(weighted.std, repeated.std, rtol=1e-14)
    ones = data.Standardizer().fit(x, weight=np.ones(4))
    np.testing.assert_array_equal(ones.std, data.Standardizer().fit(x).std)
    assert data.Standardizer().fit(x, weight=np.zeros(4)).std.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ([1.0, 2.0], r"weight: expected shape \(3,\), got \(2,\)"),
        ([1.0, -1.0, 1.0], "weight: expected finite numbers of at least 0"),
        ([1.0, np.nan, 1.0], "weight: expected finite numbers of at least 0"),
    ],
)
def test_invalid_weights_of_a_standardizer(weight: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data.Standardizer().fit(np.ones((3, 2)), weight=weight)


@both_dtypes
def test_large_values_do_not_overflow(dtype: Any) -> None:
    big = np.finfo(dtype).max / 8
    x = np.array([-big, 0, big, big], dtype)
    scaled = data.Standardizer().fit(x).transform(x)
    assert scaled.std() == pytest.approx(1, rel=1e-6)
    offset = np.float32(1e6) + np.arange(8, dtype=np.float32)  # which float32 cannot hold less the mean of squares
    assert data.Standardizer().fit(offset).transform(offset).std() == pytest.approx(1, rel=1e-6)


def test_its_state_goes_through_a_checkpoint(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((30, 3))
    standardizer, other = data.Standardizer().fit(x), data.Standardizer()
    model = gradcore.Linear(3, 1)
    gradcore.save_checkpoint(tmp_path / "run.safetensors", model=model, state=standardizer.state_dict())
    other.load_state_dict(gradcore.load_checkpoint(tmp_path / "run.safetensors", model=model)["state"])
    assert same_bits(other.transform(x), standardizer.transform(x))
    other.load_state_dict({})
    assert other.mean is None
    assert repr(standardizer) == "Standardizer(features=3)"
    assert repr(other) == "Standardizer()"


def test_wrong_arguments_of_a_standardizer() -> None:
    standardizer = data.Standardizer()
    with pytest.raises(RuntimeError, match="Standardizer: expected a call of fit first"):
        standardizer.transform(np.ones(3))
    with pytest.raises(TypeError, match="x: expected float32 or float64, got int64"):
        standardizer.fit(np.arange(3))
    standardizer.fit(np.ones((3, 2)))
    with pytest.raises(ValueError, match=r"x: expected shape \(\.\.\., 2\), got \(3, 3\)"):
        standardizer.transform(np.ones((3, 3)))
    before = standardizer.state_dict()
    for wrong in (
        {"mean": np.ones(2)},
        {"mean": np.ones(2), "std": np.zeros(2)},
        {"mean": np.ones(2), "std": np.ones(3)},
    ):
        with pytest.raises((KeyError, ValueError), match="state_dict"):
            standardizer.load_state_dict(wrong)
    assert all(same_bits(standardizer.state_dict()[name], value) for name, value in before.items())


# ---- drawn text ----------------------------------------------------------------------------------------------------


class Counter(gradcore.Composite):
    """Says that the token after k is k + 1 by the logits `sharp`, or k + 2 with half the odds."""

    n_states = 1

    def __init__(self, n: int = 5, sharp: float = 1.0) -> None:
        super().__init__(core=gradcore.GRU(1, 1, rng=0))
        self.n, self.sharp = n, sharp
        self.read: list[Array] = []

    def __call__(self, x: Array, state: Any = None) -> Any:
        self.read.append(x.copy())
        logits = np.full((*x.shape, self.n), -np.inf, np.float32)
        np.put_along_axis(logits, (x[..., None] + 1) % self.n, self.sharp * np.log(2), axis=-1)
        np.put_along_axis(logits, (x[..., None] + 2) % self.n, 0, axis=-1)
        return logits, state


def test_the_odds_are_those_of_the_logits_over_the_temperature() -> None:
    for temperature, want in ((1.0, 2 / 3), (0.5, 4 / 5), (2.0, 2**0.5 / (1 + 2**0.5)), (1e-9, 1.0), (0.0, 1.0)):
        drawn = data.sample(Counter(), np.zeros((1, 500), int), 40, temperature=temperature, rng=0)
        before = np.concatenate([np.zeros((1, 500), int), drawn[:-1]])
        moved = (drawn - before) % 5
        assert set(np.unique(moved)) <= {1, 2}  # never one without a probability
        assert (moved == 1).mean() == pytest.approx(want, abs=5 * np.sqrt(0.25 / drawn.size))


def test_the_prompt_is_read_first_and_then_what_was_drawn() -> None:
    model = Counter()
    drawn = data.sample(model, [3, 1, 0], 4, temperature=0)
    assert drawn.tolist() == [1, 2, 3, 4]
    assert [x[:, 0].tolist() for x in model.read] == [[3, 1, 0], [1], [2], [3]]


def test_the_state_is_carried() -> None:
    """The same as reading everything again for each token."""
    rng = np.random.default_rng(0)
    model = gradcore.Sequential(
        gradcore.Embedding(7, 5, dtype=np.float64, rng=rng), gradcore.LSTM(5, 9, 2, dtype=np.float64, rng=rng),
        gradcore.Linear(9, 7, dtype=np.float64, rng=rng),
    )  # fmt: skip
    model.params["2.weight"] *= 8
    tokens = rng.integers(0, 7, (3, 2))
    drawn = data.sample(model, tokens, 12, temperature=0)
    for token in drawn:
        assert model(tokens)[-1].argmax(axis=1).tolist() == token.tolist()
        tokens = np.concatenate([tokens, token[None]])
    one = data.sample(model, tokens[:3, 0], 12, temperature=0)
    assert one.tolist() == drawn[:, 0].tolist()
    layer = gradcore.GRU(7, 7, rng=1)
    encoded = data.sample(layer, [1], 3, encode=lambda ids: np.eye(7, dtype=np.float32)[ids], rng=0)
    assert encoded.shape == (3,)


def test_a_seed_gives_the_same_again() -> None:
    first, second = (data.sample(Counter(), [0], 30, rng=seed).tolist() for seed in (1, 2))
    assert data.sample(Counter(), [0], 30, rng=1).tolist() == first
    assert first != second
    assert data.sample(Counter(), [0], 0).shape == (0,)
    assert data.sample(Counter(), np.zeros((2, 0), int), 3).shape == (3, 0)


def test_a_trained_model_of_characters_writes_its_text() -> None:
    """Streams, an embedding, states through `fit` and `sample`, together."""
    ids = np.array([0, 1, 2, 3, 2, 1] * 60)  # what follows 1 or 2 depends on what came before
    rng = np.random.default_rng(0)
    model = gradcore.Sequential(
        gradcore.Embedding(4, 4, rng=rng), gradcore.GRU(4, 16, rng=rng), gradcore.Linear(16, 4, rng=rng)
    )
    batches = data.streams(ids, batch=6, steps=10)
    optimizer = optim.Adam(model, lr=0.02)
    gradcore.fit(model, batches, losses.softmax_cross_entropy, optimizer, epochs=25, stateful=True)
    assert data.sample(model, [2, 1], 10, temperature=0).tolist() == [0, 1, 2, 3, 2, 1, 0, 1, 2, 3]


def test_wrong_arguments_of_sample() -> None:
    model = Counter()
    for prompt in ([], np.zeros((0, 2), int), np.zeros((1, 1, 1), int)):
        with pytest.raises((TypeError, ValueError), match="prompt: expected"):
            data.sample(model, prompt, 3)
    with pytest.raises(TypeError, match="prompt: expected integers, got float64"):
        data.sample(model, [0.5], 3)
    with pytest.raises(ValueError, match="temperature: expected a number at least 0, got -1"):
        data.sample(model, [0], 3, temperature=-1)
    with pytest.raises(ValueError, match="model: expected one with recurrent layers"):
        data.sample(gradcore.Linear(3, 3), [0], 3)
    last = gradcore.Sequential(gradcore.Embedding(3, 3), gradcore.GRU(3, 3), gradcore.LastStep())
    with pytest.raises(ValueError, match=r"model: expected logits \(T, B, tokens\) of each step, got shape \(1, 3\)"):
        data.sample(last, [0], 3)
    model.sharp = np.nan
    with pytest.raises(FloatingPointError, match="model: the logits are NaN or infinite"):
        data.sample(model, [0], 3)
