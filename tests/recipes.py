"""Good calls of every public function, and ways to spoil them: for malformed calls, leaks, threads and the fuzzer."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tools import Array, read_only, unaligned

import gradcore
from gradcore import claims, data, init, losses, meanfield, monitor, optim, schedule, spectral, threshold
from gradcore.diagnosis import figures

SEED = 20
ALLOWED = (TypeError, ValueError, IndexError, KeyError, MemoryError)


# ---- what replaces a good value --------------------------------------------------------------------------------------


class Plain:
    """Not a number, not an array, not anything."""


class Sub(np.ndarray):
    """A subclass that changes nothing."""


class BadArray:
    """Says that it is an array, and fails when asked for it."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> Array:
        raise RuntimeError("no array after all")


class BadIterable:
    def __iter__(self) -> Iterator[Any]:
        raise RuntimeError("no members after all")


def released() -> memoryview:
    view = memoryview(bytearray(16))
    view.release()
    return view


def huge(a: Array, n: int) -> Array:
    """n, or as many as NumPy lets there be, along the first axis, all of them one element in memory."""
    rest = a.shape[1:]
    n = min(n, sys.maxsize // (a.itemsize * math.prod(max(k, 1) for k in rest)))
    return np.lib.stride_tricks.as_strided(np.zeros(1, a.dtype), (n, *rest), [0] * (1 + len(rest)), writeable=False)


def empty_huge(a: Array, n: int) -> Array:
    """An array without elements whose other axes are large: nothing is stored, but what is made of it may be."""
    if a.ndim < 2:
        return np.zeros((0,), a.dtype)
    return huge(a[:, :0], n)


def largest(dtype: np.dtype[Any]) -> Any:
    if dtype.kind == "b":
        return True
    return np.finfo(dtype).max if dtype.kind == "f" else np.iinfo(dtype).max


def zero_stride(a: Array) -> Array:
    """Writable, with all elements in one place."""
    return np.lib.stride_tricks.as_strided(np.ones(1, a.dtype), a.shape, (0,) * a.ndim)


def sliding(a: Array) -> Array:
    """Writable, with neighbors in each other's memory."""
    raw = np.ones(sum(a.shape) + 1, a.dtype)
    return np.lib.stride_tricks.as_strided(raw, a.shape, (a.itemsize,) * a.ndim)


# Equal to the good array in all but how it lies in memory: the result is that of the good call.
SAME_VALUE: dict[str, Callable[[Array], Any]] = {
    "read-only": read_only,
    "unaligned": unaligned,
    "negative stride": lambda a: np.flip(np.flip(a).copy()),
    "every second": lambda a: np.repeat(a, 2, axis=-1)[..., ::2] if a.ndim else a.copy(),
    "Fortran": np.asfortranarray,
    "subclass": lambda a: a.copy().view(Sub),
    "copy": lambda a: a.copy(),
}
OF_ARRAYS: dict[str, Callable[[Array], Any]] = SAME_VALUE | {
    "foreign byte order": lambda a: a.astype(a.dtype.newbyteorder("S")),
    "float16": lambda a: a.astype(np.float16),
    "longdouble": lambda a: a.astype(np.longdouble),
    "complex": lambda a: a.astype(np.complex64),
    "object dtype": lambda a: a.astype(object),
    "text": lambda a: a.astype("U8"),
    "bools": lambda a: a.astype(bool),
    "integers": lambda a: a.astype(np.int32),
    "dates": lambda a: np.zeros(a.shape, "M8[s]"),
    "records": lambda a: np.zeros(a.shape, [("x", a.dtype)]),
    "0-d": lambda a: np.array(1, a.dtype),
    "one axis more": lambda a: a[None],
    "one axis less": lambda a: a[0] if a.ndim and len(a) else a[..., None],
    "one longer": lambda a: np.concatenate([a, a[:1]]) if a.ndim else a[None],
    "one shorter": lambda a: a[1:] if a.ndim else a[None],
    "empty": lambda a: a[:0] if a.ndim else a[None][:0],
    "transposed": lambda a: a.T.copy(),
    "flat": lambda a: a.reshape(-1),
    "list": lambda a: a.tolist(),
    "ragged": lambda a: [[1.0], [1.0, 2.0]],
    "masked": lambda a: np.ma.masked_array(a.copy(), mask=np.ones(a.shape, bool)),
    "stride 0": zero_stride,
    "sliding": sliding,
    "2**40 long": lambda a: huge(a, 2**40),
    "2**62 long": lambda a: huge(a, 2**62),
    "2**40 of nothing": lambda a: empty_huge(a, 2**40),
    "2**62 of nothing": lambda a: empty_huge(a, 2**62),
    "NaN": lambda a: np.full(a.shape, np.nan if a.dtype.kind == "f" else 0, a.dtype),
    "Inf": lambda a: np.full(a.shape, np.inf if a.dtype.kind == "f" else 0, a.dtype),
    "largest": lambda a: np.full(a.shape, largest(a.dtype), a.dtype),
    "bytes": lambda a: a.tobytes(),
    "matrix": lambda a: a.copy().view(np.matrix) if a.ndim == 2 else Plain(),
}
OF_NUMBERS: dict[str, Callable[[Any], Any]] = {
    "NaN": lambda _: float("nan"),
    "Inf": lambda _: float("inf"),
    "-Inf": lambda _: -float("inf"),
    "-1": lambda _: -1,
    "0": lambda _: 0,
    "1.5": lambda _: 1.5,
    "2**40": lambda _: 2**40,
    "2**62": lambda _: 2**62,
    "2**64": lambda _: 2**64,
    "10**400": lambda _: 10**400,
    "1e300": lambda _: 1e300,
    "1e-320": lambda _: 1e-320,
    "number as text": str,
    "complex number": lambda _: 1 + 1j,
    "NumPy's complex": lambda _: np.complex64(1 + 1j),
    "0-d array": np.array,
    "array of one": lambda v: np.array([v]),
    "array of three": lambda v: np.array([v] * 3),
    "masked": lambda _: np.ma.masked,
    "NumPy scalar": lambda v: np.asarray(v)[()],
    "float16": lambda _: np.float16(0.5),
    "True": lambda _: True,
    "date": lambda _: np.datetime64(3, "s"),
    "list of it": lambda v: [v],
}
OF_TEXT: dict[str, Callable[[Any], Any]] = {
    "unknown": lambda _: "unknown",
    "empty text": lambda _: "",
    "text with a zero": lambda v: f"{v}\0",
    "as bytes": lambda v: str(v).encode(),
    "array of text": lambda v: np.array([v, v]),
    "list of it": lambda v: [v],
}
OF_MAPPINGS: dict[str, Callable[[Any], Any]] = {
    "without a name": lambda d: dict(list(d.items())[1:]),
    "with a name more": lambda d: d | {"unknown": 1},
    "with a number as name": lambda d: d | {3: 1, None: 1, "unknown": 1},
    "as list of values": lambda d: list(d.values()),
    "as list of names": list,
    "empty dict": lambda _: {},
}
OF_ALL: dict[str, Callable[[Any], Any]] = {
    "None": lambda _: None,
    "object": lambda _: Plain(),
    "a type": lambda _: np.ndarray,
    "empty list": lambda _: [],
    "empty tuple": lambda _: (),
    "list of None": lambda _: [None],
    "dict of None": lambda _: {"a": None},
    "text": lambda _: "text",
    "set": lambda _: {1, 2},
    "function": lambda _: abs,
    "generator": lambda _: iter([1, 2]),
    "fails as array": lambda _: BadArray(),
    "fails as iterable": lambda _: BadIterable(),
    "released buffer": lambda _: released(),
    "array of objects": lambda _: np.array([None, Plain()], object),
    "array of three": lambda _: np.ones(3, np.float32),
    "0-d array": lambda _: np.array(1.0),
    "masked array": lambda _: np.ma.masked_array([1.0, 2.0], [True, False]),
    "a number": lambda _: 3.5,
    "another layer": lambda _: gradcore.Linear(2, 2, rng=np.random.default_rng(0)),
}


def makers_for(value: Any) -> dict[str, Callable[[Any], Any]]:
    """What may replace this value."""
    if isinstance(value, np.ndarray):
        return OF_ALL | OF_ARRAYS
    if isinstance(value, (int, float, np.number)):
        return OF_ALL | OF_NUMBERS
    if isinstance(value, str):
        return OF_ALL | OF_TEXT
    if isinstance(value, Mapping):
        return OF_ALL | OF_MAPPINGS
    return OF_ALL


# ---- the public API, with good arguments -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """How to call one function.

    `make(rng)` gives the callable and its arguments by name, of which the first `by_position` are handed in by
    position. Arguments in `changed` are changed in place by a successful call. `alias` says by which other name an
    argument goes in messages.
    """

    name: str
    make: Callable[[np.random.Generator], tuple[Callable[..., Any], dict[str, Any]]]
    changed: tuple[str, ...] = ()
    alias: tuple[tuple[str, str], ...] = ()
    by_position: int = 0


RECIPES: list[Recipe] = []
ENDLESS = {("monitor.GradientMonitor.update", "y")}  # 2**60 entries in one place: right, but only after years


def recipe(name: str, *, changed: str = "", by_position: int = 0, **alias: str) -> Callable[[Any], Any]:
    def add(make: Any) -> Any:
        RECIPES.append(Recipe(name, make, tuple(changed.split()), tuple(alias.items()), by_position))
        return make

    return add


def seeded() -> np.random.Generator:
    return np.random.default_rng(3)


def floats(rng: np.random.Generator, *shape: int, dtype: Any = np.float32) -> Array:
    return rng.standard_normal(shape).astype(dtype)


T, B, I, H = 4, 3, 2, 5
CELLS = {"RNN": gradcore.RNN, "LSTM": gradcore.LSTM, "GRU": gradcore.GRU}


def _recurrent(cell: str) -> None:
    build = CELLS[cell]
    extra = {"nonlinearity": "tanh"} if cell == "RNN" else {}
    two = cell == "LSTM"

    def layer() -> Any:
        return build(I, H, 2, bidirectional=True, rng=seeded())

    def state(rng: np.random.Generator) -> Any:
        parts = tuple(floats(rng, 4, B, H) for _ in range(1 + two))
        return parts if two else parts[0]

    @recipe(cell)
    def _(rng: np.random.Generator) -> Any:
        options = {"num_layers": 2, "bias": True, "batch_first": False, "dropout": 0.5, "bidirectional": True}
        return build, {"input_size": I, "hidden_size": H, **options, "dtype": "float32", "rng": seeded(), **extra}

    @recipe(f"{cell}()")
    def _(rng: np.random.Generator) -> Any:
        options = {"state": state(rng), "lengths": [4, 2, 0], "reset": rng.random((T, B)) < 0.5}
        return layer().__call__, {"x": floats(rng, T, B, I), **options}

    @recipe(f"{cell}.forward")
    def _(rng: np.random.Generator) -> Any:
        options = {"state": state(rng), "lengths": np.array([4, 2, 0]), "reset": rng.random((T, B)) < 0.5}
        return layer().forward, {"x": floats(rng, T, B, I), **options}

    @recipe(f"{cell}.backward", changed="self tape")
    def _(rng: np.random.Generator) -> Any:
        made = layer()
        _, tape = made.forward(floats(rng, T, B, I))
        return made.backward, {
            "tape": tape,
            "dy": floats(rng, T, B, 2 * H),
            "dstate": state(rng),
            "step_clip": 1.0,
        }

    @recipe(f"{cell}.load_state_dict", changed="self")
    def _(rng: np.random.Generator) -> Any:
        made = build(I, H, rng=seeded())
        return made.load_state_dict, {"state_dict": build(I, H, rng=seeded()).state_dict()}

    @recipe(f"tape of {cell}: record")
    def _(rng: np.random.Generator) -> Any:
        return layer().forward(floats(rng, T, B, I))[1].record, {"index": 3, "t": 1, "b": 2}


for _cell in CELLS:
    _recurrent(_cell)


@recipe("Linear")
def _(rng: np.random.Generator) -> Any:
    return gradcore.Linear, {"in_features": 3, "out_features": 2, "bias": True, "dtype": np.float32, "rng": seeded()}


@recipe("Linear.forward")
def _(rng: np.random.Generator) -> Any:
    return gradcore.Linear(3, 2, rng=seeded()).forward, {"x": floats(rng, 4, 3)}


@recipe("Linear.forward without inputs")
def _(rng: np.random.Generator) -> Any:
    return gradcore.Linear(0, 2, rng=seeded()).forward, {"x": floats(rng, 4, 0)}


@recipe("Linear()")
def _(rng: np.random.Generator) -> Any:
    return gradcore.Linear(3, 2, rng=seeded()).__call__, {"x": floats(rng, 4, 3)}


@recipe("Linear.backward", changed="self tape")
def _(rng: np.random.Generator) -> Any:
    layer = gradcore.Linear(3, 2, rng=seeded())
    return layer.backward, {"tape": layer.forward(floats(rng, 4, 3))[1], "dy": floats(rng, 4, 2)}


@recipe("Linear.load_state_dict", changed="self")
def _(rng: np.random.Generator) -> Any:
    return gradcore.Linear(3, 2).load_state_dict, {"state_dict": gradcore.Linear(3, 2, rng=seeded()).state_dict()}


ACTIVATIONS: dict[str, dict[str, Any]] = {
    "Identity": {},
    "Tanh": {},
    "Sigmoid": {},
    "ReLU": {},
    "LeakyReLU": {"negative_slope": 0.1},
    "ELU": {"alpha": 1.0},
    "SELU": {},
    "GELU": {"approximate": "tanh"},
    "Softplus": {"beta": 1.0, "threshold": 20.0},
    "SiLU": {},
}


def _activation(name: str, options: dict[str, Any]) -> None:
    build = getattr(gradcore, name)

    @recipe(name)
    def _(rng: np.random.Generator) -> Any:
        return build, {**options, "dtype": "float64"}

    @recipe(f"{name}.forward")
    def _(rng: np.random.Generator) -> Any:
        return build(**options).forward, {"x": floats(rng, 4, 3)}

    @recipe(f"{name}.backward")
    def _(rng: np.random.Generator) -> Any:
        layer = build(**options)
        return layer.backward, {"tape": layer.forward(floats(rng, 4, 3))[1], "dy": floats(rng, 4, 3)}


for _name, _options in ACTIVATIONS.items():
    _activation(_name, _options)


@recipe("PReLU")
def _(rng: np.random.Generator) -> Any:
    return gradcore.PReLU, {"num_parameters": 3, "init": 0.1, "dtype": "float64"}


@recipe("PReLU.forward")
def _(rng: np.random.Generator) -> Any:
    return gradcore.PReLU(3).forward, {"x": floats(rng, 4, 3)}


@recipe("PReLU.backward", changed="self tape")
def _(rng: np.random.Generator) -> Any:
    layer = gradcore.PReLU(3)
    return layer.backward, {"tape": layer.forward(floats(rng, 4, 3))[1], "dy": floats(rng, 4, 3)}


@recipe("Dropout")
def _(rng: np.random.Generator) -> Any:
    return gradcore.Dropout, {"p": 0.5, "dtype": "float64", "rng": seeded()}


@recipe("Dropout()")
def _(rng: np.random.Generator) -> Any:
    return gradcore.Dropout(0.5, rng=seeded()).__call__, {"x": floats(rng, 4, 3)}


@recipe("Dropout.forward")
def _(rng: np.random.Generator) -> Any:
    return gradcore.Dropout(0.5, rng=seeded()).forward, {"x": floats(rng, 4, 3)}


@recipe("Dropout.backward")
def _(rng: np.random.Generator) -> Any:
    layer = gradcore.Dropout(0.5, rng=seeded())
    return layer.backward, {"tape": layer.forward(floats(rng, 4, 3))[1], "dy": floats(rng, 4, 3)}


@recipe("MultiheadAttention")
def _(rng: np.random.Generator) -> Any:
    given = {"bias": True, "causal": True, "dtype": np.float32, "rng": seeded()}
    return gradcore.MultiheadAttention, {"embed_dim": 6, "num_heads": 2, **given}


@recipe("MultiheadAttention()")
def _(rng: np.random.Generator) -> Any:
    given = {"x": floats(rng, T, B, 6), "lengths": [4, 2, 0]}
    return gradcore.MultiheadAttention(6, 2, rng=seeded()).__call__, given


@recipe("MultiheadAttention.forward")
def _(rng: np.random.Generator) -> Any:
    given = {"x": floats(rng, T, B, 6), "lengths": np.array([4, 2, 0])}
    return gradcore.MultiheadAttention(6, 2, causal=True, rng=seeded()).forward, given


@recipe("MultiheadAttention.backward", changed="self tape")
def _(rng: np.random.Generator) -> Any:
    layer = gradcore.MultiheadAttention(6, 2, rng=seeded())
    return layer.backward, {"tape": layer.forward(floats(rng, T, B, 6))[1], "dy": floats(rng, T, B, 6)}


@recipe("Embedding")
def _(rng: np.random.Generator) -> Any:
    return gradcore.Embedding, {
        "num_embeddings": 7, "embedding_dim": 3, "padding_idx": 2, "dtype": "float64", "rng": seeded(),
    }  # fmt: skip


@recipe("Embedding()")
def _(rng: np.random.Generator) -> Any:
    return gradcore.Embedding(7, 3, rng=seeded()).__call__, {"x": rng.integers(0, 7, (4, 3))}


@recipe("Embedding.forward")
def _(rng: np.random.Generator) -> Any:
    return gradcore.Embedding(7, 3, rng=seeded()).forward, {"x": rng.integers(0, 7, (4, 3))}


@recipe("Embedding.backward", changed="self tape")
def _(rng: np.random.Generator) -> Any:
    layer = gradcore.Embedding(7, 3, 2, rng=seeded())
    return layer.backward, {"tape": layer.forward(rng.integers(0, 7, 4))[1], "dy": floats(rng, 4, 3)}


@recipe("LayerNorm")
def _(rng: np.random.Generator) -> Any:
    options = {"eps": 1e-5, "elementwise_affine": True, "bias": True, "dtype": np.float32}
    return gradcore.LayerNorm, {"normalized_shape": (4, 3), **options}


@recipe("LayerNorm.load_state_dict", changed="self")
def _(rng: np.random.Generator) -> Any:
    return gradcore.LayerNorm(3).load_state_dict, {"state_dict": gradcore.LayerNorm(3).state_dict()}


@recipe("RMSNorm")
def _(rng: np.random.Generator) -> Any:
    return gradcore.RMSNorm, {"normalized_shape": 3, "eps": 1e-6, "elementwise_affine": True, "dtype": "float64"}


@recipe("BatchNorm")
def _(rng: np.random.Generator) -> Any:
    options = {"eps": 1e-5, "momentum": 0.1, "affine": True, "track_running_stats": True, "dtype": "float64"}
    return gradcore.BatchNorm, {"num_features": 3, **options}


@recipe("BatchNorm.load_state_dict", changed="self")
def _(rng: np.random.Generator) -> Any:
    return gradcore.BatchNorm(3).load_state_dict, {"state_dict": gradcore.BatchNorm(3).state_dict()}


@recipe("Residual", changed="first second", by_position=2, first="layers", second="layers")
def _(rng: np.random.Generator) -> Any:
    linear = gradcore.Linear(3, 3, rng=seeded())
    return gradcore.Residual, {"first": linear, "second": gradcore.Tanh(), "scale": 0.5, "dtype": "float32"}


BLOCKS: dict[str, Callable[[], Any]] = {
    "LayerNorm": lambda: gradcore.LayerNorm(3),
    "RMSNorm": lambda: gradcore.RMSNorm(3),
    "BatchNorm": lambda: gradcore.BatchNorm(3),
    "Residual": lambda: gradcore.Residual(gradcore.Linear(3, 3, rng=seeded()), gradcore.Tanh(), scale=0.5),
}


def _block(name: str, build: Callable[[], Any]) -> None:
    @recipe(f"{name}()")
    def _(rng: np.random.Generator) -> Any:
        return build().__call__, {"x": floats(rng, 4, 3)}

    @recipe(f"{name}.forward", changed="self")
    def _(rng: np.random.Generator) -> Any:
        return build().forward, {"x": floats(rng, 4, 3)}

    @recipe(f"{name}.backward", changed="self tape")
    def _(rng: np.random.Generator) -> Any:
        layer = build()
        return layer.backward, {"tape": layer.forward(floats(rng, 4, 3))[1], "dy": floats(rng, 4, 3)}


for _name, _build in BLOCKS.items():
    _block(_name, _build)


def encoder() -> Any:
    return gradcore.TransformerEncoderLayer(6, 2, 5, rng=seeded())


@recipe("TransformerEncoderLayer")
def _(rng: np.random.Generator) -> Any:
    given = {"dim_feedforward": 5, "dropout": 0.1, "activation": "gelu", "layer_norm_eps": 1e-5, "norm_first": True}
    given |= {"causal": True, "norm": "rms", "dtype": np.float32, "rng": seeded()}
    return gradcore.TransformerEncoderLayer, {"d_model": 6, "nhead": 2, **given}


@recipe("TransformerEncoderLayer()")
def _(rng: np.random.Generator) -> Any:
    return encoder().__call__, {"x": floats(rng, T, B, 6), "lengths": [4, 2, 0]}


@recipe("TransformerEncoderLayer.forward")
def _(rng: np.random.Generator) -> Any:
    return encoder().forward, {"x": floats(rng, T, B, 6), "lengths": np.array([4, 2, 0])}


@recipe("TransformerEncoderLayer.backward", changed="self tape")
def _(rng: np.random.Generator) -> Any:
    layer = encoder()
    return layer.backward, {"tape": layer.forward(floats(rng, T, B, 6))[1], "dy": floats(rng, T, B, 6)}


@recipe("FinalState")
def _(rng: np.random.Generator) -> Any:
    return gradcore.FinalState, {"bidirectional": True, "batch_first": True, "dtype": "float64"}


@recipe("MeanPool")
def _(rng: np.random.Generator) -> Any:
    return gradcore.MeanPool, {"batch_first": True, "dtype": "float64"}


for _name, _given in {"FinalState": {"bidirectional": True}, "MeanPool": {}}.items():

    @recipe(f"{_name}.forward")
    def _(rng: np.random.Generator, name: str = _name, given: dict[str, Any] = _given) -> Any:
        return getattr(gradcore, name)(**given).forward, {"x": floats(rng, T, B, 2 * H), "lengths": [4, 2, 0]}

    @recipe(f"{_name}.backward")
    def _(rng: np.random.Generator, name: str = _name, given: dict[str, Any] = _given) -> Any:
        layer = getattr(gradcore, name)(**given)
        return layer.backward, {"tape": layer.forward(floats(rng, T, B, 2 * H))[1], "dy": floats(rng, B, 2 * H)}


@recipe("LastStep")
def _(rng: np.random.Generator) -> Any:
    return gradcore.LastStep, {"batch_first": True, "dtype": "float64"}


@recipe("LastStep.forward")
def _(rng: np.random.Generator) -> Any:
    return gradcore.LastStep().forward, {"x": floats(rng, T, B, I), "lengths": [4, 2, 0]}


@recipe("LastStep.backward")
def _(rng: np.random.Generator) -> Any:
    layer = gradcore.LastStep()
    return layer.backward, {"tape": layer.forward(floats(rng, T, B, I))[1], "dy": floats(rng, B, I)}


def model() -> Any:
    rng = seeded()
    return gradcore.Sequential(
        gradcore.RNN(I, H, rng=rng), gradcore.Tanh(), gradcore.LastStep(), gradcore.Linear(H, 1, rng=rng)
    )


@recipe("Sequential", changed="first second", by_position=2, first="layers", second="layers")
def _(rng: np.random.Generator) -> Any:
    return gradcore.Sequential, {"first": gradcore.Linear(2, 3, rng=seeded()), "second": gradcore.Tanh()}


@recipe("Sequential()")
def _(rng: np.random.Generator) -> Any:
    return model().__call__, {"x": floats(rng, T, B, I), "lengths": [4, 2, 1]}


@recipe("Sequential.forward")
def _(rng: np.random.Generator) -> Any:
    reset = rng.random((T, B)) < 0.5
    return model().forward, {"x": floats(rng, T, B, I), "lengths": np.array([4, 2, 1]), "reset": reset}


@recipe("Sequential.backward", changed="self tape")
def _(rng: np.random.Generator) -> Any:
    made = model()
    return made.backward, {"tape": made.forward(floats(rng, T, B, I))[1], "dy": floats(rng, B, 1), "step_clip": 1.0}


@recipe("Sequential.load_state_dict", changed="self")
def _(rng: np.random.Generator) -> Any:
    return model().load_state_dict, {"state_dict": model().state_dict()}


@recipe("MLP")
def _(rng: np.random.Generator) -> Any:
    options = {"activation": "relu", "init": "orthogonal", "bias": True, "dtype": np.float32, "rng": seeded()}
    return gradcore.MLP, {"sizes": [3, 4, 1], **options}


def _loss(name: str, first: str, second: str, options: dict[str, Any]) -> None:
    loss = getattr(losses, name)

    def given(rng: np.random.Generator) -> dict[str, Any]:
        F = 4 if name == "gaussian_nll" else 2
        y = floats(rng, T, B, F)
        target = rng.integers(0, 2, (T, B)) if name == "softmax_cross_entropy" else (floats(rng, T, B, 2) > 0) * 1.0
        return {first: y, second: target.astype(target.dtype if target.dtype.kind == "i" else np.float32)}

    @recipe(name)
    def _(rng: np.random.Generator) -> Any:
        return loss, given(rng) | options

    @recipe(f"{name} of some terms")
    def _(rng: np.random.Generator) -> Any:
        lengths, mask, weight = np.array([4, 2, 0]), floats(rng, T, B) > -1, floats(rng, T, B)
        return loss, given(rng) | {"lengths": lengths, "mask": mask, "weight": weight}


_loss("mse", "y", "target", {})
_loss("mae", "y", "target", {})
_loss("huber", "y", "target", {"delta": 0.5})
_loss("gaussian_nll", "y", "target", {})
_loss("softmax_cross_entropy", "logits", "labels", {"ignore_index": 1, "label_smoothing": 0.1, "z_loss": 0.01})
_loss("binary_cross_entropy", "logits", "target", {})


@recipe("softmax")
def _(rng: np.random.Generator) -> Any:
    return losses.softmax, {"logits": floats(rng, 4, 3)}


@recipe("log_softmax")
def _(rng: np.random.Generator) -> Any:
    return losses.log_softmax, {"logits": floats(rng, 4, 3)}


def some_grads(rng: np.random.Generator) -> dict[str, Array]:
    return {"w": floats(rng, 3, 2), "b": floats(rng, 3)}


def some_pairs(rng: np.random.Generator) -> dict[str, tuple[Array, Array]]:
    return {"w": (floats(rng, 3, 2), floats(rng, 3, 2)), "b": (floats(rng, 3), floats(rng, 3))}


@recipe("grad_norm")
def _(rng: np.random.Generator) -> Any:
    return gradcore.grad_norm, {"grads": some_grads(rng), "norm_type": 2.0}


@recipe("grad_norm of a list")
def _(rng: np.random.Generator) -> Any:
    return gradcore.grad_norm, {"grads": list(some_grads(rng).values()), "norm_type": 3}


@recipe("clip_grad_norm_", changed="grads")
def _(rng: np.random.Generator) -> Any:
    options = {"max_norm": 0.5, "norm_type": 2.0, "nonfinite": "raise", "per_array": False}
    return gradcore.clip_grad_norm_, {"grads": some_grads(rng), **options}


@recipe("clip_grad_norm_ of an array", changed="grads")
def _(rng: np.random.Generator) -> Any:
    return gradcore.clip_grad_norm_, {"grads": floats(rng, 3, 4), "max_norm": 0.5, "per_array": True}


@recipe("clip_grad_value_", changed="grads")
def _(rng: np.random.Generator) -> Any:
    return gradcore.clip_grad_value_, {"grads": list(some_grads(rng).values()), "clip_value": 0.5}


@recipe("clip_grad_units_", changed="params")
def _(rng: np.random.Generator) -> Any:
    options = {"clip_factor": 0.1, "eps": 1e-3, "axis": 0, "nonfinite": "raise"}
    return gradcore.clip_grad_units_, {"params": some_pairs(rng), **options}


INITS: dict[str, dict[str, Any]] = {
    "uniform_": {"a": -1.0, "b": 1.0},
    "normal_": {"mean": 0.0, "std": 1.0},
    "constant_": {"val": 1.0},
    "eye_": {},
    "xavier_uniform_": {"gain": 1.0},
    "xavier_normal_": {"gain": 1.0},
    "kaiming_uniform_": {"a": 0.1, "mode": "fan_in", "nonlinearity": "leaky_relu"},
    "kaiming_normal_": {"a": 0.1, "mode": "fan_out", "nonlinearity": "leaky_relu"},
    "lecun_normal_": {},
    "orthogonal_": {"gain": 1.0},
    "sparse_": {"sparsity": 0.5, "std": 0.1},
}


def _init(name: str, options: dict[str, Any]) -> None:
    # calculate_gain calls the slope `param`, which kaiming_*_ calls `a`.
    @recipe(f"init.{name}", changed="tensor")
    def _(rng: np.random.Generator) -> Any:
        with_rng = {} if name in ("constant_", "eye_") else {"rng": seeded()}
        return getattr(init, name), {"tensor": floats(rng, 4, 3), **options, **with_rng}


for _name, _options in INITS.items():
    _init(_name, _options)


@recipe("init.chrono_", changed="layer_or_bias")
def _(rng: np.random.Generator) -> Any:
    return init.chrono_, {"layer_or_bias": floats(rng, 8), "T_max": 20.0, "T_min": 2.0, "rng": seeded()}


@recipe("init.chrono_ of a layer", changed="layer_or_bias")
def _(rng: np.random.Generator) -> Any:
    layer = gradcore.GRU(2, 3, rng=seeded())
    return init.chrono_, {"layer_or_bias": layer, "T_max": 20.0, "T_min": 2.0, "rng": seeded()}


@recipe("init.calculate_gain")
def _(rng: np.random.Generator) -> Any:
    return init.calculate_gain, {"nonlinearity": "leaky_relu", "param": 0.1}


OPTIMIZERS: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.1, "momentum": 0.9, "dampening": 0.0, "nesterov": True},
    "Adam": {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "amsgrad": True},
    "AdamW": {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "amsgrad": False},
    "RMSprop": {"lr": 0.1, "alpha": 0.9, "eps": 1e-8, "momentum": 0.5, "centered": True},
    "Adagrad": {"lr": 0.1, "lr_decay": 0.1, "initial_accumulator_value": 0.1, "eps": 1e-8},
    "NAdam": {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "momentum_decay": 0.01, "decoupled_weight_decay": True},
    "RAdam": {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "decoupled_weight_decay": True},
    "Lion": {"lr": 0.1, "betas": (0.9, 0.99)},
    "SPAM": {"lr": 0.1, "betas": (0.9, 0.99), "threshold": 50.0, "reset_every": 3, "warmup_steps": 2},
}
FOR_ALL: dict[str, Any] = {"weight_decay": 0.1, "maximize": False, "l1": 0.01, "max_consecutive_skips": 3}


def _optimizer(name: str, options: dict[str, Any]) -> None:
    build = getattr(optim, name)

    @recipe(f"optim.{name}")
    def _(rng: np.random.Generator) -> Any:
        return build, {"params": some_pairs(rng), **options, **FOR_ALL}

    @recipe(f"optim.{name} with groups")
    def _(rng: np.random.Generator) -> Any:
        w, b = some_pairs(rng).items()
        groups = [{"params": dict([w]), "lr": 0.2}, {"params": dict([b]), "l1": 0.1, "weight_decay": 0.0}]
        return build, {"params": groups, **options}

    @recipe(f"optim.{name}.step", changed="self")
    def _(rng: np.random.Generator) -> Any:
        return build(some_pairs(rng), **options).step, {"max_norm": 1.0, "nonfinite": "zero", "scale": 2.0}

    @recipe(f"optim.{name}.load_state_dict", changed="self")
    def _(rng: np.random.Generator) -> Any:
        made = build(some_pairs(rng), **options)
        made.step()
        return build(some_pairs(rng), **options).load_state_dict, {"state_dict": made.state_dict()}


for _name, _options in OPTIMIZERS.items():
    _optimizer(_name, _options)


SCHEDULES: dict[str, dict[str, Any]] = {
    "constant": {"value": 0.1},
    "linear": {"start": 0.1, "end": 1.0, "steps": 10},
    "cosine": {"start": 0.1, "end": 1.0, "steps": 10},
    "step": {"value": 0.1, "factor": 0.5, "every": 10},
    "exponential": {"value": 0.1, "factor": 0.5},
    "polynomial": {"start": 0.1, "end": 1.0, "steps": 10, "power": 2.0},
    "multi_step": {"value": 0.1, "factor": 0.5, "milestones": (2, 5)},
    "warm_restarts": {"start": 0.1, "end": 1.0, "steps": 3, "factor": 2},
    "one_cycle": {"peak": 0.1, "steps": 10, "pct_start": 0.3, "div_factor": 25.0, "final_div_factor": 1e4},
}


def _schedule(name: str, options: dict[str, Any]) -> None:
    build = getattr(schedule, name)

    @recipe(f"schedule.{name}")
    def _(rng: np.random.Generator) -> Any:
        return build, dict(options)

    @recipe(f"schedule.{name}()")
    def _(rng: np.random.Generator) -> Any:
        return build(**options), {"step": 3}


for _name, _options in SCHEDULES.items():
    _schedule(_name, _options)


def some_plateau(rng: np.random.Generator) -> Any:
    return optim.ReduceLROnPlateau(optim.SGD(some_pairs(rng), lr=0.1), patience=0)


@recipe("optim.EMA")
def _(rng: np.random.Generator) -> Any:
    return optim.EMA, {"model": gradcore.Linear(3, 2, rng=seeded()), "decay": 0.9, "warmup": True}


@recipe("optim.EMA.load_state_dict", changed="self")
def _(rng: np.random.Generator) -> Any:
    made = optim.EMA(gradcore.Linear(3, 2, rng=seeded()))
    return made.load_state_dict, {"state_dict": made.state_dict()}


@recipe("optim.ReduceLROnPlateau")
def _(rng: np.random.Generator) -> Any:
    options = {"mode": "min", "factor": 0.5, "patience": 2, "threshold": 0.1, "threshold_mode": "abs", "cooldown": 1}
    given = {"optimizer": optim.SGD(some_pairs(rng), lr=0.1), "min_lr": 0.01, "eps": 1e-8, "monitor": "loss"}
    return optim.ReduceLROnPlateau, given | options


@recipe("optim.ReduceLROnPlateau.step", changed="self")
def _(rng: np.random.Generator) -> Any:
    return some_plateau(rng).step, {"value": 0.5}


@recipe("optim.ReduceLROnPlateau.load_state_dict", changed="self")
def _(rng: np.random.Generator) -> Any:
    return some_plateau(rng).load_state_dict, {"state_dict": some_plateau(rng).state_dict()}


@recipe("schedule.chain", by_position=3, first="stages", second="stages", last="last")
def _(rng: np.random.Generator) -> Any:
    return schedule.chain, {
        "first": (schedule.constant(0.1), 3),
        "second": (schedule.linear(0.1, 0.2, 4), 4),
        "last": schedule.constant(0.2),
    }


THRESHOLDS: dict[str, dict[str, Any]] = {
    "ZClip": {
        "alpha": 0.9, "z_thresh": 2.0, "clip_option": "mean", "clip_factor": 1.0, "max_grad_norm": 3.0, "eps": 1e-6,
        "warmup_steps": 3, "mode": "zscore",
    },
    "AutoClip": {"percentile": 10.0, "history": 5},
    "FromFirst": {"steps": 3, "factor": 2.0},
}  # fmt: skip


def _threshold(name: str, options: dict[str, Any]) -> None:
    build = getattr(threshold, name)

    @recipe(f"threshold.{name}")
    def _(rng: np.random.Generator) -> Any:
        return build, dict(options)

    @recipe(f"threshold.{name}.update", changed="self")
    def _(rng: np.random.Generator) -> Any:
        return build(**options).update, {"norm": 1.5}

    @recipe(f"threshold.{name}.load_state_dict", changed="self")
    def _(rng: np.random.Generator) -> Any:
        made = build(**options)
        made.update(1.0)
        return build(**options).load_state_dict, {"state_dict": made.state_dict()}


for _name, _options in THRESHOLDS.items():
    _threshold(_name, _options)


@recipe("GradScaler")
def _(rng: np.random.Generator) -> Any:
    factors = {"growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 10}
    return gradcore.GradScaler, {"init_scale": 4.0, **factors, "enabled": True}


@recipe("GradScaler.scale")
def _(rng: np.random.Generator) -> Any:
    return gradcore.GradScaler(4.0).scale, {"value": floats(rng, 3, 2)}


@recipe("GradScaler.scale of a number")
def _(rng: np.random.Generator) -> Any:
    return gradcore.GradScaler(4.0).scale, {"value": 1.5}


@recipe("GradScaler.unscale_", changed="grads")
def _(rng: np.random.Generator) -> Any:
    return gradcore.GradScaler(4.0).unscale_, {"grads": some_grads(rng)}


@recipe("GradScaler.step", changed="optimizer")
def _(rng: np.random.Generator) -> Any:
    return gradcore.GradScaler(4.0).step, {"optimizer": optim.SGD(some_pairs(rng)), "max_norm": 1.0}


@recipe("GradScaler.load_state_dict")
def _(rng: np.random.Generator) -> Any:
    return gradcore.GradScaler(4.0).load_state_dict, {"state_dict": gradcore.GradScaler(2.0).state_dict()}


for _name in ("spectral_radius", "spectral_norm", "henrici"):

    @recipe(f"spectral.{_name}")
    def _(rng: np.random.Generator, name: str = _name) -> Any:
        return getattr(spectral, name), {"W": floats(rng, 4, 4)}


for _name in ("kaplan_yorke", "entropy"):

    @recipe(f"spectral.{_name}")
    def _(rng: np.random.Generator, name: str = _name) -> Any:
        return getattr(spectral, name), {"exponents": np.array([0.5, -0.1, -1.0])}


def taped(rng: np.random.Generator, cell: str = "LSTM") -> tuple[Any, Any]:
    layer = CELLS[cell](I, H, 2, rng=seeded())
    y, tape = layer.forward(floats(rng, T, B, I))
    layer.backward(tape, np.ones_like(y))
    return layer, tape


@recipe("spectral.jacobian")
def _(rng: np.random.Generator) -> Any:
    layer, tape = taped(rng)
    return spectral.jacobian, {"layer": layer, "tape": tape, "t": 1, "b": 2, "index": 1}


@recipe("spectral.singular_values")
def _(rng: np.random.Generator) -> Any:
    layer, tape = taped(rng)
    return spectral.singular_values, {"layer": layer, "tape": tape, "k": 2, "horizon": 3, "b": 1, "index": 1}


@recipe("spectral.lyapunov_spectrum")
def _(rng: np.random.Generator) -> Any:
    layer = gradcore.GRU(I, H, 2, rng=seeded())
    given = {"x": floats(rng, 8, B, I), "state": floats(rng, 2, B, H), "k": 2, "transient": 2, "index": 1}
    return spectral.lyapunov_spectrum, {"layer": layer, **given}


@recipe("spectral.predict_growth")
def _(rng: np.random.Generator) -> Any:
    layer = gradcore.RNN(I, H, rng=seeded())
    return spectral.predict_growth, {"layer": layer, "x": floats(rng, 8, B, I), "horizon": 5}


@recipe("spectral.measure_growth")
def _(rng: np.random.Generator) -> Any:
    return spectral.measure_growth, {"tape": taped(rng)[1], "index": 1}


@recipe("spectral.effective_horizon")
def _(rng: np.random.Generator) -> Any:
    return spectral.effective_horizon, {"tape": taped(rng)[1], "eps": 0.1, "index": 1}


@recipe("meanfield.mean_field")
def _(rng: np.random.Generator) -> Any:
    numbers = {"sigma_w": 1.5, "sigma_b": 0.1, "input_variance": 0.1}
    return meanfield.mean_field, {"activation": "tanh", **numbers}


@recipe("meanfield.critical")
def _(rng: np.random.Generator) -> Any:
    return meanfield.critical, {"activation": gradcore.Tanh(), "sigma_b": 0.1}


@recipe("meanfield.jacobian_moments")
def _(rng: np.random.Generator) -> Any:
    numbers = {"depth": 5, "sigma_w": 1.5, "sigma_b": 0.1, "weights": "orthogonal"}
    return meanfield.jacobian_moments, {"activation": "tanh", **numbers}


@recipe("meanfield.fuss_catalan")
def _(rng: np.random.Generator) -> Any:
    return meanfield.fuss_catalan, {"depth": 3, "k": 4}


@recipe("meanfield.forecast")
def _(rng: np.random.Generator) -> Any:
    return meanfield.forecast, {"model": gradcore.MLP([3, 4, 2], "tanh", rng=seeded()), "x": floats(rng, 4, 3)}


@recipe("meanfield.forecast of an RNN")
def _(rng: np.random.Generator) -> Any:
    return meanfield.forecast, {"model": gradcore.RNN(I, H, rng=seeded()), "x": floats(rng, T, B, I)}


@recipe("meanfield.suggest_gain")
def _(rng: np.random.Generator) -> Any:
    layer = gradcore.RNN(I, H, rng=seeded())
    return meanfield.suggest_gain, {"layer": layer, "x": floats(rng, 8, B, I), "target": -0.5}


@recipe("meanfield.suggest_bias")
def _(rng: np.random.Generator) -> Any:
    return meanfield.suggest_bias, {"layer": "lstm", "horizon": 20.0}


@recipe("monitor.Thresholds")
def _(rng: np.random.Generator) -> Any:
    return monitor.Thresholds, {
        "window": 50, "warmup": 20, "patience": 5, "spike_z": 6.0, "usual_norm": (0.1, 10.0), "high_norm": 1e3,
        "diverged": 1e3, "oscillation": 1.0, "rise": 3.0, "raised": 0.9, "learning_steps": 200, "progress": 0.05,
        "small_change": 5e-3, "large_change": 10.0, "dead": 0.75, "data_scale": 100.0,
        "max_weight": 1e6, "vanish_ratio": 1e-3, "explode_ratio": 1e3,
        "always_clipped": 0.9, "never_clipped_steps": 100, "skipped": 0.1, "check_weights_every": 10,
        "check_outputs_every": 10,
    }  # fmt: skip


@recipe("monitor.GradientMonitor.update")
def _(rng: np.random.Generator) -> Any:
    layer, tape = taped(rng, "RNN")
    numbers = {"step": 3, "loss": 1.0, "grad_norm": 2.0, "max_norm": 1.0}
    return monitor.GradientMonitor().update, {**numbers, "model": layer, "tape": tape, "y": floats(rng, T, B, H)}


@recipe("VanishingGradientRegularizer")
def _(rng: np.random.Generator) -> Any:
    return gradcore.VanishingGradientRegularizer, {"weight": 0.1, "bound": 1e-20}


@recipe("VanishingGradientRegularizer()", changed="layer tape")
def _(rng: np.random.Generator) -> Any:
    layer, tape = taped(rng, "RNN")
    given = {"dy": floats(rng, T, B, H), "dstate": floats(rng, 2, B, H), "step_clip": 1.0}
    return gradcore.VanishingGradientRegularizer(0.1), {"layer": layer, "tape": tape, **given}


@recipe("gradient_penalty", changed="model")
def _(rng: np.random.Generator) -> Any:
    members = (gradcore.GRU(I, H, rng=seeded()), gradcore.LastStep(), gradcore.Linear(H, 1, rng=seeded()))
    options = {"weight": 10.0, "target": 1.0, "lengths": np.array([T, 1, 2]), "batch_first": False}
    return gradcore.gradient_penalty, {"model": gradcore.Sequential(*members), "x": floats(rng, T, B, I), **options}


@recipe("set_num_threads")
def _(rng: np.random.Generator) -> Any:
    return gradcore.set_num_threads, {"n": gradcore.get_num_threads()}


@recipe("History.append")
def _(rng: np.random.Generator) -> Any:
    _, tape = taped(rng, "RNN")
    given = {"loss": 1.0, "grad_norm": 2.0, "epoch": 1, "lr": 0.1, "max_norm": 1.0, "tape": tape}
    return gradcore.History().append, given


@recipe("History.append_validation")
def _(rng: np.random.Generator) -> Any:
    return gradcore.History().append_validation, {"loss": 1.0, "metrics": {"accuracy": 0.5}, "epoch": 1}


@recipe("History.append of a GradNorm")
def _(rng: np.random.Generator) -> Any:
    norm = gradcore.clip_grad_norm_(some_grads(rng), 0.5)
    return gradcore.History().append, {"loss": 1.0, "grad_norm": norm, "max_norm": norm.max_norm}


def short_history() -> Any:
    history = gradcore.History()
    for loss in (1.0, math.nan, 0.5):
        history.append(loss, gradcore.grad_norm({"w": np.full(2, loss)}))
        history.append_validation(loss, {"accuracy": 0.5})
    return history


@recipe("History.to_json")
def _(rng: np.random.Generator) -> Any:
    return short_history().to_json, {"path": "run.json"}


@recipe("History.from_json")
def _(rng: np.random.Generator) -> Any:
    short_history().to_json("run.json")
    return gradcore.History.from_json, {"source": "run.json"}


@recipe("History.from_json of the text", source="text")
def _(rng: np.random.Generator) -> Any:
    return gradcore.History.from_json, {"source": short_history().to_json()}


@recipe("Supervisor")
def _(rng: np.random.Generator) -> Any:
    counts = {"rollback": 10, "skip": 20, "max_rollbacks": 3, "window": 16, "warmup": 8}
    return gradcore.Supervisor, {"spike": 6.0, **counts, "reset_moments": True, "lr_factor": 0.5, "folder": None}


@recipe("Supervisor.load_state_dict", changed="self")
def _(rng: np.random.Generator) -> Any:
    return gradcore.Supervisor().load_state_dict, {"state_dict": gradcore.Supervisor().state_dict()}


@recipe("Rollback.from_dict")
def _(rng: np.random.Generator) -> Any:
    back = gradcore.Rollback(7, 0, "the loss is nan", 6, range(6, 9), np.array([0.5, np.nan]), np.ones(2))
    return gradcore.Rollback.from_dict, {"values": back.to_dict()}


@recipe("History.load_state_dict")
def _(rng: np.random.Generator) -> Any:
    return gradcore.History().load_state_dict, {"state_dict": short_history().state_dict()}


def saved_parts(rng: np.random.Generator) -> dict[str, Any]:
    layer = gradcore.RNN(I, H, 2, dropout=0.5, rng=seeded())
    return {"model": layer, "optimizer": optim.Adam(layer), "generator": np.random.default_rng(4)}


@recipe("save_checkpoint")
def _(rng: np.random.Generator) -> Any:
    state = {"w": floats(rng, 3, 2), "names": ["a", "b"], "best": math.inf, "by": {"b": np.arange(3)}}
    return gradcore.save_checkpoint, {"path": "run.safetensors", **saved_parts(rng), "step": 7, "state": state}


@recipe("load_checkpoint", changed="model optimizer", path="run.safetensors")
def _(rng: np.random.Generator) -> Any:
    gradcore.save_checkpoint("run.safetensors", **saved_parts(rng), step=7)
    return gradcore.load_checkpoint, {"path": "run.safetensors", **saved_parts(rng)}


@recipe("load_weights", changed="model", path="model.safetensors")
def _(rng: np.random.Generator) -> Any:
    layer = gradcore.Linear(3, 2, rng=seeded())
    gradcore.save_checkpoint("model.safetensors", model=layer)
    rename = {"model/weight": "weight", "model/bias": "bias"}
    return gradcore.load_weights, {"path": "model.safetensors", "model": layer, "rename": rename}


@recipe("EarlyStopping")
def _(rng: np.random.Generator) -> Any:
    return gradcore.EarlyStopping, {"monitor": "loss", "patience": 3, "min_delta": 0.1, "mode": "max"}


@recipe("EarlyStopping.load_state_dict")
def _(rng: np.random.Generator) -> Any:
    stopping, layer = gradcore.EarlyStopping(), gradcore.Linear(3, 2, rng=seeded())
    stopping.update(0.5, layer)
    return stopping.load_state_dict, {"state_dict": stopping.state_dict()}


@recipe("monitor.GradientMonitor.load_state_dict")
def _(rng: np.random.Generator) -> Any:
    watching = monitor.GradientMonitor()
    watching.update(0, math.inf, 1.0)
    return monitor.GradientMonitor().load_state_dict, {"state_dict": watching.state_dict()}


@recipe("claims.as_markdown")
def _(rng: np.random.Generator) -> Any:
    return claims.as_markdown, {"claims": [claims.Claim("It helps.", True, {"loss": 0.5}, "It does.")]}


TASKS: dict[str, dict[str, Any]] = {
    "adding": {"batch": 3, "length": 9},
    "temporal_order": {"batch": 3, "length": 9},
    "copy": {"batch": 3, "delay": 9},
}


def _task(name: str, options: dict[str, Any]) -> None:
    @recipe(f"data.{name}")
    def _(rng: np.random.Generator) -> Any:
        return getattr(data, name), {"rng": seeded(), **options, "dtype": np.float32}


for _name, _options in TASKS.items():
    _task(_name, _options)


@recipe("data.load")
def _(rng: np.random.Generator) -> Any:
    Path("data.csv").write_text("year,value\n" + "".join(f"{i},{i % 7}\n" for i in range(30)), encoding="utf-8")
    return data.load, {"source": "data.csv", "seq_len": 9, "target": "value"}


@recipe("data.Task.batches")
def _(rng: np.random.Generator) -> Any:
    return data.load("adding", 9).batches, {"batch": 3, "steps": 2, "seed": 1}


@recipe("data.windows")
def _(rng: np.random.Generator) -> Any:
    given = {"seq_len": 4, "horizon": 2, "step": 1, "batch": 5, "inputs": [0, 2], "target": 1, "rng": seeded()}
    return lambda **given: list(data.windows(**given)), {"series": floats(rng, 20, 3), **given}


@recipe("data.streams")
def _(rng: np.random.Generator) -> Any:
    return lambda **given: list(data.streams(**given)), {"ids": rng.integers(0, 9, 40), "batch": 3, "steps": 5}


@recipe("data.pad_sequence")
def _(rng: np.random.Generator) -> Any:
    given = {"sequences": [floats(rng, 3, 2), floats(rng, 0, 2)], "batch_first": True, "padding_value": 1.0}
    return data.pad_sequence, given


@recipe("data.Standardizer.fit", changed="self")
def _(rng: np.random.Generator) -> Any:
    return lambda x: data.Standardizer().fit(x).mean, {"x": floats(rng, 20, 3)}


for _name in ("transform", "inverse_transform"):

    @recipe(f"data.Standardizer.{_name}")
    def _(rng: np.random.Generator, name: str = _name) -> Any:
        return getattr(data.Standardizer().fit(floats(rng, 20, 3)), name), {"x": floats(rng, 5, 3)}


@recipe("data.Standardizer.load_state_dict", changed="self")
def _(rng: np.random.Generator) -> Any:
    made = data.Standardizer().fit(floats(rng, 20, 3))
    return data.Standardizer().load_state_dict, {"state_dict": made.state_dict()}


@recipe("data.sample", prompt="x", model="state")
def _(rng: np.random.Generator) -> Any:
    own = seeded()
    reader = gradcore.Sequential(
        gradcore.Embedding(5, 3, rng=own), gradcore.GRU(3, 4, rng=own), gradcore.Linear(4, 5, rng=own)
    )
    given = {"prompt": np.array([1, 4, 2]), "steps": 3, "temperature": 0.5, "rng": seeded()}
    return data.sample, {"model": reader, **given}


FIGURES: dict[str, Callable[[np.random.Generator], dict[str, Any]]] = {
    "plot_time_steps": lambda rng: {
        "norms": np.exp(floats(rng, 2, 5, dtype=np.float64)), "forecast": np.ones(5), "names": ["a", "b"],
    },
    "plot_training": lambda rng: {"norms": {"a": np.exp(floats(rng, 5)), "b": [1.0, math.nan]}, "threshold": 1.0},
    "plot_eigenvalues": lambda rng: {"eigenvalues": {"W": np.array([1.5, -0.5])}},
    "plot_spectrum": lambda rng: {"exponents": {"layer 0": np.array([0.5, -0.1, -9.0])}},
    "plot_trials": lambda rng: {"losses": {"a": np.exp(floats(rng, 20))}, "baseline": 1.0, "window": 3},
}  # fmt: skip


def _figure(name: str, given: Callable[[np.random.Generator], dict[str, Any]]) -> None:
    @recipe(f"diagnosis.figures.{name}")
    def _(rng: np.random.Generator) -> Any:
        return getattr(figures, name), {**given(rng), "title": "What was found"}


for _name, _given in FIGURES.items():
    _figure(_name, _given)


@recipe("fit", changed="model optimizer batches", batches="x", loss="dy", optimizer="target")
def _(rng: np.random.Generator) -> Any:
    layer = gradcore.Linear(3, 1, rng=seeded())
    options = {"max_norm": 1.0, "nonfinite": "raise", "monitor": monitor.GradientMonitor(), "callbacks": ()}
    options |= {"hooks": (gradcore.AdaptiveClip(), gradcore.GradScaler())}
    return gradcore.fit, {
        "model": layer,
        "batches": [(floats(rng, 4, 3), floats(rng, 4, 1)), (floats(rng, 2, 3), floats(rng, 2, 1))],
        "loss": losses.mse,
        "optimizer": optim.SGD(layer),
        "epochs": 1,
        "accumulate": 2,
        **options,
        "progress": False,
    }


@recipe("fit of sequences", changed="model optimizer batches validation", batches="x", loss="dy", optimizer="target")
def _(rng: np.random.Generator) -> Any:
    layer = gradcore.GRU(I, H, rng=seeded())
    optimizer = optim.SGD(layer)
    y, tape = layer.forward(floats(rng, T, B, I))
    layer.backward(tape, np.zeros_like(y))
    optimizer.step()  # layer and optimizer hold their arrays from now on
    batch = {"x": floats(rng, T, B, I), "target": floats(rng, T, B, H), "lengths": [4, 2, 1]}
    batch |= {"reset": rng.random((T, B)) < 0.5, "mask": rng.random((T, B)) < 0.5, "weight": floats(rng, T)}
    return gradcore.fit, {
        "model": layer,
        "batches": [batch],
        "loss": losses.mse,
        "optimizer": optimizer,
        "epochs": 1,
        "progress": False,
        "stateful": True,
        "validation": [(floats(rng, T, B, I), floats(rng, T, B, H), [4, 2, 1])],
        "metrics": {"mae": losses.mae},
        "early_stopping": gradcore.EarlyStopping("mae"),
        "checkpoint": "run.safetensors",
        "resume": False,
        "rng": [np.random.default_rng(0)],
    }


# ---- one call --------------------------------------------------------------------------------------------------------


def paths(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where every part of an argument is, the argument itself included."""
    yield at
    if isinstance(value, dict):
        for key, member in value.items():
            yield from paths(member, (*at, key))
    elif isinstance(value, (list, tuple)):
        for i, member in enumerate(value):
            yield from paths(member, (*at, i))


def part(value: Any, at: tuple[Any, ...]) -> Any:
    for key in at:
        value = value[key]
    return value


def replaced(value: Any, at: tuple[Any, ...], new: Any) -> Any:
    """The argument with another part there; containers on the way are made anew."""
    if not at:
        return new
    if isinstance(value, dict):
        return {key: replaced(member, at[1:], new) if key == at[0] else member for key, member in value.items()}
    members = [replaced(member, at[1:], new) if i == at[0] else member for i, member in enumerate(value)]
    return type(value)(members) if isinstance(value, (list, tuple)) else members


def arrays_of(value: Any, name: str, depth: int = 0) -> Iterator[tuple[str, Array]]:
    """Every array that can be reached from an argument, with the name of the argument."""
    if isinstance(value, np.ndarray):
        if value is not np.ma.masked:  # which lets nobody look at its bytes
            yield name, value
    elif isinstance(value, Mapping):
        for member in value.values():
            yield from arrays_of(member, name, depth)
    elif isinstance(value, (list, tuple)):
        for member in value:
            yield from arrays_of(member, name, depth)
    elif depth < 3 and type(value).__module__.startswith("gradcore") and hasattr(value, "__dict__"):
        for key, member in vars(value).items():
            if key not in ("_pool", "telemetry"):
                yield from arrays_of(member, name, depth + 1)


def bits(a: Array) -> Any:
    """What an array holds; of one that lies in a single element, that."""
    small = a if a.size <= 10_000 else a[(slice(1),) * a.ndim]
    return a.shape, str(a.dtype), small.tolist() if a.dtype == object else small.tobytes()


@dataclass
class Case:
    recipe: Recipe
    changes: list[tuple[str, tuple[Any, ...], str]]  # argument, part of it, maker
    drawn: dict[str, Callable[[Any], Any]] = field(default_factory=dict)  # makers beside those for every case

    def __str__(self) -> str:
        what = ", ".join(f"{name}{''.join(f'[{k!r}]' for k in at)} = <{maker}>" for name, at, maker in self.changes)
        return f"{self.recipe.name}: {what}"


@dataclass
class Outcome:
    kind: str  # "result", or the name of the error
    message: str
    wrong: list[str]  # what should not be


def generated(rng: np.random.Generator) -> Case:
    """A recipe, and what is replaced in it."""
    return malformed(RECIPES[rng.integers(len(RECIPES))], rng)


def malformed(chosen: Recipe, rng: np.random.Generator) -> Case:
    """The recipe with one or two of the leaves of its arguments replaced."""
    _, given = chosen.make(np.random.default_rng(0))
    changes = []
    names = list(given)
    for name in rng.choice(names, size=min(len(names), 1 + int(rng.random() < 0.2)), replace=False).tolist():
        at = list(paths(given[name]))
        where = at[rng.integers(len(at))]
        makers = list(makers_for(part(given[name], where)))
        if (chosen.name, name) in ENDLESS:
            makers = [maker for maker in makers if not maker.endswith(" long")]
        changes.append((name, where, makers[rng.integers(len(makers))]))
    return Case(chosen, changes)


def prepared(case: Case) -> tuple[Callable[..., Any], dict[str, Any], dict[str, Any]]:
    """The callable, its good arguments, and those of the case."""
    call, good = case.recipe.make(np.random.default_rng(0))
    given = dict(good)
    for name, at, maker in case.changes:
        bad = (makers_for(part(given[name], at)) | case.drawn)[maker](part(given[name], at))
        given[name] = replaced(given[name], at, bad)
    return call, good, given


def invoke(call: Callable[..., Any], given: dict[str, Any], by_position: int) -> Any:
    values = list(given.items())
    return call(*(value for _, value in values[:by_position]), **dict(values[by_position:]))


def flattened(result: Any) -> list[Any]:
    if isinstance(result, (tuple, list)):
        return [leaf for member in result for leaf in flattened(member)]
    return [result] if isinstance(result, (np.ndarray, float, int)) else []


def excused(case: Case, error: Exception) -> bool:
    """Whether the error is one that the documentation promises, or the caller's own."""
    makers = {maker for _, _, maker in case.changes}
    if isinstance(error, FloatingPointError):  # nonfinite="raise"
        return bool(makers & {*case.drawn, "NaN", "Inf", "float16", "complex", "1e300", "largest"})
    if isinstance(error, OSError):  # no such file
        return any(name in ("path", "source", "checkpoint") for name, _, _ in case.changes)
    return str(error) == "no members after all"


def called_back(case: Case) -> bool:
    """Whether what stands for a schedule or batches is a callable: only it can tell of its arguments."""
    callables, makers = (
        ("max_norm", "lr", "loss", "batches", "validation", "metrics", "rename"),
        ("a type", "function", "another layer"),
    )
    return any(name in callables and maker in makers for name, _, maker in case.changes)


@contextlib.contextmanager
def new_folder() -> Iterator[None]:
    """To work in: recipes give their files names without a folder."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


def files() -> dict[str, bytes]:
    """What is in the folder where the recipes read and write."""
    return {path.name: path.read_bytes() for path in Path().iterdir()}


def run(case: Case) -> Outcome:
    with new_folder():
        return _run(case)


def _run(case: Case) -> Outcome:
    recipe = case.recipe
    call, good, given = prepared(case)
    given_too = given | {"self": getattr(call, "__self__", None)}
    seen = [pair for name, value in given_too.items() for pair in arrays_of(value, name)]
    before = [bits(a) for _, a in seen]
    files_before = files()
    objects = [a for _, a in seen] + [value for value in given_too.values() if isinstance(value, Plain)]
    counts = [sys.getrefcount(o) for o in objects]
    wrong: list[str] = []
    result: Any = None
    try:
        result = invoke(call, given, recipe.by_position)
        kind, message = "result", ""
    except Exception as error:
        kind, message = type(error).__name__, str(error)
        if not isinstance(error, ALLOWED) and not excused(case, error):
            wrong.append(f"raised {kind}")
    if kind == "result":
        untouched = [i for i, (name, _) in enumerate(seen) if name not in recipe.changed]
    else:
        begun = ("model", "optimizer") if recipe.name.startswith("fit") else ()  # a step may fail in its middle
        untouched = [i for i, (name, _) in enumerate(seen) if name not in begun]
        if kind in ("TypeError", "ValueError", "IndexError", "KeyError"):
            # Which of two arguments that do not fit together is wrong nobody can know: any of the call will do.
            names = {*given, *(other for _, other in recipe.alias)}
            names |= {key for value in good.values() for at in paths(value) for key in at if isinstance(key, str)}
            if not called_back(case) and not any(
                re.search(rf"(^|\W){re.escape(name)}\b[^:]*:", message) for name in names
            ):
                wrong.append(f"the message does not name the argument: {message!r}")
    if kind != "result" and files() != files_before:
        wrong.append("a file was changed")
    wrong += [f"{name}: a file was left" for name in files() if name.startswith(".")]
    wrong += [f"{seen[i][0]}: an array was changed" for i in untouched if bits(seen[i][1]) != before[i]]
    if kind != "result":
        after = [sys.getrefcount(o) for o in objects]
        if after != counts:
            gc.collect()
            after = [sys.getrefcount(o) for o in objects]
        wrong += [f"{b - a:+d} references" for a, b in zip(counts, after, strict=True) if b != a]
    elif all(maker in SAME_VALUE for _, _, maker in case.changes):
        call, good = recipe.make(np.random.default_rng(0))
        want = flattened(invoke(call, good, recipe.by_position))
        got = flattened(result)
        if len(want) != len(got) or not all(
            np.array_equal(a, b, equal_nan=True) for a, b in zip(want, got, strict=False)
        ):
            wrong.append("another result than for the same values in a plain array")
    return Outcome(kind, message, wrong)


# ---- the tests -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    """Allocations of many GiB fail at once, also where the system would promise them."""
    resource = pytest.importorskip("resource")
    if "san.so" in os.environ.get("LD_PRELOAD", ""):  # which takes terabytes, and has a limit of its own
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    most = 64 << 30
    resource.setrlimit(resource.RLIMIT_AS, (most if before[1] < 0 else min(most, before[1]), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
