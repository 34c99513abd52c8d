"""How often the intervals of exact Bayesian inference hold new observations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from widelimit.demo.calibration import covered
from widelimit.demo.regression import target, task_network
from widelimit.ensemble import InfiniteEnsemble

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
    keys = jax.random.split(jax.random.PRNGKey(seed), study.designs)
    rng = np.random.default_rng(seed)
    fractions: dict[str, list[np.ndarray]] = {"random networks": [], "the demonstration's task": []}
    for key in keys:
        x = rng.uniform(-1, 1, (study.points + study.tests, 1))
        functions = {
            "random networks": _random_functions(net, key, x, study.tasks),
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


def _random_functions(net: Any, key: jax.Array, x: np.ndarray, tasks: int) -> np.ndarray:
    """Outputs [points, tasks] of networks at independent random initialisations."""
    inputs = jnp.asarray(x, jnp.float32)

    def draw(key: jax.Array) -> jax.Array:
        return net.apply_fn(net.init_fn(key, (-1, 1))[1], inputs)[:, 0]

    return np.asarray(jax.vmap(draw, out_axes=1)(jax.random.split(key, tasks)))


def _covered_fractions(net: Any, x: np.ndarray, y: np.ndarray, study: CoverageStudy) -> np.ndarray:
    """Fractions [levels] of held-out observations inside their intervals.

    Tasks that share their inputs share their posterior variance: they are outputs of one fit.
    """
    x = np.asarray(x, np.float32)
    n = study.points
    ensemble = InfiniteEnsemble(
        net, x[:n], np.asarray(y[:n], np.float32), inference="bayes", noise=study.noise
    )
    mean = ensemble.mean(x[n:])
    std = ensemble.std(x[n:], noise=True)
    return np.array([covered(y[n:], mean, std, level).mean() for level in LEVELS])
