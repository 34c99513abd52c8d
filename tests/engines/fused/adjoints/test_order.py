"""Which values instructions read, and where their cotangents are."""

from __future__ import annotations

import numpy as np

from widelimit import stax
from widelimit.engines.fused import instructions as m
from widelimit.engines.fused.adjoints.order import (
    HOME,
    JOINED,
    LAST_JOINED,
    LAST_READ,
    READ,
    in_own_slots,
    is_read_up,
    missing_partials,
    slots_of,
    values_read,
)
from widelimit.engines.fused.bridge import network_kernel
from widelimit.engines.request import Request
from widelimit.stax import Dense, serial


def program(net: stax.Layer) -> object:
    kernel, _ = network_kernel(net, (2, 3), Request(("nngp", "ntk")))
    return kernel._program


def test_a_chain() -> None:
    code = program(serial(Dense(1), stax.Relu(), Dense(1))).code
    reads = values_read(code)
    assert reads[:, READ].tolist() == [-1, *range(len(code) - 1)]
    assert (reads[:, JOINED] == -1).all()
    assert reads[1:, LAST_READ].all()
    assert slots_of(reads) == len(code) + 2  # cotangents on both sides of an instruction


def test_a_sum_of_branches() -> None:
    branch = serial(stax.Relu(), Dense(1))
    net = serial(
        Dense(1), stax.FanOut(2), stax.parallel(branch, stax.Identity()), stax.FanInSum(), Dense(1)
    )
    code = program(net).code
    reads = values_read(code)
    joins = np.flatnonzero(code[:, m.CODE] == m.ADD)
    assert len(joins) == 1
    assert (reads[joins, [JOINED, READ]] >= 0).all()
    # Backwards, the first one that reads a value writes its cotangent, the others add to it.
    for value in range(len(code) - 1):
        firsts = (reads[reads[:, READ] == value, LAST_READ]).sum()
        firsts += (reads[reads[:, JOINED] == value, LAST_JOINED]).sum()
        assert firsts == 1
    assert (reads[:, HOME] >= len(code)).all()


def test_every_value_has_a_slot_of_its_own() -> None:
    code = program(serial(Dense(1), stax.Relu(), Dense(1))).code
    reads = values_read(code)
    forward, numbers = in_own_slots(code, np.ones((len(code), m.NUMBERS)), reads)
    assert len(forward) == len(numbers) == len(code) + 1  # a copy before the nonlinearity
    kept = forward[forward[:, m.CODE] != m.COPY, m.TARGET]
    assert sorted(kept) == sorted(set(kept))


def test_what_is_computed_is_read() -> None:
    code = program(serial(Dense(1), stax.Relu(), Dense(1))).code
    final = int(code[-1, m.TARGET])
    assert is_read_up(code, final)
    assert not is_read_up(code, final + 1)
    unread = code[-1:].copy()
    unread[0, m.TARGET] = 99
    assert not is_read_up(np.concatenate([code[:-1], unread, code[-1:]]), final)


def test_what_has_no_partials_is_named() -> None:
    found = missing_partials(program(serial(Dense(1), stax.Sign(), Dense(1))).activations)
    assert found is not None
    assert "Sign" in found
    assert missing_partials(program(serial(Dense(1), stax.Relu())).activations) is None
