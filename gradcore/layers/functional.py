"""The passes of recurrent layers on plain arrays: no layer, no names of parameters, no policy.

Weights, and gradients of them, are lists ``[w_ih, w_hh, b_ih, b_hh]``, one for each layer and direction, in the order
layer * num_directions + direction; biases are both None without biases. With layer norm, ``[norm_ih, norm_hh, norm_c,
norm_c_bias]`` follows, the last two None but for LSTM. All arrays have one dtype, float32 or float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from gradcore import _kernels
from gradcore._base.check import Array
from gradcore._base.lock import Turn
from gradcore._base.memory import ALIGNMENT, Pool
from gradcore.layers.cell import Cell, Parts
from gradcore.layers.ragged import _Batch, laid_out

__all__ = ["Gradients", "Noise", "Rows", "Trace", "Weights", "back", "dropped", "packed_state", "run", "trace_columns"]

Weights = Sequence[list[Array | None]]


def dropped(rows: Array, mask: Array) -> Array:
    """Return the product without NumPy's warnings, which the kernels do not give either.

    Parameters
    ----------
    rows : ndarray, (S, D*H)
        The outputs of a layer, or the gradient with respect to what the next one read.
    mask : ndarray, (S, D*H)
        The factors of dropout.

    Returns
    -------
    ndarray, (S, D*H)
        The product.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore.layers.functional import dropped
    >>> dropped(np.array([[1.0, 2.0]]), np.array([[0.0, 2.0]]))
    array([[0., 4.]])
    """
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray(rows * mask)


class Noise(NamedTuple):
    """The zoneout and the recurrent dropout of one layer and direction.

    Parameters
    ----------
    mask : ndarray, (B, H), optional
        The factors of recurrent dropout, for the sequences in packed order.
    zoneout : float
        The probability with which a unit of h, or of c, keeps its old value for a step.
    mean : bool
        Whether each unit keeps that part of its old value instead, as in inference.
    key : int
        What the masks of zoneout depend on beside row and unit, 0 <= key < 2**64.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore.layers.cell import CELLS
    >>> from gradcore.layers.functional import Noise, run
    >>> weights = [[np.ones((1, 1)), np.full((1, 1), 0.5), None, None]]
    >>> half = Noise(zoneout=0.5, mean=True)
    >>> y, state, trace = run(CELLS["rnn_relu"], weights, np.ones((3, 1, 1)), noise=lambda shape: half)
    >>> y.ravel()
    array([0.5    , 0.875  , 1.15625])
    """

    mask: Array | None = None
    zoneout: float = 0.0
    mean: bool = False
    key: int = 0


class Rows(NamedTuple):
    """The arrays of one layer and direction that the backward kernel reads.

    Parameters
    ----------
    gates : ndarray, (S, K*H or more)
        The gates, laid out as the kernels like it; `Trace.gates` knows how.
    h : ndarray, (S, H or more)
        The hidden state before each step.
    c : ndarray, (S, H or more), optional
        The cell state before each step; LSTM only.
    norm : ndarray, (S, 2*G*H or more), optional
        What layer norm made of the products with x and h, and of c.
    h_met : ndarray, (S, H or more), optional
        The product of `h` and the factors of recurrent dropout.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore.layers.cell import CELLS
    >>> from gradcore.layers.functional import run
    >>> weights = [[np.ones((1, 1)), np.full((1, 1), 0.5), None, None]]
    >>> y, state, trace = run(CELLS["rnn_relu"], weights, np.ones((3, 1, 1)))
    >>> trace.arrays[0].h[:, 0], trace.arrays[0].c is None
    (array([0. , 1. , 1.5]), True)
    """

    gates: Array
    h: Array
    c: Array | None = None
    norm: Array | None = None
    h_met: Array | None = None


class _Layout(NamedTuple):
    """How the kernels of an instruction set lay out a tape."""

    isa: str
    line: int  # the elements of a cache line, on which each part begins
    gates: int  # the elements of a row
    state: int
    norm: int
    lanes: int  # how many units stand together in a row of the gates

    def places(self, S: Any, has_c: bool, layer_norm: bool = False, masked: bool = False) -> tuple[Any, ...]:
        """Return where h, c, norm and h_met of S rows begin after the gates, and where the whole ends."""
        line = self.line
        h_at = (S * self.gates + line - 1) // line * line
        state = (S * self.state + line - 1) // line * line
        c_at = h_at + state
        norm_at = c_at + state if has_c else c_at
        met_at = norm_at + (S * self.norm + line - 1) // line * line if layer_norm else norm_at
        return h_at, c_at, norm_at, met_at, met_at + state if masked else met_at


@cache
def _layout(dtype: np.dtype[Any], kind: int, H: int) -> _Layout:
    return _Layout(_kernels.isa(), ALIGNMENT // dtype.itemsize, *_kernels.tape_layout(dtype, kind, H))


def trace_columns(cell: Cell, S: Any, H: int, dtype: np.dtype[Any]) -> Any:
    """Return the columns of `Trace.whole` for S rows, without layer norm and noise.

    Parameters
    ----------
    cell : Cell
        The row of the table of cells.
    S : int
        The sum of the lengths; also a symbol.
    H : int
        The number of hidden units.
    dtype : dtype
        The dtype of all arrays, float32 or float64.

    Returns
    -------
    int
        The number of columns.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore.layers.cell import CELLS
    >>> from gradcore.layers.functional import run, trace_columns
    >>> weights = [[np.ones((1, 1)), np.full((1, 1), 0.5), None, None]]
    >>> y, state, trace = run(CELLS["rnn_relu"], weights, np.ones((3, 1, 1)))
    >>> trace.whole.shape[1] == trace_columns(CELLS["rnn_relu"], 3, 1, np.dtype(float))
    True
    """
    return _layout(dtype, cell.kind, H).places(S, len(cell.states) > 1)[-1]


class Trace:
    """What `back` needs of `run`: S rows for each layer and direction, S being the sum of the lengths.

    `inputs` has the rows that each layer read, (S, I_l), `masks` the factors of each dropout, (S, D*H), `noise` that of
    each layer and direction.

    Parameters
    ----------
    cell : Cell
        The row of the table of cells.
    batch : object
        The layout of the sequences.
    n : int
        The number of layers times that of directions.
    num_directions : {1, 2}
        D, the number of directions.
    H : int
        The number of hidden units.
    dtype : dtype
        The dtype of all arrays, float32 or float64.
    pool : Pool
        The pool to borrow memory from.
    layer_norm : bool
        Whether there is layer norm.
    noise : sequence of Noise, optional
        The noise of each layer and direction.
    whole : ndarray, (n, columns), optional
        The memory of another trace of the same shapes; borrowed from the pool by default.

    Attributes
    ----------
    whole : ndarray, (n, columns)
        The memory of `arrays`.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore.layers.cell import CELLS
    >>> from gradcore.layers.functional import run
    >>> weights = [[np.ones((1, 1)), np.full((1, 1), 0.5), None, None]]
    >>> y, state, trace = run(CELLS["rnn_relu"], weights, np.ones((3, 1, 1)))
    >>> len(trace), trace.hidden_size, [rows.shape for rows in trace.inputs]
    (1, 1, [(3, 1)])
    """

    def __init__(
        self,
        cell: Cell,
        batch: _Batch,
        n: int,
        num_directions: int,
        H: int,
        dtype: np.dtype[Any],
        pool: Pool,
        layer_norm: bool = False,
        noise: Sequence[Noise] | None = None,
        whole: Array | None = None,
    ) -> None:
        self.cell, self.batch, self.num_directions, self.hidden_size, self.dtype = cell, batch, num_directions, H, dtype
        self.inputs: list[Array] = []
        self.masks: list[Array] = []
        self.noise = noise
        self._arrays: list[Rows] = []
        self._pool = pool
        layout = self._layout = _layout(dtype, cell.kind, H)
        S, has_c = batch.n_rows, len(cell.states) > 1
        masked = noise is not None and noise[0].mask is not None
        h_at, c_at, norm_at, met_at, end = layout.places(S, has_c, layer_norm, masked)
        # borrowed memory comes back when its last view is gone
        self.whole = pool.empty((n, end), dtype) if whole is None else whole
        for k in range(n):
            own = self.whole[k]
            gates = own[: S * layout.gates].reshape(S, layout.gates)
            h = own[h_at : h_at + S * layout.state].reshape(S, layout.state)
            c = own[c_at : c_at + S * layout.state].reshape(S, layout.state) if has_c else None
            norm = own[norm_at : norm_at + S * layout.norm].reshape(S, layout.norm) if layer_norm else None
            h_met = own[met_at : met_at + S * layout.state].reshape(S, layout.state) if masked else None
            self._arrays.append(Rows(gates, h, c, norm, h_met))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "whole"}  # a pickle has its parts

    @property
    def arrays(self) -> list[Rows]:
        """What is kept of each layer and direction, as the kernels of this process lay it out."""
        self.check_layout()
        return self._arrays

    def check_layout(self) -> None:
        """Raise if it was pickled in a process whose kernels use another instruction set."""
        here = _layout(self.dtype, self.cell.kind, self.hidden_size)
        if here != self._layout:
            raise ValueError(
                f"tape: was made with the instruction set {self._layout.isa}, and this process uses {here.isa}; "
                f"run forward again here, or set GRADCORE_ISA={self._layout.isa}"
            )

    def __len__(self) -> int:
        return len(self._arrays)

    @property
    def nbytes(self) -> int:
        """The size of what is kept beside x, in bytes."""
        parts = [part for rows in self._arrays for part in rows if part is not None]
        return sum(part.nbytes for part in [*parts, *self.inputs[1:], *self.masks])

    def gates(self, index: int, rows: int | slice) -> Array:
        """Return the gates of one layer and direction in the order of `Step.gates`.

        Parameters
        ----------
        index : int
            Which layer * num_directions + direction.
        rows : int or slice
            Which of the packed rows.

        Returns
        -------
        ndarray, (K, H), or (K, n, H) for a slice of n rows
            The gates; all but the q of GRU are after their activation.
        """
        K, H, lanes = len(self.cell.kept), self.hidden_size, self._layout.lanes
        n_blocks = -(-H // lanes)
        kept = self.arrays[index].gates[rows, : K * n_blocks * lanes]
        blocks = np.moveaxis(kept.reshape(*kept.shape[:-1], n_blocks, K, lanes), -2, 0)  # (K, ..., n_blocks, lanes)
        return np.asarray(blocks.reshape(*blocks.shape[:-2], n_blocks * lanes)[list(self.cell.kept), ..., :H])


class Gradients(NamedTuple):
    """What `back` returns beside what it adds to the gradients of the weights.

    Parameters
    ----------
    dx : ndarray, like x, or None
        The gradient with respect to x, unless it was not asked for.
    dstate : tuple of ndarray, (L*D, B, H)
        Those with respect to the parts of the initial state.
    dh_norm : ndarray of float64, (L*D, S)
        The L2 norm of the total dL/dh_t in each packed row, before it is rescaled.
    dc_norm : ndarray of float64, (L*D, S), or None
        That of dL/dc_t; LSTM only.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore.layers.cell import CELLS
    >>> from gradcore.layers.functional import back, run
    >>> weights = [[np.ones((1, 1)), np.full((1, 1), 0.5), None, None]]
    >>> y, state, trace = run(CELLS["rnn_relu"], weights, np.ones((3, 1, 1)))
    >>> grads = [[np.zeros((1, 1)), np.zeros((1, 1)), None, None]]
    >>> found = back(weights, grads, trace, np.zeros((3, 1, 1)), (np.ones((1, 1, 1)),))
    >>> found.dh_norm, found.dstate[0].ravel()
    (array([[0.25, 0.5 , 1.  ]]), array([0.125]))
    """

    dx: Array | None
    dstate: Parts
    dh_norm: Array
    dc_norm: Array | None


def packed_state(
    cell: Cell,
    state: Parts | None,
    batch: _Batch,
    num_directions: int,
    shape: tuple[int, ...],
    dtype: Any,
    *,
    final: bool,
) -> list[Array]:
    """Return new parts of a state in the order of the packed rows; zeros for None.

    Parameters
    ----------
    cell : Cell
        The row of the table of cells.
    state : tuple of ndarray, (L*D, B, H), or None
        The parts of a state.
    batch : object
        The layout of the sequences.
    num_directions : {1, 2}
        D, the number of directions.
    shape : tuple of int
        (L*D, H).
    dtype : dtype
        The dtype of the parts.
    final : bool
        Whether it is a final state, or a gradient with respect to one, instead of an initial one.

    Returns
    -------
    list of ndarray, (L*D, batch.width, H)
        The parts, whose sequences are in the packed order.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore.layers.cell import CELLS
    >>> from gradcore.layers.functional import packed_state, run
    >>> weights = [[np.ones((1, 1)), np.full((1, 1), 0.5), None, None]]
    >>> y, state, trace = run(CELLS["rnn_relu"], weights, np.ones((3, 1, 1)))
    >>> packed_state(trace.cell, None, trace.batch, 1, (1, 1), trace.dtype, final=False)
    [array([[[0.]]])]
    """
    if state is None:
        return [np.zeros((shape[0], batch.width, shape[1]), dtype) for _ in cell.states]
    return [batch.sort(part, num_directions, final=final) for part in state]


def run(
    cell: Cell,
    weights: Weights,
    x: Array,
    state: Parts | None = None,
    batch: _Batch | None = None,
    *,
    num_directions: int = 1,
    draw_mask: Callable[[tuple[int, int]], Array] | None = None,
    noise: Callable[[tuple[int, int]], Noise] | None = None,
    keep: bool = True,
    pool: Pool | None = None,
) -> tuple[Array, Parts, Trace | None]:
    """Run sequences through a stack of recurrent layers.

    Parameters
    ----------
    cell : Cell
        The row of the table of cells.
    weights : sequence of list of ndarray
        ``[w_ih (G*H, I_l), w_hh (G*H, H), b_ih (G*H,), b_hh (G*H,)]`` of each layer and direction.
    x : ndarray, (T, B, I), or (S, I) where the layout is that of packed rows
        The sequences. If it is contiguous, `back` reads it in place.
    state : tuple of ndarray, (L*D, B, H), optional
        The parts of the initial state, which are not changed; zeros by default.
    batch : object, optional
        The layout of the sequences; by default all have T steps.
    num_directions : {1, 2}
        D, the number of directions.
    draw_mask : callable, optional
        ``draw_mask(shape)``: the factors (S, D*H) of the outputs of a layer below the last; called for each, if `keep`.
    noise : callable, optional
        ``noise(shape)``: zoneout and recurrent dropout of a layer and direction, shape being (B, H); called for each.
        Only with `keep` may it have a mask.
    keep : bool
        Whether to keep what `back` needs.
    pool : Pool, optional
        The pool to borrow memory from.

    Returns
    -------
    y : ndarray, (T, B, D*H), or (S, D*H)
        The outputs of the last layer, zero past each sequence's end.
    state : tuple of ndarray, (L*D, B, H)
        The parts of the final state.
    trace : Trace or None
        What `back` needs.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore.layers.cell import CELLS
    >>> from gradcore.layers.functional import back, run
    >>> weights = [[np.ones((1, 1)), np.full((1, 1), 0.5), None, None]]
    >>> y, (h,), trace = run(CELLS["rnn_relu"], weights, np.ones((3, 1, 1)))
    >>> y.ravel()
    array([1.  , 1.5 , 1.75])
    >>> grads = [[np.zeros((1, 1)), np.zeros((1, 1)), None, None]]
    >>> back(weights, grads, trace, np.ones((3, 1, 1))).dx.ravel()
    array([1.75, 1.5 , 1.  ])
    >>> grads[0][1]
    array([[3.]])
    """
    pool = Pool() if pool is None else pool
    D, n = num_directions, len(weights)
    w_hh = weights[0][1]
    assert w_hh is not None
    H, dtype = w_hh.shape[1], x.dtype
    batch = laid_out(x.shape[0], x.shape[1], None, None, pool) if batch is None else batch
    states = packed_state(cell, state, batch, D, (n, H), dtype, final=False)
    drawn = None if noise is None else [noise((batch.width, H)) for _ in weights]
    trace = Trace(cell, batch, n, D, H, dtype, pool, len(weights[0]) > 4, drawn) if keep else None

    rows = batch.pack(x)
    for first in range(0, n, D):  # of each layer
        if trace is not None:
            if first and draw_mask is not None:
                trace.masks.append(draw_mask(rows.shape))
                rows = dropped(rows, trace.masks[-1])
            trace.inputs.append(rows)
        last = first + D == n  # writes the padded batch; the layers below write packed rows
        y = batch.padded(D * H, dtype) if last else pool.empty((batch.n_rows, D * H), dtype)
        y_at = batch.rows if last else None
        for direction in range(D):
            k = first + direction
            steps = cell.kind, direction == 1, batch.offsets, batch.width
            tape = trace._arrays[k] if trace is not None else (None, None, None)
            hc = states[0][k], states[1][k] if len(states) > 1 else None
            out = y, y_at, direction * H
            its = None if drawn is None else drawn[k]
            pool.give(_kernels.recurrent_forward(steps, weights[k], rows, tape, out, hc, pool.take, its))
        rows = y
    return rows.reshape(*x.shape[:-1], D * H), batch.unsort(states, D, final=True), trace


def back(
    weights: Weights,
    grads: Weights,
    trace: Trace,
    dy: Array,
    dstate: Parts | None = None,
    *,
    step_clip: float = math.inf,
    turn: Turn | None = None,
    needs_dx: bool = True,
) -> Gradients:
    """Propagate the gradient back through time, and add dL/d(weights) to `grads`.

    A trace that was unpickled has to pass `Trace.check_layout` first.

    Parameters
    ----------
    weights : sequence of list of ndarray
        Those of `run`.
    grads : sequence of list of ndarray
        Arrays like the weights, which are added to.
    trace : Trace
        What `run` returned.
    dy : ndarray, like y
        The gradient with respect to y.
    dstate : tuple of ndarray, (L*D, B, H), optional
        That with respect to the parts of the final state, which are not changed; zeros by default.
    step_clip : float
        The limit to which each sequence's dL/dh_t is rescaled while it is propagated.
    turn : Turn, optional
        Whose lock is held while something is added to `grads`.
    needs_dx : bool
        Whether to compute the gradient with respect to x.

    Returns
    -------
    Gradients
        Those with respect to x and the initial state, and the norms of those on the way.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore.layers.cell import CELLS
    >>> from gradcore.layers.functional import back, run
    >>> weights = [[np.ones((1, 1)), np.full((1, 1), 0.5), None, None]]
    >>> y, state, trace = run(CELLS["rnn_relu"], weights, np.ones((3, 1, 1)))
    >>> grads = [[np.zeros((1, 1)), np.zeros((1, 1)), None, None]]
    >>> back(weights, grads, trace, np.ones((3, 1, 1))).dx.ravel()
    array([1.75, 1.5 , 1.  ])
    >>> grads[0][1]
    array([[3.]])
    """
    cell, batch, D, H, pool = trace.cell, trace.batch, trace.num_directions, trace.hidden_size, trace._pool
    arrays, turn = trace._arrays, Turn() if turn is None else turn
    n = len(arrays)
    dstates = packed_state(cell, dstate, batch, D, (n, H), trace.dtype, final=True)
    dh_norm = np.zeros((n, batch.n_rows))
    dc_norm = np.zeros((n, batch.n_rows)) if len(dstates) > 1 else None
    d_rows, y_at = dy.reshape(-1, D * H), batch.rows
    for layer in reversed(range(n // D)):
        rows = trace.inputs[layer]
        dx = pool.empty(rows.shape, trace.dtype) if layer or needs_dx else None
        for direction in range(D):
            k = layer * D + direction
            steps = cell.kind, direction == 1, batch.offsets, batch.width
            out = d_rows, y_at, direction * H
            hc = dstates[0][k], dstates[1][k] if len(dstates) > 1 else None
            limits = step_clip, dh_norm[k], None if dc_norm is None else dc_norm[k]
            its, ins = (weights[k], grads[k]), (rows, dx, direction == 1)
            noise = None if trace.noise is None else trace.noise[k]
            with turn.lock:
                work = _kernels.recurrent_backward(steps, its, ins, arrays[k], out, hc, limits, pool.take, noise)
            pool.give(work)
        if dx is not None:
            d_rows, y_at = dropped(dx, trace.masks[layer - 1]) if layer and trace.masks else dx, None
    return Gradients(batch.unpack(d_rows) if needs_dx else None, batch.unsort(dstates, D), dh_norm, dc_norm)
