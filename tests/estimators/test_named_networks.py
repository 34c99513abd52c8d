import pytest

import widelimit as wl
from widelimit.estimators.named_networks import ACTIVATIONS, build_network


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_names_are_layers(activation):
    net = build_network("fcn", 1, activation, 1.5, None)
    assert wl.to_json(net) == wl.to_json(
        wl.models.fcn(1, W_std=1.5, b_std=None, activation=ACTIVATIONS[activation](), num_outputs=1)
    )


def test_networks_stay_as_they_are():
    net = wl.models.lenet()
    assert build_network(net, 9, "tanh", 1.0, 1.0) is net


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="expected network to be a network or one of"):
        build_network("mlp", 1, "relu", 1.0, None)
    with pytest.raises(ValueError, match="expected activation to be a layer or one of"):
        build_network("fcn", 1, "swish", 1.0, None)
