"""Kernel matrices on disk, filled by one machine or many, and solves that never hold the matrix.

Needs the extra `scale` (zarr; dask and distributed for engines of several processes).
"""

from widelimit.scale.fill import FillReport as FillReport
from widelimit.scale.plan import StorePlan as StorePlan
from widelimit.scale.store import Store as Store
from widelimit.scale.store import gram as gram
from widelimit.scale.store import open_store as open_store
from widelimit.scale.verify import VerifyReport as VerifyReport
