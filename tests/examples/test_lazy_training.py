import jax
import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl
from examples import lazy_training
from examples.demo.regression import RegressionTask
from tests.tolerance import assert_close

TINY = lazy_training.Study(
    widths=(16, 128),
    seeds=2,
    steps=16,
    curved=0,
    asymptotic=16,
    run_width=16,
    ensemble=RegressionTask(members=4, width=32, points=4, steps=(0, 4, 16)),
    mup_members=2,
)


def test_study(capsys, tmp_path):
    result = lazy_training.main(TINY, tmp_path / "study.png")
    printed = capsys.readouterr().out
    for words in ("relative scale at 0", "exponent (95 %)", "infinite ensemble", "study.png"):
        assert words in printed
    assert (tmp_path / "study.png").stat().st_size > 10_000
    for name in ("drift of the kernel", "gap to the linearisation"):
        ntk, mup = (
            np.mean([value for width, value in result.sweeps[scaling][name] if width == 128])
            for scaling in ("NTK", "muP")
        )
        assert mup > 1.5 * ntk
    assert result.ensembles.infinite.shape == result.ensembles.mup.shape == (3, 57)


def test_fit_finds_powers():
    rng = np.random.default_rng(0)
    widths = np.repeat(2 ** np.arange(4, 10), 5)
    values = 3 * widths**-0.5 * np.exp(0.1 * rng.standard_normal(len(widths)))
    found = lazy_training.fit(list(zip(widths.tolist(), values.tolist(), strict=True)))
    assert abs(found.exponent + 0.5) < found.error < 0.1
    assert found.factor == pytest.approx(3, rel=0.2)
    assert np.isnan(lazy_training.fit([(32, 1.0)] * 5).exponent)


def test_seeds_of_wide_networks():
    study = lazy_training.Study()
    assert [len(study.seeds_at(width)) for width in (32, 512, 2048, 4096)] == [20, 20, 5, 3]


def test_the_linearised_network_is_trained_in_closed_form():
    data, network = lazy_training.demo_data(TINY.ensemble, 3), lazy_training.NTK.network(16)
    f, rate = network.apply_fn, 0.25 * lazy_training.demo_data(TINY.ensemble, 3).largest_step
    params0, (kernel, _), (start, _), _ = lazy_training.measure(
        network, data, rate, 8, jax.random.PRNGKey(0)
    )
    predicted = lazy_training.linearised_outputs(kernel, 8, start, data.y, rate)
    f_lin = wl.linearize(f, params0)
    trained = lazy_training.descend(f_lin, params0, data, rate, 8)
    x_all = jnp.concatenate([data.x, data.x_test])
    assert_close(predicted, f_lin(trained, x_all), rtol=1e-4)
