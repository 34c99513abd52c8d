"""Kernels, training dynamics and Bayesian inference of infinitely wide neural networks."""

__version__ = "0.1.0"
