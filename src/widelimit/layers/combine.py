"""Networks made of layers: in sequence, side by side, repeated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree, PyTreeDef

from widelimit._pytree import is_concrete, pytree, static
from widelimit.covariance.covariances import Covariances
from widelimit.layers.base import Child, Layer, Site, located, run_layer
from widelimit.layers.context import Context
from widelimit.layers.foreign import LayerLike, as_layer
from widelimit.layers.shapes import same_need, tree_shapes
from widelimit.layers.step import Trio, select_each, step
from widelimit.typing import Arrays, Covs, Key, Masks, Needs, Params, Shapes, Signals

_T = TypeVar("_T")


@pytree
class _Combinator(Layer):
    """Base class of networks made of several layers."""

    layers: tuple[Layer, ...] = ()

    structural = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))

    def input_axes(self) -> tuple[int, int] | None:
        return next((axes for axes in (l.input_axes() for l in self.layers) if axes), None)

    def __repr__(self) -> str:
        return block_repr(self.label, self.layers)


@pytree
class Serial(_Combinator):
    """Layers one after another; made by `serial`."""

    alias = "serial"
    label = "serial"

    def _walk(self, start: _T, advance: Callable[[Layer, _T], _T]) -> list[_T]:
        """Returns the values of a forward pass before each layer, and the last one."""
        values = [start]
        for i, layer in enumerate(self.layers):
            with located(f"{self.label}[{i}]", layer):
                values.append(advance(layer, values[-1]))
        return values

    def shapes(self, shape: Shapes) -> list[Shapes]:
        """Returns the shapes before each layer, and that of the output."""
        return self._walk(shape, lambda layer, s: layer.output_shape(s))

    def signals(self, signal: Signals) -> list[Signals]:
        """Returns the signals before each layer, and that of the output."""
        return self._walk(signal, lambda layer, s: layer.output_signal(s))

    def output_shape(self, shape: Shapes) -> Shapes:
        return self.shapes(shape)[-1]

    def output_signal(self, signal: Signals) -> Signals:
        return self.signals(signal)[-1]

    def init(self, key: Key, shape: Shapes) -> Params:
        params = []
        for layer, inner in zip(self.layers, self.shapes(shape), strict=False):
            key, layer_key = jax.random.split(key)
            params.append(layer.init(layer_key, inner))
        return params

    def apply(self, params: Params, x: Arrays, context: Context) -> Arrays:
        check_count("parameters", params, self.layers)
        mask, contexts = context.mask, context.split(len(self.layers))
        for i, (layer, p, inner) in enumerate(zip(self.layers, params, contexts, strict=True)):
            with located(f"{self.label}[{i}]", layer):
                shape = tree_shapes(x)
                x = run_layer(layer, p, x, inner.with_mask(mask))
                mask = layer.mask(mask, shape)
        return x

    def mask(self, mask: Masks, shape: Shapes) -> Masks:
        for layer, inner in zip(self.layers, self.shapes(shape), strict=False):
            mask = layer.mask(mask, inner)
        return mask

    def needs(self, need: Needs, signal: Signals) -> Needs:
        for layer, inner in zip(self.layers[::-1], self.signals(signal)[-2::-1], strict=True):
            need = layer.needs(need, inner)
        return need

    def children(self, signal: Signals, need: Needs) -> tuple[Child, ...]:
        signals, needs = self.signals(signal), [need]
        for layer, inner in zip(self.layers[::-1], signals[-2::-1], strict=True):
            needs.append(layer.needs(needs[-1], inner))
        return tuple(
            Child(i, signals[i], needs[-2 - i], i - 1 if i else None, key=i)
            for i in range(len(self.layers))
        )

    def join(self, inside: list[PyTree]) -> PyTree:
        return inside[-1] if inside else None

    def propagate(self, cov: Covs, site: Site) -> Covs:
        for i, (layer, child) in enumerate(zip(self.layers, site.children, strict=True)):
            with located(f"{self.label}[{i}]", layer):
                cov = step(layer, cov, child)
        return cov


@pytree
class Parallel(_Combinator):
    """Layers side by side, the k-th on the k-th branch; made by `parallel`."""

    alias = "parallel"
    label = "parallel"

    def _each(self, function: Callable[..., _T], *branches: Sequence[object]) -> tuple[_T, ...]:
        """Returns the results of a function called with each layer and its branch."""
        for tree in branches:
            check_count("branches", tree, self.layers)
        results = []
        for i, args in enumerate(zip(self.layers, *branches, strict=True)):
            with located(f"{self.label}[{i}]", args[0]):
                results.append(function(*args))
        return tuple(results)

    def output_shape(self, shape: Shapes) -> Shapes:
        return self._each(lambda layer, s: layer.output_shape(s), shape)

    def output_signal(self, signal: Signals) -> Signals:
        return self._each(lambda layer, s: layer.output_signal(s), signal)

    def init(self, key: Key, shape: Shapes) -> Params:
        keys = tuple(jax.random.split(key, len(self.layers)))
        return self._each(lambda layer, k, s: layer.init(k, s), keys, shape)

    def apply(self, params: Params, x: Arrays, context: Context) -> Arrays:
        check_count("branches", x, self.layers)
        contexts = context.branches(len(self.layers))
        return type(x)(self._each(run_layer, tuple(params), x, contexts))

    def mask(self, mask: Masks, shape: Shapes) -> Masks:
        masks = (None,) * len(self.layers) if mask is None else mask
        return self._each(lambda layer, m, s: layer.mask(m, s), masks, shape)

    def needs(self, need: Needs, signal: Signals) -> Needs:
        return self._each(lambda layer, n, s: layer.needs(n, s), need, signal)

    def children(self, signal: Signals, need: Needs) -> tuple[Child, ...]:
        pairs = enumerate(zip(signal, need, strict=True))
        return tuple(Child(i, part, n, branch=i, key=i) for i, (part, n) in pairs)

    def join(self, inside: list[PyTree]) -> PyTree:
        return tuple(inside)

    def propagate(self, cov: Covs, site: Site) -> Covs:
        return type(cov)(self._each(step, cov, site.children))


@pytree
class Repeat(Layer):
    """One network applied n times with fresh parameters; made by `repeat`."""

    layer: Layer
    n: int = static()

    alias = "repeat"
    label = "repeat"
    structural = True

    def __post_init__(self) -> None:
        if int(self.n) != self.n or self.n < 0:
            raise ValueError(f"expected a number of repetitions n >= 0, got {self.n}")

    def input_axes(self) -> tuple[int, int] | None:
        return self.layer.input_axes()

    def output_shape(self, shape: Shapes) -> Shapes:
        with located(f"{self.label}[*]", self.layer):
            out = self.layer.output_shape(shape) if self.n else shape
        if out != shape:
            raise ValueError(
                f"expected a layer that preserves the shape, to repeat it; got {shape} -> {out}"
            )
        return out

    def output_signal(self, signal: Signals) -> Signals:
        return signal if self.n == 0 else self._preserved(signal)

    def _preserved(self, signal: Signals) -> Signals:
        with located(f"{self.label}[*]", self.layer):
            out = self.layer.output_signal(signal)
        if out != signal:
            raise ValueError(f"expected a layer that preserves the shape, got {signal} -> {out}")
        return out

    def init(self, key: Key, shape: Shapes) -> Params:
        keys = []
        for _ in range(self.n):  # the keys that `serial` would hand out
            key, layer_key = jax.random.split(key)
            keys.append(layer_key)
        if not keys:
            return ()
        return jax.vmap(lambda k: self.layer.init(k, shape))(jnp.stack(keys))

    def apply(self, params: Params, x: Arrays, context: Context) -> Arrays:
        if self.n == 0:
            return x
        keys = None if context.rng is None else jax.random.split(context.rng, self.n)

        def part(index: int | slice) -> tuple[Params, Array | None]:
            return jax.tree.map(lambda leaf: leaf[index], (params, keys))

        def body(carry: Arrays, sliced: tuple[Params, Array | None]) -> tuple[Arrays, None]:
            inner, key = sliced
            return run_layer(self.layer, inner, carry, later.with_rng(key)), None

        # The first application may change the dtype and collapse the mask; later ones do not.
        first, first_key = part(0)
        later = context.with_mask(self.layer.mask(context.mask, tree_shapes(x)))
        x = run_layer(self.layer, first, x, context.with_rng(first_key))
        return jax.lax.scan(body, x, part(slice(1, None)))[0]

    def mask(self, mask: Masks, shape: Shapes) -> Masks:
        return self.layer.mask(mask, shape) if self.n else mask

    def needs(self, need: Needs, signal: Signals) -> Needs:
        closed = need
        while self.n:  # the least set closed under the body's rule, so that a scan can carry it
            grown = same_need(closed, self.layer.needs(closed, signal))
            if grown == closed:
                break
            closed = grown
        return closed

    def children(self, signal: Signals, need: Needs) -> tuple[Child, ...]:
        if self.n == 0:
            return ()
        closed = self.needs(need, signal)
        first = Child(0, signal, closed, key="*")
        return first, first._replace(reads=0)  # all later applications have the same site

    def join(self, inside: list[PyTree]) -> PyTree:
        return inside[0] if inside else None

    def propagate(self, cov: Covs, site: Site) -> Covs:
        if self.n == 0:
            return cov
        return select_each(self._rounds(cov, *site.children), site.need_out)

    def _rounds(self, cov: Covs, first: Site, rest: Site) -> Covs:
        """Returns the covariances after all applications."""
        done, cov = 1, self._once(cov, first)
        if is_concrete(cov):  # the layers inside are compiled once each
            for _ in range(done, self.n):
                cov = self._once(cov, rest)
            return cov
        # The NTK appears, the gap may be dropped: unroll until the structure repeats.
        while done < self.n:
            after = jax.eval_shape(lambda c: self._once(c, rest), cov)
            if _structure(after) == _structure(cov):
                break
            done, cov = done + 1, self._once(cov, rest)
        if done == self.n:
            return cov

        def body(carry: Covs, _: None) -> tuple[Covs, None]:
            return self._once(carry, rest), None

        return jax.lax.scan(body, cov, None, length=self.n - done)[0]

    def _once(self, cov: Covs, site: Site) -> Covs:
        """Returns the covariances after one application, origins renamed to those of all rounds."""
        with located(f"{self.label}[*]", self.layer):
            out = step(self.layer, cov, site)
        return _rename_origins(out, site.path)

    def __repr__(self) -> str:
        return block_repr("repeat", (self.layer, self.n))


def _rename_origins(tree: Covs, path: str) -> Covs:
    """Returns covariances whose origins inside the body are marked as from an earlier round.

    They then differ from the weights of the next round. All earlier rounds share names, so that the
    structure repeats: branches from different rounds may count as correlated, never the reverse.
    """
    if isinstance(tree, Trio):
        return Trio(*(_rename_origins(c, path) for c in (tree.first, tree.second, tree.cross)))
    if not isinstance(tree, Covariances):
        return type(tree)(_rename_origins(c, path) for c in tree)
    mark = f" (earlier in {path})"
    names = (o + mark if o.startswith(path) and not o.endswith(mark) else o for o in tree.origins)
    return tree.replace(origins=frozenset(names))


def _structure(tree: Covs) -> tuple[PyTreeDef, list[tuple[tuple[int, ...], np.dtype]]]:
    leaves, treedef = jax.tree.flatten(tree)
    return treedef, [(leaf.shape, leaf.dtype) for leaf in leaves]


def check_count(what: str, values: object, layers: tuple[Layer, ...]) -> None:
    """Raises unless `values` has one entry per layer."""
    count = len(values) if isinstance(values, list | tuple) else None
    if what == "branches" and isinstance(values, list | tuple):
        count = None if any(isinstance(size, int) for size in values) else count  # a shape
    if count != len(layers):
        one = "one array" if what == "branches" else type(values).__name__
        got = one if count is None else count
        raise ValueError(f"expected a list or tuple of {len(layers)} {what}, got {got}")


def block_repr(name: str, items: tuple[object, ...]) -> str:
    """Returns a nested network as text, one layer per line."""
    if not items:
        return f"{name}()"
    body = ",\n".join(repr(item) for item in items)
    return f"{name}(\n" + "\n".join(f"    {line}" for line in body.split("\n")) + ",\n)"


def serial(*layers: LayerLike) -> Serial:
    """Returns the network that applies layers one after another.

    Args:
      *layers: layers, networks, or foreign triples (init_fn, apply_fn, kernel_fn).

    Raises:
      TypeError: an argument is not a layer.

    Example:
      >>> from widelimit import stax
      >>> net = stax.serial(stax.Dense(512), stax.Relu(), stax.Dense(1))
      >>> init_fn, apply_fn, kernel_fn = net
    """
    return Serial(tuple(as_layer(layer) for layer in layers))


def parallel(*layers: LayerLike) -> Parallel:
    """Returns the network that applies the k-th layer to the k-th element of a list or tuple.

    Args:
      *layers: layers, networks, or foreign triples (init_fn, apply_fn, kernel_fn).

    Raises:
      TypeError: an argument is not a layer.

    Example:
      >>> from widelimit import stax
      >>> branches = stax.parallel(stax.Dense(64), stax.Identity())
      >>> branches.output_shape([(8, 3), (8, 5)])
      ((8, 64), (8, 5))
    """
    return Parallel(tuple(as_layer(layer) for layer in layers))


def repeat(layer: LayerLike, n: int) -> Repeat:
    """Returns the network that applies `layer` n times, each time with fresh parameters.

    Equal to `serial(*[layer] * n)`, but compiled once: parameters are stacked along axis 0, and
    equal those of `serial` for the same random key.

    Args:
      layer: a layer or network that preserves the shape of its input.
      n: number of applications; 0 is the identity.

    Raises:
      ValueError: `n` is negative or not an integer, or the layer changes the shape.
      TypeError: `layer` is not a layer.

    Example:
      >>> from widelimit import stax
      >>> block = stax.serial(stax.Dense(64), stax.Relu())
      >>> stax.serial(stax.repeat(block, 20), stax.Dense(1)).output_shape((8, 64))
      (8, 1)
    """
    return Repeat(as_layer(layer), n)
