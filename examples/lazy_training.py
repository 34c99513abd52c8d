"""How lazily networks train: what becomes of the tangent kernel as the width grows.

The network of `widelimit demo`, two hidden layers of error functions, is trained on its eight
points by gradient descent, at widths from 32 to 4096, in two scalings:

- NTK: as `stax` builds it. The limit of infinite width is linear in the parameters.
- muP: outputs divided by a further sqrt(width), learning rate times width (arXiv:2011.14522). The
  steps of the outputs are as large, but now hidden features move as much as at any other width.

What theory says about powers of the width, in the columns of the table that this prints:

- Distance of the kernel at the start to that of infinite width: -1/2. It is an average over
  neurons, the same in both scalings.
- Drift of the kernel in training, |K - K0| / |K0|: -1 for NTK, where -1/2 is a proven bound
  (arXiv:1902.06720). A neuron moves by 1 / sqrt(width). To first order that changes its share of
  the kernel, 1 / width, with a random sign, so that the sum over neurons changes by
  width^(-1 - 1/2 + 1/2) = 1 / width; and so it does to second order, which has one sign
  (arXiv:1909.08156, arXiv:1909.11304). For muP: 0.
- Movement of the parameters, |p - p0| / |p0|: -1 for NTK, since |p - p0| does not depend on the
  width and |p0| is that of width^2 weights of variance 1. For muP: -1/2, since |p - p0| grows as
  sqrt(width).
- Gap between the outputs of the trained network and those of its linearisation, trained alike from
  the same parameters, relative to their change: as the drift, which is its cause.
- Relative scale of Chizat, Oyallon and Bach: -1/2 for NTK, as the Hessian (arXiv:2010.01092): a
  norm is about the worst direction, that of few neurons, where no signs cancel. That is a bound up
  to logarithms; at the widths measured, at most 1024, it falls more slowly. For muP: 0.

Run it with `make study`, or `python -m examples.lazy_training`; it takes some minutes.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

import widelimit as wl
from examples.demo.finite import train_ensemble
from examples.demo.regression import RegressionTask, target, task_network
from widelimit._text import text_table
from widelimit.plot.looks import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    RED,
    new_figure,
    save_figure,
)

LAYERWISE = wl.NtkImplementation.STRUCTURED_DERIVATIVES
LOOKS = {
    "distance to the infinite kernel": (BLACK, "o"),
    "drift of the kernel": (RED, "s"),
    "movement of the parameters": (GREEN, "^"),
    "gap to the linearisation": (BLUE, "D"),
    "relative scale": (PURPLE, "v"),
}


@dataclasses.dataclass(frozen=True)
class Study:
    """Sizes of the study.

    Attributes:
      widths: of the hidden layers.
      seeds: networks per width; fewer, but three, where all of them take longer than at `dear`.
      dear: the largest width with so many.
      steps: of gradient descent.
      speed: step size as a share of the largest stable one at the start. Kernels of muP networks
        grow several times: larger steps would end at the edge of stability, and not tell much.
      curved: the largest width whose relative scale is measured, of half as many networks.
      asymptotic: the least width of a second fit: powers hold in the limit of large widths.
      run_width: of the networks whose training runs are reported.
      ensemble: the demonstration's task, whose ensemble is linearised.
      mup_members: size of its muP ensemble, which is trained step by step.
    """

    widths: tuple[int, ...] = (32, 64, 128, 256, 512, 1024, 2048, 4096)
    seeds: int = 20
    dear: int = 512
    steps: int = 80
    speed: float = 0.1
    curved: int = 1024
    asymptotic: int = 256
    run_width: int = 512
    ensemble: RegressionTask = dataclasses.field(default_factory=RegressionTask)
    mup_members: int = 20

    def seeds_at(self, width: int) -> range:
        return range(max(min(3, self.seeds), min(self.seeds, self.seeds * self.dear // width)))


class Scaling(NamedTuple):
    """Outputs are divided by width^power, the learning rate is multiplied by width^(2 power)."""

    name: str
    power: float
    theory: dict[str, float]

    def network(self, width: int) -> Network:
        """The finite network."""
        net = task_network(width)
        scale = width**-self.power
        return Network(net.init_fn, lambda p, x: scale * net.apply_fn(p, x), scale)


class Network(NamedTuple):
    init_fn: Any
    apply_fn: Any
    scale: float


THEORY = [-0.5, -1, -1, -1, -0.5], [-0.5, 0, -0.5, 0, 0]
NTK = Scaling("NTK", 0.0, dict(zip(LOOKS, THEORY[0], strict=True)))
MUP = Scaling("muP", 0.5, dict(zip(LOOKS, THEORY[1], strict=True)))


class Data(NamedTuple):
    """Training points, inputs between and beyond them, the largest stable step size, the kernel."""

    x: jax.Array
    y: jax.Array
    x_test: jax.Array
    largest_step: float
    kernel: jax.Array


def demo_data(task: RegressionTask, points: int) -> Data:
    """The data of the demonstration, and its infinite network's kernel."""
    x = np.linspace(-1, 1, task.points)
    y = target(x) + task.noise * np.random.default_rng(0).standard_normal(x.shape)
    columns = (jnp.asarray(a, jnp.float32)[:, None] for a in (x, y, np.linspace(-1.4, 1.4, points)))
    x, y, x_test = columns
    kernel = task_network(1).kernel_fn(x, None, "ntk")
    largest = wl.predict.max_learning_rate(kernel, y_train_size=y.size)
    return Data(x, y, x_test, float(largest), kernel)


def descend(f: Any, params: Any, data: Data, rate: Any, steps: Any) -> Any:
    """Parameters after steps of gradient descent on half the mean squared error."""

    def step(_: Any, params: Any) -> Any:
        slopes = jax.grad(lambda p: 0.5 * jnp.mean((f(p, data.x) - data.y) ** 2))(params)
        return jax.tree.map(lambda p, slope: p - rate * slope, params, slopes)

    return jax.lax.fori_loop(0, steps, step, params)


def measure(network: Network, data: Data, rate: float, steps: int, key: jax.Array) -> Any:
    """Kernels and outputs of one network before and after training."""
    f, x_all = network.apply_fn, jnp.concatenate([data.x, data.x_test])
    ntk_fn = wl.empirical_ntk_fn(f, implementation=LAYERWISE)
    _, params0 = network.init_fn(key, data.x.shape)
    params = descend(f, params0, data, rate, steps)
    kernels = ntk_fn(x_all, data.x, params0), ntk_fn(data.x, None, params)
    outputs = f(params0, x_all), f(params, x_all)
    return params0, kernels, outputs, wl.diagnostics.parameter_movement(params, params0)


@partial(jax.jit, static_argnums=1)
def linearised_outputs(kernel: Any, steps: int, start: Any, y: Any, rate: Any) -> jax.Array:
    """Outputs of the linearised network after training: `linearize` need not be trained at all."""
    n = len(y)
    predict_fn = wl.predict.discrete_gradient_descent_mse(kernel[:n], y, rate)
    return jnp.concatenate(predict_fn(steps, start[:n], start[n:], kernel[n:]))


def sweep(study: Study, scaling: Scaling, data: Data) -> dict[str, list[tuple[int, float]]]:
    """Pairs of a width and a value, for every quantity, width and seed."""
    found: dict[str, list[tuple[int, float]]] = {name: [] for name in LOOKS}
    n = len(data.x)
    for width in study.widths:
        network = scaling.network(width)
        rate = study.speed * data.largest_step / network.scale**2
        run = jax.jit(partial(measure, network, data, rate, study.steps))
        for seed in study.seeds_at(width):
            params0, (kernel0, kernel), (start, end), moved = run(jax.random.PRNGKey(seed))
            linear = linearised_outputs(kernel0, study.steps, start, data.y, rate)
            drift = wl.diagnostics.kernel_drift
            values = [
                drift(kernel0[:n] / network.scale**2, data.kernel),
                drift(kernel, kernel0[:n]),
                moved,
                jnp.linalg.norm(end - linear) / jnp.linalg.norm(linear - start),
            ]
            if width <= study.curved and 2 * seed < study.seeds:
                f = network.apply_fn
                values.append(wl.diagnostics.relative_scale(f, params0, data.x, data.y).kappa)
            for name, value in zip(LOOKS, values, strict=False):
                found[name].append((width, float(value)))
    return found


class Fit(NamedTuple):
    """value = factor * width^exponent, with the half width of the exponent's 95 % interval."""

    exponent: float
    error: float
    factor: float

    def __str__(self) -> str:
        return "-" if np.isnan(self.exponent) else f"{self.exponent:.2f} ± {self.error:.2f}"


def fit(pairs: list[tuple[int, float]]) -> Fit:
    """Least squares on logarithms of all networks, each by itself; NaN for a single width."""
    if len(pairs) < 3 or len({width for width, _ in pairs}) < 2:
        return Fit(np.nan, np.nan, np.nan)
    widths, values = np.log(np.array(pairs, float)).T
    line = stats.linregress(widths, values)
    quantile = stats.t.ppf(0.975, len(pairs) - 2)
    return Fit(float(line.slope), float(quantile * line.stderr), float(np.exp(line.intercept)))


class Ensembles(NamedTuple):
    """Means over ensembles [times, points] on a grid, and their distance to the infinite one.

    Deviations are the largest over times and points, in standard errors of the finite mean.
    """

    grid: np.ndarray
    infinite: np.ndarray
    linearised: np.ndarray
    mup: np.ndarray
    linearised_deviation: float
    mup_deviation: float


def compare_ensembles(study: Study) -> Ensembles:
    """Ensembles of linearised networks and of muP networks beside the infinite one."""
    task, steps = study.ensemble, np.asarray(study.ensemble.steps)
    data = demo_data(task, 57)
    rate = task.speed * data.largest_step
    infinite_fn = wl.predict.discrete_gradient_descent_mse_ensemble(
        task_network(1).kernel_fn, data.x, data.y, rate
    )
    infinite = np.asarray(infinite_fn(steps, data.x_test, "ntk"))[..., 0]

    network, x_all = NTK.network(task.width), jnp.concatenate([data.x_test, data.x])
    ntk_fn = wl.empirical_ntk_fn(network.apply_fn, implementation=LAYERWISE)
    m = len(data.x_test)

    @jax.jit
    def linearised(key: jax.Array) -> jax.Array:
        _, params = network.init_fn(key, data.x.shape)
        kernel, start = ntk_fn(x_all, data.x, params), network.apply_fn(params, x_all)
        predict_fn = wl.predict.discrete_gradient_descent_mse(kernel[m:], data.y, rate)
        return predict_fn(steps, start[m:], start[:m], kernel[:m])[1][..., 0]

    keys = jax.random.split(jax.random.PRNGKey(1), task.members)
    members = np.stack([linearised(key) for key in keys])
    mup = train_ensemble(
        *(MUP.network(task.width), jax.random.PRNGKey(2), data.x, data.y, data.x_test),
        learning_rate=rate * task.width,
        steps=task.steps,
        members=study.mup_members,
        chunk=1,
    ).outputs[..., 0]

    def deviation(outputs: np.ndarray) -> float:
        error = outputs.std(0, ddof=1) / np.sqrt(len(outputs))
        return float(np.max(np.abs(outputs.mean(0) - infinite) / error))

    means = members.mean(0), mup.mean(0)
    grid = np.asarray(data.x_test)[:, 0]
    return Ensembles(grid, infinite, *means, deviation(members), deviation(mup))


def training_run(study: Study, scaling: Scaling, data: Data) -> wl.diagnostics.Report:
    """The report on one network along its training."""
    network = scaling.network(study.run_width)
    rate = study.speed * data.largest_step / network.scale**2
    steps = np.unique(np.geomspace(1, study.steps, 5).round().astype(int))
    advance = jax.jit(lambda params, n: descend(network.apply_fn, params, data, rate, n))

    def points() -> Iterator[Any]:
        _, params = network.init_fn(jax.random.PRNGKey(0), data.x.shape)
        yield params
        for count in np.diff(steps, prepend=0):
            params = advance(params, count)
            yield params

    return wl.diagnostics.report(
        network.apply_fn,
        points(),
        data.x,
        data.y,
        steps=[0, *steps],
        curvature=True,
        implementation=LAYERWISE,
    )


Sweeps = dict[str, dict[str, list[tuple[int, float]]]]


def table(study: Study, sweeps: Sweeps) -> str:
    """The mean of every quantity at every width, and its exponent over all and the larger ones."""
    rows = []
    for scaling in (NTK, MUP):
        for name, pairs in sweeps[scaling.name].items():
            values = [[v for w, v in pairs if w == width] for width in study.widths]
            large = [pair for pair in pairs if pair[0] >= study.asymptotic]
            rows.append(
                [
                    f"{scaling.name}: {name}",
                    *(f"{np.mean(some):.2g}" if some else "-" for some in values),
                    str(fit(pairs)),
                    str(fit(large)),
                    f"{scaling.theory[name]:g}",
                ]
            )
    header = ["exponent (95 %)", f"from {study.asymptotic}", "theory"]
    return text_table(["", *map(str, study.widths), *header], rows)


def figure(sweeps: Sweeps, ensembles: Ensembles, path: str | Path) -> Path:
    """Quantities over widths with their fits, and the means of ensembles."""
    with new_figure(17.0, 6.2) as fig:
        panels = fig.subplots(1, 3)
        for axes, scaling in zip(panels, (NTK, MUP), strict=False):
            for name, (color, marker) in LOOKS.items():
                found = fit(sweeps[scaling.name][name])
                if np.isnan(found.exponent):
                    continue
                widths, values = np.array(sweeps[scaling.name][name]).T
                ends = np.array([widths.min(), widths.max()])
                axes.plot(widths, values, marker, color=color, alpha=0.35, markersize=5)
                label = f"{name}: {found}"
                axes.plot(ends, found.factor * ends**found.exponent, color=color, label=label)
            axes.set(xscale="log", yscale="log", xlabel="width", title=f"{scaling.name} scaling")
        low = min(axes.get_ylim()[0] for axes in panels[:2])
        high = max(axes.get_ylim()[1] for axes in panels[:2])
        for axes in panels[:2]:
            axes.set_ylim(low, high)
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), title="exponents (95 %)")
        panels[0].set_ylabel("relative size")
        for name, color, line in (
            ("infinite", BLACK, "-"),
            ("linearised", ORANGE, "--"),
            ("muP", RED, ":"),
        ):
            mean = getattr(ensembles, name.lower())[-1]
            panels[2].plot(ensembles.grid, mean, line, color=color, label=name)
        panels[2].set(xlabel="input x", ylabel="output", title="means of trained ensembles")
        panels[2].legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3)
        return save_figure(fig, path)


class Result(NamedTuple):
    sweeps: Sweeps
    ensembles: Ensembles


def main(study: Study = Study(), path: str | Path = "study_output/lazy_training.png") -> Result:
    data = demo_data(study.ensemble, 9)
    for scaling in (NTK, MUP):
        print(f"{scaling.name}, width {study.run_width}:\n{training_run(study, scaling, data)}\n")
    sweeps = {scaling.name: sweep(study, scaling, data) for scaling in (NTK, MUP)}
    print(table(study, sweeps))
    some = study.widths[2::2][:3] if len(study.widths) > 6 else study.widths
    gap = "gap to the linearisation"
    for name, quantities in sweeps.items():
        found = fit([pair for pair in quantities[gap] if pair[0] in some])
        print(f"{name}: {gap} over widths {', '.join(map(str, some))}: exponent {found}")
    ensembles = compare_ensembles(study)
    print(
        f"largest deviation from the infinite ensemble, in standard errors, over "
        f"{ensembles.infinite.size} outputs: {ensembles.linearised_deviation:.2f} of "
        f"{study.ensemble.members} linearised networks of width {study.ensemble.width}, "
        f"{ensembles.mup_deviation:.1f} of {study.mup_members} muP networks"
    )
    print(f"figure: {figure(sweeps, ensembles, path)}")
    return Result(sweeps, ensembles)


if __name__ == "__main__":
    main(path=sys.argv[1] if len(sys.argv) > 1 else "study_output/lazy_training.png")
