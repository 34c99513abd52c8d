from types import SimpleNamespace

import numpy as np
import pytest

from widelimit.predict.selection import check_is_array


def test_one_kernel_is_told_from_several():
    kernel = np.eye(2)
    check_is_array("k_train_train", kernel)
    with pytest.raises(ValueError, match=r"k_train_train to be an array, .* pass its field ntk"):
        check_is_array("k_train_train", SimpleNamespace(nngp=kernel, ntk=kernel))
