from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.predict import linear_model
from tests.tolerance import assert_close
from widelimit import stax
from widelimit.predict import Gaussian, gp_inference

Kernels = namedtuple("Kernels", ["nngp", "ntk"])


def problem(seed=0, n=6, t=4, outputs=2):
    """Kernels (dd, td, tt) of a random joint Gram matrix, and targets."""
    rng = np.random.default_rng(seed)
    grams = []
    for _ in range(2):
        features = rng.normal(size=(n + t, 2 * (n + t)))
        grams.append(features @ features.T / (n + t))
    nngp, ntk = grams[0], grams[0] + grams[1]
    parts = [(slice(n), slice(n)), (slice(n, None), slice(n)), (slice(n, None), slice(n, None))]
    return *(Kernels(nngp[part], ntk[part]) for part in parts), rng.normal(size=(n, outputs))


def direct(dd, td, tt, y, get, ridge=0.0):
    driving = dd.nngp if get == "nngp" else dd.ntk
    inverse = np.linalg.inv(driving + ridge * np.eye(len(driving)))
    if get in ("nngp", "ntkgp"):
        name = "nngp" if get == "nngp" else "ntk"
        k_td, k_tt = getattr(td, name), getattr(tt, name)
        return k_td @ inverse @ y, k_tt - k_td @ inverse @ k_td.T
    a = td.ntk @ inverse
    cross = a @ td.nngp.T
    return a @ y, tt.nngp + a @ dd.nngp @ a.T - cross - cross.T


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("get", ["nngp", "ntk", "ntkgp"])
@pytest.mark.parametrize("absolute", [False, True])
def test_against_the_formulas(get, absolute):
    dd, td, tt, y = problem()
    driving = dd.nngp if get == "nngp" else dd.ntk
    ridge = 0.3 if absolute else 0.3 * np.trace(driving) / len(driving)
    predict_fn = gp_inference(dd, y, diag_reg=0.3, diag_reg_absolute_scale=absolute)
    mean, covariance = direct(dd, td, tt, y, get, ridge)
    got = predict_fn(get, td, tt)
    assert isinstance(got, Gaussian)
    assert_close(got.mean, mean)
    assert_close(got.covariance, covariance)
    np.testing.assert_array_equal(got.covariance, got.covariance.T)
    assert_close(predict_fn(get.upper(), td), mean)


def test_modes_and_containers():
    dd, td, tt, y = problem()
    predict_fn = gp_inference(dd, y)
    both = predict_fn(k_test_train=td, k_test_test=tt)
    assert type(both).__name__ == "Gaussians"
    assert both._fields == ("nngp", "ntk")
    turned = predict_fn(("ntk", "nngp"), td, tt)
    assert turned._fields == ("ntk", "nngp")
    np.testing.assert_array_equal(turned.ntk.mean, both.ntk.mean)
    one = predict_fn(("nngp",), td)
    np.testing.assert_array_equal(one.nngp, both.nngp.mean)
    # A plain array is whichever kernel is asked for.
    arrays = gp_inference(dd.nngp, y)("nngp", td.nngp, tt.nngp)
    np.testing.assert_array_equal(arrays.covariance, both.nngp.covariance)
    arrays = gp_inference(dd.ntk, y)("ntkgp", td.ntk, tt)
    assert_close(arrays.covariance, direct(dd, td, tt, y, "ntkgp")[1], jnp.float32)
    # The prior alone may be an array.
    mixed = predict_fn("ntk", td, tt.nngp)
    np.testing.assert_array_equal(mixed.covariance, both.ntk.covariance)


def test_a_single_array_is_every_kernel():
    dd, td, tt, y = problem()
    for kernel, other in [(dd.ntk, td.ntk), (dd.nngp, td.nngp)]:
        both = gp_inference(kernel, y, diag_reg=1e-3)(k_test_train=other)
        assert both._fields == ("nngp", "ntk")
        ridge = 1e-3 * np.trace(kernel) / len(kernel)
        expected = other @ np.linalg.solve(kernel + ridge * np.eye(len(kernel)), y)
        assert_close(both.nngp, expected, np.float32)
        np.testing.assert_array_equal(both.ntk, both.nngp)
    both = gp_inference(dd.ntk, y)(("ntk", "nngp", "ntkgp"), td.ntk)
    assert both._fields == ("ntk", "nngp", "ntkgp")
    # Only the covariance of trained networks is made of two kernels.
    with pytest.raises(ValueError, match=r"to hold both 'nngp' and 'ntk', .* get='ntk'"):
        gp_inference(dd.ntk, y)(None, td.ntk, tt.ntk)
    covariance = gp_inference(dd.ntk, y)(("nngp", "ntkgp"), td.ntk, tt.ntk).nngp.covariance
    assert_close(covariance, direct(dd, td, tt, y, "ntkgp")[1], np.float32)


def test_the_training_set_needs_no_other_kernel():
    dd, _, tt, y = problem()
    only = namedtuple("Only", ["ntk"])
    for kernels in [dd.ntk, only(dd.ntk), Kernels(None, dd.ntk)]:
        for k_test_test in [tt, tt.ntk, True]:
            found = gp_inference(kernels, y)("ntk", None, k_test_test)
            assert_close(found.mean, y.astype(np.float32))
            np.testing.assert_array_equal(found.covariance, np.zeros((6, 6)))
    both = gp_inference(dd.ntk, y)(k_test_test=tt)
    assert both._fields == ("nngp", "ntk")
    assert_close(both.nngp.mean, y.astype(np.float32))


def test_on_the_training_set():
    dd, _, _, y = problem()
    predict_fn = gp_inference(dd, y)
    assert_close(predict_fn("ntk"), y.astype(np.float32))
    mean, covariance = predict_fn("nngp", k_test_test=True)
    assert mean.dtype == covariance.dtype == jnp.float32
    assert covariance.shape == (6, 6)
    assert not covariance.any()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("trace_axes", "letters"),
    [
        ((-1,), "nh"),
        ((), "nhc"),
        ((1,), "nc"),
        ((0,), "hc"),
        ((0, 1), "c"),
        ((-3, 0, 2), "h"),
        ((0, 1, 2), ""),
    ],
)
def test_output_axes(trace_axes, letters):
    sizes = {"n": 3, "h": 2, "c": 2}
    rng = np.random.default_rng(0)
    y = rng.normal(size=tuple(sizes.values()))
    rows = int(np.prod([sizes[letter] for letter in letters]))
    features = rng.normal(size=(rows, 2 * rows + 1))
    matrix, cross = features @ features.T, rng.normal(size=(rows, rows))
    shape = tuple(sizes[letter] for letter in letters)

    def zipped(k):
        order = [side * len(shape) + i for i in range(len(shape)) for side in (0, 1)]
        return k.reshape(shape + shape).transpose(order)

    prior = cross @ np.linalg.solve(matrix, cross.T) + np.eye(rows)
    predict_fn = gp_inference(zipped(matrix), y, trace_axes=trace_axes)
    got = predict_fn("nngp", zipped(cross), zipped(prior))
    # Over kept axes as given, with the others as identities.
    solved = (cross @ np.linalg.inv(matrix)).reshape(shape + shape)
    upper = letters.upper()
    rule = f"{upper}{letters},nhc->{''.join(x.upper() if x in letters else x for x in 'nhc')}"
    assert_close(got.mean, np.einsum(rule, solved, y))
    assert_close(got.covariance, zipped(np.eye(rows)))


def test_a_test_set_of_another_size_with_output_axes():
    rng = np.random.default_rng(0)
    y, k = rng.normal(size=(3, 2, 4)), rng.normal(size=(5, 3, 2, 2))
    dd = np.einsum("nm,hg->nmhg", np.eye(3), np.eye(2))
    tt = np.einsum("nm,hg->nmhg", np.eye(5), np.eye(2))
    got = gp_inference(dd, y)("nngp", k, tt)
    assert got.mean.shape == (5, 2, 4)
    assert_close(got.mean, np.einsum("tnhg,ngc->thc", k, y), jnp.float32)
    expected = tt - np.einsum("tnhg,snkg->tshk", k, k)
    assert_close(got.covariance, expected, jnp.float32)


def test_float32_kernels_are_solved_in_float64():
    # Condition number 1e6: float32 would keep about one digit.
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    matrix = ((basis * np.geomspace(1e-5, 10, 8)) @ basis.T).astype(np.float32)
    matrix = (matrix + matrix.T) / 2
    y, cross = rng.normal(size=(8, 1)).astype(np.float32), matrix[:3]
    got = gp_inference(jnp.asarray(matrix), y)("nngp", cross, matrix[:3, :3])
    assert got.mean.dtype == jnp.float32
    assert_close(got.mean, y[:3], rtol=1e-6)
    assert np.abs(got.covariance).max() < 1e-7


def test_half_precision_kernels_give_half_precision():
    dd, td, tt, y = problem()
    low = jax.tree.map(lambda k: jnp.asarray(k, jnp.bfloat16), (dd, td, tt))
    got = gp_inference(low[0], y, diag_reg=1.0)("ntk", *low[1:])
    assert got.mean.dtype == got.covariance.dtype == jnp.bfloat16


def test_jit_and_vmap():
    dd, td, tt, y = problem()
    dd, td, tt = jax.tree.map(lambda k: jnp.asarray(k, jnp.float32), (dd, td, tt))
    predict_fn = gp_inference(dd, y)
    expected = predict_fn("ntk", td, tt)
    jitted = jax.jit(predict_fn, static_argnames="get")(get="ntk", k_test_train=td, k_test_test=tt)
    assert_close(jitted.covariance, expected.covariance)

    def whole(dd, td, tt, y):
        return gp_inference(dd, y)("ntk", td, tt)

    assert_close(jax.jit(whole)(dd, td, tt, y).covariance, expected.covariance)
    stacked = jax.tree.map(lambda k: k[None], (dd, td, tt, jnp.asarray(y)))
    assert_close(jax.vmap(whole)(*stacked).mean[0], expected.mean)
    # A first call inside a jit leaves nothing of its trace behind.
    fresh = gp_inference(dd, y)
    jax.jit(lambda k: fresh("nngp", k))(td)
    assert_close(fresh("nngp", td), predict_fn("nngp", td))


@pytest.mark.parametrize("get", ["nngp", "ntk", "ntkgp"])
def test_gradients_with_float64_off(get):
    def f(s):
        # Fresh arrays: JAX confuses constants of jitted functions across settings of float64.
        dd, td, tt, y = problem()
        rng = np.random.default_rng(1)
        arrays = (*dd, *td, *tt, y)
        directions = [rng.normal(size=a.shape) for a in arrays]
        directions = [d + d.T if d.shape[0] == d.shape[1] else d for d in directions]
        weights = rng.normal(size=(4, 4))
        moved = [a + s * d for a, d in zip(arrays, directions, strict=True)]
        kernels = [Kernels(*moved[i : i + 2]) for i in (0, 2, 4)]
        got = gp_inference(kernels[0], moved[6], diag_reg=0.1)(get, *kernels[1:])
        return (got.covariance * weights).sum() + (got.mean**2).sum()

    with jax.enable_x64(True):
        expected = linear_model.finite_difference(jax.jit(f), 0.0, 1.0)
        assert_close(jax.jit(jax.jacfwd(f))(0.0), expected, rtol=1e-6)
        assert_close(jax.jit(jax.grad(f))(0.0), expected, rtol=1e-6)
    assert_close(jax.jit(jax.grad(f))(0.0), expected, rtol=1e-4)
    assert_close(jax.grad(jax.jit(f))(0.0), expected, rtol=1e-4)


@pytest.mark.usefixtures("x64")
def test_second_derivatives():
    dd, td, _, y = problem()

    @jax.jit
    def f(s):
        kernel = dd.nngp + s * np.eye(6)
        return (gp_inference(kernel, y)("nngp", td.nngp) ** 2).sum()

    slope = jax.grad(f)
    expected = linear_model.finite_difference(slope, 0.0, 1.0)
    assert_close(jax.grad(slope)(0.0), expected, rtol=1e-6)


def test_errors():
    dd, td, tt, y = problem()
    predict_fn = gp_inference(dd, y)
    for get in ["foo", (), ("nngp", "nngp"), ("nngp", "bar")]:
        with pytest.raises(ValueError, match="expected get to be None, one of"):
            predict_fn(get, td)
    for train, test in [(dd.ntk, td), (dd, td.ntk)]:
        with pytest.raises(ValueError, match="one of either kind: pass the mode"):
            gp_inference(train, y)(None, test)
    with pytest.raises(ValueError, match=r"k_train_train to hold both .* single array"):
        gp_inference(dd.ntk, y)("ntk", td, tt)
    with pytest.raises(ValueError, match=r"k_test_train to hold both .* single array"):
        predict_fn("ntk", td.ntk, tt)
    only = namedtuple("Only", ["ntk"])
    with pytest.raises(ValueError, match="k_test_train to hold 'nngp', which get='ntk' needs"):
        predict_fn("ntk", only(td.ntk), tt)
    with pytest.raises(ValueError, match="k_test_test to hold 'ntk', which get='ntkgp' needs"):
        predict_fn("ntkgp", td, Kernels(tt.nngp, None))
    with pytest.raises(ValueError, match=r"expected k_train_train of shape \(5, 5\)"):
        gp_inference(dd, y[:5])("nngp", td)
    with pytest.raises(ValueError, match=r"expected k_test_train of shape \('t', 6\)"):
        predict_fn("nngp", dd.nngp[:, :5])
    with pytest.raises(ValueError, match=r"expected k_test_test of shape \(4, 4\)"):
        predict_fn("nngp", td, dd)
    with pytest.raises(ValueError, match="y_train to be finite, got 1 of 12"):
        gp_inference(dd, np.where(y == y[2, 1], np.nan, y))
    with pytest.raises(ValueError, match="k_train_train to be finite"):
        gp_inference(dd.nngp * np.nan, y)("nngp", td)
    with pytest.raises(ValueError, match="expected diag_reg of at least 0"):
        gp_inference(dd, y, diag_reg=-1e-3)
    with pytest.raises(ValueError, match=r"is indefinite: its smallest eigenvalue is .* diag_reg="):
        gp_inference(np.ones((6, 6)) - 0.1 * np.eye(6), y)("nngp", td)
    with pytest.raises(
        ValueError, match=r"one number for diag_reg, got .*\(4, 6\); .*k_test_train="
    ):
        gp_inference(dd, y, td.nngp)
    for kernel_fn in [direct, stax.serial(stax.Dense(1)), stax.serial(stax.Dense(1)).kernel_fn]:
        with pytest.raises(TypeError, match=r"k_train_train to be a kernel, got a (func|netw)"):
            gp_inference(kernel_fn, y, y)


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("get", ["nngp", "ntk", "ntkgp"])
def test_arrays_of_numpy_that_change(get, used):
    k_dd = Kernels(2 * np.eye(3), 3 * np.eye(3))
    others = Kernels(np.ones((2, 3)), np.ones((2, 3))), Kernels(4 * np.eye(2), 4 * np.eye(2))
    y = np.ones((3, 1))
    right = gp_inference(Kernels(*map(jnp.asarray, k_dd)), y)(get, *others)
    several, one = gp_inference(k_dd, y), gp_inference(k_dd.nngp, y)
    if used:
        several(get, *others)
    k_dd.nngp[:], k_dd.ntk[:] = 50 * np.eye(3), 70 * np.eye(3)
    for found, expected in zip(several(get, *others), right, strict=True):
        assert_close(found, expected)
    assert_close(one("nngp", others[0].nngp), np.full((2, 1), 1.5))
