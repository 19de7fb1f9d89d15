"""The forms of a batch, and what the loss is given of it."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any, NamedTuple

import numpy as np

from gradcore._base.check import Array, as_array
from gradcore.losses.terms import Terms

__all__: list[str] = []  # for the package only

FORMS = "(x, target), (x, target, lengths) or a dict with x and target"
OF_FORWARD, OF_LOSS = ("lengths", "reset"), ("lengths", "mask", "weight")


class Batch(NamedTuple):
    """A batch, with the further arguments of `forward` and those that the loss may be given."""

    x: Any
    target: Any
    options: dict[str, Any]
    terms: dict[str, Any]


def unpacked(name: str, batch: Any) -> Batch:
    """Return a batch of any form: the one place that knows the forms."""
    if isinstance(batch, Mapping):
        given = dict(batch)
        unknown = [key for key in given if key not in ("x", "target", *OF_FORWARD, *OF_LOSS)]
        if unknown or not {"x", "target"} <= given.keys():
            raise ValueError(
                f"{name}: expected a dict with x, target and any of lengths, reset, mask and weight, got {list(given)}"
            )
    elif isinstance(batch, (tuple, list)) and len(batch) in (2, 3):
        given = dict(zip(("x", "target", "lengths"), batch, strict=False))
    else:
        what = f"{len(batch)} items" if isinstance(batch, (tuple, list)) else type(batch).__name__
        raise ValueError(f"{name}: expected {FORMS}, got {what}")
    options, terms = ({key: given[key] for key in keys if given.get(key) is not None} for keys in (OF_FORWARD, OF_LOSS))
    return Batch(given["x"], given["target"], options, terms)


def each_batch(
    batches: Any, epochs: int, first: int = 0, *, name: str = "batches"
) -> Iterator[tuple[int, Batch | None]]:
    """Yield the epoch and each of its batches, then the epoch and None."""
    for epoch in range(first, epochs):
        n = 0
        for batch in batches if isinstance(batches, Iterable) else batches():
            n += 1
            yield epoch, unpacked(name, batch)
        if n == 0:
            raise ValueError(f"{name}: epoch {epoch} produced no batches")
        yield epoch, None


def in_groups(batches: Iterable[tuple[int, Batch | None]], n: int) -> Iterator[tuple[int, list[Batch] | None]]:
    """Yield n batches of an epoch at a time, or what is left of it, then the epoch and None."""
    group: list[Batch] = []
    for epoch, batch in batches:
        group += [] if batch is None else [batch]
        if len(group) == n or (batch is None and group):
            yield epoch, group
            group = []
        if batch is None:
            yield epoch, None


def check_batches(name: str, batches: Any, epochs: int) -> int | None:
    """Check that there are batches in each of so many epochs, and return their number in one if it is known."""
    if not isinstance(batches, Iterable) and not callable(batches):
        raise TypeError(f"{name}: expected an iterable or a callable, got {type(batches).__name__}")
    if epochs > 1 and isinstance(batches, Iterator):
        raise ValueError(
            f"{name}: an iterator can be consumed only once, and epochs is {epochs}; "
            "pass a list, or a function that returns a new iterator for each epoch"
        )
    try:
        return len(batches) if isinstance(batches, Sized) else None
    except (TypeError, ValueError) as error:  # an array without axes, a buffer that was released
        raise TypeError(f"{name}: expected an iterable, got {type(batches).__name__}: {error}") from None


class Criterion:
    """A loss or a metric of a model, and which of lengths, mask and weight it takes.

    Only a function with such an argument is given it. `lengths` belong to a loss of every time step: where the model
    has made one vector of a sequence they are left out, unless the function has no default for them. Batch-first models
    have them turned into a mask, since gradcore's losses are time-major.
    """

    def __init__(self, function: Callable[..., Any], model: Any) -> None:
        self.function = function
        self._batch_first = has_batch_first(model)
        arguments: Mapping[str, inspect.Parameter] = {}
        with contextlib.suppress(TypeError, ValueError):  # compiled, and says nothing
            arguments = inspect.signature(function).parameters
        any_name = any(argument.kind is argument.VAR_KEYWORD for argument in arguments.values())
        self.takes = {name for name in OF_LOSS if any_name or name in arguments}
        self._ignored = arguments["ignore_index"].default if "ignore_index" in arguments else None
        self._needs_lengths = "lengths" in arguments and arguments["lengths"].default is inspect.Parameter.empty

    def refuse(self, terms: Mapping[str, Any]) -> None:
        """Raise if the batch has a mask or weights, without which the loss would be another one."""
        for name in ("mask", "weight"):
            if name in terms and name not in self.takes:
                raise TypeError(f"{name}: the batch has one, and the loss takes no argument of this name")

    def options(self, y: Any, batch: Any) -> dict[str, Any]:
        """Return the further arguments for an output."""
        return self._options(np.shape(y), batch)

    def n_terms(self, batch: Any, y: Any = None) -> int:
        """Return how many terms the mean is over, also before there is an output: those of the target that count."""
        target = as_array("target", batch.target)
        labels = target.dtype.kind in "iu"  # of the rows of an output
        shape = np.shape(y) if y is not None else (*target.shape, 1) if labels else target.shape
        options = self._options(shape, batch)
        lengths = options.get("lengths") if _has_steps(shape, batch) else None
        counted = target != self._ignored if labels and isinstance(self._ignored, int) else None
        return Terms(target.shape, lengths, options.get("mask"), None, counted).n

    def _options(self, shape: tuple[int, ...], batch: Any) -> dict[str, Any]:
        given = {name: value for name, value in batch.terms.items() if name in self.takes}
        lengths = batch.terms.get("lengths")
        if lengths is None or self._needs_lengths:
            return given
        has_steps = _has_steps(shape, batch)
        if not has_steps or self._batch_first:
            given.pop("lengths", None)
        if has_steps and self._batch_first and "mask" in self.takes:
            given["mask"] = _alive(shape, lengths, given.get("mask"))
        return given

    def __call__(self, y: Any, batch: Any) -> Any:
        """Return what the function makes of an output."""
        return self.function(y, batch.target, **self.options(y, batch))


def _has_steps(shape: tuple[int, ...], batch: Any) -> bool:
    """Return whether an output of a shape has the time axis of x."""
    return len(shape) > 2 and shape[:2] == np.shape(batch.x)[:2]


def _alive(shape: tuple[int, ...], lengths: Any, mask: Any) -> Array:
    """Return a mask (B, T, ...) of what `mask` has before each sequence's end."""
    alive = np.arange(shape[1]) < np.asarray(lengths)[:, None]
    if mask is None:
        return alive
    given = np.asarray(mask)  # (B,) at least
    axes = max(given.ndim, 2)
    return np.asarray(
        given.reshape(given.shape + (1,) * (axes - given.ndim)) & alive.reshape(alive.shape + (1,) * (axes - 2))
    )


def has_batch_first(model: Any) -> bool:
    return getattr(model, "batch_first", False) is True or any(map(has_batch_first, getattr(model, "layers", ())))
