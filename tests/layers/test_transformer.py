"""TransformerEncoderLayer against central differences, its parts by hand and PyTorch; masks, dropout, telemetry."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from tools import LAYOUTS, Array, central_difference, relative_error, same_bits

import gradcore

pytestmark = pytest.mark.kernels

kinds = pytest.mark.parametrize("norm_first", [False, True], ids=["post", "pre"])
norms = pytest.mark.parametrize("norm", ["layer", "rms"])
activations = pytest.mark.parametrize("activation", ["relu", "gelu"])


def example(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(0, 1.5, shape)


def encoder(d_model: int = 6, nhead: int = 2, dim_feedforward: int = 7, **options: Any) -> Any:
    """With gains and biases of any value."""
    layer = gradcore.TransformerEncoderLayer(
        d_model, nhead, dim_feedforward, **{"dtype": np.float64, "rng": 0, **options}
    )
    rng = np.random.default_rng(1)
    for p in layer.params.values():
        if p.ndim == 1:
            p[...] += rng.normal(0, 0.3, p.shape)
    return layer


def passes(layer: Any, x: Array, dy: Array, lengths: Any = None) -> list[Array]:
    """y, dx and the gradients of the parameters."""
    layer.zero_grad()
    y, tape = layer.forward(x, lengths)
    return [y, layer.backward(tape, dy), layer.flat_grads.copy()]


@kinds
@norms
@activations
@pytest.mark.parametrize("lengths", [None, [5, 0, 3, 1]], ids=str)
def test_gradients_by_central_differences(norm_first: bool, norm: str, activation: str, lengths: Any) -> None:
    layer = encoder(norm_first=norm_first, norm=norm, activation=activation, causal=lengths is None)
    x, dy = example(5, 4, 6), example(5, 4, 6, seed=1)
    y, dx, _ = passes(layer, x, dy, lengths)
    assert relative_error(layer(x, lengths), y) < 1e-15

    def loss() -> float:
        return float(np.vdot(layer(x, lengths), dy))

    assert relative_error(dx, central_difference(loss, x)) < 1e-7
    for name, p in layer.params.items():
        assert np.linalg.norm(layer.grads[name] - central_difference(loss, p)) < 1e-7 * np.linalg.norm(dx), name


@kinds
@norms
def test_it_is_made_of_its_members(norm_first: bool, norm: str) -> None:
    layer, x = encoder(norm_first=norm_first, norm=norm), example(9, 3, 6)

    def attend(x: Array) -> Array:
        return np.asarray(layer.self_attn(x, [9, 4, 0]))

    def feed(x: Array) -> Array:
        return np.asarray(layer.linear2(np.maximum(0, layer.linear1(x))))

    if norm_first:
        x_1 = x + attend(layer.norm1(x))
        want = x_1 + feed(layer.norm2(x_1))
    else:
        x_1 = layer.norm1(x + attend(x))
        want = layer.norm2(x_1 + feed(x_1))
    want[4:, 1] = want[:, 2] = 0
    assert relative_error(layer(x, [9, 4, 0]), want) < 1e-14
    assert isinstance(layer.norm1, gradcore.LayerNorm if norm == "layer" else gradcore.RMSNorm)


@kinds
def test_what_is_past_a_sequences_end_is_never_read(norm_first: bool) -> None:
    layer, lengths = encoder(norm_first=norm_first), [31, 0, 4]
    x, dy = example(31, 3, 6), example(31, 3, 6, seed=1)
    for b, n in enumerate(lengths):
        x[n:, b] = dy[n:, b] = np.nan
    y, dx, grads = passes(layer, x, dy, lengths)
    alone = [passes(layer, x[:n, b : b + 1], dy[:n, b : b + 1]) for b, n in enumerate(lengths)]
    for b, n in enumerate(lengths):
        assert np.allclose(y[:n, b], alone[b][0][:, 0], rtol=1e-13, atol=1e-13)
        assert np.allclose(dx[:n, b], alone[b][1][:, 0], rtol=1e-12, atol=1e-12)
        assert not y[n:, b].any()
        assert not dx[n:, b].any()
    assert relative_error(grads, sum(found[2] for found in alone)) < 1e-13


@kinds
def test_dropout_is_for_training_alone(norm_first: bool) -> None:
    x, dy = example(20, 3, 6), example(20, 3, 6, seed=1)
    plain, dropped = encoder(norm_first=norm_first), encoder(norm_first=norm_first, dropout=0.5)
    assert same_bits(dropped(x), plain(x))
    assert len(dropped.generators()) == 3
    assert plain.generators() == []
    state = dropped.generators()[0].bit_generator.state
    first = passes(dropped, x, dy)
    assert relative_error(first[0], plain(x)) > 0.1
    dropped.generators()[0].bit_generator.state = state
    for got, want in zip(passes(dropped, x, dy), first, strict=True):
        assert same_bits(got, want)

    def loss() -> float:
        dropped.generators()[0].bit_generator.state = state
        return float(np.vdot(dropped.forward(x)[0], dy))

    x = x[:3, :1]
    dy = dy[:3, :1]
    dropped.generators()[0].bit_generator.state = state
    assert relative_error(passes(dropped, x, dy)[1], central_difference(loss, x)) < 1e-7


@kinds
def test_telemetry(norm_first: bool) -> None:
    layer, x = encoder(norm_first=norm_first), example(9, 3, 6)
    model = gradcore.Sequential(layer, gradcore.Linear(6, 2, dtype=np.float64, rng=0))
    y, tape = model.forward(x)
    inner = tape.tapes[0]
    assert inner.norms_at(0) == (None, None)
    dx = model.backward(tape, np.ones_like(y))
    members = {member.name: member for member in tape.walk()}
    assert list(members)[:3] == ["", "0", "0.self_attn"]
    assert set(members) == {"", "0", "1", *(f"0.{name}" for name in layer.names)}
    assert members["0"].dx_norm == pytest.approx(np.linalg.norm(dx), rel=1e-12)
    assert all(member.dx_norm > 0 for name, member in members.items() if name)
    assert not members["0.linear1"].in_chain
    if norm_first:
        assert members["0.dropout3"].dy_norm == members["0"].dy_norm
    else:
        assert members["0.norm2"].dy_norm == members["0"].dy_norm
        assert members["0.norm2"].dx_norm == members["0.linear2"].dy_norm
    assert members["0.linear2"].dx_norm == members["0.nonlinearity"].dy_norm
    again = inner.norms_at(list(layer.names).index("linear2"))
    assert again == (members["0.linear2"].dx_norm, members["0.linear2"].dy_norm)


@kinds
def test_same_bits_for_any_number_of_threads(norm_first: bool, with_thread_counts: Any) -> None:
    x = example(150, 3, 32).astype(np.float32)

    def run() -> list[bytes]:
        layer = encoder(32, 4, 100, norm_first=norm_first, dtype=np.float32, dropout=0.1)
        return [a.tobytes() for a in passes(layer, x, x)]

    first, *others = with_thread_counts(run)
    assert all(other == first for other in others)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_of_the_inputs(layout: str) -> None:
    layer, x, dy = encoder(), example(5, 4, 6), example(5, 4, 6, seed=1)
    other_x, other_dy = LAYOUTS[layout](x), LAYOUTS[layout](dy)
    before = other_x.tobytes(), other_dy.tobytes()
    for lengths in (None, [5, 0, 3, 1]):
        for got, want in zip(passes(layer, other_x, other_dy, lengths), passes(layer, x, dy, lengths), strict=True):
            assert same_bits(got, want)
    assert (other_x.tobytes(), other_dy.tobytes()) == before


@pytest.mark.parametrize("shape", [(0, 3, 6), (5, 0, 6)])
def test_nothing(shape: tuple[int, int, int]) -> None:
    x = np.zeros(shape)
    y, dx, grads = passes(encoder(), x, x)
    assert y.shape == dx.shape == shape
    assert not grads.any()


def test_copies_configs_and_models() -> None:
    layer, x = encoder(activation="gelu", norm="rms", dropout=0.25, causal=True), example(5, 4, 6)
    assert same_bits(pickle.loads(pickle.dumps(layer))(x), layer(x))
    other = type(layer)(**layer.config())
    other.load_state_dict(layer.state_dict())
    assert same_bits(other(x), layer(x))
    options = "dim_feedforward=7, dropout=0.25, activation='gelu', causal=True, norm='rms', dtype='float64'"
    assert repr(layer) == f"TransformerEncoderLayer(6, 2, {options})"
    model = gradcore.Sequential(
        gradcore.LSTM(3, 6, dtype=np.float64),
        copy.deepcopy(layer),
        gradcore.LastStep(),
        gradcore.Linear(6, 1, dtype=np.float64),
    )
    y, tape = model.forward(example(5, 4, 3), lengths=[5, 2, 3, 0])
    assert model.backward(tape, y).shape == (5, 4, 3)
    with pytest.raises(ValueError, match="batch_first"):
        gradcore.Sequential(gradcore.GRU(3, 6, batch_first=True, dtype=np.float64), copy.deepcopy(layer))


def test_errors_say_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="nhead: expected a divisor of d_model=6, got 4"):
        gradcore.TransformerEncoderLayer(6, 4)
    with pytest.raises(ValueError, match="activation: expected 'relu' or 'gelu', got 'tanh'"):
        gradcore.TransformerEncoderLayer(6, 2, activation="tanh")
    with pytest.raises(ValueError, match="norm: expected 'layer' or 'rms', got 'batch'"):
        gradcore.TransformerEncoderLayer(6, 2, norm="batch")
    layer = gradcore.TransformerEncoderLayer(6, 2, 7)
    x = np.ones((5, 3, 6), np.float32)
    with pytest.raises(ValueError, match=r"x: expected shape \(T, B, 6\), got \(5, 3, 5\)"):
        layer(x[..., :5])
    y, tape = layer.forward(x)
    with pytest.raises(ValueError, match=r"dy: expected shape \(5, 3, 6\), got \(5, 2, 6\)"):
        layer.backward(tape, y[:, :2])
    with pytest.raises(ValueError, match="tape: expected a tape from this layer's forward"):
        gradcore.TransformerEncoderLayer(6, 2, 7).backward(tape, y)
    assert not layer.flat_grads.any()


@pytest.mark.peers
@kinds
@activations
@pytest.mark.parametrize("lengths", [None, [40, 1, 25]], ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_it_equals_torch(norm_first: bool, activation: str, lengths: Any, causal: bool) -> None:
    torch = pytest.importorskip("torch")
    T, B, E = 40, 3, 12
    peer = torch.nn.TransformerEncoderLayer(E, 3, 20, 0.0, activation, norm_first=norm_first).double()
    layer = encoder(E, 3, 20, norm_first=norm_first, activation=activation, causal=causal)
    peer.load_state_dict({name: torch.tensor(p) for name, p in layer.params.items()})
    layer.flat_params[...] = 0
    assert list(layer.params) == list(peer.state_dict())
    layer.load_state_dict({name: value.numpy() for name, value in peer.state_dict().items()})
    x, dy = example(T, B, E), example(T, B, E, seed=1)
    live = torch.arange(T)[:, None] < torch.tensor([T] * B if lengths is None else lengths)  # (T, B)
    tx = torch.tensor(x, requires_grad=True)
    ty = peer(
        tx, src_key_padding_mask=None if lengths is None else ~live.T,
        src_mask=torch.ones(T, T, dtype=torch.bool).triu(1) if causal else None,
    )  # fmt: skip
    ty = ty * live[..., None]
    ty.backward(torch.tensor(dy))
    y, dx, _ = passes(layer, x, dy, lengths)
    assert relative_error(y, ty.detach().numpy()) < 1e-10
    assert relative_error(dx, tx.grad.numpy()) < 1e-10
    for name, p in peer.named_parameters():
        assert relative_error(layer.grads[name], p.grad.numpy()) < 1e-10, name
