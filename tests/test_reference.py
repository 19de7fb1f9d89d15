"""The NumPy twins are right: each against central differences of its own forward pass in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tools import Array, as_state, central_difference, parts, random_state, recurrent_params, relative_error

from gradcore import reference

# ---- recurrent -------------------------------------------------------------------------------------------------------

MODES = ["RNN_TANH", "RNN_RELU", "LSTM", "GRU"]
T, B, I, H = 5, 4, 2, 3


def problem(
    mode: str,
    num_layers: int,
    bidirectional: bool,
    lengths: Any,
    *,
    bias: bool = True,
    layer_norm: bool = False,
    seed: int = 0,
) -> Any:
    """Parameters, x, an initial state, and the derivatives of a linear loss by y and by the final state."""
    rng, size = np.random.default_rng(seed), num_layers * (1 + bidirectional)
    params = recurrent_params(
        mode, I, H, num_layers=num_layers, bidirectional=bidirectional, bias=bias, layer_norm=layer_norm,
        seed=rng.integers(99),
    )  # fmt: skip
    x, dy = rng.standard_normal((T, B, I)), rng.standard_normal((T, B, H * (1 + bidirectional)))
    return params, x, random_state(mode, size, B, H, seed=1), lengths, dy, random_state(mode, size, B, H, seed=2)


def linear_loss(y: Array, state: Any, dy: Array, dstate: Any) -> float:
    return sum(float(np.vdot(a, b)) for a, b in zip((y, *parts(state)), (dy, *parts(dstate)), strict=True))


VARIANTS = [
    (1, False, None, True),
    (1, True, [3, 0, 5, 1], True),
    (2, False, [0, 5, 5, 2], False),
    (3, False, [4, 1, 0, 5], True),
]


REMEDIES = ["layer_norm", "zoneout", "zoneout's mean", "recurrent_dropout"]


def masks_of(mode: str, size: int, remedies: Any) -> dict[str, Any]:
    """The masks of zoneout and recurrent dropout for `recurrent_forward`."""
    rng, masks = np.random.default_rng(5), {}
    if "recurrent_dropout" in remedies:
        masks["recurrent_masks"] = rng.choice([0, 1.25], size=(size, B, H))
    if "zoneout" in remedies:
        masks["keep"] = [rng.choice([0.0, 1.0], size=(size, T, B, H)) for _ in range(1 + (mode == "LSTM"))]
    if "zoneout's mean" in remedies:
        masks["keep"] = [np.full((size, T, B, H), 0.3)] * (1 + (mode == "LSTM"))
    return masks


REMEDIED = [
    *[(variant, ()) for variant in VARIANTS],
    *[(VARIANTS[1], (remedy,)) for remedy in REMEDIES],
    (VARIANTS[2], ("layer_norm", "zoneout", "recurrent_dropout")),
]


@pytest.mark.parametrize(("variant", "remedies"), REMEDIED, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_recurrent_gradients_by_everything_that_enters(mode: str, variant: Any, remedies: Any) -> None:
    num_layers, bidirectional, lengths, bias = variant
    params, x, state, lengths, dy, dstate = problem(
        mode, num_layers, bidirectional, lengths, bias=bias, layer_norm="layer_norm" in remedies
    )
    masks: dict[str, Any] = masks_of(mode, num_layers * (1 + bidirectional), remedies)
    masks["dropout_masks"] = [np.random.default_rng(3).choice([0, 1.25], size=dy.shape) for _ in range(num_layers - 1)]

    def loss() -> float:
        y, final, _ = reference.recurrent_forward(mode, params, x, state, lengths, **masks)
        return linear_loss(y, final, dy, dstate)

    tape = reference.recurrent_forward(mode, params, x, state, lengths, **masks)[2]
    got = reference.recurrent_backward(tape, dy, dstate)
    tolerance = 1e-6 if "layer_norm" in remedies else 1e-8  # of three numbers the norm bends sharply
    assert got.grads.keys() == params.keys()
    for name, p in params.items():
        assert relative_error(got.grads[name], central_difference(loss, p)) < tolerance, name
    assert relative_error(got.dx, central_difference(loss, x)) < tolerance
    for d, part in zip(parts(got.dstate), parts(state), strict=True):
        assert relative_error(d, central_difference(loss, part)) < tolerance


@pytest.mark.peers
@pytest.mark.parametrize("mode", MODES)
def test_recurrent_layer_norm_agrees_with_a_loop_of_pytorchs(mode: str) -> None:
    """With masks of zoneout and recurrent dropout, and the derivatives by every h_t and c_t on the way."""
    torch = pytest.importorskip("torch")
    norm, sigmoid, tanh = torch.nn.functional.layer_norm, torch.sigmoid, torch.tanh
    params, x, state, _, dy, dstate = problem(mode, 1, False, None, layer_norm=True)
    masks = masks_of(mode, 1, ("zoneout", "recurrent_dropout"))
    mask, keep = torch.tensor(masks["recurrent_masks"][0]), [torch.tensor(one[0]) for one in masks["keep"]]
    p = {name.removesuffix("_l0"): torch.tensor(value, requires_grad=True) for name, value in params.items()}
    inputs, start = torch.tensor(x, requires_grad=True), [torch.tensor(s, requires_grad=True) for s in parts(state)]
    h, c = start[0][0], start[-1][0]
    outputs, cells = [], []
    for t in range(T):
        a = norm(inputs[t] @ p["weight_ih"].T, p["bias_ih"].shape, p["norm_ih_weight"], p["bias_ih"])
        u = norm((mask * h) @ p["weight_hh"].T, p["bias_hh"].shape, p["norm_hh_weight"], p["bias_hh"])
        if mode == "LSTM":
            i, f, g, o = (a + u).chunk(4, dim=1)
            new_c = sigmoid(f) * c + sigmoid(i) * tanh(g)
            new = sigmoid(o) * tanh(norm(new_c, (H,), p["norm_c_weight"], p["norm_c_bias"]))
            c = keep[1][t] * c + (1 - keep[1][t]) * new_c
            c.retain_grad()
            cells.append(c)
        elif mode == "GRU":
            (a_r, a_z, a_n), (u_r, u_z, u_n) = a.chunk(3, dim=1), u.chunk(3, dim=1)
            z = sigmoid(a_z + u_z)
            new = (1 - z) * tanh(a_n + sigmoid(a_r + u_r) * u_n) + z * h
        else:
            new = tanh(a + u) if mode == "RNN_TANH" else torch.relu(a + u)
        h = keep[0][t] * h + (1 - keep[0][t]) * new
        h.retain_grad()
        outputs.append(h)
    final = [h, c][: len(start)]
    ends = zip(final, parts(dstate), strict=True)
    loss = (torch.stack(outputs) * torch.tensor(dy)).sum() + sum((s * torch.tensor(d[0])).sum() for s, d in ends)
    loss.backward()

    y, got_final, tape = reference.recurrent_forward(mode, params, x, state, **masks)
    got = reference.recurrent_backward(tape, dy, dstate)
    assert relative_error(y, torch.stack(outputs).detach().numpy()) < 1e-12
    for part, want in zip(parts(got_final), final, strict=True):
        assert relative_error(part[0], want.detach().numpy()) < 1e-12
    assert relative_error(got.dx, inputs.grad.numpy()) < 1e-12
    for name, gradient in got.grads.items():
        assert relative_error(gradient, p[name.removesuffix("_l0")].grad.numpy()) < 1e-11, name
    for d, part in zip(parts(got.dstate), start, strict=True):
        assert relative_error(d, part.grad.numpy()) < 1e-12
    assert relative_error(got.dh[0], torch.stack([one.grad for one in outputs]).numpy()) < 1e-12
    for t, one in enumerate(cells):
        assert relative_error(got.dc[0, t], np.zeros((B, H)) if one.grad is None else one.grad.numpy()) < 1e-12


def unrolled(mode: str, entering: Any, nudges: Array) -> tuple[Array, Any]:
    """The same network put together from calls of a single step each, with `nudges` added to every h_t and c_t."""
    params, x, state, lengths = entering
    alive = np.arange(T)[:, None] < (np.full(B, T) if lengths is None else np.array(lengths))
    suffixes = [name.removeprefix("weight_hh") for name in params if name.startswith("weight_hh")]
    final, outputs = [part.copy() for part in parts(state)], []
    for k, suffix in enumerate(suffixes):
        one = {name.removesuffix(suffix) + "_l0": p for name, p in params.items() if name.endswith(suffix)}
        reverse = suffix.endswith("_reverse")
        outputs.append(np.zeros((T, B, H)))
        for t in reversed(range(T)) if reverse else range(T):
            before = as_state(mode, [part[k : k + 1] for part in final])
            _, after, tape = reference.recurrent_forward(mode, one, x[t : t + 1], before)
            h, *c = (part[0] for part in parts(after))
            if mode == "LSTM":
                c = [c[0] + nudges[1, k, t]]
                h = tape.gates[0, 0, :, 3] * np.tanh(c[0])
            for part, new in zip(final, (h + nudges[0, k, t], *c), strict=True):
                part[k, alive[t]] = new[alive[t]]
            outputs[-1][t, alive[t]] = final[0][k, alive[t]]
        if reverse or f"{suffix}_reverse" not in suffixes:  # the layer's last direction
            x, outputs = np.concatenate(outputs, axis=-1), []
    return x, tuple(final)


@pytest.mark.parametrize(("num_layers", "bidirectional", "lengths"), [(1, False, None), (2, True, [2, 0, 5, 4])])
@pytest.mark.parametrize("mode", MODES)
def test_recurrent_derivatives_by_every_state(mode: str, num_layers: int, bidirectional: bool, lengths: Any) -> None:
    params, x, state, lengths, dy, dstate = problem(mode, num_layers, bidirectional, lengths)
    directions = np.random.default_rng(4).standard_normal((2, num_layers * (1 + bidirectional), T, B, H))
    by_h, by_c = np.zeros((2, *directions.shape[1:4]))  # how far each h_t and c_t goes in its direction
    y, final, tape = reference.recurrent_forward(mode, params, x, state, lengths)
    got = reference.recurrent_backward(tape, dy, dstate)

    def loss() -> float:
        nudges = np.stack([by_h, by_c])[..., None] * directions
        return linear_loss(*unrolled(mode, (params, x, state, lengths), nudges), dy, dstate)

    assert abs(loss() - linear_loss(y, final, dy, dstate)) < 1e-12
    assert relative_error((got.dh * directions[0]).sum(axis=-1), central_difference(loss, by_h)) < 1e-8
    if mode == "LSTM":
        assert relative_error((got.dc * directions[1]).sum(axis=-1), central_difference(loss, by_c)) < 1e-8
    else:
        assert not got.dc.any()
    assert not got.n_clipped.any()


@pytest.mark.parametrize("clip", [0.0, 0.7, 1e3])
@pytest.mark.parametrize("lengths", [[5, 5, 5, 5], [2, 0, 5, 4]], ids=["full", "lengths"])
@pytest.mark.parametrize("mode", MODES)
def test_recurrent_step_clip_rescales_each_sample_before_each_step(mode: str, lengths: Any, clip: float) -> None:
    """One sample after the other, one step after the other, each step's derivative rescaled by hand."""
    params, x, state, _, dy, dstate = problem(mode, 1, False, lengths)
    tape = reference.recurrent_forward(mode, params, x, state, lengths)[2]
    got = reference.recurrent_backward(tape, dy, dstate, step_clip=clip)
    grads = {name: np.zeros_like(p) for name, p in params.items()}
    n_clipped = np.zeros(T, int)
    for b, length in enumerate(lengths):
        d = tuple(part[:, b : b + 1] for part in parts(dstate))
        for t in reversed(range(length)):
            total = d[0] + dy[t, b]
            norm = np.linalg.norm(total)
            assert relative_error(got.dh[0, t, b], total[0, 0]) < 1e-14
            n_clipped[t] += norm > clip
            rescaled = total * min(1, clip / norm)
            entering = as_state(mode, [part[:, t, b : b + 1] for part in (tape.h_in, tape.c_in)])
            step = reference.recurrent_forward(mode, params, x[t : t + 1, b : b + 1], entering)[2]
            back = reference.recurrent_backward(step, np.zeros((1, 1, H)), as_state(mode, [rescaled, *d[1:]]))
            d = parts(back.dstate)
            assert relative_error(got.dx[t, b], back.dx[0, 0]) < 1e-14
            for name, gradient in back.grads.items():
                grads[name] += gradient
        for part, want in zip(parts(got.dstate), d, strict=True):
            assert relative_error(part[:, b], want[:, 0]) < 1e-14
    assert (got.n_clipped[0] == n_clipped).all()
    for name, gradient in grads.items():
        assert relative_error(got.grads[name], gradient) < 1e-13, name


@pytest.mark.parametrize("mode", MODES)
def test_recurrent_ends_of_sequences(mode: str) -> None:
    """What lies past an end changes nothing; each sequence does as it does alone and cut to its length."""
    params, x, state, lengths, dy, dstate = problem(mode, 2, True, [3, 0, 5, 1])
    dirty_x, dirty_dy = x.copy(), dy.copy()
    for b, length in enumerate(lengths):
        dirty_x[length:, b], dirty_dy[length:, b] = np.nan, np.inf
    y, final, tape = reference.recurrent_forward(mode, params, dirty_x, state, lengths)
    got = reference.recurrent_backward(tape, dirty_dy, dstate)
    grads = {name: np.zeros_like(p) for name, p in params.items()}
    for b, length in enumerate(lengths):
        own = np.s_[:length, b : b + 1]
        row_state, row_dstate = (as_state(mode, [part[:, b : b + 1] for part in parts(s)]) for s in (state, dstate))
        y_b, final_b, tape_b = reference.recurrent_forward(mode, params, x[own], row_state)
        got_b = reference.recurrent_backward(tape_b, dy[own], row_dstate)
        assert relative_error(y[own], y_b) < 1e-14
        assert relative_error(got.dx[own], got_b.dx) < 1e-14
        assert not y[length:, b].any()
        assert not got.dx[length:, b].any()
        pairs = zip((*parts(final), *parts(got.dstate)), (*parts(final_b), *parts(got_b.dstate)), strict=True)
        for whole, alone in pairs:
            assert relative_error(whole[:, b : b + 1], alone) < 1e-14
        for name, gradient in got_b.grads.items():
            grads[name] += gradient
    for name, gradient in grads.items():
        assert relative_error(got.grads[name], gradient) < 1e-13, name


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(0, 4), (5, 0), (0, 0)], ids=str)
def test_recurrent_without_steps_or_samples(mode: str, shape: tuple[int, int]) -> None:
    params = recurrent_params(mode, I, H, num_layers=2, bidirectional=True)
    state, dstate = random_state(mode, 4, shape[1], H, seed=1), random_state(mode, 4, shape[1], H, seed=2)
    y, final, tape = reference.recurrent_forward(mode, params, np.zeros((*shape, I)), state)
    got = reference.recurrent_backward(tape, np.zeros((*shape, 2 * H)), dstate)
    assert y.shape == (*shape, 2 * H)
    assert got.dx.shape == (*shape, I)
    assert not any(gradient.any() for gradient in got.grads.values())
    for a, b in zip((*parts(final), *parts(got.dstate)), (*parts(state), *parts(dstate)), strict=True):
        assert a.shape == b.shape
        assert np.array_equal(a, b)


@pytest.mark.peers
@pytest.mark.parametrize("lengths", [None, [5, 1, 3, 5]], ids=["full", "lengths"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("num_layers", "bidirectional"), [(1, False), (1, True), (3, False), (3, True)])
@pytest.mark.parametrize("mode", MODES)
def test_recurrent_twin_agrees_with_pytorch(
    mode: str, num_layers: int, bidirectional: bool, bias: bool, lengths: Any
) -> None:
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)  # the arrays are tiny
    params, x, state, lengths, dy, dstate = problem(mode, num_layers, bidirectional, lengths, bias=bias)
    kind, _, nonlinearity = mode.partition("_")
    peer = getattr(torch.nn, kind)(
        I,
        H,
        num_layers,
        bias=bias,
        bidirectional=bidirectional,
        dtype=torch.float64,
        **({"nonlinearity": nonlinearity.lower()} if nonlinearity else {}),
    )
    peer.load_state_dict({name: torch.tensor(p) for name, p in params.items()})
    leaves = [torch.tensor(a, requires_grad=True) for a in (x, *parts(state))]
    given = leaves[0]
    if lengths is not None:
        given = torch.nn.utils.rnn.pack_padded_sequence(given, torch.tensor(lengths), enforce_sorted=False)
    y, final = peer(given, tuple(leaves[1:]) if mode == "LSTM" else leaves[1])
    if lengths is not None:
        y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, total_length=T)
    pairs = zip((y, *parts(final)), (dy, *parts(dstate)), strict=True)
    sum((a * torch.tensor(b)).sum() for a, b in pairs).backward()

    got_y, got_final, tape = reference.recurrent_forward(mode, params, x, state, lengths)
    got = reference.recurrent_backward(tape, dy, dstate)
    for a, b in zip((got_y, *parts(got_final)), (y, *parts(final)), strict=True):
        assert relative_error(a, b.detach().numpy()) < 1e-13
    for a, b in zip((got.dx, *parts(got.dstate)), leaves, strict=True):
        assert relative_error(a, b.grad.numpy()) < 1e-13
    for name, p in peer.named_parameters():
        assert relative_error(got.grads[name], p.grad.numpy()) < 1e-13, name


def test_recurrent_sigmoid_at_the_ends() -> None:
    with np.errstate(all="raise", under="ignore"):
        got = reference.recurrent._logistic(np.array([-1000.0, -40.0, 0.0, 40.0, 1000.0]))
    assert got[0] == 0
    assert got[1] == pytest.approx(np.exp(-40), rel=1e-15)
    assert (got[2:] == [0.5, 1, 1]).all()


# ---- attention -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("lengths", [None, [4, 0, 2]])
def test_attention_gradients(causal: bool, lengths: Any) -> None:
    rng = np.random.default_rng(0)
    qkv, dy = rng.standard_normal((4, 3, 18)), rng.standard_normal((4, 3, 6))
    given: dict[str, Any] = {"causal": causal, "lengths": lengths}

    def loss() -> float:
        return float(np.vdot(reference.attention_forward(qkv, 2, **given), dy))

    got = reference.attention_backward(qkv, 2, dy, **given)
    assert relative_error(got, central_difference(loss, qkv)) < 1e-8
    if lengths:
        assert not got[:, 1].any()
        assert not got[2:, 2].any()


# ---- linear ----------------------------------------------------------------------------------------------------------


def test_linear_gradients() -> None:
    rng = np.random.default_rng(0)
    x, weight, bias, dy = (rng.standard_normal(shape) for shape in ((4, 3), (2, 3), (2,), (4, 2)))

    def loss() -> float:
        return float(np.vdot(reference.linear_forward(x, weight, bias), dy))

    for got, a in zip(reference.linear_backward(x, weight, dy), (x, weight, bias), strict=True):
        assert relative_error(got, central_difference(loss, a)) < 1e-8


ACTIVATIONS = [
    *(("identity",), ("tanh",), ("sigmoid",), ("relu",), ("leaky_relu", 0.1), ("elu", 0.7, 1.3)),
    *(("gelu",), ("gelu_tanh",), ("softplus", 2.0, 3.0), ("silu",)),
]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: a[0])
def test_activation_gradients(activation: tuple[Any, ...]) -> None:
    name, *constants = activation
    rng = np.random.default_rng(0)
    x, dy = rng.normal(0, 2, 50), rng.standard_normal(50)

    def loss() -> float:
        return float(np.vdot(reference.activation_forward(name, x, *constants), dy))

    assert relative_error(reference.activation_backward(name, x, dy, *constants), central_difference(loss, x)) < 1e-8


NORMS = {
    "layer_norm": ((5,), {"eps": 0.1}),
    "layer_norm of two axes": ((4, 5), {"eps": 0.1}),
    "rms_norm": ((5,), {"eps": 0.1}),
    "rms_norm of two axes": ((4, 5), {"eps": 0.1}),
    "batch_norm": ((5,), {"eps": 0.1}),
}


@pytest.mark.parametrize("name", NORMS)
def test_normalization_gradients(name: str) -> None:
    shape, options = NORMS[name]
    kind, rng = name.split(maxsplit=1)[0], np.random.default_rng(0)
    x, dy, weight, bias = (rng.standard_normal(s) for s in ((3, 4, 5), (3, 4, 5), shape, shape))
    arrays = [x, weight] if kind == "rms_norm" else [x, weight, bias]
    forward, backward = (getattr(reference, f"{kind}_{way}") for way in ("forward", "backward"))

    def loss() -> float:
        return float(np.vdot(forward(*arrays, **options), dy))

    for got, a in zip(backward(x, weight, dy, **options), arrays, strict=True):
        assert relative_error(got, central_difference(loss, a)) < 1e-8


# ---- losses ----------------------------------------------------------------------------------------------------------


LOSS_OPTIONS: dict[str, list[dict[str, Any]]] = {
    "mse": [{}],
    "mae": [{}],
    "huber": [{}, {"delta": 0.3}],
    "gaussian_nll": [{}],
    "softmax_cross_entropy": [{}, {"ignore_index": 1}, {"label_smoothing": 0.2}, {"z_loss": 0.1}],
    "binary_cross_entropy": [{}],
}


@pytest.mark.parametrize("some", [False, True])
@pytest.mark.parametrize(
    ("name", "options"), [(name, options) for name, cases in LOSS_OPTIONS.items() for options in cases]
)
def test_loss_gradients(name: str, options: dict[str, Any], some: bool) -> None:
    rng = np.random.default_rng(0)
    y = rng.standard_normal((4, 3, 10 if name == "gaussian_nll" else 5))
    target = rng.integers(0, 5, (4, 3)) if name.startswith("softmax") else rng.random((4, 3, 5))
    if some:
        mask, weight = rng.random((4, 3)) < 0.7, rng.standard_normal((4, 3))
        options = options | {"lengths": np.array([4, 1, 0]), "mask": mask, "weight": weight}
    loss = getattr(reference, name)
    value, dy = loss(y, target, **options)
    assert np.isfinite(value)
    assert relative_error(dy, central_difference(lambda: loss(y, target, **options)[0], y)) < 1e-8
    if some:
        assert not dy[1:, 1:].any()
