"""LayerNorm, RMSNorm, BatchNorm: against twins, PyTorch and closed forms, at the ends of the range, and in training."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tools import Array, relative_error, same_bits

import gradcore
from gradcore import reference

pytestmark = pytest.mark.kernels

both_dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def layer_norm(shape: Any, **options: Any) -> Any:
    return gradcore.LayerNorm(shape, **options)


def rms_norm(shape: Any, **options: Any) -> Any:
    return gradcore.RMSNorm(shape, eps=1e-5, **options)


def batch_norm(shape: Any, **options: Any) -> Any:
    return gradcore.BatchNorm(shape if isinstance(shape, int) else shape[-1], **options)


# Each layer, its twin forward and its twin backward, both with weight and bias.
Twin = Callable[..., Any]
KINDS: dict[str, tuple[Callable[..., Any], Twin, Twin]] = {
    "LayerNorm": (layer_norm, reference.layer_norm_forward, reference.layer_norm_backward),
    "RMSNorm": (
        rms_norm,
        lambda x, w, b: reference.rms_norm_forward(x, w, 1e-5),
        lambda x, w, dy: reference.rms_norm_backward(x, w, dy, 1e-5),
    ),
    "BatchNorm": (batch_norm, reference.batch_norm_forward, reference.batch_norm_backward),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def filled(layer: Any) -> Any:
    """With random parameters, about one and about zero."""
    rng = np.random.default_rng(7)
    for p in layer.params.values():
        p[...] += 0.3 * rng.standard_normal(p.shape)
    return layer


def example(shape: tuple[int, ...], dtype: Any = np.float64, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(0.5, 1.5, shape).astype(dtype)


def compare_with_twin(kind: str, layer: Any, x: Array, dy: Array, tolerance: float) -> None:
    """y, dx and the gradients of the parameters, each against the twin in float64."""
    _, forward, backward = KINDS[kind]
    shape = x.shape[-1:] if kind == "BatchNorm" else layer.normalized_shape
    wide = [a.astype(np.float64) for a in (x, layer.params.get("weight", np.ones(shape)))]
    y, tape = layer.forward(x)
    for grad in layer.grads.values():
        grad[...] = 1  # backward adds
    dx = layer.backward(tape, dy)
    assert y.dtype == dx.dtype == x.dtype
    assert relative_error(y, forward(*wide, layer.params.get("bias", np.zeros(shape)))) < tolerance
    want_dx, *want = backward(*wide, dy.astype(np.float64))
    assert relative_error(dx, want_dx) < tolerance * 3
    for name, grad in zip(("weight", "bias"), want, strict=False):
        if name in layer.grads:
            assert relative_error(layer.grads[name], 1 + grad) < tolerance, name


@given(
    kind=st.sampled_from(list(KINDS)),
    lead=st.lists(st.integers(0, 7), max_size=2),
    F=st.integers(2, 80),
    affine=st.booleans(),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_equal_to_the_twin(kind: str, lead: list[int], F: int, affine: bool, dtype: Any) -> None:
    if kind == "BatchNorm":
        lead = [*lead, 9]
    if dtype == np.float32:  # of two or three numbers differences alone are left, with few digits
        F += 8
    option = {"affine" if kind == "BatchNorm" else "elementwise_affine": affine}
    layer = filled(KINDS[kind][0](F, dtype=dtype, **option))
    assert bool(layer.params) is affine
    x, dy = example((*lead, F), dtype), example((*lead, F), dtype, seed=1)
    if x.size:
        compare_with_twin(kind, layer, x, dy, 1e-5 if dtype == np.float32 else 1e-11)


@pytest.mark.parametrize("shape", [(1000, 130), (3, 5001), (5000, 3), (130, 70, 33), (257, 600)])
@kinds
@both_dtypes
def test_larger_ones_equal_their_twin(kind: str, shape: tuple[int, ...], dtype: Any) -> None:
    layer = filled(KINDS[kind][0](shape[-1], dtype=dtype))
    dy = example(shape, dtype, seed=1)
    compare_with_twin(kind, layer, example(shape, dtype), dy, 2e-6 if dtype == np.float32 else 1e-13)


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"elementwise_affine": False}], ids=str)
@both_dtypes
def test_several_axes(options: Any, dtype: Any) -> None:
    layer = filled(gradcore.LayerNorm((4, 5), dtype=dtype, **options))
    tolerance = 2e-6 if dtype == np.float32 else 1e-14
    compare_with_twin("LayerNorm", layer, example((6, 4, 5), dtype), example((6, 4, 5), dtype, 1), tolerance)
    rms = filled(gradcore.RMSNorm([4, 5], eps=1e-5, dtype=dtype))
    compare_with_twin("RMSNorm", rms, example((6, 4, 5), dtype), example((6, 4, 5), dtype, 1), tolerance)


# ---- accuracy and the ends of the range ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["LayerNorm", "BatchNorm"])
@pytest.mark.parametrize("shape", [(50, 3000), (3000, 50), (40, 17)])
@both_dtypes
def test_a_mean_far_larger_than_the_deviation(kind: str, shape: tuple[int, int], dtype: Any) -> None:
    """With differences to a mean of float32, or sums of squares, the result would be off by 1e-4 or be noise."""
    tolerance = 1e-5 if dtype == np.float32 else 1e-11
    x = np.random.default_rng(0).normal(1e4, 1, shape).astype(dtype)
    exact = x.astype(np.longdouble)  # the twin in more digits than the kernel has
    layer = KINDS[kind][0](shape[-1], dtype=dtype)
    y, tape = layer.forward(x)
    want = KINDS[kind][1](exact, np.ones(shape[-1], np.longdouble), np.zeros(shape[-1], np.longdouble))
    assert np.abs(y - want).max() < tolerance
    dy = example(shape, dtype, seed=1)
    want_dx, want_dw, _ = KINDS[kind][2](exact, np.ones(shape[-1], np.longdouble), dy.astype(np.longdouble))
    assert np.abs(layer.backward(tape, dy) - want_dx).max() < 10 * tolerance
    assert relative_error(layer.grads["weight"], want_dw) < 10 * tolerance  # the mean itself is rounded


@pytest.mark.parametrize("scale", [1e-30, 1e-15, 1e15, 1e30])
@kinds
def test_numbers_whose_squares_have_no_place_in_float32(kind: str, scale: float) -> None:
    make = {"LayerNorm": gradcore.LayerNorm, "RMSNorm": gradcore.RMSNorm, "BatchNorm": gradcore.BatchNorm}[kind]
    layer, x, dy = make(9, eps=0.0), example((20, 9), np.float32), example((20, 9), np.float32, seed=1)
    y, tape = layer.forward(x)
    dx = layer.backward(tape, dy)
    scaled, tape = layer.forward((x.astype(np.float64) * scale).astype(np.float32))
    assert relative_error(scaled, y) < 1e-6
    assert relative_error(layer.backward(tape, dy).astype(np.float64) * scale, dx) < 1e-5


@kinds
@both_dtypes
def test_equal_numbers_have_no_variance(kind: str, dtype: Any) -> None:
    layer, x = KINDS[kind][0](70, dtype=dtype), np.full((40, 70), 1e4 / 3, dtype)
    y, tape = layer.forward(x)
    assert np.abs(y - (1 if kind == "RMSNorm" else 0)).max() < 1e-4
    assert np.isfinite(layer.backward(tape, example(x.shape, dtype))).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@kinds
@both_dtypes
def test_what_is_not_finite_stays_in_its_row_or_column(kind: str, bad: float, dtype: Any) -> None:
    layer, x = KINDS[kind][0](40, dtype=dtype), example((30, 40), dtype)
    want, tape = layer.forward(x)
    want_dx = layer.backward(tape, want)
    x[11, 17] = bad
    y, tape = layer.forward(x)
    dx = layer.backward(tape, want)
    assert np.isnan(y[11, 17])
    assert np.isnan(dx[11, 17])
    axis, i = (1, 17) if kind == "BatchNorm" else (0, 11)
    assert same_bits(np.delete(y, i, axis), np.delete(want, i, axis))
    assert same_bits(np.delete(dx, i, axis), np.delete(want_dx, i, axis))


@kinds
@both_dtypes
@pytest.mark.parametrize("shape", [(700, 130), (9, 3000)])
def test_same_bits_for_any_number_of_threads(
    kind: str, dtype: Any, shape: tuple[int, int], with_thread_counts: Any
) -> None:
    def run() -> list[bytes]:
        layer, x = filled(KINDS[kind][0](shape[1], dtype=dtype)), example(shape, dtype)
        y, tape = layer.forward(x)
        dx = layer.backward(tape, example(shape, dtype, seed=1))
        return [a.tobytes() for a in (y, dx, layer.flat_grads, layer(x))]

    first, *others = with_thread_counts(run)
    assert all(other == first for other in others)


@kinds
def test_nothing_in_and_out(kind: str) -> None:
    layer = KINDS[kind][0](0)
    y, tape = layer.forward(np.zeros((5, 0), np.float32))
    assert layer.backward(tape, y).shape == layer(y).shape == (5, 0)


# ---- the constructors ------------------------------------------------------------------------------------------------


def test_parameters_begin_as_ones_and_zeros() -> None:
    assert {k: v.tolist() for k, v in gradcore.LayerNorm(2).params.items()} == {"weight": [1, 1], "bias": [0, 0]}
    assert list(gradcore.LayerNorm(2, bias=False).params) == ["weight"]
    assert list(gradcore.LayerNorm(2, elementwise_affine=False).params) == []
    assert {k: v.tolist() for k, v in gradcore.RMSNorm(2).params.items()} == {"weight": [1, 1]}
    assert gradcore.RMSNorm((3, 2)).params["weight"].shape == (3, 2)
    assert {k: v.tolist() for k, v in gradcore.BatchNorm(1).state_dict().items()} == {
        "weight": [1], "bias": [0], "running_mean": [0], "running_var": [1], "num_batches_tracked": 0
    }  # fmt: skip
    assert next(iter(gradcore.BatchNorm(1, affine=False).state_dict())) == "running_mean"
    assert gradcore.BatchNorm(1, track_running_stats=False).buffers == {}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: gradcore.LayerNorm(-1), ValueError, "normalized_shape: expected an integer of at least 0, got -1"),
        (lambda: gradcore.LayerNorm(2.0), TypeError, "normalized_shape: expected an integer or a sequence of integers"),
        (lambda: gradcore.LayerNorm((3, 2.0)), TypeError, r"normalized_shape\[1\]: expected an integer, got float"),
        (lambda: gradcore.RMSNorm(()), ValueError, "normalized_shape: expected at least one axis, got none"),
        (lambda: gradcore.RMSNorm(3, eps=-1), ValueError, "eps: expected a number at least 0"),
        (lambda: gradcore.LayerNorm(3, None), TypeError, "eps: expected a number, got NoneType"),
        (lambda: gradcore.LayerNorm(3, bias="no"), TypeError, "bias: expected True or False"),
        (lambda: gradcore.BatchNorm((3,)), TypeError, "num_features: expected an integer, got tuple"),
        (lambda: gradcore.BatchNorm(3, momentum=1.5), ValueError, "momentum: expected a number at least 0 and at most"),
        (lambda: gradcore.BatchNorm(3, dtype="i4"), TypeError, "dtype: expected float32 or float64"),
    ],
)  # fmt: skip
def test_constructors_refuse(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"x: expected shape \(\.\.\., 4, 3\), got \(3, 4\)"):
        gradcore.LayerNorm((4, 3))(np.zeros((3, 4), np.float32))
    with pytest.raises(
        ValueError, match=r"x: expected more than one sample, to take the variance of, got shape \(1, 3\)"
    ):
        gradcore.BatchNorm(3).forward(np.zeros((1, 3), np.float32))
    assert gradcore.BatchNorm(3)(np.zeros((1, 3), np.float32)).shape == (1, 3)


def test_the_default_eps_of_rms_norm_is_that_of_the_dtype() -> None:
    for dtype in (np.float32, np.float64):
        root = float(np.sqrt(np.finfo(dtype).eps))
        y = gradcore.RMSNorm(3, dtype=dtype)(np.full((1, 3), root, dtype))
        assert y[0, 0] == pytest.approx(np.sqrt(0.5), rel=1e-6)
    model = gradcore.Sequential(gradcore.RMSNorm(2, elementwise_affine=False), gradcore.Linear(2, 2, dtype="f8"))
    assert model[0](np.full((1, 2), root))[0, 0] == pytest.approx(np.sqrt(0.5))


# ---- the running statistics ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.1, 1.0, None])
def test_running_statistics(momentum: float | None) -> None:
    layer = gradcore.BatchNorm(4, momentum=momentum, dtype=np.float64)
    mean, var = np.zeros(4), np.ones(4)
    for n in range(1, 5):
        x = example((6, 5, 4), seed=n)
        layer.forward(x)
        rate = 1 / n if momentum is None else momentum
        rows = x.reshape(-1, 4)
        mean += rate * (rows.mean(axis=0) - mean)
        var += rate * (rows.var(axis=0, ddof=1) - var)
    assert layer.buffers["num_batches_tracked"] == 4
    assert relative_error(layer.buffers["running_mean"], mean) < 1e-13
    assert relative_error(layer.buffers["running_var"], var) < 1e-13
    layer = filled(layer)
    want = (x - mean) / np.sqrt(var + layer.eps) * layer.params["weight"] + layer.params["bias"]
    assert relative_error(layer(x), want) < 1e-13
    before = layer.state_dict()
    layer(x)  # inference changes nothing
    layer.forward(x[:0])  # nor does a batch of nothing
    with pytest.raises(ValueError, match="more than one sample"):
        layer.forward(x[:1, :1])
    assert all(same_bits(value, before[name]) for name, value in layer.state_dict().items())


def test_without_running_statistics_inference_takes_those_of_its_batch() -> None:
    layer, x = gradcore.BatchNorm(4, track_running_stats=False, dtype=np.float64), example((6, 4))
    assert same_bits(layer(x), layer.forward(x)[0])
    assert abs(layer(x).mean(axis=0)).max() < 1e-15


def test_a_variance_beyond_float32_is_infinite_and_no_warning() -> None:
    layer, x = gradcore.BatchNorm(2), np.float32([[1e30, 1], [-1e30, 2]])
    y, _ = layer.forward(x)
    assert np.isfinite(y).all()
    assert layer.buffers["running_var"].tolist() == [np.inf, pytest.approx(0.95)]


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda a: pickle.loads(pickle.dumps(a))])
@kinds
def test_copies_go_on_alike_and_apart(kind: str, how: Any) -> None:
    layer, x = filled(KINDS[kind][0](3)), example((6, 3), np.float32)
    layer.forward(x)
    other = how(layer)
    assert repr(other) == repr(layer)
    assert same_bits(other(x), layer(x))
    before = layer.state_dict()
    y, tape = other.forward(x)
    other.backward(tape, y)
    assert all(same_bits(value, before[name]) for name, value in layer.state_dict().items())
    assert not layer.flat_grads.any()


@kinds
def test_it_trains_in_a_model_and_goes_on_from_a_checkpoint(kind: str, tmp_path: Path) -> None:
    def build() -> tuple[Any, Any]:
        model = gradcore.Sequential(gradcore.Linear(3, 8, rng=0), KINDS[kind][0](8), gradcore.Linear(8, 1, rng=1))
        return model, gradcore.optim.Adam(model, lr=0.01)

    x = example((40, 3), np.float32)
    batches = [(x, x[:, :1] * x[:, 1:2])] * 20
    model, opt = build()
    history = gradcore.fit(model, batches, gradcore.losses.mse, opt, epochs=2)
    assert history.loss[-1] < 0.7 * history.loss[0]
    gradcore.save_checkpoint(tmp_path / "run", model=model, optimizer=opt)
    other, again = build()
    gradcore.load_checkpoint(tmp_path / "run", model=other, optimizer=again)
    for each, its in ((model, opt), (other, again)):
        gradcore.fit(each, batches, gradcore.losses.mse, its, epochs=1)
    assert all(same_bits(value, model.state_dict()[name]) for name, value in other.state_dict().items())


def test_order_of_axes_is_passed_on() -> None:
    with pytest.raises(ValueError, match="has batch_first=False"):
        gradcore.Sequential(gradcore.GRU(3, 4, batch_first=True), gradcore.LayerNorm(4), gradcore.LastStep())


# ---- peers -----------------------------------------------------------------------------------------------------------

PEERS: dict[str, tuple[Callable[[Any], Any], Callable[[], Any]]] = {
    "LayerNorm": (lambda nn: nn.LayerNorm(5), lambda: gradcore.LayerNorm(5, dtype="f8")),
    "LayerNorm of two axes": (lambda nn: nn.LayerNorm((4, 5)), lambda: gradcore.LayerNorm((4, 5), dtype="f8")),
    "LayerNorm without bias": (
        lambda nn: nn.LayerNorm(5, 1e-3, bias=False),
        lambda: gradcore.LayerNorm(5, 1e-3, bias=False, dtype="f8"),
    ),
    "LayerNorm alone": (
        lambda nn: nn.LayerNorm(5, elementwise_affine=False),
        lambda: gradcore.LayerNorm(5, elementwise_affine=False, dtype="f8"),
    ),
    "RMSNorm": (lambda nn: nn.RMSNorm(5), lambda: gradcore.RMSNorm(5, dtype="f8")),
    "RMSNorm of two axes": (lambda nn: nn.RMSNorm((4, 5), 0.1), lambda: gradcore.RMSNorm((4, 5), 0.1, dtype="f8")),
    "BatchNorm": (lambda nn: nn.BatchNorm1d(5), lambda: gradcore.BatchNorm(5, dtype="f8")),
    "BatchNorm, average": (
        lambda nn: nn.BatchNorm1d(5, momentum=None),
        lambda: gradcore.BatchNorm(5, momentum=None, dtype="f8"),
    ),
    "BatchNorm of batches": (
        lambda nn: nn.BatchNorm1d(5, 0.1, affine=False, track_running_stats=False),
        lambda: gradcore.BatchNorm(5, 0.1, affine=False, track_running_stats=False, dtype="f8"),
    ),
}


@pytest.mark.peers
@pytest.mark.parametrize("name", PEERS)
def test_equal_to_torch(name: str) -> None:
    torch = pytest.importorskip("torch")
    peer, layer = PEERS[name][0](torch.nn).double(), PEERS[name][1]()
    torch.manual_seed(0)
    for p in peer.parameters():
        torch.nn.init.normal_(p)
    layer.load_state_dict({k: v.numpy() for k, v in peer.state_dict().items()})
    shape = (70, 5) if "Batch" in name else (70, 4, 5)
    for step in range(3):
        x, dy = example(shape, seed=step), example(shape, seed=9)
        tx = torch.tensor(x, requires_grad=True)
        ty = peer(tx)
        ty.backward(torch.tensor(dy))
        y, tape = layer.forward(x)
        assert relative_error(y, ty.detach().numpy()) < 1e-10
        assert relative_error(layer.backward(tape, dy), tx.grad.numpy()) < 1e-10
    for key, p in peer.named_parameters():
        assert relative_error(layer.grads[key], p.grad.numpy()) < 1e-10
    state = {k: v.numpy() for k, v in peer.state_dict().items()}
    assert list(state) == list(layer.state_dict())
    for key, value in layer.state_dict().items():
        assert value.dtype == state[key].dtype
        assert relative_error(value, state[key]) < 1e-12
    peer.eval()
    assert relative_error(layer(x), peer(torch.tensor(x)).detach().numpy()) < 1e-10


@pytest.mark.peers
def test_the_default_eps_of_rms_norm_is_torchs() -> None:
    torch = pytest.importorskip("torch")
    x = np.full((1, 3), 2e-4, np.float32)
    want = torch.nn.RMSNorm(3)(torch.tensor(x)).detach().numpy()
    assert relative_error(gradcore.RMSNorm(3)(x), want) < 1e-6
