"""Raises alerts and ends them. Whoever looks at the same values finds the same: of two who raise an alert, one does."""

import logging
from datetime import datetime, timedelta

from django.db.models import Q
from django.dispatch import Signal

from monitoring.models import Alert
from monitoring.reading import DAY, Values
from monitoring.rules import Rule

NOTED = timedelta(seconds=10)  # an open alert says at least so often that it still is
UNSEEN = timedelta(minutes=5)  # then what it was about is no longer there
KEPT, MOST = timedelta(seconds=DAY), 200  # for how long, and how many, after their end

Rules = dict[str, Rule]  # by name
Key = tuple[str, str, str]  # of an alert: rule, host, thing

changed = Signal()  # an alert was raised, silenced or ended

log = logging.getLogger(__name__)


class Watch:
    """Compares values with the rules, and remembers since when one would raise an alert that is not open, or end one
    that is."""

    def __init__(self) -> None:
        self.turning: dict[Key, tuple[datetime, float]] = {}  # since when, and the worst since then

    def see(self, host: str, values: Values, rules: Rules, now: datetime) -> None:
        """A reading of the host. What it does not hold any more is not on its way to anything."""
        opened = {alert.key: alert for alert in Alert.objects.open().filter(host=host)}
        before, self.turning = self.turning, {}
        for rule in rules.values():
            for thing, value in (rule.of_reading(values) if rule.of_reading else {}).items():
                key = rule.name, host, thing
                if key in before:
                    self.turning[key] = before[key]
                self.judge(rule, key, value, opened, now)

    def judge(
        self,
        rule: Rule,
        key: Key,
        value: float,
        opened: dict[Key, Alert],
        now: datetime,
    ) -> None:
        alert = opened.get(key)
        if alert:
            note(alert, rule, value, now)
        if rule.worse(value, rule.recovers) if alert else not rule.worse(value, rule.limit):
            self.turning.pop(key, None)
            return
        since, worst = self.turning.get(key, (now, value))
        self.turning[key] = since, rule.worst(worst, value)
        if (now - since).total_seconds() < rule.seconds:
            return
        since, worst = self.turning.pop(key)
        if alert:
            end(alert, now)
        else:
            begin(key, now - timedelta(seconds=value) if rule.silence else since, worst, now)


def look_around(rules: Rules, now: datetime) -> None:
    """What anybody who lives can see of all hosts: who is silent, which alerts and silences are over."""
    opened = {alert.key: alert for alert in Alert.objects.open()}
    watch = Watch()
    for rule in rules.values():
        for (host, thing), seconds in (rule.silence(now) if rule.silence else {}).items():
            watch.judge(rule, (rule.name, host, thing), seconds, opened, now)
    for alert in opened.values():
        if now - alert.seen_at > UNSEEN:
            end(alert, now, gone=True)
    if any(alert.silenced_until and alert.silenced_until <= now for alert in opened.values()):
        Alert.objects.open().filter(silenced_until__lte=now).update(silenced_until=None, silenced_by=None)
        changed.send(Alert)


def begin(key: Key, since: datetime, worst: float, now: datetime) -> None:
    """A silence outlasts the alert: it holds for the next one of the same kind."""
    rule, host, thing = key
    same = {"rule": rule, "host": host, "thing": thing}
    before = Alert.objects.filter(**same).order_by("-since", "-pk").first()
    silent = before and before.silenced_until and before.silenced_until > now
    silence = {"silenced_until": before.silenced_until, "silenced_by": before.silenced_by} if before and silent else {}
    alert, new = Alert.objects.get_or_create(
        **same, recovered_at=None, defaults={"since": since, "worst": worst, "seen_at": now, **silence}
    )
    if new:
        log.warning("Alert: %s", alert)
        changed.send(Alert)


def note(alert: Alert, rule: Rule, value: float, now: datetime) -> None:
    """That it still is, and how bad it was."""
    if now - alert.seen_at < NOTED and not rule.worse(value, alert.worst):
        return
    alert.seen_at, alert.worst = now, rule.worst(value, alert.worst)
    Alert.objects.open().filter(pk=alert.pk).update(seen_at=now, worst=alert.worst)


def end(alert: Alert, now: datetime, gone: bool = False) -> None:
    if Alert.objects.open().filter(pk=alert.pk).update(recovered_at=now, gone=gone):
        log.warning("Alert is over: %s", alert)
        changed.send(Alert)


def tidy_alerts(now: datetime) -> None:
    ended = Alert.objects.exclude(recovered_at=None)
    newest = list(ended.order_by("-recovered_at").values_list("pk", flat=True)[:MOST])
    ended.filter(Q(recovered_at__lt=now - KEPT) | ~Q(pk__in=newest)).delete()
