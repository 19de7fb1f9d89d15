"""The base of all optimizers: parameter groups, hyperparameters, moments and the clipped step."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, NamedTuple

import numpy as np

from gradcore import _kernels
from gradcore._base.check import Array, check_array, check_bool, check_int, check_names, check_number, check_number_at
from gradcore.clip.gradients import (
    Gradients,
    GradNorm,
    check_limit,
    check_policy,
    owns_params,
)
from gradcore.clip.threshold import Threshold
from gradcore.clip.views import contiguous, copies_back
from gradcore.optim.parts import Collected, Part, collect, refuse_moved, split_groups
from gradcore.optim.schedule import Schedule

__all__ = ["Group", "Optimizer"]

Check = Callable[[str, Any], Any]  # of a hyperparameter: its name and value to the value in its own type, or an error


def _rate(label: str, value: Any) -> Any:
    return value if callable(value) else not_negative(label, value)


def not_negative(label: str, value: Any) -> float:
    return check_number(label, value, least=0.0)


class Moment(NamedTuple):
    """An array that a rule keeps for each parameter."""

    operand: str | None  # of the kernel; None for a product over the steps, a number for each parameter, first 1
    needs: str | None = None  # the hyperparameter that switches it on


class Group:
    """The hyperparameters of one group of parameters, as attributes.

    A group has its own hyperparameters and shares the optimizer's for the rest. Setting one makes it the group's own.
    If there is only one group, it and the optimizer have the same.

    Parameters
    ----------
    optimizer : Optimizer
        The optimizer.
    index : int
        The index of the group in the optimizer.

    Examples
    --------
    >>> import numpy as np
    >>> from gradcore.optim.sgd import SGD
    >>> weight, bias = (np.zeros(3), np.ones(3)), (np.zeros(1), np.ones(1))
    >>> opt = SGD([{"params": [weight]}, {"params": [bias], "momentum": 0.5}], lr=0.1)
    >>> opt.groups[1].lr = 0.2
    >>> opt.groups[1].lr, opt.groups[1].momentum, opt.lr
    (0.2, 0.5, 0.1)
    """

    def __init__(self, optimizer: Optimizer, index: int) -> None:
        vars(self).update(_optimizer=optimizer, _index=index)  # the optimizer keeps no groups: no cycle of references

    def __getattr__(self, name: str) -> Any:
        if "_optimizer" not in vars(self):  # copy and pickle look for methods before they set attributes
            raise AttributeError(name)
        self._refuse_unknown(name)
        return self._optimizer._parts[self._index].group[name]

    def __setattr__(self, name: str, value: Any) -> None:
        self._refuse_unknown(name)
        self._optimizer._change(self._index, name, value)

    def _refuse_unknown(self, name: str) -> None:
        if name not in self._optimizer._hyperparameters:
            raise AttributeError(f"a group of {type(self._optimizer).__name__} has no {name!r}")

    def __repr__(self) -> str:
        return f"Group({_arguments(self._optimizer._parts[self._index].group)})"


class Optimizer:
    """Base of all optimizers: groups of parameters, steps and state.

    Hyperparameters are attributes of the optimizer and of its `groups`. They are checked when they are set and take
    effect at the next step.

    A shallow copy updates the same parameters, with moments and counters of its own. A deep copy or a pickle includes
    the parameters: a layer or model stays connected with the optimizer if both are copied together. Pairs with a view,
    such as an entry of `layer.params`, are refused, because the copy of a view is no longer part of its base.

    Attributes
    ----------
    lr : float or schedule
        The learning rate of all groups without one of their own. It may be set between steps. A schedule, or any other
        callable, is called with `n_steps` at each step.
    n_steps, n_skipped, n_consecutive_skips : int
        The numbers of steps that were taken, of steps that were skipped because a gradient was not finite, and of steps
        that were skipped since the last one that was taken.
    last_norm : float or None
        The norm of the gradient at the last step that was taken.

    Examples
    --------
    >>> import gradcore
    >>> layers = gradcore.GRU(3, 8), gradcore.Linear(8, 1)
    >>> opt = gradcore.optim.Adam(layers)
    >>> isinstance(opt, gradcore.optim.Optimizer), len(opt.params)
    (True, 6)
    """

    lr: float | Any  # or a Schedule; Any lets a type checker accept `opt.lr *= 0.5`
    weight_decay: float
    maximize: bool
    l1: float
    n_steps: int
    n_skipped: int
    n_consecutive_skips: int
    last_norm: float | None

    _rule: ClassVar[int]
    _moments: ClassVar[Mapping[str, Moment]]  # by PyTorch's names
    _checks: ClassVar[Mapping[str, Check]] = {
        "lr": _rate,
        "weight_decay": not_negative,
        "maximize": check_bool,
        "l1": not_negative,
    }
    _counters: ClassVar[tuple[str, ...]] = ("n_steps", "n_skipped", "n_consecutive_skips")

    _hyperparameters: tuple[str, ...]  # their names, in the constructor's order
    _parts: list[Part]
    _collected: Collected | None

    def _start(self, params: Any, arguments: Mapping[str, Any]) -> None:
        """Set everything up; `arguments` are the `locals()` of a rule's constructor."""
        vars(self).update(dict.fromkeys(self._counters, 0), last_norm=None, _collected=None)
        self._hyperparameters = tuple(name for name in arguments if name in self._checks)
        self.max_consecutive_skips = arguments["max_consecutive_skips"]
        self._parts = split_groups(params, stacklevel=5)
        hyperparameters = {name: arguments[name] for name in self._hyperparameters}
        own = [part.own for part in self._parts]
        self._adopt(*self._checked(hyperparameters, own, "params"))
        self._members()

    # ---- hyperparameters ---------------------------------------------------------------------------------------------

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._checks:
            self._change(None, name, value)
        elif name.startswith("_") or name in vars(self) or hasattr(type(self), name):
            object.__setattr__(self, name, value)
        else:  # most likely a misspelled hyperparameter, or one of another rule
            raise AttributeError(f"{type(self).__name__} has no {name!r}")

    def _change(self, index: int | None, name: str, value: Any) -> None:
        """Set a hyperparameter of one group, or of all groups without one of their own."""
        common, own = self._common(), [dict(part.own) for part in self._parts]
        (common if index is None or len(own) == 1 else own[index])[name] = value
        self._adopt(*self._checked(common, own, "groups"))

    def _checked(
        self, hyperparameters: Mapping[str, Any], groups: Sequence[Any], label: str
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Return the common hyperparameters and the groups' own in their own types, or raise if they do not fit."""
        common = self._checked_together(hyperparameters, "")
        checked = []
        for i, own in enumerate(groups):
            where = f"{label}[{i}]"
            if not isinstance(own, Mapping):
                raise TypeError(f"{where}: expected a dict, got {type(own).__name__}")
            unknown = [name for name in own if name not in common]
            if unknown:
                raise TypeError(f"{where}: expected {', '.join(common)}, got {unknown[0]!r}")
            group = self._checked_together({**common, **own}, f"{where}: ") if own else {}
            checked.append({name: group[name] for name in own})
        return common, checked

    def _checked_together(self, hyperparameters: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Return the hyperparameters of one group in their own types."""
        return {name: self._checks[name](where + name, value) for name, value in hyperparameters.items()}

    def _adopt(self, common: dict[str, Any], groups: list[dict[str, Any]], **others: Any) -> None:
        """Replace all hyperparameters, and other attributes, at once. The only group's are the optimizer's."""
        if len(groups) == 1:
            common, groups = common | groups[0], [{}]
        moments = others.pop("moments", [part.moments for part in self._parts])
        parts = [
            replace(part, own=own, group=common | own, moments=arrays)
            for part, own, arrays in zip(self._parts, groups, moments, strict=True)
        ]
        vars(self).update(common, _parts=parts, **others)

    def _common(self) -> dict[str, Any]:
        return {name: vars(self)[name] for name in self._hyperparameters}

    @property
    def groups(self) -> list[Group]:
        """The groups of parameters: ``opt.groups[1].lr`` is the learning rate of the second, and may be set."""
        return [Group(self, i) for i in range(len(self._parts))]

    @property
    def max_consecutive_skips(self) -> int | None:
        """The number of consecutive steps that may be skipped before one more raises; None for any number."""
        return self._max_consecutive_skips

    @max_consecutive_skips.setter
    def max_consecutive_skips(self, value: int | None) -> None:
        self._max_consecutive_skips = None if value is None else check_int("max_consecutive_skips", value)

    # ---- parameters --------------------------------------------------------------------------------------------------

    def _members(self) -> Collected:
        """Return the arrays of all groups, read again after a layer moved its own."""
        members = self._collected
        if members is None or not members.is_current():
            members = self._collected = collect(self._parts)
        return members

    @property
    def params(self) -> dict[str, Array] | list[Array]:
        """The parameters: a dict if they have names, else a list. With several groups "1.weight" is in the second."""
        collected = self._members()
        return collected.by_name(collected.params)

    @property
    def grads(self) -> dict[str, Array] | list[Array]:
        """The gradients, with the same keys as `params`."""
        collected = self._members()
        return collected.by_name(collected.grads)

    def zero_grad(self) -> None:
        """Set all gradients to zero.

        Examples
        --------
        >>> import numpy as np
        >>> from gradcore.optim.sgd import SGD
        >>> weight, grad = np.ones(2), np.ones(2)
        >>> SGD([(weight, grad)]).zero_grad()
        >>> grad
        array([0., 0.])
        """
        members = self._members()
        refuse_moved("gradient of params", members.names, members.grads)
        for grad in members.grads:
            grad.fill(0)

    def reset_moments(self) -> None:
        """Set all moments to what they are before their first use; the counts of steps stay.

        Examples
        --------
        >>> import numpy as np
        >>> from gradcore.optim.sgd import SGD
        >>> opt = SGD({"w": (np.zeros(2), np.ones(2))}, momentum=0.9)
        >>> norm = opt.step()
        >>> opt.reset_moments()
        >>> opt.state_dict()["moments"]
        {'momentum_buffer': {'w': array([0., 0.])}}
        """
        members = self._members()
        for part, own in zip(self._parts, members.parts, strict=True):
            for arrays in part.moments.values():
                for array, first in zip(arrays, self._new_moments(part.group, members.params[own]), strict=True):
                    array[...] = first

    def __copy__(self) -> Optimizer:
        other = object.__new__(type(self))
        moments = [{name: [a.copy() for a in arrays] for name, arrays in p.moments.items()} for p in self._parts]
        vars(other).update(vars(self))
        other._adopt(self._common(), [dict(part.own) for part in self._parts], moments=moments)
        return other

    def __getstate__(self) -> dict[str, Any]:
        for part in self._parts:
            if owns_params(part.given):
                continue
            members = part.given.items() if isinstance(part.given, Mapping) else enumerate(part.given)
            for key, pair in members:
                if not owns_params(pair) and any(type(a) is not np.ndarray or a.base is not None for a in pair):
                    raise TypeError(
                        f"cannot copy or pickle this {type(self).__name__}: {part.label}[{key!r}] has a view of other "
                        "memory, and the copy of a view is not part of the copy of that memory; construct the "
                        "optimizer from the layer or model, or use state_dict"
                    )
        return {**vars(self), "_collected": None}

    # ---- steps -------------------------------------------------------------------------------------------------------

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
            The limit for the norm of all groups' gradients together. The update uses the clipped gradients; the
            gradients themselves are not written. An object with ``update(norm)``, such as those of
            `gradcore.threshold`, is told the norm and returns the limit, unless the step is skipped or raises. A
            schedule is called with `n_steps`.
        nonfinite : {"skip", "raise", "zero"}
            What to do if a gradient is NaN or infinite: leave parameters and moments as they are, bit for bit, and
            count the step in `n_skipped`; raise and change nothing; or take such entries as 0.
        scale : float
            The factor by which the loss was multiplied. The update uses the gradients divided by it; the gradients
            themselves are not written.

        Returns
        -------
        GradNorm
            The norm before clipping, divided by `scale`, and what was done.

        Raises
        ------
        FloatingPointError
            If an entry is not finite and `nonfinite` is "raise", or is "skip" and `max_consecutive_skips` consecutive
            steps were skipped already; nothing is changed.
        ValueError
            If `max_norm` or `lr`, or the value of a schedule for it, is negative or NaN, or `scale` or its reciprocal
            is not a positive number.

        Examples
        --------
        >>> import numpy as np
        >>> from gradcore.optim.sgd import SGD
        >>> weight, grad = np.array([1.0, 1.0]), np.array([3.0, 4.0])
        >>> opt = SGD([(weight, grad)], lr=0.5)
        >>> norm = opt.step(max_norm=1.0)
        >>> norm, norm.clipped, weight
        (5.0, True, array([0.7, 0.6]))
        """
        limit = math.inf if max_norm is None else check_limit(max_norm, self.n_steps)
        scale = check_number("scale", scale, least=sys.float_info.min, most=sys.float_info.max)
        groups = [self._numbers(part.group) for part in self._parts]
        check_policy(nonfinite)
        members = self._members()
        found = Gradients(members.named_grads, write=False)
        params = plain = members.params
        if not _kernels.plain(params, True):
            refuse_moved("params", members.names, params)
            plain = [contiguous(p) for p in params]
        grads = [found.arrays[place] for place in found.where]
        prepared = [
            self._prepare(part, group, grads[own], plain[own])
            for part, group, own in zip(self._parts, groups, members.parts, strict=True)
        ]
        norm, factor0, factor1 = found.measure(2.0, limit, nonfinite, scale)
        if norm.skipped:
            self._skip(found)
            return norm
        bound = math.inf if norm.n_nan or norm.n_inf else float(norm) * norm.coef  # of each entry, clipped
        calls: list[Callable[..., Any]] = []
        for part, group, (update, new) in zip(self._parts, groups, prepared, strict=True):
            if new:
                calls.append(partial(part.moments.update, new))
            calls += self._calls(part, group, update, (-factor0 if group["maximize"] else factor0, factor1, bound))
        calls += copies_back(plain, params)
        after = {"n_steps": self.n_steps + 1, "n_consecutive_skips": 0, "last_norm": float(norm)}
        _kernels.together([*calls, partial(vars(self).update, after)])  # Ctrl-C interrupts before or after all
        return norm

    def _skip(self, found: Gradients) -> None:
        """Count a skipped step, or raise if there were too many."""
        if self.max_consecutive_skips is not None and self.n_consecutive_skips >= self.max_consecutive_skips:
            raise FloatingPointError(self._too_many_skips(found))
        self.n_skipped += 1
        self.n_consecutive_skips += 1

    def _prepare(
        self, part: Part, group: dict[str, Any], grads: list[Array], params: list[Array]
    ) -> tuple[_kernels.Update, dict[str, list[Array]]]:
        """Return one group's update, ready to run, and the moments that it uses for the first time."""
        operands: dict[str, Any] = {}
        new: dict[str, list[Array]] = {}
        for name, moment in self._moments.items():
            if moment.needs is None or group[moment.needs]:
                arrays = part.moments.get(name)
                if arrays is None:
                    product = moment.operand is None
                    arrays = [np.ones(()) for _ in params] if product else self._new_moments(group, params)
                    new[name] = arrays
                if moment.operand is not None:
                    operands[moment.operand] = arrays
        rates = {"l1": group["l1"], **self._rates(part, group, self.n_steps + 1)}
        return _kernels.Update(self._rule, grads, params, operands, rates), new

    def _new_moments(self, group: dict[str, Any], params: list[Array]) -> list[Array]:
        """Return a moment of each parameter before its first use."""
        return [np.zeros(p.shape, p.dtype) for p in params]

    def _rates(self, part: Part, group: dict[str, Any], t: int) -> dict[str, float]:
        """Return the kernel's numbers for step t; the first step is 1."""
        raise NotImplementedError

    def _calls(
        self, part: Part, group: dict[str, Any], update: _kernels.Update, gradient: tuple[float, float, float]
    ) -> list[Callable[..., Any]]:
        """Return the calls, none of them Python code, that run it; `gradient` has two factors, and a bound."""
        return [partial(update.run, *gradient)]

    def _too_many_skips(self, found: Gradients) -> str:
        """Return the message for one skipped step too many."""
        bad = []
        for key, place in zip(found.keys, found.where, strict=True):
            n_nan, n_inf = (int(np.count_nonzero(f(found.arrays[place]))) for f in (np.isnan, np.isinf))
            if n_nan + n_inf:
                bad.append(f"grads[{key!r}] has {n_nan} NaN and {n_inf} Inf in {found.arrays[place].size} entries")
        last = "no step was taken before" if self.last_norm is None else f"the last norm was {self.last_norm:.6g}"
        return (
            f"step {self.n_steps + self.n_skipped + 1}: the gradient is not finite again, after "
            f"{self.n_consecutive_skips} consecutive skipped steps (max_consecutive_skips: "
            f"{self.max_consecutive_skips}): {'; '.join(bad)}; {last}; nothing was changed"
        )

    # ---- state -------------------------------------------------------------------------------------------------------

    def _names(self) -> list[list[str]]:
        """Return the names of each group's parameters."""
        members = self._members()
        return [[str(name) for name in members.names[own]] for own in members.parts]

    def state_dict(self) -> dict[str, Any]:
        """Return what the next step depends on besides parameters and gradients, as a copy.

        Returns
        -------
        dict
            The name of the ``rule``, ``n_steps`` and the other counters, ``last_norm``, ``hyperparameters`` (a dict),
            ``groups`` (a list with a dict of each group's own hyperparameters) and ``moments``: for each of PyTorch's
            names a dict of arrays by parameter. A moment appears once a step has used it. A schedule, which has no
            state, is replaced by its value at `n_steps`.

        Examples
        --------
        >>> import numpy as np
        >>> from gradcore.optim.sgd import SGD
        >>> opt = SGD({"w": (np.zeros(2), np.ones(2))}, momentum=0.9)
        >>> norm = opt.step()
        >>> state = opt.state_dict()
        >>> state["n_steps"], state["moments"]
        (1, {'momentum_buffer': {'w': array([1., 1.])}})
        """
        moments: dict[str, dict[str, Array]] = {}
        for part, names in zip(self._parts, self._names(), strict=True):
            for moment, arrays in part.moments.items():
                moments.setdefault(moment, {}).update(zip(names, (a.copy() for a in arrays), strict=True))
        return {
            "rule": type(self).__name__,
            **{counter: getattr(self, counter) for counter in self._counters},
            "last_norm": self.last_norm,
            "hyperparameters": self._numbers(self._common()),
            "groups": [dict(self._numbers(part.own)) for part in self._parts],
            "moments": moments,
        }

    def _numbers(self, hyperparameters: dict[str, Any]) -> dict[str, Any]:
        """Return them with a schedule replaced by its value."""
        lr = hyperparameters.get("lr")
        return hyperparameters | {"lr": check_number_at("lr", lr, self.n_steps)} if callable(lr) else hyperparameters

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore a state; if any of it is invalid, nothing is changed. Schedules are kept.

        Parameters
        ----------
        state_dict : mapping
            What `state_dict` returned for an optimizer with the same rule, parameters and groups.

        Raises
        ------
        KeyError
            If an entry is missing or unknown.
        TypeError, ValueError
            If an entry has another dtype or shape or is out of range, or the rule is another one.

        Examples
        --------
        >>> import numpy as np
        >>> from gradcore.optim.sgd import SGD
        >>> opt, resumed = (SGD([(np.zeros(2), np.ones(2))], momentum=0.9) for _ in range(2))
        >>> norm = opt.step()
        >>> resumed.load_state_dict(opt.state_dict())
        >>> resumed.n_steps
        1
        """
        check_names(
            "state_dict", state_dict, ("rule", *self._counters, "last_norm", "hyperparameters", "groups", "moments")
        )
        if not isinstance(state_dict["rule"], str) or state_dict["rule"] != type(self).__name__:
            raise ValueError(f"state_dict: expected the state of {type(self).__name__}, got {state_dict['rule']!r}")
        check_names("hyperparameters", state_dict["hyperparameters"], self._hyperparameters)
        counts = {counter: check_int(counter, state_dict[counter]) for counter in self._counters}
        last_norm = state_dict["last_norm"]
        if last_norm is not None:
            last_norm = check_number("last_norm", last_norm, least=0.0)
        groups = state_dict["groups"]
        if not isinstance(groups, (list, tuple)):
            raise TypeError(f"groups: expected a list, got {type(groups).__name__}")
        if len(groups) != len(self._parts):
            raise ValueError(f"groups: expected {len(self._parts)}, got {len(groups)}")
        given = {name: state_dict["hyperparameters"][name] for name in self._hyperparameters}
        common, own = self._checked(given, groups, "groups")
        moments = self._restored(state_dict["moments"], counts["n_steps"])
        for has, gets in ((vars(self), common), *zip((part.own for part in self._parts), own, strict=True)):
            if callable(has.get("lr")):
                gets["lr"] = has["lr"]
        self._adopt(common, own, moments=moments, last_norm=last_norm, **counts)

    def _restored(self, given: Any, n_steps: int) -> list[dict[str, list[Array]]]:
        """Return each group's moments from those of a state: all of its parameters have one, or none has."""
        if not isinstance(given, Mapping):
            raise TypeError(f"moments: expected a mapping, got {type(given).__name__}")
        unknown = sorted(set(given) - set(self._moments), key=str)
        if unknown:
            raise KeyError(f"moments: unknown {unknown}")
        members = self._members()
        restored: list[dict[str, list[Array]]] = [{} for _ in self._parts]
        for moment, (operand, needs) in self._moments.items():
            arrays, wanted = given.get(moment, {}), set()
            there = set(arrays) if isinstance(arrays, Mapping) else set()
            for names, own, part in zip(self._names(), members.parts, restored, strict=True):
                absent = moment not in given or (names and there.isdisjoint(names))
                if absent and (needs or n_steps == 0):
                    continue
                wanted.update(names)
                part[moment] = [
                    check_array(f"{moment} of {name}", arrays[name], like.dtype, like.shape).copy()
                    for name, p in zip(names, members.params[own], strict=True)
                    if name in there
                    for like in [np.ones(()) if operand is None else p]
                ]
            check_names(moment, arrays, wanted)
        return restored

    def __repr__(self) -> str:
        groups = [part.own for part in self._parts]
        shown = self._common() | {"max_consecutive_skips": self.max_consecutive_skips}
        return f"{type(self).__name__}({_arguments(shown | ({'groups': groups} if any(groups) else {}))})"


def _arguments(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in values.items())
