"""Membrane kernels: the specification, and others that do the same faster."""
