import pytest

pytest.importorskip("botorch")


@pytest.mark.filterwarnings("ignore")
def test_it_comes_near_the_minimum():
    from examples.bayesian_optimisation import LEAST, main

    assert main(8, 2) < LEAST + 20
