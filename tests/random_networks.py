"""Random networks of mixed activations, and inputs of which some are close to each other."""

from __future__ import annotations

import numpy as np

from widelimit import stax
from widelimit.layers.base import Layer

ACTIVATIONS: tuple[Layer, ...] = (
    stax.Relu(),
    stax.ABRelu(-0.5, 1.3),
    stax.LeakyRelu(0.2),
    stax.Abs(),
    stax.Sign(),
    stax.Erf(),
    stax.Gelu(),
    stax.Sin(),
    stax.Cos(),
    stax.Rbf(0.7),
    stax.Gaussian(),
    stax.Exp(0.3, 0.3),
    stax.ExpNormalized(),
    stax.Sigmoid_like(),
    stax.Tanh(),
    stax.Gabor(),
)


def random_network(rng: np.random.Generator, convolutional: bool) -> Layer:
    """Returns a network of 2 to 6 layers with weights, some in residual blocks or before pools."""

    def affine() -> Layer:
        w, b = rng.uniform(0.5, 2.0), rng.uniform(0, 0.6)
        padding = "VALID" if rng.random() < 0.2 else "SAME"
        return stax.Conv(1, (3, 3), None, padding, w, b) if convolutional else stax.Dense(1, w, b)

    def activation() -> Layer:
        return ACTIVATIONS[rng.integers(len(ACTIVATIONS))]

    layers = [affine()]
    for _ in range(rng.integers(1, 6)):
        kind = rng.random()
        if kind < 0.2:
            same = stax.Conv(1, (3, 3), padding="SAME", W_std=1.1, b_std=0.1)
            branch = stax.serial(activation(), same if convolutional else stax.Dense(1, 1.1, 0.1))
            both = stax.parallel(branch, stax.Identity())
            layers.append(stax.serial(stax.FanOut(2), both, stax.FanInSum()))
        elif kind < 0.35 and convolutional:
            layers += [activation(), stax.AvgPool((2, 2), padding="SAME"), affine()]
        else:
            layers += [activation(), affine()]
    layers.append(activation())
    if convolutional:
        layers.append(stax.GlobalAvgPool() if rng.random() < 0.5 else stax.Flatten())
    return stax.serial(*layers, stax.Dense(1, 1.0, 0.1))


def close_inputs(rng: np.random.Generator, convolutional: bool) -> np.ndarray:
    """Returns inputs in float32: random ones, copies, near copies, multiples, zeros."""
    shape = (8, 8, 3) if convolutional else (6,)
    x = rng.standard_normal((4, *shape))
    noise = rng.standard_normal((2, *shape))
    near = [x[0], x[1] + 1e-4 * noise[0], x[1] + 1e-7 * noise[1], x[2] * (1 + 1e-5), 3 * x[2]]
    scale = 10 ** rng.uniform(-3, 2) if rng.random() < 0.5 else 1.0
    return (scale * np.stack([*x, *near, np.zeros(shape), -x[3]])).astype(np.float32)
