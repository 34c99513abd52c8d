"""Conversion of covariances by offset to a public Kernel, and back."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array

from widelimit.covariance.covariances import INPUT, KERNEL, Covariances, exact_diagonal
from widelimit.covariance.layout import from_public, mirror, to_public
from widelimit.covariance.offsets import Need
from widelimit.covariance.parts import Pairing, Parts
from widelimit.kernel.kernel import Kernel, kernel_signal


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
      diagonal_spatial: whether to return equal positions only.
      share: whether x2 was None, so that cov2 is None.
      masks: masks of both sides in the axes of the signal.
    """
    spatial = cov.signal.spatial
    diagonal = diagonal_spatial and bool(spatial)

    def public(value: Array, part: Pairing) -> Array:
        full = to_public(value, part.of(cov.need), spatial, diagonal)
        mirrored = cov.symmetric and not part.own
        return _mirror_public(full, spatial, diagonal) if mirrored else full

    signal = cov.signal
    nngp = public(cov.nngp, Pairing.CROSS)
    cov1 = cov2 = None
    if cov.need.own.wanted:
        cov1 = public(cov.cov1, Pairing.OWN1)
        cov2 = cov1 if cov.cov2 is None else public(cov.cov2, Pairing.OWN2)
    return Kernel(
        nngp=nngp,
        ntk=_zero_ntk(cov, nngp) if cov.ntk is None else public(cov.ntk, Pairing.CROSS),
        cov1=cov1,
        cov2=None if share else cov2,
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


def _zero_ntk(cov: Covariances, nngp: Array) -> Array | None:
    """Returns the zero NTK: a scalar before any parametric layer, a full one after frozen ones."""
    if not cov.tangent:
        return None
    frozen = not all(origin.startswith((INPUT, KERNEL)) for origin in cov.origins)
    return jnp.zeros_like(nngp) if frozen else jnp.zeros((), nngp.dtype)


def _mirror_public(value: Array, spatial: tuple[int, ...], diagonal: bool) -> Array:
    """Returns the public covariance of x1 with itself, exactly symmetric."""
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


def covariances_from_kernel(
    kernel: Kernel, need: Need, symmetric: bool, source: str = "shape1 and shape2 say"
) -> Covariances:
    """Returns a public kernel by offset, as the input of further layers.

    Args:
      kernel: kernel with every offset of `need`.
      need: offsets to return.
      symmetric: whether x2 is x1.
      source: the source of its shapes, for messages.

    Raises:
      ValueError: an array is missing or does not have the shape that the Kernel states, or unequal
        positions are needed that the Kernel does not hold.
    """
    _check_arrays(kernel, symmetric, source)
    if kernel.is_reversed:
        kernel = kernel.reverse()
    signal = kernel_signal(kernel)
    spatial, diagonal = signal.spatial, kernel.diagonal_spatial
    if diagonal and any(set(axis) - {0} for axis in (need.cross | need.own).axes):
        raise ValueError(
            "expected a Kernel with all pairs of positions: the layers that follow read unequal "
            "positions; got one with diagonal_spatial=True"
        )

    def by_offset(value: Array, part: Pairing) -> Array:
        if part.own and not kernel.diagonal_batch:
            n = value.shape[0]
            value = value[jnp.arange(n), jnp.arange(n)]
        return from_public(value, part.of(need), spatial, diagonal)

    assert kernel.nngp is not None
    assert kernel.cov1 is not None
    ntk = None if kernel.ntk is None or jnp.ndim(kernel.ntk) == 0 else kernel.ntk
    arrays = Parts(kernel.nngp, ntk, kernel.cov1, None if symmetric else kernel.cov2)
    cov = Covariances(
        **arrays.map(by_offset)._asdict(),
        gap=None,
        signal=signal,
        need=need,
        tangent=kernel.ntk is not None,
        gaussian=kernel.is_gaussian,
        origins=frozenset({KERNEL}),
    )
    return exact_diagonal(cov)


def _check_arrays(kernel: Kernel, symmetric: bool, source: str) -> None:
    """Raises unless the arrays of a Kernel fit its shapes."""
    signal = kernel_signal(kernel)
    sizes = signal.spatial[::-1] if kernel.is_reversed else signal.spatial
    copies, own = 1 if kernel.diagonal_spatial else 2, 1 if kernel.diagonal_batch else 2
    space = tuple(size for size in sizes for _ in range(copies))
    cross = (signal.n1, signal.n2, *space)
    shapes = {
        "nngp": cross,
        "ntk": cross,
        "cov1": (signal.n1,) * own + space,
        "cov2": (signal.n2,) * own + space,
    }
    for name, shape in shapes.items():
        value = getattr(kernel, name)
        if value is None:
            if name != "ntk" and not (name == "cov2" and symmetric):
                raise ValueError(f"expected a Kernel with {name}, got None")
        elif jnp.shape(value) != shape and (name != "ntk" or jnp.ndim(value)):
            raise ValueError(
                f"expected a Kernel with {name} of shape {shape}, for activations of shapes "
                f"{signal.shape1} and {signal.shape2} (x1 and x2) as {source}, got {name} of shape "
                f"{jnp.shape(value)} (diagonal_batch={kernel.diagonal_batch}, "
                f"diagonal_spatial={kernel.diagonal_spatial}, is_reversed={kernel.is_reversed})"
            )
