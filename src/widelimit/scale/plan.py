"""What filling a store will take, before anything runs."""

from __future__ import annotations

import dataclasses

from widelimit.gram.sizes import human_bytes


@dataclasses.dataclass(frozen=True)
class StorePlan:
    """What a store takes; printed, it is a table.

    Attributes:
      shape: of every kernel.
      kernels: their names.
      tile: rows and columns of a tile.
      tiles: number of tiles; of x1 with itself the upper triangle.
      done: how many of them exist.
      bytes: of all chunks.
      free_bytes: space on the disk, None where that is not known.
      seconds: estimate for what is missing, from a few pairs timed here.
      workers: how many tiles are computed at once.
      executor: who computes.
      engine: name of the engine that computes kernels, and why it was chosen.
      backend: "stored" or "recompute": what products with the matrix should read, and why.
    """

    shape: tuple[int, int]
    kernels: tuple[str, ...]
    tile: int
    tiles: int
    done: int
    bytes: int
    free_bytes: int | None
    seconds: float
    workers: int
    executor: str
    engine: tuple[str, str]
    backend: tuple[str, str]

    @property
    def missing_bytes(self) -> int:
        """Bytes that are still to be written."""
        return self.bytes * (self.tiles - self.done) // max(1, self.tiles)

    @property
    def fits(self) -> bool:
        """Whether the disk has space for what is missing."""
        return self.free_bytes is None or self.missing_bytes <= self.free_bytes

    def __str__(self) -> str:
        free = "unknown" if self.free_bytes is None else human_bytes(self.free_bytes)
        lines = {
            "kernels": f"{', '.join(self.kernels)} [{self.shape[0]}, {self.shape[1]}]",
            "tiles": f"{self.tiles} of {self.tile} x {self.tile} samples, {self.done} done",
            "disk": f"{human_bytes(self.missing_bytes)} to write, {free} free",
            "time": f"about {human_seconds(self.seconds)}, {self.executor}",
            "engine": f"{self.engine[0]}: {self.engine[1]}",
            "products": f"{self.backend[0]}: {self.backend[1]}",
        }
        return "\n".join(f"{name:<10}{text}" for name, text in lines.items())


def choose_backend(seconds_per_pair: float, itemsize: int, passes: int = 20) -> tuple[str, str]:
    """Returns whether products should read a stored matrix or compute it again, and why.

    Storing costs one write and a read for each pass, computing again the work of each pass: with I
    passes store if a pair takes longer than (w + I r) / (I - 1).

    Args:
      seconds_per_pair: what an entry takes to compute.
      itemsize: bytes of an entry.
      passes: number of products with the matrix.
    """
    write, read = itemsize / 400e6, itemsize / 1e9  # seconds an entry, on an ordinary disk
    limit = (write + passes * read) / (passes - 1)
    compared = (
        f"an entry takes {seconds_per_pair:.1e} s to compute, {limit:.1e} s to store and read"
    )
    return ("stored" if seconds_per_pair > limit else "recompute"), compared


def human_seconds(seconds: float) -> str:
    """Returns a duration as people write it: 3.2 h."""
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
