"""What the claims share: networks, passes, and how far a gradient gets."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradcore._base.check import Array
from gradcore.layers.recurrent import RNN
from gradcore.spectral.verdict import STABLE_FACTOR

__all__: list[str] = []  # for the package only

STEPS, DEPTH, UNITS, WIDTH, SAMPLES = 100, 50, 64, 256, 16
DRAWS = 3  # networks whose geometric mean counts, if weights are random and the claim is about their scale
ROUNDING = 1e-9


def rnn(W: Any, nonlinearity: str = "tanh") -> RNN:
    """Return a layer with h_t = phi(W h_{t-1} + x_t)."""
    units = len(W)
    layer = RNN(units, units, nonlinearity=nonlinearity, bias=False, dtype=np.float64)
    layer.params["weight_hh_l0"][...] = W
    layer.params["weight_ih_l0"][...] = np.eye(units)
    return layer


def from_the_end(layer: Any, x: Array, state: Any = None) -> Any:
    """Return the tape after a backward pass from a random gradient at the last step."""
    y, tape = layer.forward(x, state)
    dy = np.zeros_like(y)
    dy[-1] = np.random.default_rng(1).standard_normal(y.shape[1:])
    layer.backward(tape, dy)
    return tape


def end_to_end(norms: Array) -> float:
    """Return the growth from the last step or layer back to the first."""
    return float(norms[0] / norms[-1])


def keeps(factor: float) -> bool:
    return 1 / STABLE_FACTOR < factor < STABLE_FACTOR
