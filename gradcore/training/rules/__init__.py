"""What can go wrong in a run: each rule stands beside its advice, in a file for each subject."""

from gradcore.training.rules import clipping, data, gradients, growth, learning, loss, outputs, weights

__all__: list[str] = []  # for the package only

# Whatever is imported from this folder, these are imported first, and bring their rules.
SUBJECTS = (data, loss, learning, gradients, clipping, growth, weights, outputs)
