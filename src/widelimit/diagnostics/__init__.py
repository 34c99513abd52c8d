"""Diagnostics of lazy training: the change of the tangent kernel, and the linearisation gap.

Everything here takes a function `f(params, x)` of trees of arrays, or kernels as arrays.
"""

from widelimit.diagnostics.curvature import RelativeScale as RelativeScale
from widelimit.diagnostics.curvature import relative_scale as relative_scale
from widelimit.diagnostics.movement import Gap as Gap
from widelimit.diagnostics.movement import linearization_gap as linearization_gap
from widelimit.diagnostics.movement import parameter_movement as parameter_movement
from widelimit.diagnostics.run import Report as Report
from widelimit.diagnostics.run import report as report
from widelimit.diagnostics.similarity import effective_rank as effective_rank
from widelimit.diagnostics.similarity import kernel_alignment as kernel_alignment
from widelimit.diagnostics.similarity import kernel_drift as kernel_drift
from widelimit.diagnostics.similarity import target_alignment as target_alignment

linearisation_gap = linearization_gap  # its earlier name
