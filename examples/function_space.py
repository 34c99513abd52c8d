"""Training in function space: a network of finite width beside the prediction of its kernel.

A network with one hidden layer is trained on digits by gradient descent with momentum, on
cross-entropy. Its empirical NTK at the start predicts its outputs all along: those of gradient flow
with momentum, for the linearised network. Run it with `python -m examples.function_space`.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import widelimit as nt
from examples.demo import datasets
from widelimit import stax


class Curves(NamedTuple):
    """Outputs [times, samples, classes] on a test set, and accuracies [times]."""

    steps: np.ndarray
    network: np.ndarray
    predicted: np.ndarray
    accuracy_network: np.ndarray
    accuracy_predicted: np.ndarray


def digits(n_train: int, n_test: int) -> tuple[np.ndarray, ...]:
    """Inputs of mean 0 and variance 1, and one-hot labels."""
    data = datasets.standardised(datasets.load_digits())
    labels = np.eye(data.classes)
    train = data.x_train.reshape(len(data.x_train), -1)[:n_train], labels[data.y_train[:n_train]]
    test = data.x_test.reshape(len(data.x_test), -1)[:n_test], labels[data.y_test[:n_test]]
    return *train, *test


def cross_entropy(fx, y):
    return -jnp.mean(jnp.sum(jax.nn.log_softmax(fx) * y, axis=-1))


def accuracy(fx, y):
    return np.mean(np.argmax(fx, axis=-1) == np.argmax(y, axis=-1), axis=-1)


def main(
    width: int = 4096,
    n_train: int = 64,
    n_test: int = 64,
    learning_rate: float = 0.2,
    momentum: float = 0.9,
    steps: int = 200,
) -> Curves:
    x_train, y_train, x_test, y_test = digits(n_train, n_test)
    init_fn, f, _ = stax.serial(
        stax.Dense(width, 1.0, 0.05), stax.Erf(), stax.Dense(y_train.shape[-1], 1.0, 0.05)
    )
    _, params = init_fn(jax.random.PRNGKey(0), x_train.shape)

    # The kernel at the start, between all outputs, and what it predicts.
    ntk_fn = nt.empirical_ntk_fn(f, trace_axes=(), vmap_axes=0)
    predictor = nt.predict.gradient_descent(
        cross_entropy, ntk_fn(x_train, None, params), y_train, learning_rate, momentum, ()
    )
    times = np.arange(0, steps + 1, max(steps // 5, 1))
    k_test_train = ntk_fn(x_test, x_train, params)
    _, predicted = predictor(times, f(params, x_train), f(params, x_test), k_test_train)

    # Training itself.
    @jax.jit
    def step(params, velocity):
        gradient = jax.grad(lambda p: cross_entropy(f(p, x_train), y_train))(params)
        velocity = jax.tree.map(lambda v, g: momentum * v + g, velocity, gradient)
        return jax.tree.map(lambda p, v: p - learning_rate * v, params, velocity), velocity

    velocity, outputs = jax.tree.map(jnp.zeros_like, params), []
    for i in range(times[-1] + 1):
        if i in times:
            outputs.append(f(params, x_test))
        params, velocity = step(params, velocity)

    network, predicted = np.stack(outputs), np.asarray(predicted)
    curves = Curves(
        *(times, network, predicted), *map(partial(accuracy, y=y_test), (network, predicted))
    )
    print("steps   accuracy: network  predicted   rms difference of outputs   rms outputs")
    for i, t in enumerate(times):
        difference = np.sqrt(np.mean((network[i] - predicted[i]) ** 2))
        size = np.sqrt(np.mean(network[i] ** 2))
        print(
            f"{t:5d}{curves.accuracy_network[i]:19.2f}{curves.accuracy_predicted[i]:11.2f}"
            f"{difference:28.3f}{size:14.3f}"
        )
    return curves


if __name__ == "__main__":
    main()
