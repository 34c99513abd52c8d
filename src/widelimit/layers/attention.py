"""Self-attention between all positions of an image or sequence."""

from __future__ import annotations

import enum
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from widelimit._pytree import pytree, static
from widelimit.covariance.covariances import Covariances
from widelimit.covariance.offsets import Need
from widelimit.covariance.pair_matrices import close_pairs, open_pairs, position_maps
from widelimit.covariance.parts import Pairing, Parts
from widelimit.covariance.signal import Signal
from widelimit.covariance.verbs import Affine, affine
from widelimit.kernel.masking import collapse, one_channel
from widelimit.layers.affine import check_number, checked_width
from widelimit.layers.base import Layer, Site
from widelimit.layers.context import Context
from widelimit.layers.options import option_name
from widelimit.layers.positions import similarities, similarity_factor
from widelimit.layers.shapes import checked_axis
from widelimit.typing import (
    Arrays,
    Function,
    Key,
    Masks,
    Needs,
    Params,
    Scalar,
    Shapes,
    Signals,
    Size,
)

_STDS = ("W_key_std", "W_value_std", "W_query_std", "W_out_std", "W_pos_emb_std")
_WIDTHS = ("n_chan_out", "n_chan_key", "n_chan_val", "n_heads")


class AttentionMechanism(enum.Enum):
    """Functions from logits to attention weights: over all keys (SOFTMAX) or one by one."""

    SOFTMAX = "SOFTMAX"
    IDENTITY = "IDENTITY"
    ABS = "ABS"
    RELU = "RELU"


class PositionalEmbedding(enum.Enum):
    """Ways in which positional features enter: not at all, added to the channels, concatenated."""

    NONE = "NONE"
    SUM = "SUM"
    CONCAT = "CONCAT"


@pytree
class GlobalSelfAttention(Layer):
    """Returns multi-head self-attention over all spatial positions, without a skip connection.

    Head h attends with G_h = zeta(logits_h), where zeta is the mechanism, and the output is
    W_out_std W_value_std / sqrt(n_heads n_chan_val C) sum_h G_h x V_h O_h + b_std b, all weights
    N(0, 1). With QK = W_query_std W_key_std, OV = W_out_std W_value_std and C input channels:

    - linear_scaling=True: queries and keys share weights, logits = QK / (C n_chan_key) q k^T, and
      in the limit G = zeta(QK cov1) is fixed by each sample. K' = OV^2 G1 K G2^T + b_std^2 and
      T' = OV^2 G1 T G2^T + 2 OV^2 G1 K G2^T + b_std^2.
    - linear_scaling=False: logits = QK / (C sqrt(n_chan_key)) q k^T stay random. In closed form
      for IDENTITY only: K' = (QK OV)^2 <K, K> K + b_std^2 and
      T' = (QK OV)^2 (2 <K, T> K + <K, K> (T + 4 K)) + b_std^2, <A, B> the sum over both positions.

    Positional embeddings are trained parameters with covariance W_pos_emb_std^2 R, R the identity
    or `pos_emb_decay_fn` of distances. Queries and keys (and values, with `val_pos_emb`) then use
    K + W_pos_emb_std^2 R (SUM), or (C K + P W_pos_emb_std^2 R) / (C + P) (CONCAT, P channels), in
    place of K, and the same expressions of T in place of T. The limit with embeddings is that of
    many input channels. Masked positions do not serve as keys.

    Source: arXiv:2006.10540.

    Args:
      n_chan_out: number of output channels.
      n_chan_key: number of channels of queries and keys, per head.
      n_chan_val: number of channels of values, per head.
      n_heads: number of heads.
      linear_scaling: scale logits by 1 / n_chan_key, with tied queries and keys, instead of
        1 / sqrt(n_chan_key).
      W_key_std: standard deviation of the weights of keys.
      W_value_std: standard deviation of the weights of values.
      W_query_std: standard deviation of the weights of queries.
      W_out_std: standard deviation of the output weights.
      b_std: standard deviation of the biases, one per output channel; None means no bias.
      attention_mechanism: an `AttentionMechanism` or its name.
      pos_emb_type: a `PositionalEmbedding` or its name.
      pos_emb_p_norm: p in the distance of positions i and j, the sum over axes of |i - j|^p.
      pos_emb_decay_fn: elementwise function from distances to covariances R, to be positive
        definite; None means R = I.
      n_chan_pos_emb: number of channels of the embeddings; None means that of the input.
      W_pos_emb_std: standard deviation of the embeddings.
      val_pos_emb: whether embeddings enter the values too.
      batch_axis: axis of the samples.
      channel_axis: axis of the channels.

    Raises:
      ValueError: unknown options, widths below 1, or embeddings that do not fit the input.
      NotImplementedError: at kernel time, linear_scaling=False with another mechanism than
        IDENTITY.

    Example:
      >>> from widelimit import stax
      >>> net = stax.serial(
      ...     stax.Conv(64, (3, 3), padding="SAME"),
      ...     stax.GlobalSelfAttention(64, n_chan_key=16, n_chan_val=16, n_heads=4),
      ...     stax.GlobalAvgPool(),
      ...     stax.Dense(1),
      ... )
      >>> net.output_shape((8, 16, 16, 3))
      (8, 1)
    """

    n_chan_out: Size = static()
    n_chan_key: Size = static()
    n_chan_val: Size = static()
    n_heads: Size = static()
    linear_scaling: bool = static(default=True)
    W_key_std: Scalar = 1.0
    W_value_std: Scalar = 1.0
    W_query_std: Scalar = 1.0
    W_out_std: Scalar = 1.0
    b_std: Scalar | None = None
    attention_mechanism: str | AttentionMechanism = static(default="SOFTMAX")
    pos_emb_type: str | PositionalEmbedding = static(default="NONE")
    pos_emb_p_norm: int | float = static(default=2)
    pos_emb_decay_fn: Function | None = static(default=None)
    n_chan_pos_emb: Size | None = static(default=None)
    W_pos_emb_std: Scalar = 1.0
    val_pos_emb: bool = static(default=False)
    batch_axis: int = static(default=0)
    channel_axis: int = static(default=-1)

    def __post_init__(self) -> None:
        super().__post_init__()
        put = functools.partial(object.__setattr__, self)
        for name in _WIDTHS:
            put(name, checked_width(name, getattr(self, name)))
        if self.n_chan_pos_emb is not None:
            put("n_chan_pos_emb", checked_width("n_chan_pos_emb", self.n_chan_pos_emb))
        for name in _STDS:
            check_number(name, getattr(self, name))
        if self.b_std is not None:
            check_number("b_std", self.b_std)
        mechanism = option_name(AttentionMechanism, "attention_mechanism", self.attention_mechanism)
        put("attention_mechanism", mechanism)
        put("pos_emb_type", option_name(PositionalEmbedding, "pos_emb_type", self.pos_emb_type))

    def input_axes(self) -> tuple[int, int]:
        return self.batch_axis, self.channel_axis

    def output_shape(self, shape: Shapes) -> Shapes:
        checked_axis(self.batch_axis, shape)
        axis = checked_axis(self.channel_axis, shape)
        return (*shape[:axis], self.n_chan_out, *shape[axis + 1 :])

    def _signal(self, shape: Shapes) -> Signal:
        ends = checked_axis(self.batch_axis, shape), checked_axis(self.channel_axis, shape)
        return Signal(shape, shape, *ends)

    def _embedding_channels(self, channels: int) -> int:
        """Returns the number of channels of the embeddings for a number of input channels."""
        return channels if self.n_chan_pos_emb is None else self.n_chan_pos_emb

    @property
    def _logit_std(self) -> Scalar:
        return self.W_query_std * self.W_key_std

    @property
    def _output_std(self) -> Scalar:
        return self.W_out_std * self.W_value_std

    # The finite layer.

    def init(self, key: Key, shape: Shapes) -> Params:
        signal = self._signal(shape)
        keyed = valued = signal.channels
        extra = self._embedding_channels(keyed)
        if self.pos_emb_type == "SUM" and extra != keyed:
            raise ValueError(
                f"expected as many channels in embeddings as in the input to add them, got "
                f"n_chan_pos_emb={extra} and an input of shape {shape}"
            )
        if self.pos_emb_type == "CONCAT":
            keyed += extra
            valued += extra if self.val_pos_emb else 0

        ends = {signal.batch_axis: 1, signal.channel_axis: self.n_chan_out}
        bias = tuple(ends.get(axis, 1) for axis in range(len(shape)))
        ends[signal.channel_axis] = extra
        embedding = tuple(ends.get(axis, size) for axis, size in enumerate(shape))
        shapes = (
            None if self.linear_scaling else (self.n_heads, keyed, self.n_chan_key),
            (self.n_heads, keyed, self.n_chan_key),
            (self.n_heads, valued, self.n_chan_val),
            (self.n_heads * self.n_chan_val, self.n_chan_out),
            None if self.b_std is None else bias,
            None if self.pos_emb_type == "NONE" else embedding,
        )
        keys = jax.random.split(key, len(shapes))
        return tuple(
            None if s is None else jax.random.normal(k, s)
            for k, s in zip(keys, shapes, strict=True)
        )

    def apply(self, params: Params, x: Arrays, context: Context) -> Arrays:
        query, key, value, out, bias, embedding = params
        signal = self._signal(x.shape)
        rows = _rows(x, signal)
        keyed = rows if embedding is None else self._embed(rows, embedding, signal)
        valued = keyed if self.val_pos_emb else rows
        for weights, inputs in ((key, keyed), (value, valued)):
            if weights.shape[1] != inputs.shape[-1]:
                raise ValueError(
                    f"expected {weights.shape[1]} channels with embeddings, as in init_fn, got "
                    f"{inputs.shape[-1]} from an input of shape {x.shape}"
                )
        keep = self._visible(context.mask, signal)
        weights = self._attend(keyed, key if query is None else query, key, keep)
        values = jnp.einsum("nqc,hcv->nhqv", valued, value)
        heads = jnp.einsum("nhpq,nhqv->nphv", weights, values)
        flat = heads.reshape(*heads.shape[:2], -1) @ out
        flat = flat * (self._output_std / (len(out) * valued.shape[-1]) ** 0.5)
        order = signal.to_canonical()
        result = flat.reshape(-1, *signal.spatial, flat.shape[-1]).transpose(np.argsort(order))
        return result if bias is None else result + self.b_std * bias

    def _embed(self, rows: Array, embedding: Array, signal: Signal) -> Array:
        """Returns the activations [n, p, c] with the embeddings of their positions."""
        features = _rows(embedding, signal)[0]
        if len(features) != rows.shape[1]:
            raise ValueError(
                f"expected {len(features)} positions, as in init_fn, got {rows.shape[1]} from an "
                f"input of shape {signal.shape1}"
            )
        if self.pos_emb_decay_fn is not None:
            root = similarity_factor(self.pos_emb_decay_fn, self.pos_emb_p_norm, signal.spatial)
            features = jnp.asarray(root, features.dtype) @ features
        features = (self.W_pos_emb_std * features)[None]
        if self.pos_emb_type == "SUM":
            return rows + features
        shape = (len(rows), *features.shape[1:])
        return jnp.concatenate([rows, jnp.broadcast_to(features, shape)], -1)

    def _attend(self, rows: Array, query: Array, key: Array, keep: Array | None) -> Array:
        """Returns the weights [n, heads, p, p'] that positions p give to positions p'."""
        queries, keys = (jnp.einsum("npc,hck->nhpk", rows, w) for w in (query, key))
        width = self.n_chan_key if self.linear_scaling else self.n_chan_key**0.5
        logits = jnp.einsum("nhpk,nhqk->nhpq", queries, keys)
        logits = logits * (self._logit_std / (rows.shape[-1] * width))
        return self._weigh(logits, None if keep is None else keep[:, None, None])

    def _weigh(self, logits: Array, keep: Array | None) -> Array:
        """Returns weights from logits [..., p, p'], zero at positions p' that are not keys."""
        if keep is not None:
            softmax = self.attention_mechanism == "SOFTMAX"
            logits = jnp.where(keep, logits, jnp.finfo(logits.dtype).min if softmax else 0)
        match self.attention_mechanism:
            case "SOFTMAX":
                return jax.nn.softmax(logits, axis=-1)
            case "ABS":
                return jnp.abs(logits)
            case "RELU":
                return jax.nn.relu(logits)
            case _:
                return logits

    def _visible(self, mask: Array | None, signal: Signal) -> Array | None:
        """Returns which positions [n, p] are keys; None for all."""
        hidden = one_channel(collapse(mask, signal.channel_axis), signal, self.label)
        return None if hidden is None else ~hidden

    def mask(self, mask: Masks, shape: Shapes) -> Masks:
        return collapse(mask, checked_axis(self.channel_axis, shape))

    # The infinite layer.

    def needs(self, need: Needs, signal: Signals) -> Needs:
        return Need.full(signal.spatial, own=self.linear_scaling or need.own.wanted)

    def propagate(self, cov: Covariances, site: Site) -> Covariances:
        if not self.linear_scaling and self.attention_mechanism != "IDENTITY":
            raise NotImplementedError(
                "expected linear_scaling=True or attention_mechanism='IDENTITY' for a kernel, got "
                f"linear_scaling=False with {self.attention_mechanism!r}, which has no closed "
                "form; the finite layer works"
            )
        first, second = (self._visible(mask, site.signal_in) for mask in site.masks_in)
        keep = first, first if cov.symmetric else second
        axes = tuple(range(len(site.signal_in.spatial)))
        keyed = self._with_embeddings(cov, keep, axes)
        valued = keyed if self.val_pos_emb else cov
        w = self._output_std**2
        if self.linear_scaling:
            maps = self._maps(open_pairs(keyed, axes), keep)
            mixed = position_maps(valued, maps, axes, site.signal_out, site.need_out)
            trained = 2  # values and output
        else:
            w = w * self._logit_std**2
            products = _products(open_pairs(keyed, axes), open_pairs(valued, axes))
            mixed = close_pairs(cov, products, axes, site.signal_out, site.need_out)
            trained = 4  # queries and keys too
        b = None if self.b_std is None else self.b_std**2
        out = affine(mixed, Affine(w, b, trained * w, b), site.signal_out)
        return out.replace(origins=frozenset({site.path}))

    def _maps(self, keyed: Parts, keep: tuple[Array | None, Array | None]) -> tuple[Array, Array]:
        """Returns the weights [n, p, p'] of positions of both sides, fixed in the limit."""

        def weigh(own: Array, visible: Array | None) -> Array:
            logits = self._logit_std * own[:, 0, 0]
            return self._weigh(logits, None if visible is None else visible[:, None])

        first = weigh(keyed.cov1, keep[0])
        return first, first if keyed.cov2 is None else weigh(keyed.cov2, keep[1])

    def _with_embeddings(
        self, cov: Covariances, keep: tuple[Array | None, Array | None], axes: tuple[int, ...]
    ) -> Covariances:
        """Returns the covariances, at all offsets, of activations with embeddings."""
        if self.pos_emb_type == "NONE":
            return cov
        spatial, channels = cov.signal.spatial, cov.signal.channels
        share, weight = 1.0, self.W_pos_emb_std**2
        if self.pos_emb_type == "CONCAT":
            extra = self._embedding_channels(channels)
            share, weight = channels / (channels + extra), weight * extra / (channels + extra)
        positions = np.eye(cov.signal.positions)
        if self.pos_emb_decay_fn is not None:
            positions = similarities(self.pos_emb_decay_fn, self.pos_emb_p_norm, spatial)
        added = weight * jnp.asarray(positions, cov.nngp.dtype)

        def embedded(value: Array, part: Pairing) -> Array:
            return share * value + _hide(added, part, keep)

        before = open_pairs(cov, axes)
        if cov.tangent and before.ntk is None:
            before = before._replace(ntk=jnp.zeros_like(before.nngp))
        return close_pairs(cov, before.map(embedded), axes, cov.signal, cov.need)


def _products(keyed: Parts, valued: Parts) -> Parts:
    """Returns <K, V> K, and for the tangent <T, V> K + <K, T_V> K + <K, V> T.

    Args:
      keyed: covariances K and tangents T of the inputs of queries and keys.
      valued: covariances V and tangents T_V of the inputs of values.
    """

    def inner(a: Array, b: Array) -> Array:
        return (a * b).sum((-1, -2), keepdims=True)

    def product(k: Array, v: Array) -> Array:
        return inner(k, v) * k

    ntk = None
    if keyed.ntk is not None:
        ntk = inner(keyed.nngp, valued.nngp) * keyed.ntk
        ntk = ntk + inner(keyed.ntk, valued.nngp) * keyed.nngp
        if valued.ntk is not None:
            ntk = ntk + inner(keyed.nngp, valued.ntk) * keyed.nngp
    cov2 = None
    if keyed.cov2 is not None and valued.cov2 is not None:
        cov2 = product(keyed.cov2, valued.cov2)
    return Parts(product(keyed.nngp, valued.nngp), ntk, product(keyed.cov1, valued.cov1), cov2)


def _hide(matrix: Array, part: Pairing, keep: tuple[Array | None, Array | None]) -> Array:
    """Returns a matrix [p, p'] as a part of covariances, zero where a position is not visible.

    Args:
      matrix: the matrix.
      part: the part that it is added to.
      keep: bool [n, p] of both sides, True where positions are visible; None for all.
    """
    out = matrix.reshape((1,) * (part.axes + 2) + matrix.shape)
    first, second = (keep[side] for side in part.sides)
    if first is not None:
        rows = first if part.own else first[:, None]
        out = jnp.where(rows[..., None, None, :, None], out, 0)
    if second is not None:
        columns = second if part.own else second[None]
        out = jnp.where(columns[..., None, None, None, :], out, 0)
    return out


def _rows(x: Array, signal: Signal) -> Array:
    """Returns activations as [n, p, channels]."""
    x = x.transpose(signal.to_canonical())
    return x.reshape(len(x), -1, x.shape[-1])
