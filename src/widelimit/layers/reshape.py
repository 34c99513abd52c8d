"""Layers that move entries: Identity and Flatten."""

from __future__ import annotations

import math

import jax.numpy as jnp

from widelimit._pytree import pytree, static
from widelimit.covariance.covariances import Covariances
from widelimit.covariance.offsets import Need
from widelimit.covariance.signal import Signal
from widelimit.covariance.verbs import position_mean
from widelimit.layers.base import Layer, Site
from widelimit.layers.context import Context
from widelimit.layers.shapes import checked_axis
from widelimit.typing import Arrays, Masks, Moduli, Needs, Params, Shapes, Signals


@pytree
class Identity(Layer):
    """Returns a layer that returns its input, an array or a list of branches, unchanged.

    Example:
      >>> from widelimit import stax
      >>> skip = stax.parallel(stax.Identity(), stax.serial(stax.Relu(), stax.Dense(64)))
    """

    structural = True

    def output_shape(self, shape: Shapes) -> Shapes:
        return shape

    def output_signal(self, signal: Signals) -> Signals:
        return signal

    def moduli(self, moduli: Moduli, signal: Signals) -> Moduli:
        return moduli


@pytree
class Flatten(Layer):
    """Returns a layer that flattens all axes but the batch into channels.

    K' is the mean of K over equal positions; the output is not Gaussian.

    Args:
      batch_axis: axis of the samples in the input.
      batch_axis_out: axis of the samples in the output: 0, 1, -1 or -2.

    Raises:
      ValueError: `batch_axis_out` is another axis.

    Example:
      >>> from widelimit import stax
      >>> stax.Flatten().output_shape((8, 32, 32, 3))
      (8, 3072)
    """

    batch_axis: int = static(default=0)
    batch_axis_out: int = static(default=0)

    def __post_init__(self) -> None:
        if self.batch_axis_out not in (0, 1, -1, -2):
            raise ValueError(
                f"expected batch_axis_out to be 0, 1, -1 or -2, got {self.batch_axis_out}"
            )

    def input_axes(self) -> tuple[int, int] | None:
        # The channels may be on any other axis: Flatten averages over all of them.
        if self.batch_axis == -1:
            return -1, -2
        return self.batch_axis, 0 if self.batch_axis > 0 else -1

    def output_axes(self, signal: Signal) -> tuple[int, int]:
        batch = self.batch_axis_out % 2
        return batch, 1 - batch

    def output_signal(self, signal: Signals) -> Signals:
        if isinstance(signal, Signal):
            self.check_input(signal.shape1, signal.batch_axis)
        return super().output_signal(signal)

    def check_input(self, shape: Shapes, batch_axis: int | None) -> None:
        """Raises unless Flatten fits the inputs.

        Args:
          shape: shape of the input.
          batch_axis: axis of its samples, None if unknown.

        Raises:
          ValueError: another batch axis, or a shape that does not fit.
        """
        axis = checked_axis(self.batch_axis, shape)
        if batch_axis is not None and batch_axis % len(shape) != axis:
            raise ValueError(
                f"expected the batch axis {axis} that Flatten states, got {batch_axis} from the "
                "layers before it"
            )

    def _check_axes(self, signal: Signal) -> None:
        """Accepts channels on any axis: `output_signal` checks the batch axis."""

    def output_shape(self, shape: Shapes) -> Shapes:
        axis = checked_axis(self.batch_axis, shape)
        batch, rest = shape[axis], math.prod((*shape[:axis], *shape[axis + 1 :]))
        return (batch, rest) if self.batch_axis_out % 2 == 0 else (rest, batch)

    def _flatten(self, x: Arrays) -> Arrays:
        rows = jnp.moveaxis(x, self.batch_axis, 0) if self.batch_axis else x
        flat = rows.reshape(rows.shape[0], math.prod(rows.shape[1:]))
        return flat if self.batch_axis_out % 2 == 0 else flat.T

    def apply(self, params: Params, x: Arrays, context: Context) -> Arrays:
        return self._flatten(x)

    def mask(self, mask: Masks, shape: Shapes) -> Masks:
        return None if mask is None else self._flatten(jnp.broadcast_to(mask, shape))

    def needs(self, need: Needs, signal: Signals) -> Needs:
        return Need.zero(len(signal.spatial), own=need.own.wanted)

    def propagate(self, cov: Covariances, site: Site) -> Covariances:
        return position_mean(cov, site.signal_out, site.need_out)
