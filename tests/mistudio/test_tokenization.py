"""The page that tokenizes: its preview, what it refuses, and what it shows of a finished one."""

import re
from html import unescape

import pytest
from django.urls import reverse

from jobs.ml.preview import preview
from jobs.ml.token_config import TokenConfig
from jobs.ml.tokenizer import load_tokenizer
from jobs.ml.tokens import TokenShards
from mistudio.forms.dataset import DatasetForm
from mistudio.forms.language_model import LanguageModelForm
from mistudio.forms.tokenization import TokenizationForm
from mistudio.models import Dataset, Tokenization
from mistudio.models.tokenization import SETTINGS
from tests import rows
from tests.main_path import launch, work, write_texts
from tests.ml.tiny import documents, save_model, tiny_model

pytestmark = pytest.mark.django_db

NEW = {"context_length": 32, "held_out": 0.3}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_model(tiny_model("llama"), tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def parts(alice, model_folder, tmp_path):
    """A model and a dataset, really added."""
    model = launch(LanguageModelForm, alice, source=str(model_folder))
    texts = [*documents(60), "<script>alert(1)</script> \x00 " * 3]
    data = launch(DatasetForm, alice, source=str(write_texts(tmp_path / "t.jsonl", texts[::-1])), text_column="text")
    return {"dataset": data.pk, "language_model": model.pk}


def chosen(person, parts, **settings):
    form = TokenizationForm({**parts, **NEW, **settings}, team=person.team, owner=person)
    assert form.is_valid(), form.errors.as_text()
    return form.cleaned_data


def rows_of_the_preview(chosen):
    """What its process answers, without a process."""
    model, config = chosen["language_model"], TokenConfig(**{name: chosen[name] for name in SETTINGS})
    sizes = {"model_context": model.context_length, "embeddings": model.vocab_size}
    return preview(load_tokenizer(model.folder), config, str(chosen["dataset"].folder), **sizes)["rows"]


@pytest.mark.parametrize(
    "settings", [{}, {"layout": "padded", "stride": 4}, {"layout": "padded", "bos": "never", "junk": "strict"}]
)
def test_the_rows_of_the_preview_are_those_of_the_job(alice, parts, settings):
    shown = rows_of_the_preview(chosen(alice, parts, **settings))
    made = launch(TokenizationForm, alice, **parts, **NEW, **settings)
    compared = 0
    for split in ("train", "held_out"):
        shards = TokenShards(made.folder, split)
        seen = [row for row in shown if row["split"] == split and not row["unfinished"]]
        numbers = range(len(seen))
        ids, special = shards.rows(numbers)
        for row, own, mask, length in zip(seen, ids, special, shards.lengths(numbers), strict=True):
            assert [token for _, token, _ in row["tokens"]] == own[:length].tolist()
            assert [bool(kind) for *_, kind in row["tokens"]] == mask[:length].tolist()
            assert row["padding"] == 32 - length
            compared += 1
    assert compared >= 3


def post(client, **data):
    return client.post(reverse("tokenization_new"), {**NEW, **data, "preview": "1"})


def test_a_preview_shows_tokens_with_their_ids_and_makes_nothing(alice, client_of, parts, model_folder):
    answer = post(client_of(alice), **parts, sample="the cat\u202e <b>")
    page = answer.content.decode()
    assert answer.status_code == 200 and not Tokenization.objects.exists()
    for token in load_tokenizer(model_folder)("the cat\u202e <b>", add_special_tokens=False).input_ids:
        assert f"<small>{token}</small>" in page
    assert (
        "<b>" not in re.findall(r'class="pieces".*?</p>', page, re.DOTALL)[0]
        and "\u202e" not in page.split("pieces")[1]
    )


def test_text_of_the_dataset_is_escaped_in_the_preview(alice, client_of, parts):
    page = post(client_of(alice), **parts).content.decode()
    assert "<script>alert" not in page and page.count('class="pieces"') >= 2


def test_the_preview_says_what_the_junk_filter_would_remove(alice, client_of, parts):
    page = post(client_of(alice), **parts, junk="light").content.decode()
    assert "3 characters: control characters" in page
    assert (
        "dropped: short documents" in post(client_of(alice), **parts, junk="aggressive", sample="cat").content.decode()
    )


def test_a_wrong_choice_is_said_in_the_preview_and_at_the_field(alice, client_of, parts):
    page = unescape(post(client_of(alice), **parts, stride="4").content.decode())
    assert page.count("Windows overlap in the padded layout alone.") >= 2


def test_a_preview_of_a_dataset_that_changed_says_so(alice, client_of, parts):
    path = next(Dataset.objects.get(pk=parts["dataset"]).folder.glob("documents-*.parquet"))
    path.write_bytes(path.read_bytes()[:-9])
    page = unescape(post(client_of(alice), **parts).content.decode())
    assert "The dataset has changed since it was added" in page


def test_the_dataset_of_another_team_cannot_be_looked_at(charlie, client_of, parts):
    theirs = {"dataset": rows.dataset(charlie.team).pk, "language_model": rows.language_model(charlie.team).pk}
    for name in parts:
        page = unescape(post(client_of(charlie), **{**theirs, name: parts[name]}).content.decode())
        assert "Select a valid choice" in page and 'class="pieces"' not in page


def test_a_dataset_that_changed_on_disk_is_refused_with_both_sizes(alice, parts):
    form = TokenizationForm({**parts, **NEW}, team=alice.team, owner=alice)
    made = form.launch()
    path = next(made.dataset.folder.glob("documents-*.parquet"))
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(AssertionError, match=f"has {size + 1:,} bytes instead of {size:,}"):
        work(made)


def test_a_finished_one_shows_what_was_counted(alice, client_of, parts):
    made = launch(TokenizationForm, alice, **parts, **NEW, layout="padded", junk="light")
    page = unescape(client_of(alice).get(made.get_absolute_url()).content.decode())
    said = made.statistics
    assert f"{said['vocabulary_used']:,} of {said['vocabulary']:,} ids" in page
    assert "of all places, never counted" in page and "Padded: each document" in page
    assert "control characters" in page and "Documents by their tokens" in page
    assert page.count('<tr><th scope="row"><bdi') == len(said["most_frequent"])
    assert made.n_tokens == said["train"]["tokens"] == TokenShards(made.folder).n_tokens


def test_one_of_before_there_were_such_statistics_has_its_page(alice, client_of):
    old = {"documents": 3, "document_tokens": 50, "tokens": 64, "special_tokens": 4, "dropped_tokens": 2}
    made = rows.tokenization(alice.team, statistics={**old, "mean_tokens_per_document": 16.7})
    page = client_of(alice).get(made.get_absolute_url()).content.decode()
    assert "Statistics" in page and "Most frequent" not in page


def test_the_command_takes_the_same_choices_and_shows_them_again(alice, parts):
    made = launch(TokenizationForm, alice, **parts, **NEW, layout="padded", stride=4, junk="strict", bos="never")
    assert made.command().endswith(
        "--context-length 32 --seed 0 --held-out 0.3 --layout padded --stride 4 --bos never --junk strict"
    )
    plain = launch(TokenizationForm, alice, **parts, **NEW)
    assert plain.command().endswith("--context-length 32 --seed 0 --held-out 0.3")


@pytest.mark.parametrize(
    ("settings", "field", "said"),
    [
        ({"train_on": "user"}, "train_on", "holds plain text"),
        ({"train_on": "user", "chat": "transcript"}, "train_on", "does not tell who says what"),
        ({"layout": "padded", "stride": 30}, "stride", "outside 0 to 16"),
        ({"junk": "very"}, "junk", "very is not one of the available choices"),
    ],
)
def test_what_the_job_would_refuse_the_form_refuses(alice, parts, settings, field, said):
    form = TokenizationForm({**parts, **NEW, **settings}, team=alice.team, owner=alice)
    assert form.launch() is None and said in " ".join(form.errors[field])
