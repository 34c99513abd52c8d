"""Decorators by which authors of layers describe their functions: requires, supports_masking."""

from __future__ import annotations

import dataclasses
import enum
import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import PyTree

from widelimit.kernel.kernel import Kernel
from widelimit.typing import Function, Masks, Shapes


class Bool(enum.IntEnum):
    """Three-valued truth: NO, MAYBE, YES; `a & b` returns the smaller."""

    NO = 0
    MAYBE = 1
    YES = 2

    def __and__(self, other: int) -> Bool:
        return Bool(min(self, other))

    __rand__ = __and__


@dataclasses.dataclass(frozen=True)
class Diagonal:
    """The pairs of positions that a layer reads and produces.

    `a >> b` (or `b << a`) returns the value for a followed by b, `a & b` for both side by side. It
    is true where equal positions of the input are enough for the network.

    Attributes:
      input: whether equal positions of the input are enough for those of the output; MAYBE if they
        are only where unequal positions are uncorrelated.
      output: whether the output has equal positions only: YES where the layer removes the
        spatial axes, MAYBE where it makes unequal positions uncorrelated.
    """

    input: Bool = Bool.YES
    output: Bool = Bool.NO

    def __rshift__(self, other: Diagonal) -> Diagonal:
        if self.output == Bool.YES:
            return self
        if self.output > Bool.NO and other.input > Bool.NO:
            return Diagonal(self.input, other.output)
        if self.output == Bool.NO and other.input < Bool.YES:
            return Diagonal(Bool.NO, other.output)
        return Diagonal(self.input & other.input, other.output)

    def __lshift__(self, other: Diagonal) -> Diagonal:
        return other >> self

    def __and__(self, other: Diagonal) -> Diagonal:
        return Diagonal(self.input & other.input, self.output & other.output)

    def __bool__(self) -> bool:
        return self.input == Bool.YES and self.output > Bool.NO


@dataclasses.dataclass(frozen=True)
class Requirements:
    """The requirements of a function from Kernel to Kernel on its argument.

    Attributes:
      batch_axis: axis of the samples, None for any.
      channel_axis: axis of the channels, None for any.
      diagonal_batch: False where covariances between all samples are read.
      diagonal_spatial: which pairs of positions are read; None if unknown.
    """

    batch_axis: int | None = None
    channel_axis: int | None = None
    diagonal_batch: bool = True
    diagonal_spatial: Diagonal | None = None

    @staticmethod
    def of(kernel_fn: Function) -> Requirements:
        """Returns the requirements that `requires` attached to a function."""
        return getattr(kernel_fn, "requirements", Requirements())

    @property
    def equal_positions(self) -> bool:
        """Whether equal positions of the input are enough for those of the output."""
        return self.diagonal_spatial is not None and self.diagonal_spatial.input == Bool.YES

    def check(self, kernel: object) -> None:
        """Raises unless a Kernel meets the requirements."""
        if not isinstance(kernel, Kernel):
            raise TypeError(f"expected a Kernel, got {type(kernel).__name__}")
        ndim = len(kernel.shape1)
        for name in ("batch_axis", "channel_axis"):
            stated, actual = getattr(self, name), getattr(kernel, name)
            if stated is not None and (not -ndim <= stated < ndim or stated % ndim != actual):
                raise ValueError(f"expected a Kernel with {name}={stated}, got {actual}")
        if kernel.diagonal_batch and not self.diagonal_batch:
            raise ValueError(
                "expected a Kernel with covariances between all samples (diagonal_batch=False), "
                "got one of equal samples only"
            )
        spatial = self.diagonal_spatial
        if kernel.diagonal_spatial and spatial is not None and spatial.input == Bool.NO:
            raise ValueError(
                "expected a Kernel with all pairs of positions (diagonal_spatial=False), got one "
                "of equal positions only"
            )


def requires(**reqs: Any) -> Callable[[Function], Function]:
    """Returns a decorator that declares the requirements of a function from Kernel to Kernel.

    Every call is checked. A network with such a layer also takes its input axes from `batch_axis`
    and `channel_axis`.

    Args:
      **reqs: `batch_axis` and `channel_axis`, ints or None; `diagonal_batch`, False where
        covariances between all samples are read; `diagonal_spatial`, a `Diagonal`: with
        `input=Bool.YES` the function also takes Kernels of equal positions only, and gets those
        where no other positions are needed. Other keywords are ignored.

    Raises:
      TypeError: a value of another type.
    """
    for name in ("batch_axis", "channel_axis"):
        if reqs.get(name) is not None:
            reqs[name] = operator.index(reqs[name])
    for name, kind in (("diagonal_batch", bool), ("diagonal_spatial", Diagonal)):
        if name in reqs and not isinstance(reqs[name], kind):
            raise TypeError(f"expected a {kind.__name__} for {name}, got {reqs[name]!r}")
    names = {field.name for field in dataclasses.fields(Requirements)}
    stated = Requirements(**{name: value for name, value in reqs.items() if name in names})

    def decorate(kernel_fn: Function) -> Function:
        @functools.wraps(kernel_fn)
        def checked(k: PyTree[Kernel], **kwargs: object) -> PyTree[Kernel]:
            for kernel in jax.tree.leaves(k, is_leaf=lambda part: isinstance(part, Kernel)):
                stated.check(kernel)
            return kernel_fn(k, **kwargs)

        checked.requirements = stated  # type: ignore[attr-defined]
        return checked

    return decorate


def supports_masking(remask_kernel: bool) -> Callable[[Function], Function]:
    """Returns a decorator that lets masks through a layer made of functions; goes below `layer`.

    The mask passes the layer unchanged, or becomes the result of a fourth function
    `mask_fn(mask, input_shape)`. `apply_fn` gets inputs that are zero where they are masked, and
    the mask as the keyword `mask`.

    Args:
      remask_kernel: whether the layer makes covariances of masked positions that are not zero.
        For compatibility only: they are set to zero in any case.

    Raises:
      TypeError: `remask_kernel` is not a bool.
    """
    if not isinstance(remask_kernel, bool):
        raise TypeError(
            f"expected @supports_masking(remask_kernel=True) or False, got {remask_kernel!r}"
        )

    def decorate(layer_fn: Function) -> Function:
        @functools.wraps(layer_fn)
        def masked(*args: object, **kwargs: object) -> tuple[Function, ...]:
            functions = tuple(layer_fn(*args, **kwargs))
            return functions if len(functions) > 3 else (*functions, _same_mask)

        return masked

    return decorate


def _same_mask(mask: Masks, _: Shapes) -> Masks:
    return mask
