"""A loss and metrics on held-out batches, without dropout and without a tape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gradcore._base.check import as_list
from gradcore.training.batch import Criterion, each_batch, has_batch_first

__all__: list[str] = []  # for the package only


def evaluate(
    model: Any, batches: Any, loss: Criterion, metrics: Mapping[str, Criterion], *, stateful: bool
) -> tuple[float, dict[str, float]]:
    """Return the loss and the metrics, each the mean over the terms of all batches."""
    functions = {"": loss, **metrics}
    totals, counts = dict.fromkeys(functions, 0.0), dict.fromkeys(functions, 0)
    state: Any = None
    for _, batch in each_batch(batches, 1, name="validation"):
        if batch is None:
            continue
        loss.refuse(batch.terms)
        options = dict(batch.options)
        if stateful:
            shape = np.shape(batch.x)
            size = shape[0 if has_batch_first(model) else 1] if len(shape) > 1 else 0  # the model refuses another shape
            options["state"] = model.initial_state(size) if state is None else state
        y = model(batch.x, **options)
        if isinstance(y, tuple):  # of a recurrent layer, or of a model that was given a state
            y, state = y
        for name, function in functions.items():
            value, n = function(y, batch), function.n_terms(batch, y)
            totals[name] += n * float(value[0] if isinstance(value, tuple) else value)
            counts[name] += n
    means = {name: total / max(counts[name], 1) for name, total in totals.items()}
    return means.pop(""), means


def check_metrics(metrics: Any, model: Any) -> dict[str, Criterion]:
    """Return the metrics by name; a list of functions has their own names."""
    if metrics is None:
        return {}
    if isinstance(metrics, Mapping):
        for name, function in metrics.items():
            if not isinstance(name, str):
                raise TypeError(f"metrics: expected text as names, got {name!r}")
            _check_callable(f"metrics[{name!r}]", function)
        return {name: Criterion(function, model) for name, function in metrics.items()}
    named: dict[str, Criterion] = {}
    for i, function in enumerate(as_list("metrics", metrics, "a dict or a list of functions")):
        _check_callable(f"metrics[{i}]", function)
        name = getattr(function, "__name__", None)
        if name is None or name in named:
            raise ValueError(f"metrics[{i}]: expected a function with a name of its own, got {function!r}; use a dict")
        named[name] = Criterion(function, model)
    return named


def _check_callable(name: str, function: Any) -> None:
    if not callable(function):
        raise TypeError(f"{name}: expected a callable, got {type(function).__name__}")
