import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tolerance import assert_close
from widelimit.predict import gradient_descent_mse, max_learning_rate
from widelimit.predict.matrices import to_matrix


def random_kernel(shape, seed=0):
    n = int(np.prod(shape))
    features = np.random.default_rng(seed).normal(size=(n, n))
    matrix = (features @ features.T).reshape(*shape, *shape)
    return matrix.transpose([s * len(shape) + i for i in range(len(shape)) for s in (0, 1)])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("shape", [(5,), (100,), (20, 2, 2)])
def test_against_all_eigenvalues(shape):
    kernel = random_kernel(shape)
    largest = np.linalg.eigvalsh(to_matrix("k", kernel))[-1]
    n = int(np.prod(shape))
    assert_close(max_learning_rate(kernel), 2 * n / largest)
    assert_close(max_learning_rate(kernel, 3 * n, momentum=0.9), 2 * 1.9 * 3 * n / largest)
    assert_close(max_learning_rate(kernel, eps=largest), n / largest)
    assert_close(jax.jit(max_learning_rate)(kernel), 2 * n / largest)


def test_it_is_where_gradient_descent_starts_to_diverge():
    kernel = random_kernel((4,)).astype(np.float32)
    rate = float(max_learning_rate(kernel))
    for factor, converges in [(0.95, True), (1.05, False)]:
        step = np.eye(4) - factor * rate * kernel / 4
        assert (np.abs(np.linalg.eigvalsh(step)).max() < 1) == converges
    # In the flow itself any learning rate is a unit of time.
    y = np.ones((4, 1), np.float32)
    slow, fast = (gradient_descent_mse(kernel, y, learning_rate=lr) for lr in (1.0, 10.0))
    assert_close(slow(t=10.0), fast(t=1.0))


def test_dtype_gradient_and_errors():
    kernel = jnp.asarray(random_kernel((3,)), jnp.float32)
    assert max_learning_rate(kernel).dtype == jnp.float32
    direction = jnp.eye(3)
    slope = jax.grad(lambda s: max_learning_rate(kernel + s * direction))(0.0)
    rate = max_learning_rate(kernel)
    assert_close(slope, -(rate**2) / 6, rtol=1e-5)
    with pytest.raises(ValueError, match="pairs of equal axes"):
        max_learning_rate(np.ones((3, 4)))
    with pytest.raises(ValueError, match="expected momentum of at least 0"):
        max_learning_rate(np.eye(3), momentum=-1.0)
    with pytest.raises(ValueError, match="ntk_train_train to be finite"):
        max_learning_rate(np.full((3, 3), np.nan))
