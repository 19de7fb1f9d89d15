"""Layer norm, zoneout and recurrent dropout: against the NumPy twin, finite differences and PyTorch."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from tools import (
    Array,
    as_state,
    central_difference,
    masks_of,
    parts,
    random_state,
    relative_error,
    same_bits,
)

import gradcore
from gradcore import _kernels, reference
from gradcore._base.memory import Pool

pytestmark = pytest.mark.kernels

MODES = ["RNN_TANH", "RNN_RELU", "LSTM", "GRU"]
DTYPES = [np.float32, np.float64]
REMEDIES: list[dict[str, Any]] = [
    {"layer_norm": True},
    {"zoneout": 0.3},
    {"recurrent_dropout": 0.4},
    {"layer_norm": True, "zoneout": 0.3, "recurrent_dropout": 0.4},
]
STEP = 1e-6  # small, because layer norm enlarges it where dropout has left little to normalize
ids: dict[str, Any] = {"ids": "-".join}


def made(mode: str, I: int, H: int, num_layers: int = 1, **options: Any) -> Any:
    """A layer whose gains are not all 1."""
    kind, _, nonlinearity = mode.partition("_")
    options |= {"nonlinearity": nonlinearity.lower()} if nonlinearity else {}
    layer = getattr(gradcore, kind)(I, H, num_layers, rng=1, **options)
    rng = np.random.default_rng(2)
    for name, parameter in layer.params.items():
        parameter[...] += 0.3 * rng.standard_normal(parameter.shape) / (np.sqrt(H) if name.startswith("weight") else 1)
    return layer


def batch_for(mode: str, layer: Any, T: int, B: int, seed: int = 3) -> tuple[Array, Any, Array, Any]:
    """x, an initial state, dy and dstate, time first."""
    rng, size, D = np.random.default_rng(seed), layer.num_layers * layer.num_directions, layer.num_directions
    x, dy = rng.standard_normal((T, B, layer.input_size)), rng.standard_normal((T, B, D * layer.hidden_size))
    states = [parts(random_state(mode, size, B, layer.hidden_size, seed=n)) for n in (4, 5)]
    state, dstate = (as_state(mode, [part.astype(layer.dtype) for part in one]) for one in states)
    return x.astype(layer.dtype), state, dy.astype(layer.dtype), dstate


def in_double(state: Any) -> Any:
    return tuple(part.astype(np.float64) for part in state) if isinstance(state, tuple) else state.astype(np.float64)


SHAPES: list[dict[str, Any]] = [
    {"T": 5, "B": 3, "I": 4, "H": 6},
    {"T": 7, "B": 5, "I": 3, "H": 37, "num_layers": 2, "bidirectional": True, "batch_first": True, "ragged": True},
    {"T": 9, "B": 2, "I": 33, "H": 130, "bidirectional": True, "ragged": True, "bias": False},
    {"T": 40, "B": 33, "I": 17, "H": 65, "ragged": True},
    {"T": 3, "B": 1, "I": 5, "H": 300, "num_layers": 2},
]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(f"{k}{v}" for k, v in shape.items()))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", REMEDIES, **ids)
@pytest.mark.parametrize("mode", MODES)
def test_everything_agrees_with_the_twin(
    mode: str, options: dict[str, Any], dtype: Any, shape: dict[str, Any], restore_threads: None
) -> None:
    """With any number of threads, in the same bits; training and inference."""
    shape = dict(shape)
    T, B, ragged = shape.pop("T"), shape.pop("B"), shape.pop("ragged", False)
    layer = made(mode, shape.pop("I"), shape.pop("H"), dtype=dtype, **shape, **options)
    x, state, dy, dstate = batch_for(mode, layer, T, B)
    lengths, clip = np.random.default_rng(6).integers(0, T + 1, B) if ragged else None, 0.7 if ragged else None
    turned = (lambda a: a.swapaxes(0, 1)) if layer.batch_first else (lambda a: a)
    seen: list[dict[str, Array]] = []
    for threads in (1, 2, 5):
        gradcore.set_num_threads(threads)
        layer._rng = np.random.default_rng(7)
        layer.zero_grad()
        y, tape = layer.forward(turned(x), state, lengths)
        dx = layer.backward(tape, turned(dy), dstate, step_clip=clip)
        inferred, final = layer(turned(x), state, lengths)
        found = {
            "y": turned(y),
            "dx": turned(dx),
            "dh": tape.telemetry.dh_norm_per_sample,
            "inferred": turned(inferred),
        }
        found |= {} if mode != "LSTM" else {"dc": tape.telemetry.dc_norm_per_sample}
        states = {"state": tape.state, "dstate": tape.dstate, "final": final}
        found |= {f"{name} {i}": part for name, one in states.items() for i, part in enumerate(parts(one))}
        seen.append(found | {name: gradient.copy() for name, gradient in layer.grads.items()})
    for other in seen[1:]:
        assert all(same_bits(other[name], value) for name, value in seen[0].items())

    params = {name: value.astype(np.float64) for name, value in layer.params.items()}
    entering = params, x.astype(np.float64), in_double(state), lengths
    want_y, want_state, want_tape = reference.recurrent_forward(mode, *entering, **masks_of(layer, tape))
    back = reference.recurrent_backward(
        want_tape, dy.astype(np.float64), in_double(dstate), step_clip=np.inf if clip is None else clip
    )
    mean = [np.full((len(tape.trace), T, B, layer.hidden_size), layer.zoneout)] * 2 if layer.zoneout else None
    want_inferred, want_final, _ = reference.recurrent_forward(mode, *entering, keep=mean)
    want = {"y": want_y, "dx": back.dx, "dh": np.linalg.norm(back.dh, axis=-1), "inferred": want_inferred}
    want |= {} if mode != "LSTM" else {"dc": np.linalg.norm(back.dc, axis=-1)}
    states = {"state": want_state, "dstate": back.dstate, "final": want_final}
    want |= {f"{name} {i}": part for name, one in states.items() for i, part in enumerate(parts(one))} | back.grads
    assert want.keys() == seen[0].keys()
    tolerance = 1e-11 if dtype == np.float64 else 3e-4
    errors = {name: relative_error(seen[0][name], value) for name, value in want.items()}
    assert max(errors.values()) < tolerance, errors


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("options", REMEDIES, **ids)
@pytest.mark.parametrize("mode", MODES)
def test_backward_agrees_with_finite_differences(mode: str, options: dict[str, Any], bidirectional: bool) -> None:
    layer = made(mode, 3, 8, 2, bidirectional=bidirectional, dropout=0.25, dtype=np.float64, **options)
    x, state, dy, dstate = batch_for(mode, layer, 4, 3)
    lengths = np.array([4, 2, 3])

    def forward() -> Any:
        layer._rng = np.random.default_rng(7)
        return layer.forward(x, state, lengths)

    def loss() -> float:
        y, tape = forward()
        ends = zip((y, *parts(tape.state)), (dy, *parts(dstate)), strict=True)
        return sum(float(np.vdot(a, b)) for a, b in ends)

    tape = forward()[1]
    dx = layer.backward(tape, dy, dstate)
    for name, gradient in layer.grads.items():
        if name.endswith(("l0", "l1_reverse")):
            assert relative_error(gradient, central_difference(loss, layer.params[name], STEP)) < 1e-6, name
    assert relative_error(dx, central_difference(loss, x, STEP)) < 1e-6
    for d, part in zip(parts(tape.dstate), parts(state), strict=True):
        assert relative_error(d, central_difference(loss, part, STEP)) < 1e-6


@pytest.mark.peers
@pytest.mark.parametrize("mode", MODES)
def test_layer_norm_agrees_with_a_loop_of_pytorchs(mode: str) -> None:
    torch = pytest.importorskip("torch")
    norm, sigmoid, tanh = torch.nn.functional.layer_norm, torch.sigmoid, torch.tanh
    layer = made(mode, 5, 24, layer_norm=True, dtype=np.float64)
    x, state, dy, dstate = batch_for(mode, layer, 9, 4)
    p = {name.removesuffix("_l0"): torch.tensor(value, requires_grad=True) for name, value in layer.params.items()}
    inputs, start = torch.tensor(x, requires_grad=True), [torch.tensor(s, requires_grad=True) for s in parts(state)]
    h, c, outputs = start[0][0], start[-1][0], []
    for x_t in inputs:
        a = norm(x_t @ p["weight_ih"].T, p["bias_ih"].shape, p["norm_ih_weight"], p["bias_ih"])
        u = norm(h @ p["weight_hh"].T, p["bias_hh"].shape, p["norm_hh_weight"], p["bias_hh"])
        if mode == "LSTM":
            i, f, g, o = (a + u).chunk(4, dim=1)
            c = sigmoid(f) * c + sigmoid(i) * tanh(g)
            h = sigmoid(o) * tanh(norm(c, (layer.hidden_size,), p["norm_c_weight"], p["norm_c_bias"]))
        elif mode == "GRU":
            (a_r, a_z, a_n), (u_r, u_z, u_n) = a.chunk(3, dim=1), u.chunk(3, dim=1)
            z = sigmoid(a_z + u_z)
            h = (1 - z) * tanh(a_n + sigmoid(a_r + u_r) * u_n) + z * h
        else:
            h = tanh(a + u) if mode == "RNN_TANH" else torch.relu(a + u)
        outputs.append(h)
    final = [h, c][: len(start)]
    ends = zip(final, parts(dstate), strict=True)
    loss = (torch.stack(outputs) * torch.tensor(dy)).sum() + sum((s * torch.tensor(d[0])).sum() for s, d in ends)
    loss.backward()

    y, tape = layer.forward(x, state)
    dx = layer.backward(tape, dy, dstate)
    assert relative_error(y, torch.stack(outputs).detach().numpy()) < 1e-10
    assert relative_error(dx, inputs.grad.numpy()) < 1e-10
    for name, gradient in layer.grads.items():
        assert relative_error(gradient, p[name.removesuffix("_l0")].grad.numpy()) < 1e-10, name
    for got, want in zip(parts(tape.state), final, strict=True):
        assert relative_error(got[0], want.detach().numpy()) < 1e-10
    for got, want in zip(parts(tape.dstate), start, strict=True):
        assert relative_error(got, want.grad.numpy()) < 1e-10


# ---- layer norm ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_layer_norm_does_not_see_the_scale_of_the_weights(mode: str) -> None:
    layer = made(mode, 3, 16, layer_norm=True, dtype=np.float64)
    x = batch_for(mode, layer, 6, 2)[0]
    before = layer(x)[0]
    layer.params["weight_ih_l0"] *= 1e4
    layer.params["weight_hh_l0"] *= 1e4
    assert relative_error(layer(x)[0], before) < 1e-2  # eps no longer counts
    again = layer(x)[0]
    layer.params["weight_hh_l0"] *= 1e4
    assert relative_error(layer(x)[0], again) < 1e-9


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES)
def test_layer_norm_of_products_far_from_zero_is_accurate(mode: str, dtype: Any) -> None:
    """The mean is taken off before anything is squared."""
    layer = made(mode, 4, 40, layer_norm=True, dtype=dtype)
    layer.params["weight_ih_l0"][:, 0] = 1000
    x = np.ones((3, 2, 4), dtype)
    params = {name: value.astype(np.float64) for name, value in layer.params.items()}
    want = reference.recurrent_forward(mode, params, x.astype(np.float64))[0]
    assert relative_error(layer(x)[0], want) < (1e-10 if dtype == np.float64 else 2e-3)


@pytest.mark.parametrize(("mode", "gates"), [("RNN_TANH", 1), ("LSTM", 4), ("GRU", 3)])
def test_the_gains_follow_the_layers_other_parameters(mode: str, gates: int) -> None:
    layer = made(mode, 3, 5, 2, bidirectional=True, layer_norm=True)
    plain = made(mode, 3, 5, 2, bidirectional=True)
    own = ["norm_ih_weight", "norm_hh_weight"] + ["norm_c_weight", "norm_c_bias"] * (mode == "LSTM")
    names = []
    for suffix in ("l0", "l0_reverse", "l1", "l1_reverse"):
        names += [f"{name}_{suffix}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", *own)]
    assert list(layer.params) == names
    assert [name for name in names if "norm" not in name] == list(plain.params)
    assert layer.params["norm_hh_weight_l1"].shape == (gates * 5,)
    assert layer.flat_params.size == plain.flat_params.size + 4 * (2 * gates * 5 + 10 * (mode == "LSTM"))
    fresh = type(layer)(**layer.config(), rng=3)
    other = type(plain)(**plain.config(), rng=3)
    for name, value in fresh.params.items():
        if name.startswith("norm"):
            assert (value == (0 if "bias" in name else 1)).all()
        else:
            assert same_bits(value, other.params[name]), name


@pytest.mark.parametrize("options", REMEDIES, **ids)
@pytest.mark.parametrize("mode", MODES)
def test_copies_pickles_and_loaded_states_compute_the_same(mode: str, options: dict[str, Any]) -> None:
    layer = made(mode, 3, 5, 2, dropout=0.5, **options)
    x, state, dy, dstate = batch_for(mode, layer, 4, 2)
    loaded = type(layer)(**layer.config(), rng=8)
    loaded.load_state_dict(layer.state_dict())
    others = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded]
    y, tape = layer.forward(x, state)
    dx = layer.backward(tape, dy, dstate)
    for other in others:
        assert repr(other) == repr(layer)
        assert same_bits(other(x, state)[0], layer(x, state)[0])
        if other is loaded:
            continue
        other_y, other_tape = other.forward(x, state)
        assert same_bits(other_y, y)
        assert same_bits(other.backward(pickle.loads(pickle.dumps(other_tape)) and other_tape, dy, dstate), dx)
        assert same_bits(other.flat_grads, layer.flat_grads)


@pytest.mark.parametrize("H", [32, 512])
@pytest.mark.parametrize("mode", MODES)
def test_the_tape_has_the_size_that_its_documentation_says(mode: str, H: int) -> None:
    T, B, G, P = 5, 3, {"LSTM": 4, "GRU": 3}.get(mode, 1), 1 + (mode == "LSTM")
    layer = made(mode, 4, H, layer_norm=True, recurrent_dropout=0.5, zoneout=0.1)
    plain = made(mode, 4, H)
    sizes = [one.forward(np.zeros((T, B, 4), np.float32))[1].nbytes for one in (layer, plain)]
    more = (sizes[0] - sizes[1]) // (4 * T * B)
    assert 0 <= more - ((2 * G + P - 1) * H + 16) - H <= 2 * 16


# ---- zoneout and recurrent dropout -----------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_zoneout_keeps_a_share_of_the_units_for_a_step(p: float) -> None:
    layer = gradcore.LSTM(2, 50, zoneout=p, dtype=np.float64, rng=0)
    x = np.random.default_rng(1).standard_normal((200, 8, 2))
    y, tape = layer.forward(x)
    kept = y[1:] == y[:-1]
    n = kept.size
    assert abs(kept.mean() - p) < 5 * np.sqrt(p * (1 - p) / n)
    for axis in ((0, 1), (0, 2), (1, 2)):  # no unit, sequence or step more than others
        rates, each = kept.mean(axis=axis), n / kept.mean(axis=axis).size
        assert np.abs(rates - p).max() < 6 * np.sqrt(p * (1 - p) / each)
    c = np.stack([tape.record(0, t, 3).c for t in range(200)])
    both = (c[1:] == c[:-1])[1:] & kept[:-1, 3][: len(c) - 2]
    assert abs(both.mean() - p * p) < 6 * np.sqrt(p * p / both.size)  # the masks of h and c are independent


@pytest.mark.parametrize("mode", MODES)
def test_zoneout_of_everything_keeps_the_state_and_its_gradient(mode: str) -> None:
    layer = made(mode, 3, 20, zoneout=1.0)
    x, state, dy, dstate = batch_for(mode, layer, 5, 3)
    trained, tape = layer.forward(x, state)
    for y, final in ((trained, tape.state), layer(x, state)):
        assert (y == parts(state)[0][0]).all()
        assert all(same_bits(a, b) for a, b in zip(parts(final), parts(state), strict=True))
    assert not layer.backward(tape, dy, dstate).any()
    assert not layer.flat_grads.any()
    total = parts(dstate)[0][0].copy()
    for t in reversed(range(5)):
        total += dy[t]
    assert same_bits(parts(tape.dstate)[0][0], total)
    if mode == "LSTM":
        assert same_bits(tape.dstate[1], dstate[1])


@pytest.mark.parametrize("mode", MODES)
def test_a_unit_that_is_kept_does_not_see_an_infinite_one(mode: str) -> None:
    layer = made(mode, 1, 64, zoneout=0.5)
    x = np.zeros((2, 1, 1), np.float32)
    x[1] = np.inf
    y, _ = layer.forward(x)
    kept = y[1] == y[0]
    assert 0 < kept.sum() < 64


def test_recurrent_dropout_has_one_mask_for_each_sequence() -> None:
    """A step of an RNN that shows its h: h_t = mask h_{t-1} for x = 0."""
    layer = gradcore.RNN(1, 400, nonlinearity="relu", bias=False, recurrent_dropout=0.2, rng=0)
    layer.params["weight_hh_l0"] = np.eye(400, dtype=np.float32)
    h = np.ones((1, 3, 400), np.float32)
    y, tape = layer.forward(np.zeros((4, 3, 1), np.float32), h)
    mask = tape.trace.noise[0].mask
    assert set(np.unique(mask)) == {0, np.float32(1 / 0.8)}
    assert abs((mask == 0).mean() - 0.2) < 0.06
    for t in range(4):
        assert relative_error(y[t], mask ** (t + 1)) < 1e-6
    assert not same_bits(mask[0], mask[1])
    assert same_bits(layer(np.zeros((4, 3, 1), np.float32), h)[0], np.ones((4, 3, 400), np.float32))


def test_recurrent_dropout_of_everything_leaves_the_input() -> None:
    layer = gradcore.RNN(2, 5, recurrent_dropout=1.0, rng=0)
    x = np.ones((4, 3, 2), np.float32)
    y, tape = layer.forward(x)
    assert all(same_bits(step, y[0]) for step in y)
    layer.backward(tape, np.ones_like(y))
    assert not layer.grads["weight_hh_l0"].any()
    assert layer.grads["weight_ih_l0"].any()


@pytest.mark.parametrize("options", [{"zoneout": 0.3}, {"recurrent_dropout": 0.3}], **ids)
def test_what_is_drawn_follows_the_layers_generator(options: dict[str, float]) -> None:
    layer = gradcore.GRU(3, 20, 2, rng=0, **options)
    (rng,) = layer.generators()
    x, state = np.ones((5, 2, 3), np.float32), rng.bit_generator.state
    first, second = layer.forward(x)[0], layer.forward(x)[0]
    assert not same_bits(first, second)
    rng.bit_generator.state = state
    assert same_bits(layer.forward(x)[0], first)
    assert same_bits(layer.forward(x)[0], second)
    before = rng.bit_generator.state
    assert same_bits(layer(x)[0], layer(x)[0])  # draws nothing
    assert rng.bit_generator.state == before
    assert not gradcore.GRU(3, 20, 2, layer_norm=True).generators()


@pytest.mark.parametrize("mode", MODES)
def test_none_of_it_changes_no_bit(mode: str) -> None:
    plain = made(mode, 3, 21)
    zero = made(mode, 3, 21, layer_norm=False, zoneout=0.0, recurrent_dropout=0.0)
    x, state, dy, dstate = batch_for(mode, plain, 6, 4)
    found = []
    for layer in (plain, zero):
        y, tape = layer.forward(x, state)
        found.append([y, layer.backward(tape, dy, dstate), layer.flat_grads, *parts(tape.dstate)])
    assert all(same_bits(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("options", REMEDIES, **ids)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(0, 3), (4, 0), (0, 0)], ids=str)
def test_no_steps_or_no_samples(mode: str, options: dict[str, Any], shape: tuple[int, int]) -> None:
    layer = made(mode, 3, 7, **options)
    x, state, dy, dstate = batch_for(mode, layer, *shape)
    y, tape = layer.forward(x, state)
    assert y.shape == (*shape, 7)
    assert layer.backward(tape, dy, dstate).shape == x.shape
    assert not layer.flat_grads.any()
    for a, b in zip(parts(tape.dstate), parts(dstate), strict=True):
        assert same_bits(a, b)


@pytest.mark.parametrize("options", REMEDIES, **ids)
@pytest.mark.parametrize("mode", MODES)
def test_nan_is_reported_where_it_came_in(mode: str, options: dict[str, Any]) -> None:
    layer = made(mode, 3, 16, **options)
    x, state, dy, dstate = batch_for(mode, layer, 6, 3)
    dy[2, 1, 4] = np.nan
    layer.backward(tape := layer.forward(x, state)[1], dy, dstate)
    assert tape.telemetry.first_nonfinite == (0, 0, 2)


def test_training_undoes_a_step_bit_for_bit() -> None:
    """`fit` puts generators back; a layer that draws its masks itself has to follow."""
    model = gradcore.Sequential(
        gradcore.LSTM(2, 16, layer_norm=True, zoneout=0.1, recurrent_dropout=0.2, rng=0),
        gradcore.LastStep(),
        gradcore.Linear(16, 1, rng=1),
    )
    x = np.random.default_rng(2).standard_normal((8, 6, 2)).astype(np.float32)
    states = [rng.bit_generator.state for rng in model.generators()]
    y, tape = model.forward(x)
    model.backward(tape, np.ones_like(y))
    gradient = model.flat_grads.copy()
    model.zero_grad()
    for rng, state in zip(model.generators(), states, strict=True):
        rng.bit_generator.state = state
    y, tape = model.forward(x)
    model.backward(tape, np.ones_like(y))
    assert same_bits(model.flat_grads, gradient)


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["zoneout", "recurrent_dropout"])
@pytest.mark.parametrize("value", [-0.1, 1.1, np.nan, "much", None])
def test_wrong_probabilities_raise_and_are_named(name: str, value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{name}: "):
        gradcore.LSTM(2, 3, **{name: value})


def test_layer_norm_is_a_bool() -> None:
    with pytest.raises(TypeError, match=r"^layer_norm: "):
        gradcore.LSTM(2, 3, layer_norm="yes")


def test_zoneout_leaves_nothing_of_what_it_does_not_take() -> None:
    """A factor of 0 makes 0 of infinity, forward and back."""
    kept = gradcore.RNN(1, 2, nonlinearity="relu", zoneout=1.0)  # every unit keeps its old value
    kept.params["weight_ih_l0"][...] = 1e30
    h = np.ones((1, 3, 2), np.float32)
    x = np.full((4, 3, 1), 1e30, np.float32)
    y, tape = kept.forward(x, h)
    for found in (y, tape.state, *kept(x, h)):
        assert (found == 1).all()
    y_dot, tangent = kept.forward_tangent(tape, x)
    assert not y_dot.any()
    assert not any(part.any() for part in kept.backward_tangent(tape, tangent, y, x[:, :, [0, 0]]))

    taken = gradcore.RNN(1, 2, nonlinearity="relu", zoneout=1e-12)  # none does
    taken.params["weight_ih_l0"][...] = 1
    y, tape = taken.forward(np.full((1, 3, 1), -100, np.float32), h)
    assert not y.any()
    taken.backward(tape, np.full_like(y, np.inf))
    assert not tape.dstate.any()


@pytest.mark.parametrize("cell", ["RNN_TANH", "LSTM", "GRU"])
def test_kernels_refuse_layer_norm_and_masks_without_all_their_parts(cell: str) -> None:
    kind, G, has_cell = (_kernels.cells()[cell][name] for name in ("kind", "gates", "has_cell"))
    F, H, take = 2, 3, Pool().take
    weights: list[Any] = [np.zeros(shape, np.float32) for shape in ((G * H, F), (G * H, H), (G * H,), (G * H,))]
    gain, unit = np.ones(G * H, np.float32), np.ones(H, np.float32)
    x, y, part, gates, norm = (np.zeros((4, n), np.float32) for n in (F, H, 256, 256, 512))
    c, unit = part if has_cell else None, unit if has_cell else None
    steps, out = (kind, False, np.array([0, 4], np.intp), 4), (y, None, 0)
    noise = np.ones((4, H), np.float32), 0.5, False, 7
    whole: dict[str, Any] = {"gains": [gain, gain, unit, unit], "norm": norm, "h_met": part, "noise": noise}

    def run(gains: list[Any], norm: Any, h_met: Any, noise: Any) -> None:
        its, tape = [*weights, *gains], (gates, part, c, norm, h_met)
        _kernels.recurrent_forward(steps, its, x, tape, out, (part, c), take, noise)
        limits = 1.0, None, None
        _kernels.recurrent_backward(steps, (its, its), (x, None, False), tape, out, (part, c), limits, take, noise)

    run(**whole)
    wrong: list[dict[str, Any]] = [{"gains": [gain, None, unit, unit]}, {"gains": [None] * 4}, {"gains": [gain, gain]}]
    some: Any = None if has_cell else np.ones(H, np.float32)
    wrong += [{"gains": [gain, gain, *other]} for other in ((some, unit), (unit, some), (some, some))]
    wrong += [{"gains": [gain[:2], gain, unit, unit]}, {"norm": None}, {"norm": norm[:1, :64].copy()}, {"h_met": None}]
    wrong += [{"noise": None}, {"noise": (None, 0.5, False, 7)}, {"noise": (noise[0], 1.5, False, 7)}]
    wrong += [{"noise": (noise[0][:1], 0.5, False, 7)}, {"noise": (noise[0], np.nan, False, 7)}]
    for change in wrong:
        with pytest.raises(ValueError, match=r"^kernel argument: "):
            run(**whole | change)
    with pytest.raises(ValueError, match=r"^kernel argument: "):
        _kernels.recurrent_forward(steps, weights, x, (None,) * 3, out, (part, c), take, noise)
