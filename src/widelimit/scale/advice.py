"""The smallest ridge that would do, for errors about kernels that are not positive definite."""

import numpy as np

from widelimit.predict.factor import round_up
from widelimit.predict.precision import resolution
from widelimit.scale.lanczos import BlockLanczos
from widelimit.scale.operator import Operator

_STEPS = 20


def noise_floor(operator: Operator) -> float:
    """Returns how far rounding of the entries moves eigenvalues: smaller ones mean nothing."""
    eps = resolution(operator.columns(np.arange(1)))
    return float(np.sqrt(operator.shape[0]) * eps * operator.diagonal().max(initial=0.0))


def smallest_ridge(operator: Operator, start: np.ndarray) -> float:
    """Returns a ridge at which the kernel would be positive definite and well above rounding.

    It reads the lowest eigenvalue off a few Lanczos steps from a direction [n, 1] in which the
    kernel is small: an estimate from above, so that the ridge is one from below.
    """
    basis = BlockLanczos(operator.matmat, start)
    basis.extend(min(_STEPS, operator.shape[0]))
    lowest = float(np.linalg.eigvalsh(basis.projected()).min())
    return 2.0 * max(0.0, -lowest) + 100.0 * noise_floor(operator)


def advise_ridge(ridge: float) -> str:
    """Returns words for a ridge that would do, rounded up to one digit."""
    enough = round_up(ridge)
    return f"a ridge of {enough:.0e} (noise={np.sqrt(enough):.1e}) would do"
