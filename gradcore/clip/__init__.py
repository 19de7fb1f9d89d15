"""Gradient norms, clipping by norm, by value and by unit, and adaptive thresholds."""
