"""Optimizers with PyTorch's names and rules. A step clips on the way: gradients are read twice and never written."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import numpy as np

from gradcore import _kernels
from gradcore._check import (
    Array,
    as_list,
    check_array,
    check_bool,
    check_int,
    check_names,
    check_number,
    check_number_at,
)
from gradcore._layer import Layer
from gradcore.norm import (
    Gradients,
    GradNorm,
    check_limit,
    check_policy,
    contiguous,
    copies_back,
    pairs,
    refuse_overlap,
    warn_if_exhausted,
)
from gradcore.schedule import Schedule
from gradcore.threshold import Threshold

__all__ = ["SGD", "SPAM", "Adagrad", "Adam", "AdamW", "RMSprop"]

LOWER_BOUNDS = {"dampening": -math.inf}  # of the hyperparameters that are numbers; 0 for those not named
FLAGS = ("nesterov", "maximize", "amsgrad", "centered")
WHOLE = {"reset_every": 1, "warmup_steps": 0}  # those that are integers, and their lower bounds


@dataclass
class _Part:
    """The parameters of one group, and what belongs to them."""

    layer: Layer | None
    names: Sequence[str | int]
    params: list[Array]
    grads: list[Array]
    own: dict[str, Any]  # the hyperparameters that are not the optimizer's
    moments: dict[str, list[Array]] = field(default_factory=dict)  # by PyTorch's names

    def members(self) -> tuple[Sequence[str | int], list[Array], list[Array]]:
        """Names, parameters and gradients. A layer is asked anew: a model moves its members into its own buffers."""
        if self.layer is None:
            return self.names, self.params, self.grads
        return list(self.layer.params), list(self.layer.params.values()), list(self.layer.grads.values())


class Group:
    """The hyperparameters of one group of parameters, as attributes: its own, and the optimizer's for the rest.

    Setting one makes it the group's own; an only group's are the optimizer's.
    """

    __slots__ = ("_optimizer", "_own")

    def __init__(self, optimizer: Optimizer, own: dict[str, Any]) -> None:
        object.__setattr__(self, "_optimizer", optimizer)  # which does not know its Groups, or neither would ever go
        object.__setattr__(self, "_own", own)

    def __getattr__(self, name: str) -> Any:
        self._refuse_unknown(name)
        return self._own.get(name, getattr(self._optimizer, name))

    def __setattr__(self, name: str, value: Any) -> None:
        self._refuse_unknown(name)
        self._own[name] = value

    def _refuse_unknown(self, name: str) -> None:
        if name.startswith("_") or name not in self._optimizer._hyperparameters:
            raise AttributeError(f"a group of {type(self._optimizer).__name__} has no {name!r}")

    def __repr__(self) -> str:
        return f"Group({_arguments({name: getattr(self, name) for name in self._optimizer._hyperparameters})})"


class Optimizer:
    """Base of all optimizers.

    Attributes
    ----------
    lr : float or schedule
        The learning rate, which may be set between steps; that of all groups that have none of their own. A schedule,
        or any other callable, is asked for the number at `n_steps` by every step.
    groups : list of Group
        One for each group of parameters: ``opt.groups[1].lr`` is its learning rate, and may be set between steps.
    n_steps, n_skipped, n_consecutive_skips : int
        How many steps were taken, how many were skipped because a gradient was not finite, and how many of these came
        after the last step that was taken.
    last_norm : float or None
        The gradient's norm at the last step that was taken.
    max_consecutive_skips : int or None
        After so many skipped steps in a row, one more raises.
    """

    lr: float | Any  # or a Schedule; as Any, so that a type checker lets `opt.lr *= 0.5` pass
    weight_decay: float
    maximize: bool
    l1: float
    n_steps: int
    n_skipped: int
    n_consecutive_skips: int

    _rule: ClassVar[int]
    _operands: ClassVar[Mapping[str, str]]  # the kernel's operand for each moment by PyTorch's name
    _counters: ClassVar[tuple[str, ...]] = ("n_steps", "n_skipped", "n_consecutive_skips")

    def __init__(self, params: Any, max_consecutive_skips: int | None, **hyperparameters: Any) -> None:
        self._hyperparameters = tuple(hyperparameters)
        checked = _checked(hyperparameters)
        if max_consecutive_skips is not None:
            max_consecutive_skips = check_int("max_consecutive_skips", max_consecutive_skips)
        self.max_consecutive_skips = max_consecutive_skips
        self.last_norm: float | None = None
        vars(self).update(dict.fromkeys(self._counters, 0))
        self._parts = _parts(params, checked)
        self._set(checked, [part.own for part in self._parts])
        for part in self._parts:
            group, params = self._group(part), part.members()[1]
            start = self._start(group)
            for p in params:
                if start > np.finfo(p.dtype).max.item():  # only Adagrad starts from anything but 0
                    raise ValueError(
                        f"initial_accumulator_value: expected a number in the range of {p.dtype}, got {start:g}"
                    )
            part.moments = {name: [np.full(p.shape, start, p.dtype) for p in params] for name in self._moments(group)}

    def _set(self, hyperparameters: dict[str, Any], groups: list[dict[str, Any]]) -> None:
        """Take over the optimizer's hyperparameters and those of the groups' own."""
        if len(groups) == 1:
            hyperparameters, groups = hyperparameters | groups[0], [{}]
        vars(self).update(hyperparameters)
        for part, own in zip(self._parts, groups, strict=True):
            part.own = own

    @property
    def groups(self) -> list[Group]:
        return [Group(self, part.own if len(self._parts) > 1 else vars(self)) for part in self._parts]

    def _group(self, part: _Part) -> Any:
        """What has the hyperparameters of a group: the optimizer where that will do, which is faster."""
        return Group(self, part.own) if part.own else self

    def _moments(self, group: Any) -> Sequence[str]:
        """Which moments a group with these hyperparameters has."""
        return list(self._operands)

    def _start(self, group: Any) -> float:
        """The moments before the first step."""
        return 0.0

    def _rates(self, group: Any, lr: float, t: int) -> dict[str, float]:
        """The kernel's numbers for step t, the first being 1."""
        raise NotImplementedError

    def _members(self) -> tuple[Sequence[str | int], list[Array], list[Array]]:
        """Names, parameters and gradients of all groups; where there are several, a name begins with its group's."""
        members = [part.members() for part in self._parts]
        if len(members) == 1:
            return members[0]
        return (
            [f"{i}.{name}" for i, (names, _, _) in enumerate(members) for name in names],
            [p for _, params, _ in members for p in params],
            [g for _, _, grads in members for g in grads],
        )

    @property
    def params(self) -> dict[str, Array] | list[Array]:
        """The parameters, as `grads`."""
        names, params, _ = self._members()
        return _by_name(names, params)

    @property
    def grads(self) -> dict[str, Array] | list[Array]:
        """The gradients: a dict where they have names, else a list. Of several groups "1.weight" is group 1's."""
        names, _, grads = self._members()
        return _by_name(names, grads)

    def zero_grad(self) -> None:
        """Set every gradient to zero."""
        names, _, grads = self._members()
        _refuse_moved("gradient of params", names, grads)
        for grad in grads:
            grad.fill(0)

    def step(
        self,
        max_norm: float | Threshold | Schedule | None = None,
        nonfinite: str = "skip",
        *,
        scale: float = 1.0,
    ) -> GradNorm:
        """Update the parameters in place: one pass over the gradients for their norm, one for the update.

        Parameters
        ----------
        max_norm : float, Threshold or schedule, optional
            The gradients of all groups together count as if clipped to this norm; they are not written. An object with
            ``update(norm)``, such as those of `gradcore.threshold`, is told the norm and answers with the limit, unless
            the step is skipped or raises; a schedule gives it for `n_steps`.
        nonfinite : {"skip", "raise", "zero"}
            What to do when a gradient is NaN or infinite: leave parameters and moments as they are, bit for bit, and
            count it in `n_skipped`; raise, changing nothing; or take such entries as 0.
        scale : float
            By what the loss was multiplied: the gradients count as divided by it. They are not written.

        Returns
        -------
        GradNorm
            The norm before clipping, over `scale`, and what was done.

        Raises
        ------
        FloatingPointError
            If an entry is not finite and `nonfinite` is "raise", or is "skip" and `max_consecutive_skips` steps in a
            row were skipped already; nothing is changed.
        ValueError
            If `max_norm` or `lr`, or what a schedule gives for it, is negative or NaN, or `scale` or its reciprocal is
            not a positive number.
        """
        limit = math.inf if max_norm is None else check_limit(max_norm, self.n_steps)
        scale = check_number("scale", scale, least=sys.float_info.min, most=sys.float_info.max)
        lrs = [check_number_at("lr", self._group(part).lr, self.n_steps) for part in self._parts]
        check_policy(nonfinite)
        names, params, grads = self._members()
        found = Gradients(_by_name(names, grads), write=False)
        plain = params
        if not _kernels.plain(params, True):
            _refuse_moved("params", names, params)
            plain = [contiguous(p) for p in params]
        grads = [found.arrays[place] for place in found.where]
        updates, first = [], 0
        for part, lr in zip(self._parts, lrs, strict=True):
            end = first + len(part.members()[0])
            updates.append(self._update(part, lr, grads[first:end], plain[first:end]))
            first = end
        norm, factor0, factor1 = found.measure(2.0, limit, nonfinite, scale)
        if norm.skipped:
            self._skip(found)
            return norm
        calls: list[Callable[..., Any]] = []
        for part, update in zip(self._parts, updates, strict=True):
            calls += self._calls(part, update, -factor0 if self._group(part).maximize else factor0, factor1)
        calls += copies_back(plain, params)
        after = {"n_steps": self.n_steps + 1, "n_consecutive_skips": 0, "last_norm": float(norm)}
        _kernels.together([*calls, partial(vars(self).update, after)])  # Ctrl-C finds the whole step, or none of it
        return norm

    def _skip(self, found: Gradients) -> None:
        """Count a step that is not taken, or raise if it is one too many."""
        if self.max_consecutive_skips is not None and self.n_consecutive_skips >= self.max_consecutive_skips:
            raise FloatingPointError(self._too_many_skips(found))
        self.n_skipped += 1
        self.n_consecutive_skips += 1

    def _update(self, part: _Part, lr: float, grads: list[Array], params: list[Array]) -> _kernels.Update:
        """One group's share of a step, made ready."""
        group = self._group(part)
        arguments: dict[str, Any] = {self._operands[name]: arrays for name, arrays in part.moments.items()}
        arguments |= self._rates(group, lr, self.n_steps + 1)
        return _kernels.Update(self._rule, grads, params, l1=group.l1, **arguments)

    def _calls(self, part: _Part, update: _kernels.Update, first: float, second: float) -> list[Callable[..., Any]]:
        """What takes it with the gradients times the two factors; nothing of that is Python code."""
        return [partial(update.run, first, second)]

    def _too_many_skips(self, found: Gradients) -> str:
        """What to say about one more gradient that is not finite."""
        bad = []
        for key, place in zip(found.keys, found.where, strict=True):
            n_nan, n_inf = (int(np.count_nonzero(f(found.arrays[place]))) for f in (np.isnan, np.isinf))
            if n_nan + n_inf:
                bad.append(f"grads[{key!r}] has {n_nan} NaN and {n_inf} Inf in {found.arrays[place].size} entries")
        last = "no step was taken before" if self.last_norm is None else f"the last norm was {self.last_norm:.6g}"
        return (
            f"step {self.n_steps + self.n_skipped + 1}: the gradient is not finite again, after "
            f"{self.n_consecutive_skips} skipped steps in a row (max_consecutive_skips: {self.max_consecutive_skips}): "
            f"{'; '.join(bad)}; {last}; nothing was changed"
        )

    def _arrays(self) -> dict[str, dict[str, Array]]:
        """The moments by PyTorch's names, and by parameter."""
        names = iter(self._members()[0])
        arrays: dict[str, dict[str, Array]] = {}
        for part in self._parts:
            own = [str(next(names)) for _ in part.members()[0]]
            for moment, values in part.moments.items():
                arrays.setdefault(moment, {}).update(zip(own, values, strict=True))
        return arrays

    def state_dict(self) -> dict[str, Any]:
        """What the next step depends on, but for parameters and gradients: copies of the moments, and numbers.

        Returns
        -------
        dict
            ``rule``, ``n_steps`` and the other counters, ``last_norm``, ``hyperparameters`` (a dict), ``groups`` (for
            each a dict of the hyperparameters that are its own) and ``moments``, for each of PyTorch's names a dict of
            arrays by parameter. For a schedule, which holds no state, its number at `n_steps` stands.
        """
        return {
            "rule": type(self).__name__,
            **{counter: getattr(self, counter) for counter in self._counters},
            "last_norm": self.last_norm,
            "hyperparameters": self._numbers({name: getattr(self, name) for name in self._hyperparameters}),
            "groups": [self._numbers(part.own) for part in self._parts],
            "moments": {
                moment: {name: a.copy() for name, a in arrays.items()} for moment, arrays in self._arrays().items()
            },
        }

    def _numbers(self, hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
        """With a schedule's number in its place."""
        lr = hyperparameters.get("lr")
        now = {"lr": check_number_at("lr", lr, self.n_steps)} if callable(lr) else {}
        return {**hyperparameters, **now}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from where `state_dict` was taken; nothing is changed unless all of it fits. Schedules are kept.

        Parameters
        ----------
        state_dict : mapping
            What `state_dict` of an optimizer with the same rule, parameters, groups and options returned.

        Raises
        ------
        KeyError
            If something is missing or unknown.
        TypeError, ValueError
            If something has another dtype, shape or range, or the rule is another one.
        """
        check_names(
            "state_dict", state_dict, ("rule", *self._counters, "last_norm", "hyperparameters", "groups", "moments")
        )
        if not isinstance(state_dict["rule"], str) or state_dict["rule"] != type(self).__name__:
            raise ValueError(f"state_dict: expected the state of {type(self).__name__}, got {state_dict['rule']!r}")
        check_names("hyperparameters", state_dict["hyperparameters"], self._hyperparameters)
        hyperparameters = _checked(state_dict["hyperparameters"])
        counts = {counter: check_int(counter, state_dict[counter]) for counter in self._counters}
        last_norm = state_dict["last_norm"]
        if last_norm is not None:
            last_norm = check_number("last_norm", last_norm, least=0.0)
        given_groups = state_dict["groups"]
        if not isinstance(given_groups, (list, tuple)):
            raise TypeError(f"groups: expected a list, got {type(given_groups).__name__}")
        if len(given_groups) != len(self._parts):
            raise ValueError(f"groups: expected {len(self._parts)}, got {len(given_groups)}")
        groups = [_own(f"groups[{i}]", own, hyperparameters) for i, own in enumerate(given_groups)]
        moments = self._arrays()
        check_names("moments", state_dict["moments"], moments)
        values = {}
        for moment, arrays in moments.items():
            given = state_dict["moments"][moment]
            check_names(moment, given, arrays)
            values[moment] = {
                name: check_array(f"{moment} of {name}", given[name], a.dtype, a.shape) for name, a in arrays.items()
            }
        for has, gets in ((vars(self), hyperparameters), *zip((p.own for p in self._parts), groups, strict=True)):
            if callable(has.get("lr")):
                gets["lr"] = has["lr"]
        self._set(hyperparameters, groups)
        vars(self).update(counts)
        self.last_norm = last_norm
        for moment, arrays in moments.items():
            for name, a in arrays.items():
                a[...] = values[moment][name]

    def __repr__(self) -> str:
        shown = {name: getattr(self, name) for name in (*self._hyperparameters, "max_consecutive_skips")}
        groups = [part.own for part in self._parts]
        return f"{type(self).__name__}({_arguments(shown | ({'groups': groups} if any(groups) else {}))})"


def _refuse_moved(label: str, names: Sequence[str | int], arrays: Sequence[Array]) -> None:
    """A layer that moves into a model's buffers leaves its arrays behind, read-only."""
    for name, a in zip(names, arrays, strict=True):
        if not a.flags.writeable:
            raise ValueError(
                f"{label}[{name!r}]: is read-only; if its layer has joined a model or was copied, build the optimizer "
                "from the model or the copy"
            )


def _by_name(names: Sequence[str | int], grads: list[Array]) -> dict[str, Array] | list[Array]:
    return grads if isinstance(names, range) else dict(zip(map(str, names), grads, strict=True))


def _arguments(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in values.items())


def _checked(hyperparameters: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """The values in their own types, or an error that names the one that is out of range."""
    checked: dict[str, Any] = {}
    for name, value in hyperparameters.items():
        label = where + name
        if name in FLAGS:
            checked[name] = check_bool(label, value)
        elif name == "lr" and callable(value):
            checked[name] = value
        elif name == "betas":
            if not isinstance(value, (tuple, list)) or len(value) != 2:
                raise TypeError(f"{label}: expected two numbers, got {value!r}")
            first, second = (check_number(label, beta, least=0.0) for beta in value)
            if not (first < 1 and second < 1):
                raise ValueError(f"{label}: expected two numbers of at least 0 and below 1, got {value}")
            checked[name] = (first, second)
        elif name in WHOLE:
            checked[name] = check_int(label, value, least=WHOLE[name])
        else:
            checked[name] = check_number(label, value, least=LOWER_BOUNDS.get(name, 0.0))
    if checked.get("nesterov") and not (checked["momentum"] > 0 and checked["dampening"] == 0):
        raise ValueError(f"{where}nesterov: needs a momentum above 0 and no dampening")
    return checked


def _own(label: str, given: Any, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The hyperparameters of a group, checked together with those that it has from the optimizer."""
    if not isinstance(given, Mapping):
        raise TypeError(f"{label}: expected a dict, got {type(given).__name__}")
    unknown = [name for name in given if name not in defaults]
    if unknown:
        raise TypeError(f"{label}: expected {', '.join(defaults)}, got {unknown[0]!r}")
    checked = _checked({**defaults, **given}, f"{label}: ")
    return {name: checked[name] for name in given}


def _parts(given: Any, defaults: Mapping[str, Any]) -> list[_Part]:
    """The groups of the first argument of an optimizer, or the only one."""
    if isinstance(given, Iterable) and not isinstance(given, Mapping):
        listed = as_list("params", given)
        warn_if_exhausted("params", given, listed)
        given = listed
    groups: list[tuple[str, Any, dict[str, Any]]] = [("params", given, {})]
    if isinstance(given, list) and any(isinstance(group, Mapping) for group in given):
        groups = []
        for i, group in enumerate(given):
            label = f"params[{i}]"
            if not isinstance(group, Mapping) or "params" not in group:
                what = type(group).__name__ if not isinstance(group, Mapping) else f"one of {sorted(map(str, group))}"
                raise TypeError(f'{label}: expected a dict with "params", got {what}')
            own = _own(label, {name: value for name, value in group.items() if name != "params"}, defaults)
            members = group["params"]
            if isinstance(members, Iterable) and not isinstance(members, Mapping):
                members = as_list(f"{label}['params']", members)
                warn_if_exhausted(f"{label}['params']", group["params"], members)
            groups.append((f"{label}['params']", members, own))
    parts, labels, arrays = [], [], []
    for label, members, own in groups:
        if isinstance(members, Layer):
            part = _Part(members, (), [], [], own)
        else:
            part = _Part(None, *pairs(label, members), own)
        for name, p, g in zip(*part.members(), strict=True):
            labels += [f"{label}[{name!r}]", f"gradient of {label}[{name!r}]"]
            arrays += [p, g]
        parts.append(part)
    refuse_overlap(labels, arrays)
    return parts


class SGD(Optimizer):
    r"""Stochastic gradient descent: :math:`p \leftarrow p - \eta\, b`, :math:`b \leftarrow \mu b + (1 - \tau) g`.

    The first step sets :math:`b = g`. With `nesterov`, :math:`g + \mu b` takes the place of :math:`b`; without
    momentum, :math:`g` does.

    Parameters
    ----------
    params : layer, model, dict or iterable of (param, grad), or iterable of groups
        What to update, in place, and with which gradients: float32 or float64 arrays. A group is a dict with one of
        the former as "params", and the hyperparameters that it does not share with the others.
    lr : float or schedule
        :math:`\eta`, at least 0.
    momentum, dampening : float
        :math:`\mu` and :math:`\tau`.
    weight_decay : float
        L2 decay: added to the gradient, times the parameter.
    nesterov : bool
        Needs a momentum and no dampening.
    maximize : bool
        Climb instead of descending.
    l1 : float
        L1 decay: added to the gradient, times the parameter's sign.
    max_consecutive_skips : int, optional
        After so many skipped steps in a row, one more raises a FloatingPointError that says what is not finite.

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

    Two groups, of which one has a learning rate of its own:

    >>> bias, bias_grad = np.array([1.0]), np.array([2.0])
    >>> opt = SGD([{"params": {"weight": (weight, grad)}}, {"params": {"bias": (bias, bias_grad)}, "lr": 0.1}], lr=0.5)
    >>> opt.step().per_array
    {'0.weight': 5.0, '1.bias': 2.0}
    >>> bias
    array([0.8])
    >>> opt.groups[1].lr = 0.05
    """

    momentum: float
    dampening: float
    nesterov: bool
    _rule = _kernels.SGD
    _operands: ClassVar = {"momentum_buffer": "mean"}

    def __init__(
        self,
        params: Any,
        lr: float | Schedule = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        l1: float = 0.0,
        max_consecutive_skips: int | None = None,
    ) -> None:
        super().__init__(
            params,
            max_consecutive_skips,
            lr=lr,
            momentum=momentum,
            dampening=dampening,
            weight_decay=weight_decay,
            nesterov=nesterov,
            maximize=maximize,
            l1=l1,
        )

    def _moments(self, group: Any) -> Sequence[str]:
        return ["momentum_buffer"] if group.momentum != 0 else []

    def _rates(self, group: Any, lr: float, t: int) -> dict[str, float]:
        first = t == 1
        return {
            "step": lr,
            "l2": group.weight_decay,
            "keep_mean": 0.0 if first else group.momentum,
            "take_mean": 1.0 if first else 1.0 - group.dampening,
            "now": 1.0 if group.nesterov else 0.0,
            "past": group.momentum if group.nesterov else 1.0,
        }


def _adam_rates(group: Any, lr: float, t: int) -> dict[str, float]:
    """Without decay."""
    beta1, beta2 = group.betas
    return {
        "step": lr / (1.0 - beta1**t),
        "keep_mean": beta1,
        "take_mean": 1.0 - beta1,
        "keep_square": beta2,
        "take_square": 1.0 - beta2,
        "root": math.sqrt(1.0 - beta2**t),
        "eps": group.eps,
    }


class Adam(Optimizer):
    r"""Adam: :math:`p \leftarrow p - \eta\, \hat m / (\sqrt{\hat v} + \epsilon)`.

    :math:`m \leftarrow \beta_1 m + (1 - \beta_1) g`, :math:`v \leftarrow \beta_2 v + (1 - \beta_2) g^2`,
    :math:`\hat m = m / (1 - \beta_1^t)`, :math:`\hat v = v / (1 - \beta_2^t)`.

    Parameters
    ----------
    params : layer, model, dict or iterable of (param, grad), or iterable of groups
        What to update, in place, and with which gradients: float32 or float64 arrays. A group is a dict with one of
        the former as "params", and the hyperparameters that it does not share with the others.
    lr : float or schedule
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
    l1 : float
        L1 decay: added to the gradient, times the parameter's sign.
    max_consecutive_skips : int, optional
        After so many skipped steps in a row, one more raises a FloatingPointError that says what is not finite.

    Raises
    ------
    TypeError, ValueError
        If parameters and gradients do not match, cannot be written or share memory, or a number is out of range.

    Notes
    -----
    Kingma, Ba, "Adam: a method for stochastic optimization", 2015, algorithm 1; AMSGrad: Reddi, Kale, Kumar, "On the
    convergence of Adam and beyond", 2018, algorithm 2.

    The second moment never overflows: an entry of the gradient beyond the root of the dtype's largest number (1.8e19 in
    float32) counts as that root. A gradient whose square is subnormal (below 1e-18 in float32) leaves no trace in it:
    with an :math:`\epsilon` below 1e-15 its steps are not PyTorch's, but never larger than :math:`\eta`.

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
    _operands: ClassVar = {"exp_avg": "mean", "exp_avg_sq": "square", "max_exp_avg_sq": "extra"}

    def __init__(
        self,
        params: Any,
        lr: float | Schedule = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        l1: float = 0.0,
        max_consecutive_skips: int | None = None,
    ) -> None:
        super().__init__(
            params,
            max_consecutive_skips,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            amsgrad=amsgrad,
            maximize=maximize,
            l1=l1,
        )

    def _moments(self, group: Any) -> Sequence[str]:
        return ["exp_avg", "exp_avg_sq"] + ["max_exp_avg_sq"] * group.amsgrad

    def _rates(self, group: Any, lr: float, t: int) -> dict[str, float]:
        return _adam_rates(group, lr, t) | {"l2": group.weight_decay}


class AdamW(Adam):
    r"""Adam with decoupled decay: :math:`p \leftarrow (1 - \eta \lambda) p` before each step of `Adam`.

    Parameters
    ----------
    params, lr, betas, eps, amsgrad, maximize, l1, max_consecutive_skips
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
        lr: float | Schedule = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        l1: float = 0.0,
        max_consecutive_skips: int | None = None,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            maximize=maximize,
            l1=l1,
            max_consecutive_skips=max_consecutive_skips,
        )

    def _rates(self, group: Any, lr: float, t: int) -> dict[str, float]:
        return _adam_rates(group, lr, t) | {"shrink": 1.0 - lr * group.weight_decay}


class SPAM(Optimizer):
    r"""Spike-aware Adam: single entries that spike are cut, and the moments start anew from time to time.

    Step t = 1, 2, ..., skipped ones not counted, does for each entry

    1. if :math:`\Delta T` divides t, :math:`m = v = 0`;
    2. a spike, :math:`g^2 > \theta v` with :math:`v > 0`, is cut to :math:`\mathrm{sign}(g) \sqrt{\theta v}`, where v
       is that of the steps before, without bias correction; g is clipped by `max_norm`, and has its L1 decay;
    3. `Adam`, with decoupled decay as in `AdamW`: :math:`p \leftarrow (1 - \eta \lambda) p - \eta s\, \hat m /
       (\sqrt{\hat v} + \epsilon)`. The bias correction in :math:`\hat m, \hat v` counts all steps: it does not start
       anew, and the smaller moments after a reset make larger steps, against which
    4. s warms up along a cosine: :math:`s = 1 - 0.99\,(1 + \cos(\pi c / (N + 1))) / 2` in the N steps c = 0, 1, ...
       from a reset on; before the first reset, and from c = N on, s = 1.

    Parameters
    ----------
    params, maximize, l1, max_consecutive_skips
        As for `Adam`.
    lr : float or schedule
        :math:`\eta`, at least 0.
    betas : (float, float)
        :math:`\beta_1, \beta_2`, at least 0 and below 1.
    eps : float
        :math:`\epsilon`.
    weight_decay : float
        :math:`\lambda`; the warm-up does not weaken it.
    threshold : float
        :math:`\theta`; 0 and infinity cut nothing.
    reset_every : int
        :math:`\Delta T`, at least 1.
    warmup_steps : int
        N.

    Attributes
    ----------
    n_spikes : int
        How many entries were cut in all steps. Right after a reset v is small, and entries that merely vary count.

    Raises
    ------
    TypeError, ValueError
        As for `Adam`.

    Notes
    -----
    Huang, Zhu, Jin, Liu, Wang, Liu, "SPAM: spike-aware Adam with momentum reset for stable LLM training", 2025.
    Warm-up, bias correction and defaults are those of the authors' code, which however cuts nothing in the first 20
    steps and in those after a reset, adds :math:`\epsilon` before the bias correction, and decays after the update.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore.optim import SPAM
    >>> weight, grad = np.array([1.0, 1.0]), np.array([1.0, 1.0])
    >>> opt = SPAM([(weight, grad)], lr=0.1, threshold=5000.0)
    >>> norm = opt.step()
    >>> grad[0] = 1000.0
    >>> norm = opt.step()
    >>> opt.n_spikes, opt.state_dict()["moments"]["exp_avg"]["0"].round(3)
    (1, array([0.314, 0.19 ]))
    """

    betas: tuple[float, float]
    eps: float
    threshold: float
    reset_every: int
    warmup_steps: int
    n_spikes: int
    _rule = _kernels.SPAM
    _operands: ClassVar = {"exp_avg": "mean", "exp_avg_sq": "square"}
    _counters = (*Optimizer._counters, "n_spikes")

    def __init__(
        self,
        params: Any,
        lr: float | Schedule = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        threshold: float = 5000.0,
        reset_every: int = 500,
        warmup_steps: int = 150,
        *,
        maximize: bool = False,
        l1: float = 0.0,
        max_consecutive_skips: int | None = None,
    ) -> None:
        super().__init__(
            params,
            max_consecutive_skips,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            threshold=threshold,
            reset_every=reset_every,
            warmup_steps=warmup_steps,
            maximize=maximize,
            l1=l1,
        )

    def _calls(self, part: _Part, update: _kernels.Update, first: float, second: float) -> list[Callable[..., Any]]:
        resets = (self.n_steps + 1) % self._group(part).reset_every == 0
        moments = [a for moment in part.moments.values() for a in moment] if resets else []
        return [*(partial(a.fill, 0) for a in moments), partial(update.run, first, second, vars(self))]

    def _rates(self, group: Any, lr: float, t: int) -> dict[str, float]:
        since, N = t % group.reset_every, group.warmup_steps
        warming = t >= group.reset_every and since < N
        scale = 1.0 - 0.99 * (1.0 + math.cos(math.pi * since / (N + 1))) / 2.0 if warming else 1.0
        return _adam_rates(group, scale * lr, t) | {
            "shrink": 1.0 - lr * group.weight_decay,
            "threshold": group.threshold,
        }


class RMSprop(Optimizer):
    r"""RMSprop: :math:`p \leftarrow p - \eta\, g / (\sqrt v + \epsilon)`.

    :math:`v \leftarrow \alpha v + (1 - \alpha) g^2`.

    Parameters
    ----------
    params : layer, model, dict or iterable of (param, grad), or iterable of groups
        What to update, in place, and with which gradients: float32 or float64 arrays. A group is a dict with one of
        the former as "params", and the hyperparameters that it does not share with the others.
    lr : float or schedule
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
    l1 : float
        L1 decay: added to the gradient, times the parameter's sign.
    max_consecutive_skips : int, optional
        After so many skipped steps in a row, one more raises a FloatingPointError that says what is not finite.

    Raises
    ------
    TypeError, ValueError
        If parameters and gradients do not match, cannot be written or share memory, or a number is out of range.

    Notes
    -----
    Tieleman, Hinton, "Lecture 6.5: rmsprop", 2012; centered: Graves, "Generating sequences with recurrent neural
    networks", 2013, equations 38 to 45.

    The ends of the range are treated as in `Adam`.

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
    _operands: ClassVar = {"square_avg": "square", "grad_avg": "mean", "momentum_buffer": "extra"}

    def __init__(
        self,
        params: Any,
        lr: float | Schedule = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        *,
        maximize: bool = False,
        l1: float = 0.0,
        max_consecutive_skips: int | None = None,
    ) -> None:
        super().__init__(
            params,
            max_consecutive_skips,
            lr=lr,
            alpha=alpha,
            eps=eps,
            weight_decay=weight_decay,
            momentum=momentum,
            centered=centered,
            maximize=maximize,
            l1=l1,
        )

    def _moments(self, group: Any) -> Sequence[str]:
        return ["square_avg"] + ["grad_avg"] * group.centered + ["momentum_buffer"] * (group.momentum != 0)

    def _rates(self, group: Any, lr: float, t: int) -> dict[str, float]:
        return {
            "step": lr,
            "l2": group.weight_decay,
            "keep_mean": group.alpha,
            "take_mean": 1.0 - group.alpha,
            "keep_square": group.alpha,
            "take_square": 1.0 - group.alpha,
            "momentum": group.momentum,
            "eps": group.eps,
        }


class Adagrad(Optimizer):
    r"""Adagrad: :math:`p \leftarrow p - \eta_t\, g / (\sqrt v + \epsilon)`, :math:`v \leftarrow v + g^2`.

    :math:`\eta_t = \eta / (1 + (t - 1) \kappa)`.

    Parameters
    ----------
    params : layer, model, dict or iterable of (param, grad), or iterable of groups
        What to update, in place, and with which gradients: float32 or float64 arrays. A group is a dict with one of
        the former as "params", and the hyperparameters that it does not share with the others.
    lr : float or schedule
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
    l1 : float
        L1 decay: added to the gradient, times the parameter's sign.
    max_consecutive_skips : int, optional
        After so many skipped steps in a row, one more raises a FloatingPointError that says what is not finite.

    Raises
    ------
    TypeError, ValueError
        If parameters and gradients do not match, cannot be written or share memory, or a number is out of range.

    Notes
    -----
    Duchi, Hazan, Singer, "Adaptive subgradient methods for online learning and stochastic optimization", 2011.

    The ends of the range are treated as in `Adam`.

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
    _operands: ClassVar = {"sum": "square"}

    def __init__(
        self,
        params: Any,
        lr: float | Schedule = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        *,
        maximize: bool = False,
        l1: float = 0.0,
        max_consecutive_skips: int | None = None,
    ) -> None:
        super().__init__(
            params,
            max_consecutive_skips,
            lr=lr,
            lr_decay=lr_decay,
            weight_decay=weight_decay,
            initial_accumulator_value=initial_accumulator_value,
            eps=eps,
            maximize=maximize,
            l1=l1,
        )

    def _start(self, group: Any) -> float:
        return float(group.initial_accumulator_value)

    def _rates(self, group: Any, lr: float, t: int) -> dict[str, float]:
        return {"step": lr / (1.0 + (t - 1) * group.lr_decay), "l2": group.weight_decay, "eps": group.eps}
