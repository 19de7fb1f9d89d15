"""Load weights that others have saved in the safetensors format."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from gradcore._base.check import Array, check_path, describe_shape
from gradcore._base.files import DAMAGE
from gradcore.training.checkpoint import DTYPES, read_bytes, require_safetensors
from gradcore.training.step import check_methods

__all__ = ["load_weights"]

SHOWN = 10  # names in an error


def load_weights(
    path: str | os.PathLike[str],
    model: Any,
    *,
    rename: Mapping[str, str | None] | Callable[[str], str | None] | None = None,
) -> None:
    """Load the parameters and buffers of a model from a safetensors file of any origin; all of them or none.

    Every parameter and buffer has to be in the file, with its shape, and nothing else; `rename` says what in the file
    is what. Names, shapes and the order of gates are PyTorch's, so the state dict of a PyTorch model of the same layers
    fits as it is. Numbers of lower precision are converted exactly, float16 and bfloat16 included.

    Parameters
    ----------
    path : path
        The file.
    model : layer or model
        What to load into.
    rename : dict or callable, optional
        The model's name for each name in the file, None to leave it out: a dict, in which names that stay can be
        missing, or a function of the name.

    Raises
    ------
    ImportError
        If safetensors is not installed.
    FileNotFoundError
        If there is no such file.
    KeyError
        If a name is missing in the file, or superfluous, or `rename` has one that is not in the file.
    TypeError
        If numbers would lose precision.
    ValueError
        If a shape differs, if two names become the same, or if the file is damaged or of another format.

    See Also
    --------
    load_checkpoint : Restore what `save_checkpoint` wrote.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import gradcore
    >>> from safetensors.numpy import save_file
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "model.safetensors"
    >>> theirs = gradcore.LSTM(3, 5, rng=0).state_dict()
    >>> save_file({f"encoder.{name}": array for name, array in theirs.items()} | {"step": theirs["bias_hh_l0"]}, path)
    >>> model = gradcore.Sequential(gradcore.LSTM(3, 5))
    >>> gradcore.load_weights(path, model, rename=lambda name: None if name == "step" else name.replace("encoder", "0"))
    >>> bool((model.params["0.bias_hh_l0"] == theirs["bias_hh_l0"]).all())
    True
    """
    path = check_path("path", path)
    check_methods("model", model, "state_dict", "load_state_dict")
    own = model.state_dict()
    found, label = _renamed(_arrays(path), rename)
    missing = [name for name in own if name not in found]
    superfluous = [label[name] for name in found if name not in own]
    if missing or superfluous:
        parts = [f"has no {_listed(missing)}"] if missing else []
        parts += [f"has {_listed(superfluous)}, which the model has not"] if superfluous else []
        raise KeyError(f"{path}: {' and '.join(parts)}; use rename to match names, or to leave some out")
    shapes = {name: (describe_shape(found[name].shape), describe_shape(array.shape)) for name, array in own.items()}
    wrong = [f"{label[name]} has shape {got} instead of {want}" for name, (got, want) in shapes.items() if got != want]
    if wrong:
        raise ValueError(f"{path}: {_listed(wrong)}")
    for name, array in own.items():
        given = found[name].dtype
        if not np.can_cast(given, array.dtype, "safe"):
            raise TypeError(
                f"{path}: {label[name]} is {given}, and the model {array.dtype}; build the model with "
                f"dtype=numpy.{given}, or convert the file"
            )
    model.load_state_dict({name: found[name].astype(array.dtype) for name, array in own.items()})


def _arrays(path: str) -> dict[str, Array]:
    require_safetensors()
    from safetensors import SafetensorError, deserialize

    try:
        tensors = dict(deserialize(read_bytes(path)[0]))  # in any order
        return {name: _array(tensors[name]) for name in sorted(tensors)}
    except FileNotFoundError:
        raise
    except (*DAMAGE, SafetensorError) as error:
        raise ValueError(f"{path}: not a safetensors file: {error}") from error


def _array(tensor: Mapping[str, Any]) -> Array:
    if tensor["dtype"] == "BF16":  # the upper half of a float32
        halves = np.frombuffer(tensor["data"], "<u2").astype(np.uint32)
        return np.asarray((halves << 16).view(np.float32).reshape(tensor["shape"]))
    if tensor["dtype"] not in DTYPES:
        raise ValueError(f"numbers of kind {tensor['dtype']} are not supported")
    return np.asarray(np.frombuffer(tensor["data"], DTYPES[tensor["dtype"]]).reshape(tensor["shape"]))


def _renamed(arrays: Mapping[str, Array], rename: Any) -> tuple[dict[str, Array], dict[str, str]]:
    """Return the arrays by the model's names, and what errors call them."""
    if isinstance(rename, Mapping):
        absent = [name for name in rename if name not in arrays]
        if absent:
            raise KeyError(f"rename: the file has no {_listed(absent)}; it has {_listed(list(arrays))}")
    elif rename is not None and not callable(rename):
        raise TypeError(f"rename: expected a dict or a callable, got {type(rename).__name__}")
    source: dict[str, str] = {}
    for theirs in arrays:
        name = rename.get(theirs, theirs) if isinstance(rename, Mapping) else rename(theirs) if rename else theirs
        if name is None:
            continue
        if not isinstance(name, str):
            raise TypeError(f"rename: expected text or None for {theirs!r}, got {name!r}")
        if name in source:
            raise ValueError(f"rename: {source[name]!r} and {theirs!r} both become {name!r}")
        source[name] = theirs
    label = {name: name if name == theirs else f"{name} ({theirs} in the file)" for name, theirs in source.items()}
    return {name: arrays[theirs] for name, theirs in source.items()}, label


def _listed(names: list[Any]) -> str:
    more = len(names) - SHOWN
    return ", ".join(map(str, names[:SHOWN])) + (f" and {more} more" if more > 0 else "") or "nothing"
