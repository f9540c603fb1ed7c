import json

import numpy as np
import pytest

from jobs.ml import store


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
