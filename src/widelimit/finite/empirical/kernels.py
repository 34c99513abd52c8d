"""Kernels of finite networks: empirical NNGP and NTK of any function of parameters and inputs."""

from __future__ import annotations

from collections.abc import Callable

import jax
from jaxtyping import PyTree

from widelimit._pytree import own
from widelimit.finite.empirical.compiled import EmpiricalOptions, Kernels
from widelimit.finite.empirical.implementations import NtkImplementation, find_implementation
from widelimit.finite.empirical.within_memory import CUT
from widelimit.gram.sizes import parse_memory
from widelimit.kernel.get import KERNELS, as_asked, parse_get
from widelimit.typing import ApplyFunction, Axes, Bytes, Get, Inputs, Params, Subset, VmapAxes

# The implementation if none is passed.
_WHOLE = NtkImplementation.JACOBIAN_CONTRACTION


class EmpiricalNtk:
    """The function `ntk_fn(x1, x2, params, **kwargs)` that `empirical_ntk_fn` returns."""

    def __init__(self, kernels: Kernels, explains: bool = False) -> None:
        """Stores the kernels of the network, and whether calls return explanations instead."""
        self._kernels, self._explains = kernels, explains

    def __call__(self, x1: Inputs, x2: Inputs, params: Params, **kwargs: object) -> PyTree:
        """Returns the NTK between x1 and x2.

        Args:
          x1: tree of inputs.
          x2: tree of inputs, None for x1.
          params: tree of parameters.
          **kwargs: keywords of f; see `empirical_ntk_fn`.

        Raises:
          TypeError: see `empirical_ntk_fn`.
          ValueError: see `empirical_ntk_fn`.
        """
        if self._explains:
            return self.explain(x1, x2, params, **kwargs)
        return self._kernels(("ntk",), x1, x2, params, kwargs)["ntk"]

    def explain(self, x1: Inputs, x2: Inputs, params: Params, **kwargs: object) -> PyTree:
        """Returns a table of how structured derivatives treat each parameter, for every output.

        Each table is an `Explanation`, in a tree like f(params, x1); print it. No kernel is
        computed. The Jacobian of a parameter without a rule is contracted: the kernel is the same.

        Args:
          x1: tree of inputs.
          x2: tree of inputs, None for x1.
          params: tree of parameters.
          **kwargs: keywords of f.

        Raises:
          TypeError: as a call.
          ValueError: as a call.
        """
        return self._kernels.explain(x1, x2, params, kwargs)

    def chunks(self, x1: Inputs, x2: Inputs, params: Params, **kwargs: object) -> PyTree:
        """Returns how derivatives are cut to fit the memory budget, for every output.

        Each is a `Chunks` of Jacobians, or `Blocks` of samples for structured derivatives, or None
        for an output without entries, in a tree like f(params, x1). No kernel is computed.

        Args:
          x1: tree of inputs.
          x2: tree of inputs, None for x1.
          params: tree of parameters.
          **kwargs: keywords of f.

        Raises:
          ValueError: no budget was set, nothing fits into it, or as a call.
        """
        return self._kernels.chunks(x1, x2, params, kwargs)


def empirical_ntk_fn(
    f: ApplyFunction,
    trace_axes: Axes = (-1,),
    diagonal_axes: Axes = (),
    vmap_axes: VmapAxes = None,
    implementation: NtkImplementation | int | str | None = None,
    _j_rules: bool = True,
    _s_rules: bool = True,
    _fwd: bool | None = None,
    *,
    memory: Bytes | None = None,
    subset: Subset = None,
    explain: bool = False,
) -> EmpiricalNtk:
    """Returns a function `ntk_fn(x1, x2, params, **kwargs)`: the empirical NTK of a network.

    The kernel of outputs of shapes [n1, h, c] and [n2, h, c] has the shape [n1, n2, h, h, c, c]:
    both copies of each axis side by side. Trace axes are averaged over and do not appear, diagonal
    axes appear once: with `trace_axes=(-1,)`, `diagonal_axes=(1,)` it is [n1, n2, h]. For several
    outputs it is a tree of kernels, without those between different outputs.

    With J the derivatives of an output with respect to all real parameters the NTK is J1 J2^H. A
    complex parameter counts as two real ones: of f holomorphic in the parameters, with derivative
    D, this is 2 D1 D2^H. Products are summed in at least float32.

    Args:
      f: f(params, x, **kwargs), any function of trees of arrays to trees of arrays.
      trace_axes: axes of the outputs to take the mean over.
      diagonal_axes: axes of which only equal indices are returned.
      vmap_axes: axes of the samples, if f treats them independently, which makes the kernel
        cheaper: one integer for inputs and outputs, a tree of integers, or a triple of axes of x,
        axes of f(x), and a dict of axes of keywords. None in a tree means not mapped.
      implementation: see `NtkImplementation`; all compute the same kernel. None means Jacobian
        contraction, or AUTO with a memory budget.
      _j_rules: ignored; for compatibility.
      _s_rules: ignored; for compatibility.
      _fwd: ignored; for compatibility.
      memory: budget of derivatives beside parameters, inputs and the kernel: bytes, or text like
        "2GiB". Derivatives are then computed in chunks of samples, outputs and parameters, as
        Jacobians or as the factors of structured derivatives; `ntk_fn.chunks(x1, x2, params)`
        describes them. Such kernels cannot be differentiated in reverse mode. None computes all
        at once.
      subset: parameters to differentiate by: None for all; a pattern such as "*/lora_*" of
        paths like "layers/0/kernel", or a list of patterns; a function of path and leaf; or a tree
        of booleans like params, or like its upper part (a module of booleans is one).
      explain: whether `ntk_fn` returns, instead of the kernel, the rule that structured
        derivatives have for each parameter, or the reason for having none: see
        `EmpiricalNtk.explain`.

        `ntk_fn` takes x1, x2 (None for x1) and params. A keyword that is a tuple of two has one
        value for x1 and one for x2. A random key `rng` is shared by equal inputs; for an x2 that is
        not x1 another key is derived from it. Other keywords are the same for both.

    Raises:
      TypeError: f is not a function. `ntk_fn` raises it for parameters that are not floating-point
        numbers, and outputs that are not arrays.
      ValueError: an invalid budget. `ntk_fn` raises it if f does not depend on the parameters, axes
        are out of range or overlap, or sizes do not fit.
      KeyError: an unknown implementation.

    Example:
      >>> import jax.numpy as jnp
      >>> import widelimit as nt
      >>> ntk_fn = nt.empirical_ntk_fn(lambda params, x: x @ params)
      >>> ntk_fn(jnp.eye(3), None, jnp.ones((3, 5))).shape
      (3, 3)
    """
    del _j_rules, _s_rules, _fwd
    kernels = _kernels(f, trace_axes, diagonal_axes, vmap_axes, implementation, memory, subset)

    return EmpiricalNtk(kernels, explain)


def empirical_nngp_fn(
    f: ApplyFunction, trace_axes: Axes = (-1,), diagonal_axes: Axes = ()
) -> Callable[..., PyTree]:
    """Returns a function `nngp_fn(x1, x2, params, **kwargs)`: the empirical NNGP kernel.

    It is f(x1) f(x2)^H, averaged over trace axes, in the layout of `empirical_ntk_fn`.

    Args:
      f: f(params, x, **kwargs).
      trace_axes: axes of the outputs to take the mean over.
      diagonal_axes: axes of which only equal indices are returned.

    Raises:
      TypeError: f is not a function. `nngp_fn` raises it for outputs that are not arrays.
      ValueError: raised by `nngp_fn`: axes are out of range or overlap.

    Example:
      >>> import jax.numpy as jnp
      >>> import widelimit as wl
      >>> nngp_fn = wl.empirical_nngp_fn(lambda params, x: x @ params)
      >>> nngp_fn(jnp.eye(3), None, jnp.ones((3, 5))).shape
      (3, 3)
    """
    kernels = _kernels(f, trace_axes, diagonal_axes, None, None, None, None)

    def nngp_fn(x1: Inputs, x2: Inputs, params: Params, **kwargs: object) -> PyTree:
        return kernels(("nngp",), x1, x2, params, kwargs)["nngp"]

    return nngp_fn


def empirical_kernel_fn(
    f: ApplyFunction,
    trace_axes: Axes = (-1,),
    diagonal_axes: Axes = (),
    vmap_axes: VmapAxes = None,
    implementation: NtkImplementation | int | str | None = None,
    _j_rules: bool = True,
    _s_rules: bool = True,
    _fwd: bool | None = None,
    *,
    memory: Bytes | None = None,
    subset: Subset = None,
) -> Callable[..., PyTree]:
    """Returns a function `kernel_fn(x1, x2, get, params, **kwargs)`: empirical NNGP and NTK.

    `get` is "nngp", "ntk", or a tuple of names for a named tuple `EmpiricalKernel` (a tree of
    these for several outputs); None means ("nngp", "ntk").

    Args:
      f: f(params, x, **kwargs); see `empirical_ntk_fn` for all arguments.
      trace_axes: axes of the outputs to take the mean over.
      diagonal_axes: axes of which only equal indices are returned.
      vmap_axes: axes of the samples, if f treats them independently.
      implementation: the way to compute the NTK.
      _j_rules: ignored; for compatibility.
      _s_rules: ignored; for compatibility.
      _fwd: ignored; for compatibility.
      memory: memory budget of the NTK.
      subset: parameters of the NTK.

    Raises:
      TypeError: as `empirical_ntk_fn`.
      ValueError: as `empirical_ntk_fn`; `kernel_fn` also raises it for an unknown `get`.
      KeyError: an unknown implementation.

    Example:
      >>> import jax.numpy as jnp
      >>> import widelimit as wl
      >>> kernel_fn = wl.empirical_kernel_fn(lambda params, x: x @ params)
      >>> kernels = kernel_fn(jnp.eye(3), None, ("nngp", "ntk"), jnp.ones((3, 5)))
      >>> kernels.nngp.shape, kernels.ntk.shape
      ((3, 3), (3, 3))
    """
    del _j_rules, _s_rules, _fwd
    kernels = _kernels(f, trace_axes, diagonal_axes, vmap_axes, implementation, memory, subset)

    def kernel_fn(x1: Inputs, x2: Inputs, get: Get, params: Params, **kwargs: object) -> PyTree:
        names = parse_get(get, KERNELS)
        by_name = kernels(names, x1, x2, params, kwargs)
        return jax.tree.map(
            lambda *leaves: as_asked("EmpiricalKernel", get, names, leaves),
            *(by_name[name] for name in names),
        )

    return kernel_fn


def _kernels(
    f: ApplyFunction,
    trace_axes: Axes,
    diagonal_axes: Axes,
    vmap_axes: VmapAxes,
    implementation: object,
    memory: Bytes | None,
    subset: Subset,
) -> Kernels:
    budget = None if memory is None else parse_memory(memory)
    chosen = _WHOLE if budget is None else NtkImplementation.AUTO
    if implementation is not None:
        chosen = find_implementation(implementation)
    if budget is not None and chosen not in CUT:
        raise ValueError(
            "expected implementation JACOBIAN_CONTRACTION, STRUCTURED_DERIVATIVES or AUTO with a "
            f"budget of memory, got {chosen.name}: `wl.gram` computes any kernel function in tiles "
            "of samples"
        )
    trace_axes, diagonal_axes, vmap_axes = own((trace_axes, diagonal_axes, vmap_axes))
    return Kernels(
        f, EmpiricalOptions(trace_axes, diagonal_axes, vmap_axes, chosen, budget, subset)
    )
