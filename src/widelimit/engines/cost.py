"""The cost of a kernel, counted from the sites of a network: entries and peak memory."""

from __future__ import annotations

import dataclasses
import itertools

from widelimit.covariance.signal import Signal
from widelimit.layers.base import Layer, Site, inner_layers
from widelimit.typing import Needs, Signals


@dataclasses.dataclass(frozen=True)
class Workload:
    """The size of a call.

    Attributes:
      samples: number of samples of x1.
      arrays: covariances stored per entry: NNGP, NTK if requested, gap without spatial axes.
      itemsize: bytes of one number.
      others: number of samples of x2; None for x1 with itself.
    """

    samples: int
    arrays: int
    itemsize: int
    others: int | None = None

    @property
    def pairs(self) -> int:
        """Number of pairs of samples."""
        return self.samples * self.columns

    @property
    def columns(self) -> int:
        """Number of samples of the second input."""
        return self.samples if self.others is None else self.others

    @property
    def images(self) -> int:
        """Number of samples whose covariances with themselves are stored."""
        return self.samples + (self.others or 0)


def kept_arrays(fields: tuple[str, ...], signal: Signals) -> int:
    """Returns how many covariances are stored per entry if these fields are requested."""
    while not isinstance(signal, Signal):
        signal = signal[0]
    return 1 + ("ntk" in fields) + (not signal.spatial)


def entries(need: Needs, signal: Signals) -> int:
    """Returns how many numbers are stored for one covariance of one pair of samples."""
    if isinstance(signal, Signal):
        return need.cross.count * signal.positions
    return sum(entries(n, s) for n, s in zip(need, signal, strict=True))


def all_entries(signal: Signals) -> int:
    """Returns how many numbers one covariance of all pairs of positions has."""
    if isinstance(signal, Signal):
        return signal.positions**2
    return sum(map(all_entries, signal))


def peak_bytes(net: Layer, site: Site, load: Workload) -> int:
    """Returns an estimate of the peak memory of covariances.

    It counts the inputs of all networks that are being walked, and the input, the output and the
    temporaries of the current layer. For measurements see docs/offsets.md.
    """
    return _MemoryWalk(load).run(net, site)


def _product_bytes(need: Needs, signal: Signals, load: Workload) -> int:
    """Returns the bytes of the product of the inputs beside its result, as XLA reports them."""
    if not isinstance(signal, Signal):
        return sum(_product_bytes(n, s, load) for n, s in zip(need, signal, strict=True))
    numbers = need.cross.count * signal.positions
    wide1 = 8 * load.samples * signal.positions * signal.channels
    wide2 = (8 + 2 * load.itemsize) * load.columns * numbers * signal.channels
    return wide1 + wide2 + 12 * load.pairs * numbers


@dataclasses.dataclass
class _MemoryWalk:
    """A walk over a network that tracks which covariances are alive."""

    load: Workload

    def __post_init__(self) -> None:
        self.sizes: dict[int, int] = {}
        self.names = itertools.count()
        self.peak = 0

    def run(self, net: Layer, site: Site) -> int:
        # The input holds the gap besides the NNGP, of the same size as an NTK.
        start = self._new(site.need_in, site.signal_in)
        self._layer(net, site, start, frozenset(start))
        held = sum(self.sizes[name] for name in start)
        product = held + _product_bytes(site.need_in, site.signal_in, self.load)
        return max(self.peak + self._whole(site.signal_in), product)

    def _whole(self, signal: Signals) -> int:
        """Returns the further bytes of a network without spatial axes, which is compiled whole."""
        while not isinstance(signal, Signal):
            signal = signal[0]
        return 0 if signal.spatial else 6 * 8 * self.load.pairs

    def _new(self, need: Needs, signal: Signals) -> tuple[int, ...]:
        """Returns the name of new covariances, or the names of several branches."""
        if not isinstance(signal, Signal):
            parts = zip(need, signal, strict=True)
            return tuple(itertools.chain.from_iterable(self._new(n, s) for n, s in parts))
        name = next(self.names)
        cross = self.load.arrays * self.load.pairs * need.cross.count
        own = self.load.images * need.own.count
        self.sizes[name] = (cross + own) * signal.positions * self.load.itemsize
        return (name,)

    def _layer(
        self, layer: Layer, site: Site, names: tuple[int, ...], held: frozenset[int]
    ) -> tuple[int, ...]:
        """Returns the names of the output of a layer, from those of its input."""
        held = held | frozenset(names)
        results: list[tuple[int, ...]] = []
        layers = inner_layers(layer)
        for child, inside in zip(site.inside, site.children, strict=True):
            read = names if child.reads is None else results[child.reads]
            if child.branch is not None:
                read = _split(site.signal_in, read)[child.branch]
                held = held | frozenset(itertools.chain.from_iterable(results))
            results.append(self._layer(layers[child.place], inside, read, held))
        joined = layer.join(results)
        if joined is None:
            return self._leaf(layer, site, names, held.union(*results))
        branches = not isinstance(joined[0], int)
        return tuple(itertools.chain.from_iterable(joined)) if branches else joined

    def _leaf(
        self, layer: Layer, site: Site, names: tuple[int, ...], held: frozenset[int]
    ) -> tuple[int, ...]:
        if layer.structural:  # branches share their input
            several = not isinstance(site.signal_out, Signal)
            return names * len(site.signal_out) if several else names
        out = self._new(site.need_out, site.signal_out)
        alive = sum(self.sizes[name] for name in held | frozenset(out))
        self.peak = max(self.peak, alive + self._temporaries(layer, site, names))
        return out

    def _temporaries(self, layer: Layer, site: Site, names: tuple[int, ...]) -> int:
        """Returns the bytes that XLA allocates beside input and output, as it reports them."""
        inputs, features = layer.temporaries(site)
        shifted = features * self.load.images * entries(site.need_in, site.signal_in)
        size = sum(self.sizes[name] for name in names)
        return int(inputs * size) + shifted * self.load.itemsize


def _split(signal: Signals, names: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Returns the names of each branch."""
    parts, start = [], 0
    for branch in signal:
        count = _branches(branch)
        parts.append(names[start : start + count])
        start += count
    return parts


def _branches(signal: Signals) -> int:
    return 1 if isinstance(signal, Signal) else sum(map(_branches, signal))
