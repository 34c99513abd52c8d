"""What the benchmarks compute: names, sizes and inputs. Imports no neural network library."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

GETS = ("nngp", "ntk")
DTYPES = ("float32", "float64")


@dataclasses.dataclass(frozen=True)
class Workload:
    """A kernel between n1 and n2 samples.

    Attributes:
      name: what `--only` takes.
      network: the key of the network in `networks_*.NETWORKS`.
      title: for the table.
      shape: of one sample.
      n1: number of samples of x1.
      n2: number of samples of x2; None means that x2 is not given.
      quick: n1 and n2 with `--quick`; None leaves the workload out there.
      dtypes: in which it runs.
      gram: whether our side calls `wl.gram`; else `kernel_fn`, as the other side does always.
    """

    name: str
    network: str
    title: str
    shape: tuple[int, ...]
    n1: int
    n2: int | None
    quick: tuple[int, int | None] | None = (1, 1)
    dtypes: tuple[str, ...] = DTYPES
    gram: bool = False

    @property
    def entries(self) -> int:
        """Number of kernel entries of the result."""
        return self.n1 * (self.n2 or self.n1)

    @property
    def pairs(self) -> int:
        """Number of entries that have to be computed: x2=None is symmetric."""
        return self.entries if self.n2 else self.n1 * (self.n1 + 1) // 2

    @property
    def size(self) -> str:
        """The sizes as people write them."""
        return f"{self.n1} x {self.n2}" if self.n2 else f"{self.n1}, x2=None"

    def smaller(self) -> Workload | None:
        """Returns the workload of `--quick`, None where it has none."""
        if self.quick is None:
            return None
        return dataclasses.replace(self, n1=self.quick[0], n2=self.quick[1])


CIFAR, MNIST = (32, 32, 3), (28, 28, 1)
SINGLE = ("float32",)

WORKLOADS = (
    Workload("fc", "fc", "fully connected, depth 5", (784,), 4096, None, (256, None)),
    Workload("cnn-flatten", "cnn-flatten", "CNN, 21 layers, Flatten", CIFAR, 48, 48, (2, 2)),
    Workload("cnn-gap", "cnn-gap", "CNN, 21 layers, global pooling", CIFAR, 2, 2),
    Workload("cnn-gap-one", "cnn-gap", "CNN, 21 layers, global pooling", CIFAR, 1, 1, None, SINGLE),
    Workload("myrtle-5", "myrtle-5", "Myrtle-5", CIFAR, 4, 4),
    Workload("myrtle-7", "myrtle-7", "Myrtle-7", CIFAR, 4, 4),
    Workload("myrtle-10", "myrtle-10", "Myrtle-10", CIFAR, 4, 4),
    Workload("resnet", "resnet", "wide residual network", CIFAR, 2, 2),
    Workload("resnet-one", "resnet", "wide residual network", CIFAR, 1, 1, None, SINGLE),
    Workload("lenet", "lenet", "LeNet, 5 x 5, Flatten", MNIST, 8, 8),
)
# The calls of people who compute many entries: by `wl.gram`.
WORKLOADS += tuple(
    dataclasses.replace(
        w, name=f"{w.name}-gram", title=f"{w.title}, by wl.gram", gram=True, quick=None
    )
    for w in WORKLOADS
    if w.name in ("fc", "cnn-gap", "resnet", "lenet")
)


def inputs(workload: Workload, dtype: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns x1 and x2: the same numbers in every dtype, since they are drawn in float32."""
    rng = np.random.default_rng(0)
    given = [
        None if n is None else rng.standard_normal((n, *workload.shape), np.float32).astype(dtype)
        for n in (workload.n1, workload.n2)
    ]
    return given[0], given[1]
