"""Where gradients explode, drawn: `python bench/surfaces.py --out FOLDER`, seconds.

`cliff.png` is the error surface of a recurrent network with one unit, after Pascanu, Mikolov and Bengio (2013, figure
6): x_t = w sigmoid(x_{t-1}) + b, x_0 = 1/2, E = (sigmoid(x_50) - 0.7)^2 over w and b, and its gradient's norm. Where
x_0 lies on the border between two states that the unit may fall into, E jumps: a wall, on which the gradient is larger
by orders of magnitude than beside it. `linear.png` has the same in its simplest form: the first and second derivative
by w of x_t = w x_{t-1}, which grow together.

All values and derivatives are from gradcore's RNN, and are checked first against plain NumPy and closed forms.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

import gradcore

Array = np.ndarray[Any, Any]

STEPS, START, TARGET = 50, 0.5, 0.7
CENTER = 5.0  # the w of the paper's figure 3; above 4 there are two states to fall into
W_RANGE, B_RANGE = (3.5, 6.5), (-4.0, -1.0)
LINEAR_STEPS = (1, 5, 20, 50)


def sigmoid(x: Any) -> Array:
    return np.asarray(1 / (1 + np.exp(-np.asarray(x, np.float64))))


def wall(w: float) -> float:
    """The b that keeps the unit at x_0 for ever: w sigmoid(x_0) + b = x_0. Beside it the unit leaves, either way."""
    return START - w * float(sigmoid(START))


def cliff(w: Array, b: Array, dtype: Any = np.float64) -> tuple[Array, Array, Array]:
    """E, dE/dw and dE/db, each (len(w), len(b)), from gradcore's tanh RNN with one unit.

    sigmoid(x) = (1 + tanh(x/2)) / 2, so that h_t = tanh(x_t / 2) is h_t = tanh(w/4 h_{t-1} + (w/4 + b/2)): recurrent
    weight w/4, and the rest comes in as the input. The b are the batch, and the gradient by each sample's inputs, which
    the backward pass returns, is all that the derivatives need.
    """
    E, dw, db = np.empty((3, len(w), len(b)))
    layer = gradcore.RNN(1, 1, bias=False, dtype=dtype)
    layer.params["weight_ih_l0"][...] = 1
    first = np.full((1, len(b), 1), np.tanh(START / 2), dtype)
    for i in range(len(w)):
        layer.params["weight_hh_l0"][...] = w[i] / 4
        x = np.empty((STEPS, len(b), 1), dtype)
        x[...] = (w[i] / 4 + np.asarray(b) / 2)[:, None]
        y, tape = layer.forward(x, first)
        miss = (1 + y[-1]) / 2 - TARGET
        dy = np.zeros_like(y)
        dy[-1] = miss  # of (1 + h)/2 - 0.7, squared: 2 miss times 1/2
        delta = layer.backward(tape, dy)[..., 0]
        h_before = np.concatenate([first, y[:-1]])[..., 0]
        E[i] = np.square(miss[:, 0])
        dw[i] = (delta * (h_before + 1)).sum(axis=0) / 4
        db[i] = delta.sum(axis=0) / 2
    return E, dw, db


def cliff_in_numpy(w: Array, b: Array) -> tuple[Array, Array, Array]:
    """The same, in the paper's own variables."""
    w, b = np.meshgrid(np.asarray(w, np.float64), np.asarray(b, np.float64), indexing="ij")
    x, xw, xb = np.full_like(w, START), np.zeros_like(w), np.zeros_like(w)
    for _ in range(STEPS):
        s = sigmoid(x)
        slope = w * s * (1 - s)
        x, xw, xb = w * s + b, s + slope * xw, 1 + slope * xb
    s = sigmoid(x)
    dx = 2 * (s - TARGET) * s * (1 - s)
    return (s - TARGET) ** 2, dx * xw, dx * xb


def linear(w: float, steps: int, start: float = START) -> tuple[float, float, float]:
    """x_t of x_t = w x_{t-1}, w and x_0 positive, and its first and second derivative by w, from gradcore's relu RNN.

    The state is (x, dx/dw), which W = [[w, 0], [1, w]] carries forward: d/dw (w x) = w dx/dw + x. Then the backward
    pass from the second unit gives the derivative of dx/dw by both places that hold w.
    """
    layer = gradcore.RNN(1, 2, nonlinearity="relu", bias=False, dtype=np.float64)
    layer.params["weight_ih_l0"][...] = 0
    layer.params["weight_hh_l0"][...] = [[w, 0], [1, w]]
    y, tape = layer.forward(np.zeros((steps, 1, 1)), np.array([[[start, 0.0]]]))
    layer.backward(tape, np.zeros_like(y), np.array([[[0.0, 1.0]]]))
    return float(y[-1, 0, 0]), float(y[-1, 0, 1]), float(np.trace(layer.grads["weight_hh_l0"]))


def linear_gradient(w: float, steps: int, start: float = START) -> float:
    """dx_t/dw as a backward pass through one unit has it."""
    layer = gradcore.RNN(1, 1, nonlinearity="relu", bias=False, dtype=np.float64)
    layer.params["weight_ih_l0"][...] = 0
    layer.params["weight_hh_l0"][...] = w
    y, tape = layer.forward(np.zeros((steps, 1, 1)), np.full((1, 1, 1), start))
    layer.backward(tape, np.zeros_like(y), np.ones((1, 1, 1)))
    return float(layer.grads["weight_hh_l0"].item())


def linear_formula(w: float, steps: int, start: float = START) -> tuple[float, float, float]:
    """x_0 w^t, t x_0 w^(t-1) and t (t-1) x_0 w^(t-2)."""
    second = steps * (steps - 1) * start * w ** (steps - 2) if steps > 1 else 0.0
    return start * w**steps, steps * start * w ** (steps - 1), second


def check() -> None:
    """gradcore beside plain NumPy, away from the wall, where rounding errors grow as gradients do; and closed forms."""
    w, b = np.linspace(2.0, 3.9, 20), np.linspace(*B_RANGE, 31)
    for got, want in zip(cliff(w, b), cliff_in_numpy(w, b), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)
    for steps in LINEAR_STEPS:
        np.testing.assert_allclose(linear(1.1, steps), linear_formula(1.1, steps), rtol=1e-12)
        np.testing.assert_allclose(linear_gradient(1.1, steps), linear_formula(1.1, steps)[1], rtol=1e-12)


def draw_cliff(path: Path, points: int) -> None:
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    w, b = np.linspace(*W_RANGE, points), np.linspace(*B_RANGE, points)
    E, dw, db = cliff(w, b)
    norm = np.hypot(dw, db)
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left = figure.add_subplot(1, 2, 1, projection="3d")
    left.plot_surface(*np.meshgrid(w, b, indexing="ij"), E, cmap="viridis", rcount=120, ccount=120, linewidth=0)
    left.set(xlabel="w", ylabel="b", zlabel="E")
    left.view_init(elev=30, azim=-130)
    left.set_box_aspect(None, zoom=0.85)  # or the label of E is cut off
    right = figure.add_subplot(1, 2, 2)
    image = right.pcolormesh(w, b, norm.T, norm=LogNorm(1e-4, 1e4), cmap="magma", rasterized=True)
    high = w[w > 4.5]  # where the wall becomes narrower than what the grid resolves
    right.plot(high, [wall(value) for value in high], color="white", linewidth=0.6, linestyle=":")
    right.set(xlabel="w", ylabel="b", title="norm of (dE/dw, dE/db); dotted: where the wall is")
    figure.colorbar(image, ax=right)
    figure.savefig(path, dpi=120)


def draw_linear(path: Path, points: int) -> None:
    from matplotlib.figure import Figure

    w = np.linspace(0.5, 1.5, points)
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    axes = figure.subplots(1, 2, sharex=True)
    for i, steps in enumerate(LINEAR_STEPS):
        _, first, second = np.array([linear(value, steps) for value in w]).T
        axes[0].semilogy(w, first, color=f"C{i}", label=f"t = {steps}")
        if steps > 1:  # of the first step it is zero
            axes[1].semilogy(w, second, color=f"C{i}", label=f"t = {steps}")
    for ax, title in zip(axes, ("first derivative of x_t by w", "second derivative"), strict=True):
        ax.axvline(1, color="0.7", linewidth=0.8)
        ax.set(xlabel="w", title=title)
        ax.legend(frameon=False)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the folder for cliff.png and linear.png")
    parser.add_argument("--points", type=int, default=300, help="of each axis")
    arguments = parser.parse_args()
    if arguments.points < 2:
        parser.error(f"--points: expected at least 2, got {arguments.points}")
    check()
    arguments.out.mkdir(parents=True, exist_ok=True)

    at = wall(CENTER)
    print(f"one unit, w = {CENTER:g}, {STEPS} steps; the wall is at b = {at:.6f}")
    print("        b         E      |gradient|")
    b = at + np.array([-0.1, -0.01, -0.001, 0.0, 0.001, 0.01, 0.1])
    E, dw, db = cliff(np.array([CENTER]), b)
    for value, error, norm in zip(b, E[0], np.hypot(dw, db)[0], strict=True):
        print(f"{value:9.4f}  {error:8.4f}  {norm:14.4g}")
    print("x_t = w x_(t-1), w = 1.1:   t       dx/dw     d2x/dw2")
    for steps in LINEAR_STEPS:
        _, first, second = linear(1.1, steps)
        print(f"{steps:29}  {first:10.4g}  {second:10.4g}")
    draw_cliff(arguments.out / "cliff.png", arguments.points)
    draw_linear(arguments.out / "linear.png", arguments.points)
    print(f"wrote {arguments.out / 'cliff.png'} and {arguments.out / 'linear.png'}")


if __name__ == "__main__":
    main()
