"""The encoder layer of a transformer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from gradcore import _kernels
from gradcore._base.check import Array, check_bool, check_choice, check_int, check_lengths, check_number, check_rng
from gradcore._base.memory import Pool
from gradcore.clip.norm import norm_of
from gradcore.layers.activations import _ACTIVATIONS
from gradcore.layers.attention import MultiheadAttention
from gradcore.layers.composite import Composite
from gradcore.layers.dropout import Dropout
from gradcore.layers.dual import Dual
from gradcore.layers.layer import Layer, Sequences
from gradcore.layers.linear import Generator, Linear
from gradcore.layers.normalization import LayerNorm, RMSNorm
from gradcore.layers.ragged import _SequenceRows
from gradcore.layers.tape import Tape

__all__ = ["TransformerEncoderLayer", "TransformerTape"]


class TransformerTape(Tape):
    """Keep what `TransformerEncoderLayer`'s `backward` needs, and the norms of the gradient at its members.

    Parameters
    ----------
    layer : TransformerEncoderLayer
        The layer, whose `forward` makes the tape.
    shape : tuple of int
        The shape of y.
    *kept : object
        What the layer's `backward` needs.
    tapes : sequence of Tape
        The members' own tapes.

    Attributes
    ----------
    norms : dict of str to tuple of two floats
        The L2 norms of dL/d(input) and dL/d(output) of each member, by its name; empty before `backward`.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> layer = gradcore.TransformerEncoderLayer(8, 2, 16, rng=0)
    >>> y, tape = layer.forward(np.ones((5, 3, 8), np.float32))
    >>> dx = layer.backward(tape, y)
    >>> sorted(tape.norms) == sorted(layer.names)
    True
    """

    def __init__(self, layer: Any, shape: tuple[int, ...], *kept: Any, tapes: Sequence[Tape]) -> None:
        super().__init__(layer, shape, *kept, tapes=tapes)
        self.norms: dict[str, tuple[float | None, float | None]] = {}

    def norms_at(self, i: int) -> tuple[float | None, float | None]:
        """Return the norms of dL/d(input) and dL/d(output) of one of the members.

        Parameters
        ----------
        i : int
            Which member.

        Returns
        -------
        tuple of two floats
            The norms; None before `backward`.
        """
        return self.norms.get(self.layer.names[i], (None, None))


class TransformerEncoderLayer(Composite):
    r"""Encoder layer of a transformer: self-attention, then two linear maps with an activation between them.

    Each of the two is a branch F whose output is added to its input. The original layer [1]_ normalizes the sum,
    :math:`y = \mathrm{norm}(x + F(x))`; with `norm_first` the branch begins with the norm,
    :math:`y = x + F(\mathrm{norm}(x))`, so that gradients have a way past all branches and training needs no
    warm-up [2]_. Nothing follows the last sum then: a stack ends with a norm of its own.

    Parameters carry PyTorch's names, such as ``self_attn.in_proj_weight`` and ``linear1.weight``, and are drawn as
    PyTorch does.

    Parameters
    ----------
    d_model : int
        The size of the last axis of x and y, a multiple of `nhead`.
    nhead : int
        The number of heads.
    dim_feedforward : int
        The number of features between the two linear maps.
    dropout : float
        The probability of dropout after the activation and at the end of each branch, in training.
    activation : str
        The activation, "relu" or "gelu".
    layer_norm_eps : float
        What the norms add to the variance, or to the mean square.
    norm_first : bool
        Whether branches begin with the norm instead of sums being normalized.
    causal : bool
        Whether a step sees only itself and those before it.
    norm : str
        The norm: "layer" for `LayerNorm`, "rms" for `RMSNorm`.
    dtype : dtype
        The dtype of parameters, inputs and outputs, float32 or float64.
    rng : int or numpy.random.Generator, optional
        The generator, or the seed of one, that draws the parameters and the masks of dropout.

    Attributes
    ----------
    layers : tuple of Layer
        The members.
    names : tuple of str
        Their names.

    References
    ----------
    .. [1] Vaswani et al., "Attention is all you need", arXiv 1706.03762, 2017, sections 3.1 to 3.3.
    .. [2] Xiong et al., "On layer normalization in the transformer architecture", arXiv 2002.04745, 2020, table 1.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> model = gradcore.Sequential(
    ...     *[gradcore.TransformerEncoderLayer(8, 2, 16, norm_first=True, rng=i) for i in range(3)],
    ...     gradcore.LayerNorm(8),
    ... )
    >>> y, tape = model.forward(np.ones((5, 3, 8), np.float32), lengths=[5, 2, 4])
    >>> dx = model.backward(tape, y)
    >>> dx.shape, tape.d_norm.shape, list(model.params)[:2]
    ((5, 3, 8), (5,), ['0.self_attn.in_proj_weight', '0.self_attn.in_proj_bias'])
    """

    self_attn: MultiheadAttention

    batch_first = False

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.0,
        activation: str = "relu",
        layer_norm_eps: float = 1e-5,
        norm_first: bool = False,
        *,
        causal: bool = False,
        norm: str = "layer",
        dtype: DTypeLike = np.float32,
        rng: int | Generator | None = None,
    ) -> None:
        self.d_model = check_int("d_model", d_model, least=1)
        self.nhead = check_int("nhead", nhead, least=1)
        if self.d_model % self.nhead:
            raise ValueError(f"nhead: expected a divisor of d_model={self.d_model}, got {nhead}")
        self.dim_feedforward = check_int("dim_feedforward", dim_feedforward)
        self.dropout = check_number("dropout", dropout, least=0.0, most=1.0)
        self.activation = check_choice("activation", activation, ("relu", "gelu"))
        self.layer_norm_eps = check_number("layer_norm_eps", layer_norm_eps, least=0.0)
        self.norm_first = check_bool("norm_first", norm_first)
        self.causal = check_bool("causal", causal)
        self.norm = check_choice("norm", norm, ("layer", "rms"))
        rng, build = check_rng(rng), LayerNorm if self.norm == "layer" else RMSNorm
        members: dict[str, Layer] = {
            "self_attn": MultiheadAttention(self.d_model, self.nhead, causal=self.causal, dtype=dtype, rng=rng),
            "linear1": Linear(self.d_model, self.dim_feedforward, dtype=dtype, rng=rng),
            "linear2": Linear(self.dim_feedforward, self.d_model, dtype=dtype, rng=rng),
            "norm1": build(self.d_model, self.layer_norm_eps, dtype=dtype),
            "norm2": build(self.d_model, self.layer_norm_eps, dtype=dtype),
            "nonlinearity": _ACTIVATIONS[self.activation](),
            "dropout1": Dropout(self.dropout, rng=rng),
            "dropout2": Dropout(self.dropout, rng=rng),
            "dropout3": Dropout(self.dropout, rng=rng),
        }
        super().__init__(**members)
        self._pool = Pool()

    def __call__(self, x: Array, lengths: Any = None) -> Array:
        """Return the output, without dropout and without a tape.

        Parameters
        ----------
        x : ndarray, (T, B, d_model)
            The sequences, of the layer's dtype.
        lengths : array_like of int, (B,), optional
            The length of each sequence; T by default.

        Returns
        -------
        ndarray, (T, B, d_model)
            The output, zero past each sequence's end.

        Examples
        --------
        >>> import numpy as np, gradcore
        >>> gradcore.TransformerEncoderLayer(8, 2, 16)(np.ones((5, 3, 8), np.float32)).shape
        (5, 3, 8)
        """
        return self._run(x, lengths, None)[0]

    def forward(self, x: Array, lengths: Any = None) -> tuple[Array, TransformerTape]:
        """Return the output, and the tape that `backward` needs.

        Parameters
        ----------
        x : ndarray, (T, B, d_model)
            The sequences, of the layer's dtype.
        lengths : array_like of int, (B,), optional
            The length of each sequence; T by default. What lies past a sequence's end has no effect.

        Returns
        -------
        y : ndarray, (T, B, d_model)
            The output, zero past each sequence's end.
        tape : TransformerTape
            What `backward` needs.

        Raises
        ------
        TypeError, ValueError
            If x or lengths have the wrong dtype or shape.

        Examples
        --------
        >>> import numpy as np, gradcore
        >>> y, tape = gradcore.TransformerEncoderLayer(8, 2, 16).forward(np.ones((5, 3, 8), np.float32))
        >>> y.shape, [member.name for member in tape.walk()][:3]
        ((5, 3, 8), ['', 'self_attn', 'linear1'])
        """
        tapes: dict[str, Tape] = {}
        y, rows = self._run(x, lengths, tapes)
        return y, TransformerTape(self, y.shape, rows, self.norm_first, tapes=[tapes[name] for name in self.names])

    def _run(self, x: Array, lengths: Any, tapes: dict[str, Tape] | None) -> tuple[Array, _SequenceRows]:
        """Return the output and its rows; train and fill `tapes` unless it is None."""
        x = self.check("x", x, ("T", "B", self.d_model))
        rows = _SequenceRows(x.shape[0], x.shape[1], check_lengths(lengths, *x.shape[:2]), self._pool)

        def pass_on(name: str, x: Array) -> Array:
            layer = getattr(self, name)
            if tapes is None and name != "self_attn":
                return np.asarray(layer(x))
            y, tape = layer._forward_rows(rows, x) if name == "self_attn" else layer.forward(x)
            if tapes is not None:
                tapes[name] = tape
            return np.asarray(y)

        return rows.unpack(self._upwards(self.norm_first, rows.pack(x), pass_on)), rows

    def backward(self, tape: TransformerTape, dy: Array) -> Array:
        """Return the gradient with respect to x, and add those of the parameters to `grads`.

        It sets `tape.norms`. If interrupted or out of memory, it resets `grads` to zero.

        Parameters
        ----------
        tape : TransformerTape
            The tape from this layer's `forward`.
        dy : ndarray, (T, B, d_model)
            The gradient with respect to y; what lies past a sequence's end has no effect.

        Returns
        -------
        ndarray, (T, B, d_model)
            The gradient with respect to x, zero past each sequence's end.

        Raises
        ------
        TypeError, ValueError
            If dy has another dtype or shape than y, or the tape comes from another layer.
        RuntimeError
            If a signal handler calls it in the middle of a backward pass of the same layer.

        Examples
        --------
        >>> import numpy as np, gradcore
        >>> layer = gradcore.TransformerEncoderLayer(8, 2, 16)
        >>> y, tape = layer.forward(np.ones((5, 3, 8), np.float32))
        >>> layer.backward(tape, np.ones_like(y)).shape
        (5, 3, 8)
        """
        self.check_tape(tape)
        dy = self.check("dy", dy, tape.shape)
        rows: _SequenceRows
        rows, norm_first = tape.kept
        tapes = dict(zip(self.names, tape.tapes, strict=True))
        norms: dict[str, tuple[float | None, float | None]] = {}

        def pass_back(name: str, d: Array) -> Array:
            layer, its = getattr(self, name), tapes[name]
            dx = np.asarray(layer._backward_rows(its, d) if name == "self_attn" else layer.backward(its, d))
            after = norm_of(d)
            norms[name] = after if dx is d else norm_of(dx), after  # the same after a dropout of 0
            return dx

        with self._adding_or_zero():
            dx = self._downwards(norm_first, rows.pack(dy), pass_back, self._sum)
        tape.norms = norms
        return rows.unpack(dx)

    def forward_tangent(self, tape: TransformerTape, x_dot: Array) -> tuple[Array, dict[str, Any]]:
        """Return how the output changes when x moves in the direction of `x_dot`.

        Parameters
        ----------
        tape : TransformerTape
            The tape from this layer's `forward`.
        x_dot : ndarray
            The tangent of x, of the shape of x.

        Returns
        -------
        y_dot : ndarray
            The tangent of y, of the shape of y.
        tangent : dict
            What `backward_tangent` needs besides the tape.
        """
        self.check_tape(tape)
        rows, norm_first = tape.kept
        tapes, tangents = dict(zip(self.names, tape.tapes, strict=True)), dict[str, Any]()

        def pass_on(name: str, x_dot: Array) -> Array:
            layer, its = getattr(self, name), tapes[name]
            forward = layer._forward_tangent_rows if name == "self_attn" else layer.forward_tangent
            y_dot, tangents[name] = forward(its, x_dot)
            return np.asarray(y_dot)

        x_dot = rows.pack(self.check("x_dot", x_dot, tape.shape))
        return rows.unpack(self._upwards(norm_first, x_dot, pass_on)), tangents

    def backward_tangent(
        self, tape: TransformerTape, tangent: dict[str, Any], dy: Array, dy_dot: Array
    ) -> tuple[Array, Array]:
        """Return how the backward pass changes as x moves, and add how the gradients of the parameters do.

        If interrupted or out of memory, it resets `grads` to zero.

        Parameters
        ----------
        tape : TransformerTape
            The tape from this layer's `forward`.
        tangent : dict
            What `forward_tangent` returned beside the tangent of y.
        dy : ndarray
            The gradient with respect to y.
        dy_dot : ndarray
            The tangent of dy.

        Returns
        -------
        dx : ndarray
            The gradient with respect to x.
        dx_dot : ndarray
            The tangent of dx.
        """
        self.check_tape(tape)
        rows, norm_first = tape.kept
        tapes = dict(zip(self.names, tape.tapes, strict=True))

        def pass_back(name: str, d: Dual) -> Dual:
            its = tapes[name]
            if name == "self_attn":
                return self.self_attn._backward_tangent_rows(its, tangent[name], d)
            layer = getattr(self, name)
            return Dual(*layer.backward_tangent(its, tangent[name], d.value, d.dot))

        dy, dy_dot = self.check("dy", dy, tape.shape), self.check("dy_dot", dy_dot, tape.shape)
        with self._adding_or_zero():
            d = self._downwards(norm_first, Dual(rows.pack(dy), rows.pack(dy_dot)), pass_back, Dual.__add__)
        return rows.unpack(d.value), rows.unpack(d.dot)

    def _upwards(self, norm_first: bool, x: Array, pass_on: Callable[[str, Array], Array]) -> Array:
        """Return the output, or its tangent, where a member turns x into ``pass_on(name, x)``."""
        for norm, *branch in _BRANCHES:
            y = x
            for name in (norm, *branch) if norm_first else branch:
                y = pass_on(name, y)
            x = self._sum(x, y)
            if not norm_first:
                x = pass_on(norm, x)
        return x

    @staticmethod
    def _downwards(
        norm_first: bool, d: Any, pass_back: Callable[[str, Any], Any], add: Callable[[Any, Any], Any]
    ) -> Any:
        """Return the gradient with respect to x, where a member turns d into ``pass_back(name, d)``."""
        for norm, *branch in reversed(_BRANCHES):
            if not norm_first:
                d = pass_back(norm, d)
            dx = d
            for name in reversed((norm, *branch) if norm_first else branch):
                dx = pass_back(name, dx)
            d = add(d, dx)
        return d

    def _sum(self, a: Array, b: Array) -> Array:
        total = self._pool.empty(b.shape, self.dtype)
        _kernels.residual_add(a, 1.0, b, total)
        return total

    def _sequences_after(self, where: str, before: Sequences) -> Sequences:
        before.refuse_other_axes(where, batch_first=False)
        return Sequences(where, batch_first=False)


# The norm of each branch, then its other members in order.
_BRANCHES = (
    ("norm1", "self_attn", "dropout1"),
    ("norm2", "linear1", "nonlinearity", "dropout2", "linear2", "dropout3"),
)
