"""A stack of recurrent layers of any cell: its parameters, checks and passes."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from gradcore._base.check import (
    Array,
    check_array,
    check_bool,
    check_dtype,
    check_int,
    check_lengths,
    check_number,
    check_reset,
    check_rng,
    check_room,
)
from gradcore._base.memory import Pool
from gradcore.layers.cell import Cell, Parts
from gradcore.layers.functional import Noise, Trace, back, run
from gradcore.layers.layer import Layer, Sequences
from gradcore.layers.ragged import _Batch, laid_out
from gradcore.layers.recurrent_tape import RecurrentTape, State
from gradcore.layers.tangent import Moved, back_tangent, run_tangent
from gradcore.layers.telemetry import Telemetry

__all__: list[str] = []  # for the package only


_NAMES = (
    "weight_ih", "weight_hh", "bias_ih", "bias_hh",
    "norm_ih_weight", "norm_hh_weight", "norm_c_weight", "norm_c_bias",
)  # fmt: skip


class Recurrent(Layer):
    """Base of RNN, LSTM and GRU, which name the cell."""

    takes = frozenset({"lengths", "reset", "step_clip"})
    n_states = 1
    cell: Cell

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
        layer_norm: bool = False,
        zoneout: float = 0.0,
        recurrent_dropout: float = 0.0,
        dtype: DTypeLike = np.float32,
        rng: int | np.random.Generator | None = None,
    ) -> None:
        self.input_size = check_int("input_size", input_size, least=1)
        self.hidden_size = check_int("hidden_size", hidden_size, least=1)
        self.num_layers = check_int("num_layers", num_layers, least=1)
        self.bias, self.batch_first = check_bool("bias", bias), check_bool("batch_first", batch_first)
        self.bidirectional = check_bool("bidirectional", bidirectional)
        self.dropout = check_number("dropout", dropout, least=0.0, most=1.0)
        self.layer_norm = check_bool("layer_norm", layer_norm)
        self.zoneout = check_number("zoneout", zoneout, least=0.0, most=1.0)
        self.recurrent_dropout = check_number("recurrent_dropout", recurrent_dropout, least=0.0, most=1.0)
        self.num_directions = 2 if self.bidirectional else 1
        if self.dropout and self.num_layers == 1:
            message = f"dropout: {self.dropout:g} has no effect with num_layers=1; it acts between layers"
            warnings.warn(message, UserWarning, stacklevel=3)
        self.dtype = check_dtype(dtype)
        self._rng = check_rng(rng)
        self._pool = Pool()

        self._names: list[list[str]] = []  # of each layer and direction; functional.py has their order
        shapes: dict[str, tuple[int, ...]] = {}
        GH, H = len(self.cell.gates) * self.hidden_size, self.hidden_size
        beside = H + 2 * self.bias + 2 * self.layer_norm
        above = (self.num_layers - 1) * (H * self.num_directions + beside)
        n = GH * self.num_directions * (self.input_size + beside + above)
        check_room(n, self.dtype.itemsize)
        np.empty(n, self.dtype)  # raise MemoryError now, not after making names for 2**40 layers
        for layer in range(self.num_layers):
            width = self.input_size if layer == 0 else H * self.num_directions
            own: dict[str, tuple[int, ...]] = {"weight_ih": (GH, width), "weight_hh": (GH, H)}
            if self.bias:
                own |= {"bias_ih": (GH,), "bias_hh": (GH,)}
            if self.layer_norm:
                own |= {"norm_ih_weight": (GH,), "norm_hh_weight": (GH,)}
                own |= {"norm_c_weight": (H,), "norm_c_bias": (H,)} if len(self.cell.states) > 1 else {}
            for suffix in [f"l{layer}", f"l{layer}_reverse"][: self.num_directions]:
                self._names.append([f"{name}_{suffix}" for name in (_NAMES if self.layer_norm else _NAMES[:4])])
                shapes |= {f"{name}_{suffix}": shape for name, shape in own.items()}
        super().__init__(shapes, dtype=self.dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw every parameter from U(-1/sqrt(H), 1/sqrt(H)), as PyTorch does; gains of layer norm become 1.

        Examples
        --------
        >>> import numpy as np, gradcore
        >>> rnn = gradcore.RNN(3, 4, rng=0)
        >>> rnn.params["weight_hh_l0"] *= 100
        >>> rnn.reset_parameters()
        >>> bool(np.abs(rnn.flat_params).max() <= 0.5)
        True
        """
        bound = 1 / math.sqrt(self.hidden_size)
        for name, parameter in self.params.items():
            if name.startswith("norm_"):
                parameter[...] = 0 if "_bias_" in name else 1
            else:
                parameter[...] = self._rng.uniform(-bound, bound, parameter.shape)

    def generators(self) -> list[np.random.Generator]:
        """Return the generator that dropout, zoneout and recurrent dropout draw from.

        Returns
        -------
        list of numpy.random.Generator
            One generator, or none if nothing is drawn.

        Examples
        --------
        >>> import gradcore
        >>> gradcore.GRU(3, 5).generators()
        []
        """
        between = self.dropout if self.num_layers > 1 else 0.0
        return [self._rng] if between or self.zoneout or self.recurrent_dropout else []

    def initial_state(self, batch_size: int) -> State:
        """Return the state from which `forward` starts by default: zeros.

        Parameters
        ----------
        batch_size : int
            B, the number of sequences.

        Returns
        -------
        ndarray, (num_layers * num_directions, B, hidden_size), or a pair (h, c) of them for LSTM
            The state.

        Examples
        --------
        >>> import gradcore
        >>> h, c = gradcore.LSTM(3, 5, num_layers=2).initial_state(4)
        >>> h.shape
        (2, 4, 5)
        """
        shape = (self.num_layers * self.num_directions, check_int("batch_size", batch_size), self.hidden_size)
        return self._as_state(tuple(np.zeros(shape, self.dtype) for _ in self.cell.states))

    def _sequences_after(self, where: str, before: Sequences) -> Sequences:
        before.refuse_other_axes(where, self.batch_first)
        return Sequences(where, self.batch_first, self.bidirectional)

    # ---- argument checks ------------------------------------------------------------------------------------------

    def _check_sequence(self, name: str, value: Any, shape: tuple[int | str, ...]) -> Array:
        """Return (T, B, F) from an array that is (B, T, F) with batch_first."""
        if not self.batch_first:
            return check_array(name, value, self.dtype, shape)
        given = check_array(name, value, self.dtype, (shape[1], shape[0], shape[2]))
        return np.ascontiguousarray(given.swapaxes(0, 1))

    def _check_state(self, name: str, state: State, B: int) -> Parts | None:
        """Return the parts of a state, each (L*D, B, H); None for None."""
        if state is None:
            return None
        shape, names = (self.num_layers * self.num_directions, B, self.hidden_size), self.cell.states
        if len(names) == 1:
            return (check_array(name, state, self.dtype, shape),)
        if not isinstance(state, (tuple, list)) or len(state) != len(names):
            raise TypeError(f"{name}: expected a pair ({', '.join(names)}), got {type(state).__name__}")
        return tuple(check_array(f"{name}[{i}]", part, self.dtype, shape) for i, part in enumerate(state))

    def _check_dstate(self, tape: Any, dstate: State) -> None:
        self._check_state("dstate", dstate, tape.trace.batch.B)

    def _check_dy(self, dy: Any, dstate: State, batch: _Batch) -> Array:
        """Return dL/dy, (T, B, D*H); zeros for None, where there is a dstate."""
        shape = (batch.T, batch.B, self.num_directions * self.hidden_size)
        if dy is not None:
            return self._check_sequence("dy", dy, shape)
        if dstate is None:
            raise TypeError("dy: expected an array, got None; it can be None only with a dstate")
        return np.zeros(shape, self.dtype)

    def _as_state(self, parts: Parts) -> State:
        return parts if len(parts) > 1 else parts[0]

    # ---- the passes ----------------------------------------------------------------------------------------------

    def __call__(self, x: Array, state: State = None, lengths: Any = None, reset: Any = None) -> tuple[Array, State]:
        """Return the outputs and the final state for a batch of sequences, without dropout and without a tape.

        Zoneout takes the mean of the old and the new state.

        Parameters
        ----------
        x : ndarray, (T, B, input_size), or (B, T, input_size) with `batch_first`
            The sequences, of the layer's dtype.
        state : ndarray, (num_layers * num_directions, B, hidden_size), or a pair (h, c) of them for LSTM
            The initial state; zeros by default.
        lengths : array_like of int, (B,)
            The length of each sequence; T by default.
        reset : array_like of bool, (T, B), or (B, T) with `batch_first`
            Where a sequence begins anew: the state before this step is zero and no gradient passes, in either
            direction. Such as the first step of each episode, or of each document in a stream of text.

        Returns
        -------
        y : ndarray, (T, B, num_directions * hidden_size), or (B, T, ...) with `batch_first`
            The outputs h_t of the last layer, zero past each sequence's end.
        state : ndarray or tuple of ndarray
            The final state, like the initial one: that of each sequence at its own last step.

        Examples
        --------
        >>> import numpy as np, gradcore
        >>> gru = gradcore.GRU(3, 5, rng=0)
        >>> x = np.ones((7, 2, 3), np.float32)
        >>> y, h = gru(x)
        >>> first, state = gru(x[:4])
        >>> rest, state = gru(x[4:], state)
        >>> bool(np.array_equal(state, h))
        True
        """
        y, final, _ = self._run(x, state, lengths, reset, trains=False, keep=False)
        return y, final

    def forward(
        self, x: Array, state: State = None, lengths: Any = None, reset: Any = None
    ) -> tuple[Array, RecurrentTape]:
        """Return the outputs for a batch of sequences, and the tape that `backward` needs.

        Parameters
        ----------
        x : ndarray, (T, B, input_size), or (B, T, input_size) with `batch_first`
            The sequences, of the layer's dtype.
        state : ndarray, (num_layers * num_directions, B, hidden_size), or a pair (h, c) of them for LSTM
            The initial state; zeros by default.
        lengths : array_like of int, (B,)
            The length of each sequence; T by default. The values of `x` past a sequence's end have no effect.
        reset : array_like of bool, (T, B), or (B, T) with `batch_first`
            Where a sequence begins anew: the state before this step is zero and no gradient passes, in either
            direction. Such as the first step of each episode, or of each document in a stream of text.

        Returns
        -------
        y : ndarray, (T, B, num_directions * hidden_size), or (B, T, ...) with `batch_first`
            The outputs h_t of the last layer, zero past each sequence's end.
        tape : RecurrentTape
            What `backward` needs; `tape.state` is the final state, that of each sequence at its own last step. If x is
            contiguous, the tape reads it in place, so leave x unchanged until `backward`.

        Raises
        ------
        TypeError, ValueError
            If an argument has the wrong dtype or shape. Nothing has been computed then.

        Examples
        --------
        >>> import numpy as np, gradcore
        >>> lstm = gradcore.LSTM(3, 5, num_layers=2, rng=0)
        >>> y, tape = lstm.forward(np.ones((7, 2, 3), np.float32), lengths=[7, 4])
        >>> h, c = tape.state
        >>> y.shape, h.shape, bool((h[1, 1] == y[3, 1]).all())
        ((7, 2, 5), (2, 2, 5), True)
        """
        return self._taped(x, state, lengths, reset, trains=True)

    def _taped(
        self, x: Array, state: State = None, lengths: Any = None, reset: Any = None, *, trains: bool
    ) -> tuple[Array, RecurrentTape]:
        """Return the outputs and the tape of training, or of inference."""
        y, final, trace = self._run(x, state, lengths, reset, trains=trains, keep=True)
        assert trace is not None
        tape = RecurrentTape(self, trace)
        tape.state = final
        return y, tape

    def _run(
        self, x: Array, state: State, lengths: Any, reset: Any, *, trains: bool, keep: bool
    ) -> tuple[Array, State, Trace | None]:
        x = self._check_sequence("x", x, ("T", "B", self.input_size))
        T, B = x.shape[:2]
        check_room((T + self.num_layers) * (B + 1) * 8 * self.hidden_size)  # an x without elements can have any T
        ends, parts = check_lengths(lengths, T, B), self._check_state("state", state, B)
        cuts = check_reset(reset, (B, T) if self.batch_first else (T, B))
        if cuts is not None and self.batch_first:
            cuts = cuts.T
        noise = None
        if self.zoneout or self.recurrent_dropout:
            noise = self._draw_noise if trains else self._mean_noise
        y, final, trace = run(
            self.cell, self._params.lists(self._names), x, parts, laid_out(T, B, ends, cuts, self._pool),
            num_directions=self.num_directions, draw_mask=self._draw_mask if self.dropout and trains else None,
            noise=noise, keep=keep, pool=self._pool,
        )  # fmt: skip
        return self._turned(y), self._as_state(final), trace

    def _draw_mask(self, shape: tuple[int, int]) -> Array:
        return self._dropout_mask(shape, self.dropout)

    def _dropout_mask(self, shape: tuple[int, int], p: float) -> Array:
        keep_rate = 1 - p
        mask: Array = (self._rng.random(shape) < keep_rate) / self.dtype.type(keep_rate or 1)
        return mask.astype(self.dtype)

    def _mean_noise(self, shape: tuple[int, int]) -> Noise:
        return Noise(zoneout=self.zoneout, mean=True)

    def _draw_noise(self, shape: tuple[int, int]) -> Noise:
        mask = self._dropout_mask(shape, self.recurrent_dropout) if self.recurrent_dropout else None
        key = int(self._rng.integers(2**64, dtype=np.uint64)) if self.zoneout else 0
        return Noise(mask, self.zoneout, key=key)

    def backward(
        self,
        tape: RecurrentTape,
        dy: Array,
        dstate: State = None,
        *,
        step_clip: float | None = None,
    ) -> Array:
        """Propagate the gradient back through time: return dL/dx and add dL/d(parameters) to `grads`.

        It sets `tape.dstate` and `tape.telemetry`. If interrupted or out of memory, it resets `grads` to zero.

        Parameters
        ----------
        tape : RecurrentTape
            The tape from this layer's `forward`.
        dy : ndarray, like y, or None
            The gradient with respect to y; None for zeros, if `dstate` is given. Its values past a sequence's end have
            no effect.
        dstate : ndarray or pair of ndarray, like the state
            The gradient with respect to the final state; zeros by default.
        step_clip : float
            The limit to which each sequence's dL/dh_t is rescaled while it is propagated; None for no limit.

        Returns
        -------
        ndarray
            The gradient with respect to x, zero past each sequence's end.

        Raises
        ------
        TypeError, ValueError
            If the tape comes from another layer or from a process with another instruction set, an array has the wrong
            dtype or shape, or `step_clip` is negative. Nothing has been computed then.
        RuntimeError
            If a signal handler calls it in the middle of a backward pass of the same layer.

        Examples
        --------
        >>> import numpy as np, gradcore
        >>> gru = gradcore.GRU(3, 5, rng=0)
        >>> y, tape = gru.forward(np.ones((7, 2, 3), np.float32))
        >>> dx = gru.backward(tape, None, np.ones((1, 2, 5), np.float32), step_clip=1.0)
        >>> dx.shape, tape.dstate.shape, tape.telemetry.n_clipped.shape
        ((7, 2, 3), (1, 2, 5), (1, 7))
        """
        self.check_tape(tape)
        tape.trace.check_layout()
        clip = math.inf if step_clip is None else check_number("step_clip", step_clip, least=0.0)
        batch = tape.trace.batch
        checked_dy = self._check_dy(dy, dstate, batch)
        parts = self._check_state("dstate", dstate, batch.B)

        self._refuse_reentry()
        try:  # `_adding_or_zero`, written out: a context takes a tenth of a small layer's backward pass
            found = back(
                self._params.lists(self._names), self._grads.lists(self._names), tape.trace, checked_dy, parts,
                step_clip=clip, turn=self._adding,
            )  # fmt: skip
        except BaseException:
            self._drop_gradients()
            raise
        if tape.keeps_given:
            tape.given = dy, dstate, step_clip
        tape.dstate = self._as_state(found.dstate)
        tape.telemetry = Telemetry(batch, self.num_directions, clip, found.dh_norm, found.dc_norm)
        assert found.dx is not None
        return self._turned(found.dx)

    def forward_tangent(self, tape: RecurrentTape, x_dot: Array) -> tuple[Array, Moved]:
        """Return how the output changes when x moves in the direction of `x_dot`; the initial state stays.

        Parameters
        ----------
        tape : Tape
            The tape from this layer's `forward`.
        x_dot : ndarray
            The tangent of x, of the shape of x.

        Returns
        -------
        y_dot : ndarray
            The tangent of y, of the shape of y.
        tangent : object
            What `backward_tangent` needs besides the tape.
        """
        self._refuse_without_tangent("layer")
        self.check_tape(tape)
        tape.trace.check_layout()
        batch = tape.trace.batch
        x_dot = self._check_sequence("x_dot", x_dot, (batch.T, batch.B, self.input_size))
        y_dot, moved = run_tangent(self._params.lists(self._names), tape.trace, x_dot)
        return self._turned(y_dot), moved

    def backward_tangent(self, tape: RecurrentTape, tangent: Moved, dy: Array, dy_dot: Array) -> tuple[Array, Array]:
        """Return how the backward pass changes as x moves, and add how the gradients of the parameters do.

        If interrupted or out of memory, it resets `grads` to zero.

        Parameters
        ----------
        tape : Tape
            The tape from this layer's `forward`.
        tangent : object
            What `forward_tangent` returned beside the tangent of y.
        dy : ndarray
            The gradient with respect to y.
        dy_dot : ndarray
            The tangent of dy.

        Returns
        -------
        dx : ndarray
            The gradient with respect to x.
        dx_dot : ndarray
            The tangent of dx.
        """
        self.check_tape(tape)
        tape.trace.check_layout()
        batch = tape.trace.batch
        shape = (batch.T, batch.B, self.num_directions * self.hidden_size)
        ds = self._check_sequence("dy", dy, shape), self._check_sequence("dy_dot", dy_dot, shape)
        weights, grads = self._params.lists(self._names), self._grads.lists(self._names)
        with self._adding_or_zero():
            dx, dx_dot = back_tangent(weights, grads, tape.trace, tangent, *ds, self._adding)
        return self._turned(dx), self._turned(dx_dot)

    def _turned(self, sequences: Array) -> Array:
        """(T, B, F) -> (B, T, F) with batch_first"""
        return sequences.swapaxes(0, 1) if self.batch_first else sequences
