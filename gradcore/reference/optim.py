"""The twins of the optimizers: the step of one array."""

from __future__ import annotations

from math import cos, pi, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["adagrad", "adam", "adamw", "ema", "lion", "nadam", "radam", "rmsprop", "sgd", "spam"]

Array = NDArray[Any]


# Each changes p and `state`, empty before the first step, in place; t counts the steps from 1. Names are PyTorch's.


def _squarable(g: Array) -> Array:
    """Return the gradient, limited so that its second moment does not overflow."""
    limit = np.sqrt(np.finfo(g.dtype).max) * (1 - 2.0**-9)
    return np.asarray(np.clip(g, -limit, limit), g.dtype)


def _rms(v: Array, take: float) -> Array:
    """Return the root of a second moment to which a square contributes the part `take`; never 0."""
    return np.asarray(np.sqrt(np.maximum(v, np.finfo(v.dtype).tiny / take)), v.dtype)


def sgd(
    p: Array,
    g: Array,
    state: dict[str, Array],
    t: int,
    *,
    lr: float = 1e-3,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    l1: float = 0.0,
) -> None:
    """Take a step of stochastic gradient descent.

    Parameters
    ----------
    p : ndarray
        The parameter, changed in place.
    g : ndarray, like p
        The gradient dL/dp.
    state : dict of str to ndarray
        The moments by PyTorch's names, empty before the first step; changed in place.
    t : int
        The number of the step, from 1.
    lr : float
        The learning rate.
    momentum : float
        The factor of the earlier changes.
    dampening : float
        The part of the gradient that is left out of the momentum.
    weight_decay : float
        The factor of p that is added to the gradient.
    nesterov : bool
        Whether to look ahead by the momentum.
    maximize : bool
        Whether to go up the gradient.
    l1 : float
        The factor of sign(p) that is added to the gradient.

    Examples
    --------
    >>> p, state = np.ones(1), {}
    >>> for t in (1, 2):
    ...     sgd(p, p.copy(), state, t, lr=0.5, momentum=0.5)
    >>> p, state["momentum_buffer"]
    (array([0.]), array([1.]))
    """
    g = (-g if maximize else g) + weight_decay * p + l1 * np.sign(p)
    if momentum:
        b = momentum * state["momentum_buffer"] + (1 - dampening) * g if "momentum_buffer" in state else g
        state["momentum_buffer"] = b.copy()
        g = g + momentum * b if nesterov else b
    p -= lr * g


def adam(
    p: Array,
    g: Array,
    state: dict[str, Array],
    t: int,
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    amsgrad: bool = False,
    maximize: bool = False,
    l1: float = 0.0,
) -> None:
    """Take a step of Adam.

    Parameters
    ----------
    p : ndarray
        The parameter, changed in place.
    g : ndarray, like p
        The gradient dL/dp.
    state : dict of str to ndarray
        The moments by PyTorch's names, empty before the first step; changed in place.
    t : int
        The number of the step, from 1.
    lr : float
        The learning rate.
    betas : tuple of float
        The decay of the first and of the second moment.
    eps : float
        A number added to the root of the second moment.
    weight_decay : float
        The factor of p that is added to the gradient.
    amsgrad : bool
        Whether to divide by the largest second moment so far.
    maximize : bool
        Whether to go up the gradient.
    l1 : float
        The factor of sign(p) that is added to the gradient.

    Examples
    --------
    >>> p = np.array([1.0, -1.0])
    >>> adam(p, np.array([3.0, -0.5]), {}, 1, lr=0.25)  # the first step is lr, whatever the size of the gradient
    >>> p.round(6)
    array([ 0.75, -0.75])
    """
    g = _squarable((-g if maximize else g) + weight_decay * p + l1 * np.sign(p))
    zeros = np.zeros_like(p)
    m = state["exp_avg"] = betas[0] * state.get("exp_avg", zeros) + (1 - betas[0]) * g
    v = state["exp_avg_sq"] = betas[1] * state.get("exp_avg_sq", zeros) + (1 - betas[1]) * g**2
    if amsgrad:
        v = state["max_exp_avg_sq"] = np.maximum(state.get("max_exp_avg_sq", zeros), v)
    m_hat, v_hat_root = m / (1 - betas[0] ** t), _rms(v, 1 - betas[1]) / sqrt(1 - betas[1] ** t)
    p -= lr * m_hat / (v_hat_root + eps)


def adamw(
    p: Array, g: Array, state: dict[str, Array], t: int, *, lr: float = 1e-3, weight_decay: float = 1e-2, **options: Any
) -> None:
    """Take a step of AdamW, Adam with decoupled weight decay.

    Parameters
    ----------
    p : ndarray
        The parameter, changed in place.
    g : ndarray, like p
        The gradient dL/dp.
    state : dict of str to ndarray
        The moments by PyTorch's names, empty before the first step; changed in place.
    t : int
        The number of the step, from 1.
    lr : float
        The learning rate.
    weight_decay : float
        The factor of lr * p that is subtracted from p.
    **options
        The other options of `adam`.

    Examples
    --------
    >>> p = np.array([1.0, -1.0])
    >>> adamw(p, np.array([3.0, -0.5]), {}, 1, lr=0.25, weight_decay=0.5)
    >>> p.round(6)
    array([ 0.625, -0.625])
    """
    decay = lr * weight_decay * p
    adam(p, g, state, t, lr=lr, **options)
    p -= decay


def nadam(
    p: Array,
    g: Array,
    state: dict[str, Array],
    t: int,
    *,
    lr: float = 2e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum_decay: float = 4e-3,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
    l1: float = 0.0,
) -> None:
    """Take a step of NAdam, Adam with Nesterov momentum.

    Parameters
    ----------
    p : ndarray
        The parameter, changed in place.
    g : ndarray, like p
        The gradient dL/dp.
    state : dict of str to ndarray
        The moments by PyTorch's names, empty before the first step; changed in place.
    t : int
        The number of the step, from 1.
    lr : float
        The learning rate.
    betas : tuple of float
        The decay of the first and of the second moment.
    eps : float
        A number added to the root of the second moment.
    weight_decay : float
        The factor of p that is added to the gradient.
    momentum_decay : float
        How fast the momentum rises.
    decoupled_weight_decay : bool
        Whether lr * weight_decay * p is subtracted from p instead.
    maximize : bool
        Whether to go up the gradient.
    l1 : float
        The factor of sign(p) that is added to the gradient.

    Examples
    --------
    >>> p = np.array([1.0, -1.0])
    >>> nadam(p, np.array([3.0, -0.5]), {}, 1, lr=0.25)
    >>> p.round(6)
    array([ 0.735887, -0.735887])
    """
    decay = lr * weight_decay * p if decoupled_weight_decay else 0.0
    coupled = 0.0 if decoupled_weight_decay else weight_decay
    g = _squarable((-g if maximize else g) + coupled * p + l1 * np.sign(p))
    zeros = np.zeros_like(p)
    m = state["exp_avg"] = betas[0] * state.get("exp_avg", zeros) + (1 - betas[0]) * g
    v = state["exp_avg_sq"] = betas[1] * state.get("exp_avg_sq", zeros) + (1 - betas[1]) * g**2
    mu, following = (betas[0] * (1 - 0.96 ** (i * momentum_decay) / 2) for i in (t, t + 1))
    product = state["mu_product"] = state.get("mu_product", np.ones(())) * mu
    root = _rms(v, 1 - betas[1]) / sqrt(1 - betas[1] ** t) + eps
    p -= decay + lr * ((1 - mu) / (1 - product) * g + following / (1 - product * following) * m) / root


def radam(
    p: Array,
    g: Array,
    state: dict[str, Array],
    t: int,
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
    l1: float = 0.0,
) -> None:
    """Take a step of RAdam, Adam whose first steps are rectified.

    Parameters
    ----------
    p : ndarray
        The parameter, changed in place.
    g : ndarray, like p
        The gradient dL/dp.
    state : dict of str to ndarray
        The moments by PyTorch's names, empty before the first step; changed in place.
    t : int
        The number of the step, from 1.
    lr : float
        The learning rate.
    betas : tuple of float
        The decay of the first and of the second moment.
    eps : float
        A number added to the root of the second moment.
    weight_decay : float
        The factor of p that is added to the gradient.
    decoupled_weight_decay : bool
        Whether lr * weight_decay * p is subtracted from p instead.
    maximize : bool
        Whether to go up the gradient.
    l1 : float
        The factor of sign(p) that is added to the gradient.

    Examples
    --------
    >>> p = np.array([1.0, -1.0])
    >>> radam(p, np.array([3.0, -0.5]), {}, 1, lr=0.25)  # the first step is that of gradient descent
    >>> p
    array([ 0.25 , -0.875])
    """
    decay = lr * weight_decay * p if decoupled_weight_decay else 0.0
    coupled = 0.0 if decoupled_weight_decay else weight_decay
    g = _squarable((-g if maximize else g) + coupled * p + l1 * np.sign(p))
    zeros = np.zeros_like(p)
    m = state["exp_avg"] = betas[0] * state.get("exp_avg", zeros) + (1 - betas[0]) * g
    v = state["exp_avg_sq"] = betas[1] * state.get("exp_avg_sq", zeros) + (1 - betas[1]) * g**2
    most = 2 / (1 - betas[1]) - 1
    rho = most - 2 * t * betas[1] ** t / (1 - betas[1] ** t)
    change = m / (1 - betas[0] ** t)
    if rho > 5:
        r = sqrt((rho - 4) * (rho - 2) * most / ((most - 4) * (most - 2) * rho))
        change = r * change * sqrt(1 - betas[1] ** t) / (_rms(v, 1 - betas[1]) + eps)
    p -= decay + lr * change


def lion(
    p: Array,
    g: Array,
    state: dict[str, Array],
    t: int,
    *,
    lr: float = 1e-4,
    betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 0.0,
    maximize: bool = False,
    l1: float = 0.0,
) -> None:
    """Take a step of Lion, the sign of a momentum.

    Parameters
    ----------
    p : ndarray
        The parameter, changed in place.
    g : ndarray, like p
        The gradient dL/dp.
    state : dict of str to ndarray
        The moments by PyTorch's names, empty before the first step; changed in place.
    t : int
        The number of the step, from 1.
    lr : float
        The learning rate.
    betas : tuple of float
        The decay of the momentum in the step and from step to step.
    weight_decay : float
        The factor of lr * p that is subtracted from p.
    maximize : bool
        Whether to go up the gradient.
    l1 : float
        The factor of sign(p) that is added to the gradient.

    Examples
    --------
    >>> p = np.array([1.0, -1.0])
    >>> lion(p, np.array([3.0, -0.5]), {}, 1, lr=0.25)
    >>> p
    array([ 0.75, -0.75])
    """
    g = _squarable((-g if maximize else g) + l1 * np.sign(p))
    m = state.get("exp_avg", np.zeros_like(p))
    state["exp_avg"] = betas[1] * m + (1 - betas[1]) * g
    p -= lr * (np.sign(betas[0] * m + (1 - betas[0]) * g) + weight_decay * p)


def spam(
    p: Array,
    g: Array,
    state: dict[str, Array],
    t: int,
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    threshold: float = 5000.0,
    reset_every: int = 500,
    warmup_steps: int = 150,
    maximize: bool = False,
    l1: float = 0.0,
) -> None:
    """Take a step of SPAM, Adam that cuts spikes and starts its moments anew at times.

    Parameters
    ----------
    p : ndarray
        The parameter, changed in place.
    g : ndarray, like p
        The gradient dL/dp.
    state : dict of str to ndarray
        The moments by PyTorch's names, empty before the first step; changed in place.
    t : int
        The number of the step, from 1.
    lr : float
        The learning rate.
    betas : tuple of float
        The decay of the first and of the second moment.
    eps : float
        A number added to the root of the second moment.
    weight_decay : float
        The factor of lr * p that is subtracted from p.
    threshold : float
        The ratio of g^2 to its second moment above which an entry is a spike.
    reset_every : int
        The number of steps after which the moments start anew.
    warmup_steps : int
        The number of steps in which the learning rate rises after that.
    maximize : bool
        Whether to go up the gradient.
    l1 : float
        The factor of sign(p) that is added to the gradient.

    Examples
    --------
    >>> p, state = np.zeros(1), {}
    >>> for t, g in enumerate((1.0, 1.0, 1e6), start=1):
    ...     spam(p, np.array([g]), state, t)
    >>> state["spikes"]
    array([ True])
    """
    if t == 1 or t % reset_every == 0:
        state["exp_avg"], state["exp_avg_sq"] = np.zeros_like(p), np.zeros_like(p)
    since = t % reset_every if t >= reset_every else warmup_steps
    if since < warmup_steps:
        warm_lr = lr * (1 - 0.99 * (1 + cos(pi * since / (warmup_steps + 1))) / 2)
    else:
        warm_lr = lr
    g = _squarable((-g if maximize else g) + l1 * np.sign(p))
    v = state["exp_avg_sq"]
    with np.errstate(over="ignore"):
        spikes = state["spikes"] = (v > 0) & (g**2 > threshold * v)
        g = np.where(spikes, np.sign(g) * np.sqrt(threshold * v), g)
    decay = lr * weight_decay * p
    adam(p, g, state, t, lr=warm_lr, betas=betas, eps=eps)
    p -= decay


def ema(average: Array, p: Array, decay: float) -> None:
    """Take a step of an exponential moving average of a parameter.

    Parameters
    ----------
    average : ndarray
        The average, changed in place.
    p : ndarray, like average
        The parameter.
    decay : float
        The factor of the average so far; that of p is 1 - decay.

    Examples
    --------
    >>> average = np.array([4.0])
    >>> ema(average, np.array([8.0]), 0.75)
    >>> average
    array([5.])
    """
    average += (1 - decay) * (p - average)


def rmsprop(
    p: Array,
    g: Array,
    state: dict[str, Array],
    t: int,
    *,
    lr: float = 1e-2,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    centered: bool = False,
    maximize: bool = False,
    l1: float = 0.0,
) -> None:
    """Take a step of RMSprop.

    Parameters
    ----------
    p : ndarray
        The parameter, changed in place.
    g : ndarray, like p
        The gradient dL/dp.
    state : dict of str to ndarray
        The moments by PyTorch's names, empty before the first step; changed in place.
    t : int
        The number of the step, from 1.
    lr : float
        The learning rate.
    alpha : float
        The decay of the second moment.
    eps : float
        A number added to the root of the second moment.
    weight_decay : float
        The factor of p that is added to the gradient.
    momentum : float
        The factor of the earlier changes.
    centered : bool
        Whether to subtract the squared mean of the gradient from its second moment.
    maximize : bool
        Whether to go up the gradient.
    l1 : float
        The factor of sign(p) that is added to the gradient.

    Examples
    --------
    >>> p = np.array([1.0, -1.0])
    >>> rmsprop(p, np.array([3.0, -0.5]), {}, 1, lr=0.25, alpha=0.75)  # divided by the root of (1 - alpha) g^2
    >>> p.round(6)
    array([ 0.5, -0.5])
    """
    g = _squarable((-g if maximize else g) + weight_decay * p + l1 * np.sign(p))
    zeros = np.zeros_like(p)
    v = state["square_avg"] = alpha * state.get("square_avg", zeros) + (1 - alpha) * g**2
    if centered:
        m = state["grad_avg"] = alpha * state.get("grad_avg", zeros) + (1 - alpha) * g
        v = v - m**2
    change = g / (_rms(v, 1 - alpha) + eps)
    if momentum:
        change = state["momentum_buffer"] = momentum * state.get("momentum_buffer", zeros) + change
    p -= lr * change


def adagrad(
    p: Array,
    g: Array,
    state: dict[str, Array],
    t: int,
    *,
    lr: float = 1e-2,
    lr_decay: float = 0.0,
    weight_decay: float = 0.0,
    initial_accumulator_value: float = 0.0,
    eps: float = 1e-10,
    maximize: bool = False,
    l1: float = 0.0,
) -> None:
    """Take a step of Adagrad.

    Parameters
    ----------
    p : ndarray
        The parameter, changed in place.
    g : ndarray, like p
        The gradient dL/dp.
    state : dict of str to ndarray
        The moments by PyTorch's names, empty before the first step; changed in place.
    t : int
        The number of the step, from 1.
    lr : float
        The learning rate.
    lr_decay : float
        The decay of the learning rate: step t takes lr / (1 + (t - 1) lr_decay).
    weight_decay : float
        The factor of p that is added to the gradient.
    initial_accumulator_value : float
        What the sum of squares begins with.
    eps : float
        A number added to the root of the second moment.
    maximize : bool
        Whether to go up the gradient.
    l1 : float
        The factor of sign(p) that is added to the gradient.

    Examples
    --------
    >>> p, state = np.zeros(1), {}
    >>> for t, g in enumerate((3.0, 4.0), start=1):
    ...     adagrad(p, np.array([g]), state, t, lr=1.0)
    >>> p, state["sum"]
    (array([-1.8]), array([25.]))
    """
    g = _squarable((-g if maximize else g) + weight_decay * p + l1 * np.sign(p))
    largest = np.finfo(p.dtype).max  # of the sum, which no later gradient makes smaller
    v = state.get("sum", np.full_like(p, initial_accumulator_value))
    v = state["sum"] = np.minimum(v, largest - g**2) + g**2
    p -= lr / (1 + (t - 1) * lr_decay) * g / (_rms(v, 1) + eps)
