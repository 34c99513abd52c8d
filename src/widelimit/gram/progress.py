"""A progress bar with the time left, where tqdm is installed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def progress_bar(total: int, wanted: bool) -> Iterator[Callable[[int], object]]:
    """Yields a function that is told how many more pairs of samples are done.

    Nothing is shown within the first second, nor without tqdm (the extra `progress`).
    """
    if not wanted:
        yield lambda _: None
        return
    try:
        from tqdm import tqdm  # here, since it is optional
    except ImportError:
        yield lambda _: None
        return
    with tqdm(total=total, desc="gram", unit="pair", unit_scale=True, delay=1, leave=False) as bar:
        yield bar.update
