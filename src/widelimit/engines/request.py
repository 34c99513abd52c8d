"""The request of a call of `kernel_fn`: fields, axes and options."""

from __future__ import annotations

from typing import NamedTuple

from widelimit.engines.engine import EngineMaker
from widelimit.kernel.get import parse_get
from widelimit.kernel.kernel import Kernel
from widelimit.typing import Get, GivenAxes, Pattern, Scalar

ARRAYS = ("nngp", "ntk", "cov1", "cov2", "x1_is_x2", "mask1", "mask2")


class Request(NamedTuple):
    """The request of one call to an engine; static under jit.

    Attributes:
      fields: arrays of `Kernel` to compute.
      diagonal_spatial: whether to return equal positions only.
      axes: (batch, channel) axes of the input, None for the default.
      symmetric: whether x2 is x1.
      share: whether x2 was None.
    """

    fields: tuple[str, ...]
    diagonal_spatial: bool = False
    axes: GivenAxes = (None, None)
    symmetric: bool = False
    share: bool = False

    @property
    def tangent(self) -> bool:
        """Whether the NTK is requested."""
        return "ntk" in self.fields

    @property
    def variances(self) -> bool:
        """Whether covariances of samples with themselves are requested."""
        return bool({"cov1", "cov2"} & set(self.fields))


class Options(NamedTuple):
    """The options of a call of `kernel_fn`.

    Attributes:
      mask_constant: entries of the inputs equal to it are masked.
      diagonal_batch: False returns cov1 and cov2 between all samples.
      diagonal_spatial: whether to return equal positions only.
      axes: (batch, channel) axes of the inputs, None for the default.
      engine: 'auto', 'fused', 'reference', or the class of the user's engine.
    """

    mask_constant: Scalar | None
    diagonal_batch: bool | None
    diagonal_spatial: bool
    axes: GivenAxes
    engine: str | EngineMaker = "auto"

    def unusual(self, patterns: tuple[Pattern, Pattern] = (None, None)) -> str | None:
        """Returns the reason why only the reference engine can compute the call, or None."""
        if self.mask_constant is None and patterns[0] is None and patterns[1] is None:
            return None
        return "there are masks or graph patterns"

    def request(self, get: Get) -> Request:
        """Returns the request to an engine for the fields in `get`."""
        fields = parse_get(get)
        arrays = [name for name in ARRAYS if name in fields]
        return Request(tuple(arrays), self.diagonal_spatial, self.axes)


def requested(kernel: Kernel, request: Request) -> Kernel:
    """Returns a kernel with the requested arrays only; cov2 is None if x2 was None."""
    dropped = {f: None for f in ARRAYS if f not in request.fields}
    return kernel.replace(**({"cov2": None} | dropped if request.share else dropped))
