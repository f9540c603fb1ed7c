from typing import Any

from django.conf import settings
from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import render
from django.template.loader import render_to_string
from django.views.decorators.http import require_GET, require_POST

from jobs.live import Topic, at_each_interval
from mistudio.models import User
from mistudio.monitored import PARTS, WINDOWS, Window, host_of, look, part
from mistudio.overview import overview
from mistudio.views import attribution
from mistudio.views.alert import alerts, back_to_monitor, in_words, pace, role_of
from monitoring.models import Host
from monitoring.rules import rules


@require_GET
def monitor(request: HttpRequest) -> HttpResponse:
    """The machines belong to the installation: everybody in a team sees them."""
    user: Any = request.user
    if user.team is None:
        return render(request, "no_team.html")
    hosts = list(Host.objects.order_by("name"))
    if not hosts:
        return render(request, "monitor/empty.html", {"seconds": settings.MONITOR_SECONDS})
    held = rules()
    frame = {
        "hosts": hosts,
        "alerts": alerts(user.is_staff, held),
        "rules": in_words(held),
        "paces": User.PACES,
        "seconds": settings.MONITOR_SECONDS,
    }
    if len(hosts) > 1 and not request.GET.get("host"):
        topics = [f"alerts.{role_of(user)}.{user.monitor_seconds}", f"hosts.{user.monitor_seconds}"]
        return render(request, "monitor/list.html", {**frame, "rows": overview(hosts), "topics": topics})
    return render(request, "monitor/detail.html", {**frame, **of_host(request, user, hosts)})


def of_host(request: HttpRequest, user: Any, hosts: list[Host]) -> dict[str, Any]:
    window = request.GET.get("window") or next(iter(WINDOWS))
    name = request.GET.get("host") or hosts[0].name
    host = next((host for host in hosts if host.name == name), None)
    if host is None or window not in WINDOWS:
        raise Http404
    seen = look(host, WINDOWS[window])
    parts = [f"system.{name}.{window}.{host.pk}.{user.monitor_seconds}" for name in ("host", *PARTS)]
    owned = [
        f"attribution.{name}.{user.team.pk}.{window}.{host.pk}.{user.monitor_seconds}" for name in attribution.PARTS
    ]
    return {
        "look": seen,
        "windows": WINDOWS.items(),
        "window": window,
        "parts": [part(name, seen) for name in PARTS],
        **attribution.context(seen, user.team.pk),
        "topics": [f"alerts.{role_of(user)}.{user.monitor_seconds}", *parts, *owned],
    }


@require_POST
def monitor_pace(request: HttpRequest) -> HttpResponse:
    """How often this person's monitor is updated. It is kept with the account."""
    user: Any = request.user
    seconds = request.POST.get("seconds", "")
    if seconds in map(str, User.PACES):
        user.monitor_seconds = int(seconds)
        user.save(update_fields=["monitor_seconds"])
    else:
        messages.error(request, f"seconds: give one of {', '.join(map(str, User.PACES))}.")
    return back_to_monitor(request)


# ---- live


def chosen(key: str) -> tuple[str, Host, Window] | None:
    """Of "cpu.1h.3.2": the part, host 3, one hour. The rest are the seconds between two updates."""
    name, window, pk, seconds = key.split(".") if key.count(".") == 3 else [""] * 4
    known = (name == "host" or name in PARTS) and window in WINDOWS and seconds in map(str, User.PACES)
    host = host_of(pk) if known else None
    return (name, host, WINDOWS[window]) if host else None


def visible(user: Any, key: str) -> bool:
    return user.team is not None and chosen(key) is not None


def live(key: str) -> str:
    found = chosen(key)
    if found is None:
        return ""
    name, host, window = found
    seen = look(host, window)
    if name == "host":
        return render_to_string("monitor/_host.html", {"look": seen})
    return render_to_string("monitor/_part.html", {"part": part(name, seen)})


topic = Topic(visible=visible, render=live, interval=1.0, pace=pace, old_after=at_each_interval)


def hosts_visible(user: Any, key: str) -> bool:
    return user.team is not None and key in map(str, User.PACES)


def hosts_live(key: str) -> str:
    return render_to_string("monitor/_hosts.html", {"rows": overview(list(Host.objects.order_by("name")))})


hosts_topic = Topic(visible=hosts_visible, render=hosts_live, interval=1.0, pace=pace, old_after=at_each_interval)
