from typing import Any

from django.template.loader import render_to_string

from jobs.live import Topic, at_each_interval
from mistudio import attribution
from mistudio.models import User
from mistudio.monitored import WINDOWS, Look, Window, host_of, look
from mistudio.views.alert import pace
from monitoring.models import Host

PARTS = {
    "lanes": (attribution.lanes, "monitor/_lanes.html"),
    "processes": (attribution.processes, "monitor/_processes.html"),
}


def context(seen: Look, team: int) -> dict[str, Any]:
    """Each part by its name."""
    return {name: show(seen, team) for name, (show, _) in PARTS.items()}


def chosen(key: str) -> tuple[str, str, Host, Window] | None:
    """Of "lanes.7.1h.3.2": the part, team 7, host 3, one hour. The rest are the seconds between two updates."""
    part, team, window, pk, seconds = key.split(".") if key.count(".") == 4 else [""] * 5
    known = part in PARTS and window in WINDOWS and seconds in map(str, User.PACES)
    host = host_of(pk) if known else None
    return (part, team, host, WINDOWS[window]) if host else None


def visible(user: Any, key: str) -> bool:
    """A host is for everybody; what a team sees of its own jobs is for that team."""
    found = chosen(key)
    return user.team is not None and found is not None and found[1] == str(user.team.pk)


def live(key: str) -> str:
    # Reached only by pages that `visible` let in.
    found = chosen(key)
    if found is None:
        return ""
    part, team, host, window = found
    show, template = PARTS[part]
    return render_to_string(template, {part: show(look(host, window), int(team))})


topic = Topic(visible=visible, render=live, interval=1.0, pace=pace, old_after=at_each_interval)
