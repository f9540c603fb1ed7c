import json
import shutil

import pytest
from huggingface_hub import constants

from jobs.context import Context
from jobs.errors import Cancelled, InvalidInput, JobError, classify
from jobs.kinds import add_model, restore_model, verify_model
from jobs.ml.errors import CorruptData
from jobs.ml.language_model import load_model
from tests.files import contents, flip


@pytest.fixture
def files(source, folder):
    """Of a model that was just added, as the registry keeps them."""
    return add(str(source), folder)["files"]


def add(source, folder, **fields):
    return json.loads(json.dumps(add_model.run(add_model.Params(source, str(folder), **fields), Context())))


def verify(folder, files, ctx=None):
    ctx = ctx or Context(stages=verify_model.STAGES)
    return verify_model.run(verify_model.Params(str(folder), files), ctx)


def restore(source, folder, files, **fields):
    params = restore_model.Params(str(source), str(folder), files, **fields)
    return restore_model.run(params, Context(stages=restore_model.STAGES))


def test_a_folder_that_depends_on_where_a_worker_runs_is_refused(source, files):
    for make in (lambda: verify_model.Params("here", files), lambda: add_model.Params(str(source), "here")):
        with pytest.raises(InvalidInput, match="absolute") as refused:
            make()
        assert refused.value.field == "folder"


def test_whole_files_verify_byte_by_byte_and_the_structure_is_told(folder, files):
    ctx = Context(stages=verify_model.STAGES)
    result = verify(folder, files, ctx)
    assert result["damaged"] == {}
    assert result["bytes"] == sum(file["bytes"] for file in files)
    assert [group["title"] for group in result["structure"]] == ["Embeddings", "Blocks 0–2", "Final norm", "Head"]
    assert "blocks.2.hook_resid_mid" in [site["name"] for site in result["sites"]]
    load_model(folder)


def test_a_flipped_bit_is_found_and_no_job_loads_the_model_from_then_on(folder, files):
    flip(folder / "model.safetensors")
    assert "other content" in verify(folder, files)["damaged"]["model.safetensors"]
    with pytest.raises(CorruptData, match=r"model\.safetensors has other content") as caught:
        load_model(folder)
    assert "Fetch the model again" in classify(caught.value).hint


def test_gone_and_shortened_files_are_named(folder, files):
    (folder / "config.json").unlink()
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    found = verify(folder, files)["damaged"]
    assert found["config.json"] == "is missing"
    assert "bytes where it had" in found["model.safetensors"]


def test_a_model_that_lost_a_file_is_refused_before_anybody_verified_it(folder, files):
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CorruptData, match=r"tokenizer\.json is missing"):
        load_model(folder)


def test_put_back_files_lift_the_quarantine(folder, files):
    flip(folder / "model.safetensors")
    verify(folder, files)
    flip(folder / "model.safetensors")
    assert verify(folder, files)["damaged"] == {}
    load_model(folder)


def test_a_cancel_ends_it_between_chunks(folder, files):
    ctx = Context(stages=verify_model.STAGES)
    ctx.wished = "cancel"
    with pytest.raises(Cancelled):
        verify(folder, files, ctx)


def test_files_beside_those_of_the_model_do_not_matter(folder, files):
    (folder / "calibration.json").write_text("{}")
    assert verify(folder, files)["damaged"] == {}


def test_a_model_without_checksums_cannot_be_verified(folder):
    with pytest.raises(InvalidInput, match="No checksums"):
        verify_model.Params(str(folder), [])


# --- fetched again


def test_only_what_is_damaged_is_fetched_again(source, folder, files):
    untouched = (folder / "model.safetensors").stat().st_mtime_ns
    flip(folder / "config.json")
    (folder / "tokenizer.json").unlink()
    result = restore(source, folder, files)
    assert result["restored"] == ["config.json", "tokenizer.json"]
    assert (folder / "model.safetensors").stat().st_mtime_ns == untouched
    assert verify(folder, files)["damaged"] == {}
    load_model(folder)


def test_a_folder_that_is_gone_comes_back_with_all_that_pages_and_jobs_need(source, folder, files):
    before = {path.name for path in folder.iterdir()}
    shutil.rmtree(folder)
    restore(source, folder, files)
    assert {path.name for path in folder.iterdir()} | {"origin.json"} == before
    load_model(folder)


def test_a_source_that_has_other_content_now_is_refused_and_the_model_stays_quarantined(source, folder, files):
    flip(folder / "model.safetensors")
    flip(source / "model.safetensors")
    with pytest.raises(JobError, match=r"model\.safetensors is another file there now") as caught:
        restore(source, folder, files)
    assert (caught.value.code, "as a new model" in caught.value.hint) == ("CORRUPT_DATA", True)
    with pytest.raises(CorruptData):
        load_model(folder)


def test_a_source_that_is_gone_is_named(source, folder, files):
    flip(folder / "config.json")
    shutil.rmtree(source)
    with pytest.raises(InvalidInput, match="There is no folder"):
        restore(source, folder, files)


@pytest.fixture
def hub(hub, original, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    hub.add("model", "owner/tiny", contents(original))
    return hub


def test_from_the_hub_it_is_fetched_at_the_commit_it_was_added_at(hub, folder):
    added = add("owner/tiny", folder)
    flip(folder / "model.safetensors")
    hub.requests.clear()
    result = restore("owner/tiny", folder, added["files"], revision=added["commit"])
    assert result["restored"] == ["model.safetensors"]
    assert len(hub.fetched("model.safetensors")) == 1 and not hub.fetched("tokenizer.json")


def test_a_commit_that_the_team_has_is_not_fetched_a_second_time(hub, folder):
    commit = hub.repositories[("model", "owner/tiny")].commit
    with pytest.raises(InvalidInput, match="is here already as “tiny”"):
        add("owner/tiny", folder, known={commit: "tiny"})
    assert not hub.fetched("model.safetensors")
