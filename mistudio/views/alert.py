from datetime import timedelta
from typing import Any

from django.conf import settings
from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.db.models import Exists, F, OuterRef
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.template.loader import render_to_string
from django.utils import timezone
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.http import require_POST

from jobs.live import Topic, at_each_interval
from mistudio.formats import duration
from mistudio.models import User
from monitoring.alerts import Rules, changed, look_around
from monitoring.models import Alert, Host
from monitoring.rules import Rule, known, rules

SILENCES = (1, 24)  # hours
MOST = 30  # on the page
ROLES = {"staff": True, "member": False}  # of who looks → may they silence?


def said(rule: Rule, value: float) -> str:
    return duration(value) if rule.unit == "s" else f"{value:g} {rule.unit}"


def shown(alert: Alert, everything: Rules) -> dict[str, Any]:
    rule = everything.get(alert.rule)
    if rule is None:  # of a version that had it
        return {"alert": alert, "label": alert.rule}
    figures = {"worst": said(rule, alert.worst), "limit": said(rule, rule.limit)} if not rule.silence else {}
    return {"alert": alert, "label": rule.label, "falls": rule.falls, **figures}


def alerts(may_silence: bool, held: Rules) -> dict[str, Any]:
    """What is open now, and what is over since a day at most, the newest first."""
    look_around(held, timezone.now())
    everything = known() | held
    ended = F("recovered_at").desc(nulls_first=True)
    monitored = Exists(Host.objects.filter(name=OuterRef("host")))  # it has charts to look at
    found = Alert.objects.select_related("silenced_by").annotate(monitored=monitored).order_by(ended, "-since")
    rows = [shown(alert, everything) for alert in found[:MOST]]
    still = [row for row in rows if row["alert"].recovered_at is None]
    return {
        "open": sorted(still, key=lambda row: row["alert"].silenced_until is not None),
        "over": [row for row in rows if row["alert"].recovered_at],
        "silences": SILENCES if may_silence else (),
    }


def in_words(held: Rules) -> list[dict[str, Any]]:
    """Every rule, as it holds now."""
    return [
        {
            "label": rule.label,
            "word": "below" if rule.falls else "above" if rule.of_reading else "for",
            "limit": said(rule, rule.limit),
            "recovers": said(rule, rule.recovers) if rule.of_reading else "",
            "seconds": duration(rule.seconds) if rule.seconds else "",
            "on": name in held,
        }
        for name, rule in (known() | held).items()
    ]


# ---- live: with buttons for those who may use them


def role_of(user: Any) -> str:
    return "staff" if user.is_staff else "member"


def visible(user: Any, key: str) -> bool:
    role, _, seconds = key.partition(".")
    may = role in ROLES and (user.is_staff or not ROLES[role])
    return user.team is not None and may and seconds in map(str, User.PACES)


def live(key: str) -> str:
    return render_to_string("monitor/_alerts.html", {"alerts": alerts(ROLES[key.partition(".")[0]], rules())})


def pace(key: str) -> float:
    """As asked for, but no oftener than there are readings."""
    return max(float(key.rpartition(".")[2]), settings.MONITOR_SECONDS)


topic = Topic(visible=visible, render=live, interval=1.0, pace=pace, old_after=at_each_interval)


# ---- silence


@require_POST
def alert_silence(request: HttpRequest, pk: int) -> HttpResponse:
    """For `hours`; 0 ends the silence."""
    user: Any = request.user
    if not user.is_staff:
        raise PermissionDenied("Only staff silences alerts: ask an administrator.")
    hours = request.POST.get("hours", "")
    if hours not in ("0", *map(str, SILENCES)):
        messages.error(request, f"hours: give {', '.join(map(str, SILENCES))}, or 0 to end the silence.")
    else:
        silence(get_object_or_404(Alert, pk=pk, recovered_at=None), user, int(hours))
    return back_to_monitor(request)


def silence(alert: Alert, user: User, hours: int) -> None:
    alert.silenced_until = timezone.now() + timedelta(hours=hours) if hours else None
    alert.silenced_by = user if hours else None
    alert.save(update_fields=["silenced_until", "silenced_by"])
    changed.send(Alert)


def back_to_monitor(request: HttpRequest) -> HttpResponse:
    """To the host and window from where it was sent: a live fragment does not know the page it is on."""
    before = request.headers.get("Referer", "")
    known = url_has_allowed_host_and_scheme(before, {request.get_host()}, require_https=request.is_secure())
    return redirect(before if known else "monitor")
