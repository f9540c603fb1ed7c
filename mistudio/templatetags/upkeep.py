"""What the list of upkeep's tasks shows. It needs nothing, so that any page for staff can include it."""

from dataclasses import dataclass

from django import template

from jobs.models import Job, Schedule
from jobs.upkeep.schedules import newest, schedules, subject_of
from jobs.upkeep.task import Task, find

register = template.Library()


@dataclass(frozen=True)
class Entry:
    schedule: Schedule
    task: Task
    latest: list[Job]


@register.simple_tag
def upkeep_entries() -> list[Entry]:
    jobs = newest()
    return [Entry(schedule, find(schedule.task), latest(schedule.task, jobs)) for schedule in schedules()]


def latest(name: str, jobs: dict[str, Job]) -> list[Job]:
    """The last run, and above it a dry run that came after it."""
    found = [jobs[subject] for subject in (subject_of(name, True), subject_of(name, False)) if subject in jobs]
    return found[1:] if len(found) == 2 and found[0].pk < found[1].pk else found
