"""The doors of docs/extending.md: its code runs, and what it builds is right."""

from typing import Any

import jax
import numpy as np
import pytest

from tests.pages import run_blocks
from widelimit import InfiniteEnsemble, extend, gram, plan, stax

RNG = np.random.default_rng(1)
IMAGES = RNG.standard_normal((3, 6, 5, 2)).astype(np.float32)


@pytest.fixture(scope="module")
def doors() -> dict[str, Any]:
    with jax.numpy_rank_promotion("allow"):
        return run_blocks("docs/extending.md", 7)


def close(found: Any, right: Any, rtol: float = 2e-5) -> None:
    scale = np.abs(np.asarray(right)).max()
    assert np.abs(np.asarray(found) - np.asarray(right)).max() <= rtol * scale


def test_an_activation_by_its_formula(doors: dict[str, Any]) -> None:
    own = stax.serial(stax.Dense(1, 1.2, 0.3), doors["Square"](0.5), stax.Dense(1))
    known = stax.serial(stax.Dense(1, 1.2, 0.3), stax.Polynomial((0.0, 0.0, 0.5)), stax.Dense(1))
    x, y = RNG.standard_normal((5, 3)), RNG.standard_normal((4, 3))
    for get in ("nngp", "ntk"):
        close(own.kernel_fn(x, y, get), known.kernel_fn(x, y, get))
        close(own.kernel_fn(x, None, get), known.kernel_fn(x, None, get))
    slope = jax.grad(lambda a: doors["Square"](a).kernel_fn(KERNEL, None, "nngp").sum())(0.5)
    assert np.isfinite(slope)


def test_a_fused_activation(doors: dict[str, Any]) -> None:
    dense = [stax.Dense(1, 1.2, 0.3), doors["Square"](0.5), stax.Dense(1)]
    conv = [stax.Conv(1, (3, 3), padding="SAME", b_std=0.2), doors["Square"](0.4)]
    x = RNG.standard_normal((5, 3)).astype(np.float32)
    for layers, inputs in ((dense, x), ([*conv, *conv, stax.GlobalAvgPool()], IMAGES)):
        net = stax.serial(*layers)
        assert net.kernel_fn(inputs, None, "nngp").shape == (len(inputs),) * 2
        for get in ("nngp", "ntk"):
            fused, right = (
                net.kernel_fn(inputs, None, get, engine=engine) for engine in ("fused", "reference")
            )
            close(fused, right)


def test_a_fused_activation_needs_all_parts(doors: dict[str, Any]) -> None:
    square = doors["FusedSquare"]
    formulas = {name: vars(square)[name] for name in ("numbers", "record", "pair")}
    for name in formulas:
        rest = {n: f for n, f in formulas.items() if n != name} | {"layers": ()}
        with pytest.raises(TypeError, match=f"expected Half with {name}, got none"):
            type("Half", (extend.FusedActivation,), rest)
    with pytest.raises(TypeError, match="expected one fused activation for Square, got"):
        type("Second", (extend.FusedActivation,), {**formulas, "layers": (doors["Square"],)})


def test_a_fused_activation_may_be_defined_again(doors: dict[str, Any]) -> None:
    @extend.pytree
    class Twice(extend.ElementwiseLayer):
        def activation(self, x: Any) -> Any:
            return 2 * x

        def dual(self, c: Any, q1: Any, q2: Any, gap: Any) -> extend.Dual:
            return extend.Dual(4 * c, 4 * c**0, None)

    def kernel(factor: float) -> Any:
        class FusedTwice(extend.FusedActivation):
            layers = (Twice,)

            @staticmethod
            def numbers(layer: Any) -> tuple[float, ...]:
                return (factor,)

            @staticmethod
            def record(q: Any, p: Any, cst: Any) -> Any:
                return (q,)

            @staticmethod
            def pair(c: Any, first: Any, second: Any, p: Any, cst: Any) -> Any:
                return p[0] * c, p[0]

        return net.kernel_fn(x, None, "nngp", engine="fused")

    net, x = stax.serial(stax.Dense(1), Twice(), stax.Dense(1)), np.eye(2, dtype=np.float32)
    close(kernel(4.0), net.kernel_fn(x, None, "nngp", engine="reference"))
    close(kernel(8.0), 2 * net.kernel_fn(x, None, "nngp", engine="reference"))


KERNEL = stax.Dense(1).kernel_fn(RNG.standard_normal((3, 3)))


def shifted_linear(shift: Any) -> Any:
    conv = stax.Conv(1, (3, 3), padding="SAME", W_std=1.3, b_std=0.2)
    return stax.serial(conv, shift, conv, stax.Relu(), stax.AvgPool((2, 2)), stax.Flatten())


@pytest.mark.parametrize("steps", [1, 2])
def test_a_layer_that_moves_positions(doors: dict[str, Any], steps: int) -> None:
    shift = doors["Shift"](steps)
    alone = stax.serial(stax.Conv(1, (1, 1)), shift)
    found = alone.kernel_fn(IMAGES, None, "nngp")
    moved = np.roll(IMAGES, steps, axis=1)
    moved[:, :steps] = 0
    right = stax.Conv(1, (1, 1)).kernel_fn(moved, None, "nngp")
    close(found, right)
    params = alone.init_fn(jax.random.key(0), IMAGES.shape)[1]
    out, plain = (
        net.apply_fn(p, IMAGES) for net, p in ((alone, params), (alone.layers[0], params[0]))
    )
    close(out[:, steps:], plain[:, :-steps])
    assert not out[:, :steps].any()


def test_a_layer_that_moves_positions_inside_of_a_network(doors: dict[str, Any]) -> None:
    net = shifted_linear(doors["Shift"](1))
    whole = net.kernel_fn(IMAGES, None, ("nngp", "ntk"))
    close(gram(net, IMAGES, get="ntk", memory="2MB", progress=False), whole.ntk)
    pair = net.kernel_fn(IMAGES[:1], IMAGES[1:], "ntk")
    close(whole.ntk[:1, 1:], pair)
    assert "Shift" in str(plan(net, IMAGES.shape))


def test_a_combinator(doors: dict[str, Any]) -> None:
    """The weighted residual is FanOut, a branch with its last weights scaled, and FanInSum."""

    def block(W_std: float) -> Any:
        return stax.serial(stax.Relu(), stax.Conv(1, (3, 3), padding="SAME", W_std=W_std))

    first = stax.Conv(1, (3, 3), padding="SAME", b_std=0.1)
    known = stax.serial(
        *(first, stax.FanOut(2), stax.parallel(stax.Identity(), block(0.3 * 1.4))),
        *(stax.FanInSum(), stax.GlobalAvgPool()),
    )
    own = stax.serial(first, doors["WeightedResidual"](block(1.4), 0.3), stax.GlobalAvgPool())
    close(own.kernel_fn(IMAGES, None, "nngp"), known.kernel_fn(IMAGES, None, "nngp"))
    # A weight outside scales the NTK of the branch; in W_std it would scale that of its layer too.
    unit, none = (
        stax.serial(first, doors["WeightedResidual"](block(1.4), w), stax.GlobalAvgPool())
        for w in (1.0, 0.0)
    )
    ntk = {w: net.kernel_fn(IMAGES, None, "ntk") for w, net in ((1, unit), (0, none))}
    close(own.kernel_fn(IMAGES, None, "ntk"), ntk[0] + 0.3**2 * (ntk[1] - ntk[0]))
    assert str(plan(own, IMAGES.shape)).count("Conv") == 3
    correlated = stax.serial(first, doors["WeightedResidual"](stax.Identity(), 1.0))
    with pytest.raises(NotImplementedError, match="expected independent branches in a sum"):
        correlated.kernel_fn(IMAGES)


def test_a_combinator_hands_on_its_context(doors: dict[str, Any]) -> None:
    key, drop = jax.random.key(0), stax.Dropout(0.5)
    own = doors["WeightedResidual"](drop, 0.3)
    out = own.apply_fn((), IMAGES, rng=key)
    close(out, IMAGES + 0.3 * np.asarray(drop.apply_fn((), IMAGES, rng=key)))
    masked = own.apply_fn((), IMAGES, rng=key, mask_constant=float(IMAGES[0, 0, 0, 0]))
    assert masked.mask.sum() == 1
    assert masked.masked_value[0, 0, 0, 0] == 0


def test_an_engine(doors: dict[str, Any]) -> None:
    net, x = doors["net"], np.asarray(doors["x"], np.float32)
    close(doors["nngp"], net.kernel_fn(x, None, "nngp"))


def test_a_solver(doors: dict[str, Any]) -> None:
    x, x_test = RNG.standard_normal((12, 3)), RNG.standard_normal((5, 3))
    for inference in ("bayes", "gradient_descent"):
        own, known = (
            InfiniteEnsemble(
                *(doors["net"], x, np.sin(x[:, :2])), inference=inference, noise=0.2, solver=solver
            )
            for solver in (doors["Eigenvalues"](), None)
        )
        close(own.mean(x_test), known.mean(x_test), 1e-6)
        close(own.cov(x_test), known.cov(x_test), 1e-6)
    close(own.at(3.0).mean(x_test), known.at(3.0).mean(x_test), 1e-6)
    assert doors["std"].shape == doors["early"].shape == (4, 1)
