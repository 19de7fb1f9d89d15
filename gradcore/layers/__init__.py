"""Layers and models: recurrent, affine, activations, and chains of them."""
