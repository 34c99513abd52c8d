"""All ways to compute a tangent kernel give the same numbers on every function of the zoo."""

import jax
import pytest

import widelimit as wl
from tests.empirical.zoo import CASES
from tests.tolerance import assert_close

pytestmark = pytest.mark.usefixtures("x64")

BASE = wl.NtkImplementation.JACOBIAN_CONTRACTION
STRUCTURED = wl.NtkImplementation.STRUCTURED_DERIVATIVES
# Compilation is most of the time: it does as little as it can.
QUICK = {"xla_backend_optimization_level": "0", "xla_llvm_disable_expensive_passes": True}


def kernels(case, ways):
    """Kernels of x1 with x2 and of x1 alone, by implementation and whether samples are mapped."""
    params, x1, x2 = case.draw()

    def compute(params, x1, x2):
        found = {}
        for implementation, mapped in ways:
            axes = 0 if mapped else None
            ntk_fn = wl.empirical_ntk_fn(
                case.f, case.trace, case.diagonal, vmap_axes=axes, implementation=implementation
            )
            found[implementation.name, mapped] = (
                ntk_fn(x1, x2, params),
                ntk_fn(x1, None, params),
            )
        return found

    return jax.jit(compute, compiler_options=QUICK)(params, x1, x2)


def compare(case, ways):
    found = kernels(case, [(BASE, False), *ways])
    base = found.pop((BASE.name, False))
    for key, kernel in found.items():
        for a, b in zip(jax.tree.leaves(kernel), jax.tree.leaves(base), strict=True):
            try:
                assert_close(a, b, rtol=1e-10)
            except AssertionError as error:
                error.add_note(f"by {key}")
                raise


@pytest.mark.parametrize("name", CASES)
def test_structured_derivatives_agree(name):
    case = CASES[name]
    compare(case, [(STRUCTURED, mapped) for mapped in ((False, True) if case.vmap else (False,))])


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_all_implementations_agree(name):
    case = CASES[name]
    mapped = (False, True) if case.vmap else (False,)
    ways = [(way, m) for way in wl.NtkImplementation for m in mapped if (way, m) != (BASE, False)]
    compare(case, ways)


def test_the_zoo_is_large():
    assert len(CASES) >= 60
