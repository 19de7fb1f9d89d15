"""gradcore.torch against torch.nn: the same results, gradients of first and second order, errors and habits."""

from __future__ import annotations

import copy
import gc
import importlib
import io
import pickle
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from conftest import LONG

import gradcore

torch = pytest.importorskip("torch")
bridge = importlib.import_module("gradcore.torch")
gradcheck, gradgradcheck = torch.autograd.gradcheck, torch.autograd.gradgradcheck
rnn = torch.nn.utils.rnn

pytestmark = [pytest.mark.peers, pytest.mark.usefixtures("one_torch_thread")]

KINDS = ["LSTM", "GRU", "RNN"]
each_kind = pytest.mark.parametrize("kind", KINDS)


def twins(kind: str, *args: Any, **options: Any) -> tuple[Any, Any]:
    """A layer of ours and one of torch.nn with the same parameters."""
    options = {"dtype": torch.float64, **options}
    ours, theirs = getattr(bridge, kind)(*args, **options), getattr(torch.nn, kind)(*args, **options)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def as_hx(kind: str, parts: list[Any]) -> Any:
    if not parts:
        return None
    return tuple(parts) if kind == "LSTM" else parts[0]


def flat(result: Any) -> list[Any]:
    """The tensors of what a layer returns."""
    y, state = result
    return [y.data if isinstance(y, rnn.PackedSequence) else y, *(state if isinstance(state, tuple) else (state,))]


def close(got: Any, want: Any, tolerance: float) -> None:
    """Each tensor within the tolerance of its largest value."""
    for a, b in zip(got, want, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert a.shape == b.shape
            assert a.dtype == b.dtype
            scale = max(1.0, b.abs().max().item()) if b.numel() else 1.0
            torch.testing.assert_close(a, b, rtol=0, atol=tolerance * scale)


class Configuration:
    """A random layer and a random batch for it, in a given dtype."""

    def __init__(self, seed: int) -> None:
        rng = self.rng = np.random.default_rng(seed)

        def chance(p: float = 0.5) -> bool:
            return bool(rng.random() < p)

        self.seed, self.kind = seed, KINDS[seed % 3]
        self.args = int(rng.integers(1, 7)), int(rng.integers(1, 9)), int(rng.integers(1, 4))
        self.options: dict[str, Any] = {"bias": chance(0.7), "batch_first": chance(), "bidirectional": chance()}
        if self.args[2] > 1 and chance():
            self.options["dropout"] = float(rng.uniform(0, 0.9))
        if self.kind == "RNN":
            self.options["nonlinearity"] = ("tanh", "relu")[int(chance())]
        self.trains = chance(0.7)
        self.T, self.B = int(rng.integers(1, 8)), int(rng.integers(1, 6))
        self.form = ("batch", "batch", "alone", "packed sorted", "packed", "packed")[int(rng.integers(6))]
        self.has_state, self.reads_state, self.reads_y = chance(), chance(), chance(0.85)
        self.strided = chance(0.3)
        self.frozen = chance(0.2)
        self.lengths = rng.integers(1, self.T + 1, self.B)

    def layers(self, dtype: Any) -> tuple[Any, Any]:
        torch.manual_seed(self.seed)
        pair = twins(self.kind, *self.args, dtype=dtype, **self.options)
        for layer in pair:
            layer.train(self.trains)
            if self.frozen:
                layer.weight_hh_l0.requires_grad_(False)
        return pair

    def inputs(self, dtype: Any) -> tuple[Any, list[Any], list[Any]]:
        """What the layer is called with, and the leaves in it: x first, and the parts of the state."""
        torch.manual_seed(self.seed + 1)
        I, H, L = self.args
        n = L * (2 if self.options["bidirectional"] else 1)
        T, B, alone = self.T, self.B, self.form == "alone"
        first = self.options["batch_first"]
        shape = (T, I) if alone else (B, T, I) if first else (T, B, I)
        x = (
            torch.randn(*shape, 2, dtype=torch.float64)[..., 0]
            if self.strided
            else torch.randn(shape, dtype=torch.float64)
        )
        x = x.to(dtype).detach().requires_grad_()
        state = []
        if self.has_state:
            for _ in range(2 if self.kind == "LSTM" else 1):
                part = torch.randn((n, H) if alone else (n, B, H), dtype=torch.float64).to(dtype)
                state.append(part.requires_grad_())
        entering: Any = x
        if self.form.startswith("packed"):
            lengths = np.sort(self.lengths)[::-1].copy() if "sorted" in self.form else self.lengths
            entering = rnn.pack_padded_sequence(x, torch.tensor(lengths), first, enforce_sorted="sorted" in self.form)
        return entering, state, [x, *state]

    def results(self, layer: Any, dtype: Any, second: bool) -> list[Any]:
        """The outputs, the gradients, and the gradients of the squares of these."""
        entering, state, leaves = self.inputs(dtype)
        torch.manual_seed(self.seed + 2)
        outputs = flat(layer(entering, as_hx(self.kind, state)))
        read = [*outputs[:1]] * self.reads_y + outputs[1:] * (self.reads_state or not self.reads_y)
        loss = sum((part.sin() * (1 + 0.1 * k)).sum() for k, part in enumerate(read))
        variables = [*leaves, *(p for p in layer.parameters() if p.requires_grad)]
        grads = torch.autograd.grad(loss, variables, create_graph=second, allow_unused=True)
        found = [*(part.detach() for part in outputs), *(None if g is None else g.detach() for g in grads)]
        if second:
            squares = sum(g.square().sum() for g in grads if g is not None)
            if squares.requires_grad:
                found += torch.autograd.grad(squares, variables, allow_unused=True)
        return found

    def __repr__(self) -> str:
        return f"{self.kind}{self.args} {self.options} {self.form} T={self.T} B={self.B}"


@pytest.mark.parametrize("start", range(0, 240, 16))
def test_random_configurations(start: int) -> None:
    for seed in range(start, start + 16):
        case = Configuration(seed)
        for dtype, second, tolerance in ((torch.float64, True, 1e-10), (torch.float32, False, 2e-5)):
            ours, theirs = case.layers(dtype)
            got, want = (case.results(layer, dtype, second) for layer in (ours, theirs))
            try:
                close(got, want, tolerance)
            except AssertionError as error:
                raise AssertionError(f"seed {seed}: {case}: {error}") from None
            assert not ours.fallbacks, case


def call_with(layer: Any, x: Any, state: list[Any], names: list[str], parameters: Any) -> list[Any]:
    values = dict(zip(names, parameters, strict=True))
    return flat(torch.func.functional_call(layer, values, (x, as_hx(layer.mode, state))))


@each_kind
@pytest.mark.parametrize(("layers", "bidirectional", "bias"), [(1, False, True), (1, True, False), (2, True, True)])
def test_gradients_to_second_order(kind: str, layers: int, bidirectional: bool, bias: bool) -> None:
    layer, _ = twins(kind, 2, 3, layers, bidirectional=bidirectional, bias=bias)
    n = layers * (2 if bidirectional else 1)
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    n_parts = 2 if kind == "LSTM" else 1
    state = [torch.randn(n, 2, 3, dtype=torch.float64, requires_grad=True) for _ in range(n_parts)]
    names = [name for name, _ in layer.named_parameters()]

    def f(x: Any, *rest: Any) -> Any:
        return tuple(call_with(layer, x, list(rest[:n_parts]), names, rest[n_parts:]))

    arguments = (x, *state, *layer.parameters())
    assert gradcheck(f, arguments, fast_mode=layers > 1)
    assert gradgradcheck(f, arguments, fast_mode=layers > 1)
    assert gradcheck(f, arguments, check_batched_grad=True, fast_mode=True)


@each_kind
def test_a_third_derivative(kind: str) -> None:
    def third(layer: Any) -> Any:
        x = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 2, 2).requires_grad_()
        value = layer(x)[0].sin().sum()
        for _ in range(3):
            (grad,) = torch.autograd.grad(value, x, create_graph=True)
            value = grad.square().sum()
        return grad.detach()

    ours, theirs = twins(kind, 2, 3)
    close([third(ours)], [third(theirs)], 1e-9)


@each_kind
def test_a_gradient_penalty_reaches_the_weights(kind: str) -> None:
    """dy has no graph here, so that a function which is differentiable only once would not be noticed."""
    found = []
    for layer in twins(kind, 3, 5):
        x = torch.ones(6, 2, 3, dtype=torch.float64, requires_grad=True)
        (dx,) = torch.autograd.grad(layer(x)[0].sum(), x, create_graph=True)
        dx.norm().backward()
        found.append([p.grad for p in layer.parameters()])
    close(*found, 1e-12)
    assert found[0][1].norm() > 1e-3


@each_kind
def test_none_where_no_gradient_is_asked_for(kind: str) -> None:
    layer, _ = twins(kind, 3, 4, 2)
    layer.bias_hh_l1.requires_grad_(False)
    x = torch.ones(5, 2, 3, dtype=torch.float64)
    y, state = layer(x)
    y.sum().backward()
    assert x.grad is None
    assert {name for name, p in layer.named_parameters() if p.grad is None} == {"bias_hh_l1"}
    for p in layer.parameters():
        p.requires_grad_(False)
    y, state = layer(x)
    assert not y.requires_grad
    assert not any(part.requires_grad for part in flat((y, state)))
    x.requires_grad_()
    layer(x)[0].sum().backward()
    assert x.grad is not None


@each_kind
def test_a_layer_used_twice_in_a_graph_and_a_graph_used_twice(kind: str) -> None:
    found = []
    for layer in twins(kind, 4, 4):
        x = torch.linspace(-1, 1, 40, dtype=torch.float64).reshape(5, 2, 4).requires_grad_()
        y, state = layer(x)
        y, _ = layer(y, state)
        loss = y.square().sum()
        loss.backward(retain_graph=True)
        loss.backward()
        found.append([x.grad, *(p.grad for p in layer.parameters())])
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            loss.backward()
    close(*found, 1e-12)


@each_kind
@pytest.mark.parametrize("changed", ["x", "state", "weight"])
def test_a_change_in_place_after_forward_is_noticed(kind: str, changed: str) -> None:
    layer, _ = twins(kind, 3, 4)
    x, h = torch.ones(5, 2, 3, dtype=torch.float64), torch.ones(1, 2, 4, dtype=torch.float64)
    y, _ = layer(x, (h, h) if kind == "LSTM" else h)
    with torch.no_grad():
        {"x": x, "state": h, "weight": layer.weight_hh_l0}[changed].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@each_kind
def test_nothing_is_kept_after_backward(kind: str) -> None:
    layer, _ = twins(kind, 3, 4, 2, dropout=0.5)
    kept: list[Any] = []

    def pack(tensor: Any) -> Any:
        alias = tensor.detach()
        kept.append(weakref.ref(alias))
        return alias

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y, _ = layer(torch.ones(5, 2, 3, dtype=torch.float64))
    loss = y.sum()
    del y
    gc.collect()
    assert len(kept) > 3
    assert all(ref() is not None for ref in kept)
    loss.backward()
    assert [ref for ref in kept if ref() is not None] == []


@each_kind
def test_empty_batches(kind: str) -> None:
    ours, theirs = twins(kind, 3, 4, 2, bidirectional=True)
    x = torch.ones(5, 0, 3, dtype=torch.float64)
    close(flat(ours(x)), flat(theirs(x)), 0)
    state = [torch.full((4, 2, 4), 0.5, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    x = torch.ones(0, 2, 3, dtype=torch.float64, requires_grad=True)
    y, *final = flat(ours(x, as_hx(kind, state if kind == "LSTM" else state[:1])))
    assert y.shape == (0, 2, 8)
    close(final, state[: len(final)], 0)
    variables = [x, state[0], ours.weight_hh_l0]
    dx, dh, dw = torch.autograd.grad(y.sum() + (final[0] * 3).sum(), variables, create_graph=True)
    assert dx.shape == x.shape
    assert (dh == 3).all()
    assert (dw == 0).all()
    assert all(g is None or not g.any() for g in torch.autograd.grad(dh.square().sum(), variables, allow_unused=True))


@each_kind
def test_wrong_arguments_are_refused_as_by_torch(kind: str) -> None:
    ours, theirs = twins(kind, 3, 4)
    x, h = torch.ones(5, 2, 3, dtype=torch.float64), torch.ones(1, 2, 4, dtype=torch.float64)
    hx = [h, h] if kind == "LSTM" else [h]
    cases: list[tuple[Any, ...]] = [
        (x[..., :2],), (x[0, 0],), (x.float(),), (x, as_hx(kind, [part[:, :1] for part in hx])), (x.numpy(),), ([1.0],),
        (x, as_hx(kind, [part[0] for part in hx])), (x[:, 0], as_hx(kind, hx)),
        (x, as_hx(kind, [part.float() for part in hx])),
    ]  # fmt: skip
    for case in cases:
        with pytest.raises(Exception) as wanted:  # noqa: PT011
            theirs(*case)
        with pytest.raises(type(wanted.value)) as got:
            ours(*case)
        assert str(got.value) == str(wanted.value)
    assert not ours.fallbacks
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        torch.func.functional_call(ours, {"weight_ih_l0": torch.ones(16, 2, dtype=torch.float64)}, (x,))


class TestFallbacks:
    """What the kernels cannot do is done by torch.nn, and said."""

    def both(self, kind: str, call: Any, reason: str, **options: Any) -> None:
        ours, theirs = twins(kind, 3, 4, **options)
        got, want = (flat(call(layer)) for layer in (ours, theirs))
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
        assert dict(ours.fallbacks) == {reason: 1}
        assert f"fallbacks={{{reason}: 1}}" in repr(ours)

    def test_projection(self) -> None:
        x = torch.ones(5, 2, 3, dtype=torch.float64)
        self.both("LSTM", lambda layer: layer(x), "projection", proj_size=2)

    @each_kind
    def test_dtype(self, kind: str) -> None:
        x = torch.ones(5, 2, 3, dtype=torch.bfloat16)
        self.both(kind, lambda layer: layer(x), "dtype", dtype=torch.bfloat16)

    @each_kind
    def test_device(self, kind: str) -> None:
        ours, theirs = twins(kind, 3, 4, device="meta", dtype=torch.float32)
        assert [t.shape for t in flat(ours(torch.ones(5, 2, 3, device="meta")))] == [
            t.shape for t in flat(theirs(torch.ones(5, 2, 3, device="meta")))
        ]
        assert dict(ours.fallbacks) == {"device": 1}

    @each_kind
    def test_autocast(self, kind: str) -> None:
        def call(layer: Any) -> Any:
            with torch.autocast("cpu", torch.bfloat16):
                return layer(torch.ones(5, 2, 3))

        self.both(kind, call, "autocast", dtype=torch.float32)

    @each_kind
    @pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
    def test_forward_mode(self, kind: str) -> None:
        x = torch.ones(5, 2, 3, dtype=torch.float64)
        self.both(kind, lambda layer: torch.func.jvp(lambda x: layer(x)[0], (x,), (x,)), "forward-mode differentiation")

    @each_kind
    def test_tensors_of_other_classes_and_modes(self, kind: str) -> None:
        from torch.utils.flop_counter import FlopCounterMode

        class Other(torch.Tensor):
            pass

        x = torch.ones(5, 2, 3, dtype=torch.float64)
        self.both(kind, lambda layer: layer(x.as_subclass(Other)), "subclass of Tensor")
        counts = []

        def counted(layer: Any) -> Any:
            with FlopCounterMode(display=False) as counter:
                found = layer(x)
            counts.append(counter.get_total_flops())
            return found

        self.both(kind, counted, "dispatch mode")
        assert counts[0] == counts[1] > 0

    @each_kind
    @pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
    def test_torchscript(self, kind: str) -> None:
        class Model(torch.nn.Module):
            def __init__(self, layer: Any) -> None:
                super().__init__()
                self.layer = layer

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.layer(x)[0]

        x = torch.ones(5, 2, 3, dtype=torch.float64)
        ours, theirs = twins(kind, 3, 4)
        close(
            [torch.jit.script(Model(ours))(x), *flat(torch.jit.trace(ours, (x,))(x))],
            [theirs(x)[0], *flat(theirs(x))],
            0,
        )
        assert set(ours.fallbacks) == {"export"}

    @each_kind
    @pytest.mark.filterwarnings("ignore:The tensor attributes self._flat_weights")  # as for torch.nn's
    def test_export(self, kind: str) -> None:
        x = torch.ones(5, 2, 3, dtype=torch.float64)
        ours, theirs = twins(kind, 3, 4)
        program = torch.export.export(ours, (x,))
        assert "gradcore" not in str(program)
        close(flat(program.module()(x)), flat(theirs(x)), 1e-12)


class TestConversion:
    def model(self) -> Any:
        class Twice(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first = torch.nn.LSTM(3, 4, batch_first=True)
                self.again = self.first
                self.second = torch.nn.ModuleList([torch.nn.GRU(4, 4), torch.nn.RNN(4, 4)])

            def forward(self, x: Any) -> Any:
                y, _ = self.first(x)
                for layer in self.second:
                    y, _ = layer(y)
                return y

        return Twice()

    def test_there_and_back(self) -> None:
        model = self.model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        calls: list[str] = []
        model.first.register_forward_hook(lambda *_: calls.append("forward"))
        model.first.weight_hh_l0.register_hook(lambda _: calls.append("gradient"))
        before, x = list(model.parameters()), torch.ones(2, 5, 3)
        repr_before, want = repr(model), model(x)
        own = set(vars(model.first))

        assert bridge.convert(model) is model
        assert bridge.convert(model) is model
        assert type(model.first) is bridge.LSTM
        assert model.again is model.first
        assert [type(layer) for layer in model.second] == [bridge.GRU, bridge.RNN]
        assert all(a is b for a, b in zip(before, model.parameters(), strict=True))
        assert repr(model) == repr_before
        calls.clear()
        y = model(x)
        torch.testing.assert_close(y, want)
        y.sum().backward()
        assert calls == ["forward", "gradient"]
        assert model.first.telemetry.dh_norm.shape == (1, 5)
        old = model.first.weight_hh_l0.detach().clone()
        optimizer.step()
        assert not torch.equal(old, model.first.weight_hh_l0)

        assert bridge.restore(model) is model
        assert bridge.restore(model) is model
        assert type(model.first) is torch.nn.LSTM
        assert set(vars(model.first)) == own
        assert all(a is b for a, b in zip(before, model.parameters(), strict=True))
        assert not any(type(layer).__module__.startswith("gradcore") for layer in model.modules())

    def test_others_are_left_alone(self) -> None:
        class Own(torch.nn.LSTM):
            def forward(self, *_: Any) -> Any:
                return "own"

        layers = torch.nn.ModuleList([Own(3, 4), torch.nn.LSTMCell(3, 4), torch.nn.Linear(3, 4)])
        classes = [type(layer) for layer in layers]
        bridge.convert(layers)
        assert [type(layer) for layer in layers] == classes

    @each_kind
    def test_a_parametrized_layer(self, kind: str) -> None:
        """Its class is its own, below torch.nn's."""
        layer = getattr(torch.nn, kind)(3, 4)
        other = torch.nn.utils.parametrizations.spectral_norm(getattr(torch.nn, kind)(3, 4), "weight_hh_l0")
        torch.nn.utils.parametrizations.orthogonal(layer, "weight_hh_l0")
        x = torch.ones(5, 2, 3)
        want = layer(x)[0]
        bridge.convert(layer)
        assert isinstance(layer, getattr(bridge, kind))
        assert not isinstance(other, getattr(bridge, kind))
        y = layer(x)[0]
        assert not layer.fallbacks
        torch.testing.assert_close(y, want)
        y.sum().backward()
        assert layer.parametrizations.weight_hh_l0.original.grad.any()
        bridge.restore(layer)
        assert not isinstance(layer, getattr(bridge, kind))
        torch.testing.assert_close(layer(x)[0], want)
        bridge.convert(layer)
        torch.nn.utils.parametrize.remove_parametrizations(layer, "weight_hh_l0")
        assert type(layer) is getattr(bridge, kind)
        torch.testing.assert_close(layer(x)[0], want)


class TestHabits:
    """What people do with modules."""

    @each_kind
    def test_copies_and_pickles(self, kind: str) -> None:
        layer, _ = twins(kind, 3, 4, 2, bidirectional=True)
        x = torch.ones(5, 2, 3, dtype=torch.float64)
        y, _ = layer(x)
        y.sum().backward()
        layer.fallbacks["device"] += 1
        file = io.BytesIO()
        torch.save(layer, file)
        file.seek(0)
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(file, weights_only=False)):
            assert type(other) is type(layer)
            assert other.telemetry is None
            assert not other.fallbacks
            torch.testing.assert_close(other(x)[0], y, rtol=0, atol=0)
            other(x)[0].sum().backward()
            assert other.telemetry is not layer.telemetry
            assert other.telemetry.dh_norm.shape == (4, 5)

    @each_kind
    def test_a_weight_set_by_a_hook(self, kind: str) -> None:
        """Weights are read by their names: the list that torch.nn keeps beside goes stale."""
        layer, _ = twins(kind, 3, 4)
        raw = torch.nn.Parameter(layer.weight_hh_l0.detach().clone())
        del layer._parameters["weight_hh_l0"]
        layer.register_parameter("raw", raw)
        layer.register_forward_pre_hook(lambda module, _: vars(module).update(weight_hh_l0=module.raw.tanh()))
        layer(torch.ones(5, 2, 3, dtype=torch.float64))[0].sum().backward()
        assert raw.grad.any()

    @each_kind
    @pytest.mark.parametrize("use_reentrant", [True, False])
    def test_checkpoint(self, kind: str, use_reentrant: bool) -> None:
        from torch.utils.checkpoint import checkpoint

        layer, _ = twins(kind, 3, 4)
        x = torch.linspace(-1, 1, 30, dtype=torch.float64).reshape(5, 2, 3).requires_grad_()
        variables = [x, *layer.parameters()]
        want = torch.autograd.grad(layer(x)[0].square().sum(), variables)
        y, _ = checkpoint(layer, x, use_reentrant=use_reentrant)
        y.square().sum().backward()
        close([v.grad for v in variables], want, 1e-14)

    @each_kind
    def test_saved_tensors_elsewhere(self, kind: str) -> None:
        layer, _ = twins(kind, 3, 4, 2)
        x = torch.ones(5, 2, 3, dtype=torch.float64)
        want = torch.autograd.grad(layer(x)[0].sum(), list(layer.parameters()))
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone().numpy(force=True), torch.tensor):
            y, _ = layer(x)
        close(torch.autograd.grad(y.sum(), list(layer.parameters())), want, 1e-14)

    @each_kind
    def test_transforms_of_functions(self, kind: str) -> None:
        """vmap folds into the batch, and gives the gradients of each sample by itself."""
        from torch.func import functional_call, grad, jacrev, vmap

        layer, theirs = twins(kind, 3, 4, 2, bidirectional=True)
        xs = torch.randn(6, 5, 2, 3, dtype=torch.float64)
        values = {name: p.detach() for name, p in layer.named_parameters()}

        def loss(values: Any, x: Any, of: Any = layer) -> Any:
            y, state = functional_call(of, values, (x,))
            return y.square().sum() + (state[0] if kind == "LSTM" else state).sum()

        alone = [grad(lambda v, x: loss(v, x, theirs))(values, x) for x in xs]
        together = vmap(grad(loss), in_dims=(None, 0))(values, xs)
        for name, per_sample in together.items():
            close(per_sample, [each[name] for each in alone], 1e-11)
        by_sum = grad(lambda v: vmap(loss, in_dims=(None, 0))(v, xs).sum())(values)
        for name, value in by_sum.items():
            close([value], [sum(each[name] for each in alone)], 1e-11)
        y = vmap(lambda x: layer(x)[0], in_dims=2, out_dims=1)(xs.movedim(0, 2))
        close(y.unbind(1), [theirs(x)[0] for x in xs], 1e-12)
        several = {name: torch.stack([p, 2 * p]) for name, p in values.items()}
        close(
            vmap(loss, in_dims=(0, None))(several, xs[0]),
            [loss({name: p[k] for name, p in several.items()}, xs[0], theirs) for k in range(2)], 1e-12,
        )  # fmt: skip
        x = xs[0]
        close([jacrev(lambda x: layer(x)[0])(x)], [jacrev(lambda x: theirs(x)[0])(x)], 1e-12)
        second = [grad(lambda x, of=of: grad(loss, 1)(values, x, of).square().sum())(x) for of in (layer, theirs)]
        close(second[:1], second[1:], 1e-11)
        assert not layer.fallbacks

    @each_kind
    def test_telemetry_is_that_of_gradcore(self, kind: str) -> None:
        """In the order of the sequences as they came, also where PyTorch has sorted them in another way."""
        layer, _ = twins(kind, 3, 4, 2, bidirectional=True)
        own = getattr(gradcore, kind)(3, 4, 2, bidirectional=True, dtype=np.float64)
        own.load_state_dict({name: p.numpy(force=True) for name, p in layer.named_parameters()})
        lengths = [3, 5, 1, 5, 4]
        rng = np.random.default_rng(0)
        x, dy = rng.standard_normal((5, 5, 3)), rng.standard_normal((5, 5, 8))
        _, tape = own.forward(x, lengths=lengths)
        own.backward(tape, dy)
        packed = rnn.pack_padded_sequence(torch.tensor(x), torch.tensor(lengths), enforce_sorted=False)
        y, _ = rnn.pad_packed_sequence(layer(packed)[0])
        y.backward(torch.tensor(dy))
        for name in ("dh_norm", "dh_norm_per_sample", "dc_norm", "dc_norm_per_sample"):
            want, got = getattr(tape.telemetry, name), getattr(layer.telemetry, name)
            assert (want is None) == (got is None)
            if want is not None:
                np.testing.assert_allclose(got, want, rtol=1e-12, atol=0)
        assert type(layer.telemetry) is type(tape.telemetry)

    def test_workers_of_a_data_loader(self) -> None:
        """They are forked after the kernels have had threads of their own."""
        layer, theirs = twins("GRU", 3, 4)
        x = torch.ones(5, 1, 3, dtype=torch.float64)
        want = theirs(x)[0].detach()
        layer(x)[0].sum().backward()

        def trained(items: list[int]) -> Any:
            y, _ = layer(x)
            y.sum().backward()
            return y.detach()

        loader = torch.utils.data.DataLoader(
            range(4), 2, collate_fn=trained, num_workers=2, multiprocessing_context="fork"
        )
        for y in loader:
            close([y], [want], 1e-14)

    def test_threads(self) -> None:
        """One layer in several threads, each with its own graph."""
        layer, theirs = twins("LSTM", 3, 16)
        xs = [torch.randn(20, 4, 3, dtype=torch.float64) for _ in range(4)]
        want = [torch.autograd.grad(theirs(x)[0].square().sum(), list(theirs.parameters())) for x in xs]
        found: dict[int, Any] = {}

        def work(k: int) -> None:
            for _ in range(20):
                found[k] = torch.autograd.grad(layer(xs[k])[0].square().sum(), list(layer.parameters()))

        threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for k in range(4):
            close(found[k], want[k], 1e-12)


class TestCompile:
    """torch.compile, which has a switch of its own for recurrent layers."""

    @pytest.fixture(autouse=True)
    def dynamo(self) -> Iterator[None]:
        importlib.import_module("torch._dynamo").reset()
        with torch._dynamo.config.patch(allow_rnn=True):
            yield
        torch._dynamo.reset()

    @each_kind
    @pytest.mark.parametrize("batch_first", [True, False])
    def test_whole_with_states_dropout_and_frozen_weights(self, kind: str, batch_first: bool) -> None:
        layer, _ = twins(kind, 3, 4, 2, bidirectional=True, dropout=0.3, batch_first=batch_first)
        layer.bias_hh_l0.requires_grad_(False)
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        for T, reads_x in ((5, True), (7, False)):
            x = torch.randn(2, T, 3, dtype=torch.float64)
            x = (x if batch_first else x.transpose(0, 1)).requires_grad_(reads_x)
            state = [torch.randn(4, 2, 4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
            state = state if kind == "LSTM" else state[:1]
            variables = [v for v in (x, *state, *layer.parameters()) if v.requires_grad]
            found = []
            for f in (compiled, layer):
                torch.manual_seed(3)
                outputs = flat(f(x, as_hx(kind, state)))
                grads = torch.autograd.grad(sum(y.sin().sum() for y in outputs), variables)
                found.append([*(y.detach() for y in outputs), *grads])
                assert layer.telemetry.dh_norm.shape == (4, T)
            close(*found, 1e-13)
        assert not layer.fallbacks

    @each_kind
    def test_packed_sequences_break_the_graph(self, kind: str) -> None:
        layer, _ = twins(kind, 3, 4)
        packed = rnn.pack_sequence([torch.ones(n, 3, dtype=torch.float64) for n in (4, 2)])
        compiled = torch.compile(layer, backend="aot_eager")
        close(flat(compiled(packed)), flat(layer(packed)), 0)
        assert not layer.fallbacks

    @each_kind
    def test_a_model_without_the_switch_breaks_the_graph(self, kind: str) -> None:
        class Model(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer, self.head = getattr(bridge, kind)(3, 4), torch.nn.Linear(4, 1)

            def forward(self, x: Any) -> Any:
                return self.head(self.layer(x)[0])

        model, x = Model(), torch.ones(5, 2, 3)
        with torch._dynamo.config.patch(allow_rnn=False):
            close([torch.compile(model, backend="aot_eager")(x)], [model(x)], 1e-6)
        assert not model.layer.fallbacks

    @each_kind
    def test_operators(self, kind: str) -> None:
        """PyTorch's own checks of operators: schema, fake tensors, gradients."""
        operators = importlib.import_module("gradcore.torch.operators")
        layer, _ = twins(kind, 3, 4, 2, bias=False)
        x = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
        arguments = (x, list(layer.parameters()), kind.lower().replace("rnn", "rnn_tanh"), 2, 1, False, 0, 0, 0)
        found = torch.library.opcheck(operators._recurrent, arguments)
        assert set(found.values()) == {"SUCCESS"}


def test_without_torch_the_message_names_the_extra() -> None:
    code = "import sys; sys.modules['torch'] = None; import gradcore.torch"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stderr.splitlines()[-1] == (
        'ModuleNotFoundError: gradcore.torch needs PyTorch: pip install "gradcore[torch]"'
    )


class TestModuleDatabase:
    """PyTorch's own module database, with the class swapped."""

    def info(self, kind: str) -> Any:
        modules = pytest.importorskip("torch.testing._internal.common_modules")
        (info,) = (info for info in modules.module_db if info.name == f"nn.{kind}")
        return info

    def cases(self, kind: str, dtype: Any, training: bool = True, **more: Any) -> Iterator[tuple[Any, Any, Any, Any]]:
        """Ours, torch.nn's with the same parameters, the arguments, and the case itself."""
        info = self.info(kind)
        options = {"device": "cpu", "dtype": dtype, "requires_grad": True, "training": training, **more}
        for case in info.module_inputs_func(info, **options):
            given = case.constructor_input
            theirs = info.module_cls(*given.args, **given.kwargs).to(dtype)
            ours = getattr(bridge, kind)(*given.args, **given.kwargs).to(dtype)
            ours.load_state_dict(theirs.state_dict())
            yield ours.train(training), theirs.train(training), case.forward_input.args, case

    @each_kind
    @pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    def test_forward_gradients_and_references(self, kind: str, training: bool, dtype: Any) -> None:
        tolerance, n = 1e-12 if dtype == torch.float64 else 1e-5, 0
        more = {} if kind == "LSTM" else {"with_packed_sequence": True}
        for ours, theirs, args, case in self.cases(kind, dtype, training, **more):
            packed = isinstance(args[0], rnn.PackedSequence)
            found = []
            for layer in (ours, theirs):
                for p in layer.parameters():
                    p.grad = None
                outputs = flat(layer(*args))
                sum(y.sin().sum() for y in outputs).backward()
                found.append([*(y.detach() for y in outputs), *(p.grad for p in layer.parameters())])
            close(*found, tolerance)
            if not packed:
                want = case.reference_fn(ours, *args)
                torch.testing.assert_close(ours(*args), want, rtol=0, atol=tolerance)
                strided = [
                    torch.stack([part] * 2, -1)[..., 0] if isinstance(part, torch.Tensor) else part for part in args
                ]
                close(flat(ours(*strided)), found[0][: len(outputs)], tolerance)
            assert bool(ours.fallbacks) == bool(ours.proj_size)
            n += 1
        assert n >= 16

    @each_kind
    def test_gradients_numerically(self, kind: str) -> None:
        for ours, _, args, _ in list(self.cases(kind, torch.float64))[:: 1 if LONG else 5]:
            tensors = [
                args[0],
                *(args[1] if isinstance(args[1:2], tuple) and kind == "LSTM" and args[1:] else args[1:]),
            ]
            names = [name for name, _ in ours.named_parameters()]

            def f(*values: Any, ours: Any = ours, names: Any = names, n: int = len(tensors)) -> Any:
                return tuple(call_with(ours, values[0], list(values[1:n]), names, values[n:]))

            assert gradcheck(f, (*tensors, *ours.parameters()), fast_mode=True)
            assert gradgradcheck(f, (*tensors, *ours.parameters()), fast_mode=True)

    @each_kind
    def test_pickle_repr_and_factory_arguments(self, kind: str) -> None:
        for ours, theirs, args, case in self.cases(kind, torch.float64):
            assert repr(ours) == repr(theirs)
            other = pickle.loads(pickle.dumps(ours))
            close(flat(other(*args)), flat(ours(*args)), 0)
            given = case.constructor_input
            made = getattr(bridge, kind)(*given.args, **given.kwargs, device="meta", dtype=torch.float64)
            assert {(p.device.type, p.dtype) for p in made.parameters()} == {("meta", torch.float64)}

    @each_kind
    def test_errors(self, kind: str) -> None:
        info = self.info(kind)
        options = {"device": "cpu", "dtype": torch.float64, "requires_grad": False, "training": True}
        for case in info.module_error_inputs_func(info, **options):
            given, call = case.module_error_input.constructor_input, case.module_error_input.forward_input
            with pytest.raises(case.error_type, match=case.error_regex):
                getattr(bridge, kind)(*given.args, **given.kwargs)(*call.args, **call.kwargs)
