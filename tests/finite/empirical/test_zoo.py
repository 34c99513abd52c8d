"""All ways to compute a tangent kernel give the same numbers on every function of the zoo."""

import jax
import pytest

import widelimit as wl
from tests import quick
from tests.finite.empirical.zoo import CASES
from tests.tolerance import assert_close

pytestmark = pytest.mark.usefixtures("x64")

BASE = wl.NtkImplementation.JACOBIAN_CONTRACTION
STRUCTURED = wl.NtkImplementation.STRUCTURED_DERIVATIVES


def kernels(case, ways, both):
    """Kernels of x1 with x2, and of x1 alone, by implementation and whether samples are mapped."""
    params, x1, x2 = case.draw()

    def compute(params, x1, x2):
        found = {}
        for implementation, mapped in ways:
            axes = 0 if mapped else None
            ntk_fn = wl.empirical_ntk_fn(
                case.f, case.trace, case.diagonal, vmap_axes=axes, implementation=implementation
            )
            others = [x2, None] if both else [x2]
            found[implementation.name, mapped] = [ntk_fn(x1, other, params) for other in others]
        return found

    return quick.jit(compute)(params, x1, x2)


def compare(case, base, ways, both):
    found = kernels(case, [base, *ways], both)
    expected = jax.tree.leaves(found.pop((base[0].name, base[1])))
    for key, kernel in found.items():
        for a, b in zip(jax.tree.leaves(kernel), expected, strict=True):
            try:
                assert_close(a, b, rtol=1e-10)
            except AssertionError as error:
                error.add_note(f"by {key}")
                raise


# All of them run with all implementations among the slow tests.
@pytest.mark.parametrize("name", list(CASES)[::3])
def test_structured_derivatives_agree(name):
    case = CASES[name]
    compare(case, (BASE, case.vmap), [(STRUCTURED, case.vmap)], both=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_all_implementations_agree(name):
    case = CASES[name]
    base, mapped = (BASE, False), (False, True) if case.vmap else (False,)
    ways = [(way, m) for way in wl.NtkImplementation for m in mapped if (way, m) != base]
    compare(case, base, ways, both=True)


def test_the_zoo_is_large():
    assert len(CASES) >= 60
