import hashlib
import random
import threading

import pytest

from jobs.ml.errors import CorruptData
from jobs.ml.hub import (
    HubUnreachable,
    NoAccess,
    NotOnHub,
    Patience,
    Repository,
    fetch,
    look_up,
    verify,
)

WEIGHTS = random.Random(0).randbytes(3_500_000)
FILES = {"config.json": b'{"model_type": "gpt2"}', "model.safetensors": WEIGHTS}
QUICK = Patience(tries=3)


@pytest.fixture
def hub(hub, monkeypatch):
    monkeypatch.setattr("jobs.ml.hub.FIRST_WAIT", 0.01)
    hub.add("model", "owner/tiny", dict(FILES))
    return hub


def ask(hub, repository="owner/tiny", revision="", patience=QUICK) -> Repository:
    return look_up("model", repository, revision, endpoint=hub.url, patience=patience)


def bring(hub, folder, name="model.safetensors", patience=QUICK) -> list[int]:
    repository, told = ask(hub), []
    file = next(file for file in repository.files if file.name == name)
    fetch(repository, file, folder, told.append, patience)
    return told


def test_look_up_lists_the_files_with_sizes_and_checksums_at_a_commit(hub):
    found = ask(hub)
    assert found.commit == hub.repositories[("model", "owner/tiny")].commit
    config, weights = found.files
    assert (config.name, config.size, config.sha256) == ("config.json", 22, "")
    assert config.blob == hashlib.sha1(b"blob 22\0" + FILES["config.json"]).hexdigest()
    assert (weights.size, weights.sha256) == (3_500_000, hashlib.sha256(WEIGHTS).hexdigest())


@pytest.mark.parametrize("typed", ["owner/tinny", "tiny", "other/tiny"])
def test_an_unknown_id_is_answered_with_ids_that_look_alike(hub, typed):
    with pytest.raises(NotOnHub, match=f"no model “{typed}”") as caught:
        ask(hub, typed)
    assert "Did you mean owner/tiny?" in caught.value.hint


def test_an_id_that_cannot_be_one_is_not_looked_up(hub):
    with pytest.raises(NotOnHub, match="cannot be an id"):
        ask(hub, "a/b/c")
    assert hub.requests == []


def test_an_unknown_revision_is_named(hub):
    with pytest.raises(NotOnHub, match="no revision “v9”"):
        ask(hub, revision="v9")


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_names_the_token(hub, status):
    hub.fault("/api/models/owner/tiny", status=status)
    with pytest.raises(NoAccess, match=str(status)) as caught:
        ask(hub)
    assert "HF_TOKEN" in caught.value.hint


def test_a_gated_model_says_so_when_its_files_are_fetched(hub, tmp_path):
    hub.repositories[("model", "owner/tiny")].gated = True
    with pytest.raises(NoAccess, match="gated") as caught:
        bring(hub, tmp_path)
    assert "terms" in caught.value.hint


def test_a_closed_port_is_no_network_and_is_tried_as_often_as_patience_says(hub):
    said = []
    with pytest.raises(HubUnreachable, match="connection failed"):
        look_up(
            "model",
            "a/b",
            endpoint="http://127.0.0.1:9",
            patience=Patience(tries=3, log=said.append),
        )
    assert len(said) == 2


def test_a_hub_that_is_switched_off_is_not_asked(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubUnreachable, match="HF_HUB_OFFLINE"):
        ask(hub)
    assert hub.requests == []


def test_something_that_is_not_the_hub_is_recognised(hub):
    hub.fault("/api/models", status=200, body=b"<html>Please sign in", headers={"Content-Length": "20"})
    with pytest.raises(HubUnreachable, match="is not the hub"):
        ask(hub)


def test_a_fleeting_503_is_tried_again(hub):
    hub.fault("/api/models", status=503, times=2)
    assert len(ask(hub).files) == 2


def test_a_lasting_503_is_reported_with_its_number(hub):
    hub.fault("/api/models", status=503, times=9)
    with pytest.raises(HubUnreachable, match="503"):
        ask(hub)
    assert len(hub.fetched("/api/models")) == 3


def test_retry_after_is_waited_for(hub):
    hub.fault("/api/models", status=429, headers={"Retry-After": "1"})
    said = []
    ask(hub, patience=Patience(tries=3, log=said.append))
    assert said == ["the hub answered 429 Too Many Requests; trying again in 1 s"]


def test_a_retry_after_beyond_patience_is_not_waited_for(hub):
    hub.fault("/api/models", status=429, headers={"Retry-After": "3600"}, times=9)
    with pytest.raises(HubUnreachable, match="asked too often"):
        ask(hub)
    assert len(hub.fetched("/api/models")) == 1


def test_a_wish_ends_a_wait_at_once(hub):
    hub.fault("/api/models", status=429, headers={"Retry-After": "300"}, times=9)

    def cancelled() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        ask(hub, patience=Patience(check=cancelled))


def test_a_fetched_file_is_the_file(hub, tmp_path):
    told = bring(hub, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == WEIGHTS
    assert sum(told) == len(WEIGHTS)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_file_that_is_there_is_not_fetched_again(hub, tmp_path):
    bring(hub, tmp_path)
    assert sum(bring(hub, tmp_path)) == len(WEIGHTS)
    assert len(hub.fetched("resolve")) == 1


def test_a_connection_that_breaks_is_taken_up_where_it_broke(hub, tmp_path):
    hub.fault("resolve", breaks_after=1_200_000)
    hub.fault("resolve", breaks_after=1_000_000)
    told = bring(hub, tmp_path)
    ranges = [headers.get("Range", "") for headers in hub.fetched("resolve")]
    assert (tmp_path / "model.safetensors").read_bytes() == WEIGHTS
    assert ranges[0] == "" and all(asked.startswith("bytes=") for asked in ranges[1:])
    assert sum(told) == len(WEIGHTS)


def test_breaks_that_bring_something_each_time_never_exhaust_patience(hub, tmp_path):
    hub.fault("resolve", breaks_after=1_100_000, times=3)
    bring(hub, tmp_path, patience=Patience(tries=2))
    assert (tmp_path / "model.safetensors").read_bytes() == WEIGHTS


def test_an_interrupted_fetch_goes_on_in_the_next_attempt(hub, tmp_path):
    class Gone(Exception):
        pass

    def stop() -> None:
        raise Gone

    with pytest.raises(Gone):
        bring(hub, tmp_path, patience=Patience(check=stop))
    assert not (tmp_path / "model.safetensors").exists()
    (part,) = tmp_path.iterdir()
    went = part.stat().st_size
    bring(hub, tmp_path)
    assert hub.fetched("resolve")[1]["Range"] == f"bytes={went}-"
    assert (tmp_path / "model.safetensors").read_bytes() == WEIGHTS


def test_the_part_of_another_commit_is_not_continued(hub, tmp_path):
    hub.fault("resolve", breaks_after=2_000_000, times=1)
    with pytest.raises(HubUnreachable):
        bring(hub, tmp_path, patience=Patience(tries=1))
    other = random.Random(1).randbytes(3_500_000)
    hub.repositories[("model", "owner/tiny")].files["model.safetensors"] = other
    bring(hub, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == other


def test_a_server_that_ignores_ranges_makes_the_file_start_again(hub, tmp_path):
    hub.fault("resolve", breaks_after=2_000_000)
    hub.fault("resolve", ignores_range=True)
    told = bring(hub, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == WEIGHTS
    assert sum(told) == len(WEIGHTS) and min(told) < 0


def test_verify_gives_the_sha256_of_a_sound_file(hub, tmp_path):
    bring(hub, tmp_path)
    told = []
    weights = ask(hub).files[1]
    assert verify(tmp_path / weights.name, weights, told.append) == hashlib.sha256(WEIGHTS).hexdigest()
    assert sum(told) == len(WEIGHTS)


@pytest.mark.parametrize("index", [0, 1])
def test_verify_removes_a_file_that_came_damaged(hub, tmp_path, index):
    hub.fault("resolve", damages=True)
    file = ask(hub).files[index]
    bring(hub, tmp_path, file.name)
    with pytest.raises(CorruptData, match=file.name):
        verify(tmp_path / file.name, file, lambda n: None)
    assert not (tmp_path / file.name).exists()


def test_a_file_that_vanished_from_the_hub_is_not_found(hub, tmp_path):
    repository = ask(hub)
    hub.fault("resolve", status=404, headers={"X-Error-Code": "EntryNotFound"})
    with pytest.raises(NotOnHub, match="not on the hub any more"):
        fetch(repository, repository.files[0], tmp_path, lambda n: None, QUICK)


def test_an_answer_that_ends_early_but_looks_whole_is_completed(hub, tmp_path):
    hub.fault("resolve", cuts=1_000_000)
    told = bring(hub, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == WEIGHTS and sum(told) == len(WEIGHTS)
    assert hub.fetched("resolve")[1]["Range"] == "bytes=2500000-"
    assert hub.sent["model.safetensors"] == len(WEIGHTS)


def test_a_hub_that_always_ends_early_is_given_up(hub, tmp_path):
    hub.fault("resolve", cuts=3_500_000, times=9)
    with pytest.raises(HubUnreachable, match="0 of 3,500,000 bytes came"):
        bring(hub, tmp_path)


def test_a_hub_that_falls_silent_is_asked_again_for_the_rest(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    said, silence = [], threading.Event()
    hub.fault("resolve", breaks_after=1_500_000, holds=silence)
    bring(hub, tmp_path, patience=Patience(tries=3, log=said.append))
    silence.set()
    assert said == ["the hub did not answer in time; trying again in 0 s"]
    assert hub.sent["model.safetensors"] == len(WEIGHTS)
    assert (tmp_path / "model.safetensors").read_bytes() == WEIGHTS


def test_a_slow_hub_is_waited_for_as_long_as_something_comes(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.5)
    hub.fault("resolve", drips=0.02)  # a second in all
    told = bring(hub, tmp_path, patience=Patience(tries=1))
    assert len(hub.fetched("resolve")) == 1 and len(told) > 20


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ({"status": 401, "headers": {"X-Error-Code": "GatedRepo"}}, NoAccess),
        ({"status": 403}, NoAccess),
        ({"status": 404, "headers": {"X-Error-Code": "EntryNotFound"}}, NotOnHub),
        ({"status": 429, "headers": {"Retry-After": "3600"}}, HubUnreachable),
        ({"status": 503}, HubUnreachable),
    ],
)
def test_whatever_ends_a_fetch_midway_what_came_is_kept_and_gone_on_from(hub, tmp_path, answer, error):
    hub.fault("resolve", breaks_after=1_200_000)
    hub.fault("resolve", times=3, **answer)
    with pytest.raises(error):
        bring(hub, tmp_path)
    (part,) = tmp_path.iterdir()
    assert part.stat().st_size == 1_200_000
    hub.faults.clear()
    bring(hub, tmp_path)
    assert hub.fetched("resolve")[-1]["Range"] == "bytes=1200000-"
    assert hub.sent["model.safetensors"] == len(WEIGHTS)
    assert (tmp_path / "model.safetensors").read_bytes() == WEIGHTS
