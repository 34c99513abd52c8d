"""Rules of primitives for values that are linear in a parameter.

A rule takes the scope, the step, the position of the operand and its link, and returns

- links, one per output: the output is linear in the parameter, with known factors,
- a use: the parameter enters the rest of the program here,
- or None: this case has no rule.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from widelimit.finite.empirical.structured.links import Crop, Labels, Link, Pick, Read, Scope, Use
from widelimit.finite.empirical.structured.patches import image_patches
from widelimit.finite.empirical.structured.program import Step

Outcome = list[Link] | Use | None
Rule = Callable[[Scope, Step, int, Link], Outcome]

RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Returns a decorator that registers a rule for primitives of these names."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


MINUS_ONE = Read(np.array(-1.0, np.float32), (), fixed=True)


# Changes of shape.


@rule("copy", "copy_p", "optimization_barrier", "reduce_precision", "name")
def _same(scope: Scope, step: Step, position: int, link: Link) -> Outcome:
    if len(step.outputs) > 1:
        return None
    return [link]


@rule("convert_element_type")
def _convert(scope: Scope, step: Step, position: int, link: Link) -> Outcome:
    return None if _becomes_complex(scope, step, position) else [link]


@rule("neg")
def _negate(scope: Scope, step: Step, position: int, link: Link) -> Outcome:
    return [link.relabelled(link.labels, MINUS_ONE)]


@rule("transpose")
def _transpose(scope: Scope, step: Step, position: int, link: Link) -> Outcome:
    return [link.relabelled(tuple(link.labels[a] for a in step.params["permutation"]))]


@rule("squeeze")
def _squeeze(scope: Scope, step: Step, position: int, link: Link) -> Outcome:
    gone = step.params["dimensions"]
    return [link.relabelled(tuple(x for a, x in enumerate(link.labels) if a not in gone))]


@rule("expand_dims")
def _expand(scope: Scope, step: Step, position: int, link: Link) -> Outcome:
    return _unit_axes(scope, link, *_shapes(scope, step))


@rule("reshape")
def _reshape(scope: Scope, step: Step, position: int, link: Link) -> Outcome:
    if step.params.get("dimensions") is not None:
        return None
    before, after = _shapes(scope, step)
    if [size for size in before if size != 1] == [size for size in after if size != 1]:
        return _unit_axes(scope, link, before, after)
    return _new_frame(link, before, after, ("reshape", after))


def _unit_axes(
    scope: Scope, link: Link, before: tuple[int, ...], after: tuple[int, ...]
) -> Outcome:
    """Returns the link after axes of size 1 are inserted or removed."""
    rest = iter([x for x, size in zip(link.labels, before, strict=True) if size != 1])
    labels = tuple(next(rest) if size != 1 else scope.fresh()[0] for size in after)
    return [link.relabelled(labels)]


def _new_frame(
    link: Link, before: tuple[int, ...], after: tuple[int, ...], change: tuple[Any, ...]
) -> list[Link] | None:
    """Returns the link after a change of the parameter that rearranges or drops entries."""
    if not link.own():
        return None
    # Scanned axes come first.
    over = tuple(x for x in link.loops if isinstance(x, int))
    names = {x: k for k, x in enumerate(over)}
    loops = tuple(names.get(x, x) if isinstance(x, int) else x for x in link.loops)
    labels = tuple(range(len(over), len(over) + len(after)))
    shape = (*(link.shape[x] for x in over), *after)
    frame = (*link.frame, ((*over, *link.labels), before, *change))
    # These are scalars, one per round of the first of these scans.
    parts = tuple(
        dataclasses.replace(part, loops=loops[: len(part.loops)])
        for part in link.parts
        if isinstance(part, Read)
    )
    return [Link(link.leaf, frame, shape, labels, loops, parts)]


@rule("rev")
def _reverse(scope: Scope, step: Step, position: int, link: Link) -> Outcome:
    return _new_frame(link, *_shapes(scope, step), ("rev", step.params["dimensions"]))


@rule("slice")
def _slice(scope: Scope, step: Step, position: int, link: Link) -> Outcome:
    before, after = _shapes(scope, step)
    strides = step.params["strides"] or (1,) * len(before)
    starts = tuple(step.params["start_indices"])
    limits = tuple(step.params["limit_indices"])
    return _new_frame(link, before, after, ("slice", starts, limits, tuple(strides)))


@rule("split")
def _split(scope: Scope, step: Step, position: int, link: Link) -> Outcome:
    axis, start = step.params["axis"], 0
    links: list[Link] = []
    before = scope.types[step.inputs[0]].shape
    for size in map(int, step.params["sizes"]):
        starts = tuple(start if a == axis else 0 for a in range(len(before)))
        after = tuple(size if a == axis else n for a, n in enumerate(before))
        limits = tuple(s + n for s, n in zip(starts, after, strict=True))
        sliced = _new_frame(link, before, after, ("slice", starts, limits, (1,) * len(before)))
        if sliced is None:
            return None
        links += sliced
        start += size
    return links


@rule("broadcast_in_dim")
def _broadcast(scope: Scope, step: Step, position: int, link: Link) -> Outcome:
    before, after = _shapes(scope, step)
    labels = list(scope.fresh(len(after)))
    for axis, target in enumerate(step.params["broadcast_dimensions"]):
        if before[axis] == after[target]:
            labels[target] = link.labels[axis]
    return [link.relabelled(tuple(labels))]


@rule("reduce_sum")
def _reduce_sum(scope: Scope, step: Step, position: int, link: Link) -> Outcome:
    shape, gone = scope.types[step.inputs[0]].shape, step.params["axes"]
    ones = [Read(np.ones(shape[a], np.float32), (link.labels[a],), fixed=True) for a in gone]
    labels = tuple(x for a, x in enumerate(link.labels) if a not in gone)
    return [link.relabelled(labels, *ones)]


@rule("concatenate", "stack")
def _concatenate(scope: Scope, step: Step, position: int, link: Link) -> Outcome:
    if not _all_fixed(scope, step):
        return None
    key = "dimension" if step.name == "concatenate" else "axis"
    axis = step.params[key]
    (outer,) = scope.fresh()
    if step.name == "stack":
        (inner,) = scope.fresh()
        crop = Crop(outer, inner, position, 1)
        return [link.relabelled((*link.labels[:axis], outer, *link.labels[axis:]), crop)]
    sizes = [scope.types[number].shape[axis] for number in step.inputs]
    inner = link.labels[axis]
    crop = Crop(outer, inner, sum(sizes[:position]), sizes[position])
    return [link.relabelled((*link.labels[:axis], outer, *link.labels[axis + 1 :]), crop)]


@rule("pad")
def _pad(scope: Scope, step: Step, position: int, link: Link) -> Outcome:
    if position != 0 or not _all_fixed(scope, step):
        return None
    labels, crops = list(link.labels), []
    shape = scope.types[step.inputs[0]].shape
    for axis, config in enumerate(step.params["padding_config"]):
        low, high, interior = map(int, config)
        if low < 0 or high < 0 or interior:
            return None
        if low or high:
            (labels[axis],) = scope.fresh()
            crops.append(Crop(labels[axis], link.labels[axis], low, shape[axis]))
    return [link.relabelled(tuple(labels), *crops)]


# Sums and products.


@rule("add", "add_any", "sub")
def _add(scope: Scope, step: Step, position: int, link: Link) -> Outcome:
    if not _all_fixed(scope, step):
        return None
    labels = _spread(scope, step, position, link)
    minus = (MINUS_ONE,) if step.name == "sub" and position == 1 else ()
    return [link.relabelled(labels, *minus)]


@rule("mul", "div")
def _multiply(scope: Scope, step: Step, position: int, link: Link) -> Outcome:
    if step.name == "div" and position == 1:
        return None
    other = step.inputs[1 - position]
    change = jnp.reciprocal if step.name == "div" else None
    labels = _spread(scope, step, position, link)
    # A mask on a matrix is part of the link; a scale of activations that varies is not.
    mask = len(labels) > 1 and all(isinstance(x, int) for x in labels)
    shape = scope.types[other].shape
    if shape and other not in scope.fixed and not mask:
        return None
    full = scope.types[step.outputs[0]].shape
    pairs = zip(labels, shape, full, strict=True) if shape else ()
    places = tuple(x if size == whole else scope.fresh()[0] for x, size, whole in pairs)
    return [link.relabelled(labels, scope.read(other, places, link, change))]


def _spread(scope: Scope, step: Step, position: int, link: Link) -> Labels:
    """Returns the labels of the output of an entrywise step: axes of size 1 may be repeated."""
    before = scope.types[step.inputs[position]].shape
    after = scope.types[step.outputs[0]].shape
    if not before:
        return scope.fresh(len(after))
    pairs = zip(link.labels, before, after, strict=True)
    return tuple(x if size == whole else scope.fresh()[0] for x, size, whole in pairs)


@rule("select_n")
def _select(scope: Scope, step: Step, position: int, link: Link) -> Outcome:
    if position == 0 or step.inputs[0] not in scope.fixed:
        return None
    dtype = scope.types[step.outputs[0]].dtype

    def chosen(which: Any) -> Any:
        return (which == position - 1).astype(dtype)

    labels = link.labels if scope.types[step.inputs[0]].shape else ()
    return [link.relabelled(link.labels, scope.read(step.inputs[0], labels, link, chosen))]


@rule("dot_general")
def _dot_general(scope: Scope, step: Step, position: int, link: Link) -> Outcome:
    if _becomes_complex(scope, step, position):
        return None
    contracted, batched = step.params["dimension_numbers"]
    other = step.inputs[1 - position]
    sides: list[list[Any]] = [[None] * len(scope.types[n].shape) for n in step.inputs]
    sides[position] = list(link.labels)
    for mine, theirs in (
        (contracted[position], contracted[1 - position]),
        (batched[position], batched[1 - position]),
    ):
        for a, b in zip(mine, theirs, strict=True):
            sides[1 - position][b] = link.labels[a]
    sides[1 - position] = [scope.fresh()[0] if x is None else x for x in sides[1 - position]]
    shared = [sides[0][a] for a in batched[0]]
    free = [
        x
        for side, summed, batch in zip(sides, contracted, batched, strict=True)
        for a, x in enumerate(side)
        if a not in summed and a not in batch
    ]
    labels = (*shared, *free)
    factor = scope.read(other, tuple(sides[1 - position]), link)
    # A product of weights is a weight. Values of numbers alone may be activations.
    if scope.weights.issuperset(step.inputs):
        return [link.relabelled(labels, factor)]
    return scope.use(step, link, labels, factor)


@rule("conv_general_dilated")
def _convolution(scope: Scope, step: Step, position: int, link: Link) -> Outcome:
    params = step.params
    groups = params["feature_group_count"]
    if position != 1 or params["batch_group_count"] != 1:
        return None
    numbers = params["dimension_numbers"]
    out_axis, in_axis, *taps = numbers.rhs_spec
    kernel = scope.types[step.inputs[1]].shape
    if groups > 1:
        # The axis of output channels as groups times channels of each.
        split = list(kernel)
        split[out_axis : out_axis + 1] = [groups, kernel[out_axis] // groups]
        framed = _new_frame(link, kernel, tuple(split), ("reshape", tuple(split)))
        if framed is None:
            return None
        link = framed[0]
        order = list(link.labels)
        group = [order.pop(out_axis)]
        labels = order
    else:
        group, labels = [], list(link.labels)
    rank = len(taps)
    sample, *positions = scope.fresh(1 + rank)
    patches = (sample, *positions, *(labels[a] for a in taps), *group, labels[in_axis])
    output = scope.types[step.outputs[0]].shape
    places: list[Labels] = [()] * len(output)
    sizes: list[tuple[int, ...]] = [(size,) for size in output]
    batch_axis, channel_axis, *space = numbers.out_spec
    places[batch_axis] = (sample,)
    places[channel_axis] = (*group, labels[out_axis])
    if group:
        sizes[channel_axis] = (groups, output[channel_axis] // groups)
    for axis, label in zip(space, positions, strict=True):
        places[axis] = (label,)
    change = tuple(n for size in sizes for n in size) if group else None
    spatial = tuple(output[a] for a in space)
    window = tuple(kernel[a] for a in taps)

    def extract(x: Any) -> Any:
        return image_patches(x, params, window, spatial)

    factor = scope.read(step.inputs[0], patches, link, extract)
    return scope.use(step, link, sum(places, ()), factor, change=change)


# Rows of a table.


@rule("gather")
def _gather(scope: Scope, step: Step, position: int, link: Link) -> Outcome:
    numbers, sizes = step.params["dimension_numbers"], step.params["slice_sizes"]
    table = scope.types[step.inputs[0]].shape
    where = numbers.start_index_map
    if position != 0 or len(where) != 1 or numbers.collapsed_slice_dims != where:
        return None
    if numbers.operand_batching_dims or sizes != (
        *table[: where[0]],
        1,
        *table[where[0] + 1 :],
    ):
        return None
    axis = where[0]
    indices = scope.types[step.inputs[1]].shape[:-1]
    chosen = scope.fresh(len(indices))
    clip = step.params["mode"] == lax.GatherScatterMode.CLIP

    def index(values: Any) -> Any:
        values = _signed(values[..., 0])
        return jnp.clip(values, 0, table[axis] - 1) if clip else values

    pick = Pick(scope.read(step.inputs[1], chosen, link, index), link.labels[axis], table[axis])
    rank = len(scope.types[step.outputs[0]].shape)
    rows = iter([x for a, x in enumerate(link.labels) if a != axis])
    rest = iter(chosen)
    labels = tuple(next(rows) if a in numbers.offset_dims else next(rest) for a in range(rank))
    return scope.use(step, link, labels, pick)


@rule("dynamic_slice")
def _dynamic_slice(scope: Scope, step: Step, position: int, link: Link) -> Outcome:
    table, size = _shapes(scope, step)
    cut = [a for a in range(len(table)) if size[a] != table[a]]
    if position != 0 or len(cut) != 1 or size[cut[0]] != 1:
        return None
    axis = cut[0]
    (chosen,) = scope.fresh()

    def index(value: Any) -> Any:
        return jnp.clip(_signed(value), 0, table[axis] - 1)[None]

    number = step.inputs[1 + axis]
    pick = Pick(scope.read(number, (chosen,), link, index), link.labels[axis], table[axis])
    return scope.use(step, link, (*link.labels[:axis], chosen, *link.labels[axis + 1 :]), pick)


def _signed(index: Any) -> Any:
    """Returns integers in a signed dtype that holds the size of a table."""
    return index.astype(jnp.promote_types(index.dtype, jnp.int32))


def _all_fixed(scope: Scope, step: Step) -> bool:
    return scope.fixed.issuperset(step.inputs)


def _becomes_complex(scope: Scope, step: Step, position: int) -> bool:
    """Returns whether numbers become complex or real: only real parts of products would count."""
    dtypes = [scope.types[n].dtype for n in (step.inputs[position], step.outputs[0])]
    return len({bool(jnp.issubdtype(d, jnp.complexfloating)) for d in dtypes}) > 1


def _shapes(scope: Scope, step: Step) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the shapes of the first input and of the first output."""
    before, after = scope.types[step.inputs[0]].shape, scope.types[step.outputs[0]].shape
    return tuple(before), tuple(after)
