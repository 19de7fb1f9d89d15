"""Growth of gradients: the forecast beside the measurement, and what the forecast costs.

`python bench/bench_spectral.py` prints predicted and measured rates over cell, gain, input and size, and how many are
within 0.02 + 5 %; `--out` writes them to forecasts.json and forecasts.png. With `--speed` it times Lyapunov exponents
beside a loop of NumPy's QR and beside passes of the layer. `pytest bench/bench_spectral.py` times the pieces.
Everything is checked before it is timed.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import figures
import numpy as np
import pytest

import gradcore
from gradcore import reference, spectral

Run = Callable[[], object]
Row = dict[str, Any]

CELLS: dict[str, Callable[..., Any]] = {
    "RNN tanh": gradcore.RNN,
    "RNN relu": lambda *sizes, **options: gradcore.RNN(*sizes, nonlinearity="relu", **options),
    "LSTM": gradcore.LSTM,
    "GRU": gradcore.GRU,
}
GAINS = (0.3, 0.6, 1.0, 1.4, 2.0, 3.0, 4.0)
INPUTS = (0.1, 1.0, 3.0)  # standard deviations of x
SIZES = (16, 64, 256, 512)
T, B, I = 200, 8, 8

ABSOLUTE, RELATIVE = 0.02, 0.05  # how far a forecast may be off; rates no further from 0 have no verdict to get right
MEASURES = {"measured": "the same sequences", "fresh": "sequences drawn anew"}

ROUNDS, PAUSE = 7, 0.1  # of timing; seconds in which threads of either library stop spinning


def random_layer(cell: str, H: int, gain: float, seed: int, dtype: Any = np.float64) -> Any:
    """Recurrent weights of standard deviation gain / sqrt(H), input weights of 1 / sqrt(I), no biases."""
    rng = np.random.default_rng(seed)
    layer = CELLS[cell](I, H, bias=False, dtype=dtype)
    for name, value in layer.params.items():
        value[...] = rng.standard_normal(value.shape) * (gain if "hh" in name else 1) / np.sqrt(value.shape[1])
    return layer


def backward_from_the_end(layer: Any, x: Any, seed: Any) -> Any:
    """The tape after a backward pass from a random gradient at the last step."""
    y, tape = layer.forward(x)
    dy = np.zeros_like(y)
    dy[-1] = np.random.default_rng(seed).standard_normal(dy[-1].shape)
    layer.backward(tape, dy)
    return tape


# ---- forecasts -------------------------------------------------------------------------------------------------------


def grid(series: int) -> Iterator[Row]:
    """A row for each point. No random number of a forecast is one of a measurement."""
    seed = 1000 * series
    for cell in CELLS:
        for gain in GAINS:
            for H in SIZES:
                for deviation in INPUTS:
                    seed += 1
                    layer = random_layer(cell, H, gain, seed)
                    x, fresh = deviation * np.random.default_rng([seed, 1]).standard_normal((2, T, B, I))
                    forecast = spectral.predict_growth(layer, x, horizon=T)
                    yield {
                        "cell": cell, "gain": gain, "H": H, "x": deviation, "predicted": forecast.rate,
                        "measured": spectral.measure_growth(backward_from_the_end(layer, x, [seed, 2])),
                        "fresh": spectral.measure_growth(backward_from_the_end(layer, fresh, [seed, 3])),
                        "bound": forecast.upper_bound, "verdict": forecast.verdict,
                    }  # fmt: skip


def off(row: Row, measure: str = "measured") -> float:
    """By how many tolerances the forecast is off; a gradient that becomes exactly 0 has to be forecast as one."""
    predicted, measured = row["predicted"], row[measure]
    if predicted == measured:
        return 0.0
    if not math.isfinite(measured):
        return math.inf
    return float(abs(predicted - measured) / (ABSOLUTE + RELATIVE * abs(measured)))


def told(row: Row, measure: str = "measured") -> bool | None:
    """Whether the verdict is right, where there is one to get right."""
    rate = row[measure]
    return None if abs(rate) <= ABSOLUTE else row["verdict"] == ("explodes" if rate > 0 else "vanishes")


def summary(rows: list[Row]) -> Iterator[str]:
    for measure, where in MEASURES.items():
        yield f"\nagainst a backward pass over {where}"
        for cell in [*CELLS, "all"]:
            of = [row for row in rows if cell in ("all", row["cell"])]
            close = sum(off(row, measure) <= 1 for row in of)
            verdicts = [right for row in of if (right := told(row, measure)) is not None]
            yield (
                f"  {cell:9} within {ABSOLUTE} + {RELATIVE:.0%}: {close} of {len(of)} ({close / len(of):.1%}); "
                f"verdict right beyond {ABSOLUTE}: {sum(verdicts)} of {len(verdicts)}"
            )
            for row in sorted(of, key=lambda row: -off(row, measure))[: 0 if cell == "all" else 3]:
                yield (
                    f"{'':12}gain {row['gain']}, H {row['H']}, x {row['x']}: {row['predicted']:.4f} predicted, "
                    f"{row[measure]:.4f} measured, {off(row, measure):.2f} of the tolerance"
                )


def draw(rows: list[Row], path: Path) -> None:
    """Predicted against measured, one panel a cell, on axes that are linear to 0.1, then logarithmic."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullLocator

    ticks = [-2, -0.5, -0.1, 0, 0.1, 0.5, 2]
    dots: Row = {"markersize": 4, "markeredgewidth": 0, "alpha": 0.7}
    crosses: Row = {"markersize": 4, "markeredgewidth": 0.7}
    line = np.concatenate([-np.geomspace(3, 1e-4, 200), np.geomspace(1e-4, 3, 200)])
    band = ABSOLUTE + RELATIVE * np.abs(line)
    figure, axes = plt.subplots(2, 2, figsize=(8, 8), sharex=True, sharey=True, layout="constrained")
    for axis, cell in zip(axes.flat, CELLS, strict=True):
        axis.fill_between(line, line - band, line + band, color="0.88", label="0.02 + 5 %", linewidth=0)
        axis.plot(line, line, color="0.6", linewidth=0.8)
        for H, color in zip(SIZES, ("C3", "C1", "C2", "C0"), strict=True):
            of = [row for row in rows if (row["cell"], row["H"]) == (cell, H)]
            predicted = [row["predicted"] for row in of]
            axis.plot([row["measured"] for row in of], predicted, "o", color=color, label=f"H = {H}", **dots)
            axis.plot([row["fresh"] for row in of], predicted, "x", color=color, **crosses)
        axis.plot([], [], "x", color="0.4", label="on new sequences", **crosses)
        for scale in (axis.set_xscale, axis.set_yscale):
            scale("symlog", linthresh=0.1, linscale=1.5)
        axis.set(xlim=(-3, 3), ylim=(-3, 3), aspect="equal", title=cell)
        for along in (axis.xaxis, axis.yaxis):
            along.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
            along.set_minor_locator(NullLocator())
        axis.axhline(0, color="0.8", linewidth=0.6, zorder=0)
        axis.axvline(0, color="0.8", linewidth=0.6, zorder=0)
    figure.supxlabel("measured, ln per step")
    figure.supylabel("predicted, ln per step")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=6, columnspacing=1)
    figure.savefig(path, dpi=110)


def forecasts(folder: Path | None, seed: int) -> None:
    print("ln per step, float64; weights N(0, gain^2 / H), x of the standard deviation given, dL/dh at the last step")
    print(
        f"{'cell':9} {'gain':>4} {'H':>3} {'x':>3} {'predicted':>9} {'measured':>8} {'fresh':>8} {'bound':>7}  verdict"
    )
    start, rows = time.perf_counter(), []
    for row in grid(seed):
        rows.append(row)
        print(
            f"{row['cell']:9} {row['gain']:4} {row['H']:3} {row['x']:3} {row['predicted']:9.4f} {row['measured']:8.4f} "
            f"{row['fresh']:8.4f} {row['bound']:7.4f}  {row['verdict']}{'  RATE OFF' if off(row) > 1 else ''}"
            f"{'  WRONG' if told(row) is False else ''}",
            flush=True,
        )
    lines = list(summary(rows))
    print(*lines, f"\n{time.perf_counter() - start:.0f} s", sep="\n")
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        result = {"machine": figures.machine(), "seed": seed, "T": T, "B": B, "I": I, "summary": lines, "points": rows}
        (folder / "forecasts.json").write_text(json.dumps(result, indent=1) + "\n")
        draw(rows, folder / "forecasts.png")


# ---- speed -----------------------------------------------------------------------------------------------------------


def seconds(run: Run) -> float:
    time.sleep(PAUSE)
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def in_turns(ours: Run, other: Run) -> list[tuple[float, float]]:
    """Seconds of each, round by round, after one call of each that is not counted."""
    ours(), other()
    return [(seconds(ours), seconds(other)) for _ in range(ROUNDS)]


def speed() -> None:
    print(json.dumps(figures.machine(), indent=1))
    steps, H = 1000, 128
    layer = random_layer("RNN tanh", H, 1.5, 0)
    x = 0.1 * np.random.default_rng(1).standard_normal((steps, 1, I))
    y = layer(x)[0][:, 0]  # not on NumPy's bill
    W, start = layer.params["weight_hh_l0"], np.linalg.qr(np.random.default_rng(2).standard_normal((H, H)))[0]

    def loop() -> Any:
        q, logs = start, np.zeros(H)
        for h in y:
            J = (1 - h**2)[:, None] * W
            q, r = np.linalg.qr(J @ q)
            logs += np.log(np.abs(np.diagonal(r)))
        return logs / steps

    ours, other = spectral.lyapunov_spectrum(layer, x), np.sort(loop())[::-1]
    # They begin with other directions, and those at the bottom are the last to find their place.
    np.testing.assert_allclose(ours, other, rtol=0.01, atol=0.02)
    np.testing.assert_allclose(ours.sum(), other.sum(), rtol=1e-6)
    times = in_turns(lambda: spectral.lyapunov_spectrum(layer, x), loop)
    print(
        f"all {H} exponents of an RNN over {steps} steps: {1e3 * statistics.median(a for a, _ in times):.0f} ms; "
        f"a loop of NumPy's QR takes {statistics.median(b / a for a, b in times):.1f} times as long"
    )

    k, H, samples = 8, 256, 16
    layer = random_layer("LSTM", H, 1.0, 0)
    x = np.random.default_rng(1).standard_normal((steps, samples, I))
    dy = np.random.default_rng(2).standard_normal((steps, samples, H))

    def both() -> None:
        layer.backward(layer.forward(x)[1], dy)

    top = spectral.lyapunov_spectrum(layer, x, k=1, transient=steps // 2)
    ours = spectral.lyapunov_spectrum(layer, x, k=k, transient=steps // 2)
    np.testing.assert_allclose(ours[:1], top, atol=0.01)
    times = in_turns(lambda: spectral.lyapunov_spectrum(layer, x, k=k), both)
    print(
        f"{k} exponents of an LSTM, H = {H}, over {samples} trajectories of {steps} steps: "
        f"{1e3 * statistics.median(a for a, _ in times):.0f} ms, as long as "
        f"{statistics.median(a / b for a, b in times):.1f} passes forward and backward"
    )


# ---- pieces ----------------------------------------------------------------------------------------------------------


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write forecasts.json and forecasts.png there")
    parser.add_argument("--seed", type=int, default=0, help="of other weights, inputs and gradients")
    parser.add_argument("--speed", action="store_true", help="take times instead")
    arguments = parser.parse_args()
    speed() if arguments.speed else forecasts(arguments.out, arguments.seed)


if __name__ == "__main__":
    main()
