"""Between the fused engine and the rest: which networks it runs, and its results as covariances."""

from __future__ import annotations

import collections
import dataclasses
import functools
import importlib.util
import itertools
import threading
import weakref
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from widelimit.covariance.covariances import Covariances
from widelimit.covariance.signal import Signal
from widelimit.engines.fused.engine import Engine, Prepared, pair_order
from widelimit.engines.fused.flat import FlatEngine, FlatProgram, PreparedRows, lower_flat
from widelimit.engines.fused.lowering import Program, lower
from widelimit.engines.fused.rules import RefusedError, has_smooth
from widelimit.engines.plan import make_site, output_need
from widelimit.kernel.kernel import Kernel
from widelimit.layers.base import Layer, Site
from widelimit.layers.functions import evaluates_functions
from widelimit.layers.step import step

_ORIGIN = "<space>"  # stands for all weights before the spatial axes ended


class _Programs:
    """The programs of recent networks, by structure: hyper-parameters do not matter."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._lock = threading.RLock()
        self._known: collections.OrderedDict[Any, Program | FlatProgram | str] = (
            collections.OrderedDict()
        )
        # Of networks that are still in use: their structures take a while to compare.
        self._of: weakref.WeakKeyDictionary[Layer, dict[Any, Program | FlatProgram | str]] = (
            weakref.WeakKeyDictionary()
        )

    def find(self, net: Layer, signal: Any, tangent: bool) -> Program | FlatProgram | str:
        """Returns the program of a network, or why there is none."""
        one = _with_samples(signal, 1, 1) if isinstance(signal, Signal) else signal
        with self._lock:
            own = self._of.setdefault(net, {})
            if (one, tangent) not in own:
                own[one, tangent] = self._alike(net, one, tangent)
            return own[one, tangent]

    def _alike(self, net: Layer, signal: Any, tangent: bool) -> Program | FlatProgram | str:
        """Returns the program that networks of one structure share."""
        key = jax.tree.structure(net), signal, tangent
        if key not in self._known:
            self._known[key] = _lowered(net, signal, tangent)
        self._known.move_to_end(key)
        while len(self._known) > self._size:
            self._known.popitem(last=False)
        return self._known[key]


_programs = _Programs(64)


def _lowered(net: Layer, signal: Any, tangent: bool) -> Program | FlatProgram | str:
    if not isinstance(signal, Signal):
        return "the network has several inputs"
    try:
        if signal.spatial:
            return lower(net, signal, tangent)
        need = output_need(net.output_signal(signal), diagonal_spatial=False, own=False)
        site = make_site(net, signal, need, (None, None), (None, None))
        return lower_flat(net, site, tangent)
    except RefusedError as error:
        return str(error)


def refusal(net: Layer, signal: Any, tangent: bool = True) -> str | None:
    """Returns why the fused engine does not run a network on such inputs; None if it does."""
    if importlib.util.find_spec("numba") is None:
        return "numba is not installed"
    if jax.default_backend() != "cpu":
        return f"the default device is a {jax.default_backend()}"
    found = _programs.find(net, signal, tangent)
    return found if isinstance(found, str) else None


def fused_kernel(net: Layer, signal: Signal, *, tangent: bool) -> FusedKernel | FlatKernel:
    """Returns the kernel of a network on inputs of one shape.

    Args:
      net: a network without a `refusal`.
      signal: description of its inputs; batch sizes do not matter.
      tangent: whether the NTK is wanted.

    Raises:
      ValueError: the fused engine does not run the network.
    """
    program = _programs.find(net, signal, tangent)
    match program:
        case Program():
            return FusedKernel(program, net, signal, tangent)
        case FlatProgram():
            return FlatKernel(program, net, signal, tangent)
        case why:
            raise ValueError(f"expected a network that the fused engine runs, but {why}")


class FlatKernel:
    """The kernel of a network without spatial axes; see `fused_kernel`."""

    def __init__(self, program: FlatProgram, net: Layer, signal: Signal, tangent: bool) -> None:
        self._net = net
        self._signal = signal
        self._tangent = tangent
        self._program = program
        self._dtype = np.dtype(jax.dtypes.canonicalize_dtype(np.float64))
        inner = np.float64 if has_smooth(program.code) else self._dtype
        self._engine = FlatEngine(program, net, inner)

    def prepare(self, *inputs: Any) -> tuple[PreparedRows, ...]:
        """Returns each of some inputs with their variances at every layer."""
        order = self._signal.to_canonical()
        return tuple(self._engine.prepare(np.asarray(x).transpose(order)) for x in inputs)

    @property
    def sample_bytes(self) -> int:
        """Bytes that `prepare` keeps of one sample."""
        return self._signal.channels * 8 + (self._program.places + 2) * self.itemsize + 8

    @property
    def itemsize(self) -> int:
        """Bytes of a number that is computed with."""
        return self._engine.dtype.itemsize

    def kernel(self, first: PreparedRows, second: PreparedRows | None, *, nngp: bool) -> Kernel:
        """Returns the kernel between prepared inputs, self-covariances included.

        Args:
          first: inputs of x1.
          second: inputs of x2, None for x1.
          nngp: whether the NNGP is wanted.
        """
        other = first if second is None else second
        program = self._program
        signal = self._net.output_signal(_with_samples(self._signal, len(first.x), len(other.x)))
        tangent = self._tangent and program.tangent
        # No copies: the arrays lie where JAX wants them, and nobody else holds them.
        k, t = (
            None if values is None else jnp.from_dlpack(_rounded(values, self._dtype))
            for values in self._engine.kernels(first, second, (nngp, tangent))
        )
        if self._tangent and not tangent:  # as the reference: a scalar before the first weights
            shape = (len(first.x), len(other.x)) if program.weighted else ()
            t = jnp.zeros(shape, self._dtype)
        return Kernel(
            nngp=k,
            ntk=t,
            cov1=jnp.array(first.variances),
            cov2=jnp.array(other.variances),
            x1_is_x2=jnp.asarray(second is None),
            is_gaussian=program.gaussian,
            is_reversed=False,
            is_input=False,
            diagonal_batch=True,
            diagonal_spatial=False,
            shape1=signal.shape1,
            shape2=signal.shape2,
            batch_axis=signal.batch_axis,
            channel_axis=signal.channel_axis,
            mask1=None,
            mask2=None,
        )


class FusedKernel:
    """The kernel of a network with spatial axes; see `fused_kernel`."""

    def __init__(self, program: Program, net: Layer, signal: Signal, tangent: bool) -> None:
        self._signal = signal
        self._tangent = tangent
        self._program = program
        self._tail = program.tail(net)
        anew = evaluates_functions(self._tail)
        self._tail_step = _tail_step if anew else _compiled_tail_step
        self._dtype = np.dtype(jax.dtypes.canonicalize_dtype(np.float64))
        smooth = any(has_smooth(stage.code) for stage in program.stages)
        self._engine = Engine(program, net, np.float64 if smooth else self._dtype)
        self._site = functools.lru_cache(maxsize=16)(self._make_site)

    def _make_site(self, n1: int, n2: int, own: bool) -> Site:
        """Returns the site of the layers behind the spatial axes."""
        signal = _with_samples(self._program.signal_out, n1, n2)
        need = output_need(self._tail.output_signal(signal), diagonal_spatial=False, own=own)
        return make_site(self._tail, signal, need, (None, None), (None, None))

    def prepare(self, *inputs: Any) -> tuple[Prepared, ...]:
        """Returns each of some batches of images with their variances at every layer."""
        order = self._signal.to_canonical()
        batches = [np.moveaxis(np.asarray(x).transpose(order), -1, 1) for x in inputs]
        images = batches[0] if len(batches) == 1 else np.concatenate(batches)
        prepared = self._engine.prepare(images.reshape(len(images), *self._program.image))
        ends = itertools.accumulate(map(len, batches), initial=0)
        return tuple(prepared.part(slice(*part)) for part in itertools.pairwise(ends))

    @property
    def sample_bytes(self) -> int:
        """Bytes that `prepare` keeps of one sample."""
        return self._program.room * self.itemsize

    @property
    def itemsize(self) -> int:
        """Bytes of a number that is computed with."""
        return self._engine.dtype.itemsize

    def covariances(
        self, first: Prepared, second: Prepared | None, *, own: bool
    ) -> tuple[Covariances, Site]:
        """Returns the covariances of the output between prepared images; None stands for `first`.

        Args:
          first: images of x1.
          second: images of x2.
          own: whether self-covariances of the output are wanted.
        """
        other = first if second is None else second
        site = self._site(len(first.digests), len(other.digests), own)
        values = self._matrix(first, second)
        wanted = site.need_in.own.wanted
        if second is None and wanted:
            cov1, cov2 = values[0].diagonal(), None
        else:
            cov1 = self._variances(first, wanted)
            cov2 = None if second is None else self._variances(second, wanted)
        ntk = values[1] if self._program.tangent else None
        start = _Start(values[0], ntk, cov1, cov2)
        gaussian = self._program.gaussian
        return self._tail_step(self._tail, start, site, self._tangent, gaussian), site

    def _matrix(self, first: Prepared, second: Prepared | None) -> np.ndarray:
        """Returns K and T [2, n1, n2] at the end of the spatial axes; symmetric to the bit."""
        other = first if second is None else second
        n1, n2 = len(first.digests), len(other.digests)
        pairs = pair_order(n1, n2, symmetric=second is None)
        values = self._engine.kernels(first, other, pairs)
        out = np.empty((2, n1, n2), self._dtype)
        values = _rounded(values, self._dtype)
        out[:, pairs[:, 0], pairs[:, 1]] = values.T
        if second is None:
            out[:, pairs[:, 1], pairs[:, 0]] = values.T
        return out

    def _variances(self, images: Prepared, wanted: bool) -> np.ndarray:
        """Returns the covariance of every image with itself [n], or nothing [n, 0]."""
        n = len(images.digests)
        if not wanted:
            return np.zeros((n, 0, 1), self._dtype)
        if images.variances is not None:
            return images.variances.astype(self._dtype)
        same = np.stack([np.arange(n), np.arange(n)], axis=1)
        return self._engine.kernels(images, images, same)[:, 0].astype(self._dtype)


def _rounded(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Returns numbers in a dtype, infinite where that does not hold them."""
    with np.errstate(over="ignore"):
        return values.astype(dtype, copy=False)


class _Start(NamedTuple):
    """Covariances where the spatial axes end.

    Arrays of NumPy: what is compiled takes them sooner than JAX makes arrays of them.

    Attributes:
      nngp: [n1, n2].
      ntk: likewise, None without a tangent.
      cov1: of the images of x1 [n1], or nothing [n1, 0, 1].
      cov2: likewise; None if x2 is x1.
    """

    nngp: np.ndarray
    ntk: np.ndarray | None
    cov1: np.ndarray
    cov2: np.ndarray | None


def _tail_step(
    tail: Layer, start: _Start, site: Site, tangent: bool, gaussian: bool
) -> Covariances:
    """Returns the covariances behind the tail."""
    cov = Covariances(
        nngp=_shaped(start.nngp),
        ntk=None if start.ntk is None else _shaped(start.ntk),
        gap=None,
        cov1=_shaped(start.cov1),
        cov2=None if start.cov2 is None else _shaped(start.cov2),
        signal=site.signal_in,
        need=site.need_in,
        tangent=tangent,
        gaussian=gaussian,
        origins=frozenset({_ORIGIN}),
    )
    return step(tail, cov, site)


# Without spatial axes there is nothing that has to be compiled layer by layer.
_compiled_tail_step = jax.jit(_tail_step, static_argnums=(3, 4))


def _shaped(values: Any) -> jax.Array:
    """Returns values with one offset and one position, unless they have these axes already."""
    values = jnp.asarray(values)
    return values if values.ndim == 3 else values[..., None, None]


def _with_samples(signal: Signal, n1: int, n2: int) -> Signal:
    """Returns the description of other numbers of samples."""

    def resized(shape: tuple[int, ...], n: int) -> tuple[int, ...]:
        return (*shape[: signal.batch_axis], n, *shape[signal.batch_axis + 1 :])

    shapes = resized(signal.shape1, n1), resized(signal.shape1, n2)
    return dataclasses.replace(signal, shape1=shapes[0], shape2=shapes[1])
