"""What backward passes do to the gradient in each layer of a model: hooks, and the tape that tells of it."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from gradcore.clip.norm import norm_of
from gradcore.layers.cell import CELLS, Cell
from gradcore.layers.tape import Profile, Tape
from gradcore.layers.telemetry import Telemetry
from gradcore.torch.layers import _Recurrent

__all__: list[str] = []  # for the package only

WHOLE = (torch.nn.RNNBase, torch.nn.RNNCellBase, torch.nn.MultiheadAttention)  # layers, whatever they consist of
ARRAYS = (torch.float16, torch.float32, torch.float64)  # the dtypes that NumPy has as well
MOST_NODES = 64  # of the graph between two layers that follow each other


class ModuleTape(Tape):
    """What is known of one module, or with `tapes` of a whole model.

    Parameters
    ----------
    layer : object
        What the rest of the package asks: `names` of the tapes, and the `cell` of a recurrent layer.
    profiles : sequence of Profile
        The norms over time.
    first_nonfinite : tuple or None
        Where a recurrent layer first met a value that is not finite.
    tapes : sequence of ModuleTape
        Those of the layers, in the order in which they were called.
    norms : sequence of (float or None, float or None)
        The norms of dL/d(input) and dL/dy of each of these.
    is_chain : bool
        Whether each layer has had what comes from the one before and from nothing else.
    """

    def __init__(
        self,
        layer: Any,
        profiles: tuple[Profile, ...] = (),
        first_nonfinite: tuple[int, int, int] | None = None,
        tapes: tuple[Tape, ...] = (),
        norms: tuple[tuple[float | None, float | None], ...] = (),
        is_chain: bool = False,
    ) -> None:
        super().__init__(layer, (), tapes=tapes)
        self._profiles, self._first_nonfinite = profiles, first_nonfinite
        self._norms, self._is_chain = norms, is_chain

    @property
    def is_chain(self) -> bool:
        """Whether each layer has had what comes from the one before and from nothing else."""
        return self._is_chain

    @property
    def first_nonfinite(self) -> tuple[int, int, int] | None:
        """Where the backward pass first met a value that is not finite."""
        return self._first_nonfinite

    def profiles(self) -> Iterator[Profile]:
        """Yield the norms over time."""
        yield from self._profiles

    def norms_at(self, i: int) -> tuple[float | None, float | None]:
        """Return the norms of dL/d(input) and dL/dy of a layer."""
        return self._norms[i]


class Described:
    """A module, as the owner of a tape."""

    def __init__(self, module: torch.nn.Module, names: tuple[str, ...] = ()) -> None:
        self.names = names
        self.cell = cell_of(module)


def cell_of(module: torch.nn.Module) -> Cell | None:
    """Return the row of the table of cells for a recurrent layer of torch.nn or a cell; None for other modules."""
    if isinstance(module, torch.nn.RNNBase):
        return CELLS.get(module.mode.lower())
    for cls, name in ((torch.nn.LSTMCell, "lstm"), (torch.nn.GRUCell, "gru"), (torch.nn.RNNCell, "rnn")):
        if isinstance(module, cls):
            return CELLS[name if name != "rnn" else f"rnn_{module.nonlinearity}"]
    return None


def layers_of(model: torch.nn.Module) -> dict[torch.nn.Module, str]:
    """Return the names of a model's layers: the modules that have no other modules in them, and those of `WHOLE`."""
    found: dict[torch.nn.Module, str] = {}

    def visit(module: torch.nn.Module, name: str) -> None:
        inner = [] if isinstance(module, WHOLE) else list(module.named_children())
        inner = [(own, child) for own, child in inner if own != "parametrizations"]
        if not inner:
            found.setdefault(module, name)
        for own, child in inner:
            visit(child, f"{name}.{own}" if name else own)

    visit(model, "")
    return found


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of what a module takes or returns."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, PackedSequence):
        yield value.data
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)


def first_tensor(*values: Any) -> Tensor | None:
    """Return the first tensor of what a module takes or returns."""
    return next(tensors_in(values), None)


def size_of(grad: Tensor) -> float:
    """Return the L2 norm of a gradient."""
    if grad.dtype in ARRAYS and grad.device.type == "cpu" and grad.layout is torch.strided:
        return norm_of(grad.detach().numpy()) or 0.0
    return float(torch.linalg.vector_norm(grad.detach().to(torch.float32).to_dense()))


def is_transformed() -> bool:
    """Whether modules are called by something that cannot have hooks on tensors: a compiler, a tracer, torch.func."""
    return bool(
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch.compiler.is_exporting()
        or torch._C._are_functorch_transforms_active()
    )


class _Norm:
    """A hook on tensors that keeps the norm of their gradients in the newest backward pass that came by."""

    __slots__ = ("_listener", "_sweep", "_value")

    def __init__(self, listener: Listener) -> None:
        self._listener, self._sweep, self._value = listener, -1, 0.0

    def __call__(self, grad: Tensor | None) -> None:
        if grad is None:  # of an output that nothing was computed from, beside one that was used
            return
        size = size_of(grad)
        if self._sweep == self._listener.sweep:  # a layer that is called twice
            size = math.hypot(self._value, size)
        self._sweep, self._value = self._listener.sweep, size

    def value(self, sweep: int) -> float | None:
        return self._value if self._sweep == sweep else None


class _Layer:
    """What is known of one layer."""

    def __init__(self, listener: Listener, module: torch.nn.Module, name: str) -> None:
        self.module, self.name, self.described = module, name, Described(module)
        self.is_cell = isinstance(module, torch.nn.RNNCellBase)
        self.dx, self.dy = _Norm(listener), _Norm(listener)
        self.used_dx = self.dx  # that of the layer before, where its output is the input
        self.steps: list[_Norm] = []  # of a cell, one for each call
        self.n_calls = 0
        self.told: Telemetry | None = None  # the telemetry that an earlier tape has told of


class Listener:
    """Put hooks on the layers of a model, and tell of its backward passes.

    Recurrent layers of this package tell of each time step by themselves; of a cell that is called once for each time
    step, a hook on each h_t does. Of all other layers only the norms of the gradient at both ends are known.

    Parameters
    ----------
    model : torch.nn.Module
        The model.

    Attributes
    ----------
    active : bool
        Whether the hooks of modules do anything.
    sweep : int
        The number of the backward pass.
    y : Tensor or None
        The newest output of the model.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.active, self.sweep, self.y = True, 0, None
        self._model = model
        self._layers = [_Layer(self, module, name) for module, name in layers_of(model).items()]
        self._order: list[_Layer] = []  # of the calls since the newest backward pass
        self._is_chain, self._ended = True, True
        self._before: tuple[Any, list[Any]] = None, []  # the newest output, and its nodes in the graph

    def attach(self, stack: ExitStack) -> None:
        """Put the hooks where they belong, until the stack is closed."""
        for layer in self._layers:

            def hook(_: Any, args: Any, kwargs: Any, output: Any, *, layer: _Layer = layer) -> None:
                self._called(layer, args, kwargs, output)

            stack.callback(layer.module.register_forward_hook(hook, with_kwargs=True).remove)
        stack.callback(self._model.register_forward_hook(self._answered).remove)

    def begin(self) -> None:
        """Begin a backward pass, or what is to count as one."""
        self.sweep += 1
        self._ended = True

    def _answered(self, module: Any, args: Any, output: Any) -> None:
        if not is_transformed():
            y = first_tensor(output)
            self.y = None if y is None or not y.is_floating_point() else y.detach()

    def _called(self, layer: _Layer, args: Any, kwargs: Any, output: Any) -> None:
        """Listen to the gradients at both ends of a layer. Returns nothing: that would become the output."""
        if not self.active or is_transformed() or not torch.is_grad_enabled():
            return
        y = first_tensor(output)
        if y is None or not y.requires_grad:
            return
        x = first_tensor(args, kwargs)
        if self._ended:
            self._order, self._is_chain, self._ended, self._before = [], True, False, (None, [])
            for each in self._layers:
                each.n_calls = 0
        before, nodes = self._before
        is_next = before is not None and before() is x
        if self._is_chain and self._order:
            self._is_chain = layer not in self._order and (is_next or _follows(x, nodes))
        if layer.is_cell:
            self._step(layer, y, args[1] if len(args) > 1 else kwargs.get("hx"))
        if is_next:
            layer.used_dx = self._order[-1].dy
        else:
            layer.used_dx = layer.dx
            if x is not None and x.requires_grad and x is not y:
                x.register_hook(layer.dx)
        y.register_hook(layer.dy)
        if layer in self._order:
            self._order.remove(layer)
        self._order.append(layer)
        self._before = weakref.ref(y), [tensor.grad_fn for tensor in tensors_in(output)]

    def _step(self, layer: _Layer, h: Tensor, hx: Any) -> None:
        """Listen to dL/dh_t of a cell; a state without a past begins a sequence."""
        state = first_tensor(hx)
        if state is None or state.grad_fn is None:
            layer.n_calls = 0
        if layer.n_calls == len(layer.steps):
            layer.steps.append(_Norm(self))
        h.register_hook(layer.steps[layer.n_calls])
        layer.n_calls += 1

    def norms(self) -> Iterator[tuple[str, float, float]]:
        """Yield the layers in the order of their calls, and the norms at both ends in the newest backward pass."""
        for layer in self._order:
            dx, dy = layer.used_dx.value(self.sweep), layer.dy.value(self.sweep)
            yield layer.name, math.nan if dx is None else dx, math.nan if dy is None else dy

    def profiles(self, module: torch.nn.Module) -> Iterator[Profile]:
        """Yield the norms over time of a cell in the newest backward pass."""
        for layer in self._layers:
            if layer.module is module:
                yield from self._tape_of(layer, self.sweep).profiles()

    def tape(self, sweep: int) -> Tape:
        """Return what a backward pass has told."""
        own = [layer for layer in self._layers if layer.module is self._model]
        if own:
            return self._tape_of(own[0], sweep)
        order = self._order + [layer for layer in self._layers if layer not in self._order]
        norms = tuple((layer.used_dx.value(sweep), layer.dy.value(sweep)) for layer in order)
        if self._is_chain:  # functions between two layers, such as activations, count with the one before them
            ends = [dx if dx is not None else dy for (_, dy), (dx, _) in pairwise(norms)]
            norms = tuple((dx, end) for (dx, _), end in zip(norms, [*ends, *(dy for _, dy in norms[-1:])], strict=True))
        return ModuleTape(
            Described(self._model, tuple(layer.name for layer in order)),
            tapes=tuple(self._tape_of(layer, sweep) for layer in order),
            norms=norms,
            is_chain=self._is_chain and any(dy is not None for _, dy in norms),
        )

    def _tape_of(self, layer: _Layer, sweep: int) -> Tape:
        module, told = layer.module, None
        if layer.is_cell:
            norms = [step.value(sweep) for step in layer.steps[: layer.n_calls]]
            if all(norm is None for norm in norms):
                return ModuleTape(layer.described)
            row = np.array([norm or 0.0 for norm in norms])
            bad = np.flatnonzero(~np.isfinite(row))
            return ModuleTape(layer.described, (Profile("l0", False, row),), (0, 0, int(bad[-1])) if bad.size else None)
        if isinstance(module, _Recurrent) and module.telemetry is not layer.told:
            told = layer.told = module.telemetry
        if told is None:
            return ModuleTape(layer.described)
        return ModuleTape(layer.described, tuple(told.profiles()), told.first_nonfinite)


def _follows(x: Tensor | None, nodes: list[Any]) -> bool:
    """Whether a single path of the graph leads from a tensor to one of these nodes."""
    node = None if x is None else x.grad_fn
    for _ in range(MOST_NODES):
        if node is None or any(node is each for each in nodes):
            return node is not None
        inner = [above for above, _ in node.next_functions if above is not None and above.next_functions]
        if len(inner) != 1:
            return False
        node = inner[0]
    return False
