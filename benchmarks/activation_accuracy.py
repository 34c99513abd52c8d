"""Largest errors of every nonlinearity over its range, by engine and dtype.

python -m benchmarks.activation_accuracy > docs/accuracy.md
"""

import sys
import warnings
from typing import Any

import numpy as np

from tests import accuracy

HEAD = """# Accuracy of the nonlinearities

Largest errors of K (NNGP) and T (NTK) after a first layer of weights and one nonlinearity, for all
pairs of variances from 1e-8 to 1e10 and correlations from -1 to 1 - 1e-12, and 1, with and without
a bias. Errors are relative to sqrt(K11 K22) and sqrt(T11 T22), which no entry of a kernel exceeds.
Right values are computed from the same inputs in extended precision.
`python -m benchmarks.activation_accuracy` makes this table;
`tests/activations/test_accuracy.py` holds it.

- Networks of smooth nonlinearities are computed in float64 inside, and rounded at the end: by the
  fused engine always, by the reference engine where an entry of the inputs is above 10 in size.
  Under `jit`, `vmap` and `grad` float32 is float32: scale such inputs, or turn x64 on.
- Kinks (the ReLU family, in T; `Sign`, in K) turn a rounding error of 1 - |rho| into one of its
  square root: in float32 up to 4e-4 next to rho = -1, and next to 1 behind windows. Without windows
  the distance is carried, which keeps all digits next to 1.
- In float64 next to |rho| = 1 at variances of 1e10 `Erf`, `Sin`, `Rbf`, `Gaussian` and `Gabor` are
  off by 1e-6: the covariances themselves are rounded by as much.

| | """


def main() -> None:
    columns = [
        (dtype, engine, spatial)
        for dtype in (np.float32, np.float64)
        for engine in ("auto", "reference")
        for spatial in (False, True)
    ]
    names = [
        f"{np.dtype(dtype).name}, {'fused' if engine == 'auto' else engine}"
        + (", windows" if spatial else "")
        for dtype, engine, spatial in columns
    ]
    print(HEAD + " | ".join(names) + " |")
    print("|---|" + "---:|" * len(names))
    for name, layer in accuracy.LAYERS.items():
        cells = [worst(layer, *column) for column in columns]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def worst(layer: Any, dtype: Any, engine: str, spatial: bool) -> str:
    """Returns the largest errors of K and T."""
    inputs = accuracy.pairs(accuracy.VARIANCES, accuracy.DISTANCES, dtype)
    found = [
        accuracy.measure(layer, inputs, b_std, engine, dtype, spatial) for b_std in (None, 0.5)
    ]
    return f"{max(f.k for f in found):.0e}, {max(f.t for f in found):.0e}"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.exit(main())
