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

# Where none is given.
_WHOLE = NtkImplementation.JACOBIAN_CONTRACTION


class EmpiricalNtk:
    """The function that `empirical_ntk_fn` returns."""

    def __init__(self, kernels: Kernels, explains: bool = False) -> None:
        """Keeps the kernels of the network, and whether to explain them when called."""
        self._kernels, self._explains = kernels, explains

    def __call__(self, x1: Inputs, x2: Inputs, params: Params, **kwargs: object) -> PyTree:
        """Returns the NTK between x1 and x2 (None for x1); see `empirical_ntk_fn`."""
        if self._explains:
            return self.explain(x1, x2, params, **kwargs)
        return self._kernels(("ntk",), x1, x2, params, kwargs)["ntk"]

    def explain(self, x1: Inputs, x2: Inputs, params: Params, **kwargs: object) -> PyTree:
        """Returns for every output how structured derivatives treat each parameter.

        Each is an `Explanation`, a table to print, in a tree like f(params, x1). Nothing is
        computed. A parameter without a rule has its Jacobian contracted: the number is the same.

        Raises:
          TypeError: as calling it does.
          ValueError: likewise.
        """
        return self._kernels.explain(x1, x2, params, kwargs)

    def chunks(self, x1: Inputs, x2: Inputs, params: Params, **kwargs: object) -> PyTree:
        """Returns for every output how its derivatives are cut to fit the budget; computes nothing.

        Each is a `Chunks` of Jacobians, or `Blocks` of samples for structured derivatives, or None
        for an output without entries, in a tree like f(params, x1).

        Raises:
          ValueError: there is no budget, or nothing fits into it; and as calling it does.
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
    both copies of each axis side by side. Trace axes are left out and averaged over, diagonal axes
    appear once: with `trace_axes=(-1,)`, `diagonal_axes=(1,)` it is [n1, n2, h]. Several outputs
    give a tree of kernels, without those between different outputs.

    With J the derivatives of an output with respect to all real parameters the NTK is J1 J2^H. A
    complex parameter counts as two real ones: of f holomorphic in the parameters, with derivative
    D, this is 2 D1 D2^H. Products are added up in float32 at least.

    Args:
      f: f(params, x, **kwargs), any function of trees of arrays to trees of arrays.
      trace_axes: axes of the outputs to take the mean over.
      diagonal_axes: axes of which only equal indices are kept.
      vmap_axes: where samples are, if f treats them independently, which makes the kernel cheaper:
        one integer for inputs and outputs, a tree of those, or a triple of axes of x, axes of
        f(x), and a dict of axes of keywords. None inside stands for what is not mapped.
      implementation: see `NtkImplementation`; all give the same numbers. None stands for Jacobian
        contraction, and for AUTO within a budget.
      _j_rules: of no effect; here for scripts that pass it.
      _s_rules: of no effect; here for scripts that pass it.
      _fwd: of no effect; here for scripts that pass it.
      memory: bytes, or text like "2GiB", that derivatives may take beside parameters, inputs and
        the kernel. Then they are computed in chunks of samples, outputs and parameters, which
        `ntk_fn.chunks(x1, x2, params)` describes, as Jacobians or as the factors that structured
        derivatives multiply; their kernel has no derivatives in reverse mode. None computes all at
        once.
      subset: parameters to differentiate by: None for all; a pattern such as "*/lora_*" of
        paths like "layers/0/kernel", or a list of patterns; a function of path and leaf; or a tree
        of booleans like params, or like its upper part (a module of booleans is one).
      explain: whether the function returned tells, instead of the kernel, which rules structured
        derivatives have for each parameter, and why none: see `EmpiricalNtk.explain`.

    The function returned takes x1, x2 (None for x1) and params. Of a keyword that is a tuple of
    two, the first belongs to x1, the second to x2; a random key `rng` is shared by equal inputs,
    and another one is made from it for an x2 that is not x1; others are the same for both.

    Raises:
      TypeError: f is no function. The function returned raises it for parameters that are no
        floating-point numbers, and outputs that are no arrays.
      ValueError: a wrong budget. The function returned raises it for f that does not depend on the
        parameters, wrong or overlapping axes, and sizes that do not fit.
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
    """Returns a function `nngp_fn(x1, x2, params, **kwargs)`: products of outputs of a network.

    Its layout is that of `empirical_ntk_fn`: f(x1) f(x2)^H, the mean over trace axes.

    Args:
      f: f(params, x, **kwargs).
      trace_axes: axes of the outputs to take the mean over.
      diagonal_axes: axes of which only equal indices are kept.

    Raises:
      TypeError: f is no function. The function returned raises it for outputs that are no arrays,
        and ValueError for wrong axes.
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
    those for several outputs); None stands for ("nngp", "ntk").

    Args:
      f: as all others, see `empirical_ntk_fn`.
      trace_axes: axes of the outputs to take the mean over.
      diagonal_axes: axes of which only equal indices are kept.
      vmap_axes: where samples are, if f treats them independently.
      implementation: how the NTK is computed.
      _j_rules: of no effect; here for scripts that pass it.
      _s_rules: of no effect; here for scripts that pass it.
      _fwd: of no effect; here for scripts that pass it.
      memory: budget of the NTK.
      subset: parameters of the NTK.

    Raises:
      TypeError: as `empirical_ntk_fn`.
      ValueError: as `empirical_ntk_fn`; the function returned also raises it for an unknown `get`.
      KeyError: an unknown implementation.
    """
    del _j_rules, _s_rules, _fwd
    kernels = _kernels(f, trace_axes, diagonal_axes, vmap_axes, implementation, memory, subset)

    def kernel_fn(x1: Inputs, x2: Inputs, get: Get, params: Params, **kwargs: object) -> PyTree:
        names = parse_get(get, KERNELS)
        found = kernels(names, x1, x2, params, kwargs)
        return jax.tree.map(
            lambda *leaves: as_asked("EmpiricalKernel", get, names, leaves),
            *(found[name] for name in names),
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
    found = _WHOLE if budget is None else NtkImplementation.AUTO
    if implementation is not None:
        found = find_implementation(implementation)
    if budget is not None and found not in CUT:
        raise ValueError(
            "expected implementation JACOBIAN_CONTRACTION, STRUCTURED_DERIVATIVES or AUTO with a "
            f"budget of memory, got {found.name}: `wl.gram` computes any kernel function in tiles "
            "of samples"
        )
    trace_axes, diagonal_axes, vmap_axes = own((trace_axes, diagonal_axes, vmap_axes))
    return Kernels(f, EmpiricalOptions(trace_axes, diagonal_axes, vmap_axes, found, budget, subset))
