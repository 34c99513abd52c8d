"""scikit-learn's own checks of estimators.

We leave none out. scikit-learn skips its check of array API inputs by itself, unless the
environment variable SCIPY_ARRAY_API was set before SciPy was imported.
"""

from collections.abc import Iterator

import pytest
from jaxtyping import config
from sklearn.utils.estimator_checks import parametrize_with_checks

from widelimit.estimators import NNGPClassifier, NNGPRegressor, NTKClassifier, NTKRegressor

# One hidden layer is enough to pass or to fail.
ESTIMATORS = [
    kind(depth=1) for kind in (NNGPClassifier, NNGPRegressor, NTKClassifier, NTKRegressor)
]


@pytest.fixture(autouse=True)
def unchecked_annotations() -> Iterator[None]:
    """Constructors must take anything: the checks of annotations in our tests would refuse it."""
    before = config.jaxtyping_disable
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", before)


@pytest.mark.filterwarnings("ignore:A column-vector y was passed")  # a check provokes it
@parametrize_with_checks(ESTIMATORS)
def test_checks_of_scikit_learn(estimator, check):
    check(estimator)
