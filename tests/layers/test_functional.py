"""The passes on plain arrays are those of the layer, bit for bit, and of the reference."""

import copy
import math
from typing import Any

import numpy as np
import pytest

import gradcore
from gradcore import reference
from gradcore._base.memory import Pool
from gradcore.layers.cell import CELLS
from gradcore.layers.functional import back, run
from gradcore.layers.ragged import laid_out

T, B, I, H = 6, 4, 3, 5


def blocks(layer: Any, arrays: Any) -> list[list[Any]]:
    """The arrays of each layer and direction; copies, so that nothing is the layer's own memory."""
    names = [
        [f"{part}_l{level}{suffix}" for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        for level in range(layer.num_layers)
        for suffix in ("", "_reverse")[: layer.num_directions]
    ]
    return [[arrays[name].copy() if name in arrays else None for name in one] for one in names]


@pytest.mark.parametrize("lengths", [None, [2, 6, 0, 5]], ids=["whole", "ragged"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("mode", CELLS)
def test_run_and_back_are_the_layer_bit_for_bit(
    mode: str, dtype: Any, bidirectional: bool, bias: bool, lengths: list[int] | None
) -> None:
    rng, cell = np.random.default_rng(0), CELLS[mode]
    options = {"nonlinearity": mode.removeprefix("rnn_")} if cell.layer == "RNN" else {}
    layer = getattr(gradcore, cell.layer)(
        I, H, 2, bias=bias, bidirectional=bidirectional, dropout=0.25, dtype=dtype, rng=1, **options
    )
    D = layer.num_directions

    def array(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(dtype)

    x, dy = array(T, B, I), array(T, B, D * H)
    state, dstate = (tuple(array(2 * D, B, H) for _ in cell.states) for _ in range(2))
    given = copy.deepcopy((state, dstate))
    twin = copy.deepcopy(layer)
    public = [parts if len(parts) > 1 else parts[0] for parts in (state, dstate)]
    y, tape = layer.forward(x, public[0], lengths)
    dx = layer.backward(tape, dy, public[1], step_clip=1.5)

    weights, grads = blocks(layer, layer.params), blocks(layer, twin.grads)
    batch = laid_out(T, B, None if lengths is None else np.array(lengths), None, Pool())
    found_y, final, trace = run(cell, weights, x, state, batch, num_directions=D, draw_mask=twin._draw_mask)
    assert trace is not None
    found = back(weights, grads, trace, dy, dstate, step_clip=1.5)
    assert np.array_equal(found_y, y)
    assert np.array_equal(found.dx, dx)
    assert np.array_equal(np.stack(final), np.reshape(tape.state, np.shape(final)))
    assert np.array_equal(np.stack(found.dstate), np.reshape(tape.dstate, np.shape(final)))
    assert np.array_equal(
        np.concatenate([g.ravel() for one in grads for g in one if g is not None]),
        np.concatenate([g.ravel() for one in blocks(layer, layer.grads) for g in one if g is not None]),
    )
    assert all(np.array_equal(a, b) for a, b in zip(state + dstate, given[0] + given[1], strict=True))

    if dtype == np.float64:
        rows, flat = trace.masks[0], np.zeros((T * B, D * H))
        flat[slice(len(rows)) if trace.batch.rows is None else trace.batch.rows] = rows
        there, _, kept = reference.recurrent_forward(
            mode.upper(), layer.params, x, public[0], lengths, dropout_masks=[flat.reshape(T, B, D * H)]
        )
        want = reference.recurrent_backward(kept, dy, public[1], step_clip=1.5)
        np.testing.assert_allclose(found_y, there, rtol=0, atol=1e-12)
        np.testing.assert_allclose(found.dx, want.dx, rtol=0, atol=1e-12)
        for one, by_name in zip(grads, blocks(layer, want.grads), strict=True):
            for got, wanted in zip(one, by_name, strict=True):
                assert (got is None) == (wanted is None)
                if got is not None:
                    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-11)


def test_back_adds_to_the_gradients_and_needs_no_state() -> None:
    rng, layer = np.random.default_rng(0), gradcore.GRU(I, H, rng=0)
    x, dy = (rng.standard_normal((T, B, n)).astype(np.float32) for n in (I, H))
    weights, grads = blocks(layer, layer.params), blocks(layer, layer.grads)
    y, tape = layer.forward(x)
    layer.backward(tape, dy)
    layer.backward(tape, dy)
    for _ in range(2):
        found_y, _, trace = run(layer.cell, weights, x)
        assert trace is not None
        back(weights, grads, trace, dy, step_clip=math.inf)
    assert np.array_equal(found_y, y)
    assert all(np.array_equal(*pair) for pair in zip(grads[0], layer.grads.values(), strict=True))


def test_run_keeps_nothing_unless_asked() -> None:
    layer = gradcore.LSTM(I, H, rng=0)
    x = np.ones((T, B, I), np.float32)
    y, parts, trace = run(layer.cell, blocks(layer, layer.params), x, keep=False)
    expected, state = layer(x)
    assert trace is None
    assert np.array_equal(y, expected)
    assert np.array_equal(parts, state)
