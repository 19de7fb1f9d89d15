"""Claims about deep networks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from gradcore.diagnosis.claims.claim import Claim
from gradcore.diagnosis.claims.measures import (
    DEPTH,
    DRAWS,
    ROUNDING,
    SAMPLES,
    STEPS,
    UNITS,
    WIDTH,
    end_to_end,
    from_the_end,
    keeps,
    rnn,
)
from gradcore.init import orthogonal_
from gradcore.layers.activations import ReLU
from gradcore.layers.linear import Linear
from gradcore.layers.normalization import BatchNorm, LayerNorm
from gradcore.layers.residual import Residual
from gradcore.layers.sequential import MLP, Sequential
from gradcore.layers.transformer import TransformerEncoderLayer
from gradcore.spectral import spectral_norm

__all__: list[str] = []  # for the package only


def growth() -> Iterator[Claim]:
    layer = rnn([[1.1]], "relu")
    tape = from_the_end(layer, np.ones((STEPS + 1, 1, 1)))
    factor = end_to_end(tape.telemetry.dh_norm[0])
    yield Claim(
        "Growing by 1.1 a step, a gradient has grown 14,000 times after 100 steps.",
        bool(abs(factor / 14_000 - 1) < 0.05),
        {"factor": factor},
        "What looks like a small excess is a power of the number of steps.",
    )
    factor = _through_layers("identity", "eye", 1.5, 8)
    yield Claim(
        "Growing by 1.5 a layer, a gradient has grown 6.4e5 times after 50 layers.",
        bool(abs(factor / 6.4e5 - 1) < 0.05),
        {"factor": factor},
        "1.5^50 is 6.4e8, a thousand times as much.",
    )


def initializers() -> Iterator[Claim]:
    factor = _through_layers("identity", "orthogonal", 1.0, UNITS)
    yield Claim(
        "Orthogonal weights keep the norm of a gradient: linear layers, 50 of them.",
        bool(abs(factor - 1) < ROUNDING),
        {"factor": factor},
        "A product of orthogonal matrices is orthogonal.",
    )
    rng = np.random.default_rng(0)
    W = orthogonal_(np.empty((UNITS, UNITS)), rng=rng)
    tape = from_the_end(rnn(W), rng.standard_normal((STEPS, SAMPLES, UNITS)))
    factor = end_to_end(tape.telemetry.dh_norm[0])
    yield Claim(
        "Orthogonal weights keep the norm of a gradient: a tanh RNN.",
        keeps(factor),
        {"largest singular value": spectral_norm(W), "factor over 99 steps": factor},
        "Each step also multiplies by tanh', which is below 1 unless a unit is at 0.",
    )
    plain, gained = (_through_layers("tanh", "xavier_normal", gain, WIDTH) for gain in (3 / 5, 1.0))
    yield Claim(
        "Xavier initialization keeps gradients through 50 tanh layers.",
        keeps(plain),
        {"factor": plain},
        "At this scale of the weights the loss is about the square root of the depth, not exponential.",
    )
    yield Claim(
        "Xavier initialization with the customary gain of 5/3 keeps gradients through 50 tanh layers.",
        keeps(gained),
        {"factor": gained},
        "The gain keeps activations from shrinking, but lets the gradient grow by 1.1 a layer.",
    )
    he, xavier = (_through_layers("relu", "kaiming_normal", gain, WIDTH) for gain in (1.0, math.sqrt(0.5)))
    yield Claim(
        "He initialization keeps gradients through 50 ReLU layers.",
        keeps(he),
        {"factor": he},
        "The variance 2/n makes up for the half of the units that are off.",
    )
    yield Claim(
        "Xavier initialization keeps gradients through 50 ReLU layers.",
        keeps(xavier),
        {"factor": xavier, "2^-25": 2.0**-25},
        "Half of the squared norm is lost in each layer.",
    )


def _through_layers(activation: str, init: str, gain: float, width: int) -> float:
    """Return the norm of dL/dx over that of dL/dy in a network of DEPTH layers, all weights times the gain."""
    logs = []
    for seed in range(DRAWS):
        rng = np.random.default_rng(seed)
        model = MLP([width] * (DEPTH + 1), activation, init, dtype=np.float64, rng=rng)
        model.flat_params[...] *= gain  # the biases are zero
        y, tape = model.forward(rng.standard_normal((SAMPLES, width)))
        model.backward(tape, rng.standard_normal(y.shape))
        assert tape.d_norm is not None
        logs.append(math.log(end_to_end(tape.d_norm)))
    return math.exp(float(np.mean(logs)))


def residuals() -> Iterator[Claim]:
    depth = 1000
    plain, past, scaled, normed = (
        _geometric_mean(lambda rng, kind=kind: _blocks(kind, depth, rng), 32, draws=1)
        for kind in ("plain", "past", "scaled", "normed")
    )
    yield Claim(
        "Residual connections, y = x + F(x), carry gradients through 1,000 layers at He initialization.",
        keeps(past),
        {
            "without": plain,
            "with": past,
            "y = x + F(x) / sqrt(1000)": scaled,
            "layer norm before F": normed,
        },
        "Each branch adds as much variance as there is, so the squared norm doubles; the branch has to be small.",
    )


def _blocks(kind: str, depth: int, rng: np.random.Generator) -> Sequential:
    """Return `depth` blocks of two linear layers with ReLU between."""
    blocks: list[Any] = []
    for _ in range(depth):
        branch = [_linear(32, math.sqrt(2 / 32), rng), ReLU(), _linear(32, math.sqrt(1 / 32), rng)]
        if kind == "plain":
            blocks += [branch[0], ReLU()]
        else:
            norm = [LayerNorm(32, dtype=np.float64)] if kind == "normed" else []
            blocks.append(Residual(*norm, *branch, scale=depth**-0.5 if kind == "scaled" else 1.0))
    return Sequential(*blocks)


def normalizations() -> Iterator[Claim]:
    batch = _geometric_mean(lambda rng: _normalized(BatchNorm, 1.0, rng), UNITS, steps=4)
    yield Claim(
        "Batch normalization keeps gradients through 50 ReLU layers.",
        keeps(batch),
        {"factor": batch, "(pi / (pi - 1))^25": (math.pi / (math.pi - 1)) ** 25},
        "At the start each layer lets the squared norm grow by pi / (pi - 1), whatever the scale of the weights.",
    )
    half, double = (_geometric_mean(lambda rng, g=g: _normalized(LayerNorm, g, rng), UNITS) for g in (0.5, 2.0))
    yield Claim(
        "Layer normalization keeps gradients through 50 ReLU layers, whatever the scale of the weights.",
        keeps(half) and keeps(double),
        {"weights times 0.5": half, "weights times 2": double},
        "A layer norm divides by the scale that it is given, so the weights' scale has no effect on what follows.",
    )


def _normalized(norm: Any, gain: float, rng: np.random.Generator) -> Sequential:
    """Return DEPTH layers: weights, normalization, ReLU."""
    layers: list[Any] = []
    for _ in range(DEPTH):
        layers += [_linear(UNITS, gain * math.sqrt(2 / UNITS), rng), norm(UNITS, dtype=np.float64), ReLU()]
    return Sequential(*layers)


def transformers() -> Iterator[Claim]:
    depth, width = 192, 16
    grown: dict[str, float] = {}
    for name, norm_first in (("norm first", True), ("norm after", False)):
        usual, doubled = (
            _geometric_mean(
                lambda rng, g=g, f=norm_first: _transformer(depth, width, g, f, rng), width, steps=8, draws=1
            )
            for g in (1.0, 2.0)
        )
        grown |= {f"{name}, Xavier": usual, f"{name}, twice": doubled}
    ratio = max(grown[f"{name}, twice"] / grown[f"{name}, Xavier"] for name in ("norm first", "norm after"))
    yield Claim(
        "Query and key weights of twice Xavier's scale make gradients 10,000 times as large through 192 layers.",
        ratio > 1_000,
        grown,
        "They sharpen the attention, which is one of two branches; the layer norms divide the rest of the scale away.",
    )


def _transformer(depth: int, width: int, gain: float, norm_first: bool, rng: np.random.Generator) -> Sequential:
    """Return layers with Xavier's normal initialization, whose query and key weights are times `gain`."""
    layers = []
    for _ in range(depth):
        layer = TransformerEncoderLayer(width, 2, 4 * width, norm_first=norm_first, dtype=np.float64, rng=rng)
        for weight in (value for value in layer.params.values() if value.ndim == 2):
            weight[...] = rng.standard_normal(weight.shape) * math.sqrt(2 / sum(weight.shape))
        query_key_value = layer.params["self_attn.in_proj_weight"]
        query_key_value *= math.sqrt(2)  # of which each third is square
        query_key_value[: 2 * width] *= gain
        layers.append(layer)
    return Sequential(*layers)


def _linear(units: int, std: float, rng: np.random.Generator) -> Linear:
    layer = Linear(units, units, bias=False, dtype=np.float64)
    layer.params["weight"][...] = std * rng.standard_normal((units, units))
    return layer


def _geometric_mean(make: Any, width: int, steps: int = 1, draws: int = DRAWS) -> float:
    """Return the norm of dL/dx over that of dL/dy in networks that `make(rng)` returns."""
    logs = []
    for seed in range(draws):
        rng = np.random.default_rng(seed)
        model = make(rng)
        y, tape = model.forward(rng.standard_normal((steps, SAMPLES, width)))
        model.backward(tape, rng.standard_normal(y.shape))
        logs.append(math.log(end_to_end(tape.d_norm)))
    return math.exp(float(np.mean(logs)))
