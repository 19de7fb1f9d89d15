"""What layer stands for a single ONNX node, given its attributes and constant inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gradcore._base.check import Array
from gradcore.layers import activations
from gradcore.layers.embedding import Embedding
from gradcore.layers.layer import Layer
from gradcore.layers.linear import Linear
from gradcore.layers.normalization import BatchNorm, LayerNorm, RMSNorm
from gradcore.layers.prelu import PReLU
from gradcore.onnx import cells

__all__: list[str] = []  # for the package only

Attributes = dict[str, Any]
Inputs = Sequence[Array | None]  # None for one that is left out, and for one that is not constant


def number(value: Any) -> float:
    """Return the shortest decimal of an attribute, which is a float32: 1e-05 for 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def layer_of(op: str, given: Attributes, inputs: Inputs, dtype: Any) -> Layer | None:
    """Return the layer that a node stands for; None if there is none. A ValueError says why a cell has none."""
    if op in cells.RECURRENT:
        return _recurrent(op, given, inputs)
    if op in _ACTIVATIONS:
        return _ACTIVATIONS[op](given, dtype)
    return _WITH_PARAMETERS[op](given, inputs) if op in _WITH_PARAMETERS else None


def _recurrent(op: str, given: Attributes, inputs: Inputs) -> Layer:
    names = dict(zip(cells.INPUTS, inputs[1:], strict=False))
    arrays = {name: array for name, array in names.items() if array is not None and name in ("W", "R", "B", "P")}
    for name in ("W", "R"):
        if name not in arrays:
            raise ValueError(f"{name} is not a constant")
    return cells.layer_of(op, given, arrays)


def _plain(cls: Callable[..., Layer], **names: str) -> Callable[[Attributes, Any], Layer]:
    """Return a maker of layers that take attributes of these names under others."""

    def make(given: Attributes, dtype: Any) -> Layer:
        return cls(**{ours: number(given[theirs]) for ours, theirs in names.items() if theirs in given}, dtype=dtype)

    return make


def _selu(given: Attributes, dtype: Any) -> Layer | None:
    alpha, scale = activations.SELU._constants
    usual = all(np.float32(given.get(name, c)) == np.float32(c) for name, c in (("alpha", alpha), ("gamma", scale)))
    return activations.SELU(dtype=dtype) if usual else None


def _gelu(given: Attributes, dtype: Any) -> Layer:
    return activations.GELU(cells.text(given.get("approximate", "none")), dtype=dtype)


_ACTIVATIONS: dict[str, Callable[[Attributes, Any], Layer | None]] = {
    "Tanh": _plain(activations.Tanh),
    "Sigmoid": _plain(activations.Sigmoid),
    "Relu": _plain(activations.ReLU),
    "LeakyRelu": _plain(activations.LeakyReLU, negative_slope="alpha"),
    "Elu": _plain(activations.ELU, alpha="alpha"),
    "Selu": _selu,
    "Gelu": _gelu,
    "Softplus": lambda given, dtype: activations.Softplus(threshold=np.inf, dtype=dtype),
}


def linear(weight: Array, bias: Array | None = None) -> Linear:
    """Return the layer of a weight (out, in) and a bias that fits after broadcasting."""
    layer = Linear(weight.shape[1], weight.shape[0], bias is not None, dtype=weight.dtype, rng=0)
    layer.params["weight"] = weight
    if bias is not None:
        layer.params["bias"] = np.broadcast_to(bias.reshape(-1), weight.shape[:1])
    return layer


def _gemm(given: Attributes, inputs: Inputs) -> Layer | None:
    _, weight, bias, *_ = (*inputs, None)
    if weight is None or weight.ndim != 2 or given.get("transA", 0) or (bias is None and len(inputs) > 2):
        return None
    weight = weight if given.get("transB", 0) else weight.T
    if bias is not None and not fits(bias, weight.shape[0]):
        return None
    alpha, beta = (weight.dtype.type(given.get(name, 1)) for name in ("alpha", "beta"))
    return linear(weight * alpha, None if bias is None else bias * beta)


def fits(bias: Array, n: int) -> bool:
    """Whether an array can be added to the last axis, of size n, of an array and leave its shape."""
    return bias.size in (1, n) and bias.shape[-1:] in ((), (1,), (n,))


def _matmul(given: Attributes, inputs: Inputs) -> Layer | None:
    weight = inputs[1]
    return linear(weight.T) if weight is not None and weight.ndim == 2 else None


def _prelu(given: Attributes, inputs: Inputs) -> Layer | None:
    slope = inputs[1]
    if slope is None or (slope.size not in slope.shape and slope.size != 1):
        return None
    layer = PReLU(slope.size, dtype=slope.dtype)
    layer.params["weight"] = slope.reshape(-1)
    return layer


def _layer_norm(given: Attributes, inputs: Inputs) -> Layer | None:
    _, weight, bias, *_ = (*inputs, None)
    if weight is None or (bias is None and len(inputs) > 2):
        return None
    layer = LayerNorm(weight.shape, number(given.get("epsilon", 1e-5)), bias=bias is not None, dtype=weight.dtype)
    if given.get("axis", -1) != -weight.ndim:
        return None
    layer.params["weight"] = weight
    if bias is not None:
        layer.params["bias"] = np.broadcast_to(bias, weight.shape)
    return layer


def _rms_norm(given: Attributes, inputs: Inputs) -> Layer | None:
    weight = inputs[1]
    if weight is None or given.get("axis", -1) != -weight.ndim:
        return None
    layer = RMSNorm(weight.shape, number(given.get("epsilon", 1e-5)), dtype=weight.dtype)
    layer.params["weight"] = weight
    return layer


def _batch_norm(given: Attributes, inputs: Inputs) -> Layer | None:
    weight, bias, mean, var = inputs[1:5]
    if weight is None or bias is None or mean is None or var is None or given.get("training_mode", 0):
        return None
    layer = BatchNorm(weight.size, number(given.get("epsilon", 1e-5)), dtype=weight.dtype)
    layer.params["weight"], layer.params["bias"] = weight, bias
    layer.buffers["running_mean"], layer.buffers["running_var"] = mean, var
    return layer


def _embedding(given: Attributes, inputs: Inputs) -> Layer | None:
    table = inputs[0]
    constant = table is None or inputs[1] is not None or table.ndim != 2 or table.dtype.kind != "f"
    if constant or given.get("axis", 0):
        return None
    assert table is not None
    layer = Embedding(*table.shape, dtype=table.dtype, rng=0)
    layer.params["weight"] = table
    return layer


_WITH_PARAMETERS: dict[str, Callable[[Attributes, Inputs], Layer | None]] = {
    "Gemm": _gemm,
    "MatMul": _matmul,
    "PRelu": _prelu,
    "LayerNormalization": _layer_norm,
    "RMSNormalization": _rms_norm,
    "BatchNormalization": _batch_norm,
    "Gather": _embedding,
}

KNOWN = frozenset({*cells.RECURRENT, *_ACTIVATIONS, *_WITH_PARAMETERS})
