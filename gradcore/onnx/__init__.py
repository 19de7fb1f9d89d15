"""ONNX files: write models for other runtimes, and read recurrent layers and whole models back."""

from __future__ import annotations

try:
    import onnx as _onnx  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "onnx":
        raise
    raise ModuleNotFoundError('gradcore.onnx needs onnx: pip install "gradcore[onnx]"', name="onnx") from None

from gradcore.onnx.read import layers, load
from gradcore.onnx.write import export

__all__ = ["export", "layers", "load"]
