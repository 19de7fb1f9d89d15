"""Figures show what they were given, whatever it holds."""

from __future__ import annotations

import math
import subprocess
import sys
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from conftest import LONG

pytest.importorskip("matplotlib")

from gradcore.diagnosis import configure, figures, study
from gradcore.diagnosis.wording import number


def png(figure: Any) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, dpi=40)
    return buffer.getvalue()


def lines(figure: Any) -> dict[str, Any]:
    return {line.get_label(): np.asarray(line.get_ydata(), float) for line in figure.axes[0].get_lines()}


NASTY = {
    "ordinary": np.geomspace(1e-3, 1e3, 40),
    "one": np.array([2.0]),
    "constant": np.full(30, 0.5),
    "zero": np.zeros(20),
    "nan": np.full(20, math.nan),
    "overflow": np.concatenate([np.geomspace(1, 1e300, 30), np.full(5, math.inf), np.full(5, math.nan)]),
    "underflow": np.geomspace(1e-320, 1.0, 30),
    "negative": -np.ones(10),
}


@pytest.mark.parametrize("values", NASTY.values(), ids=NASTY.keys())
def test_every_figure_draws_anything(values: Any) -> None:
    drawn = [
        figures.plot_time_steps([values, values[::-1]], [values, values], title="t", names=["below", "above"]),
        figures.plot_training({"a": values, "b": values + 1}, title="t", threshold=1.0),
        figures.plot_trials({"a": values, "b": values + 1}, title="t", baseline=1.0),
    ]
    if LONG:
        drawn += [
            figures.plot_time_steps(values, values * 0.5, title="t"),
            figures.plot_training({"a": values}, title="t"),
            figures.plot_trials({"a": values}, title="t"),
        ]
    for figure in drawn:
        assert png(figure).startswith(b"\x89PNG")


def test_norms_over_time_steps_stand_beside_their_forecast() -> None:
    norms, forecast = np.array([[4.0, 2.0, 1.0], [8.0, 0.0, math.nan]]), np.array([[4.5, 2.1, 1.0], [9.0, 3.0, 1.0]])
    figure = figures.plot_time_steps(norms, forecast, title="grows ×2 a step")
    found = lines(figure)
    np.testing.assert_array_equal(found["measured, layer 0"], norms[0])
    np.testing.assert_array_equal(found["measured, layer 1"], [8, math.nan, math.nan])
    np.testing.assert_array_equal(found["forecast, each layer"], forecast[0])
    axes = figure.axes[0]
    assert figure.get_suptitle() == "grows ×2 a step"
    assert "time step" in axes.get_xlabel()
    assert "norm" in axes.get_ylabel()
    assert axes.get_yscale() == "log"


def test_steps_that_are_not_finite_are_marked_at_the_top() -> None:
    norms = np.array([1.0, 10.0, math.inf, math.nan])
    figure = figures.plot_training({"as configured": norms}, title="t", threshold=3.0)
    (marks,) = (line for line in figure.axes[0].get_lines() if "not finite" in str(line.get_label()))
    np.testing.assert_array_equal(marks.get_xdata(), [2, 3])
    assert (np.asarray(marks.get_ydata()) == figure.axes[0].get_ylim()[1]).all()
    np.testing.assert_array_equal(lines(figure)["threshold 3"], [3, 3])


def test_eigenvalues_and_the_unit_circle() -> None:
    values = np.array([2.0, -0.5, 1j])
    figure = figures.plot_eigenvalues({"weight_hh_l0": values}, title="t")
    axes = figure.axes[0]
    (points,) = axes.collections
    np.testing.assert_array_equal(points.get_offsets(), [[2, 0], [-0.5, 0], [0, 1]])
    assert "weight_hh_l0: radius 2" in str(points.get_label())
    circle = axes.get_lines()[0]
    np.testing.assert_allclose(np.hypot(*circle.get_data()), 1)
    assert axes.get_aspect() == 1
    assert axes.get_xlim()[1] > 2


def test_exponents_of_every_layer_and_the_zero_line() -> None:
    spectra = {"layer 0: dimension 2.5": np.array([0.5, 0.0, -2.0]), "layer 1": np.array([-1.0, -math.inf])}
    figure = figures.plot_spectrum(spectra, title="t")
    found = lines(figure)
    np.testing.assert_array_equal(found["layer 0: dimension 2.5, largest 0.5000"], [0.5, 0, -2])
    np.testing.assert_array_equal(found["layer 1, largest -1.0000"], [-1, math.nan])
    np.testing.assert_array_equal(found["small changes last"], [0, 0])
    for nothing in (np.full(3, -math.inf), np.array([-math.inf])):
        assert png(figures.plot_spectrum({"a": nothing}, title="t")).startswith(b"\x89PNG")


def test_many_matrices_fit_the_legend() -> None:
    figure = figures.plot_eigenvalues({f"matrix {i}": np.array([1.0]) for i in range(40)}, title="t")
    figure.draw_without_rendering()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert box.y0 >= 0
    assert box.y1 <= figure.bbox.y1
    assert box.x1 <= figure.bbox.x1


def test_one_divergence_does_not_flatten_the_other_trials() -> None:
    sane = np.linspace(1.0, 0.1, 50)
    figure = figures.plot_trials({"sane": sane, "gone": np.geomspace(1, 1e30, 50)}, title="t", baseline=1.0)
    axes = figure.axes[0]
    assert axes.get_ylim()[1] < 1e3
    assert [text.get_text() for text in axes.texts] == ["leaves, up to 1e30"]
    assert any("best constant answer" in str(line.get_label()) for line in axes.get_lines())


def test_trials_are_running_medians() -> None:
    values = np.ones(20)
    values[10] = 100.0
    figure = figures.plot_trials({"a": values}, title="t", window=5)
    np.testing.assert_array_equal(lines(figure)["a"], np.ones(20))
    assert figure.axes[0].get_ylabel() == "loss, median of the last 5 steps"
    np.testing.assert_array_equal(figures._running_median(np.array([3.0, 1.0, 2.0, math.inf, 1.0]), 2)[:3], [3, 2, 1.5])


def test_the_figures_of_a_diagnosis_state_the_finding() -> None:
    found = study(configure("sunspots", steps=6, hidden=8, layers=2, seq_len=20))
    drawn = figures.figures(found)
    titles = {name: figure.get_suptitle() for name, figure in drawn.items()}
    assert set(drawn) == {"time_steps", "training", "eigenvalues", "spectrum", "trials"}
    assert f"over {19} steps" in titles["time_steps"]
    assert number(found.measurement.factor) in titles["time_steps"]
    assert "of 16 eigenvalues" in titles["eigenvalues"]
    assert titles["trials"].startswith("Lowest loss on what is held out: ")
    np.testing.assert_array_equal(lines(drawn["time_steps"])["measured, 0.l1"], found.measurement.norms[1])
    first, second = found.forecast.spectra
    assert f"the largest {max(first.largest, second.largest):.4f} a step" in titles["spectrum"]
    label = f"0.l1: dimension {second.filled}, largest {second.largest:.4f}"
    np.testing.assert_array_equal(lines(drawn["spectrum"])[label], second.exponents)
    for figure in drawn.values():
        assert png(figure).startswith(b"\x89PNG")


def test_all_figures_are_of_one_family() -> None:
    """The finding at the left edge as title, one legend beside the axes, inside the figure."""
    for figure in figures.figures(study(configure("sunspots", steps=6, hidden=8, seq_len=20))).values():
        figure.draw_without_rendering()
        (legend,) = figure.legends
        (axes,) = figure.axes
        box, title = legend.get_window_extent(), figure._suptitle
        assert title is not None
        assert box.x0 >= axes.get_window_extent().x1
        assert box.x1 <= figure.bbox.x1
        assert title.get_window_extent().x0 < 0.02 * figure.bbox.x1
        assert axes.get_window_extent().width > 0.4 * figure.bbox.width
        assert axes.get_title() == ""


@pytest.mark.parametrize("low", [0.3, 1e-3])
def test_a_logarithmic_axis_is_labeled_with_plain_numbers(low: float) -> None:
    figure = figures.plot_trials({"a": np.geomspace(low, 2.0, 50)}, title="t")
    figure.draw_without_rendering()
    axis = figure.axes[0].yaxis
    texts = [label.get_text() for which in ("major", "minor") for label in axis.get_ticklabels(which=which)]
    shown = [text for text in texts if text]
    assert len(shown) >= 2
    assert all("$" not in text and float(text) > 0 for text in shown)


def test_a_missing_matplotlib_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'figures need matplotlib: pip install "gradcore\[cli\]"'):
        figures.plot_training({"a": [1.0]}, title="t")


def test_no_window_system_is_touched() -> None:
    code = (
        "import sys; from gradcore.diagnosis.figures import plot_training; plot_training({'a': [1.0, 2.0]}, title='t');"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
