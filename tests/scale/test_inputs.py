import numpy as np

from widelimit.scale.inputs import in_batches, sample_count


def test_batches_of_trees():
    x = {"a": np.arange(5), "b": np.arange(10).reshape(5, 2)}
    batches = list(in_batches(x, 2))
    assert [sample_count(batch) for batch in batches] == [2, 2, 1]
    for name in x:
        np.testing.assert_array_equal(np.concatenate([batch[name] for batch in batches]), x[name])
    assert [len(batch) for batch in in_batches(np.zeros((0, 3)), 4)] == [0]
    assert len(list(in_batches(np.zeros(3), 0))) == 3
