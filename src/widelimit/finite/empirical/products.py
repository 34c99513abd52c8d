"""Products of a tangent kernel with vectors shaped like the outputs of a network."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.tree_util import PyTreeDef
from jaxtyping import Array

from widelimit._pytree import AnyArrays, own
from widelimit.finite.empirical.arguments import two_sides
from widelimit.finite.empirical.network import (
    Network,
    Parameters,
    output_leaves,
    output_names,
    real_output,
)
from widelimit.finite.empirical.outputs import Call, outputs_of
from widelimit.finite.empirical.vector_products import ntk_vector_product
from widelimit.tracing.varying import varying_together
from widelimit.typing import ApplyFunction, Arrays, Inputs, Params, Subset


def empirical_ntk_vp_fn(
    f: ApplyFunction,
    x1: Inputs,
    x2: Inputs,
    params: Params,
    *,
    subset: Subset = None,
    **kwargs: object,
) -> Callable[[Arrays], Arrays]:
    """Returns the linear map v -> J1 J2^H v of a network between x1 and x2.

    v is shaped like f(params, x2), and the result like f(params, x1). No axes are averaged over.
    With several outputs, kernels between different outputs are included. See `empirical_ntk_fn` for
    complex numbers.

    Args:
      f: f(params, x, **kwargs).
      x1: tree of inputs.
      x2: tree of inputs, None for x1.
      params: tree of parameters.
      subset: parameters to differentiate by; see `empirical_ntk_fn`.
      **kwargs: keywords of f; see `empirical_ntk_fn`.

    Raises:
      TypeError: parameters that are not floating-point numbers, or outputs that are not arrays.
      ValueError: f does not depend on the parameters. The map raises it if v is not like
        f(params, x2).

    Example:
      >>> import jax.numpy as jnp
      >>> import widelimit as wl
      >>> f = lambda params, x: x @ params
      >>> product = wl.empirical_ntk_vp_fn(f, 2 * jnp.eye(3), None, jnp.ones((3, 1)))
      >>> product(jnp.ones((3, 1)))[:, 0].tolist()
      [4.0, 4.0, 4.0]
    """
    one, other = two_sides(x1, x2, kwargs)
    parameters, one, other = varying_together(Parameters.of(params, subset), one, other)
    first = Call.of(f, parameters, one, None)
    second = other and Call.of(f, parameters, other, None, like=first)
    structure, outputs = outputs_of(first, second, (), ())
    first.check_differentiable(outputs)
    last = second or first
    expected = jax.tree.leaves(last.network.outputs)

    calls = [first] if second is None else [first, second]
    sides = [(call.params, call.arrays) for call in calls]

    def product(v: Arrays) -> Arrays:
        leaves, arrays = varying_together(checked_vectors(v, structure, expected), sides)
        functions = [
            functools.partial(_real_outputs, call.network, *own)
            for call, own in zip(calls, arrays, strict=True)
        ]
        real = first.network.parameters.real(arrays[0][0])
        on_real = ntk_vector_product(functions[0], (*functions[1:], None)[0], real)
        return jax.tree.unflatten(structure, complex_product(on_real, leaves, expected))

    return product


def _real_outputs(
    network: Network, params: AnyArrays, arrays: AnyArrays, real: list[Array]
) -> list[Array]:
    """Returns all outputs in real numbers."""
    return [real_output(y) for y in network.whole(params, arrays, real)]


def checked_vectors(
    v: Arrays, structure: PyTreeDef, expected: list[jax.ShapeDtypeStruct]
) -> list[Array]:
    """Returns the leaves of a vector.

    Raises:
      ValueError: its tree or shapes are not those of the output.
    """
    if jax.tree.structure(v) != structure:
        raise ValueError(f"expected a vector like {structure}, got {jax.tree.structure(v)}")
    leaves = output_leaves(own(v))
    for leaf, want, name in zip(leaves, expected, output_names(v), strict=True):
        if leaf.shape != want.shape:
            raise ValueError(
                f"expected a vector of shape {want.shape}, as {name} has, got shape {leaf.shape}"
            )
    return leaves


def complex_product(
    product: Callable[[list[Array]], list[Array]],
    leaves: list[Array],
    like: Sequence[jax.ShapeDtypeStruct],
) -> list[Array]:
    """Returns the product of a kernel J1 J2^H with complex or real vectors.

    Args:
      product: the product of the kernel of real outputs with real vectors; complex outputs are
        pairs of real ones along a last axis.
      leaves: the vectors.
      like: shapes and dtypes of outputs.
    """
    is_complex = [jnp.issubdtype(o.dtype, jnp.complexfloating) for o in like]

    def on_real(vectors: list[Array]) -> list[Array]:
        """Returns the real parts of products; vectors of real outputs are treated as real."""
        parts = [
            jnp.stack([v.real, v.imag], -1).astype(jnp.finfo(o.dtype).dtype)
            if c
            else v.real.astype(o.dtype)
            for v, o, c in zip(vectors, like, is_complex, strict=True)
        ]
        results = product(parts)
        return [
            jax.lax.complex(u[..., 0], u[..., 1]) if c else u
            for u, c in zip(results, is_complex, strict=True)
        ]

    real = on_real(leaves)
    if not any(is_complex) and not any(map(jnp.iscomplexobj, leaves)):
        return real
    imaginary = on_real([-1j * v for v in leaves])
    return [a + 1j * b for a, b in zip(real, imaginary, strict=True)]
