"""Training in weight space: a network of finite width beside its linearisation.

Both start from the same parameters and are trained on digits by gradient descent, the network f
and f_lin(p, x) = f(p0, x) + df/dp(p0, x) (p - p0). The wider the network, the closer they stay.
What f_lin does is known without training it: `nt.predict` has the closed form. Run it with
`python -m examples.weight_space`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import widelimit as nt
from examples.function_space import digits
from widelimit import stax


class Outputs(NamedTuple):
    """Outputs on a test set after training: of the network, its linearisation, and as predicted."""

    network: np.ndarray
    linearised: np.ndarray
    predicted: np.ndarray


def squared_error(fx, y):
    return 0.5 * jnp.mean((fx - y) ** 2)


def train(f, params, x, y, learning_rate, steps):
    """Parameters after steps of gradient descent."""

    @jax.jit
    def step(_, params):
        gradient = jax.grad(lambda p: squared_error(f(p, x), y))(params)
        return jax.tree.map(lambda p, g: p - learning_rate * g, params, gradient)

    return jax.lax.fori_loop(0, steps, step, params)


def main(width: int = 1024, n_train: int = 64, n_test: int = 64, steps: int = 200) -> Outputs:
    x_train, y_train, x_test, _ = digits(n_train, n_test)
    init_fn, f, _ = stax.serial(
        stax.Dense(width, 1.0, 0.05), stax.Erf(), stax.Dense(y_train.shape[-1], 1.0, 0.05)
    )
    _, params = init_fn(jax.random.PRNGKey(0), x_train.shape)
    f_lin = nt.linearize(f, params)

    ntk_fn = nt.empirical_ntk_fn(f, trace_axes=(), vmap_axes=0)
    k_train_train = ntk_fn(x_train, None, params)
    learning_rate = 0.5 * float(nt.predict.max_learning_rate(k_train_train))
    trained = train(f, params, x_train, y_train, learning_rate, steps)
    trained_lin = train(f_lin, params, x_train, y_train, learning_rate, steps)
    predict_fn = nt.predict.discrete_gradient_descent_mse(
        k_train_train, y_train, learning_rate, trace_axes=()
    )
    k_test_train = ntk_fn(x_test, x_train, params)
    _, predicted = predict_fn(steps, f(params, x_train), f(params, x_test), k_test_train)

    outputs = Outputs(f(trained, x_test), f_lin(trained_lin, x_test), predicted)
    size = np.sqrt(np.mean(outputs.network**2))
    for name in ("linearised", "predicted"):
        difference = np.sqrt(np.mean((getattr(outputs, name) - outputs.network) ** 2))
        print(f"width {width}: rms difference of {name} from the network {difference / size:.2e}")
    return outputs


if __name__ == "__main__":
    main()
