"""Attention: direct formulas, wide finite networks, a plain finite form, masks, options."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import monte_carlo
from tests.tolerance import assert_close
from widelimit._pytree import pytree
from widelimit.covariance.verbs import Affine, affine
from widelimit.stax import (
    AttentionMechanism,
    Dense,
    Flatten,
    GlobalAvgPool,
    GlobalSelfAttention,
    PositionalEmbedding,
    Relu,
    serial,
)

KEY = jax.random.PRNGKey(0)
BOTH = ("nngp", "ntk")
STDS = {"W_key_std": 1.2, "W_value_std": 1.1, "W_query_std": 0.9, "W_out_std": 1.3, "b_std": 0.3}
SQUARE = {"linear_scaling": False, "attention_mechanism": "IDENTITY"}


def decay(distance):
    return jnp.exp(-distance / 3)


SUM = {"pos_emb_type": "SUM", "W_pos_emb_std": 0.7}
CONCAT = {"pos_emb_type": "CONCAT", "W_pos_emb_std": 1.4, "n_chan_pos_emb": 4}
DECAY = {"pos_emb_decay_fn": decay, "pos_emb_p_norm": 1}

OPTIONS = [
    {},
    {"attention_mechanism": "ABS", "b_std": None},
    {"attention_mechanism": "RELU", **SUM},
    {"attention_mechanism": "IDENTITY", **CONCAT, **DECAY},
    {**SUM, **DECAY, "val_pos_emb": True},
    SQUARE,
    {**SQUARE, **SUM, "val_pos_emb": True},
    {**SQUARE, **CONCAT, **DECAY, "b_std": None},
]
NAMES = ["softmax", "abs", "relu-sum", "identity-concat", "sum", "square", "square-sum"]
NAMES.append("square-concat")
QUICK = {"softmax", "identity-concat", "square-concat"}
options = pytest.mark.parametrize(
    "options",
    [
        pytest.param(value, id=name, marks=[] if name in QUICK else [pytest.mark.slow])
        for name, value in zip(NAMES, OPTIONS, strict=True)
    ],
)


def layer(**options: Any) -> Any:
    return GlobalSelfAttention(3, 4, 2, 2, **STDS | options)


def inputs(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def draw(net: Any, shape: tuple[int, ...]) -> Any:
    """Parameters of a finite network; jax.random would compile once per shape."""
    params = jax.eval_shape(lambda key: net.init_fn(key, shape)[1], KEY)
    rng = np.random.default_rng(5)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), leaf.dtype), params
    )


ZETA = {
    "SOFTMAX": lambda a: np.exp(a) / np.exp(a).sum(-1, keepdims=True),
    "ABS": np.abs,
    "RELU": lambda a: np.maximum(a, 0),
    "IDENTITY": lambda a: a,
}


def similarity(net: Any, spatial: tuple[int, ...]) -> np.ndarray:
    points = np.array(list(np.ndindex(*spatial)))
    if net.pos_emb_decay_fn is None:
        return np.eye(len(points))
    steps = [[sum(abs(i - j) ** net.pos_emb_p_norm) for j in points] for i in points]
    return np.exp(-np.array(steps) / 3)


def direct(net: Any, k: Any, t: Any, own1: Any, own2: Any, r: Any, channels: int) -> Any:
    """K' and T' [n, m, p, p'] by the formulas, from K, T and the own covariances [n, p, p']."""
    a, g = 1.0, net.W_pos_emb_std**2
    if net.pos_emb_type == "CONCAT":
        extra = net.n_chan_pos_emb
        a, g = channels / (channels + extra), g * extra / (channels + extra)
    if net.pos_emb_type == "NONE":
        a, g = 1.0, 0.0
    kk, tt, own1, own2 = (a * m + g * r for m in (k, t, own1, own2))
    kv, tv = (kk, tt) if net.val_pos_emb else (k, t)
    qk, ov = net.W_query_std * net.W_key_std, net.W_out_std * net.W_value_std
    b = 0.0 if net.b_std is None else net.b_std**2
    if net.linear_scaling:
        zeta = ZETA[net.attention_mechanism]
        g1, g2 = zeta(qk * own1), zeta(qk * own2)
        out = ov**2 * np.einsum("nab,nmbc,mdc->nmad", g1, kv, g2)
        return out + b, ov**2 * np.einsum("nab,nmbc,mdc->nmad", g1, tv, g2) + 2 * out + b

    def inner(a: Any, b: Any) -> Any:
        return np.einsum("nmab,nmab->nm", a, b)[:, :, None, None]

    w = (qk * ov) ** 2
    out = w * inner(kk, kv) * kk
    growth = w * ((inner(tt, kv) + inner(kk, tv)) * kk + inner(kk, kv) * tt)
    return out + b, growth + 4 * out + b


def dense_kernel(x1: np.ndarray, x2: np.ndarray) -> np.ndarray:
    """K of Dense(., 1.3, 0.2) over flat positions."""
    return 1.69 * np.einsum("npc,mqc->nmpq", x1, x2) / x1.shape[-1] + 0.04


def flat_pairs(kernel: Any, positions: int) -> np.ndarray:
    """[n, m, h, h, w, w] as [n, m, p, p']."""
    kernel = np.moveaxis(np.asarray(kernel), (2, 4), (2, 3))
    return kernel.reshape(*kernel.shape[:2], positions, positions)


def by_hand(net: Any, x1: np.ndarray, x2: np.ndarray) -> Any:
    spatial = x1.shape[1:-1]
    x1, x2 = (x.reshape(len(x), -1, x.shape[-1]) for x in (x1, x2))
    own1, own2 = (np.stack([dense_kernel(x[None], x[None])[0, 0] for x in s]) for s in (x1, x2))
    k = dense_kernel(x1, x2)
    return direct(net, k, k, own1, own2, similarity(net, spatial), 5)


@options
@pytest.mark.usefixtures("x64")
def test_kernels_follow_the_formulas(options):
    x1, x2 = inputs(2, 2, 3, 4), inputs(1, 2, 3, 4, seed=1)
    net = layer(**options)
    kernel = serial(Dense(5, 1.3, 0.2), net).kernel_fn(x1, x2)
    nngp, ntk = by_hand(net, x1, x2)
    assert_close(flat_pairs(kernel.nngp, 6), nngp)
    assert_close(flat_pairs(kernel.ntk, 6), ntk)
    assert kernel.is_gaussian
    assert kernel.shape1 == (2, 2, 3, 3)
    own = np.moveaxis(np.asarray(kernel.cov1), (1, 3), (1, 2)).reshape(2, 6, 6)
    assert_close(own, np.stack([by_hand(net, x[None], x[None])[0][0, 0] for x in x1]))


@pytree
class _Transposed(GlobalSelfAttention):
    """Attends from keys to queries."""

    def _maps(self, keyed: Any, keep: Any) -> Any:
        return tuple(m.swapaxes(-1, -2) for m in super()._maps(keyed, keep))


@pytree
class _FrozenValues(GlobalSelfAttention):
    """Forgets the gradient with respect to one set of weights."""

    def propagate(self, cov: Any, site: Any) -> Any:
        out = super().propagate(cov, site)
        b = self.b_std**2
        return out.replace(ntk=out.ntk - (out.nngp - b))


@pytree
class _WithoutBias(GlobalSelfAttention):
    def propagate(self, cov: Any, site: Any) -> Any:
        out = super().propagate(cov, site)
        return affine(out, Affine(1.0, -(self.b_std**2), 0.0, 0.0), site.signal_out)


MISTAKES = {
    "attention transposed": (_Transposed, BOTH),
    "values not trained": (_FrozenValues, ("ntk",)),
    "bias dropped": (_WithoutBias, ("nngp",)),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.usefixtures("x64")
def test_planted_mistakes_break_the_formulas(mistake):
    kind, caught = MISTAKES[mistake]
    x = inputs(2, 1, 3, 4)
    net = kind(3, 4, 2, 2, **STDS)
    kernel = serial(Dense(5, 1.3, 0.2), net).kernel_fn(x, None, BOTH)
    for get, value in zip(BOTH, by_hand(net, x, x), strict=True):
        if get in caught:
            assert np.abs(flat_pairs(getattr(kernel, get), 3) / value - 1).max() > 0.01


def network(kind: Any = GlobalSelfAttention, **options: Any) -> Any:
    """Widths that all grow; heads in great number where logits stay random."""
    square = options.get("linear_scaling") is False

    def build(width: int, out: int) -> Any:
        half = width // 2
        sizes = (width // 64, width // 64, width) if square else (half, half, 2)
        attention = kind(width, *sizes, **STDS | options)
        after = () if square else (Relu(),)
        base = Dense(4 * width if square else width, 1.3, 0.5)
        return serial(base, attention, *after, GlobalAvgPool(), Dense(4 * out, 1.1))

    return build


def batches() -> tuple[np.ndarray, np.ndarray]:
    """Two batches; their covariances stay away from 0, the kink of ABS and RELU."""
    x = inputs(4, 3, 4) + 0.5
    return x[:2], x[2:]


@functools.cache
def samples() -> Any:
    return monte_carlo.sample(network(), *batches())


@pytest.mark.slow
def test_softmax_is_the_limit_of_finite_networks():
    estimate = monte_carlo.compare(network(), *batches(), samples())
    assert monte_carlo.agrees(estimate).all(), estimate


@pytest.mark.slow
@pytest.mark.parametrize("mistake", ["attention transposed", "values not trained"])
def test_finite_networks_refute_planted_mistakes(mistake):
    kind, caught = MISTAKES[mistake]
    right = monte_carlo.agrees(monte_carlo.compare(network(kind), *batches(), samples()))
    assert not right[[BOTH.index(get) for get in caught]].any()


@pytest.mark.slow
def test_attention_with_random_logits_is_the_limit_of_finite_networks():
    estimate = monte_carlo.compare(network(**SQUARE), *batches())
    assert monte_carlo.agrees(estimate).all(), estimate


WIDE = {
    "abs": {"attention_mechanism": "ABS"},
    "relu": {"attention_mechanism": "RELU"},
    "identity": {"attention_mechanism": "IDENTITY"},
    "sum": {**SUM, **DECAY, "val_pos_emb": True},
    "concat": {"pos_emb_type": "CONCAT", "W_pos_emb_std": 1.4},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WIDE)
def test_other_mechanisms_are_the_limit_of_finite_networks(name):
    estimate = monte_carlo.compare(network(**WIDE[name]), *batches())
    assert monte_carlo.agrees(estimate).all(), estimate


@pytest.mark.slow
@pytest.mark.parametrize("val_pos_emb", [False, True])
def test_random_logits_with_embeddings_are_the_limit_of_finite_networks(val_pos_emb):
    options = {**SQUARE, **WIDE["concat"], **DECAY, "val_pos_emb": val_pos_emb}
    estimate = monte_carlo.compare(network(**options), *batches())
    assert monte_carlo.agrees(estimate).all(), estimate


def plain_attention(net: Any, params: Any, x: np.ndarray) -> np.ndarray:
    """The finite layer on [n, h, w, c], head by head and sample by sample."""
    query, key, value, out, bias, embedding = (None if p is None else np.asarray(p) for p in params)
    rows = x.reshape(len(x), -1, x.shape[-1])
    keyed = rows
    if embedding is not None:
        features = embedding.reshape(rows.shape[1], -1)
        root = np.linalg.cholesky(similarity(net, x.shape[1:-1]))
        features = net.W_pos_emb_std * root @ features
        together = np.add if net.pos_emb_type == "SUM" else lambda a, b: np.concatenate([a, b], -1)
        keyed = np.stack([together(row, features) for row in rows])
    valued = keyed if net.val_pos_emb else rows
    power = 1 if net.linear_scaling else 0.5
    results = []
    for keys, values in zip(keyed, valued, strict=True):
        heads = []
        for h in range(net.n_heads):
            q = keys @ (key if query is None else query)[h]
            logits = q @ (keys @ key[h]).T / (keys.shape[1] * net.n_chan_key**power)
            logits *= net.W_query_std * net.W_key_std
            heads.append(ZETA[net.attention_mechanism](logits) @ values @ value[h])
        joined = np.concatenate(heads, -1) @ out
        scale = (net.n_heads * net.n_chan_val * values.shape[1]) ** 0.5
        results.append(net.W_out_std * net.W_value_std * joined / scale)
    result = np.stack(results).reshape(*x.shape[:-1], net.n_chan_out)
    return result if bias is None else result + net.b_std * bias


@options
@pytest.mark.usefixtures("x64")
def test_finite_layer(options):
    x = inputs(2, 2, 3, 4)
    for net in (layer(**options), layer(**options | {"linear_scaling": False})):
        params = draw(net, x.shape)
        assert [p is None for p in params] == [
            net.linear_scaling,
            False,
            False,
            False,
            net.b_std is None,
            net.pos_emb_type == "NONE",
        ]
        assert_close(jax.jit(net.apply_fn)(params, x), plain_attention(net, params, x))


@pytest.mark.usefixtures("x64")
def test_weights_of_another_number_of_outputs():
    x = inputs(2, 3, 4, 5)
    narrow, wide = layer(), GlobalSelfAttention(6, 4, 2, 2, **STDS)
    params = draw(wide, x.shape)
    assert_close(narrow.apply_fn(params, x), wide.apply_fn(params, x))


def test_other_axes():
    x = inputs(2, 2, 3, 4)
    swapped = np.moveaxis(x, (0, 3), (2, 1))
    options = {**CONCAT, **DECAY, "val_pos_emb": True}
    net, other = layer(**options), layer(**options, batch_axis=2, channel_axis=1)
    params = draw(net, x.shape)
    assert net.output_shape(x.shape) == (2, 2, 3, 3)
    assert other.output_shape(swapped.shape) == (2, 3, 2, 3)
    moved = [p if p is None or p.ndim < 4 else jnp.moveaxis(p, (0, 3), (2, 1)) for p in params]
    out = jax.jit(other.apply_fn)(tuple(moved), swapped)
    assert_close(np.moveaxis(out, (2, 1), (0, 3)), jax.jit(net.apply_fn)(params, x))
    assert_close(other.kernel_fn(swapped, None, "nngp"), net.kernel_fn(x, None, "nngp"))


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="softmax"),
        pytest.param({**CONCAT, **DECAY}, id="concat", marks=pytest.mark.slow),
        pytest.param({**SQUARE, **SUM, **DECAY}, id="square"),
    ],
)
@pytest.mark.usefixtures("x64")
def test_masked_positions_are_as_if_absent(options):
    x1, x2 = inputs(2, 5, 4), inputs(2, 5, 4, seed=1)
    net = serial(Dense(6, 1.3, 0.4), layer(**options, val_pos_emb=True), Relu(), GlobalAvgPool())
    short = net.kernel_fn(x1[:1, :3], x2[:1, :3], BOTH)
    params = draw(net, x1.shape)
    cut = [p if p is None or p.ndim < 3 or len(p) > 1 else p[:, :3] for p in params[1]]
    out = net.apply_fn([params[0], tuple(cut), *params[2:]], x1[:1, :3])
    x1[0, 3:] = x2[0, 3:] = x1[1] = x2[1, 1] = np.nan
    kernel = net.kernel_fn(x1, x2, BOTH, mask_constant=np.nan)
    for get in BOTH:
        assert_close(getattr(kernel, get)[0, 0], getattr(short, get)[0, 0])
        assert not np.any(getattr(kernel, get)[1])
        assert np.isfinite(getattr(kernel, get)).all()
    masked = net.apply_fn(params, x1, mask_constant=np.nan)
    assert_close(masked.masked_value[0], out[0])
    assert masked.mask.tolist() == [[False], [True]]
    assert jnp.isfinite(masked.masked_value).all()


@pytest.mark.usefixtures("x64")
def test_masks_per_channel_hide_positions_that_are_masked_on_all():
    x = inputs(2, 4, 3)
    x[0, 1, 2] = x[0, 3] = 9.0
    kernel = layer().kernel_fn(x, None, BOTH, mask_constant=9.0)
    zeroed = np.where(x == 9.0, 0, x)
    short = layer().kernel_fn(zeroed[:1, :3], None, BOTH)
    assert_close(kernel.nngp[0, 0, :3, :3], short.nngp[0, 0])
    assert_close(kernel.ntk[0, 0, :3, :3], short.ntk[0, 0])
    assert not np.any(kernel.nngp[0, :, 3])


@pytest.mark.optimised
@pytest.mark.parametrize("options", [{**SUM, **DECAY}])
@pytest.mark.usefixtures("x64")
def test_equal_copies_blocks_and_tracing_give_the_same_kernel(options):
    net = serial(Dense(5, 1.2, 0.3), Relu(), layer(**options), Relu(), Flatten(), Dense(2))
    x = inputs(3, 4, 2)
    alone = net.kernel_fn(x, None, BOTH)
    copy = net.kernel_fn(x, x.copy(), BOTH)
    block = net.kernel_fn(x[:2], x[2:], BOTH)
    traced = jax.jit(lambda net, x, y: net.kernel_fn(x, y, BOTH))(net, x[:2], x[2:])
    for get in BOTH:
        value = getattr(alone, get)
        assert_close(getattr(copy, get), value)
        assert_close(getattr(block, get), value[:2, 2:])
        assert_close(getattr(traced, get), value[:2, 2:])


@pytest.mark.usefixtures("x64")
def test_raw_input_has_no_tangent_but_that_of_embeddings():
    x = inputs(2, 3, 4)
    k = np.einsum("npc,mqc->nmpq", x, x) / 4
    own = np.einsum("npc,nqc->npq", x, x) / 4
    for options in ({**SUM, "val_pos_emb": True}, {**SQUARE, **CONCAT}):
        net = layer(**options)
        nngp, ntk = direct(net, k, 0 * k, own, own, np.eye(3), 4)
        kernel = net.kernel_fn(x, None, BOTH)
        assert_close(kernel.nngp, nngp)
        assert_close(kernel.ntk, ntk)


@pytest.mark.parametrize("options", [{**CONCAT, **DECAY}, {**SQUARE, "b_std": None}])
def test_derivatives_are_finite_at_equal_and_at_zero_inputs(options):
    x = jnp.asarray(np.concatenate([inputs(1, 3, 2).repeat(2, 0), np.zeros((1, 3, 2))]))
    net = serial(layer(**options), Relu(), GlobalAvgPool(), Dense(1))

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1))
    def gradient(net, x):
        k = net.kernel_fn(x, None, BOTH)
        return k.nngp.sum() + k.ntk.sum()

    by_net, by_x = gradient(net, x)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((by_net, by_x)))
    attention = by_net.layers[0]
    assert attention.W_query_std != 0
    assert (attention.W_pos_emb_std != 0) == (net.layers[0].pos_emb_type != "NONE")


def test_options_as_members_and_as_names():
    net = layer(attention_mechanism=AttentionMechanism.ABS, pos_emb_type=PositionalEmbedding.CONCAT)
    assert (net.attention_mechanism, net.pos_emb_type) == ("ABS", "CONCAT")
    assert repr(GlobalSelfAttention(1, 2, 3, 4)) == "GlobalSelfAttention(1, 2, 3, 4)"
    assert [m.name for m in AttentionMechanism] == ["SOFTMAX", "IDENTITY", "ABS", "RELU"]
    for bad in ({"attention_mechanism": "softmax"}, {"pos_emb_type": PositionalEmbedding}):
        with pytest.raises(ValueError, match=r"expected .* to be one of"):
            layer(**bad)


def test_refusals():
    x = inputs(2, 3, 4).astype(np.float32)
    for mechanism in ("SOFTMAX", "ABS", "RELU"):
        net = layer(linear_scaling=False, attention_mechanism=mechanism)
        with pytest.raises(
            NotImplementedError, match=f"got linear_scaling=False with '{mechanism}'"
        ):
            net.kernel_fn(x)
    with pytest.raises(ValueError, match="n_heads of at least 1, got 0"):
        GlobalSelfAttention(1, 2, 3, 0)
    with pytest.raises(TypeError, match="a number for W_out_std"):
        layer(W_out_std=[1.0, 2.0])
    with pytest.raises(ValueError, match="as many channels in embeddings as in the input"):
        layer(**SUM, n_chan_pos_emb=3).init_fn(KEY, x.shape)
    net = layer(**SUM)
    params = draw(net, x.shape)
    with pytest.raises(ValueError, match="expected 3 positions, as in init_fn, got 2"):
        net.apply_fn(params, x[:, :2])
    params = draw(layer(), x.shape)
    with pytest.raises(ValueError, match="expected 4 channels with embeddings, as in init_fn"):
        layer().apply_fn(params, x[..., :2])
    net = layer(**SUM, pos_emb_decay_fn=lambda d: 1 + d)
    with pytest.raises(ValueError, match=r"positive definite matrix .* got smallest eigenvalue -4"):
        net.apply_fn(draw(net, x.shape), x)
    with pytest.raises(ValueError, match="one finite number per distance"):
        layer(**SUM, pos_emb_decay_fn=lambda d: 1 / d).kernel_fn(x)
