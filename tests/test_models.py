"""The networks of the literature."""

from typing import Any

import jax
import numpy as np
import pytest

from tests.tolerance import assert_close
from widelimit import models, plan, stax

IMAGES = (2, 32, 32, 3)


def parameters(net: Any, shape: tuple[int, ...]) -> int:
    return plan(net, shape, "nngp").parameters


def test_shapes_and_parameters_are_those_of_the_papers() -> None:
    # LeNet-5 of the paper has 60,000 with a sparser second convolution
    assert parameters(models.lenet(), (2, 32, 32, 1)) == 61_706
    assert parameters(models.fcn(2, width=64), (2, 784)) == 784 * 64 + 64 + 64 * 64 + 64 + 650
    # WRN-28-10 has 36.5 million, batch normalisation included
    assert parameters(models.wide_resnet(4, 10), IMAGES) == 36_461_232
    assert parameters(models.cnn(2, channels=8), IMAGES) == 224 + 584 + 32 * 32 * 80 + 10
    for depth, convolutions in ((5, 4), (7, 6), (10, 9)):
        rows = plan(models.myrtle(depth), IMAGES, "nngp").rows
        assert sum(row.layer.startswith("Conv") for row in rows) == convolutions
        assert rows[-3].shape == (2, 1, 1, 512)


def test_offsets_stored_at_first() -> None:
    """The entries that docs/offsets.md states."""
    networks = {
        (7, 7): models.lenet(padding="SAME"),
        (8, 8): models.wide_resnet(1, 1),
        (32, 32): models.myrtle(5),
        (1, 1): models.cnn(3, "flatten"),
    }
    for offsets, net in networks.items():
        first = plan(net, IMAGES, "nngp").rows[1]
        assert first.offsets == offsets
        assert first.entries == offsets[0] * offsets[1] * 32 * 32


@pytest.mark.usefixtures("x64")
def test_kernels_and_finite_networks_run() -> None:
    x = np.random.default_rng(0).standard_normal((3, 8, 8, 3))
    tokens = x[:, 0]
    nets = [
        (models.cnn(2, "gap", channels=4, num_outputs=2, activation=stax.Erf()), x),
        (
            stax.serial(
                stax.Dense(4),
                models.transformer_block(4, 2, hidden=4),
                stax.GlobalAvgPool(),
                stax.Dense(2),
            ),
            tokens,
        ),
    ]
    for net, inputs in nets:
        params = net.init_fn(jax.random.PRNGKey(0), inputs.shape)[1]
        assert net.apply_fn(params, inputs).shape == (3, 2)
        kernel = net.kernel_fn(inputs, None, ("nngp", "ntk"))
        for get in kernel:
            assert_close(get, get.T)
            assert np.linalg.eigvalsh(get).min() > 0


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="depth 5, 7 or 10, got 6"):
        models.myrtle(6)
    with pytest.raises(ValueError, match="readout 'flatten' or 'gap', got 'mean'"):
        models.cnn(2, "mean")
    with pytest.raises(ValueError, match="depth of at least 1"):
        models.cnn(0)
    with pytest.raises(ValueError, match="block_size of at least 1"):
        models.wide_resnet(0)
    with pytest.raises(ValueError, match="3 heads divide evenly, got 8 channels"):
        models.transformer_block(8, 3)
