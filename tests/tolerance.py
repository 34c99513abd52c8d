"""The one place that says how closely two arrays of a test must agree."""

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

# Relative to the largest entry. Twenty layers of float32 arithmetic stay within a few hundred
# rounding errors of 6e-8; float64 has the room to demand more than that in proportion.
RTOL = {
    np.dtype(np.float16): 1e-2,
    np.dtype(np.float32): 2e-5,
    np.dtype(np.float64): 1e-10,
}
BFLOAT16_RTOL = 5e-2


def default_rtol(*arrays: ArrayLike) -> float:
    """The tolerance of the least precise floating dtype among the arrays; 0 if none floats."""
    return max((_rtol_of(np.asarray(array).dtype) for array in arrays), default=0.0)


def assert_close(
    actual: ArrayLike,
    desired: ArrayLike,
    dtype: DTypeLike | None = None,
    rtol: float | None = None,
) -> None:
    """Assert equal shapes and max|actual - desired| <= rtol * max|desired|.

    Entries that are not finite must stand at the same places with the same values.

    Args:
      actual: what the code under test returned.
      desired: the reference.
      dtype: the precision in which `actual` was computed, where its own dtype does not say (a
        float32 kernel solved in float64); also asserts nothing about the dtype.
      rtol: overrides the default of the least precise dtype involved.
    """
    actual, desired = np.asarray(actual), np.asarray(desired)
    assert actual.shape == desired.shape, f"expected shape {desired.shape}, got {actual.shape}"
    if rtol is None:
        rtol = default_rtol(actual, desired) if dtype is None else _rtol_of(np.dtype(dtype))
    if actual.size == 0:
        return

    wide = np.complex128 if np.iscomplexobj(actual) or np.iscomplexobj(desired) else np.float64
    actual, desired = actual.astype(wide), desired.astype(wide)
    finite = np.isfinite(desired)
    np.testing.assert_array_equal(actual[~finite], desired[~finite])
    if not finite.any():
        return
    difference = np.abs(np.where(finite, actual, 0) - np.where(finite, desired, 0))
    scale = np.abs(desired[finite]).max()
    worst = np.unravel_index(np.argmax(difference), difference.shape)
    # Written so that a NaN in `actual` fails.
    assert difference[worst] <= rtol * scale, (
        f"expected a difference of at most {rtol:g} of the largest entry {scale:g}, got "
        f"{difference[worst] / scale if scale else np.inf:g} at index "
        f"{tuple(int(i) for i in worst)}: "
        f"actual {actual[worst]}, desired {desired[worst]}"
    )


def _rtol_of(dtype: np.dtype) -> float:
    if dtype.name == "bfloat16":
        return BFLOAT16_RTOL
    if dtype.kind == "c":
        dtype = np.empty(0, dtype).real.dtype
    return RTOL.get(dtype, 0.0)
