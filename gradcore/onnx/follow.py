"""Read the chain of layers that a graph is, by following the elements of its input."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np
from onnx import ModelProto, TensorProto, helper

from gradcore._base.check import Array
from gradcore._base.files import DAMAGE
from gradcore.layers import activations
from gradcore.layers.layer import Layer
from gradcore.layers.linear import Linear
from gradcore.layers.normalization import FeatureNorm, LayerNorm, RMSNorm
from gradcore.layers.pooling import FinalState, LastStep, MeanPool
from gradcore.layers.residual import Residual
from gradcore.layers.sequential import Sequential
from gradcore.layers.stack import Recurrent
from gradcore.onnx import cells, parts
from gradcore.onnx.files import Refusal, array_of, attributes, is_standard, opset_of, tag
from gradcore.onnx.trace import MOVES, SHAPES, Source, Sources, Step, Traced, constant, moved

__all__: list[str] = []  # for the package only

_REALS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
_INTEGERS = (TensorProto.INT32, TensorProto.INT64)
_FREE = (19, 23, 29, 31, 37)  # the sizes that axes without one get while elements are followed


def model_of(proto: ModelProto) -> Layer:
    """Return the model of a chain of nodes."""
    last = Refusal("the graph has no input")
    for shapes in _guesses(proto.graph):
        try:
            return _Reader(proto, shapes).model()
        except Refusal as refusal:
            last = refusal
    raise last


def _free_inputs(graph: Any) -> list[Any]:
    constants = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in constants]


def _dims(value: Any) -> list[int | str]:
    """Return the size of each axis, or its name if that is free."""
    dims = enumerate(value.type.tensor_type.shape.dim)
    return [d.dim_value if d.HasField("dim_value") else d.dim_param or f"{value.name}.{i}" for i, d in dims]


def _guesses(graph: Any) -> Iterator[list[list[int]]]:
    """Yield shapes of the inputs under which to follow the elements of x.

    At first the axes of x before the features have sizes that no file has by chance: what is right for them is right
    for any. But a graph may be right only for the sizes that it states, in x or, where that leaves an axis free, in y,
    as in files of PyTorch that unroll something over time. An axis of a state that has no name of its own can be either
    of the first two of x.
    """
    inputs = _free_inputs(graph)
    if not inputs:
        return
    x, *others = map(_dims, inputs)
    n = len(x) - (inputs[0].type.tensor_type.elem_type in _REALS)
    free = list(_FREE[:n])
    stated = [a if isinstance(a, int) else size for a, size in zip(x, free, strict=False)]
    guesses = [free, stated]
    y = _dims(graph.output[0])
    if len(y) == len(x) and all(isinstance(b, int) or a == b for a, b in zip(x[:n], y, strict=False)):
        pairs = zip(x, y, stated, strict=False)
        guesses.append([size if isinstance(a, int) or isinstance(b, str) else b for a, b, size in pairs])
    for leading in [guess for i, guess in enumerate(guesses) if guess not in guesses[:i] and len(guess) == n]:
        sizes = {name: size for name, size in zip(x, leading, strict=False) if isinstance(name, str)}
        unnamed = {name for name in itertools.chain(*others) if isinstance(name, str)} - sizes.keys()
        for size in dict.fromkeys(reversed(leading[:2])) if unnamed else (0,):
            sizes |= dict.fromkeys(unnamed, size)
            rest = [[sizes[a] if isinstance(a, str) else a for a in dims] for dims in others]
            yield [[*leading, *(a if isinstance(a, int) else 0 for a in x[n:])], *rest]


class _Reader:
    """Follow the elements of x through a graph, and note what happens to them."""

    def __init__(self, proto: ModelProto, shapes: list[list[int]]) -> None:
        self.graph, self.opset, self.sources = proto.graph, opset_of(proto), Sources()
        self.time: int | None = None  # which of x's axes is time
        self.lengths = ""  # the input that has them, if a layer takes any
        self.pooled: dict[tuple[int, bool], Source] = {}
        self.values: dict[str, Any] = {"": None} | {t.name: array_of(t) for t in self.graph.initializer}
        inputs = _free_inputs(self.graph)
        kind = inputs[0].type.tensor_type.elem_type
        double = kind == TensorProto.DOUBLE or (
            kind not in _REALS and any(a is not None and a.dtype == np.float64 for a in self.values.values())
        )
        self.dtype = np.dtype(np.float64 if double else np.float32)
        self.kinds = {"": kind}  # of the graph's inputs by name, that of x by no name
        for i, (value, shape) in enumerate(zip(inputs, shapes, strict=True)):
            if not shape or 0 in shape:
                raise Refusal(f"{value.name}: expected an input of known rank with at least one element, got {shape}")
            self.kinds[value.name] = value.type.tensor_type.elem_type
            role = "input" if i else "chain" if kind in _REALS else "integers"
            self.values[value.name] = Traced(self.sources.new(shape, role=role, name=value.name).numbers)

    # ---- the graph as a whole ------------------------------------------------------------------------------------

    def model(self) -> Layer:
        for node in self.graph.node:
            try:
                made = self.evaluate(node)
            except Refusal as refusal:  # which matters only if the model needs it
                made = [refusal] * len(node.output)
            self.values |= {name: value for name, value in zip(node.output, made, strict=False) if name}
        name = self.graph.output[0].name
        value = self.output(name)
        try:
            source, y = self.settled(value)
        except Refusal as refusal:
            raise Refusal(f"{name}: {refusal}") from None
        if y.shape != source.shape or not np.array_equal(y, source.numbers):
            raise Refusal(f"{name}: the output has its axes in another order than the input has")
        self.check_finals(source)
        chain = self.assembled(source.steps)
        if not chain:
            raise Refusal("the graph computes nothing")
        return chain[0] if len(chain) == 1 else self.built(Sequential, chain)

    def output(self, name: str) -> Traced:
        value = self.values.get(name)
        if isinstance(value, Refusal):
            raise value
        if not isinstance(value, Traced):
            raise Refusal(f"{name}: the output does not depend on the input")
        return value

    def check_finals(self, source: Source) -> None:
        """Raise unless all outputs after y are final states of the model."""
        steps = {id(step) for step in _all_steps(source.steps)}
        known = [np.empty(0, np.int64)]
        for its in self.sources:
            if its.steps and id(its.steps[-1]) in steps:
                known += [its.numbers.ravel()] if its.role == "state" else []
                known += [its.final.ravel()] if its.final is not None else []
        for value in self.graph.output[1:]:
            if not np.isin(self.output(value.name).array, np.concatenate(known)).all():
                raise Refusal(f"{value.name}: an output besides y that is no final state of the model")

    def assembled(self, steps: Sequence[Step]) -> list[Layer]:
        """Return the layers of some steps, with recurrent ones stacked where they can be one layer."""
        chain: list[Layer] = []
        groups: list[list[Step]] = []
        for step in steps:
            if groups and _continues(groups[-1][-1], step):
                groups[-1].append(step)
            else:
                groups.append([step])
        for group in groups:
            step = group[0]
            if step.op == "Residual":
                branch, scale = step.value
                chain.append(self.built(Residual, self.assembled(branch), scale=scale))
            elif step.layer is None:
                raise Refusal(f"{step.node}: is not a part of a layer that gradcore has")
            elif isinstance(step.layer, Recurrent):
                for state, row in step.states:
                    if row or len(group) * step.layer.num_directions != state.shape[0]:
                        raise Refusal(f"{step.node}: its layers take only a part of the initial state {state.name}")
                chain.append(cells.stacked([level.layer for level in group]))
            else:
                chain.append(step.layer)
        return chain

    def built(self, cls: Callable[..., Layer], chain: list[Layer], **options: Any) -> Layer:
        try:
            return cls(*chain, **options)
        except (TypeError, ValueError) as error:
            raise Refusal(f"the layers do not make a model: {error}") from None

    # ---- single nodes --------------------------------------------------------------------------------------------

    def evaluate(self, node: Any) -> list[Any]:
        """Return what a node makes of its inputs."""
        inputs = []
        for name in node.input:
            if name not in self.values:
                raise Refusal(f"{tag(node)}: {name!r} comes from no node before it")
            if isinstance(self.values[name], Refusal):
                raise self.values[name]
            inputs.append(self.values[name])
        try:
            return self.made(node, inputs)
        except Refusal as refusal:
            raise Refusal(f"{tag(node)}: {refusal}") from None
        except (*DAMAGE, MemoryError) as error:
            raise Refusal(f"{tag(node)}: {error}") from None

    def made(self, node: Any, inputs: list[Any]) -> list[Any]:
        op = node.op_type
        if not is_standard(node):
            raise Refusal(f"operators of {node.domain} are not supported")
        if not any(isinstance(value, Traced) for value in inputs):
            return constant(node, inputs, self.opset)
        if op in _READERS:
            return [_READERS[op](self, node, inputs)]
        if op in cells.RECURRENT:
            return self.recurrent(node, inputs)
        if op in SHAPES or (op in MOVES and not (op == "Gather" and isinstance(inputs[1], Traced))):
            return moved(node, inputs, self.opset)
        return [self.layer(node, inputs)]

    def weights(self, inputs: Sequence[Any]) -> list[Array | None]:
        """Return the constant ones among the inputs of a node, real ones in the model's dtype."""
        found: list[Array | None] = []
        for value in inputs:
            array = None if isinstance(value, Traced) else value
            if array is not None and array.dtype.kind == "f" and array.dtype != self.dtype:
                if not np.can_cast(array.dtype, self.dtype, "safe"):
                    raise Refusal(f"a constant of {array.dtype} in a model of {self.dtype}")
                array = array.astype(self.dtype)
            found.append(array)
        return found

    def layer(self, node: Any, inputs: list[Any]) -> Traced:
        """A node that is one layer"""
        given = self.weights(inputs)
        layer: Any = parts.layer_of(node.op_type, attributes(node), given, self.dtype)
        if layer is None:
            raise Refusal("is not supported")
        step = Step(tag(node), layer)
        if node.op_type == "Gather":
            return self.looked_up(step, inputs[1])
        if not isinstance(inputs[0], Traced) or any(isinstance(value, Traced) for value in inputs[1:]):
            raise Refusal("expected x as the first input, and constants")
        source, array = self.settled(inputs[0])
        if node.op_type in ("Gemm", "MatMul", "LayerNormalization", "RMSNormalization"):
            return self.along_features(step, source, array)
        if node.op_type == "BatchNormalization":
            self.check_features(source, array, axis=1, n=layer.num_features)
        if node.op_type == "PRelu" and layer.num_parameters > 1:
            slopes = np.broadcast_to(given[1], array.shape) if given[1] is not None else array
            features = (array - source.base) % source.shape[-1]
            if layer.num_parameters != source.shape[-1] or (layer.params["weight"][features] != slopes).any():
                raise Refusal("expected one slope for each feature")
        return self.each(step, source, array)

    def each(self, step: Step, source: Source, array: Array) -> Traced:
        """A step that acts on each element by itself, or on each feature in the same way everywhere"""
        after = self.sources.new(source.shape, (*source.steps, step))
        return Traced(array - source.base + after.base)

    def along_features(self, step: Step, source: Source, array: Array) -> Traced:
        """A step that makes other features of those of each sample"""
        layer = step.layer
        is_linear = isinstance(layer, Linear)
        n_in, n_out = (layer.in_features, layer.out_features) if is_linear else layer.normalized_shape * 2
        self.check_features(source, array, axis=array.ndim - 1, n=n_in)
        after = self.sources.new((*source.shape[:-1], n_out), (*source.steps, step))
        return Traced(after.base + self.samples(source, array) * n_out + np.arange(n_out))

    def samples(self, source: Source, array: Array) -> Array:
        """Return the number of each sample of an array with the features on the last axis, (..., 1)."""
        return np.asarray((array[..., :1] - source.base) // source.shape[-1])

    def check_features(self, source: Source, array: Array, *, axis: int, n: int) -> None:
        """Raise unless an axis of an array holds the features of the source, of which there are n."""
        along = [1] * array.ndim
        if source.role != "chain" or source.shape[-1] != n or not 0 <= axis < array.ndim or array.shape[axis] != n:
            raise Refusal(f"expected {n} features on axis {axis}, got an array of shape {array.shape}")
        along[axis] = n
        if ((array - source.base) % n != np.arange(n).reshape(along)).any():
            raise Refusal(f"expected the features on axis {axis}, in their order")

    def looked_up(self, step: Step, x: Traced) -> Traced:
        source = self.sources.of(x.array)
        if source.role != "integers":
            raise Refusal("expected the integers of x")
        n = step.layer.embedding_dim
        after = self.sources.new((*source.shape, n), (*source.steps, step))
        return Traced(after.base + (x.array - source.base)[..., None] * n + np.arange(n))

    # ---- what an array holds -------------------------------------------------------------------------------------

    def settled(self, value: Traced) -> tuple[Source, Array]:
        """Return the source whose elements an array has, all of them, after the layer that chose some if need be."""
        array = value.array
        source = self.sources.of(array)
        whole = source.role == "chain" and source.is_whole(array)
        if whole and array.ndim >= len(source.shape):  # of one step alone, the last one can be all
            return source, array
        if source.final is not None:
            chosen = source.final.transpose(1, 0, 2).reshape(source.final.shape[1], -1)
            place = _holds(array, chosen)
            if place is not None:
                return self.after_pooling(source, chosen.shape, place, len(source.final) == 2)
        if source.role == "chain" and len(source.shape) == 3 and not self.lengths:
            for axis in (0, 1) if self.time is None else (self.time,):
                chosen = source.numbers.take(-1, axis=axis)
                place = _holds(array, chosen)
                if place is not None:
                    self.set_time(axis)
                    return self.after_pooling(source, chosen.shape, place, False)
        if not whole:
            raise Refusal("expected all of an array, or the last step of each sequence; got another part of it")
        return source, array

    def after_pooling(self, source: Source, shape: Any, place: Array, both: bool) -> tuple[Source, Array]:
        key = id(source), both
        if key not in self.pooled:
            make: Any = FinalState if both else LastStep
            layer = make(batch_first=self.time == 1, dtype=self.dtype)
            self.pooled[key] = self.sources.new(shape, (*source.steps, Step("the last step", layer)))
        return self.pooled[key], place + self.pooled[key].base

    def set_time(self, axis: int) -> None:
        if self.time not in (None, axis):
            raise Refusal("reads along another axis than the layers before it")
        self.time = axis

    # ---- recurrent nodes -----------------------------------------------------------------------------------------

    def recurrent(self, node: Any, inputs: list[Any]) -> list[Any]:
        named = dict(zip(("X", *cells.INPUTS), inputs, strict=False))
        if not isinstance(named["X"], Traced):
            raise Refusal("its sequences are constant")
        given = attributes(node)
        batch_first = bool(given.get("layout", 0))
        source, x = self.settled(named["X"])
        if source.role != "chain" or len(source.shape) != 3:
            raise Refusal(f"expected sequences, got an array of shape {source.shape}")
        swapped = _axes_of(source, x)
        self.set_time(int(swapped != batch_first))
        layer: Any = parts.layer_of(node.op_type, given | {"layout": self.time}, self.weights(inputs), self.dtype)
        if cells.text(given.get("direction", "forward")) == "reverse":
            raise Refusal("a layer that reads in reverse only; layers reads it as a bidirectional one")
        if layer.input_size != source.shape[-1]:
            raise Refusal(f"expected {layer.input_size} features, got {source.shape[-1]}")
        D, H = layer.num_directions, layer.hidden_size
        B = source.shape[1 - (self.time or 0)]
        ragged = self.takes_lengths(named.get("sequence_lens"), B)
        states = [self.initial(named.get(name), (D, B, H), batch_first) for name in ("initial_h", "initial_c")]
        states = states[: len(layer.cell.states)]
        if any(states) and not all(states):
            raise Refusal("expected all parts of the initial state from the graph's inputs, or none")
        step = Step(tag(node), layer, states=tuple(states) if all(states) else ())
        steps = (*source.steps, step)
        after = self.sources.new((*source.shape[:2], D * H), steps)
        numbers = after.numbers.swapaxes(0, 1) if self.time else after.numbers
        y = numbers.reshape(*numbers.shape[:2], D, H)
        if ragged:
            last = self.sources.new((D, B, H), steps, "state")
            last.final = final = last.numbers
        else:
            after.final = final = np.stack([y[-1, :, 0], y[0, :, -1]][:D])
        cell = self.sources.new((D, B, H), steps, "state").numbers
        if batch_first:
            return [Traced(y.swapaxes(0, 1)), Traced(final.swapaxes(0, 1)), Traced(cell.swapaxes(0, 1))]
        return [Traced(y.swapaxes(1, 2)), Traced(final), Traced(cell)]

    def takes_lengths(self, value: Any, B: int) -> bool:
        """Whether a recurrent layer has lengths, those of an input of the graph"""
        if value is None:
            return False
        source = self.sources.of(value.array) if isinstance(value, Traced) else None
        if (
            source is None
            or source.role != "input"
            or source.shape != (B,)
            or _holds(value.array, source.numbers) is None
        ):
            raise Refusal("expected sequence_lens from an input of the graph")
        if self.lengths not in ("", source.name):
            raise Refusal("expected the same sequence_lens as those of the layers before it")
        self.lengths = source.name
        return True

    def initial(self, value: Any, shape: tuple[int, int, int], batch_first: bool) -> Any:
        """Return where a part of the initial state comes from: an input of the graph, and its first row; or None."""
        if value is None:
            return None
        if not isinstance(value, Traced):
            if value.any():
                raise Refusal("has an initial state that is constant and not zero")
            return None
        array = value.array.swapaxes(0, 1) if batch_first and value.array.ndim == 3 else value.array
        source = self.sources.of(array)
        numbers = source.numbers
        if source.role == "input" and array.shape == shape and numbers.ndim == 3 and numbers.shape[1:] == shape[1:]:
            row = int(source.places(array)[0].min())
            if np.array_equal(array, numbers[row : row + shape[0]]):
                return source, row
        raise Refusal(f"expected an initial state that is zero or an input of the graph, of shape {shape}")

    # ---- operations that are parts of layers ---------------------------------------------------------------------

    def same(self, node: Any, inputs: list[Any]) -> Traced:
        """Dropout, which does nothing in inference"""
        value: Traced = inputs[0]
        if len(inputs) > 2 and inputs[2] is not None and np.any(inputs[2]):
            raise Refusal("training_mode is not supported")
        return value

    def cast(self, node: Any, inputs: list[Any]) -> Traced:
        value: Traced = inputs[0]
        source, to = self.sources.of(value.array), attributes(node).get("to")
        kind = self.kinds.get(source.name)
        same = (self.kinds[""], helper.np_dtype_to_tensor_dtype(self.dtype)) if source.role == "chain" else (kind,)
        if to not in (_INTEGERS if kind in _INTEGERS else same):
            raise Refusal("a change of dtype is not supported")
        return value

    def arithmetic(self, node: Any, inputs: list[Any]) -> Traced:
        """An operation on each element, with a constant or with what the graph computes"""
        op, (x, other) = node.op_type, (*inputs, None)[:2]
        if isinstance(x, Traced) and isinstance(other, Traced):
            return self.joined(node, x, other)
        if not isinstance(x, Traced):
            if op not in ("Add", "Mul"):
                raise Refusal("a constant as the first of the two is not supported")
            x, other = other, x
        if op == "Equal":
            return self.compared(x, other)
        source, array = self.settled(x)
        (number,) = self.weights([other])
        last = source.steps[-1] if source.steps else Step("")
        if op == "Add" and isinstance(last.layer, Linear) and not last.layer.bias and number is not None:
            n = last.layer.out_features
            self.check_features(source, array, axis=array.ndim - 1, n=n)
            if parts.fits(number, n):
                layer = parts.linear(last.layer.params["weight"], number)
                return self.each(Step(tag(node), layer), self.before(source), array)
        if isinstance(last.layer, FeatureNorm) and number is not None:
            scaled = _scaled(last.layer, op, number)
            if scaled is not None:
                self.check_features(source, array, axis=array.ndim - 1, n=number.size)
                return self.each(Step(tag(node), scaled), self.before(source), array)
        if number is not None and number.size != 1:
            raise Refusal("a constant array is not supported here")
        value = None if number is None else float(str(number.reshape(-1)[0]))  # the shortest decimal
        if last.op == "doubled GELU" and (op, value) == ("Mul", 0.5):
            return self.each(Step(tag(node), activations.GELU(dtype=self.dtype)), self.before(source), array)
        return self.each(Step(tag(node), op=op, value=value), source, array)

    def before(self, source: Source) -> Source:
        """Return the same elements without the last step."""
        return Source(source.base, source.shape, source.steps[:-1])

    def compared(self, x: Traced, other: Any) -> Traced:
        """Equal: whether sequences are empty"""
        source = self.sources.of(x.array)
        if source.role != "input" or np.any(other):
            raise Refusal("is not supported")
        return Traced(x.array - source.base + self.sources.new(source.shape, role="empty", name=source.name).base)

    def joined(self, node: Any, a: Traced, b: Traced) -> Traced:
        """Two values of which one is computed from the other"""
        (x, its), (y, others) = self.settled(a), self.settled(b)
        if len(x.steps) > len(y.steps):
            x, its, y, others = y, others, x, its
            if node.op_type not in ("Add", "Mul"):
                raise Refusal("is not supported in this order")
        n = len(x.steps)
        if y.steps[:n] != x.steps or n == len(y.steps):
            raise Refusal("joins two branches of which neither is computed from the other")
        rest = y.steps[n:]
        step = Step(tag(node))
        if node.op_type == "Add":
            scale = 1.0
            if rest[-1].op == "Mul" and len(rest) > 1:
                scale, rest = rest[-1].value, rest[:-1]
            step.op, step.value = "Residual", (rest, scale)
        elif node.op_type == "Mul" and len(rest) == 1 and isinstance(rest[0].layer, activations.Sigmoid):
            step.layer = activations.SiLU(dtype=self.dtype)
        elif node.op_type == "Mul" and _are(rest, "Div", "Erf", "Add") and _close(rest, math.sqrt(2), None, 1):
            step.op = "doubled GELU"
        elif _are(rest, *_ROOT.get(node.op_type, ())) and rest[0].value == 2:
            self.check_samples(x, its, y, others)
            centered = bool(x.steps) and x.steps[-1].op == "centered"
            norm = LayerNorm if centered else RMSNorm
            step.layer = norm(x.shape[-1], rest[2].value, elementwise_affine=False, dtype=self.dtype)
            return self.each(step, self.before(x) if centered else x, its)
        elif node.op_type == "Sub" and _are(rest, "ReduceMean"):
            self.check_samples(x, its, y, others)
            step.op = "centered"
            return self.each(step, x, its)
        else:
            raise Refusal("joins two values in a way that no layer does")
        if x.shape != y.shape or not np.array_equal(its - x.base, others - y.base):
            raise Refusal("joins elements at different places")
        return self.each(step, x, its)

    def check_samples(self, x: Source, its: Array, y: Source, others: Array) -> None:
        """Raise unless the second array has one number for each sample of the first"""
        self.check_features(x, its, axis=its.ndim - 1, n=x.shape[-1])
        if not np.array_equal(others - y.base, self.samples(x, its)):
            raise Refusal("joins elements of different samples")

    def mean(self, node: Any, inputs: list[Any]) -> Traced:
        given = attributes(node)
        axes = given.get("axes") if len(inputs) < 2 or inputs[1] is None else np.ravel(inputs[1]).tolist()
        source, array = self.settled(inputs[0])
        if axes is None or len(axes) != 1:
            raise Refusal("expected the mean over one axis")
        axis, keep = axes[0] % array.ndim, given.get("keepdims", 1)
        if axis == array.ndim - 1 and keep:
            self.check_features(source, array, axis=axis, n=source.shape[-1])
            after = self.sources.new((*source.shape[:-1], 1), (*source.steps, Step(tag(node), op="ReduceMean")))
            return Traced(after.base + self.samples(source, array))
        if len(source.shape) != 3 or keep or array.ndim != 3 or axis == 2:
            raise Refusal("expected the mean over the steps of sequences")
        self.set_time(axis if not _axes_of(source, array) else 1 - axis)
        if self.lengths:
            raise Refusal("a mean over all steps, those past a sequence's end as well")
        layer = MeanPool(self.time == 1, dtype=self.dtype)
        B, F = source.shape[1 - (self.time or 0)], source.shape[2]
        return Traced(self.sources.new((B, F), (*source.steps, Step(tag(node), layer))).numbers)

    def where(self, node: Any, inputs: list[Any]) -> Traced:
        if not all(isinstance(value, Traced) for value in inputs):
            raise Refusal("is not supported")
        condition, x, y = inputs
        if self.sources.of(condition.array).role == "empty":
            return self.unless_empty(condition, x, y)
        (c, first), (a, second), (b, third) = self.settled(condition), self.settled(x), self.settled(y)
        n = len(a.steps)
        above, smooth = c.steps[n:], b.steps[n:]
        same = c.steps[:n] == b.steps[:n] == a.steps and a.shape == b.shape == c.shape
        if not same or not _are(above, "Greater") or len(smooth) != 1 or above[0].value is None:
            raise Refusal("chooses in a way that no layer does")
        if not isinstance(smooth[0].layer, activations.Softplus):
            raise Refusal("chooses in a way that no layer does")
        places = second - a.base
        if not np.array_equal(first - c.base, places) or not np.array_equal(third - b.base, places):
            raise Refusal("joins elements at different places")
        layer = activations.Softplus(threshold=above[0].value, dtype=self.dtype)
        return self.each(Step(tag(node), layer), a, second)

    def unless_empty(self, condition: Traced, x: Traced, y: Traced) -> Traced:
        """The final state, which is the initial one where a sequence has no steps"""
        source = self.sources.of(y.array)
        lengths = self.sources.of(condition.array)
        part = 0 if source.final is not None else 1
        step = source.steps[-1] if source.steps else Step("")
        if lengths.name == self.lengths and source.role == "state" and len(step.states) > part:
            state, row = step.states[part]
            given = state.numbers[row : row + len(source.numbers)]
            each = condition.array.shape[-2:] == (lengths.numbers.size, 1)
            if each and np.array_equal(x.array, given) and np.array_equal(y.array, source.numbers):
                return y
        raise Refusal("chooses in a way that no layer does")


# The steps from x to its root mean square, or to the inverse of that, by how x is joined with it.
_ROOT = {"Div": ("Pow", "ReduceMean", "Add", "Sqrt"), "Mul": ("Pow", "ReduceMean", "Add", "Sqrt", "Reciprocal")}


def _holds(array: Array, numbers: Array) -> Array | None:
    """Return the place in `numbers` of each element of an array, if the array has each of them once."""
    if array.size != numbers.size:
        return None
    flat = numbers.reshape(-1)
    order = np.argsort(flat)
    found = order[np.minimum(np.searchsorted(flat, array, sorter=order), flat.size - 1)]
    whole = (flat[found] == array).all() and np.unique(array).size == array.size
    return np.asarray(found) if whole else None


def _axes_of(source: Source, array: Array) -> bool:
    """Whether an array has the first two axes of its source, of three, swapped."""
    if array.shape == source.shape and np.array_equal(array, source.numbers):
        return False
    if np.array_equal(array, source.numbers.swapaxes(0, 1)):
        return True
    raise Refusal(f"expected sequences of features, got an array of shape {array.shape} in another order")


def _all_steps(steps: Sequence[Step]) -> Iterator[Step]:
    for step in steps:
        yield step
        if step.op == "Residual":
            yield from _all_steps(step.value[0])


def _continues(below: Step, above: Step) -> bool:
    """Whether two steps can be levels of one recurrent layer"""
    if not isinstance(below.layer, Recurrent) or not isinstance(above.layer, Recurrent):
        return False
    if type(below.layer) is not type(above.layer) or len(below.states) != len(above.states):
        return False
    D = below.layer.num_directions
    rows = all(a[0] is b[0] and a[1] + D == b[1] for a, b in zip(below.states, above.states, strict=True))
    return rows and cells.stack_up(below.layer, above.layer)


def _are(steps: Sequence[Step], *ops: str) -> bool:
    return [step.op for step in steps] == list(ops)


def _close(steps: Sequence[Step], *values: float | None) -> bool:
    return all(
        value is None or math.isclose(step.value, value, rel_tol=1e-6)
        for step, value in zip(steps, values, strict=True)
    )


def _scaled(norm: Any, op: str, number: Array) -> Layer | None:
    """Return a norm with a weight, or with a bias, that it has not yet; None if the number is not one."""
    (n,) = norm.normalized_shape
    if number.shape != (n,) or op not in ("Mul", "Add"):
        return None
    if op == "Mul" and not norm.params:
        options = {"bias": False} if isinstance(norm, LayerNorm) else {}
        after = type(norm)(n, norm.eps, dtype=norm.dtype, **options)
        after.params["weight"] = number
        return cast(Layer, after)
    if op == "Add" and isinstance(norm, LayerNorm) and list(norm.params) == ["weight"]:
        with_bias = LayerNorm(n, norm.eps_used, dtype=norm.dtype)
        with_bias.params["weight"], with_bias.params["bias"] = norm.params["weight"], number
        return with_bias
    return None


_READERS: dict[str, Callable[[_Reader, Any, list[Any]], Traced]] = {
    "Dropout": _Reader.same,
    "Cast": _Reader.cast,
    **dict.fromkeys(
        ("Add", "Sub", "Mul", "Div", "Pow", "Sqrt", "Reciprocal", "Erf", "Greater", "Equal"), _Reader.arithmetic
    ),
    "ReduceMean": _Reader.mean,
    "Where": _Reader.where,
}
