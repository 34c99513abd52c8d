"""Filling a store: what is missing is computed, in any order, by anyone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from widelimit.gram.progress import progress_bar
from widelimit.scale.events import Events
from widelimit.scale.executors import Executor
from widelimit.scale.maker import Known
from widelimit.scale.stored_tiles import StoredTiles
from widelimit.scale.task import Outcome, compute_tile
from widelimit.scale.tile_grid import Place, TileGrid

# More tasks than a scheduler likes to hold are handed over as others end.
_WINDOW = 10_000


class FillReport(NamedTuple):
    """What `Store.fill` did.

    Attributes:
      done: number of tiles that were computed, of which `recomputed` had a damaged chunk before.
      skipped: number of tiles that existed.
      recomputed: see `done`.
      left: number of tiles that are still missing, because it was told to stop.
      seconds: how long it took.
    """

    done: int
    skipped: int
    recomputed: int
    left: int
    seconds: float


def scan(chunks: Iterable[StoredTiles]) -> tuple[set[Place], set[Place]]:
    """Returns the tiles that all kernels have, and those with a chunk of a wrong size."""
    scanned = [part.complete() for part in chunks]
    wrong = set.union(*[each[1] for each in scanned])
    return set.intersection(*[each[0] for each in scanned]), wrong


def fill(
    *,
    location: str,
    fingerprint: str,
    grid: TileGrid,
    chunks: Iterable[StoredTiles],
    known: Known,
    executor: Executor,
    progress: bool,
    stop: Callable[[], bool],
) -> FillReport:
    """Computes the tiles that are missing.

    Args:
      location: path or URL of the store.
      fingerprint: of what it holds.
      grid: its tiles.
      chunks: the tiles of its kernels.
      known: layers and functions of users in its network.
      executor: who computes.
      progress: whether to show a bar.
      stop: whether to stop after the tiles at hand; asked after every tile.

    Returns:
      What was done.

    Raises:
      ValueError: kernels that are not finite, with their rows, when all others are written.
      LostError: a tile whose workers die at it again and again.
      OSError: the disk is full.
      KeyboardInterrupt: with how far it came; what is written is kept.
    """
    started, (complete, wrong) = time.monotonic(), scan(chunks)
    todo = [place for place in grid.all() if place not in complete]
    events, refused = Events(location), []
    done, skipped, recomputed = 0, len(complete), 0
    pairs = {place: grid.shape(place)[0] * grid.shape(place)[1] for place in todo}
    try:
        with progress_bar(sum(pairs.values()), progress and bool(todo)) as advance:
            for outcome in _outcomes((location, fingerprint), todo, known, executor, stop):
                events.write("tile", place=outcome.place, state=outcome.state)
                refused += [outcome.place] * (outcome.state == "refused")
                done += outcome.state == "done"
                recomputed += outcome.state == "done" and outcome.place in wrong
                skipped += outcome.state == "skipped"
                advance(pairs[outcome.place])
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"{location} has {done + skipped} of {len(grid)} tiles, which are kept: "
            "store.fill() goes on from there"
        ) from None
    finally:
        executor.close()
    if refused:
        shown = "; ".join(map(grid.words, refused[:3]))
        raise ValueError(
            f"expected finite kernels, got others in {len(refused)} of {len(grid)} tiles, which "
            f"are not written: {shown}"
        )
    left = len(grid) - done - skipped
    return FillReport(done, skipped, recomputed, left, time.monotonic() - started)


def _outcomes(
    store: tuple[str, str],
    todo: list[Place],
    known: Known,
    executor: Executor,
    stop: Callable[[], bool],
) -> Iterator[Outcome]:
    """Yields the outcome of every tile to do, until told to stop."""
    waiting = iter(todo)
    window = 1 if executor.workers == 1 else min(_WINDOW, 64 * executor.workers)
    run = f"{time.time_ns():x}"

    def submit_next() -> None:
        place = next(waiting, None)
        if place is not None:
            name = f"tile-{place[0]}-{place[1]}-{run}"
            executor.submit(name, compute_tile, *store, place, known)

    for _ in range(window):
        submit_next()
    for outcome in executor.as_completed():
        assert isinstance(outcome, Outcome)
        yield outcome
        if stop():
            return
        submit_next()
