"""Threads of the fused engine, and those of BLAS while they run."""

import threading

import numpy as np
import pytest
import threadpoolctl

import widelimit as wl
from widelimit import stax
from widelimit.engines.fused.parallel import one_blas_thread, run_parallel


def blas_threads() -> set[int]:
    """Returns the numbers of threads of every BLAS of the process."""
    found = threadpoolctl.ThreadpoolController().select(user_api="blas").info()
    return {library["num_threads"] for library in found}


def test_every_task_runs_once() -> None:
    done: list[int] = []
    run_parallel(done.append, list(range(100)))
    assert sorted(done) == list(range(100))


def test_an_error_in_a_task_is_raised_and_ends_the_others() -> None:
    def fail(task: int) -> None:
        raise ValueError(f"task {task}")

    with pytest.raises(ValueError, match="task"):
        run_parallel(fail, list(range(100)))


def test_blas_has_one_thread_inside_and_its_own_number_behind() -> None:
    before = blas_threads()
    with one_blas_thread():
        with one_blas_thread():
            assert blas_threads() == {1}
        assert blas_threads() == {1}
    assert blas_threads() == before
    with pytest.raises(ValueError, match="inside"), one_blas_thread():
        raise ValueError("inside")
    assert blas_threads() == before


def test_of_callers_on_several_threads_the_first_restores_the_number() -> None:
    before, entered, leave = blas_threads(), threading.Event(), threading.Event()

    def hold() -> None:
        with one_blas_thread():
            entered.set()
            leave.wait()

    with one_blas_thread():
        other = threading.Thread(target=hold)
        other.start()
        entered.wait()
        assert blas_threads() == {1}
    assert blas_threads() == before
    leave.set()
    other.join()
    assert blas_threads() == before


def test_a_kernel_leaves_the_threads_of_blas_as_they_were() -> None:
    before = blas_threads()
    net = stax.serial(stax.Dense(16), stax.Relu(), stax.Dense(1))
    x = np.random.default_rng(0).standard_normal((200, 8)).astype(np.float32)
    net.kernel_fn(x, None, "ntk", engine="fused")
    wl.gram(net, x, progress=False)
    assert blas_threads() == before
