"""Terms of the loss that act on gradients: one against vanishing ones, and penalties on the gradient of a model."""

from gradcore.regularizers.penalty import gradient_penalty
from gradcore.regularizers.vanishing import VanishingGradientRegularizer

__all__ = ["VanishingGradientRegularizer", "gradient_penalty"]
