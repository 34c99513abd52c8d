"""What kernel functions accept: dtypes, equal inputs, bad values; derivatives, vmap, threads."""

from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl
from tests.tolerance import assert_close
from widelimit.engines.inputs import as_inputs, same_inputs
from widelimit.layers.shapes import tree_shapes
from widelimit.stax import Conv, Cos, Dense, Erf, Flatten, Rbf, Relu, Tanh, parallel, serial

X = np.random.default_rng(0).standard_normal((4, 5))
X2 = np.random.default_rng(1).standard_normal((3, 5))
NET = serial(Dense(6, 1.2, 0.3), Relu(), Dense(1, 1.1, 0.2))


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize(
    "dtype", [np.float16, jnp.bfloat16, np.float32, np.float64, np.int8, np.int64, bool]
)
def test_dtypes(dtype, x64):
    x = (10 * X).astype(np.int8).astype(dtype)
    with jax.enable_x64(x64):
        kernel = NET.kernel_fn(x, None, "ntk")
        assert kernel.dtype == (jnp.float64 if x64 else jnp.float32)
        assert_close(kernel, NET.kernel_fn(x.astype(np.float64), None, "ntk"))
        if dtype is not np.float64:
            assert_close(kernel, NET.kernel_fn(jnp.asarray(x), None, "ntk"))


def test_equal_inputs():
    a = jnp.asarray(X)
    assert same_inputs(a, None)
    assert same_inputs(a, a)
    assert same_inputs(a, jnp.array(a))
    assert not same_inputs(a, a[:3])
    assert not same_inputs(a, a.at[0, 0].add(1e-3))
    assert same_inputs([a, a], [None, None])
    assert not same_inputs([a, a], [a, a + 1])
    assert as_inputs([X, X], [None, None], None)[1] is None
    first, second = as_inputs(X, X, None)
    assert first is second
    assert tree_shapes([a, (a, a)]) == ((4, 5), ((4, 5), (4, 5)))


@pytest.mark.optimised
@pytest.mark.usefixtures("x64")
def test_equal_samples_in_different_batches():
    # Not one batch twice, yet the angle between equal samples is 0.
    full = NET.kernel_fn(X, None, ("nngp", "ntk"))
    part = NET.kernel_fn(X, X[:3], ("nngp", "ntk"))
    assert_close(part.nngp, full.nngp[:, :3], rtol=1e-14)
    assert_close(part.ntk, full.ntk[:, :3], rtol=1e-14)


@pytest.mark.parametrize(
    ("x1", "x2", "error", "message"),
    [
        (X[0], None, ValueError, r"x1 with a batch and a channel axis .* got shape \(5,\)"),
        (X, X2[0], ValueError, r"x2 with a batch and a channel axis .* got shape \(5,\)"),
        (np.float32(1), None, TypeError, "an array.* for x1, got float32"),
        ("abc", None, TypeError, "for x1, got str"),
        ([[1.0, 2.0]], None, TypeError, r"for x1\[0\]\[0\], got float"),
        (X.astype(complex), None, TypeError, "real numbers in x1, got dtype complex128"),
        (X, X2.astype("U"), TypeError, "real numbers in x2, got dtype <U"),
        (X, X2[:, :4], ValueError, r"but the batch axis 0, got shapes \(4, 5\) and \(3, 4\)"),
        (X, X2[..., None], ValueError, r"got shapes \(4, 5\) and \(3, 5, 1\)"),
        (X, [X2, X2], ValueError, "same lists and tuples .* and list of 2"),
        (X[:, :0], None, ValueError, r"at least one channel, got shape \(4, 0\)"),
        (
            X * np.where(X > 2, np.nan, 1),
            None,
            ValueError,
            r"expected x1 to be finite, got 1 of 20",
        ),
        (1e200 * X, None, ValueError, r"x1 to be finite, got 20 of 20 .* \(in float32\)"),
    ],
)
def test_bad_inputs(x1, x2, error, message):
    if isinstance(x1, np.ndarray) and "got 1 of 20" in message:
        x1 = X.copy()
        x1[2, 3] = np.nan
        message = r"expected x1 to be finite, got 1 of 20 .* at index \(2, 3\): nan"
    with pytest.raises(error, match=message) as caught:
        NET.kernel_fn(x1, x2, "ntk")
    assert "at serial" in caught.value.__notes__


@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_inputs_of_another_shape(engine):
    images, others = np.zeros((3, 4, 4, 3)), np.zeros((2, 3, 4, 4))  # channels last, channels first
    for net, x1, x2 in [
        (serial(Flatten(), Dense(1)), images, others),  # as many entries
        (serial(Conv(2, (3, 3), padding="SAME"), Relu(), Flatten(), Dense(1)), images, others),
        (NET, X, X2[:, :3]),
        (parallel(NET, serial(Flatten(), NET)), [X, images], [X2, others[:, :1]]),
    ]:
        with pytest.raises(
            ValueError, match=r"agree in all axes .*got shapes \((3|4), .*\((2|3), "
        ):
            net.kernel_fn(x1, x2, "ntk", engine=engine)
        if not isinstance(x1, list):
            with pytest.raises(ValueError, match=rf"agree in .*\({len(x2)}, "):
                wl.gram(net, x1, x2)


def test_bad_trees():
    net = parallel(NET, NET)
    wrong = X.copy()
    wrong[1, 2] = np.inf
    for x1, x2, message in (
        ([X, X], (X2, X2), "got list of 2 and tuple of 2"),
        ([X, X], [X2], "got list of 2 and list of 1"),
        ([X, X], X2, "got list of 2 and "),
        ([X, wrong], None, r"x1\[1\] to be finite, got 1 of .* index \(1, 2\)"),
        ([X, X], [X2, wrong], r"x2\[1\] to be finite, got 1 of .* index \(1, 2\)"),
    ):
        with pytest.raises(ValueError, match=message):
            net.kernel_fn(x1, x2, "ntk")
    with pytest.raises(TypeError, match=r"for x2\[1\], got NoneType"):
        net.kernel_fn([X, X], [X2, None], "ntk")
    with pytest.raises(ValueError, match="expected one input, got 2 branches") as error:
        NET.kernel_fn([X, X], None, "ntk")
    assert "at serial[0].Dense" in error.value.__notes__


def test_keywords():
    assert_close(
        NET.kernel_fn(X, None, "ntk", rng=jax.random.PRNGKey(0)), NET.kernel_fn(X, None, "ntk")
    )
    with pytest.raises(TypeError, match=r"expected the keywords pattern, .*, got foo"):
        NET.kernel_fn(X, None, "ntk", foo=1)
    _, params = NET.init_fn(jax.random.PRNGKey(0), (-1, 5))
    assert_close(NET.apply_fn(params, X, foo=1), NET.apply_fn(params, X))


def test_an_empty_batch():
    assert NET.kernel_fn(X[:0], X2, "ntk").shape == (0, 3)
    assert NET.kernel_fn(X[:0], None, "nngp").shape == (0, 0)


@pytest.mark.parametrize("activation", [Relu(), Tanh()], ids=["relu", "tanh"])
def test_vmap_is_the_rows(activation):
    net = serial(Dense(6, 1.2, 0.3), activation, Dense(1))
    x, x2 = X.astype(np.float32), X2.astype(np.float32)
    rows = jax.vmap(lambda row: net.kernel_fn(row[None], x2, "ntk")[0])(x)
    assert_close(rows, net.kernel_fn(x, x2, "ntk"))


@pytest.mark.parametrize("start", [X[0], np.zeros(5)], ids=["identical", "zero"])
@pytest.mark.parametrize(
    ("activation", "x64"),
    [(Relu(), False), pytest.param(Relu(), True, marks=pytest.mark.slow), (Cos(), False)],
    ids=str,
)
def test_derivatives_at_identical_inputs(activation, start, x64):
    net = serial(Dense(6, 1.2), activation, Dense(1))

    def k(a, b):
        return net.kernel_fn(a[None], b[None], "ntk")[0, 0]

    with jax.enable_x64(x64):
        a = jnp.asarray(start, jnp.float64 if x64 else jnp.float32)
        gradient, hessian = jax.jit(lambda a: (jax.grad(k)(a, a), jax.hessian(k, (0, 1))(a, a)))(a)
        assert np.isfinite(gradient).all()
        assert all(np.isfinite(block).all() for row in hessian for block in row)


def test_second_derivative_of_a_smooth_kernel_at_identical_inputs():
    # k = exp(-gamma w^2 |a - b|^2 / n), also where the distance is a rounding error.
    net = serial(Dense(6, 1.3), Rbf(0.7), Dense(1))

    def k(a, b):
        return net.kernel_fn(a[None], b[None], "nngp")[0, 0]

    a = jnp.asarray(X[1], jnp.float32)
    mixed = jax.jit(jax.jacfwd(jax.grad(k), argnums=1))(a, a)
    assert_close(mixed, 2 * 0.7 * 1.3**2 / 5 * np.eye(5, dtype=np.float32))


@pytest.mark.usefixtures("x64")
def test_gradients_match_finite_differences():
    net = serial(Dense(6, 1.2, 0.3), Erf(), Dense(1, 1.1))
    direction = np.random.default_rng(3).standard_normal(X.shape)

    def total(x):
        return (net.kernel_fn(x, None, "ntk") ** 2).sum()

    step = 1e-5
    numerical = (total(X + step * direction) - total(X - step * direction)) / (2 * step)
    exact = jax.jvp(total, (jnp.asarray(X),), (jnp.asarray(direction),))[1]
    assert_close(exact, numerical, rtol=1e-8)
    assert_close((jax.grad(total)(jnp.asarray(X)) * direction).sum(), exact)


def test_threads():
    nets = [serial(Dense(6, 1 + i / 10), Relu(), Dense(1)) for i in range(6)]
    expected = [net.kernel_fn(X, X2, "ntk") for net in nets]

    def one(i):
        with jax.enable_x64(bool(i % 2)):
            return np.asarray(nets[i].kernel_fn(X, X2, "ntk"))

    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(one, list(range(6)) * 3))
    for i, result in enumerate(results):
        assert result.dtype == (np.float64 if i % 2 else np.float32)
        assert_close(result, expected[i % 6])
