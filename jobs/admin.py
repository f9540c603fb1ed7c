from typing import Any

from django.contrib import admin, messages
from django.db import models
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.html import format_html

from jobs.errors import InvalidInput
from jobs.models import Job, JobEvent, LiveEvent, Metric, Progress, QueuePause, Schedule, Worker
from jobs.queue import request_cancel, retry


class Written(admin.ModelAdmin):
    """Rows that the runner writes: to be read here, never edited."""

    list_per_page = 50
    show_full_result_count = False

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: models.Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: models.Model | None = None) -> bool:
        return False


class GivenValues(admin.AllValuesFieldListFilter):
    """The values of a text that may be empty."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lookup_choices = self.lookup_choices.exclude(**{self.field_path: ""})


class EventInline(admin.TabularInline):
    model = JobEvent
    extra = 0
    can_delete = False
    fields = readonly_fields = ("at", "what", "detail")

    def has_add_permission(self, request: HttpRequest, obj: models.Model | None = None) -> bool:
        return False


@admin.register(Job)
class JobAdmin(Written):
    list_display = ("id", "title", "kind", "state", "queue", "team", "owner", "attempt", "percent", "queued_at", "page")
    list_display_links = ("id", "title")
    list_filter = ("state", "kind", "queue", ("error_code", GivenValues), "team", "queued_at")
    list_select_related = ("team", "owner")
    search_fields = ("title", "subject", "error_message", "=id")
    date_hierarchy = "queued_at"
    actions = ("retry_jobs", "cancel_jobs")
    inlines = (EventInline,)
    readonly_fields = ("page",)

    @admin.display(description="on the site")
    def page(self, job: Job) -> str:
        return format_html('<a href="{}">open</a>', job.get_absolute_url())

    @admin.action(description="Retry the failed and cancelled ones")
    def retry_jobs(self, request: HttpRequest, jobs: QuerySet) -> None:
        self._each(request, [job for job in jobs if job.can_retry], retry, "queued again")

    @admin.action(description="Cancel the unfinished ones")
    def cancel_jobs(self, request: HttpRequest, jobs: QuerySet) -> None:
        self._each(request, [job for job in jobs if job.unfinished], request_cancel, "asked to stop")

    def _each(self, request: HttpRequest, jobs: list[Job], act: Any, done: str) -> None:
        acted = 0
        for job in jobs:
            try:
                acted += bool(act(job))
            except InvalidInput as refused:
                self.message_user(request, f"{job}: {refused.message} {refused.hint}", messages.ERROR)
        self.message_user(request, f"{acted} {done}.")


@admin.register(JobEvent)
class JobEventAdmin(Written):
    list_display = ("job", "at", "what")
    list_select_related = ("job",)
    search_fields = ("what", "=job__id")
    list_filter = ("at",)


@admin.register(Progress)
class ProgressAdmin(Written):
    list_display = ("job", "at", "stage", "percent", "done", "total", "rate")
    list_select_related = ("job",)
    search_fields = ("=job__id", "stage")


@admin.register(Metric)
class MetricAdmin(Written):
    list_display = ("job", "step", "values")
    list_select_related = ("job",)
    search_fields = ("=job__id", "=step")


@admin.register(Worker)
class WorkerAdmin(Written):
    list_display = ("host", "pid", "queue", "slots", "started_at", "heartbeat_at")
    list_filter = ("queue",)
    search_fields = ("host",)


@admin.register(QueuePause)
class QueuePauseAdmin(Written):
    list_display = ("queue", "at", "by", "reason")
    list_select_related = ("by",)
    search_fields = ("reason",)


@admin.register(Schedule)
class ScheduleAdmin(Written):
    list_display = ("task", "said", "enabled", "next_at")
    list_filter = ("every", "enabled")
    search_fields = ("task",)


@admin.register(LiveEvent)
class LiveEventAdmin(Written):
    list_display = ("id", "topic", "at")
    search_fields = ("topic",)
