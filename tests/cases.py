"""The zoo: small networks over which every property test runs. A new layer is one line here."""

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from widelimit import stax
from widelimit.stax import Conv, Dense, serial


@dataclasses.dataclass(frozen=True)
class Case:
    """One network of the zoo.

    Attributes:
      name: shown by pytest.
      build: from hidden width and number of outputs to the network.
      shape: shape of one sample.
      apply: whether the network has a finite form whose limit is the kernel.
      slow: whether sweeps that compile much or draw much leave it to `make test-all`.
    """

    name: str
    build: Callable[[int, int], Any]
    shape: tuple[int, ...] = (5,)
    apply: bool = True
    slow: bool = False

    @property
    def net(self) -> Any:
        """The network at a small width."""
        return self.build(6, 3)

    def inputs(self, n1: int = 4, n2: int = 4) -> tuple[np.ndarray, np.ndarray]:
        """Two batches of float64 inputs that share no sample."""
        rng = np.random.default_rng(7)
        return rng.standard_normal((n1, *self.shape)), rng.standard_normal((n2, *self.shape))


def _activation(layer: Any, W_std: float = 1.2, **options: Any) -> Case:
    def build(width: int, out: int) -> Any:
        return serial(Dense(width, W_std, 0.3), layer, Dense(out, 1.1, 0.2))

    return Case(repr(layer), build, **options)


def _network(name: str, build: Callable[[int, int], Any], **options: Any) -> Case:
    return Case(name, build, **options)


ACTIVATIONS = [
    _activation(stax.Relu()),
    _activation(stax.Relu(do_stabilize=True), slow=True),
    _activation(stax.LeakyRelu(0.2), slow=True),
    _activation(stax.ABRelu(-0.4, 1.3), slow=True),
    _activation(stax.Abs(), slow=True),
    _activation(stax.Erf(1.1, 0.9, 0.3)),
    _activation(stax.Sigmoid_like(), slow=True),
    _activation(stax.Sin(1.2, 0.7, 0.3), slow=True),
    _activation(stax.Cos(1.1, 0.8, 0.2)),
    _activation(stax.Rbf(0.4), slow=True),
    _activation(stax.Gelu()),
    _activation(stax.Gabor(), slow=True),
    _activation(stax.Exp(0.9, 0.5), 0.8),
    _activation(stax.Gaussian(1.1, -0.6), slow=True),
    _activation(stax.Sign()),
    _activation(stax.Monomial(0), slow=True),
    _activation(stax.Monomial(1), slow=True),
    _activation(stax.Monomial(2), 0.9, slow=True),
    _activation(stax.Monomial(3), 0.7, slow=True),
    _activation(stax.RectifiedMonomial(0), slow=True),
    _activation(stax.RectifiedMonomial(1), slow=True),
    _activation(stax.RectifiedMonomial(2), 0.9),
    _activation(stax.Polynomial([0.3, -0.7, 0.2, 0.1]), 0.7),
    _activation(stax.Polynomial([]), slow=True),
    _activation(stax.Hermite(2), 0.9, slow=True),
    _activation(stax.ExpNormalized(0.7, -0.9, True), apply=False, slow=True),
    _activation(stax.Tanh()),
    _activation(stax.Sigmoid(), slow=True),
    _activation(stax.Softplus(), slow=True),
    _activation(stax.Elu(0.8), slow=True),
    _activation(stax.Selu()),
    _activation(stax.Silu(), slow=True),
    _activation(stax.Mish(), slow=True),
    _activation(stax.Elementwise(jnp.arctan), slow=True),
    _activation(stax.Elementwise(lambda x: x, lambda c, q1, q2: c), slow=True),
    _activation(stax.ElementwiseNumerical(jnp.tanh, 12), slow=True),
]


def _residual(width: int) -> Any:
    return serial(
        stax.FanOut(2),
        stax.parallel(serial(stax.Relu(), Dense(width, 1.1, 0.2)), stax.Identity()),
        stax.FanInSum(),
    )


def _branches(join: Any, widths: tuple[int, int] = (1, 1)) -> Callable[[int, int], Any]:
    def build(width: int, out: int) -> Any:
        return serial(
            stax.FanOut(2),
            stax.parallel(
                serial(Dense(widths[0] * width, 1.3, 0.1), stax.Relu()),
                serial(Dense(widths[1] * width, 1.1, 0.2), stax.Erf()),
            ),
            join,
            Dense(out, 1.0, 0.1),
        )

    return build


NETWORKS = [
    _network("linear", lambda n, o: serial(Dense(n, 1.3), Dense(o))),
    _network(
        "deep_relu",
        lambda n, o: serial(*[Dense(n, 2**0.5, 0.1), stax.Relu()] * 3, Dense(o)),
    ),
    _network(
        "standard",
        lambda n, o: serial(
            Dense(n, 1.2, 0.3, parameterization="standard"),
            stax.Relu(),
            Dense(o, 1.1, 0.2, parameterization="standard"),
        ),
    ),
    _network(
        "standard_scaled",
        lambda n, o: serial(
            Dense(n // 2, 1.2, 0.0, parameterization="standard", s=(1, 2)),
            stax.Erf(),
            Dense(o, 1.1, parameterization="standard", s=(2, 1)),
        ),
    ),
    _network(
        "frozen",
        lambda n, o: serial(
            Dense(n, 1.2, 0.3, trainable=False),
            stax.Relu(),
            Dense(n, 1.1, 0.2),
            stax.Erf(),
            Dense(o, 1.2, trainable=False),
        ),
    ),
    _network(
        "layer_norm",
        lambda n, o: serial(Dense(n, 1.5, 0.2), stax.LayerNorm(), stax.Relu(), Dense(o, 1.1, 0.1)),
    ),
    _network(
        "residual",
        lambda n, o: serial(Dense(n, 1.2, 0.1), _residual(n), _residual(n), stax.Erf(), Dense(o)),
    ),
    _network(
        "repeat",
        lambda n, o: serial(Dense(n), stax.repeat(_residual(n), 3), stax.Gelu(), Dense(o)),
        slow=True,
    ),
    _network("fan_in_prod", _branches(stax.FanInProd())),
    _network("fan_in_concat", _branches(stax.FanInConcat(-1), (2, 1))),
    _network(
        "concat_with_skip",
        lambda n, o: serial(
            stax.FanOut(2),
            stax.parallel(serial(Dense(5, 1.3, 0.1), stax.Relu()), stax.Identity()),
            stax.FanInConcat(),
            Dense(n),
            stax.Erf(),
            Dense(o),
        ),
        apply=False,
    ),
    _network(
        "dropout_test",
        lambda n, o: serial(Dense(n, 1.3), stax.Relu(), stax.Dropout(0.7, mode="test"), Dense(o)),
    ),
    _network(
        "flatten_first",
        lambda n, o: serial(stax.Flatten(), Dense(n, 1.3, 0.1), stax.Relu(), Dense(o)),
        shape=(3, 2, 2),
    ),
    _network(
        "flatten_later",
        lambda n, o: serial(Dense(n, 1.3, 0.1), stax.Relu(), stax.Flatten(), Dense(o)),
        shape=(3, 2, 2),
    ),
    _network(
        "spatial",
        lambda n, o: serial(
            Dense(n, 1.3, 0.2), stax.Cos(), Dense(n, 1.1, 0.1), stax.Relu(), Dense(o)
        ),
        shape=(3, 2),
    ),
    _network("no_dense", lambda n, o: serial(stax.Identity())),
]


def _wide_residual(width: int, out: int) -> Any:
    """Two groups, the second with a stride of 2: offsets are multiples of 2 in the first."""

    def block(stride: int) -> Any:
        main = serial(
            stax.Relu(),
            Conv(width, (3,), (stride,), "SAME", 1.3, 0.1),
            stax.Relu(),
            Conv(width, (3,), padding="SAME", W_std=1.2),
        )
        return serial(
            stax.FanOut(2), stax.parallel(main, Conv(width, (1,), (stride,))), stax.FanInSum()
        )

    first = Conv(width, (3,), padding="SAME", W_std=1.3)
    return serial(first, block(1), block(2), stax.Relu(), stax.GlobalAvgPool(), Dense(out, 1.1))


# Networks with spatial axes; few networks with many options each, since compilations cost most.
SPATIAL = [
    _network(
        "conv_strided_flatten",
        lambda n, o: serial(
            Conv(n, (3, 2), (1, 2), "SAME", 1.3, 0.2),
            stax.Relu(),
            Conv(n, (2, 2), (2, 1), "VALID", 1.2, 0.1),
            stax.Erf(),
            stax.Flatten(),
            Dense(o, 1.1, 0.1),
        ),
        shape=(5, 4, 2),
        slow=True,
    ),
    _network(
        "conv_global_pool",
        lambda n, o: serial(
            Conv(n, (3,), padding="SAME", W_std=1.4, b_std=0.3),
            stax.Cos(),
            Conv(n, (3,), (2,), "VALID", 1.3, 0.2),
            stax.Relu(),
            stax.GlobalAvgPool(),
            Dense(o),
        ),
        shape=(7, 2),
    ),
    _network(
        "circular_pool_flatten",
        lambda n, o: serial(
            Conv(n, (3,), padding="CIRCULAR", W_std=1.3, b_std=0.2),
            stax.Relu(),
            stax.AvgPool((3,), (2,), "CIRCULAR"),
            Conv(n, (2,), padding="CIRCULAR", W_std=1.2),
            stax.Erf(),
            stax.Flatten(),
            Dense(o),
        ),
        shape=(6, 2),
    ),
    _network(
        "dilated_padded",
        lambda n, o: serial(
            Conv(n, (2, 3), padding=((2, 1), (0, 1)), W_std=1.3, b_std=0.2, rhs_dilation=(2, 1)),
            stax.Relu(),
            stax.SumPool((2, 1), (1, 2), "SAME"),
            Conv(n, (1, 2), W_std=1.1),
            stax.Relu(),
            stax.GlobalSumPool(),
            Dense(o),
        ),
        shape=(3, 4, 2),
        slow=True,
    ),
    _network(
        "pool_edges",
        lambda n, o: serial(
            Conv(n, (2,), W_std=1.3, b_std=0.2),
            stax.Relu(),
            stax.AvgPool((3,), (2,), "SAME", normalize_edges=True),
            stax.AvgPool((2,), None, ((1, 0),)),
            Conv(n, (2,), padding="SAME", W_std=1.1),
            stax.Relu(),
            stax.Flatten(),
            Dense(o),
        ),
        shape=(7, 2),
        slow=True,
    ),
    _network(
        "transposed",
        lambda n, o: serial(
            stax.ConvTranspose(n, (3,), (2,), "SAME", 1.3, 0.2),
            stax.Relu(),
            stax.ConvTranspose(n, (2,), (3,), "VALID", 1.2, 0.1),
            stax.Erf(),
            stax.AvgPool((2,), (2,)),
            stax.Flatten(),
            Dense(o),
        ),
        shape=(3, 2),
        slow=True,
    ),
    _network(
        "transposed_circular",
        lambda n, o: serial(
            stax.ConvTranspose(n, (3,), (2,), "CIRCULAR", 1.3, 0.2),
            stax.Relu(),
            Conv(n, (3,), padding="CIRCULAR"),
            stax.Relu(),
            stax.GlobalAvgPool(),
            Dense(o),
        ),
        shape=(3, 2),
        slow=True,
    ),
    _network(
        "local",
        lambda n, o: serial(
            stax.ConvLocal(n, (3,), (1,), "SAME", 1.3, 0.2),
            stax.Relu(),
            stax.AvgPool((2,)),
            stax.ConvLocal(n, (2,), (2,), "VALID", 1.1, parameterization="standard"),
            stax.Relu(),
            stax.GlobalAvgPool(),
            Dense(o),
        ),
        shape=(6, 2),
    ),
    _network("wide_residual", _wide_residual, shape=(8, 2), slow=True),
    _network(
        "other_axes",
        lambda n, o: serial(
            Conv(n, (2, 3), (2, 1), "SAME", 1.3, 0.2, ("NCHW", "OIWH", "WNHC")),
            stax.Relu(),
            Conv(n, (2, 1), (1, 1), "VALID", 1.2, None, ("WNHC", "WHIO", "NWCH")),
            stax.GlobalAvgPool(0, 2),
            Dense(o),
        ),
        shape=(2, 4, 3),
        slow=True,
    ),
    _network(
        "three_axes_standard",
        lambda n, o: serial(
            Conv(n, (2, 1, 2), (1, 1, 2), "SAME", 1.3, 0.2, parameterization="standard"),
            stax.Relu(),
            Conv(n, (1, 2, 1), W_std=1.2, trainable=False),
            stax.Relu(),
            stax.AvgPool((2, 1, 1)),
            stax.Flatten(),
            Dense(o, 1.1, parameterization="standard"),
        ),
        shape=(3, 2, 2, 2),
        slow=True,
    ),
    _network(
        "resized_indexed_contracted",
        lambda n, o: serial(
            Conv(n, (2, 2), padding="SAME", W_std=1.3, b_std=0.2),
            stax.Relu(),
            stax.ImageResize((-1, 7, -1, -1), "linear"),
            stax.Index(stax.Slice[:, ::-2, 1:]),
            Conv(n, (2, 1), W_std=1.2, b_std=0.1),
            stax.Erf(),
            stax.DotGeneral(
                rhs=np.array([[1.0, -0.5], [0.3, 0.8], [-0.7, 0.4]]),
                dimension_numbers=(((1,), (0,)), ((), ())),
            ),
            Dense(n, 1.1, 0.1, channel_axis=2),
            stax.Relu(),
            stax.Flatten(),
            Dense(o),
        ),
        shape=(5, 3, 2),
        slow=True,
    ),
    _network(
        "normalised_concatenated",
        lambda n, o: serial(
            Conv(n, (2,), padding="SAME", W_std=1.3, b_std=0.2),
            stax.FanOut(2),
            stax.parallel(
                serial(stax.Relu(), stax.RMSNorm((1, 2)), Conv(n, (1,), W_std=1.2)),
                serial(stax.LayerNorm((1, 2)), Conv(n, (3,), (2,), "SAME", b_std=0.3)),
            ),
            stax.FanInConcat(1),
            stax.Index(stax.Slice[:, 1:]),
            Conv(n, (2,), W_std=1.2, b_std=0.1),
            stax.Relu(),
            stax.GlobalAvgPool(),
            Dense(o),
        ),
        shape=(5, 2),
        slow=True,
    ),
    _network(
        "attention",
        lambda n, o: serial(
            Dense(n, 1.3, 0.4),
            stax.GlobalSelfAttention(n, n // 2, n // 2, 2, b_std=0.3, pos_emb_type="CONCAT"),
            stax.Relu(),
            stax.GlobalAvgPool(),
            Dense(4 * o),
        ),
        shape=(3, 4),
        slow=True,
    ),
    _network(
        "aggregate_without_pattern",
        lambda n, o: serial(
            Conv(n, (2, 1), W_std=1.3), stax.Relu(), stax.Aggregate(1), stax.Flatten(), Dense(o)
        ),
        shape=(3, 2, 2),
        slow=True,
    ),
    _network(
        "no_readout",
        lambda n, o: serial(
            Conv(n, (3,), padding="SAME", b_std=0.2), stax.Relu(), Conv(o, (2,), padding="CIRCULAR")
        ),
        shape=(4, 2),
    ),
]

CASES = ACTIVATIONS + NETWORKS


def sweep(cases: list[Case], quick: Collection[str] | None = None) -> list[Any]:
    """Parameters of a test over cases; the slow ones, or all that are not quick, are marked so."""

    def slow(case: Case) -> bool:
        return case.slow if quick is None else case.name not in quick

    return [
        pytest.param(case, id=case.name, marks=[pytest.mark.slow] if slow(case) else [])
        for case in cases
    ]
