from typing import Any

from django.template.loader import render_to_string

from jobs.live import Topic
from mistudio import attribution
from mistudio.monitored import WINDOWS, Look, look
from monitoring.models import Host

PARTS = {
    "lanes": (attribution.lanes, "monitor/_lanes.html"),
    "processes": (attribution.processes, "monitor/_processes.html"),
}


def context(seen: Look, team: int) -> dict[str, Any]:
    """Each part by its name."""
    return {name: show(seen, team) for name, (show, _) in PARTS.items()}


def chosen(key: str) -> tuple[str, str, str, int] | None:
    """Of "lanes.7.1h.3": the part, team 7, one hour, host 3."""
    part, team, window, host, *more = [*key.split("."), "", "", ""]
    known = part in PARTS and window in WINDOWS and host.isdecimal() and len(host) < 19 and not any(more)
    return (part, team, window, int(host)) if known else None


def visible(user: Any, key: str) -> bool:
    """A host is for everybody; what a team sees of its own jobs is for that team."""
    found = chosen(key)
    own = user.team is not None and found is not None and found[1] == str(user.team.pk)
    return own and found is not None and Host.objects.filter(pk=found[3]).exists()


def live(key: str) -> str:
    # Reached only by pages that `visible` let in.
    found = chosen(key)
    host = Host.objects.filter(pk=found[3]).first() if found else None
    if found is None or host is None:
        return ""
    show, template = PARTS[found[0]]
    return render_to_string(template, {found[0]: show(look(host, WINDOWS[found[2]]), int(found[1]))})


topic = Topic(visible=visible, render=live, interval=2.0, ticks=True)
