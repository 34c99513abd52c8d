"""Kernel matrices on disk, filled by one machine or many, and solves that never hold the matrix.

Needs the extra `scale` (zarr; dask and distributed for engines of several processes).
"""

from widelimit.scale.dynamics import DynamicsResult as DynamicsResult
from widelimit.scale.dynamics import dynamics as dynamics
from widelimit.scale.ensemble import StoredEnsemble as StoredEnsemble
from widelimit.scale.evidence import Determinant as Determinant
from widelimit.scale.evidence import LikelihoodEstimate as LikelihoodEstimate
from widelimit.scale.evidence import estimate_determinant as estimate_determinant
from widelimit.scale.fill import FillReport as FillReport
from widelimit.scale.krylov import Krylov as Krylov
from widelimit.scale.nystrom import NystromRegression as NystromRegression
from widelimit.scale.nystrom_preconditioner import NystromPreconditioner as NystromPreconditioner
from widelimit.scale.operator import DenseOperator as DenseOperator
from widelimit.scale.operator import Operator as Operator
from widelimit.scale.operator import ShardedOperator as ShardedOperator
from widelimit.scale.operator import as_scipy as as_scipy
from widelimit.scale.pcg import PCGResult as PCGResult
from widelimit.scale.pcg import solve as solve
from widelimit.scale.plan import StorePlan as StorePlan
from widelimit.scale.store import Store as Store
from widelimit.scale.store import gram as gram
from widelimit.scale.store import open_store as open_store
from widelimit.scale.verify import VerifyReport as VerifyReport
