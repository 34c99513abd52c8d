"""The outputs of a network between two sets of inputs, one by one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import PyTreeDef
from jaxtyping import Array, PyTree

from widelimit._pytree import AnyArray
from widelimit.finite.empirical.arguments import Arguments
from widelimit.finite.empirical.dependence import check_dependence
from widelimit.finite.empirical.kernel_axes import KernelAxes, Shape, resolve_axes
from widelimit.finite.empirical.network import (
    Network,
    Parameters,
    StaticInputs,
    output_names,
    real_output,
)
from widelimit.finite.empirical.sampled_output import SampledOutput
from widelimit.typing import ApplyFunction, Axes


@dataclasses.dataclass(frozen=True)
class Output:
    """The static description of one output, for x1 and x2.

    Attributes:
      index: index of the leaf of f(params, x).
      name: its name in errors.
      axis: its axis of samples; None if they are not mapped.
      axes: trace and diagonal axes.
      shapes: its shapes for x1 and for x2, with all samples.
      dtype: its dtype, the common one if both differ.
    """

    index: int
    name: str
    axis: int | None
    axes: KernelAxes
    shapes: tuple[Shape, Shape]
    dtype: np.dtype


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """A network and the arrays of a call.

    Attributes:
      network: the function, and the static description of its arguments.
      params: arrays of its parameters.
      arrays: arrays of its inputs and keywords; or the mapped ones, samples first, and the rest.
    """

    network: Network
    params: list[AnyArray]
    arrays: PyTree

    @classmethod
    def of(
        cls,
        f: ApplyFunction,
        params: tuple[Parameters, list[AnyArray]],
        arguments: Arguments,
        vmap_axes: PyTree,
        batch_size: int | None = None,
        like: Call | None = None,
    ) -> Call:
        """Returns f with its arguments, traced for the batches on which it will be called.

        Args:
          f: f(params, x, **kwargs).
          params: the result of `Parameters.of`.
          arguments: inputs and keywords.
          vmap_axes: axes of the samples, None if they are not mapped.
          batch_size: number of samples of further batches, unless there are fewer samples; None for
            no further batches.
          like: a call with other inputs, whose trace is used if batches have the same shapes.

        Raises:
          TypeError: outputs that are not arrays, or axes that are not integers.
          ValueError: axes that do not fit the inputs.
        """
        inputs, arrays = StaticInputs.of(arguments, vmap_axes)
        counts: tuple[int | None, ...] = (None,) if vmap_axes is None else (1,)
        if batch_size is not None:
            counts = tuple(sorted({1, max(1, min(batch_size, inputs.count(arrays)))}))
        if like is not None and like.network.fits(inputs, like.arrays, arrays):
            return cls(like.network, like.params, arrays)
        network, values = Network.of(f, params[0], inputs, params[1], arrays, counts)
        return cls(network, values, arrays)

    def function(self, index: int) -> Callable[[list[Array]], Array]:
        """Returns an output of all samples, in real numbers, as a function of real parameters."""
        return lambda real: real_output(self.network.whole(self.params, self.arrays, real)[index])

    def samples(self, index: int, axis: int) -> SampledOutput:
        """Returns an output sample by sample, in real numbers."""
        mapped, shared = self.network.inputs.split(self.arrays)

        def of_sample(arrays: list[Array]) -> Callable[[list[Array]], Array]:
            return lambda real: real_output(
                self.network.one(self.params, arrays, shared, real)[index]
            )

        return SampledOutput(of_sample, mapped, axis)

    def check_differentiable(self, outputs: list[Output]) -> None:
        """Raises if the outputs have no tangent kernel.

        Raises:
          TypeError: outputs that are not floating-point or complex numbers.
          ValueError: no output depends on the chosen parameters.
        """
        for output in outputs:
            if not jnp.issubdtype(output.dtype, jnp.inexact):
                raise TypeError(
                    "expected floating-point or complex numbers as outputs of f, got "
                    f"{output.dtype} numbers in {output.name} of shape {output.shapes[0]}"
                )
        real = jax.eval_shape(self.network.parameters.real, self.params)
        if self.network.inputs.outputs is None:
            check_dependence(
                lambda p, arguments: self.network.whole(arguments[0], arguments[1], p),
                real,
                (self.params, self.arrays),
            )
            return
        mapped, shared = jax.eval_shape(self.network.inputs.split, self.arrays)
        one = [jax.ShapeDtypeStruct(a.shape[1:], a.dtype) for a in mapped]
        check_dependence(
            lambda p, arguments: self.network.one(arguments[0], arguments[1], arguments[2], p),
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


def outputs_of(
    first: Call, second: Call | None, trace_axes: Axes, diagonal_axes: Axes
) -> tuple[PyTreeDef, list[Output]]:
    """Returns the tree of outputs, and the description of each.

    Args:
      first: the network on x1.
      second: the network on x2; None for x1.
      trace_axes: axes to take the mean over, the same for all outputs.
      diagonal_axes: axes that appear once.

    Raises:
      TypeError: outputs that are not arrays.
      ValueError: axes out of range, outputs for x2 that do not fit those for x1, or a mapped output
        of one sample whose axis of samples does not have size 1.
    """
    tree1, shapes1 = _shapes(first)
    tree2, shapes2 = (tree1, shapes1) if second is None else _shapes(second)
    structure: PyTreeDef = jax.tree.structure(tree1)
    if structure != jax.tree.structure(tree2):
        raise ValueError(
            "expected f(x1) and f(x2) with the same tree of outputs, got "
            f"{structure} and {jax.tree.structure(tree2)}"
        )
    axes, names = first.network.output_axes(), output_names(tree1)
    described = []
    leaves = zip(jax.tree.leaves(tree1), jax.tree.leaves(tree2), strict=True)
    for index, (pair, name, axis, *shapes) in enumerate(
        zip(leaves, names, axes, shapes1, shapes2, strict=True)
    ):
        resolved = resolve_axes(trace_axes, diagonal_axes, shapes[0], shapes[1], name)
        dtype = jnp.promote_types(*(leaf.dtype for leaf in pair))
        described.append(Output(index, name, axis, resolved, (shapes[0], shapes[1]), dtype))
    return structure, described


def only_output(call: Call, trace_axes: Axes) -> Output:
    """Returns the description of the single output of a network.

    Raises:
      TypeError: several outputs, or one that is not an array.
      ValueError: axes out of range.
    """
    _, outputs = outputs_of(call, None, trace_axes, ())
    if len(outputs) != 1:
        names = ", ".join(output.name for output in outputs)
        raise TypeError(f"expected f with one array as its output, got {len(outputs)}: {names}")
    return outputs[0]


def _shapes(call: Call) -> tuple[PyTree, list[Shape]]:
    """Returns the tree of outputs, and their shapes for all samples."""
    tree = call.network.outputs
    leaves, axes = jax.tree.leaves(tree), call.network.output_axes()
    mapped = [a for a in call.network.inputs.mapped if a is not None]
    count = call.network.inputs.count(call.arrays)
    shapes = []
    for leaf, axis, name in zip(leaves, axes, output_names(tree), strict=True):
        shape = list(leaf.shape)
        if axis is not None and mapped:
            if shape[axis] != 1:
                raise ValueError(
                    "expected outputs of one sample with size 1 along the axis of samples "
                    f"{axis}, as vmap_axes say, got {name} of shape {leaf.shape}"
                )
            shape[axis] = count
        elif axis is None and mapped:
            raise ValueError(
                "expected an axis of samples for every output in vmap_axes, got None for "
                f"{name} of shape {leaf.shape}"
            )
        shapes.append(tuple(shape))
    return tree, shapes
