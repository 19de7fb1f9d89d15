"""MultiheadAttention against its twin, central differences and PyTorch; what masks hide, and logits without bounds."""

from __future__ import annotations

import copy
import pickle
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tools import LAYOUTS, Array, central_difference, relative_error, same_bits

import gradcore
from gradcore import reference

pytestmark = pytest.mark.kernels

both_dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])
masks = pytest.mark.parametrize("causal", [False, True])
ragged = pytest.mark.parametrize("lengths", [None, [5, 0, 3, 1], [5, 5, 5, 5], [3, 3, 3, 3]], ids=str)


def example(*shape: int, seed: int = 0, scale: float = 1.5) -> Array:
    return np.random.default_rng(seed).normal(0, scale, shape)


def attention(E: int = 6, heads: int = 2, *, seed: int = 0, **options: Any) -> Any:
    """With biases that are not zero."""
    layer = gradcore.MultiheadAttention(E, heads, rng=seed, **{"dtype": np.float64, **options})
    rng = np.random.default_rng(seed)
    for name, p in layer.params.items():
        if name.endswith("bias"):
            p[...] = rng.normal(0, 0.5, p.shape)
    return layer


def passes(layer: Any, x: Array, dy: Array, lengths: Any = None) -> list[Array]:
    """y, dx and the gradients of the parameters."""
    layer.zero_grad()
    y, tape = layer.forward(x, lengths)
    return [y, layer.backward(tape, dy), layer.flat_grads.copy()]


def twin(layer: Any, x: Array, dy: Array, lengths: Any = None) -> list[Array]:
    """The same from the twins, in float64."""
    x, dy = x.astype(np.float64), dy.astype(np.float64)
    params = {name: p.astype(np.float64) for name, p in layer.params.items()}
    E, n, given = layer.embed_dim, layer.num_heads, {"causal": layer.causal, "lengths": lengths}
    T, B, _ = x.shape
    live = np.arange(T)[:, None] < (np.full(B, T) if lengths is None else np.asarray(lengths))
    inner, outer = params["in_proj_weight"], params["out_proj.weight"]
    qkv = reference.linear_forward(x, inner, params.get("in_proj_bias", np.zeros(3 * E)))
    mixed = reference.attention_forward(qkv, n, **given)
    y = reference.linear_forward(mixed, outer, params.get("out_proj.bias", np.zeros(E))) * live[..., None]
    dmixed, dout, dout_bias = reference.linear_backward(mixed, outer, dy * live[..., None])
    dqkv = reference.attention_backward(qkv, n, dmixed, **given)
    dx, dinner, dinner_bias = reference.linear_backward(x, inner, dqkv)
    grads = [dinner, dinner_bias, dout, dout_bias] if layer.bias else [dinner, dout]
    return [y, dx, np.concatenate([g.ravel() for g in grads])]


# ---- values ----------------------------------------------------------------------------------------------------------


@masks
@ragged
@pytest.mark.parametrize("bias", [False, True])
def test_gradients_by_central_differences(causal: bool, lengths: Any, bias: bool) -> None:
    layer, x, dy = attention(causal=causal, bias=bias), example(5, 4, 6), example(5, 4, 6, seed=1)
    _, dx, _ = passes(layer, x, dy, lengths)

    def loss() -> float:
        return float(np.vdot(layer(x, lengths), dy))

    assert relative_error(dx, central_difference(loss, x)) < 1e-8
    for name, p in layer.params.items():
        assert np.linalg.norm(layer.grads[name] - central_difference(loss, p)) < 1e-8 * np.linalg.norm(dx), name


@given(
    T=st.one_of(st.integers(0, 40), st.integers(100, 400)),
    B=st.integers(0, 3),
    heads=st.integers(1, 3),
    D=st.one_of(st.integers(1, 20), st.sampled_from([32, 33, 64, 100])),
    causal=st.booleans(),
    bias=st.booleans(),
    dtype=st.sampled_from([np.float32, np.float64]),
    cut=st.booleans(),
)
def test_it_equals_its_twin(
    T: int, B: int, heads: int, D: int, causal: bool, bias: bool, dtype: Any, cut: bool
) -> None:
    layer = attention(heads * D, heads, causal=causal, bias=bias, dtype=dtype)
    lengths = np.random.default_rng(T).integers(0, T + 1, B) if cut else None
    x, dy = (example(T, B, heads * D, seed=seed).astype(dtype) for seed in (0, 1))
    for got, want in zip(passes(layer, x, dy, lengths), twin(layer, x, dy, lengths), strict=True):
        assert got.dtype == dtype
        assert got.shape == want.shape
        assert np.linalg.norm(got - want) <= (2e-5 if dtype == np.float32 else 1e-13) * (np.linalg.norm(want) + 1e-3)


@both_dtypes
@masks
def test_logits_of_any_size(dtype: Any, causal: bool) -> None:
    """Equal logits have equal weights however large they are, and one far above the others has all the weight."""
    T, D = 300, 4
    layer = gradcore.MultiheadAttention(D, 1, bias=False, causal=causal, dtype=dtype)
    layer.flat_params[...] = 0
    layer.params["out_proj.weight"] = np.eye(D, dtype=dtype)
    weight = layer.params["in_proj_weight"]
    weight[2 * D :] = np.eye(D)  # values are x
    weight[0, 0] = weight[D, 0] = 1e9  # queries and keys are x_0, times so much
    x = example(T, 1, D).astype(dtype)
    x[..., 0] = 1
    y, tape = layer.forward(x)
    means = np.cumsum(x, axis=0, dtype=np.float64) / np.arange(1, T + 1)[:, None, None]
    assert relative_error(y, means if causal else np.broadcast_to(means[-1], x.shape)) < 1e-5
    dx = layer.backward(tape, np.ones_like(y))
    shares = 1 / np.arange(1, T + 1)
    each = np.cumsum(shares[::-1])[::-1] if causal else np.ones(T)
    assert relative_error(dx[:, 0, 1:], np.broadcast_to(each[:, None], (T, D - 1))) < 1e-5
    assert np.isfinite(layer.flat_grads).all()
    x[7, 0, 0] = 2
    y, tape = layer.forward(x)
    assert same_bits(y[8:, 0], np.broadcast_to(x[7, 0], (T - 8, D)))
    assert np.isfinite(layer.backward(tape, y)).all()


@both_dtypes
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_shows_in_its_sequence_only(dtype: Any, value: float) -> None:
    layer, x = attention(causal=True, dtype=dtype), example(150, 3, 6).astype(dtype)
    dy = np.ones_like(x)
    y, dx, _ = passes(layer, x, dy)
    x[140, 1, 2] = value
    bad_y, bad_dx, bad_grads = passes(layer, x, dy)
    assert np.isnan(bad_y[140:, 1]).any(axis=1).all()
    assert np.isnan(bad_dx[:, 1]).any()
    assert np.isnan(bad_grads).any()
    for good, bad in ((y, bad_y), (dx, bad_dx)):
        assert same_bits(good[:, ::2], bad[:, ::2])


# ---- masks -----------------------------------------------------------------------------------------------------------


@masks
def test_a_sequence_is_alone_and_what_is_past_its_end_is_never_read(causal: bool) -> None:
    layer, lengths = attention(causal=causal), [131, 0, 40]
    x, dy = example(131, 3, 6), example(131, 3, 6, seed=1)
    for b, n in enumerate(lengths):
        x[n:, b] = dy[n:, b] = np.nan
    y, dx, grads = passes(layer, x, dy, lengths)
    alone = [passes(layer, x[:n, b : b + 1], dy[:n, b : b + 1]) for b, n in enumerate(lengths)]
    for b, n in enumerate(lengths):
        assert relative_error(y[:n, b], alone[b][0][:, 0]) < 1e-14
        assert relative_error(dx[:n, b], alone[b][1][:, 0]) < 1e-14
        assert not y[n:, b].any()
        assert not dx[n:, b].any()
    assert relative_error(grads, sum(found[2] for found in alone)) < 1e-13


def test_a_causal_step_does_not_see_what_follows() -> None:
    layer, x = attention(causal=True), example(300, 2, 6)
    y, tape = layer.forward(x)
    other = x.copy()
    other[200:] = 7
    assert same_bits(layer(other)[:200], y[:200])
    assert not same_bits(layer(other)[200:], y[200:])
    dy = np.zeros_like(y)
    dy[:200] = 1
    dx = layer.backward(tape, dy)
    assert dx[:200].any(axis=(1, 2)).all()
    assert not dx[200:].any()


def test_lengths_that_are_all_full_change_nothing() -> None:
    layer, x, dy = attention(), example(20, 3, 6), example(20, 3, 6, seed=1)
    for got, want in zip(passes(layer, x, dy, [20, 20, 20]), passes(layer, x, dy), strict=True):
        assert same_bits(got, want)


@pytest.mark.parametrize("shape", [(0, 3, 6), (5, 0, 6), (0, 0, 6)])
def test_nothing(shape: tuple[int, int, int]) -> None:
    layer, x = attention(), np.zeros(shape)
    y, dx, grads = passes(layer, x, x, np.zeros(shape[1], int))
    assert y.shape == dx.shape == shape
    assert not grads.any()


# ---- the layer -------------------------------------------------------------------------------------------------------


@both_dtypes
@masks
@pytest.mark.parametrize("shape", [(300, 1, 8, 1), (500, 1, 64, 2), (70, 5, 12, 3)], ids=str)
def test_same_bits_for_any_number_of_threads(
    dtype: Any, causal: bool, shape: tuple[int, int, int, int], with_thread_counts: Any
) -> None:
    T, B, E, heads = shape
    x = example(T, B, E).astype(dtype)

    def run() -> list[bytes]:
        return [a.tobytes() for a in passes(attention(E, heads, causal=causal, dtype=dtype), x, x)]

    first, *others = with_thread_counts(run)
    assert all(other == first for other in others)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_of_the_inputs(layout: str) -> None:
    layer, x, dy = attention(), example(5, 4, 6), example(5, 4, 6, seed=1)
    other_x, other_dy = LAYOUTS[layout](x), LAYOUTS[layout](dy)
    before = other_x.tobytes(), other_dy.tobytes()
    for lengths in (None, [5, 0, 3, 1]):
        for got, want in zip(passes(layer, other_x, other_dy, lengths), passes(layer, x, dy, lengths), strict=True):
            assert same_bits(got, want)
    assert (other_x.tobytes(), other_dy.tobytes()) == before


def test_memory_grows_with_the_length_and_not_with_its_square() -> None:
    layer, largest = attention(16, 2, dtype=np.float32), []
    for T in (2048, 8192):
        x = np.ones((T, 1, 16), np.float32)
        tracemalloc.start()
        passes(layer, x, x)
        largest.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        layer = attention(16, 2, dtype=np.float32)  # with an empty pool
    assert largest[1] < 6 * largest[0]
    assert largest[1] < 8192 * 8192  # bytes, of the 512 MB that the logits of both heads are


def test_parameters_are_drawn_as_pytorch_does() -> None:
    layer = gradcore.MultiheadAttention(256, 4, rng=0)
    inner, outer = layer.params["in_proj_weight"], layer.params["out_proj.weight"]
    for weight, bound in ((inner, np.sqrt(6 / 1024)), (outer, 1 / 16)):
        assert bound * 0.999 < np.abs(weight).max() <= bound
        assert abs(weight.std() / bound - 1 / np.sqrt(3)) < 0.01
    assert not layer.params["in_proj_bias"].any()
    assert not layer.params["out_proj.bias"].any()
    assert same_bits(gradcore.MultiheadAttention(256, 4, bias=False, rng=0).params["in_proj_weight"], inner)


def test_in_a_model() -> None:
    rng = np.random.default_rng(0)
    model = gradcore.Sequential(
        gradcore.GRU(3, 6, rng=rng),
        gradcore.MultiheadAttention(6, 2, rng=rng),
        gradcore.LastStep(),
        gradcore.Linear(6, 1, rng=rng),
    )
    x = example(7, 3, 3).astype(np.float32)
    y, tape = model.forward(x, lengths=[7, 2, 4])
    model.backward(tape, np.ones_like(y))
    assert [member.name for member in tape.walk()] == ["", "0", "1", "2", "3"]
    assert relative_error(model(x[:2, 1:2])[0], y[1]) < 1e-6
    assert all(norm > 0 for norm in tape.norms)
    again = pickle.loads(pickle.dumps(model))
    assert same_bits(again(x), copy.deepcopy(model)(x))
    with pytest.raises(ValueError, match="batch_first"):
        gradcore.Sequential(gradcore.GRU(3, 6, batch_first=True), gradcore.MultiheadAttention(6, 2))


def test_errors_say_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="num_heads: expected a divisor of embed_dim=6, got 4"):
        gradcore.MultiheadAttention(6, 4)
    with pytest.raises(ValueError, match="embed_dim: expected an integer of at least 1, got 0"):
        gradcore.MultiheadAttention(0, 1)
    layer = gradcore.MultiheadAttention(6, 2)
    x = np.ones((5, 3, 6), np.float32)
    with pytest.raises(ValueError, match=r"x: expected shape \(T, B, 6\), got \(5, 3, 5\)"):
        layer(x[..., :5])
    with pytest.raises(ValueError, match=r"lengths: expected shape \(3,\), got \(2,\)"):
        layer(x, [1, 2])
    y, tape = layer.forward(x)
    with pytest.raises(ValueError, match=r"dy: expected shape \(5, 3, 6\), got \(5, 3, 1\)"):
        layer.backward(tape, y[..., :1])
    with pytest.raises(ValueError, match="tape: expected a tape from this layer's forward"):
        gradcore.MultiheadAttention(6, 2).backward(tape, y)
    assert not layer.flat_grads.any()


# ---- peers -----------------------------------------------------------------------------------------------------------


@pytest.mark.peers
@masks
@pytest.mark.parametrize("lengths", [None, [150, 1, 80]], ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_it_equals_torch(causal: bool, lengths: Any, bias: bool) -> None:
    torch = pytest.importorskip("torch")
    T, B, E = 150, 3, 12
    peer = torch.nn.MultiheadAttention(E, 3, bias=bias).double()
    layer = gradcore.MultiheadAttention(E, 3, bias=bias, causal=causal, dtype=np.float64)
    assert list(layer.params) == list(peer.state_dict())
    layer.load_state_dict({name: value.numpy() for name, value in peer.state_dict().items()})
    x, dy = example(T, B, E), example(T, B, E, seed=1)
    live = torch.arange(T)[:, None] < torch.tensor([T] * B if lengths is None else lengths)  # (T, B)
    tx = torch.tensor(x, requires_grad=True)
    ty, _ = peer(
        tx, tx, tx, key_padding_mask=None if lengths is None else ~live.T, need_weights=False,
        attn_mask=torch.ones(T, T, dtype=torch.bool).triu(1) if causal else None,
    )  # fmt: skip
    ty = ty * live[..., None]
    ty.backward(torch.tensor(dy))
    y, dx, _ = passes(layer, x, dy, lengths)
    assert relative_error(y, ty.detach().numpy()) < 1e-10
    assert relative_error(dx, tx.grad.numpy()) < 1e-10
    for name, p in peer.named_parameters():
        assert relative_error(layer.grads[name], p.grad.numpy()) < 1e-10, name
