"""Report of a training run by its tangent kernel and linearisation: numbers, table, figure."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Real

from widelimit._text import text_table
from widelimit.diagnostics.chunked import in_chunks
from widelimit.diagnostics.curvature import RelativeScale, relative_scale
from widelimit.diagnostics.figure import draw
from widelimit.diagnostics.movement import check_params, gap_of, parameter_movement
from widelimit.diagnostics.similarity import (
    axes_of_outputs,
    effective_rank,
    kernel_alignment,
    kernel_drift,
    target_alignment,
)
from widelimit.finite.empirical import NtkImplementation, empirical_ntk_fn
from widelimit.tracing.traced import compiled
from widelimit.typing import (
    ApplyFunction,
    Axes,
    Bytes,
    Inputs,
    Outputs,
    Params,
    Scalar,
    Scalars,
    Subset,
    TargetsLike,
    VmapAxes,
)

# Heading and attribute of each column of the table, except steps.
_COLUMNS = {
    "params moved": "parameter_movement",
    "outputs moved": "output_movement",
    "lin. gap": "linearization_gap",
    "kernel drift": "kernel_drift",
    "alignment": "kernel_alignment",
    "with targets": "target_alignment",
    "eff. rank": "effective_rank",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Report:
    """The movement of a network along a training run; `print` it, or draw its `figure`.

    All arrays have one entry per point of the run; movements at the first point are zero.

    Attributes:
      steps: the label of each point, commonly the number of steps.
      parameter_movement: |p - p0| / |p0|.
      output_movement: root mean square of f(p, x) - f(p0, x).
      linearization_gap: |f(p, x) - f_lin(p, x)| / |f(p, x) - f(p0, x)|; NaN where outputs moved
        by rounding only.
      kernel_drift: |K - K0| / |K0| of the empirical NTK.
      kernel_alignment: centred kernel alignment (CKA) of K with K0.
      target_alignment: centred alignment of K with y y^T; None without targets.
      effective_rank: exp of the entropy of the eigenvalues of K.
      scale: the relative scale at the first point; None if not requested.
      parameters: number of parameters.
      samples: number of samples.
    """

    steps: Float[np.ndarray, " points"]
    parameter_movement: Float[np.ndarray, " points"]
    output_movement: Float[np.ndarray, " points"]
    linearization_gap: Float[np.ndarray, " points"]
    kernel_drift: Float[np.ndarray, " points"]
    kernel_alignment: Float[np.ndarray, " points"]
    target_alignment: Float[np.ndarray, " points"] | None
    effective_rank: Float[np.ndarray, " points"]
    scale: RelativeScale | None
    parameters: int
    samples: int

    @property
    def linearisation_gap(self) -> Float[np.ndarray, " points"]:
        """The earlier name of `linearization_gap`."""
        return self.linearization_gap

    def __str__(self) -> str:
        columns = {
            heading: values
            for heading, name in _COLUMNS.items()
            if (values := getattr(self, name)) is not None
        }
        rows = [
            [f"{step:g}", *(_number(values[k]) for values in columns.values())]
            for k, step in enumerate(self.steps)
        ]
        lines = [
            f"{self.parameters:,} parameters, {self.samples:,} samples, tangent kernel against "
            f"that at {self.steps[0]:g}",
            text_table(["step", *columns], rows),
        ]
        if self.scale is not None:
            s = self.scale
            lines.append(
                f"relative scale at {self.steps[0]:g}: {s.kappa:.3g} = |f - y| |D^2 f| / |D f|^2 = "
                f"{s.residual:.3g} x {s.hessian:.3g} / {s.jacobian:.3g}^2"
            )
        return "\n".join(lines)

    __repr__ = __str__

    def figure(self, path: str | Path) -> Path:
        """Draws all quantities over steps, and returns the `path` of the file.

        Args:
          path: path of the figure; its suffix selects the format.

        Raises:
          ModuleNotFoundError: without matplotlib, saying how to install it.
        """
        movements = {
            "parameters": self.parameter_movement,
            "kernel drift": self.kernel_drift,
            "gap to the linearisation": self.linearization_gap,
        }
        alignments = {"with the first kernel (CKA)": self.kernel_alignment}
        if self.target_alignment is not None:
            alignments["with targets"] = self.target_alignment
        panels = {
            "relative movement": movements,
            "alignment": alignments,
            "effective rank": {"": self.effective_rank},
        }
        return draw(self.steps, panels, path)


def report(
    f: ApplyFunction,
    path: Iterable[Params],
    x: Inputs,
    y: Outputs | None = None,
    *,
    steps: Sequence[Scalar] | Real[Array | np.ndarray, " points"] | None = None,
    curvature: bool = False,
    trace_axes: Axes = (-1,),
    vmap_axes: VmapAxes = None,
    implementation: NtkImplementation | int | str = NtkImplementation.JACOBIAN_CONTRACTION,
    memory: Bytes | None = None,
    subset: Subset = None,
    batch_size: int | None = None,
) -> Report:
    """Returns a report of how far a network is from lazy training, along points of parameters.

    Args:
      f: f(params, x), with one array [n, ...] as its output.
      path: two or more trees of parameters: before and after training, or along a run. They are
        read one at a time, so a generator may train between them; the first is stored.
      x: tree of inputs.
      y: targets like f(params, x), or None.
      steps: a number for each point, in ascending order; None for 0, 1, 2, ...
      curvature: whether to compute the `relative_scale` at the first point, which needs y.
      trace_axes: axes of the output to take the mean over in kernels; see `empirical_ntk_fn`.
      vmap_axes: axes of the samples; see `empirical_ntk_fn`.
      implementation: the way to compute kernels; see `empirical_ntk_fn`.
      memory: budget of memory for derivatives in kernels; see `empirical_ntk_fn`.
      subset: parameters of the kernels and of the relative scale; see `empirical_ntk_fn`. Movements
        are those of all parameters.
      batch_size: number of samples to compute at a time, except in kernels, for functions that
        treat samples independently, along first axes; None for all at once.

    Raises:
      TypeError: f is not a function, or its output is not one array; parameters that are not
        floating-point numbers.
      ValueError: fewer than two points, points of another structure or shape than the first, steps
        that do not fit, targets of another shape, fewer than two samples, a kernel or outputs that
        are not finite, or errors of `empirical_ntk_fn` and of single diagnostics; the message names
        the point of the path.

    Example:
      >>> import jax.numpy as jnp
      >>> x, w = jnp.eye(3), jnp.ones((3, 1))
      >>> lazy = report(lambda w, x: x @ w, [w, 2 * w], x)
      >>> lazy.parameter_movement, lazy.kernel_drift  # a linear model keeps its kernel
      (array([0., 1.]), array([0., 0.]))
    """
    chunked = in_chunks(f, batch_size)
    ntk_fn = empirical_ntk_fn(
        f, trace_axes, (), vmap_axes, implementation, memory=memory, subset=subset
    )
    if curvature and y is None:
        raise ValueError("expected targets y for the relative scale, got None")
    scale = None
    rows: list[dict[str, Any]] = []
    for params in path:
        if not rows:
            params0 = params
            samples = _check_outputs(f, params, x, y, trace_axes)
            kernel0 = ntk_fn(x, None, params)
            if curvature and y is not None:
                scale = relative_scale(f, params, x, y, subset=subset, batch_size=batch_size)
        check_params(params, params0, f"path[{len(rows)}]")
        kernel = ntk_fn(x, None, params) if rows else kernel0
        points = params, params0, x
        gap = compiled(functools.partial(gap_of, chunked), *points)(*points)
        with _naming(len(rows), steps):
            _check_finite(kernel, gap.moved)
            movement = parameter_movement(params, params0)
            row = _row(kernel, kernel0, y, trace_axes)
        rows.append(
            row
            | {
                "parameter_movement": movement,
                "output_movement": gap.moved,
                "linearization_gap": gap.relative,
            }
        )
    if len(rows) < 2:
        raise ValueError(f"expected at least two points of parameters in path, got {len(rows)}")
    columns: dict[str, Any] = {
        name: np.array([float(row[name]) for row in rows]) for name in rows[0]
    }
    columns.setdefault("target_alignment", None)
    return Report(
        steps=_check_steps(steps, len(rows)),
        scale=scale,
        parameters=sum(np.size(leaf) for leaf in jax.tree.leaves(params0)),
        samples=samples,
        **columns,
    )


@contextlib.contextmanager
def _naming(index: int, steps: Scalars | None) -> Iterator[None]:
    """Adds the point of the path, and its step if known, to the message of a ValueError."""
    try:
        yield
    except ValueError as error:
        labels = () if steps is None else tuple(np.asarray(steps).tolist())
        step = f", step {labels[index]}" if index < len(labels) else ""
        raise ValueError(f"{error}, at path[{index}]{step}") from error


def _check_finite(kernel: jax.Array, moved: jax.Array) -> None:
    """Raises ValueError unless the kernel and the outputs of a point are finite."""
    if not np.isfinite(kernel).all():
        raise ValueError("expected a finite tangent kernel, got entries that are not")
    if not np.isfinite(moved):
        raise ValueError(f"expected finite outputs of f, got outputs that have moved by {moved}")


def _row(
    kernel: jax.Array, kernel0: jax.Array, y: TargetsLike | None, trace_axes: Axes
) -> dict[str, Any]:
    """Returns the entries of the report that follow from a kernel."""
    row = {
        "kernel_drift": kernel_drift(kernel, kernel0),
        "kernel_alignment": kernel_alignment(kernel, kernel0),
        "effective_rank": effective_rank(kernel),
    }
    if y is not None:
        row["target_alignment"] = target_alignment(kernel, y, trace_axes=trace_axes)
    return row


def _check_outputs(f: ApplyFunction, params: Params, x: Inputs, y: Any, trace_axes: Axes) -> int:
    """Returns the number of samples.

    Raises:
      TypeError: the output of f is not one array.
      ValueError: fewer than two samples, wrong trace axes, or targets of another shape.
    """
    out = jax.eval_shape(lambda params, x: f(params, x), params, x)
    if not hasattr(out, "shape"):
        raise TypeError(
            f"expected f with one array as its output, got {type(out).__name__}: choose one, as by "
            "lambda params, x: f(params, x)[0]"
        )
    if not out.shape or out.shape[0] < 2:
        raise ValueError(f"expected outputs of two or more samples, got shape {out.shape}")
    axes_of_outputs(trace_axes, out.shape)
    if y is not None and np.shape(y) != out.shape:
        raise ValueError(f"expected y of the shape of f(params, x), {out.shape}, got {np.shape(y)}")
    return out.shape[0]


def _check_steps(steps: Scalars | None, count: int) -> np.ndarray:
    """Returns the label of each point.

    Raises:
      ValueError: their number is wrong, or they are not ascending.
    """
    labels = np.arange(count, dtype=float) if steps is None else np.asarray(steps, dtype=float)
    if labels.shape != (count,):
        raise ValueError(f"expected {count} steps, one per point of path, got shape {labels.shape}")
    if not np.all(np.diff(labels) > 0):
        raise ValueError(f"expected steps in ascending order, got {labels.tolist()}")
    return labels


def _number(value: float) -> str:
    """Returns a number with three digits, or a dash for NaN."""
    return "-" if np.isnan(value) else f"{value:.3g}"
