"""What `get` asks for, wherever it is read."""

import numpy as np
import pytest

from widelimit.kernel.get import FIELDS, KERNELS, as_asked, parse_get


def test_names_in_lower_case() -> None:
    assert parse_get(None) == FIELDS
    assert parse_get("NTK") == ("ntk",)
    assert parse_get(["NTK", "cov1"]) == ("ntk", "cov1")
    assert parse_get(None, ("nngp", "ntk", "ntkgp"), KERNELS) == KERNELS
    assert parse_get(("ntkgp",), ("nngp", "ntk", "ntkgp")) == ("ntkgp",)


@pytest.mark.parametrize(
    "get",
    [
        np.ones((50, 200)),
        ("ntk", np.ones((50, 200))),
        1,
        {"ntk": 1},
        "all",
        (),
        ("ntk", "NTK"),
        "cov1",
    ],
)
def test_wrong_names(get: object) -> None:
    with pytest.raises(ValueError, match="expected get to be None, one of nngp, ntk, or") as caught:
        parse_get(get, KERNELS)
    assert len(str(caught.value)) < 200
    with pytest.raises(ValueError, match="expected get to be one of nngp, ntk, or"):
        parse_get(get, KERNELS, default=())


def test_nothing_stands_for_nothing() -> None:
    with pytest.raises(ValueError, match=r"expected get to be one of .* got None"):
        parse_get(None, KERNELS, default=())


def test_one_name_is_no_tuple() -> None:
    assert as_asked("Pair", "ntk", ("ntk",), [3]) == 3
    found = as_asked("Pair", ["ntk", "nngp"], ("ntk", "nngp"), [3, 4])
    assert (type(found).__name__, found.ntk, found.nngp) == ("Pair", 3, 4)
    assert type(found) is type(as_asked("Pair", None, ("ntk", "nngp"), [5, 6]))
