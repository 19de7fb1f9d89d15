"""A second model on the same parameters, whose gradients are its own."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from gradcore._base.check import Array
from gradcore._base.memory import Pool, aligned_zeros
from gradcore._base.views import Arrays, Views, split
from gradcore.layers.composite import Composite
from gradcore.layers.layer import Layer

__all__: list[str] = []  # for the package only


def shadow(model: Layer) -> Layer:
    """Return a model that shares parameters, buffers, generators and memory pools, and has gradients of its own: zero.

    What is computed with it leaves the gradients of the model alone until `_add_gradients`, so that an error half way
    changes nothing, and other threads may go on adding to them.
    """
    memo: dict[int, Any] = {}
    layers: list[Layer] = []
    _place(model, aligned_zeros(model.flat_grads.size, model.dtype), memo, layers)
    for layer in layers:
        vars(memo[id(layer)]).update(copy.deepcopy(vars(layer), memo))
    found: Layer = memo[id(model)]
    return found


def _place(layer: Layer, flat_grads: Array, memo: dict[int, Any], layers: list[Layer]) -> None:
    """Tell `copy.deepcopy` what stands for the layer, for its gradients, and for what is shared."""
    layers.append(layer)
    memo[id(layer)] = object.__new__(type(layer))
    memo |= {id(value): value for value in vars(layer).values() if isinstance(value, _SHARED)}
    memo[id(layer.grads)] = Views(
        "grads", split(flat_grads, {name: g.shape for name, g in layer.grads.items()}), flat_grads
    )
    start = 0
    for member in layer.layers if isinstance(layer, Composite) else ():
        end = start + member.flat_grads.size
        _place(member, flat_grads[start:end], memo, layers)
        start = end


_SHARED = (np.ndarray, np.random.Generator, Arrays, Pool)
