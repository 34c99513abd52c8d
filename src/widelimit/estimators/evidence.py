"""Posteriors: what an estimator with a probability model has beside others."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from sklearn.utils.validation import check_is_fitted

if TYPE_CHECKING:
    from widelimit.estimators.training import Ensemble


class EvidenceMixin:
    """An estimator that conditions a prior on data."""

    _names: ClassVar[tuple[str, ...]] = ("nngp",)
    _criteria: ClassVar[tuple[str, ...]] = ("evidence", "leave_one_out")
    _ensemble: Ensemble

    @property
    def log_marginal_likelihood_value_(self) -> float:
        """The log density of the standardised targets under the prior and the noise.

        A sample of weight w counts as w samples.
        """
        check_is_fitted(self)
        return self._ensemble.log_evidence()
