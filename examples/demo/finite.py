"""Train an ensemble of finite networks, step by step, to compare with the infinite ensemble."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray


@runtime_checkable
class FiniteNetwork(Protocol):
    """What training needs of a network: its two finite functions."""

    init_fn: Callable[..., Any]
    apply_fn: Callable[..., Any]


class TrainedEnsemble(NamedTuple):
    """Outputs of an ensemble of finite networks along their training.

    Attributes:
      steps: steps [times] of gradient descent after which the outputs were recorded.
      outputs: outputs [members, times, points, channels] on the evaluation points.
    """

    steps: NDArray[np.int64]
    outputs: NDArray[np.float32]


def train_ensemble(
    net: FiniteNetwork,
    key: jax.Array,
    x: jax.Array,
    y: jax.Array,
    x_eval: jax.Array,
    *,
    learning_rate: float,
    steps: Sequence[int],
    members: int,
    chunk: int = 10,
    progress: Callable[[int], object] = lambda _: None,
) -> TrainedEnsemble:
    """Outputs on `x_eval` of `members` networks trained on all of `x`, `y` from independent draws.

    Every member takes real steps of full-batch gradient descent on half the mean squared error over
    all entries of `y`: nothing is linearised, and no step is skipped. Members train in chunks under
    `jax.vmap`: the weights of a small chunk stay in the processor's cache, which is several times
    faster than all members at once.

    Args:
      net: a network with `init_fn` and `apply_fn`.
      key: random key of all initialisations.
      x: training inputs [n, features].
      y: training targets [n, channels].
      x_eval: evaluation inputs [points, features].
      learning_rate: step size; divergence is not checked, as it shows in the outputs.
      steps: increasing numbers of steps after which to record; 0 is the initialisation.
      members: size of the ensemble.
      chunk: members trained at once; has to divide `members`.
      progress: called with the number of members done, after each chunk.

    Raises:
      ValueError: if the steps do not increase from 0 or more, `chunk` does not divide `members`, or
        `y` has not the shape of the outputs.
    """
    recorded = np.asarray(steps)
    if recorded.ndim != 1 or np.any(np.diff(recorded, prepend=-1) <= 0):
        raise ValueError(f"expected increasing steps from 0 or more, got {list(steps)}")
    if members % chunk:
        raise ValueError(f"expected chunk to divide members, got {chunk} and {members}")
    intervals = jnp.asarray(np.diff(recorded, prepend=0))

    def loss(params: Any) -> jax.Array:
        outputs = net.apply_fn(params, x)
        if outputs.shape != y.shape:
            raise ValueError(f"expected y of shape {outputs.shape}, got {y.shape}")
        return 0.5 * jnp.mean((outputs - y) ** 2)

    def step(_: jax.Array | int, params: Any) -> Any:
        slopes = jax.grad(loss)(params)
        return jax.tree.map(lambda p, slope: p - learning_rate * slope, params, slopes)

    def record(params: Any, interval: jax.Array) -> tuple[Any, jax.Array]:
        params = jax.lax.fori_loop(0, interval, step, params)
        return params, net.apply_fn(params, x_eval)

    @jax.jit
    @jax.vmap
    def train(key: jax.Array) -> jax.Array:
        _, params = net.init_fn(key, (-1, *x.shape[1:]))
        return jax.lax.scan(record, params, intervals)[1]

    outputs = []
    for keys in jax.random.split(key, members).reshape(members // chunk, chunk, -1):
        outputs.append(np.asarray(train(keys)))
        progress(chunk)
    return TrainedEnsemble(recorded, np.concatenate(outputs))
