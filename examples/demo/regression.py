"""An infinite and a finite ensemble, trained side by side on one one-dimensional task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from examples.demo.finite import train_ensemble
from widelimit import stax
from widelimit.predict import max_learning_rate
from widelimit.predict.infinite import InfiniteEnsemble

Array = NDArray[np.floating]


@dataclass(frozen=True)
class RegressionTask:
    """What is trained on what.

    Attributes:
      members: size of the finite ensemble.
      width: width of its hidden layers.
      points: number of training points.
      noise: standard deviation of the noise on every target.
      speed: step size as a fraction s of the largest stable one. The infinite ensemble follows
        gradient flow, which multiplies the error of the fastest mode by exp(-2 s) where a step
        multiplies it by 1 - 2 s: a small fraction keeps the two alike.
      steps: steps at which both ensembles are compared.
      chunk: finite networks trained at once, see `train_ensemble`.
    """

    members: int = 100
    width: int = 512
    points: int = 8
    noise: float = 0.1
    speed: float = 0.08
    steps: tuple[int, ...] = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
    chunk: int = 4


class Curves(NamedTuple):
    """Mean and standard deviation over an ensemble at every recorded time.

    Attributes:
      mean, std: outputs [times, points] on the grid.
      train, train_std: training loss [times].
      test, test_std: test loss [times].
    """

    mean: Array
    std: Array
    train: Array
    train_std: Array
    test: Array
    test_std: Array


class RegressionResult(NamedTuple):
    """Everything that the figure and the summary of the comparison show.

    Attributes:
      task: what was trained.
      learning_rate: the step size used.
      x, y: training points [n].
      grid: inputs [points] at which outputs are compared.
      truth: noiseless target [points] on the grid.
      finite, infinite: the two ensembles.
    """

    task: RegressionTask
    learning_rate: float
    x: Array
    y: Array
    grid: Array
    truth: Array
    finite: Curves
    infinite: Curves

    @property
    def deviations(self) -> dict[str, float]:
        """The largest distance of the two means, in standard errors of the finite mean.

        One number each for the outputs, the training loss and the test loss, over all times (and
        the whole grid).
        """
        root = np.sqrt(self.task.members)
        pairs = {
            "outputs": (self.finite.mean - self.infinite.mean, self.finite.std),
            "training loss": (self.finite.train - self.infinite.train, self.finite.train_std),
            "test loss": (self.finite.test - self.infinite.test, self.finite.test_std),
        }
        return {key: float(np.max(np.abs(d) / (s / root))) for key, (d, s) in pairs.items()}


def target(x: Array) -> Array:
    """The noiseless target of the task: a sine whose amplitude grows with the input."""
    return (0.4 + 0.6 * x) * np.sin(5.0 * x)


def task_network(width: int) -> Any:
    """A fully-connected network with two hidden layers of error functions and one output."""
    return stax.serial(
        stax.Dense(width, W_std=3.0, b_std=1.0),
        stax.Erf(),
        stax.Dense(width, W_std=1.5, b_std=0.1),
        stax.Erf(),
        stax.Dense(1, W_std=1.0, b_std=0.1),
    )


def compare_ensembles(
    task: RegressionTask, *, seed: int = 0, progress: Callable[[int], object] = lambda _: None
) -> RegressionResult:
    """A finite ensemble trained by gradient descent, and the infinite one in closed form.

    Both start from the same distribution over networks, see the same training points and the same
    learning rate, and are asked the same questions at the same times.

    Args:
      task: sizes, noise and times.
      seed: draws the noise and the finite networks.
      progress: called with the number of finite networks done, as they are done.
    """
    rng = np.random.default_rng(seed)
    x = np.linspace(-1, 1, task.points)
    y = target(x) + task.noise * rng.standard_normal(x.shape)
    x_test = rng.uniform(-1, 1, 40)
    y_test = target(x_test) + task.noise * rng.standard_normal(x_test.shape)
    grid = np.linspace(-1.4, 1.4, 57)
    columns = [jnp.asarray(a, jnp.float32)[:, None] for a in (x, y, x_test, y_test, grid)]

    net = task_network(task.width)
    ntk = net.kernel_fn(columns[0], None, "ntk")
    learning_rate = task.speed * float(max_learning_rate(ntk, y_train_size=y.size))
    return RegressionResult(
        task=task,
        learning_rate=learning_rate,
        x=x,
        y=y,
        grid=grid,
        truth=target(grid),
        finite=_finite_curves(task, net, learning_rate, columns, seed, progress),
        infinite=_infinite_curves(task, net, learning_rate, columns),
    )


def _finite_curves(
    task: RegressionTask,
    net: Any,
    learning_rate: float,
    columns: list[jax.Array],
    seed: int,
    progress: Callable[[int], object],
) -> Curves:
    """Means and standard deviations over trained finite networks."""
    x, y, x_test, y_test, grid = columns
    outputs = train_ensemble(
        net,
        jax.random.PRNGKey(seed),
        x,
        y,
        jnp.concatenate([x, x_test, grid]),
        learning_rate=learning_rate,
        steps=task.steps,
        members=task.members,
        chunk=task.chunk,
        progress=progress,
    ).outputs[..., 0]
    on_train, on_test, on_grid = np.split(outputs, [len(x), len(x) + len(x_test)], axis=-1)

    def moments(a: Array) -> tuple[Array, Array]:
        return a.mean(axis=0), a.std(axis=0, ddof=1)

    return Curves(
        *moments(on_grid),
        *moments(0.5 * np.mean((on_train - np.asarray(y)[:, 0]) ** 2, axis=-1)),
        *moments(0.5 * np.mean((on_test - np.asarray(y_test)[:, 0]) ** 2, axis=-1)),
    )


def _infinite_curves(
    task: RegressionTask, net: Any, learning_rate: float, columns: list[jax.Array]
) -> Curves:
    """Means and standard deviations of the infinite ensemble, in closed form."""
    x, y, x_test, y_test, grid = columns
    ensemble = InfiniteEnsemble(
        net, x, y, inference="gradient_descent", learning_rate=learning_rate
    )
    rows = []
    for t in task.steps:
        now = ensemble.at(t)
        rows.append(
            (now.mean(grid)[:, 0], now.std(grid)[:, 0], *now.loss(x, y), *now.loss(x_test, y_test))
        )
    return Curves(
        *(np.stack([np.asarray(a) for a in column]) for column in zip(*rows, strict=True))
    )
