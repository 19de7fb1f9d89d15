"""Recurrent layers as ONNX nodes: the order of gates, the packing of weights, and what has no counterpart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gradcore._base.check import Array
from gradcore.layers.recurrent import GRU, LSTM, RNN
from gradcore.layers.stack import Recurrent

__all__: list[str] = []  # for the package only

# For each block of rows of an ONNX weight, its place among PyTorch's: i, o, f, c of i, f, g, o; z, r, h of r, z, n.
_ORDER = {"RNN": (0,), "LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2)}
_LAYERS = {"RNN": RNN, "LSTM": LSTM, "GRU": GRU}
_ACTIVATIONS = {"LSTM": ("sigmoid", "tanh", "tanh"), "GRU": ("sigmoid", "tanh")}

# The inputs of the nodes after X, and their outputs.
INPUTS = ("W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
OUTPUTS = ("Y", "Y_h", "Y_c")
RECURRENT = frozenset(_ORDER)


def attributes(layer: Recurrent) -> dict[str, Any]:
    """Return the attributes of the nodes of a layer."""
    found: dict[str, Any] = {
        "hidden_size": layer.hidden_size,
        "direction": "bidirectional" if layer.bidirectional else "forward",
    }
    if isinstance(layer, RNN):
        found["activations"] = [layer.nonlinearity.capitalize()] * layer.num_directions
    if isinstance(layer, GRU):
        found["linear_before_reset"] = 1
    return found


def packed(layer: Recurrent, level: int) -> dict[str, Array]:
    """Return W (D, G*H, I), R (D, G*H, H) and, with biases, B (D, 2*G*H) of one of the stacked layers."""
    order = _ORDER[layer.cell.layer]
    directions = [f"l{level}", f"l{level}_reverse"][: layer.num_directions]

    def of(name: str) -> Array:
        return np.stack([_reordered(layer.params[f"{name}_{suffix}"], order) for suffix in directions])

    found = {"W": of("weight_ih"), "R": of("weight_hh")}
    return found | ({"B": np.concatenate([of("bias_ih"), of("bias_hh")], axis=1)} if layer.bias else {})


def unpack(layer: Recurrent, level: int, arrays: Mapping[str, Array]) -> None:
    """Copy what `packed` returned into a layer."""
    back = tuple(int(i) for i in np.argsort(_ORDER[layer.cell.layer]))
    GH = len(back) * layer.hidden_size
    for d, suffix in enumerate([f"l{level}", f"l{level}_reverse"][: layer.num_directions]):
        layer.params[f"weight_ih_{suffix}"] = _reordered(arrays["W"][d], back)
        layer.params[f"weight_hh_{suffix}"] = _reordered(arrays["R"][d], back)
        if layer.bias:
            layer.params[f"bias_ih_{suffix}"] = _reordered(arrays["B"][d, :GH], back)
            layer.params[f"bias_hh_{suffix}"] = _reordered(arrays["B"][d, GH:], back)


def _reordered(array: Array, order: Sequence[int]) -> Array:
    """Return the blocks of rows in another order."""
    return np.concatenate([np.split(array, len(order))[i] for i in order])


def layer_of(op: str, given: Mapping[str, Any], arrays: Mapping[str, Array]) -> Recurrent:
    """Return the layer of a node with these attributes and weights; a ValueError says what it cannot represent.

    A layer of a node that reads in reverse only has both directions, the forward one silent: all of its weights are
    zero.
    """
    direction = text(given.get("direction", "forward"))
    if direction not in ("forward", "reverse", "bidirectional"):
        raise ValueError(f"expected a direction forward, reverse or bidirectional, got {direction!r}")
    D = 2 if direction == "bidirectional" else 1
    nonlinearity = _nonlinearity(op, [text(name).lower() for name in given.get("activations", ())], D)
    for name in ("clip", "P"):
        if name in given or name in arrays:
            raise ValueError(f"{ {'clip': 'clip', 'P': 'peepholes'}[name] } cannot be represented")
    if given.get("input_forget", 0):
        raise ValueError("input_forget=1 cannot be represented")
    if op == "GRU" and not given.get("linear_before_reset", 0):
        raise ValueError("linear_before_reset=0 cannot be represented: it resets before the recurrent product")
    W, R = arrays["W"], arrays["R"]
    G, H = len(_ORDER[op]), R.shape[-1] if R.ndim else 0
    if given.get("hidden_size", H) != H:
        raise ValueError(f"hidden_size={given['hidden_size']} does not fit R of shape {R.shape}")
    I = W.shape[-1] if W.ndim else 0
    expected = {"W": (D, G * H, I), "R": (D, G * H, H), "B": (D, 2 * G * H)}
    for name, array in arrays.items():
        if array.shape != expected[name]:
            raise ValueError(f"{name}: expected shape {expected[name]}, got {array.shape}")
    options: dict[str, Any] = {"nonlinearity": nonlinearity} if op == "RNN" else {}
    layer: Recurrent = _LAYERS[op](
        I, H,
        bias="B" in arrays, batch_first=bool(given.get("layout", 0)), bidirectional=direction != "forward",
        dtype=W.dtype, rng=0, **options,
    )  # fmt: skip
    if direction == "reverse":
        arrays = {name: np.concatenate([np.zeros_like(array), array]) for name, array in arrays.items()}
    unpack(layer, 0, arrays)
    return layer


def _nonlinearity(op: str, names: list[str], D: int) -> str:
    """Return the activation of an RNN, after a check that the cell has the usual ones."""
    if op == "RNN":
        first = names[0] if names else "tanh"
        if first in ("tanh", "relu") and (not names or names == [first] * D):
            return first
    elif not names or tuple(names) == _ACTIVATIONS[op] * D:
        return "tanh"
    raise ValueError(f"activations {', '.join(names)} cannot be represented")


def text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def stacked(layers: Sequence[Recurrent]) -> Recurrent:
    """Return one layer of several levels for layers of one level each."""
    first = layers[0]
    if len(layers) == 1:
        return first
    whole = type(first)(**first.config() | {"num_layers": len(layers)}, rng=0)
    for level, layer in enumerate(layers):
        for name, array in layer.params.items():
            whole.params[name.replace("_l0", f"_l{level}")] = array
    return whole


def stack_up(below: Recurrent, above: Recurrent) -> bool:
    """Return whether two layers of one level each can be levels of one layer."""
    same = below.config() | {"input_size": above.input_size} == above.config()
    return same and above.input_size == below.num_directions * below.hidden_size
