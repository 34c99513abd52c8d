"""How every test runs: on the CPU, float32 unless it asks, no silent broadcasting of ranks."""

import os
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import pytest

TYPECHECK = os.environ.get("WIDELIMIT_TYPECHECK", "1") != "0"

if "JAX_PLATFORMS" not in os.environ:
    jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_enable_x64", False)
jax.config.update("jax_numpy_rank_promotion", "raise")

if TYPECHECK:
    # Checks the shapes and types in the annotations at every call. It must come before the first
    # import of the package. WIDELIMIT_TYPECHECK=0 turns it off.
    from jaxtyping import install_import_hook

    install_import_hook("widelimit", "beartype.beartype")


@pytest.fixture
def x64() -> Iterator[None]:
    """float64 for the length of one test: name it as an argument or in `usefixtures`."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def fused_engine() -> None:
    """Lets a test outside of tests/fused and tests/gram run on the fused engine."""


@pytest.fixture(autouse=True)
def engine_under_test(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference engine everywhere but in the tests of the fused engine, and on request."""
    folder = pathlib.Path(__file__).parent
    parts = request.path.relative_to(folder).with_suffix("").parts
    about = parts[0].removeprefix("test_")
    if about in ("fused", "gram") or "fused_engine" in request.fixturenames:
        return

    def refusal(*args: Any, **kwargs: Any) -> str:
        return "this test is about the reference engine"

    monkeypatch.setattr("widelimit.kernel.refusal", refusal)
