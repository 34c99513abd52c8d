"""Small functions of parameters and inputs, on which all ways to compute a kernel must agree."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def _is_shape(tree):
    return isinstance(tree, tuple) and all(isinstance(size, int) for size in tree)


@dataclasses.dataclass(frozen=True)
class Case:
    """A function with what to call it on.

    Attributes:
      f: f(params, x).
      params: a tree of shapes; a tuple is a shape if it holds integers alone.
      x: shape of one sample, or a function of numpy generator and number of samples.
      samples: of x1 and x2.
      vmap: whether samples are independent, along the first axis of inputs and outputs.
      trace: trace axes.
      diagonal: diagonal axes.
      complex: whether the parameters are.
    """

    f: Callable[..., Any]
    params: Any
    x: Any = (3,)
    samples: tuple[int, int] = (2, 3)
    vmap: bool = True
    trace: tuple[int, ...] = (-1,)
    diagonal: tuple[int, ...] = ()
    complex: bool = False

    def draw(self) -> tuple[Any, Any, Any]:
        """Returns parameters, x1 and x2."""
        rng = np.random.default_rng(0)

        def leaf(shape):
            array = rng.standard_normal(shape)
            return jnp.asarray(array + 1j * rng.standard_normal(shape) if self.complex else array)

        params = jax.tree.map(leaf, self.params, is_leaf=_is_shape)
        make = self.x if callable(self.x) else lambda rng, n: rng.standard_normal((n, *self.x))
        x1, x2 = (jax.tree.map(jnp.asarray, make(rng, n)) for n in self.samples)
        return params, x1, x2


CASES: dict[str, Case] = {}


def case(params, x=(3,), **options):
    """Returns a decorator that puts a function into the zoo."""

    def register(f):
        CASES[f.__name__] = Case(f, params, x, **options)
        return f

    return register


def tokens(*shape, size=5, low=0):
    return lambda rng, n: rng.integers(low, size, (n, *shape))


def conv(x, w, strides=(1, 1), padding="SAME", numbers=("NHWC", "HWIO", "NHWC"), **options):
    return lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=numbers, **options)


def bias(b, x):
    return b.reshape((1,) * (x.ndim - b.ndim) + b.shape)


# Dense layers.


@case({"w": (3, 2)})
def linear(p, x):
    return x @ p["w"]


@case({"w": (3, 4), "b": (4,), "v": (4, 2), "c": (2,)})
def mlp(p, x):
    h = jnp.tanh(x @ (p["w"] / np.sqrt(3)) + 0.1 * bias(p["b"], x))
    return h @ p["v"] * 0.5 + bias(p["c"], h)


@case({"w": (3, 4), "b": (4,), "v": (4, 2)})
def relu_network(p, x):
    return jax.nn.relu(x @ p["w"] + bias(p["b"], x)) @ p["v"]


@case([(3, 4), (4, 4), (4, 2)])
def gelu_network_with_list(p, x):
    for w in p[:-1]:
        x = jax.nn.gelu(x @ w)
    return x @ p[-1]


@case({"w": (3, 4), "v": (4, 3)})
def softmax_outputs(p, x):
    return jax.nn.log_softmax(jax.nn.silu(x @ p["w"]) @ p["v"], axis=-1)


@case({"w": (3,), "b": ()}, trace=())
def one_number_per_sample(p, x):
    return jnp.tanh(x @ p["w"] + p["b"])


@case({"w": (3, 4), "s": ()}, vmap=False, trace=())
def scalar(p, x):
    return (jnp.tanh(x @ p["w"]) * p["s"]).sum()


@case({"w": (3, 2, 4), "b": (2, 4)}, trace=(2,), diagonal=(1,))
def matrix_outputs_with_diagonal(p, x):
    return jnp.tanh(jnp.einsum("nd,dhk->nhk", x, p["w"]) + bias(p["b"], x[..., None]))


@case({"w": (3, 2, 4)}, trace=())
def matrix_outputs_without_trace(p, x):
    return jnp.sin(jnp.einsum("nd,dhk->nhk", x, p["w"]))


@case({"w": (3, 4), "v": (4, 2)}, samples=(3, 3), vmap=False, trace=(0,))
def trace_over_samples(p, x):
    return jnp.tanh(x @ p["w"]) @ p["v"]


@case({"w": (3, 4), "v": (4, 2)}, samples=(3, 3), diagonal=(0,))
def diagonal_over_samples(p, x):
    return jnp.tanh(x @ p["w"]) @ p["v"]


@case({"w": (3, 4)}, x=lambda rng, n: {"a": rng.random((n, 3)), "b": (rng.random((n, 3)),)})
def dictionaries(p, x):
    h = jnp.tanh(x["a"] @ p["w"])
    return {"sum": h + x["b"][0] @ p["w"], "last": h[:, 2:]}


@case(((3, 4), {"v": (4, 2)}))
def several_outputs(p, x):
    h = jnp.tanh(x @ p[0])
    return h, [h @ p[1]["v"], x @ p[0]]


@case({"w": (4, 3), "v": (2, 4), "b": (4,)})
def vectorised_inside(p, x):
    return jax.vmap(lambda x: p["v"] @ jnp.tanh(p["w"] @ x + p["b"]))(x)


@case({"w": (3, 4)}, samples=(0, 2))
def empty_batch(p, x):
    return jnp.tanh(x @ p["w"])


@case({"w": (3, 0), "v": (0, 2), "u": (3, 2)})
def empty_parameters(p, x):
    return x @ p["w"] @ p["v"] + jnp.tanh(x @ p["u"])


@case({"w": (1, 1), "v": (1, 2)}, x=(1,))
def axes_of_size_one(p, x):
    return jnp.tanh(x @ p["w"]) @ p["v"]


@case({"w": (3, 2), "unused": (4,)})
def unused_parameter(p, x):
    return jnp.tanh(x @ p["w"])


# One parameter in several places.


@case({"w": (3, 3)})
def shared_weights(p, x):
    return jnp.tanh(jnp.tanh(x @ p["w"]) @ p["w"]) @ p["w"]


@case({"w": (3, 4)})
def tied_autoencoder(p, x):
    return jnp.tanh(x @ p["w"]) @ p["w"].T


@case({"w": (3, 3)})
def symmetric_weights(p, x):
    return jnp.tanh(x @ (p["w"] + p["w"].T))


@case({"w": (3, 3)})
def difference_of_weights(p, x):
    return jnp.tanh(x @ (p["w"] - 2 * p["w"].T)) - x @ -p["w"]


@case({"w": (3, 3)})
def square_of_weights(p, x):
    return jnp.tanh(x @ (p["w"] ** 2)) @ p["w"]


@case({"w": (3, 3)})
def gram_of_weights(p, x):
    return jnp.tanh(x @ (p["w"].T @ p["w"]))


@case({"w": (3, 6), "v": (2, 3)})
def parts_of_weights(p, x):
    q, k, v = jnp.split(p["w"], 3, axis=1)
    return jnp.tanh(x @ q) * (x @ k) + (x @ v) @ p["v"][:, :2]


@case({"w": (4, 3)})
def overlapping_parts_of_weights(p, x):
    return jnp.tanh(x @ p["w"][:3]) @ p["w"][1:]


@case({"w": (3, 3, 3)})
def layers_in_one_array(p, x):
    for i in range(3):
        x = jnp.tanh(x @ p["w"][i])
    return x


# Functions of weights.


@case({"v": (3, 4), "g": (4,), "o": (4, 2)})
def weight_normalisation(p, x):
    w = p["g"][None] * p["v"] / jnp.linalg.norm(p["v"], axis=0, keepdims=True)
    return jnp.tanh(x @ w) @ p["o"]


@case({"g": (3,), "v": (3, 4)})
def scaled_rows_of_weights(p, x):
    return jnp.tanh(x @ (p["g"][:, None] * p["v"]))


@case({"w": (3, 4), "a": (3, 2), "b": (2, 4), "v": (4, 2)})
def low_rank_update(p, x):
    return jnp.tanh(x @ (p["w"] + 0.5 * (p["a"] @ p["b"]))) @ p["v"]


@case({"a": (3, 2), "b": (2, 3), "c": (3, 2)})
def product_of_three_weights(p, x):
    return jnp.sin(x @ (p["a"] @ p["b"] @ p["c"]))


@case({"a": (3,), "b": (4,)})
def outer_product_of_weights(p, x):
    return jnp.tanh(x @ (p["a"][:, None] * p["b"][None]))


@case({"w": (3, 3)})
def masked_weights(p, x):
    mask = np.tri(3)
    return jnp.tanh(x @ (p["w"] * mask)) @ jnp.triu(p["w"])


@case({"a": (3, 2), "b": (3, 3)})
def joined_weights(p, x):
    return jnp.tanh(x @ jnp.concatenate([p["a"], p["b"], p["a"]], axis=1))


@case({"a": (3, 4), "b": (3, 4)})
def stacked_weights(p, x):
    return jnp.tanh(jnp.einsum("nd,kdo->nko", x, jnp.stack([p["a"], p["b"]]))).sum(1)


@case({"w": (4, 6)}, x=(4,))
def reshaped_weights(p, x):
    return jnp.tanh(jnp.einsum("nd,dhk->nhk", x, p["w"].reshape(4, 2, 3))).sum(1)


@case({"w": (3, 3)})
def reversed_and_padded_weights(p, x):
    return jnp.tanh(x @ p["w"][::-1]) @ jnp.pad(p["w"][::-1, :2], ((0, 0), (1, 2)))


@case({"w": (4,)})
def summed_and_repeated_weights(p, x):
    return jnp.tanh(x @ jnp.broadcast_to(p["w"].sum(), (3, 2))) + jnp.tile(p["w"][:1], (1, 2))


@case({"z": (2,), "h": (2, 3, 4), "o": (4, 2)})
def hypernetwork(p, x):
    return jnp.tanh(x @ jnp.tanh(jnp.einsum("z,zio->io", p["z"], p["h"]))) @ p["o"]


@case({"w": (3, 3)})
def weights_through_a_solve(p, x):
    return jnp.linalg.solve(jnp.eye(3) + p["w"] @ p["w"].T, x.T).T


# Convolutions.


@case({"k": (3, 2, 2, 3), "b": (3,), "v": (3, 2)}, x=(4, 3, 2))
def convolution(p, x):
    return jax.nn.relu(conv(x, p["k"]) + bias(p["b"], x)).mean((1, 2)) @ p["v"]


@case({"k": (3, 2, 2, 2)}, x=(5, 4, 2), trace=(), diagonal=(1,))
def strided_convolution(p, x):
    return jnp.tanh(conv(x, p["k"], (2, 1), "VALID")).sum(2)


@case({"k": (2, 2, 2, 3)}, x=(5, 4, 2))
def dilated_convolution(p, x):
    return jnp.tanh(conv(x, p["k"], padding=[(1, 2), (0, 1)], rhs_dilation=(2, 3))).sum((1, 2))


@case({"k": (2, 2, 2, 6), "v": (6, 2)}, x=(3, 3, 4))
def grouped_convolution(p, x):
    return jnp.tanh(conv(x, p["k"], feature_group_count=2)).mean((1, 2)) @ p["v"]


@case({"k": (3, 3, 1, 6)}, x=(3, 3, 3))
def depthwise_convolution(p, x):
    return jnp.tanh(conv(x, p["k"], feature_group_count=3)).mean((1, 2))


@case({"k": (3, 2, 2, 3)}, x=(3, 2, 2))
def transposed_convolution(p, x):
    return jnp.tanh(lax.conv_transpose(x, p["k"], (2, 2), "SAME")).mean((1, 2))


@case({"k": (3, 2, 3), "l": (2, 3, 2)}, x=(2, 6))
def convolution_of_sequences(p, x):
    h = jnp.tanh(conv(x, p["k"], (1,), numbers=("NCH", "HIO", "NCH")))
    return conv(h, p["l"], (2,), numbers=("NCH", "HIO", "NHC")).sum(1)


@case({"k": (2, 2, 2, 1, 2)}, x=(2, 3, 2, 1))
def convolution_of_volumes(p, x):
    numbers = ("NDHWC", "DHWIO", "NDHWC")
    return jnp.tanh(conv(x, p["k"], (1, 1, 1), numbers=numbers)).sum((1, 2, 3))


@case({"k": (3, 3, 2, 2), "s": (2,), "skip": (1, 1, 2, 2)}, x=(4, 4, 2))
def residual_block(p, x):
    h = conv(jax.nn.relu(x), p["k"]) * bias(p["s"], x)
    h = conv(jax.nn.relu(h), p["k"], (2, 2)) + conv(x, p["skip"], (2, 2))
    return h.mean((1, 2))


@case({"k": (2, 2, 1, 3), "v": (12, 2)}, x=(5, 5, 1))
def pooled_convolution(p, x):
    h = jnp.tanh(conv(x, p["k"], padding="VALID"))
    h = lax.reduce_window(h, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return h.reshape(len(h), -1) @ p["v"]


@case({"image": (1, 3, 3, 1), "k": (2, 2, 1, 2)}, x=(3, 3, 1))
def image_as_parameter(p, x):
    return jnp.tanh(conv(x + p["image"], p["k"])).sum((1, 2)) + conv(p["image"], p["k"]).sum((1, 2))


@case({"w": (1, 2, 2, 2)}, x=(3, 3, 2))
def circular_convolution(p, x):
    x = jnp.concatenate([x, x[:, :, :1]], axis=2)
    return jnp.tanh(conv(x, p["w"], padding="VALID")).mean((1, 2))


# Tables.


@case({"e": (5, 3), "w": (3, 2)}, x=tokens(3))
def embedding(p, x):
    return jnp.tanh(p["e"][x]).mean(1) @ p["w"]


@case({"e": (5, 3), "w": (3, 3)}, x=tokens(3))
def tied_embedding(p, x):
    return jnp.tanh(p["e"][x] @ p["w"]).mean(1) @ p["e"].T


@case({"e": (3, 5)}, x=tokens(4, low=-7, size=9))
def embedding_outside_of_the_table(p, x):
    clipped = jnp.take(p["e"], x, axis=1, mode="clip")
    filled = jnp.take(p["e"], x, axis=1, mode="fill", fill_value=0)
    return jnp.tanh(clipped + filled).sum(2).T


@case({"e": (4, 3)}, x=lambda rng, n: (rng.integers(0, 4, n), rng.random((n, 3))))
def row_by_number(p, x):
    return jax.vmap(lambda i, h: jnp.tanh(h * p["e"][i]))(*x)


# Attention and normalisation.


@case({"qkv": (4, 12), "o": (4, 2)}, x=(3, 4))
def attention(p, x):
    q, k, v = jnp.split(x @ p["qkv"], 3, axis=-1)
    return (jax.nn.softmax(q @ k.swapaxes(1, 2) / 2, axis=-1) @ v @ p["o"]).mean(1)


@case({"q": (4, 2, 2), "k": (4, 2, 2), "v": (4, 2, 2), "o": (2, 2, 4)}, x=(3, 4), diagonal=(1,))
def causal_attention_of_heads(p, x):
    q, k, v = (jnp.einsum("nld,dhk->nhlk", x, p[name]) for name in "qkv")
    scores = jnp.where(np.tri(3, dtype=bool), jnp.einsum("nhlk,nhmk->nhlm", q, k), -jnp.inf)
    return jnp.einsum("nhlm,nhmk,hkd->nld", jax.nn.softmax(scores), v, p["o"])


@case({"w": (3, 4), "scale": (4,), "shift": (4,), "v": (4, 2)})
def layer_normalisation(p, x):
    h = x @ p["w"]
    h = (h - h.mean(-1, keepdims=True)) / jnp.sqrt(h.var(-1, keepdims=True) + 0.1)
    return jnp.tanh(h * bias(p["scale"], h) + bias(p["shift"], h)) @ p["v"]


@case({"scale": (3,), "v": (3, 2)}, x=(2, 3), trace=(2,), diagonal=(1,))
def root_mean_square_normalisation(p, x):
    return x * lax.rsqrt((x**2).mean(-1, keepdims=True) + 0.1) * bias(p["scale"], x) @ p["v"]


@case({"w": (3, 4), "scale": (4,)}, vmap=False)
def batch_normalisation(p, x):
    h = x @ p["w"]
    return jnp.tanh((h - h.mean(0, keepdims=True)) * bias(p["scale"], h))


@case({"gate": (3, 2), "w": (2, 3, 4)})
def mixture_of_experts(p, x):
    return jnp.einsum(
        "ne,nek->nk", jax.nn.softmax(x @ p["gate"]), jnp.tanh(x @ p["w"]).swapaxes(0, 1)
    )


# Loops and branches.


@case({"w": (3, 3), "u": (2, 3)}, x=(3, 2))
def unrolled_recurrence(p, x):
    h = jnp.zeros((len(x), 3))
    for t in range(3):
        h = jnp.tanh(h @ p["w"] + x[:, t] @ p["u"])
    return h


@case({"w": (3, 3), "u": (3, 2), "b": (3,)}, x=(4, 2))
def recurrence(p, x):
    def step(h, x):
        h = jnp.tanh(h @ (0.5 * p["w"]) + x @ p["u"].T + bias(p["b"], x))
        return h, h.sum(1)

    h, sums = lax.scan(step, jnp.zeros((len(x), 3)), x.swapaxes(0, 1))
    return jnp.concatenate([h, sums.T], axis=1)


@case({"w": (4, 8), "b": (8,)}, x=(3, 2))
def lstm(p, x):
    def step(carry, x):
        h, c = carry
        gates = jnp.concatenate([x, h], axis=1) @ p["w"] + bias(p["b"], x)
        i, f, g, o = jnp.split(gates, 4, axis=1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None

    return lax.scan(step, (jnp.zeros((len(x), 2)),) * 2, x.swapaxes(0, 1))[0][0]


@case({"w": (3, 3, 3), "b": (3, 3)})
def scan_over_layers(p, x):
    def layer(h, p):
        return jnp.tanh(h @ p["w"] + bias(p["b"], h)), None

    return lax.scan(layer, x, p)[0]


@case({"w": (3, 3), "v": (2, 3, 3)}, x=(2, 3), trace=(), diagonal=(2,))
def reverse_and_nested_scans(p, x):
    def inner(h, v):
        return jnp.tanh(h @ v @ p["w"]), None

    def outer(h, x):
        h = lax.scan(inner, h + x, p["v"])[0]
        return h, h

    hs = lax.scan(outer, jnp.zeros((len(x), 3)), x.swapaxes(0, 1), reverse=True)[1]
    return hs.swapaxes(0, 1).sum(1, keepdims=True)


@case({"w": (3, 3)})
def weights_carried_by_a_loop(p, x):
    return lax.fori_loop(0, 3, lambda _, c: (jnp.tanh(c[0] @ c[1]), 0.5 * c[1]), (x, p["w"]))[0]


@case({"w": (3, 3, 3)})
def loop_over_numbered_layers(p, x):
    return lax.fori_loop(0, 3, lambda i, h: jnp.tanh(h @ p["w"][i]), x)


@case({"w": (3, 3), "v": (3, 3)})
def branches(p, x):
    return lax.cond(p["w"].sum() > 0, lambda h: jnp.tanh(h @ p["w"]), lambda h: h @ p["v"], x)


@case({"w": (3, 4), "v": (4, 3)})
def rematerialisation(p, x):
    block = jax.checkpoint(lambda p, x: x + jnp.tanh(x @ p["w"]) @ p["v"])
    return block(p, block(p, x))


@case({"w": (3, 3)})
def rematerialised_scan(p, x):
    step = jax.checkpoint(lambda h, _: (jnp.tanh(h @ p["w"]), None))
    return lax.scan(step, x, None, length=2)[0]


@case({"w": (3, 4), "v": (4, 2)})
def compiled_inside(p, x):
    layer = jax.jit(lambda w, x: jnp.tanh(x @ w))
    return layer(p["v"], layer(p["w"], x))


# Other primitives.


@jax.custom_jvp
def _straight_through(x):
    return jnp.sign(x)


_straight_through.defjvps(lambda t, ans, x: t)


@case({"w": (3, 4), "v": (4, 2)})
def custom_forward_rule(p, x):
    return _straight_through(x @ p["w"]) @ _straight_through(p["v"])


@jax.custom_vjp
def _square(x):
    return x**2


_square.defvjp(lambda x: (x**2, x), lambda x, g: (2 * x * g,))


@case({"w": (3, 4), "v": (4, 2)})
def custom_reverse_rule(p, x):
    return _square(x @ p["w"]) @ p["v"]


@case({"w": (3, 4), "v": (4, 2)})
def stopped_gradient(p, x):
    return jnp.tanh(x @ p["w"]) @ lax.stop_gradient(p["v"]) + x @ lax.stop_gradient(p["w"])[:, :2]


@case({"w": (3, 4)})
def cumulative_sums(p, x):
    return jnp.cumsum(jnp.tanh(x @ jnp.cumsum(p["w"], axis=1)), axis=1)


@case({"w": (3, 4)})
def cumulative_products(p, x):
    return jnp.cumprod(1 + jnp.tanh(x @ p["w"]), axis=1)


@case({"w": (3, 5)})
def sorted_and_largest(p, x):
    h = x @ p["w"]
    return jnp.sort(h, axis=1)[:, :2] * lax.top_k(h, 2)[0]


@case({"w": (3, 4), "a": (4,)})
def fourier_transform(p, x):
    return jnp.abs(jnp.fft.fft(x @ p["w"] * bias(p["a"], x)) + 1)


@case({"w": (3, 4)})
def complex_outputs(p, x):
    return jnp.exp(1j * (x @ p["w"])) * (x @ p["w"])


@case({"re": (3, 4), "im": (3, 4), "v": (4, 2)})
def complex_weights(p, x):
    h = x @ lax.complex(p["re"], p["im"])
    return (jnp.tanh(h) @ p["v"].astype(jnp.complex128)).real


@case({"w": (3, 4), "u": (4, 5), "v": (5, 2)})
def real_weights_on_complex_numbers(p, x):
    u = p["u"] @ jnp.array([[1j, 2], [1, 0], [0, 3j], [1j, 1], [1, 1 - 1j]])
    waves = jnp.exp(1j * (x @ p["w"]))
    return jnp.abs(waves @ u) ** 2 + jnp.abs(waves @ p["u"] @ p["v"]) ** 2


@case({"w": (3, 4)})
def integers_from_weights(p, x):
    order = jnp.argsort(p["w"], axis=1)
    return jnp.tanh(x @ p["w"]) * (p["w"] > 0).sum() + order.sum()


@case({"w": (3, 4), "v": (4, 2)}, complex=True)
def complex_parameters(p, x):
    return jnp.tanh(x @ p["w"]) @ p["v"]


@case({"w": (3, 4)}, complex=True, trace=())
def complex_parameters_of_real_outputs(p, x):
    return jnp.abs(x @ p["w"] + 1)
