"""The numbers of bench/surfaces.py: the cliff of a network with one unit, and the derivatives of a linear one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tools import central_difference, load_bench

surfaces = load_bench("surfaces")


def test_surface_and_gradient_against_plain_numpy() -> None:
    """1e-12 of the largest value beside: on the wall rounding errors are magnified as gradients are."""
    w, b = np.linspace(-2, 5, 36), np.linspace(-6, 2, 81)
    for got, want in zip(surfaces.cliff(w, b), surfaces.cliff_in_numpy(w, b), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


def test_the_twin_against_finite_differences() -> None:
    w, b = np.array([3.0]), np.array([-1.2])
    _, dw, db = surfaces.cliff_in_numpy(w, b)
    for at, want in ((w, dw), (b, db)):
        assert central_difference(lambda: float(surfaces.cliff_in_numpy(w, b)[0].item()), at) == pytest.approx(
            want[0], rel=1e-7
        )


def test_on_top_of_the_wall_the_gradient_has_a_closed_form() -> None:
    """There x_t = x_0 for ever, and each step multiplies by mu = w sigmoid'(x_0) = 1.175: dx_t/db = sum of mu^k."""
    s, t = surfaces.sigmoid(surfaces.START), surfaces.STEPS
    mu = 5.0 * s * (1 - s)
    assert mu == pytest.approx(1.175, abs=1e-4)
    db = 2 * (s - surfaces.TARGET) * s * (1 - s) * (mu**t - 1) / (mu - 1)
    got = [float(part.item()) for part in surfaces.cliff(np.array([5.0]), np.array([surfaces.wall(5.0)]))]
    assert got == pytest.approx([(s - surfaces.TARGET) ** 2, s * db, db], rel=1e-9)


def test_the_gradient_on_the_wall_is_orders_of_magnitude_above_that_beside_it() -> None:
    at = surfaces.wall(5.0)
    b = at + np.array([-0.1, -1e-3, 0.0, 1e-3, 0.1])
    E, dw, db = (part[0] for part in surfaces.cliff(np.array([5.0]), b))
    norm = np.hypot(dw, db)
    assert norm[2] > 500
    assert norm[2] > 1000 * max(norm[0], norm[1], norm[4])
    assert norm[2] > 500 * norm[3]
    assert 0.3 < E[1] < E[0] < 0.4  # the unit falls below, and answers 0.1 in place of 0.7
    assert E[2:4].max() < 0.02
    fine = np.linspace(at - 1e-3, at + 1e-3, 2001)
    E, dw, db = (part[0] for part in surfaces.cliff(np.array([5.0]), fine))
    assert np.hypot(dw, db).max() > 5000  # half way down
    step = int(np.abs(np.diff(E)).argmax())
    assert abs(fine[step] - at) < 1e-4
    assert E[step - 100] - E[step + 100] > 0.3  # within 2e-4 of b


def test_the_wall_grows_steeper_with_w_and_is_not_there_below_four() -> None:
    """w sigmoid' is below 1 for every state when w < 4, so that all gradients stay small."""
    largest = []
    for w in (3.0, 4.0, 4.5, 5.0):
        b = np.concatenate([np.linspace(-6, 2, 4001), surfaces.wall(w) + np.linspace(-0.01, 0.01, 2001)])
        _, dw, db = surfaces.cliff(np.array([w]), b)
        largest.append(np.hypot(dw, db).max())
    assert largest[0] < 1
    assert largest[1] < 10
    assert largest[2] > 10 * largest[1]
    assert largest[3] > 10 * largest[2]
    assert largest[3] > 5000


@pytest.mark.parametrize("w", [0.5, 0.9, 1.0, 1.1, 1.5])
@pytest.mark.parametrize("steps", [1, 2, 5, 20, 50, 100])
def test_derivatives_of_a_linear_unit(w: float, steps: int) -> None:
    want = surfaces.linear_formula(w, steps, 0.5)
    assert surfaces.linear(w, steps, 0.5) == pytest.approx(want, rel=1e-12, abs=0)
    assert surfaces.linear_gradient(w, steps, 0.5) == pytest.approx(want[1], rel=1e-12, abs=0)


def test_the_formula_itself() -> None:
    assert surfaces.linear_formula(2.0, 3, 0.5) == (4.0, 6.0, 6.0)  # x_0 w^3: 8/2, 3 x_0 w^2, 6 x_0 w
    assert surfaces.linear_formula(2.0, 1, 0.5) == (1.0, 0.5, 0.0)


def test_the_command_writes_both_figures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    folder = tmp_path / "new" / "figures"
    command = [sys.executable, surfaces.__file__, "--out", str(folder), "--points", "12"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "the wall is at b = -2.612297" in run.stdout
    assert {path.name for path in folder.iterdir()} == {"cliff.png", "linear.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in folder.iterdir())
    run = subprocess.run([*command[:-1], "1"], capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert "--points: expected at least 2, got 1" in run.stderr
