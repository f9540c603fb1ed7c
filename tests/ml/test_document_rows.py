import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from jobs.ml import document_rows, documents
from jobs.ml.document_rows import DocumentRows, Wanted
from jobs.ml.document_sample import NAME, sample
from jobs.ml.documents import DocumentWriter
from jobs.ml.store import read_json, write_json


def written(folder, texts, group=10, shard=3):
    """Several row groups in several files."""
    writer = DocumentWriter(folder)
    for n, text in enumerate(texts):
        writer.add(text)
        if (n + 1) % group == 0:
            writer.write_group()
        if (n + 1) % (group * shard) == 0:
            writer.finish_shard()
    writer.finish_shard()
    return DocumentRows(folder)


@pytest.fixture
def hundred(tmp_path):
    return written(tmp_path, [f"document {n} {'x' * n}" for n in range(100)])


def test_any_document_is_found_by_its_number_across_groups_and_files(hundred):
    assert len(hundred) == 100 and len({group.path for group in hundred.groups}) == 4
    for number in (0, 9, 10, 29, 30, 99):
        assert hundred.document(number).text == f"document {number} {'x' * number}"
    for number in (-1, 100):
        with pytest.raises(IndexError):
            hundred.document(number)


def test_a_page_goes_on_over_the_ends_of_groups_and_files(hundred):
    rows = hundred.page(25, 12)
    assert [row.number for row in rows] == list(range(25, 37))
    assert rows[0].characters == len("document 25 ") + 25
    assert hundred.page(95, 12)[-1].number == 99 and hundred.page(100, 12) == []


def test_a_page_reads_only_the_groups_it_shows(hundred, monkeypatch):
    read = []
    column = document_rows.column
    monkeypatch.setattr(document_rows, "column", lambda group, name: read.append(group.first) or column(group, name))
    hundred.page(42, 5)
    hundred.document(77)
    assert set(read) == {40, 70}


def test_a_search_finds_what_is_there_in_any_case_and_shows_the_place(tmp_path):
    rows = written(tmp_path, ["nothing", "a" * 200 + " Größe ÉTÉ " + "b" * 400, "grösse", "100 % (sure)"])
    [hit] = rows.search(Wanted("größe été"), 0, 9).rows
    assert hit.number == 1 and "Größe ÉTÉ" in hit.excerpt and hit.start > 100 and hit.end < hit.characters
    assert [row.number for row in rows.search(Wanted("% ("), 0, 9).rows] == [3], "no character is special"


def test_a_search_says_how_far_it_looked_and_can_go_on(hundred):
    found = hundred.search(Wanted("document"), 0, 7)
    assert ([row.number for row in found.rows], found.end) == (list(range(7)), 7)
    assert [row.number for row in hundred.search(Wanted("document"), found.end, 3).rows] == [7, 8, 9]
    short = hundred.search(Wanted("document 9"), 0, 50, documents=20)
    assert ([row.number for row in short.rows], short.end) == ([9], 20)
    assert hundred.search(Wanted("zebra"), 15, 50, seconds=0).end == 20
    assert hundred.search(Wanted("zebra"), 0, 50).end == 100
    assert hundred.search(Wanted("x"), 500, 50) == document_rows.Found([], 500, 100)


def test_the_last_match_before_a_document_is_found_across_groups_and_files(hundred):
    for number, match in ((77, 49), (49, 48), (40, 4), (100, 49), (4, None)):
        assert hundred.last_before(Wanted("document 4"), number)[0] == match
    assert hundred.last_before(Wanted("zebra"), 95) == (None, 0)
    assert hundred.last_before(Wanted("document 4"), 90, documents=20) == (None, 70)
    assert hundred.last_before(Wanted("document 4"), 90, seconds=-1) == (None, 90)


def test_lengths_include_both_ends(hundred):
    found = hundred.search(Wanted("", 30, 33), 0, 50)
    assert {row.characters for row in found.rows} == {30, 31, 32, 33}
    assert hundred.search(Wanted("document 2", 30, None), 0, 50).rows[0].number == 20


def test_a_dataset_that_was_made_again_is_read_anew(tmp_path):
    written(tmp_path, ["old"] * 5)
    for path in documents.shards(tmp_path):
        path.unlink()
    assert written(tmp_path, ["new"] * 7).document(6).text == "new"


def test_where_there_are_no_documents_it_says_so(tmp_path):
    with pytest.raises(FileNotFoundError):
        DocumentRows(tmp_path)


def test_a_conversation_has_its_messages(tmp_path):
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    message = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    table = pa.table({"index": [0], "text": ["Hi\nHello"], "messages": pa.array([said], message)})
    parquet.write_table(table, tmp_path / "documents-00000.parquet")
    assert DocumentRows(tmp_path).document(0).messages == said


def test_a_sample_is_spread_over_the_dataset_and_counted(tmp_path):
    german = "Der schnelle braune Fuchs springt heute über den faulen Hund am Fluss. "
    english = "The quick brown fox jumps over the lazy dog near the old river bank today. "
    texts = [f"{german if n >= 1500 else english} {n if n % 10 else 'twice'}" for n in range(3000)]
    written(tmp_path, texts, group=100)
    found = sample(tmp_path)
    assert (found["documents"], found["of"]) == (1000, 3000)
    assert found["languages"] == {"en": 500, "de": 500}
    assert found["duplicates"] == 98, "two texts come twice: one of each language"


def test_few_documents_are_all_looked_at_and_what_has_no_language_is_not_sure(tmp_path):
    written(tmp_path, ["12345", "", "a=b", "это русский текст о погоде и природе"])
    found = sample(tmp_path)
    assert (found["documents"], found["languages"], found["unsure"]) == (4, {"ru": 1}, 3)


def test_a_sample_is_measured_once_until_something_changes(tmp_path):
    written(tmp_path, ["This is a short text in English about the weather."] * 5)
    first = sample(tmp_path)
    write_json(tmp_path / NAME, {**first, "duplicates": -1})
    assert sample(tmp_path)["duplicates"] == -1
    write_json(tmp_path / NAME, {**first, "by": "something older", "duplicates": -1})
    assert sample(tmp_path)["duplicates"] == 4 == read_json(tmp_path / NAME)["duplicates"]
