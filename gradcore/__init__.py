"""Gradients of recurrent and deep networks on CPUs: fast, visible, predictable and safe, from NumPy arrays."""

__version__ = "0.1.0"

import typing as _typing
from importlib import import_module as _import_module
from importlib.util import find_spec as _find_spec

if _find_spec("gradcore._kernels") is None:
    raise ImportError(
        f"gradcore: no compiled kernels in {__path__[0]}; if that is the source folder, leave it to use the installed "
        'package, or build there with: pip install -e ".[test]"'
    )

from gradcore import init, losses, optim, schedule, threshold
from gradcore._threads import get_num_threads, info, set_num_threads
from gradcore.checkpoint import load_checkpoint, save_checkpoint
from gradcore.history import History
from gradcore.linear import (
    ELU,
    GELU,
    MLP,
    SELU,
    Identity,
    LastStep,
    LeakyReLU,
    Linear,
    ReLU,
    Sequential,
    Sigmoid,
    Softplus,
    Tanh,
)
from gradcore.norm import GradNorm, clip_grad_norm_, clip_grad_value_, grad_norm
from gradcore.recurrent import GRU, LSTM, RNN
from gradcore.regulariser import VanishingGradientRegularizer
from gradcore.scaler import GradScaler
from gradcore.train import fit
from gradcore.units import UnitClip, clip_grad_units_

if _typing.TYPE_CHECKING:
    from gradcore import claims, data, meanfield, monitor, spectral
    from gradcore.diagnosis import diagnose

__all__ = [
    "ELU",
    "GELU",
    "GRU",
    "LSTM",
    "MLP",
    "RNN",
    "SELU",
    "GradNorm",
    "GradScaler",
    "History",
    "Identity",
    "LastStep",
    "LeakyReLU",
    "Linear",
    "ReLU",
    "Sequential",
    "Sigmoid",
    "Softplus",
    "Tanh",
    "UnitClip",
    "VanishingGradientRegularizer",
    "__version__",
    "claims",
    "clip_grad_norm_",
    "clip_grad_units_",
    "clip_grad_value_",
    "data",
    "diagnose",
    "fit",
    "get_num_threads",
    "grad_norm",
    "info",
    "init",
    "load_checkpoint",
    "losses",
    "meanfield",
    "monitor",
    "optim",
    "save_checkpoint",
    "schedule",
    "set_num_threads",
    "spectral",
    "threshold",
]

# What training alone does not need, and the module that has it.
_ON_FIRST_USE = {name: name for name in ("claims", "data", "meanfield", "monitor", "spectral")}
_ON_FIRST_USE["diagnose"] = "diagnosis"


def __getattr__(name: str) -> _typing.Any:
    if name not in _ON_FIRST_USE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = _import_module(f"gradcore.{_ON_FIRST_USE[name]}")
    return getattr(module, name, module)


def __dir__() -> list[str]:
    return sorted({*globals(), *_ON_FIRST_USE})
