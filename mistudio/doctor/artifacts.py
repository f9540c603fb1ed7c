from collections.abc import Iterator
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Info, Warning

from jobs.doctor import counted, examines
from jobs.folders import strays
from jobs.ml.disk import size
from mistudio.models import ARTIFACTS, Artifact, Sae

NAMED = 5


@examines("artifacts")
def artifacts() -> Iterator[CheckMessage]:
    found = [finding for model in ARTIFACTS for finding in of_room(model)]
    yield from found
    if not found:
        yield Info("Everything that is ready has its folder, and no folder is left over.")


def of_room(model: type[Artifact]) -> Iterator[CheckMessage]:
    rows: Any = model._default_manager
    ready = rows.exclude(ready_at=None).order_by("pk")
    if model is Sae:
        ready = ready.select_related("training")  # which has its folder
    missing = [row for row in ready if not row.folder.is_dir()]
    if missing:
        named = ", ".join(f"“{row}” ({row.pk})" for row in missing[:NAMED])
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        said = f"{counted(len(missing), model.NOUN)} without a folder: {named}{more}."
        hint = f"Bring {settings.MISTUDIO_DATA / model.ROOM} back from a backup, or delete them on their pages."
        yield Error(said, hint=hint)
    left = strays(settings.MISTUDIO_DATA / model.ROOM, set(rows.values_list("pk", flat=True)))
    if left:
        said = f"{counted(len(left.folders), 'folder')} in {model.ROOM}/ ({size(left.bytes)}) belong to no row."
        hint = f"Was the database set back? If not, delete them: {left.shown}"
        yield Warning(said, hint=hint)
