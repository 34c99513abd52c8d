"""The sites of a network, made before the computation: shapes and masks forward, needs backward."""

from __future__ import annotations

from typing import NamedTuple

from widelimit.covariance.offsets import Need, Offsets, fitting_moduli
from widelimit.covariance.signal import Signal, is_branches
from widelimit.layers.base import Child, Layer, Site, inner_layers
from widelimit.layers.combine import Parallel, Repeat, Serial
from widelimit.layers.reshape import Flatten, Identity
from widelimit.typing import GivenAxes, InputAxes, Masks, Moduli, Needs, Pattern, Shapes, Signals


def input_axes(net: Layer, shape: Shapes, chosen: GivenAxes) -> InputAxes:
    """Returns the (batch, channel) axes of the input, or a tuple of such trees for branches.

    Args:
      net: the network; its axes are the default, and 0 and -1 if it has none.
      shape: shape of the input, or a tree of shapes.
      chosen: axes from the keywords of the user. Layers with other axes refuse them later.

    Raises:
      ValueError: an axis out of range.
    """
    if not _is_shape_tree(shape):
        stated = net.input_axes() or (0, -1)
        axes = tuple(s if g is None else g for g, s in zip(chosen, stated, strict=True))
        if len(shape) >= 2 and not all(-len(shape) <= a < len(shape) for a in axes):
            raise ValueError(
                f"expected an input with the batch axis {axes[0]} and the channel axis {axes[1]} "
                f"of its network, got one with {len(shape)} axes, of shape {shape}: "
                "x[..., None] has one channel"
            )
        return tuple(a % max(len(shape), 1) for a in axes)
    match net:
        case Serial(layers=layers) if net.input_axes() is not None:
            first = next(layer for layer in layers if layer.input_axes() is not None)
            return input_axes(first, shape, chosen)
        case Repeat(layer=inner):
            return input_axes(inner, shape, chosen)
        case Parallel(layers=layers) if len(layers) == len(shape):
            pairs = zip(layers, shape, strict=True)
            return tuple(input_axes(layer, part, chosen) for layer, part in pairs)
        case _:
            return tuple(input_axes(net, part, chosen) for part in shape)


def input_signal(shape1: Shapes, shape2: Shapes, axes: InputAxes) -> Signals:
    """Returns the description of inputs of these shapes, or a tuple of such trees.

    Raises:
      ValueError: fewer than two axes, or inputs that differ in more than their batch size.
    """
    if _is_shape_tree(shape1):
        return tuple(input_signal(*parts) for parts in zip(shape1, shape2, axes, strict=True))
    for name, shape in (("x1", shape1), ("x2", shape2)):
        if len(shape) < 2:
            raise ValueError(
                f"expected {name} with a batch and a channel axis (at least 2 axes), got shape "
                f"{shape}"
            )
    batch, channel = axes
    if batch == channel:
        raise ValueError(f"expected different batch and channel axes, got {batch} for both")
    _check_same_shape(shape1, shape2, batch)
    if shape1[channel] == 0:
        raise ValueError(f"expected at least one channel, got shape {shape1}")
    return Signal(shape1, shape2, batch, channel)


def check_same_shapes(net: Layer, shape1: Shapes, shape2: Shapes, chosen: GivenAxes) -> None:
    """Raises unless two inputs of a network have equal shapes up to the number of samples.

    Otherwise a network that begins with Flatten would accept two images of different shapes.

    Args:
      net: the network.
      shape1: shape of x1, or a tree of shapes.
      shape2: shape of x2, or a tree of shapes of the same structure.
      chosen: (batch, channel) axes from the keywords of the user, as for `input_axes`.

    Raises:
      ValueError: they do not agree.
    """

    def check(first: Shapes, second: Shapes, axes: InputAxes) -> None:
        if not _is_shape_tree(first):
            return _check_same_shape(first, second, axes[0])
        for parts in zip(first, second, axes, strict=True):
            check(*parts)

    if shape1 != shape2:
        check(shape1, shape2, input_axes(net, shape1, chosen))


def _check_same_shape(shape1: tuple[int, ...], shape2: tuple[int, ...], batch: int) -> None:
    rest1, rest2 = ((*s[:batch], *s[batch + 1 :]) for s in (shape1, shape2))
    if len(shape1) != len(shape2) or rest1 != rest2:
        raise ValueError(
            f"expected x1 and x2 that agree in all axes but the batch axis {batch}, got shapes "
            f"{shape1} and {shape2}"
        )


def _is_shape_tree(shape: Shapes) -> bool:
    return is_branches(shape) and any(is_branches(s) for s in shape)


def leading_flatten(net: Layer) -> tuple[Layer, Flatten | None]:
    """Returns the network without the Flatten that it begins with, and that Flatten or None.

    On raw input Flatten is a reshape: the mean over positions of the mean over channels is the
    mean over all. So covariances of unequal positions are never computed.
    """
    match net:
        case Flatten():
            return Serial(()), net
        case Serial(layers=(first, *rest)):
            inner, flatten = leading_flatten(first)
            if flatten is not None:
                return Serial((inner, *rest)), flatten
    return net, None


def is_flat(net: Layer, shape: Shapes) -> bool:
    """Returns whether no activation of the network has spatial axes."""
    if leading_flatten(net)[1] is not None:
        return True
    if is_branches(shape) and any(is_branches(s) for s in shape):
        return all(is_flat(Identity(), s) for s in shape)
    return len(shape) == 2


def behind_flatten(
    net: Layer, shapes: tuple[Shapes, Shapes], axes: GivenAxes
) -> tuple[Layer, Flatten | None, Signals]:
    """Returns the network behind a Flatten that it begins with, that Flatten, and its signal.

    Args:
      net: the network.
      shapes: shapes (or trees of them) of x1 and of x2.
      axes: (batch, channel) axes from the keywords of the user, as for `input_axes`.

    Raises:
      ValueError: an input that does not fit.
    """
    inner, flatten = leading_flatten(net)
    if flatten is not None:
        flatten.check_input(shapes[0], axes[0])
        shapes = flatten.output_shape(shapes[0]), flatten.output_shape(shapes[1])
        batch = flatten.batch_axis_out % 2
        axes = batch, 1 - batch
    return inner, flatten, input_signal(*shapes, input_axes(inner, shapes[0], axes))


def make_site(layer: Layer, signal: Signals, need: Needs, masks: Masks, patterns: Pattern) -> Site:
    """Returns the site of a network, with the shapes, masks and needs of every layer inside it.

    Args:
      layer: the network.
      signal: description of its input.
      need: offsets needed at its output.
      masks: pair of masks (or trees of masks) of its input.
      patterns: pair of graph patterns.
    """
    moduli = _fitting(layer.needs(need, signal), signal, None)
    return _site(layer, _Place(signal, need, masks, patterns, moduli, layer.label))[0]


class _Place(NamedTuple):
    """The data of a layer from which its site is made.

    Attributes:
      signal: description of its input.
      need: true offsets needed at its output.
      masks: pair of masks of its input.
      patterns: pair of graph patterns.
      moduli: moduli of folded offsets at its input.
      path: its path in the network.
    """

    signal: Signals
    need: Needs
    masks: Masks
    patterns: Pattern
    moduli: Moduli
    path: str


def _site(layer: Layer, place: _Place) -> tuple[Site, Moduli]:
    """Returns the site of a layer and the moduli of folded offsets at its output."""
    signal_out = layer.output_signal(place.signal)
    masks_out = tuple(
        None if mask is None else layer.mask(mask, _shape(place.signal, side))
        for side, mask in enumerate(place.masks)
    )
    inside = layer.children(place.signal, place.need)
    children, moduli_inside = _children(layer, inside, place)
    moduli = layer.join(moduli_inside)
    if moduli is None:
        wished = layer.moduli(place.moduli, place.signal)
        moduli = _fitting(place.need, signal_out, wished)
    need_in = layer.needs(place.need, place.signal)
    site = Site(
        masks_in=place.masks,
        masks_out=masks_out,
        patterns=place.patterns,
        children=children,
        signal_in=place.signal,
        signal_out=signal_out,
        need_in=_folded(need_in, place.signal, place.moduli),
        need_out=_folded(place.need, signal_out, moduli),
        mixes=layer.mixes_samples(place.signal) or any(child.mixes for child in children),
        pairs=layer.pairs_samples(place.signal) or any(child.pairs for child in children),
        path=place.path,
        inside=inside,
    )
    return site, moduli


def _children(
    layer: Layer, inside: tuple[Child, ...], place: _Place
) -> tuple[tuple[Site, ...], list[Moduli]]:
    """Returns the sites of the layers inside, and the moduli at their outputs."""
    layers = inner_layers(layer)
    sites: list[Site] = []
    moduli: list[Moduli] = []
    for child in inside:
        at = child.reads
        masks, folds = place.masks, place.moduli
        if at is not None:
            masks, folds = sites[at].masks_out, moduli[at]
        if child.branch is not None:
            masks = tuple(None if mask is None else mask[child.branch] for mask in masks)
            folds = folds[child.branch]
        inner = layers[child.place]
        path = f"{place.path}[{child.key}].{inner.label}"
        within = _Place(child.signal, child.need, masks, place.patterns, folds, path)
        site, after = _site(inner, within)
        sites.append(site)
        moduli.append(after)
    return tuple(sites), moduli


def bare_site(
    net: Layer,
    shapes: tuple[Shapes, Shapes],
    axes: GivenAxes = (None, None),
    *,
    diagonal_spatial: bool = False,
    own: bool = False,
) -> tuple[Layer, Site]:
    """Returns the network behind a Flatten that it begins with, and its site without masks.

    Args:
      net: the network.
      shapes: shapes (or trees of them) of x1 and of x2.
      axes: (batch, channel) axes of the inputs, None where the network decides.
      diagonal_spatial: whether the result holds equal positions only.
      own: whether the covariances of images with themselves are requested.
    """
    inner, _, signal = behind_flatten(net, shapes, axes)
    need = output_need(inner.output_signal(signal), diagonal_spatial, own)
    return inner, make_site(inner, signal, need, (None, None), (None, None))


def check_unmixed(path: str | None) -> None:
    """Raises if a network combines samples, at the layer of this path.

    Raises:
      ValueError: the path is not None; the message names it.
    """
    if path is not None:
        raise ValueError(
            "expected a network that treats samples one by one, to compute its kernel in tiles; "
            f"got {path}, which combines samples of a batch: pass all samples to kernel_fn at once"
        )


def mixing_layer(site: Site) -> str | None:
    """Returns the path of the first layer that combines samples of a batch, None without one."""
    if not site.mixes:
        return None
    return next(filter(None, map(mixing_layer, site.children)), site.path)


def _fitting(need: Needs, signal: Signals, wished: Moduli) -> Moduli:
    """Returns moduli for the offsets of a place, or a tuple of them for branches."""
    if isinstance(signal, Signal):
        return fitting_moduli(need.cross | need.own, signal.spatial, wished)
    return tuple(
        _fitting(n, s, None if wished is None else wished[i])
        for i, (n, s) in enumerate(zip(need, signal, strict=True))
    )


def _folded(need: Needs, signal: Signals, moduli: Moduli) -> Needs:
    """Returns needs as they are stored."""
    if isinstance(signal, Signal):
        return need.fold(signal.spatial, moduli)
    return tuple(_folded(*parts) for parts in zip(need, signal, moduli, strict=True))


def _shape(signal: Signals, side: int) -> Shapes:
    if isinstance(signal, Signal):
        return (signal.shape1, signal.shape2)[side]
    return tuple(_shape(s, side) for s in signal)


def output_need(signal: Signals, diagonal_spatial: bool, own: bool) -> Needs:
    """Returns the offsets of the result: all of them, or equal positions only.

    Args:
      signal: description of the result.
      diagonal_spatial: whether the result holds equal positions only.
      own: whether the covariances of images with themselves are requested.
    """
    if not isinstance(signal, Signal):
        return tuple(output_need(s, diagonal_spatial, own) for s in signal)
    ndim = len(signal.spatial)
    need = Need.zero(ndim) if diagonal_spatial else Need.full(signal.spatial)
    return need if own else Need(need.cross, Offsets.none(ndim))
