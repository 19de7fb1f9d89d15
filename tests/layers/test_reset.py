"""Sequences that begin anew within a batch: the same as sequences that were cut by hand."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from tools import central_difference, same_bits

import gradcore
from gradcore import spectral
from gradcore.regularizers import VanishingGradientRegularizer

pytestmark = pytest.mark.kernels
CELLS = ("RNN", "LSTM", "GRU")
T, B, I, H = 9, 5, 3, 4


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def new(cell: str, num_layers: int = 1, **options: Any) -> Any:
    return getattr(gradcore, cell)(I, H, num_layers, **{"dtype": np.float64, "rng": 1, **options})


def random_state(layer: Any, seed: int, batch: int = B) -> Any:
    r, zero = rng(seed), layer.initial_state(batch)
    parts = [r.standard_normal(part.shape).astype(layer.dtype) for part in as_tuple(zero)]
    return tuple(parts) if isinstance(zero, tuple) else parts[0]


def as_tuple(state: Any) -> tuple[Any, ...]:
    return state if isinstance(state, tuple) else (state,)


def pick(state: Any, select: Any) -> Any:
    found = tuple(part[select] for part in as_tuple(state))
    return found if isinstance(state, tuple) else found[0]


MASKS = {
    "none": np.zeros((T, B), bool),
    "every": np.ones((T, B), bool),
    "first": np.arange(T)[:, None] == np.zeros(B),
    "last": np.arange(T)[:, None] == np.full(B, T - 1),
    "aligned": np.arange(T)[:, None] % 3 == np.zeros(B),
    "one": (np.arange(T)[:, None] == 4) & (np.arange(B) == 2),
    "random": rng(7).random((T, B)) < 0.3,
}
LENGTHS = {"none": None, "ragged": np.array([9, 0, 4, 7, 1]), "equal": np.full(B, 6)}


class ByHand:
    """Each sequence cut into pieces, each of which runs alone; for one layer of a stack."""

    def __init__(self, layer: Any, x: Any, state: Any, lengths: Any, reset: Any, dy: Any, dstate: Any) -> None:
        """`layer` has one layer; two directions are two runs, whose states pass from piece to piece nowhere."""
        D = layer.num_directions
        ends = np.full(x.shape[1], x.shape[0]) if lengths is None else lengths
        self.y, self.dx = np.zeros((*x.shape[:2], D * H)), np.zeros_like(x)
        self.norms = np.zeros((D, *x.shape[:2]))
        parts = as_tuple(layer.initial_state(x.shape[1]))
        self.final, self.dinitial = [np.zeros_like(p) for p in parts], [np.zeros_like(p) for p in parts]
        layer.zero_grad()
        for b, end in enumerate(ends):
            cuts = [0, *(t for t in range(1, end) if reset[t, b]), end]
            pieces = list(itertools.pairwise(cuts))
            for i, (start, stop) in enumerate(pieces):
                begun, ended = [np.zeros((D, 1, H)) for _ in parts], [np.zeros((D, 1, H)) for _ in parts]
                is_first, is_last = i == 0, i == len(pieces) - 1
                from_state = is_first and not (end > 0 and reset[0, b])
                for given, own, out, its in zip(as_tuple(state), begun, ended, as_tuple(dstate), strict=True):
                    own[0, 0] = given[0, b] if from_state else 0
                    out[0, 0] = its[0, b] if is_last else 0
                    if D == 2:
                        own[1, 0] = given[1, b] if is_last else 0
                        out[1, 0] = its[1, b] if is_first else 0
                pack = tuple if len(parts) == 2 else lambda state: state[0]
                y, tape = layer.forward(x[start:stop, b : b + 1], pack(begun))
                dx = layer.backward(tape, dy[start:stop, b : b + 1], pack(ended))
                self.y[start:stop, b], self.dx[start:stop, b] = y[:, 0], dx[:, 0]
                self.norms[:, start:stop, b] = tape.telemetry.dh_norm
                for k, (final, d) in enumerate(zip(as_tuple(tape.state), as_tuple(tape.dstate), strict=True)):
                    if is_last:
                        self.final[k][0, b] = final[0, 0]
                    if from_state:
                        self.dinitial[k][0, b] = d[0, 0]
                    if D == 2 and is_first:
                        self.final[k][1, b] = final[1, 0]
                    if D == 2 and is_last:
                        self.dinitial[k][1, b] = d[1, 0]
        self.grads = layer.flat_grads.copy()


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("cell", CELLS)
def test_cut_by_hand(cell: str, mask: str, lengths: str, bidirectional: bool) -> None:
    """1e-12: sums over the rows of all pieces in another order."""
    layer, r = new(cell, bidirectional=bidirectional), rng(3)
    D = layer.num_directions
    x, dy = r.standard_normal((T, B, I)), r.standard_normal((T, B, D * H))
    state, dstate, reset, ends = random_state(layer, 4), random_state(layer, 5), MASKS[mask], LENGTHS[lengths]
    if ends is not None:
        dy[np.arange(T)[:, None] >= ends] = 0
    want = ByHand(layer, x, state, ends, reset, dy, dstate)
    layer.zero_grad()
    y, tape = layer.forward(x, state, ends, reset)
    dx = layer.backward(tape, dy, dstate)
    close = {"rtol": 1e-12, "atol": 1e-12}
    np.testing.assert_allclose(y, want.y, **close)
    np.testing.assert_allclose(dx, want.dx, **close)
    np.testing.assert_allclose(layer.flat_grads, want.grads, **close)
    np.testing.assert_allclose(tape.telemetry.dh_norm_per_sample, want.norms, **close)
    for got, expected in ((tape.state, want.final), (tape.dstate, want.dinitial)):
        for part, its in zip(as_tuple(got), expected, strict=True):
            np.testing.assert_allclose(part, its, **close)
    inferred, final = layer(x, state, ends, reset)
    assert same_bits(inferred, y)
    assert all(map(same_bits, as_tuple(final), as_tuple(tape.state)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("cell", CELLS)
def test_the_same_bits_as_a_batch_of_the_pieces(cell: str, dtype: Any) -> None:
    """Where the pieces stand in a batch in the same order, the same kernels run on the same rows."""
    layer, r, reset = new(cell, 2, dtype=dtype, bidirectional=True), rng(3), MASKS["random"]
    x, dy = (r.standard_normal((T, B, n)).astype(dtype) for n in (I, 2 * H))
    y, tape = layer.forward(x, reset=reset)
    dx = layer.backward(tape, dy, step_clip=0.5)
    grads = layer.flat_grads.copy()
    pieces = [
        (b, *ends) for b in range(B) for ends in itertools.pairwise([0, *(t for t in range(1, T) if reset[t, b]), T])
    ]
    n = [stop - start for _, start, stop in pieces]
    X, DY = (np.zeros((max(n), len(n), width), dtype) for width in (I, 2 * H))
    for i, (b, start, stop) in enumerate(pieces):
        X[: n[i], i], DY[: n[i], i] = x[start:stop, b], dy[start:stop, b]
    layer.zero_grad()
    Y, its = layer.forward(X, lengths=n)
    DX = layer.backward(its, DY, step_clip=0.5)
    assert same_bits(grads, layer.flat_grads)
    for i, (b, start, stop) in enumerate(pieces):
        assert same_bits(y[start:stop, b], Y[: n[i], i])
        assert same_bits(dx[start:stop, b], DX[: n[i], i])
        for t in range(start, stop):
            for index in range(4):
                for got, want in zip(
                    vars(tape.record(index, t, b)).values(), vars(its.record(index, t - start, i)).values(), strict=True
                ):
                    assert (got is None and want is None) or same_bits(got, want)
    assert tape.telemetry.n_clipped.sum() == its.telemetry.n_clipped.sum() > 0


@pytest.mark.parametrize("cell", CELLS)
def test_no_reset_and_a_reset_at_the_beginning_are_the_plain_bits(cell: str) -> None:
    layer, r = new(cell, 2, dtype=np.float32), rng(3)
    x, dy = (r.standard_normal((T, B, n), np.float32) for n in (I, H))
    state, zero = random_state(layer, 4), layer.initial_state(B)
    first = np.zeros((T, B), bool)
    first[0] = True
    results = []
    for reset, begin in ((None, state), (np.zeros((T, B), bool), state), (None, zero), (first, state)):
        layer.zero_grad()
        y, tape = layer.forward(x, begin, reset=reset)
        dx = layer.backward(tape, dy)
        results.append([y, dx, layer.flat_grads.copy(), *as_tuple(tape.state), *as_tuple(tape.dstate)])
    assert all(map(same_bits, results[0], results[1]))
    n = len(as_tuple(state))
    assert all(map(same_bits, results[2][:-n], results[3][:-n]))
    assert all((d == 0).all() for d in results[3][-n:])


@pytest.mark.parametrize("cell", CELLS)
def test_finite_differences(cell: str) -> None:
    layer, r, reset = new(cell, 2, bidirectional=True), rng(3), MASKS["random"]
    x, dy = r.standard_normal((T, B, I)), r.standard_normal((T, B, 2 * H))
    state, dstate = random_state(layer, 4), random_state(layer, 5)

    def loss() -> float:
        y, final = layer(x, state, reset=reset)
        return float(
            (y * dy).sum() + sum((a * b).sum() for a, b in zip(as_tuple(final), as_tuple(dstate), strict=True))
        )

    _, tape = layer.forward(x, state, reset=reset)
    dx = layer.backward(tape, dy, dstate)
    np.testing.assert_allclose(dx, central_difference(loss, x), rtol=1e-6, atol=1e-8)
    for name, grad in layer.grads.items():
        np.testing.assert_allclose(grad, central_difference(loss, layer.params[name]), rtol=1e-6, atol=1e-8)
    for part, d in zip(as_tuple(state), as_tuple(tape.dstate), strict=True):
        np.testing.assert_allclose(d, central_difference(loss, part), rtol=1e-6, atol=1e-8)


def test_a_reset_past_the_end_has_no_effect() -> None:
    layer, x = new("LSTM", bidirectional=True), rng().standard_normal((T, B, I))
    lengths, state = LENGTHS["ragged"], random_state(layer, 4)
    reset = np.arange(T)[:, None] >= lengths
    a, b = (layer.forward(x, state, lengths, mask) for mask in (None, reset))
    assert same_bits(a[0], b[0])
    assert all(map(same_bits, a[1].state, b[1].state))


@pytest.mark.parametrize("shape", [(0, B), (T, 0), (0, 0)])
def test_empty_batches(shape: tuple[int, int]) -> None:
    layer = new("GRU", 2)
    x, state = np.zeros((*shape, I)), random_state(layer, 4, shape[1])
    y, tape = layer.forward(x, state, reset=np.ones(shape, bool))
    dx = layer.backward(tape, np.zeros_like(y), state)
    assert dx.shape == x.shape
    if shape[0] == 0:
        assert same_bits(tape.state, state)
        assert same_bits(tape.dstate, state)


def test_dropout_between_layers() -> None:
    """The masks of the backward pass are those of the forward pass: differences with a seed that is given again."""
    x, reset = rng().standard_normal((T, B, I)), MASKS["random"]

    def run() -> Any:
        layer = gradcore.GRU(I, H, 2, dropout=0.5, dtype=np.float64, rng=5)
        y, tape = layer.forward(x, reset=reset)
        return layer, y, tape

    layer, y, tape = run()
    dx = layer.backward(tape, np.cos(y))
    found = central_difference(lambda: float(np.sin(run()[1]).sum()), x)
    np.testing.assert_allclose(dx, found, rtol=1e-6, atol=1e-8)


def test_batch_first_and_sequential() -> None:
    r, reset = rng(), MASKS["random"]
    x, dy = r.standard_normal((T, B, I)), r.standard_normal((T, B, 2))
    ends = []
    for first in (False, True):
        layers = [new("LSTM", batch_first=first), gradcore.Linear(H, 2, dtype=np.float64, rng=0)]
        model = gradcore.Sequential(gradcore.Sequential(*layers))
        axes = (1, 0, 2) if first else (0, 1, 2)
        state = (random_state(layers[0], 4),)
        y, tape = model.forward(x.transpose(axes), state, reset=reset.T if first else reset)
        dx = model.backward(tape, dy.transpose(axes))
        inferred, final = model(x.transpose(axes), state, reset=reset.T if first else reset)
        assert same_bits(inferred, y)
        assert all(map(same_bits, final[0], tape.state[0]))
        ends.append([y.transpose(axes), dx.transpose(axes), model.flat_grads, *tape.state[0], *tape.dstate[0]])
    for a, b in zip(*ends, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("index", [0, 1])
def test_jacobians_and_growth_stop_at_a_reset(index: int) -> None:
    layer, x = new("LSTM", bidirectional=True), rng().standard_normal((T, B, I))
    reset = MASKS["one"]  # sequence 2, step 4
    _, tape = layer.forward(x, reset=reset)
    cut = 3 if index else 4  # the step whose state before it is the zero
    for t in range(T):
        assert (spectral.jacobian(layer, tape, t, 2, index=index) == 0).all() == (t == cut)
        assert spectral.jacobian(layer, tape, t, 1, index=index).any()
    passing = T - 4 - 1 if not index else 3
    found = spectral.singular_values(layer, tape, 2, b=2, index=index, horizon=passing)
    piece = slice(4, T) if not index else slice(0, 4)
    _, alone = layer.forward(x[piece, 2:3])
    np.testing.assert_allclose(
        found, spectral.singular_values(layer, alone, 2, index=index, horizon=passing), rtol=1e-9
    )
    for horizon in (passing + 1, T):
        assert (spectral.singular_values(layer, tape, 2, b=2, index=index, horizon=horizon) == -np.inf).all()
    assert np.isfinite(spectral.singular_values(layer, tape, 2, b=1, index=index)).all()


def test_the_vanishing_gradient_regularizer_pairs_steps_within_the_pieces() -> None:
    layer, x, reset = new("RNN"), rng().standard_normal((T, 2, I)), np.zeros((T, 2), bool)
    reset[5] = True
    dy = rng(1).standard_normal((T, 2, H))
    omegas = []
    for batch, dys, lengths, mask in (
        (x, dy, None, reset),
        (
            *(np.concatenate([a[:5], np.concatenate([a[5:], np.zeros((1, *a.shape[1:]))])], axis=1) for a in (x, dy)),
            [5, 5, 4, 4],
            None,
        ),
    ):
        layer.zero_grad()
        _, tape = layer.forward(batch, lengths=lengths, reset=mask)
        omegas.append([VanishingGradientRegularizer(1.0)(layer, tape, dys), *layer.flat_grads])
    np.testing.assert_allclose(*omegas, rtol=1e-12)


def test_fit_with_resets_and_carried_states() -> None:
    """Rollouts of four steps, as a policy gradient has them: exact as the loop by hand."""
    r = rng()
    data = [(r.standard_normal((4, B, I)), r.standard_normal((4, B, H)), r.random((4, B)) < 0.3) for _ in range(6)]
    got, want = new("LSTM"), new("LSTM")
    batches = [{"x": x, "target": target, "reset": reset} for x, target, reset in data]
    gradcore.fit(got, batches, gradcore.losses.mse, gradcore.optim.SGD(got, lr=0.5), epochs=2, stateful=True)
    optimizer = gradcore.optim.SGD(want, lr=0.5)
    for _ in range(2):
        state = None
        for x, target, reset in data:
            want.zero_grad()
            y, tape = want.forward(x, state, reset=reset)
            want.backward(tape, gradcore.losses.mse(y, target)[1])
            optimizer.step()
            state = tape.state
    assert same_bits(got.flat_params, want.flat_params)


@pytest.mark.parametrize(
    ("reset", "error", "message"),
    [
        (np.zeros((T, B)), TypeError, "reset: expected bools, got float64"),
        (np.zeros((B, T), bool), ValueError, r"reset: expected shape \(9, 5\), got \(5, 9\)"),
        (True, ValueError, r"reset: expected shape \(9, 5\), got \(\)"),
        ([[True], [True, False]], TypeError, "reset: expected an array"),
    ],
)
def test_bad_masks(reset: Any, error: Any, message: str) -> None:
    layer = new("GRU")
    for call in (layer, layer.forward, gradcore.Sequential(new("GRU")).forward):
        with pytest.raises(error, match=message):
            call(np.zeros((T, B, I)), reset=reset)
    with pytest.raises(ValueError, match="reset: no layer of this model takes it"):
        gradcore.MLP([I, 2]).forward(np.zeros((T, I), np.float32), reset=reset)


def test_strided_masks_and_lists() -> None:
    layer, x, reset = new("GRU"), rng().standard_normal((T, B, I)), MASKS["random"]
    wide = np.zeros((2 * T, B), bool)
    wide[::2] = reset
    wide.setflags(write=False)
    assert same_bits(layer(x, reset=wide[::2])[0], layer(x, reset=reset.tolist())[0])
