"""Times and memory of empirical kernels of finite networks beside two other libraries.

    python -m benchmarks.finite [--only NAME] [--rounds N] [--output FILE]

Every way of every library runs in a process of its own; they take turns. What cannot be installed
or fails is a row that says so.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks import machine, tables
from benchmarks.environments import FINITE, Environment
from benchmarks.finite_networks import BATCH, INPUTS
from benchmarks.sides import Case, Measured, Side
from benchmarks.workloads import Workload

BOTH = ("JACOBIAN_CONTRACTION", "NTK_VECTOR_PRODUCTS")
WAYS = {
    "widelimit": (*BOTH, "STRUCTURED_DERIVATIVES", "AUTO"),
    "nt-finite": (*BOTH, "STRUCTURED_DERIVATIVES"),
    "torch": (*BOTH, "ONE_JACOBIAN"),
}
# Columns of the first table: what stands there, whose ways, and which are left out.
OTHERS = (
    ("neural-tangents", "nt-finite", ()),
    ("PyTorch's recipe", "torch", ("ONE_JACOBIAN",)),
    ("the same, one Jacobian", "torch", BOTH),
)
TITLES = {
    "mlp": "3-layer MLP, width 1024",
    "resnet": "ResNet, 4 blocks, 32 x 32",
    "transformer": "transformer, 2 blocks, 32 tokens",
}
REPETITIONS, SECONDS, SLOW, LIMIT = 5, 3.0, 5.0, 900.0

Results = dict[tuple[str, str], Measured]


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Returns the options."""
    parser = argparse.ArgumentParser(prog="benchmarks.finite", description=__doc__)
    parser.add_argument("--only", action="append", choices=sorted(TITLES), help="one network")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side (default 3)")
    parser.add_argument("--output", type=Path, help="where the page goes, beside the screen")
    return parser.parse_args(given)


def available() -> list[Environment]:
    """Returns the environments that stand, or can be built; says which cannot."""
    found = []
    for environment in FINITE.values():
        try:
            environment.build()
        except subprocess.CalledProcessError as error:
            print(f"{environment.title}: left out, {error}", file=sys.stderr)
            continue
        found.append(environment)
    return found


def run_network(network: str, environments: Sequence[Environment], rounds: int) -> Results:
    """Returns what every way of every library measured on one network."""
    work = Workload(network, network, TITLES[network], INPUTS[network], BATCH[network], None)
    with contextlib.ExitStack() as stack:
        sides = {}
        for environment in environments:
            for way in WAYS[environment.name]:
                side = Side(environment, Case(work, way, "float32"), LIMIT, "cpu")
                sides[environment.name, way] = stack.enter_context(side)
                side.first()
        for index in range(rounds):
            for side in sides.values():
                if index == 0 or (side.measured.median or 0.0) < SLOW:
                    side.warm(REPETITIONS, SECONDS)
        for (name, way), side in sides.items():
            side.finish()
            print(f"{network} {name} {way}: {tables.spread(side.measured)}", file=sys.stderr)
    return {key: side.measured for key, side in sides.items()}


def fastest(
    results: Results, name: str, without: Sequence[str] = ("AUTO",)
) -> tuple[str, float] | None:
    """Returns the fastest way of a library, and its median."""
    medians = {
        way: measured.median
        for (side, way), measured in results.items()
        if side == name and way not in without and measured.median is not None
    }
    return min(medians.items(), key=lambda item: item[1]) if medians else None


def page(results: dict[str, Results], facts: Sequence[str]) -> str:
    """Returns the tables."""
    parts = ["# Empirical kernels of finite networks", "\n".join(facts)]
    parts.append(
        "Ratio: the fastest way of the other library over the fastest of widelimit. PyTorch's "
        "recipe computes the Jacobians of x1 and of x2; here x2 is x1, and one is enough."
    )
    rows = []
    for network, found in results.items():
        ours = fastest(found, "widelimit")
        row = [f"{TITLES[network]}, {BATCH[network]} inputs"]
        row.append("-" if ours is None else f"{ours[0]} {tables.seconds(ours[1])}")
        auto = found["widelimit", "AUTO"].median
        row.append("-" if ours is None or auto is None else f"{auto / ours[1]:.2f}")
        for _, name, without in OTHERS:
            other = fastest(found, name, without)
            row.append("-" if other is None else f"{other[0]} {tables.seconds(other[1])}")
            both = ours is not None and other is not None
            row.append(f"{other[1] / ours[1]:.2f}" if both else "-")
        rows.append(row)
    header = ["network", "widelimit", "AUTO / best"]
    header += [text for title, *_ in OTHERS for text in (title, "ratio")]
    parts.append(tables.markdown(header, rows, 2))
    parts.append("## Every way")
    parts.append(
        "Warm calls: median (fastest to slowest, how many). MB: growth of the peak memory since "
        "the imports, compilation included. Difference: largest, relative to the largest entry of "
        "the first row of the network."
    )
    rows = []
    for network, found in results.items():
        base = next(m.values for m in found.values() if m.values is not None)
        for (name, way), measured in found.items():
            gap = "-"
            if measured.values is not None:
                gap = f"{np.abs(measured.values - base).max() / np.abs(base).max():.1e}"
            first = tables.seconds(measured.first)
            memory = tables.megabytes(measured.memory)
            rows.append([network, name, way, tables.spread(measured), first, memory, gap])
    header = ["network", "library", "way", "warm call", "first call", "MB", "difference"]
    parts.append(tables.markdown(header, rows, 3))
    return "\n\n".join(parts) + "\n"


def main(given: Sequence[str] | None = None) -> None:
    """Runs what is asked for and prints the page."""
    options = arguments(given)
    environments = available()
    networks = [name for name in TITLES if not options.only or name in options.only]
    results = {name: run_network(name, environments, options.rounds) for name in networks}
    told = {
        name: measured.about["versions"]
        for found in results.values()
        for (name, _), measured in found.items()
        if "versions" in measured.about
    }
    facts = [
        machine.describe() + "; float32.",
        *(
            f"- {name}: " + ", ".join(f"{package} {version}" for package, version in pins.items())
            for name, pins in told.items()
        ),
    ]
    text = page(results, facts)
    print(text)
    if options.output is not None:
        options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
