"""Similarity of kernels to each other and to targets, and their effective rank.

Kernels are arrays [n, n, h, h, ...] as `empirical_ntk_fn` and `kernel_fn` return them: samples in
the first two axes, both copies of each further axis of the outputs side by side.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike

from widelimit._pytree import is_concrete
from widelimit.finite.empirical.kernel_axes import KernelAxes, kernel_of_arrays, resolve_axes
from widelimit.predict.matrices import to_matrix
from widelimit.typing import Axes, HermitianKernel, Outputs, TargetsLike


def kernel_drift(kernel: HermitianKernel, kernel0: HermitianKernel) -> jax.Array:
    """Returns |K - K0| / |K0| in Frobenius norms: the relative change of a kernel.

    Unlike `kernel_alignment` it measures changes of scale, too. Kernels may be traced; an undefined
    result is NaN then.

    Args:
      kernel: a kernel [n, n, ...], after training for example.
      kernel0: a kernel of the same shape to compare with, at the start or of infinite width.

    Raises:
      TypeError: kernels that are not arrays of numbers.
      ValueError: shapes that differ or are not [n, n, ...], a `kernel0` of zeros, or entries that
        are not finite.

    Example:
      >>> import jax.numpy as jnp
      >>> float(kernel_drift(1.5 * jnp.eye(3), jnp.eye(3)))
      0.5
    """
    kernel, kernel0 = _pair(kernel=kernel, kernel0=kernel0)
    return _checked(_norm(kernel - kernel0) / _norm(kernel0), "a kernel0 that is not zero")


def kernel_alignment(
    kernel1: HermitianKernel, kernel2: HermitianKernel, *, centred: bool = True
) -> jax.Array:
    """Returns <K1, K2> / (|K1| |K2|), the cosine of two kernels: 1 for multiples of each other.

    Products and norms are Frobenius ones. With `centred` the mean over samples is subtracted from
    features first, K -> H K H with H = I - 1 1^T / n: this is the centred kernel alignment (CKA) of
    arXiv:1203.0550 and arXiv:1905.00414.

    Args:
      kernel1: a kernel [n, n, ...].
      kernel2: another of the same shape.
      centred: whether to centre both.

    Raises:
      TypeError: kernels that are not arrays of numbers.
      ValueError: shapes that differ or are not [n, n, ...], entries that are not finite, or a
        kernel that is zero (if centred, also that of one sample, or of a network with a constant
        gradient).

    Example:
      >>> import jax.numpy as jnp
      >>> float(kernel_alignment(2 * jnp.eye(3), jnp.eye(3)))
      1.0
    """
    kernel1, kernel2 = _pair(kernel1=kernel1, kernel2=kernel2)
    if centred:
        kernel1, kernel2 = _centre(kernel1), _centre(kernel2)
    norms = jnp.stack([_norm(kernel1), _norm(kernel2)])
    # Kernels of norm 1, so that nothing overflows; a centred kernel of rounding errors is zero.
    product = jnp.vdot(kernel1 / norms[0], kernel2 / norms[1]).real
    what = "centred kernels that are not zero" if centred else "kernels that are not zero"
    return _checked(jnp.where((norms > 0).all(), jnp.clip(product, -1, 1), jnp.nan), what)


def target_alignment(
    kernel: HermitianKernel,
    y: Outputs | TargetsLike,
    *,
    trace_axes: Axes = (-1,),
    centred: bool = True,
) -> jax.Array:
    """Returns the alignment of a kernel with y y^T, the kernel of the targets.

    Kernel-target alignment (Cristianini et al. 2001; centred in arXiv:1203.0550) is large where
    the leading eigenvectors of the kernel are the targets, which training then learns fast.

    Args:
      kernel: a kernel [n, n, ...] of outputs like y.
      y: targets [n, ...].
      trace_axes: the axes of y that the kernel lacks.
      centred: whether to centre kernels, and so targets.

    Raises:
      TypeError: a kernel or targets that are not arrays of numbers.
      ValueError: shapes that do not fit, or as `kernel_alignment` (centred constant targets are
        zero).

    Example:
      >>> import jax.numpy as jnp
      >>> y = jnp.array([[1.0], [-1.0]])
      >>> round(float(target_alignment(y @ y.T, y)), 6)
      1.0
    """
    kernel, y = _kernel("kernel", kernel), _numbers("y", y)
    axes = axes_of_outputs(trace_axes, y.shape)
    expected = axes.kernel_shape(y.shape, y.shape)
    if kernel.shape != expected:
        raise ValueError(
            f"expected a kernel of shape {expected} for y of shape {y.shape} and trace_axes "
            f"{trace_axes}, got {kernel.shape}"
        )
    return kernel_alignment(kernel, kernel_of_arrays(y, y.conj(), axes, y.ndim), centred=centred)


def effective_rank(kernel: HermitianKernel) -> jax.Array:
    """Returns the effective rank exp(-sum p log p), with p the normalised eigenvalues.

    It is 1 for a kernel of rank 1 and n for a multiple of the identity of size n (Roy and Vetterli
    2007). Eigenvalues that are negative by rounding count as zero. The kernel may be traced; an
    undefined result is NaN then.

    Args:
      kernel: a kernel [n, n, ...].

    Raises:
      TypeError: a kernel that is not an array of numbers.
      ValueError: a shape that is not [n, n, ...], a kernel without positive eigenvalues, entries
        that are not finite, or, beyond rounding, a kernel that is not Hermitian or has a negative
        eigenvalue.

    Example:
      >>> import jax.numpy as jnp
      >>> round(float(effective_rank(jnp.diag(jnp.array([1.0, 1.0, 0.0])))), 5)
      2.0
    """
    matrix = to_matrix("kernel", _kernel("kernel", kernel))
    largest = jnp.max(jnp.abs(matrix), initial=0)
    matrix = matrix / jnp.where(largest > 0, largest, 1)
    values = jnp.linalg.eigvalsh(matrix)
    positive = jnp.maximum(values, 0)
    shares = positive / positive.sum()
    entropy = -jnp.sum(shares * jnp.log(jnp.where(shares > 0, shares, 1)))
    rank = _checked(jnp.exp(entropy), "a kernel with a positive eigenvalue")
    defects = {
        "equal to its conjugate transpose": jnp.max(jnp.abs(matrix - matrix.conj().T), initial=0),
        "without negative eigenvalues": jnp.max(-values, initial=0) / jnp.max(values, initial=0),
    }
    tolerance = _rounding(kernel)
    for expected, defect in defects.items():
        if is_concrete(defect) and bool(defect > tolerance):
            raise ValueError(
                f"expected a kernel {expected} up to {tolerance:.0e} of the largest, got "
                f"{float(defect):.1e}"
            )
        rank = jnp.where(defect <= tolerance, rank, jnp.nan)
    return rank


def axes_of_outputs(trace_axes: Axes, shape: tuple[int, ...]) -> KernelAxes:
    """Returns the trace axes of outputs of a shape.

    Raises:
      TypeError: axes that are not integers.
      ValueError: axes that the outputs lack, or the axis of samples.
    """
    axes = resolve_axes(trace_axes, (), shape, shape)
    if 0 in axes.trace:
        raise ValueError(
            f"expected trace_axes without the axis of samples, 0, for outputs of shape {shape}, "
            f"got {trace_axes}"
        )
    return axes


def _kernel(name: str, kernel: ArrayLike) -> jax.Array:
    """Returns a kernel as an array.

    Raises:
      TypeError: it is not an array of numbers.
      ValueError: it is not of shape [n, n, h, h, ...].
    """
    kernel = _numbers(name, kernel)
    if not kernel.ndim or kernel.shape[::2] != kernel.shape[1::2]:
        raise ValueError(
            f"expected {name} between samples and themselves, of shape [n, n, ...] with equal "
            f"pairs of axes, got {kernel.shape}: use x2=None, and trace_axes without the axis of "
            "samples"
        )
    return kernel


def _numbers(name: str, values: ArrayLike | TargetsLike) -> jax.Array:
    """Returns an array of at least float32.

    Raises:
      TypeError: it is not an array of numbers.
    """
    try:
        array = jnp.asarray(values)
    except (TypeError, ValueError):
        raise TypeError(f"expected {name} to be an array, got {type(values).__name__}") from None
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def _rounding(kernel: ArrayLike) -> float:
    """Returns the relative rounding error of a kernel: 2e-5 in float32, 4e-11 in float64."""
    dtype = jnp.asarray(kernel).dtype
    own = dtype if jnp.issubdtype(dtype, jnp.inexact) else jnp.promote_types(dtype, jnp.float32)
    return float(jnp.finfo(own).eps) ** (2 / 3)


def _pair(**kernels: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """Returns two kernels, passed by name, as arrays.

    Raises:
      TypeError: one is not an array of numbers.
      ValueError: they are not of the same shape [n, n, h, h, ...].
    """
    first, second = (_kernel(name, kernel) for name, kernel in kernels.items())
    if first.shape != second.shape:
        raise ValueError(
            f"expected two kernels of one shape, got shapes {first.shape} and {second.shape}"
        )
    return first, second


def _norm(array: jax.Array) -> jax.Array:
    """Returns the Frobenius norm; large entries do not overflow."""
    scale = jnp.max(jnp.abs(array), initial=0)
    safe = jnp.where(scale > 0, scale, 1)
    return safe * jnp.linalg.norm((array / safe).reshape(-1))


def _centre(kernel: jax.Array) -> jax.Array:
    """Returns H K H over samples; zero if it consists of rounding errors."""
    rows = kernel - kernel.mean(0, keepdims=True)
    centred = rows - rows.mean(1, keepdims=True)
    rounding = 4 * jnp.finfo(kernel.dtype).eps * jnp.max(jnp.abs(kernel), initial=0)
    return jnp.where(jnp.max(jnp.abs(centred), initial=0) > rounding, centred, 0)


def _checked(value: jax.Array, expected: str) -> jax.Array:
    """Returns a number; NaN for a traced one that is not finite.

    Raises:
      ValueError: it is concrete and not finite.
    """
    if is_concrete(value) and not bool(jnp.isfinite(value)):
        raise ValueError(f"expected finite entries and {expected}, got a result of {value}")
    return jnp.where(jnp.isfinite(value), value, jnp.nan)
