"""FanOut, FanInSum, FanInProd, FanInConcat: formulas, correlated branches, masks, shapes."""

import jax
import numpy as np
import pytest

from tests.monte_carlo import agrees, compare
from tests.tolerance import assert_close
from widelimit.covariance.offsets import Need, Offsets
from widelimit.covariance.signal import Signal
from widelimit.stax import (
    AvgPool,
    Conv,
    Dense,
    Dropout,
    Erf,
    FanInConcat,
    FanInProd,
    FanInSum,
    FanOut,
    Flatten,
    GlobalAvgPool,
    Identity,
    LayerNorm,
    MaskedArray,
    Relu,
    parallel,
    repeat,
    serial,
)

KEY = jax.random.PRNGKey(0)
X1 = np.random.default_rng(0).standard_normal((4, 5))
X2 = np.random.default_rng(1).standard_normal((3, 5))

A = serial(Dense(6, 1.3, 0.2), Relu(), Dense(8, 1.1))
B = serial(Dense(6, 0.7), Erf(), Dense(8, 1.2, 0.4))
C = serial(Dense(8, 1.5, 0.1))


def fork(*branches):
    return serial(FanOut(len(branches)), parallel(*branches))


def kernels(*nets, x2=X2):
    return [net.kernel_fn(X1, x2) for net in nets]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("x2", [X2, None], ids=["x2", "None"])
def test_sum(x2):
    parts = kernels(A, B, C, x2=x2)
    out = serial(fork(A, B, C), FanInSum()).kernel_fn(X1, x2)
    for field in ("nngp", "ntk", "cov1") + (() if x2 is None else ("cov2",)):
        assert_close(getattr(out, field), sum(getattr(k, field) for k in parts))
    assert out.is_gaussian


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("x2", [X2, None], ids=["x2", "None"])
def test_product(x2):
    a, b, c = kernels(A, B, C, x2=x2)
    out = serial(fork(A, B, C), FanInProd()).kernel_fn(X1, x2)
    assert_close(out.nngp, a.nngp * b.nngp * c.nngp)
    expected = a.ntk * b.nngp * c.nngp + a.nngp * b.ntk * c.nngp + a.nngp * b.nngp * c.ntk
    assert_close(out.ntk, expected)
    assert_close(out.cov1, a.cov1 * b.cov1 * c.cov1)
    assert not out.is_gaussian


@pytest.mark.usefixtures("x64")
def test_concat_is_the_mean_weighted_by_width():
    wide = serial(Dense(6, 0.7), Erf(), Dense(24, 1.2, 0.4))
    a, b = kernels(A, wide)
    for axis in (-1, 1):
        out = serial(fork(A, wide), FanInConcat(axis)).kernel_fn(X1, X2)
        assert_close(out.nngp, (a.nngp + 3 * b.nngp) / 4)
        assert_close(out.ntk, (a.ntk + 3 * b.ntk) / 4)
        assert_close(out.cov2, (a.cov2 + 3 * b.cov2) / 4)
        assert out.shape1 == (4, 32)
        assert not out.is_gaussian


@pytest.mark.usefixtures("x64")
def test_product_with_raw_input_and_frozen_branches():
    frozen = serial(Dense(6, trainable=False), Relu(), Dense(5, trainable=False))
    k = frozen.kernel_fn(X1, X2, "nngp")
    x = X1 @ X2.T / 5
    out = serial(fork(frozen, Identity()), FanInProd()).kernel_fn(X1, X2)
    assert_close(out.nngp, k * x)
    assert_close(out.ntk, np.zeros_like(k))
    trained = serial(Dense(6), Relu(), Dense(5))
    out = serial(fork(trained, Identity()), FanInProd()).kernel_fn(X1, X2)
    assert_close(out.ntk, trained.kernel_fn(X1, X2, "ntk") * x)


def test_finite_joins():
    branches = [X1, 2 * X1, 3 * X1]
    assert_close(FanInSum().apply_fn((), branches), 6 * X1)
    assert_close(FanInProd().apply_fn((), branches), 6 * X1**3)
    assert FanInConcat(1).apply_fn((), branches).shape == (4, 15)
    assert FanInConcat(0).apply_fn((), tuple(branches)).shape == (12, 5)
    assert FanInConcat(0).init_fn(KEY, [(4, 5), (2, 5)])[0] == (6, 5)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("join", [FanInSum(), FanInProd(), FanInConcat()])
def test_single_branch_is_itself(join):
    out = serial(fork(A), join).kernel_fn(X1, X2)
    expected = A.kernel_fn(X1, X2)
    assert_close(out.ntk, expected.ntk)
    assert out.is_gaussian
    raw = serial(FanOut(1), join).kernel_fn(X1, X2)
    assert_close(raw.nngp, X1 @ X2.T / 5)


IMAGES1 = np.random.default_rng(2).standard_normal((3, 4, 3, 2))
IMAGES2 = np.random.default_rng(3).standard_normal((2, 4, 3, 2))
LEFT = serial(Conv(5, (2, 2), padding="SAME", W_std=1.3, b_std=0.2), Relu(), Conv(4, (1, 2)))
RIGHT = Conv(4, (2, 2), W_std=1.1, b_std=0.1)
DEEP = serial(Conv(4, (2, 1), (2, 1), W_std=1.2, b_std=0.1), Relu(), Flatten())


def blocks(left, right, axes):
    """Block-diagonal placement of two arrays along pairs of axes."""
    shape = list(left.shape)
    for axis in axes:
        shape[axis] += right.shape[axis]
    out = np.zeros(shape)
    first = tuple(slice(left.shape[i]) if i in axes else slice(None) for i in range(left.ndim))
    last = tuple(slice(left.shape[i], None) if i in axes else slice(None) for i in range(left.ndim))
    out[first], out[last] = left, right
    return jax.numpy.asarray(out)


def joined(left, right, space):
    """The kernel of two independent branches side by side, on all samples of each side."""
    axes = (0, 1) if space is None else (2 + 2 * space, 3 + 2 * space)
    own = {"cov1": blocks(left.cov1, right.cov1, axes)}
    if left.cov2 is not None:
        own["cov2"] = blocks(left.cov2, right.cov2, axes)
    axis = 0 if space is None else 1 + space
    shapes = {}
    for name in ("shape1", "shape2"):
        shape = list(getattr(left, name))
        shape[axis] += getattr(right, name)[axis]
        shapes[name] = tuple(shape)
    nngp, ntk = (blocks(getattr(left, n), getattr(right, n), axes) for n in ("nngp", "ntk"))
    return left.replace(nngp=nngp, ntk=ntk, **own, **shapes)


def check_concat(axis, left, right, x2, tail):
    other = IMAGES2 if x2 else None
    parts = [net.kernel_fn(IMAGES1, other, diagonal_batch=False) for net in (left, right)]
    expected = joined(*parts, None if axis == 0 else axis - 1)
    net = serial(fork(left, right), FanInConcat(axis))
    out = net.kernel_fn(IMAGES1, other)
    assert out.is_gaussian
    assert (out.shape1, out.shape2) == (expected.shape1, expected.shape2)
    assert_close(out.nngp, expected.nngp)
    assert_close(out.ntk, expected.ntk)
    n = np.arange(len(expected.cov1))
    assert_close(out.cov1, expected.cov1[n, n] if out.diagonal_batch else expected.cov1)
    wanted = tail.kernel_fn(expected, None, ("nngp", "ntk"))
    deep = serial(net, tail).kernel_fn(IMAGES1, other, ("nngp", "ntk"))
    assert_close(deep.nngp, wanted.nngp)
    assert_close(deep.ntk, wanted.ntk)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_concat_over_space():
    """Branches of 4 and 3 rows give 7, with no covariance between them."""
    check_concat(1, LEFT, RIGHT, True, DEEP)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("x2", [pytest.param(True, marks=pytest.mark.slow), False])
def test_concat_over_the_batch(x2):
    tail = serial(Dense(4, 1.2, 0.3), Relu(), Flatten())
    check_concat(0, serial(LEFT, AvgPool((2, 1))), RIGHT, x2, tail)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("x2", [True, False])
@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize(
    "tail", [DEEP, serial(Relu(), Conv(3, (3, 2), padding="SAME", b_std=0.3), GlobalAvgPool())]
)
def test_concat_over_space_sweep(axis, x2, tail):
    right = RIGHT if axis == 1 else Conv(4, (2, 3), (1, 2), "SAME", 1.1, 0.1)
    check_concat(axis, LEFT, right, x2, tail)


def test_concat_needs_of_each_branch_only_what_it_has():
    signals = tuple(Signal((3, n, 3, 4), (2, n, 3, 4), 0, 3) for n in (4, 2))
    need = Need(Offsets(((-5, -3, 0, 1, 3), (-1, 0))), Offsets.zero(2))
    left, right = FanInConcat(1).needs(need, signals)
    assert left.cross.axes == ((-3, 0, 1, 3), (-1, 0))
    assert right.cross.axes == ((0, 1), (-1, 0))
    assert FanInConcat(1).moduli(((4, 3), (2, 3)), signals) == (None, 3)


@pytest.mark.slow
def test_concat_over_space_is_the_limit_of_finite_networks():
    def build(width, out):
        branches = [
            serial(Conv(width, (2,), padding="SAME", b_std=0.2), Relu(), Conv(width, (1,))),
            Conv(width, (2,), (2,), W_std=1.1),
        ]
        tail = serial(Conv(width, (2,), b_std=0.1), Relu(), GlobalAvgPool(), Dense(out))
        return serial(fork(*branches), FanInConcat(1), tail)

    x = IMAGES1[:, :, 0]
    assert agrees(compare(build, x[:2], x[2:])).all()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("axis", [0, pytest.param(1, marks=pytest.mark.slow), -1])
def test_concat_with_masks_on_only_some_branches(axis):
    """A branch without a mask beside one that has it used to fail."""
    x = IMAGES1[:, :, 0, :1].copy()
    plain = x + 0.5
    x[0, 2:] = x[1, 1] = 9.0
    branches, join = parallel(Dense(3, 1.2, 0.1), Dense(3, 1.1)), FanInConcat(axis)
    left = branches.layers[0].kernel_fn(x, mask_constant=9.0)
    right = branches.layers[1].kernel_fn(plain)
    assert right.mask1 is None
    kernel = join.kernel_fn([left, right])
    if axis == -1:
        hidden = np.concatenate([np.repeat(x == 9, 3, -1), np.repeat(plain == 9, 3, -1)], -1)
        assert_close(kernel.nngp, (left.nngp + right.nngp) / 2)
    else:
        hidden = np.concatenate([x == 9, plain == 9], axis)
        assert_close(kernel.nngp, blocks(left.nngp, right.nngp, (0, 1) if axis == 0 else (2, 3)))
        # Pooling divides by the number of positions that are left.
        pool = serial(join, GlobalAvgPool()).kernel_fn([left, right], None, "nngp")
        keep = np.asarray(~kernel.mask1[..., 0])
        counts = np.maximum(keep.sum(1), 1)
        expected = np.asarray(kernel.nngp).sum((2, 3)) / np.outer(counts, counts)
        assert_close(pool, expected)
    np.testing.assert_array_equal(kernel.mask1, hidden)
    net = serial(branches, join)
    params = net.init_fn(KEY, [x.shape, plain.shape])[1]
    masked = MaskedArray(jax.numpy.asarray(x), jax.numpy.asarray(x == 9.0))
    np.testing.assert_array_equal(net.apply_fn(params, [masked, plain]).mask, hidden)


@pytest.mark.parametrize("axis", [0, 1])
def test_correlated_concat_is_refused(axis):
    net = serial(Dense(4), fork(Identity(), Identity()), FanInConcat(axis))
    with pytest.raises(NotImplementedError, match="independent branches in a concatenation along"):
        net.kernel_fn(IMAGES1[:, :, 0])


SKIP = fork(serial(Relu(), Dense(6, 1.2)), Identity())

CORRELATED = {
    "two identities": serial(Dense(6), fork(Identity(), Identity())),
    "identity and dropout": serial(Dense(6), fork(Identity(), Dropout(0.9, "test"))),
    "normalised": serial(Dense(6), fork(Identity(), LayerNorm())),
    "raw input twice": fork(Identity(), Identity()),
    "flattened input": fork(Identity(), Flatten()),
    "skip around a skip": serial(Dense(6), fork(serial(SKIP, FanInSum()), Identity())),
    "two skips": serial(Dense(6), fork(serial(SKIP, FanInSum()), serial(SKIP, FanInSum()))),
    "repeated zero times": serial(Dense(6), fork(repeat(Dense(6), 0), Identity())),
    "repeated identity": serial(Dense(6), fork(repeat(Identity(), 3), Identity())),
    "one repeat, two branches": serial(
        FanOut(2), repeat(serial(FanInConcat(), Dense(5), FanOut(2)), 3)
    ),
    "repeated pair": serial(
        Dense(5), FanOut(2), repeat(parallel(Identity(), serial(LayerNorm(), Identity())), 2)
    ),
}


@pytest.mark.parametrize("name", CORRELATED)
def test_correlated_branches_are_refused(name):
    with pytest.raises(NotImplementedError, match="independent branches in a product") as error:
        serial(CORRELATED[name], FanInProd()).kernel_fn(X1, X2, "nngp")
    assert "branches 0 and 1 both depend on '" in str(error.value)
    assert "at serial[1].FanInProd" in error.value.__notes__


RAW = {
    "with weights beside": fork(serial(fork(Identity(), Dense(5)), FanInProd()), Identity()),
    "images": fork(Identity(), Identity()),
    "behind a pool": serial(AvgPool((2, 2)), fork(Identity(), Identity())),
}


@pytest.mark.parametrize("name", RAW)
@pytest.mark.parametrize("rest", [serial(Dense(6), Relu(), Flatten()), Flatten()])
def test_products_of_the_input_with_itself_are_refused(name, rest):
    x = X1 if name == "with weights beside" else IMAGES1
    with pytest.raises(NotImplementedError, match="independent branches in a product"):
        serial(RAW[name], FanInProd(), rest).kernel_fn(x, None, "nngp")


def test_correlated_sum_is_refused():
    for net in (CORRELATED["two identities"], CORRELATED["two skips"]):
        with pytest.raises(NotImplementedError, match="independent branches in a sum"):
            serial(net, FanInSum()).kernel_fn(X1, X2, "nngp")


@pytest.mark.usefixtures("x64")
def test_uncorrelated_branches_are_accepted():
    block = serial(SKIP, FanInSum())
    nested = serial(
        Dense(6, 1.3), fork(serial(Relu(), Dense(6), block, Relu(), Dense(6)), block), FanInSum()
    )
    k = serial(Dense(6, 1.3), block).kernel_fn(X1, X2)
    branch = serial(Dense(6, 1.3), Relu(), Dense(6), block, Relu(), Dense(6)).kernel_fn(X1, X2)
    assert_close(nested.kernel_fn(X1, X2, "ntk"), k.ntk + branch.ntk)
    # The same layer object at two places has weights of its own at each.
    dense = Dense(6)
    out = serial(fork(dense, dense), FanInSum()).kernel_fn(X1, X2, "ntk")
    assert_close(out, 2 * dense.kernel_fn(X1, X2, "ntk"))


@pytest.mark.usefixtures("x64")
def test_concat_of_correlated_branches():
    relu = serial(Dense(6), Relu()).kernel_fn(X1, X2)
    plain = Dense(6).kernel_fn(X1, X2)
    out = serial(Dense(6), fork(Relu(), Identity()), FanInConcat()).kernel_fn(X1, X2)
    assert_close(out.nngp, (relu.nngp + plain.nngp) / 2)
    assert_close(out.ntk, (relu.ntk + plain.ntk) / 2)
    # ... and a product with one of them knows what is inside.
    inner = serial(fork(Relu(), Identity()), FanInConcat())
    with pytest.raises(NotImplementedError, match="independent"):
        serial(
            Dense(6), fork(inner, serial(fork(Identity(), Relu()), FanInConcat())), FanInProd()
        ).kernel_fn(X1)


@pytest.mark.usefixtures("x64")
def test_fork_of_a_list():
    net = serial(FanOut(2), parallel(FanInSum(), FanInProd()), FanInConcat())
    inputs = serial(parallel(A, B), net)
    out = inputs.kernel_fn([X1, X1], [X2, X2])
    a, b = kernels(A, B)
    assert_close(out.nngp, (a.nngp + b.nngp + a.nngp * b.nngp) / 2)


@pytest.mark.parametrize(
    ("net", "error", "message", "note"),
    [
        (
            serial(fork(A, serial(C, Relu(), Erf())), FanInSum()),
            ValueError,
            "expected a Gaussian input .* for Erf",
            "at serial[0].serial[1].parallel[1].serial[2].Erf",
        ),
        (
            serial(fork(A, serial(C, Relu())), FanInSum()),
            NotImplementedError,
            "expected Gaussian branches to sum .* branch 1",
            "at serial[1].FanInSum",
        ),
        (
            serial(fork(A, Dense(3)), FanInSum()),
            ValueError,
            r"branches of equal shape, got \(4, 8\) and \(4, 3\)",
            "at serial[1].FanInSum",
        ),
        (
            serial(fork(A, serial(C, Flatten(0, 1))), FanInConcat(0)),
            ValueError,
            "batch and channel axes",
            "at serial[1].FanInConcat",
        ),
        (serial(fork(A, B), FanInConcat(2)), ValueError, "an axis of branches", "FanInConcat"),
        (
            serial(fork(A, serial(C, Relu())), FanInConcat(0)),
            NotImplementedError,
            "Gaussian branches to concatenate along batch or space .* branch 1",
            "at serial[1].FanInConcat",
        ),
        (serial(A, FanInSum()), ValueError, "branches .*, got one array", "at serial[1].FanInSum"),
        (serial(FanOut(2), Relu()), ValueError, "expected one input, got 2", "at serial[1].Relu"),
        (
            serial(FanOut(3), parallel(A, B)),
            ValueError,
            "list or tuple of 2 branches, got 3",
            "at serial[1].parallel",
        ),
    ],
)
def test_mismatched_branches(net, error, message, note):
    with pytest.raises(error, match=message) as caught:
        net.kernel_fn(X1)
    assert any(note in line for line in caught.value.__notes__)


def test_no_branches():
    with pytest.raises(ValueError, match="at least 1 branch"):
        FanOut(0)
