"""Read ONNX files and the numbers in them, without looking at anything but the file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from onnx import ModelProto, TensorProto, helper, numpy_helper

from gradcore._base.check import Array, check_path
from gradcore._base.files import DAMAGE

__all__: list[str] = []  # for the package only


class Refusal(ValueError):
    """What a file holds that gradcore cannot represent."""


@contextmanager
def reading(source: Any) -> Iterator[ModelProto]:
    """Give the model of a file, or one that is in memory already; name the file in errors."""
    if isinstance(source, ModelProto):
        label, proto = "model", source
    else:
        label = check_path("path", source)
        proto = _parsed(label)
    try:
        if not proto.graph.output:
            raise Refusal("not an ONNX model: it has no outputs")
        yield proto
    except Refusal as refusal:
        raise ValueError(f"{label}: {refusal}") from None
    except (*DAMAGE, MemoryError) as error:
        raise ValueError(f"{label}: a damaged ONNX file: {error}") from error


def _parsed(path: str) -> ModelProto:
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size >= 2**31:
            raise ValueError(f"{path}: expected less than 2 GB, which is the most that an ONNX file can hold")
        data = file.read()
    proto = ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise ValueError(f"{path}: not an ONNX file: {error}") from None
    return proto


def array_of(tensor: TensorProto) -> Array:
    """Return a tensor of the file; float16 and bfloat16 exactly, as float32."""
    if tensor.data_location == TensorProto.EXTERNAL:
        raise Refusal(
            f"{tensor.name}: its numbers are in another file; pass what onnx.load returns, or save that as one file"
        )
    if tensor.data_type in (TensorProto.FLOAT16, TensorProto.BFLOAT16):
        return np.asarray(numpy_helper.to_array(tensor)).astype(np.float32)
    return np.asarray(numpy_helper.to_array(tensor))


def attributes(node: Any) -> dict[str, Any]:
    """Return the attributes of a node by name."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def name_of(node: Any) -> str:
    """Return what errors call a node: its name, or that of its first output."""
    return str(node.name or next((name for name in node.output if name), node.op_type))


def tag(node: Any) -> str:
    """Return the name of a node and its kind."""
    return f"{name_of(node)} ({node.op_type})"


def is_standard(node: Any) -> bool:
    """Return whether a node is of ONNX's own operators."""
    return node.domain in ("", "ai.onnx")


def opset_of(proto: ModelProto) -> int:
    """Return the version of ONNX's own operators."""
    return max((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), default=1)
