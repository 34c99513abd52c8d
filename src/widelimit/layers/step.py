"""The step through one layer, with the work common to all: offsets, masks, exact diagonals."""

from __future__ import annotations

import dataclasses

import jax
from jaxtyping import Array

from widelimit._pytree import is_concrete, pytree, static
from widelimit.covariance.covariances import Covariances, at_offsets, exact_diagonal, same_sample
from widelimit.covariance.signal import Signal
from widelimit.covariance.verbs import apply_masks
from widelimit.layers.base import Layer, Site
from widelimit.layers.recording import run_compiled
from widelimit.typing import Covs, Masks, Needs


@pytree
class Trio:
    """Covariances of each batch with itself, and of both, for networks that mix samples.

    A layer that mixes samples needs the covariances between all samples of a batch.

    Attributes:
      first: x1 with itself.
      second: x2 with itself.
      cross: x1 with x2.
    """

    first: Covariances
    second: Covariances
    cross: Covariances


def step(layer: Layer, cov: Covs, site: Site) -> Covs:
    """Returns the covariances after `layer`: offsets selected, masked, with exact diagonals.

    On concrete arrays every layer without layers inside is compiled separately: equal layers share
    a compilation, and XLA cannot fuse chains of windows, which would repeat their work.

    Args:
      layer: the layer.
      cov: covariances of its input.
      site: its place in the network.
    """
    if layer.structural:
        return layer.propagate(cov, site)
    if isinstance(_leaves(cov)[0], Trio):
        return _step_trio(layer, cov, site)
    if layer.called_anew or not is_concrete(cov):
        return _step(layer, cov, site)
    parts = (part for part in _leaves(cov) if isinstance(part, Covariances))
    origins = {name for part in parts for name in part.origins}
    # Names in the structure would make equal layers compile twice.
    short = {name: f"@{i}" for i, name in enumerate(sorted(origins)) if not name.startswith("<")}
    out = run_compiled(_step, layer, _renamed(cov, short), dataclasses.replace(site, path="@"))
    return _renamed(out, {"@": site.path, **{v: k for k, v in short.items()}})


def select_each(tree: Covs, need: Needs) -> Covs:
    """Returns trees of covariances (or trios) restricted to the offsets needed."""
    if isinstance(tree, Covariances):
        if tree.need == need or not is_concrete(tree):
            return at_offsets(tree, need)
        return run_compiled(_select, tree, _Wanted(need))
    if isinstance(tree, Trio):
        return Trio(*(select_each(part, need) for part in (tree.first, tree.second, tree.cross)))
    return type(tree)(select_each(part, n) for part, n in zip(tree, need, strict=True))


@pytree
class _Wanted:
    need: Needs = static()


def _select(cov: Covariances, wanted: _Wanted) -> Covariances:
    return at_offsets(cov, wanted.need)


def _step_trio(layer: Layer, cov: Covs, site: Site) -> Covs:
    """Returns trios after `layer`; self-covariances come from each batch with itself."""
    sites = {"first": site.side(0), "second": site.side(1), "cross": site}
    parts = {name: step(layer, _pick(cov, name), at) for name, at in sites.items()}
    return join_trio(**parts)


def _pick(tree: Covs, name: str) -> Covs:
    """Returns one member of every trio of a tree."""
    if isinstance(tree, Trio):
        return getattr(tree, name)
    return type(tree)(_pick(part, name) for part in tree)


def join_trio(first: Covs, second: Covs, cross: Covs) -> Covs:
    """Returns trios from three trees."""
    if isinstance(cross, Covariances):
        cov1, cov2 = same_sample(first), same_sample(second)
        return Trio(first, second, cross.replace(cov1=cov1, cov2=cov2))
    return type(cross)(map(join_trio, first, second, cross))


def _step(layer: Layer, cov: Covs, site: Site) -> Covs:
    with jax.default_matmul_precision("highest"):  # accelerators would round float32 to less
        out = layer.propagate(cov, site)
    if site.pairs:
        out = _from_diagonal(out)
    return _settled(out, site.need_out, site.masks_out)


def _from_diagonal(out: Covs) -> Covs:
    """Returns covariances with self-covariances from the diagonal of the NNGP, if symmetric."""
    if not isinstance(out, Covariances):
        return type(out)(map(_from_diagonal, out))
    return out.replace(cov1=same_sample(out)) if out.symmetric else out


def _settled(out: Covs, need: Needs, masks: Masks) -> Covs:
    """Returns covariances at the offsets needed, masked, with exact diagonals.

    The diagonal of a symmetric kernel equals the variance to the last bit: a rounding error there
    would become an angle of its square root at the next nonlinearity. Masked positions are zero.
    """
    if isinstance(out, Covariances):
        return mask_covariances(at_offsets(exact_diagonal(out), need), masks)
    branches = ((None,) * len(out) if m is None else m for m in masks)
    parts = zip(out, need, *branches, strict=True)
    return type(out)(_settled(o, n, (m1, m2)) for o, n, m1, m2 in parts)


def _leaves(tree: Covs) -> list[Covariances | Trio]:
    """Returns the covariances (or trios) of a tree of branches."""
    if isinstance(tree, Covariances | Trio):
        return [tree]
    return [leaf for part in tree for leaf in _leaves(part)]


def _renamed(tree: Covs, names: dict[str, str]) -> Covs:
    """Returns covariances with other names of origins."""
    if not isinstance(tree, Covariances):
        return type(tree)(_renamed(part, names) for part in tree)
    return tree.replace(origins=frozenset(names.get(name, name) for name in tree.origins))


def mask_covariances(cov: Covariances, masks: Masks) -> Covariances:
    """Returns the covariances with zeros where either position is masked on every channel."""
    flat1, flat2 = (_flat_mask(m, cov.signal) for m in masks)
    return apply_masks(cov, flat1, flat2)


def _flat_mask(mask: Array | None, signal: Signal) -> Array | None:
    """Returns a mask in the axes of `signal` as [n, p], masked where every channel is."""
    if mask is None:
        return None
    collapsed = mask.transpose(signal.to_canonical()).all(-1)
    n = collapsed.shape[0]
    full = (n, *signal.spatial)
    return jax.numpy.broadcast_to(collapsed, full).reshape(n, signal.positions)
