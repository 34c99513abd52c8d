"""What the demonstration prints."""

import numpy as np

from examples.demo import report
from examples.demo.coverage import Coverage, CoverageStudy


def test_coverage_text():
    coverage = {"some": Coverage(np.array([0.5, 0.9, 0.95]), np.array([0.01, 0.002, 0.001]))}
    text = report.coverage_text(CoverageStudy(), coverage)
    assert text.splitlines()[-1] == "some       50.0 +- 1.0 %  90.0 +- 0.2 %  95.0 +- 0.1 %"
    assert "500 data sets of 16 points each" in text
