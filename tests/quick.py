"""Compiling fast what runs once: most of what the tests cost is the time of the compiler."""

import functools
from typing import Any

import jax

# The graph is simplified as ever; LLVM does not optimise the code, which comes from the emitters
# that compile fastest, in one piece. Values round in another way. It takes a third of the time.
_QUICK: dict[str, Any] = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}
# The values that XLA has by itself: flags once read stay until others are read.
_OPTIMISED: dict[str, Any] = {
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
    "xla_cpu_use_fusion_emitters": True,
    "xla_cpu_parallel_codegen_split_count": 32,
}


@functools.cache
def _known(name: str, value: Any) -> bool:
    """Returns whether this version of XLA has an option: options come and go."""
    try:
        jax.jit(lambda: 0, compiler_options={name: value})()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def _of_this_version(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if _known(name, value)}


def jit(function: Any) -> Any:
    """Returns a function that is compiled fast."""
    return jax.jit(function, compiler_options=_of_this_version(_QUICK))


def optimised_jit(function: Any) -> Any:
    """Returns a function that is compiled as users compile, whatever the flags.

    For what runs longer than it compiles: LLVM vectorises random draws.
    """
    return jax.jit(function, compiler_options=_of_this_version(_OPTIMISED))


def flags(optimised: bool) -> str:
    """The options as flags of XLA, for everything that a process compiles."""
    options = _of_this_version(_OPTIMISED if optimised else _QUICK)
    return " ".join(f"--{name}={str(value).lower()}" for name, value in options.items())


def kernels(net: Any, x1: Any, x2: Any = None, get: Any = ("nngp", "ntk")) -> Any:
    """Returns kernels of a network by one compilation for all of its layers."""
    return jit(lambda net, x1, x2: net.kernel_fn(x1, x2, get))(net, x1, x2)
