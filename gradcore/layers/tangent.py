"""The tangents of the passes of recurrent layers, on plain arrays: forward over reverse through time.

Where x changes by ``eps * x_dot``, `run_tangent` says how the output changes, and `back_tangent` how the gradients that
`back` returns and adds change. The tangent of the initial state is zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from gradcore import _kernels
from gradcore._base.check import Array
from gradcore._base.lock import Turn
from gradcore.layers.dual import Dual, zeros
from gradcore.layers.dual_cells import Duals, Show
from gradcore.layers.dual_norm import Normalized, normalize
from gradcore.layers.functional import Trace, Weights, dropped

__all__: list[str] = []  # for the package only


class Step(NamedTuple):
    """What a step back needs of a step.

    These are the gates and the parts of the state before it, as dual numbers of (n, H), the h that met W_hh, what layer
    norm made of W_hh h and of c, and how much of its old value each unit of each part of the state kept.
    """

    gates: Duals
    before: Duals
    met: Dual
    of_u: Normalized | None
    of_c: Normalized | None
    zoned: Sequence[Array]


class Run(NamedTuple):
    """What the way back through a layer and direction needs: what layer norm made of W_ih x, and the steps."""

    of_a: Normalized | None
    steps: list[Step]


class Moved(NamedTuple):
    """What `back_tangent` needs of `run_tangent`.

    `inputs` has the tangent of the rows that each layer read, (S, I_l), and `runs` what each layer and direction made.
    """

    inputs: list[Array]
    runs: list[Run]


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
                x = Dual(trace.inputs[first // D], rows)
                moved.runs.append(_run(weights[first + direction], trace, first + direction, x, out))
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
                da, changes = _back(weights[k], trace, k, moved.runs[k], x, d)
                with turn.lock:
                    for grad, change in zip(grads[k], changes, strict=True):
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


def _gains(weights: list[Array | None]) -> tuple[Array, Array, Show | None] | None:
    """Return the gains of W_ih x and W_hh h, and the layer norm of c if the cell has one; None without layer norm."""
    _, _, _, _, *norms = weights
    if not norms:
        return None
    ih, hh, c, c_bias = norms
    assert ih is not None
    assert hh is not None
    if c is None or c_bias is None:
        return ih, hh, None
    return ih, hh, partial(normalize, gain=c, bias=c_bias)


def _mask(trace: Trace, k: int) -> Array | None:
    """Return the factors of recurrent dropout, (B, H)."""
    return None if trace.noise is None else trace.noise[k].mask


def _zoned(weights: list[Array | None], trace: Trace, k: int, rows: slice) -> Sequence[Array]:
    """Return how much of its old value each unit of each part of the state keeps, (n, H) each; nothing without zoneout.

    The kernels draw these again, as they do for the Jacobians.
    """
    if trace.noise is None or not trace.noise[k].zoneout:
        return ()
    kind, noise = trace.cell.kind, trace.noise[k]
    at = np.arange(rows.start, rows.stop)
    factors = _kernels.jacobian_factors(kind, trace.hidden_size, at, trace.arrays[k], weights, noise)
    first = _kernels.jacobian_rows(kind, weights, noise)[1]
    return [factors[:, first + part].astype(trace.dtype) for part in range(len(trace.cell.states))]


def _run(weights: list[Array | None], trace: Trace, k: int, x: Dual, y_dot: Array) -> Run:
    """Fill y_dot, (S, H)."""
    w_ih, w_hh = weights[:2]
    assert w_ih is not None
    assert w_hh is not None
    cell, H, G = trace.cell, trace.hidden_size, len(trace.cell.gates)
    arrays, gains, mask = trace.arrays[k], _gains(weights), _mask(trace, k)
    kept = [part for part in (arrays.h, arrays.c) if part is not None]  # the parts of the state before each row's step
    of_a = None if gains is None else normalize(x @ w_ih.T, gains[0])
    da = x.dot @ w_ih.T if of_a is None else of_a.output().dot
    state = [np.zeros((trace.batch.width, H), trace.dtype) for _ in kept]
    found: dict[int, Step] = {}
    for t, rows in _steps(trace, k):
        n = rows.stop - rows.start
        before = [Dual(part[rows, :H], dot[:n].copy()) for part, dot in zip(kept, state, strict=True)]
        met = before[0] if mask is None else before[0] * mask[:n]
        of_u = None if gains is None else normalize(met @ w_hh.T, gains[1])
        du = met.dot @ w_hh.T if of_u is None else of_u.output().dot
        show = None if gains is None else gains[2]
        gates, after, of_c = cell.dual.step(trace.gates(k, rows), _blocks(da[rows], G), _blocks(du, G), before, show)
        zoned = _zoned(weights, trace, k, rows)
        if zoned:
            after = [_part(old, z) + _part(new, 1 - z) for old, new, z in zip(before, after, zoned, strict=True)]
        for dot, part in zip(state, after, strict=True):
            dot[:n] = part.dot
        y_dot[rows] = after[0].dot
        found[t] = Step(gates, before, met, of_u, of_c, zoned)
    return Run(of_a, [found[t] for t in sorted(found)])


def _back(weights: list[Array | None], trace: Trace, k: int, run: Run, x: Dual, d: Dual) -> tuple[Dual, list[Array]]:
    """Return the gradient with respect to W_ih x, (S, G*H), and the tangents of those with respect to the weights."""
    w_hh, mask = weights[1], _mask(trace, k)
    assert w_hh is not None
    H, G, (S, B) = trace.hidden_size, len(trace.cell.gates), (trace.batch.n_rows, trace.batch.width)
    da, du, met = (zeros(S, width, dtype=trace.dtype) for width in (G * H, G * H, H))
    arriving = [zeros(B, H, dtype=trace.dtype) for _ in trace.cell.states]  # at each sequence's own last step
    of_u, of_c = np.zeros((2, G * H), trace.dtype), np.zeros((2, H), trace.dtype)  # of gain and bias
    for t, rows in reversed(_steps(trace, k)):
        n, step = rows.stop - rows.start, run.steps[t]
        dh, *others = (part[:n] for part in arriving)
        into = whole = [d[rows] + dh, *others]
        if step.zoned:
            into = [_part(new, 1 - z) for new, z in zip(whole, step.zoned, strict=True)]
        its = trace.cell.dual.step_back(step.gates, step.before, into, step.of_c)
        for sums, gates in ((da, its.a), (du, its.u)):
            values, dots = _blocks(sums.value[rows], G), _blocks(sums.dot[rows], G)
            for gate, each in enumerate(gates):
                values[gate], dots[gate] = each.value, each.dot
        if step.of_u is not None:
            of_u += step.of_u.back_to_affine(du[rows])
            _put(du, rows, step.of_u.back(du[rows]))
        if step.of_c is not None and its.of_c is not None:
            of_c += step.of_c.back_to_affine(its.of_c)
        into_met = du[rows] @ w_hh
        passed = [its.before[0] + (into_met if mask is None else into_met * mask[:n]), *its.before[1:]]
        if step.zoned:
            passed = [new + _part(old, z) for new, old, z in zip(passed, whole, step.zoned, strict=True)]
        for part, its_part in zip(arriving, passed, strict=True):
            _put(part, slice(n), its_part)
        _put(met, rows, step.met)
    if run.of_a is None:
        return da, [_product(da, x), _product(du, met), da.dot.sum(axis=0), du.dot.sum(axis=0)]
    gain_ih, bias_ih = run.of_a.back_to_affine(da)
    da = run.of_a.back(da)
    return da, [_product(da, x), _product(du, met), bias_ih, of_u[1], gain_ih, of_u[0], *of_c]


def _part(d: Dual, share: Array) -> Dual:
    """Return the share of zoneout, which leaves nothing of infinity where it is 0, as in the kernels."""
    return Dual(*(np.where(share > 0, share * part, 0) for part in (d.value, d.dot)))


def _put(whole: Dual, rows: slice, part: Dual) -> None:
    whole.value[rows], whole.dot[rows] = part.value, part.dot


def _product(d: Dual, rows: Dual) -> Array:
    """Return the tangent of d^T rows."""
    return np.asarray(d.dot.T @ rows.value + d.value.T @ rows.dot)
