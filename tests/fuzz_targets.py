"""What `fuzz.py` feeds bytes to: each target decodes them, calls gradcore, and accepts only what the docs promise.

A target is a function of bytes; anything but a return is a defect found. Beside it stands a mutator, for bytes that
would not get past a header or a checksum otherwise.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import random
import struct
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import recipes
from tools import Array, unaligned

import gradcore
from gradcore import data as sources
from gradcore import optim, spectral
from gradcore.cli import main as command_line

FOLDER = tempfile.TemporaryDirectory(prefix="gradcore-fuzz-")
HERE = Path(FOLDER.name)
Mutate = Callable[[bytes, int], bytes]  # of the fuzzer: bytes and the most that may come of them


class Finding(Exception):
    """Something that the documentation does not promise."""


def expect(right: bool, what: str) -> None:
    if not right:
        raise Finding(what)


@contextlib.contextmanager
def strict() -> Iterator[None]:
    """Warnings are defects, those of a file left open too."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def written(name: str, data: bytes) -> Path:
    path = HERE / name
    path.write_bytes(data)
    return path


# ---- checkpoints and histories ---------------------------------------------------------------------------------------


def parts() -> dict[str, Any]:
    """One of everything that a checkpoint restores."""
    rng = np.random.default_rng(0)
    model = gradcore.Sequential(
        gradcore.GRU(2, 2, 2, dropout=0.5, rng=rng), gradcore.LastStep(), gradcore.Linear(2, 1, rng=rng)
    )
    return {
        "model": model,
        "optimizer": optim.AdamW(model, amsgrad=True),
        "limit": gradcore.threshold.ZClip(warmup_steps=2),
        "median": gradcore.threshold.AutoClip(history=3),
        "scaler": gradcore.GradScaler(4.0),
        "supervisor": gradcore.Supervisor(),
        "rng": rng,
        "other": np.random.Generator(np.random.MT19937(0)),
        "third": np.random.Generator(np.random.Philox(0)),
    }


def use(given: dict[str, Any]) -> None:
    """A training step and some numbers."""
    model = given["model"]
    y, tape = model.forward(np.ones((3, 1, 2), np.float32))
    model.zero_grad()
    model.backward(tape, np.ones_like(y))
    given["optimizer"].step(max_norm=given["limit"], nonfinite="skip")
    given["median"].update(1.0)
    for name in ("rng", "other", "third"):
        given[name].random(3)
        given[name].integers(9, size=3, dtype=np.int32)


def frozen(value: Any) -> Any:
    """A state as something that can be compared, to the bit."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, dict):
        return {key: frozen(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [frozen(item) for item in value]
    return repr(value)


def states(given: dict[str, Any]) -> Any:
    found = {
        name: frozen(part.bit_generator.state if isinstance(part, np.random.Generator) else part.state_dict())
        for name, part in given.items()
    }
    model = given["model"]
    return found, [frozen(rng.bit_generator.state) for rng in model.generators()], frozen(model.flat_grads)


def checkpoint(data: bytes) -> None:
    """A safetensors file; or a History as JSON, where it begins with a brace."""
    with strict():
        if data[:1] == b"{":
            _history(written("history.json", data))
        else:
            _checkpoint(written("run.safetensors", data))


def _checkpoint(path: Path) -> None:
    given = parts()
    before = states(given)
    try:
        values = gradcore.load_checkpoint(path, **given)
    except (ValueError, KeyError, TypeError) as error:
        expect(any(name in str(error) for name in (str(path), *given)), f"the message names nothing: {error}")
        expect(states(given) == before, f"half restored after {error!r}")
        return
    after, again, copy = states(given), parts(), HERE / "again.safetensors"
    gradcore.save_checkpoint(copy, **given, **values)
    expect(frozen(gradcore.load_checkpoint(copy, **again)) == frozen(values), "other values after another round")
    expect(states(again)[:2] == after[:2], "another state after another round")
    use(given)


def _history(path: Path) -> None:
    try:
        history = gradcore.History.from_json(path)
    except ValueError as error:
        expect(str(path) in str(error), f"the message does not name the file: {error}")
        return
    text = history.to_json()
    expect(gradcore.History.from_json(text).to_json() == text, "another history after another round through JSON")
    again = gradcore.History()
    again.load_state_dict(history.state_dict())
    expect(again.to_json() == text, "another history after another round through its state")
    repr(history)
    model = gradcore.RNN(2, 2, rng=np.random.default_rng(0))
    y, tape = model.forward(np.ones((3, 1, 2), np.float32))
    model.backward(tape, np.ones_like(y))
    history.append(1.0, 2.0, tape=tape)
    history.to_json()


def real_files() -> dict[str, bytes]:
    """One file of each kind, of a short run."""
    given = parts()
    use(given)
    gradcore.save_checkpoint(HERE / "seed.safetensors", **given, step=3, best=math.inf)
    model, batches = gradcore.RNN(2, 2, rng=np.random.default_rng(0)), [(np.ones((3, 1, 2), np.float32), 0.0)] * 2
    history = gradcore.fit(
        model, batches, lambda y, _: (0.5, np.ones_like(y)), optim.SGD(model), epochs=1, progress=False
    )
    history.to_json(HERE / "seed.json")
    return {name: (HERE / name).read_bytes() for name in ("seed.safetensors", "seed.json")}


ODD: list[Any] = [
    None, True, -1, 0, 1, 7, 2**31, 2**40, 2**63, 2**64, 2**128, 10**400, 0.5, 1e308, "", "NaN", "Infinity", "dict",
    "array", "model/0.weight_ih_l0", "F64", [], [[]], {}, {"dict": {}}, {"array": "x"}, {"float": "NaN"},
]  # fmt: skip


def _changed(value: Any, rng: random.Random) -> Any:
    """A JSON value with one part of it replaced, removed or doubled."""
    if isinstance(value, (dict, list)) and value and rng.random() < 0.9:
        at = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
        changed = value.copy()
        what = rng.random()
        if what < 0.08:
            del changed[at]
        elif what < 0.14:
            other = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
            changed[at] = value[other]
        elif what < 0.18 and isinstance(changed, dict):
            changed[rng.choice(["x", "__metadata__", "dict", "kind", "a\0", "\ud800"])] = value[at]
        elif what < 0.18:
            changed *= 2
        else:
            changed[at] = _changed(value[at], rng)
        return changed
    if isinstance(value, int) and rng.random() < 0.5:
        return value + rng.choice([-1, 1, 8, 2**16, -(2**16)])
    return rng.choice(ODD)


def mutate_checkpoint(data: bytes, most: int, rng: random.Random, mutate: Mutate) -> bytes:
    """One field of a header changed and all put together again, the checksum included; or any bytes."""
    with contextlib.suppress(Exception):  # what is too damaged to be taken apart
        if rng.random() < 0.95:
            mutated = _mutated_json if data[:1] == b"{" else _mutated_safetensors
            changed = mutated(data, rng, mutate)
            if len(changed) <= most:
                return changed
    return mutate(data, most)


def _mutated_json(data: bytes, rng: random.Random, mutate: Mutate) -> bytes:
    if rng.random() < 0.02:
        return b'{"format": ' + b"[" * rng.randrange(5000)
    return json.dumps(_changed(json.loads(data), rng)).encode()


def _mutated_safetensors(data: bytes, rng: random.Random, mutate: Mutate) -> bytes:
    """With its checksum, as the documentation of the format and `save_checkpoint` have it, so that it is right."""
    n = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + n]), data[8 + n :]
    metadata = header["__metadata__"]
    what = rng.random()
    if what < 0.6:
        metadata["parts"] = json.dumps(_changed(json.loads(metadata["parts"]), rng))
    elif what < 0.7:
        body = mutate(body, len(body))
        body = body.ljust(max(tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"))
    elif what < 0.75:
        header["__metadata__"] = _changed(metadata, rng)
    else:
        name = rng.choice(list(header))
        header[name] = _changed(header[name], rng)
    if rng.random() < 0.95:
        crc = zlib.crc32(metadata["parts"].encode())
        for name in sorted(set(header) - {"__metadata__"}):
            tensor = header[name]
            dtype, shape = tensor["dtype"].lower().replace("bool", "b8"), tuple(tensor["shape"])
            label = f"{name} {np.dtype(f'<{dtype[0]}{int(dtype[1:]) // 8}').str} {shape}".encode()
            begin, end = tensor["data_offsets"]
            crc = zlib.crc32(body[begin:end], zlib.crc32(label, crc))
        metadata["crc32"] = f"{crc:08x}"
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


# ---- tables and texts ------------------------------------------------------------------------------------------------


def text(data: bytes) -> None:
    """The first line says how the rest is read: ending, steps of a sequence, column. A + has the command line do it."""
    head, _, content = data.partition(b"\n")
    ending, seq_len, column, *_ = *head.decode("latin-1").split(" ", 2), "", ""
    suffix = "." + (ending.rstrip("+") if ending.rstrip("+") in ("csv", "tsv", "txt") else "csv")
    path = written(f"source{suffix}", content)
    steps = int(seq_len) if seq_len.isascii() and seq_len.isdigit() and len(seq_len) < 4 else 5
    chosen = column or None
    with strict():
        try:
            task = sources.load(str(path), steps, target=chosen)
        except ValueError as error:
            refused = str(error)
            wrong_call = refused.startswith(("seq_len", "target"))
            expect(wrong_call or refused.startswith(str(path)), f"the message does not name the file: {refused}")
        else:
            refused = ""
            _drawn(task)
        if ending.endswith("+"):
            _diagnosed(path, steps, chosen, refused)


def _drawn(task: Any) -> None:
    """A batch of the task, and its loss where the answer is always 0."""
    x, target = task.draw(np.random.default_rng(0), 3)
    expect(x.shape == (task.steps, 3, task.input_size) and x.dtype == np.float32, f"x: {x.shape}, {x.dtype}")
    expect(bool(np.isfinite(x).all() and np.isfinite(target).all()), "a batch that is not finite")
    wanted = (task.steps, 3) if task.every_step else (3, 1)
    expect(target.shape == wanted, f"target: {target.shape}, expected {wanted}")
    y = np.zeros((*wanted, task.output_size)[: 2 + task.every_step], np.float32)
    expect(math.isfinite(task.loss(y, target)[0]) and 0 <= task.baseline < 20, "a loss out of range")


def _diagnosed(path: Path, steps: int, column: str | None, refused: str) -> None:
    options = ["--steps", "2", "--hidden", "2", "--batch", "2", "--seq-len", str(steps)]
    options += [] if column is None else [f"--target={column}"]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = command_line(["diagnose", str(path), *options])
    expect(status == (2 if refused else 0), f"status {status}: {err.getvalue()}")
    expect(not refused or err.getvalue().count("\n") == 1, f"more than one line: {err.getvalue()!r}")


CELLS = [
    "", " ", "0", "-0.0", "1", "1e308", "-1e308", "1e-320", "1e400", "nan", "inf", "NA", "?", "1_0", "\u0661", "0x10",
    "1e", '"', '""', '"1"', '"1\n2"', "'", "\0", "\r", "\r\n", "\n", "\ufeff", "\u2028", "\x1c", "9" * 400, "x" * 50,
    "\U0001f600", ",", ";", "\t", "a,b", "1;2", "+1", "1,5", "- 1",
]  # fmt: skip
HEADS = [
    "csv 2",
    "csv 3 0",
    "csv 2 1",
    "csv 2 y",
    "tsv 2",
    "txt 2",
    "txt 5",
    "csv+ 3",
    "txt+ 3",
    "tsv+ 4 0",
    "csv 2 -1",
]


def mutate_text(data: bytes, most: int, rng: random.Random, mutate: Mutate) -> bytes:
    """A cell, a line, the delimiter or the first line changed; or any bytes."""
    if rng.random() < 0.15:
        return mutate(data, most)
    head, _, content = data.partition(b"\n")
    what = rng.random()
    if what < 0.15:
        head = rng.choice(HEADS).encode()
    elif what < 0.25:
        old, new = rng.sample([b",", b";", b"\t", b"\n", b"\r\n", b" "], 2)
        content = content.replace(old, new)
    elif what < 0.3:
        content = rng.choice([b"\xef\xbb\xbf", b"\xff\xfe", b"\n", b'"']) + content
    else:
        lines = content.split(b"\n")
        at = rng.randrange(len(lines))
        if what < 0.5:
            lines.insert(rng.randrange(len(lines)), lines[at])
        elif what < 0.6:
            del lines[at]
        else:
            delimiter = rng.choice([b",", b";", b"\t"])
            cells = lines[at].split(delimiter)
            cells[rng.randrange(len(cells))] = rng.choice(CELLS).encode()
            lines[at] = delimiter.join(cells)
        content = b"\n".join(lines)
    return (head + b"\n" + content)[:most]


# ---- arguments -------------------------------------------------------------------------------------------------------


class Source:
    """Choices from bytes; zeros when these are used up."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, n: int) -> bytes:
        part = self.data[self.at : self.at + n]
        self.at += n
        return part.ljust(n, b"\0")

    def below(self, n: int) -> int:
        return int.from_bytes(self.take(1 if n <= 256 else 2), "little") % n

    def choice(self, options: Any) -> Any:
        return options[self.below(len(options))]

    def flag(self) -> bool:
        return self.below(2) == 1

    def number(self) -> float:
        """Usual ones, and any double."""
        return self.choice([0.0, 1.0, 0.1, 0.9, 2.0, 1e-3, 1e30, math.inf, struct.unpack("<d", self.take(8))[0]])


DTYPES = ["<f4", "<f8", "<f2", ">f4", ">f8", "<i4", "<i8", "|u1", "|b1", "<c8", "<g", "|O", "<U3", "<M8[s]", "V4"]
SCALES = [1.0, 1.0, 1.0, 1e-3, 30.0, 1e-30, 1e30, 1e-42, 3e38]
SPECIAL = [math.nan, math.inf, -math.inf, -0.0, 0.0, 3.4e38, 1e-45]
LAYOUTS: list[Callable[[Array], Array]] = [
    np.copy,
    lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    lambda a: np.flip(np.flip(a).copy()),
    np.asfortranarray,
    lambda a: np.pad(a, 1, constant_values=99)[(slice(1, -1),) * a.ndim],
    unaligned,
    recipes.read_only,
    lambda a: np.moveaxis(np.moveaxis(a, 0, -1).copy(), -1, 0),
]


def values(source: Source, shape: tuple[int, ...], dtype: Any) -> Array:
    """Random numbers of a chosen size, with a chosen number of chosen entries among them."""
    rng = np.random.default_rng(source.below(256))
    with np.errstate(over="ignore"):
        a = np.array(source.choice(SCALES) * rng.standard_normal(shape), dtype)
    for _ in range(source.choice([0, 0, 0, 1, 3]) if a.size else 0):
        with np.errstate(over="ignore"):
            a.reshape(-1)[source.below(a.size)] = source.choice(SPECIAL)
    return a


def laid_out(source: Source, a: Array) -> Array:
    return _lay(source.choice(LAYOUTS), a)


def _lay(layout: Callable[[Array], Array], a: Array) -> Array:
    return layout(a) if a.ndim and a.dtype != object else a.copy()


def drawn_array(source: Source) -> Array:
    """Any array of few entries."""
    shape = tuple(source.choice([0, 1, 2, 3, 4, 5, 10]) for _ in range(source.below(5)))
    dtype = np.dtype(source.choice(DTYPES))
    a = values(source, shape, np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        a = np.zeros(shape, dtype) if dtype.kind in "UMV" else a.astype(dtype)
    if dtype.kind == "V":
        return a
    return laid_out(source, a)


def arguments(data: bytes) -> None:
    """The first byte chooses: a call with odd arguments, or good ones that lie in memory in an odd way."""
    source = Source(data)
    kinds: list[Callable[[Source], None]] = [odd_call, odd_call, layers, norms, optimizers, matrices, normalization]
    with strict():
        source.choice(kinds)(source)


def odd_call(source: Source) -> None:
    """A recipe of `recipes`, with one or two arguments replaced by anything."""
    recipe = source.choice(recipes.RECIPES)
    _, given = recipe.make(np.random.default_rng(0))
    case = recipes.Case(recipe, [])
    names = list(given)
    for i in range(min(1 + (source.below(4) == 0), len(names))):
        name = names.pop(source.below(len(names)))
        at = source.choice(list(recipes.paths(given[name])))
        good = recipes.part(given[name], at)
        if source.flag():
            maker = source.choice([key for key in recipes.makers_for(good) if not key.endswith("long")])
        else:
            maker = f"drawn {i}"
            number = isinstance(good, (int, float)) and source.flag()
            new = source.number() if number else drawn_array(source)
            case.drawn[maker] = lambda _, new=new: new
        case.changes.append((name, at, maker))
    outcome = recipes.run(case)
    expect(not outcome.wrong, f"{case}: {outcome.wrong} {[new(None) for new in case.drawn.values()]}")


def same(got: Any, want: Any, what: str) -> None:
    """Equal to the bit but for the sign of NaN."""
    expect(np.array_equal(np.asarray(got), np.asarray(want), equal_nan=True), f"{what}: {got}, expected {want}")


def twice(source: Source, arrays: dict[str, Any], call: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    """What a call gives for arrays that lie in some way; the same as for plain copies, and none of them is changed."""
    odd = {name: laid_out(source, a) if isinstance(a, np.ndarray) else a for name, a in arrays.items()}
    before = {name: np.asarray(a).tobytes() for name, a in odd.items()}
    got = call(odd)
    for name, a in odd.items():
        expect(np.asarray(a).tobytes() == before[name], f"{name}: was changed")
    want = call({name: a.copy() if isinstance(a, np.ndarray) else a for name, a in arrays.items()})
    for name, value in want.items():
        same(got[name], value, name)
    return got


def layers(source: Source) -> None:
    cell = source.choice(["RNN", "LSTM", "GRU"])
    sizes = 1 + source.below(12), 1 + source.below(20)
    T, B, n_layers = source.below(7), source.below(6), 1 + source.below(2)
    options: dict[str, Any] = {"bias": source.flag(), "batch_first": source.flag(), "bidirectional": source.flag()}
    dtype = np.dtype(source.choice(["f4", "f8"]))
    if cell == "RNN":
        options["nonlinearity"] = source.choice(["tanh", "relu"])
    dropout = source.choice([0.0, 0.0, 0.5, 1.0])
    options["dropout"] = dropout if n_layers > 1 else 0.0  # which has no effect there, and warns of it
    rng = np.random.default_rng(source.below(3))
    layer = getattr(gradcore, cell)(*sizes, n_layers, dtype=dtype, rng=rng, **options)
    start = rng.bit_generator.state
    gain = source.choice([1.0, 1.0, 3.0, 1e3, 1e-3])
    layer.flat_params *= dtype.type(gain)
    lead = (B, T) if options["batch_first"] else (T, B)
    directions = 1 + options["bidirectional"]
    state = (n_layers * directions, B, sizes[1])
    arrays: dict[str, Any] = {"x": values(source, (*lead, sizes[0]), dtype)}
    arrays["dy"] = values(source, (*lead, directions * sizes[1]), dtype)
    for name in ("h", "c", "dh", "dc")[:: 1 if cell == "LSTM" else 2]:
        arrays[name] = values(source, state, dtype)
    with_state, with_dstate, ragged = source.flag(), source.flag(), source.flag()
    arrays["lengths"] = np.array([source.below(T + 1) for _ in range(B)], source.choice(["i4", "i8", "u1", ">i2"]))
    step_clip = source.choice([None, None, 1.0, 0.0, math.inf, 1e-30])
    weight = source.choice([None, None, 0.1]) if cell == "RNN" else None

    def call(a: dict[str, Any]) -> dict[str, Any]:
        def pair(h: str, c: str) -> Any:
            return (a[h], a[c]) if cell == "LSTM" else a[h]

        layer.zero_grad()
        rng.bit_generator.state = start
        y, tape = layer.forward(
            a["x"], pair("h", "c") if with_state else None, lengths=a["lengths"] if ragged else None
        )
        dstate = pair("dh", "dc") if with_dstate else None
        dx = layer.backward(tape, a["dy"], dstate, step_clip=step_clip)
        if weight is not None:
            gradcore.VanishingGradientRegularizer(weight)(layer, tape, a["dy"], dstate, step_clip=step_clip)
        return {
            "y": y.copy(), "dx": dx.copy(), "grads": layer.flat_grads.copy(), "tape": tape,
            **{name: np.array(getattr(tape.telemetry, name)) for name in ("dh_norm", "dh_norm_per_sample")},
        }  # fmt: skip

    def without_tape(a: dict[str, Any]) -> dict[str, Any]:
        found = call(a)
        tapes.append(found.pop("tape"))
        return found

    tapes: list[Any] = []
    got = twice(source, arrays, without_tape)
    plain = gain <= 3 and all(np.isfinite(a).all() and (abs(a) < 1e6).all() for a in arrays.values())
    if plain and options.get("nonlinearity") != "relu":
        expect(bool(np.isfinite(got["y"]).all()), "y is not finite, and everything it is made of is")
    if T and B:
        with contextlib.suppress(ValueError, IndexError):  # what is not finite, or too short, is refused
            spectral.measure_growth(tapes[-1], index=source.below(3))
        with contextlib.suppress(ValueError, IndexError):
            spectral.effective_horizon(tapes[-1], eps=0.5)
        with contextlib.suppress(ValueError, IndexError):
            spectral.singular_values(layer, tapes[-1], k=1 + source.below(3), horizon=source.below(7))
        with contextlib.suppress(ValueError, IndexError):
            spectral.lyapunov_spectrum(layer, arrays["x"], k=1, transient=source.below(3))
        with contextlib.suppress(ValueError, IndexError):
            spectral.predict_growth(layer, arrays["x"], horizon=source.below(8))
    gradcore.clip_grad_norm_(layer, source.choice([0.0, 1.0, 1e-30, math.inf]), nonfinite="zero")


def normalization(source: Source) -> None:
    """A norm in a residual block, in training and in inference."""
    build = source.choice([gradcore.LayerNorm, gradcore.RMSNorm, gradcore.BatchNorm])
    dtype, shape = source.choice(["f4", "f8"]), (2 + source.below(9), source.below(20))
    block = gradcore.Residual(
        build(shape[1], source.choice([1e-5, 0.0, 1.0]), dtype=dtype), scale=source.choice([1, -3])
    )
    start = block.state_dict()
    arrays = {name: values(source, shape, dtype) for name in ("x", "dy")}

    def call(a: dict[str, Any]) -> dict[str, Any]:
        block.load_state_dict(start)
        block.zero_grad()
        y, tape = block.forward(a["x"])
        dx = block.backward(tape, a["dy"])
        return {"y": y, "dx": dx, "inferred": block(a["x"]), "grads": block.flat_grads.copy(), **block.state_dict()}

    got = twice(source, arrays, call)
    if np.isfinite(arrays["x"]).all() and (abs(arrays["x"]) < 1e6).all() and block.layers[0].eps:
        expect(bool(np.isfinite(got["y"]).all()), "y is not finite, and x is")


def _some(source: Source, dtypes: list[str]) -> dict[str, Array]:
    """A few arrays of one dtype, by name."""
    dtype = np.dtype(source.choice(dtypes))
    found = {}
    for i in range(source.below(4)):
        shape = tuple(source.choice([0, 1, 2, 3, 5, 17, 40]) for _ in range(source.below(4)))
        found[f"a{i}"] = values(source, shape, dtype)
    return found


def norms(source: Source) -> None:
    """Against NumPy in extended precision, and for the clipped arrays against plain copies of them."""
    arrays = _some(source, ["<f4", "<f8", "<f2"])
    p = source.choice([2.0, 2.0, 2, 1.0, 3.0, math.inf, 0.5])
    nonfinite, per_array = source.choice(["skip", "zero", "raise"]), source.flag()
    limit = source.choice([0.0, 1.0, 1e-3, 1e-40, 1e30, math.inf])
    how, axis = source.below(3), source.below(2)

    found = twice(source, arrays, lambda a: {"norm": float(gradcore.grad_norm(list(a.values()), p))})["norm"]
    flat = np.concatenate([np.zeros(1), *(a.reshape(-1).astype(np.longdouble) for a in arrays.values())])
    if np.isfinite(flat).all():
        most = np.abs(flat).max()
        want = most if p == math.inf or not most else most * (np.abs(flat / most) ** p).sum() ** (1 / p)
        if want < np.finfo(np.float64).max:
            expect(abs(found - want) <= 1e-6 * want, f"the norm is {found}, expected {want}")
    else:
        expect(not math.isfinite(found), f"the norm of what is not finite is {found}")

    def clip(a: dict[str, Array]) -> str:
        try:
            if how == 0:
                return repr(gradcore.clip_grad_norm_(a, limit, p, nonfinite=nonfinite, per_array=per_array))
            if how == 1:
                return repr(gradcore.clip_grad_value_(a, limit))
            pairs = {name: (np.ones(g.shape, g.dtype), g) for name, g in a.items()}
            return repr(gradcore.clip_grad_units_(pairs, 0.1, axis=axis, nonfinite=nonfinite))
        except (ValueError, TypeError, FloatingPointError) as error:  # no float16 there; too large for an inverse
            return repr(error)

    odd = {name: laid_out(source, a) for name, a in arrays.items()}
    odd = {name: a if a.flags.writeable else a.copy() for name, a in odd.items()}
    plain = {name: a.copy() for name, a in arrays.items()}
    got, want = clip(odd), clip(plain)
    expect(got == want, f"clipped: {got}, expected {want}")
    for name, a in plain.items():
        same(odd[name], a, name)


def optimizers(source: Source) -> None:
    """Some steps with parameters and gradients in odd places; the same as in plain ones."""
    grads = _some(source, ["<f4", "<f8"])
    start = {name: np.linspace(-1, 1, g.size).reshape(g.shape).astype(g.dtype) for name, g in grads.items()}
    rule = source.choice(list(recipes.OPTIMIZERS))
    options = dict(recipes.OPTIMIZERS[rule])
    if source.flag():
        options |= {"weight_decay": 0.1, "l1": 0.01, "maximize": source.flag()}
    numbers = [name for name, value in options.items() if type(value) is float]
    options[source.choice(numbers)] = source.number()
    limit, nonfinite = source.choice([None, 1.0, 0.0, 1e-30, math.inf]), source.choice(["skip", "zero", "raise"])
    scale = source.choice([1.0, 1.0, 2.0, 1e30, 1e-30])

    def pairs(layout: Callable[[Array], Array]) -> dict[str, tuple[Array, Array]]:
        found = {name: (_lay(layout, start[name]), _lay(layout, g)) for name, g in grads.items()}
        return {name: (p if p.flags.writeable else p.copy(), g) for name, (p, g) in found.items()}

    def steps(given: dict[str, tuple[Array, Array]]) -> Any:
        try:
            optimizer = getattr(optim, rule)(given, **options)
            norms = [float(optimizer.step(max_norm=limit, nonfinite=nonfinite, scale=scale)) for _ in range(3)]
        except (ValueError, FloatingPointError) as error:
            return repr(error)
        again = getattr(optim, rule)(given, **options)
        again.load_state_dict(optimizer.state_dict())
        expect(frozen(again.state_dict()) == frozen(optimizer.state_dict()), "another state after loading it")
        return repr(norms)

    odd, plain = pairs(source.choice(LAYOUTS)), pairs(np.copy)
    got, want = steps(odd), steps(plain)
    expect(got == want, f"{rule}: {got}, expected {want}")
    for name in plain:
        same(odd[name][0], plain[name][0], f"{rule}, {name}")
        same(odd[name][1], plain[name][1], f"{rule}, gradient of {name}")


def matrices(source: Source) -> None:
    n = source.below(8)
    shape = (n, n) if source.below(4) else (n, source.below(8))
    arrays = {"W": values(source, shape, source.choice(["f4", "f8"]))}

    def call(a: dict[str, Array]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name in ("spectral_radius", "spectral_norm", "henrici"):
            try:
                found[name] = getattr(spectral, name)(a["W"])
            except ValueError:  # not square, empty, not finite
                found[name] = -1.0
        return found

    found = twice(source, arrays, call)
    if np.isfinite(arrays["W"]).all() and min(found.values()) >= 0:
        radius, norm = found["spectral_radius"], found["spectral_norm"]
        expect(radius <= norm * (1 + 1e-5) or norm < 1e-300, f"spectral radius {radius} above the norm {norm}")


def mutate_arguments(data: bytes, most: int, rng: random.Random, mutate: Mutate) -> bytes:
    return mutate(data, most)


TARGETS: dict[str, Callable[[bytes], None]] = {"checkpoint": checkpoint, "text": text, "arguments": arguments}
MUTATORS: dict[str, Callable[[bytes, int, random.Random, Mutate], bytes]] = {
    "checkpoint": mutate_checkpoint,
    "text": mutate_text,
    "arguments": mutate_arguments,
}


def seeds(target: str) -> dict[str, bytes]:
    """What a search begins with where there is no corpus."""
    if target == "checkpoint":
        return real_files()
    if target == "text":
        table = b"year,y\n" + b"".join(b"%d,%d.5\n" % (1700 + i, i * i % 7) for i in range(12))
        return {"table": b"csv 3\n" + table, "run": b"csv+ 3 y\n" + table, "words": b"txt+ 4\nsing, goddess, the anger"}
    return {f"bytes {i}": np.random.default_rng(i).bytes(64) for i in range(64)}
