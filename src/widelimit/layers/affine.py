"""Layers that multiply by fresh random weights: their base class, and Dense."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array

from widelimit._pytree import pytree, static
from widelimit.covariance.covariances import Covariances
from widelimit.covariance.verbs import Affine, affine
from widelimit.kernel.masking import collapse
from widelimit.layers.base import Layer, Site
from widelimit.layers.context import Context
from widelimit.layers.shapes import checked_axis
from widelimit.typing import Arrays, Key, Masks, Params, Scalar, Shapes, Size


class AffineLayer(Layer):
    """Base class of layers with fresh random weights, in the NTK or standard parameterisation.

    NTK parameterisation: z = W_std / sqrt(fan_in) W x + b_std b with W, b ~ N(0, 1), so with A the
    average over the inputs of an output, K' = W_std^2 A[K] + b_std^2 and T' = K' + W_std^2 A[T].
    Standard parameterisation: W ~ N(0, W_std^2 s0 / fan_in), b ~ N(0, b_std^2) and
    z = W x / sqrt(s0) + b, so T' = (fan_in / s0) A[K] + W_std^2 A[T] + 1[b_std is not None].
    """

    W_std: Scalar
    b_std: Scalar | None
    parameterization: str
    s: Sequence[Scalar]
    trainable: bool

    def _check_parameters(self) -> None:
        """Checks and converts the fields common to all layers with weights."""
        check_number("W_std", self.W_std)
        if self.b_std is not None:
            check_number("b_std", self.b_std)
        object.__setattr__(self, "parameterization", str(self.parameterization).lower())
        object.__setattr__(self, "s", tuple(self.s))
        if len(self.s) != 2 or not all(scale > 0 for scale in self.s):
            raise ValueError(f"expected two positive scales s = (s_in, s_out), got {self.s}")
        if self.parameterization not in ("ntk", "standard"):
            raise ValueError(
                f"expected parameterization 'ntk' or 'standard', got {self.parameterization!r}"
            )

    def _scaled_width(self, width: int) -> int:
        """Returns the output channels of the finite layer."""
        return int(width * self.s[1]) if self.parameterization == "standard" else width

    def _draw(
        self, key: Key, weights: tuple[int, ...], bias: tuple[int, ...], fan_in: int
    ) -> tuple[Array, Array | None]:
        """Returns random weights and biases of shapes `weights` and `bias`."""
        key_w, key_b = jax.random.split(key)
        w = jax.random.normal(key_w, weights)
        b = None if self.b_std is None else jax.random.normal(key_b, bias)
        if self.parameterization == "standard":
            w = w * (self.W_std / (fan_in / self.s[0]) ** 0.5)
            b = None if b is None or self.b_std is None else b * self.b_std
        return w, b

    def _scale(self, out: Array, bias: Array | None, fan_in: int) -> Array:
        """Returns the output: the plain product `out` with the weights, scaled, plus the bias."""
        if self.parameterization == "standard":
            out = out / self.s[0] ** 0.5
            return out if bias is None else out + bias
        out = out * (self.W_std / fan_in**0.5)
        if bias is None:
            return out
        assert self.b_std is not None
        return out + self.b_std * bias

    def _parameters(self, params: Params) -> tuple[Array, Array | None]:
        return params if self.trainable else jax.lax.stop_gradient(params)

    def operations(self, site: Site) -> int:
        return 6

    def numbers(self, fan_in: int) -> Affine:
        """Returns the four numbers (w, b, u, v) of the layer; see `Affine`.

        Args:
          fan_in: number of inputs of an output.
        """
        w = self.W_std**2
        b = None if self.b_std is None else self.b_std**2
        match (self.trainable, self.parameterization):
            case (False, _):
                return Affine(w, b, None, None)
            case (_, "ntk"):
                return Affine(w, b, w, b)
            case _:
                return Affine(w, b, fan_in / self.s[0], None if b is None else 1.0)


@pytree
class Dense(AffineLayer):
    """Returns a fully connected layer on the channel axis of an input of any rank.

    NTK parameterisation: z = W_std / sqrt(N_in) x W + b_std b with W, b ~ N(0, 1), so
    K' = W_std^2 K + b_std^2 and T' = K' + W_std^2 T, with N_in the number of input channels.
    Standard parameterisation: W ~ N(0, W_std^2 s0 / N_in), b ~ N(0, b_std^2) and
    z = x W / sqrt(s0) + b, so T' = (N_in / s0) K + W_std^2 T + 1[b_std is not None].

    Source: arXiv:1806.07572; standard parameterisation: arXiv:2001.07301.

    Args:
      out_dim: number of output channels; NTK-parameterised kernels do not depend on it.
      W_std: standard deviation of the weights; a number, which may be traced.
      b_std: standard deviation of the biases; None means no bias.
      batch_axis: axis of the samples.
      channel_axis: axis of the channels.
      parameterization: 'ntk' or 'standard'.
      s: scale factors (s_in, s_out) of the widths before and after this layer, for the standard
        parameterisation: the finite layer has s_out * out_dim outputs.
      trainable: False freezes the layer: it adds nothing to the NTK.

    Raises:
      ValueError: an unknown parameterisation, a width below 1, or scales `s` that are not
        positive.
      TypeError: `W_std` or `b_std` is not a number, or `out_dim` is not an int.

    Example:
      >>> import jax.numpy as jnp
      >>> from widelimit import stax
      >>> layer = stax.Dense(512, W_std=2.0)
      >>> layer.kernel_fn(jnp.array([[1.0, 2.0], [3.0, -1.0]]), None, "nngp").tolist()
      [[10.0, 2.0], [2.0, 20.0]]
    """

    out_dim: Size = static()
    W_std: Scalar = 1.0
    b_std: Scalar | None = None
    batch_axis: int = static(default=0)
    channel_axis: int = static(default=-1)
    parameterization: str = static(default="ntk")
    s: Sequence[Scalar] = static(default=(1, 1))
    trainable: bool = static(default=True, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "out_dim", checked_width("out_dim", self.out_dim))
        self._check_parameters()

    def input_axes(self) -> tuple[int, int]:
        return self.batch_axis, self.channel_axis

    def output_shape(self, shape: Shapes) -> Shapes:
        axis = checked_axis(self.channel_axis, shape)
        return (*shape[:axis], self._scaled_width(self.out_dim), *shape[axis + 1 :])

    def init(self, key: Key, shape: Shapes) -> Params:
        axis = checked_axis(self.channel_axis, shape)
        width = self._scaled_width(self.out_dim)
        bias = [1] * len(shape)
        bias[axis] = width
        return self._draw(key, (shape[axis], width), tuple(bias), shape[axis])

    def apply(self, params: Params, x: Arrays, context: Context) -> Arrays:
        weights, bias = self._parameters(params)
        axis = checked_axis(self.channel_axis, x.shape)
        if weights.shape[0] != x.shape[axis]:
            raise ValueError(
                f"expected {weights.shape[0]} channels, as in init_fn, got {x.shape[axis]} on axis "
                f"{axis} of an input of shape {x.shape}"
            )
        out = jnp.moveaxis(jnp.tensordot(x, weights, (axis, 0)), -1, axis)
        return self._scale(out, bias, x.shape[axis])

    def mask(self, mask: Masks, shape: Shapes) -> Masks:
        return collapse(mask, checked_axis(self.channel_axis, shape))

    def propagate(self, cov: Covariances, site: Site) -> Covariances:
        out = affine(cov, self.numbers(site.signal_in.channels), site.signal_out)
        return out.replace(origins=frozenset({site.path}))


def check_number(name: str, value: object) -> None:
    """Raises unless the value is one real number."""
    if not isinstance(value, float | jax.Array) or jnp.ndim(value):
        raise TypeError(f"expected a number for {name}, got {value!r}")


def checked_width(name: str, value: Size) -> int:
    """Returns a number of channels as a Python int."""
    try:
        width = operator.index(value)
    except TypeError:
        raise TypeError(f"expected an int for {name}, got {value!r}") from None
    if width < 1:
        raise ValueError(f"expected {name} of at least 1, got {width}")
    return width
