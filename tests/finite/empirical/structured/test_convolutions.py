"""Convolutions, and the same in other forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from tests.tolerance import assert_close
from widelimit.finite.empirical.structured.convolutions import fast_to_derive
from widelimit.finite.empirical.structured.program import evaluate, program_of

pytestmark = pytest.mark.usefixtures("x64")

QUICK = {"xla_backend_optimization_level": "0", "xla_llvm_disable_expensive_passes": True}
NHWC = ("NHWC", "HWIO", "NHWC")

# Image, kernel, strides, padding, dimension numbers, feature groups.
CASES = {
    "one tap": ((2, 6, 6, 2), (1, 1, 2, 3), (2, 2), "SAME", NHWC, 1),
    "odd size": ((1, 7, 5, 2), (3, 3, 2, 2), (2, 2), "SAME", NHWC, 1),
    "taps as the stride": ((1, 6, 7, 2), (2, 3, 2, 1), (2, 3), "VALID", NHWC, 1),
    "fewer taps": ((1, 9, 8, 1), (2, 1, 1, 2), (4, 3), "VALID", NHWC, 1),
    "many taps": ((1, 8, 9, 1), (5, 4, 1, 2), (2, 3), "SAME", NHWC, 1),
    "one axis strided": ((1, 5, 6, 2), (3, 2, 2, 2), (1, 2), "SAME", NHWC, 1),
    "uneven padding": ((1, 5, 6, 1), (3, 2, 1, 2), (2, 2), [(3, 0), (0, 5)], NHWC, 1),
    "negative padding": ((1, 8, 9, 1), (2, 3, 1, 1), (2, 2), [(-1, 2), (1, -3)], NHWC, 1),
    "nothing fits": ((1, 2, 6, 1), (3, 3, 1, 1), (2, 2), "VALID", NHWC, 1),
    "groups": ((1, 5, 6, 6), (3, 3, 2, 9), (2, 2), "SAME", NHWC, 3),
    "some per channel": ((1, 5, 6, 2), (3, 2, 1, 4), (2, 2), "SAME", NHWC, 2),
    "depthwise": ((2, 5, 6, 3), (3, 2, 1, 3), (2, 1), [(-1, 2), (1, 0)], NHWC, 3),
    "depthwise in sequences": ((2, 3, 7), (1, 2, 3), (1,), "SAME", ("NCW", "IWO", "WNC"), 3),
    "depthwise, nothing fits": ((1, 2, 2, 2), (3, 3, 1, 2), (1, 2), "VALID", NHWC, 2),
    "sequences": ((3, 2, 7), (3, 2, 4), (2,), "SAME", ("NCW", "WIO", "WNC"), 1),
    "volumes": (
        (2, 3, 5, 4, 1),
        (2, 1, 3, 2, 2),
        (2, 1, 3),
        "SAME",
        ("CDHWN", "IODHW", "NDCHW"),
        1,
    ),
    "channels first": ((1, 4, 5, 6), (4, 2, 3, 3), (2, 2), "SAME", ("NCHW", "OIHW", "NCHW"), 2),
}


def draw(*shapes):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal(shape)) for shape in shapes]


def strides_in(f, *args):
    """Returns the strides of all convolutions."""
    steps = program_of(f, *args).steps
    return [s.params["window_strides"] for s in steps if s.name == "conv_general_dilated"]


def assert_same(f, shapes):
    """Value and derivatives are the same; returns the strides that are left."""
    args = draw(*shapes)
    program = fast_to_derive(program_of(f, *args))

    def g(x, w):
        return evaluate(program, [x, w], {}, ())[0][0]

    @jax.jit
    def both(x, w):
        results = []
        for function in (f, g):
            y, pull = jax.vjp(function, x, w)
            results.append((y, pull(jnp.cos(jnp.arange(1.0 * y.size)).reshape(y.shape))))
        return results

    expected, found = jax.tree.map(np.asarray, both.lower(*args).compile(QUICK)(*args))
    jax.tree.map(lambda a, b: assert_close(a, b, rtol=1e-10), found, expected)
    return strides_in(g, *args)


@pytest.mark.parametrize("name", CASES)
def test_values_and_derivatives_are_the_same(name):
    *shapes, strides, padding, numbers, groups = CASES[name]

    def f(x, w):
        return lax.conv_general_dilated(
            x, w, strides, padding, dimension_numbers=numbers, feature_group_count=groups
        )

    left = assert_same(f, shapes)
    plain = name in ("depthwise", "depthwise in sequences")
    assert left == ([] if plain else [(1,) * len(strides)])


def test_depthwise_with_dilations():
    def f(x, w):
        dilations = {"lhs_dilation": (1, 2), "rhs_dilation": (2, 1)}
        options = {"dimension_numbers": NHWC, "feature_group_count": 2, **dilations}
        return lax.conv_general_dilated(x, w, (2, 3), [(1, 2), (0, 3)], **options)

    assert assert_same(f, [(1, 5, 4, 2), (3, 2, 1, 2)]) == []


@pytest.mark.parametrize(
    "options",
    [
        {"window_strides": (1, 1)},
        {"window_strides": (2, 2), "rhs_dilation": (1, 2)},
        {"window_strides": (2, 2), "lhs_dilation": (3, 1)},
        {"window_strides": (2, 2), "batch_group_count": 2},
    ],
)
def test_others_stay_as_they_are(options):
    def f(x, w):
        numbers = {"dimension_numbers": NHWC, "padding": [(0, 0), (0, 0)]}
        return lax.conv_general_dilated(x, w, **options, **numbers)

    program = program_of(f, *draw((2, 6, 6, 1), (3, 3, 1, 2)))
    assert fast_to_derive(program).steps == program.steps


@pytest.mark.parametrize(("taps", "dtype"), [(65, jnp.float32), (3, jnp.bfloat16)])
def test_depthwise_with_many_taps_or_few_digits_stays(taps, dtype):
    def f(x, w):
        options = {"dimension_numbers": ("NWC", "WIO", "NWC"), "feature_group_count": 2}
        return lax.conv_general_dilated(x, w, (1,), "SAME", **options)

    program = program_of(f, *(array.astype(dtype) for array in draw((1, 4, 2), (taps, 1, 2))))
    assert fast_to_derive(program).steps == program.steps


def test_strides_in_scans_and_on_other_devices(monkeypatch):
    def f(x, w):
        def step(h, w):
            return h, lax.conv_general_dilated(h, w, (2, 2), "SAME", dimension_numbers=NHWC)

        return lax.scan(step, x, w)[1]

    program = program_of(f, *draw((1, 4, 4, 1), (2, 3, 3, 1, 1)))
    (step,), (changed,) = program.steps, fast_to_derive(program).steps
    assert changed.body.outputs == step.body.outputs
    assert changed.body.steps != step.body.steps
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert fast_to_derive(program) is program
