import re
from html import escape, unescape

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from jobs.models import Job, Metric, State
from mistudio.models import Dataset, LanguageModel, Sae, Tokenization, Training
from tests import rows

pytestmark = pytest.mark.django_db
LISTS = ("languagemodels", "datasets", "tokenizations", "activationcaches", "trainings", "saes", "jobs")


def queries(client, url):
    """How many the database is asked for a page."""
    with CaptureQueriesContext(connection) as caught:
        assert client.get(url).status_code == 200
    return len(caught)


@pytest.mark.parametrize("name", ["home", *LISTS])
def test_an_empty_studio_shows_what_would_be_here_and_the_button_that_fills_it(name, alice, client_of):
    answer = client_of(alice).get(reverse(name))
    assert answer.status_code == 200
    assert "<h1" in answer.content.decode()
    if name not in ("home",):
        assert 'class="empty' in answer.content.decode()


def fill(team, n):
    for i in range(n):
        sae = rows.sae(team, f"sae-{n}-{i}", features=2)
        job = Job.objects.create(team=team, kind="sleepy", queue="cpu", title=f"job {n} {i}", state=State.FAILED)
        cache = rows.activation_cache(team, f"cache-{n}-{i}", tokenization=sae.training.tokenization)
        for row in (cache, sae, sae.training, sae.training.tokenization, sae.language_model):
            type(row).objects.filter(pk=row.pk).update(job=job)


@pytest.mark.parametrize("name", ["home", *LISTS])
def test_a_list_asks_as_much_for_twelve_rows_as_for_two(name, alice, client_of):
    client = client_of(alice)
    fill(alice.team, 2)
    client.get(reverse(name))
    few = queries(client, reverse(name))
    fill(alice.team, 12)
    assert queries(client, reverse(name)) <= few
    assert few <= 24


def test_a_training_page_asks_as_much_for_a_thousand_metrics_as_for_ten(alice, client_of):
    run = rows.training(alice.team)
    job = Job.objects.create(team=alice.team, kind="train_sae", queue="gpu", subject=run.subject, state=State.SUCCEEDED)
    client, url = client_of(alice), run.get_absolute_url()

    def measure(first, last):
        Metric.objects.bulk_create(
            Metric(job=job, step=s, values={"fvu": 1 / s, "loss": 1.0}) for s in range(first, last)
        )

    measure(1, 10)
    few = queries(client, url)
    measure(10, 1000)
    assert queries(client, url) == few <= 24


def test_the_features_page_asks_as_much_for_many_as_for_few(alice, client_of):
    client = client_of(alice)
    few, many = (rows.sae(alice.team, f"sae{n}", features=n) for n in (5, 400))
    for sae in (few, many):
        rows.scan(alice.team, f"scan-{sae.pk}", sae=sae)
    asked = [queries(client, reverse("features", args=[sae.pk])) for sae in (few, many)]
    assert asked[0] == asked[1] <= 22


def test_the_page_of_an_sae_asks_once_for_each_kind_of_thing_that_is_built_on_it(alice, client_of):
    sae = rows.sae(alice.team)
    for n in range(3):
        rows.scan(alice.team, f"scan-{n}", sae=sae)
        rows.evaluation(alice.team, f"evaluation-{n}", sae=sae)
        rows.export(alice.team, f"export-{n}", sae=sae)
    with CaptureQueriesContext(connection) as caught:
        answer = client_of(alice).get(sae.get_absolute_url())
    asked = [query["sql"] for query in caught if '"sae_id" = ' in query["sql"] or '"sae_id" IN' in query["sql"]]
    assert len(asked) == len([relation for relation, _ in sae.uses()]) == 3
    assert set(answer.context["users"]) == set(sae.users())


def test_the_page_of_an_sae_asks_as_much_for_many_waiting_jobs_as_for_one(alice, client_of):
    sae = rows.sae(alice.team)
    client = client_of(alice)

    def add(n):
        for _ in range(n):
            scan = rows.scan(alice.team, f"scan-{sae.scans.count()}", sae=sae, ready_at=None)
            job = Job.objects.create(team=alice.team, kind="scan_sae", queue="gpu", subject=scan.subject)
            type(scan).objects.filter(pk=scan.pk).update(job=job)

    add(1)
    few = queries(client, sae.get_absolute_url())
    add(4)
    assert queries(client, sae.get_absolute_url()) == few


def test_a_search_without_a_match_says_so_and_offers_the_way_back(alice, client_of):
    rows.language_model(alice.team, "pythia")
    text = client_of(alice).get("/models/?q=zebra").content.decode()
    assert "zebra" in text and "pythia" not in text and 'href="/models/"' in text


@pytest.mark.parametrize("name", ["tokenizations", "activationcaches", "trainings", "saes"])
def test_a_model_on_which_nothing_is_built_leaves_the_list_empty_but_not_unused(name, alice, client_of):
    rows.activation_cache(alice.team, tokenization=rows.sae(alice.team).training.tokenization)
    unused, url = rows.language_model(alice.team, "unused"), reverse(name)
    text = client_of(alice).get(url, {"language_model": unused.pk}).content.decode()
    assert " of <bdi>unused</bdi></h2>" in text and "none is of this model." in text
    assert f'href="{url}">Show all' in text and " yet" not in text
    both = client_of(alice).get(url, {"language_model": unused.pk, "q": "zebra"}).content.decode()
    assert "none is of this model and has this in its name." in both


def test_a_list_of_datasets_says_where_each_comes_from_and_which_files_can_be_read(alice, client_of):
    assert "md, jsonl, ndjson, json, csv, tsv, parquet, arrow or feather, packed (gz, bz2, xz, zst, zip) or not." in (
        client_of(alice).get(reverse("datasets")).content.decode()
    )
    rows.dataset(alice.team, "sent", source="uploaded: notes.txt", uploaded=["notes.txt"])
    mixture = rows.dataset(alice.team, "mixture", source="")
    for url in (reverse("datasets"), reverse("documents", args=[mixture.pk]), mixture.get_absolute_url()):
        assert "mixed of other datasets" in client_of(alice).get(url).content.decode(), url
    assert "<bdi>uploaded: notes.txt</bdi>" in client_of(alice).get(reverse("datasets")).content.decode()


@pytest.mark.parametrize("page", ["0", "-1", "9999", "x", "1e9"])
def test_a_page_number_from_nowhere_shows_the_nearest_page(page, alice, client_of):
    rows.dataset(alice.team)
    assert client_of(alice).get("/datasets/", {"page": page}).status_code == 200


@pytest.mark.parametrize("q", ["\0", "%00", "'; drop table", "\ud800".encode("utf-8", "surrogatepass"), "x" * 5000])
def test_no_search_words_break_a_list(q, alice, client_of):
    sae = rows.sae(alice.team, features=3)
    for url in ("/models/", "/trainings/", "/jobs/", reverse("features", args=[sae.pk])):
        assert client_of(alice).get(url, {"q": q}).status_code == 200, url


def test_every_object_shows_the_command_that_reproduces_it(alice, client_of):
    sae = rows.sae(alice.team)
    run = sae.training
    for row in (
        sae,
        run,
        run.tokenization,
        run.tokenization.dataset,
        run.language_model,
        rows.activation_cache(alice.team, tokenization=run.tokenization),
        rows.scan(alice.team, sae=sae),
    ):
        text = client_of(alice).get(row.get_absolute_url()).content.decode()
        assert f"mistudio {row.KIND}" in text, row


def test_what_is_in_use_is_not_deleted_and_the_page_says_by_what(alice, client_of):
    sae = rows.sae(alice.team)
    client = client_of(alice)
    for name, model, row in (
        ("languagemodel", LanguageModel, sae.language_model),
        ("dataset", Dataset, sae.training.tokenization.dataset),
        ("tokenization", Tokenization, sae.training.tokenization),
        ("training", Training, sae.training),
    ):
        answer = client.post(reverse(f"{name}_delete", args=[row.pk]), follow=True)
        assert "is used by" in answer.content.decode(), name
        assert model.objects.filter(pk=row.pk).exists()


def test_what_is_not_in_use_is_deleted_with_its_files(alice, client_of, django_capture_on_commit_callbacks):
    model = rows.language_model(alice.team)
    model.folder.mkdir(parents=True)
    (model.folder / "config.json").write_text("{}")
    with django_capture_on_commit_callbacks(execute=True):
        answer = client_of(alice).post(reverse("languagemodel_delete", args=[model.pk]))
    assert answer.url == "/models/"
    assert not model.folder.exists() and not LanguageModel.objects.exists()


def test_nothing_is_deleted_while_its_job_runs(alice, client_of):
    model = rows.language_model(alice.team, ready_at=None)
    job = Job.objects.create(team=alice.team, kind="add_model", queue="cpu", subject=model.subject)
    model.refresh_from_db()
    assert model.job == job
    answer = client_of(alice).post(reverse("languagemodel_delete", args=[model.pk]), follow=True)
    assert f"unfinished job {job.pk}" in answer.content.decode()
    assert LanguageModel.objects.exists()


@pytest.mark.parametrize("make", [rows.language_model, rows.dataset, rows.tokenization, rows.activation_cache])
def test_a_page_follows_its_job_until_that_has_ended_though_its_rows_are_there_before(make, alice, client_of):
    row = make(alice.team)
    job = Job.objects.create(team=alice.team, kind="sleepy", queue="cpu", subject=row.subject, state=State.RUNNING)
    type(row).objects.filter(pk=row.pk).update(job=job)
    client = client_of(alice)
    assert "data-follow" in client.get(row.get_absolute_url()).content.decode()
    Job.objects.filter(pk=job.pk).update(state=State.SUCCEEDED)
    assert "data-follow" not in client.get(row.get_absolute_url()).content.decode()


def test_a_get_changes_nothing(alice, client_of):
    sae = rows.sae(alice.team)
    opened = client_of(alice).get(reverse("sae_delete", args=[sae.pk]))
    assert opened.status_code == 405 and opened.headers["Allow"] == "POST"
    assert "only takes a button" in opened.content.decode()
    assert Sae.objects.exists()


def test_the_policy_lets_in_nothing_inline_and_no_other_host(alice, client_of):
    policy = client_of(alice).get("/").headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy and "unsafe" not in policy


def test_what_failed_can_be_changed_and_tried_again_without_typing_it_all(alice, client_of):
    source = "owner/texts with spaces & more"
    row = rows.dataset(alice.team, source=source, text_column="body", max_documents=50, ready_at=None)
    page = client_of(alice).get(row.get_absolute_url()).content.decode()
    [address] = re.findall(r'href="(/datasets/new/[^"]+)">Change and try again', page)
    form = client_of(alice).get(unescape(address)).content.decode()
    assert f'value="{escape(source)}"' in form and 'value="body"' in form and 'value="50"' in form


def test_a_clone_of_a_training_has_all_its_settings(alice, client_of):
    run = rows.training(alice.team, width=64, lr=0.00123, seed=7, ready_at=timezone.now())
    page = client_of(alice).get(run.get_absolute_url()).content.decode()
    [address] = re.findall(r'href="(/trainings/new/[^"]+)">Clone', page)
    form = client_of(alice).get(unescape(address)).context["form"]
    shown = {name: form[name].value() for name in ("tokenization", "site", "width", "k", "lr", "seed")}
    settings = {"site": run.site, "width": "64", "k": "4", "lr": "0.00123", "seed": "7"}
    assert shown == {"tokenization": str(run.tokenization_id), **settings}


def test_who_is_in_no_team_is_told_so(alice, client_of):
    alice.teams.clear()
    client = client_of(alice)
    assert "You are in no team" in client.get("/").content.decode()
    assert client.get("/models/new/").url == "/"
    assert client.get("/trainings/").status_code == 200


def test_every_page_leads_an_administrator_to_the_row_behind_it(admin_client, alice):
    run = rows.training(alice.team)
    user = admin_client.get("/").wsgi_request.user
    user.teams.set([alice.team])
    page = admin_client.get(run.get_absolute_url()).content.decode()
    assert f'href="/admin/mistudio/training/{run.pk}/change/"' in page


def test_a_failed_job_of_something_deleted_needs_no_look(alice, client_of):
    row = rows.dataset(alice.team, ready_at=None)
    Job.objects.create(
        team=alice.team, kind="add_dataset", queue="cpu", title="typo", state="failed", subject=row.subject
    )
    assert "typo" in client_of(alice).get("/").content.decode()
    row.delete()
    assert "typo" not in client_of(alice).get("/").content.decode()


def test_a_page_asks_as_much_with_many_around_its_object_as_with_few(alice, client_of):
    model, sae = rows.language_model(alice.team), rows.sae(alice.team)
    cache = rows.activation_cache(alice.team, tokenization=sae.training.tokenization)
    client = client_of(alice)
    asked = []
    for around in (2, 8):
        for n in range(around):
            rows.tokenization(alice.team, f"tokens-{around}-{n}", language_model=model)
            rows.scan(alice.team, f"scan-{around}-{n}", sae=sae)
        asked.append([queries(client, row.get_absolute_url()) for row in (model, sae, sae.training, cache)])
    assert asked[0] == asked[1] and max(asked[0]) <= 24
