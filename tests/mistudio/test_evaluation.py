import json
import re
import shutil

import pytest
from django.core.management import call_command
from django.urls import reverse

from jobs.context import Context
from jobs.kinds.evaluate_sae import Params, texts_of
from jobs.models import Job
from mistudio.evaluated import groups
from mistudio.formats import figure, interval
from mistudio.forms.evaluation import EvaluationForm
from mistudio.ingest import evaluation as ingest_evaluation
from mistudio.models import Evaluation, Sae, Tokenization
from tests import rows
from tests.mistudio.test_pages import queries

pytestmark = pytest.mark.django_db


@pytest.fixture
def sae(alice):
    return rows.sae(alice.team, features=3)


@pytest.fixture
def reviews(alice):
    columns = [{"name": name, "type": "text"} for name in ("review", "stars", "author")]
    source = {"source": "owner/reviews", "revision": "c0ffee", "text_column": "review"}
    return rows.dataset(alice.team, "reviews", columns=columns, **source)


def errors(person, data, sae):
    form = EvaluationForm(data, team=person.team, owner=person, sae=sae)
    assert form.launch() is None
    return {name: " ".join(said) for name, said in form.errors.items()}


def launched(person, data, sae):
    form = EvaluationForm(data, team=person.team, owner=person, sae=sae)
    made = form.launch()
    assert made is not None, form.errors.as_text()
    return made


def test_left_empty_it_reads_the_held_out_tokens_of_the_training(alice, sae):
    made = launched(alice, {}, sae)
    assert (made.name, made.split, made.n_tokens) == ("sae-evaluation", "held_out", 1000)
    assert made.tokenization == sae.training.tokenization
    params = made.job.params
    assert made.job.kind == "evaluate_sae" and params["reads"] == sae.reads == [sae.site] and not params["labelled"]
    assert made.command() == (
        f"mistudio evaluate_sae sae --name sae-evaluation --tokenization {made.tokenization} --tokens 1000 "
        "--dtype float32"
    )


def test_of_the_part_that_was_trained_on_as_many_tokens_are_there(alice, sae):
    made = launched(alice, {"split": "train", "n_tokens": "50000"}, sae)
    assert (made.split, made.n_tokens, made.job.params["split"]) == ("train", 10_000, "train")
    assert "--split train" in made.command()


def test_labels_come_from_the_source_of_the_dataset_at_its_commit(alice, sae, reviews):
    data = {"labelled": reviews.pk, "label_column": "stars", "second_label_column": "author", "absorption": "on"}
    made = launched(alice, data, sae)
    assert made.text_column == "review"
    told = {name: value for name, value in made.job.params.items() if name.startswith("label") and value}
    assert told == {
        "labelled": "owner/reviews", "labelled_split": "train", "labelled_revision": "c0ffee", "label_column": "stars"
    }  # fmt: skip
    assert made.job.params["absorption"] is True
    assert "--label-column stars --second-label-column author --absorption" in made.command()


@pytest.mark.parametrize(
    ("data", "field", "said"),
    [
        (
            {"label_column": "rating"},
            "label_column",
            "There is no column “rating”. “reviews” has review, stars, author.",
        ),
        ({}, "label_column", "Name the column with the labels. “reviews” has review, stars, author."),
        ({"label_column": "stars", "text_column": "body"}, "text_column", "There is no column “body”."),
    ],
)
def test_a_column_that_is_not_there_is_refused_with_those_that_are(alice, sae, reviews, data, field, said):
    assert said in errors(alice, {"labelled": reviews.pk, **data}, sae)[field]


def test_a_column_without_a_dataset_asks_for_the_dataset(alice, sae):
    assert "Choose the dataset that has the column “stars”" in errors(alice, {"label_column": "stars"}, sae)["labelled"]


@pytest.fixture
def sent(alice):
    """A table of texts and their kinds, as it was uploaded."""
    columns = [{"name": name, "type": "text"} for name in ("text", "kind")]
    made = rows.dataset(
        alice.team, "sent", source="uploaded: a.csv", uploaded=["a.csv"], text_column="text", columns=columns
    )
    made.upload_folder.mkdir(parents=True)
    lines = [f"words of {('plants', 'stones')[n % 2]} {n},{('plant', 'stone')[n % 2]}" for n in range(60)]
    (made.upload_folder / "a.csv").write_text("\n".join(["text,kind", *lines]))
    return made


def test_labels_of_an_uploaded_table_are_read_from_its_files(alice, sae, sent):
    made = launched(alice, {"labelled": sent.pk, "label_column": "kind"}, sae)
    texts = texts_of(Params(**made.job.params), 8, Context())
    assert len(texts) == 60
    assert all((kind == "plant") == ("plants" in text) for text, kind, _ in texts)


def test_of_uploaded_files_that_are_gone_no_labels_are_left_and_the_form_says_so(alice, sae, sent):
    shutil.rmtree(sent.upload_folder)
    said = errors(alice, {"labelled": sent.pk, "label_column": "kind"}, sae)["labelled"]
    assert "the texts alone were kept" in said and "Upload it again" in said and "more than 1.0 GiB" in said


def test_tokens_of_another_model_and_datasets_of_strangers_are_refused(alice, charlie, sae):
    other = rows.tokenization(alice.team, "other")
    assert "tokenization" in errors(alice, {"tokenization": other.pk}, sae)
    theirs = rows.dataset(charlie.team, "theirs")
    assert "labelled" in errors(alice, {"labelled": theirs.pk, "label_column": "y"}, sae)


def test_nothing_held_out_offers_the_ways_out(alice, sae):
    type(sae.training.tokenization).objects.update(n_held_out_tokens=0)
    sae.refresh_from_db()
    said = errors(alice, {}, sae)["tokenization"]
    assert "Choose the part that was trained on, or tokenize again" in said


def test_a_finished_job_fills_the_row_however_often_it_says_so(alice, sae):
    row = rows.evaluation(alice.team, sae=sae, ready_at=None, result={}, evaluated_tokens=None)
    job = Job.objects.create(team=alice.team, kind="evaluate_sae", queue="gpu", subject=row.subject)
    result = rows.evaluation(alice.team, "filled", sae=sae).result
    for _ in range(2):
        ingest_evaluation(job, result)
    row.refresh_from_db()
    assert row.ready and row.evaluated_tokens == 1000 and row.figures["l0"]["value"] == 4.2


def test_the_pages_show_figures_with_intervals_and_what_was_not_measured(alice, client_of, sae):
    row = rows.evaluation(alice.team, sae=sae)
    text = client_of(alice).get(row.get_absolute_url()).content.decode()
    for said in (
        "0.913",
        "[0.905, 0.921]",
        "explained_variance/2",
        "it was not asked for",
        "bootstrap over 80 documents",
    ):
        assert said in text
    assert "<b>news</b>" not in text and "&lt;b&gt;news&lt;/b&gt;" in text
    assert reverse("feature", args=[sae.pk, 2]) in text
    text = client_of(alice).get(sae.get_absolute_url()).content.decode()
    assert "[0.905, 0.921]" in text and reverse("evaluation_new", args=[sae.pk]) in text


def test_an_evaluation_that_is_not_ready_shows_its_job_and_no_figures(alice, client_of, sae):
    made = launched(alice, {}, sae)
    text = client_of(alice).get(made.get_absolute_url()).content.decode()
    assert "95 % interval" not in text and "mistudio evaluate_sae" in text
    assert made.name in client_of(alice).get(sae.get_absolute_url()).content.decode()


def test_a_figure_that_is_not_there_says_not_measured(alice, client_of, sae):
    row = rows.evaluation(alice.team, sae=sae)
    row.result["figures"]["ce_recovered"] |= {"value": None, "low": None, "high": None}
    row.save()
    assert "not measured" in client_of(alice).get(row.get_absolute_url()).content.decode()


def test_the_form_is_offered_and_starts_one_evaluation_however_often_it_is_sent(alice, client_of, sae):
    client, url = client_of(alice), reverse("evaluation_new", args=[sae.pk])
    page = client.get(url)
    assert page.status_code == 200
    data = {"submission": page.context["form"].initial["submission"], "n_tokens": "500"}
    assert client.post(url, data).url == client.post(url, data).url
    assert Evaluation.objects.get().n_tokens == 500
    assert client.post(url, {"n_tokens": "0"}).status_code == 422


def test_an_sae_with_evaluations_is_not_deleted_without_them(alice, client_of, sae):
    row, other = (rows.evaluation(alice.team, name, sae=sae) for name in ("first", "second"))
    client = client_of(alice)
    text = client.post(reverse("sae_delete", args=[sae.pk]), follow=True).content.decode()
    assert "evaluation “first”" in text and "evaluation “second”" in text
    client.post(reverse("evaluation_delete", args=[row.pk]))
    assert Evaluation.objects.get() == other and other.figures == row.figures
    assert Sae.objects.get() == sae and Tokenization.objects.get() == row.tokenization, "what was measured stays"
    client.post(reverse("evaluation_delete", args=[other.pk]))
    client.post(reverse("sae_delete", args=[sae.pk]))
    assert not Sae.objects.exists()


def test_pages_ask_as_much_for_ten_evaluations_as_for_one(alice, client_of, sae):
    client = client_of(alice)
    one = rows.evaluation(alice.team, sae=sae)
    client.get(sae.get_absolute_url())
    few, page = queries(client, sae.get_absolute_url()), queries(client, one.get_absolute_url())
    for n in range(9):
        rows.evaluation(alice.team, f"more{n}", sae=sae)
    assert queries(client, sae.get_absolute_url()) == few <= 24
    assert queries(client, one.get_absolute_url()) == page <= 14


def test_figures_stand_in_groups_in_the_order_of_their_meaning(alice):
    figures = rows.evaluation(alice.team).figures | {f"tpp_{n}": rows.figure(0.1) for n in (100, 2, 20)}
    found = {group.title: [row.label for row in group.rows] for group in groups(figures)}
    assert [bool(row.meaning) for row in groups(figures)[-1].rows] == [False, True, False, False]
    assert list(found) == ["Reconstruction", "Sparsity", "Predictions", "Dictionary", "Labelled texts"]
    assert found["Labelled texts"] == [
        "Accuracy by latents, k = 1",
        *(f"TPP, latents taken out: {n}" for n in (2, 20, 100))
    ]  # fmt: skip


def test_what_a_training_measured_has_the_names_and_units_of_an_evaluation(alice, client_of):
    row = rows.sae(alice.team, metrics={"ce_clean": 2.191, "ce_sae": 2.41, "ce_tokens": 32_487})
    page = client_of(alice).get(row.get_absolute_url()).content.decode()
    said = " ".join(re.sub(r"<[^>]+>", " ", page).split())
    assert "CE of the model nats per token 2.191 CE with the SAE 2.410 CE tokens 32,487" in said


def test_small_figures_keep_their_places_and_tiny_ones_their_digits():
    assert interval({"low": -0.0015, "high": 0.0263}) == "[−0.002, 0.026]"
    assert (figure(0.0001234), figure(41.72), figure(1203.9), figure(None)) == ("1.23e-4", "41.7", "1,204", "–")
    assert interval({"low": None, "high": None}) == interval(None) == ""


@pytest.mark.parametrize(("name", "column"), [("reviews", "stars"), ("sent", "kind")])
def test_the_command_takes_what_the_form_takes(alice, sae, reviews, sent, name, column, capsys):
    call_command(
        "evaluate_sae", sae.name, "--tokens", "300", "--labelled", name, "--label-column", column, "--no-wait",
        "--json", "--team", alice.team.name,
    )  # fmt: skip
    told = json.loads(capsys.readouterr().out)
    assert told["noun"] == "evaluation"
    row = Evaluation.objects.get(pk=told["id"])
    assert (row.n_tokens, row.labelled.name, row.label_column) == (300, name, column)
