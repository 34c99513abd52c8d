"""serial, parallel, repeat: repeat equals the unrolled network; containers; paths."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tolerance import assert_close
from widelimit.stax import (
    Cos,
    Dense,
    Dropout,
    FanInConcat,
    FanInSum,
    FanOut,
    Identity,
    LayerNorm,
    Relu,
    parallel,
    repeat,
    serial,
)

KEY = jax.random.PRNGKey(0)
RNG = jax.random.PRNGKey(1)
N = 5


def inputs(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


RESIDUAL = serial(FanOut(2), parallel(serial(Relu(), Dense(N, 1.1, 0.2)), Identity()), FanInSum())
START = Dense(N, 1.2, 0.1)
BODIES = {
    "dense": (Identity(), Dense(N, 1.3, 0.2)),
    "frozen": (Identity(), Dense(N, 1.3, 0.2, trainable=False)),
    "standard": (Identity(), Dense(N, 1.1, 0.2, parameterization="standard")),
    "relu": (START, serial(Relu(), Dense(N, 1.3, 0.2))),
    "residual": (START, RESIDUAL),
    "dropout": (START, serial(Relu(), Dropout(0.7), Dense(N, 1.1))),
    "layer_norm": (START, serial(LayerNorm(), Cos(), Dense(N))),
    "residual_nested": (
        START,
        serial(
            FanOut(2),
            parallel(repeat(serial(Relu(), Dense(N, 1.1, 0.2)), 2), Identity()),
            FanInSum(),
        ),
    ),
    "branches": (
        serial(FanOut(2), parallel(Dense(N), Dense(N, 0.9))),
        parallel(serial(Relu(), Dense(N, 1.2)), RESIDUAL),
    ),
}


def pair(name, n):
    start, body = BODIES[name]
    return serial(start, repeat(body, n)), serial(start, *[body] * n)


def assert_same(actual, desired):
    assert jax.tree.structure(actual) == jax.tree.structure(desired)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(desired), strict=True):
        assert_close(a, b)


@pytest.mark.optimised
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", BODIES)
def test_kernel_of_repeat_is_that_of_serial(name):
    scanned, unrolled = pair(name, 5 if name == "dense" else 3)
    x1, x2 = inputs(4, N), inputs(3, N, seed=1)
    x2 = None if name == "dropout" else x2
    assert_same(scanned.kernel_fn(x1, x2), unrolled.kernel_fn(x1, x2))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["dense", "dropout", "branches"])
def test_finite_repeat_is_finite_serial(name):
    body = BODIES[name][1]
    scanned, unrolled = repeat(body, 3), serial(body, body, body)
    x = [inputs(4, N), inputs(4, N, seed=1)] if name == "branches" else inputs(4, N)
    shape = [(-1, N)] * 2 if name == "branches" else (-1, N)
    shape1, params1 = scanned.init_fn(KEY, shape)
    shape2, params2 = unrolled.init_fn(KEY, shape)
    assert shape1 == shape2
    assert_same(params1, jax.tree.map(lambda *leaves: jnp.stack(leaves), *params2))
    assert_same(
        jax.jit(scanned.apply_fn)(params1, x, rng=RNG),
        jax.jit(unrolled.apply_fn)(params2, x, rng=RNG),
    )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("n", [0, 1, 2])
def test_few_repetitions(n):
    body = BODIES["relu"][1]
    scanned, unrolled = serial(START, repeat(body, n)), serial(START, *[body] * n)
    x1 = inputs(4, N)
    get = "nngp", "ntk"
    assert_same(scanned.kernel_fn(x1, None, get), unrolled.kernel_fn(x1, None, get))
    _, (first, stacked) = scanned.init_fn(KEY, (-1, N))
    unstacked = [jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(n)]
    assert_close(scanned.apply_fn([first, stacked], x1), unrolled.apply_fn([first, *unstacked], x1))
    if n == 0:
        assert stacked == ()


def test_first_use_may_change_the_dtype():
    body = Dense(N, 1.2)
    _, params = repeat(body, 3).init_fn(KEY, (-1, N))
    x = np.arange(2 * N).reshape(2, N)
    unstacked = [jax.tree.map(lambda leaf, i=i: leaf[i], params) for i in range(3)]
    expected = serial(body, body, body).apply_fn(unstacked, x)
    assert_close(repeat(body, 3).apply_fn(params, x), expected)


@pytest.mark.usefixtures("x64")
def test_repeat_with_masks_per_channel():
    # The first Dense collapses the channels of the mask, so the first use differs from the rest.
    body = Dense(N, 1.3, 0.4)
    x = inputs(3, 2, N)
    x[0, 1] = x[1, 0, 2:] = x[2] = 9.0
    scanned, unrolled = repeat(body, 3), serial(body, body, body)
    assert_close(
        scanned.kernel_fn(x, None, "ntk", mask_constant=9.0),
        unrolled.kernel_fn(x, None, "ntk", mask_constant=9.0),
    )
    _, params = scanned.init_fn(KEY, x.shape)
    unstacked = [jax.tree.map(lambda leaf, i=i: leaf[i], params) for i in range(3)]
    assert_same(
        scanned.apply_fn(params, x, mask_constant=9.0),
        unrolled.apply_fn(unstacked, x, mask_constant=9.0),
    )


def test_gradients_of_repeat():
    scanned, unrolled = pair("relu", 3)
    x = inputs(3, N).astype(np.float32)

    def gradients(net):
        def total(net, x):
            return net.kernel_fn(x, None, "ntk").sum()

        return jax.jit(jax.grad(total, argnums=(0, 1)))(net, x)

    net_grad, x_grad = gradients(scanned)
    expected_net, expected_x = gradients(unrolled)
    assert_close(x_grad, expected_x)
    total = sum(layer.layers[1].W_std for layer in expected_net.layers[1:])
    assert_close(net_grad.layers[1].layer.layers[1].W_std, total)


def test_repeat_under_a_fork():
    x = inputs(3, N)
    branch = repeat(serial(Relu(), Dense(N)), 3)
    fork = serial(Dense(N), FanOut(2), parallel(branch, Identity()), FanInSum())
    expected = serial(Dense(N), branch).kernel_fn(x).ntk + Dense(N).kernel_fn(x).ntk
    assert_close(fork.kernel_fn(x, None, "ntk"), expected)
    both = serial(FanOut(2), repeat(serial(FanInConcat(), Dense(N), FanOut(2)), 2), FanInSum())
    with pytest.raises(NotImplementedError, match="independent branches"):
        both.kernel_fn(x)


def test_repeat_refuses():
    with pytest.raises(ValueError, match="n >= 0, got -1"):
        repeat(Relu(), -1)
    with pytest.raises(ValueError, match=r"preserves the shape.*\(-1, 5\) -> \(-1, 4\)") as error:
        serial(Relu(), repeat(Dense(4), 2)).init_fn(KEY, (-1, N))
    assert "at serial[1].repeat" in error.value.__notes__
    with pytest.raises(ValueError, match="preserves the shape"):
        repeat(Dense(4), 2).kernel_fn(inputs(2, N))
    with pytest.raises(ValueError, match=r"Gaussian input .* for Relu") as error:
        serial(Dense(N), repeat(Relu(), 2)).kernel_fn(inputs(2, N))
    assert "at serial[1].repeat[*].Relu" in error.value.__notes__


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("container", [list, tuple])
def test_parallel_keeps_containers(container):
    net = parallel(Dense(2, 1.3), parallel(Dense(3), Identity()))
    x1 = container([inputs(4, N), container([inputs(4, 3), inputs(4, 2)])])
    x2 = container([inputs(2, N, seed=1), container([inputs(2, 3, seed=1), inputs(2, 2)])])
    shape, params = net.init_fn(KEY, container([(-1, N), container([(-1, 3), (-1, 2)])]))
    assert shape == ((-1, 2), ((-1, 3), (-1, 2)))
    assert isinstance(params, tuple)
    out = net.apply_fn(params, x1)
    assert type(out) is container
    assert type(out[1]) is container
    assert_close(out[0], Dense(2, 1.3).apply_fn(params[0], x1[0]))
    for other in (x2, None, container([None, container([None, None])])):
        kernel = net.kernel_fn(x1, other, ("nngp", "ntk"))
        assert type(kernel) is container
        assert type(kernel[1]) is container
        given = None if other is not x2 else x2[0]
        assert_close(kernel[0].ntk, Dense(2, 1.3).kernel_fn(x1[0], given, "ntk"))
        assert kernel[1][1].ntk.shape == ()
        assert type(kernel[1][1]).__name__ == "AnalyticKernel"


def test_keys_follow_the_order_of_example_libraries():
    net = serial(Dense(3), Relu(), parallel_in_serial())
    _, params = net.init_fn(KEY, (1, N))
    key, first = jax.random.split(KEY)
    assert_close(params[0][0], Dense(3).init_fn(first, (1, N))[1][0])
    key, _ = jax.random.split(key)
    key, third = jax.random.split(key)
    key, _ = jax.random.split(third)
    key, inner = jax.random.split(key)
    inner_keys = jax.random.split(inner, 2)
    assert_close(params[2][1][1][0], Dense(4).init_fn(inner_keys[1], (1, 3))[1][0])


def parallel_in_serial():
    return serial(FanOut(2), parallel(Dense(2), Dense(4)))


def test_empty_networks():
    x = inputs(2, N)
    assert serial().init_fn(KEY, (-1, N)) == ((-1, N), [])
    assert_close(serial().apply_fn([], x), x)
    assert_close(serial().kernel_fn(x, None, "nngp"), x @ x.T / N, rtol=1e-6)


def test_errors_of_containers():
    net = parallel(Dense(2), Dense(3))
    x = inputs(2, N)
    for call in (
        lambda: net.kernel_fn(x),
        lambda: net.init_fn(KEY, (2, N)),
        lambda: net.apply_fn(net.init_fn(KEY, [(2, N)] * 2)[1], x),
    ):
        with pytest.raises(ValueError, match="list or tuple of 2 branches, got one array"):
            call()
    with pytest.raises(ValueError, match="list or tuple of 2 branches, got 3"):
        net.kernel_fn([x, x, x])
    with pytest.raises(ValueError, match="list or tuple of 2 parameters, got 1"):
        serial(Dense(2), Relu()).apply_fn([()], x)
    with pytest.raises(TypeError, match=r"got the class Dense: write Dense\(\)"):
        serial(Dense, Relu())
    with pytest.raises(TypeError, match="a tuple of ints"):
        net.init_fn(KEY, 3)


def test_names_and_triples():
    for layer, name in (
        (serial(Relu()), "serial"),
        (parallel(Relu()), "parallel"),
        (repeat(Relu(), 2), "repeat"),
        (Relu(), "ABRelu"),
        (Cos(), "Sin"),
        (Dense(2), "Dense"),
        (Identity(), "Identity"),
    ):
        assert [function.__name__ for function in layer] == [name] * 3
        init_fn, apply_fn, kernel_fn = layer
        assert (layer[0], layer[1], layer[2]) == (init_fn, apply_fn, kernel_fn)
        assert layer.kernel_fn == kernel_fn
        assert layer[:2] == (init_fn, apply_fn)
        assert len(layer) == 3
