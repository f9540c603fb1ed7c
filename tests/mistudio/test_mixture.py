import json
import re
from html import unescape
from io import StringIO

import pytest
from django.core.exceptions import ValidationError
from django.core.management import call_command
from django.db.models import ProtectedError

from jobs.ml.documents import read_conversations, read_documents
from jobs.models import Job
from mistudio.forms.byte_size import ByteSizeField
from mistudio.forms.dataset import DatasetForm
from mistudio.forms.mixture import MixtureForm
from mistudio.models import Dataset, DatasetPart
from mistudio.models.artifact import InUse
from tests import rows
from tests.main_path import launch, write_texts
from tests.mistudio.test_pages import queries

pytestmark = pytest.mark.django_db


@pytest.fixture
def parts(alice, tmp_path):
    """Two datasets of alice that are there, a hundred documents each."""
    return [
        launch(
            DatasetForm,
            alice,
            source=str(write_texts(tmp_path / f"{name}.jsonl", [f"{name} number {n}" for n in range(100)])),
            text_column="text",
        )
        for name in ("tales", "codes")
    ]


def mixture(team, *parts, **fields):
    row = rows.dataset(team, fields.pop("name", "mix"), source="", **fields)
    for part in parts:
        DatasetPart.objects.create(mixture=row, dataset=part, weight=2.5, max_bytes=10_000)
    return row


def errors(person, **data):
    form = MixtureForm(data, team=person.team, owner=person)
    assert form.launch() is None
    assert not Job.objects.filter(kind="mix_datasets").exists()
    return {name: " ".join(said) for name, said in form.errors.items()}


def test_a_mixture_is_a_dataset_with_the_figures_of_its_parts(alice, parts):
    tales, codes = parts
    made = launch(
        MixtureForm,
        alice,
        part_0=tales.pk,
        weight_0="3",
        part_2=codes.pk,
        documents_2="20",
        ends="all",
        deduplicate="on",
    )
    assert (made.name, made.job.kind, made.source) == ("tales-codes", "mix_datasets", "")
    assert made.n_documents == made.statistics["documents"] == 120
    found = list(read_documents(made.folder))
    assert sum(text.startswith("tales") for text in found) == 100
    first, second = made.made_of
    assert (first.n_documents, first.n_duplicates, first.ended) == (100, 0, "ran out")
    assert (second.n_documents, second.ended) == (20, "reached its limit")
    assert first.share + second.share == pytest.approx(1)
    assert made.damage() == []


def test_the_page_of_a_mixture_names_its_parts_with_links_and_the_command(alice, parts, client_of):
    made = launch(
        MixtureForm, alice, part_0=parts[0].pk, part_1=parts[1].pk, weight_1="0.5", bytes_1="5 kB", name="both"
    )
    text = client_of(alice).get(made.get_absolute_url()).content.decode()
    for part in parts:
        assert f'href="{part.get_absolute_url()}"' in text
    assert "mixed of 2 datasets" in text
    assert "mistudio mix_datasets tales=1 codes=0.5,5000B --name both" in text
    used = client_of(alice).get(parts[0].get_absolute_url()).content.decode()
    assert f'href="{made.get_absolute_url()}"' in used and "Used by" in used


def test_a_part_of_a_mixture_is_not_deleted_and_the_mixture_is(alice, parts):
    made = mixture(alice.team, *parts)
    with pytest.raises(InUse, match="used by dataset “mix”"):
        parts[0].delete_with_files()
    with pytest.raises(ProtectedError):
        parts[0].delete()
    made.delete_with_files()
    assert not DatasetPart.objects.exists()
    parts[0].delete_with_files()
    assert Dataset.objects.count() == 1


def test_the_same_again_fills_the_form_with_the_parts(alice, client_of):
    part = rows.dataset(alice.team, "tales")
    made = mixture(alice.team, part, seed=5, ends="all", deduplicate=False)
    page = client_of(alice).get(made.get_absolute_url()).content.decode()
    [address] = re.findall(r'href="(/datasets/mix/[^"]+)">Clone', page)
    form = client_of(alice).get(unescape(address)).context["form"]
    shown = {name: form[name].value() for name in ("part_0", "weight_0", "bytes_0", "seed", "ends")}
    assert shown == {"part_0": str(part.pk), "weight_0": "2.5", "bytes_0": "10000", "seed": "5", "ends": "all"}
    assert not form["deduplicate"].value()


def test_rows_are_added_without_losing_what_was_typed(alice, client_of):
    part = rows.dataset(alice.team, "tales")
    client = client_of(alice)
    page = client.get("/datasets/mix/")
    assert page.context["form"].n_rows == 3
    answer = client.post(
        "/datasets/mix/", {"part_1": part.pk, "weight_1": "x7", "name": "mine", "more": "4"}, follow=True
    )
    form = answer.context["form"]
    assert (form.n_rows, form["part_1"].value(), form["weight_1"].value(), form["name"].value()) == (
        4, str(part.pk), "x7", "mine"
    )  # fmt: skip
    assert not Job.objects.exists()
    wild = client.post("/datasets/mix/", {"part_999": "x", "more": "9" * 30}, follow=True)
    assert wild.status_code == 200 and wild.context["form"].n_rows == 32


def test_what_is_wrong_is_told_by_its_field(alice, charlie):
    tales, codes = rows.dataset(alice.team, "tales"), rows.dataset(alice.team, "codes")
    unready, foreign = rows.dataset(alice.team, "unready", ready_at=None), rows.dataset(charlie.team, "foreign")
    assert "Choose the datasets" in errors(alice)["part_0"]
    assert "is a part already" in errors(alice, part_0=tales.pk, part_1=tales.pk)["part_1"]
    assert "no weight" in errors(alice, part_0=tales.pk, part_1=codes.pk, weight_1="0")["weight_1"]
    assert "Choose the dataset of this row" in errors(alice, part_0=tales.pk, weight_2="2")["part_2"]
    assert "no number of bytes" in errors(alice, part_0=tales.pk, bytes_0="many")["bytes_0"]
    for choice in (unready, foreign):
        assert "not one of the available choices" in errors(alice, part_0=choice.pk)["part_0"]


def test_the_form_asks_as_much_for_many_datasets_and_rows_as_for_few(alice, client_of):
    client, asked = client_of(alice), []
    for around, address in ((2, "/datasets/mix/"), (12, "/datasets/mix/?rows=20")):
        for n in range(around):
            rows.dataset(alice.team, f"texts-{around}-{n}")
        asked.append(queries(client, address))
    assert asked[0] == asked[1] <= 14


def test_the_page_of_a_mixture_asks_as_much_for_many_parts_as_for_few(alice, client_of):
    client, asked = client_of(alice), []
    for around in (2, 12):
        made = mixture(
            alice.team, *(rows.dataset(alice.team, f"{around}-{n}") for n in range(around)), name=f"m{around}"
        )
        asked.append(queries(client, made.get_absolute_url()))
    assert asked[0] == asked[1] <= 20


def test_without_a_dataset_the_page_says_what_to_do_first(alice, client_of):
    text = client_of(alice).get("/datasets/mix/").content.decode()
    assert "No dataset is ready" in text and 'href="/datasets/new/"' in text


def command(*words):
    out, err = StringIO(), StringIO()
    code = 0
    try:
        call_command("mix_datasets", *words, "--json", "--no-wait", stdout=out, stderr=err)
    except SystemExit as ended:
        code = ended.code
    return code, json.loads(out.getvalue())


def test_the_command_takes_parts_by_name_with_weights_and_limits(alice):
    for name in ("tales", "a=b"):
        rows.dataset(alice.team, name)
    code, said = command(
        "tales=3,5MB,100documents", "a=b=0.5", "--ends", "all", "--deduplicate", "--team", alice.team.name
    )
    assert code == 0
    made = Dataset.objects.get(pk=said["id"])
    assert [(p.dataset.name, p.weight, p.max_bytes, p.max_documents) for p in made.made_of] == [
        ("tales", 3, 5_000_000, 100),
        ("a=b", 0.5, None, None),
    ]
    assert made.deduplicate and made.job.params["parts"][0]["weight"] == 3
    assert made.command() == (
        "mistudio mix_datasets tales=3,100documents,5000000B a=b=0.5 --name tales-a=b --ends all --deduplicate"
    )


@pytest.mark.parametrize(
    ("words", "field", "said"),
    [
        (["nowhere"], "parts", "No dataset “nowhere” by name or id"),
        (["tales=much"], "weight_0", "Enter a number"),
        (["tales=1,many"], "bytes_0", "no number of bytes"),
        (["tales", "tales"], "part_1", "is a part already"),
    ],
)
def test_the_command_names_the_part_that_is_wrong(alice, words, field, said):
    rows.dataset(alice.team, "tales")
    code, told = command(*words, "--team", alice.team.name)
    assert code == 2 and said in " ".join(told["errors"][field])


@pytest.mark.parametrize(
    ("said", "size"),
    [
        ("", None),
        ("17", 17),
        ("500 MB", 500_000_000),
        ("1.5GiB", 3 * 2**29),
        ("2 kb", 2000),
        ("1,000", 1000),
        ("3 TB", 3 * 10**12),
    ],
)
def test_sizes_are_read_as_people_write_them(said, size):
    assert ByteSizeField(required=False).clean(said) == size


@pytest.mark.parametrize("said", ["many", "5 XB", "0", "-5", "1e6", "9" * 19, "9" * 999, "5 5"])
def test_a_size_that_is_none_is_refused(said):
    with pytest.raises(ValidationError):
        ByteSizeField(required=False).clean(said)


def test_conversations_are_shown_by_who_speaks_and_escaped(alice, tmp_path, client_of):
    path = tmp_path / "chat.jsonl"
    said = [{"from": "human", "value": "<script>alert(1)</script>"}, {"from": "gpt", "value": "No."}]
    path.write_text(json.dumps({"conversations": said}))
    made = launch(DatasetForm, alice, source=str(path))
    assert made.conversations and made.text_column == "conversations"
    assert [[m["role"] for m in talk] for talk in read_conversations(made.folder)] == [["user", "assistant"]]
    text = client_of(alice).get(made.get_absolute_url()).content.decode()
    assert "<dt>user</dt>" in text and "<dt>assistant</dt>" in text and "ShareGPT conversations" in text
    assert "<script>alert" not in text and "&lt;script&gt;alert(1)" in text


def test_choices_of_reading_reach_the_job_and_the_command(alice, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("words")
    form = DatasetForm(
        {"source": str(path), "skip_broken": "on", "deduplicate": "on", "encoding": "cp1252", "max_bytes": "2 kB"},
        team=alice.team,
        owner=alice,
    )
    made = form.launch()
    assert made is not None, form.errors
    asked = made.job.params
    assert (asked["skip_broken"], asked["deduplicate"], asked["encoding"], asked["max_bytes"]) == (
        True,
        True,
        "cp1252",
        2000,
    )
    assert made.command().endswith("--max-bytes 2000 --deduplicate --encoding cp1252 --skip-broken")


def test_an_encoding_that_is_none_is_refused_by_its_field(alice, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("words")
    form = DatasetForm({"source": str(path), "encoding": "klingon"}, team=alice.team, owner=alice)
    assert form.launch() is None
    assert "no encoding of text" in form.errors["encoding"][0]
