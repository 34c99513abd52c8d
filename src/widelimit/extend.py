"""The parts from which you make your own activations, layers, combinators, engines and solvers.

docs/extending.md has a recipe for each.
"""

from widelimit._pytree import pytree as pytree
from widelimit._pytree import static as static
from widelimit.activations import Dual as Dual
from widelimit.covariance.branches import independent_sum as independent_sum
from widelimit.covariance.covariances import Covariances as Covariances
from widelimit.covariance.linear_maps import axis_maps as axis_maps
from widelimit.covariance.linear_maps import take_positions as take_positions
from widelimit.covariance.offsets import Need as Need
from widelimit.covariance.offsets import Offsets as Offsets
from widelimit.covariance.signal import Signal as Signal
from widelimit.covariance.stencil import Stencil as Stencil
from widelimit.covariance.stencil import index_stencil as index_stencil
from widelimit.covariance.stencil import needed_offsets as needed_offsets
from widelimit.covariance.stencil import window_stencil as window_stencil
from widelimit.covariance.verbs import Affine as Affine
from widelimit.covariance.verbs import ElementwiseRule as ElementwiseRule
from widelimit.covariance.verbs import affine as affine
from widelimit.covariance.verbs import elementwise as elementwise
from widelimit.covariance.verbs import normalise as normalise
from widelimit.covariance.verbs import stencils as stencils
from widelimit.engines.engine import Engine as Engine
from widelimit.engines.fused.activations.base import FusedActivation as FusedActivation
from widelimit.engines.request import Request as Request
from widelimit.layers.base import Child as Child
from widelimit.layers.base import Layer as Layer
from widelimit.layers.base import Site as Site
from widelimit.layers.context import Context as Context
from widelimit.layers.elementwise import ElementwiseLayer as ElementwiseLayer
from widelimit.layers.step import step as step
from widelimit.predict.solvers.base import Solver as Solver
from widelimit.predict.solvers.base import System as System
