"""What all tasks of upkeep have in common. A task finds steps; a dry run only counts them, any other takes them too."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import time
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.utils.module_loading import import_string

from jobs.errors import InvalidInput
from jobs.ml.disk import size

if TYPE_CHECKING:
    from jobs.context import Context

SHOWN = 50  # lines of each kind that a report keeps


class Needless(Exception):
    """A step is not to be taken any more: somebody uses, or did, what it is about. Says why."""


@dataclass(frozen=True)
class Step:
    """`take` does it, and returns what is wrong, "" where nothing is. None: it is there to be reported. Raises
    Needless.

    Between the steps a run may be killed: each leaves everything whole."""

    what: str
    did: str  # "checkpoint removed": what is counted, its noun first
    take: Callable[[], str] | None
    n: int = 1
    bytes: int = 0
    wrong: str = ""  # what is known to be wrong without doing anything


@dataclass(frozen=True)
class Task:
    label: str
    says: str  # what it does, in one sentence
    at: time  # of its schedule, until somebody changes that
    steps: Callable[["Context"], Iterable[Step]]  # changes nothing
    every: str = "daily"
    weekday: int = 6


def find(name: str) -> Task:
    """Raises InvalidInput for one that does not exist."""
    if name not in settings.UPKEEP:
        said = f"There is no task of upkeep “{name}”."
        raise InvalidInput(said, hint=f"Tasks: {', '.join(settings.UPKEEP)}.", field="task")
    task: Task = import_string(settings.UPKEEP[name])
    return task


@dataclass
class Report:
    """What the steps amount to. Of a dry run the same as of the run that follows it, if nothing happens in between."""

    dry_run: bool
    only_told: bool = True  # none of the steps does anything
    counts: dict[str, list[int]] = field(default_factory=dict)  # what was done → how often, bytes
    details: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)  # what was left alone after all, and why
    wrong: list[str] = field(default_factory=list)  # what a person should look at

    def add(self, step: Step) -> None:
        count = self.counts.setdefault(step.did, [0, 0])
        count[0] += step.n
        count[1] += step.bytes
        self.details.append(step.what)
        self.only_told &= step.take is None

    def result(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "summary": self.summary(),
            "counts": {did: n for did, (n, _) in self.counts.items()},
            "bytes": sum(n_bytes for _, n_bytes in self.counts.values()),
        }
        for name in ("wrong", "kept", "details"):
            lines: list[str] = getattr(self, name)
            found[name] = lines[:SHOWN] + ([f"and {len(lines) - SHOWN:,} more"] if len(lines) > SHOWN else [])
        return found

    def summary(self) -> str:
        done = ", ".join(counted(did, n, n_bytes) for did, (n, n_bytes) in self.counts.items())
        words = f"Would be: {done}" if self.dry_run and not self.only_told else done or "Nothing to do"
        words += f"; {len(self.kept):,} left alone" if self.kept else ""
        return words + (f"; {len(self.wrong):,} to look at" if self.wrong else "")


def counted(did: str, n: int, n_bytes: int) -> str:
    """3 checkpoints removed (1.2 GB)"""
    noun, _, rest = did.partition(" ")
    return f"{n:,} {noun}{'' if n == 1 else 's'} {rest}" + (f" ({size(n_bytes)})" if n_bytes else "")


def carry_out(steps: Iterable[Step], ctx: "Context", *, dry_run: bool) -> Report:
    report = Report(dry_run)
    ctx.stage("look")
    found = list(watched(steps, ctx))
    ctx.stage("work", total=len(found), unit="steps")
    for step in found:
        ctx.check()
        take(step, report)
        ctx.advance()
    return report


def watched(steps: Iterable[Step], ctx: "Context") -> Iterator[Step]:
    for step in steps:
        ctx.check()
        yield step


def take(step: Step, report: Report) -> None:
    wrong = step.wrong
    try:
        if step.take and not report.dry_run:
            wrong = step.take() or wrong
    except Needless as why:
        report.kept.append(f"{step.what}: {why}")
        return
    except OSError as error:  # of one file; the others can still be seen to
        report.wrong.append(f"{step.what}: {error.strerror or error}")
        return
    report.add(step)
    if wrong:
        report.wrong.append(wrong)
