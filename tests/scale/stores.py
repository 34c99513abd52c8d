"""Small stores that the tests of this folder share."""

from pathlib import Path

import numpy as np

from widelimit import Layer, scale, stax


def net() -> Layer:
    return stax.serial(stax.Dense(8), stax.Relu(), stax.Dense(1, W_std=1.3))


def inputs(n: int = 50, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, 4)).astype(np.float32)


def small_store(folder: Path, name: str = "k.zarr", **kwargs: object) -> scale.Store:
    """Returns a store of 50 samples in 10 tiles, not filled."""
    return scale.gram(net(), inputs(), store=folder / name, **{"tile": 16, **kwargs})


def overflowing_store(folder: Path, **kwargs: object) -> scale.Store:
    """Returns a store in which the kernels of sample 20 are not finite."""
    network = stax.serial(stax.Dense(1, W_std=1e3), stax.Relu(), stax.Dense(1))
    x = inputs()
    x[20] = 1e19  # its squares are finite in float32
    return scale.gram(network, x, store=folder / "k.zarr", tile=16, **kwargs)


def chunk(store: scale.Store, i: int, j: int, kernel: str = "ntk") -> Path:
    return Path(store.path) / kernel / "c" / str(i) / str(j)


def flip(path: Path, byte: int = 100) -> None:
    """Flips a bit of a file."""
    data = bytearray(path.read_bytes())
    data[byte] ^= 1
    path.write_bytes(data)
