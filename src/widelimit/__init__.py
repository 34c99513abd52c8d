"""Kernels, training dynamics and Bayesian inference of infinitely wide neural networks."""

import importlib

from widelimit import diagnostics as diagnostics
from widelimit import extend as extend
from widelimit import models as models
from widelimit import plot as plot
from widelimit import predict as predict
from widelimit import stax as stax
from widelimit.engines.choose import choose_engine as choose_engine
from widelimit.engines.engine import Engine as Engine
from widelimit.engines.plan_table import plan as plan
from widelimit.finite.empirical import NtkImplementation as NtkImplementation
from widelimit.finite.empirical import NTKOperator as NTKOperator
from widelimit.finite.empirical import empirical_kernel_fn as empirical_kernel_fn
from widelimit.finite.empirical import empirical_nngp_fn as empirical_nngp_fn
from widelimit.finite.empirical import empirical_ntk_fn as empirical_ntk_fn
from widelimit.finite.empirical import empirical_ntk_vp_fn as empirical_ntk_vp_fn
from widelimit.finite.empirical import projected_gradients as projected_gradients
from widelimit.finite.linearize import linearize as linearize
from widelimit.finite.linearize import taylor_expand as taylor_expand
from widelimit.finite.monte_carlo import monte_carlo_kernel_fn as monte_carlo_kernel_fn
from widelimit.gram import gram as gram
from widelimit.gram.batch import batch as batch
from widelimit.kernel.kernel import Kernel as Kernel
from widelimit.layers.base import Layer as Layer
from widelimit.layers.description import from_json as from_json
from widelimit.layers.description import to_json as to_json
from widelimit.network import KernelFn as KernelFn
from widelimit.predict.infinite import InfiniteEnsemble as InfiniteEnsemble

__version__ = "0.2.0"


# Imported at first use: they serve optional libraries.
_LATE = ("scale",)


def __getattr__(name: str) -> object:
    if name in _LATE:
        return importlib.import_module(f"widelimit.{name}")
    if name == "experimental":
        raise ImportError(
            "widelimit has no `experimental`: the prototypes of neural-tangents for TensorFlow "
            "models were not taken over; widelimit depends on JAX alone"
        )
    raise AttributeError(f"module 'widelimit' has no attribute {name!r}")
