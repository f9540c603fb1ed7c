import re
from html import unescape

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from jobs.ml.document_statistics import DocumentStatistics
from jobs.ml.documents import DocumentWriter
from mistudio.figures.lengths import length_histogram
from mistudio.views import document as pages
from tests import rows

pytestmark = pytest.mark.django_db


def dataset(team, texts, name="texts", messages=None):
    """A dataset with files and statistics as its job leaves them."""
    statistics = DocumentStatistics()
    for text in texts:
        statistics.add(text)
    row = rows.dataset(team, name, n_documents=len(texts), statistics=statistics.summary())
    row.folder.mkdir(parents=True)
    if messages:
        kind = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
        table = pa.table({"index": range(len(texts)), "text": texts, "messages": pa.array(messages, kind)})
        parquet.write_table(table, row.folder / "documents-00000.parquet")
        return row
    writer = DocumentWriter(row.folder)
    for text in texts:
        writer.add(text)
    writer.finish_shard()
    return row


@pytest.fixture
def hundred(alice):
    return dataset(alice.team, [f"document number {n} {'x' * n}" for n in range(100)])


@pytest.fixture
def client(alice, client_of):
    return client_of(alice)


def opened(client, row, number=None, **query):
    address = reverse("documents", args=[row.pk]) if number is None else reverse("document", args=[row.pk, number])
    return client.get(address, query)


def numbers(answer):
    return [row.number for row in answer.context["rows"]]


def test_pages_lead_through_all_documents_and_each_has_an_address(client, hundred):
    seen, address = [], reverse("documents", args=[hundred.pk])
    while address:
        answer = client.get(address)
        seen += numbers(answer)
        text = answer.content.decode()
        [*following] = re.findall(r'rel="next" href="([^"]+)"', text)
        address = reverse("documents", args=[hundred.pk]) + unescape(following[0]) if following else ""
    assert seen == list(range(100))
    assert f'href="{reverse("document", args=[hundred.pk, 99])}"' in text


def test_a_document_is_shown_whole_with_its_neighbours(client, hundred):
    text = opened(client, hundred, 42).content.decode()
    assert f"document number 42 {'x' * 42}" in text and "61 characters" in text
    assert reverse("document", args=[hundred.pk, 41]) in text and reverse("document", args=[hundred.pk, 43]) in text
    assert 'rel="prev"' not in opened(client, hundred, 0).content.decode()
    assert 'rel="next"' not in opened(client, hundred, 99).content.decode()


def test_a_document_that_is_not_there_is_not_found(client, hundred):
    assert opened(client, hundred, 100).status_code == 404
    assert client.get(f"/datasets/{hundred.pk}/documents/{10**30}/").status_code == 404
    assert client.get(f"/datasets/{hundred.pk}/documents/100/next/?q=x").status_code == 302


def test_a_search_marks_what_it_found_and_says_how_much_it_looked_at(client, hundred):
    answer = opened(client, hundred, q="NUMBER 7")
    text = answer.content.decode()
    assert numbers(answer) == [7, *range(70, 80)]
    assert "<mark>number 7</mark>" in text and "Searched all 100 documents." in text
    assert f"{reverse('document', args=[hundred.pk, 70])}?q=NUMBER+7" in text


def test_a_search_that_stops_early_never_looks_complete(client, hundred, monkeypatch):
    full = opened(client, hundred, q="document")
    assert "Searched documents 0 to 24 of 100. A page shows 25." in " ".join(full.content.decode().split()).replace(
        "\n", " "
    )
    search = pages.DocumentRows.search
    monkeypatch.setattr(pages.DocumentRows, "search", lambda *args: search(*args, seconds=0))
    monkeypatch.setattr("jobs.ml.document_rows.groups", split_groups(pages, hundred))
    text = " ".join(opened(client, hundred, q="number 99").content.decode().split())
    assert "None matches so far." in text and "Go on from document 50" in text
    again = opened(client, hundred, q="number 99", start=50)
    assert numbers(again) == [99] and "Search from the start" in again.content.decode()


def split_groups(pages, row):
    """The same documents in two files of one row group each."""
    texts = [text.as_py() for _, some in pages.DocumentRows(row.folder).texts(0) for text in some]
    for path in row.folder.glob("documents-*"):
        path.unlink()
    writer = DocumentWriter(row.folder)
    for n, text in enumerate(texts):
        writer.add(text)
        if n == 49:
            writer.finish_shard()
    writer.finish_shard()
    from jobs.ml.document_rows import groups

    return groups.__wrapped__


def test_a_bar_of_the_histogram_leads_to_the_documents_it_counts(client, hundred):
    text = opened(client, hundred).content.decode()
    bars = re.findall(r'<a href="(\?[^"]+)" aria-label="(\d+) to (\d+) characters: (\d+) documents"', text)
    assert sum(int(count) for *_, count in bars) == 100 and len(bars) == 3
    for address, low, high, count in bars:
        answer = client.get(reverse("documents", args=[hundred.pk]) + unescape(address))
        found = answer.context["rows"]
        assert all(int(low) <= row.characters <= int(high) for row in found)
        assert len(found) == min(int(count), pages.PAGE)
        assert (
            f'aria-label="{low} to {high} characters: {count} documents" aria-current="true"' in answer.content.decode()
        )


def test_every_figure_says_over_how_many_documents_it_is(client, alice):
    english = "The quick brown fox jumps over the lazy dog near the river. "
    row = dataset(alice.team, [english * 3 + (str(n) if n % 2 else "") for n in range(1200)])
    text = " ".join(opened(client, row).content.decode().split())
    assert "all 1,200 documents" in text and "a sample of 1,000 of 1,200" in text
    assert "<dt>English</dt><dd>1,000" in text and "Among all 1,200</dt><dd>599 came before" in text
    assert "Estimated by py3langid" in text


def test_what_an_older_dataset_did_not_measure_says_so(client, alice):
    row = dataset(alice.team, ["some words"])
    type(row).objects.update(statistics={})
    assert "Not measured" in opened(client, row).content.decode()


@pytest.mark.parametrize("query", [{"shortest": "-5"}, {"shortest": "x"}, {"start": "9" * 40}, {"q": "y" * 300}])
def test_a_filter_that_makes_no_sense_filters_nothing_and_says_so(query, client, hundred):
    answer = opened(client, hundred, **query)
    assert answer.status_code == 200 and numbers(answer) == list(range(pages.PAGE))
    assert answer.context["filter"].errors


def test_a_place_beyond_the_end_leads_back(client, hundred):
    assert "There is no document from number" in opened(client, hundred, start=500).content.decode()
    assert "beyond the last one" in opened(client, hundred, start=500, q="x").content.decode()


def test_a_long_document_comes_in_parts_that_lose_nothing(client, alice, monkeypatch):
    monkeypatch.setattr(pages, "PART", 100)
    words = "".join(f"word{n:03d} " for n in range(40))
    row = dataset(alice.team, [words])
    shown = ""
    for part in (1, 2, 3, 4):
        answer = opened(client, row, 0, part=part)
        shown += "".join(message["content"] for message in answer.context["said"])
    assert shown == words
    assert "Characters 101–200 of 320" in opened(client, row, 0, part=2).content.decode()
    for odd in ("0", "99", "x", "-1", "9" * 50):
        assert opened(client, row, 0, part=odd).status_code == 200


def test_a_conversation_is_shown_by_who_said_what_and_cut_as_one(client, alice, monkeypatch):
    said = [
        {"role": "user", "content": "Why is the sky blue?"},
        {"role": "assistant", "content": "Because <b>light</b>."},
    ]
    row = dataset(alice.team, ["Why is the sky blue?\nBecause <b>light</b>."], messages=[said])
    text = opened(client, row, 0).content.decode()
    assert "<bdi>user</bdi>" in text and "<bdi>assistant</bdi>" in text and "2 messages" in text
    assert "&lt;b&gt;light" in text and "<b>light" not in text
    assert pages.cut(said, 15, 25) == [
        {"role": "user", "content": "blue?"},
        {"role": "assistant", "content": "Becau"},
    ]
    assert "Because" in opened(client, row, q="because").content.decode()


def test_texts_are_data_and_never_markup(client, alice):
    nasty = "<script>alert(1)</script>\x00\x07\u202egpj.exe שלום <img src=x onerror=alert(1)>"
    row = dataset(alice.team, [nasty, "plain"])
    for answer in (
        opened(client, row),
        opened(client, row, 0),
        opened(client, row, q="<script>"),
        opened(client, row, 0, q="</p><b>"),
    ):
        text = answer.content.decode()
        assert "<script>alert" not in text and "<img src=x" not in text and "\x07" not in text and "\u202e" not in text
    assert "<mark>&lt;script&gt;</mark>alert" in opened(client, row, q="<script>").content.decode()
    assert 'dir="auto"' in text and "U+202E" in text


def test_the_next_match_is_looked_for_when_it_is_asked_for(client, hundred):
    address = reverse("document_next", args=[hundred.pk, 7])
    assert client.get(address, {"q": "number 7"}).url == f"{reverse('document', args=[hundred.pk, 70])}?q=number+7"
    assert client.get(address, {"q": "zebra"}).url == f"{reverse('documents', args=[hundred.pk])}?q=zebra&start=100"


def test_the_page_of_a_dataset_leads_to_its_documents(client, hundred):
    text = client.get(hundred.get_absolute_url()).content.decode()
    assert f'href="{reverse("documents", args=[hundred.pk])}"' in text


def test_before_a_dataset_is_ready_or_without_its_files_the_page_says_so(client, alice):
    unready, lost = rows.dataset(alice.team, "unready", ready_at=None), rows.dataset(alice.team, "lost")
    assert "They appear when the dataset is ready" in opened(client, unready).content.decode()
    assert "not where they were written" in opened(client, lost).content.decode()
    assert opened(client, lost, 0).status_code == 404


def test_documents_of_another_team_do_not_exist(hundred, charlie, client_of):
    other = client_of(charlie)
    for name, arguments in (("documents", []), ("document", [0]), ("document_next", [0])):
        assert other.get(reverse(name, args=[hundred.pk, *arguments]), {"q": "x"}).status_code == 404


def test_a_page_of_documents_asks_the_database_as_much_for_many_as_for_few(client, alice, hundred):
    few = dataset(alice.team, ["one"], "few")
    asked = []
    for row in (few, hundred):
        with CaptureQueriesContext(connection) as caught:
            assert opened(client, row).status_code == opened(client, row, 0).status_code == 200
        asked.append(len(caught))
    assert asked[0] == asked[1] <= 34


def previous(client, row, number, **query):
    return client.get(reverse("document_previous", args=[row.pk, number]), query, follow=True)


def test_the_previous_match_is_one_click_away_across_files(client, hundred):
    split_groups(pages, hundred)
    assert 'data-key="prev"' in opened(client, hundred, 77, q="number 4").content.decode()
    for number, match in ((77, 49), (49, 48), (41, 40), (40, 4)):
        answer = previous(client, hundred, number, q="number 4")
        assert answer.redirect_chain[0][0] == f"{reverse('document', args=[hundred.pk, match])}?q=number+4"
    first = previous(client, hundred, 4, q="number 4")
    assert first.context["document"].number == 4 and "None before this one matches." in first.content.decode()
    assert previous(client, hundred, 10**15, q="number 99").context["document"].number == 99


@pytest.mark.parametrize("name", ["document_next", "document_previous"])
def test_a_match_of_nothing_is_not_found(name, client, hundred):
    assert client.get(reverse(name, args=[hundred.pk, 5])).status_code == 404


def test_a_search_backwards_that_runs_out_of_time_says_how_far_it_looked(client, hundred, monkeypatch):
    split_groups(pages, hundred)
    last_before = pages.DocumentRows.last_before
    monkeypatch.setattr(pages.DocumentRows, "last_before", lambda *args: last_before(*args, documents=20))
    answer = previous(client, hundred, 90, q="number 4")
    assert answer.context["document"].number == 90
    assert "None from document 50 up to this one matches." in answer.content.decode()


def test_a_histogram_of_nothing_says_so_and_one_range_has_one_bar():
    def address(low, high):
        return f"?{low}-{high}"

    assert "not measured yet" in length_histogram({}, title="Lengths", address=address)
    one = length_histogram({"64–127": 5}, title="Lengths <b>", address=address, chosen=(64, 127))
    assert one.count("<a ") == 1 and 'href="?64-127"' in one and "Lengths &lt;b&gt;" in one
