"""Kernels, training dynamics and Bayesian inference of infinitely wide neural networks."""

from widelimit import stax as stax
from widelimit.nt_kernel import Kernel as Kernel

__version__ = "0.1.0"
