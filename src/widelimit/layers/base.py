"""The contract of a layer, and its place in a network."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import ClassVar, NamedTuple

import jax
from jaxtyping import PyTree

from widelimit._pytree import as_leaf, data_fields, is_concrete, pytree, static
from widelimit.covariance.signal import Signal
from widelimit.kernel.masking import hide
from widelimit.layers.context import Context
from widelimit.layers.shapes import check_one_input
from widelimit.typing import (
    Arrays,
    Covs,
    Function,
    Key,
    Masks,
    Moduli,
    Needs,
    Params,
    Pattern,
    Shapes,
    Signals,
)


@pytree
class Site:
    """A place in a network, described for the layer at that place.

    Lists of branches are tuples of signals, needs and masks.

    Attributes:
      masks_in: pair of masks (x1, x2) of the layer's input, in the axes of `signal_in`.
      masks_out: pair of masks of its output.
      patterns: pair of graph patterns (x1, x2).
      children: the sites of the layers inside.
      inside: a `Child` for each of these, which describes the layer and its input.
      signal_in: shapes of its input.
      signal_out: shapes of its output.
      need_in: offsets stored at its input.
      need_out: offsets stored at its output.
      mixes: whether the layer, or one inside it, moves or combines samples of a batch.
      pairs: whether one of them needs the covariances between all samples of a batch.
      path: where in the network, for messages, e.g. `serial[3].Relu`.
    """

    masks_in: Masks
    masks_out: Masks
    patterns: Pattern
    children: tuple[Site, ...]
    signal_in: Signals = static()
    signal_out: Signals = static()
    need_in: Needs = static()
    need_out: Needs = static()
    mixes: bool = static()
    pairs: bool = static()
    path: str = static()
    inside: tuple[Child, ...] = static(default=())

    def side(self, index: int) -> Site:
        """Returns the site of one batch with itself: of x1 (0) or x2 (1).

        The layer must have no layers inside.

        Args:
          index: the side.
        """
        masks_in, masks_out = self.masks_in[index], self.masks_out[index]
        return dataclasses.replace(
            self,
            masks_in=(masks_in, masks_in),
            masks_out=(masks_out, masks_out),
            patterns=(self.patterns[index],) * 2,
            signal_in=side_signal(self.signal_in, index),
            signal_out=side_signal(self.signal_out, index),
        )


def side_signal(signal: Signals, index: int) -> Signals:
    """Returns the description of one batch with itself."""
    if not isinstance(signal, Signal):
        return tuple(side_signal(s, index) for s in signal)
    shape = (signal.shape1, signal.shape2)[index]
    return dataclasses.replace(signal, shape1=shape, shape2=shape)


class Child(NamedTuple):
    """A layer inside another one, and its input.

    Attributes:
      place: which of `inner_layers`.
      signal: description of its input.
      need: offsets needed at its output.
      reads: the earlier child whose output it reads; None for the input of the layer around it.
      branch: the branch that it reads of that; None for all of it.
      key: the name of the layer in paths.
    """

    place: int
    signal: Signals
    need: Needs
    reads: int | None = None
    branch: int | None = None
    key: int | str = 0


@pytree
class Layer:
    """Base class of all layers and networks.

    A layer is immutable. Traced hyper-parameters are data fields, shapes and flags are `static`
    fields, so a network can be an argument of `jax.jit` and `jax.grad`. It unpacks as
    `init_fn, apply_fn, kernel_fn = layer`.

    A new layer overrides `propagate`, and `init`, `apply`, `output_shape`, `output_axes`, `mask`
    and `needs` as far as the defaults (no parameters, identity, same shape) do not hold.
    """

    alias: ClassVar[str] = ""
    # Only hands covariances on, to layers inside or unchanged: nothing is compiled.
    structural: ClassVar[bool] = False
    # Calls functions whose effect is unknown beforehand: nothing is compiled.
    called_anew: ClassVar[bool] = False
    # Classes of init_fn, apply_fn and kernel_fn; set by `network.py`.
    functions: ClassVar[tuple[Callable[[Layer], Function], ...]] = ()

    def __post_init__(self) -> None:
        for name in data_fields(self):
            object.__setattr__(self, name, as_leaf(getattr(self, name)))

    def __getstate__(self) -> dict[str, object]:
        """Returns the fields, without the values cached between calls."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def as_now(self, snapshot: Function) -> Layer:
        """Returns the layer with the functions that it holds as snapshots (see `traced.py`).

        Args:
          snapshot: returns the snapshot of an elementwise function; its second argument is the
            number of arguments of that function, 1 by default.
        """
        return self

    # The finite layer.

    def init(self, key: Key, shape: Shapes) -> Params:
        """Returns random parameters of the finite layer.

        Args:
          key: random key.
          shape: shape of the input, or a tuple of shapes for branches.
        """
        return ()

    def apply(self, params: Params, x: Arrays, context: Context) -> Arrays:
        """Returns the output of the finite layer.

        Args:
          params: parameters of the layer.
          x: input, zero where it is masked; a list or tuple of branches.
          context: random key, mask and graph pattern. A combinator hands it on to layers inside,
            or one of its own for each.
        """
        return x

    def output_shape(self, shape: Shapes) -> Shapes:
        """Returns the shape of the output.

        Args:
          shape: shape of the input, or a tuple of shapes for branches.

        Raises:
          ValueError: the shape does not fit.
        """
        check_one_input(shape)
        return shape

    def mask(self, mask: Masks, shape: Shapes) -> Masks:
        """Returns the mask of the output.

        Args:
          mask: mask of the input.
          shape: shape of the input.
        """
        return mask

    # The infinite layer.

    def input_axes(self) -> tuple[int, int] | None:
        """Returns the batch and channel axis that the layer expects, or None for any."""
        return None

    def output_axes(self, signal: Signal) -> tuple[int, int]:
        """Returns the batch and channel axis of the output.

        Args:
          signal: description of the input.
        """
        return signal.batch_axis, signal.channel_axis

    def output_signal(self, signal: Signals) -> Signals:
        """Returns the description of the output.

        Args:
          signal: description of the input.
        """
        if not isinstance(signal, Signal):
            check_one_input(signal)
        self._check_axes(signal)
        shapes = self.output_shape(signal.shape1), self.output_shape(signal.shape2)
        return Signal(*shapes, *self.output_axes(signal))

    def needs(self, need: Needs, signal: Signals) -> Needs:
        """Returns the offsets needed at the input.

        Args:
          need: offsets needed at the output.
          signal: description of the input.
        """
        return need

    def moduli(self, moduli: Moduli, signal: Signals) -> Moduli:
        """Returns the modulus of the folded offsets per spatial axis of the output.

        With this modulus, folded rows keep their places through the layer; None where no modulus
        does that.

        Args:
          moduli: moduli at the input, or a tuple of them for branches.
          signal: description of the input.
        """
        out = self.output_signal(signal)
        while not isinstance(signal, Signal):
            signal, moduli = signal[0], moduli[0]
        return moduli if out.spatial == signal.spatial else None

    def children(self, signal: Signals, need: Needs) -> tuple[Child, ...]:
        """Returns the layers inside, in the order in which `propagate` runs `step` on them.

        Combinators override it; the sites of these layers are `site.children`. See also `join`.

        Args:
          signal: description of the input.
          need: offsets needed at the output.
        """
        return ()

    def join(self, inside: list[PyTree]) -> PyTree:
        """Returns a property of the output, from that property of the outputs of the layers inside.

        For combinators that hand covariances on: the property of the last layer, or a tuple for
        branches. None means that the output is computed by the layer itself.

        Args:
          inside: the property of the output of each layer inside.
        """
        return None

    def mixes_samples(self, signal: Signals) -> bool:
        """Returns whether the layer moves or combines samples, so that batches cannot be split.

        Args:
          signal: description of the input.
        """
        return self.pairs_samples(signal)

    def pairs_samples(self, signal: Signals) -> bool:
        """Returns whether self-covariances of the output need those between different samples.

        The self-covariances from such a layer are replaced by the diagonal of its NNGP.

        Args:
          signal: description of the input.
        """
        return False

    def propagate(self, cov: Covs, site: Site) -> Covs:
        """Returns the covariances of the output from those of the input.

        They may hold more offsets than `site.need_out`, never fewer.

        Args:
          cov: covariances of the input.
          site: place of the layer in the network.
        """
        return cov

    # What the infinite layer costs.

    def operations(self, site: Site) -> int | float | None:
        """Returns the floating-point operations per entry of the output and pair of samples.

        They are those of NNGP and NTK together, counted in the formulas. None: `plan` counts the
        equations of `propagate`.

        Args:
          site: place of the layer in the network.
        """
        return None

    def temporaries(self, site: Site) -> tuple[float, int]:
        """Returns the memory that XLA allocates beside the input and output of `propagate`.

        Args:
          site: place of the layer in the network.

        Returns:
          Copies of the input, and arrays of features: numbers per sample and entry of the input.
        """
        return 0.0, 0

    def _check_axes(self, signal: Signal) -> None:
        axes = self.input_axes()
        if axes is None:
            return
        stated = axes[0] % signal.ndim, axes[1] % signal.ndim
        actual = signal.batch_axis, signal.channel_axis
        if stated != actual:
            raise ValueError(
                f"expected batch and channel axes {stated} as this layer states, got {actual} "
                "from the layers before it or the keywords of kernel_fn"
            )

    # The view as a triple.

    @property
    def name(self) -> str:
        """The constructor's name."""
        return self.alias or type(self).__name__

    @property
    def label(self) -> str:
        """The constructor's name, for messages; `name` may be that of a family, for old scripts."""
        return type(self).__name__

    @property
    def init_fn(self) -> Function:
        """`init_fn(rng, input_shape) -> (output_shape, params)`; see `network.InitFn`."""
        return self.functions[0](self)

    @property
    def apply_fn(self) -> Function:
        """`apply_fn(params, inputs, *, rng=None, ...)`; see `network.ApplyFn`."""
        return self.functions[1](self)

    @property
    def kernel_fn(self) -> Function:
        """`kernel_fn(x1, x2=None, get=None, ...)`; see `network.KernelFn`."""
        return self.functions[2](self)

    def __iter__(self) -> Iterator[Function]:
        yield self.init_fn
        yield self.apply_fn
        yield self.kernel_fn

    def __getitem__(self, index: int | slice) -> Function | tuple[Function, ...]:
        return tuple(self)[index]

    def __len__(self) -> int:
        return 3

    def __repr__(self) -> str:
        return f"{self.label}({', '.join(self._repr_fields())})"

    def _repr_fields(self) -> Iterator[str]:
        """Yields the constructor arguments that differ from their defaults."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            required = field.default is dataclasses.MISSING
            if required or not _same(value, as_leaf(field.default)):
                text = getattr(value, "__name__", None) or _number(value)
                yield text if required else f"{field.name}={text}"


def _same(a: object, b: object) -> bool:
    return a is b or (not isinstance(a, jax.Array) and a == b)


def _number(value: object) -> str:
    """Returns numbers as short text."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, jax.Array) and value.ndim == 0 and is_concrete(value):
        return f"{float(value):.6g}"
    if isinstance(value, jax.Array):
        return f"{value.dtype}{list(value.shape)}" if value.ndim else f"<{value.dtype}>"
    if isinstance(value, tuple):
        return f"({', '.join(map(_number, value))}{',' * (len(value) == 1)})"
    return repr(value)


def run_layer(layer: Layer, params: Params, x: Arrays, context: Context) -> Arrays:
    """Returns `layer.apply` on inputs whose masked entries are set to zero."""
    if context.mask is not None and not isinstance(x, list | tuple):
        x = hide(x, context.mask)
    return layer.apply(params, x, context)


def inner_layers(layer: Layer) -> list[Layer]:
    """Returns the layers that are fields of a layer, or in tuples there, in order."""
    values = (getattr(layer, field.name) for field in dataclasses.fields(layer))
    parts = (value if isinstance(value, tuple) else (value,) for value in values)
    return [part for some in parts for part in some if isinstance(part, Layer)]


@contextlib.contextmanager
def located(prefix: str, layer: Layer | None = None) -> Iterator[None]:
    """Adds the path of a layer to the notes of an error raised inside."""
    try:
        yield
    except Exception as error:
        inner = getattr(error, "widelimit_path", None)
        path = f"{prefix}.{inner or layer.label}" if layer is not None else inner or prefix
        notes = [n for n in getattr(error, "__notes__", []) if n != f"at {inner}"]
        error.__notes__ = notes
        error.widelimit_path = path  # type: ignore[attr-defined]
        error.add_note(f"at {path}")
        raise
