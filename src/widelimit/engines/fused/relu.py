"""The ReLU family on slices: from the numbers of both ends, without products in between."""

from __future__ import annotations

from typing import Any

import numpy as np

from widelimit.engines.fused.compiling import loop
from widelimit.engines.fused.constants import NEARLY_ONE, ONE, PI, ZERO
from widelimit.engines.fused.ends import stretch
from widelimit.engines.fused.formulas import angle_ratio
from widelimit.engines.fused.instructions import RECTS_FROM, RECTS_TO, S_REGION, U_REGION, VECTOR
from widelimit.engines.fused.places import region, u, whole
from widelimit.engines.fused.stencils import copy


@loop
def relu_ends(
    geometry: Any, sizes: Any, b: Any, level: Any, k: Any, t: Any, place: Any, ends: Any, buf: Any,
    p: Any, cst: Any,
) -> None:  # fmt: skip
    """Writes K' and T' of a block over K and T.

    Between rectangles K and T are zero, and stay so. Loops run to the end of a vector; what is too
    much there, which may be the next rectangle, is put back.
    """
    blocks, size = geometry[1], u(VECTOR)
    kept_k, kept_t = u(region(sizes, U_REGION)), u(region(sizes, S_REGION))
    for r in range(blocks[b, RECTS_FROM], blocks[b, RECTS_TO]):
        start, one, two, plane, n = stretch(geometry, b, r, level, place, ends)
        end_k, end_t = u(k + start + n), u(t + start + n)
        copy(buf, kept_k, end_k, size)
        copy(buf, kept_t, end_t, size)
        _relu(buf, u(k + start), u(t + start), ends[0], one, ends[2], two, plane, whole(n), p, cst)
        copy(buf, end_k, kept_k, size)
        copy(buf, end_t, kept_t, size)


@loop
def _relu(
    buf: Any, k: Any, t: Any, prep1: Any, one1: Any, prep2: Any, one2: Any, plane: Any, n: Any,
    p: Any, cst: Any,
) -> None:  # fmt: skip
    """Dual of a min(x, 0) + b max(x, 0): p = (a^2 + b^2) / 2, (a - b)^2 / (2 pi).

    No mask: K and square roots are zero outside, and T is zero there already. Two zero inputs have
    the angle 0, and so have correlations of one up to rounding: where K is q to the bit, K' is q'
    to the bit.
    """
    one, zero, pi, near = cst[ONE], cst[ZERO], cst[PI], cst[NEARLY_ONE]
    slope, kink = p[0], p[1]
    root1, root2 = one1 + plane, one2 + plane
    for i in range(n):
        c = buf[k + i]
        u, s = prep1[one1 + i] * prep2[one2 + i], prep1[root1 + i] * prep2[root2 + i]
        r = c * u
        r = one if (u > zero) & (s <= zero) else r
        a = abs(r)
        a = a if a < near else one
        sine = np.sqrt((one - a) * (one + a))
        theta = sine * angle_ratio(a, cst)
        theta = pi - theta if r < zero else theta
        kdot = slope - kink * theta
        buf[t + i] *= kdot
        buf[k + i] = kink * (s * sine) + kdot * c
