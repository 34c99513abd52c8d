"""Which engine computes a kernel, and the fused one behind the interface of `kernel_fn`."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from widelimit.covariance.signal import is_branches
from widelimit.engines.fused.bridge import FlatKernel, fused_kernel, refusal
from widelimit.engines.inputs import working_dtype
from widelimit.engines.plan import input_axes, input_signal, leading_flatten
from widelimit.engines.reference import leave
from widelimit.engines.request import Request, requested
from widelimit.layers.base import Layer, located, tree_shapes
from widelimit.layers.reshape import Identity


class Choice(NamedTuple):
    """The engine that runs a network, and why.

    Attributes:
      name: 'reference' or 'fused'.
      reason: one line for people.
    """

    name: str
    reason: str


ENGINES = ("auto", "fused", "reference")

_RECENT = 64  # networks and shapes that are kept ready for another call


def choose_engine(net: Layer, shape: Any) -> Choice:
    """Returns the engine that computes the kernel of `net` on concrete inputs of `shape`.

    Args:
      net: the network.
      shape: shape of an input, batch size included.
    """
    why = fused_refusal(net, shape, (None, None), tangent=True)
    if why is None:
        return Choice("fused", "pieces of covariances stay in cache; compiled by numba")
    whole = "whole" if is_flat(net, shape) else "layer by layer"
    return Choice("reference", f"plain JAX, compiled {whole}: {why}")


def fused_refusal(net: Layer, shape: Any, axes: Any, *, tangent: bool) -> str | None:
    """Returns why the fused engine does not run a network on inputs of `shape`."""
    with located(net.label):
        inner, signal = _reshaped(net, _hashable(shape), axes)
        return refusal(inner, signal, tangent)


@functools.lru_cache(maxsize=_RECENT)
def _reshaped(net: Layer, shape: Any, axes: Any) -> tuple[Layer, Any]:
    """Returns the network behind a Flatten that it begins with, and the signal that it gets."""
    inner, flatten = leading_flatten(net)
    if flatten is not None:
        flatten.check_input(shape, axes[0])
        shape = flatten.output_shape(shape)
        batch = flatten.batch_axis_out % 2
        axes = batch, 1 - batch
    return inner, input_signal(shape, shape, input_axes(inner, shape, axes))


def _hashable(shape: Any) -> Any:
    return tuple(map(_hashable, shape)) if is_branches(shape) else shape


def is_flat(net: Layer, shape: Any) -> bool:
    """Returns whether no activation of the network has spatial axes."""
    if leading_flatten(net)[1] is not None:
        return True
    if is_branches(shape) and any(is_branches(s) for s in shape):
        return all(is_flat(Identity(), s) for s in shape)
    return len(shape) == 2


class FusedCall:
    """A network and the shape of its inputs, ready for the fused engine.

    `of` returns those of recent calls again.

    Args:
      net: a network without a `fused_refusal`.
      shape: shape of the inputs.
      axes: (batch, channel) axes of the inputs, None where not given.
      tangent: whether the NTK is wanted.
    """

    @classmethod
    def of(cls, net: Layer, shape: Any, axes: Any, *, tangent: bool) -> FusedCall:
        """Returns what `FusedCall` makes of the arguments."""
        return _recent(net, shape, axes, tangent, working_dtype())

    def __init__(self, net: Layer, shape: Any, axes: Any, *, tangent: bool) -> None:
        self._flatten = leading_flatten(net)[1]
        inner, signal = _reshaped(net, shape, axes)
        self._kernel = fused_kernel(inner, signal, tangent=tangent)

    @property
    def flat(self) -> bool:
        """Whether no activation has spatial axes."""
        return isinstance(self._kernel, FlatKernel)

    @property
    def sample_bytes(self) -> int:
        """Bytes that `prepare` keeps of one sample."""
        return self._kernel.sample_bytes

    @property
    def itemsize(self) -> int:
        """Bytes of a number that is computed with."""
        return self._kernel.itemsize

    def prepare(self, *inputs: Any) -> tuple[Any, ...]:
        """Returns each of some inputs with what concerns them alone."""
        if self._flatten is not None:
            inputs = tuple(self._flatten.apply((), x) for x in inputs)
        return self._kernel.prepare(*inputs)

    def kernel(self, first: Any, second: Any, request: Request) -> Any:
        """Returns the kernel between prepared inputs, of `first` with itself if `second` is None.

        Args:
          first: inputs of x1.
          second: inputs of x2.
          request: what is asked for.
        """
        if isinstance(self._kernel, FlatKernel):
            nngp = "nngp" in request.fields
            return requested(self._kernel.kernel(first, second, nngp=nngp), request)
        own = bool({"cov1", "cov2"} & set(request.fields))
        cov, site = self._kernel.covariances(first, second, own=own)
        return leave(cov, site, site.masks_out, request)


@functools.lru_cache(maxsize=_RECENT)
def _recent(net: Layer, shape: Any, axes: Any, tangent: bool, _dtype: Any) -> FusedCall:
    return FusedCall(net, shape, axes, tangent=tangent)


def compute_fused(net: Layer, x1: Any, x2: Any, *, request: Request, **_: Any) -> Any:
    """Returns the same as `reference.compute`, for a network without a `fused_refusal`."""
    tangent = "ntk" in request.fields
    call = FusedCall.of(net, tree_shapes(x1), request.axes, tangent=tangent)
    first, *others = call.prepare(*(x for x in (x1, x2) if x is not None))
    return call.kernel(first, others[0] if others else None, request)
