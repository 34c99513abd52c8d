"""Hyper-parameters of a named network by a criterion, with restarts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import numpy as np

from widelimit.typing import Scalar, Scalars

Bounds: TypeAlias = Scalars | str
"""The least and the greatest value, or "fixed"."""


class SearchSpace(NamedTuple):
    """Positive numbers that are searched for, by their logarithms.

    Attributes:
      start: the values to begin with, by name.
      bounds: the least and the greatest value, by name.
    """

    start: dict[str, float]
    bounds: dict[str, tuple[float, float]]


def search_space(values: Mapping[str, Scalar | None], bounds: Mapping[str, Bounds]) -> SearchSpace:
    """Returns which values are not fixed.

    Raises:
      ValueError: bounds that are not two positive numbers in order, or do not hold the value.
    """
    space = SearchSpace({}, {})
    for name, bound in bounds.items():
        if isinstance(bound, str) and bound == "fixed":
            continue
        value = values[name]
        pair = np.empty(0) if isinstance(bound, str) else np.asarray(bound, np.float64)
        fits = value is not None and pair.shape == (2,)
        if not (fits and 0 < pair[0] <= float(value) <= pair[1] < np.inf):  # type: ignore[arg-type]
            raise ValueError(
                f"expected {name}_bounds to be 'fixed' or two positive numbers around {name}, got "
                f"{bound!r} for {name}={value!r}"
            )
        space.start[name] = float(value)  # type: ignore[arg-type]
        space.bounds[name] = float(pair[0]), float(pair[1])
    return space


def search_network(
    objective: Callable[[dict[str, float]], float],
    space: SearchSpace,
    restarts: int,
    random: np.random.RandomState,
) -> dict[str, float]:
    """Returns the values of the least objective that L-BFGS-B finds, from all starts.

    Derivatives are differences: an objective in float64 leaves them eight digits.

    Args:
      objective: what is to be small, of values by name.
      space: the first start, and the bounds.
      restarts: how many more starts there are, log-uniform within the bounds.
      random: draws them.
    """
    import scipy.optimize

    names, limits = list(space.start), np.log(list(space.bounds.values()))
    starts = [np.log(list(space.start.values()))]
    starts += [random.uniform(limits[:, 0], limits[:, 1]) for _ in range(restarts)]

    def of_logarithms(theta: np.ndarray) -> float:
        return objective(dict(zip(names, np.exp(theta).tolist(), strict=True)))

    results = [
        scipy.optimize.minimize(
            of_logarithms, start, method="L-BFGS-B", bounds=limits, options={"eps": 1e-6}
        )
        for start in starts
    ]
    best = min(results, key=lambda result: float(result.fun))
    return dict(zip(names, np.exp(best.x).tolist(), strict=True))
