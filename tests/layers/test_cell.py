"""The table of cells: it agrees with the kernels, and it is the only place that knows a cell by name."""

import copy
import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gradcore
from gradcore import _kernels, init, meanfield, spectral
from gradcore.layers.cell import BY_NAME, CELLS, Cell
from gradcore.layers.dual import Dual
from gradcore.layers.stack import Recurrent

PACKAGE = Path(gradcore.__file__).parent


def layer_of(row: Cell, *sizes: int, **options: Any) -> Any:
    if row.layer == "RNN":
        options["nonlinearity"] = row.name.removeprefix("rnn_")
    return getattr(gradcore, row.layer)(*sizes, **options)


KEPT = {"rnn_tanh": (0,), "rnn_relu": (0,), "lstm": (0, 1, 2, 3), "gru": (1, 2, 0, 3)}


@pytest.mark.parametrize("row", CELLS.values(), ids=CELLS)
def test_a_row_agrees_with_the_kernels(row: Cell) -> None:
    there = _kernels.cells()[row.name.upper()]
    assert row.kind == there["kind"] == getattr(_kernels, row.name.upper())
    assert len(row.gates) == there["gates"]
    assert row.kept == KEPT[row.name]
    assert row.states == (("h", "c") if row.layer == "LSTM" else ("h",))
    assert (row.slope is not None) == (there["gates"] == 1 and not there["bypass"])


def test_the_table_has_all_cells_of_the_kernels() -> None:
    assert {name.upper() for name in CELLS} == _kernels.cells().keys()
    assert [row.layer for row in BY_NAME.values()] == ["RNN", "LSTM", "GRU"]


@pytest.mark.parametrize("row", CELLS.values(), ids=CELLS)
def test_a_copy_of_a_row_is_the_row(row: Cell) -> None:
    assert copy.deepcopy(row) is row
    assert pickle.loads(pickle.dumps(row)) is row
    layer = layer_of(row, 2, 3)
    assert pickle.loads(pickle.dumps(layer)).cell is copy.deepcopy(layer).cell is row


@pytest.mark.parametrize("row", CELLS.values(), ids=CELLS)
def test_step_and_its_derivative_are_those_of_the_layer(row: Cell) -> None:
    H, B, G = 5, 3, len(row.gates)
    rng = np.random.default_rng(0)
    layer = layer_of(row, 4, H, dtype=np.float64, rng=rng)
    x = rng.standard_normal((1, B, 4))
    parts = tuple(rng.standard_normal((1, B, H)) for _ in row.states)
    _, tape = layer.forward(x, parts if len(parts) > 1 else parts[0])
    after = tape.state if len(parts) > 1 else (tape.state,)
    w_ih, w_hh, b_ih, b_hh = layer.params.values()
    changes = tuple(rng.standard_normal((B, H)) for _ in row.states)

    def sums(v: Any, weight: Any, bias: Any) -> Any:
        return np.moveaxis((v @ weight.T + bias).reshape(B, G, H), 1, 0)

    a, u, du = sums(x[0], w_ih, b_ih), sums(parts[0][0], w_hh, b_hh), sums(changes[0], w_hh, 0.0)
    before = [Dual(part[0], change) for part, change in zip(parts, changes, strict=True)]
    gates = row.dual.gates(a, u)
    np.testing.assert_allclose(gates, tape.trace.gates(0, slice(0, B)), atol=1e-13)
    found = row.dual.step(gates, np.zeros_like(a), du, before, None).after
    np.testing.assert_allclose([part.value for part in found], [part[0] for part in after], atol=1e-13)
    for b in range(B):
        want = spectral.jacobian(layer, tape, 0, b) @ np.concatenate([change[b] for change in changes])
        np.testing.assert_allclose(np.concatenate([part.dot[b] for part in found]), want, atol=1e-13)


def test_a_new_row_needs_no_change_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell under another name, with LSTM's kernels: all that ask about cells ask the table."""
    gates = ("a", "b", "c", "d")
    row = replace(CELLS["lstm"], name="toy", layer="Toy", gates=gates, keeping=replace(CELLS["lstm"].keeping, name="b"))
    monkeypatch.setitem(CELLS, "toy", row)
    monkeypatch.setitem(BY_NAME, "toy", row)

    class Toy(Recurrent):
        cell = row

    toy, lstm = Toy(3, 4, rng=0), gradcore.LSTM(3, 4, rng=0)
    x = np.random.default_rng(0).standard_normal((6, 2, 3)).astype(np.float32)
    tapes = []
    for layer in (toy, lstm):
        y, tape = layer.forward(x)
        layer.backward(tape, np.ones_like(y))
        init.chrono_(layer, 10, rng=0)
        tapes.append(tape)
    assert np.array_equal(toy.flat_grads, lstm.flat_grads)
    assert np.array_equal(toy.flat_params, lstm.flat_params)
    assert np.array_equal(tapes[0].telemetry.dc_norm, tapes[1].telemetry.dc_norm)
    assert np.array_equal(*(spectral.lyapunov_spectrum(layer, x) for layer in (toy, lstm)))
    assert (
        spectral.predict_growth(toy, x, horizon=4).upper_bound
        == spectral.predict_growth(lstm, x, horizon=4).upper_bound
    )
    assert meanfield.forecast(toy, x).rate == meanfield.forecast(lstm, x).rate
    assert meanfield.suggest_bias("toy", 10) == meanfield.suggest_bias(toy, 10) == meanfield.suggest_bias("lstm", 10)
    with pytest.raises(TypeError, match="RNN"):
        gradcore.VanishingGradientRegularizer(1.0)(toy, tapes[0], None)


# What has the formulas written out, and what gives each cell the name that another library has for it.
TRANSLATORS = ("reference", "onnx", "sklearn", "torch")


def test_only_the_table_knows_a_cell_by_name() -> None:
    asks = re.compile(
        r"isinstance\([^)]*\b(LSTM|GRU|RNN)\b|\bis (LSTM|GRU|RNN)\b|_has_cell|hasattr\([^)]*nonlinearity"
        r"|cell ?[=!]= ?[\"']|\bcell\.name\b"
    )
    found = [
        f"{path.relative_to(PACKAGE)}: {line.strip()}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.name != "cell.py" and path.relative_to(PACKAGE).parts[0] not in TRANSLATORS
        for line in path.read_text("utf-8").splitlines()
        if asks.search(line)
    ]
    assert not found
