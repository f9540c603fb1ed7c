import errno
import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from jobs.ml import store

NO_EXCHANGE = 2**20  # a wish that no system knows


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path) -> None:
    path = tmp_path / "a.json"
    store.write_json(path, {"a": 1})
    with pytest.raises(ZeroDivisionError), store.replacing(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert store.read_json(path) == {"a": 1}
    assert [child.name for child in tmp_path.iterdir()] == ["a.json"]


def test_an_object_that_was_not_written_is_read_as_an_empty_one(tmp_path) -> None:
    assert store.read_json_if_there(tmp_path / "a.json") == {}
    store.write_json(tmp_path / "a.json", {"a": 1})
    assert store.read_json_if_there(tmp_path / "a.json") == {"a": 1}


def test_a_folder_is_replaced_as_a_whole(tmp_path) -> None:
    for name in ("one", "two"):
        with store.replacing(tmp_path / "folder") as temporary:
            temporary.mkdir()
            (temporary / name).write_text(name)
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["two"]


def test_a_folder_is_replaced_where_the_file_system_cannot_exchange_two(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(store, "RENAME_EXCHANGE", NO_EXCHANGE)
    replace_with(tmp_path / "folder", "old")
    replace_with(tmp_path / "folder", "new")
    assert found_in(tmp_path) == {"folder/below/new", "folder/new"}


def test_a_new_folder_that_cannot_take_its_name_leaves_it_to_the_old_one(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(store, "RENAME_EXCHANGE", NO_EXCHANGE)
    replace_with(tmp_path / "folder", "old")
    rename = Path.rename

    def refuse(path, target):
        if target == tmp_path / "folder" and not path.name.endswith(".old.tmp"):
            raise OSError(errno.EIO, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="Input/output error"):
        replace_with(tmp_path / "folder", "new")
    assert found_in(tmp_path) == {"folder/below/old", "folder/old"}


@pytest.mark.parametrize("wish", [store.RENAME_EXCHANGE, NO_EXCHANGE], ids=["exchanged", "renamed twice"])
def test_a_kill_at_any_moment_leaves_the_old_folder_or_the_new_one(tmp_path, monkeypatch, wish) -> None:
    monkeypatch.setattr(store, "RENAME_EXCHANGE", wish)
    found, ended, changes, hidden = [], False, 0, 0
    while not ended:
        place, changes = tmp_path / str(changes), changes + 1
        fill(place / "folder", "old")
        ended = in_a_child_that_dies(changes, lambda: replace_with(place / "folder", "new"))  # noqa: B023  called at once
        seen = {name for name in found_in(place) if not name.startswith(".")}
        store.remove_torn(place)
        found.append(found_in(place))
        assert seen in (found[-1], set())
        hidden += not seen
    assert hidden == (wish == NO_EXCHANGE)
    old, new = {"folder/old", "folder/below/old"}, {"folder/new", "folder/below/new"}
    assert found.count(old) >= 4 and found.count(new) >= 3  # killed before and after the exchange
    assert found == [old] * found.count(old) + [new] * found.count(new)


def test_everything_in_a_folder_is_on_the_disk_before_it_takes_its_name(tmp_path, monkeypatch) -> None:
    flushed, flush = [], store.flush
    monkeypatch.setattr(store, "flush", lambda path: (flushed.append(path), flush(path)))
    replace_with(tmp_path / "folder", "a")
    [inner] = {path.parent for path in flushed if path.name == "a" and path.parent.name != "below"}
    assert set(flushed) == {inner / "a", inner / "below/a", inner / "below", inner, tmp_path}


def replace_with(folder, name) -> None:
    with store.replacing(folder) as temporary:
        fill(temporary, name)


def fill(folder, name) -> None:
    """With a file of this name, and another below."""
    (folder / "below").mkdir(parents=True)
    for path in (folder / name, folder / "below" / name):
        path.write_text(name)


def found_in(place) -> set[str]:
    return {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()}


def in_a_child_that_dies(at, act) -> bool:
    """Killed before the change of that number which it makes to the disk. Did it come to its end?"""
    pid = os.fork()
    if not pid:
        left = iter(range(at - 1, -1, -1))

        def hear(event, args) -> None:
            writes = event == "open" and isinstance(args[2], int) and args[2] & os.O_WRONLY
            changes = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")
            if (writes or event in changes) and not next(left):
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(hear)
            act()
            os._exit(0)
        finally:
            os._exit(1)
    code = os.waitpid(pid, 0)[1]
    assert code in (0, signal.SIGKILL)
    return code == 0


def test_tensors_keep_shape_and_type_also_without_dimensions(tmp_path) -> None:
    arrays = {"scalar": np.float32(3).reshape(()), "turned": np.arange(6, dtype=np.int64).reshape(2, 3).T}
    store.write_tensors(tmp_path / "t.safetensors", arrays)
    back = store.read_tensors(tmp_path / "t.safetensors")
    assert {name: (a.shape, a.dtype) for name, a in back.items()} == {n: (a.shape, a.dtype) for n, a in arrays.items()}
    assert np.array_equal(back["turned"], arrays["turned"])
    assert np.array_equal(store.read_tensor(tmp_path / "t.safetensors", "turned"), arrays["turned"])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_never_has_numbers_that_other_readers_refuse(tmp_path, value) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.write_json(tmp_path / "a.json", {"loss": value})
    assert not list(tmp_path.iterdir())


def test_a_manifest_has_versions_and_hashes_of_the_files(tmp_path) -> None:
    store.write_array(tmp_path / "a.npy", np.arange(3))
    manifest = store.write_manifest(tmp_path, ["a.npy"], kind="test", seed=7)
    assert manifest == json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["seed"] == 7
    assert manifest["versions"]["torch"].startswith("2.")
    size = (tmp_path / "a.npy").stat().st_size
    assert manifest["files"] == {"a.npy": {"bytes": size, "sha256": store.sha256(tmp_path / "a.npy")}}


def test_equal_values_have_equal_fingerprints_whatever_the_order() -> None:
    assert store.fingerprint({"a": 1, "b": [2]}) == store.fingerprint({"b": [2], "a": 1})
    assert store.fingerprint({"a": 1}) != store.fingerprint({"a": 2})
