"""Neurons that learn: the same equation with a gradient."""
