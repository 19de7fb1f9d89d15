"""Growth of gradients: the forecast beside the measurement, and what the forecast costs.

`python bench/bench_spectral.py` prints the table of predicted and measured rates over cell, gain, size and length;
`pytest bench/bench_spectral.py` times the pieces, each checked before it is timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import gradcore
from gradcore import reference, spectral

CELLS: dict[str, Callable[..., Any]] = {
    "RNN tanh": gradcore.RNN,
    "RNN relu": lambda *sizes, **options: gradcore.RNN(*sizes, nonlinearity="relu", **options),
    "LSTM": gradcore.LSTM,
    "GRU": gradcore.GRU,
}
GAINS = (0.3, 0.6, 1.0, 1.4, 2.0, 3.0, 4.0)
SIZES = (16, 64)
LENGTHS = (100, 200)
INPUTS = (0.1, 1.0)  # standard deviations of x
I, B = 8, 8


def random_layer(cell: str, H: int, gain: float, seed: int, dtype: Any = np.float64) -> Any:
    """Recurrent weights of standard deviation gain / sqrt(H), input weights of 1 / sqrt(I), no biases."""
    rng = np.random.default_rng(seed)
    layer = CELLS[cell](I, H, bias=False, dtype=dtype)
    for name, value in layer.params.items():
        value[...] = rng.standard_normal(value.shape) * (gain if "hh" in name else 1) / np.sqrt(value.shape[1])
    return layer


def backward_from_the_end(layer: Any, x: Any, seed: int) -> Any:
    """The tape after a backward pass from a random gradient at the last step."""
    y, tape = layer.forward(x)
    dy = np.zeros_like(y)
    dy[-1] = np.random.default_rng(seed).standard_normal(dy[-1].shape)
    layer.backward(tape, dy)
    return tape


def grid() -> Iterator[tuple[str, float, int, int, float, spectral.GrowthPrediction, float]]:
    seed = 0
    for cell in CELLS:
        for gain in GAINS:
            for H in SIZES:
                for T in LENGTHS:
                    for deviation in INPUTS:
                        seed += 1
                        layer = random_layer(cell, H, gain, seed)
                        x = deviation * np.random.default_rng(seed).standard_normal((T, B, I))
                        forecast = spectral.predict_growth(layer, x, horizon=T)
                        measured = spectral.measure_growth(backward_from_the_end(layer, x, seed))
                        yield cell, gain, H, T, deviation, forecast, measured


def main() -> None:
    print("ln per step, float64; weights N(0, gain^2 / H), x of the standard deviation given, dL/dh at the last step")
    print(f"{'cell':9} {'gain':>4} {'H':>3} {'T':>4} {'x':>4} {'predicted':>10} {'measured':>9} {'bound':>8}  verdict")
    start, points, close, clear, right = time.perf_counter(), 0, 0, 0, 0
    for cell, gain, H, T, deviation, forecast, measured in grid():
        hit = abs(forecast.rate - measured) <= 0.02 + 0.05 * abs(measured)
        told = forecast.verdict == ("explodes" if measured > 0 else "vanishes") or abs(measured) <= 0.02
        points, close = points + 1, close + hit
        clear, right = clear + (abs(measured) > 0.02), right + (told and abs(measured) > 0.02)
        print(
            f"{cell:9} {gain:4} {H:3} {T:4} {deviation:4} {forecast.rate:10.4f} {measured:9.4f} "
            f"{forecast.upper_bound:8.4f}  {forecast.verdict}{'' if hit else '  RATE OFF'}{'' if told else '  WRONG'}"
        )
    print(f"within 0.02 + 5 %: {close} of {points}; verdict right where the rate is beyond 0.02: {right} of {clear}")
    print(f"{time.perf_counter() - start:.0f} s")


@pytest.mark.parametrize("H", [32, 128])
@pytest.mark.parametrize("cell", CELLS)
def test_predict_growth(benchmark: Any, cell: str, H: int) -> None:
    layer = random_layer(cell, H, 1.0, 0, np.float32)
    x = np.random.default_rng(0).standard_normal((100, 16, I)).astype(np.float32)
    measured = spectral.measure_growth(backward_from_the_end(layer, x, 0))
    forecast = spectral.predict_growth(layer, x, horizon=100)
    assert abs(forecast.rate - measured) <= 0.02 + 0.05 * abs(measured)
    benchmark(spectral.predict_growth, layer, x, horizon=100)


@pytest.mark.parametrize("k", [1, 8, 64])
@pytest.mark.parametrize("cell", CELLS)
def test_lyapunov_spectrum(benchmark: Any, cell: str, k: int) -> None:
    layer = random_layer(cell, 64, 1.0, 0)
    x = np.random.default_rng(0).standard_normal((100, 4, I))
    whole = spectral.lyapunov_spectrum(layer, x)
    np.testing.assert_allclose(spectral.lyapunov_spectrum(layer, x, k=k)[:1], whole[:1], atol=0.05)
    benchmark(spectral.lyapunov_spectrum, layer, x, k=k)


def test_plain_loop_of_qr(benchmark: Any) -> None:
    """What the spectrum of one trajectory costs as a loop of NumPy's QR over given matrices: to compare with k = 64."""
    J = np.random.default_rng(0).standard_normal((100, 64, 64)) / 8
    want = np.mean([np.linalg.slogdet(matrix)[1] for matrix in J])
    assert abs(reference.lyapunov_exponents(J, np.eye(64)).sum() - want) < 1e-8
    benchmark(reference.lyapunov_exponents, J, np.eye(64))


if __name__ == "__main__":
    main()
