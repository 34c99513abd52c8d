"""The fused engine inside traced code: what JAX compiles calls it back."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from jax.custom_derivatives import SymbolicZero

from widelimit.engines.engine import NetworkEngine
from widelimit.engines.fused.activations.base import RefusedError
from widelimit.engines.fused.callbacks import TracedCall
from widelimit.engines.fused.derivatives import Values, call_back, values_of
from widelimit.engines.fused.kernels import KernelValues
from widelimit.engines.plan import behind_flatten, leading_flatten
from widelimit.engines.reference import ReferenceEngine
from widelimit.engines.request import Request
from widelimit.kernel.kernel import Kernel
from widelimit.layers.base import Layer

# Without spatial axes plain JAX computes fewer pairs before a callback has begun (0.3 ms).
_FEW_PAIRS = 2**12


def few_pairs(net: Layer, shapes: tuple[Any, Any], request: Request) -> str | None:
    """Returns that plain JAX is quicker, as a reason, or None."""
    signal = behind_flatten(net, shapes, request.axes)[2]
    if signal.spatial or signal.n1 * signal.n2 >= _FEW_PAIRS:
        return None
    return f"fewer than {_FEW_PAIRS} pairs take less time than to call out of traced code"


class TracedEngine(NetworkEngine):
    """The fused engine for traced values; derivatives too, where its programs know them."""

    name = "fused"
    reason = "called back from traced code"

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
        self._call = TracedCall(structure, constants, shape, request, dtype)
        self._template = self._call.template()
        if self._template.kept_entries:
            raise RefusedError("positions are left at the end of its program, in traced code")
        if self._template.counted:
            raise RefusedError("a table of a series may end before variances do, in traced code")
        undifferentiable = self._template.undifferentiable
        if undifferentiable is not None:
            self.reason = f"{self.reason}, which plain JAX differentiates: {undifferentiable}"
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
        call = dataclasses.replace(self._call, share=share)
        whole = self._template.whole
        return (_whole_kernel if whole else _kernel)(call, tuple(self._traced), first, second)


def _kernel(call: TracedCall, numbers: Any, x1: Any, x2: Any) -> Kernel:
    """Returns the kernel between samples; JAX knows the layers behind space itself.

    Args:
      call: what is static.
      numbers: hyper-parameters that are traced.
      x1: samples.
      x2: likewise, or None for x1.
    """
    return _public(call, values_of(call, numbers, x1, x2), numbers, x1, x2)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _whole_kernel(call: TracedCall, numbers: Any, x1: Any, x2: Any) -> Kernel:
    """Returns the same, which plain JAX differentiates as a whole."""
    return _public(call, call_back(call, numbers, x1, x2), numbers, x1, x2)


@functools.partial(_whole_kernel.defjvp, symbolic_zeros=True)
def _whole_derivative(call: TracedCall, primals: Any, tangents: Any) -> tuple[Kernel, Kernel]:
    """Returns the kernel, and its derivative by plain JAX."""
    kernel = _whole_kernel(call, *primals)
    leaves, structure = jax.tree.flatten(primals)
    given = jax.tree.leaves(tangents, is_leaf=lambda t: isinstance(t, SymbolicZero))
    varied = [i for i, tangent in enumerate(given) if not isinstance(tangent, SymbolicZero)]

    def reference(*values: Any) -> Kernel:
        known = dict(zip(varied, values, strict=True))
        numbers, x1, x2 = jax.tree.unflatten(
            structure, [known.get(i, v) for i, v in enumerate(leaves)]
        )
        engine = ReferenceEngine(call.network(numbers), call.shape, call.request, "derivatives")
        second = None if x2 is None else engine.prepare(x2)
        return engine.kernels(engine.prepare(x1), second, call.share)

    values, directions = [leaves[i] for i in varied], [given[i] for i in varied]
    _, tangent = jax.jvp(reference, values, directions)
    return kernel, jax.tree.unflatten(jax.tree.structure(kernel), jax.tree.leaves(tangent))


def _public(call: TracedCall, values: Values, numbers: Any, x1: Any, x2: Any) -> Kernel:
    """Returns values as a kernel."""
    net, _ = leading_flatten(call.network(numbers))
    kernel = call.template().of(net)
    return kernel.public(KernelValues(**values), call.sizes(x1, x2), x2 is None, call.share)
