"""The command line: `python -m examples.demo`, from the folder of the project."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from examples.demo.classification import ClassificationTask
    from examples.demo.coverage import CoverageStudy
    from examples.demo.datasets import LabelledImages
    from examples.demo.images import ImagesTask
    from examples.demo.regression import RegressionTask

_MAX_TRAIN, _MAX_TEST = 2000, 1000

_DEMO = """\
Three demonstrations of networks of infinite width.

1. Regression in one dimension: an ensemble of finite networks trained step by step, beside the
   infinite ensemble in closed form; then how often the intervals of Bayesian inference hold new
   observations.
2. Image classification: infinite fully-connected networks by Bayesian inference and by gradient
   descent, beside a support vector machine.
3. Which network suits images: fully-connected, convolutional and wide residual networks of infinite
   width on the same splits of the same images.

Prints the results and writes three figures. Takes a few minutes on two cores."""

_DATA = f"""\
images to classify: an .npz file with x_train, y_train, x_test and y_test (no pickles), or a folder
with the binary or the Python distribution of CIFAR-10; of larger sets, {_MAX_TRAIN} training and
{_MAX_TEST} test images are drawn. Default: the handwritten digits of scikit-learn"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status of the command line: 0, 1 if it failed, 2 if it was misused.

    Args:
      arguments: what follows the name of the program; that of the process by default.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        run_demo(options.data, options.output, seed=options.seed, quick=options.quick)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except (ModuleNotFoundError, OSError, ValueError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 1
    return 0


def run_demo(
    data: Path | None = None,
    output: Path = Path("demo_output"),
    *,
    seed: int = 0,
    quick: bool = False,
) -> None:
    """Run all demonstrations: print their results, and write their figures into `output`.

    Args:
      data: images to classify, see `examples.demo.datasets.load_images`; the digits by default.
      output: folder for the figures, made if missing.
      seed: of every random draw.
      quick: much smaller sizes, to see that everything runs.

    Raises:
      ModuleNotFoundError: if a package is missing.
      FileNotFoundError, ValueError: if there are no readable images at `data`.
      OSError: if `output` cannot be written to.
    """
    _require("matplotlib", "sklearn", "tqdm")
    # Imported late, so that `--help` answers at once.
    from examples.demo import figures, report
    from examples.demo.classification import check_classes, classify
    from examples.demo.coverage import measure_coverage
    from examples.demo.datasets import load_images, subset
    from examples.demo.regression import compare_ensembles

    sizes = _quick_sizes() if quick else _full_sizes()
    # What can fail early fails before the long work.
    images = load_images(data, seed=seed)
    images = subset(images, sizes.train, sizes.test, seed=seed)
    check_classes(images)
    _make_folder(output)
    times: dict[str, float] = {}

    print("1. Infinite and finite ensembles in one dimension")
    with _part(times, "ensembles", sizes.task.members, "network") as progress:
        compared = compare_ensembles(sizes.task, seed=seed, progress=progress)
    print(report.regression_text(compared))
    _announce(figures.regression_figure(compared, output / "regression.png"))
    with _part(times, "coverage", sizes.study.designs, "design") as progress:
        coverage = measure_coverage(sizes.study, seed=seed, progress=progress)
    print(f"\n{report.coverage_text(sizes.study, coverage)}")

    print("\n2. Image classification")
    with _part(times, "classification", sizes.models.work, "fit") as progress:
        classified = classify(images, sizes.models, seed=seed, progress=progress)
    print(report.classification_text(classified))
    _announce(figures.classification_figure(classified, output / "classification.png"))

    print("\n3. Fully-connected, convolutional and residual networks")
    _show_networks(images, sizes.networks, output, seed, times)

    parts = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in times.items())
    print(f"\nwall time: {parts}")


def _show_networks(
    images: LabelledImages, task: ImagesTask, output: Path, seed: int, times: dict[str, float]
) -> None:
    """The third part, unless the data are mere rows of numbers."""
    from examples.demo import figures, report
    from examples.demo.images import compare_networks, has_pixels

    if not has_pixels(images):
        print(f"left out: inputs of shape {images.x_train.shape[1:]} have no height and width")
        return
    with _part(times, "networks", task.work(len(images.x_train)), "image") as progress:
        compared = compare_networks(images, task, seed=seed, progress=progress)
    print(report.images_text(compared))
    _announce(figures.images_figure(compared, output / "images.png"))


class _Sizes(NamedTuple):
    """How much work the parts of the demonstration do, and how many images they see."""

    task: RegressionTask
    study: CoverageStudy
    models: ClassificationTask
    networks: ImagesTask
    train: int
    test: int


def _full_sizes() -> _Sizes:
    """The sizes of the demonstration: a few minutes on two cores."""
    from examples.demo.classification import ClassificationTask
    from examples.demo.coverage import CoverageStudy
    from examples.demo.images import ImagesTask
    from examples.demo.regression import RegressionTask

    return _Sizes(
        RegressionTask(),
        CoverageStudy(),
        ClassificationTask(),
        ImagesTask(),
        train=_MAX_TRAIN,
        test=_MAX_TEST,
    )


def _quick_sizes() -> _Sizes:
    """Sizes that show that everything runs, in well under a minute."""
    full = _full_sizes()
    return _Sizes(
        replace(full.task, members=8, steps=(0, 1, 4, 16, 64)),
        replace(full.study, designs=4),
        replace(full.models, noises=(0.1, 0.3), C=(3.0, 10.0), gamma=(0.3, 1.0)),
        replace(full.networks, images=100, side=8),
        train=400,
        test=200,
    )


@contextmanager
def _part(
    times: dict[str, float], name: str, total: int, unit: str
) -> Iterator[Callable[[int], object]]:
    """A progress bar over one part, whose wall time goes to `times`."""
    from tqdm import tqdm

    start = time.perf_counter()
    # disable=None: no bar where the output is no terminal.
    with tqdm(total=total, desc=name, unit=unit, disable=None, leave=False) as bar:
        yield bar.update
    times[name] = time.perf_counter() - start


def _announce(path: Path) -> None:
    """Say where a figure is, from the current folder."""
    print(f"figure: {os.path.relpath(path)}")


def _make_folder(path: Path) -> None:
    """Make the folder, or raise an OSError if files cannot be made in it."""
    path.mkdir(parents=True, exist_ok=True)
    if not os.access(path, os.W_OK | os.X_OK):
        raise PermissionError(f"cannot write to the folder {path}")


def _require(*modules: str) -> None:
    """Raise unless the modules are installed."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f"the demonstration needs {', '.join(missing)}; "
            'install it with: pip install -e ".[all,dev]"'
        )


def _parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="examples.demo",
        description=_DEMO,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, metavar="PATH", help=_DATA.replace("\n", " "))
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        default=Path("demo_output"),
        help="folder for the figures, made if missing (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, metavar="N", default=0, help="seed of every random draw (default: 0)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, to see that everything runs"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
