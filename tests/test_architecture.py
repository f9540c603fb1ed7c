"""The plan of the house, enforced: which room may import which, and how large its parts may be."""

import ast
import functools
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


@functools.cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text())))


def functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in nodes(path) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


def imports(path: Path) -> Iterator[str]:
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def imports_any(path: Path, rooms: tuple[str, ...]) -> set[str]:
    return {
        module for module in imports(path) if any(module == room or module.startswith(f"{room}.") for room in rooms)
    }


@pytest.mark.parametrize("path", [p for p in SOURCES if p.parts[len(ROOT.parts)] == "jobs"], ids=name)
def test_jobs_know_nothing_of_the_domain(path):
    assert not imports_any(path, ("mistudio", "monitoring"))


@pytest.mark.parametrize("path", [p for p in SOURCES if p.is_relative_to(ROOT / "jobs" / "ml")], ids=name)
def test_the_engine_knows_nothing_of_django(path):
    assert not imports_any(
        path, ("django", "channels", "django_q", "jobs.models", "jobs.queue", "jobs.context", "jobs.live")
    )


def test_monitoring_knows_neither_jobs_nor_the_domain():
    found = {name(p): imports_any(p, ("jobs", "mistudio")) for p in SOURCES if p.is_relative_to(ROOT / "monitoring")}
    assert found and not any(found.values())


def test_only_the_queue_imports_django_q():
    importers = {name(path) for path in SOURCES if imports_any(path, ("django_q",))}
    assert importers <= {"jobs/queue.py", "jobs/cluster.py"}


def test_the_web_process_never_loads_torch():
    code = (
        "import django, sys; django.setup(); import mistudio.asgi, mistudio.urls, mistudio.ingest, jobs.consumers; "
        "from django.urls import get_resolver; get_resolver().url_patterns; "
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_parts_stay_small(path):
    assert path.read_text().count("\n") <= 400
    assert not [function.name for function in functions(path) if function.end_lineno - function.lineno >= 60]


def test_functions_are_short_at_the_median():
    sizes = sorted(f.end_lineno - f.lineno + 1 for path in SOURCES for f in functions(path))
    assert sizes[len(sizes) // 2] <= 10


def test_templates_and_static_files_stay_small():
    sizes = {name(p): p.read_text().count("\n") for p in (ROOT / "templates").rglob("*.html")}
    assert {path: size for path, size in sizes.items() if size > 120} == {}
    sizes = {name(p): p.read_text().count("\n") for p in (ROOT / "static").rglob("*.[cj]s*")}
    assert {path: size for path, size in sizes.items() if size > 500} == {}


def test_no_room_has_a_name_that_says_nothing():
    forbidden = {"utils", "helpers", "common", "misc", "manager", "managers", "services", "core"}
    assert not [name(path) for path in SOURCES if forbidden & {path.stem, *path.relative_to(ROOT).parts[:-1]}]
