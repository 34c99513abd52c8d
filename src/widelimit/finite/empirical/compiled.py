"""Empirical kernels of one function, compiled once per shape of its arguments."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.tree_util import PyTreeDef
from jaxtyping import Array, PyTree

from widelimit._pytree import AnyArray
from widelimit.finite.empirical.arguments import two_sides
from widelimit.finite.empirical.auto import cheapest
from widelimit.finite.empirical.implementations import TABLE, Implementation, NtkImplementation
from widelimit.finite.empirical.kernel_axes import kernel_dtype, kernel_of_arrays, mean_over_trace
from widelimit.finite.empirical.network import Network, Parameters, complex_kernel
from widelimit.finite.empirical.outputs import Call, Output, outputs_of
from widelimit.finite.empirical.sampled_output import kernel_of_samples
from widelimit.finite.empirical.structured import Explanation
from widelimit.finite.empirical.structured import explain as explain_structured
from widelimit.finite.empirical.subset import real_names
from widelimit.finite.empirical.within_memory import CutWork, work_within
from widelimit.tracing.varying import varying_together
from widelimit.typing import ApplyFunction, Axes, Inputs, Keywords, Params, Subset, VmapAxes


@dataclasses.dataclass(frozen=True)
class EmpiricalOptions:
    """Options of the kernels of a function; see `empirical_ntk_fn`."""

    trace_axes: Axes
    diagonal_axes: Axes
    vmap_axes: VmapAxes
    implementation: NtkImplementation
    memory: int | None
    subset: Subset


class Kernels:
    """Empirical kernels of one function, compiled once per shape of its arguments."""

    def __init__(self, f: ApplyFunction, options: EmpiricalOptions) -> None:
        """Checks f, as far as possible without arguments.

        Raises:
          TypeError: f is not a function.
        """
        if not callable(f):
            raise TypeError(f"expected a function f(params, x), got {type(f).__name__}")
        self.f, self.options = f, options
        self._compiled = jax.jit(self._compute, static_argnums=(0, 1, 2))

    def __call__(
        self, names: tuple[str, ...], x1: Inputs, x2: Inputs, params: Params, kwargs: Keywords
    ) -> dict[str, PyTree]:
        """Returns the kernels by name, each in a tree like the outputs of f."""
        first, second = self.calls(x1, x2, params, kwargs, "ntk" in names)
        if self.options.memory is None or "ntk" not in names:
            return self._run(names, first, second)
        rest = tuple(name for name in names if name != "ntk")
        kernels = self._run(rest, first, second) if rest else {}
        return {**kernels, "ntk": self._within_memory(first, second)}

    def calls(
        self, x1: Inputs, x2: Inputs, params: Params, kwargs: Keywords, differentiated: bool = True
    ) -> tuple[Call, Call | None]:
        """Returns the network on both sets of inputs, None for the second if it is the first."""
        one, other = two_sides(x1, x2, kwargs)
        if differentiated:
            parameters = Parameters.of(params, self.options.subset)
        else:
            parameters = Parameters.fixed(params)
        parameters, one, other = varying_together(parameters, one, other)
        axes = self.options.vmap_axes
        first = Call.of(self.f, parameters, one, axes)
        return first, other and Call.of(self.f, parameters, other, axes, like=first)

    def outputs(self, first: Call, second: Call | None) -> tuple[PyTreeDef, list[Output]]:
        """Returns the tree of outputs, and the description of each."""
        return outputs_of(first, second, self.options.trace_axes, self.options.diagonal_axes)

    def _run(self, names: tuple[str, ...], first: Call, second: Call | None) -> dict[str, PyTree]:
        networks = first.network, None if second is None else second.network
        arrays = (first.params, first.arrays), second and (second.params, second.arrays)
        return self._compiled(names, *networks, *arrays)

    def _compute(
        self,
        names: tuple[str, ...],
        network1: Network,
        network2: Network | None,
        arrays1: tuple[list[AnyArray], list[AnyArray]],
        arrays2: tuple[list[AnyArray], list[AnyArray]] | None,
    ) -> dict[str, PyTree]:
        first = Call(network1, *arrays1)
        second = None if network2 is None or arrays2 is None else Call(network2, *arrays2)
        structure, outputs = self.outputs(first, second)
        if "ntk" in names:
            first.check_differentiable(outputs)
        compute: dict[str, Callable[..., Array]] = {
            "nngp": _nngp,
            "ntk": functools.partial(_ntk, self.options.implementation),
        }
        return {
            name: jax.tree.unflatten(structure, [compute[name](first, second, o) for o in outputs])
            for name in names
        }

    def chunks(self, x1: Inputs, x2: Inputs, params: Params, kwargs: Keywords) -> PyTree:
        """Returns the chunks of every output in a tree like the outputs of f."""
        memory = self.options.memory
        if memory is None:
            raise ValueError("expected a budget `memory` to cut Jacobians to, got None")
        first, second = self.calls(x1, x2, params, kwargs)
        structure, outputs = self.outputs(first, second)
        works = [self._work(first, second, o, memory) for o in outputs]
        return jax.tree.unflatten(structure, [None if w is None else w.chunks for w in works])

    def explain(self, x1: Inputs, x2: Inputs, params: Params, kwargs: Keywords) -> PyTree:
        """Returns explanations of structured derivatives, for every output in a tree like f's."""
        first, second = self.calls(x1, x2, params, kwargs)
        structure, outputs = self.outputs(first, second)
        real = first.network.parameters.real(first.params)
        names = real_names(params, self.options.subset)

        def explain(output: Output) -> Explanation:
            return explain_structured(
                lambda way, p: _summed_ntk(way, first, second, output, p), real, names
            )

        return jax.tree.unflatten(structure, [explain(output) for output in outputs])

    def _within_memory(self, first: Call, second: Call | None) -> PyTree:
        structure, outputs = self.outputs(first, second)
        first.check_differentiable(outputs)
        memory = self.options.memory
        assert memory is not None
        real = first.network.parameters.real(first.params)
        kernels = []
        for output in outputs:
            work = self._work(first, second, output, memory)
            kernel = _no_entries(output, real) if work is None else work.run()
            kernels.append(_finished(kernel, output, real))
        return jax.tree.unflatten(structure, kernels)

    def _work(
        self, first: Call, second: Call | None, output: Output, memory: int
    ) -> CutWork | None:
        return work_within(first, second, output, memory, self.options.implementation)


def _nngp(first: Call, second: Call | None, output: Output) -> Array:
    """Returns the mean over trace axes of products of outputs."""
    y1 = first.values(output)
    y2 = y1 if second is None else second.values(output)
    kernel = kernel_of_arrays(y1, y2.conj() if jnp.iscomplexobj(y2) else y2, output.axes, y1.ndim)
    return mean_over_trace(kernel, output.axes, output.shapes[0])


def _ntk(
    implementation: NtkImplementation, first: Call, second: Call | None, output: Output
) -> Array:
    """Returns the mean over trace axes of products of derivatives."""
    real = first.network.parameters.real(first.params)
    ways = {
        key: functools.partial(_summed_ntk, compute, first, second, output)
        for key, compute in TABLE.items()
    }
    if implementation is NtkImplementation.AUTO:
        implementation = cheapest(ways, real)
    return _finished(ways[implementation](real), output, real)


def _summed_ntk(
    compute: Implementation, first: Call, second: Call | None, output: Output, real: list[Array]
) -> Array:
    """Returns the sum over trace axes, of real parameters and outputs."""
    if output.axis is None:
        f1 = first.function(output.index)
        f2 = None if second is None else second.function(output.index)
        return compute(f1, f2, real, output.axes)
    one = first.samples(output.index, output.axis)
    other = None if second is None else second.samples(output.index, output.axis)
    return kernel_of_samples(compute, one, other, real, output.axes)


def _no_entries(output: Output, real: list[Array]) -> Array:
    """Returns the sum over trace axes of an output without entries, in real numbers."""
    parts = (2,) * jnp.issubdtype(output.dtype, jnp.complexfloating)
    one, two = ((*shape, *parts) for shape in output.shapes)
    dtype = kernel_dtype(*(leaf.dtype for leaf in real))
    return jnp.zeros(output.axes.kernel_shape(one, two), dtype)


def _finished(kernel: Array, output: Output, real: list[Array]) -> Array:
    """Returns the kernel from its sum over trace axes, in real numbers.

    For every implementation its dtype is that of output and parameters, at least float32.
    """
    dtype = kernel_dtype(jnp.finfo(output.dtype).dtype, *(leaf.dtype for leaf in real))
    kernel = kernel.astype(jnp.promote_types(kernel.dtype, dtype))
    if jnp.issubdtype(output.dtype, jnp.complexfloating):
        kernel = complex_kernel(kernel)
    return mean_over_trace(kernel, output.axes, output.shapes[0])
