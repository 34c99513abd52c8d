"""The outputs of a network between two sets of inputs, one by one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from widelimit.empirical.axes import Axes, Shape, resolve_axes
from widelimit.empirical.dependence import check_dependence
from widelimit.empirical.network import Network, real_output
from widelimit.empirical.samples import Samples
from widelimit.varying import varying_like


@dataclasses.dataclass(frozen=True)
class Output:
    """One output, between x1 and x2.

    Attributes:
      index: which leaf of f(params, x).
      axis: its axis of samples; None where they are not mapped.
      axes: trace and diagonal axes.
      shapes: its shapes for x1 and for x2, with all samples.
      dtype: its dtype, that of both if they differ.
    """

    index: int
    axis: int | None
    axes: Axes
    shapes: tuple[Shape, Shape]
    dtype: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """A network and the arrays that it is called with.

    Attributes:
      network: the function, and what is static about its arguments.
      params: arrays of its parameters.
      arrays: arrays of its inputs and keywords; or the mapped ones, samples first, and the others.
    """

    network: Network
    params: list[Any]
    arrays: Any

    def function(self, index: int) -> Callable[[list[Array]], Array]:
        """Returns an output of all samples, in real numbers, as a function of real parameters."""
        return lambda real: real_output(self.network.whole(self.params, self.arrays, real)[index])

    def samples(self, index: int, axis: int) -> Samples:
        """Returns an output sample by sample, in real numbers."""
        mapped, shared = self.network.inputs.split(self.arrays)

        def of_sample(arrays: list[Array]) -> Callable[[list[Array]], Array]:
            return lambda real: real_output(
                self.network.one(self.params, arrays, shared, real)[index]
            )

        return Samples(of_sample, mapped, axis)

    def check_differentiable(self, outputs: list[Output]) -> None:
        """Raises where a tangent kernel makes no sense.

        Raises:
          TypeError: outputs that are no floating-point or complex numbers.
          ValueError: no output depends on the chosen parameters.
        """
        for output in outputs:
            if not jnp.issubdtype(output.dtype, jnp.inexact):
                raise TypeError(
                    "expected floating-point or complex numbers as outputs of f, got "
                    f"{output.dtype} numbers of shape {output.shapes[0]}"
                )
        real = jax.eval_shape(self.network.parameters.real, self.params)
        if self.network.inputs.outputs is None:
            check_dependence(
                lambda p, given: self.network.whole(given[0], given[1], p),
                real,
                (self.params, self.arrays),
            )
            return
        mapped, shared = jax.eval_shape(self.network.inputs.split, self.arrays)
        one = [jax.ShapeDtypeStruct(a.shape[1:], a.dtype) for a in mapped]
        check_dependence(
            lambda p, given: self.network.one(given[0], given[1], given[2], p),
            real,
            (self.params, one, shared),
        )

    def values(self, output: Output) -> Array:
        """Returns an output of all samples."""
        real = self.network.parameters.real(self.params)
        if output.axis is None:
            return self.network.whole(self.params, self.arrays, real)[output.index]
        mapped, shared = self.network.inputs.split(self.arrays)
        return jax.vmap(
            lambda arrays: self.network.one(self.params, arrays, shared, real)[
                output.index
            ].squeeze(output.axis),
            out_axes=output.axis,
        )(mapped)


def alike(first: Call, second: Call | None = None) -> tuple[Call, Call | None]:
    """Returns both calls, with arrays that all vary along the same axes of a mesh.

    Inside `jax.shard_map` a network may carry inputs through a loop with parameters.
    """
    given = [(c.params, c.arrays) for c in (first, second) if c is not None]
    one, other = (
        c
        and dataclasses.replace(
            c, params=varying_like(c.params, given), arrays=varying_like(c.arrays, given)
        )
        for c in (first, second)
    )
    assert one is not None
    return one, other


def outputs_of(
    first: Call, second: Call | None, trace_axes: Any, diagonal_axes: Any
) -> tuple[Any, list[Output]]:
    """Returns the tree of outputs, and what is to be known of each.

    Args:
      first: the network on x1.
      second: the network on x2; None for x1.
      trace_axes: axes to take the mean over, the same for all outputs.
      diagonal_axes: axes to keep once.

    Raises:
      TypeError: outputs that are no arrays.
      ValueError: wrong axes, outputs for x2 that do not fit those for x1, or a mapped output of one
        sample that does not have size 1.
    """
    tree1, shapes1 = _shapes(first)
    tree2, shapes2 = (tree1, shapes1) if second is None else _shapes(second)
    structure: Any = jax.tree.structure(tree1)
    if structure != jax.tree.structure(tree2):
        raise ValueError(
            "expected f(x1) and f(x2) with the same tree of outputs, got "
            f"{structure} and {jax.tree.structure(tree2)}"
        )
    axes = first.network.output_axes(tree1)
    found = []
    leaves = zip(jax.tree.leaves(tree1), jax.tree.leaves(tree2), strict=True)
    for index, (pair, axis, shape1, shape2) in enumerate(
        zip(leaves, axes, shapes1, shapes2, strict=True)
    ):
        resolved = resolve_axes(trace_axes, diagonal_axes, shape1, shape2)
        dtype = jnp.promote_types(*(leaf.dtype for leaf in pair))
        found.append(Output(index, axis, resolved, (shape1, shape2), dtype))
    return structure, found


def _shapes(call: Call) -> tuple[Any, list[Shape]]:
    """Returns the tree of outputs, and their shapes for all samples."""
    tree = call.network.structure(call.params, call.arrays)
    leaves, axes = jax.tree.leaves(tree), call.network.output_axes(tree)
    mapped = [a for a in call.network.inputs.mapped if a is not None]
    count = 0
    for array, axis in zip(call.arrays, call.network.inputs.mapped, strict=True):
        count = array.shape[axis] if axis is not None else count
    shapes = []
    for leaf, axis in zip(leaves, axes, strict=True):
        shape = list(leaf.shape)
        if axis is not None and mapped:
            if shape[axis] != 1:
                raise ValueError(
                    "expected outputs of one sample with size 1 along the axis of samples "
                    f"{axis}, as vmap_axes say, got shape {leaf.shape}"
                )
            shape[axis] = count
        elif axis is None and mapped:
            raise ValueError("expected an axis of samples for every output in vmap_axes, got None")
        shapes.append(tuple(shape))
    return tree, shapes
