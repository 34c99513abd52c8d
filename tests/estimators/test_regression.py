"""Regressors as people use them."""

import pickle

import jax
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import widelimit as wl
from tests.estimators.problems import regression
from tests.tolerance import assert_close
from widelimit.estimators import NNGPRegressor, NTKRegressor

KINDS = pytest.mark.parametrize("kind", [NNGPRegressor, NTKRegressor])


@pytest.mark.usefixtures("x64")
@KINDS
def test_predictions_are_those_of_an_infinite_ensemble_in_units_of_y(kind):
    x, y, test = regression()
    y = y * [1.0, 50.0] + [3.0, -7.0]
    mean, std = y.mean(0), y.std(0)
    model = kind(depth=2, noise=0.3, optimizer=None).fit(x, y)
    inference = "bayes" if kind is NNGPRegressor else "gradient_descent"
    scaler = StandardScaler().fit(x)
    scaled = (scaler.transform(x), (y - mean) / std)
    theirs = wl.InfiniteEnsemble(
        wl.models.fcn(2), *scaled, inference=inference, noise=0.3, jitter=0.0
    )
    test_scaled = scaler.transform(test)
    assert_close(model.predict(test), np.asarray(theirs.mean(test_scaled)) * std + mean)
    for noise in (False, True):
        ours = model.predict(test, return_std=True, noise=noise)[1]
        assert_close(ours, np.asarray(theirs.std(test_scaled, noise=noise)) * std)
        ours = model.predict(test, return_cov=True, noise=noise)[1]
        assert_close(ours, np.asarray(theirs.cov(test_scaled, noise=noise))[..., None] * std**2)
    assert jax.config.jax_enable_x64


@KINDS
def test_one_output_has_no_axis(kind):
    x, y, test = regression(outputs=1)
    column, flat = kind(depth=1).fit(x, y), kind(depth=1).fit(x, y[:, 0])
    assert_close(column.predict(test)[:, 0], flat.predict(test))
    assert column.predict(test, return_cov=True)[1].shape == (6, 6, 1)
    assert flat.predict(test, return_cov=True)[1].shape == (6, 6)
    assert flat.sample_y(test, 3).shape == (6, 3)
    assert column.leave_one_out().std.shape == y.shape


def test_draws_have_the_moments_of_the_ensemble():
    x, y, test = regression()
    model = NNGPRegressor(depth=1).fit(x, y * [1, 20])
    draws = model.sample_y(test, 20_000)
    mean, std = model.predict(test, return_std=True)
    assert np.abs((draws.mean(-1) - mean) / std).max() < 0.04
    assert np.abs(draws.std(-1) / std - 1).max() < 0.04


@KINDS
def test_float32_inputs_are_computed_in_float64(kind):
    x, y, test = (a.astype(np.float32) for a in regression())
    model = kind(depth=1).fit(x, y)
    expected = kind(depth=1).fit(*(a.astype(np.float64) for a in (x, y)))
    assert_close(model.predict(test), expected.predict(test.astype(np.float64)))


@KINDS
@pytest.mark.parametrize("noise", [None, 1e6, 0.0])
def test_hard_cases_are_finite(kind, noise):
    x, y, _ = regression()
    x[:, 1] = 0.1  # constant
    settings = {} if noise is None else {"noise": noise, "optimizer": None}
    model = kind(depth=1, **settings)
    flat = np.full(30, 1 / 3)
    assert_close(model.fit(x, flat).predict(x), flat)
    assert_close(model.fit(x[:1], flat[:1]).predict(x), flat)
    std = model.fit(x[:5], y[:5]).predict(x, return_std=True)[1]
    assert np.isfinite(std).all()
    if noise == 1e6:
        assert_close(model.predict(x), np.broadcast_to(y[:5].mean(0), y.shape), rtol=1e-6)


def test_early_stopping_lies_between_the_prior_and_the_end():
    x, y, _ = regression()
    errors = [
        ((NTKRegressor(training_time=t, noise=0.01).fit(x, y).predict(x) - y) ** 2).mean()
        for t in (0.0, 10.0, 1e3, 1e9)
    ]
    assert errors == sorted(errors, reverse=True)
    assert_close(errors[0], ((y - y.mean(0)) ** 2).mean())


@pytest.mark.parametrize("restarts", [0, 2])
def test_the_evidence_of_networks_grows(restarts):
    x, y, _ = regression(outputs=1)
    start = NNGPRegressor(depth=1).fit(x, y)
    model = NNGPRegressor(
        depth=1,
        W_std_bounds=(0.5, 4),
        b_std_bounds=(0.01, 4),
        n_restarts_optimizer=restarts,
        random_state=0,
    ).fit(x, y)
    assert model.log_marginal_likelihood_value_ > start.log_marginal_likelihood_value_
    network = wl.to_json(model.network_)
    given = NNGPRegressor(wl.from_json(network)).fit(x, y)
    assert_close(given.predict(x), model.predict(x))


def test_images_come_as_images_or_as_rows():
    random = np.random.default_rng(0)
    x, y = random.random((12, 4, 4, 1)), random.random(12)
    model = NTKRegressor("cnn", depth=1).fit(x, y)
    rows = NTKRegressor("cnn", depth=1, image_shape=(4, 4, 1)).fit(x.reshape(12, 16), y)
    assert_close(model.predict(x), rows.predict(x.reshape(12, 16)))
    with pytest.raises(ValueError, match=r"expected X of shape \(n, 4, 4, 1\) as in fit"):
        model.predict(x[:, :, :2])
    with pytest.raises(ValueError, match="image_shape="):
        NTKRegressor("cnn").fit(x.reshape(12, 16), y)


@KINDS
def test_estimators_are_cloned_and_pickled(kind):
    x, y, test = regression()
    for settings in ({}, {"solver": wl.predict.Cholesky(), "optimizer": None}):
        model = kind(wl.models.fcn(1), **settings).fit(x, y)
        again = pickle.loads(pickle.dumps(model))
        assert_close(again.predict(test), model.predict(test))
        assert_close(clone(model).fit(x, y).predict(test), model.predict(test))


def test_pipelines_and_grids():
    x, y, _ = regression(samples=60)
    grid = {"ntkregressor__depth": [0, 2], "ntkregressor__noise": [0.3, 1e4]}
    pipeline = make_pipeline(StandardScaler(), NTKRegressor(optimizer=None))
    search = GridSearchCV(pipeline, grid, cv=2).fit(x, y)
    assert search.best_params_ == {"ntkregressor__depth": 2, "ntkregressor__noise": 0.3}


def test_data_frames_keep_their_names():
    pandas = pytest.importorskip("pandas")
    x, y, test = regression(outputs=1)
    frame = pandas.DataFrame(x, columns=["a", "b", "c"])
    model = NNGPRegressor(depth=1).fit(frame, pandas.Series(y[:, 0]))
    assert list(model.feature_names_in_) == ["a", "b", "c"]
    assert_close(
        model.predict(pandas.DataFrame(test, columns=["a", "b", "c"])),
        NNGPRegressor(depth=1).fit(x, y[:, 0]).predict(test),
    )
    with pytest.raises(ValueError, match="feature names"):
        model.predict(pandas.DataFrame(test, columns=["c", "b", "a"]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"noise": -1.0}, "expected noise of at least 0"),
        ({"scale": 0.0}, "expected a positive scale"),
        ({"optimizer": "fmin_l_bfgs_b"}, "expected optimizer to be None or one of"),
        ({"solver": wl.predict.Cholesky()}, "expected optimizer=None and infinite training time"),
        ({"W_std_bounds": (0.5, 4), "optimizer": None}, "expected a named network, an optimizer"),
        ({"W_std_bounds": (2.0, 4.0)}, "expected W_std_bounds to be 'fixed' or two positive"),
        ({"network": wl.stax.serial(wl.stax.Conv(1, (1, 1)))}, "end it with Flatten"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(settings, message):
    x, y, _ = regression()
    if "network" in settings:
        x = x.reshape(30, 1, 3, 1)
    with pytest.raises(ValueError, match=message):
        NNGPRegressor(**settings).fit(x, y)


def test_weights_below_zero_are_refused():
    x, y, _ = regression()
    for weights in (-np.ones(30), np.zeros(30)):
        with pytest.raises(ValueError, match="weight"):
            NNGPRegressor().fit(x, y, sample_weight=weights)


def test_trained_networks_have_no_evidence():
    x, y, test = regression()
    with pytest.raises(ValueError, match=r"one of \('leave_one_out',\) for NTKRegressor"):
        NTKRegressor(optimizer="evidence").fit(x, y)
    assert not hasattr(NTKRegressor().fit(x, y), "log_marginal_likelihood_value_")
    with pytest.raises(ValueError, match="expected one of return_std and return_cov"):
        NTKRegressor().fit(x, y).predict(test, return_std=True, return_cov=True)
