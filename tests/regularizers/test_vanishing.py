"""The vanishing-gradient regularizer: its value and gradient against the formula, and what it does to a training."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from conftest import LONG
from tools import Array, central_difference, recurrent_params, relative_error, same_bits

import gradcore
from gradcore import VanishingGradientRegularizer, reference

pytestmark = pytest.mark.kernels

MODES = ["RNN_TANH", "RNN_RELU"]


def build(mode: str, I: int, H: int, seed: int = 0, **options: Any) -> tuple[Any, dict[str, Array]]:
    """A float64 RNN and its parameters."""
    layer = gradcore.RNN(I, H, nonlinearity=mode[4:].lower(), dtype=np.float64, **options)
    sizes = {name: options[name] for name in ("num_layers", "bidirectional", "bias") if name in options}
    params = recurrent_params(mode, I, H, seed=seed, **sizes)
    layer.load_state_dict(params)
    return layer, params


def held(tape: reference.RecurrentTape, dh: Array, step_clip: float) -> tuple[Array, Array]:
    """What the regularizer holds constant: dL/da and phi'(a), (L*D, T, B, H) each."""
    h = tape.gates[:, :, :, 0]
    slope = 1 - h**2 if tape.mode == "RNN_TANH" else (h > 0).astype(float)
    norm = np.linalg.norm(dh, axis=-1, keepdims=True)
    return np.where(norm > step_clip, step_clip / np.maximum(norm, 1e-300), 1) * dh * slope, slope


def omega_of(W: Array, delta: Array, slope: Array, alive: Array, reverse: bool, bound: float = 1e-20) -> float:
    """Omega of one layer and direction from the formula, pair by pair."""
    terms = []
    T, B = alive.shape
    for t in range(T):
        before = t + 1 if reverse else t - 1
        for b in range(B):
            if 0 <= before < T and alive[t, b] and alive[before, b]:
                squared = float(np.sum(delta[t, b] ** 2))
                if squared >= bound:
                    r = float(np.sum(((delta[t, b] @ W) * slope[before, b]) ** 2)) / squared
                    terms.append((r - 1) ** 2)
    return float(np.mean(terms)) if terms else 0.0


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "no bias": {"bias": False},
    "three layers": {"num_layers": 3},
    "two directions": {"bidirectional": True},
    "two layers, two directions": {"num_layers": 2, "bidirectional": True},
    "batch first": {"num_layers": 2, "batch_first": True},
}


@pytest.mark.parametrize("step_clip", [None, 0.5])
@pytest.mark.parametrize("lengths", [None, [3, 7, 0, 5], [4, 4, 4, 4]], ids=["full", "ragged", "short"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("mode", MODES)
def test_value_and_gradient_against_finite_differences(
    mode: str, case: str, lengths: list[int] | None, step_clip: float | None
) -> None:
    T, B, I, H = 7, 4, 3, 5
    layer, params = build(mode, I, H, **CASES[case])
    rng = np.random.default_rng(1)
    L, D = layer.num_layers, layer.num_directions
    x, dy = rng.standard_normal((T, B, I)), rng.standard_normal((T, B, D * H))
    state, dstate = rng.standard_normal((2, L * D, B, H))
    _, _, want_tape = reference.recurrent_forward(mode, params, x, state, lengths)
    clip = math.inf if step_clip is None else step_clip
    total = reference.recurrent_backward(want_tape, dy, dstate, step_clip=clip).dh
    deltas, slopes = held(want_tape, total, clip)

    turned = (lambda a: a.swapaxes(0, 1)) if layer.batch_first else (lambda a: a)
    _, tape = layer.forward(turned(x), state, lengths)
    got = VanishingGradientRegularizer(2.0)(layer, tape, turned(dy), dstate, step_clip=step_clip)

    omegas = []
    for k in range(L * D):
        level, reverse = divmod(k, D)
        name = f"weight_hh_l{level}{'_reverse' * reverse}"
        W = params[name].copy()

        def omega(W: Array = W, k: int = k, reverse: int = reverse) -> float:
            return omega_of(W, deltas[k], slopes[k], want_tape.alive, bool(reverse))

        omegas.append(omega())
        assert relative_error(layer.grads[name], 2 * central_difference(omega, W)) < 1e-6
    assert tape.omega == pytest.approx(omegas, rel=1e-9)
    assert got == pytest.approx(sum(omegas), rel=1e-9)
    assert min(omegas) > 1e-3
    others = [grad for name, grad in layer.grads.items() if not name.startswith("weight_hh")]
    assert not any(grad.any() for grad in others), "something else than weight_hh has a gradient"


def test_dropout_between_layers() -> None:
    layer, params = build("RNN_TANH", 3, 5, num_layers=2, dropout=0.5, rng=np.random.default_rng(3))
    rng = np.random.default_rng(1)
    x, dy = rng.standard_normal((6, 4, 3)), rng.standard_normal((6, 4, 5))
    _, tape = layer.forward(x)
    (mask,) = tape.trace.masks
    _, _, want_tape = reference.recurrent_forward("RNN_TANH", params, x, dropout_masks=[mask.reshape(6, 4, 5)])
    deltas, slopes = held(want_tape, reference.recurrent_backward(want_tape, dy).dh, math.inf)
    VanishingGradientRegularizer(1.0)(layer, tape, dy)
    want = [omega_of(params[f"weight_hh_l{k}"], deltas[k], slopes[k], want_tape.alive, False) for k in range(2)]
    assert tape.omega == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize("step_clip", [None, 0.5])
@pytest.mark.parametrize("lengths", [None, [3, 7, 0, 5]], ids=["full", "ragged"])
@pytest.mark.parametrize("mode", MODES)
def test_recurrent_dropout_against_finite_differences(
    mode: str, lengths: list[int] | None, step_clip: float | None
) -> None:
    layer, params = build(mode, 3, 5, num_layers=2, bidirectional=True, recurrent_dropout=0.4, rng=3)
    rng = np.random.default_rng(1)
    x, dy = rng.standard_normal((7, 4, 3)), rng.standard_normal((7, 4, 10))
    _, tape = layer.forward(x, lengths=lengths)
    order = slice(None) if tape.trace.batch.rank is None else tape.trace.batch.rank
    masks = np.array([noise.mask[order] for noise in tape.trace.noise])
    assert set(np.unique(masks)) == {0.0, 1 / 0.6}
    _, _, want_tape = reference.recurrent_forward(mode, params, x, lengths=lengths, recurrent_masks=masks)
    clip = math.inf if step_clip is None else step_clip
    total = reference.recurrent_backward(want_tape, dy, step_clip=clip).dh
    deltas, slopes = held(want_tape, total, clip)
    VanishingGradientRegularizer(2.0)(layer, tape, dy, step_clip=step_clip)
    for k, omega in enumerate(tape.omega):
        level, reverse = divmod(k, 2)
        name = f"weight_hh_l{level}{'_reverse' * reverse}"
        W = params[name].copy()

        def of(W: Array = W, k: int = k, reverse: int = reverse) -> float:
            return omega_of(W, deltas[k], slopes[k] * masks[k], want_tape.alive, bool(reverse))

        assert omega == pytest.approx(of(), rel=1e-9)
        assert relative_error(layer.grads[name], 2 * central_difference(of, W)) < 1e-6


def test_layer_norm_and_zoneout_are_refused() -> None:
    for option in ("layer_norm", "zoneout"):
        layer = gradcore.RNN(2, 3, **{option: True if option == "layer_norm" else 0.5})
        y, tape = layer.forward(np.ones((4, 2, 2), np.float32))
        with pytest.raises(TypeError, match=f"^layer: expected an RNN without {option}, "):
            VanishingGradientRegularizer(1.0)(layer, tape, y)
        assert not layer.flat_grads.any()


def test_with_layer_norm_the_scale_of_the_weights_changes_no_gradient() -> None:
    """Why such layers are refused: the formula's derivative says that the ratio grows with W."""
    layer = gradcore.RNN(3, 32, layer_norm=True, dtype=np.float64, rng=0)
    x, norms = np.random.default_rng(1).standard_normal((20, 8, 3)), []
    for _ in range(2):
        layer.params["weight_hh_l0"] *= 10  # eps does not count
        y, tape = layer.forward(x)
        dy = np.zeros_like(y)
        dy[-1] = 1
        layer.backward(tape, dy)
        norms.append(tape.telemetry.dh_norm)
    assert relative_error(norms[1], norms[0]) < 1e-4


def test_it_only_adds_its_gradient_before_or_after_the_backward_pass() -> None:
    layer, _ = build("RNN_TANH", 3, 5, num_layers=2)
    rng = np.random.default_rng(1)
    x, dy, dstate = rng.standard_normal((9, 4, 3)), rng.standard_normal((9, 4, 5)), rng.standard_normal((2, 4, 5))
    lengths, regularizer = [9, 2, 5, 7], VanishingGradientRegularizer(3.0)

    _, tape = layer.forward(x, lengths=lengths)
    dx = layer.backward(tape, dy, dstate, step_clip=1.0)
    before = layer.flat_grads.copy()
    omega = regularizer(layer, tape, dy, dstate, step_clip=1.0)
    by_hand = layer.flat_grads.copy()

    layer.zero_grad()
    _, other = layer.forward(x, lengths=lengths)
    assert regularizer(layer, other, dy, dstate, step_clip=1.0) == omega == float(tape.omega.sum())
    assert same_bits(layer.backward(other, dy, dstate, step_clip=1.0), dx)
    assert relative_error(layer.flat_grads, by_hand) < 1e-14
    assert relative_error(by_hand, before) > 1e-3
    assert same_bits(other.omega, tape.omega)
    assert same_bits(other.dstate, tape.dstate)
    assert same_bits(other.telemetry.dh_norm, tape.telemetry.dh_norm)


def test_float32_layers_get_the_gradient_of_float64() -> None:
    wide, params = build("RNN_TANH", 3, 8, num_layers=2, bidirectional=True)
    narrow = gradcore.RNN(3, 8, 2, bidirectional=True)
    narrow.load_state_dict({name: value.astype(np.float32) for name, value in params.items()})
    rng = np.random.default_rng(1)
    x, dy = rng.standard_normal((20, 4, 3)), rng.standard_normal((20, 4, 16))
    for layer in (wide, narrow):
        _, tape = layer.forward(x.astype(layer.dtype))
        VanishingGradientRegularizer(1.0)(layer, tape, dy.astype(layer.dtype))
    assert narrow.flat_grads.dtype == np.float32
    assert relative_error(narrow.flat_grads, wide.flat_grads) < 1e-4


def test_an_orthogonal_linear_layer_has_nothing_to_mend() -> None:
    """relu on positive numbers is linear: each ratio is 1, and 4 where the weights are doubled."""
    layer = gradcore.RNN(1, 2, nonlinearity="relu", bias=False, dtype=np.float64)
    rotation = np.array([[0.0, 1.0], [1.0, 0.0]])
    for gain, want in ((1.0, 0.0), (2.0, 9.0)):
        layer.zero_grad()
        layer.params["weight_ih_l0"][...] = 1
        layer.params["weight_hh_l0"][...] = gain * rotation
        y, tape = layer.forward(np.ones((10, 3, 1)))
        dy = np.zeros_like(y)
        dy[-1] = np.random.default_rng(0).standard_normal((3, 2))
        assert VanishingGradientRegularizer(1.0)(layer, tape, dy) == pytest.approx(want, abs=1e-12)
        assert np.abs(layer.flat_grads).max() == pytest.approx(0, abs=1e-12) or gain == 2.0


@pytest.mark.parametrize("scale", [1e-150, 1e-9, 1e9, 1e250])
def test_it_does_not_depend_on_the_scale_of_the_loss(scale: float) -> None:
    layer, _ = build("RNN_TANH", 3, 5)
    rng = np.random.default_rng(1)
    x, dy = rng.standard_normal((6, 4, 3)), rng.standard_normal((6, 4, 5))
    _, tape = layer.forward(x)
    regularizer = VanishingGradientRegularizer(1.0, bound=0.0)
    want = regularizer(layer, tape, dy)
    gradient = layer.flat_grads.copy()
    layer.zero_grad()
    assert regularizer(layer, tape, scale * dy) == pytest.approx(want, rel=1e-12)
    assert relative_error(layer.flat_grads, gradient) < 1e-12


def test_what_has_vanished_does_not_count() -> None:
    layer = gradcore.RNN(1, 1, nonlinearity="relu", bias=False, dtype=np.float64)
    layer.params["weight_ih_l0"][...] = 1
    layer.params["weight_hh_l0"][...] = 0.1
    y, tape = layer.forward(np.ones((30, 1, 1)))
    dy = np.zeros_like(y)
    dy[-1] = 1
    w, n = 0.1, 29
    for bound in (1e-20, 1e-3):  # the mean of equal terms is the same over few or many pairs
        assert VanishingGradientRegularizer(1.0, bound=bound)(layer, tape, dy) == pytest.approx((w**2 - 1) ** 2)
    # with a second sequence whose ratio is 0: its only delta counts once, the first one's count 10 or 29 times
    dy2, x2 = np.zeros((30, 2, 1)), np.ones((30, 2, 1))
    dy2[-1] = 1
    x2[-2, 1] = -10  # the unit is off one step before the last
    _, tape = layer.forward(x2)
    counted = {1e-20: 11, 1e-3: 2, 0.0: n}  # delta = 0.1^s, s = 0 ... 10 reach 1e-20
    for bound, count in counted.items():
        want = (count * (w**2 - 1) ** 2 + 1) / (count + 1)
        assert VanishingGradientRegularizer(1.0, bound=bound * (1 - 1e-9))(layer, tape, dy2) == pytest.approx(
            want, rel=1e-12
        )


def test_nothing_to_count_is_zero() -> None:
    for T, B, lengths in ((0, 3, None), (1, 3, None), (5, 0, None), (5, 2, [0, 0]), (5, 2, [1, 1])):
        layer, _ = build("RNN_TANH", 2, 3, bidirectional=True)
        y, tape = layer.forward(np.ones((T, B, 2)), lengths=lengths)
        assert VanishingGradientRegularizer(1.0)(layer, tape, np.ones_like(y)) == 0.0
        assert not layer.flat_grads.any()
    y, tape = layer.forward(np.ones((4, 2, 2)))
    assert VanishingGradientRegularizer(1.0)(layer, tape, np.zeros_like(y)) == 0.0
    assert not layer.flat_grads.any()


def test_what_is_not_finite_passes_on_without_a_warning() -> None:
    layer, _ = build("RNN_TANH", 2, 3)
    y, tape = layer.forward(np.ones((4, 2, 2)))
    for bad in (np.nan, np.inf):
        dy = np.ones_like(y)
        dy[2, 1, 0] = bad
        layer.zero_grad()
        assert math.isnan(VanishingGradientRegularizer(1.0)(layer, tape, dy))
        assert np.isnan(layer.grads["weight_hh_l0"]).any()


def test_errors_name_the_argument_and_change_nothing() -> None:
    layer, _ = build("RNN_TANH", 2, 3)
    y, tape = layer.forward(np.ones((4, 2, 2)))
    regularizer = VanishingGradientRegularizer(1.0)
    for cell in (gradcore.LSTM, gradcore.GRU):
        gated = cell(2, 3)
        out, its_tape = gated.forward(np.ones((4, 2, 2), np.float32))
        with pytest.raises(TypeError, match=f"layer: expected an RNN, .*, got {cell.__name__}"):
            regularizer(gated, its_tape, out)
        assert not gated.flat_grads.any()
    with pytest.raises(TypeError, match=r"layer: expected an RNN, .*, got Sequential"):
        regularizer(gradcore.Sequential(), tape, y)
    with pytest.raises(ValueError, match="tape: expected a tape from this layer's forward"):
        regularizer(build("RNN_TANH", 2, 3)[0], tape, y)
    with pytest.raises(ValueError, match=r"dy: expected shape \(4, 2, 3\), got \(3, 2, 3\)"):
        regularizer(layer, tape, y[1:])
    with pytest.raises(ValueError, match="step_clip: expected a number at least 0, got -1"):
        regularizer(layer, tape, y, step_clip=-1.0)
    with pytest.raises(ValueError, match="weight: expected a number at least 0, got -1"):
        VanishingGradientRegularizer(-1.0)
    with pytest.raises(TypeError, match="weight: expected a number, got str"):
        VanishingGradientRegularizer("much")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="bound: expected a number at least 0, got nan"):
        VanishingGradientRegularizer(1.0, bound=math.nan)


@pytest.mark.parametrize(
    ("member", "error", "message"),
    [
        (lambda: gradcore.LSTM(2, 3), TypeError, "layer: expected an RNN, .*, got LSTM"),
        (lambda: gradcore.Linear(2, 3), ValueError, "VanishingGradientRegularizer: the model has no recurrent layer"),
    ],
)
def test_a_hook_for_another_model_changes_nothing(member: Any, error: Any, message: str) -> None:
    model = gradcore.Sequential(gradcore.Linear(2, 2), member())
    before, optimizer = model.flat_params.copy(), gradcore.optim.SGD(model, lr=1.0)
    batch = np.ones((4, 2, 2), np.float32), np.zeros((4, 2, 3), np.float32)
    with pytest.raises(error, match=message):
        gradcore.training_step(model, batch, gradcore.losses.mse, optimizer, hooks=[VanishingGradientRegularizer(1.0)])
    assert not model.flat_grads.any()
    assert same_bits(model.flat_params, before)
    assert optimizer.n_steps == 0


# ---- in a training ---------------------------------------------------------------------------------------------------


def vanishing(seed: int = 0) -> tuple[Any, list[tuple[Array, Array]]]:
    """A tanh RNN of gain 0.5 that is to recall its first input after 50 steps."""
    rng = np.random.default_rng(seed)
    rnn = gradcore.RNN(1, 20, dtype=np.float64, rng=rng)
    rnn.params["weight_hh_l0"][...] = 0.5 * rng.standard_normal((20, 20)) / math.sqrt(20)
    model = gradcore.Sequential(rnn, gradcore.LastStep(), gradcore.Linear(20, 1, dtype=np.float64, rng=rng))
    batches = []
    for _ in range(60):
        x = 0.3 * rng.standard_normal((50, 16, 1))
        batches.append((x, x[0]))
    return model, batches


@pytest.mark.parametrize("seed", range(3 if LONG else 1))
def test_a_vanishing_network_comes_to_keep_its_gradients(seed: int) -> None:
    """|ln(dh_first / dh_last)| over 49 steps back: about 35 as it starts, and without the regularizer for ever."""
    ends, omegas = {}, []
    for weight in (0.0, 4.0):
        model, batches = vanishing(seed)
        hooks = [VanishingGradientRegularizer(weight)] if weight else []
        seen = [] if not weight else [lambda record: omegas.append(float(record.tape.tapes[0].omega.sum()))]
        history = gradcore.fit(
            model, batches, gradcore.losses.mse, gradcore.optim.SGD(model, lr=0.05),
            epochs=5, max_norm=1.0, hooks=hooks, callbacks=seen,
        )  # fmt: skip
        name = next(iter(history.dh_first))
        ratio = np.log(history.dh_first[name] / history.dh_last[name])
        ends[weight] = ratio[0], ratio[-10:].mean()
    assert ends[0.0][0] == ends[4.0][0] < -25
    assert ends[0.0][1] < -25
    assert abs(ends[4.0][1]) < 5
    assert np.mean(omegas[-10:]) < 0.3 * omegas[0]


def test_fit_does_what_the_loop_by_hand_does() -> None:
    regularizer = VanishingGradientRegularizer(4.0)
    model, batches = vanishing()
    gradcore.fit(
        model, batches[:5], gradcore.losses.mse, gradcore.optim.SGD(model, lr=0.05), epochs=1, hooks=[regularizer]
    )
    by_hand, _ = vanishing()
    optimizer = gradcore.optim.SGD(by_hand, lr=0.05)
    for x, target in batches[:5]:
        by_hand.zero_grad()
        y, tape = by_hand.forward(x)
        d = gradcore.losses.mse(y, target)[1]
        for layer, its_tape in list(zip(by_hand.layers, tape.tapes, strict=True))[:0:-1]:
            d = layer.backward(its_tape, d)
        by_hand[0].backward(tape.tapes[0], d)
        regularizer(by_hand[0], tape.tapes[0], d)
        optimizer.step()
    assert same_bits(model.flat_params, by_hand.flat_params)
    plain, _ = vanishing()
    gradcore.fit(plain, batches[:5], gradcore.losses.mse, gradcore.optim.SGD(plain, lr=0.05), epochs=1)
    assert relative_error(model.flat_params, plain.flat_params) > 1e-3
