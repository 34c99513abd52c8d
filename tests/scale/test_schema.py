import json
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.scale.stores import inputs, net, small_store
from widelimit import scale, stax
from widelimit.scale.schema import hash_array, read_content


def test_the_attributes_say_what_it_is(tmp_path):
    store = small_store(tmp_path, get=("nngp", "ntk"))
    attributes = json.loads((Path(store.path) / "zarr.json").read_text())["attributes"]
    assert attributes["schema"] == 1
    assert attributes["get"] == ["nngp", "ntk"]
    assert attributes["dtype"] == "float32"
    assert attributes["tile"] == 16
    assert {"widelimit", "jax", "numpy", "zarr"} <= set(attributes["versions"])
    assert read_content(store.path).fingerprint == attributes["fingerprint"]


OTHERS = {
    "network": lambda **k: scale.gram(stax.serial(stax.Dense(1), stax.Erf()), inputs(), **k),
    "inputs": lambda **k: scale.gram(net(), inputs(seed=1), **k),
    "get": lambda **k: scale.gram(net(), inputs(), get="nngp", **k),
    "tile": lambda **k: scale.gram(net(), inputs(), **{**k, "tile": 8}),
    "symmetric": lambda **k: scale.gram(net(), inputs(), inputs(), **k),
    "counts": lambda **k: scale.gram(net(), inputs(40), **k),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_kernel_is_refused(tmp_path, name):
    path = small_store(tmp_path).path
    with pytest.raises(ValueError, match=rf"holds a different kernel: .*{name} .* here, "):
        OTHERS[name](store=path, tile=16)


def test_another_dtype_is_refused(tmp_path):
    path = small_store(tmp_path).path
    with jax.enable_x64(True), pytest.raises(ValueError, match=r"dtype 'float32' here, 'float64'"):
        scale.gram(net(), inputs(), store=path)


def test_changed_attributes_are_refused(tmp_path):
    path = Path(small_store(tmp_path).path) / "zarr.json"
    text = path.read_text()
    path.write_text(text.replace('"tile": 16', '"tile": 8'))
    with pytest.raises(ValueError, match=r"attributes that belong to the fingerprint"):
        scale.open_store(path.parent)
    path.write_text(text.replace('"schema": 1', '"schema": 9'))
    with pytest.raises(ValueError, match=r"expected a store with schema 1, got 9"):
        scale.open_store(path.parent)


def test_a_creation_that_was_cut_short_is_done_again(tmp_path):
    path = Path(small_store(tmp_path).path)
    record = json.loads((path / "zarr.json").read_text())
    (path / "zarr.json").write_text(json.dumps({**record, "attributes": {}}))
    with pytest.raises(ValueError, match=r"expected a store at .*, got none"):
        scale.open_store(path)
    store = small_store(tmp_path)
    assert store.fill(progress=False).done == 10


def test_the_hash_reads_every_number():
    x = inputs()
    assert hash_array(x) == hash_array(x.copy())
    other = x.copy()
    other[-1, -1] = np.nextafter(other[-1, -1], np.inf)
    assert len({hash_array(v) for v in (x, other, x[:-1], x.reshape(-1, 2), x.view(np.int32))}) == 5
