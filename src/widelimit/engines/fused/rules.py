"""Which nonlinearities and normalisations the compiled loops know, and with which numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from widelimit.covariance.signal import Signal
from widelimit.engines.fused import instructions as m
from widelimit.layers import elementwise as e
from widelimit.layers import piecewise as p
from widelimit.layers.base import Layer
from widelimit.layers.normalise import LayerNorm, RMSNorm


class RefusedError(Exception):
    """A network that the fused engine cannot run; the message says why."""


class NonlinearRule(NamedTuple):
    """How a layer is run.

    Attributes:
      kind: the loop.
      numbers: from the layer to its parameters, as the loop wants them.
      paired: whether two numbers are recorded per variance.
      needs_gaussian: whether its input must be Gaussian.
      keeps_gaussian: whether its output is as Gaussian as its input.
    """

    kind: int
    numbers: Callable[[Any], tuple[float, ...]]
    paired: bool = False
    needs_gaussian: bool = True
    keeps_gaussian: bool = False

    def average(self, layer: Any, signal: Signal) -> bool:
        """Returns whether variances are averaged over positions first.

        Raises:
          RefusedError: axes that are neither the channels nor all but the batch.
        """
        if self.kind != m.NORM:
            return False
        axes = set(layer.normalised_axes(signal.ndim))
        channels, space = {signal.channel_axis}, set(signal.spatial_axes)
        if axes == channels:
            return False
        if axes == channels | space:
            return True
        raise RefusedError(f"{layer.label} normalises over some of the axes only")


def has_smooth(code: np.ndarray) -> bool:
    """Returns whether there is a smooth nonlinearity among instructions [ops, COLUMNS].

    These depend on differences of covariances that float32 loses where variances are large, and no
    loop carries them.
    """
    kinds = code[code[:, m.CODE] == m.NONLINEAR, m.KIND]
    return not set(kinds.tolist()) <= {m.RELU, m.SIGN, m.NORM}


def nonlinear_rule(layer: Layer) -> NonlinearRule | None:
    """Returns the rule of a layer, None where there is none."""
    return _RULES.get(type(layer))


def _none(_: Any) -> tuple[float, ...]:
    return ()


def _relu(layer: Any) -> tuple[float, ...]:
    a, b = (float(slope) for slope in layer.slopes())
    return (a * a + b * b) / 2, (a - b) ** 2 / (2 * math.pi)


def _erf(layer: Any) -> tuple[float, ...]:
    a, b, c = float(layer.a), float(layer.b), float(layer.c)
    return 2 * b * b, 2 * a * a / math.pi, c * c, 4 * a * a * b * b / math.pi


def _sin(layer: Any) -> tuple[float, ...]:
    a, b, c = float(layer.a), float(layer.b), float(layer.c)
    return 0.5, b * b, a * a / 2, math.cos(2 * c)


def _rbf(layer: Any) -> tuple[float, ...]:
    gamma = float(layer.gamma)
    return 0.5, 2 * gamma, -1.0, 1.0, 2 * gamma


def _exp(layer: Any) -> tuple[float, ...]:
    a, b = float(layer.a), float(layer.b)
    return 0.5, b * b, 1.0, a * a, b * b


def _gaussian(layer: Any) -> tuple[float, ...]:
    a, b = float(layer.a), float(layer.b)
    return 2 * b, 4 * b * b, a * a, 4 * a * a * b * b


def _exp_normalized(layer: Any) -> tuple[float, ...]:
    bound = 1.0 if layer.do_clip else math.inf
    return float(layer.gamma), float(layer.shift), bound


_RELU = NonlinearRule(m.RELU, _relu, paired=True)
_RULES: dict[type, NonlinearRule] = {
    p.Relu: _RELU,
    p.ABRelu: _RELU,
    p.LeakyRelu: _RELU,
    p.Abs: _RELU,
    p.Sign: NonlinearRule(m.SIGN, _none),
    e.Erf: NonlinearRule(m.ERF, _erf),
    e.Sin: NonlinearRule(m.SIN, _sin),
    e.Rbf: NonlinearRule(m.RBF, _rbf),
    e.Exp: NonlinearRule(m.EXP, _exp),
    e.Gaussian: NonlinearRule(m.GAUSSIAN, _gaussian),
    e.Gelu: NonlinearRule(m.GELU, _none, paired=True),
    e.ExpNormalized: NonlinearRule(m.EXP_NORMALIZED, _exp_normalized, paired=True),
    LayerNorm: NonlinearRule(m.NORM, lambda layer: (layer.eps,), keeps_gaussian=True),
    RMSNorm: NonlinearRule(
        m.NORM, lambda layer: (layer.eps,), needs_gaussian=False, keeps_gaussian=True
    ),
}
