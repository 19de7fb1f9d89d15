"""Linear, activations, LastStep, Sequential, MLP: against twins, central differences, PyTorch and closed forms."""

from __future__ import annotations

import copy
import functools
import gc
import math
import pickle
import platform
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import scipy.special
from hypothesis import given
from hypothesis import strategies as st
from tools import LAYOUTS, Array, central_difference, relative_error, same_bits

import gradcore
from gradcore import reference
from gradcore.training.monitor import GradientMonitor

pytestmark = pytest.mark.kernels

# Every activation: the layer's class and arguments, its twin's name and constants, PyTorch's arguments.
SELU = (1.6732632423543772, 1.0507009873554805)
ACTIVATIONS: dict[str, tuple[Any, tuple[Any, ...], str, tuple[float, ...], dict[str, Any]]] = {
    "identity": (gradcore.Identity, (), "identity", (), {}),
    "tanh": (gradcore.Tanh, (), "tanh", (), {}),
    "sigmoid": (gradcore.Sigmoid, (), "sigmoid", (), {}),
    "relu": (gradcore.ReLU, (), "relu", (), {}),
    "leaky_relu": (gradcore.LeakyReLU, (), "leaky_relu", (0.01,), {}),
    "leaky_relu(0.3)": (gradcore.LeakyReLU, (0.3,), "leaky_relu", (0.3,), {"negative_slope": 0.3}),
    "elu": (gradcore.ELU, (), "elu", (), {}),
    "elu(0.7)": (gradcore.ELU, (0.7,), "elu", (0.7,), {"alpha": 0.7}),
    "selu": (gradcore.SELU, (), "elu", SELU, {}),
    "gelu": (gradcore.GELU, (), "gelu", (), {}),
    "gelu(tanh)": (gradcore.GELU, ("tanh",), "gelu_tanh", (), {"approximate": "tanh"}),
    "softplus": (gradcore.Softplus, (), "softplus", (1.0, 20.0), {}),
    "softplus(2, 3)": (gradcore.Softplus, (2, 3), "softplus", (2.0, 3.0), {"beta": 2, "threshold": 3}),
    "silu": (gradcore.SiLU, (), "silu", (), {}),
}
activations = pytest.mark.parametrize("name", ACTIVATIONS)
both_dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def activation(name: str, dtype: Any = np.float32) -> Any:
    make, arguments, *_ = ACTIVATIONS[name]
    return make(*arguments, dtype=dtype)


# Layers that take (5, 4, 3) and return (..., 2) or the same, in float64: every property below holds for all of them.
LAYERS: dict[str, Callable[[], Any]] = {
    "Linear": lambda: gradcore.Linear(3, 2, dtype=np.float64, rng=np.random.default_rng(0)),
    "Linear without bias": lambda: gradcore.Linear(3, 2, bias=False, dtype=np.float64, rng=np.random.default_rng(0)),
    "LayerNorm": lambda: gradcore.LayerNorm(3, 0.1, dtype=np.float64),
    "RMSNorm": lambda: gradcore.RMSNorm(3, 0.1, dtype=np.float64),
    "BatchNorm": lambda: gradcore.BatchNorm(3, track_running_stats=False, dtype=np.float64),
    "Residual": lambda: gradcore.Residual(
        gradcore.Linear(3, 3, dtype=np.float64, rng=np.random.default_rng(6)), gradcore.Tanh(), scale=0.5
    ),
    "LastStep": lambda: gradcore.LastStep(dtype=np.float64),
    "LastStep, batch first": lambda: gradcore.LastStep(True, dtype=np.float64),
    "Sequential": lambda: gradcore.Sequential(
        gradcore.Linear(3, 7, dtype=np.float64, rng=np.random.default_rng(1)),
        gradcore.Sequential(gradcore.GELU(), gradcore.Linear(7, 4, dtype=np.float64, rng=np.random.default_rng(2))),
        gradcore.LSTM(4, 6, dtype=np.float64, rng=np.random.default_rng(3)),
        gradcore.LastStep(),
        gradcore.Linear(6, 2, dtype=np.float64, rng=np.random.default_rng(4)),
    ),
    "MLP": lambda: gradcore.MLP([3, 5, 4, 2], "tanh", "xavier_normal", dtype=np.float64, rng=np.random.default_rng(5)),
    **{name: (lambda name=name: activation(name, np.float64)) for name in ACTIVATIONS},
}
layers = pytest.mark.parametrize("name", LAYERS)


def example(shape: tuple[int, ...] = (5, 4, 3), seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(0, 1.5, shape)


# ---- gradients -----------------------------------------------------------------------------------------------------


@layers
def test_gradients_by_central_differences(name: str) -> None:
    layer, x = LAYERS[name](), example()
    y, tape = layer.forward(x)
    dy = example(y.shape, seed=1)
    dx = layer.backward(tape, dy)

    def loss() -> float:
        return float(np.vdot(layer(x), dy))

    assert relative_error(dx, central_difference(loss, x)) < 1e-8
    for key, p in layer.params.items():
        assert relative_error(layer.grads[key], central_difference(loss, p)) < 1e-8, key


@given(
    shape=st.lists(st.integers(0, 5), max_size=3),
    F=st.integers(0, 70),
    O=st.integers(0, 70),
    bias=st.booleans(),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_linear_equals_its_twin(shape: list[int], F: int, O: int, bias: bool, dtype: Any) -> None:
    layer = gradcore.Linear(F, O, bias, dtype=np.float64, rng=np.random.default_rng(0))
    narrow = gradcore.Linear(F, O, bias, dtype=dtype)
    narrow.flat_params[...] = layer.flat_params
    layer.flat_params[...] = narrow.flat_params
    x, dy = example((*shape, F)).astype(dtype), example((*shape, O), seed=1).astype(dtype)
    weight, b = layer.params["weight"], layer.params.get("bias", np.zeros(O))
    y, tape = narrow.forward(x)
    narrow.grads["weight"][...] = 1  # backward adds
    dx = narrow.backward(tape, dy)
    want_dx, want_dw, want_db = reference.linear_backward(x.astype(np.float64), weight, dy.astype(np.float64))
    tolerance = 2e-6 if dtype == np.float32 else 1e-14
    assert y.dtype == dx.dtype == dtype
    assert relative_error(y, reference.linear_forward(x.astype(np.float64), weight, b)) < tolerance
    assert relative_error(dx, want_dx) < tolerance
    assert relative_error(narrow.grads["weight"], 1 + want_dw) < tolerance
    if bias:
        assert relative_error(narrow.grads["bias"], want_db) < tolerance


@pytest.mark.parametrize(
    "shape", [(300, 33, 65), (1, 300, 200), (700, 1, 1), (40, 200, 3), (1000, 70, 10), (150, 2048, 70), (150, 70, 2048)]
)
@both_dtypes
def test_larger_products_equal_their_twin(shape: tuple[int, int, int], dtype: Any) -> None:
    N, F, O = shape
    layer = gradcore.Linear(F, O, dtype=dtype, rng=np.random.default_rng(0))
    x, dy = example((N, F)).astype(dtype), example((N, O), seed=1).astype(dtype)
    y, tape = layer.forward(x)
    dx = layer.backward(tape, dy)
    wide = [a.astype(np.float64) for a in (x, layer.params["weight"], dy)]
    want_dx, want_dw, want_db = reference.linear_backward(*wide)
    tolerance = 1e-5 if dtype == np.float32 else 1e-14
    assert relative_error(y, reference.linear_forward(wide[0], wide[1], layer.params["bias"])) < tolerance
    assert relative_error(dx, want_dx) < tolerance
    assert relative_error(layer.grads["weight"], want_dw) < tolerance
    assert relative_error(layer.grads["bias"], want_db) < tolerance


@activations
@both_dtypes
def test_activations_equal_their_twins(name: str, dtype: Any) -> None:
    _, _, twin, constants, _ = ACTIVATIONS[name]
    layer = activation(name, dtype)
    x = example((3, 1001)).astype(dtype)
    x[0, :3] = 0, 1e-6, -1e-6
    dy = example(x.shape, seed=1).astype(dtype)
    y, tape = layer.forward(x)
    wide, dwide = x.astype(np.float64), dy.astype(np.float64)
    tolerance = 1e-6 if dtype == np.float32 else 1e-14
    assert relative_error(y, reference.activation_forward(twin, wide, *constants)) < tolerance
    want = reference.activation_backward(twin, wide, dwide, *constants)
    assert relative_error(layer.backward(tape, dy), want) < tolerance


# ---- accuracy and the ends of the range ----------------------------------------------------------------------------

# Beyond the twins: each against a formula that has no cancellation, in float64, relative at every single point.
SLOPES: dict[str, tuple[Callable[..., Any], Callable[[Array], Array], Callable[[Array], Array]]] = {
    "tanh": (gradcore.Tanh, np.tanh, lambda x: 1 / np.cosh(x) ** 2),
    "sigmoid": (gradcore.Sigmoid, scipy.special.expit, lambda x: scipy.special.expit(x) * scipy.special.expit(-x)),
    "elu": (gradcore.ELU, lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))), lambda x: np.exp(np.minimum(x, 0))),
    "softplus": (
        lambda **k: gradcore.Softplus(threshold=1e4, **k),
        lambda x: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))),
        scipy.special.expit,
    ),
}


@pytest.mark.parametrize("name", SLOPES)
@both_dtypes
def test_pointwise_accuracy(name: str, dtype: Any) -> None:
    make, value, slope = SLOPES[name]
    layer, eps = make(dtype=dtype), np.finfo(dtype).eps
    x = np.concatenate([np.linspace(-60, 60, 20000), np.geomspace(1e-8, 60, 999), -np.geomspace(1e-8, 60, 999)]).astype(
        dtype
    )
    y, tape = layer.forward(x)
    wide = x.astype(np.float64)
    assert np.max(np.abs(y - value(wide)) / np.abs(value(wide))) < 4 * eps
    dx = layer.backward(tape, np.ones_like(x))
    # from y alone, 1 - y^2 and y (1 - y) are known to a rounding of y near 1
    from_output = name in ("tanh", "sigmoid")
    assert np.max(np.abs(dx - slope(wide)) / (1 if from_output else slope(wide))) < 4 * eps


def normal_tail(x: Array) -> Array:
    """P(Z <= x), from erfc and, for the rounding of its argument, its derivative."""
    exact = -x.astype(np.longdouble) / np.sqrt(np.longdouble(2))
    z = exact.astype(np.float64)
    tail = np.array([math.erfc(value) / 2 for value in z])
    return tail - np.exp(-(z**2)) / np.sqrt(np.pi) * (exact - z).astype(np.float64)


@both_dtypes
def test_gelu_has_accurate_tails(dtype: Any) -> None:
    layer, eps = gradcore.GELU(dtype=dtype), np.finfo(dtype).eps
    low = -12.5 if dtype == np.float32 else -37
    x = np.concatenate([np.linspace(low, 8, 20001), [0.0]]).astype(dtype)
    y, tape = layer.forward(x)
    wide = x.astype(np.float64)
    tail, density = (
        normal_tail(wide),
        np.exp(-(x.astype(np.longdouble) ** 2) / 2).astype(np.float64) / np.sqrt(2 * np.pi),
    )
    fused = gradcore.info()["isa"] != "baseline"  # without fma the rounding of x^2 shows in exp(-x^2 / 2)
    allowed = 8 * eps * (1 if fused else 1 + wide**2)
    assert np.all(np.abs(y - wide * tail) <= allowed * np.abs(wide) * tail)
    scale = tail + np.abs(wide) * density  # the two parts of the slope cancel near -0.75
    assert np.all(np.abs(layer.backward(tape, np.ones_like(x)) - (tail + wide * density)) <= allowed * scale)


@activations
@both_dtypes
def test_huge_and_nonfinite_inputs(name: str, dtype: Any) -> None:
    """Saturates without NaN, as far as the function has a limit; a NaN stays where it is and is seen."""
    layer = activation(name, dtype)
    huge = np.array([1e30, -1e30, np.finfo(dtype).max, -np.finfo(dtype).max], dtype)
    y, tape = layer.forward(huge)
    dx = layer.backward(tape, np.ones_like(huge))
    assert np.isfinite(y).all() or name == "selu"  # whose scale is above 1
    assert np.isfinite(dx).all()
    assert np.abs(dx).max() <= 1.2
    x = example((40,)).astype(dtype)
    want, _ = layer.forward(x)
    x[17] = np.nan
    y, tape = layer.forward(x)
    assert np.isnan(y[17])
    assert same_bits(np.delete(y, 17), np.delete(want, 17))
    dx = layer.backward(tape, np.ones_like(x))
    assert np.isfinite(np.delete(dx, 17)).all()
    assert np.isnan(dx[17]) or name == "identity"


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64", "aarch64"), reason="no known flush-to-zero mode")
@both_dtypes
def test_every_layer_takes_subnormal_numbers_for_zeros(dtype: Any) -> None:
    """A signal that vanishes costs no layer more time than another, and none keeps what the one before has lost."""
    tiny = np.finfo(dtype).tiny
    moved = ("identity", "sigmoid", "softplus", "softplus(2, 3)")  # or not 0 at 0
    layers = [
        gradcore.Linear(5, 5, bias=False, dtype=dtype),
        gradcore.RNN(5, 5, bias=False, nonlinearity="relu", dtype=dtype),
        gradcore.LSTM(5, 5, bias=False, dtype=dtype),
        gradcore.GRU(5, 5, bias=False, dtype=dtype),
        *(activation(name, dtype) for name in ACTIVATIONS if name not in moved),
    ]
    for layer in layers:
        layer.flat_params[...] = 1
        x = np.full((3, 20, 5), tiny / 16, dtype)
        y, tape = layer.forward(x)
        assert not y.any(), layer
        assert not layer.backward(tape, x).any(), layer
        assert (x == tiny / 16).all()
        assert x[0, 0, 0] > 0


# ---- peers ---------------------------------------------------------------------------------------------------------


@pytest.mark.peers
@activations
def test_activations_equal_torch(name: str) -> None:
    torch = pytest.importorskip("torch")
    make, *_, arguments = ACTIVATIONS[name]
    x, dy = np.linspace(-12, 12, 4001), example((4001,), seed=1)
    layer = activation(name, np.float64)
    y, tape = layer.forward(x)
    tx = torch.tensor(x, requires_grad=True)
    ty = getattr(torch.nn, make.__name__)(**arguments)(tx)
    ty.backward(torch.tensor(dy))
    assert relative_error(y, ty.detach().numpy()) < 1e-10
    assert relative_error(layer.backward(tape, dy), tx.grad.numpy()) < 1e-10


@pytest.mark.peers
def test_a_model_equals_torch() -> None:
    torch = pytest.importorskip("torch")
    peer = torch.nn.Sequential(
        torch.nn.Linear(6, 9), torch.nn.ELU(), torch.nn.Linear(9, 5), torch.nn.Softplus(), torch.nn.Linear(5, 1)
    ).double()
    rng = np.random.default_rng(0)
    model = gradcore.MLP([6, 9, 5, 1], dtype=np.float64, rng=rng)
    model = gradcore.Sequential(
        copy.deepcopy(model.layers[0]), gradcore.ELU(), copy.deepcopy(model.layers[2]), gradcore.Softplus(),
        copy.deepcopy(model.layers[4]),
    )  # fmt: skip
    model.load_state_dict({k: v.numpy() for k, v in peer.state_dict().items()})
    x, dy = example((2, 7, 6)), example((2, 7, 1), seed=1)
    y, tape = model.forward(x)
    dx = model.backward(tape, dy)
    tx = torch.tensor(x, requires_grad=True)
    ty = peer(tx)
    ty.backward(torch.tensor(dy))
    assert relative_error(y, ty.detach().numpy()) < 1e-10
    assert relative_error(dx, tx.grad.numpy()) < 1e-10
    for name, p in peer.named_parameters():
        assert relative_error(model.grads[name], p.grad.numpy()) < 1e-10


# ---- what every layer holds ----------------------------------------------------------------------------------------


@layers
def test_same_bits_for_any_number_of_threads(name: str, with_thread_counts: Any) -> None:
    def run() -> list[bytes]:
        layer, x = LAYERS[name](), example((61, 97, 3))
        y, tape = layer.forward(x)
        dx = layer.backward(tape, example(y.shape, seed=1))
        return [a.tobytes() for a in (y, dx, layer.flat_grads)]

    first, *others = with_thread_counts(run)
    assert all(other == first for other in others)


@both_dtypes
def test_linear_has_the_same_bits_for_any_number_of_threads(dtype: Any, with_thread_counts: Any) -> None:
    def run() -> list[bytes]:
        layer = gradcore.Linear(71, 67, dtype=dtype, rng=np.random.default_rng(0))
        x = example((331, 71)).astype(dtype)
        y, tape = layer.forward(x)
        return [a.tobytes() for a in (y, layer.backward(tape, y), layer.flat_grads)]

    first, *others = with_thread_counts(run)
    assert all(other == first for other in others)


@pytest.mark.parametrize("layout", LAYOUTS)
@layers
def test_any_layout_of_the_inputs(name: str, layout: str) -> None:
    layer, x = LAYERS[name](), example()
    y, tape = layer.forward(x)
    dy = example(y.shape, seed=1)
    dx, grads = layer.backward(tape, dy), layer.flat_grads.copy()
    layer.zero_grad()
    other_x, other_dy = LAYOUTS[layout](x), LAYOUTS[layout](dy)
    other_y, other_tape = layer.forward(other_x)
    assert same_bits(other_y, y)
    assert same_bits(layer(other_x), y)
    assert same_bits(layer.backward(other_tape, other_dy), dx)
    assert same_bits(layer.flat_grads, grads)
    assert same_bits(other_x, x)
    assert same_bits(other_dy, dy)


@pytest.mark.parametrize("shape", [(0, 4, 3), (5, 0, 3), (0, 0, 3)])
@layers
def test_empty_batches(name: str, shape: tuple[int, ...]) -> None:
    layer, x = LAYERS[name](), example(shape)
    y, tape = layer.forward(x)
    dx = layer.backward(tape, np.ones_like(y))
    assert dx.shape == shape
    if name == "MLP" or name.startswith("Linear"):
        assert y.shape == (*shape[:-1], 2)
        assert not layer.flat_grads.any()


@layers
def test_wrong_inputs_name_the_argument_and_change_nothing(name: str) -> None:
    layer, x = LAYERS[name](), example()
    y, tape = layer.forward(x)
    with pytest.raises(TypeError, match="x: expected float64, got float32"):
        layer.forward(x.astype(np.float32))
    with pytest.raises(TypeError, match=r"dy: expected float64, got float32; convert it with dy\.astype"):
        layer.backward(tape, y.astype(np.float32))
    with pytest.raises(ValueError, match=r"dy: expected shape .*, got "):
        layer.backward(tape, np.zeros((*y.shape, 1)))
    with pytest.raises(ValueError, match="tape: expected a tape from this layer's forward"):
        LAYERS[name]().backward(tape, y)
    assert not layer.flat_grads.any()


@layers
def test_backward_twice_adds_twice(name: str) -> None:
    layer = LAYERS[name]()
    y, tape = layer.forward(example())
    first = layer.backward(tape, np.ones_like(y))
    once = layer.flat_grads.copy()
    assert same_bits(layer.backward(tape, np.ones_like(y)), first)
    assert relative_error(layer.flat_grads, 2 * once) < 1e-15
    layer.zero_grad()
    assert not layer.flat_grads.any()


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda a: pickle.loads(pickle.dumps(a))])
@layers
def test_copies_are_whole_and_apart(name: str, how: Callable[[Any], Any]) -> None:
    layer, x = LAYERS[name](), example()
    want = layer(x)
    twin = how(layer)
    assert same_bits(twin(x), want)
    for view in twin.params.values():
        assert np.shares_memory(view, twin.flat_params)
    twin.flat_params += 1
    assert same_bits(layer(x), want)
    if twin.params:
        assert not same_bits(twin(x), want)
    assert repr(twin) == repr(layer)


@layers
def test_buffers(name: str) -> None:
    layer = LAYERS[name]()
    assert list(layer.params) == list(layer.grads)
    for views, flat in ((layer.params, layer.flat_params), (layer.grads, layer.flat_grads)):
        assert flat.flags.c_contiguous
        assert flat.size == 0 or flat.ctypes.data % 64 == 0
        flat[...] = np.arange(flat.size)
        assert same_bits(np.concatenate([np.zeros(0), *(v.ravel() for v in views.values())]), flat)
    state = layer.state_dict()
    other = LAYERS[name]()
    other.load_state_dict(state)
    assert same_bits(other.flat_params, layer.flat_params)


# ---- Linear and the activations ------------------------------------------------------------------------------------


def test_linear_is_drawn_as_torch_draws_it() -> None:
    layer = gradcore.Linear(400, 50, dtype=np.float64, rng=np.random.default_rng(0))
    assert layer.params["weight"].shape == (50, 400)
    for p in layer.params.values():
        assert abs(p).max() <= 1 / 20
        assert abs(p).max() > 0.9 / 20
    assert abs(layer.params["weight"].var() - 1 / 1200) < 0.02 / 1200
    assert same_bits(
        layer.flat_params, gradcore.Linear(400, 50, dtype=np.float64, rng=np.random.default_rng(0)).flat_params
    )


def test_linear_refuses() -> None:
    layer = gradcore.Linear(3, 2)
    with pytest.raises(ValueError, match=r"x: expected shape \(\.\.\., 3\), got \(5, 4\)"):
        layer(np.zeros((5, 4), np.float32))
    with pytest.raises(ValueError, match=r"x: expected shape \(\.\.\., 3\), got \(\)"):
        layer(np.float32(1))
    with pytest.raises(TypeError, match="x: expected float32, got int64"):
        layer(np.zeros((5, 3), np.int64))
    with pytest.raises(TypeError, match="dtype"):
        gradcore.Linear(3, 2, dtype=np.float16)
    with pytest.raises(ValueError, match="in_features"):
        gradcore.Linear(-1, 2)
    with pytest.raises(TypeError, match="out_features"):
        gradcore.Linear(3, 2.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="rng"):
        gradcore.Linear(3, 2, rng=0.5)  # type: ignore[arg-type]


def test_activations_take_any_shape() -> None:
    for name in ACTIVATIONS:
        for shape in ((), (1,), (0,), (2, 1, 3, 1)):
            y, tape = activation(name).forward(np.ones(shape, np.float32))
            assert y.shape == tape.shape == shape, name


def test_activations_refuse() -> None:
    with pytest.raises(ValueError, match="approximate: expected 'none' or 'tanh', got 'erf'"):
        gradcore.GELU("erf")
    with pytest.raises(ValueError, match="beta"):
        gradcore.Softplus(0)
    with pytest.raises(TypeError, match="alpha"):
        gradcore.ELU("x")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"masked arrays"):
        gradcore.Tanh()(np.ma.masked_array(np.zeros(3, np.float32), [0, 1, 0]))


SETTABLE = [name for name, (_, _, _, _, settings) in ACTIVATIONS.items() if settings]


@pytest.mark.parametrize("again", [lambda layer: layer, copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
@pytest.mark.parametrize("name", SETTABLE)
def test_constants_set_later_take_effect(name: str, again: Callable[[Any], Any]) -> None:
    make, _, _, _, settings = ACTIVATIONS[name]
    want, changed = activation(name), make()
    x = np.linspace(-4, 4, 33, dtype=np.float32)
    y_before, tape_before = changed.forward(x)
    dx_before = changed.backward(tape_before, np.ones_like(x))
    for constant, value in settings.items():
        setattr(changed, constant, value)
        assert getattr(changed, constant) == value
    changed = again(changed)
    assert repr(changed) == repr(want)
    y, tape = changed.forward(x)
    want_y, want_tape = want.forward(x)
    assert same_bits(y, want_y)
    assert not same_bits(y, y_before)
    dx = changed.backward(tape, np.ones_like(x))
    assert same_bits(dx, want.backward(want_tape, np.ones_like(x)))
    assert not same_bits(dx, dx_before)


@pytest.mark.parametrize("name", SETTABLE)
def test_a_tape_has_the_constants_of_its_forward_pass(name: str) -> None:
    make, _, _, _, settings = ACTIVATIONS[name]
    layer, x = make(), np.linspace(-4, 4, 33, dtype=np.float32)
    tape = layer.forward(x)[1]
    want = layer.backward(tape, np.ones_like(x))
    for constant, value in settings.items():
        setattr(layer, constant, value)
    assert same_bits(layer.backward(tape, np.ones_like(x)), want)


@pytest.mark.parametrize(
    ("layer", "constant", "bad"),
    [
        (gradcore.LeakyReLU(0.2), "negative_slope", math.nan),
        (gradcore.LeakyReLU(0.2), "negative_slope", "0.1"),
        (gradcore.ELU(0.7), "alpha", True),
        (gradcore.Softplus(2, 3), "beta", 0),
        (gradcore.Softplus(2, 3), "threshold", None),
        (gradcore.GELU("tanh"), "approximate", True),
    ],
)
def test_bad_constants_are_refused_and_change_nothing(layer: Any, constant: str, bad: Any) -> None:
    before = repr(layer)
    with pytest.raises((TypeError, ValueError), match=f"{constant}: expected"):
        setattr(layer, constant, bad)
    assert repr(layer) == before


def test_reprs_say_how_the_layer_was_built() -> None:
    assert repr(gradcore.Linear(3, 2, bias=False)) == "Linear(3, 2, bias=False)"
    assert repr(gradcore.Sequential(gradcore.LeakyReLU(0.3))) == "Sequential(LeakyReLU(negative_slope=0.3))"


# ---- LastStep ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_first", [False, True])
def test_last_step_with_lengths(batch_first: bool) -> None:
    layer, x = gradcore.LastStep(batch_first, dtype=np.float64), example((5, 4, 3))
    lengths = [5, 0, 1, 3]
    given = x.swapaxes(0, 1) if batch_first else x
    y, tape = layer.forward(given, lengths)
    assert same_bits(y, np.stack([x[4, 0], np.zeros(3), x[0, 2], x[2, 3]]))
    dx = layer.backward(tape, y)
    want = np.zeros_like(x)
    want[4, 0], want[0, 2], want[2, 3] = y[0], y[2], y[3]
    assert same_bits(dx.swapaxes(0, 1) if batch_first else dx, want)


def test_last_step_refuses() -> None:
    x = np.zeros((5, 4, 3), np.float32)
    with pytest.raises(ValueError, match=r"x: expected shape \(T, B, F\), got \(4, 3\)"):
        gradcore.LastStep()(x[0])
    with pytest.raises(ValueError, match="lengths: expected 0 to 5, got 6 at position 2"):
        gradcore.LastStep()(x, [1, 2, 6, 3])


# ---- Sequential ----------------------------------------------------------------------------------------------------


def recurrent_model() -> gradcore.Sequential:
    rng = np.random.default_rng(0)
    return gradcore.Sequential(
        gradcore.Linear(3, 4, dtype=np.float64, rng=rng),
        gradcore.Sequential(gradcore.Tanh(), gradcore.GRU(4, 5, dtype=np.float64, rng=rng)),
        gradcore.LastStep(),
        gradcore.Linear(5, 2, dtype=np.float64, rng=rng),
    )


def test_members_and_model_share_memory() -> None:
    model = recurrent_model()
    assert list(model.params) == [
        *("0.weight", "0.bias"),
        *("1.1.weight_ih_l0", "1.1.weight_hh_l0", "1.1.bias_ih_l0", "1.1.bias_hh_l0"),
        *("3.weight", "3.bias"),
    ]
    model.flat_params[...] = np.arange(model.flat_params.size)
    assert same_bits(model.params["3.bias"], model.flat_params[-2:])
    assert same_bits(model.layers[3].params["bias"], model.flat_params[-2:])
    inner = model.layers[1].layers[1]
    inner.params["bias_hh_l0"][0] = -7
    assert model.params["1.1.bias_hh_l0"][0] == model.layers[1].params["1.bias_hh_l0"][0] == -7
    inner.flat_grads.fill(3)
    assert model.flat_grads.sum() == 3 * inner.flat_grads.size
    model.zero_grad()
    assert not inner.grads["weight_hh_l0"].any()


def test_lengths_and_step_clip_reach_the_members_that_take_them() -> None:
    model, x, lengths = recurrent_model(), example(), [5, 0, 2, 3]
    y, tape = model.forward(x, lengths=lengths)
    dy = example(y.shape, seed=1)
    dx = model.backward(tape, dy, step_clip=1e-3)
    first, (tanh, gru), last, head = model.layers[0], model.layers[1].layers, model.layers[2], model.layers[3]
    a, ta = first.forward(x)
    b, tb = tanh.forward(a)
    c, tc = gru.forward(b, lengths=lengths)
    d, td = last.forward(c, lengths)
    e, te = head.forward(d)
    assert same_bits(y, e)
    assert same_bits(model(x, lengths=lengths), e)
    want = model.flat_grads.copy()
    model.zero_grad()
    norms = [dy]
    for layer, its, options in (
        (head, te, {}),
        (last, td, {}),
        (gru, tc, {"step_clip": 1e-3}),
        (tanh, tb, {}),
        (first, ta, {}),
    ):
        norms.append(layer.backward(its, norms[-1], **options))
    assert same_bits(dx, norms[-1])
    assert same_bits(model.flat_grads, want)
    assert tc.telemetry.n_clipped.sum() > 0
    found = [np.linalg.norm(norms[i]) for i in (5, 4, 2, 1, 0)]  # the inner model's own norm is on its own tape
    assert np.allclose(tape.d_norm, found, rtol=1e-14)
    assert np.allclose(tape.tapes[1].d_norm, [np.linalg.norm(norms[i]) for i in (4, 3, 2)], rtol=1e-14)


def test_d_norm_neither_overflows_nor_underflows() -> None:
    for dtype, scale in ((np.float32, 1e30), (np.float32, 1e-30), (np.float64, 1e200), (np.float64, 1e-200)):
        model = gradcore.Sequential(gradcore.Identity(dtype=dtype))
        y, tape = model.forward(np.ones((3, 3), dtype))
        model.backward(tape, np.full_like(y, scale))
        assert np.allclose(tape.d_norm, 3 * float(dtype(scale)), rtol=1e-14, atol=0)
    y, tape = model.forward(np.ones((3, 3)))
    model.backward(tape, np.where(np.eye(3), np.nan, np.inf))
    assert np.isnan(tape.d_norm).all()
    model.backward(tape, np.where(np.eye(3), np.inf, 1))
    assert np.isinf(tape.d_norm).all()


def test_layers_without_parameters_take_the_dtype_of_the_model() -> None:
    model = gradcore.Sequential(
        gradcore.Sequential(gradcore.Tanh()), gradcore.Linear(3, 2, dtype=np.float64), gradcore.ReLU()
    )
    assert model.dtype == np.float64
    assert model(example()).dtype == np.float64
    with pytest.raises(
        TypeError, match=r"layers: expected one dtype, got float64 \(layers\[0\]\) and float32 \(layers\[1\]\)"
    ):
        gradcore.Sequential(gradcore.Linear(3, 2, dtype=np.float64), gradcore.Linear(2, 2))


def test_a_layer_belongs_to_one_model() -> None:
    layer = gradcore.Linear(3, 3)
    with pytest.raises(ValueError, match=r"layers\[2\]: is layers\[0\] again"):
        gradcore.Sequential(layer, gradcore.Tanh(), layer)
    model = gradcore.Sequential(layer)
    with pytest.raises(ValueError, match=r"layers\[1\]: Linear\(3, 3\) belongs to another model"):
        gradcore.Sequential(gradcore.Tanh(), layer)
    with pytest.raises(ValueError, match="belongs to another model"):
        gradcore.Sequential(model, layer)
    copied = copy.deepcopy(model)
    with pytest.raises(ValueError, match="belongs to another model"):
        gradcore.Sequential(copied.layers[0])
    assert gradcore.Sequential(copy.deepcopy(layer)).flat_params.size == 12
    kept = layer.flat_params.copy()
    del model
    gc.collect()
    assert same_bits(gradcore.Sequential(layer).flat_params, kept)


def test_sequential_refuses() -> None:
    with pytest.raises(TypeError, match=r"layers\[1\]: expected a layer, got ufunc"):
        gradcore.Sequential(gradcore.Tanh(), np.tanh)  # type: ignore[arg-type]
    model = gradcore.Sequential(gradcore.Linear(3, 2), gradcore.Sequential(gradcore.Tanh()))
    x = np.zeros((4, 3), np.float32)
    with pytest.raises(ValueError, match="lengths: no layer of this model takes it"):
        model.forward(x, lengths=[1, 2, 3, 4])
    with pytest.raises(ValueError, match="lengths: no layer of this model takes it"):
        model(x, lengths=[1, 2, 3, 4])
    y, tape = model.forward(x)
    with pytest.raises(ValueError, match="step_clip: no layer of this model takes it"):
        model.backward(tape, y, step_clip=1.0)
    with pytest.raises(KeyError, match="missing"):
        model.load_state_dict({"0.weight": np.zeros((2, 3), np.float32)})


def test_an_empty_model_is_the_identity() -> None:
    x = np.ones(3, np.float32)
    y, tape = gradcore.Sequential().forward(x)
    assert same_bits(y, x)
    assert tape.tapes == ()


# ---- MLP -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("init", ["xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal", "orthogonal"])
@pytest.mark.parametrize(
    "activation", ["identity", "tanh", "sigmoid", "relu", "leaky_relu", "elu", "selu", "gelu", "softplus", "silu"]
)
def test_mlp_initializes_with_the_gain_of_its_activation(activation: str, init: str) -> None:
    n_in, n_out = 300, 200
    model = gradcore.MLP([n_in, n_out, 3], activation, init, dtype=np.float64, rng=np.random.default_rng(0))
    gain = gradcore.init.calculate_gain(activation)
    variance = gain**2 / {"xavier": (n_in + n_out) / 2, "kaiming": n_in, "orthogonal": n_in}[init.partition("_")[0]]
    assert abs(model.params["0.weight"].var() / variance - 1) < 0.03
    assert not model.params["0.bias"].any()
    assert type(model.layers[1]).__name__.lower() == activation.replace("_", "")
    assert len(model.layers) == 3


@pytest.mark.parametrize("init", ["lecun_normal", "eye", "uniform", "normal"])
def test_mlp_with_initializers_that_take_no_gain(init: str) -> None:
    model = gradcore.MLP([30, 20, 10], init=init, bias=False, rng=np.random.default_rng(0))
    want = getattr(gradcore.init, init + "_")
    given = {} if init == "eye" else {"rng": np.random.default_rng(1)}
    assert list(model.params) == ["0.weight", "2.weight"]
    assert abs(model.params["0.weight"].std() / want(np.empty((20, 30), np.float32), **given).std() - 1) < 0.2


def test_mlp_refuses() -> None:
    with pytest.raises(ValueError, match=r"sizes: expected at least two, got \[3\]"):
        gradcore.MLP([3])
    with pytest.raises(TypeError, match=r"sizes\[1\]: expected an integer, got float"):
        gradcore.MLP([3, 2.5])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"activation: expected one of identity, tanh.*, got 'swish'"):
        gradcore.MLP([3, 2], "swish")
    with pytest.raises(ValueError, match=r"init: expected one of xavier_uniform.*, got 'constant'"):
        gradcore.MLP([3, 2], init="constant")
    with pytest.raises(TypeError, match="rng"):
        gradcore.MLP([3, 2], rng=True)


def test_he_keeps_the_signal_of_a_deep_relu_network_and_xavier_loses_it() -> None:
    """Backward through 30 layers of 200 units: He keeps the norm within a factor, Xavier halves its square a layer."""
    norms = {}
    for init in ("kaiming_normal", "xavier_normal"):
        model = gradcore.MLP([200] * 31, "relu", init, dtype=np.float64, rng=np.random.default_rng(0))
        if init == "xavier_normal":
            model.flat_params /= gradcore.init.calculate_gain("relu")  # Xavier's own gain, 1
        y, tape = model.forward(example((50, 200)))
        model.backward(tape, example(y.shape, seed=1))
        assert tape.d_norm is not None
        norms[init] = tape.d_norm[0] / tape.d_norm[-1]
    assert 0.1 < norms["kaiming_normal"] < 10
    assert norms["xavier_normal"] / norms["kaiming_normal"] == pytest.approx(2 ** (-30 / 2), rel=1e-6)


# ---- where the outputs live ----------------------------------------------------------------------------------------


def test_memory_of_an_output_is_used_again_only_when_every_view_is_gone() -> None:
    layer = gradcore.Tanh()
    x = np.ones((300, 300), np.float32)
    y = layer(x)
    where, view = y.ctypes.data, y[5:, ::2]
    del y
    assert layer(x).ctypes.data != where
    kept = view.copy()
    for _ in range(10):
        layer(-x)
    assert same_bits(view, kept)
    del view
    assert where in {a.ctypes.data for a in [layer(x) for _ in range(5)]}


def test_layers_run_in_several_python_threads_at_once() -> None:
    model = gradcore.MLP([64, 128, 64], "gelu", rng=np.random.default_rng(0))
    inputs = [np.random.default_rng(i).standard_normal((200, 64), dtype=np.float32) for i in range(8)]
    want = [model(x) for x in inputs]
    with ThreadPoolExecutor(4) as threads:
        for _ in range(10):
            assert all(map(same_bits, threads.map(model, inputs), want))


@pytest.mark.parametrize("layer", [gradcore.Linear(2, 3), gradcore.Tanh(), gradcore.LastStep(), gradcore.GRU(2, 3)])
def test_what_is_no_array_is_refused_by_name(layer: Any) -> None:
    for x in ([[1.0, 2.0], [3.0]], np.ma.zeros((2, 2), np.float32)):
        with pytest.raises(TypeError, match=r"^x: "):
            layer(x)
    for state_dict in (None, [1]):
        with pytest.raises(TypeError, match=r"^state_dict: expected a mapping"):
            layer.load_state_dict(state_dict)


def test_a_size_beyond_memory_is_refused_with_the_bound() -> None:
    with pytest.raises(ValueError, match=r"in_features: expected an integer of less than 2\*\*40, got 1099511627776"):
        gradcore.Linear(2**40, 1)


# ---- neighbors in a model ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["RNN", "LSTM", "GRU"])
def test_layers_must_agree_on_the_order_of_axes(cell: str) -> None:
    recurrent = functools.partial(getattr(gradcore, cell), 3, 3)
    message = r"layers\[{}\]: has batch_first={}, and layers\[{}\] below it has batch_first={}; give both the same"
    with pytest.raises(ValueError, match=message.format(1, False, 0, True)):
        gradcore.Sequential(recurrent(batch_first=True), gradcore.LastStep())
    with pytest.raises(ValueError, match=message.format(3, True, 0, False)):
        gradcore.Sequential(recurrent(), gradcore.Tanh(), gradcore.Linear(3, 3), gradcore.LastStep(batch_first=True))
    with pytest.raises(ValueError, match=message.format(1, False, 0, True)):
        gradcore.Sequential(recurrent(batch_first=True), recurrent())
    inner = gradcore.Sequential(gradcore.Linear(3, 3), gradcore.LastStep())
    with pytest.raises(ValueError, match=message.format(r"1\]\.layers\[1", False, r"0\]\.layers\[0", True)):
        gradcore.Sequential(gradcore.Sequential(recurrent(batch_first=True)), inner)
    head = gradcore.LastStep(batch_first=True), gradcore.Linear(3, 1)
    model = gradcore.Sequential(recurrent(batch_first=True), *head)
    assert model(np.ones((6, 9, 3), np.float32)).shape == (6, 1)


def test_what_is_refused_is_left_free() -> None:
    lstm = gradcore.LSTM(3, 3, batch_first=True)
    with pytest.raises(ValueError, match="batch_first"):
        gradcore.Sequential(lstm, gradcore.LastStep())
    gradcore.Sequential(lstm, gradcore.LastStep(batch_first=True))


def test_the_last_step_of_a_reverse_direction_is_refused() -> None:
    message = r"layers\[{}\]: LastStep takes .* where the reverse direction of layers\[0\] has read one step only"
    with pytest.raises(ValueError, match=message.format(1)):
        gradcore.Sequential(gradcore.LSTM(3, 4, bidirectional=True), gradcore.LastStep())
    with pytest.raises(ValueError, match=message.format(3)):
        gradcore.Sequential(
            gradcore.LSTM(3, 4, bidirectional=True), gradcore.Linear(8, 4), gradcore.ReLU(), gradcore.LastStep()
        )
    # A layer of one direction has read all outputs of the one below at its last step.
    model = gradcore.Sequential(gradcore.LSTM(3, 4, bidirectional=True), gradcore.GRU(8, 2), gradcore.LastStep())
    assert model(np.ones((6, 9, 3), np.float32)).shape == (9, 2)


class Turned(gradcore.Sequential):
    """Layers that see (B, T, F) as (T, B, F)."""

    def forward(self, x: Any, lengths: Any = None) -> Any:
        y, tape = super().forward(np.ascontiguousarray(x.swapaxes(0, 1)), lengths)
        return np.ascontiguousarray(y.swapaxes(0, 1)), tape


def test_of_a_forward_of_its_own_nothing_is_known() -> None:
    turned = Turned(gradcore.GRU(3, 4))
    model = gradcore.Sequential(gradcore.GRU(3, 3, batch_first=True), turned, gradcore.LastStep(batch_first=True))
    assert model.forward(np.ones((5, 7, 3), np.float32))[0].shape == (5, 4)


# ---- a chain, and what is none -------------------------------------------------------------------------------------


class Residual(gradcore.Sequential):
    """x + f(x)"""

    def forward(self, x: Any, lengths: Any = None) -> Any:
        y, tape = super().forward(x, lengths=lengths)
        return x + y, tape

    def backward(self, tape: Any, dy: Any, **options: Any) -> Any:
        return dy + super().backward(tape, dy, **options)


class Counted(gradcore.Sequential):
    """A chain whose backward does something besides."""

    n = 0

    def backward(self, tape: Any, dy: Any, **options: Any) -> Any:
        self.n += 1
        return super().backward(tape, dy, **options)


@pytest.mark.parametrize(("kind", "chain"), [(gradcore.Sequential, True), (Counted, True), (Residual, False)], ids=str)
def test_a_tape_says_whether_its_model_is_a_chain(kind: Any, chain: bool) -> None:
    model = kind(gradcore.Linear(3, 3), gradcore.Tanh())
    _, tape = model.forward(np.ones((2, 3), np.float32))
    assert model.is_chain is tape.is_chain is chain
    assert gradcore.MLP([3, 2]).is_chain


def test_a_model_of_residual_blocks_is_not_judged_as_a_chain() -> None:
    """Sixty blocks whose branches shrink the gradient by far, so that their product would be about 1e-90."""
    rng = np.random.default_rng(0)
    blocks = [
        Residual(gradcore.Linear(64, 64, rng=rng), gradcore.ReLU(), gradcore.Linear(64, 64, rng=rng)) for _ in range(60)
    ]
    model = gradcore.Sequential(*blocks)
    y, tape = model.forward(rng.standard_normal((32, 64)).astype(np.float32))
    model.backward(tape, np.ones_like(y))
    branches = [block.d_norm[0] / block.d_norm[-1] for block in tape.tapes]
    assert np.sum(np.log(branches)) < -40
    assert 0.1 < tape.d_norm[0] / tape.d_norm[-1] < 10
    monitor = GradientMonitor()
    for step in range(10):
        monitor.update(step, 1.0, 1.0, model, tape)
    assert [finding.kind for finding in monitor.findings if "layers" in finding.kind] == []
    chain = gradcore.Sequential(*[copy.deepcopy(layer) for block in blocks for layer in block])
    y, tape = chain.forward(rng.standard_normal((32, 64)).astype(np.float32))
    chain.backward(tape, np.ones_like(y))
    for step in range(10):
        monitor.update(step, 1.0, 1.0, chain, tape)
    assert "vanishing_in_layers" in [finding.kind for finding in monitor.findings]


def test_a_residual_block_that_grows_the_gradient_is_reported() -> None:
    blocks = []
    for _ in range(20):
        linear = gradcore.Linear(8, 8, bias=False)
        linear.params["weight"] = 2 * np.eye(8, dtype=np.float32)  # x + 2 x: a factor of 3 a block
        blocks.append(Residual(linear))
    model = gradcore.Sequential(*blocks)
    y, tape = model.forward(np.ones((4, 8), np.float32))
    model.backward(tape, np.ones_like(y))
    monitor = GradientMonitor()
    for step in range(10):
        monitor.update(step, 1.0, 1.0, model, tape)
    (found,) = [finding for finding in monitor.findings if finding.kind == "exploding_in_layers"]
    assert found.numbers["log_growth_per_step"] == pytest.approx(math.log(3), rel=1e-5)
    assert found.numbers["steps"] == 20


# ---- a model as a collection of layers -----------------------------------------------------------------------------


def test_a_model_is_a_collection_of_its_layers() -> None:
    layers = gradcore.Linear(3, 4), gradcore.Tanh(), gradcore.Linear(4, 2)
    model = gradcore.Sequential(*layers)
    assert len(model) == 3
    assert tuple(model) == layers
    assert model[0] is layers[0]
    assert model[-1] is layers[2]
    assert model[1:] == layers[1:]
    with pytest.raises(IndexError):
        model[3]
    before = model.flat_params.copy()
    for opt in (gradcore.optim.SGD(model, lr=1.0), gradcore.optim.SGD([{"params": model}], lr=1.0)):
        model.flat_grads.fill(1)
        opt.step()
    np.testing.assert_allclose(model.flat_params, before - 2, rtol=1e-6)
    assert gradcore.grad_norm(model) == pytest.approx(math.sqrt(model.flat_grads.size))


REPRS = {
    "Linear(3, 2, bias=False)", "Linear(3, 2, dtype='float64')", "Tanh()", "Softplus(beta=2.0, threshold=3.0)",
    "GELU(approximate='tanh')", "ELU()", "LeakyReLU(negative_slope=0.3)", "LastStep(batch_first=True)",
    "RNN(3, 4, num_layers=2, nonlinearity='relu', bias=False)", "GRU(3, 4, batch_first=True)",
    "LSTM(3, 4, num_layers=2, dropout=0.5, bidirectional=True, dtype='float64')", "MLP((3, 4, 2))",
    "MLP((3, 2), activation='tanh', init='orthogonal', bias=False, dtype='float64')",
    "Sequential(GRU(3, 4), LastStep(), Sequential(Linear(4, 2)), MLP((2, 1)))", "Sequential()",
}  # fmt: skip


@pytest.mark.parametrize("text", sorted(REPRS))
def test_a_repr_makes_the_layer(text: str) -> None:
    layer = eval(text, vars(gradcore).copy())
    assert repr(layer) == text
    assert repr(copy.deepcopy(layer)) == text
    assert repr(pickle.loads(pickle.dumps(layer))) == text


def test_the_repr_of_tapes_is_short() -> None:
    model = gradcore.Sequential(gradcore.LSTM(3, 8), gradcore.LastStep(), gradcore.Linear(8, 1), gradcore.Tanh())
    _, tape = model.forward(np.ones((7, 2, 3), np.float32))
    assert repr(tape) == "<SequentialTape of Sequential: 4 layers>"
    assert [repr(member) for member in tape.tapes] == [
        "<RecurrentTape of LSTM(3, 8): T=7, B=2>",
        "<Tape of LastStep(): y (2, 8)>",
        "<Tape of Linear(8, 1): y (2, 1)>",
        "<Tape of Tanh(): y (2, 1)>",
    ]
