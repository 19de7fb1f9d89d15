"""Layers that bring features to mean 0 and variance 1: of each sample, or of each feature over a batch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from gradcore import _kernels
from gradcore._base.check import Array, as_list, check_bool, check_dtype, check_int, check_number
from gradcore._base.memory import Pool
from gradcore.layers.dual import Dual
from gradcore.layers.dual_norm import Normalized, move
from gradcore.layers.layer import Layer, Sequences
from gradcore.layers.tape import Tape

__all__ = ["BatchNorm", "FeatureNorm", "LayerNorm", "Normalization", "RMSNorm"]


class Normalization(Layer):
    """Base of the layers that normalize, with a gain ``weight`` and a ``bias`` where they have them.

    Parameters
    ----------
    shape : tuple of int
        The shape of ``weight`` and ``bias``, the last axes of x.
    names : sequence of str
        Those of the two that there are; weights begin as ones, biases as zeros.
    buffers : mapping of str to ndarray, optional
        What the layer keeps besides, and how it begins.
    dtype : dtype
        The dtype of parameters, inputs and outputs, float32 or float64.

    Examples
    --------
    >>> import gradcore
    >>> isinstance(gradcore.RMSNorm(8), gradcore.layers.normalization.Normalization)
    True
    """

    _shape: tuple[int, ...]  # of the last axes of x

    def __init__(
        self,
        shape: tuple[int, ...],
        names: Sequence[str],
        buffers: Mapping[str, ArrayLike] | None = None,
        *,
        dtype: DTypeLike = np.float32,
    ) -> None:
        super().__init__(dict.fromkeys(names, shape), buffers, dtype=dtype)
        self._shape = shape
        self._pool = Pool()
        if "weight" in names:
            self._params["weight"].fill(1)

    def backward(self, tape: Tape, dy: Array) -> Array:
        """Return the gradient with respect to x, and add those of the parameters to `grads`.

        If interrupted or out of memory, it resets `grads` to zero.

        Parameters
        ----------
        tape : Tape
            The tape from this layer's `forward`.
        dy : ndarray
            The gradient with respect to y.

        Returns
        -------
        ndarray
            The gradient with respect to x, of the shape of x.

        Raises
        ------
        TypeError, ValueError
            If dy has another dtype or shape than y, or the tape comes from another layer.
        RuntimeError
            If a signal handler calls it in the middle of a backward pass of the same layer.

        Examples
        --------
        >>> import numpy as np, gradcore
        >>> layer = gradcore.LayerNorm(3)
        >>> y, tape = layer.forward(np.float32([[1, 2, 6]]))
        >>> dx = layer.backward(tape, np.float32([[1, 0, 0]]))
        >>> dx.shape, layer.grads["bias"]
        ((1, 3), array([1., 0., 0.], dtype=float32))
        """
        self.check_tape(tape)
        dy = self.check("dy", dy, tape.shape)
        dx = self._pool.empty(tape.shape, self.dtype)
        with self._adding_or_zero(), self._adding.lock:
            work = self._back(tape, dy, dx)
        self._pool.give(work)
        return dx

    def _back(self, tape: Tape, dy: Array, dx: Array) -> Array:
        """Run the kernel, and return its scratch."""
        raise NotImplementedError

    def _affine(self) -> tuple[Array | None, Array | None]:
        return self._params.get("weight"), self._params.get("bias")

    def _sequences_after(self, where: str, before: Sequences) -> Sequences:
        return before


class FeatureNorm(Normalization):
    """Base of the layers that normalize each sample by itself, over its features.

    Parameters
    ----------
    normalized_shape : int or sequence of int
        The last axes of x, over which the statistics are; an integer for the last one alone.
    names : sequence of str
        Which of ``weight`` and ``bias`` there are.
    dtype : dtype
        The dtype of parameters, inputs and outputs, float32 or float64.

    Attributes
    ----------
    normalized_shape : tuple of int
        The last axes of x.
    eps : float or None
        What is added to the variance or the mean square.
    centered : bool
        Whether the mean is taken out first.

    Examples
    --------
    >>> import gradcore
    >>> isinstance(gradcore.LayerNorm(8), gradcore.layers.normalization.FeatureNorm)
    True
    """

    eps: float | None
    centered: ClassVar[bool]

    def __init__(
        self, normalized_shape: int | Sequence[int], names: Sequence[str], *, dtype: DTypeLike = np.float32
    ) -> None:
        self.normalized_shape = _checked_shape(normalized_shape)
        super().__init__(self.normalized_shape, names, dtype=dtype)

    @property
    def eps_used(self) -> float:
        """What is added: `eps`, or without one the distance from 1 to the next number of the dtype."""
        return float(np.finfo(self.dtype).eps) if self.eps is None else self.eps

    def forward(self, x: Array) -> tuple[Array, Tape]:
        """Return the output, and the tape that `backward` needs.

        Parameters
        ----------
        x : ndarray, (..., *normalized_shape)
            The input, of the layer's dtype.

        Returns
        -------
        y : ndarray
            The output, of the shape of x.
        tape : Tape
            What `backward` needs.

        Raises
        ------
        TypeError, ValueError
            If x has the wrong dtype or shape.

        Examples
        --------
        >>> import numpy as np, gradcore
        >>> y, tape = gradcore.LayerNorm(2, eps=0.0).forward(np.float32([[1, 3]]))
        >>> y
        array([[-1.,  1.]], dtype=float32)
        """
        x = self.check("x", x, (..., *self._shape))
        y = self._pool.empty(x.shape, self.dtype)
        rows = (math.prod(x.shape[: -len(self._shape)]),)
        mean = self._pool.empty(rows, np.dtype(np.float64)) if self.centered else None
        rstd = self._pool.empty(rows, np.dtype(np.float64))
        _kernels.row_norm_forward(x, *self._affine(), y, math.prod(self._shape), self.eps_used, mean, rstd)
        return y, Tape(self, y.shape, x, mean, rstd)

    def forward_tangent(self, tape: Tape, x_dot: Array) -> tuple[Array, Normalized]:
        r"""Return how the output changes when x moves in the direction of `x_dot`.

        With :math:`\hat x` the normalized x and r what it was divided by, that is
        :math:`\dot y = w r (u - \hat x \overline{\hat x u})` for :math:`u = \dot x - \overline{\dot x}`; RMS norm has
        :math:`u = \dot x`.

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
        x, mean, rstd = tape.kept
        x_dot, normalized = self._rows(self.check("x_dot", x_dot, x.shape)), self._rows(x)
        if mean is not None:
            normalized -= mean[:, None]
        normalized *= rstd[:, None]
        moved = move(normalized, rstd[:, None], x_dot, self._gain(), centered=self.centered)
        return self._shaped(moved.output().dot, x), moved

    def backward_tangent(self, tape: Tape, tangent: Normalized, dy: Array, dy_dot: Array) -> tuple[Array, Array]:
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
        x, *_ = tape.kept
        d = Dual(*(self._rows(self.check(name, a, x.shape)) for name, a in (("dy", dy), ("dy_dot", dy_dot))))
        dx = tangent.back(d)
        changes = dict(zip(("weight", "bias"), tangent.back_to_affine(d), strict=True))
        with self._adding_or_zero(), self._adding.lock:
            for name in self._grads:
                self._grads[name] += changes[name].reshape(self._shape)
        return self._shaped(dx.value, x), self._shaped(dx.dot, x)

    # The tangents are NumPy's, in float64, of rows (N, F).

    def _rows(self, a: Array) -> Array:
        return a.reshape(math.prod(a.shape[: -len(self._shape)]), math.prod(self._shape)).astype(np.float64)

    def _gain(self) -> Array | float:
        weight = self._params.get("weight")
        return 1.0 if weight is None else weight.reshape(-1).astype(np.float64)

    def _shaped(self, rows: Array, x: Array) -> Array:
        return rows.astype(self.dtype).reshape(x.shape)

    def _back(self, tape: Tape, dy: Array, dx: Array) -> Array:
        x, mean, rstd = tape.kept
        grads, F = (self._grads.get("weight"), self._grads.get("bias")), math.prod(self._shape)
        return _kernels.row_norm_backward(x, self._affine()[0], dy, dx, *grads, F, mean, rstd, self._pool.take)


class LayerNorm(FeatureNorm):
    r"""Normalize each sample over its features: :math:`y = (x - \mu) / \sqrt{\sigma^2 + \epsilon} \cdot w + b`.

    Mean and variance are those of the last axes, and stay right where the mean is far larger than the deviation.
    `params` holds ``weight`` and ``bias``, both of `normalized_shape`, where there are any. PyTorch's state dicts load
    as they are.

    Parameters
    ----------
    normalized_shape : int or sequence of int
        The last axes of x, over which the statistics are; an integer for the last one alone.
    eps : float
        What is added to the variance.
    elementwise_affine : bool
        Whether there is a gain ``weight``, and with `bias` also a ``bias``.
    bias : bool
        Whether there is a ``bias``.
    dtype : dtype
        The dtype of parameters, inputs and outputs, float32 or float64.

    References
    ----------
    Ba, Kiros and Hinton, "Layer normalization", arXiv 1607.06450, 2016, equations 3 and 4.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> layer = gradcore.LayerNorm(4)
    >>> y, tape = layer.forward(np.arange(8, dtype=np.float32).reshape(2, 4))
    >>> dx = layer.backward(tape, np.ones_like(y))
    >>> y[0].round(3), layer.grads["bias"]
    (array([-1.342, -0.447,  0.447,  1.342], dtype=float32), array([2., 2., 2., 2.], dtype=float32))
    """

    centered = True

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        *,
        dtype: DTypeLike = np.float32,
    ) -> None:
        self.eps = check_number("eps", eps, least=0.0)
        self.elementwise_affine = check_bool("elementwise_affine", elementwise_affine)
        self.bias = check_bool("bias", bias)
        names = ["weight", "bias"] if self.bias else ["weight"]
        super().__init__(normalized_shape, names if self.elementwise_affine else [], dtype=dtype)


class RMSNorm(FeatureNorm):
    r"""Divide each sample by its root mean square: :math:`y = x / \sqrt{\overline{x^2} + \epsilon} \cdot w`.

    The mean is over the last axes. `params` holds ``weight``, of `normalized_shape`, where there is one. PyTorch's
    state dicts load as they are.

    Parameters
    ----------
    normalized_shape : int or sequence of int
        The last axes of x, over which the mean is; an integer for the last one alone.
    eps : float, optional
        What is added to the mean square; by default the distance from 1 to the next number of the dtype.
    elementwise_affine : bool
        Whether there is a gain ``weight``.
    dtype : dtype
        The dtype of parameters, inputs and outputs, float32 or float64.

    References
    ----------
    Zhang and Sennrich, "Root mean square layer normalization", arXiv 1910.07467, 2019, equation 4.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> layer = gradcore.RMSNorm(2)
    >>> y, tape = layer.forward(np.float32([[1, 7]]))
    >>> dx = layer.backward(tape, np.ones_like(y))
    >>> y, layer.grads["weight"]
    (array([[0.2, 1.4]], dtype=float32), array([0.2, 1.4], dtype=float32))
    """

    centered = False

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        *,
        dtype: DTypeLike = np.float32,
    ) -> None:
        self.eps = None if eps is None else check_number("eps", eps, least=0.0)
        self.elementwise_affine = check_bool("elementwise_affine", elementwise_affine)
        super().__init__(normalized_shape, ["weight"] if self.elementwise_affine else [], dtype=dtype)


class BatchNorm(Normalization):
    r"""Normalize each feature over the batch: :math:`y = (x - \mu) / \sqrt{\sigma^2 + \epsilon} \cdot w + b`.

    Statistics are over all axes but the last. `forward` takes those of the batch, and moves the running ones towards
    them; calling the layer, for inference, takes the running ones. `params` holds ``weight`` and ``bias``
    (num_features,), `buffers` holds ``running_mean`` and ``running_var`` (num_features,) and ``num_batches_tracked``,
    an integer. State dicts of PyTorch's BatchNorm1d load as they are; where PyTorch has the features of (N, C, L) on
    the second axis, they are on the last one here.

    Parameters
    ----------
    num_features : int
        The size of the last axis of x.
    eps : float
        What is added to the variance.
    momentum : float or None
        How far each batch moves the running statistics, from 0 to 1; None for the average over all batches.
    affine : bool
        Whether there are ``weight`` and ``bias``.
    track_running_stats : bool
        Whether there are running statistics; without them inference takes those of its batch.
    dtype : dtype
        The dtype of parameters, inputs and outputs, float32 or float64.

    References
    ----------
    Ioffe and Szegedy, "Batch normalization", arXiv 1502.03167, 2015, algorithms 1 and 2.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> layer = gradcore.BatchNorm(1, momentum=None, eps=0.0)
    >>> y, tape = layer.forward(np.float32([[1], [3]]))
    >>> dx = layer.backward(tape, np.ones_like(y))
    >>> y.ravel(), layer.buffers["running_mean"], layer.buffers["running_var"]
    (array([-1.,  1.], dtype=float32), array([2.], dtype=float32), array([2.], dtype=float32))
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        dtype: DTypeLike = np.float32,
    ) -> None:
        self.num_features = check_int("num_features", num_features)
        self.eps = check_number("eps", eps, least=0.0)
        self.momentum = None if momentum is None else check_number("momentum", momentum, least=0.0, most=1.0)
        self.affine = check_bool("affine", affine)
        self.track_running_stats = check_bool("track_running_stats", track_running_stats)
        start: dict[str, ArrayLike] = {}
        if self.track_running_stats:
            zeros = np.zeros(self.num_features, check_dtype(dtype))
            start = {"running_mean": zeros, "running_var": zeros + 1, "num_batches_tracked": np.int64(0)}
        super().__init__((self.num_features,), ["weight", "bias"] if self.affine else [], start, dtype=dtype)

    def __call__(self, x: Array) -> Array:
        """Return the output with the running statistics; without them, with those of x.

        Parameters
        ----------
        x : ndarray, (..., num_features)
            The input, of the layer's dtype.

        Returns
        -------
        ndarray
            The output, of the shape of x.

        Examples
        --------
        >>> import numpy as np, gradcore
        >>> gradcore.BatchNorm(1, eps=0.0)(np.float32([[1], [3]])).ravel()
        array([1., 3.], dtype=float32)
        """
        x = self.check("x", x, (..., self.num_features))
        if not self.track_running_stats:
            return self._run(x, *self._room_for_statistics(x))
        mean, var = (self._buffers[name].astype(np.float64) for name in ("running_mean", "running_var"))
        return self._run(x, mean, var, given=True)

    def forward(self, x: Array) -> tuple[Array, Tape]:
        """Return the output with the statistics of x, and the tape that `backward` needs; move the running statistics.

        Parameters
        ----------
        x : ndarray, (..., num_features)
            The input, of the layer's dtype; with one sample alone there is no variance.

        Returns
        -------
        y : ndarray
            The output, of the shape of x.
        tape : Tape
            What `backward` needs.

        Raises
        ------
        TypeError, ValueError
            If x has the wrong dtype or shape, or only one sample.

        Examples
        --------
        >>> import numpy as np, gradcore
        >>> layer = gradcore.BatchNorm(3)
        >>> y, tape = layer.forward(np.ones((5, 4, 3), np.float32))
        >>> y.shape, layer.buffers["num_batches_tracked"]
        ((5, 4, 3), array(1))
        """
        x = self.check("x", x, (..., self.num_features))
        mean, var = self._room_for_statistics(x)
        y = self._run(x, mean, var)
        if self.track_running_stats:
            self._track(mean, var, math.prod(x.shape[:-1]))
        return y, Tape(self, y.shape, x, mean, var, self.eps)

    def _room_for_statistics(self, x: Array) -> tuple[Array, Array]:
        if math.prod(x.shape[:-1]) == 1:
            raise ValueError(f"x: expected more than one sample, to take the variance of, got shape {x.shape}")
        mean, var = np.empty((2, self.num_features))
        return mean, var

    def _run(self, x: Array, mean: Array, var: Array, *, given: bool = False) -> Array:
        """Return y from given statistics, or from those of x, which are written to `mean` and `var`."""
        y = self._pool.empty(x.shape, self.dtype)
        N, take = math.prod(x.shape[:-1]), self._pool.take
        self._pool.give(_kernels.column_norm_forward(x, *self._affine(), y, N, self.eps, given, mean, var, take))
        return y

    def _track(self, mean: Array, var: Array, n: int) -> None:
        """Move the running statistics towards those of a batch of n samples, all of them or, if interrupted, none."""
        if not n:
            return
        with self._adding.lock, np.errstate(over="ignore", invalid="ignore"):
            running_mean, running_var, count = self._buffers.values()
            rate = 1 / (int(count) + 1) if self.momentum is None else self.momentum
            changes = (
                (running_mean, running_mean + rate * (mean - running_mean)),
                (running_var, running_var + rate * (var * (n / (n - 1)) - running_var)),
                (count, count + 1),
            )
            _kernels.together([partial(np.copyto, buffer, value) for buffer, value in changes])

    def _back(self, tape: Tape, dy: Array, dx: Array) -> Array:
        x, mean, var, eps = tape.kept
        grads, N = (self._grads.get("weight"), self._grads.get("bias")), math.prod(x.shape[:-1])
        weight, take = self._affine()[0], self._pool.take
        return _kernels.column_norm_backward(x, weight, dy, dx, *grads, N, eps, mean, var, take)

    def _refuse_without_tangent(self, name: str) -> None:
        raise TypeError(
            f"{name}: BatchNorm takes the statistics of the batch, so that the output for one sample depends on the "
            "others and the gradient of a sample is not defined; use LayerNorm"
        )


def _checked_shape(value: Any) -> tuple[int, ...]:
    if isinstance(value, (int, np.integer)):
        return (check_int("normalized_shape", value),)
    sizes = as_list("normalized_shape", value, "an integer or a sequence of integers")
    if not sizes:
        raise ValueError("normalized_shape: expected at least one axis, got none")
    return tuple(check_int(f"normalized_shape[{i}]", n) for i, n in enumerate(sizes))
