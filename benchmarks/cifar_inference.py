"""Time, memory and accuracy of exact inference with infinite convolutional networks on CIFAR-10.

    python -m benchmarks.cifar_inference DATA [cnn] [myrtle]

DATA is an .npz or a folder of CIFAR-10, as for `widelimit demo --data`. The networks: 10
convolutions and Flatten, on all images of DATA; Myrtle-5, on 400 training and 300 test images.
Classes are regressed on as centred one-hot vectors, with noise of standard deviation 0.05.
"""

import argparse
import resource
import time
from typing import Any

import numpy as np

import widelimit as wl
from examples.demo import datasets
from widelimit import models

NETWORKS: dict[str, tuple[Any, int | None, int | None]] = {
    "cnn": (models.cnn(10), None, None),
    "myrtle": (models.myrtle(5), 400, 300),
}
NOISE = 0.05


def classify(net: Any, data: datasets.LabelledImages) -> tuple[float, float]:
    """Returns the test accuracy of exact inference, and the seconds that it took."""
    flat, shape = datasets.standardised(data), data.x_train.shape[1:]
    train, test = (x.reshape(-1, *shape).astype(np.float32) for x in (flat.x_train, flat.x_test))
    classes = int(data.y_train.max()) + 1
    targets = np.eye(classes, dtype=np.float32)[data.y_train] - 1 / classes
    start = time.perf_counter()
    ensemble = wl.InfiniteEnsemble(net, train, targets, inference="bayes", noise=NOISE)
    guess = np.asarray(ensemble.mean(test)).argmax(-1)
    return float((guess == data.y_test).mean()), time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("networks", nargs="*", help=f"of {', '.join(NETWORKS)}; default all")
    arguments = parser.parse_args()
    images = datasets.load_images(arguments.data)
    for name in arguments.networks or NETWORKS:
        net, train, test = NETWORKS[name]
        data = images
        if train is not None:
            data = datasets.subset(images, train, test)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        accuracy, seconds = classify(net, data)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(
            f"{name}: {len(data.x_train)} training and {len(data.x_test)} test images: "
            f"{accuracy:.1%} accuracy, {seconds:.0f} s, peak memory {peak / 2**20:.2f} GiB "
            f"({before / 2**20:.2f} GiB before)",
            flush=True,
        )


if __name__ == "__main__":
    main()
