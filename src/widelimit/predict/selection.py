"""The kernels of a request: those of modes of inference, and those in containers."""

from collections.abc import Mapping

import jax.numpy as jnp

from widelimit.typing import KernelArray, Kernels

# Every mode of inference, and the kernel that drives it.
DRIVING_KERNEL = {"nngp": "nngp", "ntk": "ntk", "ntkgp": "ntk"}
MODES = tuple(DRIVING_KERNEL)


def prior_kernel(mode: str) -> str:
    """Returns the kernel that is the covariance before training."""
    return "ntk" if mode == "ntkgp" else "nngp"


def is_one_kernel(kernels: Kernels) -> bool:
    """Returns whether this is one kernel, rather than a container with fields `nngp` and `ntk`."""
    return not (hasattr(kernels, "nngp") or hasattr(kernels, "ntk"))


def check_is_kernel(name: str, kernels: object) -> None:
    """Raises TypeError if this is a function, a network or a triple instead of a kernel."""
    triple = isinstance(kernels, tuple) and any(map(callable, kernels))
    if callable(kernels) or triple or hasattr(kernels, "kernel_fn"):
        kind = "a network" if triple or hasattr(kernels, "kernel_fn") else "a function"
        raise TypeError(
            f"expected {name} to be a kernel, got {kind}: call its kernel_fn first, or pass "
            "kernel_fn, x_train, y_train to predict.gradient_descent_mse_ensemble, whose result at "
            "t=None and get='nngp' is Gaussian process inference"
        )


def check_is_array(name: str, kernels: object) -> None:
    """Raises TypeError or ValueError unless this is one kernel."""
    check_is_kernel(name, kernels)
    if not is_one_kernel(kernels):
        raise ValueError(
            f"expected {name} to be an array, got an object that holds several kernels; pass its "
            "field ntk"
        )


def pick(kernels: Kernels, name: str, where: str, mode: str) -> KernelArray:
    """Returns the kernel of that name; a single array is used for any name.

    Raises:
      TypeError: if it is a dict.
      ValueError: if the container lacks it.
    """
    if isinstance(kernels, Mapping):
        raise TypeError(
            f"expected {where} to be an array, or an object with fields nngp and ntk such as a "
            f"named tuple, got a {type(kernels).__name__} with keys {sorted(map(str, kernels))}"
        )
    kernel = kernels if is_one_kernel(kernels) else getattr(kernels, name, None)
    if kernel is None:
        raise ValueError(f"expected {where} to hold {name!r}, which get={mode!r} needs")
    return kernel if hasattr(kernel, "dtype") else jnp.asarray(kernel)
