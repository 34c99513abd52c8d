"""
Tables, with scikit-learn
=========================

``widelimit.estimators`` has infinite networks as estimators of scikit-learn: they go through
pipelines, cross-validation and grid searches like any other. For tables of some hundred to some ten
thousand rows they need little tuning, since noise and scale are chosen by the evidence.
"""

import numpy as np
from matplotlib import pyplot
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_diabetes
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from widelimit.estimators import NNGPRegressor, NTKRegressor

import widelimit as wl

# %%
# The data
# --------
#
# 442 patients, ten measurements each, and how far diabetes had progressed after a year. Estimators
# take data frames.

frame, y = load_diabetes(return_X_y=True, as_frame=True, scaled=False)
x_train, x_test, y_train, y_test = train_test_split(frame, y, test_size=0.25, random_state=0)
print(frame.head(3))

# %%
# Five lines
# ----------
#
# Inputs and targets are standardised, and the predictions are in the units of ``y``.

model = NNGPRegressor(depth=2)
model.fit(x_train, y_train)
mean, std = model.predict(x_test, return_std=True)
print(f"R^2 on new patients {model.score(x_test, y_test):.3f}")
print(f"noise {model.noise_:.2f} of the standard deviation of y, scale {model.scale_:.2f}, "
      f"log evidence {model.log_marginal_likelihood_value_:.1f}")  # fmt: skip

# %%
# How well do the error bars hold? ``return_std`` is the uncertainty of the function; an observation
# has the noise too, in units of ``y``.

observed = np.sqrt(std**2 + (model.noise_ * y_train.std()) ** 2)
for widths, expected in ((1, 0.683), (2, 0.954)):
    share = np.mean(np.abs(y_test - mean) < widths * observed)
    print(f"within {widths} standard deviations: {share:.3f}, expected {expected}")

with wl.plot.style():
    _, ax = pyplot.subplots(figsize=(6.4, 5), layout="constrained")
    ax.errorbar(mean, y_test, xerr=observed, fmt="o", color="#0072B2", ecolor="#0072B255", ms=5)
    ax.axline((150, 150), slope=1, color="black", linewidth=1)
    _ = ax.set(xlabel="predicted, with 1 standard deviation", ylabel="observed")

# %%
# Against other estimators
# ------------------------
#
# The split above is a hard one. Five folds, the same for all, with the standard error over folds:

folds = KFold(5, shuffle=True, random_state=0)
models = {
    "ridge regression": make_pipeline(StandardScaler(), RidgeCV(np.geomspace(0.1, 1000, 13))),
    "random forest": RandomForestRegressor(50, min_samples_leaf=5, random_state=0),
    "infinite network, Bayes": NNGPRegressor(depth=2),
    "infinite network, trained": NTKRegressor(depth=2),
    "trained for 20 steps": NTKRegressor(depth=2, training_time=20),
}
for name, estimator in models.items():
    scores = cross_val_score(estimator, frame, y, cv=folds)
    print(f"{name:26} R^2 {scores.mean():.3f} +- {scores.std(ddof=1) / np.sqrt(5):.3f}")

# %%
# All are within a standard error or two: this table is nearly linear, and a network has little to
# add. What it adds are error bars, and no search was needed to get there.

# %%
# Choosing a network
# ------------------
#
# Structure is an ordinary parameter. The evidence compares it without a validation set:

for activation in ("relu", "erf"):
    networks = [NNGPRegressor(depth=depth, activation=activation) for depth in (1, 2, 4)]
    fits = [network.fit(x_train, y_train) for network in networks]
    evidences = ", ".join(f"{fit.log_marginal_likelihood_value_:.1f}" for fit in fits)
    print(f"{activation:5} log evidence at depth 1, 2, 4: {evidences}")

# %%
# And so does a grid search, which costs a fit for each fold:

search = GridSearchCV(NNGPRegressor(), {"depth": [1, 4], "activation": ["relu", "erf"]}, cv=3)
search.fit(x_train, y_train)
print(search.best_params_, f"R^2 {search.best_score_:.3f}")

# %%
# Bounds make ``W_std`` and ``b_std`` part of what the evidence chooses:

tuned = NNGPRegressor(depth=1, activation="erf", W_std_bounds=(0.05, 5.0), b_std_bounds=(0.01, 3.0))
tuned.fit(x_train, y_train)
print(f"log evidence {tuned.log_marginal_likelihood_value_:.1f}, "
      f"R^2 on new patients {tuned.score(x_test, y_test):.3f}")  # fmt: skip

# %%
# Columns of different kinds
# --------------------------
#
# What is not a number is encoded in a pipeline, as for any estimator.

columns = make_column_transformer(
    (OneHotEncoder(sparse_output=False), ["sex"]), remainder=StandardScaler()
)
pipeline = make_pipeline(columns, NNGPRegressor(depth=2))
print(f"R^2 of the pipeline {pipeline.fit(x_train, y_train).score(x_test, y_test):.3f}")

# %%
# Leave-one-out in closed form
# ----------------------------
#
# Each patient predicted from all others, without fitting again:

left_out = model.leave_one_out()
print(f"root mean square error {np.sqrt(np.mean(left_out.residuals**2)):.1f}, "
      f"standard deviation of y {y_train.std():.1f}")  # fmt: skip
