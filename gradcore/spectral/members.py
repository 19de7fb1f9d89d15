"""Find the recurrent layer of a model: the one that forecasts and measurements are about."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NoReturn

import numpy as np

from gradcore._base.check import Array
from gradcore.layers.composite import Composite
from gradcore.layers.recurrent_tape import RecurrentTape
from gradcore.layers.tape import Tape

__all__: list[str] = []  # for the package only

Path = tuple[int, ...]  # which member of the model, which member of that, ...


def is_recurrent(layer: Any) -> bool:
    """Return whether the layer has recurrent weights."""
    return hasattr(layer, "num_directions")


def recurrent_layer(model: Any, *, name: str = "layer") -> tuple[Any, Path]:
    """Return a recurrent layer or the only one of a model, and where it is."""
    found = list(_recurrent_members(model))
    if len(found) == 1:
        return found[0]
    if found:
        _ask_to_choose(name, [_reach("model", "layers", path, layer) for layer, path in found])
    if isinstance(model, Composite):
        raise TypeError(f"{name}: expected an RNN, LSTM or GRU, or a model with one; this model has none")
    raise TypeError(f"{name}: expected an RNN, LSTM or GRU, or a model with one, got {type(model).__name__}")


def has_recurrent(model: Any) -> bool:
    """Return whether the model is or holds a recurrent layer."""
    return any(True for _ in _recurrent_members(model))


def check_chain(name: str, model: Composite) -> None:
    """Refuse a subclass that may do something else than pass x from layer to layer."""
    if not model.is_chain:
        raise TypeError(
            f"{name}: {type(model).__name__} has a forward of its own, so it need not be a chain of layers; pass one "
            "of its layers, and x as that layer gets it"
        )


def recurrent_tape(tape: Any) -> Any:
    """Return a recurrent layer's tape or the only one in a model's."""
    found = list(recurrent_tapes(tape)) if isinstance(tape, Tape) else []
    if len(found) == 1:
        return found[0][0]
    if found:
        _ask_to_choose("tape", [_reach("tape", "tapes", path, one.layer) for one, path in found])
    raise TypeError(
        f"tape: expected the tape of an RNN, LSTM or GRU, or of a model with one, got {type(tape).__name__}"
    )


def own_tape(model: Any, tape: Any) -> tuple[Any, Any]:
    """Return the recurrent layer of a model and its part of the model's tape."""
    layer, path = recurrent_layer(model)
    model.check_tape(tape)
    for i in path:
        tape = tape.tapes[i]
    return layer, tape


def drive(model: Any, x: Any, *, name: str = "layer") -> tuple[Any, Any]:
    """Return the recurrent layer of a model, and what it gets when the model gets x, without dropout."""
    layer, path = recurrent_layer(model, name=name)
    for i in path:
        check_chain(name, model)
        for member in model.layers[:i]:
            x = member(x)
        model = model.layers[i]
    return layer, x


def run_without_dropout(layer: Any, x: Array, state: Any = None) -> Any:
    """Return the tape of a forward pass as in inference."""
    return layer._taped(x, state, trains=False)[1]


def steps_and_samples(layer: Any, x: Array) -> tuple[int, int]:
    """Return T and B of a sequence as the layer takes it."""
    first, second = np.shape(x)[:2]
    return (second, first) if layer.batch_first else (first, second)


def _recurrent_members(model: Any, path: Path = ()) -> Iterator[tuple[Any, Path]]:
    if is_recurrent(model):
        yield model, path
    elif isinstance(model, Composite):
        for i, member in enumerate(model.layers):
            yield from _recurrent_members(member, (*path, i))


def recurrent_tapes(tape: Tape) -> Iterator[tuple[RecurrentTape, Path]]:
    """Yield the tapes of recurrent layers within a tape, each with its place."""
    for member in tape.walk():
        if isinstance(member.tape, RecurrentTape):
            yield member.tape, member.path


def _reach(start: str, attribute: str, path: Path, layer: Any) -> str:
    """Return the expression for a member, such as model.layers[0].layers[1] (GRU)."""
    return start + "".join(f".{attribute}[{i}]" for i in path) + f" ({type(layer).__name__})"


def _ask_to_choose(name: str, choices: list[str]) -> NoReturn:
    raise ValueError(
        f"{name}: expected one recurrent layer, got a model with {len(choices)}; pass one of {', '.join(choices)}"
    )
