"""Finite ensembles: real steps of gradient descent, recorded when asked."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.demo.finite import train_ensemble

X = jnp.array([[1.0, 0.5], [0.2, -1.0], [0.0, 2.0]])
Y = jnp.array([[1.0], [0.0], [-1.0]])
LINEAR = SimpleNamespace(
    init_fn=lambda key, shape: ((-1, 1), jax.random.normal(key, (shape[-1], 1))),
    apply_fn=lambda params, x: x @ params,
)


def train(**changes):
    options = {"learning_rate": 0.3, "steps": (0, 1, 5), "members": 4, "chunk": 2} | changes
    y = options.pop("y", Y)
    return train_ensemble(LINEAR, jax.random.PRNGKey(0), X, y, X, **options)


def test_steps_are_those_of_gradient_descent():
    result = train()
    assert result.outputs.shape == (4, 3, 3, 1)
    np.testing.assert_array_equal(result.steps, [0, 1, 5])
    x, y = np.asarray(X, float), np.asarray(Y, float)
    for recorded in result.outputs:
        w = np.linalg.lstsq(x, recorded[0], rcond=None)[0]
        for step in range(6):
            if step in (0, 1, 5):
                at = [0, 1, 5].index(step)
                np.testing.assert_allclose(recorded[at], x @ w, atol=1e-5)
            w = w - 0.3 * x.T @ (x @ w - y) / 3


def test_key_decides():
    np.testing.assert_array_equal(train().outputs, train().outputs)


def test_members_differ_and_chunks_do_not_matter():
    result = train()
    assert len(np.unique(result.outputs[:, 0, 0, 0])) == 4
    np.testing.assert_allclose(train(chunk=4).outputs, result.outputs, rtol=1e-5, atol=1e-6)


def test_progress_counts_members():
    done = []
    train(progress=done.append)
    assert done == [2, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": (0, 0, 1)}, "increasing steps"),
        ({"steps": (-1, 1)}, "increasing steps"),
        ({"members": 5}, "divide"),
        ({"y": Y[:, 0]}, r"expected y of shape \(3, 1\), got \(3,\)"),
    ],
)
def test_misuse(changes, message):
    with pytest.raises(ValueError, match=message):
        train(**changes)
