"""The plan of the house, enforced: which room may import which, and how large its parts may be."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [
    path
    for room in ("mistudio", "jobs", "monitoring")
    for path in sorted((ROOT / room).rglob("*.py"))
    if "migrations" not in path.parts
]
HEAVY = ("torch", "transformers", "datasets", "bitsandbytes", "accelerate")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.fixture(scope="module")
def nodes() -> dict[Path, list[ast.AST]]:
    return {path: list(ast.walk(ast.parse(path.read_text()))) for path in SOURCES}


@pytest.fixture(scope="module")
def functions(nodes) -> dict[Path, list[ast.FunctionDef | ast.AsyncFunctionDef]]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {path: [node for node in found if isinstance(node, kinds)] for path, found in nodes.items()}


def imports(found: list[ast.AST]) -> Iterator[str]:
    for node in found:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.fixture(scope="module")
def importers(nodes):
    """Sources below a folder → what each imports of these rooms, for those that import any of it."""
    modules = {path: set(imports(found)) for path, found in nodes.items()}

    def importers(folder: str, *rooms: str) -> dict[str, set[str]]:
        looked_at = [path for path in SOURCES if path.is_relative_to(ROOT / folder)]
        assert looked_at, f"there is no source in {folder}"
        ours = re.compile(rf"({'|'.join(map(re.escape, rooms))})(\..*)?")
        found = {name(path): set(filter(ours.fullmatch, modules[path])) for path in looked_at}
        return {path: of_rooms for path, of_rooms in found.items() if of_rooms}

    return importers


def test_jobs_know_nothing_of_the_domain(importers):
    assert importers("jobs", "mistudio", "monitoring") == {}


def test_the_engine_knows_nothing_of_django(importers):
    rest = ("jobs.models", "jobs.queue", "jobs.context", "jobs.live")
    assert importers("jobs/ml", "django", "channels", "django_q", *rest) == {}


def test_monitoring_knows_neither_jobs_nor_the_domain(importers):
    assert importers("monitoring", "jobs", "mistudio") == {}


def test_only_the_queue_imports_django_q(importers):
    assert importers("", "django_q").keys() <= {"jobs/queue.py", "jobs/cluster.py"}


def test_the_web_process_never_loads_torch():
    code = (
        "import django, sys; django.setup(); import mistudio.asgi, mistudio.urls, mistudio.ingest, jobs.consumers; "
        "from django.urls import get_resolver; get_resolver().url_patterns; "
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_parts_stay_small(functions):
    lines = {name(path): path.read_text().count("\n") for path in SOURCES}
    assert {path: count for path, count in lines.items() if count > 400} == {}
    long = [(name(p), f.name) for p, found in functions.items() for f in found if f.end_lineno - f.lineno >= 60]
    assert long == []


def test_functions_are_short_at_the_median(functions):
    sizes = sorted(f.end_lineno - f.lineno + 1 for found in functions.values() for f in found)
    assert sizes[len(sizes) // 2] <= 10


def test_templates_and_static_files_stay_small():
    sizes = {name(p): p.read_text().count("\n") for p in (ROOT / "templates").rglob("*.html")}
    assert {path: size for path, size in sizes.items() if size > 120} == {}
    sizes = {name(p): p.read_text().count("\n") for p in (ROOT / "static").rglob("*.[cj]s*")}
    assert {path: size for path, size in sizes.items() if size > 500} == {}


def test_no_room_has_a_name_that_says_nothing():
    forbidden = {"utils", "helpers", "common", "misc", "manager", "managers", "services", "core"}
    assert not [name(path) for path in SOURCES if forbidden & {path.stem, *path.relative_to(ROOT).parts[:-1]}]
