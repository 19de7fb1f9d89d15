"""Write models as ONNX graphs."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, checker, helper, numpy_helper

from gradcore import __version__
from gradcore._base.check import check_bool, check_path, describe_shape
from gradcore._base.files import write_atomically
from gradcore.layers import activations
from gradcore.layers.activations import Activation
from gradcore.layers.attention import MultiheadAttention
from gradcore.layers.dropout import Dropout
from gradcore.layers.embedding import Embedding
from gradcore.layers.layer import Layer
from gradcore.layers.linear import Linear
from gradcore.layers.normalization import BatchNorm, FeatureNorm, LayerNorm, RMSNorm
from gradcore.layers.pooling import FinalState, LastStep, MeanPool
from gradcore.layers.prelu import PReLU
from gradcore.layers.recurrent import GRU, LSTM, RNN
from gradcore.layers.residual import Residual
from gradcore.layers.sequential import MLP, Sequential
from gradcore.layers.stack import Recurrent
from gradcore.layers.transformer import _BRANCHES, TransformerEncoderLayer
from gradcore.onnx import cells, plan

__all__ = ["export"]

# The oldest version in which all that is written here has its form of today, and the format of its time: any runtime
# since 2021 reads both.
OPSET, IR_VERSION = 14, 7
PLAN = "gradcore"  # the key of the metadata that hold the model's classes and arguments
MOST = 2**31 - 2**20  # bytes of numbers; protobuf has a limit of 2 GiB for a whole message


def export(model: Layer, path: str | os.PathLike[str] | None = None, *, float32: bool = False) -> ModelProto:
    """Return a model as an ONNX graph that computes what ``model(x)`` does, and write it to a file.

    The graph takes x, `lengths` (B,) of int64 if a layer takes them, and the initial state of each recurrent layer. It
    gives y, then the final states in the same order. The number of steps T and of sequences B are free. States are
    called `h_0`, `c_0`, `h_n` and `c_n`, in a model of several layers with the place of the layer in front, such as
    `2.h_0`. x is what the first layer takes; of a model without any layer for sequences it is (B, features).

    Parameters
    ----------
    model : layer or model
        A layer of gradcore's, or a `Sequential` or `Residual` of such layers.
    path : path, optional
        The file, usually with the suffix ``.onnx``; it is replaced whole or not at all. None to write no file.
    float32 : bool
        Whether a float64 model is rounded to float32. Many runtimes, onnxruntime among them, have recurrent layers of
        float32 only.

    Returns
    -------
    onnx.ModelProto
        The graph.

    Raises
    ------
    TypeError
        If model is not a layer.
    ValueError
        If a layer has no form in ONNX, such as a recurrent one with `layer_norm` or `zoneout` or one of your own, if
        layers do not fit each other, or if the parameters take 2 GB or more.
    OSError
        If the file cannot be written. The old file is unchanged then.

    See Also
    --------
    load : Read the model back.

    Notes
    -----
    A sequence of length 0 keeps its initial state, as in gradcore, whatever the runtime's layers do. An empty batch has
    no effect on the graph, but makes onnxruntime 1.32 abort the process in an LSTM.

    References
    ----------
    .. [1] https://onnx.ai/onnx/operators/

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import gradcore, gradcore.onnx
    >>> model = gradcore.Sequential(gradcore.GRU(3, 8, num_layers=2), gradcore.LastStep(), gradcore.Linear(8, 1))
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "model.onnx"
    >>> graph = gradcore.onnx.export(model, path).graph
    >>> [value.name for value in graph.input], [value.name for value in graph.output]
    (['x', 'lengths', '0.h_0'], ['y', '0.h_n'])
    """
    if not isinstance(model, Layer):
        raise TypeError(f"model: expected a layer, got {type(model).__name__}")
    target = None if path is None else check_path("path", path)
    _refuse("model", model)
    if check_bool("float32", float32) and model.dtype != np.float32:
        model = _rounded(model)
    proto = proto_of(model)
    checker.check_model(proto, full_check=True)
    if target is not None:
        write_atomically(target, proto.SerializeToString())
    return proto


def _refuse(where: str, layer: Layer) -> None:
    """Raise if a layer has no form in ONNX."""
    reason = ""
    if not plan.is_known(layer):
        reason = "which is not a layer of gradcore's own"
    elif isinstance(layer, Recurrent) and (layer.layer_norm or layer.zoneout):
        reason = "whose layer_norm and zoneout ONNX has not"
    elif isinstance(layer, BatchNorm) and not layer.track_running_stats:
        reason = "without running statistics, which takes those of the batch"
    elif sum(p.nbytes for p in layer.params.values()) >= MOST:
        reason = "whose parameters take more than the 2 GB that an ONNX file can hold"
    if reason:
        raise ValueError(f"{where}: cannot be written as ONNX: {layer!r}, {reason}")
    if isinstance(layer, (Sequential, TransformerEncoderLayer)):
        for name, member in zip(layer.names, layer.layers, strict=True):
            _refuse(f"{where}.layers[{name}]" if name.isdigit() else f"{where}.{name}", member)


def _rounded(model: Layer) -> Layer:
    """Return a float32 copy."""
    copy, state = plan.build(plan.text_of(model), dtype="float32"), model.state_dict()
    with np.errstate(over="ignore"):
        copy.load_state_dict({n: a.astype(copy.dtype) if a.dtype.kind == "f" else a for n, a in state.items()})
    return copy


def proto_of(model: Layer) -> ModelProto:
    """Return the graph of a model that has one."""
    graph = _Graph(model)
    made = helper.make_model(
        helper.make_graph(graph.nodes, "gradcore", graph.inputs, graph.outputs, graph.initializers),
        opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION,
        producer_name="gradcore", producer_version=__version__,
    )  # fmt: skip
    helper.set_model_props(made, {PLAN: plan.text_of(model)})
    return made


class _Graph:
    """A graph that grows node by node. Values are known by their names."""

    def __init__(self, model: Layer) -> None:
        self.dtype, self.nodes, self.initializers = model.dtype, list[Any](), list[Any]()
        self.inputs, self.outputs, self.finals = list[Any](), list[Any](), list[Any]()
        self.made: dict[Any, list[str]] = {}  # the outputs of a node, or the constant, that is there already
        self.used: dict[str, int] = {}
        members = [layer for _, layer in plan.leaves(model)]
        ragged = "lengths" in model.takes
        batch_first = next((layer.batch_first for layer in members if hasattr(layer, "batch_first")), False)
        self.steps = (("B", "T") if batch_first else ("T", "B")) if ragged else ("B",)
        self.dims: list[Any] = [*self.steps, *(_features(members) or ())]  # of the value that is passed on
        self.kind = helper.np_dtype_to_tensor_dtype(self.dtype)
        self.take("x", self.dims, TensorProto.INT64 if _features(members) is None else self.kind)
        if ragged:
            self.take("lengths", ("B",), TensorProto.INT64)
        for prefix, layer in plan.leaves(model):
            for name, array in plan.constants(layer, prefix).items():
                self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        y = self.write(model, "", "x")
        self.node("Identity", [y], "y", "y")
        self.outputs = [helper.make_tensor_value_info("y", self.kind, self.dims), *self.finals]

    # ---- parts of a graph ----------------------------------------------------------------------------------------

    def take(self, name: str, shape: Sequence[Any], kind: int | None = None) -> str:
        """Add an input of the graph."""
        self.inputs.append(helper.make_tensor_value_info(name, kind or self.kind, shape))
        return name

    def give(self, name: str, value: str, shape: Sequence[Any]) -> None:
        """Add an output of the graph after y."""
        self.node("Identity", [value], name, name)
        self.finals.append(helper.make_tensor_value_info(name, self.kind, shape))

    def node(self, op: str, inputs: Sequence[str], name: str, *outputs: str, **attributes: Any) -> str:
        """Add a node whose outputs have names, and return the first one."""
        self.nodes.append(helper.make_node(op, inputs, outputs, name=f"/{name}", **attributes))
        return outputs[0]

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Add a node, and return the name of what it computes."""
        return self.several(op, 1, *inputs, **attributes)[0]

    def several(self, op: str, n: int, *inputs: str, **attributes: Any) -> list[str]:
        """Add a node, or find the same one, and return the names of the n arrays that it computes."""
        key = op, inputs, repr(attributes)
        if key not in self.made:
            count = self.used[op] = self.used.get(op, -1) + 1
            self.made[key] = [f"/{op}_{count}:{i}" for i in range(n)]
            self.node(op, inputs, f"{op}_{count}", *self.made[key], **attributes)
        return self.made[key]

    def constant(self, value: Any, dtype: Any = np.int64) -> str:
        """Return a constant, each only once; integers by default."""
        array = np.asarray(value, dtype)
        key = array.tobytes(), array.shape, array.dtype.str
        if key not in self.made:
            self.made[key] = [f"/constant_{len(self.made)}"]
            self.initializers.append(numpy_helper.from_array(array, self.made[key][0]))
        return self.made[key][0]

    def number(self, value: Any) -> str:
        """Return a constant of the model's dtype."""
        return self.constant(value, self.dtype)

    # ---- what follows from the lengths ---------------------------------------------------------------------------

    def indices(self) -> str:
        """0 to T - 1, (T,)"""
        T = self.add("Gather", self.add("Shape", "x"), self.constant(self.steps.index("T")), axis=0)
        return self.add("Range", self.constant(0), T, self.constant(1))

    def compared(self, op: str, numbers: str) -> str:
        """Compare the index of each step with a number for each sequence: (T, B, 1), or (B, T, 1)."""
        across, along = self.constant([0, 2]), self.constant([1, 2])
        if self.steps[0] == "B":
            across, along = along, across
        return self.add(op, self.add("Unsqueeze", self.indices(), along), self.add("Unsqueeze", numbers, across))

    def valid(self) -> str:
        """Whether a step is one of its sequence: (T, B, 1), or (B, T, 1)."""
        return self.compared("Less", "lengths")

    def only(self, where: str, x: str) -> str:
        """x, and 0 elsewhere"""
        return self.add("Where", where, x, self.number(0))

    # ---- layers --------------------------------------------------------------------------------------------------

    def write(self, layer: Layer, prefix: str, x: str) -> str:
        """Add a layer, whose parameters have this prefix, and return its output."""
        if not isinstance(layer, Sequential):
            self.check(layer)
        return _WRITERS[type(layer)](self, layer, prefix, x)

    def check(self, layer: Layer) -> None:
        """Raise if a layer does not fit those below it."""
        given = describe_shape(self.dims)
        if layer.takes and (len(self.dims) != 3 or "T" not in self.dims):
            raise ValueError(f"model: {layer!r} expects sequences, and gets an array of shape {given}")
        features = _features([layer]) or ()
        if features != ("F",) and (*self.dims[len(self.dims) - len(features) :],) != features:
            raise ValueError(f"model: {layer!r} expects shape {describe_shape(('...', *features))}, and gets {given}")

    def chain(self, layer: Sequential, prefix: str, x: str) -> str:
        for name, member in zip(layer.names, layer.layers, strict=True):
            x = self.write(member, f"{prefix}{name}.", x)
        return x

    def residual(self, layer: Residual, prefix: str, x: str) -> str:
        branch = self.chain(layer, prefix, x)
        branch = branch if layer.scale == 1 else self.add("Mul", branch, self.number(layer.scale))
        return self.add("Add", x, branch)

    def recurrent(self, layer: Recurrent, prefix: str, x: str) -> str:
        L, D, H = layer.num_layers, layer.num_directions, layer.hidden_size
        names = [f"{prefix}{part}" for part in layer.cell.states]
        given = [self.take(f"{name}_0", (L * D, "B", H)) for name in names]
        final: list[list[str]] = [[] for _ in names]
        lengths = self.add("Cast", "lengths", to=TensorProto.INT32)
        empty = self.add("Unsqueeze", self.add("Equal", "lengths", self.constant(0)), self.constant([1]))  # (B, 1)
        if layer.batch_first:
            x = self.add("Transpose", x, perm=[1, 0, 2])
        for level in range(L):
            part = [self.constant([level * D]), self.constant([(level + 1) * D]), self.constant([0])]
            start = given if L == 1 else [self.add("Slice", state, *part) for state in given]
            weights = [f"{prefix}{name}_l{level}" for name in "WR"] + [f"{prefix}B_l{level}" if layer.bias else ""]
            place = f"{prefix}{layer.cell.layer}_l{level}"
            made = [f"/{place}:{name}" for name in cells.OUTPUTS[: 1 + len(names)]]
            self.node(layer.cell.layer, [x, *weights, lengths, *start], place, *made, **cells.attributes(layer))
            self.dims[-1] = D * H
            if D == 1:
                x = self.add("Squeeze", made[0], self.constant([1]))
            else:
                side_by_side = self.add("Transpose", made[0], perm=[0, 2, 1, 3])
                x = self.add("Reshape", side_by_side, self.constant([0, 0, D * H]))
            for found, before, after in zip(final, start, made[1:], strict=True):
                found.append(self.add("Where", empty, before, after))
        for name, found in zip(names, final, strict=True):
            self.give(f"{name}_n", found[0] if L == 1 else self.add("Concat", *found, axis=0), (L * D, "B", H))
        return self.add("Transpose", x, perm=[1, 0, 2]) if layer.batch_first else x

    def linear(self, layer: Linear, prefix: str, x: str) -> str:
        self.dims[-1] = layer.out_features
        return self.affine(x, f"{prefix}weight", f"{prefix}bias" if layer.bias else "")

    def affine(self, x: str, weight: str, bias: str) -> str:
        """x W^T + b"""
        if len(self.dims) == 2:
            return self.add("Gemm", *[name for name in (x, weight, bias) if name], transB=1)
        y = self.add("MatMul", x, self.add("Transpose", weight, perm=[1, 0]))
        return self.add("Add", y, bias) if bias else y

    def embedding(self, layer: Embedding, prefix: str, x: str) -> str:
        self.dims.append(layer.embedding_dim)
        return self.add("Gather", f"{prefix}weight", x, axis=0)

    def same(self, layer: Layer, prefix: str, x: str) -> str:
        return x

    def prelu(self, layer: PReLU, prefix: str, x: str) -> str:
        return self.sloped(x, f"{prefix}weight")

    def sloped(self, x: str, slope: str) -> str:
        """x where it is above 0, and x times the slope elsewhere"""
        if self.dtype == np.float32:
            return self.add("PRelu", x, slope)
        return self.above_zero(x, self.add("Mul", x, slope))  # runtimes have PRelu of float32 only

    def above_zero(self, x: str, low: str) -> str:
        return self.add("Where", self.add("Greater", x, self.number(0)), x, low)

    def simple(self, layer: Activation, prefix: str, x: str) -> str:
        return self.add({"ReLU": "Relu"}.get(type(layer).__name__, type(layer).__name__), x)

    def leaky_relu(self, layer: activations.LeakyReLU, prefix: str, x: str) -> str:
        if self.dtype == np.float32:  # of which all attributes are
            return self.add("LeakyRelu", x, alpha=layer.negative_slope)
        return self.sloped(x, self.number([layer.negative_slope]))

    def elu(self, layer: Activation, prefix: str, x: str) -> str:
        alpha, scale = layer._constants
        if self.dtype == np.float32:
            return self.add("Elu", x, alpha=alpha) if scale == 1 else self.add("Selu", x, alpha=alpha, gamma=scale)
        low = self.add("Exp", self.add("Min", x, self.number(0)))  # which never overflows
        low = self.add("Mul", self.add("Sub", low, self.number(1)), self.number(alpha))
        y = self.above_zero(x, low)
        return y if scale == 1 else self.add("Mul", y, self.number(scale))

    def gelu(self, layer: activations.GELU, prefix: str, x: str) -> str:
        if layer.approximate == "none":
            inner = self.add("Erf", self.add("Div", x, self.number(math.sqrt(2))))
        else:
            cube = self.add("Mul", self.add("Pow", x, self.number(3)), self.number(0.044715))
            inner = self.add("Tanh", self.add("Mul", self.add("Add", x, cube), self.number(math.sqrt(2 / math.pi))))
        return self.add("Mul", self.add("Mul", x, self.add("Add", inner, self.number(1))), self.number(0.5))

    def silu(self, layer: activations.SiLU, prefix: str, x: str) -> str:
        return self.add("Mul", x, self.add("Sigmoid", x))

    def softplus(self, layer: activations.Softplus, prefix: str, x: str) -> str:
        sharp = x if layer.beta == 1 else self.add("Mul", x, self.number(layer.beta))
        y = self.add("Softplus", sharp) if self.dtype == np.float32 else self.log_of_one_plus_exp(sharp)
        y = y if layer.beta == 1 else self.add("Div", y, self.number(layer.beta))
        return self.add("Where", self.add("Greater", sharp, self.number(layer.threshold)), x, y)

    def log_of_one_plus_exp(self, x: str) -> str:
        small = self.add("Exp", self.add("Neg", self.add("Abs", x)))
        log = self.add("Log", self.add("Add", small, self.number(1)))
        return self.add("Add", self.add("Max", x, self.number(0)), log)

    def feature_norm(self, layer: FeatureNorm, prefix: str, x: str) -> str:
        axes = list(range(-len(layer.normalized_shape), 0))
        if layer.centered:
            x = self.add("Sub", x, self.add("ReduceMean", x, axes=axes, keepdims=1))
        square = self.add("ReduceMean", self.add("Pow", x, self.number(2)), axes=axes, keepdims=1)
        deviation = self.add("Sqrt", self.add("Add", square, self.number(layer.eps_used)))
        return self.scaled(layer, prefix, self.add("Div", x, deviation))

    def scaled(self, layer: Layer, prefix: str, x: str) -> str:
        """x times the weight, plus the bias, as far as there are any"""
        for op, name in (("Mul", "weight"), ("Add", "bias")):
            if name in layer.params:
                x = self.add(op, x, f"{prefix}{name}")
        return x

    def batch_norm(self, layer: BatchNorm, prefix: str, x: str) -> str:
        deviation = self.add("Sqrt", self.add("Add", f"{prefix}running_var", self.number(layer.eps)))
        centered = self.add("Sub", x, f"{prefix}running_mean")
        return self.scaled(layer, prefix, self.add("Div", centered, deviation))

    def summed(self, x: str) -> str:
        """The sum over the steps, (B, F)"""
        self.dims.remove("T")
        return self.add("ReduceSum", x, self.constant([self.steps.index("T")]), keepdims=0)

    def final_state(self, layer: FinalState, prefix: str, x: str) -> str:
        at_last = self.compared("Equal", self.add("Sub", "lengths", self.constant(1)))
        if not layer._reverse:
            return self.summed(self.only(at_last, x))
        forward, reverse = self.several("Split", 2, x, axis=-1)
        at_first = self.compared("Equal", self.add("Mul", "lengths", self.constant(0)))
        halves = self.only(at_last, forward), self.only(self.add("And", self.valid(), at_first), reverse)
        return self.summed(self.add("Concat", *halves, axis=-1))

    def mean_pool(self, layer: MeanPool, prefix: str, x: str) -> str:
        total = self.summed(self.only(self.valid(), x))
        n = self.add("Unsqueeze", self.add("Max", "lengths", self.constant(1)), self.constant([1]))
        return self.add("Div", total, self.add("Cast", n, to=self.kind))

    def attention(self, layer: MultiheadAttention, prefix: str, x: str) -> str:
        return self.only(self.valid(), self.attend(layer, prefix, self.only(self.valid(), x)))

    def attend(self, layer: MultiheadAttention, prefix: str, x: str) -> str:
        """Attention where x is 0 past each sequence's end; the output there is anything."""
        E, heads = layer.embed_dim, layer.num_heads
        biases = [f"{prefix}in_proj_bias", f"{prefix}out_proj.bias"] if layer.bias else ["", ""]
        qkv = self.affine(x, f"{prefix}in_proj_weight", biases[0])
        split = self.add("Reshape", qkv, self.constant([0, 0, 3, heads, E // heads]))
        ordered = self.add("Transpose", split, perm=[2, 1, 3, 0, 4])  # (3, B, heads, T, E / heads)
        q, k, v = [self.add("Squeeze", part, self.constant([0])) for part in self.several("Split", 3, ordered, axis=0)]
        q = self.add("Mul", q, self.number(1 / math.sqrt(E // heads)))
        logits = self.add("MatMul", q, self.add("Transpose", k, perm=[0, 1, 3, 2]))
        seen = self.add("Where", self.seen(layer.causal), logits, self.number(np.finfo(self.dtype).min))
        mixed = self.add("MatMul", self.add("Softmax", seen, axis=-1), v)
        joined = self.add("Reshape", self.add("Transpose", mixed, perm=[2, 0, 1, 3]), self.constant([0, 0, E]))
        return self.affine(joined, f"{prefix}out_proj.weight", biases[1])

    def seen(self, causal: bool) -> str:
        """Which steps of a sequence (last axis) a step sees: (B, 1, 1, T), or (B, 1, T, T)."""
        keys = self.add("Unsqueeze", self.add("Transpose", self.valid(), perm=[1, 2, 0]), self.constant([1]))
        if not causal:
            return keys
        queries = self.add("Unsqueeze", self.indices(), self.constant([1]))
        return self.add("And", keys, self.add("LessOrEqual", self.indices(), queries))

    def transformer(self, layer: TransformerEncoderLayer, prefix: str, x: str) -> str:
        def write(name: str, x: str) -> str:
            member = getattr(layer, name)
            if name == "self_attn":
                return self.attend(member, f"{prefix}{name}.", x)
            return self.write(member, f"{prefix}{name}.", x)

        x = self.only(self.valid(), x)
        for norm, *branch in _BRANCHES:
            y = x
            for name in (norm, *branch) if layer.norm_first else branch:
                y = write(name, y)
            x = self.add("Add", x, y)
            if not layer.norm_first:
                x = write(norm, x)
        return self.only(self.valid(), x)


def _features(members: Sequence[Layer]) -> tuple[Any, ...] | None:
    """Return the shape of a sample or step of x, "F" where it is free; None where x holds integers."""
    for layer in members:
        if isinstance(layer, Embedding):
            return None
        if isinstance(layer, FeatureNorm):
            return layer.normalized_shape
        if isinstance(layer, PReLU) and layer.num_parameters > 1:
            return (layer.num_parameters,)
        for name in ("input_size", "in_features", "num_features", "embed_dim"):
            if hasattr(layer, name):
                return (getattr(layer, name),)
    return ("F",)


_Writer = Callable[[_Graph, Any, str, str], str]
_WRITERS: dict[type[Layer], _Writer] = {
    **dict.fromkeys((Sequential, MLP), _Graph.chain),
    Residual: _Graph.residual,
    **dict.fromkeys((RNN, LSTM, GRU), _Graph.recurrent),
    Linear: _Graph.linear,
    Embedding: _Graph.embedding,
    **dict.fromkeys((activations.Identity, Dropout), _Graph.same),
    **dict.fromkeys((activations.Tanh, activations.Sigmoid, activations.ReLU), _Graph.simple),
    activations.LeakyReLU: _Graph.leaky_relu,
    **dict.fromkeys((activations.ELU, activations.SELU), _Graph.elu),
    activations.GELU: _Graph.gelu,
    activations.Softplus: _Graph.softplus,
    activations.SiLU: _Graph.silu,
    PReLU: _Graph.prelu,
    **dict.fromkeys((LayerNorm, RMSNorm), _Graph.feature_norm),
    BatchNorm: _Graph.batch_norm,
    **dict.fromkeys((LastStep, FinalState), _Graph.final_state),
    MeanPool: _Graph.mean_pool,
    MultiheadAttention: _Graph.attention,
    TransformerEncoderLayer: _Graph.transformer,
}
