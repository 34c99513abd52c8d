import jax
import jax.numpy as jnp
import numpy as np
import pytest

from widelimit.predict.checks import as_flag, check_not_negative, check_scalar


@pytest.mark.parametrize("value", [-1, -0.5, np.nan, np.array([1.0, -1e-9]), jnp.array(-1)])
def test_negative(value):
    with pytest.raises(ValueError, match="expected noise of at least 0, got"):
        check_not_negative("noise", value)


def test_one_number():
    for value in [np.ones((50, 200)), jnp.ones(3), [[1.0, 2.0]], -np.ones((9, 9))]:
        with pytest.raises(ValueError, match=r"one number for rate, got an array .*\); try t$"):
            check_scalar("rate", value, "; try t")
    for value in ["1", None, 1j, True, lambda: 1]:
        with pytest.raises(TypeError, match="expected a number for rate, got"):
            check_scalar("rate", value)
    check_scalar("rate", np.float32(1))
    jax.jit(lambda x: check_scalar("rate", x))(-1.0)


def test_flags():
    for value in [True, np.True_, 1, jnp.array(True)]:
        assert as_flag("absolute", value) is True
    for value in [np.ones((9, 9)), np.ones(3, bool), "True", None]:
        with pytest.raises(TypeError, match="expected absolute to be True or False, got"):
            as_flag("absolute", value)


def test_not_negative():
    for value in [0, 0.0, np.inf, np.arange(3), []]:
        check_not_negative("noise", value)
    jax.jit(lambda x: check_not_negative("noise", x))(-1.0)
