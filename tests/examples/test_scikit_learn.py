from examples import scikit_learn


def test_the_grid_explains_something():
    assert scikit_learn.main() > 0.3
