"""Optimizers with PyTorch's names and rules, over flat lists of arrays."""

from gradcore.optim.adagrad import Adagrad
from gradcore.optim.adam import SPAM, Adam, AdamW
from gradcore.optim.optimizer import Group, Optimizer
from gradcore.optim.rmsprop import RMSprop
from gradcore.optim.sgd import SGD

__all__ = ["SGD", "SPAM", "Adagrad", "Adam", "AdamW", "Group", "Optimizer", "RMSprop"]
