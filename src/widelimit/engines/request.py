"""What a call of `kernel_fn` asks for."""

from __future__ import annotations

from typing import Any, NamedTuple

from widelimit.kernel.kernel import Kernel

ARRAYS = ("nngp", "ntk", "cov1", "cov2", "x1_is_x2", "mask1", "mask2")


class Request(NamedTuple):
    """What is asked of one call; static under jit.

    Attributes:
      fields: arrays of `Kernel` to compute.
      symmetric: whether x2 is x1.
      share: whether x2 was not given.
      diagonal_spatial: keep equal positions only.
      axes: (batch, channel) axes of the input, None where not given.
    """

    fields: tuple[str, ...]
    symmetric: bool
    share: bool
    diagonal_spatial: bool
    axes: tuple[int | None, int | None]


class Options(NamedTuple):
    """What a call asks for beside its inputs.

    Attributes:
      mask_constant: entries of the inputs equal to it are masked.
      diagonal_batch: False asks for cov1 and cov2 between all samples.
      diagonal_spatial: keep equal positions only.
      axes: (batch, channel) axes of the inputs, None where not given.
      engine: 'auto', 'fused' or 'reference'.
    """

    mask_constant: Any
    diagonal_batch: bool | None
    diagonal_spatial: bool
    axes: tuple[int | None, int | None]
    engine: str = "auto"


def requested(kernel: Kernel, request: Request) -> Kernel:
    """Returns a kernel that holds the requested arrays only; cov2 is None if x2 was."""
    dropped = {f: None for f in ARRAYS if f not in request.fields}
    return kernel.replace(**({"cov2": None} | dropped if request.share else dropped))
