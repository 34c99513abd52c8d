"""Kernel matrices on disk: created from a network and its inputs, filled tile by tile."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array, Real

from widelimit._text import shown
from widelimit.engines.choose import choose_engine
from widelimit.engines.inputs import working_dtype
from widelimit.engines.tiles import NetworkTiler
from widelimit.gram.progress import progress_bar
from widelimit.gram.sizes import parse_memory
from widelimit.gram.storage import Disk, check_path
from widelimit.kernel.get import KERNELS, parse_get
from widelimit.layers.base import Layer
from widelimit.layers.description import to_json
from widelimit.scale.backends import Backend, check_backend, recomputed, stored
from widelimit.scale.ensemble import StoredEnsemble
from widelimit.scale.events import Events
from widelimit.scale.executors import describe, make_executor
from widelimit.scale.fill import FillReport, fill, scan
from widelimit.scale.inputs import check_samples_first
from widelimit.scale.maker import Known, network_of, tiler_of
from widelimit.scale.operator import Operator
from widelimit.scale.plan import StorePlan, choose_backend
from widelimit.scale.rate import choose_tile, seconds_per_pair
from widelimit.scale.schema import (
    Content,
    create,
    creation_lock,
    expect_content,
    hash_array,
    is_local,
    read_content,
    read_inputs,
)
from widelimit.scale.stored_tiles import StoredTiles
from widelimit.scale.task import tiles_of
from widelimit.scale.tile_grid import TileGrid
from widelimit.scale.verify import VerifyReport, verify
from widelimit.typing import Bytes, Get

# Samples among which pairs are timed.
_TIMED = 512

Samples = Real[Array | np.ndarray, "n ..."]


def gram(
    net: Layer,
    x1: Samples,
    x2: Samples | None = None,
    get: Get = "ntk",
    *,
    store: str | os.PathLike[str],
    engine: object = "inline",
    tile: int | None = None,
    memory: Bytes = "1GiB",
    known: Known = (),
) -> Store:
    """Returns the store of the kernel matrix of a network; `Store.fill` computes its tiles.

    The store is created, or opened if it exists and holds the same kernel. It is the only state: a
    fill that was killed goes on where it was, on this machine or another, with the same bits.

    Args:
      net: the network.
      x1: inputs [n1, ...], which are copied into the store; may be a `numpy.memmap`.
      x2: inputs [n2, ...], or None for x1, whose matrix is symmetric: of it one half is stored.
      get: "nngp", "ntk", or a tuple of both, which are computed in one pass.
      store: path of a folder, NAME.zarr, or a URL of fsspec ("s3://bucket/name.zarr").
      engine: who computes tiles: "inline" (this process), "dask" (a process for every processor of
        this machine), "dask:tcp://host:port", "dask-scheduler-file:path", or a
        `distributed.Client`.
      tile: rows and columns of a tile. None takes that of the store if it exists, or else about a
        second of work.
      memory: bytes that computing a tile may take, or text like "1GiB".
      known: layers and functions of your own in the network, importable by workers.

    Raises:
      ValueError: a store that holds a different kernel, with what differs; inputs or networks that
        `wl.gram` refuses; kernels that are not one number for each pair of samples.
      TypeError: a network that cannot be described, see `widelimit.to_json`.
      ImportError: without the extra `scale`.

    Example:
      >>> import tempfile
      >>> import numpy as np
      >>> import widelimit as wl
      >>> net = wl.models.fcn(2)
      >>> x = np.random.default_rng(0).standard_normal((100, 8))
      >>> folder = tempfile.TemporaryDirectory()
      >>> store = wl.scale.gram(net, x, store=f"{folder.name}/kernel.zarr", tile=32)
      >>> store.fill(progress=False).done
      10
      >>> store.operator().matmat(np.ones((100, 1))).shape
      (100, 1)
      >>> folder.cleanup()
    """
    location = _location(store)
    _check_tile(tile)
    x2 = None if x2 is x1 else x2
    names = parse_get(get, KERNELS, default=())
    description = to_json(net)
    arrays = [_as_array(x) for x in (x1, x2) if x is not None]
    with jax.ensure_compile_time_eval():
        full = tiler_of(net, x1, x2, names)
        full.check()
        check_samples_first(net.kernel_fn, x1)
        _check_scalars(full)
    with creation_lock(location):
        existing = read_content(location)
        if tile is None and existing is not None:
            tile = existing.tile
        content = Content(
            network=description,
            get=names,
            counts=full.counts,
            symmetric=x2 is None,
            inputs=tuple(map(hash_array, arrays)),
            tile=tile or _choose(net, arrays, names, memory),
            dtype=working_dtype().name,
            engine=choose_engine(net, arrays[0].shape).name,
        )
        if existing is None:
            create(location, content, arrays)
        else:
            existing.check_same(content, location)
    return Store(location, content, engine, known)


def open_store(
    store: str | os.PathLike[str], engine: object = "inline", known: Known = ()
) -> Store:
    """Returns a store that exists; its network is built from its description.

    Args:
      store: path or URL.
      engine: as for `gram`.
      known: layers and functions of your own in the network.

    Raises:
      ValueError: no store, or one that this version does not read.
    """
    location = _location(store)
    content = read_content(location)
    if content is None:
        raise ValueError(
            f"expected a store at {location}, got none: wl.scale.gram(net, x, store=...) creates "
            "one"
        )
    return Store(location, content, engine, known)


class Store:
    """A kernel matrix on disk, or two of the same inputs.

    Attributes:
      path: where it is.
      get: names of its kernels.
      dtype: of its kernels.
      count: number of samples of x1.
      shape: of the matrix, [n1, n2].
    """

    def __init__(self, location: str, content: Content, engine: object, known: Known) -> None:
        """Opens it; `wl.scale.gram` and `wl.scale.open_store` call this.

        Args:
          location: path or URL.
          content: what it holds.
          engine: who computes tiles.
          known: layers and functions of users in its network.
        """
        self.path, self.get, self.shape = location, content.get, content.counts
        self.count, self.dtype = content.counts[0], np.dtype(content.dtype)
        self._content, self._engine, self._known = content, engine, known
        self._tiles: dict[str, StoredTiles] | None = None

    def __repr__(self) -> str:
        return f"Store({self.path!r}, get={self.get}, shape={self.shape}, dtype={self.dtype})"

    @property
    def network(self) -> Layer:
        """The network, built from its description."""
        return network_of(self._content, self._known)

    @property
    def x(self) -> np.ndarray:
        """The inputs x1 [n1, ...], read from the store."""
        return np.asarray(read_inputs(self.path, True)[0][:])

    @property
    def grid(self) -> TileGrid:
        """Which tiles the matrix is cut into."""
        return self._content.grid

    @property
    def plan(self) -> StorePlan:
        """What filling it takes: tiles, bytes, time. A few pairs of samples are timed."""
        (complete, _), grid = scan(self.tiles.values()), self.grid
        net, sample = self.network, np.asarray(read_inputs(self.path, True)[0][:_TIMED])
        rate = seconds_per_pair(tiler_of(net, sample[:1], None, self.get), sample)
        left = sum(np.prod(grid.shape(p)) for p in grid.all() if p not in complete)
        executor, workers = describe(self._engine)
        each = sum(part.chunk_bytes for part in self.tiles.values())
        choice = choose_engine(net, (1, *sample.shape[1:]))
        return StorePlan(
            shape=self.shape,
            kernels=self.get,
            tile=grid.size,
            tiles=len(grid),
            done=len(complete),
            bytes=each * len(grid),
            free_bytes=self._free_bytes(),
            seconds=float(left) * rate / workers,
            workers=workers,
            executor=executor,
            engine=(choice.name, choice.reason),
            backend=choose_backend(rate, self.dtype.itemsize),
        )

    def fill(self, progress: bool = True, stop: Callable[[], bool] = lambda: False) -> FillReport:
        """Computes the tiles that are missing and returns what was done.

        Args:
          progress: whether to show a bar (needs tqdm, the extra `progress`).
          stop: asked after each tile; if it returns True, the tiles at hand are finished and the
            rest is left.

        Raises:
          ValueError: kernels that are not finite, with their rows, when all others are written.
          LostError: a tile whose workers die at it again and again, with its name.
          OSError: the disk is full; what is written is kept.
          KeyboardInterrupt: with how far it came.
        """
        expect_content(self.path, self._content.fingerprint)
        for part in self.tiles.values():
            part.sweep()
        return fill(
            location=self.path,
            fingerprint=self._content.fingerprint,
            grid=self.grid,
            chunks=self.tiles.values(),
            known=self._known,
            executor=make_executor(self._engine),
            progress=progress,
            stop=stop,
        )

    def verify(self, progress: bool = True) -> VerifyReport:
        """Returns which tiles are missing or damaged; all of them are read.

        Args:
          progress: whether to show a bar.
        """
        total = sum(int(np.prod(self.grid.shape(p))) for p in self.grid.all())
        with progress_bar(total, progress) as advance:
            report = verify(self.tiles, self.grid, advance)
        Events(self.path).write("verify", missing=report.missing, damaged=report.damaged)
        return report

    def repair(self, progress: bool = True, stop: Callable[[], bool] = lambda: False) -> FillReport:
        """Verifies all tiles, computes again what is damaged or missing, and returns what it did.

        Args:
          progress: whether to show bars.
          stop: asked after each tile that is computed, as for `fill`; what is damaged is removed
            by then, so that a `fill` does the rest.
        """
        damaged = self.verify(progress).damaged
        for place in damaged:
            for part in self.tiles.values():
                part.remove(place)
        report = self.fill(progress, stop)
        return report if report.left else report._replace(recomputed=len(damaged))

    def operator(
        self, get: str | None = None, backend: Backend | None = None, engine: object = "inline"
    ) -> Operator:
        """Returns the kernel as an operator: products with vectors, its diagonal, columns.

        Args:
          get: which kernel; None for the only one.
          backend: "stored" reads tiles from the disk; "recompute" computes them for each product,
            `plan` says which is quicker; "memory" holds the whole matrix; "sharded" holds it on
            all devices of JAX, by rows. None is "stored".
          engine: who reads tiles of "stored": "inline", or a cluster, as for `gram`.

        Raises:
          ValueError: another back end, a kernel of x1 with x2, or tiles that are missing.
        """
        tiles, name, backend = self._of(get), get or self.get[0], backend or "stored"
        check_backend(backend)
        if backend == "recompute":
            return recomputed(self.path, self._content.fingerprint, name, self._known)
        return stored(self.path, self._content.fingerprint, name, tiles, backend, engine)

    def ensemble_class(self) -> type[StoredEnsemble]:
        """Returns the class of `InfiniteEnsemble(store, y)`."""
        return StoredEnsemble

    def export(self, out: str | os.PathLike[str], get: str | None = None) -> np.ndarray:
        """Writes a whole kernel as a .npy file and returns it as a read-only `numpy.memmap`.

        Args:
          out: path of a new file.
          get: which kernel; None for the only one.

        Raises:
          ValueError: tiles that are missing or damaged.
          FileExistsError: `out` exists.
          OSError: no space for it.
        """
        check_path(Path(out))
        chunks, disk = self._of(get), Disk({"": Path(out)})
        try:
            target = disk.allocate("", self.shape, self.dtype)
            for i, j in self.grid.all():
                tile = chunks.mapped((i, j))
                rows, columns = self.grid.span(0, i), self.grid.span(1, j)
                target[rows, columns] = tile
                if self._content.symmetric:
                    target[columns, rows] = tile.T
            del target
            return disk.finish()[""]
        except BaseException:
            disk.abandon()
            raise

    @property
    def tiles(self) -> dict[str, StoredTiles]:
        """The tiles of every kernel, by name."""
        if self._tiles is None:
            self._tiles = tiles_of(self.path, self._content, "r+")
        return self._tiles

    def _of(self, get: str | None) -> StoredTiles:
        if get is None and len(self.get) == 1:
            return self.tiles[self.get[0]]
        if get is None or get not in self.get:
            raise ValueError(f"expected get to be one of {self.get}, got {shown(get)}")
        return self.tiles[get]

    def _free_bytes(self) -> int | None:
        return shutil.disk_usage(self.path).free if is_local(self.path) else None


def _as_array(x: object) -> np.ndarray:
    """Returns inputs as an array of NumPy.

    Raises:
      TypeError: several arrays, or something else.
    """
    if not isinstance(x, np.ndarray | jax.Array):
        raise TypeError(f"expected one array of inputs for a store, got {shown(x)}")
    return np.asarray(x)


def _check_scalars(tiler: NetworkTiler) -> None:
    """Raises ValueError unless kernels are matrices."""
    shapes = {leaf.shape for leaf in jax.tree.leaves(tiler.outline())}
    if shapes != {(1, 1)}:
        raise ValueError(
            f"expected kernels of one number for each pair of samples, got {sorted(shapes)} for "
            "one pair: a Flatten or a GlobalAvgPool at the end of the network gives such"
        )


def _location(store: str | os.PathLike[str]) -> str:
    location = os.fspath(store)
    if is_local(location) and not location.endswith(".zarr"):
        raise ValueError(f"expected a store that is called NAME.zarr, got {location}")
    return location


def _check_tile(tile: object) -> None:
    """Raises ValueError unless it is None or a number of samples."""
    if tile is not None and (isinstance(tile, bool) or not isinstance(tile, int) or tile < 1):
        raise ValueError(f"expected a tile of at least 1 sample, got {shown(tile)}")


def _choose(net: Layer, arrays: list[np.ndarray], names: tuple[str, ...], memory: Bytes) -> int:
    tiler, sample = tiler_of(net, arrays[0][:1], None, names), arrays[0][:_TIMED]
    return choose_tile(tiler, sample, max(map(len, arrays)), parse_memory(memory))
