"""RNN, LSTM and GRU layers: whole sequences forward, and back through time."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from gradcore._base.check import (
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
from gradcore._base.memory import Pool
from gradcore.layers.cell import CELLS, Cell, Parts
from gradcore.layers.functional import Trace, back, run
from gradcore.layers.layer import Layer, Profile, Sequences, Tape
from gradcore.layers.ragged import _Batch
from gradcore.layers.telemetry import Telemetry

__all__ = ["GRU", "LSTM", "RNN", "RecurrentTape", "State", "Step"]

State = Any  # h, or (h, c) for LSTM


@dataclass(frozen=True)
class Step:
    """Hold what one layer and direction computed at one step of one sequence.

    Parameters
    ----------
    gates : ndarray, (K, H)
        RNN: h. LSTM: i, f, g, o. GRU: r, z, n and q = W_hn h + b_hn. All but q are after their activation.
    h : ndarray, (H,)
        The hidden state before the step.
    c : ndarray, (H,), or None
        The cell state before the step; LSTM only.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> gru = gradcore.GRU(3, 5, rng=0)
    >>> y, tape = gru.forward(np.ones((7, 2, 3), np.float32))
    >>> step = tape.record(0, t=4, b=1)
    >>> r, z, n, q = step.gates
    >>> bool(np.allclose((1 - z) * n + z * step.h, y[4, 1]))
    True
    """

    gates: Array
    h: Array
    c: Array | None


class RecurrentTape(Tape):
    """Keep what `backward` needs of a forward pass.

    With S the sum of the lengths (T B without `lengths`), H' = H rounded up to whole vectors of the processor and K = 1
    (RNN) or 4 (LSTM, GRU), it keeps S rows for each layer and direction, of (K + 1) H' elements, or (K + 2) H' for
    LSTM: the gates and the state before the step. A part of a row whose size is a multiple of 2 KiB takes 64 bytes
    more. Layers above the first also keep their S rows of inputs.

    A tape can be pickled, but `backward` and `record` refuse it in a process that uses another instruction set, which
    lays out the gates in another way.

    Parameters
    ----------
    layer : RNN, LSTM or GRU
        The layer, whose `forward` makes the tape.
    trace : object
        What `backward` needs.

    Attributes
    ----------
    state : ndarray or tuple of ndarray
        The final state, like the initial one.
    dstate : ndarray, tuple of ndarray, or None
        dL/d(initial state); set by `backward`.
    telemetry : Telemetry or None
        The norms of the gradient at every layer and time step; set by `backward`.
    omega : ndarray, (L*D,), float64, or None
        The value of a `VanishingGradientRegularizer` for each layer and direction; set by it.
    keeps_given : bool
        Whether `backward` is to keep its arguments in `given`. That costs as much memory as y.
    given : tuple or None
        The arguments dy, dstate and step_clip of the last `backward`.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> lstm = gradcore.LSTM(3, 5, rng=0)
    >>> y, tape = lstm.forward(np.ones((7, 2, 3), np.float32))
    >>> tape
    <RecurrentTape of LSTM(3, 5): T=7, B=2>
    >>> dx = lstm.backward(tape, np.ones_like(y))
    >>> tape.dstate[0].shape, tape.telemetry.dh_norm.shape
    ((1, 2, 5), (1, 7))
    """

    layer: _Recurrent
    state: State = None
    dstate: State = None

    def __init__(self, layer: _Recurrent, trace: Trace) -> None:
        self.trace, batch = trace, trace.batch
        outputs = (batch.T, batch.B, layer.num_directions * layer.hidden_size)
        super().__init__(layer, (outputs[1], outputs[0], outputs[2]) if layer.batch_first else outputs)
        self.telemetry: Telemetry | None = None
        self.omega: Array | None = None
        self.keeps_given = False
        self.given: tuple[Any, ...] | None = None

    @property
    def first_nonfinite(self) -> tuple[int, int, int] | None:
        """That of the telemetry."""
        return None if self.telemetry is None else self.telemetry.first_nonfinite

    def profiles(self) -> Iterator[Profile]:
        """Yield |dL/dh_t| of each layer and direction; nothing before `backward`.

        Yields
        ------
        Profile
            The name, the direction and the norms.
        """
        for index, norms in enumerate(() if self.telemetry is None else self.telemetry.dh_norm):
            layer, reverse = divmod(index, self.layer.num_directions)
            yield Profile(f"l{layer}{'_reverse' * reverse}", reverse == 1, norms)

    @property
    def nbytes(self) -> int:
        """The size of what the tape keeps, in bytes."""
        return self.trace.nbytes

    def record(self, index: int, t: int, b: int) -> Step:
        """Return what one layer and direction computed at one step of one sequence.

        Parameters
        ----------
        index : int
            The layer and direction: layer * num_directions + direction.
        t : int
            The time step.
        b : int
            The sequence.

        Returns
        -------
        Step
            The gates, and the state before the step.

        Raises
        ------
        IndexError
            If an index is out of range, or the sequence has ended before step t.
        ValueError
            If the tape comes from a process that uses another instruction set.

        Examples
        --------
        >>> import numpy as np, gradcore
        >>> lstm = gradcore.LSTM(3, 5, rng=0)
        >>> y, tape = lstm.forward(np.ones((7, 2, 3), np.float32))
        >>> i, f, g, o = tape.record(0, t=6, b=1).gates
        >>> i.shape
        (5,)
        """
        index = check_index("index", index, len(self.trace))
        row, H = self.trace.batch.row(t, b), self.layer.hidden_size
        _, h, c = self.trace.arrays[index]
        return Step(self.trace.gates(index, row), h[row, :H].copy(), None if c is None else c[row, :H].copy())

    def __repr__(self) -> str:
        return f"<RecurrentTape of {self.layer!r}: T={self.trace.batch.T}, B={self.trace.batch.B}>"


class _Recurrent(Layer):
    """Base of RNN, LSTM and GRU, which name the cell."""

    takes = frozenset({"lengths", "step_clip"})
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
        if self.dropout and self.num_layers == 1:
            message = f"dropout: {self.dropout:g} has no effect with num_layers=1; it acts between layers"
            warnings.warn(message, UserWarning, stacklevel=3)
        self.dtype = check_dtype(dtype)
        self._rng = check_rng(rng)
        self._pool = Pool()

        self._names: list[list[str]] = []  # w_ih, w_hh, b_ih, b_hh of each layer and direction
        shapes: dict[str, tuple[int, ...]] = {}
        GH, H = len(self.cell.gates) * self.hidden_size, self.hidden_size
        above = (self.num_layers - 1) * (H * self.num_directions + H + 2 * self.bias)
        n = GH * self.num_directions * (self.input_size + H + 2 * self.bias + above)
        check_room(n, self.dtype.itemsize)
        np.empty(n, self.dtype)  # raise MemoryError now, not after making names for 2**40 layers
        for layer in range(self.num_layers):
            width = self.input_size if layer == 0 else H * self.num_directions
            for suffix in [f"l{layer}", f"l{layer}_reverse"][: self.num_directions]:
                names = [f"{name}_{suffix}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
                shapes |= dict(zip(names, [(GH, width), (GH, H), (GH,), (GH,)][: 4 if self.bias else 2], strict=False))
                self._names.append(names)
        super().__init__(shapes, dtype=self.dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw every parameter from U(-1/sqrt(H), 1/sqrt(H)), as PyTorch does.

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
        self.flat_params[...] = self._rng.uniform(-bound, bound, self.flat_params.size)

    def generators(self) -> list[np.random.Generator]:
        """Return the generator that dropout draws from.

        Returns
        -------
        list of numpy.random.Generator
            One generator, or none if there is no dropout.

        Examples
        --------
        >>> import gradcore
        >>> gradcore.GRU(3, 5).generators()
        []
        """
        return [self._rng] if self.dropout and self.num_layers > 1 else []

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

    def _weights(self, arrays: dict[str, Array]) -> list[list[Array | None]]:
        """Return [w_ih, w_hh, b_ih, b_hh] of each layer and direction, from params or from grads."""
        return [[arrays.get(name) for name in names] for names in self._names]

    def _sequences_after(self, where: str, before: Sequences) -> Sequences:
        before.refuse_other_axes(where, self.batch_first)
        return Sequences(where, self.batch_first, self.bidirectional)

    def _describe(self) -> Iterator[str]:
        yield f"{self.input_size}, {self.hidden_size}"
        if self.num_layers != 1:
            yield f"num_layers={self.num_layers}"
        for name, default in (("bias", True), ("batch_first", False), ("dropout", 0.0), ("bidirectional", False)):
            if getattr(self, name) != default:
                yield f"{name}={getattr(self, name)}"
        yield from super()._describe()

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

    def _as_state(self, parts: Iterable[Array]) -> State:
        return tuple(parts) if len(self.cell.states) > 1 else next(iter(parts))

    # ---- the passes ----------------------------------------------------------------------------------------------

    def __call__(self, x: Array, state: State = None, lengths: Any = None) -> tuple[Array, State]:
        """Return the outputs and the final state for a batch of sequences, without dropout and without a tape.

        Parameters
        ----------
        x : ndarray, (T, B, input_size), or (B, T, input_size) with `batch_first`
            The sequences, of the layer's dtype.
        state : ndarray, (num_layers * num_directions, B, hidden_size), or a pair (h, c) of them for LSTM
            The initial state; zeros by default.
        lengths : array_like of int, (B,)
            The length of each sequence; T by default.

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
        y, final, _ = self._run(x, state, lengths, keep=False)
        return y, final

    def forward(self, x: Array, state: State = None, lengths: Any = None) -> tuple[Array, RecurrentTape]:
        """Return the outputs for a batch of sequences, and the tape that `backward` needs.

        Parameters
        ----------
        x : ndarray, (T, B, input_size), or (B, T, input_size) with `batch_first`
            The sequences, of the layer's dtype.
        state : ndarray, (num_layers * num_directions, B, hidden_size), or a pair (h, c) of them for LSTM
            The initial state; zeros by default.
        lengths : array_like of int, (B,)
            The length of each sequence; T by default. The values of `x` past a sequence's end have no effect.

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
        y, final, trace = self._run(x, state, lengths, keep=True)
        assert trace is not None
        tape = RecurrentTape(self, trace)
        tape.state = final
        return y, tape

    def _run(self, x: Array, state: State, lengths: Any, *, keep: bool) -> tuple[Array, State, Trace | None]:
        x = self._check_sequence("x", x, ("T", "B", self.input_size))
        T, B = x.shape[:2]
        check_room((T + self.num_layers) * (B + 1) * 8 * self.hidden_size)  # an x without elements can have any T
        ends = check_lengths(lengths, T, B)
        y, final, trace = run(
            self.cell, self._weights(self._params), x, self._check_state("state", state, B), ends,
            num_directions=self.num_directions, draw_mask=self._draw_mask if self.dropout else None,
            keep=keep, pool=self._pool,
        )  # fmt: skip
        return y.swapaxes(0, 1) if self.batch_first else y, self._as_state(final), trace

    def _draw_mask(self, shape: tuple[int, int]) -> Array:
        keep_rate = 1 - self.dropout
        mask: Array = (self._rng.random(shape) < keep_rate) / self.dtype.type(keep_rate or 1)
        return mask.astype(self.dtype)

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
        try:
            found = back(
                self._weights(self._params), self._weights(self._grads), tape.trace, checked_dy, parts,
                step_clip=clip, turn=self._adding,
            )  # fmt: skip
        except BaseException:
            self._drop_gradients()
            raise
        if tape.keeps_given:
            tape.given = dy, dstate, step_clip
        tape.dstate = self._as_state(found.dstate)
        tape.telemetry = Telemetry(batch, self.num_directions, clip, found.dh_norm, found.dc_norm)
        return found.dx.swapaxes(0, 1) if self.batch_first else found.dx


class RNN(_Recurrent):
    r"""Elman network: whole sequences through one or more recurrent layers.

    .. math:: h_t = \varphi(W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh}), \qquad \varphi = \tanh \text{ or relu}

    Parameters
    ----------
    input_size : int
        I, the size of x_t.
    hidden_size : int
        H, the size of h_t.
    num_layers : int
        L, the number of layers; each reads the outputs of the one below.
    nonlinearity : {"tanh", "relu"}
        The activation.
    bias : bool
        Whether there are biases b_ih and b_hh.
    batch_first : bool
        Whether x and y are (B, T, F) instead of (T, B, F). States never are.
    dropout : float
        The probability with which `forward` sets an output between two layers to zero; the others are scaled up.
    bidirectional : bool
        Whether a second direction reads each sequence from its end (D = 2). y then holds the outputs of both, side by
        side.
    dtype : dtype
        The dtype of parameters, inputs and outputs, float32 or float64.
    rng : int or numpy.random.Generator, optional
        The generator, or the seed of one, that draws the parameters from U(-1/sqrt(H), 1/sqrt(H)) and the dropout
        masks.

    Notes
    -----
    After `backward`, ``tape.telemetry`` holds the norms of the gradient at every layer, direction and time step:
    `dh_norm` (L*D, T), and for each sequence `dh_norm_per_sample` (L*D, T, B); also `n_clipped`, how many sequences
    `step_clip` rescaled, and `first_nonfinite`, where the first NaN or infinity arose.

    References
    ----------
    .. [1] Elman, "Finding structure in time", Cognitive Science 14, 1990.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> rnn = gradcore.RNN(3, 5, rng=0)
    >>> y, tape = rnn.forward(np.ones((7, 2, 3), np.float32))
    >>> dx = rnn.backward(tape, np.ones_like(y))
    >>> y.shape, dx.shape, tape.telemetry.dh_norm.shape
    ((7, 2, 5), (7, 2, 3), (1, 7))
    """

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
        self.nonlinearity = check_choice("nonlinearity", nonlinearity, ("tanh", "relu"))
        self.cell = CELLS[f"rnn_{self.nonlinearity}"]
        super().__init__(
            input_size, hidden_size, num_layers,
            bias=bias, batch_first=batch_first, dropout=dropout, bidirectional=bidirectional, dtype=dtype, rng=rng,
        )  # fmt: skip

    def _describe(self) -> Iterator[str]:
        yield from super()._describe()
        if self.nonlinearity != "tanh":
            yield f"nonlinearity={self.nonlinearity!r}"


class LSTM(_Recurrent):
    r"""Long short-term memory: whole sequences through one or more recurrent layers.

    .. math::
        i_t, f_t, o_t &= \sigma(W_{i*} x_t + b_{i*} + W_{h*} h_{t-1} + b_{h*}) \\
        g_t &= \tanh(W_{ig} x_t + b_{ig} + W_{hg} h_{t-1} + b_{hg}) \\
        c_t &= f_t c_{t-1} + i_t g_t, \qquad h_t = o_t \tanh(c_t)

    Weights and biases hold the rows of i, f, g, o in this order, as in PyTorch. A state is a pair (h, c).

    Parameters
    ----------
    input_size : int
        I, the size of x_t.
    hidden_size : int
        H, the size of h_t.
    num_layers : int
        L, the number of layers; each reads the outputs of the one below.
    bias : bool
        Whether there are biases b_ih and b_hh.
    batch_first : bool
        Whether x and y are (B, T, F) instead of (T, B, F). States never are.
    dropout : float
        The probability with which `forward` sets an output between two layers to zero; the others are scaled up.
    bidirectional : bool
        Whether a second direction reads each sequence from its end (D = 2). y then holds the outputs of both, side by
        side.
    dtype : dtype
        The dtype of parameters, inputs and outputs, float32 or float64.
    rng : int or numpy.random.Generator, optional
        The generator, or the seed of one, that draws the parameters from U(-1/sqrt(H), 1/sqrt(H)) and the dropout
        masks.

    Notes
    -----
    After `backward`, ``tape.telemetry`` holds the norms of the gradient at every layer, direction and time step:
    `dh_norm` (L*D, T), `dc_norm` likewise for c_t, and for each sequence `dh_norm_per_sample` and
    `dc_norm_per_sample` (L*D, T, B); also `n_clipped`, how many sequences `step_clip` rescaled, and `first_nonfinite`,
    where the first NaN or infinity arose.

    References
    ----------
    .. [1] Hochreiter and Schmidhuber, "Long short-term memory", Neural Computation 9, 1997.
    .. [2] Gers, Schmidhuber and Cummins, "Learning to forget", Neural Computation 12, 2000.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> lstm = gradcore.LSTM(3, 5, rng=0)
    >>> y, (h, c) = lstm(np.ones((7, 2, 3), np.float32), lengths=[7, 4])
    >>> bool((y[4:, 1] == 0).all()), bool((h[0, 1] == y[3, 1]).all())
    (True, True)
    """

    cell = CELLS["lstm"]

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
        super().__init__(
            input_size, hidden_size, num_layers,
            bias=bias, batch_first=batch_first, dropout=dropout, bidirectional=bidirectional, dtype=dtype, rng=rng,
        )  # fmt: skip


class GRU(_Recurrent):
    r"""Gated recurrent unit: whole sequences through one or more recurrent layers.

    .. math::
        r_t, z_t &= \sigma(W_{i*} x_t + b_{i*} + W_{h*} h_{t-1} + b_{h*}) \\
        n_t &= \tanh(W_{in} x_t + b_{in} + r_t (W_{hn} h_{t-1} + b_{hn})) \\
        h_t &= (1 - z_t) n_t + z_t h_{t-1}

    The reset gate r is applied after the recurrent product. Weights and biases hold the rows of r, z, n in this order,
    as in PyTorch.

    Parameters
    ----------
    input_size : int
        I, the size of x_t.
    hidden_size : int
        H, the size of h_t.
    num_layers : int
        L, the number of layers; each reads the outputs of the one below.
    bias : bool
        Whether there are biases b_ih and b_hh.
    batch_first : bool
        Whether x and y are (B, T, F) instead of (T, B, F). States never are.
    dropout : float
        The probability with which `forward` sets an output between two layers to zero; the others are scaled up.
    bidirectional : bool
        Whether a second direction reads each sequence from its end (D = 2). y then holds the outputs of both, side by
        side.
    dtype : dtype
        The dtype of parameters, inputs and outputs, float32 or float64.
    rng : int or numpy.random.Generator, optional
        The generator, or the seed of one, that draws the parameters from U(-1/sqrt(H), 1/sqrt(H)) and the dropout
        masks.

    Notes
    -----
    After `backward`, ``tape.telemetry`` holds the norms of the gradient at every layer, direction and time step:
    `dh_norm` (L*D, T), and for each sequence `dh_norm_per_sample` (L*D, T, B); also `n_clipped`, how many sequences
    `step_clip` rescaled, and `first_nonfinite`, where the first NaN or infinity arose.

    References
    ----------
    .. [1] Cho et al., "Learning phrase representations using RNN encoder-decoder for statistical machine translation",
       arXiv 1406.1078v1, 2014.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> gru = gradcore.GRU(3, 5, num_layers=2, bidirectional=True, rng=0)
    >>> y, h = gru(np.ones((7, 2, 3), np.float32))
    >>> y.shape, h.shape
    ((7, 2, 10), (4, 2, 5))
    """

    cell = CELLS["gru"]

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
        super().__init__(
            input_size, hidden_size, num_layers,
            bias=bias, batch_first=batch_first, dropout=dropout, bidirectional=bidirectional, dtype=dtype, rng=rng,
        )  # fmt: skip
