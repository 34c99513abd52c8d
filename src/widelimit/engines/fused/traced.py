"""The fused engine inside traced code: what JAX compiles calls it back.

By `buffer_callback`, which hands over the memory of the arrays. The arguments of `pure_callback`
are arrays of JAX, which may not be there yet; to wait for them blocks the threads that bring them.
For the same reason nothing of JAX is called in a callback.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.experimental.buffer_callback import buffer_callback

from widelimit._cache import Cache, kept_with
from widelimit.engines.engine import NetworkEngine
from widelimit.engines.fused.activations.base import RefusedError
from widelimit.engines.fused.bridge import network_kernel
from widelimit.engines.fused.kernels import FlatKernel, KernelValues, SpatialKernel
from widelimit.engines.plan import behind_flatten, leading_flatten
from widelimit.engines.reference import ReferenceEngine
from widelimit.engines.request import Request
from widelimit.kernel.kernel import Kernel
from widelimit.layers.base import Layer
from widelimit.layers.context import Context

# Without spatial axes plain JAX computes fewer pairs before a callback has begun (0.3 ms).
_FEW_PAIRS = 2**12


def few_pairs(net: Layer, shapes: tuple[Any, Any], request: Request) -> str | None:
    """Returns that plain JAX is quicker, as a reason, or None."""
    signal = behind_flatten(net, shapes, request.axes)[2]
    if signal.spatial or signal.n1 * signal.n2 >= _FEW_PAIRS:
        return None
    return f"fewer than {_FEW_PAIRS} pairs take less time than to call out of traced code"


class TracedEngine(NetworkEngine):
    """The fused engine for traced values; derivatives are those of plain JAX."""

    name = "fused"
    reason = "called back from traced code, which plain JAX differentiates"

    def __init__(self, net: Layer, shape: Any, request: Request) -> None:
        """Makes an engine.

        Args:
          net: a network without a `refusal`.
          shape: shape of x1.
          request: what is asked for.

        Raises:
          RefusedError: what the fused engine runs with concrete values only.
        """
        if jax.device_count() > 1:
            raise RefusedError("traced code may run on several devices")
        leaves, structure = jax.tree.flatten(net)
        if any(np.ndim(leaf) for leaf in leaves):
            raise RefusedError("hyper-parameters are arrays, in traced code")
        constants = tuple(leaf if isinstance(leaf, float) else None for leaf in leaves)
        self._traced = [leaf for leaf in leaves if not isinstance(leaf, float)]
        dtype = np.dtype(jax.dtypes.canonicalize_dtype(np.float64))
        self._call = _TracedCall(structure, constants, shape, request, dtype)
        self._template = _templates.get(self._call, self._call.template)
        if self._template.kept_entries:
            raise RefusedError("positions are left at the end of its program, in traced code")
        if self._template.counted:
            raise RefusedError("a table of a series may end before variances do, in traced code")
        if not self._traced:
            with jax.ensure_compile_time_eval():
                self._template.engine  # noqa: B018 - bound now, not in a callback

    def prepare(self, x: Any, pattern: Any = None, mask_constant: Any = None) -> Any:
        """Returns samples as they are.

        Raises:
          ValueError: patterns or masks.
        """
        if pattern is not None or mask_constant is not None:
            raise ValueError("expected inputs without patterns and masks for the fused engine")
        return x

    def kernels(self, first: Any, second: Any, share: bool) -> Kernel:
        """Returns the kernel between samples."""
        numbers = None
        if self._traced:
            numbers = jnp.stack([jnp.asarray(v, self._call.dtype) for v in self._traced])
        call = dataclasses.replace(self._call, share=share)
        return _kernel(call, numbers, first, second)


@dataclasses.dataclass(frozen=True)
class _TracedCall:
    """What is static of a call; equal for equal calls, so that they share what is compiled.

    Attributes:
      structure: of the network.
      constants: its hyper-parameters, None for those that are traced.
      shape: shape of x1.
      request: what is asked for.
      dtype: the working dtype.
      share: whether no x2 was given.
    """

    structure: Any
    constants: tuple[float | None, ...]
    shape: tuple[int, ...]
    request: Request
    dtype: np.dtype
    share: bool = False

    def network(self, numbers: Any) -> Layer:
        """Returns the network with traced hyper-parameters, or with numbers in their place."""
        given = iter(() if numbers is None else numbers)
        leaves = [next(given) if value is None else value for value in self.constants]
        net: Layer = jax.tree.unflatten(self.structure, leaves)
        return net

    def template(self) -> FlatKernel | SpatialKernel:
        """Returns the kernel of a network of this structure."""
        some = [1.0] * len(self.constants)
        return network_kernel(self.network(some), self.shape, self.request)[0]

    def by_plain_jax(self, numbers: Any, x1: Any, x2: Any) -> Kernel:
        """Returns the kernel by the reference engine."""
        engine = ReferenceEngine(self.network(numbers), self.shape, self.request, "derivatives")
        second = None if x2 is None else engine.prepare(x2)
        return engine.kernels(engine.prepare(x1), second, self.share)


_templates = Cache(64)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _kernel(call: _TracedCall, numbers: Any, x1: Any, x2: Any) -> Kernel:
    """Returns the kernel between samples.

    Args:
      call: what is static.
      numbers: hyper-parameters that are traced, in one array; None without any.
      x1: samples.
      x2: likewise, or None for x1.
    """
    net, flatten = leading_flatten(call.network(numbers))
    if flatten is not None:
        x1, x2 = (None if x is None else flatten.apply((), x, Context()) for x in (x1, x2))
    template = _templates.get(dataclasses.replace(call, share=False), call.template)
    axis = template.batch_axis
    sizes = x1.shape[axis], (x1 if x2 is None else x2).shape[axis]
    host = _Host(call, (1, x1.ndim, x1.ndim), template)
    with jax.enable_x64(template.dtype == np.float64):  # layers behind space may want float64
        outline = template.outline(sizes, x2 is None)
        found = buffer_callback(host, outline, vmap_method="expand_dims")(numbers, x1, x2)
    return template.of(net).public(KernelValues(**found), sizes, x2 is None, call.share)


@functools.partial(_kernel.defjvp, symbolic_zeros=True)
def _derivative(call: _TracedCall, primals: Any, tangents: Any) -> tuple[Kernel, Kernel]:
    """Returns the kernel, and its derivative by plain JAX."""
    kernel = _kernel(call, *primals)
    leaves, structure = jax.tree.flatten(primals)
    given = jax.tree.leaves(tangents, is_leaf=lambda t: isinstance(t, SymbolicZero))
    varied = [i for i, tangent in enumerate(given) if not isinstance(tangent, SymbolicZero)]

    def reference(*values: Any) -> Kernel:
        known = dict(zip(varied, values, strict=True))
        return call.by_plain_jax(
            *jax.tree.unflatten(structure, [known.get(i, v) for i, v in enumerate(leaves)])
        )

    values, directions = [leaves[i] for i in varied], [given[i] for i in varied]
    _, tangent = jax.jvp(reference, values, directions)
    return kernel, jax.tree.unflatten(jax.tree.structure(kernel), jax.tree.leaves(tangent))


@dataclasses.dataclass(frozen=True)
class _Host:
    """What is called back: writes values of samples into arrays, by NumPy alone.

    Attributes:
      call: what is static.
      axes: how many axes the hyper-parameters, x1 and x2 have; under `vmap` more stand in front.
      template: the kernel of networks of this structure.
    """

    call: _TracedCall
    axes: tuple[int, int, int]
    template: FlatKernel | SpatialKernel = dataclasses.field(compare=False)

    def __call__(self, _: Any, out: dict[str, Any], *given: Any) -> None:
        """Writes the values of all calls that `vmap` has put together, one by one."""
        arrays: list[Any] = [None if v is None else np.asarray(v) for v in given]
        targets = {name: np.asarray(array) for name, array in out.items()}
        name, target = next(iter(targets.items()))
        lead = target.shape[: target.ndim - (1 if name in ("cov1", "cov2") else 2)]

        @functools.lru_cache(maxsize=2)  # samples that calls share
        def samples(side: int, place: tuple[int, ...], numbers: bytes) -> _FiniteSamples:
            return _FiniteSamples.of(self._bound(numbers), arrays[side][place])

        for index in np.ndindex(lead):
            places = [
                () if array is None else _place(array.shape[: array.ndim - axes], index)
                for array, axes in zip(arrays, self.axes, strict=True)
            ]
            numbers = b"" if arrays[0] is None else arrays[0][places[0]].tobytes()
            first = samples(1, places[1], numbers)
            second = None if arrays[2] is None else samples(2, places[2], numbers)
            _write(self._bound(numbers), first, second, {n: t[index] for n, t in targets.items()})

    def _bound(self, numbers: bytes) -> FlatKernel | SpatialKernel:
        """Returns the kernel of the network with these hyper-parameters."""
        if not numbers:
            return self.template
        values = np.frombuffer(numbers, self.call.dtype).tolist()

        def bind() -> FlatKernel | SpatialKernel:
            return self.template.of(leading_flatten(self.call.network(values))[0])

        return kept_with(self.template, numbers, bind)


class _FiniteSamples(NamedTuple):
    """Samples, and which of them are finite.

    Attributes:
      finite: [n].
      prepared: the samples, with zeros for those that are not.
    """

    finite: np.ndarray
    prepared: Any

    @classmethod
    def of(cls, kernel: FlatKernel | SpatialKernel, x: np.ndarray) -> _FiniteSamples:
        """Returns samples as the kernel reads them."""
        features = tuple(axis for axis in range(x.ndim) if axis != kernel.batch_axis)
        finite = np.isfinite(x).all(axis=features)
        if not finite.all():
            x = np.where(np.expand_dims(finite, features), x, 0)
        return cls(finite, kernel.prepare(x))


def _write(
    kernel: FlatKernel | SpatialKernel,
    first: _FiniteSamples,
    second: _FiniteSamples | None,
    targets: dict[str, np.ndarray],
) -> None:
    """Writes the values of samples, NaN for those that are not finite."""
    values = kernel.values(first.prepared, None if second is None else second.prepared)
    other = first if second is None else second
    with np.errstate(over="ignore"):
        for name, target in targets.items():
            target[...] = getattr(values, name)
            if name != "cov2":
                target[~first.finite] = np.nan
            if name != "cov1":
                target[..., ~other.finite] = np.nan


def _place(lead: tuple[int, ...], index: tuple[int, ...]) -> tuple[int, ...]:
    """Returns where an argument of a call stands; it has axes of size 1 where calls share it."""
    return tuple(0 if size == 1 else i for size, i in zip(lead, index, strict=True))
