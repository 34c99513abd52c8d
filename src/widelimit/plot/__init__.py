"""Figures of ensembles, losses, kernels, class probabilities and finite networks beside the limit.

Every function draws into `ax`, or into a new figure of pyplot without one, and returns the artists
that it drew. People with colour-blindness can tell the colours apart, and figures can be read at
half their size. matplotlib is imported only on use; `pip install "widelimit[plots]"` installs it.
"""

from widelimit.plot.bands import Band as Band
from widelimit.plot.bands import dotted_band as dotted_band
from widelimit.plot.bands import filled_band as filled_band
from widelimit.plot.calibration import Reliability as Reliability
from widelimit.plot.calibration import reliability as reliability
from widelimit.plot.calibration import reliability_bins as reliability_bins
from widelimit.plot.looks import new_figure as new_figure
from widelimit.plot.looks import save_figure as save_figure
from widelimit.plot.looks import style as style
from widelimit.plot.matrices import KernelFigure as KernelFigure
from widelimit.plot.matrices import kernel as kernel
from widelimit.plot.matrices import spectrum as spectrum
from widelimit.plot.movement import Drift as Drift
from widelimit.plot.movement import drift as drift
from widelimit.plot.outputs import EnsemblePanel as EnsemblePanel
from widelimit.plot.outputs import ensemble as ensemble
from widelimit.plot.training import losses as losses
