from typing import Any, ClassVar

from django import forms

from jobs.models import Schedule


class ScheduleForm(forms.ModelForm):
    at = forms.TimeField(
        label="Time",
        help_text="Hours and minutes, UTC, such as 03:10. Of a task that runs every hour the minutes count.",
        input_formats=["%H:%M"],
        widget=forms.TimeInput(attrs={"placeholder": "03:10", "autocomplete": "off"}, format="%H:%M"),
        error_messages={"invalid": "Give hours and minutes, from 00:00 to 23:59."},
    )

    class Meta:
        model = Schedule
        fields = ("enabled", "every", "at", "weekday")
        help_texts: ClassVar[dict[str, Any]] = {"weekday": "Of a task that runs every week."}
