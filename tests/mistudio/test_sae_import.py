"""SAEs of other libraries: looked at, imported, scanned, exported, pushed and fetched again."""

import json
import os
import shutil
import signal
import threading
import zipfile

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.core.management import call_command
from django.urls import reverse
from huggingface_hub import constants

from jobs.models import Job, State
from jobs.queue import request_cancel, retry
from jobs.supervise import run_here
from mistudio.forms.dataset import DatasetForm
from mistudio.forms.export import ExportForm
from mistudio.forms.language_model import LanguageModelForm
from mistudio.forms.sae import SaeForm
from mistudio.forms.scan import ScanForm
from mistudio.forms.tokenization import TokenizationForm
from mistudio.models import Export, HubToken, Sae, Upload
from tests import rows
from tests.hub_server import HubServer
from tests.main_path import launch, outcome, walk, work, write_texts
from tests.mistudio.test_pages import queries
from tests.ml import foreign
from tests.ml.foreign import D, M
from tests.ml.tiny import documents, save_model, tiny_model

pytestmark = pytest.mark.django_db
SITES = [{"name": f"blocks.{n}.{hook}", "width": D} for n in range(5) for hook in ("hook_resid_post", "hook_mlp_out")]
WIDE = [{"name": "blocks.3.hook_resid_post", "width": 99}, {"name": "hook_embed", "width": D}]


@pytest.fixture(autouse=True)
def without_peers(monkeypatch):
    monkeypatch.delenv("MISTUDIO_PEERS", raising=False)


@pytest.fixture
def model(team):
    return rows.language_model(team, "gpt2", source="openai-community/gpt2", sites=SITES)


@pytest.fixture
def there(tmp_path):
    foreign.saelens(tmp_path / "my-sae", "jumprelu")
    return tmp_path / "my-sae"


def bring(person, source, model, **fields):
    return launch(SaeForm, person, source=str(source), language_model=model.pk, **fields)


def errors(person, source, model, **fields):
    form = SaeForm({"source": str(source), "language_model": model.pk, **fields}, team=person.team, owner=person)
    assert form.launch() is None
    return {name: " ".join(texts) for name, texts in form.errors.items()}


def test_an_imported_sae_is_a_row_with_what_its_files_say(alice, client_of, there, model):
    sae = bring(alice, there, model)
    assert (sae.name, sae.architecture, sae.d_in, sae.width) == ("my-sae", "jumprelu", D, M)
    assert sae.reads == ["blocks.3.hook_resid_post"] and sae.training is None
    assert sae.damage() == []
    page = client_of(alice).get(sae.get_absolute_url()).content.decode()
    assert "SAELens" in page and "so its files say" in page and "not measured" in page
    assert "mistudio import_sae" in page


def test_a_foreign_sae_is_scanned_and_browsed_like_any_other(alice, client_of, tmp_path):
    model = launch(LanguageModelForm, alice, source=str(save_model(tiny_model("llama"), tmp_path / "model")))
    texts = write_texts(tmp_path / "texts.jsonl", documents(200))
    data = launch(DatasetForm, alice, source=str(texts), text_column="text")
    tokens = launch(TokenizationForm, alice, dataset=data.pk, language_model=model.pk, context_length=32, held_out=0.3)
    foreign.D, old = 32, foreign.D
    try:
        foreign.dictionary_learning(tmp_path / "theirs", "BatchTopKSAE")
    finally:
        foreign.D = old
    sae = bring(alice, tmp_path / "theirs", model, site="blocks.1.hook_resid_post")
    scan = launch(ScanForm, alice, sae=sae.pk, tokenization=tokens.pk, n_tokens=1500)
    assert scan.n_alive > 0 and sae.features.count() == M
    client = client_of(alice)
    assert client.get(reverse("features", args=[sae.pk])).status_code == 200
    strongest = sae.features.order_by("-max_activation").first()
    assert client.get(strongest.get_absolute_url()).content.decode().count('class="tok') > 10
    assert client.get(sae.get_absolute_url()).status_code == 200

    export = launch(ExportForm, alice, sae=sae.pk, format="neuronpedia")
    with zipfile.ZipFile(export.path) as archive:
        [batch] = [name for name in archive.namelist() if name.endswith("batch-0.json")]
        written = json.loads(archive.read(batch))["features"]
    assert len(written) == scan.n_alive and written[0]["activations"][0]["tokens"]
    assert export.certificate == {} and "Certificate" not in client.get(export.get_absolute_url()).content.decode()


@pytest.mark.parametrize(
    ("fields", "sites", "field", "said"),
    [
        ({}, WIDE, "site", "has 99 dimensions, but the SAE has 12 there. It fits hook_embed."),
        ({}, WIDE[1:], "site", "has no site blocks.3.hook_resid_post"),
        ({"site": "blocks.9.hook_mlp_out"}, SITES, "site", "has no site blocks.9.hook_mlp_out"),
        ({"writes": "blocks.3.hook_mlp_out"}, SITES, "writes", "It rebuilds what it reads. Leave this empty."),
        ({"path": "../x"}, SITES, "path", "leads out of the source"),
        ({"path": "inner"}, SITES, "path", "There is no folder inner."),
    ],
)
def test_what_does_not_fit_is_refused_at_its_field(alice, there, team, fields, sites, field, said):
    model = rows.language_model(team, sites=sites)
    assert said in errors(alice, there, model, **fields)[field]
    assert not Sae.objects.exists() and not Job.objects.exists()


def test_a_hostile_archive_is_refused_before_there_is_a_row(alice, there, model, tmp_path):
    archive = tmp_path / "evil.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.write(there / "cfg.json", "cfg.json")
        file.writestr("../../sae_weights.safetensors", b"x")
    assert "a path that leads out of the archive" in errors(alice, archive, model)["source"]


def test_a_job_that_refuses_the_weights_says_why_and_leaves_no_sae(alice, there, model):
    (there / "sae_weights.safetensors").write_bytes(b"\xff" * 100)
    form = SaeForm({"source": str(there), "language_model": model.pk}, team=alice.team, owner=alice)
    ending = outcome(form.launch().job)
    assert ending.how == "failed" and "it is no safetensors file, or was cut off" in ending.error["message"]
    assert not (Sae.objects.get().folder / "cfg.json").exists()


def test_the_page_shows_what_is_there_before_anything_is_imported(alice, client_of, there, model):
    client, url = client_of(alice), reverse("sae_new")
    assert client.get(url).status_code == 200
    page = client.post(url, {"source": str(there), "language_model": model.pk, "preview": "1"}).content.decode()
    for said in ("SAELens", "JumpReLU", "40 latents", "blocks.3.hook_resid_post", "gpt2"):
        assert said in page, said
    assert not Sae.objects.exists()


def test_an_archive_that_came_to_be_looked_at_is_chosen_when_the_form_comes_back(
    alice, client_of, there, model, tmp_path
):
    shutil.make_archive(str(tmp_path / "sent"), "zip", there)
    client, asked = client_of(alice), {"source": "", "language_model": model.pk}
    file = SimpleUploadedFile("sent.zip", (tmp_path / "sent.zip").read_bytes())
    page = client.post(reverse("sae_new"), {**asked, "file": file, "preview": "1"})
    kept = Upload.objects.get()
    assert "JumpReLU" in page.content.decode() and page.context["form"]["upload"].value() == str(kept.pk)
    client.post(reverse("sae_new"), {**asked, "upload": str(kept.pk)})
    assert Sae.objects.get().uploaded == "sent.zip" and Upload.objects.count() == 1


def test_an_archive_may_come_with_the_form(alice, client_of, there, model, tmp_path):
    shutil.make_archive(str(tmp_path / "sent"), "zip", there)
    file = SimpleUploadedFile("sent.zip", (tmp_path / "sent.zip").read_bytes())
    answer = client_of(alice).post(reverse("sae_new"), {"source": "", "language_model": model.pk, "file": file})
    sae = Sae.objects.get()
    assert answer.url == sae.get_absolute_url() and (sae.source, sae.uploaded) == ("sent.zip", "sent.zip")
    assert work(sae).width == M
    assert not sae.upload_folder.exists()
    page = client_of(alice).get(reverse("sae_new")).content.decode()
    assert Upload.objects.get().name in page, "what was sent can be chosen again"


def test_what_is_no_archive_is_not_taken(alice, client_of, model):
    file = SimpleUploadedFile("sae.pt", b"x" * 100)
    answer = client_of(alice).post(reverse("sae_new"), {"source": "", "language_model": model.pk, "file": file})
    assert answer.status_code == 422 and "sae.pt is no archive" in answer.content.decode()


@pytest.mark.parametrize("format", ["saelens", "gemma_scope", "llama_scope", "dictionary_learning"])
def test_an_export_can_be_downloaded_and_shows_its_certificate(alice, client_of, there, model, format):
    sae, client = bring(alice, there, model, licence="mit"), client_of(alice)
    client.post(reverse("export_new", args=[sae.pk]), {"format": format})
    export = work(Export.objects.get())
    assert export.certificate["holds"]
    page = client.get(export.get_absolute_url()).content.decode()
    assert "was not asked" in page and "256" in page
    answer = client.get(reverse("export_download", args=[export.pk]))
    assert b"".join(answer.streaming_content)[:2] == b"PK"
    assert answer["Content-Disposition"] == f'attachment; filename="my-sae-{format}.zip"'
    page = client.get(sae.get_absolute_url()).content.decode()
    assert "by formula" in page and export.name in page
    assert export.damage() == []
    again = launch(
        SaeForm,
        alice,
        source=str(shutil.copy(export.path, there.parent)),
        language_model=model.pk,
        site="blocks.3.hook_resid_post",
    )
    assert again.width == M


def test_a_row_with_the_name_that_its_format_had_is_exported_and_verified(alice, client_of, model, tmp_path):
    foreign.llamascopium_linear(tmp_path / "theirs")
    sae = bring(alice, tmp_path / "theirs", model, site="blocks.3.hook_resid_post")
    assert sae.imported["format"] == "llamascopium"
    sae.imported |= {"format": "llama_scope", "label": "Llama Scope"}
    sae.save()
    assert "Llama Scope" in client_of(alice).get(sae.get_absolute_url()).content.decode()
    export = launch(ExportForm, alice, sae=sae.pk, format="llama_scope")
    assert export.certificate["holds"] and export.damage() == sae.damage() == []


def test_an_export_names_the_module_that_puts_out_what_enters_the_block(alice, team):
    sites = [
        {"name": f"blocks.{n}.hook_resid_{end}", "width": 16, "path": f"model.layers.{n}", "side": side}
        for n in range(2)
        for end, side in (("pre", "input"), ("post", "output"))
    ]
    sae = rows.sae(team, reads=["blocks.1.hook_resid_pre"])
    sae.language_model.sites = sites
    assert rows.export(team, sae=sae).params()["module"] == "model.layers.0"


def test_the_card_of_a_trained_sae_says_on_how_much_its_figures_were_measured(alice, tmp_path):
    texts = write_texts(tmp_path / "texts.jsonl", documents(240))
    sae, _ = walk(alice, save_model(tiny_model("llama"), tmp_path / "llama"), texts, architecture="batchtopk")
    export = launch(ExportForm, alice, sae=sae.pk, format="saelens", licence="cc-by-4.0")
    assert export.certificate["holds"] and export.certificate["active"] > 0
    with zipfile.ZipFile(export.path) as archive:
        card = archive.read("README.md").decode()
        config = json.loads(archive.read("blocks.1.hook_resid_pre/cfg.json"))
    assert config["architecture"] == "jumprelu", "which is what a BatchTopK SAE is once it is trained"
    assert f"| Explained variance | {sae.explained_variance:.4f} | {sae.evaluated_tokens:,} held-out tokens |" in card
    assert 'license: "cc-by-4.0"' in card and "| Trained on |" in card and "| Language model |" in card


def test_a_format_that_cannot_hold_it_is_not_offered_and_is_refused_with_the_reason(alice, client_of, there, model):
    sae = bring(alice, there, model)
    page = client_of(alice).get(reverse("export_new", args=[sae.pk])).content.decode()
    assert 'value="sparsify"' not in page and "sparsify has no jumprelu." in page
    form = ExportForm({"sae": sae.pk, "format": "sparsify"}, team=alice.team, owner=alice)
    assert "It can be exported as saelens" in form.errors["format"][0]
    form = ExportForm({"sae": sae.pk, "format": "neuronpedia"}, team=alice.team, owner=alice)
    assert "Scan its features first" in form.errors["format"][0]
    form = ExportForm({"sae": sae.pk, "format": "onnx"}, team=alice.team, owner=alice)
    assert "“onnx” is no format. Give one of saelens, " in form.errors["format"][0]


def test_an_sae_goes_with_its_exports_folder_and_not_before_its_exports(alice, client_of, there, model):
    sae, client = bring(alice, there, model), client_of(alice)
    export = launch(ExportForm, alice, sae=sae.pk)
    client.post(reverse("sae_delete", args=[sae.pk]))
    assert Sae.objects.exists(), "its export is there"
    folder = export.folder
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("django.db.transaction.on_commit", lambda work, using=None: work())
        client.post(reverse("export_delete", args=[export.pk]))
        client.post(reverse("sae_delete", args=[sae.pk]))
    assert not Sae.objects.exists() and not folder.exists() and not sae.room.exists()


def test_the_page_of_an_sae_asks_as_much_for_many_exports_as_for_few(alice, client_of):
    client, sae = client_of(alice), rows.sae(alice.team)
    for n in range(2):
        rows.export(alice.team, f"few-{n}", sae=sae)
    few = queries(client, sae.get_absolute_url())
    for n in range(12):
        rows.export(alice.team, f"many-{n}", sae=sae)
    assert queries(client, sae.get_absolute_url()) == few <= 24


# ---- commands


def said(capsys, *words):
    call_command(*words)
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
def test_commands_import_and_export(alice, there, model, capsys):
    made = said(capsys, "import_sae", str(there), "--language-model", "gpt2", "--json", "--user", "alice")
    assert (made["noun"], made["result"]["width"]) == ("sae", M)
    sent = said(capsys, "export_sae", "my-sae", "--format", "saelens", "--json", "--user", "alice")
    assert sent["certificate"]["holds"] and sent["archive"].endswith("my-sae-saelens.zip")
    with pytest.raises(SystemExit):
        call_command("import_sae", str(there), "--language-model", "gpt2", "--site", "blocks.0.hook_nothing")
    assert "site: gpt2 has no site blocks.0.hook_nothing" in capsys.readouterr().err


# ---- the hub


@pytest.fixture
def hub(hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("mistudio.views.hub.SECONDS", 60.0)  # the machine may be busy
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return hub


@pytest.mark.django_db(transaction=True)
def test_what_is_pushed_to_the_hub_can_be_fetched_from_it(hub, alice, client_of, there, model, monkeypatch):
    HubToken.store(alice, HubServer.TOKEN)
    sae = bring(alice, there, model, licence="mit")
    form = ExportForm({"sae": sae.pk, "format": "saelens", "repository": "alice/saes"}, team=alice.team, owner=alice)
    job = run_here(form.launch().job)
    assert job.state == State.SUCCEEDED, job.error_message
    stored = hub.repositories["model", "alice/saes"]
    assert stored.private and set(stored.files) == {
        "README.md",
        "blocks.3.hook_resid_post/cfg.json",
        "blocks.3.hook_resid_post/sae_weights.safetensors",
    }
    card = stored.files["README.md"].decode()
    assert 'library_name: "saelens"' in card and 'license: "mit"' in card and "## Certificate" in card
    export = Export.objects.get()
    assert export.result["commit"] == stored.commit
    assert "alice/saes" in client_of(alice).get(export.get_absolute_url()).content.decode()

    client = client_of(alice)
    found = {"source": "alice/saes", "language_model": model.pk, "name": "back"}
    page = client.post(reverse("sae_new"), {**found, "preview": "1"}).content.decode()
    assert stored.commit in page and "JumpReLU" in page and "40 latents" in page
    client.post(reverse("sae_new"), found)
    monkeypatch.setenv("HF_TOKEN", HubServer.TOKEN)
    back = work(Sae.objects.get(name="back"))
    assert (back.commit, back.licence, back.width) == (stored.commit, "mit", M)
    assert back.path == "blocks.3.hook_resid_post"


@pytest.fixture
def token(monkeypatch):
    """In the environment, as the process of a job has its owner's."""
    monkeypatch.setenv("HF_TOKEN", HubServer.TOKEN)


def test_without_a_token_nothing_is_pushed(hub, alice, there, model):
    sae = bring(alice, there, model)
    form = ExportForm({"sae": sae.pk, "format": "saelens", "repository": "alice/saes"}, team=alice.team, owner=alice)
    assert outcome(form.launch().job).error["code"] == "ACCESS_DENIED" and not hub.repositories


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
def test_a_push_is_cancelled_while_the_hub_takes_its_time(hub, alice, there, model, settings):
    """Its process hears it and ends well; nothing is committed, and nothing is left behind."""
    settings.STOP_GRACE_SECONDS = 60  # then it would be killed
    HubToken.store(alice, HubServer.TOKEN)
    sae = bring(alice, there, model)
    hub.fault("/lfs/", holds=(held := threading.Event()))
    form = ExportForm({"sae": sae.pk, "format": "saelens", "repository": "alice/saes"}, team=alice.team, owner=alice)
    asked = []

    def on_look(job):
        if not asked and any(method == "PUT" for method, *_ in hub.requests):
            asked.append(request_cancel(job))

    job = run_here(form.launch().job, on_look)
    held.set()
    assert asked == [True] and (job.state, job.exit_code) == (State.CANCELLED, 0)
    assert hub.repositories["model", "alice/saes"].files == {}
    export = Export.objects.get()
    assert not (export.folder / "files").exists() and not export.ready

    job = run_here(retry(job))
    assert job.state == State.SUCCEEDED and len(hub.repositories["model", "alice/saes"].files) == 3


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
def test_a_push_whose_process_is_killed_ends_with_the_same_files(hub, alice, there, model):
    HubToken.store(alice, HubServer.TOKEN)
    sae = bring(alice, there, model)
    data = {"sae": sae.pk, "format": "saelens", "repository": "alice/calm"}
    assert run_here(ExportForm(data, team=alice.team, owner=alice).launch().job).state == State.SUCCEEDED

    hub.requests.clear()
    hub.large.clear()
    hub.fault("/lfs/", holds=(held := threading.Event()))
    struck = []

    def on_look(job):
        if not struck and any(method == "PUT" for method, *_ in hub.requests):
            struck.append(job.pid)
            os.kill(job.pid, signal.SIGKILL)
            held.set()

    form = ExportForm({**data, "repository": "alice/struck"}, team=alice.team, owner=alice)
    job = run_here(form.launch().job, on_look)
    assert struck and job.state == State.QUEUED and not Export.objects.get(job=job).ready
    assert hub.repositories["model", "alice/struck"].files == {}
    job = run_here(job)
    assert (job.state, job.attempt) == (State.SUCCEEDED, 2), job.error_message
    calm, again = (hub.repositories["model", f"alice/{name}"] for name in ("calm", "struck"))
    assert {**again.files, "README.md": b""} == {**calm.files, "README.md": b""} and len(again.files) == 3
    export = Export.objects.get(job=job)
    assert sorted(path.name for path in export.folder.iterdir()) == ["manifest.json", export.archive]
    assert export.damage() == []


def test_without_the_right_to_write_a_push_says_so_and_the_archive_stays(hub, token, alice, there, model):
    sae = bring(alice, there, model)
    form = ExportForm({"sae": sae.pk, "format": "saelens", "repository": "others/saes"}, team=alice.team, owner=alice)
    export = form.launch()
    refused = outcome(export.job).error
    assert "does not let this token write to others/saes" in refused["message"]
    assert "your account page" in refused["hint"]
    assert list(export.folder.glob("*.zip"))


def test_a_card_that_is_there_already_stays(hub, token, alice, there, model):
    stored = hub.add("model", "alice/saes", {"README.md": b"mine"})
    launch(ExportForm, alice, sae=bring(alice, there, model).pk, format="saelens", repository="alice/saes")
    assert stored.files["README.md"] == b"mine" and len(stored.files) == 3
