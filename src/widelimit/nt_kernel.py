"""The public `Kernel`: what `kernel_fn(x1, x2)` returns, and accepts as input."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from widelimit._pytree import pytree, static
from widelimit.covariance import INPUT, KERNEL, Covariances, exact_diagonal
from widelimit.layout import from_public, mirror, to_public
from widelimit.offsets import Need
from widelimit.signal import Signal


@pytree
class Kernel:
    """Covariances of the outputs of an infinitely wide network, in the public layout.

    A pytree. Arrays of a network with spatial axes have both copies of each axis side by side:
    (n1, n2, H, H, W, W), or (n1, n2, H, W) with `diagonal_spatial`.

    Attributes:
      nngp: covariance of the outputs at initialisation.
      ntk: neural tangent kernel; a scalar 0 before the first parametric layer; None if not asked.
      cov1: covariance of each sample of x1 with itself, batch part (n1,), or (n1, n1) when not
        `diagonal_batch`.
      cov2: the same for x2; None if x2 was None.
      x1_is_x2: whether both inputs are the same.
      is_gaussian: whether the outputs are independent Gaussians given the inputs.
      is_reversed: always False (kept for old scripts).
      is_input: always False (kept for old scripts).
      diagonal_batch: whether cov1 and cov2 keep equal samples only.
      diagonal_spatial: whether equal positions only are kept.
      shape1: shape of the activation of x1, batch and channels included.
      shape2: shape of the activation of x2.
      batch_axis: axis of the samples.
      channel_axis: axis of the channels.
      mask1: bool mask of x1 (True = masked), singleton channel axis; None without masks.
      mask2: bool mask of x2.
    """

    nngp: Float[Array, "..."] | None
    ntk: Float[Array, "..."] | None
    cov1: Float[Array, "..."] | None
    cov2: Float[Array, "..."] | None
    x1_is_x2: Bool[Array, ""] | bool | None
    is_gaussian: bool = static()
    is_reversed: bool = static()
    is_input: bool = static()
    diagonal_batch: bool = static()
    diagonal_spatial: bool = static()
    shape1: tuple[int, ...] = static()
    shape2: tuple[int, ...] = static()
    batch_axis: int = static()
    channel_axis: int = static()
    mask1: Bool[Array, "..."] | None = None
    mask2: Bool[Array, "..."] | None = None

    def replace(self, **changes: Any) -> Kernel:
        """Returns a copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def asdict(self) -> dict[str, Any]:
        """Returns the fields by name, in order; arrays are not copied."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    def astuple(self) -> tuple[Any, ...]:
        """Returns the fields in order."""
        return tuple(self.asdict().values())

    def slice(self, n1_slice: slice, n2_slice: slice) -> Kernel:
        """Returns the block of samples x1[n1_slice], x2[n2_slice]."""
        axis = self.batch_axis
        cov2 = self.cov1 if self.cov2 is None else self.cov2
        mask2 = self.mask1 if self.mask2 is None else self.mask2

        def own(value: Any, part: slice) -> Any:
            return value[part] if self.diagonal_batch else value[part, part]

        def shape(full: tuple[int, ...], part: slice) -> tuple[int, ...]:
            count = len(range(*part.indices(full[axis])))
            return (*full[:axis], count, *full[axis + 1 :])

        def mask(value: Array | None, part: slice) -> Array | None:
            return None if value is None else value[(slice(None),) * axis + (part,)]

        def cross(value: Any) -> Any:
            return value if value is None or not value.ndim else value[n1_slice, n2_slice]

        return self.replace(
            nngp=cross(self.nngp),
            ntk=cross(self.ntk),
            cov1=own(self.cov1, n1_slice),
            cov2=own(cov2, n2_slice),
            x1_is_x2=self.x1_is_x2 if n1_slice == n2_slice else jnp.asarray(False),
            shape1=shape(self.shape1, n1_slice),
            shape2=shape(self.shape2, n2_slice),
            mask1=mask(self.mask1, n1_slice),
            mask2=mask(mask2, n2_slice),
        )

    def side(self, index: int) -> Kernel:
        """Returns the kernel of x1 (0) or x2 (1) with itself, without its NTK.

        Raises:
          ValueError: covariances of equal samples only.
        """
        if self.diagonal_batch:
            raise ValueError(
                "expected a Kernel with covariances between all samples (diagonal_batch=False), "
                "since a later layer combines samples; got one of equal samples only"
            )
        shape, mask = (self.shape1, self.mask1) if index == 0 else (self.shape2, self.mask2)
        return self.replace(
            nngp=self.cov1 if index == 0 else self.cov2,
            ntk=None,
            cov1=self.cov1 if index == 0 else self.cov2,
            cov2=None,
            x1_is_x2=jnp.asarray(True),
            shape1=shape,
            shape2=shape,
            mask1=mask,
            mask2=None,
        )

    def _map(self, both: Any, nngp_only: Any) -> Kernel:
        """Returns the kernel with `nngp_only` applied to covariances and `both` to the NTK."""
        return self.replace(
            nngp=nngp_only(self.nngp),
            ntk=None if self.ntk is None else both(self.ntk),
            cov1=nngp_only(self.cov1),
            cov2=None if self.cov2 is None else nngp_only(self.cov2),
        )

    def __mul__(self, other: Any) -> Kernel:
        """Returns the kernel of the outputs times a constant."""
        return self._map(lambda k: k * other**2, lambda k: k * other**2)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Kernel:
        """Returns the kernel of the outputs divided by a constant."""
        return self._map(lambda k: k / other**2, lambda k: k / other**2)

    def __add__(self, other: Any) -> Kernel:
        """Returns the kernel of the outputs plus a constant: covariances grow by its square."""
        return self._map(lambda k: k, lambda k: k + other**2)

    __sub__ = __add__

    def __pos__(self) -> Kernel:
        return self

    __neg__ = __pos__

    def __repr__(self) -> str:
        parts = []
        for name, value in self.asdict().items():
            shape = getattr(value, "shape", None)
            parts.append(f"{name}={value!r}" if shape is None else f"{name}={value.dtype}{shape}")
        return f"Kernel({', '.join(parts)})"


def kernel_from_covariances(
    cov: Covariances,
    *,
    diagonal_spatial: bool,
    share: bool,
    masks: tuple[Array | None, Array | None],
) -> Kernel:
    """Returns covariances in the public layout.

    Args:
      cov: covariances by offset.
      diagonal_spatial: keep equal positions only.
      share: whether x2 was None, so that cov2 stays None.
      masks: masks of both sides in the axes of the signal.
    """
    spatial = cov.signal.spatial
    diagonal = diagonal_spatial and bool(spatial)

    def cross(value: Array) -> Array:
        full = to_public(value, cov.need.cross, spatial, diagonal)
        return _mirror_public(full, spatial, diagonal) if cov.symmetric else full

    def own(value: Array) -> Array | None:
        if not cov.need.own.wanted:
            return None
        return to_public(value, cov.need.own, spatial, diagonal)

    signal = cov.signal
    cov2 = cov.cov1 if cov.cov2 is None else cov.cov2
    return Kernel(
        nngp=cross(cov.nngp),
        ntk=_public_ntk(cov, cross),
        cov1=own(cov.cov1),
        cov2=None if share else own(cov2),
        x1_is_x2=jnp.asarray(cov.symmetric),
        is_gaussian=cov.gaussian,
        is_reversed=False,
        is_input=False,
        diagonal_batch=True,
        diagonal_spatial=diagonal,
        shape1=signal.shape1,
        shape2=signal.shape2,
        batch_axis=signal.batch_axis,
        channel_axis=signal.channel_axis,
        mask1=masks[0],
        mask2=None if share else masks[1],
    )


def _public_ntk(cov: Covariances, cross: Any) -> Array | None:
    """Returns the NTK; a scalar zero before any parametric layer, a full one after frozen ones."""
    if not cov.tangent:
        return None
    if cov.ntk is not None:
        return cross(cov.ntk)
    frozen = not all(origin.startswith((INPUT, KERNEL)) for origin in cov.origins)
    return cross(jnp.zeros_like(cov.nngp)) if frozen else jnp.zeros((), cov.nngp.dtype)


def _mirror_public(value: Array, spatial: tuple[int, ...], diagonal: bool) -> Array:
    """Returns the public covariance of x1 with itself, symmetric to the bit."""
    if diagonal or not spatial:
        return mirror(value)
    lead = [1, 0]
    for i in range(len(spatial)):
        lead += [3 + 2 * i, 2 + 2 * i]
    n = value.shape[0]
    upper = jnp.triu(jnp.ones((n, n), bool), 1).reshape(n, n, *(1,) * (value.ndim - 2))
    swapped = value.transpose(lead)
    same = jnp.eye(n, dtype=bool).reshape(upper.shape)
    blocks = jnp.where(jnp.broadcast_to(upper, value.shape), value, swapped)
    return jnp.where(jnp.broadcast_to(same, value.shape), (value + swapped) / 2, blocks)


def covariances_from_kernel(kernel: Kernel, need: Need, symmetric: bool) -> Covariances:
    """Returns a public kernel by offset, as the input of further layers.

    Args:
      kernel: kernel with every offset of `need`.
      need: offsets to keep.
      symmetric: whether x2 is x1.
    """
    signal = kernel_signal(kernel)
    spatial, diagonal = signal.spatial, kernel.diagonal_spatial
    if diagonal and any(set(axis) - {0} for axis in (need.cross | need.own).axes):
        raise ValueError(
            "expected a Kernel with all pairs of positions: the layers that follow read unequal "
            "positions; got one with diagonal_spatial=True"
        )

    def cross(value: Array | None) -> Array | None:
        if value is None or value.ndim == 0:
            return None
        return from_public(value, need.cross, spatial, diagonal)

    def own(value: Any) -> Array:
        if not kernel.diagonal_batch:
            n = value.shape[0]
            value = value[jnp.arange(n), jnp.arange(n)]
        return from_public(value, need.own, spatial, diagonal)

    nngp = cross(kernel.nngp)
    assert nngp is not None
    cov2 = None if symmetric or kernel.cov2 is None else own(kernel.cov2)
    cov = Covariances(
        nngp=nngp,
        ntk=cross(kernel.ntk),
        gap=None,
        cov1=own(kernel.cov1),
        cov2=cov2,
        signal=signal,
        need=need,
        tangent=kernel.ntk is not None,
        gaussian=kernel.is_gaussian,
        origins=frozenset({KERNEL}),
    )
    return exact_diagonal(cov)


def kernel_signal(kernel: Kernel) -> Signal:
    """Returns the static description of the activation whose kernel this is."""
    return Signal(kernel.shape1, kernel.shape2, kernel.batch_axis, kernel.channel_axis)
