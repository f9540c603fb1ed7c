"""Rows of JSON and CSV, and the column that holds the text."""

import csv
import io
import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.ml import text_rows
from jobs.ml.errors import CorruptData, Unusable
from jobs.ml.local_documents import LocalDocuments
from tests.ml.sources import TEXT, quick, read, table, taken

PLAIN = st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from('\n\r\t"'), max_size=60)


# --- JSON


@quick
@given(st.lists(TEXT, min_size=1, max_size=12))
def test_json_lines_give_back_what_was_written(lay, texts):
    texts = [*texts, "an end"]
    expected = [text for text in texts if text.strip()]
    assert read(lay("a.jsonl", [{"text": text, "n": 1} for text in texts])) == expected
    assert read(lay("b.jsonl", texts)) == expected
    assert read(lay("a.json", json.dumps([{"text": text} for text in texts], indent=1))) == expected


def test_a_large_array_is_read_element_by_element(lay):
    rows = [{"text": f"{i} " + '[{\\"' * (i % 300)} for i in range(1500)]
    assert read(lay("a.json", json.dumps(rows))) == [row["text"] for row in rows]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"text": "a"}\n{"text": b}\n', "line 2 is not JSON"),
        ('{"text": "a"}\n{"text": "b', "line 2 is not JSON.* in the middle of a line"),
        ('{"text": "a"}\n{\n', "line 2 is not JSON"),
        ('{"text": "a"}\n12\n', "line 2 is a JSON number, not an object"),
        ('{"text": "a"}\nnull\n', "line 2 is a JSON null, not an object"),
        ('{"text": "a"}\n{"text": 5}\n', "line 2: column “text” holds a number, not text"),
        ('{"text": "a"}\n{"text": ["b"]}\n', "line 2: column “text” holds a list, not text"),
        ('{"text": "a"}\n' + "[" * 100_000 + "\n", "line 2 is not JSON"),
        ('[{"text": "a"}, {"text": "b"', "element 2 is not whole JSON"),
        ('[{"text": "a"} {"text" "b"}]', "element 2 is not whole JSON"),
    ],
)
def test_malformed_json_is_told_with_file_and_line(lay, content, said):
    with pytest.raises(CorruptData, match=rf"a\.jsonl, {said}"):
        read(lay("a.jsonl", content))


def test_empty_and_missing_values_are_dropped_and_counted(lay):
    source = LocalDocuments(
        lay("a.jsonl", [{"text": ""}, {"text": None}, {"other": 1}, {"text": " \n"}, {"text": "x"}])
    )
    assert taken(source) == ["x"]
    assert source.counts.empty_dropped == 4


def test_a_line_too_long_to_be_held_is_told_by_its_number(lay, monkeypatch):
    monkeypatch.setattr(text_rows, "LONGEST_LINE", 70_000)
    with pytest.raises(CorruptData, match=r"a\.jsonl, line 2 is longer"):
        read(lay("a.jsonl", [{"text": "x"}, {"text": "y" * 80_000}]))


# --- columns


def test_the_column_is_the_one_named_else_text_else_the_only_one(lay):
    both = lay("a.jsonl", [{"title": "t", "text": "x", "n": 3}])
    assert (read(both), read(both, "title")) == (["x"], ["t"])
    assert read(lay("b.jsonl", [{"n": 1, "body": "x", "ok": True}])) == ["x"]


def test_several_text_columns_and_none_chosen_names_them(lay):
    with pytest.raises(Unusable, match="several columns with text: title, body") as caught:
        read(lay("a.jsonl", [{"title": "t", "body": "x", "n": 1}]))
    assert caught.value.field == "text_column"


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet", "a.txt"])
def test_a_missing_column_names_those_there_are(lay, name):
    contents = {"a.jsonl": [{"title": "t", "n": 1}], "a.csv": "title,n\nt,1\n", "a.txt": "words\n"}
    path = lay(name, contents.get(name, b"x"))
    if name == "a.parquet":
        table(path, title=["t"], n=[1])
    has = "text" if name == "a.txt" else r"title \(text\), n"
    with pytest.raises(Unusable, match=f"no column “body”. It has: {has}") as caught:
        read(path, "body")
    assert caught.value.field == "text_column"


def test_a_column_of_another_type_is_refused_where_it_was_chosen(lay):
    numbers = table(lay("a.parquet", b"x"), text=["x"], n=[1])
    for path, kind in ((numbers, "int64"), (lay("a.jsonl", [{"text": "x", "n": 1}]), "number")):
        with pytest.raises(Unusable, match=f"column “n” of .* is of type {kind}") as caught:
            read(path, "n")
        assert caught.value.field == "text_column"
    assert read(lay("a.csv", "text,n\nx,1\n"), "n") == ["1"]


def test_no_column_with_text_is_told(lay):
    with pytest.raises(Unusable, match=r"no column with text. It has: n \(number\), tags \(list\)"):
        read(lay("a.jsonl", [{"n": 1, "tags": ["a"]}]))


def test_columns_are_described(lay):
    rows = [{"text": "a", "n": 1, "both": 1}, {"text": "b", "n": 2.5, "both": "x", "none": None}]
    types = {column["name"]: column["type"] for column in LocalDocuments(lay("a.jsonl", rows)).columns}
    assert types == {"text": "text", "n": "number", "both": "mixed", "none": "empty"}


# --- CSV


@quick
@given(st.lists(PLAIN, min_size=1, max_size=8), st.sampled_from(",;\t|"))
def test_csv_gives_back_what_was_written(lay, texts, delimiter):
    target = io.StringIO(newline="")
    writer = csv.writer(target, delimiter=delimiter)
    writer.writerows([["id", "text"], *enumerate([*texts, "an end"])])
    expected = [text for text in [*texts, "an end"] if text.strip()]
    assert read(lay("a.csv", target.getvalue()), "text") == expected


def test_a_field_beyond_the_limit_of_the_csv_module_is_read(lay):
    assert [len(text) for text in read(lay("a.csv", 'text,n\n"' + "long, " * 50_000 + '",1\n'))] == [300_000]


def test_a_quotation_mark_that_never_closes_is_told(lay, monkeypatch):
    monkeypatch.setattr(text_rows, "LONGEST_LINE", 5000)
    with pytest.raises(CorruptData, match=r"a\.csv, line \d+ is not CSV") as caught:
        read(lay("a.csv", 'text,n\n"open,1\n' + "some more words,2\n" * 900))
    assert "never closed" in caught.value.hint


def test_csv_with_short_rows_blank_lines_and_numbers_is_read(lay):
    path = lay("a.csv", "id,words\n1,first\n\n2\n3,third,,\n")
    source = LocalDocuments(path)
    assert [text for group in source.groups() for text in group] == ["first", "third"]
    assert source.columns == [{"name": "id", "type": "number"}, {"name": "words", "type": "text"}]


@pytest.mark.parametrize("content", ["text\nhello, world\n", "id,text\n1,fine\n2,hello, world\n"])
def test_a_text_that_its_delimiter_would_cut_is_refused_and_not_cut(lay, content):
    with pytest.raises(CorruptData, match="values, but the header names") as refused:
        read(lay("a.csv", content))
    assert "quotation marks" in refused.value.hint


def test_a_csv_with_nothing_but_its_header_has_no_rows(lay):
    with pytest.raises(Unusable, match="has no rows"):
        read(lay("a.csv", "id,text\n"))


# --- what is broken


BROKEN = {
    "a.jsonl": (
        '{"text": "a"}\n{"text": b}\n{"text": "c"}\n7\n{"text": 5}\n{"text": "d"}\n',
        ["a", "c", "d"],
        ["a.jsonl, line 2 is not JSON", "a.jsonl, line 4 is a JSON number", "a.jsonl, line 5: column “text” holds a"],
    ),
    "a.json": (
        '[{"text": "a"}, 7, {"text": "b"}, {"text" "c"}, {"text": "d"}]',
        ["a", "b"],
        ["a.json, element 2 is a JSON number", "a.json, element 4 is not whole JSON"],
    ),
    "a.csv": (
        "id,text\n1,a\n2,b, c\n3,d\n",
        ["a", "d"],
        ["a.csv, line 3 has 3 values, but the header names 2"],
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_rows_are_skipped_on_request_and_told_by_their_places(lay, name):
    content, expected, places = BROKEN[name]
    source = LocalDocuments(lay(name, content), "text", skip_broken=True)
    assert taken(source) == expected
    assert source.counts.broken_skipped == len(places)
    for said, place in zip(source.counts.broken_first, places, strict=True):
        assert said.startswith(place)
    with pytest.raises(CorruptData) as refused:
        read(lay(name, content), "text")
    assert str(refused.value).startswith(places[0]) and "Or skip what is broken" in refused.value.hint


def test_of_many_broken_rows_all_are_counted_and_the_first_named(lay):
    source = LocalDocuments(lay("a.jsonl", '{"text": "x"}\n' + "{\n" * 50), skip_broken=True)
    assert taken(source) == ["x"]
    assert source.counts.broken_skipped == 50
    assert [said.partition(" is")[0] for said in source.counts.broken_first] == [
        f"a.jsonl, line {n}" for n in range(2, 7)
    ]


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_a_line_far_too_long_is_passed_over_in_little_memory(lay, monkeypatch, ending):
    monkeypatch.setattr(text_rows, "LONGEST_LINE", 2**20)
    long = "y" * 40_000_000
    content = (
        f'{{"text": "a"}}\n{{"text": "{long}"}}\n{{"text": "b"}}\n'
        if ending == "jsonl"
        else f"text,n\na,1\n{long},2\nb,3\n"
    )
    path = lay(f"a.{ending}", content)
    del content, long
    tracemalloc.start()
    source = LocalDocuments(path, "text", skip_broken=True)
    found = taken(source)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == ["a", "b"]
    assert source.counts.broken_skipped == 1 and "is longer than 1 Mi characters" in source.counts.broken_first[0]
    assert peak < 16_000_000


def test_a_first_file_that_is_broken_throughout_does_not_hide_the_others(lay):
    lay("a.jsonl", b"\xff\xfe\x00")
    path = lay("b.jsonl", [{"text": "x"}])
    lay("a.jsonl", "{\n")
    source = LocalDocuments(path.parent, skip_broken=True)
    assert taken(source) == ["x"] and source.counts.broken_skipped == 1
