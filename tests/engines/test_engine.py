"""Engines: which one is chosen, kept, and one of the user's own."""

import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl
from widelimit import stax
from widelimit.engines.choose import choose
from widelimit.engines.request import Request

X = np.random.default_rng(0).standard_normal((7, 5)).astype(np.float32)
NET = stax.serial(stax.Dense(1, 1.3, 0.2), stax.Dense(1))


class Oracle(wl.Engine):
    """The kernel of two linear layers, in NumPy."""

    def __init__(self, net, shape, request):
        self.fields = request.fields

    def prepare(self, x):
        return np.asarray(x)

    def pairs(self, first, second):
        second = first if second is None else second
        inner = 1.3**2 * first @ second.T / first.shape[1] + 0.2**2
        ntk = 2 * inner  # of the last layer and, through it, of the first
        both = {"nngp": inner, "ntk": ntk}
        return {name: jnp.asarray(both[name]) for name in self.fields}


def test_one_of_the_users_own_serves_kernel_fn_gram_batch_and_ensembles() -> None:
    right = NET.kernel_fn(X, X[:3], ("nngp", "ntk"))
    found = NET.kernel_fn(X, X[:3], ("nngp", "ntk"), engine=Oracle)
    for one, other in zip(found, right, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    tiles = wl.gram(NET, X, X[:3], engine=Oracle, memory=3000, progress=False)
    np.testing.assert_allclose(tiles, right.ntk, rtol=1e-5)
    batched = wl.batch(NET.kernel_fn, 2)(X, X[:3], "ntk", engine=Oracle)
    np.testing.assert_allclose(batched, right.ntk, rtol=1e-5)


def test_what_an_own_engine_does_not_compute_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected get to be one of nngp, .*got None"):
        NET.kernel_fn(X, engine=Oracle)
    with pytest.raises(ValueError, match="computes, but there are masks"):
        NET.kernel_fn(X, None, "ntk", engine=Oracle, mask_constant=0.0)
    with pytest.raises(TypeError, match="expected engine to make an Engine, got int"):
        NET.kernel_fn(X, None, "ntk", engine=lambda *_: 3)
    with pytest.raises(ValueError, match="expected engine to be one of auto, fused, reference"):
        NET.kernel_fn(X, None, "ntk", engine="other")


def test_the_engine_of_a_network_is_kept_with_it() -> None:
    request = Request(("ntk",))
    engine = choose(NET, X.shape, request)
    assert choose(NET, X.shape, request) is engine
    assert choose(NET, (8, 5), request) is not engine
    assert choose(NET, X.shape, request, "reference") is not choose(
        NET, X.shape, Request(("nngp",)), "reference"
    )
