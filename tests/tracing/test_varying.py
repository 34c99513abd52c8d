"""Inside `jax.shard_map` with its default check each device computes what it would by itself."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

import widelimit as wl
from tests import two_devices
from widelimit import predict
from widelimit.tracing.varying import varying_axes, varying_like

QUICK = [
    "shard_map ntk dense whole 0",
    "shard_map ntk image vmap 3",
    "shard_map ntk loop whole 3",
    "shard_map ntk reverse whole 2",
    "shard_map ntk dense memory 0",
    "shard_map product loop turned",
    "shard_map operator loop chunks",
    "shard_map solve dense",
    "shard_map projected dense",
    "shard_map layer Tanh",
    "shard_map net own scales",
    "shard_map predict discrete 0.9",
    "shard_map predict gp_inference",
    "pmap ntk dense whole 0",
    "pmap solve dense",
    "vmap layer Tanh",
]


def outcomes(names: list[str]) -> dict[str, str]:
    """Returns what is wrong with cases, computed in a process with two devices."""
    result = subprocess.run(
        [sys.executable, "-m", "tests.two_devices", *names],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return dict(map(json.loads, result.stdout.splitlines()))


def test_each_device_computes_its_own() -> None:
    found = outcomes(QUICK)
    assert list(found) == QUICK
    assert not {name: what for name, what in found.items() if what}


@pytest.mark.slow
def test_everything_on_each_device() -> None:
    found = outcomes([])
    assert len(found) > 200
    assert not {name: what for name, what in found.items() if what}


def on_one_device(function, *split):
    """Runs a function where arrays vary along an axis, of one device."""
    mesh = jax.make_mesh((1,), (two_devices.AXIS,), axis_types=(jax.sharding.AxisType.Auto,))
    return jax.shard_map(
        function, mesh=mesh, in_specs=P(two_devices.AXIS), out_specs=P(two_devices.AXIS)
    )(*split)


def test_arrays_vary_like_others():
    def look(x):
        zeros = {"a": jnp.zeros(2), "b": jnp.zeros((), int)}
        assert not varying_axes(zeros)
        for reference in (x, [1.0, x], jax.eval_shape(lambda: x * 2)):
            like = varying_like(zeros, reference)
            assert [varying_axes(like[k]) for k in "ab"] == [{two_devices.AXIS}] * 2
        assert varying_like(x, x) is x
        assert varying_like(zeros, 1.0) is zeros
        return x

    on_one_device(look, jnp.ones(2))


@pytest.mark.parametrize("how", ["psum", "all_gather"])
def test_networks_that_exchange_arrays_are_refused(how):
    """Their derivatives on several devices would be added up."""

    def f(params, x):
        y = jnp.tanh(x @ params)
        if how == "psum":
            return y - jax.lax.pmean(y.mean(0, keepdims=True), two_devices.AXIS)
        return jax.lax.all_gather(y, two_devices.AXIS, tiled=True)

    for vmap_axes in (None, 0):
        kernel = wl.empirical_ntk_fn(f, vmap_axes=vmap_axes)
        with pytest.raises(ValueError, match="treats devices separately"):
            on_one_device(lambda x, k=kernel: k(x, None, jnp.ones((3, 2))), jnp.ones((4, 3)))
    with pytest.raises(ValueError, match="treats devices separately"):
        on_one_device(lambda x: wl.NTKOperator(f, jnp.ones((3, 2)), x).diagonal(), jnp.ones((4, 3)))


def test_training_by_an_equation_wants_no_check():
    pytest.importorskip("diffrax")

    def trained(k):
        return predict.gradient_descent(lambda f, y: ((f - y) ** 2).mean(), k, jnp.ones((2, 1)))(
            1.0
        )

    with pytest.raises(NotImplementedError, match="check_vma=False"):
        on_one_device(trained, jnp.eye(2))
