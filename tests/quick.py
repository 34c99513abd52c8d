"""Compiling fast what runs once: most of what the tests cost is the time of the compiler."""

import functools
from typing import Any

import jax

# The graph is simplified as ever; LLVM does not optimise the code. Values round in another way.
jit: Any = functools.partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    },
)


def kernels(net: Any, x1: Any, x2: Any = None, get: Any = ("nngp", "ntk")) -> Any:
    """Returns kernels of a network by one compilation for all of its layers."""
    return jit(lambda net, x1, x2: net.kernel_fn(x1, x2, get))(net, x1, x2)
