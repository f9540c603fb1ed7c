from pathlib import Path

from django.conf import settings
from django.core.exceptions import ValidationError

from jobs.ml.hub_names import is_hub_id
from mistudio.models import ARTIFACTS
from mistudio.models.upload import ROOM as UPLOADS


def outside_own_data(path: Path) -> str:
    """Another team's objects and logs lie below the data folder; they are reached by their pages alone."""
    if settings.MISTUDIO_DATA.is_relative_to(path):
        raise ValidationError(f"{path} holds miStudio's own data. Give a folder that does not.")
    rooms = {*(model.ROOM for model in ARTIFACTS), UPLOADS, "jobs"}
    if any(path.is_relative_to(settings.MISTUDIO_DATA / room) for room in rooms):
        raise ValidationError(f"{path} is part of miStudio's own data. Give the file or folder it was made from.")
    return str(path)


def clean_source(text: str, noun: str) -> str:
    """A hub id as it is, or a path made absolute. What a path holds is judged by the job, which reads it."""
    text = text.strip()
    if any(ord(c) < 32 for c in text):
        raise ValidationError("This has control characters. Give a hub id or a path.")
    looks_like_path = text.startswith(("/", "~", ".")) or text.count("/") > 1
    try:
        path = Path(text).expanduser()
        there, path = path.exists(), path.resolve()
    except (OSError, RuntimeError) as error:  # a name too long, a folder that is closed, nobody's home
        raise ValidationError(f"This path cannot be looked at: {getattr(error, 'strerror', None) or error}.") from error
    if there and (looks_like_path or not is_hub_id(text)):
        return outside_own_data(path)
    if looks_like_path:
        raise ValidationError(f"There is no file or folder {text} on the machine that runs miStudio.")
    if not is_hub_id(text):
        raise ValidationError(
            f"“{text}” is neither a hub id (owner/{noun}) nor a path that exists. A path starts with / or ./"
        )
    return text
