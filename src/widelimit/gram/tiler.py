"""The contract of tilers, which compute kernels tile by tile."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from jaxtyping import PyTree

from widelimit.gram.fields import Layout


@runtime_checkable
class Tiler(Protocol):
    """Computes the kernels between two sets of samples tile by tile.

    `prepare` does the work per sample, once; `tile` the work per pair. A piece of samples is padded
    by repeating its last sample; the results of padding are cut off. `KernelFn.tiler` returns the
    tiler of a network's engine, `CallableTiler` is one for any other kernel function.
    """

    same: bool
    """Whether x2 is x1: `tile(a, None)` is the kernel of samples with themselves, and tiles above
    the diagonal are mirrored."""
    given_x2: bool
    """Whether the user passed an x2, even if it is x1."""

    @property
    def counts(self) -> tuple[int, int]:
        """Numbers of samples of x1 and x2."""

    @property
    def target_bytes(self) -> int:
        """Bytes beyond which larger tiles are not faster."""

    @property
    def halves(self) -> bool:
        """Whether tiles are quick, and a tile of samples with themselves takes half the work."""

    @property
    def prepared_bytes(self) -> int:
        """Bytes that `prepare` stores per sample."""

    @property
    def diagonal_spatial(self) -> bool | None:
        """Whether results hold equal positions only (n1, n2, H, ...); None if unknown."""

    def layout(self) -> Layout | None:
        """Returns the axes of samples in results; None if these are fields of a `Kernel`.

        Raises:
          ValueError: results that cannot be assembled from tiles.
        """

    def check(self) -> None:
        """Raises ValueError if the kernels of some samples depend on others."""

    def tile_bytes(self, n1: int, n2: int) -> int:
        """Returns the peak bytes of `tile` for n1 and n2 samples, result included."""

    def outline(self) -> PyTree:
        """Returns the kernels of one sample with itself, or their shapes and dtypes."""

    def rows(self, side: int, start: int, stop: int, size: int) -> Any:
        """Returns samples start to stop of x1 (0) or x2 (1), the last repeated up to `size`."""

    def prepare(self, rows: Any) -> Any:
        """Returns the samples prepared for `tile`."""

    def tile(self, first: Any, second: Any) -> PyTree:
        """Returns kernels between prepared samples, of `first` with itself if `second` is None."""
