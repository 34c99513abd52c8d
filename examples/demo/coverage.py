"""How often the intervals of exact Bayesian inference hold new observations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from examples.demo.calibration import covered
from examples.demo.regression import target, task_network
from widelimit.predict.infinite import InfiniteEnsemble

LEVELS = (0.5, 0.9, 0.95)


@dataclass(frozen=True)
class CoverageStudy:
    """How many tasks of which size.

    Attributes:
      designs: independent draws of the inputs.
      tasks: draws of a function, or of the noise alone, for each design.
      points: training points of each task.
      tests: test points of each task.
      noise: standard deviation of the noise, known to the model.
      width: width of the finite networks whose outputs are the functions.
    """

    designs: int = 20
    tasks: int = 25
    points: int = 16
    tests: int = 100
    noise: float = 0.1
    width: int = 512


class Coverage(NamedTuple):
    """Fractions of the observations inside the intervals, and their standard errors.

    Attributes:
      fraction: one fraction [levels] for each level in `LEVELS`.
      error: standard error [levels], from the spread over designs: points that share inputs or a
        function are not independent.
    """

    fraction: np.ndarray
    error: np.ndarray


def measure_coverage(
    study: CoverageStudy, *, seed: int = 0, progress: Callable[[int], object] = lambda _: None
) -> dict[str, Coverage]:
    """Coverage of intervals for new noisy observations on two kinds of one-dimensional tasks.

    "random networks": the unknown function is a finite network at random initialisation, which is
    what the infinite prior says; intervals of the right model hold their nominal fraction. "the
    demonstration's task": one fixed function, of which the prior knows nothing in particular; there
    is no such promise for it, and the numbers say how far it holds.

    Args:
      study: how many tasks of which size.
      seed: draws inputs, functions and noise.
      progress: called with 1 after each design.
    """
    net = task_network(study.width)
    draw = _sampler(net)
    keys = jax.random.split(jax.random.PRNGKey(seed), study.designs)
    rng = np.random.default_rng(seed)
    fractions: dict[str, list[np.ndarray]] = {"random networks": [], "the demonstration's task": []}
    for key in keys:
        x = rng.uniform(-1, 1, (study.points + study.tests, 1)).astype(np.float32)
        functions = {
            "random networks": np.asarray(draw(jax.random.split(key, study.tasks), x)),
            "the demonstration's task": np.repeat(target(x), study.tasks, axis=1),
        }
        for name, truth in functions.items():
            y = truth + study.noise * rng.standard_normal(truth.shape)
            fractions[name].append(_covered_fractions(net, x, y, study))
        progress(1)
    return {
        name: Coverage(np.mean(rows, axis=0), np.std(rows, axis=0, ddof=1) / np.sqrt(len(rows)))
        for name, rows in fractions.items()
    }


def _sampler(net: Any) -> Callable[[jax.Array, np.ndarray], jax.Array]:
    """A function of keys [tasks] and inputs [points, 1]: outputs [points, tasks] of random nets."""

    def draw(key: jax.Array, x: jax.Array) -> jax.Array:
        return net.apply_fn(net.init_fn(key, (-1, 1))[1], x)[:, 0]

    return jax.jit(jax.vmap(draw, in_axes=(0, None), out_axes=1))


def _covered_fractions(net: Any, x: np.ndarray, y: np.ndarray, study: CoverageStudy) -> np.ndarray:
    """Fractions [levels] of held-out observations inside their intervals.

    Tasks that share their inputs share their posterior variance: they are outputs of one fit.
    """
    n = study.points
    ensemble = InfiniteEnsemble(net, x[:n], y[:n], inference="bayes", noise=study.noise)
    mean = ensemble.mean(x[n:])
    std = ensemble.std(x[n:], noise=True)
    return np.array([covered(y[n:], mean, std, level).mean() for level in LEVELS])
