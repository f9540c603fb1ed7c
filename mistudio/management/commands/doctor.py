import json
import sys
from typing import Any

from django.core.checks import ERROR, WARNING, CheckMessage, Info, run_checks
from django.core.management.base import BaseCommand, CommandParser

from jobs.doctor import OFFLINE, ONLINE, counted


class Command(BaseCommand):
    help = "Say what is wrong with this installation and how to mend it. Changes nothing. Exit code 1 with a problem."
    requires_system_checks: list[str] = []  # they are findings, too

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true", dest="as_json", help="print one JSON document")
        parser.add_argument("--online", action="store_true", help="also ask the hub")

    def handle(self, *args: Any, **options: Any) -> None:
        found = examine(options["online"])
        counts = {level: sum(one["level"] == level for one in found) for level in ("problem", "warning")}
        if options["as_json"]:
            self.stdout.write(json.dumps({"ok": not counts["problem"], **counts, "findings": found}))
        else:
            for finding in found:
                words = " ".join(f"{finding['finding']} {finding['hint']}".split())
                self.stdout.write(f"{finding['level']:<8} {finding['area']:<12} {words}")
            self.stdout.write(", ".join(counted(n, level) for level, n in counts.items()))
        if counts["problem"]:
            sys.exit(1)


def examine(online: bool) -> list[dict[str, str]]:
    """The worst last: it stands next to the prompt. What several areas say in the same words is said once."""
    import mistudio.doctor  # noqa: F401  registers what is to be run

    usual = run_checks() or [Info("Django's checks of models, kinds and queues find nothing.", id=f"{OFFLINE}.code")]
    tags = [OFFLINE, ONLINE] if online else [OFFLINE]
    found = [*usual, *run_checks(tags=tags, include_deployment_checks=True)]
    areas: dict[tuple[int, str, str], list[str]] = {}
    for finding in sorted(found, key=lambda finding: (finding.level, area_of(finding))):
        areas.setdefault((finding.level, finding.msg, finding.hint or ""), []).append(area_of(finding))
    return [
        {"level": word(level), "area": ", ".join(those), "finding": msg, "hint": hint}
        for (level, msg, hint), those in areas.items()
    ]


def area_of(finding: CheckMessage) -> str:
    room, _, name = (finding.id or "django").rpartition(".")
    return name if room in (OFFLINE, ONLINE) else finding.id or "django"


def word(level: int) -> str:
    return "problem" if level >= ERROR else "warning" if level >= WARNING else "OK"
