"""Penalties on the gradient of a model's output with respect to its input."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradcore._base.check import Array, as_array, check_bool, check_number
from gradcore.layers.composite import Composite
from gradcore.layers.layer import Layer
from gradcore.layers.shadow import shadow

__all__ = ["gradient_penalty"]


def gradient_penalty(
    model: Layer,
    x: Array,
    *,
    weight: float = 10.0,
    target: float = 1.0,
    lengths: Any = None,
    reset: Any = None,
    batch_first: bool | None = None,
) -> float:
    r"""Return a penalty on the norm of the gradient of f(x), and add its gradient to `model.grads`.

    With f_b the model's output for sample b of n, a single number, and x_b the sample,

    .. math:: P = \frac{\mathrm{weight}}{n} \sum_b (|g_b| - \mathrm{target})^2, \qquad
              g_b = \frac{\partial f_b}{\partial x_b}.

    The defaults are those of WGAN-GP, where x lies between real and generated samples [1]_; with ``target=0`` and real
    samples it is the R1 penalty, whose weight is there called gamma / 2 [2]_.

    The gradient is exact. It is the derivative of the gradient of :math:`\sum_b f_b` when x moves in the direction
    :math:`v = \partial P / \partial g`, forward over reverse:

    .. math:: \frac{\partial P}{\partial \theta} = \frac{d}{d \varepsilon} \Big[ \frac{\partial}{\partial \theta}
              \sum_b f_b(x + \varepsilon v) \Big]_{\varepsilon = 0}, \qquad
              v_b = \frac{2\,\mathrm{weight}}{n} (|g_b| - \mathrm{target}) \frac{g_b}{|g_b|}.

    Where :math:`|g_b| = 0`, the sample adds nothing to the gradient. At the corner of a ReLU the second derivative
    counts as 0.

    Parameters
    ----------
    model : Layer
        The model, whose output is one number per sample, (B, 1) or (B,). It runs as in training, so that dropout draws.
    x : ndarray, (B, ...), or (T, B, ...) for a model of time-major sequences
        The samples, of the model's dtype.
    weight : float
        The factor of the penalty, at least 0.
    target : float
        The norm that costs nothing, at least 0.
    lengths : array_like of int, (B,), optional
        The length of each sequence; T by default.
    reset : array_like of bool, (T, B), or (B, T) with `batch_first`, optional
        Where a sequence begins anew, for the recurrent layers.
    batch_first : bool, optional
        Whether the samples lie along axis 0 of x; otherwise they lie along axis 1. By default it is the attribute
        `batch_first` of the model's first layer that has one, as all layers of sequences do; True where none has.

    Returns
    -------
    float
        The penalty, in float64; 0 for no samples.

    Raises
    ------
    TypeError
        If a layer has no `forward_tangent`, as one of your own may.
    TypeError, ValueError
        If x has the wrong dtype or shape, the output is not one number per sample, or a layer, such as batch
        normalization, makes one sample depend on others. Nothing has been added then.

    Notes
    -----
    It costs about four times as much as a forward and a backward pass of a feed-forward model. The time steps of
    recurrent layers are NumPy's, which is slower. If interrupted, it resets `grads` to zero.

    References
    ----------
    .. [1] Gulrajani et al., "Improved training of Wasserstein GANs", arXiv 1704.00028, 2017, eq. 3.
    .. [2] Mescheder, Geiger and Nowozin, "Which training methods for GANs do actually converge?", arXiv 1801.04406,
       2018, eq. 9.

    Examples
    --------
    >>> import numpy as np, gradcore
    >>> critic = gradcore.Linear(2, 1, dtype=np.float64)
    >>> critic.params.update(weight=np.array([[3.0, 4.0]]), bias=np.zeros(1))
    >>> gradcore.gradient_penalty(critic, np.zeros((7, 2)))  # the norm is 5 everywhere: 10 (5 - 1)^2
    160.0
    >>> critic.grads["weight"]  # 20 (5 - 1) times the direction
    array([[48., 64.]])
    """
    if not isinstance(model, Layer):
        raise TypeError(f"model: expected a layer or a model, got {type(model).__name__}")
    weight, target = check_number("weight", weight, least=0.0), check_number("target", target, least=0.0)
    model._refuse_without_tangent("model")
    axis = _sample_axis(model, batch_first)
    x = _samples(x, axis)
    given = {name: value for name, value in (("lengths", lengths), ("reset", reset)) if value is not None}
    for name in given:
        if name not in model.takes:
            raise ValueError(f"{name}: no layer of this model takes it")
    model._refuse_reentry()
    try:
        with np.errstate(all="ignore"):  # the result shows what is not finite
            other = shadow(model)
            y, tape = other.forward(x, **given)
            _refuse_other_outputs(y, x, axis)
            dy = np.ones_like(y)
            g = other.backward(tape, dy)
            other.zero_grad()  # those of the sum of f
            penalty, v = _of_norms(g, axis, weight, target)
            _, tangent = other.forward_tangent(tape, v)
            other.backward_tangent(tape, tangent, dy, np.zeros_like(dy))
            model._add_gradients(other)
    except (TypeError, ValueError):
        raise
    except BaseException:
        model._drop_gradients()
        raise
    return penalty


def _sample_axis(model: Layer, batch_first: Any) -> int:
    said = _batch_first(model)
    if batch_first is None:
        return 1 if said is False else 0
    asked = check_bool("batch_first", batch_first)
    if said is not None and said != asked:
        raise ValueError(f"batch_first: expected {said}, which the model's layers have, got {asked}")
    return 0 if asked else 1


def _batch_first(layer: Layer) -> bool | None:
    """Return whether x is (B, T, F) or (T, B, F), as the first layer says that has a `batch_first`."""
    own: bool | None = getattr(layer, "batch_first", None)
    if own is not None:
        return own
    members = map(_batch_first, layer.layers if isinstance(layer, Composite) else ())
    return next((found for found in members if found is not None), None)


def _samples(x: Any, axis: int) -> Array:
    given = as_array("x", x)
    if given.dtype.kind in "biu":
        raise TypeError(
            f"x: expected float32 or float64, got {given.dtype}, with respect to which there is no gradient"
        )
    if given.ndim <= axis:
        shape = "(T, B, ...)" if axis else "(B, ...)"
        raise ValueError(f"x: expected shape {shape}, got {given.shape}")
    return given


def _refuse_other_outputs(y: Array, x: Array, axis: int) -> None:
    B = x.shape[axis]
    if y.shape not in ((B,), (B, 1)):
        raise ValueError(
            f"model: expected an output of shape ({B}, 1) or ({B},), one number for each sample on axis {axis} of x, "
            f"got {y.shape}; batch_first says which axis that is"
        )


def _of_norms(g: Array, axis: int, weight: float, target: float) -> tuple[float, Array]:
    """Return the penalty, and its gradient with respect to g."""
    others = tuple(i for i in range(g.ndim) if i != axis)
    wide = g.astype(np.float64)
    largest = np.abs(wide).max(axis=others, keepdims=True, initial=0.0)
    unit = wide / np.where(largest > 0, largest, 1.0)  # so that squares neither overflow nor all underflow
    length = np.sqrt(np.square(unit).sum(axis=others, keepdims=True))
    excess = largest * length - target
    n = max(g.shape[axis], 1)
    v = 2 * weight / n * excess * (unit / np.where(length > 0, length, 1.0))
    return weight * float(np.square(excess).sum()) / n, v.astype(g.dtype)
