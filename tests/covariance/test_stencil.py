"""Stencils against convolutions of JAX, and the maps of pairs against both copies done apart."""

import itertools

import jax
import numpy as np
import pytest

from widelimit.covariance.offsets import Offsets
from widelimit.covariance.stencil import (
    Stencil,
    axis_terms,
    index_stencil,
    needed,
    out_size,
    same_padding,
    transposed_stencil,
    window_stencil,
)

WINDOWS = [  # size, window, stride, dilation
    (7, 3, 1, 1),
    (7, 3, 2, 1),
    (8, 2, 3, 1),
    (6, 2, 1, 3),
    (9, 3, 2, 2),
    (4, 1, 2, 1),
]


def convolve(x, window, padding, **options):
    """The sum of a one-dimensional window, by JAX."""
    y = jax.lax.conv_general_dilated(
        x[None, None], np.ones((1, 1, window), x.dtype), padding=padding, **options
    )
    return np.asarray(y)[0, 0]


@pytest.mark.parametrize("padding", ["SAME", "VALID", (2, 1)])
@pytest.mark.parametrize(("size", "window", "stride", "dilation"), WINDOWS)
def test_windows_are_those_of_jax(size, window, stride, dilation, padding):
    pads = {
        "SAME": same_padding(size, window, stride, dilation),
        "VALID": (0, 0),
    }.get(padding, padding)
    stencil = window_stencil(size, window, stride, dilation, pads)
    x = np.arange(1.0, size + 1, dtype=np.float32)
    given = [pads] if padding == (2, 1) else padding
    y = convolve(x, window, given, window_strides=(stride,), rhs_dilation=(dilation,))
    np.testing.assert_array_equal(stencil.matrix() @ x, y)
    assert stencil.size_out == out_size(size, window, stride, dilation, pads) == len(y)


@pytest.mark.parametrize(("size", "window", "stride", "dilation"), WINDOWS)
def test_circular_windows(size, window, stride, dilation):
    before, after = same_padding(size, window, stride, dilation)
    stencil = window_stencil(size, window, stride, dilation, (before, after), circular=True)
    x = np.arange(1.0, size + 1, dtype=np.float32)
    wrapped = np.pad(x, (before, after), mode="wrap")
    y = convolve(wrapped, window, "VALID", window_strides=(stride,), rhs_dilation=(dilation,))
    np.testing.assert_array_equal(stencil.matrix() @ x, y)


def test_normalised_pooling_has_rows_of_sum_one():
    stencil = window_stencil(5, 3, 1, 1, (1, 1), tied=False, normalise=True)
    np.testing.assert_allclose(stencil.matrix().sum(1), 1, rtol=1e-15)
    assert stencil.window is None


STENCILS = {
    "convolution": window_stencil(6, 3, 1, 1, (1, 1)),
    "strided": window_stencil(7, 3, 2, 1, (1, 1)),
    "dilated": window_stencil(7, 2, 1, 2, (2, 0)),
    "circular": window_stencil(6, 3, 2, 1, (0, 1), circular=True),
    "pooling": window_stencil(6, 2, 2, 1, (0, 0), tied=False),
    "pooling with edges": window_stencil(5, 3, 2, 1, (1, 1), tied=False, normalise=True),
    "circular pooling": window_stencil(5, 2, 1, 1, (0, 1), circular=True, tied=False),
    "transposed": transposed_stencil(3, 6, 3, 2, 1, 2),
    "transposed circular": transposed_stencil(3, 6, 3, 2, 1, 1, circular=True),
    "backwards": index_stencil(6, (5, 3, 1)),
}
SETS = {
    "equal": lambda size: Offsets(((0,),)),
    "band": lambda size: Offsets((tuple(d for d in (-1, 0, 1) if abs(d) < size),)),
    "folded": lambda size: Offsets.full((size,)).fold((size,), (size,)),
    "folded with a gap": lambda size: Offsets.full((size,)).fold((size,), (size + 1,)),
    "all": lambda size: Offsets.full((size,)),
}


def both_copies(stencil: Stencil, pairs: np.ndarray) -> np.ndarray:
    """The map of all pairs [p, p'] of positions, tap by tap."""
    selections = []
    for tap in stencil.table:
        matrix = np.zeros((stencil.size_out, stencil.size_in))
        o = np.nonzero(tap >= 0)[0]
        matrix[o, tap[o]] = stencil.weights[o]
        selections.append(matrix)
    return sum(selections[a] @ pairs @ selections[b].T for a, b in stencil.tap_pairs())


@pytest.mark.parametrize("kind", SETS)
@pytest.mark.parametrize("name", STENCILS)
def test_maps_of_pairs(name, kind):
    """Stored pairs of outputs from stored pairs of inputs, at just the offsets needed."""
    stencil, wanted = STENCILS[name], SETS[kind](STENCILS[name].size_out)
    inputs = Offsets((needed(stencil, wanted.axes[0]),))
    pairs = np.random.default_rng(0).standard_normal((stencil.size_in, stencil.size_in))
    expected = both_copies(stencil, pairs)
    for modulus in (stencil.size_in, stencil.size_in + 2):
        stored = inputs.fold((stencil.size_in,), (modulus,))
        (partner,) = stored.partners((stencil.size_in,))
        p = np.broadcast_to(np.arange(stencil.size_in), partner.shape)
        value = np.where(partner >= 0, pairs[p, np.maximum(partner, 0)], 0)
        terms = axis_terms(stencil, stored, wanted)
        out = sum(np.einsum("di,dio->do", value[t.rows], t.matrix) for t in terms)
        (after,) = wanted.partners((stencil.size_out,))
        for row, o in itertools.product(range(len(after)), range(stencil.size_out)):
            truth = expected[o, after[row, o]] if after[row, o] >= 0 else 0
            np.testing.assert_allclose(out[row, o], truth, atol=1e-12)


def test_offsets_needed_by_hand():
    assert needed(window_stencil(9, 3, 1, 1, (1, 1)), (-2, 0, 2)) == (-2, 0, 2)
    assert needed(window_stencil(8, 3, 2, 1, (0, 1)), (0, 1)) == (0, 2)
    assert needed(window_stencil(8, 2, 2, 1, (0, 0), tied=False), (0,)) == (-1, 0, 1)
    # the pair (0, 1) of a circular layer reads the pair (3, 0)
    assert needed(window_stencil(4, 3, 1, 1, (1, 1), circular=True), (0, 1)) == (-3, 0, 1)
    assert needed(transposed_stencil(3, 6, 3, 2, 1, 2), (0, 1, 2)) == (0, 1)
    assert needed(index_stencil(6, (4, 2, 0)), (0, 1)) == (-2, 0)
