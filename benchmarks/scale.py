"""Figures of stores: what a tile costs beside its kernels, passes, scans; a large one, really run.

    python -m benchmarks.scale overhead | pass | scan | extra     [--folder FOLDER]
    python -m benchmarks.scale large DATA [--samples 100000]      [--folder FOLDER]

`overhead` compares a fill with the same tiles computed and thrown away. `pass` compares a product
with `dd` reading the same files, with the page cache dropped (as root) and with the files in it.
`scan` opens a store of 10,000 finished tiles. `extra` counts what the extra `scale` installs.
`large` fills the NTK of a 3-layer fully connected network on images of DATA (an .npz or a folder of
CIFAR-10), augmented by flips and shifts, solves it for 10 right-hand sides, and compares the
accuracy with a direct solve on a subset.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine
from examples.demo import datasets
from widelimit import scale, stax
from widelimit.scale.maker import TileMaker
from widelimit.scale.schema import read_content

SUBSET = 10_000
# Of the mean diagonal.
RIDGE = 1e-2
RANK = 2000


def network() -> Any:
    """Returns a fully connected network with 3 layers of weights."""
    dense = stax.Dense(1, W_std=2**0.5, b_std=0.1)
    return stax.serial(dense, stax.Relu(), dense, stax.Relu(), dense)


def samples(n: int, features: int = 784) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((n, features), np.float32)


def overhead(folder: Path) -> dict[str, float]:
    """Returns the seconds of a fill, and of its kernels alone, in turn; minima of three."""
    x, fills, kernels = samples(16_384), [], []
    for k in range(3):
        store = scale.gram(network(), x, store=folder / f"overhead{k}.zarr", tile=4096)
        started = time.perf_counter()
        store.fill(progress=False)
        fills.append(time.perf_counter() - started)
        maker = TileMaker.of(store.path, read_content(store.path).fingerprint, ())
        started = time.perf_counter()
        for place in store.grid.all():
            maker.tile(place)
        kernels.append(time.perf_counter() - started)
        tiles = len(store.grid)
        shutil.rmtree(store.path)
    fill, kernel = min(fills), min(kernels)
    return {"tile_s": kernel / tiles, "fill_s": fill, "kernels_s": kernel, "ratio": fill / kernel}


def one_pass(folder: Path) -> dict[str, float]:
    """Returns the rates of a product and of `dd`, in GB/s of the same files."""
    store = scale.gram(network(), samples(32_768, 64), store=folder / "pass.zarr", tile=2048)
    store.fill(progress=False)
    operator, v = store.operator(), np.random.default_rng(0).standard_normal((store.count, 10))
    operator.matmat(v)  # verifies every tile
    files = sorted((Path(store.path) / "ntk" / "c").glob("*/*"))
    gigabytes = sum(file.stat().st_size for file in files) / 1e9
    rates: dict[str, float] = {"gigabytes": gigabytes}
    runs = {"product": lambda: operator.matmat(v), "dd": lambda: _dd(files)}
    for state in ("cold", "warm"):
        times: dict[str, list[float]] = {"product": [], "dd": []}
        for _ in range(3):
            for name, run in runs.items():
                if state == "cold" and not _drop_caches():
                    continue
                started = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - started)
        rates |= {f"{state}_{k}_GB/s": gigabytes / min(v) for k, v in times.items() if v}
    shutil.rmtree(store.path)
    return rates


def _dd(files: list[Path]) -> None:
    command = 'for f in "$@"; do dd if="$f" of=/dev/null bs=4M status=none; done'
    subprocess.run(["bash", "-c", command, "-", *map(str, files)], check=True)


def _drop_caches() -> bool:
    try:
        subprocess.run(["sync"], check=True)
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        return False
    return True


def scan(folder: Path) -> dict[str, float]:
    """Returns how long it takes to open a store of 10,011 tiles and to find them all finished."""
    store = scale.gram(network(), samples(564, 4), store=folder / "scan.zarr", tile=4)
    chunk_bytes = store.tiles["ntk"].chunk_bytes
    for i, j in store.grid.all():
        path = Path(store.path) / "ntk" / "c" / str(i) / str(j)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(chunk_bytes))
    started = time.perf_counter()
    report = scale.open_store(store.path).fill(progress=False)
    seconds = time.perf_counter() - started
    shutil.rmtree(store.path)
    return {"tiles": report.skipped, "seconds": seconds}


def extra(folder: Path) -> dict[str, float]:
    """Returns the megabytes that the extra adds to an installation."""
    names = ["zarr", "dask", "distributed"]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
    needed = [
        "donfig",
        "google-crc32c",
        "numcodecs",
        "click",
        "locket",
        "partd",
        "sortedcontainers",
    ]
    needed += ["tblib", "toolz", "tornado", "zict", "cloudpickle", "fsspec", "pyyaml", "psutil"]
    subprocess.run([*command, str(folder / "extra"), *names, *needed], check=True)
    total = sum(f.stat().st_size for f in (folder / "extra").rglob("*") if f.is_file())
    return {"megabytes": total / 1e6}


def augmented(data: datasets.LabelledImages, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns n images [n, h * w * c] and labels: those of DATA, flipped and shifted by 0 to 3."""
    rng, images = np.random.default_rng(0), data.x_train
    chosen = np.concatenate([rng.permutation(len(images)) for _ in range(-(-n // len(images)))])[:n]
    result = np.empty((n, *images.shape[1:]), np.float32)
    for k, index in enumerate(chosen):
        image = images[index]
        if k >= len(images):
            image = image[:, ::-1] if rng.integers(2) else image
            image = np.roll(image, rng.integers(-3, 4, 2), (0, 1))
        result[k] = image
    return result.reshape(n, -1), data.y_train[chosen]


def large(folder: Path, data: datasets.LabelledImages, n: int) -> dict[str, Any]:
    """Returns times, memory, disk, iterations, residual and accuracies of a large solve."""
    import widelimit as wl

    x, labels = augmented(data, n)
    test = data.x_test.reshape(len(data.x_test), -1).astype(np.float32)
    mean, deviation = x[:: max(1, n // 5000)].mean(), x[:: max(1, n // 5000)].std()
    x, test = (x - mean) / deviation, (test - mean) / deviation
    classes = int(labels.max()) + 1
    y = np.eye(classes)[labels] - 1 / classes
    report: dict[str, Any] = {"samples": n}
    path = folder / "large.zarr"
    store = scale.gram(network(), x, get="ntk", store=path, tile=2048)
    print(store.plan, flush=True)
    _timed(report, "fill_s", lambda: store.fill(progress=True))
    report["disk_GB"] = sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) / 1e9
    operator = store.operator()
    ridge = RIDGE * float(operator.diagonal().mean())
    rank = min(RANK, n // 10)
    approximation = _timed(
        report,
        "precondition_s",
        lambda: scale.NystromPreconditioner(operator, ridge, rank=rank),
    )
    solution = _timed(
        report,
        "solve_s",
        lambda: scale.solve(
            operator,
            y,
            ridge=ridge,
            preconditioner=approximation,
            tol=1e-3,
            checkpoint=store.path,
        ),
    )
    report |= {
        "rank": rank,
        "iterations": int(solution.iterations.max()),
        "true_residual": float(solution.residual.max()),
    }
    weights = solution.value
    k_td = wl.gram(store.network, test, x, "ntk", progress=False)
    report["accuracy"] = float((np.argmax(k_td @ weights, 1) == data.y_test).mean())
    small = slice(0, min(n, SUBSET))
    k_dd = wl.gram(store.network, x[small], None, "ntk", progress=False).astype(float)
    direct = np.linalg.solve(k_dd + ridge * np.eye(len(k_dd)), y[small])
    guess = np.argmax(k_td[:, small] @ direct, 1)
    report["accuracy_direct_on_subset"] = float((guess == data.y_test).mean())
    report["peak_GiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return report


def _timed(report: dict[str, Any], name: str, run: Any) -> Any:
    started = time.perf_counter()
    result = run()
    report[name] = time.perf_counter() - started
    print(f"{name} {report[name]:.1f}", flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("figure", choices=["overhead", "pass", "scan", "extra", "large"])
    parser.add_argument("data", nargs="?")
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        if arguments.figure == "large":
            images = datasets.load_images(arguments.data)
            result = large(folder, images, arguments.samples)
        else:
            figures = {"overhead": overhead, "pass": one_pass, "scan": scan, "extra": extra}
            result = figures[arguments.figure](folder)
    print(json.dumps({"machine": machine.describe(), arguments.figure: result}, indent=1))


if __name__ == "__main__":
    main()
