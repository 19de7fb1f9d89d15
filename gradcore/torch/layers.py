"""torch.nn's recurrent layers, whose passes are those of gradcore's kernels."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.utils.rnn import PackedSequence

from gradcore.layers.telemetry import Telemetry
from gradcore.torch.autograd import sequences
from gradcore.torch.passes import DTYPES, Plan, Record

__all__ = ["GRU", "LSTM", "RNN"]

PLAIN = (Tensor, torch.nn.Parameter)
GATES = {"RNN_TANH": 1, "RNN_RELU": 1, "GRU": 3, "LSTM": 4}


class _Recurrent(torch.nn.RNNBase):
    """What the classes share; each is also the torch.nn class that follows it."""

    _theirs: Any

    _record: Record

    def __new__(cls, *args: Any, **kwargs: Any) -> _Recurrent:
        """Return a layer with a record of its own, which a constructor, a copy and a pickle fill further."""
        layer: _Recurrent = object.__new__(cls)
        layer.__dict__["_record"] = Record()
        return layer

    @property
    def telemetry(self) -> Telemetry | None:
        """The norms of the gradient at every layer and time step in the newest backward pass; None before it."""
        return self._record.telemetry

    @property
    def fallbacks(self) -> Counter[str]:
        """How many forward passes were torch.nn's own, by the reason."""
        return self._record.fallbacks

    def extra_repr(self) -> str:
        """Return what torch.nn's layer prints, and the fallbacks.

        Returns
        -------
        str
            The text between the brackets of `repr`.
        """
        fallbacks = ", ".join(f"{reason}: {n}" for reason, n in self.fallbacks.items())
        theirs: str = super().extra_repr()
        return theirs + (f", fallbacks={{{fallbacks}}}" if fallbacks else "")

    def __prepare_scriptable__(self) -> torch.nn.RNNBase:
        """Return torch.nn's layer with the same parameters, which TorchScript can compile."""
        theirs: torch.nn.RNNBase = object.__new__(self._theirs)
        theirs.__dict__.update((name, value) for name, value in vars(self).items() if name != "_record")
        return theirs

    def forward(self, input: Tensor | PackedSequence, hx: Any = None) -> Any:
        """Return what torch.nn's layer returns.

        Parameters
        ----------
        input : Tensor or PackedSequence
            The sequences: (T, B, I), (B, T, I) with `batch_first`, or (T, I).
        hx : Tensor or pair of Tensor, optional
            The initial state; zeros by default.

        Returns
        -------
        output : Tensor or PackedSequence
            The outputs of the last layer.
        state : Tensor or pair of Tensor
            The final state.
        """
        packed = isinstance(input, PackedSequence)
        if packed and torch.compiler.is_compiling():
            return _outside_the_graph(self, input, hx)
        x, sizes, order, inverse = input if packed else (input, None, None, None)
        state = () if hx is None else tuple(hx) if self.mode == "LSTM" else (hx,)
        own = self._parameters  # directly, which is quicker, unless a weight is no parameter of the layer itself
        names = [name for names in self._all_weights for name in names]
        weights = [own[name] if name in own else getattr(self, name) for name in names]
        reason = self._obstacle(x, sizes, state, weights)
        if reason:
            found = super().forward(input, hx)
            self._record.fallbacks[reason] += 1
            return found

        alone = not packed and x.dim() == 2
        if alone:
            x, state = x.unsqueeze(1), tuple(part.unsqueeze(1) for part in state)
        elif self.batch_first and not packed:
            x = x.transpose(0, 1)
        if order is not None:
            state = tuple(part.index_select(1, order) for part in state)
        D = 2 if self.bidirectional else 1
        masks = []
        if self.dropout and self.training:  # the same draws as those of torch.nn
            ones = x.new_ones(x.shape[:-1].numel(), D * self.hidden_size)
            masks = [torch.nn.functional.dropout(ones, self.dropout) for _ in range(self.num_layers - 1)]
        plan = Plan(
            self.mode.lower(), self.num_layers, D, self.bias, len(state), len(masks), self._record.key,
            (sizes, order) if packed else None,
        )  # fmt: skip
        y, *final = sequences(plan, x, *state, *masks, *weights)
        if inverse is not None:
            final = [part.index_select(1, inverse) for part in final]
        if packed:
            y = PackedSequence(y, sizes, order, inverse)
        elif alone:
            y, final = y.squeeze(1), [part.squeeze(1) for part in final]
        elif self.batch_first:
            y = y.transpose(0, 1)
        return y, tuple(final) if self.mode == "LSTM" else final[0]

    def _obstacle(self, x: Tensor, sizes: Tensor | None, state: tuple[Any, ...], weights: list[Tensor]) -> str:
        """Return why the kernels cannot do a pass, or an empty string."""
        if self.proj_size:
            return "projection"
        for tensor in (x, *state, *weights):
            if type(tensor) not in PLAIN:
                return "subclass of Tensor"
            if not tensor.is_cpu:
                return "device"
        if x.layout is not torch.strided:
            return "layout"
        if x.dtype not in DTYPES:
            return "dtype"
        if torch.is_autocast_enabled("cpu"):
            return "autocast"
        if forward_ad._current_level >= 0:
            return "forward-mode differentiation"
        if torch.compiler.is_exporting() or torch.jit.is_tracing():
            return "export"
        if not torch.compiler.is_compiling() and torch._C._len_torch_dispatch_stack():
            return "dispatch mode"
        return "" if self._fits(x, sizes, state, weights) else "arguments"

    def _fits(self, x: Tensor, sizes: Tensor | None, state: tuple[Any, ...], weights: list[Tensor]) -> bool:
        """Whether dtypes and shapes are as expected; torch.nn says what is wrong with others."""
        dtype, dims = x.dtype, x.dim()
        if dims not in ((2, 3) if sizes is None else (2,)) or x.shape[-1] != self.input_size:
            return False
        H, D = self.hidden_size, 2 if self.bidirectional else 1
        rows, n, size = GATES[self.mode] * H, 4 if self.bias else 2, self.input_size
        for k, weight in enumerate(weights):
            if k == n * D:
                size = D * H
            part = k % n
            shape = (rows, size) if part == 0 else (rows, H) if part == 1 else (rows,)
            if weight.shape != shape or weight.dtype is not dtype:
                return False
        if not state:
            return True
        if sizes is not None:
            B: tuple[int, ...] = (int(sizes[0]),)
        else:
            B = () if dims == 2 else (x.shape[0 if self.batch_first else 1],)
        shape = (self.num_layers * D, *B, H)
        if len(state) != (2 if self.mode == "LSTM" else 1):
            return False
        return all(part.shape == shape and part.dtype is dtype for part in state)


@torch.compiler.disable
def _outside_the_graph(layer: _Recurrent, input: PackedSequence, hx: Any) -> Any:
    """Return what the layer does where torch.compile breaks the graph: the number of sequences is a value, no shape."""
    return layer.forward(input, hx)


class LSTM(_Recurrent, torch.nn.LSTM):
    """`torch.nn.LSTM`, with the passes of gradcore's kernels.

    Parameters
    ----------
    *args, **kwargs
        Those of `torch.nn.LSTM`.

    Attributes
    ----------
    telemetry : gradcore.layers.telemetry.Telemetry or None
        The norms of the gradient at every layer and time step in the newest backward pass.
    fallbacks : collections.Counter
        How many forward passes were `torch.nn.LSTM`'s own, by the reason.

    Notes
    -----
    Arguments, results, parameters and state dicts are those of `torch.nn.LSTM`, and so are the masks of dropout for the
    same seed. Gradients are exact to any order. What the kernels cannot do, `torch.nn.LSTM` does: other devices than
    the CPU, other dtypes than float32 and float64, `proj_size`, autocast, export, tracing and forward-mode
    differentiation. Unlike it, sequences without steps (T = 0) are accepted.

    References
    ----------
    .. [1] Hochreiter and Schmidhuber, "Long short-term memory", Neural Computation 9, 1997.

    Examples
    --------
    >>> import torch, gradcore.torch
    >>> lstm = gradcore.torch.LSTM(3, 5)
    >>> y, (h, c) = lstm(torch.ones(7, 2, 3))
    >>> y.sum().backward()
    >>> y.shape, lstm.telemetry.dh_norm.shape
    (torch.Size([7, 2, 5]), (1, 7))
    """

    _theirs = torch.nn.LSTM


class GRU(_Recurrent, torch.nn.GRU):
    """`torch.nn.GRU`, with the passes of gradcore's kernels.

    Parameters
    ----------
    *args, **kwargs
        Those of `torch.nn.GRU`.

    Attributes
    ----------
    telemetry : gradcore.layers.telemetry.Telemetry or None
        The norms of the gradient at every layer and time step in the newest backward pass.
    fallbacks : collections.Counter
        How many forward passes were `torch.nn.GRU`'s own, by the reason.

    Notes
    -----
    What is said at `LSTM` holds here too.

    References
    ----------
    .. [1] Cho et al., "Learning phrase representations using RNN encoder-decoder for statistical machine translation",
       arXiv 1406.1078v1, 2014.

    Examples
    --------
    >>> import torch, gradcore.torch
    >>> gru = gradcore.torch.GRU(3, 5, num_layers=2, bidirectional=True)
    >>> y, h = gru(torch.ones(7, 2, 3))
    >>> y.shape, h.shape
    (torch.Size([7, 2, 10]), torch.Size([4, 2, 5]))
    """

    _theirs = torch.nn.GRU


class RNN(_Recurrent, torch.nn.RNN):
    """`torch.nn.RNN`, with the passes of gradcore's kernels.

    Parameters
    ----------
    *args, **kwargs
        Those of `torch.nn.RNN`.

    Attributes
    ----------
    telemetry : gradcore.layers.telemetry.Telemetry or None
        The norms of the gradient at every layer and time step in the newest backward pass.
    fallbacks : collections.Counter
        How many forward passes were `torch.nn.RNN`'s own, by the reason.

    Notes
    -----
    What is said at `LSTM` holds here too.

    References
    ----------
    .. [1] Elman, "Finding structure in time", Cognitive Science 14, 1990.

    Examples
    --------
    >>> import torch, gradcore.torch
    >>> rnn = gradcore.torch.RNN(3, 5, nonlinearity="relu")
    >>> y, h = rnn(torch.nn.utils.rnn.pack_sequence([torch.ones(4, 3), torch.ones(2, 3)]))
    >>> y.batch_sizes, h.shape
    (tensor([2, 2, 1, 1]), torch.Size([1, 2, 5]))
    """

    _theirs = torch.nn.RNN
