"""An SAE that another library wrote: looked at before it is imported, as far as it lies on this machine."""

from functools import cached_property
from pathlib import Path
from typing import Any

from django import forms

from jobs.kinds.sources import is_path
from jobs.ml.archives import ARCHIVES
from jobs.ml.disk import DiskFull
from jobs.ml.errors import WithHint
from jobs.ml.formats import LABELS, look
from mistudio.forms.artifact import ArtifactForm
from mistudio.forms.several import names_of
from mistudio.forms.sources import clean_source
from mistudio.forms.upload import received
from mistudio.models import LanguageModel, Sae, Team, Upload, User
from mistudio.models.upload import Refused, hand_over


class SaeForm(ArtifactForm):
    formats = " or ".join(", ".join(LABELS).rsplit(", ", 1))

    class Meta:
        model = Sae
        fields = ("source", "path", "revision", "language_model", "licence", "name")
        labels = {"source": "Hub id, folder or archive", "path": "Path within"}
        help_texts = {
            "source": "Such as google/gemma-scope-2b-pt-res, or a folder, zip or tar file on this machine.",
            "path": "Of the SAE, where the source holds several: layer_12/width_16k/average_l0_82.",
            "revision": "Branch, tag or commit of the hub. Empty: the default branch.",
            "language_model": "The one whose activations it was trained on.",
            "licence": "Empty: as the hub's card says.",
        }

    site = forms.CharField(
        max_length=2000,
        required=False,
        label="Reads",
        help_text="Such as blocks.3.hook_resid_post. Empty: as its files say.",
    )
    writes = forms.CharField(
        max_length=120, required=False, label="Writes", help_text="Of a transcoder: the site that it rebuilds."
    )

    def __init__(self, *args: Any, team: Team, owner: User | None, **kwargs: Any) -> None:
        super().__init__(*args, team=team, owner=owner, **kwargs)
        self.found: look.Found | None = None

    def clean_source(self) -> str:
        return clean_source(self.cleaned_data["source"], "sae")

    def clean_path(self) -> str:
        path = self.cleaned_data["path"].strip().strip("/")
        if ".." in path.split("/"):
            raise forms.ValidationError("This leads out of the source. Give a folder within.")
        return path

    def clean_site(self) -> str:
        return ",".join(names_of(self.cleaned_data["site"]))

    def archive(self) -> Upload | None:
        """A file that came from a browser."""
        return None

    def clean(self) -> dict[str, Any]:
        data = super().clean()
        if self.errors:
            return data
        try:
            self.found = self.seen(data)
        except WithHint as refused:
            field = "path" if getattr(refused, "field", "") == "path" else "source"
            self.add_error(field, f"{refused} {refused.hint}".strip())
            return data
        except OSError as error:
            said = str(error) if isinstance(error, DiskFull) else error.strerror or str(error)
            self.add_error("source", f"This cannot be looked at: {said}.")
            return data
        self.check_sites(data, data["language_model"])
        return data

    def seen(self, data: dict[str, Any]) -> look.Found | None:
        """None for what the hub holds: the job looks at that."""
        if upload := self.archive():
            return look.look_path(upload.path, data["path"])
        return look.look_path(Path(data["source"]), data["path"]) if is_path(data["source"]) else None

    def check_sites(self, data: dict[str, Any], model: LanguageModel) -> None:
        """What was typed, else what the files say, is of this model, and as wide as the SAE."""
        facts = self.found.facts if self.found else None
        sides = (
            ("site", names_of(data["site"]), facts.reads if facts else ()),
            ("writes", names_of(data["writes"]), facts.writes if facts else ()),
        )
        for field, typed, said in sides:
            sites = typed or list(said)
            wrong = next((why for site in sites if (why := model.why_no_site(site))), "")
            if wrong:
                of = f"; it was trained on {facts.model_name}" if facts and facts.model_name else ""
                self.add_error(field, wrong if typed else f"{wrong} Its files say so{of}.")
            elif facts:
                width = facts.d_in if field == "site" else facts.d_out or facts.d_in
                self.check_width(field, sites, width, model)
        if facts and not self.errors:
            self.check_sides(facts, sides)

    def check_width(self, field: str, sites: list[str], width: int, model: LanguageModel) -> None:
        widths = [model.site_width(site) for site in sites]
        whole = sum(n for n in widths if n)
        if sites and None not in widths and whole != width:
            said = f"{' and '.join(sites)} of {model.name} has {whole:,} dimensions, but the SAE has {width:,} there."
            fits = [entry["name"] for entry in model.sites if entry["width"] == width]
            hint = f"It fits {', '.join(fits[:4])}." if fits else "Choose the model that it was trained on."
            self.add_error(field, f"{said} {hint}")

    def check_sides(self, facts: Any, sides: Any) -> None:
        (_, reads, said), (_, writes, rebuilt) = sides
        if not reads and not said:
            self.add_error("site", "Its files do not say which site it reads. Give it.")
        if facts.transcodes and not writes and not rebuilt:
            self.add_error("writes", "It is a transcoder, and its files do not say what it rebuilds. Give the site.")
        if writes and not facts.transcodes:
            self.add_error("writes", "It rebuilds what it reads. Leave this empty.")

    def suggested_name(self) -> str:
        data = self.cleaned_data
        last = Path(data["path"] or data["source"]).name
        whole = f"{Path(data['source']).name}-{last}" if data["path"] else last
        return next((whole.removesuffix(end) for end in ARCHIVES if whole.endswith(end)), whole)

    def save(self, commit: bool = True) -> Sae:
        data, row, facts = self.cleaned_data, self.instance, self.found.facts if self.found else None
        wished = {"reads": names_of(data["site"]), "writes": names_of(data["writes"])}
        row.imported = {"wished": wished}
        row.reads = wished["reads"] or list(facts.reads if facts else ())
        row.writes = wished["writes"] or list(facts.writes if facts else ())
        row.architecture = facts.architecture if facts else ""
        row.d_in, row.width = (facts.d_in, facts.width) if facts else (0, 0)
        row.options = {"k": facts.k} if facts and facts.k else {}
        saved: Sae = super().save(commit)
        return saved


class UploadedSaeForm(SaeForm):
    """The page's form: an archive may come with it."""

    file = forms.FileField(
        required=False, label="Or an archive of your own", help_text="A zip or tar file of its folder."
    )

    def __init__(self, *args: Any, team: Team, owner: User | None, too_large: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, team=team, owner=owner, **kwargs)
        self.too_large = too_large
        self.fields["source"].required = False
        self.fields["file"].widget.attrs["accept"] = ",".join(ARCHIVES)
        self.fields["upload"] = self.upload_field()

    @cached_property
    def mine(self) -> list[Upload]:
        return list(Upload.objects.of_team(self.team).filter(owner=self.owner)) if self.owner else []

    def clean_source(self) -> str:
        return super().clean_source() if self.cleaned_data["source"] else ""

    def clean_file(self) -> Upload | None:
        if self.too_large:
            raise forms.ValidationError("This file is too large to be sent with the form. Give a path on this machine.")
        file = self.cleaned_data["file"]
        if file is None or self.owner is None:
            return None
        if not file.name.lower().endswith(ARCHIVES):
            raise forms.ValidationError(f"{file.name} is no archive. Send a zip or tar file of the SAE's folder.")
        try:
            upload = received(self.team, self.owner, file)
        except Refused as refused:
            raise forms.ValidationError(str(refused)) from refused
        self.offer(upload)
        return upload

    def offer(self, upload: Upload) -> None:
        """What came with the form is chosen when the form comes back."""
        self.mine.append(upload)
        self.fields["upload"] = self.upload_field()
        self.data = {**{name: self.data.get(name) for name in self.data}, "upload": str(upload.pk)}

    @property
    def archives(self) -> list[Upload]:
        return [upload for upload in self.mine if upload.whole and upload.name.lower().endswith(ARCHIVES)]

    def upload_field(self) -> forms.ChoiceField:
        choices = [("", "None"), *((str(upload.pk), upload.name) for upload in self.archives)]
        return forms.ChoiceField(choices=choices, required=False, label="Or one that was uploaded")

    def archive(self) -> Upload | None:
        data = self.cleaned_data
        chosen = next((upload for upload in self.mine if str(upload.pk) == data.get("upload")), None)
        return data.get("file") or chosen

    def clean(self) -> dict[str, Any]:
        data = self.cleaned_data
        upload = None if self.errors else self.archive()
        if upload and data["source"]:
            self.add_error("source", "An archive is chosen, too. Empty this, or take the archive out.")
        elif upload:
            data["source"] = upload.name
        elif not data.get("source") and not {"source", "file", "upload"} & set(self.errors):
            self.add_error("source", "This is required: give a hub id, a folder or an archive, or choose one below.")
        return super().clean()

    def save(self, commit: bool = True) -> Sae:
        upload = self.archive()
        if upload:
            self.instance.uploaded = upload.name
        row = super().save(commit)
        if upload:
            hand_over([upload], [upload.name], row.upload_folder)
        return row
