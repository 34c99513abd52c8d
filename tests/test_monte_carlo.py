"""Both kernels of the zoo against wide finite networks; planted mistakes are caught."""

import functools
from typing import Any

import numpy as np
import pytest

from tests.cases import CASES, SPATIAL, Case, sweep
from tests.monte_carlo import Samples, agrees, compare, sample
from widelimit import duals, stax
from widelimit._pytree import pytree
from widelimit.covariance import Affine, affine
from widelimit.stax import Dense, serial

FINITE = [case for case in CASES + SPATIAL if case.apply and case.name not in ("spatial", "no_dense", "no_readout")]


@pytest.mark.parametrize("case", sweep(FINITE))
def test_kernels_are_the_limit_of_finite_networks(case: Case) -> None:
    estimate = compare(case.build, *case.inputs(2, 2))
    assert agrees(estimate).all(), f"{estimate.deviation / estimate.error} standard errors"


def _plain(dense: Any = Dense, nonlinearity: Any = None) -> Any:
    relu = nonlinearity or stax.LeakyRelu(0.3)

    def build(width: int, out: int) -> Any:
        return serial(dense(width, 1.3, 0.5), relu, dense(width, 1.2, 0.5), relu, dense(out))

    return build


@pytree
class _WithoutBias(Dense):
    def propagate(self, cov: Any, site: Any) -> Any:
        return super().propagate(cov, site).replace(nngp=self.W_std**2 * cov.nngp)


@pytree
class _WithoutNngpTerm(Dense):
    def propagate(self, cov: Any, site: Any) -> Any:
        numbers = Affine(self.W_std**2, None if self.b_std is None else self.b_std**2, None, 1.0)
        out = affine(cov, numbers, site.signal_out)
        return out.replace(origins=frozenset({site.path}))


@pytree
class _WrongFanIn(Dense):
    def propagate(self, cov: Any, site: Any) -> Any:
        out = super().propagate(cov, site)
        n = site.signal_in.channels
        return out.replace(nngp=out.nngp * (n / (n + n // 8 + 1)))


@pytree
class _WithoutDerivative(stax.LeakyRelu):
    def dual(self, c: Any, q1: Any, q2: Any, gap: Any) -> Any:
        k, kdot, gap = super().dual(c, q1, q2, gap)
        return duals.Dual(k, kdot * 0 + 1, gap)


@pytree
class _WrongSlope(stax.LeakyRelu):
    def slopes(self) -> tuple[Any, float]:
        return self.alpha + 0.1, 1.0

    def activation(self, x: Any) -> Any:
        return stax.LeakyRelu(self.alpha).activation(x)


@pytree
class _VarianceForgotten(stax.LeakyRelu):
    def variance(self, features: Any) -> Any:
        return features


MISTAKES = {
    "bias dropped": ("nngp", _plain(_WithoutBias)),
    "T without its K term": ("ntk", _plain(_WithoutNngpTerm)),
    "wrong fan-in": ("nngp", _plain(_WrongFanIn)),
    "derivative dropped": ("ntk", _plain(nonlinearity=_WithoutDerivative(0.3))),
    "wrong slope": ("nngp", _plain(nonlinearity=_WrongSlope(0.3))),
    "variance not propagated": ("nngp", _plain(nonlinearity=_VarianceForgotten(0.3))),
}


def _inputs() -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).standard_normal((4, 4))
    return x[:2], x[2:]


@functools.cache
def _samples() -> Samples:
    return sample(_plain(), *_inputs())


@pytest.mark.parametrize("mistake", MISTAKES)
def test_planted_mistake_is_caught(mistake: str) -> None:
    get, build = MISTAKES[mistake]
    nngp, ntk = agrees(compare(build, *_inputs(), _samples()))
    assert not (nngp if get == "nngp" else ntk)


def test_the_network_without_mistake_passes() -> None:
    assert agrees(compare(_plain(), *_inputs(), _samples())).all()
