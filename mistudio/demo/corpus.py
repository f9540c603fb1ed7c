"""The demo corpus: the documentation and the sources that come with the Python that runs miStudio.

Nothing is downloaded. The order is a fixed shuffle (by digest), so the first n documents are a fair sample.
No text appears twice: docstrings are taken out of the sources and become documents of their own.
"""

import ast
import hashlib
import json
import os
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib import import_module
from inspect import cleandoc, isdatadescriptor, isroutine
from itertools import chain
from pathlib import Path
from string import ascii_letters
from types import BuiltinFunctionType, ModuleType

LONGEST, SHORTEST = 8000, 200  # characters in a document
SKIPPED_FOLDERS = {
    "__phello__", "__pycache__", "distutils", "encodings", "ensurepip", "idlelib", "lib2to3",
    "pydoc_data", "test", "tests", "turtledemo",
}  # fmt: skip
SKIPPED_FILES = re.compile(r"_sysconfigdata_.*|_sysconfig_vars.*|stringprep|entities|this|__main__")
NATIVE_MODULES = (
    "builtins", "sys", "math", "cmath", "itertools", "_functools", "_collections", "_io", "time",
    "_datetime", "_decimal", "_struct", "_socket", "_ssl", "_sqlite3", "_thread", "_random", "_bisect",
    "_heapq", "_operator", "_json", "_csv", "_pickle", "_asyncio", "_queue", "_abc", "_weakref",
    "_hashlib", "_contextvars", "_zoneinfo", "_lzma", "_bz2", "array", "binascii", "errno",
    "faulthandler", "fcntl", "gc", "grp", "marshal", "mmap", "posix", "nt", "pwd", "pyexpat",
    "resource", "select", "signal", "syslog", "termios", "unicodedata", "zlib",
)  # fmt: skip

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True, slots=True)
class Document:
    text: str
    title: str  # the module or topic: every piece of one module has the same title
    kind: str  # topic, docstring or source


def documents() -> Iterator[Document]:
    unique: dict[bytes, Document] = {}
    seen: set[str] = set()
    for document in chain(_topics(seen), _native_docstrings(seen), _library(seen)):
        if len(document.text) >= SHORTEST and _is_readable(document.text):
            unique.setdefault(hashlib.blake2b(document.text.encode(), digest_size=16).digest(), document)
    for digest in sorted(unique):
        yield unique[digest]


def write_corpus(path: Path) -> int:
    """Write one JSON object a line; returns the number of documents. The file appears whole or not at all."""
    lines = [json.dumps(asdict(document), ensure_ascii=False) + "\n" for document in documents()]
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return len(lines)


def _topics(seen: set[str]) -> Iterator[Document]:
    try:
        topics: dict[str, str] = import_module("pydoc_data.topics").topics
    except (ImportError, AttributeError):
        return
    longest_first = sorted(topics.items(), key=lambda item: (-len(item[1]), item[0]))  # they contain others
    for title, text in longest_first:
        paragraphs = _fresh(re.split(r"(?<=\n)(?=\n)", text.strip()), seen)
        yield from (Document(piece, title, "topic") for piece in _pieces(paragraphs))


def _native_docstrings(seen: set[str]) -> Iterator[Document]:
    for name in NATIVE_MODULES:
        try:
            module = import_module(name)
        except ImportError:
            continue
        yield from (Document(piece, name, "docstring") for piece in _pieces(_fresh(_native_entries(module), seen)))


def _native_entries(module: ModuleType) -> Iterator[str]:
    yield _entry(module.__name__, module.__doc__)
    for name, value in sorted(vars(module).items()):
        if not isinstance(value, type):
            yield _entry(name, value.__doc__ if isinstance(value, BuiltinFunctionType) else None)
        elif value.__name__ == name:
            yield _entry(f"class {name}", value.__doc__)
            yield from (
                _entry(f"{name}.{part}", member.__doc__)
                for part, member in sorted(vars(value).items())
                if not part.startswith("__") and (isroutine(member) or isdatadescriptor(member))
            )


def _fresh(blocks: Iterable[str], seen: set[str]) -> Iterator[str]:
    """Blocks whose text, heading aside, was not met before: topics overlap, and modules share docstrings."""
    for block in blocks:
        body = block.strip("\n").partition("\n\n")[2] or block.strip("\n")
        if body not in seen:
            seen.add(body)
            yield block


def _entry(heading: str, docstring: object) -> str:
    if not isinstance(docstring, str) or len(docstring) < 20:
        return ""
    return heading + "\n\n" + "".join(f"    {line}".rstrip() + "\n" for line in cleandoc(docstring).splitlines()) + "\n"


def _library(seen: set[str]) -> Iterator[Document]:
    root = Path(sysconfig.get_path("stdlib") or os.devnull)
    for path in _source_files(root):
        try:
            source = path.read_text(encoding="utf-8")
            with warnings.catch_warnings(action="ignore"):
                tree = ast.parse(source)
        except (OSError, ValueError, SyntaxError):
            continue
        title = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        yield from (Document(piece, title, "docstring") for piece in _pieces(_fresh(_entries(tree, title), seen)))
        yield from (Document(piece, title, "source") for piece in _pieces(_definitions(tree, source)))


def _source_files(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in SKIPPED_FOLDERS and "-" not in name)
        for name in sorted(names):
            if name.endswith(".py") and not SKIPPED_FILES.fullmatch(name[:-3]):
                yield Path(folder, name)


def _entries(tree: ast.Module, title: str) -> Iterator[str]:
    yield _entry(title, ast.get_docstring(tree))
    for name, node in _named(tree):
        if docstring := ast.get_docstring(node):
            yield _entry(_heading(name, node), docstring)


def _named(scope: ast.Module | ast.ClassDef, prefix: str = "") -> Iterator[tuple[str, Definition]]:
    """Classes, functions and methods with their dotted names; nothing that is nested in a function."""
    for node in scope.body:
        if isinstance(node, Definition):
            yield prefix + node.name, node
        if isinstance(node, ast.ClassDef):
            yield from _named(node, f"{prefix}{node.name}.")


def _heading(name: str, node: Definition) -> str:
    if isinstance(node, ast.ClassDef):
        return f"class {name}({', '.join(map(ast.unparse, node.bases))})".replace("()", "")
    return f"{name}({ast.unparse(node.args)})"


def _definitions(tree: ast.Module, source: str) -> Iterator[str]:
    """The source without its docstrings, cut before each class, function and method."""
    lines = source.splitlines(keepends=True)
    starts = {_start(node, lines) for _, node in _named(tree)}
    for first, last in _docstring_lines(tree):
        lines[first - 1 : last] = [""] * (last - first + 1)
    edges = [0, *sorted(starts - {0}), len(lines)]
    blocks = ["".join(lines[a:b]) for a, b in zip(edges, edges[1:], strict=False)]
    yield _without_notice(blocks[0])
    yield from blocks[1:]


def _start(node: Definition, lines: list[str]) -> int:
    """Index of a definition's first line, its decorators and the comment above it included."""
    index = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]) - 1
    while index > 0 and lines[index - 1].lstrip().startswith("#"):
        index -= 1
    return index


def _docstring_lines(tree: ast.Module) -> Iterator[tuple[int, int]]:
    for node in [tree, *(node for _, node in _named(tree))]:
        if len(node.body) > 1 and ast.get_docstring(node, clean=False):
            docstring = node.body[0]
            if docstring.lineno > getattr(node, "lineno", 0) and docstring.end_lineno:
                yield docstring.lineno, min(docstring.end_lineno, node.body[1].lineno - 1)


def _without_notice(text: str) -> str:
    """Without the comment at the head of a file: shebang, author, copyright."""
    return re.sub(r"\A(?:[ \t]*(?:#.*)?\n)+", "", text)


def _pieces(blocks: Iterable[str]) -> Iterator[str]:
    """Join neighbouring blocks up to the longest length; a longer block is cut at line ends."""
    held = ""
    for part in chain.from_iterable(map(_cut, blocks)):
        if len(held) + len(part) > LONGEST:
            yield held.strip("\n") + "\n"
            held = ""
        held += part
    yield held.strip("\n") + "\n"


def _cut(block: str) -> Iterator[str]:
    while len(block) > LONGEST:
        end = block.rfind("\n", 0, LONGEST) + 1 or LONGEST
        yield block[:end]
        block = block[end:]
    yield block


def _is_readable(text: str) -> bool:
    """False for tables of numbers and escapes."""
    data = text.encode()
    return len(data) - len(data.translate(None, delete=ascii_letters.encode())) > 0.45 * len(text)
