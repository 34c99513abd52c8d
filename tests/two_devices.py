"""What is computed inside `jax.shard_map` with its default check, on two devices.

`python -m tests.two_devices [NAME ...]` prints the outcome of cases as JSON, for `test_varying.py`.
A case takes arrays that are split between the devices and shared ones. On each device it must give
what the same function gives outside, on the arrays of that device.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

if __name__ == "__main__":
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count=2"
    os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

import widelimit as wl
from widelimit import predict, stax

AXIS = "devices"


class Case(NamedTuple):
    """A function, arrays that are split along their first axis, and arrays that all share."""

    function: Callable[..., Any]
    split: tuple[Any, ...]
    shared: tuple[Any, ...] = ()

    def stacked(self, split: Any, shared: Any) -> Any:
        """The results on one device, with an axis in front."""
        return jax.tree.map(lambda a: a[None], self.function(*split, *shared))

    def part(self, device: int) -> list[Any]:
        """The arrays of one device."""
        return [jax.tree.map(lambda a: jnp.split(a, 2)[device], a) for a in self.split]


def by_shard_map(case: Case) -> Any:
    mesh = jax.make_mesh((2,), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,))
    specs = {"in_specs": (P(AXIS), P()), "out_specs": P(AXIS)}
    return jax.jit(jax.shard_map(case.stacked, mesh=mesh, **specs))(case.split, case.shared)


def by_pmap(case: Case) -> Any:
    split = jax.tree.map(lambda *parts: jnp.stack(parts), case.part(0), case.part(1))
    return jax.pmap(lambda s, q: case.function(*s, *q), in_axes=(0, None))(split, case.shared)


def by_vmap(case: Case) -> Any:
    split = jax.tree.map(lambda *parts: jnp.stack(parts), case.part(0), case.part(1))
    mesh = jax.make_mesh((2,), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,))
    one = jax.vmap(lambda s, q: case.function(*s, *q), (0, None), spmd_axis_name=AXIS)
    with jax.set_mesh(mesh):
        return jax.jit(one)(split, case.shared)


def outcome(case: Case, how: Callable[[Case], Any]) -> str:
    """Returns nothing where all is right, else what is wrong."""
    try:
        found, alone = jax.tree.leaves(how(case)), jax.jit(case.function)
        for device in range(2):
            right = jax.tree.leaves(alone(*case.part(device), *case.shared))
            for a, b in zip(found, right, strict=True):
                atol = 3e-5 * float(np.abs(np.asarray(b)).max(initial=0))
                np.testing.assert_allclose(a[device], b, rtol=3e-5, atol=atol)
    except Exception:
        return traceback.format_exc()
    return ""


def draw(seed: int, *shape: int) -> jax.Array:
    """Returns standard normal numbers."""
    return jax.random.normal(jax.random.key(seed), shape)


def first(tree: Any) -> Any:
    """Returns what a device has of arrays that are stacked, one for each."""
    return jax.tree.map(lambda a: a[0], tree)


def two_layers(params: Any, x: Any) -> Any:
    return jnp.tanh(x @ params[0] + params[1]) @ params[2]


def looped(params: Any, x: Any) -> Any:
    """A network with a loop, which carries what it is given."""
    return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, params)[0]


def image(params: Any, x: Any) -> Any:
    axes = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(x, params[0], (1, 1), "SAME", dimension_numbers=axes)
    return jnp.tanh(y + params[1]).mean((1, 2)) @ params[2]


def turned(params: Any, x: Any) -> Any:
    """Complex parameters and outputs."""
    return jnp.tanh(x @ params)


@jax.custom_vjp
def _own_rule(x: Any) -> Any:
    return jnp.tanh(x)


_own_rule.defvjp(lambda x: (jnp.tanh(x), x), lambda x, g: (g * (1 - jnp.tanh(x) ** 2),))


def reverse_only(params: Any, x: Any) -> Any:
    """A network with a rule for reverse mode alone."""
    return _own_rule(x @ params[0] + params[1]) @ params[2]


def two_outputs(params: Any, x: Any) -> Any:
    return {"a": two_layers(params, x), "b": jnp.sin(x @ params[0])}


X, Y = draw(1, 6, 3), draw(2, 2, 3)
WEIGHTS = (draw(3, 3, 4), draw(4, 4), draw(5, 4, 2))
OWN_WEIGHTS = jax.tree.map(lambda w: jnp.stack([w, 1.5 * w]), WEIGHTS)
IMAGES = draw(7, 4, 4, 4, 2)
NETWORKS = {
    "dense": (two_layers, X, Y, WEIGHTS),
    "loop": (looped, X, Y, 0.5 * draw(6, 3, 3, 3)),
    "image": (image, IMAGES, IMAGES[:1] + 1, (draw(8, 3, 3, 2, 3), draw(9, 3), draw(10, 3, 2))),
    "complex": (turned, X, Y, (draw(11, 3, 2) + 1j * draw(12, 3, 2)) / 3),
    "reverse": (reverse_only, X, Y, WEIGHTS),
    "tree": (two_outputs, X, Y, WEIGHTS),
}
Cases = Iterator[tuple[str, Case]]


def tangent_kernels() -> Cases:
    for name, (f, x, y, params) in NETWORKS.items():
        options = {"whole": {}, "vmap": {"vmap_axes": 0}, "memory": {"memory": "8KiB"}}
        options |= {"all axes": {"trace_axes": ()}, "chunks": {"memory": "8KiB", "vmap_axes": 0}}
        for tag, option in options.items():
            for way in (0,) if "memory" in option else (0, 1, 2, 3):
                ntk_fn = wl.empirical_ntk_fn(f, implementation=way, **option)
                yield f"ntk {name} {tag} {way}", Case(ntk_fn, (x,), (y, params))
        yield (
            f"ntk {name} symmetric",
            Case(lambda s, q, ntk_fn=ntk_fn: ntk_fn(s, None, q), (x,), (params,)),
        )
        kernel_fn = wl.empirical_kernel_fn(f)
        yield (
            f"kernel {name}",
            Case(
                lambda s, a, q, k=kernel_fn: [k(s, a, get, q) for get in ("nngp", "ntk")],
                *((x,), (y, params)),
            ),
        )
    for way in (0, 1, 2, 3):
        for tag, option in {"whole": {}, "vmap": {"vmap_axes": 0}}.items():
            ntk_fn = wl.empirical_ntk_fn(two_layers, implementation=way, **option)
            yield (
                f"ntk own weights {tag} {way}",
                Case(lambda w, a, k=ntk_fn: k(a, None, first(w)), (OWN_WEIGHTS,), (Y,)),
            )
        yield (
            f"ntk gradient {way}",
            Case(
                lambda s, a, q, k=ntk_fn: jax.grad(lambda s: k(s, a, q).sum())(s),
                (X,),
                (Y, WEIGHTS),
            ),
        )
    subset = wl.empirical_ntk_fn(two_layers, subset=(True, False, False))
    yield "ntk subset", Case(subset, (X,), (Y, WEIGHTS))


def products() -> Cases:
    for name, (f, x, y, params) in NETWORKS.items():

        def product(s: Any, a: Any, q: Any, f: Any = f) -> Any:
            return wl.empirical_ntk_vp_fn(f, s, a, q)(jax.tree.map(jnp.ones_like, f(q, a)))

        def turned(s: Any, a: Any, q: Any, product: Any = product) -> Any:
            return product(a, s, q)

        yield f"product {name}", Case(product, (x,), (y, params))
        yield f"product {name} turned", Case(turned, (x,), (y, params))
        if name == "tree":
            continue

        def by_operator(s: Any, q: Any, f: Any = f, **options: Any) -> Any:
            operator = wl.NTKOperator(f, q, s, **options)
            v = jnp.ones(operator.vector_shape)
            return operator @ v, operator.matmat(jnp.stack([v, 2 * v], -1)), operator.diagonal()

        def solved(s: Any, q: Any, f: Any = f) -> Any:
            return wl.NTKOperator(f, q, s).solve(f(q, s), 10.0)

        def projected(s: Any, q: Any, f: Any = f) -> Any:
            return list(wl.projected_gradients(f, q, s, jax.random.key(0), 6).estimate())

        for tag, options in {
            "": {},
            " chunks": {"batch_size": 2},
            " trace": {"trace_axes": (-1,)},
            " both": {"batch_size": 2, "trace_axes": (-1,)},
        }.items():
            case = Case(lambda s, q, f=by_operator, o=options: f(s, q, **o), (x,), (params,))
            yield f"operator {name}{tag}", case
        yield f"solve {name}", Case(solved, (x,), (params,))
        yield f"projected {name}", Case(projected, (x,), (params,))
        if name != "reverse":
            yield (
                f"taylor {name}",
                Case(
                    lambda s, q, f=f: wl.taylor_expand(f, q, 2)(
                        jax.tree.map(lambda w: 1.1 * w, q), s
                    ),
                    *((x,), (params,)),
                ),
            )
    yield (
        "linearize own weights",
        Case(
            lambda w, a, q: wl.linearize(two_layers, q)(first(w), a), (OWN_WEIGHTS,), (Y, WEIGHTS)
        ),
    )
    yield (
        "linearize about own weights",
        Case(
            lambda w, a, q: wl.linearize(two_layers, first(w))(q, a), (OWN_WEIGHTS,), (Y, WEIGHTS)
        ),
    )
    rounds = 0.5 * draw(6, 3, 3, 3)
    yield (
        "product own vectors",
        Case(
            lambda v, a, q: wl.empirical_ntk_vp_fn(looped, a, None, q)(first(v)),
            *((draw(21, 2, 2, 3),), (Y, rounds)),
        ),
    )
    for shape, trace in {(3,): (), (): (-1,)}.items():
        for batch in (None, 2):
            yield (
                f"operator own vectors {trace} {batch}",
                Case(
                    lambda v, a, q, b=batch, t=trace: (
                        wl.NTKOperator(looped, q, a, batch_size=b, trace_axes=t) @ first(v)
                    ),
                    *((draw(21, 2, 2, *shape),), (Y, rounds)),
                ),
            )
    yield (
        "projected own keys",
        Case(
            lambda k, s, q: wl.projected_gradients(two_layers, q, s, k[0], 6).features,
            *((jax.random.split(jax.random.key(0), 2),), (X, WEIGHTS)),
        ),
    )


def kernels() -> Cases:
    block = stax.serial(stax.Dense(4, 1.1, 0.1), stax.Tanh())
    layers = {
        "Tanh": stax.Tanh(),
        "Silu": stax.Silu(),
        "Elementwise": stax.Elementwise(jnp.tanh),
        "ElementwiseNumerical": stax.ElementwiseNumerical(jnp.sin, 20),
        "nngp_fn": stax.Elementwise(nngp_fn=lambda c, q1, q2: c * c),
        "Relu": stax.Relu(),
        "Erf": stax.Erf(),
        "Gelu": stax.Gelu(),
        "Sin": stax.Sin(),
        "Sign": stax.Sign(),
        "RectifiedMonomial": stax.RectifiedMonomial(2),
        "Polynomial": stax.Polynomial([1.0, 2.0, 3.0]),
        "LayerNorm": stax.LayerNorm(),
        "repeat": stax.serial(stax.Tanh(), stax.repeat(block, 4)),
    }
    both = ("nngp", "ntk")
    for name, layer in layers.items():
        k = stax.serial(stax.Dense(4, 1.2, 0.3), layer, stax.Dense(1)).kernel_fn
        yield f"layer {name}", Case(lambda s, a, k=k: k(s, a, both), (X,), (Y,))
        yield f"layer {name} symmetric", Case(lambda s, k=k: k(s, None, both), (X,))
        yield (
            f"layer {name} gradient",
            Case(lambda s, a, k=k: jax.grad(lambda s: k(s, a, "ntk").sum())(s), (X,), (Y,)),
        )
    conv = stax.serial(stax.Conv(4, (3, 3), padding="SAME"), stax.Tanh(), stax.AvgPool((2, 2)))
    pooled = stax.serial(conv, stax.Conv(4, (1, 1)), stax.Relu(), stax.GlobalAvgPool())
    attention = stax.serial(conv, stax.GlobalSelfAttention(4, 4, 4, 2), stax.Flatten())
    for name, net in {"pooled": pooled, "attention": attention}.items():
        k = stax.serial(net, stax.Dense(1)).kernel_fn
        yield f"net {name}", Case(lambda s, a, k=k: k(s, a, both), (IMAGES,), (IMAGES[:1],))
    yield (
        "net batch",
        Case(lambda s, a: wl.batch(pooled.kernel_fn, 1)(s, a, "nngp"), (IMAGES,), (IMAGES[:1],)),
    )

    def own_scale(w: Any, a: Any) -> Any:
        rounds = stax.repeat(stax.serial(stax.Tanh(), stax.Dense(1, w[0])), 3)
        return stax.serial(stax.Dense(1, w[0]), rounds).kernel_fn(a, None, "ntk")

    yield "net own scales", Case(own_scale, (jnp.array([1.0, 1.5]),), (X,))
    init_fn, apply_fn, _ = stax.serial(stax.Dense(4), stax.repeat(block, 3), stax.Dense(2))
    params = init_fn(jax.random.key(0), (-1, 3))[1]
    own = jax.tree.map(lambda w: jnp.stack([w, 1.5 * w]), params)
    yield "net finite", Case(wl.empirical_ntk_fn(apply_fn), (X,), (Y, params))
    yield "net own weights", Case(lambda q, s: apply_fn(first(q), s), (own,), (X,))
    drawn = wl.monte_carlo_kernel_fn(init_fn, apply_fn, jax.random.key(1), 3)
    yield "net drawn", Case(lambda s, a: drawn(s, a, "ntk"), (X,), (Y,))


def predictions() -> Cases:
    kernel_fn = stax.serial(stax.Dense(1, 1.5, 0.5), stax.Erf(), stax.Dense(1)).kernel_fn
    arrays = (X, draw(20, 6, 2)), (Y,)
    ridge = {"diag_reg": 1e-3}

    def mse(s: Any, y: Any, a: Any, t: Any = None) -> Any:
        predict_fn = predict.gradient_descent_mse(kernel_fn(s, None, "ntk"), y, **ridge)
        return predict_fn(t, 0.0, 0.0, kernel_fn(a, s, "ntk"))

    def ensemble(s: Any, y: Any, a: Any, t: Any = None) -> Any:
        predict_fn = predict.gradient_descent_mse_ensemble(kernel_fn, s, y, **ridge)
        return list(predict_fn(t, a, "ntk", compute_cov=True))

    def discrete(s: Any, y: Any, a: Any, momentum: float = 0.0) -> Any:
        ntk = kernel_fn(s, None, "ntk")
        predict_fn = predict.discrete_gradient_descent_mse(ntk, y, 0.1, momentum=momentum)
        return predict_fn(jnp.array([0, 5, 100]), 0.0, 0.0, kernel_fn(a, s, "ntk"))

    def inference(s: Any, y: Any, a: Any) -> Any:
        both = ("nngp", "ntk")
        predict_fn = predict.gp_inference(kernel_fn(s, None, both), y, **ridge)
        found = predict_fn(both, kernel_fn(a, s, both), kernel_fn(a, None, both))
        return [list(one) for one in found]

    functions: dict[str, Callable[..., Any]] = {"gp_inference": inference}
    for t in (None, 3.0, jnp.array([0.0, 2.0, jnp.inf])):
        functions[f"mse {t}"] = lambda s, y, a, t=t: mse(s, y, a, t)
        functions[f"ensemble {t}"] = lambda s, y, a, t=t: ensemble(s, y, a, t)
    for m in (0.0, 0.9):
        functions[f"discrete {m}"] = lambda s, y, a, m=m: discrete(s, y, a, m)
    for name, f in functions.items():
        yield f"predict {name}", Case(f, *arrays)
        yield (
            f"predict {name} gradient",
            Case(
                lambda s, y, a, f=f: jax.grad(lambda s: jax.tree.leaves(f(s, y, a))[0].sum())(s),
                *arrays,
            ),
        )
    yield (
        "predict max_learning_rate",
        Case(lambda s: predict.max_learning_rate(kernel_fn(s, None, "ntk")), (X,)),
    )


def cases() -> dict[str, Case]:
    """Returns all cases by name."""
    return {
        name: case
        for make in (tangent_kernels, products, kernels, predictions)
        for name, case in make()
    }


if __name__ == "__main__":
    ways = {"shard_map": by_shard_map, "pmap": by_pmap, "vmap": by_vmap}
    named = cases()
    chosen = sys.argv[1:] or [f"shard_map {name}" for name in named]
    for entry in chosen:
        way, _, name = entry.partition(" ")
        print(json.dumps([entry, outcome(named[name], ways[way])]), flush=True)
