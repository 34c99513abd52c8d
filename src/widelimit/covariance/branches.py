"""Sums of branches, and checks that their covariances add."""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Sequence

from jaxtyping import Array

from widelimit.covariance.covariances import Covariances, at_offsets
from widelimit.covariance.offsets import Need
from widelimit.covariance.signal import Signal
from widelimit.typing import Scalar


def independent_sum(
    branches: Sequence[Covariances], weights: Sequence[Scalar | None], signal: Signal, need: Need
) -> Covariances:
    """Returns the covariances of a sum of independent zero-mean Gaussian branches.

    Args:
      branches: covariances, all of which store the offsets needed.
      weights: factors of the covariances, the squares of those of the outputs; None is 1.
      signal: description of the output.
      need: offsets of the output.

    Raises:
      NotImplementedError: a branch is not Gaussian, or two are correlated.
    """
    branches = [at_offsets(branch, need) for branch in with_tangents_of_all(branches)]
    check_gaussian(branches, "to sum")
    check_uncorrelated(branches, "sum")
    return weighted_sum(branches, weights, signal, gaussian=True)


def with_tangents_of_all(branches: Sequence[Covariances]) -> list[Covariances]:
    """Returns the branches, without NTKs if one has none: that of the join is then unknown."""
    if all(branch.tangent for branch in branches):
        return list(branches)
    return [branch.replace(ntk=None, tangent=False) for branch in branches]


def weighted_sum(
    branches: Sequence[Covariances],
    weights: Sequence[Scalar | None],
    signal: Signal,
    *,
    gaussian: bool,
) -> Covariances:
    """Returns the weighted sum of covariances at the same offsets (weight None is 1)."""

    def total(parts: Sequence[Array | None]) -> Array | None:
        pairs = [(p, w) for p, w in zip(parts, weights, strict=True) if p is not None]
        terms = [p if w is None else p * w for p, w in pairs]
        return functools.reduce(operator.add, terms) if terms else None

    gaps = [c.gap for c in branches]
    return branches[0].replace(
        nngp=total([c.nngp for c in branches]),
        ntk=total([c.ntk for c in branches]),
        gap=None if any(g is None for g in gaps) else total(gaps),
        cov1=total([c.cov1 for c in branches]),
        cov2=total([c.cov2 for c in branches]),
        signal=signal,
        gaussian=gaussian,
        origins=frozenset().union(*(c.origins for c in branches)),
    )


def check_gaussian(branches: Sequence[Covariances], purpose: str) -> None:
    """Raises if a branch may have a nonzero mean.

    Raises:
      NotImplementedError: a branch comes from a nonlinearity or is raw input.
    """
    for i, branch in enumerate(branches):
        if not branch.gaussian:
            raise NotImplementedError(
                f"expected Gaussian branches {purpose} (outputs of Dense, Conv, ...); branch {i} "
                "comes from a nonlinearity or is raw input: end it with a Dense or Conv layer"
            )


def check_uncorrelated(branches: Sequence[Covariances], verb: str) -> None:
    """Raises if two branches depend on the same weights without fresh ones in between.

    Raises:
      NotImplementedError: two branches do; the message names the weights.
    """
    for (i, a), (j, b) in itertools.combinations(enumerate(branches), 2):
        if a.origins & b.origins:
            shared = ", ".join(f"'{origin}'" for origin in sorted(a.origins & b.origins))
            raise NotImplementedError(
                f"expected independent branches in a {verb}: branches {i} and {j} both depend on "
                f"{shared} without fresh weights in between, so they are correlated and their "
                "kernels do not combine; put a Dense or Conv layer into all but one of them"
            )
