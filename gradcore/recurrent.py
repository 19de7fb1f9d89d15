"""RNN, LSTM and GRU layers: whole sequences forward and back through time, with the gradient's norm at every step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from gradcore import _kernels
from gradcore._check import (
    Array,
    check_array,
    check_bool,
    check_choice,
    check_dtype,
    check_index,
    check_int,
    check_lengths,
    check_number,
    check_rng,
    check_room,
)
from gradcore._layer import ALIGNMENT, Layer, Pool

State = Any  # h, or (h, c) for LSTM


class _Batch:
    """How T steps of B sequences are laid out as rows for the kernels: packed, the longest sequence first.

    With all sequences of one length the S rows are the first ones of the flattened (T, B) axes. Otherwise `rows` holds
    their positions there in packed order, `dead` the other positions, and `order` the sequences from long to short.
    """

    def __init__(self, T: int, B: int, lengths: Array | None, pool: Pool) -> None:
        self.T, self.B, self._pool = T, B, pool
        self.rows = self.dead = self.order = self.rank = None
        self.offsets = np.arange(T + 1, dtype=np.intp) * B
        self.n_rows = T * B
        if lengths is None:
            return
        self.n_rows = int(lengths.sum())
        longest = int(lengths.max(initial=0))
        if (lengths == longest).all():
            np.minimum(self.offsets, self.n_rows, out=self.offsets)
            return
        self.order = np.argsort(-lengths, kind="stable")
        self.rank = np.argsort(self.order, kind="stable")
        alive = np.arange(T)[:, None] < lengths[self.order]  # (T, B)
        self.offsets = np.concatenate([[0], np.cumsum(alive.sum(axis=1))]).astype(np.intp)
        positions = np.arange(T)[:, None] * B + self.order
        self.rows, self.dead = positions[alive], positions[~alive]

    def pack(self, x: Array) -> Array:
        """(T, B, F) -> (S, F)"""
        flat = x.reshape(self.T * self.B, x.shape[2])
        if self.rows is None:
            return flat[: self.n_rows]
        packed = self._pool.empty((self.n_rows, x.shape[2]), x.dtype)
        _kernels.copy_rows(flat, self.rows, packed, None)
        return packed

    def padded(self, F: int, dtype: np.dtype[Any]) -> Array:
        """(T*B, F), zero past each sequence's end; its rows `rows`, or the first n_rows, are for the caller to fill."""
        padded = self._pool.empty((self.T * self.B, F), dtype)
        if self.rows is None:
            padded[self.n_rows :] = 0
        else:
            _kernels.copy_rows(None, None, padded, self.dead)
        return padded

    def unpack(self, rows: Array) -> Array:
        """(S, F) -> (T, B, F), zero past each sequence's end"""
        F, padded = rows.shape[1], rows
        if self.n_rows < self.T * self.B:
            padded = self.padded(F, rows.dtype)
            _kernels.copy_rows(rows, None, padded, np.arange(self.n_rows) if self.rows is None else self.rows)
        return padded.reshape(self.T, self.B, F)

    def sort(self, state: Array) -> Array:
        """A fresh (L*D, B, H) with the sequences in packed order."""
        return state.copy() if self.order is None else state.take(self.order, axis=1)

    def unsort(self, state: Array) -> Array:
        return state if self.rank is None else state.take(self.rank, axis=1)

    def rows_of(self, b: int) -> Array:
        """Where the steps of sequence b are."""
        rank = b if self.rank is None else int(self.rank[b])
        rows: Array = self.offsets[:-1][np.diff(self.offsets) > rank] + rank
        return rows

    def row(self, t: int, b: int) -> int:
        """Where step t of sequence b is."""
        t, b = check_index("t", t, self.T), check_index("b", b, self.B)
        rank = b if self.rank is None else int(self.rank[b])
        if rank >= self.offsets[t + 1] - self.offsets[t]:
            raise IndexError(f"t: sequence {b} has ended before step {t}")
        return int(self.offsets[t]) + rank


@dataclass(frozen=True)
class Step:
    """What one layer and direction did at one step of one sequence.

    Attributes
    ----------
    gates : ndarray, (K, H)
        RNN: h. LSTM: i, f, g, o. GRU: r, z, n and q = W_hn h + b_hn. After their activation, but q.
    h, c : ndarray, (H,)
        The state that entered the step; `c` is None but for LSTM.
    """

    gates: Array
    h: Array
    c: Array | None


class Telemetry:
    """The norms of the gradient at every layer and step, as `backward` met them.

    All arrays are float64. The first axis is layer * num_directions + direction, the next the time step.

    Attributes
    ----------
    num_directions : int
        2 for a bidirectional layer, else 1.
    dh_norm : ndarray, (L*D, T)
        L2 norm over batch and hidden units of the total derivative dL/dh_t, before step clipping.
    dc_norm : ndarray, (L*D, T), or None
        The same for dL/dc_t; LSTM only.
    dh_norm_per_sample, dc_norm_per_sample : ndarray, (L*D, T, B)
        The same for each sequence; zero past its end.
    n_clipped : ndarray of int, (L*D, T)
        How many sequences `step_clip` rescaled.
    first_nonfinite : tuple of int, or None
        (layer, direction, t) of the first norm that is NaN or infinite, in the order of the backward pass: from the
        last layer to the first, and within each against the direction of its steps.
    """

    def __init__(self, batch: _Batch, num_directions: int, step_clip: float, dh: Array, dc: Array | None) -> None:
        self.num_directions = num_directions
        self._batch, self._step_clip = batch, step_clip
        self._dh, self._dc = dh, dc  # (L*D, S)

    def _padded(self, norms: Array) -> Array:
        padded: Array = self._batch.unpack(np.ascontiguousarray(norms.T)).transpose(2, 0, 1)
        return padded

    @cached_property
    def dh_norm_per_sample(self) -> Array:
        return self._padded(self._dh)

    @cached_property
    def dc_norm_per_sample(self) -> Array | None:
        return None if self._dc is None else self._padded(self._dc)

    @cached_property
    def dh_norm(self) -> Array:
        return _norm_over_batch(self.dh_norm_per_sample)

    @cached_property
    def dc_norm(self) -> Array | None:
        return None if self.dc_norm_per_sample is None else _norm_over_batch(self.dc_norm_per_sample)

    @cached_property
    def n_clipped(self) -> Array:
        norms = self.dh_norm_per_sample
        clipped: Array = ((norms > self._step_clip) & np.isfinite(norms)).sum(axis=2)
        return clipped

    @cached_property
    def first_nonfinite(self) -> tuple[int, int, int] | None:
        bad = ~np.isfinite(self.dh_norm)
        if self.dc_norm is not None:
            bad |= ~np.isfinite(self.dc_norm)
        D = self.num_directions
        for layer in reversed(range(bad.shape[0] // D)):
            for direction in range(D):
                times = np.flatnonzero(bad[layer * D + direction])
                if times.size:
                    return layer, direction, int(times[-1] if direction == 0 else times[0])
        return None

    def __repr__(self) -> str:
        rows, T = self.dh_norm.shape
        finite = "all finite" if self.first_nonfinite is None else f"not finite from {self.first_nonfinite} on"
        D = self.num_directions
        return f"Telemetry({rows // D} layers, {D} directions, {T} time steps, {finite})"


def _norm_over_batch(norms: Array) -> Array:
    """The root of the sum of squares over the last axis, without overflow or underflow on the way."""
    largest = norms.max(axis=2, initial=0.0)
    scale = np.where((largest > 0) & np.isfinite(largest), largest, 1.0)
    with np.errstate(invalid="ignore", over="ignore"):
        result = scale * np.sqrt(np.square(norms / scale[..., None]).sum(axis=2))
    return np.asarray(result)


def _dropped(rows: Array, mask: Array) -> Array:
    """The product; what is too large, or not finite, is no more worth a warning here than in the kernels."""
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray(rows * mask)


class _Kept(NamedTuple):
    """The arrays of one layer and direction that the backward kernel reads."""

    gates: Array  # (S, K*H and more): how is for the kernels to know, and for Tape.record
    h: Array  # (S, H and more) entering each step
    c: Array | None = None  # likewise


@cache
def _layout(dtype: np.dtype[Any], n_kept: int, H: int) -> tuple[str, int, int, int]:
    """The instruction set in use, and how its kernels lay out a tape."""
    return _kernels.isa(), *_kernels.tape_layout(dtype, n_kept, H)


class Tape:
    """What `forward` keeps for `backward`.

    With S = the sum of the lengths (T B without `lengths`), H' = H rounded up to whole vectors of the processor and
    K = 1 (RNN) or 4 (LSTM, GRU) it keeps, for each layer and direction, S rows of (K + 1) H' elements, of (K + 2) H'
    for LSTM: the gates and the state before the step. A part of a row whose size is a multiple of 2 KiB takes 64 bytes
    more. Layers above the first also keep their S rows of inputs.

    Attributes
    ----------
    nbytes : int
        The bytes of all this.
    state : ndarray or tuple of ndarray
        The final state, like the initial one.
    dstate : ndarray, tuple of ndarray, or None
        dL/d(initial state), after `backward`.
    telemetry : Telemetry or None
        After `backward`.
    omega : ndarray, (L*D,), float64, or None
        What a `Regulariser` has measured in each layer and direction.
    """

    state: State
    dstate: State = None
    telemetry: Telemetry | None = None
    omega: Array | None = None

    def __init__(self, layer: _Recurrent, batch: _Batch) -> None:
        S, dtype = batch.n_rows, layer.dtype
        self._layout = _layout(dtype, len(layer._kept), layer.hidden_size)
        _, gates_row, state_row, self._lanes = self._layout
        parts = [gates_row, state_row, state_row] if layer._has_cell else [gates_row, state_row]
        line = ALIGNMENT // dtype.itemsize
        sizes = [-(-S * width // line) * line for width in parts]
        K = layer.num_layers * layer.num_directions
        self._layer, self._batch = layer, batch
        buffer = layer._pool.empty((K * sum(sizes),), dtype)  # comes back when its last view is gone
        self.inputs: list[Array] = []  # (S, I_l) of each layer
        self.masks: list[Array] = []  # (S, D*H) of each dropout
        self._kept: list[_Kept] = []  # of each layer and direction
        start = 0
        for _ in range(K):
            views: list[Array] = []
            for width, n in zip(parts, sizes, strict=True):
                views.append(buffer[start : start + S * width].reshape(S, width))
                start += n
            self._kept.append(_Kept(*views))

    @property
    def kept(self) -> list[_Kept]:
        """The arrays of each layer and direction, as the kernels of this process lay them out."""
        self._refuse_other_layout()
        return self._kept

    def _refuse_other_layout(self) -> None:
        """Raise if the tape was pickled in a process whose kernels use another instruction set."""
        here = _layout(self._layer.dtype, len(self._layer._kept), self._layer.hidden_size)
        if here != self._layout:
            raise ValueError(
                f"tape: was made with the instruction set {self._layout[0]}, and this process uses {here[0]}; "
                f"run forward again here, or set GRADCORE_ISA={self._layout[0]}"
            )

    @property
    def nbytes(self) -> int:
        kept = [part for views in self._kept for part in views if part is not None]
        return sum(part.nbytes for part in [*kept, *self.inputs[1:], *self.masks])

    def record(self, index: int, t: int, b: int) -> Step:
        """What layer and direction `index` (layer * num_directions + direction) did at step t of sequence b."""
        index = check_index("index", index, len(self._kept))
        row = self._batch.row(t, b)
        gates, h, c = self.kept[index]
        layer, H = self._layer, self._layer.hidden_size
        K, padded = len(layer._kept), -(-H // self._lanes) * self._lanes
        blocks = gates[row, : K * padded].reshape(-1, K, self._lanes)
        by_gate = blocks.swapaxes(0, 1).reshape(K, padded)[list(layer._kept), :H]
        return Step(by_gate, h[row, :H].copy(), None if c is None else c[row, :H].copy())


class _Recurrent(Layer):
    """Everything but the cell: RNN, LSTM and GRU say which one it is."""

    _n_gates: ClassVar[int]
    _kept: ClassVar[tuple[int, ...]]  # where the tape has the blocks of Step.gates
    _has_cell: ClassVar[bool] = False
    _cell: int

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        dtype: DTypeLike = np.float32,
        rng: int | np.random.Generator | None = None,
    ) -> None:
        self.input_size = check_int("input_size", input_size, least=1)
        self.hidden_size = check_int("hidden_size", hidden_size, least=1)
        self.num_layers = check_int("num_layers", num_layers, least=1)
        self.bias, self.batch_first = check_bool("bias", bias), check_bool("batch_first", batch_first)
        self.bidirectional = check_bool("bidirectional", bidirectional)
        self.dropout = check_number("dropout", dropout, least=0.0, most=1.0)
        self.num_directions = 2 if self.bidirectional else 1
        self.dtype = check_dtype(dtype)
        self._rng = check_rng(rng)
        self._pool = Pool()

        self._names: list[list[str]] = []  # w_ih, w_hh, b_ih, b_hh of each layer and direction
        shapes: dict[str, tuple[int, ...]] = {}
        GH, H = self._n_gates * self.hidden_size, self.hidden_size
        above = (self.num_layers - 1) * (H * self.num_directions + H + 2 * self.bias)
        n = GH * self.num_directions * (self.input_size + H + 2 * self.bias + above)
        check_room(n, self.dtype.itemsize)
        np.empty(n, self.dtype)  # or a MemoryError now, not after names for 2**40 layers
        for layer in range(self.num_layers):
            width = self.input_size if layer == 0 else H * self.num_directions
            for suffix in [f"l{layer}", f"l{layer}_reverse"][: self.num_directions]:
                names = [f"{name}_{suffix}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
                shapes |= dict(zip(names, [(GH, width), (GH, H), (GH,), (GH,)][: 4 if self.bias else 2], strict=False))
                self._names.append(names)
        self._allocate(shapes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw every parameter from U(-1/sqrt(H), 1/sqrt(H)), as PyTorch does."""
        bound = 1 / math.sqrt(self.hidden_size)
        self.flat_params[...] = self._rng.uniform(-bound, bound, self.flat_params.size)

    def generators(self) -> list[np.random.Generator]:
        """Return the generator that dropout draws from, if there is dropout."""
        return [self._rng] if self.dropout and self.num_layers > 1 else []

    def _weights(self, arrays: dict[str, Array], k: int) -> list[Array | None]:
        """w_ih, w_hh, b_ih, b_hh of layer and direction k, from params or from grads."""
        return [arrays.get(name) for name in self._names[k]]

    def _describe(self) -> Iterator[str]:
        yield f"{self.input_size}, {self.hidden_size}"
        if self.num_layers != 1:
            yield f"num_layers={self.num_layers}"
        for name, default in (("bias", True), ("batch_first", False), ("dropout", 0.0), ("bidirectional", False)):
            if getattr(self, name) != default:
                yield f"{name}={getattr(self, name)}"
        yield from super()._describe()

    # ---- checks of what comes in ---------------------------------------------------------------------------------

    def _check_sequence(self, name: str, value: Any, shape: tuple[int | str, ...]) -> Array:
        """(T, B, F) from an array that is (B, T, F) with batch_first."""
        if not self.batch_first:
            return check_array(name, value, self.dtype, shape)
        given = check_array(name, value, self.dtype, (shape[1], shape[0], shape[2]))
        return np.ascontiguousarray(given.swapaxes(0, 1))

    def _fresh_states(self, name: str, state: State, batch: _Batch) -> list[Array]:
        """h, or h and c, each a new (L*D, B, H) in the order of the packed rows; zeros for None."""
        names = ["h", "c"] if self._has_cell else ["h"]
        shape = (self.num_layers * self.num_directions, batch.B, self.hidden_size)
        if state is None:
            return [np.zeros(shape, self.dtype) for _ in names]
        if not self._has_cell:
            return [batch.sort(check_array(name, state, self.dtype, shape))]
        if not isinstance(state, (tuple, list)) or len(state) != 2:
            raise TypeError(f"{name}: expected a pair (h, c), got {type(state).__name__}")
        given = [check_array(f"{name}[{i}]", part, self.dtype, shape) for i, part in enumerate(state)]
        return [batch.sort(part) for part in given]

    def _as_state(self, parts: list[Array]) -> State:
        return tuple(parts) if self._has_cell else parts[0]

    # ---- the passes ----------------------------------------------------------------------------------------------

    def __call__(self, x: Array, state: State = None, lengths: Any = None) -> tuple[Array, State]:
        """The outputs for a batch of sequences, keeping nothing for a backward pass; no dropout.

        Parameters and returns as `forward`, with the final state in place of the tape.
        """
        y, final, _ = self._run(x, state, lengths, keep=False)
        return y, final

    def forward(self, x: Array, state: State = None, lengths: Any = None) -> tuple[Array, Tape]:
        """The outputs for a batch of sequences, and the tape that `backward` needs.

        Parameters
        ----------
        x : ndarray, (T, B, input_size), or (B, T, input_size) with `batch_first`
        state : ndarray, (num_layers * num_directions, B, hidden_size), or a pair (h, c) of them for LSTM
            The initial state; zeros by default.
        lengths : array_like of int, (B,)
            The length of each sequence; T by default. What `x` holds past a sequence's end has no effect.

        Returns
        -------
        y : ndarray, (T, B, num_directions * hidden_size), or (B, T, ...) with `batch_first`
            h_t of the last layer, zero past each sequence's end.
        tape : Tape
            `tape.state` is the final state: each sequence's own, at its last step. Where x is contiguous the tape reads
            it in place, so leave x unchanged until `backward`.

        Raises
        ------
        TypeError, ValueError
            For another dtype or shape than the layer's; nothing has been computed then.
        """
        y, final, tape = self._run(x, state, lengths, keep=True)
        assert tape is not None
        tape.state = final
        return y, tape

    def _run(self, x: Array, state: State, lengths: Any, *, keep: bool) -> tuple[Array, State, Tape | None]:
        x = self._check_sequence("x", x, ("T", "B", self.input_size))
        T, B, D, H = x.shape[0], x.shape[1], self.num_directions, self.hidden_size
        check_room((T + self.num_layers) * (B + 1) * 8 * H)  # x without elements, of any length, would pass until here
        batch = _Batch(T, B, check_lengths(lengths, T, B), self._pool)
        states = self._fresh_states("state", state, batch)
        tape = Tape(self, batch) if keep else None

        rows = batch.pack(x)
        for layer in range(self.num_layers):
            if tape is not None:
                if layer and self.dropout:
                    keep_rate = 1 - self.dropout
                    mask = (self._rng.random(rows.shape) < keep_rate) / self.dtype.type(keep_rate or 1)
                    tape.masks.append(mask.astype(self.dtype))
                    rows = _dropped(rows, tape.masks[-1])
                tape.inputs.append(rows)
            last = layer == self.num_layers - 1  # it writes the padded batch, those below pass packed rows on
            y = batch.padded(D * H, self.dtype) if last else self._pool.empty((batch.n_rows, D * H), self.dtype)
            y_at = batch.rows if last else None
            for direction in range(D):
                k = layer * D + direction
                gates, h_in, c_in = tape._kept[k] if tape is not None else (None, None, None)
                h, c = states[0][k], states[1][k] if self._has_cell else None
                weights = self._weights(self.params, k)
                work = _kernels.recurrent_forward(
                    self._cell, direction == 1, batch.offsets, B, weights, rows, y, y_at, direction * H, h, c,
                    gates, h_in, c_in, self._pool.take,
                )  # fmt: skip
                self._pool.give(work)
            rows = y
        output = rows.reshape(T, B, D * H)
        final = self._as_state([batch.unsort(part) for part in states])
        return output.swapaxes(0, 1) if self.batch_first else output, final, tape

    def backward(
        self,
        tape: Tape,
        dy: Array,
        dstate: State = None,
        *,
        step_clip: float | None = None,
        regulariser: Callable[..., float] | None = None,
    ) -> Array:
        """Back through time: add dL/d(parameters) to `grads` and return dL/dx.

        Fills `tape.dstate` and `tape.telemetry`. If Ctrl-C or a lack of memory ends it half way, `grads` are zero.

        Parameters
        ----------
        tape : Tape
            From `forward` of this layer.
        dy : ndarray, like y
            dL/dy. What it holds past a sequence's end has no effect.
        dstate : ndarray or pair of ndarray, like the state
            dL/d(final state); zeros by default.
        step_clip : float
            Rescale each sequence's dL/dh_t to a norm of at most this while it is propagated. None for no limit.
        regulariser : Regulariser, optional
            Adds the gradient of its term of the loss; for `RNN` only.

        Returns
        -------
        ndarray
            dL/dx, like x; zero past each sequence's end.

        Raises
        ------
        TypeError, ValueError
            For a tape of another layer, another dtype or shape, or a negative `step_clip`; nothing has been computed
            then.
        """
        if not isinstance(tape, Tape) or tape._layer is not self:
            raise ValueError("tape: expected a tape from this layer's forward")
        batch, D, H = tape._batch, self.num_directions, self.hidden_size
        tape._refuse_other_layout()
        clip = math.inf if step_clip is None else check_number("step_clip", step_clip, least=0.0)
        if regulariser is not None and not callable(regulariser):
            raise TypeError(f"regulariser: expected a Regulariser, got {type(regulariser).__name__}")
        d_rows = self._check_sequence("dy", dy, (batch.T, batch.B, D * H)).reshape(batch.T * batch.B, D * H)
        dstates = self._fresh_states("dstate", dstate, batch)

        self._refuse_reentry()
        K = self.num_layers * D
        dh_norm = np.zeros((K, batch.n_rows))
        dc_norm = np.zeros((K, batch.n_rows)) if self._has_cell else None
        try:
            if regulariser is not None:
                regulariser(self, tape, dy, dstate, step_clip=step_clip)  # first: it refuses what it is not made for
            d_rows = self._back(tape, d_rows, dstates, clip, dh_norm, dc_norm)
        except (TypeError, ValueError):  # of the regulariser, which has added nothing then
            raise
        except BaseException:
            self._drop_gradients()
            raise
        tape.dstate = self._as_state([batch.unsort(part) for part in dstates])
        tape.telemetry = Telemetry(batch, D, clip, dh_norm, dc_norm)
        dx = batch.unpack(d_rows)
        return dx.swapaxes(0, 1) if self.batch_first else dx

    def _back(
        self, tape: Tape, d_rows: Array, dstates: list[Array], clip: float, dh_norm: Array, dc_norm: Array | None
    ) -> Array:
        """dL/dx of the packed rows, from dL/dy of the padded ones; all else is added to or written in place."""
        batch, D, H, y_at = tape._batch, self.num_directions, self.hidden_size, tape._batch.rows
        for layer in reversed(range(self.num_layers)):
            rows = tape.inputs[layer]
            dx = self._pool.empty(rows.shape, self.dtype)
            for direction in range(D):
                k = layer * D + direction
                gates, h_in, c_in = tape._kept[k]
                weights = self._weights(self.params, k)
                with self._adding.lock:
                    work = _kernels.recurrent_backward(
                        self._cell, direction == 1, batch.offsets, batch.B, weights, rows, gates, h_in, c_in,
                        d_rows, y_at, direction * H,
                        dstates[0][k], dstates[1][k] if self._has_cell else None, dx, direction == 1,
                        self._weights(self.grads, k), clip,
                        dh_norm[k], None if dc_norm is None else dc_norm[k], self._pool.take,
                    )  # fmt: skip
                self._pool.give(work)
            if layer and tape.masks:
                dx = _dropped(dx, tape.masks[layer - 1])
            d_rows, y_at = dx, None
        return d_rows


_PARAMETERS = """
    Parameters
    ----------
    input_size, hidden_size : int
        I and H, the sizes of x_t and h_t.
    num_layers : int
        L; each layer reads the outputs of the one below.
    bias : bool
        Whether there are b_ih and b_hh.
    batch_first : bool
        Whether x and y are (B, T, F) instead of (T, B, F). States never are.
    dropout : float
        Probability with which `forward` zeroes an output between two layers (the rest is scaled up). None in inference.
    bidirectional : bool
        D = 2: a second direction walks each sequence from its end; y holds both, side by side.
    dtype : float32 or float64
        Of parameters, inputs and outputs.
    rng : int or numpy.random.Generator, optional
        Draws the parameters, U(-1/sqrt(H), 1/sqrt(H)), and the dropout masks.
"""


class RNN(_Recurrent):
    """Elman network.

    h_t = act(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh), with act = tanh or relu.
    {parameters}    nonlinearity : "tanh" or "relu"

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> rnn = gradcore.RNN(3, 5, rng=np.random.default_rng(0))
    >>> y, tape = rnn.forward(np.ones((7, 2, 3), np.float32))
    >>> dx = rnn.backward(tape, np.ones_like(y))
    >>> y.shape, dx.shape, tape.telemetry.dh_norm.shape
    ((7, 2, 5), (7, 2, 3), (1, 7))

    References
    ----------
    Elman, "Finding structure in time", Cognitive Science 14 (1990).
    """

    _n_gates, _kept = 1, (0,)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        dtype: DTypeLike = np.float32,
        rng: int | np.random.Generator | None = None,
    ) -> None:
        cells = {"tanh": _kernels.RNN_TANH, "relu": _kernels.RNN_RELU}
        self.nonlinearity = check_choice("nonlinearity", nonlinearity, cells)
        self._cell = cells[self.nonlinearity]
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            dtype=dtype,
            rng=rng,
        )

    def _describe(self) -> Iterator[str]:
        yield from super()._describe()
        if self.nonlinearity != "tanh":
            yield f"nonlinearity={self.nonlinearity!r}"


class LSTM(_Recurrent):
    """Long short-term memory.

    i, f, o = sigmoid(W_i* x_t + b_i* + W_h* h_{t-1} + b_h*), g = tanh(the same of g),
    c_t = f c_{t-1} + i g,  h_t = o tanh(c_t). Rows of weights and biases hold i, f, g, o.
    {parameters}
    Examples
    --------
    >>> import numpy as np, gradcore
    >>> lstm = gradcore.LSTM(3, 5, rng=np.random.default_rng(0))
    >>> y, (h, c) = lstm(np.ones((7, 2, 3), np.float32), lengths=[7, 4])
    >>> bool((y[4:, 1] == 0).all()), bool((h[0, 1] == y[3, 1]).all())
    (True, True)

    References
    ----------
    Hochreiter, Schmidhuber, "Long short-term memory", Neural Computation 9 (1997); Gers, Schmidhuber, Cummins,
    "Learning to forget", Neural Computation 12 (2000).
    """

    _n_gates, _kept = 4, (0, 1, 2, 3)
    _has_cell = True
    _cell = _kernels.LSTM


class GRU(_Recurrent):
    """Gated recurrent unit, the reset gate applied after the recurrent product.

    r, z = sigmoid(W_i* x_t + b_i* + W_h* h_{t-1} + b_h*),
    n = tanh(W_in x_t + b_in + r (W_hn h_{t-1} + b_hn)),  h_t = (1 - z) n + z h_{t-1}. Rows of weights and biases hold
    r, z, n.
    {parameters}
    Examples
    --------
    >>> import numpy as np, gradcore
    >>> gru = gradcore.GRU(3, 5, num_layers=2, bidirectional=True, rng=np.random.default_rng(0))
    >>> y, h = gru(np.ones((7, 2, 3), np.float32))
    >>> y.shape, h.shape
    ((7, 2, 10), (4, 2, 5))

    References
    ----------
    Cho et al., "Learning phrase representations using RNN encoder-decoder", arXiv 1406.1078v1.
    """

    _n_gates, _kept = 3, (1, 2, 0, 3)
    _cell = _kernels.GRU


for _layer in (RNN, LSTM, GRU):
    if _layer.__doc__:  # python -O -O drops docstrings
        _layer.__doc__ = _layer.__doc__.replace("{parameters}", _PARAMETERS.strip("\n") + "\n")
