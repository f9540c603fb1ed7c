from collections.abc import Sequence
from pathlib import Path
from typing import Any

from django import forms
from django.core.files.uploadedfile import UploadedFile
from django.core.validators import MaxLengthValidator

from jobs.ml.beginnings import ENDINGS
from jobs.ml.text_files import PACKINGS
from mistudio.formats import binary
from mistudio.forms.dataset import DatasetForm
from mistudio.models import Dataset, Team, Upload, User
from mistudio.models.upload import CHUNK, HEAD, Refused, hand_over, kept_bytes, quota_left
from mistudio.security import PLAIN_LIMIT

MOST_FILES = 500  # of one dataset


class Files(forms.ClearableFileInput):
    allow_multiple_selected = True
    template_name = "django/forms/widgets/file.html"


class FilesField(forms.FileField):
    widget = Files

    def clean(self, data: Any, initial: Any = None) -> list[UploadedFile]:
        return [super(FilesField, self).clean(file, initial) for file in data or () if file]


class UploadedDatasetForm(DatasetForm):
    """A dataset from files that were uploaded, or that come with the form itself; or, without any, from its source."""

    def __init__(self, *args: Any, team: Team, owner: User | None, too_large: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, team=team, owner=owner, **kwargs)
        self.too_large, self.chosen = too_large, list[Upload]()
        self.fields["source"].required = False
        self.fields["files"] = FilesField(label="Files of your own", required=False)
        self.fields["files"].widget.attrs["accept"] = ",".join(ENDINGS)
        self.mine = list(Upload.objects.of_team(team).filter(owner=owner).select_related("dataset"))
        self.fields["uploads"] = forms.MultipleChoiceField(
            choices=[(str(upload.pk), upload.name) for upload in self.mine if upload.whole],
            label="Uploaded files",
            required=False,
            validators=[MaxLengthValidator(MOST_FILES)],
            error_messages={"invalid_choice": "An uploaded file is no longer here: choose it again."},
        )

    def limits(self) -> dict[str, Any]:
        """What the page says beside the choice of files."""
        left = quota_left(self.team, kept_bytes(self.team))
        return {"plain": PLAIN_LIMIT, "left": left, "chunk": CHUNK, "head": HEAD, "files": MOST_FILES}

    def kept(self) -> list[tuple[Upload, bool]]:
        """The person's uploads that are whole, and whether they are chosen."""
        said = self["uploads"].value() if self.is_bound else str(self.initial.get("uploads", "")).split(",")
        picked = {*(said or ()), *(str(upload.pk) for upload in self.chosen)}
        rows = {upload.pk: upload for upload in [*self.mine, *self.chosen]}.values()
        return [(upload, str(upload.pk) in picked) for upload in rows if upload.whole]

    def unfinished(self) -> list[Upload]:
        return [upload for upload in self.mine if not upload.whole]

    def clean_source(self) -> str:
        return super().clean_source() if self.cleaned_data["source"] else ""

    def clean_files(self) -> list[Upload]:
        """Received at once, so that they are here still if something else is wrong with the form."""
        if self.too_large:
            raise forms.ValidationError(
                f"Sent with the form, files may have {binary(PLAIN_LIMIT)} together. With scripts turned on larger "
                "ones are sent in parts. Or give a path on the machine that runs miStudio."
            )
        try:
            for file in self.cleaned_data["files"]:
                self.chosen.append(received(self.team, self.owner, file))
        except Refused as refused:
            raise forms.ValidationError(str(refused)) from refused
        return self.chosen

    def clean_uploads(self) -> list[Upload]:
        return [upload for upload in self.mine if str(upload.pk) in self.cleaned_data["uploads"]]

    def clean(self) -> dict[str, Any]:
        data = self.cleaned_data
        self.chosen = sorted({*self.chosen, *data.get("uploads", ())}, key=lambda upload: (upload.name, upload.pk))
        if self.chosen and data.get("source"):
            self.add_error("source", "Files are chosen, too. Empty this, or take the files out.")
        elif self.chosen:
            data["source"] = f"uploaded: {and_more([upload.name for upload in self.chosen])}"
        elif not data.get("source") and not {"source", "files", "uploads"} & set(self.errors):
            self.add_error("source", "This is required: give a hub id or a path, or choose files below.")
        return super().clean()

    def suggested_name(self) -> str:
        if not self.chosen:
            return super().suggested_name()
        name = Path(self.chosen[0].name)
        return Path(name.stem).stem if name.suffix.lower() in PACKINGS else name.stem

    def save(self, commit: bool = True) -> Dataset:
        self.instance.uploaded = distinct([upload.name for upload in self.chosen])
        dataset: Dataset = super().save(commit)
        if self.chosen:
            hand_over(self.chosen, dataset.uploaded, dataset.upload_folder)
            Upload.objects.filter(pk__in=[upload.pk for upload in self.chosen]).update(dataset=dataset)
        return dataset


def and_more(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1:,} more"


def distinct(names: Sequence[str]) -> list[str]:
    """The names in their order, a repeated one with a number before its endings."""
    found: list[str] = []
    for name in names:
        stem, dot, ending = name.partition(".")
        numbered = (f"{stem}-{n}{dot}{ending}" for n in range(2, len(names) + 2))
        found.append(next(free for free in (name, *numbered) if free not in found))
    return found


def received(team: Team, owner: User | None, file: UploadedFile) -> Upload:
    """What was sent with a form, kept as if it had come in parts. Raises Refused."""
    assert owner is not None  # a page knows who sends
    head = file.read(HEAD)
    upload = Upload.begin(team, owner, file.name or "", file.size or 0, head)
    for chunk in file.chunks(CHUNK):
        upload.append(upload.received, chunk)
    return upload
