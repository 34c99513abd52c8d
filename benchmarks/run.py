"""Times of widelimit beside another library, in turn, and the table of docs/benchmarks.md.

    python -m benchmarks.run [--quick] [--only NAME] [--rounds N] ...

Both sides of a case live in processes of their own, one per case: the first call of each, then in
every round some warm calls of one and of the other. A side that crashes, or gives no answer, is a
row that says so.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import itertools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from benchmarks import machine, roofline, tables
from benchmarks.environments import OTHERS, OURS, ROOT, Environment
from benchmarks.sides import Case, Side
from benchmarks.tables import Result
from benchmarks.workloads import DTYPES, GETS, WORKLOADS

PAGE = ROOT / "docs" / "benchmarks.md"
RECORDS = ROOT / "benchmarks" / ".results"

REPETITIONS, SECONDS = 5, 2.0  # of a side in a round: see worker
SLOW = 5.0  # a call that takes longer is repeated in later rounds in the main case only
MAIN = ("ntk", "float32")
LIMIT = 900.0  # seconds that a side has for an answer


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Returns the options."""
    names = [workload.name for workload in WORKLOADS]
    parser = argparse.ArgumentParser(prog="benchmarks.run", description=__doc__)
    add = parser.add_argument
    add("--only", action="append", choices=names, help="a workload (may be repeated)")
    add("--get", choices=GETS, help="only this kernel")
    add("--dtype", choices=DTYPES, help="only this dtype")
    add("--rounds", type=int, default=3, help="how often the sides take turns (default 3)")
    add("--quick", action="store_true", help="small sizes, NTK in float32, one round")
    add("--against", choices=sorted(OTHERS), default="nt-0.6.5", help="the other environment")
    add(
        "--ours-only",
        action="store_true",
        help="leave the other side out, and JAX its choice of device; otherwise all is on the CPU",
    )
    add("--output", type=Path, help=f"the page (default {PAGE.relative_to(ROOT)} if all runs)")
    options = parser.parse_args(given)
    if options.rounds < 1:
        parser.error(f"expected at least 1 round, got {options.rounds}")
    if options.quick:
        options.rounds = 1
        options.get, options.dtype = options.get or MAIN[0], options.dtype or MAIN[1]
    partial = options.quick or options.ours_only or options.only or options.get or options.dtype
    if options.output is None and not partial:
        options.output = PAGE
    return options


def cases(options: argparse.Namespace) -> list[Case]:
    """Returns what runs, in the order of the table."""
    found = [w for w in WORKLOADS if not options.only or w.name in options.only]
    if options.quick:
        found = [small for w in found if (small := w.smaller()) is not None]
    gets = (options.get,) if options.get else GETS[::-1]
    dtypes = (options.dtype,) if options.dtype else DTYPES
    every = itertools.product(found, gets, dtypes)
    return [Case(work, get, dtype) for work, get, dtype in every if dtype in work.dtypes]


def run_case(
    case: Case, sides: Sequence[Environment], rounds: int, platform: str | None = "cpu"
) -> Result:
    """Returns what each side measured, the sides taking turns.

    Args:
      case: what to compute.
      sides: ours, and the other if there is one.
      rounds: how often they take turns.
      platform: what JAX runs on; None leaves that to JAX.
    """
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(Side(s, case, LIMIT, platform)) for s in sides]
        for side in running:
            side.first()
        for index in range(rounds):
            for side in running:
                slow = (side.measured.median or 0.0) > SLOW
                if index == 0 or not slow or (case.get, case.dtype) == MAIN:
                    side.warm(REPETITIONS, SECONDS)
        for side in running:
            side.finish()
    return Result(case, *(side.measured for side in running))


def platform_of(options: argparse.Namespace) -> str | None:
    """Returns what JAX runs on; None leaves that to JAX."""
    return None if options.ours_only else "cpu"


def run_all(todo: Sequence[Case], options: argparse.Namespace, file: TextIO) -> Iterator[Result]:
    """Yields the results; writes each to a file of JSON lines, and says so."""
    sides = [OURS] if options.ours_only else [OURS, OTHERS[options.against]]
    for i, case in enumerate(todo):
        start = time.perf_counter()
        result = run_case(case, sides, options.rounds, platform_of(options))
        took = time.perf_counter() - start
        record = {"case": dataclasses.asdict(case), "ours": result.ours.record()}
        if result.theirs is not None:
            record["theirs"] = result.theirs.record()
        print(json.dumps(record), file=file, flush=True)
        both = [m for m in (result.ours, result.theirs) if m is not None]
        said = " | ".join(map(tables.spread, both))
        ratio = tables.times_faster(result.ratio)
        line = f"[{i + 1}/{len(todo)}] {case.name}: {said} | ratio {ratio} | {took:.0f} s"
        print(line, file=sys.stderr, flush=True)
        yield result


def counts(todo: Sequence[Case]) -> list[roofline.Count]:
    """Returns the operations and bytes of every case."""
    import widelimit as wl
    from benchmarks.networks_widelimit import NETWORKS

    found = []
    for case in todo:
        work = case.workload
        rows = wl.plan(NETWORKS[work.network](), (1, *work.shape), case.get).rows
        itemsize = 8 if case.dtype == "float64" else 4
        found.append(roofline.count(rows, case.get, itemsize, work))
    return found


def versions(results: Sequence[Result]) -> str:
    """Returns the versions on both sides, and what they ran on."""
    told = []
    for side in ("ours", "theirs"):
        measured = (getattr(result, side) for result in results)
        about = next((m.about for m in measured if m is not None and m.about), None)
        if about is not None:
            packages = ", ".join(f"{k} {v}" for k, v in about["versions"].items())
            told.append(f"{packages} on {about['device']}")
    return "; ".join(told)


def page(
    results: Sequence[Result], names: tuple[str, str], facts: Sequence[str], peaks: Any
) -> str:
    """Returns the whole page.

    Args:
      results: the cases.
      names: what the two sides are called.
      facts: what to say about machine, versions, date and command, one a line.
      peaks: of the machine; None leaves the roofline out.
    """
    two = any(result.theirs is not None for result in results)
    parts = ["# Benchmarks", "Written by `make bench`; do not edit.", "\n".join(facts), "## Times"]
    parts.append(
        "Warm calls, from arrays on the host to an array on the host: median (fastest to slowest, "
        "how many). First call: its time beyond a warm one, mostly compilation; widelimit may "
        "find compiled code on disk. The second ratio is to the other side in its faster dtype. "
        "MB: growth of the peak memory since the imports, compilation included."
    )
    parts.append(tables.time_table(results, names))
    if two:
        slower = [r.case.name for r in results if r.ratio is not None and r.ratio < 1]
        parts.append(f"Rows in which {names[0]} is slower: {'; '.join(slower) or 'none'}.")
        parts.append("## Agreement")
        parts.append(
            "Largest relative difference of any entry: the two sides in float64 and in float32, "
            f"and the float32 result of each from {names[1]} in float64, on the same inputs. Bold: "
            "further apart than 1e-9 in float64 or 1e-5 in float32. On the diagonal of x2=None the "
            "two inputs are equal: a formula that subtracts nearly equal numbers under a square "
            "root keeps half the digits there."
        )
        parts.append(tables.agreement_table(results, names))
    if peaks is not None:
        parts.append("## Roofline")
        parts.append(
            f"Measured peak on {peaks['device']}, fused multiply-adds counted as two: "
            f"{peaks['float32'] / 1e9:.0f} GFlop/s in float32, {peaks['float64'] / 1e9:.0f} in "
            f"float64; memory {peaks['bandwidth'] / 1e9:.1f} GB/s. Per pair of samples (x2=None: "
            "each pair once), by the formulas in `benchmarks/roofline.py`; 'bytes, least' if only "
            "inputs and results leave the cache, 'streamed' if every covariance of every layer "
            "does. The least time is the longer of operations at peak and least bytes at full "
            "bandwidth; the streaming time is that of the streamed bytes."
        )
        cases = [result.case for result in results]
        parts.append(tables.roofline_table(results, counts(cases), peaks))
    return "\n\n".join(parts) + "\n"


def write(path: Path, text: str) -> None:
    """Writes a file that is whole whenever it stands under its name."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def main() -> int:
    """Runs what was asked for; returns 130 after Ctrl-C, with the table of what there is."""
    options = arguments()
    other = OTHERS[options.against]
    if not options.ours_only:
        other.build()
    todo = cases(options)
    if not todo:
        print("expected at least one case: this workload does not run in this dtype")
        return 2
    load = machine.load()
    before = machine.peaks(platform_of(options))
    start = time.perf_counter()
    RECORDS.mkdir(exist_ok=True)
    now = datetime.datetime.now()
    records = RECORDS / f"{now:%Y%m%d-%H%M%S}.jsonl.partial"
    results: list[Result] = []
    whole = True
    with records.open("w", encoding="utf-8") as file:
        try:
            for result in run_all(todo, options, file):
                results.append(result)
        except KeyboardInterrupt:
            whole = False
    if whole:
        records.rename(records.with_suffix(""))
    else:
        print(f"interrupted after {len(results)} of {len(todo)} cases", file=sys.stderr)
    if not results:
        return 130
    again = whole and not options.quick
    after = machine.peaks(platform_of(options)) if again else None
    busy = "unknown" if load is None else f"{load:.1f}"
    facts = [
        f"- Machine: {machine.describe()}. Load average before the run: {busy}.",
        f"- Versions: {versions(results)}.",
        f"- Date: {now:%Y-%m-%d}. The run took {(time.perf_counter() - start) / 60:.0f} minutes, "
        f"{options.rounds} rounds; a call of more than {SLOW:.0f} s is repeated in later rounds "
        f"only for the NTK in float32.",
        f"- Command: `{' '.join(['python -m benchmarks.run', *sys.argv[1:]])}`.",
    ]
    text = page(results, (OURS.title, other.title), facts, machine.best(before, after))
    if options.output is None or not whole:
        print(text)
    else:
        write(options.output, text)
        print(f"wrote {options.output}", file=sys.stderr)
    return 0 if whole else 130


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted")
