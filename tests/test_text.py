"""What users are told."""

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from widelimit._text import shown, text_table, warn


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (-0.1, "-0.1"),
        ("Bayes", "'Bayes'"),
        (np.float32(2), "np.float32(2.0)"),
        (np.array(-1), "-1"),
        (np.array([1.0, -2.0]), "[ 1. -2.]"),
        (jnp.array(-1), "-1"),
        (np.ones((2, 4)), "[[1. 1. 1. 1.] [1. 1. 1. 1.]]"),
        (np.ones((50, 200)), "an array of shape (50, 200)"),
        (jnp.ones((3, 3)), "an array of shape (3, 3)"),
        (None, "None"),
    ],
    ids=str,
)
def test_values_in_few_words(value: object, text: str) -> None:
    assert shown(value) == text


def test_whatever_it_is_it_is_short_and_on_one_line() -> None:
    long = [np.ones((9, 9)), [np.ones(300)] * 3, {"a": np.eye(40)}, "x" * 500, list(range(10**4))]
    for value in long:
        assert len(shown(value)) <= 80
        assert "\n" not in shown(value)
    seen: list[str] = []
    jax.jit(lambda x: (seen.append(shown(x)), x)[1])(jnp.ones((2, 3)))
    assert seen == ["a traced array of shape (2, 3)"]


def test_warnings_name_the_line_of_the_user() -> None:
    with pytest.warns(RuntimeWarning, match="look here") as caught:
        inspect.unwrap(warn)("look here", RuntimeWarning)
    assert re.search(r"test_text\.py$", caught[0].filename)


def test_text_table():
    assert text_table(["a", "bb"], [["long", "1"], ["x", "2.50"]]) == (
        "a       bb\n----  ----\nlong     1\nx     2.50"
    )
