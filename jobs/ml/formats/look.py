"""What SAE a folder, an archive or a repository holds, said before anything of its weights is read. Needs no torch."""

import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from jobs.ml import formats
from jobs.ml.errors import Unusable, WithHint
from jobs.ml.formats.facts import MOST_JSON, Facts

MOST_LOOKED_AT = 20_000  # files of a folder


@dataclass(frozen=True)
class Found:
    format: str
    path: str  # of the SAE's folder in the source
    size: int  # bytes of its files
    facts: Facts | None  # None: what it is stands in files that were not fetched yet
    place: str
    commit: str = ""

    @property
    def label(self) -> str:
        return formats.FORMATS[self.format].label


def look_path(source: Path, path: str = "") -> Found:
    """A folder or an archive on this machine. Raises CorruptData, Unusable, DiskFull."""
    if source.is_dir():
        return look_folder(source, path)
    from jobs.ml import archives
    from jobs.ml.text_files import reading

    if not archives.is_archive(source):
        hint = "Give the folder that holds the SAE's files, or a zip or tar archive of it."
        raise Unusable(f"{source.name} is neither a folder nor an archive.", hint)
    members = {member.name: member for member in archives.members(source, source.name)}

    def text_of(name: str) -> bytes:
        with reading(source.name), members[name].open() as file:
            return bytes(file.read(MOST_JSON + 1))

    return by_texts({name: member.size for name, member in members.items()}, path, source.name, text_of)


def look_folder(source: Path, path: str) -> Found:
    files = list(islice((file for file in source.rglob("*") if file.is_file()), MOST_LOOKED_AT + 1))
    if len(files) > MOST_LOOKED_AT:
        raise Unusable(f"{source} holds more than {MOST_LOOKED_AT:,} files.", "Give the folder of the SAE itself.")
    names = [file.relative_to(source).as_posix() for file in files if not file.is_symlink()]
    chosen = formats.choose(names, path)
    folder = source / chosen
    place = f"{source}/{chosen}".rstrip("/")
    size = sum((source / name).stat().st_size for name in names if formats.belongs(name, chosen))
    return Found(formats.format_of(folder), chosen, size, formats.recognise(folder, place), place)


def look_hub(repository: str, path: str, revision: str, token: str, seconds: float) -> Found:
    """Raises HubError, Unusable."""
    from jobs.ml import hub, hub_preview

    until = time.monotonic() + seconds
    seen = hub_preview.preview("model", repository, revision, token=token, seconds=seconds)
    files = {file.name: file.size or 0 for file in seen.repository.files}

    def text_of(name: str) -> bytes:
        with hub_preview.asked("model", repository, revision, None, until):
            return hub.read_bounded(seen.repository.url(quote(name)), MOST_JSON, until, token)

    found = by_texts(files, path, repository, text_of)
    return Found(found.format, found.path, found.size, found.facts, found.place, seen.repository.commit)


def by_texts(sizes: dict[str, int], path: str, source: str, text_of: Callable[[str], bytes]) -> Found:
    """From the configuration alone: the weights stay where they are."""
    chosen = formats.choose(list(sizes), path)
    place = f"{source}/{chosen}".rstrip("/")
    taken = [name for name in sizes if formats.belongs(name, chosen)]
    with tempfile.TemporaryDirectory() as room:
        stand_in(Path(room), chosen, taken, text_of)
        format = formats.format_of(Path(room))
        try:
            facts: Facts | None = formats.recognise(room, place)
        except WithHint:
            if any(name.endswith(".json") for name in taken) and format != "gemma_scope":
                raise
            facts = None  # of this format the header of the weights tells
    return Found(format, chosen, sum(sizes[name] for name in taken), facts, place)


def stand_in(room: Path, chosen: str, names: Iterable[str], text_of: Callable[[str], bytes]) -> None:
    """A folder with the texts, and with empty files for the weights."""
    for name in names:
        target = room / PurePosixPath(name).relative_to(chosen or ".")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(text_of(name) if name.endswith(".json") else b"")
