"""Infinite networks as estimators of scikit-learn, and as kernels of other libraries.

Not part of `import widelimit`. Each name needs the extra of its library: `sklearn`, `gpjax` or
`gpytorch`.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from widelimit.estimators.classification import NNGPClassifier as NNGPClassifier
    from widelimit.estimators.classification import NTKClassifier as NTKClassifier
    from widelimit.estimators.gpjax_kernel import GPJaxKernel as GPJaxKernel
    from widelimit.estimators.gpytorch_kernel import GPyTorchKernel as GPyTorchKernel
    from widelimit.estimators.regression import NNGPRegressor as NNGPRegressor
    from widelimit.estimators.regression import NTKRegressor as NTKRegressor
    from widelimit.estimators.sklearn_kernel import SklearnKernel as SklearnKernel

# Where a name is defined, and which extra it needs.
_HOMES = {
    "NNGPClassifier": ("classification", "sklearn"),
    "NNGPRegressor": ("regression", "sklearn"),
    "NTKClassifier": ("classification", "sklearn"),
    "NTKRegressor": ("regression", "sklearn"),
    "SklearnKernel": ("sklearn_kernel", "sklearn"),
    "GPJaxKernel": ("gpjax_kernel", "gpjax"),
    "GPyTorchKernel": ("gpytorch_kernel", "gpytorch"),
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, extra = _HOMES[name]
    try:
        return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.startswith("widelimit"):
            raise
        raise ModuleNotFoundError(
            f"expected {error.name} to be installed for {name}: pip install 'widelimit[{extra}]'",
            name=error.name,
        ) from error


def __dir__() -> list[str]:
    return sorted(_HOMES)
