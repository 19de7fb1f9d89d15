"""What is said of gradients: each verdict against what is known, each number against a formula where there is one."""

from __future__ import annotations

import math
import re
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from tools import load_bench

from gradcore.diagnosis.claims import Claim, as_markdown, folk_claims

PAGE = Path(__file__).parents[2] / "docs" / "claims.md"
NUMBER = re.compile(r"(?<=: )-?(?:\d[\d.]*(?:e[+-]\d+)?|inf)(?=[;)]| \|)")

# How the claim begins, far enough to tell it from the others, and whether it is true.
KNOWN = {
    "Growing by 1.1 a step": True,
    "Growing by 1.5 a layer": False,
    "A spectral radius of W_hh above 1": False,
    "A spectral radius of W_hh below 1": False,
    "A largest singular value of W_hh above 1": False,
    "A largest singular value of W_hh below 1": True,
    "Gradients of an LSTM cannot explode": False,
    "Gradients of a GRU cannot explode": False,
    "With the forget gate open": False,
    "Orthogonal weights keep the norm of a gradient: linear": True,
    "Orthogonal weights keep the norm of a gradient: a tanh RNN": False,
    "Xavier initialization keeps gradients through 50 tanh": True,
    "Xavier initialization with the customary gain of 5/3": False,
    "He initialization": True,
    "Xavier initialization keeps gradients through 50 ReLU": False,
    "Residual connections": False,
    "Batch normalization": False,
    "Layer normalization": True,
    "Query and key weights": False,
    "Clipping by the norm": True,
    "Clipping by value": False,
    "Loss scaling": True,
    "A spike of the gradient": False,
}


@pytest.fixture(scope="module")
def all_claims() -> tuple[Claim, ...]:
    """Measured once, in seconds."""
    return folk_claims()


@pytest.fixture(scope="module")
def claims(all_claims: tuple[Claim, ...]) -> dict[str, Claim]:
    """By their beginnings in KNOWN."""
    assert len(all_claims) == len(KNOWN)
    return dict(zip(KNOWN, all_claims, strict=True))


@pytest.mark.parametrize("beginning", KNOWN)
def test_verdicts(claims: dict[str, Claim], beginning: str) -> None:
    claim = claims[beginning]
    assert claim.claim.startswith(beginning)
    assert claim.true is KNOWN[beginning]
    assert claim.why.endswith(".")
    assert claim.measured
    assert not any(math.isnan(value) for value in claim.measured.values())


def test_powers(claims: dict[str, Claim]) -> None:
    assert claims["Growing by 1.1 a step"].measured == pytest.approx({"factor": 1.1**100}, rel=1e-12)
    assert claims["Growing by 1.5 a layer"].measured == pytest.approx({"factor": 1.5**50}, rel=1e-12)


def test_radius_decides_neither_way(claims: dict[str, Claim]) -> None:
    above = claims["A spectral radius of W_hh above 1"].measured
    assert above["radius"] > 1.2
    assert above["growth per step under strong input"] < 0.8
    below = claims["A spectral radius of W_hh below 1"].measured
    assert below["radius"] < 1e-5
    assert below["largest singular value"] == pytest.approx(16)
    assert below["growth per step"] == pytest.approx(2, rel=0.02)  # J^2 = 2 J


def test_singular_value_is_necessary_and_its_bound_is_reached(claims: dict[str, Claim]) -> None:
    above = claims["A largest singular value of W_hh above 1"].measured
    assert above["largest singular value"] == pytest.approx(1 + math.sqrt(1.25))  # of [[1/2, 2], [0, 1/2]]
    assert 1 < above["largest growth on the way"] <= above["largest singular value"] ** 2
    # W^99 has the diagonal 2^-99 and beside it 99 * 2 * 2^-98 = 396 * 2^-99
    assert 2.0**-99 < above["factor over 99 steps"] < 400 * 2.0**-99
    below = claims["A largest singular value of W_hh below 1"].measured
    assert below["largest growth in any step"] == pytest.approx(below["largest singular value"], rel=1e-9)


def test_gates(claims: dict[str, Claim]) -> None:
    lstm = claims["Gradients of an LSTM cannot explode"].measured
    assert lstm["growth per step"] > 1.05
    assert lstm["factor over 99 steps"] > 1e3
    cell = claims["With the forget gate open"].measured
    assert cell["bias 1, factor over 100 steps"] == pytest.approx((1 / (1 + math.exp(-1))) ** 100, rel=1e-9)
    assert cell["bias ln 99"] == pytest.approx(0.99**100, rel=1e-9)
    assert cell["bias 40"] == pytest.approx(1, rel=1e-9)
    assert cell["bias 40 and c at 10, dL/dc over dL/dh"] == pytest.approx(1 / math.cosh(10) ** 2, rel=1e-6)


def test_initializers_against_mean_field(claims: dict[str, Claim]) -> None:
    """tanh at the critical point loses 1 - 1/l of the squared norm in layer l; ReLU with Xavier one half."""
    assert claims["Orthogonal weights keep the norm of a gradient: linear"].measured["factor"] == pytest.approx(1)
    assert claims["Orthogonal weights keep the norm of a gradient: a tanh RNN"].measured["factor over 99 steps"] < 1e-10
    plain = claims["Xavier initialization keeps gradients through 50 tanh"].measured["factor"]
    assert plain == pytest.approx(1 / math.sqrt(50), rel=0.25)
    gained = claims["Xavier initialization with the customary gain of 5/3"].measured["factor"]
    assert gained ** (1 / 50) == pytest.approx(1.1, abs=0.01)
    he = claims["He initialization"].measured["factor"]
    xavier = claims["Xavier initialization keeps gradients through 50 ReLU"].measured["factor"]
    assert xavier / he == pytest.approx(2.0**-25, rel=1e-9)  # the same draws, and ReLU knows no scale


def test_clipping(claims: dict[str, Claim]) -> None:
    by_norm = claims["Clipping by the norm"].measured
    assert by_norm["cosine"] == pytest.approx(1, abs=1e-7)
    assert by_norm["cosine, entries of 1e30"] == pytest.approx(1, abs=1e-7)
    assert by_norm["sum of squares in float32"] == math.inf
    assert claims["Clipping by value"].measured["cosine"] < 0.5


def test_the_page_says_what_is_measured(all_claims: tuple[Claim, ...]) -> None:
    """The same words, and the same numbers but for what another processor rounds otherwise."""
    want, page = load_bench("claims").page(all_claims), PAGE.read_text(encoding="utf-8")
    assert NUMBER.sub("#", page) == NUMBER.sub("#", want)
    numbers = [[float(number) for number in NUMBER.findall(text)] for text in (page, want)]
    assert len(numbers[0]) > 20
    assert numbers[0] == pytest.approx(numbers[1], rel=0.01)


def test_as_markdown_has_a_row_for_each_claim() -> None:
    claims = (
        Claim("One.", True, {"a": 1.0, "b": math.inf}, "It is."),
        Claim("Two.", False, {"c": 1e-20}, "It is not."),
    )
    rows = as_markdown(claims).splitlines()[2:]
    assert rows == ["| One. | true | a: 1; b: inf |", "| Two. | false | c: 1e-20 |"]


def test_a_claim_cannot_be_changed(all_claims: tuple[Claim, ...]) -> None:
    with pytest.raises(FrozenInstanceError):
        all_claims[0].true = False  # type: ignore[misc]


def test_residual_branches_double_the_squared_norm(claims: dict[str, Claim]) -> None:
    factors = claims["Residual connections"].measured
    assert factors["without"] < 1e-6
    assert 100 < math.log10(factors["with"]) < 200  # 2^500 is 3e150, less what is random
    assert 1 < factors["y = x + F(x) / sqrt(1000)"] < 3  # sqrt(e)


def test_batch_norm_grows_as_the_theory_says(claims: dict[str, Claim]) -> None:
    factors = claims["Batch normalization"].measured
    assert factors["factor"] == pytest.approx(factors["(pi / (pi - 1))^25"], rel=0.5)


def test_layer_norm_divides_by_the_scale_of_the_weights(claims: dict[str, Claim]) -> None:
    half, double = claims["Layer normalization"].measured.values()
    assert half == pytest.approx(double, rel=1e-2)


def test_a_spike_enters_its_own_divisor(claims: dict[str, Claim]) -> None:
    measured = claims["A spike of the gradient"].measured
    assert measured["the step of the spike, in usual steps"] < (1 - 0.9) / math.sqrt(1 - 0.999)  # and an infinite one
    assert measured["a step 100 later"] < 0.1
