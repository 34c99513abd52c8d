"""A progress bar with the remaining time, if tqdm is installed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def progress_bar(total: int, visible: bool) -> Iterator[Callable[[int], object]]:
    """Yields a function to call with the number of newly finished pairs of samples.

    No bar is shown within the first second, or without tqdm (the extra `progress`).
    """
    if not visible:
        yield lambda _: None
        return
    try:
        from tqdm import tqdm  # here, since it is optional
    except ImportError:
        yield lambda _: None
        return
    with tqdm(total=total, desc="gram", unit="pair", unit_scale=True, delay=1, leave=False) as bar:
        yield bar.update
