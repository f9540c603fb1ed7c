from typing import Any

from django.conf import settings
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import render
from django.template.loader import render_to_string
from django.views.decorators.http import require_GET

from jobs.live import Topic
from mistudio.monitored import PARTS, WINDOWS, Window, look, part
from mistudio.views import attribution
from monitoring.models import Host


@require_GET
def monitor(request: HttpRequest) -> HttpResponse:
    """The machines belong to the installation: everybody in a team sees them."""
    user: Any = request.user
    if user.team is None:
        return render(request, "no_team.html")
    hosts = list(Host.objects.order_by("name"))
    if not hosts:
        return render(request, "monitor/empty.html", {"seconds": settings.MONITOR_SECONDS})
    window = request.GET.get("window") or next(iter(WINDOWS))
    name = request.GET.get("host") or hosts[0].name
    host = next((host for host in hosts if host.name == name), None)
    if host is None or window not in WINDOWS:
        raise Http404
    seen = look(host, WINDOWS[window])
    context = {
        "hosts": hosts,
        "look": seen,
        "windows": WINDOWS.items(),
        "window": window,
        "parts": [part(name, seen) for name in PARTS],
        **attribution.context(seen, user.team.pk),
        "topics": [
            *(f"system.{name}.{window}.{host.pk}" for name in ("host", *PARTS)),
            *(f"attribution.{name}.{user.team.pk}.{window}.{host.pk}" for name in attribution.PARTS),
        ],
    }
    return render(request, "monitor/detail.html", context)


def chosen(key: str) -> tuple[str, Host, Window] | None:
    """Of "cpu.1h.3": the part, host 3, one hour."""
    name, _, rest = key.partition(".")
    window, _, pk = rest.partition(".")
    known = (name == "host" or name in PARTS) and window in WINDOWS and pk.isdecimal() and len(pk) < 19
    host = Host.objects.filter(pk=int(pk)).first() if known else None
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


topic = Topic(visible=visible, render=live, interval=1.0, ticks=True)
