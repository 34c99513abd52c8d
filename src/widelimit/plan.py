"""Before anything is computed: shapes and masks forward, needed offsets backward."""

from __future__ import annotations

from typing import Any

from widelimit.layers.base import Layer, Site
from widelimit.layers.combine import Parallel, Repeat, Serial
from widelimit.layers.reshape import Flatten
from widelimit.offsets import Need
from widelimit.signal import Signal, is_branches


def input_axes(net: Layer, shape: Any, given: tuple[int | None, int | None]) -> Any:
    """Returns the (batch, channel) axes of the input, or a tuple of such trees for branches.

    Args:
      net: the network; its axes hold where none are given, and 0 and -1 where it states none.
      shape: shape of the input, or a tree of shapes.
      given: axes from elsewhere. Layers that state others refuse them later.

    Raises:
      ValueError: an axis that the input does not have.
    """
    if not _is_shape_tree(shape):
        stated = net.input_axes() or (0, -1)
        axes = tuple(s if g is None else g for g, s in zip(given, stated, strict=True))
        if len(shape) >= 2 and not all(-len(shape) <= a < len(shape) for a in axes):
            raise ValueError(
                f"expected batch and channel axes of an input of shape {shape}, got {axes}"
            )
        return tuple(a % max(len(shape), 1) for a in axes)
    match net:
        case Serial(layers=layers) if net.input_axes() is not None:
            first = next(layer for layer in layers if layer.input_axes() is not None)
            return input_axes(first, shape, given)
        case Repeat(layer=inner):
            return input_axes(inner, shape, given)
        case Parallel(layers=layers) if len(layers) == len(shape):
            pairs = zip(layers, shape, strict=True)
            return tuple(input_axes(layer, part, given) for layer, part in pairs)
        case _:
            return tuple(input_axes(net, part, given) for part in shape)


def input_signal(shape1: Any, shape2: Any, axes: Any) -> Any:
    """Returns the description of inputs of given shapes, or a tuple of such trees.

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
    rest1, rest2 = ((*s[:batch], *s[batch + 1 :]) for s in (shape1, shape2))
    if len(shape1) != len(shape2) or rest1 != rest2:
        raise ValueError(
            f"expected x1 and x2 that agree in all axes but the batch axis {batch}, got shapes "
            f"{shape1} and {shape2}"
        )
    if shape1[channel] == 0:
        raise ValueError(f"expected at least one channel, got shape {shape1}")
    return Signal(shape1, shape2, batch, channel)


def _is_shape_tree(shape: Any) -> bool:
    return is_branches(shape) and any(is_branches(s) for s in shape)


def leading_flatten(net: Layer) -> tuple[Layer, Flatten | None]:
    """Returns the network without the Flatten it begins with, and that Flatten.

    On raw input Flatten is a reshape: the mean over positions of the mean over channels is the
    mean over all. The covariance of unequal positions, and its memory, are never needed.
    """
    match net:
        case Flatten():
            return Serial(()), net
        case Serial(layers=(first, *rest)):
            inner, flatten = leading_flatten(first)
            if flatten is not None:
                return Serial((inner, *rest)), flatten
    return net, None


def make_site(
    layer: Layer, signal: Any, need: Any, masks: Any, patterns: Any, path: str | None = None
) -> Site:
    """Returns the site of a network: every layer inside it knows its shapes, masks and needs.

    Args:
      layer: the network.
      signal: description of its input.
      need: offsets needed at its output.
      masks: pair of masks (or trees of masks) of its input.
      patterns: pair of graph patterns.
      path: where the network stands.
    """
    path = path or layer.label
    signal_out = layer.output_signal(signal)
    masks_out = tuple(
        None if mask is None else layer.mask(mask, _shape(signal, side))
        for side, mask in enumerate(masks)
    )
    return Site(
        masks_in=masks,
        masks_out=masks_out,
        patterns=patterns,
        children=_children(layer, signal, need, masks, patterns, path),
        signal_in=signal,
        signal_out=signal_out,
        need_in=layer.needs(need, signal),
        need_out=need,
        path=path,
    )


def _children(
    layer: Layer, signal: Any, need: Any, masks: Any, patterns: Any, path: str
) -> tuple[Site, ...]:
    match layer:
        case Serial():
            return _serial_children(layer, signal, need, masks, patterns, path)
        case Parallel(layers=inner):
            return tuple(
                make_site(sub, signal[i], need[i], _branch(masks, i), patterns, _at(path, i, sub))
                for i, sub in enumerate(inner)
            )
        case Repeat(layer=body, n=n) if n > 0:
            closed = layer.needs(need, signal)
            inside = _at(path, "*", body)
            first = make_site(body, signal, closed, masks, patterns, inside)
            rest = make_site(body, signal, closed, first.masks_out, patterns, inside)
            return first, rest
        case _:
            return ()


def _serial_children(
    net: Serial, signal: Any, need: Any, masks: Any, patterns: Any, path: str
) -> tuple[Site, ...]:
    signals = net.signals(signal)
    needs = [need]
    for layer, inner in zip(net.layers[::-1], signals[-2::-1], strict=True):
        needs.append(layer.needs(needs[-1], inner))
    needs.reverse()
    sites: list[Site] = []
    for i, layer in enumerate(net.layers):
        site = make_site(layer, signals[i], needs[i + 1], masks, patterns, _at(path, i, layer))
        sites.append(site)
        masks = site.masks_out
    return tuple(sites)


def _at(path: str, index: Any, layer: Layer) -> str:
    return f"{path}[{index}].{layer.label}"


def _branch(masks: Any, index: int) -> Any:
    return tuple(None if m is None else m[index] for m in masks)


def _shape(signal: Any, side: int) -> Any:
    if isinstance(signal, Signal):
        return (signal.shape1, signal.shape2)[side]
    return tuple(_shape(s, side) for s in signal)


def output_need(signal: Any, diagonal_spatial: bool) -> Any:
    """Returns the offsets of the result: all of them, or equal positions only."""
    if not isinstance(signal, Signal):
        return tuple(output_need(s, diagonal_spatial) for s in signal)
    if diagonal_spatial:
        return Need.zero(len(signal.spatial))
    return Need.full(signal.spatial)
