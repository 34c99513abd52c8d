"""Libraries of the extra `scale`, imported when they are used."""

from __future__ import annotations

import importlib
from typing import Any


def import_optional(module: str) -> Any:
    """Returns an optional module.

    Raises:
      ImportError: it is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"expected {module.partition('.')[0]} for widelimit.scale, which is not installed: "
            "pip install 'widelimit[scale]'"
        ) from error
