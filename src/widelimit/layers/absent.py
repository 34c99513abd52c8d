"""Layers of other libraries without a kernel: their constructors raise and explain why."""

from __future__ import annotations

from typing import NoReturn


def BatchNorm(*args: object, **kwargs: object) -> NoReturn:
    """Never returns: the kernel of a pair of inputs does not exist with batch normalisation.

    Statistics over a batch tie its samples to one another: the covariance of two outputs depends
    on the whole batch through Gaussian integrals with as many variables as samples, and in
    training every sample moves the outputs of all others. Mean-field theory at initialisation:
    arXiv:1902.08129.

    Raises:
      NotImplementedError: always.
    """
    raise NotImplementedError(
        "BatchNorm has no kernel k(x1, x2): its batch statistics couple samples, so that the "
        "covariance of two outputs, and the training dynamics, depend on the whole batch and have "
        "no closed form (mean-field theory at initialisation: arXiv:1902.08129). Use LayerNorm or "
        "RMSNorm instead"
    )


def MaxPool(*args: object, **kwargs: object) -> NoReturn:
    """Never returns: max pooling has no closed-form kernel.

    The covariance of two maxima is an integral over the correlated Gaussians of both windows at
    once. It is not an elementwise dual of pairs of positions, and has no closed form beyond the
    smallest windows.

    Raises:
      NotImplementedError: always.
    """
    raise NotImplementedError(
        "MaxPool has no closed-form kernel: the covariance of two maxima of correlated Gaussians "
        "is an integral over all positions of both windows, not a function of pairs of positions. "
        "Use AvgPool or SumPool instead"
    )
