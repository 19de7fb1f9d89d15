"""gradcore.diagnose of models of PyTorch: the same as of the gradcore model with the same weights."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gradcore

torch = pytest.importorskip("torch")
bridge = importlib.import_module("gradcore.torch")
nn = torch.nn
mse = nn.functional.mse_loss

pytestmark = [pytest.mark.peers, pytest.mark.usefixtures("one_torch_thread")]


class Model(nn.Module):
    """A recurrent layer, and a head at every step or at the last one."""

    def __init__(self, kind: str = "LSTM", *, every_step: bool = False, **options: Any) -> None:
        super().__init__()
        self.drop, self.every_step = nn.Dropout(options.pop("p", 0.0)), every_step
        self.rnn = getattr(nn, kind)(3, 8, **options)
        self.head = nn.Linear(16 if options.get("bidirectional") else 8, 2)

    def forward(self, x: Any) -> Any:
        y = self.rnn(self.drop(x))[0]
        return self.head(y if self.every_step else y[:, -1] if self.rnn.batch_first else y[-1])


class Looped(nn.Module):
    """A cell that is called at every step."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.cell, self.head = getattr(nn, f"{kind}Cell")(3, 8), nn.Linear(8, 2)

    def forward(self, x: Any) -> Any:
        state = None
        for x_t in x:
            state = self.cell(x_t, state)
        return self.head(state[0] if isinstance(state, tuple) else state)


class Packed(nn.Module):
    """A layer that is given sequences of different lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(3, 8), nn.Linear(8, 2)

    def forward(self, x: Any, lengths: Any) -> Any:
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
        return self.head(self.rnn(packed)[1][-1])


def twin_of(model: Any, last: bool) -> Any:
    rnn = model.rnn
    layer = getattr(gradcore, rnn.__class__.__name__)(3, 8, rnn.num_layers, bidirectional=rnn.bidirectional)
    layer.load_state_dict({name: p.detach().numpy() for name, p in rnn.named_parameters()})
    head = gradcore.Linear(model.head.in_features, 2)
    head.load_state_dict({name: p.detach().numpy() for name, p in model.head.named_parameters()})
    return gradcore.Sequential(layer, *([gradcore.LastStep()] if last else []), head)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize(
    ("every_step", "options"), [(False, {}), (True, {"num_layers": 2}), (True, {"bidirectional": True})]
)
def test_it_says_what_it_says_of_the_gradcore_model(kind: str, every_step: bool, options: dict[str, Any]) -> None:
    model = Model(kind, every_step=every_step, **options)
    x, target = torch.randn(20, 4, 3), torch.randn(*((20, 4, 2) if every_step else (4, 2)))
    found = gradcore.diagnose(model, [(x, target)], mse)
    want = gradcore.diagnose(twin_of(model, not every_step), [(x.numpy(), target.numpy())], gradcore.losses.mse)
    assert found.verdict.kind == want.verdict.kind
    assert found.forecast.rate == pytest.approx(want.forecast.rate, rel=1e-4)
    assert found.measurement.rate == pytest.approx(want.measurement.rate, rel=1e-3)
    np.testing.assert_allclose(found.measurement.norms, want.measurement.norms, rtol=1e-2)
    assert [name.removeprefix("rnn.") for name in found.measurement.names] == [
        name.removeprefix("0.") for name in want.measurement.names
    ]
    assert found.measurement.n_growing == want.measurement.n_growing
    assert [each.name for each in found.depth] == ["drop", "rnn", "head"]


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_a_cell_is_what_the_layer_is(kind: str) -> None:
    layer, cell = Model(kind), Looped(kind)
    state = {k.replace("rnn.", "cell.").replace("_l0", ""): v for k, v in layer.state_dict().items()}
    cell.load_state_dict(state)
    batches = [(torch.randn(20, 4, 3), torch.randn(4, 2))]
    want, found = (gradcore.diagnose(model, batches, mse) for model in (layer, cell))
    assert found.measurement.names == ("cell.l0",)
    assert found.forecast.rate == pytest.approx(want.forecast.rate, rel=1e-4)
    assert found.measurement.rate == pytest.approx(want.measurement.rate, rel=1e-3)


def test_of_different_lengths_the_longest_count() -> None:
    model, x, target = Packed(), torch.randn(20, 4, 3), torch.randn(4, 2)
    lengths = torch.tensor([5, 20, 11, 20])
    found = gradcore.diagnose(model, [{"x": x, "target": target, "lengths": lengths}], mse)
    longest = [1, 3]
    alone = gradcore.diagnose(model, [(x[:, longest], target[longest], lengths[longest])], mse)
    assert found.forecast.rate == pytest.approx(alone.forecast.rate, rel=1e-6)
    assert found.measurement.rate == pytest.approx(alone.measurement.rate, rel=1e-4)
    assert found.measurement.n_sequences == 2


def test_depth_is_the_whole_gradient_at_each_layer() -> None:
    model, x, target = Model(), torch.randn(20, 4, 3), torch.randn(4, 2)
    y = model(x)
    (dy,) = torch.autograd.grad(mse(y, target), y)
    *_, head = gradcore.diagnose(model, [(x, target)], mse).depth
    assert head.dy_norm == pytest.approx(float(dy.norm()), rel=1e-5)
    assert head.dx_norm == pytest.approx(float((dy @ model.head.weight).detach().norm()), rel=1e-5)


def test_the_model_is_left_as_it_is() -> None:
    model, calls = Model(p=0.5, batch_first=True), []
    model.register_forward_hook(lambda *_: calls.append(1))
    x, target = torch.randn(4, 20, 3, requires_grad=True), torch.randn(4, 2)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    hooks, random = dict(model._forward_hooks), torch.get_rng_state()
    gradcore.diagnose(model, [(x, target)], mse)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model._forward_hooks == hooks
    assert type(model.rnn) is nn.LSTM
    assert model.training
    assert x.grad is None
    assert [p.grad is None for p in model.parameters()] == [True] * 4 + [False, True]
    assert bool((model.head.weight.grad == 1).all())


def test_the_code_cures_what_it_says(tmp_path: Path) -> None:
    model = Model("RNN", batch_first=True)
    with torch.no_grad():
        for parameter in model.rnn.parameters():
            parameter.mul_(1e-5)
        model.rnn.weight_hh_l0.copy_(1.4 * torch.eye(8))
    batches = [(torch.randn(16, 30, 3), torch.randn(16, 2))]
    found = gradcore.diagnose(model, batches, mse)
    assert found.verdict.kind == "explodes"
    cure = found.python.partition("threshold")[0]
    exec(cure, {"model": model})
    torch.testing.assert_close(model.rnn.weight_hh_l0.detach(), torch.eye(8), rtol=1e-3, atol=1e-6)
    assert gradcore.diagnose(model, batches, mse).forecast.verdict == "stable"
    pytest.importorskip("bokeh")
    found.to_html(tmp_path / "found.html")
    text = (tmp_path / "found.html").read_text("utf-8")
    assert "model.rnn.named_parameters()" in text
    assert "Layer by layer" in text
    assert found.to_dict()["depth"][-1]["name"] == "head"


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"model": nn.Linear(3, 2)}, TypeError, "model: expected one with an RNN, LSTM or GRU"),
        ({"batches": []}, ValueError, "batches: expected at least one batch"),
        ({"batches": 3}, TypeError, "batches: expected an iterable"),
        ({"batches": [torch.ones(3)]}, TypeError, "batches: expected pairs"),
        ({"batches": [{"x": 1}]}, TypeError, "batches: expected dicts with x and target"),
        ({"batches": [(torch.ones(1, 4, 3), torch.ones(4, 2))]}, ValueError, "at least 2 steps, got 1 in rnn"),
        ({"loss": lambda y, target: 3.0}, TypeError, "loss: expected a tensor with one element, got float"),
        ({"loss": lambda y, target: (y - target) ** 2}, TypeError, "loss: expected a tensor with one element"),
        ({"loss": lambda y, target: target.sum()}, ValueError, "loss: expected one that depends"),
        ({"horizon": 0}, ValueError, "horizon"),
    ],
)
def test_what_cannot_be_diagnosed(changed: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {"model": Model(), "batches": [(torch.ones(5, 4, 3), torch.ones(4, 2))], "loss": mse} | changed
    with pytest.raises(error, match=message):
        gradcore.diagnose(**given)


def test_an_explosion_is_found_and_cured_from_end_to_end() -> None:
    """The example of docs/torch-watch.md, and what it says it prints."""
    page = (Path(gradcore.__file__).parent.parent / "docs" / "torch-watch.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
    (want,) = re.findall(r"```text\n(.*?)```", page, re.S)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {"__name__": "example"})
    assert printed.getvalue() == want
