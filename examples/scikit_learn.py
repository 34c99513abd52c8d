"""An infinite network in a pipeline of scikit-learn, and a grid over its depth and noise.

Run it with `python -m examples.scikit_learn`; it needs the extra `sklearn`.
"""

from sklearn.datasets import load_diabetes
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from widelimit.estimators import NNGPRegressor


def main() -> float:
    X, X_test, y, y_test = train_test_split(*load_diabetes(return_X_y=True), random_state=0)
    model = NNGPRegressor().fit(X, y)
    mean, std = model.predict(X_test, return_std=True, noise=True)
    inside = (abs(y_test - mean) < 1.96 * std).mean()
    print(f"as it comes: R2 {model.score(X_test, y_test):.3f}, {inside:.0%} in intervals of 95%")

    pipeline = make_pipeline(StandardScaler(), NNGPRegressor(optimizer=None))
    grid = {"nngpregressor__depth": [1, 3, 5], "nngpregressor__noise": [0.3, 1.0, 3.0]}
    search = GridSearchCV(pipeline, grid, cv=5).fit(X, y)
    print(f"best of the grid: {search.best_params_}, R2 {search.score(X_test, y_test):.3f}")
    return search.score(X_test, y_test)


if __name__ == "__main__":
    main()
