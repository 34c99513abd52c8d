"""Floating-point operations of layers: by formulas, or counted in the equations of a trace."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from widelimit.covariance.covariances import Covariances
from widelimit.covariance.signal import Signal
from widelimit.engines.cost import entries
from widelimit.layers.base import Layer, Site, inner_layers
from widelimit.layers.step import step
from widelimit.tracing.jaxprs import Equation, Equations, shape_of
from widelimit.typing import Covs, Needs, Signals

# Operations that move numbers or change their description, and compute none.
_MOVES = {
    "bitcast_convert_type",
    "broadcast_in_dim",
    "concatenate",
    "convert_element_type",
    "copy",
    "dynamic_slice",
    "dynamic_update_slice",
    "expand_dims",
    "gather",
    "iota",
    "pad",
    "reduce_precision",
    "reshape",
    "rev",
    "scatter",
    "select_n",
    "slice",
    "squeeze",
    "stop_gradient",
    "transpose",
}


def operations(layer: Layer, site: Site) -> int:
    """Returns the floating-point operations per pair of samples, for NNGP and NTK together.

    They follow from the formula of the layer, `Layer.operations`, or are counted in its
    `propagate`, without those of the layers inside.
    """
    if layer.structural:
        return 0
    each = layer.operations(site)
    if each is not None:
        return round(each * entries(site.need_out, site.signal_out))
    layers = inner_layers(layer)
    pairs = zip(site.inside, site.children, strict=True)
    inside = sum(_traced(layers[child.place], at) for child, at in pairs)
    first = site.signal_in
    while not isinstance(first, Signal):
        first = first[0]
    return max(0, _traced(layer, site) - inside) // first.n1**2


def count(function: Equations) -> int:
    """Returns the floating-point operations of a traced function.

    Multiplications, additions and every other function of a number count as one each. All rounds of
    a `scan` count; the number of rounds of a `while_loop` is unknown and counts as one.
    """
    return sum(map(_count, function))


def _count(equation: Equation) -> int:
    name, params = equation.name, equation.params
    bodies = [count(body) for body in equation.bodies]
    size = sum(math.prod(shape_of(value)) for value in equation.outputs)
    if name.startswith(("reduce_", "arg")) and name not in _MOVES:
        window = params.get("window_dimensions")
        cov_in = math.prod(shape_of(equation.inputs[0]))
        return cov_in if window is None else size * math.prod(window)
    if bodies:
        rounds: int = params.get("length", 1) if name == "scan" else 1
        return rounds * (max(bodies) if name == "cond" else sum(bodies))
    if name == "dot_general":
        ((summed, _), _) = params["dimension_numbers"]
        rows = shape_of(equation.inputs[0])
        return 2 * size * math.prod(rows[axis] for axis in summed)
    if name == "conv_general_dilated":
        kernel, features = shape_of(equation.inputs[1]), params["dimension_numbers"].rhs_spec[0]
        return 2 * size * (math.prod(kernel) // max(kernel[features], 1))
    return 0 if name in _MOVES else size


def _traced(layer: Layer, site: Site) -> int:
    """Returns the operations of a layer for x1 with itself, counted in its equations."""
    cov_in = jax.eval_shape(lambda: _covariances(site.need_in, site.signal_in, "traced"))
    return count(Equations.of(lambda cov: step(layer, cov, site), cov_in))


def _covariances(need: Needs, signal: Signals, name: str) -> Covs:
    """Returns example covariances of x1 with itself, those of independent Gaussian branches."""
    if not isinstance(signal, Signal):
        pairs = enumerate(zip(need, signal, strict=True))
        return tuple(_covariances(n, s, f"{name}[{i}]") for i, (n, s) in pairs)
    cross = jnp.zeros((signal.n1, signal.n1, need.cross.count, signal.positions))
    return Covariances(
        nngp=cross,
        ntk=cross,
        gap=None if signal.spatial else cross,
        cov1=jnp.zeros((signal.n1, need.own.count, signal.positions)),
        cov2=None,
        signal=signal,
        need=need,
        tangent=True,
        gaussian=True,
        origins=frozenset({name}),
    )
