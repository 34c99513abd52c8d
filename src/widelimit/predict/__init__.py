"""Predictions of infinitely wide networks: posteriors, training dynamics, learning rates.

Everything here works on kernels as arrays, or on a callable `kernel_fn(x1, x2, get, **kwargs)`.
Systems are solved in float64 for every dtype of the kernel, and results have that dtype.
"""

from widelimit.predict.discrete import (
    discrete_gradient_descent_mse as discrete_gradient_descent_mse,
)
from widelimit.predict.discrete import (
    discrete_gradient_descent_mse_ensemble as discrete_gradient_descent_mse_ensemble,
)
from widelimit.predict.ensemble import (
    gradient_descent_mse_ensemble as gradient_descent_mse_ensemble,
)
from widelimit.predict.equation import ODEState as ODEState
from widelimit.predict.gradient_flow import gradient_descent_mse as gradient_descent_mse
from widelimit.predict.learning_rate import max_learning_rate as max_learning_rate
from widelimit.predict.ode import gradient_descent as gradient_descent
from widelimit.predict.posterior import Gaussian as Gaussian
from widelimit.predict.posterior import gp_inference as gp_inference
from widelimit.predict.solvers.base import Solver as Solver
from widelimit.predict.solvers.cholesky import Cholesky as Cholesky
from widelimit.predict.solvers.conjugate_gradients import ConjugateGradients as ConjugateGradients
from widelimit.predict.solvers.eigenbasis import Spectral as Spectral
