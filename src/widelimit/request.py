"""What a call of `kernel_fn` asks for."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from widelimit.nt_kernel import Kernel

FIELDS = tuple(field.name for field in dataclasses.fields(Kernel))
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


def parse_get(get: Any) -> tuple[str, ...]:
    """Returns the names of the `Kernel` fields asked for, in lower case.

    Raises:
      ValueError: an unknown or repeated name, or none at all.
    """
    if get is None:
        return FIELDS
    names = tuple(get) if isinstance(get, list | tuple) else (get,)
    lower = tuple(str(name).lower() for name in names)
    unknown = [name for name in lower if name not in FIELDS]
    if unknown or not lower or len(set(lower)) < len(lower):
        raise ValueError(
            f"expected get to be None, one of {', '.join(FIELDS)}, or a tuple of distinct ones; "
            f"got {get!r}"
        )
    return lower
