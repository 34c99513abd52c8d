"""The command `widelimit gram`, for stores in batch systems."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, TypeAlias

import numpy as np

from widelimit.gram.sizes import human_bytes
from widelimit.layers.description import from_json
from widelimit.scale.fill import FillReport, scan
from widelimit.scale.store import Store, gram, open_store

# Exit codes. 75 is EX_TEMPFAIL of sysexits.h: batch systems start the job again.
OK, FAILED, DAMAGED, STOPPED = 0, 1, 3, 75


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code.

    Args:
      arguments: of the command line; None for those of this process.
    """
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except KeyboardInterrupt as error:
        _say(f"interrupted: {error}")
        return STOPPED
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        _say(f"error: {error}")
        return FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="widelimit", description="Infinitely wide networks.")
    tasks = parser.add_subparsers(required=True, metavar="gram")
    kinds = tasks.add_parser("gram", help="kernel matrices on disk").add_subparsers(
        required=True, metavar="COMMAND"
    )
    for name, (run, text) in _COMMANDS.items():
        command = kinds.add_parser(name, help=text, description=text)
        command.add_argument("store", help="NAME.zarr, or a URL of fsspec")
        command.set_defaults(run=run)
        for flag, settings in _OPTIONS.get(name, {}).items():
            command.add_argument(flag, **settings)
    return parser


def _create(options: argparse.Namespace) -> int:
    text = Path(options.network).read_text(encoding="utf-8")
    x = np.load(options.inputs, mmap_mode="r")
    names = tuple(options.get.split(","))
    store = gram(from_json(text), x, get=names, store=options.store, tile=options.tile)
    print(store.plan)  # noqa: T201
    return OK


def _plan(options: argparse.Namespace) -> int:
    print(_opened(options).plan)  # noqa: T201
    return OK


def _fill(options: argparse.Namespace) -> int:
    return _filled(options, lambda store, stop: store.fill(progress=False, stop=stop))


def _status(options: argparse.Namespace) -> int:
    store = _opened(options)
    done, total = len(scan(store.tiles.values())[0]), len(store.grid)
    left = (total - done) * sum(part.chunk_bytes for part in store.tiles.values())
    print(f"{done} of {total} tiles, {human_bytes(left)} to write")  # noqa: T201
    return OK


def _verify(options: argparse.Namespace) -> int:
    report = _opened(options).verify(progress=False)
    print(  # noqa: T201
        f"{report.intact} tiles intact, {len(report.missing)} missing, {len(report.damaged)} "
        f"damaged: {[*report.missing, *report.damaged][:10]}"
    )
    return OK if report else DAMAGED


def _repair(options: argparse.Namespace) -> int:
    return _filled(options, lambda store, stop: store.repair(progress=False, stop=stop))


def _export(options: argparse.Namespace) -> int:
    _opened(options).export(options.out, options.kernel)
    return OK


def _filled(
    options: argparse.Namespace, fill: Callable[[Store, Callable[[], bool]], FillReport]
) -> int:
    """Fills a store; SIGTERM stops it after the tile at hand."""
    told: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        del frame
        told.append(number)

    before = signal.signal(signal.SIGTERM, remember)
    try:
        report = fill(_opened(options), lambda: bool(told))
    finally:
        signal.signal(signal.SIGTERM, before)
    _say(
        f"{report.done} tiles done ({report.recomputed} of them again), {report.skipped} skipped, "
        f"{report.left} left, {report.seconds:.1f} s"
    )
    return STOPPED if report.left else OK


def _opened(options: argparse.Namespace) -> Store:
    return open_store(options.store, getattr(options, "engine", "inline"))


def _say(text: str) -> None:
    print(f"widelimit: {text}", file=sys.stderr)  # noqa: T201


_Flags: TypeAlias = dict[str, dict[str, Any]]

_ENGINE: _Flags = {
    "--engine": {
        "default": "inline",
        "help": "inline, dask, dask:tcp://host:port, dask-scheduler-file:path",
    }
}

_COMMANDS = {
    "create": (_create, "create a store from a description of a network and a .npy file"),
    "plan": (_plan, "print what filling a store takes"),
    "fill": (_fill, "compute the tiles that are missing; exit 75 if told to stop"),
    "status": (_status, "print how far a store is"),
    "verify": (_verify, "read all tiles; exit 3 if some are missing or damaged"),
    "repair": (_repair, "compute damaged and missing tiles again"),
    "export": (_export, "write a kernel as a .npy file"),
}

_OPTIONS: dict[str, _Flags] = {
    "create": {
        "--network": {"required": True, "help": "file that widelimit.to_json wrote"},
        "--inputs": {"required": True, "help": ".npy file with the samples"},
        "--get": {"default": "ntk", "help": "ntk, nngp, or nngp,ntk"},
        "--tile": {"type": int, "help": "rows of a tile"},
    },
    "plan": _ENGINE,
    "fill": _ENGINE,
    "repair": _ENGINE,
    "export": {
        "out": {"help": "path of a new .npy file"},
        "--kernel": {"help": "which kernel, if there are two"},
    },
}


if __name__ == "__main__":
    sys.exit(main())
