"""What tests of the fused engine share."""

from typing import Any

import pytest


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every run of a compiled interpreter."""
    from widelimit.engines.fused import flat_machine, machine

    made: list[int] = []

    def count(module: Any, name: str) -> None:
        run = getattr(module, name)

        def counted(*args: Any) -> None:
            made.append(len(args))
            run(*args)

        monkeypatch.setattr(module, name, counted)

    count(machine, "run_stages")
    count(flat_machine, "run_rows")
    return made
