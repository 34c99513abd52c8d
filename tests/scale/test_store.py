import jax
import numpy as np
import pytest

import widelimit as wl
from tests.scale.stores import inputs, net, small_store
from widelimit import scale, stax


def test_the_kernels_are_those_of_kernel_fn_to_the_bit(tmp_path):
    store = small_store(tmp_path, get=("nngp", "ntk"))
    assert store.fill(progress=False)[:4] == (10, 0, 0, 0)
    expected = net().kernel_fn(inputs(), None, ("nngp", "ntk"))
    for name in ("nngp", "ntk"):
        result = store.export(tmp_path / f"{name}.npy", name)
        np.testing.assert_array_equal(result, getattr(expected, name))
        assert result.dtype == np.float32


def test_float64(tmp_path):
    with jax.enable_x64(True):
        store = small_store(tmp_path)
        expected = np.asarray(net().kernel_fn(inputs(), None, "ntk"))
    assert store.dtype == np.float64
    store.fill(progress=False)  # with x64 off
    # In float64 the matrix product of the inputs rounds by the shape of its blocks.
    np.testing.assert_allclose(store.export(tmp_path / "k.npy"), expected, rtol=1e-13)


def test_test_with_training_inputs(tmp_path):
    x1, x2 = inputs(20, seed=1), inputs()
    store = scale.gram(net(), x1, x2, store=tmp_path / "c.zarr", tile=16)
    assert store.fill(progress=False).done == 2 * 4
    np.testing.assert_array_equal(store.export(tmp_path / "c.npy"), net().kernel_fn(x1, x2, "ntk"))
    with pytest.raises(ValueError, match=r"expected a kernel of x1 with itself"):
        store.operator()


def test_images_on_both_engines(tmp_path):
    images = np.random.default_rng(0).standard_normal((6, 4, 4, 2)).astype(np.float32)
    body = [stax.Conv(1, (3, 3), padding="SAME"), stax.Relu(), stax.GlobalAvgPool()]
    fused = stax.serial(*body, stax.Dense(1))
    attention = stax.serial(
        stax.Conv(1, (3, 3), padding="SAME"),
        stax.GlobalSelfAttention(1, 1, 1, 1, linear_scaling=True),
        stax.GlobalAvgPool(),
    )
    for name, network, rtol in [("fused", fused, 0.0), ("reference", attention, 1e-6)]:
        assert wl.choose_engine(network, images.shape).name == name
        store = scale.gram(network, images, store=tmp_path / f"{name}.zarr", tile=4)
        store.fill(progress=False)
        expected = network.kernel_fn(images, None, "ntk")
        np.testing.assert_allclose(store.export(tmp_path / f"{name}.npy"), expected, rtol=rtol)


def test_a_store_is_opened_again_without_the_network(tmp_path):
    first = small_store(tmp_path)
    store = scale.open_store(first.path)
    assert store.shape == (50, 50)
    assert store.count == 50
    assert wl.to_json(store.network) == wl.to_json(net())
    np.testing.assert_array_equal(store.x, inputs())
    assert small_store(tmp_path, tile=None).grid.size == 16


def test_gram_fills_a_store(tmp_path):
    store = wl.gram(net(), inputs(), out=tmp_path / "k.zarr", progress=False)
    expected = wl.gram(net(), inputs(), progress=False)
    np.testing.assert_array_equal(store.export(tmp_path / "k.npy"), expected)
    with pytest.raises(ValueError, match=r"no keywords of kernel_fn with out=NAME.zarr"):
        wl.gram(net(), inputs(), out=tmp_path / "k.zarr", mask_constant=0.0)


def test_what_cannot_be_stored_is_refused(tmp_path):
    x = inputs()
    with pytest.raises(ValueError, match=r"called NAME.zarr"):
        scale.gram(net(), x, store=tmp_path / "k.npy")
    with pytest.raises(ValueError, match=r"expected a tile of at least 1 sample, got 0"):
        scale.gram(net(), x, store=tmp_path / "k.zarr", tile=0)
    with pytest.raises(TypeError, match=r"functions of a module"):
        scale.gram(stax.Elementwise(lambda v: v), x, store=tmp_path / "k.zarr")
    with pytest.raises(ValueError, match=r"finite"):
        scale.gram(net(), np.full_like(x, np.nan), store=tmp_path / "k.zarr")
    with pytest.raises(ValueError, match=r"one number for each pair of samples"):
        scale.gram(stax.Conv(1, (1,)), np.ones((3, 4, 1)), store=tmp_path / "k.zarr")
    with pytest.raises(ValueError, match=r"expected a store at .*wl.scale.gram"):
        scale.open_store(tmp_path / "k.zarr")
    assert not (tmp_path / "k.zarr").exists()


def test_the_plan_tells_tiles_bytes_and_time(tmp_path):
    store = small_store(tmp_path)
    plan = store.plan
    assert (plan.tiles, plan.done, plan.tile) == (10, 0, 16)
    assert plan.bytes == plan.missing_bytes == 10 * (16 * 16 * 4 + 4)
    assert plan.fits
    assert plan.seconds > 0
    assert "10 of 16 x 16 samples, 0 done" in str(plan)
    store.fill(progress=False)
    assert store.plan.missing_bytes == 0


def test_export_needs_every_tile(tmp_path):
    store = small_store(tmp_path)
    with pytest.raises(ValueError, match=r"store.fill\(\) computes what is missing"):
        store.export(tmp_path / "k.npy")
    assert not list(tmp_path.glob("k.npy*"))


def test_a_kernel_has_to_be_named_if_there_are_two(tmp_path):
    store = small_store(tmp_path, get=("nngp", "ntk"))
    with pytest.raises(ValueError, match=r"one of \('nngp', 'ntk'\), got None"):
        store.export(tmp_path / "k.npy")


def test_samples_have_to_be_first(tmp_path):
    """Samples are cut along axis 0: a network that has them elsewhere would mix them."""
    dense = stax.Dense(1, batch_axis=1, channel_axis=0)
    with pytest.raises(ValueError, match=r"samples along axis 0, got batch axes \(1,\)"):
        scale.gram(stax.serial(dense, stax.Relu(), dense), inputs(4), store=tmp_path / "k.zarr")
    branches = stax.serial(stax.parallel(stax.Dense(1), stax.Dense(1)), stax.FanInSum())
    with pytest.raises(TypeError, match=r"one array of inputs for a store, got \[array"):
        scale.gram(branches, [inputs(), inputs()], store=tmp_path / "k.zarr")


def test_a_store_that_is_not_a_folder():
    store = scale.gram(net(), inputs(), store="memory://test_store/k.zarr", tile=16)
    assert store.fill(progress=False)[:2] == (10, 0)
    assert store.fill(progress=False)[:2] == (0, 10)
    assert store.verify(progress=False)
    kernel = net().kernel_fn(inputs(), None, "ntk")
    np.testing.assert_array_equal(store.operator().columns(np.arange(50)), kernel)
    store.tiles["ntk"].remove((0, 1))
    assert store.verify(progress=False).missing == ((0, 1),)
    assert store.repair(progress=False)[:2] == (1, 9)
