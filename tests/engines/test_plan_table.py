"""The printed plan."""

import numpy as np
import pytest

from widelimit import choose_engine, plan, stax
from widelimit.stax import Dense, serial


@pytest.mark.usefixtures("reference_engine")
def test_plan_counts_what_a_network_needs() -> None:
    net = serial(Dense(512, 1.5, 0.1), stax.Relu(), stax.repeat(Dense(512), 3), Dense(1))
    table = plan(net, (100, 784))
    assert table.parameters == 784 * 512 + 512 + 3 * 512 * 512 + 512
    assert table.pairs == 100**2
    assert table.bytes == 100**2 * 3 * 4
    assert plan(net, (100, 784), "nngp").bytes == 100**2 * 2 * 4
    text = str(table)
    for word in ("layer", "output shape", "parameters", "entries/pair", "bytes", "operations"):
        assert word in text.splitlines()[0]
    assert "Dense(512, W_std=1.5, b_std=0.1)" in text
    assert "Dense(512) x 3" in text
    assert text.splitlines()[-1].startswith("engine: reference (")


def test_entries_are_those_of_pairs_of_positions() -> None:
    spatial = serial(Dense(3), stax.Relu(), Dense(2))
    assert [row.entries for row in plan(spatial, (2, 4, 3, 1)).rows] == [144] * 4
    flat = serial(Dense(3), stax.Relu(), stax.Flatten(), Dense(2))
    assert [row.entries for row in plan(flat, (2, 4, 3, 1)).rows] == [12, 12, 12, 1, 1]
    assert plan(serial(stax.Flatten(), Dense(2)), (-1, 4, 3, 1)).rows[0].entries == 1


@pytest.mark.usefixtures("reference_engine")
def test_offsets_and_memory_of_windows() -> None:
    net = serial(
        stax.Conv(8, (3, 3), padding="SAME"),
        stax.Relu(),
        stax.AvgPool((2, 2), (2, 2)),
        stax.Flatten(),
        Dense(1),
    )
    table = plan(net, (10, 8, 8, 3))
    assert [row.offsets for row in table.rows[:4]] == [(3, 3), (3, 3), (3, 3), (1, 1)]
    assert table.rows[0].entries == 9 * 64
    assert table.rows[0].all_entries == 64 * 64
    assert table.bytes == 10**2 * 2 * 4 * 9 * 64
    assert 2 * table.bytes < table.memory < 8 * table.bytes
    text = str(table)
    assert "3x3" in text
    assert "1/7.1" in text
    assert "layer by layer" in text.splitlines()[-1]


def test_branches_share_what_they_are_given() -> None:
    layers = [stax.Conv(4, (1,)), stax.Relu()]
    branched = serial(
        *layers, stax.FanOut(2), stax.parallel(stax.Identity(), Dense(4)), stax.FanInConcat()
    )
    table = plan(branched, (4, 6, 2))
    entries = [row.entries for row in table.rows]
    assert entries == [36] * len(entries)


def test_networks_that_combine_samples_refuse_tiles() -> None:
    mixing = serial(Dense(3), serial(stax.LayerNorm((0, -1))), Dense(2))
    table = plan(mixing, (4, 5))
    assert table.mixes_samples == "serial[1].serial[0].LayerNorm"
    assert "combined by serial[1].serial[0].LayerNorm: no tiles" in str(table)
    with pytest.raises(
        ValueError, match=r"got serial\[1\]\.serial\[0\]\.LayerNorm, which combines"
    ):
        table.check_tiles()
    plan(serial(Dense(3), stax.LayerNorm()), (4, 5)).check_tiles()


def test_every_check_runs_at_plan_time() -> None:
    with pytest.raises(ValueError, match="expected a Gaussian input") as error:
        plan(serial(Dense(3), stax.Relu(), stax.Relu()), (2, 5))
    assert error.value.__notes__[0] == "at serial[2].Relu"


@pytest.mark.usefixtures("reference_engine")
def test_engine_is_named_with_its_reason() -> None:
    choice = choose_engine(serial(Dense(2)), (3, 4))
    assert (choice.name, "compiled whole" in choice.reason) == ("reference", True)


def test_print_of_a_network_is_readable() -> None:
    net = serial(
        Dense(8, np.sqrt(2), b_std=0.1),
        stax.FanOut(2),
        stax.parallel(serial(stax.Relu(), Dense(8)), stax.Identity()),
        stax.FanInSum(),
    )
    assert (
        str(net)
        == """\
serial(
    Dense(8, W_std=1.41421, b_std=0.1),
    FanOut(2),
    parallel(
        serial(
            Relu(),
            Dense(8),
        ),
        Identity(),
    ),
    FanInSum(),
)"""
    )


def test_memory_of_ensembles() -> None:
    table = plan(serial(Dense(4), stax.Relu(), Dense(1)), (1000, 8))
    million = 1000**2
    assert table.ensemble_bytes(1000, inference="bayes") == (4 + 8) * million
    assert table.ensemble_bytes(1000) == (2 * 4 + 3 * 8) * million
    assert table.ensemble_bytes(1000, 10) > table.ensemble_bytes(1000, 5)
    assert "ensemble of 1,000 training samples" in str(table)
    assert "12 MB (bayes), 32 MB (gradient descent)" in str(table)
    spatial = plan(serial(Dense(4), stax.Relu(), Dense(1)), (10, 5, 8))
    assert spatial.ensemble_bytes(10, inference="bayes") == (4 + 8) * 50**2
    with pytest.raises(ValueError, match="expected inference"):
        table.ensemble_bytes(10, inference="magic")
