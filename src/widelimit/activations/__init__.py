"""Dual activations: scalar formulas for Gaussian expectations of nonlinearities.

Let `(u, v)` be Gaussian with zero mean and covariance `[[q1, c], [c, q2]]`. The dual of a
nonlinearity `f` is the pair

    k = E[f(u) f(v)],        kdot = E[f'(u) f'(v)],        kdot = dk/dc.

Every function here takes `(c, q1, q2, gap)` followed by the parameters of the nonlinearity and
returns a `Dual`. `c`, `q1` and `q2` are arrays of one rank that broadcast against each other;
`gap` is `(q1 + q2) / 2 - c`, half the mean squared distance, if the caller has it more
accurately than that difference, or None. Results have the broadcast shape and the dtype of `c`.

All functions are pure, and traceable and differentiable in the covariances and in real-valued
parameters. Where a derivative is singular (a kink met by identical or by zero inputs), the
one-sided choice is the finite part: the singular term counts as zero.
"""

from widelimit.activations.base import Dual as Dual
from widelimit.activations.base import determinant as determinant
from widelimit.activations.kinked import abrelu as abrelu
from widelimit.activations.kinked import rectified_monomial as rectified_monomial
from widelimit.activations.kinked import sign as sign
from widelimit.activations.polynomial import hermite as hermite
from widelimit.activations.polynomial import monomial as monomial
from widelimit.activations.polynomial import polynomial as polynomial
from widelimit.activations.smooth import erf as erf
from widelimit.activations.smooth import exp as exp
from widelimit.activations.smooth import exp_normalized as exp_normalized
from widelimit.activations.smooth import gabor as gabor
from widelimit.activations.smooth import gaussian as gaussian
from widelimit.activations.smooth import gelu as gelu
from widelimit.activations.smooth import rbf as rbf
from widelimit.activations.smooth import sin as sin
