"""LayerNorm and RMSNorm: covariances over the square roots of both variances."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from widelimit.covariance.signal import Signal
from widelimit.engines.fused.activations.base import FusedActivation, RefusedError
from widelimit.engines.fused.constants import HALF, ONE, TWO, ZERO
from widelimit.layers.base import Layer
from widelimit.layers.normalise import LayerNorm, RMSNorm


class FusedRMSNorm(FusedActivation):
    """p = eps. Recorded are 1 / sqrt(q + eps) and q, of the variance or its mean over positions."""

    layers: ClassVar[tuple[type[Layer], ...]] = (RMSNorm,)
    planes = 2
    smooth = False
    masked = False
    needs_gaussian = False
    keeps_gaussian = True

    @staticmethod
    def numbers(layer: Any) -> tuple[float, ...]:
        return (float(layer.eps),)

    @staticmethod
    def record(q: Any, p: Any, cst: Any) -> Any:
        return cst[ONE] / np.sqrt(q + p[0]), q

    @staticmethod
    def pair(c: Any, first: Any, second: Any, p: Any, cst: Any) -> Any:
        u = first[0] * second[0]
        return c * u, u

    @staticmethod
    def pair_gap(c: Any, gap: Any, first: Any, second: Any, p: Any, cst: Any) -> Any:
        """With u = 1 / sqrt(q + eps) the gap is 1 - eps (u1^2 + u2^2) / 2 - u1 u2 c."""
        one, half, two, eps = cst[ONE], cst[HALF], cst[TWO], p[0]
        u1, u2 = first[0], second[0]
        u, apart = u1 * u2, u1 - u2
        close = u * gap - half * apart * apart * (eps + one / u)
        far = one - half * eps * (u1 * u1 + u2 * u2) - u * c
        similar = (u1 < two * u2) & (u2 < two * u1)
        return u * c, u, close if similar else far

    @staticmethod
    def gap(c: Any, first: Any, second: Any, cst: Any) -> Any:
        return cst[HALF] * (first[1] + second[1]) - c

    @staticmethod
    def partials(c: Any, first: Any, second: Any, p: Any, cst: Any) -> Any:
        u, zero = first[0] * second[0], cst[ZERO]
        fall1, fall2 = -(cst[HALF] * first[0] * first[0]), -(cst[HALF] * second[0] * second[0])
        return u, c * u * fall1, c * u * fall2, zero, u * fall1, u * fall2

    @classmethod
    def averages(cls, layer: Any, signal: Signal) -> bool:
        """Returns whether it normalises over positions too.

        Raises:
          RefusedError: axes that are neither the channels nor all but the batch.
        """
        axes = set(layer.normalised_axes(signal.ndim))
        channels, space = {signal.channel_axis}, set(signal.spatial_axes)
        if axes == channels:
            return False
        if axes == channels | space:
            return True
        raise RefusedError(f"{layer.label} normalises over some of the axes only")


class FusedLayerNorm(FusedRMSNorm):
    """As RMSNorm, where inputs have mean zero: behind a layer with weights."""

    layers = (LayerNorm,)
    needs_gaussian = True
