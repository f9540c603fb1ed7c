"""What is said of an SAE before anything of its weights is read."""

import shutil

import pytest

from jobs.ml.errors import Unusable
from jobs.ml.formats.look import look_hub, look_path
from jobs.ml.hub import NoAccess, NotOnHub
from tests.hub_server import HubServer
from tests.ml import foreign
from tests.ml.foreign import D, M


@pytest.fixture
def hub(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    return hub


def files_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def ask(repository, path="", token=""):
    return look_hub(repository, path, "", token, 30.0)


@pytest.mark.parametrize("name", ["saelens-topk", "sparsify", "dictionary_learning-AutoEncoder", "llama_scope"])
def test_an_archive_and_the_hub_say_the_same_as_the_folder(hub, tmp_path, name) -> None:
    foreign.MADE[name](tmp_path / "there/inner")
    shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "there")
    stored = hub.add("model", "owner/saes", files_of(tmp_path / "there"))
    folder, archive = look_path(tmp_path / "there"), look_path(tmp_path / "packed.zip")
    found = ask("owner/saes")
    assert folder.facts == archive.facts == found.facts
    assert (found.facts.d_in, found.facts.width, found.path, found.commit) == (D, M, "inner", stored.commit)
    assert folder.size == archive.size == found.size > 1000


def test_no_weights_are_fetched_to_look(hub, tmp_path) -> None:
    foreign.saelens(tmp_path)
    hub.add("model", "owner/saes", files_of(tmp_path))
    ask("owner/saes")
    assert hub.fetched("cfg.json") and not hub.fetched("safetensors")


def test_what_lies_below_a_chosen_sae_is_neither_counted_nor_fetched(hub, tmp_path) -> None:
    foreign.saelens(tmp_path / "there")
    alone = look_path(tmp_path / "there")
    foreign.saelens(tmp_path / "there/checkpoint_1")
    shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "there")
    hub.add("model", "owner/saes", files_of(tmp_path / "there"))
    for found in (look_path(tmp_path / "there"), look_path(tmp_path / "packed.zip"), ask("owner/saes")):
        assert (found.path, found.size, found.facts) == ("", alone.size, alone.facts)
    assert not hub.fetched("checkpoint_1")


def test_what_only_the_weights_tell_is_left_open(hub, tmp_path) -> None:
    foreign.gemma_scope(tmp_path / "layer_3/width_16k/average_l0_9")
    hub.add("model", "google/gemma-scope-2b-pt-res", files_of(tmp_path))
    found = ask("google/gemma-scope-2b-pt-res", "layer_3")
    assert (found.label, found.facts) == ("Gemma Scope", None)
    assert look_path(tmp_path).facts.width == M


def test_a_hub_without_an_sae_or_without_access_says_so(hub, tmp_path) -> None:
    hub.add("model", "owner/model", {"config.json": b"{}", "model.safetensors": b"x"})
    with pytest.raises(Unusable, match=r"No known SAE is here; there is config\.json, model\.safetensors"):
        ask("owner/model")
    with pytest.raises((NotOnHub, NoAccess)):
        ask("owner/nothing")
    foreign.saelens(tmp_path)
    hub.add("model", "owner/gated", files_of(tmp_path), gated=True)
    with pytest.raises(NoAccess):
        ask("owner/gated")
    assert ask("owner/gated", token=HubServer.TOKEN).facts.width == M


def test_a_path_that_is_not_there_names_those_that_are(hub, tmp_path) -> None:
    foreign.sparsify(tmp_path / "layers.3")
    hub.add("model", "owner/saes", files_of(tmp_path))
    with pytest.raises(Unusable, match=r"There is no folder layers\.4") as caught:
        ask("owner/saes", "layers.4")
    assert "layers.3" in caught.value.hint
