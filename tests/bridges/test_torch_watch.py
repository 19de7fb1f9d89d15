"""gradcore.torch.watch in the loops that people write: what it sees, what it changes, and what it leaves alone."""

from __future__ import annotations

import copy
import importlib
import math
import os
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gradcore
from gradcore.training.monitor import GradientMonitor

torch = pytest.importorskip("torch")
bridge = importlib.import_module("gradcore.torch")
nn = torch.nn

pytestmark = [pytest.mark.peers, pytest.mark.usefixtures("one_torch_thread")]


class Recurrent(nn.Module):
    """A recurrent layer and a head on its last step."""

    def __init__(self, kind: str = "LSTM", **options: Any) -> None:
        super().__init__()
        self.rnn = getattr(nn, kind)(3, 8, **options)
        self.head = nn.Linear(16 if options.get("bidirectional") else 8, 1)

    def forward(self, x: Any) -> Any:
        return self.head(self.rnn(x)[0][-1])


class Looped(nn.Module):
    """The same with a cell that is called at every step."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.cell, self.head = getattr(nn, f"{kind}Cell")(3, 8), nn.Linear(8, 1)

    def forward(self, x: Any) -> Any:
        state = None
        for x_t in x:
            state = self.cell(x_t, state)
        return self.head(state[0] if isinstance(state, tuple) else state)


def mlp(*sizes: int, activation: Any = nn.Tanh) -> Any:
    layers: list[Any] = []
    for n_in, n_out in pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), activation()]
    return nn.Sequential(*layers[:-1])


def batch(T: int = 12, B: int = 4) -> Any:
    return torch.randn(T, B, 3)


def run(model: Any, optimizer: Any, batches: list[Any], clip: Callable[[], Any] | None = None) -> list[float]:
    """The loop that everybody writes; what `clip` returns at each step."""
    found = []
    for x in batches:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        found.append(None if clip is None else float(clip()))
        optimizer.step()
    return found


def twin_of(model: Any, kind: Any = torch.optim.Adam, **options: Any) -> tuple[Any, Any]:
    """A copy of a model with an optimizer of its own."""
    other = copy.deepcopy(model)
    return other, kind(other.parameters(), **options)


def bits(model: Any, optimizer: Any) -> list[bytes]:
    """All that a step changes."""
    state = [value for each in optimizer.state.values() for value in each.values()]
    tensors = [*model.parameters(), *(value for value in state if isinstance(value, torch.Tensor))]
    return [tensor.detach().numpy().tobytes() for tensor in tensors]


def assert_clean(model: Any, optimizer: Any, backward: Any) -> None:
    assert torch.autograd.backward is backward
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not isinstance(module, (bridge.LSTM, bridge.GRU, bridge.RNN))


# ---- norms and clipping ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("max_norm", [None, 0.05])
def test_norms_are_those_before_clipping_and_clipping_is_that_of_torch(kind: str, max_norm: float | None) -> None:
    model, backward = Recurrent(kind), torch.autograd.backward
    theirs, their_optimizer = twin_of(model)
    optimizer = torch.optim.Adam(model.parameters())
    batches = [batch() for _ in range(6)]
    limit = math.inf if max_norm is None else max_norm
    want = run(theirs, their_optimizer, batches, lambda: nn.utils.clip_grad_norm_(theirs.parameters(), limit))
    with bridge.watch(model, optimizer, max_norm=max_norm) as w:
        run(model, optimizer, batches)
    np.testing.assert_allclose(w.history.grad_norm, want, rtol=1e-5)
    for p, q in zip(model.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)
    assert w.history.clipped.tolist() == [norm > limit for norm in want]
    assert list(w.history.per_array) == [name for name, _ in model.named_parameters()]
    assert (w.history.lr == 1e-3).all()
    assert_clean(model, optimizer, backward)


def test_norms_equal_torchs_total_norm_and_the_loss_is_the_loops() -> None:
    model, losses, norms = mlp(3, 8, 8, 1), [], []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with bridge.watch(model, optimizer) as w:
        for _ in range(5):
            optimizer.zero_grad()
            loss = model(batch()).square().mean()
            loss.backward()
            losses.append(loss.item())
            norms.append(float(nn.utils.get_total_norm([p.grad for p in model.parameters()])))
            optimizer.step()
    assert w.history.loss.tolist() == losses
    np.testing.assert_allclose(w.history.grad_norm, norms, rtol=1e-6)


def test_a_threshold_and_a_schedule() -> None:
    for max_norm in (gradcore.threshold.FromFirst(steps=2, factor=0.5), lambda step: 0.5 / (1 + step)):
        model = mlp(3, 8, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        with bridge.watch(model, optimizer, max_norm=max_norm) as w:
            run(model, optimizer, [torch.ones(4, 3)] * 4)
        first = w.history.grad_norm[0]
        want = [0.5, 0.25, 0.5 / 3, 0.125]
        if hasattr(max_norm, "update"):
            want = [math.inf, math.inf, first / 2, first / 2]
        np.testing.assert_allclose(w.history.max_norm, want)
        np.testing.assert_allclose(
            float(gradcore.grad_norm(model.parameters())), min(want[-1], float(first)), rtol=1e-5
        )


# ---- gradients that are not finite -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}),
        (torch.optim.Adam, {"foreach": True}),
        (torch.optim.AdamW, {"fused": True}),
        (torch.optim.RMSprop, {"foreach": False}),
    ],
)
def test_a_skipped_step_changes_no_bit(kind: Any, options: Any) -> None:
    model = Recurrent()
    optimizer = kind(model.parameters(), **options)
    with bridge.watch(model, optimizer) as w:
        run(model, optimizer, [batch(), batch()])
        before = bits(model, optimizer)
        optimizer.zero_grad()
        (model(batch()).square().mean() * math.nan).backward()
        grads = [p.grad for p in model.parameters()]
        optimizer.step()
        assert bits(model, optimizer) == before
        assert all(p.grad is grad for p, grad in zip(model.parameters(), grads, strict=True))
        run(model, optimizer, [batch()])
        assert bits(model, optimizer) != before
    assert w.history.skipped.tolist() == [False, False, True, False]
    assert w.history.n_nan[2] > 0
    assert "nan_loss" in [finding.kind for finding in w.findings]


def test_zero_and_raise() -> None:
    model = mlp(3, 8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def broken() -> None:
        optimizer.zero_grad()
        model(batch()).mean().backward()
        model[0].weight.grad[1, 2] = math.inf

    with bridge.watch(model, optimizer, nonfinite="zero") as w:
        broken()
        optimizer.step()
    assert model[0].weight.grad[1, 2] == 0
    assert w.history.n_inf.tolist() == [1]
    assert not w.history.skipped.any()
    before, backward = bits(model, optimizer), torch.autograd.backward
    with bridge.watch(model, optimizer, nonfinite="raise"):
        broken()
        with pytest.raises(FloatingPointError, match=r"grads\['0.weight'\]: Inf at \(1, 2\)"):
            optimizer.step()
    assert bits(model, optimizer) == before
    assert model[0].weight.grad is not None
    assert_clean(model, optimizer, backward)


# ---- time and depth --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_a_cell_in_a_loop_tells_what_the_layer_does(kind: str) -> None:
    layer, cell = Recurrent(kind), Looped(kind)
    names = {"rnn.": "cell."}
    state = {k.replace("rnn.", names["rnn."]).replace("_l0", ""): v for k, v in layer.state_dict().items()}
    cell.load_state_dict(state)
    batches = [batch(), batch(9), batch()]
    profiles = []
    for model in (layer, cell):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        with bridge.watch(model, optimizer) as w:
            run(model, optimizer, batches)
        profiles.append(w.history)
    assert list(profiles[0].dh_first) == ["rnn.l0"]
    assert list(profiles[1].dh_first) == ["cell.l0"]
    np.testing.assert_allclose(profiles[1].dh_profile["cell.l0"], profiles[0].dh_profile["rnn.l0"], rtol=2e-4)
    np.testing.assert_allclose(profiles[1].dh_first["cell.l0"], profiles[0].dh_first["rnn.l0"], rtol=2e-4)
    np.testing.assert_allclose(profiles[1].dh_log_mean["cell.l0"], profiles[0].dh_log_mean["rnn.l0"], atol=2e-4)


def test_a_cell_whose_model_is_called_for_each_step() -> None:
    """As in reinforcement learning: the loop over time is the user's, and so is the state."""
    cell = nn.GRUCell(3, 8)
    model = nn.ModuleDict({"cell": cell})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with bridge.watch(model, optimizer) as w:
        for _ in range(2):
            optimizer.zero_grad()
            h = torch.zeros(4, 8)
            for x_t in batch(7):
                h = cell(x_t, hx=h)
            h.sum().backward()
            optimizer.step()
    assert w.history.dh_profile["cell.l0"].shape == (7,)
    assert (w.history.dh_profile["cell.l0"] > 0).all()


def test_both_directions_and_layers_have_their_names() -> None:
    model = Recurrent("GRU", num_layers=2, bidirectional=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with bridge.watch(model, optimizer) as w:
        run(model, optimizer, [batch()])
    assert list(w.history.dh_first) == ["rnn.l0", "rnn.l0_reverse", "rnn.l1", "rnn.l1_reverse"]


def test_a_layer_by_itself_is_called_as_in_gradcore() -> None:
    model = nn.LSTM(3, 5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with bridge.watch(model, optimizer) as w:
        model(batch())[0].sum().backward()
        optimizer.step()
    assert list(w.history.dh_first) == ["l0"]


@pytest.mark.parametrize("in_place", [False, True])
def test_norms_of_layers_are_those_of_gradcore(in_place: bool) -> None:
    """Nested, so that names have dots, with activations that may change their input."""
    model = nn.Sequential(nn.Sequential(nn.Linear(3, 8), nn.ReLU(inplace=in_place)), nn.Linear(8, 8), nn.Linear(8, 2))
    ours = gradcore.Sequential(*(gradcore.Linear(*size) for size in ((3, 8),)), gradcore.ReLU(),
                               gradcore.Linear(8, 8), gradcore.Linear(8, 2))  # fmt: skip
    theirs = [parameter.detach().numpy() for parameter in model.parameters()]
    ours.load_state_dict(dict(zip(ours.params, theirs, strict=True)))
    x = torch.randn(6, 3)
    y, tape = ours.forward(x.numpy())
    ours.backward(tape, np.ones_like(y))
    want = gradcore.layers.telemetry.StepTelemetry(tape).d_norm
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with bridge.watch(model, optimizer) as w:
        model(x).sum().backward()
        optimizer.step()
    found = {name: values[0] for name, values in w.history.d_norm.items()}
    np.testing.assert_allclose(
        [found[name] for name in ("0.1", "1", "2", "output")] if not in_place else [found[n] for n in ("1", "2")],
        [want[name] for name in ("1", "2", "3", "output")] if not in_place else [want[n] for n in ("2", "3")],
        rtol=1e-5,
    )


class Deep(nn.Module):
    """Functions between the layers, as models of one's own have them; or branches beside them."""

    def __init__(self, n: int, branches: bool) -> None:
        super().__init__()
        self.layers, self.branches = nn.ModuleList(nn.Linear(8, 8) for _ in range(n)), branches

    def forward(self, x: Any) -> Any:
        for layer in self.layers:
            x = (x if self.branches else 0) + torch.sigmoid(layer(x)) * 0.1
        return x


@pytest.mark.parametrize("branches", [False, True])
@pytest.mark.parametrize("every", [1, 3])
def test_vanishing_in_layers_is_found_in_a_chain_only(branches: bool, every: int) -> None:
    model = Deep(8, branches)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with bridge.watch(model, optimizer, every=every) as w:
        run(model, optimizer, [torch.randn(4, 8) for _ in range(20)])
    assert ("vanishing_in_layers" in [finding.kind for finding in w.findings]) is not branches
    seen = np.isfinite(w.history.d_norm["output"])
    assert seen.tolist() == [step % every == 0 for step in range(20)]


def test_a_module_called_twice_has_the_norm_of_both() -> None:
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.Tanh(), shared)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    x = torch.randn(5, 4)
    first = shared(x)
    second = shared(first.tanh())
    want = [torch.linalg.vector_norm(grad) for grad in torch.autograd.grad(second.sum(), [first, second])]
    with bridge.watch(model, optimizer) as w:
        model(x).sum().backward()
        optimizer.step()
    assert w.history.d_norm["output"][0] == pytest.approx(math.hypot(*want), rel=1e-6)


def test_time_explodes() -> None:
    model = Recurrent("RNN")
    with torch.no_grad():
        model.rnn.weight_hh_l0.copy_(3.0 * torch.eye(8))
        model.rnn.weight_ih_l0.mul_(1e-9)
        model.rnn.bias_ih_l0.zero_()
        model.rnn.bias_hh_l0.zero_()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with bridge.watch(model, optimizer) as w:
        run(model, optimizer, [batch()] * 6)
    (finding,) = (each for each in w.findings if each.kind == "exploding_in_time")
    assert finding.where == "rnn.l0"
    assert finding.numbers["factor"] == pytest.approx(3.0**11, rel=1e-3)


# ---- the loop is the user's own --------------------------------------------------------------------------------------


def test_accumulated_losses_add_up_and_zeroed_ones_do_not_count() -> None:
    model = mlp(3, 8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with bridge.watch(model, optimizer) as w:
        for set_to_none in (True, False):
            model(batch()).mean().backward()
            optimizer.zero_grad(set_to_none=set_to_none)
            losses = []
            for _ in range(3):
                loss = model(batch()).square().mean() / 3
                losses.append(loss.item())
                loss.backward()
            optimizer.step()
            assert w.history.loss[-1] == pytest.approx(sum(losses), rel=1e-6)
            optimizer.zero_grad(set_to_none=set_to_none)


def test_a_gradient_without_a_loss_is_no_nan() -> None:
    model = mlp(3, 8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with bridge.watch(model, optimizer) as w:
        for _ in range(3):
            grads = torch.autograd.grad(model(batch()).square().mean(), list(model.parameters()))
            for p, grad in zip(model.parameters(), grads, strict=True):
                p.grad = grad
            optimizer.step()
    assert np.isnan(w.history.loss).all()
    assert (w.history.grad_norm > 0).all()
    assert not {"nan_loss", "inf_loss", "diverged"} & {finding.kind for finding in w.findings}


def test_two_models_count_only_what_is_their_own() -> None:
    generator, critic = mlp(3, 8, 3), mlp(3, 8, 1)
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.01) for model in (generator, critic)]
    want: list[list[float]] = [[], []]
    with bridge.watch(generator, optimizers[0]) as g, bridge.watch(critic, optimizers[1]) as c:
        for _ in range(4):
            fake = generator(torch.randn(4, 3))
            optimizers[1].zero_grad()
            parts = [critic(torch.randn(4, 3)).square().mean(), critic(fake.detach()).mean()]
            for part in parts:
                part.backward()
            want[1].append(sum(part.item() for part in parts))
            optimizers[1].step()
            optimizers[0].zero_grad()
            loss = -critic(fake).mean()
            loss.backward()
            want[0].append(loss.item())
            optimizers[0].step()
    np.testing.assert_allclose(g.history.loss, want[0], rtol=1e-6)
    np.testing.assert_allclose(c.history.loss, want[1], rtol=1e-6)
    assert all(name in dict(generator.named_parameters()) for name in g.history.per_array)
    assert np.isfinite(g.history.d_norm["output"]).all()
    assert np.isfinite(c.history.d_norm["output"]).all()


def test_frozen_and_unused_parameters() -> None:
    model = Recurrent()
    model.unused = nn.Linear(2, 2)
    model.rnn.requires_grad_(False)
    optimizer = torch.optim.Adam(model.parameters())
    with bridge.watch(model, optimizer) as w:
        run(model, optimizer, [batch(), batch()])
        model.rnn.requires_grad_(True)
        run(model, optimizer, [batch()])
    assert np.isnan(w.history.per_array["rnn.weight_hh_l0"][:2]).all()
    assert w.history.per_array["rnn.weight_hh_l0"][2] > 0
    assert "unused.weight" not in w.history.per_array
    assert not w.history.dh_first or np.isnan(w.history.dh_first["rnn.l0"][:2]).all()


def test_what_cannot_be_read_is_left_out_and_named_once() -> None:
    model = nn.ModuleDict({"table": nn.Embedding(5, 3, sparse=True), "head": nn.Linear(3, 1)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with warnings.catch_warnings(record=True) as caught, bridge.watch(model, optimizer, max_norm=1.0) as w:
        warnings.simplefilter("always")
        for _ in range(2):
            optimizer.zero_grad()
            model["head"](model["table"](torch.tensor([1, 2]))).sum().backward()
            optimizer.step()
    assert len([each for each in caught if "table.weight" in str(each.message)]) == 1
    assert list(w.history.per_array) == ["head.weight", "head.bias"]
    half = nn.Linear(3, 1, dtype=torch.bfloat16)
    optimizer = torch.optim.SGD(half.parameters(), lr=0.1)
    with bridge.watch(half, optimizer) as w:
        half(torch.ones(2, 3, dtype=torch.bfloat16)).sum().backward()
        with pytest.warns(UserWarning, match="weight, bias"):
            optimizer.step()
    assert w.history.grad_norm.tolist() == [0.0]


def test_an_output_without_a_gradient() -> None:
    """Of a layer whose final state alone is used."""
    layer = nn.GRU(3, 8)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
    model = nn.ModuleDict({"rnn": layer})
    with bridge.watch(model, optimizer) as w:
        model["rnn"](batch())[1].sum().backward()
        optimizer.step()
    assert w.history.dh_last["rnn.l0"][0] == pytest.approx(math.sqrt(4 * 8))


def test_evaluation_and_checkpointing_in_between() -> None:
    model = Recurrent()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with bridge.watch(model, optimizer) as w:
        for reentrant in (False, True):
            x = batch().requires_grad_()
            loss = torch.utils.checkpoint.checkpoint(model, x, use_reentrant=reentrant).square().mean()
            with torch.no_grad():
                model(batch(5))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            assert w.history.loss[-1] == pytest.approx(loss.item())
            assert w.history.dh_profile["rnn.l0"].shape == (12,)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler meets some of its own
def test_a_compiled_model_has_plain_names() -> None:
    model = Recurrent()
    compiled = torch.compile(model, backend="aot_eager")
    optimizer = torch.optim.SGD(compiled.parameters(), lr=0.01)
    with bridge.watch(compiled, optimizer, max_norm=1.0) as w:
        run(compiled, optimizer, [batch() for _ in range(3)])
    assert list(w.history.per_array) == [name for name, _ in model.named_parameters()]
    assert np.isfinite(w.history.loss).all()
    assert np.isfinite(w.history.dh_first["rnn.l0"]).all()


# ---- mixed precision -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("unscales", [False, True])
def test_a_scalers_overflow_is_a_skipped_step_and_no_fault(fused: bool, unscales: bool) -> None:
    model = mlp(3, 8, 1)
    plain, plain_optimizer = twin_of(model, torch.optim.Adam, lr=0.01, fused=fused)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1000)
    batches = [batch() for _ in range(5)]
    with bridge.watch(model, optimizer, scaler=scaler, max_norm=0.1) as w:
        for i, x in enumerate(batches):
            optimizer.zero_grad()
            scaler.scale(model(x).square().mean()).backward()
            if i == 2:
                model[0].weight.grad[0, 0] = math.inf
            if unscales:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
    kept = [0, 1, 3, 4]
    assert w.history.skipped.tolist() == [False, False, True, False, False]
    assert "step" not in vars(scaler)
    assert not {"nonfinite_gradient", "skipped_steps"} & {finding.kind for finding in w.findings}
    assert scaler.get_scale() == 2.0**9
    norms = run(
        plain, plain_optimizer, [batches[i] for i in kept], lambda: nn.utils.clip_grad_norm_(plain.parameters(), 0.1)
    )
    np.testing.assert_allclose(w.history.grad_norm[kept], norms, rtol=1e-5)
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)
    assert w.history.loss[0] == pytest.approx(twin_loss(batches[0]), rel=1e-5)
    assert w.history.d_norm["output"][0] < 1


def twin_loss(x: Any) -> float:
    """The loss of the model with which a test begins."""
    torch.manual_seed(0)
    return float(mlp(3, 8, 1)(x).square().mean().item())


# ---- in and out of the block -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_inside_takes_all_hooks_off(error: type[BaseException]) -> None:
    model, backward = Recurrent(), torch.autograd.backward
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    told = []

    class Monitor(GradientMonitor):
        def finish(self) -> Any:
            told.append(self.n_steps)
            return super().finish()

    w = bridge.watch(model, optimizer, monitor=Monitor())

    def broken_off() -> None:
        with w:
            run(model, optimizer, [batch(), batch()])
            raise error

    with pytest.raises(error):
        broken_off()
    assert told == [2]
    assert w.history.interrupted is (error is KeyboardInterrupt)
    assert_clean(model, optimizer, backward)
    run(model, optimizer, [batch()])
    assert len(w.history) == 2


def test_a_step_that_fails_gets_its_gradients_back() -> None:
    model = mlp(3, 8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def fail(*_: Any) -> None:
        raise ValueError("of the user's own")

    with bridge.watch(model, optimizer):
        optimizer.register_step_pre_hook(fail)
        (model(batch()).mean() * math.nan).backward()
        with pytest.raises(ValueError, match="own"):
            optimizer.step()
    assert all(p.grad is not None for p in model.parameters())


def test_only_what_was_converted_is_restored() -> None:
    model = nn.Sequential(bridge.LSTM(3, 4), nn.Identity())
    theirs = nn.ModuleDict({"ours": model, "theirs": nn.GRU(3, 4)})
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.01)
    with bridge.watch(theirs, optimizer):
        assert type(theirs["theirs"]) is bridge.GRU
    assert type(theirs["theirs"]) is nn.GRU
    assert type(model[0]) is bridge.LSTM


def test_what_is_refused() -> None:
    model = mlp(3, 8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with pytest.raises(TypeError, match="LBFGS"):
        bridge.watch(model, torch.optim.LBFGS(model.parameters()))
    with pytest.raises(ValueError, match="optimizer: expected one that holds parameters of the model"):
        bridge.watch(mlp(3, 1), optimizer)
    for bad in ({"max_norm": -1.0}, {"nonfinite": "ignore"}, {"every": 0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            bridge.watch(model, optimizer, **bad)
    for bad in ({"monitor": 3}, {"scaler": 3}):
        with pytest.raises(TypeError, match=next(iter(bad))):
            bridge.watch(model, optimizer, **bad)
    with pytest.raises(TypeError, match="model: expected a torch"):
        bridge.watch(gradcore.Linear(2, 2), optimizer)
    with pytest.raises(TypeError, match="optimizer: expected a torch"):
        bridge.watch(model, gradcore.optim.SGD(gradcore.Linear(2, 2)))
    with bridge.watch(model, optimizer):
        with pytest.raises(RuntimeError, match="watched already"), bridge.watch(model, optimizer):
            pass
        with pytest.raises(TypeError, match="closure"):
            optimizer.step(lambda: 0.0)
    with bridge.watch(model, optimizer):
        pass


def test_hooks_change_no_bit() -> None:
    """The same training with and without, to the last bit, where nothing is clipped."""
    model = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Linear(8, 1))
    other, other_optimizer = twin_of(model)
    optimizer = torch.optim.Adam(model.parameters())
    batches = [torch.randint(9, (6,)) for _ in range(5)]
    with bridge.watch(model, optimizer, max_norm=1e9):
        run(model, optimizer, batches)
    run(other, other_optimizer, batches)
    assert bits(model, optimizer) == bits(other, other_optimizer)


def test_the_report_is_one_file(tmp_path: Path) -> None:
    pytest.importorskip("bokeh")
    model = Recurrent()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with bridge.watch(model, optimizer) as w:
        w.report(tmp_path / "empty.html")
        run(model, optimizer, [batch() for _ in range(6)])
    w.report(tmp_path / "run.html")
    text = (tmp_path / "run.html").read_text("utf-8")
    assert "rnn.weight_hh_l0" in text
    for finding in w.findings:
        assert finding.kind in text
    assert "default-src 'none'" in text  # which forbids the browser to fetch anything
    assert "<script src" not in text
    assert sorted(os.listdir(tmp_path)) == ["empty.html", "run.html"]
