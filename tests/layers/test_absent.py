"""Layers without a kernel say so when they are made."""

import pytest

from widelimit import stax


def test_batch_norm_says_why_and_what_instead():
    for arguments in ((), ((0, 1, 2),)):
        with pytest.raises(NotImplementedError, match="couple samples") as error:
            stax.BatchNorm(*arguments, epsilon=1e-5)
    assert "1902.08129" in str(error.value)
    assert "LayerNorm" in str(error.value)


def test_max_pool_says_why_and_what_instead():
    with pytest.raises(NotImplementedError, match="no closed-form kernel") as error:
        stax.MaxPool((2, 2), strides=(2, 2))
    assert "AvgPool" in str(error.value)
