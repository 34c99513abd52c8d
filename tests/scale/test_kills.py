"""Workers and drivers that are killed lose nothing."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from widelimit import scale, stax

DRIVER = """
    from widelimit import scale
    scale.open_store({path!r}).fill(progress=False)
"""


def slow_store(folder: Path, name: str, engine: object = "inline") -> scale.Store:
    """Returns a store of 36 tiles, each of some hundredths of a second."""
    images = np.random.default_rng(0).standard_normal((128, 8, 8, 3)).astype(np.float32)
    conv = stax.Conv(1, (3, 3), padding="SAME")
    body = [layer for _ in range(4) for layer in (conv, stax.Relu())]
    network = stax.serial(*body, stax.GlobalAvgPool(), stax.Dense(1))
    return scale.gram(network, images, store=folder / name, tile=16, engine=engine)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("expected")
    store = slow_store(folder, "k.zarr")
    store.fill(progress=False)
    return store.export(folder / "k.npy")


def start_driver(path: str) -> subprocess.Popen:
    code = textwrap.dedent(DRIVER.format(path=path))
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)


def wait_for_tiles(store: scale.Store, count: int, driver: subprocess.Popen) -> None:
    """Returns when so many tiles exist, or the driver has ended."""
    while len(store.tiles["ntk"].complete()[0]) < count and driver.poll() is None:
        time.sleep(0.01)


def test_drivers_that_are_killed(tmp_path, expected):
    store, rng = slow_store(tmp_path, "k.zarr"), random.Random(0)
    seen = 0
    for _ in range(3):
        driver = start_driver(store.path)
        wait_for_tiles(store, seen + 1, driver)
        time.sleep(rng.random() / 10)
        driver.kill()
        driver.wait()
        seen = len(store.tiles["ntk"].complete()[0])
    report = store.fill(progress=False)
    assert report.skipped >= 3
    assert report.done + report.skipped == 36
    np.testing.assert_array_equal(store.export(tmp_path / "k.npy"), expected)


def test_two_drivers_at_once(tmp_path, expected):
    store = slow_store(tmp_path, "k.zarr")
    drivers = [start_driver(store.path) for _ in range(2)]
    assert [driver.wait() for driver in drivers] == [0, 0]
    assert store.verify(progress=False)
    np.testing.assert_array_equal(store.export(tmp_path / "k.npy"), expected)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_workers_that_are_killed(tmp_path, expected, kills):
    distributed = pytest.importorskip("distributed")
    rng = random.Random(1)
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=":0"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        cluster.scheduler.allowed_failures = 1000
        store, ended, killed = slow_store(tmp_path, "k.zarr", client), threading.Event(), []

        def kill() -> None:
            while len(killed) < kills and not ended.wait(1.0 + rng.random()):
                pids = [w.process.pid for w in cluster.workers.values() if w.process is not None]
                if pids:
                    killed.append(rng.choice(pids))
                    os.kill(killed[-1], signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        while killer.is_alive():  # there has to be work to be killed at
            store.fill(progress=False)
            remove_some(store, rng)
        ended.set()
        killer.join()
        store.fill(progress=False)
    assert len(killed) == kills
    assert store.verify(progress=False)
    np.testing.assert_array_equal(store.export(tmp_path / "k.npy"), expected)


def remove_some(store: scale.Store, rng: random.Random) -> None:
    """Removes tiles, as if they had not been computed."""
    chunks = store.tiles["ntk"]
    for place in rng.sample(sorted(chunks.complete()[0]), 3):
        chunks.remove(place)
