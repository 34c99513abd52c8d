"""Errors about one output of several say which."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl

X = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
PARAMS = np.ones((3, 2), np.float32)


class Heads(NamedTuple):
    logits: Any
    aux: Any


def kernel(f: Any, x2: Any = None, **options: Any) -> Any:
    return wl.empirical_ntk_fn(f, **options)(X, x2, PARAMS)


CASES: dict[str, tuple[Any, type[Exception], tuple[str, ...]]] = {
    "a number beside the output": (
        lambda: kernel(lambda p, x: (x @ p, {"step": jnp.sum(p)})),
        ValueError,
        ("trace_axes of an output at [1]['step'] of shape ()", "got (-1,)"),
    ),
    "a diagonal axis that one lacks": (
        lambda: kernel(lambda p, x: {"a": x @ p, "b": [(x @ p)[:, 0]]}, diagonal_axes=(1,),
                       trace_axes=()),
        ValueError,
        ("diagonal_axes of an output at ['b'][0] of shape (4,)", "got (1,)"),
    ),
    "an axis that is both": (
        lambda: kernel(lambda p, x: Heads((x @ p)[..., None], x @ p), diagonal_axes=(1,)),
        ValueError,
        ("which share axis 1 of an output at .aux of shape (4, 2)",),
    ),
    "sizes that differ": (
        lambda: kernel(lambda p, x: [x @ p, p.T @ x.T], X[:3]),
        ValueError,
        ("trace axis 1", "got an output at [1] of shapes (2, 4) and (2, 3)"),
    ),
    "numbers of axes that differ": (
        lambda: kernel(lambda p, x: {"a": x @ p, "b": (x @ p).squeeze()}, X[:1], trace_axes=()),
        ValueError,
        ("an output at ['b'] of shapes (4, 2) and (2,)",),
    ),
    "integers": (
        lambda: kernel(lambda p, x: (x @ p, {"label": (x @ p).argmax(-1, keepdims=True)})),
        TypeError,
        ("int32 numbers in an output at [1]['label'] of shape (4, 1)",),
    ),
    "text": (
        lambda: kernel(lambda p, x: {"y": x @ p, "name": "dense"}),
        TypeError,
        ("got str at ['name']",),
    ),
    "an output that is not mapped": (
        lambda: kernel(lambda p, x: (x @ p, x @ p), vmap_axes=(0, (0, None), {})),
        ValueError,
        ("got None for an output at [1] of shape (1, 2)",),
    ),
    "an output of no sample": (
        lambda: kernel(lambda p, x: {"y": x @ p, "w": p}, vmap_axes=0),
        ValueError,
        ("got an output at ['w'] of shape (3, 2)",),
    ),
    "a mapped axis that one lacks": (
        lambda: kernel(lambda p, x: {"y": x @ p, "s": p.sum()}, vmap_axes=0),
        ValueError,
        ("axis 0 in outputs of f at ['s'], as vmap_axes say, got shape ()",),
    ),
    "an axis that is no integer": (
        lambda: kernel(lambda p, x: (x @ p, x @ p), vmap_axes=(0, (0, 0.5), {})),
        TypeError,
        ("vmap_axes for outputs of f at [1], got 0.5",),
    ),
    "several outputs of an operator": (
        lambda: wl.NTKOperator(lambda p, x: (x @ p, {"b": x @ p}), PARAMS, X),
        TypeError,
        ("one array as its output, got 2: an output at [0], an output at [1]['b']",),
    ),
    "a vector": (
        lambda: wl.empirical_ntk_vp_fn(lambda p, x: (x @ p, p), X, None, PARAMS)(
            (jnp.ones((4, 2)), jnp.ones((2, 2)))
        ),
        ValueError,
        ("vector of shape (3, 2), as an output at [1] has, got shape (2, 2)",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_errors_name_the_output(name: str) -> None:
    call, error, parts = CASES[name]
    with pytest.raises(error, match="expected") as raised:
        call()
    assert all(part in str(raised.value) for part in parts), str(raised.value)


def test_one_output_has_no_path() -> None:
    with pytest.raises(ValueError, match=r"trace_axes of an output of shape \(4,\)"):
        kernel(lambda p, x: (x @ p)[:, 0], trace_axes=(1,))
