"""Kernels of lowered networks: numbers by compiled loops, and what JAX makes of them.

`prepare` and `values` are NumPy alone, so that compiled code of JAX may call them back.
"""

from __future__ import annotations

import copy
import functools
import itertools
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from widelimit.covariance.signal import Signal
from widelimit.engines.fused.adjoints.cotangents import Cotangents, Pulled
from widelimit.engines.fused.adjoints.order import missing_partials
from widelimit.engines.fused.adjoints.rows import RowAdjoints
from widelimit.engines.fused.flat import FlatProgram, PreparedRows, RowKernels
from widelimit.engines.fused.instructions import NUMBERS
from widelimit.engines.fused.tape import affine_rows, at_path, has_counted, has_smooth
from widelimit.engines.request import Request
from widelimit.kernel.kernel import Kernel
from widelimit.layers.base import Layer

_Bound = TypeVar("_Bound", bound="NetworkKernel")


class KernelValues(NamedTuple):
    """What compiled loops tell of two sets of samples; None for what is not wanted.

    Arrays of NumPy: what is compiled takes them sooner than JAX makes arrays of them.

    Attributes:
      nngp: K of pairs [n1, n2], with axes [d, p] behind where there still is space.
      ntk: T of pairs, likewise.
      cov1: variances of x1 [n1], or covariances with themselves [n1, d, p].
      cov2: those of x2; None if x2 is x1.
    """

    nngp: Any = None
    ntk: Any = None
    cov1: Any = None
    cov2: Any = None


class NetworkKernel:
    """The kernel of a network, bound to its hyper-parameters when it first computes.

    Attributes:
      dtype: of the values.
      counted: whether it holds a series, whose table may end before variances do.
      itemsize: bytes of a number that is computed with.
      sample_bytes: bytes that `prepare` keeps of one sample.
      kept_entries: numbers that are kept of a pair at the end of the program, and what lays them
        out.
      undifferentiable: why programs do not run backwards; None if they do.
      whole: whether plain JAX differentiates the layers behind the program with it.
    """

    dtype: np.dtype
    counted: bool
    itemsize: int
    sample_bytes: int
    kept_entries = 0
    undifferentiable: str | None = None
    whole = False
    _net: Layer
    _signal: Signal

    @property
    def batch_axis(self) -> int:
        """The axis of the samples in what `prepare` takes."""
        return self._signal.batch_axis

    def names(self, symmetric: bool) -> tuple[str, ...]:
        """Returns which `KernelValues` there are."""
        raise NotImplementedError

    def outline(self, sizes: tuple[int, int], symmetric: bool) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes and dtypes of the values between sets of those sizes."""
        shapes = {"nngp": sizes, "ntk": sizes, "cov1": sizes[:1], "cov2": sizes[1:]}
        names = self.names(symmetric)
        return {name: jax.ShapeDtypeStruct(shapes[name], self.dtype) for name in names}

    def of(self: _Bound, net: Layer) -> _Bound:
        """Returns the kernel of a network that differs in hyper-parameters only."""
        other = copy.copy(self)
        for name in ("engine", "adjoint", "_precise", "_tail"):
            other.__dict__.pop(name, None)
        other._net = net
        return other

    @property
    def _stages(self) -> tuple[Any, ...]:
        """The parts of the program, each with sources and activations."""
        raise NotImplementedError

    def head(self, net: Layer) -> Layer:
        """Returns the layers of a network that the program runs."""
        raise NotImplementedError

    def nonlinearities(self, net: Layer) -> list[Layer]:
        """Returns the nonlinearities of a network that the program runs."""
        placed = [p for stage in self._stages for p in stage.activations if p is not None]
        return [at_path(net, one.path) for one in placed]

    def rows(self, net: Layer) -> jax.Array:
        """Returns the numbers of layers with weights, which may be traced, and zeros of others."""
        return jnp.concatenate(
            [
                affine_rows(stage.sources, stage.activations, net, self.dtype)
                for stage in self._stages
            ]
        )

    def rows_outline(self) -> jax.ShapeDtypeStruct:
        """Returns the shape and dtype of these numbers."""
        count = sum(len(stage.sources) for stage in self._stages)
        return jax.ShapeDtypeStruct((count, NUMBERS), self.dtype)


class FlatKernel(NetworkKernel):
    """The kernel of a network without spatial axes."""

    def __init__(self, program: FlatProgram, net: Layer, signal: Signal, request: Request) -> None:
        self._signal, self._request, self._program = signal, request, program
        self._net, self._signal_out = net, net.output_signal(signal)
        self._order = signal.to_canonical()
        self.dtype = np.dtype(jax.dtypes.canonicalize_dtype(np.float64))
        self._inner = np.dtype(np.float64) if has_smooth(program.activations) else self.dtype
        self.counted = has_counted(program.activations)
        self.itemsize = self._inner.itemsize
        self.sample_bytes = 8 * (signal.channels + 1) + (program.places + 2) * self.itemsize
        self.undifferentiable = missing_partials(program.activations)

    @functools.cached_property
    def engine(self) -> RowKernels:
        """The loops, bound to hyper-parameters."""
        return RowKernels(self._program, self._net, self._inner, self.dtype == np.float32)

    @functools.cached_property
    def adjoint(self) -> RowAdjoints:
        """The loops that run backwards."""
        return RowAdjoints(self._program, self._net)

    @property
    def _stages(self) -> tuple[FlatProgram, ...]:
        return (self._program,)

    def head(self, net: Layer) -> Layer:
        """Returns the layers that the program runs: all."""
        return net

    def prepare(self, x: Any) -> PreparedRows:
        """Returns inputs with their variances at every layer."""
        return self.engine.prepare(np.asarray(x).transpose(self._order))

    def prepare_to_pull(self, x: Any) -> PreparedRows:
        """Returns inputs as `pull` takes them."""
        return self.adjoint.kernels.prepare(np.asarray(x).transpose(self._order))

    def pull(
        self, first: PreparedRows, second: PreparedRows | None, given: Cotangents, inputs: bool
    ) -> Pulled:
        """Returns what cotangents become: see `RowAdjoints.pull`."""
        numbers, *sides = self.adjoint.pull(first, second, given, inputs)
        back = np.argsort(self._order)
        return Pulled(numbers, *(None if x is None else x.transpose(back) for x in sides))

    def names(self, symmetric: bool) -> tuple[str, ...]:
        """Returns which values there are."""
        fields = self._request.fields
        asked = {
            "nngp": "nngp" in fields,
            "ntk": "ntk" in fields and self._program.tangent,
            "cov1": "cov1" in fields or (symmetric and "cov2" in fields),
            "cov2": "cov2" in fields and not symmetric,
        }
        return tuple(itertools.compress(asked, asked.values()))

    def values(self, first: PreparedRows, second: PreparedRows | None) -> KernelValues:
        """Returns the values between prepared inputs; None stands for `first`."""
        names = self.names(second is None)
        k, t = self.engine.kernels(first, second, ("nngp" in names, "ntk" in names))
        k, t = rounded(k, self.dtype), rounded(t, self.dtype)
        cov1 = first.variances if "cov1" in names else None
        cov2 = second.variances if second is not None and "cov2" in names else None
        return KernelValues(k, t, cov1, cov2)

    def matrices(
        self, first: PreparedRows, second: PreparedRows | None
    ) -> dict[str, np.ndarray | None]:
        """Returns K and T between prepared inputs, None where not wanted; None is `first`."""
        k, t, *_ = self.values(first, second)
        if "ntk" in self._request.fields and t is None:
            t = self._no_tangent((len(first.x), len((first if second is None else second).x)))
        return {"nngp": k, "ntk": t}

    def _no_tangent(self, sizes: tuple[int, int]) -> np.ndarray:
        """Returns T without a tangent; as the reference: a scalar before the first weights."""
        return np.zeros(sizes if self._program.weighted else (), self.dtype)

    def kernel(self, first: PreparedRows, second: PreparedRows | None, share: bool) -> Kernel:
        """Returns the kernel between prepared inputs; None stands for `first`."""
        sizes = len(first.x), len((first if second is None else second).x)
        values = self.values(first, second)
        # No copies: the arrays lie where JAX wants them, and nobody else holds them.
        k, t = (None if v is None else jnp.from_dlpack(v) for v in (values.nngp, values.ntk))
        return self.public(values._replace(nngp=k, ntk=t), sizes, second is None, share)

    def public(
        self, values: KernelValues, sizes: tuple[int, int], symmetric: bool, share: bool
    ) -> Kernel:
        """Returns values, which may be traced, between sets of those sizes as a kernel."""
        program, fields = self._program, self._request.fields
        signal = self._signal_out.with_samples(*sizes)
        t, cov2 = values.ntk, values.cov1 if symmetric else values.cov2
        if "ntk" in fields and t is None:
            t = jnp.asarray(self._no_tangent(sizes))
        return Kernel(
            nngp=values.nngp,
            ntk=t,
            cov1=jnp.array(values.cov1, self.dtype) if "cov1" in fields else None,
            cov2=jnp.array(cov2, self.dtype) if "cov2" in fields and not share else None,
            x1_is_x2=jnp.asarray(symmetric) if "x1_is_x2" in fields else None,
            is_gaussian=program.gaussian,
            is_reversed=False,
            is_input=False,
            diagonal_batch=True,
            diagonal_spatial=False,
            shape1=signal.shape1,
            shape2=signal.shape2,
            batch_axis=signal.batch_axis,
            channel_axis=signal.channel_axis,
            mask1=None,
            mask2=None,
        )


def rounded(values: np.ndarray | None, dtype: np.dtype) -> Any:
    """Returns numbers in a dtype, infinite where that does not hold them; None for None."""
    if values is None or values.dtype == dtype:
        return values
    with np.errstate(over="ignore"):
        return values.astype(dtype, copy=False)
