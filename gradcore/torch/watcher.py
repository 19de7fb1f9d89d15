"""Watch a training loop of PyTorch, which stays as it is."""

from __future__ import annotations

import math
import os
import threading
import warnings
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradcore._base.check import Array, check_int, check_path
from gradcore._base.files import write_atomically
from gradcore._base.hook import TrainingStep
from gradcore.clip.gradients import Gradients, GradNorm, check_limit, check_policy
from gradcore.clip.threshold import Threshold
from gradcore.layers.telemetry import StepTelemetry
from gradcore.optim.schedule import Schedule
from gradcore.torch.convert import convert, restore
from gradcore.torch.layers import _Recurrent
from gradcore.torch.listen import ARRAYS, Listener
from gradcore.training.findings import Finding
from gradcore.training.history import History
from gradcore.training.monitor import GradientMonitor
from gradcore.training.step import check_methods

__all__ = ["watch"]

_WATCHED: weakref.WeakSet[Any] = weakref.WeakSet()  # optimizers


class watch:
    """Watch the training of a PyTorch model in a loop of your own, which stays as it is.

    Inside the block, every `optimizer.step` first takes the norm of the gradients, clips them, and leaves out a step
    whose gradients are not finite. Each step goes into a `History`, and to a monitor that says what goes wrong. The
    recurrent layers run on the kernels of this package, as after `convert`, and so tell of every time step.

    Parameters
    ----------
    model : torch.nn.Module
        The model.
    optimizer : torch.optim.Optimizer
        The optimizer of all or some of its parameters. What it does not hold is neither measured nor clipped.
    monitor : GradientMonitor, optional
        The monitor; a new one by default.
    max_norm : float, Threshold or schedule, optional
        The norm to clip the gradient to, as in `gradcore.fit`. By default the gradient is not clipped.
    nonfinite : {"skip", "zero", "raise"}
        What to do with a gradient that is not finite: leave out the step, with parameters and the state of the
        optimizer bit for bit as they were; set such entries to zero; or raise.
    every : int
        The layers that are not recurrent are looked at in every so many steps, and so are cells.
    scaler : torch.amp.GradScaler, optional
        The scaler of the loop. Then losses and norms are those without its scale, and a step that it leaves out because
        its scale was too large counts as skipped, not as a fault.

    Attributes
    ----------
    history : History
        The record of every step.
    monitor : GradientMonitor
        The monitor.
    findings : list of Finding
        What it has found.

    Raises
    ------
    TypeError
        If the optimizer takes a closure, as `torch.optim.LBFGS` does: its gradients are not there when the step begins.
    ValueError
        If the optimizer holds none of the model's parameters.
    RuntimeError
        If the optimizer is watched already.

    Notes
    -----
    The loss of a step is the sum of all numbers whose `backward` has reached the optimizer's parameters since the last
    step, or since their gradients were set to None or zero: with gradient accumulation, divide by the number of
    batches as usual. It is NaN in the history where there was none, as with `torch.autograd.grad`.

    Of layers, `history.d_norm` has the norm of the gradient at their input, and `history.dh_first`, `dh_last` and
    `dh_profile` what recurrent layers and cells of `torch.nn` do over time. A cell's steps are its calls, from one
    without a state, or with one that has no past, to the last. What runs inside `torch.compile` is not looked at, but
    for recurrent layers.

    Gradients that are sparse, on another device than the CPU, or of another dtype than float16, float32 and float64 are
    left out; a warning names them once.

    References
    ----------
    .. [1] R. Pascanu, T. Mikolov, Y. Bengio, "On the difficulty of training recurrent neural networks", 2013.

    Examples
    --------
    >>> import torch, gradcore.torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> with gradcore.torch.watch(model, optimizer, max_norm=1.0) as w:
    ...     for _ in range(3):
    ...         optimizer.zero_grad()
    ...         model(torch.ones(4, 3)).square().mean().backward()
    ...         optimizer.step()
    >>> len(w.history), list(w.history.d_norm), list(w.history.per_array)[0]
    (3, ['1', '2', 'output'], '0.weight')
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        monitor: GradientMonitor | None = None,
        max_norm: float | Threshold | Schedule | None = None,
        nonfinite: str = "skip",
        every: int = 1,
        scaler: Any = None,
    ) -> None:
        if not isinstance(model, torch.nn.Module):
            raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"optimizer: expected a torch.optim.Optimizer, got {type(optimizer).__name__}")
        if isinstance(optimizer, torch.optim.LBFGS):
            raise TypeError("optimizer: LBFGS takes a closure, so that its gradients cannot be watched")
        if monitor is not None:
            check_methods("monitor", monitor, "update", "finish")
        if max_norm is not None:
            check_limit(max_norm, 0)
        check_policy(nonfinite)
        if scaler is not None:
            check_methods("scaler", scaler, "step", "get_scale", "is_enabled")
        model = getattr(model, "_orig_mod", model)  # of torch.compile
        names = {param: name for name, param in model.named_parameters()}
        if not any(param in names for group in optimizer.param_groups for param in group["params"]):
            raise ValueError("optimizer: expected one that holds parameters of the model, got one that holds none")
        self.history = History()
        self.monitor = GradientMonitor() if monitor is None else monitor
        self._model, self._optimizer, self._names, self._scaler = model, optimizer, names, scaler
        self._max_norm, self._nonfinite = max_norm, nonfinite
        self._every = check_int("every", every, least=1)
        self._listener = Listener(model)
        self._weights, self._exit = _Weights(self), ExitStack()
        self._left_out: set[str] = set()
        self._n_updates = self._n_begun = 0
        self._loss: float | None = None  # since the last step
        self._sweep: int | None = None  # the newest backward pass that reached the parameters
        self._step: tuple[GradNorm, float] | None = None  # the norm and the learning rate of a step under way
        self._taken: list[tuple[Tensor, Tensor]] = []  # parameters and their gradients, of a step that is left out

    @property
    def findings(self) -> list[Finding]:
        """What the monitor has found."""
        return self.monitor.findings

    def report(self, path: str | os.PathLike[str]) -> None:
        """Write what has happened: one file of HTML with figures and findings, which needs no network.

        Parameters
        ----------
        path : path
            The file. It is written whole or, if anything goes wrong, not at all.

        Raises
        ------
        ImportError
            If bokeh is not installed.
        OSError
            If the file cannot be written.
        """
        from gradcore.diagnosis.report import run_page

        path = check_path("path", path)
        write_atomically(path, run_page(self.history, self.findings).encode())

    def __enter__(self) -> watch:
        """Begin to watch."""
        if self._optimizer in _WATCHED:
            raise RuntimeError(f"optimizer: this {type(self._optimizer).__name__} is watched already")
        with ExitStack() as stack:
            _WATCHED.add(self._optimizer)
            stack.callback(_WATCHED.discard, self._optimizer)
            stack.callback(self.monitor.finish)
            theirs = [module for module in self._model.modules() if isinstance(module, torch.nn.RNNBase)]
            theirs = [module for module in theirs if not isinstance(module, _Recurrent)]
            convert(self._model)
            for module in theirs:
                stack.callback(restore, module)
            self._listener.attach(stack)
            stack.callback(self._give_back)
            stack.callback(self._optimizer.register_step_pre_hook(self._before_step).remove)
            stack.callback(self._optimizer.register_step_post_hook(self._after_step).remove)
            if self._scaler is not None:
                self._listen_to_scaler(stack)
            _WATCHERS.add(self)
            stack.callback(_WATCHERS.remove, self)
            self._exit = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take all hooks off, and let the monitor finish."""
        self.history.interrupted = kind is not None and issubclass(kind, KeyboardInterrupt)
        self._exit.close()

    def __repr__(self) -> str:
        return f"<watch: {self.history!r}, {self.monitor!r}>"

    # ---- the gradients -----------------------------------------------------------------------------------------------

    @property
    def _lr(self) -> float:
        return float(self._optimizer.param_groups[0].get("lr", math.nan))

    def _params(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the optimizer's parameters with their names."""
        for i, group in enumerate(self._optimizer.param_groups):
            for j, param in enumerate(group["params"]):
                yield self._names.get(param) or f"param_groups.{i}.{j}", param

    def _arrays(self) -> dict[str, Array]:
        """Return the gradients that are there, but for those that are left out."""
        arrays: dict[str, Array] = {}
        missed = []
        for name, param in self._params():
            grad = param.grad
            if grad is None:
                continue
            if is_array(grad):
                arrays[name] = grad.detach().numpy()
            elif name not in self._left_out:
                missed.append(name)
        if missed:
            self._left_out.update(missed)
            warnings.warn(
                f"left out of norms and clipping, because their gradients are not dense, of float16, float32 or "
                f"float64, and on the CPU: {', '.join(missed)}",
                stacklevel=2,
            )
        return arrays

    def _before_step(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take the norm, and clip."""
        if any(callable(given) for given in (*args[1:], *kwargs.values())):
            raise TypeError("optimizer.step: expected no closure, because its gradients cannot be watched, got one")
        self._give_back()
        self._n_begun += 1
        limit = math.inf if self._max_norm is None else check_limit(self._max_norm, self._n_updates)
        # Some optimizers divide by the scale themselves, and leave out the step where the scaler has found overflow.
        given, overflow = getattr(optimizer, "grad_scale", None), getattr(optimizer, "found_inf", None)
        scale = 1.0 if given is None else float(given)
        policy = "skip" if overflow is not None and float(overflow) else self._nonfinite
        found = Gradients(self._arrays(), write=True)
        norm, *factors = found.measure(2.0, limit, policy, scale)
        if norm.skipped:
            self._taken = [(param, param.grad) for _, param in self._params() if param.grad is not None]
            for param, _ in self._taken:
                param.grad = None
        elif norm.clipped:
            found.multiply(np.full((len(found.arrays), 2), (factors[0], factors[1] * scale)))
        elif norm.n_nan + norm.n_inf:
            found.multiply(np.ones((len(found.arrays), 2)))
        self._n_updates += not norm.skipped
        self._step = norm, self._lr

    def _after_step(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._give_back()
        if self._step is not None:
            self._record(*self._step)

    def _give_back(self) -> None:
        """Give the parameters back the gradients that were taken away for a step."""
        for param, grad in self._taken:
            param.grad = grad
        self._taken = []

    def _listen_to_scaler(self, stack: ExitStack) -> None:
        """See the steps that the scaler leaves out, of which the optimizer never hears."""
        scaler, original = self._scaler, self._scaler.step

        def step(optimizer: Any, *args: Any, **kwargs: Any) -> Any:
            n_begun = self._n_begun
            found = original(optimizer, *args, **kwargs)
            if optimizer is self._optimizer and self._n_begun == n_begun:
                norm = Gradients(self._arrays(), write=False).measure(2.0, math.inf, "skip")[0]
                norm.skipped = True
                self._record(norm, self._lr)
            return found

        own = vars(scaler).get("step")
        scaler.step = step
        stack.callback(setattr, scaler, "step", own) if own is not None else stack.callback(delattr, scaler, "step")

    # ---- the loss ----------------------------------------------------------------------------------------------------

    @property
    def _scale(self) -> float:
        """The factor by which the loss is multiplied."""
        return float(self._scaler.get_scale()) if self._scaler is not None and self._scaler.is_enabled() else 1.0

    def _marks(self) -> list[tuple[Any, int]]:
        """What changes when a gradient does."""
        grads = [param.grad for _, param in self._params()]
        return [(None, 0) if grad is None else (grad, grad._version) for grad in grads]

    def _before_backward(self) -> list[tuple[Any, int]]:
        """Begin a backward pass, and return what `_after_backward` takes."""
        self._listener.begin()
        marks = self._marks()
        grads = sorted((grad for grad, _ in marks if grad is not None), key=torch.numel)
        if not any(grad._nnz() if grad.layout is not torch.strided else grad.any() for grad in grads):
            self._loss = None  # what came before was set to zero
        return marks

    def _after_backward(self, marks: list[tuple[Any, int]], loss: float | None) -> None:
        """Count the loss if its backward pass has reached the parameters."""
        changed = (
            now is not before or version != earlier
            for (now, version), (before, earlier) in zip(self._marks(), marks, strict=True)
        )
        if any(changed):
            self._sweep = self._listener.sweep
            if loss is not None:
                self._loss = (self._loss or 0.0) + loss / self._scale

    # ---- the record --------------------------------------------------------------------------------------------------

    def _record(self, norm: GradNorm, lr: float) -> None:
        listener, number = self._listener, len(self.history)
        tape = listener.tape(listener.sweep if self._sweep is None else self._sweep)
        loss, limit, scale = self._loss, None if self._max_norm is None else norm.max_norm, self._scale
        self._loss = self._sweep = self._step = None
        listener.begin()
        listener.active = (number + 1) % self._every == 0
        y = listener.y
        listener.y = None
        outputs = y.numpy() if y is not None and y.dtype in ARRAYS[1:] and is_array(y) else None
        seen, weights = StepTelemetry(tape, scale), self._weights
        self.history.append(math.nan if loss is None else loss, norm, lr=lr, max_norm=limit, tape=seen)
        record = TrainingStep(weights, self._optimizer, None, None, step=number, history=self.history)
        record.y, record.tape, record.scale, record.lr, record.grad_norm = outputs, tape, scale, lr, norm
        record.nonfinite, record.loss = self._nonfinite, math.nan if loss is None else loss
        self.monitor.update(number, loss, norm, weights, seen, outputs, max_norm=limit, record=record)


class _Weights:
    """The optimizer's parameters, as a monitor asks for them."""

    def __init__(self, owner: watch) -> None:
        self._owner = owner

    @property
    def params(self) -> dict[str, Array]:
        """The parameters that NumPy can look at."""
        named = self._owner._params()
        return {name: param.detach().numpy() for name, param in named if is_array(param.detach())}

    @property
    def flat_params(self) -> Array:
        """All of them in a row."""
        return _in_a_row(self.params)

    @property
    def flat_grads(self) -> Array:
        """All gradients in a row."""
        return _in_a_row(self._owner._arrays())


def _in_a_row(arrays: dict[str, Array]) -> Array:
    return np.concatenate([np.zeros(0, np.float32), *(array.reshape(-1) for array in arrays.values())])


def is_array(tensor: Tensor) -> bool:
    """Whether NumPy can look at a tensor."""
    return tensor.layout is torch.strided and tensor.device.type == "cpu" and tensor.dtype in ARRAYS


class _Watchers:
    """Let all open blocks see each call of `torch.autograd.backward`, to which `Tensor.backward` goes."""

    def __init__(self) -> None:
        self._all: list[watch] = []
        self._original: Any = None
        self._thread = threading.local()

    def add(self, watcher: watch) -> None:
        if not self._all:
            self._original = torch.autograd.backward
            torch.autograd.backward = self._backward
        self._all.append(watcher)

    def remove(self, watcher: watch) -> None:
        self._all.remove(watcher)
        if not self._all and torch.autograd.backward == self._backward:
            torch.autograd.backward = self._original

    def _backward(self, tensors: Any, grad_tensors: Any = None, *args: Any, **kwargs: Any) -> None:
        if getattr(self._thread, "inside", False):  # of a backward pass, as torch.utils.checkpoint does it
            self._original(tensors, grad_tensors, *args, **kwargs)
            return
        begun = [(watcher, watcher._before_backward()) for watcher in self._all]
        loss = _value(tensors, grad_tensors)
        self._thread.inside = True
        try:
            self._original(tensors, grad_tensors, *args, **kwargs)
        finally:
            self._thread.inside = False
        for watcher, marks in begun:
            watcher._after_backward(marks, loss)


_WATCHERS = _Watchers()


def _value(tensors: Any, grad_tensors: Any) -> float | None:
    """Return the sum of what a backward pass begins with, as far as that is single numbers; None without any."""
    roots = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    given = grad_tensors if isinstance(grad_tensors, Sequence) else [grad_tensors] * len(roots)
    values = [
        float(root.detach()) * (1.0 if factor is None else float(factor))
        for root, factor in zip(roots, given, strict=False)
        if root.numel() == 1
    ]
    return sum(values) if values else None
