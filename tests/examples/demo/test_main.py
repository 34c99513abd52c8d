"""The command line: results, exit statuses, and errors without tracebacks."""

import sys
from dataclasses import replace

import numpy as np
import pytest

from examples.demo import __main__ as cli
from examples.demo import datasets
from examples.demo import images as demo_images
from examples.demo.images import image_networks


@pytest.fixture
def npz(tmp_path):
    """A small file of two easy classes."""
    rng = np.random.default_rng(0)
    labels = np.tile([0, 1], 40)
    images = labels[:, None, None] + 0.3 * rng.normal(size=(80, 2, 2))
    path = tmp_path / "easy.npz"
    np.savez(path, x_train=images[:60], y_train=labels[:60], x_test=images[60:], y_test=labels[60:])
    return path


@pytest.fixture
def small(monkeypatch):
    """The demonstration in seconds."""
    full = cli._full_sizes()
    sizes = full._replace(
        task=replace(full.task, members=4, width=32, points=4, steps=(0, 1, 3)),
        study=replace(full.study, designs=2, tasks=3, points=4, tests=5, width=32),
        models=replace(
            full.models, depth=1, noises=(0.3,), steps=(3, None), C=(1.0,), gamma=(1.0,)
        ),
        networks=replace(full.networks, images=20, splits=2),
    )
    monkeypatch.setattr(cli, "_full_sizes", lambda: sizes)
    quickest = "fully connected", "convolutional"
    networks = {name: net for name, net in image_networks().items() if name in quickest}
    monkeypatch.setattr(demo_images, "image_networks", lambda: networks)


def test_demo(tmp_path, monkeypatch, capsys, npz, small):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["--data", str(npz), "--output", "out/figures", "--seed", "3"]) == 0
    output = capsys.readouterr()
    for part in (
        "largest deviation",
        "95% interval",
        "easy: 2 classes, 60 training images",
        "support vectors",
        "figure: out/figures/regression.png",
        "figure: out/figures/classification.png",
        "2 splits of 20 images into 10 for training and 10 for testing",
        "minus fully connected",
        "figure: out/figures/images.png",
        "wall time: ensembles",
    ):
        assert part in output.out
    # The progress bar is for terminals.
    assert output.err == ""
    assert sorted(p.name for p in (tmp_path / "out/figures").iterdir()) == [
        "classification.png",
        "images.png",
        "regression.png",
    ]


def test_rows_are_no_images(tmp_path, capsys):
    rows = datasets.LabelledImages("rows", np.eye(4), np.arange(4), np.eye(4), np.arange(4))
    times = {}
    cli._show_networks(rows, cli._full_sizes().networks, tmp_path, 0, times)
    assert "left out: inputs of shape (4,)" in capsys.readouterr().out
    assert not times
    assert not list(tmp_path.iterdir())


def test_quick_is_smaller():
    full, quick = cli._full_sizes(), cli._quick_sizes()
    assert quick.task.members < full.task.members
    assert quick.study.designs < full.study.designs
    assert quick.train < full.train


def test_help_names_everything(capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    for option in ("--data", "--output", "--seed", "--quick", "CIFAR-10", ".npz"):
        assert option in text


@pytest.mark.parametrize("arguments", [["dem"], ["--seed", "one"], ["--dat"]])
def test_misuse(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    assert exit_.value.code == 2
    assert "usage: examples.demo" in capsys.readouterr().err


def failing(capsys, *arguments):
    """What a failing call writes, which is one line and no traceback."""
    assert cli.main([*map(str, arguments)]) == 1
    output = capsys.readouterr()
    assert output.err.startswith("examples.demo: error: ")
    assert output.err.count("\n") == 1
    assert output.out == ""
    return output.err


def test_missing_data(tmp_path, capsys):
    assert "no such file or folder" in failing(capsys, "--data", tmp_path / "none.npz")


def test_bad_data(tmp_path, capsys):
    (tmp_path / "bad.npz").write_text("nothing")
    assert "cannot read" in failing(capsys, "--data", tmp_path / "bad.npz")
    assert "expected an .npz file" in failing(capsys, "--data", tmp_path)


def test_too_few_images(tmp_path, capsys):
    path = tmp_path / "few.npz"
    np.savez(
        path, x_train=np.eye(4), y_train=np.arange(4) % 2, x_test=np.eye(4), y_test=np.arange(4) % 2
    )
    assert "10 training images or more" in failing(capsys, "--data", path)


def test_output_is_a_file(tmp_path, capsys, npz):
    assert "easy.npz" in failing(capsys, "--data", npz, "--output", npz)


def test_missing_packages(capsys, monkeypatch):
    find = cli.importlib.util.find_spec
    monkeypatch.setattr(
        cli.importlib.util, "find_spec", lambda name: None if name == "tqdm" else find(name)
    )
    assert 'needs tqdm; install it with: pip install -e ".[all,dev]"' in failing(capsys)


def test_digits_without_sklearn(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match="pip install scikit-learn"):
        datasets.load_digits()


def test_interrupt(capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run_demo", interrupt)
    assert cli.main([]) == 130
    assert "interrupted" in capsys.readouterr().err
