"""What an optimizer is given: groups of parameters, and the arrays in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gradcore._base.check import Array
from gradcore.clip.gradients import Key, listed, owns_params, pairs
from gradcore.clip.views import refuse_overlap

__all__: list[str] = []  # for the package only


@dataclass
class Part:
    """A group of parameters: what the caller passed, its own hyperparameters, and its moments."""

    label: str
    given: Any  # a layer, or a dict or list of layers and pairs
    own: dict[str, Any]
    group: dict[str, Any] = field(default_factory=dict)  # all hyperparameters: the optimizer's and its own
    moments: dict[str, list[Array]] = field(default_factory=dict)  # by PyTorch's names, from their first use on

    def owners(self) -> list[Any]:
        """Return the layers and models in it."""
        given = self.given.values() if isinstance(self.given, Mapping) else self.given
        return [self.given] if owns_params(self.given) else [member for member in given if owns_params(member)]


@dataclass
class Collected:
    """The arrays of all groups, until a layer moves its own into the buffers of a model."""

    names: Sequence[Key]  # if there are several groups, each name begins with its group's index
    params: list[Array]
    grads: list[Array]
    parts: list[slice]  # which of them each group has
    buffers: list[tuple[Any, Any]]  # each layer and its flat_params, which is another array after a move

    def __post_init__(self) -> None:
        self.named_grads = self.by_name(self.grads)

    def is_current(self) -> bool:
        return all(buffer is not None and owner.flat_params is buffer for owner, buffer in self.buffers)

    def by_name(self, arrays: list[Array]) -> dict[str, Array] | list[Array]:
        """Return a dict if the parameters have names, else the list."""
        return list(arrays) if isinstance(self.names, range) else dict(zip(map(str, self.names), arrays, strict=True))


def split_groups(given: Any, stacklevel: int) -> list[Part]:
    """Return the groups of an optimizer's first argument, or the only one."""
    given = listed("params", given, stacklevel)
    if not (isinstance(given, list) and any(isinstance(group, Mapping) for group in given)):
        return [Part("params", given, {})]
    parts = []
    for i, group in enumerate(given):
        label = f"params[{i}]"
        if not isinstance(group, Mapping) or "params" not in group:
            what = type(group).__name__ if not isinstance(group, Mapping) else f"one of {sorted(map(str, group))}"
            raise TypeError(f'{label}: expected a dict with "params", got {what}')
        inside = f"{label}['params']"
        own = {name: value for name, value in group.items() if name != "params"}
        parts.append(Part(inside, listed(inside, group["params"], stacklevel), own))
    return parts


def refuse_moved(label: str, names: Sequence[Key], arrays: Sequence[Array]) -> None:
    """Raise a ValueError for the arrays that a layer left behind, read-only, when it moved into a model's buffers."""
    for name, a in zip(names, arrays, strict=True):
        if not a.flags.writeable:
            raise ValueError(
                f"{label}[{name!r}]: is read-only; if its layer joined a model or was copied, construct the optimizer "
                "from the model or the copy"
            )


def collect(parts: Sequence[Part]) -> Collected:
    """Read names and arrays of all groups, and check them."""
    names: list[Key] = []
    params, grads, slices, buffers, labels = [], [], [], [], []
    for i, part in enumerate(parts):
        keys, own_params, own_grads = pairs(part.label, part.given)
        labels += [f"{part.label}[{key!r}]" for key in keys]
        params += own_params
        grads += own_grads
        slices.append(slice(len(names), len(names) + len(keys)))
        names += [f"{i}.{key}" for key in keys]
        buffers += [(owner, getattr(owner, "flat_params", None)) for owner in part.owners()]
    refuse_overlap([*labels, *(f"gradient of {label}" for label in labels)], [*params, *grads])
    return Collected(keys if len(parts) == 1 else names, params, grads, slices, buffers)
