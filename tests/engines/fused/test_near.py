"""Which pairs of images go through float64."""

from __future__ import annotations

import numpy as np

from widelimit.engines.fused.near import nearly_equal


def test_copies_near_copies_multiples_and_others() -> None:
    x, y, noise = np.random.default_rng(0).standard_normal((3, 2, 4, 5)).astype(np.float32)
    images = np.stack([x, x, x + np.float32(1e-3) * noise, 2 * x, 3 * x, -x, y, 0 * x])
    pairs = np.array([(0, j) for j in range(len(images))])
    expected = [False, False, True, True, True, True, False, False]
    assert nearly_equal(images, images, pairs).tolist() == expected
    for pair, near in zip(pairs, expected, strict=True):
        alone = nearly_equal(images[pair[:1]], images[pair[1:]], np.array([[0, 0]]))
        assert alone.tolist() == [near]


def test_no_images() -> None:
    none = np.zeros((0, 2, 4, 5), np.float32)
    assert nearly_equal(none, none, np.zeros((0, 2), np.int64)).shape == (0,)
