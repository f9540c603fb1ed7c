from collections.abc import Iterable
from typing import Any

from django import forms
from django.contrib import admin
from django.http import HttpRequest

from monitoring.models import Alert, Host, Sample, Threshold
from monitoring.rules import known


class ThresholdForm(forms.ModelForm):
    rule = forms.ChoiceField(choices=lambda: [(rule.name, f"{rule.label}, {rule.unit}") for rule in known().values()])

    class Meta:
        model = Threshold
        fields = ("rule", "on", "limit", "recovers", "seconds")

    def clean(self) -> dict[str, Any]:
        data = super().clean() or {}
        rule = known().get(data.get("rule", ""))
        limit, recovers = data.get("limit"), data.get("recovers")
        if rule and limit is not None and recovers is not None and rule.worse(recovers, limit):
            side = "at or above" if rule.falls else "at or below"
            self.add_error("recovers", f"Give a value {side} the limit: else the alert would end while it is raised.")
        if rule and rule.silence and data.get("seconds"):
            self.add_error("seconds", "This rule measures seconds itself: give 0, and the time as its limit.")
        return data


@admin.register(Threshold)
class ThresholdAdmin(admin.ModelAdmin):
    form = ThresholdForm
    list_display = ("rule", "on", "limit", "recovers", "seconds")


@admin.register(Alert)
class AlertAdmin(admin.ModelAdmin):
    """Raised and ended by those who measure; silenced on the monitor page."""

    list_display = ("rule", "host", "thing", "since", "worst", "recovered_at", "silenced_until", "silenced_by")
    list_filter = ("rule", ("recovered_at", admin.EmptyFieldListFilter))
    list_select_related = ("silenced_by",)
    search_fields = ("host", "thing")

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(Host)
class HostAdmin(admin.ModelAdmin):
    """Deleting a host that is gone for good deletes its readings, and nobody misses them any more."""

    list_display = ("name",)
    search_fields = ("name",)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def get_deleted_objects(self, objs: Iterable[Host], request: HttpRequest) -> tuple[list, dict, set, list]:
        """They are counted: tens of thousands of readings are no list to read."""
        hosts = list(objs)
        return list(map(str, hosts)), {"readings": Sample.objects.filter(host__in=hosts).count()}, set(), []
