"""Both kernels of the zoo against wide finite networks; planted mistakes are caught."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from tests.cases import CASES, SPATIAL, Case, sweep
from tests.monte_carlo import Samples, agrees, compare, sample
from widelimit import stax
from widelimit._pytree import pytree
from widelimit.activations import Dual
from widelimit.covariance.verbs import Affine, affine
from widelimit.stax import Conv, Dense, serial

FINITE = [
    case
    for case in CASES + SPATIAL
    if case.apply and case.name not in ("spatial", "no_dense", "no_readout")
]

# One network of each kind; the others take minutes of random draws.
QUICK = {"Relu()", "Erf(a=1.1, b=0.9, c=0.3)", "Gelu()", "standard", "flatten_first", "layer_norm"}
QUICK |= {"residual", "conv_global_pool", "circular_pool_flatten"}


@pytest.mark.parametrize("case", sweep(FINITE, QUICK))
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
        return Dual(k, kdot * 0 + 1, gap)


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


def _windows(first: Any = Conv, later: Any = Conv) -> Any:
    def build(width: int, out: int) -> Any:
        return serial(
            first(width, (1, 2), (1, 2), "SAME", 1.3, 0.7),
            later(width, (3, 1), (1, 1), "CIRCULAR", 1.2, 0.5),
            stax.AvgPool((2, 1)),
            stax.LeakyRelu(0.3),
            stax.Flatten(),
            Dense(out),
        )

    return build


def _border(first: Any = Conv) -> Any:
    """Convolutions next to each other, so that what stands outside the image would be read."""

    def build(width: int, out: int) -> Any:
        return serial(
            first(width, (1,), None, "VALID", 0.7, 1.2),
            Conv(width, (5,), None, "SAME", 1.5),
            stax.AvgPool((3,)),
            stax.LeakyRelu(0.3),
            stax.Flatten(),
            Dense(out),
        )

    return build


@pytree
class _StrideOnTheWrongAxis(Conv):
    def _stencils(self, spatial: Any) -> Any:
        windows = self.windows
        wrong = dataclasses.replace(windows, strides=windows.strides[::-1])
        return wrong.stencils(spatial, tied=True)


@pytree
class _SeamMissing(Conv):
    def _stencils(self, spatial: Any) -> Any:
        return dataclasses.replace(self.windows, padding="SAME").stencils(spatial, tied=True)


@pytree
class _BiasOutsideTheImage(Conv):
    def propagate(self, cov: Any, site: Any) -> Any:
        out = super().propagate(cov, site)
        outside = jnp.where(out.nngp == 0, self.b_std**2, 0)
        return out.replace(nngp=out.nngp + outside, ntk=out.ntk + outside)


class Family(NamedTuple):
    """A network without mistake, its inputs, and mistakes with the kernel that shows them."""

    build: Any
    inputs: Any
    mistakes: dict[str, tuple[str, Any]]


def _vectors() -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).standard_normal((4, 4))
    return x[:2], x[2:]


def _images() -> tuple[np.ndarray, np.ndarray]:
    # Rows alike and columns unlike: strides and seams make a difference.
    rng = np.random.default_rng(0)
    x = 2 * rng.standard_normal((1, 1, 2, 2)) + 0.3 * rng.standard_normal((4, 4, 2, 2))
    return x[:2], x[2:]


def _lines() -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).standard_normal((4, 4, 2))
    return x[:2], x[2:]


FAMILIES = {
    "dense": Family(
        _plain(),
        _vectors,
        {
            "bias dropped": ("nngp", _plain(_WithoutBias)),
            "T without its K term": ("ntk", _plain(_WithoutNngpTerm)),
            "wrong fan-in": ("nngp", _plain(_WrongFanIn)),
            "derivative dropped": ("ntk", _plain(nonlinearity=_WithoutDerivative(0.3))),
            "wrong slope": ("nngp", _plain(nonlinearity=_WrongSlope(0.3))),
            "variance not propagated": ("nngp", _plain(nonlinearity=_VarianceForgotten(0.3))),
        },
    ),
    "windows": Family(
        _windows(),
        _images,
        {
            "stride on the wrong axis": ("nngp", _windows(_StrideOnTheWrongAxis)),
            "missing seam": ("nngp", _windows(later=_SeamMissing)),
        },
    ),
    "border": Family(
        _border(),
        _lines,
        {"bias outside the image": ("nngp", _border(_BiasOutsideTheImage))},
    ),
}
PLANTED = [
    pytest.param(family, mistake, marks=pytest.mark.slow if family == "border" else [])
    for family, f in FAMILIES.items()
    for mistake in f.mistakes
]


@functools.cache
def _samples(family: str) -> Samples:
    return sample(FAMILIES[family].build, *FAMILIES[family].inputs())


@pytest.mark.usefixtures("reference_engine")
@pytest.mark.parametrize(("family", "mistake"), PLANTED)
def test_planted_mistake_is_caught(family: str, mistake: str) -> None:
    get, build = FAMILIES[family].mistakes[mistake]
    nngp, ntk = agrees(compare(build, *FAMILIES[family].inputs(), _samples(family)))
    assert not (nngp if get == "nngp" else ntk)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_network_without_mistake_passes(family: str) -> None:
    f = FAMILIES[family]
    assert agrees(compare(f.build, *f.inputs(), _samples(family))).all()
