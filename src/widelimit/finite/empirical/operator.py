"""The tangent kernel of a network as a linear operator: products and solutions without a matrix."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Num

from widelimit._pytree import AnyArray, is_concrete, own, pytree, static
from widelimit.finite.empirical.arguments import Arguments
from widelimit.finite.empirical.jacobian import pulled, unit_row
from widelimit.finite.empirical.kernel_axes import kernel_dtype
from widelimit.finite.empirical.network import Network, Parameters, real_output
from widelimit.finite.empirical.outputs import Call, Output, only_output
from widelimit.finite.empirical.products import complex_product
from widelimit.finite.empirical.vector_products import ntk_vector_product, pushed
from widelimit.predict.solvers.conjugate_gradients import Solution, conjugate_gradients
from widelimit.tracing.varying import varying_like, varying_together
from widelimit.typing import (
    ApplyFunction,
    Axes,
    Inputs,
    Params,
    Scalar,
    Size,
    Subset,
    Vector,
    VmapAxes,
)


@pytree
class NTKOperator:
    """The NTK of a network at x, as a linear operator on vectors shaped like its output.

    It is a pytree, so it can be an argument of `jit`, `vmap` and other transformations. The matrix
    is never stored. A product takes one reverse and one forward pass.

    Attributes:
      params: arrays of the parameters.
      arrays: arrays of the inputs and keywords.
      network: the function, and the static description of its arguments.
      output: the static description of its output.
      batch_size: number of samples computed at a time; None for all.

    Example:
      >>> import jax.numpy as jnp
      >>> import widelimit as wl
      >>> f = lambda params, x: x @ params
      >>> ntk = wl.NTKOperator(f, jnp.ones((3, 1)), 2 * jnp.eye(3), trace_axes=(-1,))
      >>> ntk.shape, (ntk @ jnp.ones(3)).tolist()
      ((3, 3), [4.0, 4.0, 4.0])
      >>> [round(float(u), 4) for u in ntk.solve(jnp.ones(3), ridge=1.0)]
      [0.2, 0.2, 0.2]
    """

    params: list[AnyArray]
    arrays: list[AnyArray]
    network: Network = static()
    output: Output = static()
    batch_size: int | None = static()

    def __init__(
        self,
        f: ApplyFunction,
        params: Params,
        x: Inputs,
        *,
        trace_axes: Axes = (),
        subset: Subset = None,
        batch_size: Size | None = None,
        vmap_axes: VmapAxes = None,
        **kwargs: object,
    ) -> None:
        """Checks the network.

        Args:
          f: f(params, x, **kwargs), with one array as its output.
          params: tree of parameters.
          x: tree of inputs.
          trace_axes: axes of the output to take the mean over; vectors lack them.
          subset: parameters to differentiate by; see `empirical_ntk_fn`.
          batch_size: number of samples to compute at a time, for functions that treat samples
            independently; None for all at once.
          vmap_axes: with `batch_size`, the axes of the samples, see `empirical_ntk_fn`; None for
            the first axes of x and of the output.
          **kwargs: keywords of f.

        Raises:
          TypeError: parameters that are not floating-point numbers, or an output that is not one
            array.
          ValueError: f does not depend on the parameters, axes are out of range, or `batch_size` is
            below 1.
        """
        if batch_size is None and vmap_axes is not None:
            raise ValueError(
                "expected batch_size with vmap_axes, the axes of samples, got batch_size=None: "
                "pass it, or leave vmap_axes out"
            )
        if batch_size is not None:
            is_count = isinstance(batch_size, int | np.integer) and not isinstance(batch_size, bool)
            if not is_count or batch_size < 1:
                raise ValueError(f"expected batch_size of at least 1, got {batch_size!r}")
            vmap_axes = 0 if vmap_axes is None else vmap_axes
        parameters, arguments = varying_together(
            Parameters.of(params, subset), Arguments(x, kwargs)
        )
        call = Call.of(f, parameters, arguments, vmap_axes, batch_size)
        output = only_output(call, trace_axes)
        call.check_differentiable([output])
        values = (call.params, call.arrays, call.network, output, batch_size)
        for name, value in zip(
            ("params", "arrays", "network", "output", "batch_size"), values, strict=True
        ):
            object.__setattr__(self, name, value)

    @property
    def vector_shape(self) -> tuple[int, ...]:
        """Shape of vectors: that of the output without trace axes."""
        shape = self.output.shapes[0]
        return tuple(shape[a] for a in self.output.axes.kept(len(shape)))

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the matrix."""
        return (math.prod(self.vector_shape),) * 2

    @property
    def dtype(self) -> np.dtype:
        """Dtype of the matrix."""
        return np.dtype(self.output.dtype)

    def matvec(self, v: Vector) -> Array:
        """Returns the product with a vector, in its shape.

        Args:
          v: array of the shape `vector_shape`, or flat; real or complex.

        Raises:
          ValueError: the vectors have another shape.
        """
        v = self._checked(v, ())
        return _matvec(self, v.reshape(self.vector_shape)).reshape(v.shape)

    def matmat(self, vectors: Num[Array | np.ndarray, "*outputs k"]) -> Array:
        """Returns the products with several vectors, computed one after the other.

        Args:
          vectors: array [*vector_shape, k], or [size, k].

        Raises:
          ValueError: the vectors have another shape.
        """
        vectors = self._checked(vectors, (jnp.shape(vectors)[-1:]))
        columns = jnp.moveaxis(vectors, -1, 0).reshape(vectors.shape[-1], *self.vector_shape)
        return jnp.moveaxis(_matmat(self, columns), 0, -1).reshape(vectors.shape)

    def __matmul__(self, v: Vector) -> Array:
        """Returns the product with a vector, in its shape or flat, or with a matrix [size, k]."""
        is_vector = jnp.shape(v) in (self.vector_shape, self.shape[:1])
        return self.matvec(v) if is_vector else self.matmat(v)

    def diagonal(self) -> Array:
        """Returns the diagonal of the matrix, in the shape of vectors: squared norms of gradients.

        One gradient is computed at a time, or `batch_size` gradients.
        """
        return _diagonal(self)

    def solve(
        self,
        b: Vector,
        ridge: Scalar,
        *,
        tol: Scalar | None = None,
        maxiter: Size | None = None,
    ) -> Array:
        """Returns u with (K + ridge I) u = b, by conjugate gradients.

        Args:
          b: array of the shape `vector_shape`, or flat.
          ridge: number added to the diagonal; with a larger one fewer products are needed.
          tol: largest norm of the residual relative to that of b; None for 1e-8 in float64 and 1e-4
            otherwise.
          maxiter: largest number of products; None for ten times the size.

        Raises:
          ValueError: b has another shape, a negative ridge, or no convergence. With traced
            arguments the result is NaN then.
        """
        b = self._checked(b, ())
        is_number = np.ndim(ridge) == 0 and not jnp.iscomplexobj(ridge)
        if not is_number or (is_concrete(ridge) and not float(ridge) >= 0):
            raise ValueError(f"expected a ridge of at least 0, one real number, got {ridge}")
        tol = float((1e-8 if jnp.finfo(self.dtype).eps < 1e-10 else 1e-4) if tol is None else tol)
        solution = _solve(self, b.reshape(self.vector_shape), jnp.asarray(ridge), tol, maxiter)
        advice = "use a larger ridge, tol or maxiter, or float64"
        return solution.checked(tol, advice).reshape(b.shape)

    def to_scipy(self) -> Any:
        """Returns the operator as a `scipy.sparse.linalg.LinearOperator`."""
        from scipy.sparse.linalg import LinearOperator

        def product(v: np.ndarray) -> np.ndarray:
            return np.asarray(self @ np.asarray(v).reshape(self.shape[0], *np.shape(v)[1:]))

        def vector(v: np.ndarray) -> np.ndarray:
            return np.asarray(self.matvec(np.asarray(v).reshape(-1))).reshape(np.shape(v))

        return LinearOperator(
            self.shape,
            matvec=vector,
            rmatvec=vector,
            matmat=product,
            rmatmat=product,
            dtype=self.dtype,
        )

    def _checked(self, v: ArrayLike, more: tuple[int, ...]) -> Array:
        """Returns a copy of an array of vectors.

        Raises:
          ValueError: its shape is neither that of vectors nor flat, followed by `more`.
        """
        shapes = (*self.vector_shape, *more), (self.shape[0], *more)
        if jnp.shape(v) not in shapes:
            raise ValueError(f"expected shape {shapes[0]} or {shapes[1]}, got {jnp.shape(v)}")
        return jnp.asarray(own(v))

    def _real_product(self, v: Array) -> Array:
        """Returns the product of the whole kernel, in real numbers, with a vector."""
        if not v.size:
            return v
        call = Call(self.network, self.params, self.arrays)
        real = self.network.parameters.real(self.params)
        if self.batch_size is None:
            return ntk_vector_product(call.function(self.output.index), None, real)(v)
        return self._chunked_product(v, real, min(self.batch_size, self._count))

    @property
    def _count(self) -> int:
        """Number of samples."""
        assert self.output.axis is not None
        return max(self.output.shapes[0][self.output.axis], 1)

    def _chunked_product(self, v: Array, real: list[Array], size: int) -> Array:
        """Returns the product, `size` samples at a time; padded by repeating the last sample."""
        axis = self.output.axis
        assert axis is not None
        mapped, shared = self.network.inputs.split(self.arrays)
        chunks = -(-self._count // size)
        where = jnp.minimum(jnp.arange(chunks * size), self._count - 1).reshape(chunks, size)
        rows = jnp.moveaxis(v, axis, 0)
        rows = jnp.pad(rows, [(0, chunks * size - len(rows))] + [(0, 0)] * (rows.ndim - 1))
        rows = rows.reshape(chunks, size, *rows.shape[1:])

        def function(places: Array) -> Callable[[list[Array]], Array]:
            def f(p: list[Array]) -> Array:
                some = [a[places] for a in mapped]
                y = self.network.some(self.params, some, shared, p)[self.output.index]
                return jnp.moveaxis(real_output(y), axis, 0)

            return f

        def pull(total: list[Array], chunk: tuple[Array, Array]) -> tuple[list[Array], None]:
            gradient = pulled(function(chunk[0]), real)[1](chunk[1])
            return jax.tree.map(jnp.add, total, gradient), None

        start = varying_like(jax.tree.map(jnp.zeros_like, real), v)
        weights, _ = lax.scan(pull, start, (where, rows))
        out = lax.map(lambda places: pushed(function(places), real)(weights), where)
        out = out.reshape(chunks * size, *out.shape[2:])[: v.shape[axis]]
        return jnp.moveaxis(out, 0, axis)


@jax.jit
def _matvec(operator: NTKOperator, v: Array) -> Array:
    """Returns the product with a vector in its own shape."""
    operator, v = varying_together(operator, v)
    output = operator.output
    shape, dtype = output.shapes[0], operator.dtype
    like = [jax.ShapeDtypeStruct(shape, dtype)]

    def whole(v: Array) -> Array:
        return complex_product(lambda r: [operator._real_product(r[0])], [v], like)[0]

    trace = output.axes.trace
    if not trace:
        return whole(v)
    sizes = tuple(shape[a] for a in trace)

    def slot(total: Array, index: Array) -> tuple[Array, None]:
        """Adds the product of one index of the trace axes."""
        where: list[slice | Array] = [slice(None)] * len(shape)
        for a, i in zip(trace, jnp.unravel_index(index, sizes), strict=True):
            where[a] = i
        full = jnp.zeros(shape, v.dtype).at[tuple(where)].set(v)
        return total + whole(full)[tuple(where)], None

    zero = varying_like(jnp.zeros(v.shape, jnp.result_type(v.dtype, dtype)), v)
    total, _ = lax.scan(slot, zero, jnp.arange(math.prod(sizes)))
    return total / math.prod(sizes)


@jax.jit
def _matmat(operator: NTKOperator, columns: Array) -> Array:
    """Returns the products with vectors along the first axis."""
    return lax.map(lambda v: _matvec(operator, v), columns)


@jax.jit
def _diagonal(operator: NTKOperator) -> Array:
    """Returns the means over trace axes of squared norms of gradients."""
    network, output = operator.network, operator.output
    parts = (2,) if jnp.issubdtype(operator.dtype, jnp.complexfloating) else ()
    shape = (*output.shapes[0], *parts)
    real = network.parameters.real(operator.params)
    dtype = kernel_dtype(jnp.finfo(operator.dtype).dtype, *(leaf.dtype for leaf in real))
    if not math.prod(shape):
        return jnp.zeros(operator.vector_shape, dtype)
    places = np.indices(shape, np.int32).reshape(len(shape), -1)
    single = list(shape)
    mapped: list[Array] = []
    shared: list[AnyArray] = []
    samples = places[0] * 0
    if output.axis is not None:
        mapped, shared = network.inputs.split(operator.arrays)
        samples = places[output.axis].copy()
        places[output.axis], single[output.axis] = 0, 1
    entries = samples * 0
    for axis, size in enumerate(single):
        entries = entries * size + places[axis]

    def squared_norm(where: tuple[Array, Array]) -> Array:
        def f(p: list[Array]) -> Array:
            if output.axis is None:
                return real_output(network.whole(operator.params, operator.arrays, p)[output.index])
            one = [a[where[0]] for a in mapped]
            return real_output(network.one(operator.params, one, shared, p)[output.index])

        rows = [row.astype(dtype) for row in unit_row(f, real, where[1])]
        return sum(((row * row).sum() for row in rows), start=jnp.zeros((), dtype))

    ids = jnp.asarray(samples), jnp.asarray(entries)
    norms = lax.map(squared_norm, ids, batch_size=operator.batch_size).reshape(shape)
    norms = norms.sum(-1) if parts else norms
    return norms.mean(output.axes.trace) if output.axes.trace else norms


@functools.partial(jax.jit, static_argnames=("tol", "maxiter"))
def _solve(
    operator: NTKOperator, b: Array, ridge: Array, tol: float, maxiter: int | None
) -> Solution:
    """Returns the solution by conjugate gradients."""
    b = b.astype(jnp.result_type(b.dtype, operator.dtype))
    # Conjugate gradients need all of their arrays to vary along the same axes of a mesh.
    operator, b, ridge = varying_together(operator, b, ridge)

    def product(v: Array) -> Array:
        return _matvec(operator, v) + ridge.astype(b.real.dtype) * v

    return conjugate_gradients(product, b, tol, maxiter)
