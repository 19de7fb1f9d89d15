"""Optimizers with PyTorch's names and rules. A step clips on the way: gradients are read twice and never written."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from gradcore import _kernels
from gradcore._check import FLOAT32, FLOAT64, Array, array, number, size, target
from gradcore._layer import Layer
from gradcore.norm import (
    Gradients,
    GradNorm,
    as_view,
    check_policy,
    contiguous,
    copy_back,
    refuse_overlap,
    warn_if_exhausted,
)

__all__ = ["SGD", "Adagrad", "Adam", "AdamW", "RMSprop"]

LOWER_BOUNDS = {"dampening": -math.inf}  # of the hyperparameters that are numbers; 0 for those not named


class Optimizer:
    """Base of all optimizers.

    Attributes
    ----------
    lr : float
        The learning rate, which may be set between steps.
    n_steps, n_skipped : int
        How many steps were taken, and how many were skipped because a gradient was not finite.
    """

    lr: float
    weight_decay: float
    maximize: bool

    _rule: ClassVar[int]

    def __init__(self, params: Any, moments: Mapping[str, str], **hyperparameters: Any) -> None:
        """`moments` gives the kernel's operand ("mean", "square", "extra") for each moment by PyTorch's name."""
        self._hyperparameters = tuple(hyperparameters)
        for name, value in _checked(hyperparameters).items():
            setattr(self, name, value)
        self._layer = params if isinstance(params, Layer) else None
        if self._layer is None:
            self._names, self._params, self._grads = _pairs(params)
        self.n_steps = self.n_skipped = 0
        self._operands = dict(moments)
        self._moments = {name: [np.zeros(p.shape, p.dtype) for p in self._members()[1]] for name in moments}

    def _members(self) -> tuple[Sequence[str | int], list[Array], list[Array]]:
        """Names, parameters and gradients. A layer is asked anew: a model moves its members into its own buffers."""
        if self._layer is None:
            return self._names, self._params, self._grads
        return list(self._layer.params), list(self._layer.params.values()), list(self._layer.grads.values())

    @property
    def grads(self) -> dict[str, Array] | list[Array]:
        """The gradients: a dict where they have names, else a list."""
        names, _, grads = self._members()
        return grads if isinstance(names, range) else dict(zip(map(str, names), grads, strict=True))

    def zero_grad(self) -> None:
        """Set every gradient to zero."""
        for grad in self._members()[2]:
            grad.fill(0)

    def step(self, max_norm: float | None = None, nonfinite: str = "skip") -> GradNorm:
        """Update the parameters in place: one pass over the gradients for their norm, one for the update.

        Parameters
        ----------
        max_norm : float, optional
            The gradients count as if clipped to this norm; they are not written.
        nonfinite : {"skip", "raise", "zero"}
            What to do when a gradient is NaN or infinite: leave parameters and moments as they are, bit for bit, and
            count it in `n_skipped`; raise, changing nothing; or take such entries as 0.

        Returns
        -------
        GradNorm
            The norm before clipping, and what was done.

        Raises
        ------
        FloatingPointError
            If an entry is not finite and `nonfinite` is "raise".
        ValueError
            If `max_norm` or `lr` is negative or NaN.
        """
        limit = math.inf if max_norm is None else number("max_norm", max_norm, least=0.0)
        number("lr", self.lr, least=0.0)
        check_policy(nonfinite)
        found = Gradients(self.grads, write=False)
        norm, factor0, factor1 = found.measure(2.0, limit, nonfinite)
        if norm.skipped:
            self.n_skipped += 1
            return norm
        params = self._members()[1]
        plain = params if _kernels.plain(params, True) else [contiguous(p) for p in params]
        operands = {operand: self._moments[name] for name, operand in self._operands.items()}
        _kernels.update(
            self._rule,
            -factor0 if self.maximize else factor0,
            factor1,
            [found.arrays[place] for place in found.where],
            plain,
            operands.get("mean"),
            operands.get("square"),
            operands.get("extra"),
            **self._rates(self.n_steps + 1),
        )
        copy_back(plain, params)
        self.n_steps += 1
        return norm

    def _rates(self, t: int) -> dict[str, float]:
        """The kernel's numbers for step t, the first being 1."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """What the next step depends on, but for parameters and gradients: copies of the moments, and numbers.

        Returns
        -------
        dict
            ``rule``, ``n_steps``, ``n_skipped``, ``hyperparameters`` (a dict) and ``moments``, for each of PyTorch's
            names a dict of arrays by parameter.
        """
        names = [str(name) for name in self._members()[0]]
        return {
            "rule": type(self).__name__,
            "n_steps": self.n_steps,
            "n_skipped": self.n_skipped,
            "hyperparameters": {name: getattr(self, name) for name in self._hyperparameters},
            "moments": {
                moment: {name: a.copy() for name, a in zip(names, arrays, strict=True)}
                for moment, arrays in self._moments.items()
            },
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from where `state_dict` was taken; nothing is changed unless all of it fits.

        Parameters
        ----------
        state_dict : mapping
            What `state_dict` of an optimizer with the same rule, parameters and options returned.

        Raises
        ------
        KeyError
            If something is missing or unknown.
        TypeError, ValueError
            If something has another dtype, shape or range, or the rule is another one.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"state_dict: expected a mapping, got {type(state_dict).__name__}")
        _same_names("state_dict", state_dict, ("rule", "n_steps", "n_skipped", "hyperparameters", "moments"))
        if state_dict["rule"] != type(self).__name__:
            raise ValueError(f"state_dict: expected the state of {type(self).__name__}, got {state_dict['rule']!r}")
        _same_names("hyperparameters", state_dict["hyperparameters"], self._hyperparameters)
        _same_names("moments", state_dict["moments"], self._moments)
        hyperparameters = _checked(state_dict["hyperparameters"])
        counts = {name: size(name, state_dict[name]) for name in ("n_steps", "n_skipped")}
        names = [str(name) for name in self._members()[0]]
        moments = {}
        for moment, arrays in self._moments.items():
            given = state_dict["moments"][moment]
            _same_names(moment, given, names)
            moments[moment] = [
                array(f"{moment} of {name}", given[name], a.dtype, a.shape)
                for name, a in zip(names, arrays, strict=True)
            ]
        for name, value in (hyperparameters | counts).items():
            setattr(self, name, value)
        for moment, arrays in self._moments.items():
            for a, value in zip(arrays, moments[moment], strict=True):
                a[...] = value

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._hyperparameters)
        return f"{type(self).__name__}({arguments})"


def _same_names(label: str, given: Iterable[str], wanted: Iterable[str]) -> None:
    missing, unknown = set(wanted) - set(given), set(given) - set(wanted)
    if missing or unknown:
        raise KeyError(f"{label}: missing {sorted(missing)}, unknown {sorted(unknown)}")


def _checked(hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """The values in their own types, or an error that names the one that is out of range."""
    checked: dict[str, Any] = {}
    for name, value in hyperparameters.items():
        if isinstance(value, (bool, np.bool_)):
            checked[name] = bool(value)
        elif name == "betas":
            if not isinstance(value, Sequence) or len(value) != 2:
                raise TypeError(f"betas: expected two numbers, got {value!r}")
            first, second = (number("betas", beta, least=0.0) for beta in value)
            if not (first < 1 and second < 1):
                raise ValueError(f"betas: expected two numbers of at least 0 and below 1, got {value}")
            checked[name] = (first, second)
        else:
            checked[name] = number(name, value, least=LOWER_BOUNDS.get(name, 0.0))
    if checked.get("nesterov") and not (checked["momentum"] > 0 and checked["dampening"] == 0):
        raise ValueError("nesterov: needs a momentum above 0 and no dampening")
    return checked


def _pairs(given: Any) -> tuple[Sequence[str | int], list[Array], list[Array]]:
    """Names, parameters and gradients from a dict or iterable of pairs."""
    if isinstance(given, Mapping):
        keys: Sequence[Any] = list(given)
        pairs = list(given.values())
    elif isinstance(given, Iterable):
        pairs = list(given)
        keys = range(len(pairs))
        warn_if_exhausted("params", given, pairs)
    else:
        expected = "a layer, a model, or a dict or iterable of (param, grad) pairs"
        raise TypeError(f"params: expected {expected}, got {type(given).__name__}")
    if len({str(key) for key in keys}) < len(keys):
        raise ValueError("params: two keys are the same as text, by which states and norms go")
    params: list[Array] = []
    grads: list[Array] = []
    labels = []
    for key, pair in zip(keys, pairs, strict=True):
        label, gradient = f"params[{key!r}]", f"gradient of params[{key!r}]"
        if not (isinstance(pair, (tuple, list)) and len(pair) == 2):
            raise TypeError(f"{label}: expected a pair (param, grad), got {type(pair).__name__}")
        param = target(label, pair[0])
        if param.dtype not in (FLOAT32, FLOAT64):
            raise TypeError(f"{label}: expected float32 or float64, got {param.dtype}")
        grad = as_view(gradient, pair[1])
        if grad is None:
            raise TypeError(f"{gradient}: expected an array, got None")
        if grad.dtype != param.dtype:
            raise TypeError(f"{gradient}: expected {param.dtype}, got {grad.dtype}")
        if grad.shape != param.shape:
            raise ValueError(f"{gradient}: expected shape {param.shape}, got {grad.shape}")
        params.append(param)
        grads.append(grad)
        labels += [label, gradient]
    refuse_overlap(labels, [a for both in zip(params, grads, strict=True) for a in both])
    return keys, params, grads


class SGD(Optimizer):
    r"""Stochastic gradient descent: :math:`p \leftarrow p - \eta\, b`, :math:`b \leftarrow \mu b + (1 - \tau) g`.

    The first step sets :math:`b = g`. With `nesterov`, :math:`g + \mu b` takes the place of :math:`b`; without
    momentum, :math:`g` does.

    Parameters
    ----------
    params : layer, model, dict or iterable of (param, grad)
        What to update, in place, and with which gradients: float32 or float64 arrays.
    lr : float
        :math:`\eta`, at least 0.
    momentum, dampening : float
        :math:`\mu` and :math:`\tau`.
    weight_decay : float
        L2 decay: added to the gradient, times the parameter.
    nesterov : bool
        Needs a momentum and no dampening.
    maximize : bool
        Climb instead of descending.

    Raises
    ------
    TypeError, ValueError
        If parameters and gradients do not match, cannot be written or share memory, or a number is out of range.

    Notes
    -----
    Sutskever, Martens, Dahl, Hinton, "On the importance of initialization and momentum in deep learning", 2013.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore.optim import SGD
    >>> weight, grad = np.array([1.0, 1.0]), np.array([3.0, 4.0])
    >>> opt = SGD({"weight": (weight, grad)}, lr=0.5)
    >>> norm = opt.step(max_norm=1.0)
    >>> norm, norm.clipped
    (5.0, True)
    >>> weight
    array([0.7, 0.6])
    """

    momentum: float
    dampening: float
    nesterov: bool
    _rule = _kernels.SGD

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(
            params,
            {"momentum_buffer": "mean"} if momentum != 0 else {},
            lr=lr,
            momentum=momentum,
            dampening=dampening,
            weight_decay=weight_decay,
            nesterov=nesterov,
            maximize=maximize,
        )

    def _rates(self, t: int) -> dict[str, float]:
        first = t == 1
        return {
            "step": self.lr,
            "l2": self.weight_decay,
            "keep_mean": 0.0 if first else self.momentum,
            "take_mean": 1.0 if first else 1.0 - self.dampening,
            "now": 1.0 if self.nesterov else 0.0,
            "past": self.momentum if self.nesterov else 1.0,
        }


class Adam(Optimizer):
    r"""Adam: :math:`p \leftarrow p - \eta\, \hat m / (\sqrt{\hat v} + \epsilon)`.

    :math:`m \leftarrow \beta_1 m + (1 - \beta_1) g`, :math:`v \leftarrow \beta_2 v + (1 - \beta_2) g^2`,
    :math:`\hat m = m / (1 - \beta_1^t)`, :math:`\hat v = v / (1 - \beta_2^t)`.

    Parameters
    ----------
    params : layer, model, dict or iterable of (param, grad)
        What to update, in place, and with which gradients: float32 or float64 arrays.
    lr : float
        :math:`\eta`, at least 0.
    betas : (float, float)
        :math:`\beta_1, \beta_2`, at least 0 and below 1.
    eps : float
        :math:`\epsilon`.
    weight_decay : float
        L2 decay: added to the gradient, times the parameter. `AdamW` decouples it.
    amsgrad : bool
        Take the largest :math:`v` so far in place of the current one.
    maximize : bool
        Climb instead of descending.

    Raises
    ------
    TypeError, ValueError
        If parameters and gradients do not match, cannot be written or share memory, or a number is out of range.

    Notes
    -----
    Kingma, Ba, "Adam: a method for stochastic optimization", 2015, algorithm 1; AMSGrad: Reddi, Kale, Kumar, "On the
    convergence of Adam and beyond", 2018, algorithm 2.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore.optim import Adam
    >>> weight, grad = np.array([1.0, 1.0]), np.array([3.0, -4.0])
    >>> opt = Adam([(weight, grad)], lr=0.1)
    >>> norm = opt.step()
    >>> weight.round(6)
    array([0.9, 1.1])
    """

    betas: tuple[float, float]
    eps: float
    amsgrad: bool
    _rule = _kernels.ADAM

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        moments = {"exp_avg": "mean", "exp_avg_sq": "square"}
        super().__init__(
            params,
            moments | {"max_exp_avg_sq": "extra"} if amsgrad else moments,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            amsgrad=amsgrad,
            maximize=maximize,
        )

    def _rates(self, t: int) -> dict[str, float]:
        beta1, beta2 = self.betas
        return {
            "step": self.lr / (1.0 - beta1**t),
            "l2": self.weight_decay,
            "keep_mean": beta1,
            "take_mean": 1.0 - beta1,
            "keep_square": beta2,
            "take_square": 1.0 - beta2,
            "root": math.sqrt(1.0 - beta2**t),
            "eps": self.eps,
        }


class AdamW(Adam):
    r"""Adam with decoupled decay: :math:`p \leftarrow (1 - \eta \lambda) p` before each step of `Adam`.

    Parameters
    ----------
    params, lr, betas, eps, amsgrad, maximize
        As for `Adam`.
    weight_decay : float
        :math:`\lambda`.

    Raises
    ------
    TypeError, ValueError
        As for `Adam`.

    Notes
    -----
    Loshchilov, Hutter, "Decoupled weight decay regularization", 2019, algorithm 2.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore.optim import AdamW
    >>> weight, grad = np.array([1.0, 1.0]), np.array([0.0, -4.0])
    >>> opt = AdamW([(weight, grad)], lr=0.1, weight_decay=0.5)
    >>> norm = opt.step()
    >>> weight.round(6)
    array([0.95, 1.05])
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize)

    def _rates(self, t: int) -> dict[str, float]:
        return super()._rates(t) | {"l2": 0.0, "shrink": 1.0 - self.lr * self.weight_decay}


class RMSprop(Optimizer):
    r"""RMSprop: :math:`p \leftarrow p - \eta\, g / (\sqrt v + \epsilon)`.

    :math:`v \leftarrow \alpha v + (1 - \alpha) g^2`.

    Parameters
    ----------
    params : layer, model, dict or iterable of (param, grad)
        What to update, in place, and with which gradients: float32 or float64 arrays.
    lr : float
        :math:`\eta`, at least 0.
    alpha : float
        :math:`\alpha`.
    eps : float
        :math:`\epsilon`.
    weight_decay : float
        L2 decay: added to the gradient, times the parameter.
    momentum : float
        :math:`\mu`: the change is :math:`b \leftarrow \mu b + g / (\sqrt v + \epsilon)`.
    centered : bool
        Take :math:`v - m^2` in place of :math:`v`, with :math:`m \leftarrow \alpha m + (1 - \alpha) g`.
    maximize : bool
        Climb instead of descending.

    Raises
    ------
    TypeError, ValueError
        If parameters and gradients do not match, cannot be written or share memory, or a number is out of range.

    Notes
    -----
    Tieleman, Hinton, "Lecture 6.5: rmsprop", 2012; centered: Graves, "Generating sequences with recurrent neural
    networks", 2013, equations 38 to 45.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore.optim import RMSprop
    >>> weight, grad = np.array([1.0, 1.0]), np.array([3.0, -4.0])
    >>> opt = RMSprop([(weight, grad)], lr=0.1)
    >>> norm = opt.step()
    >>> weight.round(6)
    array([0., 2.])
    """

    alpha: float
    eps: float
    momentum: float
    centered: bool
    _rule = _kernels.RMSPROP

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        moments = {"square_avg": "square"}
        if centered:
            moments["grad_avg"] = "mean"
        if momentum != 0:
            moments["momentum_buffer"] = "extra"
        super().__init__(
            params,
            moments,
            lr=lr,
            alpha=alpha,
            eps=eps,
            weight_decay=weight_decay,
            momentum=momentum,
            centered=centered,
            maximize=maximize,
        )

    def _rates(self, t: int) -> dict[str, float]:
        return {
            "step": self.lr,
            "l2": self.weight_decay,
            "keep_mean": self.alpha,
            "take_mean": 1.0 - self.alpha,
            "keep_square": self.alpha,
            "take_square": 1.0 - self.alpha,
            "momentum": self.momentum,
            "eps": self.eps,
        }


class Adagrad(Optimizer):
    r"""Adagrad: :math:`p \leftarrow p - \eta_t\, g / (\sqrt v + \epsilon)`, :math:`v \leftarrow v + g^2`.

    :math:`\eta_t = \eta / (1 + (t - 1) \kappa)`.

    Parameters
    ----------
    params : layer, model, dict or iterable of (param, grad)
        What to update, in place, and with which gradients: float32 or float64 arrays.
    lr : float
        :math:`\eta`, at least 0.
    lr_decay : float
        :math:`\kappa`.
    weight_decay : float
        L2 decay: added to the gradient, times the parameter.
    initial_accumulator_value : float
        :math:`v` before the first step.
    eps : float
        :math:`\epsilon`.
    maximize : bool
        Climb instead of descending.

    Raises
    ------
    TypeError, ValueError
        If parameters and gradients do not match, cannot be written or share memory, or a number is out of range.

    Notes
    -----
    Duchi, Hazan, Singer, "Adaptive subgradient methods for online learning and stochastic optimization", 2011.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore.optim import Adagrad
    >>> weight, grad = np.array([1.0, 1.0]), np.array([3.0, -4.0])
    >>> opt = Adagrad([(weight, grad)], lr=0.1)
    >>> norm = opt.step()
    >>> weight.round(6)
    array([0.9, 1.1])
    """

    lr_decay: float
    initial_accumulator_value: float
    eps: float
    _rule = _kernels.ADAGRAD

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(
            params,
            {"sum": "square"},
            lr=lr,
            lr_decay=lr_decay,
            weight_decay=weight_decay,
            initial_accumulator_value=initial_accumulator_value,
            eps=eps,
            maximize=maximize,
        )
        for a in self._moments["sum"]:
            a.fill(self.initial_accumulator_value)

    def _rates(self, t: int) -> dict[str, float]:
        return {"step": self.lr / (1.0 + (t - 1) * self.lr_decay), "l2": self.weight_decay, "eps": self.eps}
