"""Networks of the literature, with the hyper-parameters of their papers.

Widths matter to the finite networks only: NTK-parameterised kernels do not depend on them.
"""

from __future__ import annotations

from typing import Any

from widelimit.layers.base import Layer
from widelimit.layers.windows import PaddingLike
from widelimit.stax import (
    AvgPool,
    Conv,
    Dense,
    FanInSum,
    FanOut,
    Flatten,
    GlobalAvgPool,
    GlobalSelfAttention,
    Identity,
    LayerNorm,
    Relu,
    parallel,
    serial,
)
from widelimit.typing import Scalar

_MYRTLE = {5: (2, 1, 1), 7: (2, 2, 2), 10: (3, 3, 3)}


def fcn(
    depth: int = 3,
    *,
    width: int = 2048,
    num_outputs: int = 10,
    W_std: Scalar = 2**0.5,
    b_std: Scalar | None = 0.1,
    activation: Layer | None = None,
) -> Layer:
    """Returns a fully connected network that flattens its input first.

    The defaults are those of Lee et al. (2020), arXiv:2007.15801: three hidden layers of 2048
    ReLUs, weight variance 2, bias variance 0.01.

    Args:
      depth: number of hidden layers, at least 0.
      width: units of a hidden layer.
      num_outputs: number of outputs.
      W_std: standard deviation of the weights.
      b_std: standard deviation of the biases; None means no bias.
      activation: the nonlinearity; None means ReLU.

    Raises:
      ValueError: a negative depth.
    """
    hidden = (Dense(width, W_std, b_std), activation or Relu())
    return serial(
        Flatten(), *hidden * _checked("depth", depth, 0), Dense(num_outputs, W_std, b_std)
    )


def cnn(
    depth: int = 8,
    readout: str = "flatten",
    *,
    channels: int = 512,
    num_outputs: int = 10,
    W_std: Scalar = 2**0.5,
    b_std: Scalar | None = 0.1,
    activation: Layer | None = None,
) -> Layer:
    """Returns a plain convolutional network: 3 x 3 filters, no stride, zero padding.

    The defaults are those of Lee et al. (2020), arXiv:2007.15801 (CNN-VEC and CNN-GAP): eight
    hidden layers of 512 channels, ReLU, weight variance 2, bias variance 0.01.

    Args:
      depth: number of convolutions, at least 1.
      readout: 'flatten' reads every position, 'gap' averages over all positions.
      channels: channels of a convolution.
      num_outputs: number of outputs.
      W_std: standard deviation of the weights.
      b_std: standard deviation of the biases; None means no bias.
      activation: the nonlinearity; None means ReLU.

    Raises:
      ValueError: another readout, or a depth below 1.
    """
    ends = {"flatten": Flatten(), "gap": GlobalAvgPool()}
    if readout not in ends:
        raise ValueError(f"expected readout 'flatten' or 'gap', got {readout!r}")
    hidden = (_conv(channels, W_std, b_std), activation or Relu())
    layers = hidden * _checked("depth", depth, 1)
    return serial(*layers, ends[readout], Dense(num_outputs, W_std, b_std))


def myrtle(
    depth: int = 5,
    *,
    channels: int = 512,
    num_outputs: int = 10,
    W_std: Scalar = 2**0.5,
    b_std: Scalar | None = None,
    activation: Layer | None = None,
) -> Layer:
    """Returns the Myrtle network for 32 x 32 images: convolutions between average pools.

    Three groups of 3 x 3 convolutions, each followed by a 2 x 2 average pool, and two more pools
    down to one position. Source: Shankar et al. (2020), arXiv:2003.02237.

    Args:
      depth: 5, 7 or 10.
      channels: channels of a convolution.
      num_outputs: number of outputs.
      W_std: standard deviation of the weights.
      b_std: standard deviation of the biases; None means no bias.
      activation: the nonlinearity; None means ReLU.

    Raises:
      ValueError: another depth.
    """
    if depth not in _MYRTLE:
        raise ValueError(f"expected depth 5, 7 or 10, got {depth!r}")
    hidden = (_conv(channels, W_std, b_std), activation or Relu())
    pool = AvgPool((2, 2), (2, 2))
    groups = [layer for n in _MYRTLE[depth] for layer in (*hidden * n, pool)]
    return serial(*groups, pool, pool, Flatten(), Dense(num_outputs, W_std, b_std))


def wide_resnet(
    block_size: int = 4,
    k: int = 10,
    num_classes: int = 10,
    *,
    W_std: Scalar = 1.0,
    b_std: Scalar | None = None,
    activation: Layer | None = None,
) -> Layer:
    """Returns a wide residual network: three groups of blocks, strides 1, 2, 2, global pooling.

    WRN-28-10 has `block_size` 4 and `k` 10. The batch normalisation of the original is left out,
    since it has no limit of this kind. Source: Zagoruyko & Komodakis (2016), arXiv:1605.07146.

    Args:
      block_size: residual blocks of a group.
      k: widening factor: groups have 16 k, 32 k and 64 k channels.
      num_classes: number of outputs.
      W_std: standard deviation of the weights.
      b_std: standard deviation of the biases; None means no bias.
      activation: the nonlinearity; None means ReLU.

    Raises:
      ValueError: a block size below 1.
    """
    nonlinear = activation or Relu()

    def block(channels: int, stride: int, first: bool) -> Layer:
        strides = (stride, stride)
        main = serial(
            nonlinear,
            Conv(channels, (3, 3), strides, "SAME", W_std, b_std),
            nonlinear,
            _conv(channels, W_std, b_std),
        )
        shortcut = Conv(channels, (1, 1), strides, "SAME", W_std, b_std) if first else Identity()
        return serial(FanOut(2), parallel(main, shortcut), FanInSum())

    def group(channels: int, stride: int) -> Layer:
        later = [block(channels, 1, False)] * (_checked("block_size", block_size, 1) - 1)
        return serial(block(channels, stride, True), *later)

    return serial(
        _conv(16, W_std, b_std),
        group(16 * k, 1),
        group(32 * k, 2),
        group(64 * k, 2),
        nonlinear,
        GlobalAvgPool(),
        Dense(num_classes, W_std, b_std),
    )


def lenet(
    num_outputs: int = 10,
    *,
    padding: PaddingLike = "VALID",
    W_std: Scalar = 2**0.5,
    b_std: Scalar | None = 0.1,
    activation: Layer | None = None,
) -> Layer:
    """Returns LeNet-5: two 5 x 5 convolutions, each with a 2 x 2 average pool, and three layers.

    As published for 32 x 32 images, except for the nonlinearity, and with connections between
    all channels. Source: LeCun et al. (1998), *Gradient-based learning applied to document
    recognition*.

    Args:
      num_outputs: number of outputs.
      padding: padding of the convolutions; 'SAME' suits 28 x 28 images.
      W_std: standard deviation of the weights.
      b_std: standard deviation of the biases; None means no bias.
      activation: the nonlinearity; None means ReLU.
    """
    nonlinear, pool = activation or Relu(), AvgPool((2, 2), (2, 2))
    layers: list[Layer] = []
    for channels in (6, 16):
        layers += [Conv(channels, (5, 5), None, padding, W_std, b_std), nonlinear, pool]
    for width in (120, 84):
        layers += [Dense(width, W_std, b_std), nonlinear]
    return serial(*layers[:6], Flatten(), *layers[6:], Dense(num_outputs, W_std, b_std))


def transformer_block(
    channels: int = 512,
    num_heads: int = 8,
    *,
    hidden: int = 2048,
    W_std: Scalar = 2**0.5,
    b_std: Scalar | None = 0.1,
    **attention: Any,
) -> Layer:
    """Returns one encoder block: attention and a two-layer network, each on a residual branch.

    Layer normalisation comes first on each branch, so the input must be Gaussian: begin a network
    with `Dense(channels)`, the embedding of tokens. Source: Vaswani et al. (2017),
    arXiv:1706.03762, normalised as in arXiv:2002.04745; kernel: Hron et al. (2020),
    arXiv:2006.10540.

    Args:
      channels: channels of the input and the output.
      num_heads: attention heads.
      hidden: units of the two-layer network.
      W_std: standard deviation of its weights.
      b_std: standard deviation of its biases; None means no bias.
      **attention: further arguments of `GlobalSelfAttention`.

    Raises:
      ValueError: `num_heads` does not divide `channels`.
    """
    if channels % num_heads:
        raise ValueError(
            f"expected channels that {num_heads} heads divide evenly, got {channels} channels"
        )
    size = channels // num_heads
    attend = GlobalSelfAttention(channels, size, size, num_heads, **attention)
    feed = serial(Dense(hidden, W_std, b_std), Relu(), Dense(channels, W_std, b_std))
    return serial(*(_residual(serial(LayerNorm(), layer)) for layer in (attend, feed)))


def _residual(branch: Layer) -> Layer:
    return serial(FanOut(2), parallel(branch, Identity()), FanInSum())


def _conv(channels: int, W_std: Scalar, b_std: Scalar | None) -> Conv:
    return Conv(channels, (3, 3), None, "SAME", W_std, b_std)


def _checked(name: str, value: int, least: int) -> int:
    if int(value) != value or value < least:
        raise ValueError(f"expected {name} of at least {least}, got {value!r}")
    return int(value)
