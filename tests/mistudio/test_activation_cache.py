import json
import re
import shutil
from datetime import timedelta
from html import unescape

import pytest
from django.urls import reverse
from django.utils import timezone

from jobs.ml import disk
from jobs.ml.cache_layout import cache_bytes
from jobs.models import Job, State
from mistudio.forms.activation_cache import ActivationCacheForm
from mistudio.forms.dataset import DatasetForm
from mistudio.forms.language_model import LanguageModelForm
from mistudio.forms.tokenization import TokenizationForm
from mistudio.forms.training import TrainingForm
from mistudio.models import ActivationCache, Sae
from tests import rows
from tests.conftest import manage
from tests.main_path import launch, work, write_texts
from tests.mistudio.test_forms import errors, launched
from tests.ml.tiny import documents, save_model, tiny_model

pytestmark = pytest.mark.django_db
SITE, OTHER = "blocks.1.hook_resid_pre", "blocks.0.hook_resid_post"
RUN = {"site": SITE, "width": 32, "k": 4, "n_tokens": 4096, "batch_tokens": 256}


def busy(row, state=State.RUNNING):
    job = Job.objects.create(team=row.team, kind=row.KIND, queue="gpu", subject=row.subject, state=state)
    row.refresh_from_db()
    return job


def state_of(cache):
    return ActivationCache.objects.get(pk=cache.pk).state


# ---- the form


def test_a_cache_gets_its_settings_a_name_and_a_job(alice):
    tokens = rows.tokenization(alice.team)
    cache = launched(ActivationCacheForm, alice, {"tokenization": tokens.pk, "sites": f"{SITE}, {OTHER}"})
    assert cache.name == "tokens-L0-resid_post+1-bfloat16"
    assert cache.sites == [OTHER, SITE], "in the order of the forward pass"
    assert (cache.n_tokens, cache.stored, cache.split, cache.skip_special) == (10_000, "bfloat16", "train", True)
    assert cache.job.params["sites"] == [OTHER, SITE] and cache.job.params["tokens"] == 10_000
    assert cache.job.kind == "cache_activations" and cache.language_model == tokens.language_model


def test_ticked_boxes_and_words_with_commas_are_the_same_choice(alice, client_of):
    tokens = rows.tokenization(alice.team)
    client = client_of(alice)
    made = client.post("/caches/new/", {"tokenization": tokens.pk, "sites": [SITE, OTHER], "skip_special": "False"})
    cache = ActivationCache.objects.get()
    assert made.url == cache.get_absolute_url()
    assert (cache.sites, cache.skip_special) == ([OTHER, SITE], False)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("sites", "blocks.7.hook_z", "has no site blocks.7.hook_z. It has blocks.0.hook_resid_pre"),
        ("sites", "", "required"),
        ("n_tokens", 0, "Give 1 to 10,000"),
        ("stored", "float8", "not one of the available choices"),
        ("dtype", "float8", "not one of the available choices"),
        ("model_batch", 0, "0 is outside 1 to 1,024"),
        ("skip_special", "perhaps", "not one of the available choices"),
    ],
)
def test_what_cannot_be_cached_is_refused_at_its_field(field, value, said, alice):
    data = {"tokenization": rows.tokenization(alice.team).pk, "sites": SITE, field: value}
    assert said in errors(ActivationCacheForm, alice, data)[field]


def test_a_part_without_tokens_is_refused(alice):
    tokens = rows.tokenization(alice.team, n_held_out_tokens=0)
    said = errors(ActivationCacheForm, alice, {"tokenization": tokens.pk, "sites": SITE, "split": "held_out"})
    assert "has no tokens in this part" in said["n_tokens"]


def test_more_tokens_than_there_are_means_all(alice):
    data = {"tokenization": rows.tokenization(alice.team).pk, "sites": SITE, "n_tokens": 10**9}
    assert launched(ActivationCacheForm, alice, data).n_tokens == 10_000


def test_a_disk_that_is_too_small_is_refused_at_launch_with_the_number_missing(alice, client_of, monkeypatch):
    free = 10**8
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(free, 0, free))
    data = {"tokenization": rows.tokenization(alice.team, n_tokens=10**8).pk, "sites": SITE}
    said = errors(ActivationCacheForm, alice, data)["n_tokens"]
    assert "The cache needs 4.0 GB, but only 100.0 MB are free" in said and "are missing" in said
    assert said in estimate_of(alice, client_of, **data), "before it is started"
    assert not ActivationCache.objects.exists() and not Job.objects.exists()


# ---- what it will take


def estimate_of(alice, client_of, **data):
    return unescape(client_of(alice).get(reverse("estimate_activation_cache"), data).content.decode())


def test_the_estimate_follows_the_choices_with_sizes_for_each_site(alice, client_of):
    tokens = rows.tokenization(alice.team, n_tokens=2**20)
    text = estimate_of(alice, client_of, tokenization=tokens.pk, sites=[SITE, OTHER], stored="float32")
    assert f"{cache_bytes([16, 16], 'float32', 2**20) / 2**20:.1f} MiB at most" in text
    assert text.count("64.0 MiB, 16 wide") == 0 and text.count("72.0 MiB, 16 wide") == 2
    assert "not measured yet with this model" in text
    half = estimate_of(alice, client_of, tokenization=tokens.pk, sites=[SITE], stored="bfloat16")
    assert "40.0 MiB at most" in half and 'id="estimate"' in half


def test_the_time_is_estimated_from_what_was_measured_and_says_where(alice, client_of):
    tokens = rows.tokenization(alice.team)
    rows.training(alice.team, tokenization=tokens, result={"tokens": 1000, "seconds": 2.0})
    text = estimate_of(alice, client_of, tokenization=tokens.pk, sites=SITE)
    assert "500 tokens/s" in text and "training “run”, which also fitted its SAE" in text
    rows.activation_cache(alice.team, "measured", tokenization=tokens, tokens_per_second=2000.0, stored="float32")
    text = estimate_of(alice, client_of, tokenization=tokens.pk, sites=SITE)
    assert "about 5.0 s for 10.0 k tokens at 2.00 k tokens/s" in text and "“measured” with 1 of its sites" in text


def test_an_estimate_of_wrong_choices_names_what_is_wrong(alice, client_of):
    tokens = rows.tokenization(alice.team)
    assert "has no site x" in estimate_of(alice, client_of, tokenization=tokens.pk, sites="x")
    assert "Tokens to read: Give 1 to" in estimate_of(
        alice, client_of, tokenization=tokens.pk, sites=SITE, n_tokens="0"
    )


def test_the_form_shows_an_estimate_from_the_start_also_without_scripts(alice, client_of):
    tokens = rows.tokenization(alice.team)
    client = client_of(alice)
    text = client.get("/caches/new/", {"tokenization": tokens.pk}).content.decode()
    assert "at most" in text and f'value="{SITE}" checked' in text
    answer = client.post("/caches/new/", {"tokenization": tokens.pk, "sites": SITE, "n_tokens": "0"})
    assert answer.status_code == 422 and "Give 1 to 10,000" in answer.content.decode()


def test_other_text_keeps_the_ticked_sites(alice, client_of):
    tokens = rows.tokenization(alice.team)
    page = client_of(alice).get("/caches/new/", {"tokenization": tokens.pk, "sites": [SITE, OTHER]}).content.decode()
    assert page.count(" checked>") == 2


# ---- one cache for one set of activations


def test_the_same_settings_again_lead_to_the_finished_cache(alice, client_of):
    tokens = rows.tokenization(alice.team)
    job = Job.objects.create(team=alice.team, kind="cache_activations", queue="gpu", state=State.SUCCEEDED)
    cache = rows.activation_cache(alice.team, tokenization=tokens, sites=[OTHER, SITE], job=job)
    data = {"tokenization": tokens.pk, "sites": [SITE], "name": cache.name}
    assert "holds these activations already" in estimate_of(alice, client_of, **data)
    assert client_of(alice).post("/caches/new/", data).url == cache.get_absolute_url()
    assert ActivationCache.objects.count() == 1 and Job.objects.count() == 1
    other = client_of(alice).post("/caches/new/", {**data, "stored": "int8", "name": ""})
    assert other.url != cache.get_absolute_url()


def test_the_same_settings_of_an_evicted_cache_make_it_again(alice):
    tokens = rows.tokenization(alice.team)
    cache = rows.activation_cache(alice.team, tokenization=tokens, ready_at=None, evicted_at=timezone.now())
    assert launched(ActivationCacheForm, alice, {"tokenization": tokens.pk, "sites": SITE}) == cache
    assert state_of(cache) == "queued"
    cache.refresh_from_db()
    settled = {name: cache.job.params[name] for name in ("dtype", "model_batch")}
    assert settled == {"dtype": "float32", "model_batch": 16}, "as it was made before, whatever is fastest now"


def test_precision_and_rows_are_open_or_given_and_another_precision_is_another_cache(alice):
    tokens = rows.tokenization(alice.team)
    data = {"tokenization": tokens.pk, "sites": SITE}
    opened = launched(ActivationCacheForm, alice, data)
    assert (opened.job.params["dtype"], opened.job.params["model_batch"]) == ("auto", None)
    given = launched(ActivationCacheForm, alice, {**data, "dtype": "bfloat16", "model_batch": 2})
    assert given != opened
    assert (given.job.params["dtype"], given.job.params["model_batch"]) == ("bfloat16", 2)
    assert "--dtype bfloat16 --model-batch 2" in given.command()
    made = rows.activation_cache(alice.team, tokenization=tokens)
    assert launched(ActivationCacheForm, alice, {**data, "dtype": "float32"}) == made, "that is what was fastest"


# ---- eviction


def with_files(cache):
    cache.folder.mkdir(parents=True)
    (cache.folder / "manifest.json").write_text("{}")
    return cache


def test_evicting_deletes_the_files_keeps_the_page_and_is_undone_with_one_click(
    alice, client_of, django_capture_on_commit_callbacks
):
    cache = with_files(rows.activation_cache(alice.team))
    client = client_of(alice)
    with django_capture_on_commit_callbacks(execute=True):
        answer = client.post(reverse("activationcache_evict", args=[cache.pk]), follow=True)
    text = answer.content.decode()
    assert not cache.folder.exists() and state_of(cache) == "evicted"
    assert "Make again" in text and "its files were deleted" in text and "Norms of" in text
    client.post(reverse("activationcache_make", args=[cache.pk]))
    assert state_of(cache) == "queued"
    assert "Make again" not in client.get(cache.get_absolute_url()).content.decode().split("<h2")[0].split("note")[0]


def test_a_cache_that_a_job_reads_or_writes_is_not_evicted(alice, client_of):
    cache = with_files(rows.activation_cache(alice.team))
    run = rows.training(alice.team, tokenization=cache.tokenization, caches=[cache])
    job = busy(run)
    client, url = client_of(alice), reverse("activationcache_evict", args=[cache.pk])
    assert "is in use by training “run”" in unescape(client.post(url, follow=True).content.decode())
    Job.objects.filter(pk=job.pk).update(state=State.SUCCEEDED)
    own = busy(cache, State.PAUSED)
    assert f"unfinished job {own.pk}" in client.post(url, follow=True).content.decode()
    assert cache.folder.exists() and ActivationCache.objects.get().ready


@pytest.fixture
def three(alice):
    """Caches of 300 kB, used 1, 3 and 2 hours ago."""
    tokens = rows.tokenization(alice.team)
    ago = {"one": 1, "three": 3, "two": 2}
    return {
        name: rows.activation_cache(
            alice.team, name, tokenization=tokens, stored="float32", used_at=timezone.now() - timedelta(hours=hours),
            size_bytes=300_000,
        )
        for name, hours in ago.items()
    }  # fmt: skip


def test_the_least_recently_used_make_room_for_a_new_one_within_the_quota(alice, client_of, three, settings):
    settings.CACHE_QUOTA_BYTES = 1_000_000
    data = {"tokenization": three["one"].tokenization_id, "sites": SITE, "n_tokens": 10_000}  # 400 kB
    text = estimate_of(alice, client_of, **data)
    assert re.search(r"evicted, least recently used first: <a [^>]+><bdi>three</bdi>", text) and "<bdi>two" not in text
    launched(ActivationCacheForm, alice, data)
    assert {name: state_of(cache) for name, cache in three.items()} == {
        "one": "ready",
        "three": "evicted",
        "two": "ready",
    }


def test_what_an_unfinished_job_uses_is_passed_over(alice, three, settings):
    settings.CACHE_QUOTA_BYTES = 1_000_000
    busy(rows.training(alice.team, tokenization=three["three"].tokenization, caches=[three["three"]]))
    launched(ActivationCacheForm, alice, {"tokenization": three["one"].tokenization_id, "sites": SITE})
    assert {name for name, cache in three.items() if state_of(cache) == "evicted"} == {"two"}


def test_a_cache_beyond_the_quota_is_refused_and_nothing_is_evicted(alice, client_of, three, settings):
    settings.CACHE_QUOTA_BYTES = 390_000
    data = {"tokenization": three["one"].tokenization_id, "sites": SITE}
    said = errors(ActivationCacheForm, alice, data)["n_tokens"]
    assert "needs 400.0 kB, which is 10.0 kB more than the quota of 390.0 kB" in said
    assert "more than the quota" in estimate_of(alice, client_of, **data)
    assert all(state_of(cache) == "ready" for cache in three.values())


def test_the_caches_of_other_teams_are_neither_counted_nor_evicted(alice, charlie, three, settings):
    settings.CACHE_QUOTA_BYTES = 500_000
    tokens = rows.tokenization(charlie.team, "theirs")
    launched(ActivationCacheForm, charlie, {"tokenization": tokens.pk, "sites": SITE})
    assert all(state_of(cache) == "ready" for cache in three.values())


# ---- trainings that read it


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ready_at": None, "evicted_at": timezone.now()}, "“cache” was evicted. Make it again on its page"),
        ({"ready_at": None}, "“cache” is not finished"),
        ({"split": "held_out"}, "holds the held-out part, which is never trained on"),
        ({"sites": [OTHER]}, f"has no activations of {SITE}. It has {OTHER}"),
    ],
)
def test_a_cache_that_does_not_fit_a_training_is_refused_with_the_reason(change, said, alice):
    cache = rows.activation_cache(alice.team, **change)
    data = {"tokenization": cache.tokenization_id, "caches": [cache.pk], **RUN}
    assert said in errors(TrainingForm, alice, data)["caches"]


def test_a_cache_of_other_text_or_another_team_is_refused(alice, charlie):
    tokens, theirs = rows.tokenization(alice.team), rows.activation_cache(charlie.team, "theirs")
    cache = rows.activation_cache(alice.team)
    data = {"tokenization": tokens.pk, "caches": [cache.pk], **RUN}
    said = errors(TrainingForm, alice, data)["caches"]
    assert said == "“cache” holds activations of cache-tokens-model, not of tokens-model."
    assert "not one of" in errors(TrainingForm, alice, {**data, "caches": [theirs.pk]})["caches"]


def test_a_training_that_reads_a_cache_counts_as_its_use_once_a_minute(alice):
    old = timezone.now() - timedelta(hours=5)
    cache = rows.activation_cache(alice.team, used_at=old)
    data = {"tokenization": cache.tokenization_id, "caches": [cache.pk], **RUN}
    run = launched(TrainingForm, alice, data)
    assert run.job.params["caches"] == [str(cache.folder)]
    assert f"--cache {cache.name}" in run.command()
    cache.refresh_from_db()
    first = cache.used_at
    assert first > old
    cache.touch()
    cache.refresh_from_db()
    assert cache.used_at == first


def test_without_a_choice_activations_are_computed_while_it_trains(alice, client_of):
    cache = rows.activation_cache(alice.team)
    run = launched(TrainingForm, alice, {"tokenization": cache.tokenization_id, **RUN})
    assert not run.reads and not run.job.params["caches"]
    form = client_of(alice).get("/trainings/new/", {"tokenization": cache.tokenization_id}).context["form"]
    assert [(row, ticked) for row, ticked, _ in form.cache_rows] == [(cache, False)]


def test_the_page_of_a_training_leads_to_its_cache_and_says_when_it_was_evicted(alice, client_of):
    cache = rows.activation_cache(alice.team, ready_at=None, evicted_at=timezone.now())
    run = rows.training(alice.team, tokenization=cache.tokenization, caches=[cache])
    text = client_of(alice).get(run.get_absolute_url()).content.decode()
    assert f'href="{cache.get_absolute_url()}"' in text and "evicted: make it again before this goes on" in text


def test_a_cache_that_a_training_used_is_evicted_rather_than_deleted(alice, client_of):
    cache = rows.activation_cache(alice.team)
    rows.training(alice.team, tokenization=cache.tokenization, caches=[cache])
    client = client_of(alice)
    text = client.post(reverse("activationcache_delete", args=[cache.pk]), follow=True).content.decode()
    assert "is used by training “run”" in unescape(text)
    model = client.post(reverse("languagemodel_delete", args=[cache.language_model_id]), follow=True).content.decode()
    assert "activation cache “cache”" in unescape(model)


# ---- the whole way


@pytest.fixture
def tokens(alice, tmp_path):
    model = launch(LanguageModelForm, alice, source=str(save_model(tiny_model("llama"), tmp_path / "tiny")))
    texts = write_texts(tmp_path / "texts.jsonl", [*documents(200), *["<b>bold</b> & more"] * 20])
    data = launch(DatasetForm, alice, source=str(texts), text_column="text")
    return launch(TokenizationForm, alice, dataset=data.pk, language_model=model.pk, context_length=32, held_out=0.3)


def test_a_cache_is_made_read_verified_repaired_evicted_and_made_again(
    alice, client_of, tokens, django_capture_on_commit_callbacks
):
    cache = launch(ActivationCacheForm, alice, tokenization=tokens.pk, sites=f"{SITE},{OTHER}", stored="float32")
    assert cache.n_stored < cache.n_tokens and cache.tokens_per_second > 0 and cache.damage() == []
    before = {path.name: path.read_bytes() for path in cache.folder.iterdir()}
    client = client_of(alice)
    page = client.get(cache.get_absolute_url(), {"site": SITE}).content.decode()
    assert f'Norms of <span class="mono">{SITE}</span>' in page and "<svg" in page
    assert page.count('class="tok') >= 5, "outliers are shown in their text"
    assert "<b>bold" not in page, "text of the dataset is escaped"

    run = launch(TrainingForm, alice, tokenization=tokens.pk, caches=[cache.pk], **RUN)
    sae = Sae.objects.get(training=run)
    fresh = launch(TrainingForm, alice, tokenization=tokens.pk, **RUN)
    assert sae.fvu == pytest.approx(Sae.objects.get(training=fresh).fvu, rel=0.2)

    [name, *_] = sorted(name for name in before if name.startswith("01-"))
    (cache.folder / name).write_bytes(before[name][:-1] + b"x")
    assert cache.damage() == [f"{name} was changed"]
    client.post(reverse("activationcache_make", args=[cache.pk]))
    cache.refresh_from_db()
    speed = cache.tokens_per_second
    work(cache)
    assert cache.damage() == []
    assert {path.name: path.read_bytes() for path in cache.folder.iterdir()} == before

    with django_capture_on_commit_callbacks(execute=True):
        cache.evict()
    client.post(reverse("activationcache_make", args=[cache.pk]))
    cache.refresh_from_db()
    work(cache)
    assert {path.name: path.read_bytes() for path in cache.folder.iterdir()} == before
    assert cache.state == "ready" and cache.evicted_at is None and speed


def test_a_page_whose_text_is_gone_still_shows_what_was_measured(alice, client_of):
    cache = rows.activation_cache(alice.team)
    text = client_of(alice).get(cache.get_absolute_url()).content.decode()
    assert "Their text cannot be read" in text and "9,700" in text


def test_a_clone_has_all_settings(alice, client_of):
    cache = rows.activation_cache(alice.team, sites=[OTHER, SITE], stored="int8", skip_special=False, n_tokens=5000)
    page = client_of(alice).get(cache.get_absolute_url()).content.decode()
    [address] = re.findall(r'href="(/caches/new/[^"]+)">Clone', page)
    form = client_of(alice).get(unescape(address)).context["form"]
    again = ActivationCacheForm({name: form[name].value() for name in form.fields}, team=alice.team, owner=alice)
    assert again.is_valid() and again.twin == cache


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
def test_the_command_makes_a_cache_and_finds_it_the_second_time(alice, tokens):
    words = ["cache_activations", tokens.name, "--sites", f"{SITE},{OTHER}", "--tokens", "2000", "--json"]
    first = manage(*words, "--team", alice.team.name)
    assert first.returncode == 0, first.stderr
    said = json.loads(first.stdout)
    cache = ActivationCache.objects.get()
    assert (said["id"], said["noun"], said["folder"]) == (cache.pk, "activationcache", str(cache.folder))
    assert said["result"]["tokens"] == cache.n_stored and cache.ready
    second = manage(*words, "--team", alice.team.name)
    assert second.returncode == 0 and json.loads(second.stdout)["job"] == said["job"]
    refused = manage("cache_activations", tokens.name, "--sites", "blocks.9.hook_z", "--json")
    assert refused.returncode == 2 and "has no site" in json.loads(refused.stdout)["errors"]["sites"][0]
