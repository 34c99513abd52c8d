import jax
import numpy as np
import pytest

from tests.diagnostics.networks import X, Y, linear, network, parameters
from tests.tolerance import assert_close
from widelimit.diagnostics import (
    effective_rank,
    kernel_alignment,
    kernel_drift,
    linearization_gap,
    parameter_movement,
    relative_scale,
    report,
    target_alignment,
)
from widelimit.finite.empirical import empirical_ntk_fn


def along(f, sizes):
    start, direction = parameters(0, f), parameters(1, f)
    for size in sizes:
        yield jax.tree.map(lambda p, d, s=size: p + s * d, start, direction)


def test_it_is_made_of_the_single_diagnostics():
    found = report(network, along(network, [0, 0.1, 1]), X, Y, steps=[0, 5, 80], curvature=True)
    params0, _, params = along(network, [0, 0.1, 1])
    ntk_fn = empirical_ntk_fn(network)
    kernel0, kernel = (ntk_fn(X, None, p) for p in (params0, params))
    gap = linearization_gap(network, params, params0, X)
    for values, expected in (
        (found.kernel_drift, kernel_drift(kernel, kernel0)),
        (found.kernel_alignment, kernel_alignment(kernel, kernel0)),
        (found.effective_rank, effective_rank(kernel)),
        (found.target_alignment, target_alignment(kernel, Y)),
        (found.parameter_movement, parameter_movement(params, params0)),
        (found.output_movement, gap.moved),
        (found.linearization_gap, gap.relative),
    ):
        assert_close(np.float32(values[-1]), expected, rtol=1e-4)
    assert_close(found.scale.kappa, relative_scale(network, params0, X, Y).kappa, rtol=1e-5)
    assert found.kernel_drift[0] == found.parameter_movement[0] == 0
    assert found.kernel_drift[1] < found.kernel_drift[2]
    assert (found.parameters, found.samples) == (24, 5)


def test_table_and_figure(tmp_path):
    found = report(network, along(network, [0, 0.1, 0.2, 1]), X, Y, steps=[0, 1, 5, 80])
    lines = str(found).splitlines()
    assert lines[0].startswith("24 parameters, 5 samples")
    assert lines[1].split("  ")[0].strip() == "step"
    assert "with targets" in lines[1]
    assert lines[3].split()[3] == "-"  # no gap where nothing has moved
    assert len(lines) == 7
    assert found.figure(tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    without = report(network, along(network, [0, 1]), X)
    assert "targets" not in str(without)
    assert without.figure(tmp_path / "plain.svg").stat().st_size > 1000


def test_options():
    run = list(along(network, [0, 1]))
    whole = report(network, run, X, Y, trace_axes=())
    chunked = report(*(network, run, X, Y), trace_axes=(), vmap_axes=0, memory="1KiB", batch_size=2)
    for name in ("kernel_drift", "target_alignment", "effective_rank", "linearization_gap"):
        assert_close(getattr(chunked, name)[1], getattr(whole, name)[1], rtol=1e-4)
    part = report(network, run, X, subset="a")
    assert part.kernel_drift[1] != whole.kernel_drift[1]


def test_a_linear_model_keeps_its_kernel():
    found = report(linear, along(linear, [0, 1, 100]), X, Y, curvature=True)
    assert np.all(found.kernel_drift == 0)
    assert_close(found.kernel_alignment, np.ones(3), rtol=1e-6)
    assert np.all(found.linearization_gap[1:] < 1e-5)
    assert np.all(found.parameter_movement[1:] > 0.1)
    assert found.scale.kappa == 0


@pytest.mark.parametrize(
    ("steps", "where"), [(None, r"at path\[2\]$"), ([0, 5, 80], r"at path\[2\], step 80$")]
)
def test_the_point_that_is_not_finite_is_named(steps, where):
    run = [*along(linear, [0, 1]), jax.tree.map(lambda p: p * np.nan, parameters(0, linear))]
    with pytest.raises(ValueError, match=where):
        report(linear, run, X, steps=steps)
    run[2] = jax.tree.map(lambda p: p / 0, parameters(0, network))
    with pytest.raises(ValueError, match="finite tangent kernel.*" + where):
        report(network, [*along(network, [0, 1]), run[2]], X, steps=steps)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((network, [parameters(0)], X), {}, ValueError, "at least two points"),
        ((network, [], X), {}, ValueError, "at least two points"),
        ((network, [parameters(0), {}], X), {}, ValueError, "structure of params0"),
        ((network, [parameters(0)] * 2, X), {"steps": [1]}, ValueError, "2 steps"),
        ((network, [parameters(0)] * 2, X), {"steps": [1, 0]}, ValueError, "ascending"),
        ((network, [parameters(0)] * 2, X), {"curvature": True}, ValueError, "targets y"),
        ((network, [parameters(0)] * 2, X, Y[:, 0]), {}, ValueError, "y of the shape"),
        ((network, [parameters(0)] * 2, X[:1]), {}, ValueError, "two or more samples"),
        ((network, [parameters(0)] * 2, X), {"trace_axes": 0}, ValueError, "axis of samples, 0"),
        ((lambda p, x: (x, p["a"]), [parameters(0)] * 2, X), {}, TypeError, "one array"),
        ((3, [parameters(0)] * 2, X), {}, TypeError, "a function"),
    ],
)
def test_errors(arguments, options, error, message):
    with pytest.raises(error, match=message):
        report(*arguments, **options)
