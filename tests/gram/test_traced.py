"""`jit(batch(kernel_fn, n))` is a loop over tiles: the same numbers, in the memory of one tile."""

import os
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import widelimit as wl
from widelimit import stax
from widelimit.stax import Conv, Dense, Relu, serial

FLAT = serial(Dense(4, 1.4, 0.1), Relu(), Dense(1, 1.2))
CNN = serial(
    *(Conv(4, (3, 3), padding="SAME"), Relu(), Conv(4, (3, 3), padding="SAME"), Relu()),
    *(stax.GlobalAvgPool(), Dense(1)),
)
X1 = np.random.default_rng(0).standard_normal((7, 3)).astype(np.float32)
X2 = np.random.default_rng(1).standard_normal((5, 3)).astype(np.float32)


def near(result: Any, expected: Any) -> None:
    """Equal trees, up to rounding."""
    assert jax.tree.structure(result) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
        assert np.shape(one) == np.shape(other)
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-6)


def polynomial(x1: Any, x2: Any = None, power: Any = 2.0) -> Any:
    return (1 + x1 @ (x1 if x2 is None else x2).T / 9) ** power


@pytest.mark.parametrize("size", [1, 2, 3, 7, 9])
@pytest.mark.parametrize("x2", [None, X2], ids=["none", "other"])
def test_every_size(size: int, x2: Any) -> None:
    batched = wl.batch(FLAT.kernel_fn, size)
    for get in ("ntk", ("nngp", "ntk")):
        result = jax.jit(lambda a, b, get=get: batched(a, b, get))(X1, x2)
        near(tuple(jax.tree.leaves(result)), tuple(jax.tree.leaves(FLAT.kernel_fn(X1, x2, get))))


@pytest.mark.parametrize("x2", [None, X2, X1.copy()], ids=["none", "other", "equal"])
def test_whole_kernels(x2: Any) -> None:
    result = jax.jit(wl.batch(FLAT.kernel_fn, 3))(X1, x2)
    near(result, jax.jit(FLAT.kernel_fn)(X1, x2))
    assert result.shape1 == (7, 1)
    rest = serial(Relu(), Dense(1))
    kernel = FLAT.kernel_fn(X1, x2)
    near(jax.jit(wl.batch(rest.kernel_fn, 3))(kernel), jax.jit(rest.kernel_fn)(kernel))


def test_branches_and_graphs() -> None:
    branches = stax.parallel(FLAT, Dense(2))
    batched = jax.jit(lambda a, b: wl.batch(branches.kernel_fn, 2)((a, a), (b, b), "ntk"))
    near(batched(X1, X2), branches.kernel_fn((X1, X1), (X2, X2), "ntk"))
    graphs = serial(stax.Aggregate(), Dense(4), Relu(), stax.GlobalSumPool(), Dense(1))
    rng = np.random.default_rng(2)
    x1, x2, p1, p2 = (
        rng.random(s).astype(np.float32) for s in [(3, 3, 2), (5, 3, 2), (3, 3, 3), (5, 3, 3)]
    )
    batched = jax.jit(
        lambda *args: wl.batch(graphs.kernel_fn, 2)(args[0], args[1], "ntk", pattern=args[2:])
    )
    near(batched(x1, x2, p1, p2), graphs.kernel_fn(x1, x2, "ntk", pattern=(p1, p2)))


def test_masks_with_other_batch_axes() -> None:
    net = serial(Conv(4, (2,), b_std=0.3), Relu(), stax.GlobalAvgPool(), Dense(1))
    x = np.random.default_rng(3).standard_normal((5, 4, 2)).astype(np.float32)
    x[0, 2:] = 7.0
    batched = wl.batch(net.kernel_fn, 2)
    for get in ("ntk", None):
        whole = jax.jit(lambda x, get=get: net.kernel_fn(x, None, get, mask_constant=7.0))(x)
        near(jax.jit(lambda x, get=get: batched(x, None, get, mask_constant=7.0))(x), whole)
    last = serial(Dense(3, batch_axis=1, channel_axis=0), Relu())
    near(
        jax.jit(lambda x: wl.batch(last.kernel_fn, 2)(x, None, "nngp"))(X1.T),
        last.kernel_fn(X1.T, None, "nngp"),
    )


def test_empirical_kernels() -> None:
    init_fn, apply_fn = FLAT.init_fn, FLAT.apply_fn
    params = init_fn(jax.random.key(0), X1.shape)[1]
    functions = [
        wl.empirical_ntk_fn(apply_fn),
        wl.empirical_ntk_fn(apply_fn, trace_axes=(), vmap_axes=0),
        wl.empirical_ntk_fn(apply_fn, diagonal_axes=(0,)),
    ]
    for function in functions:
        for x2 in (None, X1[::-1].copy()):
            near(jax.jit(wl.batch(function, 3))(X1, x2, params), function(X1, x2, params))
    both = wl.empirical_kernel_fn(apply_fn)
    batched = jax.jit(lambda a, b, p: wl.batch(both, 2)(a, b, ("nngp", "ntk"), p))
    near(batched(X1, X2, params), both(X1, X2, ("nngp", "ntk"), params))


def test_noise_is_another_one_in_every_tile() -> None:
    def kernel_fn(x1: Any, x2: Any = None, *, rng: Any) -> Any:
        return polynomial(x1, x2) * 0 + jax.random.normal(rng, ())

    key = jax.random.key(0)
    for x2 in (X1, X2):
        result = jax.jit(lambda a, b: wl.batch(kernel_fn, 3)(a, b, rng=key))(X1, x2)
        near(result, wl.batch(kernel_fn, 3)(X1, x2, rng=key))


def test_derivatives() -> None:
    batched = wl.batch(polynomial, 3)
    weights = np.random.default_rng(4).standard_normal((7, 7)).astype(np.float32)

    def loss(fn: Any) -> Any:
        return lambda x: (fn(x, None) * weights).sum()

    near(jax.grad(loss(batched))(X1), jax.grad(loss(polynomial))(X1))
    near(jax.jit(jax.grad(loss(batched)))(X1), jax.grad(loss(polynomial))(X1))
    forward = jax.jacfwd(lambda p: batched(X1, X2, p))(2.5)
    near(forward, jax.jacfwd(lambda p: polynomial(X1, X2, p))(2.5))
    hessian = jax.hessian(lambda p: loss(lambda a, b: batched(a, b, p))(X1))(2.5)
    expected = jax.hessian(lambda p: loss(lambda a, b: polynomial(a, b, p))(X1))(2.5)
    np.testing.assert_allclose(hessian, expected, rtol=1e-4)

    def of_network(w_std: Any) -> Any:
        net = serial(Dense(4, w_std, 0.1), Relu(), Dense(1))
        return net.kernel_fn, wl.batch(net.kernel_fn, 3)

    slopes = [jax.jacfwd(lambda w, i=i: of_network(w)[i](X1, X2, "ntk"))(1.3) for i in (0, 1)]
    near(slopes[1], slopes[0])
    slopes = [jax.grad(lambda w, i=i: of_network(w)[i](X1, None, "ntk").sum())(1.3) for i in (0, 1)]
    near(slopes[1], slopes[0])


def test_vmap_and_what_the_function_knows() -> None:
    sets = np.stack([X1, X1[::-1], 2 * X1])
    result = jax.vmap(lambda x: wl.batch(polynomial, 3)(x, X2))(sets)
    near(result, jnp.stack([polynomial(x, X2) for x in sets]))

    @jax.jit
    def with_closure(scale: Any) -> Any:
        return wl.batch(lambda a, b=None: polynomial(a, b) * scale, 3)(X1)

    for scale in (2.0, 3.0):
        near(with_closure(scale), polynomial(X1) * np.float32(scale))
    near(jax.grad(lambda s: with_closure(s).sum())(2.0), polynomial(X1).sum())


def temporary(fn: Any, *args: Any) -> int:
    """Bytes that a compiled function takes beside its arguments and its result."""
    return int(jax.jit(fn).lower(*args).compile().memory_analysis().temp_size_in_bytes)


@pytest.mark.usefixtures("reference_engine")
@pytest.mark.parametrize("symmetric", [True, False])
def test_memory_of_one_tile(symmetric: bool) -> None:
    x = np.random.default_rng(5).standard_normal((12, 8, 8, 3)).astype(np.float32)

    def kernel_fn(x1: Any, x2: Any) -> Any:
        return CNN.kernel_fn(x1, None if symmetric else x2, "ntk")

    def tiled(x1: Any, x2: Any) -> Any:
        return wl.batch(CNN.kernel_fn, 3)(x1, None if symmetric else x2, "ntk")

    whole, loop = temporary(kernel_fn, x, x + 1), temporary(tiled, x, x + 1)
    # A tile off the diagonal: between two sets of samples.
    tile = temporary(lambda a, b: CNN.kernel_fn(a, b, "ntk"), x[:3], x[3:6])
    result, inputs = 4 * 12 * 12, 2 * x.nbytes
    assert loop <= 1.5 * (tile + result) + inputs
    assert loop < whole / 4


def test_memory_of_other_functions() -> None:
    def distances(x1: Any, x2: Any = None) -> Any:
        other = x1 if x2 is None else x2
        return jnp.sort(abs(x1[:, None] - other[None]), -1)[..., :5].sum(-1)

    x = np.random.default_rng(6).standard_normal((64, 300)).astype(np.float32)
    batched = wl.batch(distances, 8)
    whole, loop = temporary(distances, x), temporary(batched, x)
    tile = temporary(distances, x[:8], x[8:16])
    assert loop <= 1.5 * (tile + 4 * 64 * 64) + 2 * x.nbytes
    assert loop < whole / 8
    slopes = [temporary(jax.grad(lambda x, f=f: f(x).sum()), x) for f in (distances, batched)]
    assert slopes[1] < slopes[0] / 8
    near(jax.jit(batched)(x), distances(x))


def test_outside_of_jit_no_loop_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def scan(*args: Any) -> Any:
        raise RuntimeError("compiled at every call")

    monkeypatch.setattr(lax, "scan", scan)
    batched = wl.batch(polynomial, 2)
    near(jax.vmap(lambda x: batched(x))(X1[None])[0], polynomial(X1))
    near(jax.grad(lambda x: batched(x).sum())(X1), jax.grad(lambda x: polynomial(x).sum())(X1))
    with pytest.raises(RuntimeError, match="compiled"):
        jax.jit(batched)(X1)


TWO_DEVICES = """
import jax, jax.numpy as jnp, numpy as np, widelimit as wl
from jax.sharding import Mesh, PartitionSpec as P
from widelimit import stax
assert jax.local_device_count() == 2
mesh = Mesh(np.array(jax.devices()), ("i",))
rng = np.random.default_rng(0)
x, y, p = (rng.standard_normal(s).astype(np.float32) for s in ((8, 6), (5, 6), (6, 3)))
net = stax.serial(stax.Dense(4, 1.4, 0.1), stax.Relu(), stax.Dense(1))
k = wl.batch(net.kernel_fn, 2)
split = lambda g, *specs: jax.shard_map(g, mesh=mesh, in_specs=specs, out_specs=P("i"))
rows = split(lambda a, b: k(a, b, "ntk"), P("i"), P())
np.testing.assert_allclose(jax.jit(rows)(x, y), net.kernel_fn(x, y, "ntk"), rtol=1e-5, atol=1e-6)
own = split(lambda a: k(a, None, "ntk"), P("i"))
whole = np.asarray(net.kernel_fn(x, None, "ntk"))
np.testing.assert_allclose(own(x), np.concatenate([whole[:4, :4], whole[4:, 4:]]), rtol=1e-5)
slope = jax.grad(lambda a: rows(a, y).sum())(x)
expected = jax.grad(lambda a: net.kernel_fn(a, y, "ntk").sum())(x)
np.testing.assert_allclose(slope, expected, rtol=1e-4)

f = lambda p, x: jnp.tanh(x @ p)
for axes in ((), (0,)):
    fn = wl.empirical_ntk_fn(f, diagonal_axes=axes)
    second = x[::-1].copy()
    whole = np.asarray(fn(x, second, p))
    halves = split(lambda a, p, fn=fn: wl.batch(fn, 3)(a, None, p), P("i"), P())(x, p)
    np.testing.assert_allclose(halves[:4], fn(x[:4], None, p), rtol=1e-5, atol=1e-6)
    # Rows of tiles are split over the devices.
    for size in (1, 2, 3):
        for x2, expected in ((second, whole), (None, np.asarray(fn(x, None, p)))):
            np.testing.assert_allclose(wl.batch(fn, size)(x, x2, p), expected, rtol=1e-5, atol=1e-6)
            gram = wl.gram(lambda a, b, get: fn(a, b, p), x, x2, memory=6000, progress=False)
            np.testing.assert_allclose(gram, expected, rtol=1e-5, atol=1e-6)
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
