import numpy as np
import pytest

from widelimit import plot
from widelimit.plot.matrices import kernel, spectrum


def test_classes_are_put_in_order():
    labels = np.array([1, 0, 1])
    matrix = np.array([[2.0, 0.1, 1.0], [0.1, 3.0, 0.2], [1.0, 0.2, 4.0]])
    drawn = kernel(matrix, labels=labels)
    order = [1, 0, 2]
    np.testing.assert_array_equal(drawn.image.get_array(), matrix[np.ix_(order, order)])
    axes = drawn.image.axes
    np.testing.assert_allclose(axes.get_xticks(), [0, 1.5])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "1"]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [0.5, 0.5])
    np.testing.assert_allclose(drawn.spectrum.get_ydata(), np.linalg.eigvalsh(matrix)[::-1])
    assert drawn.colorbar.ax.figure is axes.figure


def test_rounding_is_marked():
    rng = np.random.default_rng(0)
    features = rng.standard_normal((20, 3)).astype(np.float32)
    singular = features @ features.T
    with plot.new_figure(5.0, 4.0) as figure:
        axes = figure.subplots()
        drawn = spectrum({"of rank 3": singular, "identity": np.eye(20)}, ax=axes)
    values = drawn["of rank 3"].get_ydata()
    assert np.isnan(values).sum() > 0  # negative by rounding
    (mark,) = [line for line in axes.lines if line.get_linestyle() == ":"]
    floor = np.sqrt(20) * np.finfo(np.float32).eps * np.diagonal(singular).max()
    np.testing.assert_allclose(mark.get_ydata(), floor)
    assert np.nanmax(values[3:]) < floor < values[2]
    assert [text.get_text() for text in axes.texts] == ["rounding of float32"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["of rank 3", "identity"]


@pytest.mark.parametrize("matrix", [np.ones((2, 3)), np.ones((2, 2, 1, 1)), np.ones((0, 0))])
def test_other_shapes_are_refused(matrix):
    with pytest.raises(ValueError, match=r"expected the kernel of shape \[n, n\], got"):
        kernel(matrix)


def test_wrong_entries_and_labels_are_refused():
    with pytest.raises(ValueError, match="finite entries"):
        kernel(np.array([[np.nan]]))
    with pytest.raises(ValueError, match=r"expected labels of shape \(2,\), got \(3,\)"):
        kernel(np.eye(2), labels=np.arange(3))
    with pytest.raises(ValueError, match="expected 2 axes"):
        kernel(np.eye(2), ax=[spectrum({"": np.eye(2)})[""].axes])
