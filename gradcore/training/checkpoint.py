"""Save model, optimizer, generators and numbers to one safetensors file, all or nothing."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

from gradcore._base.check import Array, check_path, refuse_mask
from gradcore._base.files import DAMAGE, NONFINITE, jsonable, previous_path, write_atomically
from gradcore.layers.layer import Layer

__all__ = ["load_checkpoint", "save_checkpoint"]

FORMAT, VERSION = "gradcore.checkpoint", "1"
MISSING = 'checkpoints need safetensors: pip install "gradcore[checkpoint]"'
MOST_HEADER = 100_000_000  # bytes

# The format's names of dtypes; it always stores them little-endian.
DTYPES = {
    "BOOL": np.dtype("?"),
    **{f"I{8 * n}": np.dtype(f"<i{n}") for n in (1, 2, 4, 8)},
    **{f"U{8 * n}": np.dtype(f"<u{n}") for n in (1, 2, 4, 8)},
    **{f"F{8 * n}": np.dtype(f"<f{n}") for n in (2, 4, 8)},
}

KINDS = {"state": "the state of an object", "generator": "the state of a generator", "value": "a plain value"}
STATE, GENERATOR, VALUE = KINDS

# The position of a generator in its block of numbers, and the largest one: NumPy reads there without a check.
PLACES: dict[str, tuple[Callable[[Any], Any], int]] = {
    "MT19937": (lambda state: state["state"]["pos"], 624),
    "Philox": (lambda state: state["buffer_pos"], 4),
}

Generator = np.random.Generator


class _Part(NamedTuple):
    """One part of a checkpoint."""

    kind: str  # one of KINDS
    state: Any
    shared: list[int]  # for each of the layer's generators the index of the first that is the same
    generators: list[Any]  # and its state


def save_checkpoint(path: str | os.PathLike[str], **parts: Any) -> None:
    """Write everything that a training run needs to continue, bit for bit, to one file.

    The file is replaced whole or not at all, whatever interrupts. The one before it stays beside it, with ``.previous``
    after its name: at any moment one of the last two checkpoints can be loaded, even after a crash of the machine.

    Parameters
    ----------
    path : path
        The file, usually with the suffix ``.safetensors``. Any reader of that format finds the arrays, under names
        like ``model/weight_ih_l0``.
    **parts
        What to save, under names of your choice:

        - Objects with `state_dict` and `load_state_dict`, such as layers, models, optimizers and a `History`. The state
          consists of dicts with strings as keys, lists, arrays, numbers, strings, bools and None. With a layer or model
          goes the state of the generators that its `forward` draws from.
        - A `numpy.random.Generator`, such as the one that shuffles the batches. (The counter of `Generator.spawn` is
          not part of its state.)
        - Plain values, made of the same things as a state: the step number, the best loss so far.

    Raises
    ------
    ImportError
        If safetensors is not installed.
    TypeError
        If something has a type that cannot be stored.
    ValueError
        If everything but the arrays takes more than the 100 MB that the format allows.
    OSError
        If the file cannot be written. The old file is unchanged then.

    See Also
    --------
    load_checkpoint : Restore what was saved.

    Notes
    -----
    The arrays are tensors of the safetensors format [1]_. All else is one JSON text in its metadata, with a CRC-32 of
    everything. Floats are exact, NaN and infinities included. Tuples come back as lists. Nothing is pickled. The whole
    file is built in memory first.

    References
    ----------
    .. [1] https://huggingface.co/docs/safetensors/index#format

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np, gradcore
    >>> rng = np.random.default_rng(0)
    >>> model = gradcore.RNN(3, 5, num_layers=2, dropout=0.5, rng=rng)
    >>> optimizer = gradcore.optim.Adam(model)
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "run.safetensors"
    >>> gradcore.save_checkpoint(path, model=model, optimizer=optimizer, rng=rng, step=7)

    In another process, with a model and an optimizer built the same way:

    >>> gradcore.load_checkpoint(path, model=model, optimizer=optimizer, rng=rng)
    {'step': 7}

    For predictions the model is enough:

    >>> gradcore.load_checkpoint(path, model=model)
    {'step': 7}
    """
    require_safetensors()
    from safetensors import SafetensorError
    from safetensors.numpy import save

    path = check_path("path", path)
    tensors: dict[str, Array] = {}
    text = json.dumps({name: _document(name, part, tensors) for name, part in parts.items()}, allow_nan=False)
    if "__metadata__" in tensors:
        raise ValueError("__metadata__: the format reserves this name")
    metadata = {"format": FORMAT, "version": VERSION, "parts": text, "crc32": _checksum(tensors, text)}
    try:
        data = save(tensors, metadata)
        if int.from_bytes(data[:8], "little") > MOST_HEADER:  # some versions write such a file, none reads it
            raise SafetensorError("header too large")
    except SafetensorError as error:
        raise ValueError(f"parts: cannot be stored: {error}") from error
    write_atomically(path, data, keep_previous=True)


def load_checkpoint(path: str | os.PathLike[str], **parts: Any) -> dict[str, Any]:
    """Restore, in place, what `save_checkpoint` wrote; nothing changes unless all of it fits.

    Parameters
    ----------
    path : path
        The file. It never reads another one: pass the name with ``.previous`` yourself if you want that.
    **parts
        The objects and generators to restore, under the names they were saved by and built the same way. Those that
        are left out are ignored, so that the model can be loaded alone. Plain values are returned, not passed.

    Returns
    -------
    dict
        The plain values by name.

    Raises
    ------
    ImportError
        If safetensors is not installed.
    FileNotFoundError
        If there is no such file. The message names the previous one if that exists.
    ValueError
        If the file is damaged or not a checkpoint, or if a part does not fit its object.
    KeyError
        If the checkpoint has no part of a given name.
    TypeError
        If an argument cannot be restored, or a part does not fit it.

    See Also
    --------
    save_checkpoint : Save a run, with an example.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np, gradcore
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "run.safetensors"
    >>> rng = np.random.default_rng(0)
    >>> gradcore.save_checkpoint(path, rng=rng, best=float("inf"))
    >>> drawn = rng.random(3)
    >>> gradcore.load_checkpoint(path, rng=rng)
    {'best': inf}
    >>> bool((rng.random(3) == drawn).all())
    True
    """
    stored = read_parts(path)
    absent = sorted(parts.keys() - stored.keys())
    if absent:
        raise KeyError(
            f"{path}: the checkpoint has no {' and no '.join(absent)}; it has {', '.join(stored) or 'nothing'}"
        )
    return load_parts(stored, parts)


def load_parts(stored: Mapping[str, _Part], parts: Mapping[str, Any]) -> dict[str, Any]:
    """Restore parts, all of them or none, and return the plain values."""
    changes: list[tuple[str, Any, Any]] = []
    for name, part in parts.items():
        changes.append((name, part, _fitting(name, part, stored[name])))
        if isinstance(part, Layer):
            changes += zip([name] * len(stored[name].shared), part.generators(), stored[name].generators, strict=True)
    before = [_state(part) for _, part, _ in changes]
    try:
        for name, part, state in changes:
            try:
                _restore(part, state)
            except Exception as error:
                kind = next((kind for kind in (KeyError, TypeError) if isinstance(error, kind)), ValueError)
                raise kind(f"{name}: {error.args[0] if error.args else error}") from error
    except BaseException:
        for (_, part, _), state in zip(changes, before, strict=True):
            _restore(part, state)
        raise
    return {name: part.state for name, part in stored.items() if part.kind == VALUE}


# ---- parts -----------------------------------------------------------------------------------------------------------


def _kind(part: Any) -> str:
    if isinstance(part, Generator):
        return GENERATOR
    return STATE if callable(getattr(part, "state_dict", None)) else VALUE


def _state(part: Any) -> Any:
    return part.bit_generator.state if isinstance(part, Generator) else part.state_dict()


def _restore(part: Any, state: Any) -> None:
    if isinstance(part, Generator):
        part.bit_generator.state = state
        place, most = PLACES.get(type(part.bit_generator).__name__, (lambda _: 0, 0))
        if not 0 <= place(_state(part)) <= most:
            raise ValueError(f"expected a position from 0 to {most} in the block of numbers, got {place(_state(part))}")
    else:
        part.load_state_dict(state)


def _shared(layer: Layer) -> list[int]:
    """Return, for each generator of a layer, the index of the first that is the same."""
    sources = [id(rng.bit_generator) for rng in layer.generators()]
    return [sources.index(source) for source in sources]


def _fitting(name: str, part: Any, stored: _Part) -> Any:
    """Return the stored state, if it fits this kind of part."""
    kind = _kind(part)
    if kind == VALUE or not (kind == GENERATOR or callable(getattr(part, "load_state_dict", None))):
        raise TypeError(
            f"{name}: expected an object with state_dict and load_state_dict, or a numpy.random.Generator, "
            f"got {type(part).__name__}; plain values are returned, not passed"
        )
    if kind != stored.kind:
        raise ValueError(f"{name}: expected {KINDS[kind]}, the checkpoint has {KINDS[stored.kind]}")
    shared = _shared(part) if isinstance(part, Layer) else []
    if shared != stored.shared:
        raise ValueError(
            f"{name}: its layers share generators as {shared}, in the checkpoint as {stored.shared}; "
            "build the model as it was built for the checkpoint"
        )
    return stored.state


def _document(name: str, part: Any, tensors: dict[str, Array]) -> dict[str, Any]:
    """Return a part as JSON, and add its arrays to `tensors`."""
    kind = _kind(part)
    document = {"kind": kind, "state": _encode((name,), part if kind == VALUE else _state(part), tensors)}
    if isinstance(part, Layer):
        states = [_state(rng) for rng in part.generators()]
        document |= {"shared": _shared(part), "generators": _encode((name, "generators"), states, tensors)}
    return document


# ---- values as JSON: every object has one key, which says what it stands for -----------------------------------------


def _encode(at: tuple[str, ...], value: Any, tensors: dict[str, Array]) -> Any:
    label = "/".join(
        key.replace("~", "~0").replace("/", "~1") for key in at
    )  # RFC 6901: every place has a label of its own
    if isinstance(value, np.ndarray):
        refuse_mask(label, value)
        dtype = value.dtype.newbyteorder("<")
        if dtype not in DTYPES.values():
            raise TypeError(f"{label}: expected bools, integers or floats of at most 64 bits, got {value.dtype}")
        tensors[label] = np.asarray(value, dtype, order="C")
        return {"array": label}
    if isinstance(value, Mapping):
        wrong = [key for key in value if not isinstance(key, str)]
        if wrong:
            raise TypeError(f"{label}: expected strings as keys, got {wrong[0]!r}")
        return {"dict": {key: _encode((*at, key), item, tensors) for key, item in value.items()}}
    if isinstance(value, (list, tuple)):
        return [_encode((*at, str(i)), item, tensors) for i, item in enumerate(value)]
    try:
        plain = jsonable(value)
    except TypeError:
        expected = "dicts, lists, arrays, numbers, strings, bools and None"
        raise TypeError(f"{label}: expected {expected}, got {type(value).__name__}") from None
    return {"float": plain} if isinstance(plain, str) and not isinstance(value, str) else plain


def _decode(document: Any, tensors: Mapping[str, Array]) -> Any:
    if isinstance(document, list):
        return [_decode(item, tensors) for item in document]
    if not isinstance(document, dict):
        return document
    ((what, content),) = document.items()
    if what == "dict":
        return {key: _decode(item, tensors) for key, item in content.items()}
    return {"array": tensors, "float": NONFINITE}[what][content]


# ---- the file --------------------------------------------------------------------------------------------------------


def _checksum(tensors: Mapping[str, Array], text: str) -> str:
    """Return a checksum of everything: the format has none, so damage to its data would go unnoticed."""
    crc = zlib.crc32(text.encode())
    for name in sorted(tensors):
        a = tensors[name]
        crc = zlib.crc32(a.reshape(-1).data, zlib.crc32(f"{name} {a.dtype.str} {a.shape}".encode(), crc))
    return f"{crc:08x}"


def require_safetensors() -> None:
    """Raise an ImportError if safetensors is not installed."""
    try:
        import_module("safetensors")
    except ImportError:
        raise ImportError(MISSING) from None


def read_parts(path: str | os.PathLike[str]) -> dict[str, _Part]:
    """Return the parts of a checkpoint; errors name the previous one too."""
    require_safetensors()
    from safetensors import SafetensorError, deserialize

    path = check_path("path", path)
    previous = previous_path(path)
    hint = f"; the checkpoint before it is {previous}" if previous.exists() else ""
    try:
        data, metadata = read_bytes(path)
        if (metadata.get("format"), metadata.get("version")) != (FORMAT, VERSION):
            found = f"{metadata.get('format')} version {metadata.get('version')}"
            raise ValueError(f"expected format {FORMAT} version {VERSION}, got {found}")
        tensors = {
            name: np.frombuffer(tensor["data"], DTYPES[tensor["dtype"]]).reshape(tensor["shape"])
            for name, tensor in deserialize(data)
        }
        del data  # the tensors are copies
        text = metadata["parts"]
        if _checksum(tensors, text) != metadata["crc32"]:
            raise ValueError("checksum mismatch; the file is damaged")
        return {name: _part(document, tensors) for name, document in json.loads(text).items()}
    except FileNotFoundError as error:
        raise FileNotFoundError(error.errno, f"no such checkpoint{hint}", str(path)) from None
    except (*DAMAGE, SafetensorError) as error:
        raise ValueError(f"{path}: not a gradcore checkpoint: {error}{hint}") from error


def read_bytes(path: str | os.PathLike[str]) -> tuple[bytes, Any]:
    """Return the content of the file and its metadata. Nothing is read beyond what the header announces."""
    with open(path, "rb") as file:
        head = file.read(8)
        left = os.fstat(file.fileno()).st_size - len(head)
        n = int.from_bytes(head, "little")
        if len(head) < 8 or n > left:
            raise ValueError(f"cut off, or another format: expected a header of {n} bytes, got {left}")
        text = file.read(n)
        header = json.loads(text)
        metadata = header.pop("__metadata__", {})
        end = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
        if end != left - n:
            raise ValueError(f"cut off or damaged: expected {end} bytes of tensors, got {left - n}")
        return head + text + file.read(left - n), metadata


def _part(document: dict[str, Any], tensors: Mapping[str, Array]) -> _Part:
    if document["kind"] not in KINDS:
        raise ValueError(f"unknown kind {document['kind']}")
    shared, generators = document.get("shared", []), _decode(document.get("generators", []), tensors)
    if not (isinstance(shared, list) and isinstance(generators, list) and len(shared) == len(generators)):
        raise ValueError(f"expected one generator state for each of {shared}, got {generators}")
    return _Part(document["kind"], _decode(document["state"], tensors), shared, generators)
