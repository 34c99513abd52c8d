"""The machine that the benchmarks run on, in words and numbers."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.environments import ROOT


def first_line(path: str, key: str) -> str | None:
    """Returns what follows the colon in the first line of a file that begins with a key."""
    if not Path(path).exists():
        return None
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), None)


def cores() -> int:
    """Returns the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe() -> str:
    """Returns processor, cores, memory and operating system in one line."""
    processor = first_line("/proc/cpuinfo", "model name") or platform.processor()
    memory = first_line("/proc/meminfo", "MemTotal")
    gigabytes = f"{int(memory.split()[0]) * 1024 / 1e9:.0f} GB of memory, " if memory else ""
    system = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    return f"{processor}, {cores()} cores, {gigabytes}{system}"


def load() -> float | None:
    """Returns how many processes wanted a core in the last minute, None where nobody counts."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def peaks(platform: str | None) -> dict[str, Any] | None:
    """Returns what `peaks` measures in a process of its own, None where it cannot run.

    Args:
      platform: what JAX runs on; None leaves that to JAX.
    """
    command = [sys.executable, "-m", "benchmarks.peaks"]
    variables = os.environ if platform is None else {**os.environ, "JAX_PLATFORMS": platform}
    done = subprocess.run(
        command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["said nothing"])[-1]
        print(f"the peak of the machine is unknown: {reason}", file=sys.stderr)
        return None
    return json.loads(done.stdout)


def best(*measured: dict[str, Any] | None) -> dict[str, Any] | None:
    """Returns the largest value under each name."""
    known = [m for m in measured if m is not None]
    return {name: max(m[name] for m in known) for name in known[0]} if known else None
