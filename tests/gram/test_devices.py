"""One code path for one device and for many."""

import os
import subprocess
import sys

import jax
import pytest

from widelimit.gram.devices import resolve_devices

TWO_DEVICES = """
import jax, numpy as np, widelimit as wl
from widelimit import stax
jax.config.update("jax_numpy_rank_promotion", "raise")
assert jax.local_device_count() == 2
rng = np.random.default_rng(0)
flat = stax.serial(stax.Dense(4, 1.4, 0.1), stax.Relu(), stax.Dense(1))
conv = stax.serial(
    stax.Conv(4, (3,), padding="SAME", W_std=1.4), stax.Relu(), stax.GlobalAvgPool(), stax.Dense(1)
)
for net, shape in ((flat, (6,)), (conv, (5, 2))):
    x1, x2 = (rng.standard_normal((n, *shape)).astype(np.float32) for n in (7, 3))
    for second in (None, x2):
        whole = net.kernel_fn(x1, second, "ntk")
        tiler = net.kernel_fn.tiler(x1, second, "ntk", jax.local_devices())
        least = tiler.tile_bytes(2, 2) + 8 * tiler.prepared_bytes
        for memory in (least, "1GiB"):
            tiles = wl.gram(net, x1, second, memory=memory)
            np.testing.assert_allclose(tiles, whole, rtol=2e-6, atol=1e-7)
            one = wl.gram(net, x1, second, memory=memory, devices=1)
            np.testing.assert_allclose(one, whole, rtol=2e-6, atol=1e-7)
        batched = wl.batch(net.kernel_fn, batch_size=2)(x1, second, "ntk")
        np.testing.assert_allclose(batched, whole, rtol=2e-6, atol=1e-7)

class Seen(Exception): pass
def look(a, b, get):
    raise Seen(a.sharding, b.sharding)
tiler = wl.gram.__globals__["make_tiler"](look, x1, x2, ("ntk",), jax.local_devices(), {})
rows, columns = (tiler.prepare(tiler.rows(side, 0, 2, 2)) for side in (0, 1))
try:
    tiler.tile(rows, columns)
except Seen as seen:
    first, second = seen.args
    assert len(first.device_set) == 2 and not first.is_fully_replicated
    assert second.is_fully_replicated
print("fine")
"""


def test_two_devices() -> None:
    flags = "--xla_force_host_platform_device_count=2"
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", TWO_DEVICES],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout == "fine\n", result.stderr


def test_devices_are_checked() -> None:
    local = jax.local_devices()
    assert resolve_devices(None) == local
    assert resolve_devices(1) == resolve_devices(local[:1]) == local[:1]
    for wrong in (0, -1, len(local) + 1, [], [local[0], local[0]]):
        with pytest.raises(ValueError, match="expected"):
            resolve_devices(wrong)
    for wrong in (True, 1.5, "cpu", [0]):
        with pytest.raises(TypeError, match="expected"):
            resolve_devices(wrong)
