"""Forecast and measure how gradients grow or vanish in recurrent layers, and say what of that is certain.

The numbers of a matrix, the Jacobian of one time step, what a trajectory of Jacobians does to a gradient, and what a
backward pass has done. Everything is computed and returned in float64, in natural logarithms per time step, for layers
of either dtype. Where a layer is expected, a `Sequential` with one recurrent layer will do.
"""

from gradcore.spectral.growth import Condition, GrowthPrediction, LayerGrowth, predict_growth
from gradcore.spectral.lyapunov import entropy, kaplan_yorke, lyapunov_spectrum, singular_values
from gradcore.spectral.matrices import henrici, spectral_norm, spectral_radius
from gradcore.spectral.measure import effective_horizon, measure_growth
from gradcore.spectral.trajectory import jacobian

__all__ = [
    "Condition",
    "GrowthPrediction",
    "LayerGrowth",
    "effective_horizon",
    "entropy",
    "henrici",
    "jacobian",
    "kaplan_yorke",
    "lyapunov_spectrum",
    "measure_growth",
    "predict_growth",
    "singular_values",
    "spectral_norm",
    "spectral_radius",
]
