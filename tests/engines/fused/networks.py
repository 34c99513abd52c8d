"""Random networks and images for comparisons, from a seed."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import numpy as np

from widelimit import stax
from widelimit.stax import Conv, Dense, serial

SMALL = (1, 2, 3, 4, 5, 6, 7, 8, 9)
LONG = (15, 16, 17, 31, 32, 33, 36)  # about the width of vectors


@dataclasses.dataclass(frozen=True)
class Draw:
    """A network with inputs.

    Attributes:
      net: the network, without spatial axes at the end.
      x1: images.
      x2: images, or None.
      channel_axis: axis of their channels.
    """

    net: Any
    x1: np.ndarray
    x2: np.ndarray | None
    channel_axis: int


def draw(seed: int) -> Draw | None:
    """Returns a random network with inputs, None where its shapes do not fit."""
    maker = _Maker(random.Random(seed))
    try:
        net = maker.net()
        x1, x2 = maker.inputs()
        net.output_shape(x1.shape)
    except ValueError:
        return None
    return Draw(net, x1, x2, maker.channel_axis)


class _Maker:
    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.ndim = rng.choice((1, 2, 2, 2))
        self.first = rng.random() < 0.25
        self.channel_axis = 1 if self.first else -1
        self.spatial = [rng.choice(SMALL) for _ in range(self.ndim)]
        if rng.random() < 0.3:
            self.spatial[-1] = rng.choice(LONG)
            self.spatial[:-1] = [rng.choice((1, 2, 3, 4, 5)) for _ in self.spatial[:-1]]
        elif self.ndim == 2 and rng.random() < 0.1:
            self.spatial = [rng.choice(LONG), rng.choice((1, 2, 3))]
        self.sizes = list(self.spatial)

    # Numbers.

    def _number(self, low: float, high: float) -> float:
        return round(self.rng.uniform(low, high), 3)

    def _sizes(self, *choices: int) -> tuple[int, ...]:
        return tuple(self.rng.choice(choices) for _ in range(self.ndim))

    def _weights(self) -> dict[str, Any]:
        """Returns W_std, b_std and what else layers with weights have."""
        out: dict[str, Any] = {
            "W_std": self._number(0.5, 1.6),
            "b_std": self.rng.choice([None, 0.0, self._number(0.05, 0.6)]),
        }
        if self.rng.random() < 0.2:
            out["parameterization"] = "standard"
        if self.rng.random() < 0.15:
            out["trainable"] = False
        return out

    def _padding(self, window: Any, steps: Any) -> Any:
        kind = self.rng.random()
        if kind < 0.5:
            return "SAME"
        pads = tuple((self.rng.randint(0, 2), self.rng.randint(0, 2)) for _ in range(self.ndim))
        if kind < 0.75:
            pads = ((0, 0),) * self.ndim
        spans = zip(self.sizes, pads, window, steps, strict=True)
        if any(size + sum(pad) < (taps - 1) * step + 1 for size, pad, taps, step in spans):
            return "SAME"
        return "VALID" if kind < 0.75 else pads

    def _shrink(self, padding: Any, window: Any, strides: Any, steps: Any) -> None:
        for i in range(self.ndim):
            reach = (window[i] - 1) * steps[i] + 1
            pad = (0, 0) if padding == "VALID" else padding[i]
            size = self.sizes[i]
            total = size if padding == "SAME" else size + sum(pad) - reach + 1
            self.sizes[i] = -(-total // strides[i])

    # Layers.

    def _conv(self, *, same: bool = False) -> Any:
        ones = (1,) * self.ndim
        window = self._sizes(1, 2, 3, 3, 3, 4, 5)
        plain = same or self.rng.random() < 0.6
        strides = ones if plain else self._sizes(1, 2, 3)
        steps = ones if self.rng.random() < 0.75 else self._sizes(1, 2, 3)
        padding = "SAME" if same else self._padding(window, steps)
        self._shrink(padding, window, strides, steps)
        letters = ("NCHW", "OIHW", "NCHW") if self.ndim == 2 else ("NCH", "OIH", "NCH")
        options = self._weights() | {"rhs_dilation": steps}
        return Conv(
            3,
            window,
            strides,
            padding,
            dimension_numbers=letters if self.first else None,
            **options,
        )

    def _pool(self) -> Any:
        window = self._sizes(1, 2, 2, 3, 4, 5)
        strides = self.rng.choice([None, window, self._sizes(1, 2, 3, 4)])
        padding = self._padding(window, (1,) * self.ndim)
        self._shrink(padding, window, strides or (1,) * self.ndim, (1,) * self.ndim)
        layer = self.rng.choice([stax.AvgPool, stax.SumPool])
        return layer(window, strides, padding, channel_axis=self.channel_axis)

    def _activation(self) -> Any:
        n = self._number
        return self.rng.choice(
            [
                stax.Relu,
                stax.Relu,
                lambda: stax.Relu(do_stabilize=True),
                lambda: stax.LeakyRelu(n(-0.5, 0.5)),
                lambda: stax.ABRelu(n(-1, 1), n(-1, 1)),
                stax.Abs,
                stax.Sign,
                lambda: stax.Erf(n(0.5, 2), n(-1, 1), n(-0.5, 0.5)),
                lambda: stax.Sin(n(0.5, 2), n(0.3, 1.2), n(-2, 2)),
                lambda: stax.Cos(n(0.5, 2), n(0.3, 1.2), n(-2, 2)),
                lambda: stax.Rbf(n(0.1, 0.6)),
                lambda: stax.Exp(n(0.5, 1), n(-0.5, 0.5)),
                lambda: stax.Gaussian(n(0.5, 1.5), n(-0.9, -0.05)),
                stax.Gelu,
                stax.Gabor,
                lambda: stax.RectifiedMonomial(self.rng.choice((1, 2, 3))),
                lambda: stax.Polynomial([n(-0.5, 0.5) for _ in range(4)]),
                lambda: stax.ExpNormalized(n(0.3, 1), n(-1, 0.2), self.rng.random() < 0.5),
            ]
        )()

    def _norm(self, *layers: Any) -> Any:
        everything = tuple(range(1, self.ndim + 2))
        axis = self.rng.choice([self.channel_axis, everything])
        eps = self.rng.choice([1e-12, 1e-5, 0.1])
        return self.rng.choice(layers)(axis, eps, channel_axis=self.channel_axis)

    def _plain(self) -> list[Any]:
        layers: list[Any] = []
        for _ in range(self.rng.randint(1, 2)):
            dense = Dense(3, channel_axis=self.channel_axis, **self._weights())
            layers.append(self._conv() if self.rng.random() < 0.75 else dense)
            if self.rng.random() < 0.2:
                layers.append(self._norm(stax.LayerNorm, stax.RMSNorm))
            if self.rng.random() < 0.8:
                layers.append(self._activation())
        return layers

    def _residual(self, depth: int = 0) -> Any:
        branches = []
        for i in range(self.rng.choice((2, 2, 3))):
            layers: list[Any] = []
            if i > 0 or self.rng.random() < 0.5:
                layers += [self._activation()] if self.rng.random() < 0.6 else []
                layers += [self._norm(stax.RMSNorm)] if self.rng.random() < 0.2 else []
                layers.append(self._conv(same=True))
                if depth < 1 and self.rng.random() < 0.3:
                    layers.append(self._residual(depth + 1))
                if self.rng.random() < 0.5:
                    layers += [self._activation(), self._conv(same=True)]
            branches.append(serial(*layers) if layers else stax.Identity())
        return serial(stax.FanOut(len(branches)), stax.parallel(*branches), stax.FanInSum())

    def _joined(self) -> Any:
        branches = [serial(self._conv(same=True), self._activation()) for _ in range(2)]
        join = self.rng.choice([stax.FanInProd(), stax.FanInConcat(self.channel_axis)])
        return serial(stax.FanOut(2), stax.parallel(*branches), join)

    def _block(self) -> list[Any]:
        kind = self.rng.random()
        if kind < 0.5:
            return self._plain()
        if kind < 0.6:
            return [self._joined(), self._conv(same=True)]
        if kind < 0.85:
            layers = [self._conv(), self._residual()]
            return layers + ([self._activation()] if self.rng.random() < 0.5 else [])
        body = serial(self._activation(), self._conv(same=True))
        return [self._conv(same=True), stax.repeat(body, self.rng.randint(1, 3))]

    def net(self) -> Any:
        """Returns a network."""
        layers: list[Any] = []
        if self.rng.random() < 0.1:
            layers.append(stax.RMSNorm(self.channel_axis, channel_axis=self.channel_axis))
        for _ in range(self.rng.choice((1, 1, 2, 2, 3))):
            layers += self._block()
            if self.rng.random() < 0.45:
                layers.append(self._pool())
            if self.rng.random() < 0.15:
                layers = [serial(*layers)]
        pools = [stax.GlobalAvgPool, stax.GlobalSumPool]
        end = self.rng.choice([None, *pools])
        layers.append(stax.Flatten() if end is None else end(channel_axis=self.channel_axis))
        kind = self.rng.random()
        if kind < 0.6:
            layers.append(Dense(3, **self._weights()))
        if kind < 0.2:
            layers += [stax.Relu(), Dense(1)]
        if 0.2 < kind < 0.3:
            layers += [stax.LayerNorm(), stax.Relu()]
        return serial(*layers)

    def inputs(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Returns images; some are zero, some equal."""
        channels = self.rng.choice((1, 2, 3, 3, 4, 5))
        n1, n2 = self.rng.choice((1, 2, 3)), self.rng.choice((1, 2, 3))
        shape = (channels, *self.spatial) if self.first else (*self.spatial, channels)
        normal = np.random.default_rng(self.rng.randint(0, 10**9)).standard_normal
        x1, x2 = normal((n1, *shape)), normal((n2, *shape))
        kind = self.rng.random()
        if kind < 0.12:
            x1[0] = 0
        if 0.08 < kind < 0.2:
            x2[-1] = 0
        if 0.15 < kind < 0.3:
            x2[0] = x1[-1]
        if 0.25 < kind < 0.35:
            x1[0] = x1[-1]
        return x1, None if self.rng.random() < 0.25 else x2
