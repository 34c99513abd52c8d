"""Networks as pytrees of hyper-parameters: gradients of the evidence, and optimising it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from widelimit import InfiniteEnsemble, stax


def _network() -> Any:
    return stax.serial(
        stax.Dense(1, 1.3, 0.3),
        stax.LeakyRelu(0.2),
        stax.Dense(1, 1.1, 0.2),
        stax.Erf(),
        stax.Dense(1, 0.9),
    )


def _data() -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(3).standard_normal((12, 2))
    return x, np.sin(2 * x[:, :1]) + 0.5 * x[:, 1:]


def _loss(net: Any) -> Any:
    ensemble = InfiniteEnsemble(net, *_data(), inference="bayes", noise=0.1)
    return -ensemble.log_marginal_likelihood()


@pytest.mark.usefixtures("x64")
def test_gradient_with_respect_to_the_network_matches_finite_differences() -> None:
    leaves, treedef = jax.tree.flatten(_network())
    gradient = jax.tree.leaves(jax.grad(_loss)(_network()))
    assert len(leaves) == len(gradient) == 9
    step = 1e-5
    for i, derivative in enumerate(gradient):
        ends = []
        for sign in (1, -1):
            moved = [leaf + sign * step * (j == i) for j, leaf in enumerate(leaves)]
            ends.append(_loss(treedef.unflatten(moved)))
        np.testing.assert_allclose(derivative, (ends[0] - ends[1]) / (2 * step), rtol=1e-6)


def test_ten_steps_of_an_optimiser_improve_the_evidence() -> None:
    net = _network()
    optimiser = optax.adam(0.05)
    state = optimiser.init(net)
    step = jax.jit(jax.value_and_grad(_loss))
    values = []
    for _ in range(10):
        value, gradient = step(net)
        values.append(float(value))
        updates, state = optimiser.update(gradient, state)
        net = optax.apply_updates(net, updates)
    assert float(_loss(net)) < values[0] - 1
    assert all(np.isfinite(values))


def test_constructors_keep_arrays_and_make_numbers_floats() -> None:
    net = stax.Dense(3, np.sqrt(2), jnp.asarray(0.1))
    assert type(net.W_std) is float
    assert isinstance(net.b_std, jax.Array)
    assert jax.tree.leaves(stax.serial(stax.Dense(3), stax.Relu(), stax.Abs())) == [1.0]
