"""Follow the elements of arrays through a graph, to see what its nodes do with them.

Every element of an array that the graph computes has a number. Nodes that only move elements, such as Transpose,
Reshape or Gather, move the numbers; whatever chain of them a file has, what remains is to compare the numbers with
those of the arrangement that a layer expects.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import helper
from onnx.reference import ReferenceEvaluator

from gradcore._base.check import Array
from gradcore.onnx.files import Refusal, array_of, attributes

__all__: list[str] = []  # for the package only

# Nodes that move elements, and those that make constants of constants besides.
MOVES = frozenset({
    "Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Gather", "Concat", "Split",
})  # fmt: skip
SHAPES = frozenset({"Shape", "Size"})
CONSTANT = MOVES | SHAPES | frozenset({
    "Constant", "ConstantOfShape", "Expand", "Cast", "Range", "Where", "Equal", "Add", "Sub", "Mul", "Div", "Neg",
    "Sqrt", "Reciprocal", "Pow", "Min", "Max",
})  # fmt: skip
_MOST = 2**27  # elements of a constant that a shape asks for


@dataclass(eq=False)
class Step:
    """Something that a node does to all elements of an array: a layer, or an operation that is a part of one."""

    node: str
    layer: Any = None
    op: str = ""
    value: Any = None
    states: tuple[Any, ...] = ()  # for each part of a recurrent layer's state the input of the graph, and its first row


@dataclass(eq=False)
class Source:
    """An array whose elements have numbers from `base` on: the input of the graph after some steps, or a state."""

    base: int
    shape: tuple[int, ...]
    steps: tuple[Step, ...] = ()
    role: str = "chain"  # or "integers", an x of those; "input", a state or the lengths; "empty"; "state", a final one
    name: str = ""
    final: Array | None = None  # after a recurrent layer the numbers of its last outputs, (D, B, H)
    numbers: Array = field(init=False)

    def __post_init__(self) -> None:
        self.numbers = np.arange(self.base, self.base + math.prod(self.shape)).reshape(self.shape)

    def is_whole(self, array: Array) -> bool:
        """Whether an array of elements of this source has each of them once."""
        return array.size == self.numbers.size and bool(np.bincount(array.reshape(-1) - self.base).all())

    def places(self, array: Array) -> tuple[Array, ...]:
        """Return the index along each axis of every element."""
        return np.unravel_index(array - self.base, self.shape)


@dataclass(eq=False)
class Traced:
    """The numbers of the elements of an array."""

    array: Array


class Sources:
    """All sources, by the numbers of their elements."""

    def __init__(self) -> None:
        self._all: list[Source] = []
        self._next = 0

    def new(self, shape: Sequence[int], steps: tuple[Step, ...] = (), role: str = "chain", name: str = "") -> Source:
        """Add a source."""
        source = Source(self._next, tuple(shape), steps, role, name)
        self._all.append(source)
        self._next += max(source.numbers.size, 1)
        return source

    def __iter__(self) -> Iterator[Source]:
        return iter(self._all)

    def of(self, array: Array) -> Source:
        """Return the source of all elements of an array."""
        if not array.size:
            raise Refusal("it has no elements")
        at = bisect_right(self._all, int(array.min()), key=lambda source: source.base) - 1
        source = self._all[at]
        if int(array.max()) >= source.base + source.numbers.size:
            raise Refusal("it joins arrays of different origin")
        return source


def constant(node: Any, inputs: Sequence[Any], opset: int) -> list[Any]:
    """Return what a node makes of constants."""
    op, given = node.op_type, attributes(node)
    if op not in CONSTANT:
        raise Refusal(f"{op} of constants is not supported")
    if op == "Constant":
        return [_constant_value(given)]
    for value in given.values():
        if hasattr(value, "data_location"):
            array_of(value)
    if op in ("ConstantOfShape", "Expand") and math.prod(int(n) for n in inputs[-1].reshape(-1)) > _MOST:
        raise Refusal(f"{op}: {inputs[-1].tolist()} is too large")
    return evaluated(node, inputs, opset)


def _constant_value(given: dict[str, Any]) -> Array:
    (name, value), *_ = given.items()
    if name == "value":
        return array_of(value)
    if name in ("value_float", "value_floats"):
        return np.asarray(value, np.float32)
    if name in ("value_int", "value_ints"):
        return np.asarray(value, np.int64)
    raise Refusal(f"a constant of kind {name} is not supported")


def moved(node: Any, inputs: Sequence[Any], opset: int) -> list[Any]:
    """Return what a node that moves elements makes of traced arrays."""
    op = node.op_type
    if op in SHAPES:
        return evaluated(node, [inputs[0].array], opset)
    if op == "Concat" and not all(isinstance(value, Traced) for value in inputs):
        raise Refusal("it joins constants with what the graph computes")
    if any(isinstance(value, Traced) for value in inputs[1:]) and op != "Concat":
        raise Refusal(f"{op} at places that the graph computes is not supported")
    arrays = [value.array if isinstance(value, Traced) else value for value in inputs]
    return [Traced(array) for array in evaluated(node, arrays, opset)]


def evaluated(node: Any, arrays: Sequence[Any], opset: int) -> list[Any]:
    """Return what onnx's own reference computes for a node."""
    plain = helper.make_node(
        node.op_type,
        [f"x{i}" if array is not None else "" for i, array in enumerate(arrays)],
        [f"y{i}" for i in range(len(node.output))],
    )
    plain.attribute.extend(node.attribute)
    feeds = {f"x{i}": array for i, array in enumerate(arrays) if array is not None}
    try:
        made = ReferenceEvaluator(plain, opsets={"": opset}).run(None, feeds)
    except Exception as error:  # whatever a wrong file makes of it
        raise Refusal(f"{node.op_type}: {error}") from None
    return [np.asarray(array) for array in made]
