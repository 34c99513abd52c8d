import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.scale.problems import kernel
from widelimit.scale import checkpoint
from widelimit.scale.checkpoint import Checkpoint, SavedBasis, digest, identity
from widelimit.scale.operator import DenseOperator

ROOT = Path(__file__).resolve().parents[2]

WRITER = """
import sys
import numpy as np
from widelimit.scale.checkpoint import Checkpoint, SavedBasis
slots, basis = Checkpoint(sys.argv[1], "state"), SavedBasis(sys.argv[1], "basis", (500, 3))
found, steps = slots.read(), basis.read()
count = -1 if found is None else int(found["count"])
while True:
    count += 1
    slots.write({"count": np.array(count), "x": np.full((2000, 20), float(count))})
    basis.write(np.full((3, 3), len(steps)), np.eye(3), np.full((500, 3), float(len(steps))))
    steps.append(None)
    print(count, flush=True)
"""


def test_a_writer_that_is_killed_leaves_a_usable_checkpoint(tmp_path):
    rng = np.random.default_rng(0)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "JAX_PLATFORMS": "cpu"}
    written = -1
    for _ in range(3):
        command = [sys.executable, "-c", WRITER, str(tmp_path)]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as writer:
            lines = iter(writer.stdout.readline, b"")
            assert int(next(lines)) >= written  # it goes on from what is there
            time.sleep(rng.uniform(0.0, 0.3))
            writer.send_signal(signal.SIGKILL)
            written = [written, *map(int, writer.stdout.read().split())][-1]
        found = Checkpoint(tmp_path, "state").read()
        assert int(found["count"]) >= written
        np.testing.assert_array_equal(found["x"], float(found["count"]))
        steps = SavedBasis(tmp_path, "basis", (500, 3)).read()
        for index, (a, _, q) in enumerate(steps):
            assert (a == index).all()
            assert (q == index).all()
        written = int(found["count"])


def test_a_damaged_slot_is_refused(tmp_path):
    slots = Checkpoint(tmp_path, "a")
    for count in range(3):
        slots.write({"x": np.full(5, float(count))})
    assert slots.read()["x"][0] == 2.0
    [newest] = (tmp_path / "solve" / "a" / "slot0" / "x" / "c").rglob("*0")
    content = bytearray(newest.read_bytes())
    content[3] ^= 1
    newest.write_bytes(content)
    again = Checkpoint(tmp_path, "a")
    assert again.read()["x"][0] == 1.0
    again.write({"x": np.full(5, 7.0)})  # in place of the damaged one
    assert Checkpoint(tmp_path, "a").read()["x"][0] == 7.0
    newest.write_bytes(b"cut")
    assert Checkpoint(tmp_path, "a").read()["x"][0] == 1.0
    newest.unlink()
    assert Checkpoint(tmp_path, "a").read()["x"][0] == 1.0
    assert Checkpoint(tmp_path, "b").read() is None


def test_every_moment_of_a_write_may_be_the_last(tmp_path, monkeypatch):
    slots = Checkpoint(tmp_path, "a")
    slots.write({"x": np.zeros(4), "y": np.zeros(2)})
    slots.write({"x": np.ones(4), "y": np.ones(2)})
    moments = [("_write", 0), ("_write", 1), ("digest", 0), ("digest", 1)]
    for name, dies_at in moments:
        again = Checkpoint(tmp_path, "a")
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, name, dying(getattr(checkpoint, name), dies_at))
            with pytest.raises(KeyboardInterrupt):
                again.write({"x": np.full(4, 2.0), "y": np.full(2, 2.0)})
        np.testing.assert_array_equal(Checkpoint(tmp_path, "a").read()["x"], 1.0)


def dying(function, at):
    calls = itertools.count()

    def dies(*arguments):
        if next(calls) == at:
            raise KeyboardInterrupt
        return function(*arguments)

    return dies


def test_a_basis_is_read_up_to_what_is_damaged(tmp_path):
    saved = SavedBasis(tmp_path, "a", (6, 2))
    a, b, q = np.array([[2.0, 1.0], [1.0, 3.0]]), np.array([[0.5, 0.1]]), np.arange(6.0)[:, None]
    saved.write(a, np.eye(2), np.eye(6)[:, :2])
    saved.write(a + 1, b, q)  # a block that has lost rank
    saved.write(a[:1, :1], np.zeros((0, 1)), np.zeros((6, 0)))
    steps = SavedBasis(tmp_path, "a", (6, 2)).read()
    assert len(steps) == 3
    for found, expected in zip(steps[1], (a + 1, b, q), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert steps[2][2].shape == (6, 0)
    chunk = tmp_path / "krylov" / "a" / "vectors" / "c" / "1" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[::-1])
    again = SavedBasis(tmp_path, "a", (6, 2))
    assert len(again.read()) == 1
    again.write(a + 1, b, q)
    assert len(SavedBasis(tmp_path, "a", (6, 2)).read()) == 2


def test_texts_that_tell_kernels_apart():
    first, second = DenseOperator(kernel(10)), DenseOperator(kernel(10, seed=1))
    assert identity(first) == identity(DenseOperator(kernel(10))) != identity(second)
    x = np.arange(6.0)
    texts = [digest(x), digest(x.reshape(2, 3)), digest(x.astype(np.float32)), digest(x, 1.0)]
    assert len({*texts}) == 4
    assert digest(np.asfortranarray(x.reshape(2, 3))) == texts[1]
