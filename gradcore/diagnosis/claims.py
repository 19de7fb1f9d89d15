"""Common claims about exploding and vanishing gradients, and what measurements say of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradcore._base.check import Array, as_list
from gradcore.clip.clip import clip_grad_norm_, clip_grad_value_
from gradcore.init import orthogonal_
from gradcore.layers.recurrent import LSTM, RNN
from gradcore.layers.sequential import MLP
from gradcore.spectral import measure_growth, spectral_norm, spectral_radius
from gradcore.spectral.verdict import STABLE_FACTOR

__all__ = ["Claim", "as_markdown", "folk_claims"]

STEPS, DEPTH, UNITS, WIDTH, SAMPLES = 100, 50, 64, 256, 16
DRAWS = 3  # networks whose geometric mean counts, if weights are random and the claim is about their scale
ROUNDING = 1e-9


@dataclass(frozen=True)
class Claim:
    """A common claim, and what gradcore measures.

    Parameters
    ----------
    claim : str
        The claim, in one sentence.
    true : bool
        Whether the measurement confirms it.
    measured : dict of str to float
        The numbers that decide.
    why : str
        The reason, in one sentence.

    Examples
    --------
    >>> from gradcore.diagnosis.claims import Claim
    >>> print(Claim("1.5 a layer makes 6.4e5 over 50.", False, {"factor": 1.5**50}, "It is 6.4e8."))
    false: 1.5 a layer makes 6.4e5 over 50. (factor: 6.38e+08)
    """

    claim: str
    true: bool
    measured: dict[str, float]
    why: str

    def __str__(self) -> str:
        return f"{'true' if self.true else 'false'}: {self.claim} ({_numbers(self)})"


def folk_claims() -> tuple[Claim, ...]:
    """Measure common claims about exploding and vanishing gradients.

    Every number is computed in the call, by forward and backward passes, clipping or decompositions, from fixed seeds
    and in float64 unless the claim is about float32. It takes a second or two. A universal claim is false if one
    network contradicts it; that network is the one measured. "Keeps" means within a factor of 10 from end to end.

    Returns
    -------
    tuple of Claim
        The claims, each with its measurement.

    References
    ----------
    Pascanu, Mikolov, Bengio, "On the difficulty of training recurrent neural networks", 2013 (singular values, and
    norm clipping); Glorot and Bengio, 2010, and He et al., 2015 (initialization).

    Examples
    --------
    >>> from gradcore.diagnosis.claims import folk_claims
    >>> for claim in folk_claims()[:2]:
    ...     print(claim)
    true: Growing by 1.1 a step, a gradient has grown 14,000 times after 100 steps. (factor: 1.38e+04)
    false: Growing by 1.5 a layer, a gradient has grown 6.4e5 times after 50 layers. (factor: 6.38e+08)
    """
    return tuple(claim for part in _PARTS for claim in part())


def as_markdown(claims: Iterable[Claim]) -> str:
    """Format claims as a Markdown table with a row each.

    Parameters
    ----------
    claims : iterable of Claim
        What to list, such as the result of `folk_claims`.

    Returns
    -------
    str
        The table, as in docs/claims.md.

    Raises
    ------
    TypeError
        If an entry is not a `Claim`.

    Examples
    --------
    >>> from gradcore.diagnosis.claims import Claim, as_markdown
    >>> print(as_markdown([Claim("Clipping helps.", True, {"loss": 0.5}, "It does.")]))
    | claim | | measured |
    |---|---|---|
    | Clipping helps. | true | loss: 0.5 |
    """
    claims = as_list("claims", claims, "an iterable of Claim")
    for i, claim in enumerate(claims):
        if not isinstance(claim, Claim):
            raise TypeError(f"claims[{i}]: expected a Claim, got {type(claim).__name__}")
    rows = [f"| {claim.claim} | {'true' if claim.true else 'false'} | {_numbers(claim)} |" for claim in claims]
    return "\n".join(["| claim | | measured |", "|---|---|---|", *rows])


def _numbers(claim: Claim) -> str:
    return "; ".join(f"{name}: {value:.3g}" for name, value in claim.measured.items())


# ---- how things are measured -----------------------------------------------------------------------------------------


def _rnn(W: Any, nonlinearity: str = "tanh") -> RNN:
    """Return a layer with h_t = phi(W h_{t-1} + x_t)."""
    units = len(W)
    layer = RNN(units, units, nonlinearity=nonlinearity, bias=False, dtype=np.float64)
    layer.params["weight_hh_l0"][...] = W
    layer.params["weight_ih_l0"][...] = np.eye(units)
    return layer


def _from_the_end(layer: Any, x: Array, state: Any = None) -> Any:
    """Return the tape after a backward pass from a random gradient at the last step."""
    y, tape = layer.forward(x, state)
    dy = np.zeros_like(y)
    dy[-1] = np.random.default_rng(1).standard_normal(y.shape[1:])
    layer.backward(tape, dy)
    return tape


def _end_to_end(norms: Array) -> float:
    """Return the growth from the last step or layer back to the first."""
    return float(norms[0] / norms[-1])


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
        logs.append(math.log(_end_to_end(tape.d_norm)))
    return math.exp(float(np.mean(logs)))


def _keeps(factor: float) -> bool:
    return 1 / STABLE_FACTOR < factor < STABLE_FACTOR


def _cosine(a: Array, b: Array) -> float:
    # in float64 and of unit vectors, because the squares of float32 gradients need not be representable
    a, b = (v.astype(np.float64) / np.linalg.norm(v.astype(np.float64)) for v in (a, b))
    return float(a @ b)


# ---- the claims ------------------------------------------------------------------------------------------------------


def _growth() -> Iterator[Claim]:
    layer = _rnn([[1.1]], "relu")
    tape = _from_the_end(layer, np.ones((STEPS + 1, 1, 1)))
    factor = _end_to_end(tape.telemetry.dh_norm[0])
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


def _eigenvalues() -> Iterator[Claim]:
    rng = np.random.default_rng(0)
    W = 1.5 * rng.standard_normal((UNITS, UNITS)) / math.sqrt(UNITS)
    tape = _from_the_end(_rnn(W), 3 * rng.standard_normal((STEPS, SAMPLES, UNITS)))
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
    tape = _from_the_end(_rnn(W), x, np.tanh(point).reshape(1, 1, 2))
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


def _singular_values() -> Iterator[Claim]:
    W = np.array([[0.5, 2.0], [0.0, 0.5]])
    tape = _from_the_end(_rnn(W, "relu"), np.ones((STEPS, SAMPLES, 2)))
    norms = tape.telemetry.dh_norm[0]
    yield Claim(
        "A largest singular value of W_hh above 1 means that gradients explode.",
        _end_to_end(norms) > 1,
        {
            "largest singular value": spectral_norm(W),
            "largest growth on the way": float(norms.max() / norms[-1]),
            "factor over 99 steps": _end_to_end(norms),
        },
        "It is necessary, not sufficient: the next steps may shrink a gradient that one has enlarged.",
    )
    limit, worst = 0.95, 0.0
    for layer, x in _contracting(limit):
        norms = _from_the_end(layer, x).telemetry.dh_norm[0]
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
            yield _rnn(W, nonlinearity), 0.1 * rng.standard_normal((STEPS, SAMPLES, UNITS))
    yield _rnn(limit * np.roll(np.eye(UNITS), 1, axis=0), "relu"), np.ones((STEPS, SAMPLES, UNITS))


def _gates() -> Iterator[Claim]:
    rng = np.random.default_rng(0)
    layer = LSTM(4, UNITS, dtype=np.float64, rng=rng)
    layer.params["weight_hh_l0"][...] = 4 * rng.standard_normal((4 * UNITS, UNITS)) / math.sqrt(UNITS)
    tape = _from_the_end(layer, rng.standard_normal((STEPS, SAMPLES, 4)))
    rate = measure_growth(tape)
    yield Claim(
        "Gradients of an LSTM cannot explode.",
        rate <= 0,
        {"growth per step": math.exp(rate), "factor over 99 steps": _end_to_end(tape.telemetry.dh_norm[0])},
        "The cell's own path multiplies by at most 1, but gradients also pass through the gates and W_hh.",
    )
    usual, of_chrono, wide_open = (_through_cell(bias, 0.0, STEPS)[0] for bias in (1.0, math.log(99), 40.0))
    yield Claim(
        "With the forget gate open, by a bias of 1, gradients do not vanish.",
        _keeps(usual),
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
    telemetry = _from_the_end(layer, np.zeros((steps + 1, 1, 1))).telemetry
    return _end_to_end(telemetry.dc_norm[0]), float(telemetry.dc_norm[0, -1] / telemetry.dh_norm[0, -1])


def _initializers() -> Iterator[Claim]:
    factor = _through_layers("identity", "orthogonal", 1.0, UNITS)
    yield Claim(
        "Orthogonal weights keep the norm of a gradient: linear layers, 50 of them.",
        bool(abs(factor - 1) < ROUNDING),
        {"factor": factor},
        "A product of orthogonal matrices is orthogonal.",
    )
    rng = np.random.default_rng(0)
    W = orthogonal_(np.empty((UNITS, UNITS)), rng=rng)
    tape = _from_the_end(_rnn(W), rng.standard_normal((STEPS, SAMPLES, UNITS)))
    factor = _end_to_end(tape.telemetry.dh_norm[0])
    yield Claim(
        "Orthogonal weights keep the norm of a gradient: a tanh RNN.",
        _keeps(factor),
        {"largest singular value": spectral_norm(W), "factor over 99 steps": factor},
        "Each step also multiplies by tanh', which is below 1 unless a unit is at 0.",
    )
    plain, gained = (_through_layers("tanh", "xavier_normal", gain, WIDTH) for gain in (3 / 5, 1.0))
    yield Claim(
        "Xavier initialization keeps gradients through 50 tanh layers.",
        _keeps(plain),
        {"factor": plain},
        "At this scale of the weights the loss is about the square root of the depth, not exponential.",
    )
    yield Claim(
        "Xavier initialization with the customary gain of 5/3 keeps gradients through 50 tanh layers.",
        _keeps(gained),
        {"factor": gained},
        "The gain keeps activations from shrinking, but lets the gradient grow by 1.1 a layer.",
    )
    he, xavier = (_through_layers("relu", "kaiming_normal", gain, WIDTH) for gain in (1.0, math.sqrt(0.5)))
    yield Claim(
        "He initialization keeps gradients through 50 ReLU layers.",
        _keeps(he),
        {"factor": he},
        "The variance 2/n makes up for the half of the units that are off.",
    )
    yield Claim(
        "Xavier initialization keeps gradients through 50 ReLU layers.",
        _keeps(xavier),
        {"factor": xavier, "2^-25": 2.0**-25},
        "Half of the squared norm is lost in each layer.",
    )


def _clipping() -> Iterator[Claim]:
    g = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    g[0] = 100
    cosines = {}
    for name, scale in (("cosine", 1.0), ("cosine, entries of 1e30", 1e30)):
        clipped = (scale * g).astype(np.float32)
        before = clipped.copy()
        clip_grad_norm_(clipped, max_norm=1.0)
        cosines[name] = _cosine(before, clipped)
    with np.errstate(over="ignore"):
        naive = float(np.square((1e30 * g).astype(np.float32)).sum())
    yield Claim(
        "Clipping by the norm keeps the gradient's direction.",
        bool(min(cosines.values()) > 1 - 1e-6),
        {**cosines, "sum of squares in float32": naive},
        "All entries are multiplied by one number, if the norm behind it has not overflowed.",
    )
    clipped = g.copy()
    clip_grad_value_(clipped, 0.1)
    cosine = _cosine(g, clipped)
    yield Claim(
        "Clipping by value keeps the gradient's direction.",
        bool(cosine > 1 - 1e-6),
        {"cosine": cosine},
        "Entries beyond the limit are cut, and the others are not.",
    )


_PARTS: tuple[Callable[[], Iterator[Claim]], ...] = (
    _growth,
    _eigenvalues,
    _singular_values,
    _gates,
    _initializers,
    _clipping,
)
