"""Types of the arguments of public functions, by the names that signatures use.

They include everything legal: where JAX arrays are accepted, NumPy arrays are too, and numbers may
be traced. Trees are pytrees of JAX with such leaves. A static checker accepts any tree; the tests
of widelimit check all types at every call.
"""

from collections.abc import Callable, Sequence
from types import EllipsisType
from typing import (
    TYPE_CHECKING,
    Any,
    Protocol,
    SupportsIndex,
    TypeAlias,
    runtime_checkable,
)

import jax
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Num, PyTree, Real, Shaped, UInt32
from jaxtyping import Key as TypedKey

from widelimit.covariance.covariances import Covariances
from widelimit.covariance.offsets import Need
from widelimit.covariance.signal import Signal

# Numbers and arrays.

# Layers convert their hyper-parameters. A static checker does not know that: for it the types are
# those that layers compute with; for run-time checks and documentation they are all legal types.
if TYPE_CHECKING:
    Scalar: TypeAlias = float | np.number | Array
    Key: TypeAlias = Array
    Size: TypeAlias = int
    Sizes: TypeAlias = Sequence[int]
    Axes: TypeAlias = int | Sequence[int] | np.ndarray
    BasicIndex: TypeAlias = PyTree
else:
    Scalar = int | float | np.number | np.bool_ | Shaped[Array | np.ndarray, ""]
    """One real number; it may be traced."""
    Key = TypedKey[Array, ""] | UInt32[Array | np.ndarray, "_"]
    """A random key of JAX."""
    Size = SupportsIndex
    """A number of channels, heads and similar sizes."""
    Sizes = Sequence[SupportsIndex]
    """A number for every axis of a window."""
    Axes = SupportsIndex | Sequence[SupportsIndex] | Shaped[Array | np.ndarray, "..."]
    """One axis of an array, or several."""
    BasicIndex = (
        SupportsIndex | slice | EllipsisType | tuple[SupportsIndex | slice | EllipsisType, ...]
    )
    """A basic index of NumPy: ints, slices, an ellipsis."""

Scalars: TypeAlias = Scalar | Sequence[Scalar] | Shaped[Array | np.ndarray, "..."]
"""One real number or several."""

TargetsLike: TypeAlias = (
    Real[Array | np.ndarray, "samples *outputs"]
    | Bool[Array | np.ndarray, "samples *outputs"]
    | Sequence[Scalar | list | tuple | Shaped[Array | np.ndarray, "..."]]
)
"""The training targets of the samples."""

SquareKernel: TypeAlias = Real[Array | np.ndarray, "n n *pairs"] | Real[Array | np.ndarray, ""]
"""A kernel of samples with themselves, (n, n, h, h, ...); one number if all axes are traced."""

TestKernel: TypeAlias = Real[Array | np.ndarray, "t n *pairs"] | Real[Array | np.ndarray, ""]
"""A kernel between a test and a training set, (t, n, h, h, ...); or one number."""

Outputs: TypeAlias = (
    Num[Array | np.ndarray, "samples *outputs"] | Bool[Array | np.ndarray, "samples *outputs"]
)
"""Outputs of the samples, or targets of the same shape; they may be complex."""

HermitianKernel: TypeAlias = Num[Array | np.ndarray, "n n *pairs"]
"""A kernel of samples with themselves, (n, n, h, h, ...); it may be complex."""

Vector: TypeAlias = Num[Array | np.ndarray, "*outputs"]
"""A vector, in its shape or flat."""

KernelArray: TypeAlias = Array | np.ndarray
"""One kernel."""

Kernels: TypeAlias = PyTree
"""A kernel as an array, or anything with fields `nngp` and `ntk`."""

# Shapes and axes.

Shape: TypeAlias = Sequence[SupportsIndex]
"""The shape of an array."""

Shapes: TypeAlias = PyTree[SupportsIndex]
"""The shape of an array, or a list or tuple of them for parallel inputs."""

GivenAxes: TypeAlias = tuple[int | None, int | None]
"""Batch and channel axis of inputs, None where the network decides."""

InputAxes: TypeAlias = PyTree[SupportsIndex]
"""Batch and channel axis of an input, or a tuple of such pairs for parallel inputs."""

# Trees.

Params: TypeAlias = PyTree
"""Parameters of a finite network: any pytree."""

Inputs: TypeAlias = PyTree[ArrayLike]
"""An array, a `Kernel`, a `MaskedArray`, or a list, tuple or other tree of them."""

Arrays: TypeAlias = PyTree[ArrayLike]
"""An array or a tree of arrays."""

Masks: TypeAlias = PyTree[Bool[Array | np.ndarray, "..."]]
"""A mask (True = masked), or a tree of masks; None without masks."""

Pattern: TypeAlias = PyTree
"""The pattern of a graph, or a tree of patterns, as `Aggregate` reads them."""

# Values that layers hand on; lists of branches are tuples.

Signals: TypeAlias = PyTree[Signal]
"""Descriptions of activations."""

Needs: TypeAlias = PyTree[Need]
"""Offsets that have to be stored."""

Moduli: TypeAlias = PyTree[SupportsIndex]
"""Moduli of folded offsets, per spatial axis; None for an axis without folding."""

Covs: TypeAlias = PyTree[Covariances]
"""Covariances between activations."""

VmapAxes: TypeAlias = PyTree[SupportsIndex]
"""Axes of samples: one, a tree, or a triple of those of inputs, outputs and keywords."""

Keywords: TypeAlias = dict[str, PyTree]
"""Keywords of a function, trees by name."""

# Requests and functions.

Integer: TypeAlias = int | Array
"""A whole number that may be traced."""

Bytes: TypeAlias = str | int | float | np.number
"""Bytes, or text like "4GiB"."""

Devices: TypeAlias = SupportsIndex | list[jax.Device] | tuple[jax.Device, ...] | None
"""Devices, a number of them, or None for all."""

Function: TypeAlias = Callable
"""Any function."""

Get: TypeAlias = str | Sequence[str] | None
"""Names of the requested kernels: one, several, or None for all."""


Subset: TypeAlias = PyTree[str | bool | np.bool_ | Callable]
"""Parameters chosen by patterns of their paths, a function of path and leaf, or booleans."""


@runtime_checkable
class InitFunction(Protocol):
    """`init_fn(key, input_shape)` returns an output shape and parameters."""

    def __call__(
        self, key: Key, input_shape: Shapes, /, *args: Any, **kwargs: Any
    ) -> tuple[Shapes, Params]:
        """Returns the shape of the output and random parameters."""


@runtime_checkable
class ApplyFunction(Protocol):
    """`f(params, x, **kwargs)`, a finite network: outputs from parameters and inputs."""

    def __call__(self, params: Params, x: Inputs, /, *args: Any, **kwargs: Any) -> PyTree:
        """Returns the outputs, an array or a tree of arrays."""


@runtime_checkable
class KernelFunction(Protocol):
    """`kernel_fn(x1, x2, get, **kwargs)`: kernels between inputs."""

    def __call__(self, x1: Inputs, x2: Inputs, /, *args: Any, **kwargs: Any) -> PyTree:
        """Returns the requested kernels."""


@runtime_checkable
class HasKernelFunction(Protocol):
    """A network, with its kernel function as an attribute."""

    @property
    def kernel_fn(self) -> KernelFunction:
        """The kernel function."""


NetworkLike: TypeAlias = (
    HasKernelFunction
    | KernelFunction
    | tuple[InitFunction, ApplyFunction, KernelFunction]
    | list[Function]
)
"""A network, its three functions, or a kernel function alone."""
