"""Coverage: intervals of the right model hold what they promise, those of a wrong one do not."""

import numpy as np

from examples.demo import coverage
from examples.demo.coverage import LEVELS, CoverageStudy, measure_coverage

STUDY = CoverageStudy(designs=6, tasks=20, points=8, tests=20, width=128)


def test_coverage_of_random_networks():
    done = []
    measured = measure_coverage(STUDY, seed=0, progress=done.append)
    assert done == [1] * 6
    assert list(measured) == ["random networks", "the demonstration's task"]
    right = measured["random networks"]
    assert np.all(right.error < 0.05)
    np.testing.assert_allclose(right.fraction, LEVELS, atol=0.06)


def test_wrong_noise_shows(monkeypatch):
    class TooSure(coverage.InfiniteEnsemble):
        def std(self, x, noise=False):
            return 0.5 * super().std(x, noise)

    monkeypatch.setattr(coverage, "InfiniteEnsemble", TooSure)
    measured = measure_coverage(STUDY, seed=0)["random networks"]
    assert measured.fraction[-1] < 0.8
