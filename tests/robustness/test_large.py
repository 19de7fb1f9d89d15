"""Arrays of more than 2**31 elements: where an index of 32 bits would wrap, the far end holds what is looked for.

Zeros that nobody has written take no memory. Each test says how many GiB it needs, for what it writes and for its
largest array, and is skipped where less is free. `NUMPY_MADVISE_HUGEPAGE=0` makes them several times as fast where the
system is slow to hand out large pages.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tools import Array, parts

import gradcore
from gradcore import _kernels, optim, spectral
from gradcore._base import memory

pytestmark = pytest.mark.slow  # and not "kernels", or the sanitizers would run them too

N = 2**31 + 17  # elements
FAR = 2**31 + 3  # an index that 32 bits do not hold
CELLS = {"RNN": gradcore.RNN, "LSTM": gradcore.LSTM, "GRU": gradcore.GRU}


def needs(gibibytes: float) -> None:
    """Skip where so much memory is not free, or where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
    except OSError:
        pytest.skip("the system does not say how much memory is free")
    free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) / 2**20
    if free < gibibytes:
        pytest.skip(f"needs {gibibytes:g} GiB of memory, {free:.1f} are free")


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_norm(dtype: Any) -> None:
    needs(N * np.dtype(dtype).itemsize / 2**30)
    a = np.zeros(N, dtype)
    a[FAR], a[-1] = 3, -4
    for p, want in ((1, 7.0), (2, 5.0), (np.inf, 4.0)):
        found = gradcore.grad_norm({"a": a}, p)
        assert found == want
        assert found.worst == ("a", (N - 1,))
    a[FAR] = np.nan
    found = gradcore.grad_norm({"a": a})
    assert found.n_nan == 1
    assert found.worst == ("a", (FAR,))


def test_clipping() -> None:
    needs(9)
    a = np.zeros(N, np.float32)
    a[2], a[FAR], a[-1] = 1, 6, -8
    gradcore.clip_grad_value_(a, 4.0)
    assert (a[2], a[FAR], a[-1]) == (1, 4, -4)
    a[2] = 2
    assert gradcore.clip_grad_norm_(a, 3.0) == 6
    assert (a[2], a[FAR], a[-1]) == (1, 2, -2)
    assert np.count_nonzero(a) == 3


def test_optimizer() -> None:
    needs(9)
    weight, grad = np.zeros(N, np.float32), np.zeros(N, np.float32)
    grad[2], grad[FAR], grad[-1] = 1, 2, 4
    assert optim.SGD([(weight, grad)], lr=0.5).step() == np.sqrt(21)
    assert (weight[2], weight[FAR], weight[-1]) == (-0.5, -1, -2)
    assert np.count_nonzero(weight) == 3


def test_linear() -> None:
    needs(9)
    F = 64
    layer = gradcore.Linear(F, 1)
    layer.params["weight"][...] = np.arange(1, F + 1)
    layer.params["bias"][...] = 0.5
    x = np.zeros((2**31 // F + 3, F), np.float32)
    x[-1] = 1
    y, tape = layer.forward(x)
    assert y[-1, 0] == F * (F + 1) / 2 + 0.5
    assert (y[:-1] == 0.5).all()
    dy = np.zeros_like(y)
    dy[-1] = 2
    dx = layer.backward(tape, dy)
    assert (dx[-1] == 2 * layer.params["weight"][0]).all()
    assert np.count_nonzero(dx) == F
    assert (layer.grads["weight"] == 2).all()
    assert layer.grads["bias"] == 2


def test_activation() -> None:
    needs(9)
    layer = gradcore.LeakyReLU(0.25)  # of y and dx: one takes the memory of the other
    x = np.zeros(N, np.float32)
    x[FAR], x[-1] = 3, -4
    y, tape = layer.forward(x)
    assert (y[FAR], y[-1], np.count_nonzero(y)) == (3, -1, 2)
    del y
    x[7] = -1
    dy = np.zeros(N, np.float32)
    dy[7], dy[FAR], dy[-1] = 4, 5, 4
    dx = layer.backward(tape, dy)
    assert (dx[7], dx[FAR], dx[-1], np.count_nonzero(dx)) == (1, 5, 1, 3)


def without_memory(build: Any, F: int, H: int) -> Any:
    """A layer whose state is 0 wherever x is."""
    layer = build(F, H, bias=False, rng=np.random.default_rng(0))
    layer.params["weight_hh_l0"][...] = 0
    return layer


def check_last_step(layer: Any, x: Array, lengths: Any = None) -> Any:
    """Of a batch that is 0 but for the last step of the last sequence: what comes out there, and nothing elsewhere."""
    alone = type(layer)(layer.input_size, layer.hidden_size, bias=False)
    alone.load_state_dict(layer.state_dict())
    want_y, want_tape = alone.forward(x[-1:, -1:].copy())
    want_dx = alone.backward(want_tape, np.ones_like(want_y))

    y, tape = layer.forward(x, lengths=lengths)
    np.testing.assert_allclose(y[-1, -1], want_y[0, 0], rtol=1e-6)
    assert np.count_nonzero(y) == np.count_nonzero(want_y)
    dy = np.zeros(y.shape, np.float32)
    dy[-1, -1] = 1
    dx = layer.backward(tape, dy)
    np.testing.assert_allclose(dx[-1, -1], want_dx[0, 0], rtol=1e-6)
    for name, grad in alone.grads.items():
        np.testing.assert_allclose(layer.grads[name], grad, rtol=1e-6, atol=1e-7)
    for state, want in zip(parts(tape.state), parts(want_tape.state), strict=True):
        np.testing.assert_allclose(state[0, -1], want[0, 0], rtol=1e-6)
    return tape, dx


@pytest.mark.parametrize("ragged", [False, True], ids=["all of one length", "ragged"])
@pytest.mark.parametrize("cell", CELLS)
def test_recurrent_inputs(cell: str, ragged: bool) -> None:
    needs(9)
    T, B, F = 2**10 + 1, 2**9, 2**12
    layer = without_memory(CELLS[cell], F, 1)
    x = np.zeros((T, B, F), np.float32)
    x[-1, -1, [0, -1]] = 1, -2
    lengths = None
    if ragged:  # one long sequence, the last one
        lengths = np.full(B, 5)
        lengths[-1] = T
    _, dx = check_last_step(layer, x, lengths)
    assert not dx[:, :-1].any()
    if cell == "RNN":  # elsewhere a gradient goes on through f or z, without weights from one state to the next
        assert not dx[:-1, -1].any()


def test_recurrent_tape() -> None:
    needs(13)
    T, B, H = 2**12 + 1, 2**11, 64
    layer = without_memory(gradcore.GRU, 1, H)
    x = np.zeros((T, B, 1), np.float32)
    x[-1, -1] = 2
    tape, _ = check_last_step(layer, x)
    assert tape.trace.arrays[0].gates.size > 2**31
    n = tape.record(0, T - 1, B - 1).gates[2]
    assert n.all()
    assert not tape.record(0, T - 2, B - 1).gates[2].any()
    z = tape.record(0, T - 1, B - 1).gates[1].astype(np.float64)  # the factor of h, all there is without W_hh
    np.testing.assert_array_equal(spectral.jacobian(layer, tape, T - 1, B - 1), np.diag(z))


def test_recurrent_outputs() -> None:
    needs(9)
    T, B, H = 2**14 + 1, 2**11, 64
    layer = without_memory(gradcore.RNN, 1, H)
    x = np.zeros((T, B, 1), np.float32)
    x[-1, -1] = 2
    y, h = layer(x)
    assert y.size > 2**31
    np.testing.assert_allclose(y[-1, -1], np.tanh(2 * layer.params["weight_ih_l0"][:, 0]), rtol=1e-6)
    assert (y[-1, -1] == h[0, -1]).all()
    assert np.count_nonzero(y) == H


def test_jacobian_factors() -> None:
    needs(17)
    H, steps = 64, 2**25 + 1
    factors = np.zeros((steps, 1, 1, H))
    factors[-1, 0, 0, 5] = np.nan  # times 0 it is seen in the product, which all other steps make 0
    pool = memory.Pool()
    packed = _kernels.jacobian_packed(_kernels.RNN_TANH, False, np.eye(H), pool.take)
    v = np.ones((1, 1, H))
    _kernels.jacobian_product(_kernels.RNN_TANH, False, factors, packed, v, None, pool.take)
    assert np.flatnonzero(np.isnan(v)).tolist() == [5]
    assert np.count_nonzero(v) == 1
