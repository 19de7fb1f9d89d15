"""Layers that users write, layers that are made of other layers, and the states of recurrent layers in models."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tools import same_bits

import gradcore
from gradcore import meanfield, spectral
from gradcore.layers.telemetry import StepTelemetry


class Scale(gradcore.Layer):
    """y = weight x."""

    def __init__(self, features: int, *, dtype: Any = np.float64) -> None:
        super().__init__({"weight": (features,)}, dtype=dtype)
        self.features = features
        self.params["weight"] = np.linspace(0.5, 2, features).astype(dtype)

    def forward(self, x: Any) -> Any:
        x = self.check("x", x, (..., self.features))
        return x * self.params["weight"], gradcore.Tape(self, x.shape, x)

    def backward(self, tape: Any, dy: Any) -> Any:
        self.check_tape(tape)
        (x,), dy = tape.kept, self.check("dy", dy, tape.shape)
        self.grads["weight"] += (dy * x).reshape(-1, self.features).sum(axis=0)
        return dy * self.params["weight"]


class Residual(gradcore.Composite):
    """y = x + inner(x)."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner=inner)

    def __call__(self, x: Any) -> Any:
        return x + self.inner(x)

    def forward(self, x: Any) -> Any:
        y, tape = self.inner.forward(x)
        return x + y, gradcore.Tape(self, y.shape, tapes=[tape])

    def backward(self, tape: Any, dy: Any) -> Any:
        self.check_tape(tape)
        return dy + self.inner.backward(tape.tapes[0], dy)


def mlp(*sizes: int, seed: int = 0) -> gradcore.MLP:
    return gradcore.MLP(list(sizes), "tanh", dtype=np.float64, rng=seed)


MODELS: dict[str, Any] = {
    "Scale": lambda: Scale(4),
    "Residual": lambda: Residual(mlp(4, 5, 4)),
    "Sequential": lambda: gradcore.Sequential(mlp(4, 4), Residual(gradcore.Sequential(Scale(4), mlp(4, 4, seed=1)))),
    "nested": lambda: Residual(Residual(gradcore.Sequential(Residual(Scale(4)), gradcore.Tanh()))),
}
each_model = pytest.mark.parametrize("name", MODELS)


def gradients(model: Any, x: Any, dy: Any) -> tuple[Any, Any]:
    model.zero_grad()
    _, tape = model.forward(x)
    return model.backward(tape, dy), model.flat_grads.copy()


@each_model
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    rng = np.random.default_rng(0)
    model, x, dy = MODELS[name](), *rng.standard_normal((2, 3, 4))
    dx, grads = gradients(model, x, dy)
    for array, gradient in ((x, dx), (model.flat_params, grads)):
        for i in np.ndindex(array.shape):
            kept, values = array[i], []
            for sign in (1, -1):
                array[i] = kept + sign * 1e-6
                values.append(float((model(x) * dy).sum()))
            array[i] = kept
            assert (values[0] - values[1]) / 2e-6 == pytest.approx(gradient[i], rel=1e-6, abs=1e-8)


@each_model
def test_copies_pickles_and_state_dicts_give_the_same_model(name: str) -> None:
    x = np.random.default_rng(0).standard_normal((3, 4))
    model = MODELS[name]()
    other = MODELS[name]()
    other.flat_params[...] = 0
    other.load_state_dict(model.state_dict())
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), other):
        assert list(twin.params) == list(model.params)
        for mine, its in zip(gradients(model, x, x), gradients(twin, x, x), strict=True):
            assert same_bits(mine, its)
        twin.flat_params += 1  # every view has followed
        assert not np.array_equal(twin(x), model(x))
        assert all(np.shares_memory(value, twin.flat_params) for value in twin.params.values())


def test_members_have_names_and_belong_to_one_composite() -> None:
    inner = mlp(4, 4)
    block = Residual(inner)
    assert list(block.params) == ["inner.0.weight", "inner.0.bias"]
    assert block.inner is inner is block.layers[0]
    with pytest.raises(ValueError, match=r"^inner: MLP.* belongs to another model"):
        Residual(inner)
    with pytest.raises(ValueError, match=r"^layers\[0\]: .* belongs to another model"):
        gradcore.Sequential(block.inner)
    with pytest.raises(TypeError, match=r"^inner: expected a layer, got int$"):
        Residual(3)
    with pytest.raises(NotImplementedError, match=r"^Composite: has no __call__"):
        gradcore.Composite()(np.zeros(3))


def test_a_walk_names_members_as_parameters_do() -> None:
    model = gradcore.Sequential(Residual(mlp(4, 4)), mlp(4, 4))
    y, tape = model.forward(np.ones((3, 4)))
    model.backward(tape, np.ones_like(y))
    members = list(tape.walk())
    assert [member.name for member in members] == ["", "0", "0.inner", "0.inner.0", "1", "1.0"]
    assert [member.in_chain for member in members] == [True, True, False, False, True, True]
    assert len(StepTelemetry(tape).layer_growth) == 2  # the block as a whole, and the linear layer after it


def test_tapes_are_those_of_the_members() -> None:
    block = Residual(mlp(4, 4))
    with pytest.raises(ValueError, match=r"^tapes: expected one for each of 1 layers, got 2$"):
        gradcore.Tape(block, (3, 4), tapes=2 * [gradcore.Tape(block, (3, 4))])
    with pytest.raises(TypeError, match=r"^tapes\[0\]: expected a Tape, got int$"):
        gradcore.Tape(block, (3, 4), tapes=[3])  # type: ignore[list-item]


def test_a_layer_of_ones_own_refuses_what_does_not_fit() -> None:
    layer = Scale(4)
    y, tape = layer.forward(np.ones((3, 4)))
    with pytest.raises(ValueError, match=r"^x: expected shape \(\.\.\., 4\), got \(3, 5\)$"):
        layer.forward(np.ones((3, 5)))
    with pytest.raises(ValueError, match=r"^x: expected shape \(\.\.\., 4\), got \(\)$"):
        layer.forward(np.ones(()))
    with pytest.raises(TypeError, match=r"^x: expected float64, got float32"):
        layer.forward(np.ones((3, 4), np.float32))
    with pytest.raises(ValueError, match=r"^dy: expected shape \(3, 4\), got \(4, 3\)$"):
        layer.backward(tape, y.T)


@pytest.mark.kernels
def test_a_layer_of_ones_own_is_trained_clipped_and_kept(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    model = gradcore.Sequential(
        gradcore.RNN(4, 4, dtype=np.float64, rng=rng), Residual(Scale(4)), gradcore.LastStep(), mlp(4, 1)
    )
    x, target = rng.standard_normal((6, 5, 4)), rng.standard_normal((5, 1))
    optimizer = gradcore.optim.Adam(model, lr=1e-2)
    before, batches = model.state_dict(), [(x, target, [6, 5, 4, 3, 2])]
    history = gradcore.fit(model, batches, gradcore.losses.mse, optimizer, epochs=40, max_norm=1.0)
    assert history.loss[-1] < 0.5 * history.loss[0]
    assert all((model.params[name] != value).any() for name, value in before.items())
    assert "1.inner.weight" in history.per_array
    gradcore.save_checkpoint(tmp_path / "run.safetensors", model=model)
    after = model.flat_params.copy()
    model.flat_params.fill(0)
    gradcore.load_checkpoint(tmp_path / "run.safetensors", model=model)
    assert same_bits(model.flat_params, after)
    assert gradcore.clip_grad_norm_(model, 1e-3).clipped
    assert spectral.predict_growth(model, x, horizon=5).rate < 1
    assert meanfield.forecast(model).verdict


# ---- states through a model ------------------------------------------------------------------------------------------


def recurrent_model(dtype: Any = np.float64) -> Any:
    """Three recurrent layers, two of them in a nested model."""
    rng = np.random.default_rng(0)
    inner = gradcore.Sequential(
        gradcore.LSTM(4, 5, 2, dtype=dtype, rng=rng), gradcore.Tanh(), gradcore.RNN(5, 4, dtype=dtype, rng=rng)
    )
    return gradcore.Sequential(gradcore.GRU(3, 4, dtype=dtype, rng=rng), inner, gradcore.Linear(4, 2, dtype=dtype))


def random_state(model: Any, rng: np.random.Generator, B: int = 2) -> Any:
    return tuple(
        tuple(rng.standard_normal(part.shape) for part in state)
        if isinstance(state, tuple)
        else rng.standard_normal(state.shape)
        for state in model.initial_state(B)
    )


def flat(state: Any) -> list[Any]:
    return [part for each in state for part in (each if isinstance(each, tuple) else (each,))]


def by_hand(model: Any, x: Any, state: Any, lengths: Any, dy: Any, dstate: Any) -> tuple[Any, ...]:
    """The output, the final state, dx and the gradient of the initial state, layer by layer."""
    gru, (lstm, tanh, rnn), linear = model
    h, t0 = gru.forward(x, state[0], lengths)
    h, t1 = lstm.forward(h, state[1], lengths)
    h, t2 = tanh.forward(h)
    h, t3 = rnn.forward(h, state[2], lengths)
    y, t4 = linear.forward(h)
    d = rnn.backward(t3, linear.backward(t4, dy), dstate[2], step_clip=0.5)
    d = lstm.backward(t1, tanh.backward(t2, d), dstate[1], step_clip=0.5)
    dx = gru.backward(t0, d, dstate[0], step_clip=0.5)
    return y, (t0.state, t1.state, t3.state), dx, (t0.dstate, t1.dstate, t3.dstate)


@pytest.mark.kernels
@pytest.mark.parametrize("lengths", [None, [4, 6]])
def test_a_model_passes_states_as_by_hand(lengths: Any) -> None:
    rng = np.random.default_rng(1)
    model = recurrent_model()
    assert model.n_states == 3
    x, dy, state = rng.standard_normal((6, 2, 3)), rng.standard_normal((6, 2, 2)), random_state(model, rng)
    dstate = random_state(model, rng)
    y, final, dx, d_initial = by_hand(model, x, state, lengths, dy, dstate)
    grads = model.flat_grads.copy()
    model.zero_grad()
    found, tape = model.forward(x, state, lengths)
    assert tape.dstate is None
    assert same_bits(model.backward(tape, dy, dstate, step_clip=0.5), dx)
    assert same_bits(found, y)
    assert same_bits(model.flat_grads, grads)
    for mine, its in zip(flat(tape.state) + flat(tape.dstate), flat(final) + flat(d_initial), strict=True):
        assert same_bits(mine, its)
    told, after = model(x, state, lengths)
    assert same_bits(told, y)
    assert all(same_bits(mine, its) for mine, its in zip(flat(after), flat(final), strict=True))


@pytest.mark.kernels
def test_two_halves_are_the_whole() -> None:
    """Backpropagation through time in two halves, with the state forward and its gradient back, truncates nothing."""
    rng = np.random.default_rng(1)
    model = recurrent_model()
    x, dy = rng.standard_normal((8, 2, 3)), rng.standard_normal((8, 2, 2))
    y, whole = model.forward(x)
    dx = model.backward(whole, dy)
    grads = model.flat_grads.copy()
    model.zero_grad()
    y0, first = model.forward(x[:4], model.initial_state(2))
    y1, second = model.forward(x[4:], first.state)
    dx1 = model.backward(second, dy[4:])
    dx0 = model.backward(first, dy[:4], second.dstate)
    np.testing.assert_allclose(np.concatenate([y0, y1]), y, rtol=1e-12)
    np.testing.assert_allclose(np.concatenate([dx0, dx1]), dx, rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(model.flat_grads, grads, rtol=1e-9, atol=1e-14)


@pytest.mark.kernels
def test_states_may_be_left_out() -> None:
    rng = np.random.default_rng(1)
    model, x = recurrent_model(), rng.standard_normal((6, 2, 3))
    y = model(x)
    assert isinstance(y, np.ndarray)
    for zeros in ((None, None, None), model.initial_state(2), [None, *model.initial_state(2)[1:]]):
        found, state = model(x, state=zeros)
        assert same_bits(found, y)
        assert len(state) == 3
    assert same_bits(model.forward(x, (None,) * 3)[0], y)
    y, tape = model.forward(x)
    dstate = random_state(model, rng)
    dx = model.backward(tape, None, dstate)
    assert same_bits(model.backward(tape, np.zeros_like(y), dstate), dx)
    plain = mlp(3, 2)
    assert plain.forward(x)[1].state == plain.initial_state(2) == ()


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        ((None,), ValueError, "state: expected a tuple with one entry for each of 3 recurrent layers, got 1"),
        (np.zeros((1, 2, 4)), TypeError, "state: expected a tuple with one entry for each of 3 recurrent layers, got"),
        ((None, np.zeros((2, 2, 5)), None), TypeError, r"state: expected a pair \(h, c\), got ndarray"),
        ((np.zeros((1, 3, 4)), None, None), ValueError, r"state: expected shape \(1, 2, 4\), got \(1, 3, 4\)"),
    ],
)
def test_wrong_states_are_refused(state: Any, error: type[Exception], message: str) -> None:
    model, x = recurrent_model(), np.ones((6, 2, 3))
    for call in (model, model.forward):
        with pytest.raises(error, match=f"^{message}"):
            call(x, state)
    y, tape = model.forward(x)
    with pytest.raises(error, match=f"^d{message}"):
        model.backward(tape, y, state)
    assert not model.flat_grads.any()


def test_a_model_without_recurrent_layers_takes_no_state() -> None:
    model = mlp(3, 2)
    with pytest.raises(ValueError, match=r"^state: no layer of this model takes it$"):
        model(np.ones((2, 3)), (None,))
    y, tape = model.forward(np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"^dstate: no layer of this model takes it$"):
        model.backward(tape, y, (None,))
    with pytest.raises(TypeError, match=r"^dy: expected an array, got None"):
        model.backward(tape, None)
    assert not model.flat_grads.any()
