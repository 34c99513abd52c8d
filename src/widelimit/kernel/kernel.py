"""The public Kernel, which `kernel_fn(x1, x2)` returns, and accepts as input."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, PyTree

from widelimit._pytree import pytree, same_values, static
from widelimit.covariance.signal import Signal
from widelimit.kernel.axes import (
    Index,
    Places,
    Product,
    canonical_index,
    hide_pairs,
    plan_product,
    reorder,
    take,
    take_mask,
    taken_axis,
    taken_shape,
)
from widelimit.kernel.masking import one_channel
from widelimit.typing import BasicIndex, Scalar, Sizes


@pytree
class Kernel:
    """Covariances of the outputs of an infinitely wide network, in the public layout.

    It is a pytree. Arrays of a network with spatial axes have both copies of each axis side by
    side: (n1, n2, H, H, W, W), or (n1, n2, H, W) with `diagonal_spatial`.

    Attributes:
      nngp: covariance of the outputs at initialisation.
      ntk: neural tangent kernel; a scalar 0 before the first parametric layer; None if not
        requested.
      cov1: covariance of each sample of x1 with itself, with batch axes (n1,), or (n1, n1) if
        `diagonal_batch` is False.
      cov2: the same for x2; None if x2 was None.
      x1_is_x2: whether both inputs are the same.
      is_gaussian: whether the outputs are independent Gaussians given the inputs.
      is_reversed: whether the spatial axes are stored in reverse order; see `reverse`.
      is_input: always False (for compatibility).
      diagonal_batch: whether cov1 and cov2 hold equal samples only.
      diagonal_spatial: whether all arrays hold equal positions only.
      shape1: shape of the activation of x1, batch and channels included.
      shape2: shape of the activation of x2.
      batch_axis: axis of the samples.
      channel_axis: axis of the channels.
      mask1: bool mask of x1 (True = masked), singleton channel axis; None without masks.
      mask2: bool mask of x2.

    Example:
      >>> import jax.numpy as jnp
      >>> from widelimit import stax
      >>> kernel = stax.Dense(512).kernel_fn(jnp.eye(3), None)
      >>> kernel.nngp.shape, kernel.cov1.shape, kernel.shape1
      ((3, 3), (3,), (3, 512))
      >>> stax.serial(stax.Relu(), stax.Dense(1)).kernel_fn(kernel, None, "ntk").shape
      (3, 3)
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
        """Returns a copy with some fields changed.

        Args:
          **changes: new values by name of the field.
        """
        return dataclasses.replace(self, **changes)

    def asdict(self) -> dict[str, object]:
        """Returns the fields by name, in order; arrays are not copied."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    def astuple(self) -> tuple[object, ...]:
        """Returns the fields in order."""
        return tuple(self.asdict().values())

    def slice(self, n1_slice: slice, n2_slice: slice) -> Kernel:
        """Returns the kernel of the samples x1[n1_slice] and x2[n2_slice].

        Args:
          n1_slice: slice of the samples of x1.
          n2_slice: slice of the samples of x2.
        """

        def index(part: slice) -> Index:
            axes = range(len(self.shape1))
            return tuple(part if axis == self.batch_axis else slice(None) for axis in axes)

        whole = self._with_x2() if self.cov2 is None else self
        same = self.x1_is_x2 if n1_slice == n2_slice else jnp.asarray(False)
        return whole._take(index(n1_slice), index(n2_slice)).replace(x1_is_x2=same)

    def __getitem__(self, idx: BasicIndex) -> Kernel:
        """Returns the kernel of the indexed activations x1[idx] and x2[idx].

        Args:
          idx: a basic index of NumPy in the axes of `shape1`: ints, slices, an ellipsis.

        Raises:
          NotImplementedError: an int on the batch axis, or anything but `:` on the channel axis.
          TypeError: an index of another kind.
          IndexError: an index that does not fit.
        """
        index = canonical_index(idx, self.shape1, self.batch_axis, self.channel_axis)
        return self._take(index, index)

    # Without this, Python would treat an object with __getitem__ as a sequence.
    __iter__: ClassVar[None] = None

    def _take(self, index1: Index, index2: Index) -> Kernel:
        """Returns the kernel of x1[index1] and x2[index2]; indices may differ on samples only."""
        indices = index1, index2

        def part(value: Array, places: Places, sides: tuple[int, int]) -> Array:
            return take(value, places, (indices[sides[0]], indices[sides[1]]))

        spatial = kernel_signal(self).spatial_axes
        return self._mapped(part).replace(
            diagonal_spatial=self.diagonal_spatial
            and any(isinstance(index1[axis], slice) for axis in spatial),
            shape1=taken_shape(self.shape1, index1),
            shape2=taken_shape(self.shape2, index2),
            batch_axis=taken_axis(self.batch_axis, index1),
            channel_axis=taken_axis(self.channel_axis, index1),
            mask1=take_mask(self.mask1, index1),
            mask2=take_mask(self.mask2, index2),
        )

    def reverse(self) -> Kernel:
        """Returns the same kernel with its spatial axes stored in reverse order.

        (n1, n2, H, H, W, W) becomes (n1, n2, W, W, H, H), and `is_reversed` is toggled. Layers
        accept both.
        """

        def flip(value: Array, places: Places, _: tuple[int, int]) -> Array:
            return reorder(value, places, (places.order[0], *places.order[:0:-1]))

        return self._mapped(flip).replace(is_reversed=not self.is_reversed)

    def transpose(self, axes: Sequence[int] | None = None) -> Kernel:
        """Returns the kernel of activations with their spatial axes in another order.

        Args:
          axes: the present place of each spatial axis of the result, counted among the spatial
            axes only; None keeps the order.

        Raises:
          ValueError: `axes` is not a permutation.
        """
        spatial = kernel_signal(self).spatial_axes
        count = len(spatial)
        order = tuple(range(count)) if axes is None else tuple(axes)
        if sorted(axis % max(count, 1) for axis in order) != list(range(count)):
            raise ValueError(f"expected a permutation of {count} spatial axes, got {axes}")
        moved = list(range(len(self.shape1)))
        for place, axis in zip(spatial, order, strict=True):
            moved[place] = spatial[axis]
        rest = [moved[place] for place in spatial]
        stored = (self.batch_axis, *(rest[::-1] if self.is_reversed else rest))

        def mask(value: Array | None) -> Array | None:
            return None if value is None else value.transpose(moved)

        return self._mapped(lambda value, places, _: reorder(value, places, stored)).replace(
            shape1=tuple(self.shape1[i] for i in moved),
            shape2=tuple(self.shape2[i] for i in moved),
            mask1=mask(self.mask1),
            mask2=mask(self.mask2),
        )

    def mask(
        self,
        mask1: Bool[Array | np.ndarray, "..."] | None,
        mask2: Bool[Array | np.ndarray, "..."] | None,
    ) -> Kernel:
        """Returns the kernel with zeros where either position is masked, and with these masks.

        Args:
          mask1: bool in the axes of `shape1`, True where masked, sizes 1 or those of `shape1`, one
            channel; None masks nothing.
          mask2: the same for x2; None means `mask1` if x2 is x1 (`cov2` is None).

        Raises:
          NotImplementedError: a mask per channel.
        """
        mask1, mask2 = _as_mask(mask1), _as_mask(mask2)
        if self.cov2 is None and mask2 is not None and not same_values(mask1, mask2):
            return self._with_x2().mask(mask1, mask2)
        shared = self.cov2 is None and mask2 is None
        signal = kernel_signal(self)

        def flags(mask: Array | None) -> Array | None:
            flat = one_channel(mask, signal, "the mask of a Kernel")
            return None if flat is None else flat.reshape(flat.shape[0], *signal.spatial)

        sides = flags(mask1), flags(mask1 if shared else mask2)
        return self._mapped(
            lambda value, places, at: hide_pairs(value, places, (sides[at[0]], sides[at[1]]))
        ).replace(
            x1_is_x2=self.x1_is_x2 if shared or same_values(mask1, mask2) else jnp.asarray(False),
            mask1=mask1,
            mask2=mask2,
        )

    def dot_general(
        self,
        other1: ArrayLike | None,
        other2: ArrayLike | None,
        is_lhs: bool,
        dimension_numbers: Sequence[Sequence[Sizes]],
    ) -> Kernel:
        """Returns the kernel of activations multiplied by a constant each.

        The axes of the result are those of `jax.lax.dot_general`: batched axes, then the free axes
        of the left and of the right factor. A result is masked where all entries that contribute
        to it are masked. If samples are contracted, the first free axis of the constants replaces
        them. With `diagonal_spatial`, only equal indices are returned along the free axes of the
        constants, too.

        Args:
          other1: constant array or number that multiplies the activations of x1.
          other2: the same for x2, with as many axes. If both are None nothing changes.
          is_lhs: whether the constants are the left factors.
          dimension_numbers: as `jax.lax.dot_general` takes them,
            `((lhs_contracted, rhs_contracted), (lhs_batched, rhs_batched))`.

        Raises:
          ValueError: constants that do not fit or differ in their number of axes; the channel axis
            contracted or batched; no axis left for the samples; unequal indices are needed that the
            kernel does not hold.
        """
        if other1 is None and other2 is None:
            return self
        if other1 is None or other2 is None or jnp.ndim(other1) != jnp.ndim(other2):
            raise ValueError("expected two constants with as many axes as each other")
        if self.cov2 is None and not same_values(other1, other2):
            whole = self._with_x2()
            return whole.dot_general(other1, other2, is_lhs, dimension_numbers)
        others = jnp.asarray(other1), jnp.asarray(other2)
        ndims = len(self.shape1), others[0].ndim
        axes = self.batch_axis, self.channel_axis
        product = plan_product(dimension_numbers, is_lhs, ndims, *axes)
        self._check_contracted(product)
        shape1, shape2 = map(product.shape, (self.shape1, self.shape2), others)
        mask1 = product.mask(self.mask1, self.shape1, self.channel_axis, others[0])
        mask2 = product.mask(self.mask2, self.shape2, self.channel_axis, others[1])
        same = same_values(other1, other2)

        def pairs(value: Array, places: Places, sides: tuple[int, int]) -> Array:
            both = others[sides[0]], others[sides[1]]
            return product.pairs(value, places, both, self.diagonal_spatial)

        return self._mapped(pairs).replace(
            x1_is_x2=self.x1_is_x2 if same else jnp.asarray(False),
            is_reversed=False,
            diagonal_spatial=self.diagonal_spatial and len(shape1) > 2,
            shape1=shape1,
            shape2=shape2,
            batch_axis=product.out.index(product.samples),
            channel_axis=product.out.index(self.channel_axis),
            mask1=mask1,
            mask2=mask2,
        )

    def _check_contracted(self, product: Product) -> None:
        """Raises if a product reads unequal indices that are not stored."""
        contracted = set(range(len(self.shape1))) - set(product.out)
        if self.diagonal_batch and self.batch_axis in contracted:
            raise ValueError(
                "expected a Kernel with covariances between all samples (diagonal_batch=False) "
                "where samples are contracted; got one of equal samples only"
            )
        if self.diagonal_spatial and contracted - {self.batch_axis}:
            raise ValueError(
                "expected a Kernel with all pairs of positions where spatial axes are contracted; "
                "got one with diagonal_spatial=True"
            )

    def _with_x2(self) -> Kernel:
        """Returns the kernel of x1 with itself, as that of x1 with a different but equal x2."""
        return self.replace(cov2=self.cov1, mask2=self.mask1, x1_is_x2=jnp.asarray(False))

    def _places(self, own: bool) -> Places:
        """Returns the places of the axes of an activation in cov1 and cov2, or in nngp and ntk."""
        spatial = kernel_signal(self).spatial_axes
        single = set(spatial) if self.diagonal_spatial else set()
        if own and self.diagonal_batch:
            single.add(self.batch_axis)
        stored = spatial[::-1] if self.is_reversed else spatial
        return Places((self.batch_axis, *stored), frozenset(single))

    def _mapped(self, function: Callable[[Array, Places, tuple[int, int]], Array]) -> Kernel:
        """Returns the kernel with its arrays replaced by function(array, its places, its sides).

        Sides are those of both copies of each axis: x1 (0) or x2 (1).

        The scalar NTK before the first parametric layer does not change.
        """
        cross, own = self._places(own=False), self._places(own=True)

        def apply(value: Array | None, places: Places, sides: tuple[int, int]) -> Array | None:
            return value if value is None or value.ndim == 0 else function(value, places, sides)

        return self.replace(
            nngp=apply(self.nngp, cross, (0, 1)),
            ntk=apply(self.ntk, cross, (0, 1)),
            cov1=apply(self.cov1, own, (0, 0)),
            cov2=apply(self.cov2, own, (1, 1)),
        )

    def side(self, index: int) -> Kernel:
        """Returns the kernel of x1 (0) or x2 (1) with itself, without its NTK.

        Args:
          index: 0 or 1.

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

    def _map(self, function: Callable[[Array], Array]) -> Kernel:
        """Returns the kernel with each of its arrays replaced by a function of it."""
        names = ("nngp", "ntk", "cov1", "cov2")
        arrays = {name: value for name in names if (value := getattr(self, name)) is not None}
        return self.replace(**{name: function(value) for name, value in arrays.items()})

    def __mul__(self, other: Scalar) -> Kernel:
        """Returns the kernel of the outputs times a constant."""
        return self._map(lambda k: k * other**2)

    __rmul__ = __mul__

    def __truediv__(self, other: Scalar) -> Kernel:
        """Returns the kernel of the outputs divided by a constant."""
        return self._map(lambda k: k / other**2)

    def __add__(self, other: Scalar) -> Kernel:
        """Returns the kernel of the outputs plus a constant: covariances grow by its square."""
        return self._map(lambda k: k + other**2).replace(ntk=self.ntk)

    __sub__ = __add__

    def __pos__(self) -> Kernel:
        return self

    __neg__ = __pos__

    def __repr__(self) -> str:
        parts = []
        for name, value in self.asdict().items():
            if isinstance(value, jax.Array | np.ndarray):
                parts.append(f"{name}={value.dtype}{value.shape}")
            else:
                parts.append(f"{name}={value!r}")
        return f"Kernel({', '.join(parts)})"


def kernel_signal(kernel: Kernel) -> Signal:
    """Returns the static description of the activation of a kernel."""
    return Signal(kernel.shape1, kernel.shape2, kernel.batch_axis, kernel.channel_axis)


def _as_mask(mask: Bool[Array | np.ndarray, "..."] | None) -> Array | None:
    return None if mask is None else jnp.asarray(mask)


def is_kernel(value: object) -> bool:
    """Returns whether this is a `Kernel` (usable as `is_leaf`)."""
    return isinstance(value, Kernel)


def holds_kernels(x: object) -> bool:
    """Returns whether a tree of inputs holds kernels."""
    return any(map(is_kernel, jax.tree.leaves(x, is_leaf=is_kernel)))


def map_kernels(function: Callable[[Kernel], PyTree], tree: PyTree[Kernel]) -> PyTree:
    """Returns the results of a function of each kernel of a tree; branches become tuples."""
    if isinstance(tree, Kernel):
        return function(tree)
    return tuple(map_kernels(function, part) for part in tree)
