"""A person's token of the hub: it opens what is gated, for this person alone, and is found nowhere."""

import io
import json
import subprocess
import sys

import pytest
from django.conf import settings
from django.contrib.messages import get_messages
from django.core.management import CommandError, call_command
from django.urls import reverse
from huggingface_hub import constants

from jobs.logs import log_path
from jobs.models import Job
from jobs.queue import retry
from jobs.secrets import hidden, secrets_of, strike_out
from jobs.supervise import run_here
from mistudio.forms.language_model import LanguageModelForm
from mistudio.models import HubToken
from mistudio.models.hub_token import token_of
from tests.hub_server import HubServer
from tests.ml.tiny import save_model, tiny_model

pytestmark = pytest.mark.django_db
TOKEN = HubServer.TOKEN
WRONG = "hf_" + "wrong" * 6


@pytest.fixture
def hub(hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr("mistudio.views.hub.SECONDS", 60.0)  # the machine may be busy
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return hub


def said(client, name, **data):
    """What the page says after a button was pressed."""
    response = client.post(reverse(name), data)
    assert response.status_code == 302
    return " ".join(str(message) for message in get_messages(response.wsgi_request))


def whole_database() -> str:
    out = io.StringIO()
    call_command("dumpdata", stdout=out)
    return out.getvalue()


def test_a_stored_token_is_shown_by_its_last_letters_alone(alice, client_of):
    client = client_of(alice)
    assert "Stored the token hf_…open" in said(client, "hubtoken_store", token=f" {TOKEN} ")
    page = client.get(reverse("account")).content.decode()
    assert "hf_…open" in page and TOKEN not in page
    assert token_of(alice.pk) == TOKEN


def test_it_is_in_the_database_only_encrypted_and_in_no_export(alice):
    HubToken.store(alice, TOKEN)
    dump = whole_database()
    [row] = [row for row in json.loads(dump) if row["model"] == "mistudio.hubtoken"]
    assert row["fields"]["shown"] == "hf_…open" and row["fields"]["sealed"]
    assert TOKEN not in dump and TOKEN[3:] not in dump


def test_it_can_be_replaced_and_removed(alice, client_of):
    client = client_of(alice)
    HubToken.store(alice, WRONG)
    said(client, "hubtoken_store", token=TOKEN)
    assert HubToken.objects.count() == 1 and token_of(alice.pk) == TOKEN
    said(client, "hubtoken_remove")
    assert HubToken.objects.count() == 0 and token_of(alice.pk) == ""


@pytest.mark.parametrize("typed", ["", "short", "hf_with space inside it", "hf_" + "x" * 300, "hf_äöüäöüäöü"])
def test_what_can_be_no_token_is_refused_and_not_repeated(alice, client_of, typed):
    response = client_of(alice).post(reverse("hubtoken_store"), {"token": typed})
    page = response.content.decode()
    assert response.status_code == 422 and 'aria-invalid="true"' in page
    assert not typed or typed not in page
    assert HubToken.objects.count() == 0


def test_each_person_has_one_of_their_own(alice, bob, client_of):
    HubToken.store(alice, TOKEN)
    assert token_of(bob.pk) == "" and token_of(None) == ""
    assert "hf_…open" not in client_of(bob).get(reverse("account")).content.decode()
    said(client_of(bob), "hubtoken_remove")
    assert token_of(alice.pk) == TOKEN


def test_a_row_that_is_moved_to_another_person_opens_nothing(alice, bob):
    HubToken.store(alice, TOKEN)
    HubToken.objects.update(user=bob)
    assert token_of(bob.pk) == ""


def test_with_another_secret_key_it_cannot_be_read_and_the_page_says_so(alice, client_of, settings):
    HubToken.store(alice, TOKEN)
    settings.SECRET_KEY = "another one of no value to anybody"
    assert token_of(alice.pk) == ""
    assert "cannot be read any more" in client_of(alice).get(reverse("account")).content.decode()


def test_a_check_asks_the_hub_whose_it_is(hub, alice, client_of):
    client = client_of(alice)
    assert "Store one first" in said(client, "hubtoken_check")
    HubToken.store(alice, TOKEN)
    assert "belongs to alice-on-the-hub, and may read" in said(client, "hubtoken_check")
    HubToken.store(alice, WRONG)
    assert "does not accept this token" in said(client, "hubtoken_check")
    hub.fault("whoami", status=503)
    assert "503" in said(client, "hubtoken_check")
    hub.fault("whoami", status=200, body=b"<html>")
    assert "is not the hub" in said(client, "hubtoken_check")


def test_a_look_up_opens_what_is_gated_for_who_has_the_token(hub, alice, bob, client_of):
    files = {"config.json": b'{"model_type": "llama"}', "tokenizer.json": b"{}", "model.safetensors": b"x"}
    hub.add("model", "owner/gated", files, gated=True)
    HubToken.store(alice, TOKEN)
    HubToken.store(bob, WRONG)

    def look(person):
        url = reverse("hub_preview", args=["model"])
        return client_of(person).get(url, {"source": "owner/gated"}).content.decode()

    assert "gated, and open to you" in look(alice) and "Can be added" in look(alice)
    assert "Its files are closed to you" in look(bob) and "on your account page" in look(bob)
    assert TOKEN not in look(alice) and WRONG not in look(bob)


def test_a_job_is_given_the_token_of_its_owner_whoever_retries_it(alice, bob):
    HubToken.store(alice, TOKEN)
    HubToken.store(bob, WRONG)
    job = Job.objects.create(team=alice.team, owner=alice, kind="add_model", queue="cpu", state="failed")
    job.params = {"source": "owner/tiny", "folder": "/x"}
    again = retry(job)
    assert again.owner == alice and secrets_of(again) == {"HF_TOKEN": TOKEN}
    nobody = Job.objects.create(team=alice.team, kind="add_model", queue="cpu")
    other_kind = Job.objects.create(team=alice.team, owner=alice, kind="sleepy", queue="cpu")
    assert secrets_of(nobody) == secrets_of(other_kind) == {}


def test_a_secret_is_struck_out_of_a_log_that_is_still_written_to(tmp_path):
    path = tmp_path / "log.txt"
    with path.open("ab", buffering=0) as log:
        log.write(f"sending {TOKEN}\n".encode())
        strike_out(path, [TOKEN, ""])
        log.write(b"done\n")
    assert path.read_text() == f"sending {'*' * len(TOKEN)}\ndone\n"
    strike_out(tmp_path / "none", [TOKEN])


def test_what_a_job_says_of_its_end_is_without_its_secret(monkeypatch):
    from jobs.outcome import plain

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert plain({"error": [f"401 for {TOKEN}"]}) == {"error": ["401 for ***"]}
    monkeypatch.setenv("HF_TOKEN", "a")  # no secret: words stay words
    assert hidden("a banana") == "a banana"


def test_no_page_shows_what_looks_like_a_token_in_a_log():
    from jobs.logs import clean

    assert clean(f"with {TOKEN}.") == "with hf_…."
    assert clean("hf_hub_download and hf_xet") == "hf_hub_download and hf_xet"


def test_the_admin_shows_that_there_is_one_and_not_what_it_is(alice, admin_client):
    stored = HubToken.store(alice, TOKEN)
    for url in (
        reverse("admin:mistudio_hubtoken_changelist"),
        reverse("admin:mistudio_hubtoken_change", args=[stored.pk]),
    ):
        page = admin_client.get(url).content.decode()
        assert "hf_…open" in page and TOKEN not in page and stored.sealed not in page


def test_the_command_reads_the_token_from_its_input(hub, alice, monkeypatch, capsys):
    def hub_token(action, typed=""):
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        call_command("hub_token", action, user="alice")
        return capsys.readouterr().out

    assert "has stored no token" in hub_token("show")
    assert "Stored the token hf_…open" in hub_token("store", f"{TOKEN}\n")
    assert "hf_…open, stored" in hub_token("show")
    assert "belongs to alice-on-the-hub" in hub_token("check")
    with pytest.raises(CommandError, match="no token"):
        hub_token("store", "x y\n")
    assert "Removed" in hub_token("remove") and token_of(alice.pk) == ""
    with pytest.raises(CommandError, match="has stored no token"):
        hub_token("check")


def add(person, source):
    form = LanguageModelForm({"source": source}, team=person.team, owner=person)
    model = form.launch()
    assert model is not None, form.errors
    return model


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
def test_a_gated_model_is_fetched_with_the_right_token_which_is_left_nowhere(hub, alice, bob, client_of, tmp_path):
    folder = save_model(tiny_model("llama"), tmp_path / "tiny")
    hub.add("model", "owner/gated", {path.name: path.read_bytes() for path in folder.iterdir()}, gated=True)
    HubToken.store(alice, TOKEN)

    denied = run_here(add(bob, "owner/gated").job)
    assert (denied.state, denied.error_code) == ("failed", "ACCESS_DENIED")
    assert "on your account page" in denied.error_hint
    model = add(alice, "owner/gated")
    job = run_here(model.job)
    assert job.state == "succeeded", job.error_message

    left = [path for path in settings.MISTUDIO_DATA.rglob("*") if path.is_file()]
    assert log_path(job) in left
    # By another process: SQLite's locks on its file end where this one closes it.
    assert subprocess.run(["grep", "-lF", TOKEN, *left], capture_output=True, text=True).stdout == ""
    assert TOKEN not in whole_database()
    for url in (job.get_absolute_url(), model.get_absolute_url(), reverse("account"), reverse("jobs")):
        assert TOKEN not in client_of(alice).get(url).content.decode()
    assert TOKEN not in json.dumps([job.params, job.result])


def sent_tokens(server):
    return [{name.lower(): text for name, text in sent.items()}.get("authorization") for _, _, sent in server.requests]


def test_the_token_is_not_sent_on_to_where_the_hub_keeps_its_files(hub, tmp_path, monkeypatch):
    """The hub answers with the address of another host: who keeps the files there must not learn the token."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with HubServer() as store:
        hub.add("model", "owner/tiny", {"model.safetensors": b"x" * 1000})
        store.add("model", "owner/tiny", {"model.safetensors": b"x" * 1000})
        elsewhere = store.url.replace("127.0.0.1", "localhost")
        commit = hub.repositories[("model", "owner/tiny")].commit
        target = f"{elsewhere}/owner/tiny/resolve/{commit}/model.safetensors"
        hub.fault("/resolve/", status=302, headers={"Location": target})
        code = (
            "import sys; from pathlib import Path; from jobs.ml import hub\n"
            "found = hub.look_up('model', 'owner/tiny')\n"
            "hub.fetch(found, found.files[0], Path(sys.argv[1]), lambda n: None, hub.Patience(tries=1))"
        )
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
        assert (tmp_path / "model.safetensors").exists(), done.stderr
        assert sent_tokens(hub) == [f"Bearer {TOKEN}"] * 2
        assert sent_tokens(store) == [None]
