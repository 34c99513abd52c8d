"""Tangent kernels from random projections of gradients, with the error of the estimate."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from widelimit._pytree import AnyArray, pytree
from widelimit.finite.empirical.arguments import Arguments
from widelimit.finite.empirical.kernel_axes import kernel_of_arrays, mean_over_trace, resolve_axes
from widelimit.finite.empirical.network import Network, Parameters
from widelimit.finite.empirical.outputs import Call, only_output
from widelimit.finite.empirical.vector_products import pushed
from widelimit.tracing.varying import varying_like, varying_together
from widelimit.typing import ApplyFunction, Axes, Inputs, Key, Params, Size, Subset


class KernelEstimate(NamedTuple):
    """An estimated kernel.

    Attributes:
      kernel: the mean over random directions.
      standard_error: its standard error, estimated from the spread over directions.
    """

    kernel: Array
    standard_error: Array


@pytree
class ProjectedGradients:
    """Derivatives of an output along k random directions of the parameters: features of samples.

    The directions w have independent standard normal entries, so that the product of the features
    of two entries, averaged over directions, is the NTK in expectation. For an entry of the kernel
    without trace axes its variance is (K(x, x) K(x', x') + K(x, x')^2) / k: the relative error of
    the diagonal is sqrt(2 / k), for any number of parameters.

    Attributes:
      features: array [*shape of the output, k], not divided by sqrt(k).
    """

    features: Array

    @property
    def dimension(self) -> int:
        """Number of directions k."""
        return self.features.shape[-1]

    def estimate(
        self,
        other: ProjectedGradients | None = None,
        trace_axes: Axes = (-1,),
        diagonal_axes: Axes = (),
    ) -> KernelEstimate:
        """Returns the estimated kernel and its standard error, in the layout of `empirical_ntk_fn`.

        Args:
          other: gradients of other samples along the same directions (the same key, dimension,
            parameters and subset); None for the samples of this object.
          trace_axes: axes of the output to take the mean over.
          diagonal_axes: axes of which only equal indices are returned.

        Raises:
          TypeError: `other` is not a `ProjectedGradients`.
          ValueError: axes out of range, numbers of directions that differ, or fewer than two.
        """
        other = self if other is None else other
        if not isinstance(other, ProjectedGradients):
            raise TypeError(
                "expected other to be ProjectedGradients of other samples along the same "
                f"directions, or None, got {type(other).__name__}"
            )
        first, second = self.features, other.features
        if first.shape[-1] != second.shape[-1] or first.shape[-1] < 2:
            raise ValueError(
                "expected the same number of directions, at least 2, on both sides, got "
                f"{first.shape[-1]} and {second.shape[-1]}"
            )
        shapes = first.shape[:-1], second.shape[:-1]
        axes = resolve_axes(trace_axes, diagonal_axes, *shapes)

        def one(a: Array, b: Array) -> Array:
            product = kernel_of_arrays(a, b.conj() if jnp.iscomplexobj(b) else b, axes, a.ndim)
            return mean_over_trace(product, axes, shapes[0])

        pairs = jnp.moveaxis(first, -1, 0), jnp.moveaxis(second, -1, 0)
        count = self.dimension
        like = jax.eval_shape(one, *jax.tree.map(lambda v: v[0], pairs))
        kernel, _ = lax.scan(
            lambda total, pair: (total + one(*pair) / count, None),
            varying_like(jnp.zeros(like.shape, like.dtype), pairs),
            pairs,
        )

        def add_square(total: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
            return total + jnp.abs(one(*pair) - kernel) ** 2, None

        squares, _ = lax.scan(add_square, jnp.zeros_like(kernel.real), pairs)
        return KernelEstimate(kernel, jnp.sqrt(squares / (count - 1) / count))


def projected_gradients(
    f: ApplyFunction,
    params: Params,
    x: Inputs,
    key: Key,
    dimension: Size,
    *,
    subset: Subset = None,
    batch_size: Size = 1,
    **kwargs: object,
) -> ProjectedGradients:
    """Returns the derivatives of a network along random directions of its parameters.

    Each direction takes a forward pass; memory is that of a few passes, not of a Jacobian.

    Args:
      f: f(params, x, **kwargs), with one array as its output.
      params: tree of parameters.
      x: tree of inputs.
      key: random key of the directions; the same one gives the same directions for other inputs.
      dimension: number of directions k.
      subset: parameters to differentiate by; see `empirical_ntk_fn`.
      batch_size: number of directions at a time.
      **kwargs: keywords of f.

    Raises:
      TypeError: parameters that are not floating-point numbers, or an output that is not one array.
      ValueError: f does not depend on the parameters, or `dimension` or `batch_size` is below 1.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import widelimit as wl
      >>> f = lambda params, x: x @ params
      >>> gradients = wl.projected_gradients(
      ...     f, jnp.ones((3, 1)), jnp.eye(3), jax.random.key(0), 4000
      ... )
      >>> kernel, error = gradients.estimate()
      >>> bool((abs(kernel - jnp.eye(3)) < 5 * error).all()), bool((error < 0.03).all())
      (True, True)
    """
    for name, value in (("dimension", dimension), ("batch_size", batch_size)):
        is_count = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if not is_count or value < 1:
            raise ValueError(f"expected {name} of at least 1, got {value!r}")
    parameters, arguments, key = varying_together(
        Parameters.of(params, subset), Arguments(x, kwargs), key
    )
    call = Call.of(f, parameters, arguments, None)
    call.check_differentiable([only_output(call, ())])
    directions = jax.random.split(key, int(dimension))
    return ProjectedGradients(
        _features(call.network, int(batch_size), call.params, call.arrays, directions)
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _features(
    network: Network, batch_size: int, params: list[AnyArray], arrays: list[AnyArray], keys: Array
) -> Array:
    """Returns derivatives [*shape of the output, k]."""
    real = network.parameters.real(params)
    push = pushed(lambda p: network.whole(params, arrays, p)[0], real, keep=True)

    def along(key: Array) -> Array:
        each = jax.random.split(key, len(real))
        return push(
            [jax.random.normal(k, p.shape, p.dtype) for k, p in zip(each, real, strict=True)]
        )

    like = jax.eval_shape(along, keys[0])
    if not like.size:
        return jnp.zeros((*like.shape, len(keys)), like.dtype)
    return jnp.moveaxis(lax.map(along, keys, batch_size=batch_size), 0, -1)
