"""Bayesian optimisation with an infinite network as the surrogate, by BoTorch.

The minimum of Branin's function is searched for by expected improvement. PyTorch trains the
standard deviations of weights and biases and the length scales, with derivatives that JAX computes.
Run it with `python -m examples.bayesian_optimisation`; it needs the extra `gpytorch`, and botorch.
"""

import math
import warnings

import gpytorch
import torch
from botorch.acquisition import LogExpectedImprovement
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.models.transforms import Standardize
from botorch.optim import optimize_acqf

from widelimit.estimators import GPyTorchKernel

LEAST = 0.397887  # of Branin's function


def branin(x: torch.Tensor) -> torch.Tensor:
    """Values [n, 1] at x [n, 2] in the unit square."""
    a, b = 15 * x[:, :1] - 5, 15 * x[:, 1:]
    bowl = b - 5.1 / (4 * math.pi**2) * a**2 + 5 / math.pi * a - 6
    return bowl**2 + 10 * (1 - 1 / (8 * math.pi)) * a.cos() + 10


def surrogate(x: torch.Tensor, y: torch.Tensor) -> SingleTaskGP:
    """A Gaussian process with the NNGP kernel, fitted to the values so far."""
    kernel = GPyTorchKernel(depth=1, activation="erf", W_std=1.5, b_std=0.5, ard_num_dims=2)
    scaled = gpytorch.kernels.ScaleKernel(kernel)
    model = SingleTaskGP(x, y, covar_module=scaled, outcome_transform=Standardize(1))
    fit_gpytorch_mll(gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model))
    return model


def main(start: int = 8, steps: int = 8) -> float:
    torch.manual_seed(0)
    warnings.filterwarnings("ignore", module="botorch|linear_operator")
    square = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    x = torch.rand(start, 2, dtype=torch.float64)
    for step in range(steps):
        y = -branin(x)
        acquisition = LogExpectedImprovement(surrogate(2 * x - 1, y), y.max())
        candidate, _ = optimize_acqf(
            acquisition, 2 * square - 1, q=1, num_restarts=4, raw_samples=64
        )
        x = torch.cat([x, (candidate + 1) / 2])
        print(f"step {step + 1}: least value {branin(x).min():.4f}, of {LEAST:.4f}")
    return float(branin(x).min())


if __name__ == "__main__":
    main()
