from types import SimpleNamespace

import numpy as np
import pytest

from widelimit import stax
from widelimit.predict import gp_inference, gradient_descent_mse_ensemble
from widelimit.predict.selection import check_is_array, check_is_kernel


def test_one_kernel_is_told_from_several():
    kernel = np.eye(2)
    check_is_array("k_train_train", kernel)
    with pytest.raises(ValueError, match=r"k_train_train to be an array, .* pass its field ntk"):
        check_is_array("k_train_train", SimpleNamespace(nngp=kernel, ntk=kernel))


def test_what_makes_kernels_is_no_kernel():
    net = stax.serial(stax.Dense(1))
    triple = tuple(net)
    for other, kind in [(net, "network"), (triple, "network"), (net.kernel_fn, "function|network")]:
        with pytest.raises(TypeError, match=f"k to be a kernel, got a ({kind}): call its"):
            check_is_kernel("k", other)
    for kernel in [np.eye(2), SimpleNamespace(ntk=np.eye(2)), [[1.0]]]:
        check_is_kernel("k", kernel)


def test_kernels_in_a_dict():
    kernels = {"ntk": np.eye(2), "nngp": np.eye(2)}
    expected = r"k_train_train to be an array, .* a dict with keys \['nngp', 'ntk'\]"
    with pytest.raises(TypeError, match=expected):
        gp_inference(kernels, np.ones((2, 1)))("nngp", np.eye(2))
    with pytest.raises(TypeError, match="result of kernel_fn to be an array"):
        gradient_descent_mse_ensemble(lambda *_: kernels, np.eye(2), np.ones((2, 1)))(t=1.0)
