"""What the recurrent layers of a model of PyTorch do to gradients."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

import gradcore
from gradcore import meanfield, spectral
from gradcore._base.check import Array
from gradcore.diagnosis.parts import Depth, Diagnosis
from gradcore.diagnosis.pipeline import ADVICE, check_given
from gradcore.diagnosis.stages import Row, compare, forecast_of, measurement_of, row_of, without_others
from gradcore.diagnosis.trials import Conclusion, Kind
from gradcore.diagnosis.verdict import finding, kind_of_gradient
from gradcore.diagnosis.wording import number, rounded
from gradcore.layers.tape import Profile
from gradcore.layers.telemetry import norm_over_batch
from gradcore.spectral.measure import slope_of
from gradcore.torch.convert import convert
from gradcore.torch.layers import _Recurrent
from gradcore.torch.listen import Listener, cell_of, layers_of, tensors_in

__all__ = ["ModuleDiagnosis", "diagnose"]


@dataclass(frozen=True, repr=False)
class ModuleDiagnosis(Diagnosis):
    """What `gradcore.diagnose` found in a model of PyTorch.

    Parameters
    ----------
    forecast : TimeForecast
        From the weights and the states that they lead through.
    measurement : Measurement
        From a backward pass.
    comparison : Comparison
        Both by layer.
    verdict : Conclusion
        What is wrong, and what to do.
    depth : tuple of Depth
        The layers in the order in which they were called, and the gradient of the whole loss there.
    remedies : tuple of str
        What may help, in words.
    python : str
        The same as code of PyTorch, for a `model` and its `optimizer`.

    Examples
    --------
    >>> import torch, gradcore.torch
    >>> model = torch.nn.RNN(2, 8)
    >>> batches = [(torch.randn(30, 4, 2), torch.zeros(30, 4, 8))]
    >>> def loss(output, target):
    ...     return torch.nn.functional.mse_loss(output[0], target)
    >>> found = gradcore.torch.diagnose(model, batches, loss)
    >>> found.measurement.names, "weight.mul_" in found.python
    (('l0',), True)
    """

    depth: tuple[Depth, ...]
    remedies: tuple[str, ...]
    python: str


def diagnose(
    model: torch.nn.Module,
    batches: Iterable[Any] | Callable[[], Iterable[Any]],
    loss: Callable[[Any, Any], Tensor],
    *,
    horizon: int | None = None,
) -> ModuleDiagnosis:
    """Say what gradients do on their way back through time and layers of a PyTorch model.

    It is what `gradcore.diagnose` does with such a model. A copy is examined as it is, in its mode, on the CPU: no step
    is trained. The forecast is that of the gradcore layer with the same weights, on the input that the layer really
    gets; the measurement that of a backward pass of the last step's share of the loss, as `gradcore.diagnose` says.

    Parameters
    ----------
    model : torch.nn.Module
        A model with an `nn.RNN`, `nn.LSTM` or `nn.GRU`, or with cells of `torch.nn` that it calls in a loop.
    batches : iterable or callable
        Batches such as a `DataLoader` gives, of which the first one is used: each is (x, target), (x, target, more of
        the model's arguments) or a dict with `x`, `target` and arguments by name. Arrays become tensors.
    loss : callable
        ``loss(output, target)`` returns the loss, a tensor with one element.
    horizon : int, optional
        Number of steps back over which growth is judged, at least 1; by default from the last step to the first.

    Returns
    -------
    ModuleDiagnosis
        With ``forecast.rate`` and ``measurement.rate``, the natural logarithm of the growth per step back, ``verdict``,
        what that means, ``depth``, the norms at each layer, ``remedies``, and ``python``, the code for them.

    Raises
    ------
    TypeError
        If the model has no recurrent layer that can be examined, or the loss is no tensor with one element.
    ValueError
        If there is no batch, no sequence of at least 2 steps, or the loss does not depend on the model.

    Examples
    --------
    >>> import torch, gradcore.torch
    >>> class Model(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.rnn, self.head = torch.nn.RNN(2, 8), torch.nn.Linear(8, 1)
    ...     def forward(self, x):
    ...         return self.head(self.rnn(x)[0][-1])
    >>> batches = [(torch.randn(30, 4, 2), torch.zeros(4, 1))]
    >>> found = gradcore.torch.diagnose(Model(), batches, torch.nn.functional.mse_loss)
    >>> found.verdict.kind, [layer.name for layer in found.depth]
    ('vanishes', ['rnn', 'head'])
    """
    horizon = check_given(batches, loss, horizon)
    with torch.random.fork_rng(devices=[]):
        members, rows, depth = _passes(model, batches, loss)
    steps = max(len(member.x) for member in members)
    horizon = max(steps - 1, 1) if horizon is None else horizon
    predicted = [
        (member.place, member.layer, member.x, spectral.predict_growth(member.layer, member.x, horizon=horizon))
        for member in members
    ]
    expected, measured = forecast_of(predicted, horizon), measurement_of(rows, horizon)
    kind = kind_of_gradient(expected, measured)
    worst = max(zip(members, predicted, strict=True), key=lambda pair: pair[1][3].rate)[0]
    remedies, python = _remedies(kind, worst, len(worst.x))
    verdict = Conclusion(kind, finding(kind, expected, measured), " ".join(remedies) or ADVICE[kind])
    return ModuleDiagnosis(expected, measured, compare(expected, measured), verdict, depth, remedies, python)


@dataclass
class _Member:
    """A recurrent layer of the model, or a cell, as a layer of gradcore with the same weights."""

    place: str  # what the names of its parameters begin with
    module: torch.nn.Module
    layer: Any
    x: Array  # what it got, (T, B, I), of the longest sequences
    longest: Array  # which these are


def _passes(
    model: torch.nn.Module, batches: Any, loss: Callable[[Any, Any], Tensor]
) -> tuple[list[_Member], list[Row], tuple[Depth, ...]]:
    """Run a copy of the model forward once, and backward for each question."""
    model = convert(copy.deepcopy(getattr(model, "_orig_mod", model)).cpu())
    model.zero_grad()
    leaves = [p.requires_grad_() for p in model.parameters() if p.is_floating_point()]
    listener = Listener(model)
    inputs: dict[torch.nn.Module, list[Any]] = {}
    recurrent = {module: name for module, name in layers_of(model).items() if cell_of(module) is not None}
    with ExitStack() as stack, torch.enable_grad():
        listener.attach(stack)
        for module in recurrent:

            def capture(own: Any, args: Any, kwargs: Any, _: Any) -> None:
                inputs.setdefault(own, []).append(args[0] if args else kwargs["input"])

            stack.callback(module.register_forward_hook(capture, with_kwargs=True).remove)
        args, options, target = _first(batches)
        args = [arg.detach().clone().requires_grad_() if _is_real(arg) else arg for arg in args]
        leaves += [arg for arg in args if _is_real(arg)]
        output = model(*args, **options)
        members = [
            _member(name, module, inputs[module])
            for module, name in recurrent.items()
            if module in inputs and not getattr(module, "proj_size", 0)
        ]
        if not members:
            raise TypeError("model: expected one with an RNN, LSTM or GRU that it calls, or with cells of torch.nn")
        value = loss(output, target)
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise TypeError(f"loss: expected a tensor with one element, got {_said(value)}")
        outputs = [tensor for tensor in tensors_in(output) if tensor.requires_grad]
        found = torch.autograd.grad(value, outputs, retain_graph=True, allow_unused=True) if value.requires_grad else ()
        pairs = [(y, dy) for y, dy in zip(outputs, found, strict=False) if dy is not None]
        if not pairs:
            raise ValueError("loss: expected one that depends on what the model returns")
        sizes = output.batch_sizes if isinstance(output, PackedSequence) else None

        def back(step: int | None) -> list[Row]:
            listener.begin()
            shares = [dy if step is None else _share(dy, step, members[0], sizes) for _, dy in pairs]
            torch.autograd.backward([y for y, _ in pairs], shares, retain_graph=True, inputs=leaves)
            return [row for member in members for row in _rows(member, listener)]

        rows = back(-1)
        if any(row.reverse for row in rows):
            rows = [other if row.reverse else row for row, other in zip(rows, back(0), strict=True)]
        back(None)
        depth = tuple(Depth(*each) for each in listener.norms())
    longest = max(len(row.norms) for row in rows)
    rows = [row._replace(norms=np.concatenate([np.zeros(longest - len(row.norms)), row.norms])) for row in rows]
    return members, without_others(rows), depth


def _first(batches: Any) -> tuple[list[Any], dict[str, Any], Any]:
    """Return arguments of the model, those by name, and the target of the first batch."""
    batch = next(iter(batches() if callable(batches) else batches), None)
    if batch is None:
        raise ValueError("batches: expected at least one batch, got none")
    if isinstance(batch, Mapping):
        given = {name: _as_tensor(value) for name, value in batch.items()}
        if not {"x", "target"} <= given.keys():
            raise TypeError(f"batches: expected dicts with x and target, got {', '.join(map(str, given))}")
        x, target = given.pop("x"), given.pop("target")
        return [x], given, target
    if not isinstance(batch, Sequence) or len(batch) < 2:
        raise TypeError(f"batches: expected pairs (x, target), got {_said(batch)}")
    x, target, *rest = map(_as_tensor, batch)
    return [x, *rest], {}, target


def _as_tensor(value: Any) -> Any:
    return torch.from_numpy(np.ascontiguousarray(value)) if isinstance(value, np.ndarray) else value


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _said(value: Any) -> str:
    shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
    return f"{type(value).__name__}{shape}"


def _member(name: str, module: torch.nn.Module, inputs: list[Any]) -> _Member:
    """Build the layer of gradcore, and take the longest sequences of the newest call, or of the calls of a cell."""
    cell = cell_of(module)
    assert cell is not None
    if isinstance(module, torch.nn.RNNCellBase):
        x = torch.stack([each if each.dim() == 2 else each[None] for each in inputs])
        lengths = torch.full((x.shape[1],), len(x))
        options: dict[str, Any] = {"bias": module.bias}
        names = {f"{own}_l0": own for own, _ in module.named_parameters()}
    else:
        given = inputs[-1]
        if isinstance(given, PackedSequence):
            x, lengths = pad_packed_sequence(given)
        else:
            x = given.unsqueeze(1) if given.dim() == 2 else given.transpose(0, 1) if module.batch_first else given
            lengths = torch.full((x.shape[1],), len(x))
        options = {"num_layers": module.num_layers, "bias": module.bias, "bidirectional": module.bidirectional}
        names = {own: own for group in module._all_weights for own in group}
    if len(x) < 2 or not x.shape[1]:
        raise ValueError(f"batches: expected a sequence of at least 2 steps, got {len(x)} in {name or 'the model'}")
    weights = {own: getattr(module, theirs).detach().numpy() for own, theirs in names.items()}
    if cell.name.startswith("rnn"):
        options["nonlinearity"] = module.nonlinearity
    cls = getattr(gradcore, cell.name.partition("_")[0].upper())
    layer = cls(module.input_size, module.hidden_size, dtype=next(iter(weights.values())).dtype, rng=0, **options)
    layer.load_state_dict(weights)
    longest = (lengths == len(x)).numpy()
    place = f"{name}." if name else ""
    return _Member(place, module, layer, np.ascontiguousarray(x.detach().numpy()[:, longest]), longest)


def _share(dy: Tensor, step: int, member: _Member, sizes: Tensor | None) -> Tensor:
    """Keep the part of the loss that acts on one step, the last or the first; all of it where there are no steps."""
    share = torch.zeros_like(dy)
    if sizes is not None:  # rows of a PackedSequence
        at: Any = slice(len(dy) - int(sizes[-1]), None) if step else slice(int(sizes[0]))
    elif dy.dim() == 3 and dy.shape[axis := int(getattr(member.module, "batch_first", False))] == len(member.x):
        at = (slice(None),) * axis + (step,)
    else:
        return dy
    share[at] = dy[at]
    return share


def _rows(member: _Member, listener: Listener) -> list[Row]:
    """What the newest backward pass has shown in a layer."""
    module, tiny = member.module, float(np.finfo(member.layer.dtype).tiny)
    if isinstance(module, _Recurrent):
        if module.telemetry is None:
            raise TypeError(f"model: {member.place or 'it'} did not run on the kernels: {dict(module.fallbacks)}")
        each = module.telemetry.dh_norm_per_sample[:, :, member.longest]
        profiles = [
            profile._replace(dh_norm=norms)
            for profile, norms in zip(module.telemetry.profiles(), norm_over_batch(each), strict=True)
        ]
    else:
        profiles = list(listener.profiles(module))
        each = np.zeros((len(profiles), len(member.x), 0))
    rows = []
    for profile, samples in zip(profiles, each, strict=True):
        name, reverse, norms = profile
        slope = slope_of(norms if reverse else norms[::-1], tiny)
        rows.append(row_of(Profile(member.place + name, reverse, norms), samples, slope, tiny))
    return rows


def _remedies(kind: Kind, member: _Member, steps: int) -> tuple[tuple[str, ...], str]:
    """What may help against the growth of a layer, in words and as code."""
    words, code = [], []
    name, cell = f"model.{member.place}".rstrip("."), cell_of(member.module)
    at = "" if isinstance(member.module, torch.nn.RNNCellBase) else "_l0"
    assert cell is not None
    if kind in ("explodes", "vanishes"):
        gain = _gain(member)
        if gain is not None:
            words.append(
                f"Multiply the recurrent weights of {name} by {number(gain)}: then the forecast keeps the gradient's "
                "norm."
            )
            code += [
                "with torch.no_grad():",
                f"    for own, weight in {name}.named_parameters():",
                '        if own.startswith("weight_hh"):',
                f"            weight.mul_({gain:.6g})",
            ]
    if kind == "vanishes" and cell.keeping is not None and member.layer.bias:
        bias, H = rounded(meanfield.suggest_bias(cell.name, steps)), member.layer.hidden_size
        where = f"[{cell.keeping.gate * H}:{(cell.keeping.gate + 1) * H}]"
        words.append(
            f"Or set the bias of the {cell.keeping.name} gate to {number(bias)}, so that this gate alone keeps 1/e of "
            f"the state over {steps} steps."
        )
        code += [
            f"# or, for the {cell.keeping.name} gate:",
            "with torch.no_grad():",
            f"    {name}.bias_ih{at}{where} = {bias:g}",
            f"    {name}.bias_hh{at}{where} = 0",
        ]
    if kind in ("explodes", "diverged"):
        words.append("Clip the gradient norm, at twice the median of the first ones.")
        code += [
            "threshold = gradcore.threshold.FromFirst(steps=20)",
            "with gradcore.torch.watch(model, optimizer, max_norm=threshold) as w:",
            "    ...  # the training loop",
        ]
    head = ["import torch", "", "import gradcore.torch", ""] if code else []
    return tuple(words), "\n".join([*head, *code]) + "\n" if code else ""


def _gain(member: _Member) -> float | None:
    """The factor on the recurrent weights with which the gradient is forecast to keep its norm; None without one."""
    try:
        gain = meanfield.suggest_gain(member.layer, member.x)
    except ValueError:
        return None
    trial = copy.deepcopy(member.layer)
    for name, weight in member.layer.params.items():
        if name.startswith("weight_hh"):
            trial.params[name] = weight * trial.dtype.type(gain)
    found = spectral.predict_growth(trial, member.x, horizon=max(len(member.x) - 1, 1))
    return gain if found.verdict == "stable" and math.isfinite(gain) else None
