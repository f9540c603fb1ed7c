"""Conversations as people keep them, from rows to messages and to the disk."""

import json

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.ml import text_files
from jobs.ml.conversations import ROLE, ROLES, parts, transcript
from jobs.ml.document_statistics import DocumentStatistics
from jobs.ml.documents import DocumentWriter, read_conversations, read_documents, shards
from jobs.ml.errors import CorruptData, Unusable
from jobs.ml.local_documents import LocalDocuments
from jobs.ml.text_files import Counts


def said(*pairs):
    return [{"role": role, "content": content} for role, content in pairs]


ASKED = said(("user", "Why?"), ("assistant", "Because."))
FORMATS = {
    "OpenAI": ({"messages": ASKED}, ASKED),
    "OpenAI beside a text": ({"text": "user: Why?", "messages": ASKED}, ASKED),
    "OpenAI with parts": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "W"}, {"type": "text", "text": "hy?"}]}]},
        said(("user", "Why?")),
    ),
    "OpenAI with a call": (
        {"messages": [{"role": "assistant", "content": None, "tool_calls": [{"name": "add"}]}]},
        said(("assistant", '[{"name": "add"}]')),
    ),
    "ShareGPT": (
        {
            "id": "x1",
            "conversations": [
                {"from": "system", "value": "Be brief."},
                {"from": "human", "value": "Why?"},
                {"from": "gpt", "value": "Because."},
            ],
        },
        [*said(("system", "Be brief.")), *ASKED],
    ),
    "LMSYS": ({"conversation_id": "7", "model": "m", "conversation": ASKED, "turn": 1}, ASKED),
    "a column of any name": ({"n": 1, "chat": ASKED}, ASKED),
    "an object of lists": ({"messages": {"role": ["user", "assistant"], "content": ["Why?", "Because."]}}, ASKED),
    "pairs of texts": ({"prompt": "Why?", "chosen": "Because.", "rejected": "No."}, ASKED),
    "pairs of messages": (
        {"prompt": said(("user", "Why?")), "chosen": said(("assistant", "Because.")), "rejected": []},
        ASKED,
    ),
    "pairs of whole conversations": ({"prompt": "Why?", "chosen": ASKED, "rejected": ASKED[:1]}, ASKED),
    "pairs of texts with turns": (
        {"chosen": "\n\nHuman: Why?\n\nAssistant: Because.", "rejected": "\n\nHuman: Why?\n\nAssistant: No."},
        ASKED,
    ),
    "instructions": (
        {"instruction": "Translate.", "input": "Haus", "output": "house"},
        said(("user", "Translate.\n\nHaus"), ("assistant", "house")),
    ),
    "instructions without input": ({"instruction": "Why?", "input": "", "output": "Because."}, ASKED),
    "prompts and completions": ({"prompt": "Why?", "completion": "Because."}, ASKED),
}


@pytest.fixture
def lay(tmp_path):
    def lay(rows, name="a.jsonl"):
        path = tmp_path / name
        if name.endswith("parquet"):
            parquet.write_table(pa.Table.from_pylist(rows), path)
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return lay


def read(path, column="", **options):
    source = LocalDocuments(path, column, **options)
    return [document for group in source.groups() for document in group], source


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_each_format_is_recognised_and_read(lay, name, ending):
    row, expected = FORMATS[name]
    found, source = read(lay([row, row], f"a.{ending}"))
    assert found == [expected, expected]
    assert source.shape.conversations


def test_the_rejected_answers_are_taken_where_asked_for(lay):
    row, _ = FORMATS["pairs of texts"]
    found, source = read(lay([row]), preference="rejected")
    assert found == [said(("user", "Why?"), ("assistant", "No."))]
    assert source.shape.name == "preference pairs, the rejected answers"


def test_a_named_column_decides_between_conversation_and_text(lay):
    both = lay([{"body": "plain words", "messages": ASKED, "more": ASKED}])
    assert read(both, "body")[0] == ["plain words"]
    assert read(both, "more")[0] == [ASKED]
    pair, _ = FORMATS["pairs of texts"]
    assert read(lay([pair]), "chosen")[0] == ["Because."]


@pytest.mark.parametrize(
    "row",
    [
        {"text": "words", "instruction": "Why?", "output": "Because."},
        {"body": "words", "messages": []},
        {"body": "words", "messages": [{"id": 1}]},
        {"body": "words", "messages": {"role": "user", "content": "Why?"}},
    ],
)
def test_what_only_looks_like_a_conversation_is_read_as_text(lay, row):
    assert read(lay([row]))[0] == ["words"]


def test_the_choice_that_is_recorded_reads_the_same_again(lay):
    for row, expected in FORMATS.values():
        path = lay([row])
        assert read(path, read(path)[1].shape.choice)[0] == [expected]


BROKEN = {
    "no content": ([{"role": "user", "content": None}], "message 1 has no content"),
    "no such role": ([{"role": "ghost", "content": "boo"}], "message 1 is of an unknown role, 'ghost'"),
    "no role": ([*ASKED, {"content": "x"}], "message 3 is of an unknown role"),
    "a picture": ([{"role": "user", "content": [{"type": "image_url"}]}], "message 1 holds something else than text"),
    "a number": ([{"role": "user", "content": 3}], "message 1 holds a number"),
    "no object": (["Why?"], "message 1 is a text, not an object with role and content"),
    "no list": ("Why?", "holds a text, not a list of messages"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_conversation_is_told_with_its_place_or_skipped_and_counted(lay, what):
    conversation, why = BROKEN[what]
    path = lay([{"messages": ASKED}, {"messages": conversation}, {"messages": ASKED}])
    with pytest.raises(CorruptData, match=r"a\.jsonl, line 2") as refused:
        read(path)
    assert why in str(refused.value)
    found, source = read(path, skip_broken=True)
    assert found == [ASKED, ASKED]
    assert source.counts.broken_skipped == 1 and why in source.counts.broken_first[0]


def test_an_instruction_without_its_answer_is_broken(lay):
    path = lay([{"instruction": "a", "output": "b"}, {"instruction": "a", "output": None}])
    with pytest.raises(CorruptData, match="line 2 has no “output”"):
        read(path)


def test_empty_messages_and_empty_conversations_are_dropped_and_counted(lay):
    hollow = said(("system", ""), ("user", "Why?"), ("assistant", "Because."))
    found, source = read(lay([{"messages": hollow}, {"messages": []}, {"messages": None}, {"messages": hollow[:1]}]))
    assert found == [ASKED]
    assert (source.counts.empty_messages_dropped, source.counts.empty_dropped) == (2, 3)


def test_unreadable_bytes_inside_of_messages_are_replaced_and_counted(tmp_path):
    raw = pa.array([b"fine " * 40, b"caf\xe9"], pa.binary())
    content = pa.StringArray.from_buffers(2, raw.buffers()[1], raw.buffers()[2])
    messages = pa.StructArray.from_arrays([pa.array(["user", "assistant"]), content], ["role", "content"])
    parquet.write_table(pa.table({"messages": pa.ListArray.from_arrays([0, 2], messages)}), tmp_path / "a.parquet")
    found, source = read(tmp_path / "a.parquet")
    assert found == [said(("user", "fine " * 40), ("assistant", "caf\ufffd"))]
    assert source.counts.replaced_characters == 1


TURNS = st.lists(st.tuples(st.sampled_from(sorted(set(ROLES.values()))), st.text("ab \n", min_size=1, max_size=300)))


@settings(max_examples=60, deadline=None)
@given(TURNS.filter(bool))
def test_parts_of_a_long_conversation_are_short_and_lose_nothing(turns):
    longest, text_files.LONGEST = text_files.LONGEST, 128
    try:
        counts = Counts()
        found = list(parts(said(*turns), counts))
    finally:
        text_files.LONGEST = longest
    assert all(len(transcript(part)) <= 128 for part in found)
    assert counts.cut_pieces == len(found) - 1
    assert "".join(m["content"] for part in found for m in part) == "".join(content for _, content in turns)
    assert sum(len(part) for part in found) == len(turns) or any(len(c) > 128 - ROLE for _, c in turns)


def test_a_folder_of_conversations_and_plain_text_is_refused(lay, tmp_path):
    lay([{"messages": ASKED}])
    (tmp_path / "b.txt").write_text("words")
    with pytest.raises(Unusable, match=r"a\.jsonl holds conversations, b\.txt plain text"):
        read(tmp_path)


def test_conversations_come_back_from_the_disk_with_their_transcripts(tmp_path):
    writer = DocumentWriter(tmp_path, conversations=True)
    conversations = [said(("user", f"number {n}?"), ("assistant", "yes\n\nor no")) for n in range(300)]
    for conversation in conversations:
        writer.add(conversation)
    writer.finish_shard()
    assert list(read_conversations(tmp_path)) == conversations
    assert list(read_conversations(tmp_path, 297)) == conversations[297:]
    assert next(read_documents(tmp_path, 5)) == "user: number 5?\n\nassistant: yes\n\nor no"
    [path] = shards(tmp_path)
    assert (
        str(parquet.read_schema(path).field("messages").type) == "list<element: struct<role: string, content: string>>"
    )


def test_statistics_count_the_messages_of_each_role():
    found = DocumentStatistics()
    for conversation in (ASKED, ASKED[:1]):
        found.add(conversation)
    summary = found.summary()
    assert summary["messages"] == {"assistant": 1, "user": 2}
    assert summary["characters"] == len(transcript(ASKED)) + len(transcript(ASKED[:1]))
