import json
from itertools import accumulate
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.context import Context
from jobs.errors import InvalidInput, Stopped, classify
from jobs.kinds import mix_datasets
from jobs.kinds.mix_datasets import Params, run
from jobs.ml import documents
from jobs.ml.documents import DocumentWriter, read_conversations, read_documents, shards
from jobs.ml.mixed_documents import FULL, RAN_OUT
from jobs.ml.store import write_manifest
from tests.jobs.kinds.test_add_dataset import Interrupted, parquet_files
from tests.ml.tiny import killed_at

REPEATS = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def made(folder: Path, found: list, conversations: bool = False) -> Path:
    """A finished dataset of these documents."""
    folder.mkdir(parents=True)
    writer = DocumentWriter(folder, conversations=conversations)
    for document in found:
        writer.add(document)
        if writer.full:
            writer.finish_shard()
    writer.finish_shard()
    write_manifest(folder, [path.name for path in shards(folder)], conversations=conversations)
    return folder


@pytest.fixture
def home(tmp_path, small):
    """Two datasets: 200 documents of 22 bytes and 300 of 44."""
    made(tmp_path / "a", [f"a, document {i:3}, short." for i in range(200)])
    made(tmp_path / "b", [f"b, document {i:3}, which is twice as long as a." for i in range(300)])
    return tmp_path


def part(folder: Path, weight: float = 1.0, **limits) -> dict:
    return {"folder": str(folder), "name": folder.name, "weight": weight, **limits}


def mix(parts, folder, ctx=None, **fields):
    return run(Params(parts, str(folder), **fields), ctx or Context(stages=mix_datasets.STAGES))


def taken(result) -> dict[str, tuple]:
    return {p["name"]: (p["documents"], p["duplicates"], p["ended"]) for p in result["parts"]}


@pytest.mark.parametrize("weights", [(1, 1), (3, 1), (0.2, 0.7)])
def test_every_beginning_has_the_stated_shares_of_the_text(home, weights):
    result = mix([part(home / "a", weights[0]), part(home / "b", weights[1])], home / "mix")
    found = list(read_documents(home / "mix"))
    assert len(found) == result["statistics"]["documents"] == result["statistics"]["documents_with_all_parts"] > 100
    of_a = accumulate(len(text) * text.startswith("a") for text in found)
    for bytes_of_a, everything in zip(of_a, accumulate(map(len, found)), strict=True):
        assert abs(bytes_of_a - everything * weights[0] / sum(weights)) <= len(found[0]) * 2 + 2


def test_nothing_is_lost_or_doubled_when_all_parts_are_used_up(home):
    result = mix([part(home / "a"), part(home / "b", 3)], home / "mix", ends="all")
    everything = [*read_documents(home / "a"), *read_documents(home / "b")]
    found = list(read_documents(home / "mix"))
    assert sorted(found) == sorted(everything) and found != everything
    assert taken(result) == {"a": (200, 0, RAN_OUT), "b": (300, 0, RAN_OUT)}
    assert 0 < result["statistics"]["documents_with_all_parts"] < 500


def test_a_seed_decides_the_order_and_the_same_gives_the_same_bytes(home):
    parts = [part(home / "a"), part(home / "b")]
    first, same, other = (mix(parts, home / name, seed=seed) for name, seed in (("x", 1), ("y", 1), ("z", 2)))
    assert (
        first == same and parquet_files(home / "x") == parquet_files(home / "y") and len(parquet_files(home / "x")) > 3
    )
    assert list(read_documents(home / "x")) != list(read_documents(home / "z"))
    assert first["statistics"]["documents"] == pytest.approx(other["statistics"]["documents"], abs=2)


def test_parts_and_the_whole_keep_to_their_limits(home):
    result = mix([part(home / "a", max_documents=30), part(home / "b", max_bytes=1000)], home / "mix", ends="all")
    assert taken(result) == {
        "a": (30, 0, FULL),
        "b": (1000 // len("b, document   0, which is twice as long as a."), 0, FULL),
    }
    assert mix([part(home / "a"), part(home / "b")], home / "n", max_documents=17)["statistics"]["documents"] == 17
    result = mix([part(home / "a"), part(home / "b")], home / "m", max_bytes=999)
    assert 950 < result["statistics"]["bytes"] <= 999
    assert sum(p["documents"] for p in result["parts"]) == result["statistics"]["documents"]
    assert sum(p["bytes"] for p in result["parts"]) == result["statistics"]["bytes"]


def test_duplicates_within_and_across_parts_are_dropped_and_counted_where_they_were(tmp_path, small):
    made(tmp_path / "a", ["one", "two", "one ", "three"])
    made(tmp_path / "b", [" two", "four", "five\n", "five"])
    parts = [part(tmp_path / "a"), part(tmp_path / "b")]
    result = mix(parts, tmp_path / "mix", ends="all")
    assert sorted(text.strip() for text in read_documents(tmp_path / "mix")) == ["five", "four", "one", "three", "two"]
    assert sum(p["duplicates"] for p in result["parts"]) == result["statistics"]["duplicates_dropped"] == 3
    assert all(p["read"] == p["documents"] + p["duplicates"] == 4 for p in result["parts"])
    kept = mix(parts, tmp_path / "kept", ends="all", deduplicate=False)
    assert kept["statistics"]["documents"] == 8


@REPEATS
@given(st.lists(st.integers(1, 300), max_size=3), st.sampled_from(["first", "all"]), st.sampled_from([None, 3000]))
def test_however_often_it_is_interrupted_it_ends_the_same(home, tmp_path_factory, looks, ends, limit):
    texts = [f"b, document {i % 60} " + "again " * (i % 5) for i in range(150)]
    b = made(tmp_path_factory.mktemp("part") / "b", texts)
    folder, other = tmp_path_factory.mktemp("x"), tmp_path_factory.mktemp("y")
    choices = {"parts": [part(home / "a"), part(b, 2)], "ends": ends, "max_bytes": limit}
    for n in looks:
        try:
            mix(folder=folder, ctx=Interrupted(n), **choices)
        except Stopped:
            assert not (folder / "manifest.json").exists()
    assert mix(folder=folder, **choices) == mix(folder=other, **choices)
    assert parquet_files(folder) == parquet_files(other)
    assert {path.name for path in folder.iterdir()} == {path.name for path in other.iterdir()}


def mix_in_small_shards(parts, folder) -> None:
    documents.SHARD_CHARACTERS, documents.GROUP_CHARACTERS = 2000, 500
    mix(parts, folder, ends="all")


@pytest.mark.slow
def test_a_mixture_killed_with_no_warning_ends_with_the_same_bytes(home):
    parts = [part(home / "a"), part(home / "b")]
    calm = mix(parts, home / "calm", ends="all")
    assert killed_at(4, "write_json", mix_in_small_shards, parts, home / "struck")
    assert shards(home / "struck") and not (home / "struck" / "manifest.json").exists()
    assert mix(parts, home / "struck", ends="all") == calm
    assert parquet_files(home / "struck") == parquet_files(home / "calm")


def test_conversations_stay_conversations_among_themselves_and_become_text_beside_text(home):
    said = [[{"role": "user", "content": f"question {n}"}] for n in range(9)]
    more = [[{"role": "assistant", "content": f"answer {n}"}] for n in range(9)]
    made(home / "c", said, conversations=True)
    made(home / "d", more, conversations=True)
    result = mix([part(home / "c"), part(home / "d")], home / "cd", ends="all")
    assert result["conversations"] and result["text_column"] == "messages"
    assert sorted(map(str, read_conversations(home / "cd"))) == sorted(map(str, said + more))
    result = mix([part(home / "c"), part(home / "a")], home / "ca", ends="all")
    assert not result["conversations"] and "user: question 3" in list(read_documents(home / "ca"))


def test_a_finished_mixture_is_not_made_again(home):
    parts = [part(home / "a"), part(home / "b")]
    first = mix(parts, home / "mix")
    for path in shards(home / "a"):
        path.unlink()
    assert mix(parts, home / "mix") == first
    assert json.loads((home / "mix" / "manifest.json").read_text())["parts"] == first["parts"]


def test_a_part_that_changed_or_is_not_finished_is_told_by_its_name(home):
    with shards(home / "a")[0].open("ab") as file:
        file.write(b"x")
    with pytest.raises(ValueError, match=r"documents-00000\.parquet has [\d,]+ bytes instead of") as failed:
        mix([part(home / "a")], home / "mix")
    assert classify(failed.value).code == "CORRUPT_DATA"
    (home / "b" / "manifest.json").unlink()
    with pytest.raises(InvalidInput, match="The dataset b is not finished"):
        mix([part(home / "b")], home / "mix")


@pytest.mark.parametrize(
    ("parts", "fields", "field", "said"),
    [
        ([], {}, "parts", "1 to 32 parts"),
        ([{"folder": "/a", "name": "a"}, {"folder": "/a", "name": "a"}], {}, "parts", "one part only"),
        ([{"folder": "/a", "name": "a", "weight": 0}], {}, "parts", "weight of a must be more than 0"),
        ([{"folder": "/a", "name": "a", "weight": float("nan")}], {}, "parts", "weight of a must be more than 0"),
        ([{"folder": "/a", "name": "a", "max_bytes": 0}], {}, "parts", "a: Give 1 byte or more"),
        ([{"folder": "a", "name": "a"}], {}, "parts", "absolute folder"),
        ([{"folder": "/a", "name": "a", "colour": 1}], {}, "parts", "absolute folder and a name"),
        ([{"folder": "/a", "name": "a"}], {"ends": "never"}, "ends", "neither first nor all"),
        ([{"folder": "/a", "name": "a"}], {"seed": -1}, "seed", "from 0"),
        ([{"folder": "/a", "name": "a"}], {"max_documents": 0}, "max_documents", "1 document or more"),
    ],
)
def test_what_cannot_be_mixed_is_refused_by_its_field(tmp_path, parts, fields, field, said):
    with pytest.raises(InvalidInput, match=said) as refused:
        Params(parts, str(tmp_path), **fields)
    assert refused.value.field == field
