"""The contract of what computes tiles."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from jaxtyping import PyTree

from widelimit.gram.fields import Layout


@runtime_checkable
class Tiler(Protocol):
    """Computes the kernels between two sets of samples tile by tile.

    `prepare` does what concerns single samples, once; `tile` what concerns pairs. Rows that fill
    up a piece of samples are repetitions of its last; their results are cut off. `KernelFn.tiler`
    makes one for the engine of its network, `CallableTiler` one for any other kernel function.
    """

    same: bool
    """Whether x2 is x1: `tile(a, None)` is the kernel of samples with themselves, and tiles above
    the diagonal are mirrored."""
    given_x2: bool
    """Whether an x2 was given, be it x1."""

    @property
    def counts(self) -> tuple[int, int]:
        """Numbers of samples of x1 and x2."""

    @property
    def target_bytes(self) -> int:
        """Bytes of a tile beyond which it is no faster."""

    @property
    def halves(self) -> bool:
        """Whether tiles are quick, and one of samples with themselves takes half the work."""

    @property
    def prepared_bytes(self) -> int:
        """Bytes that `prepare` keeps of one sample."""

    @property
    def diagonal_spatial(self) -> bool | None:
        """Whether results keep equal positions only (n1, n2, H, ...); None if that is not known."""

    def layout(self) -> Layout | None:
        """Returns where samples are in results, by few of them; None if their names tell.

        Raises:
          ValueError: results that cannot be put together from tiles.
        """

    def check(self) -> None:
        """Raises ValueError if the kernels of some samples depend on others."""

    def tile_bytes(self, n1: int, n2: int) -> int:
        """Returns the most bytes that `tile` takes for n1 and n2 samples, result included."""

    def outline(self) -> PyTree:
        """Returns the kernels of one sample with itself, or their shapes and dtypes."""

    def rows(self, side: int, start: int, stop: int, size: int) -> Any:
        """Returns samples start to stop of x1 (0) or x2 (1), the last repeated up to `size`."""

    def prepare(self, rows: Any) -> Any:
        """Returns what tiles read of these samples."""

    def tile(self, first: Any, second: Any) -> PyTree:
        """Returns kernels between prepared samples, of `first` with itself if `second` is None."""
