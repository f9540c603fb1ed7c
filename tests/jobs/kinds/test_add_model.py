import errno
import json
import os
import shutil
from hashlib import sha256
from pathlib import Path

import pytest
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st

from jobs.context import Context
from jobs.errors import Cancelled, InvalidInput, Stopped, classify
from jobs.kinds import add_model
from jobs.kinds.add_model import Params, run
from jobs.ml import disk
from jobs.ml.errors import Unusable
from jobs.ml.model_files import choose_files
from jobs.ml.reuse import clone
from jobs.ml.whole import examine
from tests.files import contents
from tests.ml.tiny import save_model, tiny_model

CONFIG = {"config.json", "tokenizer.json"}


@pytest.fixture
def hub(hub, original, monkeypatch, tmp_path):
    """The hub that this process believes to be the hub, with a model that also has pickles and code."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr("jobs.ml.hub.FIRST_WAIT", 0.01)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    files = contents(original)
    extra = {"pytorch_model.bin": b"\x80\x02", "modeling_tiny.py": b"import os", "onnx/model.safetensors": b"x"}
    hub.add("model", "owner/tiny", files | extra)
    return hub


class Interrupted(Context):
    """Says that the worker shuts down as soon as `after` bytes of a stage are done."""

    def __init__(self, after: int, wish: str = "stop", stage: str = "fetch") -> None:
        super().__init__(stages=add_model.STAGES)
        self.after, self.wish_then, self.at_stage = after, wish, stage

    def at(self, done: float) -> None:
        super().at(done)
        if self.snapshot.stage == self.at_stage and done >= self.after:
            self.wished = self.wish_then


def add(source, folder, ctx=None, **fields):
    ctx = ctx or Context(stages=add_model.STAGES)
    result = run(Params(str(source), str(folder), **fields), ctx)
    return json.loads(json.dumps(result))  # as the job keeps it


# --- from a folder


def test_a_folder_becomes_a_copy_with_sizes_checksums_and_its_architecture(source, folder):
    result = add(source, folder)
    assert {file["name"] for file in result["files"]} >= CONFIG | {"model.safetensors", "README.md"}
    for file in result["files"]:
        data = (source / file["name"]).read_bytes()
        assert (folder / file["name"]).read_bytes() == data
        assert (file["bytes"], file["sha256"]) == (len(data), sha256(data).hexdigest())
    described = result["architecture"]
    assert (described["n_layers"], described["d_model"], described["class_name"]) == (3, 32, "LlamaForCausalLM")
    assert {"blocks.1.hook_resid_post"} <= {site["name"] for site in described["sites"]}
    assert (result["commit"], result["licence"]) == ("", "apache-2.0")


def test_the_vocabulary_names_every_token_id(source, folder):
    result = add(source, folder)
    pieces = json.loads((folder / "vocabulary.json").read_text())
    assert len(pieces) == result["architecture"]["vocab_size"]
    assert pieces[0] == "<s>" and " cat" in pieces


def test_the_manifest_says_where_the_model_is_from(source, folder):
    result = add(source, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["source"] == str(source)
    assert manifest["files"] == result["files"]


def test_later_changes_of_the_source_do_not_reach_the_copy(source, folder):
    add(source, folder)
    before = contents(folder)
    with (source / "model.safetensors").open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\0\0\0\0")
    assert contents(folder) == before


def test_code_pickles_and_what_else_lies_there_are_left_behind(source, folder):
    for name in ("modeling_tiny.py", "pytorch_model.bin", "optimizer.pt", "notes.txt", ".hidden"):
        (source / name).write_bytes(b"x")
    add(source, folder)
    assert (
        not {"modeling_tiny.py", "pytorch_model.bin", "optimizer.pt", "notes.txt", ".hidden"} & contents(folder).keys()
    )


def test_weights_in_several_files_are_taken_with_their_index(source, folder):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source)
    (source / "model.safetensors").unlink()
    model.save_pretrained(source, max_shard_size="20KB")
    names = {file["name"] for file in add(source, folder)["files"]}
    assert "model.safetensors.index.json" in names
    assert len([name for name in names if name.startswith("model-0")]) > 1


def test_a_missing_part_of_the_weights_is_named(source, folder):
    test_weights_in_several_files_are_taken_with_their_index(source, folder)
    parts = sorted(source.glob("model-0*"))
    parts[-1].unlink()
    with pytest.raises(ValueError, match=f"{parts[-1].name} is named in model.safetensors.index.json") as caught:
        add(source, folder.parent / "8")
    assert classify(caught.value).code == "CORRUPT_DATA"


def test_links_are_followed_as_in_the_cache_of_the_hub(source, folder, tmp_path):
    cache = tmp_path / "snapshot"
    cache.mkdir()
    for path in source.iterdir():
        (cache / path.name).symlink_to(path)
    add(cache, folder)
    assert not (folder / "model.safetensors").is_symlink()


@pytest.mark.parametrize(
    ("lost", "instead", "said"),
    [
        ("config.json", "", "not a model folder: no config.json"),
        ("model.safetensors", "", "model.safetensors is missing"),
        ("model.safetensors", "pytorch_model.bin", "can run code when opened"),
        ("model.safetensors", "adapter_model.safetensors", "an adapter"),
        ("model.safetensors", "model-00001-of-00002.safetensors", "index.json is missing"),
        ("tokenizer.json", "", "no tokenizer"),
    ],
)
def test_a_folder_that_is_no_model_is_refused_by_what_is_missing(source, folder, lost, instead, said):
    (source / lost).rename(source / instead if instead else folder.parent.parent / "away")
    with pytest.raises(InvalidInput, match=said) as caught:
        add(source, folder)
    assert caught.value.field == "source" and caught.value.hint


def test_a_folder_above_the_model_is_told_where_the_model_is(source, folder, tmp_path):
    with pytest.raises(InvalidInput, match="no config.json") as caught:
        add(tmp_path, folder)
    assert "There is one in source" in caught.value.hint


def test_a_file_and_a_path_that_is_not_there_are_refused(source, folder):
    with pytest.raises(InvalidInput, match="is a file"):
        add(source / "config.json", folder)
    with pytest.raises(InvalidInput, match="There is no folder"):
        add(source / "nothing", folder)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("config.json", b'{"model_type": "no-such-thing"}', "no-such-thing"),
        (
            "config.json",
            b'{"model_type": "mine", "auto_map": {"AutoModel": "evil.Mine"}}',
            r"evil\.py\), which is never run",
        ),
        ("config.json", b'{"model_type": "t5", "is_encoder_decoder": true}', "encoder-decoder"),
        ("config.json", b"{", "config.json"),
        ("config.json", b"[]", "config.json"),
        ("tokenizer.json", b"{}", "tokenizer"),
    ],
)
def test_a_model_that_cannot_be_understood_is_refused_before_its_weights_are_copied(source, folder, name, data, said):
    (source / name).write_bytes(data)
    with pytest.raises(ValueError, match=said) as caught:
        add(source, folder)
    assert classify(caught.value).code in ("VALIDATION", "CORRUPT_DATA")
    assert not (folder / "model.safetensors").exists()


def test_torn_weights_are_corrupt_data_by_name(source, folder):
    data = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(data[:-10])
    with pytest.raises(ValueError, match=r"model\.safetensors is torn") as caught:
        add(source, folder)
    assert classify(caught.value).code == "CORRUPT_DATA"


def test_an_interrupted_copy_starts_clean_and_ends_the_same(source, folder, tmp_path):
    expected = add(source, tmp_path / "other")
    with pytest.raises(Stopped):
        add(source, folder, Interrupted(after=1))
    assert not (folder / "model.safetensors").exists()
    (folder / ".model.safetensors.12345678.tmp").write_bytes(b"left by a kill")
    assert add(source, folder) == expected
    assert contents(folder).keys() == contents(tmp_path / "other").keys()


def test_a_second_run_gives_the_same_result_and_the_same_files(source, folder):
    first, before = add(source, folder), contents(folder)
    assert add(source, folder) == first
    assert contents(folder) == before


def test_what_was_copied_from_a_source_that_changed_since_is_copied_again(source, folder, tmp_path):
    with pytest.raises(Stopped):
        add(source, folder, Interrupted(after=1, stage="verify"))
    other = save_model(tiny_model("llama", seed=5), tmp_path / "other")
    shutil.copy2(other / "model.safetensors", source / "model.safetensors")
    add(source, folder)
    assert (folder / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


def test_a_full_disk_is_told_with_figures_before_the_weights_are_copied(source, folder, monkeypatch):
    monkeypatch.setattr(disk, "RESERVE", 10**15)
    with pytest.raises(OSError, match=r"only .* are free .* are missing") as caught:
        add(source, folder)
    assert classify(caught.value).code == "DISK_FULL"
    assert not (folder / "model.safetensors").exists()


@pytest.mark.parametrize("source", ["./here", "~/model", "a b", "a/b/c", "", "owner/..", "x--y", "/x\0y"])
def test_sources_that_can_be_nothing_are_refused_at_once(source, tmp_path):
    with pytest.raises(InvalidInput):
        run(Params(source, str(tmp_path)), Context())


def test_a_folder_with_a_revision_is_a_mistake(source, folder):
    with pytest.raises(InvalidInput, match="no revisions"):
        Params(str(source), str(folder), "main")


def test_percent_reaches_the_end_and_never_goes_back(source, folder):
    ctx = Context(stages=add_model.STAGES)
    add(source, folder, ctx)
    assert ctx.snapshot.percent >= 99


# --- from the hub


def test_a_model_of_the_hub_is_fetched_at_its_commit(hub, folder):
    result = add("owner/tiny", folder)
    assert result["commit"] == hub.repositories[("model", "owner/tiny")].commit
    assert result["licence"] == "apache-2.0"
    stored = hub.repositories[("model", "owner/tiny")].files
    assert all((folder / file["name"]).read_bytes() == stored[file["name"]] for file in result["files"])


def test_only_safe_files_are_fetched_from_the_hub(hub, folder):
    add("owner/tiny", folder)
    asked = {path for _, path, _ in hub.requests}
    assert not any("pytorch_model" in path or ".py" in path or "onnx" in path for path in asked)


def test_one_file_of_weights_is_preferred_to_its_shards():
    names = [
        "config.json",
        "vocab.json",
        "model.safetensors",
        "model-00001-of-00002.safetensors",
        "model.fp16.safetensors",
    ]
    assert choose_files(names)[-1] == "model.safetensors"
    assert "model-00001-of-00002.safetensors" not in choose_files(names)


@given(st.sets(st.sampled_from(["config.json", "tokenizer.json", "model.safetensors"]) | st.text(max_size=20)))
def test_whatever_names_there_are_no_code_no_pickle_and_no_path_is_taken(names):
    try:
        taken = choose_files(names)
    except Unusable as error:
        assert str(error) and error.hint
        return
    assert set(taken) <= names
    assert not any("/" in name or name.endswith((".py", ".bin", ".pt", ".pkl")) for name in taken)


def weight_traffic(hub) -> int:
    return sum(n for name, n in hub.sent.items() if name in add_model_files(hub))


def add_model_files(hub) -> set[str]:
    return set(hub.repositories[("model", "owner/tiny")].files)


def test_a_second_registration_fetches_not_one_byte(hub, folder, capsys):
    first = add("owner/tiny", folder)
    hub.sent.clear()
    second = add("owner/tiny", folder.with_name("8"))
    assert weight_traffic(hub) == 0
    assert second["reused_bytes"] == sum(file["bytes"] for file in second["files"]) and first["reused_bytes"] == 0
    assert second["files"] == first["files"]
    assert "came from what this machine has already" in capsys.readouterr().out
    before = contents(folder.with_name("8"))
    shutil.rmtree(folder)
    assert contents(folder.with_name("8")) == before


def test_the_same_weights_in_another_repository_are_not_fetched_again(hub, folder):
    add("owner/tiny", folder)
    files = dict(hub.repositories[("model", "owner/tiny")].files)
    hub.add("model", "other/copy", {**files, "README.md": b"---\nlicense: mit\n---\n"})
    hub.sent.clear()
    assert add("other/copy", folder.with_name("8"))["licence"] == "mit"
    assert hub.sent["model.safetensors"] == 0 < hub.sent["README.md"]


def test_what_the_cache_of_the_hub_has_is_not_fetched(hub, folder):
    weights = hub.repositories[("model", "owner/tiny")].files["model.safetensors"]
    blobs = Path(constants.HF_HUB_CACHE) / "models--owner--tiny" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / sha256(weights).hexdigest()).write_bytes(weights)
    result = add("owner/tiny", folder)
    assert hub.sent["model.safetensors"] == 0 and result["reused_bytes"] == len(weights)


@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
def test_what_is_here_but_damaged_is_fetched(hub, folder, damage):
    add("owner/tiny", folder)
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(data[:-10] if damage == "cut" else data[:-1] + bytes([data[-1] ^ 1]))
    hub.sent.clear()
    add("owner/tiny", folder.with_name("8"))
    assert hub.sent["model.safetensors"] == len(data)
    assert (folder.with_name("8") / "model.safetensors").read_bytes() == data


def test_on_another_disk_what_is_here_is_copied(hub, folder, monkeypatch):
    add("owner/tiny", folder)
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EXDEV, "another disk")))
    hub.sent.clear()
    add("owner/tiny", folder.with_name("8"))
    assert weight_traffic(hub) == 0
    assert not (folder / "model.safetensors").samefile(folder.with_name("8") / "model.safetensors")


def test_a_file_that_models_share_is_read_only_and_damage_to_it_names_the_others(hub, folder, monkeypatch):
    monkeypatch.setattr("jobs.ml.reuse.FICLONE", 0)  # as on a filesystem that cannot clone
    add("owner/tiny", folder)
    second = folder.with_name("8")
    files = add("owner/tiny", second)["files"]
    path = second / "model.safetensors"
    assert path.samefile(folder / path.name) and not path.stat().st_mode & 0o222
    path.chmod(0o644)
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert "one file with that of model 7: verify there too" in examine(second, files, lambda n: None)[path.name]
    shutil.rmtree(folder)
    assert "one file" not in examine(second, files, lambda n: None)[path.name]


def test_the_cache_of_the_hub_keeps_its_own_modes(hub, folder):
    weights = hub.repositories[("model", "owner/tiny")].files["model.safetensors"]
    blob = Path(constants.HF_HUB_CACHE) / "models--owner--tiny" / "blobs" / sha256(weights).hexdigest()
    blob.parent.mkdir(parents=True)
    blob.write_bytes(weights)
    mode = blob.stat().st_mode
    add("owner/tiny", folder)
    assert blob.stat().st_mode == mode


def test_a_clone_is_a_file_of_its_own_or_none_at_all(tmp_path):
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_bytes(b"words" * 1000)
    if clone(source, target):
        target.write_bytes(b"others")
        assert source.read_bytes() == b"words" * 1000
    else:
        assert not target.exists()


def test_who_may_not_fetch_a_gated_model_gets_no_copy_of_it_either(hub, folder, monkeypatch):
    hub.repositories[("model", "owner/tiny")].gated = True
    monkeypatch.setenv("HF_TOKEN", hub.TOKEN)
    add("owner/tiny", folder)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(OSError, match="gated"):
        add("owner/tiny", folder.with_name("8"))
    assert not (folder.with_name("8") / "model.safetensors").exists()


def test_a_part_that_was_fetched_before_is_dropped_where_the_whole_is_here(hub, folder):
    hub.fault("model.safetensors", breaks_after=5000)
    with pytest.raises(Stopped):
        add("owner/tiny", folder, Interrupted(after=5000))
    add("owner/tiny", folder.with_name("8"))
    add("owner/tiny", folder)
    assert not list(folder.glob("*.partial")) and not list(folder.glob(".*"))


def test_an_interrupted_download_goes_on_at_the_commit_it_began_with(hub, folder):
    began = hub.repositories[("model", "owner/tiny")].commit
    hub.fault("model.safetensors", breaks_after=5000)
    with pytest.raises(Stopped):
        add("owner/tiny", folder, Interrupted(after=5000))
    hub.repositories[("model", "owner/tiny")].push(README__md=b"---\nlicense: mit\n---\n")
    result = add("owner/tiny", folder)
    assert (result["commit"], result["licence"]) == (began, "apache-2.0")
    assert hub.fetched("model.safetensors")[-1]["Range"] == "bytes=5000-"


def test_a_cancel_ends_the_download_between_chunks(hub, folder):
    with pytest.raises(Cancelled):
        add("owner/tiny", folder, Interrupted(after=1, wish="cancel"))


def test_a_model_of_pickles_alone_is_refused_before_anything_is_fetched(hub, folder):
    del hub.repositories[("model", "owner/tiny")].files["model.safetensors"]
    with pytest.raises(InvalidInput, match=r"pytorch_model\.bin alone"):
        add("owner/tiny", folder)
    assert not hub.fetched("resolve")


def test_a_damaged_transfer_is_corrupt_data_and_mended_by_a_retry(hub, folder):
    hub.fault("model.safetensors", damages=True)
    with pytest.raises(ValueError, match="came damaged") as caught:
        add("owner/tiny", folder)
    assert classify(caught.value).code == "CORRUPT_DATA"
    assert add("owner/tiny", folder)["files"]


def test_failures_of_the_hub_have_their_codes(hub, folder, monkeypatch):
    def code(source, **fields):
        with pytest.raises(OSError) as caught:
            add(source, folder, **fields)
        return classify(caught.value)

    assert code("owner/tinny").code == "NOT_FOUND"
    assert "Did you mean owner/tiny?" in code("owner/tinny").hint
    assert code("owner/tiny", revision="v2").code == "NOT_FOUND"
    hub.repositories[("model", "owner/tiny")].gated = True
    assert code("owner/tiny").code == "ACCESS_DENIED"
    hub.fault("/api/models", status=503, times=9)
    assert code("owner/tiny").code == "NETWORK"
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert code("owner/tiny").code == "NETWORK"


def test_a_token_in_the_environment_opens_a_gated_model_and_is_written_nowhere(hub, folder, monkeypatch):
    hub.repositories[("model", "owner/tiny")].gated = True
    monkeypatch.setenv("HF_TOKEN", hub.TOKEN)
    add("owner/tiny", folder)
    assert not any(hub.TOKEN.encode() in path.read_bytes() for path in folder.iterdir())
