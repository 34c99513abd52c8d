"""Figures of pyplot are made without a display, and closed after each test."""

import matplotlib as mpl
import pytest


@pytest.fixture(autouse=True)
def agg():
    mpl.use("Agg")
    from matplotlib import pyplot

    yield
    pyplot.close("all")
