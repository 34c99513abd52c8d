"""LayerNorm and RMSNorm: covariances over the square roots of both variances."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from widelimit.covariance.signal import Signal
from widelimit.engines.fused.activations.base import FusedActivation, RefusedError
from widelimit.engines.fused.constants import ONE
from widelimit.layers.base import Layer
from widelimit.layers.normalise import LayerNorm, RMSNorm


class FusedRMSNorm(FusedActivation):
    """p = eps. Recorded is 1 / sqrt(q + eps), of the variance or of its mean over positions."""

    layers: ClassVar[tuple[type[Layer], ...]] = (RMSNorm,)
    smooth = False
    masked = False
    needs_gaussian = False
    keeps_gaussian = True
    without_space = False  # its loop does not carry the gap

    @staticmethod
    def numbers(layer: Any) -> tuple[float, ...]:
        return (float(layer.eps),)

    @staticmethod
    def record(q: Any, p: Any, cst: Any) -> Any:
        return (cst[ONE] / np.sqrt(q + p[0]),)

    @staticmethod
    def pair(c: Any, first: Any, second: Any, p: Any, cst: Any) -> Any:
        u = first[0] * second[0]
        return c * u, u

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
