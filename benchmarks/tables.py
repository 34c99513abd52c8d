"""What was measured, as markdown."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks import roofline
from benchmarks.sides import Case, Measured

TOLERANCE = {"float32": 1e-5, "float64": 1e-9}
MISSING = "-"


@dataclasses.dataclass(frozen=True)
class Result:
    """One case: what each side measured; `theirs` is None when only one side runs."""

    case: Case
    ours: Measured
    theirs: Measured | None = None

    @property
    def ratio(self) -> float | None:
        """How many times faster ours is; None without two medians."""
        if self.theirs is None or self.ours.median is None or self.theirs.median is None:
            return None
        return self.theirs.median / self.ours.median


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """Returns a table; the first columns, `words` of them, hold words and stand to the left."""
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"expected {len(header)} cells, got {row}")
    rule = ["---"] * words + ["---:"] * (len(header) - words)
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *rows))


def seconds(value: float | None) -> str:
    """Returns a time with three digits and a unit."""
    if value is None:
        return MISSING
    if value >= 1000 or value == 0:
        return f"{value:.0f} s"
    for factor, unit in ((1, "s"), (1e3, "ms"), (1e6, "µs")):
        if value * factor >= 1:
            return f"{value * factor:.3g} {unit}"
    return f"{value * 1e9:.3g} ns"


def spread(measured: Measured) -> str:
    """Returns the median of the warm calls, the fastest and slowest, and how many; or a failure."""
    if measured.failure is not None:
        return f"failed: {measured.failure}".replace("|", "/")
    if not measured.times:
        return MISSING
    text = seconds(measured.median)
    if len(measured.times) == 1:
        return f"{text} (1)"
    low, high = seconds(min(measured.times)), seconds(max(measured.times))
    return f"{text} ({low} to {high}, {len(measured.times)})"


def times_faster(ratio: float | None) -> str:
    """Returns a ratio with three digits at most."""
    if ratio is None:
        return MISSING
    return f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.3g}"


def megabytes(value: float | None) -> str:
    """Returns bytes in MB."""
    return MISSING if value is None else f"{value / 1e6:,.0f}"


def fastest_times(results: Sequence[Result]) -> dict[tuple[str, str], float]:
    """Returns the least median of the other side over dtypes, by workload and kernel."""
    least: dict[tuple[str, str], float] = {}
    for result in results:
        median = None if result.theirs is None else result.theirs.median
        if median is not None:
            key = result.case.workload.name, result.case.get
            least[key] = min(median, least.get(key, median))
    return least


def time_table(results: Sequence[Result], names: tuple[str, str]) -> str:
    """Returns medians, spreads, ratios, compilation and memory, a row per case.

    The second ratio is to the other side in whichever dtype it is faster: in float32 its kernels
    of convolutional networks take up to four times as long as in float64.
    """
    two = any(result.theirs is not None for result in results)
    sides = names if two else names[:1]
    header = ["workload", "x1 x x2", "kernel", "dtype", "engine", *sides]
    header += ["ratio", "ratio, its faster dtype"] * two
    fastest = fastest_times(results)
    header += [f"first call: {name}" for name in sides] + [f"MB: {name}" for name in sides]
    rows = []
    for result in results:
        case = result.case
        both = [m for m in (result.ours, result.theirs) if m is not None]
        engine = result.ours.about.get("engine", MISSING)
        row = [case.workload.title, case.workload.size, case.get.upper(), case.dtype, engine]
        row += [spread(m) for m in both]
        if two:
            least, ours = fastest.get((case.workload.name, case.get)), result.ours.median
            lower = None if least is None or ours is None else least / ours
            row += [times_faster(result.ratio), times_faster(lower)]
        row += [seconds(m.compilation) for m in both] + [megabytes(m.memory) for m in both]
        rows.append(row)
    return markdown(header, rows, words=5)


def difference(a: np.ndarray | None, b: np.ndarray | None) -> float | None:
    """Returns the largest difference of two kernels, relative to b, entry by entry.

    NaN where a has another shape, or either is not finite: nothing agrees with that.
    """
    if a is None or b is None:
        return None
    if a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("nan")
    wide = b.astype(np.float64)
    scale = np.maximum(np.abs(wide), np.finfo(np.float32).tiny)
    return float(np.max(np.abs(a - wide) / scale))


def off_diagonal(values: np.ndarray | None) -> np.ndarray | None:
    """Returns the entries of a square matrix that are off its diagonal."""
    return None if values is None else values[~np.eye(len(values), dtype=bool)]


def agreement(results: Sequence[Result]) -> list[tuple[str, str, str, dict[str, float | None]]]:
    """Returns title, size, kernel and differences per workload and kernel.

    'float32' and 'float64' are ours against theirs in that dtype, 'ours' and 'theirs' the float32
    results against their float64 one. Where x2 is not given, the diagonal is a row of its own:
    there the inputs are equal, which is where float32 loses most.
    """
    sides: dict[tuple[str, str], dict[str, Result]] = {}
    for result in results:
        key = result.case.workload.name, result.case.get
        sides.setdefault(key, {})[result.case.dtype] = result
    rows = []
    for (_, get), found in sides.items():
        workload = next(iter(found.values())).case.workload
        views: list[tuple[str, Callable[[Any], Any]]] = [("", lambda values: values)]
        if workload.n2 is None:
            views = [
                (", off the diagonal", off_diagonal),
                (", diagonal", lambda values: None if values is None else np.diag(values)),
            ]
        for suffix, view in views:

            def of(dtype: str, side: str, found: Any = found, view: Any = view) -> Any:
                result = found.get(dtype)
                measured = None if result is None else getattr(result, side)
                return None if measured is None else view(measured.values)

            differences = {d: difference(of(d, "ours"), of(d, "theirs")) for d in TOLERANCE}
            for side in ("ours", "theirs"):
                differences[side] = difference(of("float32", side), of("float64", "theirs"))
            rows.append((workload.title, workload.size + suffix, get.upper(), differences))
    return rows


def agreement_table(results: Sequence[Result], names: tuple[str, str]) -> str:
    """Returns how far the results of the two sides are apart; bold where that is too far."""

    def cell(value: float | None, tolerance: float | None) -> str:
        if value is None:
            return MISSING
        bad = tolerance is not None and not value <= tolerance
        return f"**{value:.1e}**" if bad else f"{value:.1e}"

    header = ["workload", "x1 x x2", "kernel", "float64: apart", "float32: apart"]
    header += [f"float32 error: {name}" for name in names]
    rows = [
        [
            title,
            size,
            get,
            *(cell(found[d], TOLERANCE[d]) for d in ("float64", "float32")),
            *(cell(found[side], None) for side in ("ours", "theirs")),
        ]
        for title, size, get, found in agreement(results)
    ]
    return markdown(header, rows, words=3)


def roofline_table(
    results: Sequence[Result], counts: Sequence[roofline.Count], peaks: dict[str, float]
) -> str:
    """Returns operations and bytes per entry, the least time, and the fraction reached.

    Args:
      results: the cases.
      counts: from `roofline.count`, one per case.
      peaks: from `peaks`: operations per second by dtype, and 'bandwidth' in bytes per second.
    """
    header = ["workload", "x1 x x2", "kernel", "dtype", "entries through nonlinearities"]
    header += ["operations", "bytes, least", "bytes, streamed", "streaming time", "least time"]
    header += ["measured", "fraction of peak"]
    rows = []
    for result, counted in zip(results, counts, strict=True):
        case, median = result.case, result.ours.median
        pairs = case.workload.pairs
        bound = roofline.bound_seconds(counted, pairs, peaks[case.dtype], peaks["bandwidth"])
        row = [case.workload.title, case.workload.size, case.get.upper(), case.dtype]
        row += [quantity(counted.nonlinear), quantity(counted.operations)]
        row += [quantity(counted.least / pairs), quantity(counted.streamed)]
        row.append(seconds(counted.streamed / peaks["bandwidth"]))
        row += [seconds(bound / pairs), MISSING if median is None else seconds(median / pairs)]
        row.append(MISSING if median is None else f"{bound / median:.2%}")
        rows.append(row)
    return markdown(header, rows, words=4)


def quantity(value: float) -> str:
    """Returns a number with a decimal prefix: 1.2 G."""
    for prefix in ("", "k", "M", "G", "T"):
        if value < 1000 or prefix == "T":
            break
        value /= 1000
    return f"{value:.3g} {prefix}".rstrip()
