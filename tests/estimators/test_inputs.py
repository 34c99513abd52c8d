import numpy as np
import pytest
from sklearn.preprocessing import StandardScaler

from tests.tolerance import assert_close
from widelimit.estimators.inputs import Standardiser, shaped


def test_tables_are_standardised_as_by_scikit_learn():
    random = np.random.default_rng(0)
    x, weights = random.standard_normal((9, 3)) * [1, 1e-6, 1e6] + [5, 1e-6, 5], random.random(9)
    expected = StandardScaler().fit(x, sample_weight=weights).transform(x)
    assert_close(Standardiser.of(x, weights)(x), expected, rtol=1e-6)


def test_numbers_of_any_size_are_standardised():
    x = np.random.default_rng(0).standard_normal((9, 1))
    for size in (1e-200, 1e200):
        assert_close(
            Standardiser.of(size * x, np.ones(9))(size * x), Standardiser.of(x, np.ones(9))(x)
        )


def test_constants_become_zeros():
    x = np.full((5, 2), 0.1) * [1, 1e8]
    standardise = Standardiser.of(x, np.ones(5))
    assert not standardise(x).any()
    assert not standardise(x + 1).any()


def test_images_are_standardised_by_channels():
    x = np.random.default_rng(0).random((4, 3, 2, 2)) * [1, 10]
    found = Standardiser.of(x, np.ones(4))(x)
    assert np.abs(found.mean((0, 1, 2))).max() < 1e-14
    assert_close(found.std((0, 1, 2)), np.ones(2))


def test_rows_become_images():
    x = np.arange(24.0).reshape(2, 12)
    assert_close(shaped(x, (2, 3, 2)), x.reshape(2, 2, 3, 2))
    with pytest.raises(ValueError, match=r"expected rows of 8 numbers for image_shape=\(2, 2, 2\)"):
        shaped(x, (2, 2, 2))
