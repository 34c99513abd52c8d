"""How every test runs: on the CPU, float32 unless it asks, no silent broadcasting of ranks."""

import os
from collections.abc import Iterator
from typing import Any

import jax
import pytest

from tests import quick

TYPECHECK = os.environ.get("WIDELIMIT_TYPECHECK", "1") != "0"
# `make test` makes all but the tests marked `optimised` quick: see below.
QUICK = os.environ.get("WIDELIMIT_QUICK_COMPILE", "0") != "0"
# Where users' arguments arrive. The checks of all rooms take a third of the time of all tests.
OUTER = ["network", "extend", "models", "kernel", "gram", "predict", "finite", "diagnostics"]
OUTER += ["estimators", "plot"]

if "JAX_PLATFORMS" not in os.environ:
    jax.config.update("jax_platforms", "cpu")
# WIDELIMIT_X64=1 turns float64 on for tests that do not say.
jax.config.update("jax_enable_x64", os.environ.get("WIDELIMIT_X64", "0") != "0")
jax.config.update("jax_numpy_rank_promotion", "raise")

if TYPECHECK:
    # Checks the shapes and types in the annotations at every call, in `make test` those of the
    # outer rooms only. It must come before the first import of the package. WIDELIMIT_TYPECHECK=0
    # turns it off.
    from jaxtyping import config, install_import_hook

    rooms = [f"widelimit.{room}" for room in OUTER] if QUICK else ["widelimit"]
    install_import_hook(rooms, "beartype.beartype")

    class Refusal(pytest.RaisesExc[BaseException]):
        """`pytest.raises` without these checks: what a test expects to be refused is not legal."""

        def __enter__(self) -> pytest.ExceptionInfo[BaseException]:
            self._before = config.jaxtyping_disable
            config.update("jaxtyping_disable", True)
            return super().__enter__()

        def __exit__(self, *error: Any) -> bool:
            config.update("jaxtyping_disable", self._before)
            return super().__exit__(*error)

    pytest.raises = Refusal  # type: ignore[assignment]

# `make test` compiles fast, all but the tests marked `optimised`, which take the code that users
# run. XLA reads its flags anew at every compilation; one that it does not know would end the
# process.
FLAGS: dict[bool, str] = {}  # by whether a test is `optimised`
if QUICK:
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_flags_reset=true".strip()
    FLAGS = {way: f"{os.environ['XLA_FLAGS']} {quick.flags(way)}" for way in (False, True)}
    os.environ["XLA_FLAGS"] = FLAGS[False]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Optimised tests come first in their file: compiled code is dropped at every change."""
    if QUICK:
        items.sort(key=lambda item: item.get_closest_marker("optimised") is None)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """How XLA compiles is settled before any fixture compiles."""
    if QUICK:
        wanted = FLAGS[item.get_closest_marker("optimised") is not None]
        if os.environ["XLA_FLAGS"] != wanted:
            os.environ["XLA_FLAGS"] = wanted
            jax.clear_caches()


@pytest.fixture
def reference_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks take the reference engine: for tests of what it does itself."""
    from widelimit._cache import kept_with

    why = "tests ask for the reference engine"
    monkeypatch.setattr("widelimit.engines.choose.refusal", lambda *_: why)
    # Networks that other tests used keep the engine that was chosen for them there.
    monkeypatch.setattr(
        "widelimit.engines.choose.kept_with",
        lambda net, key, make: kept_with(net, (why, key), make),
    )


@pytest.fixture
def x64() -> Iterator[None]:
    """float64 for the length of one test: name it as an argument or in `usefixtures`."""
    with jax.enable_x64(True):
        yield
