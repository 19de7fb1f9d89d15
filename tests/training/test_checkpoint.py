"""Checkpoints: what comes back is what went in, to the bit, and nothing that goes wrong on the way harms anything."""

from __future__ import annotations

import copy
import errno
import json
import math
import mmap
import os
import signal
import struct
import sys
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import LONG
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tools import LAYOUTS, same_bits

import gradcore
from gradcore import load_checkpoint, optim, save_checkpoint
from gradcore._base import files as _files
from gradcore.training import checkpoint

safetensors = pytest.importorskip("safetensors.numpy")

OPTIMIZERS = sorted(
    rule.__name__ for rule in vars(optim).values() if optim.Optimizer in getattr(rule, "__mro__", ())[1:]
)
BIT_GENERATORS = [np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox, np.random.SFC64]


class Box:
    """The least that a part can be: an object with a state."""

    def __init__(self, state: Any) -> None:
        self.state = state

    def state_dict(self) -> Any:
        return copy.deepcopy(self.state)

    def load_state_dict(self, state: Any) -> None:
        self.state = state


class Refusing(Box):
    """Changes itself first and complains then, until it is given its own state back."""

    def load_state_dict(self, state: Any) -> None:
        refused, self.state = state != {"a": 1}, state
        if refused:
            raise ArithmeticError("not with me")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def same(a: Any, b: Any) -> bool:
    """Equal values of equal types, arrays and floats to the bit; a tuple counts as a list."""
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and same_bits(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return isinstance(b, (list, tuple)) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float) and math.isnan(a):
        return isinstance(b, float) and math.isnan(b)
    return type(a) is type(b) and a == b and (not isinstance(a, float) or math.copysign(1, a) == math.copysign(1, b))


def trained(seed: int = 0) -> tuple[Any, Any]:
    """A model and its optimizer after three steps."""
    model = gradcore.Sequential(gradcore.LSTM(3, 4, rng=rng(seed)), gradcore.LastStep(), gradcore.Linear(4, 2))
    optimizer = optim.Adam(model, lr=0.1 + 0.2, betas=(0.7, 0.99))
    for _ in range(3):
        model.flat_grads[...] = rng(seed).standard_normal(model.flat_grads.size)
        optimizer.step()
    return model, optimizer


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.safetensors"


# ---- there and back --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", BIT_GENERATORS)
def test_model_optimizer_generator_and_values_come_back_to_the_bit(path: Path, bits: Any) -> None:
    model, optimizer = trained()
    generator = np.random.Generator(bits(5))
    generator.integers(2**32, size=3, dtype=np.uint32)  # leaves half a word in some generators
    save_checkpoint(path, model=model, optimizer=optimizer, rng=generator, step=3, best=math.inf, note="NaN")
    others = trained(seed=1)
    other_generator = np.random.Generator(bits(6))
    values = load_checkpoint(path, model=others[0], optimizer=others[1], rng=other_generator)
    assert same(values, {"step": 3, "best": math.inf, "note": "NaN"})
    assert same(others[0].state_dict(), model.state_dict())
    assert same(others[1].state_dict(), optimizer.state_dict())
    drawn, expected = (g.integers(2**32, size=9, dtype=np.uint32) for g in (other_generator, generator))
    assert same_bits(drawn, expected)


@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_every_optimizer_comes_back(path: Path, rule: str) -> None:
    options = {"momentum": 0.9} if rule in ("SGD", "RMSprop") else {}

    def pair(seed: int) -> tuple[Any, Any]:
        layer = gradcore.Linear(3, 2, rng=rng(seed))
        return layer, getattr(optim, rule)(layer, **options)

    (layer, opt), (other, other_opt) = pair(0), pair(1)

    def step(layer: Any, opt: Any, t: int) -> None:
        layer.flat_grads[...] = rng(t).standard_normal(layer.flat_grads.size)
        opt.step(max_norm=1.0)

    for t in range(3):
        step(layer, opt, t)
    save_checkpoint(path, layer=layer, opt=opt)
    load_checkpoint(path, layer=other, opt=other_opt)
    for t in range(3, 6):
        step(layer, opt, t)
        step(other, other_opt, t)
    assert same_bits(other.flat_params, layer.flat_params)
    assert same(other_opt.state_dict(), opt.state_dict())


STATEFUL: dict[str, Any] = {
    "ZClip": lambda: gradcore.threshold.ZClip(warmup_steps=5),
    "ZClip, warming up": lambda: gradcore.threshold.ZClip(warmup_steps=50),
    "AutoClip": lambda: gradcore.threshold.AutoClip(50.0, history=7),
    "FromFirst": lambda: gradcore.threshold.FromFirst(5),
}


@pytest.mark.parametrize("kind", STATEFUL)
def test_thresholds_and_scalers_go_on_where_they_were(path: Path, kind: str) -> None:
    norms = np.abs(rng().standard_normal(40)).tolist()
    threshold, other = STATEFUL[kind](), STATEFUL[kind]()
    scaler, other_scaler = gradcore.GradScaler(512.0, growth_interval=3), gradcore.GradScaler()
    for norm in norms[:20]:
        threshold.update(norm)
    save_checkpoint(path, threshold=threshold, scaler=scaler)
    load_checkpoint(path, threshold=other, scaler=other_scaler)
    assert [other.update(norm) for norm in norms[20:]] == [threshold.update(norm) for norm in norms[20:]]
    assert other_scaler.state_dict() == scaler.state_dict()


DTYPES = [*checkpoint.DTYPES.values(), np.dtype(">f8"), np.dtype(">i4")]
SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)
TENSORS = hnp.arrays(st.sampled_from(DTYPES), SHAPES)
LEAVES = st.none() | st.booleans() | st.integers(-(2**200), 2**200) | st.floats() | st.text() | TENSORS
KEYS = st.text(max_size=4) | st.sampled_from(["a/b", "a", "b", "~", "~1", "/", "dict", "array", "float"])
STATES = st.dictionaries(
    KEYS,
    st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3)),
    max_size=4,
)


def native(value: Any) -> Any:
    """Arrays in the byte order in which they come back."""
    if isinstance(value, np.ndarray):
        return value.astype(value.dtype.newbyteorder("="))
    if isinstance(value, dict):
        return {key: native(item) for key, item in value.items()}
    return [native(item) for item in value] if isinstance(value, list) else value


@given(STATES)
@example({"a/b": np.ones(1), "a": {"b": np.ones(2)}, "a~1b": np.ones(3)})  # names in the file must not meet
@example({"x": [math.inf, -math.inf, math.nan, -0.0, 5e-324, 0.1 + 0.2], "text": ["Infinity", "-Infinity", "NaN"]})
@example({"dict": {"array": "x", "float": "NaN"}, "array": "box", "float": {"dict": []}})
def test_nested_states_come_back(tmp_path_factory: Any, state: Any) -> None:
    path = tmp_path_factory.mktemp("nested") / "state"
    box = Box(None)
    save_checkpoint(path, box=Box(state), value=state)
    values = load_checkpoint(path, box=box)
    assert same(box.state, native(state))
    assert same(values, {"value": native(state)})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_arrays_of_any_layout(path: Path, layout: str) -> None:
    a = rng().standard_normal((3, 4))
    save_checkpoint(path, a=LAYOUTS[layout](a))
    loaded = load_checkpoint(path)["a"]
    assert same_bits(loaded, a)
    loaded[0] = 1  # is the caller's own


def test_scalars_of_numpy_are_numbers(path: Path) -> None:
    norm = gradcore.grad_norm(np.ones(3))
    save_checkpoint(path, values=[np.float32(0.1), np.int64(3), np.bool_(True), norm, -0.0, -math.inf, math.nan])
    expected = [float(np.float32(0.1)), 3, True, math.sqrt(3), -0.0, -math.inf, math.nan]
    assert same(load_checkpoint(path)["values"], expected)


def test_other_readers_find_the_arrays_by_name(path: Path) -> None:
    layer = gradcore.GRU(2, 3)
    save_checkpoint(path, model=layer, step=4)
    read = safetensors.load_file(path)
    assert read.keys() == {f"model/{name}" for name in layer.params}
    assert all(same_bits(read[f"model/{name}"], value) for name, value in layer.params.items())
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        metadata = file.metadata()
    assert (metadata["format"], metadata["version"]) == ("gradcore.checkpoint", "1")
    assert json.loads(metadata["parts"])["step"] == {"kind": "value", "state": 4}


def test_nothing_at_all(path: Path) -> None:
    save_checkpoint(path)
    assert load_checkpoint(path) == {}


# ---- going on --------------------------------------------------------------------------------------------------------


class Run:
    """A training run with every kind of chance in it: initial weights, dropout, batches."""

    def __init__(self, seed: int, generators: str) -> None:
        made = [rng(seed) for _ in range(3)]
        a, b, self.batches = {"one": [made[0]] * 3, "one each": made, "own": [None, None, made[2]]}[generators]
        self.model = gradcore.Sequential(
            gradcore.RNN(3, 8, num_layers=2, dropout=0.4, rng=a),
            gradcore.Sequential(gradcore.GRU(8, 12, num_layers=2, dropout=0.3, rng=b)),
            gradcore.LastStep(),
            gradcore.Linear(12, 1, rng=self.batches),
        )
        self.optimizer = optim.Adam(self.model, lr=1e-2)
        self.losses: list[float] = []

    def go(self, steps: int) -> None:
        for _ in range(steps):
            x = self.batches.standard_normal((7, 4, 3)).astype(np.float32)
            batch = (x, x.sum(axis=(0, 2))[:, None], [7, 5, 7, 2])
            history = gradcore.fit(self.model, [batch], gradcore.losses.mse, self.optimizer, epochs=1, max_norm=1.0)
            self.losses += history.loss.tolist()

    def parts(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer": self.optimizer, "batches": self.batches}


@pytest.mark.kernels
@pytest.mark.parametrize("generators", ["one", "one each", "own"])
@pytest.mark.parametrize("stop", [1, 25, 49])
def test_a_resumed_run_has_the_bits_of_one_that_never_stopped(path: Path, stop: int, generators: str) -> None:
    run = Run(0, generators)
    run.go(stop)
    save_checkpoint(path, **run.parts(), losses=run.losses)
    run.go(50 - stop)

    resumed = Run(1, generators)
    resumed.go(2)
    resumed.losses = load_checkpoint(path, **resumed.parts())["losses"]
    resumed.go(50 - stop)
    assert len(run.losses) == 50
    assert same(resumed.losses, run.losses)
    assert same_bits(resumed.model.flat_params, run.model.flat_params)
    assert same(resumed.optimizer.state_dict(), run.optimizer.state_dict())
    assert same_bits(resumed.batches.random(4), run.batches.random(4))


def test_without_the_dropouts_generators_a_resumed_run_would_differ(path: Path) -> None:
    """Or the test above could not fail."""
    run, resumed = Run(0, "own"), Run(1, "own")
    save_checkpoint(path, model=Box(run.model.state_dict()), optimizer=run.optimizer, batches=run.batches)
    box = Box(None)
    load_checkpoint(path, model=box, optimizer=resumed.optimizer, batches=resumed.batches)
    resumed.model.load_state_dict(box.state)
    run.go(2)
    resumed.go(2)
    assert run.losses != resumed.losses


def test_generators_shared_in_another_way_are_refused(path: Path) -> None:
    run, other = Run(0, "one"), Run(1, "one each")
    save_checkpoint(path, **run.parts())
    before = other.model.state_dict()
    with pytest.raises(ValueError, match=r"model: its layers share generators as \[0, 1\], .* \[0, 0\]"):
        load_checkpoint(path, **other.parts())
    assert same(other.model.state_dict(), before)


@pytest.mark.parametrize(
    ("kind", "place"), [("MT19937", 625), ("MT19937", -1), ("MT19937", 10**7), ("Philox", 10**7), ("Philox", -1)]
)
def test_a_generator_beyond_its_block_of_numbers_is_refused(path: Path, kind: str, place: int) -> None:
    """NumPy would read from there, wherever that is in memory."""
    state = getattr(np.random, kind)(0).state
    (state["state"] if kind == "MT19937" else state)["pos" if kind == "MT19937" else "buffer_pos"] = place
    broken = np.random.Generator(getattr(np.random, kind)())
    broken.bit_generator.state = state
    save_checkpoint(path, rng=broken)
    generator = np.random.Generator(getattr(np.random, kind)(1))
    before = generator.bit_generator.state
    with pytest.raises(ValueError, match=f"rng: expected a position from 0 to .* got {place}"):
        load_checkpoint(path, rng=generator)
    assert same(generator.bit_generator.state, before)


def test_layers_without_dropout_bring_no_generator(path: Path) -> None:
    """So a trained layer loads into one whose weights were drawn with another kind of generator."""
    layer = gradcore.LSTM(2, 3, num_layers=2, rng=np.random.Generator(np.random.MT19937(0)))
    save_checkpoint(path, layer=layer)
    other = gradcore.LSTM(2, 3, num_layers=2)
    load_checkpoint(path, layer=other)
    assert same_bits(other.flat_params, layer.flat_params)


def test_only_the_parts_that_are_passed_are_restored(path: Path) -> None:
    saved, optimizer = trained()
    save_checkpoint(path, model=saved, optimizer=optimizer, rng=rng(8), step=3)
    model, other = trained(seed=1)
    before = other.state_dict()
    assert load_checkpoint(path, model=model) == {"step": 3}
    assert same_bits(model.flat_params, saved.flat_params)
    assert same(other.state_dict(), before)
    assert load_checkpoint(path) == {"step": 3}


# ---- parts that do not fit: nothing is changed -----------------------------------------------------------------------


def everything(parts: dict[str, Any]) -> list[Any]:
    return [part.bit_generator.state if isinstance(part, np.random.Generator) else part.state_dict()
            for part in parts.values()]  # fmt: skip


SAVED_MODEL, SAVED_OPTIMIZER = trained()
WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "missing parts": (
        {"scaler": Box(1), "other": Box(1)},
        KeyError,
        "the checkpoint has no other and no scaler; it has model, optimizer, rng, box, step",
    ),
    "another shape": ({"model": gradcore.Linear(3, 2)}, KeyError, "model: state_dict: missing"),
    "another optimizer": ({"optimizer": optim.SGD(SAVED_MODEL)}, ValueError, "optimizer: .* of SGD, got 'Adam'"),
    "another generator": ({"rng": np.random.Generator(np.random.MT19937(0))}, ValueError, "rng: .*MT19937"),
    "a generator for an object": ({"rng": Box(1)}, ValueError, "rng: expected the state of an object, the checkpoint "),
    "an object for a generator": ({"box": rng()}, ValueError, "box: expected the state of a generator, the checkpoint"),
    "an object for a value": ({"step": Box(1)}, ValueError, "step: expected the state of an object, .* a plain value"),
    "a value": ({"step": 3}, TypeError, "step: expected an object with state_dict and load_state_dict, .* got int"),
    "an object that refuses": ({"box": Refusing({"a": 1})}, ValueError, "box: not with me"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("turned", [False, True])
def test_what_does_not_fit_changes_nothing(path: Path, wrong: str, turned: bool) -> None:
    changed, error, message = WRONG[wrong]
    save_checkpoint(path, model=SAVED_MODEL, optimizer=SAVED_OPTIMIZER, rng=rng(8), box=Box({"b": 2}), step=3)
    model, optimizer = trained(seed=1)
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "rng": rng(9), "box": Box({"a": 1})}
    parts = {name: part for name, part in (parts | changed).items() if part is not None}
    parts = dict(reversed(parts.items())) if turned else parts
    stateful = {name: part for name, part in parts.items() if not isinstance(part, int)}
    before = everything(stateful)
    with pytest.raises(error, match=message):
        load_checkpoint(path, **parts)
    assert same(everything(stateful), before)


@pytest.mark.parametrize(("other", "error", "message"), [
    (gradcore.Linear(2, 4), ValueError, r"model: weight: expected shape \(4, 2\), got \(2, 4\)"),
    (gradcore.Linear(4, 2, dtype=np.float64), TypeError, "model: weight: expected float64, got float32"),
])  # fmt: skip
def test_shapes_and_dtypes_are_those_of_the_object(path: Path, other: Any, error: Any, message: str) -> None:
    save_checkpoint(path, model=gradcore.Linear(4, 2), rng=rng(1))
    generator, before = rng(2), other.state_dict()
    with pytest.raises(error, match=message):
        load_checkpoint(path, rng=generator, model=other)
    assert generator.bit_generator.state == rng(2).bit_generator.state
    assert same(other.state_dict(), before)


def test_an_interrupt_while_restoring_changes_nothing(path: Path) -> None:
    class Interrupted(Box):
        n = 0

        def load_state_dict(self, state: Any) -> None:
            super().load_state_dict(state)
            self.n += 1
            if self.n == 1:
                raise KeyboardInterrupt

    save_checkpoint(path, a=Box(1), b=Box(2), rng=rng(0))
    a, b, generator = Box(10), Interrupted(20), rng(1)
    with pytest.raises(KeyboardInterrupt):
        load_checkpoint(path, rng=generator, a=a, b=b)
    assert (a.state, b.state) == (10, 20)
    assert generator.bit_generator.state == rng(1).bit_generator.state


@pytest.mark.parametrize(("value", "error", "message"), [
    ({"x": [1, {2}]}, TypeError, "part/x/1: expected dicts, lists, arrays, numbers, strings, bools and None, got set"),
    ({"x": 1j}, TypeError, "part/x: expected .* got complex"),
    ({"x": {3: 1}}, TypeError, "part/x: expected strings as keys, got 3"),
    ({"x": np.array([None])}, TypeError, "part/x: expected bools, integers or floats of at most 64 bits, got object"),
    ({"x": np.zeros(2, np.complex64)}, TypeError, "part/x: expected bools, .* got complex64"),
    ({"x": np.array(["a"])}, TypeError, "part/x: expected bools, .* got <U1"),
    (np.ma.masked_array([1.0], [True]), TypeError, "part: masked arrays are not supported"),
    (SAVED_MODEL.forward, TypeError, "part: expected .* got method"),
    ({"\ud800": np.zeros(2)}, ValueError, "surrogates not allowed"),
])  # fmt: skip
def test_what_cannot_be_stored_is_refused_before_a_file_is_touched(
    path: Path, value: Any, error: Any, message: str
) -> None:
    save_checkpoint(path, part=1)
    for part in (value, Box(value)):
        with pytest.raises(error, match=message):
            save_checkpoint(path, part=part)
    assert load_checkpoint(path) == {"part": 1}
    assert files(path.parent) == [path.name]


def test_names_and_sizes_that_the_format_does_not_allow(path: Path) -> None:
    with pytest.raises(ValueError, match="__metadata__: the format reserves this name"):
        save_checkpoint(path, __metadata__=np.zeros(2))
    with pytest.raises(ValueError, match=r"parts: cannot be stored: .*header too large"):
        save_checkpoint(path, text="x" * 100_000_001)
    assert files(path.parent) == []


def test_without_safetensors_it_says_what_to_install(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(path, step=1)
    for name in [name for name in sys.modules if name.split(".")[0] == "safetensors"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    for use in (lambda: save_checkpoint(path, step=1), lambda: load_checkpoint(path)):
        with pytest.raises(ImportError, match=r'pip install "gradcore\[checkpoint\]"'):
            use()


# ---- damaged files ---------------------------------------------------------------------------------------------------


def test_a_missing_file_is_a_missing_file(path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such checkpoint: .*run\.safetensors"):
        load_checkpoint(path)
    save_checkpoint(path, step=1)
    save_checkpoint(path, step=2)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"the checkpoint before it is .*run\.safetensors\.previous"):
        load_checkpoint(path)
    assert load_checkpoint(_files.previous_path(path)) == {"step": 1}


def test_a_damaged_file_names_the_one_before(path: Path) -> None:
    save_checkpoint(path, step=1)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"run\.safetensors: not a gradcore checkpoint: cut off[^;]*$"):
        load_checkpoint(path)
    save_checkpoint(path, step=2)
    save_checkpoint(path, step=3)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(
        ValueError, match=r"run\.safetensors: not a gradcore checkpoint: .*before it is .*safetensors\.previous$"
    ):
        load_checkpoint(path)
    assert load_checkpoint(_files.previous_path(path)) == {"step": 2}


def assembled(header: Any, data: bytes = b"", claimed: int | None = None) -> bytes:
    """A file of this format, true or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if claimed is None else claimed) + text + data


def with_parts(text: str, **tensors: Any) -> bytes:
    """A file whose checksum is right, whatever its parts say."""
    metadata = {"format": checkpoint.FORMAT, "version": checkpoint.VERSION, "parts": text}
    return bytes(safetensors.save(tensors, metadata | {"crc32": checkpoint._checksum(tensors, text)}))


def tensor(dtype: Any = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


METADATA = {"format": "gradcore.checkpoint", "version": "1", "parts": "{}", "crc32": "a3fd80fa"}
HUGE = 2**60
DAMAGED: dict[str, bytes] = {
    "empty": b"",
    "seven bytes": bytes(7),
    "a header of no bytes": bytes(8),
    "2^60 bytes of header": assembled({}, claimed=HUGE),
    "2^64 - 1 bytes of header": assembled({}, claimed=2**64 - 1),
    "no JSON": assembled(b"\xff\xfe{"),
    "no object": assembled([]),
    "a number": assembled(3),
    "a million brackets": assembled(b"[" * 10**6),
    "objects a million deep": assembled(b'{"a":' * 10**6),
    "a number of a million digits": assembled(b'{"a":' + b"9" * 10**6 + b"}"),
    "no metadata": assembled({}),
    "metadata that are text": assembled({"__metadata__": "x"}),
    "metadata that are a list": assembled({"__metadata__": [1]}),
    "metadata that are null": assembled({"__metadata__": None}),
    "numbers as metadata": assembled({"__metadata__": METADATA | {"version": 1}}),
    "another format": assembled({"__metadata__": METADATA | {"format": "pt"}}),
    "another version": assembled({"__metadata__": METADATA | {"version": "2"}}),
    "no parts": assembled({"__metadata__": {"format": "gradcore.checkpoint", "version": "1"}}),
    "another checksum": assembled({"__metadata__": METADATA | {"crc32": "00000000"}}),
    "no checksum": assembled({"__metadata__": {k: v for k, v in METADATA.items() if k != "crc32"}}),
    "2^60 bytes of tensor": assembled({"__metadata__": METADATA, "a": tensor(shape=[HUGE // 4], offsets=[0, HUGE])}),
    "tensors end before they begin": assembled({"__metadata__": METADATA, "a": tensor(offsets=[4, 0])}),
    "tensors before the file": assembled({"__metadata__": METADATA, "a": tensor(offsets=[-4, 0])}),
    "tensors at a fraction": assembled({"__metadata__": METADATA, "a": tensor(offsets=[0.0, 4.0])}, bytes(4)),
    "no offsets": assembled({"__metadata__": METADATA, "a": {"dtype": "F32", "shape": [1]}}, bytes(4)),
    "a tensor that is a number": assembled({"__metadata__": METADATA, "a": 4}, bytes(4)),
    "offsets that are null": assembled({"__metadata__": METADATA, "a": tensor(offsets=None)}, bytes(4)),
    "overlap": assembled({"__metadata__": METADATA, "a": tensor(), "b": tensor()}, bytes(4)),
    "a hole": assembled({"__metadata__": METADATA, "a": tensor(), "b": tensor(offsets=[8, 12])}, bytes(12)),
    "more data than tensors": assembled({"__metadata__": METADATA}, bytes(4)),
    "another shape": assembled({"__metadata__": METADATA, "a": tensor(shape=[2])}, bytes(4)),
    "a negative shape": assembled({"__metadata__": METADATA, "a": tensor(shape=[-1])}, bytes(4)),
    "a shape beyond 64 bits": assembled({"__metadata__": METADATA, "a": tensor(shape=[2**63, 2], offsets=[0, 0])}),
    "no entries of 2^63": assembled({"__metadata__": METADATA, "a": tensor(shape=[0, 2**63], offsets=[0, 0])}),
    "a hundred axes": assembled({"__metadata__": METADATA, "a": tensor(shape=[1] * 100)}, bytes(4)),
    "an unknown dtype": assembled({"__metadata__": METADATA, "a": tensor(dtype="F99")}, bytes(4)),
    "a dtype that NumPy lacks": assembled({"__metadata__": METADATA, "a": tensor("BF16", [2])}, bytes(4)),
    "an unknown tensor": assembled({"__metadata__": METADATA, "a": tensor()}, bytes(4)),
    "parts that are no JSON": with_parts("{"),
    "parts that are a list": with_parts("[]"),
    "parts a million deep": with_parts("[" * 10**6),
    "a part that is a number": with_parts('{"a": 1}'),
    "a part without a kind": with_parts('{"a": {"state": 1}}'),
    "a part without a state": with_parts('{"a": {"kind": "value"}}'),
    "an unknown kind": with_parts('{"a": {"kind": "code", "state": 1}}'),
    "a kind that is a list": with_parts('{"a": {"kind": [], "state": 1}}'),
    "an object with no key": with_parts('{"a": {"kind": "value", "state": {}}}'),
    "an object with two keys": with_parts('{"a": {"kind": "value", "state": {"float": "NaN", "dict": {}}}}'),
    "dropout without a generator": with_parts('{"a": {"kind": "state", "state": 1, "shared": [0], "generators": []}}'),
    "generators that are none": with_parts('{"a": {"kind": "state", "state": 1, "shared": [], "generators": null}}'),
    "an unknown object": with_parts('{"a": {"kind": "value", "state": {"pickle": "x"}}}'),
    "a dict that is none": with_parts('{"a": {"kind": "value", "state": {"dict": 3}}}'),
    "an unknown float": with_parts('{"a": {"kind": "value", "state": {"float": "1"}}}'),
    "an array that is absent": with_parts('{"a": {"kind": "value", "state": {"array": "x"}}}'),
    "an array without a name": with_parts('{"a": {"kind": "value", "state": {"array": []}}}'),
    "values 900 deep": with_parts('{"a": {"kind": "value", "state": ' + "[" * 900 + "]" * 900 + "}}"),
    "text": b"step,loss\n1,0.5\n" * 100,
    "another safetensors file": bytes(safetensors.save({"weight": np.ones(3)})),
}  # fmt: skip


def refused(path: Path, data: bytes) -> bool:
    """Whether loading raises the one error, changing nothing and with little memory; False if it loads."""
    path.unlink(missing_ok=True)  # to write over it would make some file systems wait for the disk
    path.write_bytes(data)
    box = Box("before")
    found: ValueError | None = None
    try:
        load_checkpoint(path, box=box)
    except ValueError as error:
        found = error
    if found is not None:
        assert type(found) is ValueError  # no kind that only a JSON parser knows
        assert str(found).startswith(f"{path}: not a gradcore checkpoint: ")
        assert "\n" not in str(found)
        assert box.state == "before"
    return found is not None


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_one_clear_error(path: Path, name: str) -> None:
    tracemalloc.start()
    try:
        assert refused(path, DAMAGED[name])
        assert tracemalloc.get_traced_memory()[1] < 2**20 + 40 * len(DAMAGED[name])
    finally:
        tracemalloc.stop()


def test_10_000_damaged_files_are_10_000_clear_errors(path: Path) -> None:
    """Bytes are replaced, removed and added anywhere; what loads all the same must be what was saved."""
    state = {"w": np.arange(60, dtype=np.float32), "lr": 0.1, "seen": [1, math.inf, "text"], "n": np.arange(4)}
    save_checkpoint(path, box=Box(state))
    whole = path.read_bytes()
    n_header = 8 + int.from_bytes(whole[:8], "little")
    random, n_refused, loaded, i = rng(0), 0, [], 0
    while n_refused + len(loaded) < 10_000:
        i += 1
        data, at = bytearray(whole), int(random.integers(len(whole)))
        match i % 8:
            case 0:
                del data[at:]
            case 1:  # one bit
                data[at] ^= 1 << int(random.integers(8))
            case 2:  # a bit of the header
                data[at % n_header] ^= 1 << int(random.integers(8))
            case 3:
                n = int(random.integers(1, 40))
                data[at : at + n] = random.bytes(len(data[at : at + n]))
            case 4:
                del data[at : at + int(random.integers(1, 40))]
            case 5:
                data[at:at] = random.bytes(int(random.integers(1, 40)))
            case 6:  # a digit or bracket elsewhere in the header
                data[8 + at % (n_header - 8)] = int(random.choice(list(b'0123456789{}[]",:-eE. ')))
            case 7:
                data[:8] = struct.pack("<Q", int(2 ** random.uniform(0, 64)) % 2**64)
        if bytes(data) == whole:
            continue
        if refused(path, bytes(data)):
            n_refused += 1
        else:
            loaded.append(bytes(data))
    assert n_refused > 9_800
    for data in loaded:  # a blank for a blank, a letter in an escape: the same text in other bytes
        path.write_bytes(data)
        box = Box(None)
        load_checkpoint(path, box=box)
        assert same(box.state, state)


def test_headers_made_of_anything_are_clear_errors(path: Path) -> None:
    random = rng(1)
    for n in range(500):
        text = random.bytes(n % 60) if n % 2 else bytes(random.choice(list(b'{}[]":,0a '), size=n % 60).tolist())
        assert refused(path, assembled(text, random.bytes(n % 50)))


# ---- whatever interrupts ---------------------------------------------------------------------------------------------


def test_the_previous_checkpoint_stays(path: Path) -> None:
    for step in range(4):
        save_checkpoint(path, step=step)
        assert load_checkpoint(path) == {"step": step}
        if step:
            assert load_checkpoint(_files.previous_path(path)) == {"step": step - 1}
    assert files(path.parent) == [path.name, f"{path.name}.previous"]


def test_threads_that_write_one_file_leave_a_whole_one(path: Path) -> None:
    def write(number: int) -> None:
        for _ in range(20):
            save_checkpoint(path, number=number)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(write, range(6)))
    assert load_checkpoint(path)["number"] in range(6)
    assert load_checkpoint(_files.previous_path(path))["number"] in range(6)
    assert files(path.parent) == [path.name, f"{path.name}.previous"]


def test_a_checkpoint_goes_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "folder" / "real")
    save_checkpoint(link, step=1)
    save_checkpoint(link, step=2)
    assert link.is_symlink()
    assert files(tmp_path / "folder") == ["real", "real.previous"]
    assert load_checkpoint(link) == {"step": 2}


def test_where_there_are_no_hard_links(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    test_the_previous_checkpoint_stays(path)


def test_a_previous_file_that_is_the_same_file(path: Path) -> None:
    """Renaming one name of a file to another name of it does nothing, and would leave the temporary name."""
    save_checkpoint(path, step=1)
    os.link(path, _files.previous_path(path))
    save_checkpoint(path, step=2)
    assert files(path.parent) == [path.name, f"{path.name}.previous"]
    assert load_checkpoint(_files.previous_path(path)) == {"step": 1}


def test_file_and_folder_reach_the_disk_in_this_order(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(path, step=1)
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(handle: int) -> None:
        done.append("folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file")
        fsync(handle)

    def replaced(old: Path, new: Path) -> None:
        done.append(f"{new.suffix}")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    save_checkpoint(path, step=2)
    assert done == ["file", ".safetensors", ".previous", "folder"]


@pytest.mark.parametrize(
    ("broken", "before"),
    [("fsync", 0), ("fsync", 2), ("replace", 0), ("replace", 1), ("replace", 2), ("copy", 1), ("copy", 2)],
)
def test_a_write_that_fails_leaves_what_there_was(
    path: Path, monkeypatch: pytest.MonkeyPatch, broken: str, before: int
) -> None:
    for step in range(before):
        save_checkpoint(path, step=step)
    found = {file.name: file.read_bytes() for file in path.parent.iterdir()}

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if broken == "copy":
        monkeypatch.setattr(os, "link", fail)
        monkeypatch.setattr(Path, "read_bytes", fail)
    else:
        monkeypatch.setattr(os, broken, fail)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(path, step=9)
    monkeypatch.undo()
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == found


def test_a_full_disk_at_100_places_leaves_the_old_file(path: Path) -> None:
    """The system refuses to write beyond so many bytes, as a full disk does."""
    resource = pytest.importorskip("resource")
    value = rng().standard_normal(40_000)  # more than one buffer
    for step in range(2):
        save_checkpoint(path, value=value, step=step)
    size = path.stat().st_size
    found = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        for n in [0, 1, size - 1, *rng(1).integers(size, size=97).tolist()]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (n, hard))
            try:
                with pytest.raises(OSError, match="File too large"):
                    save_checkpoint(path, value=value, step=2)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            assert files(path.parent) == sorted(found)
            assert all((path.parent / name).read_bytes() == data for name, data in found.items())
    finally:
        signal.signal(signal.SIGXFSZ, ignored)
    save_checkpoint(path, value=value, step=2)
    assert load_checkpoint(path)["step"] == 2


KILLS = 200 if LONG else 25


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_killed_at_any_moment_one_of_the_last_two_can_be_loaded(path: Path) -> None:
    """A child writes checkpoints, each full of its number; at a random moment it is killed and the files are read."""
    clock = mmap.mmap(-1, 16)  # shared: the number of the checkpoint begun last, and of the one written last

    def write_for_ever(step: int) -> None:
        while True:
            step += 1
            clock[:8] = struct.pack("<Q", step)
            save_checkpoint(path, a=Box({"x": np.full(3000, step)}), b=Box({"x": np.full(3000, step)}), step=step)
            clock[8:] = struct.pack("<Q", step)

    def read(file: Path) -> int:
        a, b = Box(None), Box(None)
        step = load_checkpoint(file, a=a, b=b)["step"]
        assert (a.state["x"] == step).all()
        assert (b.state["x"] == step).all()
        return int(step)

    for step in (-1, 0):
        save_checkpoint(path, a=Box({"x": np.full(3000, step)}), b=Box({"x": np.full(3000, step)}), step=step)
    began = time.perf_counter()
    for _ in range(10):
        save_checkpoint(path.with_name("other"), a=Box({"x": np.full(3000, 0)}), b=Box({"x": np.full(3000, 0)}), step=0)
    one_write = (time.perf_counter() - began) / 10  # by which the delays go: a slow disk is as good as a fast one

    random, last, previous, least, during = rng(2), 0, -1, 0, 0
    for _ in range(KILLS):
        clock[:] = struct.pack("<QQ", last, last)
        child = os.fork()
        if child == 0:
            try:
                write_for_ever(last)
            finally:
                os._exit(1)
        n = int(random.integers(3))  # writes to be let through
        while struct.unpack("<Q", clock[8:])[0] < last + n or clock[:8] == struct.pack("<Q", last):
            assert os.waitpid(child, os.WNOHANG) == (0, 0)
            time.sleep(1e-4)
        time.sleep(random.uniform(0, one_write))
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
        begun, written = struct.unpack("<QQ", clock[:])
        during += begun > written
        if written > last:  # whole, the two names included; a child killed between them leaves the second as it was
            previous = written - 1
        last, least = read(path), least + n
        assert written <= last <= begun
        assert previous <= read(_files.previous_path(path)) < last
        previous = read(_files.previous_path(path))
    assert last >= least > KILLS // 2
    assert during > KILLS // 10  # in the middle of a write
