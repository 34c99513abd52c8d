"""The static description of an activation: its shapes, and its batch and channel axes."""

from __future__ import annotations

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Signal:
    """Shapes of the activations of both batches at one place of a network.

    Attributes:
      shape1: shape of the activation of x1, batch and channels included.
      shape2: shape of the activation of x2; equal to shape1 but for the batch size.
      batch_axis: non-negative axis of the samples.
      channel_axis: non-negative axis of the channels.
    """

    shape1: tuple[int, ...]
    shape2: tuple[int, ...]
    batch_axis: int
    channel_axis: int

    @property
    def ndim(self) -> int:
        """Number of axes, batch and channels included."""
        return len(self.shape1)

    @property
    def spatial_axes(self) -> tuple[int, ...]:
        """Axes that are neither batch nor channels, in order."""
        return tuple(i for i in range(self.ndim) if i not in (self.batch_axis, self.channel_axis))

    @property
    def spatial(self) -> tuple[int, ...]:
        """Sizes of the spatial axes."""
        return tuple(self.shape1[i] for i in self.spatial_axes)

    @property
    def positions(self) -> int:
        """Number of spatial positions."""
        return math.prod(self.spatial)

    @property
    def channels(self) -> int:
        """Number of channels of the finite network here."""
        return self.shape1[self.channel_axis]

    @property
    def n1(self) -> int:
        """Number of samples in x1."""
        return self.shape1[self.batch_axis]

    @property
    def n2(self) -> int:
        """Number of samples in x2."""
        return self.shape2[self.batch_axis]

    def to_canonical(self) -> tuple[int, ...]:
        """Returns the permutation of axes to (batch, *spatial, channels)."""
        return (self.batch_axis, *self.spatial_axes, self.channel_axis)

    def with_samples(self, n1: int, n2: int) -> Signal:
        """Returns the description for other numbers of samples.

        Args:
          n1: number of samples of x1.
          n2: number of samples of x2.
        """
        before, behind = self.shape1[: self.batch_axis], self.shape1[self.batch_axis + 1 :]
        shapes = (*before, n1, *behind), (*before, n2, *behind)
        return dataclasses.replace(self, shape1=shapes[0], shape2=shapes[1])


def is_branches(tree: object) -> bool:
    """Returns whether `tree` is a list or tuple of branches (named tuples are not)."""
    return type(tree) in (list, tuple)
