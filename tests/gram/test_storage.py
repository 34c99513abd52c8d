"""Results on disk look whole only when they are."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import widelimit as wl
from widelimit.gram import storage


def kernel_fn(x1: Any, x2: Any, get: Any) -> Any:
    out = x1 @ (x1 if x2 is None else x2).T
    return out if isinstance(get, str) else wl.Kernel  # never reached with a tuple


X = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)

# Announces its first tiles and then takes its time.
SLOW = """
import signal, sys, time
# A parent in the background of a shell hands on that it ignores the signal.
signal.signal(signal.SIGINT, signal.default_int_handler)
import numpy as np
import widelimit as wl

calls = []
def kernel_fn(x1, x2, get):
    calls.append(0)
    if len(x1) == 8 and len(calls) > 16:  # four show which axes belong to samples
        print("computing", flush=True)
        time.sleep(float(sys.argv[2]))
    return np.asarray(x1) @ np.asarray(x1 if x2 is None else x2).T

x = np.arange(240, dtype=np.float32).reshape(80, 3)
from widelimit.gram import sizes, assemble
assemble.choose_grid = lambda tiler, memory, devices: sizes.fixed_grid(tiler, 8, devices)
wl.gram(kernel_fn, x, get="nngp", out=sys.argv[1])
print("done")
"""


def start(path: Path, pause: float) -> subprocess.Popen:
    command = [sys.executable, "-W", "always", "-c", SLOW, str(path), str(pause)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    return process


def test_result_is_an_npy_file(tmp_path: Path) -> None:
    path = tmp_path / "K.npy"
    result = wl.gram(kernel_fn, X, get="nngp", out=path)
    assert isinstance(result, np.memmap)
    assert not result.flags.writeable
    np.testing.assert_array_equal(result, wl.gram(kernel_fn, X, get="nngp"))
    np.testing.assert_array_equal(np.load(path), result)
    assert [file.name for file in tmp_path.iterdir()] == ["K.npy"]
    with pytest.raises(FileExistsError, match=r"expected a new file, got .*K\.npy, which exists"):
        wl.gram(kernel_fn, X, get="nngp", out=path)
    np.testing.assert_array_equal(np.load(path), result)


def test_one_file_for_each_kernel(tmp_path: Path) -> None:
    net = wl.models.fcn(1, num_outputs=1)
    files = {"ntk": tmp_path / "T.npy", "nngp": str(tmp_path / "K.npy")}
    result = wl.gram(net, X, X[:4], get=("nngp", "ntk"), out=files)
    np.testing.assert_array_equal(np.load(files["ntk"]), result.ntk)
    np.testing.assert_allclose(result.nngp, net.kernel_fn(X, X[:4], "nngp"), rtol=1e-6)
    for bad in ("K.npy", {"ntk": "T.npy"}, {"ntk": "T.npy", "nngp": "T.npy"}):
        with pytest.raises((TypeError, ValueError), match="expected"):
            wl.gram(net, X, get=("nngp", "ntk"), out=bad)


def test_names_are_checked_before_anything_is_computed(tmp_path: Path) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("computed")

    with pytest.raises(ValueError, match=r"expected out to end in \.npy"):
        wl.gram(never, X, out=tmp_path / "K.dat")
    with pytest.raises(FileNotFoundError, match="expected a folder"):
        wl.gram(never, X, out=tmp_path / "none" / "K.npy")
    assert not list(tmp_path.iterdir())


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    def fails(x1: Any, x2: Any, get: Any) -> Any:
        if len(x1) > 1:
            raise RuntimeError("out of order")
        return np.ones((1, 1))

    with pytest.raises(RuntimeError, match="out of order") as error:
        wl.gram(fails, X, out=tmp_path / "K.npy")
    assert any("K.npy.partial removed" in note for note in error.value.__notes__)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"shape \(\) for any numbers of samples"):
        wl.gram(lambda *_: np.float32(0), X, out=tmp_path / "K.npy")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_found_before_tiles_are_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def full(descriptor: int, size: int) -> None:
        raise OSError(code, os.strerror(code))

    seen = []

    def counted(x1: Any, x2: Any, get: Any) -> Any:
        seen.append(len(x1))
        return kernel_fn(x1, x2, get)

    monkeypatch.setattr(storage, "reserve", full)
    with pytest.raises(OSError, match=r"expected 272 bytes .* of space for .*K\.npy, got") as error:
        wl.gram(counted, X, get="nngp", out=tmp_path / "K.npy")
    assert error.value.errno == code
    assert max(seen, default=0) < len(X)
    assert not list(tmp_path.iterdir())


def test_space_is_reserved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for forget in (False, True):
        if forget:
            monkeypatch.delattr(os, "posix_fallocate", raising=False)
        with open(tmp_path / f"file{forget}", "w+b") as file:
            storage.reserve(file.fileno(), 40_000_000)
            stat = os.fstat(file.fileno())
        assert stat.st_size == 40_000_000
        assert 512 * stat.st_blocks >= 40_000_000


def test_after_a_kill_the_next_run_says_what_it_found(tmp_path: Path) -> None:
    path, partial = tmp_path / "K.npy", tmp_path / "K.npy.partial"
    process = start(path, 60)
    assert process.stdout is not None
    process.stdout.readline()
    with pytest.raises(FileExistsError, match="expected no other process at work"):
        wl.gram(kernel_fn, X, get="nngp", out=path)
    process.kill()
    process.communicate()
    assert partial.exists()
    assert not path.exists()
    with pytest.raises(ValueError, match="pickled"):  # no header yet, so it is no array
        np.load(partial)
    with pytest.warns(UserWarning, match=r"found .*K\.npy\.partial \(25\.1 KiB\), left incomplete"):
        result = wl.gram(kernel_fn, X, get="nngp", out=path)
    np.testing.assert_allclose(result, X @ X.T, rtol=1e-5)
    assert not partial.exists()


def test_ctrl_c_says_how_far_it_came_and_leaves_nothing(tmp_path: Path) -> None:
    process = start(tmp_path / "K.npy", 60)
    assert process.stdout is not None
    process.stdout.readline()
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=50)
    assert time.monotonic() - begin < 50  # not when the tile is done
    assert "KeyboardInterrupt: gram was interrupted after 2" in errors
    assert "K.npy.partial removed, nothing was kept" in errors
    assert process.returncode != 0
    assert not list(tmp_path.iterdir())
