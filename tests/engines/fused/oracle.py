"""Kernels from the definitions, over all pairs of positions, in plain NumPy of any precision.

Nothing is skipped, folded or fused: an activation is a matrix of covariances between all positions
of all samples of both batches. It is slow and needs no compilation.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from widelimit import stax
from widelimit.layers import elementwise as e
from widelimit.layers import piecewise as p
from widelimit.layers.combine import Parallel, Repeat, Serial
from widelimit.layers.reshape import Identity

PI = np.arctan2(np.longdouble(0), np.longdouble(-1))


@dataclasses.dataclass
class State:
    """Covariances of all samples.

    Attributes:
      k: [n, rows, columns, n, rows, columns].
      t: the NTK, likewise.
      channels: number of channels, which the standard parameterisation reads.
      image: whether there still are spatial axes.
      margin: the least 1 - |rho| that a nonlinearity with a kink has met off the diagonal.
    """

    k: np.ndarray
    t: np.ndarray
    channels: int
    axes: int
    margin: float = 1.0


@dataclasses.dataclass(frozen=True)
class Kernels:
    """The result.

    Attributes:
      nngp: [n1, n2].
      ntk: [n1, n2].
      cov1: [n1].
      cov2: [n2].
      margin: see `State`.
    """

    nngp: np.ndarray
    ntk: np.ndarray
    cov1: np.ndarray
    cov2: np.ndarray
    margin: float


def kernels(
    net: Any, x1: np.ndarray, x2: np.ndarray | None, channel_axis: int = -1, dtype: Any = np.float64
) -> Kernels:
    """Returns the kernels of a network without spatial axes at the end.

    Args:
      net: the network.
      x1: images, samples first.
      x2: images, or None for x1.
      channel_axis: axis of the channels.
      dtype: precision of the arithmetic.
    """
    other = x1 if x2 is None else x2
    x = np.moveaxis(np.concatenate([x1, other]), channel_axis, -1).astype(dtype)
    axes = x.ndim - 2
    x = x.reshape(len(x), *((1, x.shape[1]) if axes == 1 else x.shape[1:3]), x.shape[-1])
    k = np.tensordot(x, x, (3, 3)) / dtype(x.shape[-1])
    out = _run(net, State(k, np.zeros_like(k), x.shape[-1], axes))
    k, t = (v.reshape(len(x), len(x)) for v in (out.k, out.t))
    n = len(x1)
    return Kernels(k[:n, n:], t[:n, n:], k.diagonal()[:n], k.diagonal()[n:], out.margin)


def _run(layer: Any, s: Any) -> Any:
    if isinstance(layer, Serial):
        for inner in layer.layers:
            s = _run(inner, s)
        return s
    if isinstance(layer, Parallel):
        return [_run(inner, part) for inner, part in zip(layer.layers, s, strict=True)]
    if isinstance(layer, Repeat):
        for _ in range(layer.n):
            s = _run(layer.layer, s)
        return s
    if isinstance(layer, stax.FanOut):
        return [s] * layer.num
    if isinstance(layer, stax.FanInSum):
        k, t = sum(part.k for part in s), sum(part.t for part in s)
        return dataclasses.replace(s[0], k=k, t=t, margin=min(part.margin for part in s))
    if isinstance(layer, stax.FanInProd | stax.FanInConcat):
        return _joined(layer, s)
    if isinstance(layer, Identity | stax.Dropout):
        return s
    if isinstance(layer, stax.Dense):
        return _affine(layer, s, s.k, s.t, s.channels, layer.out_dim)
    if isinstance(layer, stax.Conv):
        windows = _windows(layer.filter_shape, layer.strides, layer.rhs_dilation, layer.padding, s)
        fan_in = s.channels * math.prod(layer.filter_shape)
        k, t = (_tied(v, windows) for v in (s.k, s.t))
        return _affine(layer, s, k, t, fan_in, layer.out_chan)
    if isinstance(layer, stax.AvgPool | stax.SumPool):
        windows = _windows(layer.window_shape, layer.strides, None, layer.padding, s)
        maps = [_pool_matrix(*axis) for axis in windows]
        scale = math.prod(layer.window_shape) if isinstance(layer, stax.AvgPool) else 1
        k, t = (_both_ends(v, maps) / scale**2 for v in (s.k, s.t))
        return dataclasses.replace(s, k=k, t=t)
    if isinstance(layer, stax.GlobalAvgPool | stax.GlobalSumPool):
        maps = [np.ones((1, size)) for size in s.k.shape[1:3]]
        scale = math.prod(s.k.shape[1:3]) if isinstance(layer, stax.GlobalAvgPool) else 1
        k, t = (_both_ends(v, maps) / scale**2 for v in (s.k, s.t))
        return dataclasses.replace(s, k=k, t=t, axes=0)
    if isinstance(layer, stax.Flatten):
        positions = math.prod(s.k.shape[1:3])
        k, t = (np.einsum("aijbij->ab", v)[:, None, None, :, None, None] for v in (s.k, s.t))
        channels = s.channels * positions
        return dataclasses.replace(s, k=k / positions, t=t / positions, channels=channels, axes=0)
    if isinstance(layer, stax.LayerNorm | stax.RMSNorm):
        return _norm(layer, s)
    return _nonlinear(layer, s)


def _joined(layer: Any, parts: list[State]) -> State:
    margin = min(part.margin for part in parts)
    if isinstance(layer, stax.FanInConcat):
        channels = sum(part.channels for part in parts)
        k = sum(part.channels * part.k for part in parts) / channels
        t = sum(part.channels * part.t for part in parts) / channels
        return dataclasses.replace(parts[0], k=k, t=t, channels=channels, margin=margin)
    k, t = parts[0].k, parts[0].t
    for part in parts[1:]:
        k, t = k * part.k, t * part.k + k * part.t
    return dataclasses.replace(parts[0], k=k, t=t, margin=margin)


def _affine(layer: Any, s: State, k: Any, t: Any, fan_in: int, width: int) -> State:
    dtype = s.k.dtype.type
    w = dtype(layer.W_std) ** 2
    b = dtype(0 if layer.b_std is None else layer.b_std) ** 2
    u, v = w, b
    if layer.parameterization == "standard":
        u, v = dtype(fan_in / layer.s[0]), dtype(layer.b_std is not None)
        width = int(width * layer.s[1])
    if not layer.trainable:
        u = v = dtype(0)
    return dataclasses.replace(s, k=w * k + b, t=w * t + u * k + v, channels=width)


def _windows(shape: Any, strides: Any, dilation: Any, padding: Any, s: State) -> list[Any]:
    """Per axis: (size in, size out, taps, stride, step, padding before, circular)."""
    n = len(shape)
    strides, dilation = strides or (1,) * n, dilation or (1,) * n
    sizes = s.k.shape[3 - n : 3]
    out = []
    for i in range(n):
        size, reach = sizes[i], (shape[i] - 1) * dilation[i] + 1
        if padding in ("SAME", "CIRCULAR"):
            count = -(-size // strides[i])
            total = max((count - 1) * strides[i] + reach - size, 0)
            before = total // 2
        else:
            before, after = (0, 0) if padding == "VALID" else padding[i]
            count = (size + before + after - reach) // strides[i] + 1
        circular = padding == "CIRCULAR"
        out.append((size, count, shape[i], strides[i], dilation[i], before, circular))
    return out if n == 2 else [(1, 1, 1, 1, 1, 0, False), *out]


def _tied(k: np.ndarray, windows: list[Any]) -> np.ndarray:
    """The mean over taps of covariances between positions that one tap reads."""
    rows, columns = windows
    out = np.zeros((len(k), rows[1], columns[1]) * 2, k.dtype)
    for tap_y in range(rows[2]):
        for tap_x in range(columns[2]):
            (oy, iy), (ox, ix) = _reached(rows, tap_y), _reached(columns, tap_x)
            every = np.arange(len(k))
            into, source = (
                np.ix_(every, oy, ox, every, oy, ox),
                np.ix_(every, iy, ix, every, iy, ix),
            )
            out[into] += k[source]
    return out / (rows[2] * columns[2])


def _reached(axis: Any, tap: int) -> tuple[np.ndarray, np.ndarray]:
    """Outputs whose tap lies inside the image, and where."""
    size, count, _, stride, step, before, circular = axis
    outputs = np.arange(count)
    inputs = outputs * stride - before + tap * step
    if circular:
        return outputs, inputs % size
    inside = (inputs >= 0) & (inputs < size)
    return outputs[inside], inputs[inside]


def _pool_matrix(*axis: Any) -> np.ndarray:
    matrix = np.zeros((axis[1], axis[0]))
    for tap in range(axis[2]):
        outputs, inputs = _reached(axis, tap)
        matrix[outputs, inputs] += 1
    return matrix


def _both_ends(k: np.ndarray, maps: list[np.ndarray]) -> np.ndarray:
    rows, columns = (m.astype(k.dtype) for m in maps)
    return np.einsum("yi,xj,aijbkl,zk,wl->ayxbzw", rows, columns, k, rows, columns, optimize=True)


def _variances(k: np.ndarray) -> np.ndarray:
    size = math.prod(k.shape[:3])
    return k.reshape(size, size).diagonal().reshape(k.shape[:3])


def _norm(layer: Any, s: State) -> State:
    q = _variances(s.k)
    ndim = s.axes + 2
    axes = {axis % ndim for axis in np.atleast_1d(layer.axis)}
    if s.axes and len(axes) > 1:
        q = np.broadcast_to(q.mean((1, 2), keepdims=True), q.shape)
    root = np.sqrt(q + s.k.dtype.type(layer.eps))
    both = root[..., None, None, None] * root
    return dataclasses.replace(s, k=s.k / both, t=s.t / both)


def _nonlinear(layer: Any, s: State) -> State:
    q = _variances(s.k)
    q1, q2 = q[..., None, None, None], q[None, None, None]
    k, slope = dual(layer, s.k, q1, q2)
    product = np.sqrt(q1 * q2)
    rho = np.abs(s.k) / np.where(product == 0, 1, product)
    size = q.size
    off = ~np.eye(size, dtype=bool).reshape(s.k.shape)
    margin = min(s.margin, float((1 - rho)[off].min(initial=1.0)))
    return dataclasses.replace(s, k=k, t=s.t * slope, margin=margin)


def dual(layer: Any, c: Any, q1: Any, q2: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns E[f f] and E[f' f'] for covariance c and variances q1, q2.

    Args:
      layer: the nonlinearity.
      c: covariances, which broadcast against variances.
      q1: variances at one end.
      q2: variances at the other.
    """
    f = c.dtype.type
    pi = f(PI)
    c, q1, q2 = np.broadcast_arrays(c, q1, q2)
    v = np.maximum(q1 * q2 - c * c, 0)
    root = np.sqrt(v)
    none, both = (v == 0) & (c == 0), (q1 == 0) & (q2 == 0)
    angle = np.where(none, pi / 2, np.arctan2(root, np.where(none, 1, c)))
    match layer:
        case p.Relu() | p.ABRelu() | p.LeakyRelu() | p.Abs():
            a, b = (f(float(slope)) for slope in layer.slopes())
            mean, kink = (a * a + b * b) / 2, (a - b) ** 2 / (2 * pi)
            slope = mean - kink * np.where(both, 0, angle)
            return mean * c + kink * (root - angle * c), slope
        case p.Sign():
            return 1 - 2 * angle / pi, np.zeros_like(c)
        case e.Erf(a=a, b=b, c=shift):
            a, b, shift = f(a), f(b), f(shift)
            twice = 2 * b * b
            d = np.sqrt(1 + twice * (q1 + q2) + twice * twice * v)
            k = a * a * 2 / pi * np.arctan2(twice * c, d) + shift * shift
            return k, a * a * twice * 2 / pi / d
        case e.Sin(a=a, b=b, c=phase):
            a, b, phase = f(a), f(b), f(phase)
            near = np.exp(-b * b * ((q1 + q2) / 2 - c))
            far = np.cos(2 * phase) * np.exp(-b * b * ((q1 + q2) / 2 + c))
            return a * a / 2 * (near - far), a * a * b * b / 2 * (near + far)
        case e.Rbf(gamma=gamma):
            k = np.exp(-f(gamma) * (q1 + q2 - 2 * c))
            return k, 2 * f(gamma) * k
        case e.Exp(a=a, b=b):
            k = f(a) ** 2 * np.exp(f(b) ** 2 * ((q1 + q2) / 2 + c))
            return k, f(b) ** 2 * k
        case e.Gaussian(a=a, b=b):
            a, b = f(a), f(b)
            d = 1 - 2 * b * (q1 + q2) + 4 * b * b * v
            return a * a / np.sqrt(d), 4 * a * a * b * b * c / (d * np.sqrt(d))
        case e.Gelu():
            one = (1 + q1) * (1 + q2)
            d = 1 + q1 + q2 + v
            phi = np.arctan2(c, np.sqrt(d))
            bend = c * c / (one * np.sqrt(d)) + q1 * q2 / one * np.sqrt(d)
            slope = phi + c / np.sqrt(d) * (1 / d + (2 + q1 + q2) / one)
            return c / 4 + (bend + c * phi) / (2 * pi), f(0.25) + slope / (2 * pi)
        case e.ExpNormalized(gamma=gamma, shift=shift, do_clip=clip):
            r = np.sqrt(q1) * np.sqrt(q2)
            rho = np.where(both, 1, c / np.where(r == 0, 1, r))
            rho = np.clip(rho, -1, 1) if clip else rho
            shape = np.exp(f(gamma) * (rho + f(shift)))
            return r * shape, f(gamma) * shape
        case e.Gabor():
            total, d = q1 + q2, 4 * v
            z = 1 + 2 * total + d
            scale = np.exp(-(total + d) / (2 * z)) / np.sqrt(z)
            even, odd = z + 8 * c * c, 4 * c * (d + 3 * total + 2)
            slope = scale * (even * np.cosh(c / z) + odd * np.sinh(c / z)) / (z * z)
            return scale * np.sinh(c / z), slope
        case e.Monomial() | e.Polynomial() | e.Hermite():
            return _polynomial(_powers(layer), c, q1, q2)
        case e.RectifiedMonomial(degree=degree):
            below = degree**2 * _rectified(degree - 1, angle, root, c, q1 * q2)
            if degree > 0:
                below = np.where(both, degree**2 * f(0.5) * (degree == 1), below)
                return _rectified(degree, angle, root, c, q1 * q2), below
            value = np.where(q1 * q2 == 0, 0.5, _rectified(0, angle, root, c, q1 * q2))
            return np.where(both, 1, value), np.zeros_like(c)
    raise NotImplementedError(f"expected a layer of the fused engine, got {layer}")


def _powers(layer: Any) -> np.ndarray:
    """Coefficients of powers of x."""
    if isinstance(layer, e.Polynomial):
        return np.array([float(value) for value in layer.coef])
    if isinstance(layer, e.Monomial):
        return np.eye(layer.degree + 1)[-1]
    root = math.sqrt(math.factorial(layer.degree))
    return np.polynomial.hermite_e.herme2poly(np.eye(layer.degree + 1)[-1]) / root


def _polynomial(powers: Any, c: Any, q1: Any, q2: Any) -> tuple[np.ndarray, np.ndarray]:
    """E[f f] and its derivative in c, by Isserlis' theorem for every two powers."""
    k, slope = np.zeros_like(c), np.zeros_like(c)
    for a, first in enumerate(powers):
        for b, second in enumerate(powers):
            for l in range(a % 2, min(a, b) + 1, 2) if (a - b) % 2 == 0 else ():
                i, j = (a - l) // 2, (b - l) // 2
                ways = math.factorial(a) * math.factorial(b)
                ways //= math.factorial(l) * math.factorial(i) * math.factorial(j) * 2 ** (i + j)
                term = first * second * ways * q1**i * q2**j
                k += term * c**l
                slope += term * l * c ** max(l - 1, 0)
    return k, slope


def _rectified(degree: int, angle: Any, root: Any, c: Any, p: Any) -> np.ndarray:
    """E[u^d v^d; u, v > 0] for p = q1 q2: see `activations.kinked`."""
    first = (PI - angle) / (2 * PI)
    moments = [first, (root + (PI - angle) * c) / (2 * PI)]
    mixed = [first + c * root / np.where(p == 0, 1, p) / (2 * PI)]
    for k in range(1, degree + 1):
        if k > 1:
            moments.append((k - 1) * p * mixed[k - 2] + k * c * moments[k - 1])
        mixed.append((k + 1) * moments[k] + k * c * mixed[k - 1])
    return moments[degree]
