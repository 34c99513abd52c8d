"""Trained ensembles: what an estimator that learns in time has beside others."""

from __future__ import annotations

from typing import ClassVar

from widelimit.predict.checks import check_scalar
from widelimit.typing import Scalar


class GradientDescentMixin:
    """An estimator whose networks are trained by gradient descent."""

    _names: ClassVar[tuple[str, ...]] = ("nngp", "ntk")
    _criteria: ClassVar[tuple[str, ...]] = ("leave_one_out",)
    training_time: Scalar | None
    learning_rate: Scalar

    def _steps(self) -> float | None:
        """Returns learning rate times steps, None for infinitely many."""
        check_scalar("learning_rate", self.learning_rate)
        if self.training_time is None:
            return None
        check_scalar("training_time", self.training_time)
        return float(self.learning_rate) * float(self.training_time)
