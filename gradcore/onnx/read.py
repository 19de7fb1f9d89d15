"""Read ONNX graphs as models."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, inliner

from gradcore._base.check import Array
from gradcore._base.files import DAMAGE
from gradcore.layers.layer import Layer
from gradcore.layers.linear import Linear
from gradcore.onnx import parts, plan
from gradcore.onnx.files import Refusal, array_of, attributes, is_standard, name_of, opset_of, reading, tag
from gradcore.onnx.follow import model_of
from gradcore.onnx.trace import CONSTANT, constant
from gradcore.onnx.write import PLAN, proto_of

__all__ = ["layers", "load"]


def load(path: str | os.PathLike[str] | ModelProto) -> Layer:
    """Return the model that an ONNX file holds, if it is a chain of layers that gradcore has.

    A file of `export` gives the model that was written, with the same bits. Other files, such as those of PyTorch's
    exporters, are read node by node: recurrent layers, linear ones, embeddings, norms, activations, residual sums, the
    last step or final state, and the mean over time, with whatever transposes and reshapes stand between them. Stacked
    layers become one layer with `num_layers`. The model takes any number of steps and sequences.

    Parameters
    ----------
    path : path or onnx.ModelProto
        The file, or a model in memory.

    Returns
    -------
    Layer
        The layer, or a `Sequential` of several. Its parameters have the dtype of the file; float16 and bfloat16 become
        float32.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged, or if a node has no counterpart: the message names it. `layers` may still read others.

    See Also
    --------
    layers : The layers of any graph, one for each node.
    export : Write a model.

    Notes
    -----
    Nothing but the file itself is read, and nothing in it is run. Initial and final states of the graph are those of
    the model. What a graph fixes, such as a number of steps, the model leaves free.

    Examples
    --------
    >>> import gradcore, gradcore.onnx
    >>> proto = gradcore.onnx.export(gradcore.Sequential(gradcore.LSTM(3, 8), gradcore.Linear(8, 1)))
    >>> gradcore.onnx.load(proto)
    Sequential(LSTM(3, 8), Linear(8, 1))
    """
    with reading(path) as proto:
        return _as_written(proto) or model_of(_inlined(proto))


def layers(path: str | os.PathLike[str] | ModelProto) -> dict[str, Layer]:
    """Return a layer for each node of an ONNX file that one layer stands for, by the name of the node.

    These are RNN, LSTM and GRU nodes; Gemm and MatMul with constant weights, the latter with a constant that is added
    to it alone; Gather from a constant table; layer, RMS and batch norms; PRelu and the other activations. All other
    nodes are left out. Graphs inside nodes, such as the body of a loop, are searched too.

    Parameters
    ----------
    path : path or onnx.ModelProto
        The file, or a model in memory.

    Returns
    -------
    dict of str to Layer
        The layers in the order of the nodes. A node without a name has that of its first output.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged, or if a recurrent node has what gradcore has not: clip, peepholes, other activations,
        `input_forget`, `linear_before_reset=0`, or weights that are not constant. The message names the node.

    See Also
    --------
    load : Read a whole model.

    Notes
    -----
    A recurrent layer is of one level. A state of it is (D, B, H), and its y (T, B, D*H), where the node's Y is
    (T, D, B, H). With ``layout=1`` it has `batch_first`. One of a node with ``direction="reverse"`` is bidirectional,
    and all weights of its forward direction are zero: the node's outputs are ``y[..., H:]``.

    Examples
    --------
    >>> import gradcore, gradcore.onnx
    >>> proto = gradcore.onnx.export(gradcore.Sequential(gradcore.LSTM(3, 8, num_layers=2), gradcore.LastStep()))
    >>> gradcore.onnx.layers(proto)
    {'/0.LSTM_l0': LSTM(3, 8), '/0.LSTM_l1': LSTM(8, 8)}
    """
    with reading(path) as proto:
        inlined = _inlined(proto)
        found: dict[str, Layer] = {}
        _collect(inlined.graph, {}, opset_of(inlined), found)
        return found


def _inlined(proto: ModelProto) -> ModelProto:
    return inliner.inline_local_functions(proto) if proto.functions else proto


# ---- files of our own ------------------------------------------------------------------------------------------------


def _as_written(proto: ModelProto) -> Layer | None:
    """Return the model that `export` wrote as exactly this graph, or None."""
    described = next((entry.value for entry in proto.metadata_props if entry.key == PLAN), None)
    if described is None:
        return None
    try:
        model = plan.build(described)
        plan.fill(model, {tensor.name: array_of(tensor) for tensor in proto.graph.initializer})
        again = proto_of(model)
    except (*DAMAGE, MemoryError):
        return None  # changed since: the graph itself is what counts
    return model if again.graph == proto.graph and again.opset_import == proto.opset_import else None


# ---- single nodes ----------------------------------------------------------------------------------------------------


def _collect(graph: Any, outer: dict[str, Any], opset: int, found: dict[str, Layer]) -> None:
    """Add the layers of a graph, and of those inside its nodes."""
    known = outer | {tensor.name: tensor for tensor in graph.initializer}  # arrays, or tensors not yet looked at

    def value(name: str) -> Array | None:
        if isinstance(known.get(name), TensorProto):
            known[name] = array_of(known[name])
        return known.get(name)

    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                _collect(inner, known, opset, found)
        if not is_standard(node):
            continue
        if node.op_type in CONSTANT and all(name in known or not name for name in node.input):
            with suppress(Refusal):  # it may be none of a weight
                made = constant(node, [value(name) for name in node.input], opset)
                known |= {name: array for name, array in zip(node.output, made, strict=False) if name}
            continue
        if node.op_type not in parts.KNOWN:
            continue
        try:
            layer = parts.layer_of(node.op_type, attributes(node), [value(name) for name in node.input], np.float32)
        except (*DAMAGE, MemoryError) as error:
            raise Refusal(f"{tag(node)}: {error}") from None
        if layer is not None:
            if isinstance(layer, Linear) and node.op_type == "MatMul":
                layer = _with_bias(graph, node, layer, value)
            name = name_of(node)
            found[next(output for output in node.output if output) if name in found else name] = layer


def _with_bias(graph: Any, node: Any, layer: Linear, value: Callable[[str], Array | None]) -> Linear:
    """Return the layer with the constant that is added to it, if nothing else is done with its output."""
    output = node.output[0]
    users = [user for user in graph.node if output in user.input]
    if len(users) != 1 or users[0].op_type != "Add" or any(output == value.name for value in graph.output):
        return layer
    bias = next((value(name) for name in users[0].input if name != output), None)
    if bias is None or not parts.fits(bias, layer.out_features):
        return layer
    return parts.linear(layer.params["weight"], bias.astype(layer.dtype))
