"""The log of a store: what happened when, for people. Nothing reads it for correctness."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path

from widelimit.scale.schema import is_local


class Events:
    """Appends lines of JSON to log.jsonl of a store on a local disk; elsewhere it does nothing."""

    def __init__(self, location: str) -> None:
        """Names the file.

        Args:
          location: path or URL of the store.
        """
        self._path = Path(location) / "log.jsonl" if is_local(location) else None

    def write(self, event: str, **fields: object) -> None:
        """Appends an event; a disk that is full loses it."""
        if self._path is None:
            return
        record = {"time": time.time(), "process": os.getpid(), "event": event, **fields}
        with contextlib.suppress(OSError), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
