import json
import os
import signal

import numpy as np
import pytest

import widelimit as wl
from tests.scale.stores import chunk, flip, inputs, net, small_store
from widelimit.scale.cli import main
from widelimit.scale.maker import TileMaker


def test_from_a_description_to_a_matrix(tmp_path, capsys):
    (tmp_path / "net.json").write_text(wl.to_json(net()))
    np.save(tmp_path / "x.npy", inputs())
    store = str(tmp_path / "k.zarr")
    files = ["--network", str(tmp_path / "net.json"), "--inputs", str(tmp_path / "x.npy")]
    assert main(["gram", "create", store, *files, "--tile", "16"]) == 0
    assert "10 of 16 x 16 samples, 0 done" in capsys.readouterr().out
    assert main(["gram", "plan", store]) == 0
    assert main(["gram", "fill", store]) == 0
    assert "10 tiles done (0 of them again), 0 skipped, 0 left" in capsys.readouterr().err
    assert main(["gram", "status", store]) == 0
    assert "10 of 10 tiles" in capsys.readouterr().out
    assert main(["gram", "verify", store]) == 0
    assert main(["gram", "export", store, str(tmp_path / "k.npy")]) == 0
    np.testing.assert_array_equal(
        np.load(tmp_path / "k.npy"), net().kernel_fn(inputs(), None, "ntk")
    )


def test_damage_is_an_exit_code(tmp_path, capsys):
    store = small_store(tmp_path)
    store.fill(progress=False)
    flip(chunk(store, 0, 1))
    assert main(["gram", "verify", store.path]) == 3
    assert "1 damaged: [(0, 1)]" in capsys.readouterr().out
    assert main(["gram", "repair", store.path]) == 0
    assert main(["gram", "verify", store.path]) == 0


def test_sigterm_finishes_the_tile_and_asks_for_another_start(tmp_path, monkeypatch):
    store, tile = small_store(tmp_path), TileMaker.tile
    before = signal.getsignal(signal.SIGTERM)

    def terminated(self, place):
        if place == (1, 2):
            os.kill(os.getpid(), signal.SIGTERM)
        return tile(self, place)

    monkeypatch.setattr(TileMaker, "tile", terminated)
    assert main(["gram", "fill", store.path]) == 75
    assert chunk(store, 1, 2).exists()
    assert 0 < store.plan.done < 10
    assert signal.getsignal(signal.SIGTERM) is before
    monkeypatch.setattr(TileMaker, "tile", tile)
    assert main(["gram", "fill", store.path]) == 0


def test_sigterm_stops_a_repair_too(tmp_path, monkeypatch):
    store, tile = small_store(tmp_path), TileMaker.tile
    store.fill(progress=False)
    for place in [(0, 1), (0, 2)]:
        flip(chunk(store, *place))

    def terminated(self, place):
        os.kill(os.getpid(), signal.SIGTERM)
        return tile(self, place)

    monkeypatch.setattr(TileMaker, "tile", terminated)
    assert main(["gram", "repair", store.path]) == 75
    monkeypatch.setattr(TileMaker, "tile", tile)
    assert main(["gram", "fill", store.path]) == 0
    assert store.verify(progress=False)


def test_errors_are_a_line(tmp_path, capsys):
    assert main(["gram", "fill", str(tmp_path / "none.zarr")]) == 1
    assert "widelimit: error: expected a store at" in capsys.readouterr().err
    (tmp_path / "net.json").write_text(json.dumps({}))
    np.save(tmp_path / "x.npy", inputs())
    files = ["--network", str(tmp_path / "net.json"), "--inputs", str(tmp_path / "x.npy")]
    assert main(["gram", "create", str(tmp_path / "k.zarr"), *files]) == 1


def test_bad_usage_exits_with_2(capsys):
    with pytest.raises(SystemExit) as error:
        main(["gram", "fly"])
    assert error.value.code == 2
