import jax.numpy as jnp
import pytest

from widelimit.empirical.subset import choose_leaves

PARAMS = {
    "layers": [{"kernel": jnp.ones((2, 2)), "lora_a": jnp.ones(2)}, {"kernel": jnp.ones(2)}],
    "step": jnp.array(1),
}
# In the order layers/0/kernel, layers/0/lora_a, layers/1/kernel, step.


@pytest.mark.parametrize(
    ("subset", "expected"),
    [
        ("*/lora_*", (False, True, False, False)),
        (["layers/1/*", "*lora_a"], (False, True, True, False)),
        (
            lambda path, leaf: "kernel" in path and leaf.ndim == 2,
            (True, False, False, False),
        ),
        ({"layers": True, "step": False}, (True, True, True, False)),
        ({"layers": [False, {"kernel": True}], "step": False}, (False, False, True, False)),
    ],
)
def test_leaves_are_chosen(subset, expected):
    assert choose_leaves(PARAMS, subset) == expected


@pytest.mark.parametrize(
    ("subset", "error", "message"),
    [
        (None, TypeError, "int32 numbers at 'step'"),
        ("*bias", ValueError, "pattern of some path among layers/0/kernel"),
        (lambda path, leaf: False, ValueError, "expected subset to choose some"),
        ({"layers": True}, ValueError, "booleans in a tree like"),
        ({"layers": 1, "step": False}, TypeError, "booleans in subset"),
    ],
)
def test_wrong_subsets(subset, error, message):
    with pytest.raises(error, match=message):
        choose_leaves(PARAMS, subset)


def test_leaves_that_are_no_numbers():
    with pytest.raises(TypeError, match="got str at 'name'"):
        choose_leaves({"name": "dense", "w": jnp.ones(1)}, None)
    with pytest.raises(ValueError, match="without leaves"):
        choose_leaves({}, None)
