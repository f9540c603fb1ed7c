import io
import json
import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.context import Context
from jobs.errors import Cancelled, InvalidInput, Stopped, classify
from jobs.kinds import add_dataset
from jobs.kinds.add_dataset import Params, run
from jobs.ml import disk
from jobs.ml.documents import read_conversations, read_documents, shards
from tests.files import contents
from tests.hub_server import HubServer

ROOT = Path(__file__).resolve().parents[3]


class Interrupted(Context):
    """Wishes the job to end at its nth look."""

    def __init__(self, looks: int, wish: str = "stop") -> None:
        super().__init__(stages=add_dataset.STAGES)
        self.looks, self.wish_then = looks, wish

    def check(self) -> None:
        self.looks -= 1
        if self.looks == 0:
            self.wished = self.wish_then
        super().check()


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source.jsonl"
    rows = [{"text": f"document {i} " + "and so on " * (i % 20), "n": i} for i in range(300)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "datasets" / "3"


def add(source, folder, ctx=None, **fields):
    return run(Params(str(source), str(folder), **fields), ctx or Context(stages=add_dataset.STAGES))


def parquet_files(folder: Path) -> dict[str, bytes]:
    return contents(folder, "*.parquet")


def test_a_file_becomes_documents_with_statistics_columns_and_samples(source, folder):
    result = add(source, folder)
    found = list(read_documents(folder))
    assert len(found) == 300 and found[7] == "document 7 " + "and so on " * 7
    assert result["statistics"]["documents"] == 300
    assert result["statistics"]["characters"] == sum(map(len, found))
    assert result["columns"] == [{"name": "text", "type": "text"}, {"name": "n", "type": "number"}]
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_samples_are_spread_and_short_and_free_of_nul(tmp_path, folder):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"{i}\0" + "x" * 1000}) + "\n" for i in range(80)))
    samples = add(path, folder)["samples"]
    assert [sample.partition("␀")[0] for sample in samples] == ["5", "15", "25", "35", "45", "55", "65", "75"]
    assert {len(sample) for sample in samples} == {600}
    assert "\0" in next(read_documents(folder))


def test_fewer_documents_than_samples_are_all_shown(tmp_path, folder):
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\nthree\n")
    assert add(path, folder)["samples"] == ["one", "two", "three"]


def test_the_manifest_names_the_sources_with_their_checksums(source, folder):
    add(source, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    data = source.read_bytes()
    assert manifest["sources"] == [{"name": source.name, "bytes": len(data), "sha256": sha256(data).hexdigest()}]
    assert manifest["params"]["source"] == str(source)


def test_at_most_so_many_documents_are_taken(source, folder):
    result = add(source, folder, max_documents=17)
    assert result["statistics"]["documents"] == len(list(read_documents(folder))) == 17
    assert json.loads((folder / "manifest.json").read_text())["sources"][0]["sha256"] is None


@pytest.mark.parametrize(("limit", "taken"), [(100, 4), (99, 3), (10**9, 40)])
def test_at_most_so_many_bytes_of_text_are_taken(tmp_path, folder, limit, taken):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": "ä" * 12 + "\n"}) + "\n" for _ in range(40)))
    result = add(path, folder, max_bytes=limit)
    assert (result["statistics"]["documents"], result["statistics"]["bytes"]) == (taken, 25 * taken)


def test_a_first_document_beyond_the_bytes_is_told(source, folder):
    with pytest.raises(InvalidInput, match="first document is longer") as refused:
        add(source, folder, max_bytes=5)
    assert refused.value.field == "max_bytes"


def test_conversations_are_kept_with_their_messages_and_shown_as_such(tmp_path, folder):
    path = tmp_path / "a.jsonl"
    said = [{"role": "user", "content": "Why? " * 100}, {"role": "assistant", "content": "Because.\0" * 100}]
    path.write_text((json.dumps({"messages": said}) + "\n") * 3)
    result = add(path, folder)
    assert list(read_conversations(folder)) == [said] * 3
    assert next(read_documents(folder)).startswith("user: Why?")
    assert json.loads((folder / "manifest.json").read_text())["conversations"] is True
    assert result["statistics"]["read_as"] == "OpenAI conversations"
    assert result["statistics"]["messages"] == {"assistant": 3, "user": 3}
    [sample, *_] = result["samples"]
    assert [message["role"] for message in sample] == ["user", "assistant"]
    assert sum(len(message["content"]) for message in sample) == 600 and "\0" not in sample[1]["content"]


def test_broken_rows_are_counted_and_named_in_the_statistics(tmp_path, folder):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x"}\n{"text": \n{"text": "y"}\n')
    statistics = add(path, folder, skip_broken=True)["statistics"]
    assert (statistics["documents"], statistics["broken_skipped"]) == (2, 1)
    assert statistics["broken_first"] == ["a.jsonl, line 2 is not JSON: Expecting value."]


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 110), max_size=3))
def test_duplicates_are_dropped_the_same_however_often_it_is_interrupted(tmp_path_factory, small, looks):
    folder, other, home = (tmp_path_factory.mktemp(name) for name in ("a", "b", "source"))
    rows = [{"text": f"document {i % 37} " + "and so on " * (i % 37)} for i in range(120)]
    (home / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for n in looks:
        try:
            add(home, folder, Interrupted(n), deduplicate=True)
        except Stopped:
            assert not (folder / "manifest.json").exists()
    result = add(home, folder, deduplicate=True)
    assert result == add(home, other, deduplicate=True)
    assert parquet_files(folder) == parquet_files(other)
    assert list(read_documents(folder)) == [row["text"] for row in rows[:37]]
    assert (result["statistics"]["duplicates_dropped"], result["statistics"]["duplicates"]) == (83, 0)


def test_what_was_done_to_the_texts_is_counted(tmp_path, folder):
    path = tmp_path / "a.jsonl"
    rows = ['{"text": ""}', '{"text": "a\\ud800%s"}' % ("b" * 500), '{"text": "twice"}', '{"text": "twice"}']
    path.write_text("\n".join(rows))
    statistics = add(path, folder)["statistics"]
    assert (statistics["empty_dropped"], statistics["replaced_characters"], statistics["duplicates"]) == (1, 1, 1)


def test_the_same_source_gives_the_same_bytes(source, folder, tmp_path, small):
    assert add(source, folder) == add(source, tmp_path / "other")
    assert parquet_files(folder) == parquet_files(tmp_path / "other") and len(parquet_files(folder)) > 3


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 110), max_size=3), st.sampled_from([None, 50, 100]))
def test_however_often_it_is_interrupted_it_ends_the_same(source, tmp_path_factory, small, looks, limit):
    source.write_text("".join(source.read_text().splitlines(keepends=True)[:100]))
    folder, other = tmp_path_factory.mktemp("a"), tmp_path_factory.mktemp("b")
    for n in looks:
        try:
            add(source, folder, Interrupted(n), max_documents=limit)
        except Stopped:
            assert not (folder / "manifest.json").exists()
    assert add(source, folder, max_documents=limit) == add(source, other, max_documents=limit)
    assert parquet_files(folder) == parquet_files(other)
    assert {path.name for path in folder.iterdir()} == {path.name for path in other.iterdir()}


def test_whole_shards_are_kept_over_an_interruption(source, folder, small):
    with pytest.raises(Stopped):
        add(source, folder, Interrupted(200))
    before = {path: path.stat().st_ino for path in shards(folder)}
    assert before
    add(source, folder)
    assert {path: path.stat().st_ino for path in before} == before


def test_shards_of_a_source_that_changed_since_are_not_kept(source, folder, small):
    with pytest.raises(Stopped):
        add(source, folder, Interrupted(200))
    source.write_text('{"text": "other words"}\n')
    add(source, folder)
    assert list(read_documents(folder)) == ["other words"]


def test_other_parameters_start_clean(source, folder, small):
    add(source, folder)
    add(source, folder, max_documents=2)
    assert len(list(read_documents(folder))) == 2 and len(shards(folder)) == 1


def test_a_second_run_gives_the_same_result_without_its_source(source, folder):
    first = add(source, folder)
    source.unlink()
    assert add(source, folder) == first


def test_a_cancel_ends_it_between_documents(source, folder, small):
    with pytest.raises(Cancelled):
        add(source, folder, Interrupted(50, "cancel"))
    assert not [path for path in folder.iterdir() if path.name.endswith(".partial")]


def test_what_a_killed_attempt_left_is_removed(source, folder, small):
    with pytest.raises(Stopped):
        add(source, folder, Interrupted(200))
    number = len(shards(folder))
    (folder / f".documents-{number:05d}.parquet.partial").write_bytes(b"half")
    (folder / f"documents-{number:05d}.parquet").write_bytes(b"renamed, but not yet counted")
    add(source, folder)
    assert len(list(read_documents(folder))) == 300


def test_a_full_disk_is_told_with_figures_before_it_is_filled(source, folder, monkeypatch):
    monkeypatch.setattr(disk, "RESERVE", 10**15)
    with pytest.raises(OSError, match=r"only .* are free .* are missing") as caught:
        add(source, folder)
    assert classify(caught.value).code == "DISK_FULL"


def test_the_folder_that_is_written_to_is_not_read_from(tmp_path, source, folder):
    with pytest.raises(InvalidInput, match="where miStudio keeps its data"):
        add(tmp_path, folder)


def test_texts_that_are_all_empty_make_no_dataset(tmp_path, folder):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": ""}\n{"text": "  "}\n')
    with pytest.raises(InvalidInput, match="no document with text: 2 are empty"):
        add(path, folder)


@pytest.mark.parametrize(
    ("name", "content", "fields", "field", "said"),
    [
        ("a.jsonl", '{"a": "x", "b": "y"}\n', {}, "text_column", "several columns with text: a, b"),
        ("a.jsonl", '{"a": "x"}\n', {"text_column": "c"}, "text_column", r"no column “c”. It has: a \(text\)"),
        ("a.txt", "", {}, "source", "is empty"),
        ("a.docx", "PK\x03\x04", {}, "source", "a zip archive"),
        ("a.txt", "words", {"revision": "main"}, "revision", "no revisions"),
        ("a.txt", "words", {"config": "en"}, "config", "no configurations"),
        ("a.txt", "words", {"max_documents": 0}, "max_documents", "1 document or more"),
        ("a.txt", "words", {"max_documents": True}, "max_documents", "1 document or more"),
        ("a.txt", "words", {"max_bytes": 0}, "max_bytes", "1 byte or more"),
        ("a.txt", "words", {"encoding": "klingon"}, "encoding", "no encoding of text"),
        ("a.txt", "words", {"encoding": "zlib"}, "encoding", "no encoding of text"),
        ("a.txt", "words", {"preference": "best"}, "preference", "neither chosen nor rejected"),
    ],
)
def test_what_a_person_chose_wrongly_is_told_by_its_field(tmp_path, folder, name, content, fields, field, said):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(InvalidInput, match=said) as caught:
        add(path, folder, **fields)
    assert caught.value.field == field


def test_a_malformed_line_is_corrupt_data_with_file_and_line(tmp_path, folder):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x"}\n{"text": "y"\n')
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2 is not JSON") as caught:
        add(path, folder)
    assert classify(caught.value).code == "CORRUPT_DATA"
    assert classify(caught.value).hint == "Each line must be one whole JSON object. Or skip what is broken."


def test_progress_is_of_the_bytes_and_never_goes_back(source, folder, monkeypatch):
    monkeypatch.setattr("jobs.kinds.documents.CHECKED_EVERY", 1)
    seen = []

    class Watched(Context):
        def check(self) -> None:
            seen.append(self.snapshot.percent)

    add(source, folder, Watched(stages=add_dataset.STAGES))
    assert seen == sorted(seen) and seen[-1] > 95


# --- from the hub


def parquet_bytes(texts: list[str], **columns: list) -> bytes:
    target = io.BytesIO()
    parquet.write_table(pa.table({"text": texts, **columns}), target, row_group_size=40)
    return target.getvalue()


CONFIGS = b"""---
configs:
- config_name: en
  data_files: en.jsonl
- config_name: de
  data_files: de.jsonl
---
"""
STORIES = [f"story {i} " + "once upon a time " * (i % 7) for i in range(240)]


TALK = [
    [{"role": "user", "content": f"question {n}"}, {"role": "assistant", "content": "well " * (n % 50)}]
    for n in range(1, 91)
]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What comes of adding datasets of a hub, by name, all in one process of its own."""
    root = tmp_path_factory.mktemp("hub")
    tasks = {
        "whole": {"source": "owner/stories"},
        "stopped": {"source": "owner/stories"},
        "resumed": {"source": "owner/stories"},
        "first": {"source": "owner/stories", "max_documents": 5},
        "other split": {"source": "owner/stories", "split": "test"},
        "no such split": {"source": "owner/stories", "split": "trian"},
        "no such column": {"source": "owner/stories", "text_column": "body"},
        "no such revision": {"source": "owner/stories", "revision": "v9"},
        "config": {"source": "owner/languages", "config": "de"},
        "no config": {"source": "owner/languages"},
        "no such config": {"source": "owner/languages", "config": "fr"},
        "unknown": {"source": "owner/storys"},
        "gated": {"source": "owner/gated"},
        "nothing in it": {"source": "owner/nothing"},
        "program": {"source": "owner/program"},
        "bytes": {"source": "owner/stories", "max_bytes": 300},
        "talk": {"source": "owner/talk"},
        "talk stopped": {"source": "owner/talk", "deduplicate": True},
        "talk resumed": {"source": "owner/talk", "deduplicate": True},
        "chat": {"source": "owner/chat", "skip_broken": True},
        "torn": {"source": "owner/torn"},
        "away": {"source": "owner/away"},
        "busy": {"source": "owner/busy"},
        "broken": {"source": "owner/broken"},
    }
    folders = {name: root / name.replace(" ", "-") for name in tasks} | {
        "resumed": root / "stopped",
        "talk resumed": root / "talk-stopped",
    }
    asked = [{"params": {**task, "folder": str(folders[name])}} for name, task in tasks.items()]
    asked[1]["stop_after"] = 2
    asked[list(tasks).index("talk stopped")]["stop_after"] = 1
    with HubServer() as hub:
        fill(hub)
        done = subprocess.run(
            [sys.executable, "-m", "tests.jobs.kinds.hub_datasets"],
            input=json.dumps(asked),
            env={**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(root / "cache"), "HF_HUB_DISABLE_TELEMETRY": "1"},
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-4000:]
    found = dict(zip(tasks, json.loads(done.stdout), strict=True))
    return {name: {**outcome, "folder": folders[name]} for name, outcome in found.items()}


def fill(hub: HubServer) -> None:
    files = {
        "data/train-00000-of-00002.parquet": parquet_bytes(STORIES[:120], id=list(range(120))),
        "data/train-00001-of-00002.parquet": parquet_bytes(STORIES[120:], id=list(range(120))),
        "data/test-00000-of-00001.parquet": parquet_bytes(["a test"], id=[0]),
    }
    hub.add("dataset", "owner/stories", files)
    languages = {"README.md": CONFIGS, "en.jsonl": b'{"text": "house"}\n', "de.jsonl": b'{"text": "Haus"}\n'}
    hub.add("dataset", "owner/languages", languages)
    hub.add("dataset", "owner/gated", dict(files), gated=True)
    hub.add("dataset", "owner/nothing", {"README.md": b"# soon"})
    hub.add("dataset", "owner/program", {"program.py": b"raise SystemExit('it ran')", "README.md": b""})
    hub.add("dataset", "owner/torn", {"train.jsonl": b'{"text": "x"}\n{"text": \n'})
    rows = "".join(json.dumps({"text": story}) + "\n" for story in STORIES)
    hub.add("dataset", "owner/broken", {"train.jsonl": rows.encode()})
    hub.add("dataset", "owner/busy", {"train.jsonl": b'{"text": "at last"}\n'})
    talk = pa.Table.from_pylist([{"id": str(n), "text": "x", "messages": TALK[n % 90]} for n in range(180)])
    target = io.BytesIO()
    parquet.write_table(talk, target, row_group_size=40)
    hub.add("dataset", "owner/talk", {"train.parquet": target.getvalue()})
    chat = [{"conversations": [{"from": who, "value": "Why?"}]} for who in ("human", "ghost", "gpt")]
    hub.add("dataset", "owner/chat", {"train.jsonl": "".join(json.dumps(row) + "\n" for row in chat).encode()})
    hub.fault("/api/datasets/owner/away", status=503, times=99)
    hub.fault("/api/datasets/owner/busy", status=429, headers={"Retry-After": "0"})
    hub.fault("/resolve/", status=503, times=1)
    hub.fault("train.jsonl", breaks_after=5000)


def test_a_dataset_of_the_hub_is_streamed_in_its_order(outcomes):
    outcome = outcomes["whole"]
    assert list(read_documents(outcome["folder"])) == STORIES
    assert outcome["result"]["statistics"]["documents"] == 240
    assert outcome["result"]["columns"] == [{"name": "text", "type": "text"}, {"name": "id", "type": "int64"}]


def test_the_commit_and_the_files_of_the_split_are_recorded(outcomes):
    manifest = json.loads((outcomes["whole"]["folder"] / "manifest.json").read_text())
    assert len(manifest["commit"]) == 40
    assert [source["name"] for source in manifest["sources"]] == [
        "data/train-00000-of-00002.parquet",
        "data/train-00001-of-00002.parquet",
    ]
    assert all(len(source["sha256"]) == 64 for source in manifest["sources"])


def test_an_interrupted_stream_goes_on_and_ends_the_same(outcomes):
    assert outcomes["stopped"]["stopped"] == 2
    assert outcomes["resumed"]["result"] == outcomes["whole"]["result"]
    assert parquet_files(outcomes["resumed"]["folder"]) == parquet_files(outcomes["whole"]["folder"])


def test_documents_splits_and_configurations_are_chosen(outcomes):
    assert list(read_documents(outcomes["first"]["folder"])) == STORIES[:5]
    assert list(read_documents(outcomes["other split"]["folder"])) == ["a test"]
    assert list(read_documents(outcomes["config"]["folder"])) == ["Haus"]


def test_a_dataset_of_the_hub_is_cut_off_at_so_many_bytes(outcomes):
    found = list(read_documents(outcomes["bytes"]["folder"]))
    assert found == STORIES[: len(found)]
    assert sum(map(len, found)) <= 300 < sum(map(len, STORIES[: len(found) + 1]))


def test_conversations_of_the_hub_are_recognised_in_parquet_and_json(outcomes):
    said = [[message for message in talk if message["content"]] for talk in TALK]
    assert list(read_conversations(outcomes["talk"]["folder"])) == said * 2
    assert outcomes["talk"]["result"]["text_column"] == "messages"
    assert list(read_conversations(outcomes["chat"]["folder"])) == [
        [{"role": role, "content": "Why?"}] for role in ("user", "assistant")
    ]
    assert outcomes["chat"]["result"]["statistics"]["broken_first"] == [
        "row 2 of owner/chat, message 1 is of an unknown role, 'ghost'."
    ]


def test_an_interrupted_stream_knows_what_it_has_seen(outcomes):
    assert outcomes["talk stopped"]["stopped"] == 1
    result = outcomes["talk resumed"]["result"]
    assert (
        list(read_conversations(outcomes["talk resumed"]["folder"]))
        == list(read_conversations(outcomes["talk"]["folder"]))[:90]
    )
    assert result["statistics"]["duplicates_dropped"] == 90


@pytest.mark.parametrize(
    ("name", "field", "said"),
    [
        ("no such split", "split", "'train'"),
        ("no such config", "config", "'de'"),
        ("no such split", "split", "trian"),
        ("no such column", "text_column", "It has: text (text), id (int64)"),
        ("no config", "config", "['en', 'de']"),
        ("no such config", "config", "fr"),
        ("nothing in it", "source", "owner/nothing"),
        ("program", "revision", "owner/program"),
    ],
)
def test_a_wrong_choice_on_the_hub_is_told_by_its_field(outcomes, name, field, said):
    outcome = outcomes[name]
    assert (outcome["code"], outcome["field"]) == ("VALIDATION", field), outcome
    assert said in outcome["message"] and "\n" not in outcome["message"]


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("no such revision", "NOT_FOUND"),
        ("unknown", "NOT_FOUND"),
        ("gated", "ACCESS_DENIED"),
        ("torn", "CORRUPT_DATA"),
        ("away", "NETWORK"),
    ],
)
def test_failures_of_the_hub_have_their_codes(outcomes, name, code):
    assert outcomes[name]["code"] == code, outcomes[name]
    assert outcomes[name]["hint"]


def test_a_misspelt_dataset_is_answered_with_the_right_one(outcomes):
    assert "Did you mean owner/stories" in outcomes["unknown"]["hint"]


def test_a_hub_that_is_busy_or_breaks_off_is_asked_again(outcomes):
    assert list(read_documents(outcomes["busy"]["folder"])) == ["at last"]
    assert list(read_documents(outcomes["broken"]["folder"])) == STORIES
