"""A disk of its own that is really full: a small file system in memory, where this user may mount one."""

import subprocess

import pytest
from huggingface_hub import constants

from jobs.context import Context
from jobs.errors import classify
from jobs.kinds import add_model
from jobs.ml import disk
from tests.conftest import require
from tests.ml.tiny import save_model, tiny_model


@pytest.fixture
def mount(tmp_path):
    """A file system of so many bytes."""
    place = tmp_path / "disk"
    place.mkdir()

    def make(size):
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(place)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        require("mount", done.returncode == 0, f"this user may not mount: {done.stderr.strip()}")
        return place

    yield make
    subprocess.run(["umount", str(place)], capture_output=True, check=False)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = save_model(tiny_model("llama", hidden_size=128, intermediate_size=1024), tmp_path_factory.mktemp("model"))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def hub(hub, files, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    hub.add("model", "owner/tiny", files)
    return hub


class Filled(Context):
    """Somebody else fills the disk in the middle of the weights."""

    def __init__(self, filler):
        super().__init__(stages=add_model.STAGES)
        self.filler = filler

    def at(self, done):
        super().at(done)
        if self.snapshot.stage == "fetch" and done > 1_000_000 and not self.filler.exists():
            with self.filler.open("wb", buffering=0) as file:
                try:
                    while file.write(b"x" * 2**20):
                        pass
                except OSError:
                    file.truncate(file.tell() - 100_000)  # a little is left: the next piece fits in part


def add(folder, ctx=None):
    return add_model.run(add_model.Params("owner/tiny", str(folder)), ctx or Context(stages=add_model.STAGES))


def test_a_disk_too_small_is_refused_before_the_weights_with_the_number_missing(hub, mount):
    folder = mount(4 * 2**20) / "models" / "7"
    with pytest.raises(OSError, match=r"only .* are free .*: [\d.]+ MB are missing") as caught:
        add(folder)
    assert classify(caught.value).code == "DISK_FULL"
    assert not hub.fetched("model.safetensors")


def test_a_disk_that_fills_up_midway_keeps_what_came_and_goes_on_after_space_is_made(hub, mount, files):
    weights = files["model.safetensors"]
    place = mount(disk.RESERVE + len(weights) + 3 * 2**20)
    folder, filler = place / "models" / "7", place / "filler"
    hub.fault("model.safetensors", drips=0.01)
    with pytest.raises(OSError) as caught:
        add(folder, Filled(filler))
    failure = classify(caught.value)
    assert failure.code == "DISK_FULL" and "what is written so far is used" in failure.hint
    (part,) = folder.glob("*.partial")
    kept = part.stat().st_size
    assert 1_000_000 < kept < len(weights) and part.read_bytes() == weights[:kept]

    filler.unlink()
    result = add(folder)
    assert hub.fetched("model.safetensors")[-1]["Range"] == f"bytes={kept}-"
    assert (folder / "model.safetensors").read_bytes() == weights and result["files"]
