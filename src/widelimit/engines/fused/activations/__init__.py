"""Activations that the fused engine runs: one file each. Importing them registers them."""

from widelimit.engines.fused.activations import (
    erf,
    exp_normalized,
    exponentials,
    gabor,
    gaussian,
    gelu,
    normalisation,
    polynomials,
    rectified,
    relu,
    series,
    sign,
    sin,
)

__all__ = [
    "erf",
    "exp_normalized",
    "exponentials",
    "gabor",
    "gaussian",
    "gelu",
    "normalisation",
    "polynomials",
    "rectified",
    "relu",
    "series",
    "sign",
    "sin",
]
