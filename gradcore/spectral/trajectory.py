"""The Jacobian of one time step, and those along a stored forward pass.

A step's Jacobian is never a dense matrix in the loops: `Trajectory` has it as diagonal factors around the recurrent
weights, and its `carry` is the only place that multiplies with it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gradcore import _kernels
from gradcore._base.check import Array
from gradcore._base.memory import Pool
from gradcore.layers.cell import Cell
from gradcore.spectral.members import own_tape

__all__ = ["jacobian"]

BLOCK_BYTES = 4 << 20  # of factors that are made at a time


class Trajectory:
    """The Jacobians d(state after) / d(state before) of one layer and direction along a stored forward pass.

    Those of a step and a sample are kept as the diagonals around W_hh that src/recurrent/cells/ names, (D, H) factors.
    `rows` (steps, B) says where the tape has the steps, in the order in which the forward pass took them.
    """

    def __init__(self, layer: Any, tape: Any, index: int, rows: Array) -> None:
        self.layer, self.index, self.rows, self._cell = layer, index, rows, layer.cell.kind
        self.state_size = layer.hidden_size * len(layer.cell.states)
        self.weight = layer.params["weight_hh" + parameter_suffix(layer, index)].astype(np.float64)
        trace = tape.trace
        self._kept, self._offsets = trace.arrays[index], trace.batch.offsets
        self._weights = layer._params.lists(layer._names)[index]
        self._noise = None if trace.noise is None else trace.noise[index]
        self.normed_at, self.zoned_at, self.masked_at, _ = _kernels.jacobian_rows(
            self._cell, self._weights, self._noise
        )
        self._packed: dict[bool, Array] = {}  # by whether transposed
        self._pool = Pool()

    @classmethod
    def whole(cls, layer: Any, tape: Any, index: int, steps: int, samples: int) -> Trajectory:
        """Follow all steps of all samples, which have the same length."""
        rows = np.arange(steps * samples).reshape(steps, samples)
        return cls(layer, tape, index, rows[::-1] if index % layer.num_directions else rows)

    def factors(self, first: int, end: int) -> Array:
        """Return the diagonals of some steps, (end - first, B, D, H); layer norm and noise add to D."""
        rows = np.ascontiguousarray(self.rows[first:end])
        H = self.layer.hidden_size
        factors = _kernels.jacobian_factors(self._cell, H, rows, self._kept, self._weights, self._noise)
        if self._noise is not None and self._noise.mask is not None:
            step = np.searchsorted(self._offsets, rows.ravel(), side="right") - 1
            factors[:, -1] = self._noise.mask[rows.ravel() - self._offsets[step]]
        return factors.reshape(*rows.shape, *factors.shape[1:])

    @property
    def linear(self) -> slice:
        """The factors of which each term of a Jacobian has one."""
        if self.zoned_at < self.masked_at:
            return slice(self.zoned_at, self.masked_at)
        return slice(0, self.normed_at - len(self.layer.cell.states) + 1)  # the last one takes c' to h'

    def steps_at_once(self) -> int:
        """Return how many steps have factors that are worth a call and still fit the cache."""
        return max(1, BLOCK_BYTES // max(1, self.factors(0, 1).nbytes))

    def carry(self, v: Array, factors: Array, *, transposed: bool = False, log_norm: Array | None = None) -> None:
        """Multiply v (B, m, P*H) by the J of each step in turn, or by J^T, in place.

        With `log_norm` (steps, B, m) the vectors are scaled to norm 1 after each step, and ln of their norms is stored.
        """
        packed = self._packed.get(transposed)
        if packed is None:
            packed = _kernels.jacobian_packed(self._cell, transposed, self.weight, self._pool.take)
            self._packed[transposed] = packed
        work = _kernels.jacobian_product(
            self._cell, transposed, factors, packed, v, log_norm, self._pool.take, self._weights, self._noise
        )
        self._pool.give(work)

    def dense(self, step: int) -> Array:
        """Return the Jacobians of one step, (B, P*H, P*H)."""
        factors = self.factors(step, step + 1)
        v = np.tile(np.eye(self.state_size), (factors.shape[1], 1, 1))
        self.carry(v, factors)
        return np.ascontiguousarray(v.swapaxes(1, 2))


def norm_bounds(trajectory: Trajectory, factors: Array, weight_norm: float) -> Array:
    """Return (steps, B) upper bounds on the spectral norms of Jacobians, given the norm of the weight.

    Layer norm multiplies W_hh by a symmetric matrix of norm 1 at most, a mask by its largest entry, and zoneout mixes
    the Jacobian with the identity.
    """
    layer, D, P = trajectory.layer, trajectory.normed_at, len(trajectory.layer.cell.states)
    norm: Any = weight_norm
    if trajectory.masked_at < factors.shape[2]:
        norm = weight_norm * np.abs(factors[:, :, -1]).max(axis=2)
    bounds = _cell_bounds(layer.cell, factors[:, :, :D], norm, layer.layer_norm)
    if trajectory.zoned_at < trajectory.masked_at:
        kept, rest = np.split(factors[:, :, trajectory.zoned_at : trajectory.zoned_at + 2 * P], 2, axis=2)
        bounds = kept.max(axis=(2, 3)) + rest.max(axis=(2, 3)) * bounds
    return bounds


def _cell_bounds(cell: Cell, factors: Array, weight_norm: Any, normed: bool) -> Array:
    """Return the bounds of the cell alone.

    A block of diagonals has the norm of its worst unit's small matrix, and the two terms of J, through the weights and
    past them, have at most the sum of theirs. With a state h and c they stand side by side instead, for the weights act
    on h alone and the rest comes from c alone.
    """
    G = len(cell.gates)
    if len(cell.states) == 1:
        by_weights = np.hypot.reduce(factors[:, :, :G], axis=2, initial=0.0).max(axis=2) * weight_norm
        return np.asarray(by_weights + np.abs(factors[:, :, G:]).sum(axis=2).max(axis=2))
    into_c, o = np.square(factors[:, :, : G - 1]).sum(axis=2), np.square(factors[:, :, G - 1])
    f, opened = factors[:, :, G], factors[:, :, G + 1]
    if normed:  # on its way from c to h a vector passes a matrix that is not diagonal: the norms of four blocks
        c_c, h_c = np.abs(f).max(axis=2), (np.abs(opened).max(axis=2) * np.abs(f).max(axis=2))
        c_h = np.sqrt(into_c.max(axis=2)) * weight_norm
        h_h = np.sqrt(o.max(axis=2)) * weight_norm + np.abs(opened).max(axis=2) * c_h
        return np.asarray(np.linalg.norm(np.array([[h_h, h_c], [c_h, c_c]]).transpose(2, 3, 0, 1), 2, axis=(2, 3)))
    h, mixed = opened**2 * into_c + o, opened * into_c
    through = (h + into_c) / 2 + np.hypot((h - into_c) / 2, mixed)  # larger eigenvalue of [[h, mixed], [mixed, into_c]]
    past = np.abs(f) * np.hypot(1, opened)
    return np.asarray(np.hypot(np.sqrt(through.max(axis=2)) * weight_norm, past.max(axis=2)))


def parameter_suffix(layer: Any, index: int) -> str:
    """Return the end of PyTorch's parameter names for layer * num_directions + direction."""
    level, direction = divmod(index, layer.num_directions)
    return f"_l{level}_reverse" if direction else f"_l{level}"


def jacobian(layer: Any, tape: Any, t: int, b: int = 0, *, index: int = 0) -> Array:
    r"""Return the Jacobian dh_t / dh_{t-1} of one sample.

    With a the pre-activation of the new state (n of GRU, and q the recurrent part of its sum):

    - RNN: :math:`diag(\phi'(a)) W`.
    - GRU: :math:`diag(z) + diag((h - n) z (1 - z)) W_z + diag((1 - z)(1 - n^2)) (diag(r) W_n + diag(q r (1 - r)) W_r)`.
    - LSTM: that of the state (h, c) stacked, with the blocks dh_t/dh, dh_t/dc above dc_t/dh, dc_t/dc.

    With layer norm, each product with a W above passes on through the derivative of the normalization, and so does what
    goes from c_t to h_t. Zoneout and recurrent dropout are as that step had them: drawn in `forward`, so that the
    Jacobian is of what this sample did. In the reverse direction the state before is the one of t + 1.

    Parameters
    ----------
    layer : RNN, LSTM, GRU or Sequential
        The layer, or a model with one such layer.
    tape : Tape
        The tape of a forward pass of `layer`.
    t : int
        Time step, 0 <= t < T, at which the sample has not ended.
    b : int
        Sample, 0 <= b < B.
    index : int
        Which layer and direction of a stack: layer * num_directions + direction.

    Returns
    -------
    ndarray, (H, H), or (2H, 2H) for LSTM
        The matrix in float64; row i, column j is d(unit i at t) / d(unit j before). Zeros at a reset.

    Raises
    ------
    IndexError
        If t, b or index is out of range.
    TypeError
        If there is no recurrent layer.
    ValueError
        If there are several, or the tape is another layer's.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> from gradcore import spectral
    >>> layer = gradcore.RNN(1, 2, nonlinearity="relu", bias=False)
    >>> layer.params["weight_hh_l0"][...] = [[0.5, 0.25], [0.0, 2.0]]
    >>> layer.params["weight_ih_l0"][...] = 1
    >>> _, tape = layer.forward(np.ones((3, 1, 1), np.float32))
    >>> spectral.jacobian(layer, tape, 1)
    array([[0.5 , 0.25],
           [0.  , 2.  ]])
    """
    layer, tape = own_tape(layer, tape)
    tape.record(index, t, b)  # its errors name what is out of range
    batch = tape.trace.batch
    matrix: Array = Trajectory(layer, tape, index, np.array([[batch.row(t, b)]])).dense(0)[0]
    cut = t + 1 if index % layer.num_directions else t
    return np.zeros_like(matrix) if cut in batch.cuts_of(b) else matrix
