import numpy as np

from tests.scale.stores import small_store
from widelimit.scale.distributed_operator import DistributedOperator
from widelimit.scale.executors import Inline
from widelimit.scale.schema import read_content


def test_products_have_the_bits_of_one_process(tmp_path):
    store = small_store(tmp_path)
    store.fill(progress=False)
    v = np.random.default_rng(0).standard_normal((50, 70))
    fingerprint = read_content(store.path).fingerprint
    operator = DistributedOperator(store.tiles["ntk"], (store.path, fingerprint), "ntk", Inline())
    for _ in range(2):
        np.testing.assert_array_equal(operator.matmat(v), store.operator().matmat(v))
