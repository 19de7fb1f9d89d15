"""What a file says of the model that it was written from, so that the same model can be built again."""

from __future__ import annotations

import json
import warnings
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

from gradcore._base.check import Array
from gradcore.layers import activations
from gradcore.layers.attention import MultiheadAttention
from gradcore.layers.composite import Composite
from gradcore.layers.dropout import Dropout
from gradcore.layers.embedding import Embedding
from gradcore.layers.layer import Layer
from gradcore.layers.linear import Linear
from gradcore.layers.normalization import BatchNorm, LayerNorm, RMSNorm
from gradcore.layers.pooling import FinalState, LastStep, MeanPool
from gradcore.layers.prelu import PReLU
from gradcore.layers.recurrent import GRU, LSTM, RNN
from gradcore.layers.residual import Residual
from gradcore.layers.sequential import MLP, Sequential
from gradcore.layers.stack import Recurrent
from gradcore.layers.transformer import TransformerEncoderLayer
from gradcore.onnx import cells

__all__: list[str] = []  # for the package only

_CHAINS = (Sequential, Residual)
_CLASSES: dict[str, type[Layer]] = {
    cls.__name__: cls
    for cls in (
        *activations._ACTIVATIONS.values(), *_CHAINS, MLP, RNN, LSTM, GRU, Linear, PReLU, Dropout, Embedding,
        LayerNorm, RMSNorm, BatchNorm, FinalState, LastStep, MeanPool, MultiheadAttention, TransformerEncoderLayer,
    )
}  # fmt: skip


def is_known(layer: Any) -> bool:
    """Return whether files can hold a layer of this very class; a subclass may compute something else."""
    return _CLASSES.get(type(layer).__name__) is type(layer)


def text_of(model: Layer) -> str:
    """Return the model's classes and arguments as JSON, after a checksum."""
    text = json.dumps(_described(model))
    return f"{_checksum(text)} {text}"


def _checksum(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"


def _described(layer: Layer) -> dict[str, Any]:
    config = layer.config()
    if type(layer) in _CHAINS:
        return config | {"class": type(layer).__name__, "layers": [_described(member) for member in config["layers"]]}
    return config | {"class": type(layer).__name__}


def build(text: str, *, dtype: str | None = None) -> Layer:
    """Return a model as `text_of` has it, maybe of another dtype."""
    checksum, _, described = text.partition(" ")
    if checksum != _checksum(described):  # before a wrong number takes all memory
        raise ValueError("the description of the model is damaged")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of dropout without effect, which the model had already
        return _built(json.loads(described), {} if dtype is None else {"dtype": dtype})


def _built(description: dict[str, Any], changes: dict[str, Any]) -> Layer:
    config = description | {name: value for name, value in changes.items() if name in description}
    cls: Any = _CLASSES[config.pop("class")]
    if cls in _CHAINS:
        layer: Layer = cls(*[_built(member, changes) for member in config.pop("layers")], **config)
    else:
        layer = cls(**config)
    return layer


def leaves(layer: Layer, prefix: str = "") -> Iterator[tuple[str, Layer]]:
    """Yield the layers that are not made of others, each with what precedes the names of its parameters."""
    if isinstance(layer, Composite):
        for name, member in zip(layer.names, layer.layers, strict=True):
            yield from leaves(member, f"{prefix}{name}.")
    else:
        yield prefix, layer


def constants(layer: Layer, prefix: str) -> dict[str, Array]:
    """Return what a file holds of a layer that is not made of others, by the names in the file."""
    if isinstance(layer, Recurrent):
        return {
            f"{prefix}{name}_l{level}": array
            for level in range(layer.num_layers)
            for name, array in cells.packed(layer, level).items()
        }
    return {f"{prefix}{name}": array for name, array in (layer.params | layer.buffers).items() if array.ndim}


def fill(model: Layer, arrays: Mapping[str, Array]) -> None:
    """Copy the constants of a file into a model."""
    for prefix, layer in leaves(model):
        if isinstance(layer, Recurrent):
            for level in range(layer.num_layers):
                wanted = ("W", "R", "B")[: 2 + layer.bias]
                cells.unpack(layer, level, {name: arrays[f"{prefix}{name}_l{level}"] for name in wanted})
            continue
        for views in (layer.params, layer.buffers):
            for name in views:
                if f"{prefix}{name}" in arrays:
                    views[name] = arrays[f"{prefix}{name}"]
