"""Structured derivatives: kernels from factors of the Jacobian, layer by layer.

The derivative of an output by a weight matrix is a product of activations and cotangents. Its
kernel is a product of their small kernels, and the Jacobian is never formed; where forming it takes
fewer operations, it is. Novak, Sohl-Dickstein, Schoenholz: Fast Finite Width Neural Tangent Kernel,
ICML 2022, arXiv:2206.08720.
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
