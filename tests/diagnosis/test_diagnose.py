"""`gradcore.diagnose` examines a model as it is."""

from __future__ import annotations

import copy
import math
import sys
from typing import Any

import numpy as np
import pytest

import gradcore
from gradcore import spectral
from gradcore.losses import mse


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def scaled(rate: float, *, hidden: int = 3, **options: Any) -> gradcore.RNN:
    """A relu layer whose states stay above 0, so that a gradient changes by exp(rate) a step."""
    layer = gradcore.RNN(1, hidden, nonlinearity="relu", bias=False, dtype=np.float64, rng=0, **options)
    for name, weight in layer.params.items():
        weight[...] = math.exp(rate) * np.eye(hidden) if "_hh" in name else 1.0 / weight.shape[1]
    return layer


def head(layer: Any, outputs: int = 1) -> gradcore.Sequential:
    width = layer.hidden_size * layer.num_directions
    linear = gradcore.Linear(width, outputs, dtype=np.float64, rng=0)
    return gradcore.Sequential(layer, gradcore.LastStep(layer.batch_first, dtype=np.float64), linear)


def ones(*shape: int) -> Any:
    return np.ones(shape)


@pytest.mark.parametrize(("rate", "kind"), [(0.1, "explodes"), (-0.1, "vanishes"), (0.0, "stable")])
@pytest.mark.parametrize("batch_first", [False, True])
def test_the_rate_of_a_known_recurrence(rate: float, kind: str, batch_first: bool) -> None:
    model = head(scaled(rate, batch_first=batch_first))
    x = ones(4, 50, 1) if batch_first else ones(50, 4, 1)
    found = gradcore.diagnose(model, [(x, np.zeros((4, 1)))], mse)
    assert found.forecast.rate == pytest.approx(rate, abs=1e-9)
    assert found.measurement.rate == pytest.approx(rate, abs=1e-9)
    assert found.verdict.kind == found.forecast.verdict == found.measurement.verdict == kind
    assert found.forecast.factor == pytest.approx(math.exp(49 * rate))
    assert found.measurement.norms.shape == found.forecast.curves.shape == (1, 50)
    factor = f"{math.exp(rate):.4f}"
    assert repr(found) == f"Diagnosis({kind}: factor a step {factor} measured, {factor} forecast)"
    assert kind in str(found.verdict)
    assert f"<b>{kind}</b>" in found._repr_html_()
    assert found.to_dict()["verdict"]["kind"] == kind


def test_the_horizon_is_what_growth_is_judged_over() -> None:
    batches = [(ones(50, 4, 1), np.zeros((4, 1)))]
    short, long = (gradcore.diagnose(head(scaled(0.005)), batches, mse, horizon=n) for n in (10, 1000))
    assert (short.verdict.kind, long.verdict.kind) == ("stable", "explodes")
    assert short.forecast.factor == pytest.approx(math.exp(0.05))
    assert long.measurement.factor == pytest.approx(math.exp(5))


def test_a_layer_by_itself_and_batches_from_a_function() -> None:
    layer = scaled(-0.2)
    target = np.zeros((30, 2, 3))
    found = gradcore.diagnose(layer, lambda: iter([(ones(30, 2, 1), target)]), mse)
    assert found.measurement.rate == pytest.approx(-0.2)
    assert found.forecast.layers[0].name == found.measurement.names[0] == "l0"


def test_the_model_is_left_as_it_is() -> None:
    model = gradcore.Sequential(
        gradcore.LSTM(2, 5, 2, dropout=0.5, rng=rng(1)), gradcore.LastStep(), gradcore.Linear(5, 1, rng=rng(2))
    )
    model.flat_grads[...] = 3
    before = copy.deepcopy(model)
    x, target = rng().standard_normal((20, 4, 2)).astype(np.float32), np.zeros((4, 1), np.float32)
    gradcore.diagnose(model, [(x, target)], mse)
    assert (model.flat_params == before.flat_params).all()
    assert (model.flat_grads == 3).all()
    assert (model.forward(x)[0] == before.forward(x)[0]).all()  # the generator of dropout has not moved


def test_the_largest_of_several_recurrent_layers_counts() -> None:
    model = gradcore.Sequential(
        scaled(-0.5), gradcore.Sequential(gradcore.Linear(3, 1, dtype=np.float64, rng=0)), scaled(0.1, hidden=2)
    )
    model.params["1.0.weight"][...] = 0.1
    model.params["1.0.bias"][...] = 1
    found = gradcore.diagnose(model, [(ones(40, 3, 1), np.zeros((40, 3, 2)))], mse)
    assert found.measurement.names == ("0.l0", "2.l0") == tuple(layer.name for layer in found.comparison.layers)
    assert found.forecast.rate == pytest.approx(0.1)
    below, above = found.comparison.layers
    assert (below.predicted, above.predicted) == (pytest.approx(-0.5), pytest.approx(0.1))
    assert below.with_above == above.with_above == pytest.approx(0.1)
    assert below.measured == pytest.approx(0.1, abs=0.02)
    assert [matrix.name for matrix in found.forecast.matrices] == ["0.weight_hh_l0", "2.weight_hh_l0"]
    assert [spectrum.name for spectrum in found.forecast.spectra] == ["0.l0", "2.l0"]


def test_each_direction_is_measured_its_own_way() -> None:
    """What fades from the end to the start, above, is no growth of the reverse direction below."""
    both = scaled(-0.1, bidirectional=True)
    model = gradcore.Sequential(both, scaled_above(6, -0.3))
    found = gradcore.diagnose(model, [(ones(40, 3, 1), np.zeros((40, 3, 2)))], mse)
    assert found.measurement.names == ("0.l0", "0.l0_reverse", "1.l0")
    forward, reverse, above = (layer.measured for layer in found.comparison.layers)
    assert above == pytest.approx(-0.3)
    assert forward == pytest.approx(-0.1, abs=0.02)
    assert reverse == pytest.approx(-0.1, abs=0.02)
    assert found.verdict.kind == "vanishes"
    assert [spectrum.name for spectrum in found.forecast.spectra] == ["1.l0"]


def scaled_above(inputs: int, rate: float) -> gradcore.RNN:
    layer = gradcore.RNN(inputs, 2, nonlinearity="relu", bias=False, dtype=np.float64, rng=0)
    layer.params["weight_hh_l0"][...] = math.exp(rate) * np.eye(2)
    layer.params["weight_ih_l0"][...] = 0.1
    return layer


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("every_step", [False, True])
def test_padding_is_left_out(batch_first: bool, every_step: bool) -> None:
    """Of sequences of different lengths, the longest ones are used."""
    layer = gradcore.GRU(2, 5, batch_first=batch_first, dtype=np.float64, rng=1)
    read = () if every_step else (gradcore.LastStep(batch_first, dtype=np.float64),)
    model = gradcore.Sequential(layer, *read, gradcore.Linear(5, 1, dtype=np.float64, rng=2))
    x, lengths = rng().standard_normal((30, 4, 2)), np.array([20, 7, 20, 0])
    target = rng(1).standard_normal((30, 4, 1) if every_step else (4, 1))
    cut = x[:20, [0, 2]], target[:20, [0, 2]] if every_step else target[[0, 2]]
    if batch_first:
        x, cut = x.swapaxes(0, 1), (cut[0].swapaxes(0, 1), cut[1].swapaxes(0, 1) if every_step else cut[1])
        target = target.swapaxes(0, 1) if every_step else target
    found = gradcore.diagnose(model, [(x, target, lengths)], mse)
    want = gradcore.diagnose(model, [cut], mse)
    assert found.forecast.horizon == 19
    assert found.forecast.rate == want.forecast.rate
    np.testing.assert_array_equal(found.measurement.norms, want.measurement.norms)


def test_the_forecast_is_that_of_the_layer_where_it_stands() -> None:
    recurrent = gradcore.LSTM(4, 6, 2, dtype=np.float64, rng=1)
    model = gradcore.Sequential(gradcore.Linear(2, 4, dtype=np.float64, rng=0), recurrent)
    x = rng().standard_normal((25, 3, 2))
    found = gradcore.diagnose(model, [(x, np.zeros((25, 3, 6)))], mse)
    want = spectral.predict_growth(recurrent, model.layers[0](x), horizon=24)
    assert found.forecast.rate == want.rate
    assert [layer.rate for layer in found.forecast.layers] == [layer.rate for layer in want.layers]


def test_without_a_gradient_the_forecast_decides() -> None:
    found = gradcore.diagnose(head(scaled(0.1)), [(ones(30, 2, 1), None)], lambda y, _: (0.0, np.zeros_like(y)))
    assert math.isnan(found.measurement.rate)
    assert found.verdict.kind == "explodes"
    assert "is zero, so that its growth cannot be measured" in found.verdict.finding


def test_a_gradient_that_is_not_finite_has_diverged() -> None:
    found = gradcore.diagnose(head(scaled(0.1)), [(ones(30, 2, 1), None)], lambda y, _: (0.0, np.full_like(y, np.nan)))
    assert found.verdict.kind == "diverged"
    assert "is not finite" in found.verdict.finding


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        (
            {"model": object()},
            TypeError,
            r"^model: expected a layer or model of gradcore, or a torch.nn.Module, got builtins\.object",
        ),
        (
            {"model": None},
            TypeError,
            r"^model: expected a layer or model of gradcore, or a torch.nn.Module, got builtins\.NoneType",
        ),
        ({"loss": 3}, TypeError, "^loss: expected a callable, got int"),
        ({"batches": 3}, TypeError, "^batches: expected an iterable or a callable, got int"),
        ({"batches": []}, ValueError, "^batches: "),
        ({"batches": [3]}, ValueError, r"^batches: expected \(x, target\)"),
        ({"horizon": 0}, ValueError, "^horizon: expected an integer of at least 1, got 0"),
        ({"horizon": 2.5}, TypeError, "^horizon: expected an integer, got float"),
        ({"batches": [(ones(1, 2, 1), np.zeros((2, 1)))]}, ValueError, "2 steps"),
        ({"batches": [(ones(9, 0, 1), np.zeros((0, 1)))]}, ValueError, "at least 1 sample"),
    ],
)
def test_what_cannot_be_diagnosed(changed: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {"model": head(scaled(0.0)), "batches": [(ones(9, 2, 1), np.zeros((2, 1)))], "loss": mse} | changed
    with pytest.raises(error, match=message):
        gradcore.diagnose(**given)


def test_a_model_without_recurrence_is_named() -> None:
    model = gradcore.MLP([2, 3, 1], rng=0)
    with pytest.raises(TypeError, match=r"^model: expected a model with an RNN, LSTM or GRU, got MLP\("):
        gradcore.diagnose(model, [(np.ones((4, 2), np.float32), np.zeros((4, 1), np.float32))], mse)


def test_it_stays_a_function_whatever_is_imported() -> None:
    import gradcore.diagnosis.pipeline

    assert callable(gradcore.diagnose)
    assert gradcore.diagnose is sys.modules["gradcore.diagnosis"].diagnose
