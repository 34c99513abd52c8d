"""Where samples are in results of any kernel function, whatever their first axes are."""

import collections
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl
from widelimit.gram import callables, compute, kernels, sizes
from widelimit.gram.layout import find_layout
from widelimit.gram.storage import Memory
from widelimit.stax import Dense, Relu, serial

PARAMS = np.arange(1.0, 7.0, dtype=np.float32).reshape(2, 3) / 6
X1 = np.random.default_rng(0).standard_normal((10, 2)).astype(np.float32)
X2 = np.random.default_rng(1).standard_normal((10, 2)).astype(np.float32)
SMALL = 4_000  # bytes, tiles of a few samples


def network(params: Any, x: Any) -> Any:
    return jnp.tanh(x @ params)


def jacobians(x: np.ndarray) -> np.ndarray:
    """[n, class, parameters] of `network`: d tanh(x p)_c / d p_ij = tanh'(.)_c x_i delta_cj."""
    slope = 1 - np.tanh(x @ PARAMS) ** 2
    full = np.einsum("nc,ni,cj->ncij", slope, x, np.eye(3))
    return full.reshape(len(x), 3, 6)


def product(x1: Any, x2: Any = None, get: Any = None) -> Any:
    return x1 @ (x1 if x2 is None else x2).T


def near(result: Any, expected: Any) -> None:
    np.testing.assert_allclose(result, expected, rtol=2e-5, atol=1e-5)


class Named(NamedTuple):
    cov1: Any
    cov2: Any
    ntk: Any


@pytest.mark.parametrize("x2", [None, X2, X1.copy()], ids=["none", "other", "equal"])
def test_equal_samples_of_an_empirical_kernel(x2: Any, tmp_path: Path) -> None:
    fn = wl.empirical_ntk_fn(network, diagonal_axes=(0,))
    other = X1 if x2 is None else x2
    expected = np.einsum("ncp,ncp->n", jacobians(X1), jacobians(other)) / 3
    near(fn(X1, x2, PARAMS), expected)
    near(wl.batch(fn, 4)(X1, x2, PARAMS), expected)

    def kernel_fn(x1: Any, x2: Any, get: Any) -> Any:
        return fn(x1, x2, PARAMS)

    near(wl.gram(kernel_fn, X1, x2, memory=SMALL, progress=False), expected)
    path = tmp_path / "kernel.npy"
    near(wl.gram(kernel_fn, X1, x2, memory=SMALL, progress=False, out=path), expected)
    near(np.load(path), expected)


@pytest.mark.parametrize("size", [1, 3, 7])
def test_equal_samples_with_other_axes(size: int) -> None:
    """Classes in front, and all pairs of classes."""
    fn = wl.empirical_ntk_fn(network, trace_axes=(), diagonal_axes=(0,))
    j = jacobians(X1)
    near(wl.batch(fn, size)(X1, None, PARAMS), np.einsum("ncp,ndp->ncd", j, j))

    def shorter(x1: Any, x2: Any = None, get: Any = None) -> Any:
        count = min(len(x1), len(x1 if x2 is None else x2))
        return (x1[:count] * (x1 if x2 is None else x2)[:count]).T

    near(wl.batch(shorter, size)(X1, X2), (X1 * X2).T)
    near(wl.batch(lambda x1, x2=None: np.diag(product(x1, x2)), size)(X1, X2), (X1 * X2).sum(1))


def test_equal_samples_need_as_many_on_both_sides() -> None:
    fn = wl.empirical_ntk_fn(network, diagonal_axes=(0,))

    def shorter(x1: Any, x2: Any, get: Any = None) -> Any:
        count = min(len(x1), len(x2))
        return (x1[:count] * x2[:count]).sum(1)

    for function, args in ((fn, (PARAMS,)), (shorter, ())):
        with pytest.raises(ValueError, match=r"as many samples in x1 as in x2.* 10 and 7"):
            wl.batch(function, 4)(X1, X2[:7], *args)


@pytest.mark.parametrize("jit", [False, True])
def test_totals_are_refused(jit: bool) -> None:
    traces = wl.empirical_ntk_fn(network, trace_axes=(0,))
    sums = wl.empirical_ntk_fn(lambda p, x: network(p, x).sum(), trace_axes=())
    functions = [
        lambda x1, x2=None: traces(x1, x2, PARAMS),
        lambda x1, x2=None: sums(x1, x2, PARAMS),
        lambda x1, x2=None: product(x1, x2).mean(),
        lambda x1, x2=None: product(x1, x2).max(),
        lambda x1, x2=None: (product(x1, x2), product(x1, x2).sum()),
        lambda x1, x2=None: {"k": product(x1, x2), "n": jnp.ones(3) * len(x1)},
    ]
    largest_first = X1[np.argsort(-(X1**2).sum(1))]
    for function in functions:
        for size in (3, 4):  # 3 classes: results of one tile look like samples
            batched = wl.batch(function, size)
            with pytest.raises(ValueError, match=r"got.* shape .* a sum or mean over samples"):
                (jax.jit(batched) if jit else batched)(largest_first)
            near(jax.tree.leaves(wl.batch(function, 10)(X1))[-1], jax.tree.leaves(function(X1))[-1])


def test_sums_over_one_side_are_refused() -> None:
    functions = [
        lambda x1, x2=None: product(x1, x2).sum(1),
        lambda x1, x2=None: product(x1, x2).mean(0),
        lambda x1, x2=None: (product(x1, x2), (x1**2).sum(1)),
    ]
    for function in functions:
        with pytest.raises(ValueError, match=r"samples of x[12] only, which may have summed"):
            wl.batch(function, 4)(X1, X2)
    with pytest.raises(ValueError, match=r"one axis of samples of x1 and one of x2.* \(2, 2\)"):
        wl.batch(lambda x1, x2=None: x1 @ x1.T, 4)(X1)


def test_functions_that_jax_cannot_trace() -> None:
    calls: collections.Counter[Any] = collections.Counter()

    def distances(x1: Any, x2: Any = None, get: Any = None) -> np.ndarray:
        a, b = np.array(x1), np.array(x1 if x2 is None else x2)
        calls[len(a), len(b)] += 1
        return np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))

    expected = np.sqrt(((X1[:, None] - X2[None]) ** 2).sum(-1))
    near(wl.batch(distances, 5)(X1, X2), expected)
    assert calls == {(2, 3): 1, (5, 7): 1, (5, 5): 4}
    calls.clear()
    near(wl.batch(distances, 10)(X1, X2), expected)
    assert calls == {(10, 10): 1}
    near(wl.batch(lambda a, b=None: np.diag(distances(a, b)), 4)(X1, X2), np.diag(expected))
    with pytest.raises(ValueError, match="a sum or mean over samples"):
        wl.batch(lambda a, b=None: float(distances(a, b).sum()), 4)(X1, X2)


@pytest.mark.usefixtures("reference_engine")  # the other one takes 4 MiB
def test_kernels_of_networks_are_not_called_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: Any) -> Any:
        raise AssertionError

    for module in (callables, kernels):
        monkeypatch.setattr(module, "find_layout", refused)
    net = serial(Dense(4), Relu(), Dense(1))
    whole = net.kernel_fn(X1)
    near(wl.batch(net.kernel_fn, 4)(X1, None, "ntk"), whole.ntk)
    near(jax.jit(lambda x: wl.batch(net.kernel_fn, 4)(x, None, "ntk"))(X1), whole.ntk)
    near(wl.gram(net, X1, memory=SMALL, progress=False), whole.ntk)
    near(wl.batch(net.kernel_fn, 4)(net.kernel_fn(X1)).ntk, net.kernel_fn(whole).ntk)


@pytest.mark.parametrize("x2", [None, X2[:7]], ids=["none", "other"])
def test_named_tuples_with_fields_of_one_side(x2: Any) -> None:
    def kernel_fn(x1: Any, x2: Any = None) -> Named:
        cov2 = None if x2 is None else (x2**2).sum(1)
        return Named((x1**2).sum(1), cov2, product(x1, x2))

    expected = kernel_fn(X1, x2)
    for batched in (wl.batch(kernel_fn, 4), jax.jit(wl.batch(kernel_fn, 4))):
        result = batched(X1, x2)
        jax.tree.map(near, result, expected)
        assert type(result) is Named


def test_samples_in_other_axes() -> None:
    """Behind the classes, x2 in front, and with axes as long as a tile between."""
    per_class = wl.empirical_ntk_fn(network, trace_axes=())
    functions = [
        lambda x1, x2=None: jnp.moveaxis(per_class(x1, x2, PARAMS), (0, 1), (2, 3)),
        lambda x1, x2=None: product(x1, x2).T,
        lambda x1, x2=None: jnp.einsum("ia,jb->aibj", x1, x1 if x2 is None else x2),
    ]
    for function in functions:
        for x2 in (None, X2[:7]):
            for size in (2, 3):
                near(wl.batch(function, size)(X1, x2), function(X1, x2))
        near(jax.jit(wl.batch(function, 3))(X1, x2), function(X1, x2))


def test_functions_of_multiples_of_samples() -> None:
    def kernel_fn(x1: Any, x2: Any = None) -> Any:
        pieces = x1.reshape(2, -1, 4, 2)
        return product(pieces.reshape(-1, 2), x2)

    x = np.concatenate([X1, X2])[:16]
    near(wl.batch(kernel_fn, 8)(x), product(x))
    with pytest.raises(TypeError) as caught:
        wl.batch(lambda x1, x2: x1 + None, 4)(x)
    assert "called with few samples" in caught.value.__notes__[0]


def test_constants_may_stand_beside_kernels() -> None:
    net = serial(Dense(4), Relu())

    def kernel_fn(x1: Any, x2: Any = None) -> Any:
        return product(x1, x2), 3.0, "name", np.array([1.0, np.nan]), net.kernel_fn(x1, x2)

    kernel, number, name, array, whole = wl.batch(kernel_fn, 4)(X1)
    near(kernel, product(X1))
    assert (number, name) == (3.0, "name")
    np.testing.assert_array_equal(array, [1.0, np.nan])
    near(whole.nngp, net.kernel_fn(X1).nngp)
    with pytest.raises(ValueError, match="the same structure for any number"):
        wl.batch(lambda a, b=None: (product(a, b),) * len(a), 4)(X1)


def test_places() -> None:
    def example(n1: int, n2: int | None, values: bool) -> Any:
        n2 = n1 if n2 is None else n2
        return {"a": np.zeros((3, n2, n1)), "b": np.zeros((n1, 5, n2))}

    layout = find_layout(example, None, given_x2=True)
    assert {key: place.axes for key, place in layout.items()} == {"['a']": (2, 1), "['b']": (0, 2)}


def test_functions_around_a_network() -> None:
    net = serial(Dense(4), Relu(), Dense(1))
    batched = wl.batch(lambda *args: net.kernel_fn(*args), 3)
    for x2 in (None, X2[:7], X1.copy()):
        for get in (None, ("cov1", "nngp", "x1_is_x2", "is_gaussian", "cov2")):
            result, expected = batched(X1, x2, get), net.kernel_fn(X1, x2, get)
            assert jax.tree.structure(result) == jax.tree.structure(expected)
            jax.tree.map(near, result, expected)
    with pytest.raises(ValueError, match=r"result.shape1\[0\]"):
        batched(X1, None, ("nngp", "shape1"))


def test_no_samples() -> None:
    net, none = serial(Dense(4), Relu(), Dense(1)), X1[:0]
    for kernel_fn in (net.kernel_fn, lambda *args: net.kernel_fn(*args)):
        batched = wl.batch(kernel_fn, 3)
        for x1, x2 in ((none, None), (X1, none), (none, X1)):
            for function in (batched, jax.jit(batched, static_argnums=2)):
                assert function(x1, x2, "ntk").shape == (len(x1), len(x1 if x2 is None else x2))


def test_progress_is_shared_by_the_tiles_that_are_computed() -> None:
    diagonal = wl.empirical_ntk_fn(network, diagonal_axes=(0,))

    def steps(kernel_fn: Any) -> list[int]:
        tiler = compute.make_tiler(kernel_fn, X1, None, ("ntk",), jax.local_devices()[:1], {})
        grid = sizes.fixed_grid(tiler, 5, 1)
        return list(compute._Assembly(tiler, grid, "ntk", Memory()).run())

    assert steps(lambda a, b, get: diagonal(a, b, PARAMS)) == [50, 50]
    assert steps(product) == [33, 33, 34]


def test_another_rank_without_an_x2_is_refused() -> None:
    def fn(x1: Any, x2: Any = None, get: Any = None) -> Any:
        return (x1**2).sum(1) if x2 is None else product(x1, x2)

    for batched in (wl.batch(fn, 4), jax.jit(wl.batch(fn, 4))):
        with pytest.raises(ValueError, match="the same structure and axes for x2=None"):
            batched(X1)
