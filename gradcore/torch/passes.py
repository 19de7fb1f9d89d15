"""The passes of the kernels on torch tensors, without gradients: what the autograd functions and operators call."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, NamedTuple
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

from gradcore._base.check import Array
from gradcore._base.memory import Pool
from gradcore.layers.cell import CELLS, Cell, Parts
from gradcore.layers.functional import Trace, back, run
from gradcore.layers.ragged import _Batch, _PackedBatch, laid_out
from gradcore.layers.telemetry import Telemetry

__all__: list[str] = []  # for the package only

Grads = tuple[Tensor | None, ...]

POOL = Pool()
DTYPES: dict[Any, np.dtype[Any]] = {torch.float32: np.dtype(np.float32), torch.float64: np.dtype(np.float64)}


class Record:
    """What a layer tells of its passes. Copies and unpickled layers begin with an empty one."""

    by_key: ClassVar[WeakValueDictionary[int, Record]] = WeakValueDictionary()
    _keys: ClassVar[Iterator[int]] = itertools.count()

    def __init__(self) -> None:
        self.telemetry: Telemetry | None = None
        self.fallbacks: Counter[str] = Counter()
        self.key = next(Record._keys)  # for operators, whose arguments are plain values
        Record.by_key[self.key] = self

    def __reduce__(self) -> tuple[type[Record], tuple[()]]:
        return Record, ()


class Plan(NamedTuple):
    """What a pass needs beside tensors.

    After x come the parts of the initial state, if given, the masks of dropout, (S, D*H) for each layer below the last,
    and the weights of each layer and direction, in PyTorch's order. The outputs of the forward pass are y, the parts of
    the final state, and what is kept for the backward pass: the trace, and the inputs of the layers above the first.
    """

    cell_name: str
    num_layers: int
    num_directions: int
    has_bias: bool
    n_states: int
    n_masks: int
    key: int  # of the Record
    packing: tuple[Tensor, Tensor | None] | None = None  # batch_sizes and sorted_indices of a PackedSequence

    @property
    def cell(self) -> Cell:
        """The row of the table of cells."""
        return CELLS[self.cell_name]

    @property
    def n_outputs(self) -> int:
        """How many tensors y and the final state are."""
        return 3 if self.cell_name == "lstm" else 2

    def split(self, tensors: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any], list[list[Any]]]:
        """Return the state, the masks, and the weights of each layer and direction."""
        n, given = 4 if self.has_bias else 2, self.n_states + self.n_masks
        weights = [
            [*tensors[first : first + n], *[None] * (4 - n)]
            for first in range(given, given + n * self.num_layers * self.num_directions, n)
        ]
        return tensors[: self.n_states], tensors[self.n_states : given], weights

    def parts(self, rest: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any], Sequence[Any]]:
        """Split what follows x in a backward pass: the tensors, what was kept, and the gradients of the outputs."""
        d_at = len(rest) - self.n_outputs
        kept_at = d_at - self.num_layers
        return rest[:kept_at], rest[kept_at:d_at], rest[d_at:]

    def batch(self, x: Array) -> _Batch:
        """Return the layout of the sequences."""
        if self.packing is None:
            return laid_out(x.shape[0], x.shape[1], None, None, POOL)
        sizes, order = self.packing
        return _PackedBatch(sizes.numpy(), None if order is None else order.numpy(), POOL)


def arrays(tensors: Sequence[Tensor]) -> list[Array]:
    """Return contiguous arrays, in the memory of those tensors that are contiguous."""
    return [tensor.contiguous().numpy(force=True) for tensor in tensors]


def zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Return zeros, in the pool's memory if they are many."""
    if math.prod(shape) * dtype.itemsize <= POOL.SMALL:
        return np.zeros(shape, dtype)
    found = POOL.empty(shape, dtype)
    found.fill(0)
    return found


def forward(plan: Plan, x: Tensor, *tensors: Tensor, keep: bool = True) -> tuple[Tensor, ...]:
    """Return y, the final state, and with `keep` what `backward` needs."""
    rows, *given = arrays((x, *tensors))
    state, masks, weights = plan.split(given)
    drawn = iter(masks)
    y, final, trace = run(
        plan.cell, weights, rows, tuple(state) or None, plan.batch(rows), num_directions=plan.num_directions,
        draw_mask=(lambda shape: next(drawn)) if masks else None, keep=keep or bool(masks), pool=POOL,
    )  # fmt: skip
    kept = (trace.whole, *trace.inputs[1:]) if keep and trace is not None else ()
    return tuple(map(torch.from_numpy, (y, *final, *kept)))


def backward(plan: Plan, needs: Sequence[bool], x: Tensor, *rest: Tensor | None) -> Grads:
    """Return the gradients with respect to x and the tensors after it; None where `needs` is false.

    `rest` is these tensors, what `forward` kept, and the gradients with respect to y and the final state, None for
    zeros.
    """
    tensors, kept, (dy, *d_final) = plan.parts(rest)
    rows, *own = arrays((x, *tensors))
    state, masks, weights = plan.split(own)
    whole, *inputs = arrays(kept)
    batch, D = plan.batch(rows), plan.num_directions
    n, H, dtype = len(weights), weights[0][1].shape[1], rows.dtype
    trace = Trace(plan.cell, batch, n, D, H, dtype, POOL, whole=whole)
    trace.inputs, trace.masks = [batch.pack(rows), *inputs], list(masks)

    def given(d: Tensor | None, shape: tuple[int, ...]) -> Array:
        return zeros(shape, dtype) if d is None else arrays((d,))[0]

    dstate: Parts | None = None
    if d_final != [None] * len(d_final):
        dstate = tuple([given(d, (n, batch.B, H)) for d in d_final])
    grads = [[None if weight is None else zeros(weight.shape, dtype) for weight in each] for each in weights]
    found = back(weights, grads, trace, given(dy, (*rows.shape[:-1], D * H)), dstate, needs_dx=needs[0])
    record = Record.by_key.get(plan.key)
    if record is not None:
        record.telemetry = Telemetry(batch, D, math.inf, found.dh_norm, found.dc_norm)
    results = [found.dx, *found.dstate[: len(state)], *[None] * len(masks)]
    results += [grad for each in grads for grad in each if grad is not None]
    return tuple([torch.from_numpy(a) if need else None for a, need in zip(results, needs, strict=True)])
