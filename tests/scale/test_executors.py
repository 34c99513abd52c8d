import numpy as np
import pytest

from tests.scale.stores import overflowing_store, small_store
from widelimit.scale.executors import Inline, LostError, describe, make_executor

distributed = pytest.importorskip("distributed")

# Sockets and event loops of dask that its own shutdown leaves to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def client():
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=":0", processes=True
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def test_inline_runs_tasks_that_are_added_meanwhile():
    executor, results = Inline(), []
    executor.submit("a", int, "1")
    for result in executor.as_completed():
        results.append(result)
        if result < 3:
            executor.submit("b", int, str(result + 1))
    assert results == [1, 2, 3]


def test_dask_writes_the_bits_of_inline(tmp_path, client):
    kernels = ("nngp", "ntk")
    stores = [
        small_store(tmp_path, f"{engine}.zarr", get=kernels, engine=engine)
        for engine in ("inline", client)
    ]
    assert [store.fill(progress=False)[:4] for store in stores] == [(10, 0, 0, 0)] * 2
    for name in kernels:
        first, second = (s.export(f"{s.path}-{name}.npy", name) for s in stores)
        np.testing.assert_array_equal(first, second)
    assert stores[1].fill(progress=False)[:4] == (0, 10, 0, 0)


def test_products_of_many_processes(tmp_path, client):
    store = small_store(tmp_path)
    store.fill(progress=False)
    v = np.random.default_rng(0).standard_normal((50, 3))
    operator = store.operator(engine=client)
    for _ in range(2):
        np.testing.assert_array_equal(operator.matmat(v), store.operator().matmat(v))
    operator.close()


def test_engines_may_change_in_the_middle(tmp_path, client):
    calls = []
    store = small_store(tmp_path)
    store.fill(progress=False, stop=lambda: len(calls.append(0) or calls) == 4)
    assert small_store(tmp_path, engine=client).fill(progress=False)[:2] == (6, 4)


def test_an_address_is_an_engine(tmp_path, client):
    address = client.scheduler.address
    store = small_store(tmp_path, engine=f"dask:{address}")
    assert store.fill(progress=False).done == 10
    assert describe(f"dask:{address}")[1] == 2


def test_the_plan_starts_no_workers(tmp_path, monkeypatch):
    monkeypatch.setattr("widelimit.scale.executors._local_client", None)
    assert "processes on this machine" in small_store(tmp_path, engine="dask").plan.executor


def test_kernels_that_are_not_finite_are_named(tmp_path, client):
    store = overflowing_store(tmp_path, engine=client)
    with pytest.raises(ValueError, match=r"expected finite kernels, got others in 4 of 10 tiles"):
        store.fill(progress=False)


def dies(*_: object) -> None:
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)


def test_a_task_whose_workers_die_is_reported(client):
    client.run_on_scheduler(_allow, 1)
    executor = make_executor(client)
    executor.submit("tile-1-2-x", dies)
    with pytest.raises(LostError, match=r"expected workers to survive tile-1-2-x, but several"):
        list(executor.as_completed())
    executor.close()


def _allow(deaths: int, dask_scheduler: object = None) -> None:
    dask_scheduler.allowed_failures = deaths  # type: ignore[attr-defined]


@pytest.mark.parametrize("engine", ["ray", 3, None, "dask-"])
def test_other_engines_are_refused(engine):
    with pytest.raises(ValueError, match=r"expected engine 'inline', 'dask'"):
        make_executor(engine)
