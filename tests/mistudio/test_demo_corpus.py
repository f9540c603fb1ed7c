import ast
import json
import os
import subprocess
import sys
import sysconfig
from collections import Counter
from inspect import cleandoc
from pathlib import Path

import pytest

from mistudio.demo import corpus
from mistudio.demo.corpus import LONGEST, Document, documents, write_corpus


@pytest.fixture(scope="module")
def collected() -> list[Document]:
    return list(documents())


@pytest.mark.slow
def test_another_process_with_another_hash_seed_writes_the_same_documents(collected, tmp_path):
    path = tmp_path / "corpus.jsonl"
    program = (
        "import sys; from pathlib import Path; from mistudio.demo.corpus import write_corpus;"
        "print(write_corpus(Path(sys.argv[1])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        cwd=Path(corpus.__file__).parents[2],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    written = [Document(**json.loads(line)) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    assert int(done.stdout) == len(written)
    assert written == collected
    assert [entry.name for entry in tmp_path.iterdir()] == ["corpus.jsonl"]


def test_the_corpus_has_topics_docstrings_and_sources_and_much_of_it_is_prose(collected):
    characters = Counter[str]()
    for document in collected:
        characters[document.kind] += len(document.text)
    assert set(characters) == {"topic", "docstring", "source"}
    assert characters["topic"] > 200_000
    assert 4_000_000 < characters.total() < 20_000_000
    assert characters["topic"] + characters["docstring"] > 0.2 * characters.total()


def test_no_text_appears_twice(collected):
    assert len({document.text for document in collected}) == len(collected) > 1000


def test_documents_have_a_title_and_a_reasonable_size(collected):
    assert all(document.title and 200 <= len(document.text) <= LONGEST for document in collected)


def test_the_first_documents_are_a_fair_sample(collected):
    def share(some: list[Document]) -> float:
        return sum(document.kind == "source" for document in some) / len(some)

    assert share(collected[:400]) == pytest.approx(share(collected), abs=0.1)


def test_a_docstring_is_in_the_prose_and_no_longer_in_the_source(collected):
    sentence = "Serialize ``obj`` as a JSON formatted stream to ``fp``"
    found = Counter(document.kind for document in collected if sentence in document.text)
    assert found == {"docstring": 1}
    sources = [document.text for document in collected if (document.title, document.kind) == ("json", "source")]
    assert any("def dump(obj, fp" in text for text in sources)


def test_tests_tables_and_installed_packages_stay_out(collected):
    titles = {document.title for document in collected}
    assert {"json.decoder", "asyncio.events", "builtins"} <= titles
    assert not any(title.startswith(("encodings", "test", "lib2to3", "site-packages", "django")) for title in titles)


def test_without_library_and_topics_the_docstrings_of_the_interpreter_remain(monkeypatch):
    monkeypatch.setattr(sysconfig, "get_path", lambda name: "/nowhere")
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    remaining = list(documents())
    assert {document.kind for document in remaining} == {"docstring"}
    assert "builtins" in {document.title for document in remaining}


def test_files_that_are_no_python_of_today_are_passed_over(monkeypatch, tmp_path):
    body = "def area(width, height):\n" + "".join(f"    print('row {n} of the plan')\n" for n in range(20))
    (tmp_path / "plan.py").write_text(body)
    (tmp_path / "old.py").write_text("print 'hello'\n" * 50)
    (tmp_path / "latin.py").write_bytes(b"name = '\xff'\n" * 50)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    assert [document for document in documents() if document.kind == "source"] == [Document(body, "plan", "source")]


def test_the_corpus_is_a_file_with_a_document_in_each_line(monkeypatch, tmp_path):
    monkeypatch.setattr(sysconfig, "get_path", lambda name: "/nowhere")
    path = tmp_path / "corpus.jsonl"
    path.write_text("the old one")
    n = write_corpus(path)
    written = [Document(**json.loads(line)) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    assert written == list(documents()) and len(written) == n > 100
    assert [entry.name for entry in tmp_path.iterdir()] == ["corpus.jsonl"]


def test_a_corpus_that_cannot_be_collected_leaves_the_old_file(monkeypatch, tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text("the old one")
    monkeypatch.setattr(os, "fsync", _fail)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: "/nowhere")
    with pytest.raises(OSError, match="disk full"):
        write_corpus(path)
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [("corpus.jsonl", "the old one")]


def test_long_blocks_are_cut_at_line_ends_and_lose_nothing():
    block = "".join(f"line {number} of a long text\n" for number in range(2000))
    pieces = list(corpus._pieces([block]))
    assert "".join(pieces) == block
    assert max(map(len, pieces)) <= LONGEST


def test_a_source_is_cut_before_its_definitions_with_their_comments_and_decorators():
    source = cleandoc('''
        # Copyright notice
        import os

        # about first
        @os.register
        def first():
            """What first does."""
            return 1

        class Second:
            """What Second is."""

            def method(self):
                """Only a docstring."""
    ''')
    assert list(corpus._definitions(ast.parse(source), source + "\n")) == [
        "import os\n\n",
        "# about first\n@os.register\ndef first():\n    return 1\n\n",
        "class Second:\n\n",
        '    def method(self):\n        """Only a docstring."""\n',
    ]


def _fail(descriptor: int) -> None:
    raise OSError("disk full")
