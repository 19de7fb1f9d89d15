"""Multi-head self-attention."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from gradcore import _kernels, init
from gradcore._base.check import Array, check_bool, check_int, check_lengths, check_rng
from gradcore._base.memory import Pool
from gradcore.layers.dual import Dual
from gradcore.layers.dual_attention import attend, attend_back
from gradcore.layers.layer import Layer, Sequences
from gradcore.layers.linear import Generator, back_of_linear
from gradcore.layers.ragged import _SequenceRows
from gradcore.layers.tape import Tape

__all__ = ["MultiheadAttention"]


class MultiheadAttention(Layer):
    r"""Self-attention of several heads: every step of a sequence takes a weighted mean over the steps that it sees.

    A linear map gives the query Q, key K and value V of each step; of every head with its D = `embed_dim` / `num_heads`
    features

    .. math:: Y = \mathrm{softmax}(Q K^T / \sqrt{D}) V,

    and a second linear map mixes the heads [1]_. The logits are made in tiles and never stored, so that memory grows
    with T and not with its square [2]_; the backward pass makes them again.

    Parameters carry PyTorch's names: ``in_proj_weight`` (3 * embed_dim, embed_dim), ``in_proj_bias`` (3 * embed_dim,),
    ``out_proj.weight`` (embed_dim, embed_dim) and ``out_proj.bias`` (embed_dim,). They are drawn as PyTorch does:
    `in_proj_weight` by Xavier's uniform rule, ``out_proj.weight`` from :math:`U(-1/\sqrt{E}, 1/\sqrt{E})` with E =
    `embed_dim`, and biases are zero.

    Parameters
    ----------
    embed_dim : int
        The size of the last axis of x and y, a multiple of `num_heads`.
    num_heads : int
        The number of heads.
    bias : bool
        Whether the linear maps have biases.
    causal : bool
        Whether a step sees only itself and those before it.
    dtype : dtype
        The dtype of parameters, inputs and outputs, float32 or float64.
    rng : int or numpy.random.Generator, optional
        The generator, or the seed of one, that draws the parameters.

    References
    ----------
    .. [1] Vaswani et al., "Attention is all you need", arXiv 1706.03762, 2017, section 3.2.
    .. [2] Dao, Fu, Ermon, Rudra and Re, "FlashAttention", arXiv 2205.14135, 2022, algorithms 1 and 4.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> layer = gradcore.MultiheadAttention(8, 2, causal=True, rng=0)
    >>> x = np.random.default_rng(0).standard_normal((5, 3, 8), np.float32)
    >>> y, tape = layer.forward(x)
    >>> dx = layer.backward(tape, np.ones_like(y))
    >>> dx.shape, list(layer.params)
    ((5, 3, 8), ['in_proj_weight', 'in_proj_bias', 'out_proj.weight', 'out_proj.bias'])
    >>> bool(np.allclose(layer(x[:2]), y[:2], atol=1e-6))
    True
    """

    takes = frozenset({"lengths"})
    batch_first = False

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        bias: bool = True,
        causal: bool = False,
        dtype: DTypeLike = np.float32,
        rng: int | Generator | None = None,
    ) -> None:
        self.embed_dim = E = check_int("embed_dim", embed_dim, least=1)
        self.num_heads = check_int("num_heads", num_heads, least=1)
        if E % self.num_heads:
            raise ValueError(f"num_heads: expected a divisor of embed_dim={E}, got {num_heads}")
        self.bias = check_bool("bias", bias)
        self.causal = check_bool("causal", causal)
        shapes: dict[str, tuple[int, ...]] = {"in_proj_weight": (3 * E, E), "in_proj_bias": (3 * E,)}
        shapes |= {"out_proj.weight": (E, E), "out_proj.bias": (E,)}
        if not self.bias:
            shapes = {name: shape for name, shape in shapes.items() if not name.endswith("bias")}
        super().__init__(shapes, dtype=dtype)
        self._pool = Pool()
        rng, bound = check_rng(rng), 1 / math.sqrt(E)
        init.xavier_uniform_(self.params["in_proj_weight"], rng=rng)
        init.uniform_(self.params["out_proj.weight"], -bound, bound, rng=rng)

    def __call__(self, x: Array, lengths: Any = None) -> Array:
        """Return the output without keeping a tape.

        Parameters
        ----------
        x : ndarray, (T, B, embed_dim)
            The sequences, of the layer's dtype.
        lengths : array_like of int, (B,), optional
            The length of each sequence; T by default.

        Returns
        -------
        ndarray, (T, B, embed_dim)
            The output, zero past each sequence's end.

        Examples
        --------
        >>> import numpy as np, gradcore
        >>> layer = gradcore.MultiheadAttention(4, 1, rng=0)
        >>> layer(np.ones((3, 2, 4), np.float32), lengths=[3, 0])[:, 1].any()
        np.False_
        """
        return self.forward(x, lengths)[0]

    def forward(self, x: Array, lengths: Any = None) -> tuple[Array, Tape]:
        """Return the output, and the tape that `backward` needs.

        Parameters
        ----------
        x : ndarray, (T, B, embed_dim)
            The sequences, of the layer's dtype.
        lengths : array_like of int, (B,), optional
            The length of each sequence; T by default. No step sees one past its sequence's end.

        Returns
        -------
        y : ndarray, (T, B, embed_dim)
            The output, zero past each sequence's end.
        tape : Tape
            What `backward` needs.

        Raises
        ------
        TypeError, ValueError
            If x or lengths have the wrong dtype or shape.

        Examples
        --------
        >>> import numpy as np, gradcore
        >>> y, tape = gradcore.MultiheadAttention(8, 2).forward(np.ones((5, 3, 8), np.float32))
        >>> y.shape
        (5, 3, 8)
        """
        x = self.check("x", x, ("T", "B", self.embed_dim))
        rows = _SequenceRows(x.shape[0], x.shape[1], check_lengths(lengths, *x.shape[:2]), self._pool)
        y, tape = self._forward_rows(rows, rows.pack(x))
        return rows.unpack(y), tape

    def _forward_rows(self, rows: _SequenceRows, x: Array) -> tuple[Array, Tape]:
        """(n, E) -> (n, E)"""
        E, heads = self.embed_dim, self.num_heads
        steps = (*rows.steps, heads, self.causal)
        qkv, y = self._empty(rows.n, 3 * E), self._empty(rows.n, E)
        mixed, largest, total = self._empty(rows.n, E), self._empty(rows.n, heads), self._empty(rows.n, heads)
        take, give, params = self._pool.take, self._pool.give, self._params
        give(_kernels.linear_forward(x, params["in_proj_weight"], params.get("in_proj_bias"), qkv, rows.n, take))
        give(_kernels.attention_forward(steps, qkv, mixed, largest, total, take))
        give(_kernels.linear_forward(mixed, params["out_proj.weight"], params.get("out_proj.bias"), y, rows.n, take))
        return y, Tape(self, (rows.T, rows.B, E), rows, x, qkv, mixed, largest, total, self.causal)

    def backward(self, tape: Tape, dy: Array) -> Array:
        """Return the gradient with respect to x, and add those of the parameters to `grads`.

        If interrupted or out of memory, it resets `grads` to zero.

        Parameters
        ----------
        tape : Tape
            The tape from this layer's `forward`.
        dy : ndarray, (T, B, embed_dim)
            The gradient with respect to y; what lies past a sequence's end has no effect.

        Returns
        -------
        ndarray, (T, B, embed_dim)
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
        >>> layer = gradcore.MultiheadAttention(8, 2)
        >>> y, tape = layer.forward(np.ones((5, 3, 8), np.float32))
        >>> layer.backward(tape, np.ones_like(y)).shape
        (5, 3, 8)
        """
        self.check_tape(tape)
        rows: _SequenceRows = tape.kept[0]
        return rows.unpack(self._backward_rows(tape, rows.pack(self.check("dy", dy, tape.shape))))

    def _backward_rows(self, tape: Tape, dy: Array) -> Array:
        """(n, E) -> (n, E)"""
        rows, x, qkv, mixed, largest, total, causal = tape.kept
        steps = (*rows.steps, self.num_heads, causal)
        dmixed, dqkv, dx = self._empty(*mixed.shape), self._empty(*qkv.shape), self._empty(*x.shape)
        take, give, params, grads = self._pool.take, self._pool.give, self._params, self._grads
        with self._adding_or_zero(), self._adding.lock:
            out, inner = params["out_proj.weight"], params["in_proj_weight"]
            dout, dinner = grads["out_proj.weight"], grads["in_proj_weight"]
            dout_bias, dinner_bias = grads.get("out_proj.bias"), grads.get("in_proj_bias")
            give(_kernels.linear_backward(mixed, out, dy, dmixed, dout, dout_bias, rows.n, take))
            give(_kernels.attention_backward(steps, qkv, mixed, largest, total, dmixed, dqkv, take))
            give(_kernels.linear_backward(x, inner, dqkv, dx, dinner, dinner_bias, rows.n, take))
        return dx

    def forward_tangent(self, tape: Tape, x_dot: Array) -> tuple[Array, tuple[Dual, Dual, Dual]]:
        """Return how the output changes when x moves in the direction of `x_dot`.

        Parameters
        ----------
        tape : Tape
            The tape from this layer's `forward`.
        x_dot : ndarray
            The tangent of x, of the shape of x.

        Returns
        -------
        y_dot : ndarray
            The tangent of y, of the shape of y.
        tangent : object
            What `backward_tangent` needs besides the tape.
        """
        self.check_tape(tape)
        rows: _SequenceRows = tape.kept[0]
        y_dot, tangent = self._forward_tangent_rows(tape, rows.pack(self.check("x_dot", x_dot, tape.shape)))
        return rows.unpack(y_dot), tangent

    def _forward_tangent_rows(self, tape: Tape, x_dot: Array) -> tuple[Array, tuple[Dual, Dual, Dual]]:
        """(n, E) -> (n, E)"""
        rows, x, qkv, mixed, _, _, causal = tape.kept
        qkv_dot, y_dot = self._empty(*qkv.shape), self._empty(*x.shape)
        take, give, params = self._pool.take, self._pool.give, self._params
        give(_kernels.linear_forward(x_dot, params["in_proj_weight"], None, qkv_dot, rows.n, take))
        its_qkv = Dual(qkv, qkv_dot)
        with np.errstate(all="ignore"):
            its_mixed = Dual(mixed, attend(rows.steps, self.num_heads, causal, its_qkv).dot)
        give(_kernels.linear_forward(its_mixed.dot, params["out_proj.weight"], None, y_dot, rows.n, take))
        return y_dot, (Dual(x, x_dot), its_qkv, its_mixed)

    def backward_tangent(
        self, tape: Tape, tangent: tuple[Dual, Dual, Dual], dy: Array, dy_dot: Array
    ) -> tuple[Array, Array]:
        """Return how the backward pass changes as x moves, and add how the gradients of the parameters do.

        If interrupted or out of memory, it resets `grads` to zero.

        Parameters
        ----------
        tape : Tape
            The tape from this layer's `forward`.
        tangent : object
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
        rows: _SequenceRows = tape.kept[0]
        d = Dual(*(rows.pack(self.check(name, a, tape.shape)) for name, a in (("dy", dy), ("dy_dot", dy_dot))))
        dx = self._backward_tangent_rows(tape, tangent, d)
        return rows.unpack(dx.value), rows.unpack(dx.dot)

    def _backward_tangent_rows(self, tape: Tape, tangent: tuple[Dual, Dual, Dual], dy: Dual) -> Dual:
        """(n, E) -> (n, E)"""
        (x, qkv, mixed), (rows, *_, causal) = tangent, tape.kept
        params, grads = self._params, self._grads
        with self._adding_or_zero(), self._adding.lock, np.errstate(all="ignore"):
            weight, dw, db = params["out_proj.weight"], grads["out_proj.weight"], grads.get("out_proj.bias")
            d_mixed = back_of_linear(mixed, weight, dy, dw, db, self._pool)
            d_qkv = attend_back(rows.steps, self.num_heads, causal, qkv, d_mixed)
            weight, dw, db = params["in_proj_weight"], grads["in_proj_weight"], grads.get("in_proj_bias")
            return back_of_linear(x, weight, d_qkv, dw, db, self._pool)

    def _empty(self, n: int, width: int) -> Array:
        return self._pool.empty((n, width), self.dtype)

    def _sequences_after(self, where: str, before: Sequences) -> Sequences:
        before.refuse_other_axes(where, batch_first=False)
        return Sequences(where, batch_first=False)
