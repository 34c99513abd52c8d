import numpy as np
import pytest

from widelimit import stax
from widelimit.scale.inputs import check_samples_first, in_batches, sample_count


def test_batches_hold_every_sample_in_order():
    x = [np.arange(7), np.arange(14).reshape(7, 2)]
    batches = list(in_batches(x, 3))
    assert [sample_count(batch) for batch in batches] == [3, 3, 1]
    for k in range(2):
        np.testing.assert_array_equal(np.concatenate([batch[k] for batch in batches]), x[k])
    assert [sample_count(batch) for batch in in_batches(np.zeros((0, 2)), 3)] == [0]


def test_samples_come_first():
    x = np.ones((3, 4))
    check_samples_first(stax.Dense(1).kernel_fn, x)
    check_samples_first(lambda x1, x2, get: x1, x)
    check_samples_first(stax.Dense(1, batch_axis=-2).kernel_fn, x)
    with pytest.raises(ValueError, match=r"samples along axis 0, got batch axes \(1,\)"):
        check_samples_first(stax.Dense(1, batch_axis=1, channel_axis=0).kernel_fn, x)
