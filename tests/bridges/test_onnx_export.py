"""gradcore.onnx.export: graphs that the checker accepts and that onnxruntime computes as gradcore does."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx_tools import arrays_of, chain, check_against_onnxruntime, random_state, randomized, run

import gradcore
import gradcore.onnx
from gradcore.layers.layer import Layer

pytestmark = pytest.mark.peers

KINDS = [gradcore.RNN, gradcore.LSTM, gradcore.GRU]
SHAPES = [(5, 3), (1, 1), (7, 2), (0, 2)]  # T, B
DTYPES = [np.float32, np.float64]


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("cls", KINDS)
def test_recurrent_layers(cls: Any, num_layers: int, bidirectional: bool) -> None:
    rng = np.random.default_rng(0)
    for batch_first, bias in itertools.product([False, True], repeat=2):
        options = {"nonlinearity": "relu" if bias else "tanh"} if cls is gradcore.RNN else {}
        layer = cls(
            3, 4, num_layers, bidirectional=bidirectional, batch_first=batch_first, bias=bias, rng=1, **options
        )  # fmt: skip
        proto = gradcore.onnx.export(layer)
        onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
        for T, B in SHAPES:
            x = rng.standard_normal((B, T, 3) if batch_first else (T, B, 3)).astype(np.float32)
            state = random_state(layer.initial_state(B), rng)
            for lengths in (rng.integers(0, T + 1, B), np.full(B, T)):
                check_against_onnxruntime(layer, proto, x, lengths, state)


def models(dtype: Any) -> dict[str, Layer]:
    """Models for x of (T, B, 3)."""
    g, new = gradcore, {"dtype": dtype}
    return {
        "ragged stack": chain(g.LSTM(3, 4, 2, bidirectional=True, **new), g.FinalState(), g.Linear(8, 2, **new)),
        "last step": chain(g.Linear(3, 4, **new), g.GRU(4, 5, **new), g.SiLU(), g.LastStep(), g.MLP([5, 6, 2], **new)),
        "two states": chain(g.GRU(3, 5, **new), g.PReLU(5, **new), g.LSTM(5, 4, **new), g.Dropout(), g.ELU(0.7)),
        "mean": chain(g.RNN(3, 5, **new), g.BatchNorm(5, **new), g.GELU("tanh"), g.MeanPool(), g.BatchNorm(5, **new)),
        "residual": chain(g.Linear(3, 4, **new), g.Residual(g.RMSNorm(4, **new), g.GRU(4, 4, **new), scale=0.3)),
        "nested": chain(chain(g.Linear(3, 4, **new), g.LSTM(4, 4, **new)), g.Residual(chain(g.RNN(4, 4, **new)))),
        "norms": chain(g.LayerNorm(3, **new), g.GRU(3, 4, **new), g.LayerNorm(4, bias=False, **new), g.SELU()),
        "attention": chain(g.Linear(3, 8, **new), g.MultiheadAttention(8, 2, bias=False, **new), g.MeanPool()),
        "causal": chain(g.Linear(3, 8, **new), g.MultiheadAttention(8, 4, causal=True, **new), g.LastStep()),
        "transformer": chain(g.Linear(3, 8, **new), *[g.TransformerEncoderLayer(8, 2, 16, **new) for _ in range(2)]),
        "pre-norm": chain(
            g.Linear(3, 8, **new),
            g.TransformerEncoderLayer(8, 2, 16, 0.5, norm_first=True, norm="rms", causal=True, **new),
            g.LastStep(),
            g.Linear(8, 2, **new),
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", models(np.float32))
def test_models(name: str) -> None:
    rng = np.random.default_rng(0)
    model: Any = randomized(models(np.float32)[name], rng)
    proto = gradcore.onnx.export(model)
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    for T, B in SHAPES:
        x = rng.standard_normal((T, B, 3)).astype(np.float32)
        state = random_state(model.initial_state(B), rng) if model.n_states else None
        lengths = rng.integers(0, T + 1, B)
        check_against_onnxruntime(model, proto, x, lengths, state)
        if T:  # what lies past a sequence's end has no effect
            x[lengths.max() :] = np.nan
            check_against_onnxruntime(model, proto, x, lengths, state)


@pytest.mark.parametrize("name", ["attention", "causal", "transformer", "pre-norm"])  # runtimes have no such cells
def test_models_in_float64(name: str) -> None:
    rng = np.random.default_rng(0)
    model = randomized(models(np.float64)[name], rng)
    check_against_onnxruntime(model, gradcore.onnx.export(model), rng.standard_normal((5, 3, 3)), np.array([5, 0, 2]))


@pytest.mark.parametrize("name", models(np.float64))
def test_float64_graphs_are_valid_and_can_be_rounded(name: str) -> None:
    rng = np.random.default_rng(0)
    model: Any = randomized(models(np.float64)[name], rng)
    before = model.flat_params.copy()
    wide, narrow = gradcore.onnx.export(model), gradcore.onnx.export(model, float32=True)
    assert {value.type.tensor_type.elem_type for value in wide.graph.output} == {onnx.TensorProto.DOUBLE}
    assert np.array_equal(model.flat_params, before)
    x, lengths = rng.standard_normal((5, 3, 3)), np.array([5, 0, 2])
    state = random_state(model.initial_state(3), rng) if model.n_states else None
    found = run(narrow, [x.astype(np.float32), lengths, *[a.astype(np.float32) for a in arrays_of(state)]])
    want = model(x, state=state, lengths=lengths)[0] if model.n_states else model(x, lengths=lengths)
    np.testing.assert_allclose(found[0], want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_layers_without_time(dtype: Any) -> None:
    rng, g, new = np.random.default_rng(0), gradcore, {"dtype": dtype}
    exact = [] if dtype is np.float64 else [g.GELU(**new)]  # onnxruntime has no Erf of float64
    for layer in [
        g.Identity(**new), g.Tanh(**new), g.Sigmoid(**new), g.ReLU(**new), g.LeakyReLU(0.3, **new), g.ELU(0.7, **new),
        g.SELU(**new), g.GELU("tanh", **new), g.Softplus(**new), g.Softplus(3.0, 2.0, **new), g.SiLU(**new), *exact,
        g.PReLU(4, **new), g.PReLU(**new), g.LayerNorm(4, **new), g.LayerNorm((3, 4), bias=False, **new),
        g.RMSNorm(4, eps=1e-3, **new), g.BatchNorm(4, affine=False, **new), g.Residual(g.Tanh(), scale=0.5, **new),
        g.Linear(4, 3, bias=False, **new), g.MLP([4, 5, 2], "elu", **new), chain(),
    ]:  # fmt: skip
        shape = (5, 3, 4) if isinstance(layer, g.LayerNorm) and len(layer.normalized_shape) > 1 else (5, 4)
        x = (30 * rng.standard_normal(shape)).astype(layer.dtype)
        check_against_onnxruntime(layer, gradcore.onnx.export(randomized(layer, rng)), x)


def test_integers() -> None:
    rng = np.random.default_rng(0)
    text = chain(gradcore.Embedding(10, 3, rng=0), gradcore.LSTM(3, 4, rng=0), gradcore.LastStep())
    state = random_state(text.initial_state(3), rng)
    x = rng.integers(0, 10, (6, 3))
    check_against_onnxruntime(text, gradcore.onnx.export(text), x, np.array([6, 0, 2]), state)
    words = chain(gradcore.Embedding(10, 3, rng=0), gradcore.Linear(3, 2, rng=0))
    check_against_onnxruntime(words, gradcore.onnx.export(words), rng.integers(0, 10, 6))


def test_inputs_and_outputs() -> None:
    """x, lengths, initial states; y, final states; with time and batch free."""

    def of(values: Any) -> dict[str, list[Any]]:
        return {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}

    graph = gradcore.onnx.export(gradcore.LSTM(3, 4, 2, bidirectional=True, batch_first=True)).graph
    states = {"h_0": [4, "B", 4], "c_0": [4, "B", 4]}
    assert of(graph.input) == {"x": ["B", "T", 3], "lengths": ["B"]} | states
    assert of(graph.output) == {"y": ["B", "T", 8], "h_n": [4, "B", 4], "c_n": [4, "B", 4]}
    model = chain(gradcore.GRU(3, 4), gradcore.Residual(gradcore.LSTM(4, 4)), gradcore.LastStep())
    graph = gradcore.onnx.export(model).graph
    assert list(of(graph.input)) == ["x", "lengths", "0.h_0", "1.0.h_0", "1.0.c_0"]
    assert of(graph.output)["y"] == ["B", 4]
    assert list(of(graph.output)) == ["y", "0.h_n", "1.0.h_n", "1.0.c_n"]
    graph = gradcore.onnx.export(gradcore.MLP([3, 4, 2])).graph
    assert (of(graph.input), of(graph.output)) == ({"x": ["B", 3]}, {"y": ["B", 2]})
    assert of(gradcore.onnx.export(gradcore.ReLU()).graph.input) == {"x": ["B", "F"]}


def test_gates_and_biases_are_in_the_order_of_onnx() -> None:
    """ONNX has i, o, f, c and z, r, h, and both biases in one row."""
    for cls, order in ((gradcore.LSTM, [0, 3, 1, 2]), (gradcore.GRU, [1, 0, 2])):
        layer = cls(3, 1, rng=0)
        proto = gradcore.onnx.export(layer)
        weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
        assert np.array_equal(weights["W_l0"][0], layer.params["weight_ih_l0"][order])
        assert np.array_equal(weights["R_l0"][0], layer.params["weight_hh_l0"][order])
        biases = [layer.params[name][order] for name in ("bias_ih_l0", "bias_hh_l0")]
        assert np.array_equal(weights["B_l0"][0], np.concatenate(biases))
    (node,) = [node for node in proto.graph.node if node.op_type == "GRU"]
    assert [a.i for a in node.attribute if a.name == "linear_before_reset"] == [1]


class Own(gradcore.Layer):
    def forward(self, x: Any) -> Any:
        return x, None


class Louder(gradcore.Linear):
    def forward(self, x: Any) -> Any:
        y, tape = super().forward(x)
        return 2 * y, tape


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (chain(gradcore.Linear(3, 4), gradcore.LSTM(4, 5, layer_norm=True)), r"model\.layers\[1\]: .*layer_norm"),
        (gradcore.GRU(3, 4, zoneout=0.1), "model: .*zoneout"),
        (chain(gradcore.Residual(Own())), r"model\.layers\[0\]\.layers\[0\]: .*Own"),
        (Louder(3, 4), "model: .*Louder"),
        (chain(gradcore.BatchNorm(3, track_running_stats=False)), r"layers\[0\]: .*statistics"),
        (chain(gradcore.Linear(3, 4), gradcore.Linear(5, 2)), r"Linear\(5, 2\) expects shape \(\.\.\., 5\)"),
        (chain(gradcore.LSTM(3, 4), gradcore.LastStep(), gradcore.MeanPool()), "MeanPool.* expects sequences"),
    ],
)
def test_what_cannot_be_written_is_named(model: Layer, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        gradcore.onnx.export(model, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_wrong_arguments() -> None:
    with pytest.raises(TypeError, match="model: expected a layer, got int"):
        gradcore.onnx.export(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="path: expected a path, got int"):
        gradcore.onnx.export(gradcore.ReLU(), 3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="float32: expected True or False"):
        gradcore.onnx.export(gradcore.ReLU(), float32="no")  # type: ignore[arg-type]


def test_more_than_a_file_can_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradcore.onnx.write.MOST", 1000)
    with pytest.raises(ValueError, match=r"model: cannot be written as ONNX: Linear\(100, 100\), .* 2 GB"):
        gradcore.onnx.export(gradcore.Linear(100, 100))


def test_files_are_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "modèle 1.onnx"
    proto = gradcore.onnx.export(gradcore.LSTM(3, 4, rng=0), path)
    assert path.read_bytes() == proto.SerializeToString()

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        gradcore.onnx.export(gradcore.GRU(3, 4, rng=0), path)
    assert path.read_bytes() == proto.SerializeToString()
    assert list(tmp_path.iterdir()) == [path]


def test_any_runtime_of_the_last_years_reads_the_files() -> None:
    proto = gradcore.onnx.export(models(np.float32)["pre-norm"])
    assert proto.ir_version == 7
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", 14)]
    assert {node.domain for node in proto.graph.node} == {""}
