"""Compiled steps, recorded and run again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from widelimit import stax
from widelimit.layers.recording import recorded, run_compiled

IMAGES = np.random.default_rng(0).standard_normal((5, 6, 6, 2)).astype(np.float32)


CONV_RELU = stax.serial(stax.Conv(1, (3, 3), padding="SAME"), stax.Relu())


def total(x, y):
    return {"sum": x + y, "product": x * y}


def twice(tree):
    return 2 * tree["sum"] - tree["product"]


def test_a_recording_gives_the_results_of_other_inputs() -> None:
    x, y, three = jnp.arange(4.0), jnp.ones(4), jnp.asarray(3.0)
    with recorded((x, y), three) as recording:
        result = run_compiled(total, run_compiled(twice, run_compiled(total, x, y)), three)
        recording.end(result)
    assert recording.complete
    np.testing.assert_array_equal(result["sum"], 2 * (x + y) - x * y + 3)
    product, found = recording.run((y, x + 1))
    np.testing.assert_array_equal(found, 2 * (y + x + 1) - y * (x + 1) + 3)
    np.testing.assert_array_equal(product, 3 * (2 * (y + x + 1) - y * (x + 1)))


def test_what_is_computed_apart_is_noticed() -> None:
    x = jnp.arange(4.0)
    with recorded(x, ()) as recording:
        recording.end(run_compiled(total, x, x + 1))
    assert not recording.complete


def residual() -> stax.serial:
    inner = stax.serial(stax.Relu(), stax.Conv(1, (3, 3), padding="SAME"))
    block = stax.serial(stax.FanOut(2), stax.parallel(stax.Identity(), inner), stax.FanInSum())
    return stax.serial(stax.Conv(1, (3, 3), padding="SAME"), block, stax.GlobalAvgPool())


@pytest.mark.parametrize(
    "net",
    [
        residual(),
        stax.serial(stax.Conv(1, (3, 3)), stax.repeat(CONV_RELU, 2), stax.Flatten()),
        stax.serial(stax.Conv(1, (2, 2)), stax.LayerNorm(), stax.Relu(), stax.AvgPool((2, 2))),
    ],
    ids=["residual", "repeat", "pool"],
)
@pytest.mark.parametrize("get", ["ntk", ("nngp", "cov1"), None])
def test_the_second_call_is_the_first_one_with_other_inputs(net, get) -> None:
    kernel_fn = net.kernel_fn
    calls = [(IMAGES[:2], IMAGES[2:]), (IMAGES[1:3], IMAGES[:3]), (IMAGES[:3], None)]
    for x1, x2 in [*calls, *calls]:
        found = kernel_fn(x1, x2, get, engine="reference")
        right = jax.jit(lambda a, b: kernel_fn(a, b, get))(x1, x2)
        assert jax.tree.structure(found) == jax.tree.structure(right)
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(right), strict=True):
            np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-6)


def test_traced_inputs_and_other_dtypes_after_a_recording() -> None:
    net = residual()
    first = net.kernel_fn(IMAGES, None, "ntk", engine="reference")
    net.kernel_fn(IMAGES, None, "ntk", engine="reference")
    with jax.enable_x64(True):
        wide = net.kernel_fn(IMAGES.astype(np.float64), None, "ntk", engine="reference")
        assert wide.dtype == np.float64
    np.testing.assert_allclose(first, wide, rtol=1e-5)
    slope = jax.grad(lambda x: net.kernel_fn(x, None, "ntk").sum())(IMAGES)
    assert np.isfinite(slope).all()
