"""What the tests of gradcore.onnx share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import gradcore
from gradcore.layers.layer import Layer

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def arrays_of(state: Any) -> list[np.ndarray]:
    """The parts of the states of a layer or model, in order."""
    return [state] if isinstance(state, np.ndarray) else [array for part in state or () for array in arrays_of(part)]


def random_state(state: Any, rng: np.random.Generator) -> Any:
    """A state like this one."""
    if isinstance(state, np.ndarray):
        return rng.standard_normal(state.shape).astype(state.dtype)
    return tuple(random_state(part, rng) for part in state)


def session(proto: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(proto: onnx.ModelProto, feeds: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The outputs in onnxruntime for inputs in order."""
    runs = session(proto)
    return list(runs.run(None, dict(zip([value.name for value in runs.get_inputs()], feeds, strict=True))))


def check_against_onnxruntime(
    model: Layer, proto: onnx.ModelProto, x: np.ndarray, lengths: Any = None, state: Any = None
) -> None:
    """The same shapes, dtypes and values, to 1e-5 of the largest (1e-12 in float64)."""
    options = {} if lengths is None else {"lengths": lengths}
    feeds = [x, *([np.asarray(lengths, np.int64)] if options else []), *arrays_of(state)]
    y, final = (*(model(x, state=state, **options) if state is not None else (model(x, **options),)), None)[:2]
    want = [y, *arrays_of(final)]
    for a, b in zip(run(proto, feeds), want, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        tolerance = 1e-5 if b.dtype == np.float32 else 1e-12
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1, np.nan_to_num(np.abs(b)).max(initial=0)))


def check_same_models(model: Layer, other: Layer) -> None:
    """The same classes, arguments and bits of every array that inference uses."""
    assert repr(other) == repr(model)
    theirs = other.state_dict()
    for name, array in model.state_dict().items():
        assert np.array_equal(theirs[name], array) or name.endswith("num_batches_tracked")


def without_plan(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that does not say which layers it was written from."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    del copy.metadata_props[:]
    return copy


def randomized(model: Layer, rng: np.random.Generator) -> Layer:
    """The model, with gains, biases and statistics that are not those of the start."""
    model.flat_params[...] += 0.2 * rng.standard_normal(model.flat_params.shape)
    for array in model.buffers.values():
        if array.ndim:
            array[...] = rng.uniform(0.5, 2, array.shape)
    return model


def chain(*layers: Layer) -> gradcore.Sequential:
    return gradcore.Sequential(*layers)
