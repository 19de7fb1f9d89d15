"""What a layer keeps besides its parameters, and the arguments that it was made with."""

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tools import same_bits

import gradcore

COPIES: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda a: pickle.loads(pickle.dumps(a)),
}


class Centre(gradcore.Layer):
    """Subtracts a running mean, and adds a bias that is learned: the smallest layer that needs buffers."""

    def __init__(self, features: int, momentum: float = 0.5, *, bias: bool = True, dtype: Any = np.float32) -> None:
        start = {"running_mean": np.zeros(features, dtype), "num_batches_tracked": np.int64(0)}
        super().__init__({"bias": (features,)} if bias else {}, start, dtype=dtype)
        self.features, self.momentum, self.bias = features, momentum, bias

    def __call__(self, x: Any) -> Any:
        return self.check("x", x, (..., self.features)) - self.buffers["running_mean"] + self.params.get("bias", 0)

    def forward(self, x: Any) -> tuple[Any, gradcore.Tape]:
        y = self(x)
        self.buffers["running_mean"] += self.momentum * (x.mean(axis=0) - self.buffers["running_mean"])
        self.buffers["num_batches_tracked"] += 1
        return y, gradcore.Tape(self, y.shape)

    def backward(self, tape: Any, dy: Any) -> Any:
        self.check_tape(tape)
        if self.bias:
            self.grads["bias"] += dy.sum(axis=0)
        return dy


def a_model() -> Any:
    inner = gradcore.Sequential(gradcore.Linear(3, 2, rng=1), Centre(2))
    return gradcore.Sequential(Centre(3, bias=False), inner)


NAMES = ["0.running_mean", "0.num_batches_tracked", "1.1.running_mean", "1.1.num_batches_tracked"]
X = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)


def test_buffers_are_no_parameters_and_in_the_state_dict() -> None:
    model = a_model()
    assert list(model.buffers) == NAMES
    assert list(model.state_dict()) == ["1.0.weight", "1.0.bias", "1.1.bias", *NAMES]
    assert model.flat_params.size == model.flat_grads.size == sum(p.size for p in model.params.values()) == 10
    model.forward(X)
    np.testing.assert_allclose(model.buffers["0.running_mean"], X.mean(axis=0) / 2, rtol=1e-6)
    assert model.buffers["1.1.num_batches_tracked"] == 1
    assert gradcore.Linear(3, 2).buffers == {}
    before = model.state_dict()
    gradcore.optim.SGD(model, lr=0.1, weight_decay=0.1).step()
    assert all(same_bits(model.buffers[name], before[name]) for name in NAMES)


def test_they_begin_as_copies() -> None:
    start = np.zeros(2)

    class Keeps(gradcore.Layer):
        def __init__(self) -> None:
            super().__init__(buffers={"a": start, "n": 3})

    layer = Keeps()
    layer.buffers["a"][0] = 1
    assert start[0] == 0
    assert layer.buffers["n"] == 3


def test_a_state_dict_carries_them_to_another_model() -> None:
    model, other = a_model(), a_model()
    model.forward(X)
    state = model.state_dict()
    other.load_state_dict(state)
    assert all(same_bits(value, state[name]) for name, value in other.state_dict().items())
    assert same_bits(other(X), model(X))
    state["0.running_mean"][...] = 7  # a copy of its own
    assert model.buffers["0.running_mean"].max() < 7
    assert other.buffers["0.running_mean"].max() < 7


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda d: d.pop("1.1.running_mean"), KeyError, r"state_dict: missing \['1.1.running_mean'\]"),
        (lambda d: d.update(more=1), KeyError, r"unknown \['more'\]"),
        (lambda d: d.update({"0.running_mean": X[0, :2]}), ValueError, r"expected shape \(3,\), got \(2,\)"),
        (lambda d: d.update({"0.num_batches_tracked": 1.5}), TypeError, "num_batches_tracked: expected int64"),
        (lambda d: d.update({"1.1.running_mean": np.zeros(2)}), TypeError, "expected float32, got float64"),
    ],
)  # fmt: skip
def test_a_state_dict_that_does_not_fit_changes_nothing(change: Any, error: type[Exception], message: str) -> None:
    model = a_model()
    before = model.state_dict()
    state = {name: value + 1 for name, value in before.items()}
    change(state)
    with pytest.raises(error, match=message):
        model.load_state_dict(state)
    assert all(same_bits(value, before[name]) for name, value in model.state_dict().items())


def test_assigning_copies_into_the_members_arrays() -> None:
    model = a_model()
    own = model.layers[1].layers[1].buffers["running_mean"]
    model.buffers["1.1.running_mean"] = np.float32([1, 2])
    assert list(own) == [1, 2]
    model.buffers |= {"1.1.running_mean": np.float32([3, 4])}
    assert list(own) == [3, 4]
    model.buffers = model.buffers
    model.layers[0].buffers = {"running_mean": np.ones(3, np.float32), "num_batches_tracked": np.int64(5)}
    assert model.buffers["0.num_batches_tracked"] == 5
    with pytest.raises(KeyError, match="buffers: missing"):
        model.buffers = {}
    with pytest.raises(TypeError, match="names cannot be added or removed"):
        del model.buffers["0.running_mean"]


@pytest.mark.parametrize("how", COPIES)
def test_copies_have_their_own(how: str) -> None:
    model = a_model()
    model.forward(X)
    other = COPIES[how](model)
    before = model.state_dict()
    assert all(same_bits(value, before[name]) for name, value in other.state_dict().items())
    other.forward(X)
    assert other.buffers["1.1.num_batches_tracked"] == other.layers[1].layers[1].buffers["num_batches_tracked"] == 2
    assert all(same_bits(value, before[name]) for name, value in model.state_dict().items())


def test_a_layer_with_buffers_alone_fixes_the_dtype() -> None:
    with pytest.raises(TypeError, match=r"expected one dtype, got float32 .* and float64"):
        gradcore.Sequential(gradcore.Linear(3, 3), Centre(3, bias=False, dtype=np.float64))
    model = gradcore.Sequential(gradcore.Tanh(), Centre(3, bias=False, dtype=np.float64))
    assert model.dtype == model.layers[0].dtype == np.float64


def test_a_name_cannot_be_a_parameter_and_a_buffer() -> None:
    class Both(gradcore.Layer):
        def __init__(self) -> None:
            super().__init__({"a": (2,)}, {"a": np.zeros(2)})

    with pytest.raises(ValueError, match="buffers: 'a' is the name of a parameter"):
        Both()


def test_a_resumed_run_has_the_buffers_of_the_first(tmp_path: Path) -> None:
    model = a_model()
    opt = gradcore.optim.Adam(model, lr=0.01)
    batches = [(X, np.ones((6, 2), np.float32))] * 3
    gradcore.fit(model, batches, gradcore.losses.mse, opt, epochs=1)
    gradcore.save_checkpoint(tmp_path / "run", model=model, optimizer=opt)
    other = a_model()
    again = gradcore.optim.Adam(other, lr=0.01)
    gradcore.load_checkpoint(tmp_path / "run", model=other, optimizer=again)
    for each, its in ((model, opt), (other, again)):
        gradcore.fit(each, batches, gradcore.losses.mse, its, epochs=1)
    assert other.buffers["0.num_batches_tracked"] == 6
    assert all(same_bits(value, model.state_dict()[name]) for name, value in other.state_dict().items())


# ---- the arguments of the constructor ------------------------------------------------------------------------------

LAYERS: list[Any] = [
    gradcore.Linear(3, 2, bias=False, dtype=np.float64),
    gradcore.RNN(3, 4, 2, nonlinearity="relu", dropout=0.25, bidirectional=True),
    gradcore.LSTM(3, 4, batch_first=True, bias=False),
    gradcore.GRU(3, 4, dtype=np.float64),
    gradcore.Tanh(dtype=np.float64),
    gradcore.LeakyReLU(0.3),
    gradcore.ELU(0.5),
    gradcore.GELU("tanh"),
    gradcore.Softplus(2, 3),
    gradcore.LastStep(batch_first=True),
    gradcore.LayerNorm((3, 4), 1e-3, bias=False, dtype=np.float64),
    gradcore.RMSNorm(3, elementwise_affine=False, dtype=np.float64),
    gradcore.BatchNorm(3, momentum=None, track_running_stats=False),
    gradcore.MLP([3, 4, 2], "tanh", "orthogonal", bias=False, dtype=np.float64),
    Centre(3, 0.25, dtype=np.float64),
]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_the_config_makes_the_layer_again(layer: Any) -> None:
    config = json.loads(json.dumps(layer.config()))  # it is plain data
    again = type(layer)(**config)
    assert repr(again) == repr(layer)
    assert again.config() == layer.config()
    assert again.dtype == layer.dtype
    assert {name: p.shape for name, p in again.params.items()} == {name: p.shape for name, p in layer.params.items()}
    assert "rng" not in config


def test_the_config_follows_what_is_set_later() -> None:
    layer = gradcore.LeakyReLU(0.3)
    layer.negative_slope = 0.5
    assert layer.config()["negative_slope"] == 0.5
    assert repr(layer) == "LeakyReLU(negative_slope=0.5)"


def test_the_config_of_a_model_holds_its_members() -> None:
    model = gradcore.Sequential(gradcore.Linear(3, 2), gradcore.Tanh())
    assert model.config() == {"layers": model.layers}


def test_a_layer_that_forgets_its_arguments_says_so() -> None:
    class Forgets(gradcore.Layer):
        def __init__(self, features: int, *, slope: float = 1.0, scale: float) -> None:
            super().__init__()
            self.scale = scale

    layer = Forgets(3, scale=2.0)
    assert repr(layer) == "Forgets(..., ..., scale=2.0)"
    with pytest.raises(AttributeError, match="config: Forgets keeps its argument 'features' in no attribute"):
        layer.config()

    class Net(gradcore.Sequential):
        def __init__(self, width: int) -> None:
            super().__init__(gradcore.Linear(3, width), gradcore.Tanh())

    assert repr(Net(4)) == "Net(Linear(3, 4), Tanh())"
    assert repr(gradcore.Composite(inner=gradcore.Tanh())) == "Composite(Tanh())"
