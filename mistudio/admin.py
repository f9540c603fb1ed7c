from typing import Any

from django.contrib import admin, messages
from django.contrib.auth import get_permission_codename
from django.contrib.auth.admin import UserAdmin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.template.response import TemplateResponse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from jobs.errors import InvalidInput
from jobs.queue import request_cancel, retry
from mistudio.models import (
    ARTIFACTS,
    Artifact,
    CacheShare,
    DatasetPart,
    Feature,
    HubToken,
    LanguageModel,
    Membership,
    Team,
    Template,
    Upload,
    User,
)
from mistudio.models.artifact import InUse

admin.site.site_header = "miStudio data"
admin.site.site_title = "miStudio data"
admin.site.index_title = "Data"


class NotAdded(admin.ModelAdmin):
    """Rows that are made on the site, by a command or by a job."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False


class NotDeleted(NotAdded):
    """Rows that only an action deletes, which takes their files along and refuses what is in use."""

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_remove_permission(self, request: HttpRequest) -> bool:
        """What such an action needs."""
        return request.user.has_perm(f"{self.opts.app_label}.{get_permission_codename('delete', self.opts)}")


class ReadOnlyJobFields(NotDeleted):
    """What a job measured cannot be typed in; what a person chose can be renamed."""

    list_select_related = ("team", "owner", "job")
    search_fields = ("name", "=id")
    list_filter = ("team", ("ready_at", admin.EmptyFieldListFilter), "created_at")
    date_hierarchy = "created_at"
    list_per_page = 50
    show_full_result_count = False
    actions = ("retry_jobs", "cancel_jobs", "verify", "delete_with_files")
    typed_in: tuple[str, ...] = ()

    def get_list_display(self, request: HttpRequest) -> tuple[str, ...]:
        return ("name", "state", "team", "owner", "job_link", "size_bytes", "created_at", "page")

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        fields = [field.name for field in self.model._meta.fields]
        return [*[name for name in fields if name not in (*self.typed_in, "name", "team", "owner")], "job_link", "page"]

    @admin.display(description="job")
    def job_link(self, row: Artifact) -> str:
        return link(row.job.get_absolute_url(), f"{row.job.pk} {row.job.state}") if row.job else "–"

    @admin.display(description="on the site")
    def page(self, row: Artifact) -> str:
        return link(row.get_absolute_url(), "open")

    @admin.action(description="Retry the failed or cancelled jobs", permissions=["change"])
    def retry_jobs(self, request: HttpRequest, rows: QuerySet) -> None:
        done = 0
        for row in rows:
            try:
                done += bool(row.job and row.job.can_retry and retry(row.job))
            except InvalidInput as refused:
                self.message_user(request, f"{row}: {refused.message}", messages.ERROR)
        self.message_user(request, f"{done} of {rows.count()} queued again.")

    @admin.action(description="Cancel the unfinished jobs", permissions=["change"])
    def cancel_jobs(self, request: HttpRequest, rows: QuerySet) -> None:
        done = [row for row in rows if row.job and row.job.unfinished and request_cancel(row.job)]
        self.message_user(request, f"{len(done)} of {rows.count()} asked to stop.")

    @admin.action(description="Verify the files")
    def verify(self, request: HttpRequest, rows: QuerySet) -> None:
        for row in rows:
            damage = row.damage()
            text = f"{row}: {'; '.join(damage)}." if damage else f"{row}: all files are there and whole."
            self.message_user(request, text, messages.ERROR if damage else messages.SUCCESS)

    @admin.action(description="Delete with files", permissions=["remove"])
    def delete_with_files(self, request: HttpRequest, rows: QuerySet) -> TemplateResponse | None:
        if "sure" not in request.POST:
            context = {**self.admin_site.each_context(request), "rows": rows, "opts": self.model._meta}
            return TemplateResponse(request, "admin/delete_with_files.html", {**context, "title": "Are you sure?"})
        deleted = 0
        for row in rows:
            try:
                row.delete_with_files()
                deleted += 1
            except InUse as refused:
                self.message_user(request, str(refused), messages.ERROR)
        if deleted:
            self.message_user(request, f"{deleted} deleted, with their files.", messages.SUCCESS)
        return None


def link(url: str, text: str) -> SafeString:
    return format_html('<a href="{}">{}</a>', url, text)


class LanguageModelAdmin(ReadOnlyJobFields):
    typed_in = ("notes",)

    @admin.action(description="Verify the files", permissions=["change"])
    def verify(self, request: HttpRequest, rows: QuerySet) -> None:
        """By a job, which keeps what it finds: a damaged model is quarantined."""
        started = 0
        for row in rows:
            try:
                row.verify(request.user)
                started += 1
            except InvalidInput as refused:
                self.message_user(request, f"{row}: {refused.message} {refused.hint}".strip(), messages.ERROR)
        self.message_user(request, f"{started} of {rows.count()} are being verified; their pages say what is found.")


for artifact in ARTIFACTS:
    admin.site.register(artifact, LanguageModelAdmin if artifact is LanguageModel else ReadOnlyJobFields)


@admin.register(Feature)
class FeatureAdmin(NotDeleted):
    list_display = ("__str__", "label", "density", "max_activation", "labelled_by", "page")
    list_select_related = ("sae", "labelled_by")
    list_filter = (("label", admin.EmptyFieldListFilter), "labelled_at", "sae")
    search_fields = ("label", "top_tokens", "=index")
    readonly_fields = (
        "sae",
        "index",
        "n_fired",
        "density",
        "max_activation",
        "mean_activation",
        "top_tokens",
        "page",
    )
    autocomplete_fields = ("labelled_by",)
    list_per_page = 50
    show_full_result_count = False

    @admin.display(description="on the site")
    def page(self, row: Feature) -> str:
        return link(row.get_absolute_url(), "open")


@admin.register(Template)
class TemplateAdmin(NotAdded):
    list_display = ("name", "noun", "team", "owner", "favourite", "created_at")
    list_select_related = ("team", "owner")
    list_filter = ("noun", "team", "favourite")
    search_fields = ("name",)
    readonly_fields = ("noun", "values")


@admin.register(Upload)
class UploadAdmin(NotDeleted):
    list_display = ("name", "team", "owner", "size", "received", "touched_at", "dataset")
    list_select_related = ("team", "owner", "dataset")
    list_filter = ("team", "touched_at")
    search_fields = ("name", "sha256", "owner__username")
    list_per_page = 50
    actions = ("delete_with_file",)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    @admin.action(description="Delete with the file", permissions=["remove"])
    def delete_with_file(self, request: HttpRequest, rows: QuerySet) -> None:
        for row in rows:
            row.delete_with_file()
        self.message_user(request, "Deleted, with their files.", messages.SUCCESS)


@admin.register(DatasetPart)
class DatasetPartAdmin(NotDeleted):
    """A mixture that is made stays as it is."""

    list_display = ("__str__", "weight", "n_documents", "n_bytes", "n_duplicates", "ended")
    list_select_related = ("mixture", "dataset")
    search_fields = ("mixture__name", "dataset__name")
    readonly_fields = tuple(field.name for field in DatasetPart._meta.fields)


@admin.register(CacheShare)
class CacheShareAdmin(NotDeleted):
    """What a training reads is settled when it starts."""

    list_display = ("__str__", "weight")
    list_select_related = ("training", "cache")
    search_fields = ("training__name", "cache__name")
    readonly_fields = tuple(field.name for field in CacheShare._meta.fields)


class MembershipInline(admin.TabularInline):
    model = Membership
    extra = 0
    autocomplete_fields = ("user",)


@admin.register(Team)
class TeamAdmin(admin.ModelAdmin):
    list_display = ("name", "created_at")
    search_fields = ("name",)
    inlines = (MembershipInline,)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False  # would take every object of the team along, but not their files


@admin.register(User)
class MistudioUserAdmin(UserAdmin):
    inlines = (MembershipInline,)

    def get_inlines(self, request: HttpRequest, obj: Any) -> Any:
        return self.inlines if obj else ()  # a new person is put into the default team


@admin.register(HubToken)
class HubTokenAdmin(NotAdded):
    """That there is one, and whose; it can be taken away, not read."""

    list_display = fields = ("user", "shown", "stored_at")
    list_select_related = ("user",)
    search_fields = ("user__username",)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(Membership)
class MembershipAdmin(admin.ModelAdmin):
    list_display = ("team", "user", "created_at")
    list_select_related = ("team", "user")
    list_filter = ("team",)
    search_fields = ("user__username", "team__name")
