"""Claims about recurrent networks."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from gradcore._base.check import Array
from gradcore.diagnosis.claims.claim import Claim
from gradcore.diagnosis.claims.measures import (
    DRAWS,
    ROUNDING,
    SAMPLES,
    STEPS,
    UNITS,
    end_to_end,
    from_the_end,
    keeps,
    rnn,
)
from gradcore.layers.recurrent import GRU, LSTM, RNN
from gradcore.spectral import measure_growth, spectral_norm, spectral_radius

__all__: list[str] = []  # for the package only


def eigenvalues() -> Iterator[Claim]:
    rng = np.random.default_rng(0)
    W = 1.5 * rng.standard_normal((UNITS, UNITS)) / math.sqrt(UNITS)
    tape = from_the_end(rnn(W), 3 * rng.standard_normal((STEPS, SAMPLES, UNITS)))
    rate = measure_growth(tape)
    yield Claim(
        "A spectral radius of W_hh above 1 means that gradients explode.",
        rate > 0,
        {"radius": spectral_radius(W), "growth per step under strong input": math.exp(rate)},
        "Growth is an average along the trajectory; units saturated by their input pass on little of a gradient.",
    )
    # W is nilpotent, but at this fixed point tanh' makes it a Jacobian with the eigenvalue 2.
    W, point = np.array([[8.0, 8.0], [-8.0, -8.0]]), np.array([0.0, math.atanh(0.5)])
    x = np.broadcast_to(point - W @ np.tanh(point), (30, 1, 2))  # rounding errors double with each step, too
    tape = from_the_end(rnn(W), x, np.tanh(point).reshape(1, 1, 2))
    rate = measure_growth(tape)
    yield Claim(
        "A spectral radius of W_hh below 1 means that gradients vanish.",
        rate < 0,
        {
            "radius": round(spectral_radius(W), 6),  # half the digits of a double eigenvalue are lost to rounding
            "largest singular value": spectral_norm(W),
            "growth per step": math.exp(rate),
        },
        "The Jacobian is diag(tanh') W_hh, whose eigenvalues are not those of W_hh.",
    )


def singular_values() -> Iterator[Claim]:
    W = np.array([[0.5, 2.0], [0.0, 0.5]])
    tape = from_the_end(rnn(W, "relu"), np.ones((STEPS, SAMPLES, 2)))
    norms = tape.telemetry.dh_norm[0]
    yield Claim(
        "A largest singular value of W_hh above 1 means that gradients explode.",
        end_to_end(norms) > 1,
        {
            "largest singular value": spectral_norm(W),
            "largest growth on the way": float(norms.max() / norms[-1]),
            "factor over 99 steps": end_to_end(norms),
        },
        "It is necessary, not sufficient: the next steps may shrink a gradient that one has enlarged.",
    )
    limit, worst = 0.95, 0.0
    for layer, x in _contracting(limit):
        norms = from_the_end(layer, x).telemetry.dh_norm[0]
        worst = max(worst, float((norms[:-1] / norms[1:]).max()))
    yield Claim(
        "A largest singular value of W_hh below 1 means that gradients vanish (tanh, ReLU).",
        worst <= limit + ROUNDING,
        {"largest singular value": limit, "largest growth in any step": worst},
        "Neither activation has a slope above 1, so no step enlarges a gradient by more than W_hh can.",
    )


def _contracting(limit: float) -> Iterator[tuple[RNN, Array]]:
    """Yield networks whose W_hh has this largest singular value, and their input; the last one reaches the bound."""
    for seed in range(DRAWS):
        rng = np.random.default_rng(seed)
        W = rng.standard_normal((UNITS, UNITS))
        W *= limit / spectral_norm(W)
        for nonlinearity in ("tanh", "relu"):
            yield rnn(W, nonlinearity), 0.1 * rng.standard_normal((STEPS, SAMPLES, UNITS))
    yield rnn(limit * np.roll(np.eye(UNITS), 1, axis=0), "relu"), np.ones((STEPS, SAMPLES, UNITS))


def gates() -> Iterator[Claim]:
    rng = np.random.default_rng(0)
    layer = LSTM(4, UNITS, dtype=np.float64, rng=rng)
    layer.params["weight_hh_l0"][...] = 4 * rng.standard_normal((4 * UNITS, UNITS)) / math.sqrt(UNITS)
    tape = from_the_end(layer, rng.standard_normal((STEPS, SAMPLES, 4)))
    rate = measure_growth(tape)
    yield Claim(
        "Gradients of an LSTM cannot explode.",
        rate <= 0,
        {"growth per step": math.exp(rate), "factor over 99 steps": end_to_end(tape.telemetry.dh_norm[0])},
        "The cell's own path multiplies by at most 1, but gradients also pass through the gates and W_hh.",
    )
    gru = GRU(4, UNITS, dtype=np.float64, rng=rng)
    gru.params["weight_hh_l0"][...] = 4 * rng.standard_normal((3 * UNITS, UNITS)) / math.sqrt(UNITS)
    tape = from_the_end(gru, rng.standard_normal((STEPS, SAMPLES, 4)))
    rate = measure_growth(tape)
    yield Claim(
        "Gradients of a GRU cannot explode.",
        rate <= 0,
        {"growth per step": math.exp(rate), "factor over 99 steps": end_to_end(tape.telemetry.dh_norm[0])},
        "Its update gate bounds the state, not the gradient, which also passes through the gates and W_hh.",
    )
    usual, of_chrono, wide_open = (_through_cell(bias, 0.0, STEPS)[0] for bias in (1.0, math.log(99), 40.0))
    yield Claim(
        "With the forget gate open, by a bias of 1, gradients do not vanish.",
        keeps(usual),
        {
            "bias 1, factor over 100 steps": usual,
            "bias ln 99": of_chrono,
            "bias 40": wide_open,
            "bias 40 and c at 10, dL/dc over dL/dh": _through_cell(40.0, 40.0, 9)[1],
        },
        "sigmoid(1) is 0.73 a step, and in a full cell, which has forgotten nothing, tanh(c) is flat.",
    )


def _through_cell(forget: float, write: float, steps: int) -> tuple[float, float]:
    """Return of an LSTM without weights |dL/dc| over `steps` steps back, and its ratio to |dL/dh| at the last step.

    `write` is the bias of the input and candidate gates: 0 keeps c at 0, and a large one makes c_t = t.
    """
    layer = LSTM(1, 1, dtype=np.float64)
    layer.flat_params.fill(0)
    layer.params["bias_ih_l0"][...] = [write, forget, write, 40.0]  # i, f, g, o
    telemetry = from_the_end(layer, np.zeros((steps + 1, 1, 1))).telemetry
    return end_to_end(telemetry.dc_norm[0]), float(telemetry.dc_norm[0, -1] / telemetry.dh_norm[0, -1])
