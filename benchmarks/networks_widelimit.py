"""The networks of the benchmarks in widelimit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

import widelimit as wl
from widelimit import models

NETWORKS: dict[str, Callable[[], Any]] = {
    "fc": lambda: models.fcn(5),
    "cnn-flatten": lambda: models.cnn(21, "flatten"),
    "cnn-gap": lambda: models.cnn(21, "gap"),
    "myrtle-5": lambda: models.myrtle(5),
    "myrtle-7": lambda: models.myrtle(7),
    "myrtle-10": lambda: models.myrtle(10),
    "resnet": lambda: models.wide_resnet(4, 1),
    "lenet": lambda: models.lenet(padding="SAME"),
}


def kernel(network: str, get: str, gram: bool) -> Callable[[Any, Any], Any]:
    """Returns the kernel function of a network, of x1 and x2, or `wl.gram` of the network."""
    net = NETWORKS[network]()
    if gram:
        return lambda x1, x2: wl.gram(net, x1, x2, get=get, progress=False)
    return lambda x1, x2: net.kernel_fn(x1, x2, get)


def about(network: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """Returns versions, the device, and the engine that runs a network on a batch of a shape."""
    return {
        "versions": {"widelimit": wl.__version__, "jax": jax.__version__},
        "device": jax.devices()[0].device_kind,
        "engine": wl.choose_engine(NETWORKS[network](), shape).name,
    }
