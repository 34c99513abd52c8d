"""What the fused engine knows of an activation: one class, found by the class of the layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from widelimit.covariance.signal import Signal
from widelimit.layers.base import Layer


class RefusedError(Exception):
    """A network that the fused engine cannot run; the message says why."""


class FusedActivation:
    """How the fused engine runs an activation. Subclass it, and name the classes of layers.

    `record`, `pair` and `own` are static methods of numbers; numba compiles them into loops. There
    `p` holds what `numbers` returns, in the working dtype, and `cst` the constants of
    `engines/fused/constants.py`. A literal such as 0.5 is float64, and makes the loop so: put it
    among the numbers. Their arguments and results::

        numbers(layer)              the hyper-parameters, at most 6 floats
        record(q, p, cst)           a tuple of `planes` numbers, from the variance q at a position
        pair(c, one, two, p, cst)   K' and the factor of T (E[f f] and E[f' f']), from the
                                    covariance c and the recorded numbers of both ends
        own(q, p, cst)              the same of a position with itself, where `pair` has a kink or
                                    cancels; None leaves that to `pair`

    Attributes:
      name: names the class; set when it is defined.
      layers: the classes of layers that it runs.
      planes: how many numbers are recorded, 1 or 2.
      smooth: whether it depends on differences of covariances that float32 loses where variances
        are large; the network is then computed in float64.
      masked: whether K' or the factor may differ from zero, or be NaN, where c and the recorded
        numbers are zero, as they are outside of images.
      needs_gaussian: whether its input must be Gaussian.
      keeps_gaussian: whether its output is as Gaussian as its input.
      loops: the module of loops that are no formulas: see `series_loops`. Formulas make the others.
      counts: whether it records terms, as many as count, of variances up to a bound.
      pair_gap: of (c, gap, one, two, p, cst), returns K', the factor of T and the gap behind;
        None drops the gap.
      gap: of (c, one, two, cst), returns the gap as the difference that it stands for, where the
        layers before have dropped it. Goes with `pair_gap`.
      partials: of (c, one, two, p, cst), returns six derivatives, of K' by c, by the variance q1
        and by q2, and then those of the factor of T; finite for all inputs. Without it plain JAX
        differentiates networks that hold the activation.
      partials_gap: the same of (c, gap, one, two, p, cst), still at fixed variances: the gap is
        read for its digits. None where `partials` loses none.
    """

    name: ClassVar[str]
    layers: ClassVar[tuple[type[Layer], ...]]
    planes: ClassVar[int] = 1
    smooth: ClassVar[bool] = True
    masked: ClassVar[bool] = True
    needs_gaussian: ClassVar[bool] = True
    keeps_gaussian: ClassVar[bool] = False

    numbers: ClassVar[Callable[..., tuple[float, ...]]]
    record: ClassVar[Callable[..., Any]]
    pair: ClassVar[Callable[..., Any]]
    loops: ClassVar[str | None] = None
    counts: ClassVar[bool] = False
    own: ClassVar[Callable[..., Any] | None] = None
    pair_gap: ClassVar[Callable[..., Any] | None] = None
    gap: ClassVar[Callable[..., Any] | None] = None
    partials: ClassVar[Callable[..., Any] | None] = None
    partials_gap: ClassVar[Callable[..., Any] | None] = None

    @classmethod
    def planes_of(cls, layer: Any) -> int:
        """Returns how many numbers are recorded at most."""
        return cls.planes

    @classmethod
    def table(cls, layer: Any, single: bool) -> Float[np.ndarray, "entries"] | None:
        """Returns numbers of any length, which take the place of `numbers`; None for these.

        Args:
          layer: the layer.
          single: whether results are rounded to float32.
        """
        return None

    @classmethod
    def counted(cls, table: Float[np.ndarray, "entries"]) -> int:
        """Returns how many of the recorded numbers are counted by the first one; 0 for none."""
        return 0

    @classmethod
    def averages(cls, layer: Layer, signal: Signal) -> bool:
        """Returns whether variances are averaged over positions before they are recorded."""
        return False

    def __init_subclass__(cls) -> None:
        """Registers the activation.

        Raises:
          TypeError: a part is missing, or a layer has another record.
        """
        parts = ("layers", "numbers") + (("record", "pair") if cls.loops is None else ())
        missing = [n for n in parts if not hasattr(cls, n)]
        if (cls.pair_gap is None) != (cls.gap is None):
            missing.append("gap" if cls.gap is None else "pair_gap")
        if missing:
            raise TypeError(f"expected {cls.__name__} with {', '.join(missing)}, got none")
        if cls.planes not in (1, 2):
            raise TypeError(f"expected {cls.__name__} with 1 or 2 planes, got {cls.planes}")
        name = f"{cls.__module__}.{cls.__qualname__}"
        for layer in cls.layers:
            known = _of_layers.get(layer)
            if known is not None and known.name.partition("#")[0] != name:
                raise TypeError(
                    f"expected one fused activation for {layer.__name__}, got {known.name} and "
                    f"{name}"
                )
        # A class outside of the package may be defined again, with other formulas.
        cls.name = name if name.startswith(_PACKAGE) else f"{name}#{len(_by_name)}"
        _by_name[cls.name] = cls
        _of_layers.update(dict.fromkeys(cls.layers, cls))


_PACKAGE = __name__.partition(".")[0] + "."
_of_layers: dict[type[Layer], type[FusedActivation]] = {}
_by_name: dict[str, type[FusedActivation]] = {}


def activation_of(layer: Layer) -> type[FusedActivation] | None:
    """Returns how a layer is run, None if it is no activation that the fused engine knows."""
    return _of_layers.get(type(layer))


def activation_named(name: str) -> type[FusedActivation]:
    """Returns the activation of a name."""
    return _by_name[name]


def registered() -> int:
    """Returns how many activations have been registered so far."""
    return len(_by_name)
