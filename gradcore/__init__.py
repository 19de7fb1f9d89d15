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

from gradcore import init, losses, optim
from gradcore._base.hook import Hook, TrainingStep
from gradcore._base.threads import get_num_threads, info, set_num_threads
from gradcore.clip import threshold
from gradcore.clip.adaptive import AdaptiveClip, UnitClip, clip_grad_units_
from gradcore.clip.clip import clip_grad_norm_, clip_grad_value_
from gradcore.clip.gradients import GradNorm
from gradcore.clip.norm import grad_norm
from gradcore.layers.activations import ELU, GELU, SELU, Identity, LeakyReLU, ReLU, Sigmoid, SiLU, Softplus, Tanh
from gradcore.layers.attention import MultiheadAttention
from gradcore.layers.composite import Composite
from gradcore.layers.dropout import Dropout
from gradcore.layers.embedding import Embedding
from gradcore.layers.layer import Layer
from gradcore.layers.linear import Linear
from gradcore.layers.normalization import BatchNorm, LayerNorm, RMSNorm
from gradcore.layers.pooling import FinalState, LastStep, MeanPool
from gradcore.layers.prelu import PReLU
from gradcore.layers.recurrent import GRU, LSTM, RNN
from gradcore.layers.residual import Residual
from gradcore.layers.sequential import MLP, Sequential
from gradcore.layers.tape import Tape
from gradcore.layers.transformer import TransformerEncoderLayer
from gradcore.optim import schedule
from gradcore.optim.scaler import GradScaler
from gradcore.regularizers import VanishingGradientRegularizer, gradient_penalty
from gradcore.training.checkpoint import load_checkpoint, save_checkpoint
from gradcore.training.early_stopping import EarlyStopping
from gradcore.training.fit import fit
from gradcore.training.history import History
from gradcore.training.rollback import Rollback, TooManyRollbacksError
from gradcore.training.step import training_step
from gradcore.training.supervisor import Supervisor
from gradcore.training.weights import load_weights

if _typing.TYPE_CHECKING:
    from gradcore import data, meanfield, spectral
    from gradcore.diagnosis import claims, diagnose
    from gradcore.training import monitor

__all__ = [
    "ELU",
    "GELU",
    "GRU",
    "LSTM",
    "MLP",
    "RNN",
    "SELU",
    "AdaptiveClip",
    "BatchNorm",
    "Composite",
    "Dropout",
    "EarlyStopping",
    "Embedding",
    "FinalState",
    "GradNorm",
    "GradScaler",
    "History",
    "Hook",
    "Identity",
    "LastStep",
    "Layer",
    "LayerNorm",
    "LeakyReLU",
    "Linear",
    "MeanPool",
    "MultiheadAttention",
    "PReLU",
    "RMSNorm",
    "ReLU",
    "Residual",
    "Rollback",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "Softplus",
    "Supervisor",
    "Tanh",
    "Tape",
    "TooManyRollbacksError",
    "TrainingStep",
    "TransformerEncoderLayer",
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
    "gradient_penalty",
    "info",
    "init",
    "load_checkpoint",
    "load_weights",
    "losses",
    "meanfield",
    "monitor",
    "optim",
    "save_checkpoint",
    "schedule",
    "set_num_threads",
    "spectral",
    "threshold",
    "training_step",
]

# What training alone does not need, and the module that has it.
_ON_FIRST_USE = {
    "claims": "diagnosis.claims",
    "data": "data",
    "diagnose": "diagnosis",
    "meanfield": "meanfield",
    "monitor": "training.monitor",
    "spectral": "spectral",
}


def __getattr__(name: str) -> _typing.Any:
    if name not in _ON_FIRST_USE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = _import_module(f"gradcore.{_ON_FIRST_USE[name]}")
    return getattr(module, name, module)


def __dir__() -> list[str]:
    return sorted({*globals(), *_ON_FIRST_USE})
