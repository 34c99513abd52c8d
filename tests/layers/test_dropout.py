"""Dropout: which entries grow by 1 / rate, randomness of the finite layer, bad arguments."""

import jax
import numpy as np
import pytest

from tests.tolerance import assert_close
from widelimit.stax import Dense, Dropout, Flatten, Relu, serial

KEY = jax.random.PRNGKey(0)
X = np.random.default_rng(0).standard_normal((4, 5))
BASE = serial(Dense(6, 1.2, 0.3), Relu())


@pytest.mark.usefixtures("x64")
def test_equal_samples_grow_by_the_inverse_rate():
    plain = BASE.kernel_fn(X)
    kernel = serial(BASE, Dropout(0.8)).kernel_fn(X)
    factor = 1 + (1 / 0.8 - 1) * np.eye(4)
    assert_close(kernel.nngp, factor * plain.nngp)
    assert_close(kernel.ntk, factor * plain.ntk)
    assert_close(kernel.cov1, plain.cov1 / 0.8)
    assert kernel.cov2 is None
    assert not kernel.is_gaussian

    # An equal copy counts as the same input; a different x2 with one equal sample does not.
    copy = serial(BASE, Dropout(0.8)).kernel_fn(X, X.copy())
    assert_close(copy.nngp, kernel.nngp)
    assert_close(copy.cov2, kernel.cov1)
    other = serial(BASE, Dropout(0.8)).kernel_fn(X, X[:3])
    assert_close(other.nngp, plain.nngp[:, :3])
    assert_close(other.ntk, plain.ntk[:, :3])
    assert_close(other.cov2, plain.cov1[:3] / 0.8)


@pytest.mark.usefixtures("x64")
def test_equal_positions_only():
    x = np.random.default_rng(1).standard_normal((2, 3, 5))
    plain, kernel = BASE.kernel_fn(x), serial(BASE, Dropout(0.5)).kernel_fn(x)
    same = np.einsum("nm,pq->nmpq", np.eye(2), np.eye(3))
    assert_close(kernel.nngp, (1 + same) * plain.nngp)
    assert_close(kernel.ntk, (1 + same) * plain.ntk)
    assert_close(kernel.cov1, (1 + np.eye(3)) * np.asarray(plain.cov1))


@pytest.mark.usefixtures("x64")
def test_test_mode_and_rate_one():
    plain = BASE.kernel_fn(X)
    kernel = serial(BASE, Dropout(0.5, mode="test")).kernel_fn(X)
    assert_close(kernel.ntk, plain.ntk)
    assert_close(serial(BASE, Dropout(1.0)).kernel_fn(X, None, "ntk"), plain.ntk)
    gaussian = serial(Dense(3), Dropout(0.5, mode="test"), Relu())
    assert_close(gaussian.kernel_fn(X, None, "ntk"), serial(Dense(3), Relu()).kernel_fn(X).ntk)


def test_finite_layer():
    x = np.ones((100, 100), np.float32)
    out = Dropout(0.7).apply_fn((), x, rng=KEY)
    assert set(np.unique(out)) == {np.float32(0), np.float32(1) / np.float32(0.7)}
    assert float(out.mean()) == pytest.approx(1, abs=0.03)
    assert_close(out, Dropout(0.7).apply_fn((), x, rng=KEY))
    assert_close(Dropout(0.7, mode="test").apply_fn((), x), x)
    net = serial(Dropout(0.7), Dropout(0.7))
    first = Dropout(0.7).apply_fn((), x, rng=jax.random.split(KEY)[0])
    assert not np.array_equal(net.apply_fn([(), ()], x, rng=KEY), first**2)


@pytest.mark.parametrize("net", [Dropout(0.5), serial(Flatten(), Dropout(0.5), Dense(2))])
def test_raw_input_is_refused_in_training(net):
    with pytest.raises(NotImplementedError, match="Dropout after a layer with random weights"):
        net.kernel_fn(X)


def test_composition_by_kernels_is_accepted():
    kernel = Dropout(0.5).kernel_fn(BASE.kernel_fn(X))
    assert_close(kernel.ntk, serial(BASE, Dropout(0.5)).kernel_fn(X).ntk)


def test_needs_a_key_in_training():
    net = serial(Dense(2), Dropout(0.5))
    _, params = net.init_fn(KEY, X.shape)
    with pytest.raises(ValueError, match="expected rng=key in apply_fn") as error:
        net.apply_fn(params, X)
    assert "at serial[1].Dropout" in error.value.__notes__


@pytest.mark.parametrize("rate", [0, -0.1, 1.5, float("nan")])
def test_bad_rate(rate):
    with pytest.raises(ValueError, match=r"in \(0, 1\], got rate="):
        Dropout(rate)


def test_mode_is_case_sensitive():
    with pytest.raises(ValueError, match="'train' or 'test', got 'TRAIN'"):
        Dropout(0.5, "TRAIN")
