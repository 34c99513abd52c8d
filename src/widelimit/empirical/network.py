"""One function with its inputs, as functions of the chosen parameters alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from widelimit.empirical.arguments import (
    Constants,
    Side,
    VmapAxes,
    is_array,
    join_arrays,
    mapped_axes,
    split_arrays,
)
from widelimit.empirical.subset import choose_leaves
from widelimit.varying import varying_like

Function = Callable[[list[Array]], Array]


@dataclasses.dataclass(frozen=True)
class Parameters:
    """What is static about parameters: how chosen ones become real arrays, and back.

    A complex array counts as two: its real and its imaginary part.

    Attributes:
      constants: leaves that are no arrays.
      chosen: for every array, whether the kernel is taken with respect to it.
    """

    constants: Constants
    chosen: tuple[bool, ...]

    @classmethod
    def of(cls, params: Any, subset: Any) -> tuple[Parameters, list[Any]]:
        """Returns the description and the arrays of a tree of parameters.

        Raises:
          TypeError: chosen leaves that are no floating-point or complex numbers.
          ValueError: a wrong subset.
        """
        flags = choose_leaves(params, subset)
        # Python numbers among the chosen become arrays.
        leaves, structure = jax.tree.flatten(params)
        leaves = [
            jnp.asarray(leaf) if flag and not is_array(leaf) else leaf
            for leaf, flag in zip(leaves, flags, strict=True)
        ]
        arrays, constants = split_arrays(jax.tree.unflatten(structure, leaves))
        chosen = [f for leaf, f in zip(leaves, flags, strict=True) if is_array(leaf)]
        return cls(constants, tuple(chosen)), arrays

    @classmethod
    def fixed(cls, params: Any) -> tuple[Parameters, list[Any]]:
        """Returns the description and the arrays of parameters none of which is chosen."""
        arrays, constants = split_arrays(params)
        return cls(constants, (False,) * len(arrays)), arrays

    def real(self, arrays: list[Any]) -> list[Array]:
        """Returns the chosen parameters as real arrays."""
        found = []
        for array, flag in zip(arrays, self.chosen, strict=True):
            if flag and jnp.iscomplexobj(array):
                found += [jnp.real(array), jnp.imag(array)]
            elif flag:
                found.append(jnp.asarray(array))
        return found

    def tree(self, arrays: list[Any], real: list[Array]) -> Any:
        """Returns the tree of all parameters, the chosen ones from real arrays."""
        given = iter(real)
        filled = []
        for array, flag in zip(arrays, self.chosen, strict=True):
            if flag and jnp.iscomplexobj(array):
                filled.append(jax.lax.complex(next(given), next(given)))
            else:
                filled.append(next(given) if flag else array)
        return join_arrays(filled, self.constants)


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What is static about inputs and keywords of f.

    Attributes:
      constants: leaves that are no arrays.
      mapped: the axis of samples of every array, None for arrays that all samples share.
      outputs: the axis of samples of the outputs, as given; None where samples are not mapped.
    """

    constants: Constants
    mapped: tuple[int | None, ...]
    outputs: Constants | None

    @classmethod
    def of(cls, side: Side, vmap_axes: Any) -> tuple[Inputs, list[Any]]:
        """Returns the description and the arrays of inputs.

        Raises:
          TypeError: axes that are no integers.
          ValueError: axes that do not fit the inputs, or numbers of samples that differ.
        """
        x = jax.tree.map(_as_array, side.x)
        arrays, constants = split_arrays((x, side.kwargs))
        if vmap_axes is None:
            return cls(constants, (None,) * len(arrays), None), arrays
        axes = VmapAxes.of(vmap_axes)
        mapped = mapped_axes(axes.inputs, x, "x")
        for name, axis in sorted(axes.of_kwargs(side.kwargs).items()):
            mapped += mapped_axes(axis, side.kwargs[name], f"keyword {name}")
        leaves = jax.tree.leaves((x, side.kwargs))
        kept = [axis for axis, leaf in zip(mapped, leaves, strict=True) if is_array(leaf)]
        counts = {a.shape[i] for a, i in zip(arrays, kept, strict=True) if i is not None}
        if len(counts) != 1:
            raise ValueError(
                "expected vmap_axes that map inputs with one number of samples, got "
                f"{sorted(counts) or 'no mapped input'}"
            )
        return cls(constants, tuple(kept), Constants.of(axes.outputs)), arrays

    def split(self, arrays: list[Any]) -> tuple[list[Array], list[Array]]:
        """Returns the mapped arrays with samples first, and the shared ones."""
        pairs = list(zip(arrays, self.mapped, strict=True))
        mapped = [jnp.moveaxis(a, axis, 0) for a, axis in pairs if axis is not None]
        return mapped, [a for a, axis in pairs if axis is None]

    def some(self, mapped: list[Array], shared: list[Array]) -> tuple[Any, dict[str, Any]]:
        """Returns inputs and keywords of a batch of some samples, given samples first."""
        own, common = iter(mapped), iter(shared)
        arrays = [
            next(common) if axis is None else jnp.moveaxis(next(own), 0, axis)
            for axis in self.mapped
        ]
        return join_arrays(arrays, self.constants)


class Callee:
    """A function as a static argument of compiled functions, also one that cannot be hashed.

    Modules that hold arrays are the same if they are one object.
    """

    def __init__(self, f: Callable[..., Any]) -> None:
        """Keeps the function."""
        self._f = f
        try:
            self._hash, self._is_hashable = hash(f), True
        except TypeError:
            self._hash, self._is_hashable = id(f), False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Returns what the function does."""
        return self._f(*args, **kwargs)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Callee):
            return False
        if self._f is other._f:
            return True
        return self._is_hashable and other._is_hashable and bool(self._f == other._f)


@dataclasses.dataclass(frozen=True)
class Network:
    """A function f with its inputs.

    Attributes:
      f: the function, f(params, x, **kwargs).
      parameters: what is static about its parameters.
      inputs: what is static about its inputs.
    """

    f: Callee
    parameters: Parameters
    inputs: Inputs

    def whole(self, params: list[Any], arrays: list[Any], real: list[Array]) -> list[Array]:
        """Returns the outputs of all samples, with these real parameters."""
        x, kwargs = join_arrays(arrays, self.inputs.constants)
        return output_leaves(self.f(self.parameters.tree(params, real), x, **kwargs))

    def some(
        self, params: list[Any], mapped: list[Array], shared: list[Array], real: list[Array]
    ) -> list[Array]:
        """Returns the outputs of a batch of some samples, given samples first."""
        x, kwargs = self.inputs.some(mapped, shared)
        return output_leaves(self.f(self.parameters.tree(params, real), x, **kwargs))

    def one(
        self, params: list[Any], mapped: list[Array], shared: list[Array], real: list[Array]
    ) -> list[Array]:
        """Returns the outputs of a batch of one sample, given without its axis."""
        return self.some(params, [a[None] for a in mapped], shared, real)

    def output_axes(self, tree: Any) -> list[int | None]:
        """Returns the axis of samples of every output, None for those that are not mapped.

        Args:
          tree: what `structure` returns.
        """
        if self.inputs.outputs is None:
            return [None] * len(jax.tree.leaves(tree))
        return mapped_axes(self.inputs.outputs.tree, tree, "outputs of f")

    def structure(self, params: list[Any], arrays: list[Any]) -> Any:
        """Returns the tree of the outputs, with shapes for a batch of one if samples are mapped.

        Raises:
          TypeError: outputs that are no arrays.
        """

        def call(params: list[Any], x: Any, kwargs: dict[str, Any]) -> Any:
            out = self.f(self.parameters.tree(params, self.parameters.real(params)), x, **kwargs)
            output_leaves(out)
            return out

        def on_all(params: list[Any], arrays: list[Any]) -> Any:
            return call(params, *join_arrays(arrays, self.inputs.constants))

        def on_some(params: list[Any], mapped: list[Array], shared: list[Array]) -> Any:
            return call(params, *self.inputs.some(varying_like(mapped, arrays), shared))

        if self.inputs.outputs is None:
            return jax.eval_shape(on_all, params, arrays)
        mapped, shared = jax.eval_shape(self.inputs.split, arrays)
        one = [jax.ShapeDtypeStruct((1, *a.shape[1:]), a.dtype) for a in mapped]
        return jax.eval_shape(on_some, params, one, shared)


def output_leaves(out: Any) -> list[Array]:
    """Returns the arrays of an output.

    Raises:
      TypeError: leaves that are no arrays, or no leaf.
    """
    leaves = jax.tree_util.tree_leaves_with_path(out)
    if not leaves:
        raise TypeError(f"expected arrays as outputs of f, got {out!r}")
    for path, leaf in leaves:
        if not is_array(leaf):
            where = jax.tree_util.keystr(path)
            raise TypeError(
                f"expected arrays as outputs of f, got {type(leaf).__name__}"
                + (f" at {where}" if where else "")
            )
    return [jnp.asarray(leaf) for _, leaf in leaves]


def real_output(y: Array) -> Array:
    """Returns a real array: of complex numbers both parts, along a new last axis."""
    return jnp.stack([y.real, y.imag], -1) if jnp.iscomplexobj(y) else y


def complex_kernel(kernel: Array) -> Array:
    """Returns the kernel of complex outputs from that of their parts, of shape [..., 2, 2].

    With A the derivatives of a complex output with respect to real parameters it is A1 A2^H.
    """
    real = kernel[..., 0, 0] + kernel[..., 1, 1]
    return jax.lax.complex(real, kernel[..., 1, 0] - kernel[..., 0, 1])


def _as_array(leaf: Any) -> Any:
    """Returns numbers as arrays, anything else as it is."""
    is_number = isinstance(leaf, int | float | complex) and not isinstance(leaf, bool)
    return jnp.asarray(leaf) if is_number else leaf
