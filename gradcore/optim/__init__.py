"""Optimizers with PyTorch's names and rules, over flat lists of arrays."""

from gradcore.optim.adagrad import Adagrad
from gradcore.optim.adam import SPAM, Adam, AdamW
from gradcore.optim.ema import EMA
from gradcore.optim.lion import Lion
from gradcore.optim.nadam import NAdam
from gradcore.optim.optimizer import Group, Optimizer
from gradcore.optim.plateau import ReduceLROnPlateau
from gradcore.optim.radam import RAdam
from gradcore.optim.rmsprop import RMSprop
from gradcore.optim.sgd import SGD

__all__ = [
    "EMA",
    "SGD",
    "SPAM",
    "Adagrad",
    "Adam",
    "AdamW",
    "Group",
    "Lion",
    "NAdam",
    "Optimizer",
    "RAdam",
    "RMSprop",
    "ReduceLROnPlateau",
]
