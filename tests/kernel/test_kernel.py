"""The public Kernel: fields, arithmetic, slices, composition of layers through kernels, `get`."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl
from tests.tolerance import assert_close
from widelimit.stax import (
    Cos,
    Dense,
    Erf,
    FanInSum,
    FanOut,
    Flatten,
    Identity,
    LayerNorm,
    Relu,
    parallel,
    serial,
)

FIELDS = [
    "nngp",
    "ntk",
    "cov1",
    "cov2",
    "x1_is_x2",
    "is_gaussian",
    "is_reversed",
    "is_input",
    "diagonal_batch",
    "diagonal_spatial",
    "shape1",
    "shape2",
    "batch_axis",
    "channel_axis",
    "mask1",
    "mask2",
]
X1 = np.random.default_rng(0).standard_normal((4, 5))
X2 = np.random.default_rng(1).standard_normal((3, 5))
NET = serial(Dense(6, 1.2, 0.3), Relu(), Dense(2, 1.1, 0.2))
SPACE = np.random.default_rng(2).standard_normal((3, 2, 2, 5))


def test_fields_in_order():
    kernel = NET.kernel_fn(X1, X2)
    assert isinstance(kernel, wl.Kernel)
    assert list(kernel.asdict()) == FIELDS
    assert kernel.astuple() == tuple(kernel.asdict().values())
    assert kernel.astuple()[0] is kernel.nngp
    assert (kernel.is_reversed, kernel.is_input, kernel.diagonal_batch) == (False, False, True)
    assert kernel.replace(ntk=None).ntk is None
    assert kernel.ntk is not None
    with pytest.raises(AttributeError):
        kernel.nngp = 1
    assert "nngp=float32(4, 3)" in repr(kernel)


def test_get():
    kernel = NET.kernel_fn(X1, X2)
    for name in FIELDS:
        value, expected = NET.kernel_fn(X1, X2, name), getattr(kernel, name)
        if isinstance(expected, jax.Array):
            assert_close(value, expected)
        else:
            assert value == expected
    assert_close(NET.kernel_fn(X1, X2, "NTK"), kernel.ntk)
    assert_close(NET.kernel_fn(X1, x2=X2, get="nngp"), kernel.nngp)
    for names in (("ntk", "nngp"), ["nTk", "nngp"], ("cov1", "shape1", "ntk", "x1_is_x2")):
        result = NET.kernel_fn(X1, X2, names)
        assert type(result).__name__ == "AnalyticKernel"
        assert result._fields == tuple(name.lower() for name in names)
        assert_close(result.ntk, kernel.ntk)
    assert result._replace(ntk=1).ntk == 1
    assert result._asdict()["shape1"] == (4, 2)
    assert NET.kernel_fn(X1, X2, ("nngp",))._fields == ("nngp",)
    for bad in ("foo", (), ("ntk", "NTK"), ("ntk", 3), 1):
        with pytest.raises(ValueError, match="expected get to be None, one of nngp, ntk"):
            NET.kernel_fn(X1, X2, bad)


def test_signature_and_jit():
    names = list(inspect.signature(NET.kernel_fn).parameters)
    assert names[:3] == ["x1", "x2", "get"]
    expected = NET.kernel_fn(X1, X2)
    by_name = jax.jit(NET.kernel_fn, static_argnames="get")
    assert_close(by_name(X1, X2, get="ntk"), expected.ntk)
    assert_close(by_name(X1, X2, "nngp"), expected.nngp)
    assert_close(by_name(X1, None, ("nngp", "ntk")).ntk, NET.kernel_fn(X1).ntk)
    kernel = jax.jit(NET.kernel_fn)(X1, X2)
    assert isinstance(kernel, wl.Kernel)
    assert kernel.shape2 == (3, 2)
    assert_close(kernel.cov2, expected.cov2)
    # A traced x2 that happens to be x1 is not taken as equal.
    assert not jax.jit(lambda a, b: NET.kernel_fn(a, b, "x1_is_x2"))(X1, X1)
    assert jax.jit(lambda a: NET.kernel_fn(a, a, "x1_is_x2"))(X1)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("x2", [X2, None, X1.copy()], ids=["x2", "None", "copy"])
def test_layer_by_layer(x2):
    layers = Dense(6, 1.2, 0.3), Erf(), Dense(6, 1.1), LayerNorm(), Relu(), Dense(2)
    kernel = layers[0].kernel_fn(X1, x2)
    for layer in layers[1:]:
        kernel = layer.kernel_fn(kernel)
    expected = serial(*layers).kernel_fn(X1, x2)
    assert jax.tree.structure(kernel) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(kernel), jax.tree.leaves(expected), strict=True):
        assert_close(a, b)


@pytest.mark.usefixtures("x64")
def test_layer_by_layer_with_space():
    x2 = SPACE[:2] + 0.5
    first, rest = Dense(6, 1.2, 0.3), serial(Cos(), Dense(4, 1.1, 0.1))
    last = Flatten()
    kernel = rest.kernel_fn(first.kernel_fn(SPACE, x2))
    expected = serial(first, rest).kernel_fn(SPACE, x2)
    assert_close(kernel.nngp, expected.nngp)
    assert_close(kernel.ntk, expected.ntk)
    assert_close(kernel.cov1, expected.cov1)
    whole = serial(first, rest, last).kernel_fn(SPACE, x2)
    assert_close(last.kernel_fn(kernel).ntk, whole.ntk)

    diagonal = rest.kernel_fn(first.kernel_fn(SPACE, x2, diagonal_spatial=True))
    assert diagonal.diagonal_spatial
    assert_close(diagonal.ntk, np.einsum("nmhhww->nmhw", expected.ntk))
    assert_close(diagonal.cov1, np.einsum("nhhww->nhw", expected.cov1))
    assert_close(last.kernel_fn(diagonal).ntk, whole.ntk)
    with pytest.raises(ValueError, match="Kernel with all pairs of positions"):
        rest.kernel_fn(first.kernel_fn(SPACE, x2, diagonal_spatial=True), diagonal_spatial=False)


@pytest.mark.usefixtures("x64")
def test_trees_of_kernels():
    net, join = parallel(NET, Dense(2)), serial(FanInSum(), Relu())
    for container in (list, tuple):
        kernels = net.kernel_fn(container([X1, X1]), container([X2, X2]))
        assert type(kernels) is container
        expected = serial(net, join).kernel_fn(container([X1, X1]), container([X2, X2]))
        assert_close(join.kernel_fn(kernels).ntk, expected.ntk)
    branches = FanOut(2).kernel_fn(NET.kernel_fn(X1, X2))
    assert_close(branches[1].ntk, NET.kernel_fn(X1, X2, "ntk"))
    with pytest.raises(NotImplementedError, match="both depend on '<kernel>'"):
        serial(FanOut(2), FanInSum()).kernel_fn(NET.kernel_fn(X1, X2))


def test_bad_kernels():
    kernel = Dense(2).kernel_fn(X1, X2)
    with pytest.raises(ValueError, match="x2=None with a Kernel"):
        Relu().kernel_fn(kernel, X2)
    with pytest.raises(TypeError, match="arrays only or Kernels only in x1, got both"):
        parallel(Relu(), Dense(2)).kernel_fn([kernel, X1])
    with pytest.raises(ValueError, match="Kernels between the same inputs"):
        parallel(Relu(), Relu()).kernel_fn([kernel, Dense(2).kernel_fn(X1)])


@pytest.mark.usefixtures("x64")
def test_arithmetic():
    kernel = NET.kernel_fn(X1, X2)
    for scaled in (kernel * 3, 3 * kernel, kernel / (1 / 3)):
        for field in ("nngp", "ntk", "cov1", "cov2"):
            assert_close(getattr(scaled, field), 9 * getattr(kernel, field))
    for shifted in (kernel + 3, kernel - 3):
        assert_close(shifted.ntk, kernel.ntk)
        for field in ("nngp", "cov1", "cov2"):
            assert_close(getattr(shifted, field), getattr(kernel, field) + 9)
    assert +kernel is kernel
    assert -kernel is kernel
    assert (NET.kernel_fn(X1) * 2).cov2 is None
    assert (NET.kernel_fn(X1, X2).replace(ntk=None) * 2).ntk is None


@pytest.mark.usefixtures("x64")
def test_slice():
    for full, x2 in ((NET.kernel_fn(X1, X2), X2), (NET.kernel_fn(X1), X1)):
        part = full.slice(slice(1, 3), slice(None, None, 2))
        expected = NET.kernel_fn(X1[1:3], x2[::2])
        for field in ("nngp", "ntk", "cov1", "cov2"):
            assert_close(getattr(part, field), getattr(expected, field))
        assert (part.shape1, part.shape2) == (expected.shape1, expected.shape2)
        assert not bool(part.x1_is_x2)
    same = NET.kernel_fn(X1).slice(slice(2), slice(2))
    assert bool(same.x1_is_x2)
    masked = NET.kernel_fn(np.where(X1 > 1, 7.0, X1), None, mask_constant=7.0)
    assert masked.slice(slice(1), slice(2)).mask2.shape == (2, 1)
    scalar = Identity().kernel_fn(X1).slice(slice(1), slice(2))
    assert scalar.ntk.shape == ()


@pytest.mark.usefixtures("x64")
def test_diagonal_batch():
    full = NET.kernel_fn(X1, X2, diagonal_batch=False)
    assert not full.diagonal_batch
    assert_close(full.cov1, NET.kernel_fn(X1, None, "nngp"))
    assert_close(full.cov2, NET.kernel_fn(X2, None, "nngp"))
    assert_close(full.ntk, NET.kernel_fn(X1, X2, "ntk"))
    assert_close(NET.kernel_fn(X1, X2, "cov1", diagonal_batch=False), full.cov1)
    assert NET.kernel_fn(X1, None, diagonal_batch=False).cov2 is None
    part = full.slice(slice(2), slice(1))
    assert_close(part.cov1, full.cov1[:2, :2])
    with pytest.raises(NotImplementedError, match="arrays with diagonal_batch=False"):
        Relu().kernel_fn(Dense(2).kernel_fn(X1), diagonal_batch=False)


@pytest.mark.usefixtures("x64")
def test_diagonal_spatial():
    net = serial(Dense(6, 1.2, 0.3), Cos(), Dense(2))
    x2 = SPACE[:2] + 0.3
    full = net.kernel_fn(SPACE, x2)
    assert full.nngp.shape == (3, 2, 2, 2, 2, 2)
    diagonal = net.kernel_fn(SPACE, x2, diagonal_spatial=True)
    for field, axes in (("nngp", "nmhhww->nmhw"), ("ntk", "nmhhww->nmhw"), ("cov2", "mhhww->mhw")):
        assert_close(getattr(diagonal, field), np.einsum(axes, getattr(full, field)))
    symmetric = net.kernel_fn(SPACE, None, "ntk")
    np.testing.assert_array_equal(symmetric, symmetric.transpose(1, 0, 3, 2, 5, 4))


def test_kernels_are_trees():
    kernel = NET.kernel_fn(X1, X2)
    doubled = jax.jit(lambda k: jax.tree.map(lambda v: 2 * v, k.replace(x1_is_x2=None)))(kernel)
    assert_close(doubled.ntk, 2 * kernel.ntk)
    assert doubled.shape1 == kernel.shape1
    leaves = jax.tree.leaves(kernel)
    assert len(leaves) == 5
    grad = jax.grad(lambda w: (Dense(2, w).kernel_fn(NET.layers[0].kernel_fn(X1, X2)).ntk).sum())(
        1.5
    )
    assert jnp.isfinite(grad)


def test_ntk_before_any_parameters():
    assert Identity().kernel_fn(X1).ntk.shape == ()
    assert Identity().kernel_fn(X1, None, "ntk") == 0
    assert Identity().kernel_fn(Identity().kernel_fn(X1)).ntk.shape == ()
    assert Dense(2, trainable=False).kernel_fn(X1, X2, "ntk").shape == (4, 3)
    frozen = Relu().kernel_fn(Dense(2, trainable=False).kernel_fn(X1, X2))
    assert frozen.ntk.shape == (4, 3)
    assert NET.kernel_fn(X1, X2, ("nngp", "cov1"))._fields == ("nngp", "cov1")
