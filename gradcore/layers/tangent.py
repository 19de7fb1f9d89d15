"""The tangents of the passes of recurrent layers, on plain arrays: forward over reverse through time.

Where x changes by ``eps * x_dot``, `run_tangent` says how the output changes, and `back_tangent` how the gradients that
`back` returns and adds change. The tangent of the initial state is zero.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gradcore._base.check import Array
from gradcore._base.lock import Turn
from gradcore.layers.dual import Dual, zeros
from gradcore.layers.dual_cells import Duals
from gradcore.layers.functional import Trace, Weights, dropped

__all__: list[str] = []  # for the package only


class Moved(NamedTuple):
    """What `back_tangent` needs of `run_tangent`.

    `inputs` has the tangent of the rows that each layer read, (S, I_l), and `steps` for each layer and direction the
    gates and the parts of the state before each step, as dual numbers of (n, H).
    """

    inputs: list[Array]
    steps: list[list[tuple[Duals, Duals]]]


def run_tangent(weights: Weights, trace: Trace, x_dot: Array) -> tuple[Array, Moved]:
    """Return the tangent of y, (T, B, D*H), from that of x, (T, B, I)."""
    D, H, n = trace.num_directions, trace.hidden_size, len(trace)
    rows = trace.batch.pack(x_dot)
    moved = Moved([], [])
    with np.errstate(all="ignore"):  # the result shows what is not finite
        for first in range(0, n, D):
            if first and trace.masks:
                rows = dropped(rows, trace.masks[first // D - 1])
            moved.inputs.append(rows)
            y = np.empty((trace.batch.n_rows, D * H), trace.dtype)
            for direction in range(D):
                out = y[:, direction * H : (direction + 1) * H]
                moved.steps.append(_run(weights[first + direction], trace, first + direction, rows, out))
            rows = y
    return trace.batch.unpack(rows), moved


def back_tangent(
    weights: Weights, grads: Weights, trace: Trace, moved: Moved, dy: Array, dy_dot: Array, turn: Turn
) -> tuple[Array, Array]:
    """Return the gradient with respect to x and its tangent, and add the tangents of dL/d(weights) to `grads`."""
    D, H, n, batch = trace.num_directions, trace.hidden_size, len(trace), trace.batch
    d_rows = Dual(batch.pack(dy), batch.pack(dy_dot))
    with np.errstate(all="ignore"):
        for layer in reversed(range(n // D)):
            x = Dual(trace.inputs[layer], moved.inputs[layer])
            dx = Dual(0.0, 0.0)
            for direction in range(D):
                k = layer * D + direction
                d = d_rows[:, direction * H : (direction + 1) * H]
                da, du = _back(weights[k], trace, k, moved.steps[k], d)
                h_dot = np.concatenate(
                    [np.empty((0, H), trace.dtype), *(before[0].dot for _, before in moved.steps[k])]
                )
                h = Dual(trace.arrays[k].h[:, :H], h_dot)
                with turn.lock:
                    for grad, change in zip(grads[k], _of_weights(da, du, x, h), strict=True):
                        if grad is not None:
                            np.add(grad, change, out=grad)
                w_ih = weights[k][0]
                assert w_ih is not None
                dx = dx + da @ w_ih
            if layer and trace.masks:
                dx = dx * trace.masks[layer - 1]
            d_rows = dx
    return batch.unpack(d_rows.value), batch.unpack(d_rows.dot)


def _steps(trace: Trace, k: int) -> list[tuple[int, slice]]:
    """The steps in the order of the forward pass, each with its rows: one for each sequence that has not ended."""
    offsets = trace.batch.offsets
    steps = [(t, slice(int(offsets[t]), int(offsets[t + 1]))) for t in range(len(offsets) - 1)]
    return steps[::-1] if k % trace.num_directions else steps


def _blocks(sums: Array, G: int) -> Array:
    """(n, G*H) -> a view (G, n, H)"""
    return np.asarray(sums.reshape(len(sums), G, sums.shape[1] // G).swapaxes(0, 1))


def _run(weights: list[Array | None], trace: Trace, k: int, x_dot: Array, y_dot: Array) -> list[tuple[Duals, Duals]]:
    """Fill y_dot, (S, H), and return the gates and states before each step, as dual numbers."""
    w_ih, w_hh, *_ = weights
    assert w_ih is not None
    assert w_hh is not None
    cell, H, G = trace.cell, trace.hidden_size, len(trace.cell.gates)
    _, *kept = (part for part in trace.arrays[k] if part is not None)  # the parts of the state before each row's step
    da = x_dot @ w_ih.T
    state = [np.zeros((trace.batch.width, H), trace.dtype) for _ in kept]
    found: list[tuple[Duals, Duals]] = [((), ())] * (len(trace.batch.offsets) - 1)
    for t, rows in _steps(trace, k):
        n = rows.stop - rows.start
        before = [Dual(part[rows, :H], dot[:n].copy()) for part, dot in zip(kept, state, strict=True)]
        du = before[0].dot @ w_hh.T
        gates, after = cell.dual.step(trace.gates(k, rows), _blocks(da[rows], G), _blocks(du, G), before)
        for dot, part in zip(state, after, strict=True):
            dot[:n] = part.dot
        y_dot[rows] = after[0].dot
        found[t] = gates, before
    return found


def _back(
    weights: list[Array | None], trace: Trace, k: int, steps: list[tuple[Duals, Duals]], d: Dual
) -> tuple[Dual, Dual]:
    """Return the gradients with respect to A and U of every row, (S, G*H)."""
    w_hh = weights[1]
    assert w_hh is not None
    H, G, (S, B) = trace.hidden_size, len(trace.cell.gates), (trace.batch.n_rows, trace.batch.width)
    da, du = zeros(S, G * H, dtype=trace.dtype), zeros(S, G * H, dtype=trace.dtype)
    arriving = [zeros(B, H, dtype=trace.dtype) for _ in trace.cell.states]  # at each sequence's own last step
    for t, rows in reversed(_steps(trace, k)):
        n = rows.stop - rows.start
        dh, *others = (part[:n] for part in arriving)
        gates, before = steps[t]
        its_da, its_du, passed = trace.cell.dual.step_back(gates, before, [d[rows] + dh, *others])
        for whole, its in ((da, its_da), (du, its_du)):
            values, dots = _blocks(whole.value[rows], G), _blocks(whole.dot[rows], G)
            for gate, each in enumerate(its):
                values[gate], dots[gate] = each.value, each.dot
        for part, its_part in zip(arriving, [passed[0] + du[rows] @ w_hh, *passed[1:]], strict=True):
            part.value[:n], part.dot[:n] = its_part.value, its_part.dot
    return da, du


def _of_weights(da: Dual, du: Dual, x: Dual, h: Dual) -> tuple[Array, Array, Array, Array]:
    """Return the tangents of the gradients of w_ih, w_hh, b_ih and b_hh: those of dA^T x, dU^T h, and the sums."""
    w_ih, w_hh = (d.dot.T @ rows.value + d.value.T @ rows.dot for d, rows in ((da, x), (du, h)))
    return w_ih, w_hh, da.dot.sum(axis=0), du.dot.sum(axis=0)
