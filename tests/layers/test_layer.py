"""What all layers share: views of flat buffers, turns at the gradients, and what a pickle may carry elsewhere."""

import copy
import math
import os
import pickle
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tools import HANG, python, same_bits, supported_isas

import gradcore
from gradcore import optim
from gradcore._base.views import Views
from gradcore.clip.norm import norm_of
from gradcore.layers.telemetry import StepTelemetry

LAYERS = {
    "RNN": lambda: gradcore.RNN(3, 4, dtype=np.float64),
    "LSTM": lambda: gradcore.LSTM(3, 4, dtype=np.float64),
    "Linear": lambda: gradcore.Linear(3, 4, dtype=np.float64),
    "LayerNorm": lambda: gradcore.LayerNorm(3, dtype=np.float64),
    "BatchNorm": lambda: gradcore.BatchNorm(3, dtype=np.float64),
}


@pytest.mark.kernels
@pytest.mark.parametrize("name", LAYERS)
def test_no_addition_to_the_gradients_is_lost(name: str) -> None:
    layer: Any = LAYERS[name]()
    x = np.random.default_rng(0).standard_normal((40, 32, 3))
    y, tape = layer.forward(x)
    layer.backward(tape, np.ones_like(y))
    once, rounds, n_threads = layer.flat_grads.copy(), 200, 4
    layer.zero_grad()

    def work() -> None:
        for _ in range(rounds):
            layer.backward(tape, np.ones_like(y))

    threads = [threading.Thread(target=work) for _ in range(n_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG)
        assert not thread.is_alive()
    np.testing.assert_allclose(layer.flat_grads, rounds * n_threads * once, rtol=1e-10)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_forked_during_a_turn_gets_its_own() -> None:
    layer: Any = LAYERS["Linear"]()
    y, tape = layer.forward(np.ones((2, 3)))
    with layer._adding.lock:
        child = os.fork()
        if not child:
            thread = threading.Thread(target=layer.backward, args=(tape, y), daemon=True)
            thread.start()
            thread.join(HANG)
            os._exit(int(thread.is_alive()))
        _, status = os.waitpid(child, 0)
    assert status == 0


def test_a_copy_has_turns_of_its_own() -> None:
    layer: Any = LAYERS["LSTM"]()
    other = copy.deepcopy(layer)
    y, tape = other.forward(np.ones((2, 1, 3)))
    with layer._adding.lock:
        other.backward(tape, y)
    assert other.flat_grads.any()


def test_generators_are_those_that_forward_draws_from() -> None:
    rng, other = np.random.default_rng(0), np.random.default_rng(1)
    drops = gradcore.LSTM(3, 4, num_layers=2, dropout=0.5, rng=rng)
    inner = gradcore.Sequential(gradcore.GRU(4, 3, num_layers=2, dropout=0.5, rng=other))
    plain = gradcore.LSTM(3, 3, num_layers=2, rng=rng)
    model = gradcore.Sequential(drops, inner, plain, gradcore.Linear(3, 1, rng=rng))
    assert [generator is rng for generator in drops.generators()] == [True]
    assert plain.generators() == []
    first, second = model.generators()
    assert first is rng
    assert second is other


# ---- views of the buffers ------------------------------------------------------------------------------------------


def a_model() -> tuple[Any, Any]:
    """A model, and its linear layer two models down."""
    linear = gradcore.Linear(4, 2, rng=np.random.default_rng(1))
    return gradcore.Sequential(gradcore.GRU(3, 4, rng=0), gradcore.Sequential(gradcore.Tanh(), linear)), linear


@pytest.mark.parametrize("kind", ["params", "grads"])
def test_assigning_to_a_name_copies_into_the_buffer(kind: str) -> None:
    model, linear = a_model()
    views, flat = getattr(model, kind), getattr(model, f"flat_{kind}")
    value = np.float32([[1, 2, 3, 4], [5, 6, 7, 8]])
    view = views["1.1.weight"]
    views["1.1.weight"] = value
    assert views["1.1.weight"] is view
    assert getattr(linear, kind)["weight"] is view
    assert same_bits(flat[-10:-2], value.ravel())
    getattr(linear, kind)["bias"] = np.float32([9, 10])
    views["1.1.weight"] *= 3
    assert same_bits(flat[-10:], np.float32([3, 6, 9, 12, 15, 18, 21, 24, 9, 10]))
    assert value[0, 0] == 1
    x = np.ones((1, 1, 3), np.float32)
    if kind == "params":
        h, _ = model.layers[0](x)
        np.testing.assert_allclose(model(x), np.tanh(h) @ (3 * value).T + np.float32([9, 10]), rtol=1e-5)
        assert same_bits(model.state_dict()["1.1.weight"], 3 * value)


def test_an_assignment_that_does_not_fit_changes_nothing() -> None:
    model, _ = a_model()
    before = model.flat_params.copy()
    value = np.zeros((2, 4), np.float32)
    with pytest.raises(TypeError, match=r"1\.1\.weight: expected float32, got float64"):
        model.params["1.1.weight"] = value.astype(np.float64)
    with pytest.raises(ValueError, match=re.escape("1.1.weight: expected shape (2, 4), got (4, 2)")):
        model.params["1.1.weight"] = value.T
    with pytest.raises(KeyError, match=r"params: expected one of .*1\.1\.weight.*, got 'weight'"):
        model.params["weight"] = value
    with pytest.raises(ValueError, match=re.escape("1.1.bias: expected shape (2,), got (3,)")):
        model.params.update({"1.1.weight": value, "1.1.bias": np.zeros(3, np.float32)})
    with pytest.raises(KeyError, match="got 'more'"):
        model.params |= {"1.1.weight": value, "more": value}
    assert same_bits(model.flat_params, before)


@pytest.mark.parametrize(
    "change",
    [
        lambda views: views.pop("weight"), lambda views: views.popitem(), lambda views: views.clear(),
        lambda views: views.__delitem__("weight"), lambda views: views.setdefault("other", np.zeros(2)),
    ],
    ids=["pop", "popitem", "clear", "del", "setdefault"],
)  # fmt: skip
def test_names_stay(change: Callable[[Any], None]) -> None:
    layer = gradcore.Linear(3, 2)
    with pytest.raises(TypeError, match="params: names cannot be added or removed"):
        change(layer.params)
    assert list(layer.params) == ["weight", "bias"]


def test_parameters_can_be_swapped() -> None:
    layer = gradcore.Linear(2, 2, dtype=np.float64, rng=0)
    rnn = gradcore.RNN(2, 2, dtype=np.float64, rng=0)
    ih, hh = rnn.params["weight_ih_l0"].copy(), rnn.params["weight_hh_l0"].copy()
    rnn.params.update(weight_ih_l0=rnn.params["weight_hh_l0"], weight_hh_l0=rnn.params["weight_ih_l0"])
    assert same_bits(rnn.params["weight_ih_l0"], hh)
    assert same_bits(rnn.params["weight_hh_l0"], ih)
    turned = layer.params["weight"].T.copy()
    layer.params["weight"] = layer.params["weight"].T
    assert same_bits(layer.params["weight"], turned)


def test_assigning_the_attributes_copies_too() -> None:
    layer = gradcore.Linear(2, 1)
    params, grads, flat_params, flat_grads = layer.params, layer.grads, layer.flat_params, layer.flat_grads
    layer.flat_params = np.float32([1, 2, 3])
    layer.flat_params *= 2
    layer.grads = {"weight": np.float32([[4, 5]]), "bias": np.float32([6])}
    layer.params |= {"bias": np.float32([7])}
    assert layer.params is params
    assert layer.grads is grads
    assert layer.flat_params is flat_params
    assert layer.flat_grads is flat_grads
    assert flat_params.tolist() == [2, 4, 7]
    assert flat_grads.tolist() == [4, 5, 6]
    layer.flat_grads = flat_params
    layer.params = {"weight": np.float32([[0, 1]]), "bias": np.float32([2])}
    assert flat_grads.tolist() == [2, 4, 7]
    assert flat_params.tolist() == [0, 1, 2]
    for wrong, value in (("flat_params", np.zeros(4, np.float32)), ("flat_grads", np.zeros((3, 1), np.float32))):
        with pytest.raises(ValueError, match=rf"{wrong}: expected shape \(3,\)"):
            setattr(layer, wrong, value)
    with pytest.raises(KeyError, match=r"params: missing \['weight'\], unknown \[\]"):
        layer.params = {"bias": np.float32([7])}
    assert flat_params.tolist() == [0, 1, 2]


def test_params_serve_wherever_a_dict_does() -> None:
    layer = gradcore.Linear(3, 2, rng=0)

    def names(**named: Any) -> list[str]:
        return list(named)

    assert names(**layer.params) == ["weight", "bias"]
    assert sorted(layer.params) == ["bias", "weight"]
    assert isinstance(layer.params, dict)
    assert layer.params == layer.state_dict().__class__(layer.params)
    assert type(layer.params | {"more": 1}) is dict
    for copied in (dict(layer.params), layer.params.copy(), copy.copy(layer.params)):
        assert type(copied) is dict
        assert copied["weight"] is layer.params["weight"]
    for copied in (copy.deepcopy(layer.params), pickle.loads(pickle.dumps(layer.params))):
        assert type(copied) is dict
        assert same_bits(copied["weight"], layer.params["weight"])
        assert not np.may_share_memory(copied["weight"], layer.flat_params)


@pytest.mark.parametrize("make", [lambda a: a, copy.deepcopy, lambda a: pickle.loads(pickle.dumps(a)), copy.copy])
def test_views_are_of_the_buffers_after_moves_and_copies(make: Callable[[Any], Any]) -> None:
    model = make(a_model()[0])
    for kind in ("params", "grads"):
        views, flat = getattr(model, kind), getattr(model, f"flat_{kind}")
        assert type(views) is Views
        flat[...] = np.arange(flat.size)
        assert [int(value) for view in views.values() for value in view.ravel()] == list(range(flat.size))
        inner = getattr(model.layers[1].layers[1], kind)
        assert inner["weight"] is views["1.1.weight"]
        assert flat.flags.writeable
        assert flat.ctypes.data % 64 == 0


# ---- arrays that a layer has left behind ---------------------------------------------------------------------------

PAIRS: dict[str, Callable[[Any], Any]] = {
    "dict": lambda layer: {name: (layer.params[name], layer.grads[name]) for name in layer.params},
    "list": lambda layer: [(layer.params[name], layer.grads[name]) for name in layer.params],
    "flat": lambda layer: [(layer.flat_params, layer.flat_grads)],
}


@pytest.mark.parametrize("pairs", PAIRS)
@pytest.mark.parametrize("nested", [False, True])
def test_an_optimizer_over_arrays_that_a_layer_has_left_refuses_to_step(pairs: str, nested: bool) -> None:
    layer: Any = gradcore.Linear(3, 2, rng=0)
    left = gradcore.Sequential(layer) if nested else layer
    opt, views = optim.SGD(PAIRS[pairs](left), lr=0.1), left.params
    model = gradcore.Sequential(left)
    before = model.flat_params.copy()
    model.flat_grads.fill(1)
    for call in (opt.step, lambda: opt.step(max_norm=1.0), opt.zero_grad):
        with pytest.raises(ValueError, match=r"params\[.*is read-only; if its layer joined a model"):
            call()
    with pytest.raises(ValueError, match="read-only"):
        gradcore.clip_grad_norm_(opt, 0.1)
    assert same_bits(model.flat_params, before)
    assert views is left.params  # the mapping goes with the layer, and so does what is built now
    optim.SGD(PAIRS[pairs](left), lr=0.1).step()
    np.testing.assert_allclose(model.flat_params, before - np.float32(0.1), rtol=1e-6)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda a: pickle.loads(pickle.dumps(a))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("first", ["layer", "view"])
def test_a_view_copied_with_its_layer_is_read_only(copied: Any, first: str) -> None:
    layer = gradcore.Linear(3, 2, rng=0)
    both = {"layer": layer, "view": layer.params["weight"]}
    twin = copied({name: both[name] for name in sorted(both, reverse=first == "view")})
    assert twin["view"] is not twin["layer"].params["weight"]
    assert not twin["view"].flags.writeable
    assert same_bits(twin["view"], layer.params["weight"])
    assert layer.params["weight"].flags.writeable


# ---- handlers that come back ---------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")
@pytest.mark.parametrize("around", [False, True], ids=["layer", "model"])
@pytest.mark.parametrize("name", ["RNN", "LSTM", "Linear"])
def test_a_handler_cannot_run_backward_of_the_layer_it_interrupts(name: str, around: bool) -> None:
    inner: Any = LAYERS[name]()
    layer = gradcore.Sequential(inner, gradcore.Linear(4, 2, dtype=np.float64)) if around else inner
    x = np.ones((4, 2, 3))
    y, tape = layer.forward(x)
    layer.backward(tape, np.ones_like(y))
    once = layer.flat_grads.copy()
    said: list[str] = []

    def handler(*_: Any) -> None:
        with pytest.raises(RuntimeError, match="in the middle of a backward pass of the same layer") as info:
            layer.backward(tape, np.ones_like(y))
        said.append(str(info.value))

    before = signal.signal(signal.SIGALRM, handler)
    try:
        with inner._adding.lock:  # where the kernel hears of signals
            signal.raise_signal(signal.SIGALRM)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert len(said) == 1
    assert same_bits(layer.flat_grads, once)
    layer.backward(tape, np.ones_like(y))  # which it does not stay
    np.testing.assert_allclose(layer.flat_grads, 2 * once)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")
def test_a_handler_inside_the_kernel_is_refused() -> None:
    layer: Any = gradcore.LSTM(16, 64, rng=0)
    y, tape = layer.forward(np.ones((2000, 8, 16), np.float32))
    refused: list[bool] = []

    def handler(*_: Any) -> None:
        inside = layer._adding.lock._is_owned()
        try:
            layer.backward(tape, np.ones_like(y))
        except RuntimeError:
            refused.append(inside)

    before = signal.signal(signal.SIGALRM, handler)
    try:
        while not refused:  # until one comes while the kernel runs
            signal.setitimer(signal.ITIMER_REAL, 0.005)
            layer.backward(tape, np.ones_like(y))
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert refused == [True]


# ---- one instruction set to another --------------------------------------------------------------------------------

WRITE = """
import pickle, sys, numpy as np, gradcore
saved = {}
for name, arguments in (("RNN", {}), ("LSTM", {"num_layers": 2}), ("GRU", {"bidirectional": True})):
    layer = getattr(gradcore, name)(3, 13, dtype=np.float64, rng=0, **arguments)
    x = np.random.default_rng(1).standard_normal((5, 2, 3))
    y, tape = layer.forward(x, lengths=[5, 3])
    saved[name] = pickle.dumps((layer, tape, x, y))
pickle.dump(saved, open(sys.argv[1], "wb"))
"""

READ = """
import pickle, sys, numpy as np, gradcore
from gradcore import spectral
for path in sys.argv[1:]:
    for name, saved in pickle.load(open(path, "rb")).items():
        layer, tape, x, want = pickle.loads(saved)
        fresh = getattr(gradcore, name)(3, 13, layer.num_layers, bidirectional=layer.bidirectional, dtype=np.float64)
        fresh.load_state_dict(layer.state_dict())
        found = []
        for each in (fresh, layer):  # the layer that came from elsewhere, and one made here
            y, own = each.forward(x, lengths=[5, 3])
            dx = each.backward(own, np.ones_like(y))
            record = own.record(0, 2, 1)
            found.append([y, dx, each.flat_grads.copy(), record.gates, record.h, spectral.jacobian(each, own, 2, 1)])
        assert all(np.array_equal(a, b) for a, b in zip(*found)), name
        assert np.allclose(found[0][0], want, rtol=1e-12), name
        said, calls = [], [
            lambda: layer.backward(tape, np.ones_like(want)),
            lambda: tape.record(0, 2, 1).gates,
            lambda: spectral.jacobian(layer, tape, 2, 1),
        ]
        if name == "RNN":
            calls.append(lambda: gradcore.VanishingGradientRegularizer(1.0)(layer, tape, np.ones_like(want)))
        for call, value in zip(calls, (found[0][1], found[0][3], found[0][5], None)):
            grads = layer.flat_grads.copy()
            try:
                got = call()
                assert value is None or np.allclose(got, value, rtol=1e-12), name
                said.append("right")
            except ValueError as error:
                assert np.array_equal(layer.flat_grads, grads)
                said.append(str(error))
        assert len(set(said)) == 1, said
        print(said[0])
"""


def test_a_pickle_from_another_instruction_set_is_right_or_refused(tmp_path: Path) -> None:
    isas = supported_isas()
    for isa in isas:
        done = python(isa, "-c", WRITE, str(tmp_path / isa))
        assert done.returncode == 0, done.stderr
    for isa in isas:
        done = python(isa, "-c", READ, *(str(tmp_path / written) for written in isas))
        assert done.returncode == 0, done.stderr
        refusals = [
            f"tape: was made with the instruction set {written}, and this process uses {isa}; "
            f"run forward again here, or set GRADCORE_ISA={written}"
            if written != isa
            else "right"
            for written in isas
            for _ in range(3)
        ]
        assert done.stdout.splitlines() == refusals


# ---- tapes ----------------------------------------------------------------------------------------------------------


class Lookup(gradcore.Linear):
    """Integers in, so no gradient with respect to them."""

    def forward(self, x: Any) -> Any:
        return super().forward(np.eye(self.in_features, dtype=self.dtype)[x])

    def backward(self, tape: Any, dy: Any) -> Any:
        super().backward(tape, dy)


def test_a_tape_walks_over_all_its_members() -> None:
    gru = gradcore.GRU(2, 4, 2, bidirectional=True, rng=0)
    model = gradcore.Sequential(Lookup(5, 2), gradcore.Sequential(gru, gradcore.Tanh()), gradcore.Linear(8, 3))
    y, tape = model.forward(np.arange(10).reshape(5, 2) % 5)
    assert all(member.dx_norm is member.dy_norm is None for member in tape.walk())
    assert not any(list(member.profiles()) for member in tape.walk())
    dy = np.ones_like(y)
    dy[0, 0] = np.nan
    assert model.backward(tape, dy) is None
    members = list(tape.walk())
    assert [(member.name, type(member.tape.layer)) for member in members] == [
        ("", gradcore.Sequential), ("0", Lookup), ("1", gradcore.Sequential), ("1.0", gradcore.GRU),
        ("1.1", gradcore.Tanh), ("2", gradcore.Linear),
    ]  # fmt: skip
    assert all(member.in_chain for member in members)
    assert members[1].dx_norm is None  # not the same as NaN
    assert math.isnan(members[1].dy_norm)
    assert members[3].dx_norm == members[2].dx_norm or math.isnan(members[3].dx_norm)
    assert members[3].tape.first_nonfinite == (1, 0, 0)
    seen = StepTelemetry(tape)
    assert [profile.name for profile in seen.profiles] == ["1.0.l0", "1.0.l0_reverse", "1.0.l1", "1.0.l1_reverse"]
    assert list(seen.d_norm) == ["1", "2", "output"]
    assert seen.first_nonfinite == {"1.0": (1, 0, 0)}
    assert StepTelemetry.of(seen) is seen


@pytest.mark.parametrize(
    "layer",
    [gradcore.Linear(3, 3), gradcore.Tanh(), gradcore.LastStep(), gradcore.GRU(3, 3), gradcore.MLP([3, 3])],
    ids=lambda layer: type(layer).__name__,
)
def test_every_layer_refuses_the_tape_of_another(layer: Any) -> None:
    y, tape = copy.deepcopy(layer).forward(np.ones((4, 2, 3), np.float32))
    for wrong in (tape, None, object(), tape.layer):
        with pytest.raises(ValueError, match=r"^tape: expected a tape from this layer's forward$"):
            layer.backward(wrong, np.ones_like(y))
    assert not layer.flat_grads.any()


@pytest.mark.parametrize(
    "values", [[3.0, 4.0], [1e30, 1e30], [np.nan, 1], [np.inf, 1], [], [[1.0, 2.0], [3.0, 4.0]]], ids=str
)
def test_the_norm_of_one_array(values: Any) -> None:
    for array in (np.array(values, np.float32), np.array(values).T[..., ::-1]):
        assert norm_of(array) == pytest.approx(float(gradcore.grad_norm(array)), rel=0, nan_ok=True)
    assert norm_of(None) is None
