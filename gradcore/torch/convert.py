"""Change the class of a model's recurrent layers, and nothing else."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch.nn.utils import parametrize

from gradcore.torch.layers import GRU, LSTM, RNN
from gradcore.torch.passes import Record

__all__ = ["convert", "restore"]

Module = TypeVar("Module", bound=torch.nn.Module)

OURS = {torch.nn.LSTM: LSTM, torch.nn.GRU: GRU, torch.nn.RNN: RNN}
THEIRS = {ours: theirs for theirs, ours in OURS.items()}


def convert(model: Module) -> Module:
    """Give every recurrent layer of a model the kernels of gradcore, in place.

    Each `torch.nn.LSTM`, `GRU` and `RNN` becomes the class of this package with the same name. Parameters, hooks,
    optimizers and state dicts stay what they are. Subclasses of these three are left alone, but for those that
    `torch.nn.utils.parametrize` makes.

    Parameters
    ----------
    model : torch.nn.Module
        The model, or a single layer.

    Returns
    -------
    torch.nn.Module
        The model itself.

    See Also
    --------
    restore : The way back.

    Examples
    --------
    >>> import torch, gradcore.torch
    >>> model = torch.nn.ModuleDict({"lstm": torch.nn.LSTM(3, 5), "head": torch.nn.Linear(5, 1)})
    >>> gradcore.torch.convert(model) is model
    True
    >>> isinstance(model["lstm"], gradcore.torch.LSTM), isinstance(model["lstm"], torch.nn.LSTM)
    (True, True)
    """
    for module in _change(model, OURS):
        module.__dict__["_record"] = Record()
    return model


def restore(model: Module) -> Module:
    """Give every recurrent layer of a model PyTorch's own passes again, in place.

    Parameters
    ----------
    model : torch.nn.Module
        The model, or a single layer.

    Returns
    -------
    torch.nn.Module
        The model itself.

    See Also
    --------
    convert : The way there.

    Examples
    --------
    >>> import torch, gradcore.torch
    >>> type(gradcore.torch.restore(gradcore.torch.LSTM(3, 5))) is torch.nn.LSTM
    True
    """
    for module in _change(model, THEIRS):
        del module.__dict__["_record"]
    return model


def _change(model: torch.nn.Module, classes: dict[Any, Any]) -> list[torch.nn.Module]:
    """Change the classes of the modules of a model, each once, and return those that were changed."""
    changed = []
    for module in model.modules():
        cls = type(module)
        if cls in classes:
            module.__class__ = classes[cls]
        elif parametrize.is_parametrized(module) and cls.__bases__[0] in classes:  # a class of its own for each module
            cls.__bases__ = (classes[cls.__bases__[0]],)
        else:
            continue
        changed.append(module)
    return changed
