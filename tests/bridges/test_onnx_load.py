"""gradcore.onnx.load and layers: files of export and of PyTorch, the node tests of ONNX, and damaged files."""

from __future__ import annotations

import importlib
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper
from onnx_tools import arrays_of, chain, check_same_models, randomized, run, without_plan
from test_onnx_export import models
from tools import HANG

import gradcore
import gradcore.onnx
from gradcore.layers.layer import Layer

pytestmark = pytest.mark.peers

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def written(model: Layer) -> Any:
    return gradcore.onnx.export(randomized(model, np.random.default_rng(0)))


# ---- files of our own ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_round_trip_has_the_same_bits(dtype: Any, tmp_path: Path) -> None:
    more = {
        "lstm": gradcore.LSTM(3, 4, 2, bias=False, batch_first=True, bidirectional=True, dropout=0.3, dtype=dtype),
        "rnn": gradcore.RNN(3, 4, 2, nonlinearity="relu", recurrent_dropout=0.5, dtype=dtype),
        "integers": chain(gradcore.Embedding(9, 3, padding_idx=2, dtype=dtype), gradcore.GRU(3, 4, dtype=dtype)),
        "plain": chain(gradcore.MLP([3, 4, 5], dtype=dtype), gradcore.Softplus(2.0), gradcore.PReLU(dtype=dtype)),
        "one": gradcore.Tanh(dtype=dtype),
    }
    for model in (models(dtype) | more).values():
        path = tmp_path / "model.onnx"
        gradcore.onnx.export(randomized(model, np.random.default_rng(0)), path)
        check_same_models(model, gradcore.onnx.load(path))


def test_the_graph_is_what_counts() -> None:
    """Weights changed in the file are those of the model, and a graph that was changed is read node by node."""
    model = gradcore.LSTM(3, 4, 2, rng=0)
    proto = gradcore.onnx.export(model)
    (tensor,) = [tensor for tensor in proto.graph.initializer if tensor.name == "W_l1"]
    tensor.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(tensor), "W_l1"))
    other = gradcore.onnx.load(proto)
    assert np.array_equal(other.params["weight_ih_l1"], 2 * model.params["weight_ih_l1"])
    proto = gradcore.onnx.export(chain(gradcore.Linear(3, 3, rng=0), gradcore.Tanh()))
    (node,) = [node for node in proto.graph.node if node.op_type == "Tanh"]
    node.op_type = "Sigmoid"
    assert repr(gradcore.onnx.load(proto)) == "Sequential(Linear(3, 3), Sigmoid())"


@pytest.mark.parametrize(
    "model",
    [
        gradcore.LSTM(3, 4, rng=0),
        gradcore.GRU(3, 4, 3, bidirectional=True, batch_first=True, rng=0),
        gradcore.RNN(3, 4, 2, nonlinearity="relu", bias=False, rng=0),
        chain(gradcore.GRU(3, 4), gradcore.GRU(4, 4)),  # two states: not one layer of two levels
        chain(gradcore.Linear(3, 4), gradcore.LSTM(4, 5, 2, bidirectional=True), gradcore.GELU()),
        chain(gradcore.RNN(3, 5), gradcore.Residual(gradcore.GRU(5, 5), gradcore.ELU(0.7), scale=0.3)),
        chain(gradcore.GRU(3, 5), gradcore.PReLU(5), gradcore.SELU(), gradcore.LSTM(5, 4), gradcore.SiLU()),
        chain(gradcore.Linear(3, 4), gradcore.RMSNorm(4, eps=1e-3), gradcore.Residual(gradcore.LeakyReLU(0.3))),
        chain(gradcore.Embedding(9, 3), gradcore.LSTM(3, 4, dtype=np.float32), gradcore.Softplus()),
        gradcore.LSTM(3, 4, 2, dtype=np.float64),
    ],
    ids=repr,
)  # fmt: skip
def test_graphs_without_a_description(model: Layer) -> None:
    check_same_models(model, gradcore.onnx.load(without_plan(written(model))))


def test_a_damaged_description_is_not_believed() -> None:
    proto = gradcore.onnx.export(gradcore.LSTM(3, 4, rng=0))
    (entry,) = proto.metadata_props
    entry.value = entry.value.replace('"hidden_size": 4', '"hidden_size": 400000000')
    assert repr(gradcore.onnx.load(proto)) == "LSTM(3, 4)"


# ---- files of PyTorch ------------------------------------------------------------------------------------------------


def exported(module: Any, inputs: tuple[Any, ...], path: Path, dynamo: bool) -> None:
    """Write a file; time and batch are as free as the exporter can have them."""
    torch = pytest.importorskip("torch")
    if dynamo:
        pytest.importorskip("onnxscript")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            torch.onnx.export(module.eval(), inputs, path, dynamo=True, external_data=False, verbose=False)
        else:
            names = ["x", "h", "c"][: len(inputs)]
            axes = {"x": {0: "first", 1: "second"}} | {name: [1] for name in names[1:]}
            torch.onnx.export(module.eval(), inputs, path, dynamo=False, input_names=names, dynamic_axes=axes)


def torch_modules() -> dict[str, tuple[Any, Any, str]]:
    """Modules of PyTorch, their inputs, and the models that they are."""
    torch = pytest.importorskip("torch")
    nn = torch.nn
    torch.manual_seed(0)

    class Module(nn.Module):
        def __init__(self, function: Callable[..., Any], **parts: Any) -> None:
            super().__init__()
            self.function = function
            for name, part in parts.items():
                setattr(self, name, part)

        def forward(self, *inputs: Any) -> Any:
            return self.function(self, *inputs)

    def half_added(inner: Any, y: Any) -> Any:
        return y + 0.5 * inner(y)

    x = torch.randn(5, 2, 3)
    state = torch.randn(4, 2, 4), torch.randn(4, 2, 4)
    return {
        "all outputs": (
            Module(lambda m, x, h, c: m.rnn(x, (h, c)), rnn=nn.LSTM(3, 4, 2, bidirectional=True)),
            (x, *state),
            "LSTM(3, 4, num_layers=2, bidirectional=True)",
        ),
        "last step": (
            Module(lambda m, x: m.out(m.rnn(x)[0][:, -1]), rnn=nn.LSTM(3, 4, 2, batch_first=True), out=nn.Linear(4, 2)),
            (x,),
            "Sequential(LSTM(3, 4, num_layers=2, batch_first=True), LastStep(batch_first=True), Linear(4, 2))",
        ),
        "final state": (
            Module(
                lambda m, x: m.out(torch.cat([*m.rnn(x)[1][-2:]], 1)),
                rnn=nn.GRU(3, 4, 2, bidirectional=True, bias=False), out=nn.Sequential(nn.Linear(8, 2), nn.SiLU()),
            ),
            (x,),
            "Sequential(GRU(3, 4, num_layers=2, bias=False, bidirectional=True), FinalState(), Linear(8, 2), SiLU())",
        ),
        "text": (
            Module(
                lambda m, x: m.out(m.norm(m.rnn(m.table(x))[0]).mean(1)),
                table=nn.Embedding(10, 3), rnn=nn.GRU(3, 4, batch_first=True), norm=nn.LayerNorm(4),
                out=nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Dropout(), nn.Linear(4, 2, bias=False), nn.Sigmoid()),
            ),
            (torch.randint(0, 10, (2, 5)),),
            "Sequential(Embedding(10, 3), GRU(3, 4, batch_first=True), LayerNorm((4,)), MeanPool(batch_first=True), "
            "Linear(4, 4), GELU(), Linear(4, 2, bias=False), Sigmoid())",
        ),
        "residual": (
            Module(
                lambda m, x: half_added(m.inner, m.norm(m.rnn(x)[0].transpose(1, 2)).transpose(1, 2)),
                rnn=nn.GRU(3, 4, batch_first=True), norm=nn.BatchNorm1d(4),
                inner=nn.Sequential(nn.Linear(4, 4), nn.PReLU(), nn.Linear(4, 4), nn.Softplus()),
            ),
            (x,),
            "Sequential(GRU(3, 4, batch_first=True), BatchNorm(4), Residual(Linear(4, 4), PReLU(), Linear(4, 4), "
            "Softplus(...), scale=0.5))",
        ),
    }  # fmt: skip


FILES = [(name, False) for name in ("all outputs", "last step", "final state", "text", "residual")]
FILES += [(name, True) for name in ("all outputs", "last step", "final state", "text", "residual")]


@pytest.mark.parametrize(("name", "dynamo"), FILES)
def test_files_of_pytorch(name: str, dynamo: bool, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    module, inputs, want = torch_modules()[name]
    path = tmp_path / "model.onnx"
    exported(module, inputs, path, dynamo)
    model: Any = gradcore.onnx.load(path)
    assert repr(model).replace("threshold=inf", "...").replace("Softplus()", "Softplus(...)") == want
    x, *state = [array.numpy() for array in inputs]
    with torch.no_grad():
        y = module(*inputs)
    if state:
        (found, final), (y, theirs) = model(x, tuple(state)), y
        for ours, other in zip(final, theirs, strict=True):
            np.testing.assert_allclose(ours, other.numpy(), rtol=1e-5, atol=1e-6)
    else:
        found = model(x)
    np.testing.assert_allclose(found, y.numpy(), rtol=1e-5, atol=1e-6)


def test_a_recurrence_that_the_exporter_unrolled_is_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "model.onnx"
    exported(torch.nn.RNN(3, 4), (torch.randn(5, 2, 3),), path, dynamo=True)
    with pytest.raises(ValueError, match=r"model\.onnx: \S+ \(\w+\): "):
        gradcore.onnx.load(path)


# ---- graphs written by hand ------------------------------------------------------------------------------------------


def info(name: str, shape: Any, kind: int = FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def proto_of(nodes: Any, weights: dict[str, np.ndarray], inputs: Any, outputs: Any) -> Any:
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=8)


WEIGHTS = ("x", "W", "R", "B")


def cell(op: str = "LSTM", D: int = 1, name: str = "the cell", inputs: Any = WEIGHTS, **attributes: Any) -> Any:
    """A model of one recurrent node with 3 inputs and 4 units."""
    G = {"RNN": 1, "LSTM": 4, "GRU": 3}[op]
    rng = np.random.default_rng(0)
    shapes = {"W": (D, 4 * G, 3), "R": (D, 4 * G, 4), "B": (D, 8 * G), "P": (D, 12), "h": (D, 2, 4)}
    weights = {n: rng.standard_normal(shapes[n]).astype(np.float32) for n in inputs if n in shapes}
    node = helper.make_node(op, inputs, ["Y", "Y_h"], name=name, hidden_size=4, **attributes)
    return proto_of([node], weights, [info("x", ["T", "B", 3])], [info("Y", ["T", D, "B", 4])])


@pytest.mark.parametrize(
    ("op", "changes", "message"),
    [
        ("LSTM", {"clip": 1.0}, "clip"),
        ("LSTM", {"inputs": ["x", "W", "R", "B", "", "", "", "P"]}, "peepholes"),
        ("LSTM", {"input_forget": 1}, "input_forget"),
        ("LSTM", {"activations": ["Sigmoid", "Tanh", "Relu"]}, "activations sigmoid, tanh, relu"),
        ("RNN", {"activations": ["Affine"]}, "activations affine"),
        ("RNN", {"activations": ["Tanh", "Relu"], "D": 2, "direction": "bidirectional"}, "activations tanh, relu"),
        ("GRU", {}, "linear_before_reset=0"),
        ("GRU", {"linear_before_reset": 1, "activations": ["HardSigmoid", "Tanh"]}, "activations hardsigmoid, tanh"),
    ],
)
@pytest.mark.parametrize("read", [gradcore.onnx.load, gradcore.onnx.layers])
def test_cells_that_gradcore_has_not(read: Any, op: str, changes: dict[str, Any], message: str) -> None:
    """Refused with the name of the node, whatever characters it has."""
    with pytest.raises(ValueError, match=rf"^model: /α b\n\{{0\}} \({op}\): {message}"):
        read(cell(op, name="/α b\n{0}", **changes))


def test_weights_that_are_no_constants() -> None:
    proto = cell()
    del proto.graph.initializer[0]
    proto.graph.input.append(info("W", [1, 16, 3]))
    for read in (gradcore.onnx.load, gradcore.onnx.layers):
        with pytest.raises(ValueError, match=r"the cell \(LSTM\): W is not a constant"):
            read(proto)


def test_wrong_shapes_of_weights() -> None:
    proto = cell()
    proto.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.zeros((1, 16, 5), np.float32), "R"))
    with pytest.raises(ValueError, match=r"the cell \(LSTM\): hidden_size=4 does not fit R"):
        gradcore.onnx.layers(proto)


def node_cases() -> list[Any]:
    """The tests of RNN, LSTM and GRU nodes that onnx ships."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in ("rnn", "lstm", "gru"):  # whose import makes them; to collect all operators takes long
            importlib.import_module(f"onnx.backend.test.case.node.{module}")
    cases = sys.modules["onnx.backend.test.case.node"]._NodeTestCases
    return [case for case in cases if case.model.graph.node[0].op_type in ("RNN", "LSTM", "GRU")]


def test_node_tests_of_onnx() -> None:
    """With their weights as constants. What gradcore has not is refused, the rest gives the outputs of the test."""
    read, refused = set(), {}
    for case in node_cases():
        (node,) = case.model.graph.node
        node.name = "N"
        ((inputs, outputs),) = case.data_sets
        given = dict(zip([name for name in node.input if name], inputs, strict=True))
        for name in set(given) & {"W", "R", "B", "P"}:
            case.model.graph.initializer.append(numpy_helper.from_array(given[name], name))
        try:
            (layer,) = gradcore.onnx.layers(case.model).values()
        except ValueError as error:
            refused[case.name] = str(error)
            continue
        D, H = layer.num_directions, layer.hidden_size
        roles = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c")
        named = dict(zip(roles, node.input, strict=False))
        state = [given[named[role]] for role in roles[5:] if named.get(role)]
        if layer.batch_first:
            state = [part.swapaxes(0, 1) for part in state]
        start = (tuple(state) if len(layer.cell.states) > 1 else state[0]) if state else None
        y, final = layer(given["X"], start, given.get(named.get("sequence_lens", "")))
        reverse = any(a.name == "direction" and a.s == b"reverse" for a in node.attribute)
        Y = y.reshape(*y.shape[:2], D, H)[..., reverse:, :]
        Y = Y if layer.batch_first else Y.swapaxes(1, 2)
        finals = [part[int(reverse) :] for part in arrays_of(final)]
        finals = [part.swapaxes(0, 1) if layer.batch_first else part for part in finals]
        wanted = dict(zip([name for name in node.output if name], outputs, strict=True))
        for name, ours in zip(node.output, [Y, *finals], strict=False):
            if name:
                np.testing.assert_allclose(ours, wanted[name], rtol=1e-5, atol=1e-6)
        read.add(case.name)
    assert {name for name in read if "rnn" in name} >= {
        "test_simple_rnn_batchwise",
        "test_simple_rnn_with_initial_bias",
    }
    assert {"test_lstm_defaults", "test_lstm_with_initial_bias", "test_lstm_batchwise"} <= read
    assert len(read) >= 7
    assert refused.pop("test_lstm_with_peepholes") == "model: N (LSTM): peepholes cannot be represented"
    assert all("gru" in name and "N (GRU): linear_before_reset=0" in error for name, error in refused.items())


@pytest.mark.parametrize("op", ["RNN", "LSTM", "GRU"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_layers_against_onnxruntime(op: str, direction: str) -> None:
    D = 2 if direction == "bidirectional" else 1
    options = {"linear_before_reset": 1} if op == "GRU" else {"activations": ["Relu"] * D} if op == "RNN" else {}
    proto = cell(op, D, inputs=["x", "W", "R", "B", "l"], direction=direction, **options)
    proto.graph.input.append(info("l", ["B"], TensorProto.INT32))
    (layer,) = gradcore.onnx.layers(proto).values()
    x = np.random.default_rng(0).standard_normal((6, 3, 3)).astype(np.float32)
    lengths = np.array([6, 2, 4], np.int32)
    Y, *_ = run(proto, [x, lengths])
    y, _ = layer(x, lengths=lengths)
    Y = Y.swapaxes(1, 2).reshape(6, 3, -1)
    np.testing.assert_allclose(y[..., -Y.shape[2] :], Y, rtol=1e-5, atol=1e-5)
    assert not y[..., : -Y.shape[2]].any()


def test_layers_of_any_graph() -> None:
    """Nodes without names, constants in nodes, computed ones, half precision, and graphs inside nodes."""
    rng = np.random.default_rng(0)
    W, R, B = (rng.standard_normal(shape).astype(np.float32) for shape in ((12, 3), (12, 4), (24,)))
    weights = {"W": W, "axes": np.array([0]), "V": rng.standard_normal((4, 5)).astype(np.float16)}
    weights |= {"b": rng.standard_normal(5).astype(np.float16)}
    nodes = [
        helper.make_node("Constant", [], ["R"], value=numpy_helper.from_array(R)),
        helper.make_node("Constant", [], ["B"], value_floats=B.tolist()),
        *[helper.make_node("Unsqueeze", [name, "axes"], [f"{name}1"]) for name in "WRB"],
        helper.make_node("GRU", ["x", "W1", "R1", "B1"], ["Y"], hidden_size=4, linear_before_reset=1),
        helper.make_node("Cast", ["Y"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["half", "V"], ["product"], name="twice"),
        helper.make_node("Add", ["b", "product"], ["sum"], name="twice"),
        helper.make_node("Relu", ["sum"], ["z"], name="twice"),
    ]
    body = helper.make_graph(
        [helper.make_node("GRU", ["x", "W1", "R1", "B1"], ["inner"], hidden_size=4, linear_before_reset=1)],
        "body", [], [info("inner", None)],
    )  # fmt: skip
    nodes.append(helper.make_node("If", ["c"], ["either"], then_branch=body, else_branch=body))
    inputs = [info("x", ["T", "B", 3]), info("c", [], TensorProto.BOOL)]
    proto = proto_of(nodes, weights, inputs, [info("z", None, TensorProto.FLOAT16), info("either", None)])
    found = gradcore.onnx.layers(proto)
    assert {name: repr(layer) for name, layer in found.items()} == {
        "Y": "GRU(3, 4)", "twice": "Linear(4, 5)", "z": "ReLU()", "inner": "GRU(3, 4)",
    }  # fmt: skip
    assert np.array_equal(found["Y"].params["weight_hh_l0"], np.concatenate([R[4:8], R[:4], R[8:]]))
    assert np.array_equal(found["twice"].params["weight"], weights["V"].T.astype(np.float32))
    assert np.array_equal(found["twice"].params["bias"], weights["b"].astype(np.float32))


def test_initializers_that_are_inputs_too() -> None:
    proto = without_plan(written(gradcore.LSTM(3, 4, rng=0)))
    for tensor in proto.graph.initializer:
        proto.graph.input.insert(0, info(tensor.name, tensor.dims, tensor.data_type))
    assert repr(gradcore.onnx.load(proto)) == "LSTM(3, 4)"


@pytest.mark.parametrize("opset", [15, 18, 21, 22, onnx.defs.onnx_opset_version()])
def test_other_opsets(opset: int) -> None:
    model = gradcore.GRU(3, 4, 2, bidirectional=True, rng=0)
    proto = onnx.version_converter.convert_version(gradcore.onnx.export(model), opset)
    check_same_models(model, gradcore.onnx.load(proto))


def test_layout_1_is_batch_first() -> None:
    W, R = (np.random.default_rng(i).standard_normal((1, 16, 3 + i)).astype(np.float32) for i in range(2))
    nodes = [
        helper.make_node("LSTM", ["x", "W", "R"], ["Y"], hidden_size=4, layout=1),
        helper.make_node("Squeeze", ["Y", "axes"], ["y"]),
    ]
    inputs, weights = [info("x", ["B", "T", 3])], {"W": W, "R": R, "axes": np.array([2])}
    proto = proto_of(nodes, weights, inputs, [info("y", ["B", "T", 4])])
    assert repr(gradcore.onnx.load(proto)) == "LSTM(3, 4, bias=False, batch_first=True)"


def sequence_graph(*tail: Any, weights: dict[str, np.ndarray], y: Any = ("T", "B", 4)) -> Any:
    """An RNN from 3 to 4 units with Y as a value, and more nodes up to y."""
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal((1, 4, n)).astype(np.float32) for name, n in (("W", 3), ("R", 4))}
    arrays |= {"one": np.array([1]), "zero": np.array([0]), "minus": np.array(-1)}
    nodes = [helper.make_node("RNN", ["x", "W", "R"], ["Y", "Y_h"], name="cell", hidden_size=4), *tail]
    return proto_of(nodes, arrays | weights, [info("x", ["T", "B", 3])], [info("y", y)])


TURN = ("Transpose", ["s"], ["t"], {"perm": [1, 0, 2]})
SQUEEZE = ("Squeeze", ["Y", "one"], ["s"], {})


@pytest.mark.parametrize(
    ("nodes", "n"),
    [
        # the batch and the steps exchanged by a reshape, which mixes sequences
        ([("Reshape", ["Y", "n"], ["y"], {})], [23, 19, 4]),
        # the first step of each sequence; the last sequence of the batch; two features of four
        ([SQUEEZE, ("Gather", ["s", "n"], ["y"], {})], 0),
        ([SQUEEZE, ("Gather", ["s", "minus"], ["y"], {"axis": 1})], 0),
        ([SQUEEZE, ("Gather", ["s", "n"], ["y"], {"axis": 2})], [0, 1]),
        # other axes than those of x
        ([SQUEEZE, ("Transpose", ["s"], ["y"], {"perm": [1, 0, 2]})], 0),
        ([("Identity", ["Y"], ["y"], {})], 0),
        # sums of what does not belong together, and parts of layers
        ([SQUEEZE, ("Add", ["s", "s"], ["y"], {})], 0),
        ([SQUEEZE, TURN, ("Tanh", ["t"], ["h"], {}), ("Add", ["s", "h"], ["y"], {})], 0),
        ([SQUEEZE, ("Softmax", ["s"], ["y"], {})], 0),
        ([SQUEEZE, ("Erf", ["s"], ["y"], {})], 0),
        ([SQUEEZE, ("Mul", ["s", "n"], ["y"], {})], 2.0),
        # a linear map over time
        ([SQUEEZE, ("Transpose", ["s"], ["t"], {"perm": [1, 2, 0]}), ("MatMul", "tn", "y", {})], np.ones((19, 4))),
    ],
)  # fmt: skip
def test_graphs_that_are_no_chain_of_layers(nodes: Any, n: Any) -> None:
    made = [helper.make_node(op, ins, outs, **attributes) for op, ins, outs, attributes in nodes]
    array = np.asarray(n)
    array = array.astype(np.float32) if array.dtype.kind == "f" else array
    with pytest.raises(ValueError, match=r"^model: y\b"):
        gradcore.onnx.load(sequence_graph(*made, y=None, weights={"n": array}))


def test_a_number_of_steps_that_a_graph_fixes() -> None:
    """PyTorch writes one where it unrolls something; the y that the file states says so. The model leaves it free."""
    tail = [("Transpose", ["Y"], ["t"], {"perm": [0, 2, 1, 3]}), ("Reshape", ["t", "n"], ["y"], {})]
    made = [helper.make_node(op, ins, outs, **attributes) for op, ins, outs, attributes in tail]
    weights = {"n": np.array([5, -1, 4])}
    assert repr(gradcore.onnx.load(sequence_graph(*made, y=(5, "B", 4), weights=weights))) == "RNN(3, 4, bias=False)"
    for y in (("T", "B", 4), (5, "T", 4), (5, "x", 4)):
        with pytest.raises(ValueError, match=r"^model: y \(Reshape\)"):
            gradcore.onnx.load(sequence_graph(*made, y=y, weights=weights))


def test_packed_sequences_of_pytorch(tmp_path: Path) -> None:
    """Lengths of the graph are those of the model."""
    torch = pytest.importorskip("torch")
    module, path = torch.nn.LSTM(3, 4, 2, bidirectional=True), tmp_path / "model.onnx"

    class Packed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = module

        def forward(self, x: Any, lengths: Any) -> Any:
            y, state = self.rnn(torch.nn.utils.rnn.pack_padded_sequence(x, lengths))
            return torch.nn.utils.rnn.pad_packed_sequence(y)[0], *state

    x, lengths = torch.randn(5, 3, 3), torch.tensor([5, 3, 1])
    axes = {"x": {0: "T", 1: "B"}, "lengths": {0: "B"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Packed().eval(), (x, lengths), path, dynamo=False, input_names=["x", "lengths"], dynamic_axes=axes
        )  # fmt: skip
    model: Any = gradcore.onnx.load(path)
    assert repr(model) == "LSTM(3, 4, num_layers=2, bidirectional=True)"
    with torch.no_grad():
        want = Packed()(x, lengths)
    y, state = model(x.numpy(), lengths=lengths.numpy())
    for ours, theirs in zip((y, *state), want, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 2, 3), (1, 1, 3), (4, 4, 3)])
def test_sizes_that_the_file_states(shape: tuple[int, ...]) -> None:
    """One step or one sequence hides which axis is which, unless other sizes are tried."""
    for tail, y, want in (
        (
            [("Transpose", ["x"], ["u"], {"perm": [1, 0, 2]})],
            (*shape[:2], 4),
            "RNN(3, 4, bias=False, batch_first=True)",
        ),
        ([("Identity", ["x"], ["u"], {})], (shape[1], 4), "Sequential(RNN(3, 4, bias=False), LastStep())"),
    ):
        after = [("Squeeze", ["Y", "one"], ["s"], {}), ("Transpose", ["s"], ["y"], {"perm": [1, 0, 2]})]
        if len(y) == 2:
            after[1:] = [("Gather", ["s", "minus"], ["y"], {})]
        proto = sequence_graph(*[helper.make_node(op, i, o, **a) for op, i, o, a in after], y=y, weights={})
        op, ins, outs, attributes = tail[0]
        proto.graph.node[0].input[0] = "u"
        proto.graph.node.insert(0, helper.make_node(op, ins, outs, **attributes))
        proto.graph.input[0].CopyFrom(info("x", shape))
        assert repr(gradcore.onnx.load(proto)) == want


def test_layer_norm_in_parts() -> None:
    """As files of before opset 17 have it, and those of export."""
    for options in ({}, {"bias": False}, {"elementwise_affine": False}):
        model = chain(gradcore.GRU(3, 4), gradcore.LayerNorm(4, 1e-3, **options), gradcore.Tanh())
        check_same_models(model, gradcore.onnx.load(without_plan(written(model))))


@pytest.mark.parametrize(("op", "inverse"), [("Sub", []), ("Mul", []), ("Greater", []), ("Div", ["Reciprocal"])])
def test_what_only_looks_like_a_norm(op: str, inverse: list[str]) -> None:
    """x and its root mean square, joined in another way than by a division"""
    steps = [("Pow", ["s", "two"]), ("ReduceMean", ["a0", "last"]), ("Add", ["a1", "eps"]), ("Sqrt", ["a2"])]
    steps += [(name, ["a3"]) for name in inverse]
    nodes = [helper.make_node(name, ins, [f"a{i}"]) for i, (name, ins) in enumerate(steps)]
    nodes = [
        helper.make_node("Squeeze", ["Y", "one"], ["s"]),
        *nodes,
        helper.make_node(op, ["s", nodes[-1].output[0]], ["y"]),
    ]
    weights = {"two": np.float32(2), "last": np.array([-1]), "eps": np.float32(1e-3)}
    with pytest.raises(ValueError, match=rf"^model: y \({op}\)"):
        gradcore.onnx.load(sequence_graph(*nodes, weights={name: np.asarray(a) for name, a in weights.items()}))


def test_states_that_become_integers() -> None:
    proto = without_plan(gradcore.onnx.export(gradcore.GRU(3, 4, rng=0)))
    proto.graph.node.insert(0, helper.make_node("Cast", ["h_0"], ["h"], to=INT64))
    (node,) = [node for node in proto.graph.node if node.op_type == "GRU"]
    node.input[5] = "h"
    with pytest.raises(ValueError, match=r"h \(Cast\): a change of dtype"):
        gradcore.onnx.load(proto)


def test_nodes_that_share_weights_and_models_that_learn() -> None:
    """Each layer has weights of its own, which can be trained."""
    proto = without_plan(
        gradcore.onnx.export(chain(gradcore.GRU(4, 4, rng=0), gradcore.Tanh(), gradcore.GRU(4, 4, rng=0)))
    )
    (second,) = [node for node in proto.graph.node if node.name == "/2.GRU_l0"]
    second.input[1:4] = [f"0.{name}_l0" for name in "WRB"]
    model: Any = gradcore.onnx.load(proto)
    assert np.array_equal(model[0].flat_params, model[2].flat_params)
    y, tape = model.forward(np.ones((5, 2, 4), np.float32))
    model.backward(tape, np.ones_like(y))
    gradcore.optim.SGD(model, lr=0.1).step()
    assert not np.array_equal(model[0].flat_params, model[2].flat_params)


def test_the_last_step_is_none_where_sequences_differ_in_length() -> None:
    """Y at the last step is zero for the shorter ones, Y_h is not."""
    last = [helper.make_node("Squeeze", ["Y", "one"], ["s"]), helper.make_node("Gather", ["s", "minus"], ["y"])]
    final = [helper.make_node("Squeeze", ["Y_h", "zero"], ["y"])]
    for tail, works in ((last, False), (final, True)):
        proto = sequence_graph(*tail, y=("B", 4), weights={})
        assert repr(gradcore.onnx.load(proto)) == "Sequential(RNN(3, 4, bias=False), LastStep())"
        proto.graph.node[0].input.extend(["", "lengths"])
        proto.graph.input.append(info("lengths", ["B"], TensorProto.INT32))
        if not works:
            with pytest.raises(ValueError, match=r"y: .*last step"):
                gradcore.onnx.load(proto)
            continue
        model: Any = gradcore.onnx.load(proto)
        x, lengths = np.ones((5, 2, 3), np.float32), np.array([5, 2], np.int32)
        np.testing.assert_allclose(model(x, lengths=lengths), run(proto, [x, lengths])[0], rtol=1e-5, atol=1e-6)


def test_states_that_are_not_those_of_the_graph() -> None:
    proto = cell(inputs=["x", "W", "R", "B", "", "h", ""])
    with pytest.raises(ValueError, match=r"the cell \(LSTM\): .*constant and not zero"):
        gradcore.onnx.load(proto)
    assert repr(gradcore.onnx.layers(proto)["the cell"]) == "LSTM(3, 4)"
    proto = without_plan(gradcore.onnx.export(chain(gradcore.GRU(3, 4), gradcore.ReLU())))
    proto.graph.output.append(info("/Relu_0:0", ["T", "B", 4]))
    with pytest.raises(ValueError, match="/Relu_0:0: an output besides y"):
        gradcore.onnx.load(proto)


# ---- files that are wrong --------------------------------------------------------------------------------------------


def refuses(read: Any, path: Path) -> bool:
    try:
        with np.errstate(all="ignore"):
            read(path)
    except ValueError as error:
        return str(error).startswith(f"{path}: ") or bool(pytest.fail(f"no name of a file: {error}"))
    return False


def test_damaged_files(tmp_path: Path) -> None:
    """One error that names the file, or a model; never anything else, and never much memory."""
    rng = np.random.default_rng(0)
    path = tmp_path / "model.onnx"
    model = chain(gradcore.Embedding(5, 3, rng=0), gradcore.GRU(3, 4, 2, rng=0), gradcore.LastStep(), gradcore.ReLU())
    whole = gradcore.onnx.export(model).SerializeToString()
    bare = without_plan(gradcore.onnx.export(model)).SerializeToString()
    refused = 0
    for data in (whole, bare):
        cut = [data[:n] for n in rng.integers(0, len(data), 20)]
        flipped = []
        for at in rng.integers(0, len(data), 80):
            changed = bytearray(data)
            changed[at] ^= 1 << rng.integers(8)
            flipped.append(bytes(changed))
        for text in [b"", b"\0", b"not a model", *cut, *flipped]:
            path.write_bytes(text)
            for read in (gradcore.onnx.load, gradcore.onnx.layers):
                refused += refuses(read, path)
    assert refused > 50


def test_missing_files_and_wrong_arguments(tmp_path: Path) -> None:
    for read in (gradcore.onnx.load, gradcore.onnx.layers):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "none.onnx")
        with pytest.raises(TypeError, match="path: expected a path, got int"):
            read(3)


def test_numbers_in_other_files_are_not_looked_for(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    proto = gradcore.onnx.export(gradcore.LSTM(30, 40, rng=0))
    onnx.save(proto, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    for read in (gradcore.onnx.load, gradcore.onnx.layers):
        with pytest.raises(ValueError, match=r"W_l0: its numbers are in another file"):
            read(path)
    assert repr(gradcore.onnx.load(onnx.load(path))) == "LSTM(30, 40)"


def test_constants_that_would_fill_the_memory() -> None:
    node = helper.make_node("ConstantOfShape", ["n"], ["huge"])
    add = helper.make_node("Add", ["x", "huge"], ["y"], name="sum")
    proto = proto_of([node, add], {"n": np.array([2**20, 2**20])}, [info("x", ["B", 3])], [info("y", None)])
    with pytest.raises(ValueError, match=r"huge \(ConstantOfShape\): .* too large"):
        gradcore.onnx.load(proto)
    assert gradcore.onnx.layers(proto) == {}


# ---- the module ------------------------------------------------------------------------------------------------------


def test_gradcore_itself_does_not_import_onnx() -> None:
    code = "import sys, gradcore; assert not {'onnx', 'google.protobuf', 'gradcore.onnx'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=HANG)


def test_one_message_where_onnx_is_missing() -> None:
    code = "import sys; sys.modules['onnx'] = None; import gradcore.onnx"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=HANG)
    assert result.stderr.splitlines()[-1].endswith('gradcore.onnx needs onnx: pip install "gradcore[onnx]"')
    assert "During handling" not in result.stderr
