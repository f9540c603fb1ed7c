"""What the pages say of a repository before anything of it is fetched."""

import json
import threading
import time

import pytest
from django.conf import settings
from django.core.management import CommandError, call_command
from django.urls import reverse
from huggingface_hub import constants

from mistudio.views.hub import LOOKING

pytestmark = pytest.mark.django_db

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 3,
    "hidden_size": 32,
    "max_position_embeddings": 64,
    "dtype": "float32",
}
FILES = {
    "config.json": json.dumps(CONFIG).encode(),
    "tokenizer.json": b"{}",
    "model.safetensors": b"w" * 400_000,
    "pytorch_model.bin": b"\x80" * 400_000,
    "modeling_tiny.py": b"import os",
    "onnx/model.onnx": b"x",
}
SAID = {"cardData": {"license": "apache-2.0"}, "safetensors": {"parameters": {"F32": 99_000}, "total": 99_000}}


@pytest.fixture
def hub(hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr("mistudio.views.hub.SECONDS", 60.0)  # the machine may be busy
    hub.add("model", "owner/tiny", dict(FILES), said=SAID)
    return hub


@pytest.fixture
def look(client_of, alice):
    client = client_of(alice)

    def ask(source="owner/tiny", kind="model", **typed):
        response = client.get(reverse("hub_preview", args=[kind]), {"source": source, **typed}, HTTP_HX_REQUEST="true")
        assert response.status_code == 200
        return " ".join(response.content.decode().split())

    return ask


def without(hub, *names, **config):
    files = {name: data for name, data in FILES.items() if name not in names}
    if config:
        files["config.json"] = json.dumps({**CONFIG, **config}).encode()
    hub.add("model", "owner/tiny", files, said=SAID)


def test_a_model_shows_what_it_is_and_what_it_costs_before_anything_is_fetched(hub, look):
    said = look()
    for shown in (hub.repositories[("model", "owner/tiny")].commit, "apache-2.0", "llama", "LlamaForCausalLM"):
        assert shown in said
    assert "Can be added" in said and "99.0 k" in said and "390.8 KiB in 3 files" in said
    assert "safetensors, pickle, ONNX" in said
    fetched = [path for method, path, _ in hub.requests if method == "GET" and "/resolve/" in path]
    assert len(fetched) == 1 and fetched[0].endswith("config.json")


def test_each_file_that_is_left_says_why(hub, look):
    said = look()
    for why in ("can run code when opened", "a program; never run", "in a subfolder"):
        assert why in said


def test_parameters_that_are_not_stated_are_an_estimate_and_say_so(hub, look):
    hub.add("model", "owner/tiny", dict(FILES))
    said = look()
    assert "100 k" in said and "estimate, from the size of the weights" in said and "not stated" in said


def test_a_revision_is_resolved_and_an_unknown_one_is_named(hub, look):
    first = hub.repositories[("model", "owner/tiny")].commit
    hub.repositories[("model", "owner/tiny")].push(tokenizer__json=b'{"a": 1}')
    assert first in look(revision=first) and first not in look()
    assert "no revision “v9”" in look(revision="v9")


def test_pickles_alone_are_refused_with_the_files_there_are(hub, look):
    without(hub, "model.safetensors")
    said = look()
    assert "Cannot be added" in said and "pytorch_model.bin alone" in said and "miStudio reads only safetensors" in said


def test_a_model_without_tokenizer_or_of_an_unknown_family_is_refused(hub, look):
    without(hub, "tokenizer.json")
    assert "the model has no tokenizer" in look()
    without(hub, model_type="no-such-family")
    assert "knows no model type “no-such-family”" in look()
    without(hub, is_encoder_decoder=True)
    assert "is an encoder-decoder" in look()


def test_code_of_the_repository_is_named_and_never_run(hub, look):
    without(hub, model_type="mine", auto_map={"AutoModelForCausalLM": "modeling_tiny.Tiny"})
    said = look()
    assert "Cannot be added" in said and "modeling_tiny.py), which is never run" in said
    without(hub, auto_map={"AutoModelForCausalLM": "modeling_tiny.Tiny"})
    assert "Can be added" in look()  # transformers has this family: the code is not needed


def test_a_model_that_does_not_fit_says_how_much_is_missing(hub, look, monkeypatch):
    monkeypatch.setattr("jobs.ml.disk.RESERVE", 10**15)
    assert "are missing where miStudio keeps its data" in look()


def test_a_limit_of_the_rate_is_shown_with_the_time_it_takes(hub, look, settings):
    settings.DOWNLOAD_RATE = None
    assert "for all downloads together" not in look()
    settings.DOWNLOAD_RATE = 100_000
    assert "100.0 kB/s for all downloads together: 4.0 s or more" in look()


def test_a_gated_model_shows_its_files_and_says_that_they_are_closed(hub, look):
    hub.repositories[("model", "owner/tiny")].gated = True
    said = look()
    assert "Its files are closed to you" in said and "is gated" in said and "390.8 KiB in 3 files" in said


def test_an_unknown_id_suggests_others_and_a_wrong_one_is_not_asked_for(hub, look):
    assert "Did you mean owner/tiny?" in look("owner/tinny")
    hub.requests.clear()
    for wrong in ("a/b/c", "../x", "owner/<b>", "a b"):
        said = look(wrong)
        assert "<b>" not in said
    assert hub.requests == []


def test_a_path_and_nothing_are_not_looked_up(hub, look):
    assert "nothing to look up" in look("/somewhere")
    look("")
    assert hub.requests == []


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"status": 503, "times": 9}, "503"),
        ({"status": 429, "times": 9}, "asked too often"),
        ({"status": 403}, "may not be read"),
        ({"status": 200, "body": b"<html>sign in"}, "is not the hub"),
        ({"status": 200, "body": b'{"sha": 1, "id": "x"}'}, "is not the hub"),
        ({"status": 200, "body": b"[" * 100_000}, "is not the hub"),
        ({"breaks_after": 20}, "cannot be fetched"),
    ],
)
def test_whatever_the_hub_answers_there_are_words_for_it(hub, look, fault, said):
    hub.fault("/api/models", **fault)
    assert said in look()


def test_what_a_repository_says_is_escaped(hub, look):
    evil = "<script>alert(1)</script>"
    files = {**FILES, "config.json": json.dumps({**CONFIG, "architectures": [evil], "dtype": evil}).encode(), evil: b""}
    hub.add("model", "owner/tiny", files, said={"cardData": {"license": evil}, "tags": [evil, 3]})
    said = look()
    assert "<script>" not in said and "&lt;script&gt;" in said


def test_a_config_that_is_no_config_or_far_too_large_is_refused(hub, look):
    hub.add("model", "owner/tiny", {**FILES, "config.json": b"{"})
    assert "config.json is not JSON" in look()
    hub.add("model", "owner/tiny", {**FILES, "config.json": b" " * 5_000_000})
    assert "more than 2,097,152 bytes" in look()


def test_a_hub_that_dawdles_does_not_hold_the_page(hub, look, monkeypatch):
    monkeypatch.setattr("mistudio.views.hub.SECONDS", 0.5)
    hub.fault("/api/models", drips=0.2, status=0)
    began = time.monotonic()
    assert "did not answer in time" in look()
    assert time.monotonic() - began < 2


def test_who_comes_while_all_look_ups_hang_gets_an_answer_in_words(hub, look, monkeypatch):
    monkeypatch.setattr("mistudio.views.hub.SECONDS", -0.5)
    hang = threading.Event()
    hung = [LOOKING.submit(hang.wait, 10) for _ in range(4)]
    assert "The hub has not answered" in look()
    hang.set()
    assert all(one.result(5) for one in hung) and hub.requests == []


def test_a_hub_that_cannot_be_reached_is_told(look, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "the connection failed" in look()


def test_without_javascript_the_button_leads_to_the_same_page_with_the_answer(hub, client_of, alice):
    client = client_of(alice)
    typed = {"source": "owner/tiny", "name": "mine", "look": "1", "submission": "x", "csrfmiddlewaretoken": "secret"}
    moved = client.post(reverse("languagemodel_new"), typed)
    assert moved.status_code == 302 and "secret" not in moved.url
    page = client.get(moved.url).content.decode()
    assert 'value="owner/tiny"' in page and 'value="mine"' in page and "Can be added" in page


def test_the_address_of_the_page_holds_what_was_looked_up(hub, client_of, alice):
    response = client_of(alice).get(reverse("hub_preview", args=["model"]), {"source": "owner/tiny", "revision": ""})
    assert response["HX-Replace-Url"] == f"{reverse('languagemodel_new')}?source=owner%2Ftiny&look=1"


def test_a_dataset_shows_its_files_by_ending(hub, look):
    hub.add("dataset", "owner/texts", {"a.jsonl": b"x" * 3000, "b.jsonl": b"x" * 3000, "README.md": b"# x"})
    said = look("owner/texts", "dataset")
    assert hub.repositories[("dataset", "owner/texts")].commit in said
    assert "2 files, 5.9 KiB" in said and "open" in said
    hub.repositories[("dataset", "owner/texts")].gated = True
    assert "Its files are closed to you" in look("owner/texts", "dataset")


def test_a_look_up_costs_no_query_beyond_the_session(hub, client_of, alice, django_assert_max_num_queries):
    client = client_of(alice)
    with django_assert_max_num_queries(16):
        client.get(reverse("hub_preview", args=["model"]), {"source": "owner/tiny"})


def test_only_those_who_signed_in_may_ask(client, hub):
    assert client.get(reverse("hub_preview", args=["model"]), {"source": "owner/tiny"}).status_code == 302
    assert hub.requests == [] and settings.LOGIN_URL == "login"


def test_the_command_says_the_same(hub, capsys):
    call_command("look_up", "owner/tiny")
    said = capsys.readouterr().out
    for shown in (hub.repositories[("model", "owner/tiny")].commit, "apache-2.0", "390.8 KiB in 3 files", "99.0 k"):
        assert shown in said
    call_command("look_up", "owner/tiny", "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["facts"]["model_type"] == "llama" and len(found["taken"]) == 3
    for wrong in ("owner/tinny", "a/b/c"):
        with pytest.raises(CommandError, match="Did you mean owner/tiny|neither a path nor an id"):
            call_command("look_up", wrong)


def test_looking_up_keeps_all_of_several_chosen_uploads(alice, client_of):
    sent = {"source": "owner/texts", "uploads": ["3", "5"], "look": "1", "csrfmiddlewaretoken": "x"}
    answer = client_of(alice).post(reverse("dataset_new"), sent)
    assert answer.url == "/datasets/new/?source=owner%2Ftexts&uploads=3%2C5&look=1"
