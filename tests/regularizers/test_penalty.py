"""gradient_penalty: against differences of the penalty, PyTorch's double backward, and closed forms."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from tools import LAYOUTS, Array, central_difference, relative_error, same_bits

import gradcore
from gradcore import gradient_penalty, reference
from gradcore.layers import dual_attention
from gradcore.layers.stack import Recurrent

pytestmark = pytest.mark.kernels
F64 = np.float64


def value(model: Any, x: Array, axis: int, weight: float, target: float, **given: Any) -> float:
    """The penalty from its formula and an ordinary backward pass; dropout draws the same masks each time."""
    model = copy.deepcopy(model)
    y, tape = model.forward(x, **given)
    g = np.moveaxis(model.backward(tape, np.ones_like(y)), axis, 0).reshape(x.shape[axis], -1)
    return weight * float(np.mean((np.linalg.norm(g, axis=1) - target) ** 2))


def linear(n_in: int, n_out: int, **options: Any) -> Any:
    return gradcore.Linear(n_in, n_out, dtype=F64, rng=n_in + n_out, **options)


class Scale(gradcore.Layer):
    """A layer of a user."""

    def __init__(self, features: int) -> None:
        super().__init__({"weight": (features,)}, dtype=F64)
        self.features = features
        self.params["weight"] = np.linspace(0.5, 2.0, features)

    def forward(self, x: Any) -> tuple[Any, Any]:
        return np.square(x) * self.params["weight"], gradcore.Tape(self, x.shape, x)

    def backward(self, tape: Any, dy: Any) -> Any:
        (x,) = tape.kept
        self.grads["weight"] += (dy * np.square(x)).reshape(-1, self.features).sum(axis=0)
        return 2 * dy * x * self.params["weight"]


class ScaleWithTangents(Scale):
    def forward_tangent(self, tape: Any, x_dot: Any) -> tuple[Any, Any]:
        return 2 * tape.kept[0] * x_dot * self.params["weight"], x_dot

    def backward_tangent(self, tape: Any, x_dot: Any, dy: Any, dy_dot: Any) -> tuple[Any, Any]:
        (x,), w = tape.kept, self.params["weight"]
        change = dy_dot * np.square(x) + 2 * dy * x * x_dot
        self.grads["weight"] += change.reshape(-1, self.features).sum(axis=0)
        return 2 * dy * x * w, 2 * (dy_dot * x + dy * x_dot) * w


def between(layer: Any) -> Any:
    """A model in which a layer of three features stands between others that bend too."""
    return gradcore.Sequential(linear(4, 3), gradcore.Tanh(), layer, linear(3, 5), gradcore.Sigmoid(), linear(5, 1))


FEED_FORWARD: dict[str, Callable[[], Any]] = {
    "Linear": lambda: linear(4, 1),
    "no bias": lambda: gradcore.Sequential(linear(4, 3, bias=False), gradcore.GELU(), linear(3, 1, bias=False)),
    "MLP": lambda: gradcore.MLP([4, 6, 5, 1], "softplus", "xavier_normal", dtype=F64, rng=1),
    "a model within": lambda: between(gradcore.Sequential(linear(3, 3), gradcore.ELU())),
    "a user's layer": lambda: between(ScaleWithTangents(3)),
    "Dropout": lambda: between(gradcore.Dropout(0.4, dtype=F64, rng=0)),
    "LayerNorm": lambda: between(gradcore.LayerNorm(3, 0.1, dtype=F64)),
    "LayerNorm alone": lambda: between(gradcore.LayerNorm(3, 0.1, elementwise_affine=False, dtype=F64)),
    "RMSNorm": lambda: between(gradcore.RMSNorm(3, 0.1, dtype=F64)),
    "Residual": lambda: between(gradcore.Residual(linear(3, 3), gradcore.Tanh(), scale=-0.7)),
    "Identity": lambda: between(gradcore.Identity()),
    "Tanh": lambda: between(gradcore.Tanh()),
    "Sigmoid": lambda: between(gradcore.Sigmoid()),
    "ReLU": lambda: between(gradcore.ReLU()),
    "LeakyReLU": lambda: between(gradcore.LeakyReLU(0.3)),
    "ELU": lambda: between(gradcore.ELU(0.7)),
    "SELU": lambda: between(gradcore.SELU()),
    "GELU": lambda: between(gradcore.GELU()),
    "GELU, tanh": lambda: between(gradcore.GELU("tanh")),
    "SiLU": lambda: between(gradcore.SiLU()),
    "PReLU": lambda: between(gradcore.PReLU(dtype=F64)),
    "PReLU of each feature": lambda: between(gradcore.PReLU(3, dtype=F64)),
    "Softplus": lambda: between(gradcore.Softplus(2.0, 1.0)),
}
CELLS: dict[str, dict[str, Any]] = {
    "RNN, tanh": {},
    "RNN, relu": {"nonlinearity": "relu"},
    "LSTM": {},
    "GRU": {},
}
SHAPES: dict[str, dict[str, Any]] = {
    "one layer": {},
    "no bias": {"bias": False},
    "two layers, batch first": {"num_layers": 2, "batch_first": True},
    "two directions": {"bidirectional": True},
    "two layers of two directions": {"num_layers": 2, "bidirectional": True},
    "dropout": {"num_layers": 3, "dropout": 0.4},
}


def critic(cell: str, dtype: Any = F64, **options: Any) -> Any:
    """(T, B, 2) -> (B, 1)"""
    name, batch_first = cell.partition(",")[0], options.get("batch_first", False)
    recurrent = getattr(gradcore, name)(3, 4, dtype=dtype, rng=2, **CELLS[cell] | options)
    two = recurrent.bidirectional
    top = gradcore.MeanPool(batch_first, dtype=dtype) if two else gradcore.LastStep(batch_first, dtype=dtype)
    return gradcore.Sequential(
        gradcore.Linear(2, 3, dtype=dtype, rng=1), recurrent, top, gradcore.Linear(4 + 4 * two, 1, dtype=dtype, rng=3)
    )


def sequences(model: Any, T: int = 5, B: int = 4) -> Array:
    x = np.random.default_rng(0).standard_normal((T, B, 2))
    return x.swapaxes(0, 1).copy() if model[1].batch_first else x


# ---- against differences ---------------------------------------------------------------------------------------------


def assert_exact(model: Any, x: Array, axis: int, weight: float = 10.0, target: float = 1.0, **given: Any) -> None:
    """Value and gradient against central differences of the formula, 1e-6 relative; the gradient is added.

    The differences go along two random directions of each parameter, and their error falls with the fourth power of the
    step: after layer norm the penalty bends sharply.
    """

    other = copy.deepcopy(model)  # whose dropout draws what that of the model is about to draw

    def penalty() -> float:
        return value(other, x, axis, weight, target, **given)

    expected, before = penalty(), model.flat_params.copy()
    model.flat_grads[...] = 1.0
    assert gradient_penalty(model, x, weight=weight, target=target, **given) == pytest.approx(expected, rel=1e-12)
    assert same_bits(model.flat_params, before)
    rng, step, got, want = np.random.default_rng(7), 2e-6, [], []
    for name, p in other.params.items():
        for direction in rng.standard_normal((2, *p.shape)):
            kept, change = p.copy(), 0.0
            for steps, share in ((1, 8), (-1, -8), (2, -1), (-2, 1)):
                p[...] = kept + steps * step * direction
                change += share * penalty()
            p[...] = kept
            got.append(float(np.vdot(model.grads[name] - 1.0, direction)))
            want.append(change / (12 * step))
    rounding = np.finfo(F64).eps * expected / step  # of the differences
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6 * np.linalg.norm(want) / len(want) + rounding)


@pytest.mark.parametrize("name", FEED_FORWARD)
def test_feed_forward_models_against_differences(name: str) -> None:
    model, rng = FEED_FORWARD[name](), np.random.default_rng(0)
    model.flat_params += 0.3 * rng.standard_normal(model.flat_params.size)  # gains other than 1, biases other than 0
    assert_exact(model, rng.standard_normal((6, 4)), 0)


def test_samples_of_several_axes_against_differences() -> None:
    model = gradcore.Sequential(linear(3, 4), gradcore.Tanh(), gradcore.LastStep(True), linear(4, 1))
    assert_exact(model, np.random.default_rng(0).standard_normal((6, 5, 3)), 0)


@pytest.mark.parametrize("lengths", [None, [5, 2, 0, 3], [3, 3, 3, 3]], ids=["full", "ragged", "short"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cell", CELLS)
def test_recurrent_models_against_differences(cell: str, shape: str, lengths: Any) -> None:
    model = critic(cell, **SHAPES[shape])
    given = {} if lengths is None else {"lengths": lengths}
    assert_exact(model, sequences(model), 0 if model[1].batch_first else 1, **given)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_sequences_that_are_cut_against_differences(cell: str, batch_first: bool) -> None:
    model = critic(cell, num_layers=2, bidirectional=True, batch_first=batch_first)
    reset = np.zeros((5, 4), bool)
    reset[[0, 2, 3, 4], [0, 1, 1, 3]] = True
    reset = reset.T if batch_first else reset
    assert_exact(model, sequences(model), 0 if batch_first else 1, lengths=[5, 4, 0, 5], reset=reset)


BESIDE: dict[str, dict[str, Any]] = {
    "layer norm": {"layer_norm": True},
    "layer norm, no bias": {"layer_norm": True, "bias": False},
    "zoneout": {"zoneout": 0.4},
    "recurrent dropout": {"recurrent_dropout": 0.4},
    "all": {"layer_norm": True, "zoneout": 0.3, "recurrent_dropout": 0.3},
}


def beside(cell: str, **options: Any) -> Any:
    """A critic whose gains are not 1 and whose biases are not 0."""
    model = critic(cell, **options)
    model.flat_params += 0.2 * np.random.default_rng(5).standard_normal(model.flat_params.size)
    return model


@pytest.mark.parametrize("lengths", [None, [5, 2, 0, 3]], ids=["full", "ragged"])
@pytest.mark.parametrize("shape", ["one layer", "two layers of two directions", "dropout"])
@pytest.mark.parametrize("options", BESIDE)
@pytest.mark.parametrize("cell", CELLS)
def test_layer_norm_and_noise_against_differences(cell: str, options: str, shape: str, lengths: Any) -> None:
    model = beside(cell, **SHAPES[shape], **BESIDE[options])
    given = {} if lengths is None else {"lengths": lengths}
    assert_exact(model, sequences(model), 1, **given)


@pytest.mark.parametrize("cell", CELLS)
def test_layer_norm_and_noise_of_sequences_that_are_cut_against_differences(cell: str) -> None:
    model = beside(cell, num_layers=2, bidirectional=True, batch_first=True, **BESIDE["all"])
    reset = np.zeros((4, 5), bool)
    reset[[0, 1, 1, 3], [0, 2, 3, 4]] = True
    assert_exact(model, sequences(model), 0, lengths=[5, 4, 0, 5], reset=reset)


@pytest.mark.parametrize("H", [19, 70])  # several vectors, and more than one block of zoneout's masks
@pytest.mark.parametrize("cell", CELLS)
def test_layer_norm_and_noise_of_many_units(cell: str, H: int) -> None:
    name = cell.partition(",")[0]
    layer = getattr(gradcore, name)(3, H, dtype=F64, rng=2, **CELLS[cell], **BESIDE["all"])
    model = gradcore.Sequential(layer, gradcore.LastStep(), linear(H, 1))
    assert_exact(model, np.random.default_rng(0).standard_normal((4, 3, 3)), 1)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("pool", ["FinalState", "MeanPool"])
def test_pooled_sequences_against_differences(pool: str, batch_first: bool) -> None:
    recurrent = gradcore.GRU(2, 3, bidirectional=True, batch_first=batch_first, dtype=F64, rng=0)
    options = {"bidirectional": True} if pool == "FinalState" else {}
    pooled = getattr(gradcore, pool)(batch_first=batch_first, **options)
    model = gradcore.Sequential(recurrent, pooled, linear(6, 1))
    x = np.random.default_rng(0).standard_normal((4, 5, 2) if batch_first else (5, 4, 2))
    assert_exact(model, x, 0 if batch_first else 1, lengths=[5, 2, 0, 3])


ATTENTION: dict[str, Callable[[], Any]] = {
    "one head": lambda: gradcore.MultiheadAttention(4, 1, dtype=F64, rng=0),
    "two heads, causal": lambda: gradcore.MultiheadAttention(4, 2, causal=True, dtype=F64, rng=0),
    "no bias": lambda: gradcore.MultiheadAttention(4, 2, bias=False, dtype=F64, rng=0),
    "post-norm": lambda: gradcore.TransformerEncoderLayer(4, 2, 5, 0.0, "gelu", 0.1, dtype=F64, rng=0),
    "pre-norm": lambda: gradcore.TransformerEncoderLayer(
        4, 2, 5, 0.4, "gelu", 0.1, True, causal=True, norm="rms", dtype=F64, rng=0
    ),
}


@pytest.mark.parametrize("lengths", [None, [7, 3, 0]], ids=["full", "ragged"])
@pytest.mark.parametrize("name", ATTENTION)
def test_attention_against_differences(name: str, lengths: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dual_attention, "QUERIES", 3)  # several blocks, the last one smaller
    model = gradcore.Sequential(linear(2, 4), ATTENTION[name](), gradcore.LastStep(), linear(4, 1))
    model.flat_params *= 1.5
    x = np.random.default_rng(0).standard_normal((7, 3, 2))
    assert_exact(model, x, 1, **({} if lengths is None else {"lengths": lengths}))


@pytest.mark.parametrize(("weight", "target"), [(2.5, 0.0), (10.0, 0.3), (0.0, 1.0)])
def test_other_weights_and_targets_against_differences(weight: float, target: float) -> None:
    """target=0 is the zero-centered penalty, R1."""
    x = np.random.default_rng(0).standard_normal((6, 4))
    assert_exact(FEED_FORWARD["MLP"](), x, 0, weight, target)
    model = critic("GRU")
    assert_exact(model, sequences(model), 1, weight, target)


def test_hidden_sizes_that_fill_several_vectors() -> None:
    for cell, options in CELLS.items():
        recurrent = getattr(gradcore, cell.partition(",")[0])(3, 19, dtype=F64, rng=2, **options)
        model = gradcore.Sequential(recurrent, gradcore.LastStep(), linear(19, 1))
        assert_exact(model, np.random.default_rng(0).standard_normal((3, 2, 3)), 1)


# ---- against PyTorch's double backward -------------------------------------------------------------------------------


def torch_cell(torch: Any, cell: str, p: dict[str, Any], suffix: str, u: Any, state: Any, met: Any) -> Any:
    """One step written out, because PyTorch's fused layers refuse a second derivative."""
    h, normed = state[0], f"norm_ih_weight_{suffix}" in p

    def norm(rows: Any, gain: Any, bias: Any) -> Any:
        return torch.nn.functional.layer_norm(rows, rows.shape[1:], gain, bias, 1e-5) if normed else rows + bias

    a = norm(u @ p[f"weight_ih_{suffix}"].T, p.get(f"norm_ih_weight_{suffix}"), p[f"bias_ih_{suffix}"])
    b = norm(met @ p[f"weight_hh_{suffix}"].T, p.get(f"norm_hh_weight_{suffix}"), p[f"bias_hh_{suffix}"])
    if cell == "LSTM":
        i, f, g, o = (a + b).chunk(4, dim=1)
        c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
        shown = norm(c, p[f"norm_c_weight_{suffix}"], p[f"norm_c_bias_{suffix}"]) if normed else c
        return torch.sigmoid(o) * torch.tanh(shown), c
    if cell == "GRU":
        (ar, az, an), (br, bz, bn) = a.chunk(3, dim=1), b.chunk(3, dim=1)
        r, z = torch.sigmoid(ar + br), torch.sigmoid(az + bz)
        n = torch.tanh(an + r * bn)
        return ((1 - z) * n + z * h,)
    return (torch.relu(a + b) if cell == "RNN, relu" else torch.tanh(a + b),)


def noise_of(layer: Any, shape: tuple[int, int]) -> list[tuple[Any, list[Any]]]:
    """Each direction's factors of recurrent dropout, and those of zoneout for each part of the state, (T, B, H)."""
    twin, (T, B), found = copy.deepcopy(layer), shape, []
    _, tape = twin.forward(np.zeros((T, B, layer.input_size)))
    for noise in tape.trace.noise:
        each = [reference.zoneout_mask(noise.key, noise.zoneout, part, range(T * B), layer.hidden_size)
                for part in range(len(layer.cell.states))]  # fmt: skip
        found.append((noise.mask, [mask.reshape(T, B, layer.hidden_size) for mask in each]))
    return found


def torch_recurrent(
    torch: Any, cell: str, layer: Any, p: dict[str, Any], rows: Any, lengths: list[int], noise: Any = None
) -> Any:
    """(T, B, I) -> (T, B, D*H), in loops over layers, directions and steps."""
    T, B = rows.shape[:2]
    for level in range(layer.num_layers):
        outputs = []
        for direction in range(layer.num_directions):
            suffix = f"l{level}{'_reverse' * direction}"
            state = [torch.zeros(B, layer.hidden_size, dtype=torch.float64) for _ in layer.cell.states]
            found: dict[int, Any] = {}
            for t in reversed(range(T)) if direction else range(T):
                alive = torch.tensor([[t < n] for n in lengths])
                mask, zoned = (1.0, None) if noise is None else noise[level * layer.num_directions + direction]
                after = torch_cell(torch, cell, p, suffix, rows[t], state, state[0] * torch.as_tensor(mask))
                if zoned is not None:
                    keep = [torch.tensor(part[t]) for part in zoned]
                    after = [k * old + (1 - k) * new for k, old, new in zip(keep, state, after, strict=True)]
                state = [torch.where(alive, new, old) for new, old in zip(after, state, strict=True)]
                found[t] = torch.where(alive, state[0], torch.zeros_like(state[0]))
            outputs.append(torch.stack([found[t] for t in range(T)]))
        rows = torch.cat(outputs, dim=2)
    return rows


def torch_penalty(torch: Any, f: Callable[[Any], Any], x: Any, axis: int) -> Any:
    (g,) = torch.autograd.grad(f(x).sum(), x, create_graph=True)
    norm = torch.sqrt(g.square().sum(dim=[i for i in range(x.ndim) if i != axis]))
    return 10 * (norm - 1).square().mean()


def assert_like_torch(
    torch: Any, model: Any, f: Callable[[dict[str, Any], Any], Any], x: Array, **options: Any
) -> None:
    params = {name: torch.tensor(p, requires_grad=True) for name, p in model.params.items()}
    at = torch.tensor(x, requires_grad=True)
    want = torch_penalty(torch, lambda x: f(params, x), at, 1 if x.ndim == 3 else 0)
    grads = torch.autograd.grad(want, list(params.values()), allow_unused=True)
    model.zero_grad()
    assert gradient_penalty(model, x, **options) == pytest.approx(want.item(), rel=1e-12)
    whole = np.concatenate(
        [np.zeros(p.numel()) if g is None else g.numpy().ravel() for p, g in zip(params.values(), grads, strict=True)]
    )
    assert relative_error(model.flat_grads, whole) < 1e-9


@pytest.mark.peers
@pytest.mark.parametrize("lengths", [None, [6, 2, 4]], ids=["full", "ragged"])
@pytest.mark.parametrize("shape", [name for name in SHAPES if name in ("one layer", "two layers of two directions")])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("layer_norm", [False, True], ids=["plain", "layer norm"])
def test_recurrent_models_against_torch(cell: str, layer_norm: bool, shape: str, lengths: list[int] | None) -> None:
    torch = pytest.importorskip("torch")
    model = beside(cell, layer_norm=layer_norm, **SHAPES[shape])
    layer, two = model[1], model[1].bidirectional

    def f(p: dict[str, Any], x: Any) -> Any:
        ends, own = lengths or [6] * 3, {name.removeprefix("1."): each for name, each in p.items()}
        y = torch_recurrent(torch, cell, layer, own, x @ p["0.weight"].T + p["0.bias"], ends)
        top = (
            y.sum(dim=0) / torch.tensor(ends)[:, None]
            if two
            else torch.stack([y[n - 1, b] for b, n in enumerate(ends)])
        )
        return top @ p["3.weight"].T + p["3.bias"]

    assert_like_torch(torch, model, f, sequences(model, 6, 3), **({} if lengths is None else {"lengths": lengths}))


@pytest.mark.peers
@pytest.mark.parametrize("cell", CELLS)
def test_layer_norm_and_noise_against_torch(cell: str) -> None:
    torch = pytest.importorskip("torch")
    model = beside(cell, num_layers=2, bidirectional=True, **BESIDE["all"])
    noise = noise_of(model[1], (6, 3))

    def f(p: dict[str, Any], x: Any) -> Any:
        own = {name.removeprefix("1."): each for name, each in p.items()}
        rows = x @ p["0.weight"].T + p["0.bias"]
        y = torch_recurrent(torch, cell, model[1], own, rows, [6] * 3, noise)
        return y.mean(dim=0) @ p["3.weight"].T + p["3.bias"]

    assert_like_torch(torch, model, f, sequences(model, 6, 3))


@pytest.mark.peers
@pytest.mark.parametrize("name", ["tanh", "sigmoid", "relu", "leaky_relu", "elu", "selu", "gelu", "softplus", "silu"])
def test_feed_forward_models_against_torch(name: str) -> None:
    torch = pytest.importorskip("torch")
    model = gradcore.MLP([4, 16, 16, 1], name, "xavier_normal", dtype=F64, rng=1)
    function = getattr(torch.nn.functional, name, getattr(torch, name, None))

    def f(p: dict[str, Any], x: Any) -> Any:
        for i in (0, 2):
            x = function(x @ p[f"{i}.weight"].T + p[f"{i}.bias"])
        return x @ p["4.weight"].T + p["4.bias"]

    assert_like_torch(torch, model, f, np.random.default_rng(0).standard_normal((32, 4)))


# ---- what else it promises -------------------------------------------------------------------------------------------


def test_a_penalty_is_not_silently_left_out_of_recurrent_weights() -> None:
    """A fused layer that differentiates once gives W_hh the gradient of the loss alone, without an error."""
    rng = np.random.default_rng(0)
    lstm = gradcore.LSTM(3, 8, dtype=F64, rng=0)
    model = gradcore.Sequential(lstm, gradcore.LastStep(), linear(8, 1))
    x = rng.standard_normal((20, 6, 3))

    def loss() -> float:
        return float(model(x).mean()) + value(model, x, 1, 10.0, 1.0)

    y, tape = model.forward(x)
    model.backward(tape, np.full_like(y, 1 / len(y)))
    alone = lstm.grads["weight_hh_l0"].copy()
    gradient_penalty(model, x)
    got = lstm.grads["weight_hh_l0"]
    assert relative_error(got, central_difference(loss, lstm.params["weight_hh_l0"])) < 1e-6
    assert relative_error(alone, got) > 0.5


@pytest.mark.parametrize("cell", [None, *CELLS])
def test_float32_models_get_the_gradient_of_float64(cell: str | None) -> None:
    build: Callable[[Any], Any] = (
        (lambda dtype: gradcore.MLP([2, 16, 16, 1], "gelu", dtype=dtype, rng=0))
        if cell is None
        else (lambda dtype: critic(cell, dtype, num_layers=2))
    )
    wide, narrow = build(F64), build(np.float32)
    narrow.load_state_dict({name: p.astype(np.float32) for name, p in wide.params.items()})
    x = np.random.default_rng(0).standard_normal((8, 2) if cell is None else (7, 4, 2))
    want, got = gradient_penalty(wide, x), gradient_penalty(narrow, x.astype(np.float32))
    assert got == pytest.approx(want, rel=1e-4)
    assert narrow.flat_grads.dtype == np.float32
    assert relative_error(narrow.flat_grads, wide.flat_grads) < 1e-4


def test_a_gradient_of_zero_adds_nothing_and_is_no_nan() -> None:
    dead = gradcore.MLP([3, 4, 1], "relu", dtype=F64, rng=0)
    dead.params["0.bias"] = np.full(4, -100.0)
    x = np.random.default_rng(0).standard_normal((5, 3))
    for target, want in ((1.0, 10.0), (0.0, 0.0)):
        assert gradient_penalty(dead, x, target=target) == want
        assert not dead.flat_grads.any()
    x[2] = 1000.0  # one sample that is alive among others
    assert gradient_penalty(dead, x) != 10.0
    assert np.isfinite(dead.flat_grads).all()
    assert dead.flat_grads.any()


def test_closed_form_of_a_linear_critic() -> None:
    model = gradcore.Linear(3, 1, dtype=F64, rng=0)
    w = model.params["weight"]
    length = float(np.linalg.norm(w))
    assert gradient_penalty(model, np.ones((4, 3))) == pytest.approx(10 * (length - 1) ** 2, rel=1e-14)
    np.testing.assert_allclose(model.grads["weight"], 20 * (length - 1) * w / length, rtol=1e-13)
    assert model.grads["bias"] == 0
    model.zero_grad()
    assert gradient_penalty(model, np.ones((4, 3)), target=0.0) == pytest.approx(10 * length**2, rel=1e-14)
    np.testing.assert_allclose(model.grads["weight"], 20 * w, rtol=1e-13)


@pytest.mark.parametrize("scale", [1e-150, 1e150])
def test_norms_whose_squares_are_not_representable(scale: float) -> None:
    model = gradcore.Linear(2, 1, dtype=F64)
    model.params["weight"] = scale * np.array([[3.0, 4.0]])
    assert gradient_penalty(model, np.ones((1, 2)), weight=1.0) == pytest.approx((5 * scale - 1) ** 2)
    np.testing.assert_allclose(model.grads["weight"], [[2 * (5 * scale - 1) * n for n in (0.6, 0.8)]], rtol=1e-12)


def test_what_is_not_finite_passes_on_without_a_warning() -> None:
    for model, x in ((FEED_FORWARD["MLP"](), np.ones((3, 4))), (critic("LSTM"), np.ones((5, 3, 2)))):
        x[0] = np.nan
        assert math.isnan(gradient_penalty(model, x))
        assert np.isnan(model.flat_grads).any()


def test_no_samples_and_no_steps() -> None:
    for model, x in (
        (FEED_FORWARD["MLP"](), np.ones((0, 4))),
        (critic("GRU"), np.ones((5, 0, 2))),
        (critic("LSTM", num_layers=2, bidirectional=True), np.ones((0, 0, 2))),
    ):
        assert gradient_penalty(model, x) == 0.0
        assert not model.flat_grads.any()
    model = critic("LSTM")
    assert gradient_penalty(model, np.ones((0, 3, 2))) == 10.0  # no steps, no gradient: a norm of 0
    assert not model.flat_grads.any()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_x(layout: str) -> None:
    for build, shape in ((FEED_FORWARD["MLP"], (3, 4)), (lambda: critic("GRU"), (5, 3, 2))):
        x = np.random.default_rng(0).standard_normal(shape)
        plain, odd = build(), build()
        given = LAYOUTS[layout](x)
        assert gradient_penalty(odd, given) == gradient_penalty(plain, x)
        assert same_bits(odd.flat_grads, plain.flat_grads)
        np.testing.assert_array_equal(given, x)


def test_only_gradients_change_and_dropout_draws_anew() -> None:
    model = critic("LSTM", num_layers=2, dropout=0.5)
    x = sequences(model)
    kept, out, at = model.flat_params.copy(), model(x), x.copy()
    views = model.grads["1.weight_hh_l0"]
    first = gradient_penalty(model, x)
    assert same_bits(model.flat_params, kept)
    assert same_bits(model(x), out)
    assert same_bits(x, at)
    assert views.any()
    assert gradient_penalty(model, x) != first, "the same mask twice"


def test_gradients_accumulate() -> None:
    model, x = FEED_FORWARD["MLP"](), np.random.default_rng(0).standard_normal((6, 4))
    gradient_penalty(model, x)
    once = model.flat_grads.copy()
    gradient_penalty(model, x)
    np.testing.assert_allclose(model.flat_grads, 2 * once, rtol=1e-14)
    y, tape = model.forward(x)
    model.backward(tape, np.ones_like(y))
    assert relative_error(model.flat_grads, 2 * once) > 1e-3


def test_python_threads_may_share_a_model() -> None:
    model = critic("GRU")
    xs = [sequences(model) * scale for scale in np.linspace(0.5, 2.0, 8)]
    want = sum(gradient_penalty(model, x) for x in xs)
    alone = model.flat_grads.copy()
    model.zero_grad()
    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(lambda x: gradient_penalty(model, x), xs)) == pytest.approx(want, rel=1e-12)
    assert relative_error(model.flat_grads, alone) < 1e-12


def test_it_is_the_same_for_any_number_of_threads() -> None:
    found = []
    for n in (1, 2):
        gradcore.set_num_threads(n)
        model = gradcore.MLP([2, 300, 200, 1], "gelu", rng=0)
        x = np.random.default_rng(0).standard_normal((200, 2)).astype(np.float32)
        found.append((gradient_penalty(model, x), model.flat_grads.copy()))
    assert found[0][0] == found[1][0]
    assert same_bits(found[0][1], found[1][1])


@pytest.mark.parametrize("at", ["forward", "backward", "forward_tangent", "backward_tangent", "_add_gradients"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_broken_off_it_leaves_zero_gradients(at: str, error: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = critic("LSTM")
    model.flat_grads[...] = 1.0
    before, x = model.flat_params.copy(), sequences(model)

    def broken(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(Recurrent, at, broken)
    with pytest.raises(error):
        gradient_penalty(model, x)
    assert not model.flat_grads.any()
    assert same_bits(model.flat_params, before)


# ---- which axis, and what is refused ---------------------------------------------------------------------------------


def test_the_axis_of_the_samples_is_what_the_model_says() -> None:
    x = np.random.default_rng(0).standard_normal((4, 4, 2))  # as many steps as samples: shapes do not tell
    major, first = critic("GRU"), critic("GRU", batch_first=True)
    first.load_state_dict(major.state_dict())
    assert gradient_penalty(major, x) == pytest.approx(gradient_penalty(first, x.swapaxes(0, 1)), rel=1e-12)
    assert relative_error(first.flat_grads, major.flat_grads) < 1e-12
    assert gradient_penalty(major, x, batch_first=False) == value(major, x, 1, 10.0, 1.0)


class Inside(gradcore.Composite):
    """A block of a user, which says nothing of axes."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner=inner)

    def forward(self, x: Any) -> tuple[Any, Any]:
        y, tape = self.inner.forward(x)
        return 3 * y, gradcore.Tape(self, y.shape, tapes=[tape])

    def backward(self, tape: Any, dy: Any) -> Any:
        return self.inner.backward(tape.tapes[0], 3 * dy)

    def forward_tangent(self, tape: Any, x_dot: Any) -> tuple[Any, Any]:
        y_dot, tangent = self.inner.forward_tangent(tape.tapes[0], x_dot)
        return 3 * y_dot, tangent

    def backward_tangent(self, tape: Any, tangent: Any, dy: Any, dy_dot: Any) -> Any:
        return self.inner.backward_tangent(tape.tapes[0], tangent, 3 * dy, 3 * dy_dot)


@pytest.mark.parametrize("batch_first", [False, True])
def test_the_axis_of_a_block_is_that_of_its_members(batch_first: bool) -> None:
    model = Inside(gradcore.Sequential(linear(2, 2), critic("GRU", batch_first=batch_first)))
    x = np.random.default_rng(0).standard_normal((4, 4, 2))
    assert_exact(model, x, 0 if batch_first else 1)


class Untold(gradcore.Layer):
    """The sum over the steps, (T, B, F) -> (B, F)."""

    def __init__(self) -> None:
        super().__init__(dtype=F64)

    def forward(self, x: Any) -> tuple[Any, Any]:
        return x.sum(axis=0), gradcore.Tape(self, x.shape[1:], x.shape)

    def backward(self, tape: Any, dy: Any) -> Any:
        return np.broadcast_to(dy, tape.kept[0]).copy()

    def forward_tangent(self, tape: Any, x_dot: Any) -> tuple[Any, Any]:
        return x_dot.sum(axis=0), None

    def backward_tangent(self, tape: Any, tangent: Any, dy: Any, dy_dot: Any) -> tuple[Any, Any]:
        return self.backward(tape, dy), self.backward(tape, dy_dot)


def test_batch_first_says_it_for_a_model_that_does_not() -> None:
    x = np.random.default_rng(0).standard_normal((4, 4, 2))
    model = gradcore.Sequential(linear(2, 3), gradcore.Tanh(), Untold(), linear(3, 1))
    assert gradient_penalty(model, x, batch_first=False) == pytest.approx(value(model, x, 1, 10.0, 1.0), rel=1e-12)
    with pytest.raises(ValueError, match=r"model: expected an output of shape \(5, 1\) or \(5,\), .* axis 0 of x"):
        gradient_penalty(model, np.ones((5, 4, 2)))


class Doubled(gradcore.Linear):
    """Inherits tangents that are not those of its passes."""

    def forward(self, x: Any) -> tuple[Any, Any]:
        y, tape = super().forward(2 * x)
        return y, tape


class Chain(gradcore.Sequential):
    def forward(self, x: Any, state: Any = None, lengths: Any = None) -> tuple[Any, Any]:
        y, tape = super().forward(x)
        return 2 * y, tape


BAD: dict[str, tuple[Callable[[], Any], Any, dict[str, Any], Any, str]] = {
    "no model": (lambda: np.ones(3), np.ones((2, 3)), {}, TypeError, "model: expected a layer or a model, got ndarray"),
    "no tangents": (
        lambda: between(Scale(3)), np.ones((2, 4)), {}, TypeError,
        "model.2: Scale has no forward_tangent and backward_tangent",
    ),
    "tangents of other passes": (
        lambda: gradcore.Sequential(Doubled(4, 1, dtype=F64)), np.ones((2, 4)), {}, TypeError,
        "model.0: Doubled has no",
    ),
    "a chain with a forward of its own": (
        lambda: Chain(linear(4, 1)), np.ones((2, 4)), {}, TypeError, "model: Chain has no forward_tangent",
    ),
    "several outputs": (
        lambda: linear(4, 2), np.ones((3, 4)), {}, ValueError,
        r"output of shape \(3, 1\) or \(3,\), one number for each sample on axis 0 of x, got \(3, 2\)",
    ),
    "one output per step": (
        lambda: gradcore.Sequential(gradcore.GRU(2, 1, dtype=F64)), np.ones((5, 3, 2)), {}, ValueError,
        r"expected an output of shape \(3, 1\) or \(3,\), .* axis 1 of x, got \(5, 3, 1\)",
    ),
    "float32": (lambda: linear(4, 1), np.ones((3, 4), "f4"), {}, TypeError, "x: expected float64, got float32"),
    "integers": (lambda: linear(4, 1), np.ones((3, 4), int), {}, TypeError, "x: expected float32 or float64, got int"),
    "one axis": (lambda: linear(4, 1), np.ones(4), {}, ValueError, r"got \(1,\)"),
    "no axes": (lambda: linear(4, 1), np.float64(1), {}, ValueError, r"x: expected shape \(B, ...\), got \(\)"),
    "one axis of a sequence": (
        lambda: critic("GRU"), np.ones(4), {}, ValueError, r"x: expected shape \(T, B, ...\), got \(4,\)",
    ),
    "weight": (lambda: linear(4, 1), np.ones((3, 4)), {"weight": -1}, ValueError, "weight: expected a number at"),
    "target": (lambda: linear(4, 1), np.ones((3, 4)), {"target": "1"}, TypeError, "target: expected a number, got str"),
    "lengths": (
        lambda: linear(4, 1), np.ones((3, 4)), {"lengths": [1, 2, 3]}, ValueError, "lengths: no layer of this model",
    ),
    "lengths of others": (
        lambda: critic("GRU"), np.ones((5, 3, 2)), {"lengths": [1, 2]}, ValueError, r"lengths: expected shape \(3,\)",
    ),
    "reset": (
        lambda: gradcore.Sequential(linear(4, 1)), np.ones((3, 4)), {"reset": np.ones((3, 4), bool)}, ValueError,
        "reset: no layer of this model takes it",
    ),
    "BatchNorm": (
        lambda: between(gradcore.BatchNorm(3, dtype=F64)), np.ones((3, 4)), {}, TypeError,
        "model.2: BatchNorm takes the statistics of the batch, so that the output for one sample depends on the others",
    ),
    "Embedding": (
        lambda: gradcore.Sequential(gradcore.Embedding(5, 4, dtype=F64), linear(4, 1)), np.ones((3, 2), int), {},
        TypeError,
        "model.0: Embedding reads integers, with respect to which there is no gradient",
    ),
    "batch_first": (
        lambda: critic("GRU"), np.ones((5, 3, 2)), {"batch_first": True}, ValueError,
        "batch_first: expected False, which the model's layers have, got True",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_errors_name_the_argument_and_change_nothing(case: str) -> None:
    build, x, options, error, message = BAD[case]
    model = build()
    if isinstance(model, gradcore.Layer):
        model.flat_grads[...] = 1.0
    with pytest.raises(error, match=message):
        gradient_penalty(model, x, **options)
    if isinstance(model, gradcore.Layer):
        assert (model.flat_grads == 1.0).all()


def test_tangents_check_what_they_are_given() -> None:
    cases: list[tuple[Any, Array]] = [(linear(4, 1), np.ones((3, 4))), (gradcore.Tanh(dtype=F64), np.ones((3, 4)))]
    cases += [(gradcore.GRU(2, 3, dtype=F64), np.ones((5, 3, 2))), (gradcore.LastStep(dtype=F64), np.ones((5, 3, 2)))]
    for layer, x in [*cases, *((gradcore.Sequential(layer), x) for layer, x in copy.deepcopy(cases))]:
        y, tape = layer.forward(x)
        _, other = layer.forward(x)
        y_dot, tangent = layer.forward_tangent(tape, x)
        assert y_dot.shape == y.shape
        with pytest.raises(ValueError, match="x_dot: expected shape"):
            layer.forward_tangent(tape, x[1:])
        with pytest.raises(ValueError, match=r"dy(_dot)?: expected shape"):
            layer.backward_tangent(tape, tangent, y, y[1:])
        with pytest.raises(ValueError, match="tape: expected a tape from this layer's forward"):
            layer.forward_tangent(None, x)
        with pytest.raises(ValueError, match="tape: expected a tape from this layer's forward"):
            layer.backward_tangent(None, tangent, y, y)
        dx, dx_dot = layer.backward_tangent(other, tangent, y, y_dot)
        assert dx.shape == dx_dot.shape == x.shape
        if layer.params:
            layer.zero_grad()
            want = layer.backward(tape, y)
            assert relative_error(dx, want) < 1e-12
            layer.flat_grads[...] = 0


def test_a_layer_without_tangents_says_so() -> None:
    for method, given in (("forward_tangent", (None, None)), ("backward_tangent", (None,) * 4)):
        with pytest.raises(NotImplementedError, match=f"Scale: has no {method}"):
            getattr(Scale(3), method)(*given)
