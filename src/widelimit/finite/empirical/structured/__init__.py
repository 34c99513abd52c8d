"""Structured derivatives: kernels from factors of the Jacobian, layer by layer.

The derivative of an output by a weight matrix is a product of activations and cotangents. Its
kernel is a product of their small kernels, so the Jacobian is formed only if that takes fewer
operations. Source: Novak, Sohl-Dickstein, Schoenholz (2022), *Fast finite width neural tangent
kernel*, arXiv:2206.08720.
"""

from __future__ import annotations

from widelimit.finite.empirical.structured.derivatives import Batch
from widelimit.finite.empirical.structured.kernel import (
    Explanation,
    LeafReport,
    Structured,
    explain,
    structured,
)

__all__ = ["Batch", "Explanation", "LeafReport", "Structured", "explain", "structured"]
